"""Plan: what an attachment would consist of, made and checked before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence

import numpy as np

from lora.adapted import AdaptedLayer
from lora.adapter import Adapter
from lora.attachment.record import Attachment, record_of
from lora.attachment.report import Match
from lora.attachment.targets import Target, select
from lora.config import LoRAConfig
from lora.embedding import LoRAEmbedding
from lora.full_copies import Copy, Whole
from lora.layer import LoRALayer, check_rank_fits
from lora.patterns import find
from lora.scaling import LoRAScaling
from lora.surgery import places
from lora.variants.inits import Factors
from lora.variants.inits import check_rank as check_rank_of_init
from lora.variants.nf4 import NF4Linear
from minigrad.nn import Embedding, Linear, Module, MultiHeadAttention, Parameter
from minigrad.progress import progress_bar
from minigrad.random import seed_of


class Plan:
    """All that an attachment consists of.

    Args:
        model: not changed.
        config: which layers, and what adapters.
        rng: where A and B are drawn from, when all has been checked.
        targets: the layers, where others than `config` says; A and B are then 0, for their values
            come from elsewhere, and so may ranks that are larger than any of B A.
        progress: show a progress bar if it takes long.

    Attributes:
        config: what was asked for.
        originals: the layers that will give their place away, by name.
        new: what will take it.
        layers: all that will get the adapter, new or not.
        updates: what they will get.
        copies: what will be trained whole.
        matches: lines for the report.
        seed: what `rng` began from, if that is known.

    Raises:
        TypeError: if a weight is not of floats.
        ValueError: if something does not go together; see `lora.attach`.
    """

    def __init__(
        self,
        model: Module,
        config: LoRAConfig,
        rng: np.random.Generator | None,
        targets: Sequence[Target] | None = None,
        progress: bool = False,
    ) -> None:
        self.config = config
        self.seed = seed_of(rng)
        modules = dict(model.named_modules())
        drawn = targets is None
        targets = targets_in(model, config) if targets is None else targets
        held = places(model)
        self.originals: dict[str, Module] = {}
        self.new: dict[str, AdaptedLayer] = {}
        self.layers: dict[str, AdaptedLayer] = {}
        for target in targets:
            module = modules[target.name]
            if not isinstance(module, AdaptedLayer):
                self.originals[target.name] = module
                module = self.new[target.name] = _around(module)
            self.layers[target.name] = module
            _check_layer(target, module, config if drawn else None)
        _check_saved_by_others(record_of(model), self.new)
        adapted = {n for n, m in modules.items() if isinstance(m, AdaptedLayer)} | set(self.new)
        self.copies = _Copies(model, config, held, adapted, self.layers).made
        listed: Iterable[Target] = targets
        if drawn and config.init.startswith("pissa"):  # all else is fast
            listed = progress_bar(targets, what="singular vectors", unit="layer", shown=progress)
        self.updates = {t.name: _update(self.layers[t.name], t, config, rng, drawn) for t in listed}
        self.matches = [_match(self.layers[t.name], t, self.updates[t.name], held) for t in targets]


def targets_in(model: Module, config: LoRAConfig) -> list[Target]:
    """The layers of a model that `config` means, in its order."""
    linear, tables = candidates(model)
    targets = select(config, linear, tables, projections(model))
    order = [name for name, _ in model.named_modules()]
    return sorted(targets, key=lambda target: order.index(target.name))


def candidates(model: Module) -> tuple[list[str], list[str]]:
    """The names of the linear layers that can have an adapter, and of the embeddings."""
    found = {name: module for name, module in model.named_modules() if _can_adapt(module)}
    tables = [name for name, m in found.items() if isinstance(m, (Embedding, LoRAEmbedding))]
    return [name for name in found if name not in tables], tables


def projections(model: Module) -> dict[str, list[str]]:
    """The names of the four projections of each attention, by its name."""
    return {
        name: [f"{name}.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")]
        for name, module in model.named_modules()
        if isinstance(module, MultiHeadAttention)
    }


def _check_layer(target: Target, layer: AdaptedLayer, drawn: LoRAConfig | None) -> None:
    """Refuse what cannot be adapted, or not in the way that A and B are to be drawn."""
    try:
        if drawn is not None:
            check_rank_fits(target.rank, layer.d_out, layer.d_in)
            check_rank_of_init(drawn.init, target.rank)
    except ValueError as error:
        raise ValueError(
            f"{target.name}: {error}; rank_pattern gives the layer another one, exclude leaves it "
            f"out"
        ) from error
    if layer.weight.dtype.kind != "f":
        raise TypeError(f"{target.name}: the weight must be of floats, not {layer.weight.dtype}")
    if not layer.weight.is_finite():
        raise ValueError(f"{target.name}: the weight has NaN or Inf in it; mend the model first")


def _check_saved_by_others(record: Attachment | None, new: Mapping[str, AdaptedLayer]) -> None:
    """Refuse to adapt a weight that another adapter trains whole."""
    for adapter, attached in {} if record is None else record.adapters.items():
        saved = {id(copy.original): copy.name for copy in attached.copies}
        for name, layer in new.items():
            if id(layer.base_weight) in saved:
                raise ValueError(
                    f"{name}: adapter {adapter!r} trains {saved[id(layer.base_weight)]} whole, so "
                    f"there is no one base for both; exclude it here, or remove that adapter"
                )


def _update(
    layer: AdaptedLayer,
    target: Target,
    config: LoRAConfig,
    rng: np.random.Generator | None,
    drawn: bool,
) -> Adapter:
    begin = None
    if not drawn:
        begin = Factors(np.zeros((target.rank, layer.d_in)), np.zeros((layer.d_out, target.rank)))
    elif isinstance(layer, LoRAEmbedding) and config.init in ("gaussian", "kaiming"):
        begin = layer.begin(target.rank, rng)
    return Adapter(
        layer.weight,
        target.rank,
        target.alpha,
        scaling=LoRAScaling(config.scaling),
        dropout=config.dropout,
        init=config.init,
        use_dora=config.use_dora,
        dora_norm_gradient=config.dora_norm_gradient,
        begin=begin,
        rng=rng,
    )


def _match(
    layer: AdaptedLayer, target: Target, update: Adapter, held: Mapping[int, list[str]]
) -> Match:
    others = [n for n in held.get(id(layer.base_weight), []) if not _inside(n, target.name)]
    tied = [f"tied to {', '.join(others)}"] if others else []
    most = min(layer.d_out, layer.d_in)
    above = [f"rank above min(d_out, d_in) = {most}"] if target.rank > most else []
    return Match(
        target.name,
        target.pattern,
        layer.d_in,
        layer.d_out,
        target.rank,
        sum(part.size for part in update.trained()),
        ", ".join([*layer.kind(), *tied, *above]),
    )


class _Copies:
    """What is trained whole: the modules to save, and biases."""

    def __init__(
        self,
        model: Module,
        config: LoRAConfig,
        held: Mapping[int, list[str]],
        adapted: Container[str],
        targets: Mapping[str, AdaptedLayer],
    ) -> None:
        self._held = held
        self._done: set[int] = set()
        self.made: list[Copy] = []
        if config.modules_to_save:
            self._save_modules(model, config, adapted)
        if config.bias != "none":
            self._save_biases(model, config, targets)

    def _save_biases(
        self, model: Module, config: LoRAConfig, targets: Mapping[str, AdaptedLayer]
    ) -> None:
        def is_meant(name: str) -> bool:
            layer, _, last = name.rpartition(".")
            return last == "bias" and (config.bias == "all" or layer in targets)

        biases = [
            parameter
            for parameter in model.parameters()
            if not isinstance(parameter, Whole) and any(map(is_meant, self._held[id(parameter)]))
        ]
        if not biases:
            raise ValueError(f"bias={config.bias!r}, but there is no bias among the layers")
        for parameter in biases:
            self._copy(parameter, "bias", is_meant, "let the layer that holds it too have one")

    def _save_modules(self, model: Module, config: LoRAConfig, adapted: Container[str]) -> None:
        names = {id(module): name for name, module in model.named_modules()}
        modules = {
            name: module
            for name, module in model.named_modules()
            if name and next(module.named_parameters(), None) is not None
        }
        found = find("modules_to_save", config.modules_to_save, modules, {})
        parts: set[str] = set()  # by their first names, which may be in another module
        for name in found:
            for part in modules[name].modules():
                place = names[id(part)]
                parts.add(place)
                if place in adapted:
                    raise ValueError(
                        f"modules_to_save: {name} is to be trained whole, but {place} has an "
                        f"adapter; leave one of them out"
                    )
                if isinstance(part, NF4Linear):
                    raise ValueError(
                        f"modules_to_save: {place} is in four bits, which do not train; leave it "
                        f"out, or exclude it from lora.quantize"
                    )

        def is_meant(name: str) -> bool:
            return any(_inside(name, part) for part in parts)

        for name in found:
            for parameter in modules[name].parameters():
                self._copy(
                    parameter, "modules_to_save", is_meant, "save the module that holds it too"
                )

    def _copy(
        self, parameter: Parameter, reason: str, is_meant: Callable[[str], bool], advice: str
    ) -> None:
        """Copy a parameter, if all the names it has are meant.

        Raises:
            ValueError: if one is not.
            TypeError: if it is not of floats.
        """
        names = self._held[id(parameter)]
        name = next(filter(is_meant, names))
        others = [other for other in names if not is_meant(other)]
        if others:
            raise ValueError(
                f"{reason}: {name} is tied to {', '.join(others)}, which would change with it; "
                f"{advice}, or untie them"
            )
        if parameter.dtype.kind != "f":
            raise TypeError(
                f"{reason}: {name} is of {parameter.dtype}, and only floats can be trained"
            )
        if id(parameter) not in self._done:
            self._done.add(id(parameter))
            self.made.append(Copy(name, reason, parameter, Whole(parameter)))


def _can_adapt(module: Module) -> bool:
    """Whether a module has adapters, or can have some."""
    if isinstance(module, AdaptedLayer):
        return True
    return any(is_plain(module, kind) for kind in (Linear, Embedding, NF4Linear))


def is_plain(module: Module, kind: type[Module]) -> bool:
    """Whether a module computes what one of `kind` does, and holds no parameters beyond those."""
    return (
        isinstance(module, kind)
        and type(module).forward is kind.forward
        and type(module).__call__ is kind.__call__
        and "forward" not in vars(module)
        and {name for name, _ in module.named_parameters()} <= {"weight", "bias"}
    )


def _around(module: Module) -> AdaptedLayer:
    if isinstance(module, Embedding):
        return LoRAEmbedding.around(module)
    assert isinstance(module, (Linear, NF4Linear))
    return LoRALayer.around(module)


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")
