"""Arrays of numpy as arguments of kernels: what is read from them, and what is refused."""

import sys

import numpy as np
import pytest
from numba import types

from minigrad.kernels import unboxing
from minigrad.kernels.jit import JIT_ENABLED, external, read, strided, written, written_anywhere
from minigrad.kernels.launch import KERNELS, Kernel

pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled kernel to test")
FACTS = 6  # how many numbers `describe` writes


@pytest.fixture(autouse=True, scope="module")
def no_kernel_stays():
    yield
    KERNELS[:] = [each for each in KERNELS if each.function.__module__ != __name__]


def describe(piece, pieces, x, out):
    out[0], out[1] = x.shape
    out[2], out[3] = x.strides
    out[4] = x.size
    for row in x:  # slices, of which numba would count references
        for number in row:
            out[5] += number


@external()
def touch(piece, pieces, x):
    for i in range(len(x)):
        x[i] += 1


def touch_all(piece, pieces, x):
    touch(piece, pieces, x)


def touch_first(piece, pieces, x, other):
    touch(piece, pieces, x)


def facts_of(x):
    return [*x.shape, *x.strides, x.size, x.sum()]


numbers = np.arange(24.0).reshape(4, 6)
frozen = numbers.copy()
frozen.flags.writeable = False
explicit = numbers.view(numbers.dtype.newbyteorder("<" if sys.byteorder == "little" else ">"))
misaligned = np.frombuffer(bytes(1) + numbers.tobytes(), np.float64, offset=1).reshape(4, 6)


@pytest.mark.parametrize("kind", [read, strided])
@pytest.mark.parametrize(
    "x",
    [numbers, numbers.T, numbers[::-1, ::2], numbers[1:1], numbers[:1, :1], numbers[2:, 3:], frozen,
     explicit, misaligned, np.broadcast_to(7.0, (3, 5))],
)  # fmt: skip
def test_a_kernel_reads_address_shape_and_strides(kind, x):
    x = np.ascontiguousarray(x) if kind is read else x  # which copies no misaligned array
    kernel = Kernel(describe, (kind(types.float64, 2), written(types.float64, 1)))
    out = np.zeros(FACTS)
    kernel(0.0, x, out)
    np.testing.assert_array_equal(out, facts_of(x))


def test_no_reference_to_an_array_is_kept():
    kernel = Kernel(touch_all, (written(types.float64, 1),))
    x = np.zeros(3)
    before = sys.getrefcount(x)
    for _ in range(100):
        kernel(0.0, x)
        with pytest.raises(TypeError):
            kernel(0.0, x[::2])
    assert sys.getrefcount(x) == before
    np.testing.assert_array_equal(x, 100)


@pytest.mark.parametrize("code", ["q", "l", "i", "?", "B"])
def test_two_names_of_one_integer_type_are_the_same(code):
    x = np.zeros(3, code)
    kernel = Kernel(touch_all, (written(types.int64, 1),))
    if x.dtype == np.int64:
        kernel(0.0, x)
        assert x.all()
    else:
        with pytest.raises(TypeError, match="int64"):
            kernel(0.0, x)
        assert not x.any()


@pytest.mark.parametrize(
    "part",
    ["CLASS", "DATA", "NDIM", "SHAPE", "STRIDES", "DTYPE", "FLAGS", "BYTE_ORDER", "TYPE_NUMBER"],
)
def test_a_numpy_with_other_parts_is_refused(part, monkeypatch):
    other = "SHAPE" if part == "STRIDES" else "STRIDES"  # an address that can be read from
    monkeypatch.setattr(unboxing, part, getattr(unboxing, other))
    with pytest.raises(RuntimeError, match="cannot read the arrays of numpy"):
        unboxing.provide_ndarray.__wrapped__()


class Subclass(np.ndarray):
    pass


row = np.zeros(4)
stepped, still = np.zeros(8)[::2], row.copy()
still.flags.writeable = False


@pytest.mark.parametrize(
    ("kind", "x"),
    [
        *((written, x) for x in (stepped, still, row.astype(np.float32), row.astype(">f8"),
                                 row.reshape(1, 4), np.array(0.0), row.view(Subclass),
                                 misaligned[0], list(row), 0.0, None, np.float64)),
        (read, stepped), (read, row.astype(np.int64)),
        (written_anywhere, still), (strided, row.astype(">f8")), (strided, row.reshape(2, 2)),
    ],
)  # fmt: skip
def test_other_arguments_are_refused_before_the_kernel_runs(kind, x):
    kernel = Kernel(touch_first, (written(types.float64, 1), kind(types.float64, 1)))
    first = np.zeros(3)
    with pytest.raises(TypeError, match="a kernel was called with another object where it needs"):
        kernel(0.0, first, x)
    assert not first.any()
