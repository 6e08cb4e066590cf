"""The ways of a matrix product: which a shape takes, `out` and `add`, memory, accuracy, hosts."""

import re
import sys

import numpy as np
import pytest

from minigrad.kernels.gemm import PRODUCTS, blocking, matmul, skinny
from minigrad.kernels.gemm.blocking import USUAL
from minigrad.kernels.gemm.dispatch import (
    DEEP,
    LONG,
    PIECES,
    SPLIT,
    STREAMED,
    TALL,
    THREADS_FROM,
)
from minigrad.kernels.gemm.microkernel import tile_shape
from minigrad.kernels.jit import JIT_ENABLED
from minigrad.kernels.threads import MIN_SECONDS_FOR_THREADS, get_num_threads, set_num_threads
from minigrad.kernels.vector import MASKS_ARE_CHEAP, REGISTERS
from tests.hosts import HOSTS, on_x86
from tests.minigrad.kernels.processes import run_python

FLOATS = (np.float32, np.float64)
needs_jit = pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled kernel to test")


def operands(m, k, n, layout, dtype, rng):
    """x and y, of which a T in the layout says that the columns are contiguous."""
    x = rng.standard_normal((m, k) if layout[0] == "N" else (k, m)).astype(dtype)
    y = rng.standard_normal((k, n) if layout[1] == "N" else (n, k)).astype(dtype)
    return x if layout[0] == "N" else x.T, y if layout[1] == "N" else y.T


def assert_close(out, x, y, start=0.0):
    """That out is start + x @ y, to within a few roundings of each sum."""
    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
    size = abs(wide_x) @ abs(wide_y) + abs(start)
    bound = (x.shape[-1] + 3) * np.finfo(out.dtype).eps * size
    assert (abs(out - (wide_x @ wide_y + start)) <= bound).all()


FEW = -1  # stands for as many rows as do not fill a vector, whose length is the host's
TILE = -2  # and this for as many as the register tile has columns
MOST = -3  # and this for the most columns that `dots` takes, if rows of x collide in the cache

# (m, k, n), layout, the loop that is meant for it, and a shape next to it that takes another.
LOOPS = [
    ((100, 200, FEW), "NN", "dots", (100, 200, 40)),
    ((100, 200, FEW), "NT", "dots", (100, LONG - 1, FEW)),
    ((FEW, 200, 100), "NT", "dots", (FEW, LONG - 1, 100)),
    ((FEW, 200, 100), "TT", "dots", (FEW, 200, TALL - 1)),
    ((70, 4 * DEEP, 1), "NN", "dots", (70, LONG - 1, 1)),
    ((40, 2 * DEEP, MOST), "NT", "dots", (40, 2 * DEEP + 3, TILE)),
    ((1, 70_001, 1), "NN", "inner", (1, LONG - 1, 1)),
    ((1, DEEP, 1), "TT", "inner", (1, DEEP, 2)),
    ((8, PIECES * SPLIT + 5, 1), "NT", "dots", (40, PIECES * SPLIT + 5, 40)),
    ((2, 200_000, 1), "NN", "dots", (2, 200_000, 40)),
    ((1, 100, 300), "NN", "sweep", (2, 100, 40)),
    ((300, 101, 1), "TN", "sweep", (40, 101, 2)),
    ((FEW, 300, 400), "NN", "stream", (FEW, 300, 20)),
    ((FEW, 300, 400), "TN", "stream", (FEW, LONG - 1, 400)),
    ((400, 300, FEW), "TT", "stream", (20, 300, FEW)),
    ((STREAMED, LONG + 1, 800), "NN", "stream", (STREAMED + 1, LONG + 1, 800)),
    ((800, DEEP, STREAMED), "TN", "stream", (800, DEEP - 1, STREAMED)),
    ((20, PIECES * SPLIT + 5, 17), "NN", "split", (20, PIECES * SPLIT - 1, 17)),
]


def sizes(shape, dtype):
    """The numbers of rows and columns that a shape has on this host."""
    tile = tile_shape(np.dtype(dtype).itemsize)
    own = {FEW: tile.VL - 1, TILE: tile.NR, MOST: tile.VL}
    return [own.get(size, size) for size in shape]


@needs_jit
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("shape", "layout", "way", "other"), LOOPS)
def test_way_of_a_shape(shape, layout, way, other, dtype, rng, monkeypatch):
    kernel = PRODUCTS[np.dtype(dtype)]
    if FEW in shape and kernel.tile.VL < 3:
        pytest.skip("on this host a single row fills half a vector, and takes a loop of its own")
    shape, other = sizes(shape, dtype), sizes(other, dtype)
    taken = []

    def note(loop, name):
        alone = loop.alone
        return lambda *arguments: (taken.append(name), alone(*arguments))

    before = get_num_threads()
    set_num_threads(1)
    try:
        for name in ("dots", "inner", "stream", "sweep"):
            loop = getattr(kernel, name)
            monkeypatch.setitem(loop.__dict__, "alone", note(loop, name))
        batch = kernel.multiply_batch  # of pieces of k, if the sum is split
        monkeypatch.setattr(kernel, "multiply_batch", lambda *a: (taken.append("split"), batch(*a)))
        x, y = operands(*shape, layout, dtype, rng)
        out = matmul(x, y)
        assert taken == [way]
        assert_close(out, x, y)
        matmul(*operands(*other, layout, dtype, rng))
        assert way not in taken[1:]
    finally:
        set_num_threads(before)


@needs_jit
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", ["NN", "NT", "TN", "TT"])
@pytest.mark.parametrize(
    "shape", [(128, 128, 128), (100, 70, 33), (31, 64, 300), (300, 200, 160), (300, 600, 400)]
)
def test_any_number_of_threads_gives_the_same_bits(shape, layout, dtype, rng):
    """Few rows, one block, and several blocks, shared by up to eight threads."""
    kernel = PRODUCTS[np.dtype(dtype)]
    x, y = operands(*shape, layout, dtype, rng)
    bias = rng.standard_normal(y.shape[1]).astype(dtype)
    start = rng.standard_normal((x.shape[0], y.shape[1])).astype(dtype)
    for add in (False, True):
        alone = start.copy()
        kernel.gemm.alone(x, y, bias, alone, kernel.plans[add])
        assert_close(alone, x, y, bias + start * add)
        for threads in (2, 3, 8):
            shared = start.copy()
            kernel.gemm.shared(threads, x, y, bias, shared, kernel.plans[add])
            np.testing.assert_array_equal(shared, alone)


@needs_jit
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [17, 31, 96, 144, 321])
@pytest.mark.parametrize("m", [2, 7, 16])
def test_a_streamed_product_may_begin_anywhere_in_a_cache_line(m, n, dtype, rng):
    """Its first columns are apart, so that the others begin at a line; pieces may have none."""
    kernel, k = PRODUCTS[np.dtype(dtype)], 70
    x, y = operands(m, k, n, "NN", dtype, rng)
    if not MASKS_ARE_CHEAP and n % kernel.tile.NR:
        pytest.skip("without masks, streamed matrices have complete panels")
    expected = matmul(x, y)
    assert_close(expected, x, y)
    lines = 64 // y.itemsize
    for step in (n, -(-n // lines) * lines):  # the second one begins each row at the same place
        memory = np.zeros(m * step + 2 * lines, dtype)
        for first in range(lines):
            out = memory[first : first + m * step].reshape(m, step)[:, :n]
            bits = None
            for pieces in (1, 2, 3, 24):
                memory[:] = 7
                for add in (False, True):
                    kernel.stream.shared(pieces, x, y, out, kernel.plans[0], add)
                bits = out.copy() if bits is None else bits
                np.testing.assert_array_equal(out, bits)
                assert_close(out, x, y, expected)
                out[:] = 7
                assert (memory == 7).all()


@needs_jit
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("m", "k"), [(40, 9), (5, 40), (300, 100)])
def test_a_wide_product_may_begin_anywhere_in_a_cache_line(m, k, dtype, rng):
    """Of a product with few steps of k, the first columns are apart, as in a streamed one."""
    kernel, n = PRODUCTS[np.dtype(dtype)], 1040
    x, y = operands(m, k, n, "NN", dtype, rng)
    lines = 64 // y.itemsize
    memory = np.zeros(m * n + 2 * lines, dtype)
    bits = {}
    for first in range(lines):
        out = memory[first : first + m * n].reshape(m, n)
        for bias in (kernel.no_bias, rng.standard_normal(n).astype(dtype)):
            for add in (False, True):
                for pieces in (1, 3):
                    memory[:] = 7
                    kernel.gemm.shared(pieces, x, y, bias, out, kernel.plans[add])
                    assert_close(out, x, y, 7 * add + (bias if bias.size else 0))
                    if not bias.size:
                        np.testing.assert_array_equal(out, bits.setdefault(add, out.copy()))
                    out[:] = 7
                    assert (memory == 7).all()


@needs_jit
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(128, 128, 128), (200, 160, 96), (300, 200, 600)])
def test_rows_at_any_distance_give_the_same_bits(shape, dtype, rng):
    """Rows at a distance of a power of two are packed, where others are read in place."""
    x, y = operands(*shape, "NN", dtype, rng)
    expected = matmul(x, y)
    assert_close(expected, x, y)
    for bytes_apart in (4800, 4864, 8192):
        wide = [np.zeros((len(each), bytes_apart // each.itemsize), dtype) for each in (x, y)]
        for each, operand in zip(wide, (x, y), strict=True):
            each[:, : operand.shape[1]] = operand
        far_x, far_y = wide[0][:, : x.shape[1]], wide[1][:, : y.shape[1]]
        for pair in ((far_x, y), (x, far_y), (far_x, far_y)):
            np.testing.assert_array_equal(matmul(*pair), expected)


@needs_jit
@pytest.mark.parametrize("layout", ["NN", "NT"])
@pytest.mark.parametrize(
    ("m", "n", "worth_threads"), [(1, 576, True), (3, 1536, True), (1, 100, False), (3, 144, False)]
)
def test_a_thin_product_takes_as_long_as_its_matrix_is_read(
    m, n, worth_threads, layout, rng, monkeypatch
):
    kernel, seconds = PRODUCTS[np.dtype(np.float32)], []
    for name in ("dots", "stream", "sweep"):
        loop = getattr(kernel, name)
        monkeypatch.setattr(kernel, name, lambda s, *a, loop=loop: (seconds.append(s), loop(s, *a)))
    matmul(*operands(m, 576, n, layout, np.float32, rng))
    assert [guess >= MIN_SECONDS_FOR_THREADS for guess in seconds] == [worth_threads]


def in_layouts(shapes):
    """Each shape in each layout, of which NN, NT and that of its row of LOOPS are quick."""
    own = {(shape, layout) for shape, layout, *_ in LOOPS}
    return [
        (shape, layout)
        if layout in ("NN", "NT") or (shape, layout) in own
        else pytest.param(shape, layout, marks=pytest.mark.full)
        for shape in dict.fromkeys(shapes)
        for layout in ("NN", "NT", "TN", "TT")
    ]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("shape", "layout"),
    in_layouts([*[shape for shape, *_ in LOOPS], (40, 50, 70), (1, 1, 1), (130, 1100, 45)]),
)
def test_add_adds_to_what_is_there_and_out_replaces_it(shape, layout, dtype, rng):
    m, k, n = sizes(shape, dtype)
    x, y = operands(m, k, n, layout, dtype, rng)
    start = rng.standard_normal((m, n)).astype(dtype)
    out = start.copy()
    assert matmul(x, y, out=out, add=True) is out
    assert_close(out, x, y, start.astype(np.float64))
    out[...] = np.nan  # is not read
    assert matmul(x, y, out=out) is out
    np.testing.assert_array_equal(out, matmul(x, y))


@pytest.mark.parametrize("shape", [(64, 0, 64), (0, 64, 64), (64, 64, 0), (100, 0, 3), (1, 0, 1)])
def test_empty_products(shape):
    m, k, n = shape
    out = np.full((m, n), np.nan, np.float32)
    x, y = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    matmul(x, y, out=out)
    np.testing.assert_array_equal(out, np.zeros((m, n)))
    np.testing.assert_array_equal(matmul(x, y, out=out + 1, add=True), np.ones((m, n)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_out_and_add_of_batches(dtype, rng):
    x, y = (
        rng.standard_normal((3, 4, 5)).astype(dtype),
        rng.standard_normal((3, 5, 6)).astype(dtype),
    )
    empty = np.ones((4, 6), dtype)
    matmul(x[0, :, :0], y[0, :0], out=empty, add=True)
    assert (empty == 1).all()
    matmul(x[0, :, :0], y[0, :0], out=empty)
    assert (empty == 0).all()
    for right in (y, y[:1], y[0]):
        out = np.ones((3, 4, 6), dtype)
        matmul(x, right, out=out, add=True)
        np.testing.assert_allclose(out, 1 + x @ right, rtol=1e-4)  # a sum of five numbers
        matmul(x, right, out=out)
        np.testing.assert_allclose(out, x @ right, rtol=1e-3, atol=1e-6)  # float32, cancellation
    out = np.ones((3, 4, 6), dtype)
    matmul(x[:, :, :0], y[:, :0], out=out, add=True)
    assert (out == 1).all()
    matmul(x[:, :, :0], y[:, :0], out=out)
    assert (out == 0).all()


# A bias: one shape for each way, and for blocks, panels and tiles of which there are several.
BLOCKS = [(40, 50, 70), (100, 200, 700), (30, 40, 4200)]
WITH_BIAS = [
    *[shape for shape, *_ in LOOPS],
    *[(1, 1, 1), (100, 20, 5), (100, 20, 16), (130, 1100, 45)],
    *BLOCKS,
]


def biases(n, dtype, rng):
    """The same row in several layouts; the first two have steps of one number and of three."""
    row = rng.standard_normal(n).astype(dtype)
    packed = np.empty(n, [("first", np.int8), ("row", dtype)])["row"]  # not aligned
    packed[...] = row
    wide = np.full((n, 3), np.nan, dtype)
    wide[:, 1] = row
    fixed = row[::-1].copy()
    fixed.flags.writeable = False
    return [row, wide[:, 1], packed, np.frombuffer(b"." + row.tobytes(), dtype, n, 1), fixed[::-1]]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("shape", "layout"), in_layouts(WITH_BIAS))
def test_a_bias_is_added_as_if_after_the_product(shape, layout, dtype, rng):
    m, k, n = sizes(shape, dtype)
    x, y = operands(m, k, n, layout, dtype, rng)
    rows = biases(n, dtype, rng)
    for bias in rows if shape in BLOCKS else rows[:2]:
        out = matmul(x, y, bias=bias)
        assert_close(out, np.hstack([x, np.ones_like(x[:, :1])]), np.vstack([y, bias]))
        np.testing.assert_array_equal(out, matmul(x, y) + bias)


@needs_jit
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(200, 300, 700), (700, 300, 90), (100, 1100, 400), (900, 99, 9)])
@pytest.mark.parametrize("layout", ["NT", "TN"])
def test_bits_with_a_bias_do_not_depend_on_the_number_of_threads(
    shape, layout, dtype, same_on_threads, rng
):
    x, y = operands(*shape, layout, dtype, rng)
    bias = rng.standard_normal(shape[2]).astype(dtype)
    assert (shape[0] * shape[1] * shape[2] >= THREADS_FROM) or shape[2] == 9
    (out,) = same_on_threads(lambda: [matmul(x, y, bias=bias)])
    np.testing.assert_array_equal(out, matmul(x, y) + bias)


@pytest.mark.parametrize("shape", [(64, 0, 64), (0, 64, 64), (64, 64, 0), (100, 0, 3), (1, 0, 1)])
def test_a_bias_of_an_empty_product(shape):
    m, k, n = shape
    x, y, bias = np.ones((m, k)), np.ones((k, n)), np.arange(n) + 1.0
    out = matmul(x, y, bias=bias)
    assert out.shape == (m, n)
    assert (out == bias).all()


@pytest.mark.parametrize(
    ("x", "y", "bias"),
    [
        (np.ones((2, 3), int), np.ones((3, 4), int), np.arange(4)),
        (np.ones((2, 3), np.float16), np.ones((3, 4), np.float16), np.ones(4, np.float16)),
        (np.ones((2, 3), np.float32), np.ones((3, 4)), np.arange(4.0)),
        (np.ones((2, 3)), np.ones((3, 4)), np.arange(4)),
        (np.ones((2, 3)), np.ones((3, 4)), [0.0, 1.0, 2.0, 3.0]),
        (np.ones((2, 3)), np.ones((3, 4)), np.arange(4.0).astype(">f8")),
        (np.ones((5, 2, 3)), np.ones((3, 4)), np.arange(4.0)),
        (np.ones((5, 2, 3)), np.ones((5, 3, 4)), np.arange(4.0)),
        (np.ones(3), np.ones((3, 4)), np.arange(4.0)),
        (np.ones((2, 3)), np.ones(3), 1.5),
    ],
)
def test_a_bias_that_no_kernel_serves_is_added_too(x, y, bias):
    out = matmul(x, y, bias=bias)
    assert out.dtype == np.result_type(x, y)
    np.testing.assert_array_equal(out, np.matmul(x, y) + np.asarray(bias))


@pytest.mark.parametrize(
    ("x", "y", "bias"),
    [
        (np.ones((20, 30)), np.ones((30, 40)), np.ones(30)),
        (np.ones((20, 30)), np.ones((30, 40)), np.ones((1, 40))),
        (np.ones((20, 30)), np.ones((30, 40)), np.float64(1)),
        (np.ones((20, 30)), np.ones((30, 40)), [1.0]),
        (np.ones((2, 3), int), np.ones((3, 4), int), np.ones(3, int)),
        (np.ones((4, 2, 3)), np.ones((3, 4)), np.ones((4, 2, 4))),
    ],
)
def test_a_bias_of_another_shape_is_refused(x, y, bias):
    message = f"a bias of shape {np.shape(bias)}, but to a product of shapes {x.shape} and "
    with pytest.raises(ValueError, match=re.escape(message)):
        matmul(x, y, bias=bias)


@pytest.mark.parametrize("dtype", [np.float64, int])
def test_a_bias_is_not_added_to_an_out(dtype):
    out = np.full((2, 4), 7, dtype)
    with pytest.raises(ValueError, match="a bias is added to a new array"):
        matmul(np.ones((2, 3), dtype), np.ones((3, 4), dtype), out=out, bias=np.ones(4, dtype))
    assert (out == 7).all()


def _refused():
    x, y = np.ones((3, 4)), np.ones((4, 5))
    frozen = np.ones((3, 5))
    frozen.flags.writeable = False
    block = np.ones(40)
    return [
        (x, y, np.ones((3, 4)), "out is a float64 array of shape (3, 4)"),
        (x, y, np.ones((3, 5), np.float32), "out is a float32 array"),
        (x, y, np.ones((3, 5), ">f8"), "out is a >f8 array"),
        (x, y, [[0.0] * 5] * 3, "out is a list"),
        (x, y, np.ones((5, 3)).T, "out must be C-contiguous"),
        (x, y, np.ones((3, 10))[:, ::2], "out must be C-contiguous"),
        (x, y, frozen, "out must be C-contiguous, aligned and writable"),
        (x, y, np.frombuffer(bytearray(121), np.float64, 15, 1).reshape(3, 5), "aligned"),
        (block[:12].reshape(3, 4), y, block[11:26].reshape(3, 5), "memory with the first"),
        (x, block[:20].reshape(4, 5), block[5:20].reshape(3, 5), "memory with the second"),
    ]


@pytest.mark.parametrize(("x", "y", "out", "message"), _refused())
@pytest.mark.parametrize("add", [False, True])
def test_an_out_that_cannot_take_the_product_is_refused_and_left_alone(x, y, out, message, add):
    before = np.array(out)
    with pytest.raises(ValueError, match=re.escape(message)):
        matmul(x, y, out=out, add=add)
    np.testing.assert_array_equal(np.array(out), before)


def test_interleaved_memory_is_not_shared_memory():
    block = np.ones((6, 5))
    out = block[1:2]
    matmul(np.ones((1, 3)), block[::2], out=out)
    np.testing.assert_array_equal(out, np.full((1, 5), 3.0))


def test_add_without_out_is_refused():
    with pytest.raises(ValueError, match="add=True adds to `out`, and there is none"):
        matmul(np.ones((2, 3)), np.ones((3, 4)), add=True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("shape", "layout"), [(shape, layout) for shape, layout, *_ in LOOPS])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, without JIT
def test_infinity_spreads_as_ieee_says(shape, layout, dtype, rng):
    m, k, n = sizes(shape, dtype)
    x, y = operands(m, k, n, layout, dtype, rng)
    x[m - 1, k - 1], y[k - 1, n - 1] = np.inf, 0.0
    out = matmul(x, y)
    assert np.isnan(out[m - 1, n - 1])  # inf * 0
    assert np.isinf(out[m - 1, : n - 1]).all()
    assert np.isfinite(out[: m - 1]).all()


@needs_jit
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("shape", "layout"),
    [((4096, 300, 5), "NN"), ((1, 1500, 4100), "NN"), ((600, 1024, 16), "NT"),
     ((20, PIECES * SPLIT + 5, 17), "NN"), ((16, 300, 2000), "NN")],
)  # fmt: skip
def test_bits_of_every_way_do_not_depend_on_the_number_of_threads(
    shape, layout, dtype, same_on_threads, rng
):
    x, y = operands(*shape, layout, dtype, rng)
    same_on_threads(lambda: [matmul(x, y)])


@pytest.mark.full
@needs_jit
@pytest.mark.parametrize("dtype", FLOATS)
def test_errors_are_no_greater_than_those_of_blas(dtype, rng):
    # The root of the mean square over many numbers; single products differ by luck.
    shapes = [(64, 64, 64), (48, 700, 48), (33, 2048, 100), (200, 4096, 6), (1, 3000, 2000),
              (24, 100_000, 20)]  # fmt: skip
    ratios = []
    for shape in shapes:
        x, y = operands(*shape, "NN", dtype, rng)
        exact = x.astype(np.longdouble) @ y.astype(np.longdouble)
        ours, blas = (float(np.sqrt(np.mean((out - exact) ** 2))) for out in (matmul(x, y), x @ y))
        ratios.append(ours / blas)
    assert np.exp(np.mean(np.log(ratios))) <= 1.1
    assert max(ratios) <= 1.5


# Memory and machines: a script, which a process with other vectors runs too.

FUZZ = """
    import sys
    import numpy as np
    from minigrad.kernels.gemm import PRODUCTS
    from minigrad.kernels.gemm.prepacked import packed_bytes
    from minigrad.kernels.gemm.products import gemm_packed, pack_all
    from minigrad.kernels.vector import REGISTERS, VECTOR
    from tests.guarded import guard_scratch, guarded

    rng = np.random.default_rng(int(sys.argv[2]))
    in_kernels = guard_scratch(np.random.default_rng(int(sys.argv[2])))

    def matrix(rows, cols, dtype):
        steps = rng.choice([1, 1, 1, 2, 3], 2)
        extent = int((rows - 1) * steps[0] + 1), int((cols - 1) * steps[1] + 1)
        order = "CF"[rng.integers(2)]
        base = guarded(extent[0] * extent[1], dtype, rng.integers(2)).reshape(extent, order=order)
        base[...] = np.nan  # what lies between the numbers of the operand
        view = base[:: steps[0], :: steps[1]]
        for axis in range(2):
            if rng.integers(4) == 0:
                view = np.flip(view, axis)
        view[...] = rng.standard_normal((rows, cols))
        return view

    kinds = [(20, 20, 20), (70, 70, 70), (3, 900, 200), (200, 900, 3), (130, 40, 200),
             (1, 300, 400), (400, 300, 1), (20, 3000, 20), (16, 26000, 16), (90, 700, 700)]
    for i in range(int(sys.argv[1])):
        dtype = (np.float32, np.float64)[i % 2]
        m, k, n = (int(rng.integers(1, most + 1)) for most in kinds[i // 2 % len(kinds)])
        x, y = matrix(m, k, dtype), matrix(k, n, dtype)
        out = guarded(m * n, dtype, rng.integers(2)).reshape(m, n)
        start = rng.standard_normal((m, n)).astype(dtype)
        out[...] = start
        add = bool(rng.integers(2))
        row = guarded(n, dtype, rng.integers(2))[:: rng.choice([1, 1, -1])]
        row[...] = rng.standard_normal(n)
        bias = row if rng.integers(2) else None
        products = PRODUCTS[np.dtype(dtype)]
        long = int(rng.choice([1, 10**6]))  # any work is long enough for threads, or little is
        products.multiply(x, y, out, add, m * n * k * long, bias)
        wide = x.astype(float) @ y.astype(float) + start * add + (row if bias is row else 0)
        bound = (k + 4) * np.finfo(dtype).eps * (abs(x.astype(float)) @ abs(y.astype(float)) + 18)
        assert (abs(out - wide) <= bound).all(), (m, k, n, dtype, x.strides, y.strides, add)

        rank = int(rng.integers(20))
        left, right = matrix(m, rank or 1, dtype)[:, :rank], matrix(rank or 1, n, dtype)[:rank]
        on_unit = products.has_unit and bool(rng.integers(2))
        plan = products.plans_of(on_unit)[False]
        room = guarded(packed_bytes(y, plan), np.uint8, rng.integers(2))
        pack_all[np.dtype(dtype)](0.0, y, room, plan)
        if on_unit and rng.integers(2):
            room = room[:0]  # the product packs y itself
        out[...] = np.nan
        row = guarded(n, dtype, rng.integers(2))[: n * int(rng.integers(2))]
        row[...] = rng.standard_normal(row.size)
        operands = x, y, room, left, right, row, out, plan
        gemm_packed[np.dtype(dtype)](long * 1e-6, *operands)
        wide = x.astype(float) @ y.astype(float) + left.astype(float) @ right.astype(float)
        wide += row if row.size else 0
        bound += (rank + 3) * np.finfo(dtype).eps * (abs(left.astype(float)) @ abs(right) + 9)
        assert (abs(out - wide) <= bound).all(), (m, k, n, rank, dtype, x.strides, y.strides, add)
    assert in_kernels[0] > int(sys.argv[1])
    print("done", VECTOR, REGISTERS)
"""


def fuzz(count, seed, tmp_path, **environment):
    """Run FUZZ; returns bytes of a vector and number of registers that its process compiled for."""
    variables = {"NUMBA_NUM_THREADS": "2", **environment}
    done, width, registers = run_python(FUZZ, count, seed, cwd=tmp_path, **variables).split()
    assert done == "done"
    return int(width), int(registers)


guards_memory = pytest.mark.skipif(sys.platform != "linux", reason="guards memory with mprotect")


@needs_jit
@guards_memory
@pytest.mark.full
def test_many_views_at_the_edge_of_memory(tmp_path):
    fuzz(1500, 1, tmp_path)


@needs_jit
@guards_memory
@on_x86
@pytest.mark.full
@pytest.mark.parametrize(("host", "vectors"), [("AVX2", (32, 16)), ("SSE2", (16, 16))])
def test_tiles_of_other_hosts(host, vectors, tmp_path):
    assert fuzz(360, 7, tmp_path, **HOSTS[host]) == vectors


# Sizes.


@pytest.mark.parametrize("caches", [None, *USUAL.values(), (1, 1), (2**30, 2**36)])
@pytest.mark.parametrize("itemsize", [4, 8])
def test_blocks_are_whole_tiles_for_any_caches(caches, itemsize, monkeypatch):
    if caches is not None:
        monkeypatch.setattr(blocking, "cache_sizes", lambda: blocking.Caches(*caches))
    tile = tile_shape(itemsize)
    *head, MC, KC, NC, RUN, _near, _split, _unit = blocking.block_sizes(itemsize)
    assert tuple(head) == tuple(tile)
    assert MC >= tile.MR
    assert NC >= tile.NR
    assert MC % tile.MR == NC % tile.NR == KC % RUN == 0
    assert KC >= RUN


def test_a_size_that_the_system_does_not_say_is_assumed(monkeypatch):
    monkeypatch.setattr(blocking, "reported_size", lambda level: 0)
    assert tuple(blocking.cache_sizes.__wrapped__()) in blocking.USUAL.values()


def test_tiles_of_dots_fit_the_registers():
    for rows, cols in skinny.dot_shapes():
        assert rows * cols + rows + 1 <= REGISTERS


@pytest.mark.skipif(not JIT_ENABLED, reason="BLAS promises no bits")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", ["NN", "NT", "TN"])
def test_rows_of_a_small_product_have_the_bits_of_those_of_a_large_one(layout, dtype, rng):
    """A small product is computed as one block, and a large one block by block."""
    x, y = operands(512, 96, 80, layout, dtype, rng)
    large = matmul(x, y)
    for rows in (17, 64, 200):
        np.testing.assert_array_equal(matmul(x[:rows], y), large[:rows])
