"""liveness: does this model train? Run one step, and say for each parameter what comes of it.

A loss that is finite and falls proves little: a `detach()` in the wrong line, a block under
`no_grad`, an adapter that is merged or never called leave parameters exactly as they were, without
any error. `liveness` runs the forward pass and the backward pass once, watches both, and says of
every parameter whether a gradient gets to it; if not, at which op of which line its path ends.

A gradient of exact zeros may be a fault or the plan: LoRA's A has none while B is zero, since it is
multiplied by B. That is not guessed. Where the gradient became zero, the derivative of that op
names what it computes with; if among this is a parameter that is all zeros and itself gets a
gradient, that parameter is moved a little and the step is run again: if the gradient is not zero
any more, it was zero by construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from minigrad.core.node import Node
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.gradient_flow.dry_run import StepRun, StepRunner
from minigrad.diagnostics.gradient_flow.report import LivenessReport, ParameterRow, PartRow, State
from minigrad.diagnostics.gradient_flow.traces import Cut
from minigrad.diagnostics.loss_call import Loss
from minigrad.diagnostics.recorder import CallRecord
from minigrad.diagnostics.restored import assigned
from minigrad.nn.module import Module, Parameter


class Part(Protocol):
    """A part of a module that knows more of its parameters than a run shows: a LoRA adapter."""

    @property
    def name(self) -> str:
        """Its name in the module; empty if the module has only this part."""

    @property
    def constants(self) -> Sequence[Parameter]:
        """Parameters to freeze during the run, since the module refuses to record a graph."""

    def remarks(self) -> Iterable[tuple[Any, str]]:
        """Yield tensors, and why each gets no gradient if it gets none."""

    def row(self, name: str, row_of: Callable[[Parameter], ParameterRow]) -> PartRow:
        """Conclude from the rows of its parameters what a step does to the part."""


@runtime_checkable
class HasParts(Protocol):
    """A module that `liveness` asks for its parts."""

    def liveness_parts(self) -> Sequence[Part]:
        """List the parts of this module alone, not of modules inside it."""


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
    as `rng`). For this, all values are copied meanwhile, and `.grad` is None. `loss_fn` is called
    once, and again where a parameter may be zero by construction; hooks on tensors run as in any
    backward pass.

    A module can explain its parameters: `liveness_parts()` lists its parts, such as LoRA adapters,
    and the report has a row for each (see `Part` in this module).

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
    parts = [
        (".".join(filter(None, (name, part.name))), part)
        for name, module in model.named_modules()
        if isinstance(module, HasParts)
        for part in module.liveness_parts()
    ]
    # In grad mode a merged adapter raises, so that nobody trains nothing; frozen it runs.
    constants = [parameter for _, part in parts for parameter in part.constants]
    with assigned((parameter, {"node": None}) for parameter in constants):
        runner = StepRunner(model, loss_fn, batch, list(parameters.values()))
        run = runner.run()
        causes = runner.zero_by_construction(run)
    remarks = {id(tensor): text for _, part in parts for tensor, text in part.remarks()}
    judge = _Judge(
        list(parameters), runner.parameters, run, causes, {id(p) for p in constants}, remarks
    )
    rows = {id(parameter): judge.row(i) for i, parameter in enumerate(parameters.values())}
    strays = (  # they require a gradient like parameters, and are none
        f"{name}.{attribute}" if name else attribute
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, Tensor) and not isinstance(value, Parameter)
        if value.requires_grad and value.is_leaf
    )
    return LivenessReport(
        run.loss._data.item(),
        tuple(rows.values()),
        tuple(part.row(name, lambda p: rows[id(p)]) for name, part in parts),
        tuple(strays),
    )


@dataclass
class _Judge:
    """Says what state each parameter is in, and why."""

    names: Sequence[str]  # of the parameters
    parameters: Sequence[Parameter]
    run: StepRun
    causes: Mapping[int, int]  # what makes a gradient zero by construction
    constants: Container[int]  # the ids of parameters
    remarks: Mapping[int, str]  # on tensors, by id, from the parts that they belong to

    def row(self, i: int) -> ParameterRow:
        """Return the row of parameter `i`."""
        parameter, norm, run = self.parameters[i], self.run.norms[i], self.run
        if not parameter.requires_grad:
            return self._row(i, "frozen")
        if norm is None:
            if id(parameter) in self.constants:
                return self._row(i, "cut")
            if run.frozen >> i & 1:
                reason = "it is frozen during the step: leave out that requires_grad_(False)"
                return self._row(i, "cut", reason)
            if not run.forward.used >> i & 1:
                return self._row(i, "unused", "no op was called on it")
            return self._cut(i, run.forward.cut_of(1 << i, run.loss))
        if not math.isfinite(norm):
            return self._row(i, "not finite", "a nan or an infinity is in its gradient")
        if run.is_zero(i):
            return self._zero(i)
        return self._row(i, "live")

    def _row(
        self, i: int, state: State, reason: str = "", call: CallRecord | None = None
    ) -> ParameterRow:
        parameter = self.parameters[i]
        if state in ("cut", "unused", "zero"):
            reason = self.remarks.get(id(parameter), reason)
        return ParameterRow(
            self.names[i],
            parameter.shape,
            parameter.size,
            state,
            None if state == "cut" else self.run.norms[i],  # a checkpoint passes zeros on
            reason,
            call.name if call else None,
            call.source_line if call else None,
        )

    def _cut(self, i: int, cut: Cut | None) -> ParameterRow:
        if cut is None:
            call = self.run.forward.last_use(1 << i)
            return self._row(i, "cut", "the loss is computed without what came of it here", call)
        return self._row(i, "cut", _CUTS.get(cut.kind, _LEFT).format(cut.call.name), cut.call)

    def _zero(self, i: int) -> ParameterRow:
        forward = self.run.forward
        node = self.parameters[i].node
        assert node is not None
        stops = self.run.backward.stops(node)
        if not stops:
            return self._lost(i, node)
        stop = stops[0]
        call = forward.call(stop.node)
        causes = self.causes.get(i, 0)
        if causes:
            reason = _multiplied(self._named(causes), "")
            return self._row(i, "zero by construction", reason, call)
        if not stop.inside:
            again = [cut for cut in forward.cuts[self.run.forward_cuts :] if cut.lost >> i & 1]
            if again:
                return self._cut(i, again[0])
        zeros = self.run.zero_factors(stop)
        for zero in zeros:
            others = zero.parameters & ~(1 << i)
            if others:
                reason = _multiplied(self._named(others), " get no gradient,")
                return self._row(i, "zero", reason, call)
        for zero in zeros:
            if zero.call is not None:
                reason = f"`{zero.call.name}` gave nothing but zeros, which multiply it"
                return self._row(i, "zero", reason, zero.call)
        if zeros:
            reason = f"an input of `{call.name}` is all zeros, and multiplies it"
        else:
            reason = f"`{call.name}` passes none of the gradient on"
        return self._row(i, "zero", reason, call)

    def _lost(self, i: int, node: Node) -> ParameterRow:
        """Return the row of a parameter whose nonzero gradients cancel, or meet a hook."""
        if not self.parameters[i].size:
            return self._row(i, "zero", "it has no elements")
        lost = self.run.backward.lost_at(node)
        if lost is None or lost is node:
            hooked = "a hook on it makes it zero"
            cancel = "the gradients of its uses cancel"
            return self._row(i, "zero", hooked if node.hooks else cancel)
        call = self.run.forward.call(lost)
        if lost.hooks:
            reason = f"a hook on the result of `{call.name}` makes its gradient zero"
        else:
            reason = f"the gradients of the uses of `{call.name}` cancel"
        return self._row(i, "zero", reason, call)

    def _named(self, bits: int) -> list[str]:
        return [name for k, name in enumerate(self.names) if bits >> k & 1]


def _multiplied(names: Sequence[str], more: str) -> str:
    """Say that these parameters are zeros, and multiply the gradient of another."""
    if len(names) == 1:
        return f"{names[0]} is all zeros,{more.replace('get', 'gets')} and multiplies it"
    return f"{' and '.join(names)} are all zeros,{more} and multiply it"


_CUTS = {
    "no_grad": "`{}` ran under no_grad()",
    "integers": "`{}` gives integers or booleans, which have no gradient",
    "read": "`{}` was handed the bare value, without its node in the graph",
}
_LEFT = "{} takes the value out of the graph"
