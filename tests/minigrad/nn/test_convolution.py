"""Convolutional layers and functions: errors, and what kernels must not depend on."""

from functools import partial

import numpy as np
import pytest

import minigrad as mg
from minigrad import kernels, nn
from minigrad.kernels.convolution import plan
from minigrad.kernels.geometry import Geometry
from minigrad.kernels.jit import JIT_ENABLED
from minigrad.kernels.threads import get_max_threads

WEIGHT = np.ones((4, 2, 3, 3))
compiled = pytest.mark.skipif(not JIT_ENABLED, reason="nothing is compiled")

REFUSED = {
    "a stride of 0": ({"stride": 0}, "stride must be a positive integer, not 0"),
    "a huge stride": ({"stride": 2**31}, r"stride must be below 2\*\*31, not 2147483648"),
    "a huge padding": ({"padding": 10**30}, r"padding must be below 2\*\*31, not 1000"),
    "three strides": ({"stride": (1, 1, 1)}, "stride is one number, or 2 of them"),
    "a negative padding": ({"padding": -1}, "padding must be an integer of at least 0, not -1"),
    "half a dilation": ({"dilation": 0.5}, "dilation must be a positive integer, not 0.5"),
    "no groups": ({"groups": 0}, "groups must be a positive integer, not 0"),
    "groups that do not divide": ({"groups": 3}, "do not fit groups=3: groups must divide"),
    "an unknown padding": ({"padding": "full"}, "'same' or 'valid', not 'full'"),
    "same with a stride": (
        {"padding": "same", "stride": 2},
        r"offered for a stride of 1, not of \(2, 2\)",
    ),
    "a large kernel": ({"dilation": 4}, "covers 9 elements along axis -2 is larger than"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_are_refused(name):
    options, message = REFUSED[name]
    x = mg.Tensor(np.ones((1, 4, 5, 6)), requires_grad=True)
    with pytest.raises(ValueError, match=f"^conv2d: .*{message}"):
        mg.conv2d(x, WEIGHT, **({"groups": 2} | options))


def test_operands_that_are_refused():
    for f, x, weight, bias, message in (
        (mg.conv2d, np.ones((4, 5)), WEIGHT, None, r"images \(N, C, H, W\)"),
        (mg.conv2d, np.ones((1, 2, 5, 5)), WEIGHT[0], None, "weight"),
        (
            mg.conv2d,
            np.ones((1, 3, 5, 5)),
            WEIGHT,
            None,
            "x has 3 channels, and the filters take 2",
        ),
        (mg.conv2d, np.ones((1, 2, 5, 5)), WEIGHT, np.ones(3), r"bias must have shape \(4,\)"),
        (mg.conv2d, np.ones((1, 2, 5, 5)), WEIGHT[:0], None, "weight"),
        (mg.conv1d, np.ones((1, 2, 5, 5)), WEIGHT[0], None, r"sequences \(N, C, L\)"),
    ):
        with pytest.raises(ValueError, match=f"^{f.__name__}: .*{message}"):
            f(x, weight, bias)
    y, x = np.ones((1, 4, 2, 2)), np.ones((1, 2, 5, 5))
    for f, operands, size, message in (
        (mg.convolution_input, (y, WEIGHT), (5, 5), r"which is \(1, 4, 3, 3\); it has shape"),
        (mg.convolution_weight, (y, x), (3, 3), r"which is \(1, 4, 3, 3\); it has shape"),
        (
            mg.convolution_input,
            (y, WEIGHT[0, 0]),
            5,
            r"weight must have 4 axes.* has shape \(3, 3\)",
        ),
        (mg.convolution_weight, (y[0, 0, 0], x), 5, r"y must have 4 axes.* has shape \(2,\)"),
        (mg.convolution_weight, (y, x), (5, 5, 5), "size is one number, or 2 of them"),
    ):
        with pytest.raises(ValueError, match=f"^{f.__name__}: .*{message}"):
            f(*operands, size)
    with pytest.raises(ValueError, match=r"conv1d: .* covers 5 .* axis -1 .* 3 there; pad"):
        mg.conv1d(np.ones((1, 1, 3)), np.ones((1, 1, 5)))
    with pytest.raises(ValueError, match=r"conv2d: .* covers 3 .* axis -2 .* 2 there; .* dilation"):
        mg.conv2d(np.ones((1, 2, 5)), np.ones((1, 1, 2, 2)), dilation=2)
    with pytest.raises(ValueError, match=r"conv1d: .* a stride of 1, not of \(2,\)$"):
        mg.conv1d(np.ones((1, 1, 9)), np.ones((1, 1, 5)), stride=2, padding="same")
    with pytest.raises(
        ValueError, match=r"conv2d: .*the shapes are \(1, 2, 5, 5\) and \(2, 3, 3\)"
    ):
        mg.conv2d(x, WEIGHT[0], padding="same")


def test_layers_refuse_what_cannot_be():
    for options, message in (
        ({"out_channels": 0}, "Conv2d: out_channels must be a positive integer"),
        ({"groups": 2}, "Conv2d: groups=2 must divide both 3 and 4 channels"),
        ({"kernel_size": (3, 0)}, "Conv2d: kernel_size must be a positive integer"),
        ({"stride": 0}, "Conv2d: stride must be a positive integer"),
        ({"padding": "sam"}, "'same' or 'valid', not 'sam'"),
        ({"padding": "same", "stride": 2}, r"offered for a stride of 1, not of \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            nn.Conv2d(**({"in_channels": 3, "out_channels": 4, "kernel_size": 3} | options))
    with pytest.raises(ValueError, match="Conv1d: kernel_size is one number"):
        nn.Conv1d(3, 4, (3, 3))


def test_images_without_rows_have_gradients():
    """With padding, even these have a result."""
    x, weight = (mg.Tensor(np.ones(s), requires_grad=True) for s in ((2, 3, 0, 4), (5, 3, 1, 1)))
    out = mg.conv2d(x, weight, padding=1)
    dx, dweight = mg.grad(out, (x, weight), np.ones((2, 5, 2, 6)))
    assert not out.data.any()
    assert dx.shape == x.shape
    assert not dweight.data.any()


def random_convolution(rng):
    """Operands and options of a convolution, of any shape."""
    while True:
        groups, images = (int(n) for n in rng.integers(1, 4, 2))
        few_and_many = rng.permutation(rng.integers(1, [5, 40]))
        channels, filters = (groups * int(n) for n in few_and_many)
        kernel, stride, dilation = (tuple(map(int, rng.integers(1, 5, 2))) for _ in range(3))
        padding, size = (
            tuple(map(int, rng.integers(0, 6, 2))),
            tuple(map(int, rng.integers(1, 45, 2))),
        )
        how = Geometry(stride, padding, dilation, groups)
        result = how.result_size(size, kernel)
        if min(result) > 0:
            x = rng.standard_normal((images, channels, *size))
            weight = rng.standard_normal((filters, channels // groups, *kernel))
            y, bias = rng.standard_normal((images, filters, *result)), rng.standard_normal(filters)
            return how, x, weight, bias, y


def three(how, x, weight, bias, y):
    c = kernels.convolution
    return (
        c.convolve(x, weight, bias, how),
        c.input_gradient(y, weight, x.shape[2:], how),
        c.weight_gradient(y, x, weight.shape[2:], how),
    )


@pytest.mark.sampled(3)
@compiled
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("are_long", [True, False])
def test_kernels_agree_with_sums_over_windows(dtype, are_long, monkeypatch):
    """Long work is shared by threads and by parts of the images, and a sum of many taps is long."""
    if are_long:
        monkeypatch.setattr(kernels.convolution, "SECONDS", 1.0)
        monkeypatch.setattr(kernels.convolution, "DEEP", 1)
    rng = np.random.default_rng(0)
    for _ in range(100):
        how, *arrays = random_convolution(rng)
        arrays = [x.astype(dtype) for x in arrays]
        found = three(how, *arrays)
        with monkeypatch.context() as numpy_alone:
            numpy_alone.setattr(kernels.convolution, "kernel_for", lambda *_: None)
            right = three(how, *arrays)
        for x, y in zip(found, right, strict=True):
            assert x.shape == y.shape
            assert x.dtype == y.dtype == dtype
            most = 20 * np.finfo(dtype).eps * max(1, np.abs(y).max()) * np.sqrt(arrays[0][0].size)
            assert np.abs(x - y).max() < most, how


@pytest.mark.sampled(3)
@compiled
@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("operand", range(4))
def test_kernels_agree_where_a_number_is_not_finite(bad, operand, monkeypatch):
    monkeypatch.setattr(kernels.convolution, "DEEP", 1)
    rng = np.random.default_rng(operand)
    for _ in range(30):
        how, *arrays = random_convolution(rng)
        arrays[operand].flat[rng.integers(arrays[operand].size)] = bad
        found = three(how, *arrays)
        with monkeypatch.context() as numpy_alone:
            numpy_alone.setattr(kernels.convolution, "kernel_for", lambda *_: None)
            right = three(how, *arrays)
        for x, y in zip(found, right, strict=True):
            np.testing.assert_array_equal(np.isnan(x), np.isnan(y))
            np.testing.assert_array_equal(np.isinf(x), np.isinf(y))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("filters", [32, 45])
def test_a_kernel_of_one_pixel_multiplies_channels(dtype, filters, rng):
    x = rng.standard_normal((3, 17, 16, 40)).astype(dtype).transpose(0, 3, 1, 2)
    weight, bias = rng.standard_normal((filters, 40)).astype(dtype), np.arange(filters, dtype=dtype)
    operands = [mg.tensor(v, requires_grad=True) for v in (x, weight[:, :, None, None], bias)]
    out = mg.conv2d(*operands)
    y = rng.standard_normal(out.shape).astype(dtype)
    gradients = mg.grad(out, operands, y)
    wide, wide_weight, wide_y = (v.astype(np.float64) for v in (x, weight, y))
    right = (
        np.einsum("ncyx,oc->noyx", wide, wide_weight) + bias[:, None, None],
        np.einsum("noyx,oc->ncyx", wide_y, wide_weight),
        np.einsum("noyx,ncyx->oc", wide_y, wide)[..., None, None],
        wide_y.sum((0, 2, 3)),
    )
    rounding = 100 * np.finfo(dtype).eps  # of sums of up to 816 numbers near 1
    for found, expected in zip((out, *gradients), right, strict=True):
        assert found.dtype == dtype
        most = rounding * np.abs(expected).max()
        np.testing.assert_allclose(found.data, expected, rtol=0, atol=most)


@pytest.mark.parametrize("filters", [1, 20])
def test_a_stride_from_a_single_column_leads_nowhere(filters, monkeypatch):
    monkeypatch.setattr(kernels.convolution, "DEEP", 1)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((2, n, 6, 1)).astype(np.float32) for n in (3, filters))
    weight = rng.standard_normal((filters, 3, 1, 1)).astype(np.float32)
    found, right = (
        three(Geometry((1, step), (0, 0), (1, 1), 1), x, weight, None, y) for step in (3, 1)
    )
    for one, other in zip(found, right, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.fixture
def on_threads(monkeypatch):
    """Sets the number of threads, and makes any work worth it, and any sum one of many taps."""
    before = mg.get_num_threads()
    monkeypatch.setattr(kernels.convolution, "SECONDS", 1.0)
    monkeypatch.setattr(kernels.convolution, "DEEP", 1)
    yield mg.set_num_threads
    mg.set_num_threads(before)


def with_blocks(number, shape, itemsize, kernel, geometry, _, sort):
    return plan.forward_plan(shape, itemsize, kernel, geometry, number, sort)


@pytest.mark.parametrize("filters", [9, 50])
@pytest.mark.parametrize("shape", [(5, 3, 33, 30), (1, 4, 70, 50), (40, 2, 7, 7)])
def test_threads_and_blocks_change_no_bit(shape, filters, on_threads, monkeypatch):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((filters, shape[1], 3, 3)).astype(np.float32)
    x, how = rng.standard_normal(shape).astype(np.float32), Geometry((1, 2), (1, 1), (1, 1), 1)
    size = how.result_size(shape[2:], (3, 3))
    y = rng.standard_normal((shape[0], filters, *size)).astype(np.float32)
    results = []
    for threads in (1, get_max_threads()):
        on_threads(threads)
        results.append([z.tobytes() for z in three(how, x, weight, None, y)])
    assert results[0] == results[1]
    for blocks in (1, 50):
        of_blocks = partial(with_blocks, blocks)
        monkeypatch.setattr(kernels.convolution, "forward_plan", of_blocks)
        assert kernels.convolution.convolve(x, weight, None, how).tobytes() == results[0][0]


def test_an_infinity_beside_an_image_stays_there(monkeypatch):
    """What lies beside a row in memory is multiplied with nothing."""
    monkeypatch.setattr(kernels.convolution, "DEEP", 1)
    x = np.ones((1, 2, 6, 5), np.float32)
    x[0, 1] = np.inf
    for filters in (1, 3, 20):  # in each of two groups
        out = mg.conv2d(x, np.ones((2 * filters, 1, 3, 3), np.float32), groups=2, padding=1)
        assert np.isfinite(out[0, :filters]).all()
        assert np.isinf(out[0, filters:]).all()
    for filters in (1, 20):
        y = np.ones((1, 2 * filters, 6, 5), np.float32)
        y[0, filters:] = np.nan
        dw = kernels.convolution.weight_gradient(
            y, np.ones((1, 2, 6, 5), np.float32), (3, 3), Geometry((1, 1), (1, 1), (1, 1), 2)
        )
        assert np.isfinite(dw[:filters]).all()
        assert np.isnan(dw[filters:]).all()


@compiled
def test_plans_are_found_once_for_a_shape():
    plan.forward_plan.cache_clear()
    x = np.ones((2, 3, 9, 9), np.float32)
    for _ in range(3):
        mg.conv2d(x, np.ones((2, 3, 2, 2), np.float32))
    assert plan.forward_plan.cache_info().misses == 1
