"""The FLOPs of calls and of VJPs, found once for each signature.

A signature is all that a cost can depend on: shapes, dtypes and options. A cost in the block of an
op is evaluated; all others are found by running a forward, a composition or a VJP on sketches (see
`sketch`, which also states the conventions). A fused op costs what its composition costs, but
causal attention counts as if nothing were masked.

A gradient that is summed over axes that were broadcast, as that of a bias, and the sum of gradients
that meet in one tensor, are the engine's work, and are counted by the receipt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad.core.codegen import Shapes
from minigrad.core.grad_mode import mode
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.cost_receipt.sketch import Sketch, Tally, flops
from minigrad.optim import SGD, Adam, AdamW

if TYPE_CHECKING:
    from minigrad.core.op import VJP, Op


class SketchedCall:
    """One call of an op with sketches for its arrays, so that a receipt keeps none alive."""

    __slots__ = ("arguments", "op", "out", "tally")

    def __init__(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        self.op = op
        self.tally = Tally()  # where the FLOPs of runs on these sketches are added up
        self.out = self.sketch(np.asarray(result) if np.isscalar(result) else result)
        if op.takes_sequence:  # whose calls are announced with these alone
            inputs = [inputs]
        self.arguments = [  # in the order of the op's parameters
            value.item() if isinstance(value, np.ndarray) and not value.ndim else self.sketch(value)
            for value in inputs
        ]
        for argnum, _ in () if op.takes_sequence else op.vjps:
            if isinstance(inputs[argnum], (list, tuple)):  # of numbers
                self.arguments[argnum] = self.sketch(np.asarray(inputs[argnum]))

    def sketch(self, value: Any) -> Any:
        """Return an argument with a Tensor of a sketch for each array in it."""
        if isinstance(value, np.generic):
            return value.item()  # as an op takes it
        if isinstance(value, (tuple, list)):
            kind = next(kind for kind in (Shapes, tuple, list) if isinstance(value, kind))
            return kind(map(self.sketch, value))
        if isinstance(getattr(value, "shape", None), tuple):  # also a matrix in four bits
            dtype = getattr(value, "dtype", np.dtype(np.float32))
            sketch: Any = Sketch(value.shape, dtype, self.tally)
            return Tensor.at(sketch, None)
        return value

    def has(self, name: str) -> bool:
        """Return whether an argument was given, and is not None."""
        return self.arguments[self.op.parameters.index(name)] is not None

    @property
    def values(self) -> dict[str, Any]:
        """The arguments and the result by name."""
        named = dict(zip(self.op.parameters, self.arguments, strict=False))  # checkpoints have more
        return named | {"out": self.out}

    def saved_for(self, vjp: VJP) -> list[Any]:
        """Return what a VJP would have saved, if its input needed a gradient."""
        known = [*self.arguments, self.out]
        return [known[slot].shape if only else known[slot] for slot, only in vjp.slots]

    def flops_of(self, what: Op[Any] | VJP, run: Callable[..., Any], *values: Any) -> int | None:
        """Return the FLOPs of `run(*values)`, which runs the op or the VJP `what`.

        They are taken from memory if the signature is known.
        """
        known, key = self.op.known_flops, (what, *map(_key, values))
        if key not in known:
            before = self.tally.flops
            if len(known) >= _MOST:
                known.clear()
            known[key] = None
            state, mode.state = mode.state, (False, ())  # without a graph, and without an observer
            try:
                with suppress(Exception):
                    run(*values)  # perhaps a user's function that needs elements
                    known[key] = self.tally.flops - before
            finally:
                mode.state = state
        return known[key]


_MOST = 1000  # signatures of one op


def _key(value: Any) -> Hashable:
    """Return what the FLOPs can depend on: shape and dtype of an array, else the value."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, (tuple, list)):
        return (type(value), *map(_key, value))
    if isinstance(value, slice):
        return slice, value.start, value.stop, value.step
    if value is None or isinstance(value, (int, float, str, type, np.dtype, EllipsisType)):
        return type(value), value  # to tell 1 from True
    return object()  # never found again: the memory is to keep no object of others


def call_flops(call: SketchedCall) -> int | None:
    """Return the FLOPs of a call, or None if they cannot be found."""
    op = call.op
    if op.cost is not None:
        return flops(op.cost, call.values)

    def run(*arguments: Any) -> None:
        if op.call(**dict(zip(op.parameters, arguments, strict=False))).shape != call.out.shape:
            raise TypeError("options of the call are not known")

    return call.flops_of(op, run, *call.arguments)


def vjp_flops(
    call: SketchedCall, argnum: int, vjp: VJP, saved: Sequence[Any] | None = None
) -> int | None:
    """Return the FLOPs of the VJP for one input of a call, or None if they cannot be found.

    Of a joint VJP it is the part that serves this input alone. `saved` has what the VJP saved; it
    is None if the call was not recorded.
    """
    cost = vjp.cost
    if cost is not None:
        own = cost.get(call.op.parameters[argnum], 0) if isinstance(cost, Mapping) else cost
        return flops(own, call.values)
    values = call.saved_for(vjp) if saved is None else map(call.sketch, saved)
    return call.flops_of(vjp, vjp.derivative, call.out, *values)


def joint_vjp_flops(
    call: SketchedCall, vjp: VJP, needs_input_grad: Collection[str], saved: Sequence[Any]
) -> int | None:
    """Return the FLOPs of a joint VJP for the inputs of a call that need a gradient.

    Of one with costs these are the FLOPs that serve several inputs. `saved` has what it saved.
    """
    if not needs_input_grad:
        return 0
    if isinstance(vjp.cost, Mapping):
        return flops(
            vjp.cost.get("shared", 0), call.values | {"needs_input_grad": set(needs_input_grad)}
        )
    flags = tuple(call.op.parameters[argnum] in needs_input_grad for argnum, _ in call.op.vjps)
    return call.flops_of(vjp, vjp.derivative, call.out, flags, *map(call.sketch, saved))


def _sgd(group: Mapping[str, Any]) -> int:
    velocity = 2 + bool(group["dampening"]) + 2 * bool(group["nesterov"])
    return 2 + bool(group["momentum"]) * velocity + 2 * bool(group["weight_decay"])


def _adam(group: Mapping[str, Any]) -> int:
    return 14 + bool(group["amsgrad"]) + 2 * bool(group["weight_decay"])


STEP_COSTS: dict[type, Callable[[Mapping[str, Any]], int]] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adam,
}
"""The FLOPs of an optimiser's step for each parameter, given the options of its group."""
