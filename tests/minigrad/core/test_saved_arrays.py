"""What the graph saves for the backward pass, and what happens if it was written since."""

import tracemalloc
import weakref

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import minigrad
from minigrad import (
    Tensor,
    grad,
    nn,
    no_grad,
    observe,
    optim,
)
from tests.minigrad.core.leaves import Log, drawn, leaf

# ------------------------------------------------------------------------------------------------
# What is saved
# ------------------------------------------------------------------------------------------------


def test_the_vjp_of_a_frozen_weight_never_runs():
    x, frozen = drawn(4, 3), Tensor(np.ones((3, 2)))
    with observe(Log()) as log:
        (x @ frozen).sum().backward()
    assert log.vjps == [("sum", 0), ("matmul", 0)]


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
    assert ("linear", 1) in log.vjps
    assert ("linear", 0) not in log.vjps


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


def test_a_vjp_that_names_a_shape_keeps_no_array():
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
    with pytest.raises(
        RuntimeError, match=r"`linear`.* saved its input weight .*overwritten since"
    ):
        y.backward()
    assert x.grad is None
    layer(x).sum().backward()  # computed again, it works
    assert x.grad is not None


@pytest.mark.parametrize("write", WRITES)
def test_a_write_to_what_no_vjp_needs_is_no_error(write):
    layer = nn.Linear(2, 2)
    x = minigrad.randn(3, 2)
    y = layer(x).sum()  # x is not trained, so no VJP needs the weight
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


def test_a_write_that_only_other_vjps_mind_is_no_error():
    w, v = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = ((w * w) * v).sum()
    w.copy_([0.0, 0.0])
    assert_array_equal(grad(y, v, retain_graph=True).data, [1.0, 4.0])
    with pytest.raises(RuntimeError, match="written since"):
        grad(y, w)


def test_a_result_that_its_own_vjp_needs_must_not_be_written():
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


@pytest.mark.parametrize(
    "alias", [np.lib.stride_tricks.as_strided, lambda array: np.asarray(memoryview(array))[:]]
)
@pytest.mark.parametrize("through_alias", [False, True])
def test_a_write_through_an_alias_whose_base_is_no_array_is_seen(alias, through_alias):
    array = np.ones(2)
    saved, written = (array, alias(array)) if through_alias else (alias(array), array)
    y = (leaf(3.0, 4.0) * Tensor(saved)).sum()
    other = Tensor(written)
    other += 5.0
    assert_array_equal(array[0], 6.0)
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


LISTED = {
    "index": lambda x, given: x[given],
    "index in a tuple": lambda x, given: x[given, 0],
    "flip": lambda x, given: minigrad.flip(x, given),
    "roll": lambda x, given: minigrad.roll(x, given, (0, 1)),
    "transpose": lambda x, given: minigrad.transpose(x, given),
    "softmax": lambda x, given: minigrad.softmax(x, given) * x,
    "where": lambda x, given: minigrad.where(given, x, 0.0),
}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", LISTED)
def test_a_list_that_changes_after_the_call_changes_no_gradient(name, create_graph):
    x, weights = drawn(2, 2), drawn(2, 2, seed=1)
    before, after = ([0], [1]) if name in ("flip", "softmax") else ([0, 1], [1, 0])
    expected = grad((LISTED[name](x, [*before]) * weights).sum(), x)
    y = (LISTED[name](x, before) * weights).sum()
    before[:] = after
    assert_array_equal(grad(y, x, create_graph=create_graph).data, expected.data)
