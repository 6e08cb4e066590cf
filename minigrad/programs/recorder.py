"""Recorder: an observer that writes a training step down, as lines of a program on arrays.

Every line is a call that the step itself makes: of the forward of an op, of a VJP, of a function
that the library announces, or of an optimiser's step. So a program computes the very bits of the
step. What is left out are Tensors, nodes, the walk through the graph, and all checks that decide
the same in every step of equal shapes.

A value is known by its array, and an array by its id while it lives. An array that nobody has
announced is a constant of the program, as a weight is.
"""

from __future__ import annotations

import itertools
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
from minigrad.core.checkpoint import CHECKPOINT
from minigrad.core.codegen import SequenceInputs, agree, as_floats
from minigrad.core.grad_mode import is_grad_enabled
from minigrad.core.node import Edge, Node
from minigrad.core.observers import Observer
from minigrad.core.op import Op
from minigrad.core.tensor import Tensor
from minigrad.optim import Optimizer
from minigrad.programs.program import EARLIER, MARK, CaptureError, Line
from minigrad.programs.surroundings import Surroundings
from minigrad.readonly import owner_of


@dataclass(eq=False)
class Recorder(Observer):
    """Writes down one step.

    Args:
        given: the arrays that the step is called with, by name.
        surroundings: what the step reads besides.

    Attributes:
        lines: the program.
        space: what its lines name: functions, constants, optimisers.
        arguments: the names of the given arrays in the lines.
        literals: the numbers in the lines.
        others: tensors that the step has used, and that are not among those of the surroundings.
    """

    given: Mapping[str, NDArray[Any]]
    surroundings: Surroundings
    lines: list[Line] = field(default_factory=list)
    space: dict[str, Any] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    literals: dict[float, None] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._names: dict[int, str] = {}  # of live arrays and other values, by id
        self._alive: dict[int, Any] = {}  # a reference to each, or the value itself
        self._owners: set[int] = set()  # ids of the memory of arguments and results
        self._sizes: set[int] = set()  # of all arrays
        self._count = 0  # of values
        self._taken = {"slice"}  # names
        self._running = 0  # passes and announced functions, inside of which nothing is a line
        self._section = "forward"
        self._pending: dict[Node, str] = {}  # the gradient that has reached a node so far
        self._reached: dict[Node, str] = {}  # the complete gradient of a node
        self._edges: dict[Node, list[Edge]] = {}  # those that have not been gone through
        self._joint: dict[Node, tuple[Line, list[str]]] = {}
        self._labels = {id(t._data): name for name, t in self.surroundings.tensors.items()}
        for name, array in self.given.items():
            if (label := self._labels.get(id(array))) is not None:
                raise CaptureError(
                    f"capture: the argument {name} is the memory of {label}, which the step reads "
                    f"as well; leave the argument out, or pass a copy"
                )
            self.arguments.append(self._register(array, self._unique(name)))
            self._owners.add(id(owner_of(array)))
            self._sizes |= _sizes_of(array)
        self._options = self._present_options()

    # ----------------------------------------------------------------------------------------------
    # Names
    # ----------------------------------------------------------------------------------------------

    def _new(self, prefix: str) -> str:
        """Return a new name of a value."""
        self._count += 1
        return f"{MARK}{prefix}{self._count}"

    def _unique(self, text: str) -> str:
        """Return an unused identifier like a text."""
        base = re.sub(r"\W+", "_", text).strip("_")
        base = base if base.isidentifier() and not iskeyword(base) else f"_{base}"
        names = (base if i == 0 else f"{base}_{i}" for i in itertools.count())
        name = next(name for name in names if name not in self._taken)
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
        if value is None or isinstance(value, int):  # an int is the same object as others
            return "_"
        if isinstance(value, np.ndarray):
            self._owners.add(id(owner_of(value)))
            self._sizes |= _sizes_of(value)
        return self._register(value, self._new(prefix))

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
            self.literals[value] = None
            return repr(value)
        if isinstance(value, slice):
            return f"slice({', '.join(map(self.name, (value.start, value.stop, value.step)))})"
        if type(value) is list:
            return f"[{', '.join(map(self.name, value))}]"
        if type(value) is tuple:
            return _tuple(map(self.name, value))
        return self._constant(value)

    def result(self, value: Any) -> str:
        """Return an expression for what the step returns, on arrays."""
        if value is None:
            return "None"
        if isinstance(value, Tensor) or (type(value) is float and id(value) in self._names):
            return self.name(value)  # such a number is one that the library has computed
        if type(value) is dict:
            items = [f"{key!r}: {self.result(each)}" for key, each in value.items()]
            return f"{{{', '.join(items)}}}"
        if type(value) is list:
            return f"[{', '.join(map(self.result, value))}]"
        if type(value) is tuple:
            return _tuple(map(self.result, value))
        raise CaptureError(
            f"capture: a step returns None, Tensors, or tuples, lists and dicts of them, not a "
            f"{type(value).__name__}, {value!r:.60}; the step has been made"
        )

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
            usual = value.name if isinstance(value, np.dtype) else type(value).__name__.lower()
            text = self._unique(label or usual)
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
        if op is CHECKPOINT:
            raise CaptureError(
                "a checkpoint is not captured; call the function itself, or run this step eagerly"
            )
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
        if begins and not self._running:
            self.check_options()
        self._running += 1 if begins else -1
        if begins or self._running:
            return
        self._options = self._present_options()
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
        if begins and not self._running:
            for known in (self._reached, self._edges, self._joint):  # of an earlier pass
                known.clear()
        self._running += 1 if begins else -1
        self._section = "backward"

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
        """Name a gradient from an earlier step; no line that is left may use the sum."""
        if node.grad is not None and id(node.grad._data) not in self._names:
            self._register(node.grad._data, self._new(EARLIER))

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

    def on_leave(self, tensor: Tensor, value: Any, how: str) -> None:
        """Refuse to let a value out of sight; `detach()` and `Tensor(x)` leave it where it is."""
        if not self._running and how not in ("detach()", "Tensor()"):
            how = ".data or .numpy()" if how == ".data" else how
            raise CaptureError(
                f"{how} takes a value out of the step, where a program cannot follow it; return "
                f"the tensor, and read it outside, or compute with ops"
            )

    def on_text(self, tensor: Tensor) -> None:
        """Refuse to print."""
        raise CaptureError(
            "a program cannot print a tensor or make a text of it; return it, and print it outside"
        )

    def on_hook(self, node: Node, begins: bool) -> None:
        """Refuse hooks."""
        raise CaptureError("a hook is not captured; compute what it does in the step itself")

    def numbers(self) -> list[float]:
        """Return the numbers in the lines that are neither in the surroundings nor sizes."""
        tensors = self.surroundings.tensors.values()
        sizes = self._sizes.union(*(_sizes_of(t._data) for t in tensors))
        return [n for n in self.literals if n not in self.surroundings.numbers | sizes | {-1, 0, 1}]

    def check_options(self) -> None:
        """Raise a CaptureError if the step itself has set an option of an optimiser."""
        if self._present_options() != self._options:
            raise CaptureError(
                "the step sets an option of an optimiser, such as its lr, which a program would "
                "not do again; step a scheduler in it, or set the option outside of the step"
            )

    def _present_options(self) -> list[dict[str, Any]]:
        groups = self.surroundings.groups
        return [{name: v for name, v in group.items() if name != "params"} for group in groups]

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


def _sizes_of(array: NDArray[Any]) -> set[int]:
    return {array.size, *array.shape}


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
