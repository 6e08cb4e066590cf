"""An op: its forward function on arrays, and one VJP for each input.

    @op
    def multiply(a, b):
        return np.multiply(a, b)

    multiply.vjp("a", lambda g, b: g * b)
    multiply.vjp("b", lambda g, a: g * a)

The parameters of a VJP name what it needs: the arriving gradient `g`, then parameters of the op,
`out` for the result, or `a_shape` for only the shape of `a`. The names are read once, when the VJP
is defined. When the op is called, only the VJPs of inputs that need a gradient are recorded, and
only the values that these VJPs name are saved. For a frozen weight, for example, matmul's VJP is
not recorded, its product never runs, and the activation is not saved for it.

A VJP is written with ops, and an op that is called on plain arrays only runs its forward function.
So an ordinary backward pass computes with numpy on arrays. Under `create_graph`, the same code gets
Tensors and records a graph: this gives derivatives of any order.

Three cases need more: ops with a sequence of inputs (`Op.vjp`), inputs whose derivatives share work
(`Op.joint_vjp`), and fused ops, which name the `composition` that they replace (`op`).

An op also declares what the diagnostics cannot find out, such as the FLOPs of a kernel. They find
everything else in the definition of the op: the FLOPs of a VJP, for example, by running it (see
`minigrad.diagnostics.cost_receipt.costs`). So no other file needs to know a particular op.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, update_wrapper
from inspect import Parameter
from types import MethodType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, overload

import numpy as np

from minigrad.checks import check_flag, nearest
from minigrad.core.backward import propagate
from minigrad.core.codegen import on_sequence, write
from minigrad.core.grad_mode import grad_mode
from minigrad.core.node import NOT_INPUTS, Cost, Edge, Hint, Node, OpLike
from minigrad.core.tensor import Tensor
from minigrad.errors import op_error
from minigrad.renamed import instead, instead_of_argument, missing, with_hints

P = ParamSpec("P")

OPS: dict[str, Op[Any]] = {}
"""Every op of the library by name. Ops that you define yourself are not listed."""

_RESERVED = {"g", "needs_input_grad", *NOT_INPUTS}
"""Names with a special meaning in a VJP."""

_INSTEAD_OF_A_FUNCTION: dict[str, tuple[Any, str]] = {
    "cost": ((int, np.integer), "an integer or a function"),
    "shape": ((), "a function"),
    "hint": (str, "a text, a function that returns one, or a dict of texts with such functions"),
}
"""For a cost, a shape and a hint: what may be given instead of a function, and the description."""


class VJP:
    """A VJP or a JVP of an op, and the values that it needs; for a VJP, a call saves them."""

    __slots__ = ("cost", "derivative", "names", "slots")

    def __init__(
        self,
        op: Op[Any],
        derivative: Callable[..., Any],
        leading: tuple[str, ...],
        cost: Cost | Mapping[str, Cost] | None = None,
    ) -> None:
        names = tuple(inspect.signature(derivative).parameters)
        is_jvp = leading == ("tangents",)
        kind = "JVP" if is_jvp else "VJP"
        if names[: len(leading)] != leading:
            raise ValueError(
                f"a {kind} of `{op.name}` takes {', '.join(leading)} first, "
                f"not {', '.join(names)}{''.join(instead('Op', name) for name in names)}"
            )
        special = ["out"] if is_jvp else ["out", "argnum"]
        if op.returns_residuals and not is_jvp:  # forward mode does not keep them
            special.append("residuals")
        known = {name: index for index, name in enumerate((*op.parameters, *special))}
        self.names = names[len(leading) :]  # the parameters after `leading`
        # For each of them: its index in `known`, and whether it is only a shape.
        self.slots: list[tuple[int, bool]] = []
        for name in self.names:
            shape_only = name not in known
            slot = known.get(name.removesuffix("_shape") if shape_only else name)
            if slot is None:
                raise ValueError(
                    f"a {kind} of `{op.name}` asks for {name!r}{instead('Op', name)}; it can have "
                    f"{leading[0]}, out and {', '.join(op.parameters)}, or the shape of one, as "
                    f"{op.parameters[0]}_shape"
                )
            self.slots.append((slot, shape_only))
        self.derivative = derivative  # called as `derivative(*leading, *saved)`
        self.cost = cost  # FLOPs (by input name for a joint VJP); None: found by a run


class Op(OpLike, Generic[P]):
    """A function of tensors that knows its derivatives; the decorator `op` makes one.

    If an argument is a Tensor, the op returns a Tensor; for plain arrays, it returns a plain array.

    Attributes:
        name: the name of the forward function.
        forward: the function on arrays. It returns a new array or a view, and has no side effects.
        signature: the parameters of the forward function, both inputs and options.
        parameters: the names of the parameters.
        vjps: a pair `(argnum, vjp)` for each differentiable input.
        vjp_of: the same pairs as a dict.
        own_jvp: the JVP, if there is one (see `Op.jvp`).
        composition, replayed, ..., gradient_hint: the properties that were given to `op`.
        flops_cache: the FLOPs of calls and VJPs found so far, by signature, for receipts.
        plain: whether every input has its own VJP.
        takes_sequence: whether the inputs are the elements of the first parameter, a sequence.
        call: the function that a call of the op runs; calling it directly is a little faster.
    """

    def __init__(self, forward: Callable[P, Any], **properties: Any) -> None:
        if not hasattr(forward, "__name__"):  # its attributes would become those of the op as well
            raise TypeError(
                f"an op is made of a function, not of {forward!r:.60}; a function can call that, "
                f"such as op(lambda x: forward(x))"
            )
        vars(self).update(properties)
        for name in ("replayed", "elementwise", "floats", "returns_residuals", "product"):
            check_flag(name, getattr(self, name))
        self.replayed |= self.returns_residuals  # residuals have no node in the graph
        if self.replayed and self.composition is None:
            raise ValueError("an op with replayed=True or residuals must name the composition")
        self.forward = forward
        self.flops_cache: dict[Any, int | None] = {}
        self.plain = True
        self.set_vjps([])
        self.own_jvp: VJP | None = None
        self.signature = inspect.signature(forward)
        for name, parameter in self.signature.parameters.items():
            if name.startswith("_") or name in _RESERVED:
                raise ValueError(f"a parameter of an op cannot be named {name!r}")
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise ValueError(
                    f"an op names all its parameters; {parameter} does not (many inputs are one "
                    f"parameter, a sequence, with a VJP that names `argnum`)"
                )
        self.parameters = tuple(self.signature.parameters)
        kinds = [parameter.kind for parameter in self.signature.parameters.values()]
        self._by_position = sum(kind is not Parameter.KEYWORD_ONLY for kind in kinds)
        self.takes_sequence = False
        self.name = forward.__name__
        update_wrapper(self, forward)
        for kind in ("cost", "shape", "nonfinite_hint"):
            self._check(kind, getattr(self, kind), "out")
        self._check("gradient_hint", self.gradient_hint, "out", "g", "gradient")
        for kind in ("linear", "fresh"):
            if isinstance(names := getattr(self, kind), str):
                accepted = f"a list of names, such as [{names!r}]"
                raise TypeError(f"{kind} of `{self.name}` is {accepted}, not {names!r}")
            for name in names:
                self._argnum(name)

    def __reduce__(self) -> str:
        """Return the name, by which unpickling finds the op in its module; a copy is the op."""
        name: str = vars(self)["__qualname__"]
        return name

    def __repr__(self) -> str:
        return f"<op {self.name}({', '.join(self.parameters)})>"

    if not TYPE_CHECKING:  # type checkers would take an attribute such as `node.op` for a method

        def __get__(self, owner, kind=None):
            """Make an op in a class a method, like a function; `help` detects functions by this."""
            return self if owner is None else MethodType(self, owner)

        def __getattr__(self, name):
            """Raise an error; if an attribute was renamed, the message has its new name."""
            raise missing("Op", name, self)

    # ----------------------------------------------------------------------------------------------
    # VJPs
    # ----------------------------------------------------------------------------------------------

    def vjp(
        self, name: str, derivative: Callable[..., Any] | None = None, *, cost: Cost | None = None
    ) -> Callable[..., Any]:
        """Define the VJP of the input `name`. Without `derivative`, return a decorator.

        Given g = dL/d(out), a VJP returns dL/d(input). It may ignore broadcasting and dtypes. It is
        written with ops, the operators + - * / ** and comparisons, and writes to no array. If it
        names `argnum`, the input is a sequence of arrays, and the VJP is for one of them. `cost` is
        the FLOPs of a VJP that is not written with ops, as for `op`.

        Raises:
            ValueError: if the input does not exist or already has a VJP, or the VJP names a value
                that the op does not have.
            TypeError: if the name of the input is missing.
        """
        argnum = self._argnum(name)
        if derivative is None:
            return lambda function: self.vjp(name, function, cost=cost)
        if not self.plain or self.takes_sequence:
            raise ValueError(
                f"`{self.name}` has a VJP for several inputs at once, which must be the only one"
            )
        if argnum in self.vjp_of:
            raise ValueError(
                f"`{self.name}` already has a VJP for {name!r}; make the op again, with "
                f"`minigrad.op`, to give it another one"
            )
        self._check("cost", cost, "out")
        vjp = VJP(self, derivative, ("g",), cost)
        if any(slot == len(self.parameters) + 1 for slot, _ in vjp.slots):
            if argnum != 0 or self.replayed or self.vjps:
                raise ValueError(
                    f"`{self.name}`: a sequence of inputs is the first parameter, has the only "
                    f"VJP, and is not replayed"
                )
            self.takes_sequence = True
        self.set_vjps([*self.vjps, (argnum, vjp)])
        return derivative

    def joint_vjp(
        self,
        names: Sequence[str],
        derivative: Callable[..., Any],
        *,
        cost: Mapping[str, Cost] | None = None,
    ) -> None:
        """Define one VJP for several inputs; `derivative` returns a gradient for each of them.

        It is called as `derivative(g, needs_input_grad, ...)`. `needs_input_grad` has a bool for
        each of `names`; where it is False, the gradient may be None. `cost` is needed for a VJP
        that is not written with ops. It is a dict with FLOPs, as for `op`, by the name of an input;
        a missing input costs 0. The key "shared" has the FLOPs of work for several inputs; its
        function may name `needs_input_grad`, the set of the inputs that need a gradient.

        Raises:
            ValueError: if an input does not exist, the op already has VJPs, or `cost` has another
                key.
            TypeError: if `cost` is not a dict of integers or functions.
        """
        if self.vjps:
            raise ValueError(f"`{self.name}` has VJPs already; a joint VJP must be the only one")
        if not isinstance(cost, Mapping | None):
            raise TypeError(
                f"cost of the joint VJP of `{self.name}` is a dict by the names of inputs, not "
                f"{cost!r:.60}"
            )
        for name, each in (cost or {}).items():
            if name not in (*names, "shared"):
                raise ValueError(
                    f"the cost of the joint VJP of `{self.name}` has {name!r}; it can have "
                    f"{', '.join((*names, 'shared'))}"
                )
            self._check("cost", each, "out", "needs_input_grad")
        vjp = VJP(self, derivative, ("g", "needs_input_grad"), cost)
        self.set_vjps([(self._argnum(name), vjp) for name in names])
        self.plain = False

    def jvp(self, derivative: Callable[..., Any]) -> Callable[..., Any]:
        """Define a JVP: how to compute the tangent of the result, if the general way is too slow.

        `derivative(tangents, ...)` gets a tangent, or None for zero, for each input with a VJP, and
        then the values that a VJP may name. It returns the tangent of the result. All of them are
        arrays. If a tangent is differentiated itself, the composition or the VJPs are used instead.

        Raises:
            ValueError: if the op already has a JVP, or the JVP names a value that the op does not
                have.
        """
        if self.own_jvp is not None:
            raise ValueError(f"`{self.name}` already has a JVP")
        self.own_jvp = VJP(self, derivative, ("tangents",))
        return derivative

    def set_vjps(self, vjps: list[tuple[int, VJP]]) -> None:
        """Replace the VJPs; the next call of the op generates `call` again."""
        self.vjps = vjps
        self.vjp_of = dict(vjps)
        self.call: Callable[..., Tensor] = self._first_call

    def _check(self, kind: str, asked: Any, *others: str) -> None:
        """Raise an error if a cost, a shape or a hint is of another kind, or names a missing value.

        It can have the parameters of the op, and the values that are named by `others`.
        """
        other, accepted = _INSTEAD_OF_A_FUNCTION[kind.rpartition("_")[2]]
        several = isinstance(asked, Mapping) and other is str
        for function in asked.values() if several else (asked,):
            if not callable(function):
                if several or not (function is None or isinstance(function, other)):
                    raise TypeError(f"{kind} of `{self.name}` is {accepted}, not {function!r:.60}")
                continue
            for name, parameter in inspect.signature(function).parameters.items():
                known = name in self.parameters or name in others
                if not known and parameter.kind is not parameter.VAR_KEYWORD:  # ** gets all
                    raise ValueError(
                        f"a cost, shape or hint of `{self.name}` asks for {name!r}; it can have "
                        f"{', '.join((*self.parameters, *others))}"
                    )

    def _argnum(self, name: str) -> int:
        if callable(name):
            raise TypeError(
                f"the VJP of an input is defined by its name, as in "
                f'{self.name}.vjp("{self.parameters[0]}", ...), not a function first'
            )
        if name not in self.parameters:
            raise ValueError(
                f"`{self.name}` has no input {name!r}, only {', '.join(self.parameters)}"
            )
        return self.parameters.index(name)

    # ----------------------------------------------------------------------------------------------
    # The call
    # ----------------------------------------------------------------------------------------------

    def __call__(self, *args: P.args, **options: P.kwargs) -> Tensor:
        """Run the forward function; record a node if an input needs a gradient."""
        try:
            return self.call(*args, **options)
        except TypeError as error:
            self.check_keywords(error)
            raise

    def check_keywords(self, error: TypeError) -> None:
        """Raise an error that says what the op takes if an unknown keyword has caused `error`."""
        if text := instead_of_argument(error):
            raise op_error(TypeError, self.name, text) from None
        unknown = rf"(?:{self.name}\(\) )?(got an unexpected keyword argument '(\w+)')"
        if found := re.match(unknown, str(error)):
            hint, accepted = nearest(found[2], self.parameters), ", ".join(self.parameters)
            raise TypeError(f"{self.name}() {found[1]}{hint}; it takes {accepted}") from None

    def passed(self, values: Sequence[Any]) -> tuple[Sequence[Any], dict[str, Any]]:
        """Return the positional and the keyword arguments, from a value for each parameter."""
        count = self._by_position
        return values[:count], dict(zip(self.parameters[count:], values[count:], strict=True))

    def compose(self, *values: Any) -> Any:
        """Call the composition with a value for each parameter."""
        assert self.composition is not None
        args, options = self.passed(values)
        return self.composition(*args, **options)

    @property
    def source(self) -> str:
        """The source code of the function that a call of this op runs."""
        return inspect.getsource(on_sequence) if self.takes_sequence else write(self)[0]

    def _first_call(self, *args: Any, **options: Any) -> Tensor:
        """Generate `call` at the first call of the op, when all VJPs are known, and run it."""
        self.call = partial(on_sequence, self) if self.takes_sequence else write(self)[1]
        return self.call(*args, **options)

    # ----------------------------------------------------------------------------------------------
    # The backward pass, for cases that need more than calling a VJP on arrays
    # ----------------------------------------------------------------------------------------------

    def differentiate(self, node: Node, edges: Sequence[Edge], g: Any) -> list[Any]:
        """Return the gradients for some of the edges of a node.

        `g` is a Tensor under `create_graph`.
        """
        if not edges:
            return []
        wanted = [edge[1] for edge in edges]
        tracked = isinstance(g, Tensor)
        parents = {argnum: parent for parent, argnum, *_ in node.edges or ()} if tracked else {}
        if tracked and self.replayed:
            return replay(self.compose, node.arguments, parents, wanted, g)
        if self.plain:
            return [
                vjp.derivative(g, *self.linked(node, vjp, saved, parents))
                for _, _, vjp, *saved in edges
            ]
        vjp, saved = edges[0][2], edges[0][3:]
        residuals = self.linked(node, vjp, saved, parents) if tracked else saved
        return self.run_joint_vjp(g, wanted, residuals)

    def run_joint_vjp(self, g: Any, wanted: Sequence[int], residuals: Sequence[Any]) -> list[Any]:
        """Return the gradients for the inputs at the argnums `wanted`."""
        known = list(self.vjp_of)
        needs_input_grad = tuple([argnum in wanted for argnum in known])
        results = self.vjps[0][1].derivative(g, needs_input_grad, *residuals)
        if not isinstance(results, (tuple, list)) or len(results) != len(known):
            raise TypeError(f"the joint VJP of `{self.name}` must return {len(known)} gradients")
        return [results[known.index(argnum)] for argnum in wanted]

    def linked(
        self, node: Node, vjp: VJP, saved: Sequence[Any], parents: Mapping[int, Node]
    ) -> list[Any]:
        """Return the residuals of a VJP as Tensors, at the nodes of these values in the graph.

        Without these nodes, the second derivative would be wrong without an error.
        """
        linked: list[Any] = []
        for (slot, shape_only), value in zip(vjp.slots, saved, strict=True):
            if shape_only:
                linked.append(value)
            elif slot == len(self.parameters):
                linked.append(Tensor.at(value, node))
            elif slot == 0 and self.takes_sequence:
                linked.append(
                    [Tensor.at(v, parents[i]) if i in parents else v for i, v in enumerate(value)]
                )
            elif slot in parents and not self.takes_sequence:
                linked.append(Tensor.at(value, parents[slot]))
            else:
                linked.append(value)
        return linked

    def saved_values(self, node: Node, edges: Sequence[Edge]) -> Iterator[tuple[str, Any]]:
        """List the values that a backward pass along `edges` of `node` uses, with their names."""
        names = (*self.parameters, *NOT_INPUTS)
        for _, _, vjp, *saved in edges:
            for (slot, shape_only), value in zip(vjp.slots, saved, strict=True):
                if shape_only:
                    continue
                if self.takes_sequence and slot == 0:
                    for i, array in enumerate(value):
                        yield self.input_name(i), array
                else:
                    yield names[slot], value
        yield from zip(names, node.arguments, strict=False)


def replay(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    parents: Mapping[int, Node],
    wanted: Sequence[int],
    g: Any,
) -> list[Any]:
    """Run a function again, record its graph, and backpropagate `g` through this graph only.

    Arguments that need a gradient are given as arrays. `parents` are their nodes in the outer
    graph, by argnum. Argnums beyond the arguments are for tensors that `function` uses, but does
    not get as arguments. Returns the gradients for the argnums `wanted`. If `g` is a Tensor, they
    become a part of the outer graph.
    """
    inputs = list(arguments)
    ends = dict(parents)
    with grad_mode(True):
        for argnum in range(len(arguments)):
            if argnum in parents:
                linked = identity(Tensor.at(arguments[argnum], parents[argnum]))
                assert linked.node is not None
                inputs[argnum], ends[argnum] = linked, linked.node
        result = function(*inputs)
    wanted_ends = [ends[argnum] for argnum in wanted]
    create_graph = isinstance(g, Tensor)
    arrived: dict[Node, Any] = {}
    if result.node is not None:
        arrived = propagate(
            {result.node: g},
            wanted=set(wanted_ends),
            stop=set(ends.values()),
            retain_graph=create_graph,
            create_graph=create_graph,
        )
    return [arrived[e] if e in arrived else np.zeros(e.shape, e.dtype) for e in wanted_ends]


@overload
def op(forward: Callable[P, Any]) -> Op[P]: ...
@overload
def op(
    *,
    composition: Callable[..., Any] | None = None,
    replayed: bool = False,
    elementwise: bool = False,
    linear: Sequence[str] = (),
    floats: bool = False,
    returns_residuals: bool = False,
    cost: Cost | None = None,
    shape: Callable[..., tuple[int, ...]] | None = None,
    product: bool = False,
    fresh: Sequence[str] = (),
    nonfinite_hint: Hint | None = None,
    gradient_hint: Hint | None = None,
) -> Callable[[Callable[P, Any]], Op[P]]: ...
@with_hints
def op(
    forward: Callable[P, Any] | None = None,
    *,
    composition: Callable[..., Any] | None = None,
    replayed: bool = False,
    elementwise: bool = False,
    linear: Sequence[str] = (),
    floats: bool = False,
    returns_residuals: bool = False,
    cost: Cost | None = None,
    shape: Callable[..., tuple[int, ...]] | None = None,
    product: bool = False,
    fresh: Sequence[str] = (),
    nonfinite_hint: Hint | None = None,
    gradient_hint: Hint | None = None,
) -> Op[P] | Callable[[Callable[P, Any]], Op[P]]:
    """Make an op from a function on arrays; then define its derivatives with `.vjp`.

    The parameters of a cost, a shape and a hint name what they need, as in VJPs: operands, options,
    and `out` for the result. They see the shape and dtype of operands; a hint also sees the values.

    Args:
        forward: the function. Parameters with a VJP are inputs; all others are options.
        composition: for a fused op, the function of tensors that it replaces. It is the reference
            for the op's values and, if `replayed`, gives derivatives of second and higher order.
        replayed: whether the VJPs of the op work only on arrays, because they call kernels. This
            needs a composition.
        elementwise: whether each element of the result depends on one element of each input, after
            broadcasting. Forward mode then applies the VJP of an input to its tangent.
        linear: inputs in which the result is linear while the others are fixed. Forward mode calls
            the op on a tangent of such an input, without optional inputs such as a bias.
        floats: whether it is a function of floats. It then computes in float64 for integers, and
            in float32 for float16; a Tensor result is converted to float32 or float16.
        returns_residuals: whether the function returns `(out, residuals)`, for VJPs that name
            `residuals`. The op itself still returns only `out`, and is `replayed`.
        cost: the FLOPs of a call: a number for each element of the result, or a function that
            returns the total. By default, they are counted in the composition, or in the numpy
            functions that the forward calls; receipts do not count what calls no numpy function.
        shape: with a cost, a function that returns the shape of the result, if this is not the
            broadcast shape of the operands.
        product: whether it is a matrix product. Receipts list the products that frozen inputs save;
            without its own hints, the op has the hints of products.
        fresh: inputs that are made for each call, such as a dropout mask, so they count as saved
            memory.
        nonfinite_hint: the usual cause of a result that is not finite, for `detect_anomaly`: a
            text; texts, each with a condition on the values; or a function that returns a text or
            None.
        gradient_hint: the same for a gradient that is not finite. It may name what the VJP saved,
            `g` for the gradient that arrived, and `gradient` for the result of the VJP.

    Raises:
        ValueError: if a property needs another one that is missing, or names a parameter that the
            function does not have, or the function has parameters such as `*args`.
        TypeError: if `forward` is another object than a function, such as a `functools.partial`, or
            a property is of another kind.
    """

    def make(function: Callable[P, Any]) -> Op[P]:
        made = Op(
            function, composition=composition, replayed=replayed, elementwise=elementwise,
            linear=linear, floats=floats, returns_residuals=returns_residuals,
            cost=cost, shape=shape, product=product, fresh=fresh,
            nonfinite_hint=nonfinite_hint, gradient_hint=gradient_hint,
        )  # fmt: skip
        if (function.__module__ or "").startswith("minigrad.ops"):  # not one made by exec
            OPS[made.name] = made
        return made

    return make if forward is None else make(forward)


@op(elementwise=True)
def identity(x: Any) -> Any:
    """The same value at a new node: it links a replay to the outer graph."""
    return x.view()


identity.vjp("x", lambda g: g)
