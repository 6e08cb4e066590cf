"""How we compile: the one place that decides it.

Every kernel of this package is decorated with `jit`, which is `numba.njit` with our choices made:

* The machine code is cached on disk, so that only the first run on a machine compiles.
* The GIL is released while a kernel runs: kernels see numbers and memory, never a Python object.
* A division by zero gives what IEEE says, as in numpy, and not an exception.
* Fast-math flags are allowed singly. `"reassoc"` and `"contract"` let a sum be vectorised and a
  product be fused with an addition; the flags that assume away NaN and infinity stay off, since
  a library that hunts for the first NaN must not compile it out.

With NUMBA_DISABLE_JIT=1 the decorated functions stay plain Python. They still mean the same, but
a Python loop over machine addresses is of no use: `JIT_ENABLED` is then False, and each entry
point serves the numpy twin of its kernel instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numba
import numba.extending
from numba.core.caching import FunctionCache

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")

_numba: Any = numba  # whose own annotations cover a part of it, and differ between versions

JIT_ENABLED = not _numba.config.DISABLE_JIT
"""Whether kernels are compiled: False under NUMBA_DISABLE_JIT=1."""


def _digest_of_sources() -> str:
    """One hash over all source files of this package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_SOURCES = _digest_of_sources()


class _PackageCache(FunctionCache):  # type: ignore[misc, unused-ignore]  # numba has no types
    """numba's disk cache, with the two things added to its key that ours must depend on.

    numba's own key knows the file a kernel is written in, and nothing of the files it calls into:
    change the register tile in one file, and loops in another go on packing panels for the old
    one. With raw addresses that is a write out of bounds, so the key holds all our sources.
    It does not know the compile options either, but we compile one function twice, with and
    without `parallel`.
    """

    def __init__(self, function: Callable[..., Any], options: object) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call, unused-ignore]
        self._salt = (_SOURCES, repr(options))

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        key = super()._index_key(sig, codegen)  # type: ignore[no-untyped-call, unused-ignore]
        return (*key, self._salt)


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
        flags = set(fastmath)
        dispatcher = _numba.njit(
            nogil=True,
            parallel=parallel,
            fastmath=flags or False,
            inline=inline,
            error_model="numpy",
        )(function)
        # A RuntimeError says that no folder can be written to; then each process compiles anew.
        with suppress(RuntimeError):
            dispatcher._cache = _PackageCache(function, (parallel, sorted(flags), inline))
        if signature is not None:
            dispatcher.compile(signature)
            dispatcher.disable_compile()
        return cast(F, dispatcher)

    return decorate


def intrinsic(emit: Callable[Concatenate[Any, P], Any]) -> Callable[P, Any]:
    """Make an instruction of our own from a function that emits it: numba's decorator, with types.

    The first argument of `emit` is numba's typing context, which callers do not pass.
    """
    return cast(Callable[P, Any], _numba.extending.intrinsic(emit))
