"""What `minigrad.liveness` reports about adapters: their ranks, and why one does not train.

The method `liveness_parts` of a layer with adapters returns an `AdapterPart` for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lora.adapter import Adapter
from lora.spectra import block_diagonal, singular_values
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.gradient_flow.report import ParameterRow, PartRow
from minigrad.nn import Parameter


@dataclass(frozen=True)
class AdapterRow(PartRow):
    """The effect of a step on one LoRA adapter; `trains` tells whether it changes the update.

    The name is the name of the layer. If several adapters are active in the layer, the name of the
    adapter follows. Numerical ranks are None if an element is not finite.
    """

    rank_a: int | None  # the numerical rank of A, `(rank, d_in)`
    rank_b: int | None  # the numerical rank of B, `(d_out, rank)`; of groups, the sum of theirs
    rank_ba: int | None  # the numerical rank of the update B A

    kind: ClassVar[str] = "adapter"
    # Not all parameters, because the base weights must stay frozen.
    to_train: ClassVar[str] = (
        "lora_a and lora_b of each adapter that is to train, and lora.switch(model, name) if it is "
        "not active"
    )

    def facts(self) -> dict[str, str]:
        """Return the ranks as cells of a table."""
        ranks = {"rank A": self.rank_a, "rank B": self.rank_b, "rank BA": self.rank_ba}
        return {name: "?" if rank is None else str(rank) for name, rank in ranks.items()}


class AdapterPart:
    """One adapter of a layer, an `AdaptedLayer`; `name` is empty if it is the only one there."""

    def __init__(self, name: str, layer: Any, adapter: str) -> None:
        self.name, self.layer = name, layer
        self.adapter: Adapter = layer.adapters[adapter]
        self.active, self.merged = adapter in layer.active, adapter in layer.merged_adapters
        # No gradient passes through a merged weight.
        is_constant = self.merged and layer.enabled
        self.constants: Sequence[Parameter] = self.adapter.trained() if is_constant else ()

    def remarks(self) -> Iterator[tuple[Any, str]]:
        """Yield tensors, each with the reason why it may get no gradient."""
        for tensor in (self.layer.base_weight, self.layer.bias):
            yield tensor, "the base of an adapter is a constant: freeze it, or fold the adapter in"
        for is_so, why in (
            (not self.layer.enabled, "the adapter is disabled: leave the block of lora.disabled()"),
            (
                not self.active,
                "the adapter is not active: call lora.switch(model, name), or use([name]) of a "
                "layer that was made by hand",
            ),
            (self.merged, "the adapter is merged: call unmerge() to train it"),
            (self.adapter.scale == 0, "the scale of the adapter is 0: assign another to `scale`"),
            (
                self.layer.training and self.adapter.dropout == 1,
                "the dropout of the adapter is 1, so A sees nothing but zeros: set a smaller one",
            ),
        ):
            if is_so:
                yield from ((parameter, why) for parameter in self.adapter.trained())
                return

    def row(self, name: str, row_of: Callable[[Parameter], ParameterRow]) -> AdapterRow:
        """Make the row of the adapter; the rows of its parameters tell whether it trains."""
        a, b, magnitude = self.adapter.lora_a, self.adapter.lora_b, self.adapter.lora_magnitude
        rows = {"B": row_of(b), "A": row_of(a)}
        if magnitude is not None:
            rows["the magnitude"] = row_of(magnitude)
        trains, verdict = _verdict(rows)
        if verdict == "frozen" and not self.active:
            verdict = "not active"
        return AdapterRow(name, trains, verdict, *ranks(a, b, self.adapter.groups))


def _verdict(rows: Mapping[str, ParameterRow]) -> tuple[bool, str]:
    """Return whether an adapter trains, and which of its parameters do, given their rows."""
    live = [name for name, row in rows.items() if row.state == "live"]
    frozen = [name for name, row in rows.items() if row.state == "frozen"]
    if len(frozen) == len(rows):
        return False, "frozen"
    if len(live) == len(rows):
        return True, "trains"
    others = [row for row in rows.values() if row.state not in ("frozen", "live")]
    for row in others:
        if not row.trains:
            return False, f"does not train: {row.why}"
    if not live:
        return True, f"trains later: {next((row for row in others if row.reason), others[0]).why}"
    text = f"trains {' and '.join(live)} only"
    if frozen:
        return True, f"{text}: {' and '.join(frozen)} {'is' if len(frozen) == 1 else 'are'} frozen"
    later = " and ".join(name for name in rows if name not in live)
    return True, f"{text}, and {later} once {live[0]} has moved"


def ranks(a: Tensor, b: Tensor, groups: int) -> tuple[int | None, int | None, int | None]:
    """Compute the numerical ranks of A, B and B A, as `numpy.linalg.matrix_rank` counts.

    A singular value counts if it is above max(m, n) eps times the largest one, with the eps of the
    dtype of A and B. B A itself is never formed. In several groups, the ranks are those of all
    groups together. A rank is None if an element is not finite.
    """
    if not (np.isfinite(a._data).all() and np.isfinite(b._data).all()):
        return None, None, None
    wide, tall = (x.astype(np.float64) for x in (a._data, block_diagonal(b._data, groups)))
    eps = float(np.finfo(a.dtype).eps)
    of_a, of_b = (np.linalg.matrix_rank(x, rtol=max(x.shape) * eps) for x in (wide, tall))
    values = singular_values(wide, tall)
    least = values[:1] * (max(wide.shape[1], len(tall)) * eps)
    return int(of_a), int(of_b), int(np.count_nonzero(values > least))
