"""compare_tensor: check whether a model in files is a base with the update of an adapter merged.

A layer of the model has a weight M. It should be V = W + dW, rounded to its dtype. Otherwise the
usual mistakes are tried: W + c dW, and W + dW^T. A formula is accepted if rounding explains its
distance from M, both in the Frobenius norm and in the direction of dW. In this direction many
rounding errors cancel, so the check detects a wrong scale even if single rounding errors are larger
than the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from lora.adapter import UNMERGEABLE, Adapter
from lora.certificate.rounding import round_to, unit_of
from lora.frozen import Array, strips
from lora.offline.adapted_base import AdaptedBase
from lora.offline.model_folder import is_computed
from lora.offline.stored_weight import StoredWeight
from lora.peft.folder import FLOATS
from lora.scaling import LoRAScaling
from minigrad.core.tensor import Tensor
from minigrad.io.tensor_file import Tensors
from minigrad.io.tensor_info import to_stored

RIGHT = "has the update in it"
HIDDEN = "looks like the base: the update is too small for the dtype of the model"

_SURE = 6.0  # the sum of rounding errors never exceeds so many standard deviations

_BACKWARD = 32 * 2.0**-24
"""The norm of E relative to W's, where W + E has the singular vectors that float32 gives for W."""

_HIDING = 0.1  # the share of an update that rounding changes at least where it hides the update

_DIGITS = {"float16": 11, "bfloat16": 8}  # binary digits; others compute in float32

Update = Callable[[slice, slice], Array]


@dataclass(frozen=True)
class MergedLayer:
    """The comparison of a layer of a merged model with the base and the update.

    Attributes:
        name: the name of the layer.
        dtype: the dtype in which the model stores the layer.
        ratio: <M - W, dW> / <dW, dW>, near 1 for a right merge.
        error: |M - V| / |dW|.
        rounding: the largest `error` that rounding explains.
        verdict: `RIGHT`, `HIDDEN`, or the mistake that was made.
    """

    name: str
    dtype: str
    ratio: float
    error: float
    rounding: float
    verdict: str


def compare_tensor(base: AdaptedBase, name: str) -> MergedLayer | str:
    """Compare a tensor of the model; return a MergedLayer for an update, or an error message."""
    tensors, files, model = base.tensors, base.files, base.model
    assert model is not None
    if name not in model:
        missing = "is missing in the model"
        if name in base.layers:
            return missing
        key = base.replaced.get(name)
        source = tensors if key is None else files.file
        return "" if _is_copy(source, key or name, model, name) else missing
    if name in base.layers:
        layer, info = base.layers[name], model.info(name)
        if layer in base.grouped:
            return f"cannot have the update of {layer} in it: {UNMERGEABLE}"
        own = tensors.info(name)
        if info.shape == own.shape[::-1] != own.shape:
            return f"is transposed: its shape is {info.shape} in the model, {own.shape} in the base"
        if info.dtype not in FLOATS or info.shape != own.shape:
            text = f"has dtype {info.dtype} and shape {info.shape} in the model"
            return f"{text}, and {own.dtype} and {own.shape} in the base"
        merged = StoredWeight(model, name, base.weights[layer].is_transposed)
        if not merged.is_finite():
            return "has NaN or Inf in it, in the model"
        return _compared(base, layer, merged, info.dtype)
    if name in base.replaced:
        is_same = _is_same(files.file, base.replaced[name], model, name)
        return "" if is_same else "is not that of the adapter"
    if name not in tensors:
        # The head may have stayed that of the base where the embedding was changed.
        is_kept = any(_is_same(tensors, table, model, name) for table in base.tied)
        return "" if is_kept or _is_copy(model, name, model, name) else "is in the model only"
    is_same = _is_same(tensors, name, model, name)
    return "" if is_same else "is not that of the base, and the adapter does not change it"


def _compared(base: AdaptedBase, name: str, merged: StoredWeight, dtype: str) -> MergedLayer:
    """Find the formula that a layer's M, stored in a dtype, fits."""
    weight, adapter = base.weights[name], base.update(name)
    norms, s, (a, b) = adapter.exact_ratio(weight), adapter.scale, adapter.exact_factors()
    # Other programs may compute B A in the dtype of the model.
    size = abs(s) * float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    eps = 4 * 2.0 ** -_DIGITS.get(dtype, 24) * size
    if adapter.lora_magnitude is not None:  # in float32, a sum of d_in squares errs by its root
        norm_of_v = float(np.linalg.norm(adapter.lora_magnitude._data))
        eps += (4 + math.sqrt(weight.shape[1])) * 2.0**-24 * norm_of_v

    def right(rows: slice, columns: slice) -> Array:
        return adapter.update(weight, rows, columns, norms)

    def distance(update: Update, factor: float) -> tuple[bool, tuple[float, float, float]]:
        """Return whether rounding explains M - (W + factor dW), and the numbers of the result."""
        error = units = size = inner = offset = noise = 0.0
        for block in weight.blocks():
            w, m, dw = weight.rows(*block), merged.rows(*block), update(*block)
            v = w + factor * dw
            rounded = round_to(v, dtype)
            unit = unit_of(rounded, dtype) ** 2
            error += float(((m - v) ** 2).sum())
            units += float(unit.sum())
            size += float((dw**2).sum())
            inner += float(((m - w) * dw).sum())
            offset += float(((m - rounded) * dw).sum())
            noise += float((unit * dw**2).sum()) / 6  # W and the sum may both have been rounded
        norm, rounding = math.sqrt(size) or 1.0, math.sqrt(units) + eps
        within = _SURE * math.sqrt(noise) + eps * norm
        is_near = math.sqrt(error) <= rounding and abs(offset) <= within
        return is_near, (inner / norm**2, math.sqrt(error) / norm, rounding / norm)

    is_right, figures = distance(right, 1.0)
    if not is_right and adapter.start is not None:
        eps += _rounding_of_start(weight, s, *adapter.start)
        is_right, figures = distance(right, 1.0)
    ratio, error, _ = figures
    if is_right:  # if little of the update was lost, the base is not as near
        is_hidden = error > _HIDING and distance(right, 0.0)[0]
        return MergedLayer(name, dtype, *figures, HIDDEN if is_hidden else RIGHT)
    kind = next(kind for kind in LoRAScaling if kind is not adapter.scaling)
    other, lost = kind.scale(adapter.alpha, adapter.rank), "has the update with the scale"
    usual = adapter.scaling.scale(base.files.config.lora_alpha, base.files.config.r)
    mistakes: list[tuple[Update, float, str]] = [  # the most likely first
        (right, 0.0, "is that of the base, so the update was dropped"),
        (right, 2.0, "has the update in it twice"),
        (right, 1 / s, f"{lost} 1, so its scale of {s:g} was lost"),
        (right, other / s, f"{lost} {other:g}, not {s:g}, as if the scaling were {kind.value}"),
        (right, usual / s, f"{lost} {usual:g}, not {s:g}, as if there were no patterns"),
        (right, -1.0, "has the update subtracted"),
    ]
    if weight.shape[0] == weight.shape[1]:
        text = "has the update in it transposed"
        mistakes.append((lambda rows, columns: right(columns, rows).T, 1.0, text))
    if norms is not None:
        plain = partial(Adapter.of(weight, a, b, s).update, weight)
        mistakes.append((plain, 1.0, "has the update without DoRA's magnitude"))
    verdict = f"differs by {error:.3g} |dW| from W + dW, and is not the base"
    scaled = (right, ratio, f"{lost} {ratio * s:.4g}, which is {ratio:.4g} times {s:g}")
    for update, factor, text in (*mistakes, scaled):
        if distance(update, factor)[0]:
            alike = [t for u, f, t in mistakes if u is update and math.isclose(f, factor)]
            verdict = ", or ".join(alike or [text])
            break
    return MergedLayer(name, dtype, *figures, verdict)


def _rounding_of_start(
    weight: StoredWeight, scale: float, first_a: Tensor, first_b: Tensor
) -> float:
    """Return how far PiSSA's s B_0 A_0 may be from PEFT's, whose singular vectors are float32's.

    The first r vectors turn towards the others, the more so the less their singular values differ.
    """
    a, b = (part._data.astype(np.float64) for part in (first_a, first_b))
    values = scale * np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=0)
    largest, last = float(values.max()), float(values.min())
    gap = last - float(np.linalg.norm(weight.dense() - scale * (b @ a), 2))
    turn = max(1.0, last / max(gap, _BACKWARD * largest)) if largest else 0.0
    return _BACKWARD * largest * turn


def _is_copy(source: Tensors, key: str, model: Tensors, name: str) -> bool:
    """Return whether the model has a tensor under another name (a tied head), or needs none."""
    others = [o for o in model if o != name and _may_be_tied(name, o, len(model.info(o).shape))]
    return is_computed(name, len(source.info(key).shape)) or any(
        _is_same(source, key, model, other) for other in others
    )


def _may_be_tied(one: str, other: str, axes: int) -> bool:
    """Return whether a matrix or a bias may be another one too.

    Many biases are equal, because they are all zeros. So a bias is tied only to that of a module
    around its own: the bias of BERT's decoder is also that of the predictions.
    """
    outer, inner = sorted((one, other), key=len)
    module, _, last = outer.rpartition(".")
    is_around = last == inner.rpartition(".")[2] == "bias" and inner.startswith(f"{module}.")
    return axes == 2 or (module != "" and is_around)


def _is_same(source: Tensors, key: str, model: Tensors, name: str) -> bool:
    """Return whether a tensor of the model equals another tensor, rounded to its dtype."""
    info, own = source.info(key), model.info(name)
    if info.shape != own.shape or (info.dtype != own.dtype and info.dtype not in FLOATS):
        return False
    if own.dtype not in FLOATS:  # numpy may not have this dtype
        pairs = zip(source.raw(key), model.raw(name), strict=True)
        return info.dtype == own.dtype and all(one == other for one, other in pairs)
    return all(
        np.array_equal(
            to_stored(source.read(key, None, rows), own.dtype),
            to_stored(model.read(name, None, rows), own.dtype),
            equal_nan=True,
        )
        for rows in strips(info.shape)
    )
