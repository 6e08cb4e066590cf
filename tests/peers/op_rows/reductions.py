"""Reductions, running results, and the order of elements."""

import numpy as np

from tests.peers.op_rows.row import at, axis_of, vector, with_dtype


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
    place = (order.shape[0] - 1) * (
        q.data.ravel() if several else np.array([getattr(q, "data", q)])
    )
    place = place.astype(float).ravel()
    low, high = order[np.floor(place).astype(int)], order[np.ceil(place).astype(int)]
    steps = {"lower": np.zeros_like(place), "higher": np.ceil(place) - np.floor(place)}
    steps |= {
        "midpoint": np.where(place % 1 > 0, 0.5, 0),
        "nearest": np.round(place) - np.floor(place),
    }
    if interpolation == "linear":
        weight = (order.shape[0] - 1) * m.reshape(q, (-1,)) - np.floor(place)
    else:
        weight = steps[interpolation]
    weight = m.reshape(weight, (-1, *[1] * (low.ndim - 1)))
    out = low + weight * (high - low)
    sizes = (
        kept if keepdim else tuple(n for i, n in enumerate(kept) if dim is not None and i != axis)
    )
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


def running(name):
    """A running extreme along a dim, and where it is."""

    def call(m, x, dim):
        return [m.reshape(out, x.shape) for out in getattr(m, name)(vector(m, x), dim)]

    return call


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
    "cummax": running("cummax"),
    "cummin": running("cummin"),
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
