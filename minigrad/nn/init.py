"""How weights begin: each function fills a tensor in place, and returns it.

`fan_in` and `fan_out` of a weight `(d_out, d_in)` are d_in and d_out. A layer keeps the variance of
its input if the variance of its weights is gain^2 / fan_in (Kaiming; He et al., 2015), and of the
gradient too, as well as one number can, with 2 gain^2 / (fan_in + fan_out) (Xavier; Glorot and
Bengio, 2010).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from minigrad.random import generator
from minigrad.tensor import Tensor

Nonlinearity = Literal["linear", "sigmoid", "tanh", "relu", "leaky_relu"]


def gain(nonlinearity: Nonlinearity, a: float = 0.0) -> float:
    """The factor that makes up for what an activation takes from the variance.

    Args:
        nonlinearity: "linear", "sigmoid" (1), "tanh" (5/3), "relu" (sqrt 2) or "leaky_relu".
        a: the negative slope of leaky_relu, sqrt(2 / (1 + a^2)).

    Raises:
        ValueError: for any other name.
    """
    gains = {
        "linear": 1.0,
        "sigmoid": 1.0,
        "tanh": 5.0 / 3.0,
        "relu": math.sqrt(2.0),
        "leaky_relu": math.sqrt(2.0 / (1 + a * a)),
    }
    if nonlinearity not in gains:
        raise ValueError(f"nonlinearity is one of {', '.join(gains)}, not {nonlinearity!r}")
    return gains[nonlinearity]


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    nonlinearity: Nonlinearity = "leaky_relu",
    *,
    rng: np.random.Generator | None = None,
) -> Tensor:
    """Uniform in +-gain sqrt(3 / fan_in)."""
    fan_in, _ = _fans(tensor)
    return uniform_(tensor, gain(nonlinearity, a) * math.sqrt(3.0 / fan_in), rng=rng)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0.0,
    nonlinearity: Nonlinearity = "leaky_relu",
    *,
    rng: np.random.Generator | None = None,
) -> Tensor:
    """Normal with standard deviation gain / sqrt(fan_in)."""
    fan_in, _ = _fans(tensor)
    return normal_(tensor, gain(nonlinearity, a) / math.sqrt(fan_in), rng=rng)


def xavier_uniform_(
    tensor: Tensor, gain: float = 1.0, *, rng: np.random.Generator | None = None
) -> Tensor:
    """Uniform in +-gain sqrt(6 / (fan_in + fan_out))."""
    return uniform_(tensor, gain * math.sqrt(6.0 / sum(_fans(tensor))), rng=rng)


def xavier_normal_(
    tensor: Tensor, gain: float = 1.0, *, rng: np.random.Generator | None = None
) -> Tensor:
    """Normal with standard deviation gain sqrt(2 / (fan_in + fan_out))."""
    return normal_(tensor, gain * math.sqrt(2.0 / sum(_fans(tensor))), rng=rng)


def uniform_(tensor: Tensor, bound: float, *, rng: np.random.Generator | None = None) -> Tensor:
    """Uniform in [-bound, bound)."""
    return tensor.copy_(generator(rng).uniform(-bound, bound, tensor.shape))


def normal_(tensor: Tensor, std: float = 1.0, *, rng: np.random.Generator | None = None) -> Tensor:
    """Normal with mean 0 and the given standard deviation."""
    return tensor.copy_(generator(rng).normal(0.0, std, tensor.shape))


def zeros_(tensor: Tensor) -> Tensor:
    """All zeros."""
    return tensor.copy_(np.zeros(tensor.shape))


def ones_(tensor: Tensor) -> Tensor:
    """All ones."""
    return tensor.copy_(np.ones(tensor.shape))


def _fans(tensor: Tensor) -> tuple[int, int]:
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise ValueError(
            f"fan in and fan out are those of a weight (d_out, d_in), not of {tensor.describe()}"
        )
    return tensor.shape[1], tensor.shape[0]
