"""The exercises of "A convolution is a product"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import minigrad as mg
from examples.walkthroughs.checking import Checker, Exercise, WrongAnswerError, described, numbers


def one_by_one(x: Any, w: Any) -> Any:
    """Return a convolution with filters of 1 x 1."""
    return mg.conv2d(x, w)


def by_pixels(product: Callable[[Any, Any], Any]) -> Any:
    """Return a convolution of 1 x 1 from a product of pixels and a matrix (out, channels)."""
    return lambda x, w: np.moveaxis(product(np.moveaxis(x, 1, -1), w[:, :, 0, 0]), -1, 1)


EQUAL = "All numbers are equal. Such a filter hides the mistake, but find one with other numbers."
SEEN = "The check sees the mistake with this filter: turned by half a circle, it is another one."
MIRRORED = (
    "This filter is its own mirror image, left and right. It must be turned by half a circle."
)
UPSIDE_DOWN = (
    "This filter is the same upside down. But the flip turns around rows and columns, both."
)
TRANSPOSED = "This filter is equal to its transpose. The flip does not exchange rows and columns."
OPPOSITE = "The flip gives this filter the other sign, so the check sees the mistake."


def hides_the_flip(answer: Any) -> str:
    """Return "hidden" if a filter of numbers that are not all equal is its own flip.

    Raises:
        WrongAnswerError: if it is not a filter, or with what is wrong about it.
    """
    try:
        w = np.squeeze(numbers(answer))
    except (TypeError, ValueError):
        w = None
    if w is None or w.shape != (3, 3):
        raise WrongAnswerError(
            f"An array of 3 x 3 numbers is expected, and this is {described(answer)}."
        )
    if not np.isfinite(w).all():
        raise WrongAnswerError("The numbers of the filter must be finite.")
    if np.array_equal(w, np.full((3, 3), w[0, 0])):
        raise WrongAnswerError(EQUAL)
    if np.array_equal(w, w[::-1, ::-1]):
        return "hidden"
    if np.array_equal(w, -w[::-1, ::-1]):
        raise WrongAnswerError(OPPOSITE)
    same = {MIRRORED: w[:, ::-1], UPSIDE_DOWN: w[::-1], TRANSPOSED: w.T}
    raise WrongAnswerError(next((s for s, v in same.items() if np.array_equal(w, v)), SEEN))


def convolution(
    flip: bool = True, both: bool = False, padding: Callable[[int], int] = lambda n: n - 1
) -> Any:
    """Return a function like `np.convolve`, with some of its parts changed."""

    def convolve(a: Any, b: Any) -> Any:
        a = a[::-1] if both else a
        b = b[::-1] if flip else b
        p = padding(len(b))
        return np.correlate(np.pad(a, p), b, "valid")

    return convolve


def spread(g: Any, extra: int = 0) -> Any:
    """Put zeros between the rows and columns of g, and some below and to the right."""
    rows, columns = g.shape[2:]
    zeros = np.zeros((1, 1, 2 * rows - 1 + extra, 2 * columns - 1 + extra))
    zeros[..., ::2, ::2] = g
    return zeros


def by_image(
    spreading: Callable[[Any], Any] = spread,
    turned: Callable[[Any], Any] = lambda w: w[..., ::-1, ::-1],
    padding: int = 2,
) -> Any:
    """Return a gradient by the image, with some of its parts changed."""
    return lambda g, w: mg.conv2d(spreading(g), np.ascontiguousarray(turned(w)), padding=padding)


def repeated(g: Any) -> Any:
    """Write each number of g twice, instead of a zero beside it."""
    return g.repeat(2, axis=2).repeat(2, axis=3)[..., :-1, :-1]


def combined(a: Any, b: Any) -> Any:
    """Return the filter of two convolutions."""
    return mg.conv2d(a, np.ascontiguousarray(b[..., ::-1, ::-1]), padding=2)


def of_random(*shapes: tuple[int, ...]) -> tuple[Any, ...]:
    """Return arrays of small whole numbers, that are easy to compare."""
    draw = np.random.default_rng(3)
    return tuple(draw.integers(-4, 5, shape).astype(float) for shape in shapes)


check = Checker(
    {
        1: Exercise(
            one_by_one,
            trials=[
                of_random((2, 3, 4, 5), (6, 3, 1, 1)),
                of_random((1, 2, 3, 3), (2, 2, 1, 1)),
            ],
            slips={
                "The channels are the last axis here. They belong behind the batch.": lambda x, w: (
                    np.moveaxis(x, 1, -1) @ w[:, :, 0, 0].T
                ),
                "`reshape` does not move the channels to the end: it leaves all numbers in their "
                "order.": lambda x, w: np.moveaxis(
                    x.reshape(len(x), *x.shape[2:], -1) @ w[:, :, 0, 0].T, -1, 1
                ),
                "The matrix of the filters has the right shape, but it is not transposed: "
                "`reshape` leaves the numbers in their order.": by_pixels(
                    lambda pixels, w: pixels @ w.reshape(w.shape[::-1])
                ),
                "Rows and columns of the image are exchanged in the result.": lambda x, w: (
                    np.swapaxes(mg.conv2d(x, w), 2, 3)
                ),
                "The products are added up over the channels, and this is their mean.": by_pixels(
                    lambda pixels, w: pixels @ w.T / w.shape[1]
                ),
                "Each channel has a weight of its own in each filter, and this adds the channels "
                "up before it multiplies.": by_pixels(
                    lambda pixels, w: pixels.sum(axis=-1, keepdims=True) * w.sum(axis=1)
                ),
                "The filters are in the wrong order.": lambda x, w: mg.conv2d(
                    x, np.ascontiguousarray(w[::-1])
                ),
            },
        ),
        2: Exercise(
            [[1, 2, 3], [4, 5, 4], [3, 2, 1]],
            observe=hides_the_flip,
            slips={
                EQUAL: np.ones((3, 3)),
                SEEN: [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
                MIRRORED: [[1, 2, 1], [3, 4, 3], [5, 6, 5]],
                UPSIDE_DOWN: [[1, 2, 3], [4, 5, 6], [1, 2, 3]],
                TRANSPOSED: [[1, 2, 3], [2, 4, 5], [3, 5, 6]],
                OPPOSITE: [[1, 2, 3], [4, 0, -4], [-3, -2, -1]],
            },
        ),
        3: Exercise(
            np.convolve,
            trials=[of_random((10,), (4,)), of_random((5,), (3,)), of_random((6,), (2,))],
            slips={
                "The filter is not turned around: this is the correlation.": convolution(
                    flip=False
                ),
                "The zeros beyond both ends are missing.": convolution(padding=lambda n: 0),
                "There are too few zeros: at the ends, the two must overlap in a single number.": (
                    convolution(padding=lambda n: n // 2)
                ),
                "There are too many zeros: at the ends, the two do not overlap at all.": (
                    convolution(padding=lambda n: n)
                ),
                "The other one is turned around: turn the filter, not `a`.": convolution(
                    flip=False, both=True
                ),
                "Both are turned around, so the result is turned around as well.": convolution(
                    both=True
                ),
                "The result of `mg.conv1d` has a batch and channels, and only the numbers are "
                "asked for.": lambda a, b: np.convolve(a, b)[None, None],
            },
        ),
        4: Exercise(
            by_image(),
            trials=[
                of_random((1, 1, 3, 3), (1, 1, 3, 3)),
                of_random((1, 1, 2, 4), (1, 1, 3, 3)),
            ],
            slips={
                "The filter is not flipped.": by_image(turned=lambda w: w),
                "The filter is flipped along one axis only.": by_image(
                    turned=lambda w: w[..., ::-1]
                ),
                "The filter is transposed, and not flipped.": by_image(
                    turned=lambda w: np.swapaxes(w, 2, 3)
                ),
                "There are no zeros between the numbers of g, so this is the gradient for a stride "
                "of 1.": by_image(spreading=lambda g: g),
                "What was left out has a gradient of 0, and not that of its neighbour.": by_image(
                    spreading=repeated
                ),
                "There is no zero after the last row and column of g: there is nothing left out.": (
                    by_image(spreading=lambda g: spread(g, 1))
                ),
                "The zeros around g are too few: a pixel in the corner is under one weight of the "
                "filter.": by_image(padding=1),
                "The zeros around g are missing.": by_image(padding=0),
            },
        ),
        5: Exercise(
            combined,
            trials=[of_random((1, 1, 3, 3), (1, 1, 3, 3))],
            slips={
                "One of the two has to be turned around before it moves over the other.": (
                    lambda a, b: mg.conv2d(a, b, padding=2)
                ),
                "The result is turned around by half a circle.": lambda a, b: combined(a, b)[
                    ..., ::-1, ::-1
                ],
                "The zeros around are missing, so that the two overlap in one place only.": (
                    lambda a, b: mg.conv2d(a, np.ascontiguousarray(b[..., ::-1, ::-1]))
                ),
                "There are too few zeros around: the filter has 5 x 5 numbers.": lambda a, b: (
                    mg.conv2d(a, np.ascontiguousarray(b[..., ::-1, ::-1]), padding=1)
                ),
                "The pieces do not lie beside each other, they overlap, and add up.": lambda a, b: (
                    np.kron(a, b)
                ),
                "The filters are not added, and not multiplied number by number: the second one "
                "reads what the first one has made.": lambda a, b: np.pad(
                    a * b, ((0, 0), (0, 0), (1, 1), (1, 1))
                ),
                "This is the filter of two convolutions side by side, whose results are added "
                "up.": lambda a, b: np.pad(a + b, ((0, 0), (0, 0), (1, 1), (1, 1))),
            },
        ),
    }
)
