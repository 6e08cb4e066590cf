"""liveness: does this model train? Run one step, and report its effect on each parameter.

A loss that is finite and falls proves little. A `detach()` in the wrong line, a block under
`no_grad`, or an adapter that is merged or never called does not change any parameter, without any
error. So `liveness` watches the passes, to see at which op and line the path of a gradient ends.

A gradient that is exactly zero may be a fault, or correct: the gradient of LoRA's A is zero while B
is zero, because it is multiplied by B. A run decides which it is. At the op where the gradient
became zero, the derivative says what it computes with. If this includes an all-zero parameter that
gets a gradient itself, this parameter is moved a little, and the step runs again. If the gradient
is not zero any more, it was zero by construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from minigrad.core.node import Node, reachable
from minigrad.core.tensor import Tensor, assigned
from minigrad.diagnostics.gradient_flow.dry_run import StepRun, run_step, zero_by_construction
from minigrad.diagnostics.gradient_flow.report import LivenessReport, ParameterRow, PartRow, State
from minigrad.diagnostics.loss_call import Loss
from minigrad.diagnostics.recorder import CallRecord
from minigrad.nn.module import Module, Parameter, attributes_of
from minigrad.renamed import with_hints

Finding = tuple[State, str, CallRecord | None]  # a state, the reason, and where the path ends


class Part(Protocol):
    """A part of a module that knows more about its parameters than a run shows: a LoRA adapter."""

    name: str  # its name in the module; empty if the module has only this part
    constants: Sequence[Parameter]  # to freeze in the run, because the module records no graph

    def remarks(self) -> Iterable[tuple[Any, str]]:
        """Yield tensors, each with the reason to report if it gets no gradient."""

    def row(self, name: str, row_of: Callable[[Parameter], ParameterRow]) -> PartRow:
        """Return the effect of a step on the part, given the rows of its parameters."""


@with_hints
def liveness(model: Module, loss_fn: Loss, batch: Any) -> LivenessReport:
    """Run a forward and a backward pass; report which parameters get a gradient, and why not.

    The states of a parameter:

    - "live": its gradient is not zero;
    - "zero by construction": its gradient is zero only because another parameter is still all
      zeros (A of LoRA while B = 0). That other parameter gets a gradient, so this one trains after
      its first step;
    - "zero": its gradient is zero in every element for another reason;
    - "not finite": its gradient contains a nan or an infinity;
    - "cut": it was used, but no gradient gets back to it;
    - "unused": it requires a gradient, but the forward pass never used it;
    - "frozen": it requires no gradient.

    Afterwards, the model is restored, also after an exception: its parameters with their gradients
    and flags, train and eval mode, and all other attributes of its modules, such as running means.
    So are the random generators that the library drew from. During the run there is a copy of all
    values, and `.grad` is None. `loss_fn` is called once, and again if a gradient may be zero by
    construction. Hooks on tensors run as in any backward pass.

    A module can explain its parameters: its method `liveness_parts()` lists its own parts, such as
    LoRA adapters, and the report has a row for each (see `Part` in this module). The report is true
    if the model trains, and prints as a table.

    Args:
        model: in the mode to look at, train or eval.
        loss_fn: `loss_fn(model, batch)`, or a loss of predictions and targets, or of the
            predictions alone (see `minigrad.diagnostics.loss_call.loss_of`).
        batch: the batch that `loss_fn` expects.

    Raises:
        TypeError: if `model` is not a Module, or the loss not a Tensor of floats with one element.
        ValueError: if the model has no parameters.
        RuntimeError: if `loss_fn` calls `backward()` itself.
    """
    if not isinstance(model, Module):
        raise TypeError(f"liveness: the model must be a Module, not {model!r:.60}")
    if not list(model.parameters()):
        raise ValueError(
            f"liveness: this {type(model).__name__} has no parameters; they are found in "
            f"attributes that are Parameters, Modules, or lists, tuples and dicts of these"
        )
    parts: list[tuple[str, Part]] = [
        (".".join(filter(None, (name, part.name))), part)
        for name, module in model.named_modules()
        for part in getattr(module, "liveness_parts", tuple)()
    ]
    # In grad mode, a merged adapter raises an error, because it would not train; frozen, it runs.
    constants = [parameter for _, part in parts for parameter in part.constants]
    with assigned((parameter, {"node": None}) for parameter in constants):
        step = partial(run_step, model, loss_fn, batch)
        run = step()
        causes = zero_by_construction(run, step)
    remarks = {id(tensor): text for _, part in parts for tensor, text in part.remarks()}
    judge = _Judge(run, causes, {id(parameter) for parameter in constants}, remarks)
    rows = {id(parameter): judge.row(name) for name, parameter in run.parameters.items()}
    strays = {  # tensors that require a gradient like parameters, but are not parameters
        f"{name}.{attribute}" if name else attribute: value.node
        for name, module in model.named_modules()
        for attribute, value in attributes_of(module).items()
        if isinstance(value, Tensor) and not isinstance(value, Parameter)
        if value.requires_grad and value.is_leaf
    }
    part_rows = tuple(part.row(name, lambda p: rows[id(p)]) for name, part in parts)
    known = {*strays.values(), *(parameter.node for parameter in run.parameters.values())}
    nodes = reachable([] if run.loss.node is None else [run.loss.node])
    outside = sum(node.op is None and node not in known for node in nodes)
    loss = run.loss._data.item()
    return LivenessReport(loss, tuple(rows.values()), part_rows, tuple(strays), outside)


@dataclass
class _Judge:
    run: StepRun
    causes: Mapping[str, frozenset[str]]  # the parameters that make a gradient zero by construction
    constants: Container[int]  # the ids of parameters that were frozen for the run
    remarks: Mapping[int, str]  # the remarks of parts on tensors, by the tensor's id

    def row(self, name: str) -> ParameterRow:
        parameter, (state, reason, call) = self.run.parameters[name], self._finding(name)
        if state in ("cut", "unused", "zero"):
            reason = self.remarks.get(id(parameter), reason)
        norm = None if state == "cut" else self.run.norms.get(name)  # checkpoints pass on zeros
        op, origin = (call.name, call.source_line) if call else (None, None)
        return ParameterRow(name, parameter.shape, parameter.size, state, norm, reason, op, origin)

    def _finding(self, name: str) -> Finding:
        """Return the state of a parameter, the reason, and the call where its path ends."""
        parameter, run, forward = self.run.parameters[name], self.run, self.run.forward
        norm, node = run.norms.get(name), parameter.node
        if not parameter.requires_grad:
            return "frozen", "", None
        if norm is None:
            if id(parameter) in self.constants:
                return "cut", "", None
            if name in run.frozen:
                reason = "it is frozen during the step: leave out that requires_grad_(False)"
                return "cut", reason, None
            if name not in forward.used:
                return "unused", "no op was called on it", None
            if (cut := forward.cut_of(name, run.loss)) is not None:
                return "cut", cut.reason, cut.call
            reason = "the loss is computed without what came of it here"
            return "cut", reason, forward.last_use(name)
        if not math.isfinite(norm):
            return "not finite", "a nan or an infinity is in its gradient", None
        if norm != 0:
            return "live", "", None
        if not parameter.size:
            return "zero", "it has no elements", None
        assert node is not None
        stops = run.backward.stops(node)
        if not stops:
            return self._lost(node)
        stop, call = stops[0], forward.call(stops[0].node)
        if name in self.causes:
            return "zero by construction", self._multiplied(self.causes[name], ""), call
        for cut in () if stop.inside else forward.cuts[run.forward_cuts :]:
            if name in cut.lost:
                return "cut", cut.reason, cut.call
        zeros = forward.zero_factors(stop)
        for zero in zeros:
            if others := zero.parameters - {name}:
                return "zero", self._multiplied(others, " get no gradient,"), call
        if made := next((zero.call for zero in zeros if zero.call), None):
            return "zero", f"`{made.name}` gave nothing but zeros, which multiply it", made
        if zeros:
            return "zero", f"an input of `{call.name}` is all zeros, and multiplies it", call
        return "zero", f"`{call.name}` passes none of the gradient on", call

    def _lost(self, node: Node) -> Finding:
        """Return the finding on a parameter whose gradients add up to zero, or meet a hook."""
        lost = self.run.backward.lost_at(node) or node
        call = None if lost is node else self.run.forward.call(lost)
        if lost.hooks:
            result = f"the result of `{call.name}`" if call else "it"
            return "zero", f"a hook on {result} makes its gradient zero", call
        uses = f"the uses of `{call.name}`" if call else "its uses"
        return "zero", f"the gradients of {uses} cancel", call

    def _multiplied(self, zeros: frozenset[str], more: str) -> str:
        names = [name for name in self.run.parameters if name in zeros]
        if len(names) == 1:
            return f"{names[0]} is all zeros,{more.replace('get', 'gets')} and multiplies it"
        return f"{' and '.join(names)} are all zeros,{more} and multiply it"
