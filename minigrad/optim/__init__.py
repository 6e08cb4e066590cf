"""Optimisers, schedules of their learning rates, and averages of the weights they find."""

from minigrad.optim.clip import clip_grad_norm, clip_grad_value, grad_norm
from minigrad.optim.descent import SGD, Adam, AdamW
from minigrad.optim.ema import EMA
from minigrad.optim.optimizer import Optimizer
from minigrad.optim.schedulers import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    StepLR,
    WarmupCosineLR,
)

__all__ = [
    "EMA",
    "SGD",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "Optimizer",
    "StepLR",
    "WarmupCosineLR",
    "clip_grad_norm",
    "clip_grad_value",
    "grad_norm",
]
