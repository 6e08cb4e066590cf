"""Norms, diagonals, traces, and products of arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from minigrad import ops
from minigrad.checks import check_count, check_integer, shown
from minigrad.core.grad_mode import observed
from minigrad.core.tensor import Array, Axis, Tensor
from minigrad.functional.compositions import composition, narrowed, root, widened
from minigrad.functional.decompositions import svdvals
from minigrad.functional.shape import expand_dims, moveaxis
from minigrad.ops.linalg import check_square
from minigrad.ops.shape import flag, normalize_axes


@composition
def norm(
    x: Array, ord: float | str | None = None, axis: Axis = None, keepdims: bool = False
) -> Tensor:
    """The norm of vectors along one axis, or of matrices along two.

    For a vector, `ord` = p gives (sum |x|^p)^(1/p); inf gives the largest |x|, -inf the smallest,
    and 0 the number of elements that are not 0. (For p < 1 this is not a norm in the strict sense.)
    For a matrix, 1 (-1) gives the largest (smallest) sum of |x| over a column, and inf (-inf) over
    a row. 2 (-2) gives the largest (smallest) singular value, and "nuc" the sum of the singular
    values. None gives the root of the sum of squares; for a matrix, "fro" means the same.

    With `axis=None`, x itself is the vector or the matrix. If `ord` is None too, x may have any
    shape. The gradient is 0 where the norm is 0. If p < 1, the gradient of an element that is 0 is
    0, although the slope is infinite there.

    Raises:
        ValueError: if `ord` is unknown, an axis does not exist, there are more than two axes, a
            matrix whose singular values are needed contains nan or inf, or there are no elements
            of which to take the largest or smallest.
        TypeError: if `keepdims` is not True or False.
    """
    keepdims = flag(keepdims)
    return narrowed(_norm(widened(x), ord, axis, keepdims), x)


def _norm(x: Array, ord: float | str | None, axis: Axis, keepdims: bool) -> Tensor:
    axes = normalize_axes(axis, x.ndim)
    count = len(axes)
    euclidean = (count, ord) in ((1, 2), (2, "fro"))
    if euclidean or (ord is None and (axis is None or count in (1, 2))):
        return root(ops.sum(ops.square(x), axes, keepdims))
    if count not in (1, 2):
        raise ValueError(f"takes vectors or matrices, not {count} axes of shape {x.shape}")
    if count == 1 and isinstance(ord, (int, float, np.number)) and ord == ord:  # no nan
        return _of_vectors(x, ord, axes, keepdims)
    if count == 2 and ord in (1, -1, np.inf, -np.inf):
        row, column = axes
        sums = ops.sum(ops.abs(x), row if abs(ord) == 1 else column, keepdims=True)
        return (ops.max if ord > 0 else ops.min)(sums, axes, keepdims)
    if count == 2 and ord in (2, -2, "nuc"):
        values = svdvals(moveaxis(x, axes, (-2, -1)))
        of_values = {2: ops.max, -2: ops.min, "nuc": ops.sum}[ord]
        out = of_values(values, -1)
        return expand_dims(out, axes) if keepdims else out
    known = "a number or None" if count == 1 else "1, -1, 2, -2, inf, -inf, 'fro', 'nuc' or None"
    raise ValueError(f"ord is {known} for {'vectors' if count == 1 else 'matrices'}, not {ord!r}")


def _of_vectors(x: Array, p: float, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    size = ops.abs(x)
    if math.isinf(p):
        return (ops.max if p > 0 else ops.min)(size, axes, keepdims)
    if p >= 1:
        return root(ops.sum(size**p, axes, keepdims), p)
    zero = size == 0
    if p == 0:
        return ops.sum(ops.where(zero, size, 1.0), axes, keepdims)
    total = ops.sum(ops.where(zero, 0.0, ops.where(zero, 1.0, size) ** p), axes, keepdims)
    out = root(total, p)
    if p < 0:  # if all elements are infinite, the sum is 0; if one element is 0, it is infinite
        out = ops.where(total == 0, math.inf, out)
        out = ops.where(ops.logical_and(ops.any(zero, axes, keepdims), total == total), 0.0, out)
    return out


@composition
def matrix_power(a: Array, n: int) -> Tensor:
    """A^n for matrices A `(..., m, m)`: the identity if n = 0, a power of A^-1 if n < 0.

    Raises:
        ValueError: if the matrices are not square, or n < 0 and a matrix is singular.
        TypeError: if n is not an integer.
    """
    check_square(a)
    check_integer("n", n)
    if n == 0:
        return ops.where(False, a, np.eye(a.shape[-1], dtype=a.dtype))
    if n < 0:
        a, n = ops.inv(a), -n
    while n % 2 == 0:
        a, n = ops.matmul(a, a), n // 2
    out: Tensor = a
    while n := n // 2:
        a = ops.matmul(a, a)
        out = ops.matmul(out, a) if n % 2 else out
    return out


@composition
def diagonal(x: Array, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    """The elements x[i, i + offset] of the matrices along `axis1` and `axis2`, as the last axis.

    Raises:
        ValueError: if the axes are the same or do not exist.
        TypeError: if the offset is not an integer.
    """
    check_integer("offset", offset)
    x = moveaxis(x, normalize_axes((axis1, axis2), x.ndim), (-2, -1))
    return ops.getitem(x, (..., *observed(diagonal_indices, x.shape[-2:], offset)))


def diagonal_indices(shape: tuple[int, int], offset: int) -> tuple[Any, Any]:
    """Return the rows and the columns of the elements of a diagonal."""
    rows, columns = shape
    first, last = max(-offset, 0), min(rows, columns - offset)
    steps = np.arange(first, max(first, last))
    return steps, steps + offset


@composition
def trace(x: Array, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    """The sum of the diagonal of the matrices along `axis1` and `axis2`.

    Raises:
        ValueError, TypeError: as in `diagonal`.
    """
    return ops.sum(diagonal(x, offset, axis1, axis2), -1)


@composition
def diag(x: Array, k: int = 0) -> Tensor:
    """The k-th diagonal of a matrix; or for a vector, the matrix with this k-th diagonal.

    Raises:
        ValueError: if x does not have one or two axes.
        TypeError: if k is not an integer.
    """
    check_integer("k", k)
    if x.ndim == 2:
        return diagonal(x, k)
    if x.ndim != 1:
        raise ValueError(f"takes a vector or a matrix, not an array of shape {x.shape}")
    size = x.shape[0] + abs(k)
    return ops.scatter_add(x, observed(diagonal_indices, (size, size), k), (size, size))


# --------------------------------------------------------------------------------------------------
# Products of arrays, computed by matrix products
# --------------------------------------------------------------------------------------------------


@composition
def outer(a: Array, b: Array) -> Tensor:
    """The outer product: out[i, j] = a[i] b[j], for the elements of a and of b, both flattened."""
    return ops.multiply(ops.reshape(a, (-1, 1)), ops.reshape(b, -1))


@composition
def dot(a: Array, b: Array) -> Tensor:
    """The sum of products over the last axis of a and the second-to-last (or only) axis of b.

    For vectors and matrices it is `a @ b`; if one is a number, it is `a * b`. The result has the
    other axes of a, then those of b: `(a, b, k)` and `(c, k, d)` give `(a, b, c, d)`.

    Raises:
        ValueError: if the sizes do not match.
    """
    if np.ndim(a) == 0 or np.ndim(b) == 0:
        return ops.multiply(a, b)
    if b.ndim <= 2:
        return ops.matmul(a, b)
    return tensordot(a, b, (-1, -2))


@composition
def inner(a: Array, b: Array) -> Tensor:
    """The sum of products over the last axes of a and b: `(a, k)` and `(b, k)` give `(a, b)`.

    If one of them is a number, it is `a * b`.

    Raises:
        ValueError: if the sizes do not match.
    """
    return ops.multiply(a, b) if 0 in (a.ndim, b.ndim) else tensordot(a, b, (-1, -1))


@composition
def tensordot(a: Array, b: Array, axes: int | Sequence[int | Sequence[int]] = 2) -> Tensor:
    """The sum of products over some axes of a and b, as one matrix product.

    The other axes of a come first in the result, then those of b.

    Args:
        a: the first array.
        b: the second array.
        axes: the axes of a and the axes of b, as in `((1, 0), (0, 1))` or `(-1, 0)`; a number n
            means the last n axes of a and the first n axes of b.

    Raises:
        ValueError: if an axis does not exist, `axes` is negative or not a pair, or the sizes do not
            match.
        TypeError: if `axes` is neither an integer nor a sequence.
    """
    if isinstance(axes, (int, np.integer)):
        check_count("axes", axes)
        axes = tuple(range(-axes, 0)), tuple(range(axes))
    wanted = "axes are an integer, or those of a and those of b"
    if not isinstance(axes, (Sequence, np.ndarray)):
        raise TypeError(f"{wanted}, not {axes!r:.60}")
    if len(axes) != 2:
        raise ValueError(f"{wanted}, not {axes!r}")
    of_a, of_b = normalize_axes(axes[0], a.ndim), normalize_axes(axes[1], b.ndim)
    sizes = [a.shape[i] for i in of_a]
    if sizes != [b.shape[i] for i in of_b]:
        raise ValueError(
            f"axes {of_a} of shape {a.shape} and axes {of_b} of shape {b.shape} do not align"
        )
    rest_a = [i for i in range(a.ndim) if i not in of_a]
    rest_b = [i for i in range(b.ndim) if i not in of_b]
    rows, columns = [a.shape[i] for i in rest_a], [b.shape[i] for i in rest_b]
    left = ops.reshape(ops.transpose(a, [*rest_a, *of_a]), (math.prod(rows), math.prod(sizes)))
    right = ops.reshape(ops.transpose(b, [*of_b, *rest_b]), (math.prod(sizes), math.prod(columns)))
    return ops.reshape(ops.matmul(left, right), [*rows, *columns])


@composition
def kron(a: Array, b: Array) -> Tensor:
    """The Kronecker product: out[i m + k, j n + l] = a[i, j] b[k, l] for b of shape `(m, n)`.

    The size of the result along each axis is the product of both sizes. An array with fewer axes
    gets new axes of size 1 in front.
    """
    count = max(a.ndim, b.ndim)
    sizes = [[1] * (count - x.ndim) + list(x.shape) for x in (a, b)]
    left = ops.reshape(a, [n for size in sizes[0] for n in (size, 1)])
    right = ops.reshape(b, [n for size in sizes[1] for n in (1, size)])
    return ops.reshape(ops.multiply(left, right), [m * n for m, n in zip(*sizes, strict=True)])


@composition
def einsum(subscripts: str, *operands: Array) -> Tensor:
    """Products summed over indices, in Einstein's notation: `einsum("bij,bjk->bik", x, y)`.

    Each operand has a letter for every axis. Letters that are not in the output are summed over. If
    an operand repeats a letter, its diagonal is used. `...` means further axes, which are
    broadcast. Without `->`, the output has the letters that occur once, in alphabetical order.

    `numpy.einsum_path` finds the order in which pairs of operands are combined. Each pair is
    computed by one matrix product, with minigrad's kernels.

    Raises:
        TypeError: if the subscripts are not a string.
        ValueError: if the subscripts do not describe the operands, or sizes do not match.
    """
    if not isinstance(subscripts, str):
        raise TypeError(f"subscripts come first, as in 'ij,jk->ik', not {shown(subscripts)}")
    inputs, output, sizes, order = _parsed(subscripts, tuple(x.shape for x in operands))
    terms = [_distinct(x, axes, sizes) for x, axes in zip(operands, inputs, strict=True)]
    for pair in order:
        chosen = [terms.pop(i) for i in sorted(pair, reverse=True)][::-1]
        while len(chosen) > 1:
            y, x = chosen.pop(), chosen.pop()
            needed = {*output, *(axis for _, axes in (*terms, *chosen) for axis in axes)}
            chosen.append(_product(*x, *y, needed, sizes))
        terms.append(chosen[0])
    ((out, axes),) = terms
    out, axes = _summed(out, axes, set(output))
    return ops.transpose(out, [axes.index(axis) for axis in output])


# The name of an axis is its letter; axes of an ellipsis are counted from its end: "-1", "-2".
Axes = list[str]


@lru_cache(maxsize=1024)
def _parsed(
    subscripts: str, shapes: tuple[tuple[int, ...], ...]
) -> tuple[list[Axes], Axes, dict[str, int], Sequence[Any]]:
    """Return the axes of each operand, those of the output, the size of each axis, and the order.

    Along an axis, an operand may have size 1 if another one is larger: it is broadcast.
    """
    try:
        order = np.einsum_path(subscripts, *(np.broadcast_to(0, shape) for shape in shapes))[0][1:]
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(
            f"{subscripts!r} does not describe operands of shapes {list(shapes)}: "
            f"{str(error).rstrip('.')}; an operand has a letter for each axis, and at most one ... "
            f"for further ones, and the output has some of these letters, each once"
        ) from None
    left, arrow, right = subscripts.replace(" ", "").partition("->")
    inputs = []
    sizes: dict[str, int] = {}
    for part, shape in zip(left.split(","), shapes, strict=True):
        before, _, after = part.partition("...")
        hidden = len(shape) - len(before) - len(after)
        inputs.append([*before, *(str(i) for i in range(-hidden, 0)), *after])
        if len({*zip(inputs[-1], shape, strict=True)}) != len({*inputs[-1]}):
            raise ValueError(f"a letter that {part!r} repeats has two sizes in shape {shape}")
        for axis, size in zip(inputs[-1], shape, strict=True):
            sizes[axis] = size if sizes.get(axis, 1) == 1 else sizes[axis]
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        right = "..." + "".join(sorted(a for a in letters if letters.count(a) == 1))
    before, dots, after = right.partition("...")
    ellipsis = sorted((axis for axis in sizes if not axis.isalpha()), key=int) if dots else []
    return inputs, [*before, *ellipsis, *after], sizes, order


def _distinct(x: Array, axes: Axes, sizes: dict[str, int]) -> tuple[Array, Axes]:
    """Return an operand broadcast to its full size; an axis named twice becomes its diagonal."""
    shape = tuple(sizes[axis] for axis in axes)
    if x.shape != shape:
        x = ops.broadcast_to(x, shape)
    for axis in axes:
        while axes.count(axis) > 1:
            first = axes.index(axis)
            second = axes.index(axis, first + 1)
            x = diagonal(x, 0, first, second)
            axes = [a for i, a in enumerate(axes) if i not in (first, second)] + [axis]
    return x, axes


def _summed(x: Array, axes: Axes, needed: set[str]) -> tuple[Array, Axes]:
    """Sum x over the axes that neither another operand nor the output needs."""
    rest = tuple(i for i, axis in enumerate(axes) if axis not in needed)
    return (ops.sum(x, rest) if rest else x), [axis for axis in axes if axis in needed]


def _product(
    x: Array, x_axes: Axes, y: Array, y_axes: Axes, needed: set[str], sizes: dict[str, int]
) -> tuple[Array, Axes]:
    """Multiply two operands, and sum over their common axes that are not needed later."""
    x, x_axes = _summed(x, x_axes, needed | set(y_axes))
    y, y_axes = _summed(y, y_axes, needed | set(x_axes))
    batch = [axis for axis in x_axes if axis in y_axes and axis in needed]
    inner = [axis for axis in x_axes if axis in y_axes and axis not in needed]
    rows = [axis for axis in x_axes if axis not in y_axes]
    columns = [axis for axis in y_axes if axis not in x_axes]

    def grouped(value: Array, axes: Axes, *groups: Axes) -> Array:
        """Return an operand with the batch axes, and one axis for each further group of axes."""
        ordered = ops.transpose(
            value, [axes.index(axis) for group in (batch, *groups) for axis in group]
        )
        return ops.reshape(ordered, [*(sizes[axis] for axis in batch), *map(size, groups)])

    def size(group: Axes) -> int:
        return math.prod(sizes[axis] for axis in group)

    left, right = grouped(x, x_axes, rows, inner), grouped(y, y_axes, inner, columns)
    out = ops.matmul(left, right) if inner else ops.multiply(left, right)
    axes = [*batch, *rows, *columns]
    return ops.reshape(out, [sizes[axis] for axis in axes]), axes
