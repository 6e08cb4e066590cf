"""The same elements in another arrangement."""

import itertools
import math

import numpy as np

from tests.peers.op_rows.row import at, axis_of, same, vector


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
        cuts = tuple(
            slice(max(-b, 0), n - max(-a, 0)) for (b, a), n in zip(pairs, x.shape, strict=True)
        )
        if mode != "replicate":
            return m.pad(
                x[cuts],
                [(max(b, 0), max(a, 0)) for b, a in pairs],
                names.get(mode, mode),
                **options,
            )
        wide = m.pad(x, [(max(b, 0), max(a, 0)) for b, a in pairs], names.get(mode, mode))
        ends = tuple(
            slice(max(-b, 0), n - max(-a, 0)) for (b, a), n in zip(pairs, wide.shape, strict=True)
        )
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
    return m.reshape(
        m.transpose(apart, (*i, k, k + 3, k + 1, k + 4, k + 2)), (*n, c // r**2, h * r, w * r)
    )


def pixel_unshuffle(m, x, r):
    *n, c, h, w = x.shape
    k, i = len(n), range(len(n))
    apart = m.reshape(x, (*n, c, h // r, r, w // r, r))
    return m.reshape(
        m.transpose(apart, (*i, k, k + 2, k + 4, k + 1, k + 3)), (*n, c * r**2, h // r, w // r)
    )


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
