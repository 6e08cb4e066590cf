"""LoRAConfig: which layers of a model get an adapter, and of what kind."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lora.layer import LoRAScaling, check_rank_and_alpha
from minigrad.random import check_probability

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoRAConfig:
    """What to attach, and where.

    Args:
        rank: the rank of each update.
        alpha: its strength, before it is divided; see `LoRAScaling`.
        targets: "all-linear" for every linear layer; a sequence of names, where "q" also stands for
            every name that ends in ".q"; or one string, a regular expression for whole names.
        scaling: alpha / rank, or alpha / sqrt(rank).
        dropout: the probability of dropping an element on its way to A, in training.

    Raises:
        TypeError: if a value is of the wrong type.
        ValueError: if the rank is not positive, alpha not positive and finite, dropout no
            probability, there are no targets, or the regular expression is none.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str | Sequence[str] = ALL_LINEAR
    scaling: LoRAScaling = LoRAScaling.STANDARD
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_rank_and_alpha(self.rank, self.alpha)
        check_probability("dropout", self.dropout)
        object.__setattr__(self, "scaling", LoRAScaling(self.scaling))
        if isinstance(self.targets, str):
            try:
                re.compile(self.targets)
            except re.error as error:
                raise ValueError(
                    f"targets={self.targets!r} is no regular expression: {error}; a list "
                    f"names layers as they are"
                ) from None
        elif not isinstance(self.targets, Iterable):
            raise TypeError(f"targets are names, or one regular expression, not {self.targets!r}")
        else:
            object.__setattr__(self, "targets", tuple(self.targets))
            if not all(isinstance(target, str) for target in self.targets):
                raise TypeError(f"targets are names, not {self.targets!r}")
        if not self.targets:
            raise ValueError('targets are empty; name layers, or say "all-linear"')

    def matches(self, names: Sequence[str]) -> dict[str, str]:
        """Which of `names` are targets, and by which of the patterns each was found first.

        Raises:
            ValueError: if a pattern matches none of them, with all names, and the nearest to a
                miss.
        """
        if self.targets == ALL_LINEAR:
            if not names:
                raise ValueError('targets="all-linear", but there is no linear layer')
            return dict.fromkeys(names, ALL_LINEAR)
        patterns = (self.targets,) if isinstance(self.targets, str) else self.targets
        found: dict[str, str] = {}
        missed = []
        for pattern in patterns:
            hits = [name for name in names if self._is_match(pattern, name)]
            missed += [] if hits else [pattern]
            for name in hits:
                found.setdefault(name, pattern)
        if missed:
            ends = {name.rpartition(".")[2] for name in names} | set(names)
            near = {miss: difflib.get_close_matches(miss, sorted(ends), n=1) for miss in missed}
            hints = [
                f"{miss!r}"
                + (
                    f" (did you mean {near[miss][0]!r}?)"
                    if near[miss] and near[miss] != [miss]
                    else ""
                )
                for miss in missed
            ]
            kind = " (a string is a regular expression for a whole name, a list names layers)"
            raise ValueError(
                f"targets that match no layer: {', '.join(hints)}"
                f"{kind if isinstance(self.targets, str) else ''}; the linear layers are "
                f"{', '.join(names) or 'none'}"
            )
        return {name: found[name] for name in names if name in found}

    def _is_match(self, pattern: str, name: str) -> bool:
        if isinstance(self.targets, str):
            return re.fullmatch(pattern, name) is not None
        return name == pattern or name.endswith(f".{pattern}")
