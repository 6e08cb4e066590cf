"""Is a LoRA layer what it says it is? Check the identities that hold for every loss.

A derivative can be compared with differences, which are never exact. LoRA's structure gives more:
equations between its gradients that hold to rounding, or to the bit, whatever the loss. A scale
that is missing somewhere, a branch that is dropped, a transpose, or a gradient that leaks into the
base breaks one of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np

from lora.adapted import AdaptedLayer
from lora.attachment.record import adapted_layers
from lora.full_copies import Whole
from lora.layer import LoRALayer
from lora.verify import identities
from lora.verify.checks import Check, VerifyReport
from lora.verify.rounding import NOTHING, Array, Comparison
from lora.verify.subject import Subject, Use
from minigrad.core.backward import grad
from minigrad.core.grad_mode import enable_grad, is_grad_enabled
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.loss_call import Loss, loss_of
from minigrad.diagnostics.rng_state import Draws
from minigrad.nn import Module, Parameter

Identity = Callable[[Subject], Comparison]

DOUBLE = np.dtype(np.float64)

_NOT_PLAIN = (
    "the identities are those of one LoRA update of a dense linear layer; for DoRA, PiSSA, trained "
    "biases, NF4, embeddings and several active adapters there is gradcheck"
)
_PRECISION = "y, dx, dA, dB as in float64"
_MERGING = "merged y = unmerged y"

# Rounding of single precision would hide small errors in these, and they are the same formulas.
_IN_DOUBLE: dict[str, Identity] = {
    "dA A^T = B^T dB": identities.inner_products,
    "y, dA, dB under (B C^-1, C A)": identities.change_of_basis,
    "y, dx, dA, dB of x (W + s B A)^T + b": identities.composition,
    _MERGING: identities.merging,
}
_AS_IT_IS: dict[str, Identity] = {
    "B = 0: y is the base's": identities.first_output,
    "B = 0: dA = 0, dB is not": identities.first_gradients,
    "no gradient reaches W and b": identities.frozen_base,
    "unmerging restores every bit": identities.unmerging,
}


def verify(model: Module, loss_fn: Loss, batch: Any) -> VerifyReport:
    """Check LoRA's exact identities on a layer, or on each `LoRALayer` of a model.

    The loss is computed once, on a copy, to see what each layer is called on, X, and what gradient
    G arrives at its output. With the derivatives of sum(G y) then, which are those of the loss,

    - `dA A^T = B^T dB`, for both are s B^T G^T X A^T;
    - with C invertible, (B C^-1, C A) gives the same y, and the gradients C^-T dA and dB C^T;
    - y, dx, `dA = s B^T dW` and `dB = s dW A^T` are those of x (W + s B A)^T + b;
    - merged and unmerged outputs agree;
    - at B = 0, y is that of the base to the bit, for any A;
    - at B = 0, `dA = 0` exactly, and `dB` is not 0;
    - no gradient reaches W and b, though both are told to require one;
    - unmerging gives W, b, A, B and the outputs back to the bit.

    The first four are checked in float64, where rounding hides nothing, the others in the layer's
    own dtype. In that, y, dx, dA and dB are compared with those in float64 as well, and merged
    outputs with unmerged ones. The bounds follow from the number of roundings and from the sizes of
    the terms (see `lora.verify.rounding`). Where A and B are such that nothing exceeds its bound,
    as at B = 0, the check is made at random ones; the report says so. With dropout in training, all
    runs drop the same elements.

    What the loss does with A and B besides calling the layer, such as a penalty on them, is not
    looked at. The model is not changed, merged or not: all is done on copies of it, the generators
    that are drawn from are set back, and nothing gets a gradient. An error that the layer raises in
    one of the checks is passed on, with a note that says which.

    Args:
        model: with adapters, or a LoRALayer.
        loss_fn: called in one of these ways: `loss_fn(model, batch)`; `loss_fn(model(x), y)` for a
            batch `(x, y)`, if it is a loss of the library or cannot take a model; or
            `loss_fn(model(batch))` if it takes one argument. It must use the model it is handed.
        batch: what the loss is computed on.

    Raises:
        TypeError: if `model` is no Module, the loss is no Tensor of floats with one element, or a
            layer returns no Tensor.
        ValueError: if there are no adapters, or a layer returns another shape than `(..., d_out)`.
        RuntimeError: if the model holds the result of an op, and so cannot be copied.
    """
    if not isinstance(model, Module):
        raise TypeError(f"verify takes a LoRALayer or a model with some, not {model!r:.60}")
    draws = Draws()
    checks: list[Check] = []
    uses = _uses(model, loss_fn, batch, draws)
    for name, layer in adapted_layers(model):
        if _is_plain(layer):
            checks += _checks(name, layer, uses[name], draws)
        else:
            checks.append(Check(name, "all", "any", 0.0, 0.0, "cannot tell", _NOT_PLAIN))
    return VerifyReport(tuple(checks))


def _is_plain(layer: AdaptedLayer) -> TypeGuard[LoRALayer]:
    """Whether it is y = x W^T + b + s (x A^T) B^T, of which the identities speak."""
    if not (isinstance(layer, LoRALayer) and isinstance(layer.base_weight, Parameter)):
        return False
    if len(layer.active) != 1:
        return False
    adapter = layer.adapters[layer.active[0]]
    plain = adapter.lora_magnitude is None and adapter.start is None
    return plain and not isinstance(layer.bias, Whole)


def _uses(model: Module, loss_fn: Loss, batch: Any, draws: Draws) -> dict[str, list[Use]]:
    """What each layer is called on, and the gradient that arrives at its output."""
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
        vars(layer)["forward"] = _noting(name, layer, calls[name])
    # What is not finite is told by the checks, not by warnings.
    with enable_grad(), draws.put_back(), np.errstate(all="ignore"):
        loss = loss_of(copied, loss_fn, batch)
        if loss.requires_grad:
            # Not `backward`: what the loss uses besides the model keeps the gradients it has.
            wanted = [parameter for parameter in copied.parameters() if parameter.requires_grad]
            grad(loss, wanted, allow_unused=True)
    return {name: [(x, _arrived(y)) for x, y in calls[name]] for name in calls}


def _arrived(y: Tensor) -> Array:
    """The gradient of an output. Where the layer has cut it off, any other shows that it did."""
    if not y.requires_grad:
        return np.random.default_rng(0).standard_normal(y.shape)
    return np.zeros_like(y.data) if y.grad is None else y.grad.data


def _noting(
    name: str, layer: LoRALayer, calls: list[tuple[Array, Tensor]]
) -> Callable[[Any], Tensor]:
    forward = layer.forward

    def noted(x: Any) -> Tensor:
        y = forward(x)
        _check_result(name, layer, x, y)
        if is_grad_enabled():  # a checkpoint calls it once without, and again in the backward pass
            if y.requires_grad:
                y.retain_grad()
            calls.append((np.array(x.data if isinstance(x, Tensor) else x), y))
        return y

    return noted


def _check_result(name: str, layer: LoRALayer, x: Any, y: Any) -> None:
    """Refuse a layer that does not return one vector for each that it is called on."""
    if not isinstance(y, Tensor):
        raise TypeError(
            f"{_named(name)} must return a Tensor, as any LoRALayer does, not a {type(y).__name__}"
        )
    right = (*np.shape(x)[:-1], layer.d_out)
    if y.shape != right:
        raise ValueError(
            f"{_named(name)}, called on x of shape {np.shape(x)}, must return a Tensor of shape "
            f"{right}, not {y.shape}"
        )


def _named(name: str) -> str:
    return f"layer {name!r}" if name else "the layer"


def _checks(name: str, layer: LoRALayer, uses: Sequence[Use], draws: Draws) -> list[Check]:
    own = layer.lora_a.dtype
    checks = []
    for identity, function in _IN_DOUBLE.items():
        checks.append(_check(name, identity, function, layer, uses, DOUBLE, draws))
    if own != DOUBLE:

        def precision(subject: Subject) -> Comparison:
            wide = Subject(subject.layer, subject.uses, DOUBLE, draws)
            return identities.precision(subject, wide)

        checks.append(_check(name, _PRECISION, precision, layer, uses, own, draws))
        checks.append(_check(name, _MERGING, identities.merging, layer, uses, own, draws))
    for identity, function in _AS_IT_IS.items():
        checks.append(_check(name, identity, function, layer, uses, own, draws))
    return checks


def _check(
    name: str,
    identity: str,
    function: Identity,
    layer: LoRALayer,
    uses: Sequence[Use],
    dtype: np.dtype[Any],
    draws: Draws,
) -> Check:
    """One identity at the layer's own A and B, or at random ones where those can tell nothing."""
    note = _obstacle(layer, uses)
    if note:
        return Check(name, identity, str(dtype), 0.0, 0.0, "cannot tell", note)
    try:
        with np.errstate(all="ignore"):  # what overflows is told by the verdict
            subject = Subject(layer, uses, dtype, draws)
            comparison = function(subject) if subject.fits() else NOTHING
            if comparison.verdict == "cannot tell":
                subject = Subject(layer, uses, dtype, draws)
                subject.set(*_random(subject))
                fits = subject.fits()
                comparison = function(subject) if fits else NOTHING
                note = "at a random A and B"
    except Exception as error:
        error.add_note(f"while lora.verify checked {identity!r} of {_named(name)}")
        raise
    if comparison.verdict == "cannot tell":
        note = _silence(layer, uses) if fits else f"the numbers exceed {dtype}"
    return Check(
        name,
        identity,
        str(dtype),
        comparison.deviation,
        comparison.bound,
        comparison.verdict,
        note,
    )


def _obstacle(layer: LoRALayer, uses: Sequence[Use]) -> str:
    """Why nothing can be checked, or nothing."""
    if not uses:
        return "the loss does not use it"
    values = {"W": layer.base_weight, "b": layer.bias, "A": layer.lora_a, "B": layer.lora_b}
    numbers: dict[str, list[Any]] = {
        **{name: [value._data] for name, value in values.items() if value is not None},
        "the scale": [layer.scale],
        "x": [x for x, _ in uses],
        "the gradient that arrives": [g for _, g in uses],
    }
    for name, arrays in numbers.items():
        if not all(np.isfinite(array).all() for array in arrays):
            return f"{name} is not finite"
    return ""


def _silence(layer: LoRALayer, uses: Sequence[Use]) -> str:
    """Why there was nothing to compare, nor at a random A and B."""
    if not any(g.any() for _, g in uses):
        return "no gradient arrives"
    if layer.scale == 0:
        return "the scale is 0"
    if layer.training and layer.dropout == 1:
        return "dropout leaves nothing"
    return "all is below rounding"


def _random(subject: Subject) -> tuple[Array, Array]:
    """An A and a B whose update changes y by about as much as W and b make of it."""
    layer, rng = subject.layer, np.random.default_rng(0)
    a = rng.standard_normal(layer.lora_a.shape) / np.sqrt(layer.d_in)
    b = rng.standard_normal(layer.lora_b.shape) / np.sqrt(layer.rank)
    x = subject.x.astype(np.float64)
    update = _mean_size(x @ a.T @ b.T) * abs(layer.scale)
    base = _mean_size(x @ layer.base_weight.data.T.astype(np.float64))
    base += 0.0 if layer.bias is None else _mean_size(layer.bias.data.astype(np.float64))
    factor = np.sqrt(
        (base or 1.0) / (update or 1.0)
    )  # of both, for a dtype may not hold its square
    dtype = layer.lora_a.dtype
    return (factor * a).astype(dtype), (factor * b).astype(dtype)


def _mean_size(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0
