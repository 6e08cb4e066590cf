"""AdaptedLayer: a frozen layer, and the updates of its weight by named adapters.

All adapters share one W. Merging computes W + dW_1 + dW_2 + ... once and keeps W, so a call costs
no more than a call of the base. Unmerging restores every bit; subtracting dW would not, because
(w + d) - d is not always w in floating point.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, Self, TypeVar

import numpy as np

from lora.adapter import DEFAULT, UNMERGEABLE, Adapter, check_names, joined
from lora.frozen import Array, DenseMatrix, LayerMatrix, NarrowFrozenMatrix, frozen_bias
from lora.liveness import AdapterPart
from minigrad import functional, ops
from minigrad.core.grad_mode import observed
from minigrad.core.observers import is_differentiated
from minigrad.core.tensor import Tensor
from minigrad.nn import Module, Parameter
from minigrad.versions import clock, last_written

M = TypeVar("M", bound=Module)


def _of_adapter(name: str, doc: str, settable: bool = True) -> Any:
    """Make a property that reads and sets an attribute of the adapter `AdaptedLayer.adapter`."""

    def assign(layer: AdaptedLayer, value: Any) -> None:
        if not settable:
            raise AttributeError(
                f"{name} cannot be assigned; make another adapter, or assign `scale`, the factor "
                f"of B A that follows from rank, alpha and scaling"
            )
        setattr(layer.adapter, name, value)

    return property(attrgetter(f"adapter.{name}"), assign, doc=doc)


class AdaptedLayer(Module):
    """A layer with adapters: the base class of `LoRALayer`, `LoRAConv` and `LoRAEmbedding`.

        W' = W + dW_1 + dW_2 + ...          over the active adapters

    W is frozen, and nothing writes to it. For dW see `lora.Adapter`. The properties `lora_a`,
    `lora_b`, `scale` and so on are those of the only active adapter, or of the only one at all;
    with several, they raise an AttributeError.

    Attributes:
        base_weight: the weight of the original layer, frozen.
        bias: the bias of the original layer, or the copy of it that an adapter trains, or None.
        adapters: all adapters, by name.
        active: the names of the active adapters.
        enabled: False inside of `lora.disabled`, where the layer computes without adapters.
        is_attached: whether `lora.attach` has put the layer into a model.
    """

    lora_a = _of_adapter("lora_a", "A, `(rank, d_in)`. An assignment copies the values.")
    lora_b = _of_adapter("lora_b", "B, `(d_out, rank / groups)`. An assignment copies the values.")
    lora_magnitude = _of_adapter("lora_magnitude", "DoRA's m, or None. Assignments copy values.")
    scale = _of_adapter("scale", "The factor of B A.")
    dropout = _of_adapter("dropout", "The probability of dropping an element of x, in training.")
    rng = _of_adapter("rng", "The generator that draws A, B and dropout; or None.")
    rank = _of_adapter("rank", "The rank of B A.", settable=False)
    alpha = _of_adapter("alpha", "The alpha of the first scale; assign `scale` instead.", False)
    scaling = _of_adapter("scaling", "The formula of the first scale, by alpha and rank.", False)

    base_weight: Any
    bias: Parameter | None
    is_attached: bool = False
    _dtype: Any = None  # the dtype of A, B and results, if the weight is in few bits

    def __init__(self, base_weight: Any, bias: Parameter | None) -> None:
        self.base_weight = base_weight
        self.bias = bias
        self.adapters: dict[str, Adapter] = {}
        self.active: tuple[str, ...] = ()
        self.enabled = True
        self._paused: list[bool] = []
        self._merged: MergedWeight | None = None
        self._seen = SimpleNamespace(stored=None, matrix=None)  # walks over a model skip it

    @classmethod
    def around(cls, layer: Any) -> Self:
        """Make a layer without an adapter, which shares the parameters of `layer`."""
        made = cls.__new__(cls)
        AdaptedLayer.__init__(made, layer.weight, getattr(layer, "bias", None))
        made._dtype = getattr(layer, "dtype", None)
        made.training = layer.training
        return made

    # What each kind of layer defines:

    @abstractmethod
    def base(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """Compute the original layer with this weight, which is given as the layer stores it."""

    @abstractmethod
    def plain(self) -> Module:
        """Make a plain layer with the merged weight; it shares no memory with this one.

        A RuntimeError is raised if the layer is merged, and A, B, W or the scale has changed since.
        """

    def _plain(self, kind: type[M], **options: Any) -> M:
        """Make a layer of this kind and mode, with the merged weight and options as attributes."""
        self._check_fresh()
        made = kind.__new__(kind)
        weight = Parameter(self.merged_weight())
        vars(made).update(weight=weight, training=self.training, **options)
        return made

    def weight_of(self, stored: Any) -> LayerMatrix:
        """Return W, `(d_out, d_in)`, for a weight that is given as the layer stores it."""
        if isinstance(stored, np.ndarray):
            return DenseMatrix(stored)
        return NarrowFrozenMatrix(stored, self._dtype)

    def product(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Multiply x by a matrix `(n, d_in)` that may require a gradient: `(..., n)`."""
        return ops.linear(x, matrix)

    def times_b(self, h: Tensor, b: Tensor) -> Tensor:
        """Multiply h, `(..., n)`, the result of `product`, by a matrix B `(d_out, n)`."""
        return ops.linear(h, b)

    def broadcast_outputs(self, values: Tensor) -> Tensor:
        """Reshape numbers `(d_out,)` so that they broadcast with the outputs."""
        return values

    def dropped(self, x: Tensor, adapter: Adapter) -> tuple[Tensor, Tensor | None]:
        """Apply dropout: return x after dropout, and a factor for each output, or None."""
        return functional.dropout(x, adapter.dropout, rng=adapter.rng), None

    def stored(self, matrix: Array) -> Array:
        """Return a matrix `(d_out, d_in)` as the layer stores its weight."""
        return matrix

    def base_facts(self) -> list[str]:
        """Describe the base in short texts, without its sizes, such as "NF4"."""
        format = getattr(self.base_weight, "format", None)
        return [] if format is None else ["NF4" if format == "nf4" else format]

    def __getstate__(self) -> Any:
        """Return the state for copies and pickles; a RuntimeError inside of `lora.disabled`."""
        if self._paused:
            raise RuntimeError(
                "a model can be neither copied nor pickled inside of lora.disabled(model), whose "
                "end would not reach the copy; leave the block first"
            )
        return super().__getstate__()

    def _contents(self) -> Iterable[tuple[str, Any]]:
        yield from super()._contents()
        for name, adapter in self.adapters.items():
            prefix = "" if name == DEFAULT else f"{name}."
            for key, part in adapter.contents():
                yield prefix + key, part

    def _generators(self) -> Iterable[np.random.Generator]:
        yield from super()._generators()
        # Without dropout, an adapter draws only its first A, so its generator is not listed.
        yield from (a.rng for a in self.adapters.values() if a.rng is not None and a.dropout)

    @property
    def adapter(self) -> Adapter:
        """The only active adapter, or else the only one; an AttributeError if there are several."""
        names = self.active if len(self.active) == 1 else tuple(self.adapters)
        if len(names) != 1:
            raise AttributeError(
                f"the layer has the adapters {', '.join(self.adapters) or '(none)'}, active are "
                f"{', '.join(self.active) or 'none'}; say which one: layer.adapters[name].lora_a"
            )
        return self.adapters[names[0]]

    @property
    def weight(self) -> LayerMatrix:
        """W, `(d_out, d_in)`, with the operations that adapters need.

        The rows of a grouped convolution are `(d_out, d_in / groups)`.
        """
        stored = getattr(self.base_weight, "_data", self.base_weight)
        if self._seen.stored is not stored or self._seen.matrix is None:
            self._seen = SimpleNamespace(stored=stored, matrix=self.weight_of(stored))
        matrix: LayerMatrix = self._seen.matrix
        return matrix

    @property
    def d_in(self) -> int:
        """The size of an input vector."""
        return self.weight.shape[1] * self.weight.groups

    @property
    def d_out(self) -> int:
        """The size of an output vector."""
        return self.weight.shape[0]

    def trainable_params(self) -> list[Parameter]:
        """Return the parameters of the active adapters: A, B and, for DoRA, the magnitude."""
        return [part for name in self.active for part in self.adapters[name].trained()]

    def add(self, name: str, adapter: Adapter) -> None:
        """Add another adapter to the layer, which is not active yet.

        A ValueError is raised if the layer has an adapter of this name.
        """
        if name in self.adapters:
            raise ValueError(f"there is an adapter {name!r} already")
        self.adapters[name] = adapter

    def check_leaves_merged(self, names: Iterable[str]) -> None:
        """Raise a ValueError if an adapter that is merged is not among these names."""
        if left := [name for name in self.merged_adapters if name not in names]:
            raise ValueError(
                f"adapter {', '.join(map(repr, left))} is merged, and its update would stay in the "
                f"weight; call lora.unmerge(model) or layer.unmerge() first"
            )

    def remove(self, name: str) -> None:
        """Remove an adapter; a ValueError if the name is unknown, or the adapter is merged."""
        check_names([name], self.adapters)
        self.check_leaves_merged(self.adapters.keys() - {name})
        del self.adapters[name]
        self.active = tuple(other for other in self.active if other != name)

    def use(self, names: Sequence[str]) -> None:
        """Make these adapters active, and no others.

        A ValueError is raised if a name is unknown or repeated, or an adapter that is merged would
        become inactive.
        """
        names = tuple(names)
        check_names(names, self.adapters)
        self.check_leaves_merged(names)
        self.active = names

    def pause(self) -> None:
        """Turn all adapters off until `resume`; pauses can be nested."""
        self._paused.append(self.enabled)
        self.enabled = False

    def resume(self) -> None:
        """Undo one `pause`. Undoing the last one restores `enabled`."""
        self.enabled = self._paused.pop()

    def liveness_parts(self) -> list[AdapterPart]:
        """Return the parts that `minigrad.liveness` reports: the active adapters, or the only one.

        See `lora.liveness`.
        """
        names = tuple(self.adapters) if len(self.adapters) == 1 else self.active
        return [AdapterPart("" if len(names) == 1 else name, self, name) for name in names]

    def forward(self, x: Any) -> Tensor:
        """Compute the layer with W + dW_1 + ..., over all active adapters, in place of W.

        A RuntimeError is raised if the layer is merged, and an adapter or W has changed since, or
        an adapter would lose a gradient. A write to W through numpy, as in `W.data[...] = 0`, is
        not noticed.
        """
        x = x if isinstance(x, Tensor) else Tensor(x)
        bias = frozen_bias(self.bias)
        if not self.enabled:
            return self.base(x, self.base_weight, bias)
        stored, merged = self.base_weight, self.merged_adapters
        if self._merged is not None:
            observed(self._check_fresh)
            if any(
                is_differentiated(part) for name in merged for part in self.adapters[name].trained()
            ):
                raise RuntimeError(
                    f"adapter {', '.join(map(repr, merged))} is merged, so no gradient would reach "
                    f"its A and B, and training would change nothing; call unmerge() to train, or "
                    f"predict under no_grad(), or freeze A and B with requires_grad_(False)"
                )
            stored = self._merged.weight
        adapters = [self.adapters[name] for name in self.active if name not in merged]
        # Adapters with DoRA or dropout cannot share the one product of the others.
        apart = [a for a in adapters if a.lora_magnitude is not None or self._drops(a)]
        if apart and len(self.active) == 1 and not self.merged and not self._drops(apart[0]):
            # A single DoRA adapter needs one product with W instead of two.
            y = self._updated(x, stored, None, apart) * self._ratio(apart[0])
            return y if bias is None else y + self.broadcast_outputs(bias)
        y = self._updated(x, stored, bias, [a for a in adapters if a not in apart])
        for adapter in apart:
            left, factor = x, None  # by dropout
            if self._drops(adapter):
                left, factor = self.dropped(x, adapter)
            a, b = adapter.factors()
            added = self.times_b(self.product(left, a) * adapter.scale, b)
            if adapter.lora_magnitude is not None:
                before = self.base(left, self.base_weight, None)
                added = (before + added) * self._ratio(adapter) - before
            y = y + (added if factor is None else added * factor)
        return y

    def _updated(
        self, x: Tensor, stored: Any, bias: Tensor | None, adapters: Sequence[Adapter]
    ) -> Tensor:
        """Compute the base and the sum of LoRA updates, as one update of all their ranks."""
        y = self.base(x, stored, bias)
        if not adapters:
            return y
        a, b, scale = joined(adapters)
        return y + self.times_b(self.product(x, a) * scale, b)

    def _ratio(self, adapter: Adapter) -> Tensor:
        return self.broadcast_outputs(adapter.ratio(self.weight))

    def _drops(self, adapter: Adapter) -> bool:
        return self.training and adapter.dropout > 0

    @property
    def merged(self) -> bool:
        """Whether calls use a merged weight."""
        return self._merged is not None

    @property
    def merged_adapters(self) -> tuple[str, ...]:
        """The names of the adapters in the merged weight."""
        return () if self._merged is None else tuple(self._merged.copies)

    def update_rows(self, rows: slice, names: Sequence[str]) -> Array:
        """Compute some rows of dW_1 + dW_2 + ... in float64, over the adapters of these names.

        A ValueError is raised if the updates of the layer cannot be merged; see `check_mergeable`.
        """
        if names:
            check_mergeable({"": self})
        updates = [self.adapters[name].update(self.weight, rows) for name in names]
        return sum(updates[1:], updates[0]) if updates else np.zeros_like(self.weight.rows(rows))

    def merged_weight(self) -> Tensor:
        """Compute W + dW_1 + ... in float64, rounded once: a new tensor, as the layer stores W.

        A ValueError is raised for the updates of a grouped convolution, which are not merged.
        """
        return Tensor(observed(self._array_with, self.active))

    def _array_with(self, names: Sequence[str]) -> Array:
        weight = self.weight
        dtypes = [adapter.lora_a.dtype for adapter in self.adapters.values()]
        out = np.empty(weight.shape, dtypes[0] if dtypes else weight.dtype)
        for strip in weight.strips():
            out[strip] = weight.rows(strip) + self.update_rows(strip, names)
        return self.stored(out)

    def _check_fresh(self) -> None:
        """Raise a RuntimeError if the layer is merged, and an adapter or the base changed since.

        A and B are compared with copies, which also detects writes to their arrays. W may be large,
        so only the time of its last write is compared.
        """
        if self._merged is None:
            return
        changed = []
        for name, before in self._merged.copies.items():
            own, adapter = "" if name == DEFAULT else f"{name}.", self.adapters[name]
            changed += [f"{own}scale"] if before.scale != adapter.scale else []
            for (key, part), (_, now) in zip(before.contents(), adapter.contents(), strict=True):
                same_dtype = part.dtype == now.dtype
                if not same_dtype or not np.array_equal(part._data, now._data, equal_nan=True):
                    changed.append(own + key)
        if self.base_weight is not self._merged.base or self._merged.base_was_written:
            changed.append("base_weight")
        if changed:
            raise RuntimeError(
                f"{changed[0]} changed since merge(), so the merged weight is out of date; call "
                f"merge() again to merge what it is now, or unmerge() to use A and B themselves"
            )

    def merge(self, names: Sequence[str] | None = None) -> None:
        """Compute W + dW once, and let calls use it; W stays in memory, unchanged.

        The names are those of active adapters, or None for all of them; the others are added in
        each call. A ValueError is raised if a name is repeated, no active adapter has it, or the
        layer is a grouped convolution.
        """
        chosen = tuple(self.active if names is None else names)
        check_names(chosen, self.adapters)
        for name in chosen:
            if name not in self.active:
                raise ValueError(
                    f"{name!r} is not an active adapter of the layer; active are "
                    f"{', '.join(map(repr, self.active)) or 'none'}"
                )
        some = chosen != self.active
        weight = Tensor(observed(self._array_with, chosen)) if some else self.merged_weight()
        copies = {name: self.adapters[name].copy() for name in chosen}
        self._merged = MergedWeight(weight, copies, self.base_weight, next(clock))

    def unmerge(self) -> None:
        """Drop the merged weight, and use W and the adapters. Unmerging twice changes nothing."""
        self._merged = None

    def extra_repr(self) -> str:
        """Describe the sizes, the rank and the scale, or the names of several adapters."""
        parts = [f"{self.d_in}, {self.d_out}", *self.base_facts()]
        alone = list(self.adapters) == [DEFAULT] and self.active == (DEFAULT,)
        for name, adapter in self.adapters.items():
            label = f"{name}{'' if name in self.active else ' (off)'}"
            parts += adapter.facts() if alone else [f"{label}: {' '.join(adapter.facts())}"]
        if self.merged:
            some = self.merged_adapters != self.active
            parts.append(f"merged: {', '.join(self.merged_adapters)}" if some else "merged")
        parts += [] if self.enabled else ["disabled"]
        return ", ".join(parts)


def check_mergeable(layers: Mapping[str, AdaptedLayer]) -> None:
    """Raise a ValueError that names the layers, by name, whose updates cannot be merged."""
    found = [name or "the layer" for name, layer in layers.items() if layer.weight.groups > 1]
    if found:
        raise ValueError(
            f"the updates of {', '.join(found)} cannot be merged: {UNMERGEABLE}. Nothing was "
            f"changed. Compute with the adapter as it is, which lora.save keeps, or train one that "
            f"excludes these layers"
        )


@dataclass(frozen=True)  # not a tuple: in a tuple, the walk over a model would find parameters
class MergedWeight:
    """A merged weight, and copies of its inputs, with which `_check_fresh` detects changes."""

    weight: Tensor  # W + dW, as the layer stores W
    copies: dict[str, Adapter]  # a copy of each merged adapter, by name
    base: Any  # the weight of the base
    time: int  # the time of the merge, on the clock that counts writes to tensors

    @property
    def base_was_written(self) -> bool:
        """Whether W was written since the merge."""
        return isinstance(self.base, Tensor) and last_written(self.base._data) > self.time

    def __getstate__(self) -> dict[str, Any]:
        # The memory of a copy is new: the time of its last write is 0.
        return {**vars(self), "time": -1 if self.base_was_written else 0}
