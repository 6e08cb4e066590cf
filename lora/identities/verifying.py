"""verify: check a LoRA layer by identities that hold for every loss; and the report.

Finite differences can check a derivative, but are never exact. The structure of LoRA gives exact
equations between its gradients, which hold up to rounding, or in every bit, for any loss. A missing
scale, a missing branch, a wrong transpose, or a gradient that leaks into the base breaks at least
one of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeGuard

import numpy as np

from lora.adapted_layer import AdaptedLayer
from lora.attachment.state import adapted_layers
from lora.frozen import Array, TrainedCopy
from lora.identities import equations
from lora.identities.trial import DOUBLE, NOTHING, Agreement, LayerTrial, Use, Verdict
from lora.linear import LoRALayer
from minigrad.core.backward import grad
from minigrad.core.grad_mode import enable_grad, is_grad_enabled
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.loss_call import Loss, loss_of
from minigrad.errors import named_errors
from minigrad.nn import Module, Parameter
from minigrad.tables import aligned, as_html, counted
from minigrad.transforms.checkpoint import Draws

Identity = Callable[[LayerTrial], Agreement]

_NOT_PLAIN = (
    "the identities are those of one LoRA update of a dense linear layer; for DoRA, PiSSA, trained "
    "biases, NF4, bfloat16, embeddings, convolutions and several active adapters there is gradcheck"
)

# These are checked in double precision, because single precision would hide small errors.
_IN_DOUBLE: dict[str, Identity] = {
    "dA A^T = B^T dB": equations.inner_products,
    "y, dA, dB under (B C^-1, C A)": equations.change_of_basis,
    "y, dx, dA, dB of x (W + s B A)^T + b": equations.composition,
    "merged y = unmerged y": equations.merging,
}
_IN_LOWER_PRECISION: dict[str, Identity] = {
    "y, dx, dA, dB as in float64": equations.precision,
    "merged y = unmerged y": equations.merging,
}
_AS_IT_IS: dict[str, Identity] = {
    "B = 0: y is the base's": equations.first_output,
    "B = 0: dA = 0, dB is not": equations.first_gradients,
    "no gradient reaches W and b": equations.frozen_base,
    "unmerging restores every bit": equations.unmerging,
}


@named_errors
def verify(model: Module, loss_fn: Loss, batch: Any) -> VerifyReport:
    """Check LoRA's exact identities on a layer, or on each `LoRALayer` of a model.

    `verify` computes the loss once, on a copy, and records the inputs X of each layer and the
    gradient G of its output. The derivatives of sum(G y) equal those of the loss. The checks are:

    - `dA A^T = B^T dB`, because both are s B^T G^T X A^T;
    - with C invertible, (B C^-1, C A) gives the same y, and the gradients C^-T dA and dB C^T;
    - y, dx, `dA = s B^T dW` and `dB = s dW A^T` equal those of x (W + s B A)^T + b;
    - merged and unmerged outputs agree;
    - at B = 0, y equals the output of the base in every bit, for any A;
    - at B = 0, `dA = 0` exactly, and `dB` is not 0;
    - no gradient reaches W and b, even if both require one;
    - unmerging restores W, b, A, B and the outputs in every bit.

    The first four are checked in float64, where rounding hides no error, the others in the layer's
    own dtype. In that dtype, y, dx, dA and dB are also compared with those in float64, and merged
    outputs with unmerged ones. The bounds follow from the number of roundings and from the sizes of
    the terms (see `lora.identities.trial`). If all numbers are below their bounds, as at B = 0, the
    check uses random A and B, and the report says so. With dropout in training, all runs drop the
    same elements.

    If the loss uses A and B other than by calling the layer, as in a penalty, this use is ignored.
    The model is not changed, merged or not: all checks run on copies, the random generators are
    restored, and no tensor gets a gradient.

    Args:
        model: a model with adapters, or a LoRALayer.
        loss_fn: called as `loss_fn(model, batch)`; as `loss_fn(model(x), y)` for a batch `(x, y)`,
            if it is a loss of the library or cannot accept a model; or as `loss_fn(model(batch))`
            if it has one argument. It must use the model that it is called with.
        batch: the data on which the loss is computed.

    Raises:
        TypeError: if `model` is not a Module, or the loss is not a float Tensor with one element.
        ValueError: if there are no adapters.
        RuntimeError: if the model cannot be copied: inside of `lora.disabled`, or because it refers
            to the result of an op.
    """
    layers, draws = adapted_layers(model), Draws()
    checks: list[IdentityCheck] = []
    uses = _uses(model, loss_fn, batch, draws)
    for name, layer in layers:
        checks += _checks(name, layer, uses[name], draws)
    return VerifyReport(tuple(checks))


_COLUMNS = ("layer", "identity", "in", "deviation", "bound", "verdict")


@dataclass(frozen=True)
class IdentityCheck:
    """One identity of one layer, or all of them if none can be checked, for one reason.

    Attributes:
        layer: the name of the layer in the model.
        identity: the name of the identity; "all" if none can be checked.
        dtype: the precision in which it was computed; "any" if none can be checked.
        deviation: the difference with the largest ratio to its bound.
        bound: the largest difference that rounding explains there; 0 if the identity is exact.
        verdict: "holds", "fails", or "cannot tell" if all compared numbers are below the rounding
            bound, or there are none.
        note: which A and B were used, if not the layer's own; or why there is no verdict.
    """

    layer: str
    identity: str
    dtype: str
    deviation: float
    bound: float
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True, repr=False)
class VerifyReport:
    """The report of `verify`, which is true only if every identity of every layer holds.

    It prints as a sentence and a table: layer, identity, precision, the largest deviation, the
    rounding bound, and the verdict. `checks` are the rows.
    """

    checks: tuple[IdentityCheck, ...]

    @property
    def failed(self) -> list[IdentityCheck]:
        """The identities that do not hold."""
        return [check for check in self.checks if check.verdict == "fails"]

    @property
    def undecided(self) -> list[IdentityCheck]:
        """The identities that could not be checked."""
        return [check for check in self.checks if check.verdict == "cannot tell"]

    @property
    def verdict(self) -> Verdict:
        """One of "holds", "fails" and "cannot tell"."""
        if self.failed:
            return "fails"
        return "cannot tell" if self.undecided or not self.checks else "holds"

    def __bool__(self) -> bool:
        return self.verdict == "holds"

    @property
    def sentence(self) -> str:
        """The result in a sentence."""
        layers = list(dict.fromkeys(check.layer for check in self.checks))
        what = f"{len(self.checks)} checks of {counted(len(layers), 'layer')}"
        if self.verdict == "holds":
            return f"LoRA's identities hold: {what}."
        found = [f"{len(self.failed)} fail"] * bool(self.failed)
        found += [f"{len(self.undecided)} have no verdict"] * bool(self.undecided)
        return f"LoRA's identities: of {what}, {' and '.join(found)}."

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The rows of the table: one for each check.

        If there are several layers, a layer in which every identity holds has a single row.
        """
        rows: list[tuple[str, ...]] = []
        layers = list(dict.fromkeys(check.layer for check in self.checks))
        for layer in layers:
            checks = [check for check in self.checks if check.layer == layer]
            if len(layers) > 1 and all(check.verdict == "holds" for check in checks):
                nearest = max(checks, key=lambda c: c.deviation / c.bound if c.bound else 0.0)
                what = f"all {len(checks)}, nearest: {nearest.identity}"
                checks = [replace(nearest, identity=what)]
            for c in checks:
                figures = c.dtype, f"{c.deviation:.2g}", f"{c.bound:.2g}"
                verdict = f"{c.verdict} ({c.note})" if c.note else c.verdict
                rows.append((layer or "the layer", c.identity, *figures, verdict))
        return rows

    def __repr__(self) -> str:
        return "\n".join([self.sentence, *aligned(_COLUMNS, self.rows)])

    def _repr_html_(self) -> str:
        return as_html(self.sentence, _COLUMNS, self.rows)


def _is_plain(layer: AdaptedLayer) -> TypeGuard[LoRALayer]:
    """Return whether a layer is y = x W^T + b + s (x A^T) B^T, as the identities assume."""
    is_dense = isinstance(layer, LoRALayer) and isinstance(layer.base_weight, Parameter)
    if not is_dense or len(layer.active) != 1 or isinstance(layer.bias, TrainedCopy):
        return False
    adapter = layer.adapters[layer.active[0]]
    return adapter.lora_magnitude is None and adapter.start is None


def _uses(model: Module, loss_fn: Loss, batch: Any, draws: Draws) -> dict[str, list[Use]]:
    """Record the inputs of each layer, and the gradients of its outputs, on a copy of the model."""
    copied = copy.deepcopy(model)
    calls: dict[str, list[tuple[Array, Tensor]]] = {}
    for name, layer in adapted_layers(copied):
        calls[name] = []
        layer.unmerge()
        layer.enabled = True
        if _is_plain(layer):
            layer.lora_a.requires_grad_()
            layer.lora_b.requires_grad_()
            vars(layer)["forward"] = partial(_recorded, layer.forward, calls[name])
    # No numpy warnings: the checks report numbers that are not finite.
    with enable_grad(), draws.put_back(), np.errstate(all="ignore"):
        loss = loss_of(copied, loss_fn, batch)
        if loss.requires_grad:
            # Not `backward`, which would add gradients to other tensors that the loss uses.
            grad(loss, copied.trainable_parameters(), allow_unused=True)

    def gradient_of(y: Tensor) -> Array:
        if not y.requires_grad:  # the layer detached y: a random gradient shows the error
            return np.random.default_rng(0).standard_normal(y.shape)
        return np.zeros_like(y.data) if y.grad is None else y.grad.data

    return {name: [(x, gradient_of(y)) for x, y in pairs] for name, pairs in calls.items()}


def _recorded(
    forward: Callable[[Any], Tensor], calls: list[tuple[Array, Tensor]], x: Any
) -> Tensor:
    """Call a forward function, and record its input and output."""
    y = forward(x)
    if is_grad_enabled():  # with a checkpoint, record only the second call
        if y.requires_grad:
            y.retain_grad()
        calls.append((np.array(x.data if isinstance(x, Tensor) else x), y))
    return y


def _checks(name: str, layer: Any, uses: Sequence[Use], draws: Draws) -> Iterator[IdentityCheck]:
    """Check all identities of one layer."""
    if obstacle := _obstacle(layer, uses):
        yield IdentityCheck(name, "all", "any", 0.0, 0.0, "cannot tell", obstacle)
        return
    own = layer.lora_a.dtype
    in_own = _AS_IT_IS if own == DOUBLE else _IN_LOWER_PRECISION | _AS_IT_IS
    listed = [(DOUBLE, *each) for each in _IN_DOUBLE.items()]
    listed += [(own, *each) for each in in_own.items()]
    for dtype, identity, function in listed:
        with np.errstate(all="ignore"):  # the verdict reports overflow
            found, note = _compare(function, layer, uses, dtype, draws)
        figures = found.deviation, found.bound, found.verdict
        yield IdentityCheck(name, identity, str(dtype), *figures, note)


def _obstacle(layer: AdaptedLayer, uses: Sequence[Use]) -> str:
    """Return the reason why nothing can be checked; empty if there is none."""
    if not _is_plain(layer):
        return _NOT_PLAIN
    if not uses:
        return "the loss does not use it"
    values = {"W": layer.base_weight, "b": layer.bias, "A": layer.lora_a, "B": layer.lora_b}
    named = [(name, value._data) for name, value in values.items() if value is not None]
    named += [("x", x) for x, _ in uses] + [("the gradient that arrives", g) for _, g in uses]
    broken = next((name for name, array in named if not np.isfinite(array).all()), "")
    return f"{broken} is not finite" if broken else ""


def _compare(
    function: Identity, layer: LoRALayer, uses: Sequence[Use], dtype: np.dtype[Any], draws: Draws
) -> tuple[Agreement, str]:
    """Check an identity at the layer's own A and B, or at random ones if those give no verdict.

    The second result is the note, which says which A and B were used, or why there is no verdict.
    """
    for note in ("", "at a random A and B"):
        trial = LayerTrial(layer, uses, dtype, draws)
        if note:
            trial.set_random()
        fits = trial.fits()
        found = function(trial) if fits else NOTHING
        if found.verdict != "cannot tell":
            return found, note
    reasons = {
        f"the numbers exceed {dtype}": not fits,
        "no gradient arrives": not any(g.any() for _, g in uses),
        "the scale is 0": layer.scale == 0,
        "dropout leaves nothing": layer.training and layer.dropout == 1,
    }
    return found, next((why for why, is_so in reasons.items() if is_so), "all is below rounding")
