"""Ctrl-C at random lines of the library, while it writes files or changes a model."""

import random
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import lora
import minigrad
from tests.chaos import saving, seeds
from tests.chaos.lines import Lines

INTERRUPTS = {"save": 200, "merge": 40, "extract": 20}

LIBRARIES = tuple(str(Path(each.__file__).parent) for each in (lora, minigrad))


def lines_of(run, stop=None):
    """Run, with a KeyboardInterrupt at a line of the library; return the number of lines."""
    with Lines(LIBRARIES, stop) as lines:
        run()
    return lines.count


# An interrupt may come before the line that closes a file.
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.full
@pytest.mark.parametrize("command", INTERRUPTS)
def test_an_interrupt_is_one_and_loses_nothing(command, tmp_path):
    saving.prepare(tmp_path)
    out = tmp_path / "out"
    run = saving.action(command, tmp_path)
    known = [saving.saved(command, run, text, out) for text in ("old", "new")]
    run("old", out)
    length = lines_of(lambda: run("new", out))
    for seed in seeds(INTERRUPTS[command]):
        rng = random.Random(seed)
        # Half of them near the end, where files are renamed.
        first = length - 200 if rng.random() < 0.5 else 1
        run("old", out)
        with pytest.raises(KeyboardInterrupt):
            lines_of(lambda: run("new", out), rng.randint(first, length - 20))
        assert saving.ours(command, out) == saving.others(command, out), seed
        assert saving.ours(command, out) in known, seed
        run("old", out)
        assert not any(each.name.startswith(".") for each in out.iterdir()), seed


def adapted(count):
    """A model with this number of adapters, which train its last layer in full too."""
    rng = np.random.default_rng(0)
    model = minigrad.nn.MLP([4, 6, 6, 3], rng=rng)
    for name in ("first", "second")[:count]:
        lora.attach(model, CONFIG, adapter=name, rng=rng)
    return model


def state_of(model):
    """What training and further calls depend on."""
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modules = {name: type(module) for name, module in model.named_modules()}
    try:
        return flags, modules, list(lora.adapters(model)), lora.active(model)
    except ValueError:  # it has none
        return flags, modules


CONFIG = lora.LoRAConfig(rank=2, targets=["layers.0", "layers.1"], modules_to_save=["layers.2"])

CHANGES = {
    "attach": (0, lambda model: lora.attach(model, CONFIG)),
    "attach a second": (1, lambda model: lora.attach(model, CONFIG, adapter="second")),
    "switch": (2, lambda model: lora.switch(model, "first")),
    "combine": (2, lambda model: lora.combine(model, ["first"], [0.5], "third")),
    "remove": (2, lambda model: lora.remove(model, "second")),
    "detach": (2, lora.detach),
    "fold": (1, lora.fold),
    "quantize": (0, lambda model: lora.quantize(model, ["layers.0", "layers.1"])),
}


# An interrupt in a finaliser is lost.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("change", CHANGES)
def test_ctrl_c_leaves_the_old_model_or_the_new_one(change):
    count, make = CHANGES[change]
    model, folder = adapted(count), str(Path(lora.__file__).parent)
    with Lines(folder) as lines:
        make(model)
    known = [state_of(adapted(count)), state_of(model)]
    rng = random.Random(0)
    for stop in {*rng.sample(range(1, lines.count), 30), *range(lines.count - 30, lines.count)}:
        model = adapted(count)
        with suppress(KeyboardInterrupt), Lines(folder, stop):
            make(model)
        assert state_of(model) in known, stop
        if state_of(model) == known[0]:
            make(model)  # again, and to the end
            assert state_of(model) == known[1], stop


def test_ctrl_c_while_adapters_are_turned_on_again_leaves_none_off(monkeypatch):
    model, resume = adapted(1), lora.LoRALayer.resume

    def interrupted(layer):
        signal.raise_signal(signal.SIGINT)
        resume(layer)

    with pytest.raises(KeyboardInterrupt), lora.disabled(model):
        monkeypatch.setattr(lora.LoRALayer, "resume", interrupted)
    assert all(m.enabled for m in model.modules() if isinstance(m, lora.LoRALayer))
    lora.detach(model)  # which is refused inside of `disabled`


def test_ctrl_c_in_a_diagnosis_leaves_the_model_as_it_was():
    model, folder = adapted(1), str(Path(minigrad.nn.__file__).parent)
    batch = minigrad.randn(5, 4), minigrad.randn(5, 3)

    def diagnose(stop=None):
        with Lines(folder, stop, "call") as calls:
            minigrad.liveness(model, minigrad.mse, batch)
        return calls.count

    count, before = diagnose(), state_of(model)
    with minigrad.no_grad():
        y = model(batch[0]).numpy()
    for stop in range(1, count, 3):
        with suppress(KeyboardInterrupt):
            diagnose(stop)
        assert state_of(model) == before, stop
        with minigrad.no_grad():
            assert (model(batch[0]).numpy() == y).all(), stop


def test_ctrl_c_at_the_end_of_applied_averages_restores_all_weights(monkeypatch):
    model, copy = minigrad.nn.MLP([4, 6, 3]), minigrad.Tensor.copy_
    ema = minigrad.optim.EMA(model)
    minigrad.nn.init.zeros_(model.layers[0].weight)
    minigrad.nn.init.zeros_(model.layers[1].weight)
    weights = [p.detach().numpy().copy() for p in model.parameters()]

    def interrupted(tensor, value):
        signal.raise_signal(signal.SIGINT)
        return copy(tensor, value)

    with pytest.raises(KeyboardInterrupt), ema.applied():
        monkeypatch.setattr(minigrad.Tensor, "copy_", interrupted)
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        assert (parameter.detach().numpy() == weight).all()
