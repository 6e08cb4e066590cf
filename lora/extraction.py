"""Make an adapter from two models: the best low-rank approximation of their difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lora.adapter import DEFAULT, Adapter
from lora.attaching import apply_plan, planning
from lora.attachment.plan import Plan
from lora.attachment.state import FullCopy, attachment_of, layers_in, named_tensors
from lora.attachment.targets import targets_in
from lora.config import Bias, LoRAConfig
from lora.frozen import Array
from lora.patterns import ALL_LINEAR, Patterns, exact, exact_table, near
from lora.scaling import largest_rank
from lora.spectra import Approximation
from lora.variants.narrow import is_narrow
from minigrad.checks import check_problems
from minigrad.core.tensor import Tensor, as_array
from minigrad.errors import named_errors
from minigrad.nn import Module
from minigrad.progress import progress_bar
from minigrad.tables import aligned


@dataclass(frozen=True)
class Extracted:
    """The result of `extract` or of `lora.offline.extract_files` for one layer."""

    name: str  # the name of the layer
    rank: int  # the rank of the update; 0 if the layer does not differ, and gets no update
    error: float = 0.0  # the Frobenius norm of the difference minus the update
    relative_error: float = 0.0  # the same as a share of the norm of the difference
    energy: float = 1.0  # the update's share of the squared norm of the difference

    @classmethod
    def of(cls, name: str, best: Approximation) -> Extracted:
        """Describe the update of a layer, the best approximation of its difference."""
        return cls(name, len(best.a), best.error, best.relative_error, best.energy)

    @property
    def figures(self) -> tuple[str, str, str, str]:
        """The rank, errors and energy as cells of a table."""
        errors = f"{self.error:.3g}", f"{self.relative_error:.3g}", f"{100 * self.energy:.4g} %"
        return str(self.rank), *(errors if self.rank else ("", "", ""))


@dataclass(frozen=True, repr=False)
class ExtractReport:
    """The report of `extract`: a line for each target.

    Attributes:
        layers: the targets, also those that do not differ.
        copies: the parameters and buffers that the adapter has in full.
        adapter: the name of the adapter.
    """

    layers: tuple[Extracted, ...]
    copies: tuple[FullCopy, ...]
    adapter: str

    def __repr__(self) -> str:
        head = ("layer", "rank", "error", "relative", "energy", "")
        rows = [(r.name, *r.figures, "" if r.rank else "does not differ") for r in self.layers]
        rows += [(copy.name, "", "", "", "", "in full") for copy in self.copies]
        return "\n".join(aligned(head, rows))


@named_errors
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
    """Attach to `base` the adapter that best approximates a fully fine-tuned model.

        W_finetuned - W = U S V^T,  B = U_r sqrt(S_r),  A = sqrt(S_r) V_r^T,  scale 1

    In each layer B A is the best approximation of this rank in the Frobenius norm (Eckart and
    Young, 1936). It is exact if the rank is at least that of the difference. Factors are rounded to
    the dtype of the layer, which the errors of the report do not include. A target that does not
    differ gets no adapter. No difference is lost silently: parameters outside the targets must be
    equal, or be copied in full.

    Args:
        base: the base model, changed as by `attach`; `detach` restores it to the bit.
        finetuned: a model of the same structure, or its `state_dict`. If the base is in few bits
            (`lora.quantize`), its rounding error is part of the difference.
        rank: the largest rank of each update.
        targets: the layers to compare, as in `LoRAConfig`.
        exclude: the targets to leave out.
        adapter: a name for the new adapter.
        modules_to_save: modules to copy in full.
        bias: the biases to copy, as in `LoRAConfig`.
        progress: show a progress bar if it takes long.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if names or shapes do not match, there is NaN or Inf, something differs that the
            adapter would not have, no target differs, a grouped convolution does, or `attach` would
            raise an error. Then `base` is unchanged.
    """
    if not isinstance(base, Module) or not isinstance(finetuned, (Module, Mapping)):
        raise TypeError(
            f"extract takes a Module, and a Module or a state_dict, not "
            f"{type(base).__name__} and {type(finetuned).__name__}"
        )
    config = LoRAConfig(
        rank, rank, targets, exclude=exclude, modules_to_save=modules_to_save, bias=bias
    )
    if attachment_of(base).adapters or layers_in(base):
        raise ValueError(
            "the base has adapters already, and their updates would count as a difference; "
            "lora.detach(base) removes them, lora.fold(base) adds them to the weights"
        )
    state = _state_of(finetuned) if isinstance(finetuned, Module) else finetuned
    with planning(base, adapter, None):
        tensors = named_tensors(base)
        values = _checked_values(tensors, state)
        different = list(_different(tensors, values))
        names = [target.name for target in targets_in(base, config)]
        modules: dict[str, Any] = dict(base.named_modules())
        differing = [name for name in names if f"{name}.weight" in different]
        if not differing:
            raise ValueError(
                f"none of the targets differs from the base, so there is nothing to extract: "
                f"{', '.join(names[:5])}{', ...' * (len(names) > 5)}"
            )
        if grouped := [name for name in differing if getattr(modules[name], "groups", 1) > 1]:
            raise ValueError(
                f"the difference of a grouped convolution is no single product B A, so none is "
                f"made of {', '.join(grouped)}; exclude these layers, and copy them with "
                f"modules_to_save"
            )
        # Adapters for these layers alone, with ranks no larger than the layers allow.
        ranks = {n: min(config.rank, largest_rank(modules[n].weight.shape)) for n in differing}
        smaller = exact_table(ranks, config.rank)
        chosen = replace(
            config,
            targets=exact(differing, modules),
            exclude=(),
            rank_pattern=smaller,
            alpha_pattern=smaller,
        )
        plan = Plan(base, chosen, None, targets_in(base, chosen))
        _check_complete(plan, values, different)
        bar = progress_bar(differing, what="singular vectors", unit="layer", shown=progress)
        found = {}
        for name in bar:
            layer = plan.layers[name]
            difference = layer.weight_of(values[f"{name}.weight"]).dense() - layer.weight.dense()
            best = Approximation.of_matrix(difference, config.rank)
            plan.updates[name] = Adapter.of(layer.weight, best.a, best.b, 1.0)
            found[name] = Extracted.of(name, best)
        _set_copies(plan, values)
        apply_plan(plan, adapter)
    rows = tuple(found.get(name, Extracted(name, 0)) for name in names)
    return ExtractReport(rows, tuple(plan.copies), adapter)


def _state_of(finetuned: Module) -> dict[str, Any]:
    """Return the state of a fine-tuned model, also its weights in few bits; refuse adapters."""
    if adapted := layers_in(finetuned):
        raise ValueError(
            f"the finetuned model has adapters, in {', '.join(adapted) or 'itself'}; lora.fold a "
            f"copy of it"
        )
    narrow = {name: module for name, module in finetuned.named_modules() if is_narrow(module)}
    return finetuned.state_dict() | {
        f"{name}.weight": layer.weight.dense(layer.dtype) for name, layer in narrow.items()
    }


def _check_complete(plan: Plan, values: Mapping[str, Array], different: Sequence[str]) -> None:
    """Raise a ValueError if a tensor that is different would not be in the adapter."""
    covered = {f"{name}.weight" for name in plan.updates}
    for copy in plan.copies:  # another name may have another value, if the tie was cut
        value = values[copy.name]
        covered |= {name for name in copy.names if np.array_equal(values[name], value)}
    if lost := [name for name in different if name not in covered]:
        raise ValueError(
            f"the finetuned model differs from the base in what the adapter would not have: "
            f"{', '.join(lost)}; make their layers targets, or copy modules with "
            f'modules_to_save=[...], and biases with bias="all"'
        )


def _set_copies(plan: Plan, values: Mapping[str, Array]) -> None:
    """Set what is copied in full; a ValueError names what overflows in the whole adapter."""
    with np.errstate(over="ignore"):
        for copy in plan.copies:
            copy.own.copy_(values[copy.name])
    made: list[tuple[str, Tensor]] = [(copy.name, copy.own) for copy in plan.copies]
    made += ((name, part) for name, each in plan.updates.items() for part in each.trained())
    beyond = dict.fromkeys(name for name, part in made if not np.isfinite(part.data).all())
    if beyond:
        raise ValueError(
            f"the adapter would overflow the dtype of the base in {', '.join(beyond)}; convert the "
            f"base first, with base.astype(np.float32)"
        )


def _different(tensors: Mapping[str, Any], values: Mapping[str, Array]) -> Iterator[str]:
    """Yield the names of the tensors of the base that have other values in the other model."""
    for name, tensor in tensors.items():
        ours = tensor._data if isinstance(tensor, Tensor) else tensor.dense(values[name].dtype)
        if not np.array_equal(values[name], ours):
            yield name


def _checked_values(tensors: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Array]:
    """Return the fine-tuned value of each tensor of the base; a ValueError lists all mistakes.

    Of the names of a tied tensor, the state may have any. They may have different values, if the
    tie was cut, as `fold` does; names that are missing get the first of them.
    """
    values: dict[str, Array] = {}
    problems = []
    for name, given in state.items():
        if name not in tensors:
            problems.append(f"unexpected: {near(str(name), tensors)}")
            continue
        try:
            value = as_array(given)
        except (TypeError, ValueError) as error:
            problems.append(f"unusable: {name}: {error}")
            continue
        shape = tensors[name].shape
        if value.shape != shape:
            problems.append(f"mis-shaped: {name} is {value.shape}, in the base {shape}")
        elif not np.isfinite(value).all():
            problems.append(f"not finite: {name} has NaN or Inf in it")
        else:
            values[name] = value
    there = {id(tensors[name]) for name in state if name in tensors}
    first = {id(tensors[name]): value for name, value in reversed(values.items())}
    for name, tensor in tensors.items():
        if id(tensor) not in there:
            problems.append(f"missing: {name} {tensor.shape}")
            there.add(id(tensor))
        elif id(tensor) in first:
            values.setdefault(name, first[id(tensor)])
    check_problems("the finetuned model does not fit the base; nothing was changed", problems)
    return values
