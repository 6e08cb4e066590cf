"""Convolution of images and of sequences, with PyTorch's arguments."""

from __future__ import annotations

from minigrad.checks import for_each_axis
from minigrad.core.tensor import Array, Tensor
from minigrad.functional.composition import composition
from minigrad.functional.shape import pad
from minigrad.ops import convolution, reshape
from minigrad.ops.convolution import Sizes


@composition
def conv2d(
    x: Array, weight: Array, bias: Array = None, stride: Sizes = 1, padding: Sizes | str = 0,
    dilation: Sizes = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """The convolution of images with filters, as `convolution` defines it.

    Args:
        x: images `(N, C, H, W)`, or one image `(C, H, W)`.
        weight: filters `(O, C / groups, h, w)`.
        bias: a number for each filter `(O,)`, or None.
        stride: steps from an element of the result to the next, one number or two.
        padding: zeros around an image, one number or two; "valid" for none; or "same" for as many
            as give a result of the size of x, if the stride is 1. An odd number of zeros has one
            more at the end of the axis.
        dilation: steps between elements of the kernel, one number or two.
        groups: into how many groups channels and filters are cut, each with filters of its own.

    Returns:
        `(N, O, H', W')`, or `(O, H', W')` for one image.

    Raises:
        ValueError: if the shapes do not go together, groups do not divide the channels and the
            filters, an option is out of range, or the kernel is larger than the padded image.
    """
    _check_axes(x, weight, "images (N, C, H, W) or (C, H, W)", "h, w")
    if x.ndim == 3:
        out = conv2d(reshape(x, (1, *x.shape)), weight, bias, stride, padding, dilation, groups)
        return reshape(out, out.shape[1:])
    x, zeros = _padded(x, weight, stride, padding, dilation)
    return convolution(x, weight, bias, stride, zeros, dilation, groups)


@composition
def conv1d(
    x: Array, weight: Array, bias: Array = None, stride: Sizes = 1, padding: Sizes | str = 0,
    dilation: Sizes = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """The convolution of sequences `(N, C, L)`, or of one `(C, L)`: `(N, O, L')` or `(O, L')`.

    It is `conv2d` of images of one row, with a weight `(O, C / groups, l)`.

    Raises:
        ValueError: as `conv2d`.
    """
    _check_axes(x, weight, "sequences (N, C, L) or (C, L)", "l")
    x, zeros = _padded(x, weight, stride, padding, dilation)
    x, weight = (reshape(v, (*v.shape[:-1], 1, v.shape[-1])) for v in (x, weight))
    steps = (1, *for_each_axis("stride", stride, 1))
    between = (1, *for_each_axis("dilation", dilation, 1))
    out = conv2d(x, weight, bias, steps, (0, *zeros), between, groups)
    return reshape(out, (*out.shape[:-2], out.shape[-1]))


def _check_axes(x: Array, weight: Array, images: str, kernel: str) -> None:
    """Raise an error unless the last axes, of which the kernel has a size each, have others."""
    axes = len(kernel.split(", "))
    if x.ndim not in (axes + 1, axes + 2) or weight.ndim != axes + 2:
        raise ValueError(
            f"takes {images} and a weight (O, C / groups, {kernel}); the shapes are {x.shape} and "
            f"{weight.shape}"
        )


def _padded(
    x: Array, weight: Array, stride: Sizes, padding: Sizes | str, dilation: Sizes
) -> tuple[Array, tuple[int, ...]]:
    """Return x, with a zero more at the end of an axis if their number is odd, and the padding."""
    axes = weight.ndim - 2
    if not isinstance(padding, str):
        return x, for_each_axis("padding", padding, axes, least=0)
    check_padding(padding, for_each_axis("stride", stride, axes))
    if padding == "valid":
        return x, (0,) * axes
    between = for_each_axis("dilation", dilation, axes)
    zeros = [d * (size - 1) for d, size in zip(between, weight.shape[2:], strict=True)]
    if any(number % 2 for number in zeros):
        x = pad(x, [(0, 0)] * (x.ndim - axes) + [(0, number % 2) for number in zeros])
    return x, tuple(number // 2 for number in zeros)


def check_padding(padding: str, stride: tuple[int, ...]) -> None:
    """Raise an error if there is no padding of this name, or it does not go with a stride."""
    if padding not in ("same", "valid"):
        raise ValueError(
            f"padding must be integers of at least 0, 'same' or 'valid', not {padding!r:.60}"
        )
    if padding == "same" and set(stride) != {1}:
        raise ValueError(
            f"padding='same' is offered for a stride of 1, not of {', '.join(map(str, stride))}"
        )
