"""Products and linear algebra."""

import math
from functools import reduce

import numpy as np

from tests.peers.op_rows.row import Row, first, same, symmetric, vector
from tests.peers.op_rows.shapes import broadcast_tensors


def plus_product(product):
    """beta x + alpha times a product of two; a beta of 0 leaves x out, whatever it is."""

    def call(m, x, a, b, beta=1, alpha=1):
        out = product(m, a, b)
        out = out if alpha == 1 else alpha * out
        return beta * x + out if beta else out

    return call


def cross(m, x, y, dim=None):
    if dim is None:
        dim = next(i for i, n in enumerate(x.shape) if n == 3)
    x, y = broadcast_tensors(m, x, y)
    roll = m.roll
    return roll(x, -1, dim) * roll(y, -2, dim) - roll(x, -2, dim) * roll(y, -1, dim)


def distances(m, x, y, p=2.0, compute_mode=None):
    return m.norm(m.expand_dims(x, -2) - m.expand_dims(y, -3), p, -1)


def pdist(m, x, p=2.0):
    rows, others = np.triu_indices(x.shape[0], 1)
    return m.norm(x[rows] - x[others], p, -1)


def norm(m, x, ord=None, dim=None, keepdim=False, *, dtype=None):
    x = x if dtype is None else m.astype(x, dtype)
    return m.norm(x, ord, dim if dim is None or isinstance(dim, int) else tuple(dim), keepdim)


def matrix_norm(m, x, ord="fro", dim=(-2, -1), keepdim=False, *, dtype=None):
    return norm(m, x, ord, dim, keepdim, dtype=dtype)


def vector_norm(m, x, ord=2, dim=None, keepdim=False, *, dtype=None):
    """All dims are taken as one vector, also without `dim`."""
    x = x if dtype is None else m.astype(x, dtype)
    axes = (
        tuple(range(x.ndim))
        if dim is None
        else tuple(i % max(x.ndim, 1) for i in np.atleast_1d(dim))
    )
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    rest = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    order = [*(i for i in range(x.ndim) if i not in axes), *axes]
    rows = (
        m.reshape(m.transpose(x, order), (*rest, math.prod(x.shape[i] for i in axes)))
        if x.ndim
        else m.reshape(x, (1,))
    )
    return m.reshape(m.norm(rows, ord, -1), kept if keepdim else rest)


def old_norm(m, x, p="fro", dim=None, keepdim=False, dtype=None):
    """torch.norm, where numbers are of vectors, of whatever dims."""
    if p == "nuc":
        return norm(m, x, p, dim, keepdim, dtype=dtype)
    return vector_norm(m, x, 2 if p in ("fro", None) else p, dim, keepdim, dtype=dtype)


def triangular(m, a, b, *, upper, left=True, unitriangular=False):
    a = m.triu(a) if upper else m.tril(a)
    if unitriangular:
        eye = np.eye(a.shape[-1])
        a = a * (1 - eye) + eye
    return m.solve(a, b, left)


def solve(m, a, b, *, left=True):
    """PyTorch takes b for vectors if its shape is that of a without the last dim."""
    vectors = b.ndim == 1 or (a.ndim - 1 == b.ndim and b.shape == a.shape[:-1])
    if vectors:
        return m.squeeze(m.solve(a, m.expand_dims(b, -1)), -1)
    return m.solve(a, b, left)


def lower(m, x, upper=False):
    factor = m.cholesky(x)
    return m.swapaxes(factor, -1, -2) if upper else factor


def gram(m, factor, upper=False):
    """The matrix of which this triangle is the Cholesky factor."""
    factor = m.triu(factor) if upper else m.tril(factor)
    other = m.swapaxes(factor, -1, -2)
    return other @ factor if upper else factor @ other


def tensorinv(m, a, ind=2):
    rows, columns = a.shape[:ind], a.shape[ind:]
    return m.reshape(m.inv(m.reshape(a, (math.prod(rows), -1))), (*columns, *rows))


def tensorsolve(m, a, b, dims=None):
    if dims is not None:
        a = m.moveaxis(a, dims, tuple(range(a.ndim - len(dims), a.ndim)))
    columns = a.shape[b.ndim :]
    return m.reshape(m.solve(m.reshape(a, (b.size, -1)), m.reshape(b, -1)), columns)


def vander(m, x, N=None):
    return m.expand_dims(vector(m, x), -1) ** np.arange(x.shape[-1] if N is None else N)


def cov(m, x, *, correction=1, fweights=None, aweights=None):
    """Of rows, whose columns may have a frequency each, or a weight."""
    x = m.reshape(x, (1, -1)) if x.ndim < 2 else x
    given = [w for w in (fweights, aweights) if w is not None]
    weights = reduce(m.multiply, given) if given else m.full((x.shape[1],), 1.0, x.dtype)
    total = m.sum(weights)
    deviation = x - m.sum(x * weights, 1, True) / total
    if aweights is None:
        lost = correction
    else:
        lost = correction * m.sum(weights * aweights) / total
    out = (deviation * weights) @ m.transpose(deviation) / m.clip(total - lost, 0.0)
    return m.reshape(out, ()) if out.size == 1 else out


def corrcoef(m, x):
    c = cov(m, x)
    if not c.ndim:
        return c / c
    d = m.sqrt(m.diagonal(c))
    return m.clip(c / m.expand_dims(d, 1) / d, -1.0, 1.0)


def without_signs(out):
    """What no choice is in: s, |U| and |V|, of the vectors that belong to singular values."""
    u, s, v = out
    return s, abs(u[..., : s.shape[-1]]), abs(v[..., : s.shape[-1], :])


def cond(m, x, p=None):
    if p in (None, 2):
        s = m.svd(x)[1]
        return s[..., 0] / s[..., -1]
    if p == -2:
        s = m.svd(x)[1]
        return s[..., -1] / s[..., 0]
    return m.norm(x, p, (-2, -1)) * m.norm(m.inv(x), p, (-2, -1))


def polar(m, x):
    """An orthogonal factor and a positive one, x = U P."""
    u, s, v = m.svd(x, False)
    return u @ v, m.swapaxes(v, -1, -2) @ (m.expand_dims(s, -1) * v)


def matrix_sqrth(m, x):
    values, vectors = m.eigh(x)
    return (vectors * m.expand_dims(m.sqrt(values), -2)) @ m.swapaxes(vectors, -1, -2)


def logdet(m, a):
    sign, value = m.slogdet(a)
    return m.where(sign < 0, math.nan, value)


def matrix_rank(m, x, *, atol=None, rtol=None, hermitian=False):
    s = m.svd(x)[1]
    a = 0.0 if atol is None else m.expand_dims(m.astype(atol, x.dtype), -1)
    if rtol is None:
        rtol = max(x.shape[-2:]) * np.finfo(np.float64).eps if atol is None else 0.0
    r = rtol if isinstance(rtol, float) else m.expand_dims(m.astype(rtol, x.dtype), -1)
    limit = m.maximum(a, r * s[..., :1]) if 0 not in x.shape else 0.0
    return m.sum(m.astype(s > limit, "int64"), -1)


PRODUCTS = {
    "matmul": "matmul", "mm": "matmul", "bmm": "matmul", "mv": "matmul",
    "bmm/triton_optimized": "matmul",
    "__rmatmul__": lambda m, x, y: y @ x,
    "dot": "dot", "vdot": "dot",
    "outer": "outer", "kron": "kron", "inner": "inner",
    "tensordot": lambda m, x, y, dims=2: m.tensordot(x, y, dims),
    "einsum": lambda m, operands, subscripts: m.einsum(subscripts, *operands),
    **dict.fromkeys(
        ("addmm", "addmm/decomposed", "addmv", "baddbmm"), plus_product(lambda m, a, b: a @ b)
    ),
    "addbmm": plus_product(lambda m, a, b: m.sum(a @ b, 0)),
    "addr": plus_product(lambda m, a, b: m.outer(a, b)),
    "linalg.vecdot": lambda m, x, y, dim=-1: m.sum(x * y, dim),
    "linalg.multi_dot": lambda m, operands: reduce(m.matmul, operands),
    "cross": cross,
    "linalg.cross": lambda m, x, y, dim=-1: cross(m, x, y, dim),
    "nn.functional.linear": lambda m, x, weight, bias=None: (
        m.linear(x, weight, bias) if weight.ndim > 1 else x @ weight),
    "nn.functional.bilinear": lambda m, x, y, weight, bias=None: (
        m.einsum("...i,kij,...j->...k", x, weight, y) + (0.0 if bias is None else bias)
    ),
    "cdist": distances,
    "nn.functional.pdist": pdist,
    "dist": lambda m, x, y, p=2: vector_norm(m, x - y, p),
    "nn.functional.pairwise_distance": lambda m, x, y, p=2.0, eps=1e-6, keepdim=False: m.norm(
        x - y + eps, p, -1, keepdim),
    "norm": old_norm, "norm/nuc": old_norm, "norm/fro": old_norm, "norm/inf": old_norm,
    "linalg.norm": norm,
    "linalg.norm/subgradients_at_zero": norm,
    "linalg.matrix_norm": matrix_norm,
    "linalg.vector_norm": vector_norm,
    "linalg.cond": cond,
    "cov": cov,
    "corrcoef": corrcoef,
    "trace": "trace",
    "diagonal": lambda m, x, offset=0, dim1=0, dim2=1: m.diagonal(x, offset, dim1, dim2),
    "diagonal_copy": lambda m, x, offset=0, dim1=0, dim2=1: m.diagonal(x, offset, dim1, dim2),
    "linalg.diagonal": lambda m, x, *, offset=0, dim1=-2, dim2=-1: m.diagonal(
        x, offset, dim1, dim2),
    "diag": "diag",
    "diagflat": lambda m, x, offset=0: m.diag(m.reshape(x, -1), offset),
    "tril": "tril", "triu": "triu",
    "linalg.inv": "inv",
    "linalg.inv_ex": Row(same("inv"), first),
    "linalg.det": "det",
    "linalg.slogdet": "slogdet",
    "logdet": logdet,
    "linalg.cholesky": lambda m, x, *, upper=False: lower(m, x, upper),
    "linalg.cholesky_ex": Row(lambda m, x, *, upper=False: lower(m, x, upper),
                              first),
    "cholesky_inverse": lambda m, x, upper=False: m.inv(gram(m, x, upper)),
    "cholesky_solve": lambda m, b, factor, upper=False: m.solve(gram(m, factor, upper), b),
    "linalg.solve": solve,
    "linalg.solve_ex": Row(solve, first),
    "linalg.solve_triangular": triangular,
    "triangular_solve": Row(
        lambda m, b, a, upper=True, transpose=False, unitriangular=False: triangular(
            m, m.swapaxes(a, -1, -2) if transpose else a, b,
            upper=upper != transpose, unitriangular=unitriangular),
        first),
    "linalg.matrix_power": "matrix_power",
    "linalg.tensorinv": tensorinv,
    "linalg.tensorsolve": tensorsolve,
    "linalg.vander": vander,
    "linalg.svd": Row(lambda m, x, full_matrices=True: m.svd(x, full_matrices), without_signs),
    "svd": Row(lambda m, x, some=True, compute_uv=True: m.svd(x, not some),
               lambda out: (out[1], abs(out[0][..., : out[1].shape[-1]]))),
    "linalg.polar": polar,
    "linalg.matrix_sqrth": matrix_sqrth,
    "linalg.svdvals": "svdvals",
    "linalg.eigh": Row(
        lambda m, x, UPLO="L": m.eigh(x), lambda out: (out[0], abs(out[1])), symmetric),
    "linalg.eigvalsh": Row(lambda m, x, UPLO="L": m.eigvalsh(x), operand=symmetric),
    "linalg.pinv": lambda m, x, *, rtol=None: m.pinv(x, rtol),
    "linalg.pinv/singular": lambda m, a, b: m.pinv(a @ m.swapaxes(b, -1, -2)),
    "linalg.pinv/hermitian": Row(
        lambda m, x, *, hermitian: m.pinv(x, hermitian=hermitian), operand=symmetric),
    "pinverse": "pinv",
    "linalg.matrix_rank": matrix_rank,
    "linalg.matrix_rank/hermitian": matrix_rank,
    "linalg.lstsq/grad_oriented": Row(
        lambda m, a, b, driver=None: m.pinv(a) @ b,
        first),
}  # fmt: skip
