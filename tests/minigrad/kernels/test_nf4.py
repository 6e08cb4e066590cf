"""NF4: the published code book, nearest levels, exact products, and no dense copy at any time."""

import copy
import pickle
import sys
import tracemalloc
from statistics import NormalDist

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.numpy
from numpy.testing import assert_allclose, assert_array_equal

import lora
import minigrad
from lora import NF4Linear, QuantizeReport, quantize
from minigrad import assert_gradients, nf4_linear, nn
from minigrad.kernels import narrow, nf4
from minigrad.kernels.jit import JIT_ENABLED
from minigrad.kernels.nf4 import LEVELS, NF4Matrix
from tests.hosts import HOSTS, on_x86
from tests.minigrad.kernels.oracle import in_numpy
from tests.minigrad.kernels.processes import run_python

needs_jit = pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled kernel to test")

FLOATS = [np.float16, np.float32, np.float64]
SHAPES = [(1, 1), (1, 9), (9, 1), (5, 64), (4, 100), (3, 129), (70, 33)]
BLOCKS = [1, 2, 3, 7, 64, 1000]


def draw(rng, shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def absmax_of(matrix):
    """The absmax of each block of each row, as it is read back."""
    absmax = matrix.absmax
    if matrix.double_quant:
        absmax = nf4.absmax_of(absmax, 0, matrix.offset, matrix.scale)
    return absmax.reshape(len(matrix.codes), -1)


def codes_of(matrix):
    """A code for each number."""
    packed = matrix.arrays()["codes"]
    return np.stack([packed >> 4, packed & 15], -1).reshape(len(packed), -1)[:, : matrix.shape[1]]


def blocks(array, size):
    """The numbers of each block, row by row."""
    return [row[a : a + size] for row in array for a in range(0, len(row), size)]


@pytest.fixture
def peak():
    """The most memory that a call takes, in bytes."""

    def measure(function):
        tracemalloc.start()
        try:
            function()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure


# ----------------------------------------------------------------------------------------------
# The code book and the codes
# ----------------------------------------------------------------------------------------------


def test_levels_are_quantiles_of_a_normal_distribution():
    last = 1 - (1 / 30 + 1 / 32) / 2
    quantile = NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(0.5, last, 9)[1:]]
    below = [-quantile(p) for p in np.linspace(0.5, last, 8)[:0:-1]]
    assert LEVELS.dtype == np.float32
    assert_allclose(LEVELS, np.array([*below, 0, *above]) / above[-1], rtol=0, atol=1e-6)
    assert (LEVELS[0], LEVELS[7], LEVELS[15]) == (-1, 0, 1)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*[(shape, np.float32) for shape in SHAPES], ((3, 129), np.float16), ((3, 129), np.float64)],
)
def test_each_code_is_that_of_the_nearest_level(shape, block_size, dtype, double_quant, rng):
    w = draw(rng, shape, dtype)
    matrix = NF4Matrix.of(w, block_size, double_quant)
    assert (matrix.shape, matrix.size, matrix.block_size) == (shape, w.size, block_size)
    assert matrix.double_quant is double_quant
    absmax = absmax_of(matrix).ravel()
    parts = blocks(w, block_size), blocks(codes_of(matrix), block_size), absmax
    for numbers, code, largest in zip(*parts, strict=True):
        # Among numbers that are 0 all, every code is the nearest.
        ratio = numbers.astype(np.float64) / (largest or np.inf)
        distance = np.abs(ratio[:, None] - LEVELS)
        assert_array_equal(distance[np.arange(len(code)), code], distance.min(1))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_number_is_its_level_times_the_absmax_of_its_block(shape, block_size, dtype, rng):
    w = draw(rng, shape)
    matrix = NF4Matrix.of(w, block_size, double_quant=False)
    largest = [np.abs(block).max() for block in blocks(w, block_size)]
    assert_array_equal(matrix.arrays()["absmax"], largest)
    found = matrix.dense(dtype)
    assert (found.dtype, found.shape) == (dtype, shape)
    pairs = zip(blocks(codes_of(matrix), block_size), largest, strict=True)
    right = [LEVELS[code].astype(np.float64) * absmax for code, absmax in pairs]
    assert_array_equal(
        np.concatenate(blocks(found, block_size)), np.concatenate(right).astype(dtype)
    )


def published_error(w):
    """The mean squared error of the published code book in blocks of 64, in float64."""
    numbers = w.astype(np.float64).reshape(-1, 64)
    absmax = np.abs(numbers).max(1, keepdims=True)
    levels = LEVELS.astype(np.float64)
    nearest = levels[np.abs(numbers[..., None] / absmax[..., None] - levels).argmin(-1)]
    return np.mean(np.square(nearest * absmax - numbers))


def test_the_error_on_normal_weights_is_that_of_the_published_code_book(rng):
    w = draw(rng, (512, 512))
    right = published_error(w)
    plain, double = (
        np.mean(np.square(NF4Matrix.of(w, 64, double).dense(np.float64) - w))
        for double in (False, True)
    )
    assert abs(plain / right - 1) <= 1e-6
    # An absmax is off by a thousandth or two, whose square is small beside an error of a tenth.
    assert abs(double / right - 1) <= 3e-4


@hypothesis.given(st.integers(1, 40), st.integers(1, 200), st.integers(1, 130), st.integers(0, 99))
def test_what_is_read_back_is_kept_as_it_is(rows, cols, block_size, seed):
    w = draw(np.random.default_rng(seed), (rows, cols))
    once = NF4Matrix.of(w, block_size, double_quant=False)
    for dtype in (np.float32, np.float64):
        twice = NF4Matrix.of(once.dense(dtype), block_size, double_quant=False)
        assert_array_equal(codes_of(twice), codes_of(once))
        assert_array_equal(twice.dense(), once.dense())


@hypothesis.given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 99))
def test_what_is_read_back_has_the_same_codes_under_double_quantisation(rows, count, seed):
    once = NF4Matrix.of(draw(np.random.default_rng(seed), (rows, 64 * count)))
    for dtype in (np.float32, np.float64):
        assert_array_equal(codes_of(NF4Matrix.of(once.dense(dtype))), codes_of(once))


@pytest.mark.parametrize("double_quant", [False, True])
def test_zeros_come_back_as_zeros(double_quant, rng):
    w = draw(rng, (6, 200))
    w[1, 64:128] = w[2, 192:] = 0
    w[4] = -0.0
    back = NF4Matrix.of(w, 64, double_quant).dense()
    assert_array_equal(back[w == 0], 0)
    nothing = NF4Matrix.of(np.zeros((5, 130)), 64, double_quant)
    assert_array_equal(nothing.dense(), 0)
    assert_array_equal(nothing.matmul(np.ones((2, 5))), 0)


def test_no_number_is_further_off_than_zero_where_absmax_is_far_below_those_of_its_group(rng):
    w = draw(rng, (64, 256))
    w *= np.exp(3 * rng.standard_normal((64, 1))).astype(np.float32)
    matrix = NF4Matrix.of(w)
    back = matrix.dense()
    assert (np.abs(back - w) <= np.abs(w)).all()
    assert (back * w >= 0).all()
    absmax = absmax_of(matrix)
    assert (absmax >= 0).all()
    off = np.abs(absmax - np.abs(w).reshape(64, 4, 64).max(2))
    assert 0 < off.max() <= absmax.max() / 254


def test_absmax_of_one_size_is_exact_under_double_quantisation(rng):
    w = LEVELS[rng.integers(16, size=(20, 640))] * np.float32(0.3)
    w[:, ::64] = 0.3
    assert_array_equal(NF4Matrix.of(w).dense(), w)


def test_what_float32_rounds_to_zero_is_zero():
    w = np.full((2, 64), 1e-60)
    w[1] = 1.0
    assert_array_equal(
        NF4Matrix.of(w, double_quant=False).dense(np.float64), [[0.0], [1.0]] * np.ones(64)
    )


# ----------------------------------------------------------------------------------------------
# What a matrix is
# ----------------------------------------------------------------------------------------------


def test_a_number_takes_four_bits_and_its_share_of_absmax(rng):
    rows, cols = 128, 1024  # whole blocks, and whole groups of them
    w = draw(rng, (rows, cols))
    assert NF4Matrix.of(w).nbytes == rows * cols * (0.5 + 1 / 64 + 2 * 4 / (64 * 256))
    assert NF4Matrix.of(w, double_quant=False).nbytes == rows * cols * (0.5 + 4 / 64)
    assert NF4Matrix.of(w[:, :65], 64).nbytes == rows * (33 + 2) + 2 * 4


def test_what_is_kept_is_what_it_says(rng):
    w = draw(rng, (1024, 1024))
    NF4Matrix.of(w[:64])  # what is made once and for all
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        matrix = NF4Matrix.of(w)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0 <= held - matrix.nbytes <= 20_000  # Python's own objects


def test_repr_has_sizes_and_bytes(rng):
    matrix = NF4Matrix.of(draw(rng, (128, 256)))
    assert repr(matrix) == "NF4Matrix(128, 256, block_size=64: 0.5161 bytes per number)"
    assert (
        repr(matrix.T) == "NF4Matrix(256, 128, block_size=64, transposed: 0.5161 bytes per number)"
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_transpose_is_a_view(dtype, rng):
    matrix = NF4Matrix.of(draw(rng, (50, 33)), 7)
    turned = matrix.T
    assert (turned.shape, turned.size, turned.ndim) == ((33, 50), 1650, 2)
    assert (matrix.is_transposed, turned.is_transposed, turned.T.is_transposed) == (0, 1, 0)
    assert turned.nbytes == matrix.nbytes
    assert np.shares_memory(turned.codes, matrix.codes)
    assert_array_equal(turned.dense(dtype), matrix.dense(dtype).T)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_are_rows_of_the_whole(dtype, rng):
    for matrix in (NF4Matrix.of(draw(rng, (50, 33)), 7), NF4Matrix.of(draw(rng, (33, 50))).T):
        whole = matrix.dense(dtype)
        for start, stop in [(0, 50), (3, 17), (49, 50), (7, 7), (50, 50)]:
            assert_array_equal(matrix.rows(start, stop, dtype), whole[start:stop])


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize(
    ("shape", "double_quant"),
    [*[(shape, False) for shape in SHAPES], ((3, 129), True), ((70, 33), True)],
)
def test_the_kernel_reads_what_its_reference_does(shape, block_size, double_quant, dtype, rng):
    matrix = NF4Matrix.of(draw(rng, shape), block_size, double_quant)
    absmax = absmax_of(matrix)
    expected = np.empty(shape, dtype)
    in_numpy(nf4.decode)(matrix.codes, absmax, block_size, expected)
    assert_array_equal(matrix.dense(dtype), expected)


READ = """
    import sys
    import numpy as np
    from minigrad.kernels import narrow, nf4
    from minigrad.kernels.vector import VECTOR
    from tests.minigrad.kernels.oracle import in_numpy
    from tests.guarded import guarded

    rng = np.random.default_rng(0)

    def drawn(shape, dtype, low, high):
        array = guarded(int(np.prod(shape)), dtype, rng.integers(2)).reshape(shape)
        array[...] = rng.integers(low, high, shape)
        return array

    for i in range(300):
        rows, cols, block_size = (int(rng.integers(1, most)) for most in (5, 200, 100))
        packed = drawn((rows, -(-cols // 2)), np.uint8, 0, 256)
        absmax = drawn((rows, -(-cols // block_size)), np.float32, 1, 9)
        dtype = np.dtype((np.float32, np.float64)[i % 2])
        out = guarded(rows * cols, dtype, rng.integers(2)).reshape(rows, cols)
        out[...] = np.nan
        nf4.decode(packed, absmax, block_size, out)
        expected = np.empty((rows, cols), dtype)
        in_numpy(nf4.decode)(packed, absmax, block_size, expected)
        assert (out == expected).all(), i
    print("done", VECTOR)
"""


@pytest.mark.full
@needs_jit
@on_x86
@pytest.mark.skipif(sys.platform != "linux", reason="guards memory with mprotect")
@pytest.mark.parametrize(("host", "width"), [("AVX2", "32"), ("SSE2", "16")])
def test_other_hosts_read_what_the_reference_does_and_nothing_beyond(host, width, tmp_path):
    assert run_python(READ, cwd=tmp_path, **HOSTS[host]) == f"done {width}"


@pytest.mark.parametrize("double_quant", [False, True])
def test_it_is_rebuilt_from_its_arrays(double_quant, rng, tmp_path):
    matrix = NF4Matrix.of(draw(rng, (20, 33)), 7, double_quant)
    file = tmp_path / "weight.safetensors"
    safetensors.numpy.save_file(matrix.arrays(), file)
    for same in (
        NF4Matrix.from_arrays(safetensors.numpy.load_file(file)),
        pickle.loads(pickle.dumps(matrix)),
        pickle.loads(pickle.dumps(matrix.T)).T,
    ):
        assert repr(same) == repr(matrix)
        assert same.double_quant is double_quant
        assert_array_equal(same.dense(), matrix.dense())
        assert not any(array.flags.writeable for array in (same.codes, same.absmax))


def test_it_cannot_be_changed_so_copies_share_it(rng):
    matrix = NF4Matrix.of(draw(rng, (4, 6)))
    assert copy.deepcopy(matrix) is matrix
    with pytest.raises(AttributeError, match="block_size"):
        matrix.block_size = 3
    for array in (matrix.codes, matrix.absmax, matrix.offset, matrix.scale):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


# ----------------------------------------------------------------------------------------------
# Products
# ----------------------------------------------------------------------------------------------


@hypothesis.given(
    st.integers(0, 40),
    st.integers(1, 150),
    st.integers(1, 150),
    st.integers(1, 160),
    st.booleans(),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 99),
)
def test_products_are_those_of_the_dense_matrix(n, rows, cols, block_size, double, dtype, seed):
    rng = np.random.default_rng(seed)
    matrix = NF4Matrix.of(draw(rng, (rows, cols)), block_size, double)
    for m in (matrix, matrix.T):
        x, w = draw(rng, (n, m.shape[0]), dtype), m.dense(np.float64)
        out = m.matmul(x)
        assert (out.dtype, out.shape) == (dtype, (n, m.shape[1]))
        bound = (m.shape[0] + 2) * np.finfo(dtype).eps * (np.abs(x.astype(np.float64)) @ np.abs(w))
        assert (np.abs(out - x.astype(np.float64) @ w) <= bound).all()


@pytest.mark.parametrize(("rows", "cols"), [(100, 50), (97, 131)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_of_many_strips_is_right(rows, cols, dtype, rng, monkeypatch):
    monkeypatch.setattr(narrow, "STRIP", 1)
    monkeypatch.setattr(narrow, "ROWS", 7)
    matrix = NF4Matrix.of(draw(rng, (rows, cols)), 64)
    assert [len(strip) for *_, strip in matrix.strips(dtype)] == [7] * (rows // 7) + [rows % 7]
    for m in (matrix, matrix.T):
        x = draw(rng, (12, m.shape[0]), dtype)
        right = x.astype(np.float64) @ m.dense(np.float64)
        # sums of a hundred terms
        assert_allclose(m.matmul(x), right, rtol=0, atol=400 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.int8, np.bool_, np.longdouble])
def test_other_numbers_are_computed_as_numpy_does_and_float16_in_float32(dtype, rng):
    matrix = NF4Matrix.of(draw(rng, (40, 30)))
    x = rng.integers(0, 2, (5, 40)).astype(dtype)
    for m, given in ((matrix, x), (matrix.T, x[:, :30])):
        out = m.matmul(given)
        wide = np.result_type(dtype, np.float32)
        assert out.dtype == (dtype if np.dtype(dtype).kind == "f" else wide)
        right = given.astype(np.float64) @ m.dense(np.float64)
        eps = np.finfo(out.dtype).eps
        assert_allclose(out.astype(np.float64), right, rtol=eps, atol=max(eps / 8, 1e-5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_number_of_threads_gives_the_same_bits(dtype, same_on_threads, rng):
    matrix = NF4Matrix.of(draw(rng, (700, 900)))
    x, g = draw(rng, (64, 900), dtype), draw(rng, (64, 700), dtype)
    same_on_threads(lambda: [matrix.T.matmul(x), matrix.matmul(g), matrix.dense(dtype)])


def test_operands_of_any_layout_are_served(rng):
    w, x = draw(rng, (70, 130)), draw(rng, (9, 130))
    matrix = NF4Matrix.of(w)
    assert_array_equal(NF4Matrix.of(np.asfortranarray(w)).dense(), matrix.dense())
    assert_array_equal(NF4Matrix.of(np.repeat(w, 2, 1)[:, ::2]).dense(), matrix.dense())
    right = matrix.T.matmul(x)
    for view in (np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2], x[::-1].copy()[::-1]):
        assert_allclose(matrix.T.matmul(view), right, rtol=0, atol=1e-4)  # another order of sums


# ----------------------------------------------------------------------------------------------
# Memory
# ----------------------------------------------------------------------------------------------

LARGE = (8192, 2048)
DENSE = 4 * LARGE[0] * LARGE[1]


def test_a_step_never_holds_a_dense_copy(rng, peak):
    layer = NF4Linear(NF4Matrix.of(draw(rng, LARGE)), np.zeros(LARGE[0], np.float32))
    x = minigrad.tensor(draw(rng, (4, LARGE[1])), requires_grad=True)

    def step():
        (layer(x) ** 2).sum().backward()

    step()  # what is made once and for all
    share = 0.1 if JIT_ENABLED else 0.3  # a strip, of which the kernel's reference makes copies
    assert peak(step) < share * DENSE


def test_quantising_holds_strips_only(rng, peak):
    w = draw(rng, (4096, 2048))
    assert peak(lambda: NF4Matrix.of(w)) < 0.5 * w.nbytes


# ----------------------------------------------------------------------------------------------
# The op and the layer
# ----------------------------------------------------------------------------------------------


@pytest.fixture
def linear(rng):
    layer = nn.Linear(33, 20, dtype=np.float64, rng=rng)
    layer.bias.copy_(rng.standard_normal(20))
    return layer


def test_derivatives_through_a_model_are_right(linear, rng):
    layer = NF4Linear.from_linear(linear, block_size=8)
    a, b = rng.standard_normal((9, 33)), rng.standard_normal((4, 9))
    for order in (1, 2):
        assert_gradients(
            lambda a, b: (minigrad.tanh(layer(b @ a)) ** 2).sum(), a, b, order=order, samples=20
        )


def test_gradients_are_those_of_the_dense_layer(linear, rng):
    layer = NF4Linear.from_linear(linear, block_size=8)
    dense = layer.to_linear(np.float64)
    values = rng.standard_normal((2, 3, 33))
    found, right = [], []
    for results, module in ((found, layer), (right, dense)):
        x = minigrad.tensor(values, requires_grad=True)
        first = minigrad.grad((minigrad.tanh(module(x)) ** 2).sum(), x, create_graph=True)
        results += [module(x), first, minigrad.grad((first**2).sum(), x)]
    for one, other in zip(found, right, strict=True):
        assert_allclose(one.data, other.data, rtol=1e-12, atol=1e-12)


def test_the_bias_of_the_op_may_train(rng):
    weight, x = NF4Matrix.of(draw(rng, (5, 7))), rng.standard_normal((3, 7))
    b = minigrad.tensor(rng.standard_normal(5), requires_grad=True)
    nf4_linear(x, weight, b).sum().backward()
    assert_array_equal(b.grad.data, np.full(5, 3.0))


def test_the_layer_is_frozen_and_says_what_it_is(linear):
    layer = NF4Linear.from_linear(linear, block_size=8)
    assert (layer.in_features, layer.out_features) == (33, 20)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert layer.trainable_parameters() == []
    assert linear.bias.requires_grad
    assert "NF4Linear(33, 20, block_size=8)" in repr(layer)
    bare = NF4Linear.from_linear(nn.Linear(3, 2, bias=False), double_quant=False)
    assert "NF4Linear(3, 2, bias=False, block_size=64, double_quant=False)" in repr(bare)
    layer.bias.requires_grad_()
    x = minigrad.tensor(np.ones(33), requires_grad=True)
    layer(x).sum().backward()
    assert layer.bias.grad is None
    assert not layer(np.ones(33)).requires_grad


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_way_back_is_a_plain_layer(linear, dtype):
    layer = NF4Linear.from_linear(linear).eval()
    plain = layer.to_linear(dtype)
    assert type(plain) is nn.Linear
    assert (plain.weight.dtype, plain.bias.dtype, plain.training) == (dtype, dtype, False)
    assert_array_equal(plain.weight.data, layer.weight.dense(dtype))
    assert not np.shares_memory(plain.bias.data, layer.bias.data)


def test_a_deep_copy_shares_the_codes_and_not_the_bias(linear):
    layer = NF4Linear.from_linear(linear)
    other = copy.deepcopy(layer)
    assert other.weight is layer.weight
    assert not np.shares_memory(other.bias.data, layer.bias.data)
    x = np.ones((2, 33))
    assert_array_equal(other(x).data, layer(x).data)


# ----------------------------------------------------------------------------------------------
# A whole model
# ----------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, rng):
        self.embed = nn.Embedding(11, 16, rng=rng)
        self.q, self.v = nn.Linear(16, 16, rng=rng), nn.Linear(16, 16, bias=False, rng=rng)
        self.heads = [nn.Linear(16, 3, rng=rng)]
        self.act = nn.GELU()

    def forward(self, ids):
        x = self.embed(ids)
        return self.heads[0](self.act(self.q(x)) + self.v(x))


@pytest.fixture
def model(rng):
    return Block(rng)


def kinds(model):
    return [(name, type(module)) for name, module in model.named_modules()]


IDS = np.arange(10).reshape(2, 5)


def test_every_linear_layer_is_replaced_and_the_rest_left(model):
    dense, before = copy.deepcopy(model), dict(model.named_parameters())
    report = quantize(model, progress=False)
    assert report.names == ["q", "v", "heads.0"]
    assert all(isinstance(m, NF4Linear) for m in (model.q, model.v, model.heads[0]))
    after = dict(model.named_parameters())
    assert set(after) == {"embed.weight", "q.bias", "heads.0.bias"}
    assert all(after[name] is before[name] for name in after)
    assert [name for name in after if after[name].requires_grad] == ["embed.weight"]
    for name in ("q", "v"):
        setattr(dense, name, getattr(model, name).to_linear())
    dense.heads[0] = model.heads[0].to_linear()
    assert_allclose(model(IDS).data, dense(IDS).data, rtol=0, atol=1e-5)
    for m in (model, dense):
        (m(IDS) ** 2).sum().backward()
    right = dense.embed.weight.grad.data
    assert_allclose(model.embed.weight.grad.data, right, rtol=1e-4, atol=1e-5)


def test_targets_and_exclusions_are_as_those_of_adapters(rng):
    assert quantize(Block(rng), ["q"]).names == ["q"]
    assert quantize(Block(rng), "q|heads.*").names == ["q", "heads.0"]
    assert quantize(Block(rng), exclude=["v"]).names == ["q", "heads.0"]
    assert quantize(Block(rng), exclude="heads.*|v").names == ["q"]
    assert quantize(Block(rng), "[a-z.0]+", exclude=["embed"]).names == ["q", "v", "heads.0"]


def test_a_layer_in_two_places_stays_one(rng):
    layer = nn.Linear(4, 4, rng=rng)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    assert quantize(model).names == ["0"]
    assert model[0] is model[2]
    assert isinstance(model[0], NF4Linear)


def test_a_layer_in_evaluation_stays_there(model):
    model.q.eval()
    quantize(model, block_size=16, double_quant=False)
    assert (model.q.training, model.v.training) == (False, True)
    assert (model.q.weight.block_size, model.q.weight.double_quant) == (16, False)


@pytest.mark.parametrize("targets", ["all-linear", ["q"], "q|v", ["v", "heads.0"]])
def test_what_is_in_four_bits_already_is_refused_as_that(model, targets):
    quantize(model, progress=False)
    before = kinds(model)
    with pytest.raises(ValueError, match=r"quantize: .*(q|v).* in four bits already"):
        quantize(model, targets, progress=False)
    assert kinds(model) == before


def test_all_linear_layers_are_those_that_are_left(model):
    quantize(model, ["q"], block_size=16, progress=False)
    assert quantize(model, progress=False).names == ["v", "heads.0"]
    assert model.q.weight.block_size == 16


def test_the_report_of_adapters_counts_the_numbers_in_four_bits(model):
    total = model.count_parameters()
    quantize(model, exclude=["v"], progress=False)
    report = lora.attach(model, lora.LoRAConfig(rank=2, targets=["q"]))
    assert report.total == total + report.trainable
    more = lora.attach(model, lora.LoRAConfig(rank=1, targets=["q", "v"]), adapter="more")
    assert more.total == report.total + more.trainable
    model.again = model.heads[0]  # which is in four bits, and counts once
    last = lora.attach(model, lora.LoRAConfig(rank=1, targets=["v"]), adapter="last")
    assert last.total == more.total + last.trainable


def test_the_report_counts_bytes_and_errors(model):
    weights = {name: layer.weight.data.copy() for name, layer in (("q", model.q), ("v", model.v))}
    model.v.weight.copy_(np.zeros((16, 16)))
    report = quantize(model, ["q", "v"])
    assert isinstance(report, QuantizeReport)
    q, v = report.layers
    assert (q.name, q.pattern, q.shape, q.bytes_before) == ("q", "q", (16, 16), 4 * 256)
    assert q.bytes_after == model.q.weight.nbytes == 128 + 16 + 8
    assert q.bytes_per_number == q.bytes_after / 256
    wide = weights["q"].astype(np.float64)
    lost = np.linalg.norm(model.q.weight.dense(np.float64) - wide) / np.linalg.norm(wide)
    assert abs(q.error - lost) <= 1e-12
    assert 0.01 < q.error < 0.2
    assert v.error == 0
    assert (report.bytes_before, report.bytes_after) == (2048, q.bytes_after + v.bytes_after)
    lines = repr(report).splitlines()
    assert lines[0].split()[:3] == ["layer", "matched", "by"]
    assert [line.split()[0] for line in lines[1:3]] == ["q", "v"]
    assert lines[-1] == "2 weights: 2 KiB before, 304 B after (14.8 %)"
    one = repr(lora.quantize(nn.Sequential(nn.Linear(16, 16)), ["0"])).splitlines()
    assert one[-1].startswith("1 weight: ")


# ----------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------

ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("array", "options", "kind", "message"),
    [
        (np.ones((2, 3), int), {}, TypeError, "float16, float32 or float64, not int64"),
        (np.ones((2, 3), np.longdouble), {}, TypeError, "float16, float32 or float64"),
        ([[1.0]], {}, TypeError, "an array of .*, not list"),
        (np.ma.array(np.ones((2, 3)), mask=True), {}, TypeError, "not MaskedArray"),
        (minigrad.zeros(2, 3), {}, TypeError, r"not Tensor; of a Tensor, pass .detach\(\)"),
        (np.ones(3), {}, ValueError, r"not shape \(3,\)"),
        (np.ones((2, 0)), {}, ValueError, r"not shape \(2, 0\)"),
        (np.array([[1.0, np.nan]]), {}, ValueError, "holds nan, .* NaN or Inf"),
        (np.array([[1.0, -np.inf]], np.float16), {}, ValueError, "holds inf, .* NaN or Inf"),
        (np.array([[1e39]]), {}, ValueError, "holds 1e.39, .* the largest float32"),
        *[
            (ONES, {"block_size": size}, ValueError, "block_size must be a positive integer")
            for size in (0, -1, 2.0, True, None)
        ],
    ],
)
def test_what_is_no_matrix_of_floats_is_refused(array, options, kind, message):
    with pytest.raises(kind, match=message):
        NF4Matrix.of(array, **options)


def test_wrong_calls_of_a_matrix_are_refused():
    matrix = NF4Matrix.of(ONES)
    for x in (np.ones((4, 3)), np.ones(2), np.ones((1, 4, 2))):
        with pytest.raises(ValueError, match=r"does not fit a matrix of shape \(2, 3\)"):
            matrix.matmul(x)
    with pytest.raises(TypeError, match="real numbers, not complex128"):
        matrix.matmul(np.ones((4, 2), complex))
    for start, stop in [(-1, 1), (2, 1), (0, 3)]:
        with pytest.raises(ValueError, match="not in a matrix of 2"):
            matrix.rows(start, stop)
    with pytest.raises(ValueError, match="cannot be read as int64"):
        matrix.dense(int)
    with pytest.raises(ValueError, match=r"`.T.arrays\(\)`"):
        matrix.T.arrays()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"codes": None}, ValueError, "takes what arrays"),
        ({"scale": None}, ValueError, "offset and scale belong together"),
        ({"other": ONES}, ValueError, "takes what arrays"),
        ({"codes": np.zeros((2, 3), np.uint8)}, ValueError, r"codes has shape .* must be \(2, 2\)"),
        ({"codes": np.zeros((2, 2), np.int8)}, TypeError, "codes is an array of uint8, not int8"),
        ({"codes": np.zeros((0, 2), np.uint8)}, ValueError, "number of rows of codes"),
        ({"absmax": np.zeros(2, np.float32)}, TypeError, "absmax is an array of int8"),
        ({"absmax": np.zeros(3, np.int8)}, ValueError, r"absmax has shape \(3,\)"),
        ({"offset": np.zeros(2, np.float32)}, ValueError, r"offset has shape \(2,\)"),
        ({"cols": np.array([5])}, ValueError, "codes has shape"),
        ({"block_size": np.array([0])}, ValueError, "block_size must be a positive integer"),
        ({"block_size": np.array(64.0)}, ValueError, "arrays of one integer"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, kind, message):
    arrays = {**NF4Matrix.of(ONES).arrays(), **change}
    with pytest.raises(kind, match=message):
        NF4Matrix.from_arrays({name: array for name, array in arrays.items() if array is not None})


def test_one_half_of_double_quantisation_is_refused():
    parts = NF4Matrix.of(ONES)
    with pytest.raises(ValueError, match="offset and scale belong together"):
        NF4Matrix(parts.codes, parts.absmax, parts.offset, None, 3, 64)


def test_wrong_operands_of_the_op_are_refused():
    weight, x = NF4Matrix.of(ONES), np.ones((4, 3))
    for wrong in (ONES, minigrad.tensor(ONES, requires_grad=True), None):
        with pytest.raises(TypeError, match="nf4_linear: the weight is an NF4Matrix, not"):
            nf4_linear(minigrad.tensor(x), wrong)
    for wrong in (np.ones((4, 2)), np.ones(())):
        with pytest.raises(ValueError, match="nf4_linear: x of shape"):
            nf4_linear(wrong, weight)
    with pytest.raises(ValueError, match=r"nf4_linear: a bias of shape \(3,\)"):
        nf4_linear(x, weight, np.ones(3))


def test_wrong_parts_of_a_layer_are_refused():
    with pytest.raises(TypeError, match="NF4Linear: the weight is an NF4Matrix, not ndarray"):
        NF4Linear(ONES)
    with pytest.raises(ValueError, match=r"bias has shape \(3,\)"):
        NF4Linear(NF4Matrix.of(ONES), np.ones(3))
    with pytest.raises(TypeError, match="takes a Linear, not GELU"):
        NF4Linear.from_linear(nn.GELU())


def refused(model, message, kind=ValueError, **options):
    """That `quantize` says so, and the model is as before, to the last parameter and flag."""
    before = kinds(model), [(id(p), p.requires_grad) for p in model.parameters()]
    with pytest.raises(kind, match=message):
        quantize(model, **options)
    assert before == (kinds(model), [(id(p), p.requires_grad) for p in model.parameters()])


def test_a_model_that_cannot_be_quantised_is_left_as_it_is(model, rng):
    refused(nn.Linear(2, 3), r"NF4Linear.from_linear\(model\)")
    refused(nn.Sequential(nn.GELU()), "no linear layer")
    refused(model, r"did you mean 'heads.0'", targets=["heads.1"])
    refused(model, "exclude that match no layer: 'nobody'", exclude=["nobody"])
    refused(model, "nothing is left of the targets 'q'", targets=["q"], exclude=["q"])
    refused(model, "embed are embeddings", targets=["q", "embed"])
    refused(model, "block_size must be a positive integer", block_size=0)
    refused(model, "targets are names", kind=TypeError, targets=[3])
    model.heads[0].weight.data[1, 2] = np.nan
    refused(model, "heads.0: .*NaN or Inf.*nothing was changed")


def test_a_layer_with_an_adapter_is_refused_and_others_are_not(model):
    lora.attach(model, lora.LoRAConfig(rank=2, targets=["q"]))
    refused(model, "q have adapters already")
    refused(model, "q have adapters already", targets=["q", "v"])
    assert quantize(model, ["v"]).names == ["v"]


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("options", [{"bias": "all"}, {"modules_to_save": ["1"]}])
def test_a_layer_that_an_adapter_trains_whole_is_refused(active, options, rng):
    net = nn.Sequential(nn.Linear(8, 8, rng=rng), nn.Linear(8, 8, rng=rng))
    lora.attach(net, lora.LoRAConfig(rank=2, targets=["0"], **options), adapter="a")
    if not active:
        lora.switch(net)
    head = net[1]
    with pytest.raises(ValueError, match=r"adapter 'a' trains .*1\.bias in full"):
        lora.quantize(net, ["1"])
    assert net[1] is head


def test_what_was_frozen_in_four_bits_is_frozen_when_it_is_folded(rng):
    net = nn.Sequential(nn.Linear(8, 8, rng=rng), nn.Linear(8, 8, rng=rng))
    lora.quantize(net, ["0"])
    lora.attach(net, lora.LoRAConfig(rank=2), rng=rng)
    lora.fold(net)
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["1.weight", "1.bias"]


def test_the_bias_of_a_layer_in_four_bits_can_be_trained_by_an_adapter(rng):
    net = nn.Sequential(nn.Linear(8, 8, rng=rng), nn.Linear(8, 8, rng=rng))
    lora.quantize(net)
    lora.attach(net, lora.LoRAConfig(rank=2, targets=["0"], bias="all"), rng=rng)
    minigrad.mean(net(minigrad.randn(3, 8)) ** 2).backward()
    assert all(p.grad is not None for p in net.trainable_parameters())
    with pytest.raises(ValueError, match="modules_to_save: 1 is in four bits"):
        lora.attach(net, lora.LoRAConfig(rank=2, targets=["0"], modules_to_save=["1"]), adapter="b")


def test_a_weight_that_is_held_elsewhere_is_refused(rng):
    model = Block(rng)
    model.v.weight = model.q.weight
    refused(model, "weight of q is one parameter in q.weight and v.weight")
    model = Block(rng)
    model.parts = {"copy": [model.v.weight]}
    refused(model, "weight of v is one parameter in v.weight and parts.copy.0")
    assert quantize(model, exclude=["v"]).names == ["q", "heads.0"]


def test_a_linear_layer_with_a_forward_of_its_own_is_left(rng):
    class Twice(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Twice(3, 3), nn.Linear(3, 3))
    assert quantize(model).names == ["1"]
    assert type(model[0]) is Twice


def test_a_matrix_with_an_absmax_of_nan_is_not_finite():
    codes = NF4Matrix.of(np.ones((2, 2), np.float32), 2, False).codes
    assert NF4Matrix(codes, np.ones(2, np.float32), None, None, 2, 2).is_finite()
    assert not NF4Matrix(codes, np.array([1, np.nan], np.float32), None, None, 2, 2).is_finite()
