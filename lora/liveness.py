"""The report of `minigrad.liveness` on adapters: their ranks, and what keeps one from training.

A layer with adapters answers the hook `liveness_parts` with an `AdapterPart` for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lora.adapter import Adapter
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.gradient_flow.report import ParameterRow, PartRow
from minigrad.nn import Parameter

BASE = "the base of an adapter is a constant: freeze it, or fold the adapter in"


@dataclass(frozen=True)
class AdapterRow(PartRow):
    """The effect of a step on one LoRA adapter; `trains` says whether it changes the update.

    The name is that of its layer. If several adapters are active there, the adapter's own follows.
    Numerical ranks are None if an element is not finite.
    """

    rank_a: int | None  # of A, `(rank, d_in)`
    rank_b: int | None  # of B, `(d_out, rank)`
    rank_ba: int | None  # of the update B A

    kind: ClassVar[str] = "adapter"
    # The bases of adapters are to stay frozen.
    to_train: ClassVar[str] = "lora_a and lora_b of each adapter that is to train"

    def facts(self) -> dict[str, str]:
        """Return the ranks as cells of a table."""
        ranks = {"rank A": self.rank_a, "rank B": self.rank_b, "rank BA": self.rank_ba}
        return {name: "?" if rank is None else str(rank) for name, rank in ranks.items()}


class AdapterPart:
    """One adapter of a layer.

    Attributes:
        name: its name in the layer; empty if it is the only one.
        constants: its parameters if a call uses a merged weight, through which no gradient reaches
            them; otherwise empty.
    """

    def __init__(
        self,
        name: str,
        base: tuple[Any, Any],
        adapter: Adapter,
        *,
        merged: bool,
        enabled: bool,
        training: bool,
    ) -> None:
        self.name = name
        self.constants: Sequence[Parameter] = ()
        self._adapter = adapter
        self._base = base
        self._hindrance = ""
        if merged and enabled:
            self.constants = adapter.trained()
            self._hindrance = "the adapter is merged: call unmerge() to train it"
        elif not enabled:
            self._hindrance = "the adapter is disabled: leave the block of lora.disabled()"
        elif adapter.scale == 0:
            self._hindrance = "the scale of the adapter is 0: assign another to `scale`"
        elif training and adapter.dropout == 1:
            self._hindrance = (
                "the dropout of the adapter is 1, so A sees nothing but zeros: set a smaller one"
            )

    def remarks(self) -> Iterator[tuple[Any, str]]:
        """Yield tensors, and why each gets no gradient if it gets none."""
        for tensor in self._base:
            yield tensor, BASE
        if self._hindrance:
            for parameter in self._adapter.trained():
                yield parameter, self._hindrance

    def row(self, name: str, row_of: Callable[[Parameter], ParameterRow]) -> AdapterRow:
        """Conclude from the rows of A and B whether the adapter trains."""
        a, b = self._adapter.lora_a, self._adapter.lora_b
        return AdapterRow(name, *_verdict(row_of(a), row_of(b)), *ranks(a, b))


def _verdict(a: ParameterRow, b: ParameterRow) -> tuple[bool, str]:
    if a.state == b.state == "frozen":
        return False, "frozen"
    if a.state == b.state == "live":
        return True, "trains"
    for row in (b, a):
        if not row.trains and row.state != "frozen":
            return False, f"does not train: {row.why}"
    for one, other, names in ((b, a, ("B", "A")), (a, b, ("A", "B"))):
        if one.state == "live" and other.state == "frozen":
            return True, f"trains {names[0]} only: {names[1]} is frozen"
        if one.state == "live":
            return True, f"trains {names[0]} only, and {names[1]} once {names[0]} has moved"
    return True, f"trains later: {(b if b.reason else a).why}"


def ranks(a: Tensor, b: Tensor) -> tuple[int | None, int | None, int | None]:
    """Compute the numerical ranks of A, B and B A, as `numpy.linalg.matrix_rank` counts.

    Singular values count above max(m, n) eps times the largest one, with the eps of the matrices'
    own dtype. With B = Q R and A^T = P S, the singular values of B A are those of R S^T, which is
    no larger than rank x rank: B A itself is never formed. None where an element is not finite.
    """
    if not (np.isfinite(a._data).all() and np.isfinite(b._data).all()):
        return None, None, None
    wide, tall = (x._data.astype(np.float64) for x in (a, b))
    core = np.linalg.qr(tall, mode="r") @ np.linalg.qr(wide.T, mode="r").T
    return (
        _rank(wide, a, max(wide.shape)),
        _rank(tall, b, max(tall.shape)),
        _rank(core, a, max(wide.shape[1], tall.shape[0])),
    )


def _rank(matrix: NDArray[np.float64], like: Tensor, longest: int) -> int:
    """Count the singular values beyond what rounding in the dtype of `like` may leave of 0."""
    values = np.linalg.svd(matrix, compute_uv=False)
    if not values.size:
        return 0
    return int(np.count_nonzero(values > values[0] * longest * np.finfo(like.dtype).eps))
