"""load: an adapter from a folder that PEFT or `lora.save` wrote, onto a model.

All of it is read and checked before anything is changed: what there must be follows from the
configuration and the model, and each tensor of the file must be one of that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from lora.adapter import DEFAULT, Adapter
from lora.attach import attach_planned
from lora.attachment.plan import Plan, candidates, targets_in
from lora.attachment.report import AttachReport
from lora.attachment.targets import Target
from lora.config import LoRAConfig
from lora.embedding import LoRAEmbedding
from lora.full_copies import in_place
from lora.peft.checking import (
    base_problems,
    places_of,
    problems_of,
    scale_problems,
    values_of,
)
from lora.peft.config import PeftConfig
from lora.peft.facts import LayerFacts
from lora.peft.folder import AdapterFolder
from lora.peft.matching import (
    alpha_of,
    ends,
    exact,
    rank_of,
    saved_whole,
    scale_of,
    targeted,
    whole_name,
)
from lora.variants.inits import draw
from minigrad.nn import Module, Parameter
from minigrad.progress import progress_bar


def load(
    model: Module,
    folder: str | os.PathLike[str],
    adapter: str = DEFAULT,
    *,
    check_base: bool = True,
    rng: np.random.Generator | None = None,
    progress: bool = True,
) -> AttachReport:
    """Put an adapter from a folder on a model, as `lora.attach` does with a new one.

    The folder is one of PEFT's, or of `lora.save`. On a model that has adapters it is one more, and
    the active one. Tensors in float16 and bfloat16 are widened; a rank larger than any that the
    update can have is taken, and told in the report.

    Args:
        model: changed in place: the layers get the adapter, and everything else is frozen.
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        adapter: a name for it.
        check_base: refuse a base other than that which the file says the adapter was made on. Files
            of PEFT say nothing of it.
        rng: where what is dropped is drawn from.
        progress: show a progress bar if it takes long.

    Raises:
        FileNotFoundError: if there is no such folder, or a file is missing in it.
        ValueError: if a file is not what it should be; the configuration asks for something that is
            not implemented and would change the result; tensors are missing, unexpected, of other
            shapes, or have NaN or Inf in them; the base is another one; or `lora.attach` would
            refuse the name. All that is wrong is listed, and the model is as it was.
    """
    if not isinstance(model, Module):
        raise TypeError(f"load takes a Module, not {model!r:.60}")
    with AdapterFolder(folder) as files:
        return attach_planned(
            model, adapter, lambda: _plan(model, files, check_base, rng, progress), rng
        )


def _plan(
    model: Module,
    files: AdapterFolder,
    check_base: bool,
    rng: np.random.Generator | None,
    progress: bool,
) -> Plan:
    """What an attachment of the adapter consists of, with its values."""
    targets = _targets(model, files)
    try:
        plan = Plan(model, _config(model, files, targets), rng, targets)
    except ValueError as error:
        raise ValueError(
            f"{os.fspath(files.path)!r} does not go with the model: {error}"
        ) from error
    places = places_of(model, plan)
    problems = [*problems_of(files, plan, places, model), *scale_problems(files, plan)]
    if check_base:
        problems += base_problems(files, plan, progress)
    values = dict(values_of(files, places, problems))
    if problems:
        raise ValueError(
            f"{os.fspath(files.path)!r} does not go with the model; nothing was changed:\n  "
            + "\n  ".join(problems)
        )
    for key, parameter in places.items():
        parameter.data = values[key]
    plan.seed = files.facts.seed
    for name, update in progress_bar(
        plan.updates.items(), what="load", unit="layer", shown=progress
    ):
        _settle(update, files, name, plan)
    return plan


# --------------------------------------------------------------------------------------------------
# Which layers, and a configuration for them
# --------------------------------------------------------------------------------------------------


def _targets(model: Module, files: AdapterFolder) -> list[Target]:
    """The layers of the model that have updates.

    Raises:
        ValueError: if there are none.
    """
    linear, tables = candidates(model)
    order = [name for name, _ in model.named_modules() if name in {*linear, *tables}]
    config = files.config
    found = targeted(config, order, linear)
    if not found:
        raise ValueError(
            f"{os.fspath(files.path)!r} is of another model: its target_modules "
            f"{config.target_modules!r:.200} are none of the layers {', '.join(order) or '(none)'}"
            f"; it has updates of {', '.join(files.layers) or 'none'}"
        )
    return [
        Target(name, pattern, rank_of(config, name), alpha_of(config, name))
        for name, pattern in found.items()
    ]


def _config(model: Module, files: AdapterFolder, targets: Sequence[Target]) -> LoRAConfig:
    """A configuration that means these layers, by the patterns of the file if they do here too."""
    theirs = files.config
    names = [name for name, _ in model.named_modules() if name]
    inside = tuple(f"{target.name}." for target in targets)
    outside = [name for name in names if not name.startswith(inside)]
    parts = [name.rpartition(".") for name, _ in in_place(model)]
    biased = {layer for layer, _, last in parts if last == "bias"}
    if theirs.bias == "lora_only":
        biased &= {target.name for target in targets}
    common: dict[str, Any] = {
        "rank": theirs.r,
        "alpha": theirs.lora_alpha,
        "scaling": theirs.scaling,
        "dropout": theirs.lora_dropout,
        "bias": theirs.bias if biased else "none",
        "modules_to_save": _modules_to_save(theirs, outside),
        "init": _init(theirs.init_lora_weights),
        "use_dora": theirs.use_dora,
        "dora_norm_gradient": theirs.use_dora and files.facts.dora_norm_gradient,
    }
    try:
        made = LoRAConfig(
            targets=theirs.target_modules,
            exclude=theirs.exclude_modules,
            layers_to_transform=theirs.layers_to_transform or None,
            layers_pattern=theirs.layers_pattern,
            rank_pattern=theirs.rank_pattern,
            alpha_pattern=theirs.alpha_pattern,
            **common,
        )
        meant = targets_in(model, made)
        if [_facts(t) for t in meant] == [_facts(t) for t in targets]:
            return made
    except ValueError:
        pass  # a pattern that is in vain in this model, or finds more by the rules of `attach`
    return LoRAConfig(
        targets=exact([target.name for target in targets], names),
        rank_pattern={whole_name(t.name): t.rank for t in targets if t.rank != theirs.r},
        alpha_pattern={
            whole_name(t.name): t.alpha for t in targets if t.alpha != theirs.lora_alpha
        },
        **common,
    )


def _modules_to_save(theirs: PeftConfig, names: Sequence[str]) -> tuple[str, ...]:
    """What is trained whole, by the patterns of the file if they mean the same here."""
    whole = saved_whole(theirs, names)
    kept = tuple(p for p in theirs.modules_to_save if any(ends(name, p) for name in names))
    same = [name for name in names if any(ends(name, p) for p in kept)] == whole
    return kept if same else tuple(whole)


def _facts(target: Target) -> tuple[str, int, float]:
    return target.name, target.rank, target.alpha


def _init(theirs: bool | str) -> str:
    """How A and B began; where it is no way of ours, how they would by default."""
    return str(theirs) if theirs in ("gaussian", "orthogonal", "pissa") else "kaiming"


def _settle(update: Adapter, files: AdapterFolder, name: str, plan: Plan) -> None:
    """What of an adapter is no tensor of the file."""
    facts = files.facts.layers.get(name) or LayerFacts(scale_of(files.config, name))
    update.scale = facts.scale
    if facts.dropout is not None:
        update.dropout = facts.dropout
    is_embedding = isinstance(plan.layers[name], LoRAEmbedding)
    if files.config.init_lora_weights == "pissa" and not is_embedding:
        # PEFT has taken the principal part off the base; here it is what the update is relative to.
        weight = plan.layers[name].weight
        first = draw("pissa", *weight.shape, update.rank, update.scale, weight.dense, None)
        dtype = update.lora_a.dtype
        update.start = Parameter(first.a, False, dtype), Parameter(first.b, False, dtype)
