"""What may take long has a progress bar, that can be left out; what is fast has none."""

import copy
import io
import os
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import tqdm

import lora
from minigrad.kernels import start
from minigrad.nn import MLP
from minigrad.progress import progress_bar
from tests import notebooks


@pytest.fixture
def bars(monkeypatch):
    """What each bar that is made was asked for, in a terminal."""
    asked, made = [], tqdm.std.tqdm.__init__

    def recorded(self, items=None, **options):
        asked.append({"of": None if items is None else len(items), **options})
        made(self, items, **options)

    monkeypatch.setattr(tqdm.std.tqdm, "__init__", recorded)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    # Kernels that a test is the first to compile are not announced.
    monkeypatch.setattr(start, "before_compiling", None)
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
def test_what_takes_long_has_a_bar_unless_it_is_not_wanted(model, bars, use, items, total):
    use(copy.deepcopy(model), progress=False)
    assert bars == []
    use(model)
    (bar,) = bars
    assert (bar["of"], bar.get("total")) == (items, total)


def test_what_is_fast_has_no_bar(model, bars):
    lora.attach(model, lora.LoRAConfig(rank=2))
    assert bars == []


def test_in_a_file_there_is_a_bar_only_if_it_is_asked_for(bars, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert list(progress_bar(range(3), what="w", unit="u", shown=True)) == [0, 1, 2]
    assert bars == []
    assert list(progress_bar(range(3), what="w", unit="u", shown=True, in_files=True)) == [0, 1, 2]
    assert len(bars) == 1


def test_work_without_a_bar_is_used_like_one():
    with progress_bar(what="w", unit="u", shown=False, total=3) as bar:
        bar.set_postfix_str("epoch 1", refresh=False)
        bar.update()
        bar.update(2)
    bar.close()
    assert list(bar) == []


def test_a_bar_is_below_those_of_the_user(bars):
    with tqdm.tqdm(total=1, file=sys.stderr), progress_bar(what="w", unit="u", shown=True):
        pass
    assert bars[-1]["position"] == 1


class Lost(io.StringIO):
    """A terminal that is gone: its disk is full, or its reader has ended."""

    def write(self, text):
        raise BrokenPipeError("no reader")


def closed():
    terminal = io.StringIO()
    terminal.close()
    return terminal


@pytest.mark.parametrize("in_files", [True, False])
@pytest.mark.parametrize("terminal", [lambda: None, Lost, closed])
def test_work_goes_on_where_nothing_can_be_shown(terminal, in_files, monkeypatch):
    monkeypatch.setattr(Lost, "isatty", lambda self: True)
    monkeypatch.setattr(sys, "stderr", terminal())
    options = {"what": "w", "unit": "u", "shown": True, "in_files": in_files}
    for delay in (0.0, 0.01):
        bar = progress_bar(range(3), **options, delay=delay, mininterval=0)
        assert [time.sleep(0.02) or item for item in bar] == [0, 1, 2]
        with progress_bar(total=3, **options, delay=delay, mininterval=0) as bar:
            for _ in range(3):
                bar.set_postfix_str("epoch 1", refresh=False)
                bar.update()


@pytest.mark.parametrize("delay", [0.01, 60.0])
def test_a_bar_appears_while_the_first_item_is_worked_on(monkeypatch, delay):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(range(2), what="work", unit="part", shown=True, delay=delay) as bar:
        items = iter(bar)
        next(items)
        for _ in range(100 if delay < 1 else 5):
            if terminal.getvalue():
                break
            time.sleep(0.05)
        assert ("work:   0%" in terminal.getvalue()) == (delay < 1)
    *_, left = terminal.getvalue().rstrip("\r").split("\r")
    assert not left.strip(), "it is cleared at the end"


AFTER_A_KILLED_CHILD = """
import os, signal, tqdm
from minigrad.progress import progress_bar
tqdm.tqdm(disable=True)  # makes the lock that tqdm shares with processes that are forked
child = os.fork()
if not child:
    with tqdm.tqdm.get_lock():
        os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
for shown in (False, True):
    with progress_bar(range(3), what="w", unit="u", shown=shown, in_files=True) as bar:
        print(sum(bar))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_lock_that_a_killed_child_held_does_not_stop_work():
    python = [sys.executable, "-W", "ignore::DeprecationWarning", "-u", "-c", AFTER_A_KILLED_CHILD]
    ran = subprocess.run(python, capture_output=True, text=True, timeout=60)
    assert ran.stdout.split() == ["3", "3"], ran.stderr
    assert ran.returncode == 0


def test_bars_in_several_threads_leave_the_warning_filters_as_they_are(monkeypatch):
    """Contexts of `warnings.catch_warnings` that overlap in threads restore what is not theirs."""
    entered = []
    enter = warnings.catch_warnings.__enter__
    monkeypatch.setattr(
        warnings.catch_warnings, "__enter__", lambda self: entered.append(1) or enter(self)
    )

    def work():
        assert list(progress_bar(range(3), what="w", unit="u", shown=True, in_files=True))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entered == []


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
