"""load: attach an adapter from a folder that PEFT or `lora.save` wrote.

The files are read and checked completely before the model is changed. The configuration and the
model determine which tensors the file must have, and it must have no others.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lora.adapter import DEFAULT, Adapter
from lora.attaching import AttachReport, apply_plan, planning
from lora.attachment.plan import Plan
from lora.attachment.state import has_state, named_tensors, parameters_in_use, state_names
from lora.attachment.targets import Target, candidates, targets_in
from lora.config import LoRAConfig
from lora.convolution import LoRAConv
from lora.embedding import LoRAEmbedding
from lora.frozen import Array, FrozenMatrix
from lora.patterns import exact, exact_table, is_any_match
from lora.peft.facts import fingerprint_of, form_of
from lora.peft.folder import AdapterFolder
from lora.peft.keys import PREFIX, by_key, parameter_of, stored_shape
from lora.variants.inits import INITS, draw
from minigrad.checks import LONGEST_LINE, check_problems, shortened
from minigrad.errors import named_errors
from minigrad.nn import Buffer, Module, Parameter
from minigrad.nn.module import walk
from minigrad.progress import progress_bar


@named_errors
def load(
    model: Module,
    folder: str | os.PathLike[str],
    adapter: str = DEFAULT,
    *,
    check_base: bool = True,
    rng: np.random.Generator | None = None,
    progress: bool = True,
) -> AttachReport:
    """Load an adapter from a folder, and attach it to a model as `lora.attach` does.

    If the model already has adapters, it is added to them, and only the new one is active. Tensors
    in float16 and bfloat16 are converted to the dtype of the layer. A rank larger than the update
    can have is accepted, and noted in the report.

    Args:
        model: the model, changed in place: its layers get the adapter, and everything else is
            frozen.
        folder: a folder that PEFT or `lora.save` wrote.
        adapter: a name for the adapter.
        check_base: raise an error if the file has the hash of another base. Files from PEFT have no
            hash.
        rng: the generator of dropout; None for the default generator.
        progress: show a progress bar if it takes long.

    Raises:
        TypeError: if `model` is not a Module, the name is not a string, or `rng` is not a
            generator.
        FileNotFoundError: if the folder or a file in it is missing.
        NotADirectoryError: if `folder` is a file.
        ValueError: if a file is invalid; the configuration needs a method that is not implemented
            and would change the result; tensors are missing, unexpected, of other shapes, or not
            finite; the adapter was made on another base; PEFT would change a layer of two names
            under the first one only, or has changed a tied weight by PiSSA; or `lora.attach` would
            not accept the name. The message lists all problems of one kind.
        RuntimeError: inside of `lora.disabled`.

    After an error the model is unchanged.
    """
    if not isinstance(model, Module):
        raise TypeError(f"load takes a Module, not {model!r:.60}")
    with AdapterFolder(folder) as files, planning(model, adapter, rng):
        path, config = os.fspath(files.path), files.config
        modules: dict[str, Any] = dict(model.named_modules())
        layers = candidates(modules)
        found = config.targets_among(layers, [n for n, is_linear in layers.items() if is_linear])
        if not found:
            raise ValueError(
                f"{path!r} belongs to another model: its target_modules "
                f"{config.target_modules!r:.200} are none of the layers "
                f"{', '.join(layers) or '(none)'}; it has updates of "
                f"{shortened(', '.join(files.layers), LONGEST_LINE) or 'none'}"
            )
        targets = [_target(files, name, pattern, modules[name]) for name, pattern in found.items()]
        refusal = f"{path!r} does not fit the model; nothing was changed"
        check_problems(refusal, list(_prefix_problems(files, list(found))))
        check_problems(refusal, list(_rank_problems(modules, files, targets)))
        try:
            plan = Plan(model, _config(model, files, targets), rng, targets)
        except ValueError as error:
            raise ValueError(f"{path!r} does not fit the model: {error}") from error
        _set_parameters(plan, files, refusal, check_base, progress)
        plan.seed = files.facts.seed
        bar = progress_bar(plan.updates.items(), what="load", unit="layer", shown=progress)
        for name, update in bar:
            layer, facts = files.layers[name], files.facts.layers.get(name)
            update.scale = layer.scale
            if facts is not None and facts.dropout is not None:
                update.dropout = facts.dropout
            set_pissa_start(update, files, plan.layers[name].weight, name)
        return apply_plan(plan, adapter)


def _target(files: AdapterFolder, name: str, pattern: str, module: Any) -> Target:
    config, rank = files.config, files.rank_of(name, module.weight.shape)
    alpha = config.alpha_of(name)
    if rank < config.rank_of(name):  # PiSSA of a small layer, with the scale of the larger rank
        alpha = config.scaling.alpha(config.scale_of(name), rank)
    return Target(name, pattern, rank, alpha)


def _prefix_problems(files: AdapterFolder, names: Sequence[str]) -> Iterator[str]:
    """Yield an error if the names in the file are those of the model behind a prefix."""
    if not files.layers.keys().isdisjoint(names):
        return
    for each in files.layers:
        prefix = each.removesuffix(names[0])
        if each.endswith(f".{names[0]}") and all(prefix + name in files.layers for name in names):
            yield (
                f"prefix: the file has {prefix!r} before the names of the model, as if the model "
                f"were inside of another one (torch.compile, DataParallel); remove this prefix "
                f"from the keys"
            )


def _rank_problems(
    modules: Mapping[str, Any], files: AdapterFolder, targets: Sequence[Target]
) -> Iterator[str]:
    """Yield an error for each rank above all sizes in the file and of the layer.

    A and B of such a rank might not fit into memory.
    """
    largest = max((size for info in files.tensors.values() for size in info.shape), default=0)
    for target in targets:
        if target.rank > max(largest, *modules[target.name].weight.shape):
            yield (
                f"mis-shaped: {target.name} has rank {target.rank:,} by the configuration, and no "
                f"tensor in the file is so large"
            )


def _set_parameters(
    plan: Plan, files: AdapterFolder, refusal: str, check_base: bool, progress: bool
) -> None:
    """Check all tensors of the file, then copy their values to the parameters of a plan."""
    # Each parameter with its shape in the file.
    weights = {name: layer.base_weight.shape for name, layer in plan.layers.items()}
    updates = {
        name: {
            part: (own, stored_shape(part, own.shape, weights[name], update.groups))
            for part, own in update.contents()
        }
        for name, update in plan.updates.items()
    }
    full = {name: (copy.own, copy.own.shape) for copy in plan.copies for name in copy.names}
    tables = [name for name, layer in plan.layers.items() if isinstance(layer, LoRAEmbedding)]
    parameters = {files.key_for(key): v for key, v in by_key(updates, full, tables).items()}
    values: dict[str, Array] = {}
    problems = []
    for key, (parameter, shape) in parameters.items():
        if key not in files.tensors:
            hint = ""
            if key.endswith(".bias") and files.config.bias == "lora_only":
                hint = "; PEFT before 0.21 leaves such biases out, so save it with a newer version"
            problems.append(f"missing: {key} {shape}{hint}")
            continue
        source = "by its configuration and the model"
        unfit = list(files.tensor_problems(key, shape, parameter.dtype.name, source))
        problems += unfit
        if not unfit:
            with np.errstate(over="ignore"):
                values[key] = files.read(key, parameter.dtype).reshape(parameter.shape)
            if not np.isfinite(values[key]).all():
                problems.append(f"not finite: {key} has NaN or Inf in it, in {parameter.dtype}")
    for copy in plan.copies:
        first, *others = (PREFIX + name for name in copy.names)
        problems += [
            f"apart: {first} and {other} differ, and are one parameter in the model; untie "
            f"them, or merge the adapter with `python -m lora merge`, and load the merged model"
            for other in others
            if {first, other} <= values.keys() and not np.array_equal(values[first], values[other])
        ]
    problems += _problems_of_base_weights(plan, files, parameters, check_base)
    problems += [f"scale: of {name}, {problem}" for name, problem in files.scale_problems()]
    problems += [
        f"dilated: {name} is a convolution with dilation={layer.options['dilation']}, which PEFT's "
        f"A lacks; so what it has trained is not an update of the weight"
        for name, layer in plan.layers.items()
        if isinstance(layer, LoRAConv) and layer.is_dilated and name not in files.facts.layers
    ]
    if files.facts.version is None:
        problems += _problems_of_shared_modules(plan, files)
    if files.config.init_lora_weights == "pissa":
        problems += _problems_of_tied_weights(plan)
    if check_base:
        known = files.facts.hashed(plan.layers)
        bar = progress_bar(known, what="hash of the base", unit="layer", shown=progress)
        hashes = {name: fingerprint_of(plan.layers[name]) for name in bar}
        forms = {name: form_of(layer) for name, layer in plan.layers.items()}
        problems += files.facts.base_problems(hashes, forms)
    check_problems(refusal, problems)
    for key, value in values.items():
        parameters[key][0].data = value


def _problems_of_shared_modules(plan: Plan, files: AdapterFolder) -> Iterator[str]:
    """Yield an error for each further name of a module that PEFT changes under its first name."""
    names = [name for name, _ in plan.model.named_modules() if name]
    changed = {*plan.layers, *files.config.saved_modules(names)}
    first: dict[int, str] = {}
    for path, module in walk(plan.model, "", set(), every_path=True):
        name = first.setdefault(id(module), path)
        if isinstance(module, Module) and path != name and name in changed:
            yield (
                f"shared: {name!r} and {path!r} are one layer in the model, and PEFT changes it "
                f"under the first name only; give {path!r} a copy of the layer"
            )


def _problems_of_tied_weights(plan: Plan) -> Iterator[str]:
    """Yield an error for each weight that PEFT's PiSSA has changed in another layer too."""
    names = state_names(plan.model)
    for name, layer in plan.layers.items():
        tied = [n for n in names.get(id(layer.base_weight), ()) if not n.startswith(f"{name}.")]
        if tied and not isinstance(layer, LoRAEmbedding):
            others = [other.rpartition(".")[0] for other in tied]
            reason = f"no update of {name} alone computes that"
            if plan.layers.keys() >= set(others):
                reason = (
                    f"the update of {', '.join(others)} was trained on what was left of the "
                    f"weight, so it is none of the weight that the model has"
                )
            yield (
                f"tied: PiSSA in PEFT took the principal part off the weight of {name}, and so off "
                f"{', '.join(tied)}, which is the same parameter; {reason}. Train the adapter on a "
                f"model whose weights are not tied, or with another init_lora_weights"
            )


def _problems_of_base_weights(
    plan: Plan, files: AdapterFolder, parameters: Collection[str], check_base: bool
) -> Iterator[str]:
    """Yield errors about tensors that are not parameters of the adapter.

    PEFT may write the weights of embeddings and of the head, adapted or not, and the biases of
    layers with another adapter. They must equal those of the model. For NF4, and without
    `check_base`, only the shape is compared.
    """
    # The weights of the base, dense or in few bits, by all names that PEFT may use.
    own = named_tensors(plan.model)
    own |= {f"{name}.weight": layer.base_weight for name, layer in plan.layers.items()}
    for key in files.tensors:
        if key in parameters or key in files.repeated:
            continue
        weight = own.get(parameter_of(key))
        shape = files.tensors[key].shape
        if weight is None or isinstance(weight, Buffer):
            is_head = key.startswith(f"{PREFIX}lm_head.lora_")
            hint = "; is the head tied? Then save the base with tie_word_embeddings=False"
            yield f"unexpected: {key} {shape}{hint if is_head else ''}"
            continue
        if isinstance(weight, Parameter):
            is_same = files.is_same(key, weight._data, weight.dtype.name)
        elif weight.format == "nf4":  # rounding has changed the values
            is_same = shape == weight.shape
        else:
            is_same = files.is_same(key, weight.dense(), weight.format)
        if shape != weight.shape or (check_base and not is_same):
            shapes = "" if shape == weight.shape else f": {shape}, not {weight.shape}"
            hint = (
                "; if the adapter was trained on a base with a resized vocabulary, merge the two "
                "with `python -m lora merge`, and load the merged model"
            )
            yield (
                f"another base: {key} is not the weight that the model has{shapes}"
                f"{hint if len(shape) == 2 else ''}"
            )


def set_pissa_start(
    update: Adapter, files: AdapterFolder, weight: FrozenMatrix, layer: str
) -> None:
    """Set the initial factors A_0 and B_0 of an update on W, if it began as PiSSA.

    PEFT subtracts the principal part of W from the base; here the update subtracts s B_0 A_0.
    """
    if files.is_pissa(layer):
        first = draw("pissa", weight, update.rank, update.scale, None)
        dtype = update.lora_a.dtype
        update.start = Parameter(first.a, False, dtype), Parameter(first.b, False, dtype)


def _config(model: Module, files: AdapterFolder, targets: Sequence[Target]) -> LoRAConfig:
    """Return a configuration for these layers, with the file's patterns if these match the same."""
    theirs = files.config
    names = [name for name, _ in model.named_modules() if name]
    parts = [name.rpartition(".") for name, _ in parameters_in_use(model)]
    biased = {layer for layer, _, last in parts if last == "bias"}
    if theirs.bias == "lora_only":
        biased &= {target.name for target in targets}
    inside = tuple(f"{target.name}." for target in targets)
    outside = [  # PEFT also accepts a module without parameters, of which nothing is saved
        name for name, module in model.named_modules()
        if name and not name.startswith(inside) and has_state(module)
    ]  # fmt: skip
    saved = theirs.saved_modules(outside)
    useful = [p for p in theirs.modules_to_save if any(is_any_match((p,), n) for n in outside)]
    are_saved_by_useful = [n for n in outside if is_any_match(useful, n)] == saved
    init = str(theirs.init_lora_weights)
    config = LoRAConfig(
        theirs.r,
        theirs.lora_alpha,
        exact([target.name for target in targets], names),
        theirs.scaling,
        theirs.lora_dropout,
        rank_pattern=exact_table({t.name: t.rank for t in targets}, theirs.r),
        alpha_pattern=exact_table({t.name: t.alpha for t in targets}, theirs.lora_alpha),
        bias=theirs.bias if biased else "none",
        modules_to_save=useful if are_saved_by_useful else saved,
        init=init if init in INITS else "kaiming",  # PEFT's default
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
    except ValueError:  # by the rules of `attach`, a pattern matches nothing, or too much
        return config
    return same if meant == [(t.name, t.rank, t.alpha) for t in targets] else config
