"""Tensors: what a file of tensors and a set of such files have in common."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from minigrad.io.tensor_info import TensorInfo


class Closing(ABC):
    """Something that is closed at the end of a `with` block."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Tensors(Closing):
    """Tensors by name, of which it is known what they are before they are read.

    Attributes:
        tensors: what is known of each tensor, by name.
    """

    tensors: Mapping[str, TensorInfo]

    @property
    @abstractmethod
    def place(self) -> str:
        """Where they are, for messages."""

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def info(self, name: str) -> TensorInfo:
        """What is known of a tensor.

        Raises:
            KeyError: if there is none of that name, with the nearest there is.
        """
        if name not in self.tensors:
            close = difflib.get_close_matches(name, self.tensors, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise KeyError(
                f"there is no tensor {name!r}{hint} among the {len(self.tensors)} of {self.place}"
            )
        return self.tensors[name]
