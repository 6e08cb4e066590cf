"""Trainer(capture=True) does what it does without, to the bit, with the same history."""

import copy

import numpy as np
import pytest

import minigrad as mg
from minigrad import Tensor, nn, optim
from minigrad.training import Trainer


def rows(count=50, seed=1):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(count, 4)), rng.normal(size=(count, 2))
    return x.astype(np.float32), y.astype(np.float32)


def network():
    rng = np.random.default_rng(0)
    layers = nn.Linear(4, 8, rng=rng), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 2, rng=rng)
    return nn.Sequential(*layers)


def trainer(capture, loss=mg.mse, schedule=False, average=False, **options):
    mg.manual_seed(0)
    model = network()
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    if schedule:
        options["scheduler"] = optim.CosineAnnealingLR(optimizer, 30)
    if average:
        options["ema"] = optim.EMA(model, 0.9)
    rng = np.random.default_rng(2)
    return Trainer(model, optimizer, loss, capture=capture, progress=False, rng=rng, **options)


def records(trainer):
    history = [*trainer.history.steps, *trainer.history.epochs]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def weights(model):
    return [p.data.tobytes() for p in model.parameters()]


def check_same(first, second):
    assert records(first) == records(second)
    assert weights(first.model) == weights(second.model)


def check_training(data=None, fit=None, **options):
    """Train with and without capture, compare all, and return the captured trainer."""
    fitted = []
    for capture in (False, True):
        made = trainer(capture, **options)
        made.fit(data or rows(), **(fit or {"epochs": 4}))
        fitted.append(made)
    check_same(*fitted)
    assert fitted[1].captured_step.source
    return fitted[1]


def lower_lr(trainer):
    trainer.optimizer.param_groups[0]["lr"] *= 0.97
    trainer.optimizer.param_groups[0]["weight_decay"] *= 0.9


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 8},
        {"batch_size": 4, "accumulation_steps": 3},  # a ragged last step
        {"batch_size": 8, "clip_norm": 0.1},
        {"batch_size": 8, "schedule": True, "average": True},
        {"batch_size": 8, "on_step": lower_lr},
        {"batch_size": 4, "validate_every": 3, "fit": {"epochs": 3, "validation": rows(20)}},
        {
            "batch_size": 4, "accumulation_steps": 3, "clip_norm": 0.1, "schedule": True,
            "average": True, "patience": 2, "fit": {"epochs": 8, "validation": rows(20, 3)},
            "metrics": {"distance": lambda p, y: float(abs(p - y).mean())},
        },
    ],
    ids=lambda options: "+".join(options),
)  # fmt: skip
def test_the_same_bits_and_the_same_history(options):
    check_training(**options)


def test_integer_targets():
    x, _ = rows()
    target = np.arange(50) % 2
    target[::7] = -100
    check_training((x, target), loss=mg.cross_entropy, batch_size=8)


def test_micro_batches_of_several_shapes():
    given = [(Tensor(x), y) for x, y in (rows(3 + i % 2, i) for i in range(10))]
    check_training(given, accumulation_steps=3)


def test_a_loss_gets_targets_as_tensors():
    kinds = set()

    def loss(prediction, target):
        kinds.add(type(target))
        return mg.mse(prediction, target[:, ::-1] * 2 + 1)

    check_training(loss=loss, batch_size=8)
    assert kinds == {np.ndarray, Tensor}


def test_layers_that_are_frozen_between_two_fits():
    fitted = []
    for capture in (False, True):
        made = trainer(capture, batch_size=8)
        made.fit(rows(), epochs=1)
        made.model[0].freeze()
        made.fit(rows(), epochs=2)
        fitted.append(made)
    check_same(*fitted)


def test_a_run_goes_on_from_a_checkpoint(tmp_path):
    expected = trainer(False, batch_size=8)
    expected.fit(rows(), epochs=4)
    path = tmp_path / "run"
    begun = trainer(True, batch_size=8, checkpoint=path)
    begun.fit(rows(), steps=10)
    saved = path.read_bytes()
    other = trainer(True, batch_size=8)
    other.load(path)
    for made in (other, begun):
        path.write_bytes(saved)
        made.load(path)
        made.fit(rows(), steps=18)
        check_same(made, expected)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_loss_that_is_not_finite_stops_before_the_step(clip_norm):
    def explode(trainer):
        if len(trainer.history.steps) == 5:
            trainer.optimizer.param_groups[0]["lr"] = 1e30

    fitted, errors = [], []
    for capture in (False, True):
        made = trainer(capture, batch_size=8, clip_norm=clip_norm, on_step=explode)
        with np.errstate(all="ignore"), pytest.raises(FloatingPointError) as caught:
            made.fit(rows(), epochs=3)
        fitted.append(made)
        errors.append(str(caught.value))
    check_same(*fitted)
    assert errors[0] == errors[1]
    assert "the loss became" in errors[0]
    assert "at step 7" in errors[0]


def test_a_loss_that_counts_is_refused():
    made = trainer(True, loss=lambda p, y: (mg.mse(p, y), 3))
    before = weights(made.model)
    with pytest.raises(ValueError, match=r"capture=True: the loss returns \(mean, count\)"):
        made.fit(rows(), epochs=1)
    assert weights(made.model) == before


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda p, y: mg.mse(p, np.tanh(y)), "does not take Tensors; use minigrad.tanh"),
        (lambda p, y: mg.mse(p, y) * float(y.mean()), r"float\(\) takes a value out of the step"),
    ],
)
def test_a_loss_that_computes_outside_of_ops_is_refused(loss, message):
    with pytest.raises((TypeError, RuntimeError), match=message):
        trainer(True, loss=loss).fit(rows(), epochs=1)


def test_a_copy_of_a_trainer_steps_its_own_model():
    made = trainer(True, batch_size=8)
    made.fit(rows(), epochs=1)
    copied = copy.deepcopy(made)
    before = weights(made.model)
    copied.fit(rows(), epochs=1)
    assert weights(made.model) == before
    assert weights(copied.model) != before


def test_capture_is_a_flag():
    with pytest.raises(TypeError, match="capture"):
        trainer("yes")
