"""Linear algebra: inverse, solve, determinant, Cholesky; numpy calls LAPACK.

The last two axes of an array are the matrix; leading axes are a stack of matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from minigrad.core.op import op
from minigrad.core.tensor import Array, Tensor
from minigrad.errors import op_error
from minigrad.ops.products import matmul, swap_last
from minigrad.ops.shape import getitem, reshape, scatter_add


def lapack_flops(a: Array, numerator: int, denominator: int = 1, squares: int = 0) -> int:
    """Return LAPACK's FLOPs for all matrices: the largest terms, multiples of n^3 and n^2."""
    n: int = a.shape[-1]
    matrices: int = math.prod(a.shape[:-2])
    return matrices * (numerator * n**3 // denominator + squares * n**2)


@op(floats=True, cost=lambda a: lapack_flops(a, 2))
def inv(a: Array) -> Array:
    """The inverse of each matrix in `(..., n, n)`: d(A^-1) = -A^-1 dA A^-1.

    Raises:
        ValueError: if the matrices are not square, or a matrix is singular.
    """
    return _regular(np.linalg.inv, a)


@inv.vjp("a")
def _inv_a(g: Array, out: Array) -> Array:
    transposed = swap_last(out)
    return -matmul(matmul(transposed, g), transposed)


def _solve_cost(a: Array, b: Array, left: bool, out: Array) -> int:
    n: int = a.shape[-1]
    size: int = out.size
    columns = 1 if len(b.shape) == 1 else b.shape[-1 if left else -2]
    return size // max(1, n * columns) * (2 * n**3 // 3) + 2 * size * n


@op(
    linear=("b",),
    floats=True,
    cost=_solve_cost,
    shape=lambda a, b: (
        (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), *b.shape[-2:])
        if len(b.shape) > 1
        else a.shape[:-1]
    ),
)
def solve(a: Array, b: Array, left: bool = True) -> Array:
    """The solution x of a x = b, for `(..., n, n)` and `(..., n, k)`, or one vector `(n,)`.

    With `left=False`, x is the solution of x a = b, for b of shape `(..., k, n)` or `(n,)`. Leading
    axes are broadcast. As in numpy 2, b is a vector only if it has one axis. Pass a stack of
    vectors as columns, `b[..., None]`.

    Raises:
        ValueError: if the matrices are not square, a matrix is singular, or sizes do not match.
    """
    a, b = np.asarray(a), np.asarray(b)
    vector = b.ndim == 1
    leading = zip(a.shape[-3::-1], b.shape[-3::-1], strict=False)
    fit = b.ndim > 0 and a.ndim > 1 and all(m == n or 1 in (m, n) for m, n in leading)
    if not fit or b.shape[-1 if vector or not left else -2] != a.shape[-1]:
        text = "(..., n, k)" if left else "(..., k, n)"
        text = (
            f"a of shape {a.shape} does not fit b of shape {b.shape}; they are (..., n, n) "
            f"and {text} or (n,)"
        )
        if b.shape == a.shape[:-1]:
            text += f"; b[..., {'None' if left else 'None, :'}] is a stack of vectors"
        raise ValueError(text)
    if left:
        return _regular(np.linalg.solve, a, b)
    x = _regular(np.linalg.solve, np.swapaxes(a, -1, -2), b if vector else np.swapaxes(b, -1, -2))
    return x if vector else np.swapaxes(x, -1, -2)


solve.vjp("b", lambda g, a, b_shape, left: _solved_for(swap_last(a), g, left, len(b_shape) == 1))


@solve.vjp("a")
def _solve_a(g: Array, a: Array, b_shape: tuple[int, ...], left: bool, out: Array) -> Array:
    vector = len(b_shape) == 1
    adjoint = _solved_for(swap_last(a), g, left, vector)
    if vector:
        adjoint, out = (reshape(v, (*v.shape, 1)) for v in (adjoint, out))
    elif not left:
        adjoint, out = swap_last(adjoint), swap_last(out)
    product = matmul(adjoint, swap_last(out))
    return -(product if left else swap_last(product))


def _solved_for(a: Array, b: Array, left: bool, vector: bool) -> Array:
    """Solve a x = b or x a = b, for a stack of vectors if the op was called with a vector."""
    if not vector:
        return solve(a, b, left)
    solution = solve(a if left else swap_last(a), reshape(b, (*b.shape, 1)))
    return reshape(solution, solution.shape[:-1])


@op(
    floats=True,
    cost=lambda a, out: 13 * out.size * min(a.shape[-2:]),  # singular values, vectors, a product
    shape=lambda a: (*a.shape[:-2], a.shape[-1], a.shape[-2]),
)
def pinv(a: Array, rcond: float | None = None, hermitian: bool = False) -> Array:
    """The pseudoinverse P of each matrix in `(..., m, n)` (Moore and Penrose): `(..., n, m)`.

    The derivative is -P dA P + P P^T dA^T (I - A P) + (I - P A) dA^T P^T P (Golub and Pereyra,
    1973). It is valid where the rank does not change, and divides by no difference of singular
    values.

    Args:
        a: the matrices.
        rcond: singular values up to `rcond` times the largest one count as 0. None means max(m, n)
            times the machine epsilon of the dtype.
        hermitian: compute the pseudoinverse of (A + A^T) / 2, which is faster.

    Raises:
        ValueError: if the array has fewer than two axes, or contains nan or inf; with `hermitian`,
            if the matrices are not square.
        TypeError: if `rcond` is not a number.
    """
    check_finite(check_matrices(a))
    if hermitian:
        a = 0.5 * (check_square(a) + np.swapaxes(a, -1, -2))
    if rcond is None:
        rcond = max(a.shape[-2:]) * np.finfo(a.dtype).eps
    elif np.asarray(rcond).dtype.kind not in "iuf":
        raise TypeError(f"rcond is a number or None, not {rcond!r:.60}")
    return np.linalg.pinv(a, rcond, hermitian)


@pinv.vjp("a")
def _pinv_a(g: Array, a: Array, hermitian: bool, out: Array) -> Array:
    if hermitian:
        a = symmetric_part(a)
    h, transposed = swap_last(g), swap_last(out)
    right = matmul(matmul(h, out), transposed)
    left = matmul(transposed, matmul(out, h))
    total = right - matmul(a, matmul(out, right)) + left - matmul(matmul(left, out), a)
    total = total - matmul(matmul(transposed, g), transposed)
    return symmetric_part(total) if hermitian else total


@op(floats=True, cost=lambda a: lapack_flops(a, 2, 3), shape=lambda a: a.shape[:-2])
def det(a: Array) -> Array:
    """The determinant of each matrix in `(..., n, n)`; the derivative is the matrix of cofactors.

    For a regular matrix, this is det(A) A^-T. For a singular or nearly singular matrix, and where
    det(A) is out of range, each cofactor is computed as a determinant. This takes O(n^5)
    operations, and works up to n = 16. For a larger n, the derivative is 0, infinite or nan where
    det(A) is out of range.

    Raises:
        ValueError: if the matrices are not square; in the backward pass, if a matrix is singular
            and n > 16.
    """
    return np.linalg.det(check_square(a))


@det.vjp("a", cost=lambda a, out: lapack_flops(a, 2, squares=1) + out.size)  # if all are regular
def _det_a(g: Array, a: Array, out: Array) -> Array:
    n = a.shape[-1]
    values, dets = (v._data if isinstance(v, Tensor) else v for v in (a, out))
    singular = _nearly_singular(values)
    if n <= _MOST_COFACTORS:
        singular |= ~(np.isfinite(dets) & (np.abs(dets) >= np.finfo(dets.dtype).tiny))
    g, out = (reshape(v, (*v.shape, 1, 1)) for v in (g, out))
    if not singular.any():
        return g * out * swap_last(inv(a))
    if n > _MOST_COFACTORS:
        most = f"{_MOST_COFACTORS} x {_MOST_COFACTORS}, not for {n} x {n}"
        text = f"the derivative at a singular matrix is offered up to {most}"
        raise op_error(ValueError, "det", text)
    flat = reshape(a, (-1, n, n))
    few, many = np.flatnonzero(singular), np.flatnonzero(~singular)
    cofactors = scatter_add(_cofactors(getitem(flat, few)), few, flat.shape)
    if many.size:
        inverses = swap_last(inv(getitem(flat, many)))
        regular = getitem(reshape(out, (-1, 1, 1)), many) * inverses
        cofactors = cofactors + scatter_add(regular, many, flat.shape)
    return g * reshape(cofactors, a.shape)


_MOST_COFACTORS = 16  # the minors of one matrix of float64 take 8 n^4 bytes, half a megabyte


def _nearly_singular(a: Array) -> Array:
    """Return which matrices are singular, or too ill-conditioned for a precise inverse."""
    n = a.shape[-1]
    if a.size == 0:
        return np.zeros(a.shape[:-2], bool)
    eps = np.finfo(a.dtype).eps
    limit = 1 / math.sqrt(eps) if n <= _MOST_COFACTORS else 1 / (n * eps)
    with np.errstate(all="ignore"):  # the condition number of a singular matrix is infinite
        return np.linalg.cond(a, 1) > limit


def _cofactors(a: Array) -> Array:
    """Return the cofactors: (-1)^(i + j) times the determinant without row i and column j."""
    n = a.shape[-1]
    others = np.array([[k for k in range(n) if k != i] for i in range(n)], int).reshape(n, n - 1)
    minors = getitem(a, (..., others[:, None, :, None], others[None, :, None, :]))
    signs = (-1.0) ** np.add.outer(np.arange(n), np.arange(n))
    return det(minors) * signs.astype(a.dtype)


@op(floats=True, cost=lambda a: lapack_flops(a, 1, 3, squares=2))
def cholesky(a: Array) -> Array:
    """The lower triangular L with L L^T = A, for symmetric positive definite `(..., n, n)`.

    It factors (A + A^T) / 2. So both triangles of A count, and share the gradient (Murray, 2016,
    section 3).

    Raises:
        ValueError: if the matrices are not square, or a matrix is not positive definite.
    """
    symmetric = 0.5 * (check_square(a) + np.swapaxes(a, -1, -2))
    try:
        return np.linalg.cholesky(symmetric)
    except np.linalg.LinAlgError:
        lowest = np.linalg.eigvalsh(symmetric)[..., 0]
        found = f"its smallest eigenvalue is {lowest.min():.3g}"
        raise ValueError(f"{_the_matrix(lowest)} is not positive definite; {found}") from None


@cholesky.vjp("a")
def _cholesky_a(g: Array, out: Array) -> Array:
    n = out.shape[-1]
    lower = np.tril(np.ones((n, n), out.dtype))
    transposed = swap_last(out)
    inner = matmul(transposed, g * lower) * (lower - 0.5 * np.eye(n, dtype=out.dtype))
    half = swap_last(solve(transposed, inner))  # L^-T inner L^-1: the left factor is done
    full = solve(transposed, half)
    return symmetric_part(full)


def symmetric_part(a: Array) -> Array:
    """Return (A + A^T) / 2."""
    return 0.5 * (a + swap_last(a))


def _regular(function: Callable[..., Array], a: Array, *others: Array) -> Array:
    """Apply a numpy function to square matrices; raise an error if a matrix is singular."""
    a = check_square(a)
    try:
        return function(a, *others)
    except np.linalg.LinAlgError:
        raise ValueError(f"{_the_matrix(np.linalg.slogdet(a)[1])} is singular") from None


def check_square(a: Array) -> Array:
    """Return the matrices; raise an error if they are not square."""
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"takes square matrices (..., n, n), not an array of shape {a.shape}")
    return a


def check_matrices(a: Array) -> Array:
    """Return the matrices; raise an error if the array has fewer than two axes."""
    if a.ndim < 2:
        raise ValueError(f"takes matrices (..., m, n), not an array of shape {a.shape}")
    return a


def check_finite(a: Array) -> None:
    """Raise an error if a matrix contains nan or inf: LAPACK may return any result for it."""
    finite = np.isfinite(a).all((-2, -1))
    if not finite.all():
        raise ValueError(f"{_the_matrix(finite)} has a nan or an inf")


def _the_matrix(values: Array) -> str:
    """Return the name, for messages, of the matrix in a stack that has the smallest of `values`."""
    where = np.unravel_index(np.argmin(values), values.shape)
    return f"the matrix at {tuple(map(int, where))} of the stack" if where else "the matrix"
