"""Making an adapter from two models: the low-rank part of their difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lora.adapted_layer import AdaptedLayer
from lora.adapter import DEFAULT, Adapter
from lora.attaching import carry_out, check_attachable
from lora.attachment.plan import Plan
from lora.attachment.state import FullCopy, attachment_of, state_names
from lora.attachment.targets import targets_in
from lora.config import Bias, LoRAConfig
from lora.frozen import Array
from lora.linear import largest_rank
from lora.patterns import ALL_LINEAR, Patterns, exact, exact_key, near
from lora.scaling import check_size
from lora.spectra import Approximation
from lora.variants.narrow import BFloat16Embedding, NarrowLinear, is_narrow
from minigrad import kernels
from minigrad.checks import check_problems
from minigrad.core.tensor import Tensor, as_array
from minigrad.nn import Module
from minigrad.progress import progress_bar
from minigrad.tables import aligned


@dataclass(frozen=True)
class Extracted:
    """The result of `extract` or of `lora.offline.extract_files` for one of the layers."""

    name: str  # of the layer
    rank: int  # of the update; 0 for a layer that does not differ, and gets none
    error: float = 0.0  # the Frobenius norm of the part of the difference that the update has not
    relative_error: float = 0.0  # the same as a share of the norm of the difference
    energy: float = 1.0  # the share of the difference's squared norm that the update has

    @classmethod
    def of(cls, name: str, best: Approximation) -> Extracted:
        """Describe the best approximation of a difference, which is the update of a layer."""
        return cls(name, len(best.a), best.error, best.relative_error, best.energy)

    @property
    def figures(self) -> tuple[str, str, str, str]:
        """The rank, errors and energy in a table."""
        errors = f"{self.error:.3g}", f"{self.relative_error:.3g}", f"{100 * self.energy:.4g} %"
        return str(self.rank), *(errors if self.rank else ("", "", ""))


@dataclass(frozen=True, repr=False)
class ExtractReport:
    """The report of `extract`: a line for each target.

    Attributes:
        layers: the targets, including the ones that do not differ.
        copies: the parameters and buffers that the adapter has in full.
        adapter: its name.
    """

    layers: tuple[Extracted, ...]
    copies: tuple[FullCopy, ...]
    adapter: str

    def __repr__(self) -> str:
        head = ("layer", "rank", "error", "relative", "energy", "")
        rows = [(r.name, *r.figures, "" if r.rank else "does not differ") for r in self.layers]
        rows += [(copy.name, "", "", "", "", "in full") for copy in self.copies]
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
    """Attach to `base` the adapter that comes nearest to a model of which all parameters trained.

        W_finetuned - W = U S V^T,  B = U_r sqrt(S_r),  A = sqrt(S_r) V_r^T,  scale 1

    In each layer B A is the best approximation of this rank in the Frobenius norm (`lora.spectra`);
    in one whose smaller size is below the rank, it is exact. Factors are rounded to the dtype of
    the layer, which the errors of the report do not include. A target that does not differ gets no
    adapter. Nothing of the difference is lost silently: what is outside the targets must be equal,
    or be copied in full.

    Args:
        base: changed as by `attach`: `detach` gives it back, to the bit.
        finetuned: a model of the same structure, or its `state_dict`. Where the base is in few bits
            (`lora.quantize`), the loss of that is part of the difference.
        rank: of each update, at most.
        targets: the layers to look at, as in `LoRAConfig`.
        exclude: of these, those to leave out.
        adapter: a name for it.
        modules_to_save: modules to copy in full.
        bias: the biases to copy, as in `LoRAConfig`.
        progress: show a progress bar if it takes long.

    Raises:
        TypeError: if there is no such module or state, or an argument is of the wrong type.
        ValueError: if names or shapes do not fit, there is NaN or Inf, something differs that the
            adapter would not have, no target differs, or `attach` would raise an error; `base` is
            as it was then.
    """
    if not isinstance(base, Module) or not isinstance(finetuned, (Module, Mapping)):
        raise TypeError(
            f"extract takes a Module, and a Module or a state_dict, not "
            f"{type(base).__name__} and {type(finetuned).__name__}"
        )
    rank = check_size("rank", rank)
    if attachment_of(base) is not None or any(isinstance(m, AdaptedLayer) for m in base.modules()):
        raise ValueError(
            "the base has adapters already, and what is theirs would count as a difference; "
            "lora.detach(base) takes them off, lora.fold(base) makes them part of it"
        )
    state: Any = finetuned
    if isinstance(finetuned, Module):
        adapted = [n for n, m in finetuned.named_modules() if isinstance(m, AdaptedLayer)]
        if adapted:
            raise ValueError(
                f"the finetuned model has adapters, in {', '.join(adapted) or 'itself'}; lora.fold "
                f"a copy of it"
            )
        quantized = _in_few_bits(finetuned).items()
        state = finetuned.state_dict() | {n: m.weight.dense(m.dtype) for n, m in quantized}
    check_attachable(base, adapter)
    config = LoRAConfig(
        rank, rank, targets, exclude=exclude, modules_to_save=modules_to_save, bias=bias
    )
    pair = _Pair(base, state)
    names = [target.name for target in targets_in(base, config)]
    modules: dict[str, Any] = dict(base.named_modules())
    differing = [name for name in names if pair.differs(f"{name}.weight")]
    if not differing:
        raise ValueError(
            f"none of the targets differs from the base, so there is nothing to extract: "
            f"{', '.join(names)}"
        )
    # The configuration for these layers alone, with no rank that is larger than its layer.
    sizes = {exact_key(name): largest_rank(modules[name].weight.shape) for name in differing}
    smaller = {pattern: size for pattern, size in sizes.items() if size < rank}
    exactly = replace(
        config,
        targets=exact(differing, modules),
        exclude=(),
        rank_pattern=smaller,
        alpha_pattern=smaller,
    )
    plan = Plan(base, exactly, np.random.default_rng(0), targets_in(base, exactly))
    covered = {f"{name}.weight" for name in plan.updates}
    covered |= {other for copy in plan.copies for other in pair.equal_names(copy.name)}
    lost = [name for name in pair.tensors if name not in covered and pair.differs(name)]
    if lost:
        raise ValueError(
            f"the finetuned model differs from the base in what the adapter would not have: "
            f"{', '.join(lost)}; make their layers targets, take modules over with "
            f'modules_to_save=[...], biases with bias="all"'
        )
    found = {}
    for name in progress_bar(differing, what="singular vectors", unit="layer", shown=progress):
        layer = plan.layers[name]
        tuned = layer.weight_of(pair.values[f"{name}.weight"])
        best = Approximation.of_matrix(tuned.dense() - layer.weight.dense(), rank)
        plan.updates[name] = Adapter.of(layer.weight, best.a, best.b, 1.0)
        found[name] = Extracted.of(name, best)
    for copy in plan.copies:
        copy.own.copy_(pair.values[copy.name])
    carry_out(base, plan, adapter)
    rows = tuple(found.get(name, Extracted(name, 0)) for name in names)
    return ExtractReport(rows, tuple(plan.copies), adapter)


def _in_few_bits(model: Module) -> dict[str, NarrowLinear | BFloat16Embedding]:
    """Return the layers whose weight is in few bits and so no parameter, by the weight's name."""
    return {f"{name}.weight": m for name, m in model.named_modules() if is_narrow(m)}


class _Pair:
    """The state of the base, weights in few bits among it, and the finetuned values.

    `tensors` are the parameters and buffers of the base, by each of their names, and `values` the
    finetuned ones, by the same names. A tied parameter has several. The state may give any of them,
    and where the tie was cut, as by `fold`, values that differ.
    """

    def __init__(self, base: Module, state: Mapping[str, Any]) -> None:
        own: dict[int, Any] = {id(tensor): tensor for _, tensor in base.named_state()}
        self._names = state_names(base)
        for name, layer in _in_few_bits(base).items():
            own[id(layer.weight)] = layer.weight
            self._names.setdefault(id(layer.weight), []).append(name)
        self.tensors: dict[str, Tensor | kernels.narrow.NarrowMatrix] = {
            name: own[key] for key, names in self._names.items() for name in names
        }
        self.values: dict[str, Array] = {}
        problems = []
        for name, given in state.items():
            if name not in self.tensors:
                problems.append(f"unexpected: {near(str(name), self.tensors)}")
                continue
            try:
                value = as_array(given)
            except (TypeError, ValueError) as error:
                problems.append(f"unusable: {name}: {error}")
                continue
            shape = self.tensors[name].shape
            if value.shape != shape:
                problems.append(f"mis-shaped: {name} is {value.shape}, in the base {shape}")
            elif not np.isfinite(value).all():
                problems.append(f"not finite: {name} has NaN or Inf in it")
            else:
                self.values[name] = value
        for names in self._names.values():
            there = [name for name in names if name in state]
            if not there:
                problems.append(f"missing: {names[0]} {self.tensors[names[0]].shape}")
            elif there[0] in self.values:
                for name in names:
                    self.values.setdefault(name, self.values[there[0]])
        check_problems("the finetuned model does not fit the base; nothing was changed", problems)

    def equal_names(self, name: str) -> list[str]:
        """List the names of this tensor under which the finetuned model has this value."""
        value, names = self.values[name], self._names[id(self.tensors[name])]
        return [other for other in names if np.array_equal(self.values[other], value)]

    def differs(self, name: str) -> bool:
        """Tell whether the two values of a tensor differ."""
        value, tensor = self.values[name], self.tensors[name]
        ours = tensor._data if isinstance(tensor, Tensor) else tensor.dense(value.dtype)
        return not np.array_equal(value, ours)
