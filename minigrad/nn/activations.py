"""Activation functions as modules, for `Sequential`; they have no parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from minigrad import ops
from minigrad.core.tensor import Axis, Tensor
from minigrad.nn.module import Module

__all__ = ["ELU", "GELU", "Identity", "LeakyReLU", "LogSoftmax", "ReLU", "SiLU", "Sigmoid"]
__all__ += ["Softmax", "Softplus", "Tanh"]

# An activation is a dataclass for its options, and is printed and compared as any module.


@dataclass(repr=False, eq=False)
class Activation(Module):
    """A function of one tensor as a module; the fields of a subclass are the function's options."""

    function: ClassVar[Callable[..., Any]]

    def forward(self, x: Tensor) -> Tensor:
        """Return the function of x, computed with the options of this module."""
        options = (getattr(self, field.name) for field in fields(self))
        return type(self).function(x, *options)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """The options."""
        return ", ".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))


class ReLU(Activation):
    """max(x, 0)."""

    function = ops.relu


@dataclass(repr=False, eq=False)
class LeakyReLU(Activation):
    """x above 0, else `negative_slope` x."""

    function = ops.leaky_relu
    negative_slope: float = 0.01


@dataclass(repr=False, eq=False)
class ELU(Activation):
    """x above 0, else `alpha` (e^x - 1) (Clevert et al., 2016)."""

    function = ops.elu
    alpha: float = 1.0


@dataclass(repr=False, eq=False)
class GELU(Activation):
    """x Phi(x), or its approximation by "tanh"."""

    function = ops.gelu
    approximate: str = "none"

    def extra_repr(self) -> str:
        """The approximation, if there is one."""
        return "" if self.approximate == "none" else f"approximate={self.approximate!r}"


class SiLU(Activation):
    """x sigmoid(x) (Elfwing et al., 2018), also called swish."""

    function = ops.silu


@dataclass(repr=False, eq=False)
class Softplus(Activation):
    """log(1 + e^(beta x)) / beta, a smooth max(x, 0).

    Raises:
        ValueError: if `beta` is not positive.
    """

    function = ops.softplus
    beta: float = 1.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"Softplus: beta must be positive, not {self.beta!r}")


class Tanh(Activation):
    """The hyperbolic tangent."""

    function = ops.tanh


class Sigmoid(Activation):
    """1 / (1 + e^-x)."""

    function = ops.sigmoid


@dataclass(repr=False, eq=False)
class Softmax(Activation):
    """e^x / sum(e^x) along `axis`."""

    function = ops.softmax
    axis: Axis = -1


@dataclass(repr=False, eq=False)
class LogSoftmax(Activation):
    """x - log(sum(e^x)) along `axis`."""

    function = ops.log_softmax
    axis: Axis = -1


class Identity(Module):
    """The function x -> x, for code that needs a layer or an activation where none is wanted."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input."""
        return x
