"""Checking that a LoRA layer is correct, by identities that hold for every loss.

A derivative can be compared with finite differences, which are never exact. LoRA's structure gives
more: equations between its gradients that hold up to rounding, or to the bit, whatever the loss. A
scale that is missing somewhere, a branch that is dropped, a transpose, or a gradient that leaks
into the base breaks one of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np

from lora.adapted_layer import AdaptedLayer
from lora.attachment.state import adapted_layers
from lora.frozen import TrainedCopy
from lora.identities import equations
from lora.identities.report import IdentityCheck, VerifyReport
from lora.identities.rounding import NOTHING, Agreement, Array
from lora.identities.trial import LayerTrial, Use
from lora.linear import LoRALayer
from minigrad.core.backward import grad
from minigrad.core.grad_mode import enable_grad, is_grad_enabled
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.loss_call import Loss, loss_of
from minigrad.diagnostics.rng_state import Draws
from minigrad.nn import Module, Parameter

Identity = Callable[[LayerTrial], Agreement]

DOUBLE = np.dtype(np.float64)

_NOT_PLAIN = (
    "the identities are those of one LoRA update of a dense linear layer; for DoRA, PiSSA, trained "
    "biases, NF4, embeddings and several active adapters there is gradcheck"
)
_PRECISION = "y, dx, dA, dB as in float64"
_MERGING = "merged y = unmerged y"

# Rounding of single precision would hide small errors in these, and they are the same formulas.
_IN_DOUBLE: dict[str, Identity] = {
    "dA A^T = B^T dB": equations.inner_products,
    "y, dA, dB under (B C^-1, C A)": equations.change_of_basis,
    "y, dx, dA, dB of x (W + s B A)^T + b": equations.composition,
    _MERGING: equations.merging,
}
_AS_IT_IS: dict[str, Identity] = {
    "B = 0: y is the base's": equations.first_output,
    "B = 0: dA = 0, dB is not": equations.first_gradients,
    "no gradient reaches W and b": equations.frozen_base,
    "unmerging restores every bit": equations.unmerging,
}


def verify(model: Module, loss_fn: Loss, batch: Any) -> VerifyReport:
    """Check LoRA's exact identities on a layer, or on each `LoRALayer` of a model.

    The loss is computed once, on a copy, to record the inputs X of each layer and the gradient G of
    its output. The derivatives of sum(G y) are those of the loss. For these,

    - `dA A^T = B^T dB`, since both are s B^T G^T X A^T;
    - with C invertible, (B C^-1, C A) gives the same y, and the gradients C^-T dA and dB C^T;
    - y, dx, `dA = s B^T dW` and `dB = s dW A^T` are those of x (W + s B A)^T + b;
    - merged and unmerged outputs agree;
    - at B = 0, y is that of the base to the bit, for any A;
    - at B = 0, `dA = 0` exactly, and `dB` is not 0;
    - no gradient reaches W and b, even if both require one;
    - unmerging restores W, b, A, B and the outputs to the bit.

    The first four are checked in float64, where rounding hides nothing, the others in the layer's
    own dtype. In that dtype, y, dx, dA and dB are also compared with those in float64, and merged
    outputs with unmerged ones. The bounds follow from the number of roundings and from the sizes of
    the terms (see `lora.identities.rounding`). Where A and B are such that nothing exceeds its
    bound, as at B = 0, the check is made at random ones; the report says so. With dropout in
    training, all runs drop the same elements.

    If the loss uses A and B in other ways than by calling the layer, such as by a penalty, that is
    ignored. The model is not changed, merged or not: all is done on copies of it, the random
    generators are restored, and nothing gets a gradient. An error that the layer raises in one of
    the checks is passed on, with a note that says which.

    Args:
        model: with adapters, or a LoRALayer.
        loss_fn: called as `loss_fn(model, batch)`; as `loss_fn(model(x), y)` for a batch `(x, y)`,
            if it is a loss of the library or cannot take a model; or as `loss_fn(model(batch))` if
            it takes one argument. It must use the model it is given.
        batch: the data that the loss is computed on.

    Raises:
        TypeError: if `model` is no Module, the loss is no Tensor of floats with one element, or a
            layer returns no Tensor.
        ValueError: if there are no adapters, or a layer returns another shape than `(..., d_out)`.
        RuntimeError: if the model refers to the result of an op, and so cannot be copied.
    """
    if not isinstance(model, Module):
        raise TypeError(f"verify takes a LoRALayer or a model with some, not {model!r:.60}")
    draws = Draws()
    checks: list[IdentityCheck] = []
    uses = _uses(model, loss_fn, batch, draws)
    for name, layer in adapted_layers(model):
        if _is_plain(layer):
            checks += _checks(name, layer, uses[name], draws)
        else:
            checks.append(IdentityCheck(name, "all", "any", 0.0, 0.0, "cannot tell", _NOT_PLAIN))
    return VerifyReport(tuple(checks))


def _is_plain(layer: AdaptedLayer) -> TypeGuard[LoRALayer]:
    """Tell whether a layer is y = x W^T + b + s (x A^T) B^T, as the identities assume."""
    if not (isinstance(layer, LoRALayer) and isinstance(layer.base_weight, Parameter)):
        return False
    if len(layer.active) != 1:
        return False
    adapter = layer.adapters[layer.active[0]]
    plain = adapter.lora_magnitude is None and adapter.start is None
    return plain and not isinstance(layer.bias, TrainedCopy)


def _uses(model: Module, loss_fn: Loss, batch: Any, draws: Draws) -> dict[str, list[Use]]:
    """Record the inputs of each layer, and the gradients of its outputs."""
    adapted_layers(model)
    copied = copy.deepcopy(model)
    found = adapted_layers(copied)
    calls: dict[str, list[tuple[Array, Tensor]]] = {name: [] for name, _ in found}
    for name, layer in found:
        layer.unmerge()
        layer.enabled = True
        if not _is_plain(layer):
            continue
        layer.lora_a.requires_grad_()
        layer.lora_b.requires_grad_()
        vars(layer)["forward"] = _recording(name, layer, calls[name])
    # The checks report what is not finite, so there is no need for warnings.
    with enable_grad(), draws.put_back(), np.errstate(all="ignore"):
        loss = loss_of(copied, loss_fn, batch)
        if loss.requires_grad:
            # Not `backward`: what the loss uses besides the model keeps the gradients it has.
            wanted = [parameter for parameter in copied.parameters() if parameter.requires_grad]
            grad(loss, wanted, allow_unused=True)

    def gradient_of(y: Tensor) -> Array:
        if not y.requires_grad:  # any other gradient will show that the layer has cut it off
            return np.random.default_rng(0).standard_normal(y.shape)
        return np.zeros_like(y.data) if y.grad is None else y.grad.data

    return {name: [(x, gradient_of(y)) for x, y in pairs] for name, pairs in calls.items()}


def _recording(
    name: str, layer: LoRALayer, calls: list[tuple[Array, Tensor]]
) -> Callable[[Any], Tensor]:
    """Make a forward that records its inputs and outputs, and checks their types and shapes."""
    forward = layer.forward

    def recorded(x: Any) -> Tensor:
        y: Any = forward(x)
        if not isinstance(y, Tensor):
            raise TypeError(
                f"{_label(name)} must return a Tensor, as any LoRALayer does, not a "
                f"{type(y).__name__}"
            )
        right = (*np.shape(x)[:-1], layer.d_out)
        if y.shape != right:
            raise ValueError(
                f"{_label(name)}, called on x of shape {np.shape(x)}, must return a Tensor of "
                f"shape {right}, not {y.shape}"
            )
        if is_grad_enabled():  # a checkpoint calls it once without, and again in the backward pass
            if y.requires_grad:
                y.retain_grad()
            calls.append((np.array(x.data if isinstance(x, Tensor) else x), y))
        return y

    return recorded


def _label(name: str) -> str:
    return f"layer {name!r}" if name else "the layer"


def _checks(name: str, layer: LoRALayer, uses: Sequence[Use], draws: Draws) -> list[IdentityCheck]:
    """Check all identities of one layer."""
    own = layer.lora_a.dtype
    listed = [(identity, function, DOUBLE) for identity, function in _IN_DOUBLE.items()]
    if own != DOUBLE:

        def precision(trial: LayerTrial) -> Agreement:
            return equations.precision(trial, LayerTrial(trial.layer, trial.uses, DOUBLE, draws))

        listed += [(_PRECISION, precision, own), (_MERGING, equations.merging, own)]
    listed += [(identity, function, own) for identity, function in _AS_IT_IS.items()]
    return [_check(name, *each, layer, uses, draws) for each in listed]


def _check(
    name: str,
    identity: str,
    function: Identity,
    dtype: np.dtype[Any],
    layer: LoRALayer,
    uses: Sequence[Use],
    draws: Draws,
) -> IdentityCheck:
    """Check one identity at the layer's own A and B, or at random ones where those show nothing."""
    found, note, fits = NOTHING, _obstacle(layer, uses), True
    if note:
        return IdentityCheck(name, identity, str(dtype), 0.0, 0.0, "cannot tell", note)
    try:
        with np.errstate(all="ignore"):  # the verdict reports overflow
            trial = LayerTrial(layer, uses, dtype, draws)
            found = function(trial) if trial.fits() else NOTHING
            if found.verdict == "cannot tell":
                trial = LayerTrial(layer, uses, dtype, draws)
                trial.set(*_random(trial))
                fits = trial.fits()
                found = function(trial) if fits else NOTHING
                note = "at a random A and B"
    except Exception as error:
        error.add_note(f"while lora.verify checked {identity!r} of {_label(name)}")
        raise
    if found.verdict == "cannot tell":
        note = _silence(layer, uses) if fits else f"the numbers exceed {dtype}"
    return IdentityCheck(
        name, identity, str(dtype), found.deviation, found.bound, found.verdict, note
    )


def _obstacle(layer: LoRALayer, uses: Sequence[Use]) -> str:
    """Say why nothing can be checked; empty if it can."""
    if not uses:
        return "the loss does not use it"
    values = {"W": layer.base_weight, "b": layer.bias, "A": layer.lora_a, "B": layer.lora_b}
    arrays: dict[str, list[Any]] = {
        **{name: [value._data] for name, value in values.items() if value is not None},
        "the scale": [layer.scale],
        "x": [x for x, _ in uses],
        "the gradient that arrives": [g for _, g in uses],
    }
    for name, each in arrays.items():
        if not all(np.isfinite(array).all() for array in each):
            return f"{name} is not finite"
    return ""


def _silence(layer: LoRALayer, uses: Sequence[Use]) -> str:
    """Say why there was nothing to compare, even at a random A and B."""
    if not any(g.any() for _, g in uses):
        return "no gradient arrives"
    if layer.scale == 0:
        return "the scale is 0"
    if layer.training and layer.dropout == 1:
        return "dropout leaves nothing"
    return "all is below rounding"


def _random(trial: LayerTrial) -> tuple[Array, Array]:
    """Draw an A and a B whose update changes y by about its own size."""
    layer, rng = trial.layer, np.random.default_rng(0)
    a = rng.standard_normal(layer.lora_a.shape) / np.sqrt(layer.d_in)
    b = rng.standard_normal(layer.lora_b.shape) / np.sqrt(layer.rank)
    x = trial.x.astype(np.float64)

    def mean_size(values: Array) -> float:
        return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0

    update = mean_size(x @ a.T @ b.T) * abs(layer.scale)
    base = mean_size(x @ layer.base_weight.data.T.astype(np.float64))
    base += 0.0 if layer.bias is None else mean_size(layer.bias.data.astype(np.float64))
    factor = np.sqrt((base or 1.0) / (update or 1.0))  # of both, since its square may overflow
    dtype = layer.lora_a.dtype
    return (factor * a).astype(dtype), (factor * b).astype(dtype)
