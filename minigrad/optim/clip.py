"""Gradient clipping, by norm or by value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad import kernels
from minigrad.checks import check_above_0, check_flag, shown
from minigrad.core.grad_mode import observed
from minigrad.core.tensor import Tensor
from minigrad.errors import named_errors
from minigrad.nn.module import Module
from minigrad.optim.optimizer import check_gradients_left
from minigrad.renamed import helpful_errors

__all__ = ["clip_grad_norm", "clip_grad_value", "grad_norm"]


@named_errors
def grad_norm(parameters: Module | Tensor | Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all gradients, as if they were one vector.

    A tensor that is given twice counts once, and one without a gradient counts nothing.

    Raises:
        TypeError: if the parameters are neither tensors nor a Module.
        RuntimeError: if no gradient is left outside of a captured step, which computed them.
    """
    return observed(norm_of, [*_gradients(parameters).values()])


def _gradients(parameters: Module | Tensor | Iterable[Tensor]) -> dict[Tensor, NDArray[Any]]:
    given: Any = parameters.parameters() if isinstance(parameters, Module) else parameters
    is_list = isinstance(given, Iterable) and not isinstance(given, Tensor)
    tensors = list(given) if is_list else [given]
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"the parameters are tensors or a Module, not {shown(tensor)}")
    gradients = {tensor: tensor.grad._data for tensor in tensors if tensor.grad is not None}
    if not gradients:
        check_gradients_left(tensors)
    return gradients


def norm_of(gradients: list[NDArray[Any]]) -> float:
    """Return the Euclidean norm of arrays, as if they were one vector."""
    return math.sqrt(kernels.optim.square_sums(gradients))


@helpful_errors
def clip_grad_norm(
    parameters: Module | Tensor | Iterable[Tensor], max_norm: float, error_if_nonfinite: bool = True
) -> float:
    """Clip the gradients: scale all by one factor, so that their total norm is at most `max_norm`.

    Args:
        parameters: tensors, or a module with them; those without a gradient are ignored.
        max_norm: the largest Euclidean norm, of all gradients as one vector.
        error_if_nonfinite: whether to raise an error if the norm is infinite or NaN. If False, the
            gradients are scaled all the same: they become 0 or NaN. (In PyTorch, the default is
            False.)

    Returns:
        The norm before the scaling.

    Raises:
        ValueError: if `max_norm` is not positive.
        TypeError: if `max_norm` is not a number, the parameters are neither tensors nor a Module,
            or `error_if_nonfinite` is not True or False.
        RuntimeError: if the norm is not finite, or no gradient is left outside of a captured step,
            which computed them. No gradient is changed then.
    """
    check_above_0("max_norm", max_norm)
    check_flag("error_if_nonfinite", error_if_nonfinite)
    gradients = _gradients(parameters)
    norm, clipped = observed(
        clipped_by_norm, [*gradients.values()], float(max_norm), error_if_nonfinite
    )
    for (tensor, g), out in zip(gradients.items(), clipped, strict=True):
        if out is not g:
            tensor.grad = Tensor(out)
    return norm


def clipped_by_norm(
    gradients: list[NDArray[Any]], max_norm: float, error_if_nonfinite: bool
) -> tuple[float, list[NDArray[Any]]]:
    """Return the norm of the gradients, and the gradients scaled to a norm of at most `max_norm`.

    Scaling makes new arrays, because the user, or another tensor, may hold the old ones.
    """
    norm = norm_of(gradients)
    if error_if_nonfinite and not math.isfinite(norm):
        raise RuntimeError(
            f"clip_grad_norm: the norm of the gradients is {norm}; no factor makes that finite. "
            f"error_if_nonfinite=False scales them all the same"
        )
    if norm <= max_norm:
        return norm, gradients
    factor = max_norm / (norm + 1e-6)  # as in PyTorch, to the digit
    scaled = [np.empty(g.shape, g.dtype) for g in gradients]
    kernels.optim.scale([gradients, scaled], (factor,))
    return norm, scaled


@helpful_errors
def clip_grad_value(parameters: Module | Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Clip every element of every gradient to [-clip_value, clip_value]; NaN stays NaN.

    Raises:
        ValueError: if `clip_value` is not positive.
        TypeError: if `clip_value` is not a number, or the parameters are neither tensors nor a
            Module.
        RuntimeError: if no gradient is left outside of a captured step, which computed them.
    """
    check_above_0("clip_value", clip_value)
    limit = float(clip_value)  # a numpy scalar would widen float32 gradients
    for tensor, g in _gradients(parameters).items():
        tensor.grad = Tensor(observed(np.clip, g, -limit, limit))
