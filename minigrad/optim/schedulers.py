"""Schedulers: the learning rate as a function of the number of steps.

    scheduler = WarmupCosineLR(optimizer, warmup_steps=100, total_steps=1000)
    for x, y in batches:
        ...
        optimizer.step()
        scheduler.step()

A scheduler computes the learning rate (lr) of a group by a formula, from the lr at the start and
the number of steps. PyTorch computes each lr from the previous lr; the values are the same except
for rounding. With a formula, rounding errors do not grow, and the lr of any step can be computed.
If you set an lr by hand between two steps, it has no effect on later steps. For the same reason,
two schedulers of one optimiser do not multiply their factors, as they would in PyTorch: the one
that steps last sets the lr.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from minigrad.checks import check_count, check_positive, check_range, check_state, shown
from minigrad.core.grad_mode import observed
from minigrad.optim.optimizer import Optimizer
from minigrad.renamed import hint_arguments, with_hints

__all__ = ["CosineAnnealingLR", "LRScheduler", "LambdaLR", "LinearLR", "StepLR", "WarmupCosineLR"]


class LRScheduler(ABC):
    """Base class of schedulers. They set the lr of every group when made, and after each step.

    To write a scheduler, define `lr`, and `check_options` if it has options.

    Args:
        optimizer: the optimiser. The schedule starts from the present lr of its groups.
        options: the options of the schedule; also an attribute.

    Attributes:
        base_lrs: the lr of each group when the scheduler was made.
        last_epoch: the number of steps so far. The name is PyTorch's, though a step need not be an
            epoch.

    Raises:
        TypeError: if `optimizer` is not an optimiser, or an option has a wrong type.
        ValueError: if an option has an impossible value, the optimiser has no option lr, or no
            group has an lr above 0.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        hint_arguments(cls)

    def __init__(self, optimizer: Optimizer, **options: Any) -> None:
        name = type(self).__name__
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{name} needs an optimiser, not {shown(optimizer)}")
        if "lr" not in optimizer.defaults:
            raise ValueError(f"{name}: {type(optimizer).__name__} has no option lr to set")
        self.check_options(options)
        self.optimizer = optimizer
        self.options = options
        self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        if not any(self.base_lrs):
            raise ValueError(
                f"{name}: the lr of every group is 0, and would stay so; if another scheduler has "
                f"set it, give each group its own lr again first"
            )
        self.last_epoch = 0
        self._set(0)

    @abstractmethod
    def lr(self, step: int, base_lr: float) -> float:
        """Return the lr after `step` steps of a group that began with `base_lr`."""

    def check_options(self, options: Mapping[str, Any]) -> None:  # noqa: B027  # may stay as it is
        """Raise a ValueError or a TypeError if an option has an impossible value."""

    @with_hints
    def step(self) -> None:
        """Count a step, and set the lr for the next step; call it after `optimizer.step()`.

        Raises:
            ValueError: if the number of the optimiser's groups has changed, or the schedule gives
                an lr that is negative or not finite. Nothing is changed then.
        """
        observed(self._advance)

    def _advance(self) -> None:
        self._set(self.last_epoch + 1)

    def _set(self, step: int) -> None:
        groups = self.optimizer.param_groups
        if len(groups) != len(self.base_lrs):
            raise ValueError(
                f"{type(self).__name__} was made for {len(self.base_lrs)} groups of parameters, "
                f"and the optimiser has {len(groups)}; make a new scheduler after add_param_group"
            )
        rates = [self.lr(step, base_lr) for base_lr in self.base_lrs]
        for rate in rates:
            check_range(f"{type(self).__name__}: the lr at step {step}", rate, 0, math.inf)
        self.last_epoch = step
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = float(rate)

    def get_last_lr(self) -> list[float]:
        """Return the lr of each group after the steps so far."""
        return [float(self.lr(self.last_epoch, base_lr)) for base_lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the options, `last_epoch` and a copy of `base_lrs`: numbers only."""
        return {**self.options, "base_lrs": list(self.base_lrs), "last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state that `state_dict` returned, with its options.

        The present lr does not change, because it is part of the optimiser's state. If there is an
        error, nothing is changed.

        Raises:
            ValueError: if the state belongs to another scheduler or to other groups, or has an
                impossible value.
            TypeError: if an option has a wrong type.
        """
        name = type(self).__name__
        # A subclass may have further keys, and may take them out before it calls this.
        check_state(name, state_dict, LRScheduler.state_dict(self), self.state_dict())
        options = {key: state_dict[key] for key in self.options}
        base_lrs, step = state_dict["base_lrs"], state_dict["last_epoch"]
        if not isinstance(base_lrs, (list, tuple)) or len(base_lrs) != len(self.base_lrs):
            raise ValueError(
                f"load_state_dict: {name} has {len(self.base_lrs)} groups of parameters, the state "
                f"has base_lrs={base_lrs!r:.60}"
            )
        for base_lr in base_lrs:
            check_range("load_state_dict: each of base_lrs", base_lr, 0, math.inf)
        check_count("load_state_dict: last_epoch", step)
        self.check_options(options)
        self.options, self.base_lrs, self.last_epoch = options, list(base_lrs), step

    def __repr__(self) -> str:
        options = "".join(f"{key}={value}, " for key, value in self.options.items())
        rates = ", ".join(f"{rate:.4g}" for rate in self.get_last_lr())
        return f"{type(self).__name__}({options}last_epoch={self.last_epoch}, lr=[{rates}])"


class LambdaLR(LRScheduler):
    """lr = base_lr lr_lambda(step), where `lr_lambda` is a function of the number of steps.

    The factors that it returns are finite numbers of at least 0; others are an error, also in
    `step`. The state does not contain the function: to load a state, make the scheduler with the
    same one. Errors are those of `LRScheduler`.
    """

    def __init__(self, optimizer: Optimizer, lr_lambda: Callable[[int], float]) -> None:
        if not callable(lr_lambda):
            raise TypeError(f"LambdaLR: lr_lambda is a function of the step, not {lr_lambda!r:.60}")
        self.lr_lambda = lr_lambda
        super().__init__(optimizer)

    def lr(self, step: int, base_lr: float) -> float:
        """Return the lr after `step` steps of a group that began with `base_lr`."""
        factor = self.lr_lambda(step)
        check_range(f"LambdaLR: lr_lambda({step})", factor, 0, math.inf)
        return base_lr * factor


class StepLR(LRScheduler):
    """lr = base_lr gamma^floor(step / step_size): multiply lr by gamma every `step_size` steps.

    `step_size` is a positive integer, and gamma a finite number of at least 0. Errors are those of
    `LRScheduler`.
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        super().__init__(optimizer, step_size=step_size, gamma=gamma)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise an error unless the size is a positive integer and gamma is not negative."""
        check_positive("StepLR: step_size", options["step_size"])
        check_range("StepLR: gamma", options["gamma"], 0, math.inf)

    def lr(self, step: int, base_lr: float) -> float:
        """Return the lr after `step` steps of a group that began with `base_lr`."""
        try:
            factor = float(self.options["gamma"]) ** (step // self.options["step_size"])
        except OverflowError:
            factor = math.inf  # `step` refuses the lr
        return float(base_lr * factor)


class CosineAnnealingLR(LRScheduler):
    """lr = eta_min + (base_lr - eta_min) (1 + cos(pi step / T_max)) / 2.

    The lr falls to `eta_min` in `T_max` steps, along half a cosine (Loshchilov and Hutter, 2017).
    Then it rises again, as in PyTorch; in `WarmupCosineLR` it stays at `eta_min`.

    `T_max` is a positive integer, and `eta_min` a finite number of at least 0. Errors are those of
    `LRScheduler`.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        super().__init__(optimizer, T_max=T_max, eta_min=eta_min)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise an error unless T_max is a positive integer and eta_min is not negative."""
        check_positive("CosineAnnealingLR: T_max", options["T_max"])
        check_range("CosineAnnealingLR: eta_min", options["eta_min"], 0, math.inf)

    def lr(self, step: int, base_lr: float) -> float:
        """Return the lr after `step` steps of a group that began with `base_lr`."""
        return _half_cosine(step / self.options["T_max"], base_lr, self.options["eta_min"])


class LinearLR(LRScheduler):
    """lr = base_lr (start_factor + (end_factor - start_factor) min(step / total_iters, 1)).

    This is a linear warm-up in `total_iters` steps, which is a positive integer. `start_factor` is
    in (0, 1], because a first step with lr = 0 would change nothing; `end_factor` is in [0, 1].
    Errors are those of `LRScheduler`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
    ) -> None:
        super().__init__(
            optimizer, start_factor=start_factor, end_factor=end_factor, total_iters=total_iters
        )

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise an error unless both factors are in [0, 1] and the number of steps is positive."""
        for name in ("start_factor", "end_factor"):
            check_range(f"LinearLR: {name}", options[name], 0, 1)
        if options["start_factor"] == 0:
            raise ValueError("LinearLR: start_factor must be above 0; the first step would be lost")
        check_positive("LinearLR: total_iters", options["total_iters"])

    def lr(self, step: int, base_lr: float) -> float:
        """Return the lr after `step` steps of a group that began with `base_lr`."""
        start, end = self.options["start_factor"], self.options["end_factor"]
        return float(base_lr * (start + (end - start) * min(step / self.options["total_iters"], 1)))


class WarmupCosineLR(LRScheduler):
    """Linear warm-up from 0, then cosine decay: the usual schedule for transformers.

        lr = base_lr step / warmup_steps                                   up to warmup_steps,
        lr = eta_min + (base_lr - eta_min) (1 + cos(pi progress)) / 2      up to total_steps,
        lr = eta_min                                                       from there on,
        progress = (step - warmup_steps) / (total_steps - warmup_steps)

    With eta_min = 0, the values up to total_steps are those of `get_cosine_schedule_with_warmup` in
    Hugging Face's transformers. So the first step has lr = 0: it changes no weight, and only starts
    Adam's moments.

    `warmup_steps` and `total_steps` are integers with 0 <= warmup_steps < total_steps;
    `total_steps` includes the warm-up. `eta_min` is a finite number of at least 0. Errors are those
    of `LRScheduler`.
    """

    def __init__(
        self, optimizer: Optimizer, warmup_steps: int, total_steps: int, eta_min: float = 0.0
    ) -> None:
        super().__init__(
            optimizer, warmup_steps=warmup_steps, total_steps=total_steps, eta_min=eta_min
        )

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise an error unless 0 <= warmup_steps < total_steps and eta_min is not negative."""
        warmup_steps, total_steps = options["warmup_steps"], options["total_steps"]
        check_positive("WarmupCosineLR: total_steps", total_steps)
        check_count("WarmupCosineLR: warmup_steps", warmup_steps)
        if warmup_steps >= total_steps:
            raise ValueError(
                f"WarmupCosineLR: warmup_steps={warmup_steps} must be less than "
                f"total_steps={total_steps}, which includes them"
            )
        check_range("WarmupCosineLR: eta_min", options["eta_min"], 0, math.inf)

    def lr(self, step: int, base_lr: float) -> float:
        """Return the lr after `step` steps of a group that began with `base_lr`."""
        warmup_steps, total_steps = self.options["warmup_steps"], self.options["total_steps"]
        if step < warmup_steps:
            return float(base_lr * step / warmup_steps)
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        return _half_cosine(min(progress, 1.0), base_lr, self.options["eta_min"])


def _half_cosine(progress: float, high: float, low: float) -> float:
    """Return `high` at 0, `low` at 1, and half a cosine in between."""
    return low + (high - low) * 0.5 * (1.0 + math.cos(math.pi * progress))
