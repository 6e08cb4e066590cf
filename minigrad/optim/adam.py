"""Adam, and AdamW, which decays the weights apart from the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad import kernels
from minigrad.optim.optimizer import Optimizer, Parameters, State, check_range


class Adam(Optimizer):
    """Adaptive moments (Kingma and Ba, 2015, algorithm 1).

        g <- g + weight_decay x
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        x <- x - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    The numbers are those of PyTorch's Adam; eps is added to the corrected root.

    Args:
        params: tensors, or groups of them.
        lr: the step size.
        betas: how much of the two moments is kept.
        eps: keeps the division finite.
        weight_decay: the strength of an L2 penalty.

    Raises:
        ValueError: if an option has an impossible value.
    """

    state_names = frozenset({"step", "exp_avg", "exp_avg_sq"})
    decoupled = False

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        )

    def check_options(self, group: Mapping[str, Any]) -> None:
        """Raise a ValueError if an option has an impossible value."""
        for name in ("lr", "eps", "weight_decay"):
            check_range(name, group[name], 0.0, np.inf, open_end=True)
        if len(group["betas"]) != 2:
            raise ValueError(f"betas must be two numbers, not {group['betas']!r}")
        for beta in group["betas"]:
            check_range("each of betas", beta, 0.0, 1.0, open_end=True)

    def update(
        self, x: NDArray[Any], g: NDArray[Any], state: State, group: Mapping[str, Any]
    ) -> None:
        """One step for one parameter."""
        if not state:
            state.update(step=0, exp_avg=np.zeros_like(x), exp_avg_sq=np.zeros_like(x))
        state["step"] += 1
        beta1, beta2 = group["betas"]
        kernels.optim.adam(
            x,
            g,
            state["exp_avg"],
            state["exp_avg_sq"],
            state["step"],
            group["lr"],
            beta1,
            beta2,
            group["eps"],
            group["weight_decay"],
            self.decoupled,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2).

    As Adam, but instead of adding to the gradient, x <- x - lr weight_decay x before the step.

    Args:
        params: tensors, or groups of them.
        lr: the step size.
        betas: how much of the two moments is kept.
        eps: keeps the division finite.
        weight_decay: the share of lr by which weights shrink in each step.
    """

    decoupled = True

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
