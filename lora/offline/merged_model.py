"""compare_merged: whether a model in files is a base with the update of an adapter in it.

A layer of the model has a weight M. It should be V = W + dW, rounded to its dtype. If it is not,
the usual mistakes are tried: W + c dW, and W + dW^T. One is found if M is no further from it than
rounding explains, in the Frobenius norm; and no further in the direction of dW, where many
roundings cancel out, so that a wrong scale is seen even if each of them is larger than the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lora.adapter import Adapter
from lora.certificate.rounding import round_to, unit_of
from lora.frozen import Array, strips
from lora.offline.model_folder import ResolvedBase
from lora.offline.stored_weight import StoredWeight, adapter_of
from lora.peft.folder import FLOATS, AdapterFolder
from lora.scaling import LoRAScaling
from lora.spectra import frobenius
from minigrad.io import TensorSet
from minigrad.io.tensor_info import to_stored
from minigrad.progress import progress_bar

RIGHT = "has the update in it"

_SURE = 6.0  # standard deviations of the sum of roundings, beyond which it never is

_DIGITS = {"float16": 11, "bfloat16": 8}  # binary ones; others compute with those of float32

Update = Callable[[slice, slice], Array]


@dataclass(frozen=True)
class MergedLayer:
    """The comparison of a layer of a model with a base and an update of it."""

    name: str  # of the layer
    dtype: str  # in which the model stores it
    ratio: float  # <M - W, dW> / <dW, dW>, near 1
    error: float  # |M - V| / |dW|
    rounding: float  # the largest error that rounding explains
    verdict: str  # RIGHT, or which mistake was made

    @property
    def is_right(self) -> bool:
        """Tell whether the model has the update."""
        return self.verdict == RIGHT


def compare_merged(
    files: AdapterFolder, resolved: ResolvedBase, base: TensorSet, model: TensorSet, progress: bool
) -> tuple[list[MergedLayer], list[tuple[str, str]]]:
    """Compare a model with a base and an adapter.

    Returns:
        The layers with an update; and names of tensors with what is wrong about them.
    """
    layers: list[MergedLayer] = []
    wrong: list[tuple[str, str]] = []
    for layer, weight in progress_bar(
        resolved.weights.items(), what="compare", unit="layer", shown=progress
    ):
        name = weight.name
        info = model.tensors.get(name)
        if info is None:
            wrong.append((name, "is missing in the model"))
        elif info.dtype not in FLOATS or info.shape != base.info(name).shape:
            wrong.append((name, f"is of {info.dtype} and shape {info.shape} in the model"))
        elif not (merged := StoredWeight(model, name, weight.is_transposed)).is_finite():
            wrong.append((name, "has NaN or Inf in it, in the model"))
        else:
            adapter = adapter_of(files, files.layers[layer], weight)
            usual = files.config.scaling.scale(files.config.lora_alpha, files.config.r)
            found = _Comparison(merged, weight, adapter, info.dtype)
            layers.append(found.result(layer, usual))
    adapted = {weight.name for weight in resolved.weights.values()}
    names = [name for name in {**base.tensors, **resolved.replaced} if name not in adapted]
    for name in progress_bar(names, what="compare", unit="tensor", shown=progress):
        key = resolved.replaced.get(name)
        source = base if key is None else files
        if name not in model:
            if not _is_copy(name, base):
                wrong.append((name, "is missing in the model"))
        elif not _is_same(source, key or name, model, name):
            what = "is not that of the base, and the adapter does not change it"
            wrong.append((name, what if key is None else "is not that of the adapter"))
    for name in model:
        if name not in base and name not in names and not _is_copy(name, model):
            wrong.append((name, "is in the model only"))
    return layers, wrong


class _Comparison:
    """A weight M of a model, beside W and the update of an adapter."""

    def __init__(
        self, merged: StoredWeight, weight: StoredWeight, adapter: Adapter, dtype: str
    ) -> None:
        self.merged, self.weight, self.adapter, self.dtype = merged, weight, adapter, dtype
        self.norms = adapter.exact_ratio(weight)
        # Others may compute B A in the dtype of the model.
        a, b = map(frobenius, adapter.exact_factors())
        self.eps = 4 * 2.0 ** -_DIGITS.get(dtype, 24) * abs(adapter.scale) * a * b
        self.ratio = self.error = self.rounding = 0.0

    def update(self, rows: slice, columns: slice) -> Array:
        """Compute some rows and columns of dW."""
        return self.adapter.update(self.weight, rows, columns, self.norms)

    def is_near(self, factor: float, update: Update) -> bool:
        """Tell whether rounding explains the distance of M from W + factor dW."""
        error = units = size = inner = offset = noise = 0.0
        for block in self.weight.blocks():
            w, m, dw = self.weight.rows(*block), self.merged.rows(*block), update(*block)
            v = w + factor * dw
            rounded = round_to(v, self.dtype)
            unit = unit_of(rounded, self.dtype) ** 2
            error += float(((m - v) ** 2).sum())
            units += float(unit.sum())
            size += float((dw**2).sum())
            inner += float(((m - w) * dw).sum())
            offset += float(((m - rounded) * dw).sum())
            noise += float((unit * dw**2).sum()) / 6  # W and the sum may both have been rounded
        size = size or 1.0
        self.ratio, self.error = inner / size, math.sqrt(error / size)
        self.rounding = (math.sqrt(units) + self.eps) / math.sqrt(size)
        within = _SURE * math.sqrt(noise) + self.eps * math.sqrt(size)
        return self.error <= self.rounding and abs(offset) <= within

    def result(self, name: str, usual_scale: float) -> MergedLayer:
        """Find out which update M has."""
        is_right = self.is_near(1.0, self.update)
        figures = self.ratio, self.error, self.rounding
        verdict = RIGHT if is_right else next(self._mistakes(usual_scale), "")
        verdict = verdict or f"differs from the base, and {figures[1]:.3g} |dW| from what it should"
        return MergedLayer(name, self.dtype, *figures, verdict)

    def _mistakes(self, usual_scale: float) -> Iterator[str]:
        """Yield the mistakes that explain M, the likeliest first."""
        adapter, weight, ratio = self.adapter, self.weight, self.ratio
        scaling = LoRAScaling.STANDARD
        if adapter.scaling is scaling:
            scaling = LoRAScaling.RSLORA
        s, other = adapter.scale, scaling.scale(adapter.alpha, adapter.rank)
        lost = f"has the update with another scale than {s:g}: with"
        for factor, mistake in (
            (0.0, "is that of the base, so the update was dropped"),
            (2.0, "has the update in it twice"),
            (1 / s, f"{lost} 1, so it was lost"),
            (other / s, f"{lost} {other:g}, as if the scaling were {scaling.value}"),
            (usual_scale / s, f"{lost} {usual_scale:g}, as if there were no patterns"),
            (-1.0, "has the update subtracted"),
        ):
            if self.is_near(factor, self.update):
                yield mistake

        def transposed(rows: slice, columns: slice) -> Array:
            return self.update(columns, rows).T

        if weight.shape[0] == weight.shape[1] and self.is_near(1.0, transposed):
            yield "has the update in it transposed"
        if adapter.lora_magnitude is not None:
            a, b = adapter.exact_factors()
            plain = Adapter.of(weight, a, b, s)
            if self.is_near(1.0, lambda rows, columns: plain.update(weight, rows, columns)):
                yield "has the update without DoRA's magnitude"
        if self.is_near(ratio, self.update):
            yield f"{lost} {ratio * s:.4g}, which is {ratio:.4g} times it"


def _is_copy(name: str, tensors: TensorSet) -> bool:
    """Tell whether a tensor is a copy of another one, as a tied head, or follows from the sizes."""
    shape = tensors.info(name).shape
    same = [other for other, info in tensors.tensors.items() if info.shape == shape]
    return name.endswith("rotary_emb.inv_freq") or (
        len(shape) == 2
        and any(_is_same(tensors, other, tensors, name) for other in same if other != name)
    )


def _is_same(source: TensorSet | AdapterFolder, key: str, model: TensorSet, name: str) -> bool:
    """Tell whether a tensor of the model has the values of another one, rounded to its dtype."""
    info, own = source.tensors[key], model.info(name)
    if info.shape != own.shape or (info.dtype != own.dtype and info.dtype not in FLOATS):
        return False
    if own.dtype not in FLOATS:  # numpy may lack it
        assert isinstance(source, TensorSet)
        return all(a == b for a, b in zip(source.raw(key), model.raw(name), strict=True))

    def part(rows: slice) -> Array:
        return (
            source.read(key, None, rows)
            if isinstance(source, TensorSet)
            else source.read(key)[rows]
        )

    return all(
        np.array_equal(
            to_stored(part(rows), own.dtype), to_stored(model.read(name, None, rows), own.dtype)
        )
        for rows in strips(info.shape)
    )
