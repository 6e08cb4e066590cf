"""checkpoint(f, *inputs): the same gradients for less memory, by running f again."""

import tracemalloc
import weakref

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import Observer, Tensor, assert_gradients, checkpoint, grad, nn, no_grad, observe
from minigrad.core.grad_mode import mode
from minigrad.random import generator


def drawn(*shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


class Calls(Observer):
    def __init__(self):
        self.names = []

    def on_call(self, op, inputs, result):
        self.names.append(op.name)


# Gradients


def test_value_and_gradients_are_those_without_it():
    def f(x, y):
        return (x * y).tanh() @ y.T

    x, y = drawn(2, 3), drawn(2, 3, seed=1)
    plain, recomputed = f(x, y), checkpoint(f, x, y)
    assert_array_equal(recomputed.data, plain.data)
    v = np.random.default_rng(2).standard_normal((2, 2))
    for found, right in zip(grad(recomputed, [x, y], v), grad(plain, [x, y], v), strict=True):
        assert_array_equal(found.data, right.data)


def test_gradients_go_on_to_what_the_inputs_came_from():
    x = drawn(3)
    checkpoint(lambda h: h.exp() * h, x.tanh()).sum().backward()
    right = grad((x.tanh().exp() * x.tanh()).sum(), x)
    assert_allclose(x.grad.data, right.data, rtol=1e-14)


def test_gradients_reach_what_the_function_closes_over():
    x, w = drawn(3), drawn(3, seed=1)
    checkpoint(lambda x: (x * w).tanh(), x).sum().backward()
    right = grad((x * w).tanh().sum(), [x, w])
    assert_array_equal(x.grad.data, right[0].data)
    assert_array_equal(w.grad.data, right[1].data)


def test_gradients_reach_parameters_when_no_input_requires_one():
    model = nn.MLP([3, 4, 1])
    x = minigrad.randn(5, 3)
    checkpoint(model, x).sum().backward()
    found = [p.grad.data for p in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()
    for one, other in zip(found, (p.grad.data for p in model.parameters()), strict=True):
        assert_array_equal(one, other)


def test_gradients_reach_closed_over_results_of_ops():
    w = drawn(3)
    h = w * 2
    x = Tensor(np.ones(3))
    checkpoint(lambda x: (x * h).tanh(), x).sum().backward()
    assert_allclose(w.grad.data, grad((w * 2).tanh().sum(), w).data, rtol=1e-14)


def test_closed_over_elements_of_a_sequence_get_their_gradients():
    x, w = drawn(2), drawn(3)
    checkpoint(lambda x: minigrad.concatenate([x, w]), x).sum().backward()
    assert_array_equal(x.grad.data, np.ones(2))
    assert_array_equal(w.grad.data, np.ones(3))


def test_the_same_tensor_passed_twice_gets_both_gradients():
    x = drawn(3)
    checkpoint(lambda a, b: a * b * b, x, x).sum().backward()
    assert_allclose(x.grad.data, 3 * x.data**2, rtol=1e-12)


def test_a_tensor_passed_and_closed_over_gets_both_gradients():
    x = drawn(3)
    checkpoint(lambda a: a * a * x, x).sum().backward()
    assert_allclose(x.grad.data, 3 * x.data**2, rtol=1e-12)


def test_a_result_passed_and_closed_over_gets_both_gradients():
    x = drawn(3)
    h = x * 2
    checkpoint(lambda a: a * a * h * x, h).sum().backward()
    assert_allclose(x.grad.data, 4 * 8 * x.data**3, rtol=1e-12)


def test_an_input_returned_as_it_is_gets_its_gradient():
    x = drawn(3)
    checkpoint(lambda a: a, x).sum().backward()
    assert_array_equal(x.grad.data, np.ones(3))


def test_a_closed_over_tensor_returned_as_it_is_gets_its_gradient():
    x, w = drawn(3), drawn(3, seed=1)
    checkpoint(lambda x: w, x).sum().backward()
    assert_array_equal(w.grad.data, np.ones(3))


def test_a_hook_on_what_is_closed_over_sees_the_whole_gradient_once():
    seen = []
    x, w = drawn(3), drawn(3, seed=1)
    w.register_hook(lambda g: seen.append(g.data.copy()))
    (checkpoint(lambda x: x * w, x) + w).sum().backward()
    assert len(seen) == 1
    assert_allclose(seen[0], x.data + 1, rtol=1e-14)


def test_a_retained_gradient_of_what_is_closed_over_is_not_added_twice():
    x, w = drawn(3), drawn(3, seed=1)
    h = w * 2
    h.retain_grad()
    checkpoint(lambda x: x * h, x).sum().backward()
    assert_allclose(h.grad.data, x.data, rtol=1e-14)
    assert_allclose(w.grad.data, 2 * x.data, rtol=1e-14)


def test_a_hook_on_an_input_sees_the_whole_gradient_once():
    seen = []
    x = drawn(3)
    x.register_hook(lambda g: seen.append(g.data.copy()))
    checkpoint(lambda a: a * a + a, x).sum().backward()
    (found,) = seen
    assert_allclose(found, 2 * x.data + 1, rtol=1e-14)


def test_an_unused_input_has_gradient_zero():
    x, y = drawn(3), drawn(3, seed=1)
    assert_array_equal(grad(checkpoint(lambda x, y: x * 2, x, y).sum(), y).data, np.zeros(3))


@pytest.mark.parametrize("asked", [0, 1])
def test_inputs_stay_tensors_when_another_one_is_asked_for(asked):
    def f(x, y):
        return x.tanh() * y.exp()

    inputs = [drawn(3), drawn(3, seed=1)]
    found = grad(checkpoint(f, *inputs).sum(), inputs[asked])
    assert_array_equal(found.data, grad(f(*inputs).sum(), inputs[asked]).data)


def test_arguments_that_are_no_tensors_are_handed_on():
    x = drawn(2, 3)
    out = checkpoint(lambda x, axis, scale: x.sum(axis) * scale, x, 1, np.array([2.0, 3.0]))
    out.sum().backward()
    assert_array_equal(x.grad.data, [[2.0] * 3, [3.0] * 3])


def test_tensors_within_a_list_get_their_gradients():
    x, y = drawn(3), drawn(3, seed=1)
    checkpoint(lambda pair: pair[0] * pair[1], [x, y]).sum().backward()
    assert_array_equal(x.grad.data, y.data)
    assert_array_equal(y.grad.data, x.data)


def test_constant_tensors_stay_constant():
    x, mask = drawn(3), Tensor(np.array([True, False, True]))
    out = checkpoint(lambda x, mask: minigrad.where(mask, x, 0.0), x, mask)
    out.sum().backward()
    assert_array_equal(x.grad.data, [1.0, 0.0, 1.0])
    assert mask.grad is None


def test_frozen_parameters_get_none():
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad = False
    checkpoint(layer, minigrad.randn(4, 3)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None


def test_dtypes_of_gradients_are_kept():
    x, w = drawn(3), Tensor(np.ones(3, np.float32), requires_grad=True)
    checkpoint(lambda x: x * w, x).sum().backward()
    assert x.grad.dtype == np.float64
    assert w.grad.dtype == np.float32


# Running again


def test_it_runs_the_function_again_in_the_backward_pass():
    runs = []

    def f(x):
        runs.append(minigrad.is_grad_enabled())
        return x.tanh()

    x = drawn(3)
    y = checkpoint(f, x).sum()
    assert runs == [False]  # and records nothing in the first run
    y.backward()
    assert runs == [False, True]


def test_it_runs_again_once_for_each_pass_through_a_retained_graph():
    x = drawn(3)
    with observe(Calls()) as calls:
        y = checkpoint(minigrad.tanh, x).sum()
        y.backward(retain_graph=True)
        y.backward()
    assert calls.names.count("tanh") == 3
    assert_allclose(x.grad.data, 2 * (1 - np.tanh(x.data) ** 2), rtol=1e-12)


def test_gradients_reach_what_an_inner_checkpoint_is_handed_from_outside():
    w, x = drawn(3), drawn(3, seed=1)

    def outer(x):
        return x * checkpoint(lambda v: v * v, w)

    checkpoint(outer, x).sum().backward()
    assert_allclose(w.grad.data, 2 * w.data * x.data, rtol=1e-12)
    assert_allclose(x.grad.data, w.data**2, rtol=1e-12)


def test_it_does_not_run_what_comes_before_it_again():
    x = drawn(3)
    with observe(Calls()) as calls:
        h = x
        for _ in range(10):
            h = checkpoint(minigrad.tanh, h)
        h.sum().backward()
    assert calls.names.count("tanh") == 20


def test_a_freed_checkpoint_is_an_error_the_second_time():
    x = drawn(3)
    y = checkpoint(minigrad.tanh, x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="was freed"):
        y.backward()


def test_backward_under_no_grad_runs_again_with_gradients():
    x = drawn(3)
    y = checkpoint(minigrad.tanh, x).sum()
    with no_grad():
        y.backward()
    assert_allclose(x.grad.data, 1 - np.tanh(x.data) ** 2, rtol=1e-12)


# Memory


def chain(h):
    for _ in range(10):
        h = h.tanh()
    return h


def test_activations_within_are_not_kept():
    class Results(Observer):
        def __init__(self):
            self.arrays = []

        def on_call(self, op, inputs, result):
            self.arrays.append(weakref.ref(result.data))

        def alive(self):
            # Distinct ones: the result of the chain is the checkpoint's too.
            return len({id(array()) for array in self.arrays if array() is not None})

    x = drawn(3)
    with observe(Results()) as plain:
        y = chain(x)
    with observe(Results()) as recomputed:
        z = checkpoint(chain, x)
    assert plain.alive() == 10
    assert recomputed.alive() == 1
    (y + z).sum().backward()


def test_peak_memory_of_a_backward_pass_is_lower():
    x = drawn(100, 100)

    def peak(block):
        tracemalloc.start()
        try:
            h = x
            for _ in range(5):
                h = block(h)
            h.sum().backward()
            return tracemalloc.get_traced_memory()[1] / x.data.nbytes
        finally:
            tracemalloc.stop()

    assert peak(chain) > 50
    assert peak(lambda h: checkpoint(chain, h)) < 25


# Randomness


def dropped(x):
    return minigrad.dropout(x, 0.5)


def test_the_default_generator_is_replayed():
    x = Tensor(np.ones(100), requires_grad=True)
    y = checkpoint(dropped, x)
    minigrad.rand(7)  # others draw in between
    y.sum().backward()
    assert 20 < np.count_nonzero(y.data) < 80
    assert_array_equal(x.grad.data, y.data)


def test_a_generator_of_ones_own_is_replayed():
    rng = np.random.default_rng(5)
    x = Tensor(np.ones(100), requires_grad=True)
    y = checkpoint(lambda x: minigrad.dropout(x, 0.5, rng=rng), x)
    rng.random(7)
    y.sum().backward()
    assert_array_equal(x.grad.data, y.data)


def test_generators_are_afterwards_where_they_were():
    rng = np.random.default_rng(5)

    def f(x):
        return minigrad.dropout(dropped(x), 0.5, rng=rng)

    x = Tensor(np.ones(100), requires_grad=True)
    y = checkpoint(f, x)
    dropped(x), rng.random()  # others draw in between
    states = [g.bit_generator.state for g in (rng, generator())]
    y.sum().backward()
    assert states == [g.bit_generator.state for g in (rng, generator())]


def test_draws_after_a_checkpoint_are_those_without_it():
    x = Tensor(np.ones(10), requires_grad=True)
    minigrad.manual_seed(3)
    dropped(x).sum().backward()
    right = minigrad.rand(5).data
    minigrad.manual_seed(3)
    checkpoint(dropped, x).sum().backward()
    assert_array_equal(minigrad.rand(5).data, right)


def test_the_forward_draws_what_it_would_draw_without():
    x = Tensor(np.ones(10), requires_grad=True)
    minigrad.manual_seed(3)
    right = dropped(x).data
    minigrad.manual_seed(3)
    assert_array_equal(checkpoint(dropped, x).data, right)


def test_several_draws_from_one_generator_are_replayed_in_order():
    x = Tensor(np.ones(50), requires_grad=True)
    y = checkpoint(lambda x: dropped(dropped(x)) + dropped(x), x)
    y.sum().backward()
    assert_array_equal(x.grad.data, y.data)


def test_each_checkpoint_draws_its_own():
    x = Tensor(np.ones(100), requires_grad=True)
    first, second = checkpoint(dropped, x), checkpoint(dropped, x)
    assert not np.array_equal(first.data, second.data)
    (first + second).sum().backward()
    assert_array_equal(x.grad.data, first.data + second.data)


# Higher order and nesting


def test_second_order_is_right():
    w = Tensor(np.array([0.4, -0.3, 1.1]))
    arrays = [np.array([0.5, -1.2, 0.8]), np.array([1.1, 0.7, -0.9])]
    assert_gradients(lambda x, y: checkpoint(lambda a, b: (a * b * w).tanh() * a, x, y), *arrays)


def test_second_order_is_right_by_what_is_closed_over():
    arrays = [np.array([0.5, -1.2, 0.8]), np.array([1.1, 0.7, -0.9])]
    assert_gradients(lambda x, w: checkpoint(lambda a: (a * w).tanh() * w, x), *arrays)


def test_second_order_is_right_if_an_input_is_unused():
    def f(x):
        return checkpoint(lambda _: (x * x).softmax(), x.tanh())

    assert_gradients(f, np.array([0.5, -1.2, 0.8]))


def test_a_gradient_by_one_input_depends_on_the_others_and_on_what_is_closed_over():
    x, y, w = drawn(3), drawn(3, seed=1), drawn(3, seed=2)

    def f(x, y):
        return (x * y * w).tanh()

    first = grad(checkpoint(f, x, y).sum(), x, create_graph=True)  # by x alone
    right = grad(f(x, y).sum(), x, create_graph=True)
    found = grad(first.sum(), [x, y, w])
    for one, other in zip(found, grad(right.sum(), [x, y, w]), strict=True):
        assert_allclose(one.data, other.data, rtol=1e-12)


def test_second_order_replays_the_same_draws():
    x = Tensor(np.ones(50), requires_grad=True)
    y = checkpoint(lambda x: dropped(x * x), x)
    first = grad(y.sum(), x, create_graph=True)
    minigrad.rand(3)
    second = grad(first.sum(), x)
    assert_array_equal(first.data, 2 * y.data)
    assert_array_equal(second.data, 2 * y.data)


def test_third_order_is_right():
    x = drawn(3)
    y = checkpoint(lambda x: x**4, x).sum()
    for right in (4 * x.data**3, 12 * x.data**2, 24 * x.data):
        g = grad(y, x, create_graph=True)
        assert_allclose(g.data, right, rtol=1e-12)
        y = g.sum()


def test_nested_checkpoints_give_the_same_gradients():
    x, w = drawn(3), drawn(3, seed=1)

    def inner(h):
        return (h * w).tanh()

    def outer(h):
        return checkpoint(inner, checkpoint(inner, h)) * h

    checkpoint(outer, x).sum().backward()
    right = grad((inner(inner(x)) * x).sum(), [x, w])
    assert_allclose(x.grad.data, right[0].data, rtol=1e-14)
    assert_allclose(w.grad.data, right[1].data, rtol=1e-14)
    assert_gradients(lambda x: checkpoint(outer, x), x.data)


def test_nested_checkpoints_replay_their_randomness():
    x = Tensor(np.ones(100), requires_grad=True)
    y = checkpoint(lambda h: checkpoint(dropped, h) * 2 + dropped(h), x)
    y.sum().backward()
    assert_array_equal(x.grad.data, y.data)


# What it refuses


def test_a_function_that_gives_another_result_is_an_error():
    count = iter(range(10))
    x = drawn(3)
    y = checkpoint(lambda x: x * next(count), x).sum()
    with pytest.raises(RuntimeError, match=r"gave another result when it was run again"):
        y.backward()
    assert x.grad is None


def test_hidden_randomness_is_an_error():
    hidden = np.random.default_rng(0)
    x = drawn(30)
    y = checkpoint(lambda x: x * hidden.random(30), x).sum()
    with pytest.raises(RuntimeError, match="randomness of its own"):
        y.backward()


@pytest.mark.parametrize(
    ("f", "what"),
    [
        (lambda x: (x, x), "tuple"),
        (lambda x: x.data, "ndarray"),
        (lambda x: None, "NoneType"),
        (lambda x: 1.0, "float"),
    ],
)
def test_a_function_must_return_one_tensor(f, what):
    with pytest.raises(TypeError, match=f"must return one Tensor, not {what}"):
        checkpoint(f, drawn(3))


@pytest.mark.parametrize("which", ["input", "closed over"])
def test_a_tensor_written_since_is_an_error(which):
    x, w = drawn(3), drawn(3, seed=1)
    y = checkpoint(lambda x: x * w, x).sum()
    (x if which == "input" else w).copy_(np.zeros(3))
    with pytest.raises(RuntimeError, match=r"`checkpoint`.*overwritten since"):
        y.backward()
    assert x.grad is None
    assert w.grad is None


def test_a_constant_written_since_is_an_error():
    x, constant = drawn(3), Tensor(np.ones(3))
    y = checkpoint(lambda x, c: x * c, x, constant).sum()
    constant.copy_(np.zeros(3))
    with pytest.raises(RuntimeError, match=r"written since|another result"):
        y.backward()


def test_an_error_in_the_function_comes_through_and_leaves_the_mode_as_it_was():
    def fail(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        checkpoint(fail, drawn(3))
    assert minigrad.is_grad_enabled()
    assert mode.observers == ()


# Where nothing is to be recorded


def test_under_no_grad_it_is_a_plain_call():
    x, w = drawn(3), drawn(3, seed=1)
    with no_grad():
        y = checkpoint(lambda x: x * w, x)
    assert not y.requires_grad
    assert_array_equal(y.data, x.data * w.data)


def test_without_anything_to_train_it_is_a_plain_call():
    y = checkpoint(minigrad.tanh, Tensor(np.ones(3)))
    assert not y.requires_grad


def test_a_result_of_integers_needs_no_gradient():
    y = checkpoint(lambda x: x > 0, drawn(3))
    assert y.dtype == bool
    assert not y.requires_grad


def test_the_result_says_what_it_is():
    assert "op=checkpoint" in repr(checkpoint(minigrad.tanh, drawn(3)))


def test_a_derivative_that_the_function_takes_itself_is_not_something_from_outside():
    def penalised(x):
        inner = Tensor(x.data, requires_grad=True)
        with minigrad.enable_grad():
            slope = minigrad.grad((inner**3).sum(), inner)
        return x * slope

    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    result = checkpoint(penalised, x)
    assert [edge[0] for edge in result.node.edges] == [x.node]
    assert_allclose(minigrad.grad(result.sum(), x).data, [3.0, 12.0])


def test_a_constant_that_it_was_handed_and_that_was_written_since_is_named():
    x, scale = minigrad.ones(3, requires_grad=True), minigrad.ones(3)
    y = checkpoint(lambda x, scale: x * scale, x, scale)
    scale.copy_(np.zeros(3))
    with pytest.raises(RuntimeError, match=r"`checkpoint`.* saved its input 1 .* was overwritten"):
        y.sum().backward()


class Saved(nn.Module):
    """A linear layer that runs under `checkpoint`, once or inside of another one."""

    def __init__(self, nested):
        self.inner = nn.Linear(2, 3, dtype=np.float64, rng=np.random.default_rng(0))
        self.nested = nested

    def forward(self, x):
        if self.nested:
            return checkpoint(lambda x: checkpoint(self.inner, x), x)
        return checkpoint(self.inner, x)


@pytest.mark.parametrize("nested", [False, True])
def test_a_transform_by_a_module_passes_through_it(nested):
    """The function runs again when the transform has put the parameters back."""
    x, m = np.random.default_rng(0).standard_normal((4, 2)), Saved(nested)
    right = minigrad.gradient(lambda m: (m(x) ** 2).sum())(m.inner)
    found = minigrad.gradient(lambda m: (m(x) ** 2).sum())(m)
    for name in ("weight", "bias"):
        assert_allclose(found[f"inner.{name}"].data, right[name].data, rtol=1e-12)
    assert_gradients(m, x)


def test_a_second_run_with_another_parameter_of_equal_values_is_refused():
    """The result is the same, but the first parameter would get no gradient."""
    layer = nn.Linear(2, 2)
    loss = checkpoint(layer, minigrad.ones(1, 2)).sum()
    layer.weight = nn.Parameter(layer.weight.detach().numpy())
    with pytest.raises(RuntimeError, match="its gradient would be wrong"):
        loss.backward()
    assert layer.weight.grad is None
