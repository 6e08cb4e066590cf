"""Micro-batches, steps and unfinished epochs of a Trainer."""

import numpy as np
import pytest

import minigrad
from minigrad.io import load_state, save_state
from minigrad.nn import MLP, Dropout, Embedding, Linear, Module, Sequential
from minigrad.optim import SGD, AdamW, WarmupCosineLR
from minigrad.training import Trainer


class Tokens(Module):
    """An embedding and a head, with dropout from the default generator."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.table, self.head = Embedding(11, 6, rng=rng), Linear(6, 11, rng=rng)
        self.dropout = Dropout(0.1)

    def forward(self, ids, scale=1.0):
        return self.head(self.dropout(minigrad.tanh(self.table(ids)))) * scale


def loss(prediction, target):
    ids, counted = target
    rows = np.flatnonzero(counted)
    picked = prediction.reshape(-1, 11)[rows]
    return minigrad.cross_entropy(picked, ids.reshape(-1)[rows]), len(rows)


def micro_batches(seed=1, count=9):
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        ids = rng.integers(0, 11, (1 + number % 3, 2 + number))
        counted = rng.random(ids.shape) < 0.7
        counted[0, -1] = True
        made.append((ids, (ids[::-1], counted)))
    return made


def trainer(seed=0, **options):
    minigrad.manual_seed(seed)
    model = Tokens(seed)
    optimizer = AdamW(model.parameters(), lr=0.05)
    schedule = WarmupCosineLR(optimizer, warmup_steps=2, total_steps=30)
    options = {"progress": False, "rng": np.random.default_rng(seed), **options}
    return Trainer(model, optimizer, loss, scheduler=schedule, **options)


def everything(one):
    """All that a later step depends on, and the records without their times."""
    state = one.state_dict()
    for kind in ("steps", "epochs"):
        state[kind] = [{k: v for k, v in r.items() if k != "seconds"} for r in state[kind]]
    return state


# ----------------------------------------------------------------------------------------------
# Micro-batches
# ----------------------------------------------------------------------------------------------


def test_micro_batches_of_different_shapes_train():
    one = trainer(accumulation_steps=2)
    data = micro_batches()
    before = one.evaluate(data)["loss"]
    history = one.fit(data, epochs=6)
    assert len(history.steps) == 6 * 5
    assert one.evaluate(data)["loss"] < before
    assert history["loss"][-1] < history["loss"][0]


def test_micro_batches_that_are_those_of_rows_give_the_bits_of_rows():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((24, 2)).astype("f4"), rng.standard_normal((24, 1)).astype("f4")

    def fitted(data, **options):
        model = MLP([2, 4, 1], rng=np.random.default_rng(0))
        one = Trainer(
            model, SGD(model.parameters(), lr=0.1), minigrad.mse, progress=False, **options
        )
        one.fit(data, epochs=1, validation=data)
        return one

    order = np.random.default_rng(5)
    of_rows = fitted((x, y), batch_size=4, accumulation_steps=2, rng=np.random.default_rng(5))
    rows = order.permutation(24)

    class InOrder(list):
        """Micro-batches in the order of the rows, whatever is drawn."""

    made = InOrder((minigrad.tensor(x[r]), y[r]) for r in rows.reshape(6, 4))

    class Still(np.random.Generator):
        def permutation(self, n):
            return np.arange(n)

    given = fitted(made, accumulation_steps=2, rng=Still(np.random.PCG64(0)))
    for name, value in of_rows.model.state_dict().items():
        assert np.array_equal(given.model.state_dict()[name], value), name
    assert [s["loss"] for s in given.history.steps] == [s["loss"] for s in of_rows.history.steps]
    np.testing.assert_allclose(
        given.history["validation_loss"], of_rows.history["validation_loss"], rtol=1e-6
    )


def test_every_micro_batch_is_seen_once_in_an_epoch_in_an_order_of_the_generator():
    seen = []

    class Spy(Tokens):
        def forward(self, ids):
            seen.append(ids.shape)
            return super().forward(ids)

    data = micro_batches()

    def shapes(seed):
        seen.clear()
        model = Spy()
        one = Trainer(
            model, SGD(model.parameters()), loss, rng=np.random.default_rng(seed), progress=False
        )
        one.fit(data, epochs=2)
        return list(seen)

    first = shapes(0)
    assert sorted(first[:9]) == sorted(first[9:]) == sorted(ids.shape for ids, _ in data)
    assert first[:9] != first[9:]
    assert shapes(0) == first != shapes(1)


def test_a_micro_batch_may_have_several_inputs():
    data = [(ids, 0.5, target) for ids, target in micro_batches()]
    one = trainer()
    assert one.evaluate(data) != one.evaluate(micro_batches())
    assert len(one.fit(data, epochs=1).steps) == 9


def test_the_evaluation_weighs_each_micro_batch_by_what_it_counted():
    data = micro_batches()
    one = trainer()
    one.model.eval()
    means, counts = zip(*(loss(one.model(ids), target) for ids, target in data), strict=True)
    one.model.train()
    expected = np.average([mean.item() for mean in means], weights=counts)
    assert one.evaluate(data)["loss"] == pytest.approx(expected, rel=1e-12)
    assert one.model.training


def test_a_plain_mean_counts_the_rows_of_its_target():
    data = [(np.ones((n, 2), "f4"), np.full((n, 1), float(n), "f4")) for n in (1, 2, 5)]
    model = Sequential(Linear(2, 1, rng=np.random.default_rng(0)))
    one = Trainer(model, SGD(model.parameters(), lr=0.0), minigrad.mse, progress=False)
    each = [one.evaluate([pair])["loss"] for pair in data]
    assert one.evaluate(data)["loss"] == pytest.approx(np.average(each, weights=[1, 2, 5]))
    one.accumulation_steps = 3
    assert one.fit(data, epochs=1)["loss"] == pytest.approx([np.average(each, weights=[1, 2, 5])])


def trained_by(loss, data):
    """The weight and the loss of a model after a step over all micro-batches, by SGD."""
    model = Sequential(Linear(2, 1, bias=False, rng=np.random.default_rng(0)))
    optimizer = SGD(model.parameters(), lr=0.25)
    one = Trainer(model, optimizer, loss, accumulation_steps=len(data), progress=False)
    history = one.fit(data, epochs=1)
    return model.state_dict()["0.weight"], history["loss"][0]


def pieces(*sizes):
    """Micro-batches of so many rows, and one of all of these rows."""
    x = np.random.default_rng(3).standard_normal((sum(sizes), 2)).astype("f4")
    y = x @ np.array([[1.0], [-2.0]], "f4")
    cuts = np.cumsum(sizes)[:-1]
    return [*zip(np.split(x, cuts), np.split(y, cuts), strict=True)], [(x, y)]


def square(prediction, target):
    return minigrad.mse(prediction, np.ones((len(prediction), 1), "f4"))


@pytest.mark.parametrize(
    "target", [(), [], [0.0], [[1.0, 2.0]] * 9, None, 0.5, [[1], [2, 3]], {"y": np.ones((2, 3))}]
)
def test_a_count_of_the_loss_weighs_micro_batches_whatever_their_targets_are(target):
    apart, together = pieces(3, 5, 2)
    apart = [(x, target) for x, _ in apart]
    weight, value = trained_by(lambda p, y: (square(p, y), len(p)), apart)
    expected, whole = trained_by(square, together)
    np.testing.assert_allclose(weight, expected, rtol=1e-5)
    assert value == pytest.approx(whole)


def test_micro_batches_weigh_by_rows_where_the_loss_returns_no_count_for_them():
    apart, together = pieces(3, 5, 2)

    def sometimes(prediction, target):
        mean = minigrad.mse(prediction, target)
        return (mean, len(target)) if len(target) == 5 else mean

    weight, value = trained_by(sometimes, apart)
    expected, whole = trained_by(minigrad.mse, together)
    np.testing.assert_allclose(weight, expected, rtol=1e-5)
    assert value == pytest.approx(whole)
    doubled = [(x, np.hstack([y, y])) for x, y in apart]  # twice as many elements as rows
    weight, _ = trained_by(lambda p, y: sometimes(p, y[:, :1]), doubled)
    np.testing.assert_allclose(weight, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([(np.ones(2),), (np.ones(2),)], ValueError, "tuple .*inputs, target"),
        ([(np.ones((1, 2)),), [1, 2], (3,)], ValueError, "(train|data): a micro-batch is a tuple"),
        ([(np.ones((1, 2)), None)] * 3, TypeError, "no rows to count"),
        ([(np.ones((1, 2)), np.float64(1))] * 3, TypeError, "no rows to count"),
        ([(np.ones((1, 2)), {"y": np.ones(1)})] * 3, TypeError, r"no rows.*return \(mean, count"),
        ([(np.ones((1, 2)), (np.ones(1), 2.0))] * 3, TypeError, r"no rows.*return \(mean, count"),
        ([], ValueError, "(train|data) must be a pair .* or a list of micro-batches"),
    ],
)
def test_what_is_no_micro_batch_is_refused(data, error, message):
    model = Sequential(Linear(2, 1))
    one = Trainer(
        model, SGD(model.parameters()), lambda p, y: minigrad.mse(p, p * 0), progress=False
    )
    for use in (lambda: one.fit(data, epochs=1), lambda: one.evaluate(data)):
        with pytest.raises(error, match=message):
            use()


def test_micro_batches_that_count_nothing_and_metrics_of_them_are_refused():
    ids = np.zeros((1, 2), int)
    one = trainer()
    with pytest.raises(ValueError, match="data: the loss counted nothing"):
        Trainer(
            one.model, one.optimizer, lambda p, y: (minigrad.sum(p), 0), progress=False
        ).evaluate([(ids, None)])
    measured = trainer(metrics={"zero": lambda p, y: 0.0})
    with pytest.raises(ValueError, match="train: metrics are computed of rows"):
        measured.fit(micro_batches(), epochs=1)


# ----------------------------------------------------------------------------------------------
# Steps
# ----------------------------------------------------------------------------------------------


def test_a_limit_of_steps_ends_in_the_middle_of_an_epoch_and_the_next_fit_goes_on():
    whole = trainer()
    whole.fit(micro_batches(), epochs=3)
    expected = everything(whole)
    parts = trainer()
    for steps in (4, 5, 1, 17):
        before = len(parts.history.steps)
        parts.fit(micro_batches(), steps=steps)
        assert len(parts.history.steps) == before + steps
    np.testing.assert_equal(everything(parts), expected)


def test_epochs_count_the_unfinished_one():
    one = trainer()
    one.fit(micro_batches(), steps=4)
    assert len(one.history) == 0
    one.fit(micro_batches(), epochs=2)
    assert (len(one.history), len(one.history.steps)) == (2, 18)
    one.fit(micro_batches(), epochs=5, steps=3)
    assert (len(one.history), len(one.history.steps)) == (2, 21)


def test_rows_may_end_in_the_middle_of_an_epoch_too():
    x, y = np.ones((10, 2), "f4"), np.ones((10, 1), "f4")

    def made():
        model = MLP([2, 3, 1], rng=np.random.default_rng(0))
        rng = np.random.default_rng(0)
        return Trainer(
            model, SGD(model.parameters()), minigrad.mse, batch_size=3, rng=rng, progress=False
        )

    whole, parts = made(), made()
    whole.fit((x, y), epochs=2)
    for _ in range(2):
        parts.fit((x, y), steps=3)
    parts.fit((x, y), epochs=1)
    np.testing.assert_equal(everything(parts), everything(whole))


@pytest.mark.parametrize("options", [{}, {"steps": 0}, {"steps": 1.5}, {"epochs": 1, "steps": -1}])
def test_epochs_or_steps_are_needed_and_positive(options):
    with pytest.raises(ValueError, match=r"(epochs|steps) must be a positive integer"):
        trainer().fit(micro_batches(), **options)


def test_on_step_is_called_after_every_step_and_may_stop_at_once():
    steps = []

    def note(one):
        steps.append(one.history.steps[-1]["step"])
        if len(steps) == 4:
            one.stop(at_once=True)

    one = trainer(on_step=note)
    one.fit(micro_batches(), epochs=2)
    assert steps == [1, 2, 3, 4]
    one.fit(micro_batches(), epochs=2)
    whole = trainer()
    whole.fit(micro_batches(), epochs=2)
    np.testing.assert_equal(everything(one), everything(whole))


def test_a_step_that_failed_leaves_no_unfinished_epoch():
    data = micro_batches()

    def fail(one):
        if len(one.history.steps) == 2:
            raise KeyboardInterrupt

    one = trainer(on_step=[fail])
    with pytest.raises(KeyboardInterrupt):
        one.fit(data, epochs=1)
    assert len(one.fit(data, epochs=1).steps) == 2 + 9


# ----------------------------------------------------------------------------------------------
# Validation by steps
# ----------------------------------------------------------------------------------------------


def test_validation_after_so_many_steps_and_after_the_last():
    one = trainer(validate_every=4)
    held_out = micro_batches(7, 3)
    history = one.fit(micro_batches(), steps=10, validation=held_out)
    judged = [step["step"] for step in history.steps if "validation_loss" in step]
    assert judged == [4, 8, 10]
    assert history.steps[-1]["validation_loss"] == one.evaluate(held_out)["loss"]
    assert "validation_loss" not in history.epochs[0]
    with pytest.raises(ValueError, match="validate_every needs"):
        one.fit(micro_batches(), steps=1)


def test_patience_counts_validations_where_they_are_by_steps():
    losses = iter([5.0, 4.0, 6.0, 7.0, 1.0])
    weights = []
    one = trainer(validate_every=2, patience=2)
    one.evaluate = lambda data: (
        weights.append(one.model.state_dict()),
        {"loss": next(losses)},
    )[1]
    one.fit(micro_batches(), epochs=9, validation=micro_batches(7, 2))
    assert len(one.history.steps) == 8
    np.testing.assert_equal(one.model.state_dict(), weights[1])


# ----------------------------------------------------------------------------------------------
# Checkpoints in the middle of an epoch
# ----------------------------------------------------------------------------------------------


@pytest.mark.sampled(4)
@pytest.mark.parametrize("every", [1, 2, 4])
@pytest.mark.parametrize("last", [1, 5, 7, 9, 12])
def test_a_run_resumed_in_the_middle_of_an_epoch_is_the_whole_run_to_the_bit(tmp_path, every, last):
    options = {"accumulation_steps": 2, "validate_every": 3, "patience": 50}
    data, held_out = micro_batches(), micro_batches(7, 2)
    whole = trainer(**options)
    whole.fit(data, epochs=3, validation=held_out)
    path = tmp_path / "run"

    def die(one):
        if one.history.steps[-1]["step"] == last:
            raise KeyboardInterrupt

    killed = trainer(**options, checkpoint=path, checkpoint_every=every, on_step=die)
    with pytest.raises(KeyboardInterrupt):
        killed.fit(data, epochs=3, validation=held_out)
    again = trainer(3, **options)
    if path.exists():
        again.load(path)
    else:
        assert last <= every
        again = trainer(**options)
    again.fit(data, epochs=3 - len(again.history), validation=held_out)
    np.testing.assert_equal(everything(again), everything(whole))


def test_a_run_that_ends_in_the_middle_of_an_epoch_has_a_checkpoint(tmp_path):
    whole = trainer()
    whole.fit(micro_batches(), steps=13)
    one = trainer(checkpoint=tmp_path / "run")
    one.fit(micro_batches(), steps=6)
    again = trainer(5)
    again.load(tmp_path / "run")
    again.fit(micro_batches(), steps=7)
    np.testing.assert_equal(everything(again), everything(whole))


def test_a_state_that_is_saved_at_the_last_step_of_an_epoch_goes_on_with_its_record(tmp_path):
    def save(one):
        if len(one.history.steps) == 9:
            one.save(tmp_path / "run")

    whole = trainer(on_step=save)
    whole.fit(micro_batches(), epochs=2)
    again = trainer(5)
    again.load(tmp_path / "run")
    assert len(again.history) == 0
    again.fit(micro_batches(), epochs=1)
    assert (len(again.history), len(again.history.steps)) == (1, 9)
    again.fit(micro_batches(), epochs=1)
    np.testing.assert_equal(everything(again), everything(whole))


def test_an_unfinished_epoch_goes_on_with_data_of_the_same_length_only():
    one = trainer()
    one.fit(micro_batches(), steps=2)
    with pytest.raises(ValueError, match="has 9 rows or micro-batches, and these data have 8"):
        one.fit(micro_batches()[:8], epochs=1)
    one.fit(micro_batches(), epochs=1)
    assert len(one.history.steps) == 9


@pytest.mark.parametrize(
    "change",
    [
        {"order": [0, 0, 1]},
        {"order": "abc"},
        {"position": 99},
        {"position": -1},
        {"position": "1"},
        {"counts": ["a"]},
        {"counts": [1.0, float("nan")]},
        {"counts": None},
    ],
)
def test_an_impossible_unfinished_epoch_is_refused_and_changes_nothing(change):
    one = trainer()
    one.fit(micro_batches(), steps=2)
    state = one.state_dict()
    state["pass"] |= change
    again = trainer(1)
    before = everything(again)
    with pytest.raises(ValueError, match=r"^load_state_dict: the state does not fit this trainer"):
        again.load_state_dict(state)
    np.testing.assert_equal(everything(again), before)


def test_without_frozen_parameters_a_checkpoint_has_those_of_the_optimiser(tmp_path):
    def made(seed, save_frozen=False):
        model = Tokens()
        model.head.weight.copy_(np.random.default_rng(seed).standard_normal((11, 6)))
        model.table.freeze()
        rng = np.random.default_rng(seed)
        optimizer = AdamW(model.trainable_parameters(), lr=0.05)
        options = {"patience": 9, "rng": rng, "progress": False, "save_frozen": save_frozen}
        return Trainer(model, optimizer, loss, checkpoint=tmp_path / "run", **options)

    minigrad.manual_seed(0)
    whole = made(0)
    whole.fit(micro_batches(), steps=12, validation=micro_batches(7, 2))
    (tmp_path / "run").unlink()
    minigrad.manual_seed(0)
    one = made(0)
    one.fit(micro_batches(), steps=5, validation=micro_batches(7, 2))
    names = {name for name in load_state(tmp_path / "run")[0] if "table" in name}
    assert not names
    again = made(1)
    again.load(tmp_path / "run")
    again.fit(micro_batches(), steps=7, validation=micro_batches(7, 2))
    np.testing.assert_equal(everything(again), everything(whole))
    with pytest.raises(ValueError, match=r"missing: table\.weight"):
        made(1, save_frozen=True).load(tmp_path / "run")


@pytest.mark.parametrize("change", ["add", "remove"])
def test_best_weights_of_other_parameters_than_those_that_train_are_forgotten(tmp_path, change):
    model = Tokens()
    model.table.freeze()
    optimizer = AdamW([{"params": [p]} for p in model.trainable_parameters()], lr=0.05)

    def at_the_second(trainer):
        if len(trainer.history.epochs) == 2 and change == "add":
            model.table.freeze(False)
            optimizer.add_param_group({"params": list(model.table.parameters())})
        elif len(trainer.history.epochs) == 2:
            optimizer.param_groups.pop(0)

    options = {"patience": 3, "progress": False, "save_frozen": False, "on_epoch": at_the_second}
    trainer = Trainer(model, optimizer, loss, checkpoint=tmp_path / "run", **options)
    trainer.fit(micro_batches(), epochs=3, validation=micro_batches(7, 2))
    before = everything(trainer)
    trainer.load(tmp_path / "run")
    np.testing.assert_equal(everything(trainer), before)


def test_narrow_integers_of_numpy_are_numbers_of_epochs_and_steps():
    one = trainer()
    for _ in range(2):
        one.fit(micro_batches(), steps=np.int8(100))
    assert len(one.history.steps) == 200


def test_a_file_of_a_run_between_two_epochs_says_nothing_of_an_unfinished_one(tmp_path):
    one = trainer()
    one.fit(micro_batches(), epochs=1)
    one.save(tmp_path / "run")
    arrays, facts = load_state(tmp_path / "run")
    assert '"pass"' not in facts["minigrad.trainer"]
    save_state(tmp_path / "again", arrays, facts)
    trainer(3).load(tmp_path / "again")


@pytest.mark.parametrize("name", ["validate_every", "checkpoint_every"])
def test_impossible_numbers_of_steps_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be a positive integer"):
        trainer(**{name: 0})
    if name == "checkpoint_every":
        with pytest.raises(ValueError, match="checkpoint_every needs a checkpoint"):
            trainer(checkpoint_every=2)
