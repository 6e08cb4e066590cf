"""How compiled code reads the arrays that Python passes to a kernel, and those in lists.

numba would make an object for each array in each call, with a count of the references to its
memory. This takes 40 ns. And where a loop takes slices of an array, it changes the count: threads
that share an array would change one number in turn, and often wait longer than they compute.

A kernel needs no count, because its caller keeps the arrays until it returns: it borrows them. So
the machine code here checks the type of numpy's object, and reads address, shape and strides from
it. This takes 5 ns.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import NativeValue, register_model, unbox
from numba.np import numpy_support

from minigrad.kernels.jit import WORD, jit
from minigrad.kernels.vector import load

BYTE, INT = ir.IntType(8), ir.IntType(32)

# The parts of numpy's arrays and dtypes, in bytes behind the head that each Python object has. All
# compiled modules that use numpy read these parts directly, so numpy cannot change them at will.
HEAD = object.__basicsize__
CLASS = -8  # the last part of the head
DATA, NDIM, SHAPE, STRIDES, DTYPE, FLAGS = 0, 8, 16, 24, 40, 48  # of an array
BYTE_ORDER, TYPE_NUMBER = 10, 12  # of a dtype
LENGTH, ITEMS = 0, 8  # of a list
NATIVE = (b"=<" if sys.byteorder == "little" else b"=>") + b"|"  # the byte orders of this machine
CONTIGUOUS, ALIGNED, WRITABLE = 0x1, 0x100, 0x400  # flags of an array

NDARRAY = "minigrad_ndarray"
"""The symbol of numpy's class of arrays."""


class Borrowed(types.Type):  # type: ignore[misc]  # numba has no annotations
    """The type of an array that belongs to the caller, to which nothing counts references.

    Attributes:
        kind: the type with references, as the kernel declares it.
    """

    def __init__(self, kind: Any) -> None:
        super().__init__(f"borrowed {kind}")
        self.kind = kind


@register_model(Borrowed)
class BorrowedModel(models.StructModel):  # type: ignore[misc]
    """The parts of numba's arrays, where the two that own the memory are addresses, always 0."""

    def __init__(self, manager: Any, argument: Any) -> None:
        kind = argument.kind
        axes = types.UniTuple(types.intp, kind.ndim)
        owners = [("meminfo", types.voidptr), ("parent", types.voidptr)]
        sizes = [("nitems", types.intp), ("itemsize", types.intp)]
        layout = [("data", types.CPointer(kind.dtype)), ("shape", axes), ("strides", axes)]
        super().__init__(manager, argument, [*owners, *sizes, *layout])


def borrowed(kind: Any) -> Any:
    """Return the type that Python's argument is read as, given the type that a kernel declares."""
    return Borrowed(kind) if isinstance(kind, types.Array) else kind


@functools.cache
def provide_ndarray() -> None:
    """Make numpy's class of arrays known to the linker, after a check of what is read from arrays.

    Raises:
        RuntimeError: if this version of numpy has other parts, or has them in another order.
    """

    def integer(address: int, kind: Any = ctypes.c_ssize_t) -> int:
        return int(kind.from_address(address).value)

    x = np.empty((2, 3), np.float32)[:, 1:]
    arrays = [x]
    at, dtype = integer(integer(id(arrays) + HEAD + ITEMS)) + HEAD, id(x.dtype) + HEAD
    found = [integer(id(arrays) + HEAD + LENGTH)]
    found += [integer(at + part) for part in (CLASS, DATA, DTYPE)]
    for part in (SHAPE, STRIDES):
        found += [integer(integer(at + part) + 8 * axis) for axis in range(2)]
    found += [integer(i, ctypes.c_int) for i in (at + NDIM, at + FLAGS, dtype + TYPE_NUMBER)]
    found.append(integer(dtype + BYTE_ORDER, ctypes.c_ubyte))
    own = [len(arrays), id(np.ndarray), x.ctypes.data, id(x.dtype), *x.shape, *x.strides]
    own += [x.ndim, x.flags.num, x.dtype.num, ord(x.dtype.byteorder)]
    if found != own:
        raise RuntimeError(
            f"minigrad cannot read the arrays of numpy {np.__version__}, whose parts have another "
            "order; install another version of numpy, or set NUMBA_DISABLE_JIT=1"
        )
    llvm.add_symbol(NDARRAY, id(np.ndarray))


@unbox(Borrowed)  # type: ignore[untyped-decorator]
def _unbox(argument: Any, array: Any, c: Any) -> Any:
    """Emit code that reads the parts of an array, or raises TypeError if it has another type."""
    builder, kind = c.builder, argument.kind
    dtype = numpy_support.as_dtype(kind.dtype)
    needed = CONTIGUOUS * (kind.layout == "C") + ALIGNED * kind.aligned + WRITABLE * kind.mutable
    numbers = sorted({np.dtype(x).num for x in np.typecodes["All"] if np.dtype(x) == dtype})

    def read(address: Any, offset: int, part: Any = WORD) -> Any:
        at = builder.add(address, WORD(offset))
        return builder.load(builder.inttoptr(at, part.as_pointer()))

    def is_one_of(value: Any, wanted: Any) -> Any:
        equal = (builder.icmp_signed("==", value, value.type(each)) for each in wanted)
        return functools.reduce(builder.or_, equal)

    # The linker looks up all symbols as functions.
    ndarray = cgutils.get_or_insert_function(builder.module, ir.FunctionType(BYTE, []), NDARRAY)
    at = builder.add(builder.ptrtoint(array, WORD), WORD(HEAD))
    is_array = builder.icmp_signed("==", read(at, CLASS), builder.ptrtoint(ndarray, WORD))
    fits = cgutils.alloca_once_value(builder, cgutils.false_bit)
    found = cgutils.create_struct_proxy(argument)(c.context, builder)
    with builder.if_then(is_array, likely=True):
        its_dtype, flags = builder.add(read(at, DTYPE), WORD(HEAD)), read(at, FLAGS, INT)
        checks = [
            is_one_of(read(its_dtype, TYPE_NUMBER, INT), numbers),
            is_one_of(read(its_dtype, BYTE_ORDER, BYTE), NATIVE),
            is_one_of(read(at, NDIM, INT), [kind.ndim]),
            is_one_of(builder.and_(flags, INT(needed)), [needed]),
        ]
        all_fit = functools.reduce(builder.and_, checks)
        builder.store(all_fit, fits)
        with builder.if_then(all_fit, likely=True):
            axes = [
                [read(read(at, part), 8 * i) for i in range(kind.ndim)] for part in (SHAPE, STRIDES)
            ]
            found.shape, found.strides = (cgutils.pack_array(builder, x, WORD) for x in axes)
            found.nitems = functools.reduce(builder.mul, axes[0], WORD(1))
            found.itemsize = WORD(dtype.itemsize)
            found.data = builder.inttoptr(read(at, DATA), found.data.type)
    fits = builder.load(fits)
    with builder.if_then(builder.not_(fits), likely=False):
        message = f"a kernel was called with another object where it needs {kind}"
        c.pyapi.err_set_string("PyExc_TypeError", message)
    return NativeValue(found._getvalue(), is_error=builder.not_(fits))


# --------------------------------------------------------------------------------------------------
# Arrays in lists. A kernel reads them without the GIL, so no other thread may have the lists.
# --------------------------------------------------------------------------------------------------


@jit()
def word_at(address: int) -> int:
    """Return the integer of 64 bits at an address, such as the address of another object."""
    word: int = load(address, np.int64(0))
    return word


@jit()
def items_of(at: int, list_class: int, length: int) -> int:
    """Return the address of the items of the object at an address; 0 if it is no such list."""
    if word_at(at + HEAD + CLASS) != list_class or word_at(at + HEAD + LENGTH) != length:
        return 0
    return word_at(at + HEAD + ITEMS)


@jit()
def array_at(at: int, array_class: int, dtype: int, is_written: bool) -> tuple[int, int]:
    """Return the address and the number of the elements of the object at an address.

    The number is -1 if the object is no contiguous array whose dtype has this type number.
    """
    at += HEAD
    if word_at(at + CLASS) != array_class:
        return 0, -1
    its_dtype, flags = word_at(at + DTYPE) + HEAD, load(at + FLAGS, np.int32(0))
    number = load(its_dtype + TYPE_NUMBER, np.int32(0))
    order = load(its_dtype + BYTE_ORDER, np.int8(0))
    needed = CONTIGUOUS | ALIGNED | (WRITABLE if is_written else 0)
    if number != dtype or order not in (NATIVE[0], NATIVE[1]) or flags & needed != needed:
        return 0, -1
    size = 1
    for axis in range(load(at + NDIM, np.int32(0))):
        size *= word_at(word_at(at + SHAPE) + 8 * axis)
    return word_at(at + DATA), size
