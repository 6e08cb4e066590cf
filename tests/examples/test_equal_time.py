"""A CNN and an MLP that learn to read digits in equal time: fair turns, the table, the picture."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the examples need the `examples` extra")
pytest.importorskip("sklearn", reason="the examples need the `examples` extra")

import minigrad as mg
from examples import __main__ as runner
from examples import digits
from examples.digits import demo, equal_time
from examples.digits.data import UPRIGHT, split
from examples.digits.equal_time import (
    CNN,
    DENSE,
    SHIFTED,
    TURN,
    Learner,
    Reader,
    comparison,
    gains,
    images,
    shifted,
    train_in_turns,
)
from minigrad.programs import captured
from tests.examples.test_examples import is_picture


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The quick form, run once: its result, and the picture."""
    out = tmp_path_factory.mktemp("digits") / "cnn.png"
    return digits.main(quick=True, out=out, cnn=True), out


@pytest.mark.full
def test_both_train_for_the_same_time(compared):
    ((dense, cnn),) = [result.values() for result in compared[0]]
    for reader in (dense, cnn):
        assert 0.4 <= reader.seconds < 0.8  # the last turn may end later
        assert reader.steps % TURN == 0
    assert dense.steps > cnn.steps > 0
    assert (dense.trained, cnn.trained) == (85_002, 160 + 4_640 + 5_130)


@pytest.mark.full
def test_the_cnn_reads_more_of_the_shifted_digits(compared):
    (result,), _ = compared
    assert gains([result], SHIFTED) > 0.05
    for reader in result.values():
        assert reader.accuracy[UPRIGHT] > 0.9
        assert np.mean(reader.answers == reader.test.y) == reader.accuracy[UPRIGHT]
        assert np.all(np.diff([seconds for seconds, _ in reader.curve]) > 0)


@pytest.mark.full
def test_its_picture_is_there(compared):
    assert is_picture(compared[1], width=1200, height=650)


def test_the_next_turn_is_of_the_one_that_has_trained_for_less_time(monkeypatch):
    turns = []

    def take_turn(learner, x, y, budget):
        assert mg.get_num_threads() == 1
        name = DENSE if learner.rate == equal_time.RATES[DENSE] else CNN
        learner.seconds += {DENSE: 1.0, CNN: 3.0}[name]
        turns.append(name)

    monkeypatch.setattr(Learner, "take_turn", take_turn)
    threads = mg.get_num_threads()
    readers = train_in_turns(np.random.default_rng(0), 6.0)
    assert turns == [DENSE, CNN, DENSE, DENSE, DENSE, CNN, DENSE, DENSE]
    assert [reader.seconds for reader in readers.values()] == [6.0, 6.0]
    assert mg.get_num_threads() == threads


@pytest.mark.full
def test_the_rate_falls_with_the_seconds():
    x, y = images(split(np.random.default_rng(0)).train[UPRIGHT])
    learner, rates = Learner(CNN, np.random.default_rng(0), False), []
    for seconds in (0.0, 0.5, 1.0):
        learner.seconds = seconds
        learner.take_turn(x, y, budget=1.0)
        rates.append(learner.optimizer.lr / learner.rate)
        assert learner.seconds > seconds
    assert rates == pytest.approx([1, 0.5, 0])
    assert len(learner.trainer.history.steps) == 3 * TURN


@pytest.mark.parametrize("name", [DENSE, CNN])
def test_a_turn_by_a_program_gives_the_same_bits(monkeypatch, name):
    made = []
    compiled = captured.Program.compile
    monkeypatch.setattr(
        captured.Program, "compile", lambda *inputs: made.append(1) or compiled(*inputs)
    )
    x, y = images(split(np.random.default_rng(0)).train[UPRIGHT])
    bits = []
    for capture in (False, True):
        learner = Learner(name, np.random.default_rng(0), capture)
        learner.take_turn(x, y, budget=1.0)
        bits.append({key: v.tobytes() for key, v in learner.model.state_dict().items()})
        assert len(made) == capture
    assert bits[0] == bits[1]


def test_shifted_images_move_by_a_pixel_and_what_comes_in_is_white():
    x = np.random.default_rng(0).uniform(-1, 1, (3, 1, 8, 8)).astype(np.float32)
    down, left = shifted(x, 1, 0), shifted(x, 0, -1)
    assert np.array_equal(down[:, :, 1:], x[:, :, :-1])
    assert np.all(down[:, :, 0] == -1)
    assert np.array_equal(left[..., :-1], x[..., 1:])
    assert np.all(left[..., -1] == -1)


@pytest.mark.full
def test_the_table_has_both_and_their_difference(compared):
    (result,), _ = compared
    lines = comparison([result], 0.4).splitlines()
    assert max(map(len, lines)) <= 100
    numbers = [float(line.split()[-1]) for line in lines[1:4]]
    assert numbers[1] - numbers[0] == pytest.approx(numbers[2], abs=0.11)
    assert [line.split()[0] for line in lines[1:4]] == [DENSE, CNN, "difference"]
    warning = "One split does not show which network reads upright digits better"
    assert lines[-2].startswith(warning)
    assert warning not in comparison([result, result], 0.4)


def test_several_splits_say_whether_a_difference_is_clear(monkeypatch):
    """Against the formula: mean 0.02, sample deviation 0.02, so two standard errors are 0.0231."""
    gained = {UPRIGHT: np.array([0.0, 0.02, 0.04]), SHIFTED: np.array([0.1, 0.1, 0.1])}
    monkeypatch.setattr(equal_time, "gains", lambda results, kind: gained[kind])
    monkeypatch.setattr(equal_time, "shares", lambda results, name, kind: gained[kind])
    result = {name: Reader({}, 0, 0, None, 1.0, 10, [], None, None) for name in (DENSE, CNN)}
    upright, shifted = comparison([result] * 3, 1.0).splitlines()[-2:]
    assert upright == (
        "CNN against MLP, upright: 2.0 +- 2.3 points (two standard errors), inside the noise."
    )
    assert shifted == "CNN against MLP, shifted: 10.0 +- 0.0 points (two standard errors), clear."


def test_the_option_is_handed_on(monkeypatch):
    seen = []
    monkeypatch.setattr(digits, "main", lambda **options: seen.append(options))
    for arguments in (["--cnn", "--capture"], []):
        runner.main(["digits", *arguments])
    assert seen == [{"cnn": True, "capture": True}, {}]


def test_the_picture_of_the_comparison_does_not_replace_the_other_one(monkeypatch):
    for name in ("adapt", "compare"):
        monkeypatch.setattr(demo, name, lambda quick, out, capture: out)
    assert (digits.main(), digits.main(cnn=True)) == ("digits.png", "digits_cnn.png")
    assert digits.main(cnn=True, out="mine.png") == "mine.png"


@pytest.mark.full
def test_the_whole_comparison(tmp_path, monkeypatch):
    """With half of its splits."""
    monkeypatch.setattr(demo, "SPLITS_IN_TURNS", 6)
    results = digits.main(out=tmp_path / "cnn.png", cnn=True)
    assert len(results) == 6
    assert gains(results, SHIFTED).mean() > 0.1
    assert is_picture(tmp_path / "cnn.png", width=1200, height=650)
