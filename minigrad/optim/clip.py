"""Keeping gradients within bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad import kernels
from minigrad.core.tensor import Tensor

__all__ = ["clip_grad_norm", "clip_grad_value", "grad_norm"]


def grad_norm(parameters: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all gradients, taken as one vector; a tensor counts once."""
    return _norm(_gradients(parameters).values())


def _gradients(parameters: Tensor | Iterable[Tensor]) -> dict[Tensor, NDArray[Any]]:
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"the parameters are tensors, not {type(tensor).__name__}")
    return {tensor: tensor.grad._data for tensor in tensors if tensor.grad is not None}


def _norm(gradients: Iterable[NDArray[Any]]) -> float:
    arrays = list(gradients)
    return math.sqrt(kernels.optim.square_sums(arrays)) if arrays else 0.0


def clip_grad_norm(
    parameters: Tensor | Iterable[Tensor], max_norm: float, error_if_nonfinite: bool = True
) -> float:
    """Scale all gradients by one factor, so that their common norm is at most `max_norm`.

    Args:
        parameters: tensors; those without a gradient do not count.
        max_norm: the largest Euclidean norm to leave.
        error_if_nonfinite: whether to raise an error if the norm is infinite or NaN, instead of
            spreading it. (The default of PyTorch's function is False.)

    Returns:
        The norm before the scaling.

    Raises:
        ValueError: if `max_norm` is not positive.
        RuntimeError: if the norm is not finite; no gradient is changed then.
    """
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm: max_norm must be positive, not {max_norm!r}")
    gradients = _gradients(parameters)
    norm = _norm(gradients.values())
    if error_if_nonfinite and not math.isfinite(norm):
        raise RuntimeError(
            f"clip_grad_norm: the norm of the gradients is {norm}; no factor makes that finite. "
            f"error_if_nonfinite=False scales them all the same"
        )
    if not norm <= max_norm:
        factor = float(max_norm) / (norm + 1e-6)  # as in PyTorch, to the digit
        # New tensors: the user may have an old one, or it may be another tensor's gradient too.
        scaled = {tensor: np.empty(g.shape, g.dtype) for tensor, g in gradients.items()}
        kernels.optim.scale([*gradients.values()], [*scaled.values()], factor)
        for tensor, out in scaled.items():
            tensor.grad = Tensor(out)
    return norm


def clip_grad_value(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Bring every element of every gradient into [-clip_value, clip_value]; a NaN stays one.

    Raises:
        ValueError: if `clip_value` is not positive.
    """
    if not clip_value > 0:
        raise ValueError(f"clip_grad_value: clip_value must be positive, not {clip_value!r}")
    limit = float(clip_value)  # a numpy scalar would widen float32 gradients
    for tensor, g in _gradients(parameters).items():
        tensor.grad = Tensor(np.clip(g, -limit, limit))  # a new one, for the reason given above
