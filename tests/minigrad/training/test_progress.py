"""What may take long has a progress bar, that can be left out; what is fast has none."""

import copy

import numpy as np
import pytest
import tqdm.auto

import lora
from minigrad.nn import MLP
from tests import notebooks


@pytest.fixture
def bars(monkeypatch):
    """What each bar that is made was asked for."""
    asked = []

    class Recorded(tqdm.auto.tqdm):
        def __init__(self, *args, **options):
            asked.append({"of": None if not args or args[0] is None else len(args[0]), **options})
            super().__init__(*args, **options)

    monkeypatch.setattr(tqdm.auto, "tqdm", Recorded)
    return asked


@pytest.fixture
def model():
    return MLP([6, 8, 5], rng=np.random.default_rng(0))


def attached(model, **options):
    lora.attach(model, lora.LoRAConfig(rank=2, init="pissa"), **options)


def merged(model, **options):
    lora.attach(model, lora.LoRAConfig(rank=2))
    lora.merge(model, **options)


def extracted(model, **options):
    other = copy.deepcopy(model)
    for layer in other.layers:
        layer.weight.copy_(layer.weight.data + 1)
    lora.extract(model, other, 2, **options)


@pytest.mark.parametrize(
    ("use", "items", "total"),
    [
        (attached, 2, None),
        (extracted, 2, None),
        (lora.quantize, 2, None),
        (merged, None, 6 * 8 + 8 * 5),
    ],
)
@pytest.mark.parametrize("shown", [True, False])
def test_what_takes_long_has_a_bar_unless_it_is_not_wanted(model, bars, use, items, total, shown):
    use(model, progress=shown)
    (bar,) = bars
    assert (bar["of"], bar.get("total")) == (items, total)
    assert bar["disable"] is (None if shown else True)  # None: shown in a terminal


def test_there_is_a_bar_if_nothing_is_said(model, bars):
    attached(model)
    assert [bar["disable"] for bar in bars] == [None]


def test_what_is_fast_has_no_bar(model, bars):
    lora.attach(model, lora.LoRAConfig(rank=2))
    assert bars == []


def shown_in_a_notebook(environment):
    """What a cell shows that goes through a bar, after a line of code about the environment."""
    line = f"import os; {environment}"
    bar = "progress_bar(range(3), what='a bar', unit='item', shown=True, delay=0.0)"
    source = f"{line}\nfrom minigrad.progress import progress_bar\nfor _ in {bar}: pass"
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": source, "outputs": []}
    made = {"cells": [cell | {"execution_count": None}], "metadata": {}, "nbformat": 4}
    (ran,) = notebooks.run(made | {"nbformat_minor": 5})["cells"]
    return str(ran["outputs"])


@pytest.mark.full
def test_a_notebook_shows_bars_unless_its_environment_is_against_it():
    pytest.importorskip("nbclient", reason="running notebooks needs the `full` extra")
    assert "a bar" in shown_in_a_notebook("del os.environ['TQDM_DISABLE']")
    assert "a bar" not in shown_in_a_notebook("os.environ['TQDM_DISABLE'] = '1'")
