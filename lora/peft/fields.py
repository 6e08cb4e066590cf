"""The fields of PEFT's `adapter_config.json`: those that are read, do not matter, or are refused.

PEFT 0.21 writes some 40. Some are about how an adapter begins, or for which program it is: they
change no output of one that is there. Others stand for methods that are not implemented here, and
are refused where they are set to something.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from lora.config import Bias

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

_WITHIN = r"(.*\.)?({})$"
"""What is around an expression that stands for the end of a name, or alike."""

_LARGEST = 2**31 - 1  # rank: what fits into the sizes of arrays anywhere

_INITS = ("gaussian", "orthogonal", "eva", "mica", "pissa")

_INITS_OF_ANOTHER_BASE = ("pissa_niter_", "olora", "corda", "loftq", "lora_ga")


# --------------------------------------------------------------------------------------------------
# Fields that are not read
# --------------------------------------------------------------------------------------------------


def problems_of(content: Mapping[str, Any]) -> list[str]:
    """What is asked for that is not implemented, or not known."""
    kind = content.get("peft_type", "LORA")
    found = [] if kind == "LORA" else [f"peft_type={kind!r:.60}; only LORA is implemented"]
    known = {*TAKERS, *_WITHOUT_EFFECT, *_REFUSED}
    for name, value in content.items():
        if _is_off(value) or name in TAKERS or name in _WITHOUT_EFFECT:
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


def contradictions(values: Mapping[str, Any]) -> list[str]:
    """Which fields do not go together."""
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
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
        raise ValueError(f"a rank is an integer from 1 to {_LARGEST}")
    return value


def _alpha(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("alpha is a number")
    if not 0 < value <= sys.float_info.max:
        raise ValueError("alpha is a positive number, and no larger than floats are")
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


def _expression(value: str, within: str = "{}") -> str:
    """An expression, also where PEFT has put it into a larger one."""
    try:
        re.compile(value)
        re.compile(within.format(value))
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"it is no regular expression: {error}") from None
    return value


def _table(take: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    def table(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise TypeError("it has a pattern for each value")
        return {_expression(pattern, _WITHIN): take(each) for pattern, each in value.items()}

    return table


def _expressions(value: Any) -> tuple[str, ...]:
    """Names that PEFT takes for expressions; one may be alone, or empty."""
    listed = () if value == "" else (value,) if isinstance(value, str) else _names(value)
    return tuple(_expression(each, _WITHIN) for each in listed)


def _saved(value: Any) -> tuple[str, ...]:
    # As which PEFT leaves their layers out.
    return tuple(_expression(each, _WITHIN) for each in _names(value))


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


TAKERS: dict[str, Callable[[Any], Any]] = {
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
    "layers_pattern": _expressions,
    "bias": _bias,
    "modules_to_save": _saved,
    "init_lora_weights": _init,
    "fan_in_fan_out": _flag,
    "base_model_name_or_path": _text,
}
"""How each field that is read becomes what is kept of it, or an error."""
