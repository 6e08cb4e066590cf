"""One compiled form of a kernel, run by one thread or shared by several."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import llvmlite.binding as llvm
import numpy as np
import pytest
from numba import types

import minigrad
from minigrad.kernels.jit import JIT_ENABLED, external, read, written
from minigrad.kernels.launch import KERNELS, Kernel, part, share, span
from minigrad.kernels.threads import (
    MIN_SECONDS_FOR_THREADS,
    MIN_SECONDS_FOR_WAKING,
    SPIN_SECONDS,
    get_max_threads,
    threading_layer,
)

pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled kernel to test")
ONE_THREAD, THREADS = 0.0, 1.0  # seconds of work, which decide who does it
NUMBERS, SUMS = read(types.float64, 1), written(types.float64, 1)


@pytest.fixture(autouse=True)
def two_threads():
    before = minigrad.get_num_threads()
    if get_max_threads() > 1:
        minigrad.set_num_threads(2)
    yield
    minigrad.set_num_threads(before)
    KERNELS[:] = [each for each in KERNELS if each.function.__module__ != __name__]


def number_of_piece(piece, pieces, x, out):
    for i in span(piece, pieces, x.size):
        out[i] += x[i] + 100 * piece


@pytest.mark.parametrize("size", [0, 1, 7, 1000])
@pytest.mark.parametrize("pieces", [1, 2, 3, 64])
def test_pieces_cover_the_work_once(size, pieces):
    kernel = Kernel(number_of_piece, (NUMBERS, SUMS))
    x, alone, shared = np.arange(float(size)), np.zeros(size), np.zeros(size)
    kernel(ONE_THREAD, x, alone)
    np.testing.assert_array_equal(alone, x)  # one piece, number 0
    kernel.shared(pieces, x, shared)
    numbers = np.repeat(
        np.arange(pieces), np.diff([piece * size // pieces for piece in range(pieces + 1)])
    )
    np.testing.assert_array_equal(shared, x + 100 * numbers)


def test_threads_that_sleep_are_only_woken_for_work_that_is_long_enough():
    kernel, out = Kernel(number_of_piece, (NUMBERS, SUMS)), np.zeros(1000)

    def was_shared(seconds):
        out[:] = 0
        kernel(seconds, np.zeros(1000), out)
        return out.any()  # a second piece adds 100

    has_threads = minigrad.get_num_threads() > 1 and threading_layer() != "workqueue"
    was_shared(THREADS)  # starts the threads
    assert any(was_shared(MIN_SECONDS_FOR_THREADS) for _ in range(100)) == has_threads
    for _ in range(100):
        time.sleep(10 * SPIN_SECONDS)
        assert not was_shared(MIN_SECONDS_FOR_THREADS)
    time.sleep(10 * SPIN_SECONDS)
    assert was_shared(MIN_SECONDS_FOR_WAKING) == has_threads


@external()
def square(piece, pieces, x, factor, squares):
    xs, out = part(piece, pieces, x), part(piece, pieces, squares)
    for i in range(xs.size):
        out[i] = factor * xs[i] * xs[i]


def sum_of_squares(launcher, pieces, x, out):
    squares = np.empty(x.size)
    share(launcher, pieces, square, (x, 3, squares))
    for value in squares:
        out[0] += value
    out[1] = pieces


@pytest.mark.parametrize("seconds", [ONE_THREAD, THREADS])
def test_a_kernel_shares_a_part_of_its_work(seconds):
    kernel = Kernel(sum_of_squares, (NUMBERS, SUMS), shares=True)
    out = np.zeros(2)
    kernel(seconds, np.arange(11.0), out)
    threads = minigrad.get_num_threads() if seconds == THREADS else 1
    np.testing.assert_array_equal(out, [3 * 385, threads])


@external()
def allocate(piece, pieces, size, out):
    work = np.empty(size)
    work[0] = piece
    out[0] += work[0]


def allocate_at_once(piece, pieces, size, out):
    allocate(piece, pieces, size, out)


def allocate_in_parts(launcher, pieces, size, out):
    share(launcher, pieces, allocate, (size, out))
    out[0] = 7


@pytest.mark.parametrize("seconds", [ONE_THREAD, THREADS])
@pytest.mark.parametrize("function", [allocate_at_once, allocate_in_parts])
def test_where_memory_ends_an_error_is_raised(function, seconds):
    kernel = Kernel(function, (types.intp, SUMS), shares=function is allocate_in_parts)
    out = np.zeros(1)
    with pytest.raises(MemoryError):
        kernel(seconds, 1 << 58, out)
    assert out[0] == 0
    kernel(seconds, 1, out)  # and the next call works


def test_kernels_whose_arguments_have_the_same_types_share_what_unboxes_them():
    one, other = (Kernel(f, (NUMBERS, SUMS)) for f in (number_of_piece, sum_of_squares))
    one.compile()
    other.compile()
    assert one.alone.func is other.alone.func


def times_seven(piece, pieces, x, out):
    for i in span(piece, pieces, x.size):
        out[i] = 7 * x[i]


def test_a_thread_waits_until_the_linker_knows_a_kernel_that_another_thread_compiles(monkeypatch):
    def add_later(symbol, address):
        if "times_seven" in symbol:
            compiled.set()
            time.sleep(0.1)
        add_symbol(symbol, address)

    def multiply(x):
        out = np.zeros(3)
        kernel(ONE_THREAD, x, out)
        return out

    compiled, add_symbol = threading.Event(), llvm.add_symbol
    monkeypatch.setattr(llvm, "add_symbol", add_later)
    kernel, x = Kernel(times_seven, (NUMBERS, SUMS)), np.arange(3.0)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(multiply, x)
        assert compiled.wait(60)
        second = pool.submit(multiply, x)
        np.testing.assert_array_equal(first.result(), 7 * x)
        np.testing.assert_array_equal(second.result(), 7 * x)
