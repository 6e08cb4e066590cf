"""An adapter from two models: the part of low rank of how one differs from the other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lora.adapted import AdaptedLayer
from lora.adapter import DEFAULT, Adapter
from lora.attach import check_place, place
from lora.attachment.plan import Plan, targets_in
from lora.attachment.record import record_of
from lora.config import Bias, LoRAConfig
from lora.factors import Approximation
from lora.full_copies import Copy
from lora.patterns import ALL_LINEAR, Patterns, near
from lora.scaling import check_size
from lora.surgery import places
from lora.variants.nf4 import NF4Linear
from minigrad.core.tensor import as_array
from minigrad.nn import Module, Parameter
from minigrad.progress import progress_bar
from minigrad.tables import aligned

if TYPE_CHECKING:
    from minigrad.kernels.nf4 import NF4Matrix

Array = NDArray[Any]


@dataclass(frozen=True)
class Extracted:
    """One of the targets.

    Attributes:
        name: of the layer.
        rank: of the update; 0 for a layer that does not differ, and gets none.
        error: the Frobenius norm of the part of the difference that the update has not.
        relative_error: the same as a share of that of the difference.
        energy: the share of the difference's squared norm that the update has.
    """

    name: str
    rank: int
    error: float = 0.0
    relative_error: float = 0.0
    energy: float = 1.0


@dataclass(frozen=True, repr=False)
class ExtractReport:
    """What `extract` found: a line for each target.

    Attributes:
        layers: the targets, those that do not differ included.
        copies: the parameters that the adapter has whole.
        adapter: its name.
    """

    layers: tuple[Extracted, ...]
    copies: tuple[Copy, ...]
    adapter: str

    def __repr__(self) -> str:
        head = ("layer", "rank", "error", "relative", "energy", "")
        rows = []
        for row in self.layers:
            errors = (f"{row.error:.3g}", f"{row.relative_error:.3g}", f"{100 * row.energy:.4g} %")
            note = "" if row.rank else "does not differ"
            rows.append((row.name, str(row.rank), *(errors if row.rank else ("", "", "")), note))
        rows += [(copy.name, "", "", "", "", "whole") for copy in self.copies]
        return "\n".join(aligned(head, rows))


def extract(
    base: Module,
    finetuned: Module | Mapping[str, Any],
    rank: int,
    *,
    targets: Patterns = ALL_LINEAR,
    exclude: Patterns = (),
    adapter: str = DEFAULT,
    modules_to_save: Sequence[str] = (),
    bias: Bias = "none",
    progress: bool = True,
) -> ExtractReport:
    """Attach to `base` the adapter that comes nearest to a model which was trained as a whole.

        W_finetuned - W = U S V^T,  B = U_r sqrt(S_r),  A = sqrt(S_r) V_r^T,  scale 1

    In each layer B A is the best approximation there is of this rank, in the Frobenius norm
    (`lora.factors`); in one whose smaller size is below the rank it has that size for a rank, and
    is exact. Factors are rounded to the dtype of the layer, which the errors of the report do not
    include. A target that does not differ gets no adapter. Nothing of the difference is lost
    without a word: what is outside the targets must be equal, or be taken over whole.

    Args:
        base: changed as by `attach`: `detach` gives it back, to the bit.
        finetuned: a model of the same structure, or its `state_dict`. Where the base is in four
            bits (`lora.quantize`), what these have lost is part of the difference.
        rank: of each update.
        targets: the layers to look at, as in `LoRAConfig`.
        exclude: of these, those to leave out.
        adapter: a name for it.
        modules_to_save: modules to take over whole.
        bias: "lora_only" takes over the biases of the layers with adapters, "all" those of the
            whole model.
        progress: show a progress bar if it takes long.

    Raises:
        TypeError: if there is no such module or state, or an argument is of the wrong type.
        ValueError: if names or shapes do not fit, there is NaN or Inf, something differs that the
            adapter would not have, no target differs, or `attach` would refuse; `base` is as it was
            then.
    """
    if not isinstance(base, Module) or not isinstance(finetuned, (Module, Mapping)):
        raise TypeError(
            f"extract takes a Module, and a Module or a state_dict, not "
            f"{type(base).__name__} and {type(finetuned).__name__}"
        )
    rank = check_size("rank", rank)
    _refuse_adapters(base, finetuned)
    check_place(base, adapter)
    config = LoRAConfig(
        rank,
        rank,
        targets,
        exclude=exclude,
        modules_to_save=modules_to_save,
        bias=bias,
    )
    state = _state(finetuned) if isinstance(finetuned, Module) else finetuned
    pair = _Pair(base, state)
    names = [target.name for target in targets_in(base, config)]
    modules: dict[str, Any] = dict(base.named_modules())
    differing = [name for name in names if pair.differs(f"{name}.weight")]
    if not differing:
        raise ValueError(
            f"none of the targets differs from the base, so there is nothing to extract: "
            f"{', '.join(names)}"
        )
    sizes = {name: min(modules[name].weight.shape) for name in differing}
    plan = Plan(base, _exactly(config, differing, sizes), np.random.default_rng(0))
    pair.check_covered(_covered(plan, pair))
    bar = progress_bar(differing, what="singular vectors", unit="layer", shown=progress)
    found = {name: _updated(plan, name, pair) for name in bar}
    for copy in plan.copies:
        copy.own.copy_(pair.value(copy.name))
    place(base, plan, adapter)
    rows = tuple(found.get(name, Extracted(name, 0)) for name in names)
    return ExtractReport(rows, tuple(plan.copies), adapter)


def _refuse_adapters(base: Module, finetuned: Module | Mapping[str, Any]) -> None:
    if record_of(base) is not None or any(isinstance(m, AdaptedLayer) for m in base.modules()):
        raise ValueError(
            "the base has adapters already, and what is theirs would count as a difference; "
            "lora.detach(base) takes them off, lora.fold(base) makes them part of it"
        )
    if isinstance(finetuned, Module):
        adapted = [n for n, m in finetuned.named_modules() if isinstance(m, AdaptedLayer)]
        if adapted:
            raise ValueError(
                f"the finetuned model has adapters, in {', '.join(adapted)}; lora.fold a copy of it"
            )


def _exactly(config: LoRAConfig, names: Sequence[str], sizes: Mapping[str, int]) -> LoRAConfig:
    """The configuration for these layers alone, with no rank that is larger than its layer."""
    smaller = {rf"\A{re.escape(n)}": size for n, size in sizes.items() if size < config.rank}
    return replace(
        config,
        targets="|".join(map(re.escape, names)),
        exclude=(),
        rank_pattern=smaller,
        alpha_pattern=smaller,
    )


def _state(model: Module) -> dict[str, Any]:
    """What `state_dict` gives, and the weights in four bits as floats."""
    quantized = _in_four_bits(model).items()
    return model.state_dict() | {n: layer.weight.dense(layer.dtype) for n, layer in quantized}


def _in_four_bits(model: Module) -> dict[str, NF4Linear]:
    """The layers whose weight is in four bits and so no parameter, by the name of the weight."""
    modules = model.named_modules()
    return {f"{name}.weight": m for name, m in modules if isinstance(m, NF4Linear)}


def _covered(plan: Plan, pair: _Pair) -> set[str]:
    """The names of what the adapter has of the difference, whole or in part."""
    whole = {other for copy in plan.copies for other in pair.equal_names(copy.name)}
    return whole | {f"{name}.weight" for name in plan.updates}


def _updated(plan: Plan, name: str, pair: _Pair) -> Extracted:
    """Let the update of a layer be the nearest to its difference; what to report of it."""
    layer, planned = plan.layers[name], plan.updates[name]
    tuned = layer.weight_of(pair.value(f"{name}.weight"))
    u, s, vt = np.linalg.svd(tuned.dense() - layer.weight.dense(), full_matrices=False)
    best = Approximation.of_decomposition(u, s, vt, planned.rank)
    made = plan.updates[name] = Adapter.of(layer.weight, best.a, best.b, 1.0)
    return Extracted(name, made.rank, best.error, best.relative_error, best.energy)


class _Pair:
    """The parameters of the base, weights in four bits among them, and the finetuned values.

    A tied parameter has several names. The state may give any of them, and where the tie was cut,
    as by `fold`, values that differ.

    Raises:
        ValueError: with all that is missing, unexpected, of another shape, or no finite numbers.
    """

    def __init__(self, base: Module, state: Mapping[str, Any]) -> None:
        parameters: dict[int, tuple[str, Parameter | NF4Matrix]] = {
            id(p): (name, p) for name, p in base.named_parameters()
        }
        self._names = held = places(base)
        for name, layer in _in_four_bits(base).items():
            parameters.setdefault(id(layer.weight), (name, layer.weight))
            held.setdefault(id(layer.weight), []).append(name)
        self._parameters = {
            name: parameters[key][1] for key, names in held.items() for name in names
        }
        self._values: dict[str, Array] = {}
        problems = list(self._read(state))
        for key, (name, parameter) in parameters.items():
            given = [other for other in held[key] if other in state]
            if not given:
                problems.append(f"missing: {name} {parameter.shape}")
            for other in held[key]:
                if other not in state and given and given[0] in self._values:
                    self._values[other] = self._values[given[0]]
        if problems:
            raise ValueError(
                "the finetuned model does not fit the base; nothing was changed:\n  "
                + "\n  ".join(problems)
            )

    def _read(self, state: Mapping[str, Any]) -> Iterator[str]:
        """Take the values of a state, and say what is wrong with it."""
        for name, given in state.items():
            if name not in self._parameters:
                yield f"unexpected: {near(str(name), self._parameters)}"
                continue
            try:
                value = as_array(given)
            except (TypeError, ValueError) as error:
                yield f"unusable: {name}: {error}"
                continue
            shape = self._parameters[name].shape
            if value.shape != shape:
                yield f"mis-shaped: {name} is {value.shape}, in the base {shape}"
            elif not np.isfinite(value).all():
                yield f"not finite: {name} has NaN or Inf in it"
            else:
                self._values[name] = value

    def value(self, name: str) -> Array:
        """That of the finetuned model."""
        return self._values[name]

    def equal_names(self, name: str) -> list[str]:
        """The names of this parameter under which the finetuned model has this value."""
        value, names = self._values[name], self._names[id(self._parameters[name])]
        return [other for other in names if np.array_equal(self._values[other], value)]

    def differs(self, name: str) -> bool:
        """Whether the two values of a parameter differ."""
        value, parameter = self._values[name], self._parameters[name]
        ours = parameter._data if isinstance(parameter, Parameter) else parameter.dense(value.dtype)
        return not np.array_equal(value, ours)

    def check_covered(self, covered: set[str]) -> None:
        """Refuse to lose a difference.

        Raises:
            ValueError: with the names of all parameters that differ, and are not covered.
        """
        lost = [name for name in self._parameters if name not in covered and self.differs(name)]
        if lost:
            raise ValueError(
                f"the finetuned model differs from the base in what the adapter would not have: "
                f"{', '.join(lost)}; make their layers targets, take modules over with "
                f'modules_to_save=[...], biases with bias="all"'
            )
