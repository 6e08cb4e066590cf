"""QLoRA's base: linear layers whose frozen weight is kept in four bits (Dettmers et al., 2023).

    report = quantize(model, targets=["q_proj", "v_proj"])

puts an `NF4Linear` in the place of each targeted `Linear`. Gradients flow through it to x; it has
nothing to train.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from lora.attach import _replace
from lora.config import ALL_LINEAR, LoRAConfig
from lora.layer import LoRALayer
from minigrad import kernels, ops
from minigrad.data import check_positive
from minigrad.diagnostics.tables import aligned, in_bytes
from minigrad.nn import Embedding, Linear, Module, Parameter
from minigrad.tensor import Tensor

if TYPE_CHECKING:
    from minigrad.kernels.nf4 import NF4Matrix


class NF4Linear(Module):
    """y = x W^T + b with a frozen W in four bits: `(..., in_features) -> (..., out_features)`.

    The weight is no parameter: optimisers, `state_dict` and `astype` pass it by, and a copy of the
    layer shares it, for it cannot change. `weight.arrays()` is what to keep in a file.

    Args:
        weight: W, an NF4Matrix `(out_features, in_features)`.
        bias: b, `(out_features,)`, whose memory is shared, frozen here; or None.

    Attributes:
        weight: W.
        bias: b, a frozen Parameter, or None.

    Raises:
        TypeError: if the weight is no NF4Matrix.
        ValueError: if the shapes do not match.
    """

    def __init__(self, weight: NF4Matrix, bias: Any = None) -> None:
        if not isinstance(weight, kernels.nf4.NF4Matrix):
            raise TypeError(
                f"NF4Linear: the weight is an NF4Matrix, not {type(weight).__name__}; of a Linear, "
                f"NF4Linear.from_linear makes one"
            )
        self.weight = weight
        self.bias = None if bias is None else Parameter.sharing(Tensor(bias))
        if self.bias is not None and self.bias.shape != (self.out_features,):
            raise ValueError(
                f"NF4Linear: bias has shape {self.bias.shape}; for a weight of shape "
                f"{weight.shape} it must be {(self.out_features,)}"
            )

    @classmethod
    def from_linear(
        cls, linear: Linear, block_size: int = 64, double_quant: bool = True
    ) -> NF4Linear:
        """The layer with the weight of `linear` in four bits; the bias is shared.

        Raises:
            TypeError: if it is no Linear.
            ValueError: if the weight holds NaN or Inf, or the block size is no positive integer.
        """
        if not isinstance(linear, Linear):
            raise TypeError(f"NF4Linear.from_linear: takes a Linear, not {type(linear).__name__}")
        weight = kernels.nf4.NF4Matrix.of(linear.weight._data, block_size, double_quant)
        layer = cls(weight, linear.bias)
        layer.training = linear.training
        return layer

    def to_linear(self, dtype: DTypeLike = np.float32) -> Linear:
        """A plain layer with what the codes stand for as its weight, and nothing shared."""
        linear = Linear.__new__(Linear)
        linear.weight = Parameter(self.weight.dense(dtype))
        linear.bias = None if self.bias is None else Parameter(self.bias, dtype=dtype)
        linear.training = self.training
        return linear

    @property
    def in_features(self) -> int:
        """The size of an input vector."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """The size of an output vector."""
        return self.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b, in the dtype of x."""
        # Detached: the layer is frozen, even if someone has set the flag.
        bias = None if self.bias is None else self.bias.detach()
        return ops.nf4_linear(x if isinstance(x, Tensor) else Tensor(x), self.weight, bias)

    def extra_repr(self) -> str:
        """The sizes, and how the weight is kept."""
        parts = [f"{self.in_features}, {self.out_features}"]
        parts += [] if self.bias is not None else ["bias=False"]
        parts += [f"block_size={self.weight.block_size}"]
        parts += [] if self.weight.double_quant else ["double_quant=False"]
        return ", ".join(parts)


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer that `quantize` has replaced.

    Attributes:
        name: its name in the model.
        pattern: the target that found it.
        shape: of its weight.
        bytes_before: of the weight as floats.
        bytes_after: of the weight in four bits.
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
        """Of the weight in four bits."""
        return self.bytes_after / math.prod(self.shape)


@dataclass(frozen=True, repr=False)
class QuantizeReport:
    """What `quantize` did: a line for each layer, and the totals.

    Attributes:
        layers: those that were replaced.
    """

    layers: tuple[QuantizedLayer, ...]

    @property
    def names(self) -> list[str]:
        """The names of the layers that were replaced."""
        return [layer.name for layer in self.layers]

    @property
    def bytes_before(self) -> int:
        """Of all these weights as floats."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Of all these weights in four bits."""
        return sum(layer.bytes_after for layer in self.layers)

    def __repr__(self) -> str:
        head = ("layer", "matched by", "shape", "before", "after", "bytes/number", "error")
        rows = [
            (
                layer.name,
                layer.pattern,
                f"{layer.shape[0]} x {layer.shape[1]}",
                in_bytes(layer.bytes_before),
                in_bytes(layer.bytes_after),
                f"{layer.bytes_per_number:.4f}",
                f"{layer.error:.4f}",
            )
            for layer in self.layers
        ]
        share = 100 * self.bytes_after / self.bytes_before
        before, after = in_bytes(self.bytes_before), in_bytes(self.bytes_after)
        total = f"{len(rows)} weights: {before} before, {after} after ({share:.1f} %)"
        return "\n".join([*aligned(head, rows, 2), total])


def quantize(
    model: Module,
    targets: str | Sequence[str] = ALL_LINEAR,
    *,
    exclude: str | Sequence[str] = (),
    block_size: int = 64,
    double_quant: bool = True,
    progress: bool = True,
) -> QuantizeReport:
    """Put an `NF4Linear` in the place of each targeted `Linear`, and freeze it.

    Adapters belong on top of the layers in four bits, so quantise first.

    Args:
        model: changed in place; nothing is, if there is an error.
        targets: which layers, as in `LoRAConfig`.
        exclude: which of these to leave as they are, named in the same ways.
        block_size: how many numbers of a row share an absmax.
        double_quant: keep absmax in 8 bits.
        progress: show a progress bar if it takes long.

    Raises:
        ValueError: if a target matches nothing or an Embedding, nothing is left to do, a layer has
            an adapter or a weight that is held elsewhere too or holds NaN or Inf, the block size is
            no positive integer, or the model is itself a single layer.
    """
    if isinstance(model, Linear):
        raise ValueError(
            "quantize: the model is a single Linear, which no parent holds, so nothing can take "
            "its place; use NF4Linear.from_linear(model)"
        )
    check_positive("quantize: block_size", block_size)
    modules = dict(model.named_modules())
    found = _found(modules, targets, exclude)
    linears = {name: m for name, m in modules.items() if name in found and isinstance(m, Linear)}
    _check_untied(model, linears)
    layers: dict[str, NF4Linear] = {}
    lines = []
    for name in _with_bar(list(linears), progress):
        try:
            layers[name] = NF4Linear.from_linear(linears[name], block_size, double_quant)
        except (TypeError, ValueError) as error:
            raise type(error)(f"quantize: {name}: {error}; nothing was changed") from error
        before, weight = linears[name].weight._data, layers[name].weight
        lines.append(
            QuantizedLayer(
                name,
                found[name],
                weight.shape,
                before.nbytes,
                weight.nbytes,
                _error(weight, before),
            )
        )
    for name, layer in layers.items():
        layer.bias = linears[name].bias  # the very parameter, so that what is tied to it stays so
        layer.freeze()
    _replace(model, {id(linears[name]): layer for name, layer in layers.items()})
    return QuantizeReport(tuple(lines))


def _found(
    modules: dict[str, Module], targets: str | Sequence[str], exclude: str | Sequence[str]
) -> dict[str, str]:
    """The names of the layers to replace, and by which target each was found."""
    names = [name for name, module in modules.items() if _is_named(module, targets)]
    found = LoRAConfig(targets=targets).matches(names)
    try:
        left_out = LoRAConfig(targets=exclude).matches(names) if exclude else {}
    except ValueError as error:
        raise ValueError(f"quantize: exclude: {error}") from error
    found = {name: pattern for name, pattern in found.items() if name not in left_out}
    if not found:
        raise ValueError("quantize: all targets are excluded; there is nothing left to do")
    adapted = [name for name in found if isinstance(modules[name], LoRALayer)]
    if adapted:
        raise ValueError(
            f"quantize: {', '.join(adapted)} have adapters already, made for the weight in floats; "
            f"lora.detach(model) takes them off, or exclude these layers"
        )
    embeddings = [name for name in found if isinstance(modules[name], Embedding)]
    if embeddings:
        raise ValueError(
            f"quantize: {', '.join(embeddings)} are embeddings, which look rows up; only the "
            f"weight of a Linear is kept in four bits, so leave these out or exclude them"
        )
    return found


def _is_named(module: Module, targets: str | Sequence[str]) -> bool:
    """Whether targets speak of such a module: a Linear, or what is refused by name."""
    if isinstance(module, Linear):
        return type(module).forward is Linear.forward
    return isinstance(module, LoRALayer) or (
        isinstance(module, Embedding) and targets != ALL_LINEAR
    )


def _check_untied(model: Module, targets: dict[str, Linear]) -> None:
    """Refuse weights that the model holds in a second place, where they would stay floats."""
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for way, parameter in _own(vars(module), name):
            places.setdefault(id(parameter), []).append(way)
    for name, linear in targets.items():
        held = places[id(linear.weight)]
        if len(held) > 1:
            raise ValueError(
                f"quantize: the weight of {name} is one parameter in {' and '.join(held)}, and "
                f"would be in floats and in four bits; exclude {name}, or give it a copy of its own"
            )


def _own(value: Any, name: str) -> Iterator[tuple[str, Parameter]]:
    """The parameters in an attribute, not those in modules there, each time that one is held."""
    if isinstance(value, Parameter):
        yield name, value
    elif isinstance(value, (list, tuple, dict)):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _own(child, f"{name}.{key}" if name else str(key))


def _error(matrix: NF4Matrix, weight: Any) -> float:
    """||W - W_q||_F / ||W||_F, in float64."""
    size = lost = 0.0
    for a, b, strip in matrix.strips(np.float64):
        exact = weight[a:b].astype(np.float64)
        size += float(np.sum(np.square(exact)))
        lost += float(np.sum(np.square(strip - exact)))
    return math.sqrt(lost / size) if size else 0.0


def _with_bar(names: list[str], shown: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(
        names, unit="layer", desc="quantize", leave=False, delay=1.0,
        disable=None if shown else True,
    )  # fmt: skip
