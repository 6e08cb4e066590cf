"""Integers and booleans as operands: functions of floats compute in float32, others keep them."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import minigrad
from minigrad import OPS, Tensor

NARROW = [np.bool_, np.int8, np.uint8, np.int16, np.int64]
OF_FLOATS = sorted(name for name, op in OPS.items() if op.floats)
MATRICES = {"inv": 1, "det": 1, "cholesky": 1, "solve": 2}
PLAIN = ["negative", "square", "abs", "relu", "maximum", "max", "sum", "cumsum", "flip", "where"]


def operands(name, dtype):
    """Small numbers of each dtype for which the function is defined."""
    if name in MATRICES:
        return [np.array([[1, 0], [0, 1]], dtype)] * MATRICES[name]
    x = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    if name in ("log", "log2", "log10", "rsqrt", "reciprocal"):
        x = np.ones((2, 3), dtype)
    return [x, x] if name == "arctan2" else [x]


def options(name):
    return {"normalized_shape": 3} if name.endswith("_norm") else {}


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", OF_FLOATS)
@pytest.mark.parametrize("kind", [Tensor, np.asarray])
def test_a_function_of_floats_takes_integers_for_float32(name, dtype, kind):
    function = getattr(minigrad, name)
    xs = operands(name, dtype)
    found = function(*map(kind, xs), **options(name))
    right = function(*(kind(x.astype(np.float32)) for x in xs), **options(name))
    assert found.dtype == np.float32
    assert_array_equal(np.asarray(found), np.asarray(right))


def test_large_bytes_neither_wrap_round_nor_overflow():
    x = Tensor(np.uint8([[0, 200, 255]]))
    wide = x.astype(np.float32)
    for function in (minigrad.softmax, minigrad.log_softmax, minigrad.sigmoid, minigrad.exp):
        with np.errstate(over="ignore"):  # e^200 is too large for float32
            assert_array_equal(function(x).data, function(wide).data)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
@pytest.mark.parametrize("name", PLAIN)
def test_other_functions_keep_integers(name, dtype):
    x = np.array([[3, 1, 2]], dtype)
    arguments = {"maximum": [x, x[:, ::-1]], "where": [x > 1, x, x[:, ::-1]]}.get(name, [x])
    numpy_name = {"relu": "abs"}.get(name, name)
    found = getattr(minigrad, name)(*map(Tensor, arguments))
    expected = getattr(np, numpy_name)(*arguments)
    assert found.dtype == np.asarray(expected).dtype
    assert_array_equal(found.data, expected)
