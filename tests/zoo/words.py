"""What the ports are written with, beside the words that all libraries share.

`m` is minigrad, torch, JAX's numpy or HIPS autograd's; arrays are theirs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np


def like(m: Any, array: Any) -> Any:
    """A constant array as one of `m`: PyTorch wants its own."""
    return m.tensor(array) if m.__name__ == "torch" else array


def constant(x: Any) -> Any:
    """The value without its place in the graph."""
    if hasattr(x, "detach"):
        return x.detach()
    if type(x).__module__.startswith("jax"):
        return import_module("jax").lax.stop_gradient(x)
    while hasattr(x, "_value"):  # of HIPS autograd, which puts one box into another
        x = x._value
    return x


def reverse(m: Any, x: Any) -> Any:
    """x backwards, where there are views a view."""
    return m.flipud(x) if hasattr(m, "flipud") else m.flip(x, 0)


def in_memory(x: Any) -> Any:
    """What a loop over raw memory finds that takes a view in reverse for one that is not."""
    strides = np.asarray(constant(x)).strides
    return x[::-1] if strides and strides[0] < 0 else x


def doubled(g: Any) -> Any:
    """2 g, written into g itself where it is an array."""
    if isinstance(g, np.ndarray):
        g *= 2
        return g
    if hasattr(g, "mul_") and not g.requires_grad:
        return g.mul_(2)
    return 2 * g


_LAST: dict[type, Any] = {}


def with_the_last(g: Any) -> Any:
    """g, and added to it the g of the call before."""
    value = constant(g)
    last = _LAST.get(type(value))
    _LAST[type(value)] = value
    return g if last is None or last.shape != value.shape else g + last


def mean(m: Any, x: Any) -> Any:
    """The mean of each row."""
    return m.mean(x, axis=1, keepdims=True)


def deviation(m: Any, x: Any) -> Any:
    """The standard deviation of each row."""
    return m.sqrt(mean(m, (x - mean(m, x)) ** 2))


def standard(m: Any, x: Any) -> Any:
    """Each row with mean 0 and deviation 1."""
    return (x - mean(m, x)) / deviation(m, x)


def softmax(m: Any, x: Any) -> Any:
    """Of each row."""
    return m.exp(x) / m.sum(m.exp(x), axis=1, keepdims=True)


def share(m: Any, x: Any, y: Any) -> Any:
    """What x gets of the gradient of max(x, y): all, none, or at a tie a half."""
    return m.where(x > y, 0 * x + 1, m.where(x == y, 0 * x + 0.5, 0 * x))
