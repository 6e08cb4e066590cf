"""The transforms, which turn a function into a function that computes its derivatives."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from minigrad.containers import Structure, flatten_as, rebuild
from minigrad.core.backward import initial_gradient
from minigrad.core.grad_mode import is_grad_enabled
from minigrad.core.observers import has_tangent
from minigrad.core.tensor import Tensor
from minigrad.ops import concatenate, reshape, transpose
from minigrad.transforms.function_call import (
    Argnums,
    Call,
    Function,
    Run,
    as_like,
    check_argnums,
    described,
    unit,
)

__all__ = ["gradient", "hessian", "hvp", "jacfwd", "jacobian", "jvp"]
__all__ += ["value_and_grad", "vjp"]

# A Jacobian is computed by columns, with one more run of f, if rows > ROWS_PER_COLUMN columns.
ROWS_PER_COLUMN = 1
DIRECTIONS = 64  # the number of directions in one run in forward mode


class ValueAndGrad(NamedTuple):
    """The value of a function, or `(value, aux)` with `has_aux`, and its gradient."""

    value: Any
    gradient: Any


class ValueAndPullback(NamedTuple):
    """The value of a function, and its pullback v -> v^T J."""

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
        argnums: the position of the argument to differentiate, a tensor or a container. The
            gradient has the same structure. For several positions, the gradient is a tuple.
        has_aux: whether f returns `(value, aux)`. The result is then `((value, aux), gradient)`.
            Tensors in `aux`, also in containers, are detached under the same rule as `value`.

    Raises:
        TypeError: if `argnums` are not ints. When called, if f is not a function, a leaf of the
            argument is not of floats, the argument has no leaf, a dict in it has attributes, or f
            does not return a Tensor of floats; with `has_aux`, a pair of one and aux.
        ValueError: when called, if `argnums` are repeated or out of range, f returns more than one
            element, or two Modules share a parameter.
        RuntimeError: when called, if another thread differentiates by the same Module meanwhile.
    """
    return _named(_value_and_grad("value_and_grad", f, argnums, has_aux), "value_and_grad", f)


def gradient(f: Function, argnums: Argnums = 0, has_aux: bool = False) -> Function:
    """Return a function of f's arguments that returns df/dx, the gradient of `value_and_grad`.

        derivative = gradient(minigrad.tanh)(0.5)       # 1 - tanh(0.5)^2

    With `has_aux`, f returns `(value, aux)`, and the result is `(gradient, aux)`.

    Raises:
        TypeError, ValueError, RuntimeError: as in `value_and_grad`.
    """
    return _named(_gradient("gradient", f, argnums, has_aux), "gradient", f)


def vjp(f: Function, *primals: Any) -> ValueAndPullback:
    """Return the value of f at `primals` and its pullback, v -> v^T J with J = df/dx.

    f may return a container. `pullback(v)` expects v with the structure and shapes of the value. It
    returns a tuple with one derivative for each primal, in the structure of the primal. It may be
    called any number of times, and keeps the graph of f in memory.

        value, pullback = vjp(minigrad.tanh, x)
        (gradient,) = pullback(minigrad.ones_like(value))

    Raises:
        TypeError: as in `value_and_grad`, or if the structure of v in the pullback is another one.
        ValueError: if there are no primals, or two Modules share a parameter; in the pullback, if v
            has another shape, or other keys.
        RuntimeError: as in `value_and_grad`.
    """
    if not primals:
        raise ValueError("vjp: there are no primals; write vjp(f, x)")
    call = Call("vjp", f, range(len(primals)), primals)
    run = Run(call)
    outs, structure = run.results()
    wanted = run.can_be_differentiated(*outs)

    def pullback(v: Any) -> Any:
        """Return v^T J for a cotangent v: a tuple with one derivative for each primal."""
        leaves = flatten_as(structure, v, "vjp: the pullback's v")
        cotangents = as_like(outs, leaves)
        record = is_grad_enabled() and (wanted or any(c.requires_grad for c in cotangents))
        record = record or has_tangent(*cotangents) or (wanted and has_tangent(*outs))
        pulled = run.pull(outs, cotangents, record, retain=True)
        return call.arranged(pulled)

    value = rebuild(structure, outs if wanted else [out.detach() for out in outs])
    return ValueAndPullback(value, pullback)


def jvp(f: Function, primals: Any, tangents: Any) -> ValueAndTangent:
    """Return f at `primals` and J v, its derivative in the direction of the tangents v.

    A tuple or list of primals has one primal for each argument of f; any other value is the only
    argument. Tangents have the structure of the primals; for a Module, they are a dict by parameter
    names. f may return a container. f runs once, in forward mode: after each op, the tangent of its
    result is computed, and nothing is saved for a backward pass. So memory does not grow with the
    depth of f (see `minigrad.transforms.forward_mode`).

        value, derivative = jvp(minigrad.exp, x, v)        # exp(x) and exp(x) * v

    Raises:
        TypeError: as in `value_and_grad`, or if only one of primals and tangents is a tuple.
        ValueError: if primals and tangents differ in number, keys or shape, there are none, or two
            Modules share a parameter.
        RuntimeError: as in `value_and_grad`.
    """
    call, vs = _paired("jvp", f, primals, tangents)
    run = Run(call, [[v] for v in vs])
    outs, structure = run.results()
    value = rebuild(structure, [run.detached(out) for out in outs])
    return ValueAndTangent(value, rebuild(structure, [run.pushed(out)[0] for out in outs]))


def hvp(f: Function, primals: Any, tangents: Any) -> Any:
    """Return H v, the Hessian of a scalar f at `primals` times the tangents v, without forming H.

    It is the derivative of df/dx in the direction v: forward mode over a backward pass. It costs a
    few times as much as f (Pearlmutter, 1994). Primals and tangents are as in `jvp`. H v has their
    structure, and is a tuple for a tuple or list.

        curvature = (v * hvp(loss, x, v)).sum()

    Raises:
        TypeError, RuntimeError: as in `jvp`.
        ValueError: as in `jvp`, or if f returns more than one element.
    """
    argnums = range(len(primals)) if type(primals) in (tuple, list) else 0
    call, vs = _paired("hvp", _gradient("hvp", f, argnums), primals, tangents)
    run = Run(call, [[v] for v in vs])
    gradients, _ = run.results()
    return call.arranged([run.pushed(gradient)[0] for gradient in gradients])


def jacobian(f: Function, argnums: Argnums = 0) -> Function:
    """Return a function of f's arguments that returns J[i, j] = df_i / dx_j, of shape f's + x's.

    For several `argnums`, the result is a tuple. For containers, it is nested: the structure of f's
    result is outside, that of x inside. If f maps `{"w": (3,), "b": ()}` to `{"y": (2,)}`, then
    `J["y"]["w"]` has shape (2, 3) and `J["y"]["b"]` has shape (2,). J is computed by rows, each a
    VJP. If the value has more elements than x, f runs again, and J is computed by columns, each a
    JVP.

        J = jacobian(lambda x: A @ x)(x)        # A

    Raises:
        TypeError, ValueError: as in `value_and_grad`, but f may return any number of elements.
        RuntimeError: as in `value_and_grad`, or, if columns need several runs of f because x has
            more than 64 elements, if these runs give different results.
    """
    return _jacobian("jacobian", f, argnums)


def jacfwd(f: Function, argnums: Argnums = 0) -> Function:
    """Return a function that returns the Jacobian as `jacobian` does, always by columns.

    Each element of the arguments is one direction. f runs in forward mode, with up to 64 directions
    at once, until all directions are done. It records no graph.

    Raises:
        TypeError, ValueError, RuntimeError: as in `jacobian`.
    """
    return _jacobian("jacfwd", f, argnums)


def _jacobian(name: str, f: Function, argnums: Argnums) -> Function:
    check_argnums(name, argnums)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        """Return the Jacobian of the named function: its results' structure, then argnums'."""
        call = Call(name, f, argnums, args, kwargs)
        rows = _rows(call) if name == "jacobian" else None
        blocks, structure = rows or _columns(call)
        return rebuild(structure, [call.arranged(of_one) for of_one in blocks])

    return _named(transformed, name, f)


def _rows(call: Call) -> tuple[list[list[Tensor]], Structure] | None:
    """Compute the Jacobian as `_columns` does, but by rows; None if there are more rows."""
    run = Run(call)
    outs, structure = run.results()
    if sum(out.size for out in outs) > ROWS_PER_COLUMN * sum(x.size for x in run.inputs):
        return None
    record = run.can_be_differentiated(*outs)
    return [run.rows(out, record) for out in outs], structure


def _columns(call: Call) -> tuple[list[list[Tensor]], Structure]:
    """Compute the Jacobian of each leaf of the result by each leaf of the arguments, by columns.

    f runs once for each group of directions, because the tangents of a group are in memory at once.
    """
    sizes = [x.size for x in call.leaves]
    *starts, total = accumulate(sizes, initial=0)
    columns: list[list[Tensor]] = []
    before: list[Tensor] = []
    for first in range(0, max(1, total), DIRECTIONS):
        directions = range(first, min(first + DIRECTIONS, total))
        units = [
            [unit(x, k - at) if at <= k < at + x.size else None for k in directions]
            for x, at in zip(call.leaves, starts, strict=True)
        ]
        run = Run(call, units)
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


def hessian(f: Function, argnums: Argnums = 0) -> Function:
    """Return a function of f's arguments that returns H[i, j] = d^2 f / dx_i dx_j.

    H has the shape of x + the shape of x.

    It is the Jacobian of the gradient, computed by columns. For several `argnums` it is a tuple of
    tuples of blocks: `H[a][b]` is d^2 f / dx dy for x at `argnums[a]` and y at `argnums[b]`.
    Containers are nested in the same way: `H["w"]["b"]` has the shape of w + the shape of b.

    Raises:
        TypeError, ValueError: as in `value_and_grad`.
        RuntimeError: as in `jacobian`.
    """
    gradient_of_f = _gradient("hessian", f, argnums)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        """Return the Hessian of the named function: argnums' structure, twice."""
        call = Call("hessian", gradient_of_f, argnums, args, kwargs)
        blocks, _ = _columns(call)
        return call.arranged([call.arranged(of_one) for of_one in blocks])

    return _named(transformed, "hessian", f)


def _value_and_grad(name: str, f: Function, argnums: Argnums, has_aux: bool) -> Function:
    check_argnums(name, argnums)

    def transformed(*args: Any, **kwargs: Any) -> ValueAndGrad:
        """Return ValueAndGrad(value, gradient) of the named function, or ((value, aux), gradient).

        The gradient has the structure of the argument at argnums, in a tuple if these are several.
        """
        run = Run(Call(name, f, argnums, args, kwargs))
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
        # `aux` may be part of the same graph, so the graph must not be freed.
        gradients = run.pull([out], [one], record, retain=has_aux)
        result = (value, run.detached(aux)) if has_aux else value
        return ValueAndGrad(result, run.call.arranged(gradients))

    return transformed


def _gradient(name: str, f: Function, argnums: Argnums, has_aux: bool = False) -> Function:
    both = _value_and_grad(name, f, argnums, has_aux)

    def transformed(*args: Any, **kwargs: Any) -> Any:
        """Return the gradient of the named function, or `(gradient, aux)` with `has_aux`."""
        value, gradient = both(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return transformed


def _named(transformed: Function, name: str, f: Function) -> Function:
    """Set the name of a transformed function, and let `help` show the arguments of f."""
    inner = getattr(f, "__name__", type(f).__name__)
    transformed.__name__ = transformed.__qualname__ = f"{name}({inner})"
    transformed.__wrapped__ = f  # type: ignore[attr-defined]
    return transformed


def _paired(name: str, f: Function, primals: Any, tangents: Any) -> tuple[Call, list[Tensor]]:
    """Return a call of f with the primals, and the leaves of the tangents, after checking them."""
    several = type(primals) in (tuple, list)
    if several != (type(tangents) in (tuple, list)):
        raise TypeError(
            f"{name}: primals and tangents are one each or one tuple each, not "
            f"{described(primals)} and {described(tangents)}"
        )
    if not several:
        primals, tangents = [primals], [tangents]
    if not primals:
        raise ValueError(f"{name}: there are no primals; write {name}(f, x, v)")
    if len(primals) != len(tangents):
        raise ValueError(f"{name}: {len(primals)} primals, but {len(tangents)} tangents")
    call = Call(name, f, range(len(primals)) if several else 0, primals)
    return call, call.tangents(tangents)
