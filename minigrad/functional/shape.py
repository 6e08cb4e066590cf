"""Functions that rearrange axes, and that join, split, repeat or pad arrays."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.checks import check_choice, check_count, check_integer, check_positive, shown
from minigrad.core.codegen import StandIn, common_float
from minigrad.core.grad_mode import observed
from minigrad.core.tensor import Array, Axis, Tensor, as_array
from minigrad.errors import none_given
from minigrad.functional.compositions import composition
from minigrad.ops import broadcast_to, concatenate, getitem, reshape, scatter_add, transpose, where
from minigrad.ops.linalg import check_matrices
from minigrad.ops.shape import normalize_axes, normalize_axis


@composition
def swapaxes(x: Array, axis1: int, axis2: int) -> Tensor:
    """The array with two axes swapped.

    Raises:
        ValueError: if an axis does not exist.
        TypeError: if an axis is not an integer.
    """
    axes = list(range(x.ndim))
    i, j = normalize_axis(axis1, x.ndim), normalize_axis(axis2, x.ndim)
    axes[i], axes[j] = axes[j], axes[i]
    return transpose(x, axes)


@composition
def moveaxis(x: Array, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    """Move the axes `source` to the positions `destination`; the others keep their order.

    Raises:
        ValueError: if an axis does not exist or is repeated, or the numbers of axes differ.
        TypeError: if an axis is not an integer.
    """
    sources = normalize_axes(source, x.ndim)
    destinations = normalize_axes(destination, x.ndim)
    if len(sources) != len(destinations):
        raise ValueError(f"{len(sources)} axes cannot go to {len(destinations)} positions")
    order = [axis for axis in range(x.ndim) if axis not in sources]
    for position, axis in sorted(zip(destinations, sources, strict=True)):
        order.insert(position, axis)
    return transpose(x, order)


@composition
def expand_dims(x: Array, axis: int | Sequence[int]) -> Tensor:
    """The array with new axes of size 1, at the positions `axis` of the result.

    Raises:
        ValueError: if the result cannot have an axis at such a position, or a position is repeated.
        TypeError: if a position is not an integer.
    """
    count = x.ndim + np.size(axis)
    axes = normalize_axes(axis, count)
    sizes = iter(x.shape)
    return reshape(x, tuple(1 if i in axes else next(sizes) for i in range(count)))


@composition
def squeeze(x: Array, axis: Axis = None) -> Tensor:
    """The array without axes of size 1: without all of them, or only without the given ones.

    Raises:
        ValueError: if a given axis does not exist, or has another size than 1.
        TypeError: if an axis is not an integer.
    """
    axes = normalize_axes(axis, x.ndim)
    for i in () if axis is None else axes:
        if x.shape[i] != 1:
            raise ValueError(f"axis {i} of shape {x.shape} has size {x.shape[i]}, not 1")
    return reshape(x, tuple(n for i, n in enumerate(x.shape) if n != 1 or i not in axes))


@composition
def stack(arrays: Sequence[Array], axis: int = 0) -> Tensor:
    """Join several arrays of the same shape along a new axis.

    Raises:
        ValueError: if there are no arrays, their shapes differ, or the result has no such axis.
    """
    arrays = _listed(arrays)
    for i, array in enumerate(arrays):
        if array is None:
            raise TypeError(none_given(f"arrays[{i}]"))
    shapes = {np.shape(array) for array in arrays}
    if len(shapes) != 1:
        raise ValueError(f"takes arrays of one shape, not of {sorted(shapes) or 'none'}")
    shape = shapes.pop()
    axis = normalize_axis(axis, len(shape) + 1)
    if axis < len(shape):
        joined = concatenate(arrays, axis)
        return reshape(joined, (*shape[:axis], len(arrays), *shape[axis:]))
    return concatenate([expand_dims(array, axis) for array in arrays], axis)


def _listed(arrays: Sequence[Array]) -> list[Array]:
    """Return the arrays in a list, with numbers and lists in the dtype of the others.

    A number does not change the dtype of the result, and is not rounded to float32 in a float64.

    Raises:
        TypeError: if the arrays are not in a sequence.
    """
    try:
        listed = list(arrays)
    except TypeError:
        raise TypeError(f"takes a sequence of tensors, not {shown(arrays)}") from None

    def sets_dtype(x: Array) -> bool:
        return isinstance(x, (Tensor, StandIn)) or getattr(x, "ndim", 0) > 0

    dtype = common_float([x for x in listed if sets_dtype(x)])
    if dtype is None:
        return listed
    return [x if x is None or sets_dtype(x) else observed(as_array, x, dtype) for x in listed]


@composition
def ravel(x: Array) -> Tensor:
    """All elements along one axis, in row-major order."""
    return reshape(x, -1)


@composition
def vstack(arrays: Sequence[Array]) -> Tensor:
    """Join several arrays along axis 0; a vector `(n,)` becomes a row `(1, n)` first.

    Raises:
        ValueError: if there are no arrays, or their sizes differ along another axis.
    """
    return concatenate([reshape(x, (1, -1)) if np.ndim(x) < 2 else x for x in _listed(arrays)])


@composition
def hstack(arrays: Sequence[Array]) -> Tensor:
    """Join several arrays along axis 1; vectors `(n,)` and numbers along axis 0.

    Raises:
        ValueError: if there are no arrays, or their sizes differ along another axis.
    """
    arrays = [reshape(x, -1) if np.ndim(x) == 0 else x for x in _listed(arrays)]
    return concatenate(arrays, 1 if arrays and np.ndim(arrays[0]) > 1 else 0)


@composition
def column_stack(arrays: Sequence[Array]) -> Tensor:
    """Join several arrays along axis 1; a vector `(n,)` becomes a column `(n, 1)` first.

    Raises:
        ValueError: if there are no arrays, or their sizes differ along another axis.
    """
    return concatenate([reshape(x, (-1, 1)) if np.ndim(x) < 2 else x for x in _listed(arrays)], 1)


@composition
def meshgrid(*xi: Array, indexing: str = "xy") -> list[Tensor]:
    """Coordinates of a grid: with `indexing="ij"`, vector i is repeated to vary along axis i only.

    With "xy", the first two axes are swapped, so that the first vector varies along a row. "xy" is
    the default, as in numpy; in PyTorch the default is "ij". The vectors may also be in a list.

    Raises:
        ValueError: if `indexing` is unknown, or an array has more than one axis.
    """
    check_choice("indexing", indexing, ("xy", "ij"))
    if any(x.ndim > 1 for x in xi):
        raise ValueError(f"takes vectors, not arrays of shapes {[x.shape for x in xi]}")
    axes = list(range(len(xi)))
    if indexing == "xy":
        axes[:2] = axes[:2][::-1]
    shape = [xi[axis].size for axis in axes]
    return [
        broadcast_to(reshape(x, [-1 if i == axis else 1 for i in range(len(xi))]), shape)
        for axis, x in zip(axes, xi, strict=True)
    ]


@composition
def diff(
    x: Array, n: int = 1, axis: int = -1, prepend: Array = None, append: Array = None
) -> Tensor:
    """The differences x[i + 1] - x[i] along `axis`, taken `n` times.

    First, `prepend` and `append` (arrays, or numbers for one element) are joined to the two ends of
    x. For `n` = 0 the result is x itself, as in numpy. For booleans, it says where neighbours
    differ.

    Raises:
        ValueError: if `n` is not an integer of at least 0, the axis does not exist, or the shapes
            do not match.
    """
    check_count("n", n)
    axis = normalize_axis(axis, x.ndim)
    one = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    parts = [y for y in (prepend, x, append) if y is not None]
    if n and len(parts) > 1:
        zeros = np.zeros(one, x.dtype)
        x = concatenate([y if y.ndim else zeros + y for y in parts], axis)
    before = [slice(None)] * axis
    for _ in range(min(n, x.shape[axis])):  # afterwards, nothing is left
        later, earlier = getitem(x, (*before, slice(1, None))), getitem(x, (*before, slice(-1)))
        x = later != earlier if x.dtype == np.bool_ else later - earlier
    return x  # type: ignore[no-any-return]


@composition
def split(x: Array, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """Split x along `axis`: into a number of equal parts, or at the given indices.

    Raises:
        ValueError: if x cannot be divided into that number of equal parts, or the axis does not
            exist.
        TypeError: if the number of parts, or an index, is not an integer.
    """
    axis = normalize_axis(axis, x.ndim)
    if np.ndim(indices_or_sections) != 1:
        size, count = x.shape[axis], operator.index(indices_or_sections)  # type: ignore[arg-type]
        if count <= 0 or size % count:
            raise ValueError(f"{size} elements cannot be divided into {count} equal parts")
    return array_split(x, indices_or_sections, axis)


@composition
def array_split(x: Array, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """Split x along `axis`, as `split` does, but some first parts may have one more element.

    Raises:
        ValueError: if the number of parts is not a positive integer, or the axis does not exist.
        TypeError: if an index is not an integer.
    """
    axis = normalize_axis(axis, x.ndim)
    given: Any = indices_or_sections
    if np.ndim(given) == 1:
        bounds = [operator.index(i) for i in given]
    else:
        check_positive("the number of parts", given)
        size, more = divmod(x.shape[axis], operator.index(given))
        bounds = [size * i + min(i, more) for i in range(1, given)]
    edges = zip([None, *bounds], [*bounds, None], strict=True)
    return [getitem(x, (*[slice(None)] * axis, slice(start, stop))) for start, stop in edges]


@composition
def tile(x: Array, reps: int | Sequence[int]) -> Tensor:
    """Repeat x as a whole, `reps` times along each axis (along the last axes, if `reps` has fewer).

    Raises:
        ValueError: if a number is negative.
        TypeError: if a number is not an integer.
    """
    counts = tuple(operator.index(count) for count in np.atleast_1d(reps))
    if any(count < 0 for count in counts):
        raise ValueError(f"reps must not be negative, but are {reps!r}")
    ndim = max(x.ndim, len(counts))
    sizes = (1,) * (ndim - x.ndim) + x.shape
    pairs = list(zip((1,) * (ndim - len(counts)) + counts, sizes, strict=True))
    apart = reshape(x, [n for size in sizes for n in (1, size)])
    repeated = broadcast_to(apart, [n for pair in pairs for n in pair])
    return reshape(repeated, [count * size for count, size in pairs])


@composition
def repeat(x: Array, repeats: int | Sequence[int], axis: int | None = None) -> Tensor:
    """Repeat each element along `axis`; `repeats` is one number for all, or one per element.

    With `axis=None`, x is flattened first.

    Raises:
        ValueError: if the number of `repeats` does not match, a number is negative, or the axis
            does not exist.
        TypeError: if a number is not an integer.
    """
    if axis is None:
        x, axis = reshape(x, -1), 0
    axis = normalize_axis(axis, x.ndim)
    size = x.shape[axis]
    counts = np.asarray(repeats, None if np.size(repeats) else np.int64)
    if counts.dtype.kind not in "iu":
        raise TypeError(f"takes integers, not {repeats!r:.60}")
    if counts.shape not in ((), (1,), (size,)) or (counts < 0).any():
        wanted = f"a number of repeats of at least 0, or one for each of {size} elements"
        raise ValueError(f"takes {wanted}, not {repeats!r:.60}")
    if counts.size == 1:  # broadcasting is faster: the VJP of an index adds element by element
        count = int(counts.reshape(()))
        before, after = x.shape[: axis + 1], x.shape[axis + 1 :]
        apart = broadcast_to(reshape(x, (*before, 1, *after)), (*before, count, *after))
        return reshape(apart, (*before[:-1], size * count, *after))
    given = repeats if isinstance(repeats, (list, tuple)) else counts
    indices = observed(np.repeat, observed(np.arange, size), given)
    return getitem(x, (*[slice(None)] * axis, indices))


@composition
def pad(x: Array, pad_width: Any, mode: str = "constant", constant_values: float = 0.0) -> Tensor:
    """Add elements at both ends of the axes of x, as `numpy.pad` does.

    Args:
        x: the array to pad.
        pad_width: the numbers of elements to add before and after each axis, as in
            `((2, 1), (0, 3))`; or `(before, after)`, or one number, for all axes.
        mode: "constant"; or "edge", "reflect", "symmetric" or "wrap", which repeat elements of x.
            The gradients of repeated elements are added up.
        constant_values: the number to fill in, for "constant"; it is converted to the dtype of x.

    Raises:
        ValueError: if the mode is unknown, a width is negative, the widths do not match x, an axis
            has no element to repeat, or `constant_values` is given with another mode or does not
            fit into the integers of x.
        TypeError: if a width is not an integer, or `constant_values` is not one number.
    """
    given = np.asarray(pad_width)
    if given.dtype.kind not in "iu":
        raise TypeError(f"widths are integers, not {pad_width!r:.60}")
    if given.shape not in ((), (1,), (2,), (1, 2), (x.ndim, 2), (x.ndim, 1)):
        raise ValueError(
            f"a width of {pad_width!r:.60} does not fit shape {x.shape}; give (before, after) "
            f"for each axis, from the first to the last, as in {[(0, 1)] * x.ndim}"
        )
    widths = np.broadcast_to(given, (x.ndim, 2)).tolist()
    if any(width < 0 for pair in widths for width in pair):
        raise ValueError(f"widths must not be negative, but are {pad_width!r}; use an index to cut")
    if not isinstance(constant_values, (int, float, np.number)):
        raise TypeError(f"constant_values is one number, not {constant_values!r:.60}")
    check_choice("mode", mode, ("constant", "edge", "reflect", "symmetric", "wrap"))
    if mode != "constant" and constant_values != 0:
        raise ValueError(f"constant_values is for mode 'constant', not for {mode!r}")
    if mode == "constant":
        shape = [b + size + a for (b, a), size in zip(widths, x.shape, strict=True)]
        inside = tuple(slice(b, b + size) for (b, _), size in zip(widths, x.shape, strict=True))
        padded = scatter_add(x, inside, shape)
        if constant_values == 0 and not np.signbit(constant_values):
            return padded
        limits = np.iinfo(x.dtype) if x.dtype.kind in "iu" else None
        if limits and not limits.min <= constant_values <= limits.max:
            raise ValueError(
                f"constant_values is a number that {x.dtype} can store, from {limits.min} to "
                f"{limits.max}, not {constant_values!r}; convert x first"
            )
        filling = observed(np.full, (), constant_values, x.dtype).item()
        of_x = observed(np.ones, x.shape, np.bool_)
        return where(observed(scatter_add.forward, of_x, inside, shape), padded, filling)
    padded_axes = [axis for axis, width in enumerate(widths) if any(width)]
    if any(x.shape[axis] == 0 for axis in padded_axes):
        raise ValueError(f"there is nothing to repeat in an array of shape {x.shape}")
    for axis in padded_axes:
        width = widths[axis]
        taken = observed(np.pad, observed(np.arange, x.shape[axis]), width, mode)
        x = getitem(x, (*[slice(None)] * axis, taken))
    return x  # type: ignore[no-any-return]


@composition
def tril(x: Array, k: int = 0) -> Tensor:
    """The lower triangle of each matrix in `(..., m, n)`, with 0 above the k-th diagonal.

    Raises:
        ValueError: if x has fewer than two axes.
        TypeError: if `k` is not an integer.
    """
    check_integer("k", k)
    return where(observed(np.tri, *check_matrices(x).shape[-2:], k, np.bool_), x, _ZERO)


@composition
def triu(x: Array, k: int = 0) -> Tensor:
    """The upper triangle of each matrix in `(..., m, n)`, with 0 below the k-th diagonal.

    Raises:
        ValueError, TypeError: as in `tril`.
    """
    check_integer("k", k)
    return where(observed(np.tri, *check_matrices(x).shape[-2:], k - 1, np.bool_), _ZERO, x)


_ZERO = False  # it is 0 in every dtype, and never changes the dtype of the other operand
