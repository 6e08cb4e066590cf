"""Schedulers: the numbers of PyTorch and of transformers, states, and what they refuse."""

import copy
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import minigrad
from minigrad import optim
from minigrad.nn import Parameter
from minigrad.optim import (
    SGD,
    AdamW,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    Optimizer,
    StepLR,
    WarmupCosineLR,
)
from tests.minigrad.refusals import not_refused

FIXTURE = Path(__file__).parents[2] / "fixtures" / "optim.safetensors"
with safe_open(FIXTURE, framework="numpy") as file:
    CASES = json.loads(file.metadata()["schedulers"])
    RATES = json.loads(file.metadata()["rates"])
    REFERENCE = {case: file.get_tensor(f"scheduler, {case}") for case in CASES}


def optimizer_of(rates=(0.5,), cls=SGD):
    return cls([{"params": [Parameter(np.zeros(2))], "lr": lr} for lr in rates])


def factor(step):
    return 1 / (1 + step / 4)


def build(case, optimizer):
    name, options = CASES[case]
    options = {"lr_lambda": factor} if name == "LambdaLR" else options
    return getattr(optim, name)(optimizer, **options)


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def followed(scheduler, steps):
    """The lr of each group at once and after each of so many steps."""
    rows = [rates(scheduler.optimizer)]
    for _ in range(steps):
        scheduler.step()
        rows.append(rates(scheduler.optimizer))
    return np.array(rows)


# ----------------------------------------------------------------------------------------------
# The numbers
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_the_rates_are_those_of_pytorch_and_beyond_the_end(case):
    expected = REFERENCE[case]
    actual = followed(build(case, optimizer_of(RATES)), len(expected) - 1)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-18)


def test_the_cases_cover_every_scheduler_and_are_not_alike():
    known = {name for name in optim.__all__ if name.endswith("LR")}
    assert {name for name, _ in CASES.values()} == known
    rows = list(REFERENCE.values())
    for i, row in enumerate(rows):
        for other in rows[:i]:
            assert abs(row - other).max() > 1e-3


def test_half_a_cosine_by_hand():
    scheduler = CosineAnnealingLR(optimizer_of([1.0]), T_max=4, eta_min=0.2)
    actual = followed(scheduler, 8)[:, 0]
    low, high = 0.6 - 0.4 * 0.5**0.5, 0.6 + 0.4 * 0.5**0.5
    np.testing.assert_allclose(actual, [1, high, 0.6, low, 0.2, low, 0.6, high, 1], rtol=1e-15)


def test_warm_up_and_half_a_cosine_by_hand():
    scheduler = WarmupCosineLR(optimizer_of([1.0]), warmup_steps=2, total_steps=6, eta_min=0.2)
    actual = followed(scheduler, 8)[:, 0]
    low, high = 0.6 - 0.4 * 0.5**0.5, 0.6 + 0.4 * 0.5**0.5
    np.testing.assert_allclose(actual, [0, 0.5, 1, high, 0.6, low, 0.2, 0.2, 0.2], rtol=1e-15)
    assert list(actual[-3:]) == [0.2, 0.2, 0.2]  # to the bit


def test_linear_warm_up_by_hand():
    actual = followed(LinearLR(optimizer_of([3.0])), 6)[:, 0]
    np.testing.assert_allclose(actual, np.array([5, 7, 9, 11, 13, 15, 15]) / 15 * 3.0, rtol=1e-15)


def test_steps_by_hand():
    actual = followed(StepLR(optimizer_of([8.0]), step_size=2, gamma=0.5), 5)[:, 0]
    assert list(actual) == [8, 8, 4, 4, 2, 2]


def test_defaults_are_those_of_pytorch():
    optimizer = optimizer_of()
    assert StepLR(optimizer, 1).options == {"step_size": 1, "gamma": 0.1}
    assert CosineAnnealingLR(optimizer, 1).options == {"T_max": 1, "eta_min": 0.0}
    defaults = {"start_factor": 1 / 3, "end_factor": 1.0, "total_iters": 5}
    assert LinearLR(optimizer).options == defaults
    assert WarmupCosineLR(optimizer, 0, 1).options["eta_min"] == 0.0


# ----------------------------------------------------------------------------------------------
# The optimiser's groups
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_what_was_set_is_what_is_said(case):
    optimizer = optimizer_of(RATES)
    scheduler = build(case, optimizer)
    assert scheduler.base_lrs == RATES
    for step in range(12):
        assert scheduler.last_epoch == step
        assert scheduler.get_last_lr() == rates(optimizer)
        assert all(type(lr) is float for lr in rates(optimizer))
        assert set(optimizer.param_groups[0]) == {"params", *optimizer.defaults}
        scheduler.step()


def test_the_next_step_of_the_optimiser_uses_the_rate():
    p = Parameter(np.zeros(1))
    optimizer = SGD([p], lr=1.0)
    scheduler = LambdaLR(optimizer, lambda step: [0.5, 0.25, 0.125][step])
    values = []
    for _ in range(2):
        p.grad = minigrad.tensor(np.array([-1.0]))
        optimizer.step()
        scheduler.step()
        values.append(p.item())
    assert values == [0.5, 0.75]


def test_a_rate_set_by_others_lasts_until_the_next_step():
    optimizer = optimizer_of([1.0])
    scheduler = StepLR(optimizer, 2, 0.5)
    optimizer.param_groups[0]["lr"] = 77.0
    scheduler.step()
    assert rates(optimizer) == [1.0]


def test_a_scheduler_of_ones_own_is_a_class_with_one_method():
    class Root(LRScheduler):
        def lr(self, step, base_lr):
            return base_lr / math.sqrt(1 + step)

    scheduler = Root(optimizer_of([1.0, 3.0]))
    np.testing.assert_allclose(followed(scheduler, 3)[3], [0.5, 1.5])
    assert repr(scheduler) == "Root(last_epoch=3, lr=[0.5, 1.5])"


@pytest.mark.parametrize("is_taken_out", [False, True])
def test_a_scheduler_of_ones_own_may_have_a_state(is_taken_out):
    class Plateau(LRScheduler):
        factor = 1.0

        def lr(self, step, base_lr):
            return base_lr * self.factor

        def state_dict(self):
            return {**super().state_dict(), "factor": self.factor}

        def load_state_dict(self, state_dict):
            state = dict(state_dict)
            factor = state.pop("factor") if is_taken_out else state["factor"]
            super().load_state_dict(state)
            self.factor = factor

    scheduler, other = (Plateau(optimizer_of([1.0])) for _ in range(2))
    scheduler.factor = 0.5
    followed(scheduler, 2)
    other.load_state_dict(scheduler.state_dict())
    assert other.state_dict() == scheduler.state_dict()
    with pytest.raises(ValueError, match="and has unknown \\['lr'\\]"):
        other.load_state_dict({**scheduler.state_dict(), "lr": 1.0})


def test_any_step_can_be_asked_for():
    scheduler = WarmupCosineLR(optimizer_of(), 2, 4)
    assert [scheduler.lr(step, 2.0) for step in (1, 2, 3, 99)] == [1.0, 2.0, pytest.approx(1), 0.0]
    assert scheduler.last_epoch == 0


def test_repr_has_options_and_rates():
    scheduler = CosineAnnealingLR(optimizer_of([0.5, 0.1]), T_max=10)
    scheduler.step()
    text = "CosineAnnealingLR(T_max=10, eta_min=0.0, last_epoch=1, lr=[0.4878, 0.09755])"
    assert repr(scheduler) == text


@pytest.mark.parametrize("case", CASES)
def test_an_optimiser_and_its_scheduler_can_be_deep_copied_together(case):
    scheduler = build(case, optimizer_of(RATES))
    before = rates(scheduler.optimizer)
    optimizer, twin = copy.deepcopy((scheduler.optimizer, scheduler))
    assert twin.optimizer is optimizer
    followed(twin, 3)
    assert rates(scheduler.optimizer) == before
    assert rates(optimizer) == list(followed(scheduler, 3)[-1])


# ----------------------------------------------------------------------------------------------
# States
# ----------------------------------------------------------------------------------------------

OTHER_OPTIONS = {
    "LambdaLR": {"lr_lambda": factor},
    "StepLR": {"step_size": 99},
    "CosineAnnealingLR": {"T_max": 99},
    "LinearLR": {"total_iters": 99},
    "WarmupCosineLR": {"warmup_steps": 9, "total_steps": 99},
}


@pytest.mark.parametrize("case", CASES)
def test_a_state_goes_on_bit_for_bit(case):
    first = build(case, optimizer_of(RATES))
    followed(first, 4)
    state = json.loads(json.dumps(first.state_dict()))  # as it would be read from a file
    name = CASES[case][0]
    second = getattr(optim, name)(optimizer_of((7.0, 8.0, 9.0)), **OTHER_OPTIONS[name])
    second.load_state_dict(state)
    assert second.get_last_lr() == first.get_last_lr()
    assert second.state_dict() == first.state_dict()
    assert np.array_equal(followed(second, 30)[1:], followed(first, 30)[1:])


def test_loading_leaves_the_optimiser_as_it_is():
    first, second = (StepLR(optimizer_of([lr]), 1) for lr in (1.0, 2.0))
    first.step()
    second.load_state_dict(first.state_dict())
    assert rates(second.optimizer) == [2.0]
    second.step()
    assert rates(second.optimizer) == [pytest.approx(0.01)]


def test_a_state_is_a_copy_on_both_ways():
    scheduler = StepLR(optimizer_of([1.0]), 1)
    state = scheduler.state_dict()
    state["base_lrs"][0] = 5.0
    assert scheduler.base_lrs == [1.0]
    scheduler.load_state_dict(state)
    state["base_lrs"][0] = 6.0
    assert scheduler.base_lrs == [5.0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"T_max": None}, ValueError, r"T_max must be a positive integer"),
        ({"eta_min": -1.0}, ValueError, "eta_min must be in"),
        ({"last_epoch": -1}, ValueError, "last_epoch must be an integer of at least 0"),
        ({"last_epoch": 1.5}, ValueError, "last_epoch must be an integer of at least 0"),
        ({"base_lrs": [1.0, 2.0]}, ValueError, r"has 1 groups .* base_lrs=\[1.0, 2.0\]"),
        ({"base_lrs": 1.0}, ValueError, "has 1 groups .* base_lrs=1.0"),
        ({"base_lrs": [math.nan]}, ValueError, "each of base_lrs must be in"),
        ({"base_lrs": ["x"]}, TypeError, "each of base_lrs must be a number"),
        ({"gamma": 0.1}, ValueError, r"a dict of \['T_max', 'base_lrs', 'eta_min', 'last_epoch'\]"),
    ],
)
def test_a_state_that_does_not_fit_is_an_error_and_changes_nothing(change, error, message):
    scheduler = CosineAnnealingLR(optimizer_of([1.0]), T_max=5)
    followed(scheduler, 2)
    before = scheduler.state_dict()
    with pytest.raises(error, match=message):
        scheduler.load_state_dict({**before, "last_epoch": 9, "base_lrs": [3.0], **change})
    assert scheduler.state_dict() == before


@pytest.mark.parametrize("state", [None, {}, {"last_epoch": 1, "base_lrs": [1.0]}, [1]])
def test_a_state_of_another_scheduler_is_an_error(state):
    with pytest.raises(ValueError, match="a state of StepLR is a dict of"):
        StepLR(optimizer_of([1.0]), 1).load_state_dict(state)


# ----------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------

NO_COUNTS = (0, -1, 2.5, 3.0, True, None, math.nan)
NO_RATES = (-0.1, math.nan, math.inf)


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (lambda o, v: StepLR(o, v), NO_COUNTS, "step_size"),
        (lambda o, v: StepLR(o, 1, v), NO_RATES, "gamma"),
        (lambda o, v: CosineAnnealingLR(o, v), NO_COUNTS, "T_max"),
        (lambda o, v: CosineAnnealingLR(o, 5, v), NO_RATES, "eta_min"),
        (lambda o, v: LinearLR(o, v), (*NO_RATES, 0.0, 1.1), "start_factor"),
        (lambda o, v: LinearLR(o, 0.5, v), (*NO_RATES, 1.1), "end_factor"),
        (lambda o, v: LinearLR(o, total_iters=v), NO_COUNTS, "total_iters"),
        (lambda o, v: WarmupCosineLR(o, 0, v), NO_COUNTS, "total_steps"),
        (lambda o, v: WarmupCosineLR(o, v, 9), NO_COUNTS[1:], "warmup_steps"),
        (lambda o, v: WarmupCosineLR(o, v, 9), (9, 10), "warmup_steps=.* less than"),
        (lambda o, v: WarmupCosineLR(o, 1, 9, v), NO_RATES, "eta_min"),
    ],
)
def test_impossible_options_are_errors_and_change_nothing(make, values, message):
    optimizer = optimizer_of([0.7])
    calls = ((value, partial(make, optimizer, value), ValueError, message) for value in values)
    assert not_refused(calls) == {}
    assert rates(optimizer) == [0.7]


@pytest.mark.parametrize("optimizer", [None, 0.1, [Parameter(np.zeros(1))], SGD])
def test_something_else_than_an_optimiser_is_an_error(optimizer):
    with pytest.raises(TypeError, match="StepLR needs an optimiser, not"):
        StepLR(optimizer, 1)


def test_an_optimiser_without_a_rate_is_an_error():
    class Plain(Optimizer):
        def check_options(self, group):
            pass

        def update(self, x, g, state, group):
            x -= g

    with pytest.raises(ValueError, match="Plain has no option lr"):
        StepLR(Plain([Parameter(np.zeros(1))], {}), 1)


def test_a_schedule_on_rates_of_zero_is_an_error():
    """As when a second scheduler finds the 0 that a warm-up has set."""
    optimizer = optimizer_of([0.5, 0.1], AdamW)
    WarmupCosineLR(optimizer, 2, 9)
    with pytest.raises(ValueError, match=r"the lr of every group is 0, .* another scheduler"):
        WarmupCosineLR(optimizer, 2, 9)
    optimizer.param_groups[1]["lr"] = 0.1
    assert WarmupCosineLR(optimizer, 2, 9).base_lrs == [0.0, 0.1]


@pytest.mark.parametrize("factor", [None, 0.5, [factor]])
def test_a_factor_is_a_function(factor):
    with pytest.raises(TypeError, match="lr_lambda is a function of the step, not"):
        LambdaLR(optimizer_of(), factor)


@pytest.mark.parametrize(
    ("value", "error"),
    [(None, TypeError), (-0.5, ValueError), (math.nan, ValueError), (math.inf, ValueError)],
)
def test_a_factor_that_is_no_number_is_an_error_and_changes_nothing(value, error):
    optimizer = optimizer_of([1.0])
    scheduler = LambdaLR(optimizer, lambda step: value if step == 2 else 0.5)
    scheduler.step()
    with pytest.raises(error, match=r"lr_lambda\(2\) must be"):
        scheduler.step()
    assert scheduler.last_epoch == 1
    assert rates(optimizer) == [0.5]


def test_an_impossible_rate_of_ones_own_schedule_is_an_error_and_changes_nothing():
    class Down(LRScheduler):
        def lr(self, step, base_lr):
            return base_lr - step

    optimizer = optimizer_of([3.0, 1.0])
    scheduler = Down(optimizer)
    scheduler.step()
    with pytest.raises(ValueError, match="Down: the lr at step 2 must be in"):
        scheduler.step()
    assert scheduler.last_epoch == 1
    assert rates(optimizer) == [2.0, 0.0]


@pytest.mark.parametrize("gamma", [10, 10.0])
def test_a_rate_that_overflows_is_an_error_and_changes_nothing(gamma):
    optimizer = optimizer_of([1.0])
    scheduler = StepLR(optimizer, 1, gamma)
    scheduler.load_state_dict(scheduler.state_dict() | {"last_epoch": 399})
    with pytest.raises(ValueError, match="StepLR: the lr at step 400 must be in"):
        scheduler.step()
    assert (scheduler.last_epoch, rates(optimizer)) == (399, [1.0])


def test_groups_that_were_added_since_are_an_error_that_says_so():
    optimizer = optimizer_of([1.0])
    scheduler = StepLR(optimizer, 1)
    optimizer.add_param_group({"params": [Parameter(np.zeros(1))]})
    with pytest.raises(ValueError, match=r"made for 1 groups .* has 2; make a new scheduler"):
        scheduler.step()
    assert (scheduler.last_epoch, rates(optimizer)) == (0, [1.0, 1e-3])
