"""PeftConfig: what PEFT's `adapter_config.json` says, as far as it has a meaning here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lora.config import Bias
from lora.peft.fields import TAKERS, contradictions, problems_of
from lora.scaling import LoRAScaling

CONFIG = "adapter_config.json"

_LARGEST = 1 << 24  # bytes; the largest configurations have some thousand names


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
        problems = problems_of(content)
        values: dict[str, Any] = {}
        for name, take in TAKERS.items():
            if content.get(name) is None:
                continue
            try:
                values[name] = take(content[name])
            except (TypeError, ValueError) as error:
                problems.append(f"{name}={content[name]!r:.100} is wrong: {error}")
        if "target_modules" not in values and not problems:
            problems.append("target_modules are not said; name the layers that have updates")
        problems += contradictions(values)
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
