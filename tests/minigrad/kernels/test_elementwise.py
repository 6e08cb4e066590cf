"""Functions of each element on loops of our own: digits, ends of the range, threads."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad.kernels import activation, elementwise, losses, reduction
from minigrad.kernels.jit import JIT_ENABLED
from minigrad.kernels.launch import KERNELS

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
    assert_allclose(activation.normal_cdf(x), exact(cdf, x), rtol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", FLOATS)
def test_gelu_has_its_digits_in_the_tail(dtype):
    x = X.astype(dtype)
    found = activation.gelu(x)
    assert found.dtype == dtype
    assert_allclose(found, exact(lambda v: v * cdf(v), x), rtol=2 * ROUNDING[dtype], atol=1e-37)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_gradient_of_gelu(dtype, rng):
    x, g = X.astype(dtype), rng.standard_normal(X.size).astype(dtype)
    found = activation.gelu_gradient(g, x)
    expected = g * exact(slope, x)
    assert_allclose(found, expected, rtol=0, atol=3 * ROUNDING[dtype] * np.abs(g).max())
    left = x < -2  # away from the zero of the slope, at -0.75, digits count relatively
    assert_allclose(found[left], expected[left], rtol=5 * ROUNDING[dtype])


@pytest.mark.parametrize("dtype", FLOATS)
def test_error_function(dtype):
    x = np.linspace(-6, 6, 1001).astype(dtype)
    assert_allclose(activation.erf(x), exact(math.erf, x), rtol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_that_are_no_ordinary_numbers(dtype):
    x = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 40, -40, 0.0, -0.0], dtype)
    with np.errstate(all="ignore"):  # -inf times 0
        assert_array_equal(activation.normal_cdf(x)[:5], np.array([np.nan, 1, 0, 1, 0], dtype))
        assert_array_equal(activation.normal_cdf(x)[7:], [0.5, 0.5])
        assert_array_equal(
            activation.gelu(x)[[0, 1, 3, 5]], np.array([np.nan, np.inf, 1e30, 40], dtype)
        )
        found = activation.gelu_gradient(np.ones_like(x), x)
    assert_allclose(found[[0, 3, 4, 5, 6, 7]], [np.nan, 1, 0, 1, 0, 0.5], atol=1e-30)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_gradient_of_the_approximate_gelu_of_large_numbers(dtype):
    largest = np.finfo(dtype).max
    x = np.array([np.nan, np.inf, 1e14, largest, 25, -25, -1e14, -largest, -np.inf], dtype)
    found = activation.gelu_tanh_gradient(np.full_like(x, 2), x)
    assert_array_equal(found, [np.nan, 2, 2, 2, 2, 0, 0, 0, 0])


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 63, 64, 65, 1000])
def test_every_size_and_layout(size, rng):
    x = rng.standard_normal((3, size)).astype(np.float32)
    for arranged in (x, x[:, ::-1], np.asfortranarray(x), x[::2]):
        expected = exact(lambda v: v * cdf(v), arranged.ravel()).reshape(arranged.shape)
        assert_allclose(activation.gelu(arranged), expected, rtol=1e-6, atol=1e-37)
        found = activation.gelu_gradient(arranged, arranged)
        assert found.shape == arranged.shape
    g = np.broadcast_to(np.float32(2), x.shape)
    one = activation.gelu_gradient(np.ones_like(x), x)
    assert_array_equal(activation.gelu_gradient(g, x), 2 * one)


OF_ONE = {  # name: options
    "erf": (),
    "normal_cdf": (),
    "relu": (),
    "leaky_relu": (0.3,),
    "elu": (0.7,),
    "sigmoid": (),
    "silu": (),
    "softplus": (1.5,),
    "gelu": (),
    "gelu_tanh": (),
}
OF_TWO = {
    "relu_gradient": (),
    "leaky_relu_gradient": (0.3,),
    "elu_gradient": (0.7,),
    "sigmoid_gradient": (),
    "tanh_gradient": (),
    "swiglu": (),
    "silu_gradient": (),
    "softplus_gradient": (1.5,),
    "gelu_gradient": (),
    "gelu_tanh_gradient": (),
}
ALL = [(name, 1, options) for name, options in OF_ONE.items()]
ALL += [(name, 2, options) for name, options in OF_TWO.items()]


def named(name):
    return getattr(activation, name)


@pytest.mark.skipif(not JIT_ENABLED, reason="the reference has no threads")
@pytest.mark.parametrize(
    ("name", "count", "options"),
    [kind for kind in ALL if kind[0] in ("erf", "relu", "elu", "gelu", "gelu_gradient")],
)
def test_bits_do_not_depend_on_threads_or_neighbours(name, count, options, same_on_threads, rng):
    arrays = rng.standard_normal((count, 1_100_007)).astype(np.float32)
    function = named(name)
    (alone,) = same_on_threads(lambda: [function(*arrays, *options)])
    for start in (1, 5, 1_099_990):
        assert_array_equal(function(*arrays[:, start:], *options), alone[start:])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("name", "count", "options"), ALL)
def test_references_are_the_same_functions(name, count, options, dtype, rng):
    arrays = (3 * rng.standard_normal((count, 40, 50))).astype(dtype)
    found = named(name)(*arrays, *options)
    exact = named(name).reference(*arrays.astype(np.float64), *options)
    assert found.dtype == dtype
    size = np.abs(arrays[0]) + np.abs(
        exact
    )  # tails are small beside x, and have tests of their own
    assert np.all(np.abs(found - exact) <= 4 * ROUNDING[dtype] * size)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("name", "count", "options"), ALL)
def test_references_agree_at_the_ends_of_the_range(name, count, options, dtype):
    ends = np.array([0.0, -0.0, 100, -100, 1e30, -1e30, np.inf, -np.inf, np.nan], dtype)
    with np.errstate(all="ignore"):
        arrays = (ends,) if count == 1 else (np.ones_like(ends), ends)
        found = named(name)(*arrays, *options)
        assert_allclose(found, named(name).reference(*arrays, *options), rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("function", [activation.relu, activation.gelu, activation.erf])
def test_the_result_is_an_array_of_its_own(function, rng):
    x = rng.standard_normal((4, 5)).astype(np.float32)
    x.flags.writeable = False
    for given in (x, x.T, x[:, ::2], x[0, 0, ...], x[:0]):
        found = function(given)
        assert found.shape == given.shape
        assert found.flags.owndata
        assert_allclose(found, function(given.astype(np.float64)), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(
    "function",
    [
        minigrad.relu,
        lambda x: minigrad.leaky_relu(x, 0.3),
        lambda x: minigrad.elu(x, 0.7),
        minigrad.sigmoid,
        minigrad.tanh,
        minigrad.silu,
        lambda x: minigrad.softplus(x, 1.5),
        minigrad.gelu,
        lambda x: minigrad.gelu(x, "tanh"),
        minigrad.softmax,
        minigrad.log_softmax,
    ],
)
def test_a_recorded_gradient_is_written_in_ops_and_is_the_same(function, rng):
    x = minigrad.tensor(rng.standard_normal((3, 4)), requires_grad=True)
    g, out = minigrad.tensor(rng.standard_normal((3, 4)), requires_grad=True), function(x)
    recorded = minigrad.grad(out, x, g, create_graph=True)
    assert recorded.requires_grad
    assert_allclose(recorded.data, minigrad.grad(out, x, g).data, rtol=1e-12, atol=1e-15)


def test_gradients_of_another_dtype_or_shape_are_left_to_numpy(rng):
    x = rng.standard_normal((3, 4)).astype(np.float32)
    g = rng.standard_normal(4)
    expected = np.where(x > 0, g, 0)
    assert_array_equal(activation.relu_gradient(g, x), expected)


@pytest.mark.sampled(5)
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


# ------------------------------------------------------------------------------------------------
# Memory
# ------------------------------------------------------------------------------------------------

MODULES = (activation, elementwise, losses, reduction)  # whose kernels are listed once imported
FUSED = [kernel for kernel in KERNELS if kernel.function.__module__ == "minigrad.kernels.fused"]
assert FUSED or not JIT_ENABLED


@pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled kernel to test")
@pytest.mark.parametrize("kernel", FUSED, ids=lambda kernel: str(kernel).split(".")[-1][:-1])
def test_no_bit_depends_on_how_far_the_result_lies_from_the_operands(kernel, rng):
    # LLVM chooses between two forms of a loop by this distance.
    *given, result = kernel.signature
    number = np.dtype(str(result.dtype))
    arrays = [each for each in given if hasattr(each, "ndim")]
    options = [number.type(0.5) for each in given if not hasattr(each, "ndim")]
    for columns in (3, 4, 4, 8, 8, 33, 100):
        shape = (2, columns)[-result.ndim :]
        size = int(np.prod(shape)) * number.itemsize
        operands = [rng.random(shape).astype(number) for _ in arrays]
        outputs = []
        for gap in (0, 4 * number.itemsize, 1 << 16):
            memory = np.zeros(2 * size + gap, np.uint8)
            x = memory[:size].view(number).reshape(shape)
            x[...] = operands[-1]
            outputs.append(memory[size + gap :].view(number).reshape(shape))
            kernel.alone(*operands[:-1], x, *options, outputs[-1])
        for output in outputs[1:]:
            assert_array_equal(output, outputs[0])
