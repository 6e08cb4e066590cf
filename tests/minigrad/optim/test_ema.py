"""Averages of weights: PyTorch's numbers, the block in which they apply, and states."""

import copy
import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import minigrad
from minigrad.nn import MLP, Parameter
from minigrad.optim import EMA, SGD, Adam

FIXTURE = Path(__file__).parents[2] / "fixtures" / "optim.safetensors"
with safe_open(FIXTURE, framework="numpy") as file:
    REFERENCE = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    FACTS = {name: json.loads(text) for name, text in file.metadata().items()}


def parameter(values, dtype=np.float64):
    return Parameter(np.asarray(values, dtype))


def averages(ema):
    return ema.state_dict()["averages"]


def set_to(p, value):
    p.copy_(np.full(p.shape, value))


@pytest.fixture
def model():
    return MLP([2, 3, 1], rng=np.random.default_rng(0))


@pytest.fixture
def moved(model):
    """An average of the model's weights after steps that moved them."""
    ema = EMA(model, decay=0.5)
    for value in (1.0, 2.0):
        for p in model.parameters():
            set_to(p, value)
        ema.update()
    return ema


# ----------------------------------------------------------------------------------------------
# The average
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", FACTS["decays"])
def test_the_averages_are_those_of_pytorch(decay):
    x, y = (minigrad.tensor(REFERENCE[name]) for name in ("x", "y"))
    w, b, v, scale, late = parameters = [
        parameter(REFERENCE[name]) for name in ("w", "b", "v", "scale", "late")
    ]
    name, options = FACTS["cases"][FACTS["averaged"]]
    assert name == "Adam"
    optimizer = Adam(parameters, **options)
    ema = EMA(parameters, decay)
    rows = []
    for step in range(1, FACTS["snapshots"][-1] + 1):
        optimizer.zero_grad()
        hidden = minigrad.tanh(x @ w.T + b)
        out = scale * (hidden @ v.reshape(4, 1)).reshape(7)
        loss = ((out - y) ** 2).mean()
        if step % 3 == 0:
            loss = loss + ((late - 0.5) ** 4).sum()
        loss.backward()
        optimizer.step()
        ema.update()
        if step in FACTS["snapshots"]:
            rows.append(np.concatenate([a.ravel() for a in averages(ema).values()]))
    np.testing.assert_allclose(rows, REFERENCE[f"ema {decay}"], rtol=0, atol=1e-12)


def test_the_first_update_counts():
    p = parameter([1.0, 2.0])
    ema = EMA([p], decay=0.75)
    assert averages(ema)["0"].tolist() == [1.0, 2.0]
    set_to(p, 5.0)
    ema.update()
    assert averages(ema)["0"].tolist() == [2.0, 2.75]
    assert ema.updates == 1
    assert p.tolist() == [5.0, 5.0]


def test_warm_up_ramps_the_decay():
    p = parameter([0.0])
    ema = EMA([p], decay=0.25, warmup=True)
    expected = 0.0
    for n, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 0.25, 0.25]):
        set_to(p, n + 1.0)
        ema.update()
        expected = decay * expected + (1 - decay) * (n + 1.0)
        np.testing.assert_allclose(averages(ema)["0"], [expected], rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_average_of_a_weight_that_stays_is_the_weight_to_the_bit(rng, dtype):
    p = parameter(rng.standard_normal(1000), dtype)
    ema = EMA([p], decay=0.9)
    for _ in range(50):
        ema.update()
    assert np.array_equal(averages(ema)["0"], p.data)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_memory_that_is_not_contiguous_is_read(rng, dtype):
    base = rng.standard_normal((6, 8)).astype(dtype)
    strided = minigrad.Tensor(base[::2, ::2], requires_grad=True)
    turned = minigrad.Tensor(base.T, requires_grad=True)
    ema = EMA([strided, turned], decay=0.5)
    before = base.copy()
    base[...] = 1
    ema.update()
    first, second = averages(ema).values()
    assert first.dtype == second.dtype == (np.float64 if dtype is np.float64 else np.float32)
    tolerance = 4 * np.finfo(dtype).eps
    half = (before + dtype(1)) / dtype(2)
    np.testing.assert_allclose(first, half[::2, ::2], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(second, half.T, rtol=tolerance, atol=tolerance)
    assert (base == 1).all()


def test_averages_of_half_precision_are_in_single_and_do_not_stand_still():
    p = parameter([1.0, 2.0], np.float16)
    ema = EMA([p], decay=0.9999)
    set_to(p, 2.0)
    for _ in range(1000):
        ema.update()
    expected = 2 - 0.9999**1000
    np.testing.assert_allclose(averages(ema)["0"], [expected, 2], rtol=1e-4)
    with ema.applied():
        assert p.dtype == np.float16
        np.testing.assert_allclose(p.data, [expected, 2], rtol=1e-3)  # float16 rounds to 5e-4
    assert (p.data == 2).all()

    state = ema.state_dict()
    state["averages"]["0"] = np.float16([1.5, 2])  # as earlier versions saved it
    ema.load_state_dict(state)
    assert averages(ema)["0"].dtype == np.float32
    ema.copy_to()
    assert p.dtype == np.float16
    assert (p.data == [1.5, 2]).all()


def test_a_model_that_is_converted_takes_its_averages_along(model):
    ema = EMA(model, decay=0.5)
    before = averages(ema)["layers.0.weight"]
    model.astype(np.float64)
    ema.update()
    after = averages(ema)["layers.0.weight"]
    assert after.dtype == np.float64
    assert np.array_equal(after, before)
    ema.copy_to()
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float64)}


def test_frozen_parameters_have_no_average(model):
    model.layers[0].freeze()
    ema = EMA(model)
    names = ["layers.1.weight", "layers.1.bias"]
    assert list(ema.parameters) == list(averages(ema)) == names
    assert list(EMA(list(model.parameters())).parameters) == ["2", "3"]
    model.layers[0].freeze(False)
    with pytest.raises(RuntimeError, match=r"layers.0.weight was frozen when the averages were"):
        ema.update()
    assert ema.updates == 0


def test_a_parameter_frozen_later_keeps_its_average(model):
    ema = EMA(model, decay=0.5)
    set_to(model.layers[0].bias, 1.0)
    model.layers[0].freeze()
    ema.update()
    assert averages(ema)["layers.0.bias"].tolist() != [1.0] * 3
    ema.copy_to()
    assert np.array_equal(model.layers[0].bias.data, averages(ema)["layers.0.bias"])


def test_repr_counts():
    ema = EMA([parameter(np.zeros((40, 30))), parameter([1.0])], decay=0.9, warmup=True)
    ema.update()
    assert repr(ema) == "EMA(2 tensors, 1,201 parameters, decay=0.9, warmup=True, updates=1)"


def test_a_model_and_its_averages_can_be_deep_copied_together(moved, model):
    twin, other = copy.deepcopy((model, moved))
    before = model.state_dict(), averages(moved)
    for p in twin.parameters():
        set_to(p, 9.0)
    other.update()
    other.copy_to()
    np.testing.assert_equal((model.state_dict(), averages(moved)), before)


def test_a_copy_that_was_made_inside_of_applied_is_outside(moved, model):
    with moved.applied():
        twin, other = copy.deepcopy((model, moved))
    other.update()
    assert other.updates == moved.updates + 1
    assert next(iter(other.parameters.values())) is next(twin.parameters())


# ----------------------------------------------------------------------------------------------
# In the parameters
# ----------------------------------------------------------------------------------------------


def test_the_averages_apply_within_the_block_only(moved, model):
    weights, memory = model.state_dict(), [p.data for p in model.parameters()]
    with moved.applied() as nothing:
        assert nothing is None
        np.testing.assert_equal(model.state_dict(), averages(moved))
        assert all(p.requires_grad for p in model.parameters())
    np.testing.assert_equal(model.state_dict(), weights)
    assert all(p.data is m for p, m in zip(model.parameters(), memory, strict=True))
    assert not np.array_equal(weights["layers.0.weight"], averages(moved)["layers.0.weight"])


def test_the_weights_come_back_to_the_bit():
    odd = np.array([0x7FC00001, 0x80000000, 0x00000001, 0xFF800000], np.uint32)  # nan, -0, ...
    p = Parameter(odd.view(np.float32))
    ema = EMA([p], decay=0.5)
    with ema.applied():
        p.data.sum()
    assert np.array_equal(p.data.view(np.uint32), odd)


def test_the_weights_come_back_after_an_error(moved, model):
    weights = model.state_dict()
    with pytest.raises(ZeroDivisionError), moved.applied():
        set_to(model.layers[0].bias, 1 / 0)
    np.testing.assert_equal(model.state_dict(), weights)
    with moved.applied():
        np.testing.assert_equal(model.state_dict(), averages(moved))


def test_the_averages_can_be_written_for_good(moved, model):
    assert moved.copy_to() is None
    np.testing.assert_equal(model.state_dict(), averages(moved))
    set_to(model.layers[0].bias, 77.0)
    assert 77.0 not in averages(moved)["layers.0.bias"]


@pytest.mark.parametrize("write", [EMA.copy_to, lambda ema: ema.applied().__enter__()])
def test_a_graph_that_saved_the_weights_sees_that_they_are_written(write):
    p = parameter([1.0, 2.0])
    ema = EMA([p])
    square = (p * p).sum()
    write(ema)
    with pytest.raises(RuntimeError, match=r"written|changed"):
        square.backward()


def test_a_graph_of_the_block_sees_that_the_weights_come_back():
    p = parameter([1.0, 2.0])
    ema = EMA([p])
    with ema.applied():
        square = (p * p).sum()
    with pytest.raises(RuntimeError, match=r"written|changed"):
        square.backward()


@pytest.mark.parametrize(
    "use",
    [
        lambda ema: ema.applied().__enter__(),
        EMA.update,
        EMA.copy_to,
        lambda ema: ema.load_state_dict(ema.state_dict()),
    ],
)
def test_what_cannot_be_done_within_the_block_is_an_error(moved, model, use):
    weights, before = model.state_dict(), moved.state_dict()
    with moved.applied():
        with pytest.raises(RuntimeError, match=r"inside applied\(\), where the averages replace"):
            use(moved)
        np.testing.assert_equal(model.state_dict(), averages(moved))
    np.testing.assert_equal(model.state_dict(), weights)
    np.testing.assert_equal(moved.state_dict(), before)


def step(model):
    for p in model.parameters():
        p.grad = minigrad.ones_like(p)
    SGD(model.parameters()).step()


def replace(model):
    model.layers[0].bias.data = np.ones(3, np.float32)


@pytest.mark.parametrize(
    "write", [step, replace, lambda model: model.load_state_dict(model.state_dict())]
)
def test_a_write_within_the_block_is_an_error_that_says_what_is_lost(moved, model, write):
    weights = model.state_dict()
    message = r"layers.0.bias.* changed inside applied\(\).* lost"
    with pytest.raises(RuntimeError, match=message), moved.applied():
        write(model)
    np.testing.assert_equal(model.state_dict(), weights)
    with moved.applied():
        np.testing.assert_equal(model.state_dict(), averages(moved))


# ----------------------------------------------------------------------------------------------
# States
# ----------------------------------------------------------------------------------------------


def test_a_state_goes_on_bit_for_bit(moved, model):
    twin = copy.deepcopy(model)
    other = EMA(twin, decay=0.1, warmup=True)
    other.load_state_dict(moved.state_dict())
    assert (other.decay, other.warmup, other.updates) == (0.5, False, 2)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        set_to(p, 0.3)
        set_to(q, 0.3)
    moved.update()
    other.update()
    np.testing.assert_equal(other.state_dict(), moved.state_dict())


def test_a_state_is_a_copy_on_both_ways(moved):
    state = moved.state_dict()
    before = copy.deepcopy(state)
    for _ in range(2):
        moved.update()
        np.testing.assert_equal(state, before)
        moved.load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"updates": -1}, ValueError, "updates must be an integer of at least 0"),
        ({"decay": 1.5}, ValueError, "decay must be in"),
        ({"warmup": 1}, TypeError, "warmup must be True or False"),
        ({"averages": {}}, ValueError, r"missing: 0 .*\s+missing: 1"),
        ({"averages": {"0": np.ones(2), "1": np.ones(1), "2": 0}}, ValueError, "unexpected: 2"),
        ({"averages": {"0": np.ones(2), "1": np.ones(2)}}, ValueError, r"mis-shaped: 1 is \(2,\)"),
        (
            {"averages": {"0": np.ones(2), "1": ["a"]}},
            ValueError,
            "unusable: 1: .*a tensor contains",
        ),
        ({"averages": None}, TypeError, "the state is a dict of arrays"),
        ({"steps": 1}, ValueError, r"a state of an EMA is a dict of .*'updates'"),
    ],
)
def test_a_state_that_does_not_fit_is_an_error_and_changes_nothing(change, error, message):
    ema = EMA([parameter([1.0, 2.0]), parameter([3.0])])
    before = ema.state_dict()
    fitting = {"averages": {"0": np.ones(2), "1": np.ones(1)}, "updates": 3, "decay": 0.1}
    with pytest.raises(error, match=message):
        ema.load_state_dict({**before, **fitting, **change})
    np.testing.assert_equal(ema.state_dict(), before)


@pytest.mark.parametrize("state", [None, {}, [1]])
def test_something_else_is_no_state(state):
    with pytest.raises(ValueError, match="a state of an EMA is a dict of"):
        EMA([parameter([1.0])]).load_state_dict(state)


# ----------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------

leaf = minigrad.ones((2,), requires_grad=True)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        (leaf, TypeError, "EMA: parameters without a Module are a list of tensors, in the same"),
        (3, TypeError, "EMA: parameters without a Module are a list .*, not 3"),
        ({leaf}, TypeError, "EMA: parameters without a Module are a list .* same order"),
        (
            [leaf, np.ones(2)],
            TypeError,
            "element 1 must be a Tensor, not ndarray",
        ),
        ([leaf * 2], ValueError, r"parameter 0 is .*multiply.* no leaf"),
        ([], ValueError, "none of the parameters requires a gradient"),
        ([leaf.detach(), minigrad.arange(3)], ValueError, "none of the parameters requires"),
    ],
)
def test_parameters_that_cannot_be_averaged_are_errors(parameters, error, message):
    with pytest.raises(error, match=message):
        EMA(parameters)


@pytest.mark.parametrize("decay", [-0.1, 1.1, math.nan])
def test_a_decay_is_in_the_unit_interval(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\]"):
        EMA([leaf], decay)


@pytest.mark.parametrize("options", [{"decay": "0.9"}, {"decay": None}, {"warmup": 10}])
def test_options_of_another_kind_are_errors(options):
    with pytest.raises(TypeError, match=f"{next(iter(options))} must be"):
        EMA([leaf], **options)


def test_the_average_of_a_weight_that_stays_0_becomes_0():
    tiny = np.finfo(np.float32).tiny
    weight = Parameter(np.full(20, 3 * tiny, np.float32))
    ema = EMA([weight], decay=0.9)
    weight.data[...] = 0
    for _ in range(100):
        ema.update()
    (average,) = ema.state_dict()["averages"].values()
    assert np.all(average == 0)


def test_an_interrupt_at_the_end_of_the_block_does_not_lose_the_weights(monkeypatch):
    """It comes in the very call that holds interrupts back."""
    weight = Parameter(np.ones(2))
    ema = EMA([weight], decay=0.5)
    weight.data[...] = 5
    known = signal.signal

    def interrupted(*arguments):
        monkeypatch.setattr(signal, "signal", known)
        signal.raise_signal(signal.SIGINT)
        return known(*arguments)

    with pytest.raises(KeyboardInterrupt), ema.applied():
        monkeypatch.setattr(signal, "signal", interrupted)
    assert weight.data[0] == 5
    with ema.applied():
        pass


def test_a_decay_of_few_digits_is_rounded_once():
    weight = Parameter(np.ones(2))
    ema = EMA([weight])
    ema.decay = np.float16(0.9999)  # which is 1
    weight.data[...] = 5
    ema.update()
    assert averages(ema)["0"][0] == 1
    ema.decay = np.float32(0.3)
    ema.update()
    assert averages(ema)["0"][0] == 1 + (1 - float(np.float32(0.3))) * 4
