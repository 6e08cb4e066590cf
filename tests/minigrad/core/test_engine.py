"""The graph and the walk back through it: everything that is not calculus."""

import copy
import gc
import threading
import tracemalloc
import weakref

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import (
    OPS,
    Observer,
    Tensor,
    assert_gradients,
    enable_grad,
    grad,
    gradcheck,
    nn,
    no_grad,
    observe,
    op,
    optim,
)
from minigrad.core.grad_mode import mode


def leaf(*values, dtype=np.float64):
    """A leaf with these values, one after another; of zero dimensions if there is only one."""
    return Tensor(np.array(values if len(values) > 1 else values[0], dtype), requires_grad=True)


def drawn(*shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


class Log(Observer):
    """Writes down what happens, by names of ops."""

    def __init__(self):
        self.calls, self.rules, self.freed = [], [], []

    def on_call(self, op, inputs, result):
        self.calls.append(op.name)

    def on_rule(self, node, place, gradient, result):
        self.rules.append((node.op.name, next(edge[1] for edge in node.edges if edge[0] is place)))

    def on_free(self, node):
        self.freed.append(node.name)


# ------------------------------------------------------------------------------------------------
# The walk
# ------------------------------------------------------------------------------------------------


def test_diamond_adds_the_gradients_of_both_ways():
    x = leaf(3.0)
    ((2 * x) * (5 * x)).backward()
    assert x.grad.item() == 60.0


def test_a_value_used_twice_sends_its_whole_gradient_on_once():
    x = leaf(3.0)
    with observe(Log()) as log:
        h = 2 * x
        (h + h).backward()
    assert x.grad.item() == 4.0
    assert log.rules.count(("multiply", 1)) == 1


def test_fifty_residual_blocks_run_each_rule_once():
    x = leaf(1.0)
    with observe(Log()) as log:
        y = x
        for _ in range(50):
            y = y + y * 0.5
        y.backward()
    assert_allclose(x.grad.data, 1.5**50, rtol=1e-12)
    assert len(log.rules) == 150


def test_doubling_fifty_times_is_not_exponential():
    x = leaf(1.0)
    y = x
    for _ in range(50):
        y = y + y
    y.backward()
    assert x.grad.item() == 2.0**50


def test_the_newest_is_visited_first_however_the_ways_differ_in_length():
    x = leaf(2.0)
    short = x * 3
    long = short
    for _ in range(5):
        long = long * 2
    (long * short).backward()  # 32 * (3 x)^2
    assert x.grad.item() == 32 * 2 * 9 * 2.0


def test_chain_of_a_hundred_thousand_ops():
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    y.backward()
    assert y.item() == 100_001.0
    assert x.grad.item() == 1.0
    del y  # and its graph can be dropped without recursion


def test_a_deep_graph_that_was_never_walked_is_dropped_without_recursion():
    y = leaf(1.0)
    for _ in range(100_000):
        y = y * 1.0
    del y


def test_memory_grows_linearly_with_the_length_of_a_chain():
    x = Tensor(np.full((8, 8), 0.99), requires_grad=True)

    def peak(length):
        tracemalloc.start()
        try:
            y = x
            for _ in range(length):
                y = y * x
            y.sum().backward()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    short, long = peak(1000), peak(4000)
    assert long < 5 * short
    assert short / 1000 < 3 * x.data.nbytes  # for each op its result and a node, and little else


def test_saved_arrays_go_while_the_backward_pass_goes():
    alive = []

    class Watch(Observer):
        def __init__(self):
            self.results = []

        def on_call(self, op, inputs, result):
            self.results.append(weakref.ref(result.data))

        def on_rule(self, node, place, gradient, result):
            alive.append(sum(ref() is not None for ref in self.results))

    x = drawn(3)
    with observe(Watch()):
        x.exp().exp().tanh().tanh().sum().backward()
    assert alive == sorted(alive, reverse=True)
    assert alive[0] - alive[-1] >= 3


# ------------------------------------------------------------------------------------------------
# Freeing
# ------------------------------------------------------------------------------------------------


def test_second_backward_through_a_freed_graph_is_an_error():
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match=r"`sum` was freed .* retain_graph=True"):
        y.backward()
    assert_array_equal(x.grad.data, [2.0, 4.0])


def test_retained_graph_can_be_walked_again():
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert_array_equal(x.grad.data, [4.0, 8.0])
    with pytest.raises(RuntimeError, match="was freed"):
        y.backward()


def test_second_loss_on_a_freed_part_is_an_error_that_names_the_part():
    x = leaf(1.0, 2.0)
    h = x.tanh()
    first, second = h.sum(), (h * 3).sum()
    first.backward()
    before = x.grad.data.copy()
    with pytest.raises(RuntimeError, match="`tanh` was freed"):
        second.backward()
    assert_array_equal(x.grad.data, before)


def test_a_refused_pass_leaves_the_rest_of_the_graph_whole():
    x, z = leaf(1.0), leaf(2.0)
    h = x * x
    both = h + z * z
    h.backward()
    with pytest.raises(RuntimeError, match="was freed"):
        both.backward()
    assert z.grad is None


def test_gradient_by_a_result_leaves_the_graph_behind_it_whole():
    x = leaf(1.0, 2.0)
    h = x * x
    g = grad((3 * h).sum(), h)
    h.backward(g)
    assert_array_equal(x.grad.data, [6.0, 12.0])


def test_the_graph_goes_with_its_last_tensor():
    x = leaf(1.0, 2.0)
    h = x * x
    place = weakref.ref(h.data)
    y = h.exp().sum()
    del h
    assert place() is None  # exp saves its result, not its input
    y.backward()


# ------------------------------------------------------------------------------------------------
# .grad
# ------------------------------------------------------------------------------------------------


def test_gradients_add_up_over_backward_passes_until_cleared():
    x = leaf(1.0, 2.0)
    (x * 3).sum().backward()
    first = x.grad
    (x * 4).sum().backward()
    assert_array_equal(x.grad.data, [7.0, 7.0])
    assert_array_equal(first.data, [3.0, 3.0])  # what was handed out is not written to
    x.zero_grad()
    assert x.grad is None


def test_only_leaves_get_a_gradient():
    x = leaf(1.0, 2.0)
    h = x * 2
    h.sum().backward()
    assert h.grad is None
    assert x.grad is not None
    assert x.is_leaf
    assert not h.is_leaf


def test_backward_from_a_leaf_is_its_own_gradient():
    x = leaf(3.0)
    x.backward()
    assert x.grad.item() == 1.0


GIVEN = np.ones((2, 2))
SHARING = {
    "sum": lambda x, y: (x + y).sum().backward(),
    "difference": lambda x, y: (x - y).sum().backward(),
    "twice the same": lambda x, y: (x + x + y).sum().backward(),
    "transposed": lambda x, y: (x.T + y).sum().backward(),
    "reshaped": lambda x, y: (x.reshape(4) + y.reshape(4)).sum().backward(),
    "broadcast": lambda x, y: (x.broadcast_to((3, 2, 2)) + y).sum().backward(),
    "slices of one gradient": lambda x, y: minigrad.concatenate([x, y]).sum().backward(),
    "the caller's array": lambda x, y: (x + y).backward(GIVEN),
    "the caller's tensor": lambda x, y: (x + y).backward(Tensor(GIVEN)),
    "create_graph": lambda x, y: (x + y).sum().backward(create_graph=True),
}


@pytest.mark.parametrize("how", SHARING)
def test_gradients_are_owned_writable_contiguous_and_shared_with_nothing(how):
    x, y = drawn(2, 2), drawn(2, 2, seed=1)
    SHARING[how](x, y)
    assert isinstance(x.grad, Tensor)
    for array in (x.grad.data, y.grad.data):
        assert array.flags.owndata
        assert array.flags.writeable
        assert array.flags.c_contiguous
    arrays = [x.grad.data, y.grad.data, x.data, y.data, GIVEN]
    for i, one in enumerate(arrays):
        assert not any(np.shares_memory(one, other) for other in arrays[i + 1 :])


def test_results_of_grad_are_owned_and_shared_with_nothing():
    x, y = drawn(2, 2), drawn(2, 2, seed=1)
    out = x + y
    gradients = [g.data for g in grad(out, [x, y, x, out], GIVEN)]
    for i, one in enumerate(gradients):
        assert_array_equal(one, GIVEN)
        assert one.flags.owndata
        assert one.flags.writeable
        assert not any(np.shares_memory(one, other) for other in (*gradients[:i], GIVEN))


def test_gradients_keep_the_dtype_of_their_tensor():
    narrow, wide, number = leaf(1.0, 2.0, dtype=np.float32), leaf(3.0, 4.0), leaf(2.0)
    (narrow * wide * number).sum().backward()
    assert narrow.grad.dtype == np.float32
    assert wide.grad.dtype == np.float64
    assert number.grad.dtype == np.float64
    assert_array_equal(narrow.grad.data, [6.0, 8.0])


def test_astype_takes_the_gradient_back_to_the_first_dtype():
    x = leaf(1.0, 2.0, dtype=np.float32)
    (x.astype(np.float64) * 3).sum().backward()
    assert x.grad.dtype == np.float32


def test_gradient_of_a_broadcast_leaf_has_its_shape():
    row, column, number = drawn(3), drawn(2, 1), drawn()
    (row + column + number).sum().backward()
    assert_array_equal(row.grad.data, [2.0, 2.0, 2.0])
    assert_array_equal(column.grad.data, [[3.0], [3.0]])
    assert number.grad.data.shape == ()
    assert number.grad.item() == 6.0


def test_gradient_of_a_leaf_broadcast_over_many_rows_counts_them_all():
    for rows in (1023, 1024, 1050, 2**12 + 1):
        x = Tensor(np.zeros(2, np.float32), requires_grad=True)
        (x + np.ones((rows, 2), np.float32)).backward(np.ones((rows, 2), np.float32))
        assert x.grad.tolist() == [rows, rows]


def test_grad_can_be_assigned():
    x = leaf(1.0, 2.0)
    x.grad = Tensor(np.array([5.0, 6.0]))
    x.sum().backward()
    assert_array_equal(x.grad.data, [6.0, 7.0])
    x.grad = None
    assert x.grad is None


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (np.ones(2), TypeError),
        (1.0, TypeError),
        (Tensor(np.ones(3)), ValueError),
        (Tensor(np.ones(2, np.float32)), ValueError),
    ],
)
def test_grad_refuses_what_does_not_fit(value, error):
    x = leaf(1.0, 2.0)
    with pytest.raises(error, match=r"\.grad"):
        x.grad = value
    assert x.grad is None


def test_grad_of_a_tensor_without_need_cannot_be_assigned():
    x = Tensor(np.ones(2))
    x.grad = None
    with pytest.raises(RuntimeError, match="requires no gradient"):
        x.grad = Tensor(np.ones(2))


def test_retain_grad_keeps_the_whole_gradient_of_a_result():
    x = leaf(1.0, 2.0)
    h = x * 2
    h.retain_grad()
    (h * 3 + h).sum().backward(retain_graph=True)
    assert_array_equal(h.grad.data, [4.0, 4.0])
    (h * 3).sum().backward()
    assert_array_equal(h.grad.data, [7.0, 7.0])
    assert not np.shares_memory(h.grad.data, x.grad.data)


def test_retain_grad_of_a_leaf_changes_nothing_and_needs_a_graph():
    x = leaf(1.0, 2.0)
    x.retain_grad()
    x.sum().backward()
    assert_array_equal(x.grad.data, [1.0, 1.0])
    with pytest.raises(RuntimeError, match=r"retain_grad\(\).*needs no gradient"):
        Tensor(np.ones(2)).retain_grad()


# ------------------------------------------------------------------------------------------------
# Starting a backward pass
# ------------------------------------------------------------------------------------------------


def test_backward_of_several_elements_needs_a_gradient():
    x = leaf(1.0, 2.0)
    with pytest.raises(ValueError, match=r"shape \(2,\).*2 elements.*\.sum\(\) or \.mean\(\)"):
        (x * 2).backward()
    assert x.grad is None


def test_backward_of_one_element_of_any_shape_needs_none():
    x = drawn(1, 1)
    (x * 2).backward()
    assert_array_equal(x.grad.data, [[2.0]])


@pytest.mark.parametrize("gradient", [[1.0, 2.0], np.array([1, 2]), minigrad.tensor([1.0, 2.0])])
def test_backward_takes_a_gradient_of_any_kind_and_dtype(gradient):
    x = leaf(1.0, 2.0)
    (x * 2).backward(gradient)
    assert_array_equal(x.grad.data, [2.0, 4.0])
    assert x.grad.dtype == np.float64


def test_backward_refuses_a_gradient_of_another_shape():
    x = leaf(1.0, 2.0)
    with pytest.raises(ValueError, match=r"the gradient has shape \(3,\), the tensor \(2,\)"):
        (x * 2).backward(np.ones(3))
    with pytest.raises(ValueError, match=r"the gradient has shape \(\), the tensor \(2,\)"):
        (x * 2).backward(1.0)


def test_backward_of_what_depends_on_nothing_is_an_error_that_says_why():
    for constant in (minigrad.ones(1), leaf(1.0).detach(), minigrad.ones(1) * 2):
        with pytest.raises(RuntimeError, match=r"no graph; was it made under no_grad\(\)"):
            constant.backward()


def test_integers_cannot_require_a_gradient():
    with pytest.raises(TypeError, match=r"only floats.*not int64.*astype"):
        minigrad.tensor([1, 2], requires_grad=True)
    with pytest.raises(TypeError, match=r"only floats.*not bool"):
        minigrad.tensor([True]).requires_grad_()
    x = leaf(1.0, 2.0)
    assert not x.astype(np.int64).requires_grad
    assert not (x > 1).requires_grad


# ------------------------------------------------------------------------------------------------
# grad()
# ------------------------------------------------------------------------------------------------


def test_grad_returns_one_tensor_for_one_input_and_a_tuple_for_a_list():
    x, y = leaf(2.0), leaf(5.0)
    assert grad(x * y, x).item() == 5.0
    gradients = grad(x * y, [x, y])
    assert isinstance(gradients, tuple)
    assert [g.item() for g in gradients] == [5.0, 2.0]
    assert len(grad(x * y, [x])) == 1


def test_grad_touches_nobodys_grad():
    x, y = leaf(2.0), leaf(5.0)
    grad(x * y, x)
    assert x.grad is None
    assert y.grad is None


def test_grad_by_results_of_ops():
    x = leaf(2.0)
    h = x * x
    y = h * h * x
    g_h, g_x = grad(y, [h, x])
    assert g_h.item() == 2 * 4 * 2
    assert g_x.item() == 5 * 2**4


def test_grad_of_a_tensor_by_itself_is_the_cotangent():
    x = leaf(1.0, 2.0)
    y = x * 2
    g_y, g_x = grad(y, [y, x], np.array([3.0, 4.0]))
    assert_array_equal(g_y.data, [3.0, 4.0])
    assert_array_equal(g_x.data, [6.0, 8.0])


def test_grad_of_several_outputs_is_the_sum_over_them():
    x = leaf(2.0)
    assert grad([x * 3, x * x], x).item() == 3 + 4
    y = x * 3
    assert grad([y, y], x).item() == 6.0


def test_grad_of_an_output_that_another_one_depends_on():
    x = leaf(2.0)
    h = x * x
    assert grad([h, h * h], x).item() == 4 + 32


def test_grad_outputs_weigh_the_outputs():
    x = leaf(1.0, 2.0)
    v = np.array([10.0, 100.0])
    assert_array_equal(grad(x * x, x, v).data, [20.0, 400.0])
    assert_array_equal(grad(x * x, x, Tensor(v)).data, [20.0, 400.0])
    assert_array_equal(grad([x * x, x.sum()], x, [v, None]).data, [21.0, 401.0])


def test_grad_outputs_must_fit():
    x = leaf(1.0, 2.0)
    with pytest.raises(ValueError, match="2 outputs, but 1 grad_outputs"):
        grad([x.sum(), x.sum()], x, [None])
    with pytest.raises(ValueError, match=r"output 1.*shape \(3,\)"):
        grad([x.sum(), x * 2], x, [None, np.ones(3)])
    with pytest.raises(ValueError, match=r"output 1.*2 elements"):
        grad([x.sum(), x * 2], x)


def test_unused_input_is_an_error_that_names_it():
    x, y = leaf(1.0), leaf(1.0, 2.0)
    with pytest.raises(RuntimeError, match=r"input 1, a Tensor of shape \(2,\).*allow_unused=True"):
        grad(x * x, [x, y])


def test_unused_input_has_gradient_zero_if_allowed():
    x, y = leaf(1.0), leaf(1.0, 2.0, dtype=np.float32)
    g_x, g_y = grad(x * x, [x, y], allow_unused=True)
    assert g_x.item() == 2.0
    assert_array_equal(g_y.data, [0.0, 0.0])
    assert g_y.dtype == np.float32


def test_output_without_a_graph_is_an_error_or_gives_zeros():
    x = leaf(1.0, 2.0)
    constant = minigrad.ones(1)
    with pytest.raises(RuntimeError, match=r"output 0.*needs no gradient"):
        grad(constant, x)
    assert_array_equal(grad(constant, x, allow_unused=True).data, [0.0, 0.0])


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (minigrad.ones(2), RuntimeError, r"input 0.*needs no gradient"),
        (np.ones(2), TypeError, r"input 0 must be a Tensor, not ndarray"),
        (3.0, TypeError, r"input 0 must be a Tensor, not float"),
    ],
)
def test_inputs_that_cannot_have_a_gradient_are_refused(bad, error, message):
    x = leaf(1.0)
    with pytest.raises(error, match=message):
        grad(x * x, [bad])


def test_outputs_must_be_tensors():
    with pytest.raises(TypeError, match=r"output 1.*float"):
        grad([leaf(1.0), 3.0], leaf(1.0))


def test_only_rules_on_the_way_to_the_inputs_run():
    x, w, v = drawn(2, 2), drawn(2, 2, seed=1), drawn(2, 2, seed=2)
    y = ((x @ w).tanh() @ v).sum()
    with observe(Log()) as log:
        grad(y, v)
    assert log.rules == [("sum", 0), ("matmul", 1)]


def test_grad_frees_the_graph_unless_it_is_retained_or_recorded():
    x = leaf(2.0)
    for keep in ({"retain_graph": True}, {"create_graph": True}):
        y = x * x * x
        grad(y, x, **keep)
        grad(y, x)
        with pytest.raises(RuntimeError, match="was freed"):
            grad(y, x)
    y = x * x * x
    grad(y, x, create_graph=True, retain_graph=False)
    with pytest.raises(RuntimeError, match="was freed"):
        grad(y, x)


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
# What is saved
# ------------------------------------------------------------------------------------------------


def test_the_rule_of_a_frozen_weight_never_runs():
    x, frozen = drawn(4, 3), Tensor(np.ones((3, 2)))
    with observe(Log()) as log:
        (x @ frozen).sum().backward()
    assert log.rules == [("sum", 0), ("matmul", 0)]


def test_the_matrix_product_for_a_frozen_weight_is_never_computed():
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad = False
    x = drawn(4, 3)
    with observe(Log()) as log:
        layer(x.astype(np.float32)).sum().backward()
        assert "matmul" not in log.calls
    layer.weight.requires_grad = True
    with observe(Log()) as log:
        layer(Tensor(x.data.astype(np.float32))).sum().backward()
    assert ("linear", 1) in log.rules
    assert ("linear", 0) not in log.rules


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("call", [minigrad.matmul, minigrad.linear], ids=["matmul", "linear"])
def test_an_activation_is_kept_for_a_trained_weight_only(call, trained):
    x, weight = drawn(3, 3), Tensor(np.ones((3, 3)), requires_grad=trained)
    activation = x + 1.0  # which itself saves nothing
    array = weakref.ref(activation.data)
    y = call(activation, weight)
    del activation
    assert (array() is not None) == trained
    y.sum().backward()
    assert array() is None


def test_a_frozen_layer_takes_no_memory_for_its_activation():
    x = Tensor(np.ones((1, 1000)), requires_grad=True)
    frozen = Tensor(np.ones((1000, 1)))

    def held(weight):
        tracemalloc.start()
        try:
            y = (x.broadcast_to((100, 1000)) + 1.0) @ weight
            return tracemalloc.get_traced_memory()[0], y
        finally:
            tracemalloc.stop()

    held(frozen)  # the first product of all compiles the kernel
    size = 100 * 1000 * 8
    assert held(frozen)[0] < 0.1 * size
    assert held(Tensor(frozen.data, requires_grad=True))[0] > size


def test_a_rule_that_names_a_shape_keeps_no_array():
    x = drawn(5, 5)
    h = x + 1.0
    array = weakref.ref(h.data)
    total = h.sum()
    del h
    assert array() is None
    total.backward()
    assert_array_equal(x.grad.data, np.ones((5, 5)))


def test_nothing_is_saved_where_nothing_requires_a_gradient():
    x = Tensor(np.ones(3))
    h = x + 1.0
    array = weakref.ref(h.data)
    y = h * h
    del h
    assert array() is None
    assert y.node is None


# ------------------------------------------------------------------------------------------------
# Written since
# ------------------------------------------------------------------------------------------------


def sgd_step(layer):
    layer.weight.grad = minigrad.ones(2, 2)
    optim.SGD([layer.weight], lr=0.1).step()


def in_place_sum(layer):
    with no_grad():
        layer.weight += 1.0


def write_to_a_view(layer):
    with no_grad():
        layer.weight.reshape(4)[1:].copy_(np.zeros(3))


def assign_data(layer):
    layer.weight.data = np.zeros((2, 2), np.float32)


WRITES = {
    "an optimiser step": sgd_step,
    "load_state_dict": lambda layer: layer.load_state_dict(nn.Linear(2, 2).state_dict()),
    "assignment to data": assign_data,
    "copy_": lambda layer: layer.weight.copy_(np.zeros((2, 2))),
    "copy_ to detach": lambda layer: layer.weight.detach().copy_(np.zeros((2, 2))),
    "copy_ to a view": write_to_a_view,
    "in-place sum": in_place_sum,
}


@pytest.mark.parametrize("write", WRITES)
def test_a_saved_array_written_since_is_an_error(write):
    layer = nn.Linear(2, 2)
    x = minigrad.randn(3, 2, requires_grad=True)
    y = layer(x).sum()
    WRITES[write](layer)
    with pytest.raises(RuntimeError, match=r"`linear`.* saved its input weight .* written since"):
        y.backward()
    assert x.grad is None
    layer(x).sum().backward()  # computed again, it works
    assert x.grad is not None


@pytest.mark.parametrize("write", WRITES)
def test_a_write_to_what_no_rule_needs_is_no_error(write):
    layer = nn.Linear(2, 2)
    x = minigrad.randn(3, 2)
    y = layer(x).sum()  # x is not trained, so no rule needs the weight
    WRITES[write](layer)
    y.backward()
    assert layer.bias.grad is not None


def test_a_write_to_an_addend_is_no_error():
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = (x + w).sum()
    w.copy_([0.0, 0.0])
    y.backward()
    assert_array_equal(w.grad.data, [1.0, 1.0])


def test_a_write_before_the_forward_pass_is_no_error():
    w = leaf(1.0, 2.0)
    old = w * w
    w.copy_([3.0, 4.0])
    (w * w).sum().backward()
    assert_array_equal(w.grad.data, [6.0, 8.0])
    with pytest.raises(RuntimeError, match="written since"):
        old.sum().backward()


def test_a_write_to_another_tensor_is_no_error():
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = (x * x).sum()
    w.copy_([0.0, 0.0])
    y.backward()
    assert_array_equal(x.grad.data, [2.0, 4.0])


def test_a_write_that_only_other_rules_mind_is_no_error():
    w, v = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = ((w * w) * v).sum()
    w.copy_([0.0, 0.0])
    assert_array_equal(grad(y, v, retain_graph=True).data, [1.0, 4.0])
    with pytest.raises(RuntimeError, match="written since"):
        grad(y, w)


def test_a_result_that_its_own_rule_needs_must_not_be_written():
    x = leaf(1.0, 2.0)
    y = x.exp()
    y.detach().copy_([0.0, 0.0])
    with pytest.raises(RuntimeError, match=r"`exp`.* saved its result"):
        y.sum().backward()


def test_a_write_through_the_base_of_a_saved_view_is_seen():
    x = drawn(2, 2)
    view = x.T
    y = (view * view).sum()
    x.copy_(np.zeros((2, 2)))
    with pytest.raises(RuntimeError, match=r"`multiply`.* saved its input"):
        y.backward()


def test_a_write_through_a_sibling_view_is_seen():
    x = drawn(2, 2)
    y = (x[0] * x[0]).sum()
    with no_grad():
        x.reshape(4)[2:].copy_([0.0, 0.0])  # the other row, but the same block of memory
    with pytest.raises(RuntimeError, match="written since"):
        y.backward()


def test_a_write_through_another_tensor_on_the_same_array_is_seen():
    array = np.ones(2)
    one, other = Tensor(array, requires_grad=True), Tensor(array)
    y = (one * one).sum()
    other.copy_([0.0, 0.0])
    with pytest.raises(RuntimeError, match="written since"):
        y.backward()


def test_a_copy_has_memory_of_its_own():
    x = leaf(1.0, 2.0)
    copied = x.clone()
    y = (copied * copied).sum()
    x.copy_([0.0, 0.0])
    y.backward()
    assert_array_equal(x.grad.data, [2.0, 4.0])


def test_write_between_two_passes_through_a_retained_graph_is_seen():
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    x.copy_([5.0, 5.0])
    with pytest.raises(RuntimeError, match="written since"):
        y.backward()


def test_write_before_the_second_derivative_is_seen():
    x = leaf(2.0)
    g = grad(x * x * x, x, create_graph=True)
    x.copy_(0.0)
    with pytest.raises(RuntimeError, match="written since"):
        grad(g, x)


def test_training_steps_in_the_usual_order_are_never_refused():
    layer = nn.Linear(2, 1)
    optimizer = optim.SGD(layer.parameters(), lr=0.1)
    x, y = minigrad.randn(8, 2), minigrad.randn(8, 1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = minigrad.mse(layer(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]


# ------------------------------------------------------------------------------------------------
# Hooks
# ------------------------------------------------------------------------------------------------


def test_hook_sees_the_whole_gradient_once():
    seen = []
    x = leaf(1.0, 2.0)
    h = x * 2
    h.register_hook(lambda g: seen.append(g.data.tolist()))
    (h * 3 + h).sum().backward()
    assert seen == [[4.0, 4.0]]
    assert_array_equal(x.grad.data, [8.0, 8.0])


def test_hooks_run_in_the_order_of_registration_and_see_what_earlier_ones_made():
    x = leaf(1.0, 2.0)
    seen = []

    def times(factor):
        def hook(g):
            seen.append((factor, g.data.tolist()))
            return g * factor

        return hook

    x.register_hook(times(10))
    x.register_hook(times(3))
    x.sum().backward()
    assert seen == [(10, [1.0, 1.0]), (3, [10.0, 10.0])]
    assert_array_equal(x.grad.data, [30.0, 30.0])


def test_a_hook_records_under_create_graph_only():
    seen = []
    x = leaf(2.0)
    x.register_hook(lambda g: seen.append(minigrad.is_grad_enabled()))
    (x * x).backward()
    grad(x * x, x, create_graph=True)
    assert seen == [False, True]


def test_what_a_hook_returns_goes_on():
    x = leaf(1.0, 2.0)
    h = x * 2
    h.register_hook(lambda g: g * 0.5)
    h.retain_grad()
    h.sum().backward()
    assert_array_equal(h.grad.data, [0.5, 0.5])
    assert_array_equal(x.grad.data, [1.0, 1.0])


def test_hook_on_a_leaf_changes_each_pass_not_the_sum():
    x = leaf(1.0)
    x.register_hook(lambda g: g * 2)
    (x * 1).backward()
    (x * 1).backward()
    assert x.grad.item() == 4.0


def test_removed_hook_is_not_called():
    x = leaf(1.0)
    kept, removed = [], []
    x.register_hook(kept.append)
    hook = x.register_hook(removed.append)
    hook.remove()
    hook.remove()
    (x * 1).backward()
    assert len(kept) == 1
    assert removed == []


def test_hook_runs_in_grad_too_and_changes_its_result():
    x = leaf(1.0)
    h = x * 2
    h.register_hook(lambda g: g * 10)
    assert [g.item() for g in grad(h * 3, [h, x])] == [30.0, 60.0]


def test_hook_under_create_graph_is_part_of_the_graph():
    x = leaf(2.0)
    h = x * x
    h.register_hook(lambda g: g * x)
    g = grad(h, x, create_graph=True)  # x * 2x
    assert g.item() == 8.0
    assert grad(g, x).item() == 8.0


def test_hook_that_writes_to_what_it_is_given_touches_no_other_gradient():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)

    def vandal(g):
        g.data[...] = 0

    x.register_hook(vandal)
    (x + y).sum().backward()
    assert_array_equal(y.grad.data, [1.0, 1.0])


@pytest.mark.parametrize("bad", [5, np.ones(2), Tensor(np.ones(3)), (Tensor(np.ones(2)),)])
def test_hook_that_returns_no_fitting_tensor_is_an_error(bad):
    x = leaf(1.0, 2.0)
    x.register_hook(lambda g: bad)
    with pytest.raises(ValueError, match=r"a hook must return None or a Tensor of shape \(2,\)"):
        x.sum().backward()
    assert x.grad is None


def test_gradient_from_a_hook_keeps_the_dtype():
    x = leaf(1.0, 2.0, dtype=np.float32)
    x.register_hook(lambda g: Tensor(np.array([3.0, 4.0])))
    x.sum().backward()
    assert x.grad.dtype == np.float32


def test_hook_needs_a_graph():
    with pytest.raises(RuntimeError, match=r"register_hook\(\).*needs no gradient"):
        minigrad.ones(2).register_hook(print)


# ------------------------------------------------------------------------------------------------
# no_grad and enable_grad
# ------------------------------------------------------------------------------------------------


def test_no_grad_records_nothing():
    x = leaf(1.0)
    with no_grad():
        assert not minigrad.is_grad_enabled()
        y = x * 2
        with enable_grad():
            z = x * 2
        assert not minigrad.is_grad_enabled()
    assert minigrad.is_grad_enabled()
    assert not y.requires_grad
    assert z.requires_grad


def test_no_grad_and_enable_grad_are_decorators():
    x = leaf(1.0)

    for off, on in ((no_grad, enable_grad), (no_grad(), enable_grad())):

        @on
        def trained(x):
            return x * 2

        @off
        def frozen(x, trained=trained):
            return x * 2, trained(x)

        for _ in range(2):
            outer, inner = frozen(x)
            assert not outer.requires_grad
            assert inner.requires_grad
        assert frozen.__name__ == "frozen"


def test_one_no_grad_can_be_entered_many_times():
    frozen = no_grad()
    for _ in range(2):
        with frozen:
            with frozen:
                assert not minigrad.is_grad_enabled()
            assert not minigrad.is_grad_enabled()
        assert minigrad.is_grad_enabled()


def test_generators_cannot_be_decorated():
    with pytest.raises(TypeError, match="does not run from start to end in one go"):

        @no_grad
        def batches():
            yield 1


@pytest.mark.parametrize("change", [no_grad, enable_grad])
def test_mode_is_restored_after_an_exception(change):
    class StopError(Exception):
        pass

    @change()
    def fail():
        raise StopError

    with no_grad():
        with pytest.raises(StopError):
            fail()
        assert not minigrad.is_grad_enabled()
        with pytest.raises(StopError), change():
            raise StopError
        assert not minigrad.is_grad_enabled()
    assert minigrad.is_grad_enabled()


def test_mode_is_restored_after_an_error_in_a_backward_pass():
    @op
    def broken(x):
        return x * 1.0

    @broken.rule("x")
    def _broken_x(g):
        raise ZeroDivisionError

    x = leaf(1.0)
    with pytest.raises(ZeroDivisionError):
        broken(x).backward()
    assert minigrad.is_grad_enabled()
    with no_grad(), pytest.raises(ZeroDivisionError):
        grad(enable_grad()(broken)(x), x, create_graph=True)
    assert minigrad.is_grad_enabled()


def test_mode_belongs_to_the_thread():
    x = leaf(1.0)
    seen = {}

    def work():
        seen["at start"] = minigrad.is_grad_enabled()
        with no_grad():
            entered.set()
            left.wait(5)
            seen["in no_grad"] = (x * 2).requires_grad

    entered, left = threading.Event(), threading.Event()
    with no_grad():
        thread = threading.Thread(target=work)
        thread.start()
        assert entered.wait(5)
    here = (x * 2).requires_grad
    left.set()
    thread.join()
    assert seen == {"at start": True, "in no_grad": False}
    assert here


def test_backward_works_under_no_grad():
    x = leaf(3.0)
    y = x * x
    with no_grad():
        y.backward()
    assert x.grad.item() == 6.0
    assert not x.grad.requires_grad


def test_graphs_in_several_threads_do_not_mix():
    results = {}

    def work(k):
        x = leaf(float(k))
        for _ in range(100):
            x.zero_grad()
            (x * x * x).backward()
        results[k] = x.grad.item()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {k: 3.0 * k * k for k in range(4)}


# ------------------------------------------------------------------------------------------------
# Reference cycles
# ------------------------------------------------------------------------------------------------


def train(model, optimizer):
    x, y = minigrad.randn(4, 3), minigrad.randn(4, 1)
    for _ in range(3):
        optimizer.zero_grad()
        minigrad.mse(model(x), y).backward()
        optimizer.step()


def walk_once_and_keep():
    x = leaf(1.0, 2.0)
    y = (x.exp() * x).sum()
    y.backward(retain_graph=True)


def second_derivative():
    x = leaf(1.0, 2.0)
    g = grad((x**3).tanh().sum(), x, create_graph=True)
    grad(g.sum(), x)


def forward_only():
    x = drawn(3, 3)
    minigrad.concatenate([x.softmax(), minigrad.gelu(x)])[[0, 0, 1]].max(axis=0)


def with_hooks():
    x = leaf(1.0)
    h = x * 2
    h.register_hook(lambda g: g * 2)
    h.retain_grad()
    h.backward()


def with_checkpoint():
    x, w = drawn(3), drawn(3, seed=1)
    minigrad.checkpoint(lambda x: (x * w).tanh(), x).sum().backward()


@pytest.mark.parametrize(
    "work", [walk_once_and_keep, second_derivative, forward_only, with_hooks, with_checkpoint]
)
def test_nothing_is_left_for_the_garbage_collector(work):
    work()
    gc.collect()
    gc.disable()
    try:
        work()
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("optimizer", [optim.SGD, optim.Adam, optim.AdamW])
def test_training_leaves_nothing_for_the_garbage_collector(optimizer):
    model = nn.MLP([3, 4, 1])
    optimizer = optimizer(model.parameters(), lr=0.01)
    train(model, optimizer)
    gc.collect()
    gc.disable()
    try:
        train(model, optimizer)
        assert gc.collect() == 0
    finally:
        gc.enable()


# ------------------------------------------------------------------------------------------------
# Observers
# ------------------------------------------------------------------------------------------------


def test_observer_sees_calls_rules_and_freeing():
    x = leaf(1.0, 2.0)
    with observe(Log()) as log:
        (x.exp() * 2).sum().backward()
    assert log.calls[:3] == ["exp", "multiply", "sum"]
    assert log.rules == [("sum", 0), ("multiply", 0), ("exp", 0)]
    assert log.freed == ["sum", "multiply", "exp"]


def test_observer_is_told_where_a_backward_pass_starts_and_from_what():
    class Starts(Observer):
        def __init__(self):
            self.seen = []

        def on_backward(self, output, gradient):
            self.seen.append((output, gradient))

    x = leaf(1.0, 2.0)
    y, z = x * 2, x.sum()
    with observe(Starts()) as starts:
        y.backward(np.float32([3.0, 4.0]), retain_graph=True)
        grad([y, z], x, [np.float32([5.0, 6.0]), None])
    assert [output for output, _ in starts.seen] == [y, y, z]
    assert [gradient.tolist() for _, gradient in starts.seen] == [[3, 4], [5, 6], 1]


def test_observer_is_told_inputs_result_and_gradients():
    class Watch(Observer):
        def on_call(self, op, inputs, result):
            self.call = op, inputs, result

        def on_rule(self, node, place, gradient, result):
            self.rule = node, place, gradient, result

    x = leaf(1.0, 2.0)
    with observe(Watch()) as watch:
        y = minigrad.sum(x, 0, keepdims=True)
        assert watch.call[0] is OPS["sum"]
        assert watch.call[1][0] is x
        assert watch.call[1][1:] == (0, True)
        assert watch.call[2] is y
        y.backward()
    node, place, gradient, result = watch.rule
    assert node is y.node
    assert place is x.node
    assert_array_equal(gradient, [1.0])
    assert_array_equal(result, [1.0, 1.0])


def test_observer_is_told_what_goes_on_and_what_arrives_before_it_is_added():
    class Watch(Observer):
        def __init__(self):
            self.went, self.came = [], []

        def on_gradient(self, node, place, gradient):
            self.went.append((node, place, gradient.shape, gradient.dtype))

        def on_arrival(self, node, gradient, before):
            self.came.append((node, gradient.tolist(), before, None if x.grad is None else 1))

    x = leaf(1.0)
    twice = np.float64([1, 1])
    with observe(Watch()) as watch:
        y = x + twice
        y.backward(twice)
        assert watch.went == [(y.node, x.node, x.shape, x.dtype)]
        assert watch.came == [(x.node, 2.0, None, None)]
        assert x.grad.data.flags.owndata
        earlier = x.grad
        (x * 3.0).backward()
        assert watch.came[-1] == (x.node, 3.0, earlier, 1)
        minigrad.grad(x * 4, x)
        assert watch.came[-1] == (x.node, 4.0, None, 1)
    assert_array_equal(x.grad.data, 5.0)


def test_retained_graph_is_not_announced_as_freed():
    x = leaf(1.0)
    with observe(Log()) as log:
        (x * 2).backward(retain_graph=True)
    assert log.freed == []


def test_observer_sees_plain_calls_and_no_grad_calls_too():
    with observe(Log()) as log, no_grad():
        minigrad.exp(np.ones(2))
        minigrad.exp(leaf(1.0))
        minigrad.concatenate([np.ones(2)])
        minigrad.concatenate([leaf(1.0, 2.0)])
    assert log.calls == ["exp", "exp", "concatenate", "concatenate"]


class Passes(Observer):
    def __init__(self):
        self.seen = []

    def on_pass(self, begins):
        self.seen.append((begins, minigrad.is_grad_enabled()) if begins else begins)


def test_observer_sees_backward_passes_begin_and_end():
    x = leaf(1.0)
    with observe(Passes()) as passes:
        y = x.exp()
        y.backward(retain_graph=True)
        assert passes.seen == [(True, False), False]
        grad(y, x, create_graph=True)
    assert passes.seen == [(True, False), False, (True, True), False]


def test_observer_sees_a_pass_inside_another_and_the_end_of_one_that_fails():
    x = leaf(1.0)
    with observe(Passes()) as passes:
        minigrad.checkpoint(minigrad.exp, x).backward()
    assert passes.seen == [(True, False), (True, False), False, False]

    y = x.exp()
    y.register_hook(lambda gradient: 1 / 0)
    with observe(Passes()) as passes, pytest.raises(ZeroDivisionError):
        y.backward()
    assert passes.seen == [(True, False), False]
    assert minigrad.is_grad_enabled()


def test_several_observers_see_the_same_and_each_stops_at_its_end():
    x = leaf(1.0)
    with observe(Log()) as outer:
        with observe(Log()) as inner:
            x.exp()
        x.tanh()
    x.log()
    assert outer.calls == ["exp", "tanh"]
    assert inner.calls == ["exp"]
    assert mode.observers == ()


def test_observers_are_taken_off_after_an_exception():
    class StopError(Exception):
        pass

    with pytest.raises(StopError), observe(Log()), no_grad():
        raise StopError
    assert mode.observers == ()
    assert minigrad.is_grad_enabled()


def test_observers_belong_to_the_thread():
    with observe(Log()) as log:
        thread = threading.Thread(target=lambda: leaf(1.0).exp())
        thread.start()
        thread.join()
    assert log.calls == []


def test_observer_changes_no_result():
    x = drawn(3, 3)
    right = grad((x @ x).softmax().max(), x)
    with observe(Observer()):
        found = grad((x @ x).softmax().max(), x)
    assert_array_equal(found.data, right.data)


def test_an_observer_is_not_kept_by_what_it_saw():
    x = leaf(1.0)
    log = Log()
    with observe(log):
        y = x * x
    gone = weakref.ref(log)
    del log
    assert gone() is None
    y.backward()


# ------------------------------------------------------------------------------------------------
# Ops of one's own
# ------------------------------------------------------------------------------------------------


def test_an_op_of_ones_own_has_derivatives_of_all_orders():
    @op
    def cube(x):
        """x^3."""
        return x * x * x

    cube.rule("x", lambda g, x: 3 * g * x * x)
    assert_gradients(cube, np.array([0.5, -1.2]))
    assert isinstance(cube(np.ones(2)), np.ndarray)
    assert cube.__name__ == "cube"
    assert cube.__doc__ == "x^3."
    assert repr(cube) == "<op cube(x)>"
    assert "cube" in repr(cube(leaf(1.0)))
    assert "cube" not in OPS


def test_an_op_in_a_class_is_a_method_as_any_function():
    class Two(float):
        plus = minigrad.add

    assert Two(2.0).plus(1.0) == 3.0
    assert Two.plus is minigrad.add


def test_a_rule_can_be_a_decorated_function_and_is_handed_back():
    @op
    def scaled(x, factor=2.0):
        return x * factor

    @scaled.rule("x")
    def derivative(g, factor):
        return g * factor

    assert derivative(3.0, 4.0) == 12.0
    x = leaf(1.0, 2.0)
    assert_array_equal(grad(scaled(x).sum(), x).data, [2.0, 2.0])
    assert_array_equal(grad(scaled(x, 5.0).sum(), x).data, [5.0, 5.0])
    assert_array_equal(grad(scaled(x, factor=-1.0).sum(), x).data, [-1.0, -1.0])
    assert_array_equal(grad(scaled(factor=-1.0, x=x).sum(), x).data, [-1.0, -1.0])


def test_an_op_can_have_keyword_only_options():
    @op
    def scaled(x, *, factor=2.0):
        return x * factor

    scaled.rule("x", lambda g, factor: g * factor)
    x = leaf(1.0, 2.0)
    assert_array_equal(grad(scaled(x).sum(), x).data, [2.0, 2.0])
    assert_array_equal(grad(scaled(x, factor=5.0).sum(), x).data, [5.0, 5.0])


def test_an_op_can_be_made_of_a_lambda():
    double = op(lambda x: x * 2)
    double.rule("x", lambda g: g * 2)
    x = leaf(1.0, 2.0)
    assert_array_equal(grad(double(x).sum(), x).data, [2.0, 2.0])


def test_an_input_that_is_left_out_has_no_gradient():
    @op
    def shifted(x, shift=None):
        return x * 1.0 if shift is None else x + shift

    shifted.rule("x", lambda g: g)
    shifted.rule("shift", lambda g: g)
    x, shift = leaf(1.0, 2.0), leaf(3.0)
    assert_array_equal(grad(shifted(x).sum(), x).data, [1.0, 1.0])
    assert grad(shifted(x, shift).sum(), shift).item() == 2.0
    assert grad(shifted(x, shift=shift).sum(), shift).item() == 2.0


def test_an_op_without_a_rule_for_what_needs_a_gradient_is_an_error():
    @op
    def rounded(x):
        return np.round(x)

    with pytest.raises(TypeError, match=r"`rounded` has no rule for x(.|\n)*x\.detach\(\)"):
        rounded(leaf(1.4, 2.6))
    assert_array_equal(rounded(leaf(1.4, 2.6).detach()).data, [1.0, 3.0])
    with minigrad.no_grad():
        assert not rounded(leaf(1.4, 2.6)).requires_grad


def test_an_op_that_returns_no_floats_needs_no_rule():
    @op
    def positive(x):
        return x > 0

    assert positive(leaf(1.4, -2.6)).data.tolist() == [True, False]


def test_an_input_without_a_rule_must_be_a_constant():
    @op
    def weighed(x, weight):
        return x * weight

    weighed.rule("x", lambda g, weight: g * weight)
    x, weight = leaf(1.0, 2.0), leaf(3.0, 4.0)
    with pytest.raises(TypeError, match="no rule for weight"):
        weighed(x, weight)
    assert_array_equal(grad(weighed(x, weight.detach()).sum(), x).data, [3.0, 4.0])


@pytest.mark.parametrize("result", [(1.0, 2.0), None, "text", [np.ones(2)]])
def test_a_forward_must_return_one_array(result):
    @op
    def odd(x):
        return result

    with pytest.raises(TypeError, match="an op has one output, an array"):
        odd(leaf(1.0))


def test_a_forward_that_returns_its_input_gives_a_new_tensor():
    @op
    def same(x):
        return x

    same.rule("x", lambda g: g)
    x = leaf(1.0, 2.0)
    y = same(x)
    assert y is not x
    assert y.data is not x.data
    z = (y * y).sum()
    assert_array_equal(grad(z, x, retain_graph=True).data, [2.0, 4.0])
    x.copy_([0.0, 0.0])  # the same memory, so y has changed
    with pytest.raises(RuntimeError, match="written since"):
        z.backward()


def test_a_rule_given_after_the_first_call_counts():
    @op
    def late(x):
        return x * 3

    x = leaf(1.0, 2.0)
    assert_array_equal(late(x.detach()).data, [3.0, 6.0])
    late.rule("x", lambda g: g * 3)
    assert_array_equal(grad(late(x).sum(), x).data, [3.0, 3.0])


def test_rules_get_arrays_and_under_create_graph_tensors():
    seen = []

    @op
    def scaled(x, factor, shape=None):
        return x * factor

    @scaled.rule("x")
    def _scaled_x(g, x, factor, out, x_shape, shape):
        seen.append([type(value) for value in (g, x, factor, out, x_shape, shape)])
        return g * factor

    x = leaf(1.0, 2.0)
    grad(scaled(x, 2.0).sum(), x)
    grad(scaled(x, 2.0).sum(), x, create_graph=True)
    assert seen == [[kind, kind, float, kind, tuple, type(None)] for kind in (np.ndarray, Tensor)]


def test_a_deep_copy_of_an_op_is_the_op():
    assert copy.deepcopy(minigrad.tanh) is minigrad.tanh


# Joint rules


def joint_product():
    """x y z with one rule for x and y; it keeps what it was told to be needed."""

    @op
    def product(x, y, z):
        return x * y * z

    def derivative(g, needs, x, y, z):
        product.told.append(needs)
        shared = g * z
        return shared * y if needs[0] else None, shared * x if needs[1] else None

    product.told = []
    product.joint_rule(["x", "y"], derivative)
    return product


def test_a_joint_rule_gives_all_gradients_at_once():
    product = joint_product()
    x, y, z = leaf(2.0), leaf(3.0), Tensor(5.0)
    assert [g.item() for g in grad(product(x, y, z), [x, y])] == [15.0, 10.0]
    assert product.told == [(True, True)]


def test_a_joint_rule_is_told_what_is_needed():
    product = joint_product()
    x, y, z = leaf(2.0), leaf(3.0), Tensor(5.0)
    product(x, y.detach(), z).backward()
    product(x.detach(), y, z).backward()
    grad(product(x, y, z), y)
    assert product.told == [(True, False), (False, True), (False, True)]
    assert x.grad.item() == 15.0
    assert y.grad.item() == 10.0


def test_a_joint_rule_is_right_at_second_order():
    product = joint_product()
    arrays = [np.array([0.5, 1.5]), np.array([-1.0, 2.0])]
    assert_gradients(lambda x, y: product(x, y, Tensor(np.array([2.0, 3.0]))), *arrays)


@pytest.mark.parametrize("result", [lambda g: g, lambda g: (g,), lambda g: None])
def test_a_joint_rule_must_return_one_gradient_for_each(result):
    @op
    def product(x, y):
        return x * y

    product.joint_rule(["x", "y"], lambda g, needs: result(g))
    with pytest.raises(TypeError, match="joint rule of `product` must return 2 gradients"):
        product(leaf(1.0), leaf(2.0)).backward()


# Sequences of inputs


def total_op():
    @op
    def total(arrays, power=1):
        return sum(a**power for a in arrays)

    @total.rule("arrays")
    def _total_one(g, position, arrays, power):
        return g * power * arrays[position] ** (power - 1)

    return total


def test_an_op_of_a_sequence_has_a_gradient_for_each_element():
    total = total_op()
    x, y = leaf(2.0), leaf(3.0)
    for arrays in ([x, y], (x, y), iter([x, y])):
        assert [g.item() for g in grad(total(arrays, power=2), [x, y])] == [4.0, 6.0]


def test_an_op_of_a_sequence_takes_constants_and_repetitions():
    total = total_op()
    x = leaf(2.0)
    out = total([x, 10.0, np.array(1.0), x, Tensor(5.0)], power=2)
    assert out.item() == 4 + 100 + 1 + 4 + 25
    assert grad(out, x).item() == 8.0
    assert not total([Tensor(1.0), 2.0]).requires_grad
    assert isinstance(total([np.ones(2), np.ones(2)]), np.ndarray)


def test_an_op_of_a_sequence_is_right_at_second_order():
    total = total_op()
    arrays = [np.array([0.5, 1.5]), np.array([1.0, 2.0]), np.array(0.7)]
    assert_gradients(lambda *xs: total(xs, 3), *arrays)


def test_a_written_element_of_a_sequence_is_named():
    total = total_op()
    x, y = leaf(2.0), leaf(3.0)
    out = total([x, y], power=2)
    y.copy_(0.0)
    with pytest.raises(
        RuntimeError, match=r"`total`.* saved its input arrays\[1\] .*written since"
    ):
        out.backward()


def test_concatenate_minds_no_write_for_it_needs_shapes_only():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    out = (minigrad.concatenate([x, y]) * np.arange(4.0)).sum()
    y.copy_([0.0, 0.0])
    out.backward()
    assert_array_equal(y.grad.data, [2.0, 3.0])


# Fused ops that are replayed


def replayed_op():
    """tanh(x y) x, with rules that work on arrays only."""

    @op(composition=lambda x, y: minigrad.tanh(x * y) * x, replayed=True)
    def fused(x, y):
        return np.tanh(x * y) * x

    @fused.rule("x")
    def _fused_x(g, x, y):
        assert type(g) is type(x) is np.ndarray
        t = np.tanh(x * y)
        return np.multiply(g, t + x * y * (1 - t * t))

    @fused.rule("y")
    def _fused_y(g, x, y):
        assert type(g) is type(x) is np.ndarray
        return np.multiply(g, x * x * (1 - np.tanh(x * y) ** 2))

    return fused


def test_a_replayed_op_is_right_at_orders_one_and_two():
    arrays = [np.array([0.5, -1.2]), np.array([0.7, 0.4])]
    fused = replayed_op()
    assert_gradients(fused, *arrays)
    assert_gradients(lambda x: fused(x, x), arrays[0])
    assert_gradients(lambda x, y: fused(fused(x, y), y.tanh()), *arrays)


def test_a_replayed_op_is_right_at_order_three():
    fused = replayed_op()

    def second(f):
        def run(x, y):
            (g,) = grad(f(x, y).sum(), [x], create_graph=True)
            return grad(g.sum(), [x], create_graph=True)[0]

        return run

    x, y = leaf(0.5, -1.2), leaf(0.7, 0.4)
    found = grad(second(fused)(x, y).sum(), [x, y])
    right = grad(second(fused.composition)(x, y).sum(), [x, y])
    for one, other in zip(found, right, strict=True):
        assert_allclose(one.data, other.data, rtol=1e-12)


def test_first_order_runs_the_rules_and_not_the_composition():
    fused = replayed_op()
    with observe(Log()) as log:
        fused(leaf(1.0, 2.0), leaf(3.0, 4.0)).sum().backward()
    assert "tanh" not in log.calls
    assert ("fused", 0) in log.rules
    assert ("fused", 1) in log.rules


def work_of_second_derivative(length):
    fused = replayed_op()
    x, y = leaf(0.3, 0.4), leaf(0.5, 0.6)
    h = x
    for _ in range(length):
        h = fused(h, y)
    with observe(Log()) as log:
        g = grad(h.sum(), x, create_graph=True)
        first = len(log.calls) + len(log.rules)
        grad(g.sum(), x)
    return first, len(log.calls) + len(log.rules) - first


def test_a_replay_does_not_walk_on_upstream():
    short, long = work_of_second_derivative(10), work_of_second_derivative(20)
    for few, many in zip(short, long, strict=True):
        assert few < many <= 2.1 * few


def test_a_replayed_gradient_by_one_input_depends_on_the_others_too():
    fused = replayed_op()
    x, y = leaf(0.5, -1.2), leaf(0.7, 0.4)
    g = grad(fused(x, y).sum(), x, create_graph=True)  # by x alone
    right = grad(fused.composition(x, y).sum(), x, create_graph=True)
    assert_allclose(grad(g.sum(), y).data, grad(right.sum(), y).data, rtol=1e-12)


def test_a_replay_with_a_constant_input_is_right():
    fused = replayed_op()
    y = Tensor(np.array([0.7, 0.4]))
    assert_gradients(lambda x: fused(x, y), np.array([0.5, -1.2]))
    assert_gradients(lambda x: fused(y, x), np.array([0.5, -1.2]))


def test_a_replayed_op_minds_writes_to_all_its_inputs():
    fused = replayed_op()
    x, y = leaf(0.5, -1.2), leaf(0.7, 0.4)
    g = grad(fused(x, y).sum(), x, create_graph=True)
    y.copy_([0.0, 0.0])
    with pytest.raises(RuntimeError, match="written since"):
        grad(g.sum(), x)


def keeping_op(runs):
    """tanh(x y), which keeps 1 - tanh^2 for its joint rule; `runs` counts the forwards."""

    @op(composition=lambda x, y: minigrad.tanh(x * y), replayed=True, keeps=True)
    def keeping(x, y):
        runs.append(None)
        t = np.tanh(x * y)
        return t, 1 - t * t

    keeping.joint_rule(("x", "y"), lambda g, needs, x, y, kept: (g * kept * y, g * kept * x))
    return keeping


def test_an_op_that_keeps_something_is_right_at_orders_one_and_two():
    arrays = [np.array([0.5, -1.2]), np.array([0.7, 0.4])]
    keeping = keeping_op([])
    assert_gradients(keeping, *arrays)
    assert_gradients(lambda x: keeping(x, x), arrays[0])


def test_what_an_op_keeps_is_no_part_of_its_result():
    runs = []
    keeping = keeping_op(runs)
    assert_array_equal(keeping(np.ones(2), 0.5), np.tanh([0.5, 0.5]))
    x = leaf(1.0, 2.0)
    result = keeping(x, 0.5)
    assert isinstance(result, Tensor)
    result.sum().backward()
    assert len(runs) == 2  # and none in the backward pass
    assert_allclose(x.grad.data, 0.5 / np.cosh([0.5, 1.0]) ** 2, rtol=1e-12)


def test_what_an_op_keeps_is_freed_with_the_graph():
    kept = []

    @op(composition=lambda x: x * 2.0, replayed=True, keeps=True)
    def double(x):
        kept.append(np.zeros(3))
        references.append(weakref.ref(kept[-1]))
        return x * 2.0, kept.pop()

    double.rule("x", lambda g, kept: g * 2.0 + kept.sum())
    references = []
    loss = double(leaf(1.0, 2.0)).sum()
    assert references[0]() is not None
    loss.backward()
    assert references[0]() is None
    double(Tensor([1.0]))  # no rule will ask for it
    assert references[1]() is None


# Bad definitions


def test_keeping_without_a_replay_is_refused():
    with pytest.raises(ValueError, match="must be replayed"):
        op(composition=lambda x: x, keeps=True)(lambda x: (x, x))


def test_a_rule_cannot_name_what_the_op_does_not_keep():
    fused = op(lambda x: x)
    with pytest.raises(ValueError, match="asks for 'kept'"):
        fused.rule("x", lambda g, kept: g)


@op
def sample(x, y, n=3):
    return x * y * n


@pytest.mark.parametrize(
    ("define", "message"),
    [
        (lambda: sample.rule("z", lambda g: g), "`sample` has no input 'z', only x, y, n"),
        (
            lambda: sample.rule("x", lambda g, z: g),
            "a rule of `sample` asks for 'z'; it can have g, out and x, y, n, "
            "or the shape of one, as x_shape",
        ),
        (lambda: sample.rule("x", lambda g, z_shape: g), "asks for 'z_shape'"),
        (lambda: sample.rule("x", lambda y, g: g), "takes g first, not y, g"),
        (lambda: sample.rule("x", lambda: 0), "takes g first"),
        (lambda: sample.joint_rule(["x"], lambda g, x: g), "takes g, needs first, not g, x"),
        (lambda: sample.joint_rule(["z"], lambda g, needs: g), "has no input 'z'"),
        (
            lambda: sample.rule("y", lambda g, position: g),
            "a sequence of inputs is the first parameter",
        ),
    ],
)
def test_bad_rules_are_refused_by_name(define, message):
    with pytest.raises(ValueError, match="sample") as caught:
        define()
    assert message in str(caught.value)
    assert sample.rules == []


def product_of_two():
    @op
    def product(x, y):
        return x * y

    product.rule("x", lambda g, y: g * y)
    return product


def test_a_second_rule_for_an_input_is_refused():
    with pytest.raises(ValueError, match="`product` already has a rule for 'x'"):
        product_of_two().rule("x", lambda g, y: g * y)


def test_a_joint_rule_beside_others_is_refused():
    with pytest.raises(ValueError, match="`product` has rules already"):
        product_of_two().joint_rule(["x", "y"], lambda g, needs, x, y: (g * y, g * x))
    joint = joint_product()
    with pytest.raises(ValueError, match="`product`"):
        joint.rule("z", lambda g, x, y: g * x * y)


def test_a_rule_beside_that_of_a_sequence_is_refused():
    with pytest.raises(ValueError, match="`total`"):
        total_op().rule("power", lambda g: g)


@pytest.mark.parametrize("name", ["g", "out", "needs", "position", "_x"])
def test_reserved_names_of_parameters_are_refused(name):
    namespace = {"__name__": __name__}
    exec(f"def f({name}): return {name}", namespace)
    with pytest.raises(ValueError, match=f"cannot be named '{name}'"):
        op(namespace["f"])


@pytest.mark.parametrize("text", ["def f(*x): return x", "def f(x, **y): return x"])
def test_forwards_with_any_number_of_arguments_are_refused(text):
    namespace = {"__name__": __name__}
    exec(text, namespace)
    with pytest.raises(ValueError, match=r"an op names all its parameters; \*+[xy] does not"):
        op(namespace["f"])


def test_replayed_without_a_composition_is_refused():
    with pytest.raises(ValueError, match="must name the composition"):
        op(composition=None, replayed=True)(lambda x: x)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, TypeError, "the rule of `bad` for its input x returned None"),
        (2.0, TypeError, "the rule of `bad` for its input x returned 2.0"),
        ((1, 2), TypeError, r"the rule of `bad` for its input x returned \(1, 2\)"),
        (np.ones(3), ValueError, r"gradient of shape \(3,\), which cannot be summed to .* \(2,\)"),
        (np.ones((1, 1)), ValueError, r"gradient of shape \(1, 1\), which cannot be summed"),
    ],
)
def test_what_a_rule_must_not_return_is_named(returned, error, message):
    @op
    def bad(x):
        return x * 1.0

    bad.rule("x", lambda g: returned)
    with pytest.raises(error, match=message):
        bad(leaf(1.0, 2.0)).sum().backward()


def test_what_a_call_must_not_be_given_is_named():
    for bad in ("text", object(), [1.0, "a"], {1: 2}):
        with pytest.raises(TypeError, match=r"add: takes tensors, arrays and numbers|tensor holds"):
            minigrad.add(leaf(1.0), bad)
    with pytest.raises(TypeError, match="add: takes tensors, arrays and numbers, not None for y"):
        minigrad.add(leaf(1.0), None)


def test_wrong_arguments_of_a_call_are_pythons_usual_error():
    with pytest.raises(TypeError, match=r"exp\(\) missing 1 required positional argument: 'x'"):
        minigrad.exp()
    with pytest.raises(TypeError, match=r"sum\(\) got an unexpected keyword argument 'axes'"):
        minigrad.sum(leaf(1.0), axes=0)


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
@hypothesis.settings(max_examples=200, deadline=None)
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


@hypothesis.given(steps=smooth_expressions, seed=st.integers(0, 2**32 - 1))
@hypothesis.example(steps=[("matmul", 20, 20)], seed=75030637)  # a derivative that is all rounding
@hypothesis.settings(max_examples=20, deadline=None)
def test_random_graphs_are_right_at_second_order(steps, seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape) for shape in (SQUARE, (2,), ())]
    report = gradcheck(lambda *xs: run(steps, xs, 1)[-1], arrays, order=2)
    assert report.wrong == [], report
    # Where a tanh is flat, little can be told.
    flat = all(abs(entry.analytic) < 1e-5 for entry in report.undecided)
    assert flat or len(report.undecided) < report.compared / 2


def test_a_write_by_a_hook_in_the_middle_of_a_pass_is_seen():
    x, w = leaf(1.0, 2.0), leaf(2.0, 3.0)
    h = x * w
    h.register_hook(lambda g: None if w.copy_([100.0, 100.0]) is w else g)
    with pytest.raises(RuntimeError, match="written since"):
        (h * 1).sum().backward()
    assert x.grad is None


def test_a_written_index_is_seen_also_in_a_tuple():
    x, i = leaf(1.0, 2.0), Tensor([0, 0, 1])
    y = x[(i,)].sum()
    i.copy_([1, 1, 1])
    with pytest.raises(RuntimeError, match="written since"):
        y.backward()


def test_threads_that_share_a_leaf_lose_no_gradient():
    w = Tensor(np.ones(50_000), requires_grad=True)

    def work():
        for _ in range(50):
            (w * 1.0).sum().backward()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (w.grad.data == 200).all()


def test_a_leaf_that_was_switched_off_and_on_is_the_same_to_earlier_graphs():
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    x.requires_grad_(False)
    x.requires_grad_()
    y.backward(retain_graph=True)
    assert_array_equal(x.grad.data, [2.0, 4.0])
    x.requires_grad_(False)
    y.backward()
    x.requires_grad_()
    assert x.grad is None


def test_grad_does_not_walk_beyond_what_it_is_asked_for():
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    h = x * x
    (h * 2).sum().backward()  # which frees the graph behind h
    assert_array_equal(grad((h**3).sum(), h).data, [3.0, 48.0])
    with pytest.raises(RuntimeError, match="freed by an earlier backward pass"):
        grad((h**3).sum(), [h, x])
