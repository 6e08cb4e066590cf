"""Adam, and AdamW, whose weight decay is separate from the gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from minigrad import kernels
from minigrad.checks import check_flag, check_range
from minigrad.optim.optimizer import Optimizer, Parameters, Stepped


class Adam(Optimizer):
    """Adaptive moments (Kingma and Ba, 2015, algorithm 1).

        g <- g + weight_decay x
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        x <- x - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    The results are those of PyTorch's Adam; eps is added to the corrected root. With `amsgrad`
    (Reddi et al., 2018) the highest v that an element has had so far replaces v in the last line,
    with the same correction: a large gradient is not forgotten.

    Args:
        params: tensors, or groups of them.
        lr: the step size.
        betas: the decay rates beta1 and beta2 of the two moments.
        eps: a small number that keeps the division finite.
        weight_decay: the strength of an L2 penalty.
        amsgrad: whether the highest v is used. It cannot be switched once there have been steps.

    Raises:
        ValueError: if an option has an impossible value.
        TypeError: if an option is of another kind, such as one number for `betas`.
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
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": tuple(betas) if isinstance(betas, Iterable) else betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
            },
        )

    def check_options(self, group: Mapping[str, Any]) -> None:
        """Raise an error if an option has an impossible value."""
        for name in ("lr", "eps", "weight_decay"):
            check_range(name, group[name], 0.0, np.inf)
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)):
            raise TypeError(f"betas must be two numbers, as in (0.9, 0.999), not {betas!r}")
        if len(betas) != 2:
            raise ValueError(f"betas must be two numbers, as in (0.9, 0.999), not {betas!r}")
        for beta in betas:
            check_range("each of betas", beta, 0.0, 1.0, open_end=True)
        check_flag("amsgrad", group["amsgrad"])

    def state_names(self, group: Mapping[str, Any]) -> set[str]:
        """Return the names of the values in the state of a parameter of this group."""
        highest = {"max_exp_avg_sq"} if group["amsgrad"] else set()
        return {"step", "exp_avg", "exp_avg_sq"} | highest

    def update_all(self, parameters: Sequence[Stepped], group: Mapping[str, Any]) -> None:
        """Step the parameters of a group.

        Raises:
            ValueError: if amsgrad was switched since the first step; then nothing is changed.
        """
        amsgrad = group["amsgrad"]
        if any(state and ("max_exp_avg_sq" in state) != amsgrad for _, _, state in parameters):
            raise ValueError("amsgrad cannot be switched after a step; make a new optimiser")
        rows, steps = [], []
        for x, g, state in parameters:
            if not state:
                state.update(step=0, exp_avg=np.zeros_like(x), exp_avg_sq=np.zeros_like(x))
                if amsgrad:
                    state["max_exp_avg_sq"] = np.zeros_like(x)
            state["step"] += 1
            steps.append(state["step"])
            changed = (x, state["exp_avg"], state["exp_avg_sq"])
            rows.append((g, (*changed, state["max_exp_avg_sq"]) if amsgrad else changed))
        kernels.optim.adam(
            self.kernel_memory(group),
            rows,
            steps,
            group["lr"],
            group["betas"],
            group["eps"],
            group["weight_decay"],
            self.decoupled,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2).

    It differs from Adam in the decay: x <- x - lr weight_decay x before the step, and nothing is
    added to the gradient.

    Args:
        params: tensors, or groups of them.
        lr: the step size.
        betas: the decay rates beta1 and beta2 of the two moments.
        eps: a small number that keeps the division finite.
        weight_decay: the share of lr by which weights shrink in each step.
        amsgrad: whether the highest v is used. It cannot be switched once there have been steps.
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
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)
