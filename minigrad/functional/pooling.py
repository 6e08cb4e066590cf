"""Pooling: the largest element, or the mean, of each window of an image or a sequence.

A window is a rectangle, so its rows and its columns are found apart, by the same functions. For a
sequence, the axis of rows is one of size 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad import kernels
from minigrad.checks import for_each_axis
from minigrad.core.grad_mode import observed
from minigrad.core.op import op
from minigrad.core.tensor import Array, Tensor, as_array
from minigrad.functional.composition import composition
from minigrad.ops import getitem, reshape

Sizes = int | Sequence[int]


@dataclass(frozen=True, eq=False, slots=True)
class Windows:
    """The windows of an axis; `bounds` has for each its start, its end, and its step or divisor."""

    bounds: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.bounds)

    @classmethod
    def of(cls, *columns: Any) -> Windows:
        """Make windows of the columns of their bounds, of which some may be one number for all."""
        return cls(np.stack(np.broadcast_arrays(*columns), 1).astype(np.int64))


_WHOLE = Windows.of(0, [1], 1)
"""The only window of an axis of size 1."""

# --------------------------------------------------------------------------------------------------
# The largest elements
# --------------------------------------------------------------------------------------------------


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

    The gradient goes to the first of equal elements. A nan is the largest.

    Args:
        x: `(N, C, H, W)` or `(C, H, W)`.
        kernel_size: the size of a window: a number, or one each for H and W, as for all options.
        stride: the distance from one window to the next; None for `kernel_size`.
        padding: how far the first window begins before the image; what is outside never counts.
        dilation: the distance from one element of a window to the next.
        ceil_mode: whether there is a last window that reaches beyond the padding, if it begins
            before it.

    Raises:
        ValueError: if x has another number of axes or an empty one beside the first of four, a
            window is larger than the padded image, or the padding is more than half a window.
    """
    return _max_pool(x, 2, kernel_size, stride, padding, dilation, ceil_mode)


@composition
def max_pool1d(
    x: Array,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest element of each window of L: `(N, C, L) -> (N, C, L')`, as `max_pool2d`."""
    return _max_pool(x, 1, kernel_size, stride, padding, dilation, ceil_mode)


def _max_pool(
    x: Array, axes: int, kernel_size: Sizes, stride: Sizes | None, padding: Sizes, dilation: Sizes,
    ceil_mode: bool,
) -> Tensor:  # fmt: skip
    sizes = _sizes(x, axes)
    options = _options(axes, kernel_size, stride, padding)
    dilations = for_each_axis("dilation", dilation, axes)
    windows = [*map(_max_windows, sizes, *options, dilations, [bool(ceil_mode)] * axes)]
    rows, columns = windows if axes == 2 else (_WHOLE, *windows)
    shape = x.shape[:-axes]
    if axes == 1:
        x = reshape(x, (*shape, 1, *sizes))
    places = observed(kernels.pooling.largest, as_array(x), rows.bounds, columns.bounds)
    out = getitem(reshape(x, -1), places)
    return out if axes == 2 else reshape(out, (*shape, len(columns)))


@lru_cache(maxsize=1024)
def _max_windows(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> Windows:
    """Return the windows of an axis of this size, with their steps, without the padding."""
    reach = dilation * (kernel - 1) + 1
    starts = _starts(size, reach, stride, padding, ceil_mode)
    ends = np.minimum(starts + reach, size)
    starts = np.where(starts < 0, starts % dilation, starts)
    if (starts >= ends).any():
        raise ValueError(
            f"a window has no element, with padding = {padding} and dilation = {dilation} on an "
            f"axis of size {size}"
        )
    return Windows.of(starts, ends, dilation)


# --------------------------------------------------------------------------------------------------
# Means, which are linear
# --------------------------------------------------------------------------------------------------


def _flops(shape: tuple[int, ...], rows: Windows, columns: Windows) -> int:
    """The FLOPs of a sum of all windows, and of their divisions, in all planes."""
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
    """The sums of windows of `(..., H, W)`, divided by the divisors of their rows and columns."""
    return kernels.pooling.means(x, rows.bounds, columns.bounds)


@window_means.vjp("x")
def _window_means_x(g: Array, rows: Windows, columns: Windows, x_shape: tuple[int, ...]) -> Array:
    return spread_means(g, rows, columns, x_shape)


@op(
    linear=("means",),
    floats=True,
    cost=lambda rows, columns, shape: _flops(shape, rows, columns),
    shape=lambda shape: shape,
)
def spread_means(means: Array, rows: Windows, columns: Windows, shape: tuple[int, ...]) -> Array:
    """The transpose of `window_means`, for x of this shape."""
    return kernels.pooling.spread(means, rows.bounds, columns.bounds, shape)


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

    Args:
        x: `(N, C, H, W)` or `(C, H, W)`.
        kernel_size: the size of a window: a number, or one each for H and W, as for all options.
        stride: the distance from one window to the next; None for `kernel_size`.
        padding: how many zeros there are around the image.
        ceil_mode: whether there is a last window that reaches beyond the padding, if it begins
            before it. What is beyond never counts.
        count_include_pad: whether zeros of the padding count as elements.
        divisor_override: what a sum is divided by instead of the number of elements.

    Raises:
        ValueError: as `max_pool2d`, or if the divisor is 0.
    """
    if divisor_override == 0:
        raise ValueError("divisor_override is another number than 0")
    return _avg_pool(
        x, 2, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


@composition
def avg_pool1d(
    x: Array,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of L: `(N, C, L) -> (N, C, L')`, as `avg_pool2d`."""
    return _avg_pool(x, 1, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def _avg_pool(
    x: Array, axes: int, kernel_size: Sizes, stride: Sizes | None, padding: Sizes,
    ceil_mode: bool, count_include_pad: bool, divisor: int | None,
) -> Tensor:  # fmt: skip
    options = _options(axes, kernel_size, stride, padding)
    divisors = [divisor, None if divisor is None else 1][:axes]
    flags = [[bool(flag)] * axes for flag in (ceil_mode, count_include_pad)]
    return _means(x, [*map(_mean_windows, _sizes(x, axes), *options, *flags, divisors)])


@lru_cache(maxsize=1024)
def _mean_windows(
    size: int, kernel: int, stride: int, padding: int, ceil_mode: bool, with_padding: bool,
    divisor: int | None,
) -> Windows:  # fmt: skip
    """Return the windows of an axis of this size, with their divisors, without the padding."""
    starts = _starts(size, kernel, stride, padding, ceil_mode)
    ends = np.minimum(starts + kernel, size + padding)
    inside = np.maximum(starts, 0), np.minimum(ends, size)
    counted = ends - starts if with_padding else inside[1] - inside[0]
    return Windows.of(*inside, counted if divisor is None else divisor)


@composition
def adaptive_avg_pool2d(x: Array, output_size: int | Sequence[int | None] | None) -> Tensor:
    """The means of H' x W' windows of about the same size: `(N, C, H, W) -> (N, C, H', W')`.

    Window i of n along an axis of size s is from i s / n, rounded down, to (i + 1) s / n, rounded
    up.

    Args:
        x: `(N, C, H, W)` or `(C, H, W)`.
        output_size: H' and W', or a number for both; None leaves a size as it is.

    Raises:
        ValueError: if x has another number of axes, or an empty one beside the first of four.
    """
    return _adaptive_avg_pool(x, 2, output_size)


@composition
def adaptive_avg_pool1d(x: Array, output_size: int | Sequence[int | None] | None) -> Tensor:
    """The means of L' windows: `(N, C, L) -> (N, C, L')`, as `adaptive_avg_pool2d`."""
    return _adaptive_avg_pool(x, 1, output_size)


def _adaptive_avg_pool(
    x: Array, axes: int, output_size: int | Sequence[int | None] | None
) -> Tensor:
    sizes = _sizes(x, axes)
    given = output_size if isinstance(output_size, Sequence) else [output_size] * axes
    if len(given) == axes:
        given = [size if n is None else n for n, size in zip(given, sizes, strict=True)]
    counts = for_each_axis("output_size", given, axes, least=0)
    return _means(x, [*map(_adaptive_windows, sizes, counts)])


@lru_cache(maxsize=1024)
def _adaptive_windows(size: int, count: int) -> Windows:
    places = np.arange(count)
    starts, ends = places * size // max(count, 1), -(-(places + 1) * size // max(count, 1))
    return Windows.of(starts, ends, ends - starts)


def _means(x: Array, windows: Sequence[Windows]) -> Tensor:
    """Return the means of windows of the last axes, of which there are one or two."""
    if len(windows) == 2:
        return window_means(x, *windows)
    shape = x.shape[:-1]
    planes = reshape(x, (*shape, 1, x.shape[-1]))
    return reshape(window_means(planes, _WHOLE, *windows), (*shape, len(windows[0])))


# --------------------------------------------------------------------------------------------------
# Sizes and windows
# --------------------------------------------------------------------------------------------------


def _sizes(x: Array, axes: int) -> tuple[int, ...]:
    """Return the sizes of the axes that windows are taken of, after checking the shape."""
    names = "(N, C, L) or (C, L)" if axes == 1 else "(N, C, H, W) or (C, H, W)"
    shape: tuple[int, ...] = np.shape(x)
    if len(shape) not in (axes + 1, axes + 2) or 0 in shape[-axes - 1 :]:
        raise ValueError(f"x has shape {names}, where only N may be 0, not {shape}")
    return shape[-axes:]


def _options(
    axes: int, kernel_size: Sizes, stride: Sizes | None, padding: Sizes
) -> list[tuple[int, ...]]:
    """Return kernel_size, stride and padding for each axis."""
    kernels = for_each_axis("kernel_size", kernel_size, axes)
    strides = kernels if stride is None else for_each_axis("stride", stride, axes)
    return [kernels, strides, for_each_axis("padding", padding, axes, least=0)]


def _starts(size: int, reach: int, stride: int, padding: int, ceil_mode: bool) -> NDArray[np.int64]:
    """Return where windows that reach so far begin on an axis of this size."""
    if padding > reach // 2:
        raise ValueError(f"padding = {padding} is more than half a window, which spans {reach}")
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
