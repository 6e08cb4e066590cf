"""Matrices in few bits: bfloat16, and products of few rows, which decode in registers."""

import copy
import pickle
import sys
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import bfloat16_linear, nn
from minigrad.kernels import bfloat16, narrow, nf4
from minigrad.kernels.bfloat16 import BFloat16Matrix
from minigrad.kernels.jit import JIT_ENABLED
from minigrad.kernels.nf4 import NF4Matrix
from tests.hosts import HOSTS, on_x86
from tests.minigrad.kernels.oracle import in_numpy
from tests.minigrad.kernels.processes import run_python

needs_jit = pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled kernel to test")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="guards memory with mprotect")

FORMATS = {
    "bfloat16": BFloat16Matrix.of,
    "nf4": NF4Matrix.of,
    "nf4, blocks of 32": lambda w: NF4Matrix.of(w, 32, double_quant=False),
    "nf4, blocks of 128": lambda w: NF4Matrix.of(w, 128),
    "nf4, blocks of 48": lambda w: NF4Matrix.of(w, 48),
    "nf4, blocks of 7": lambda w: NF4Matrix.of(w, 7),
    "nf4, one block in a row": lambda w: NF4Matrix.of(w, 5000),
}


def draw(rng, shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def check_product(matrix, x):
    """A product is that of the dense matrix in float64, up to the rounding of its sums."""
    out = matrix.matmul(x)
    dtype = np.result_type(x.dtype, np.float32)
    wide, w = x.astype(np.float64), matrix.dense(np.float64)
    assert (out.dtype, out.shape) == (dtype, (len(x), w.shape[1]))
    # A rounding for each term of a sum, one for its product, and one for the level times absmax.
    bound = (len(w) + 2) * np.finfo(dtype).eps * (np.abs(wide) @ np.abs(w))
    assert (np.abs(out - wide @ w) <= bound).all()
    return out


# ----------------------------------------------------------------------------------------------
# What a matrix in bfloat16 is
# ----------------------------------------------------------------------------------------------

EVERY = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_number_is_read_as_ml_dtypes_does(dtype):
    with np.errstate(over="ignore", invalid="ignore"):
        expected = EVERY.view(ml_dtypes.bfloat16).astype(np.float32)
        matrix = BFloat16Matrix(EVERY)
        for found, right in ((matrix, expected), (matrix.T, expected.T)):
            assert_array_equal(found.dense(np.float32).view(np.uint32), right.view(np.uint32))
            assert_array_equal(found.dense(dtype), right.astype(dtype))
            assert_array_equal(found.rows(3, 40, dtype), right[3:40].astype(dtype))


@needs_jit
def test_the_kernel_reads_what_its_reference_does():
    found, expected = np.empty((2, 256, 256), np.float32)
    bfloat16.widen(EVERY, found)
    in_numpy(bfloat16.widen)(EVERY, expected)
    assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rounding_is_that_of_ml_dtypes(dtype, rng):
    w = draw(rng, (50, 33), dtype)
    for array in (w, np.asfortranarray(w), np.repeat(w, 2, 1)[:, ::2]):
        matrix = BFloat16Matrix.of(array)
        assert_array_equal(matrix.array(), w.astype(ml_dtypes.bfloat16))
        assert matrix.array().dtype == ml_dtypes.bfloat16


def test_what_is_beyond_the_range_becomes_infinite_and_is_found():
    largest = np.finfo(np.float32).max
    assert BFloat16Matrix.of(np.array([[3.3e38, -0.0, 1e-45]], np.float32)).is_finite()
    for number in (largest, np.inf, -np.inf, np.nan):
        matrix = BFloat16Matrix.of(np.array([[0, number]], np.float32))
        assert not matrix.is_finite()
        assert not np.isfinite(matrix.dense()[0, 1])


def test_an_array_in_bfloat16_is_shared_and_read_only(rng):
    w = draw(rng, (4, 6)).astype(ml_dtypes.bfloat16)
    matrix = BFloat16Matrix.of(w)
    assert np.shares_memory(matrix.bits, w)
    assert np.shares_memory(matrix.T.array(), w)
    assert_array_equal(matrix.T.array(), w.T)
    for array in (matrix.bits, matrix.array()):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    assert copy.deepcopy(matrix) is matrix
    assert (matrix.shape, matrix.T.shape, matrix.size, matrix.ndim) == ((4, 6), (6, 4), 24, 2)
    for same in (pickle.loads(pickle.dumps(matrix)), pickle.loads(pickle.dumps(matrix.T)).T):
        assert_array_equal(same.bits, matrix.bits)
        assert same.shape == matrix.shape
    assert matrix.nbytes == 48
    assert repr(matrix.T) == "BFloat16Matrix(6, 4, transposed)"


@pytest.mark.parametrize(
    ("array", "kind", "message"),
    [
        (np.ones((2, 3), int), TypeError, "float16, float32, float64 or bfloat16, not int64"),
        (np.ones((2, 3), np.longdouble), TypeError, "float16, float32, float64 or bfloat16"),
        ([[1.0]], TypeError, "takes an array of .*, not list"),
        (np.ma.array(np.ones((2, 3)), mask=True), TypeError, "not MaskedArray"),
        (minigrad.zeros(2, 3), TypeError, r"not Tensor; of a Tensor, pass .detach\(\)"),
        (np.ones(3), ValueError, r"not shape \(3,\)"),
        (np.ones((2, 0)), ValueError, r"not shape \(2, 0\)"),
    ],
)
def test_what_is_no_matrix_of_floats_is_refused(array, kind, message):
    with pytest.raises(kind, match=message):
        BFloat16Matrix.of(array)


def test_wrong_calls_are_refused(rng):
    matrix = BFloat16Matrix.of(np.ones((2, 3)))
    with pytest.raises(TypeError, match="BFloat16Matrix: takes an array of uint16, not int16"):
        BFloat16Matrix(np.ones((2, 3), np.int16))
    with pytest.raises(ValueError, match=r"does not fit a matrix of shape \(2, 3\)"):
        matrix.matmul(np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"a matrix of shape \(3, 2\); it must be \(n, 3\)"):
        matrix.matmul(np.ones((4, 2)), transposed=True)
    with pytest.raises(TypeError, match="real numbers, not complex128"):
        matrix.matmul(np.ones((4, 2), complex))
    with pytest.raises(ValueError, match="not in a matrix of 2"):
        matrix.rows(0, 3)
    with pytest.raises(ValueError, match="cannot be read as int64"):
        matrix.dense(int)
    for wrong in (np.ones((2, 3)), NF4Matrix.of(np.ones((2, 3))), None):
        with pytest.raises(TypeError, match="bfloat16_linear: the weight is a BFloat16Matrix, not"):
            bfloat16_linear(minigrad.ones(4, 3), wrong)
    with pytest.raises(ValueError, match="bfloat16_linear: x of shape"):
        bfloat16_linear(np.ones((4, 2)), matrix)


def test_rounding_without_ml_dtypes_says_what_to_install(monkeypatch):
    bits = np.ones((2, 3), np.uint16)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match=r'pip install "minigrad-lora\[text\]"'):
        BFloat16Matrix.of(np.ones((2, 3)))
    assert BFloat16Matrix(bits).T.matmul(np.ones((1, 3), np.float32)).shape == (1, 2)


# ----------------------------------------------------------------------------------------------
# Products
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
@hypothesis.settings(max_examples=40)
@hypothesis.given(
    st.integers(0, narrow.FEW + 3),
    st.integers(1, 30),
    st.one_of(st.integers(1, 150), st.sampled_from([32, 64, 128, 256])),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 99),
)
def test_products_are_those_of_the_dense_matrix(make, n, rows, cols, dtype, seed):
    rng = np.random.default_rng(seed)
    matrix = make(draw(rng, (rows, cols)))
    for m in (matrix, matrix.T):
        x = draw(rng, (n, m.shape[0]), dtype)
        assert_array_equal(m.T.matmul(x, transposed=True), check_product(m, x))


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(("rows", "cols"), [(4, 1024), (61, 577), (7, 63)])
def test_a_row_has_the_same_bits_alone_and_among_few(make, rows, cols, rng):
    matrix = make(draw(rng, (rows, cols))).T
    x = draw(rng, (narrow.FEW if matrix.format == "bfloat16" else nf4.MOST, cols))
    if JIT_ENABLED and cols > 100:  # numpy, and gemm for what no kernel serves, have other sums
        served = not any(size in repr(matrix) for size in ("size=48", "size=7:", "size=7,"))
        for n in range(1, len(x)) if served else ():
            assert_array_equal(matrix.matmul(x[:n]), matrix.matmul(x)[:n])
    check_product(matrix, x)


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_operands_of_any_layout_are_served(make, rng):
    matrix, x = make(draw(rng, (70, 130))).T, draw(rng, (3, 130))
    right = matrix.matmul(x)
    for view in (np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2], x[::-1].copy()[::-1]):
        assert_allclose(matrix.matmul(view), right, rtol=0, atol=1e-4)  # another order of sums
    repeated = matrix.matmul(np.broadcast_to(x[0], (3, 130)))
    assert_allclose(repeated, right[[0, 0, 0]], rtol=0, atol=1e-4)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("n", [1, 4, 40])
def test_any_number_of_threads_gives_the_same_bits(make, n, same_on_threads, rng):
    matrix = make(draw(rng, (1501, 900)))
    x, g = draw(rng, (n, 900)), draw(rng, (n, 1501))
    same_on_threads(lambda: [matrix.T.matmul(x), matrix.matmul(g), matrix.dense()])


def test_a_nan_that_signals_is_a_nan_without_a_warning():
    signalling = np.full((2, 3), 0x7F800001, np.uint32).view(np.float32)
    assert np.isnan(BFloat16Matrix.of(signalling).array().astype(np.float32)).all()


def test_one_infinite_number_is_in_the_products_that_have_it(rng):
    w, x = draw(rng, (9, 37)), draw(rng, (5, 37))
    for column in range(37):
        infinite = w.copy()
        infinite[2, column] = np.inf
        matrix = BFloat16Matrix.of(infinite).T
        with np.errstate(invalid="ignore"):
            assert_array_equal(np.isposinf(matrix.matmul(abs(x))), [[i == 2 for i in range(9)]] * 5)
        given = abs(x)
        given[3, column] = np.inf
        for make in FORMATS.values():
            with np.errstate(invalid="ignore"):  # a level may be 0
                found = make(abs(w) + np.float32(0.1)).T.matmul(given)
            assert not np.isfinite(found[3]).any()
            assert np.isfinite(found[[0, 1, 2, 4]]).all()


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.bool_, np.longdouble])
def test_other_numbers_are_computed_as_numpy_does_and_float16_in_float32(dtype, rng):
    matrix = BFloat16Matrix.of(draw(rng, (40, 30)))
    x = rng.integers(0, 2, (5, 40)).astype(dtype)
    for m, given in ((matrix, x), (matrix.T, x[:, :30])):
        out = m.matmul(given)
        assert out.dtype == (dtype if np.dtype(dtype).kind == "f" else np.result_type(dtype, "f4"))
        right = given.astype(np.float64) @ m.dense(np.float64)
        eps = np.finfo(out.dtype).eps
        assert_allclose(out.astype(np.float64), right, rtol=eps, atol=max(eps / 8, 1e-5))


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_gradients_are_those_of_the_dense_matrix(make, rng):
    matrix = make(draw(rng, (20, 33)))
    op = bfloat16_linear if isinstance(matrix, BFloat16Matrix) else minigrad.nf4_linear
    found, right = [], []
    values, bias = rng.standard_normal((2, 3, 33)), rng.standard_normal(20)
    for results, call in (
        (found, lambda x, b: op(x, matrix, b)),
        (right, lambda x, b: minigrad.linear(x, matrix.dense(np.float64), b)),
    ):
        x, b = (minigrad.tensor(array, requires_grad=True) for array in (values, bias))
        first = minigrad.grad((minigrad.tanh(call(x, b)) ** 2).sum(), [x, b], create_graph=True)
        results += [*first, minigrad.grad((first[0] ** 2).sum(), x)]
    for one, other in zip(found, right, strict=True):
        assert_allclose(one.data, other.data, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [BFloat16Matrix.of, NF4Matrix.of])
@pytest.mark.parametrize(
    ("n", "shape", "share"),
    [
        (1, (4096, 1024), 0.01),
        pytest.param(64, (8192, 2048), 0.2, marks=pytest.mark.full),
    ],
)
@needs_jit
def test_a_product_holds_no_dense_copy_and_one_of_few_rows_no_floats(make, n, shape, share, rng):
    w = draw(rng, shape)
    matrix, x = make(w).T, draw(rng, (n, shape[1]))
    matrix.matmul(x)  # what is made once and for all
    tracemalloc.start()
    try:
        matrix.matmul(x)
        assert tracemalloc.get_traced_memory()[1] < share * w.nbytes
    finally:
        tracemalloc.stop()


# ----------------------------------------------------------------------------------------------
# The edge of memory, and other processors
# ----------------------------------------------------------------------------------------------

AT_THE_EDGE = """
    import numpy as np
    from minigrad.kernels.bfloat16 import BFloat16Matrix
    from minigrad.kernels.nf4 import NF4Matrix
    from minigrad.kernels.vector import VECTOR
    from tests.guarded import guarded_copy, new_arrays_guarded

    rng = np.random.default_rng(0)

    def moved(array):
        return guarded_copy(array, rng.integers(2))

    for i in range(120):
        n, rows, cols = (int(rng.integers(1, most)) for most in (7, 12, 150))
        w, x = (rng.standard_normal(s).astype(np.float32) for s in ((rows, cols), (n, cols)))
        four = NF4Matrix.of(w, (32, 64, 200)[i % 3], bool(i % 2))
        arrays = {name: moved(array) for name, array in four.arrays().items()}
        for plain, matrix in (
            (four, NF4Matrix.from_arrays(arrays)),
            (BFloat16Matrix.of(w), BFloat16Matrix(moved(BFloat16Matrix.of(w).bits))),
        ):
            right = x.astype(np.float64) @ plain.dense(np.float64).T
            matrix.T.matmul(x)  # compiles, which takes numpy as it is
            with new_arrays_guarded(rng):
                found = matrix.T.matmul(moved(x))
                again = matrix.rows(0, rows)
            assert np.abs(found - right).max() < 1e-4, (i, matrix, n)  # sums of 150 terms
            assert (again == plain.dense()).all(), i
    print("done", VECTOR)
"""


@pytest.mark.full
@needs_jit
@on_linux
def test_nothing_beyond_the_arrays_is_read_or_written(tmp_path):
    assert run_python(AT_THE_EDGE, cwd=tmp_path).startswith("done")


@pytest.mark.full
@needs_jit
@on_x86
@on_linux
@pytest.mark.parametrize(("host", "width"), [("AVX2", "32"), ("SSE2", "16")])
def test_other_hosts_compute_the_same_and_read_nothing_beyond(host, width, tmp_path):
    assert run_python(AT_THE_EDGE, cwd=tmp_path, **HOSTS[host]) == f"done {width}"


def test_a_matrix_is_no_parameter_of_a_model():
    class Model(nn.Module):
        def __init__(self):
            self.weight = BFloat16Matrix.of(np.ones((2, 3)))

    assert list(Model().parameters()) == []
