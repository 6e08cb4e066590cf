"""Fit: which tensors of a base an adapter is about, and what does not go together."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lora.offline.stored_weight import StoredWeight
from lora.offline.transposed import Turned
from lora.peft.fingerprint import fingerprint_of_rows
from lora.peft.folder import KEYS, MAGNITUDE, A, AdapterFolder, B, StoredLayer
from lora.peft.writing import FLOATS
from minigrad.io import TensorSet
from minigrad.progress import progress_bar

TIED = (
    "may be the weight of the head too (tie_word_embeddings): then a merged model has the change "
    "in both, and one with the adapter in the embedding only; to keep the head as it is, save the "
    "base with a copy of its own (tie_word_embeddings=False) first"
)
UNTIED = (
    "is a head of its own, where the base has that of the embedding: config.json must say "
    "tie_word_embeddings=false, as a copied one does"
)

_WITH_HEADS = re.compile(
    "CausalLM|MaskedLM|LMHead|ConditionalGeneration|PreTraining|DoubleHeads", re.ASCII
)
"""In the names of transformers' models that have a head which may be tied."""


@dataclass(frozen=True)
class Fit:
    """How an adapter goes with a base.

    Attributes:
        weights: the weight of each layer that has an update, by the layer's name in the adapter.
        whole: the key of each tensor that takes the place of one of the base, by the latter's name.
        added: which of these the base has not.
        tied: weights of embeddings that change, and may be the model's head too.
        heads: which of the added tensors are the weight of a head that the base has tied.
        prefix: what the base's names have before those of the adapter; "-" and what they lack.
        problems: what does not go together.
    """

    weights: Mapping[str, StoredWeight]
    whole: Mapping[str, str]
    added: Sequence[str]
    tied: Sequence[str]
    heads: Sequence[str]
    prefix: str
    problems: Sequence[str]


def fit(
    files: AdapterFolder, base: TensorSet, check_base: bool = True, progress: bool = True
) -> Fit:
    """Find the tensors of a base that an adapter is about.

    The names of a model inside of another one, as of an encoder in a classifier, have a prefix;
    where all names fit with one and the same prefix more or less, it is taken.

    Args:
        files: the adapter.
        base: the tensors of the base.
        check_base: compare weights with the hashes in the adapter's metadata, if it has some.
        progress: show a progress bar if that takes long.
    """
    wholes = files.whole
    repeated = {f"{layer}.weight" for layer in files.layers} & wholes.keys()
    prefix = _prefix([f"{layer}.weight" for layer in files.layers] or list(wholes), base)
    problems: list[str] = []
    weights: dict[str, StoredWeight] = {}
    turned = Turned(base)
    strange = _strange(list(files.layers), base, prefix)
    if strange:
        problems.append(_told(strange, base))
    for layer in files.layers.values():
        if layer.name in strange:
            continue
        try:
            weights[layer.name] = _weight(files, layer, base, prefix, turned)
        except (KeyError, ValueError) as error:
            problems.append(str(error.args[0]))
    for name in repeated & {f"{layer}.weight" for layer in weights}:
        problems += _differing(files, wholes[name], base, _with(prefix, name))
    whole = {_with(prefix, name): key for name, key in wholes.items() if name not in repeated}
    for name, key in whole.items():
        problems += _problems_of_whole(files, key, base, name)
    if check_base:
        problems += _other_bases(files, weights, progress)
    added = [name for name in whole if name not in base]
    changed = {weight.name for weight in weights.values()} | whole.keys()
    may_be_tied = tied_tables(list(base), base)
    shapes = [base.info(name).shape for name in may_be_tied]
    heads = [name for name in added if files.tensors[whole[name]].shape in shapes]
    tied = [] if heads else [name for name in may_be_tied if name in changed]
    return Fit(weights, whole, added, tied, heads, prefix, problems)


def tied_tables(names: Iterable[str], base: TensorSet) -> list[str]:
    """Which of some weights are a model's head too, by the configuration beside it, and shapes."""
    path = next(iter(base.files.values())).path.parent / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config = {**(config.get("text_config") or {}), **config}
        # transformers has left out what is so by default.
        size = config["vocab_size"] if config.get("tie_word_embeddings", True) else None
        kinds = config.get("architectures") or []
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return []
    if kinds and not any(_WITH_HEADS.search(str(kind)) for kind in kinds):
        return []
    shapes = Counter(info.shape for info in base.tensors.values())
    matrices = [(name, base.info(name).shape) for name in names]
    return [
        n for n, shape in matrices if len(shape) == 2 and shape[0] == size and shapes[shape] == 1
    ]


def _with(prefix: str, name: str) -> str:
    """A name of the adapter as the base has it."""
    return name.removeprefix(prefix[1:]) if prefix.startswith("-") else prefix + name


def _prefix(names: Sequence[str], base: TensorSet) -> str:
    """The one prefix with which the base has all names, if it has none of them without."""
    if not names or any(name in base for name in names):
        return ""
    longer = {each[: -len(names[0])] for each in base if each.endswith(f".{names[0]}")}
    parts = names[0].split(".")
    shorter = {"-" + ".".join(parts[:i]) + "." for i in range(1, len(parts))}
    found = [
        prefix
        for prefix in sorted(longer | shorter)
        if all(_with(prefix, name) in base for name in names)
        and (prefix[0] != "-" or all(name.startswith(prefix[1:]) for name in names))
    ]
    return found[0] if len(found) == 1 else ""


def _strange(layers: Sequence[str], base: TensorSet, prefix: str) -> list[str]:
    """The layers that the base has not, if these are most of several: they have one cause."""
    missing = [name for name in layers if _with(prefix, f"{name}.weight") not in base]
    return missing if len(missing) > max(1, len(layers) / 2) else []


def _told(layers: Sequence[str], base: TensorSet) -> str:
    """That it has none of them, and what to do."""
    matrices = [name for name, info in base.tensors.items() if len(info.shape) == 2]
    return (
        f"another base: it has none of {len(layers)} layers of the adapter, which are like "
        f"{layers[0]!r}, and its own like {', '.join(map(repr, matrices[:2])) or '(none)'}; if it "
        f"is the right one, transformers gives the weights of this model other names when it loads "
        f"them: save it with save_pretrained(..., save_original_format=False)"
    )


def _weight(
    files: AdapterFolder,
    layer: StoredLayer,
    base: TensorSet,
    prefix: str,
    turned: Turned,
) -> StoredWeight:
    """The weight of a layer.

    Raises:
        KeyError: if it is not in the base.
        ValueError: if the update does not go with it.
    """
    missing = {A, B} - layer.keys.keys()
    if files.config.use_dora:
        missing |= {MAGNITUDE} - layer.keys.keys()
    if missing:
        raise ValueError(f"missing: {', '.join(sorted(missing))} of {layer.name}")
    a, b = (files.tensors[layer.keys[part]].shape for part in (A, B))
    _check_own(_with(prefix, f"{layer.name}.weight"), a, b, base)
    weight = StoredWeight(base, _with(prefix, f"{layer.name}.weight"), layer.is_embedding)
    if not layer.is_embedding and _fits(a, b, weight.shape[::-1]):
        is_transposed = not _fits(a, b, weight.shape)
        if not is_transposed:
            # Of a square weight PEFT's fan_in_fan_out does not always tell how it is stored: it
            # is that of the layer which was adapted last.
            is_transposed = turned.of(weight.name, files.config.fan_in_fan_out)
        weight = StoredWeight(base, weight.name, is_transposed)
    if not _fits(a, b, weight.shape):
        raise ValueError(
            f"mis-shaped: A {a} and B {b} of {layer.name} do not go with {weight.name} "
            f"{base.info(weight.name).shape}"
        )
    if MAGNITUDE in layer.keys:
        m = files.tensors[layer.keys[MAGNITUDE]].shape
        if m != weight.shape[:1]:
            raise ValueError(
                f"mis-shaped: the magnitude {m} of {layer.name} is not {weight.shape[:1]}"
            )
    return weight


def _check_own(name: str, a: tuple[int, ...], b: tuple[int, ...], base: TensorSet) -> None:
    """Refuse to merge into a weight that the base has under another name only.

    Raises:
        KeyError: if it may be so.
    """
    alike = [each for each, info in base.tensors.items() if _fits(a, b, info.shape)]
    if name not in base and len(alike) == 1:
        raise KeyError(
            f"there is no tensor {name!r} among {len(base)}; if it is tied to {alike[0]!r}, save "
            f"the base with a copy of its own (tie_word_embeddings=False)"
        )


def _fits(a: tuple[int, ...], b: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(a) == len(b) == 2 and a[0] == b[1] and (b[0], a[1]) == shape


def _problems_of_whole(files: AdapterFolder, key: str, base: TensorSet, name: str) -> Iterator[str]:
    """What is wrong with a tensor that takes the place of one of the base, or is new to it."""
    info = files.tensors[key]
    if info.dtype not in FLOATS:
        yield f"unusable: {key} is of {info.dtype}, and not of {', '.join(FLOATS)}"
    elif not np.isfinite(files.read(key)).all():
        yield f"not finite: {key} has NaN or Inf in it"
    if name not in base:
        if not files.is_meant(key):
            yield (
                f"unexpected: {key} is no part of an update, as {KEYS} are, nor a tensor of the "
                f"base"
            )
        return
    own = base.info(name)
    if own.shape != info.shape:
        yield f"mis-shaped: {key} is {info.shape}, and {name} {own.shape}"
    if own.dtype not in FLOATS:
        yield f"unusable: {name} is of {own.dtype} in the base, and not of {', '.join(FLOATS)}"


def _differing(files: AdapterFolder, key: str, base: TensorSet, name: str) -> Iterable[str]:
    """A weight that an adapter repeats beside an update of it must be that of the base."""
    is_alike = files.tensors[key].shape == base.info(name).shape
    if is_alike and np.array_equal(files.read(key, np.float64), base.read(name, np.float64)):
        return []
    return [f"another base: {key} of the adapter is not {name}, which it has an update of"]


def _other_bases(
    files: AdapterFolder, weights: Mapping[str, StoredWeight], progress: bool
) -> Iterator[str]:
    """Weights that are not those the adapter was made on."""
    known = [
        (weight, facts.base)
        for name, weight in weights.items()
        if (facts := files.facts.layers.get(name)) and facts.base and facts.stored == "dense"
    ]
    for weight, right in progress_bar(known, what="hash of the base", unit="layer", shown=progress):
        found = fingerprint_of_rows(*weight.stored_rows())
        if found != right:
            yield (
                f"another base: {weight.name} has the sha256 {found[:12]}..., and the adapter was "
                f"made on {right[:12]}..."
            )
