"""PeftConfig: read and write PEFT's `adapter_config.json`, and find the layers that it selects.

PEFT 0.21 writes about 40 fields. Those that change the result are the fields of `PeftConfig`. Some
others describe how an adapter was initialised, or which program it is for. They change no output,
and are ignored. The rest belong to methods that are not implemented here, and are errors if set.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lora import patterns
from lora.config import Bias
from lora.expressions import expression
from lora.scaling import LoRAScaling
from minigrad.checks import check_probability, check_problems, nearest
from minigrad.io.tensor_file import parse_json

CONFIG = "adapter_config.json"
"""The name of the file with the configuration, in the folder of an adapter."""

# The largest sizes of a configuration, which are checked before its patterns are read:
MOST_FIELDS = 500  # PEFT writes about 40
MOST_PATTERNS = 1 << 14  # in a table, or in another list of expressions

_WITHOUT_EFFECT = {
    *("revision", "inference_mode", "auto_mapping", "peft_type", "peft_version"),
    *("runtime_config", "megatron_core"),
    # Initial values of A and B; if the init changed the base, `init_lora_weights` refuses it.
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    "qalora_group_size",  # belongs to use_qalora
    "velora_config",  # saves memory in training, at the price of approximate gradients
}

_NOT_IMPLEMENTED = {
    "alora_invocation_tokens": "aLoRA is active from some tokens on",
    "arrow_config": "arrow chooses between adapters by their inputs",
    "ensure_weight_tying": "one update would be shared by tied layers",
    "kasa_config": "KaSA changes the base, and has a diagonal between A and B",
    "layer_replication": "layers of the model would be repeated",
    "lora_bias": "the update would have a bias of its own",
    "megatron_config": "Megatron's parallel layers are others",
    "monteclora_config": "MonteCLoRA draws its updates",
    "target_parameters": "parameters that are in no linear layer would have updates",
    "trainable_token_indices": "some rows of an embedding would be trained",
    "use_bdlora": "BD-LoRA has block-diagonal factors",
    "use_qalora": "QA-LoRA pools its inputs",
}

_MERGEABLE = "merge the adapter with PEFT, and take the merged model"
_UNMERGEABLE = "use the adapter with PEFT, which cannot merge it either"

# Methods whose updates no weight has, and replicated layers, which share theirs.
_NEVER_MERGED = {"alora_invocation_tokens", "arrow_config", "layer_replication", "use_qalora"}

_INITS = ("gaussian", "orthogonal", "eva", "mica", "pissa")
_INITS_OF_ANOTHER_BASE = ("pissa_niter_", "olora", "corda", "lora_ga")

_POSITIVE = ("r", "lora_alpha", "rank_pattern", "alpha_pattern")
_LISTS_OF_EXPRESSIONS = ("layers_pattern", "modules_to_save", "rank_pattern", "alpha_pattern")

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    NoneType: "null",
    tuple[int, ...]: "a list of integers",
    tuple[str, ...]: "a list of texts",
    Sequence[str]: "a list of texts",
    Mapping[str, int]: "a table of patterns and integers",
    Mapping[str, float]: "a table of patterns and numbers",
}
"""The names in messages of the types that `has_type` can check."""


def has_type(kind: Any, value: Any) -> bool:
    """Return whether a value from JSON has a type; a float may be written as an integer."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin in (Union, UnionType):
        return any(has_type(each, value) for each in arguments)
    if origin in (tuple, Sequence):
        return isinstance(value, list) and all(has_type(arguments[0], each) for each in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(
            has_type(arguments[1], each) for each in value.values()
        )
    return type(value) in ((int, float) if kind is float else (kind,))


def in_words(kind: Any) -> str:
    """Describe the values from JSON that have a type, for a message."""
    if kind in _WORDS:
        return _WORDS[kind]
    names = map(repr if get_origin(kind) is Literal else in_words, get_args(kind))
    return " or ".join(names)


def _read(name: str, kind: Any, value: Any) -> Any:
    """Return the value of a field for PeftConfig; raise a ValueError if it is wrong."""
    if name.startswith("layers_") and not isinstance(value, list):  # PEFT accepts a single one
        value = [] if value == "" else [value]
    if not has_type(kind, value):
        raise ValueError(f"it is {in_words(kind)}")
    if isinstance(value, list) and "" in value:
        raise ValueError("no name may be empty")
    numbers = value.values() if isinstance(value, dict) else [value]
    if name in _POSITIVE and not all(0 < number <= sys.float_info.max for number in numbers):
        raise ValueError("a rank or an alpha is positive, and no larger than floats are")
    if name == "lora_dropout":
        check_probability("it", value)
        value = float(value)
    if name == "layers_to_transform" and min(value, default=0) < 0:
        raise ValueError("indices of layers are integers from 0 on")
    if name in ("target_modules", "exclude_modules") and isinstance(value, str):
        patterns.check_expression(value)
    if name in _LISTS_OF_EXPRESSIONS:
        if len(value) > MOST_PATTERNS:
            raise ValueError(
                f"it has {len(value):,} patterns, and {MOST_PATTERNS:,} at most are read"
            )
        for pattern in value:
            patterns.check_expression(pattern, patterns.END_OF_NAME)
    if name == "init_lora_weights" and isinstance(value, str):
        value = value.lower()
        if value.startswith("loftq"):
            raise ValueError(f"with it PEFT has changed the base, so {_MERGEABLE}")
        if value.startswith(_INITS_OF_ANOTHER_BASE):
            raise ValueError(
                "with it PEFT has changed the base, in a way that is not in the file; let PEFT "
                "save the adapter as one of the base as it was, with "
                "save_pretrained(..., path_initial_model_for_weight_conversion=...). If it has "
                f"more than A and B of linear layers, PEFT would leave that out, so {_MERGEABLE}"
            )
        if value not in _INITS:
            raise ValueError(f"it is one of {', '.join(_INITS)}")
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class PeftConfig:
    """PEFT's fields that change the result, with PEFT's names and defaults.

    `PeftConfig.of` and `read_config` check the fields; the class itself does not. The methods find
    layers as PEFT does. Names, expressions and tables match as in `attach`, with two differences. A
    pattern that matches nothing is not an error, because the file may name layers that this model
    does not have. And an index of a layer is a number between other parts of a name.

    Attributes:
        target_modules: the layers with updates: names, or a regular expression for entire names.
        r: the rank.
        lora_alpha: the scale is this number divided by r, or by sqrt(r).
        lora_dropout: the dropout of the inputs, in training.
        use_rslora: whether alpha is divided by sqrt(r).
        use_dora: whether the updates have magnitudes (DoRA).
        rank_pattern: other ranks, by expressions for ends of names; the first match counts.
        alpha_pattern: other alphas, by the same kind of expressions.
        exclude_modules: the targets that have no updates.
        layers_to_transform: the indices of the layers with updates; empty for all layers.
        layers_pattern: the parts of names that come before an index.
        bias: which biases were trained.
        modules_to_save: ends of names of modules that were trained in full.
        init_lora_weights: the initial values of A and B, which also tell whether PEFT changed the
            base.
        fan_in_fan_out: whether the base stores the weights of its layers as `(d_in, d_out)`. The
            shapes of A and B do not depend on it.
        base_model_name_or_path: the name of the base.
        task_type: the kind of model, which PEFT's classes such as AutoPeftModelForCausalLM need.
    """

    target_modules: str | tuple[str, ...]
    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    exclude_modules: str | tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    bias: Bias = "none"
    modules_to_save: tuple[str, ...] = ()
    init_lora_weights: bool | str = True
    fan_in_fan_out: bool = False
    base_model_name_or_path: str | None = None
    task_type: str | None = None

    @classmethod
    def of(cls, content: Any) -> PeftConfig:
        """Make a configuration from the content of the file.

        A ValueError lists all fields that are unknown, have a wrong value, contradict others, or
        need a method that is not implemented and would change the result. Of another `peft_type`,
        it names this type only, because the fields are those of another method.
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"a configuration is an object with fields, not {content!r:.60}")
        if len(content) > MOST_FIELDS:
            raise ValueError(f"it has {len(content):,} fields, and {MOST_FIELDS} at most are read")
        if (method := content.get("peft_type", "LORA")) != "LORA":
            raise ValueError(
                f"the configuration cannot be used: peft_type={method!r:.60}; only LORA is "
                f"implemented; use the adapter with PEFT, which can convert the adapters of some "
                f"methods to LoRA (peft.save_as_lora)"
            )
        kinds = get_type_hints(cls)
        values: dict[str, Any] = {}
        problems = []
        for name, value in content.items():
            said = f"{name:.100}={value!r:.100}"
            if value is None or name in _WITHOUT_EFFECT:
                continue
            if name in kinds:
                try:
                    values[name] = _read(name, kinds[name], value)
                except (TypeError, ValueError) as error:
                    problems.append(f"{said} is wrong: {error}")
            elif value is False or value in ({}, [], ""):  # off
                continue
            elif name in _NOT_IMPLEMENTED:
                advice = _UNMERGEABLE if name in _NEVER_MERGED else _MERGEABLE
                if name == "lora_bias":  # the merged bias needs memory in the layer
                    advice = "merge the adapter with PEFT, which needs layers with biases for it"
                problems.append(f"{said} is not implemented ({_NOT_IMPLEMENTED[name]}); {advice}")
            else:
                hint = nearest(name, {*kinds, *_WITHOUT_EFFECT, *_NOT_IMPLEMENTED})
                problems.append(
                    f"{said} is not known{hint}, and might change the result; if it does not, take "
                    f"it out of the file"
                )
        targets, layers = values.get("target_modules"), values.get("layers_to_transform")
        if targets is None and not problems:
            problems.append("target_modules are missing; name the layers that have updates")
        if values.get("layers_pattern") and not layers:
            problems.append(
                f"layers_pattern={values['layers_pattern']!r:.200} says where an index is: "
                f"of which layers_to_transform"
            )
        if isinstance(targets, str) and layers:
            problems.append(
                "layers_to_transform go with a list of target_modules, not with an expression"
            )
        check_problems("the configuration cannot be used", problems)
        return cls(**values)

    @classmethod
    def of_layers(
        cls,
        ranks: Mapping[str, int],
        alphas: Mapping[str, float],
        among: Iterable[str],
        usual: tuple[int, float] | None = None,
        **fields: Any,
    ) -> PeftConfig:
        """Make a configuration that selects just these layers among the modules of a model.

        `ranks` and `alphas` are given by the names of the layers. `usual` are `r` and `lora_alpha`;
        by default the most frequent ones. `fields` are further fields.
        """
        r, alpha = usual or (Counter(x.values()).most_common(1)[0][0] for x in (ranks, alphas))
        return cls(
            patterns.exact(list(ranks), among),
            r=int(r),
            lora_alpha=alpha,
            rank_pattern=patterns.exact_table(ranks, int(r)),
            alpha_pattern=patterns.exact_table(alphas, alpha),
            **fields,
        )

    def as_json(self) -> str:
        """Return the content of the file: the fields that are set, and those that PEFT requires.

        A ValueError is raised if `of` would refuse it, as with an expression that is too long.
        """
        content = {"peft_type": "LORA", "inference_mode": True, **asdict(self)}
        unset = [n for n, value in content.items() if value == () and n != "target_modules"]
        text = json.dumps({**content, **dict.fromkeys(unset)}, indent=2) + "\n"
        PeftConfig.of(json.loads(text))
        return text

    @property
    def scaling(self) -> LoRAScaling:
        """The formula for the scale, by alpha and the rank."""
        return LoRAScaling.RSLORA if self.use_rslora else LoRAScaling.STANDARD

    def rank_of(self, layer: str) -> int:
        """Return the rank of the update of a layer."""
        return patterns.first_value(self.rank_pattern, layer, self.r)

    def alpha_of(self, layer: str) -> float:
        """Return the alpha of the update of a layer."""
        return float(patterns.first_value(self.alpha_pattern, layer, self.lora_alpha))

    def scale_of(self, layer: str) -> float:
        """Return the scale of the update of a layer: the factor of B A."""
        return self.scaling.scale(self.alpha_of(layer), self.rank_of(layer))

    def targets_among(self, names: Iterable[str], linear: Collection[str]) -> dict[str, str]:
        """Return the names of layers with updates, each with its pattern.

        "all-linear" selects the names in `linear`.
        """
        targets, indices = self.target_modules, self.layers_to_transform
        if isinstance(targets, str) and targets.lower() == patterns.ALL_LINEAR:
            linear = set(linear)
            found = {name: targets for name in names if name in linear}
        else:
            found = patterns.find("target_modules", targets, names, strict=False)
        if indices and not isinstance(targets, str):  # a full name counts for any index
            named = found.keys() & targets
            found = {n: p for n, p in found.items() if n in named or self._index(n) in indices}
        saved = [expression(rf"(?:(^|.*\.){p}($|\..*)).*") for p in self.modules_to_save]
        return {
            name: pattern
            for name, pattern in found.items()
            if not patterns.is_any_match(self.exclude_modules, name)
            and not any(each.matches(name) for each in saved)
        }

    def _index(self, name: str) -> int | None:
        """Return the index of the layer that a name belongs to, as in "model.layers.3.q_proj"."""
        parts = name.split(".")
        numbers = [i for i, part in enumerate(parts[:-1]) if part.isdecimal()]
        if not self.layers_pattern:  # two parts or more are before the index
            return next((int(parts[i]) for i in numbers if i > 1), None)
        for pattern in self.layers_pattern:
            before = expression(rf"(?:^|.*?\.){pattern}")
            for i in numbers:
                if before.matches(".".join(parts[:i])):
                    return int(parts[i])
        return None

    def saved_modules(self, names: Iterable[str]) -> list[str]:
        """Return the modules trained in full: those whose name ends in one of `modules_to_save`."""
        return [name for name in names if name.endswith(self.modules_to_save)]

    def is_saved(self, parameter: str) -> bool:
        """Return whether a parameter is inside of a module that was trained in full."""
        return patterns.is_inside(self.modules_to_save, parameter)


def read_config(path: str | os.PathLike[str]) -> PeftConfig:
    """Read a configuration file, such as an `adapter_config.json` that PEFT wrote.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not JSON, or `PeftConfig.of` refuses its content.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(path)!r}")
    content = read_json(path)
    try:
        return PeftConfig.of(content)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r}: {error}") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the content of a JSON file; a ValueError names the file if it is invalid."""
    try:
        return parse_json(Path(path).read_bytes().decode("utf-8-sig"), "it")
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"{os.fspath(path)!r} is not JSON, or only a part of it: {error!s:.200}; copy it again"
        ) from None
    except ValueError as error:  # a name that is there twice
        raise ValueError(f"{os.fspath(path)!r}: {error}") from None
