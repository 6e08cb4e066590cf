"""Derivatives of second and higher order, and random graphs against forward-mode derivatives."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import (
    Tensor,
    enable_grad,
    grad,
    gradcheck,
    no_grad,
)
from tests.minigrad.core.leaves import drawn, leaf

# ------------------------------------------------------------------------------------------------
# Higher order
# ------------------------------------------------------------------------------------------------

T = np.tanh(0.7)
CLOSED_FORMS = {
    "x^5": (lambda x: x**5, [5 * 0.7**4, 20 * 0.7**3, 60 * 0.7**2, 120 * 0.7]),
    "x^-1": (lambda x: 1 / x, [-(0.7**-2), 2 * 0.7**-3, -6 * 0.7**-4, 24 * 0.7**-5]),
    "exp": (lambda x: (2 * x).exp(), [2**n * np.exp(1.4) for n in (1, 2, 3, 4)]),
    "log": (lambda x: x.log(), [1 / 0.7, -1 / 0.7**2, 2 / 0.7**3, -6 / 0.7**4]),
    "x x x x": (lambda x: x * x * x * x, [4 * 0.7**3, 12 * 0.7**2, 24 * 0.7, 24.0]),
    "tanh": (
        lambda x: x.tanh(),
        [
            1 - T**2,
            -2 * T * (1 - T**2),
            -2 * (1 - T**2) * (1 - 3 * T**2),
            (1 - T**2) * (16 * T - 24 * T**3),
        ],
    ),
}


@pytest.mark.parametrize("grads_enabled", [True, False])
@pytest.mark.parametrize("function", CLOSED_FORMS)
def test_derivatives_of_order_one_to_four(function, grads_enabled):
    f, expected = CLOSED_FORMS[function]
    x = leaf(0.7)
    y = f(x)
    with enable_grad() if grads_enabled else no_grad():
        for right in expected:
            y = grad(y, x, create_graph=True)
            assert_allclose(y.item(), right, rtol=1e-12)


def test_mixed_second_derivatives_do_not_depend_on_the_order():
    x, y = drawn(3), drawn(3, seed=1)
    f = (x * x * y).tanh().sum()
    g_x, g_y = grad(f, [x, y], create_graph=True)
    v = np.arange(3.0)
    assert_allclose(grad(g_x, y, v, retain_graph=True).data, grad(g_y, x, v).data, rtol=1e-12)


def test_recorded_gradient_depends_on_the_cotangent():
    x, v = leaf(1.0, 2.0), leaf(3.0, 4.0)
    g = grad(x * x, x, v, create_graph=True)
    assert_array_equal(grad(g.sum(), v).data, [2.0, 4.0])


def test_recorded_gradient_in_grad_can_be_differentiated():
    x = leaf(2.0, 3.0)
    (x**3).sum().backward(create_graph=True)
    first = x.grad
    assert not first.is_leaf
    x.zero_grad()
    first.sum().backward()
    assert_array_equal(x.grad.data, [12.0, 18.0])


def test_backward_retains_the_graph_that_it_records():
    x = leaf(2.0)
    y = x**3
    y.backward(create_graph=True)
    y.backward()
    assert x.grad.item() == 24.0
    with pytest.raises(RuntimeError, match="was freed"):
        y.backward()


def test_recorded_gradients_add_up_in_grad_as_part_of_the_graph():
    x = leaf(2.0)
    (x**2).backward(create_graph=True)
    (x**3).backward(create_graph=True)
    both = x.grad
    assert both.item() == 4 + 12
    assert grad(both, x).item() == 2 + 12


def test_a_plain_gradient_that_is_added_to_a_recorded_one_keeps_its_graph():
    x = leaf(1.0, 2.0)
    (x**3).sum().backward(create_graph=True)
    (x * 5).sum().backward()
    assert_array_equal(x.grad.data, [8.0, 17.0])
    penalty = (x.grad**2).sum() + x.sum()
    assert_array_equal(grad(penalty, x).data, [97.0, 409.0])  # 2 (3x^2 + 5) 6x + 1


def test_a_retained_gradient_keeps_its_graph_too():
    x = leaf(1.0, 2.0)
    h = x**3
    h.retain_grad()
    (h * h).sum().backward(create_graph=True)
    (h * 5).sum().backward(retain_graph=True)
    assert_array_equal(grad(h.grad.sum(), x).data, [6.0, 24.0])  # 2 h + 5


def test_plain_gradients_are_constants():
    x = leaf(2.0)
    g = grad(x * x * x, x)
    assert not g.requires_grad
    (x * x).backward()
    assert not x.grad.requires_grad


def test_second_derivative_of_a_linear_function_is_unused_or_zero():
    x = leaf(1.0, 2.0)
    g = grad((3 * x).sum(), x, create_graph=True)
    assert_array_equal(grad(g.sum(), x, allow_unused=True).data, [0.0, 0.0])


def test_hessian_of_a_broadcast_product():
    x, row = drawn(2, 3), drawn(3, seed=1)
    report = gradcheck(lambda x, row: (x * row).tanh() * row, [x, row], order=2)
    assert report


# ------------------------------------------------------------------------------------------------
# Random graphs, against forward-mode derivatives
# ------------------------------------------------------------------------------------------------


class Dual:
    """A value and its derivative by each of n numbers, on the last axis of `tangent`."""

    def __init__(self, value, tangent):
        self.value, self.tangent = value, tangent

    def __add__(self, other):
        return Dual(self.value + other.value, self.tangent + other.tangent)

    def __sub__(self, other):
        return Dual(self.value - other.value, self.tangent - other.tangent)

    def __mul__(self, other):
        x, y = self.value[..., None], other.value[..., None]
        return Dual(self.value * other.value, self.tangent * y + x * other.tangent)

    def tanh(self):
        t = np.tanh(self.value)
        return Dual(t, (1 - t * t)[..., None] * self.tangent)

    def sigmoid(self):
        s = 1 / (1 + np.exp(-self.value))
        return Dual(s, (s * (1 - s))[..., None] * self.tangent)

    def total(self):
        axes = tuple(range(self.value.ndim))
        return Dual(self.value.sum(), self.tangent.sum(axes))

    def larger(self, other):
        x, y = np.broadcast_arrays(self.value, other.value)
        share = np.where(x == y, 0.5, np.where(x > y, 1.0, 0.0))[..., None]
        tangent = share * self.tangent + (1 - share) * other.tangent
        return Dual(np.maximum(x, y), tangent)

    def product(self, other):
        x, y = (np.broadcast_to(d.value, (2, 2)) for d in (self, other))
        n = self.tangent.shape[-1]
        dx, dy = (np.broadcast_to(d.tangent, (2, 2, n)) for d in (self, other))
        tangent = np.einsum("ikn,kj->ijn", dx, y) + np.einsum("ik,kjn->ijn", x, dy)
        return Dual(np.einsum("ik,kj->ij", x, y), tangent)


SQUARE = (2, 2)
STEPS = {  # how to make a new value of two that are there: for Duals, and for Tensors
    "add": (lambda x, y: x + y, lambda x, y: x + y),
    "subtract": (lambda x, y: x - y, lambda x, y: x - y),
    "multiply": (lambda x, y: x * y.tanh(), lambda x, y: x * y.tanh()),
    "tanh": (lambda x, y: x.tanh(), lambda x, y: x.tanh()),
    "sigmoid": (lambda x, y: x.sigmoid(), lambda x, y: x.sigmoid()),
    "maximum": (lambda x, y: x.larger(y), minigrad.maximum),
    "sum": (lambda x, y: x.total() * y, lambda x, y: x.sum() * y),
    "matmul": (
        lambda x, y: x.product(y).tanh(),
        lambda x, y: (x.broadcast_to(SQUARE) @ y.broadcast_to(SQUARE)).tanh(),
    ),
}
expressions = st.lists(
    st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 99), st.integers(0, 99)),
    min_size=1,
    max_size=12,
)


def run(steps, inputs, language):
    """All values of an expression: each step takes two earlier values, often the same ones."""
    values = list(inputs)
    for name, i, j in steps:
        values.append(STEPS[name][language](values[i % len(values)], values[j % len(values)]))
    return values


@hypothesis.given(steps=expressions, seed=st.integers(0, 2**32 - 1))
@hypothesis.settings(max_examples=200)
def test_random_graphs_agree_with_forward_mode(steps, seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape) for shape in (SQUARE, (2,), (2, 1), ())]
    n = sum(a.size for a in arrays)
    directions = np.split(np.eye(n), np.cumsum([a.size for a in arrays])[:-1])
    duals = [Dual(a, d.reshape(*a.shape, n)) for a, d in zip(arrays, directions, strict=True)]
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    right = run(steps, duals, 0)[-1].total()
    out = run(steps, tensors, 1)[-1].sum()
    assert_allclose(out.item(), right.value, rtol=1e-9, atol=1e-12)
    gradients = grad(out, tensors, allow_unused=True)
    found = np.concatenate([g.data.ravel() for g in gradients])
    scale = 1e-10 * (1 + abs(right.tangent).max())
    assert_allclose(found, right.tangent.ravel(), rtol=1e-9, atol=scale)


smooth_expressions = st.lists(
    st.tuples(
        st.sampled_from(sorted(set(STEPS) - {"maximum"})), st.integers(0, 99), st.integers(0, 99)
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.full
@hypothesis.given(steps=smooth_expressions, seed=st.integers(0, 2**32 - 1))
@hypothesis.example(steps=[("matmul", 20, 20)], seed=75030637)  # a derivative that is all rounding
@hypothesis.settings(max_examples=20)
def test_random_graphs_are_right_at_second_order(steps, seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape) for shape in (SQUARE, (2,), ())]
    report = gradcheck(lambda *xs: run(steps, xs, 1)[-1], arrays, order=2)
    assert report.wrong == [], report
    # Where a tanh is flat, little can be said.
    flat = all(abs(entry.analytic) < 1e-5 for entry in report.undecided)
    assert flat or len(report.undecided) < report.compared / 2
