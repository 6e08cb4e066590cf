"""Functions of functions: gradients, Jacobians, Hessians, and products with these.

`minigrad.grad` differentiates a result. A transform takes the function itself:

    value, gradient = value_and_grad(lambda x: x**3)(2.0)           # 8 and 12
    H = hessian(lambda x: (x**3).sum())(np.array([1.0, 2.0]))       # [[6, 0], [0, 12]]

Two properties make transforms right when they are nested.

- f runs on inputs of its own: the same values at new nodes of the graph, linked to the old ones.
  So a tensor that is an argument of f and the same tensor that f closes over are two things, and
  the derivative by one does not leak into that by the other (perturbation confusion, Siskind and
  Pearlmutter, 2005), while an outer derivative passes through both.
- A result is a part of the graph if something outside can ask for its derivative: grad mode is on,
  and the result depends on a node that is older than f's inputs, be it an argument that requires a
  gradient, a tensor that f closes over, or the input of an outer transform. Else the result is
  detached, and the backward pass is the plain one, on arrays. So to differentiate a model by its
  input alone, do it under `no_grad()`.

`jvp`, `hvp` and `jacfwd` run f in forward mode. There is no graph behind f's inputs then, and what
f itself differentiates by them it must differentiate by a transform, not by `grad`.

The arguments that f is differentiated by are Tensors, arrays or numbers, of floats, or containers
of these (see `minigrad.containers`), and the derivatives have the structure of the arguments:

    def loss(weights, x):
        return ((x @ weights["w"] + weights["b"]) ** 2).mean()

    value, gradient = value_and_grad(loss)({"w": w, "b": b}, x)     # gradient["w"], gradient["b"]

f receives a Tensor for each leaf of them and for any other positional array of floats; all other
arguments, and those passed by keyword, it receives as they are. A Module it receives itself, with
its trainable parameters at new nodes while f runs; their derivatives are a dict by their names.
These parameters require a gradient, so an outer derivative could be asked for: where none is, as in
a training loop, `no_grad()` around the call saves the time to record it.

A Python float becomes float32, as in `minigrad.tensor(2.0)`, so that it computes in the precision
of the weights that it meets; np.float64(2.0) and `tensor(2.0, dtype="float64")` are float64.

What f's result does not depend on has derivative zero. So f may return a plain float or array as a
constant; it then runs once more, watched, and it is an error if a value that depends on the inputs
left the graph on the way, as with `float(x)` or `x.detach()`, because the zeros would be wrong. No
tensor's `.grad` or `requires_grad` is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from minigrad.containers import (
    Container,
    Leaf,
    Structure,
    flatten,
    flatten_as,
    is_container,
    rebuild,
)
from minigrad.core.backward import initial_gradient, propagate, take
from minigrad.core.forward_mode import ForwardMode, Tangents, carried, running
from minigrad.core.grad_mode import grad_mode, is_grad_enabled
from minigrad.core.node import Node, reachable
from minigrad.core.observers import Observer, observe
from minigrad.core.op import identity
from minigrad.core.tensor import Tensor, assigned
from minigrad.ops import clone, concatenate, reshape, transpose
from minigrad.versions import clock

__all__ = ["gradient", "hessian", "hvp", "jacfwd", "jacobian", "jvp"]
__all__ += ["value_and_grad", "vjp"]

Function = Callable[..., Any]
Argnums = int | Sequence[int]

# A Jacobian is computed by columns if it has so many times more rows: they take one more run of f.
ROWS_PER_COLUMN = 1
DIRECTIONS = 64  # of forward mode at once

_recorded = grad_mode(True)


class ValueAndGrad(NamedTuple):
    """The value of a function, or `(value, aux)` with `has_aux`, and its gradient."""

    value: Any
    gradient: Any


class ValueAndPullback(NamedTuple):
    """The value of a function, and the function v -> v^T J."""

    value: Any
    pullback: Callable[[Any], Any]


class ValueAndTangent(NamedTuple):
    """The value of a function, and its derivative J v in a direction v."""

    value: Any
    tangent: Any


def value_and_grad(f: Function, argnums: Argnums = 0, has_aux: bool = False) -> Function:
    """Return a function of f's arguments that returns `ValueAndGrad(f(x), df/dx)`.

    Args:
        f: a function that returns a Tensor of one element.
        argnums: the position of the argument to differentiate by, a tensor or a container, of which
            the gradient has the structure; for several positions, the gradient is a tuple.
        has_aux: whether f returns `(value, aux)`; then the result is `((value, aux), gradient)`.
            Tensors in `aux`, also within tuples, lists and dicts, are detached where `value` would
            be.

    Raises:
        TypeError: if `argnums` are not ints; when called, if a leaf of the argument is not of
            floats, or there is none, or f returns anything but a Tensor or a constant of floats.
        ValueError: when called, if `argnums` are repeated or out of range, f returns more than one
            element, a container contains itself, or two Modules share a parameter.
    """
    return _named(_value_and_grad("value_and_grad", f, argnums, has_aux), "value_and_grad", f)


def gradient(f: Function, argnums: Argnums = 0, has_aux: bool = False) -> Function:
    """Return a function of f's arguments that returns df/dx, the gradient of `value_and_grad`.

        derivative = gradient(minigrad.tanh)(0.5)       # 1 - tanh(0.5)^2

    With `has_aux`, f returns `(value, aux)`, and the result is `(gradient, aux)`.

    Raises:
        TypeError: as `value_and_grad`.
        ValueError: as `value_and_grad`.
    """
    both = _value_and_grad("gradient", f, argnums, has_aux)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        """Return the gradient of the named function, or `(gradient, aux)` with `has_aux`."""
        value, gradient = both(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return _named(transformed, "gradient", f)


def vjp(f: Function, *primals: Any) -> ValueAndPullback:
    """Return the value of f at `primals` and its pullback, v -> v^T J with J = df/dx.

    f may return a container. `pullback(v)` takes v of the value's structure and shapes, and returns
    a tuple, with the structure of each primal. It may be called any number of times, and keeps the
    graph of f.

        value, pullback = vjp(minigrad.tanh, x)
        (gradient,) = pullback(minigrad.ones_like(value))

    Raises:
        TypeError: as `value_and_grad`.
        ValueError: if there are no primals; in the pullback, if v has another shape.
    """
    call = _Call("vjp", f, range(len(primals)), primals)
    run = _Run(call)
    outs, structure = run.results()
    wanted = run.can_be_differentiated(*outs)

    def pullback(v: Any) -> Any:
        """Return v^T J for a cotangent v, a tuple of one for each primal."""
        leaves = flatten_as(structure, v, "vjp: the pullback's v")
        cotangents = _like(outs, leaves)
        record = is_grad_enabled() and (wanted or any(c.requires_grad for c in cotangents))
        record = record or carried(*cotangents) or (wanted and carried(*outs))
        pulled = run.pull(outs, cotangents, run.inputs, record, retain=True)
        return call.arranged(pulled)

    value = rebuild(structure, outs if wanted else [out.detach() for out in outs])
    return ValueAndPullback(value, pullback)


def jvp(f: Function, primals: Any, tangents: Any) -> ValueAndTangent:
    """Return f at `primals` and J v, its derivative in the direction of the tangents v.

    A tuple or list of primals is one for each argument of f; anything else is the only argument.
    Tangents have the structure of the primals, and for a Module they are a dict by the names of its
    parameters. f may return a container. It runs once, in forward mode: each op passes on the
    tangent of its result, and nothing is kept for a way back, so that memory does not grow with the
    depth of f (see `minigrad.core.forward_mode`).

        value, derivative = jvp(minigrad.exp, x, v)        # exp(x) and exp(x) * v

    Raises:
        TypeError: as `value_and_grad`, or if one is a tuple and the other is not.
        ValueError: if primals and tangents differ in number, keys or shape.
    """
    call, vs = _paired("jvp", f, primals, tangents)
    run = _Run(call, [[v] for v in vs])
    outs, structure = run.results()
    value = rebuild(structure, [run.detached(out) for out in outs])
    return ValueAndTangent(value, rebuild(structure, [run.pushed(out)[0] for out in outs]))


def hvp(f: Function, primals: Any, tangents: Any) -> Any:
    """Return H v, the Hessian of a scalar f at `primals` times the tangents v, without forming H.

    It is the derivative of df/dx in the direction v, forward mode over a backward pass, and costs a
    few times what f does (Pearlmutter, 1994). Primals and tangents are as in `jvp`, and H v has
    their structure; for a tuple or list it is a tuple.

        curvature = (v * hvp(loss, x, v)).sum()

    Raises:
        TypeError: as `jvp`.
        ValueError: as `jvp`, or if f returns more than one element.
    """
    several = type(primals) in (tuple, list)
    gradients_of_f = _gradients_of("hvp", f, range(len(primals)) if several else range(1))
    call, vs = _paired("hvp", gradients_of_f, primals, tangents)
    run = _Run(call, [[v] for v in vs])
    gradients, _ = run.results()
    products = call.arranged([run.pushed(gradient)[0] for gradient in gradients])
    return products if several else products[0]


def jacobian(f: Function, argnums: Argnums = 0) -> Function:
    """Return a function of f's arguments that returns J[i, j] = df_i / dx_j, of shape f's + x's.

    For several `argnums` it returns a tuple, and for containers nested ones, f's outside: for f of
    `{"w": (3,), "b": ()}` that returns `{"y": (2,)}`, `J["y"]["w"]` has shape (2, 3) and
    `J["y"]["b"]` (2,). A row is a VJP; where x has far fewer elements than the value, J is computed
    by columns instead, each a JVP.

        J = jacobian(lambda x: A @ x)(x)        # A

    Raises:
        TypeError: as `value_and_grad`.
        ValueError: when called, if `argnums` are repeated or out of range.
    """
    _numbers("jacobian", argnums)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        """Return the Jacobian of the named function: its results' structure, then argnums'."""
        call = _Call("jacobian", f, argnums, args, kwargs)
        run = _Run(call)
        outs, structure = run.results()
        if sum(out.size for out in outs) > ROWS_PER_COLUMN * sum(x.size for x in run.inputs):
            return jacfwd(f, argnums)(*args, **kwargs)
        record = run.can_be_differentiated(*outs)
        blocks = [run.rows(out, run.inputs, record) for out in outs]
        return rebuild(structure, [call.arranged(of_one) for of_one in blocks])

    return _named(transformed, "jacobian", f)


def jacfwd(f: Function, argnums: Argnums = 0) -> Function:
    """Return a function that returns the Jacobian as `jacobian` does, always by columns.

    f runs in forward mode, in up to 64 directions at once, and so often that each element of the
    arguments is one of them. No graph of f is in memory.

    Raises:
        TypeError: as `value_and_grad`.
        ValueError: when called, if `argnums` are repeated or out of range.
        RuntimeError: if f gives another result when it runs again.
    """
    _numbers("jacfwd", argnums)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        """Return the Jacobian of the named function: its results' structure, then argnums'."""
        call = _Call("jacfwd", f, argnums, args, kwargs)
        blocks, structure = _columns(call)
        return rebuild(structure, [call.arranged(of_one) for of_one in blocks])

    return _named(transformed, "jacfwd", f)


def _columns(call: _Call) -> tuple[list[list[Tensor]], Structure]:
    """Compute the Jacobian of each leaf of the result by each leaf of the arguments, by columns.

    f runs again for every so many directions, since their tangents are in memory at the same time.
    """
    sizes = [x.size for x in call.leaves]
    *starts, total = accumulate(sizes, initial=0)
    columns: list[list[Tensor]] = []
    before: list[Tensor] = []
    for first in range(0, max(1, total), DIRECTIONS):
        count = min(DIRECTIONS, total - first)
        pairs = zip(call.leaves, starts, strict=True)
        run = _Run(call, [_units(x, count, at - first) for x, at in pairs])
        outs, structure = run.results()
        before, columns = before or outs, columns or [[] for _ in outs]
        for of_one, out, same in zip(columns, outs, before, strict=True):
            if not np.array_equal(out._data, same._data, equal_nan=True):
                raise RuntimeError(
                    f"{call.name}: f gave another result when it ran again, for further columns; "
                    f"does it draw random numbers? An rng that is made inside of f draws the same"
                )
            of_one += run.pushed(out)
    blocks = []
    for of_one, out in zip(columns, before, strict=True):
        none = Tensor(np.zeros((0, *out.shape), out.dtype))  # for an input without elements
        joined = concatenate([none, *(reshape(v, (1, *out.shape)) for v in of_one)])
        turned = transpose(joined, (*range(1, joined.ndim), 0))
        blocks.append(
            [
                reshape(turned[..., at : at + x.size], out.shape + x.shape).astype(x.dtype)
                for x, at in zip(call.leaves, starts, strict=True)
            ]
        )
    return blocks, structure


def _units(x: Tensor, count: int, start: int) -> Tangents:
    """Return tangents in `count` directions; from `start` on, one element after the other moves."""
    tangents: Tangents = [None] * count
    for k in range(max(0, start), min(count, start + x.size)):
        v = np.zeros_like(x._data)
        v.flat[k - start] = 1
        tangents[k] = Tensor(v)
    return tangents


def hessian(f: Function, argnums: Argnums = 0) -> Function:
    """Return a function of f's arguments that returns H[i, j] = d^2 f / dx_i dx_j.

    H has the shape x's + x's.

    It is the Jacobian of the gradient, by columns. For several `argnums` it returns a tuple of
    tuples of blocks: `H[a][b]` is d^2 f / dx dy for x at `argnums[a]` and y at `argnums[b]`. So it
    is for containers: `H["w"]["b"]` has the shape of w + that of b.

    Raises:
        TypeError: as `value_and_grad`.
        ValueError: as `value_and_grad`.
    """
    gradients_of_f = _gradients_of("hessian", f, argnums)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        """Return the Hessian of the named function: argnums' structure, twice."""
        call = _Call("hessian", gradients_of_f, argnums, args, kwargs)
        blocks, _ = _columns(call)
        return call.arranged([call.arranged(of_one) for of_one in blocks])

    return _named(transformed, "hessian", f)


class _Call:
    """A call of f: its arguments, and the leaves among them that it is differentiated by."""

    def __init__(
        self,
        name: str,
        f: Function,
        argnums: Argnums,
        args: Sequence[Any],
        kwargs: Any = None,
    ) -> None:
        if not callable(f):
            raise TypeError(
                f"{name}: f must be a function of tensors, not {_described(f)}; "
                f"minigrad.grad(output, input) differentiates a result"
            )
        numbers: Sequence[int] = argnums if isinstance(argnums, Sequence) else (argnums,)
        count = len(args)
        if not numbers or min(numbers) < -count or max(numbers) >= count:
            raise ValueError(
                f"{name}: argnums is {argnums}, and there are {count} positional arguments; name "
                f"at least one of these (an argument passed by keyword is not one)"
            )
        positions = [n % count for n in numbers]
        if len(set(positions)) < len(positions):
            raise ValueError(f"{name}: argnums {argnums} names an argument twice")
        self.name, self._f, self._kwargs = name, f, kwargs or {}
        self._several = numbers is argnums
        self._args = list(args)
        for i, x in enumerate(args):
            if i not in positions and isinstance(x, np.ndarray) and x.dtype.kind == "f":
                self._args[i] = Tensor(x)
        self._structures: dict[int, Structure] = {}
        leaves: list[Leaf] = []
        for i in positions:
            known, role = len(leaves), f"{name}: argument {i}"
            if isinstance(args[i], (Tensor, np.ndarray)):  # the usual case, which is to be fast
                self._structures[i] = known
                leaves.append(Leaf(args[i], role))
                continue
            self._structures[i] = flatten(args[i], role, leaves)
            if len(leaves) == known:
                raise TypeError(
                    f"{role} must be a Tensor, an array or a number, or a container of these, not "
                    f"{_described(args[i])} without any; a Module's are its parameters that "
                    f"require a gradient"
                )
        self._flat = Container not in map(type, self._structures.values())
        self.leaves = [_tensor(leaf.value, leaf.path) for leaf in leaves]
        self._of_modules = {n: leaf.value for n, leaf in enumerate(leaves) if leaf.stays}
        if self._of_modules:
            self._check_one_place_each(leaves)

    def _check_one_place_each(self, leaves: Sequence[Leaf]) -> None:
        """Check that no two Modules share a parameter, which can be at one node only."""
        paths: dict[int, str] = {}
        for n, parameter in self._of_modules.items():
            path = leaves[n].path
            if (known := paths.setdefault(id(parameter), path)) != path:
                raise ValueError(
                    f"{known} and {path.removeprefix(self.name)[2:]} are the same parameter; "
                    f"differentiate by one Module that contains both, for their sum, or by tensors"
                )

    def run(self, inputs: Sequence[Tensor]) -> Any:
        """Return what f returns for `inputs` instead of the leaves."""
        args = self._args.copy()
        for (i, structure), x in zip(self._structures.items(), inputs, strict=False):
            args[i] = x if self._flat else rebuild(structure, inputs, owners=True)
        if not self._of_modules:
            return self._f(*args, **self._kwargs)
        with assigned((p, {"node": inputs[n].node}) for n, p in self._of_modules.items()):
            return self._f(*args, **self._kwargs)

    def arranged(self, results: Sequence[Any]) -> Any:
        """Return results, one for each leaf, as the arguments: a tuple for several argnums."""
        found = results
        if not self._flat:
            found = [rebuild(structure, results) for structure in self._structures.values()]
        return tuple(found) if self._several else found[0]

    def tangents(self, given: Sequence[Any]) -> list[Tensor]:
        """Return the leaves of a tangent for each argument, checked against those of this call."""
        leaves = []
        for (i, structure), v in zip(self._structures.items(), given, strict=True):
            leaves += flatten_as(structure, v, f"{self.name}: tangent {i}")
        return _like(self.leaves, leaves)


class _Departures(Observer):
    """Notes whether the value of something newer than `start` left the graph.

    A condition, `if x > 0`, is none: between its jumps, a function that asks for it is constant.
    """

    def __init__(self, start: int) -> None:
        self._start, self.found = start, False

    def on_leave(self, tensor: Tensor, value: Any, how: str) -> None:
        node = tensor.node
        self.found |= node is not None and node.order > self._start and how != "bool()"


class _Run:
    """A run of f on inputs at nodes of their own, in forward mode if they are given tangents."""

    def __init__(self, call: _Call, tangents: Sequence[Tangents] | None = None) -> None:
        self.call = call
        self.enabled = is_grad_enabled()
        self.start = next(clock)  # no older node depends on the inputs, so walks end there
        if tangents is not None:
            self.forward = ForwardMode(len(tangents[0]))
            pairs = zip(call.leaves, tangents, strict=True)
            self.inputs: list[Tensor] = [self.forward.start(x, vs) for x, vs in pairs]
            with observe(self.forward):
                self.out: Any = call.run(self.inputs)
            return
        self.inputs = []
        with _recorded:
            for x in call.leaves:
                inner = identity(x) if x.requires_grad else x.detach().requires_grad_()
                assert inner.node is not None
                inner.node.forward_only = False  # also if nothing but a run around this sees x
                self.inputs.append(inner)
            self.out = call.run(self.inputs)

    def results(self) -> tuple[list[Tensor], Structure]:
        """Return the leaves of what f returned, checked to be Tensors, and the structure of it."""
        if isinstance(self.out, Tensor):
            return [self.checked(self.out)], 0
        leaves: list[Leaf] = []
        structure = flatten(self.out, "", leaves)
        if not leaves:
            self.checked(self.out)
        return [self.checked(leaf.value, leaf.path) for leaf in leaves], structure

    def checked(self, out: Any, path: str = "") -> Tensor:
        """Return a result of f, checked to be a Tensor of floats or a constant."""
        if isinstance(out, Tensor) and out.dtype.kind == "f":
            return out
        at, name = path and f" at {path}", self.call.name
        if isinstance(out, (int, float, np.number, np.ndarray)):
            if np.asarray(out).dtype.kind == "f" and self._is_constant():
                return Tensor(out)
            raise TypeError(
                f"{name}: f must return a Tensor of floats{at}, not {_described(out)}, which no "
                f"gradient follows; compute it from the arguments with minigrad's functions, "
                f"without float(), .item() or numpy (a constant of floats is right, such as 0.0)"
            )
        how = "; add its parts up, or return (value, aux) with has_aux" if is_container(out) else ""
        raise TypeError(f"{name}: f must return a Tensor of floats{at}, not {_described(out)}{how}")

    def _is_constant(self) -> bool:
        """Run f again, and return whether all that depends on the inputs stayed in the graph."""
        departures = _Departures(self.start)
        with _recorded, observe(departures):
            self.call.run(self.inputs)
        return not departures.found

    def can_be_differentiated(self, *results: Tensor) -> bool:
        """Return whether something outside can ask for the derivative of one of `results`."""
        return self._is_in_graph(*results) or carried(*results)

    def _is_in_graph(self, *results: Tensor) -> bool:
        """Return whether one of `results` depends on an older node that requires a gradient."""
        roots = [result.node for result in results if result.node is not None]
        found = reachable(roots, oldest=self.start) if self.enabled else []
        if not found or found[-1].order >= self.start:  # the oldest is the last
            return False
        return any(node.order < self.start and not node.forward_only for node in found)

    def detached(self, value: Any) -> Any:
        """Detach the Tensors in `value`, except where something outside can differentiate them."""
        if isinstance(value, Tensor):
            return value if self.can_be_differentiated(value) else value.detach()
        if type(value) in (tuple, list):
            return type(value)(map(self.detached, value))
        return {k: self.detached(v) for k, v in value.items()} if type(value) is dict else value

    def pull(
        self,
        outputs: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        inputs: Sequence[Tensor],
        record: bool,
        retain: bool = False,
    ) -> tuple[Tensor, ...]:
        """Return the sum over `outputs` of v^T J for each input, recorded if `record` is set."""
        pending: dict[Node, Any] = {}
        for output, cotangent in zip(outputs, cotangents, strict=True):
            if (node := output.node) is not None and node.order > self.start:
                v = cotangent if record else cotangent._data
                pending[node] = pending[node] + v if node in pending else v
        ends: list[Any] = [x.node for x in inputs]
        arrived = propagate(
            pending,
            wanted=set(ends),
            oldest=self.start,
            retain_graph=retain or record,
            create_graph=record,
            recorded=is_grad_enabled() and self._is_to_be_recorded(outputs, cotangents),
        )
        return tuple(
            take(arrived, end) if end in arrived else Tensor(np.zeros(end.shape, end.dtype))
            for end in ends
        )

    def _is_to_be_recorded(self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> bool:
        """Return whether a pass on Tensors needs a graph, and not only tangents."""
        around = running()
        return (
            not around
            or any(forward.needs_grad_mode() for forward in around)
            or any(v.node is not None and not v.node.forward_only for v in cotangents)
            or self._is_in_graph(*outputs)
        )

    def pushed(self, out: Tensor) -> list[Tensor]:
        """Return the tangents of `out`, one per direction, in memory of their own."""
        return [clone(self.detached(v)) for v in self.forward.tangents(out)]

    def rows(self, out: Tensor, inputs: Sequence[Tensor], record: bool) -> list[Tensor]:
        """Return the Jacobian of `out` by each input, computed row by row."""
        pulled = []
        for i in range(out.size):
            v = np.zeros_like(out._data)
            v.flat[i] = 1
            pulled.append(self.pull([out], [Tensor(v)], inputs, record, retain=True))
        jacobians = []
        for k, x in enumerate(inputs):
            none = Tensor(np.zeros(0, x.dtype))  # for an output without elements
            row_after_row = concatenate([none, *(reshape(row[k], x.size) for row in pulled)])
            jacobians.append(reshape(row_after_row, out.shape + x.shape))
        return jacobians


def _value_and_grad(name: str, f: Function, argnums: Argnums, has_aux: bool = False) -> Function:
    _numbers(name, argnums)

    def transformed(*args: Any, **kwargs: Any) -> ValueAndGrad:
        """Return ValueAndGrad(value, gradient) of the named function, or ((value, aux), gradient).

        The gradient has the structure of the argument at argnums, in a tuple if these are several.
        """
        run = _Run(_Call(name, f, argnums, args, kwargs))
        out, aux = run.out, None
        if has_aux:
            if not (isinstance(out, tuple) and len(out) == 2):
                raise TypeError(
                    f"{name}: with has_aux, f must return (value, aux), not {out!r:.60}"
                )
            out, aux = out
        out = run.checked(out)
        if out.size != 1:
            raise ValueError(
                f"{name}: f must return one element, not {out.describe()}; reduce it with .sum() "
                f"or .mean(), or take the derivatives of all elements with `jacobian`"
            )
        record = run.can_be_differentiated(out)
        value = out if record else out.detach()
        one = initial_gradient(out, None, name, create_graph=True)
        # `aux` may lie on the same graph, and must not find it freed.
        gradients = run.pull([out], [one], run.inputs, record, retain=has_aux)
        result = (value, run.detached(aux)) if has_aux else value
        return ValueAndGrad(result, run.call.arranged(gradients))

    return transformed


def _gradients_of(name: str, f: Function, argnums: Argnums) -> Function:
    """Return a function of f's arguments that returns the tuple of gradients."""
    both = _value_and_grad(name, f, _numbers(name, argnums))
    return lambda *args, **kwargs: both(*args, **kwargs)[1]


def _named(transformed: Function, name: str, f: Function) -> Function:
    """Name a transformed function by what it computes, and let `help` show the arguments of f."""
    inner = getattr(f, "__name__", type(f).__name__)
    transformed.__name__ = transformed.__qualname__ = f"{name}({inner})"
    transformed.__wrapped__ = f  # type: ignore[attr-defined]
    return transformed


def _numbers(name: str, argnums: Any) -> Sequence[int]:
    """Return `argnums` as a sequence of ints.

    A Tensor here is mostly an argument of f: the message says how the call is meant.
    """
    numbers = argnums if isinstance(argnums, Sequence) else (argnums,)
    if not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in numbers):
        raise TypeError(
            f"{name}: argnums is an int or a tuple of ints, not {argnums!r:.60}; the result is a "
            f"function, as in {name}(f)(x)"
        )
    return numbers


def _paired(name: str, f: Function, primals: Any, tangents: Any) -> tuple[_Call, list[Tensor]]:
    """Return a call of f with primals, and the leaves of the tangents, checked against it."""
    several = type(primals) in (tuple, list)
    if several != (type(tangents) in (tuple, list)):
        raise TypeError(
            f"{name}: primals and tangents are one each or one tuple each, not "
            f"{_described(primals)} and {_described(tangents)}"
        )
    if not several:
        primals, tangents = [primals], [tangents]
    if len(primals) != len(tangents):
        raise ValueError(f"{name}: {len(primals)} primals, but {len(tangents)} tangents")
    call = _Call(name, f, range(len(primals)), primals)
    return call, call.tangents(tangents)


def _like(tensors: Sequence[Tensor], leaves: Sequence[Leaf]) -> list[Tensor]:
    """Return leaves as Tensors in the dtypes of others, checked for their shapes."""
    pairs = zip(tensors, leaves, strict=True)
    return [_tensor(leaf.value, leaf.path, like=tensor) for tensor, leaf in pairs]


def _tensor(value: Any, role: str, like: Tensor | None = None) -> Tensor:
    """Return `value` as a Tensor of floats; with `like`, checked for its shape, in its dtype."""
    if not isinstance(value, (Tensor, np.ndarray, np.generic, int, float)):
        raise TypeError(
            f"{role} must be a Tensor, an array or a number, not {_described(value)}; containers "
            f"of these are dicts, lists, tuples, named tuples, dataclasses and Modules"
        )
    tensor = value if isinstance(value, Tensor) else Tensor(value)
    if like is None:
        if tensor.dtype.kind != "f":
            how = f"write {value}.0" if type(value) is int else "convert it, .astype('float32')"
            raise TypeError(
                f"{role} is of {tensor.dtype}, and only floats can be differentiated by; {how}, "
                f"or differentiate by others only"
            )
    elif tensor.shape != like.shape:
        raise ValueError(f"{role} must have shape {like.shape}, not {tensor.shape}")
    elif tensor.dtype != like.dtype:
        return tensor.astype(like.dtype)
    return tensor


def _described(value: Any) -> str:
    return value.describe() if isinstance(value, Tensor) else f"a {type(value).__name__}"
