"""The observer that looks at all that is made, and raises at the first NaN or Inf.

A NaN spreads: by the time that the loss is one, every parameter may be. So an observer looks at the
result of each op and of each derivative rule, and the first that is not finite while all that it
came from is, is the culprit. Only then are the operands looked at, the cause sought, and an error
raised at the very place, where a debugger's post mortem stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakKeyDictionary

import numpy as np

from minigrad.core.node import Node, OpLike
from minigrad.core.observers import Observer
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.anomaly.error import AnomalyError
from minigrad.diagnostics.anomaly.operand import Entries, Operand, is_numeric, values_of
from minigrad.diagnostics.origin import Origin, origin
from minigrad.ops.hints import cause_of, cause_of_gradient, overflow

if TYPE_CHECKING:
    from minigrad.core.op import Op
    from minigrad.nn import Module
    from minigrad.optim import Optimizer

_LEAF = "a leaf that requires a gradient"
_UNSEEN = " before detect_anomaly() began, or in another thread"
_SHOWN = 6  # of the inputs of one op, and of the rules that lead to one leaf


class Detector(Observer):
    """Looks at all results, and remembers the line of each recorded op."""

    def __init__(self, inf: bool, origins: WeakKeyDictionary[Node, Origin | None]) -> None:
        self.inf = inf
        self.origins = origins
        self.entries = Entries()  # where the Inf came in that are passed on
        self.routes: WeakKeyDictionary[Node, list[str]] = WeakKeyDictionary()  # to each leaf
        self.inside: str | None = None  # the op inside the present rule that made the first
        self.given: tuple[Any, Any, str | None] = (None, None, None)  # to a rule, by it, and inside
        # What runs now, innermost last: True for a backward pass, False for what runs inside one
        # and is no part of it, a hook or the second forward pass of a checkpoint.
        self.passes: list[bool] = []
        self.modules: list[Module] = []  # that are being called, innermost last

    def is_bad(self, value: Any) -> bool:
        """Whether there is a NaN in it, or an Inf if these count."""
        array = value._data if isinstance(value, Tensor) else np.asarray(value)
        if array.dtype.kind != "f":
            return False
        return not np.isfinite(array).all() if self.inf else bool(np.isnan(array).any())

    # ----------------------------------------------------------------------------------------------
    # Forward
    # ----------------------------------------------------------------------------------------------

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Look at a result, and note the line of the call."""
        if self.is_bad(result):
            if self.passes and self.passes[-1]:
                # What a rule makes on its way may be masked out; what it hands on counts.
                self.inside = self.inside or op.name
            else:
                self._look_at_call(op, inputs, result)
        if isinstance(result, Tensor) and result.node is not None:
            self.origins[result.node] = origin()

    def _look_at_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Raise an error, unless an Inf is just passed on that the user has put there."""
        named = {op.input_name(i): x for i, x in enumerate(inputs)}
        given = {n: x for n, x in named.items() if is_numeric(x) and not _says_how(op, n, x)}
        operands = {name: Operand.of(f"input {name}", x) for name, x in given.items()}
        made = Operand.of("result", result)
        infinite = [name for name, operand in operands.items() if operand.inf]
        came = self.entries.first(given[name] for name in infinite)
        for name, operand in operands.items():
            if not (operand.nan if made.nan else operand.inf):
                continue
            what = _what(given[name])
            if not made.nan and what != _LEAF:
                self.entries.note(result, came or f"input {name} of `{op.name}` at {origin()}")
                return
            headline = (
                f"input {name} of `{op.name}` ({what}) holds {_kind(operand)} already: "
                f"{operand.counted()}"
            )
            hint = None
            if what == _LEAF:
                hint = "the last step of an optimiser, a load or an assignment put it there"
                if given[name].grad is not None:
                    hint += f"; {Operand.of('its .grad', given[name].grad)}"
            came = None
            break
        else:
            headline = f"`{op.name}` made the first {_kind(made)}"
            values = {name: values_of(x) for name, x in given.items()}
            hint = cause_of(op, values, values_of(result))
        listed = [*operands.values(), made]
        raise _error(headline, op.name, "forward", origin(), listed, hint, self._layer(), came)

    def on_module(self, module: Module, begins: bool) -> None:
        """Note which modules are being called."""
        if begins:
            self.modules.append(module)
        elif self.modules:  # else its call began before anyone watched
            self.modules.pop()

    def _layer(self) -> str | None:
        """Name the innermost module that is being called by its name in the outermost, if any.

        The user's line may be `model(x)`, and the model have a hundred layers.
        """
        if not self.modules:
            return None
        outer, inner = self.modules[0], self.modules[-1]
        name = next((name for name, module in outer.named_modules() if module is inner), "")
        kind = type(inner).__name__
        return f"{name} ({kind}) of the {type(outer).__name__}" if name else f"the {kind}"

    # ----------------------------------------------------------------------------------------------
    # Backward
    # ----------------------------------------------------------------------------------------------

    def on_pass(self, begins: bool) -> None:
        """Note that ops are called by derivative rules from here on, or no longer."""
        self._note_run(begins, is_pass=True)

    def on_hook(self, node: Node, begins: bool) -> None:
        """Note that ops are called by a hook from here on, or no longer."""
        self._note_run(begins, is_pass=False)

    def on_rerun(self, begins: bool) -> None:
        """Note that ops are called by a checkpoint's second forward pass, or no longer."""
        self._note_run(begins, is_pass=False)

    def _note_run(self, begins: bool, is_pass: bool) -> None:
        if begins:
            self.passes.append(is_pass)
        elif self.passes:  # else it began before anyone watched
            self.passes.pop()

    def on_backward(self, output: Tensor, gradient: Any) -> None:
        """Look at the loss, and at the gradient that is put in."""
        self.inside = None
        self.routes.clear()
        node = output.node
        assert node is not None
        if self.is_bad(output):
            self._look_at_loss(output, node)
        if self.is_bad(gradient):
            seed = Operand.of("the gradient to start from", gradient)
            headline = f"backward() was handed a gradient that holds {_kind(seed)}"
            raise _error(headline, node.name, "backward", origin(), [seed])

    def _look_at_loss(self, output: Tensor, node: Node) -> None:
        """Raise an error, unless an Inf among several elements may stand for what is masked out."""
        loss = Operand.of("the loss" if output.size == 1 else "the output", output)
        if loss.nan or output.size == 1:
            known = self.origins.get(node)
            made = "is a leaf" if node.op is None else f"was made by `{node.name}`"
            headline = (
                f"backward() starts from {loss.name}, which is {_kind(loss)} already; it {made}"
                f"{'' if node.op is None or known else _UNSEEN}"
            )
            came, where = self.entries.first([output]), known or origin()
            raise _error(headline, node.name, "backward", where, [loss], came=came)

    def on_rule(self, node: Node, place: Node, gradient: Any, result: Any) -> None:
        """Note what a rule was given and gave; whether it counts is seen when it goes on."""
        self.given, self.inside = (gradient, result, self.inside), None

    def on_gradient(self, node: Node, place: Node, gradient: Any) -> None:
        """Look at what a rule hands on."""
        (arrived, result, inside), self.given = self.given, (None, None, None)
        if place.op is None:
            self.routes.setdefault(place, []).append(f"`{node.name}`{self._at(node)}")
        if self.is_bad(gradient):
            self._look_at_rule(node, place, arrived, result, inside, gradient)

    def _look_at_rule(
        self, node: Node, place: Node, arrived: Any, result: Any, inside: str | None, fitted: Any
    ) -> None:
        op = node.op
        assert op is not None
        edges = [edge for edge in node.edges or () if edge[0] is place]
        inputs = " and ".join(dict.fromkeys(op.input_name(edge[1]) for edge in edges))
        saved = {
            name: value
            for name, value in op.saved_values(node, edges)
            if is_numeric(value) and not _says_how(op, name.removeprefix("its input "), value)
        }
        got = Operand.of("the gradient that arrived", arrived)
        made = Operand.of(f"the gradient for {inputs}", result)
        looked_at = {name: Operand.of(name, value) for name, value in saved.items()}
        operands = [got, *looked_at.values(), made]
        hint = came = None
        if self.is_bad(arrived):
            headline = (
                f"the gradient that arrived at the result of `{op.name}` holds {_kind(got)} "
                f"already, and no rule has made it"
            )
            hint = _joined(_hooked(node), "a sum of several gradients overflowed")
        elif not self.is_bad(result):
            to = Operand.of(f"what goes on to {inputs}", fitted)
            operands.append(to)
            summed = made.shape != to.shape
            how = f"the sum over the axes that {inputs} was broadcast along" if summed else to.dtype
            verb = "is" if summed else "cannot hold:"
            headline = (
                f"the rule of `{op.name}` for {inputs} gave finite numbers, of which {how} {verb} "
                f"{_kind(to)}"
            )
            hint = overflow(place.dtype)
        elif made.nan and any(operand.nan for operand in looked_at.values()):
            met = next(name for name, operand in looked_at.items() if operand.nan)
            headline = f"the rule of `{op.name}` for {inputs} met NaN in {met}"
            hint = "that was written to since the call, or the op took no notice of it there"
        else:
            headline = f"the rule of `{op.name}` for {inputs} made the first {_kind(made)}"
            headline += f", in `{inside}` inside it" if inside and inside != op.name else ""
            values = {
                "out" if name == "its result" else name.removeprefix("its input "): values_of(value)
                for name, value in saved.items()
            }
            hint = cause_of_gradient(op, values, values_of(arrived), values_of(result))
            came = self.entries.first(saved.values())
        known = self.origins.get(node)
        headline += "" if known else f"; it was called{_UNSEEN}"
        raise _error(headline, op.name, "backward", known, operands, hint, came=came)

    def on_arrival(self, node: Node, gradient: Any, before: Tensor | None) -> None:
        """Look at a whole gradient, and at the sum that its `.grad` will be."""
        total = gradient
        if before is not None:
            with np.errstate(all="ignore"):
                total = before._data + values_of(gradient)
        if self.is_bad(total) or self.is_bad(gradient):
            self._look_at_arrival(node, gradient, before, total)

    def _look_at_arrival(
        self, node: Node, gradient: Any, before: Tensor | None, total: Any
    ) -> NoReturn:
        """Raise an error that says whether the gradient or the sum is to blame."""
        what = f"a leaf of shape {node.shape} and dtype {node.dtype}"
        what = what if node.op is None else f"the result of `{node.name}`{self._at(node)}"
        operands = [Operand.of("the gradient that arrived", gradient)]
        if self.is_bad(gradient):
            headline = f"the gradient of {what} holds {_kind(operands[0])}, and no rule has made it"
            routes = self.routes.get(node, [])
            hint = _joined(_hooked(node), "a sum overflowed" if len(routes) > 1 else "")
            if len(routes) > 1:
                counted = [f"{n} of {route}" for route, n in Counter(routes).items()]
                counted[_SHOWN:] = ["..."] * (len(counted) > _SHOWN)
                hint += f"; {len(routes)} rules gave gradients for it, {'; '.join(counted)}"
        else:
            assert before is not None
            held, whole = Operand.of("its .grad before", before), Operand.of("the sum", total)
            operands = [held, *operands, whole]
            if self.is_bad(before):
                headline = f"the .grad of {what} holds {_kind(held)} already"
                hint = "a backward pass that was not watched, or an assignment, put it there"
            else:
                headline = (
                    f"the gradient of {what}, added to the .grad it has, gives {_kind(whole)}"
                )
                hint = f"zero_grad() forgets earlier gradients; {overflow(node.dtype)}"
        raise _error(headline, node.name, "backward", origin(), operands, hint)

    # ----------------------------------------------------------------------------------------------
    # The step of an optimiser
    # ----------------------------------------------------------------------------------------------

    def on_step(self, optimizer: Optimizer) -> None:
        """Look at the parameters that were changed."""
        name = type(optimizer).__name__
        stepped = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        for index, (parameter, group) in enumerate(stepped):
            if parameter.grad is None or not self.is_bad(parameter):
                continue
            held = Operand.of("its .grad", parameter.grad)
            made = Operand.of("the parameter", parameter)
            if held.nan or held.inf:
                headline = (
                    f"the .grad of parameter {index} held {_kind(held)} already, when `{name}` "
                    f"took its step"
                )
                hint = "a backward pass that was not watched, or an assignment, put it there"
            else:
                headline = (
                    f"the step of `{name}` made the first {_kind(made)}, in parameter {index}"
                )
                hint = f"its learning rate was {group['lr']:g}; {overflow(parameter.dtype)}"
            raise _error(headline, name, "step", origin(), [held, made], hint)

    def _at(self, node: Node) -> str:
        known = self.origins.get(node)
        return f" at {known}" if known else ""


def _error(
    headline: str,
    op: str,
    phase: str,
    where: Origin | None,
    operands: list[Operand],
    hint: str | None = None,
    module: str | None = None,
    came: str | None = None,
) -> AnomalyError:
    lines = [f"{phase}: {headline}"]
    lines += [f"  at {where}"] if where else []
    lines += [f"  in {module}"] if module else []
    shown = [
        x for i, x in enumerate(operands) if i < _SHOWN or x.first is not None or x is operands[-1]
    ]
    left = len(operands) - len(shown)
    listed = [f"  {operand}" for operand in shown]
    listed[_SHOWN:_SHOWN] = [f"  ... {left} more"] * (left > 0)
    lines += listed
    lines += [f"  {hint}"] if hint else []
    lines += [f"  an Inf came in first with {came}"] if came else []
    return AnomalyError("\n".join(lines), op, phase, where, tuple(operands))


def _kind(operand: Operand) -> str:
    return "NaN" if operand.nan else "Inf"


def _says_how(op: OpLike, name: str, value: Any) -> bool:
    """Whether it is a parameter that says how, as an axis: one with a default and no rule.

    One that is a float, as a scale or a slope, takes part in the arithmetic.
    """
    if name not in op.parameters or isinstance(value, (float, np.floating)):
        return False
    position = op.parameters.index(name)
    ruled = any(position == known for known, _ in op.rules)
    return not ruled and not op.is_required(position)


def _what(value: Any) -> str:
    """What the user would call an operand."""
    if isinstance(value, (int, float, np.number)):
        return "a number"
    if not isinstance(value, Tensor) or value.node is None:
        return "data or a frozen parameter"
    return _LEAF if value.node.op is None else f"a result of `{value.node.name}`"


def _hooked(node: Node) -> str:
    return "a hook returned it" if node.hooks else ""


def _joined(*causes: str) -> str:
    return ", or ".join(cause for cause in causes if cause)
