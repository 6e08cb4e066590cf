"""The result of `certify`: figures for each layer and dtype, and a certificate of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lora.scaling import check_number
from minigrad.tables import aligned, as_html

LISTED = 8  # layers at most of which each has its lines in the table

_FIGURES = ("absorbed", "lost", "ulp", "bound")


class MergeError(ValueError):
    """Merging would lose more than is allowed."""


@dataclass(frozen=True)
class CertificateRow:
    """The loss of merging one layer if the weight is stored in one dtype.

    V is W' = W + dW as it is stored, and W_t is W as it is stored.

    Attributes:
        layer: its name.
        dtype: the dtype that the weight is stored in.
        absorbed: of the entries with dW != 0, the share with V = W_t: their update is lost.
        lost: |V - W'| / |dW|, Frobenius norms: rounding relative to the update. Above 1 there is
            more rounding than update. Where dW is 0 it is 0, since nothing can be lost; then
            `bound` has the effect of storing W.
        ulp: the largest |V - W_t| in units in the last place, of the larger one of both. See
            `lora.certificate.rounding.unit_of`, also for NF4.
        bound: the largest difference between an output of the merged layer and of the layer as it
            was, as both are computed, for any input x with |x| <= radius.
        note: says what is not finite, or 0, or overflows. If V overflows, or W or dW is not finite,
            `lost`, `ulp` and `bound` are infinite.
    """

    layer: str
    dtype: str
    absorbed: float
    lost: float
    ulp: float
    bound: float
    note: str = ""

    @property
    def is_finite(self) -> bool:
        """Whether the stored weight and the update are finite."""
        return math.isfinite(self.lost)

    @property
    def figures(self) -> tuple[str, ...]:
        """The columns of the table with numbers."""
        return (
            f"{100 * self.absorbed:.3g} %",
            f"{self.lost:.2g}",
            f"{self.ulp:.3g}",
            f"{self.bound:.2g}",
        )


@dataclass(frozen=True, repr=False)
class MergeCertificate:
    """The loss of merging the layers of a model, in each dtype that they may be stored in.

    Printed, it is a sentence and a table: a line for each layer and dtype, or, for more than a few
    layers, one for each dtype with the layer that loses most.

    `certificate[layer]` gives the rows of a layer.

    Attributes:
        rows: one for each layer and dtype.
        radius: the norm of the inputs for which `bound` is valid.
    """

    rows: tuple[CertificateRow, ...]
    radius: float

    @property
    def layers(self) -> list[str]:
        """The names of the layers."""
        return list(dict.fromkeys(row.layer for row in self.rows))

    @property
    def dtypes(self) -> list[str]:
        """The dtypes in the rows."""
        return list(dict.fromkeys(row.dtype for row in self.rows))

    def __getitem__(self, layer: str) -> tuple[CertificateRow, ...]:
        _check("layer", layer, self.layers)
        return tuple(row for row in self.rows if row.layer == layer)

    def of(self, layer: str, dtype: str) -> CertificateRow:
        """Return the row of a layer and a dtype.

        Raises:
            KeyError: if there is none.
        """
        _check("dtype", dtype, self.dtypes)
        return next(row for row in self[layer] if row.dtype == dtype)

    def worst(self, dtype: str) -> CertificateRow:
        """Return the row of the layer that loses most in a dtype, the first of several.

        Raises:
            KeyError: if there are no rows of it.
        """
        _check("dtype", dtype, self.dtypes)
        return max((row for row in self.rows if row.dtype == dtype), key=lambda row: row.lost)

    def only(self, dtypes: Sequence[str]) -> MergeCertificate:
        """Return a certificate with the rows of some dtypes."""
        return MergeCertificate(tuple(r for r in self.rows if r.dtype in dtypes), self.radius)

    def check(self, limit: float, dtype: str) -> None:
        """Check that merging loses no more than `limit` of the update of any layer.

        Raises:
            KeyError: if there are no rows of the dtype.
            MergeError: if `lost` of a layer exceeds the limit.
            TypeError: if the limit is no number.
            ValueError: if the limit is not from 0 on.
        """
        _check("dtype", dtype, self.dtypes)
        check_number("limit", limit)
        if not limit >= 0:
            raise ValueError(f"limit is a share of the update, from 0 on, not {limit!r}")
        over = [row for row in self.rows if row.dtype == dtype and row.lost > limit]
        if not over:
            return
        head = ("layer", *_FIGURES)
        lines = _table(head, [(row.layer or "the layer", *row.figures) for row in over], over)
        fine = [name for name in self.dtypes if self.worst(name).lost <= limit]
        advice = f"store them in {' or '.join(fine)}" if fine else "store them in a wider dtype"
        raise MergeError(
            f"stored in {dtype}, {len(over)} of {_count(self.layers, 'layer')} would lose more "
            f"than {limit:g} of the update; {advice}, or leave these layers unmerged:\n"
            + "\n".join(lines)
        )

    @property
    def sentence(self) -> str:
        """The result in a sentence."""
        lost = [self.worst(dtype).lost for dtype in self.dtypes]
        parts = [f"{part:.1g}" if part < 1 else "all" for part in lost]
        worst = [f"{part} in {dtype}" for part, dtype in zip(parts, self.dtypes, strict=True)]
        return (
            f"Merging {_count(self.layers, 'layer')} loses at most this part of the update: "
            f"{', '.join(worst)} (bounds for |x| <= {self.radius:g})."
        )

    def _lines(self) -> tuple[tuple[str, ...], list[tuple[str, ...]], Sequence[CertificateRow]]:
        """Return the head and the cells of the table, and the rows that they show."""
        if len(self.layers) <= LISTED:
            cells = [(row.layer or "the layer", row.dtype, *row.figures) for row in self.rows]
            return ("layer", "stored in", *_FIGURES), cells, self.rows
        worst = [self.worst(dtype) for dtype in self.dtypes]
        cells = [(row.dtype, row.layer, *row.figures) for row in worst]
        return ("stored in", f"worst of {len(self.layers)} layers", *_FIGURES), cells, worst

    def __repr__(self) -> str:
        return "\n".join([self.sentence, *_table(*self._lines())])

    def _repr_html_(self) -> str:
        head, cells, rows = self._lines()
        noted = [(*line, row.note) for line, row in zip(cells, rows, strict=True)]
        return as_html(self.sentence, (*head, "note"), noted)


def _table(
    head: Sequence[str], cells: Sequence[Sequence[str]], rows: Sequence[CertificateRow]
) -> list[str]:
    """Align a table, with the notes at the ends of its lines."""
    lines = aligned(head, cells, left=len(head) - len(_FIGURES))
    notes = ["", *(row.note for row in rows)]
    return [f"{line}  {note}".rstrip() for line, note in zip(lines, notes, strict=True)]


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _check(kind: str, name: str, known: Sequence[str]) -> None:
    """Raise a KeyError if the certificate has no such name."""
    if name not in known:
        raise KeyError(f"no {kind} {name!r} in the certificate; there are {', '.join(known)}")
