"""The result of a verification: a check of each identity of each layer, and a report of all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from minigrad.tables import aligned, as_html

Verdict = Literal["holds", "fails", "cannot tell"]

_COLUMNS = ("layer", "identity", "in", "deviation", "bound", "verdict")


@dataclass(frozen=True)
class IdentityCheck:
    """One identity of one layer.

    Attributes:
        layer: the name of the layer in the model.
        identity: the name of the identity.
        dtype: the precision in which it was computed.
        deviation: the difference that is nearest to its bound, or exceeds it most.
        bound: the difference that rounding explains at that element; 0 where the identity is exact.
        verdict: "holds", "fails", or "cannot tell": there was nothing to compare, or nothing larger
            than rounding.
        note: which A and B were used, if not the layer's own; or why there is no verdict.
    """

    layer: str
    identity: str
    dtype: str
    deviation: float
    bound: float
    verdict: Verdict
    note: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """The columns of the table, with the note after the verdict."""
        verdict = f"{self.verdict} ({self.note})" if self.note else self.verdict
        return (
            self.layer or "the layer",
            self.identity,
            self.dtype,
            f"{self.deviation:.2g}",
            f"{self.bound:.2g}",
            verdict,
        )


@dataclass(frozen=True, repr=False)
class VerifyReport:
    """The report of `verify`. It is true only if every identity of every layer holds.

    Printed, it is a sentence and a table: layer, identity, precision, the largest deviation, the
    bound that rounding explains, and the verdict.

    Attributes:
        checks: one for each layer and identity.
    """

    checks: tuple[IdentityCheck, ...]

    @property
    def failed(self) -> list[IdentityCheck]:
        """The identities that do not hold."""
        return [check for check in self.checks if check.verdict == "fails"]

    @property
    def undecided(self) -> list[IdentityCheck]:
        """The identities that could not be checked."""
        return [check for check in self.checks if check.verdict == "cannot tell"]

    @property
    def verdict(self) -> Verdict:
        """One of "holds", "fails" and "cannot tell"."""
        if self.failed:
            return "fails"
        return "cannot tell" if self.undecided or not self.checks else "holds"

    def __bool__(self) -> bool:
        return self.verdict == "holds"

    @property
    def sentence(self) -> str:
        """The result in a sentence."""
        layers = list(dict.fromkeys(check.layer for check in self.checks))
        what = f"{len(self.checks)} checks of {len(layers)} layer{'s' * (len(layers) != 1)}"
        if self.verdict == "holds":
            return f"LoRA's identities hold: {what}."
        found = [f"{len(self.failed)} fail"] * bool(self.failed)
        found += [f"{len(self.undecided)} have no verdict"] * bool(self.undecided)
        return f"LoRA's identities: of {what}, {' and '.join(found)}."

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The rows of the table.

        A layer without any verdict, for a single reason, is one row; so is one of several layers
        in which every identity holds.
        """
        rows = []
        layers = list(dict.fromkeys(check.layer for check in self.checks))
        for layer in layers:
            checks = [check for check in self.checks if check.layer == layer]
            if len(layers) > 1 and all(check.verdict == "holds" for check in checks):
                nearest = max(checks, key=lambda c: c.deviation / c.bound if c.bound else 0.0)
                what = f"all {len(checks)}, nearest: {nearest.identity}"
                checks = [replace(nearest, identity=what)]
            elif {(c.verdict, c.note) for c in checks} == {("cannot tell", checks[0].note)}:
                what = f"all {len(checks)}"
                checks = [replace(checks[0], identity=what, dtype="any", deviation=0.0, bound=0.0)]
            rows += [check.cells for check in checks]
        return rows

    def __repr__(self) -> str:
        return "\n".join([self.sentence, *aligned(_COLUMNS, self.rows)])

    def _repr_html_(self) -> str:
        return as_html(self.sentence, _COLUMNS, self.rows)
