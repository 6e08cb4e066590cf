"""Elements by their indices."""

import numpy as np

from tests.peers.op_rows.row import at, axis_of, vector
from tests.peers.op_rows.shapes import broadcast_tensors


def places(index, dim):
    """The place of each element of PyTorch's gather and scatter: index along dim, its own else."""
    where = list(np.indices(index.shape))
    where[dim] = index.data
    return tuple(where)


def gather(m, x, dim, index):
    if index.ndim > max(x.ndim, 1):  # PyTorch takes any empty index
        return m.zeros(index.shape, dtype=x.dtype)
    return m.reshape(m.gather(vector(m, x), dim, vector(m, index)), index.shape)


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
    src = vector(m, src) if hasattr(src, "shape") else src
    if reduce != "add":
        return m.reshape(m.scatter(rows, dim, index, src), x.shape)
    src = m.broadcast_to(src, index.shape) if isinstance(src, float) else src
    src = src[tuple(slice(n) for n in index.shape)]
    return m.reshape(add_at(m, rows, places(index, axis_of(rows, dim)), src), x.shape)


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
    "index_add": along_dim(
        lambda m, x, where, source, alpha=1: add_at(m, x, where, alpha * source)),
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
    "nonzero": lambda m, x, as_tuple=False: (
        m.nonzero(vector(m, x)) if as_tuple else m.stack(list(m.nonzero(x)), -1)),
    "argwhere": lambda m, x: m.stack(list(m.nonzero(x)), -1),
}  # fmt: skip
