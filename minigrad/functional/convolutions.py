"""Convolution of images and of sequences, with PyTorch's arguments."""

from __future__ import annotations

from minigrad.checks import for_each_axis
from minigrad.core.tensor import Array, Tensor
from minigrad.functional.compositions import composition
from minigrad.functional.shape import pad
from minigrad.ops import convolution, reshape
from minigrad.ops.convolutions import Sizes


@composition
def conv2d(
    x: Array, weight: Array, bias: Array = None, stride: Sizes = 1, padding: Sizes | str = 0,
    dilation: Sizes = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """The convolution of images with filters; `convolution` gives the formula.

    Args:
        x: images `(N, C, H, W)`, or one image `(C, H, W)`.
        weight: filters `(O, C / groups, h, w)`.
        bias: a number for each filter, `(O,)`, or None.
        stride: how far the filter moves between two elements of the result, one number or two.
        padding: the number of zeros around an image, one number or two; "valid" for none; "same"
            for a result as large as x, if the stride is 1. If their number is odd, the end of the
            axis gets one more.
        dilation: the distance between elements of the kernel, one number or two.
        groups: the number of groups into which channels and filters are split; each group of
            filters sees only its group of channels.

    Returns:
        `(N, O, H', W')`, or `(O, H', W')` for one image.

    Raises:
        ValueError: if the shapes do not match, `groups` does not divide the numbers of channels and
            of filters, an option is out of range or not an integer, the kernel is larger than the
            padded image, or the padding is "same" with a stride other than 1.
    """
    _check_axes(x, weight, "images (N, C, H, W) or (C, H, W)", "h, w")
    if x.ndim == 3:
        out = conv2d(reshape(x, (1, *x.shape)), weight, bias, stride, padding, dilation, groups)
        return reshape(out, out.shape[1:])
    if not isinstance(padding, str):
        return convolution(x, weight, bias, stride, padding, dilation, groups)
    check_padding(padding, for_each_axis("stride", stride, 2))
    if padding == "valid":
        return convolution(x, weight, bias, stride, 0, dilation, groups)
    between = for_each_axis("dilation", dilation, 2)
    zeros = [d * (size - 1) for d, size in zip(between, weight.shape[2:], strict=True)]
    if any(number % 2 for number in zeros):
        x = pad(x, [(0, 0), (0, 0), *((0, number % 2) for number in zeros)])
    halves = [number // 2 for number in zeros]
    return convolution(x, weight, bias, stride, halves, dilation, groups)


@composition
def conv1d(
    x: Array, weight: Array, bias: Array = None, stride: Sizes = 1, padding: Sizes | str = 0,
    dilation: Sizes = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """The convolution of sequences: `(N, C, L)` or `(C, L)` -> `(N, O, L')` or `(O, L')`.

    It is `conv2d` of images with one row. The weight is `(O, C / groups, l)`.

    Raises:
        ValueError: as in `conv2d`.
    """
    _check_axes(x, weight, "sequences (N, C, L) or (C, L)", "l")
    x, weight = (reshape(v, (*v.shape[:-1], 1, v.shape[-1])) for v in (x, weight))
    steps = (1, *for_each_axis("stride", stride, 1))
    between = (1, *for_each_axis("dilation", dilation, 1))
    if isinstance(padding, str):
        check_padding(padding, steps[1:])
    else:
        padding = (0, *for_each_axis("padding", padding, 1, least=0))
    out = conv2d(x, weight, bias, steps, padding, between, groups)
    return reshape(out, (*out.shape[:-2], out.shape[-1]))


def _check_axes(x: Array, weight: Array, images: str, kernel: str) -> None:
    """Raise an error unless x and the weight have the right numbers of axes."""
    axes = len(kernel.split(", "))
    if x.ndim not in (axes + 1, axes + 2) or weight.ndim != axes + 2:
        wanted = f"{images} and a weight (O, C / groups, {kernel})"
        raise ValueError(f"takes {wanted}; the shapes are {x.shape} and {weight.shape}")


def check_padding(padding: str, stride: tuple[int, ...]) -> None:
    """Raise an error if the padding is unknown, or is "same" and a stride is not 1."""
    if padding not in ("same", "valid"):
        raise ValueError(
            f"padding must be integers of at least 0, 'same' or 'valid', not {padding!r:.60}"
        )
    if padding == "same" and set(stride) != {1}:
        raise ValueError(f"padding='same' is offered for a stride of 1, not of {stride}")
