"""Eigenvalues, singular values and their vectors, and the logarithm of a determinant.

A decomposition has several outputs, but an op has only one. So LAPACK runs once, outside of ops.
Then one op for each output receives the matrix and the results of LAPACK. If a loss uses only the
eigenvalues, its gradient does not need the derivative of the eigenvectors, which divides by
differences of eigenvalues.
"""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from typing import Any, NamedTuple

import numpy as np

from minigrad import ops
from minigrad.core.grad_mode import observed
from minigrad.core.op import op
from minigrad.core.tensor import Array, Tensor, as_array
from minigrad.functional.compositions import composition, narrowed, widened
from minigrad.ops.hints import Undefined
from minigrad.ops.linalg import (
    check_finite,
    check_matrices,
    check_square,
    lapack_flops,
    symmetric_part,
)
from minigrad.ops.products import swap_last

_UNDEFINED: dict[str, Callable[..., Any]] = {
    Undefined(
        "the derivative is undefined: it needs vectors that are not unique, of equal eigenvalues "
        "or singular values, or of a singular value of 0"
    ): lambda gradient: np.isnan(gradient)
}

# --------------------------------------------------------------------------------------------------
# Eigenvalues of symmetric matrices
# --------------------------------------------------------------------------------------------------


class Eigh(NamedTuple("Eigh", [("eigenvalues", Tensor), ("eigenvectors", Tensor)])):
    """The result of `eigh`: the eigenvalues, and the eigenvectors as columns."""


@composition
def eigh(a: Array) -> Eigh:
    """The eigenvalues w, from small to large, and eigenvectors V of symmetric `(..., n, n)`.

    They satisfy (A + A^T) / 2 = V diag(w) V^T. So both triangles of A count, and share the
    gradient. The sign of an eigenvector is arbitrary; the derivative is only valid for functions
    that do not depend on it (Giles, 2008, section 3.1). Equal eigenvalues share their gradient
    evenly. Their eigenvectors are an arbitrary basis, so a derivative that needs one of these
    vectors is nan. PyTorch differentiates with the vectors that LAPACK found, and reads only one
    triangle.

    Raises:
        ValueError: if the matrices are not square, or a matrix contains nan or inf.
    """
    wide = symmetric_part(widened(check_square(a)))
    factors = observed(eigh_of, as_array(wide))
    values, vectors = eigenvalues(wide, factors), eigenvectors(wide, factors)
    return Eigh(narrowed(values, a), narrowed(vectors, a))


@composition
def eigvalsh(a: Array) -> Tensor:
    """The eigenvalues of symmetric `(..., n, n)`, from small to large, as in `eigh`.

    Raises:
        ValueError: if the matrices are not square, or a matrix contains nan or inf.
    """
    wide = symmetric_part(widened(check_square(a)))
    return narrowed(eigenvalues(wide, observed(eigh_of, as_array(wide))), a)


def eigh_of(a: Any) -> tuple[Any, Any]:
    """Return w and V of symmetric matrices."""
    check_finite(a)
    w, v = np.linalg.eigh(a)
    return w, v


@op(floats=True, cost=lambda a: lapack_flops(a, 4, 3), shape=lambda a: a.shape[:-1])
def eigenvalues(a: Array, factors: Any) -> Array:
    """The eigenvalues of symmetric matrices; `factors` are w and V from `eigh_of`."""
    return factors[0].copy()


@eigenvalues.vjp("a")
def _eigenvalues_a(g: Array, a: Array, factors: Any, out: Array) -> Array:
    v = eigenvectors(a, factors)
    return ops.matmul(v * _as_row(_shared(g, out)), swap_last(v))


@op(
    floats=True,
    cost=lambda a: lapack_flops(a, 23, 3),  # with the eigenvalues it is 9 n^3
    gradient_hint=_UNDEFINED,
)
def eigenvectors(a: Array, factors: Any) -> Array:
    """The eigenvectors of symmetric matrices; `factors` are w and V from `eigh_of`."""
    return factors[1].copy()


@eigenvectors.vjp("a")
def _eigenvectors_a(g: Array, a: Array, factors: Any, out: Array) -> Array:
    w = eigenvalues(a, factors)
    transposed = swap_last(out)
    projected = _antisymmetric(ops.matmul(transposed, g))
    rotation = _safe_quotient(projected, _as_row(w) - _as_column(w), w)
    return ops.matmul(ops.matmul(out, 0.5 * rotation), transposed)


def _antisymmetric(x: Array) -> tuple[Array, Array]:
    """Return X - X^T, the gradient of rotations between vectors, and where a loss depends on it."""
    transposed = swap_last(x)
    different = ~np.eye(x.shape[-1], dtype=bool)
    return x - transposed, ops.logical_and(ops.logical_or(x != 0, transposed != 0), different)


def _safe_quotient(numerator: tuple[Array, Array], difference: Array, values: Array) -> Array:
    """Return numerator / difference; where the difference is 0 up to rounding, nan if needed.

    Where the quotient is not needed, the numerator is 0, and the quotient is 0.
    """
    x, is_needed = numerator
    near = _is_rounding(difference, values)
    return x / ops.where(ops.logical_and(near, is_needed), nan, ops.where(near, 1.0, difference))


def _shared(g: Array, values: Array) -> Array:
    """Return the gradient of the values, averaged over equal values."""
    equal = ops.astype(_is_rounding(_as_row(values) - _as_column(values), values), g.dtype)
    return ops.sum(equal * _as_row(g), -1) / ops.sum(equal, -1)


def _is_rounding(differences: Array, values: Array) -> Array:
    """Return which differences of eigenvalues or singular values are 0 up to rounding.

    LAPACK's error is a multiple of the machine epsilon times the largest value. The multiple grows
    with the number of values n, and n bounds it, as in `numpy.linalg.matrix_rank`, if n is large.
    """
    n = values.shape[-1]
    if n == 0:
        return differences == 0
    limit = max(n, 10) * np.finfo(values.dtype).eps * ops.max(ops.abs(values), -1)
    return ops.abs(differences) <= ops.reshape(limit, (*limit.shape, 1, 1))


def _as_row(x: Array) -> Array:
    return ops.reshape(x, (*x.shape[:-1], 1, x.shape[-1]))


def _as_column(x: Array) -> Array:
    return ops.reshape(x, (*x.shape, 1))


# --------------------------------------------------------------------------------------------------
# Singular values
# --------------------------------------------------------------------------------------------------


class SVD(NamedTuple("SVD", [("U", Tensor), ("S", Tensor), ("Vh", Tensor)])):
    """The result of `svd`: singular vectors as columns, singular values, and vectors as rows."""


@composition
def svd(a: Array, full_matrices: bool = True) -> SVD:
    """The singular value decomposition A = U diag(S) Vh of `(..., m, n)`; S from large to small.

    With k = min(m, n), S has shape `(..., k)`. U is `(..., m, m)` and Vh is `(..., n, n)`. Without
    `full_matrices`, U has only its first k columns and Vh its first k rows.

    A column of U and its row of Vh may both change their sign; other columns and rows without a
    singular value are an arbitrary basis of the rest. The derivative is only valid for functions
    that do not depend on these choices (Townsend, 2016). Equal singular values share their gradient
    evenly; PyTorch differentiates with the vectors that LAPACK found. The gradient of a singular
    value of 0 is 0, like the gradient of |x| at 0; PyTorch uses another subgradient. A derivative
    is nan if it needs a singular vector of equal singular values, or of the singular value 0 in U
    if m > n, or in Vh if m < n.

    Raises:
        ValueError: if the array has fewer than two axes, or contains nan or inf.
    """
    wide = widened(check_matrices(a))
    factors = observed(svd_of, as_array(wide), full_matrices)
    u, s = singular_vectors(wide, factors), singular_values(wide, factors)
    vh = swap_last(singular_vectors(swap_last(wide), factors[::-1]))
    return SVD(narrowed(u, a), narrowed(s, a), narrowed(vh, a))


@composition
def svdvals(a: Array) -> Tensor:
    """The singular values of `(..., m, n)`, from large to small: `(..., min(m, n))`.

    The derivative of S_i is u_i v_i^T. For equal singular values and for 0, see `svd`.

    Raises:
        ValueError: if the array has fewer than two axes, or contains nan or inf.
    """
    wide = widened(check_matrices(a))
    return narrowed(singular_values(wide, observed(svd_of, as_array(wide), False)), a)


def svd_of(a: Any, full_matrices: bool) -> tuple[Any, Any, Any]:
    """Return U, S and V of matrices."""
    check_finite(a)
    u, s, vh = np.linalg.svd(a, full_matrices)
    return u, s, np.swapaxes(vh, -1, -2)


@op(
    floats=True,
    cost=lambda a, out: 4 * a.size * out.shape[-1],
    shape=lambda a: (*a.shape[:-2], min(a.shape[-2:])),
)
def singular_values(a: Array, factors: Any) -> Array:
    """The singular values of matrices; `factors` are U, S and V from `svd_of`."""
    return factors[1].copy()


@singular_values.vjp("a")
def _singular_values_a(g: Array, a: Array, factors: Any, out: Array) -> Array:
    u, v = _thin(a, factors), _thin(swap_last(a), factors[::-1])
    row = ops.where(_is_rounding(_as_row(out), out), 0.0, _as_row(_shared(g, out)))
    return ops.matmul(u * row, swap_last(v))


@op(
    floats=True,
    cost=lambda a, out: 9 * a.size * out.shape[-1],
    shape=lambda factors: factors[0].shape,
    gradient_hint=_UNDEFINED,
)
def singular_vectors(a: Array, factors: Any) -> Array:
    """U of A = U diag(S) V^T; `factors` are U, S and V from `svd_of`."""
    return factors[0].copy()


@singular_vectors.vjp("a")
def _singular_vectors_a(g: Array, a: Array, factors: Any, out: Array) -> Array:
    s, v = singular_values(a, factors), _thin(swap_last(a), factors[::-1])
    count, rank = out.shape[-1], s.shape[-1]
    projected = ops.matmul(swap_last(out), g)
    rotation, is_needed = (ops.getitem(x, (..., slice(rank))) for x in _antisymmetric(projected))
    # All columns are eigenvectors of A A^T; those without a singular value have the eigenvalue 0.
    others = np.zeros((*s.shape[:-1], count - rank), s.dtype)
    row, column = _as_row(s), _as_column(ops.concatenate([s, others], -1))
    total = row + column
    weights = row / ops.where(total == 0, 1.0, total)
    left = ops.matmul(out, _safe_quotient((rotation, is_needed), row - column, s) * weights)
    if count < a.shape[-2]:  # the columns may also rotate out of the space that they span
        rest = g - ops.matmul(out, projected)
        left = left + _safe_quotient((rest, rest != 0), row, s)
    return ops.matmul(left, swap_last(v))


def _thin(a: Array, factors: Any) -> Array:
    """Return the columns of U that belong to a singular value."""
    return ops.getitem(singular_vectors(a, factors), (..., slice(min(a.shape[-2:]))))


# --------------------------------------------------------------------------------------------------
# The logarithm of a determinant
# --------------------------------------------------------------------------------------------------


class Slogdet(NamedTuple("Slogdet", [("sign", Tensor), ("logabsdet", Tensor)])):
    """The result of `slogdet`: sign and logarithm of the absolute value of a determinant."""


@composition
def slogdet(a: Array) -> Slogdet:
    """The sign and the logarithm of the absolute value of the determinant, for `(..., n, n)`.

    The result does not overflow or underflow where `det` does. The derivative of the logarithm is
    A^-T. For a singular matrix, the sign is 0, the logarithm is -inf, and the derivative is nan.

    Raises:
        ValueError: if the matrices are not square.
    """
    parts = observed(slogdet_of, as_array(widened(check_square(a))))
    logarithm = log_determinant(a, parts)
    sign = Tensor(parts[0]) if isinstance(a, Tensor) else parts[0]
    return Slogdet(ops.astype(sign, logarithm.dtype), logarithm)


def slogdet_of(a: Any) -> tuple[Any, Any]:
    """Return the signs of determinants, and the logarithms of their absolute values."""
    signs, logarithms = np.linalg.slogdet(a)
    return np.asarray(signs), np.asarray(logarithms)


@op(
    floats=True,
    cost=lambda a: lapack_flops(a, 2, 3),
    shape=lambda a: a.shape[:-2],
    nonfinite_hint={"the logarithm of 0: a matrix is singular": lambda out: np.isinf(out)},
)
def log_determinant(a: Array, parts: Any) -> Array:
    """log |det(A)|; `parts` are sign and value from `slogdet_of`."""
    return parts[1].copy()


@log_determinant.vjp("a")
def _log_determinant_a(g: Array, a: Array, out: Array) -> Array:
    g, singular = (ops.reshape(x, (*x.shape, 1, 1)) for x in (g, ops.isinf(out)))
    regular = ops.where(singular, np.eye(a.shape[-1], dtype=a.dtype), a)
    return g * ops.where(singular, nan, swap_last(ops.inv(regular)))
