"""TrainingStep: one step of training, from the micro-batches to the new weights.

A step adds up the gradients of its micro-batches in a fixed order, as a tree of pairs (see
`minigrad.distributed.tree`). So the result has the same bits whether one process computes all of
them, or several ranks share them. Then the step clips the gradients, and updates the weights.

    sum over micro-batches of (count * gradient of the mean loss) / sum of counts

is the gradient of one large batch; a count is what the loss returned, or the number of rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minigrad import programs
from minigrad.checks import check_above_0, check_flag, check_range, shown
from minigrad.core.grad_mode import observed
from minigrad.core.tensor import Tensor, as_array
from minigrad.distributed import World
from minigrad.distributed.tree import Part, block, owner, pairwise, parts
from minigrad.distributed.worlds import Arrays, add_lists
from minigrad.nn.module import Module
from minigrad.optim import EMA, LRScheduler, Optimizer, clip_grad_norm, grad_norm
from minigrad.training.history import History
from minigrad.training.streams import Streams
from minigrad.training.training_data import MicroBatch

Loss = Callable[[Any, Any], Tensor | tuple[Tensor, Any]]


class MicroBatchFacts(NamedTuple):
    """Facts about a micro-batch after its forward pass."""

    loss: float
    weight: float  # of this loss in the mean of the step: the count of the loss, or of the rows
    is_counted: bool  # whether the loss function returned the count


class TrainingStep:
    """The base class of `Trainer`: the parts of a training step, and the method that makes a step.

    `capture` compares each attribute that the code of `_make_step` names before it runs a program.
    So `_make_step` only names attributes that stay the same; other methods read those that change.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        loss: Loss,
        clip_norm: float | None,
        scheduler: LRScheduler | None,
        ema: EMA | None,
        capture: bool,
    ) -> None:
        if clip_norm is not None:
            check_above_0("clip_norm", clip_norm)
        check_flag("capture", capture)
        parts_of_classes: list[tuple[str, Any, type, str]] = [
            ("model", model, Module, ""),
            ("optimizer", optimizer, Optimizer, ""),
            ("scheduler", scheduler, LRScheduler, " or None"),
            ("ema", ema, EMA, " or None"),
        ]
        for name, part, kind, or_none in parts_of_classes:
            if not isinstance(part, kind) and (part is not None or not or_none):
                raise TypeError(
                    f"{name} must be of class {kind.__name__}{or_none}, not {shown(part)}; the "
                    f"order is Trainer(model, optimizer, loss), and then options by name"
                )
        if isinstance(loss, type):
            raise TypeError(
                f"loss must be a function of prediction and target, not the class "
                f"{loss.__name__}; pass an object of it, such as {loss.__name__}()"
            )
        if not callable(loss):
            raise TypeError(f"loss must be a function of prediction and target, not {shown(loss)}")
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.clip_norm, self.scheduler, self.ema = clip_norm, scheduler, ema
        optimized = self._optimized()
        if not optimized <= set(map(id, model.parameters())):
            raise ValueError("the optimiser has parameters that are not the model's")
        if scheduler is not None and scheduler.optimizer is not optimizer:
            raise ValueError("the scheduler was made with another optimiser than the trainer's")
        averaged = optimized if ema is None else set(map(id, ema.parameters.values()))
        if missing := len(optimized - averaged):
            raise ValueError(
                f"ema has no average of {missing} parameters of the optimiser; make it of the "
                f"same model, when all that is to be trained requires a gradient"
            )
        self.capture = capture
        self.captured_step = programs.capture(self._make_step) if capture else None
        self.history = History()
        self._world = World()  # a single rank; `fit` sets the real one
        self._streams = Streams()
        self._mark_of_data = 0  # a digest of the data of a step, which all ranks must share
        # Stands in for the total count, until this is known; None for a single micro-batch.
        self._rows_in_step: float | None = None

    def _optimized(self) -> set[int]:
        """Return the ids of the parameters that the optimiser trains."""
        return set(map(id, self.optimizer._parameters()))

    def _recorded_step(self, micro_batches: list[MicroBatch]) -> tuple[dict[str, float], float]:
        """Make a step, or the part of this rank in it; return its record and its total count."""
        started = time.perf_counter()
        lr = self.optimizer.param_groups[0]["lr"]
        count = len(micro_batches)
        rows = [rows_of(target) for *_, target in micro_batches]
        all_rows = sum(each for each in rows if not math.isnan(each)) or 1
        shares = [np.array(each / all_rows) for each in rows]
        self._rows_in_step = all_rows if count > 1 else None
        own = block(count, self._world.rank, self._world.size)
        mine = slice(own.start, own.stop)
        captured: Any = self.captured_step
        if captured is not None and captured.step.__self__ is not self:  # this trainer is a copy
            captured = self.captured_step = programs.capture(self._make_step)
        step = captured or self._make_step
        with self._streams:
            values, norm, counted = step(micro_batches[mine], shares[mine], own.start, count)
        counts = counted or rows
        total = sum(counts)
        loss = sum(value * (each / total) for value, each in zip(values, counts, strict=True))
        seconds = time.perf_counter() - started
        return {"loss": loss, "lr": lr, "grad_norm": norm, "seconds": seconds}, total

    def _make_step(
        self, micro_batches: list[MicroBatch], shares: list[NDArray[Any]], first: int, count: int
    ) -> tuple[list[float], float, list[float] | None]:
        """Make a step; return the loss of each micro-batch, the gradient norm, and the counts.

        The step has `count` micro-batches. `micro_batches` are the ones of this rank; `first` is
        the number of the first of them. `shares` are their shares of all rows, the weights of their
        gradients. If the loss returns counts, these are the weights, and are returned; else None.
        """
        # `capture` checks the attributes that the code of this method names, such as these.
        model, loss = self.model, self.loss
        parameters = self.optimizer._parameters()
        facts: list[MicroBatchFacts] = []

        def gradients(*numbers: int) -> list[NDArray[Any] | None]:
            self.optimizer.zero_grad()
            for number in numbers:  # `backward` adds up their gradients
                observed(self._streams.begin, number)
                item = number - first
                facts.append(self._propagate(model, loss, micro_batches[item], shares[item]))
            return [None if p.grad is None else p.grad._data for p in parameters]

        own = list(parts(0, count, range(first, first + len(micro_batches))))
        sums = [pairwise(*part, gradients, partial(observed, add_lists)) for part in own]
        values = [fact.loss for fact in facts]
        is_shared = self._world.size > 1
        if is_shared:
            summed, values, facts = observed(self._of_all, count, own, sums, [*map(tuple, facts)])
            sums = [summed]
        # With more than two micro-batches, `.grad` is the sum of the last pair only.
        if count > 2 or is_shared:
            for parameter, gradient in zip(parameters, sums[0], strict=True):
                parameter.grad = None if gradient is None else Tensor(gradient)
        is_counted = any(fact.is_counted for fact in facts)
        correction = self._correction(sum(fact.weight for fact in facts))
        if is_counted and correction != 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad = parameter.grad * correction
        if self.clip_norm is None:
            norm = grad_norm(parameters)
        else:
            norm = clip_grad_norm(parameters, self.clip_norm, False)
            observed(self._finite, "gradient norm", norm)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.ema is not None:
            self.ema.update()
        return values, norm, [fact.weight for fact in facts] if is_counted else None

    def _propagate(
        self, model: Module, loss: Loss, micro_batch: MicroBatch, share: Any
    ) -> MicroBatchFacts:
        """Compute the loss of a micro-batch, and backpropagate it with its share as weight."""
        *inputs, target = micro_batch
        mean, counted = loss_and_count(loss(model(*inputs), target))
        if counted is not None and self.capture:
            raise ValueError(
                "capture=True: the loss returns (mean, count), and a program cannot read the "
                "count; let the loss return the mean alone, or train with capture=False"
            )
        count = count_or_rows(counted, target)
        if not count:
            return MicroBatchFacts(0.0, 0.0, counted is not None)  # a mean of nothing is nan
        if counted is not None:  # also a share of all rows; `_correction` follows the last of them
            share = np.array(counted / (self._rows_in_step or counted))
        value = observed(self._loss_value, mean._data)
        mean.backward(observed(np.full_like, mean._data, as_array(share)))
        return MicroBatchFacts(value, count, counted is not None)

    def _correction(self, total: float) -> float:
        """Return the factor that converts shares of all rows to shares of the total count.

        It names `history`, which `_make_step` must not do: `capture` would compare it before each
        run.
        """
        if not total:
            raise ValueError(
                f"the loss counted nothing at step {len(self.history.steps) + 1}; leave out rows "
                f"without a target that counts, or take more of them for a step"
            )
        return 1.0 if self._rows_in_step is None else self._rows_in_step / total

    def _of_all(
        self, count: int, own: list[Part], sums: list[Arrays], facts: list[Any]
    ) -> tuple[Arrays, list[float], list[MicroBatchFacts]]:
        """Add the sums and the facts of this rank to those of the others, in one call."""
        ranks = self._world
        marks = {"random numbers": sum(self._streams.keys.values()), "data": self._mark_of_data}
        own_marks = [float(mark % 2**53) for mark in marks.values()]
        # The table has a row per micro-batch, which is 0 on ranks that do not have it.
        zeros = np.zeros((count, 3 + len(marks)))
        lists: dict[Part, Arrays] = {}
        remaining = iter(facts)
        for part, gradients in zip(own, sums, strict=True):
            table = zeros.copy()
            for item in range(*part):
                table[item] = *next(remaining), *own_marks
            lists[part] = [table, *gradients]
        every_row, *summed = ranks.sum_parts(count, lists, [zeros, *self.optimizer._parameters()])
        assert every_row is not None
        for name, column, mark in zip(marks, every_row[:, 3:].T, own_marks, strict=True):
            if len(items := np.flatnonzero(column != mark)):
                raise ValueError(
                    f"rank {owner(int(items[0]), count, ranks.size)} has other {name} than rank "
                    f"{ranks.rank}. Give all ranks the same data and the same seeds, and let a "
                    f"function that is called on one rank only, as below `if world().rank == 0`, "
                    f"draw from a generator of its own, numpy.random.default_rng(seed)"
                )
        every = [MicroBatchFacts(*row) for row in every_row[:, :3].tolist()]
        for fact in every:
            self._finite("loss", fact.loss)
        return summed, [fact.loss for fact in every], every

    def _loss_value(self, loss: NDArray[Any]) -> float:
        """Return a loss as a number; with several ranks, `_of_all` checks it, on all of them."""
        return float(loss.item()) if self._world.size > 1 else self._finite("loss", loss)

    def _finite(self, name: str, value: Any) -> float:
        """Return a loss or a norm as a number; raise a FloatingPointError if it is not finite."""
        number = float(np.asarray(value).item())
        if not math.isfinite(number):
            remedy = "clip_norm, or data" if self.clip_norm is None else "or data"
            raise FloatingPointError(
                f"the {name} became {number} at step {len(self.history.steps) + 1}; a smaller "
                f"learning rate, {remedy} without nan, inf and extreme values may help"
            )
        return number


def loss_and_count(result: Any) -> tuple[Tensor, float | None]:
    """Check the result of a loss function; return the loss and its count, or None without one.

    Raises:
        TypeError: if the result is neither a Tensor of one element, nor such a Tensor and a number.
        ValueError: if the count is negative or not finite.
    """
    loss, count = result, None
    if isinstance(loss, tuple) and len(loss) == 2:
        loss, count = loss
        is_number = isinstance(count, (Tensor, np.ndarray)) and count.size == 1
        count = count.item() if is_number else count
        check_range("the count of a loss", count, 0, math.inf)
        count = float(count)
    if not isinstance(loss, Tensor) or loss.size != 1:
        what = loss.describe() if isinstance(loss, Tensor) else shown(loss)
        raise TypeError(
            f"the loss must return a Tensor of one element, or that and a count, not {what}"
        )
    return loss, count


def rows_of(target: Any) -> float:
    """Return the number of rows of a target; nan for a number, or a tuple or dict of parts."""
    if isinstance(target, (tuple, Mapping, str)):
        return math.nan
    try:
        return len(target)
    except TypeError:
        return math.nan


def count_or_rows(count: float | None, target: Any) -> float:
    """Return the count of a loss, or if it returned only a mean, the number of rows."""
    found = rows_of(target) if count is None else count
    if math.isnan(found):
        raise TypeError(
            f"the target {target!r:.60} has no rows to count; let the loss return (mean, count)"
        )
    return found
