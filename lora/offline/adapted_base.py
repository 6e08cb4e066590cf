"""AdaptedBase: a base and an adapter in files, and the tensors that belong together.

The files of transformers do not say how their names relate to the layers of the model that PEFT has
adapted. `AdaptedBase` recognises a prefix of the names, names that transformers changes when it
loads a model, and heads that are tied to the embedding. What a model's folder says by itself is in
`lora.offline.model_folder`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import numpy as np

from lora.adapter import Adapter
from lora.offline.model_folder import (
    PathLike,
    bias_of,
    config_of,
    has_scaled_head,
    head_and_tables,
    is_computed,
    name_of_head,
    open_base,
    tied_tables,
    transposed_weights,
)
from lora.offline.stored_weight import StoredWeight
from lora.offline.workers import WorkerPool
from lora.patterns import is_inside
from lora.peft.config import CONFIG
from lora.peft.folder import AdapterFolder, StoredLayer
from lora.peft.keys import KEYS, MAGNITUDE, A, B
from lora.peft.loading import set_pissa_start
from minigrad.io import TensorSet
from minigrad.io.tensor_file import Closing

_RENAMED = (
    "transformers gives the weights of this model other names when it loads them: save it with "
    "save_pretrained(..., save_original_format=False)"
)
_TIED_TO = "tied to {!r}: save the base with a copy of its own (tie_word_embeddings=False)"


class AdaptedBase(Closing):
    """A base and an adapter, both open, and the tensors of the base that the adapter changes.

    `model`, if given, should be the base with the adapter merged. Each worker of a `WorkerPool`
    has its own AdaptedBase. Errors are those of `open_base` and `AdapterFolder`.
    """

    def __init__(self, base: PathLike, adapter: PathLike, model: PathLike | None = None) -> None:
        with ExitStack() as stack:
            self.tensors = stack.enter_context(open_base(base))
            self.files = stack.enter_context(AdapterFolder(adapter))
            self.model = None if model is None else stack.enter_context(open_base(model))
            # The reasons why base and adapter do not fit; `findings_of` checks the adapter itself.
            self.problems: list[str] = []
            own_names = [f"{layer}.weight" for layer in self.files.layers] or self.files.whole
            # The beginnings of names that only the adapter has, and only the base; one is empty.
            self.own_prefix, self.base_prefix = _prefixes(list(own_names), self.tensors)
            # The weights of layers with an update, by layer; and the layers, by weight.
            self.weights = self._find_weights()
            self.layers = {weight.name: layer for layer, weight in self.weights.items()}
            # The weights of embeddings in the base that are also the model's head.
            self.tables = tied_tables(list(self.tensors), self.tensors)
            # The key of each tensor that replaces a tensor of the base, by its name in the base.
            self.replaced = self._find_replaced()
            self.problems += self._missing()
            # Names among them that the base does not have; those that are tied heads in the base;
            # and weights of embeddings that change, and may also be the model's head.
            self.added = [name for name in self.replaced if name not in self.tensors]
            shapes = [self.tensors.info(name).shape for name in self.tables]
            own = {name: self.files.tensors[key].shape for name, key in self.replaced.items()}
            self.heads = [name for name in self.added if own[name] in shapes]
            changed = {*self.layers, *self.replaced}
            self.tied = [name for name in self.tables if name in changed and not self.heads]
            # The names of heads that stay as they are where such an embedding changes.
            names = {name_of_head(table, self.tensors): table for table in self.tied}
            self.copied = {name: table for name, table in names.items() if name}
            # Whether the head and the embedding of the merged model are two weights.
            is_changed = not changed.isdisjoint(head_and_tables(self.tensors))
            self.is_untied = is_changed or bool(self.heads or self.copied)
            self.problems += [*self._problems_of_heads(), *self._renamed()]
            # The layers with an update that cannot be merged.
            self.grouped = [name for name, each in self.files.layers.items() if each.groups > 1]
            self._stack = stack.pop_all()
        self._updates: dict[str, Adapter] = {}

    def update(self, layer: str) -> Adapter:
        """Return the update of a layer, which stays in memory for the next call."""
        if layer in self._updates:
            return self._updates[layer]
        files, stored, weight = self.files, self.files.layers[layer], self.weights[layer]
        parts = {part: files.part(stored, part) for part in stored.keys}
        a, b, magnitude, scaling = parts[A], parts[B], parts.get(MAGNITUDE), files.config.scaling
        made = Adapter.of(weight, a, b, stored.scale, magnitude=magnitude, scaling=scaling)
        set_pissa_start(made, files, weight, layer)
        self._updates[layer] = made
        return made

    def untrained(self) -> list[str]:
        """Return the layers of the base that are targets of the adapter, and have no update."""
        names = [
            own_name
            for name, info in self.tensors.tensors.items()
            if name.endswith(".weight") and len(info.shape) > 1
            if (own_name := self._adapter_name(name.removesuffix(".weight")))
        ]
        return [n for n in self.files.config.targets_among(names, ()) if n not in self.files.layers]

    def _base_name(self, name: str) -> str:
        """Return the name in the base for a name in the adapter."""
        return self.base_prefix + name.removeprefix(self.own_prefix)

    def _adapter_name(self, name: str) -> str:
        """Return the name in the adapter for a name in the base; empty if it has none."""
        is_inside = name.startswith(self.base_prefix)
        return self.own_prefix + name.removeprefix(self.base_prefix) if is_inside else ""

    def _find_weights(self) -> dict[str, StoredWeight]:
        base, layers, found = self.tensors, self.files.layers, {}
        names = {
            layer: self._base_name(f"{layer}.weight")
            for layer, stored in layers.items()
            if stored.kind != "attention"  # `findings_of` reports it
        }
        if missing := {layer: name for layer, name in names.items() if name not in base}:
            matrices = [name for name, info in base.tensors.items() if len(info.shape) == 2]
            self.problems.append(
                f"another base: {len(missing)} of {len(names)} weights that the adapter changes "
                f"are not in it, such as {next(iter(missing.values()))!r}; its own are like "
                f"{', '.join(map(repr, matrices[:2])) or '(none)'}; if it is the right one, "
                f"{self._reason(missing)}"
            )
        transposed = transposed_weights(base)
        for layer, name in names.items():
            if name in base and {A, B} <= layers[layer].keys.keys():
                try:
                    found[layer] = self._weight(layers[layer], name, transposed)
                except ValueError as error:
                    self.problems.append(str(error))
        return found

    def _reason(self, missing: Mapping[str, str]) -> str:
        """Say why the weights of some layers may be missing in the right base, and what to do."""
        wanted = [self.files.layers[layer] for layer in missing]
        if len(wanted) == 1 and {A, B} <= wanted[0].keys.keys():
            a, b = (self.files.tensors[wanted[0].keys[part]].shape for part in (A, B))
            shape = (a[-1], b[0]) if wanted[0].kind == "embedding" else (b[0], a[-1])
            similar = [n for n, info in self.tensors.tensors.items() if info.shape == shape]
            if len(similar) == 1:
                return f"it is {_TIED_TO.format(similar[0])}"
        return _RENAMED

    def _weight(
        self, layer: StoredLayer, name: str, transposed: Mapping[str, bool]
    ) -> StoredWeight:
        """Return the weight of a layer, which the file may store transposed."""
        a, b = (self.files.tensors[layer.keys[part]].shape for part in (A, B))
        # The shape that W must have; None if the shapes of A and B do not match.
        fit = len(a) == len(b) >= 2 and a[0] == b[1] * layer.groups and {*b[2:]} <= {1}
        wanted = (b[0], a[1] // layer.groups, *a[2:]) if fit else None
        weight = StoredWeight(self.tensors, name, layer.kind == "embedding")
        if layer.kind == "linear" and weight.stored_shape[::-1] == wanted:
            is_square = weight.shape == wanted
            is_transposed = not is_square or self._is_transposed(name, transposed)
            weight = StoredWeight(self.tensors, name, is_transposed)
        is_matrix = len(weight.stored_shape) == 2
        if wanted != (weight.shape if is_matrix else weight.stored_shape):
            shape = self.tensors.info(name).shape
            raise ValueError(
                f"mis-shaped: A {a} and B {b} of {layer.name} do not fit {name} {shape}"
            )
        return weight

    def _is_transposed(self, name: str, transposed: Mapping[str, bool]) -> bool:
        """Return whether a square weight is stored transposed.

        PEFT's fan_in_fan_out is the value of the layer adapted last, so it is certain for one
        layer.
        """
        files = self.files
        says, is_of_peft = files.config.fan_in_fan_out, files.facts.version is None
        if is_of_peft and sum(each.kind == "linear" for each in files.layers.values()) == 1:
            return says
        return transposed.get(name, says and (bias_of(name) in self.tensors or not is_of_peft))

    def _find_replaced(self) -> dict[str, str]:
        base, files, found = self.tensors, self.files, {}
        for own_name, key in files.whole.items():
            name, layer = self._base_name(own_name), own_name.removesuffix(".weight")
            if layer != own_name and layer in files.layers:  # PEFT may write it with an update
                has_weight = layer in self.weights
                dtype = base.info(name).dtype if has_weight else ""
                if has_weight and not files.is_same(key, base.read(name, np.float64), dtype):
                    self.problems.append(
                        f"another base: {key} of the adapter is not {name}, which it has an update "
                        f"of"
                    )
                continue
            if name not in base and self._is_tied_copy(key):
                continue
            found[name] = key
            if name in base:
                own, info, source = files.tensors[key].shape, base.info(name), "in the base"
                is_table = own != info.shape and own[1:] == info.shape[1:]
                if is_table and config_of(base).get("vocab_size") == info.shape[0]:
                    source += (
                        f"; if the adapter was trained with more tokens, resize the base likewise, "
                        f"with resize_token_embeddings({own[0]}), and save it"
                    )
                self.problems += files.tensor_problems(key, info.shape, info.dtype, source)
            elif not files.is_trained_in_full(key):
                shape = files.tensors[key].shape
                tables = [name for name in self.tables if base.info(name).shape == shape]
                advice = f"; if it is {_TIED_TO.format(tables[0])}" if tables else ""
                self.problems.append(
                    f"unexpected: {key} is not a part of an update, as {KEYS} are, nor a tensor of "
                    f"the base{advice}"
                )
        return found

    def _is_tied_copy(self, key: str) -> bool:
        """Return whether PEFT wrote the table of the embeddings once more, as the tied head."""
        names = [self._adapter_name(name) for name in self.tables]
        keys = [self.files.whole[name] for name in names if name in self.files.whole]
        files = self.files
        return any(files.is_same(key, files.read(n), files.tensors[n].dtype) for n in keys)

    def _renamed(self) -> Iterator[str]:
        """Yield an error if tensors in full seem to have other names in the base.

        These tensors belong to a numbered block, such as "layers.3", that the base has; or to one
        that it has not, but all of their shapes. A head that is new to the base has another shape.
        """
        base = self.tensors
        blocks, roots = {_block(name) for name in base}, {name.split(".")[0] for name in base}
        numbered = [n for n in self.added if _block(n) and n.split(".")[0] in roots]
        strange = [name for name in numbered if _block(name) in blocks]
        shapes = {info.shape for info in base.tensors.values()}
        if all(self.files.tensors[self.replaced[name]].shape in shapes for name in numbered):
            strange = numbered
        if strange:
            yield (
                f"another base: of the tensors that the adapter has in full, {len(strange)} are "
                f"not in the blocks of the base, such as {strange[0]!r}; if it is the right one, "
                f"{_RENAMED}"
            )

    def _problems_of_heads(self) -> Iterator[str]:
        """Yield an error if a head that is not tied changes more than its weight.

        T5 scales the vectors before its head by d_model^-0.5, but only if the head is tied.

        In BART and similar models, encoder, decoder and head share a table, all of them or none. A
        table without a prefix is that of T5, where encoder and decoder always share it.
        """
        if self.is_untied and has_scaled_head(self.tensors):
            yield (
                "tied: a model of the T5 family scales the vectors before a tied head by "
                "d_model^-0.5, and before another head it does not, so a merged model would "
                "compute other logits; use the adapter without merging it"
            )
        for table in self.tables if self.heads else ():
            prefix = table.removesuffix("shared.weight")
            names = [f"{prefix}{part}.embed_tokens.weight" for part in ("encoder", "decoder")]
            known = {*self.tensors, *self.replaced}
            left = [name for name in [*names, "lm_head.weight"] if name not in known]
            if prefix not in ("", table) and left:
                yield (
                    f"tied: {' and '.join(left)} would have no weight in a model whose head is not "
                    f"tied, because in the base, encoder, decoder and head share {table}; save the "
                    f"base with a copy of it for each (tie_word_embeddings=False)"
                )

    def _missing(self) -> Iterator[str]:
        """Yield an error for each tensor of the base that the adapter should have in full.

        The model of the adapter may lack parts of the base, such as a head. So of biases, only
        those of layers with updates are certain. Of modules to save, those are certain of which the
        adapter has another tensor, or whose name finds nothing in the adapter.
        """
        config, layers, whole = self.files.config, self.files.layers, self.files.whole
        ends = config.modules_to_save
        unused = [end for end in ends if not any(is_inside([end], name) for name in whole)]
        owners = {name.rpartition(".")[0] for name in whole}
        for name, info in self.tensors.tensors.items():
            own_name = self._adapter_name(name)
            layer, _, last = own_name.rpartition(".")
            is_bias = config.bias != "none" and last == "bias" and layer in layers
            is_saved = is_inside(ends if layer in owners else unused, own_name)
            is_known = own_name in whole or is_computed(name, len(info.shape))
            if (is_bias or is_saved) and not is_known:
                yield (
                    f"missing: {name} was trained in full, by bias or modules_to_save of the "
                    f"configuration, and the adapter does not have it; save the adapter again (for "
                    f"bias='lora_only' with PEFT 0.21 or newer: older versions leave biases out), "
                    f"or set bias and modules_to_save in its {CONFIG} to what it has"
                )


def _block(name: str) -> str:
    """Return a name up to its first number, such as "model.layers.3"; empty if it has none."""
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdecimal()), -1)
    return ".".join(parts[: first + 1])


def other_weights(pool: WorkerPool[AdaptedBase]) -> list[str]:
    """List at most one error: that hashes of weights differ from those in the metadata."""
    facts, unknown = pool.opened.files.facts, {*made_on_nf4(pool.opened)}
    known = [name for name in facts.hashed(pool.opened.weights) if name not in unknown]
    hashes = pool.map(_fingerprint, known, "hash of the base", "layer")
    return facts.base_problems(dict(zip(known, hashes, strict=True)))


def made_on_nf4(base: AdaptedBase) -> list[str]:
    """Return the layers whose adapter was made on NF4, so the base's hash cannot be compared.

    The values of NF4 depend on its block size, which the metadata of the adapter do not have.
    """
    facts = base.files.facts.layers
    return [name for name in base.weights if name in facts and facts[name].stored == "nf4"]


def _fingerprint(base: AdaptedBase, layer: str) -> str:
    in_bfloat16 = base.files.facts.layers[layer].stored == "bfloat16"
    return base.weights[layer].fingerprint(in_bfloat16)


def _prefixes(names: Sequence[str], base: TensorSet) -> tuple[str, str]:
    """Return the prefix to remove from the names, and the one to add, so that the base has them.

    Both are empty if the base has a name as it is, or if not exactly one prefix is right. A model
    inside of another model has such names, for example an encoder in a classifier.
    """
    if not names or any(name in base for name in names):
        return "", ""
    first = names[0]
    pairs = [(first[: dot.end()], "") for dot in re.finditer(r"\.", first)]
    pairs += [("", each.removesuffix(first)) for each in base if each.endswith(f".{first}")]
    found = [
        (own, its)
        for own, its in pairs
        if all(name.startswith(own) and its + name[len(own) :] in base for name in names)
    ]
    return found[0] if len(found) == 1 else ("", "")
