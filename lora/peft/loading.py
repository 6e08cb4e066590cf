"""load: an adapter from a folder that PEFT or `lora.save` wrote, onto a model.

The files are read and checked completely before anything is changed: the configuration and the
model say which tensors there must be, and each tensor of the file must be one of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.adapter import DEFAULT, Adapter
from lora.attaching import AttachReport, attach_planned
from lora.attachment.plan import Plan
from lora.attachment.state import parameters_in_use
from lora.attachment.targets import Target, candidates, targets_in
from lora.config import LoRAConfig
from lora.embedding import LoRAEmbedding
from lora.frozen import FrozenMatrix
from lora.patterns import exact, exact_key, is_any_match
from lora.peft.checking import model_problems
from lora.peft.facts import LayerFacts
from lora.peft.folder import FLOATS, AdapterFolder, key_of, key_of_parameter
from lora.variants.inits import draw
from minigrad.nn import Module, Parameter
from minigrad.progress import progress_bar

Array = NDArray[Any]


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
    update can have is accepted, and noted in the report.

    Args:
        model: changed in place: the layers get the adapter, and everything else is frozen.
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        adapter: a name for it.
        check_base: raise an error for a base other than that which the file says the adapter was
            made on. Files of PEFT say nothing of it.
        rng: the generator of dropout.
        progress: show a progress bar if it takes long.

    Raises:
        FileNotFoundError: if there is no such folder, or a file is missing in it.
        ValueError: if a file is not what it should be; the configuration asks for something that is
            not implemented and would change the result; tensors are missing, unexpected, of other
            shapes, or have NaN or Inf in them; the base is another one; or `lora.attach` would
            not accept the name. All that is wrong is listed, and the model is as it was.
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
    """Return the attachment of the adapter, with its values."""
    targets = _targets(model, files)
    mismatch = f"{os.fspath(files.path)!r} does not go with the model"
    try:
        plan = Plan(model, _config(model, files, targets), rng, targets)
    except ValueError as error:
        raise ValueError(f"{mismatch}: {error}") from error
    parameters = _parameters(plan)
    problems = list(model_problems(files, model, plan, parameters, check_base, progress))
    values: dict[str, Array] = {}
    for key, parameter in parameters.items():
        info = files.tensors.get(key)
        if info is None or info.shape != parameter.shape or info.dtype not in FLOATS:
            continue
        with np.errstate(over="ignore"):
            values[key] = files.read(key, parameter.dtype)
        if not np.isfinite(values[key]).all():
            problems.append(f"not finite: {key} has NaN or Inf in it, in {parameter.dtype}")
    if problems:
        raise ValueError(f"{mismatch}; nothing was changed:\n  " + "\n  ".join(problems))
    for key, parameter in parameters.items():
        parameter.data = values[key]
    plan.seed = files.facts.seed
    for name, update in progress_bar(
        plan.updates.items(), what="load", unit="layer", shown=progress
    ):
        facts = files.facts.layers.get(name) or LayerFacts(files.config.scale_of(name))
        update.scale = facts.scale
        if facts.dropout is not None:
            update.dropout = facts.dropout
        layer = plan.layers[name]
        set_pissa_start(update, files, layer.weight, isinstance(layer, LoRAEmbedding))
    return plan


def _parameters(plan: Plan) -> Mapping[str, Parameter]:
    """Return the parameters that need a value from the file, by key."""
    found: dict[str, Parameter] = {}
    for name, update in plan.updates.items():
        is_embedding = isinstance(plan.layers[name], LoRAEmbedding)
        for part, parameter in update.contents():
            if isinstance(parameter, Parameter):
                found[key_of(name, part, is_embedding)] = parameter
    for copy in plan.copies:
        has_update = copy.name.rpartition(".")[0] in plan.updates
        found[key_of_parameter(copy.name, has_update)] = copy.own
    return found


def set_pissa_start(
    update: Adapter, files: AdapterFolder, weight: FrozenMatrix, is_embedding: bool
) -> None:
    """Set what an update on W is relative to, if it began as PiSSA.

    PEFT subtracted the principal part of W from the base; here the update is relative to it. PEFT
    never does so for embeddings, whatever the configuration says.
    """
    if files.config.init_lora_weights == "pissa" and not is_embedding:
        first = draw("pissa", *weight.shape, update.rank, update.scale, weight.dense, None)
        dtype = update.lora_a.dtype
        update.start = Parameter(first.a, False, dtype), Parameter(first.b, False, dtype)


# --------------------------------------------------------------------------------------------------
# Which layers, and a configuration for them
# --------------------------------------------------------------------------------------------------


def _targets(model: Module, files: AdapterFolder) -> list[Target]:
    """Return the layers of the model that have updates.

    Raises:
        ValueError: if there are none.
    """
    linear, tables = candidates(model)
    order = [name for name, _ in model.named_modules() if name in {*linear, *tables}]
    config = files.config
    found = config.targets_among(order, linear)
    if not found:
        raise ValueError(
            f"{os.fspath(files.path)!r} is of another model: its target_modules "
            f"{config.target_modules!r:.200} are none of the layers {', '.join(order) or '(none)'}"
            f"; it has updates of {', '.join(files.layers) or 'none'}"
        )
    return [
        Target(name, pattern, config.rank_of(name), config.alpha_of(name))
        for name, pattern in found.items()
    ]


def _config(model: Module, files: AdapterFolder, targets: Sequence[Target]) -> LoRAConfig:
    """Return a configuration for these layers, with the patterns of the file if they fit here."""
    theirs = files.config
    names = [name for name, _ in model.named_modules() if name]
    parts = [name.rpartition(".") for name, _ in parameters_in_use(model)]
    biased = {layer for layer, _, last in parts if last == "bias"}
    if theirs.bias == "lora_only":
        biased &= {target.name for target in targets}
    inits = ("gaussian", "orthogonal", "pissa")
    init = str(theirs.init_lora_weights)
    config = LoRAConfig(
        theirs.r,
        theirs.lora_alpha,
        exact([target.name for target in targets], names),
        theirs.scaling,
        theirs.lora_dropout,
        rank_pattern={exact_key(t.name): t.rank for t in targets if t.rank != theirs.r},
        alpha_pattern={exact_key(t.name): t.alpha for t in targets if t.alpha != theirs.lora_alpha},
        bias=theirs.bias if biased else "none",
        modules_to_save=_modules_to_save(files, names, targets),
        init=init if init in inits else "kaiming",  # PEFT's default
        use_dora=theirs.use_dora,
        dora_norm_gradient=theirs.use_dora and files.facts.dora_norm_gradient,
    )
    try:
        same = replace(
            config,
            targets=theirs.target_modules,
            exclude=theirs.exclude_modules,
            layers_to_transform=theirs.layers_to_transform or None,
            layers_pattern=theirs.layers_pattern,
            rank_pattern=theirs.rank_pattern,
            alpha_pattern=theirs.alpha_pattern,
        )
        meant = [(t.name, t.rank, t.alpha) for t in targets_in(model, same)]
    except ValueError:  # a pattern matches nothing here, or finds more by the matching of `attach`
        return config
    return same if meant == [(t.name, t.rank, t.alpha) for t in targets] else config


def _modules_to_save(
    files: AdapterFolder, names: Sequence[str], targets: Sequence[Target]
) -> tuple[str, ...]:
    """Return the modules that are trained in full, by the patterns of the file if they fit here."""
    inside = tuple(f"{target.name}." for target in targets)
    outside = [name for name in names if not name.startswith(inside)]
    saved = files.config.saved_modules(outside)
    patterns = files.config.modules_to_save
    useful = tuple(p for p in patterns if any(is_any_match((p,), name) for name in outside))
    return useful if [n for n in outside if is_any_match(useful, n)] == saved else tuple(saved)
