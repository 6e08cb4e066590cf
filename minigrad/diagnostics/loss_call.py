"""One step's worth of work, as the instruments that watch a model do it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from minigrad.core.tensor import Tensor
from minigrad.nn.module import Module

Loss = Callable[..., Any]


def loss_of(model: Module, loss_fn: Loss, batch: Any) -> Tensor:
    """The loss of a model on a batch.

    `loss_fn` is called in one of three ways:

    - `loss_fn(model, batch)`;
    - `loss_fn(model(x), y)` with `batch = (x, y)`, as `Trainer` calls its loss, if it is a loss of
      the library or cannot take a model;
    - `loss_fn(model(batch))` if it takes one argument only, or needs one and the batch is no pair.

    Raises:
        TypeError: if it returns anything but a Tensor of floats with one element, takes no
            arguments, or is a loss of the library and the batch is no pair.
    """
    loss = _called(model, loss_fn, batch)
    if not isinstance(loss, Tensor) or loss.dtype.kind != "f" or loss.size != 1:
        what = loss.describe() if isinstance(loss, Tensor) else repr(loss)[:60]
        raise TypeError(f"loss_fn must return a Tensor of floats with one element, not {what}")
    return loss


def _called(model: Module, loss_fn: Loss, batch: Any) -> Any:
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function, not {loss_fn!r:.60}")
    needed, most = _arguments(loss_fn)
    if most == 0:
        raise TypeError(
            "loss_fn takes no arguments; it is called as loss_fn(model, batch), or with "
            "predictions and targets, or with predictions alone"
        )
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    if needed == 2 and _of_the_library(loss_fn):
        if not pair:
            what = f"a {type(batch).__name__}"
            what += f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise TypeError(
                f"{_name(loss_fn)} is a loss of predictions and targets, so the batch must be a "
                f"pair (x, y), not {what}; or pass a loss_fn(model, batch) of your own"
            )
        return loss_fn(model(batch[0]), batch[1])
    if most == 1 or (needed <= 1 and not pair):
        return loss_fn(_of_all(model, batch, pair))
    try:
        return loss_fn(model, batch)
    except Exception as error:
        if not pair:
            raise
        # A loss of predictions does not know what to do with a model. But a fault in the model
        # itself shows here as well, and then it is that which is told.
        prediction = model(batch[0])
        try:
            return loss_fn(prediction, batch[1])
        except Exception as other:
            error.add_note(
                f"that was loss_fn(model, batch); loss_fn(model(x), y) raised "
                f"{type(other).__name__}: {other}"
            )
            raise error from None


def _of_all(model: Module, batch: Any, pair: bool) -> Any:
    """The predictions for a whole batch, with a word on what it is if that fails."""
    try:
        return model(batch)
    except Exception as error:
        if pair:
            error.add_note(
                "loss_fn takes one argument, so the model was called with the whole batch, which "
                "is a pair; hand over x alone, or let loss_fn take predictions and targets"
            )
        raise


def _of_the_library(loss_fn: Loss) -> bool:
    module = getattr(loss_fn, "__module__", None) or type(loss_fn).__module__
    return module.split(".")[0] == __name__.split(".")[0]


def _name(loss_fn: Loss) -> str:
    return getattr(loss_fn, "__name__", None) or type(loss_fn).__name__


def _arguments(f: Loss) -> tuple[int, int]:
    """How many arguments `f` has to be given, and how many it can be; 2 if it does not say."""
    try:
        # Of a Module or an op, whose calls take anything, it is `forward` that says.
        parameters = inspect.signature(getattr(f, "forward", f)).parameters.values()
    except (TypeError, ValueError):
        return 2, 2
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 2, 2
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return sum(p.default is p.empty for p in positional), len(positional)
