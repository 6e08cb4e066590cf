"""Functions of functions: value_and_grad, gradient, vjp, jvp, hvp, jacobian, hessian."""

import copy
import gc
import pydoc
import weakref
from functools import partial

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import (
    Observer,
    Tensor,
    assert_gradients,
    checkpoint,
    grad,
    is_grad_enabled,
    nn,
    no_grad,
    observe,
    op,
)
from minigrad.core.grad_mode import mode
from minigrad.transforms import (
    gradient,
    hessian,
    hvp,
    jacfwd,
    jacobian,
    jvp,
    value_and_grad,
    vjp,
)
from tests.minigrad.refusals import not_refused

A = np.array([[1.0, 2.0, -1.0], [0.5, -1.5, 3.0]])
X = np.array([0.5, -1.2, 0.8])
Y = np.array([1.1, 0.7])
V = np.array([0.3, -2.0, 1.5])
W = np.array([-0.4, 0.9])


def gradient_of(f, argnums=0):
    """The gradient of f as a function."""
    return lambda *args: value_and_grad(f, argnums)(*args)[1]


CONSTANT = Tensor(3.0, requires_grad=True)


INTO_A_BUFFER = Tensor(np.zeros(3))
DROPPING = {
    "copy_ of an input": lambda x: (INTO_A_BUFFER.copy_(x * 2) * x).sum(),
    "copy_ into an input": lambda x: (x.copy_(x * 2) * x).sum(),
    "copy_ of a constant": lambda x: (x.copy_(np.ones(3)) * x).sum(),
    "requires_grad_": lambda x: (x.requires_grad_(False) * x).sum(),
    "deepcopy": lambda x: (copy.deepcopy(x) * x).sum(),
}


@pytest.mark.parametrize("transform", [gradient, lambda f: lambda x: jvp(f, x, V)])
@pytest.mark.parametrize("name", DROPPING)
def test_what_would_drop_a_derivative_or_overwrite_an_input_is_refused(name, transform):
    x = Tensor(X.copy())
    with pytest.raises(RuntimeError, match="detach"):
        transform(DROPPING[name])(x)
    assert_array_equal(x.data, X)
    assert_array_equal(INTO_A_BUFFER.data, np.zeros(3))


def cubes(x):
    return (x**3).sum()


def coupled(x, y):
    """A scalar of both inputs; with derivatives of any order that do not vanish."""
    return (minigrad.matmul(A.astype(x.dtype), x).tanh() * y.exp()).sum() + (x * x).sum() * y.sum()


def mapped(x, y):
    """(3,), (2,) -> (2, 3)."""
    return (y.reshape(2, 1) * x).tanh() + A.astype(x.dtype) * x.exp()


class Passes(Observer):
    """Notes for each VJP that runs whether it runs on Tensors, under create_graph."""

    def __init__(self):
        self.recorded = []

    def on_vjp(self, node, parent, gradient, result):
        self.recorded.append(isinstance(gradient, Tensor))


# ------------------------------------------------------------------------------------------------
# Values, against closed forms
# ------------------------------------------------------------------------------------------------


def test_value_and_gradient():
    value, gradient = value_and_grad(cubes)(X)
    assert_allclose(value.data, (X**3).sum(), rtol=1e-14)
    assert_allclose(gradient.data, 3 * X**2, rtol=1e-14)
    assert type(value) is type(gradient) is Tensor


def test_gradient_alone():
    assert_allclose(gradient(cubes)(X).data, 3 * X**2, rtol=1e-14)
    by_y, by_x = gradient(coupled, argnums=(1, 0))(X, Y)
    right = value_and_grad(coupled, argnums=(0, 1))(X, Y)[1]
    assert_array_equal(by_x.data, right[0].data)
    assert_array_equal(by_y.data, right[1].data)
    found, aux = gradient(lambda x: (cubes(x), {"x": x}), has_aux=True)(X)
    assert_allclose(found.data, 3 * X**2, rtol=1e-14)
    assert_array_equal(aux["x"].data, X)
    assert aux["x"].node is None


def test_results_have_names():
    found = value_and_grad(cubes)(X)
    assert_allclose(found.gradient.data, 3 * X**2, rtol=1e-14)
    assert found.value is found[0]
    found = vjp(cubes, X)
    assert_allclose(found.pullback(1.0)[0].data, 3 * X**2, rtol=1e-14)
    found = jvp(cubes, X, V)
    assert_allclose(found.tangent.data, (3 * X**2 * V).sum(), rtol=1e-14)
    assert_allclose(found.value.data, (X**3).sum(), rtol=1e-14)


@pytest.mark.parametrize("transform", [value_and_grad, gradient, jacobian, hessian])
def test_transformed_functions_say_what_they_compute(transform):
    def loss(weights, x=1.0):
        """The loss."""

    made = transform(transform(loss))
    name = transform.__name__
    assert made.__name__ == f"{name}({name}(loss))"
    assert f"{name}({name}(loss))" in repr(made)
    text = pydoc.render_doc(made, renderer=pydoc.plaintext)
    assert "(weights, x=1.0)" in text
    what = {"value_and_grad": "ValueAndGrad(value, gradient)"}.get(name, name.capitalize())
    assert what.lower() in text.lower()
    assert transform(loss).__wrapped__ is loss
    assert transform(nn.Linear(3, 1)).__name__ == f"{name}(Linear)"
    assert transform(minigrad.tanh).__name__ == f"{name}(tanh)"


def test_gradients_by_several_arguments_are_a_tuple_in_the_order_asked_for():
    def f(x, y, z):
        return (x * y * z).sum()

    _, (by_z, by_x) = value_and_grad(f, argnums=(2, 0))(X, V, 2.0)
    assert_allclose(by_z.data, (X * V).sum(), rtol=1e-14)
    assert_allclose(by_x.data, 2 * V, rtol=1e-14)
    (alone,) = value_and_grad(f, argnums=[1])(X, V, 2.0)[1]
    assert_allclose(alone.data, 2 * X, rtol=1e-14)


@pytest.mark.parametrize("argnums", [-1, np.int64(1)])
def test_argnums_are_ints_of_any_kind_and_count_from_the_end_too(argnums):
    gradient = gradient_of(lambda x, y: (x * y).sum(), argnums)(X, V)
    assert_allclose(gradient.data, X, rtol=1e-14)


def test_aux_comes_beside_the_value():
    def f(x):
        y = x * 2
        return y.sum(), {"y": y, "parts": [y, (y, "text")], "n": 3}

    (value, aux), gradient = value_and_grad(f, has_aux=True)(X)
    assert_allclose(value.data, 2 * X.sum(), rtol=1e-14)
    assert_allclose(gradient.data, [2, 2, 2])
    assert aux["n"] == 3
    assert aux["parts"][1][1] == "text"
    for y in (aux["y"], aux["parts"][0], aux["parts"][1][0]):
        assert_allclose(y.data, 2 * X)
        assert y.node is None


def test_arrays_of_floats_become_tensors_whatever_argnums_are():
    def f(x, y):
        assert type(x) is type(y) is Tensor
        return coupled(x, y)

    for argnums in (0, 1, (0, 1)):
        for transform in (value_and_grad, jacobian, hessian):
            transform(f, argnums)(X, Y)


def test_other_arguments_are_handed_on_as_they_are():
    marker, seen = object(), []

    def f(a, x, array, number, *, option):
        seen.extend([a, array, number, option])
        return x.sum()

    given = [marker, np.arange(3), 0.1, X]
    for transform in (value_and_grad, jacobian, hessian):
        transform(f, argnums=1)(given[0], X, given[1], given[2], option=given[3])
    assert all(one is other for one, other in zip(seen, given * 3, strict=True))


def test_vjp_is_the_cotangent_times_the_jacobian():
    value, pullback = vjp(lambda x, y: minigrad.matmul(A, x) * y, X, Y)
    assert_allclose(value.data, A @ X * Y, rtol=1e-14)
    for v in (W, Tensor(W), 2 * W):  # as often as one likes
        by_x, by_y = pullback(v)
        v = np.array(v)
        assert_allclose(by_x.data, (v * Y) @ A, rtol=1e-14)
        assert_allclose(by_y.data, v * (A @ X), rtol=1e-14)


def test_jvp_is_the_jacobian_times_the_tangent():
    value, product = jvp(lambda x: minigrad.matmul(A, x.exp()), X, V)
    assert_allclose(value.data, A @ np.exp(X), rtol=1e-14)
    assert_allclose(product.data, A @ (np.exp(X) * V), rtol=1e-14)
    value, product = jvp(lambda x, y: minigrad.matmul(A, x) * y, (X, Y), [V, W])
    assert_allclose(product.data, (A @ V) * Y + (A @ X) * W, rtol=1e-14)


def test_jvp_of_a_sum_of_its_arguments_adds_the_tangents():
    product = jvp(lambda x, y: x + y, (X, X), (V, 2 * V))[1]
    assert_allclose(product.data, 3 * V, rtol=1e-14)


def test_hvp_is_the_hessian_times_the_tangent():
    assert_allclose(hvp(cubes, X, V).data, 6 * X * V, rtol=1e-14)
    (alone,) = hvp(cubes, [X], [V])
    assert_allclose(alone.data, 6 * X * V, rtol=1e-14)
    by_x, by_y = hvp(lambda x, y: (x * x * y).sum(), (X, V), (V, X))
    assert_allclose(by_x.data, 2 * V * V + 2 * X * X, rtol=1e-14)
    assert_allclose(by_y.data, 2 * X * V, rtol=1e-14)


def test_jacobian_has_the_shape_of_the_value_and_then_of_the_argument():
    J = jacobian(lambda x: minigrad.matmul(A, x))(X)
    assert J.shape == (2, 3)
    assert_array_equal(J.data, A)
    x = np.arange(6.0).reshape(2, 3)
    J = jacobian(lambda x: (x**2).transpose())(x)
    assert J.shape == (3, 2, 2, 3)
    right = np.zeros((3, 2, 2, 3))
    for i, j in np.ndindex(2, 3):
        right[j, i, i, j] = 2 * x[i, j]
    assert_array_equal(J.data, right)


def test_jacobians_by_several_arguments_are_a_tuple():
    by_y, by_x = jacobian(lambda x, y: minigrad.matmul(A, x) * y, argnums=(1, 0))(X, Y)
    assert_allclose(by_y.data, np.diag(A @ X), rtol=1e-14)
    assert_allclose(by_x.data, Y[:, None] * A, rtol=1e-14)


def long(x, y):
    """A value with far more elements than its arguments have: (2, 1), (3,) -> (5, 2, 3)."""
    return (np.arange(1.0, 6.0).reshape(5, 1, 1) * x * y).tanh() * y.exp()


def test_a_jacobian_by_columns_is_that_by_rows(monkeypatch):
    arguments = [Y.reshape(2, 1), X]
    with observe(Passes()) as by_columns:
        columns = jacobian(long, argnums=(0, 1))(*arguments)
        same = jacfwd(long, argnums=(0, 1))(*arguments)
    monkeypatch.setattr("minigrad.transforms.derivatives.ROWS_PER_COLUMN", np.inf)
    with observe(Passes()) as by_rows:
        rows = jacobian(long, argnums=(0, 1))(*arguments)
    assert [J.shape for J in columns] == [(5, 2, 3, 2, 1), (5, 2, 3, 3)]
    for one, two, other in zip(columns, same, rows, strict=True):
        assert_allclose(one.data, other.data, rtol=1e-12, atol=1e-14)
        assert_array_equal(one.data, two.data)
    assert by_columns.recorded == []
    assert by_rows.recorded


def test_hessian():
    H = hessian(cubes)(X)
    assert_allclose(H.data, np.diag(6 * X), rtol=1e-14)
    S = np.array([[1.0, 2.0, 0.0], [4.0, -1.0, 3.0], [1.0, 1.0, 2.0]])
    H = hessian(lambda x: minigrad.matmul(x, minigrad.matmul(S, x)))(X)
    assert_allclose(H.data, S + S.T, rtol=1e-14)
    x = np.ones((2, 3))
    assert hessian(lambda x: (x.sum(axis=0) ** 2).sum())(x).shape == (2, 3, 2, 3)


def test_hessian_by_several_arguments_is_a_tuple_of_tuples_of_blocks():
    blocks = hessian(lambda x, y: (x.sum() ** 2) * (y**2).sum(), argnums=(0, 1))(X, Y)
    assert type(blocks) is tuple
    assert [[block.shape for block in row] for row in blocks] == [
        [(3, 3), (3, 2)],
        [(2, 3), (2, 2)],
    ]
    s = X.sum()
    assert_allclose(blocks[0][0].data, np.full((3, 3), 2 * (Y**2).sum()), rtol=1e-13)
    assert_allclose(blocks[0][1].data, np.tile(4 * s * Y, (3, 1)), rtol=1e-13)
    assert_allclose(blocks[1][0].data, blocks[0][1].data.T, rtol=1e-13)
    assert_allclose(blocks[1][1].data, 2 * s**2 * np.eye(2), rtol=1e-13)
    ((alone,),) = hessian(cubes, argnums=[0])(X)
    assert_allclose(alone.data, np.diag(6 * X), rtol=1e-14)


# ------------------------------------------------------------------------------------------------
# Kinds of arguments and values
# ------------------------------------------------------------------------------------------------


def all_of_them(f, x):
    """What each transform gives for f, a scalar function of one argument."""
    v = np.ones(np.shape(x))
    value, gradient = value_and_grad(f)(x)
    pulled, pullback = vjp(f, x)
    pushed, product = jvp(f, x, v)
    return {
        "value": value,
        "gradient": gradient,
        "vjp value": pulled,
        "vjp": pullback(1.0 if value.ndim == 0 else np.ones(value.shape))[0],
        "jvp value": pushed,
        "jvp": product,
        "hvp": hvp(f, x, v),
        "jacobian": jacobian(f)(x),
        "hessian": hessian(f)(x),
    }


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (2.0, np.float32),
        (np.float64(2.0), np.float64),
        (np.array(2.0), np.float64),
        (np.array([[2.0]], np.float32), np.float32),
        (Tensor(2.0), np.float32),
        (Tensor(np.array([2.0])), np.float64),
        (np.float16(2.0), np.float16),
    ],
    ids=repr,
)
def test_numbers_arrays_and_tensors_keep_dtype_and_shape(x, dtype):
    results = all_of_them(lambda x: (x**3).sum(), x)
    right = dict.fromkeys(results, 12)
    right |= {"value": 8, "vjp value": 8, "jvp value": 8, "hvp": 12, "hessian": 12}
    shape = np.shape(x)
    shapes = dict.fromkeys(results, ()) | {
        "gradient": shape,
        "vjp": shape,
        "hvp": shape,
        "jacobian": shape,
        "hessian": shape + shape,
    }
    for name, result in results.items():
        assert_allclose(result.data, np.full(shapes[name], right[name]), rtol=1e-6, err_msg=name)
        assert result.shape == shapes[name], name
        assert result.dtype == dtype, name


def test_a_python_float_is_float32_as_in_tensor():
    cube = lambda x: x**3
    for x, dtype in (
        (2.0, np.float32),
        (np.float64(2.0), np.float64),
        (minigrad.tensor(2.0), np.float32),
        (minigrad.tensor(2.0, dtype="float64"), np.float64),
    ):
        value, found = value_and_grad(cube)(x)
        assert (value.dtype, found.dtype) == (dtype, dtype)
        assert gradient(lambda t: cube(t["x"][0]))({"x": [x]})["x"][0].dtype == dtype
        assert jvp(cube, x, 1.0).tangent.dtype == dtype
    with pytest.raises(TypeError, match=r"argument 0 has dtype int64, .* write 2.0, or"):
        value_and_grad(cube)(2)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_value_of_one_element_may_have_any_shape(shape):
    results = all_of_them(lambda x: (x**2).sum().reshape(shape), X)
    assert results["value"].shape == shape
    assert_allclose(results["gradient"].data, 2 * X)
    assert_allclose(results["hvp"].data, [2, 2, 2])
    assert results["jacobian"].shape == (*shape, 3)
    assert results["hessian"].shape == (3, 3)


def test_arguments_without_elements():
    results = all_of_them(lambda x: (x**2).sum(), np.zeros((0, 2)))
    assert results["jvp"].data == 0
    assert results["gradient"].shape == results["vjp"].shape == results["hvp"].shape == (0, 2)
    assert results["jacobian"].shape == (0, 2)
    assert results["hessian"].shape == (0, 2, 0, 2)
    # by columns, of which there are none
    assert jacobian(lambda x: x.sum() + np.ones(4))(np.zeros(0)).shape == (4, 0)


def test_values_without_elements():
    J = jacobian(lambda x: x[:0])(X.astype(np.float32))
    assert J.shape == (0, 3)
    assert J.dtype == np.float32
    value, pullback = vjp(lambda x: x[:0], X)
    assert_array_equal(pullback(np.zeros(0))[0].data, np.zeros(3))
    assert jvp(lambda x: x[:0], X, V)[1].shape == value.shape == (0,)


def test_gradients_of_broadcast_arguments_have_their_shapes():
    x, y = np.ones((2, 1)), np.ones((1, 3))
    _, (by_x, by_y) = value_and_grad(lambda x, y: (x * y).sum(), argnums=(0, 1))(x, y)
    assert_array_equal(by_x.data, np.full((2, 1), 3.0))
    assert_array_equal(by_y.data, np.full((1, 3), 2.0))
    assert jacobian(lambda x, y: x * y, argnums=(0, 1))(x, y)[1].shape == (2, 3, 1, 3)
    assert_array_equal(jvp(lambda x, y: x * y, (x, y), (x, y))[1].data, np.full((2, 3), 2.0))


def test_each_derivative_has_the_dtype_of_its_argument():
    x, y = X.astype(np.float32), V
    f = lambda x, y: (x * y * y).sum()  # in float64
    _, gradients = value_and_grad(f, argnums=(0, 1))(x, y)
    assert [g.dtype for g in gradients] == [np.float32, np.float64]
    assert [g.dtype for g in hvp(f, (x, y), (y, x))] == [np.float32, np.float64]
    assert [J.dtype for J in jacobian(f, argnums=(0, 1))(x, y)] == [np.float32, np.float64]
    assert jvp(f, (x, y), (y, x))[1].dtype == np.float64
    assert vjp(f, x, y)[1](np.float32(1.0))[0].dtype == np.float32


def test_tangents_and_cotangents_take_the_dtype_of_what_they_go_with():
    assert_allclose(jvp(cubes, X, np.array([1, 0, 2]))[1].data, 3 * X**2 @ [1, 0, 2], rtol=1e-14)
    (pulled,) = vjp(lambda x: x, X)[1](np.array([1, 0, 2]))
    assert_array_equal(pulled.data, [1.0, 0.0, 2.0])
    assert pulled.dtype == np.float64


def test_an_argument_that_does_not_reach_the_value_has_derivatives_zero():
    f = lambda x, y: cubes(x)
    _, (_, gradient) = value_and_grad(f, argnums=(0, 1))(X, Y)
    assert_array_equal(gradient.data, np.zeros(2))
    assert_array_equal(vjp(f, X, Y)[1](1.0)[1].data, np.zeros(2))
    assert_array_equal(jvp(f, (X, Y), (0 * V, W))[1].data, 0.0)
    assert_array_equal(hvp(f, (X, Y), (V, W))[1].data, np.zeros(2))
    assert_array_equal(jacobian(f, argnums=1)(X, Y).data, np.zeros(2))
    assert_array_equal(hessian(f, argnums=(0, 1))(X, Y)[0][1].data, np.zeros((3, 2)))
    assert value_and_grad(f, argnums=1)(X, Y.astype(np.float32))[1].dtype == np.float32


@pytest.mark.parametrize(
    "f",
    [
        lambda x: Tensor(np.float64(3.0)),
        lambda x: x.detach().sum(),
        lambda x: Tensor(3.0 * x.shape[0]),
        lambda x: Tensor(3.0 if x.sum() > -100 else 4.0),
    ],
    ids=["new", "detached", "of the shape", "of a condition"],
)
def test_a_constant_has_derivatives_zero(f):
    results = all_of_them(f, X)
    for name in ("gradient", "vjp", "hvp", "jacobian"):
        assert_array_equal(results[name].data, np.zeros(3))
    assert_array_equal(results["jvp"].data, 0.0)
    assert_array_equal(results["hessian"].data, np.zeros((3, 3)))
    assert results["value"].data == results["jvp value"].data


def test_a_linear_function_has_second_derivatives_zero():
    assert_array_equal(hessian(lambda x: (2 * x).sum())(X).data, np.zeros((3, 3)))
    assert_array_equal(hvp(lambda x: (2 * x).sum(), X, V).data, np.zeros(3))


def test_a_function_that_returns_its_argument():
    assert_array_equal(jacobian(lambda x: x)(X).data, np.eye(3))
    assert_array_equal(jvp(lambda x: x, X, V)[1].data, V)
    assert_array_equal(vjp(lambda x: x, X)[1](V)[0].data, V)
    assert_array_equal(value_and_grad(lambda x: x)(2.0)[1].data, 1.0)


def test_the_same_tensor_as_two_arguments_has_two_derivatives():
    x = Tensor(X)
    by_first, by_second = value_and_grad(lambda a, b: (a * b * b).sum(), argnums=(0, 1))(x, x)[1]
    assert_allclose(by_first.data, X**2, rtol=1e-14)
    assert_allclose(by_second.data, 2 * X**2, rtol=1e-14)


def test_results_share_memory_with_nothing():
    v = W.copy()
    x = Tensor(X)
    by_x, by_y = vjp(lambda x, y: x + y, W, W)[1](v)
    _, (g, h) = value_and_grad(lambda x, y: x.sum() + y.sum(), argnums=(0, 1))(x, X)
    arrays = [by_x.data, by_y.data, g.data, h.data]
    for i, array in enumerate(arrays):
        assert array.flags.owndata
        assert array.flags.writeable
        assert not any(np.shares_memory(array, other) for other in [v, X, *arrays[:i]])


# ------------------------------------------------------------------------------------------------
# Values, against differences and against each other
# ------------------------------------------------------------------------------------------------

# Each transform as a function of tensors, which is then itself differentiated once and twice.
AS_FUNCTIONS = {
    "value of value_and_grad": lambda x, y: value_and_grad(coupled, (0, 1))(x, y)[0],
    "gradient by the first": lambda x, y: gradient_of(coupled, 0)(x, y),
    "gradient by the second": lambda x, y: gradient_of(coupled, 1)(x, y),
    "value of vjp": lambda x, y: vjp(mapped, x, y)[0],
    "vjp": lambda x, y, v: minigrad.concatenate(vjp(mapped, x, y)[1](v)),
    "vjp of one of two": lambda x, y, v: vjp(lambda x: mapped(x, y), x)[1](v)[0],
    "value of jvp": lambda x, y: jvp(mapped, (x, y), (V, W))[0],
    "jvp": lambda x, y, u, w: jvp(mapped, (x, y), (u, w))[1],
    "jvp of one of two": lambda x, y, u: jvp(lambda x: mapped(x, y), x, u)[1],
    "hvp": lambda x, y, u, w: minigrad.concatenate(hvp(coupled, (x, y), (u, w))),
    "hvp of one of two": lambda x, y, u: hvp(lambda x: coupled(x, y), x, u),
    "jacobian": lambda x, y: jacobian(mapped)(x, y),
    "jacobian by columns": lambda x, y: jacobian(long, 0)(y.reshape(2, 1), x),
    "hessian": lambda x, y: hessian(coupled)(x, y),
    "mixed block of a hessian": lambda x, y: hessian(coupled, (0, 1))(x, y)[0][1],
}
EXTRA = {
    "vjp": [A],
    "vjp of one of two": [A],
    "jvp": [V, W],
    "jvp of one of two": [V],
    "hvp": [V, W],
    "hvp of one of two": [V],
}


SLOW = "jacobian by columns", "hessian", "mixed block of a hessian"


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.full) if name in SLOW or "of one" in name else name
        for name in AS_FUNCTIONS
    ],
)
def test_transforms_can_be_differentiated_twice(name):
    assert_gradients(AS_FUNCTIONS[name], X, Y, *EXTRA.get(name, []))


def differences(f, x, step=1e-5):
    """The Jacobian of f at x, from central differences."""
    columns = []
    for index in np.ndindex(x.shape):
        h = np.zeros(x.shape)
        h[index] = step
        columns.append((f(Tensor(x + h)).data - f(Tensor(x - h)).data) / (2 * step))
    return np.stack(columns, axis=-1).reshape(columns[0].shape + x.shape)


def test_jacobian_agrees_with_differences():
    x = np.linspace(-1.0, 1.0, 6).reshape(2, 3)
    f = lambda x: minigrad.softmax(minigrad.gelu(x)) * x.sum()
    J = differences(f, x)
    v, u = np.cos(np.arange(6.0)).reshape(2, 3), np.sin(np.arange(6.0)).reshape(2, 3)
    assert_allclose(jacobian(f)(x).data, J, rtol=1e-7, atol=1e-9)
    assert_allclose(jvp(f, x, v)[1].data, np.tensordot(J, v, 2), rtol=1e-7, atol=1e-9)
    assert_allclose(vjp(f, x)[1](u)[0].data, np.tensordot(u, J, 2), rtol=1e-7, atol=1e-9)


def test_hessian_agrees_with_differences_of_the_gradient():
    f = lambda x: minigrad.logsumexp(x * x) + (x.exp() * A).tanh().sum()
    H = differences(gradient_of(f), X)
    assert_allclose(hessian(f)(X).data, H, rtol=1e-6, atol=1e-9)
    assert_allclose(hvp(f, X, V).data, H @ V, rtol=1e-6, atol=1e-9)


# Each step takes a (2, 3) and gives one.
STEPS = {
    "tanh": lambda h: h.tanh(),
    "exp": lambda h: h.exp(),
    "square": lambda h: h * h,
    "sigmoid": lambda h: h.sigmoid(),
    "softmax": lambda h: h.softmax(),
    "gelu": lambda h: minigrad.gelu(h),
    "matmul": lambda h: h @ np.array([[0.5, -1.0, 0.2], [1.0, 0.3, -0.6], [-0.2, 0.8, 0.4]]),
    "linear": lambda h: minigrad.linear(h, np.eye(3)[[2, 0, 1]] - 0.5, X),
    "broadcast": lambda h: h - h.sum(axis=0, keepdims=True) * h[1, 2],
    "logsumexp": lambda h: h * h.logsumexp(axis=1, keepdims=True),
    "reorder": lambda h: h.transpose().reshape(2, 3),
    "pieces": lambda h: minigrad.concatenate([h[1:], h[:1] * h[1:]]),
    "checkpoint": lambda h: checkpoint(lambda a: (a * a).tanh(), h),
}
compositions = st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5)


@pytest.mark.full
@hypothesis.given(steps=compositions, seed=st.integers(0, 2**32 - 1))
@hypothesis.settings(max_examples=60)
def test_the_transforms_of_a_composition_fit_each_other(steps, seed):
    def f(x, y):
        h = x * y
        for name in steps:
            h = STEPS[name](2 * h / (1 + h * h))  # within -1 and 1
        return h + x.sigmoid() * y

    def loss(x, y):
        return (f(x, y) ** 2).sum()

    rng = np.random.default_rng(seed)
    x, u = rng.standard_normal((2, 2, 3))
    y, w = rng.standard_normal((2, 2, 1))
    v = rng.standard_normal((2, 3))

    # <v, J u> == <J^T v, u>, and both are those of the Jacobian
    product = jvp(f, (x, y), (u, w))[1].data
    pulled = [g.data for g in vjp(f, x, y)[1](v)]
    one, other = np.vdot(v, product), np.vdot(pulled[0], u) + np.vdot(pulled[1], w)
    scale = np.abs(product).max() + np.abs(pulled[0]).max()
    assert_allclose(one, other, rtol=1e-9, atol=1e-9 * scale)
    J = [block.data for block in jacobian(f, argnums=(0, 1))(x, y)]
    assert_allclose(
        np.tensordot(J[0], u, 2) + np.tensordot(J[1], w, 2), product, rtol=1e-9, atol=1e-9 * scale
    )

    # H is symmetric, and hvp is its product
    H = [[block.data for block in row] for row in hessian(loss, argnums=(0, 1))(x, y)]
    full = np.block(
        [[H[a][b].reshape([x, y][a].size, [x, y][b].size) for b in (0, 1)] for a in (0, 1)]
    )
    scale = np.abs(full).max()
    assert_allclose(full, full.T, rtol=1e-9, atol=1e-10 * scale)
    products = hvp(loss, (x, y), (u, w))
    assert_allclose(
        np.concatenate([g.data.ravel() for g in products]),
        full @ np.concatenate([u.ravel(), w.ravel()]),
        rtol=1e-9,
        atol=1e-9 * scale,
    )


FUSED = {
    "softmax": lambda x: minigrad.softmax(x)[1] * x.sum(),
    "log_softmax": lambda x: minigrad.log_softmax(x)[0],
    "gelu": lambda x: minigrad.gelu(x).sum(),
    "logsumexp": lambda x: minigrad.logsumexp(x),
    "linear": lambda x: (minigrad.linear(x, A, Y) ** 3).sum(),
    "cross_entropy": lambda x: minigrad.cross_entropy(x, 2),
    "checkpoint": lambda x: checkpoint(lambda a: (a * a).tanh().sum(), x),
    "replayed": lambda x: replayed(x, x + 1.0).sum(),
}


@op(composition=lambda x, y: minigrad.tanh(x * y) * x, replayed=True)
def replayed(x, y):
    return np.tanh(x * y) * x


@replayed.vjp("x")
def _replayed_x(g, x, y):
    assert type(g) is type(x) is np.ndarray
    t = np.tanh(x * y)
    return np.multiply(g, t + x * y * (1 - t * t))


@replayed.vjp("y")
def _replayed_y(g, x, y):
    assert type(g) is type(x) is np.ndarray
    return np.multiply(g, x * x * (1 - np.tanh(x * y) ** 2))


@pytest.mark.parametrize("name", FUSED)
def test_fused_ops_and_checkpoints(name):
    f = FUSED[name]
    g, H = differences(f, X), differences(gradient_of(f), X)
    tolerance = {"rtol": 1e-6, "atol": 1e-8}
    assert_allclose(value_and_grad(f)(X)[1].data, g, **tolerance)
    assert_allclose(vjp(f, X)[1](2.0)[0].data, 2 * g, **tolerance)
    assert_allclose(jvp(f, X, V)[1].data, g @ V, **tolerance)
    assert_allclose(jacobian(f)(X).data, g, **tolerance)
    assert_allclose(hvp(f, X, V).data, H @ V, **tolerance)
    assert_allclose(hessian(f)(X).data, H, **tolerance)
    third = differences(lambda x: hvp(f, x, V), X)
    assert_allclose(jacobian(lambda x: hvp(f, x, V))(X).data, third, rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------------------------
# Nesting
# ------------------------------------------------------------------------------------------------


def pushed(f):
    return lambda x: jvp(f, x, 1.0)[1]


def pulled(f):
    return lambda x: vjp(f, x)[1](1.0)[0]


@pytest.mark.parametrize("outer", [gradient_of, pushed, pulled, jacobian])
@pytest.mark.parametrize("inner", [gradient_of, pushed, pulled, jacobian])
def test_derivatives_to_order_four(inner, outer):
    f = lambda x: x**5 + x.exp()
    x, e = 1.5, np.exp(1.5)
    for transforms, right in (
        ([inner], 5 * x**4 + e),
        ([inner, outer], 20 * x**3 + e),
        ([inner, outer, inner], 60 * x**2 + e),
        ([outer, inner, inner, outer], 120 * x + e),
    ):
        g = f
        for transform in transforms:
            g = transform(g)
        assert_allclose(g(np.float64(x)).data, right, rtol=1e-12)


def test_second_order_transforms_nest():
    f = lambda x: x**5
    x = np.float64(1.5)
    assert_allclose(hessian(hessian(f))(x).data, 120 * x, rtol=1e-12)
    assert_allclose(hvp(lambda x: hvp(f, x, 2.0), x, 3.0).data, 6 * 120 * x, rtol=1e-12)
    assert_allclose(hvp(hessian(f), x, 2.0).data, 2 * 120 * x, rtol=1e-12)
    assert_allclose(gradient_of(lambda x: hvp(f, x, x))(x).data, 80 * x**3, rtol=1e-12)


def test_a_hessian_is_the_jacobian_of_the_gradient():
    H = hessian(coupled)(X, Y).data
    for by_rows_or_columns in (jacobian, jacfwd):
        assert_allclose(by_rows_or_columns(gradient_of(coupled))(X, Y).data, H, rtol=1e-12)
    assert_allclose(H, H.T, rtol=1e-12)
    mixed = jacobian(gradient_of(coupled, 0), argnums=1)(X, Y).data
    assert_allclose(mixed, hessian(coupled, argnums=(0, 1))(X, Y)[0][1].data, rtol=1e-12)


def test_third_derivatives_are_symmetric():
    T = jacobian(hessian(coupled))(X, Y).data
    for axes in ((1, 0, 2), (0, 2, 1), (2, 1, 0)):
        assert_allclose(T, T.transpose(axes), rtol=1e-10, atol=1e-12)


# Examples like those of Siskind and Pearlmutter (2005).
CONFUSING = {
    "d/dx [x d/dy (x + y)]": (
        lambda x: x * gradient_of(lambda y: x + y)(1.0),
        lambda x: 1.0,
    ),
    "d/dx [x d/dy (x y) at y = 2]": (
        lambda x: x * gradient_of(lambda y: x * y)(2.0),
        lambda x: 2 * x,
    ),
    "d/dx [x d/dy (x y) at y = x]": (
        lambda x: x * gradient_of(lambda y: x * y)(x),
        lambda x: 2 * x,
    ),
    "d/dx [x d/dy (x y^2) at y = x]": (
        lambda x: x * gradient_of(lambda y: x * y * y)(x),
        lambda x: 6 * x**2,
    ),
    "by jvp: d/dx [x d/dy (x + y)]": (
        lambda x: x * jvp(lambda y: x + y, 1.0, 1.0)[1],
        lambda x: 1.0,
    ),
    "by vjp: d/dx [x d/dy (x y) at y = x]": (
        lambda x: x * vjp(lambda y: x * y, x)[1](1.0)[0],
        lambda x: 2 * x,
    ),
    "in the tangent: d/dx [d/dy (y^2) at y = 3, along x]": (
        lambda x: jvp(lambda y: y * y, 3.0, x)[1],
        lambda x: 6.0,
    ),
    "in the cotangent": (
        lambda x: vjp(lambda y: y * y, 3.0)[1](x * x)[0],
        lambda x: 12 * x,
    ),
    "three deep": (
        lambda x: gradient_of(lambda y: gradient_of(lambda z: x * x * y * y * z * z)(y))(x),
        lambda x: 24 * x**3,
    ),
    "two inner ones at once": (
        lambda x: gradient_of(lambda y: x * y * y)(x) * gradient_of(lambda y: y * x)(3.0),
        lambda x: 6 * x**2,
    ),
}


@pytest.mark.parametrize("outer", [gradient_of, pushed, pulled, jacobian])
@pytest.mark.parametrize("name", CONFUSING)
def test_perturbations_are_not_confused(name, outer):
    f, derivative = CONFUSING[name]
    assert_allclose(outer(f)(1.5).data, derivative(1.5), rtol=1e-6)


def test_backward_goes_through_a_transform_into_arguments_and_closures():
    x, w, v = (Tensor(a, requires_grad=True) for a in (X, V, V[::-1].copy()))
    h = x * 2
    f = lambda h: (h**3 * w).sum()
    hvp(f, h, v).sum().backward()
    assert_allclose(x.grad.data, 12 * w.data * v.data, rtol=1e-13)
    assert_allclose(w.grad.data, 6 * h.data * v.data, rtol=1e-13)
    assert_allclose(v.grad.data, 6 * h.data * w.data, rtol=1e-13)


def test_a_pullback_is_differentiable_by_its_cotangent():
    v = Tensor(V, requires_grad=True)
    (g,) = vjp(lambda x: x * x, X)[1](v)
    assert_allclose(grad(g.sum(), v).data, 2 * X, rtol=1e-14)


def test_gradient_penalty():
    model = nn.MLP([3, 4, 1], activation=minigrad.tanh, dtype=np.float64)
    x = np.random.default_rng(0).standard_normal((5, 3))
    _, g = value_and_grad(lambda x: model(x).sum())(x)
    ((g * g).sum(axis=1).sqrt() - 1.0).mean().backward()
    found = [p.grad for p in model.parameters()]

    weights = [p.data.copy() for p in model.parameters()]

    def penalty(*weights):
        first, bias, second, _ = weights
        slope = (1 - (minigrad.linear(Tensor(x), first, bias)).tanh() ** 2) * second
        return ((slope @ first) ** 2).sum(axis=1).sqrt().mean()

    right = value_and_grad(penalty, argnums=(0, 1, 2, 3))(*weights)[1]
    assert found[3] is None or not found[3].data.any()  # the last bias shifts the value only
    for one, other in zip(found[:3], right[:3], strict=True):
        assert_allclose(one.data, other.data, rtol=1e-10, atol=1e-13)


def test_training_through_unrolled_steps_of_descent():
    rate = Tensor(np.float64(0.1), requires_grad=True)

    def trained(rate):
        w = Tensor(X)
        for _ in range(3):
            w = w - rate * gradient_of(lambda w: (w * w).sum())(w)
        return (w * w).sum()

    trained(rate).backward()
    shrink = 1 - 2 * 0.1
    assert_allclose(rate.grad.data, -12 * shrink**5 * (X**2).sum(), rtol=1e-12)


def test_aux_is_part_of_the_graph_where_something_outside_wants_it():
    w = Tensor(V, requires_grad=True)

    def f(x):
        h = x * x
        return h.sum(), (h * w, h)

    x = Tensor(X)
    (value, (wanted, unwanted)), _ = value_and_grad(f, has_aux=True)(x)
    assert value.node is None
    assert unwanted.node is None
    assert_allclose(grad(wanted.sum(), w).data, X**2, rtol=1e-14)


def test_checkpoint_of_a_function_that_uses_a_transform():
    def f(x):
        return (x * gradient_of(lambda y: (y**3 * w).sum())(x)).sum()

    x, w = Tensor(X, requires_grad=True), Tensor(V, requires_grad=True)
    found = grad(checkpoint(f, x), [x, w])
    assert_allclose(found[0].data, 9 * X**2 * V, rtol=1e-13)
    assert_allclose(found[1].data, 3 * X**3, rtol=1e-13)


def test_a_graph_behind_the_inputs_is_not_walked():
    w = Tensor(V, requires_grad=True)
    h, c = w.exp(), w.exp()
    (h + c).sum().backward()  # frees it
    gradient = gradient_of(lambda h: (h**2 * c).sum())(h)
    assert_allclose(gradient.data, 2 * np.exp(V) ** 2, rtol=1e-13)
    with pytest.raises(RuntimeError, match="was freed"):
        grad(gradient.sum(), w)


# ------------------------------------------------------------------------------------------------
# The graph: recorded if something outside wants it, else not
# ------------------------------------------------------------------------------------------------


def results_of(f, x, v):
    """What each transform gives for f, a scalar function of one argument, as one flat tuple."""
    value, pullback = vjp(f, x)
    return (
        *value_and_grad(f)(x),
        value,
        *pullback(1.0),
        *jvp(f, x, v),
        hvp(f, x, v),
        jacobian(f)(x),
        hessian(f)(x),
        *value_and_grad(lambda x: (f(x), f(x)), has_aux=True)(x)[0],
    )


def test_no_graph_is_left_where_nothing_outside_wants_one():
    outside = Tensor(V, requires_grad=True)
    assert outside.requires_grad
    for x in (X, Tensor(X)):
        assert all(result.node is None for result in results_of(lambda x: (x**3).sum(), x, V))


def test_no_graph_is_left_by_what_inner_transforms_record_for_outer_ones():
    f = lambda x: (gradient_of(lambda y: (y**3 * x).sum())(V) * x).sum()
    assert all(result.node is None for result in results_of(f, X, V))


@pytest.mark.parametrize("outside", ["argument", "closure", "result of an op", "tangent"])
def test_a_graph_is_left_where_something_outside_wants_one(outside):
    leaf = Tensor(V, requires_grad=True)
    other = {"closure": leaf, "result of an op": leaf * 1.0}.get(outside, V)
    x = leaf if outside == "argument" else X
    v = leaf if outside == "tangent" else V
    f = lambda x: (x**3 * other).sum()
    recorded = [result.node is not None for result in results_of(f, x, v)]
    if outside == "tangent":
        of_jvp_and_hvp = (5, 6)
        assert recorded == [i in of_jvp_and_hvp for i in range(len(recorded))]
    else:
        assert all(recorded)


def test_under_no_grad_a_transform_differentiates_and_leaves_no_graph():
    x, w = Tensor(X, requires_grad=True), Tensor(V, requires_grad=True)
    seen = []

    def f(x):
        seen.append(is_grad_enabled())
        return (x**3 * w).sum()

    with no_grad():
        results = results_of(f, x, w)
        inner = gradient_of(lambda x: (gradient_of(f)(x) * x).sum())(x)
    assert seen.count(False) == 1  # by jvp, which leaves the mode as it is
    assert all(result.node is None for result in results)
    assert_allclose(results[1].data, 3 * X**2 * V, rtol=1e-14)
    assert_allclose(results[6].data, 6 * X * V * V, rtol=1e-14)
    assert_allclose(inner.data, 9 * X**2 * V, rtol=1e-14)


def test_a_pullback_records_in_the_mode_that_it_is_called_in():
    w = Tensor(V, requires_grad=True)
    _, pullback = vjp(lambda x: x * w, X)
    with no_grad():
        assert pullback(V)[0].node is None
    assert pullback(V)[0].node is not None
    with no_grad():
        _, pullback = vjp(lambda x: x * w, X)
    assert pullback(V)[0].node is None


def test_constants_and_leaves_made_within_f_want_nothing():
    c = Tensor(V)
    f = lambda x: (x**3 * c * np.arange(3) * Tensor(X, requires_grad=True)).sum()
    assert all(result.node is None for result in results_of(f, X, V))


PLAIN = {
    "value_and_grad": lambda f, x: value_and_grad(f)(x),
    "vjp": lambda f, x: vjp(f, x)[1](1.0),
    "jacobian": lambda f, x: jacobian(f)(x),
}


@pytest.mark.parametrize("name", PLAIN)
def test_the_backward_pass_is_plain_unless_something_outside_wants_it(name):
    w = Tensor(V, requires_grad=True)
    f = lambda x: (x**3 * w).sum()
    with observe(Passes()) as wanted:
        PLAIN[name](f, X)
    with no_grad(), observe(Passes()) as unwanted:
        PLAIN[name](f, X)
    with observe(Passes()) as constant:
        PLAIN[name](lambda x: (x**3 * V).sum(), X)
    assert set(wanted.recorded) == {True}
    assert set(unwanted.recorded) == set(constant.recorded) == {False}


def test_forward_mode_takes_no_backward_pass_or_one():
    with observe(Passes()) as passes:
        jvp(cubes, X, V)
    assert passes.recorded == []
    with observe(Passes()) as passes:
        hvp(lambda x: cubes(x * V), X, V)
    assert len(passes.recorded) == 3  # one for each op


class Nodes(Observer):
    """Keeps weak references to the nodes and arrays of all results."""

    def __init__(self):
        self.references = []

    def on_call(self, op, inputs, result):
        if isinstance(result, Tensor) and result.node is not None:
            self.references.append(weakref.ref(result.node))

    def alive(self):
        return sum(reference() is not None for reference in self.references)


def test_the_graph_goes_when_the_transform_returns():
    gc.collect()
    gc.disable()
    try:
        with observe(Nodes()) as nodes:
            results = results_of(lambda x: (x.exp() * x).sum(), X, V)
        assert len(nodes.references) > 20
        assert nodes.alive() == 0
        assert len(results) == 11
    finally:
        gc.enable()


def test_a_plain_pass_frees_what_was_saved_as_it_goes():
    class Freed(Observer):
        def __init__(self):
            self.names = []

        def on_free(self, node):
            self.names.append(node.name)

    with observe(Freed()) as freed:
        value_and_grad(lambda x: x.exp().tanh().sum())(X)
    assert freed.names == ["sum", "tanh", "exp"]


@pytest.mark.full
def test_a_thousand_calls_leave_nothing_behind():
    run = jacobian(lambda x, y: (x * y).tanh(), argnums=(0, 1))
    run(X, V)
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(1000):
            run(X, V)
        assert len(gc.get_objects()) - before < 20
        results_of(cubes, X, V)
        gc.collect()
        results_of(cubes, X, V)
        assert gc.collect() == 0
    finally:
        gc.enable()


# ------------------------------------------------------------------------------------------------
# What is not touched
# ------------------------------------------------------------------------------------------------


def test_flags_gradients_and_values_of_the_caller_are_untouched():
    asking, constant, w = Tensor(X, requires_grad=True), Tensor(X), Tensor(V, requires_grad=True)
    asking.sum().backward()
    (w * 2.0).sum().backward()
    kept, kept_by_w, node = asking.grad, w.grad, asking.node
    f = lambda x: (x**3 * w).sum()
    for x in (asking, constant):
        results_of(f, x, V)
    assert asking.node is node
    assert asking.grad is kept
    assert w.grad is kept_by_w
    assert_array_equal(kept.data, np.ones(3))
    assert constant.node is None
    assert_array_equal(asking.data, [0.5, -1.2, 0.8])


def test_parameters_of_a_model_get_no_gradient():
    model = nn.MLP([3, 4, 1])
    value_and_grad(lambda x: model(x).sum())(X.astype(np.float32))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_hooks_of_the_caller_see_outer_passes_only():
    seen = []
    x = Tensor(X, requires_grad=True)
    x.register_hook(lambda g: seen.append(g.data.copy()))
    gradient = gradient_of(cubes)(x)
    assert seen == []
    gradient.sum().backward()
    assert_allclose(seen, [6 * X], rtol=1e-14)


@pytest.mark.parametrize("asks", [False, True])
def test_hooks_within_f_are_part_of_f(asks):
    def f(x):
        x.register_hook(lambda g: g * 2)
        return cubes(x)

    gradient = gradient_of(f)(Tensor(X, requires_grad=asks))
    assert_allclose(gradient.data, 6 * X**2, rtol=1e-14)


def test_an_error_in_f_comes_through_and_leaves_the_mode_as_it_was():
    def fail(x):
        raise ZeroDivisionError

    for enabled in (True, False):
        with minigrad.core.grad_mode.grad_mode(enabled):
            for transform in (value_and_grad, jacobian, hessian):
                with pytest.raises(ZeroDivisionError):
                    transform(fail)(X)
            for transform in (jvp, hvp):
                with pytest.raises(ZeroDivisionError):
                    transform(fail, X, V)
            with pytest.raises(ZeroDivisionError):
                vjp(fail, X)
            assert is_grad_enabled() == enabled
            assert mode.observers == ()


def test_f_runs_once():
    runs = []

    def f(x, y):
        runs.append(x)
        return coupled(x, y)

    for transform in (value_and_grad, jacobian, hessian):
        transform(f, argnums=(0, 1))(X, Y)
    for transform in (jvp, hvp):
        transform(f, (X, Y), (V, W))
    _, pullback = vjp(f, X, Y)
    pullback(1.0), pullback(1.0)
    assert len(runs) == 6


# ------------------------------------------------------------------------------------------------
# Bad input
# ------------------------------------------------------------------------------------------------

WRAPPING = {"value_and_grad": value_and_grad, "jacobian": jacobian, "hessian": hessian}


def never(*args):
    raise AssertionError("f was run")


BAD_ARGNUMS = [
    (2, ValueError, "argnums is 2, and there are 2 positional arguments"),
    (-3, ValueError, "argnums is -3, and there are 2"),
    ((0, 5), ValueError, r"argnums is \(0, 5\), and there are 2"),
    ((), ValueError, r"argnums is \(\), .* name at least one"),
    ((0, 0), ValueError, r"\(0, 0\) names an argument twice"),
    ((1, -1), ValueError, r"\(1, -1\) names an argument twice"),
    ("x", TypeError, "argnums is an int or a tuple of ints, not 'x'"),
    (1.0, TypeError, "a tuple of ints, not 1.0"),
    (None, TypeError, "a tuple of ints, not None"),
    (True, TypeError, "a tuple of ints, not True"),
    ((0, "y"), TypeError, r"a tuple of ints, not \(0, 'y'\)"),
]


@pytest.mark.parametrize("name", WRAPPING)
def test_bad_argnums_are_refused_before_f_runs(name):
    calls = (
        (argnums, lambda at=argnums: WRAPPING[name](never, at)(X, V), error, f"{name}: .*{message}")
        for argnums, error, message in BAD_ARGNUMS
    )
    assert not_refused(calls) == {}


def called(name, f, *args):
    """Transform `name` of f at args."""
    if name in WRAPPING:
        return WRAPPING[name](f, tuple(range(len(args))))(*args)
    if name == "vjp":
        return vjp(f, *args)
    return {"jvp": jvp, "hvp": hvp}[name](f, args, args)


ALL = [*WRAPPING, "vjp", "jvp", "hvp"]


BAD_ARGUMENTS = [
    (3, "argument 1 has dtype int64, .* write 3.0, or"),
    (np.arange(3), r"argument 1 has dtype int64, .* convert it, \.astype\('float32'\)"),
    (Tensor(np.arange(3)), "argument 1 has dtype int64"),
    (True, "argument 1 has dtype bool"),
    (np.array([True]), "argument 1 has dtype bool"),
    ("text", "argument 1 must be a Tensor, an array or a number, not a str"),
    (None, "argument 1 must be .* not a NoneType"),
    ({1.0, 2.0}, "argument 1 must be .* not a set; containers of these are dicts, lists"),
    (np.array(["text"]), "a tensor contains booleans, integers or floats"),
]


@pytest.mark.parametrize("name", ALL)
def test_arguments_that_cannot_be_differentiated_by_are_named_before_f_runs(name):
    calls = (
        (repr(bad), partial(called, name, never, X, bad), TypeError, message)
        for bad, message in BAD_ARGUMENTS
    )
    assert not_refused(calls) == {}


BAD_RESULTS = {
    "array": (lambda x: X, r"not a ndarray; .* without float\(\)"),
    "float": (lambda x: float(x.sum()), r"not a float; .* without float\(\)"),
    "None": (lambda x: None, "not a NoneType"),
    "empty": (lambda x: (), "not a tuple"),
    "int": (lambda x: 1, "not a int;"),
    "bool": (lambda x: x > 0, "not a Tensor of shape .* and dtype bool"),
}


@pytest.mark.parametrize("name", ALL)
def test_a_function_must_return_one_tensor_of_floats(name):
    calls = (
        (kind, partial(called, name, result, X), TypeError, f"{name}: f .*{message}")
        for kind, (result, message) in BAD_RESULTS.items()
    )
    assert not_refused(calls) == {}


@pytest.mark.parametrize("name", ["value_and_grad", "hvp", "hessian"])
@pytest.mark.parametrize("f", [lambda x: x, lambda x: x[:0]], ids=["three", "none"])
def test_a_function_of_more_or_less_than_one_element_is_shown_the_way_out(name, f):
    with pytest.raises(ValueError, match=rf"{name}: f must return one element.*`jacobian`"):
        called(name, f, X)


@pytest.mark.parametrize("name", ALL)
def test_a_tensor_in_the_place_of_the_function_is_refused(name):
    x = Tensor(X, requires_grad=True)
    with pytest.raises(TypeError, match=rf"{name}: f must be a function.*minigrad.grad\(output"):
        called(name, x.sum(), x)


@pytest.mark.parametrize("result", [lambda x: x, lambda x: (x, x, x), lambda x: [x, x]])
def test_has_aux_needs_a_pair(result):
    with pytest.raises(TypeError, match=r"with has_aux, f must return \(value, aux\), not "):
        value_and_grad(result, has_aux=True)(X)


def test_vjp_needs_a_primal():
    with pytest.raises(ValueError, match=r"^vjp: there are no primals; write vjp\(f, x\)"):
        vjp(never)


@pytest.mark.parametrize(
    ("v", "error", "message"),
    [
        (V[:2], ValueError, r"vjp: the pullback's v must have shape \(3,\), not \(2,\)"),
        (1.0, ValueError, r"must have shape \(3,\), not \(\)"),
        (V[None], ValueError, r"must have shape \(3,\), not \(1, 3\)"),
        (None, TypeError, "must be a Tensor, an array or a number, not a NoneType"),
    ],
)
def test_a_cotangent_that_does_not_fit_is_refused(v, error, message):
    _, pullback = vjp(minigrad.tanh, X)
    with pytest.raises(error, match=message):
        pullback(v)
    assert_allclose(pullback(V)[0].data, V * (1 - np.tanh(X) ** 2), rtol=1e-14)


@pytest.mark.parametrize("name", ["jvp", "hvp"])
@pytest.mark.parametrize(
    ("primals", "tangents", "error", "message"),
    [
        (X, V[:2], ValueError, r"tangent 0 must have shape \(3,\), not \(2,\)"),
        ((X, Y), (V, V), ValueError, r"tangent 1 must have shape \(2,\), not \(3,\)"),
        ((X, Y), (V,), ValueError, "2 primals, but 1 tangents"),
        ((X,), V, TypeError, "one each or one tuple each, not a tuple and a ndarray"),
        (X, [V], TypeError, "one each or one tuple each, not a ndarray and a list"),
        ((), (), ValueError, r"there are no primals; write \w+\(f, x, v\)"),
        (X, None, TypeError, "tangent 0 must be a Tensor, an array or a number"),
        (X, "text", TypeError, "tangent 0 must be a Tensor, an array or a number"),
    ],
)
def test_tangents_that_do_not_fit_are_refused_before_f_runs(
    name, primals, tangents, error, message
):
    with pytest.raises(error, match=f"{name}: .*{message}"):
        {"jvp": jvp, "hvp": hvp}[name](never, primals, tangents)


def test_a_pullback_refuses_an_input_written_since():
    x = Tensor(X.copy())
    _, pullback = vjp(lambda x: x * x, x)
    x.copy_(np.zeros(3))
    with pytest.raises(RuntimeError, match="written since"):
        pullback(V)


# ------------------------------------------------------------------------------------------------
# PyTorch
# ------------------------------------------------------------------------------------------------

# (ours, PyTorch's) of x (3,) and y (2,)
SCALAR = {
    "coupled": (
        coupled,
        lambda t, x, y: (
            ((t.as_tensor(A, dtype=x.dtype) @ x).tanh() * y.exp()).sum() + (x * x).sum() * y.sum()
        ),
    ),
    "softmax": (
        lambda x, y: (minigrad.softmax(x * y[0])[1] * y).sum(),
        lambda t, x, y: (t.softmax(x * y[0], 0)[1] * y).sum(),
    ),
    "gelu and logsumexp": (
        lambda x, y: minigrad.logsumexp(minigrad.gelu(x)) * y[0] * y[1],
        lambda t, x, y: t.logsumexp(t.nn.functional.gelu(x), 0) * y[0] * y[1],
    ),
}
VECTOR = {
    "mapped": (
        mapped,
        lambda t, x, y: (y.reshape(2, 1) * x).tanh() + t.as_tensor(A, dtype=x.dtype) * x.exp(),
    ),
    "linear": (
        lambda x, y: minigrad.linear(x, A.astype(x.dtype), y).tanh(),
        lambda t, x, y: t.nn.functional.linear(x, t.as_tensor(A, dtype=x.dtype), y).tanh(),
    ),
    "of one only": (lambda x, y: x**3, lambda t, x, y: x**3),
}


def close(ours, theirs, dtype):
    if isinstance(theirs, (tuple, list)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            close(one, other, dtype)
        return
    assert ours.dtype == dtype
    tolerance = (
        {"rtol": 1e-12, "atol": 1e-13} if dtype == np.float64 else {"rtol": 2e-5, "atol": 2e-6}
    )
    assert ours.shape == tuple(theirs.shape)
    assert_allclose(ours.data, theirs.detach().numpy(), **tolerance)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SCALAR)
def test_transforms_of_scalars_agree_with_pytorch(name, dtype):
    torch = pytest.importorskip("torch")
    f, g = SCALAR[name]
    g = (lambda g: lambda *xs: g(torch, *xs))(g)
    arrays = [a.astype(dtype) for a in (X, Y)]
    vectors = [a.astype(dtype) for a in (V, W)]
    xs, vs = (tuple(map(torch.from_numpy, group)) for group in (arrays, vectors))
    gradients, value = torch.func.grad_and_value(g, argnums=(0, 1))(*xs)
    close(value_and_grad(f, (0, 1))(*arrays), (value, gradients), dtype)
    close(hvp(f, arrays, vectors), torch.autograd.functional.hvp(g, xs, vs)[1], dtype)
    close(hessian(f, (0, 1))(*arrays), torch.func.hessian(g, argnums=(0, 1))(*xs), dtype)
    close(hessian(f, 1)(*arrays), torch.func.hessian(g, argnums=1)(*xs), dtype)
    if dtype == np.float64:  # float32 loses too many digits on the way
        third = torch.func.jacrev(torch.func.hessian(g))(*xs)
        close(jacobian(hessian(f))(*arrays), third, dtype)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", VECTOR)
def test_transforms_of_vectors_agree_with_pytorch(name, dtype):
    torch = pytest.importorskip("torch")
    f, g = VECTOR[name]
    g = (lambda g: lambda *xs: g(torch, *xs))(g)
    arrays = [a.astype(dtype) for a in (X, Y)]
    vectors = [a.astype(dtype) for a in (V, W)]
    xs, vs = (tuple(map(torch.from_numpy, group)) for group in (arrays, vectors))
    value, pull = torch.func.vjp(g, *xs)
    cotangent = np.cos(np.arange(value.numel())).reshape(value.shape).astype(dtype)
    ours, pullback = vjp(f, *arrays)
    close(ours, value, dtype)
    close(pullback(cotangent), pull(torch.from_numpy(cotangent)), dtype)
    close(jvp(f, arrays, vectors), torch.func.jvp(g, xs, vs), dtype)
    close(jacobian(f, (0, 1))(*arrays), torch.func.jacrev(g, argnums=(0, 1))(*xs), dtype)
    close(jacobian(f, 1)(*arrays), torch.func.jacfwd(g, argnums=1)(*xs), dtype)
    squares = lambda *xs: (g(*xs) ** 2).sum()
    close(
        hessian(lambda *xs: (f(*xs) ** 2).sum(), (0, 1))(*arrays),
        torch.func.hessian(squares, argnums=(0, 1))(*xs),
        dtype,
    )


@pytest.mark.parametrize("transform", [value_and_grad, jacobian, hessian])
def test_a_tensor_where_argnums_belong_is_refused_at_once(transform):
    with pytest.raises(TypeError, match=r"the result is a function, as in \w+\(f\)\(x\)"):
        transform(minigrad.exp, minigrad.ones(2))


def test_errors_of_a_jacobian_by_columns_name_the_function_that_was_called():
    rng = np.random.default_rng(0)

    def noisy(x):  # more than 64 elements take several runs, which draw other numbers
        return minigrad.concatenate([x + rng.standard_normal(x.shape)] * 9)

    with pytest.raises(RuntimeError, match=r"^jacobian: f gave another result"):
        jacobian(noisy)(np.ones(70))
