"""The kernels of optimisers: each against its reference, on rows of all kinds, within bounds."""

import copy

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import optim
from minigrad.kernels import optim as kernels
from minigrad.kernels.jit import JIT_ENABLED

SIZES = [(1,), (5,), (0,), (40, 25), (), (3, 1, 7)]
PADDING = 8


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


class Guarded:
    """Rows of arrays, each with canaries before and behind it."""

    def __init__(self, rng, dtype, others, sizes=SIZES):
        self.memory, self.rows = [], []
        for shape in sizes:
            arrays = []
            for _ in range(1 + others):
                size = int(np.prod(shape))
                memory = np.full(size + 2 * PADDING, 77, dtype)
                self.memory.append(memory)
                arrays.append(memory[PADDING : PADDING + size].reshape(shape))
                arrays[-1][...] = rng.standard_normal(shape)
            self.rows.append((arrays[0], tuple(arrays[1:])))

    def check(self):
        for memory in self.memory:
            assert (memory[:PADDING] == 77).all()
            assert (memory[-PADDING:] == 77).all()


STEPS = {
    "sgd": (1, lambda columns: kernels.sgd(columns, (*SGD, 0.0))),
    "momentum": (2, lambda columns: kernels.sgd_momentum(columns, (*SGD, 0.0), pairs(columns))),
    "nesterov": (2, lambda columns: kernels.sgd_momentum(columns, (*SGD, 1.0), pairs(columns))),
    "adam": (3, lambda columns: kernels.adam(columns, ADAM, pairs(columns))),
    "adamw": (3, lambda columns: kernels.adam(columns, (0.97, 0.0, *ADAM[2:]), (0.1, 1e-8))),
    "amsgrad": (4, lambda columns: kernels.amsgrad(columns, ADAM, pairs(columns))),
    "rmsprop": (2, lambda columns: kernels.rmsprop(columns, RMS)),
    "rmsprop, momentum": (3, lambda columns: kernels.rmsprop_momentum(columns, RMS)),
    "rmsprop, centered": (3, lambda columns: kernels.centered(columns, RMS)),
    "rmsprop, both": (4, lambda columns: kernels.centered_momentum(columns, RMS)),
    "adagrad": (2, lambda columns: kernels.adagrad(columns, (0.3, 1e-8), pairs(columns))),
    "ema": (1, lambda columns: kernels.ema(columns, (0.1,))),
    "scale": (1, lambda columns: kernels.scale(columns, (0.3,))),
}
SGD = (0.1, 0.7, 0.3)
ADAM = (1.0, 0.3, 0.9, 0.1, 0.99, 0.01)
RMS = (0.1, 0.9, 0.1, 0.1, 0.3, 0.7)
SQUARES = {
    **dict.fromkeys(("adam", "adamw", "amsgrad"), slice(2, None)),
    **dict.fromkeys(("rmsprop", "adagrad"), slice(1, 2)),
}


def run(name, rows):
    """Do a step of this name on rows `(first, others)`."""
    changing = zip(*(others for _, others in rows), strict=True)
    STEPS[name][1]([[first for first, _ in rows], *map(list, changing)])


def pairs(columns):
    """The two numbers that a row has for itself."""
    return [(1.0 - 0.1 * i, 0.01 * (1 + i % 3)) for i in range(len(columns[0]))]


@pytest.fixture(params=STEPS)
def step(request):
    return request.param


def made_ready(name, rows):
    """Second moments are not negative, and those of RMSprop larger than the square of a mean."""
    kind = name.partition(",")[0]
    for _, others in rows:
        for array in others[SQUARES.get(kind, slice(0))]:
            np.square(array, out=array)
            array += 20 * (kind == "rmsprop")
    return rows


def copied(rows):
    return [(g.copy(), tuple(x.copy() for x in others)) for g, others in rows]


def by_references(name, rows, monkeypatch):
    rows = copied(rows)
    with monkeypatch.context() as patch:
        patch.setattr(kernels.MultiTensor, "_run", lambda *_: False)
        run(name, rows)
    return rows


def assert_same(rows, others, rtol):
    for (_, found), (_, right) in zip(rows, others, strict=True):
        for one, other in zip(found, right, strict=True):
            assert_allclose(one, other, rtol=rtol, atol=rtol)


def test_kernels_are_their_references(rng, dtype, step, monkeypatch):
    guarded = Guarded(rng, dtype, STEPS[step][0])
    rows = made_ready(step, guarded.rows)
    expected = by_references(step, rows, monkeypatch)
    before = [g.copy() for g, _ in rows]
    run(step, rows)
    assert_same(rows, expected, 16 * np.finfo(dtype).eps)  # products are fused with additions
    guarded.check()
    for (g, _), old in zip(rows, before, strict=True):
        assert_array_equal(g, old)


@pytest.mark.sampled(3)
def test_threads_change_no_bit(same_on_threads, rng, dtype, step):
    sizes = [(3,), (300_001,), (17, 3), (0,), (99_999,)]
    guarded = Guarded(rng, dtype, STEPS[step][0], sizes)
    rows = made_ready(step, guarded.rows)
    start = copied(rows)

    def stepped():
        for (_, others), (_, first) in zip(rows, start, strict=True):
            for array, values in zip(others, first, strict=True):
                array[...] = values
        run(step, rows)
        return [array.copy() for _, others in rows for array in others]

    same_on_threads(stepped)
    guarded.check()


def test_rows_of_every_kind_in_one_call(rng, step, monkeypatch):
    count = STEPS[step][0]
    rows = [
        *Guarded(rng, np.float32, count).rows,
        *Guarded(rng, np.float64, count).rows,
        *Guarded(rng, np.float16, count, [(4,)]).rows,
    ]
    rows.append((rng.standard_normal((3, 4)), tuple(np.ones((4, 3)).T for _ in range(count))))
    frozen = rng.standard_normal(7)
    frozen.flags.writeable = False
    rows.append((frozen, tuple(np.ones(7) for _ in range(count))))
    rows.append((rng.standard_normal((4, 3)).T, tuple(np.ones((3, 4)) for _ in range(count))))
    rows = made_ready(step, rows)
    expected = by_references(step, rows, monkeypatch)
    run(step, rows)
    for row, right in zip(rows, expected, strict=True):
        assert_same([row], [right], 16 * np.finfo(row[0].dtype).eps)


@pytest.mark.sampled(3)
def test_gradients_may_be_of_another_dtype_or_not_contiguous(rng, dtype, step, monkeypatch):
    rows = made_ready(step, Guarded(rng, dtype, STEPS[step][0]).rows)
    for make in (np.copy, np.asfortranarray, np.float64, np.float32):
        rows = [(make(rng.standard_normal(g.shape).astype(dtype)), xs) for g, xs in rows]
        expected = by_references(step, rows, monkeypatch)
        run(step, rows)
        assert_same(rows, expected, 16 * np.finfo(np.float32 if make is np.float32 else dtype).eps)


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
def test_other_arrays_are_noticed(rng, make):
    parameters = [minigrad.nn.Parameter(np.ones(n)) for n in (3, 4, 5)]
    optimizer, ema = make(parameters, lr=0.1), optim.EMA(parameters, 0.5)

    def step(chosen):
        optimizer.zero_grad()
        for p in chosen:
            p.grad = minigrad.Tensor(np.ones(p.shape))
        optimizer.step()
        ema.update()
        return [p.data.copy() for p in parameters]

    step(parameters)
    old = parameters[1].data
    parameters[1].data = np.full(4, 7.0)  # some arrays stay, some are others
    ema.load_state_dict(
        {**ema.state_dict(), "averages": {str(k): np.ones(k + 3) for k in range(3)}}
    )
    values = step(parameters)
    assert_allclose(values[0], 0.8, rtol=1e-6)
    assert_allclose(values[1], 6.9, rtol=1e-6)
    assert_allclose(old, 0.9, rtol=1e-6)
    assert_allclose(ema.state_dict()["averages"]["1"], 3.95, rtol=1e-6)
    values = step([parameters[2]])  # and fewer
    assert_allclose(values[0], 0.8, rtol=1e-6)
    assert_allclose(values[2], 0.7, rtol=1e-6)


def test_a_copied_optimizer_steps_its_own_parameters(rng):
    p = minigrad.nn.Parameter(np.ones(4))
    p.grad = minigrad.Tensor(np.ones(4))
    optimizer = optim.Adam([p], lr=0.1)
    optimizer.step()
    duplicate = copy.deepcopy(optimizer)
    before = p.data.copy()
    (other,) = duplicate.param_groups[0]["params"]
    assert other is not p
    other.grad = minigrad.Tensor(np.ones(4))
    duplicate.step()
    assert_array_equal(p.data, before)
    assert_allclose(other.data, before - 0.1, rtol=1e-6)  # eps takes 1e-8 of the step


@pytest.mark.parametrize(
    ("step", "size"), [*[(step, 3) for step in STEPS], ("adam", 1), ("adam", 5)]
)
def test_gradients_of_other_sizes_are_refused(rng, dtype, step, size):
    guarded = Guarded(rng, dtype, STEPS[step][0], [(4,), (2, 2)])
    rows = made_ready(step, guarded.rows)
    before = copied(rows)
    rows[1] = (np.ones(size, dtype), rows[1][1])
    with pytest.raises(ValueError, match=rf"sizes \[4, {size}\] .* \[4, 4\]"):
        run(step, rows)
    assert_same(rows, before, 0)
    guarded.check()


FROZEN = np.ones(4)
FROZEN.flags.writeable = False


@pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled kernel to test")
@pytest.mark.parametrize(
    "columns",
    [
        [[np.ones(4)], (np.ones(4),)],
        [[np.ones(4)], [np.ones(4), np.ones(4)]],
        [[np.ones(4)], [np.ones(5)]],
        [[np.ones(4)], [np.ones(4).tolist()]],
        [[np.ones(4)], [np.ones(4, np.float32)]],
        [[np.ones(4)], [np.ones(4, ">f8")]],
        [[np.ones(4)], [np.ones(8)[::2]]],
        [[np.ones(4)], [FROZEN]],
        [[np.ones((2, 2)).T[:1]], [np.ones((2, 1))]],
        [[np.frombuffer(bytes(33), np.float64, offset=1)], [np.ones(4)]],
    ],
)
def test_compiled_code_is_given_no_other_arrays(columns):
    assert kernels.table_of(columns, np.dtype(np.float64)) is None


@pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled kernel to test")
def test_a_table_has_addresses_and_starts():
    g, x, scalar = FROZEN.reshape(2, 2), np.ones((1, 4)), np.ones(())
    table = kernels.table_of([[g, scalar], [x, np.ones(1)]], np.dtype(np.float64))
    assert table[0].tolist() == [g.ctypes.data, x.ctypes.data, 0]
    assert table[1, 0] == scalar.ctypes.data
    assert table[:, -1].tolist() == [0, 4, 5]


def test_square_sums_add_up_in_double_precision(rng, dtype):
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in [(3,), (), (0, 4), (70, 301)]]
    expected = sum(np.sum(x.astype(np.float64) ** 2) for x in arrays)
    assert kernels.square_sums(arrays) == pytest.approx(expected, rel=1e-13)
    huge = [np.full(100_000, 1e30, np.float32), np.full(5, 1e-30, np.float32)]
    assert kernels.square_sums(huge[:1]) == pytest.approx(1e65, rel=1e-6)  # of 1e30 in float32
    assert kernels.square_sums(huge[1:]) == pytest.approx(5e-60, rel=1e-6)
    assert kernels.square_sums([]) == 0


def test_square_sums_of_what_kernels_do_not_serve(rng):
    half = rng.standard_normal(9).astype(np.float16)
    turned = np.asfortranarray(rng.standard_normal((4, 5)))
    frozen = rng.standard_normal(3)
    frozen.flags.writeable = False
    expected = sum(float(np.sum(x.astype(np.float64) ** 2)) for x in (half, turned, frozen))
    assert kernels.square_sums([half, turned, frozen]) == pytest.approx(expected, rel=1e-13)


def test_square_sums_have_the_same_bits_on_any_number_of_threads(same_on_threads, rng, dtype):
    arrays = [rng.standard_normal(size).astype(dtype) for size in (7, 200_003, 100_001)]
    same_on_threads(lambda: [kernels.square_sums(arrays)])


def test_nan_and_infinity_are_passed_on(step):
    count = STEPS[step][0]
    g = np.array([np.nan, np.inf, 1.0])
    rows = [(g, tuple(np.ones(3) for _ in range(count)))]
    run(step, rows)
    x = rows[0][1][0]
    assert np.isnan(x[0])
    assert not np.isfinite(x[1])
    assert np.isfinite(x[2])


def test_an_option_of_few_digits_is_not_mistaken_for_the_next_one():
    """A number of Python that is compared with a float16 of numpy is rounded first."""
    for rate, expected in ((np.float16(0.1), 1 - np.float64(np.float16(0.1))), (0.1, 0.9)):
        x = np.ones(1)
        kernels.sgd([[np.ones(1)], [x]], (rate, 0.0, 0.0, 0.0))
        assert x[0] == expected
