"""train: train an adapter for a language model on texts, with checkpoints to resume from.

    model, tokenizer = ...
    train(model, tokenizer, "data", "out", steps=200)

`minigrad.Trainer` runs the loop, over micro-batches of rows with similar length. The folder OUT has
the adapter in the format of PEFT and `lora.load`, `options.json`, and a checkpoint. A stopped run
resumes from the checkpoint, and gives the same bits as an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_type_hints

import numpy as np

from lora.adapter import DEFAULT
from lora.attaching import attach, disabled, remove, switch
from lora.attachment.state import attachment_of
from lora.attachment.targets import candidates
from lora.config import LoRAConfig
from lora.patterns import check_patterns
from lora.peft import save
from lora.text.data import Dataset, data_files, micro_batches, read_rows, unread_files
from lora.text.estimating import estimate
from lora.text.loading import check_model
from lora.text.run_folder import DTYPE, RunFolder
from lora.text.tokenization import Tokenizer, check_tokenizer
from minigrad.checks import check_above_0, check_count, check_flag, check_positive, check_range
from minigrad.core.tensor import Tensor
from minigrad.distributed import world
from minigrad.distributed.agreement import check_agreement
from minigrad.errors import named_errors
from minigrad.kernels.narrow import NarrowMatrix
from minigrad.nn import Module, Parameter
from minigrad.nn.module import attributes_of
from minigrad.optim import AdamW, WarmupCosineLR
from minigrad.progress import progress_bar
from minigrad.renamed import with_python_numbers
from minigrad.tables import counted
from minigrad.training import History, Trainer
from minigrad.training.ranks import check_ranks

LONGEST = 1024  # the default of the largest number of tokens of a row
_TOKENS = "the tokens of {}.jsonl (tokenizer, chat template)"  # the key of the hash of tokens
_CHECKPOINTS = 20  # the default number of checkpoints in a run


@dataclass(frozen=True, repr=False)
class TrainResult:
    """The result of `train`.

    Attributes:
        out: the folder of the adapter.
        history: the records of all steps, with a `validation_loss` after a validation.
        data: the rows, by "train" and "valid".
        best_step: the step of the adapter that was saved.
    """

    out: Path
    history: History
    data: Mapping[str, Dataset]
    best_step: int

    def summary(self) -> dict[str, Any]:
        """Return the result as numbers, strings, lists and dicts, which JSON can store."""
        data = {split: rows.summary() for split, rows in self.data.items()}
        steps = {"best_step": self.best_step, "steps": self.history.steps}
        return {"out": os.fspath(self.out), **steps, "data": data}

    def __repr__(self) -> str:
        steps = self.history.steps
        losses, seconds = [s["loss"] for s in steps], sum(s["seconds"] for s in steps)
        part = max(1, min(len(steps) // 2, max(5, len(steps) // 10)))
        lines = [
            *map(repr, self.data.values()),
            f"{counted(len(steps), 'step')} in {counted(round(seconds), 'second')}; mean "
            f"loss {np.mean(losses[:part]):.4f} in the first {counted(part, 'step')}, "
            f"{np.mean(losses[-part:]):.4f} in the last",
        ]
        if judged := {s["step"]: s["validation_loss"] for s in steps if "validation_loss" in s}:
            found = ", ".join(f"{loss:.4f} (step {step:.0f})" for step, loss in judged.items())
            lines.append(f"validation loss: {found}")
        return "\n".join([*lines, f"{self.out}: the adapter of step {self.best_step}"])


@named_errors
@with_python_numbers
def train(
    model: Any,
    tokenizer: Tokenizer,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: str | Sequence[str] | None = None,
    scaling: Literal["standard", "rslora"] = "standard",
    use_dora: bool = False,
    dropout: float = 0.0,
    steps: int | None = None,
    epochs: int = 1,
    batch_size: int = 4,
    accumulation_steps: int = 1,
    max_length: int | None = None,
    long_rows: Literal["cut", "refuse"] = "cut",
    lr: float = 2e-4,
    warmup: float = 0.05,
    clip_norm: float = 1.0,
    seed: int = 0,
    train_on_prompts: bool = False,
    as_chat: bool = False,
    validate_every: int | None = None,
    save_every: int | None = None,
    checkpointing: bool = False,
    resume: bool = False,
    base_model: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train an adapter of a language model, and write it to a folder.

    AdamW without weight decay trains A and B. The learning rate rises linearly from 0 to `lr`, and
    then falls as half a cosine to 0. With `validate_every`, the adapter with the best validation
    loss is written. Ctrl-C ends the run after the current step, with a checkpoint. On several ranks
    (`mpiexec -n N`) these share the micro-batches of a step, and rank 0 reads and writes `out`.
    `targets` may also be one regular expression for complete names, or "all-linear", as in
    `LoRAConfig`.

    Args:
        model: a language model, changed in place: it gets the adapter, unless there is an error.
            Its mode (training or evaluation) is restored.
        tokenizer: the tokenizer of the model.
        data: one file of JSONL, or a folder with train.jsonl and perhaps valid.jsonl; for the form
            of rows see `lora.text.data`.
        out: the folder to write, created if it does not exist.
        rank: the rank of each update.
        alpha: the strength of each update, whose scale is alpha / rank.
        targets: the layers that get an adapter, by the ends of their names, such as q_proj; by
            default all linear ones except the head.
        scaling: rslora for the scale alpha / sqrt(rank) (Kalajdzievski, 2023).
        use_dora: whether a magnitude of each output trains too (DoRA, Liu et al., 2024).
        dropout: the probability of dropping an element of the input of A in training.
        steps: the number of steps of the optimiser; by default it follows from `epochs`.
        epochs: how many times to go through the rows, unless `steps` is given.
        batch_size: the number of rows in a micro-batch.
        accumulation_steps: the number of micro-batches for one step.
        max_length: the largest number of tokens of a row; by default 1024, or the model's context
            if that is shorter.
        long_rows: whether longer rows are cut, or an error.
        lr: the largest learning rate, after the warmup.
        warmup: the share of the steps in which the learning rate rises.
        clip_norm: the largest gradient norm; larger gradients are scaled down to it.
        seed: the seed for A and for the order of the rows.
        train_on_prompts: whether prompts count in the loss too, and not only answers.
        as_chat: whether prompt and completion become turns of a conversation.
        validate_every: the number of steps between validations, on the rows of valid.jsonl; there
            is also one after the last step. None or 0 for no validation.
        save_every: the number of steps between checkpoints, by default a twentieth of the run;
            there is also one after each epoch.
        checkpointing: whether layers compute their activations again in the backward pass instead
            of saving them.
        resume: whether to continue the run in `out`; a chat template still writes the date on which
            the run began.
        base_model: the name or the path of the base, for PEFT.
        progress: show a bar, and before it an estimate of memory and time.

    Raises:
        OSError: if a file cannot be read or written, as on a full disk; files in `out` stay
            complete.
        TypeError: if an option has the wrong type, `data` is not a path, or `model` or `tokenizer`
            is not one.
        ValueError: if an option is impossible, a target matches nothing, a row is invalid, the
            model has an adapter called "default", `out` has another run or a model, or the data,
            their tokens, the base or an option differ from those of the run to resume. After this
            error and a TypeError the model is unchanged, and nothing was written.
        FloatingPointError: if the loss is no longer finite; the best adapter is written, or
            without a validation that of the last checkpoint. Or if no validation loss was finite.
        KeyboardInterrupt: after Ctrl-C, when the checkpoint is written.
    """
    check_model(model)
    check_tokenizer(tokenizer)
    targets = None if targets is None else check_patterns("targets", targets)
    options = {name: value for name, value in locals().items() if name in OPTION_TYPES}
    _check_options(options)
    options["max_length"] = longest_row(max_length, model.config.max_length)
    base_model = None if base_model is None else os.fspath(base_model)
    layers = candidates(dict(model.named_modules()))
    head = [name for name in layers if name.split(".")[-1] == "lm_head"]
    chosen = {"exclude": head} if targets is None else {"targets": targets}
    config = LoRAConfig(rank, alpha, scaling=scaling, use_dora=use_dora, dropout=dropout, **chosen)
    folder, ranks = RunFolder(out, resume), world()
    progress = progress and ranks.is_first
    rows = _rows(data, tokenizer, model, options, folder.began, progress)
    facts = _facts(model, rows, options, folder.began)
    check_agreement(ranks, facts["data"])
    ranks.on_first(lambda: folder.check(facts, _DEFAULTS), "train")
    rng = np.random.default_rng(seed)
    schedule = _Schedule(rows, options, rng)
    check_ranks(ranks, len(schedule.batches), accumulation_steps)
    done = ranks.on_first(lambda: folder.steps_saved() if resume else 0, "train")
    if progress:
        left = schedule.total - done, accumulation_steps, checkpointing, schedule.validated(done)
        expected = estimate(model, config, schedule.batches, *left)
        print(*rows.values(), sep="\n", file=sys.stderr)
        if unread := unread_files(data):
            known = "the files of a folder are train.jsonl, valid.jsonl and test.jsonl"
            print(f"not read: {', '.join(unread)}; {known}", file=sys.stderr)
        if "valid" in rows and not validate_every:
            advice = "validate_every (--validate-every) keeps the adapter with the least loss on it"
            print(f"no validation on valid.jsonl; {advice}", file=sys.stderr)
        print(expected, file=sys.stderr)

    advice = f"begin again in another folder with an lr below {lr:g}, or a longer warmup"

    def write() -> None:
        save(model, folder.path, seed=seed, base_model=base_model, progress=progress)

    with _adapted(model, config, rng, checkpointing, progress):
        ranks.on_first(lambda: folder.path.mkdir(parents=True, exist_ok=True), "train")
        trainer = _trainer(model, schedule, options, folder.checkpoint, rng)
        if done:
            trainer.load(folder.checkpoint)
        with folder.running(facts, trainer.history.steps):
            try:
                _run(trainer, schedule, progress)
            except FloatingPointError as error:
                which = _restore_saved(trainer, folder)
                ranks.on_first(write, "train")
                raise FloatingPointError(
                    f"{error}. The adapter {which} is in {os.fspath(folder.path)!r}; {advice}"
                ) from error
            made = trainer.history.steps
            best = _best_step(made)
            if best is not None:
                trainer.restore_best()
            ranks.on_first(write, "train")
            if best is None and any("validation_loss" in step for step in made):
                raise FloatingPointError(
                    f"the validation loss was never finite, so the adapter in "
                    f"{os.fspath(folder.path)!r} is that of the last step; {advice}"
                )
    return TrainResult(folder.path, trainer.history, rows, best or len(made))


_NO_OPTIONS = {"model", "tokenizer", "data", "out", "resume", "base_model", "progress", "return"}
_MAY_BE_NONE = ("steps", "max_length", "validate_every", "save_every")

OPTION_TYPES = {
    name: kind for name, kind in get_type_hints(train).items() if name not in _NO_OPTIONS
}
"""The types of the parameters of `train` that are stored with a run, and stay when it resumes."""

_DEFAULTS = {name: signature(train).parameters[name].default for name in OPTION_TYPES}


def longest_row(max_length: int | None, context: int) -> int:
    """Return the largest number of tokens of a row for a model with a context of so many tokens.

    It is `max_length`; or by default, the lesser of LONGEST and the context. A ValueError is raised
    if `max_length` exceeds the context.
    """
    if max_length is None:
        return min(LONGEST, context)
    if max_length > context:
        raise ValueError(f"max_length={max_length}, but the model's context is {context} tokens")
    return max_length


def _check_options(options: Mapping[str, Any]) -> None:
    """Check the options of `train`; `read_rows` checks `long_rows` and most flags."""
    for name in ("epochs", "batch_size", "accumulation_steps", *_MAY_BE_NONE):
        if options[name] is not None or name not in _MAY_BE_NONE:
            (check_count if name == "validate_every" else check_positive)(name, options[name])
    check_flag("checkpointing", options["checkpointing"])
    check_count("seed", options["seed"])
    check_range("warmup", options["warmup"], 0, 1, open_end=True)
    check_above_0("lr", options["lr"])
    check_range("lr", options["lr"], 0, math.inf)
    check_above_0("clip_norm", options["clip_norm"])


def _rows(
    data: Any, tokenizer: Tokenizer, model: Any, options: Mapping[str, Any], now: datetime,
    progress: bool,
) -> dict[str, Dataset]:  # fmt: skip
    """Read the rows for training and, if there are any, those for validation."""
    reading = {name: options[name] for name in ("long_rows", "train_on_prompts", "as_chat")}
    reading |= {"max_length": options["max_length"], "vocab_size": model.config.vocab_size}
    rows = {
        split: read_rows(file, tokenizer, now=now, progress=progress, **reading)
        for split, file in data_files(data).items()
        if split != "test"
    }
    if "train" not in rows:
        raise FileNotFoundError(f"{os.fspath(data)!r} has no train.jsonl")
    every = options["validate_every"]
    if "valid" not in rows and every:
        raise ValueError(f"validate_every={every}, but {data!s:.200} has no valid.jsonl")
    return rows


def _facts(
    model: Any, rows: Mapping[str, Dataset], options: Mapping[str, Any], began: datetime
) -> dict[str, Any]:
    """Return the content of `options.json`: what must be the same when the run resumes."""
    form, base = world().on_first(lambda: _base_of(model), "train")
    return {
        "options": {**options, DTYPE: form},
        "data": {f"{split}.jsonl": each.digest for split, each in rows.items()}
        | {_TOKENS.format(split): each.tokens_digest for split, each in rows.items()},
        "base": base,
        "time": began.isoformat(),
    }


def _best_step(steps: Sequence[Mapping[str, float]]) -> int | None:
    """Return the step with the least finite validation loss, or None."""
    judged = [s for s in steps if math.isfinite(s.get("validation_loss", math.nan))]
    return int(min(judged, key=lambda s: s["validation_loss"])["step"]) if judged else None


def _restore_saved(trainer: Trainer, folder: RunFolder) -> str:
    """After a loss that is not finite, restore the best adapter, or else that of the checkpoint.

    The adapter before the failed step has given this loss, so it stays only if no other is saved.
    Returns which adapter it is, for a message.
    """
    steps = trainer.history.steps
    if best := _best_step(steps):
        trainer.restore_best()
        return f"of step {best}, with the least validation loss,"
    if 0 < (saved := world().on_first(folder.steps_saved, "train")) < len(steps):
        trainer.load(folder.checkpoint)
        return f"of step {saved}, from the last checkpoint,"
    return "before that step"


class _Schedule:
    """The micro-batches of a run, and the steps at which it ends, validates and saves."""

    def __init__(self, rows: Mapping[str, Dataset], options: Any, rng: np.random.Generator) -> None:
        """Plan a run by the options of `train`; `rng` shuffles the rows."""
        size, every = options["batch_size"], options["validate_every"]
        self.batches = micro_batches(rows["train"], size, rng)
        per_epoch = math.ceil(len(self.batches) / options["accumulation_steps"])
        # The number of steps of the whole run.
        self.total: int = options["steps"] or options["epochs"] * per_epoch
        self.save_every = options["save_every"] or math.ceil(self.total / _CHECKPOINTS)
        self.validate_every: int | None = every or None
        another = np.random.default_rng(0)  # `rng` draws the same with a validation and without
        self.held_out = micro_batches(rows["valid"], size, another) if every else None

    def validated(self, done: int) -> int:
        """Return the number of tokens in all validations after step `done`."""
        if self.held_out is None or self.validate_every is None or done >= self.total:
            return 0
        count = math.ceil(self.total / self.validate_every) - done // self.validate_every
        return count * sum(ids.size for ids, *_ in self.held_out)


@contextmanager
def _adapted(
    model: Any, config: LoRAConfig, rng: np.random.Generator, checkpointing: bool, progress: bool
) -> Iterator[None]:
    """In a `with` block, give a model an adapter to train; remove it again after an error."""
    before, mode, active = model.checkpointing, model.training, attachment_of(model).active
    attach(model, config, rng=rng, progress=progress)
    try:
        model.checkpointing = checkpointing
        yield
    except BaseException:
        remove(model, DEFAULT)
        if active:
            switch(model, *active)
        raise
    finally:
        model.checkpointing = before
        model.train(mode)


class _TokensAsOutput(Module):
    """Returns its inputs unchanged, because `LanguageModel.loss` itself runs the model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.passed = SimpleNamespace(tokens=0)  # of this rank; `state_dict` skips it

    def forward(self, ids: Any, counted: Any) -> Any:
        """Return the tokens, and the marks which of them count."""
        return ids, counted

    def loss(self, inputs: Any, lengths: Any) -> Any:
        """Return the loss of a micro-batch; only rows behind each other need their lengths."""
        ids, counted = inputs
        self.passed.tokens += ids.size if self.training else 0
        return self.model.loss(ids, counted, lengths if len(ids) < len(lengths) else None)


def _trainer(
    model: Any, schedule: _Schedule, options: Mapping[str, Any], checkpoint: Path,
    rng: np.random.Generator,
) -> Trainer:  # fmt: skip
    total, passing = schedule.total, _TokensAsOutput(model)
    optimizer = AdamW(model.trainable_parameters(), lr=options["lr"], weight_decay=0.0)
    rising = min(math.ceil(options["warmup"] * total), total - 1)
    return Trainer(
        passing,
        optimizer,
        passing.loss,
        accumulation_steps=options["accumulation_steps"],
        clip_norm=options["clip_norm"],
        # Never stop early, but keep the best.
        patience=None if schedule.held_out is None else total + 1,
        validate_every=schedule.validate_every,
        checkpoint=checkpoint,
        checkpoint_every=schedule.save_every,
        scheduler=WarmupCosineLR(optimizer, rising, total),
        save_frozen=False,
        progress=False,
        rng=rng,
    )


def _base_of(model: Any) -> tuple[str, str]:
    """Return the form of the first linear layer, and a SHA-256 of the configuration and weights.

    Both are those of the base, with or without adapters. Weights are hashed as they are stored.
    """
    found = hashlib.sha256(repr(model.config).encode())
    with disabled(model) if attachment_of(model).adapters else nullcontext():
        values = (value for module in model.modules() for value in attributes_of(module).values())
        weights = {id(v): v for v in values if isinstance(v, (Parameter, NarrowMatrix))}
    for weight in weights.values():  # a tied one is hashed once
        parts = [weight._data] if isinstance(weight, Tensor) else weight.parts().values()
        for part in parts:
            found.update(np.ascontiguousarray(part).data)
    modules = dict(model.named_modules())
    first = modules[next(name for name, is_linear in candidates(modules).items() if is_linear)]
    matrix = getattr(first, "base_weight", first.weight)
    return getattr(matrix, "format", None) or str(matrix.dtype), found.hexdigest()


def _run(trainer: Trainer, schedule: _Schedule, progress: bool) -> None:
    """Train up to the last step, with a progress bar; after Ctrl-C, raise a KeyboardInterrupt."""
    steps, passing, total = trainer.history.steps, trainer.model, schedule.total
    assert isinstance(passing, _TokensAsOutput)
    first = len(steps)
    if first >= total:
        return
    with progress_bar(
        what="training", unit="step", shown=progress, total=total, initial=first,
        in_files=True, delay=0.0, dynamic_ncols=True,
    ) as bar, ExitStack() as stack:  # fmt: skip
        if threading.current_thread() is threading.main_thread():  # other threads get no signals

            def stop(*_: Any) -> None:  # a second Ctrl-C ends the run at once
                signal.signal(signal.SIGINT, previous)
                trainer.stop(at_once=True)

            previous = signal.signal(signal.SIGINT, stop)
            stack.callback(signal.signal, signal.SIGINT, previous)

        def show(_: Trainer) -> None:
            seconds = sum(step["seconds"] for step in steps[first:])
            speed = passing.passed.tokens * world().size / seconds
            text = f"loss {steps[-1]['loss']:.4g}, {speed:,.0f} tokens/s"
            bar.set_postfix_str(text, refresh=False)
            bar.update()

        trainer.on_step = [show]
        trainer.fit(schedule.batches, validation=schedule.held_out, steps=total - first)
    if len(steps) < total:
        raise KeyboardInterrupt(
            f"stopped after step {len(steps)} of {total}; resume continues from there"
        )
