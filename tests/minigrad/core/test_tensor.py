"""What a tensor is: construction, dtypes, and how it meets Python and numpy."""

import copy
import enum
import itertools
import json
import math
import operator
import os
import pathlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import minigrad
from minigrad import Tensor, nn, no_grad, tensor
from minigrad.io import load_state, save_state

OPERATORS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def leaf(*values, dtype=np.float32):
    return Tensor(np.array(values, dtype), requires_grad=True)


# ------------------------------------------------------------------------------------------------
# Construction
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, np.float32),
        ([1.0, 2.0], np.float32),
        ([1, 2.5, True], np.float32),
        ([], np.float32),
        (3, np.int64),
        ([[1, 2], [3, 4]], np.int64),
        (range(3), np.int64),
        (True, np.bool_),
        ([True, False], np.bool_),
        (np.float64(1.5), np.float64),
        (np.float32(1.5), np.float32),
        (np.int32(3), np.int32),
        (np.ones(2), np.float64),
        (np.ones(2, np.float32), np.float32),
        (np.ones(2, np.float16), np.float16),
        (np.ones(2, np.uint8), np.uint8),
        (np.ones(2, bool), np.bool_),
        (np.array(1.5), np.float64),
        ([np.float64(1.0), np.float64(2.0)], np.float64),
        ([np.ones(2, np.float32), np.zeros(2, np.float32)], np.float32),
        ([0.5, np.float64(0.25)], np.float64),
        ([np.float32(0.5), 0.25], np.float32),
        ([[0.5, 0.25], [1, np.float64(0.25)]], np.float64),
        ([[1, 2], np.ones(2, np.float16), (0.5, 1)], np.float16),
        ([np.float32(0.5), np.float64(0.25)], np.float64),
        ([0.5, np.int64(1)], np.float32),
        ([np.int64(1), 0.5], np.float32),
        ([300, np.uint8(1)], np.int64),
        ([np.int8(1), 300], np.int64),
        ([np.int8(1), np.int8(2)], np.int8),
        ([True, np.bool_(False)], np.bool_),
    ],
)
def test_dtype_comes_from_the_data(data, dtype):
    x = tensor(data)
    assert x.dtype == dtype
    assert_array_equal(x.data, np.asarray(data))


def test_tensors_in_a_list_are_put_together():
    assert tensor([tensor(np.float32(0.5)), 1 / 3]).dtype == np.float32
    assert tensor([1 / 3, tensor(0.5, dtype=np.float64)]).dtype == np.float64
    x = tensor([tensor([1.0, 2.0]), tensor([3.0, 4.0])])
    assert x.dtype == np.float32
    assert_array_equal(x.data, [[1.0, 2.0], [3.0, 4.0]])


def test_dtype_can_be_asked_for():
    assert tensor([1, 2], dtype=np.float64).dtype == np.float64
    assert tensor([1.7], dtype=int).data.tolist() == [1]
    assert tensor([255, 0], dtype="uint8").data.tolist() == [255, 0]
    assert tensor([-128.9, 127.9], dtype="int8").data.tolist() == [-128, 127]
    assert tensor([], dtype="int8").shape == (0,)


@pytest.mark.parametrize(
    ("make", "value", "dtype"),
    [
        (lambda dtype: tensor(300, dtype=dtype), "300", "int8"),
        (lambda dtype: tensor([1, -1], dtype=dtype), "-1", "uint8"),
        (lambda dtype: tensor(np.array([1, 2**40]), dtype=dtype), str(2**40), "int32"),
        (lambda dtype: tensor(2**63, dtype=dtype), str(2**63), "int64"),
        (lambda dtype: tensor(2.0**63, dtype=dtype), str(2.0**63), "int64"),
        (lambda dtype: tensor([1.0, -1e10], dtype=dtype), str(-1e10), "int16"),
        (lambda dtype: tensor(math.nan, dtype=dtype), "nan", "int64"),
        (lambda dtype: tensor([math.inf], dtype=dtype), "inf", "int64"),
        (lambda dtype: minigrad.full((2,), 300, dtype=dtype), "300", "int8"),
        (lambda dtype: minigrad.arange(300, dtype=dtype), "299", "int8"),
        (lambda dtype: minigrad.linspace(0, 300, 3, dtype=dtype), "300", "int8"),
        (lambda dtype: Tensor(300, dtype=dtype), "300", "int8"),
    ],
)
def test_a_number_that_an_integer_dtype_cannot_hold_is_refused(make, value, dtype):
    with pytest.raises(ValueError, match=f"{re.escape(value)}.* does not fit into {dtype}"):
        make(dtype)
    assert tensor([1, 2], dtype=np.float32, requires_grad=True).requires_grad


def test_tensor_copies_and_the_class_shares():
    array = np.ones(3)
    copied, shared = tensor(array), Tensor(array)
    array[0] = 5
    assert copied.data[0] == 1
    assert shared.data is array
    other = tensor(copied)
    assert not np.shares_memory(other.data, copied.data)
    assert np.shares_memory(Tensor(copied).data, copied.data)


def test_copy_of_a_tensor_is_a_constant():
    x = leaf(1.0, 2.0)
    assert not tensor(x).requires_grad
    assert not Tensor(x * 2).requires_grad


@pytest.mark.parametrize("make", [tensor, Tensor])
def test_read_only_array_gives_a_writable_tensor(make):
    array = np.broadcast_to(np.float32(1), (2, 2))
    x = make(array)
    x.copy_(np.zeros((2, 2)))
    assert_array_equal(x.data, np.zeros((2, 2)))
    assert array[0, 0] == 1


def test_data_is_a_writable_array_of_zero_dimensions_too():
    for x in (tensor(1.5), tensor([1.0, 2.0]).sum(), tensor([[1.0, 2.0]])[0, 1], tensor(2.0) * 3):
        assert type(x.data) is np.ndarray
        assert x.data.shape == ()
        assert x.data.flags.writeable
    assert tensor(1.5).broadcast_to((2, 3)).data.flags.writeable


def test_a_dtype_is_the_object_that_numpy_has_of_it(tmp_path):
    """The engine compares dtypes by identity, and an equal one would take slower paths."""
    save_state(tmp_path / "file", {"x": np.ones(2, "f4")})
    x = minigrad.tensor([1.0])
    for each in (
        *(Tensor([1.0], dtype=dtype) for dtype in ("f4", ">f4", np.float32)),
        *(x.astype(dtype) for dtype in ("float32", ">f4")),
        *(minigrad.tensor(load_state(tmp_path / "file")[0]["x"]), Tensor(np.ones(2, ">f4"))),
    ):
        assert each.dtype is np.dtype("float32")


@pytest.mark.parametrize("make", [tensor, Tensor])
@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i8"])
def test_bytes_in_foreign_order_are_turned(make, dtype):
    for x in (make(np.array([1, 2], dtype)), make([1, 2], dtype=dtype)):
        assert x.dtype.isnative
        assert x.dtype.itemsize == np.dtype(dtype).itemsize
        assert_array_equal(x.data, [1, 2])
        assert_array_equal((x + x).data, [2, 4])


def test_subclasses_of_arrays_become_plain_arrays():
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix([[1.0, 2.0]])
    assert type(tensor(matrix).data) is np.ndarray
    assert type(Tensor(matrix).data) is np.ndarray


class OfAnotherLibrary:
    """A tensor with a gradient, as PyTorch has it, of which numpy cannot make an array."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (OfAnotherLibrary(), TypeError, r"OfAnotherLibrary: Can't call numpy\(\).*detach"),
        ([OfAnotherLibrary()], TypeError, r"a list: Can't call numpy\(\).*detach"),
        ([[1, 2], [3]], ValueError, r"cannot make a tensor of \[\[1, 2\], \[3\]\]"),
        ("abc", TypeError, r"not <U3: 'abc'"),
        (["1.5"], TypeError, "booleans, integers or floats"),
        (np.array(["a"]), TypeError, "booleans, integers or floats"),
        (None, TypeError, "object: None"),
        ([1.0, None], TypeError, "object"),
        (1j, TypeError, "complex128"),
        (np.ones(2, complex), TypeError, "complex128"),
        (object(), TypeError, "object"),
        (np.array(["2020-01-01"], "M8[D]"), TypeError, "datetime64"),
        ({1: 2}, TypeError, "object"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), TypeError, "mask"),
        (10**30, TypeError, "object"),
    ],
)
@pytest.mark.parametrize("make", [tensor, Tensor])
def test_what_is_not_made_of_numbers_is_refused(make, bad, error, message):
    with pytest.raises(error, match=message):
        make(bad)


MASKED = np.ma.masked_array([1.0, 2.0], [True, False])


@pytest.mark.parametrize(
    "call",
    [
        lambda t: minigrad.mean(MASKED),
        lambda t: minigrad.where(MASKED > 1, 1.0, 0.0),
        lambda t: minigrad.add(MASKED, MASKED),
        lambda t: minigrad.stack([MASKED, MASKED]),
        lambda t: minigrad.concatenate([MASKED, t]),
        lambda t: t * MASKED,
        lambda t: MASKED @ t,
    ],
)
def test_masked_arrays_are_refused_by_ops(call):
    for requires_grad in (False, True):
        with pytest.raises(TypeError, match="no mask"):
            call(Tensor([1.0, 2.0], requires_grad))


@pytest.mark.parametrize(
    "call",
    [
        *(operator.mul, operator.sub, operator.truediv, operator.pow, operator.lt),
        lambda masked, x: np.ma.array(x),
        lambda masked, x: np.ma.masked_invalid(x).mean(),
        lambda masked, x: np.ma.concatenate([masked, x]),
    ],
)
def test_numpy_ma_computes_with_a_constant_tensor_and_refuses_one_that_requires_a_gradient(call):
    x = np.array([1.0, 2.0])
    expected, found = call(MASKED, x), call(MASKED, tensor(x))
    assert type(found) is type(expected)
    np.testing.assert_array_equal(np.ma.getmaskarray(found), np.ma.getmaskarray(expected))
    assert_array_equal(np.ma.filled(found, 7), np.ma.filled(expected, 7))
    with pytest.raises((TypeError, RuntimeError), match=r"no mask|requires a gradient"):
        call(MASKED, Tensor(x, requires_grad=True))
    with pytest.raises((TypeError, RuntimeError), match=r"no mask|requires a gradient"):
        minigrad.jvp(lambda t: tensor(call(MASKED, t).filled(0)), (x,), (x,))


def test_ops_compute_with_subclasses_of_arrays_as_with_plain_ones():
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix([[1.0, 2.0], [3.0, 4.0]])
    for f in (lambda x: minigrad.power(x, 3), minigrad.sum, lambda x: minigrad.concatenate([x, x])):
        found = f(matrix)
        assert not isinstance(found, np.matrix)
        assert_array_equal(found, f(np.asarray(matrix)))


def test_compositions_convert_no_array_because_it_is_of_a_subclass():
    class Subclass(np.ndarray):
        pass

    x, moments = np.ones((2, 3, 4), np.float32), np.ones((2, 3))
    for array in (x, x.view(Subclass)):
        assert minigrad.batch_norm(array, *moments).dtype == np.float32
    assert minigrad.batch_norm([[1.0, 2.0, 3.0]], *moments).dtype == np.float64


# ------------------------------------------------------------------------------------------------
# dtypes of results
# ------------------------------------------------------------------------------------------------

WEAK = {
    "int": 2,
    "float": 2.5,
    "bool": True,
    "numpy float64": np.float64(2.5),
    "numpy float32": np.float32(2.5),
    "numpy int64": np.int64(2),
    "enumeration": enum.IntEnum("Rank", {"LOW": 2}).LOW,
    "size": tensor([1.0, 2.0]).size,
    "0-d array": np.array(2.5),
    "0-d integer array": np.array(2),
    "0-d tensor": Tensor(np.array(2.5)),
    "integer array": np.array([2, 3]),
    "boolean array": np.array([True, True]),
    "integer tensor": tensor([2, 3]),
}


@pytest.mark.parametrize("kind", WEAK)
def test_numbers_and_integers_never_promote_a_tensor_of_floats(kind):
    other = WEAK[kind]
    plain = other.data if isinstance(other, Tensor) else other
    dtypes, symbols = (np.float16, np.float32, np.float64), ("+", "-", "*", "/", "**")
    for dtype, symbol in itertools.product(dtypes, symbols):
        x, compute = tensor(np.array([1.5, 2.0], dtype)), OPERATORS[symbol]
        row = f"{symbol} {dtype.__name__}"
        for out, right in (
            (compute(x, other), compute(x.data.astype(np.float64), plain)),
            (compute(other, x), compute(plain, x.data.astype(np.float64))),
        ):
            assert isinstance(out, Tensor), row
            assert out.dtype == dtype, row
            # float16 rounds to 5e-4
            np.testing.assert_allclose(out.data, right, rtol=2e-3, err_msg=row)


@pytest.mark.parametrize("symbol", OPERATORS)
@pytest.mark.parametrize("other", [np.array([2.0, 0.5]), np.array([1, 2]), np.array([[1.0]])])
def test_arrays_on_either_side_of_an_operator_give_a_tensor(symbol, other):
    x = tensor(np.array([1.0, 2.0]), requires_grad=True)
    compute = OPERATORS[symbol]
    for out, right in (
        (compute(x, other), compute(x.data, other)),
        (compute(other, x), compute(other, x.data)),
    ):
        assert isinstance(out, Tensor)
        assert_array_equal(out.data, right)
        assert out.requires_grad == (right.dtype.kind == "f")


def test_arrays_on_either_side_of_a_matrix_product_give_a_tensor():
    x, other = leaf(1.0, 2.0).reshape(1, 2), np.array([[3.0], [4.0]], np.float32)
    for out in (x @ other, other.T @ x.T, [3.0, 4.0] @ x.T, x @ [3.0, 4.0]):
        assert isinstance(out, Tensor)
        assert out.item() == 11.0
        assert out.requires_grad


def test_lists_beside_a_tensor_are_arrays():
    x = tensor([1.0, 2.0])
    plain = [3.0, 4.0]
    for out in (x + plain, plain + x):
        assert_array_equal(out.data, [4.0, 6.0])
        assert out.dtype == np.float32


def test_float_arrays_of_different_width_give_the_wider_one():
    narrow, wide = tensor([1.0, 2.0]), tensor(np.ones(2))
    assert (narrow + wide).dtype == np.float64
    assert (narrow + np.ones(2)).dtype == np.float64
    assert (np.ones(2) + narrow).dtype == np.float64
    assert minigrad.concatenate([narrow, wide]).dtype == np.float64
    assert minigrad.where(np.array([True, False]), narrow, wide).dtype == np.float64


def test_floats_of_zero_dimensions_have_their_common_dtype():
    assert (tensor(1.5) + Tensor(np.array(2.5))).dtype == np.float64
    assert (tensor(1.5) + tensor(2.5)).dtype == np.float32
    assert (tensor(1.5) + np.float64(2.5)).dtype == np.float32


def test_integers_stay_integers_until_they_are_divided():
    x = tensor([4, 9])
    assert (x + 1).dtype == np.int64
    assert (x * x).dtype == np.int64
    assert x.sum().dtype == np.int64
    assert tensor([True, True]).sum().item() == 2
    assert (x / 2).dtype == np.float32
    assert (x * 0.5).dtype == np.float32
    assert (x * np.float64(0.5)).dtype == np.float32
    assert x.mean().dtype == np.float32
    assert_array_equal(minigrad.sqrt(x).data, np.array([2.0, 3.0], np.float32))
    assert minigrad.sqrt(x).dtype == np.float32


def test_comparisons_give_booleans_without_a_graph():
    x = leaf(1.0, 2.0)
    out = x > 1.5
    assert out.dtype == bool
    assert not out.requires_grad
    assert_array_equal((x > 1.5).data, [False, True])


def test_astype_converts_and_keeps_the_graph():
    x = leaf(1.0, 2.0)
    assert x.astype(np.float64).dtype == np.float64
    assert x.astype("float16").dtype == np.float16
    assert tensor([1, 2]).astype(np.float64).dtype == np.float64
    assert x.astype(np.float64).requires_grad
    assert not x.astype(np.int64).requires_grad


@pytest.mark.parametrize("bad", ["a", object(), {}, None], ids=["text", "object", "dict", "None"])
def test_strange_operands_are_refused_by_name(bad):
    x = tensor([1.0, 2.0])
    for compute in (operator.add, operator.mul):
        with pytest.raises(TypeError, match=r"(add|multiply): takes tensors, arrays and numbers"):
            compute(x, bad)
    with pytest.raises(TypeError, match=r"^less: "):
        operator.lt(x, bad)


def test_complex_numbers_are_refused():
    x = tensor([1.0, 2.0])
    for call in (lambda: x * 1j, lambda: 1j * x, lambda: x + np.ones(2, complex)):
        with pytest.raises(TypeError, match=r"tensors, arrays and numbers|not complex128"):
            call()


# ------------------------------------------------------------------------------------------------
# repr, and Python's conversions
# ------------------------------------------------------------------------------------------------


def test_repr_says_shape_dtype_and_op():
    x = leaf(1.0, 2.0)
    assert repr(tensor([1, 2])) == "Tensor([1, 2], shape=(2,), dtype=int64)"
    assert repr(x) == "Tensor([1., 2.], shape=(2,), dtype=float32, requires_grad=True)"
    assert repr(x * 2) == "Tensor([2., 4.], shape=(2,), dtype=float32, op=multiply)"
    assert repr((x * 2).detach()) == "Tensor([2., 4.], shape=(2,), dtype=float32)"
    assert repr(tensor(1.5)) == "Tensor(1.5, shape=(), dtype=float32)"


def test_repr_of_many_elements_is_short_and_aligned():
    assert len(repr(minigrad.zeros(1000, 1000))) < 400
    assert repr(minigrad.eye(2)) == (
        "Tensor([[1., 0.],\n        [0., 1.]], shape=(2, 2), dtype=float32)"
    )


def test_str_of_a_tensor_is_its_repr():
    x = tensor([1.0, 2.0])
    assert str(x) == f"{x}" == repr(x)


def test_format_with_a_spec_is_that_of_the_number():
    assert f"{tensor(2.0 / 3):.3f}" == "0.667"
    assert f"{leaf(2.5):8.2e}" == "2.50e+00"
    with pytest.raises(ValueError, match="one element"):
        f"{tensor([1.0, 2.0]):.2f}"


@pytest.mark.parametrize("convert", [float, int, bool])
@pytest.mark.parametrize("number", [2.75, -1.75, 3, 0])
def test_one_element_converts_to_a_number(convert, number):
    for x in (tensor(number), tensor([[number]]), leaf(number) * 1):
        assert convert(x) == convert(number)
        assert type(convert(x)) is convert


@pytest.mark.parametrize("convert", [float, int, bool, Tensor.item])
@pytest.mark.parametrize("x", [tensor([1.0, 2.0]), minigrad.zeros(0)], ids=["two", "none"])
def test_several_elements_or_none_do_not_convert(convert, x):
    with pytest.raises(ValueError, match="one element"):
        convert(x)


def test_item_and_tolist_are_pythons_own():
    assert type(tensor(2.5).item()) is float
    assert type(tensor([3]).item()) is int
    assert type(tensor(True).item()) is bool
    assert leaf(1.0, 2.0).tolist() == [1.0, 2.0]


def test_integers_serve_as_an_index():
    assert [10, 20, 30][tensor(1)] == 20
    assert list(range(tensor(3))) == [0, 1, 2]
    with pytest.raises(TypeError, match="an index must be an integer"):
        [10, 20][tensor(1.0)]


def test_len_and_iteration_are_along_the_first_axis():
    x = Tensor(np.arange(6.0).reshape(3, 2), requires_grad=True)
    assert len(x) == 3
    rows = list(x)
    assert [row.tolist() for row in rows] == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    rows[1].sum().backward()
    assert_array_equal(x.grad.data, [[0, 0], [1, 1], [0, 0]])
    _, second, _ = x
    assert second.tolist() == [2.0, 3.0]
    assert len(minigrad.zeros(0, 2)) == 0
    assert list(minigrad.zeros(0, 2)) == []


def test_zero_dimensions_have_no_len_and_no_iteration():
    with pytest.raises(TypeError, match="0-d"):
        len(tensor(1.0))
    with pytest.raises(TypeError, match="0-d"):
        list(tensor(1.0))


def test_tensors_are_hashed_by_identity():
    x, y = tensor([1.0]), tensor([1.0])
    assert {x: "x", y: "y"}[x] == "x"
    assert len({x, y, x}) == 2


@pytest.mark.parametrize("name", ["zeros", "ones", "full", "rand", "randn", "randint", "eye"])
def test_impossible_sizes_are_refused_by_name(name):
    fixed = {
        "full": lambda n: minigrad.full(n, 1.0),
        "randint": lambda n: minigrad.randint(0, 2, n),
    }
    make = fixed.get(name, getattr(minigrad, name))
    assert make(2).shape[0] == 2
    with pytest.raises(ValueError, match=f"{name}: each size of a shape must be .* not -1"):
        make(-1)
    with pytest.raises(TypeError, match=rf"{name} takes integers, .* not \(?2.5.* n // 2"):
        make(2.5)


def test_shape_facts():
    x = minigrad.zeros(2, 3)
    assert (x.shape, x.ndim, x.size, x.dtype) == ((2, 3), 2, 6, np.float32)


@pytest.mark.parametrize(("axes", "instead"), [((), ".shape. "), ((1,), ".shape[1]. ")])
def test_a_call_of_size_says_what_to_use(axes, instead):
    with pytest.raises(TypeError, match=re.escape(f"use {instead}") + ".* number of elements, 6$"):
        minigrad.zeros(2, 3).size(*axes)


def test_size_is_a_plain_int_where_it_is_stored():
    size = minigrad.zeros(2, 3).size
    assert type(pickle.loads(pickle.dumps(size))) is type(copy.deepcopy(size)) is int
    assert type(tensor(size).item()) is type(size + 1) is int
    assert json.dumps([size]) == "[6]"
    whole = minigrad.where(tensor([True, False]), size, tensor([1, 2], dtype="int8"))
    assert (whole.dtype, whole.tolist()) == (np.int8, [6, 2])


# ------------------------------------------------------------------------------------------------
# Copies, and memory that is shared
# ------------------------------------------------------------------------------------------------


def test_numpy_shares_memory_and_refuses_what_needs_a_gradient():
    x = tensor([1.0, 2.0])
    assert x.numpy() is x.data
    for needy in (leaf(1.0), leaf(1.0) * 2):
        with pytest.raises(RuntimeError, match=r"\.detach\(\)\.numpy\(\)"):
            needy.numpy()
        assert needy.detach().numpy() is needy.data


def test_detach_shares_memory_and_leaves_the_graph():
    x = leaf(1.0, 2.0)
    y = (x * 2).detach()
    assert not y.requires_grad
    assert y.is_leaf
    assert x.detach().data is x.data
    assert not (y * 3).requires_grad


def test_clone_is_a_copy_that_gradients_flow_through():
    x = leaf(1.0, 2.0)
    y = x.clone()
    assert not np.shares_memory(x.data, y.data)
    (y * 3).sum().backward()
    assert_array_equal(x.grad.data, [3.0, 3.0])


def test_deepcopy_of_a_leaf_copies_value_and_gradient():
    x = leaf(1.0, 2.0)
    (x * 3).sum().backward()
    y = copy.deepcopy(x)
    assert not np.shares_memory(x.data, y.data)
    assert not np.shares_memory(x.grad.data, y.grad.data)
    assert y.requires_grad
    assert y.is_leaf
    (y * 1).sum().backward()
    assert_array_equal(y.grad.data, [4.0, 4.0])
    assert_array_equal(x.grad.data, [3.0, 3.0])


def test_deepcopy_keeps_what_is_shared_shared_and_the_class():
    weight = nn.Parameter(np.ones(2, np.float32))
    first, second = copy.deepcopy([weight, weight])
    assert first is second
    assert type(first) is nn.Parameter
    assert not copy.deepcopy(tensor(1.0)).requires_grad


def test_copy_of_a_leaf_shares_the_memory_and_has_a_gradient_of_its_own():
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    copied = copy.copy(x)
    assert copied.data is x.data
    assert_array_equal(copied.grad.data, [2.0, 4.0])
    copied.requires_grad_(False)
    assert_array_equal(x.grad.data, [2.0, 4.0])
    copy.copy(x).sum().backward()
    assert_array_equal(x.grad.data, [2.0, 4.0])


def test_deepcopy_of_a_result_is_refused():
    advice = r"copy or pickle \.detach\(\), or use \.clone\(\) as a copy"
    with pytest.raises(RuntimeError, match=advice):
        copy.deepcopy(leaf(1.0) * 2)


def test_pickling_a_result_is_refused_at_any_depth_of_its_graph():
    y = leaf(1.0)
    for _ in range(10_000):
        y = y + 1
    with pytest.raises(RuntimeError, match=r"made by add.*\.detach\(\)"):
        pickle.dumps(y)


def test_a_pickled_leaf_keeps_value_flag_gradient_and_class():
    x = nn.Parameter(np.array([1.0, 2.0], np.float32))
    (x * 3).sum().backward()
    y, z = pickle.loads(pickle.dumps([x, x.detach()]))
    assert type(y) is nn.Parameter
    assert_array_equal(y.data, x.data)
    assert_array_equal(y.grad.data, x.grad.data)
    assert not z.requires_grad


class Tagged(nn.Parameter):
    def __init__(self, data, tags):
        super().__init__(data)
        self.tags = tags


class Slotted(nn.Parameter):
    __slots__ = ("tags",)

    def __init__(self, data, tags):
        super().__init__(data)
        self.tags = tags


@pytest.mark.parametrize("kind", [Tagged, Slotted])
def test_a_copy_of_a_leaf_has_the_attributes_of_its_class(kind):
    x = kind([1.0, 2.0], ["decay"])
    for y in (copy.copy(x), copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert type(y) is kind
        assert y.tags == ["decay"]
        assert y.requires_grad
        assert_array_equal(y.data, x.data)
    assert copy.copy(x).tags is x.tags
    assert copy.deepcopy(x).tags is not x.tags
    old = kind.__new__(kind)
    old.__setstate__((np.ones(2, np.float32), True, None))  # as pickles of version 0.2 have it
    assert old.requires_grad
    assert not hasattr(old, "tags")


def test_a_leaf_that_another_process_pickled_gets_a_gradient(tmp_path):
    for _ in range(1000):  # the other process has made fewer nodes than this one
        x = leaf(2.0, 3.0)
    (tmp_path / "x.pickle").write_bytes(pickle.dumps(x))
    script = (
        "import pathlib, pickle, minigrad\n"
        "x = pickle.loads(pathlib.Path('x.pickle').read_bytes())\n"
        "(x * x).sum().backward()\n"
        "assert x.grad.tolist() == [4.0, 6.0], x.grad\n"
    )
    root = str(pathlib.Path(minigrad.__file__).parents[1])
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        check=True,
    )


# ------------------------------------------------------------------------------------------------
# numpy's functions
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "instead"),
    [
        (lambda x: np.exp(x), "minigrad.exp"),
        (lambda x: np.tanh(x), "minigrad.tanh"),
        (lambda x: np.sum(x), "minigrad.sum"),
        (lambda x: np.mean(x, axis=0), "minigrad.mean"),
        (lambda x: np.max(x), "minigrad.max"),
        (lambda x: np.abs(x), "minigrad.abs"),
        (lambda x: np.maximum(x, 0), "minigrad.maximum"),
        (lambda x: np.where(x > 0, x, 0), "minigrad.where"),
        (lambda x: np.concatenate([x, x]), "minigrad.concatenate"),
        (lambda x: np.reshape(x, (1, 2)), "minigrad.reshape"),
        (lambda x: np.transpose(x), "minigrad.transpose"),
        (lambda x: np.add.reduce(x), "minigrad.add"),
    ],
)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_numpys_functions_are_an_error_that_names_ours(call, instead, requires_grad):
    x = tensor([1.0, 2.0], requires_grad=requires_grad)
    with pytest.raises(TypeError, match=rf"does not take Tensors; use {instead}"):
        call(x)


def test_a_ufunc_that_we_lack_is_an_error_too():
    with pytest.raises(TypeError, match=r"numpy.arctan2 .*tensor\.detach\(\)\.numpy\(\)"):
        np.arctan2(tensor([1.0]), 1.0)


def test_numpy_operators_by_their_names_are_ours():
    x = leaf(1.0, 2.0)
    out = np.multiply(np.float32([3, 4]), x)
    assert isinstance(out, Tensor)
    assert out.requires_grad


def test_shape_functions_and_functions_that_we_lack_see_arrays():
    x = tensor([3.0, 1.0, 2.0])
    assert np.shape(x) == (3,)
    assert np.ndim(x) == 1
    assert np.size(x) == 3
    assert np.shape(leaf(1.0)) == (1,)
    assert np.median(x) == 2.0
    with pytest.raises(RuntimeError, match="requires a gradient"):
        np.median(leaf(1.0, 2.0))


@pytest.mark.parametrize(
    ("write", "error"),
    [
        (lambda x: np.multiply([2.0, 2.0], [5.0, 5.0], out=x), TypeError),
        (lambda x: np.median(np.ones((2, 2)), axis=0, out=x), TypeError),
        (lambda x: np.copyto(x, [5.0, 5.0]), ValueError),
        (lambda x: np.put(x, [0], [5.0]), ValueError),
    ],
)
def test_numpys_functions_write_into_no_tensor(write, error):
    x = tensor([1.0, 2.0])
    with pytest.raises(error, match=r"copy_|read-?only"):
        write(x)
    assert_array_equal(x.data, [1.0, 2.0])


def test_array_of_a_tensor_that_needs_no_gradient():
    x = tensor([1.0, 2.0])
    assert_array_equal(np.asarray(x), [1.0, 2.0])
    assert np.asarray(x, np.float64).dtype == np.float64
    assert not np.shares_memory(np.array(x), x.data)
    with pytest.raises(RuntimeError, match="requires a gradient"):
        np.asarray(leaf(1.0))


def test_in_place_operators_of_arrays_take_constants_only():
    array = np.ones(2, np.float32)
    same = array
    array += tensor([1.0, 2.0])
    assert array is same
    assert_array_equal(array, [2.0, 3.0])
    with pytest.raises(RuntimeError, match="requires a gradient"):
        array += leaf(1.0, 2.0)
    assert_array_equal(array, [2.0, 3.0])


# ------------------------------------------------------------------------------------------------
# Writing
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, slice(None), np.array([True, False])])
def test_item_assignment_says_what_to_use(index):
    x = leaf(1.0, 2.0)
    with pytest.raises(TypeError, match=r"minigrad\.where.*x\.data\[index\] = value"):
        x[index] = 0.0
    assert_array_equal(x.data, [1.0, 2.0])


@pytest.mark.parametrize("index", [0, slice(2), (slice(None), 1), ..., (None, 1)])
def test_in_place_arithmetic_on_a_part_is_that_on_the_view(index):
    x, expected = Tensor(np.ones((3, 2))), np.ones((3, 2))
    x[index] += 1
    expected[index] += 1
    assert_array_equal(x.data, expected)
    w = Tensor(np.ones((3, 2)), requires_grad=True)
    loss = (w * w).sum()
    with pytest.raises(RuntimeError, match="would overwrite"):
        w[index] += 1
    assert_array_equal(w.data, np.ones((3, 2)))
    with minigrad.no_grad():
        w[index] += 1
    assert_array_equal(w.data, expected)
    with pytest.raises(RuntimeError, match="written since"):
        loss.backward()


@pytest.mark.parametrize("index", [[0], np.array([True, False, True])])
def test_in_place_arithmetic_on_elements_that_are_copied_is_refused(index):
    x = Tensor(np.ones((3, 2)))
    with pytest.raises(TypeError, match="not written in place"):
        x[index] += 1
    with pytest.raises(TypeError, match="not written in place"):
        x[:2] = x[1:]
    assert_array_equal(x.data, np.ones((3, 2)))


IN_PLACE = {
    "+": operator.iadd,
    "-": operator.isub,
    "*": operator.imul,
    "/": operator.itruediv,
    "**": operator.ipow,
}


@pytest.mark.parametrize("symbol", IN_PLACE)
def test_in_place_operators_are_refused_where_gradients_depend_on_them(symbol):
    x = leaf(1.0, 2.0)
    with pytest.raises(RuntimeError, match=rf"x {re.escape(symbol)}= y would overwrite"):
        IN_PLACE[symbol](x, 2.0)
    with pytest.raises(RuntimeError, match="would overwrite"):
        IN_PLACE[symbol](x * 1, 2.0)
    with pytest.raises(RuntimeError, match="would overwrite"):
        IN_PLACE[symbol](tensor([1.0, 2.0]), x)
    result = x.exp()  # which exp has saved
    with no_grad(), pytest.raises(RuntimeError, match="would overwrite"):
        IN_PLACE[symbol](result, 2.0)
    assert_array_equal(x.data, [1.0, 2.0])


@pytest.mark.parametrize("symbol", IN_PLACE)
def test_in_place_operators_write_to_the_same_memory_under_no_grad(symbol):
    x = leaf(1.0, 2.0)
    same, memory = x, x.data
    with no_grad():
        x = IN_PLACE[symbol](x, np.float32([2, 4]))
    assert x is same
    assert x.data is memory
    assert x.dtype == np.float32
    assert_array_equal(x.data, OPERATORS[symbol](np.float32([1, 2]), np.float32([2, 4])))
    assert x.requires_grad


def test_in_place_operators_work_on_constants():
    x = tensor([1.0, 2.0])
    memory = x.data
    x += 1
    assert x.data is memory
    assert_array_equal(x.data, [2.0, 3.0])


def test_in_place_operators_change_neither_dtype_nor_shape():
    x = tensor([1, 2])
    with pytest.raises(TypeError, match="would change the dtype int64 to float32"):
        x += 0.5
    y = tensor([1.0, 2.0])
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        y += np.ones((2, 2), np.float32)
    assert x.tolist() == [1, 2]
    assert y.tolist() == [1.0, 2.0]


def test_in_place_float64_array_does_not_change_a_float32_tensor():
    x = tensor([1.0, 2.0])
    with pytest.raises(TypeError, match="would change the dtype float32 to float64"):
        x += np.ones(2)


def test_assigning_data_replaces_the_value_of_a_leaf():
    x = leaf(1.0, 2.0)
    x.data = np.array([3.0, 4.0], np.float32)
    assert_array_equal(x.data, [3.0, 4.0])
    assert x.requires_grad
    (x * x).sum().backward()
    assert_array_equal(x.grad.data, [6.0, 8.0])


def test_assigning_data_of_another_dtype_goes_with_the_gradient():
    x = leaf(1.0, 2.0)
    x.data = np.array([3.0, 4.0])
    (x * x).sum().backward()
    assert x.grad.dtype == np.float64


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.ones(3, np.float32), ValueError, r"shape \(3,\).*shape \(2,\)"),
        (np.array([1, 2]), TypeError, "only floats"),
        ("ab", TypeError, "booleans, integers or floats"),
    ],
)
def test_data_that_does_not_fit_is_refused_and_nothing_changes(value, error, message):
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    with pytest.raises(error, match=message):
        x.data = value
    y.backward()
    assert_array_equal(x.grad.data, [2.0, 4.0])


@pytest.mark.parametrize("value", [300, -1, np.inf, np.nan])
def test_a_number_that_does_not_fit_is_not_written(value):
    x = minigrad.tensor(np.array([1, 2], np.uint8))
    with pytest.raises(ValueError, match=f"{value} does not fit into uint8"):
        x.copy_(np.array([3, value]))
    assert x.data.tolist() == [1, 2]
    assert x.copy_([3.5, 255]).data.tolist() == [3, 255]


def test_results_of_ops_cannot_be_assigned_or_written():
    y = leaf(1.0, 2.0) * 2
    with pytest.raises(RuntimeError, match="result of an op"):
        y.data = np.zeros(2, np.float32)
    with pytest.raises(RuntimeError, match="result of an op"):
        y.copy_([0.0, 0.0])
    assert y.tolist() == [2.0, 4.0]


def test_copy_of_a_value_that_is_differentiated_is_refused():
    x, buffer = leaf(1.0, 2.0), tensor([0.0, 0.0])
    with pytest.raises(RuntimeError, match=r"copy_: .*made by multiply.*detach"):
        buffer.copy_(x * 2)
    assert_array_equal(buffer.data, [0.0, 0.0])
    with minigrad.no_grad():
        buffer.copy_(x * 2)
    assert_array_equal(buffer.data, [2.0, 4.0])
    buffer.copy_(x)  # a leaf, such as the weight of another model
    assert_array_equal(buffer.data, [1.0, 2.0])


def test_copy_writes_into_the_same_memory_and_returns_the_tensor():
    x = leaf(1.0, 2.0)
    memory = x.data
    assert x.copy_(tensor([3.0, 4.0])) is x
    assert x.data is memory
    assert_array_equal(memory, [3.0, 4.0])
    with pytest.raises(ValueError, match=r"shape \(3,\) into a tensor of shape \(2,\)"):
        x.copy_(np.ones(3))


# ------------------------------------------------------------------------------------------------
# The need for a gradient
# ------------------------------------------------------------------------------------------------


def test_requires_grad_can_be_switched():
    x = tensor([1.0, 2.0])
    assert not x.requires_grad
    assert x.requires_grad_() is x
    (x * 2).sum().backward()
    assert x.grad is not None
    x.requires_grad = False
    assert not x.requires_grad
    assert x.grad is None
    assert not (x * 2).requires_grad


@pytest.mark.parametrize("flag", ["no", 1, None, 0.0])
def test_the_need_for_a_gradient_is_true_or_false(flag):
    x = tensor([1.0])
    for switch in (
        lambda: tensor([1.0], requires_grad=flag),
        lambda: minigrad.zeros(2, requires_grad=flag),
        lambda: x.requires_grad_(flag),
        lambda: setattr(x, "requires_grad", flag),
    ):
        with pytest.raises(TypeError, match=rf"requires_grad must be True or False, not {flag!r}"):
            switch()
    assert not x.requires_grad


def test_switching_on_what_is_on_keeps_the_gradient():
    x = leaf(1.0)
    (x * 2).backward()
    x.requires_grad_()
    assert x.grad.tolist() == [2.0]


def test_a_graph_made_before_the_need_was_switched_off_still_works():
    x, y = leaf(2.0), leaf(3.0)
    out = x * y
    x.requires_grad = False
    out.backward()
    assert y.grad.tolist() == [2.0]
    assert x.grad is None


def test_results_need_a_gradient_if_an_input_does():
    assert (leaf(1.0) + tensor([1.0])).requires_grad
    assert not (tensor([1.0]) + tensor([1.0])).requires_grad
    with pytest.raises(RuntimeError, match=r"because its inputs do; use \.detach\(\)"):
        (leaf(1.0) * 2).requires_grad = False


# ------------------------------------------------------------------------------------------------
# Factories
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (minigrad.zeros(2, 3), np.zeros((2, 3), np.float32)),
        (minigrad.zeros((2, 3)), np.zeros((2, 3), np.float32)),
        (minigrad.zeros(()), np.zeros((), np.float32)),
        (minigrad.ones(2, dtype=np.float64), np.ones(2)),
        (minigrad.full((2, 2), 1.5), np.full((2, 2), 1.5, np.float32)),
        (minigrad.full(2, 7), np.array([7, 7])),
        (minigrad.full(2, 7, dtype=np.float64), np.array([7.0, 7.0])),
        (minigrad.zeros_like(tensor(np.ones((1, 2)))), np.zeros((1, 2))),
        (minigrad.ones_like(tensor([1, 2])), np.array([1, 1])),
        (minigrad.ones_like(tensor([1, 2]), dtype=np.float32), np.ones(2, np.float32)),
        (minigrad.arange(3), np.array([0, 1, 2])),
        (minigrad.arange(1, 7, 2), np.array([1, 3, 5])),
        (minigrad.arange(0, 1, 0.25), np.array([0, 0.25, 0.5, 0.75], np.float32)),
        (minigrad.linspace(0, 1, 5), np.linspace(0, 1, 5, dtype=np.float32)),
        (minigrad.eye(2), np.eye(2, dtype=np.float32)),
        (minigrad.eye(2, 3, dtype=np.float64), np.eye(2, 3)),
    ],
)
def test_factories(x, expected):
    assert isinstance(x, Tensor)
    assert x.dtype == expected.dtype
    assert x.shape == expected.shape
    assert_array_equal(x.data, expected)
    assert not x.requires_grad


@pytest.mark.parametrize("like", [minigrad.zeros_like, minigrad.ones_like])
def test_a_list_has_no_shape_to_copy(like):
    with pytest.raises(TypeError, match=rf"^{like.__name__}: takes a Tensor or an array, not"):
        like([1])


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: minigrad.zeros(2, **options),
        lambda **options: minigrad.ones(2, **options),
        lambda **options: minigrad.full(2, 1.0, **options),
        lambda **options: minigrad.zeros_like(tensor([1.0]), **options),
        lambda **options: minigrad.ones_like(tensor([1.0]), **options),
        lambda **options: minigrad.arange(0.0, 2.0, **options),
        lambda **options: minigrad.linspace(0, 1, 3, **options),
        lambda **options: minigrad.eye(2, **options),
        lambda **options: minigrad.randn(2, **options),
        lambda **options: minigrad.rand(2, **options),
        lambda **options: minigrad.tensor([1.0], **options),
    ],
)
def test_factories_make_leaves_of_any_float_dtype(make):
    x = make(dtype=np.float64, requires_grad=True)
    assert x.dtype == np.float64
    assert x.requires_grad
    assert x.is_leaf
    with pytest.raises(TypeError, match="only floats"):
        make(dtype=np.int64, requires_grad=True)
    assert make(dtype=None).dtype == np.float32  # numpy takes None for float64


def test_random_factories_draw_from_their_distributions():
    normal = minigrad.randn(100, 100).data
    assert normal.dtype == np.float32
    assert abs(normal.mean()) < 0.05
    assert abs(normal.std() - 1) < 0.05
    uniform = minigrad.rand(100, 100).data
    assert uniform.dtype == np.float32
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() <= 1
    assert abs(uniform.mean() - 0.5) < 0.02
    integers = minigrad.randint(2, 5, (100,))
    assert integers.dtype == np.int64
    assert set(integers.tolist()) == {2, 3, 4}
    assert minigrad.randint(0, 2, 3).shape == (3,)
    assert minigrad.randn().shape == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: minigrad.arange(0, 3, 0), "^arange: step must not be 0"),
        (lambda: minigrad.randint(3, 3, (2,)), "^randint: low must be less than high, .* high=3"),
    ],
)
def test_factories_refuse_what_is_not_there(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("dtype", ["int64", bool])
def test_random_floats_are_not_cut_off(dtype):
    for draw in (minigrad.rand, minigrad.randn):
        with pytest.raises(TypeError, match=r"draws only floats, not \w+; use randint"):
            draw(3, dtype=dtype)


DRAWS = {
    "randn": lambda **options: minigrad.randn(5, **options),
    "rand": lambda **options: minigrad.rand(5, **options),
    "randint": lambda **options: minigrad.randint(0, 1000, 5, **options),
    "dropout": lambda **options: minigrad.dropout(minigrad.ones(100), 0.5, **options),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_equal_seeds_give_equal_numbers(draw):
    minigrad.manual_seed(1)
    first, second = draw().tolist(), draw().tolist()
    assert first != second
    minigrad.manual_seed(1)
    assert draw().tolist() == first
    assert draw(rng=np.random.default_rng(1)).tolist() == first
    assert draw(rng=minigrad.manual_seed(1)).tolist() == first


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_generator_of_ones_own_leaves_the_default_one_alone(draw):
    minigrad.manual_seed(1)
    right = minigrad.rand(3).tolist()
    minigrad.manual_seed(1)
    draw(rng=np.random.default_rng(5))
    assert minigrad.rand(3).tolist() == right


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_seed_in_the_place_of_a_generator_is_refused(draw):
    with pytest.raises(TypeError, match=r"rng must be .*numpy\.random\.default_rng\(seed\)"):
        draw(rng=1)


def test_dropout_keeps_the_mean_and_drops_the_asked_share():
    x = minigrad.ones(100_000)
    out = minigrad.dropout(x, 0.3).data
    assert abs((out == 0).mean() - 0.3) < 0.01
    assert set(np.unique(out)) == {np.float32(0), np.float32(1) / np.float32(0.7)}
    assert minigrad.dropout(x, 0.3, training=False).data is x.data
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="p is a probability"):
            minigrad.dropout(x, bad)


# ------------------------------------------------------------------------------------------------
# Methods
# ------------------------------------------------------------------------------------------------


def test_methods_without_arguments_are_the_functions():
    for name in (
        *("abs", "exp", "log", "sqrt", "tanh", "sigmoid", "relu", "gelu"),
        *("sum", "mean", "max", "var", "softmax", "log_softmax", "logsumexp"),
        *("transpose", "squeeze", "clone"),
    ):
        x = tensor(np.array([[1.5, 0.5, 2.5]]))
        found, right = getattr(x, name)(), getattr(minigrad, name)(x)
        assert_array_equal(found.data, right.data, err_msg=name)


@pytest.mark.parametrize("name", ["sum", "mean", "max", "var", "logsumexp"])
def test_reductions_as_methods_take_axis_and_keepdims(name):
    x = minigrad.randn(2, 3, 4)
    function = getattr(minigrad, name)
    for axis in (1, -1, (0, 2), None):
        for keepdims in (True, False):
            found = getattr(x, name)(axis=axis, keepdims=keepdims)
            assert_array_equal(found.data, function(x, axis=axis, keepdims=keepdims).data)
    assert getattr(x, name)(1).shape == (2, 4)


def test_shape_methods():
    x = minigrad.randn(2, 3, 4)
    assert x.reshape(6, 4).shape == x.reshape((6, 4)).shape == x.reshape(-1, 4).shape == (6, 4)
    assert x.reshape(24).shape == x.reshape(-1).shape == (24,)
    assert x.transpose().shape == x.T.shape == (4, 3, 2)
    assert x.transpose(1, 0, 2).shape == x.transpose((1, 0, 2)).shape == (3, 2, 4)
    assert x.swapaxes(0, -1).shape == (4, 3, 2)
    assert x.expand_dims(0).shape == (1, 2, 3, 4)
    assert x.expand_dims((0, -1)).shape == (1, 2, 3, 4, 1)
    assert x.expand_dims(0).squeeze(0).shape == (2, 3, 4)
    assert x.broadcast_to((5, 2, 3, 4)).shape == (5, 2, 3, 4)
    assert x.var(axis=0, ddof=1).shape == (3, 4)
    for axis in (0, 1, (0, 2)):
        assert_array_equal(x.softmax(axis).data, minigrad.softmax(x, axis).data)
        assert_array_equal(x.log_softmax(axis).data, minigrad.log_softmax(x, axis).data)


def test_unary_operators():
    x = tensor([1.0, -2.0])
    assert (-x).tolist() == [-1.0, 2.0]
    assert (+x).tolist() == [1.0, -2.0]
    assert abs(x).tolist() == [1.0, 2.0]


# ------------------------------------------------------------------------------------------------
# Messages about shapes
# ------------------------------------------------------------------------------------------------

ROW = minigrad.zeros(3)
MATRIX = minigrad.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: minigrad.zeros(2) + ROW, r"^add: .*\(2,\) \(3,\)"),
        (lambda: MATRIX @ MATRIX, r"^matmul: shapes \(2, 3\) and \(2, 3\).*3 != 2.*b\.T\?"),
        (lambda: MATRIX @ minigrad.zeros(4, 5), r"^matmul: .*3 != 4;"),
        (lambda: minigrad.linear(MATRIX, minigrad.zeros(4, 2)), r"^linear: .*\(2, 3\).*\(4, 2\)"),
        (lambda: MATRIX @ tensor(2.0), r"^matmul: .* for a number use \*"),
        (lambda: ROW @ minigrad.zeros(4), r"^matmul: shapes \(3,\) and \(4,\).*3 != 4;"),
        (
            lambda: minigrad.linear(MATRIX, minigrad.zeros(4, 3), ROW),
            r"^linear: a bias of shape \(3,\).*it must be \(4,\)",
        ),
        (lambda: minigrad.concatenate([ROW], axis=None), r"^concatenate: axis=None"),
        (lambda: MATRIX.reshape(4), r"^reshape: .*\(4,\).*\(2, 3\) float32"),
        (lambda: MATRIX.sum(axis=2), r"^sum: axis 2 is out of bounds"),
        (lambda: MATRIX.mean(axis=-3), r"axis -3 is out of bounds"),
        (lambda: MATRIX.max(axis=(0, 0)), r"^max: duplicate value in 'axis'"),
        (lambda: MATRIX.transpose(0, 1, 2), r"^transpose: axes don't match"),
        (lambda: minigrad.mse(ROW, ROW, "avg"), r"^mse: reduction is .* not 'avg'"),
        (
            lambda: minigrad.cross_entropy(MATRIX, tensor([0, 1, 2])),
            r"^cross_entropy: .*\(2, 3\), with .* axis 1, have shape \(2,\), not \(3,\)",
        ),
        (
            lambda: minigrad.cross_entropy(MATRIX, tensor([0, 3])),
            r"^cross_entropy: targets run from 0 to 3, but there are 3 classes",
        ),
        (lambda: minigrad.cross_entropy(MATRIX, tensor([-1, 0])), r"targets run from -1 to 0"),
        (
            lambda: minigrad.cross_entropy(MATRIX, np.array([2**64 - 100, 0], np.uint64)),
            r"^cross_entropy: 18446744073709551516 does not fit into int64",
        ),
    ],
)
def test_messages_about_shapes_name_the_op_and_the_shapes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: minigrad.full(2, None), TypeError, "full: a tensor contains booleans"),
        (
            lambda: minigrad.full(2, leaf(1.0).sum()),
            TypeError,
            "full: the value requires a gradient",
        ),
        (lambda: minigrad.full(2, 300, "uint8"), ValueError, "full: 300 does not fit into uint8"),
        (lambda: minigrad.linspace(0, 1, -1), ValueError, "linspace: "),
        (lambda: minigrad.arange(3, step=0), ValueError, "arange: step must not be 0"),
        (lambda: minigrad.arange(None), TypeError, "arange: start must be a number, not None"),
        (lambda: minigrad.zeros(2, dtype=complex), TypeError, "zeros: a tensor contains booleans"),
        (lambda: minigrad.ones(2, size=3), TypeError, "ones: "),
        (lambda: minigrad.eye(-1), ValueError, "eye: each size of a shape must be"),
        (lambda: minigrad.rand(2, rng=0), TypeError, "rand: rng must be a numpy.random.Generator"),
        (lambda: minigrad.randn(2, dtype=int), TypeError, "randn: draws only floats, not int64"),
        (lambda: minigrad.randint(2, 2, 3), ValueError, "randint: low must be less than high"),
    ],
)
def test_messages_about_new_tensors_name_the_function(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message)


def test_cross_entropy_refuses_targets_that_are_no_integers():
    with pytest.raises(TypeError, match=r"^cross_entropy: targets are integer classes"):
        minigrad.cross_entropy(MATRIX, tensor([0.0, 1.0]))


def test_an_index_out_of_bounds_is_an_index_error():
    for index in (2, (0, 3), np.array([0, 5])):
        with pytest.raises(IndexError, match="out of bounds"):
            MATRIX[index]
    with pytest.raises(IndexError):
        MATRIX["text"]


def test_target_of_another_dtype_does_not_change_the_loss():
    prediction = leaf(1.0, 2.0)
    for loss in (minigrad.mse, minigrad.l1):
        assert loss(prediction, np.array([0.0, 0.0])).dtype == np.float32
        assert loss(prediction, tensor([0, 0])).dtype == np.float32


def test_a_step_of_descent_by_hand_is_written_and_noted():
    w = tensor([1.0, 2.0], requires_grad=True)
    y = (w * w).sum()
    (w * 3).sum().backward()
    w.data -= 0.5 * w.grad
    assert w.data.tolist() == [-0.5, 0.5]
    with pytest.raises(RuntimeError, match="written since"):
        y.backward()


def test_masks_can_be_combined():
    x = tensor([1.0, 2.0, 3.0])
    assert ((x > 1) & (x < 3)).tolist() == [False, True, False]
    assert ((x < 2) | np.array([False, False, True])).tolist() == [True, False, True]
    assert (np.array([True, True, False]) & ~(x > 1)).tolist() == [True, False, False]
    with pytest.raises(TypeError, match="takes booleans"):
        x & x
    assert isinstance(np.array([True, True, False]) & (x > 1), Tensor)


@pytest.mark.parametrize("decorator", [minigrad.no_grad, minigrad.no_grad()])
def test_no_grad_decorates_with_and_without_parentheses(decorator):
    x = tensor([1.0], requires_grad=True)

    @decorator
    def doubled(x):
        return x * 2

    assert not doubled(x).requires_grad
    assert (x * 2).requires_grad


def test_one_context_can_be_entered_twice():
    context = minigrad.no_grad()
    with context, context:
        assert not minigrad.is_grad_enabled()
    assert minigrad.is_grad_enabled()


def test_no_grad_on_a_generator_is_refused():
    with pytest.raises(TypeError, match="cannot be decorated"):

        @minigrad.no_grad
        def numbers():
            yield 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: minigrad.tensor(0.1, dtype=np.float64),
        lambda: Tensor([0.1], dtype=np.float64),
        lambda: minigrad.full((2,), 0.1, dtype=np.float64),
        lambda: minigrad.nn.Parameter([[0.1]], dtype=np.float64),
    ],
)
def test_a_number_that_is_to_be_float64_keeps_all_its_digits(make):
    assert make().dtype == np.float64
    assert (make().data == 0.1).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("function", ["tanh", "exp", "divide", "sum"])
def test_an_array_that_was_pickled_computes_in_its_dtype(dtype, function):
    array = np.linspace(0.1, 2, 10_000).reshape(-1, 2).astype(dtype)
    other = pickle.loads(pickle.dumps(array))  # which makes another object of its dtype

    def result(x):
        operands = {"divide": (x, x[::-1]), "sum": (x, 0)}.get(function, (x,))
        return getattr(minigrad, function)(*operands)

    for given in (lambda x: x, minigrad.tensor, minigrad.Tensor):
        found, expected = (np.asarray(result(given(x))) for x in (other, array))
        assert (found.dtype, found.tobytes()) == (expected.dtype, expected.tobytes())
