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
    if x.ndim == 3:
        out = conv2d(reshape(x, (1, *x.shape)), weight, bias, stride, padding, dilation, groups)
        return reshape(out, out.shape[1:])
    if isinstance(padding, str):
        x, padding = _padded(x, weight, stride, padding, dilation)
    return convolution(x, weight, bias, stride, padding, dilation, groups)


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
    if x.ndim not in (2, 3) or weight.ndim != 3:
        raise ValueError(
            f"takes sequences (N, C, L) or (C, L) and a weight (O, C / groups, l), not shapes "
            f"{x.shape} and {weight.shape}"
        )
    x, weight = (reshape(v, (*v.shape[:-1], 1, v.shape[-1])) for v in (x, weight))
    if not isinstance(padding, str):
        padding = (0, *for_each_axis("padding", padding, 1, least=0))
    steps = (1, *for_each_axis("stride", stride, 1))
    between = (1, *for_each_axis("dilation", dilation, 1))
    out = conv2d(x, weight, bias, steps, padding, between, groups)
    return reshape(out, (*out.shape[:-2], out.shape[-1]))


def _padded(
    x: Array, weight: Array, stride: Sizes, padding: str, dilation: Sizes
) -> tuple[Array, tuple[int, int]]:
    """Return the padding that has this name, and x with the zeros that are still missing."""
    if padding == "valid":
        return x, (0, 0)
    if padding != "same":
        raise ValueError(
            f"padding is a number, two numbers, 'same' or 'valid', not {padding!r:.60}"
        )
    if for_each_axis("stride", stride, 2) != (1, 1):
        raise ValueError(f"padding='same' is offered for a stride of 1, not of {stride!r:.60}")
    between = for_each_axis("dilation", dilation, 2)
    zeros = [d * (size - 1) for d, size in zip(between, weight.shape[2:], strict=True)]
    if any(number % 2 for number in zeros):
        x = pad(x, [(0, 0), (0, 0), *((0, number % 2) for number in zeros)])
    return x, (zeros[0] // 2, zeros[1] // 2)
