"""Measure the rounding error of merging, and bound the change of the outputs.

W' = W + dW is exact, V is W' as it is stored, and |x| <= R. m and k are the roundings of each term
with the merged weight and without. By the Cauchy-Schwarz inequality, output j changes by at most

    R (|v_j - w'_j| + gamma_m |v_j| + gamma_k (|w_j| + spread_j)) + (gamma_m + gamma_k) |b_j|

plus the error of underflow. `LayerMerge` bounds the rounding error of dW. The rounding error of the
sum W + dW is computed exactly (Knuth's TwoSum; Higham, 2002, section 4.3). The rounding errors of
float64 in this bound itself are added to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lora.certificate.layers import LayerMerge
from lora.certificate.rounding import (
    DTYPES,
    check_dtypes,
    gamma,
    least_of,
    norms,
    round_to,
    unit_of,
    upper,
)
from lora.frozen import Array, strips
from minigrad.checks import check_number
from minigrad.progress import progress_bar
from minigrad.tables import aligned, as_html, counted

LISTED = 8  # up to so many layers, the table lists each of them

_FIGURES = ("absorbed", "lost", "ulp", "bound", "")  # the last column is the note


class MergeError(ValueError):
    """The error of a merge in which rounding would lose more of an update than `limit`."""


@dataclass(frozen=True)
class CertificateRow:
    """The rounding error of merging one layer, if its merged weight is stored in one dtype.

    V is W' = W + dW as it is stored, and W_t is W as it is stored. If V overflows, or W or dW is
    not finite, `lost`, `ulp` and `bound` are infinite.

    Attributes:
        layer: the name of the layer.
        dtype: the dtype that stores the weight.
        absorbed: of the entries with dW != 0, the share with V = W_t: their update is lost.
        lost: |V - W'| / |dW|, in Frobenius norms: the rounding error relative to the update. Above
            1, the rounding error is larger than the update. If dW is 0, `lost` is 0, and `bound`
            shows the effect of storing W.
        ulp: the largest |V - W_t|, in units in the last place of the larger of the two; see
            `lora.certificate.rounding.unit_of`, also for NF4.
        bound: a limit on the difference between an output of the merged layer and of the unmerged
            layer, both as computed, for any input x with |x| <= radius.
        note: which number is not finite, or 0, or overflows.
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
        """The cells of the table: the numbers and the note."""
        losses = f"{self.lost:.2g}", f"{self.ulp:.3g}", f"{self.bound:.2g}"
        return f"{100 * self.absorbed:.3g} %", *losses, self.note


@dataclass(frozen=True, repr=False)
class MergeCertificate:
    """The rounding errors of merging the layers of a model, in each dtype that may store them.

    It prints as a sentence and a table with a line for each layer and dtype. For more than a few
    layers, the table has a line for each dtype, with the layer that loses most.
    `certificate[layer]` returns the rows of a layer, and raises a KeyError for an unknown one.

    Attributes:
        rows: a row for each layer and dtype.
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
        """Return the row of a layer and a dtype; a KeyError if there is none."""
        _check("dtype", dtype, self.dtypes)
        return next(row for row in self[layer] if row.dtype == dtype)

    def worst(self, dtype: str) -> CertificateRow:
        """Return the first row that loses most in a dtype; a KeyError if there is none."""
        _check("dtype", dtype, self.dtypes)
        return max((row for row in self.rows if row.dtype == dtype), key=lambda row: row.lost)

    def only(self, dtypes: str | Sequence[str]) -> MergeCertificate:
        """Return a certificate with the rows of some dtypes; a ValueError if one is unknown."""
        chosen = check_dtypes(dtypes)
        return MergeCertificate(tuple(r for r in self.rows if r.dtype in chosen), self.radius)

    def check(self, limit: float, dtype: str) -> None:
        """Raise a MergeError if merging loses more than `limit` of the update of a layer.

        A KeyError is raised if there are no rows of the dtype. A TypeError or ValueError is raised
        if the limit is not a number of at least 0.
        """
        _check("dtype", dtype, self.dtypes)
        check_number("limit", limit)
        if not limit >= 0:
            raise ValueError(f"limit is a share of the update, from 0 on, not {limit!r}")
        over = [row for row in self.rows if row.dtype == dtype and row.lost > limit]
        if not over:
            return
        cells = [(row.layer or "the layer", *row.figures) for row in over]
        fine = [name for name in self.dtypes if self.worst(name).lost <= limit]
        advice = f"store them in {' or '.join(fine)}" if fine else "store them in a wider dtype"
        raise MergeError(
            f"stored in {dtype}, {len(over)} of {counted(len(self.layers), 'layer')} would lose "
            f"more than {limit:g} of the update; {advice}, or leave these layers unmerged:\n"
            + "\n".join(aligned(("layer", *_FIGURES), cells, left=1))
        )

    @property
    def sentence(self) -> str:
        """The result in a sentence."""
        worst = []
        for dtype in self.dtypes:
            lost = self.worst(dtype).lost
            worst.append(f"{lost:.2g} in {dtype}" if lost < 1 else f"all in {dtype}")
        return (
            f"Merging {counted(len(self.layers), 'layer')} loses at most this part of the update: "
            f"{', '.join(worst)} (bounds for |x| <= {self.radius:g})."
        )

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        if len(self.layers) <= LISTED:
            cells = [(row.layer or "the layer", row.dtype, *row.figures) for row in self.rows]
            return ("layer", "stored in", *_FIGURES), cells
        worst = [self.worst(dtype) for dtype in self.dtypes]
        cells = [(row.dtype, row.layer, *row.figures) for row in worst]
        return ("stored in", f"worst of {len(self.layers)} layers", *_FIGURES), cells

    def __repr__(self) -> str:
        return "\n".join([self.sentence, *aligned(*self._table(), left=2)])

    def _repr_html_(self) -> str:
        head, cells = self._table()
        return as_html(self.sentence, (*head[:-1], "note"), cells)


def _check(kind: str, name: str, known: Sequence[str]) -> None:
    """Raise a KeyError if the certificate has no such name."""
    if name not in known:
        raise KeyError(f"no {kind} {name!r} in the certificate; there are {', '.join(known)}")


def certify(
    parts: Iterable[LayerMerge],
    dtypes: str | Sequence[str] = DTYPES,
    radius: float = 1.0,
    *,
    progress: bool = True,
) -> MergeCertificate:
    """Compute the certificate: the rounding error of merging each layer, stored in each dtype.

    The bound assumes that a merged weight is multiplied in the wider of its dtype and the layer's
    dtype. Only some rows of W and dW are in memory at a time.

    Args:
        parts: the layers, with different names.
        dtypes: some of `DTYPES`.
        radius: the norm of the inputs for which `bound` is valid; it has no effect on embeddings.
        progress: show a progress bar if it takes longer than a second or two.

    Raises:
        TypeError: if the radius is not a number.
        ValueError: if there are no dtypes, a dtype is unknown, or the radius is not positive and
            finite.
    """
    parts, dtypes = tuple(parts), check_dtypes(dtypes)
    if not 0 < check_number("radius", radius) < math.inf:
        raise ValueError(f"radius must be a positive number, the norm of inputs, not {radius!r}")
    rows: list[CertificateRow] = []
    elements = sum(math.prod(part.shape) for part in parts)
    with progress_bar(
        what="certifying the merge", unit="number", shown=progress, total=elements, unit_scale=True
    ) as bar:
        for part in parts:
            tallies = [_RoundingErrors(part, dtype, float(radius)) for dtype in dtypes]
            for strip in strips(part.shape):
                w, d = part.base(strip), part.update(strip)
                for tally in tallies:
                    tally.add(strip, w, d)
                bar.update(w.size)
            rows += [tally.row() for tally in tallies]
    return MergeCertificate(tuple(rows), float(radius))


class _RoundingErrors:
    """Collects the rounding errors of merging one layer in one dtype, strip by strip."""

    def __init__(self, part: LayerMerge, dtype: str, radius: float) -> None:
        self.part, self.dtype = part, dtype
        self.radius = 1.0 if part.one_hot else radius
        # Weights of bfloat16 and NF4 are converted to float32 before they are multiplied.
        stored = dtype if dtype in ("float16", "float64") else "float32"
        self.wide = np.promote_types(part.dtype, stored)
        self.summed = 0 if part.one_hot else part.shape[1]
        self.update_error = np.broadcast_to(part.update_error, part.shape[:1])
        self.underflows = np.broadcast_to(part.underflows, part.shape[:1])
        # An element of NF4 has two roundings: of its level, and of level times absmax.
        coded = 2 if dtype == "nf4" else 0
        self.gamma_merged = gamma(coded + (0 if part.one_hot else self.summed + 1), self.wide)
        self.gamma_apart = gamma(part.roundings, part.dtype)
        self.absorbed = self.updated = 0
        self.ulp = self.bound = 0.0
        self.errors: list[Array] = []
        self.updates: list[Array] = []
        self.notes: list[str] = []
        self.finite = True
        if part.bias is not None and not np.isfinite(part.bias).all():
            self.notes.append("b has NaN or Inf")
            self.bound = math.inf

    def add(self, rows: slice, w: Array, d: Array) -> None:
        """Add the rounding errors of some more rows."""
        with np.errstate(all="ignore"):  # the notes report overflow
            merged = w + d
            stored, base = round_to(merged, self.dtype), round_to(w, self.dtype)
            updated = d != 0
            self.updated += int(np.count_nonzero(updated))
            self.absorbed += int(np.count_nonzero(updated & (stored == base)))
            change = np.abs(stored - base)
            unit = np.maximum(unit_of(base, self.dtype), unit_of(stored, self.dtype))
            largest = float(np.where(change == 0, 0.0, change / unit).max())
            self.ulp = math.inf if math.isnan(largest) else max(self.ulp, largest)
            for note, x in (
                ("W has NaN or Inf", w),
                ("dW has NaN or Inf", d),
                (f"W + dW overflows {self.dtype}", stored),
                (f"W alone overflows {self.dtype}", base),
            ):
                if not np.isfinite(x).all():
                    self.notes.append(note)
                    break
            if not np.isfinite(stored).all():
                self.finite = False
                return
            # TwoSum: `tail` is the exact rounding error of w + d.
            added = merged - w
            tail = (w - (merged - added)) + (d - added)
            error = (stored - merged) - tail
            self.errors.append(norms(error))
            self.updates.append(norms(d))
            if self.bound < math.inf:
                self.bound = max(self.bound, self._bound(rows, w, stored, error))

    def row(self) -> CertificateRow:
        """Return the row of the certificate."""
        absorbed = self.absorbed / self.updated if self.updated else 0.0
        lost = ulp = bound = math.inf
        if self.finite:
            ulp, bound = self.ulp, self.bound
            error, update = (float(norms(np.concatenate(x))) for x in (self.errors, self.updates))
            if not math.isfinite(error) or not math.isfinite(update):
                self.notes.append("norms overflow float64")
            elif update:
                lost = error / update
            else:
                lost = 0.0
                self.notes.append("dW is 0, but storing W changes it" if error else "dW is 0")
        notes = "; ".join(dict.fromkeys(self.notes))  # each once
        return CertificateRow(self.part.name, self.dtype, absorbed, lost, ulp, bound, notes)

    def _bound(self, rows: slice, w: Array, stored: Array, error: Array) -> float:
        """Return the largest bound on the change of an output, over these rows."""
        part = self.part

        def size(x: Array) -> Array:
            return np.abs(x).max(axis=1) if part.one_hot else norms(x)

        bias = np.zeros(len(w)) if part.bias is None else np.abs(part.bias[rows].astype(np.float64))
        apart, merged = size(w) + part.spread[rows], size(stored)
        for sums, relative, dtype in (
            (np.maximum(apart, part.peak), self.gamma_apart, part.dtype),
            (merged, self.gamma_merged, self.wide),
        ):
            largest = (self.radius * sums + bias) * (1 + relative)
            if math.isinf(relative):
                self.notes.append(f"sums too long to bound what {dtype} rounds")
                return math.inf
            if not (largest < float(np.finfo(dtype).max)).all():
                self.notes.append(f"outputs may overflow {dtype}")
                return math.inf
        per_unit = size(error) + self.update_error[rows]
        per_unit += self.gamma_merged * merged + self.gamma_apart * apart
        bounds = self.radius * per_unit + (self.gamma_merged + self.gamma_apart) * bias
        # Products that underflow: in the unmerged output; in the merged one, where an element of
        # NF4 may underflow before x multiplies it; and in the few products of this bound.
        lost_apart = (1 + self.gamma_apart) * (self.summed + self.underflows[rows])
        coded = self.radius * math.sqrt(max(self.summed, 1)) if self.dtype == "nf4" else 0.0
        lost_merged = (1 + self.gamma_merged) * (self.summed + coded)
        evaluated = 8 * (self.radius + 1) * least_of(np.dtype(np.float64))
        bounds += least_of(part.dtype) * lost_apart + least_of(self.wide) * lost_merged + evaluated
        found = float(upper(bounds, part.shape[1]).max())
        if not math.isfinite(found):  # `max` could drop a NaN
            self.notes.append("the bound overflows float64, or dW's own error is not known")
            return math.inf
        return found
