"""A backward pass: the order of its visits, where it starts, and what it frees."""

import threading
import tracemalloc
import weakref

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import (
    Observer,
    Tensor,
    grad,
    observe,
)
from tests.minigrad.core.leaves import Log, drawn, leaf

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
    assert log.vjps.count(("multiply", 1)) == 1


def test_fifty_residual_blocks_run_each_vjp_once():
    x = leaf(1.0)
    with observe(Log()) as log:
        y = x
        for _ in range(50):
            y = y + y * 0.5
        y.backward()
    assert_allclose(x.grad.data, 1.5**50, rtol=1e-12)
    assert len(log.vjps) == 150


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


@pytest.mark.full
def test_chain_of_a_hundred_thousand_ops():
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    y.backward()
    assert y.item() == 100_001.0
    assert x.grad.item() == 1.0
    del y  # and its graph can be dropped without recursion


@pytest.mark.full
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

        def on_vjp(self, node, parent, gradient, result):
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
    parent = weakref.ref(h.data)
    y = h.exp().sum()
    del h
    assert parent() is None  # exp saves its result, not its input
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


def test_a_masked_gradient_is_refused():
    x, masked = leaf(1.0, 2.0), np.ma.masked_array([1.0, 2.0], [True, False])
    for differentiate in ((x * 2).backward, lambda g: grad(x * 2, x, g), minigrad.vjp(abs, x)[1]):
        with pytest.raises(TypeError, match="mask; fill the array in first"):
            differentiate(masked)
    assert x.grad is None


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


def test_grad_by_many_inputs_does_not_compare_each_with_all_others(monkeypatch):
    compared = []

    def equal(a, b):
        compared.append(a)
        return a is b

    inputs = [leaf(float(i)) for i in range(200)]
    total = minigrad.stack(inputs).sum()
    monkeypatch.setattr(type(total.node), "__eq__", equal)
    assert [g.item() for g in grad(total, [*inputs, inputs[0]])] == [1.0] * 201
    assert len(compared) < 1000


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


@pytest.mark.parametrize("create_graph", [False, True])
def test_grad_outputs_keep_their_digits(create_graph):
    x = leaf(1.0, 2.0)
    (g,) = grad(x * 1.0, [x], [[0.1, 0.7]], create_graph=create_graph)
    assert_array_equal(g.detach().data, [0.1, 0.7])


@pytest.mark.parametrize("v", [[1j, 1.0], ["1", "2"]])
def test_grad_outputs_are_real_numbers(v):
    x = leaf(1.0, 2.0)
    with pytest.raises(TypeError, match="of real numbers"):
        grad(x * 1.0, x, [v])


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


def test_only_vjps_on_the_way_to_the_inputs_run():
    x, w, v = drawn(2, 2), drawn(2, 2, seed=1), drawn(2, 2, seed=2)
    y = ((x @ w).tanh() @ v).sum()
    with observe(Log()) as log:
        grad(y, v)
    assert log.vjps == [("sum", 0), ("matmul", 1)]


def test_grad_does_not_walk_beyond_what_it_is_asked_for():
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    h = x * x
    (h * 2).sum().backward()  # which frees the graph behind h
    assert_array_equal(grad((h**3).sum(), h).data, [3.0, 48.0])
    with pytest.raises(RuntimeError, match="freed by an earlier backward pass"):
        grad((h**3).sum(), [h, x])


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
