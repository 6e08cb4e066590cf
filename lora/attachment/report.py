"""What `attach` did, as a table."""

from __future__ import annotations

from dataclasses import dataclass

from lora.full_copies import Copy
from minigrad.tables import aligned


@dataclass(frozen=True)
class Match:
    """One layer that got an adapter.

    Attributes:
        name: of the layer.
        pattern: which of the targets found it.
        d_in, d_out: the sizes of its vectors.
        rank: of the update.
        added: how many numbers the adapter trains there.
        note: what is special about it.
    """

    name: str
    pattern: str
    d_in: int
    d_out: int
    rank: int
    added: int
    note: str = ""


@dataclass(frozen=True, repr=False)
class AttachReport:
    """What `attach` did: a line for each layer that matched, and the counts.

    Attributes:
        matches: the layers that got an adapter.
        copies: the parameters that are trained whole.
        adapter: the name of the adapter.
        trainable: how many numbers train now.
        total: how many numbers the model has; adapters, the originals of copies and weights in
            four bits, which are no parameters, included.
    """

    matches: tuple[Match, ...]
    copies: tuple[Copy, ...]
    adapter: str
    trainable: int
    total: int

    @property
    def names(self) -> list[str]:
        """The names of the layers that got an adapter."""
        return [match.name for match in self.matches]

    def __repr__(self) -> str:
        head = ("layer", "matched by", "d_in -> d_out", "rank", "trains", "")
        rows = [
            (m.name, m.pattern, f"{m.d_in} -> {m.d_out}", str(m.rank), f"{m.added:,}", m.note)
            for m in self.matches
        ]
        rows += [
            (c.name, c.reason, str(c.own.shape), "", f"{c.own.size:,}", "whole")
            for c in self.copies
        ]
        share = 100 * self.trainable / self.total
        total = f"{self.trainable:,} of {self.total:,} numbers train ({share:.2f} %)"
        return "\n".join([*aligned(head, rows), total])
