"""Pooling: the largest element, or the mean, of each window of an image or a sequence.

A window is a rectangle, so the same functions find its rows and its columns separately. A sequence
is pooled as an image with one row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad import kernels
from minigrad.checks import check_flag, for_each_axis
from minigrad.core.op import op
from minigrad.core.tensor import Array, Tensor
from minigrad.functional.compositions import composition
from minigrad.ops import getitem, reshape
from minigrad.ops.convolutions import Sizes

OutputSizes = int | Sequence[int | None] | None


class Windows:
    """The windows along an axis: `bounds` has start, end, and step or divisor of each window.

    They are made from the columns of `bounds`; a column may be one number for all windows.
    """

    def __init__(self, *columns: Any) -> None:
        self.bounds = np.stack(np.broadcast_arrays(*columns), 1).astype(np.int64)

    def __len__(self) -> int:
        return len(self.bounds)


def _count(rows: Windows, columns: Windows) -> int:
    """Return the number of elements in all windows of one image."""
    per_axis = [-((b[:, 0] - b[:, 1]) // b[:, 2]).sum() for b in (rows.bounds, columns.bounds)]
    return int(per_axis[0] * per_axis[1])


# --------------------------------------------------------------------------------------------------
# The largest elements
# --------------------------------------------------------------------------------------------------


@op(
    cost=lambda x, rows, columns: math.prod(x.shape[:-2]) * _count(rows, columns),
    shape=lambda x, rows, columns: (*x.shape[:-2], len(rows), len(columns)),
)
def window_argmaxes(x: Array, rows: Windows, columns: Windows) -> Array:
    """The index in the flattened x of the largest element of each window of `(..., H, W)`.

    The first of equal elements counts. The windows have steps.
    """
    return kernels.pooling.largest(x, rows.bounds, columns.bounds)


@composition
def max_pool2d(
    x: Array,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest element of each window of H x W: `(N, C, H, W) -> (N, C, H', W')`.

        H' = floor((H + 2 padding - dilation (kernel_size - 1) - 1) / stride) + 1

    W' is computed in the same way. The gradient goes to the first of equal elements. A nan counts
    as the largest. Indices are not returned.

    Args:
        x: `(N, C, H, W)` or `(C, H, W)`.
        kernel_size: the size of a window: one number, or a pair for H and W, as for all options.
        stride: the distance from one window to the next; None for `kernel_size`.
        padding: the number of elements added at each end of H and W; they are never chosen.
        dilation: the distance from one element of a window to the next.
        ceil_mode: whether H' and W' are rounded up, without a last window that would begin after
            the end of the image.

    Raises:
        ValueError: if x does not have 3 or 4 axes, an axis other than N is empty, an option is out
            of range, a window is larger than the padded image or contains no element of the image,
            or the padding is more than half a window.
        TypeError: if `ceil_mode` is not True or False.
    """
    options = max_options(2, kernel_size, stride, padding, dilation, ceil_mode)
    rows, columns = map(_max_windows, _sizes(x, 2), *options, [ceil_mode] * 2)
    return getitem(reshape(x, -1), window_argmaxes(x, rows, columns))


@composition
def max_pool1d(
    x: Array,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest element of each window of L: `(N, C, L) -> (N, C, L')`, as in `max_pool2d`.

    A single sequence `(C, L)` gives `(C, L')`. Each option is one number.

    Raises:
        ValueError, TypeError: as in `max_pool2d`.
    """
    options = max_options(1, kernel_size, stride, padding, dilation, ceil_mode)
    return _as_images(max_pool2d, x, *options, ceil_mode)


@lru_cache(maxsize=1024)
def _max_windows(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> Windows:
    """Return the windows along an axis of size `size`, with steps, without the padding."""
    reach = dilation * (kernel - 1) + 1
    starts = _starts(size, reach, stride, padding, ceil_mode)
    ends = np.minimum(starts + reach, size)
    starts = np.where(starts < 0, starts % dilation, starts)
    if (starts >= ends).any():
        options = f"padding = {padding} and dilation = {dilation}"
        raise ValueError(f"a window has no element, with {options} on an axis of size {size}")
    return Windows(starts, ends, dilation)


# --------------------------------------------------------------------------------------------------
# Means, which are linear
# --------------------------------------------------------------------------------------------------


def _flops(shape: tuple[int, ...], rows: Windows, columns: Windows) -> int:
    """The FLOPs of the sums over all windows and of the divisions."""
    starts, ends, _ = zip(rows.bounds.sum(0).tolist(), columns.bounds.sum(0).tolist(), strict=True)
    elements = (ends[0] - starts[0]) * (ends[1] - starts[1])
    return math.prod(shape[:-2]) * int(elements + len(rows) * len(columns))


@op(
    linear=("x",),
    floats=True,
    cost=lambda x, rows, columns: _flops(x.shape, rows, columns),
    shape=lambda x, rows, columns: (*x.shape[:-2], len(rows), len(columns)),
)
def window_means(x: Array, rows: Windows, columns: Windows) -> Array:
    """The sums over windows of `(..., H, W)`, divided by the divisors of their rows and columns."""
    return kernels.pooling.means(x, rows.bounds, columns.bounds)


@op(
    linear=("means",),
    floats=True,
    cost=lambda rows, columns, shape: _flops(shape, rows, columns),
    shape=lambda shape: shape,
)
def spread_means(means: Array, rows: Windows, columns: Windows, shape: tuple[int, ...]) -> Array:
    """The transpose of `window_means`, for x of this shape."""
    return kernels.pooling.spread(means, rows.bounds, columns.bounds, shape)


# The VJPs are here, after both ops, because each op is the VJP of the other.
window_means.vjp("x", lambda g, rows, columns, x_shape: spread_means(g, rows, columns, x_shape))
spread_means.vjp("means", lambda g, rows, columns: window_means(g, rows, columns))


@composition
def avg_pool2d(
    x: Array,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window of H x W: `(N, C, H, W) -> (N, C, H', W')`.

    H', W', `kernel_size` and `stride` are as in `max_pool2d` with a dilation of 1.

    Args:
        x: `(N, C, H, W)` or `(C, H, W)`.
        kernel_size: the size of a window.
        stride: the distance from one window to the next.
        padding: the number of zeros added at each end of H and W.
        ceil_mode: as in `max_pool2d`. Positions beyond the padding never count as elements.
        count_include_pad: whether zeros of the padding count as elements.
        divisor_override: the divisor of each sum, instead of the number of elements.

    Raises:
        ValueError: as in `max_pool2d`, or if the divisor is 0 or not an integer.
        TypeError: if a flag is not True or False.
    """
    given = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    options = mean_options(2, *given)
    flags = [[flag] * 2 for flag in (ceil_mode, count_include_pad)]
    divisors = divisor_override, None if divisor_override is None else 1
    return window_means(x, *map(_mean_windows, _sizes(x, 2), *options, *flags, divisors))


@composition
def avg_pool1d(
    x: Array,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of L: `(N, C, L) -> (N, C, L')`, as in `avg_pool2d`.

    A single sequence `(C, L)` gives `(C, L')`. Each option is one number.

    Raises:
        ValueError, TypeError: as in `avg_pool2d`.
    """
    options = mean_options(1, kernel_size, stride, padding, ceil_mode, count_include_pad)
    return _as_images(avg_pool2d, x, *options, ceil_mode, count_include_pad)


@lru_cache(maxsize=1024)
def _mean_windows(
    size: int, kernel: int, stride: int, padding: int, ceil_mode: bool, with_padding: bool,
    divisor: int | None,
) -> Windows:  # fmt: skip
    """Return the windows along an axis of size `size`, with divisors, without the padding."""
    starts = _starts(size, kernel, stride, padding, ceil_mode)
    ends = np.minimum(starts + kernel, size + padding)
    inside = np.maximum(starts, 0), np.minimum(ends, size)
    counted = ends - starts if with_padding else inside[1] - inside[0]
    return Windows(*inside, counted if divisor is None else divisor)


@composition
def adaptive_avg_pool2d(x: Array, output_size: OutputSizes) -> Tensor:
    """The means of H' x W' windows of about the same size: `(N, C, H, W) -> (N, C, H', W')`.

    Along an axis of size s, window i of n begins at i s / n, rounded down, and ends before
    (i + 1) s / n, rounded up.

    Args:
        x: `(N, C, H, W)` or `(C, H, W)`.
        output_size: H' and W', or one number for both; None keeps the size of the axis.

    Raises:
        ValueError: if x does not have 3 or 4 axes, an axis other than N is empty, or a size is
            negative.
    """
    sizes = _sizes(x, 2)
    return window_means(x, *map(_adaptive_windows, sizes, counts(2, output_size, sizes)))


@composition
def adaptive_avg_pool1d(x: Array, output_size: OutputSizes) -> Tensor:
    """The means of L' windows: `(N, C, L) -> (N, C, L')`, as in `adaptive_avg_pool2d`.

    A single sequence `(C, L)` gives `(C, L')`.

    Raises:
        ValueError: as in `adaptive_avg_pool2d`.
    """
    return _as_images(adaptive_avg_pool2d, x, (1, *counts(1, output_size, x.shape[-1:])))


def counts(axes: int, output_size: OutputSizes, sizes: tuple[int, ...] = (1, 1)) -> tuple[int, ...]:
    """Return the number of windows along each axis; None becomes the size of the axis."""
    given = output_size if isinstance(output_size, Sequence) else [output_size] * axes
    if len(given) == axes:
        given = [size if n is None else n for n, size in zip(given, sizes, strict=False)]
    return for_each_axis("output_size", given, axes, least=0)


@lru_cache(maxsize=1024)
def _adaptive_windows(size: int, count: int) -> Windows:
    positions = np.arange(count)
    starts, ends = positions * size // max(count, 1), -(-(positions + 1) * size // max(count, 1))
    return Windows(starts, ends, ends - starts)


# --------------------------------------------------------------------------------------------------
# Sizes and windows
# --------------------------------------------------------------------------------------------------


def _sizes(x: Array, axes: int) -> tuple[int, ...]:
    """Check the shape of x, and return the sizes of its last `axes` axes, which are pooled."""
    names = "(N, C, L) or (C, L)" if axes == 1 else "(N, C, H, W) or (C, H, W)"
    shape: tuple[int, ...] = np.shape(x)
    if len(shape) not in (axes + 1, axes + 2) or 0 in shape[-axes - 1 :]:
        raise ValueError(f"x must have shape {names}, where only N may be 0, but has {shape}")
    return shape[-axes:]


def _as_images(pool2d: Callable[..., Tensor], x: Array, *options: Any) -> Tensor:
    """Apply a pooling function of images to sequences, as images with one row."""
    _sizes(x, 1)
    out = pool2d(reshape(x, (*x.shape[:-1], 1, x.shape[-1])), *options)
    return reshape(out, (*out.shape[:-2], out.shape[-1]))


def max_options(
    axes: int, kernel_size: Sizes, stride: Sizes | None, padding: Sizes, dilation: Sizes,
    ceil_mode: bool,
) -> list[tuple[int, ...]]:  # fmt: skip
    """Check options, and return kernel_size, stride, padding and dilation for H and W.

    A sequence has windows of height 1.
    """
    check_flag("ceil_mode", ceil_mode)
    sizes = for_each_axis("kernel_size", kernel_size, axes)
    strides = sizes if stride is None else for_each_axis("stride", stride, axes)
    paddings = for_each_axis("padding", padding, axes, least=0)
    dilations = for_each_axis("dilation", dilation, axes)
    for size, added, between in zip(sizes, paddings, dilations, strict=True):
        reach = between * (size - 1) + 1
        if added > reach // 2:
            raise ValueError(f"padding = {added} is more than half a window, which spans {reach}")
    options = [sizes, strides, paddings, dilations]
    return options if axes == 2 else [(u, *v) for u, v in zip((1, 1, 0, 1), options, strict=True)]


def mean_options(
    axes: int, kernel_size: Sizes, stride: Sizes | None, padding: Sizes, ceil_mode: bool,
    count_include_pad: bool, divisor_override: int | None = None,
) -> list[tuple[int, ...]]:  # fmt: skip
    """Check options, and return kernel_size, stride and padding as `max_options` does."""
    check_flag("count_include_pad", count_include_pad)
    is_integer = isinstance(divisor_override, (int, np.integer)) and divisor_override is not True
    if divisor_override is not None and (not is_integer or divisor_override == 0):
        wanted = "an integer other than 0, or None"
        raise ValueError(f"divisor_override must be {wanted}, not {divisor_override!r:.60}")
    return max_options(axes, kernel_size, stride, padding, 1, ceil_mode)[:3]


def _starts(size: int, reach: int, stride: int, padding: int, ceil_mode: bool) -> NDArray[np.int64]:
    """Return where windows of length `reach` begin along an axis of size `size`."""
    rest = size + 2 * padding - reach
    count = (rest + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    if count < 1:
        raise ValueError(
            f"a window spans {reach}, which is more than the size {size} of the axis"
            + (f" with padding {padding} at both ends" if padding else "")
        )
    return np.arange(count) * stride - padding
