"""The matrix unit: as exact as vectors, and the same for infinity, NaN and tiny numbers."""

import subprocess
import sys

import numpy as np
import pytest

from minigrad.kernels.gemm import PRODUCTS, matmul, matrix_unit
from minigrad.kernels.gemm.prepacked import multiply_and_update
from minigrad.kernels.jit import JIT_ENABLED, SINGLE, nothing
from tests.hosts import HOSTS, on_x86

needs_unit = pytest.mark.skipif(
    not (JIT_ENABLED and matrix_unit.is_available()), reason="this processor has no matrix unit"
)

SHAPES = [(32, 32, 32), (1, 1, 1), (17, 33, 49), (64, 600, 40), (100, 1200, 70), (33, 64, 31)]


def product(x, y, on_unit=True, out=None):
    """The product on the unit or on vectors, whatever its size."""
    compiled = PRODUCTS[SINGLE]
    target = np.empty((len(x), y.shape[1]), SINGLE) if out is None else out
    plan = compiled.plans_of(on_unit)[out is not None]
    compiled.gemm.alone(x, y, nothing(SINGLE), target, plan)
    return target


def operand(rng, rows, cols, order):
    return np.asarray(rng.standard_normal((rows, cols)), SINGLE, order=order)


@needs_unit
@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
@pytest.mark.parametrize("shape", SHAPES)
def test_errors_are_no_greater_than_on_vectors(shape, orders, rng):
    m, k, n = shape
    x, y = operand(rng, m, k, orders[0]), operand(rng, k, n, orders[1])
    exact = x.astype(float) @ y.astype(float)
    bound = 2 * np.sqrt(k) * np.finfo(SINGLE).eps * (abs(x).astype(float) @ abs(y).astype(float))
    ours, vectors = product(x, y), product(x, y, on_unit=False)
    assert (abs(ours - exact) <= bound).all()
    if k >= 64:  # the mean of many numbers
        error, other = (np.sqrt(np.mean((out - exact) ** 2)) for out in (ours, vectors))
        assert error <= 1.1 * other


@needs_unit
@pytest.mark.parametrize("shape", SHAPES)
def test_add_adds_to_what_is_there(shape, rng):
    m, k, n = shape
    x, y, start = operand(rng, m, k, "C"), operand(rng, k, n, "C"), operand(rng, m, n, "C")
    np.testing.assert_allclose(
        product(x, y, out=start.copy()), start + product(x, y), rtol=0, atol=1e-4
    )


@needs_unit
def test_bits_do_not_depend_on_where_the_result_is(rng):
    """Which columns share a panel must not either: infinity changes how all of a panel is added."""
    x, y = operand(rng, 40, 64, "C"), operand(rng, 64, 2048, "C")
    y[3, 640] = np.inf
    memory = np.zeros(40 * 2048 + 16, SINGLE)
    plan, bits = PRODUCTS[SINGLE].plans_of(True)[False], None
    for first in range(16):
        out = memory[first : first + 40 * 2048].reshape(40, 2048)
        PRODUCTS[SINGLE].gemm.alone(x, y, nothing(SINGLE), out, plan)
        bits = out.copy() if bits is None else bits
        np.testing.assert_array_equal(out, bits)


@needs_unit
def test_a_float32_is_exactly_the_sum_of_its_parts(rng):
    x = operand(rng, 70, 70, "C") * np.exp2(rng.integers(-60, 60, (70, 70))).astype(SINGLE)
    x[0, :4] = np.finfo(SINGLE).max, -np.finfo(SINGLE).max, 0, 1 + np.finfo(SINGLE).eps
    one = np.eye(70, dtype=SINGLE)
    np.testing.assert_array_equal(product(x, one), x)
    np.testing.assert_array_equal(product(one, x), x)


@needs_unit
def test_sums_of_integers_are_exact(rng):
    x, y = (rng.integers(-(2**bits), 2**bits, (40, 40)).astype(SINGLE) for bits in (14, 3))
    exact = x.astype(int) @ y.astype(int)
    assert abs(exact).max() < 2**24
    np.testing.assert_array_equal(product(x, y), exact)


@needs_unit
def test_parts_of_bfloat16_numbers_that_are_0_change_no_bit(rng):
    x, y = operand(rng, 64, 96, "C"), operand(rng, 96, 64, "C")
    y = (y.view(np.uint32) & np.uint32(matrix_unit.UPPER)).view(SINGLE)
    short = product(x, y)
    y[0, ::32] += np.float32(1e-6)  # so the panels have a number that is not a bfloat16
    others = np.arange(64) % 32 != 0
    np.testing.assert_array_equal(product(x, y)[:, others], short[:, others])


UNUSUAL = [np.inf, -np.inf, np.nan, 1e-40, -1e-45, 2.0**-101, 1e-33]


@needs_unit
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("unusual", UNUSUAL)
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("place", [(0, 0), (50, 70), (69, 1)])
def test_unusual_numbers_give_what_they_give_on_vectors(unusual, side, place, rng):
    operands = [operand(rng, 70, 71, "C"), operand(rng, 71, 70, "C")]
    place = place[:: 1 - 2 * side]
    operands[side][place] = unusual
    if abs(unusual) < 1:  # a row or column in which this number decides
        line = place[0] if side == 0 else (slice(None), place[1])
        operands[side][line] *= np.float32(1e-38)
        operands[side][place] = unusual
    ours, vectors = product(*operands), product(*operands, on_unit=False)
    exact = operands[0].astype(float) @ operands[1].astype(float)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(exact))
    np.testing.assert_array_equal(np.isinf(ours), np.isinf(exact))
    np.testing.assert_allclose(ours, vectors, rtol=1e-3, atol=1e-5)
    tiny = abs(exact) < 1e-30
    np.testing.assert_allclose(ours[tiny], vectors[tiny], rtol=1e-3, atol=1e-44)


@needs_unit
def test_a_tiny_number_counts_in_full_if_the_other_is_large():
    x, y = np.full((40, 40), 3e-39, SINGLE), np.full((40, 40), 7e35, SINGLE)
    np.testing.assert_allclose(product(x, y), product(x, y, on_unit=False), rtol=1e-6)
    np.testing.assert_allclose(product(y, x), product(y, x, on_unit=False), rtol=1e-6)
    x[...], y[...], x[0] = 2.0**60, 1.1, 3.3e-37  # too far apart for a scale
    np.testing.assert_allclose(product(x, y), product(x, y, on_unit=False), rtol=1e-6)
    x[...], y[...] = 2.0**-60, 2.0**120
    x[:, ::2] = 2.0**-120  # so the panels of x are scaled, and those of y are not
    np.testing.assert_allclose(product(x, y), product(x, y, on_unit=False), rtol=1e-6)


@needs_unit
@pytest.mark.parametrize(
    ("least", "most"), [(-40, 4), (-126, 4), (-149, 4), (-149, 25), (-149, 40)]
)
@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)])
def test_products_of_numbers_of_all_sizes_are_as_exact_as_others(least, most, sides, rng):
    """Numbers as gelu makes them: some are so small that their parts would be subnormal."""

    def numbers(rows, cols, has_small):
        powers = rng.integers(least, most, (rows, cols)) * (rng.random((rows, cols)) < 0.2)
        return (rng.standard_normal((rows, cols)) * 2.0 ** (powers * has_small)).astype(SINGLE)

    x, y = numbers(300, 256, sides[0]), numbers(256, 150, sides[1])
    left, right = numbers(300, 7, sides[0]), numbers(7, 150, sides[1])
    bias = rng.standard_normal(150).astype(SINGLE)
    ours = multiply_and_update(x, y, False, left, right, bias)
    pairs = [(a.astype(float), b.astype(float)) for a, b in ((x, y), (left, right))]
    exact = sum(a @ b for a, b in pairs) + bias
    size = sum(abs(a) @ abs(b) for a, b in pairs) + abs(bias)
    assert (abs(ours - exact) <= 2 * 16 * np.finfo(SINGLE).eps * size).all()
    np.testing.assert_array_equal(matmul(x, y), product(x, y))
    assert (abs(product(x, y) - pairs[0][0] @ pairs[0][1]) <= 4e-6 * size).all()


@needs_unit
def test_large_products_are_computed_on_the_unit(rng, monkeypatch):
    x, y = operand(rng, 256, 256, "C"), operand(rng, 256, 256, "C")
    np.testing.assert_array_equal(matmul(x, y), product(x, y))
    monkeypatch.setattr(PRODUCTS[SINGLE], "has_unit", False)
    np.testing.assert_array_equal(matmul(x, y), product(x, y, on_unit=False))


@needs_unit
def test_stacks_of_large_products_are_computed_on_the_unit(rng):
    x, y = rng.standard_normal((2, 3, 256, 256)).astype(SINGLE)
    for each, a, b in zip(matmul(x, y), x, y, strict=True):
        np.testing.assert_array_equal(each, product(a, b))


@needs_unit
def test_only_a_large_product_needs_the_functions_of_the_unit():
    code = """
import numpy as np
from minigrad.kernels import cache
from minigrad.kernels.gemm import matmul
x = np.ones((256, 256), np.float32)
for rows in (100, 256):
    matmul(x[:rows], x)
    print(*sorted({"split_panels", "multiply_split"} & {*cache.LOADED, *cache.COMPILED}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["", "multiply_split split_panels"]


@on_x86
@pytest.mark.parametrize("host", HOSTS)
def test_other_processors_have_no_unit(host, monkeypatch):
    for name, value in HOSTS[host].items():
        monkeypatch.setenv(name, value)
    code = "from minigrad.kernels.gemm import matrix_unit as m; print(m.is_available())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
