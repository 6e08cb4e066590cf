"""Facts: what `lora.save` adds to PEFT's format: metadata of the file, which PEFT ignores."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from lora.adapted_layer import AdaptedLayer
from lora.frozen import Array, strips
from minigrad import __version__
from minigrad.core.tensor import Tensor
from minigrad.tables import counted

KEY = "minigrad-lora"  # the name of the metadata entry, whose value is a string of JSON


@dataclass(frozen=True)
class LayerFacts:
    """The facts about one layer.

    Attributes:
        scale: the exact factor of B A.
        base: the fingerprint of the base matrix, the same in any dtype; None if it is not known.
        stored: how the base matrix was stored: "dense", "nf4" or "bfloat16".
        dropout: the dropout of its inputs in training; None for the one in the configuration.

    Raises:
        TypeError: if `base` or `stored` is not text.
        ValueError: if the scale is not a positive finite float, or the dropout is not a
            probability.
    """

    scale: float
    base: str | None = None
    stored: str = "dense"
    dropout: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.scale, float) or not 0 < self.scale < math.inf:
            raise ValueError(f"a scale of {self.scale!r:.60}")
        if not isinstance(self.base, (str, type(None))) or not isinstance(self.stored, str):
            raise TypeError(f"a base of {self.base!r:.60}, {self.stored!r:.60}")
        dropout = 0.0 if self.dropout is None else self.dropout
        if not isinstance(dropout, float) or not 0 <= dropout <= 1:
            raise ValueError(f"a dropout of {self.dropout!r:.60}")


@dataclass(frozen=True)
class Facts:
    """The facts about an adapter.

    Attributes:
        layers: the facts about each layer, by name.
        version: the version of the library that wrote the file; None before it is written.
        seed: the seed of the generator of A and of dropout.
        dora_norm_gradient: whether DoRA was trained with its full derivative.
    """

    layers: Mapping[str, LayerFacts] = field(default_factory=dict)
    version: str | None = None
    seed: int | None = None
    dora_norm_gradient: bool = False

    def metadata(self) -> dict[str, str]:
        """Return the metadata for the header of a file, with "format", which PEFT expects."""
        content = asdict(self) | {"version": self.version or __version__}
        return {"format": "pt", KEY: json.dumps(content)}

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Facts:
        """Read the facts from the header of a file; those of a file from PEFT are empty.

        A ValueError is raised if the entry does not have the form that `metadata` writes.
        """
        if KEY not in metadata:
            return cls()
        try:
            content = json.loads(metadata[KEY])
            layers = {name: LayerFacts(**each) for name, each in content["layers"].items()}
            seed, version = content.get("seed"), content.get("version")
            if not isinstance(seed, (int, type(None))) or not isinstance(version, str):
                raise TypeError(f"a seed of {seed!r:.60}, or a version of {version!r:.60}")
            return cls(layers, version, seed, content.get("dora_norm_gradient") is True)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"the metadata {KEY!r} of the file is not as it was written, {error!r:.200}; save "
                f"the adapter again, or take that entry out"
            ) from None

    def hashed(self, names: Iterable[str]) -> list[str]:
        """Return those of some layers whose base matrix has a fingerprint here."""
        return [n for n in names if n in self.layers and self.layers[n].base is not None]

    def base_problems(
        self, fingerprints: Mapping[str, str], forms: Mapping[str, str] | None = None
    ) -> list[str]:
        """List at most one error: that the weights of some layers have other fingerprints.

        `forms` says how the weight of each layer of a model is stored, as `LayerFacts.stored`.
        Without it, the message does not name the dtype.
        """
        differing = {n: x for n, x in fingerprints.items() if x != self.layers[n].base}
        if not differing:
            return []
        name, *others = differing
        found, fact = differing[name], self.layers[name]
        stored = also = ""
        if forms is not None and forms[name] != fact.stored:
            dtype = "float32" if fact.stored == "dense" else fact.stored
            stored = f" in {dtype} (--dtype {dtype} of generate and eval)"
        if others:
            some = ", ".join(others[:5]) + ", ..." * (len(others) > 5)
            also = f" (likewise {counted(len(others), 'other layer')}: {some})"
        return [
            f"another base: the weight of {name} has the sha256 {found[:12]}..., and the adapter "
            f"was made on {str(fact.base)[:12]}...{stored}{also}; take that base, or say "
            f"check_base=False (--any-base of merge, generate and eval) to take this one"
        ]


def fingerprint(matrix: Array) -> str:
    """Return a SHA-256 of the elements of a matrix, the same in every dtype that can store them.

    It is a text of 64 hexadecimal digits. The hash covers the shape, as in "(768, 64)", and the
    rows as float32 in C order, little-endian; or as float64, if float32 cannot store all of them.
    """
    return fingerprint_of_rows(matrix.shape, matrix.__getitem__)


def fingerprint_of_rows(shape: tuple[int, ...], read: Callable[[slice], Array]) -> str:
    """Return the fingerprint of a matrix with this shape, whose rows `read` returns."""

    def is_narrow(part: Array) -> bool:
        with np.errstate(over="ignore"):
            return part.dtype.itemsize <= 4 or bool((part == part.astype(np.float32)).all())

    dtype = "<f4" if all(is_narrow(read(rows)) for rows in strips(shape)) else "<f8"
    found = hashlib.sha256(str(tuple(map(int, shape))).encode())
    for rows in strips(shape):
        found.update(np.ascontiguousarray(read(rows), dtype).data)
    return found.hexdigest()


def form_of(layer: AdaptedLayer) -> str:
    """Return how the base matrix of a layer is stored, as `LayerFacts.stored`."""
    return getattr(layer.base_weight, "format", "dense")


def fingerprint_of(layer: AdaptedLayer) -> str:
    """Return the fingerprint of the base matrix of a layer; in few bits, of its decoded values."""
    weight = layer.base_weight
    if isinstance(weight, Tensor):
        return fingerprint(weight._data)
    rows = weight.rows
    return fingerprint_of_rows(weight.shape, lambda part: rows(part.start, part.stop, np.float64))
