"""The demos of one file each: spirals, Newton's method, an op of one's own."""

from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the examples need the `examples` extra")
pytest.importorskip("sklearn", reason="the examples need the `examples` extra")

from matplotlib.image import imread

import minigrad
from examples import second_order, spirals, write_your_own_op


def is_picture(path):
    """Whether a file is a PNG as wide as a page, of no more than 250 kB, and not blank."""
    pixels = imread(path)
    return pixels.shape[1] == 1200 and pixels.std() > 0.05 and path.stat().st_size < 250_000


# --------------------------------------------------------------------------------------------------
# The spirals
# --------------------------------------------------------------------------------------------------


def check_parted(result, last, printed, out):
    """Check what the demo of the spirals claims: its moments, what it prints, and its picture."""
    assert [moment.epoch for moment in result.moments] == [0, 50, 150, last]
    assert result.moments[-1].accuracy > 0.97
    assert all(before.accuracy < after.accuracy for before, after in pairwise(result.moments))
    assert len(result.history) == result.moments[-1].epoch
    assert f"{result.moments[-1].accuracy:.1%}" in printed
    assert is_picture(out)


@pytest.mark.full  # the quick form is run by the test of its program
def test_the_network_parts_the_spirals(tmp_path, capsys):
    out = tmp_path / "spirals.png"
    result = spirals.main(out=out)
    check_parted(result, 400, capsys.readouterr().out, out)


def test_the_spirals_are_one_turned_by_half_and_far_apart(monkeypatch):
    monkeypatch.setattr(spirals, "NOISE", 0.0)
    x, y = spirals.spirals(np.random.default_rng(0))
    first, second = x[y[:, 0] == 0], x[y[:, 0] == 1]
    assert len(first) == len(second) == spirals.POINTS
    for points, half in ((first, 0.0), (second, np.pi)):
        angle = 2 * np.pi * spirals.TURNS * np.linalg.norm(points, axis=1) / 6.2 + half
        towards = points / np.linalg.norm(points, axis=1, keepdims=True)
        np.testing.assert_allclose(towards, np.array([np.cos(angle), np.sin(angle)]).T, atol=1e-5)
    outer = [points[np.linalg.norm(points, axis=1) > 1.5] for points in (first, second)]
    apart = np.linalg.norm(outer[0][:, None] - outer[1], axis=-1).min()
    assert apart > 8 * 0.12  # many times the noise


def test_the_map_is_what_the_network_says_of_each_place():
    model = minigrad.nn.MLP([2, 4, 1], rng=np.random.default_rng(0))
    x = np.array([[1.0, -2.0], [3.0, 4.0]], np.float32)
    moment = spirals.look(model, 7, (x, np.array([[1.0], [0.0]], np.float32)))
    axis = np.linspace(-spirals.REACH, spirals.REACH, spirals.GRID, dtype=np.float32)
    place = np.array([[axis[20], axis[150]]])  # x by column, y by row
    expected = minigrad.sigmoid(model(minigrad.tensor(place.astype(np.float32)))).item()
    assert moment.probability[150, 20] == pytest.approx(expected, rel=1e-5)
    scores = model(minigrad.tensor(x)).detach().numpy()[:, 0]
    assert moment.accuracy == np.mean([scores[0] > 0, scores[1] <= 0])


# --------------------------------------------------------------------------------------------------
# Newton's method
# --------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("quick", [True, False])
def test_newton_takes_fewer_steps(tmp_path, capsys, monkeypatch, quick):
    if not quick:  # one rate of Adam is the best in the valley, the other for the regression
        monkeypatch.setattr(second_order, "RATES", (0.3, 1.0))
    out = tmp_path / "second_order.png"
    result = second_order.main(quick, out)
    for newton, adam in (result.valley, result.regression):
        assert abs(newton.gaps[-1]) <= second_order.GAP
        assert 20 * newton.steps < adam.steps
        assert newton.products > newton.steps
    np.testing.assert_allclose(result.valley[0].points[-1], [1, 1], atol=1e-3)
    printed = capsys.readouterr().out
    assert f"in {result.regression[0].steps} steps" in printed
    assert is_picture(out)


def test_conjugate_gradients_solve_a_system_in_as_many_products_as_it_has_rows():
    root = np.random.default_rng(0).standard_normal((4, 4))
    matrix = root @ root.T + np.eye(4)
    b = 1e-9 * np.ones(4)  # as near the minimum, where it must be exact
    descent = second_order.Descent("Newton")
    p = second_order.solve(lambda x: (x * (matrix @ x)).sum() / 2, np.zeros(4), b, descent)
    np.testing.assert_allclose(p, np.linalg.solve(matrix, b), rtol=1e-3)
    assert descent.products <= 4


def test_where_the_function_bends_down_the_step_is_along_the_gradient():
    descent = second_order.Descent("Newton")
    b = np.array([1.0, 2.0])
    p = second_order.solve(lambda x: -(x * x).sum(), np.zeros(2), b, descent)
    assert p.tolist() == b.tolist()
    assert descent.products == 1


def test_a_parabola_takes_newton_one_step():
    descent = second_order.descend_by_newton(lambda x: ((x - 3) ** 2).sum(), np.zeros(5), 0.0)
    assert (descent.steps, descent.arrived, descent.gradients) == (1, True, 2)
    np.testing.assert_allclose(descent.points[-1], 3)


def test_what_does_not_arrive_is_said_not_to():
    start = np.array([-1.2, 1.0])
    newton = second_order.descend_by_newton(second_order.rosenbrock, start, 0.0, most=3)
    adam = second_order.descend_by_adam(second_order.rosenbrock, start, 0.0, 0.1, most=4)
    assert (newton.steps, newton.arrived, adam.steps, adam.arrived) == (3, False, 4, False)
    assert "not in 3 steps" in str(newton)
    assert "not in 4 steps" in str(adam)


# --------------------------------------------------------------------------------------------------
# An op of one's own
# --------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("quick", [True, False])
def test_the_op_is_right_and_goes_on_where_data_end(tmp_path, capsys, quick):
    out = tmp_path / "write_your_own_op.png"
    result = write_your_own_op.main(quick, out)
    assert result.right.verdict == "agree"
    assert {entry.operand for entry in result.wrong.wrong} == {"x"}
    assert result.beyond["snake"] < result.beyond["tanh"] / 2
    x = write_your_own_op.grid()
    inside = np.abs(x) < write_your_own_op.SPAN
    for curve in result.curves.values():  # both know the data
        assert np.abs(curve - write_your_own_op.truth(x))[inside].mean() < 0.12
    printed = capsys.readouterr().out
    assert "gradcheck of snake: agree" in printed
    assert "gradcheck of faulty: disagree" in printed
    assert is_picture(out)


def test_the_faulty_op_is_the_same_function_and_right_at_one():
    x = np.linspace(-2, 2, 7)
    at = minigrad.tensor(x, requires_grad=True)
    for a, equal in ((1.0, True), (2.0, False)):
        slopes = []
        for op in (write_your_own_op.snake, write_your_own_op.faulty):
            np.testing.assert_allclose(op(x, a), x + np.sin(a * x) ** 2 / a)
            slopes.append(minigrad.grad(op(at, a).sum(), at).numpy())
        assert np.allclose(*slopes) is equal
