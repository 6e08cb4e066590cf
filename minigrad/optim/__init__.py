"""Optimisers, and what is done to gradients before a step."""

from minigrad.optim.adam import Adam, AdamW
from minigrad.optim.clip import clip_grad_norm, grad_norm
from minigrad.optim.optimizer import Optimizer
from minigrad.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "clip_grad_norm", "grad_norm"]
