"""Facts: what our files say beyond PEFT's, in the metadata of the tensors, which PEFT passes by.

The scale in force in each layer, to the bit; which base each update was made on, as a hash of its
matrix; the seed, if it is known; and which version wrote the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

KEY = "minigrad-lora"
"""Of the metadata, whose values are strings: one of JSON."""


@dataclass(frozen=True)
class LayerFacts:
    """What is said of a layer.

    Attributes:
        scale: what B A is multiplied by.
        base: the fingerprint of its matrix; None if it is not known.
        stored: how that was kept: "dense" or "nf4".
        dropout: of its inputs, in training; None for that of the configuration.
    """

    scale: float
    base: str | None = None
    stored: str = "dense"
    dropout: float | None = None


@dataclass(frozen=True)
class Facts:
    """What is said of an adapter.

    Attributes:
        layers: by name.
        version: of the library.
        seed: what the generator of A and of dropout was made from, or None.
        dora_norm_gradient: whether DoRA was trained with its full derivative.
    """

    layers: Mapping[str, LayerFacts] = field(default_factory=dict)
    version: str | None = None
    seed: int | None = None
    dora_norm_gradient: bool = False

    def metadata(self) -> dict[str, str]:
        """For the header of a file; "format" is what PEFT expects."""
        return {"format": "pt", KEY: json.dumps(asdict(self))}

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Facts:
        """What the header of a file says; of one by PEFT, nothing.

        Raises:
            ValueError: if it is not what `metadata` gives.
        """
        if KEY not in metadata:
            return cls()
        try:
            content = json.loads(metadata[KEY])
            layers = {name: _layer(each) for name, each in content["layers"].items()}
            seed, version = content.get("seed"), content.get("version")
            if not isinstance(seed, (int, type(None))) or not isinstance(version, str):
                raise TypeError(f"a seed of {seed!r:.60}, or a version of {version!r:.60}")
            return cls(layers, version, seed, content.get("dora_norm_gradient") is True)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"the metadata {KEY!r} of the file is not as it was written, {error!r:.200}; save "
                f"the adapter again, or take that entry out"
            ) from None


def _layer(content: Mapping[str, Any]) -> LayerFacts:
    facts = LayerFacts(**content)
    if not isinstance(facts.scale, float) or not 0 < facts.scale < math.inf:
        raise ValueError(f"a scale of {facts.scale!r:.60}")
    if not isinstance(facts.base, (str, type(None))) or not isinstance(facts.stored, str):
        raise TypeError(f"a base of {facts.base!r:.60}, {facts.stored!r:.60}")
    dropout = 0.0 if facts.dropout is None else facts.dropout
    if not isinstance(dropout, float) or not 0 <= dropout <= 1:
        raise ValueError(f"a dropout of {facts.dropout!r:.60}")
    return facts


def version() -> str:
    """Of this library."""
    from importlib import metadata

    try:
        return metadata.version("minigrad-lora")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "unknown"
