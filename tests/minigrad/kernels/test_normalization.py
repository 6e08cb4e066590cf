"""Norms of rows and dropout on loops of our own: digits, ends of the range, layouts, threads."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad.kernels import elementwise, normalization
from minigrad.kernels.jit import JIT_ENABLED
from tests.minigrad.kernels.oracle import in_numpy

FLOATS = [np.float32, np.float64]
ROUNDING = {np.float32: 1e-6, np.float64: 1e-14}  # some units of the last digit
ALL = (True, True, True)
# Around the eight numbers of the pivot, whole vectors, and the stretches that are summed apart.
SIZES = [1, 2, 7, 8, 9, 31, 64, 100, 1023, 1024, 1025, 2500]


def operands(rng, rows, size, dtype):
    """x, g, weight and bias."""
    shapes = (rows, size), (rows, size), (size,), (size,)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def wide(*arrays):
    return [None if x is None else x.astype(np.float64) for x in arrays]


def check(x, g, weight, bias, centred, eps=1e-5):
    """Both ways against the references in float64."""
    shape = x.shape[1:]
    tolerance = ROUNDING[x.dtype.type]
    found = normalization.norm(x, shape, weight, bias, eps, centred)
    x_, g_, weight_, bias_ = wide(x, g, weight, bias)
    expected = in_numpy(normalization.norm)(x_, shape, weight_, bias_, eps, centred)
    assert found.dtype == x.dtype
    assert_allclose(
        found, expected, rtol=0, atol=4 * tolerance * max(1, abs(expected).max(initial=0))
    )
    found = normalization.norm_gradients(g, x, shape, weight, eps, centred, ALL)
    expected = in_numpy(normalization.norm_gradients)(g_, x_, shape, weight_, eps, centred, ALL)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == x.dtype
        scale = max(1, abs(other).max(initial=0)) * np.sqrt(len(x))
        assert_allclose(one, other, rtol=0, atol=4 * tolerance * scale)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_of_a_row(size, centred, dtype, rng):
    for rows in (1, 33):
        x, g, weight, bias = operands(rng, rows, size, dtype)
        eps = 0.1 if size < 4 else 1e-5  # a row of two is often nearly constant
        check(x, g, weight, bias, centred, eps)
        check(x, g, None, None, centred, eps)
        check(x, g, weight, None, centred, eps)


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 64, 200])
def test_shares_of_blocks_of_rows_add_up(rows, rng):
    check(*operands(rng, rows, 40, np.float32), True)


@pytest.mark.parametrize("offset", [0, 3, 1e3, 1e5])
def test_digits_do_not_go_with_the_mean(offset, rng):
    # The definition in float32 alone: subtracting the mean costs what x itself was rounded by.
    x, _, weight, bias = operands(rng, 50, 700, np.float32)
    x += np.float32(offset)
    found = normalization.norm(x, (700,), weight, bias, 1e-5, True)
    expected = in_numpy(normalization.norm)(*wide(x), (700,), *wide(weight, bias), 1e-5, True)
    assert_allclose(found, expected, rtol=0, atol=4e-6)


@pytest.mark.parametrize("odd", [1e3, -1e6])
def test_a_row_that_begins_far_from_its_mean_keeps_its_digits(odd, rng):
    x, g, weight, bias = operands(rng, 5, 500, np.float32)
    x[:, :8] += np.float32(odd)
    x[:, 100:108] -= np.float32(odd)
    check(x, g, weight, bias, True)
    x[:, 8:] += np.float32(odd / 10)
    check(x, g, weight, bias, True)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_constant_row_is_nothing_but_bias(dtype, rng):
    for size in (3, 8, 20, 1500):
        for value in (0.0, 0.1, 3.3e4):
            x = np.full((2, size), value, dtype)
            _, _, weight, bias = operands(rng, 2, size, dtype)
            found = normalization.norm(x, (size,), weight, bias, 1e-5, True)
            exact = 0 if JIT_ENABLED else 1e-8  # the reference's mean is off by a rounding
            assert_allclose(found, np.broadcast_to(bias, x.shape), rtol=0, atol=exact)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("place", [0, 40, 1499])
def test_a_row_with_a_number_that_is_none_is_as_in_numpy(place, centred, bad, rng):
    x, g, weight, bias = operands(rng, 3, 1500, np.float32)
    x[1, place] = bad
    with np.errstate(invalid="ignore"):
        found = normalization.norm(x, (1500,), weight, bias, 1e-5, centred)
        expected = in_numpy(normalization.norm)(x, (1500,), weight, bias, 1e-5, centred)
        dx = normalization.norm_gradients(g, x, (1500,), weight, 1e-5, centred, ALL)[0]
    assert_array_equal(np.isnan(found), np.isnan(expected))
    assert np.isnan(found[1, place])
    assert np.isfinite(found[[0, 2]]).all()
    assert np.isnan(dx[1, place])
    assert np.isfinite(dx[[0, 2]]).all()


def test_layouts_and_leading_axes(rng):
    x, g, weight, _ = operands(rng, 24, 60, np.float64)
    right = normalization.norm(x, (60,), weight, None, 1e-5, True)
    slopes = normalization.norm_gradients(g, x, (60,), weight, 1e-5, True, ALL)
    for shape in ((60,), (5, 12), (4, 5, 3)):
        lead = (2, 3, 4, *shape)
        found = normalization.norm(
            np.asfortranarray(x.reshape(lead)), shape, weight.reshape(shape)[...], None, 1e-5, True
        )
        assert_allclose(found.reshape(24, 60), right, rtol=1e-12)
        again = normalization.norm_gradients(
            g.reshape(lead)[::-1][::-1], x.reshape(lead), shape, weight.reshape(shape), 1e-5, True,
            ALL,
        )  # fmt: skip
        for one, other in zip(again, slopes, strict=True):
            assert_allclose(one.reshape(other.shape), other, rtol=1e-11, atol=1e-13)


def test_only_what_is_needed_is_computed(rng):
    x, g, weight, _ = operands(rng, 40, 30, np.float32)
    every = normalization.norm_gradients(g, x, (30,), weight, 1e-5, True, ALL)
    for needs_input_grad in ((True, False, False), (False, True, False), (False, False, True)):
        found = normalization.norm_gradients(g, x, (30,), weight, 1e-5, True, needs_input_grad)
        for need, one, other in zip(needs_input_grad, found, every, strict=True):
            assert (one is None) == (not need)
            if need:
                assert_allclose(one, other, rtol=1e-6, atol=1e-6)  # float32 rounds to 6e-8


def test_arrays_of_two_dtypes_are_the_references(rng):
    x, _, weight, bias = operands(rng, 4, 30, np.float32)
    found = normalization.norm(x, (30,), weight.astype(np.float64), bias, 1e-5, True)
    assert found.dtype == np.float64


@pytest.mark.skipif(not JIT_ENABLED, reason="the references have no threads")
@pytest.mark.parametrize(("rows", "size"), [(3001, 300), (3, 200_003)])
def test_bits_do_not_depend_on_threads(rows, size, same_on_threads, rng):
    x, g, weight, bias = operands(rng, rows, size, np.float32)
    same_on_threads(lambda: [normalization.norm(x, (size,), weight, bias, 1e-5, True)])
    same_on_threads(lambda: normalization.norm_gradients(g, x, (size,), weight, 1e-5, True, ALL))


# ----------------------------------------------------------------------------------------------
# Dropout
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, np.float16])
@pytest.mark.parametrize("threshold", [0, 1, 30_000, 2**16])
def test_dropping_is_its_reference(threshold, dtype, rng):
    for shape in ((0, 3), (1,), (17, 5), (3, 1000)):
        x = rng.standard_normal(shape).astype(dtype)
        words = minigrad.random.words(rng, x.size)
        for arranged in (x, np.asfortranarray(x), x[::-1]):
            found = elementwise.drop(arranged, words, threshold, 1.25)
            assert found.dtype == dtype
            assert_array_equal(found, in_numpy(elementwise.drop)(arranged, words, threshold, 1.25))


@pytest.mark.skipif(not JIT_ENABLED, reason="the reference has no threads")
def test_what_is_dropped_does_not_depend_on_threads(same_on_threads, rng):
    x = rng.standard_normal(1_000_003).astype(np.float32)
    words = minigrad.random.words(rng, x.size)
    same_on_threads(lambda: [elementwise.drop(x, words, 20_000, 1.5)])


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "Philox", "SFC64", "MT19937"])
def test_words_are_even_and_repeatable_from_every_generator(kind):
    def make():
        return np.random.Generator(getattr(np.random, kind)(3))

    for count in (0, 1, 3, 4, 5):
        assert minigrad.random.words(make(), count).shape == (count,)
    words = minigrad.random.words(make(), 2**18)
    assert_array_equal(words, minigrad.random.words(make(), 2**18))
    bits = (words[:, None] >> np.arange(16)) & 1
    # 4.5 standard deviations of a mean of 2^18 bits, which one in 9000 sets of 16 exceeds
    assert abs(bits.mean(0) - 0.5).max() < 4.5 * 0.5 / 2**9
    lags = [np.corrcoef(words[:-lag], words[lag:])[0, 1] for lag in (1, 2, 3, 4)]
    assert np.abs(lags).max() < 4.5 / 2**9


@pytest.mark.sampled(4)
@pytest.mark.parametrize("p", [3e-6, 0.1, 0.5, 1 - 3e-6])
def test_the_probability_holds_to_more_digits_than_a_word_has(p):
    rng = np.random.default_rng(5)
    ones = minigrad.ones(64)
    dropped = sum(int((minigrad.dropout(ones, p, rng=rng).data == 0).sum()) for _ in range(20_000))
    count = 64 * 20_000
    # Words of one call share their threshold, by which 64 of them vary together a little.
    spread = np.sqrt(count * p * (1 - p)) + 64 * np.sqrt(20_000) / 2**17
    assert abs(dropped - count * p) < 4 * spread
