"""How all kernels are compiled: `jit`, `external`, and the types of arguments.

A function that a kernel calls has one of two decorators:

* `jit` is for short functions. Each caller gets a copy of the machine code, which LLVM optimises
  together with the code around it. A loop over `vector_math.tanh` needs this to become vector code.
* `external` is for long functions. They are compiled once for each set of argument types, and
  called through a symbol, as C calls a function in another file. The register tile, for example,
  takes seconds to compile, and a dozen kernels call it.

Both are `numba.njit` with these choices:

* The machine code is stored on disk, so that only the first run on a machine compiles (see
  `minigrad.kernels.cache`).
* A kernel releases the GIL while it runs: it uses numbers and memory, never a Python object.
* A division by zero gives the result of IEEE, as in numpy, and not an exception.
* Fast-math flags are allowed one by one. `"reassoc"` lets the compiler vectorise a sum, and
  `"contract"` lets it fuse a product with an addition. The flags that assume that no NaN and no
  infinity occur stay off, because this library searches for NaN.
* Python's garbage collector pauses during a compilation, which saves a tenth of the time.

With NUMBA_DISABLE_JIT=1, `JIT_ENABLED` is False and the decorated functions stay plain Python. A
Python loop over machine addresses would be of no use, so the functions that call kernels compute in
numpy instead.
"""

from __future__ import annotations

import functools
import gc
import inspect
import os
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar, cast, get_type_hints

import numba
import numba.extending
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numpy.typing import NDArray

from minigrad.kernels import cache

Array = NDArray[Any]
F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")

WORD = ir.IntType(64)

OLDEST_NUMBA = (0, 61)  # as in pyproject.toml
if numba.version_info.short < OLDEST_NUMBA:
    raise ImportError(
        f"minigrad needs numba {'.'.join(map(str, OLDEST_NUMBA))} or later, and this is numba "
        f"{numba.__version__}: python -m pip install --upgrade numba"
    )

if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    # A fork waits until other threads have compiled: a child would wait for their lock for ever.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )

JIT_ENABLED = not numba.config.DISABLE_JIT
"""Whether kernels are compiled: False under NUMBA_DISABLE_JIT=1."""


def jit(*, fastmath: Iterable[str] = (), inline: str = "never") -> Callable[[F], F]:
    """Decorate a short function, so that each caller gets a copy: `@jit()`.

    `fastmath` names single LLVM flags. `inline="always"` copies the source into the callers, where
    it is compiled with their flags. Otherwise LLVM decides whether it copies the machine code.
    """

    def decorate(function: F) -> F:
        return cast(F, dispatcher(function, fastmath, inline=inline)) if JIT_ENABLED else function

    return decorate


def external(*, fastmath: Iterable[str] = ()) -> Callable[[F], F]:
    """Decorate a long function, which is compiled once and called through a symbol."""

    def decorate(function: F) -> F:
        return cast(F, External(function, fastmath).intrinsic) if JIT_ENABLED else function

    return decorate


def dispatcher(
    function: Callable[..., Any],
    fastmath: Iterable[str] = (),
    *,
    inline: str = "never",
    from_python: bool = False,
) -> Any:
    """Return numba's dispatcher of a function, with the choices that all kernels share.

    `fastmath` and `inline` are those of `jit`. With `from_python`, Python can call it, through a
    wrapper that is compiled too.
    """
    cache.name_apart(function)
    flags = sorted(set(fastmath))
    options = {"inline": inline, "no_cpython_wrapper": not from_python}
    made = numba.njit(
        nogil=True,
        error_model="numpy",
        fastmath=set(flags) or False,
        no_cfunc_wrapper=True,
        **options,
    )(function)
    made._cache = cache.KernelCache(function, (flags, options))
    return made


def compile_for(made: Any, kinds: tuple[Any, ...]) -> Any:
    """Compile a dispatcher's function for these types, or read it from disk; return the result."""
    collects = gc.isenabled()
    gc.disable()  # numba makes many objects, and nearly all of them stay in use
    try:
        made.compile(kinds)
    except FileNotFoundError as error:
        if error.filename is not None:
            raise
        raise FileNotFoundError(  # by os.getcwd
            "the working folder has been deleted, and numba compiles from an existing one only; go "
            "to one with os.chdir"
        ) from error
    finally:
        if collects:
            gc.enable()
    return made.overloads[kinds]


def intrinsic(define: Callable[Concatenate[Any, P], Any]) -> Callable[P, Any]:
    """Make an instruction from a function of the argument types: numba's decorator, annotated."""
    return cast(Callable[P, Any], numba.extending.intrinsic(define))


# --------------------------------------------------------------------------------------------------
# Functions that are called through a symbol
# --------------------------------------------------------------------------------------------------


class External:
    """A function that is compiled once for each set of argument types.

    Attributes:
        intrinsic: the function as compiled code calls it.
        files: the files of the machine code.
    """

    def __init__(self, function: Callable[..., Any], fastmath: Iterable[str] = ()) -> None:
        self._dispatcher = dispatcher(function, fastmath)
        self.files: cache.KernelCache = self._dispatcher._cache

        def typed(_typing: Any, *given: Any) -> Any:
            kinds = tuple(map(types.unliteral, given))
            symbol = self.symbol(kinds)
            result = cache.SYMBOLS[symbol].signature.return_type

            def build(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
                code = emit_address(context, builder, symbol, result, kinds)
                return emit_call(context, builder, code, result, kinds, values)

            return result(*kinds), build

        self.intrinsic = intrinsic_of(inspect.signature(function).parameters, typed)
        EXTERNALS[self.intrinsic] = self

    def symbol(self, kinds: tuple[Any, ...]) -> str:
        """Return the symbol of the machine code for these types; compile or load it if needed."""
        symbol = self.files.symbol(kinds)
        with global_compiler_lock:  # two threads would each load it, and free what the other calls
            if symbol not in cache.SYMBOLS:
                cache.provide(symbol, compile_for(self._dispatcher, kinds))
        return symbol


EXTERNALS: dict[Any, External] = {}
"""The external functions, by their `intrinsic`, which compiled code calls."""


@intrinsic
def address_for(_typing: Any, function: Any, arguments: Any) -> Any:
    """Return the address of an external function for a tuple of arguments of these types."""
    kinds = tuple(map(types.unliteral, arguments))
    symbol = EXTERNALS[function.typing_key].symbol(kinds)

    def emit(context: Any, builder: Any, _signature: Any, _values: Any) -> Any:
        return emit_address(context, builder, symbol, types.none, kinds)

    return types.intp(function, arguments), emit


@intrinsic
def call_at(_typing: Any, address: Any, arguments: Any) -> Any:
    """Call the external function at an address, which returns nothing, with a tuple of arguments.

    Unlike a call through a symbol, this does not need the function before the address is known.
    """
    kinds = tuple(map(types.unliteral, arguments))

    def emit(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        address, packed = values
        given = emit_unpacked(context, builder, packed, arguments, kinds)
        emit_call(context, builder, address, types.none, kinds, given)
        return context.get_dummy_value()

    return types.none(types.intp, arguments), emit


def emit_address(context: Any, builder: Any, symbol: str, result: Any, kinds: Any) -> Any:
    """Emit the address of the function with a symbol; the linker fills in the address."""
    kind = context.call_conv.get_function_type(result, kinds)
    return builder.ptrtoint(cgutils.get_or_insert_function(builder.module, kind, symbol), WORD)


def emit_call(
    context: Any, builder: Any, code: Any, result: Any, kinds: Any, values: Any, failed: Any = None
) -> Any:
    """Emit a call of the compiled function at an address, and return its value.

    If the function raises an error, the caller raises it too, or stores 1 at the pointer `failed`.
    The only possible error is that no memory is left.
    """
    kind = context.call_conv.get_function_type(result, kinds)
    function = builder.inttoptr(code, kind.as_pointer())
    status, value = context.call_conv.call_function(builder, function, result, kinds, values)
    with cgutils.if_unlikely(builder, status.is_error):
        if failed is None:
            context.call_conv.return_status_propagate(builder, status)
        else:
            builder.store(WORD(1), failed)
    return value


def emit_unpacked(context: Any, builder: Any, packed: Any, given: Any, kinds: Any) -> list[Any]:
    """Emit the values of a tuple, each converted from its type in `given` to the one in `kinds`."""
    values = cgutils.unpack_tuple(builder, packed)
    return [context.cast(builder, *each) for each in zip(values, given, kinds, strict=True)]


def intrinsic_of(names: Iterable[str], define: Callable[..., Any]) -> Any:
    """Make an instruction from a function of any number of types, with these parameter names.

    numba would pack `*arguments` into a tuple, and count references to arrays.
    """

    def typed(*given: Any) -> Any:
        return define(*given)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("_typing", *names)]
    cast(Any, typed).__signature__ = inspect.Signature(parameters)
    return intrinsic(typed)


def target() -> tuple[str, str, list[str]]:
    """Return LLVM's names of the system, processor and instruction sets that kernels may use."""
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    sets = [part.removeprefix("+") for part in str(features).split(",") if part.startswith("+")]
    return str(triple), str(name), sets


# --------------------------------------------------------------------------------------------------
# The types of arguments
# --------------------------------------------------------------------------------------------------

SINGLE: np.dtype[Any] = np.dtype(np.float32)
DOUBLE: np.dtype[Any] = np.dtype(np.float64)
NUMBERS: dict[np.dtype[Any], Any] = {SINGLE: types.float32, DOUBLE: types.float64}
"""The dtypes that kernels are compiled for, and numba's types for them."""


# numba's types of arrays, given the type of the elements and the number of axes. An array that is
# only read may be read-only, and misaligned, as a view into a packed record or a mapped file is.
read = functools.partial(types.Array, layout="C", readonly=True, aligned=False)
written = functools.partial(types.Array, layout="C")
written_anywhere = functools.partial(types.Array, layout="A")
strided = functools.partial(types.Array, layout="A", readonly=True, aligned=False)


@functools.cache
def nothing(dtype: np.dtype[Any], ndim: int = 1) -> Array:
    """Return an array of size 0, which means "no array" in the call of a kernel."""
    return np.empty((0,) * ndim, dtype)


class Read:
    """Annotations of arrays that are contiguous and only read, by the number of axes."""

    D1 = Annotated[Any, read, 1]
    D2 = Annotated[Any, read, 2]
    D3 = Annotated[Any, read, 3]


class Written:
    """Annotations of arrays that are written to: contiguous, or `Anywhere` with any strides."""

    D1 = Annotated[Any, written, 1]
    D2 = Annotated[Any, written, 2]
    D3 = Annotated[Any, written, 3]
    Anywhere2 = Annotated[Any, written_anywhere, 2]
    Anywhere4 = Annotated[Any, written_anywhere, 4]


class Strided:
    """Annotations of arrays of any layout that are only read."""

    D1 = Annotated[Any, strided, 1]
    D2 = Annotated[Any, strided, 2]
    D4 = Annotated[Any, strided, 4]


Number = Annotated[Any, None]  # a number of the kernel's dtype
Integers = Annotated[Written.D1, types.int64]
PLAIN = {int: types.intp, float: types.float64, bool: types.boolean}


def signature_of(function: Callable[..., None], number: Any) -> tuple[Any, ...]:
    """Return numba's types of a kernel's arguments, from the annotations of its parameters.

    An annotation is `int`, `float` or `bool`, a type of numba, or an array such as `Read.D1`. The
    elements of arrays are of the type `number`, unless the annotation adds another type, as in
    `Annotated[Read.D1, types.int64]`. The first two parameters are left out: all kernels have them.
    """
    hints = get_type_hints(function, include_extras=True)
    hints.pop("return", None)
    found = []
    for hint in list(hints.values())[2:]:
        parts = hint.__metadata__ if hasattr(hint, "__metadata__") else (PLAIN[hint],)
        if len(parts) == 1:
            found.append(parts[0] or number)
        else:
            layout, ndim, element = (*parts, number)[:3]
            found.append(layout(element, ndim))
    return tuple(found)
