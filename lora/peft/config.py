"""PeftConfig: read and write PEFT's `adapter_config.json`, and find the layers that it selects.

PEFT 0.21 writes about 40 fields. Those that change the result are the fields of `PeftConfig`. Some
others describe how an adapter was initialised, or which program it is for. They change no output,
and are ignored. The rest belong to methods that are not implemented here, and are errors if set.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from lora.config import Bias
from lora.expressions import expression
from lora.patterns import (
    ALL_LINEAR,
    END_OF_NAME,
    check_expression,
    ends_of,
    first_value,
    is_any_match,
)
from lora.scaling import LoRAScaling
from minigrad.checks import check_problems, nearest
from minigrad.io.tensor_file import parse_json

CONFIG = "adapter_config.json"
"""The name of the file with the configuration, in the folder of an adapter."""

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

_INITS = ("gaussian", "orthogonal", "eva", "mica", "pissa")
_INITS_OF_ANOTHER_BASE = ("pissa_niter_", "olora", "corda", "loftq", "lora_ga")


# Readers: each returns the value of a field for PeftConfig, or raises a ValueError.

Reader = Callable[[Any], Any]


def _reader(accepts: Callable[[Any], bool], wanted: str, convert: Reader = lambda v: v) -> Reader:
    """Return a reader that converts values for which `accepts` is true, and refuses others."""

    def read(value: Any) -> Any:
        if not accepts(value):
            raise ValueError(wanted)
        return convert(value)

    return read


def _is_number(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


_flag = _reader(lambda v: isinstance(v, bool), "it is true or false")
_text = _reader(lambda v: isinstance(v, str), "it is a name")
_rank = _reader(lambda v: _is_number(v, int) and v >= 1, "a rank is a positive integer")
_alpha = _reader(
    lambda v: _is_number(v, int, float) and 0 < v <= sys.float_info.max,
    "alpha is a positive number, and no larger than floats are",
)
_probability = _reader(
    lambda v: _is_number(v, int, float) and 0 <= v <= 1, "it is a probability", float
)
_names = _reader(
    lambda v: isinstance(v, list) and all(name and isinstance(name, str) for name in v),
    "it is a list of names",
    tuple,
)
_bias = _reader(lambda v: v in get_args(Bias), f"it is one of {', '.join(get_args(Bias))}")


def _indices(value: Any) -> tuple[int, ...]:
    listed = value if isinstance(value, list) else [value]
    if not all(_is_number(each, int) and each >= 0 for each in listed):
        raise ValueError("indices of layers are integers from 0 on")
    return tuple(listed)


def _patterns(value: Any) -> Any:
    return check_expression(value) if isinstance(value, str) else _names(value)


def _name_expressions(value: Any) -> tuple[str, ...]:
    """Read names that PEFT uses as expressions."""
    return tuple(check_expression(each, END_OF_NAME) for each in _names(value))


def _one_or_more_expressions(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value] if value else []
    return _name_expressions(value)


def _table(read: Reader) -> Reader:
    def read_table(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError("it has a pattern for each value")
        return {check_expression(k, END_OF_NAME): read(each) for k, each in value.items()}

    return read_table


def _init(value: Any) -> bool | str:
    if isinstance(value, bool):
        return value
    init = str(value).lower()
    if init.startswith(_INITS_OF_ANOTHER_BASE):
        raise ValueError(
            "with it PEFT has changed the base, in a way that is not in the file; let PEFT save "
            "the adapter as one of the base as it was, with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    if init not in _INITS:
        raise ValueError(f"it is one of {', '.join(_INITS)}")
    return init


@dataclass(frozen=True)
class PeftConfig:
    """PEFT's fields that change the result, with PEFT's names and defaults, each with its reader.

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

    target_modules: Annotated[str | tuple[str, ...], _patterns]
    r: Annotated[int, _rank] = 8
    lora_alpha: Annotated[float, _alpha] = 8
    lora_dropout: Annotated[float, _probability] = 0.0
    use_rslora: Annotated[bool, _flag] = False
    use_dora: Annotated[bool, _flag] = False
    rank_pattern: Annotated[Mapping[str, int], _table(_rank)] = field(default_factory=dict)
    alpha_pattern: Annotated[Mapping[str, float], _table(_alpha)] = field(default_factory=dict)
    exclude_modules: Annotated[str | tuple[str, ...], _patterns] = ()
    layers_to_transform: Annotated[tuple[int, ...], _indices] = ()
    layers_pattern: Annotated[tuple[str, ...], _one_or_more_expressions] = ()
    bias: Annotated[Bias, _bias] = "none"
    modules_to_save: Annotated[tuple[str, ...], _name_expressions] = ()
    init_lora_weights: Annotated[bool | str, _init] = True
    fan_in_fan_out: Annotated[bool, _flag] = False
    base_model_name_or_path: Annotated[str | None, _text] = None
    task_type: Annotated[str | None, _text] = None

    @classmethod
    def of(cls, content: Any) -> PeftConfig:
        """Make a configuration from the content of the file.

        A ValueError lists all fields that are unknown, have a wrong value, contradict others, or
        need a method that is not implemented and would change the result.
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"a configuration is an object with fields, not {content!r:.60}")
        hints = get_type_hints(cls, include_extras=True)
        readers: dict[str, Reader] = {name: hint.__metadata__[0] for name, hint in hints.items()}
        kind = content.get("peft_type", "LORA")
        problems = [] if kind == "LORA" else [f"peft_type={kind!r:.60}; only LORA is implemented"]
        for name, value in content.items():
            is_off = value is None or value is False or value in ({}, [], "")
            if is_off or name in readers or name in _WITHOUT_EFFECT:
                continue
            said = f"{name:.100}={value!r:.100}"
            if name in _NOT_IMPLEMENTED:
                problems.append(
                    f"{said} is not implemented ({_NOT_IMPLEMENTED[name]}); merge the adapter with "
                    f"PEFT, and take the merged model"
                )
            else:
                hint = nearest(name, {*readers, *_WITHOUT_EFFECT, *_NOT_IMPLEMENTED})
                problems.append(
                    f"{said} is not known{hint}, and might change the result; if it does not, take "
                    f"it out of the file"
                )
        values: dict[str, Any] = {}
        for name, read in readers.items():
            if content.get(name) is None:
                continue
            try:
                values[name] = read(content[name])
            except (TypeError, ValueError) as error:
                problems.append(f"{name}={content[name]!r:.100} is wrong: {error}")
        targets, layers = values.get("target_modules"), values.get("layers_to_transform")
        if targets is None and not problems:
            problems.append("target_modules are not said; name the layers that have updates")
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

    def as_json(self) -> str:
        """Return the content of the file: the fields that are set, and those that PEFT requires.

        A ValueError is raised if `of` would refuse it.
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
        return first_value(self.rank_pattern, layer, self.r)

    def alpha_of(self, layer: str) -> float:
        """Return the alpha of the update of a layer."""
        return float(first_value(self.alpha_pattern, layer, self.lora_alpha))

    def scale_of(self, layer: str) -> float:
        """Return the scale of the update of a layer: the factor of B A."""
        return self.scaling.scale(self.alpha_of(layer), self.rank_of(layer))

    def targets_among(self, names: Iterable[str], linear: Collection[str]) -> dict[str, str]:
        """Return the names of layers with updates, each with its pattern.

        "all-linear" selects the names in `linear`.
        """
        linear, targets = set(linear), self.target_modules
        order = {target: -i for i, target in enumerate(reversed(targets))}  # the first one counts
        saved = [expression(rf"(?:(^|.*\.){p}($|\..*)).*") for p in self.modules_to_save]

        def pattern_of(name: str) -> str | None:
            if isinstance(targets, str):
                is_all = targets.lower() == ALL_LINEAR
                is_found = name in linear if is_all else is_any_match(targets, name)
                return targets if is_found else None
            if name in order:  # a full name counts for any index
                return name
            if self.layers_to_transform and self._index(name) not in self.layers_to_transform:
                return None
            return min(ends_of(name) & order.keys(), key=order.__getitem__, default=None)

        found = {}
        for name in names:
            pattern = pattern_of(name)
            if pattern is None or is_any_match(self.exclude_modules, name):
                continue
            if not any(each.matches(name) for each in saved):
                found[name] = pattern
        return found

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
        """Tell whether a parameter belongs to a module that was trained in full."""
        parts = parameter.split(".")
        return bool(self.saved_modules(".".join(parts[:i]) for i in range(1, len(parts))))


def read_config(path: str | os.PathLike[str]) -> PeftConfig:
    """Read a configuration file, such as an `adapter_config.json` that PEFT wrote.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not JSON, or `PeftConfig.of` refuses its content.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(path)!r}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return PeftConfig.of(parse_json(text, "the configuration"))
    except RecursionError:
        raise ValueError(f"{os.fspath(path)!r}: it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{os.fspath(path)!r} is not JSON, or only a part of it: {error}; copy it again"
        ) from None
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r}: {error}") from error
