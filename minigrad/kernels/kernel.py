"""`Kernel`: a loop that is compiled when it is first used, for one thread and for several."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from numba import types

from minigrad.kernels.jit import jit
from minigrad.kernels.threads import WORTH_A_TEAM, get_num_threads, team

PIECES = 64  # that threads share out among them

KERNELS: list[Kernel] = []
"""Every kernel of the modules imported so far."""


class Kernel:
    """A loop for one set of argument types, called as `kernel(seconds, *arguments)`.

    `seconds` is what the work takes one thread, about. Much of it is done by threads: the function
    is called with a number of pieces and the arguments, and cuts its work into that many in a
    `prange` loop. What it writes must not depend on their number; one thread has one piece.

    Args:
        function: what to compile.
        signature: the numba types of its arguments, after the number of pieces.
        fastmath: LLVM's flags for it (see `minigrad.kernels.jit`).
        threads: whether there is anything for threads to share: False without a `prange`.
        pieces: how many there are for several threads; 0 means one for each.

    Attributes:
        alone: the loop for one thread.
        shared: the loop for several.
    """

    def __init__(
        self,
        function: Callable[..., None],
        signature: tuple[Any, ...],
        fastmath: Iterable[str] = ("contract",),
        threads: bool = True,
        pieces: int = PIECES,
    ) -> None:
        self.function = function
        self.signature = signature
        self.fastmath = fastmath
        self.threads = threads
        self.pieces = pieces
        # Plain attributes, since they are looked up in each call.
        self.alone: Callable[..., None] = partial(self._first_call, False)
        self.shared: Callable[..., None] = partial(self._first_call, True)
        KERNELS.append(self)

    def __repr__(self) -> str:
        arguments = ", ".join(map(str, self.signature))
        return f"<Kernel {self.function.__module__}.{self.function.__name__}({arguments})>"

    def compile(self, parallel: bool) -> Callable[..., None]:
        """Read the machine code for one thread or for several from disk, or else compile it."""
        signature = (types.intp, *self.signature)
        compiled = jit(signature=signature, parallel=parallel, fastmath=self.fastmath)(
            self.function
        )
        if parallel:
            self.shared = compiled
        else:
            self.alone = compiled
        return compiled

    def _first_call(self, parallel: bool, *arguments: Any) -> None:
        self.compile(parallel)(*arguments)

    def __call__(self, seconds: float, *arguments: Any) -> None:
        """Run, on threads where that is worth it."""
        if seconds < WORTH_A_TEAM or not self.threads or get_num_threads() == 1:
            self.alone(1, *arguments)
            return
        with team(seconds) as threads:
            if threads > 1:
                self.shared(self.pieces or threads, *arguments)
            else:
                self.alone(1, *arguments)
