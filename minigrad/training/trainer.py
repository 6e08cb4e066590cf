"""Trainer: the training loop, written once.

    trainer = Trainer(model, optimizer, loss)
    history = trainer.fit((x, y), epochs=20, validation=(x_val, y_val))

The data may also be a list of micro-batches, tuples `(*inputs, target)` of any shapes and types.

Every training step has four parts: a prediction, a loss, a backward pass and a step of the
optimiser (see `training.step`). This file repeats the step, and adds the rest: batches in random
order, records, validation, early stopping and checkpoints. A run that is resumed from a checkpoint
gives the same bits as a run without interruption (see `training.checkpoint_file`). Under `mpiexec`,
the ranks share the micro-batches of a step (see `minigrad.distributed`).
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad import random
from minigrad.checks import check_count, check_flag, check_positive, check_range, check_state, shown
from minigrad.core.grad_mode import no_grad
from minigrad.core.tensor import Tensor, as_array
from minigrad.distributed import world
from minigrad.distributed.agreement import check_agreement, digest
from minigrad.io.atomic import check_target
from minigrad.nn.module import Buffer, Module, Parameter, generators_in, load_values
from minigrad.optim import EMA, LRScheduler, Optimizer
from minigrad.progress import progress_bar
from minigrad.random import Rng
from minigrad.renamed import helpful_errors, with_hints
from minigrad.training import checkpoint_file, ranks
from minigrad.training.evaluation import mean_loss, prediction
from minigrad.training.history import RESERVED, History, as_record
from minigrad.training.step import Loss, TrainingStep, loss_and_count
from minigrad.training.training_data import (
    Data,
    MicroBatches,
    Rows,
    UnfinishedEpoch,
    as_data,
    prepared,
)

Metric = Callable[[NDArray[Any], NDArray[Any]], float]

_MISFITS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""The errors that a part may raise if its state has values of wrong types or sizes."""


class Trainer(TrainingStep):
    """Train a model: minimise a loss with an optimiser.

    Args:
        model: the model to train.
        optimizer: an optimiser of the model's parameters.
        loss: a function of prediction and target, such as `minigrad.mse`, that returns the mean
            over the rows. If it is a mean over something else, return `(mean, count)`.
        batch_size: the number of rows in a micro-batch, which go through the model at once. Given
            micro-batches are not changed.
        accumulation_steps: the number of micro-batches for one step of the optimiser. Their
            gradients are added up to the gradient of one large batch, but only one micro-batch at a
            time is in memory. The formula is sum(count gradient) / sum(count); the count is what
            the loss returned, or the number of rows of the target, which a target in parts, such as
            a dict or a tuple, does not have. So a loss that ignores targets, for example by
            `ignore_index`, should return the number of the other targets, and a loss with class
            weights the sum of the targets' weights. Several ranks share the micro-batches.
        metrics: a function of prediction and target as arrays, such as those of `minigrad.metrics`,
            or several, or a dict of them by name. They are recorded after each epoch, on the
            training and the validation rows. Names that the records use, such as "loss" or
            "validation_loss", are refused.
        clip_norm: the norm to which gradients are clipped before each step.
        patience: for early stopping, the number of epochs (with `validate_every`, of validations)
            without a better validation loss. Then training stops, and the best weights are
            restored. Without validation data, the training loss is compared.
        on_epoch: functions to call with the trainer after each epoch; they may call `stop()`.
        on_step: functions to call with the trainer after each step of the optimiser.
        validate_every: validate after every so many steps, and after the last step of `fit`,
            instead of after each epoch. The results are in the record of the step.
        checkpoint: the path of a file to write after each epoch, and when `fit` ends in the middle
            of an epoch or has restored the best weights. Only rank 0 writes it. If a new run would
            overwrite a file, `fit` warns. A relative path starts at the working folder at the time
            of the write.
        checkpoint_every: write the checkpoint also after every so many steps.
        save_frozen: whether checkpoints and the best weights contain the parameters that the
            optimiser does not train. Without these, the file of an adapter is small, but the model
            that loads it must already have the same frozen weights.
        scheduler: a scheduler of the same optimiser, which sets the lr after each step.
        ema: averages of the model's weights, updated after each step. Validation, metrics and the
            best weights use the averages; at all other times the model has its own weights.
        capture: whether to run each step as a captured program (see `minigrad.capture`), which is
            faster for small models and gives the same bits. The loss must accept targets as
            Tensors, and return the mean only.
        progress: whether to show a progress bar.
        rng: the random generator for the order of the rows.

    Attributes:
        history: the records of all epochs and steps so far.
        captured_step: with `capture`, the captured step; its `source` is the text of the program.
            Without, None.

    Raises:
        ValueError: if an option has an impossible value, the optimiser has parameters that are not
            the model's, or the optimiser, the scheduler and the averages do not belong together.
        TypeError: if an argument has a wrong type.
        OSError: if no checkpoint can be written at its path, for example because the folder does
            not exist (a FileNotFoundError).
    """

    @helpful_errors
    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        loss: Loss,
        *,
        batch_size: int = 32,
        accumulation_steps: int = 1,
        metrics: Metric | Sequence[Metric] | Mapping[str, Metric] = (),
        clip_norm: float | None = None,
        patience: int | None = None,
        on_epoch: Sequence[Callable[[Trainer], object]] | Callable[[Trainer], object] = (),
        on_step: Sequence[Callable[[Trainer], object]] | Callable[[Trainer], object] = (),
        validate_every: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        save_frozen: bool = True,
        scheduler: LRScheduler | None = None,
        ema: EMA | None = None,
        capture: bool = False,
        progress: bool = True,
        rng: Rng = None,
    ) -> None:
        self.batch_size = check_positive("batch_size", batch_size)
        self.accumulation_steps = check_positive("accumulation_steps", accumulation_steps)
        self.patience = _positive_or_none("patience", patience)
        self.validate_every = _positive_or_none("validate_every", validate_every)
        self.checkpoint_every = _positive_or_none("checkpoint_every", checkpoint_every)
        if checkpoint_every is not None and checkpoint is None:
            raise ValueError("checkpoint_every needs a checkpoint, the file to write")
        check_flag("save_frozen", save_frozen)
        check_flag("progress", progress)
        super().__init__(model, optimizer, loss, clip_norm, scheduler, ema, capture)
        if checkpoint is not None:  # check it now, not after the first epoch
            world().on_first(lambda: str(check_target(checkpoint, "checkpoint: ")), "Trainer")
        self.metrics = _by_name(metrics)
        self.on_epoch = _functions("on_epoch", on_epoch)
        self.on_step = _functions("on_step", on_step)
        self.checkpoint, self.save_frozen, self.progress = checkpoint, save_frozen, progress
        self.rng = None if rng is None else random.generator(rng)
        self._digests: dict[str, str] | None = None  # of modules before a step that is checked
        self._stopping = self._at_once = False
        self._unfinished: UnfinishedEpoch | None = None
        self._best: dict[str, NDArray[Any]] = {}
        self._best_loss = math.inf
        self._epochs_since_best = 0

    @with_hints
    def fit(
        self,
        train: Data,
        epochs: int | None = None,
        validation: Data | None = None,
        *,
        steps: int | None = None,
    ) -> History:
        """Train for `epochs` more epochs, or `steps` more steps, and return the full history.

        If an earlier `fit`, or a checkpoint, has left an epoch unfinished, this epoch is finished
        first, with the rest of its data in the same order. It counts as one of `epochs`.

        Args:
            train: features and target, `(x, y)`, or a list of micro-batches, which are tuples
                `(*inputs, target)`. The model is called as `model(*inputs)`.
            epochs: how many times to go through the rows or micro-batches.
            validation: validation data, in one of the same two forms.
            steps: the largest number of steps; training may end in the middle of an epoch.

        Raises:
            ValueError: if the data have neither form, are empty or have different lengths, `epochs`
                or `steps` is not a positive integer (without `steps`, `epochs` is needed), no
                parameter of the optimiser requires a gradient in the model, the count of the loss
                is 0 in a step, or the data have another length than those of the unfinished epoch.
                Also if there are metrics of micro-batches, `validate_every` without validation
                data, or ranks that cannot train together, because their data differ, for example.
            TypeError: if the loss does not return a Tensor of one element, or that and a count, a
                metric does not return a number, or the data do not contain numbers.
            FloatingPointError: if the loss (or with `clip_norm` the gradient norm) is not finite.
                The weights are those before the step.
            OSError: if the checkpoint cannot be written; an old file is not changed then.
            RuntimeError: if several ranks do not make the same calls.
        """
        if isinstance(epochs, (list, tuple)) or getattr(epochs, "ndim", False):
            raise ValueError(
                f"epochs must be an integer, not {type(epochs).__name__}; fit takes features and "
                f"target as one pair: fit((x, y), epochs=...)"
            )
        steps = _positive_or_none("steps", steps)
        if epochs is not None or steps is None:
            epochs = check_positive("epochs", epochs)
        data = self._prepared(train, "train")
        held_out = None if validation is None else self._prepared(validation, "validation")
        if self.validate_every is not None and held_out is None:
            raise ValueError("validate_every needs data for validation in fit")
        if not self._optimized() & set(map(id, self.model.trainable_parameters())):
            raise ValueError(  # the model may have been frozen after the optimiser was made
                "no parameter of the optimiser is in the model and requires a gradient, so "
                "nothing would train; make an optimiser with model.trainable_parameters()"
            )
        self._world = world()
        is_new = not self.history.steps and self._world.is_first
        if is_new and self.checkpoint is not None and os.path.exists(self.checkpoint):
            warnings.warn(
                f"this run begins anew, and overwrites {os.fspath(self.checkpoint)!r}, the "
                f"checkpoint of another; to continue that one, call trainer.load before fit",
                stacklevel=3,  # the caller of `fit`, beyond `with_hints`
            )
        self._streams.generators = self._generators(of_order=False)
        self._streams.is_shared = self._world.size > 1
        if self._world.size > 1:
            self._begin_together(data, held_out, f"epochs={epochs},steps={steps}")
        planned = self._planned_steps(data, epochs, steps)
        last = len(self.history.steps) + planned
        self._stopping = self._at_once = False
        if self.patience is not None and self._epochs_since_best >= self.patience:
            self._epochs_since_best = 0  # early stopping ended the last `fit`; count from 0 again
        try:
            with progress_bar(
                what="training", unit="step", total=planned,
                shown=self.progress and self._world.is_first,
                in_files=True, delay=0.0, dynamic_ncols=True,
            ) as bar:  # fmt: skip
                is_stopped = False
                while not is_stopped and (
                    len(self.history.steps) < last or self._has_only_the_end_left(data)
                ):
                    is_stopped = self._epoch(data, held_out, bar, last)
        except BaseException as error:
            self._unfinished = None  # a step may be half done, so the epoch cannot be resumed
            self._world.check_left_together(error)
            raise
        return self.history

    def _planned_steps(
        self, data: Rows | MicroBatches, epochs: int | None, steps: int | None
    ) -> int:
        """Return how many steps `fit` will make: the lesser of the two limits that are given."""
        left = len(data)
        if self._unfinished is not None:
            if len(self._unfinished.order) != len(data):
                raise ValueError(
                    f"the unfinished epoch has {len(self._unfinished.order)} rows or "
                    f"micro-batches, and these data have {len(data)}; continue with the same data"
                )
            left -= self._unfinished.position
        size = data.batch_size * self.accumulation_steps
        limits = [] if steps is None else [steps]
        if epochs is not None:
            limits.append(math.ceil(left / size) + (epochs - 1) * math.ceil(len(data) / size))
        return min(limits)

    def _begin_together(self, train: Rows | MicroBatches, held_out: Any, length: str) -> None:
        """Give all ranks the same state, or raise an error on all of them."""
        ranks.take_from_first(self._world, self._trained(), self.ema)
        loss = getattr(self.loss, "__qualname__", type(self.loss).__qualname__)
        further = {
            "the length of fit": length,
            "the loss": loss,
            "the data": digest(train.compared),
        }
        if held_out is not None:
            further["the data for validation"] = digest(held_out.compared)
        self._check_same(ranks.parameters_of(self.model, self.loss), further)
        count = math.ceil(len(train) / train.batch_size)
        ranks.check_ranks(self._world, count, self.accumulation_steps)

    def _check_same(self, parameters: Mapping[str, Parameter], further: Mapping[str, str]) -> None:
        """Raise an error on all ranks if they differ in the options or in the state of training.

        The digests of the attributes of modules are kept, to compare them after the next step.
        """
        if self._world.size == 1:
            return
        self._digests = ranks.digests_of_attributes(self.model, self.loss)
        options = [
            f"{name}={value}"
            for name, value in vars(self).items()
            if isinstance(value, (int, float, type(None))) and name[0] != "_" and name != "progress"
        ]
        generators = self._generators()
        names = {id(p): name for name, p in self.model.named_parameters()}
        trained = self.optimizer._parameters()
        facts = {
            "the order of the optimiser's parameters": [names.get(id(p)) for p in trained],
            "which parameters require gradients": [p.requires_grad for p in trained],
            "the seeds or draws of random generators": [g.bit_generator.state for g in generators],
            "the state of the optimiser": self.optimizer.state_dict()["state"],
            "the scheduler": [_class_name(self.scheduler), self.scheduler and vars(self.scheduler)],
            "the averages": None if self.ema is None else self.ema.state_dict(),
            "the best loss so far": [self._best_loss, self._epochs_since_best],
            "the step": len(self.history.steps),
        }
        digests = {name: digest([fact]) for name, fact in facts.items()}
        digests |= ranks.digests_of_model(self.model, self.loss, parameters, self._digests)
        groups = [
            f"{name} of group {number}={len(value) if name == 'params' else value}".replace(",", "")
            for number, group in enumerate(self.optimizer.param_groups)
            for name, value in group.items()
        ]
        texts = {
            "the options of the trainer": ",".join(options),
            "the metrics": ",".join(self.metrics) or "none",
            "the optimiser": ",".join([type(self.optimizer).__name__, *groups]),
        }
        check_agreement(self._world, {**texts, **further, **digests})

    def stop(self, *, at_once: bool = False) -> None:
        """End `fit` after the present epoch, or with `at_once` after the present step.

        The next `fit` continues with the rest of the epoch.
        """
        self._stopping = True
        self._at_once |= at_once

    def restore_best(self) -> None:
        """Restore the weights with the best loss, as early stopping by `patience` does.

        Raises:
            ValueError: if no best weights are saved: without `patience`, before the first
                comparison, or if the loss was never finite.
        """
        if not self._best:
            raise ValueError(
                "no best weights are saved; train with `patience` to save them. If this was done, "
                "the loss that it compares, of the validation if there is one, was never finite: "
                "look for nan and inf in its data"
            )
        self._set_weights(self._best)

    def predict(self, x: Any) -> NDArray[Any]:
        """Return the model's prediction for `x`, in evaluation mode, as an array.

        The rows of `x` go through the model in batches of `batch_size`.

        Raises:
            ValueError: if `x` has no rows; on all ranks, if their models or their `x` differ, or
                the model draws random numbers.
            TypeError: if `x` does not contain numbers, or the model does not return a Tensor.
        """
        array = as_data(x, self._dtype())
        ranks.check_same_model(world(), self.model, array)
        return prediction(self.model, array, self.batch_size, self._generators)

    def evaluate(self, data: Data | Rows | MicroBatches) -> dict[str, float]:
        """Return the loss and the metrics of the model on some data, as a dict.

        The data have one of the two forms that `fit` takes. The key of the loss is "loss". For
        micro-batches, the loss is the mean of their losses, weighted by their counts.

        Raises:
            ValueError: if the data have neither form, are empty or have different lengths, there
                are metrics of micro-batches, the loss counted nothing, or a count is negative or
                not finite; on all ranks, if their models, losses or data differ, or the model
                draws random numbers.
            TypeError: if the data do not contain numbers, the model does not return a Tensor, the
                loss not a Tensor of one element (or that and a count, if targets have no rows), or
                a metric not a number.
        """
        given = self._prepared(data, "data")
        if given is not data:  # `fit` passes prepared data, which it has compared already
            ranks.check_same_model(world(), self.model, given.compared, self.loss)
        if isinstance(given, MicroBatches):
            return {"loss": mean_loss(self.model, self.loss, given, self._generators)}
        output = prediction(self.model, given.x, self.batch_size, self._generators)
        with no_grad():
            loss, _ = loss_and_count(self.loss(Tensor(output), given.y))
        named = {name: metric(output, given.y) for name, metric in self.metrics.items()}
        for name, value in named.items():
            if shape := np.shape(value):
                raise TypeError(
                    f"the metric {name} returned an array of shape {shape}, and not one number; "
                    f"take its mean, for example"
                )
            if np.asarray(value).dtype.kind not in "biufV":
                raise TypeError(f"the metric {name} returned {value!r:.60}, and not a number")
        return {"loss": loss.item(), **named}

    def __repr__(self) -> str:
        return (
            f"Trainer({type(self.model).__name__}, {type(self.optimizer).__name__}, "
            f"batch_size={self.batch_size}, {self.history!r})"
        )

    # ----------------------------------------------------------------------------------------------
    # The loop
    # ----------------------------------------------------------------------------------------------

    def _epoch(self, train: Rows | MicroBatches, validation: Any, bar: Any, last: int) -> bool:
        """Train on all items that are left of the epoch; then validate, record and save.

        The loop ends early after step `last`, or after a call of `stop`. Returns whether `fit` must
        end. All ranks return the same, even if `stop` was called on only some of them.
        """
        epoch = len(self.history.epochs) + 1
        started = time.perf_counter()
        if self._unfinished is None:
            self._unfinished = UnfinishedEpoch(random.generator(self.rng).permutation(len(train)))
        unfinished, size = self._unfinished, train.batch_size * self.accumulation_steps
        counts, steps = unfinished.counts, self.history.steps
        before = sum(step["seconds"] for step in steps[len(steps) - len(unfinished.counts) :])
        self.model.train()
        while unfinished.position < len(train):
            items = unfinished.order[unfinished.position : unfinished.position + size]
            taken = train.micro_batches(items)
            if self._world.size > 1:
                # Micro-batches may be made on demand. Comparing rows too, which a callback may
                # change, would take up to a fifth of the time of a small step.
                compared = [items] if isinstance(train, Rows) else taken
                self._mark_of_data = int(digest(compared), 16)
            made, count = self._recorded_step(taken)
            if self._digests is not None:  # after `_check_same`, on several ranks
                ranks.check_unchanged(self.model, self._digests, self.loss)
                self._digests = None
            step = {"step": len(steps) + 1, "epoch": epoch, **made}
            steps.append(as_record(step))
            counts.append(count)
            unfinished.position += len(items)
            bar.set_postfix_str(f"epoch {epoch}, loss {step['loss']:.4g}", refresh=False)
            bar.update()
            self._after_step(validation, last)
            if self._unfinished is not unfinished:  # an `on_step` function has loaded another state
                return False
            at_once = self._world.any(self._at_once, "the end of a step")
            if unfinished.position < len(train):
                is_end = at_once or len(steps) == last
                every = self.checkpoint_every
                is_due = every is not None and len(steps) % every == 0
                if is_end or is_due:
                    self._check_and_save()
                if is_end:
                    return True
        self._unfinished = None
        seconds = before + time.perf_counter() - started
        return self._end_epoch(epoch, train, validation, counts, seconds)

    def _has_only_the_end_left(self, data: Rows | MicroBatches) -> bool:
        """Return whether an `on_step` function has loaded an epoch whose steps are all done."""
        return self._unfinished is not None and self._unfinished.position >= len(data)

    def _end_epoch(
        self, epoch: int, train: Rows | MicroBatches, validation: Any, counts: list[float],
        seconds: float,
    ) -> bool:  # fmt: skip
        """Record a complete epoch, validate, call the `on_epoch` functions, and save.

        `counts` are the counts of the loss in its steps. Returns whether `fit` must end.
        """
        steps = self.history.steps[-len(counts) :]
        record = {
            "epoch": epoch,
            "loss": np.average([step["loss"] for step in steps], weights=counts),
            "lr": steps[-1]["lr"],
            "grad_norm": np.mean([step["grad_norm"] for step in steps]),
            "seconds": seconds,
        }
        with self._averages():
            if self.metrics:
                judged = self.evaluate(train)
                record |= {name: value for name, value in judged.items() if name != "loss"}
            if self.validate_every is None and validation is not None:
                record |= self._validated(validation)
            self.history.epochs.append(as_record(record))
            if self.validate_every is None:
                self._compare(record.get("validation_loss", record["loss"]))
        for function in self.on_epoch:
            function(self)
        is_stopped = self._world.any(self._stopping, "the end of an epoch")
        self._check_and_save()
        return is_stopped

    def _check_and_save(self) -> None:
        """Check that all ranks have the same state, and write the checkpoint, if there is one.

        If `patience` has run out, the best weights are restored before, so a run that is killed
        afterwards does not continue with others.
        """
        self._drop_unfit_best()
        if self.patience is not None and self._epochs_since_best >= self.patience:
            self.restore_best()
        self._check_same(self._trained(), {})
        if self.checkpoint is not None:
            self.save(self.checkpoint)

    def _after_step(self, validation: Any, last: int) -> None:
        """Validate if `validate_every` says so, and call the `on_step` functions."""
        step, every = self.history.steps[-1], self.validate_every
        if every is not None and (step["step"] % every == 0 or step["step"] == last):
            with self._averages():
                step |= as_record(self._validated(validation))
                self._compare(step["validation_loss"])
        for function in self.on_step:
            function(self)

    def _averages(self) -> Any:
        """Return a context manager that gives the model its averages, if there are any."""
        return nullcontext() if self.ema is None else self.ema.applied()

    def _validated(self, validation: Rows | MicroBatches) -> dict[str, float]:
        return {f"validation_{name}": v for name, v in self.evaluate(validation).items()}

    def _compare(self, loss: float) -> None:
        """Save the weights if the loss is the best so far; stop if `patience` has run out."""
        if self.patience is None:
            return
        self._drop_unfit_best()
        if loss < self._best_loss:
            self._best_loss, self._epochs_since_best = float(loss), 0
            self._best = self._weights()
        else:
            self._epochs_since_best += 1
        if self._epochs_since_best >= self.patience:
            self.stop(at_once=True)

    def _drop_unfit_best(self) -> None:
        """Forget the best weights if the weights to save now have other names or shapes."""
        saved = {name: tensor.shape for name, tensor in self._saved().items()}
        if self._best and {name: array.shape for name, array in self._best.items()} != saved:
            self._best, self._best_loss, self._epochs_since_best = {}, math.inf, 0

    def _prepared(self, data: Any, name: str) -> Rows | MicroBatches:
        """Check data, and return them as `Rows` or `MicroBatches`."""
        given = prepared(data, name, self.batch_size, self._dtype())
        if self.metrics and isinstance(given, MicroBatches):
            raise ValueError(f"{name}: metrics are computed of rows (x, y), not of micro-batches")
        return given

    def _dtype(self) -> np.dtype[Any] | None:
        """Return the dtype of the model's first parameter, or None if there are no parameters."""
        return next((parameter.dtype for parameter in self.model.parameters()), None)

    def _trained(self) -> dict[str, Parameter]:
        """Return the parameters of the model that the optimiser trains, by name."""
        optimized = self._optimized()
        return {name: p for name, p in self.model.named_parameters() if id(p) in optimized}

    # ----------------------------------------------------------------------------------------------
    # The state, and files
    # ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a later step depends on (see `training.checkpoint_file`).

        Raises:
            RuntimeError: inside `ema.applied()`, where the model does not have its weights.
        """
        if self.ema is not None:
            self.ema.check_outside("a Trainer is saved or loaded")
        parts = {"optimizer": self.optimizer, "scheduler": self.scheduler, "ema": self.ema}
        return {
            "classes": {name: _class_name(part) for name, part in parts.items()},
            "model": self._weights(),
            "best": dict(self._best),
            **{name: None if p is None else p.state_dict() for name, p in parts.items()},
            "generators": [generator.bit_generator.state for generator in self._generators()],
            "best_loss": self._best_loss,
            "epochs_since_best": self._epochs_since_best,
            "steps": list(self.history.steps),
            "epochs": list(self.history.epochs),
            "pass": None if self._unfinished is None else asdict(self._unfinished),
        }

    def load_state_dict(
        self, state: Mapping[str, Any], *, source: str = "load_state_dict: the state"
    ) -> None:
        """Load a state that `state_dict` returned, into the trainer and all of its parts.

        Args:
            state: the state of a trainer whose parts have the same classes.
            source: the name of the state in error messages.

        Raises:
            ValueError: if the state does not fit the model, optimiser, scheduler, averages or
                random generators, or has an impossible value. Nothing is changed then.
            RuntimeError: inside `ema.applied()`.
        """
        before = self.state_dict()
        try:
            check_state("a Trainer", state, before)
            for name in ("classes", "model", "best", "generators", "steps", "epochs"):
                kind, value = type(before[name]), state[name]
                if not isinstance(value, kind):
                    raise ValueError(f"{name!r} is a {kind.__name__}, not {shown(value)}")
            self._load(state)
        except _MISFITS as error:
            self._load(before)
            reason = error if isinstance(error, ValueError) else repr(error)
            raise ValueError(
                f"{source} does not fit this trainer, and nothing was changed: {reason!s:.1000}"
            ) from error

    def _load(self, state: Mapping[str, Any]) -> None:
        """Load a state; if it does not fit, raise one of `_MISFITS`, perhaps half-way."""
        parts = {"optimizer": self.optimizer, "scheduler": self.scheduler, "ema": self.ema}
        for name, part in parts.items():
            saved, own = state["classes"][name], _class_name(part)
            if saved != own:
                raise ValueError(
                    f"it was saved with {saved or f'no {name}'}, and this trainer has "
                    f"{own or 'none'}"
                )
        generators = [generator.bit_generator for generator in self._generators()]
        kinds = [saved["bit_generator"] for saved in state["generators"]]
        own_kinds = [bits.state["bit_generator"] for bits in generators]
        if kinds != own_kinds:
            raise ValueError(f"it has random generators {kinds}, and this trainer {own_kinds}")
        own_weights = self._saved()
        for name, value in state["model"].items():
            if name in own_weights and value.dtype != own_weights[name].dtype:
                raise ValueError(
                    f"it has {name} as {value.dtype}, and this model as {own_weights[name].dtype}; "
                    f"convert the model with astype first"
                )
        self._set_weights(state["model"])
        for name, part in parts.items():
            if part is not None:
                part.load_state_dict(state[name])
        for bits, saved in zip(generators, state["generators"], strict=True):
            bits.state = saved
        check_count("epochs_since_best", state["epochs_since_best"])
        if math.isnan(state["best_loss"]):
            raise ValueError("its best loss is nan")
        self._best = {name: as_array(value) for name, value in state["best"].items()}
        self._best_loss = state["best_loss"]
        self._epochs_since_best = state["epochs_since_best"]
        for record in (*state["steps"], *state["epochs"]):
            if not RESERVED - {"step"} <= record.keys():
                raise ValueError(f"a record has {sorted(RESERVED)}, and not only {record!r:.100}")
        self.history = History(list(state["steps"]), list(state["epochs"]))
        self._unfinished = None
        if (begun := state["pass"]) is not None:
            order, position, counts = np.array(begun["order"]), begun["position"], begun["counts"]
            check_count("position", position)
            if position > len(order) or not np.array_equal(np.sort(order), np.arange(len(order))):
                raise ValueError("the order of the unfinished epoch is not one of its items")
            for count in counts:
                check_range("what a step counted", count, 0, math.inf)
            self._unfinished = UnfinishedEpoch(order, position, list(counts))

    def _saved(self) -> dict[str, Parameter | Buffer]:
        """Return the parameters that are saved, and all buffers, by name."""
        saved, every = self._optimized(), self.model.named_state()
        return {
            name: tensor
            for name, tensor in every
            if self.save_frozen or isinstance(tensor, Buffer) or id(tensor) in saved
        }

    def _weights(self) -> dict[str, NDArray[Any]]:
        return {name: tensor._data.copy() for name, tensor in self._saved().items()}

    def _set_weights(self, weights: Mapping[str, Any]) -> None:
        load_values(self._saved(), weights, type(self.model).__name__)

    def _generators(self, of_order: bool = True) -> list[np.random.Generator]:
        """List the generators that a run draws from: the default, the trainer's, the modules'.

        With `of_order=False`, the trainer's generator, for the order of the rows, is left out.
        """
        own = [random.generator(), *([self.rng] if self.rng is not None and of_order else [])]
        own += generators_in(self.model)
        return list(dict.fromkeys(own))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint, from which `load` resumes the run. Only rank 0 writes.

        Raises:
            OSError: if the file cannot be written; an old file is not changed then.
            RuntimeError: inside `ema.applied()`, where the model does not have its weights.
        """
        world().on_first(lambda: checkpoint_file.write(path, self.state_dict()), "save")

    def load(self, path: str | os.PathLike[str]) -> None:
        """Load a checkpoint that `save` wrote; the next `fit` continues the saved run.

        Rank 0 reads the file, and sends the state to the others.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if it is damaged or does not fit. Nothing is changed then.
        """
        self.load_state_dict(ranks.state_of_first(world(), path), source=repr(os.fspath(path)))


def _positive_or_none(name: str, value: Any) -> int | None:
    """Return None, or the value of `check_positive`."""
    return None if value is None else check_positive(name, value)


def _functions(role: str, given: Any) -> list[Callable[..., Any]]:
    """Return one function, or several, as a list; raise a TypeError if there are others."""
    is_many = isinstance(given, Iterable) and not isinstance(given, str) and not callable(given)
    several = given.values() if isinstance(given, Mapping) else given
    functions = list(several) if is_many else [given]
    if not all(map(callable, functions)):
        raise TypeError(f"{role} must be a function, or a list of functions, not {given!r:.60}")
    return functions


def _by_name(metrics: Any) -> dict[str, Metric]:
    """Return metrics by name; raise a ValueError for names that the records cannot have."""
    functions = _functions("metrics", metrics)
    names = [getattr(metric, "__name__", type(metric).__name__) for metric in functions]
    names = list(metrics) if isinstance(metrics, Mapping) else names
    if len(set(names)) != len(names):
        raise ValueError(f"two metrics have the same name, of {names}; pass a dict of names")
    for name in names:
        is_free = isinstance(name, str) and not name.startswith("validation_")
        if not is_free or name in RESERVED:
            raise ValueError(
                f"a metric cannot be called {name!r:.60}: its name must be a string that the "
                f"records do not use for something else; name it by a dict, metrics={{'my_loss': "
                f"...}}"
            )
    return dict(zip(names, functions, strict=True))


def _class_name(part: object) -> str | None:
    return None if part is None else type(part).__name__
