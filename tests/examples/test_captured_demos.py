"""The demos that can train by the program of a step: the same bits with it and without."""

import copy

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the examples need the `examples` extra")
pytest.importorskip("sklearn", reason="the examples need the `examples` extra")

import lora
from examples import charlm, digits, spirals
from examples.charlm.model import CharacterModel, Sizes
from examples.charlm.training import Schedule, train
from examples.command_line import Parser, run
from examples.digits import demo
from examples.digits.data import UPRIGHT, split
from minigrad.nn import MLP
from minigrad.programs import captured
from tests.examples.test_small_demos import check_parted


@pytest.fixture
def programs(monkeypatch):
    """The texts of the programs that are made during a test."""
    made = []

    class Noted(captured.Program):
        def compile(self, zeroed):
            super().compile(zeroed)
            made.append(self.source)

    monkeypatch.setattr(captured, "Program", Noted)
    return made


def bits(model):
    return {name: value.tobytes() for name, value in model.state_dict().items()}


@pytest.mark.full
def test_spirals(tmp_path, capsys, programs):
    eager = spirals.main(True, tmp_path / "eager.png")
    check_parted(eager, 250, capsys.readouterr().out, tmp_path / "eager.png")
    assert programs == []
    fast = spirals.main(True, tmp_path / "fast.png", capture=True)
    assert len(programs) == 1
    assert fast.history["loss"] == eager.history["loss"]
    assert fast.history["grad_norm"] == eager.history["grad_norm"]
    for one, other in zip(eager.moments, fast.moments, strict=True):
        assert one.probability.tobytes() == other.probability.tobytes()


@pytest.mark.parametrize("adapted", [False, pytest.param(True, marks=pytest.mark.full)])
def test_digits(programs, adapted):
    rows = split(np.random.default_rng(0)).train[UPRIGHT]
    models = []
    for capture in (False, True):
        rng = np.random.default_rng(0)
        model = MLP(demo.SIZES, rng=rng)
        if adapted:
            lora.attach(model, demo.CONFIG, rng=rng)
        start = bits(model)
        demo.train(model, rows, 1e-2, 2, rng, capture)
        assert bits(model) != start
        models.append(bits(model))
        assert len(programs) == 2 * capture  # of whole batches, and of the last one
    assert models[0] == models[1]


@pytest.mark.full
@pytest.mark.parametrize("adapted", [False, True])
def test_charlm(programs, adapted):
    text = np.random.default_rng(1).integers(0, 20, 500)
    schedule = Schedule(12, lr=1e-2, batch_size=3, looks=2)
    start = CharacterModel(20, Sizes(8, 2, 2, 8), np.random.default_rng(0))
    models = []
    for capture in (False, True):
        model, rng = copy.deepcopy(start), np.random.default_rng(2)
        if adapted:
            lora.attach(model, charlm.demo.CONFIG, rng=rng)
        train(model, text, schedule, rng, captured=capture)
        models.append(bits(model))
        assert len(programs) == capture
    assert models[0] == models[1]
    assert models[0] != bits(start)


@pytest.mark.full
@pytest.mark.parametrize("main", [charlm.main, digits.main])
def test_a_whole_demo_prints_the_same(tmp_path, capsys, monkeypatch, programs, main):
    schedule = Schedule(steps=20, lr=1e-2, batch_size=4, looks=2)
    plan = charlm.demo.Plan(Sizes(16, 2, 1, 16), schedule, schedule, tested=100, written=20)
    monkeypatch.setattr(charlm.demo, "QUICK", plan)
    monkeypatch.setattr(charlm.demo, "check", lambda *args: None)  # so little teaches nothing
    main(True, tmp_path / "picture.png")
    eager = capsys.readouterr().out
    main(True, tmp_path / "picture.png", capture=True)
    assert capsys.readouterr().out == eager
    assert programs


def test_the_option_is_handed_on():
    seen = []
    run(lambda **options: seen.append(options), Parser("x", "").with_capture(), ["--capture"])
    run(lambda **options: seen.append(options), Parser("x", "").with_capture(), [])
    assert seen == [{"capture": True}, {}]
