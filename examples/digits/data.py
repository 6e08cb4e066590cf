"""Handwritten digits in three kinds: upright, inverted and rotated.

The images are the 1,797 of 8 x 8 pixels in scikit-learn (Alpaydin and Kaynak, 1998).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from minigrad.data import train_test_split

Images = NDArray[np.float32]  # (n, 8, 8), from -1, which is white, to 1
Labels = NDArray[np.int64]

UPRIGHT, INVERTED, ROTATED = "upright", "inverted", "rotated"
KINDS: dict[str, Callable[[Images], Images]] = {
    UPRIGHT: lambda images: images,
    INVERTED: lambda images: -images,
    ROTATED: lambda images: np.rot90(images, axes=(1, 2)),
}


class Rows(NamedTuple):
    """The inputs of a network, and the correct outputs."""

    x: NDArray[np.float32]  # (n, 64)
    y: Labels


class Digits(NamedTuple):
    """One split: two thirds of the images for training, the rest for tests, in each kind."""

    train: dict[str, Rows]
    test: dict[str, Rows]


def split(rng: np.random.Generator) -> Digits:
    """Split the images at random, and make the three kinds of both parts.

    Each image is in one part only, in all of its kinds.
    """
    digits = load_digits()
    images = (digits.images / 8 - 1).astype(np.float32)
    parts = train_test_split(images, digits.target, test_size=1 / 3, rng=rng)
    x_train, x_test, y_train, y_test = parts
    return Digits(of_each_kind(x_train, y_train), of_each_kind(x_test, y_test))


def of_each_kind(images: Images, labels: Labels) -> dict[str, Rows]:
    """Return the images in each kind, each image as a row of pixels."""
    size = len(images)
    return {
        kind: Rows(np.ascontiguousarray(turn(images)).reshape(size, -1), labels)
        for kind, turn in KINDS.items()
    }
