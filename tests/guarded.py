"""Arrays at the edge of memory: who reads or writes beyond them dies of it.

For scripts that tests run in a process of their own.
"""

import ctypes
import mmap
from contextlib import contextmanager
from unittest import mock

import llvmlite.binding as llvm
import numpy as np
from numba.core.registry import cpu_target
from numba.core.runtime import _nrt_python, rtsys

_C = ctypes.CDLL(None, use_errno=True)


def guarded(count, dtype, end):
    """Numbers that end where a page begins that may not be touched, or start after one."""
    size = count * np.dtype(dtype).itemsize
    pages = -(-size // mmap.PAGESIZE) or 1
    area = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for guard in (0, pages + 1):
        address = ctypes.c_void_p(start + guard * mmap.PAGESIZE)
        assert _C.mprotect(address, mmap.PAGESIZE, 0) == 0
    offset = mmap.PAGESIZE * (pages + 1) - size if end else mmap.PAGESIZE
    return np.frombuffer(area, dtype, count, offset)


def guarded_copy(x, end):
    """The same numbers at the edge of memory, contiguous."""
    out = guarded(x.size, x.dtype, end).reshape(x.shape)
    out[...] = x
    return out


class _Header(ctypes.Structure):
    """What numba writes before an array: `NRT_MemInfo` in its nrt.cpp."""

    _fields_ = (
        ("references", ctypes.c_size_t),
        ("destructor", ctypes.c_void_p),
        ("of_destructor", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
    )


_ALLOCATE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32)
_DESTROY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_for_ever = []  # the functions that compiled code calls


def guard_scratch(rng):
    """From now on, arrays made by kernels are at the edge of memory, and full of nan.

    No kernel may be loaded yet. Returns a list whose only number counts the arrays.
    """
    rtsys.initialize(cpu_target.target_context)
    of_numba = _ALLOCATE(_nrt_python.c_helpers["MemInfo_alloc_aligned"])
    alive, count = {}, [0]

    @_DESTROY
    def destroy(data, _size, _of_destructor):
        del alive[data]

    @_ALLOCATE
    def allocate(size, align):
        address = of_numba(1, align)
        numbers = guarded(size, np.uint8, rng.integers(2))
        numbers[...] = 255
        header = _Header.from_address(address)
        header.data, header.size = numbers.ctypes.data, size
        header.destructor = ctypes.cast(destroy, ctypes.c_void_p)
        alive[header.data] = numbers
        count[0] += 1
        return address

    _for_ever.extend((destroy, allocate))
    for name in ("NRT_MemInfo_alloc_aligned", "NRT_MemInfo_alloc_safe_aligned"):
        llvm.add_symbol(name, ctypes.cast(allocate, ctypes.c_void_p).value)
    return count


def new_arrays_guarded(rng):
    """Here arrays made by `np.empty`, `np.zeros` and their like are at the edge of memory.

    Yields a list whose only number counts them.
    """
    return _new_arrays(lambda count, dtype: guarded(count, dtype, rng.integers(2)))


def new_arrays_side_by_side(gap, zeros=np.zeros):
    """Here each array made by `np.empty` and its like begins `gap` bytes after the one before."""
    memory, end = bytearray(), 0

    def numbers(count, dtype):
        nonlocal memory, end
        dtype = np.dtype(dtype)
        size = count * dtype.itemsize
        if not size:
            return zeros(count, dtype)
        start = end + -end % dtype.itemsize
        if start + size > len(memory):
            memory, start = bytearray(size + (1 << 20)), 0
        end = start + size + gap
        return np.frombuffer(memory, dtype, count, start)

    return _new_arrays(numbers)


@contextmanager
def _new_arrays(allocate):
    count = [0]

    def empty(shape, dtype=float, order="C", **_rest):
        count[0] += 1
        shape = tuple(np.atleast_1d(np.asarray(shape, int))) if np.ndim(shape) else (int(shape),)
        numbers = allocate(int(np.prod(shape)), dtype)
        if numbers.dtype.kind == "f":
            numbers[...] = np.nan  # what is left unwritten shows
        return numbers.reshape(shape, order="F" if order == "F" else "C")

    def zeros(shape, dtype=float, order="C", **_rest):
        out = empty(shape, dtype, order)
        out[...] = 0
        return out

    def like(make):
        def made(x, dtype=None, order="K", subok=True, shape=None):
            x = np.asarray(x)
            fortran = order == "F" or (order in "KA" and x.flags.fnc)
            shape = x.shape if shape is None else shape
            return make(shape, dtype or x.dtype, "F" if fortran else "C")

        return made

    with mock.patch.multiple(
        np, empty=empty, zeros=zeros, empty_like=like(empty), zeros_like=like(zeros)
    ):
        yield count
