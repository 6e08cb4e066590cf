"""StepRecorder: an observer that records a training step as lines of a program on arrays.

Every line is a call that the step itself makes: of the forward function of an op, of a VJP, of a
function that the library reports to observers, or of an optimiser's step. So a program computes the
same bits as the step. Tensors, nodes and the walk through the graph are left out, and also checks
with the same result in every step with equal shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.core.backward import add, contiguous_copy, fit_to_input
from minigrad.core.codegen import SequenceInputs, agree, array_of, as_floats, view
from minigrad.core.grad_mode import is_grad_enabled, mode
from minigrad.core.node import Edge, Node, arrays_in
from minigrad.core.observers import Observer
from minigrad.core.op import Op
from minigrad.core.tensor import Tensor
from minigrad.functional.indexing import one_hot_rows
from minigrad.optim import Optimizer
from minigrad.programs.names import (
    EARLIER,
    CaptureError,
    StepMadeError,
    StepNumber,
    ValueNames,
    as_tuple,
    refused,
)
from minigrad.programs.program import ProgramLine
from minigrad.programs.surroundings import Surroundings, codes, is_known
from minigrad.transforms.checkpoint import CHECKPOINT

DRAWS = (
    "the step draws random numbers from a generator, which a program would not do again; draw by "
    "minigrad.rand(..., rng=generator) and the like, or outside of the step, and pass the numbers "
    "as arguments"
)


class StepRecorder(Observer):
    """Record one step; `names` has the names of the values in its lines."""

    def __init__(self, names: ValueNames) -> None:
        self.names, self.surroundings = names, names.surroundings
        self.lines: list[ProgramLine] = []
        self.has_stepped = False  # whether an optimiser has made its step
        self._running = 0  # passes and reported functions; calls inside are not lines
        self._section = "forward"
        self._pending: dict[Node, str] = {}  # the sum of gradients that have reached a node so far
        self._reached: dict[Node, str] = {}  # the complete gradient of a node
        self._edges: dict[Node, Iterator[Edge]] = {}  # edges that have not been visited
        self._joint: dict[Node, tuple[ProgramLine, list[str]]] = {}  # lines with several gradients
        self._state = self.surroundings.state()
        refused.text = ""

    def _emit(self, outs: str, expression: str, has_effect: bool = False) -> ProgramLine:
        line = ProgramLine(self._section, outs, expression, has_effect)
        self.lines.append(line)
        return line

    # ----------------------------------------------------------------------------------------------
    # The forward pass
    # ----------------------------------------------------------------------------------------------

    def on_call(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        """Record the call of a forward function, with the arrays that the op passed to it."""
        if self._running:
            return  # the call is inside of another line
        inner = mode.observers[-1]
        if inner is not self and not inner.is_internal:
            raise CaptureError(
                f"a program has no observers, so a {type(inner).__name__} inside of the step would "
                f"see nothing; write the block (detect_anomaly, receipt, observe) around the calls "
                f"of the captured step, which then run eagerly"
            )
        if op is CHECKPOINT:
            raise CaptureError(
                "a checkpoint is not captured; call the function itself, or run this step eagerly"
            )
        given = [inputs, *inputs.options] if isinstance(inputs, SequenceInputs) else list(inputs)
        if op.name == "getitem" and any(x.dtype == np.bool_ for x in arrays_in(given[1])):
            raise CaptureError(
                "getitem: the shape of x[mask] depends on the values of the mask, and shapes in a "
                "program are fixed; use minigrad.where, or multiply by the mask"
            )
        self._section = "forward"
        called, out = [*map(array_of, given)], result
        saved: list[tuple[tuple[int, bool], Any]] = []  # slots of VJPs, and the values in them
        if isinstance(result, Tensor):
            for _, _, vjp, *values in (result.node and result.node.edges) or ():
                saved += zip(vjp.slots, values, strict=True)
            converted, out = _converted(op, called, given), result._data
            for (slot, shape_only), value in saved:
                if slot < len(called) and not shape_only:
                    converted[slot] = value  # the VJP gets this equal value
            called = [*map(self._cast, called, converted)]
        passed, options = op.passed([*map(self.names.name, called)])
        name = self.names.made(out)  # after the arguments: the output may be a view of a constant
        passed = [*passed, *(f"{key}={value}" for key, value in options.items())]
        call = self.names.call(op.forward, passed, op.name)
        if op.returns_residuals:
            residuals = self.names.new("r")
            for (slot, _), value in saved:
                if slot == len(given) + 2:
                    self.names.register(value, residuals)
            self._emit(f"{name}, {residuals}", call)
            call = name
        if isinstance(result, Tensor):
            call = self._as_output(op, called, out, call)
        if call != name:
            self._emit(name, call)

    def _as_output(self, op: Op[Any], called: list[Any], out: NDArray[Any], call: str) -> str:
        """Return the expression for an op's output: the forward's result as array, converted."""
        if not is_known(getattr(op.forward, "__module__", None)):
            return self.names.call(output_of, [call, f"'{out.dtype}'"])
        if not out.ndim:
            call = self.names.call(np.asarray, [call])
        floats = {x.dtype for x in arrays_in(called) if x.dtype.kind == "f"}
        if out.dtype.kind == "f" and floats != {out.dtype}:
            call += f".astype('{out.dtype}', copy=False)"
        if op.cost is None and op.composition is None:
            passed, options = op.passed(called)
            raw = op.forward(*passed, **options)  # a numpy function, which may return a view
            if isinstance(raw, np.ndarray) and not raw.flags.writeable and out.flags.owndata:
                call += ".copy()"
        return call

    def _cast(self, before: Any, after: Any) -> Any:
        """Record the conversion of an operand to another dtype or to a number, if there is one."""
        if type(before) is type(after) is list:
            return [*map(self._cast, before, after)]
        if after is before or not isinstance(before, (np.ndarray, np.generic)):
            return after
        if type(after) is int and isinstance(before, np.generic):
            return after  # a literal
        name = self.names.name(before)
        if isinstance(after, np.ndarray):
            converted = self.names.call(np.asarray, [name, f"'{after.dtype}'"])
        elif type(after) is float:
            converted = f"{name}.item()"
        else:
            raise CaptureError(
                f"{after!r} is computed from values outside of ops, and an op takes it as a Python "
                f"integer, which a program cannot follow; use a Tensor"
            )
        self._emit(self.names.made(after), converted)
        return after

    def on_function(
        self, function: Callable[..., Any], arguments: Sequence[Any], begins: bool, result: Any
    ) -> None:
        """Record the call of a function that is not an op."""
        if function is np.nonzero or (function is one_hot_rows and arguments[1] is None):
            raise CaptureError(
                f"{function.__name__}: the size of the result depends on values, and shapes in a "
                f"program are fixed; use minigrad.where, or give one_hot its num_classes"
            )
        if begins and not self._running:
            self.check_state()
        self._running += 1 if begins else -1
        if begins or self._running:
            return
        self._state = self.surroundings.state()
        if (getattr(function, "__module__", None) or "").startswith("minigrad.optim"):
            self._section = "update"
        call = self.names.call(function, [self.names.name(array_of(each)) for each in arguments])
        outs = "" if result is None else self.names.made(result)
        self._emit(outs, call, has_effect=function not in (contiguous_copy, add))

    def on_result(self, result: Any) -> Any:
        """Replace each number by a StepNumber."""
        if type(result) in (tuple, list):
            return type(result)(map(self.on_result, result))
        return StepNumber(result) if type(result) is float and self._running == 1 else result

    # ----------------------------------------------------------------------------------------------
    # The backward pass
    # ----------------------------------------------------------------------------------------------

    def on_backward(self, output: Tensor, gradient: Any) -> None:
        """Record the gradient that a backward pass starts from."""
        if isinstance(gradient, Tensor):
            self._refuse_graph()
        self._section = "backward"
        assert output.node is not None
        self._reach(output.node, self.names.constant(gradient, "seed"))

    def _reach(self, node: Node, name: str) -> None:
        """Record that one more gradient has reached a node."""
        before = self._pending.get(node)
        if before is not None:
            total, both = self.names.new("g"), f"{before} + {name}"
            self._emit(total, both if node.shape else self.names.call(np.asarray, [both]))
            name = total
        self._pending[node] = name

    def on_pass(self, begins: bool) -> None:
        """Record that VJPs run: their calls of ops are not lines."""
        if begins and is_grad_enabled():
            self._refuse_graph()
        if begins and not self._running:
            for known in (self._reached, self._edges, self._joint):  # of an earlier pass
                known.clear()
        self._running += 1 if begins else -1

    def _refuse_graph(self) -> None:
        """Raise an error for a backward pass under `create_graph`."""
        raise CaptureError(
            "a backward pass that is recorded in a graph is not captured: with create_graph=True, "
            "in hvp and hessian, or in gradient, vjp and the like where an argument or a parameter "
            "of the function requires a gradient; call these under minigrad.no_grad(), or leave "
            "gradients of gradients to a function outside of the step"
        )

    def on_vjp(self, node: Node, parent: Node, gradient: Any, result: Any) -> None:
        """Record the call of a VJP; a joint VJP for several inputs is one line."""
        if node.retains_grad:
            raise CaptureError(
                f"retain_grad() is not captured; return the result of `{node.name}`, or take its "
                f"gradient by minigrad.grad"
            )
        op: Any = node.op
        if isinstance(result, Tensor):
            raise CaptureError(
                f"the VJP of `{op.name}` returned a Tensor, and its arguments are arrays; write it "
                f"with ops or numpy functions of its arguments, which then return arrays"
            )
        if node not in self._reached:
            self._reached[node] = self._pending.pop(node)
            self._edges[node] = iter(node.edges or ())
        g = self._reached[node]
        _, argnum, vjp, *saved = next(edge for edge in self._edges[node] if edge[0] is parent)
        arguments = [g, *map(self.names.name, saved)]
        name = f"{op.name}_vjp"
        if op.plain and result is gradient:
            out = g
        elif op.plain:
            out = self.names.new("g")
            name += f"_{op.parameters[0 if op.takes_sequence else argnum]}"
            call = self.names.call(vjp.derivative, arguments, name)
            is_number = isinstance(result, np.generic)
            self._emit(out, self.names.call(np.asarray, [call]) if is_number else call)
        else:
            if node not in self._joint:
                self._joint[node] = self._emit("", ""), ["_"] * len(op.vjps)
            line, outs = self._joint[node]
            out = outs[list(op.vjp_of).index(argnum)] = self.names.new("g")
            arguments.insert(1, str(tuple(each != "_" for each in outs)))  # needs_input_grad
            line.outs = as_tuple(outs)
            line.expression = self.names.call(vjp.derivative, arguments, name)
        self._arriving = out, result

    def on_gradient(self, node: Node, parent: Node, gradient: Any) -> None:
        """Record the sum over broadcast axes, and the sum of all gradients of a value."""
        name, result = self._arriving
        del self._arriving  # with the array
        if result.shape != gradient.shape or result.dtype != gradient.dtype:
            arguments = [name, self.names.name(gradient.shape), f"'{gradient.dtype}'"]
            name = self.names.new("g")
            self._emit(name, self.names.call(sum_to, arguments))
        self._reach(parent, name)

    def on_free(self, node: Node) -> None:
        """Delete the references to arrays of a node whose VJPs have run."""
        self._edges.pop(node, None)

    def on_arrival(self, node: Node, gradient: Any, before: Tensor | None) -> None:
        """Give a name to the complete gradient of a leaf."""
        self.names.register(gradient, self._reached.get(node) or self._pending.pop(node))

    def on_accumulate(self, node: Node, gradient: Tensor) -> None:
        """Give a name to a gradient from an earlier step; the program must not use the sum."""
        if node.grad is not None and not self.names.known(node.grad._data):
            self.names.register(node.grad._data, self.names.new(EARLIER))

    # ----------------------------------------------------------------------------------------------
    # The update, and events that a program cannot repeat
    # ----------------------------------------------------------------------------------------------

    @contextmanager
    def errors_tell(self) -> Iterator[None]:
        """Add to a CaptureError that the optimiser has made its step, if it has."""
        try:
            yield
        except CaptureError as error:
            if self.has_stepped and not isinstance(error, StepMadeError):
                error.args = (f"{error}; the step of the optimiser has been made",)
            raise

    def on_step(self, optimizer: Optimizer) -> None:
        """Record the step of each group of an optimiser."""
        self.has_stepped = True
        if type(optimizer).step is not Optimizer.step:
            raise CaptureError(
                f"{type(optimizer).__name__} defines a step() of its own; define update() or "
                f"update_all() instead"
            )
        self._section = "update"
        if len(optimizer.param_groups) > 1:
            self._emit("", self.names.call(optimizer.check_groups, []), has_effect=True)
        for group in optimizer.param_groups:
            stepped = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad._data for p in stepped]
            if not all(map(self.names.known, gradients)):
                raise CaptureError(
                    "the optimiser steps with a gradient that this step has not computed; begin "
                    "the step with optimizer.zero_grad()"
                )
            if stepped:
                arguments = [
                    self.names.constant(group, "group"),
                    self.names.constant(stepped, "parameters"),
                    self.names.name(gradients),
                ]
                call = self.names.call(optimizer.step_group, arguments)
                self._emit("", call, has_effect=True)

    def on_leave(self, tensor: Tensor, value: Any, how: str) -> None:
        """Raise an error if a value leaves the step, for example by `item()`; `detach()` may."""
        if how == ".data =" and not self._running:
            raise CaptureError(
                "an assignment to .data gives a tensor other memory, which a program would not do "
                "again; write into the memory that it has, with copy_"
            )
        if not self._running and how not in ("detach()", "Tensor()"):
            how = ".data or .numpy()" if how == ".data" else how
            raise CaptureError(
                f"{how} takes a value out of the step, where a program cannot follow it; return "
                f"the tensor, and read it outside, or compute with ops"
            )

    def on_text(self, tensor: Tensor) -> None:
        """Raise an error if values are formatted as text, because a program cannot print them."""
        raise CaptureError(
            "a program cannot print a tensor or format it as text; return it, and print it outside"
        )

    def on_hook(self, node: Node, begins: bool) -> None:
        """Raise an error for a hook."""
        raise CaptureError("a hook is not captured; compute what it does in the step itself")

    def on_random(self, generator: np.random.Generator) -> None:
        """Raise an error for a draw that is not reported, such as that of `nn.init.normal_`."""
        if not self._running:
            raise CaptureError(DRAWS)

    def check_written(self) -> None:
        """Raise a CaptureError if the step has written to a plain array."""
        if written := self.surroundings.written():
            raise CaptureError(
                f"capture: the step writes to {', '.join(written)}, a numpy array, which a program "
                f"would not do again; make it a Tensor and write with copy_, or pass it to the "
                f"step and return the new one"
            )

    def check_state(self) -> None:
        """Raise a CaptureError if the step has changed a value that programs read again.

        Also raise one that the step has caught, because a program would not raise it.
        """
        if refused.text:  # the step has caught an error
            raise CaptureError(refused.text)
        settings, draws = self.surroundings.state()
        for path, before in self._state[0].items():
            if settings[path] != before:
                raise CaptureError(
                    f"the step sets an option or the state of {path}, as by an assignment, "
                    f"load_state_dict() or applied(), which a program would not do again; step a "
                    f"scheduler in it, or do that outside of the step"
                )
        if draws != self._state[1]:
            raise CaptureError(
                f"{DRAWS}; if another thread draws from this generator, give the thread one of its "
                f"own"
            )


def output_of(result: Any, dtype: str) -> NDArray[Any]:
    """Return the result of a forward function of the user's as the op does: see `codegen`."""
    out = np.asarray(result).astype(dtype, copy=False)
    return out if out.base is None else view(out, ())


def sum_to(g: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """Sum a gradient over the axes that were broadcast, and convert it."""
    target: Any = SimpleNamespace(shape=shape, dtype=np.dtype(dtype))
    return fit_to_input(g, target, target, 0, create_graph=False)


def _converted(op: Op[Any], called: list[Any], given: list[Any]) -> list[Any]:
    """Return the operands of a forward function, converted as the op converts them."""
    if op.takes_sequence:
        return [list(agree(op, range(len(called[0])), called[0], given[0])), *called[1:]]
    converted, at = [*called], [argnum for argnum, _ in op.vjps]
    agreed = agree(op, at, [called[i] for i in at], [given[i] for i in at])
    for i, value in zip(at, agreed, strict=True):
        converts = op.floats and isinstance(value, np.ndarray)
        converted[i] = as_floats(op, value) if converts else value
    return converted


def check_code(step: Callable[..., Any], surroundings: Surroundings) -> None:
    """Raise a CaptureError if a step prints, reads values, or draws from iterators.

    The methods of other classes may only have the names of methods that the step calls. So if these
    read values, the recorder raises the error when they do.
    """
    for path in surroundings.iterators():
        raise CaptureError(
            f"capture: the step reads {path}, an iterator, and a program cannot follow how far it "
            f"is; take the next value outside of the step, and pass it as an argument"
        )
    whole = getattr(step, "func", step)  # of a partial
    kinds = type(getattr(whole, "__self__", whole)).__mro__
    inside = getattr(whole, "__qualname__", "").rpartition(".")[0]
    own = {"", inside, *(kind.__qualname__ for kind in kinds)}
    for function in surroundings.functions:
        name = function.__qualname__
        owner = name.rpartition(".")[0]  # the class, or the function, in which it is defined
        is_own = owner in own or owner.endswith("<locals>")
        refused = {"print", "pprint"} | ({"item", "tolist"} if is_own else set())
        for each in sorted(refused & {each for code in codes(function) for each in code.co_names}):
            raise CaptureError(
                f"capture: {name} calls {each}(), which a program cannot do again; return the "
                f"tensor, and call {each}() outside of the step"
            )
