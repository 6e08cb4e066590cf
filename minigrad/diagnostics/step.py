"""One step's worth of work, as the instruments that watch a model do it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from minigrad.nn.module import Module
from minigrad.tensor import Tensor

Loss = Callable[..., Any]


def loss_of(model: Module, loss_fn: Loss, batch: Any) -> Tensor:
    """The loss of a model on a batch.

    `loss_fn` is called in one of three ways:

    - `loss_fn(model, batch)`;
    - `loss_fn(model(x), y)` with `batch = (x, y)`, as `Trainer` calls its loss, if it is a loss of
      the library or cannot take a model;
    - `loss_fn(model(batch))` if it takes one argument only.

    Raises:
        TypeError: if it returns anything but a Tensor of floats with one element.
    """
    loss = _called(model, loss_fn, batch)
    if not isinstance(loss, Tensor) or loss.dtype.kind != "f" or loss.size != 1:
        what = loss.describe() if isinstance(loss, Tensor) else repr(loss)[:60]
        raise TypeError(f"loss_fn must return a Tensor of floats with one element, not {what}")
    return loss


def _called(model: Module, loss_fn: Loss, batch: Any) -> Any:
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function, not {loss_fn!r:.60}")
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    if pair and _of_the_library(loss_fn):
        return loss_fn(model(batch[0]), batch[1])
    if _arguments(loss_fn) == 1:
        return loss_fn(model(batch))
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


def _of_the_library(loss_fn: Loss) -> bool:
    module = getattr(loss_fn, "__module__", None) or type(loss_fn).__module__
    return module.split(".")[0] == __name__.split(".")[0]


def _arguments(f: Loss) -> int:
    """How many arguments `f` has to be given; 2 if it does not say."""
    f = f.forward if isinstance(f, Module) else f  # for its `__call__` takes anything
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return 2
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return 2
    return sum(p.kind in positional and p.default is p.empty for p in parameters)
