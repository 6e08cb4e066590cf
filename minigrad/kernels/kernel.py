"""`Kernel`: a loop that is compiled when it is first used, for one thread and for several."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from minigrad.kernels.jit import jit
from minigrad.kernels.threads import WORTH_A_TEAM, get_num_threads, team

Array = NDArray[Any]

PIECES = 64  # into which work is cut for threads to share

SINGLE: np.dtype[Any] = np.dtype(np.float32)
DOUBLE: np.dtype[Any] = np.dtype(np.float64)
NUMBERS: dict[np.dtype[Any], Any] = {SINGLE: types.float32, DOUBLE: types.float64}
"""The dtypes that kernels are compiled for, and numba's types for them."""

KERNELS: list[Kernel] = []
"""Every kernel of the modules imported so far."""


class Kernel:
    """A loop for one set of argument types, called as `kernel(seconds, *arguments)`.

    `seconds` is a guess at the time the work takes one thread. If it is long, threads share the
    work: the function is called with a number of pieces and the arguments, and cuts its work into
    that many in a `prange` loop. Its result must not depend on that number; one thread has one
    piece.

    Args:
        function: the function to compile.
        signature: the numba types of its arguments, after the number of pieces.
        fastmath: LLVM's flags for it (see `minigrad.kernels.jit`).
        threads: whether there is anything for threads to share: False without a `prange`.
        pieces: the number of pieces for several threads; 0 means one for each thread.

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
        """Run the loop, on threads if that is worth it."""
        if seconds < WORTH_A_TEAM or not self.threads or get_num_threads() == 1:
            self.alone(1, *arguments)
            return
        with team(seconds) as threads:
            if threads > 1:
                self.shared(self.pieces or threads, *arguments)
            else:
                self.alone(1, *arguments)


def read(number: Any, ndim: int) -> Any:
    """Return numba's type of a contiguous array that is only read, and may be read-only."""
    return types.Array(number, ndim, "C", readonly=True)


def written(number: Any, ndim: int) -> Any:
    """Return numba's type of a contiguous array that is written to."""
    return types.Array(number, ndim, "C")


def strided(number: Any, ndim: int) -> Any:
    """Return numba's type of the most general array that is only read, as which all others pass.

    It may have any strides, be read-only, and lie at any address.
    """
    return types.Array(number, ndim, "A", readonly=True, aligned=False)
