"""How kernels are compiled, decided once for all: `jit`, and `Kernel`, a loop that threads share.

Every function of a kernel is decorated with `jit`, which is `numba.njit` with these choices:

* The machine code is stored on disk, so that only the first run on a machine compiles (see
  `minigrad.kernels.cache`).
* The GIL is released while a kernel runs: kernels see numbers and memory, never a Python object.
* A division by zero gives the result of IEEE, as in numpy, and not an exception.
* Fast-math flags are allowed one by one. `"reassoc"` and `"contract"` let a sum be vectorised and a
  product be fused with an addition; the flags that assume that there is no NaN and no infinity
  stay off, since a library that searches for the first NaN must not compile it out.

With NUMBA_DISABLE_JIT=1 the decorated functions stay plain Python. They still mean the same, but
a Python loop over machine addresses is of no use: `JIT_ENABLED` is then False, and each entry
point calls the reference in numpy instead of its kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import types
from numba.core.registry import cpu_target
from numpy.typing import NDArray

from minigrad.kernels.cache import KernelCache, name_apart
from minigrad.kernels.threads import WORTH_A_TEAM, get_num_threads, team

Array = NDArray[Any]
F = TypeVar("F", bound=Callable[..., Any])

_numba: Any = numba  # whose own annotations cover a part of it, and differ between versions

OLDEST_NUMBA = (0, 61)  # as in pyproject.toml
if _numba.version_info.short < OLDEST_NUMBA:
    raise ImportError(
        f"minigrad needs numba {'.'.join(map(str, OLDEST_NUMBA))} or later, and this is numba "
        f"{_numba.__version__}: python -m pip install --upgrade numba"
    )

JIT_ENABLED = not _numba.config.DISABLE_JIT
"""Whether kernels are compiled: False under NUMBA_DISABLE_JIT=1."""


def jit(
    *,
    signature: tuple[Any, ...] | None = None,
    parallel: bool = False,
    fastmath: Iterable[str] = (),
    inline: str = "never",
) -> Callable[[F], F]:
    """Decorate a kernel: `@jit()`, or `@jit(fastmath={"reassoc", "contract"})`.

    `parallel` makes `numba.prange` loops run on threads (without it they are plain loops),
    `fastmath` names single LLVM flags, `inline="always"` pastes a helper into its callers.
    With a `signature` (a tuple of numba types) the kernel is compiled at once and for these types
    only: an argument then passes if it converts safely, as an array of any layout does to `A`.
    """

    def decorate(function: F) -> F:
        if not JIT_ENABLED:
            return function
        name_apart(function)
        flags = set(fastmath)
        dispatcher = _numba.njit(
            nogil=True,
            parallel=parallel,
            fastmath=flags or False,
            inline=inline,
            error_model="numpy",
        )(function)
        dispatcher._cache = KernelCache(function, (parallel, sorted(flags), inline))
        if signature is not None:
            dispatcher.compile(signature)
            dispatcher.disable_compile()
        return cast(F, dispatcher)

    return decorate


def processor() -> str:
    """Return LLVM's name of the processor that we compile for."""
    _, name, _ = cpu_target.target_context.codegen().magic_tuple()
    return str(name)


# --------------------------------------------------------------------------------------------------
# Kernels
# --------------------------------------------------------------------------------------------------

PIECES = 64  # into which work is cut for threads to share

SINGLE: np.dtype[Any] = np.dtype(np.float32)
DOUBLE: np.dtype[Any] = np.dtype(np.float64)
NUMBERS: dict[np.dtype[Any], Any] = {SINGLE: types.float32, DOUBLE: types.float64}
"""The dtypes that kernels are compiled for, and numba's types for them."""

KERNELS: list[Kernel] = []
"""Every kernel of the modules imported so far."""


@dataclass(eq=False, repr=False)
class Kernel:
    """A loop for one set of argument types, called as `kernel(seconds, *arguments)`.

    `seconds` is a guess at the time the work takes one thread. If it is long, threads share the
    work: the function is called with a number of pieces and the arguments, and cuts its work into
    that many in a `prange` loop. Its result must not depend on that number; one thread has one
    piece.

    Args:
        function: the function to compile.
        signature: the numba types of its arguments, after the number of pieces.
        fastmath: LLVM's flags for it (see `jit`).
        threads: whether there is anything for threads to share: False without a `prange`.
        pieces: the number of pieces for several threads; 0 means one for each thread.

    Attributes:
        alone: the loop for one thread.
        shared: the loop for several.
    """

    function: Callable[..., None]
    signature: tuple[Any, ...]
    fastmath: Iterable[str] = ("contract",)
    threads: bool = True
    pieces: int = PIECES

    def __post_init__(self) -> None:
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


def for_each_dtype(
    *arguments: Any, **options: Any
) -> Callable[[Callable[..., None]], dict[np.dtype[Any], Kernel]]:
    """Decorate a loop: it becomes its kernels by dtype, which are none if nothing is compiled.

    An argument is a type, or `(read, 2)` for `read(number, 2)` with numba's number of the dtype.
    The options are those of `Kernel`.
    """

    def decorate(function: Callable[..., None]) -> dict[np.dtype[Any], Kernel]:
        found = {}
        for dtype, number in NUMBERS.items() if JIT_ENABLED else ():
            types_ = (x[0](number, x[1]) if isinstance(x, tuple) else x for x in arguments)
            found[dtype] = Kernel(function, tuple(types_), **options)
        return found

    return decorate


def read(number: Any, ndim: int) -> Any:
    """Return numba's type of a contiguous array that is only read, and may be read-only."""
    return types.Array(number, ndim, "C", readonly=True)


def written(number: Any, ndim: int) -> Any:
    """Return numba's type of a contiguous array that is written to."""
    return types.Array(number, ndim, "C")


def written_anywhere(number: Any, ndim: int) -> Any:
    """Return numba's type of an array of any strides that is written to."""
    return types.Array(number, ndim, "A")


def strided(number: Any, ndim: int) -> Any:
    """Return numba's type of the most general array that is only read, as which all others pass.

    It may have any strides, be read-only, and lie at any address.
    """
    return types.Array(number, ndim, "A", readonly=True, aligned=False)
