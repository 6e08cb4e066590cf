"""PeftConfig: what PEFT's `adapter_config.json` says, as far as it has a meaning here.

PEFT 0.21 writes some 40 fields. Some are about how an adapter begins, or for which program it is:
they change no output of one that is there, and are passed by. Others stand for methods that are not
implemented here: they are refused, but only where they are set to something.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from lora.config import Bias
from lora.scaling import LoRAScaling

CONFIG = "adapter_config.json"

_LARGEST = 1 << 24  # bytes; the largest configurations have some thousand names

_WITHOUT_EFFECT = {
    *("revision", "task_type", "inference_mode", "auto_mapping", "peft_type", "peft_version"),
    *("runtime_config", "megatron_core"),
    # How A and B began; where this has changed the base too, `init_lora_weights` says so.
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    "qalora_group_size",  # is for use_qalora
    "velora_config",  # saves memory in training, at the price of approximate gradients
}

_REFUSED = {
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


@dataclass(frozen=True)
class PeftConfig:
    """The fields with a meaning here; names and defaults are PEFT's.

    Attributes:
        target_modules: which layers: names, or a regular expression for whole names.
        r: the rank.
        lora_alpha: what is divided by r, or by its root.
        lora_dropout: of the inputs, in training.
        use_rslora: whether alpha is divided by the root.
        use_dora: whether there are magnitudes.
        rank_pattern: other ranks, by expressions for ends of names; the first that matches counts.
        alpha_pattern: other alphas, likewise.
        exclude_modules: which layers not.
        layers_to_transform: only these indices of layers; empty for all.
        layers_pattern: what comes before the index.
        bias: which biases were trained.
        modules_to_save: ends of names of modules that were trained whole.
        init_lora_weights: how A and B began, which matters where the base was changed with it.
        fan_in_fan_out: whether the base keeps the weights of its layers as `(d_in, d_out)`. A and B
            do not depend on it.
        base_model_name_or_path: what the base is called.
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

    @property
    def scaling(self) -> LoRAScaling:
        """How a scale follows from alpha and the rank."""
        return LoRAScaling.RSLORA if self.use_rslora else LoRAScaling.STANDARD

    @classmethod
    def of(cls, content: Any) -> PeftConfig:
        """What the content of the file says.

        Raises:
            ValueError: with all fields that are unknown, of the wrong kind, contradict others, or
                ask for something that is not implemented and would change the result.
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"a configuration is an object with fields, not {content!r:.60}")
        problems = _kind_problems(content)
        values: dict[str, Any] = {}
        for name, take in _TAKERS.items():
            if content.get(name) is None:
                continue
            try:
                values[name] = take(content[name])
            except (TypeError, ValueError) as error:
                problems.append(f"{name}={content[name]!r:.100} is wrong: {error}")
        if "target_modules" not in values and not problems:
            problems.append("target_modules are not said; name the layers that have updates")
        problems += _contradictions(values)
        if problems:
            raise ValueError("the configuration cannot be used:\n  " + "\n  ".join(problems))
        return cls(**values)

    def as_json(self) -> str:
        """The content of the file: the fields that are set, and what PEFT needs besides."""
        content: dict[str, Any] = {
            "peft_type": "LORA",
            "task_type": None,
            "inference_mode": True,
        }
        for name, value in asdict(self).items():
            listed = list(value) if isinstance(value, tuple) else value
            empty = isinstance(value, tuple) and not value and name != "target_modules"
            content[name] = None if empty else listed
        return json.dumps(content, indent=2) + "\n"


def read_config(path: str | os.PathLike[str]) -> PeftConfig:
    """What a file says.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON, or `PeftConfig.of` refuses what it says.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(path)!r}")
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        content = json.loads(
            path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_without_repeats
        )
        return PeftConfig.of(content)
    except RecursionError:
        raise ValueError(f"{os.fspath(path)!r}: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r}: {error}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a name is there twice, of {', '.join(sorted(found))[:200]}")
    return found


# --------------------------------------------------------------------------------------------------
# Fields that are not read
# --------------------------------------------------------------------------------------------------


def _kind_problems(content: Mapping[str, Any]) -> list[str]:
    """What is asked for that is not implemented, or not known."""
    kind = content.get("peft_type", "LORA")
    found = [] if kind == "LORA" else [f"peft_type={kind!r:.60}; only LORA is implemented"]
    known = {*_TAKERS, *_WITHOUT_EFFECT, *_REFUSED}
    for name, value in content.items():
        if _is_off(value) or name in _TAKERS or name in _WITHOUT_EFFECT:
            continue
        if name in _REFUSED:
            found.append(
                f"{name}={value!r:.100} is not implemented ({_REFUSED[name]}); merge the adapter "
                f"with PEFT, and take the merged model"
            )
        else:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            found.append(
                f"{name}={value!r:.100} is not known{hint}, and might change the result; if it "
                f"does not, take it out of the file"
            )
    return found


def _is_off(value: Any) -> bool:
    """Whether a field says nothing: its method is not in use."""
    return value is None or value is False or value in ({}, [], "")


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    layers, before = values.get("layers_to_transform"), values.get("layers_pattern")
    found = []
    if before and not layers:
        found.append(
            f"layers_pattern={before} says where an index is: of which layers_to_transform"
        )
    if isinstance(values.get("target_modules"), str) and layers:
        found.append("layers_to_transform go with a list of target_modules, not with an expression")
    return found


# --------------------------------------------------------------------------------------------------
# Fields that are: each as it is kept, or an error
# --------------------------------------------------------------------------------------------------


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("it is true or false")
    return value


def _rank(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a rank is a positive integer")
    return value


def _alpha(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("alpha is a number")
    if not 0 < value < math.inf:
        raise ValueError("alpha is a positive number")
    return value


def _probability(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError("it is a probability")
    return float(value)


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise TypeError("it is a list of names")
    return tuple(value)


def _patterns(value: Any) -> str | tuple[str, ...]:
    return _expression(value) if isinstance(value, str) else _names(value)


def _expression(value: str) -> str:
    import re

    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"it is no regular expression: {error}") from None
    return value


def _table(take: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    def table(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise TypeError("it has a pattern for each value")
        return {_expression(pattern): take(each) for pattern, each in value.items()}

    return table


def _several(value: Any) -> tuple[str, ...]:
    return () if value == "" else (value,) if isinstance(value, str) else _names(value)


def _indices(value: Any) -> tuple[int, ...]:
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in listed):
        raise TypeError("indices of layers are integers from 0 on")
    return tuple(listed)


def _bias(value: Any) -> Any:
    return _one_of(value, get_args(Bias))


def _init(value: Any) -> bool | str:
    if isinstance(value, bool):
        return value
    init = value.lower() if isinstance(value, str) else value
    if isinstance(init, str) and init.startswith(_INITS_OF_ANOTHER_BASE):
        raise ValueError(
            "with it PEFT has changed the base, in a way that is not in the file; let PEFT save "
            "the adapter as one of the base as it was, with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    return str(_one_of(init, _INITS))


def _one_of(value: Any, choices: Iterable[str]) -> Any:
    if value not in choices:
        raise ValueError(f"it is one of {', '.join(choices)}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("it is a name")
    return value


_TAKERS: dict[str, Callable[[Any], Any]] = {
    "target_modules": _patterns,
    "r": _rank,
    "lora_alpha": _alpha,
    "lora_dropout": _probability,
    "use_rslora": _flag,
    "use_dora": _flag,
    "rank_pattern": _table(_rank),
    "alpha_pattern": _table(_alpha),
    "exclude_modules": _patterns,
    "layers_to_transform": _indices,
    "layers_pattern": _several,
    "bias": _bias,
    "modules_to_save": _names,
    "init_lora_weights": _init,
    "fan_in_fan_out": _flag,
    "base_model_name_or_path": _text,
}
assert list(_TAKERS) == [each.name for each in fields(PeftConfig)]
