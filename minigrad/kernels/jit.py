"""`jit`: how kernels are compiled, decided once for all.

Every kernel of this package is decorated with `jit`, which is `numba.njit` with these choices:

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
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numba
import numba.extending
from numba.core.registry import cpu_target

from minigrad.kernels.cache import KernelCache, name_apart

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")

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


def intrinsic(emit: Callable[Concatenate[Any, P], Any]) -> Callable[P, Any]:
    """Make an instruction from a function that emits it: numba's decorator, with types.

    The first argument of `emit` is numba's typing context, which callers do not pass.
    """
    return cast(Callable[P, Any], _numba.extending.intrinsic(emit))


def processor() -> str:
    """Return LLVM's name of the processor that we compile for."""
    _, name, _ = cpu_target.target_context.codegen().magic_tuple()
    return str(name)
