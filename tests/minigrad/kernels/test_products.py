"""The compiled products against numpy, at the edges of memory and across processes."""

import os
import re
import threading

import hypothesis
import hypothesis.strategies as st
import numba
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp

import minigrad
from minigrad.kernels.gemm import PRODUCTS, matmul
from minigrad.kernels.gemm.blocking import block_sizes
from minigrad.kernels.gemm.microkernel import tile_shape
from minigrad.kernels.jit import JIT_ENABLED
from minigrad.kernels.threads import get_num_threads, set_num_threads
from tests.minigrad.kernels.processes import run_python

FLOATS = (np.float32, np.float64)
needs_jit = pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled kernel to test")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture
def threads():
    """Set the number of threads within a test; it is put back after it."""
    before = get_num_threads()
    yield set_num_threads
    set_num_threads(before)


def assert_product(x, y, out=None):
    """That matmul(x, y) is the product, to within a few roundings of each sum."""
    out = matmul(x, y) if out is None else out
    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
    exact = np.matmul(wide_x, wide_y)
    # |error| <= (number of roundings) * eps * (sum of absolute values), and mostly far below
    bound = (x.shape[-1] + 2) * np.finfo(x.dtype).eps * np.matmul(abs(wide_x), abs(wide_y))
    assert out.dtype == x.dtype
    assert out.shape == exact.shape
    assert out.flags.c_contiguous
    assert (abs(out - exact) <= bound).all()


# Shapes: one for each way through the blocks.


def shapes():
    tile = tile_shape(4)
    MR, NR = tile.MR, tile.NR
    KC, NC = block_sizes(4)[5:7]
    return [
        (1, 1, 1),
        (1, 7, 1),
        (MR, 5, NR),
        (MR - 1, 3, NR - 1),
        (MR + 1, 4, NR + 1),
        (2 * MR + 3, tile.VL + 1, 2 * NR + 5),
        (3, 700, 200),  # few rows: B is read in place
        (100, 64, 3),  # few columns: A is read in place
        (5 * MR + 2, 33, 6 * NR + 9),  # A and B are packed
        (9 * MR, 20, 5 * NR),  # more rows than one block of A
        (17, KC + 9, 2 * NR),  # two blocks of k
        (4, 2 * KC + 1, 5),
        (15, 3, NC + NR + 1),  # two blocks of columns
        (150, 130, 140),  # cut into pieces
        (2, 1500, 1100),  # ... of columns
        (90, 60, 5),  # turned on its side
        (1200, 300, 7),  # ... and cut into pieces
    ]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "k", "n"), shapes())
def test_product_of_each_shape_and_orientation(m, k, n, dtype, rng):
    x, y = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    for left in (x, x.T.copy().T):
        for right in (y, y.T.copy().T):
            assert_product(left, right)


VIEWS = {
    "contiguous": lambda a: a.copy(),
    "fortran": lambda a: np.asfortranarray(a),
    "rows reversed": lambda a: a[::-1].copy()[::-1],
    "columns reversed": lambda a: a[:, ::-1].copy()[:, ::-1],
    "transposed and reversed": lambda a: a.T[::-1, ::-1].copy()[::-1, ::-1].T,
    "every third column": lambda a: np.repeat(a, 3, axis=1)[:, 1::3],
    "every second row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "read-only": lambda a: _read_only(a),
    "misaligned": lambda a: _misaligned(a),
    "field of a packed record": lambda a: _record_field(a),
}


def _read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def _misaligned(a):
    raw = b"?" + a.tobytes()
    return np.frombuffer(raw, a.dtype, offset=1).reshape(a.shape)


def _record_field(a):
    record = np.zeros(a.shape, np.dtype([("flag", np.int8), ("value", a.dtype)]))
    record["value"] = a
    return record["value"]


@needs_jit  # BLAS sums in another order for another layout
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("left", "right"),
    [
        *[(view, "contiguous") for view in VIEWS],
        *[("contiguous", view) for view in VIEWS if view != "contiguous"],
        ("fortran", "fortran"),
    ],
)
def test_product_of_views_has_the_bits_of_the_product_of_copies(left, right, dtype, rng):
    x, y = rng.standard_normal((37, 45)).astype(dtype), rng.standard_normal((45, 70)).astype(dtype)
    view_x, view_y = VIEWS[left](x), VIEWS[right](y)
    np.testing.assert_array_equal(view_x, x)
    np.testing.assert_array_equal(matmul(view_x, view_y), matmul(x, y))


def test_product_of_broadcast_operands(rng):
    row = np.broadcast_to(rng.standard_normal(50), (40, 50))
    column = np.broadcast_to(rng.standard_normal((50, 1)), (50, 60))
    number = np.broadcast_to(np.float64(3.0), (50, 60))
    assert_product(row, column)
    assert_product(row, number)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("x_shape", "y_shape"),
    [
        ((5, 3, 4), (4, 6)),
        ((2, 5, 3, 4), (4, 6)),
        ((3, 4), (5, 4, 6)),
        ((5, 3, 4), (5, 4, 6)),
        ((2, 1, 3, 4), (5, 4, 6)),
        ((2, 1, 3, 4), (1, 5, 4, 6)),
        ((1, 3, 4), (1, 1, 4, 6)),
        ((40, 20, 30), (40, 30, 50)),  # enough for threads to take whole products
        ((3, 80, 90), (3, 90, 70)),  # enough for them to share each
        ((4, 30, 20), (1, 20, 3)),  # turned on the side
        ((4, 30, 20), (4, 20, 3)),
        ((0, 3, 4), (4, 6)),
        ((2, 0, 3, 4), (1, 4, 6)),
    ],
)
def test_leading_axes_broadcast(x_shape, y_shape, dtype, rng):
    x, y = rng.standard_normal(x_shape).astype(dtype), rng.standard_normal(y_shape).astype(dtype)
    assert_product(x, y)
    assert_product(x, np.swapaxes(np.swapaxes(y, -1, -2).copy(), -1, -2))
    assert_product(x[..., ::-1], y)
    assert_product(np.moveaxis(np.moveaxis(x, 0, -2).copy(), -2, 0), y)
    assert_product(x[::-1], y)


@needs_jit
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [1, 10, 100, 700])
@pytest.mark.parametrize("m", [1, 2, 17, 40])
def test_the_step_of_an_axis_of_size_1_has_no_influence(m, k, dtype, rng):
    """Row by row dot products are often written `x[:, None, :] @ y[:, :, None]`."""
    x, y = rng.standard_normal((6, m, k)).astype(dtype), rng.standard_normal((6, k)).astype(dtype)
    columns = y.reshape(6, k, 1)
    expected = matmul(x, columns)
    assert_product(x, columns)
    for same in (y[:, :, None], columns.swapaxes(1, 2).copy().swapaxes(1, 2)):
        assert same.strides != columns.strides or k == 1
        np.testing.assert_array_equal(matmul(x, same), expected)
        turned = matmul(same.swapaxes(1, 2), x.swapaxes(1, 2))
        np.testing.assert_array_equal(turned.swapaxes(1, 2), expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "k", "n"), [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0), (2, 0, 0)])
def test_empty_products(m, k, n, dtype):
    for batch in ((), (0,), (2,), (2, 3)):
        x, y = np.ones((*batch, m, k), dtype), np.ones((*batch, k, n), dtype)
        out = matmul(x, y)
        np.testing.assert_array_equal(out, np.zeros((*batch, m, n)))
        assert out.dtype == dtype


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("m", "k", "n"), [(3, 4, 5), (40, 50, 170)])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the reference
def test_a_value_that_is_not_finite_spreads_to_its_row_and_column_only(value, m, k, n, dtype, rng):
    x, y = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    x[m - 1, 1] = value
    y[0, n - 2] = value
    y[1, 0] = 0.0  # inf * 0 is not a number
    expected = x.astype(np.float64) @ y.astype(np.float64)
    out = matmul(x, y)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(out), np.isinf(expected))
    finite = np.isfinite(expected)
    np.testing.assert_allclose(out[finite], expected[finite], rtol=1e-3)


@pytest.mark.parametrize("dtype", FLOATS)
def test_subnormal_numbers_are_kept(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    out = matmul(np.full((20, 1), tiny, dtype), np.ones((1, 200), dtype))
    np.testing.assert_array_equal(out, np.full((20, 200), tiny))


strides = st.sampled_from([-3, -2, -1, 1, 2, 3])


@st.composite
def matrices(draw, rows, columns, dtype):
    """A matrix somewhere inside a larger array, with its base."""
    steps = draw(strides), draw(strides)
    margins = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    extent = [
        n * abs(step) + 2 * margin
        for n, step, margin in zip((rows, columns), steps, margins, strict=True)
    ]
    seed = draw(st.integers(0, 2**32 - 1))
    base = np.random.default_rng(seed).uniform(-2, 2, extent).astype(dtype)
    inner = base[tuple(slice(margin, extent[i] - margin) for i, margin in enumerate(margins))]
    view = inner[:: steps[0], :: steps[1]]
    if draw(st.booleans()):
        view = np.ascontiguousarray(view.T).T
    return view


@st.composite
def products(draw):
    dtype = draw(st.sampled_from(FLOATS))
    m, k, n = draw(st.tuples(*[st.integers(1, 90)] * 3))
    return draw(matrices(m, k, dtype)), draw(matrices(k, n, dtype))


@hypothesis.given(products())
@hypothesis.settings(max_examples=150)
def test_product_of_any_two_views(pair):
    assert_product(*pair)


@hypothesis.given(
    hnp.mutually_broadcastable_shapes(signature="(m,k),(k,n)->(m,n)", max_dims=3, max_side=7),
    st.sampled_from(FLOATS),
    st.integers(0, 2**32 - 1),
)
@hypothesis.settings(max_examples=100)
def test_product_of_any_stacks(shapes, dtype, seed):
    rng = np.random.default_rng(seed)
    x, y = (rng.standard_normal(shape).astype(dtype) for shape in shapes.input_shapes)
    assert_product(x, y)


# Memory: what is not the operand's is not read, what is not the output's is not written.


@pytest.mark.sampled(5)
@needs_jit
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "k", "n"), [(5, 9, 7), (15, 33, 45), (30, 40, 170), (150, 130, 140)])
@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("parallel", [False, True])
def test_nothing_is_written_outside_the_output(m, k, n, count, dtype, parallel, threads, rng):
    threads(numba.config.NUMBA_NUM_THREADS if parallel else 1)
    x = rng.standard_normal((count, m, k)).astype(dtype)
    y = rng.standard_normal((count, k, n)).astype(dtype)
    border, canary = 64, 12345.0
    buffer = np.full(count * m * n + 2 * border, canary, dtype)
    out = buffer[border:-border].reshape(count, m, n)
    batch = [(count, x.strides[0], y.strides[0])]
    multiply_batch = PRODUCTS[np.dtype(dtype)].multiply_batch
    multiply_batch(x[0], y[0], out[0], False, count * m * n * k, count, tuple(batch))
    assert_product(x, y, out)
    assert (buffer[:border] == canary).all()
    assert (buffer[-border:] == canary).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("transposed", [False, True])
def test_what_lies_around_the_operands_has_no_influence(dtype, transposed, rng):
    for m, k, n in [(5, 9, 7), (15, 33, 45), (30, 40, 170)]:
        x = np.full((m + 40, k + 40), np.nan, dtype)
        y = np.full((k + 40, n + 40), np.nan, dtype)
        if transposed:
            x, y = x.T.copy().T, y.T.copy().T
        inner_x, inner_y = x[20 : 20 + m, 20 : 20 + k], y[20 : 20 + k, 20 : 20 + n]
        inner_x[:], inner_y[:] = rng.standard_normal((m, k)), rng.standard_normal((k, n))
        assert_product(inner_x, inner_y)


# Threads.


@needs_jit
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("x_shape", "y_shape"),
    [
        ((150, 130), (130, 140)),
        ((2, 1500), (1500, 1100)),
        ((300, 1100), (1100, 90)),
        ((40, 20, 30), (40, 30, 50)),
        ((3, 80, 90), (3, 90, 70)),
        ((1200, 300), (300, 7)),
    ],
)
def test_bits_do_not_depend_on_the_number_of_threads(x_shape, y_shape, dtype, threads, rng):
    x, y = rng.standard_normal(x_shape).astype(dtype), rng.standard_normal(y_shape).astype(dtype)
    threads(1)
    alone = matmul(x, y)
    for n in range(2, numba.config.NUMBA_NUM_THREADS + 1):
        threads(n)
        np.testing.assert_array_equal(matmul(x, y), alone)


@pytest.mark.parametrize("wrong", [0, -1, 10**6, 1.5, "2", None])
def test_a_wrong_number_of_threads_is_refused(wrong):
    with pytest.raises(ValueError, match=re.escape(f"set_num_threads: got {wrong!r}, expected")):
        set_num_threads(wrong)


def test_number_of_threads_holds_in_every_python_thread(threads):
    threads(1)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [1]


@needs_jit
def test_numba_setting_of_the_caller_is_left_alone(threads, rng):
    threads(numba.config.NUMBA_NUM_THREADS)
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        matmul(rng.standard_normal((150, 130)), rng.standard_normal((130, 140)))
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(before)


PRODUCT = """
    import numpy as np
    from minigrad.kernels.gemm import matmul
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((160, 170)), rng.standard_normal((170, 180))
    big_x, big_y = rng.standard_normal((500, 510)), rng.standard_normal((510, 520))
    def right():
        return np.allclose(matmul(x, y), x @ y) and np.allclose(matmul(big_x, big_y), big_x @ big_y)
"""


LAYERS = ["omp", "workqueue"]  # of which numba takes the first that there is, by default


def layer_environment(layer):
    if layer == "omp" and not _has_omp():
        pytest.skip("this numba has no OpenMP layer")
    return {"NUMBA_THREADING_LAYER": layer}


def _has_omp():
    try:
        from numba.np.ufunc import omppool  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.full
@needs_jit
@pytest.mark.parametrize("layer", LAYERS)
def test_two_python_threads_at_once(layer):
    script = (
        PRODUCT
        + """
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(4) as pool:
        print(all(pool.map(lambda _: right(), range(80))))
    """
    )
    assert run_python(script, **layer_environment(layer)) == "True"


@pytest.mark.full
@needs_jit
@needs_fork
@pytest.mark.parametrize("layer", LAYERS)
def test_a_forked_child_goes_on_multiplying(layer):
    script = (
        PRODUCT
        + """
    import os
    assert right()
    child = os.fork()
    if child == 0:
        os._exit(0 if right() else 1)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), right())
    """
    )
    assert run_python(script, **layer_environment(layer)) == "0 True"


@pytest.mark.full
@needs_jit
@pytest.mark.skipif(
    numba.config.NUMBA_NUM_THREADS < 2, reason="one thread needs no pool of threads"
)
def test_openmp_is_preferred_and_the_choice_of_the_user_is_respected():
    script = (
        PRODUCT
        + """
    import numba
    right()
    print(numba.threading_layer())
    """
    )
    if _has_omp():
        assert run_python(script, NUMBA_THREADING_LAYER=None) == "omp"
    assert run_python(script, NUMBA_THREADING_LAYER="workqueue") == "workqueue"


# Doing without.


@pytest.mark.full
def test_works_without_jit():
    script = (
        PRODUCT
        + """
    from minigrad.kernels.jit import JIT_ENABLED
    print(JIT_ENABLED, right())
    """
    )
    assert run_python(script, NUMBA_DISABLE_JIT="1") == "False True"


# What is not ours, and what is wrong.


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.arange(6).reshape(2, 3), np.arange(12).reshape(3, 4)),
        (np.ones((2, 3), np.float32), np.ones((3, 4), np.float64)),
        (np.ones((2, 3), np.float16), np.ones((3, 4), np.float16)),
        (np.ones((2, 3), ">f4"), np.ones((3, 4), ">f4")),
        (np.ones((2, 3), complex), np.ones((3, 4))),
        (np.ones((2, 3), bool), np.ones((3, 4), bool)),
        (np.ones(3), np.ones((3, 4))),
        (np.ones((2, 3)), np.ones(3)),
        (np.ones(3), np.ones(3)),
    ],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)
def test_other_operands_are_left_to_numpy(x, y):
    out, expected = matmul(x, y), np.matmul(x, y)
    assert np.asarray(out).dtype == expected.dtype
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_shapes_that_do_not_align_are_refused(batch):
    message = re.escape(f"matmul: shapes {(*batch, 3, 4)} and {(5, 4)} do not align: 4 != 5")
    with pytest.raises(ValueError, match=message + ".*transpose"):
        matmul(np.ones((*batch, 3, 4)), np.ones((5, 4)))


def test_leading_axes_that_do_not_broadcast_are_refused():
    with pytest.raises(ValueError, match=re.escape("(2,) and (3,) must agree")):
        matmul(np.ones((2, 3, 4)), np.ones((3, 4, 5)))


def test_a_bias_of_a_wider_dtype_is_added_as_if_after_the_product():
    x, w, b = np.ones((2, 3), np.float32), np.ones((3, 3), np.float32), np.full(3, 1e-9)
    assert minigrad.linear(x, w, b).dtype == np.float64
    integers = np.ones((2, 2), np.int64)
    assert (minigrad.linear(integers, integers, np.full(2, 0.5)) == 2.5).all()
