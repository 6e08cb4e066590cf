"""The merge certificate: rounding against slow plain code, and bounds that hold and are reached."""

import math
import struct
import tracemalloc
from fractions import Fraction
from functools import cache

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from lora.adapter import Adapter
from lora.certificate import (
    DTYPES,
    CertificateRow,
    LayerMerge,
    MergeCertificate,
    MergeError,
    certify,
    merging_into,
    round_to,
)
from lora.certificate.rounding import norms, unit_of, upper
from lora.frozen import DenseMatrix, strips
from minigrad import ops
from minigrad.kernels import nf4
from minigrad.kernels.nf4 import NF4Matrix

LEVELS = [float(level) for level in nf4.LEVELS]
FLOATS = ["float16", "bfloat16", "float32"]
HALVES = [*FLOATS[:2], "nf4"]


class Layer:
    """Arrays of a layer, and its outputs, merged and not, as they are computed."""

    def __init__(self, w, a, b, scale=1.0, bias=None, one_hot=False):
        self.w, self.a, self.b, self.scale, self.bias = w, a, b, scale, bias
        self.one_hot = one_hot
        weight, a, b = DenseMatrix(w.T if one_hot else w), *((b.T, a.T) if one_hot else (a, b))
        adapter = Adapter.of(weight, a, b, 1.0)
        adapter.scale = scale
        options = {"bias": bias, "one_hot": one_hot}
        self.part = merging_into("layer", weight, [adapter], [adapter], **options)

    def rows(self, rows):
        return self.w[rows].astype(np.float64)

    def merged(self):
        return self.rows(slice(None)) + self.part.update(slice(0, len(self.w)))

    def stored(self, dtype):
        wide = computing(self.w.dtype, dtype)
        return round_to(self.merged(), dtype).astype(wide)

    def apart(self, x):
        return np.asarray(ops.lora_linear(x, self.w, self.a, self.b, self.bias, self.scale))

    def outputs(self, x, weight):
        """With a merged weight, by the library and by numpy."""
        x = x.astype(weight.dtype)
        bias = None if self.bias is None else self.bias.astype(weight.dtype)
        plain = x @ weight.T
        return np.asarray(ops.linear(x, weight, bias)), plain if bias is None else plain + bias


def computing(own, dtype):
    return np.float64 if "float64" in (own, dtype) else np.float32


def gaussian(rng, d_out=24, d_in=40, rank=3, dtype=np.float32, sizes=(1.0, 1.0, 0.01), **options):
    w, a, b = (
        (size * rng.standard_normal(shape)).astype(dtype)
        for size, shape in zip(sizes, [(d_out, d_in), (rank, d_in), (d_out, rank)], strict=True)
    )
    return Layer(w, a, b, **options)


def row(layer, dtype, radius=1.0):
    return certify([layer.part], [dtype], radius, progress=False).of("layer", dtype)


def errors(layer, dtype):
    """V - W' in float64, for the directions of inputs only."""
    return layer.stored(dtype).astype(np.float64) - layer.merged()


def adversaries(layer, dtype, radius, rng):
    """Inputs of norm `radius` at most, among which are those that should move an output most."""
    error = errors(layer, dtype)
    d_in = error.shape[1]
    worst = error[np.argmax(norms(error))]
    largest = np.zeros(d_in)
    largest[np.argmax(np.abs(error).max(axis=0))] = 1
    directions = [
        *rng.standard_normal((4, d_in)),
        *error,
        np.sign(worst),
        np.abs(worst),
        largest,
        np.ones(d_in),
        *layer.rows(slice(None))[:4],
        *layer.a.astype(np.float64),
    ]
    x = np.array([direction for direction in directions if direction.any()])
    unit = x / norms(x)[:, None]
    x = (radius * (1 - 1e-6) * unit).astype(layer.w.dtype)
    x[norms(x.astype(np.float64)) > radius] = 0  # which the dtype may have rounded up
    return x


def moves(layer, weight, x):
    """The largest change of an output, in exact arithmetic."""
    apart = layer.apart(x).astype(np.longdouble)
    return max(float(np.abs(y - apart).max()) for y in layer.outputs(x, weight))


# ----------------------------------------------------------------------------------------------
# Rounding
# ----------------------------------------------------------------------------------------------


@cache
def every(dtype):
    """All numbers from 0 on of a dtype with 16 bits, in order."""
    if dtype == "float16":
        return np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    return (np.arange(0x7F80, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)


def slowly(x, dtype):
    """The nearest number by exact fractions; of two, the one with an even code."""
    if dtype == "float32":
        try:
            return struct.unpack("f", struct.pack("f", x))[0]
        except OverflowError:
            return math.copysign(math.inf, x)
    known = every(dtype)
    exact, at = Fraction(abs(x)), int(np.searchsorted(known, abs(x), side="right")) - 1
    below = Fraction(float(known[at]))
    step = Fraction(float(known[at + 1])) - below if at + 1 < len(known) else None
    step = step or below - Fraction(float(known[at - 1]))
    above = (exact - below) * 2
    up = above > step or (above == step and at % 2 == 1)
    found = known[at + 1] if up and at + 1 < len(known) else math.inf if up else known[at]
    return math.copysign(float(found), x)


def neighbours(dtype):
    """Numbers at, and close to, what separates those that are rounded up from the others."""
    known = every(dtype) if dtype != "float32" else np.geomspace(1e-45, 3e38, 3000)
    known = known.astype(np.float32).astype(np.float64)[:: max(1, len(known) // 800)]
    ends = known[-1:] if dtype == "float32" else every(dtype)[-2:]
    low = np.concatenate([known, ends])
    middle = low + unit_of(low, dtype) / 2
    x = np.concatenate([low, middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf)])
    return np.concatenate([x, -x])


@pytest.mark.parametrize("dtype", FLOATS)
def test_rounding_is_to_the_nearest_and_of_two_to_the_even_one(dtype):
    x = neighbours(dtype)
    expected = [slowly(float(number), dtype) for number in x]
    found = round_to(x, dtype)
    assert found.tobytes() == np.array(expected).tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
@hypothesis.given(st.floats(allow_nan=False))
def test_any_number_is_rounded_once(dtype, x):
    found = round_to(np.array([x]), dtype)[0]
    expected = x if math.isinf(x) else slowly(x, dtype)
    assert found == expected
    assert math.copysign(1, found) == math.copysign(1, x)


def test_rounding_to_bfloat16_is_not_that_by_way_of_float32():
    x = np.array([1 + 2.0**-8 + 2.0**-40])  # float32 makes it a tie, which goes to 1
    assert round_to(x, "bfloat16")[0] == 1 + 2.0**-7
    assert round_to(round_to(x, "float32"), "bfloat16")[0] == 1


def test_rounding_to_float32_and_float16_is_numpys(rng):
    x = rng.standard_normal((50, 50)) * 10.0 ** rng.integers(-50, 40, (50, 50))
    with np.errstate(over="ignore"):
        for dtype in ("float32", "float16"):
            assert np.array_equal(round_to(x, dtype), x.astype(dtype).astype(np.float64))
    assert np.array_equal(round_to(x, "float64"), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_stored_is_stored_as_it_is(rng, dtype):
    once = round_to(rng.standard_normal((3, 200)), dtype)
    assert np.array_equal(round_to(once, dtype), once)
    assert np.array_equal(round_to(-once, dtype), -once) or dtype == "nf4"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(dtype, bad):
    x = np.ones((1, 3))
    x[0, 1] = bad
    assert not np.isfinite(round_to(x, dtype)[0, 1])


def nf4(row):
    """The stored values and the units of one row, number by number."""
    stored, units = [], []
    for start in range(0, len(row), 64):
        block = row[start : start + 64]
        absmax = float(np.float32(max(abs(x) for x in block)))
        for x in block:
            ratio = x / absmax if absmax else 0.0
            code = min(range(16), key=lambda i: abs(LEVELS[i] - ratio))
            beside = [abs(LEVELS[i] - LEVELS[code]) for i in (code - 1, code + 1) if 0 <= i < 16]
            stored.append(LEVELS[code] * absmax)
            units.append(max(min(beside) * absmax, 2.0**-149))
    return stored, units


@hypothesis.given(
    st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 200), st.integers(-44, 37)
)
def test_nf4_is_what_quantisation_makes_of_it_to_the_bit(seed, rows, cols, power):
    x = 10.0**power * np.random.default_rng(seed).standard_normal((rows, cols))
    quantized = NF4Matrix.of(x, double_quant=False)
    assert np.array_equal(round_to(x, "nf4"), quantized.dense(np.float64))


@pytest.mark.parametrize("d_in", [1, 63, 64, 65, 200])
def test_nf4_is_the_nearest_level_of_each_block(rng, d_in):
    x = rng.standard_normal((5, d_in))
    x[0, :64] = 0
    x[1] *= 1e-44  # absolute values that float32 rounds a lot
    expected = [nf4(list(map(float, row))) for row in x]
    found = round_to(x, "nf4")
    assert np.array_equal(found, [stored for stored, _ in expected])
    assert np.array_equal(unit_of(found, "nf4"), [units for _, units in expected])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_unit_is_that_of_numpy(rng, dtype):
    x = rng.standard_normal(500) * 10.0 ** rng.integers(-9, 4, 500)
    stored = np.concatenate([x, [0.0, 1.0, 2.0, -2.0]]).astype(dtype)
    expected = np.spacing(np.abs(stored)).astype(np.float64)
    assert np.array_equal(unit_of(stored.astype(np.float64), dtype), expected)


def test_the_unit_of_bfloat16_is_the_step_to_the_next_code():
    known = every("bfloat16")
    assert np.array_equal(unit_of(known[:-1], "bfloat16"), np.diff(known))


def test_rounding_refuses_what_was_rounded_and_what_is_unknown():
    with pytest.raises(TypeError, match="float64, not of float32"):
        round_to(np.ones(3, np.float32), "float16")
    with pytest.raises(ValueError, match=r"'int8'; there are float64, .*nf4"):
        round_to(np.ones(3), "int8")
    with pytest.raises(ValueError, match="not a single one"):
        round_to(np.float64(1), "nf4")


# ----------------------------------------------------------------------------------------------
# Figures
# ----------------------------------------------------------------------------------------------


def brute_force(w, d, dtype):
    """absorbed, lost and ulp by fractions, entry by entry."""
    absorbed = updated = 0
    ulp, error, update = 0.0, Fraction(0), Fraction(0)
    for ws, ds in zip(w.tolist(), d.tolist(), strict=True):
        merged = [x + y for x, y in zip(ws, ds, strict=True)]
        if dtype == "nf4":
            (stored, units), (kept, before) = nf4(merged), nf4(ws)
            units = list(map(max, units, before))
        elif dtype == "float64":
            stored, kept = merged, ws
            units = [math.ulp(max(abs(x), abs(y))) for x, y in zip(ws, merged, strict=True)]
        else:
            stored, kept = ([slowly(x, dtype) for x in row] for row in (merged, ws))
            larger = [max(abs(x), abs(y)) for x, y in zip(stored, kept, strict=True)]
            units = [float(unit_of(np.array([x]), dtype)[0]) for x in larger]
        for x, y, v, k, unit in zip(ws, ds, stored, kept, units, strict=True):
            updated += y != 0
            absorbed += y != 0 and v == k
            ulp = max(ulp, abs(v - k) / unit)
            error += (Fraction(v) - Fraction(x) - Fraction(y)) ** 2
            update += Fraction(y) ** 2
    return absorbed / updated, math.sqrt(error / update), ulp


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-9, 1e-4, 0.1, 10])
def test_the_figures_are_those_of_slow_plain_code(rng, dtype, own, size):
    layer = gaussian(rng, 5, 70, 2, own, (1.0, 1.0, size), scale=1.5)
    layer.b[2] = 0  # a row without an update
    layer.part = Layer(layer.w, layer.a, layer.b, 1.5).part
    found = row(layer, dtype)
    update = layer.part.update(slice(0, 5))
    absorbed, lost, ulp = brute_force(layer.rows(slice(None)), update, dtype)
    assert found.absorbed == absorbed
    assert found.lost == pytest.approx(lost, rel=1e-12)
    assert found.ulp == pytest.approx(ulp, rel=1e-15)
    assert found.note == ""


def test_an_update_far_below_the_last_place_is_absorbed(rng):
    layer = gaussian(rng, sizes=(1.0, 1.0, 1e-12))
    found = row(layer, "bfloat16")
    assert found.absorbed == 1
    assert found.ulp == 0
    assert found.lost > 1e6
    assert row(layer, "float64").absorbed < 0.01


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_dtype_holds_exactly_is_not_lost(dtype):
    w = np.array([[1.0, 0.0, -1.0]], np.float32)
    layer = Layer(w, np.array([[1.0, 0.0, -1.0]], np.float32), -2 * np.ones((1, 1), np.float32))
    found = row(layer, dtype)
    assert found.lost == found.absorbed == 0
    assert found.ulp > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_an_update_nothing_of_it_is_lost_and_the_row_says_so(rng, dtype):
    layer = gaussian(rng, sizes=(1.0, 1.0, 0.0))
    found = row(layer, dtype)
    assert (found.absorbed, found.lost, found.ulp) == (0, 0, 0)
    changes = dtype in HALVES
    assert found.note == ("dW is 0, but storing W changes it" if changes else "dW is 0")
    x = adversaries(layer, dtype, 1.0, rng)
    assert 0 <= moves(layer, layer.stored(dtype), x) <= found.bound


def test_squares_that_no_float_holds_do_not_spoil_the_figures(rng):
    sizes = {
        size: gaussian(rng, 3, 9, 2, np.float64, (size, 1.0, size)) for size in (1e-180, 1e180)
    }
    for size, layer in sizes.items():
        found = row(layer, "float64")
        assert 0 < found.lost < 1e-15
        assert size * 1e-17 < found.bound < size * 1e-12


# ----------------------------------------------------------------------------------------------
# The bound
# ----------------------------------------------------------------------------------------------

magnitudes = st.integers(-9, 6).map(lambda power: 10.0**power)


@pytest.mark.full
@hypothesis.settings(max_examples=150)
@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 90), st.integers(1, 4)),
    own=st.sampled_from([np.float32, np.float64]),
    sizes=st.tuples(magnitudes, magnitudes, magnitudes),
    scale=st.sampled_from([0.0, -1.0, 1e-3, 0.3, 16.0]),
    radius=magnitudes,
    bias=st.sampled_from([None, 1e-6, 1.0, 1e6]),
)
def test_no_input_moves_an_output_by_more_than_the_bound(
    seed, shape, own, sizes, scale, radius, bias
):
    rng = np.random.default_rng(seed)
    d_out = shape[0]
    bias = None if bias is None else (bias * rng.standard_normal(d_out)).astype(own)
    layer = gaussian(rng, *shape, own, sizes, scale=scale, bias=bias)
    certificate = certify([layer.part], DTYPES, radius, progress=False)
    for found in certificate.rows:
        if found.bound == math.inf:
            assert "overflow" in found.note
            continue
        x = adversaries(layer, found.dtype, radius, rng)
        assert moves(layer, layer.stored(found.dtype), x) <= found.bound


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("own", [np.float32, np.float64])
@pytest.mark.parametrize("radius", [1e-3, 1.0, 50.0])
def test_some_input_reaches_most_of_the_bound(rng, dtype, own, radius):
    bias = radius * rng.standard_normal(24).astype(own)
    layer = gaussian(rng, dtype=own, bias=bias, sizes=(1.0, 1.0, 0.1))
    x = adversaries(layer, dtype, radius, rng)
    moved = moves(layer, layer.stored(dtype), x)
    bound = row(layer, dtype, radius).bound
    assert 0.8 * bound < moved <= bound


@pytest.mark.parametrize("own", [np.float32, np.float64])
def test_some_input_reaches_a_part_of_the_bound_in_the_layers_own_dtype(rng, own):
    layer = gaussian(rng, 24, 8, 1, dtype=own)
    x = adversaries(layer, np.dtype(own).name, 1.0, rng)
    bound = row(layer, np.dtype(own).name).bound
    # The worst case of 8 + 1 + 8 roundings in one sum: those that happen are a part of it.
    assert 0.02 * bound < moves(layer, layer.stored(np.dtype(own).name), x) <= bound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own", [np.float32, np.float64])
def test_a_weight_that_is_wrong_by_more_than_rounding_exceeds_the_bound(rng, dtype, own):
    layer = gaussian(rng, dtype=own)
    bound = row(layer, dtype).bound
    weight = layer.stored(dtype)
    x = adversaries(layer, dtype, 1.0, rng)
    assert moves(layer, weight, x) <= bound
    weight[0, np.argmax(np.abs(x).max(axis=0))] += 4 * bound
    assert moves(layer, weight, x) > bound


def formula(layer, dtype, radius):
    """The bound, row by row in exact sums, as the theory has it."""
    own, wide = np.finfo(layer.w.dtype), np.finfo(computing(layer.w.dtype, dtype))
    double, picks = np.finfo(np.float64), layer.one_hot
    (rank, d_in), s = layer.a.shape, abs(layer.scale)
    radius, summed, coded = 1 if picks else radius, 0 if picks else d_in, dtype == "nf4"

    def size(numbers):
        numbers = [abs(x if isinstance(x, Fraction) else Fraction(float(x))) for x in numbers]
        most = max(numbers)
        if picks or not most:
            return float(most)
        return float(most * Fraction(math.sqrt(sum((x / most) ** 2 for x in numbers))))

    def gamma(n, finfo):
        u = float(finfo.eps) / 2
        return n * u / (1 - n * u)

    apart = gamma(summed + rank + 8, own)
    merged = gamma((0 if picks else d_in + 1) + 2 * coded, wide)
    found = []
    update, stored = layer.part.update(slice(0, len(layer.w))), round_to(layer.merged(), dtype)
    for j, (w, b, v, d) in enumerate(zip(layer.w, layer.b, stored, update, strict=True)):
        error = [Fraction(float(x)) - Fraction(float(y)) - Fraction(float(z))
                 for x, y, z in zip(v, w, d, strict=True)]  # fmt: skip
        spread = s * sum(abs(float(x)) * size(a) for x, a in zip(b, layer.a, strict=True))
        thin = float(double.smallest_subnormal) * (s * rank + 1)
        thin *= 1 if picks else math.sqrt(d_in)
        after = sum(map(size, layer.a)) if picks else (s * d_in + 1) * sum(abs(float(x)) for x in b)
        lost = gamma(rank + 2, double) * spread + thin
        total = radius * (size(error) + lost + merged * size(v) + apart * (size(w) + spread))
        total += 0 if layer.bias is None else (merged + apart) * abs(float(layer.bias[j]))
        total += (1 + apart) * float(own.smallest_subnormal) * (summed + rank + after)
        numbers = radius * math.sqrt(max(summed, 1)) if coded else 0
        total += (1 + merged) * float(wide.smallest_subnormal) * (summed + numbers)
        total += 8 * (radius + 1) * float(double.smallest_subnormal)
        found.append(total)
    return max(found)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("own", "sizes", "radius"),
    [
        (np.float32, (1.0, 1.0, 0.01), 3.0),
        (np.float64, (1.0, 1.0, 0.01), 3.0),
        (np.float32, (1e-3, 1.0, 1.0), 0.1),
        (np.float64, (1e-3, 1.0, 1.0), 0.1),
        (np.float32, (1e-30, 1e-25, 1e-20), 1e-20),  # most of it is what underflows
        (np.float32, (1e-38, 1e-20, 1e-20), 50.0),
        (np.float32, (1e-38, 1e-30, 1e10), 1e-15),  # of x A^T, before B makes much of it
        (np.float32, (0.0, 0.0, 0.0), 1e10),
        (np.float64, (1e-150, 1e-160, 1e-160), 1e-160),
        (np.float64, (1e-320, 1e-162, 1e-162), 1e10),  # of B A
    ],
)
@pytest.mark.parametrize("kind", ["matrix", "table"])
def test_the_bound_is_that_of_the_formula(rng, kind, sizes, radius, own, dtype):
    layer = gaussian(
        rng, 4, 70, 5, own, sizes, scale=-2.5, one_hot=kind == "table",
        bias=None if kind == "table" else (sizes[0] * np.ones(4)).astype(own),
    )  # fmt: skip
    found, expected = row(layer, dtype, radius).bound, formula(layer, dtype, radius)
    evaluated = 8 * (radius + 1) * math.ulp(0)
    assert expected * (1 - 1e-15) - evaluated <= found <= expected * (1 + 1e-9) + evaluated


def integers(rng, d_out=8, d_in=300, rank=2):
    """A layer whose merged weight every dtype of 24 digits holds exactly."""
    w = rng.integers(-(2**20), 2**20, (d_out, d_in)).astype(np.float32)
    a = rng.integers(-9, 9, (rank, d_in)).astype(np.float32)
    return Layer(w, a, rng.integers(-9, 9, (d_out, rank)).astype(np.float32))


def test_where_weights_are_exact_the_bound_is_that_of_the_products(rng):
    layer = integers(rng)
    found = row(layer, "float32")
    assert found.lost == 0
    moved = moves(layer, layer.stored("float32"), adversaries(layer, "float32", 1.0, rng))
    assert 0 < moved < found.bound


def test_the_terms_that_cancel_in_the_merged_weight_count_with_the_bound(rng):
    layer = integers(rng)
    layer = Layer(-(layer.b @ layer.a), layer.a, layer.b)  # W + dW = 0, and merged outputs are 0
    x = rng.standard_normal((50, 300)).astype(np.float32)
    x /= norms(x)[:, None] * 1.001
    found = row(layer, "float32")
    moved = moves(layer, layer.stored("float32"), x)
    size = float(norms(layer.rows(slice(None))).max())
    assert 0 < moved < found.bound
    assert found.bound > 300 * 2.0**-24 * size


def test_what_underflows_in_products_is_in_the_bound(rng):
    layer = gaussian(rng, 6, 200, 2, sizes=(1e-20, 1e-10, 1e-10))
    x = np.abs(adversaries(layer, "float32", 1e-24, rng))
    found = row(layer, "float32", 1e-24)
    apart = layer.apart(x).astype(np.float64)
    exact = x.astype(np.float64) @ layer.stored("float32").astype(np.float64).T
    assert np.abs(apart - exact).max() > 0.3 * 2.0**-149
    assert moves(layer, layer.stored("float32"), x) <= found.bound
    assert found.bound < 2000 * 2.0**-149


def test_the_rounding_of_a_product_of_a_and_b_is_in_the_bound(rng):
    """LayerMerge with factors of long mantissas: dW itself is known up to rounding only."""
    layer = gaussian(rng, 2, 3, 40, np.float64, sizes=(1e-30, 1.0, 1.0))
    update = layer.part.update(slice(0, 2))
    exact = [
        [
            sum(Fraction(float(b)) * Fraction(float(a)) for b, a in zip(bs, column, strict=True))
            for column in layer.a.T
        ]
        for bs in layer.b
    ]
    for computed, right, bound in zip(update, exact, layer.part.update_error, strict=True):
        off = [float(Fraction(float(x)) - y) for x, y in zip(computed, right, strict=True)]
        assert 0 < math.hypot(*off) <= bound < 1e-12


def test_the_sum_of_w_and_dw_is_taken_without_error():
    w, d = np.array([[1.0, 1e16, -3.0]]), np.array([[1e-17, 1.0, 3e-20]])
    part = LayerMerge(
        "layer", (1, 3), np.dtype(np.float64), lambda _: w, lambda _: d, 0.0, np.zeros(1), 0
    )
    found = certify([part], ["float64"], progress=False).of("layer", "float64")
    off = [Fraction(x + y) - Fraction(x) - Fraction(y) for x, y in zip(w[0], d[0], strict=True)]
    assert found.lost == pytest.approx(
        float(np.linalg.norm([float(x) for x in off])) / 1.0, rel=1e-12
    )


@pytest.mark.sampled(3)
@pytest.mark.parametrize("size", [5e-324, 1e-200, 1.0, 1e200])
@pytest.mark.parametrize("d_in", [1, 2, 3, 50, 1000])
def test_the_upper_norm_is_no_less_than_the_norm(rng, size, d_in):
    for x in size * rng.integers(1, 100, (40, d_in)).astype(np.float64):
        square = sum(Fraction(number) ** 2 for number in x.tolist())
        found = Fraction(float(upper(norms(x), d_in)))
        assert square <= found**2 <= (4 if size < 1e-300 else 1 + Fraction(1, 10**9)) * square


# ----------------------------------------------------------------------------------------------
# Tables
# ----------------------------------------------------------------------------------------------


def table(rng, count=30, d=70, rank=3, own=np.float32, size=0.1):
    w = rng.standard_normal((count, d)).astype(own)
    left = (size * rng.standard_normal((count, rank))).astype(own)
    return Layer(w, rng.standard_normal((rank, d)).astype(own), left, 2.0, one_hot=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-9, 0.1, 1e5])
def test_a_table_moves_no_element_by_more_than_the_bound(rng, dtype, own, size):
    layer = table(rng, own=own, size=size)
    found = row(layer, dtype, radius=1000.0)
    assert found == row(layer, dtype, radius=1.0)
    if found.bound == math.inf:
        assert found.note == "W + dW overflows float16"
        return
    apart = layer.w + ops.linear(layer.b * own(2), layer.a.T)
    stored = layer.stored(dtype)
    moved = np.abs(stored.astype(np.longdouble) - apart).max()
    assert moved <= found.bound
    if dtype in HALVES:
        assert moved > found.bound / 3
    stored[0, 0] += 2 * found.bound
    assert np.abs(stored.astype(np.longdouble) - apart).max() > found.bound


# ----------------------------------------------------------------------------------------------
# What is not finite
# ----------------------------------------------------------------------------------------------


def spoiled(rng, what, value):
    layer = gaussian(rng, bias=np.ones(24, np.float32))
    getattr(layer, what).flat[5] = value
    return Layer(layer.w, layer.a, layer.b, bias=layer.bias)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("what", "named"), [("w", "W"), ("a", "dW"), ("b", "dW")])
def test_a_number_that_is_not_finite_is_reported(rng, what, named, value, dtype):
    found = row(spoiled(rng, what, value), dtype)
    assert found.lost == found.bound == found.ulp == math.inf
    assert found.note == f"{named} has NaN or Inf"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bias_that_is_not_finite_leaves_no_bound(rng, value):
    found = row(spoiled(rng, "bias", value), "float32")
    assert found.bound == math.inf
    assert found.lost < 1e-3
    assert found.note == "b has NaN or Inf"


def test_a_nan_where_there_is_no_update_is_reported_too(rng):
    layer = spoiled(rng, "w", np.nan)
    layer = Layer(layer.w, layer.a, 0 * layer.b)
    assert row(layer, "float32").lost == math.inf


@pytest.mark.parametrize(
    ("dtype", "own", "size"),
    [
        ("float16", np.float32, 65520),
        ("bfloat16", np.float64, 3.4e38),
        ("float32", np.float64, 3.5e38),
        ("nf4", np.float64, 3.5e38),
    ],
)
def test_what_the_dtype_cannot_store_is_reported(dtype, own, size):
    w = np.zeros((2, 3), own)
    w[0, 1] = size / 2
    grown = Layer(w, np.array([[0, 1, 0]], own), np.array([[size / 2], [0]], own))
    found = row(grown, dtype)
    assert found.lost == found.ulp == found.bound == math.inf
    assert found.note == f"W + dW overflows {dtype}"
    w = 2 * w
    shrunk = Layer(w, np.array([[0, 1, 0]], own), np.array([[-size / 2], [0]], own))
    found = row(shrunk, dtype)
    assert found.ulp == math.inf
    assert math.isfinite(found.lost)
    assert math.isfinite(found.bound)
    assert found.note == f"W alone overflows {dtype}"


def test_the_largest_number_of_a_dtype_is_no_overflow():
    w = np.array([[65519.0]])
    layer = Layer(w, np.ones((1, 1)), np.full((1, 1), 1e-3))
    assert math.isfinite(row(layer, "float16").bound)


@pytest.mark.parametrize("sizes", [(1e30, 1.0, 1.0), (1.0, 1e30, 1e-30), (1.0, 1.0, 1e30)])
def test_outputs_that_may_overflow_have_no_bound(rng, sizes):
    layer = gaussian(rng, sizes=sizes)
    assert math.isfinite(row(layer, "float32", 1.0).bound)
    found = row(layer, "float32", 1e9)
    assert found.bound == math.inf
    assert found.note == "outputs may overflow float32"
    with np.errstate(all="ignore"):
        y = layer.apart(adversaries(layer, "float32", 1e9, rng))
    assert not np.isfinite(y).all()


def test_a_bias_may_make_outputs_overflow(rng):
    bias = np.full(24, 3.4e38, np.float32)
    assert math.isfinite(row(gaussian(rng, bias=bias), "float32").bound)
    found = row(gaussian(rng, sizes=(1e36, 1.0, 1.0), bias=bias), "float32")
    assert found.bound == math.inf
    assert found.note == "outputs may overflow float32"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["spread", "update_error", "underflows", "peak"])
def test_a_size_that_is_not_known_leaves_no_bound(name, value):
    unknown = value if name == "peak" else np.array([0.0, value])
    found = certify([record(**{name: unknown})], ["float32"], progress=False).of("q", "float32")
    assert found.bound == math.inf
    assert "overflow" in found.note


def test_norms_that_overflow_leave_no_figure():
    w = np.full((2, 3), 1.7e308)
    part = record(dtype=np.dtype(np.float64), base=lambda _: w, update=lambda _: -0.9 * w)
    found = certify([part], ["float64"], progress=False).of("q", "float64")
    assert found.lost == found.bound == math.inf
    assert "norms overflow float64" in found.note


def test_a_sum_in_float16_can_be_too_long_for_a_bound(rng):
    layer = gaussian(rng, 2, 3000, 2, np.float16)
    found = row(layer, "float16")
    assert found.bound == math.inf
    assert found.note == "sums too long to bound what float16 rounds"
    assert found.lost < 10


# ----------------------------------------------------------------------------------------------
# Strips
# ----------------------------------------------------------------------------------------------


def test_strips_change_no_figure(rng, monkeypatch):
    layer = gaussian(rng, 23, 40, bias=np.arange(23, dtype=np.float32))
    whole = certify([layer.part], progress=False).rows
    monkeypatch.setattr("lora.frozen.STRIP", 5 * 40)
    assert len(strips(layer.part.shape)) == 5
    for found, expected in zip(certify([layer.part], progress=False).rows, whole, strict=True):
        assert found.absorbed == expected.absorbed
        assert found.ulp == expected.ulp
        assert found.lost == pytest.approx(expected.lost, rel=1e-12)
        assert found.bound == pytest.approx(expected.bound, rel=1e-12)


@pytest.mark.full
def test_a_large_weight_is_never_whole_in_float64(rng):
    layer = gaussian(rng, 3000, 1000, 2)
    certify([layer.part], ["float16"], progress=False)
    tracemalloc.start()
    certify([layer.part], ["float16", "nf4"], progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 1000 * 8 * 1.2  # all temporaries of a strip; without strips some 13 times


# ----------------------------------------------------------------------------------------------
# The certificate
# ----------------------------------------------------------------------------------------------


def some(*lost, dtypes=("float32", "bfloat16")):
    rows = [
        CertificateRow(
            f"layer{i}", dtype, 0.25, share * (10 if dtype == "bfloat16" else 1), 3.0, 0.5
        )
        for i, share in enumerate(lost)
        for dtype in dtypes
    ]
    return MergeCertificate(tuple(rows), 2.0)


def test_rows_are_found_by_layer_and_by_dtype():
    certificate = some(0.1, 0.3, 0.2)
    assert certificate.layers == ["layer0", "layer1", "layer2"]
    assert certificate.dtypes == ["float32", "bfloat16"]
    assert [row.dtype for row in certificate["layer1"]] == ["float32", "bfloat16"]
    assert certificate.of("layer2", "bfloat16").lost == pytest.approx(2.0)
    assert certificate.worst("float32").layer == "layer1"
    assert certificate.radius == 2.0


def test_what_is_not_in_the_certificate_is_an_error_that_lists_what_is():
    certificate = some(0.1, 0.3)
    with pytest.raises(KeyError, match="no layer 'q' in the certificate; there are layer0, layer1"):
        certificate["q"]
    for ask in (
        lambda: certificate.of("layer0", "nf4"),
        lambda: certificate.worst("nf4"),
        lambda: certificate.check(0.1, "nf4"),
    ):
        with pytest.raises(KeyError, match=r"no dtype 'nf4' in.*there are float32, bfloat16"):
            ask()


def test_a_few_layers_have_a_line_for_each_dtype():
    text = repr(some(0.1, 0.003))
    lines = text.splitlines()
    assert len(lines) == 2 + 4
    assert "2 layers loses at most this part of the update: 0.1 in float32, all in" in lines[0]
    assert "|x| <= 2" in lines[0]
    assert "at most this part of the update: 0.15 in float32" in repr(some(0.149, 0.003))
    assert lines[1].split() == ["layer", "stored", "in", "absorbed", "lost", "ulp", "bound"]
    assert lines[2].split() == ["layer0", "float32", "25", "%", "0.1", "3", "0.5"]


def test_many_layers_have_a_line_for_each_dtype_with_the_worst():
    lines = repr(some(*[0.1] * 20, 0.4, 0.2)).splitlines()
    assert len(lines) == 2 + 2
    assert "worst of 22 layers" in lines[1]
    assert lines[2].split()[:2] == ["float32", "layer20"]


def test_the_html_has_the_notes_and_escapes_names():
    certificate = MergeCertificate(
        (CertificateRow("<b>", "float16", 0, 1, 2, 3, "W has NaN or Inf"),), 1.0
    )
    html = certificate._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert "W has NaN or Inf" in html
    assert "W has NaN or Inf" in repr(certificate)


def test_a_limit_that_is_exceeded_is_an_error_with_figures_and_advice():
    certificate = some(0.1, 0.3, 0.01)
    certificate.check(0.3, "float32")
    with pytest.raises(MergeError) as error:
        certificate.check(0.5, "bfloat16")
    text = str(error.value)
    assert "stored in bfloat16, 2 of 3 layers would lose more than 0.5" in text
    assert "store them in float32, or leave these layers unmerged" in text
    assert "layer0      25 %     1" in text
    assert "layer2" not in text
    with pytest.raises(MergeError, match="store them in a wider dtype"):
        certificate.check(0.001, "float32")
    assert issubclass(MergeError, ValueError)


@pytest.mark.parametrize("limit", [-0.1, math.nan])
def test_a_limit_is_a_share(limit):
    with pytest.raises(ValueError, match="limit is a share"):
        some(0.1).check(limit, "float32")


def test_an_overflow_exceeds_any_limit(rng):
    layer = gaussian(rng, sizes=(1e6, 1.0, 1.0))
    certificate = certify([layer.part], progress=False)
    with pytest.raises(MergeError, match="overflows float16"):
        certificate.check(1e9, "float16")


# ----------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------


def test_what_cannot_be_certified_is_an_error(rng):
    part = gaussian(rng).part
    for wrong, message in [
        (([part], []), "no dtypes.*float64"),
        (([part], ["float8"]), "'float8'; there are float64"),
        (([part], DTYPES, 0.0), "radius must be a positive number"),
        (([part], DTYPES, math.inf), "radius must be a positive number"),
        (([part], DTYPES, math.nan), "radius must be a positive number"),
    ]:
        with pytest.raises(ValueError, match=message):
            certify(*wrong, progress=False)


def test_one_dtype_and_one_named_twice_are_one(rng):
    part = gaussian(rng).part
    assert certify([part], "nf4", progress=False).dtypes == ["nf4"]
    assert len(certify([part], ["nf4", "nf4"], progress=False).rows) == 1


def record(**changed):
    ones = lambda rows: np.ones((rows.stop - rows.start, 3))
    fine = {
        "name": "q", "shape": (2, 3), "dtype": np.dtype(np.float32), "base": ones, "update": ones,
        "update_error": 0.0, "spread": np.ones(2), "roundings": 9,
    }  # fmt: skip
    return LayerMerge(**{**fine, **changed})


def test_layers_of_another_dtype_cannot_be_certified():
    wide = [np.ones(shape, np.longdouble) for shape in [(4, 3), (1, 3), (4, 1)]]
    with pytest.raises(TypeError, match=f"layer: layers of float16.*not of {wide[0].dtype}"):
        Layer(*wide)


def test_one_dtype_of_a_certificate_is_asked_for_by_its_name():
    layer = gaussian(np.random.default_rng(0))
    certificate = certify([layer.part], ["float16", "bfloat16"], progress=False)
    assert [row.dtype for row in certificate.only("bfloat16").rows] == ["bfloat16"]
    with pytest.raises(ValueError, match="float15"):
        certificate.only("float15")
