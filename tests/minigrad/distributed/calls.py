"""What each rank does in `test_world`: all calls of a world, compared with those of one process."""

import copy
import errno
import functools
import os
import subprocess
import sys
import time
from itertools import pairwise as pairwise_of
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import minigrad as mg
from minigrad.distributed.tree import block, pairwise, parts
from minigrad.distributed.worlds import add_lists
from minigrad.kernels import start

world = mg.distributed.world()
rank, size = world.rank, world.size
ranks = range(size)


def equal(a, b):
    """Whether two arrays have the same bits."""
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def gather_and_broadcast():
    for value in (None, True, -3, 0.1, float("nan"), "Straße", [1, [2.5, None]], {"a": {"b": []}}):
        found = [*world.gather([value, rank]), *world.gather(value), world.broadcast(value)]
        assert repr(found) == repr([*([value, r] for r in ranks), *[value] * size, value])
    assert world.broadcast(f"of {rank}") == "of 0"
    assert world.gather([np.float32(0.5), np.int64(rank)]) == [[0.5, r] for r in ranks]
    assert world.gather((1, (2, 3))) == [[1, [2, 3]]] * size
    for dtype in "?bHiqefdFD":
        for shape in ((), (0, 3), (5,), (2, 3, 4)):
            values = [np.array(np.random.default_rng(r).random(shape) * 9, dtype) for r in ranks]
            assert all(map(equal, world.gather(values[rank]), values))
            assert equal(world.broadcast(values[rank]), values[0])
    large_steps = np.arange(60.0).reshape(3, 4, 5).transpose(1, 0, 2)
    strided = np.arange(24.0).reshape(4, 6)[::2, ::-1].T
    assert equal(world.broadcast(strided), strided)
    for array in (strided, large_steps, np.asfortranarray(strided[::2])):
        order = "F" if array.flags.f_contiguous else "C"  # numpy adds in the order of memory
        for received in (world.broadcast(array), *world.gather(array)):
            assert received.strides == array.copy(order).strides
    different = [np.full(r + 1, r) for r in ranks]  # of other shapes on each rank
    assert all(map(equal, world.gather(different[rank]), different))
    large = [np.random.default_rng(r).random(1_000_000 + r) for r in ranks]
    assert all(map(equal, world.gather(large[rank]), large))
    assert equal(world.broadcast(large[rank]), large[0])


def refusals():
    """What no rank can send is refused before any other rank waits for it."""
    for value, sentence in (
        ({rank}, "a set, cannot go from rank to rank; send a plain array"),
        ([np.zeros(2)], "a ndarray, cannot go from rank to rank; send a plain array .* alone"),
        ({"a": np.zeros(2)}, "a ndarray, cannot go from rank to rank; send a plain array"),
        ({0: 5}, "a dict, cannot go from rank to rank; .* dicts with texts as keys"),
        ([{(1, 2): 5}], "a dict, cannot go from rank to rank"),
        (np.array(["a", None]), "a ndarray of object cannot go from rank to rank"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "a MaskedArray of float64 cannot go"),
        (np.zeros(2, ml_dtypes.bfloat16), "an array of bfloat16 cannot go from rank to rank"),
        (np.longdouble(0.1), "a longdouble, cannot go from rank to rank"),
        ([b"text"], "a bytes, cannot go from rank to rank"),
    ):
        for call in (world.gather, lambda x: world.on_first(lambda: x)):
            with pytest.raises(TypeError, match=sentence):
                call(value)


class OwnError(KeyError):
    """An error of a script, which is known on rank 0 only."""


def errors_of_the_first():
    """An error on rank 0 is one on all, of the nearest class of Python's that says the same."""
    nowhere = os.path.join(os.devnull, "nowhere")
    for function, kinds in (
        (lambda: {}["rate"], [KeyError]),
        (lambda: Path(nowhere).read_text(), [NotADirectoryError]),
        (lambda: os.rename(nowhere, "there"), [NotADirectoryError]),
        (lambda: b"\xff".decode(), [UnicodeDecodeError, UnicodeError]),
        (lambda: raises(OwnError("rate")), [OwnError, KeyError]),
        (lambda: raises(ExceptionGroup("two", [ValueError()])), [ExceptionGroup, Exception]),
        (lambda: raises(AssertionError), [AssertionError]),
    ):
        with pytest.raises(Exception) as caught:  # noqa: PT011  # each is compared below
            world.on_first(function)
        kind = kinds[0] if rank == 0 else kinds[-1]
        assert type(caught.value) is kind
        assert len(set(world.gather(str(caught.value)))) == 1
        if rank and isinstance(caught.value, OSError):
            assert (caught.value.errno, caught.value.filename) == (errno.ENOTDIR, nowhere)


def raises(error):
    raise error


def barrier_and_any():
    assert not world.any(False)
    assert world.any(True) is world.any(0.5) is True
    assert all(world.any(rank == r) for r in ranks)
    for late in ranks:
        world.barrier()
        if rank == late:
            time.sleep(0.05)
        arrived = time.monotonic()  # of one clock, as all ranks are on one machine
        world.barrier()
        left = time.monotonic()
        assert min(world.gather(left)) >= max(world.gather(arrived))


def one_or_two(leaf):
    """Return what gives one list, or the sum of two."""
    return lambda *items: functools.reduce(add_lists, map(leaf, items))


def sums(count, leaf):
    """Compare the sum over all ranks with that of one process."""
    leaf = one_or_two(leaf)
    total = pairwise(0, count, leaf, add_lists)
    own = parts(0, count, block(count, rank, size))
    shared = world.sum_parts(count, {part: pairwise(*part, leaf, add_lists) for part in own}, total)
    assert all(map(equal, shared, total))


def sum_of(count):
    def leaf(item):
        rng = np.random.default_rng([count, item])
        shapes = ((), (7,), (3, 5), (0, 2), (2, 1, 3))
        return [
            np.array(rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4), dtype)
            for shape in shapes
            for dtype in ("f4", "f8", "f2", "i8")
        ]

    sums(count, leaf)


def sum_with_none(count):
    def leaf(item):
        """Return arrays of which the first is always there, and the last never."""
        there = [(item + first) % every == 0 for first, every in enumerate((1, 2, 3, 5, 40))]
        return [np.float32([item, 0.1]) if is_there else None for is_there in [*there, False]]

    leaf = one_or_two(leaf)
    total = pairwise(0, count, leaf, add_lists)
    own = parts(0, count, block(count, rank, size))
    like = [np.empty(2, np.float32)] * 6
    shared = world.sum_parts(count, {part: pairwise(*part, leaf, add_lists) for part in own}, like)
    for found, expected in zip(shared, total, strict=True):
        assert found is expected is None or equal(found, expected)


def other_calls():
    """Ranks that make other calls get an error, of which they may go on together."""
    calls = {
        "'gather'": lambda: world.gather(1),
        "'barrier'": world.barrier,
        "'mine'": lambda: world.any(True, "mine"),
        "'a sum of 3 lists of 24 bytes'": lambda: sums(3, lambda item: [np.zeros(3)]),
        "'a sum of 2 lists of 24 bytes'": lambda: sums(2, lambda item: [np.zeros(3)]),
        "'a sum of 2 lists of 32 bytes'": lambda: sums(2, lambda item: [np.zeros(4)]),
    }
    for (one, call), (other, other_call) in pairwise_of([*calls.items()]):
        with pytest.raises(RuntimeError, match="do not make the same calls") as caught:
            (call if rank == size - 1 else other_call)()
        for text in (f"rank {size - 1} at {one}", f"rank 0 at {other}"):
            assert text in str(caught.value)
    world.barrier()


def children():
    """A child process is not a rank: a child that is forked, one that is started, one of those."""
    code = "import minigrad; print(minigrad.distributed.world().size)"
    started = [sys.executable, "-c", code]
    nested = [sys.executable, "-c", f"import subprocess; subprocess.run({started})"]
    with (
        subprocess.Popen(started, stdout=subprocess.PIPE, text=True) as first,
        subprocess.Popen(nested, stdout=subprocess.PIPE, text=True) as second,
    ):
        for status in (5, 1):
            if (pid := os.fork()) == 0:
                if status == 1:
                    raise ValueError("an error of this child alone")
                sys.exit(mg.distributed.world().size + 4)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status
        assert first.stdout.read() == second.stdout.read() == "1\n"


if __name__ == "__main__":
    print(rank, size, flush=True)  # before forked children write it too
    assert copy.deepcopy(world) is world
    gather_and_broadcast()
    refusals()
    errors_of_the_first()
    barrier_and_any()
    assert (start.before_compiling is not None) == (rank == 0)
    for count in range(1, 18):
        sum_of(count)
        sum_with_none(count)
    sums(5, lambda item: [np.random.default_rng(item).random((1000, 1000), np.float32)] * 2)
    # On three ranks, one pair needs a piece more than another pair for its bytes.
    sums(5, lambda item: [np.random.default_rng(item).random(98_257, np.float32)])
    if size > 1:
        other_calls()
        children()
    print("done")
