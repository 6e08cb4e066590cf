"""What nudges of leaves add to a result, for the slider of the page."""

import json

import numpy as np
import pytest

import minigrad as mg
from minigrad.core.grad_mode import mode
from minigrad.viz import nudges
from minigrad.viz.graph_view import view_graph
from minigrad.viz.nudges import STEPS, nudges_of
from minigrad.viz.passes import right_order


def nudged(loss, tape=None, **names):
    graph = view_graph("test", loss, tape, None, names)
    return nudges_of(graph, right_order(graph).arrived)


def grid(curve):
    """The nudges of a curve, in order."""
    k = np.arange(-STEPS, STEPS + 1)
    return curve["reach"] * k * np.abs(k) / STEPS**2


def number(value):
    return mg.tensor(value, requires_grad=True, dtype=np.float64)


def test_the_curve_is_what_the_function_does():
    a, b = number(0.5), number(2.0)
    first, second = nudged(a * b + mg.tanh(a))["elements"]
    assert (first["value"], first["at"], first["reach"]) == (0.5, [], 1.0)
    assert first["gradient"] == pytest.approx(2 + 1 / np.cosh(0.5) ** 2)
    x = 0.5 + grid(first)
    true = x * 2 + np.tanh(x) - (1 + np.tanh(0.5))
    np.testing.assert_allclose(first["changes"], true, rtol=1e-4, atol=1e-12)
    assert first["changes"][STEPS] == 0
    np.testing.assert_allclose(second["changes"], 0.5 * grid(second), rtol=1e-4)


def test_a_change_near_the_largest_number_does_not_become_infinite_by_its_rounding():
    x, largest = number(1.0), np.finfo(np.float64).max
    (curve,) = nudged(x * (largest / 2))["elements"]
    assert curve["reach"] == 2
    assert curve["changes"][0] == -largest


def test_a_gradient_predicts_small_nudges_and_not_large_ones():
    a = number(0.5)
    (curve,) = nudged(mg.exp(a) * a)["elements"]
    predicted = curve["gradient"] * grid(curve)
    off = np.abs(predicted - curve["changes"])
    assert off[STEPS + 1] < 0.01 * predicted[STEPS + 1]
    assert off[-1] > 0.5 * predicted[-1]


def network(size=(2, 8, 1), dtype=np.float32):
    model = mg.nn.MLP(list(size), activation=mg.tanh)
    x, y = mg.randn(16, size[0]), mg.randn(16, size[-1])
    with mg.viz.record() as tape:
        loss = mg.square(model(x) - y).mean()
    return model, x, y, loss, tape


def test_elements_of_arrays_are_nudged_one_by_one():
    model, x, y, loss, tape = network()
    found = nudged(loss, tape, model=model)["elements"]
    leaves = [node for node in view_graph("test", loss, tape, None, {}).nodes if node.op is None]
    parameters = {parameter.node: parameter for parameter in model.parameters()}
    before = loss.item()
    loss.backward(retain_graph=True)
    assert {curve["node"] for curve in found} == set(range(len(leaves)))
    for curve in found:
        parameter, at = parameters[leaves[curve["node"]]], tuple(curve["at"])
        assert curve["gradient"] == pytest.approx(parameter.grad.data[at], rel=1e-5)
        kept = parameter.data.copy()
        changed = kept.copy()
        changed[at] += np.float32(grid(curve)[-1])
        parameter.copy_(changed)
        with mg.no_grad():
            added = mg.square(model(x) - y).mean().item() - before
        parameter.copy_(kept)
        assert curve["changes"][-1] == pytest.approx(added, rel=1e-4, abs=1e-6)


def test_the_elements_with_the_largest_gradients_are_chosen(monkeypatch):
    monkeypatch.setattr(nudges, "CALLS", 10_000)
    w = mg.tensor(np.arange(100.0) - 30, requires_grad=True)
    scale = number(1.0)
    found = nudged((w * w).sum() * scale)["elements"]
    assert len(found) == nudges.MOST
    of_w = [curve["at"][0] for curve in found if curve["at"]]
    assert of_w == list(range(99, 99 - len(of_w), -1))
    assert len(of_w) == nudges.MOST - 1


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda x: x + 1, "Input b of add is not saved. A tape keeps it"),
        (lambda x: mg.checkpoint(mg.tanh, x), "is the result of a function"),
        (lambda x: x * np.inf, "The result is not finite."),
        (lambda x: mg.slogdet(x * np.eye(2))[1], "LAPACK found log_determinant before"),
    ],
)
def test_why_there_are_no_nudges(make, why):
    x = number(0.5)
    assert why in nudged(make(x))["why"]


def test_a_leaf_without_a_value_cannot_be_nudged():
    y = number(0.5) * 1.0 + number(2.0)
    assert nudged(y)["why"] == "The value of leaf #1 is not saved."


def test_what_was_called_with_an_option_that_is_not_saved_is_found_out():
    @mg.op
    def powered(x, *, factor=1.0):
        return x * factor

    powered.vjp("x", lambda g, x: g * 3.0)
    x = number(0.5)
    assert nudged(powered(x))["elements"]
    assert "What powered was called with is not saved" in nudged(powered(x, factor=3.0))["why"]
    with mg.viz.record() as tape:
        y = powered(x, factor=3.0)
    assert nudged(y, tape)["elements"][0]["changes"][-1] == 3.0


def test_an_option_that_only_the_shape_tells_is_found_out():
    x = mg.tensor(np.zeros((3, 3)), requires_grad=True)
    y = ((x - x.sum(1, keepdims=True)) * np.arange(9.0).reshape(3, 3)).sum()
    assert "is not saved" in nudged(y)["why"]


def test_with_a_tape_sequences_options_and_constants_run_again():
    x = number(0.5)
    with mg.viz.record() as tape:
        parts = mg.concatenate([mg.stack([x, x * 2.0]), np.ones(2)])
        y = (mg.reshape(parts, (2, 2)).sum(1) ** 2.0 + 1.0).mean()
    (curve,) = nudged(y, tape)["elements"]
    value = 0.5 + grid(curve)
    true = ((value * 3) ** 2 + 4) / 2 + 1
    np.testing.assert_allclose(curve["changes"], true - true[STEPS], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("join", [mg.concatenate, mg.stack])
def test_a_sequence_with_a_constant_that_is_not_saved_is_found_out(join):
    x = mg.tensor([0.5, 1.0], requires_grad=True)
    for parts in ([np.ones(2), x], [x, np.ones(2)]):
        assert "is not saved. A tape keeps it" in nudged(join(parts).sum())["why"]


def test_what_is_detached_stays_as_it_is():
    x = number(0.5)
    with mg.viz.record() as tape:
        y = x * x.detach()
    (curve,) = nudged(y, tape)["elements"]
    np.testing.assert_allclose(curve["changes"], 0.5 * grid(curve), rtol=1e-4)


def test_values_that_are_not_finite_are_words():
    x = number(0.5)
    (curve,) = nudged(mg.log(x) + mg.exp(x * x * 600.0))["elements"]
    assert curve["changes"][0] == "nan"
    assert curve["changes"][-1] == "inf"
    json.dumps(curve, allow_nan=False)


@pytest.mark.parametrize("error", [ValueError, IndexError, AssertionError])
def test_an_op_that_refuses_a_value_gives_no_number(error):
    @mg.op
    def strict(x):
        if (x < 0).any():
            raise error("x must not be negative")
        return x * 2.0

    strict.vjp("x", lambda g, x: g * 2.0)
    (curve,) = nudged(strict(number(0.5)))["elements"]
    assert (curve["changes"][0], curve["changes"][-1]) == ("nan", 2.0)


def test_a_leaf_without_numbers_has_nothing_to_nudge():
    empty, one = mg.tensor(np.zeros((0, 3)), requires_grad=True), number(1.0)
    assert nudged(empty.sum())["why"] == "Its leaves are empty."
    assert len(nudged(empty.sum() + one)["elements"]) == 1


def test_a_graph_that_is_too_large_is_not_run(monkeypatch):
    _, _, _, loss, tape = network()
    monkeypatch.setattr(nudges, "NUMBERS", 100)
    assert "too long" in nudged(loss, tape)["why"]


def test_no_more_ops_run_than_there_may_be():
    calls, ops = 0, 20

    @mg.op
    def product(x, y):
        nonlocal calls
        calls += 1
        return x * y

    product.vjp("x", lambda g, y: g * y)
    product.vjp("y", lambda g, x: g * x)
    y = x = mg.tensor(np.full(5, 0.5), requires_grad=True)
    for _ in range(ops):
        y = product(y, x)
    calls = 0
    assert 0 < len(nudged(y.sum())["elements"]) < 5
    assert nudges.CALLS / 2 < calls <= nudges.CALLS + ops


@pytest.mark.parametrize(
    ("value", "reach"),
    [(0.5, 1), (3, 10), (-2.5, 5), (0, 1), (1e-7, 2e-7), (1e308, 2e300), (5e-324, 1e-323)],
)
def test_the_largest_nudge_is_a_round_number(value, reach):
    x = number(value)
    (curve,) = nudged(x * 0.5)["elements"]
    assert curve["reach"] == reach


def test_nothing_is_recorded_or_changed():
    x = mg.tensor([0.5, 1.0], requires_grad=True, dtype=np.float64)
    with mg.viz.record() as tape:
        y = (x * x).sum()
        count = len(tape.calls)
        before = mode.state
        assert nudged(y, tape)["elements"]
        assert mode.state == before
        assert len(tape.calls) == count
    np.testing.assert_array_equal(x.data, [0.5, 1.0])
    assert x.grad is None
