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

The arguments that f is differentiated by are Tensors, arrays or numbers, of floats. f receives a
Tensor for each of them and for any other positional array of floats; all other arguments, and those
passed by keyword, it receives as they are. An argument that the result does not depend on has
derivative zero. No tensor's `.grad` or `requires_grad` is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigrad.core.backward import propagate, take
from minigrad.core.forward_mode import ForwardMode, Tangents
from minigrad.core.grad_mode import grad_mode, is_grad_enabled, mode
from minigrad.core.node import Node, reachable
from minigrad.core.observers import observe
from minigrad.core.op import identity
from minigrad.core.tensor import Array, Tensor
from minigrad.ops import clone, concatenate, reshape, transpose
from minigrad.versions import clock

__all__ = ["hessian", "hvp", "jacfwd", "jacobian", "jvp", "value_and_grad", "vjp"]

Function = Callable[..., Any]
Argnums = int | Sequence[int]

# A Jacobian is computed by columns if it has so many times more rows: they take one more run of f.
ROWS_PER_COLUMN = 1


def value_and_grad(f: Function, argnums: Argnums = 0, has_aux: bool = False) -> Function:
    """Return a function of f's arguments that returns `(f(x), df/dx)`.

    Args:
        f: a function that returns a Tensor of one element.
        argnums: the position of the argument to differentiate by; for several positions, the
            gradient is a tuple.
        has_aux: whether f returns `(value, aux)`; then the result is `((value, aux), gradient)`.
            Tensors in `aux`, also within tuples, lists and dicts, are detached where `value` would
            be.

    Raises:
        TypeError: if `argnums` are not ints; when called, if the argument is not of floats, or f
            returns anything but a Tensor of floats.
        ValueError: when called, if `argnums` are repeated or out of range, or f returns more than
            one element.
    """
    return _value_and_grad("value_and_grad", f, argnums, has_aux)


def vjp(f: Function, *primals: Array) -> tuple[Tensor, Callable[[Array], tuple[Tensor, ...]]]:
    """Return the value of f at `primals` and its pullback, v -> v^T J with J = df/dx.

    `pullback(v)` takes v of the value's shape and returns a tuple, one Tensor for each primal. It
    may be called any number of times, and keeps the graph of f.

        value, pullback = vjp(minigrad.tanh, x)
        (gradient,) = pullback(minigrad.ones_like(value))

    Raises:
        TypeError: as `value_and_grad`.
        ValueError: if there are no primals; in the pullback, if v has another shape.
    """
    run = _Run("vjp", f, range(len(primals)), primals)
    out = _checked("vjp", run.out)
    wanted = run.can_be_differentiated(out)

    def pullback(v: Array) -> tuple[Tensor, ...]:
        cotangent = _tensor(v, "vjp: the pullback's v", like=out)
        record = is_grad_enabled() and (wanted or cotangent.requires_grad)
        return run.pull([out], [cotangent], run.inputs, record, retain=True)

    return (out if wanted else out.detach()), pullback


def jvp(f: Function, primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """Return f at `primals` and J v, its derivative in the direction of the tangents v.

    Primals and tangents are a tensor each, or a tuple or list each. f runs once, in forward mode:
    each op passes on the tangent of its result, and nothing is kept for a way back, so that memory
    does not grow with the depth of f (see `minigrad.core.forward_mode`).

        value, derivative = jvp(minigrad.exp, x, v)        # exp(x) and exp(x) * v

    Raises:
        TypeError: as `value_and_grad`, or if one is a tuple and the other is not.
        ValueError: if primals and tangents differ in number or shape.
    """
    xs, vs = _paired("jvp", primals, tangents)
    run = _Run("jvp", f, range(len(xs)), xs, tangents=lambda _: [[v] for v in vs])
    out = _checked("jvp", run.out)
    return run.detached(out), run.pushed(out)[0]


def hvp(f: Function, primals: Any, tangents: Any) -> Any:
    """Return H v, the Hessian of a scalar f at `primals` times the tangents v, without forming H.

    It is the derivative of df/dx in the direction v, forward mode over a backward pass, and costs a
    few times what f does (Pearlmutter, 1994). Primals and tangents are a tensor each, or a tuple or list
    each, for which H v is a tuple.

        curvature = (v * hvp(loss, x, v)).sum()

    Raises:
        TypeError: as `jvp`.
        ValueError: as `jvp`, or if f returns more than one element.
    """
    xs, vs = _paired("hvp", primals, tangents)
    gradients = _gradients_of("hvp", f, range(len(xs)))
    run = _Run("hvp", gradients, range(len(xs)), xs, tangents=lambda _: [[v] for v in vs])
    products = tuple(run.pushed(gradient)[0] for gradient in run.out)
    return products if isinstance(primals, (tuple, list)) else products[0]


def jacobian(f: Function, argnums: Argnums = 0) -> Function:
    """Return a function of f's arguments that returns J[i, j] = df_i / dx_j, of shape f's + x's.

    For several `argnums` it returns a tuple. A row is a VJP; where x has far fewer elements than
    the value, J is computed by columns instead, each a JVP.

        J = jacobian(lambda x: A @ x)(x)        # A

    Raises:
        TypeError: as `value_and_grad`.
        ValueError: when called, if `argnums` are repeated or out of range.
    """
    _numbers("jacobian", argnums)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        run = _Run("jacobian", f, argnums, args, kwargs)
        out = _checked("jacobian", run.out)
        if out.size > ROWS_PER_COLUMN * sum(x.size for x in run.inputs):
            return jacfwd(f, argnums)(*args, **kwargs)
        return _as_asked(run.rows(out, run.inputs, run.can_be_differentiated(out)), argnums)

    return transformed


def jacfwd(f: Function, argnums: Argnums = 0) -> Function:
    """Return a function that returns the Jacobian as `jacobian` does, always by columns.

    f runs once, in forward mode, in as many directions as the arguments have elements. A column is
    cheaper than a row, and needs no graph of f in memory.

    Raises:
        TypeError: as `value_and_grad`.
        ValueError: when called, if `argnums` are repeated or out of range.
    """
    _numbers("jacfwd", argnums)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        run = _Run("jacfwd", f, argnums, args, kwargs, tangents=_basis)
        out = _checked("jacfwd", run.out)
        columns, blocks = run.pushed(out), []
        none = Tensor(np.zeros((0, *out.shape), out.dtype))  # for an input without elements
        for x in run.inputs:
            own, columns = columns[: x.size], columns[x.size :]
            block = concatenate([none, *(reshape(v, (1, *out.shape)) for v in own)])
            block = transpose(block, (*range(1, block.ndim), 0))
            blocks.append(reshape(block, out.shape + x.shape))
        return _as_asked(blocks, argnums)

    return transformed


def _basis(inputs: Sequence[Tensor]) -> list[Tangents]:
    """Return tangents of inputs in which each element of each of them moves alone."""
    total = sum(x.size for x in inputs)
    tangents, first = [], 0
    for x in inputs:
        vs: Tangents = [None] * total
        for i in range(x.size):
            v = np.zeros_like(x._data)
            v.flat[i] = 1
            vs[first + i] = Tensor(v)
        tangents.append(vs)
        first += x.size
    return tangents


def hessian(f: Function, argnums: Argnums = 0) -> Function:
    """Return a function of f's arguments that returns H[i, j] = d^2 f / dx_i dx_j.

    H has the shape x's + x's.

    It is the Jacobian of the gradient. For several `argnums` it returns a tuple of tuples of
    blocks: `H[a][b]` is d^2 f / dx dy for x at `argnums[a]` and y at `argnums[b]`.

    Raises:
        TypeError: as `value_and_grad`.
        ValueError: as `value_and_grad`.
    """
    gradients = _gradients_of("hessian", f, argnums)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        run = _Run("hessian", gradients, argnums, args, kwargs)
        record = run.can_be_differentiated(*run.out)
        blocks = [_as_asked(run.rows(g, run.inputs, record), argnums) for g in run.out]
        return _as_asked(blocks, argnums)

    return transformed


class _Run:
    """A run of f on inputs at nodes of their own."""

    def __init__(
        self,
        name: str,
        f: Function,
        argnums: Argnums,
        args: Sequence[Any],
        kwargs: Any = None,
        tangents: Callable[[list[Tensor]], list[Tangents]] | None = None,
    ) -> None:
        if not callable(f):
            raise TypeError(
                f"{name}: f must be a function of tensors, not {_described(f)}; "
                f"minigrad.grad(output, input) differentiates a result"
            )
        numbers, count = _numbers(name, argnums), len(args)
        if not numbers or not all(-count <= n < count for n in numbers):
            raise ValueError(
                f"{name}: argnums is {argnums}, and there are {count} positional arguments; name "
                f"at least one of these (an argument passed by keyword is not one)"
            )
        positions = [n % count for n in numbers]
        if len(set(positions)) < len(positions):
            raise ValueError(f"{name}: argnums {argnums} names an argument twice")
        arguments = [
            Tensor(x) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in args
        ]
        for i in positions:
            arguments[i] = _tensor(args[i], f"{name}: argument {i}")
        self.enabled = is_grad_enabled()
        around = (o for o in mode.observers if isinstance(o, ForwardMode))
        self.around = [forward for forward in around if forward.is_running()]
        self.start = next(clock)  # no older node depends on the inputs, so walks end there
        if tangents is not None:
            self.inputs: list[Tensor] = [arguments[i] for i in positions]
            directions = tangents(self.inputs)
            self.forward = ForwardMode(len(directions[0]))
            for i, vs in zip(positions, directions, strict=True):
                arguments[i] = self.forward.start(arguments[i], vs)
            with observe(self.forward):
                self.out: Any = f(*arguments, **(kwargs or {}))
            return
        with grad_mode(True):
            for i in positions:
                x = arguments[i]
                arguments[i] = inner = identity(x) if x.requires_grad else Tensor(x)
                inner.requires_grad_()
                assert inner.node is not None
                inner.node.forward_only = False  # also if nothing but a run around this sees x
            self.inputs = [arguments[i] for i in positions]
            self.out = f(*arguments, **(kwargs or {}))

    def can_be_differentiated(self, *results: Tensor) -> bool:
        """Return whether something outside can ask for the derivative of one of `results`."""
        return self._is_in_graph(*results) or any(
            forward.carries(result) for forward in self.around for result in results
        )

    def _is_in_graph(self, *results: Tensor) -> bool:
        """Return whether one of `results` depends on an older node that requires a gradient."""
        roots = [result.node for result in results if result.node is not None]
        found = reachable(roots, oldest=self.start) if self.enabled else []
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
            recorded=record and self._is_to_be_recorded(outputs, cotangents),
        )
        return tuple(
            take(arrived, end) if end in arrived else Tensor(np.zeros(end.shape, end.dtype))
            for end in ends
        )

    def _is_to_be_recorded(self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> bool:
        """Return whether a pass on Tensors needs a graph, and not only tangents."""
        return (
            not self.around
            or any(forward.needs_grad_mode() for forward in self.around)
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

    def transformed(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        run = _Run(name, f, argnums, args, kwargs)
        out, aux = run.out, None
        if has_aux:
            if not (isinstance(out, tuple) and len(out) == 2):
                raise TypeError(
                    f"{name}: with has_aux, f must return (value, aux), not {out!r:.60}"
                )
            out, aux = out
        if _checked(name, out).size != 1:
            raise ValueError(
                f"{name}: f must return one element, not {out.describe()}; reduce it with .sum() "
                f"or .mean(), or take the derivatives of all elements with `jacobian`"
            )
        record = run.can_be_differentiated(out)
        value = out if record else out.detach()
        one = Tensor(np.ones_like(out._data))
        # `aux` may lie on the same graph, and must not find it freed.
        gradients = run.pull([out], [one], run.inputs, record, retain=has_aux)
        return (value, run.detached(aux)) if has_aux else value, _as_asked(gradients, argnums)

    return transformed


def _gradients_of(name: str, f: Function, argnums: Argnums) -> Function:
    """Return a function of f's arguments that returns the tuple of gradients."""
    both = _value_and_grad(name, f, _numbers(name, argnums))
    return lambda *args, **kwargs: both(*args, **kwargs)[1]


def _as_asked(results: Sequence[Any], argnums: Argnums) -> Any:
    """Return a tuple for several `argnums`, one result for one."""
    return tuple(results) if isinstance(argnums, Sequence) else results[0]


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


def _paired(name: str, primals: Any, tangents: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Return primals and tangents as lists, checked against each other."""
    several = isinstance(primals, (tuple, list))
    if several != isinstance(tangents, (tuple, list)):
        raise TypeError(
            f"{name}: primals and tangents are one tensor each or one tuple each, not "
            f"{_described(primals)} and {_described(tangents)}"
        )
    if not several:
        primals, tangents = [primals], [tangents]
    if len(primals) != len(tangents):
        raise ValueError(f"{name}: {len(primals)} primals, but {len(tangents)} tangents")
    xs = [_tensor(x, f"{name}: argument {i}") for i, x in enumerate(primals)]
    vs = [_tensor(v, f"{name}: tangent {i}", like=xs[i]) for i, v in enumerate(tangents)]
    return xs, vs


def _tensor(value: Any, role: str, like: Tensor | None = None) -> Tensor:
    """Return `value` as a Tensor of floats; with `like`, checked for its shape, in its dtype."""
    if not isinstance(value, (Tensor, np.ndarray, np.generic, int, float)):
        raise TypeError(
            f"{role} must be a Tensor, an array or a number, not {_described(value)}; pass several "
            f"tensors as several arguments"
        )
    tensor = value if isinstance(value, Tensor) else Tensor(value)
    if like is None:
        if tensor.dtype.kind != "f":
            raise TypeError(
                f"{role} is of {tensor.dtype}, and only floats can be differentiated by; convert "
                f"it (3.0 for 3, .astype('float32')), or differentiate by others only"
            )
    elif tensor.shape != like.shape:
        raise ValueError(f"{role} must have shape {like.shape}, not {tensor.shape}")
    elif tensor.dtype != like.dtype:
        return tensor.astype(like.dtype)
    return tensor


def _checked(name: str, out: Any) -> Tensor:
    """Return the result of f, checked to be a Tensor of floats."""
    if isinstance(out, (int, float, np.number, np.ndarray)):
        raise TypeError(
            f"{name}: f must return a Tensor of floats, not {_described(out)}, which no gradient "
            f"follows; compute it from the arguments with minigrad's functions, without float(), "
            f".item() or numpy"
        )
    if not isinstance(out, Tensor) or out.dtype.kind != "f":
        raise TypeError(
            f"{name}: f must return a Tensor of floats, not {_described(out)}; concatenate several "
            f"results into one"
        )
    return out


def _described(value: Any) -> str:
    return value.describe() if isinstance(value, Tensor) else f"a {type(value).__name__}"
