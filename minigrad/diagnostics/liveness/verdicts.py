"""Does this model train? One step's worth of work, and for each parameter what comes of it.

A loss that is finite and falls proves little: a `detach()` in the wrong line, a block under
`no_grad`, an adapter that is merged or never called leave parameters exactly as they were, without
a word. `liveness` runs the forward pass and the backward pass once, watches both, and says of every
parameter whether a gradient gets to it; if not, at which op of which line its way ends.

A gradient of exact zeros may be a fault or the plan: LoRA's A has none while B is zero, for it is
multiplied by B. That is not guessed. Where the gradient became zero, the rule of that op names what
it computes with; if a parameter is among it that is all zeros and itself gets a gradient, it is
moved a little and the step is run again: if the gradient is not zero any more, it was zero by
construction.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

from minigrad.core.node import Node
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.liveness.adapters import (
    adapter_row,
    adapters_in,
    hindrance,
    is_merged,
    trained,
)
from minigrad.diagnostics.liveness.forward_trace import End, Place
from minigrad.diagnostics.liveness.dry_run import Rehearsal, Run, frozen
from minigrad.diagnostics.liveness.report import LivenessReport, ParameterRow, State
from minigrad.diagnostics.loss_call import Loss
from minigrad.nn.module import Module, Parameter


def liveness(model: Module, loss_fn: Loss, batch: Any) -> LivenessReport:
    """Run one forward and one backward pass and say which parameters get a gradient, and why not.

    The states of a parameter:

    - "live": its gradient is not zero;
    - "zero by construction": it is, only because another parameter is all zeros that gets a
      gradient itself, as A of LoRA while B = 0: it trains once that one has moved;
    - "zero": its gradient is zero in every element for another reason;
    - "not finite": a nan or an infinity is in its gradient;
    - "cut": it was used, but no gradient gets back to it;
    - "unused": it requires a gradient, and the forward pass never touched it;
    - "frozen": it requires none.

    The model is what it was before, also after an exception: its parameters with their gradients
    and flags, train and eval mode, and what else its modules have as attributes, such as running
    means. So are the generators that the library drew from (the default one, and what it was given
    as `rng`). For this, copies of all values are held meanwhile, and `.grad` is None. `loss_fn` is
    called once, and again where a parameter may be zero by construction; hooks on tensors run as in
    any backward pass.

    Args:
        model: in the mode, train or eval, that is of interest.
        loss_fn: `loss_fn(model, batch)`, or a loss of predictions and targets, or of the
            predictions alone (see `minigrad.diagnostics.loss_call.loss_of`).
        batch: what goes with it.

    Returns:
        A report that is true if the model trains, and prints as a table.

    Raises:
        TypeError: if `model` is no Module, or the loss no Tensor of floats with one element.
        ValueError: if the model has no parameters.
        RuntimeError: if `loss_fn` calls `backward()` itself.
    """
    if not isinstance(model, Module):
        raise TypeError(f"liveness: the model must be a Module, not {model!r:.60}")
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ValueError(
            f"liveness: this {type(model).__name__} has no parameters; they are found in "
            f"attributes that are Parameters, Modules, or lists, tuples and dicts of these"
        )
    adapters = adapters_in(model)
    # In grad mode a merged adapter raises, so that nobody trains nothing; without flags it runs.
    merged = [part for _, adapter in adapters if is_merged(adapter) for part in trained(adapter)]
    with frozen(merged):
        rehearsal = Rehearsal(model, loss_fn, batch, list(parameters.values()))
        run = rehearsal.run()
        causes = rehearsal.zero_by_construction(run)
    judge = _Judge(parameters, run, causes, adapters, {id(p) for p in merged})
    rows = {id(parameter): judge.row(i) for i, parameter in enumerate(parameters.values())}
    return LivenessReport(
        run.loss._data.item(),
        tuple(rows.values()),
        tuple(adapter_row(name, a, rows[id(a.lora_a)], rows[id(a.lora_b)]) for name, a in adapters),
        _strays(model),
    )


def _strays(model: Module) -> tuple[str, ...]:
    """The names of attributes that ask for a gradient like parameters and are not found as such."""
    return tuple(
        f"{name}.{attribute}" if name else attribute
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, Tensor) and not isinstance(value, Parameter)
        if value.requires_grad and value.is_leaf
    )


class _Judge:
    """Says what state each parameter is in, and why."""

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        run: Run,
        causes: Mapping[int, int],
        adapters: Sequence[tuple[str, Any]],
        merged: Container[int],
    ) -> None:
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._run = run
        self._causes = causes
        self._merged = merged  # the ids of parameters
        self._remarks: dict[int, str] = {}  # on parameters, by id, from what they belong to
        for _, adapter in adapters:
            for name in ("base_weight", "bias"):
                self._remarks[id(getattr(adapter, name, None))] = BASE
            reason = hindrance(adapter)
            if reason is not None:
                self._remarks |= {id(part): reason for part in trained(adapter)}

    def row(self, i: int) -> ParameterRow:
        """The row of the parameter at position `i`."""
        parameter, norm = self._parameters[i], self._run.norms[i]
        if not parameter.requires_grad:
            return self._made(i, "frozen")
        if norm is None:
            if id(parameter) in self._merged:
                return self._made(i, "cut")
            if self._run.frozen >> i & 1:
                reason = "it is frozen during the step: leave out that requires_grad_(False)"
                return self._made(i, "cut", reason)
            if not self._run.paths.used >> i & 1:
                return self._made(i, "unused", "no op was called on it")
            return self._cut(i, self._run.paths.end_of(1 << i, self._run.loss))
        if not math.isfinite(norm):
            return self._made(i, "not finite", "a nan or an infinity is in its gradient")
        if self._run.is_zero(i):
            return self._zero(i)
        return self._made(i, "live")

    def _made(
        self, i: int, state: State, reason: str = "", place: Place | None = None
    ) -> ParameterRow:
        parameter = self._parameters[i]
        remark = self._remarks.get(id(parameter))
        if remark is not None and state in ("cut", "unused", "zero"):
            reason = remark
        return ParameterRow(
            self._names[i],
            parameter.shape,
            parameter.size,
            state,
            None if state == "cut" else self._run.norms[i],  # a checkpoint hands on zeros
            reason,
            place.what if place else None,
            place.origin if place else None,
        )

    def _cut(self, i: int, end: End | None) -> ParameterRow:
        if end is None:
            place = self._run.paths.last_use(1 << i)
            return self._made(i, "cut", "the loss is computed without what came of it here", place)
        return self._made(i, "cut", _CUTS.get(end.kind, _LEFT).format(end.place.what), end.place)

    def _zero(self, i: int) -> ParameterRow:
        paths = self._run.paths
        node = self._parameters[i].node
        assert node is not None
        stops = self._run.steps.stops(node)
        if not stops:
            return self._lost(i, node)
        stop = stops[0]
        call = paths.call(stop.node)
        causes = self._causes.get(i, 0)
        if causes:
            reason = _multiplied(self._named(causes), "")
            return self._made(i, "zero by construction", reason, call.place)
        if not stop.inside:
            again = [end for end in paths.ends[self._run.forward_ends :] if end.lost >> i & 1]
            if again:
                return self._cut(i, again[0])
        zeros = [zero for k, zero in call.zeros.items() if k in stop.factors]
        for zero in zeros:
            others = zero.parameters & ~(1 << i)
            if others:
                reason = _multiplied(self._named(others), " get no gradient,")
                return self._made(i, "zero", reason, call.place)
        for zero in zeros:
            if zero.place is not None:
                reason = f"`{zero.place.what}` gave nothing but zeros, which multiply it"
                return self._made(i, "zero", reason, zero.place)
        if zeros:
            reason = f"an input of `{call.place.what}` is all zeros, and multiplies it"
        else:
            reason = f"`{call.place.what}` passes none of the gradient on"
        return self._made(i, "zero", reason, call.place)

    def _lost(self, i: int, node: Node) -> ParameterRow:
        """The row where rules gave more than zeros, which cancelled, or a hook put zeros there."""
        if not self._parameters[i].size:
            return self._made(i, "zero", "it has no elements")
        lost = self._run.steps.lost_at(node)
        if lost is None or lost is node:
            hooked = "a hook on it makes it zero"
            return self._made(
                i, "zero", hooked if node.hooks else "the gradients of its uses cancel"
            )
        place = self._run.paths.call(lost).place
        if lost.hooks:
            reason = f"a hook on the result of `{place.what}` makes its gradient zero"
        else:
            reason = f"the gradients of the uses of `{place.what}` cancel"
        return self._made(i, "zero", reason, place)

    def _named(self, bits: int) -> list[str]:
        return [name for k, name in enumerate(self._names) if bits >> k & 1]


def _multiplied(names: Sequence[str], more: str) -> str:
    """What it means that these parameters are zeros."""
    if len(names) == 1:
        return f"{names[0]} is all zeros,{more.replace('get', 'gets')} and multiplies it"
    return f"{' and '.join(names)} are all zeros,{more} and multiply it"


BASE = "the base of an adapter is a constant: freeze it, or fold the adapter in"

_CUTS = {
    "no_grad": "`{}` ran under no_grad()",
    "integers": "`{}` gives integers or booleans, which have no gradient",
    "read": "`{}` was handed the bare value, without its place in the graph",
}
_LEFT = "{} takes the value out of the graph"
