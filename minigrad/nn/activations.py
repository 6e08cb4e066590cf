"""Activation functions as modules, for `Sequential`; they have no parameters."""

from __future__ import annotations

from minigrad import ops
from minigrad.core.tensor import Axis, Tensor
from minigrad.nn.module import Module


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        """`ops.relu`."""
        return ops.relu(x)


class LeakyReLU(Module):
    """x above 0, else `negative_slope` x."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        """`ops.leaky_relu`."""
        return ops.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        """The slope."""
        return f"negative_slope={self.negative_slope}"


class ELU(Module):
    """x above 0, else `alpha` (e^x - 1) (Clevert et al., 2016)."""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """`ops.elu`."""
        return ops.elu(x, self.alpha)

    def extra_repr(self) -> str:
        """The factor."""
        return f"alpha={self.alpha}"


class GELU(Module):
    """x Phi(x), or its approximation by "tanh"."""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """`ops.gelu`."""
        return ops.gelu(x, self.approximate)

    def extra_repr(self) -> str:
        """The approximation, if there is one."""
        return "" if self.approximate == "none" else f"approximate={self.approximate!r}"


class SiLU(Module):
    """x sigmoid(x) (Elfwing et al., 2018), also called swish."""

    def forward(self, x: Tensor) -> Tensor:
        """`ops.silu`."""
        return ops.silu(x)


class Softplus(Module):
    """log(1 + e^(beta x)) / beta, a smooth max(x, 0).

    Raises:
        ValueError: if `beta` is not positive.
    """

    def __init__(self, beta: float = 1.0) -> None:
        if not beta > 0:
            raise ValueError(f"Softplus: beta must be positive, not {beta!r}")
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        """`ops.softplus`."""
        return ops.softplus(x, self.beta)

    def extra_repr(self) -> str:
        """The sharpness of the bend."""
        return f"beta={self.beta}"


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        """`ops.tanh`."""
        return ops.tanh(x)


class Sigmoid(Module):
    """1 / (1 + e^-x)."""

    def forward(self, x: Tensor) -> Tensor:
        """`ops.sigmoid`."""
        return ops.sigmoid(x)


class Softmax(Module):
    """e^x / sum(e^x) along `axis`."""

    def __init__(self, axis: Axis = -1) -> None:
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """`ops.softmax`."""
        return ops.softmax(x, self.axis)

    def extra_repr(self) -> str:
        """The axis."""
        return f"axis={self.axis}"


class LogSoftmax(Module):
    """x - log(sum(e^x)) along `axis`."""

    def __init__(self, axis: Axis = -1) -> None:
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """`ops.log_softmax`."""
        return ops.log_softmax(x, self.axis)

    def extra_repr(self) -> str:
        """The axis."""
        return f"axis={self.axis}"


class Identity(Module):
    """x itself, where a layer or an activation is asked for and none is wanted."""

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        return x
