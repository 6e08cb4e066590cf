"""Call a loss function on a model and a batch, for liveness and `lora.verify`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from minigrad.checks import shown
from minigrad.core.tensor import Tensor
from minigrad.nn.module import Module

Loss = Callable[..., Any]


def loss_of(model: Module, loss_fn: Loss, batch: Any) -> Tensor:
    """Compute the loss of a model on a batch.

    `loss_fn` is called in one of three forms:

    - `loss_fn(model, batch)`;
    - `loss_fn(model(x), y)` for a batch `(x, y)`, if `loss_fn` is a loss of this library, or fails
      with a model as its argument;
    - `loss_fn(model(batch))`, if `loss_fn` accepts only one argument, or needs only one and the
      batch is not a pair.

    Raises:
        TypeError: if `loss_fn` does not return a Tensor of floats with one element, or accepts no
            arguments; or if it is a loss of this library and the batch is not a pair.
    """
    loss = _called(model, loss_fn, batch)
    if not isinstance(loss, Tensor) or loss.dtype.kind != "f" or loss.size != 1:
        what = loss.describe() if isinstance(loss, Tensor) else repr(loss)[:60]
        raise TypeError(f"loss_fn must return a Tensor of floats with one element, not {what}")
    return loss


def _called(model: Module, loss_fn: Loss, batch: Any) -> Any:
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function, not {shown(loss_fn)}")
    needed = most = 2  # how many positional arguments it needs and accepts; 2 if not known
    with suppress(TypeError, ValueError):
        # A Module or an op can be called with anything; its `forward` has the real parameters.
        known = inspect.signature(getattr(loss_fn, "forward", loss_fn)).parameters.values()
        if not any(p.kind is p.VAR_POSITIONAL for p in known):
            positional = [p for p in known if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
            needed, most = sum(p.default is p.empty for p in positional), len(positional)
    if most == 0:
        raise TypeError(
            "loss_fn takes no arguments; it is called as loss_fn(model, batch), or with "
            "predictions and targets, or with predictions alone"
        )
    is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    module = getattr(loss_fn, "__module__", None) or type(loss_fn).__module__
    if needed == 2 and module.split(".")[0] == "minigrad":  # a loss of the library
        if not is_pair:
            name = getattr(loss_fn, "__name__", None) or type(loss_fn).__name__
            what = f"a {type(batch).__name__}"
            what += f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise TypeError(
                f"{name} is a loss of predictions and targets, so the batch must be a "
                f"pair (x, y), not {what}; or pass a loss_fn(model, batch) of your own"
            )
        return loss_fn(model(batch[0]), batch[1])
    if most == 1 or (needed <= 1 and not is_pair):
        try:
            predictions = model(batch)
        except Exception as error:
            if is_pair:
                error.add_note(
                    "loss_fn takes one argument, so the model was called with the whole batch, a "
                    "pair; hand over x alone, or let loss_fn take predictions and targets"
                )
            raise
        return loss_fn(predictions)
    try:
        return loss_fn(model, batch)
    except Exception as error:
        if not is_pair:
            raise
        # A loss of predictions fails when it gets a model. But if the model has a fault, this call
        # fails too, and reports the fault of the model.
        prediction = model(batch[0])
        try:
            return loss_fn(prediction, batch[1])
        except Exception as other:
            what = f"loss_fn(model(x), y) raised {type(other).__name__}: {other}"
            error.add_note(f"that was loss_fn(model, batch); {what}")
            raise error from None
