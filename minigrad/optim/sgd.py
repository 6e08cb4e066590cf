"""Stochastic gradient descent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minigrad import kernels
from minigrad.checks import check_flag, check_range
from minigrad.optim.optimizer import Optimizer, Parameters, Stepped


class SGD(Optimizer):
    """Gradient descent with momentum.

        g <- g + weight_decay x
        b <- momentum b + (1 - dampening) g        (b <- g in the first step)
        x <- x - lr b                              (Nesterov: x - lr (g + momentum b))

    The results are those of PyTorch's SGD: lr is not part of the velocity b.

    Args:
        params: tensors, or groups of them.
        lr: the step size.
        momentum: the share of the velocity that stays in each step.
        dampening: the share of the gradient that is not added to the velocity.
        weight_decay: the strength of an L2 penalty.
        nesterov: whether to look ahead along the velocity (Sutskever et al., 2013).

    Raises:
        ValueError: if an option has an impossible value, or `nesterov` comes without momentum or
            with dampening.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
            },
        )

    def check_options(self, group: Mapping[str, Any]) -> None:
        """Raise an error if an option has an impossible value."""
        for name in ("lr", "momentum", "weight_decay"):
            check_range(name, group[name], 0.0, np.inf)
        if not math.isfinite(group["dampening"]):
            raise ValueError(f"dampening must be a finite number, not {group['dampening']!r}")
        check_flag("nesterov", group["nesterov"])
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError("nesterov needs momentum > 0 and dampening = 0")

    def state_names(self, group: Mapping[str, Any]) -> set[str]:
        """Return the name of the velocity, the state of a parameter stepped with momentum."""
        return {"momentum_buffer"}

    def update_all(self, parameters: Sequence[Stepped], group: Mapping[str, Any]) -> None:
        """Step the parameters of a group."""
        momentum, rest = group["momentum"], 1.0 - group["dampening"]
        rows: list[Any] = []
        shares = []
        for x, g, state in parameters:
            if momentum == 0:
                rows.append((g, (x,)))
                continue
            shares.append(rest if state else 1.0)
            if not state:
                state["momentum_buffer"] = np.zeros_like(x)
            rows.append((g, (x, state["momentum_buffer"])))
        kernels.optim.sgd(
            self.kernel_memory(group),
            rows,
            shares,
            group["lr"],
            momentum,
            group["weight_decay"],
            group["nesterov"],
        )
