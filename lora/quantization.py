"""Store the frozen base in few bits: NF4, as in QLoRA (Dettmers et al., 2023), or bfloat16."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lora.adapted_layer import AdaptedLayer
from lora.attachment import state
from lora.attachment.state import Attachment
from lora.attachment.targets import candidates, projections, select
from lora.config import LoRAConfig
from lora.embedding import LoRAEmbedding
from lora.patterns import ALL_LINEAR, Patterns
from lora.variants.narrow import BFloat16Linear, NarrowLinear, NF4Linear
from minigrad import kernels
from minigrad.checks import check_choice, check_flag, check_positive
from minigrad.errors import named_errors
from minigrad.heap import give_back_memory
from minigrad.kernels.start import interrupts_held_back
from minigrad.nn import Embedding, Linear, Module
from minigrad.progress import progress_bar
from minigrad.tables import aligned, counted, in_bytes


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer that `quantize` has replaced.

    Attributes:
        name: the name of the layer in the model.
        pattern: the target pattern that matched it.
        shape: the shape of its weight.
        bytes_before: the size of the weight before.
        bytes_after: the size of the weight in few bits.
        error: ||W - W_q||_F / ||W||_F; 0 for a weight of zeros.
    """

    name: str
    pattern: str
    shape: tuple[int, int]
    bytes_before: int
    bytes_after: int
    error: float

    @property
    def bytes_per_number(self) -> float:
        """The bytes per element of the weight in few bits."""
        return self.bytes_after / math.prod(self.shape)


@dataclass(frozen=True, repr=False)
class QuantizeReport:
    """The report of `quantize`: a line for each of the `layers` that were replaced, and totals."""

    layers: tuple[QuantizedLayer, ...]

    @property
    def names(self) -> list[str]:
        """The names of the layers that were replaced."""
        return [layer.name for layer in self.layers]

    @property
    def bytes_before(self) -> int:
        """The size of all these weights before, in bytes."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """The size of all these weights in few bits, in bytes."""
        return sum(layer.bytes_after for layer in self.layers)

    def __repr__(self) -> str:
        head = ("layer", "matched by", "shape", "before", "after", "bytes/number", "error")
        rows = []
        for row in self.layers:
            shape = f"{row.shape[0]} x {row.shape[1]}"
            sizes = in_bytes(row.bytes_before), in_bytes(row.bytes_after)
            figures = f"{row.bytes_per_number:.4f}", f"{row.error:.4f}"
            rows.append((row.name, row.pattern, shape, *sizes, *figures))
        share = 100 * self.bytes_after / self.bytes_before
        before, after = in_bytes(self.bytes_before), in_bytes(self.bytes_after)
        total = f"{counted(len(rows), 'weight')}: {before} before, {after} after ({share:.1f} %)"
        return "\n".join([*aligned(head, rows, 2), total])


@named_errors
def quantize(
    model: Module,
    targets: Patterns = ALL_LINEAR,
    *,
    exclude: Patterns = (),
    format: Literal["nf4", "bfloat16"] = "nf4",
    block_size: int = 64,
    double_quant: bool = True,
    progress: bool = True,
) -> QuantizeReport:
    """Replace each targeted `Linear` by a frozen `NF4Linear` or `BFloat16Linear`.

    NF4 stores an element as one of 16 levels times the absmax of its block, as in QLoRA (Dettmers
    et al., 2023, section 3). With the defaults this takes about 4.1 bits per element. Quantise
    before you attach adapters, because an adapter is made for the weight as it is stored. NF4 also
    replaces a `BFloat16Linear`. A bias is frozen with its layer, also if another layer shares it.
    The memory of the weights in floats is returned to the system.

    Args:
        model: the model, changed in place; after an error it is unchanged.
        targets: which layers, as in `LoRAConfig`; "all-linear" means all that can be replaced.
        exclude: the targets to leave unchanged, given like `targets`.
        format: "nf4", four bits per element, or "bfloat16", half a float32.
        block_size: for NF4, the number of elements of a row that share one absmax (the largest
            absolute value).
        double_quant: for NF4, store each absmax in 8 bits.
        progress: show a progress bar if it takes long.

    Raises:
        TypeError: if the model is not a Module, or an argument is of the wrong type.
        ValueError: if a target matches nothing or an Embedding; a layer is already in few bits, has
            an adapter, is trained in full by an adapter, or has a weight that is not finite or also
            used elsewhere; an option makes no sense; or the model is itself a single layer.
        ImportError: for bfloat16, if ml_dtypes is not installed, which rounds to it.
    """
    attachment = state.attachment_of(model)  # raises an error if the model is not a Module
    if isinstance(model, (Linear, NarrowLinear, AdaptedLayer)):
        raise ValueError(
            f"the model is a single {type(model).__name__}, which has no parent, so nothing can "
            f"replace it; of a Linear, NF4Linear.from_linear(model) makes a layer"
        )
    check_positive("block_size", block_size)
    check_flag("double_quant", double_quant)
    check_choice("format", format, ("nf4", "bfloat16"))
    is_nf4 = format == "nf4"
    if not is_nf4 and (block_size != 64 or not double_quant):
        raise ValueError(
            'block_size and double_quant belong to format="nf4"; bfloat16 has neither, so leave '
            "them out"
        )
    patterns = _patterns_by_layer(model, LoRAConfig(targets=targets, exclude=exclude), is_nf4)
    linears: dict[str, Any] = {name: m for name, m in model.named_modules() if name in patterns}
    _check_replaceable(model, linears, attachment)
    layers: dict[str, NarrowLinear] = {}
    lines = []
    for name in progress_bar(list(linears), what="quantize", unit="layer", shown=progress):
        original = linears[name]
        linear = original if isinstance(original, Linear) else original.to_linear()
        try:
            if is_nf4:
                layers[name] = NF4Linear.from_linear(linear, block_size, double_quant)
            else:
                layers[name] = BFloat16Linear.from_linear(linear)
        except (TypeError, ValueError) as reason:
            raise type(reason)(f"{name}: {reason}; nothing was changed") from reason
        before, weight = linear.weight._data, layers[name].weight
        stored = before if linear is original else original.weight
        sizes = weight.shape, stored.nbytes, weight.nbytes
        lines.append(QuantizedLayer(name, patterns[name], *sizes, _error(before, weight)))
    with interrupts_held_back():
        for name, layer in layers.items():
            layer.bias = linears[name].bias  # the same object, so that ties are kept
            layer.freeze()
        state.replace(model, {id(linears[name]): layer for name, layer in layers.items()})
        # Flags would keep the float weights, and `detach` would unfreeze biases.
        attachment.flags.forget(p for each in linears.values() for p in each.parameters())
    del linears, original, linear, before, stored  # nothing else has the float weights
    give_back_memory()
    return QuantizeReport(tuple(lines))


def _patterns_by_layer(model: Module, config: LoRAConfig, is_nf4: bool) -> dict[str, str]:
    """Choose the layers to replace; return for each name the pattern that matched it."""
    modules = dict(model.named_modules())
    tables = Embedding, LoRAEmbedding
    kinds = candidates(modules).items()
    able = {n: linear for n, linear in kinds if linear or isinstance(modules[n], tables)}
    done = NF4Linear if is_nf4 else NarrowLinear
    left = {n: linear for n, linear in able.items() if not isinstance(modules[n], done)}
    if config.targets == ALL_LINEAR and any(left.values()):
        able = left
    chosen = select(config, able, projections(modules))
    found = {target.name: target.pattern for target in chosen}
    for kind, what in (
        (AdaptedLayer, "have adapters already, made for floats (lora.detach takes them off)"),
        (done, f"are in {'four' if is_nf4 else 'few'} bits already"),
        (Embedding, "are embeddings, not Linear, and look rows up"),
    ):
        if wrong := [name for name in found if isinstance(modules[name], kind)]:
            raise ValueError(f"{', '.join(wrong)} {what}; exclude these layers")
    return found


def _check_replaceable(model: Module, linears: Mapping[str, Any], attachment: Attachment) -> None:
    """Raise a ValueError if a weight is tied, or an adapter trains a part of a layer in full."""
    state.check_copies_are_known(model)
    state.check_replaceable(model, linears)
    names = state.state_names(model)
    copies: dict[int, tuple[str, str]] = {}  # for each original and copy, the adapter and a name
    for adapter, attached in attachment.adapters.items():
        for copy in attached.copies:
            copies[id(copy.original)] = copies[id(copy.own)] = adapter, copy.name
    for name, linear in linears.items():
        tied = names.get(id(linear.weight), ())
        if isinstance(linear, Linear) and len(tied) > 1:
            raise ValueError(
                f"the weight of {name} is one parameter in {' and '.join(tied)}, and would be in "
                f"floats and in few bits; exclude {name}, or give it a copy of its own"
            )
        copied = [copies[id(part)] for part in linear.parameters() if id(part) in copies]
        if copied:  # `lora.switch` could then put neither the original nor the copy in
            raise ValueError(
                f"adapter {copied[0][0]!r} trains {', '.join(own for _, own in copied)} in full; "
                f"exclude {name}, or quantise first"
            )


def _error(exact: NDArray[Any], weight: kernels.narrow.NarrowMatrix) -> float:
    """Return ||W - W_q||_F / ||W||_F, summed in float64, strip by strip."""
    size = lost = 0.0
    for start, stop, strip in weight.strips(np.float64):
        rows = exact[start:stop].astype(np.float64)
        size += float(np.sum(np.square(rows)))
        lost += float(np.sum(np.square(strip - rows)))
    return math.sqrt(lost / size) if size else 0.0
