"""Optimisers: SGD, and Adam, AdamW, RMSprop and Adagrad, which adapt the step to each element.

They give the same results as PyTorch's optimisers of the same names.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from minigrad import kernels
from minigrad.checks import check_flag, check_range
from minigrad.optim.optimizer import Optimizer, Parameters, State, Stepped

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "RMSprop"]

_FLAGS = {"nesterov", "amsgrad", "centered", "maximize"}
_RANGES = {"dampening": (-np.inf, np.inf), "alpha": (0.0, 1.0)}  # of others, from 0 to infinity


class _Descent(Optimizer):
    """The base class of optimisers whose options are flags and numbers."""

    def check_options(self, group: Mapping[str, Any]) -> None:
        """Raise an error if an option has an impossible value."""
        for name, value in group.items():
            if name in _FLAGS:
                check_flag(name, value)
            elif name not in ("params", "betas"):
                check_range(name, value, *_RANGES.get(name, (0.0, np.inf)))


class SGD(_Descent):
    """Gradient descent with momentum.

        g <- g + weight_decay x
        b <- momentum b + (1 - dampening) g        (b <- g in the first step)
        x <- x - lr b                              (Nesterov: x - lr (g + momentum b))

    The learning rate lr is not part of the velocity b.

    Args:
        params: tensors, or groups of tensors (see `Optimizer`).
        lr: the learning rate.
        momentum: the share of the velocity that is kept in each step.
        dampening: the share of the gradient that is not added to the velocity.
        weight_decay: the strength of an L2 penalty.
        nesterov: whether to use Nesterov momentum (Sutskever et al., 2013).
        maximize: whether to maximise instead: -g replaces g.

    Raises:
        ValueError: if an option has an impossible value, or `nesterov` is used without momentum or
            with dampening; for the parameters see `Optimizer`.
        TypeError: if an option has a wrong type.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize,
        })  # fmt: skip

    def check_options(self, group: Mapping[str, Any]) -> None:
        """Raise an error if an option has an impossible value."""
        super().check_options(group)
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError("nesterov needs momentum > 0 and dampening = 0")

    def state_names(self, group: Mapping[str, Any]) -> Collection[str]:
        """Return the name of the velocity, which a parameter has as state if there is momentum."""
        return {"momentum_buffer"}

    def update_all(self, parameters: Sequence[Stepped], group: Mapping[str, Any]) -> None:
        """Step the parameters of a group."""
        momentum, rest = group["momentum"], 1.0 - group["dampening"]
        shares = [(rest if state else 1.0, 0.0) for _, _, state in parameters if momentum]
        changing = self.last_step(group).columns(["momentum_buffer"] if momentum else [])
        columns = [[g for _, g, _ in parameters], *changing]
        options = group["lr"], momentum, group["weight_decay"], float(group["nesterov"])
        if momentum:
            kernels.optim.sgd_momentum(columns, options, shares)
        else:
            kernels.optim.sgd(columns, options)


class Adam(_Descent):
    """Adam, adaptive moment estimation (Kingma and Ba, 2015, algorithm 1).

        g <- g + weight_decay x
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        x <- x - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    With `amsgrad` (Reddi et al., 2018), the last line uses the largest v so far of each element
    instead of v, with the same correction. So a large gradient is not forgotten.

    Args:
        params: tensors, or groups of tensors (see `Optimizer`).
        lr: the learning rate.
        betas: the decay rates beta1 and beta2 of the two moments.
        eps: a small number that keeps the division finite.
        weight_decay: the strength of an L2 penalty.
        amsgrad: whether to use the largest v. It cannot be changed after the first step.
        maximize: whether to maximise instead: -g replaces g.

    Raises:
        ValueError: if an option has an impossible value; for the parameters see `Optimizer`.
        TypeError: if an option has a wrong type, such as one number for `betas`.
    """

    decoupled = False

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        maximize: bool = False,
    ) -> None:
        pair = tuple(betas) if isinstance(betas, Iterable) else betas
        options = {"lr": lr, "betas": pair, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options | {"amsgrad": amsgrad, "maximize": maximize})

    def check_options(self, group: Mapping[str, Any]) -> None:
        """Raise an error if an option has an impossible value."""
        super().check_options(group)
        betas = group["betas"]
        is_pair = isinstance(betas, (tuple, list))
        if not is_pair or len(betas) != 2:
            kind = ValueError if is_pair else TypeError
            raise kind(f"betas must be two numbers, as in (0.9, 0.999), not {betas!r}")
        for beta in betas:
            check_range("each of betas", beta, 0.0, 1.0, open_end=True)

    def state_names(self, group: Mapping[str, Any]) -> Collection[str]:
        """Return the names of the step, of the two moments and, with amsgrad, of the largest v."""
        highest = {"max_exp_avg_sq"} if group["amsgrad"] else set()
        return {"step", "exp_avg", "exp_avg_sq"} | highest

    def check_states(self, states: Sequence[State], group: Mapping[str, Any]) -> None:
        """Raise a ValueError if amsgrad was switched after a step."""
        if any(("max_exp_avg_sq" in state) != group["amsgrad"] for state in states):
            raise ValueError("amsgrad cannot be switched after a step; make a new optimiser")

    def update_all(self, parameters: Sequence[Stepped], group: Mapping[str, Any]) -> None:
        """Step the parameters of a group."""
        moments = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * bool(group["amsgrad"])
        last = self.last_step(group)
        gradients, steps = [g for _, g, _ in parameters], last.count_step()
        lr, (beta1, beta2), weight_decay = group["lr"], group["betas"], group["weight_decay"]
        keep, l2 = (1 - lr * weight_decay, 0.0) if self.decoupled else (1.0, weight_decay)
        options = keep, l2, beta1, 1 - beta1, beta2, 1 - beta2

        def corrected(step: int) -> tuple[float, float]:
            c1, c2 = 1 - beta1**step, math.sqrt(1 - beta2**step)
            return lr * c2 / c1, c2 * group["eps"]

        equal = steps and steps.count(steps[0]) == len(steps)
        own = corrected(steps[0]) if equal else [corrected(step) for step in steps]
        update = kernels.optim.amsgrad if group["amsgrad"] else kernels.optim.adam
        update([gradients, *last.columns(moments)], options, own)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2).

    Before each step, the weights decay: x <- x - lr weight_decay x. Nothing is added to the
    gradient. So `weight_decay` is not an L2 penalty here, and by default it is 0.01. All other
    arguments, and the errors, are those of `Adam`.
    """

    decoupled = True

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize)


class RMSprop(_Descent):
    """RMSprop: divide g by the root of a running mean of g^2 (Hinton, 2012, lecture 6e).

        g <- g + weight_decay x
        v <- alpha v + (1 - alpha) g^2
        x <- x - lr g / (sqrt(v) + eps)            (momentum: b <- momentum b + g / ..., x - lr b)

    `lr`, `eps`, `weight_decay`, `maximize` and errors are as in `Adam`; by default, `lr` is 0.01.

    Args:
        params: tensors, or groups of tensors (see `Optimizer`).
        alpha: the decay rate of the means.
        momentum: the share of the velocity b that is kept in each step.
        centered: whether to divide by the root of the variance v - m^2, where m is the running mean
            of g. It cannot be switched on after the first step.
    """

    unused_names = frozenset({"grad_avg", "momentum_buffer"})

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, {
            "lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay,
            "momentum": momentum, "centered": centered, "maximize": maximize,
        })  # fmt: skip

    def state_names(self, group: Mapping[str, Any]) -> list[str]:
        """Return the names of v, of m if centered, and of the velocity if there is momentum."""
        more = ["grad_avg"] * bool(group["centered"])
        more += ["momentum_buffer"] * bool(group["momentum"] > 0)
        return ["square_avg", *more]

    def check_states(self, states: Sequence[State], group: Mapping[str, Any]) -> None:
        """Raise a ValueError if centered was switched on after a step."""
        if group["centered"] and any("grad_avg" not in state for state in states):
            raise ValueError("centered cannot be switched on after a step; make a new optimiser")

    def update_all(self, parameters: Sequence[Stepped], group: Mapping[str, Any]) -> None:
        """Step the parameters of a group."""
        changing = self.last_step(group).columns(self.state_names(group))
        if not group["centered"]:  # m would be out of date if centered were switched on again
            for _, _, state in parameters:
                state.pop("grad_avg", None)
        lr, alpha, momentum = group["lr"], group["alpha"], group["momentum"]
        options = lr, alpha, 1 - alpha, group["eps"], group["weight_decay"], momentum
        plain, moving = kernels.optim.rmsprop, kernels.optim.rmsprop_momentum
        if group["centered"]:
            plain, moving = kernels.optim.centered, kernels.optim.centered_momentum
        update = moving if momentum > 0 else plain
        update([[g for _, g, _ in parameters], *changing], options)


class Adagrad(_Descent):
    """Adagrad: divide g by the root of the sum of all g^2 so far (Duchi et al., 2011).

        g <- g + weight_decay x
        s <- s + g^2                               (s is initial_accumulator_value at first)
        x <- x - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)

    `lr`, `eps`, `weight_decay`, `maximize` and errors are as in `Adam`, but by default `lr` is
    0.01, and `eps` is 1e-10.

    Args:
        params: tensors, or groups of tensors (see `Optimizer`).
        lr_decay: how fast lr decreases with the number t of the step.
        initial_accumulator_value: the sum s before the first step.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, {
            "lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value, "eps": eps,
            "maximize": maximize,
        })  # fmt: skip

    def state_names(self, group: Mapping[str, Any]) -> Collection[str]:
        """Return the names of the step and of the sum of squares."""
        return {"step", "sum"}

    def update_all(self, parameters: Sequence[Stepped], group: Mapping[str, Any]) -> None:
        """Step the parameters of a group."""
        last = self.last_step(group)
        rates = [(group["lr"] / (1 + (t - 1) * group["lr_decay"]), 0.0) for t in last.count_step()]
        changing = last.columns(["sum"], group["initial_accumulator_value"])
        columns = [[g for _, g, _ in parameters], *changing]
        kernels.optim.adagrad(columns, (group["weight_decay"], group["eps"]), rates)
