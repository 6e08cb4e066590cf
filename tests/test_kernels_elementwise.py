"""Functions of each element on loops of our own: digits, ends of the range, threads."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad.kernels import elementwise
from minigrad.kernels.jit import JIT_ENABLED

FLOATS = [np.float32, np.float64]
ROUNDING = {np.float32: 5e-7, np.float64: 1e-14}  # some units of the last digit


def exact(function, x):
    return np.array([function(float(v)) for v in x])


def cdf(x):
    return 0.5 * math.erfc(-x * math.sqrt(0.5))


def slope(x):
    return cdf(x) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


# Where e^(-x^2 / 2) is a normal number of float32; below, results fade to 0.
X = np.concatenate([np.linspace(-13, 13, 20_001), np.geomspace(1e-30, 1e-3, 50)])


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_normal_distribution_has_its_digits_in_both_tails(dtype):
    x = X.astype(dtype)
    assert_allclose(elementwise.normal_cdf(x), exact(cdf, x), rtol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", FLOATS)
def test_gelu_has_its_digits_in_the_tail(dtype):
    x = X.astype(dtype)
    found = elementwise.gelu(x)
    assert found.dtype == dtype
    assert_allclose(found, exact(lambda v: v * cdf(v), x), rtol=2 * ROUNDING[dtype], atol=1e-37)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_gradient_of_gelu(dtype, rng):
    x, g = X.astype(dtype), rng.standard_normal(X.size).astype(dtype)
    found = elementwise.gelu_gradient(g, x)
    expected = g * exact(slope, x)
    assert_allclose(found, expected, rtol=0, atol=3 * ROUNDING[dtype] * np.abs(g).max())
    left = x < -2  # away from the zero of the slope, at -0.75, digits count relatively
    assert_allclose(found[left], expected[left], rtol=5 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", FLOATS)
def test_error_function(dtype):
    x = np.linspace(-6, 6, 1001).astype(dtype)
    assert_allclose(elementwise.erf(x), exact(math.erf, x), rtol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_that_are_no_ordinary_numbers(dtype):
    x = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 40, -40, 0.0, -0.0], dtype)
    with np.errstate(all="ignore"):  # -inf times 0
        assert_array_equal(elementwise.normal_cdf(x)[:5], np.array([np.nan, 1, 0, 1, 0], dtype))
        assert_array_equal(elementwise.normal_cdf(x)[7:], [0.5, 0.5])
        assert_array_equal(
            elementwise.gelu(x)[[0, 1, 3, 5]], np.array([np.nan, np.inf, 1e30, 40], dtype)
        )
        found = elementwise.gelu_gradient(np.ones_like(x), x)
    assert_allclose(found[[0, 3, 4, 5, 6, 7]], [np.nan, 1, 0, 1, 0, 0.5], atol=1e-30)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 63, 64, 65, 1000])
def test_every_size_and_layout(size, rng):
    x = rng.standard_normal((3, size)).astype(np.float32)
    for arranged in (x, x[:, ::-1], np.asfortranarray(x), x[::2]):
        expected = exact(lambda v: v * cdf(v), arranged.ravel()).reshape(arranged.shape)
        assert_allclose(elementwise.gelu(arranged), expected, rtol=1e-6, atol=1e-37)
        found = elementwise.gelu_gradient(arranged, arranged)
        assert found.shape == arranged.shape
    g = np.broadcast_to(np.float32(2), x.shape)
    one = elementwise.gelu_gradient(np.ones_like(x), x)
    assert_array_equal(elementwise.gelu_gradient(g, x), 2 * one)


@pytest.mark.skipif(not JIT_ENABLED, reason="the twin has no threads")
@pytest.mark.parametrize("name", ["normal_cdf", "gelu", "erf"])
def test_bits_do_not_depend_on_threads_or_neighbours(name, rng):
    x = rng.standard_normal(300_007).astype(np.float32)
    function, before = getattr(elementwise, name), minigrad.get_num_threads()
    try:
        minigrad.set_num_threads(1)
        alone = function(x)
        minigrad.set_num_threads(before)
        assert_array_equal(function(x), alone)
    finally:
        minigrad.set_num_threads(before)
    for start in (1, 5, 299_990):
        assert_array_equal(function(x[start:]), alone[start:])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["erf", "normal_cdf", "gelu"])
def test_twins_are_the_same_functions(name, dtype, rng):
    x = rng.standard_normal(200).astype(dtype)
    found = getattr(elementwise, name)(x)
    assert_allclose(found, getattr(elementwise, f"{name}_twin")(x), rtol=2e-6)  # float32, 6e-8
    g = rng.standard_normal(200).astype(dtype)
    assert_allclose(
        elementwise.gelu_gradient(g, x), elementwise.gelu_gradient_twin(g, x), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [*FLOATS, np.int64])
@pytest.mark.parametrize("kinds", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("shape", [(5000,), (90, 70), (0, 3), (3, 1)])
def test_where_is_that_of_numpy(shape, kinds, dtype, rng):
    condition = rng.random(shape) < 0.5
    x, y = ((10 * rng.standard_normal(shape)).astype(dtype) for _ in range(2))
    x, y = ((x, y)[i] if kinds[i] else (0.0, -2.5)[i] for i in range(2))
    found = elementwise.where(condition, x, y)
    expected = np.where(condition, x, y)
    assert found.dtype == expected.dtype
    assert_array_equal(found, expected)


def test_where_takes_any_layout_dtype_and_shape_that_numpy_takes(rng):
    condition = rng.random((80, 60)) < 0.5
    x, y = rng.standard_normal((2, 60, 80)).astype(np.float32)
    nan = np.where(condition, np.nan, 1).astype(np.float32)
    for operands in (
        (condition, x.T, y.T),
        (condition[::-1], x.T[:, ::-1], 0.0),
        (condition, x.T, y[0, 0]),
        (condition, np.broadcast_to(x[:, :1].T, (80, 60)), y.T),
        (condition, x[:, 0], y.T),
        (condition.astype(np.int8), x.T, y.T),
        (condition, x.T.astype(np.float64), y.T),
        (condition, nan, 0.0),
        (condition, 1, y.T),
        (condition, True, y.T),
    ):
        found, expected = elementwise.where(*operands), np.where(*operands)
        assert found.dtype == expected.dtype
        assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("function", "reference"),
    [
        (lambda x: x**3, lambda x: np.power(x, 3)),
        (lambda x: x**4.0, lambda x: np.power(x, 4)),
        (minigrad.sigmoid, lambda x: np.exp(-np.logaddexp(0, -x))),
        (minigrad.softplus, lambda x: np.logaddexp(x, 0)),
        (minigrad.elu, lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0)))),
        (minigrad.leaky_relu, lambda x: np.where(x > 0, x, 0.01 * x)),
    ],
    ids=["cube", "fourth power", "sigmoid", "softplus", "elu", "leaky_relu"],
)
def test_functions_written_for_speed_are_those_of_the_definition(function, reference):
    x = np.concatenate([np.linspace(-30, 30, 6001), [-700.0, 700.0, -0.0]])
    assert_allclose(function(x), reference(x), rtol=1e-12, atol=1e-300)
    ends = np.array([np.nan, np.inf, -np.inf])
    assert_array_equal(np.isnan(function(ends)), [True, False, False])
    narrow = function(x[:6001].astype(np.float32))
    assert narrow.dtype == np.float32
    assert_allclose(narrow, reference(x[:6001]), rtol=2e-5, atol=1e-6)  # float32 rounds to 6e-8
