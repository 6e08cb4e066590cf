"""The trainer: what it records, when it stops, and that a resumed run is the run itself."""

import copy
import csv
import errno
import functools
import json
import math
import os

import numpy as np
import pytest
from matplotlib.figure import Figure

import minigrad
from minigrad import random
from minigrad.io import load_state, save_state, tensor_file
from minigrad.metrics import mae, r2, rmse
from minigrad.nn import MLP, Dropout, Linear, Module, Sequential
from minigrad.optim import (
    EMA,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    CosineAnnealingLR,
    LambdaLR,
    RMSprop,
    StepLR,
    WarmupCosineLR,
)
from minigrad.training import checkpoint_file
from minigrad.training.history import History
from minigrad.training.trainer import Trainer


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def data(rng):
    x = rng.uniform(-1, 1, (40, 2)).astype(np.float32)
    return x, np.sin(3 * x[:, :1]) + abs(x[:, 1:])


def make(seed=0, *, optimizer=Adam, lr=0.01, loss=minigrad.mse, **options):
    """A trainer of a small MLP, all of whose randomness comes from `seed`."""
    model = MLP([2, 8, 1], rng=np.random.default_rng(seed))
    options = {"progress": False, "rng": np.random.default_rng(seed), **options}
    return Trainer(model, optimizer(model.parameters(), lr=lr), loss, **options)


class Slope(Module):
    """y = w x, which begins at w = 0."""

    def __init__(self):
        self.w = minigrad.nn.Parameter(np.zeros(()))

    def forward(self, x):
        return x * self.w


def slope(lr=0.1, **options):
    """A trainer that moves w from 0 to 1 evenly and on a known path, with data x = 1, y = 1."""
    model = Slope()
    options = {"progress": False, **options}
    return Trainer(model, SGD(model.parameters(), lr=lr), minigrad.mse, **options)


ONES = np.ones((4, 1))


# ----------------------------------------------------------------------------------------------
# The loop
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "lr"),
    [
        (functools.partial(SGD, momentum=0.9), 0.05),
        *((Adam, 0.02), (AdamW, 0.02), (RMSprop, 0.005), (Adagrad, 0.3)),
    ],
)
def test_training_makes_the_loss_small(data, optimizer, lr):
    trainer = make(optimizer=optimizer, lr=lr, batch_size=8)
    before = trainer.evaluate(data)["loss"]
    history = trainer.fit(data, epochs=60)
    assert trainer.evaluate(data)["loss"] < 0.25 * before
    assert history["loss"][-1] < 0.25 * history["loss"][0]


def test_a_step_is_that_of_the_optimiser(data):
    x, y = data
    trainer = make(optimizer=SGD, batch_size=len(x))
    model = copy.deepcopy(trainer.model)
    optimizer = SGD(model.parameters(), lr=0.01)
    order = np.random.default_rng(0).permutation(len(x))
    minigrad.mse(model(minigrad.tensor(x[order])), y[order]).backward()
    optimizer.step()
    trainer.fit(data, epochs=1)
    for p, q in zip(trainer.model.parameters(), model.parameters(), strict=True):
        assert np.array_equal(p.data, q.data)


def test_gradients_do_not_add_up_over_steps():
    trainer = slope(lr=0.25, batch_size=1)
    trainer.fit((ONES, ONES), epochs=1)
    assert trainer.model.w.item() == 1 - 0.5**4  # each step halves the error


def test_every_epoch_sees_every_row_once_in_another_order(data):
    x, _ = data
    seen = []

    class Spy(Linear):
        def forward(self, x):
            seen.append(x.numpy()[:, 0])
            return super().forward(x)

    model = Spy(2, 1)
    trainer = Trainer(model, SGD(model.parameters()), minigrad.mse, batch_size=12, progress=False)
    trainer.fit(data, epochs=2)
    assert [len(rows) for rows in seen] == [12, 12, 12, 4] * 2
    first, second = np.concatenate(seen[:4]), np.concatenate(seen[4:])
    assert np.array_equal(np.sort(first), np.sort(x[:, 0]))
    assert np.array_equal(np.sort(second), np.sort(x[:, 0]))
    assert not np.array_equal(first, second)


def test_equal_seeds_give_equal_runs(data):
    one, two, other = (make(seed) for seed in (1, 1, 2))
    runs = [trainer.fit(data, epochs=2)["loss"] for trainer in (one, two, other)]
    assert runs[0] == runs[1] != runs[2]


def in_double(optimizer=SGD, **options):
    """A trainer in float64 that makes no difference between batches but by their rows."""
    model = MLP([2, 8, 1], rng=np.random.default_rng(0)).astype(np.float64)
    options = {"progress": False, "rng": np.random.default_rng(0), **options}
    return Trainer(model, optimizer(model.parameters(), lr=0.05), minigrad.mse, **options)


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
@pytest.mark.parametrize(
    ("rows", "batch_size", "accumulation_steps"),
    [
        (40, 10, 2),  # all are complete
        (39, 4, 4),  # the last step has 7 rows: 4 and 3
        (33, 4, 4),  # the last step has one row
        (40, 7, 1),
        (5, 3, 9),  # one step of 3 and 2 rows
    ],
)
def test_accumulated_steps_are_those_of_the_big_batch(
    rng, optimizer, rows, batch_size, accumulation_steps
):
    x = rng.uniform(-1, 1, (rows, 2))
    y = np.sin(3 * x[:, :1]) + rng.standard_normal((rows, 1))  # rows that differ much
    sizes = []

    class Spy(MLP):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    small = in_double(
        optimizer, batch_size=batch_size, accumulation_steps=accumulation_steps, clip_norm=0.3
    )
    small.model.__class__ = Spy
    big = in_double(optimizer, batch_size=batch_size * accumulation_steps, clip_norm=0.3)
    small.fit((x, y), epochs=3)
    big.fit((x, y), epochs=3)
    assert max(sizes) <= batch_size
    assert len(small.history.steps) == len(big.history.steps)
    for name, value in big.model.state_dict().items():
        np.testing.assert_allclose(small.model.state_dict()[name], value, rtol=0, atol=1e-12)
    for kind in ("steps", "epochs"):
        for ours, theirs in zip(*(getattr(t.history, kind) for t in (small, big)), strict=True):
            assert ours.keys() == theirs.keys()
            for key in ours.keys() - {"seconds"}:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-12), key


def test_a_loss_of_one_element_in_any_shape_can_be_accumulated():
    def loss(prediction, target):
        return minigrad.mse(prediction, target).reshape(1, 1)

    model = Slope()
    trainer = Trainer(
        model,
        SGD(model.parameters(), lr=0.25),
        loss,
        batch_size=1,
        accumulation_steps=4,
        progress=False,
    )
    trainer.fit((ONES, ONES), epochs=1)
    assert model.w.item() == 0.5
    assert [r["loss"] for r in trainer.history.steps] == [1.0]


WEIGHTS = np.array([0.2, 1.0, 7.5])


def ignoring(prediction, target):
    count = (target != -1).sum()
    total = minigrad.cross_entropy(prediction, target, "sum", ignore_index=-1)
    return total / max(count, 1), count


def weighted(prediction, target):
    mean = minigrad.cross_entropy(prediction, target, weight=WEIGHTS)
    return mean, minigrad.tensor(WEIGHTS[target].sum())


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("loss", [ignoring, weighted])
def test_micro_batches_weigh_as_much_as_their_loss_counts(rng, loss, batch_size):
    x = rng.standard_normal((20, 2))
    y = rng.integers(-1 if loss is ignoring else 0, 3, 20)

    def trained(batch_size, steps):
        model = MLP([2, 4, 3], rng=np.random.default_rng(0)).astype(np.float64)
        optimizer = SGD(model.parameters(), lr=0.1)
        options = {"batch_size": batch_size, "accumulation_steps": steps, "progress": False}
        trainer = Trainer(model, optimizer, loss, rng=np.random.default_rng(0), **options)
        trainer.fit((x, y), epochs=2, validation=(x, y))
        return trainer

    small, big = trained(batch_size, 8 // batch_size), trained(8 // batch_size * batch_size, 1)
    for ours, theirs in zip(*(t.model.state_dict().values() for t in (small, big)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    for kind in ("steps", "epochs"):
        for ours, theirs in zip(*(getattr(t.history, kind) for t in (small, big)), strict=True):
            for key in ours.keys() - {"seconds"}:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-12), key


def test_the_loss_of_an_epoch_is_that_of_all_that_was_counted():
    y = np.array([0, -1, -1, -1, 1, 1])
    model = MLP([2, 3], rng=np.random.default_rng(0)).astype(np.float64)
    x = np.random.default_rng(1).standard_normal((6, 2))
    expected = ignoring(model(minigrad.tensor(x)), y)[0].item()
    trainer = Trainer(
        model, SGD(model.parameters(), lr=0.0), ignoring, batch_size=3, progress=False
    )
    assert trainer.fit((x, y), epochs=1)["loss"] == pytest.approx([expected], rel=1e-12)
    assert trainer.evaluate((x, y))["loss"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("count", "error", "message"),
    [
        (0, ValueError, "counted nothing at step 1"),
        (-1, ValueError, "count .* not -1"),
        (math.nan, ValueError, "count .* not nan"),
        ("4", TypeError, "count .* not '4'"),
    ],
)
def test_a_count_that_is_impossible_is_refused_before_the_step(data, count, error, message):
    trainer = make(loss=lambda prediction, target: (minigrad.mse(prediction, target), count))
    before = trainer.model.state_dict()
    with pytest.raises(error, match=message):
        trainer.fit(data, epochs=1)
    np.testing.assert_equal(trainer.model.state_dict(), before)


def test_a_step_after_one_that_failed_starts_from_no_gradient():
    trainer = slope(lr=0.25, batch_size=1, accumulation_steps=4)
    y = np.array([[1.0], [1.0], [1.0], [np.nan]])
    with pytest.raises(FloatingPointError, match="at step 1"):
        trainer.fit((ONES, y), epochs=1)
    trainer.fit((ONES, ONES), epochs=1)
    assert trainer.model.w.item() == 0.5


def test_without_a_generator_the_order_follows_manual_seed(data):
    runs = []
    for seed in (1, 1, 2):
        trainer = make(rng=None)
        minigrad.manual_seed(seed)
        runs.append(trainer.fit(data, epochs=2)["loss"])
    assert runs[0] == runs[1] != runs[2]


def test_the_model_trains_in_training_mode_and_is_judged_in_evaluation(data):
    modes = []

    class Spy(Linear):
        def forward(self, x):
            modes.append((self.training, minigrad.is_grad_enabled()))
            return super().forward(x)

    model = Sequential(Spy(2, 1)).eval()
    trainer = Trainer(model, SGD(model.parameters()), minigrad.mse, batch_size=20, progress=False)
    trainer.fit(data, epochs=2, validation=data)
    epoch = [(True, True)] * 2 + [(False, False)] * 2
    assert modes == epoch * 2


def test_clipping_bounds_the_step_and_records_the_norm_from_before(data):
    trainer = make(optimizer=SGD, lr=1.0, clip_norm=1e-3, batch_size=40)
    before = trainer.model.state_dict()
    trainer.fit(data, epochs=1)
    change = [trainer.model.state_dict()[name] - before[name] for name in before]
    moved = math.sqrt(sum(float((c.astype(np.float64) ** 2).sum()) for c in change))
    assert moved == pytest.approx(1e-3, rel=1e-3)  # weights of size 1 in float32 hold no more
    unclipped = make(optimizer=SGD, lr=1.0, batch_size=40).fit(data, epochs=1)
    assert trainer.history["grad_norm"] == unclipped["grad_norm"]
    assert unclipped["grad_norm"][0] > 0.1


def test_features_of_another_float_or_of_integers_are_taken(data):
    x, y = data
    double = make().fit((x.astype(np.float64), y.astype(np.float64)), epochs=1)
    lists = make().fit((x.tolist(), y.tolist()), epochs=1)
    tensors = make().fit((minigrad.tensor(x), minigrad.tensor(y)), epochs=1)
    single = make().fit(data, epochs=1)
    assert double["loss"] == lists["loss"] == tensors["loss"] == single["loss"]
    whole = make().fit((np.ones((4, 2), int), np.ones((4, 1), int)), epochs=1)
    assert whole["loss"] == make().fit((np.ones((4, 2)), np.ones((4, 1))), epochs=1)["loss"]


def test_classes_can_be_trained_for(rng):
    x = rng.standard_normal((60, 2)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
    model = MLP([2, 16, 3], rng=rng)
    trainer = Trainer(
        model, Adam(model.parameters(), lr=0.03), minigrad.cross_entropy, progress=False, rng=rng
    )
    trainer.fit((x, y), epochs=60)
    assert (trainer.predict(x).argmax(axis=1) == y).mean() > 0.9


# ----------------------------------------------------------------------------------------------
# Records
# ----------------------------------------------------------------------------------------------


def test_steps_and_epochs_are_recorded(data):
    trainer = make(batch_size=16, metrics=[rmse, r2])
    history = trainer.fit(data, epochs=3, validation=data)
    assert history is trainer.history
    assert [r["step"] for r in history.steps] == list(range(1, 10))
    assert [r["epoch"] for r in history.steps] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert set(history.steps[0]) == {"step", "epoch", "loss", "lr", "grad_norm", "seconds"}
    columns = {"epoch", "loss", "lr", "grad_norm", "seconds"}
    judged = {"rmse", "r2", "validation_loss", "validation_rmse", "validation_r2"}
    assert all(set(record) == columns | judged for record in history.epochs)
    assert history["epoch"] == [1, 2, 3]
    assert len(history) == 3


def test_the_records_are_what_happened(data):
    trainer = make(batch_size=16, metrics=[rmse])
    history = trainer.fit(data, epochs=2, validation=data)
    for epoch, record in enumerate(history.epochs, start=1):
        steps = [r for r in history.steps if r["epoch"] == epoch]
        mean = sum(r["loss"] * n for r, n in zip(steps, [16, 16, 8], strict=True)) / 40
        assert record["loss"] == pytest.approx(mean, rel=1e-12)
        norms = [r["grad_norm"] for r in steps]
        assert record["grad_norm"] == pytest.approx(np.mean(norms), rel=1e-12)
        assert record["lr"] == 0.01
        assert record["seconds"] >= sum(r["seconds"] for r in steps) > 0
    last = trainer.evaluate(data)
    assert history["validation_loss"][-1] == last["loss"]
    assert history["validation_rmse"][-1] == last["rmse"]


def test_a_step_records_the_loss_and_the_gradient_it_started_from():
    history = slope(lr=0.1).fit((ONES, 2 * ONES), epochs=2)
    first, second = history.steps
    assert (first["loss"], first["grad_norm"]) == (4.0, 4.0)
    w = 0.1 * 4
    assert second["loss"] == pytest.approx((2 - w) ** 2, rel=1e-12)
    assert second["grad_norm"] == pytest.approx(2 * (2 - w), rel=1e-12)


def test_a_second_fit_goes_on_with_the_same_records(data):
    trainer = make(batch_size=20)
    trainer.fit(data, epochs=2)
    history = trainer.fit(data, epochs=1)
    assert history["epoch"] == [1, 2, 3]
    assert [r["step"] for r in history.steps] == [1, 2, 3, 4, 5, 6]
    uninterrupted = make(batch_size=20).fit(data, epochs=3)
    assert history["loss"] == uninterrupted["loss"]


def test_a_missing_column_is_an_error_with_the_names_there_are(data):
    history = make().fit(data, epochs=1)
    with pytest.raises(KeyError, match=r"no 'validation_loss', only epoch, loss"):
        history["validation_loss"]
    with pytest.raises(KeyError, match="nothing yet"):
        History()["loss"]


def test_a_history_is_asked_for_columns_and_goes_by_epochs(data):
    history = make().fit(data, epochs=2)
    assert "loss" in history
    assert "validation_loss" not in history
    assert [*history] == history.epochs
    assert dict(history)["loss"] == history["loss"] == [record["loss"] for record in history]


def test_a_state_that_is_loaded_after_a_step_is_where_it_goes_on(data, tmp_path):
    calls, file = [], tmp_path / "state"

    def go_back_once(trainer):
        calls.append(len(trainer.history.steps))
        if len(calls) == 3:
            trainer.save(file)
        if len(calls) == 6:
            trainer.load(file)

    trainer = make(batch_size=10, on_step=go_back_once)
    trainer.fit(data, epochs=4)
    plain = make(batch_size=10)
    plain.fit(data, epochs=4)
    assert calls == [1, 2, 3, 4, 5, 6, *range(4, 17)]
    assert [(r["step"], r["epoch"]) for r in trainer.history.steps] == [
        (r["step"], r["epoch"]) for r in plain.history.steps
    ]
    assert trainer.history["epoch"] == [1, 2, 3, 4]
    for found, expected in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        np.testing.assert_array_equal(found.data, expected.data)


def test_parts_in_another_order_are_refused():
    model = Slope()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"optimizer must be .*Trainer\(model, optimizer, loss\)"):
        Trainer(model, minigrad.mse, optimizer)
    with pytest.raises(TypeError, match="model must be of class Module, not "):
        Trainer(optimizer, model, minigrad.mse)
    with pytest.raises(TypeError, match=r"not the class MSELoss; pass an object .* MSELoss\(\)"):
        Trainer(model, optimizer, minigrad.nn.MSELoss)


def test_a_metric_of_several_numbers_is_named(data):
    trainer = make(metrics={"error": lambda prediction, target: prediction - target})
    with pytest.raises(TypeError, match=r"the metric error returned an array of shape \(40, 1\)"):
        trainer.fit(data, epochs=1)


@pytest.mark.parametrize("value", [None, "0.5", 1j, np.complex64(1j), np.array("a")])
def test_a_metric_that_is_no_number_is_named(data, value):
    trainer = make(metrics={"error": lambda prediction, target: value})
    message = "the metric error returned .*, and not a number"
    with pytest.raises(TypeError, match=message):
        trainer.evaluate(data)
    with pytest.raises(TypeError, match=message):
        trainer.fit(data, epochs=1)


@pytest.mark.parametrize(
    "options",
    [
        {"clip_norm": "1"},
        {"clip_norm": True},
        {"metrics": "mse"},
        {"metrics": None},
        {"metrics": [1]},
        {"metrics": {"a": 1}},
        {"on_epoch": [3]},
        {"on_step": 3},
        {"loss": None},
        {"save_frozen": "no"},
        {"progress": "no"},
        {"capture": 1},
    ],
)
def test_options_of_a_wrong_type_are_refused_by_name(options):
    ((name, value),) = options.items()
    message = f"^Trainer: {name} must be .*, not {value!r}".replace("[", r"\[")
    with pytest.raises(TypeError, match=message):
        make(**options)


def test_the_error_about_a_prediction_that_is_no_tensor_names_micro_batches(data):
    class Pair(Slope):
        def forward(self, x):
            return x * self.w, x

    model = Pair()
    optimizer = SGD(model.parameters(), lr=0.1)
    one = Trainer(model, optimizer, lambda p, y: minigrad.mse(p[0], p[1]), progress=False)
    with pytest.raises(TypeError, match=r"this one returned a tuple; give micro-batches"):
        one.fit(data, epochs=1, validation=data)
    with pytest.raises(TypeError, match="this one returned a tuple"):
        one.predict(data[0])
    assert one.evaluate([(data[0], data[1])])["loss"] >= 0


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_early_stopping_by_a_loss_that_is_never_finite_says_so(data, loss):
    one = make(patience=2)
    one.evaluate = lambda data: {"loss": loss}
    with pytest.raises(ValueError, match="was never finite"):
        one.fit(data, epochs=5, validation=data)
    assert len(one.history) == 2


def test_repr_of_a_history_has_its_last_epoch(data):
    assert repr(History()) == "History(no epochs yet)"
    assert repr(History([{}], [{"loss": 1.5}])) == "History(1 epoch, 1 step; last: loss=1.5)"
    history = make(batch_size=20).fit(data, epochs=2)
    assert repr(history).startswith("History(2 epochs, 4 steps; last: epoch=2, loss=")


@pytest.mark.parametrize("by", ["epoch", "step"])
def test_records_go_to_csv_to_the_bit(data, tmp_path, by):
    trainer = make(batch_size=20)
    trainer.fit(data, epochs=1)
    history = trainer.fit(data, epochs=1, validation=data)
    history.to_csv(tmp_path / "run.csv", by)
    with open(tmp_path / "run.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    records = history.epochs if by == "epoch" else history.steps
    assert len(rows) == len(records) == (2 if by == "epoch" else 4)
    for row, record in zip(rows, records, strict=True):
        assert {name: float(text) for name, text in row.items() if text} == record
    if by == "epoch":
        assert rows[0]["validation_loss"] == ""


def test_csv_by_anything_else_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="'epoch' or 'step', not 'batch'"):
        History().to_csv(tmp_path / "run.csv", "batch")


def test_plot_is_a_figure_and_a_picture(data, tmp_path):
    history = make().fit(data, epochs=3, validation=data)
    figure = history.plot(tmp_path / "run.png")
    assert isinstance(figure, Figure)
    losses, norms = figure.axes
    lines = {line.get_label(): list(line.get_ydata()) for line in losses.lines}
    assert lines["training loss"] == history["loss"]
    assert lines["validation loss"] == history["validation_loss"]
    assert list(norms.lines[0].get_ydata()) == history["grad_norm"]
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_plot_without_validation(data):
    history = make().fit(data, epochs=3)
    lines = {line.get_label(): line for line in history.plot().axes[0].lines}
    assert list(lines["training loss"].get_ydata()) == history["loss"]
    assert "validation loss" not in lines


def test_plot_with_validation_in_some_epochs(data):
    trainer = make()
    trainer.fit(data, epochs=2)
    trainer.fit(data, epochs=2, validation=data)
    trainer.fit(data, epochs=1)
    lines = {line.get_label(): line for line in trainer.history.plot().axes[0].lines}
    assert list(lines["training loss"].get_xdata()) == [1, 2, 3, 4, 5]
    assert list(lines["validation loss"].get_xdata()) == [3, 4]
    assert list(lines["validation loss"].get_ydata()) == trainer.history["validation_loss"]


def test_there_is_nothing_to_plot_before_the_first_epoch():
    with pytest.raises(ValueError, match="no epochs to plot"):
        History().plot()


# ----------------------------------------------------------------------------------------------
# Prediction and evaluation
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 8, 40])
def test_predictions_are_those_of_the_model_in_the_order_of_the_rows(data, n):
    x = data[0][:n]
    trainer = make(batch_size=8)
    expected = trainer.model(minigrad.tensor(x)).detach().numpy()
    prediction = trainer.predict(x)
    assert type(prediction) is np.ndarray
    np.testing.assert_allclose(prediction, expected, rtol=1e-6, atol=1e-7)


def test_evaluation_is_the_loss_and_the_metrics_of_the_predictions(data):
    trainer = make(batch_size=7, metrics=[rmse, mae, r2])
    result = trainer.evaluate(data)
    prediction, y = trainer.predict(data[0]), data[1]
    assert list(result) == ["loss", "rmse", "mae", "r2"]
    assert result["loss"] == pytest.approx(np.mean((prediction - y) ** 2), rel=1e-6)
    assert result["rmse"] == rmse(prediction, y)
    assert result["mae"] == mae(prediction, y)
    assert result["r2"] == r2(prediction, y)


def test_metrics_without_a_name(data):
    class Half:
        def __call__(self, prediction, target):
            return 0.5

    history = make(metrics=[Half(), functools.partial(rmse)]).fit(data, 1, validation=data)
    assert 0.5 in history.epochs[0].values()
    assert sum(name.startswith("validation_") for name in history.epochs[0]) == 3


def test_metrics_can_be_given_names(data):
    history = make(metrics={"a": rmse, "b": r2}).fit(data, 1, validation=data)
    assert history["validation_a"][0] > history["validation_b"][0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lists_train_a_model_like_arrays(data, dtype):
    arrays = [array.astype(dtype) / 3 for array in data]
    results = []
    for x, y in (arrays, [array.tolist() for array in arrays]):
        trainer = make()
        trainer.model.astype(dtype)
        trainer.fit((x, y), epochs=1)
        results.append(trainer.predict(x))
    np.testing.assert_array_equal(*results)


def test_one_metric_needs_no_list(data):
    assert list(make(metrics=rmse).evaluate(data)) == ["loss", "rmse"]


def test_two_metrics_of_one_name_are_an_error():
    with pytest.raises(ValueError, match="<lambda>"):
        make(metrics=[lambda p, y: 1.0, lambda p, y: 2.0])


@pytest.mark.parametrize(
    "name", ["loss", "lr", "epoch", "seconds", "grad_norm", "step", "validation_loss", 1]
)
def test_metrics_do_not_take_names_that_the_records_use(name):
    with pytest.raises(ValueError, match=f"a metric cannot be called {name!r}"):
        make(metrics={name: rmse})


def test_a_function_that_is_called_like_the_loss_is_no_metric():
    def loss(prediction, target):
        return 0.0

    with pytest.raises(ValueError, match=r"cannot be called 'loss'.*a dict"):
        make(metrics=loss)


def with_dropout(seed=0, hidden=8, **options):
    """A trainer whose model drops from generators of its own, and from the default one."""
    model = Sequential(
        Linear(2, hidden, rng=np.random.default_rng(seed)),
        minigrad.tanh,
        Dropout(0.2, rng=np.random.default_rng(seed)),
        Linear(hidden, 8, rng=np.random.default_rng(seed)),
        Dropout(0.2),
        Linear(8, 1, rng=np.random.default_rng(seed)),
    )
    optimizer = options.pop("optimizer", Adam)(model.parameters(), lr=0.02)
    for name, part in (("scheduler", optimizer), ("ema", model)):
        if name in options:
            options[name] = options[name](part)
    options = {"rng": np.random.default_rng(seed), "progress": False, "batch_size": 16, **options}
    return Trainer(model, optimizer, minigrad.mse, **options)


def generators(trainer):
    rngs = [v for m in trainer.model.modules() for v in vars(m).values()]
    rngs = [v for v in rngs if isinstance(v, np.random.Generator)]
    rngs = [random.generator(), trainer.rng, *rngs]
    return [g.bit_generator.state for g in rngs if g is not None]


def test_prediction_is_in_evaluation_mode_and_draws_nothing(data):
    trainer = with_dropout()
    before = generators(trainer)
    first = trainer.predict(data[0])
    assert np.array_equal(trainer.predict(data[0]), first)
    trainer.evaluate(data)
    np.testing.assert_equal(generators(trainer), before)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_as_it_was_after_prediction_and_evaluation(data, training):
    trainer = with_dropout()
    trainer.model.train(training)
    trainer.predict(data[0])
    trainer.evaluate(data)
    assert {m.training for m in trainer.model.modules()} == {training}


def test_predict_restores_the_mode_of_every_module(data):
    trainer = with_dropout()
    trainer.model[2].eval()
    before = [m.training for m in trainer.model.modules()]
    assert len(set(before)) == 2
    trainer.predict(data[0])
    assert [m.training for m in trainer.model.modules()] == before


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_as_it_was_after_an_error(data, training):
    trainer = with_dropout()
    trainer.model.train(training)
    wrong = np.ones((4, 3))
    with pytest.raises(ValueError, match=r"\(8, 2\)"):
        trainer.predict(wrong)
    with pytest.raises(ValueError, match=r"\(8, 2\)"):
        trainer.evaluate((wrong, data[1][:4]))
    assert {m.training for m in trainer.model.modules()} == {training}
    assert minigrad.is_grad_enabled()


# ----------------------------------------------------------------------------------------------
# Stopping
# ----------------------------------------------------------------------------------------------


def test_early_stopping_goes_back_to_the_best_weights():
    weights = []
    # w goes from 0 to 1; the validation target 0.5 is passed in the fourth epoch.
    trainer = slope(lr=0.1, patience=3, on_epoch=[lambda t: weights.append(t.model.w.item())])
    history = trainer.fit((ONES, ONES), epochs=50, validation=(ONES, 0.5 * ONES))
    best = int(np.argmin(history["validation_loss"]))
    assert len(history) == best + 1 + 3
    assert best > 0
    assert trainer.model.w.item() == weights[best] != weights[-1]
    assert trainer.evaluate((ONES, 0.5 * ONES))["loss"] == history["validation_loss"][best]


def test_the_best_weights_come_back_on_demand_where_no_patience_ran_out():
    weights = []
    trainer = slope(lr=0.1, patience=100, on_epoch=[lambda t: weights.append(t.model.w.item())])
    history = trainer.fit((ONES, ONES), epochs=6, validation=(ONES, 0.5 * ONES))
    assert len(history) == 6
    assert trainer.model.w.item() == weights[-1]
    trainer.restore_best()
    assert trainer.model.w.item() == weights[int(np.argmin(history["validation_loss"]))]
    assert trainer.model.w.item() != weights[-1]


@pytest.mark.parametrize("rows", [2, 3])
def test_best_weights_of_a_model_that_has_changed_since_are_forgotten(tmp_path, rows):
    def replace(trainer):
        if len(trainer.history) == 2:
            trainer.model.added = Linear(rows, 1)

    trainer = slope(lr=0.5, patience=2, on_epoch=[replace], checkpoint=tmp_path / "run")
    trainer.model.added = Linear(2, 1) if rows == 3 else None
    # From the first epoch on, w is farther from the validation target, so `patience` runs out.
    history = trainer.fit((ONES, ONES), epochs=9, validation=(ONES, -ONES))
    assert len(history) == 2 + 3  # the third epoch is the first one with the new model
    assert trainer.model.w.item() == pytest.approx(1.0, abs=0.2)
    trainer.load(tmp_path / "run")


def test_best_weights_that_were_not_kept_cannot_be_restored():
    with pytest.raises(ValueError, match="patience"):
        slope(lr=0.1).restore_best()


def test_without_patience_the_last_weights_stay():
    weights = []
    trainer = slope(lr=0.1, on_epoch=[lambda t: weights.append(t.model.w.item())])
    trainer.fit((ONES, ONES), epochs=6, validation=(ONES, 0.5 * ONES))
    assert trainer.model.w.item() == weights[-1]


def test_without_validation_the_training_loss_is_watched():
    history = slope(lr=0.0, patience=2).fit((ONES, ONES), epochs=50)
    assert len(history) == 3
    assert len(slope(lr=0.1, patience=2).fit((ONES, ONES), epochs=20)) == 20


def test_an_improvement_starts_the_count_anew():
    losses = iter([5, 6, 4, 5, 5, 3, 4, 4, 4, 1])
    trainer = slope(patience=3)
    trainer.evaluate = lambda data: {"loss": float(next(losses))}
    history = trainer.fit((ONES, ONES), epochs=50, validation=(ONES, ONES))
    assert history["validation_loss"] == [5, 6, 4, 5, 5, 3, 4, 4, 4]


def test_on_epoch_is_called_after_every_epoch_with_its_record():
    calls = []
    trainer = slope(
        on_epoch=[
            lambda t: calls.append(("first", len(t.history), t.history["validation_loss"][-1])),
            lambda t: calls.append(("second", len(t.history))),
        ]
    )
    history = trainer.fit((ONES, ONES), epochs=2, validation=(ONES, ONES))
    judged = history["validation_loss"]
    assert calls == [("first", 1, judged[0]), ("second", 1), ("first", 2, judged[1]), ("second", 2)]


def test_on_epoch_may_change_the_learning_rate():
    def halve(trainer):
        trainer.optimizer.param_groups[0]["lr"] /= 2

    history = slope(lr=0.4, on_epoch=[halve]).fit((ONES, ONES), epochs=3)
    assert history["lr"] == [0.4, 0.2, 0.1]


# ----------------------------------------------------------------------------------------------
# Schedules and averages
# ----------------------------------------------------------------------------------------------


def with_scheduler(build, lr=0.1, **options):
    """A slope whose optimiser has a scheduler."""
    model = Slope()
    optimizer = SGD(model.parameters(), lr=lr)
    options = {"progress": False, "batch_size": 2, **options}
    return Trainer(model, optimizer, minigrad.mse, scheduler=build(optimizer), **options)


def test_the_scheduler_is_stepped_after_every_step_of_the_optimiser():
    trainer = with_scheduler(lambda o: LambdaLR(o, lambda step: 2.0**-step))
    history = trainer.fit((ONES, ONES), epochs=2)
    assert [r["lr"] for r in history.steps] == [0.1, 0.05, 0.025, 0.0125]
    assert history["lr"] == [0.05, 0.0125]  # of the last step, not of the next
    assert trainer.scheduler.last_epoch == 4
    w = 0.0
    for record in history.steps:
        assert record["loss"] == pytest.approx((1 - w) ** 2, rel=1e-12)
        w += record["lr"] * 2 * (1 - w)
    assert trainer.model.w.item() == pytest.approx(w, rel=1e-12)


def test_an_accumulated_step_is_one_step_of_scheduler_and_averages():
    model = Slope()
    optimizer = SGD(model.parameters(), lr=0.1)
    trainer = Trainer(
        model,
        optimizer,
        minigrad.mse,
        batch_size=1,
        accumulation_steps=2,
        scheduler=StepLR(optimizer, 1, 0.5),
        ema=EMA(model),
        progress=False,
    )
    history = trainer.fit((ONES, ONES), epochs=2)
    assert [r["lr"] for r in history.steps] == [0.1, 0.05, 0.025, 0.0125]
    assert trainer.scheduler.last_epoch == trainer.ema.updates == 4


def averaged_slope(decay=0.5, lr=0.1, **options):
    model = Slope()
    options = {"progress": False, **options}
    optimizer = SGD(model.parameters(), lr=lr)
    return Trainer(model, optimizer, minigrad.mse, ema=EMA(model, decay), **options)


def test_the_averages_are_judged_and_the_weights_trained():
    seen = []
    trainer = averaged_slope(metrics=[rmse], on_epoch=lambda t: seen.append(t.model.w.item()))
    target = (ONES, 3 * ONES)
    history = trainer.fit((ONES, ONES), epochs=4, validation=target)
    plain = slope(lr=0.1).fit((ONES, ONES), epochs=4)
    assert history["loss"] == plain["loss"]  # training does not know of the averages
    w = average = 0.0
    for epoch in range(4):
        w += 0.1 * 2 * (1 - w)
        average += 0.5 * (w - average)
        assert seen[epoch] == pytest.approx(w, rel=1e-12)
        assert history["validation_loss"][epoch] == pytest.approx((3 - average) ** 2, rel=1e-12)
        assert history["validation_rmse"][epoch] == pytest.approx(3 - average, rel=1e-12)
        assert history["rmse"][epoch] == pytest.approx(1 - average, rel=1e-12)
    assert trainer.model.w.item() == pytest.approx(w, rel=1e-12)
    assert trainer.ema.state_dict()["averages"]["w"] == pytest.approx(average, rel=1e-12)


def test_the_best_weights_are_averages():
    best = []
    trainer = averaged_slope(
        patience=3, on_epoch=lambda t: best.append(t.ema.state_dict()["averages"]["w"].item())
    )
    history = trainer.fit((ONES, ONES), epochs=50, validation=(ONES, 0.5 * ONES))
    place = int(np.argmin(history["validation_loss"]))
    assert 0 < place == len(history) - 4
    assert trainer.model.w.item() == best[place]
    assert trainer.evaluate((ONES, 0.5 * ONES))["loss"] == history["validation_loss"][place]


def test_stop_ends_the_fit_and_the_next_one_starts_again():
    trainer = slope(on_epoch=[lambda t: t.stop() if len(t.history) == 2 else None])
    assert len(trainer.fit((ONES, ONES), epochs=10)) == 2
    assert len(trainer.fit((ONES, ONES), epochs=3)) == 5


# ----------------------------------------------------------------------------------------------
# Stop and resume
# ----------------------------------------------------------------------------------------------


def everything(trainer):
    """All that a run depends on, and what it has given (but for the seconds)."""
    records = [*trainer.history.steps, *trainer.history.epochs]
    parts = {"scheduler": trainer.scheduler, "ema": trainer.ema}
    return {
        **{name: part.state_dict() for name, part in parts.items() if part is not None},
        "weights": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "generators": generators(trainer),
        "history": [{k: v for k, v in r.items() if k != "seconds"} for r in records],
    }


RESUMED = {
    "adam": {"optimizer": Adam},
    "adamw": {"optimizer": AdamW, "clip_norm": 0.5},
    "momentum": {"optimizer": functools.partial(SGD, momentum=0.9, nesterov=True)},
    "early stopping": {"optimizer": Adam, "patience": 50, "metrics": [rmse]},
    "amsgrad": {"optimizer": functools.partial(Adam, amsgrad=True)},
    "rmsprop": {"optimizer": functools.partial(RMSprop, momentum=0.5, centered=True)},
    "adagrad": {"optimizer": functools.partial(Adagrad, lr_decay=0.1)},
    "accumulation": {"optimizer": Adam, "batch_size": 4, "accumulation_steps": 3},
    "scheduler": {
        "optimizer": AdamW,
        "scheduler": lambda o: WarmupCosineLR(o, warmup_steps=3, total_steps=9),
    },
    "averages": {"optimizer": Adam, "ema": lambda m: EMA(m, decay=0.8, warmup=True)},
    "all": {
        "optimizer": functools.partial(AdamW, amsgrad=True),
        "batch_size": 4,
        "accumulation_steps": 2,
        "scheduler": lambda o: CosineAnnealingLR(o, T_max=4),
        "ema": lambda m: EMA(m, decay=0.6),
        "patience": 50,
        "metrics": [rmse],
    },
}


@pytest.mark.parametrize("case", RESUMED)
def test_stop_and_resume_is_the_uninterrupted_run_to_the_bit(data, tmp_path, case):
    train, validation = (data[0][:30], data[1][:30]), (data[0][30:], data[1][30:])
    minigrad.manual_seed(11)
    whole = with_dropout(**RESUMED[case])
    whole.fit(train, epochs=5, validation=validation)
    minigrad.manual_seed(11)
    first = with_dropout(**RESUMED[case], checkpoint=tmp_path / "run")
    first.fit(train, epochs=2, validation=validation)
    minigrad.manual_seed(99)
    second = with_dropout(seed=5, **RESUMED[case])  # other weights, other generators
    second.load(tmp_path / "run")
    second.fit(train, epochs=3, validation=validation)
    np.testing.assert_equal(everything(second), everything(whole))
    assert len(second.history) == 5


def test_a_resumed_run_differs_without_the_checkpoint(data):
    """The test above would not be worth much if runs were alike anyway."""
    minigrad.manual_seed(11)
    one = everything_after(with_dropout(), data)
    two = everything_after(with_dropout(), data)  # the default generator has gone on
    assert not np.array_equal(one["weights"]["0.weight"], two["weights"]["0.weight"])


def everything_after(trainer, data):
    trainer.fit(data, epochs=1)
    return everything(trainer)


def test_early_stopping_goes_on_where_it_was(tmp_path):
    validation = (ONES, 0.5 * ONES)
    whole = slope(lr=0.1, patience=4)
    whole.fit((ONES, ONES), epochs=50, validation=validation)
    best = int(np.argmin(whole.history["validation_loss"]))
    first = slope(lr=0.1, patience=4, checkpoint=tmp_path / "run")
    first.fit((ONES, ONES), epochs=best + 3, validation=validation)  # two epochs after the best
    second = slope(lr=0.7, patience=4)
    second.load(tmp_path / "run")
    second.fit((ONES, ONES), epochs=50, validation=validation)
    assert second.history["validation_loss"] == whole.history["validation_loss"]
    assert second.model.w.item() == whole.model.w.item()


def test_a_run_that_stopped_early_goes_on_with_the_best_weights(tmp_path):
    validation = (ONES, 0.5 * ONES)
    whole = slope(lr=0.1, patience=2, checkpoint=tmp_path / "run")
    whole.fit((ONES, ONES), epochs=50, validation=validation)
    second = slope(lr=0.7, patience=2)
    second.load(tmp_path / "run")
    assert second.model.w.item() == whole.model.w.item()
    for trainer in (whole, second):
        trainer.fit((ONES, ONES), epochs=2, validation=validation)
    np.testing.assert_equal(everything(second), everything(whole))


@pytest.mark.parametrize("options", [{}, {"validate_every": 1}])
def test_each_checkpoint_of_a_run_that_stopped_early_has_the_best_weights(
    options, tmp_path, monkeypatch
):
    """From another one, a run that was killed after writing it would train on."""
    states, save = [], Trainer.save

    def keep(trainer, path):
        save(trainer, path)
        states.append(trainer.state_dict())

    monkeypatch.setattr(Trainer, "save", keep)
    whole = slope(lr=0.1, patience=2, checkpoint=tmp_path / "run", **options)
    whole.fit((ONES, ONES), epochs=50, validation=(ONES, 0.5 * ONES))
    ended = [state["model"]["w"].item() for state in states if state["epochs_since_best"] == 2]
    assert ended == [whole.model.w.item()]


def test_a_run_that_is_saved_by_hand_goes_on_too(tmp_path):
    validation = (ONES, 0.5 * ONES)
    whole = slope(lr=0.1, patience=20)
    whole.fit((ONES, ONES), epochs=8, validation=validation)
    first = slope(lr=0.1, patience=20)
    first.fit((ONES, ONES), epochs=6, validation=validation)  # past the best epoch
    first.save(tmp_path / "run")
    second = slope(lr=0.7, patience=20)
    second.load(tmp_path / "run")
    first.fit((ONES, ONES), epochs=2, validation=validation)
    second.fit((ONES, ONES), epochs=2, validation=validation)
    assert first.history["loss"] == second.history["loss"] == whole.history["loss"]
    for trainer in (first, second, whole):
        trainer.restore_best()
    assert first.model.w.item() == second.model.w.item() == whole.model.w.item()


def test_a_checkpoint_is_written_after_every_epoch(data, tmp_path):
    path = tmp_path / "run"
    lengths = []

    def note(trainer):
        if path.exists():
            other = make(7)
            other.load(path)
            lengths.append(len(other.history))

    make(checkpoint=path, on_epoch=[note]).fit(data, epochs=3)
    other = make(7)
    other.load(path)
    assert [*lengths, len(other.history)] == [1, 2, 3]
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_that_begins_anew_warns_that_it_overwrites_a_checkpoint(data, tmp_path):
    path = tmp_path / "run"
    first = make(checkpoint=path)
    for _ in range(2):  # its own file is no surprise
        first.fit(data, epochs=1)
    with pytest.warns(
        UserWarning, match=r"begins anew.*overwrites '.*run', .*trainer.load"
    ) as caught:
        make(checkpoint=path).fit(data, epochs=1)
    assert caught[0].filename == __file__
    second = make(checkpoint=path)
    second.load(path)
    second.fit(data, epochs=1)


def test_a_checkpoint_can_be_saved_by_hand_and_keeps_all_numbers(data, tmp_path):
    trainer = with_dropout(metrics=[rmse], patience=5)
    trainer.fit(data, epochs=2, validation=data)
    trainer.save(tmp_path / "run")
    before = everything(trainer)
    other = with_dropout(seed=3, metrics=[rmse], patience=5)
    other.load(tmp_path / "run")
    np.testing.assert_equal(everything(other), before)
    assert other.history == trainer.history  # seconds too
    assert other.history.keys() == trainer.history.keys()  # in the order that a table has


def of_many_rows(seed, rng, **options):
    """A trainer of a slope, and data of which an epoch has sixty steps."""
    x = rng.uniform(size=(3000, 1))
    options = {"batch_size": 50, "rng": np.random.default_rng(seed), **options}
    return slope(lr=1e-3, **options), (x, 2 * x * x)


def test_a_checkpoint_has_room_for_many_rows_and_records(rng, tmp_path, monkeypatch):
    """The header of a file may have 100 MB, less than the rows and records of a long run."""
    monkeypatch.setattr(tensor_file, "_LARGEST_HEADER", 4000)
    monkeypatch.setattr(checkpoint_file, "_LONGEST_TEXT", 2000)
    whole, data = of_many_rows(0, rng, checkpoint=tmp_path / "run")
    whole.fit(data, steps=100)
    second, _ = of_many_rows(5, rng)
    second.load(tmp_path / "run")
    for trainer in (whole, second):
        trainer.fit(data, steps=30)
    np.testing.assert_equal(everything(second), everything(whole))


def test_an_older_checkpoint_with_the_order_of_the_rows_as_text_can_be_loaded(rng, tmp_path):
    whole, data = of_many_rows(0, rng, checkpoint=tmp_path / "run")
    whole.fit(data, steps=3)
    arrays, metadata = load_state(tmp_path / "run")
    facts = json.loads(metadata["minigrad.trainer"])
    facts["pass"]["order"] = arrays.pop("pass.order").tolist()
    save_state(tmp_path / "run", arrays, {"minigrad.trainer": json.dumps(facts)})
    second, _ = of_many_rows(5, rng)
    second.load(tmp_path / "run")
    for trainer in (whole, second):
        trainer.fit(data, steps=3)
    np.testing.assert_equal(everything(second), everything(whole))


@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_generators_of_any_kind_can_be_resumed(data, tmp_path, kind):
    trainer = make(rng=np.random.Generator(kind(1)), checkpoint=tmp_path / "run")
    trainer.fit(data, epochs=1)
    other = make(rng=np.random.Generator(kind(2)))
    other.load(tmp_path / "run")
    trainer.fit(data, epochs=1)
    other.fit(data, epochs=1)
    assert other.history["loss"] == trainer.history["loss"]


def saved(tmp_path, data, trainer=None):
    path = tmp_path / "run"
    trainer = with_dropout() if trainer is None else trainer
    trainer.fit(data, epochs=1)
    trainer.save(path)
    return path


def another_model():
    model = Sequential(Linear(2, 1), Dropout(0.1, rng=np.random.default_rng(0)))
    rng = np.random.default_rng(0)
    return Trainer(model, Adam(model.parameters()), minigrad.mse, rng=rng, progress=False)


def another_size():
    return with_dropout(hidden=9)


def another_optimizer():
    return with_dropout(optimizer=AdamW)


def fewer_parameters():
    trainer = with_dropout()
    trainer.optimizer = Adam(list(trainer.model.parameters())[:-1])
    return trainer


def another_number_of_generators():
    return with_dropout(rng=None)


def another_kind_of_generator():
    trainer = with_dropout()
    trainer.model[2].rng = np.random.Generator(np.random.MT19937(0))
    return trainer


def scheduled(**options):
    return with_dropout(scheduler=lambda o: StepLR(o, 1), **options)


def averaged(**options):
    return with_dropout(ema=EMA, **options)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (scheduled, "saved with no scheduler, and this trainer has StepLR"),
        (averaged, "saved with no ema, and this trainer has EMA"),
        (another_model, r"does not fit this Sequential(.|\n)*unexpected: 5\.weight"),
        (another_size, r"mis-shaped: 0\.weight"),
        (another_optimizer, "saved with Adam, and this trainer has AdamW"),
        (fewer_parameters, r"groups of .* parameters"),
        (another_number_of_generators, "random generators"),
        (another_kind_of_generator, r"PCG64|MT19937"),
    ],
)
def test_a_checkpoint_of_another_run_is_an_error_and_changes_nothing(
    data, tmp_path, build, message
):
    path = saved(tmp_path, data)
    trainer = build()
    trainer.fit(data, epochs=2)
    before = everything(trainer)
    with pytest.raises(ValueError, match=message):
        trainer.load(path)
    np.testing.assert_equal(everything(trainer), before)
    trainer.fit(data, epochs=1)
    assert len(trainer.history) == 3


def half_averaged():
    trainer = averaged()
    trainer.ema = EMA([*trainer.model.parameters()])
    return trainer


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (scheduled, with_dropout, "saved with StepLR, and this trainer has none"),
        (averaged, with_dropout, "saved with EMA, and this trainer has none"),
        (
            scheduled,
            lambda: with_dropout(scheduler=lambda o: CosineAnnealingLR(o, 3)),
            "saved with StepLR, and this trainer has CosineAnnealingLR",
        ),
        (averaged, half_averaged, r"does not fit this EMA.*\n  missing: 0 .*\n  missing: 1 "),
    ],
)
def test_a_checkpoint_of_other_companions_is_an_error_and_changes_nothing(
    data, tmp_path, first, second, message
):
    path = saved(tmp_path, data, first())
    trainer = second()
    trainer.fit(data, epochs=2)
    before = everything(trainer)
    with pytest.raises(ValueError, match=message):
        trainer.load(path)
    np.testing.assert_equal(everything(trainer), before)


@pytest.mark.parametrize("part", ["generators", "ema", "scheduler_state"])
def test_a_checkpoint_with_one_impossible_part_changes_nothing(data, tmp_path, part):
    def build():
        return averaged(scheduler=lambda o: StepLR(o, 1))

    path = saved(tmp_path, data, build())
    arrays, metadata = load_state(path)
    facts = json.loads(metadata["minigrad.trainer"])
    if part == "generators":
        facts[part][-1]["state"] = {"state": "none", "inc": 3}
    else:
        facts[part]["unheard of"] = 3
    save_state(path, arrays, {"minigrad.trainer": json.dumps(facts)})
    trainer = build()
    trainer.fit(data, epochs=2)
    before = everything(trainer)
    with pytest.raises(ValueError, match="run' does not fit this trainer, and nothing was changed"):
        trainer.load(path)
    np.testing.assert_equal(everything(trainer), before)
    trainer.fit(data, epochs=1)


def test_a_state_of_something_else_is_refused_with_the_parts_of_a_trainers(data):
    trainer = make()
    trainer.fit(data, epochs=1)
    before = trainer.state_dict()
    for state in (trainer.model.state_dict(), trainer.optimizer.state_dict(), None):
        with pytest.raises(ValueError, match=r"a state of a Trainer is a dict of \['best', "):
            trainer.load_state_dict(state)
    np.testing.assert_equal(trainer.state_dict(), before)


@pytest.mark.parametrize("part", ["classes", "model", "best", "generators", "steps", "epochs"])
@pytest.mark.parametrize("value", [None, 3, "text"])
def test_a_part_of_another_kind_is_named(data, part, value):
    trainer = make()
    trainer.fit(data, epochs=1)
    before = trainer.state_dict()
    message = rf"^load_state_dict: .*: '{part}' is a (dict|list), not {value!r}$"
    with pytest.raises(ValueError, match=message):
        trainer.load_state_dict({**before, part: value})
    np.testing.assert_equal(trainer.state_dict(), before)


def test_best_weights_that_are_no_arrays_do_not_stop_fit(data):
    trainer = make(patience=1)
    trainer.fit(data, epochs=1)
    state = trainer.state_dict()
    with pytest.raises(ValueError, match="a tensor contains booleans, integers or floats"):
        trainer.load_state_dict({**state, "best": {"weight": "text"}})
    trainer.load_state_dict({**state, "best": {"weight": 1.0}})
    trainer.fit(data, epochs=1)


IMPOSSIBLE = {
    "a step that is not a number": lambda facts: facts["numbers"].update({"0.step": None}),
    "no numbers": lambda facts: facts.update(numbers=[]),
    "a generator without a state": lambda facts: facts["generators"][-1].pop("state"),
    "an lr of text": lambda facts: facts["param_groups"][0].update(lr="0.1"),
    "records of text": lambda facts: facts.update(steps="abc"),
    "a record without a loss": lambda facts: facts["epochs"][0].pop("loss"),
    "no best loss": lambda facts: facts.update(best_loss=math.nan),
    "epochs that are not a number": lambda facts: facts.update(epochs_since_best="3"),
    "a group of nothing": lambda facts: facts.update(param_groups=[None]),
}


@pytest.mark.parametrize("damage", IMPOSSIBLE)
def test_a_checkpoint_with_an_impossible_value_is_an_error_and_changes_nothing(
    data, tmp_path, damage
):
    def build(seed=0):
        return with_dropout(seed, rng=np.random.Generator(np.random.MT19937(seed)))

    path = saved(tmp_path, data, build())
    arrays, metadata = load_state(path)
    facts = json.loads(metadata["minigrad.trainer"])
    IMPOSSIBLE[damage](facts)
    save_state(path, arrays, {"minigrad.trainer": json.dumps(facts)})
    trainer = build(3)
    before = everything(trainer)
    with pytest.raises(ValueError, match="run' "):
        trainer.load(path)
    np.testing.assert_equal(everything(trainer), before)


def test_a_checkpoint_that_knows_nothing_of_what_is_not_used_can_be_loaded(data, tmp_path):
    path = saved(tmp_path, data)
    arrays, metadata = load_state(path)
    facts = json.loads(metadata["minigrad.trainer"])
    assert not {"scheduler", "ema"} & set(facts)
    for group in facts["param_groups"]:
        del group["amsgrad"]
    save_state(path, arrays, {"minigrad.trainer": json.dumps(facts)})
    trainer = with_dropout(seed=3)
    trainer.load(path)
    assert len(trainer.history) == 1
    for name, value in trainer.model.state_dict().items():
        assert np.array_equal(value, arrays[f"model.{name}"])
    trainer.fit(data, epochs=1)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_checkpoint_cut_short_is_an_error_and_changes_nothing(data, tmp_path, share):
    path = saved(tmp_path, data)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    trainer = with_dropout()
    before = everything(trainer)
    with pytest.raises(ValueError, match="run' is not a complete safetensors file"):
        trainer.load(path)
    np.testing.assert_equal(everything(trainer), before)


def test_a_file_that_is_no_checkpoint_is_an_error(data, tmp_path):
    trainer = with_dropout()
    save_state(tmp_path / "weights", trainer.model.state_dict(), {"format": "pt"})
    save_state(tmp_path / "deep", {}, {"minigrad.trainer": "[" * 100_000})
    for name in ("weights", "deep"):
        with pytest.raises(ValueError, match=f"{name}' is not a checkpoint of a Trainer"):
            trainer.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nothing"):
        trainer.load(tmp_path / "nothing")


def test_a_checkpoint_that_lacks_a_part_is_an_error_and_changes_nothing(data, tmp_path):
    path = saved(tmp_path, data)
    arrays, facts = load_state(path)
    del arrays["optimizer.0.exp_avg"]
    save_state(path, arrays, facts)
    trainer = with_dropout()
    before = everything(trainer)
    with pytest.raises(ValueError, match="exp_avg"):
        trainer.load(path)
    np.testing.assert_equal(everything(trainer), before)


def test_a_checkpoint_of_another_precision_is_an_error_and_changes_nothing(data, tmp_path):
    path = saved(tmp_path, data)
    trainer = with_dropout()
    trainer.model.astype(np.float64)
    before = everything(trainer)
    with pytest.raises(ValueError, match=r"float32.*float64|float64.*float32"):
        trainer.load(path)
    np.testing.assert_equal(everything(trainer), before)


# ----------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error_before_the_step(value):
    y = np.array([[1.0], [1.0], [value], [1.0]], np.float32)
    trainer = slope(lr=0.25, batch_size=1, rng=np.random.default_rng(1))
    place = np.random.default_rng(1).permutation(4).tolist().index(2)
    assert place > 0
    says = f"the loss became {value} at step {place + 1}; .* data without nan, inf and extreme"
    with pytest.raises(FloatingPointError, match=says):
        trainer.fit((ONES, y), epochs=1)
    assert trainer.model.w.item() == 1 - 0.5**place
    assert len(trainer.history.steps) == place


def test_a_gradient_norm_that_is_not_finite_is_an_error_before_the_step_with_clipping():
    trainer = slope(lr=0.25, clip_norm=1.0)
    trainer.loss = lambda prediction, y: minigrad.sqrt(minigrad.mse(prediction, y))
    message = "the gradient norm became nan at step 1"
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match=message):
        trainer.fit((ONES, 0 * ONES), epochs=1)  # the slope of sqrt is infinite at 0
    assert trainer.model.w.item() == 0


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((0, 2)), np.ones((0, 1)), "train: the data are empty"),
        (np.ones((3, 2)), np.ones((4, 1)), "train: 3 rows of features, but 4 of the target"),
        (np.float32(1), np.ones((1, 1)), r"train: .* axis of rows"),
        (np.ones((1, 2)), 1.0, r"train: .* axis of rows"),
        (np.ones((3, 3)), np.ones((3, 1)), r"x of shape \(3, 3\)"),
        (np.ones((3, 2)), np.ones(3), r"the prediction has shape \(3, 1\), the target \(3,\)"),
    ],
)
def test_data_that_do_not_fit_are_an_error_and_change_nothing(x, y, message):
    trainer = make()
    before = trainer.model.state_dict()
    with pytest.raises(ValueError, match=message):
        trainer.fit((x, y), epochs=1)
    np.testing.assert_equal(trainer.model.state_dict(), before)
    assert len(trainer.history) == 0


@pytest.mark.parametrize(
    "x", [[["a", "b"]], np.array([[None, 1]]), np.ones((1, 2)) * 1j, [[1.0, 2.0], [1.0]]]
)
def test_data_that_are_no_numbers_are_an_error(x):
    rows = np.ones((1, 2)), np.ones((1, 1))
    with pytest.raises((TypeError, ValueError), match=r"^train: .*tensor"):
        make().fit((x, rows[1]), epochs=1)
    with pytest.raises((TypeError, ValueError), match=r"^validation: .*tensor"):
        make().fit(rows, epochs=1, validation=(rows[0], x))


@pytest.mark.parametrize("train", [np.ones((3, 2)), (np.ones((3, 2)),), "xy", None, 3])
def test_data_that_are_no_pair_are_an_error(train):
    with pytest.raises((TypeError, ValueError), match=r"train must be a pair \(features, target\)"):
        make().fit(train, epochs=1)


@pytest.mark.parametrize("array", [np.asarray, minigrad.tensor])
@pytest.mark.parametrize("count", [2, 3])
def test_micro_batches_of_a_loader_are_made_tuples(count, array):
    loader = [[array(np.ones((2, 2))), array(np.ones((2, 1)))]] * count
    with pytest.raises(ValueError, match=r"\[\(x, y\) for x, y in loader\], not list of list$"):
        make().fit(loader, epochs=1)
    make().fit([(x, y) for x, y in loader], epochs=1)


def test_validation_data_are_checked_before_training(data):
    trainer = make()
    with pytest.raises(ValueError, match="validation: 3 rows of features, but 4"):
        trainer.fit(data, epochs=1, validation=(np.ones((3, 2)), np.ones((4, 1))))
    assert trainer.history.steps == []


def test_nothing_can_be_predicted_of_nothing():
    with pytest.raises(ValueError, match="empty"):
        make().predict(np.ones((0, 2)))
    with pytest.raises(ValueError, match="data: the data are empty"):
        make().evaluate((np.ones((0, 2)), np.ones((0, 1))))


@pytest.mark.parametrize(
    "options",
    [
        *({"batch_size": value} for value in (0, -1, 2.5)),
        *({"accumulation_steps": value} for value in (0, -1, 2.5, True)),
        *({"patience": value} for value in (0, -1, 2.5)),
        *({"clip_norm": value} for value in (0.0, -1.0, math.nan)),
    ],
)
def test_impossible_options_are_errors(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make(**options)


def test_a_checkpoint_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"checkpoint: there is no folder .*missing'; make"):
        make(checkpoint=tmp_path / "missing" / "run")
    with pytest.raises(IsADirectoryError, match=r"checkpoint: .* is a folder; name a file in it"):
        make(checkpoint=tmp_path)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "missing" / "run")
    with pytest.raises(FileNotFoundError, match=r"checkpoint: there is no folder .*missing'"):
        make(checkpoint=link)
    monkeypatch.chdir(tmp_path)
    assert make(checkpoint="run").checkpoint == "run"
    assert list(tmp_path.iterdir()) == [link]
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(PermissionError, match="checkpoint: no file can be written into the folder"):
        make(checkpoint=tmp_path / "run")


def test_a_full_disk_is_an_error_that_names_the_checkpoint(data, tmp_path, monkeypatch):
    def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = make(checkpoint=tmp_path / "run")
    for has_older in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", write)
            with pytest.raises(OSError, match=r"No space left on device: '.*run'") as caught:
                trainer.fit(data, epochs=1)
        notes = "".join(getattr(caught.value, "__notes__", []))
        assert ("older checkpoint is unchanged, and `load` continues" in notes) == has_older
        trainer.fit(data, epochs=1)


@pytest.mark.parametrize("name", ["scheduler", "ema"])
@pytest.mark.parametrize("value", [0.9, "cosine", StepLR])
def test_something_else_is_no_scheduler_and_no_average(name, value):
    with pytest.raises(TypeError, match=rf"{name} must be of class \w+ or None, not"):
        make(**{name: value})


def test_scheduler_and_averages_must_be_those_of_the_run():
    other = make()
    with pytest.raises(ValueError, match="scheduler was made with another optimiser"):
        make(scheduler=StepLR(other.optimizer, 1))
    with pytest.raises(ValueError, match="no average of 4 parameters of the optimiser"):
        make(ema=EMA(other.model))
    other.model.layers[0].freeze()
    ema = EMA(other.model)
    other.model.freeze(False)
    with pytest.raises(ValueError, match="no average of 2 parameters of the optimiser"):
        Trainer(other.model, other.optimizer, minigrad.mse, ema=ema)


def test_a_seed_is_no_generator():
    with pytest.raises(TypeError, match="default_rng"):
        make(rng=0)


@pytest.mark.parametrize(
    "loss", [lambda p, y: 1.0, lambda p, y: minigrad.mse(p, y, "none"), lambda p, y: None]
)
def test_a_loss_that_is_no_single_number_is_an_error_that_says_so(data, loss):
    with pytest.raises((TypeError, ValueError), match="loss"):
        make(loss=loss).fit(data, epochs=1)


def test_integers_of_8_bits_count_the_steps_of_long_runs(tmp_path):
    every = {"validate_every": np.uint8(2), "checkpoint_every": np.int8(100)}
    trainer = slope(batch_size=1, checkpoint=tmp_path / "run", **every)
    history = trainer.fit((ONES, ONES), steps=300, validation=(ONES, ONES))
    assert sum("validation_loss" in step for step in history.steps) == 150


@pytest.mark.parametrize("epochs", [0, -1, 1.5])
def test_epochs_must_be_a_positive_integer(data, epochs):
    trainer = make()
    with pytest.raises((TypeError, ValueError), match="epochs must be"):
        trainer.fit(data, epochs=epochs)
    for target in (data[1], minigrad.tensor(data[1]), data[1].tolist(), [data, data]):
        with pytest.raises(ValueError, match=r"as one pair: fit\(\(x, y\), epochs=...\)"):
            trainer.fit(data[0], target)
    assert trainer.history.steps == []


# ----------------------------------------------------------------------------------------------
# The progress bar
# ----------------------------------------------------------------------------------------------


def test_the_progress_bar_is_on_stderr_only(data, capsys):
    make(progress=True).fit(data, epochs=2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "4/4" in err or "step" in err


def test_the_progress_bar_counts_steps_of_the_optimiser(data, capsys):
    make(progress=True, batch_size=8, accumulation_steps=2).fit(data, epochs=1)
    assert "0/3" in capsys.readouterr().err


def test_without_a_progress_bar_nothing_is_printed(data, capsys):
    make(progress=False).fit(data, epochs=2, validation=data)
    assert capsys.readouterr() == ("", "")


def test_predict_and_evaluate_print_nothing(data, capsys):
    trainer = make(progress=True)
    trainer.predict(data[0])
    trainer.evaluate(data)
    assert capsys.readouterr() == ("", "")


def test_a_trainer_is_neither_saved_nor_loaded_while_the_averages_are_applied(data, tmp_path):
    def with_averages():
        trainer = make()
        trainer.ema = EMA(trainer.model)
        return trainer

    trainer, path = with_averages(), tmp_path / "x.state"
    trainer.fit(data, steps=3)
    trainer.save(path)
    trainer.fit(data, steps=3)
    before = trainer.state_dict()
    with trainer.ema.applied():
        for change in (trainer.save, trainer.load):
            with pytest.raises(RuntimeError, match=r"saved or loaded inside applied\(\)"):
                change(path)
    assert repr(trainer.state_dict()) == repr(before)
    again = with_averages()
    again.load(path)
    again.fit(data, steps=3)
    assert repr(again.state_dict()["model"]) == repr(before["model"])


@pytest.mark.parametrize("is_refused", [True, False])
def test_a_state_that_is_loaded_at_the_last_step_leaves_the_end_of_the_epoch(data, is_refused):
    ended = []

    def load(trainer):
        if len(trainer.history.steps) == 4 and not ended:
            state = trainer.state_dict() | ({"best_loss": math.nan} if is_refused else {})
            try:
                trainer.load_state_dict(state)
            except ValueError:
                assert is_refused

    trainer = make(batch_size=10, on_step=load, on_epoch=lambda trainer: ended.append(trainer))
    history = trainer.fit(data, epochs=1, validation=data)
    assert len(history.steps) == 4
    assert ended == [trainer]
    assert "validation_loss" in history.epochs[0]


def test_a_count_of_several_numbers_is_an_error_of_the_loss(data):
    counting = lambda prediction, y: (minigrad.mse(prediction, y), np.ones(4))
    with pytest.raises(TypeError, match="the count of a loss must be a number, not array"):
        make(loss=counting).fit(data, steps=1)
