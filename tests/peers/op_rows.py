"""How ours is called for each entry of PyTorch's database of ops.

A row is the name of a function of ours that takes the same arguments, after `dim` is renamed to
`axis` and `keepdim` to `keepdims`; or a function of `m`, our module, and the arguments, which calls
ours as a user would: another name, a method, a few functions composed. Numpy makes indices only.

Names in PyTorch have a slash before the variant, if there is one.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np

RENAMED = {"dim": "axis", "keepdim": "keepdims"}


@dataclass(frozen=True)
class Row:
    """How to call ours, and what to compare of the outputs, in either library, if not all."""

    call: Callable[..., Any]
    outputs: Callable[..., Any] | None = None


class SkippedError(Exception):
    """A sample is out of scope."""


def same(name):
    """The function of this name here, with PyTorch's arguments."""

    def call(m, *xs, **options):
        return getattr(m, name)(*xs, **{RENAMED.get(key, key): v for key, v in options.items()})

    return call


def with_dtype(row):
    """A function with PyTorch's argument `dtype`, which converts the first operand."""

    def call(m, x, *args, dtype=None, **options):
        return row(m, x if dtype is None else m.astype(x, dtype), *args, **options)

    return call


def at(axis, index):
    """The index that takes `index` along an axis counted from the front."""
    return (*[slice(None)] * axis, index)


def axis_of(x, dim):
    """A dim counted from the front; a number has one dim in PyTorch."""
    return dim % max(x.ndim, 1)


def first(out):
    """The first of several outputs."""
    return out[0] if isinstance(out, (tuple, list)) else out


def vector(m, x):
    """A number as a vector of one element, as PyTorch takes it where there must be an axis."""
    return x if x.ndim else m.reshape(x, (1,))


# --------------------------------------------------------------------------------------------------
# One element by itself, and two
# --------------------------------------------------------------------------------------------------


def scaled_sum(m, x, y, alpha=1):
    return x + (y if alpha == 1 else alpha * y)


def divide(m, x, y, rounding_mode=None):
    if rounding_mode == "floor":
        return m.floor_divide(x, y)
    return m.trunc(x / y) if rounding_mode == "trunc" else x / y


def nan_aside(name):
    """The larger or smaller of two, of which nan is neither."""

    def call(m, x, y):
        return m.where(m.isnan(y), x, m.where(m.isnan(x), y, getattr(m, name)(x, y)))

    return call


def lerp(m, x, y, weight):
    near = m.abs(weight) < 0.5
    return m.where(near, x + weight * (y - x), y - (y - x) * (1 - weight))


def logit(m, x, eps=None):
    if eps is not None:  # which may be above a half, where m.clip gives the upper bound
        x = m.where(x < eps, eps, m.where(x > 1 - eps, 1 - eps, x))
    return m.log(x / (1 - x))


def logarithmic(m, x, y):
    """log2(2^x + 2^y)."""
    return m.logaddexp(x * math.log(2), y * math.log(2)) / math.log(2)


def to(m, x, *args, **options):
    """Of the arguments only the dtype matters here."""
    dtype = options.get("dtype") or next((a for a in args if a in DTYPES), None)
    other = next((a for a in args if hasattr(a, "dtype")), None)
    return m.astype(x, other.dtype if other is not None else dtype or x.dtype)


DTYPES = {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"}


def cast(dtype):
    return lambda m, x, memory_format=None: m.astype(x, dtype)


def renorm(m, x, p, dim, maxnorm):
    """Each slice along dim is made at most that long."""
    others = tuple(i for i in range(x.ndim) if i != dim % x.ndim)
    length = vector_norm(m, x, p, others, True)
    return x * m.where(length > maxnorm, maxnorm / (length + 1e-7), 1.0)


def trapezoid(m, y, x=None, *, dx=1, dim=-1):
    return m.sum(trapezoids(m, y, x, dx, dim), dim)


def cumulative_trapezoid(m, y, x=None, *, dx=1, dim=-1):
    return m.cumsum(trapezoids(m, y, x, dx, dim), dim)


def trapezoids(m, y, x, dx, dim):
    def steps(v, axis):
        return v[at(axis, slice(1, None))], v[at(axis, slice(None, -1))]

    upper, lower = steps(y, axis_of(y, dim))
    if x is not None:
        right, left = steps(x, 0 if x.ndim == 1 else axis_of(x, dim))
        dx = right - left
        if x.ndim == 1:
            dx = m.reshape(dx, (-1, *[1] * (y.ndim - axis_of(y, dim) - 1)))
    return (upper + lower) * dx / 2


ELEMENTWISE = {
    **{name: name for name in (
        "abs", "ceil", "cos", "cosh", "erf", "exp", "exp2", "expm1", "floor", "isfinite", "isinf",
        "isnan", "log", "log10", "log1p", "log2", "nan_to_num", "reciprocal", "round", "rsqrt",
        "sigmoid", "sign", "sin",
        "sinc", "sinh", "sqrt", "square", "tan", "tanh", "trunc", "copysign", "fmod", "hypot",
        "logaddexp", "maximum", "minimum", "remainder", "xlogy", "where", "isclose", "floor_divide",
    )},
    **{"acos": "arccos", "acosh": "arccosh", "asin": "arcsin", "asinh": "arcsinh"},
    **{"atan": "arctan", "atan2": "arctan2", "atanh": "arctanh", "neg": "negative"},
    **{"mul": "multiply", "true_divide": "divide", "pow": "power", "special.ndtr": "normal_cdf"},
    **{"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal"},
    **{"gt": "greater", "ge": "greater_equal", "max/binary": "maximum", "min/binary": "minimum"},
    **{f"round/decimals_{n}": "round" for n in ("0", "3", "neg_3")},
    **{"sgn": "sign", "clamp": "clip", "clone": "clone", "contiguous": "clone"},
    "where": lambda m, x, condition, y: m.where(condition, x, y),
    "add": scaled_sum,
    "sub": lambda m, x, y, alpha=1: x - (y if alpha == 1 else alpha * y),
    "rsub": lambda m, x, y, alpha=1: y - (x if alpha == 1 else alpha * x),
    **{f"div/{mode}": divide for mode in ("no_rounding_mode", "trunc_rounding", "floor_rounding")},
    "float_power": lambda m, x, y: m.power(m.astype(x, "float64"), m.astype(y, "float64")),
    "fmax": nan_aside("maximum"),
    "fmin": nan_aside("minimum"),
    "clamp_min": lambda m, x, bound: m.clip(x, bound),
    "clamp_max": lambda m, x, bound: m.clip(x, None, bound),
    "positive": lambda m, x: +x,
    "frac": lambda m, x: x - m.trunc(x),
    "deg2rad": lambda m, x: x * (math.pi / 180),
    "rad2deg": lambda m, x: x * (180 / math.pi),
    "erfc": lambda m, x: 2 * m.normal_cdf(-math.sqrt(2) * x),
    "logit": logit,
    "logaddexp2": logarithmic,
    "ldexp": lambda m, x, y: x * 2.0 ** m.astype(y, "float64"),
    "lerp": lerp,
    "heaviside": lambda m, x, y: m.where(x == 0, y, m.astype(x > 0, x.dtype)),
    "special.entr": lambda m, x: m.where(x < 0, -math.inf, -m.xlogy(x, x)),
    "special.xlog1py": lambda m, x, y: m.where(x == 0, 0.0, x * m.log1p(y)),
    "signbit": lambda m, x: m.copysign(1.0, x) < 0,
    "isposinf": lambda m, x: m.logical_and(m.isinf(x), x > 0),
    "isneginf": lambda m, x: m.logical_and(m.isinf(x), x < 0),
    "logical_not": lambda m, x: x == 0,
    "logical_and": lambda m, x, y: m.logical_and(x != 0, y != 0),
    "logical_or": lambda m, x, y: m.logical_or(x != 0, y != 0),
    "logical_xor": lambda m, x, y: (x != 0) != (y != 0),
    "allclose": lambda m, x, y, **options: m.all(m.isclose(x, y, **options)),
    "equal": lambda m, x, y: x.shape == y.shape and m.all(x == y),
    "isin": lambda m, x, among: m.any(m.expand_dims(x, -1) == m.reshape(among, -1), -1),
    "__radd__": lambda m, x, y: y + x,
    "__rmul__": lambda m, x, y: y * x,
    "__rsub__": lambda m, x, y: y - x,
    "__rdiv__": lambda m, x, y: y / x,
    "__rmod__": lambda m, x, y: y % x,
    "__rpow__": lambda m, x, y: y**x,
    "to": to,
    **{"float": cast("float32"), "double": cast("float64"), "half": cast("float16")},
    **{"int": cast("int32"), "long": cast("int64"), "short": cast("int16")},
    **{"bool": cast("bool"), "byte": cast("uint8"), "char": cast("int8")},
    "addcmul": lambda m, x, a, b, value=1: x + value * a * b,
    "addcdiv": lambda m, x, a, b, value=1: x + value * a / b,
    "trapezoid": trapezoid,
    "trapz": trapezoid,
    "cumulative_trapezoid": cumulative_trapezoid,
    "fill": lambda m, x, value: (
        m.broadcast_to(value, x.shape) if hasattr(value, "shape") else m.full(x.shape, value, x.dtype)
    ),
    "renorm": renorm,
    "item": lambda m, x: x.item(),
    "zeros_like": lambda m, x, dtype=None, device=None: m.zeros_like(x, dtype),
    "ones_like": lambda m, x, dtype=None, device=None: m.ones_like(x, dtype),
    "full_like": lambda m, x, value, dtype=None, device=None: m.full(
        x.shape, value, dtype or x.dtype
    ),
}  # fmt: skip


# --------------------------------------------------------------------------------------------------
# Reductions, running results, and order
# --------------------------------------------------------------------------------------------------


def all_dims(name):
    """A reduction for which no dim at all, (), means all of them."""

    def call(m, x, dim=None, keepdim=False):
        if dim == () or not x.ndim:  # a number has one dim in PyTorch
            dim = None
        return getattr(m, name)(x, dim, keepdim)

    return call


def truth(name):
    return lambda m, x, dim=None, keepdim=False: all_dims(name)(m, x != 0, dim, keepdim)


def extreme(name):
    """The largest or smallest along a dim, and where it is."""

    def call(m, x, dim=None, keepdim=False):
        if dim is None:
            return getattr(m, name)(x)
        index = getattr(m, f"arg{name}")(vector(m, x), dim, True)
        found = m.take_along_axis(vector(m, x), index, dim)
        wanted = getattr(m, name)(x, dim, keepdim).shape
        return m.reshape(found, wanted), m.reshape(index, wanted)

    return call


def spread(name, and_mean=False):
    """var or std, with PyTorch's three ways to say by how much the number is lowered."""

    def call(m, x, dim=None, unbiased=True, keepdim=False, *, correction=None):
        if isinstance(dim, bool):
            dim, unbiased = None, dim
        ddof = int(unbiased) if correction is None else correction
        dim = None if dim == () else dim
        out = getattr(m, name)(x, dim, ddof, keepdim)
        return (out, m.mean(x, dim, keepdim)) if and_mean else out

    return call


def nth(m, x, n, dim, keepdim):
    """The n-th smallest element along a dim, and where it is."""
    rows = vector(m, x)
    axis = axis_of(rows, dim)
    index = m.argsort(rows, axis)[at(axis, slice(n, n + 1))]
    value = m.take_along_axis(rows, index, axis)
    if not x.ndim:
        return m.reshape(value, ()), m.reshape(index, ())
    return (value, index) if keepdim else (m.squeeze(value, axis), m.squeeze(index, axis))


def median(m, x, dim=None, keepdim=False):
    if dim is None:
        return nth(m, m.reshape(x, -1), (x.size - 1) // 2, 0, False)[0]
    return nth(m, x, (vector(m, x).shape[dim] - 1) // 2, dim, keepdim)


def quantile(m, x, q, dim=None, keepdim=False, interpolation="linear"):
    """Between the neighbours of the place (n - 1) q in the order; several q's come first."""
    if dim is None:
        rows, axis, kept = m.reshape(x, -1), 0, (1,) * x.ndim
    else:
        rows, axis = vector(m, x), axis_of(x, dim)
        kept = tuple(1 if i == axis else n for i, n in enumerate(x.shape))
    several = getattr(q, "ndim", 0) == 1
    q = m.reshape(q, (-1, *[1] * rows.ndim)) if several else q
    order = m.moveaxis(m.sort(rows, axis), axis, 0)
    place = (order.shape[0] - 1) * (q.data.ravel() if several else np.array([getattr(q, "data", q)]))
    place = place.astype(float).ravel()
    low, high = order[np.floor(place).astype(int)], order[np.ceil(place).astype(int)]
    steps = {"lower": np.zeros_like(place), "higher": np.ceil(place) - np.floor(place)}
    steps |= {"midpoint": np.where(place % 1 > 0, 0.5, 0), "nearest": np.round(place) - np.floor(place)}
    if interpolation == "linear":
        weight = (order.shape[0] - 1) * m.reshape(q, (-1,)) - np.floor(place)
    else:
        weight = steps[interpolation]
    weight = m.reshape(weight, (-1, *[1] * (low.ndim - 1)))
    out = low + weight * (high - low)
    sizes = kept if keepdim else tuple(n for i, n in enumerate(kept) if dim is not None and i != axis)
    return m.reshape(out, (*([len(place)] if several else []), *sizes))


def sort(m, x, dim=-1, descending=False, stable=False):
    rows = vector(m, x)
    order = m.argsort(rows, dim, descending)
    return m.reshape(m.take_along_axis(rows, order, dim), x.shape), m.reshape(order, x.shape)


def topk(m, x, k, dim=-1, largest=True, sorted=True):
    values, indices = m.topk(vector(m, x), k, dim, largest)
    return (values, indices) if x.ndim else (m.reshape(values, ()), m.reshape(indices, ()))


def along(name):
    """A running result along a dim; a number is its own."""
    return with_dtype(lambda m, x, dim: m.reshape(getattr(m, name)(vector(m, x), dim), x.shape))


def diff(m, x, n=1, dim=-1, prepend=None, append=None):
    return m.diff(x, n, dim, prepend=prepend, append=append)


def aminmax(m, x, *, dim=None, keepdim=False):
    return m.min(x, dim, keepdim), m.max(x, dim, keepdim)


def nanmean(m, x, dim=None, keepdim=False):
    known = m.logical_not(m.isnan(x))
    count = m.sum(m.astype(known, x.dtype), dim, keepdim)
    return m.sum(m.where(known, x, 0.0), dim, keepdim) / count


REDUCTIONS = {
    "sum": with_dtype(all_dims("sum")),
    "mean": with_dtype(all_dims("mean")),
    "amax": all_dims("max"),
    "amin": all_dims("min"),
    "aminmax": aminmax,
    **{f"{name}/reduction_{kind}": extreme(name)
       for name in ("max", "min") for kind in ("with_dim", "no_dim")},
    "prod": with_dtype(all_dims("prod")),
    "all": truth("all"),
    "any": truth("any"),
    "argmax": "argmax",
    "argmin": "argmin",
    "count_nonzero": lambda m, x, dim=None: all_dims("sum")(m, m.astype(x != 0, "int64"), dim),
    "nansum": with_dtype(lambda m, x, *args, **options: all_dims("sum")(
        m, m.where(m.isnan(x), 0.0, x), *args, **options)),
    "nanmean": with_dtype(nanmean),
    **dict.fromkeys(("var", "var/unbiased"), spread("var")),
    **dict.fromkeys(("std", "std/unbiased"), spread("std")),
    **dict.fromkeys(("var_mean", "var_mean/unbiased"), spread("var", True)),
    **dict.fromkeys(("std_mean", "std_mean/unbiased"), spread("std", True)),
    "logsumexp": all_dims("logsumexp"),
    "cumsum": along("cumsum"),
    "cumprod": along("cumprod"),
    **{name: lambda m, x, dim, name=name: getattr(m, name)(x, dim) for name in ("cummax", "cummin")},
    "median": median,
    "nanmedian": median,  # of samples without a nan
    "kthvalue": lambda m, x, k, dim=-1, keepdim=False: nth(m, x, k - 1, dim, keepdim),
    "quantile": quantile,
    "nanquantile": quantile,  # of samples without a nan
    "sort": sort,
    "msort": lambda m, x: m.sort(x, 0) if x.ndim else x,
    "argsort": lambda m, x, dim=-1, descending=False, stable=False: m.reshape(
        m.argsort(vector(m, x), dim, descending), x.shape),
    "topk": topk,
    "diff": diff,
}  # fmt: skip


# --------------------------------------------------------------------------------------------------
# Products and linear algebra
# --------------------------------------------------------------------------------------------------


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
    axes = tuple(range(x.ndim)) if dim is None else tuple(i % max(x.ndim, 1) for i in np.atleast_1d(dim))
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    rest = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    order = [*(i for i in range(x.ndim) if i not in axes), *axes]
    rows = m.reshape(m.transpose(x, order), (*rest, math.prod(x.shape[i] for i in axes))) if x.ndim else m.reshape(x, (1,))
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
    if left:
        return m.solve(a, b)
    return m.swapaxes(m.solve(m.swapaxes(a, -1, -2), m.swapaxes(b, -1, -2)), -1, -2)


def solve(m, a, b, *, left=True):
    """PyTorch takes b for vectors if its shape is that of a without the last dim."""
    vectors = b.ndim == 1 or (a.ndim - 1 == b.ndim and b.shape == a.shape[:-1])
    if vectors:
        return m.squeeze(m.solve(a, m.expand_dims(b, -1)), -1)
    if left:
        return m.solve(a, b)
    return m.swapaxes(m.solve(m.swapaxes(a, -1, -2), m.swapaxes(b, -1, -2)), -1, -2)


def lower(m, x, upper=False):
    factor = m.cholesky(x)
    return m.swapaxes(factor, -1, -2) if upper else factor


def gram(m, factor, upper=False):
    """The matrix of which this triangle is the Cholesky factor."""
    factor = m.triu(factor) if upper else m.tril(factor)
    other = m.swapaxes(factor, -1, -2)
    return other @ factor if upper else factor @ other


def matrix_power(m, a, n):
    if n < 0:
        a, n = m.inv(a), -n
    eye = m.broadcast_to(m.eye(a.shape[-1], dtype=a.dtype), a.shape)
    return reduce(m.matmul, [a] * n, eye) if n else eye + 0 * a


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


def invariant_svd(out):
    """What does not depend on signs: |U|, s, |V|, of the columns that belong to singular values."""
    u, s, v = out
    return s, abs(u), abs(v)


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
    "linalg.diagonal": lambda m, x, *, offset=0, dim1=-2, dim2=-1: m.diagonal(x, offset, dim1, dim2),
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
    "linalg.matrix_power": matrix_power,
    "linalg.tensorinv": tensorinv,
    "linalg.tensorsolve": tensorsolve,
    "linalg.vander": vander,
    "linalg.svd": Row(lambda m, x, full_matrices=True: m.svd(x, full_matrices), invariant_svd),
    "svd": Row(lambda m, x, some=True, compute_uv=True: m.svd(x, not some),
               lambda out: (out[1], abs(out[0]))),
    "linalg.polar": polar,
    "linalg.matrix_sqrth": matrix_sqrth,
    "linalg.svdvals": lambda m, x: m.svd(x)[1],
    "linalg.eigh": Row(lambda m, x, UPLO="L": m.eigh(x), lambda out: (out[0], abs(out[1]))),
    "linalg.eigvalsh": lambda m, x, UPLO="L": m.eigh(x)[0],
    "linalg.pinv": "pinv",
    "linalg.pinv/singular": lambda m, a, b: m.pinv(a @ m.swapaxes(b, -1, -2)),
    "linalg.pinv/hermitian": lambda m, x, hermitian=True: m.pinv(x),
    "pinverse": "pinv",
    "linalg.matrix_rank": matrix_rank,
    "linalg.matrix_rank/hermitian": matrix_rank,
    "linalg.lstsq/grad_oriented": Row(
        lambda m, a, b, driver=None: m.pinv(a) @ b,
        first),
}  # fmt: skip


# --------------------------------------------------------------------------------------------------
# The same elements in another arrangement
# --------------------------------------------------------------------------------------------------


def expand(m, x, *shape):
    """-1 keeps a size."""
    shape = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    known = (*[0] * (len(shape) - x.ndim), *x.shape)
    return m.broadcast_to(x, [k if n == -1 else n for n, k in zip(shape, known, strict=True)])


def broadcast_tensors(m, *xs):
    shape = np.broadcast_shapes(*(x.shape for x in xs))
    return [m.broadcast_to(x, shape) for x in xs]


def flatten(m, x, start_dim=0, end_dim=-1):
    if not x.ndim:
        return m.reshape(x, (1,))
    start, end = start_dim % x.ndim, end_dim % x.ndim
    sizes = math.prod(x.shape[start : end + 1])
    return m.reshape(x, (*x.shape[:start], sizes, *x.shape[end + 1 :]))


def unflatten(m, x, dim, sizes):
    dim = dim % x.ndim
    known = math.prod(n for n in sizes if n != -1)
    sizes = [x.shape[dim] // known if n == -1 else n for n in sizes]
    return m.reshape(x, (*x.shape[:dim], *sizes, *x.shape[dim + 1 :]))


def squeeze(m, x, dim=None):
    """PyTorch leaves dims of another size as they are."""
    if dim is None:
        return m.squeeze(x)
    dims = [i % x.ndim for i in np.atleast_1d(dim)] if x.ndim else []
    return m.squeeze(x, tuple(int(i) for i in dims if x.shape[i] == 1))


def transpose(m, x, dim0, dim1):
    return m.swapaxes(x, dim0, dim1) if x.ndim else x


def matrix_transpose(m, x):
    return m.swapaxes(x, -1, -2) if x.ndim > 1 else x


def rot90(m, x, k=1, dims=(0, 1)):
    a, b = dims
    if k % 4 == 2:
        return m.flip(x, dims)
    if k % 4 == 0:
        return m.clone(x)
    return m.swapaxes(m.flip(x, b), a, b) if k % 4 == 1 else m.flip(m.swapaxes(x, a, b), b)


def roll(m, x, shifts, dims=None):
    dims = None if dims == () else dims
    if isinstance(shifts, tuple) and len(shifts) == 1:
        shifts = shifts[0]
    return m.roll(x, shifts, dims)


def repeat(m, x, *reps):
    return m.tile(x, reps[0] if isinstance(reps[0], (tuple, list)) else reps)


def repeat_interleave(m, x, repeats, dim=None, *, output_size=None):
    return m.repeat(vector(m, x), repeats, dim)


def split_at(m, x, bounds, dim=0):
    return m.split(x, [int(b) for b in bounds], dim)


def split(m, x, size, dim=0):
    if isinstance(size, (tuple, list)):
        return split_at(m, x, np.cumsum(size)[:-1], dim)
    return split_at(m, x, range(size, x.shape[dim], size), dim)


def chunk(m, x, chunks, dim=0):
    return split(m, x, -(-x.shape[dim] // chunks), dim)


def tensor_split(m, x, parts, dim=0):
    if isinstance(parts, (tuple, list)) or getattr(parts, "ndim", 0):
        return split_at(m, x, parts.tolist() if hasattr(parts, "tolist") else parts, dim)
    return m.array_split(x, int(parts.item() if hasattr(parts, "item") else parts), dim)


def split_along(axis):
    def call(m, x, parts):
        dim = 0 if x.ndim == 1 else axis
        return split_at(m, x, parts, dim) if isinstance(parts, tuple) else m.split(x, parts, dim)

    return call


def unbind(m, x, dim=0):
    dim = axis_of(x, dim)
    return [x[at(dim, i)] for i in range(x.shape[dim])]


def narrow(m, x, dim, start, length):
    start = int(start.item() if hasattr(start, "item") else start) % max(x.shape[dim], 1)
    return x[at(axis_of(x, dim), slice(start, start + length))]


def cat(m, xs, dim=0):
    """PyTorch leaves out empty vectors."""
    kept = [x for x in xs if x.shape != (0,)] or xs
    return m.concatenate(kept, dim)


def atleast(count):
    def one(m, x):
        if count == 3 and x.ndim == 2:
            return m.expand_dims(x, -1)
        if count == 3 and x.ndim == 1:
            return m.reshape(x, (1, -1, 1))
        return m.reshape(x, (*[1] * (count - x.ndim), *x.shape))

    def call(m, x, *more):
        xs = x if isinstance(x, (tuple, list)) else (x, *more)
        found = [one(m, x) for x in xs]
        return found if more or isinstance(x, (tuple, list)) else found[0]

    return call


def meshgrid(m, *xs, indexing="ij"):
    xs = xs[0] if isinstance(xs[0], (tuple, list)) else xs
    return m.meshgrid(*(vector(m, x) for x in xs), indexing=indexing)


def block_diag(m, *xs):
    blocks = [x if x.ndim == 2 else m.reshape(x, (1, -1)) for x in xs]
    width = sum(block.shape[1] for block in blocks)
    rows, start = [], 0
    for block in blocks:
        after = width - start - block.shape[1]
        rows.append(m.pad(block, ((0, 0), (start, after))))
        start += block.shape[1]
    return m.concatenate(rows)


def pad(m, x, widths, mode="constant", value=0.0):
    """PyTorch begins with the last dim, and cuts by negative widths."""
    pairs = list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    pairs = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    names = {"replicate": "edge", "circular": "wrap"}
    options = {"constant_values": float(value or 0)} if mode == "constant" else {}
    if any(width < 0 for pair in pairs for width in pair):
        cuts = tuple(slice(max(-b, 0), n - max(-a, 0)) for (b, a), n in zip(pairs, x.shape, strict=True))
        if mode != "replicate":
            return m.pad(x[cuts], [(max(b, 0), max(a, 0)) for b, a in pairs],
                         names.get(mode, mode), **options)
        wide = m.pad(x, [(max(b, 0), max(a, 0)) for b, a in pairs], names.get(mode, mode))
        ends = tuple(slice(max(-b, 0), n - max(-a, 0)) for (b, a), n in zip(pairs, wide.shape, strict=True))
        return wide[ends]
    return m.pad(x, pairs, names.get(mode, mode), **options)


def unfold(m, x, dim, size, step):
    rows = vector(m, x)
    axis = axis_of(x, dim)
    starts = np.arange(0, rows.shape[axis] - size + 1, step)
    windows = rows[at(axis, starts[:, None] + np.arange(size))]
    out = m.moveaxis(windows, axis + 1, -1)
    return out if x.ndim else m.reshape(out, (size,))


def sum_to_size(m, x, *size):
    size = size[0] if isinstance(size[0], (tuple, list)) else size
    lead = x.ndim - len(size)
    x = m.sum(x, tuple(range(lead))) if lead else x
    return m.sum(x, tuple(i for i, n in enumerate(size) if n == 1), True) if 1 in size else x


def pixel_shuffle(m, x, r):
    *n, c, h, w = x.shape
    k, i = len(n), range(len(n))
    apart = m.reshape(x, (*n, c // r**2, r, r, h, w))
    return m.reshape(m.transpose(apart, (*i, k, k + 3, k + 1, k + 4, k + 2)), (*n, c // r**2, h * r, w * r))


def pixel_unshuffle(m, x, r):
    *n, c, h, w = x.shape
    k, i = len(n), range(len(n))
    apart = m.reshape(x, (*n, c, h // r, r, w // r, r))
    return m.reshape(m.transpose(apart, (*i, k, k + 2, k + 4, k + 1, k + 3)), (*n, c * r**2, h // r, w // r))


def channel_shuffle(m, x, groups):
    n, c, *rest = x.shape
    return m.reshape(m.swapaxes(m.reshape(x, (n, groups, c // groups, *rest)), 1, 2), x.shape)


def combinations(m, x, r=2, with_replacement=False):
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    chosen = np.array(list(choose(range(x.size), r)), int).reshape(-1, r)
    return x[chosen]


def cartesian_prod(m, *xs):
    if len(xs) == 1:
        return xs[0]
    return m.stack([m.reshape(x, -1) for x in m.meshgrid(*xs, indexing="ij")], -1)


def diag_embed(m, x, offset=0, dim1=-2, dim2=-1):
    size = x.shape[-1] + abs(offset)
    steps = np.arange(x.shape[-1])
    index = (..., steps + max(-offset, 0), steps + max(offset, 0))
    return m.moveaxis(m.scatter_add(x, index, (*x.shape[:-1], size, size)), (-2, -1), (dim1, dim2))


SHAPES = {
    "broadcast_to": "broadcast_to",
    **dict.fromkeys(("expand", "expand_copy"), expand),
    "expand_as": lambda m, x, y: m.broadcast_to(x, y.shape),
    "broadcast_tensors": broadcast_tensors,
    **dict.fromkeys(("reshape", "view", "view_copy"), same("reshape")),
    **dict.fromkeys(("reshape_as", "view_as"), lambda m, x, y: m.reshape(x, y.shape)),
    "ravel": "ravel",
    "flatten": flatten,
    "unflatten": unflatten,
    **dict.fromkeys(("squeeze", "squeeze/multiple", "squeeze_copy"), squeeze),
    **dict.fromkeys(("unsqueeze", "unsqueeze_copy"), lambda m, x, dim: m.expand_dims(x, dim)),
    **dict.fromkeys(("permute", "permute_copy"), lambda m, x, *dims: m.transpose(
        x, dims[0] if isinstance(dims[0], tuple) else dims)),
    **dict.fromkeys(("transpose", "transpose_copy"), transpose),
    **dict.fromkeys(("t", "t_copy", "mT", "mH"), matrix_transpose),
    **dict.fromkeys(("T", "H"), lambda m, x: x.T),
    "movedim": lambda m, x, source, destination: m.moveaxis(x, source, destination),
    "flip": lambda m, x, dims: m.flip(x, dims),
    "fliplr": lambda m, x: m.flip(x, 1),
    "flipud": lambda m, x: m.flip(x, 0),
    "rot90": rot90,
    "roll": roll,
    "repeat": repeat,
    "tile": repeat,
    "repeat_interleave": repeat_interleave,
    "cat": cat,
    "stack": lambda m, xs, dim=0: m.stack(xs, dim),
    "hstack": "hstack", "vstack": "vstack", "column_stack": "column_stack",
    "dstack": lambda m, xs: m.concatenate(atleast(3)(m, xs), 2),
    **dict.fromkeys(("split", "split/list_args", "unsafe_split"), split),
    **dict.fromkeys(("split_with_sizes", "split_with_sizes_copy"), split),
    **dict.fromkeys(("chunk", "unsafe_chunk"), chunk),
    "tensor_split": tensor_split,
    "hsplit": split_along(1), "vsplit": split_along(0), "dsplit": split_along(2),
    **dict.fromkeys(("unbind", "unbind_copy"), unbind),
    **dict.fromkeys(("narrow", "narrow_copy"), narrow),
    **{f"atleast_{count}d": atleast(count) for count in (1, 2, 3)},
    **dict.fromkeys(("meshgrid/variadic_tensors", "meshgrid/list_of_tensors"), meshgrid),
    "block_diag": block_diag,
    "alias_copy": "clone",
    "constant_pad_nd": lambda m, x, widths, value=0.0: pad(m, x, widths, "constant", value),
    **{f"nn.functional.pad/{mode}": pad for mode in (
        "constant", "reflect", "replicate", "replicate_negative", "circular")},
    **dict.fromkeys(("unfold", "unfold_copy"), unfold),
    "sum_to_size": sum_to_size,
    "nn.functional.pixel_shuffle": lambda m, x, upscale_factor: pixel_shuffle(m, x, upscale_factor),
    "nn.functional.pixel_unshuffle": lambda m, x, downscale_factor: pixel_unshuffle(
        m, x, downscale_factor),
    "nn.functional.channel_shuffle": channel_shuffle,
    "combinations": combinations,
    "cartesian_prod": cartesian_prod,
    "diag_embed": diag_embed,
}  # fmt: skip


# --------------------------------------------------------------------------------------------------
# Elements by their indices
# --------------------------------------------------------------------------------------------------


def places(index, dim):
    """The place of each element of PyTorch's gather and scatter: index along dim, its own else."""
    where = list(np.indices(index.shape))
    where[dim] = index.data
    return tuple(where)


def gather(m, x, dim, index):
    rows, where = vector(m, x), vector(m, index)
    if not index.size:
        return m.zeros(index.shape, dtype=x.dtype)
    return m.reshape(rows[places(where, axis_of(rows, dim))], index.shape)


def put_at(m, x, where, values):
    """x with values at an index: those of x there are taken out."""
    kept = np.ones(x.shape, bool)
    kept[where] = False
    filled = m.scatter_add(m.broadcast_to(values, kept[where].shape), where, x.shape)
    return m.where(kept, x, filled)


def add_at(m, x, where, values):
    return x + m.scatter_add(values, where, x.shape)


def scatter(m, x, dim, index, src, reduce=None):
    rows, index = vector(m, x), vector(m, index)
    where = places(index, axis_of(rows, dim))
    if hasattr(src, "shape"):
        src = vector(m, src)[tuple(slice(n) for n in index.shape)]
    else:
        src = m.full(index.shape, float(src), x.dtype)
    out = add_at(m, rows, where, src) if reduce == "add" else put_at(m, rows, where, src)
    return m.reshape(out, x.shape)


def reduce_at(m, rows, where, values, include_self, mean):
    """The sum or the mean of all that comes to a place, also of what is there if it counts."""
    out = add_at(m, rows if include_self else put_at(m, rows, where, 0.0), where, values)
    if not mean:
        return out
    came = m.scatter_add(np.ones(values.shape), where, rows.shape)
    return out / np.maximum(came + include_self, 1.0)


def scatter_reduce(m, x, dim, index, src, reduce, include_self=True):
    rows, index = vector(m, x), vector(m, index)
    src = vector(m, src)[tuple(slice(n) for n in index.shape)]
    where = places(index, axis_of(rows, dim))
    return m.reshape(reduce_at(m, rows, where, src, include_self, reduce == "mean"), x.shape)


def index_reduce(m, rows, where, source, reduce, include_self=True):
    return reduce_at(m, rows, where, source, include_self, reduce == "mean")


def along_dim(function):
    """A function of an index along a dim."""

    def call(m, x, dim, index, *values, **options):
        rows = vector(m, x)
        values = [
            vector(m, v) if not x.ndim and hasattr(v, "ndim") and index.ndim else v for v in values
        ]
        where = at(axis_of(rows, dim), index.data)
        return m.reshape(function(m, rows, where, *values, **options), x.shape)

    return call


def getitem(m, x, index):
    """A list with more than numbers in it is a tuple in PyTorch."""
    plain = isinstance(index, list) and all(isinstance(part, int) for part in index)
    return x[index if plain or not isinstance(index, list) else tuple(index)]


def index_fill(m, x, dim, index, value):
    chosen = np.zeros(vector(m, x).shape, bool)
    chosen[at(axis_of(x, dim), index.data)] = True
    return m.where(chosen.reshape(x.shape), value, x)


def diagonal_scatter(m, x, y, offset=0, dim1=0, dim2=1):
    moved = m.moveaxis(x, (dim1, dim2), (-2, -1))
    steps = np.arange(y.shape[-1])
    where = (..., steps + max(-offset, 0), steps + max(offset, 0))
    return m.moveaxis(put_at(m, moved, where, y), (-2, -1), (dim1, dim2))


def index_select(m, x, dim, index):
    if not x.ndim:
        return m.reshape(vector(m, x)[index], ())
    return x[at(axis_of(x, dim), index)]


def put(m, x, index, source, accumulate=False):
    flat, values = m.reshape(x, -1), m.reshape(source, index.shape)
    change = add_at if accumulate else put_at
    return m.reshape(change(m, flat, index.data, values), x.shape)


def index_put(m, x, indices, values, accumulate=False):
    where = tuple(index.data for index in indices)
    values = m.broadcast_to(values, np.empty(x.shape)[where].shape)
    return (add_at if accumulate else put_at)(m, x, where, values)


def masked_select(m, x, mask):
    x, mask = broadcast_tensors(m, x, mask)
    return x[mask]


def masked_scatter(m, x, mask, source):
    x, mask = broadcast_tensors(m, x, mask)
    count = int(mask.data.sum())
    return put_at(m, x, mask.data, m.reshape(source, -1)[:count])


def slice_at(x, dim=0, start=None, end=None, step=1):
    return at(axis_of(x, dim), slice(start, end, step))


def take_along_dim(m, x, index, dim=None):
    if dim is None:
        return m.take_along_axis(m.reshape(x, -1), m.reshape(index, -1), 0)
    return m.take_along_axis(x, index, dim)


def embedding(m, weight, index, **options):
    return m.embedding(index, weight, **options)


INDICES = {
    "__getitem__": getitem,
    "select": lambda m, x, dim, index: x[at(axis_of(x, dim), index)],
    "slice": lambda m, x, *args, **options: x[slice_at(x, *args, **options)],
    "index_select": index_select,
    "masked_select": masked_select,
    "masked_scatter": masked_scatter,
    "masked_fill": lambda m, x, mask, value: m.where(mask, value, x),
    "take": lambda m, x, index: m.reshape(x, -1)[index],
    "take_along_dim": take_along_dim,
    "gather": gather,
    "scatter": scatter,
    "scatter_add": lambda m, x, dim, index, src: scatter(m, x, dim, index, src, "add"),
    "scatter_reduce/sum": scatter_reduce,
    "scatter_reduce/mean": scatter_reduce,
    "index_reduce/mean": along_dim(index_reduce),
    "index_add": along_dim(lambda m, x, where, source, alpha=1: add_at(m, x, where, alpha * source)),
    "index_copy": along_dim(put_at),
    "index_fill": index_fill,
    "index_put": index_put,
    "put": put,
    "select_scatter": lambda m, x, y, dim, index: put_at(m, x, at(axis_of(x, dim), index), y),
    "slice_scatter": lambda m, x, y, *args, **options: put_at(
        m, x, slice_at(x, *args, **options), y),
    "diagonal_scatter": diagonal_scatter,
    "nn.functional.embedding": embedding,
    "nn.functional.one_hot": lambda m, x, num_classes=-1: m.one_hot(
        x, None if num_classes == -1 else num_classes),
    "nonzero": lambda m, x, as_tuple=False: m.stack(list(m.nonzero(x)), -1),
    "argwhere": lambda m, x: m.stack(list(m.nonzero(x)), -1),
}  # fmt: skip


# --------------------------------------------------------------------------------------------------
# Neural networks
# --------------------------------------------------------------------------------------------------


def softplus(m, x, beta=1, threshold=20):
    """PyTorch takes x itself where beta x is above a threshold."""
    return m.where(beta * x > threshold, x, m.softplus(x, beta))


def normalize(m, x, p=2.0, dim=1, eps=1e-12):
    return x / m.clip(vector_norm(m, x, p, dim, True), eps)


def cosine_similarity(m, x, y, dim=1, eps=1e-8):
    x, y = broadcast_tensors(m, x, y)
    length = [m.clip(m.norm(vector(m, v), None, dim if v.ndim else 0, True), eps) for v in (x, y)]
    return m.sum(vector(m, x) / length[0] * (vector(m, y) / length[1]), dim)


def glu(m, x, dim=-1):
    a, b = m.split(x, 2, dim)
    return a * m.sigmoid(b)


def prelu(m, x, weight):
    if x.ndim > 1 and weight.ndim:
        weight = m.reshape(weight, (1, -1, *[1] * (x.ndim - 2)))
    elif weight.ndim:
        weight = m.reshape(weight, () if not x.ndim else (1,))
    return m.where(x > 0, x, weight * x)


def rrelu(m, x, lower=1 / 8, upper=1 / 3, training=False):
    if training:
        raise SkippedError("random numbers")
    return m.leaky_relu(x, (lower + upper) / 2)


def dropout(m, x, p=0.5, training=True):
    if training and 0 < p < 1:
        raise SkippedError("random numbers")
    return m.dropout(x, p, training)


def attention(m, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
    if dropout_p:
        raise SkippedError("random numbers")
    return m.scaled_dot_product_attention(q, k, v, attn_mask, 0.0, is_causal, **options)


def batch_norm(m, x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    return m.batch_norm(x, mean, var, weight, bias, training, momentum, eps)


def instance_norm(m, x, running_mean=None, running_var=None, weight=None, bias=None,
                  use_input_stats=True, momentum=0.1, eps=1e-5):  # fmt: skip
    """A group norm with a group for each channel."""
    if not use_input_stats:
        return batch_norm(m, x, running_mean, running_var, weight, bias, False, momentum, eps)
    return m.group_norm(x, x.shape[1], weight, bias, eps)


def pool(name):
    """Pooling, of which the values are compared: ours returns no indices."""

    def call(m, x, *args, return_indices=False, **options):
        return getattr(m, name)(x, *args, **options)

    return Row(call, first)


def native_group_norm(m, x, weight, bias, n, channels, size, groups, eps):
    return m.group_norm(x, groups, weight, bias, eps)


def native_batch_norm(m, x, weight, bias, *statistics_and_options):
    *statistics, training, momentum, eps = statistics_and_options
    mean, var = statistics or (None, None)
    return batch_norm(m, x, mean, var, weight, bias, training, momentum, eps)


def softmax_gradient(m, g, out, dim, dtype):
    return out * (g - m.sum(g * out, dim, True)) if out.ndim else g * 0.0


def patches(m, x, kernel_size, dilation=1, padding=0, stride=1):
    """nn.functional.unfold: each patch of an image as a column."""
    size, dilation, padding, stride = (
        (v, v) if isinstance(v, int) else v for v in (kernel_size, dilation, padding, stride)
    )
    images = m.reshape(x, (-1, *x.shape[-3:]))
    images = m.pad(images, ((0, 0), (0, 0), *((p, p) for p in padding)))
    rows, columns = (
        np.arange(0, n - d * (k - 1), s)[None, :] + d * np.arange(k)[:, None]
        for n, k, d, s in zip(images.shape[2:], size, dilation, stride, strict=True)
    )
    taken = images[:, :, rows[:, None, :, None], columns[None, :, None, :]]
    lead = x.shape[:1] if x.ndim == 4 else ()
    return m.reshape(taken, (*lead, x.shape[-3] * size[0] * size[1], rows.shape[1] * columns.shape[1]))


NEURAL = {
    "softmax": with_dtype(same("softmax")),
    "softmax/with_dtype": with_dtype(same("softmax")),
    "log_softmax": with_dtype(same("log_softmax")),
    "log_softmax/with_dtype": with_dtype(same("log_softmax")),
    **dict.fromkeys(("nn.functional.softmin", "nn.functional.softmin/with_dtype"),
                    with_dtype(lambda m, x, dim: m.softmax(-x, dim))),
    **{f"nn.functional.{name}": name for name in ("relu", "leaky_relu", "elu", "silu", "gelu")},
    "nn.functional.relu6": lambda m, x: m.clip(x, 0.0, 6.0),
    "nn.functional.hardtanh": lambda m, x, min_val=-1.0, max_val=1.0: m.clip(x, min_val, max_val),
    "nn.functional.hardsigmoid": lambda m, x: m.clip(x / 6 + 0.5, 0.0, 1.0),
    "nn.functional.hardswish": lambda m, x: x * m.clip(x / 6 + 0.5, 0.0, 1.0),
    "nn.functional.logsigmoid": lambda m, x: -m.softplus(-x),
    "nn.functional.mish": lambda m, x: x * m.tanh(m.softplus(x)),
    "nn.functional.softsign": lambda m, x: x / (1 + m.abs(x)),
    "nn.functional.tanhshrink": lambda m, x: x - m.tanh(x),
    "nn.functional.softshrink": lambda m, x, lambd=0.5: x - m.clip(x, -lambd, lambd),
    "nn.functional.hardshrink": lambda m, x, lambd=0.5: m.where(
        m.logical_and(x >= -lambd, x <= lambd), 0.0, x),
    "nn.functional.threshold": lambda m, x, threshold, value: m.where(x > threshold, x, value),
    "nn.functional.selu": lambda m, x: 1.0507009873554805 * m.elu(x, 1.6732632423543772),
    "nn.functional.celu": lambda m, x, alpha=1.0: m.elu(x / alpha) * alpha,
    "nn.functional.softplus": softplus,
    "nn.functional.glu": glu,
    "nn.functional.prelu": prelu,
    "nn.functional.rrelu": rrelu,
    "nn.functional.normalize": normalize,
    "nn.functional.cosine_similarity": cosine_similarity,
    "nn.functional.layer_norm": "layer_norm",
    "nn.functional.rms_norm": "rms_norm",
    "nn.functional.group_norm": "group_norm",
    "nn.functional.batch_norm": batch_norm,
    "nn.functional.instance_norm": instance_norm,
    **{f"nn.functional.{name}": dropout for name in ("dropout", "dropout2d", "dropout3d")},
    "nn.functional.scaled_dot_product_attention": attention,
    **{f"nn.functional.{name}": name for name in ("conv1d", "conv2d")},
    **{f"nn.functional.{kind}_pool{n}d": pool(f"{kind}_pool{n}d")
       for kind in ("max", "avg", "adaptive_avg") for n in (1, 2)},
    "native_layer_norm": Row(same("layer_norm"), first),
    "native_group_norm": Row(native_group_norm, first),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit"), Row(native_batch_norm, first)),
    "_batch_norm_with_update": Row(lambda m, x, weight, bias, mean, var, momentum, eps: batch_norm(
        m, x, mean, var, weight, bias, True, momentum, eps), first),
    "_softmax_backward_data": softmax_gradient,
    "nn.functional.unfold": patches,
}  # fmt: skip


# --------------------------------------------------------------------------------------------------
# Losses
# --------------------------------------------------------------------------------------------------


def reduced(m, losses, reduction):
    return {"none": lambda x: x, "mean": m.mean, "sum": m.sum}[reduction](losses)


def loss(name, **names):
    """A loss of two operands here, which do not broadcast."""

    def call(m, x, y, reduction="mean", **options):
        options = {names.get(key, key): value for key, value in options.items()}
        return getattr(m, name)(x, y, reduction, **options)

    return call


def smooth_l1(m, x, y, reduction="mean", beta=1.0):
    return m.huber(x, y, reduction, beta) / beta if beta else m.l1(x, y, reduction)


def kl_div(m, x, y, reduction="mean", log_target=False):
    terms = m.exp(y) * (y - x) if log_target else m.xlogy(y, y) - y * x
    return m.sum(terms) / x.shape[0] if reduction == "batchmean" else reduced(m, terms, reduction)


def binary_cross_entropy(m, p, t, weight=None, reduction="mean"):
    """PyTorch cuts the logarithms at -100."""
    terms = -(t * m.clip(m.log(p), -100.0) + (1 - t) * m.clip(m.log1p(-p), -100.0))
    return reduced(m, terms if weight is None else terms * weight, reduction)


def poisson_nll(m, x, y, log_input=True, full=False, eps=1e-8, reduction="mean"):
    terms = m.exp(x) - y * x if log_input else x - y * m.log(x + eps)
    if full:
        stirling = y * m.log(m.where(y > 1, y, 1.0)) - y + 0.5 * m.log(2 * math.pi * m.where(y > 1, y, 1.0))
        terms = terms + m.where(y <= 1, 0.0, stirling)
    return reduced(m, terms, reduction)


def gaussian_nll(m, x, y, var, full=False, eps=1e-6, reduction="mean"):
    if hasattr(var, "shape") and var.shape != x.shape and var.shape == x.shape[:-1]:
        var = m.expand_dims(var, -1)
    var = m.clip(var.detach(), eps) + (var - var.detach())  # the bound does not cut the gradient
    terms = 0.5 * (m.log(var) + (x - y) ** 2 / var) + (0.5 * math.log(2 * math.pi) if full else 0)
    return reduced(m, terms, reduction)


def hinge_embedding(m, x, y, margin=1.0, reduction="mean"):
    far = m.where(y != 1, m.clip(margin - x, 0.0), 0.0)
    return reduced(m, far + m.where(y != -1, x, 0.0), reduction)


def cosine_embedding(m, x, y, target, margin=0.0, reduction="mean"):
    eps, axis = 1e-12, x.ndim - 1
    product = m.sum(x * y, axis)
    cos = product / m.sqrt((m.sum(x * x, axis) + eps) * (m.sum(y * y, axis) + eps))
    terms = m.where(target == 1, 1 - cos, 0.0) + m.where(target == -1, m.clip(cos - margin, 0.0), 0.0)
    return reduced(m, terms, reduction)


def margin_ranking(m, x, y, target, margin=0.0, reduction="mean"):
    return reduced(m, m.clip(-target * (x - y) + margin, 0.0), reduction)


def soft_margin(m, x, y, reduction="mean"):
    return reduced(m, m.softplus(-y * x), reduction)


def multilabel_soft_margin(m, x, y, weight=None, reduction="mean"):
    terms = y * m.softplus(-x) + (1 - y) * m.softplus(x)
    return reduced(m, m.mean(terms if weight is None else terms * weight, -1), reduction)


def multi_margin(m, x, y, p=1, margin=1.0, weight=None, reduction="mean"):
    rows = m.reshape(x, (-1, x.shape[-1] if x.ndim else 1))
    labels = np.atleast_1d(y.data)
    chosen = rows[np.arange(len(labels)), labels]
    terms = m.clip(margin - m.expand_dims(chosen, 1) + rows, 0.0) ** p
    if weight is not None:
        terms = terms * m.expand_dims(weight[labels], 1)
    others = np.arange(rows.shape[1]) != labels[:, None]
    losses = m.sum(m.where(others, terms, 0.0), 1) / rows.shape[1]
    return reduced(m, losses if y.ndim else m.reshape(losses, ()), reduction)


def triplet(m, anchor, positive, negative, *, margin=1.0, p=2, eps=1e-6, swap=False,
            reduction="mean", distance_function=None):  # fmt: skip
    near, far = (m.norm(anchor - x + eps, p, -1) for x in (positive, negative))
    if swap:
        far = m.minimum(far, m.norm(positive - negative + eps, p, -1))
    return reduced(m, m.clip(margin + near - far, 0.0), reduction)


def linear_cross_entropy(m, x, linear_weight, target, linear_bias=None, options=None, **given):
    """Classes on the first axis of the weight; the further ones are rows of their own."""
    weight = linear_weight
    usual = weight.ndim == 2 and linear_bias is None and target.dtype.kind != "f"
    if usual and given.get("weight") is None:
        given.pop("weight", None)
        return m.linear_cross_entropy(x, weight, target, **given)
    logits = x @ m.swapaxes(m.reshape(weight, (-1, weight.shape[-1])), 0, 1)
    logits = m.reshape(logits, (*x.shape[:-1], *weight.shape[:-1]))
    logits = logits if linear_bias is None else logits + linear_bias
    return m.cross_entropy(logits, target, **given)


def bce_with_logits(m, x, y, weight=None, reduction="mean", pos_weight=None):
    options = {} if weight is None else {"weight": weight}
    return m.binary_cross_entropy_with_logits(x, y, reduction, pos_weight=pos_weight, **options)


LOSSES = {
    "nn.functional.mse_loss": loss("mse"),
    "nn.functional.l1_loss": loss("l1"),
    "nn.functional.huber_loss": loss("huber"),
    "nn.functional.smooth_l1_loss": smooth_l1,
    "nn.functional.cross_entropy": loss("cross_entropy"),
    "nn.functional.nll_loss": loss("nll"),
    "nn.functional.binary_cross_entropy": binary_cross_entropy,
    "nn.functional.binary_cross_entropy_with_logits": bce_with_logits,
    "nn.functional.kl_div": kl_div,
    "nn.functional.poisson_nll_loss": poisson_nll,
    "nn.functional.gaussian_nll_loss": gaussian_nll,
    "nn.functional.hinge_embedding_loss": hinge_embedding,
    "nn.functional.cosine_embedding_loss": cosine_embedding,
    "nn.functional.margin_ranking_loss": margin_ranking,
    "nn.functional.soft_margin_loss": soft_margin,
    "nn.functional.multilabel_soft_margin_loss": multilabel_soft_margin,
    "nn.functional.multi_margin_loss": multi_margin,
    "nn.functional.triplet_margin_loss": triplet,
    "nn.functional.triplet_margin_with_distance_loss": triplet,
    **{f"nn.functional.linear_cross_entropy{variant}": linear_cross_entropy
       for variant in ("", "/chunked", "/chunked_none")},
}  # fmt: skip


# --------------------------------------------------------------------------------------------------
# Some elements only, by a mask
# --------------------------------------------------------------------------------------------------


def kept(m, x, mask, other):
    return x if mask is None else m.where(mask, x, other)


def masked(row, other):
    """A function of the elements that a mask keeps, for which the others are `other`."""

    def call(m, x, *args, mask=None, dtype=None, **options):
        x = x if mask is None else m.broadcast_to(x, np.broadcast_shapes(x.shape, mask.shape))
        return row(m, kept(m, x, mask, other), *args, **options)

    return call


def masked_mean(m, x, dim=None, *, mask=None, keepdim=False, dtype=None):
    count = m.astype(kept(m, m.full(x.shape, True), mask, False), x.dtype)
    total = all_dims("sum")
    return total(m, kept(m, x, mask, 0.0), dim, keepdim) / total(m, count, dim, keepdim)


def masked_norm(m, x, ord=2.0, dim=None, *, mask=None, keepdim=False, dtype=None):
    other = math.inf if ord == -math.inf else 0.0
    return vector_norm(m, kept(m, x, mask, other), ord, None if dim == () else dim, keepdim)


def masked_var(m, x, dim=None, unbiased=True, *, mask=None, correction=None, keepdim=False, dtype=None):
    ddof = int(unbiased) if correction is None else correction
    dim = None if dim == () else dim
    counted = m.astype(kept(m, m.full(x.shape, True), mask, False), x.dtype)
    mean = masked_mean(m, x, dim, mask=mask, keepdim=True)
    count = m.sum(counted, dim, keepdim) - ddof
    return m.sum(counted * (x - mean) ** 2, dim, keepdim) / m.clip(count, 0.0)


def masked_std(m, x, *args, **options):
    return m.sqrt(masked_var(m, x, *args, **options))


MASKED = {
    "masked.var": masked_var,
    "masked.std": masked_std,
    "masked.sum": masked(all_dims("sum"), 0.0),
    "masked.prod": masked(all_dims("prod"), 1.0),
    "masked.amax": masked(all_dims("max"), -math.inf),
    "masked.amin": masked(all_dims("min"), math.inf),
    "masked.logsumexp": masked(all_dims("logsumexp"), -math.inf),
    "masked.mean": masked_mean,
    "masked.norm": masked_norm,
    "masked.argmax": masked(lambda m, x, *args, **options: m.astype(
        same("argmax")(m, x, *args, **options), x.dtype), -math.inf),  # floats in PyTorch
    "masked.argmin": masked(lambda m, x, *args, **options: m.astype(
        same("argmin")(m, x, *args, **options), x.dtype), math.inf),
    "masked.normalize": lambda m, x, ord, dim, mask=None, eps=1e-12: x / m.clip(
        masked_norm(m, x, ord, dim, mask=mask, keepdim=True), eps),
    "masked.logaddexp": lambda m, x, y, input_mask=None, other_mask=None: m.logaddexp(
        kept(m, x, input_mask, -math.inf), kept(m, y, other_mask, -math.inf)),
    "masked.cumsum": masked(along("cumsum"), 0.0),
    "masked.cumprod": masked(along("cumprod"), 1.0),
    "masked.softmax": masked(same("softmax"), -math.inf),
    "masked.log_softmax": masked(same("log_softmax"), -math.inf),
    "masked.softmin": masked(lambda m, x, dim: m.softmax(-x, dim), math.inf),
}  # fmt: skip


def rows():
    """All of them, as Rows."""
    found = {}
    for part in (ELEMENTWISE, REDUCTIONS, PRODUCTS, SHAPES, INDICES, NEURAL, LOSSES, MASKED):
        for name, row in part.items():
            if isinstance(row, str):
                row = same(row)
            found[name] = row if isinstance(row, Row) else Row(row)
    return found


ROWS = rows()

# --------------------------------------------------------------------------------------------------
# What is otherwise, and why: entries, and a part of the error or the place of the difference
# --------------------------------------------------------------------------------------------------

ON_PURPOSE = [
    # Who is right, where both give numbers
    (("linalg.norm/subgradients_at_zero",), "a second derivative",
     "where the norm is 0, so are all derivatives, of which PyTorch's second ones are nan"),
    (("cholesky_inverse", "cholesky_solve"), "a first derivative",
     "one triangle counts, and PyTorch has gradients in the other one too"),
    (("cov",), "a second derivative", "weights in float32 lose digits where a variance is of two"),
    (("nn.functional.hardsigmoid",), "a first derivative", "PyTorch's 1 / 6 is one of float32"),
    (("nn.functional.linear_cross_entropy/chunked", "nn.functional.linear_cross_entropy/chunked_none"),
     "a second derivative", "PyTorch has none here, and gives 0 instead of an error"),
    # What is refused
    (("nn.functional.layer_norm", "nn.functional.rms_norm", "native_layer_norm"),
     "eps is not negative", "the root of a negative number is nan, and PyTorch does not look"),
    (("nn.functional.cross_entropy", "nn.functional.nll_loss"), "weights of classes are not negative",
     "PyTorch maximises the loss of such a class"),
]  # fmt: skip

# Functions and options that are to come, as parts of the reasons.
TO_COME = (
    *("exp2", "nan_to_num", "sinc", "trunc", "copysign", "fmod", "hypot", "logaddexp", "xlogy"),
    *("isclose", "arccosh", "arcsinh", "arctanh", "cummax", "cummin", "diff", "kron", "inner"),
    *("tensordot", "slogdet", "svd", "eigh", "pinv", "ravel", "hstack", "vstack", "column_stack"),
    *("array_split", "meshgrid", "nonzero", "group_norm", "batch_norm", "conv1d", "conv2d"),
    *("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"),
    *("norm: ord is", "unexpected keyword argument 'weight'", "there is nothing to repeat"),
)

# --------------------------------------------------------------------------------------------------
# What is not to be here, as patterns
# --------------------------------------------------------------------------------------------------

OUT_OF_SCOPE = {
    "complex numbers": (
        "angle", "cdouble", "cfloat", "chalf", "complex", "conj*", "imag", "isreal", "linalg.eig",
        "linalg.eigvals", "nn.functional.silu/complex", "polar", "real", "resolve_*", "view_as_complex",
        "view_as_real",
    ),
    "Fourier transforms and their windows": ("fft.*", "istft", "stft", "signal.windows.*"),
    "transposed convolution": ("nn.functional.conv_transpose*", "nn.functional.max_unpool*"),
    "interpolation": (
        "_upsample*", "grid_sampler_*", "nn.functional.grid_sample", "nn.functional.interpolate/*",
        "nn.functional.upsample_*",
    ),
    "operations on integers": (
        "__rand__", "__ror__", "__rxor__", "bitwise_*", "gcd", "lcm", "tril_indices", "triu_indices",
        "unravel_index",
    ),
    "sparse and quantized matrices": ("sparse.*", "to_sparse", "torch._scaled_mm*"),
    "random numbers": (
        "bernoulli", "cauchy", "exponential", "geometric", "log_normal", "multinomial",
        "native_dropout_backward", "nn.functional.*alpha_dropout*", "nn.functional.fractional_*",
        "normal*", "pca_lowrank", "rand*", "svd_lowrank", "uniform",
    ),
    "makes a tensor of none": (
        "arange", "broadcast_shapes", "empty*", "eye", "full", "linspace*", "logspace*", "new_*",
        "ones", "scalar_tensor", "zeros",
    ),
    "writes in place, or is about memory": ("as_strided*", "resize_*", "zero_"),
    "no derivative, which numpy.* does on arrays": (
        "bincount", "bucketize", "frexp", "hash_tensor", "histc", "histogram*", "linalg.ldl_*",
        "nextafter", "searchsorted", "unique*", "geqrf",
    ),
    "for PyTorch alone: its backends, and what others are made of": (
        "_chunk_cat", "_segment_reduce/*", "_unsafe_*", "jiterator_*", "max_pool2d_with_*",
        "nn.functional.batch_norm/without_cudnn", "nonzero_static", "torch.ops.aten.*",
    ),
    "a dtype that numpy does not have": ("bfloat16",),
}
