"""Detector: the observer that looks at every result, and raises an error at the first NaN or Inf.

A NaN spreads: by the time that the loss is one, every parameter may be. So an observer looks at the
result of each op and of each derivative. The first result that is not finite, although everything
that it was computed from is, names the culprit. Only then are the operands summarised, the cause
sought, and an error raised, inside the call itself, where a debugger's post mortem then stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakKeyDictionary

import numpy as np

from minigrad.core.node import Node, OpLike
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.anomaly.error import SHOWN, Operand, anomaly, values_of
from minigrad.diagnostics.recorder import Recorder, WeakIdMap
from minigrad.diagnostics.source_line import SourceLine, user_line
from minigrad.ops.hints import cause_of, cause_of_gradient, overflow

if TYPE_CHECKING:
    from minigrad.core.op import Op
    from minigrad.optim import Optimizer

_LEAF = "a leaf that requires a gradient"
_UNSEEN = " before detect_anomaly() began, or in another thread"


class Detector(Recorder):
    """Looks at all results, and records the calls that leave a node in the graph.

    Args:
        inf: whether an Inf counts, or NaN alone.
        outer: the detector that this one replaces for a while, whose records it shares.
    """

    def __init__(self, inf: bool, outer: Detector | None = None) -> None:
        super().__init__()
        if outer is not None:
            self.calls = outer.calls
        self.inf = inf
        # Where each Inf entered the computation that ops have passed on since, by the array.
        self._entries: WeakIdMap[str] = WeakIdMap()
        self._routes: WeakKeyDictionary[Node, list[str]] = WeakKeyDictionary()
        self._inside: str | None = None  # the op inside the present derivative that made the first
        # The gradient that a derivative was given, its result, and `_inside` at its end.
        self._derivative: tuple[Any, Any, str | None] = (None, None, None)

    def _is_bad(self, value: Any) -> bool:
        """Whether a value contains a NaN, or an Inf if these count."""
        array = value._data if isinstance(value, Tensor) else np.asarray(value)
        if array.dtype.kind != "f":
            return False
        return not np.isfinite(array).all() if self.inf else bool(np.isnan(array).any())

    # ----------------------------------------------------------------------------------------------
    # Forward
    # ----------------------------------------------------------------------------------------------

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Look at a result, and record the call."""
        if self._is_bad(result):
            if self.is_in_derivative:
                # What a derivative computes on its way may be masked out; what it passes on counts.
                self._inside = self._inside or op.name
            else:
                self._look_at_call(op, inputs, result)
        if isinstance(result, Tensor) and result.node is not None:
            self.calls[result.node] = self.record(op)

    def _look_at_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Raise an error, unless an Inf is just passed on that the user has put there."""
        named = {op.input_name(i): x for i, x in enumerate(inputs)}
        given = {n: x for n, x in named.items() if _is_numeric(x) and not _is_option(op, n, x)}
        operands = {name: Operand.of(f"input {name}", x) for name, x in given.items()}
        made = Operand.of("result", result)
        infinite = [name for name, operand in operands.items() if operand.inf]
        entered = self._entry(given[name] for name in infinite)
        for name, operand in operands.items():
            if not (operand.nan if made.nan else operand.inf):
                continue
            what = _what(given[name])
            if not made.nan and what != _LEAF:
                where = entered or f"input {name} of `{op.name}` at {user_line()}"
                self._entries[values_of(result)] = where
                return
            headline = (
                f"input {name} of `{op.name}` ({what}) holds {made.kind} already: "
                f"{operand.counted()}"
            )
            hint = None
            if what == _LEAF:
                hint = "the last step of an optimiser, a load or an assignment put it there"
                if given[name].grad is not None:
                    hint += f"; {Operand.of('its .grad', given[name].grad)}"
            entered = None
            break
        else:
            headline = f"`{op.name}` made the first {made.kind}"
            values = {name: values_of(x) for name, x in given.items()}
            hint = cause_of(op, values, values_of(result))
        listed = [*operands.values(), made]
        raise anomaly(
            headline, op.name, "forward", user_line(), listed, hint, self._layer(), entered
        )

    def _layer(self) -> str | None:
        """Name the innermost module that is running by its name in the outermost, if any.

        The user's line may be `model(x)`, and the model may have a hundred layers.
        """
        if self.module is None:
            return None
        outer = self.module.chain()[0]
        name, kind = self.module.name_in(outer), type(self.module.module).__name__
        return f"{name} ({kind}) of the {type(outer.module).__name__}" if name else f"the {kind}"

    # ----------------------------------------------------------------------------------------------
    # Backward
    # ----------------------------------------------------------------------------------------------

    def on_backward(self, output: Tensor, gradient: Any) -> None:
        """Look at the loss, and at the gradient that the caller put in."""
        self._inside = None
        self._routes.clear()
        node = output.node
        assert node is not None
        if self._is_bad(output):
            loss = Operand.of("the loss" if output.size == 1 else "the output", output)
            # An Inf among several elements may stand for what is masked out.
            if loss.nan or output.size == 1:
                known = self._line_of(node)
                made = "is a leaf" if node.op is None else f"was made by `{node.name}`"
                headline = (
                    f"backward() starts from {loss.name}, which is {loss.kind} already; it {made}"
                    f"{'' if node.op is None or known else _UNSEEN}"
                )
                entered, line = self._entry([output]), known or user_line()
                raise anomaly(headline, node.name, "backward", line, [loss], entered=entered)
        if self._is_bad(gradient):
            seed = Operand.of("the gradient to start from", gradient)
            headline = f"backward() was handed a gradient that holds {seed.kind}"
            raise anomaly(headline, node.name, "backward", user_line(), [seed])

    def on_vjp(self, node: Node, parent: Node, gradient: Any, result: Any) -> None:
        """Note what a derivative was given and returned; whether it counts is seen further on."""
        self._derivative, self._inside = (gradient, result, self._inside), None

    def on_gradient(self, node: Node, parent: Node, gradient: Any) -> None:
        """Look at what a derivative passes on."""
        (arrived, result, inside), self._derivative = self._derivative, (None, None, None)
        if parent.op is None:
            self._routes.setdefault(parent, []).append(f"`{node.name}`{self._at(node)}")
        if self._is_bad(gradient):
            self._look_at_derivative(node, parent, arrived, result, inside, gradient)

    def _look_at_derivative(
        self, node: Node, parent: Node, arrived: Any, result: Any, inside: str | None, fitted: Any
    ) -> NoReturn:
        """Raise an error that says whether the derivative, its inputs or its dtype is to blame."""
        op = node.op
        assert op is not None
        edges = [edge for edge in node.edges or () if edge[0] is parent]
        inputs = " and ".join(dict.fromkeys(op.input_name(edge[1]) for edge in edges))
        saved = {
            name: value
            for name, value in op.saved_values(node, edges)
            if _is_numeric(value) and not _is_option(op, name.removeprefix("its input "), value)
        }
        got = Operand.of("the gradient that arrived", arrived)
        made = Operand.of(f"the gradient for {inputs}", result)
        looked_at = {name: Operand.of(name, value) for name, value in saved.items()}
        operands = [got, *looked_at.values(), made]
        hint = entered = None
        if self._is_bad(arrived):
            headline = (
                f"the gradient that arrived at the result of `{op.name}` holds {got.kind} "
                f"already, and no VJP has made it"
            )
            hint = _joined(_hooked(node), "a sum of several gradients overflowed")
        elif not self._is_bad(result):
            to = Operand.of(f"what goes on to {inputs}", fitted)
            operands.append(to)
            summed = made.shape != to.shape
            how = f"the sum over the axes that {inputs} was broadcast along" if summed else to.dtype
            verb = "is" if summed else "cannot hold:"
            headline = (
                f"the VJP of `{op.name}` for {inputs} gave finite numbers, of which {how} {verb} "
                f"{to.kind}"
            )
            hint = overflow(parent.dtype)
        elif made.nan and any(operand.nan for operand in looked_at.values()):
            met = next(name for name, operand in looked_at.items() if operand.nan)
            headline = f"the VJP of `{op.name}` for {inputs} met NaN in {met}"
            hint = "that was written to since the call, or the op took no notice of it there"
        else:
            headline = f"the VJP of `{op.name}` for {inputs} made the first {made.kind}"
            headline += f", in `{inside}` inside it" if inside and inside != op.name else ""
            values = {
                "out" if name == "its result" else name.removeprefix("its input "): values_of(value)
                for name, value in saved.items()
            }
            hint = cause_of_gradient(op, values, values_of(arrived), values_of(result))
            entered = self._entry(saved.values())
        known = self._line_of(node)
        headline += "" if known else f"; it was called{_UNSEEN}"
        raise anomaly(headline, op.name, "backward", known, operands, hint, entered=entered)

    def on_arrival(self, node: Node, gradient: Any, before: Tensor | None) -> None:
        """Look at a complete gradient, and at the sum that its `.grad` will be."""
        total = gradient
        if before is not None:
            with np.errstate(all="ignore"):
                total = before._data + values_of(gradient)
        if self._is_bad(total) or self._is_bad(gradient):
            self._look_at_arrival(node, gradient, before, total)

    def _look_at_arrival(
        self, node: Node, gradient: Any, before: Tensor | None, total: Any
    ) -> NoReturn:
        """Raise an error that says whether the gradient or the sum is to blame."""
        what = f"a leaf of shape {node.shape} and dtype {node.dtype}"
        what = what if node.op is None else f"the result of `{node.name}`{self._at(node)}"
        operands = [Operand.of("the gradient that arrived", gradient)]
        if self._is_bad(gradient):
            headline = f"the gradient of {what} holds {operands[0].kind}, and no VJP has made it"
            routes = self._routes.get(node, [])
            hint = _joined(_hooked(node), "a sum overflowed" if len(routes) > 1 else "")
            if len(routes) > 1:
                counted = [f"{n} of {route}" for route, n in Counter(routes).items()]
                counted[SHOWN:] = ["..."] * (len(counted) > SHOWN)
                hint += f"; {len(routes)} VJPs gave gradients for it, {'; '.join(counted)}"
        else:
            assert before is not None
            old, new = Operand.of("its .grad before", before), Operand.of("the sum", total)
            operands = [old, *operands, new]
            if self._is_bad(before):
                headline = f"the .grad of {what} holds {old.kind} already"
                hint = "a backward pass that was not watched, or an assignment, put it there"
            else:
                headline = f"the gradient of {what}, added to the .grad it has, gives {new.kind}"
                hint = f"zero_grad() forgets earlier gradients; {overflow(node.dtype)}"
        raise anomaly(headline, node.name, "backward", user_line(), operands, hint)

    # ----------------------------------------------------------------------------------------------
    # The step of an optimiser
    # ----------------------------------------------------------------------------------------------

    def on_step(self, optimizer: Optimizer) -> None:
        """Look at the parameters that were changed."""
        name = type(optimizer).__name__
        stepped = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        for index, (parameter, group) in enumerate(stepped):
            if parameter.grad is None or not self._is_bad(parameter):
                continue
            grad = Operand.of("its .grad", parameter.grad)
            made = Operand.of("the parameter", parameter)
            if grad.nan or grad.inf:
                headline = (
                    f"the .grad of parameter {index} held {grad.kind} already, when `{name}` "
                    f"took its step"
                )
                hint = "a backward pass that was not watched, or an assignment, put it there"
            else:
                headline = f"the step of `{name}` made the first {made.kind}, in parameter {index}"
                hint = f"its learning rate was {group['lr']:g}; {overflow(parameter.dtype)}"
            raise anomaly(headline, name, "step", user_line(), [grad, made], hint)

    def _entry(self, values: Iterable[Any]) -> str | None:
        """Return where an Inf entered that is in the first of these values for which it is known.

        A view counts as the array that it looks into.
        """
        arrays = [values_of(value) for value in values]
        known = (self._entries.get(x) or self._entries.get(x.base) for x in arrays)
        return next((where for where in known if where is not None), None)

    def _line_of(self, node: Node) -> SourceLine | None:
        """Return the line of the call that left a node; None if it was not seen."""
        call = self.calls.get(node)
        return None if call is None else call.source_line

    def _at(self, node: Node) -> str:
        known = self._line_of(node)
        return f" at {known}" if known else ""


def _is_numeric(value: Any) -> bool:
    """Whether a message can give a range of it: an array or a number, and no option."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value.dtype.kind in "iuf"
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_option(op: OpLike, name: str, value: Any) -> bool:
    """Whether an input says how to compute, such as an axis: it has a default and no derivative.

    A float, such as a scale or a slope, takes part in the arithmetic.
    """
    if name not in op.parameters or isinstance(value, (float, np.floating)):
        return False
    index = op.parameters.index(name)
    return all(index != known for known, _ in op.vjps) and not op.is_required(index)


def _what(value: Any) -> str:
    """Say what the user would call an operand."""
    if isinstance(value, (int, float, np.number)):
        return "a number"
    if not isinstance(value, Tensor) or value.node is None:
        return "data or a frozen parameter"
    return _LEAF if value.node.op is None else f"a result of `{value.node.name}`"


def _hooked(node: Node) -> str:
    return "a hook returned it" if node.hooks else ""


def _joined(*causes: str) -> str:
    return ", or ".join(cause for cause in causes if cause)
