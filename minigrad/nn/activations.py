"""Activation functions as modules, for `Sequential`; they have no parameters."""

from __future__ import annotations

from minigrad import ops
from minigrad.nn.module import Module
from minigrad.tensor import Axis, Tensor


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        """`ops.relu`."""
        return ops.relu(x)


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
