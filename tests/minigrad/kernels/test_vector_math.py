"""The float32 functions that LLVM makes vector code of: how far they are from the exact values.

The unit is the distance of the exact value to its neighbour among the float32. Plain pytest takes
every 4099th bit pattern, so that every exponent and sign is there with about 2000 arguments; `full`
takes every 31st for the functions that the others are made of (a step of 1, all that there are,
takes some minutes).
"""

import math

import numpy as np
import pytest
from numba.core.caching import NullCache
from numpy.testing import assert_array_equal

from minigrad.kernels import activation, vector_math
from minigrad.kernels.jit import JIT_ENABLED, dispatcher
from minigrad.kernels.vector import VECTOR

pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="numpy's functions serve")

TINY = 2.0**-126  # the smallest normal number
FLAGS = {"fused": {"contract"}, "not fused": set(), "in sums": {"contract", "reassoc"}}


def loop_over(name, flags):
    function = getattr(vector_math, name)

    def loop(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    return dispatcher(loop, flags, from_python=True)


def values(name, x, flags=FLAGS["fused"]):
    out = np.empty_like(x)
    loop_over(name, flags)(x, out)
    return out


def patterns(start, stop, step=1):
    return np.arange(start, stop, step, dtype=np.uint32).view(np.float32)


def logistic(x):
    return np.where(x < 0, np.exp(x), 1) / (1 + np.exp(-np.abs(x)))


EXACT = {
    "exp_below": np.exp,
    "expm1_below": np.expm1,
    "log": np.log,
    "log1p_series": np.log1p,
    "tanh": np.tanh,
    "sigmoid": logistic,
    "erf": activation.erf,
    "bell": lambda x: np.exp(-x * x / 2),
    "normal_cdf": activation.normal_cdf,
}
FLUSHED = ("exp_below", "sigmoid", "bell", "normal_cdf")  # to 0, where the result is subnormal


def worst(name, x, found):
    """The largest error, in units of the last place, and where it is.

    Where the exact value is nan or infinite, anything else is infinitely wrong.
    """
    with np.errstate(all="ignore"):
        exact = EXACT[name](x.astype(np.float64))
        rounded = exact.astype(np.float32)
        unit = np.spacing(np.abs(rounded)).astype(np.float64)
        error = np.abs(found - exact) / unit
    special = ~np.isfinite(rounded)
    same = (found == rounded) | (np.isnan(found) & np.isnan(rounded))
    error[special] = np.where(same[special], 0, np.inf)
    if name in FLUSHED:
        subnormal = np.abs(exact) < TINY
        assert np.all((found[subnormal] >= 0) & (found[subnormal] <= np.float32(TINY)))
        error[subnormal] = 0
    error[np.isnan(error)] = np.inf
    i = error.argmax()
    return error[i], x[i]


def domain(name, x):
    if name == "exp_below":
        return x[~(x > 80)]
    if name == "expm1_below":
        return x[~(x > 0)]
    if name == "log":
        return x[~(x < TINY)]
    return x[(x >= -0.29) & (x <= 1)] if name == "log1p_series" else x


@pytest.mark.sampled(4)
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("exp_below", 1.1),
        ("expm1_below", 1.1),
        ("log", 1.1),
        ("log1p_series", 1.2),
        ("tanh", 2.2),  # 2.13 as compiled by numba 0.61, 1.90 by 0.68
        ("sigmoid", 2.3),
        ("erf", 1.2),
        ("bell", 1.6),
        ("normal_cdf", 7),
    ],
)
def test_digits_over_the_whole_range(name, limit, flags):
    x = domain(name, patterns(0, 2**32, 4099))
    error, place = worst(name, x, values(name, x, flags))
    assert error <= limit, f"{error} at {place!r}"


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "first", "limit"),
    [
        ("exp_below", 2**31, 1.1),  # from -0.0 on
        ("log", 2**23, 1.1),  # from the smallest normal number on
        ("tanh", 0, 2.0),  # odd, as is
        ("erf", 0, 1.2),
    ],
)
def test_digits_over_half_the_range_at_close_quarters(name, first, limit):
    chunk, step = 2**18, 31
    out = np.empty(chunk, np.float32)
    loop = loop_over(name, FLAGS["fused"])
    end = 2**31 if first < 2**31 else 2**32
    for start in range(first, end - chunk * step, chunk * step):
        x = patterns(start, start + chunk * step, step)
        loop(x, out)
        error, place = worst(name, x, out)
        assert error <= limit, f"{error} at {place!r}"


def test_odd_functions_are_odd_to_the_last_bit():
    x = patterns(0, 2**31, 4099)
    for name in ("tanh", "erf"):
        assert_array_equal(values(name, -x), -values(name, x))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tanh", [0.0, -0.0, 1, -1, 1, -1]),
        ("sigmoid", [0.5, 0.5, 1, 0, 1, 0]),
        ("erf", [0.0, -0.0, 1, -1, 1, -1]),
        ("normal_cdf", [0.5, 0.5, 1, 0, 1, 0]),
        ("bell", [1, 1, 0, 0, 0, 0]),
    ],
)
def test_values_that_are_no_ordinary_numbers(name, expected):
    x = np.array([0.0, -0.0, math.inf, -math.inf, 3e38, -3e38], np.float32)
    found = values(name, x)
    assert_array_equal(found, np.array(expected, np.float32))
    assert_array_equal(np.signbit(found[:2]), np.signbit(expected[:2]))
    nan = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(values(name, nan)).all()


def test_exponentials_vanish_before_they_are_subnormal():
    x = np.array([-87.3, -87.7, -103, -3e38, -math.inf], np.float32)
    assert_array_equal(values("exp_below", x) >= TINY, [True, False, False, False, False])
    assert_array_equal(values("exp_below", x) == 0, [False, True, True, True, True])


@pytest.mark.parametrize("name", list(EXACT))
def test_every_lane_of_a_vector_computes_the_same(name):
    """The end of an array is computed one by one, and must not differ from its middle."""
    x = domain(name, np.linspace(-3, 1, 101, dtype=np.float32))
    whole = values(name, x)
    for size in (1, 7, 17, 33):
        assert_array_equal(values(name, x[:size].copy()), whole[:size])


@pytest.mark.skipif(VECTOR < 32, reason="one name for registers, whether they are used in full")
def test_a_loop_uses_vectors_as_wide_as_the_machines():
    loop = loop_over("sigmoid", FLAGS["fused"])
    loop._cache = NullCache()  # machine code from disk has no text
    loop(np.zeros(4, np.float32), np.zeros(4, np.float32))
    [code] = loop.inspect_asm().values()
    assert code.count({64: "zmm", 32: "ymm"}[VECTOR]) > 20
