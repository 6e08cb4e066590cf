"""How the instruments call a user's loss."""

import numpy as np
import pytest

import minigrad
from minigrad import nn
from minigrad.diagnostics.loss_call import loss_of

X, Y = np.ones((3, 2), np.float32), np.zeros((3, 1), np.float32)


@pytest.fixture
def model(rng):
    return nn.Linear(2, 1, rng=rng)


@pytest.mark.parametrize(
    ("loss", "batch"),
    [
        (lambda model, batch: minigrad.mse(model(batch[0]), batch[1]), (X, Y)),
        (lambda p, y: ((p - y) ** 2).mean(), (X, Y)),
        (minigrad.mse, (X, Y)),
        (nn.MSELoss(), [X, Y]),
        (lambda p: (p**2).mean(), X),
        (lambda model, x: (model(x) ** 2).mean(), X),
        (lambda p, y=0.0: ((p - y) ** 2).mean(), (X, Y)),
        (lambda p, y=0.0: ((p - y) ** 2).mean(), X),
        (lambda model, batch=None: minigrad.mse(model(batch[0]), batch[1]), (X, Y)),
    ],
)
def test_a_loss_of_the_model_or_of_predictions(loss, batch, model):
    assert loss_of(model, loss, batch).item() == pytest.approx(
        (model(X).data ** 2).mean(), rel=1e-6
    )


def test_a_loss_of_predictions_may_refuse_a_model_in_its_own_way(model):
    def loss(prediction, target):
        assert prediction.shape == target.shape
        return ((prediction - target) ** 2).mean()

    assert loss_of(model, loss, (X, Y)).size == 1


def test_a_fault_in_the_model_is_reported_as_it_is(rng):
    class Broken(nn.Module):
        def forward(self, x):
            return x.no_such_thing

    for loss in (minigrad.mse, lambda p, y: minigrad.mse(p, y), lambda p: p):
        with pytest.raises(AttributeError, match="no_such_thing"):
            loss_of(Broken(), loss, (X, Y))


def test_a_loss_that_is_a_module_is_called_with_what_its_forward_takes(model):
    class Squares(nn.Module):
        def forward(self, prediction):
            return (prediction**2).mean()

    assert loss_of(model, Squares(), X).size == 1


def test_a_loss_that_fails_in_both_ways_tells_both(model):
    with pytest.raises(TypeError, match="unsupported operand") as info:
        loss_of(model, lambda p, y: (p - y).no_such_thing(), (X, Y))
    assert "loss_fn(model(x), y) raised AttributeError" in info.value.__notes__[0]
    assert "no_such_thing" in info.value.__notes__[0]


def test_a_fault_in_the_loss_is_reported_as_it_is(model):
    def loss(model, batch):
        return model(batch[0]).mean() + {}["missing"]

    with pytest.raises(KeyError, match="missing"):
        loss_of(model, loss, (X, Y))


@pytest.mark.parametrize("batch", [X, (X, Y, Y), {"x": X, "y": Y}])
@pytest.mark.parametrize("loss", [minigrad.mse, nn.MSELoss()])
def test_a_loss_of_the_library_takes_pairs(loss, batch, model):
    kind = type(batch).__name__
    with pytest.raises(TypeError, match=rf"a loss of pred.*pair \(x, y\), not .*{kind}"):
        loss_of(model, loss, batch)


def test_a_function_of_the_library_of_predictions_alone(model):
    assert loss_of(model, minigrad.mean, X).item() == pytest.approx(model(X).data.mean())


def test_a_loss_without_arguments_is_refused(model):
    with pytest.raises(TypeError, match=r"loss_fn takes no arguments.*loss_fn\(model, batch\)"):
        loss_of(model, lambda: model(X).sum(), (X, Y))


def test_a_model_that_cannot_take_the_whole_batch(model):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # it is numpy's
        loss_of(model, lambda p: p.sum(), (X, Y))
    (note,) = caught.value.__notes__
    assert note.startswith("loss_fn takes one argument, so the model was called with the whole")


@pytest.mark.parametrize("result", [3.0, None, minigrad.ones(2), minigrad.tensor(3)])
def test_what_is_no_loss_is_refused(result, model):
    with pytest.raises(TypeError, match="must return a Tensor of floats with one element"):
        loss_of(model, lambda model, batch: result, (X, Y))


def test_a_loss_is_a_function(model):
    with pytest.raises(TypeError, match="loss_fn must be a function, not 3"):
        loss_of(model, 3, (X, Y))
