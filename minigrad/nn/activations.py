"""Activation functions as modules, for `Sequential`; they have no parameters."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

from minigrad import ops
from minigrad.checks import check_above_0, check_range
from minigrad.core.tensor import Axis, Tensor
from minigrad.nn.module import FunctionModule, Module

__all__ = ["ELU", "GELU", "Identity", "LeakyReLU", "LogSoftmax", "ReLU", "SiLU", "Sigmoid"]
__all__ += ["Softmax", "Softplus", "Tanh"]

_check_finite = partial(check_range, low=-math.inf, high=math.inf)


class ReLU(FunctionModule):
    """max(x, 0)."""

    function = ops.relu


class LeakyReLU(FunctionModule):
    """x where x > 0, and `negative_slope` x elsewhere (Maas et al., 2013).

    A ValueError is raised if the slope is infinite or nan, and a TypeError if it is not a number.
    """

    function = ops.leaky_relu
    _checks: ClassVar = {"negative_slope": _check_finite}
    negative_slope: float = 0.01


class ELU(FunctionModule):
    """x where x > 0, and `alpha` (e^x - 1) elsewhere (Clevert et al., 2016).

    A ValueError is raised if `alpha` is infinite or nan, and a TypeError if it is not a number.
    """

    function = ops.elu
    _checks: ClassVar = {"alpha": _check_finite}
    alpha: float = 1.0


class GELU(FunctionModule):
    """x Phi(x), with the normal distribution function Phi (Hendrycks and Gimpel, 2016).

    With `approximate="tanh"` it is the approximation that GPT-2 uses; `minigrad.gelu` has the
    formula. With other values than "none" and "tanh", a call raises a ValueError.
    """

    function = ops.gelu
    approximate: str = "none"

    def extra_repr(self) -> str:
        """Return the name of the approximation, if one is used."""
        return "" if self.approximate == "none" else f"approximate={self.approximate!r}"


class SiLU(FunctionModule):
    """x sigmoid(x) (Elfwing et al., 2018), also called swish."""

    function = ops.silu


class Softplus(FunctionModule):
    """log(1 + e^(beta x)) / beta, a smooth max(x, 0).

    A ValueError is raised if `beta` is not positive, and a TypeError if it is not a number.
    """

    function = ops.softplus
    _checks: ClassVar = {"beta": check_above_0}
    beta: float = 1.0


class Tanh(FunctionModule):
    """The hyperbolic tangent."""

    function = ops.tanh


class Sigmoid(FunctionModule):
    """1 / (1 + e^-x)."""

    function = ops.sigmoid


class Softmax(FunctionModule):
    """e^x / sum(e^x) along `axis`; a call raises a ValueError if x does not have this axis."""

    function = ops.softmax
    axis: Axis = -1


class LogSoftmax(FunctionModule):
    """x - log(sum(e^x)) along `axis`; a call raises a ValueError if x does not have this axis."""

    function = ops.log_softmax
    axis: Axis = -1


class Identity(Module):
    """The identity function x -> x, a placeholder for a layer or an activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input."""
        return x
