"""Plan: the new adapters and layers, which `attach` makes and checks before the model changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora.adapted_layer import AdaptedLayer
from lora.adapter import Adapter, check_goes_with_groups
from lora.attachment import state
from lora.attachment.state import FullCopy
from lora.attachment.targets import Target, adapted_kind, projections, targets_in, without_layers
from lora.config import LoRAConfig
from lora.embedding import LoRAEmbedding
from lora.frozen import TrainedCopy, copy_for_adapter
from lora.patterns import find
from lora.scaling import check_rank_divides, check_rank_fits, limit_of_rank
from lora.variants.inits import Factors
from lora.variants.inits import check_rank as check_rank_of_init
from lora.variants.narrow import is_narrow
from minigrad.nn import Buffer, Module, Parameter
from minigrad.progress import progress_bar
from minigrad.random import seed_of


@dataclass(frozen=True)
class Match:
    """One layer that gets an adapter, as the report shows it."""

    name: str  # the name of the layer
    pattern: str  # the target pattern that matched it
    d_in: int  # the size of an input vector
    d_out: int  # the size of an output vector
    rank: int  # the rank of the update
    added: int  # the number of trainable parameters that the adapter adds
    note: str = ""  # a remark, such as "NF4", "bfloat16" or "tied to head.weight"


class Plan:
    """The adapters, layers and copies that `attach` will put into a model, which is not changed.

    A and B are drawn from `rng` after all checks. If `targets` are given, they replace the layers
    of `config`. Then A and B are 0, because the caller sets their values later, and a rank may
    exceed the largest rank of B A. The errors are those of `lora.attach`.
    """

    def __init__(
        self,
        model: Module,
        config: LoRAConfig,
        rng: np.random.Generator | None,
        targets: Sequence[Target] | None = None,
        progress: bool = False,
    ) -> None:
        self.model, self.config = model, config
        self.seed = seed_of(rng) if targets is None else None  # of the draws; None if not known
        self._modules, self._names = dict(model.named_modules()), state.state_names(model)
        self._drawn = drawn = targets is None
        targets = targets_in(model, config) if targets is None else targets
        # The targets whose layers are all excluded: no error, but the report lists them.
        names, groups = [target.name for target in targets], projections(self._modules)
        self.emptied = without_layers(config.targets, names, groups) if drawn else []
        state.check_own(model, names)
        # By name, each layer that will be replaced, and its replacement.
        self.replaced: dict[str, tuple[Module, AdaptedLayer]] = {}
        self.layers = {each.name: self._layer(each) for each in targets}
        originals = {name: original for name, (original, _) in self.replaced.items()}
        state.check_replaceable(model, originals)
        self._check_common_bases()
        self.copies: list[FullCopy] = []  # the parameters and buffers that the adapter has in full
        if config.modules_to_save:
            self._save_modules()
        if config.bias != "none":
            advice = "let the layer that shares it have one too"
            if not self._copy(model.parameters(), "bias", self._is_chosen_bias, advice):
                raise ValueError(f"bias={config.bias!r}, but there is no bias among the layers")
        shown = progress and config.init.startswith(("pissa", "mica"))  # all others are fast
        bar = progress_bar(targets, what="singular vectors", unit="layer", shown=shown)
        self.updates = {target.name: self._update(target, rng) for target in bar}
        self.matches = [*map(self._match, targets)]  # lines for the report

    def _layer(self, target: Target) -> AdaptedLayer:
        """Make the layer that gets the adapter, unless the model has it; check its weight."""
        original: Any = self._modules[target.name]
        layer: AdaptedLayer = original
        if not isinstance(original, AdaptedLayer):
            kind: Any = adapted_kind(original)
            layer = kind.around(original)
            layer.is_attached = True
            self.replaced[target.name] = original, layer
        sizes = layer.d_out, layer.d_in, layer.weight.groups
        advice = "change this option, or exclude the layer"
        try:
            check_goes_with_groups(layer.weight.groups, self.config.init, self.config.use_dora)
            advice = "change rank, or rank_pattern for this layer, or leave it out with exclude"
            check_rank_divides(target.rank, *sizes)
            if self._drawn:
                check_rank_fits(target.rank, *sizes)
                check_rank_of_init(self.config.init, target.rank)
        except ValueError as error:
            advice = advice if self._drawn else "such an adapter cannot be loaded"
            raise ValueError(f"{target.name}: {error}; {advice}") from error
        if layer.weight.dtype.kind != "f":
            raise TypeError(
                f"{target.name}: the weight must be of floats, not {layer.weight.dtype}"
            )
        if not layer.weight.is_finite():
            raise ValueError(
                f"{target.name}: the weight has NaN or Inf in it; mend the model first"
            )
        return layer

    def _check_common_bases(self) -> None:
        """Raise a ValueError if another adapter trains the base of a new layer in full."""
        for adapter, attached in state.attachment_of(self.model).adapters.items():
            saved = {id(copy.original): copy.name for copy in attached.copies}
            for name, (_, layer) in self.replaced.items():
                if id(layer.base_weight) in saved:
                    raise ValueError(
                        f"{name}: adapter {adapter!r} trains {saved[id(layer.base_weight)]} in "
                        f"full, so no base is common to both; exclude it, or remove that adapter"
                    )

    def _match(self, target: Target) -> Match:
        layer = self.layers[target.name]
        notes = ["Embedding"] * isinstance(layer, LoRAEmbedding) + layer.base_facts()
        names = self._names.get(id(layer.base_weight), [])
        tied = [name for name in names if not name.startswith(f"{target.name}.")]
        notes += [f"tied to {', '.join(tied)}"] if tied else []
        most, formula = limit_of_rank(layer.d_out, layer.d_in, layer.weight.groups)
        notes += [f"rank above {formula}"] if target.rank > most else []
        trained = self.updates[target.name].trained()
        added = sum(part.size for part in trained if part.requires_grad)
        sizes = layer.d_in, layer.d_out, target.rank, added
        return Match(target.name, target.pattern, *sizes, ", ".join(notes))

    def _update(self, target: Target, rng: np.random.Generator | None) -> Adapter:
        layer, config, begin = self.layers[target.name], self.config, None
        if not self._drawn:
            columns = target.rank // layer.weight.groups
            a = np.zeros((target.rank, layer.d_in))
            begin = Factors(a, np.zeros((layer.d_out, columns)))
        elif isinstance(layer, LoRAEmbedding) and config.init in ("gaussian", "kaiming"):
            begin = layer.begin(target.rank, rng)
        names = "scaling", "dropout", "init", "use_dora", "dora_norm_gradient"
        options: dict[str, Any] = {name: getattr(config, name) for name in names}
        return Adapter(layer.weight, target.rank, target.alpha, begin=begin, rng=rng, **options)

    def _is_chosen_bias(self, name: str) -> bool:
        layer, _, last = name.rpartition(".")
        return last == "bias" and (self.config.bias == "all" or layer in self.layers)

    def _save_modules(self) -> None:
        """Copy the parameters and buffers of the modules to save."""
        names = {id(module): name for name, module in self._modules.items()}
        able = [name for name, module in self._modules.items() if name and state.has_state(module)]
        parts: set[str] = set()  # first names of tensors, which may be in another module
        for name in find("modules_to_save", self.config.modules_to_save, able):
            for part in self._modules[name].modules():
                own = names[id(part)]
                parts.add(own)
                if isinstance(part, AdaptedLayer) or own in self.replaced:
                    raise ValueError(
                        f"modules_to_save: {name} is to be trained in full, but {own} has an "
                        f"adapter; leave one of them out"
                    )
                if is_narrow(part):
                    bits = "four bits" if part.weight.format == "nf4" else "bfloat16"
                    raise ValueError(
                        f"modules_to_save: {own} is in {bits}, in which nothing trains; leave it "
                        f"out, load the model in float32 (--dtype float32 of generate and eval), "
                        f"or exclude it from lora.quantize"
                    )
        inside = tuple(f"{part}." for part in parts)
        whole = (tensor for _, tensor in self.model.named_state())
        advice = "save the module that shares it too"
        self._copy(whole, "modules_to_save", lambda name: name.startswith(inside), advice)

    def _copy(
        self,
        tensors: Iterable[Parameter | Buffer],
        reason: str,
        is_chosen: Callable[[str], bool],
        advice: str,
    ) -> bool:
        """Copy each tensor for which `is_chosen` holds; tell whether one was copied."""
        known = {id(copy.original) for copy in self.copies}
        found = False
        for tensor in tensors:
            names = self._names[id(tensor)]
            name = next(filter(is_chosen, names), None)
            if name is None or isinstance(tensor, TrainedCopy):
                continue
            found = True
            if others := [other for other in names if not is_chosen(other)]:
                raise ValueError(
                    f"{reason}: {name} is tied to {', '.join(others)}, which would change with it; "
                    f"{advice}, or untie them"
                )
            if isinstance(tensor, Parameter) and tensor.dtype.kind != "f":
                raise TypeError(
                    f"{reason}: {name} has dtype {tensor.dtype}, and only floats can be trained"
                )
            if id(tensor) not in known:
                own = copy_for_adapter(tensor, tensor)
                self.copies.append(FullCopy(tuple(names), reason, tensor, own))
        return found
