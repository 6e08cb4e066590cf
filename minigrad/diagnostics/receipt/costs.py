"""The FLOPs of calls and of derivative rules, found once for each signature.

A signature is what a cost can depend on: shapes, dtypes and options. What the block of an op says
is evaluated; all else is found by running a forward, a composition or a rule on sketches (see
`minigrad.core.sketch`, which also gives the conventions). A fused op costs what its composition
costs, but causal attention counts as if nothing were masked.

A gradient that is summed over axes that were broadcast, as that of a bias, and the sum of gradients
that meet in one tensor, are the engine's work, and are counted by the receipt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import EllipsisType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minigrad.core.grad_mode import mode
from minigrad.core.sketch import Sketch, Tally, flops, shape_of
from minigrad.core.tensor import Tensor
from minigrad.optim import SGD, Adam, AdamW

if TYPE_CHECKING:
    from minigrad.core.op import Op, Rule


class _Array(NamedTuple):
    """The part of an array that a signature keeps."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class _Object(NamedTuple):
    """An argument that is kept as it is, in a list: that has no hash, so no cache keeps it."""

    value: list[Any]


class _Parts(NamedTuple):
    """The part of a list, a tuple or a slice that a signature keeps; types tell 1 from True."""

    kind: type
    parts: tuple[Any, ...]
    types: tuple[type, ...] = ()


def _outline(value: Any) -> Any:
    """Return the part of an argument that a signature keeps: shape and dtype of an array."""
    if isinstance(value, (Tensor, np.ndarray)):
        return _Array(value.shape, value.dtype)
    if isinstance(value, np.generic):
        return value.item()  # as an op takes it
    if isinstance(value, (tuple, list)):
        return _Parts(type(value), tuple(map(_outline, value)), tuple(map(type, value)))
    if isinstance(value, slice):
        return _Parts(slice, (value.start, value.stop, value.step))
    if value is None or isinstance(value, (int, float, str, type, np.dtype, EllipsisType)):
        return value
    if hasattr(value, "shape"):  # a matrix in four bits
        return _Array(value.shape, getattr(value, "dtype", np.dtype(np.float32)))
    return _Object([value])


def _filled(outline: Any, tally: Tally) -> Any:
    """Return an argument for a run: a Tensor of a sketch for an array."""
    if isinstance(outline, _Array):
        sketch: Any = Sketch(outline.shape, outline.dtype, tally)
        return Tensor.at(sketch, None)
    if isinstance(outline, _Parts):
        parts = [_filled(part, tally) for part in outline.parts]
        return slice(*parts) if outline.kind is slice else outline.kind(parts)
    return outline.value[0] if isinstance(outline, _Object) else outline


class SketchedCall:
    """The signature of one call of an op. It keeps no array, so that a receipt keeps none alive.

    Attributes:
        op: the op.
        arguments: the outlines of its arguments, in the order of its parameters.
        out: the shape and dtype of the result.
    """

    __slots__ = ("arguments", "op", "out")

    def __init__(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        self.op = op
        self.out = _Array(shape_of(result), np.dtype(getattr(result, "dtype", None)))
        if op.takes_sequence:  # whose calls are announced with these alone
            inputs = [inputs]
        self.arguments = [
            value.item() if isinstance(value, np.ndarray) and not value.ndim else _outline(value)
            for value in inputs
        ]
        for position, _ in () if op.takes_sequence else op.rules:
            if isinstance(inputs[position], (list, tuple)):  # of numbers
                self.arguments[position] = _Array(np.shape(inputs[position]), self.out.dtype)

    def has(self, name: str) -> bool:
        """Return whether an argument was given, and is not None."""
        return self.arguments[self.op.parameters.index(name)] is not None

    def values(self, tally: Tally) -> dict[str, Any]:
        """Return the arguments and the result by name, with sketches for arrays."""
        filled = [_filled(outline, tally) for outline in self.arguments]
        named = dict(zip(self.op.parameters, filled, strict=False))  # a checkpoint has more inputs
        return named | {"out": _filled(self.out, tally)}

    def saved_for(self, rule: Rule) -> list[Any]:
        """Return the outlines of what a rule would have saved, if its input needed a gradient."""
        known = [*self.arguments, self.out]
        return [
            _Parts(tuple, known[slot].shape) if shape_only else known[slot]
            for slot, shape_only in rule.slots
        ]


def call_flops(call: SketchedCall) -> int | None:
    """Return the FLOPs of a call, or None if they cannot be found."""

    def run(tally: Tally) -> None:
        values = call.values(tally)
        out = values.pop("out")
        if call.op.cost is not None:
            tally.flops += flops(call.op.cost, values | {"out": out})
        elif call.op.call(**values).shape != out.shape:
            raise TypeError("options of the call are not known")

    return _once(call.op, call.op, (*call.arguments, call.out), run)


def rule_flops(
    call: SketchedCall, position: int, rule: Rule, saved: Sequence[Any] | None = None
) -> int | None:
    """Return the FLOPs of the rule for one input, or None if they cannot be found.

    Args:
        call: the call that it belongs to.
        position: the input.
        rule: its rule; if that is a joint one, the part that serves this input alone.
        saved: what the rule saved; None if it was not recorded.
    """
    cost = rule.cost
    if cost is not None:
        given = cost[call.op.parameters[position]] if isinstance(cost, Mapping) else cost
        return flops(given, call.values(Tally()))
    outlines = call.saved_for(rule) if saved is None else list(map(_outline, saved))

    def run(tally: Tally) -> None:
        rule.derivative(_filled(call.out, tally), *(_filled(x, tally) for x in outlines))

    return _once(call.op, rule, (call.out, *outlines), run)


def joint_rule_flops(
    call: SketchedCall, rule: Rule, needs: Collection[str], saved: Sequence[Any]
) -> int | None:
    """Return the FLOPs of a joint rule, or of one with costs, those that serve several inputs.

    Args:
        call: the call that it belongs to.
        rule: the joint rule.
        needs: the inputs that need a gradient.
        saved: what the rule saved.
    """
    if not needs:
        return 0
    if isinstance(rule.cost, Mapping):
        return flops(rule.cost.get("shared", 0), call.values(Tally()) | {"needs": set(needs)})
    outlines = list(map(_outline, saved))
    flags = tuple(call.op.parameters[position] in needs for position, _ in call.op.rules)

    def run(tally: Tally) -> None:
        filled = (_filled(x, tally) for x in outlines)
        rule.derivative(_filled(call.out, tally), flags, *filled)

    return _once(call.op, rule, (call.out, flags, *outlines), run)


def _once(
    op: Op[Any], what: Op[Any] | Rule, outlines: tuple[Any, ...], run: Callable[[Tally], None]
) -> int | None:
    """Return the FLOPs of a run on sketches, from memory if the signature is known."""
    known, key = op.known_flops, (what, outlines, tuple(map(type, outlines)))
    try:
        if key in known:
            return known[key]
    except TypeError:  # an option that cannot be hashed
        known = {}
    tally = Tally()
    found: int | None = None
    with _unobserved(), suppress(Exception):  # whatever a user's function does with a sketch
        run(tally)
        found = tally.flops
    if len(known) >= _MOST:
        known.clear()
    with suppress(TypeError):
        known[key] = found
    return found


_MOST = 1000  # signatures of one op


@contextmanager
def _unobserved() -> Iterator[None]:
    """Run the body without a graph, and without an observer."""
    before = mode.state
    mode.state = (False, ())
    try:
        yield
    finally:
        mode.state = before


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
