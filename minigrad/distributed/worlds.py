"""`World`: the communication between the processes that train together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.distributed.message import check_array, decoded, encoded
from minigrad.distributed.tree import Part

Array = NDArray[Any]
Arrays = Sequence[Array | None]


class World:
    """A world of one process, in which each call returns at once.

    Attributes:
        rank: the number of this process, from 0.
        size: the number of processes.
        sent: the number of bytes that this process has sent.
    """

    rank, size, sent = 0, 1, 0

    def __repr__(self) -> str:
        return f"World(rank={self.rank}, size={self.size})"

    def __deepcopy__(self, memo: dict[int, Any]) -> World:
        """Return the world itself: a copy of a Trainer is in the same world."""
        return self

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints, shows progress bars and writes files."""
        return self.rank == 0

    def gather(self, value: Any, call: str = "gather") -> list[Any]:
        """Return a list of the values of all ranks, on each rank.

        A value is an array, or a value that JSON can represent: None, a number, a text, or a list
        or dict of them (a tuple becomes a list). `call` is the name of the call in error messages.

        Raises:
            TypeError: if the value is another one, such as an array in a list.
            RuntimeError: if the ranks do not make the same call; also in the other methods.
        """
        return [self.broadcast(value)]

    def broadcast(self, value: Any, call: str = "broadcast") -> Any:
        """Return the value of rank 0 on each rank; values and errors are those of `gather`."""
        if isinstance(value, np.ndarray):  # do not copy an array, which may be large
            check_array(value)
            # numpy adds in the order of memory; from another rank, an array has one of these two.
            return np.asarray(value) if value.flags.forc else np.ascontiguousarray(value)
        return decoded(encoded(value))  # a tuple becomes a list, as on several ranks

    def on_first(self, function: Callable[[], Any], call: str = "on_first") -> Any:
        """Call a function only on rank 0, for example to write a file; return its result on all.

        If it raises an error, all ranks raise it; on other ranks it has the nearest built-in class.
        Other errors are those of `gather`.
        """
        return self.broadcast(function())

    def barrier(self, call: str = "barrier") -> None:
        """Wait until all ranks have called this."""

    def any(self, flag: bool, call: str = "any") -> bool:
        """Return whether the flag is set on some rank."""
        return bool(flag)

    def sum_parts(
        self, count: int, own: Mapping[Part, Arrays], like: Sequence[Any]
    ) -> list[Array | None]:
        """Return the sums of `count` lists of arrays, added in the order of `pairwise`.

        Args:
            count: the number of lists.
            own: the sums of the tree that this rank has, by their part of the tree.
            like: arrays or Tensors with the shapes and dtypes of the sums. An array that is None in
                all lists is None in the sum.
        """
        return list(own[0, count])

    def check_left_together(self, error: BaseException) -> None:
        """Return if all ranks have an error; else print the error of this rank, and end all."""


def add_lists(left: Arrays, right: Arrays) -> list[Array | None]:
    """Add two lists of arrays; None counts as zero."""
    return [
        b if a is None else a if b is None else np.asarray(a + b)
        for a, b in zip(left, right, strict=True)
    ]
