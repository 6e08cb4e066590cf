"""Measuring what merging loses, and bounding how it changes the outputs.

With W' = W + dW exact, V as it is stored, |x| <= R, and m and k the roundings of each term with the
merged weight and without, output j changes by at most

    R (|v_j - w'_j| + gamma_m |v_j| + gamma_k (|w_j| + spread_j)) + (gamma_m + gamma_k) |b_j|

by the inequality of Cauchy and Schwarz, and by what underflows. W' itself is known up to the
rounding of dW, of which a bound is given, and of the sum W + dW, which is computed without error
(Knuth's TwoSum; Higham, 2002, section 4.3). The rounding of float64 in evaluating this bound is
added to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lora.certificate.layers import LayerMerge
from lora.certificate.report import CertificateRow, MergeCertificate
from lora.certificate.rounding import (
    DTYPES,
    Array,
    check_dtypes,
    computing_dtype,
    gamma,
    least_of,
    norms,
    round_to,
    unit_of,
    upper,
)
from lora.scaling import check_number
from minigrad.progress import progress_bar


def certify(
    parts: Iterable[LayerMerge],
    dtypes: str | Sequence[str] = DTYPES,
    radius: float = 1.0,
    *,
    progress: bool = True,
) -> MergeCertificate:
    """Compute what merging each of the layers loses, stored in each of the dtypes.

    A merged weight is multiplied in the wider of its dtype and the layer's own. Only some rows of W
    and dW are in memory at a time.

    Args:
        parts: the layers, with different names.
        dtypes: some of `DTYPES`.
        radius: the norm of the inputs for which `bound` is valid. A table (`one_hot`) ignores it.
        progress: show a progress bar if it takes longer than a second or two.

    Raises:
        TypeError: if W or dW is not of float64, or the radius is no number.
        ValueError: if there are no layers, or two of one name, or no dtypes, or there is no such
            dtype, or the radius is not positive and finite, or rows of W or dW have a wrong shape.
    """
    parts = tuple(parts)
    chosen = check_dtypes(dtypes)
    if not parts:
        raise ValueError("there are no layers to certify; pass one LayerMerge for each")
    names = [part.name for part in parts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"there are several layers named {', '.join(map(repr, twice))}; each needs a name of "
            f"its own"
        )
    check_number("radius", radius)
    if not 0 < radius < math.inf:
        raise ValueError(f"radius must be a positive number, the norm of inputs, not {radius!r}")
    rows: list[CertificateRow] = []
    elements = sum(math.prod(part.shape) for part in parts)
    with progress_bar(
        what="certifying the merge", unit="number", shown=progress, total=elements, unit_scale=True
    ) as bar:
        for part in parts:
            tallies = [_Tally(part, dtype, float(radius)) for dtype in chosen]
            for strip in part.strips():
                w, d = part.read(strip)
                for tally in tallies:
                    tally.add(strip, w, d)
                bar.update(w.size)
            rows += [tally.row() for tally in tallies]
    return MergeCertificate(tuple(rows), float(radius))


class _Tally:
    """Collects, strip by strip, what merging a layer does if its weight is stored in one dtype."""

    def __init__(self, part: LayerMerge, dtype: str, radius: float) -> None:
        self.part, self.dtype = part, dtype
        self.radius = 1.0 if part.one_hot else radius
        self.own, self.wide = part.dtype, computing_dtype(part.dtype, dtype)
        self.summed = 0 if part.one_hot else part.shape[1]
        # Each element of NF4 is a product of a level, rounded too, with an absolute value.
        coded = 2 if dtype == "nf4" else 0
        self.gamma_merged = gamma(coded + (0 if part.one_hot else self.summed + 1), self.wide)
        self.gamma_apart = gamma(part.roundings, self.own)
        self.absorbed = self.updated = 0
        self.ulp = self.bound = 0.0
        self.errors: list[Array] = []
        self.updates: list[Array] = []
        self.notes: dict[str, None] = {}  # in the order in which they came up
        self.finite = True
        if part.bias is not None and not np.isfinite(part.bias).all():
            self.notes["b has NaN or Inf"] = None
            self.bound = math.inf

    def add(self, rows: slice, w: Array, d: Array) -> None:
        """Add some more rows to the tally."""
        with np.errstate(all="ignore"):  # the notes report overflow
            merged = w + d
            stored, base = round_to(merged, self.dtype), round_to(w, self.dtype)
            self._count(d, stored, base)
            for note, x in (
                ("W has NaN or Inf", w),
                ("dW has NaN or Inf", d),
                (f"W + dW overflows {self.dtype}", stored),
                (f"W alone overflows {self.dtype}", base),
            ):
                if not np.isfinite(x).all():
                    self.notes[note] = None
                    break
            if not np.isfinite(stored).all():
                self.finite = False
                return
            # TwoSum: what is lost in rounding w + d to `merged`, exactly.
            added = merged - w
            tail = (w - (merged - added)) + (d - added)
            error = (stored - merged) - tail
            self.errors.append(norms(error))
            self.updates.append(norms(d))
            if self.bound < math.inf:
                self.bound = max(self.bound, self._bound(rows, w, stored, error))

    def row(self) -> CertificateRow:
        """Return the result."""
        absorbed = self.absorbed / self.updated if self.updated else 0.0
        lost, ulp, bound = math.inf, math.inf, math.inf
        if self.finite:
            ulp, bound = self.ulp, self.bound
            error, update = (float(norms(np.concatenate(x))) for x in (self.errors, self.updates))
            if not math.isfinite(error) or not math.isfinite(update):
                self.notes["norms overflow float64"] = None
            elif update:
                lost = error / update
            else:
                lost = 0.0
                self.notes["dW is 0, but storing W changes it" if error else "dW is 0"] = None
        notes = "; ".join(self.notes)
        return CertificateRow(self.part.name, self.dtype, absorbed, lost, ulp, bound, notes)

    def _count(self, d: Array, stored: Array, base: Array) -> None:
        """Count the updates that are absorbed, and find the largest change in units."""
        updated = d != 0
        self.updated += int(np.count_nonzero(updated))
        self.absorbed += int(np.count_nonzero(updated & (stored == base)))
        change = np.abs(stored - base)
        unit = np.maximum(unit_of(base, self.dtype), unit_of(stored, self.dtype))
        largest = float(np.where(change == 0, 0.0, change / unit).max())
        self.ulp = math.inf if math.isnan(largest) else max(self.ulp, largest)

    def _bound(self, rows: slice, w: Array, stored: Array, error: Array) -> float:
        """Bound the change of an output of these rows."""
        part = self.part
        size = _largest if part.one_hot else norms
        bias = np.zeros(len(w))
        if part.bias is not None:
            bias = np.abs(part.bias[rows].astype(np.float64))
        apart, merged = size(w) + part.spread[rows], size(stored)
        for sums, relative, dtype in (
            (np.maximum(apart, part.peak), self.gamma_apart, self.own),
            (merged, self.gamma_merged, self.wide),
        ):
            largest = (self.radius * sums + bias) * (1 + relative)
            if math.isinf(relative):
                self.notes[f"sums too long to bound what {dtype} rounds"] = None
                return math.inf
            if not (largest < float(np.finfo(dtype).max)).all():
                self.notes[f"outputs may overflow {dtype}"] = None
                return math.inf
        per_unit = size(error) + _of(part.update_error, rows)
        per_unit += self.gamma_merged * merged + self.gamma_apart * apart
        bounds = self.radius * per_unit + (self.gamma_merged + self.gamma_apart) * bias
        bounds += self._underflow(rows)
        found = float(upper(bounds, part.shape[1]).max())
        if not math.isfinite(found):  # a NaN would be smaller than nothing
            self.notes["the bound overflows float64, or dW's own error is not known"] = None
            return math.inf
        return found

    def _underflow(self, rows: slice) -> Any:
        """Bound what products that are below the least normal number lose of each output."""
        apart = (1 + self.gamma_apart) * (self.summed + _of(self.part.underflows, rows))
        # An element of NF4 may underflow itself, before it is multiplied by x.
        coded = self.radius * math.sqrt(max(self.summed, 1)) if self.dtype == "nf4" else 0.0
        merged = (1 + self.gamma_merged) * (self.summed + coded)
        # The bound is evaluated in float64, with a few products of its own.
        evaluated = 8 * (self.radius + 1) * least_of(np.dtype(np.float64))
        return least_of(self.own) * apart + least_of(self.wide) * merged + evaluated


def _largest(x: Array) -> Array:
    """Return the largest absolute value of each row."""
    found: Array = np.abs(x).max(axis=1)
    return found


def _of(value: Array | float, rows: slice) -> Any:
    """Select the values of some rows, or the one value of all."""
    return value[rows] if isinstance(value, np.ndarray) and value.ndim else value
