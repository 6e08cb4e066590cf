"""The recorder of calls, on which the instruments and the tape are built."""

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn, observe
from minigrad.diagnostics.recorder import Recorder
from minigrad.readonly import WeakIdMap


class Log(Recorder):
    """Records each call, with what was running."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_call(self, op, inputs, result):
        self.seen.append((op.name, tuple(self.running), self.is_in_derivative))
        if getattr(result, "node", None) is not None:
            self.calls[result.node] = self.record(op.name)


def leaf(values):
    return mg.tensor(np.array(values, np.float32), requires_grad=True)


def test_a_call_has_its_line_and_its_module():
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Tanh()))
    with mg.viz.record() as tape:
        loss = model(np.ones((1, 2), np.float32)).sum()
    last = tape.calls[loss.node]
    assert (last.name, last.module, last.recorded) == ("sum", None, True)
    assert last.source_line.text == "loss = model(np.ones((1, 2), np.float32)).sum()"
    (tanh,) = [call for call in tape.calls.values() if call.name == "tanh"]
    assert [type(call.module).__name__ for call in tanh.module.chain()] == [
        "Sequential",
        "Sequential",
        "Tanh",
    ]
    names = [tanh.module.name_in(outer) for outer in (tanh.module.parent, tanh.module.chain()[0])]
    assert names == ["0", "1.0"]


def test_a_tape_says_what_is_on_it():
    model = nn.Linear(2, 1)
    with mg.viz.record() as tape:
        assert repr(tape) == "Tape(0 calls)"
        model(np.ones((1, 2), np.float32)).sum()
    assert repr(tape) == "Tape(2 calls, modules Linear)"
    with mg.viz.record() as tape:
        mg.exp(leaf([1.0]))
    assert repr(tape) == "Tape(1 call)"


def test_records_keep_no_graph_alive():
    with observe(Log()) as log:
        y = leaf([1.0]) * 2
        (call,) = log.calls.values()
        assert (call.name, call.inputs, call.result) == ("multiply", (), None)
        del call
        del y
        assert len(log.calls) == 0


def test_what_runs_in_a_backward_pass_is_distinguished():
    x = leaf([0.5])
    h = mg.checkpoint(mg.sin, x)
    h.register_hook(lambda g: mg.exp(g))
    with observe(Log()) as log:
        (h * 2).backward()
    running = {name: (kinds, derivative) for name, kinds, derivative in log.seen}
    assert running["exp"] == (("pass", "hook"), False)
    assert running["sin"] == (("pass", "rerun"), False)
    assert running["cos"][1]
    assert log.running == []


def test_what_began_before_anyone_watched_ends_without_harm():
    log = Log()
    log.on_pass(False)
    log.on_module(nn.Tanh(), False)
    assert (log.running, log.module) == ([], None)


def test_a_method_that_takes_a_value_out_of_the_graph_is_recorded_by_its_name():
    with mg.viz.record() as tape:
        x = leaf([1.0])
        y = x.detach()
    call = tape.left(y)
    assert (call.name, call.inputs, call.result) == ("detach()", (x,), y)
    assert call.source_line.text == "y = x.detach()"


@pytest.mark.parametrize("make", [lambda: np.ones(2), lambda: mg.ones(2)])
def test_a_map_by_identity_forgets_what_is_gone(make):
    known = WeakIdMap()
    one, equal = make(), make()
    known[one] = "one"
    assert (known.get(one), known.get(equal), known.get(None)) == ("one", None, None)
    known[one] = "other"
    assert known.get(one) == "other"
    del one
    assert len(known) == 0
