"""Recorder: an observer that writes a training step down, as lines of a program on arrays.

Every line is a call that the step itself makes: of the forward of an op, of a VJP, of a function
that the library announces, or of an optimiser's step. So a program computes the very bits of the
step. What is left out are Tensors, nodes, the walk through the graph, and all checks that decide
the same in every step of equal shapes.

A value is known by its array, and an array by its id while it lives. An array that nobody has
announced is a constant of the program, as a weight is.
"""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from keyword import iskeyword
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.core.backward import contiguous_copy, fit_to_input
from minigrad.core.codegen import SequenceInputs, agree, as_floats
from minigrad.core.grad_mode import is_grad_enabled
from minigrad.core.node import Edge, Node
from minigrad.core.observers import Observer
from minigrad.core.op import Op
from minigrad.core.tensor import Tensor
from minigrad.optim import Optimizer
from minigrad.readonly import owner_of


class CaptureError(RuntimeError):
    """A step does what cannot be captured; the message says what, and what to do instead."""


@dataclass
class Line:
    """One line of a program.

    Attributes:
        section: "forward", "backward" or "update".
        outs: the names that it assigns to, by how the result is taken apart.
        function: the name of what is called; "+" for an addition.
        arguments: expressions.
        form: what becomes of the result, with {} for the call.
        has_effect: whether the line is needed even if nobody uses its result.
    """

    section: str
    outs: str
    function: str
    arguments: list[str]
    form: str = "{}"
    has_effect: bool = False

    def __str__(self) -> str:
        call = (
            f"{self.function}({', '.join(self.arguments)})" if self.function else self.arguments[0]
        )
        call = " + ".join(self.arguments) if self.function == "+" else call
        return f"{self.outs} = {self.form.format(call)}" if self.outs else self.form.format(call)

    def names(self) -> set[str]:
        """Return the names of the values that it uses."""
        return {name for text in self.arguments for name in _NAME.findall(text)}


_NAME = re.compile(r"\b[^\W\d]\w*")


@dataclass(eq=False)
class Recorder(Observer):
    """Writes down one step.

    Args:
        arguments: the arrays that the step is called with, by name.
        tensors: tensors that exist before the step, by name.
        optimizers: whose options the step leaves to schedulers.

    Attributes:
        lines: the program.
        space: what its lines name: functions, constants, optimisers.
        literals: the numbers in the lines, each with the line that it was first seen in.
        others: tensors that the step has used, and that are not among those of the surroundings.
    """

    arguments: Mapping[str, NDArray[Any]]
    tensors: Mapping[str, Tensor]
    optimizers: Sequence[Optimizer] = ()
    lines: list[Line] = field(default_factory=list)
    space: dict[str, Any] = field(default_factory=dict)
    literals: dict[float, str] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._names: dict[int, str] = {}  # of live arrays and other values, by id
        self._alive: dict[int, Any] = {}  # a reference to each, or the value itself
        self._owners: dict[int, Any] = {}  # the memory of arguments and results, by id
        self._counts: dict[str, int] = {}
        self._taken = {*self.arguments}
        self._running = 0  # passes and announced functions, inside of which nothing is a line
        self._section = "forward"
        self._pending: dict[Node, str] = {}  # the gradient that has reached a node so far
        self._reached: dict[Node, str] = {}  # the complete gradient of a node
        self._edges: dict[Node, list[Edge]] = {}  # those that have not been gone through
        self._joint: dict[Node, tuple[Line, list[str]]] = {}
        for name, array in self.arguments.items():
            self._register(array, name)
            self._own(array)
        self._options = self._options_now()
        self._labels = {id(t._data): name for name, t in self.tensors.items()}

    # ----------------------------------------------------------------------------------------------
    # Names
    # ----------------------------------------------------------------------------------------------

    def _new(self, prefix: str) -> str:
        """Return an unused name."""
        while True:
            self._counts[prefix] = count = self._counts.get(prefix, 0) + 1
            if (name := f"{prefix}{count}") not in self._taken:
                self._taken.add(name)
                return name

    def _register(self, value: Any, name: str) -> str:
        """Let a value have this name as long as it lives."""
        key = id(value)
        self._names[key] = name
        if isinstance(value, np.ndarray):
            self._alive[key] = weakref.ref(value, lambda _: self._names.pop(key, None))
        else:
            self._alive[key] = value
        return name

    def _made(self, value: Any, prefix: str = "v") -> str:
        """Give a new name to a value that a line has made, or to each of several."""
        if isinstance(value, (tuple, list)):
            return _tuple([self._made(each, prefix) for each in value])
        if value is None:
            return "_"
        if isinstance(value, np.ndarray):
            self._own(value)
        return self._register(value, self._new(prefix))

    def _own(self, array: NDArray[Any]) -> None:
        """Note, as long as it lives, that memory belongs to an argument or a result."""
        key = id(owner_of(array))
        self._owners[key] = weakref.ref(owner_of(array), lambda _: self._owners.pop(key, None))

    def known(self, value: Any) -> str | None:
        """Return the name of a value that has one."""
        return self._names.get(id(value))

    def name(self, value: Any) -> str:
        """Return an expression for a value: its name, or a literal; else it becomes a constant."""
        if isinstance(value, Tensor):
            name = self.name(value._data)
            if name in self.space and id(value._data) not in self._labels:
                self.others[name] = value
            return name
        if (known := self._names.get(id(value))) is not None:
            return known
        if value is None or isinstance(value, (bool, str)) or value is Ellipsis:
            return repr(value)
        if type(value) is int or (type(value) is float and math.isfinite(value)):
            self.literals.setdefault(value, f"line {len(self.lines) + 1}")
            return repr(value)
        if isinstance(value, slice):
            return f"slice({', '.join(map(self.name, (value.start, value.stop, value.step)))})"
        if type(value) is list:
            return f"[{', '.join(map(self.name, value))}]"
        if type(value) is tuple:
            return _tuple(map(self.name, value))
        return self._constant(value)

    def _constant(self, value: Any, name: str | None = None) -> str:
        """Give a value that no line has made a name, by which lines use it."""
        label = self._labels.get(id(value), name)
        if isinstance(value, np.ndarray) and label is None:
            if id(owner_of(value)) in self._owners:
                raise CaptureError(
                    f"an array of shape {value.shape} is a part or another arrangement of an "
                    f"argument or a result, and was not made by an op; use Tensors and ops"
                )
            text = self._new("c")
        else:
            text = re.sub(r"\W", "_", label or type(value).__name__.lower())
            text = text if text.isidentifier() and not iskeyword(text) else f"_{text}"
            text = self._new(f"{text}_") if text in self._taken else text
            self._taken.add(text)
        self.space[text] = value
        self._alive[id(value)] = value
        self._names[id(value)] = text
        return text

    def _function(self, function: Callable[..., Any], name: str) -> str:
        """Return the name of a function; a bound method is the method of a named object."""
        owner = getattr(function, "__self__", None)
        if owner is not None and not isinstance(owner, (type, ModuleType)):
            return f"{self.name(owner)}.{function.__name__}"
        return self._names.get(id(function)) or self._constant(function, name)

    def _emit(self, outs: str, function: str, arguments: list[str], **options: Any) -> Line:
        line = Line(self._section, outs, function, arguments, **options)
        self.lines.append(line)
        return line

    # ----------------------------------------------------------------------------------------------
    # The forward pass
    # ----------------------------------------------------------------------------------------------

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Write the call of a forward, on the arrays that the op has called it with."""
        if self._running:
            return  # the call is a part of a line
        given = [inputs, *inputs.options] if isinstance(inputs, SequenceInputs) else list(inputs)
        if op.name == "getitem" and _has_mask(given[1]):
            raise CaptureError(
                "getitem: the shape of x[mask] depends on the values of the mask, and shapes in a "
                "program are fixed; use minigrad.where, or multiply by the mask"
            )
        self._section = "forward"
        is_tensor = isinstance(result, Tensor)
        called = self._converted(op, given) if is_tensor else [*map(_array_of, given)]
        arguments = [self.name(value) for value in called]
        out = result._data if is_tensor else result
        form = self._form(op, called, out) if is_tensor else "{}"
        edges = (result.node.edges or ()) if is_tensor and result.node is not None else ()
        self._name_saved(edges, called)
        name, function = self._made(out), self._function(op.forward, op.name)
        if not op.returns_residuals:
            self._emit(name, function, arguments, form=form)
            return
        slot, kept = len(given) + 2, "_"
        for _, _, vjp, *saved in edges:
            for (i, _), value in zip(vjp.slots, saved, strict=True):
                if i == slot and kept == "_":
                    kept = self._register(value, self._new("r"))
        self._emit(f"{name}, {kept}", function, arguments)
        if form != "{}":
            self._emit(name, "", [name], form=form)

    def _form(self, op: Op[Any], called: list[Any], out: NDArray[Any]) -> str:
        """Return what an op makes of the result of its forward: an array, of the right dtype."""
        form = "{}" if out.ndim else f"{self._function(np.asarray, 'asarray')}({{}})"
        dtypes = {x.dtype for x in _flat(called) if isinstance(x, np.ndarray)}
        if out.dtype.kind == "f" and {x for x in dtypes if x.kind == "f"} != {out.dtype}:
            form += f".astype('{out.dtype}', copy=False)"
        if op.cost is None and op.composition is None:
            raw = op.forward(*called)  # a function of numpy, which may return a part of an operand
            if isinstance(raw, np.ndarray) and not raw.flags.writeable and out.flags.owndata:
                form += ".copy()"
        return form

    def _converted(self, op: Op[Any], given: list[Any]) -> list[Any]:
        """Return the operands of a forward, converted as the op does; each conversion is a line."""
        called = [*map(_array_of, given)]
        if op.takes_sequence:
            arrays = agree(op, range(len(called[0])), called[0], given[0])
            called[0] = [self._cast(x, y) for x, y in zip(called[0], arrays, strict=True)]
            return called
        at = [argnum for argnum, _ in op.vjps]
        agreed = agree(op, at, [called[i] for i in at], [given[i] for i in at])
        for i, value in zip(at, agreed, strict=True):
            if op.floats and isinstance(value, np.ndarray):
                value = as_floats(op, value)
            called[i] = self._cast(called[i], value)
        return called

    def _cast(self, before: Any, after: Any) -> Any:
        """Write the conversion of an operand to another dtype, or to a number, if there is one."""
        if after is before or not isinstance(before, (np.ndarray, np.generic)):
            return after
        if isinstance(after, np.ndarray):
            arguments = [self.name(before), repr(str(after.dtype))]
            self._emit(self._made(after), self._function(np.asarray, "asarray"), arguments)
            return after
        if type(after) is not float:
            raise CaptureError(
                f"{after!r} is computed from values outside of ops, and an op takes it as a Python "
                f"integer, which a program cannot follow; use a Tensor"
            )
        self._emit(self._made(after), "", [self.name(before)], form="{}.item()")
        return after

    def _name_saved(self, edges: Sequence[Edge], called: list[Any]) -> None:
        """Let operands that the op has converted, and saved for VJPs, have the names of ours."""
        for _, _, vjp, *saved in edges:
            for (slot, shape_only), value in zip(vjp.slots, saved, strict=True):
                if not shape_only and slot < len(called):
                    for theirs, own in zip(_flat([value]), _flat([called[slot]]), strict=True):
                        known = self._names.get(id(own))
                        if isinstance(theirs, (np.ndarray, float)) and theirs is not own and known:
                            self._register(theirs, known)

    def on_function(
        self, function: Callable[..., Any], arguments: Sequence[Any], begins: bool, result: Any
    ) -> None:
        """Write the call of a function that is no op."""
        if not self._running:
            self.check_options()
        self._running += 1 if begins else -1
        if begins or self._running:
            return
        self._options = self._options_now()
        first = arguments[0] if arguments else None
        is_copy = function is contiguous_copy and isinstance(first, np.ndarray)
        if is_copy and result.strides == first.strides:  # type: ignore[union-attr]
            self._register(result, self.name(first))  # nothing writes to either
            return
        name = self._function(function, function.__name__.strip("_"))
        if (getattr(function, "__module__", None) or "").startswith("minigrad.optim"):
            self._section = "update"
        named = [self.name(_array_of(argument)) for argument in arguments]
        if function is np.add:
            self._register(result, self._sum(*named))
            return
        outs = "" if result is None else self._made(result)
        self._emit(outs, name, named, has_effect=function is not contiguous_copy)

    # ----------------------------------------------------------------------------------------------
    # The backward pass
    # ----------------------------------------------------------------------------------------------

    def on_backward(self, output: Tensor, gradient: Any) -> None:
        """Begin with the gradient of the output."""
        self._section = "backward"
        assert output.node is not None
        seed = self.known(gradient) or self._constant(gradient, "seed")
        before = self._pending.get(output.node)
        self._pending[output.node] = seed if before is None else self._sum(before, seed)

    def _sum(self, a: str, b: str) -> str:
        total = self._new("g")
        self._emit(total, "+", [a, b])
        return total

    def on_pass(self, begins: bool) -> None:
        """Note that VJPs run, whose calls of ops are no lines."""
        if begins and is_grad_enabled():
            raise CaptureError(
                "create_graph: a backward pass that is recorded in a graph is not captured; leave "
                "gradients of gradients to a function outside of the step"
            )
        self._running += 1 if begins else -1
        self._section = "backward"
        if not self._running:
            self._edges.clear()

    def on_vjp(self, node: Node, parent: Node, gradient: Any, result: Any) -> None:
        """Write the call of a VJP; one for several inputs is one line."""
        if node.hooks or node.retains_grad:
            raise CaptureError(
                f"hooks and retain_grad() are not captured, and the result of `{node.name}` has "
                f"one; return what the step is to show"
            )
        op: Any = node.op
        if node not in self._reached:
            self._reached[node] = self._pending.pop(node)
            self._edges[node] = list(node.edges or ())
        g, edges = self._reached[node], self._edges[node]
        _, argnum, vjp, *saved = edges.pop(next(i for i, e in enumerate(edges) if e[0] is parent))
        self._raw = result
        if op.plain and result is gradient:
            self._arriving = g
            return
        name = f"{op.name}_vjp"
        if op.plain:
            name += f"_{op.parameters[0 if op.takes_sequence else argnum]}"
        name = self._function(vjp.derivative, name)
        if op.plain:
            self._arriving = self._new("g")
            form = "{}"
            if isinstance(result, np.generic):
                form = f"{self._function(np.asarray, 'asarray')}({{}})"
            self._emit(self._arriving, name, [g, *map(self.name, saved)], form=form)
            return
        if node not in self._joint:
            line = self._emit("", name, [g, "", *map(self.name, saved)])
            self._joint[node] = line, ["_"] * len(op.argnums)
        line, outs = self._joint[node]
        self._arriving = outs[op.argnums.index(argnum)] = self._new("g")
        line.outs = _tuple(outs)
        line.arguments[1] = str(tuple(out != "_" for out in outs))

    def on_gradient(self, node: Node, parent: Node, gradient: Any) -> None:
        """Write the sum over broadcast axes, and that of all gradients of a value."""
        name, raw = self._arriving, self._raw
        if raw.shape != gradient.shape or raw.dtype != gradient.dtype:
            arguments = [name, self.name(gradient.shape), repr(str(gradient.dtype))]
            name = self._new("g")
            self._emit(name, self._function(sum_to, "sum_to"), arguments)
        before = self._pending.get(parent)
        self._pending[parent] = name if before is None else self._sum(before, name)
        del self._raw

    def on_arrival(self, node: Node, gradient: Any, before: Tensor | None) -> None:
        """Name the complete gradient of a leaf."""
        name = self._reached.get(node) or self._pending.pop(node)
        self._register(gradient, name)

    def on_accumulate(self, node: Node, gradient: Tensor) -> None:
        """Refuse to add to a gradient that is there from an earlier step."""
        if node.grad is not None and id(node.grad._data) not in self._names:
            raise CaptureError(
                "a parameter has a gradient from an earlier step; begin the step with "
                "optimizer.zero_grad(), or model.zero_grad() if the optimiser has not all of them"
            )

    # ----------------------------------------------------------------------------------------------
    # The update, and what cannot be done again
    # ----------------------------------------------------------------------------------------------

    def on_step(self, optimizer: Optimizer) -> None:
        """Write the steps of the groups of an optimiser."""
        if type(optimizer).step is not Optimizer.step:
            raise CaptureError(
                f"{type(optimizer).__name__} defines a step() of its own; define update() or "
                f"update_all() instead"
            )
        self._section = "update"
        for group in optimizer.param_groups:
            stepped = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad._data for p in stepped]
            if any(id(g) not in self._names for g in gradients):
                raise CaptureError(
                    "the optimiser steps with a gradient that this step has not computed; begin "
                    "the step with optimizer.zero_grad()"
                )
            if stepped:
                known = self._names.get(id(group)) or self._constant(group, "group")
                arguments = [known, self._constant(stepped, "parameters"), self.name(gradients)]
                name = self._function(optimizer.step_group, "step_group")
                self._emit("", name, arguments, has_effect=True)

    def _options_now(self) -> list[tuple[str, Any]]:
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        return [item for group in groups for item in group.items() if item[0] != "params"]

    def check_options(self) -> None:
        """Refuse to set options of an optimiser by hand, which are none of a program's values."""
        if self._options != (now := self._options_now()):
            name = next(
                (b[0] for a, b in zip(self._options, now, strict=False) if a != b), "groups"
            )
            raise CaptureError(
                f"the step sets {name} of an optimiser, which no line of a program would do; set "
                f"it outside of the step, since it is read anew in each call, or by a scheduler"
            )

    def on_leave(self, tensor: Tensor, value: Any, how: str) -> None:
        """Refuse to let a value out of sight; `detach()` and `Tensor(x)` leave it where it is."""
        if not self._running and how not in ("detach()", "Tensor()"):
            raise CaptureError(
                f"{how} takes a value out of the step, where a program cannot follow it; return "
                f"the tensor, and read it outside, or compute with ops"
            )

    def on_hook(self, node: Node, begins: bool) -> None:
        """Refuse hooks."""
        raise CaptureError("a hook is not captured; compute what it does in the step itself")

    def on_rerun(self, begins: bool) -> None:
        """Refuse checkpoints."""
        raise CaptureError(
            "a checkpoint is not captured; call the function itself, or run this step eagerly"
        )

    def on_free(self, node: Node) -> None:
        """Forget the arrays of a node whose VJPs have run."""
        self._edges.pop(node, None)
        self._joint.pop(node, None)


def _tuple(texts: Iterable[str]) -> str:
    """Return the expression for a tuple of expressions."""
    parts = list(texts)
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"


def sum_to(g: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """Sum a gradient over the axes that broadcasting has stretched, and convert it."""
    place: Any = SimpleNamespace(shape=shape, dtype=np.dtype(dtype))
    return fit_to_input(g, place, place, 0)


def _array_of(value: Any) -> Any:
    """Return the array of a Tensor, and those of the Tensors in a list or tuple."""
    if isinstance(value, Tensor):
        return value._data
    if type(value) in (list, tuple, SequenceInputs):
        return (tuple if type(value) is tuple else list)(map(_array_of, value))
    return value


def _flat(values: Any) -> Iterator[Any]:
    """List values, and those in lists and tuples among them."""
    for value in values:
        if type(value) in (list, tuple):
            yield from _flat(value)
        else:
            yield value


def _has_mask(index: Any) -> bool:
    return any(getattr(part, "dtype", None) == np.bool_ for part in _flat([index]))
