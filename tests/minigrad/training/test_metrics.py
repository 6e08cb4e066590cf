"""Metrics against their formulas and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

import minigrad
from minigrad.metrics import accuracy, mae, mse, r2, rmse

METRICS = [mse, rmse, mae, r2]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_by_hand():
    prediction, target = [1.0, 2.0, 6.0], [1.0, 4.0, 4.0]
    assert mse(prediction, target) == pytest.approx(8 / 3, rel=1e-15)
    assert rmse(prediction, target) == pytest.approx(math.sqrt(8 / 3), rel=1e-15)
    assert mae(prediction, target) == pytest.approx(4 / 3, rel=1e-15)
    assert r2(prediction, target) == pytest.approx(1 - 8 / 6, rel=1e-14)


@pytest.mark.parametrize("shape", [(50,), (50, 1)])
@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        (mse, sklearn_metrics.mean_squared_error),
        (rmse, sklearn_metrics.root_mean_squared_error),
        (mae, sklearn_metrics.mean_absolute_error),
        (r2, sklearn_metrics.r2_score),
    ],
)
def test_same_as_scikit_learn(rng, metric, reference, shape):
    target = rng.standard_normal(shape)
    prediction = target + rng.standard_normal(shape) / 3
    assert metric(prediction, target) == pytest.approx(reference(target, prediction), rel=1e-12)


def test_r2_is_one_for_the_target_and_zero_for_its_mean(rng):
    target = rng.standard_normal(20)
    assert r2(target, target) == 1
    assert r2(np.full(20, target.mean()), target) == pytest.approx(0, abs=1e-15)
    assert r2(-3 * target, target) < -10


def test_errors_of_several_columns_are_those_of_one_long_one(rng):
    prediction, target = rng.standard_normal((2, 10, 3))
    for metric in (mse, rmse, mae):
        flat = metric(prediction.ravel(), target.ravel())
        assert metric(prediction, target) == pytest.approx(flat, rel=1e-14)


def test_r2_of_several_columns_compares_each_with_its_own_mean(rng):
    target = rng.standard_normal((10, 3))
    target[:, 1] += 100
    prediction = target + rng.standard_normal((10, 3))
    expected = sklearn_metrics.r2_score(target, prediction, multioutput="variance_weighted")
    assert r2(prediction, target) == pytest.approx(expected, rel=1e-12)
    assert r2(np.broadcast_to(target.mean(axis=0), (10, 3)), target) == pytest.approx(0, abs=1e-14)
    target[:, 2] = 0.1  # constant, but not all columns are
    assert r2(target, target) == 1
    with pytest.raises(ValueError, match="constant"):
        r2(prediction, np.broadcast_to([0.1, 0.2, 0.3], (10, 3)))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8 + 0.1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 7, 1000])
def test_r2_of_a_constant_target_is_an_error(rng, n, dtype, value):
    with pytest.raises(ValueError, match="not defined for a target that is constant"):
        r2(rng.standard_normal(n), np.full(n, value, dtype))


@pytest.mark.parametrize("metric", METRICS)
def test_float32_is_judged_in_double_precision(rng, metric):
    target = 1000 + rng.standard_normal(10_000).astype(np.float32)
    prediction = target + rng.standard_normal(10_000).astype(np.float32)
    wide = metric(prediction.astype(np.float64), target.astype(np.float64))
    assert metric(prediction, target) == wide
    assert type(metric(prediction, target)) is float


@pytest.mark.parametrize("metric", METRICS)
def test_tensors_lists_and_integers_are_judged_too(metric):
    expected = metric(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 5.0]))
    assert metric(minigrad.tensor([1.0, 2.0, 3.0]), [1, 3, 5]) == expected
    assert metric(np.array([1, 2, 3], np.uint8), np.array([1, 3, 5], np.uint8)) == expected


@pytest.mark.parametrize("metric", METRICS)
def test_a_column_is_not_compared_with_a_row(metric):
    with pytest.raises(ValueError, match=r"prediction has shape \(3, 1\), the target \(3,\)"):
        metric(np.ones((3, 1)), np.arange(3.0))


@pytest.mark.parametrize("metric", METRICS)
def test_no_predictions_are_an_error(metric):
    with pytest.raises(ValueError, match="no predictions"):
        metric(np.ones(0), np.ones(0))


@pytest.mark.parametrize("metric", METRICS)
def test_a_prediction_that_is_nan_is_not_hidden(metric):
    assert math.isnan(metric([1.0, math.nan], [1.0, 2.0]))


def test_accuracy_is_the_share_of_right_classes():
    scores = np.array([[0.1, 0.9], [2.0, 1.0], [0.0, 3.0], [1.0, 0.5]])
    assert accuracy(scores, [1, 0, 0, 0]) == 0.75
    assert accuracy(scores[None], np.array([[1, 0, 1, 0]])) == 1.0


@pytest.mark.parametrize(
    ("scores", "target", "error"),
    [
        (np.ones((2, 3)), np.zeros(3, int), ValueError),
        (np.ones((2, 3)), np.zeros(2), TypeError),
        (np.ones((0, 3)), np.zeros(0, int), ValueError),
        (1.0, 1, ValueError),
    ],
)
def test_accuracy_of_what_does_not_match_is_refused(scores, target, error):
    with pytest.raises(error):
        accuracy(scores, target)


def test_accuracy_does_not_hide_what_is_no_score_and_refuses_what_is_no_class():
    assert math.isnan(accuracy(np.full((4, 3), np.nan), np.zeros(4, int)))
    with pytest.raises(ValueError, match="accuracy: targets run from -100 to 2"):
        accuracy(np.eye(3), np.array([0, -100, 2]))


def test_r2_of_single_numbers_is_refused():
    with pytest.raises(ValueError, match="r2 needs an axis of rows"):
        r2(1.0, 2.0)


def test_lists_are_computed_in_float64_too():
    assert mse([16777217.0], [16777216.0]) == 1
    assert mae([1e9], [1e9 + 1]) == 1


def test_r2_of_deviations_that_underflow_is_an_error():
    with pytest.raises(ValueError, match="r2 is not defined"):
        r2(np.array([1e-170, 2e-170]), np.array([1e-170, 3e-170]))
