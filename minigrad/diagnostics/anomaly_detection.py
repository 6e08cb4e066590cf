"""detect_anomaly: raise an error where the first NaN or Inf is made, and name what made it.

A NaN spreads: when the loss is NaN, every parameter may soon be NaN too. So an observer,
`Detector`, looks at the result of each op and of each derivative. The op at fault is the first
whose result is not finite although all its operands are. Only then does the detector look for the
cause (the block of an op lists the usual ones). It raises an `AnomalyError` inside the call, so
that a debugger stops there.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ContextDecorator
from dataclasses import dataclass
from typing import Any, TypeVar, overload
from weakref import WeakKeyDictionary

import numpy as np

from minigrad.checks import check_flag
from minigrad.core.grad_mode import check_runs_at_once, mode, open_blocks
from minigrad.core.node import Node, OpLike, in_words
from minigrad.core.observers import observe
from minigrad.core.op import Op
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.recorder import Recorder, SourceLine, user_line, values_of
from minigrad.ops.hints import cause_of, cause_of_gradient, overflow
from minigrad.optim import Optimizer
from minigrad.readonly import WeakIdMap
from minigrad.transforms.forward_mode import ForwardMode

F = TypeVar("F", bound=Callable[..., Any])

SHOWN = 6  # how many finite operands a message lists
_LEAF = "a leaf that requires a gradient"
_UNWATCHED = "a backward pass that was not watched, or an assignment, put it there"
_UNSEEN = " before detect_anomaly() began, or in another thread"


@dataclass(eq=False, repr=False)
class AnomalyError(FloatingPointError):
    """The first NaN or Inf, and what made it. Raised inside `detect_anomaly`.

    Attributes:
        message: the text.
        op: the name of the op. For a loss, it is the op that made the loss, or "leaf"; for the sum
            of all gradients of a leaf, it is "leaf"; for a step, it is the class of the optimiser.
        phase: "forward", "backward" or "step" (of an optimiser).
        origin: the user's line that called the op, also if the derivative of the op failed; or else
            the line that called `backward()` or `step()`. None if the op was called before
            `detect_anomaly` began, or in another thread.
        operands: the operands of the op, or of its derivative, followed by the result.
    """

    message: str
    op: str = ""
    phase: str = ""
    origin: SourceLine | None = None
    operands: tuple[Operand, ...] = ()

    def __post_init__(self) -> None:
        super().__init__(self.message)


@dataclass(frozen=True)
class Operand:
    """A summary of one array."""

    name: str  # its role in the call of the op, such as "input x"
    shape: tuple[int, ...]
    dtype: str
    low: float  # the least finite element; nan if no element is finite
    high: float  # the largest finite element; nan if no element is finite
    nan: int  # how many elements are NaN
    inf: int  # how many are Inf, of either sign
    size: int
    first: tuple[int, ...] | None  # the index of the first element that is not finite, or None

    @classmethod
    def of(cls, name: str, value: Any) -> Operand:
        """Summarise a Tensor, an array or a number."""
        array = values_of(value)
        wide = array.astype(np.float64)
        finite = np.isfinite(wide)
        known = wide[finite] if finite.any() else [math.nan]
        nan, inf = int(np.isnan(wide).sum()), int(np.isinf(wide).sum())
        first = None if finite.all() else tuple(np.argwhere(~finite)[0].tolist())
        shape, dtype, low, high = array.shape, str(array.dtype), np.min(known), np.max(known)
        return cls(name, shape, dtype, float(low), float(high), nan, inf, array.size, first)

    @property
    def kind(self) -> str:
        """The kind of anomaly: "NaN" if any element is NaN, otherwise "Inf"."""
        return "NaN" if self.nan else "Inf"

    def counted(self) -> str:
        """Describe in words how many elements are not finite, and the index of the first."""
        kinds = [f"{n} {kind}" for n, kind in ((self.nan, "NaN"), (self.inf, "Inf")) if n]
        first = f", first at {list(self.first)}" if self.first and self.size > 1 else ""
        return f"{' and '.join(kinds) or 'none'} of {self.size}{first}"

    def __str__(self) -> str:
        text = f"{self.name}: {self.shape} {self.dtype}, "
        known = f"{self.low:.6g}" + (f" .. {self.high:.6g}" if self.high != self.low else "")
        if self.first is None:
            return text + (known if self.size else "empty")
        alone = self.nan + self.inf == self.size
        return text + self.counted() + ("" if alone else f", the others {known}")


def anomaly(
    headline: str,
    op: str,
    phase: str,
    line: SourceLine | None,
    operands: Sequence[Operand],
    *notes: str | None,
    module: str | None = None,
) -> AnomalyError:
    """Make the error, with its message of several lines; None is no line."""
    shown = [str(x) for x in operands[:SHOWN]]
    shown += [str(x) for x in operands[SHOWN:] if x.first is not None or x is operands[-1]]
    left = len(operands) - len(shown)
    shown[SHOWN:SHOWN] = [f"... {left} more"] * (left > 0)
    details = [f"at {line}" if line else "", f"in {module}" if module else "", *shown, *notes]
    text = "\n  ".join([f"{phase}: {headline}", *filter(None, details)])
    return AnomalyError(text, op, phase, line, tuple(operands))


class Detector(Recorder):
    """Looks at all results, and records the calls that leave a node in the graph.

    `inf` says whether an Inf is an anomaly too. A detector inside another one, `outer`, shares its
    records, and looks in its place: only the innermost detector looks.
    """

    def __init__(self, inf: bool, outer: Detector | None = None) -> None:
        super().__init__()
        self.inf = inf
        if outer is not None:
            self.calls = outer.calls
        # For each array with an Inf that ops passed on: where this Inf first appeared, in words.
        self._entries: WeakIdMap[str] = WeakIdMap()
        self._routes: WeakKeyDictionary[Node, list[str]] = WeakKeyDictionary()
        self._inside: str | None = None  # the first op in the present derivative with a bad result
        # The gradient that a derivative was given, its result, and `_inside` at its end.
        self._derivative: tuple[Any, Any, str | None] = (None, None, None)

    def _is_bad(self, value: Any) -> bool:
        """Return whether a value contains a NaN, or an Inf if `inf` is set."""
        array = values_of(value)
        if array.dtype.kind != "f" or _innermost() not in (None, self):
            return False
        return not np.isfinite(array).all() if self.inf else bool(np.isnan(array).any())

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Look at a result, and record the call."""
        if self._is_bad(result):
            if self.is_in_derivative:
                # Intermediate results of a derivative may be masked out; only its result counts.
                self._inside = self._inside or op.name
            else:
                self._look_at_call(op, inputs, result)
        if isinstance(result, Tensor) and result.node is not None:
            self.calls[result.node] = self.record(op.name)

    def _look_at_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Raise an error if a result is bad, unless it only passes on an Inf from the data."""
        given = {}
        for i, x in enumerate(inputs):
            if isinstance(x, (list, tuple)) and (op.takes_sequence or i in op.vjp_of):
                x = np.asarray(x)  # a list of numbers, which the op uses as an array
            if _is_operand(op, name := op.input_name(i), x):
                given[name] = x
        operands = {name: Operand.of(f"input {name}", x) for name, x in given.items()}
        made = Operand.of("result", result)
        entered = self._entry(given[name] for name, operand in operands.items() if operand.inf)
        for name, operand in operands.items():
            if not (operand.nan if made.nan else operand.inf):
                continue
            x, what = given[name], "data or a frozen parameter"
            if isinstance(x, (int, float, np.number)):
                what = "a number"
            elif isinstance(x, Tensor) and x.node is not None:
                what = _LEAF if x.node.op is None else f"a result of `{x.node.name}`"
            if not made.nan and what != _LEAF:
                first = f"an Inf came in first with input {name} of `{op.name}` at {user_line()}"
                self._entries[values_of(result)] = entered or first
                return
            headline = f"input {name} of `{op.name}` ({what}) contains {made.kind} already: "
            headline += operand.counted()
            hint = None
            if what == _LEAF:
                hint = "the last step of an optimiser, a load or an assignment put it there"
                if x.grad is not None:
                    hint += f"; {Operand.of('its .grad', x.grad)}"
            entered = None
            break
        else:
            headline = f"`{op.name}` made the first {made.kind}"
            values = {name: values_of(x) for name, x in given.items()}
            hint = cause_of(op, values, values_of(result))
        listed = [*operands.values(), made]
        line, module = user_line(), self._layer()
        raise anomaly(headline, op.name, "forward", line, listed, hint, entered, module=module)

    def _layer(self) -> str | None:
        """Return the name of the innermost running module in the outermost one, or None.

        It is needed because the user's line may be `model(x)`, with a hundred layers in the model.
        """
        if self.module is None:
            return None
        outer = self.module.chain()[0]
        name, kind = self.module.name_in(outer), type(self.module.module).__name__
        return f"{name} ({kind}) of the {type(outer.module).__name__}" if name else f"the {kind}"

    def on_backward(self, output: Tensor, gradient: Any) -> None:
        """Look at the loss, and at the gradient that the caller passed to the backward pass."""
        self._inside = None
        self._routes.clear()
        node = output.node
        assert node is not None
        if self._is_bad(output):
            loss = Operand.of("the loss" if output.size == 1 else "the output", output)
            # With several elements, an Inf may mark one that is masked out.
            if loss.nan or output.size == 1:
                known = self.call(node).source_line
                made = "is a leaf" if node.op is None else f"was made by `{node.name}`"
                made += "" if node.op is None or known else _UNSEEN
                headline = f"backward() starts from {loss.name}, which is {loss.kind} already; it "
                headline += made
                line = known or user_line()
                raise anomaly(headline, node.name, "backward", line, [loss], self._entry([output]))
        if self._is_bad(gradient):
            seed = Operand.of("the gradient to start from", gradient)
            headline = f"backward() was handed a gradient that contains {seed.kind}"
            raise anomaly(headline, node.name, "backward", user_line(), [seed])

    def on_vjp(self, node: Node, parent: Node, gradient: Any, result: Any) -> None:
        """Note what a derivative was given and returned; `on_gradient` judges it."""
        self._derivative, self._inside = (gradient, result, self._inside), None

    def on_gradient(self, node: Node, parent: Node, gradient: Any) -> None:
        """Look at the gradient that a derivative passes on."""
        (arrived, result, inside), self._derivative = self._derivative, (None, None, None)
        if parent.op is None:
            self._routes.setdefault(parent, []).append(f"`{node.name}`{self._at(node)}")
        op = node.op
        assert op is not None
        bad = next(filter(self._is_bad, [gradient, *_tangents_of(gradient)]), None)
        if bad is None:
            return
        # Find the cause: the derivative, the gradient that it was given, or the dtype.
        edges = [edge for edge in node.edges or () if edge[0] is parent]
        inputs = " and ".join(dict.fromkeys(op.input_name(edge[1]) for edge in edges))
        vjp = f"the VJP of `{op.name}` for {inputs}"
        saved = {name: x for name, x in op.saved_values(node, edges) if _is_operand(op, name, x)}
        got = Operand.of("the gradient that arrived", arrived)
        made = Operand.of(f"the gradient for {inputs}", result)
        looked_at = [Operand.of(in_words(name), x) for name, x in saved.items()]
        operands = [got, *looked_at, made]
        hint = entered = None
        if bad is not gradient:
            slope = Operand.of(f"the derivative of the gradient for {inputs}", bad)
            operands.append(slope)
            headline = f"the derivative of {vjp} in a direction made the first {slope.kind}"
        elif self._is_bad(arrived):
            headline = f"the gradient that arrived at the result of `{op.name}` contains {got.kind}"
            headline += " already, and no VJP has made it"
            hint = _hook_or(node, "a sum of several gradients overflowed")
        elif not self._is_bad(result):
            to = Operand.of(f"what goes on to {inputs}", gradient)
            operands.append(to)
            how = f"summed over the axes that {inputs} was broadcast along"
            how = how if made.shape != to.shape else f"converted to {to.dtype}"
            headline = f"{vjp} gave finite numbers; {how}, they are {to.kind}"
            hint = overflow(parent.dtype)
        elif made.nan and (met := [each.name for each in looked_at if each.nan]):
            headline = f"{vjp} met NaN in {met[0]}"
            hint = "that was written to since the call, or the op took no notice of it there"
        else:
            headline = f"{vjp} made the first {made.kind}"
            headline += f", in `{inside}` inside it" if inside and inside != op.name else ""
            values = {name: values_of(x) for name, x in saved.items()}
            hint = cause_of_gradient(op, values, values_of(arrived), values_of(result))
            entered = self._entry(saved.values())
        known = self.call(node).source_line
        headline += "" if known else f"; it was called{_UNSEEN}"
        raise anomaly(headline, op.name, "backward", known, operands, hint, entered)

    def on_accumulate(self, node: Node, gradient: Tensor) -> None:
        """Look at the sum for a result that retains its gradient; leaves have been looked at."""
        if node.op is not None:
            self.on_arrival(node, gradient, node.grad)

    def on_arrival(self, node: Node, gradient: Any, before: Tensor | None) -> None:
        """Look at a complete gradient, and at the sum of it and the old `.grad`."""
        total = gradient
        if before is not None:
            with np.errstate(all="ignore"):
                total = before._data + values_of(gradient)
        if not self._is_bad(total) and not self._is_bad(gradient):
            return
        what = f"a leaf of shape {node.shape} and dtype {node.dtype}"
        what = what if node.op is None else f"the result of `{node.name}`{self._at(node)}"
        operands = [Operand.of("the gradient that arrived", gradient)]
        if self._is_bad(gradient):
            headline = f"the gradient of {what} contains {operands[0].kind}, and no VJP has made it"
            routes = self._routes.get(node, [])
            hint = _hook_or(node, "a sum overflowed" if len(routes) > 1 else "")
            if len(routes) > 1:
                counted = [f"{n} of {route}" for route, n in Counter(routes).items()]
                counted[SHOWN:] = ["..."] * (len(counted) > SHOWN)
                hint += f"; {len(routes)} VJPs gave gradients for it, {'; '.join(counted)}"
        else:
            assert before is not None
            old, new = Operand.of("its .grad before", before), Operand.of("the sum", total)
            operands = [old, *operands, new]
            if self._is_bad(before):
                headline = f"the .grad of {what} contains {old.kind} already"
                hint = _UNWATCHED
            else:
                headline = f"the gradient of {what}, added to the .grad it has, gives {new.kind}"
                hint = f"zero_grad() forgets earlier gradients; {overflow(node.dtype)}"
        raise anomaly(headline, node.name, "backward", user_line(), operands, hint)

    def on_step(self, optimizer: Optimizer) -> None:
        """Look at the parameters that a step has changed, and at their states."""
        name = type(optimizer).__name__
        stepped = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        for index, (parameter, group) in enumerate(stepped):
            if parameter.grad is None:
                continue
            state = optimizer.state.get(parameter, {}).items()
            arrays = {f"the state {k!r} of ": x for k, x in state if isinstance(x, np.ndarray)}
            for prefix, array in ({"": parameter._data} | arrays).items():
                if not self._is_bad(array):
                    continue
                grad = Operand.of("its .grad", parameter.grad)
                made = Operand.of(f"{prefix}the parameter", array)
                where = f"{prefix}parameter {index}"
                headline = f"the step of `{name}` made the first {made.kind}, in {where}"
                hint = f"its learning rate was {group['lr']:g}; {overflow(parameter.dtype)}"
                if grad.nan or grad.inf:
                    headline = f"the .grad of parameter {index} contained {grad.kind} already, when"
                    headline, hint = f"{headline} `{name}` took its step", _UNWATCHED
                raise anomaly(headline, name, "step", user_line(), [grad, made], hint)

    def _entry(self, values: Iterable[Any]) -> str | None:
        """Return where the Inf in these values first appeared: for the first value with a record.

        For a view, this is the record of the array that owns the memory.
        """
        arrays = [values_of(value) for value in values]
        known = (self._entries.get(x) or self._entries.get(x.base) for x in arrays)
        return next((where for where in known if where is not None), None)

    def _at(self, node: Node) -> str:
        known = self.call(node).source_line
        return f" at {known}" if known else ""


def _is_operand(op: OpLike, name: str, value: Any) -> bool:
    """Return whether an op computes with an input: an array or a number that is not an option.

    An option, such as an axis, says how to compute: it has a default and no derivative. But a
    float, such as a scale or a slope, is part of the arithmetic.
    """
    kinds = Tensor, np.ndarray, np.generic, int, float
    is_numeric = isinstance(value, kinds) and values_of(value).dtype.kind in "iuf"
    if not is_numeric or name not in op.parameters or isinstance(value, (float, np.floating)):
        return is_numeric
    index = op.parameters.index(name)
    return any(index == known for known, _ in op.vjps) or op.is_required(index)


def _tangents_of(value: Any) -> list[Tensor]:
    """Return the tangents of a value, which it has if an observer is a run of forward mode."""
    runs = (each for each in mode.observers if isinstance(each, ForwardMode))
    return [v for run in runs if isinstance(value, Tensor) for v in run.tangents(value)]


def _hook_or(node: Node, cause: str) -> str:
    """Describe where a gradient that is not from a VJP comes from: a hook if any, or this cause."""
    return ", or ".join(filter(None, ("a hook returned it" if node.hooks else "", cause)))


def _innermost() -> Detector | None:
    """Return the innermost detector that watches this thread."""
    return next((each for each in reversed(mode.observers) if type(each) is Detector), None)


class _Detection(ContextDecorator):
    """The context manager and decorator that `detect_anomaly` returns. It can be entered again."""

    def __init__(self, inf: bool) -> None:
        self._inf = inf
        self._thread = threading.local()  # several threads may be inside at once

    def __enter__(self) -> None:
        block = observe(Detector(self._inf, _innermost()))
        block.__enter__()
        vars(self._thread).setdefault("blocks", []).append(block)

    def __exit__(self, *_: object) -> None:
        open_blocks(self._thread, "detect_anomaly").pop().__exit__(None, None, None)

    def __call__(self, function: F) -> F:
        check_runs_at_once(function)
        return super().__call__(function)


@overload
def detect_anomaly(*, inf: bool = True) -> _Detection: ...
@overload
def detect_anomaly(function: F, *, inf: bool = True) -> F: ...
def detect_anomaly(function: Callable[..., Any] | None = None, *, inf: bool = True) -> Any:
    """Raise an AnomalyError in the block where the first NaN or Inf is made, and say what made it.

    Use it as `with detect_anomaly():`, or as a decorator, `@detect_anomaly` or `@detect_anomaly()`.
    The error names the op, the user's line that called the op, the range of each operand, and the
    cause if it is known. The detector looks at

    - the result of each op. If an operand is already NaN, the error names this operand. An op that
      removes a NaN, as `where(isnan(x), 0, x)` does, is not an error;
    - the gradient that each derivative passes on, its derivative in `hvp` and `hessian`, and
      gradients from a hook or from the caller. A NaN in an intermediate result of a derivative is
      not an error if the derivative drops it;
    - the gradients that will be returned or added to `.grad`, and that sum, before it is stored;
    - the loss, when a backward pass starts from it, wherever it was computed;
    - the parameters and the state of an optimiser, after its step.

    An Inf is an error if an op makes it from finite numbers, if it is in a gradient or in a trained
    leaf, or if it is the loss. In data and constants it is not an error, because a mask may contain
    -inf on purpose. Such an Inf is passed on; if it later becomes a NaN, the error says where the
    Inf first appeared. If an operand of an op already has an Inf, no Inf in the result is reported.

    With `inf=False` only NaN is an error. This is for code in which one op makes an Inf on purpose,
    such as log(0), and another op removes it.

    The detector watches the thread that enters the block; a block inside it replaces it until the
    inner block ends. Outside of blocks it costs nothing. In a block, an op and its derivative
    together take about 17 us more, and each result is read once or twice more: tanh of a million
    elements, forward and backward, takes twice as long.

    Raises:
        AnomalyError: in the block, at the first NaN or Inf; it is a FloatingPointError.
        TypeError: if `inf` is not True or False, or it decorates what is not a function, or is a
            generator or a coroutine.
    """
    if function is not None and not callable(function):
        raise TypeError(f"detect_anomaly takes a function to decorate, not {function!r:.60}")
    check_flag("detect_anomaly: inf", inf)
    detection = _Detection(bool(inf))
    return detection if function is None else detection(function)
