"""Kernels: loops that are compiled once, and run by one thread or shared by several.

A kernel is a function `loop(piece, pieces, *arguments)` that does piece number `piece` of its work.
One thread does the work as one piece. Several threads share the pieces through numba's pool of
threads, which gets the address of the machine code of a piece:

    kernel(seconds, *arguments)                     in Python: one thread or several
      entry(how, *arguments)                        unboxes the arguments; shared by all kernels
                                                    whose arguments have the same types
        numba_parallel_for(work, ..., threads)      if several threads share the work
          loop(piece, pieces, *arguments)

Some loops have several parts that threads share one after another: a product first packs a matrix
and then multiplies. Such a loop is called once, as `loop(launcher, pieces, *arguments)`, and calls

    share(launcher, pieces, part, (x, y, ...))

for each part. A part is an `external` function `part(piece, pieces, x, y, ...)`. The launcher is
what the function `launcher` returns, or 0 if the calling thread does all pieces itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from textwrap import dedent, indent
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numpy import ndarray

from minigrad.kernels import start
from minigrad.kernels.jit import (
    EXTERNALS,
    JIT_ENABLED,
    NUMBERS,
    WORD,
    Array,
    External,
    compile_for,
    dispatcher,
    emit_address,
    emit_call,
    emit_unpacked,
    intrinsic,
    intrinsic_of,
    jit,
    signature_of,
)
from minigrad.kernels.start import interrupts_held_back
from minigrad.kernels.threads import (
    MIN_SECONDS_FOR_THREADS,
    get_max_threads,
    get_num_threads,
    team,
    threading_layer,
)
from minigrad.kernels.unboxing import borrowed, provide_ndarray

INT = types.intp
POINTER = ir.IntType(8).as_pointer()
# The functions of numba's pool of threads: what it calls for some pieces, with lists of arguments,
# sizes and steps, and data; what runs all pieces; and what reads and sets the number of threads.
PIECE_OF_WORK = ir.FunctionType(ir.VoidType(), [POINTER] * 4)
PARALLEL_FOR = ir.FunctionType(ir.VoidType(), [POINTER] * 5 + [WORD] * 3)
GET_NUM_THREADS = ir.FunctionType(ir.IntType(32), [])
SET_NUM_THREADS = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])


@jit(inline="always")
def part(piece: int, pieces: int, x: Any) -> Any:
    """Return piece number `piece` of a row, as a slice.

    LLVM makes vector code only if no index can be negative. It knows this of the indices of a
    slice, which begin at 0.
    """
    return x[piece * x.size // pieces : (piece + 1) * x.size // pieces]


@jit(inline="always")
def span(piece: int, pieces: int, count: int) -> Any:
    """Return the range of the indices below `count` that belong to piece number `piece`."""
    return range(piece * count // pieces, (piece + 1) * count // pieces)


@functools.cache
def launcher(threads: int) -> int:
    """Start the pool of threads, and return the address of what is needed to run work on it.

    At the address are four words: the addresses of numba's functions `numba_parallel_for`,
    `get_num_threads` and `set_num_threads`, and the number of threads to use.
    """
    threading_layer()
    names = "numba_parallel_for", "get_num_threads", "set_num_threads"
    words = np.array([*map(llvm.address_of_symbol, names), threads])
    CALLS.append(words)
    return int(words.ctypes.data)


def _emit_share(
    context: Any, builder: Any, launcher_at: Any, pieces: Any, code: Any, kinds: Any, values: Any
) -> None:
    """Emit code that lets threads call the function at an address for each piece.

    The threads read address and arguments from a record on the stack, and note there a failure.
    """
    kinds = (INT, INT, *kinds)
    fields = [WORD(0), code, pieces, *values]
    record = cgutils.alloca_once(builder, ir.LiteralStructType([x.type for x in fields]))
    for i, value in enumerate(fields):
        builder.store(value, cgutils.gep_inbounds(builder, record, 0, i))
    name = builder.module.get_unique_name("piece_of_work")
    work = ir.Function(builder.module, PIECE_OF_WORK, name)
    work.linkage = "internal"

    inner = ir.IRBuilder(work.append_basic_block())
    first, count = (inner.load(inner.bitcast(x, WORD.as_pointer())) for x in work.args[:2])
    data = inner.bitcast(work.args[3], record.type)
    failed, *read = (cgutils.gep_inbounds(inner, data, 0, i) for i in range(len(fields)))
    address, *arguments = map(inner.load, read)
    with cgutils.for_range(inner, count) as loop:
        given = [inner.add(first, loop.index), *arguments]
        emit_call(context, inner, address, types.none, kinds, given, failed)
    inner.ret_void()

    words = builder.inttoptr(launcher_at, WORD.as_pointer())
    run, get, put, threads = (builder.load(builder.gep(words, [WORD(i)])) for i in range(4))

    def call(function: Any, kind: Any, *given: Any) -> Any:
        return builder.call(builder.inttoptr(function, kind.as_pointer()), given)

    # There is one argument, a pointer that the pool moves by one byte from piece to piece, from 0.
    lists = [cgutils.alloca_once_value(builder, word) for word in (WORD(0), pieces, WORD(1))]
    pointers = [builder.bitcast(x, POINTER) for x in (work, *lists, record)]
    before = call(get, GET_NUM_THREADS)  # the pool sets the number for the calling thread, too
    call(run, PARALLEL_FOR, *pointers, WORD(0), WORD(1), threads)
    call(put, SET_NUM_THREADS, before)
    has_failed = builder.load(cgutils.gep_inbounds(builder, record, 0, 0))
    with cgutils.if_unlikely(builder, builder.icmp_signed("!=", has_failed, WORD(0))):
        message = "a kernel found no memory to work in"
        context.call_conv.return_user_exc(builder, MemoryError, (message,))


@intrinsic
def share(_typing: Any, launcher: Any, pieces: Any, function: Any, arguments: Any) -> Any:
    """Call `function(piece, pieces, *arguments)` for each piece, on threads if there is a launcher.

    The function must be an `external` function, and the arguments a tuple.
    """
    kinds = tuple(map(types.unliteral, arguments))
    every = (INT, INT, *kinds)
    symbol = EXTERNALS[function.typing_key].symbol(every)

    def emit(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        launcher_at, count, _, packed = values
        given = emit_unpacked(context, builder, packed, arguments, kinds)
        code = emit_address(context, builder, symbol, types.none, every)
        with builder.if_else(builder.icmp_signed("==", launcher_at, WORD(0))) as (alone, shared):
            with alone, cgutils.for_range(builder, count) as loop:
                emit_call(context, builder, code, types.none, every, [loop.index, count, *given])
            with shared:
                _emit_share(context, builder, launcher_at, count, code, kinds, given)
        return context.get_dummy_value()

    return types.none(INT, INT, function, arguments), emit


def _call(declared: tuple[Any, ...], _typing: Any, how: Any, *kinds: Any) -> Any:
    """Call a kernel with the four words at an address: launcher, first argument, pieces, code.

    With a launcher, threads call the kernel for each piece. Otherwise it is called once, with the
    first argument. (Passing one address is faster than passing four integers, which counts in a
    small product.) `declared` are the types that the kernel declares for arrays that are borrowed.
    """

    def emit(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        words, *given = values
        words = builder.inttoptr(words, WORD.as_pointer())
        loaded = (builder.load(builder.gep(words, [WORD(i)])) for i in range(4))
        launcher_at, first, count, code = loaded
        with builder.if_else(builder.icmp_signed("==", launcher_at, WORD(0))) as (once, shared):
            with once:
                every = (INT, INT, *declared)
                emit_call(context, builder, code, types.none, every, [first, count, *given])
            with shared:
                _emit_share(context, builder, launcher_at, count, code, declared, given)
        return context.get_dummy_value()

    return types.none(how, *kinds), emit


def function_from(
    name: str, parameters: dict[str, Any], body: str, module: str, **enclosed: Any
) -> Callable[..., None]:
    """Return a function with these annotated parameters and this body, which can use `enclosed`."""
    head = f"def enclose({', '.join(enclosed)}):\n  def {name}({', '.join(parameters)}):\n"
    source = f"{head}{indent(dedent(body), '    ')}\n  return {name}"
    scope: dict[str, Any] = {"__name__": module}
    # numba reads the source of a function by its file and line, so these are of a `def` here.
    above = "\n" * (function_from.__code__.co_firstlineno - 2)
    exec(compile(above + source, __file__, "exec"), scope)
    function: Callable[..., None] = scope["enclose"](**enclosed)
    function.__annotations__ = parameters
    return function


@functools.cache
def entry(signature: tuple[Any, ...]) -> Any:
    """Return a compiled function that Python can call for all kernels with these argument types."""
    provide_ndarray()
    names = dict.fromkeys(["how", *(f"x{i}" for i in range(len(signature)))])
    body, call = f"call({', '.join(names)})", intrinsic_of(names, partial(_call, signature))
    function = function_from("entry", names, body, __name__, call=call)
    made = dispatcher(function, from_python=True)
    return compile_for(made, (INT, *map(borrowed, signature)))


KERNELS: list[Kernel] = []
"""Every kernel of the modules imported so far."""

CALLS: list[Any] = []
"""The words that `_call` reads; they live as long as the process."""


@dataclass(eq=False)
class Kernel:
    """A loop for one set of argument types, called as `kernel(seconds, *arguments)`.

    Threads share the work if it would take one thread long (see `minigrad.kernels.threads`). The
    result of the loop must not depend on the number of pieces.

    Args:
        function: `loop(piece, pieces, *arguments)`, or `loop(launcher, pieces, *arguments)`.
        signature: the numba types of the arguments.
        fastmath: LLVM's fast-math flags for the function (see `minigrad.kernels.jit`).
        threads: whether threads may share the work.
        shares: whether the function calls `share` itself; then it is called once.

    Attributes:
        alone: the loop on the calling thread, called as `alone(*arguments)`.
    """

    function: Callable[..., None]
    signature: tuple[Any, ...]
    fastmath: Iterable[str] = ("contract",)
    threads: bool = True
    shares: bool = False

    def __post_init__(self) -> None:
        # Plain attributes and no properties, because each call reads them.
        self.alone: Callable[..., None] = self._first_call
        self._shared: dict[int, Callable[..., None]] = {}  # by the number of pieces
        self._types = (INT, INT, *self.signature)
        KERNELS.append(self)

    def __repr__(self) -> str:
        arguments = ", ".join(map(str, self.signature))
        return f"<Kernel {self.function.__module__}.{self.function.__name__}({arguments})>"

    def compile(self) -> None:
        """Read the machine code from disk, or compile it if it is not there."""
        self.alone = self._called(1, on_threads=False)

    def is_compiled(self) -> bool:
        """Return whether the machine code of the kernel is in this process or on disk."""
        return self._external.files.has(self._types)

    @cached_property
    def _external(self) -> External:
        return External(self.function, self.fastmath)

    def _called(self, pieces: int, on_threads: bool) -> Callable[..., None]:
        """Return a function that calls the machine code through `_call`."""
        try:
            # LLVM calls Python back, which loses an interrupt and the machine code with it.
            # No fork may copy a lock of LLVM while it is held.
            with interrupts_held_back(), global_compiler_lock:
                code = llvm.address_of_symbol(self._external.symbol(self._types))
                launching = launcher(min(pieces, get_max_threads())) if on_threads else 0
                first = (0, launching) if self.shares else (launching, 0)
                how = np.array([*first, pieces, code])
                CALLS.append(how)
                return partial(entry(self.signature).entry_point, how.ctypes.data)
        finally:
            if start.after_compiling is not None:
                start.after_compiling()

    def _first_call(self, *arguments: Any) -> None:
        self.compile()
        self.alone(*arguments)

    def __call__(self, seconds: float, *arguments: Any) -> None:
        """Run the loop, on threads if it takes at least `MIN_SECONDS_FOR_THREADS` seconds."""
        if self.threads and seconds >= MIN_SECONDS_FOR_THREADS and get_num_threads() > 1:
            with team(seconds) as threads:
                if threads > 1:
                    self.shared(threads, *arguments)
                else:
                    self.alone(*arguments)
        else:
            self.alone(*arguments)

    def shared(self, pieces: int, *arguments: Any) -> None:
        """Run the loop on threads, cut into this number of pieces."""
        call = self._shared.get(pieces)
        if call is None:
            call = self._shared[pieces] = self._called(pieces, on_threads=True)
        call(*arguments)


def for_each_dtype(
    *dtypes: np.dtype[Any], **options: Any
) -> Callable[[Callable[..., None]], dict[np.dtype[Any], Kernel]]:
    """Decorate a loop: it becomes a dict of kernels by dtype, empty under NUMBA_DISABLE_JIT=1.

    The parameters of the loop are annotated with their types (`jit`); options are as in `Kernel`.
    """

    def decorate(function: Callable[..., None]) -> dict[np.dtype[Any], Kernel]:
        return {
            dtype: Kernel(function, signature_of(function, NUMBERS[dtype]), **options)
            for dtype in (dtypes or NUMBERS if JIT_ENABLED else ())
        }

    return decorate


def kernel_for(
    kernels: dict[np.dtype[Any], Kernel], first: Array, *others: Array | None
) -> Kernel | None:
    """Return the kernel for the dtype of these arrays; None if their dtypes differ or one is empty.

    None is also returned if an array is of a subclass of ndarray, or there is no such kernel.
    """
    dtype = first.dtype
    if first.__class__ is not ndarray or not first.size:
        return None
    for x in others:  # all() takes longer
        if x is not None and (x.__class__ is not ndarray or x.dtype != dtype or not x.size):
            return None
    return kernels.get(dtype)
