"""The bug zoo: the gradient checker sees every planted fault, and so do these tests themselves.

    python -m tests.zoo

prints the matrix of mutants and checks.
"""

import json
import sys
from dataclasses import replace
from types import FunctionType

import numpy as np
import pytest

import minigrad
from minigrad import Tensor
from minigrad.core.grad_mode import mode
from minigrad.core.op import Op
from tests.zoo import FAULTS, MUTANTS, __main__, suite, verdict
from tests.zoo.matrix import KILLED, NOT_THERE, SURVIVES, UNSURE, Row, markdown, totals
from tests.zoo.mutant import copied, edited, misled, replaced, spoiled, wrong, wrong_together


@pytest.fixture(autouse=True, scope="module")
def processes_end():
    yield
    suite.end()


each = pytest.mark.parametrize("mutant", MUTANTS, ids=str)


# The zoo is what it should be


def test_there_are_enough_mutants_of_every_fault():
    assert len(MUTANTS) >= 40
    assert {mutant.fault for mutant in MUTANTS} == set(FAULTS)
    assert {mutant.kind for mutant in MUTANTS} == {"vjp", "engine"}


def test_every_mutant_has_a_name_of_its_own():
    names = [mutant.name for mutant in MUTANTS]
    assert [name for name in names if names.count(name) > 1] == []


def derivatives(mutant):
    """The value, the gradients in a plain and in a recorded pass, and those of second order."""
    found = []
    for create_graph in (False, True):
        xs = [Tensor(copied(x), requires_grad=True) for x in mutant.inputs]
        with np.errstate(all="ignore"):  # some faults are a nan
            out = mutant.f(*xs)
            rng = np.random.default_rng(1)
            v = Tensor(rng.standard_normal(out.shape).astype(out.dtype), requires_grad=True)
            first = minigrad.grad(out, xs, v, create_graph=create_graph, allow_unused=True)
            found += [x.data for x in (out, *first)]
            if create_graph:
                total = sum((g * rng.standard_normal(g.shape)).sum() for g in first)
                second = minigrad.grad(total, [*xs, v], allow_unused=True)
                found += [x.data for x in second]
    return found


def same(one, other):
    return len(one) == len(other) and all(
        x.dtype == y.dtype and np.allclose(x, y, rtol=1e-6, atol=1e-9, equal_nan=True)
        for x, y in zip(one, other, strict=True)
    )


@pytest.mark.full
@each
def test_a_mutant_changes_a_derivative(mutant):
    right = derivatives(mutant)
    with mutant.plant():
        wrong = derivatives(mutant)
    assert not same(right, wrong)
    assert same(right, derivatives(mutant))


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.order == 2], ids=str)
def test_a_mutant_of_second_order_is_right_at_first(mutant):
    count = 1 + len(mutant.inputs)
    right = derivatives(mutant)[:count]
    with mutant.plant():
        assert same(right, derivatives(mutant)[:count])


# The checker


@pytest.mark.full
@each
def test_gradcheck_kills_the_mutant(mutant):
    """The order of the fault is asked for first, for it is quicker, and nearly always enough."""
    assert any(verdict(mutant, order=order) != "agree" for order in (mutant.order, 2))


@pytest.mark.full
@each
def test_gradcheck_agrees_without_the_fault(mutant):
    assert verdict(mutant, planted=False) == "agree"


# The suite


@pytest.mark.full
@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if mutant.suite], ids=str)
def test_the_suite_kills_the_mutant(mutant):
    assert suite.kills(mutant)


@pytest.mark.full
def test_tests_that_look_elsewhere_kill_nothing():
    elsewhere = ("tests/minigrad/training/test_metrics.py",)
    assert not suite.kills(replace(MUTANTS[0], suite=elsewhere))


@pytest.mark.full
def test_tests_that_do_not_run_are_an_error_and_no_kill():
    with pytest.raises(RuntimeError, match="ended with 4"):
        suite.kills(replace(MUTANTS[0], suite=("tests/not_there.py",)))


# What is planted is taken out again


def planted_places():
    """All that a mutant can change: VJPs and compositions of ops, functions, names of modules."""
    places = {"mode": mode.state}
    modules = {name: m for name, m in sys.modules.items() if name.split(".")[0] in PACKAGES}
    owners = {**modules, **{str(mutant): mutant for mutant in MUTANTS if mutant.op}}
    for path, owner in owners.items():
        for name, value in vars(owner).items():
            places[path, name] = value if isinstance(value, (Op, FunctionType, type)) else None
            if isinstance(value, Op):
                vjps = [(i, vjp.derivative) for i, vjp in value.vjps]
                places[path, name, "vjps"] = vjps, value.composition
            members = vars(value).items() if isinstance(value, type) else [("", value)]
            for member, function in members:
                if isinstance(function, FunctionType):
                    places[path, name, member, "code"] = function.__code__
    return places


PACKAGES = ("minigrad", "lora")


@pytest.mark.full
def test_all_mutants_are_gone_afterwards():
    """That each one changes something while it is planted is seen in the derivatives."""

    def run(mutant):
        mutant.f(*map(Tensor, map(copied, mutant.inputs)))

    for mutant in MUTANTS:
        run(mutant)  # which may import a kernel
    before = planted_places()
    for mutant in MUTANTS:
        with mutant.plant():
            run(mutant)  # which may leave a mode behind
    assert planted_places() == before


class StopError(Exception):
    pass


@pytest.mark.parametrize(
    "plant",
    [
        lambda: wrong(minigrad.multiply, "a", lambda g: g),
        lambda: wrong_together(minigrad.lora_linear, lambda g, needs_input_grad: [g] * 5),
        lambda: misled(minigrad.softmax, axis=0),
        lambda: spoiled(minigrad.multiply, "b", lambda gradient: -gradient),
        lambda: replaced([minigrad.gelu], "composition", minigrad.relu),
        lambda: edited(minigrad.core.backward.take, ("return _copied(g)", "return g")),
    ],
    ids=["wrong", "wrong_together", "misled", "spoiled", "replaced", "edited"],
)
def test_a_fault_is_taken_out_after_an_exception(plant):
    before = planted_places()
    with pytest.raises(StopError), plant():  # noqa: PT012  # what is planted is a part of it
        assert planted_places() != before
        raise StopError
    assert planted_places() == before


def test_an_edit_of_what_is_not_there_is_refused():
    take = minigrad.core.backward.take
    for old in ("what is not there", "g"):  # which is there many times
        with pytest.raises(AssertionError, match="has no single"), edited(take, (old, "")):
            pass


# The ways to plant


def gradients(f, *arrays):
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    return [g.data.tolist() for g in minigrad.grad(f(*xs).sum(), xs)]


def test_spoiling_one_gradient_of_several_leaves_the_others():
    x, y = np.array([2.0]), np.array([5.0])
    with spoiled(minigrad.multiply, "b", lambda gradient: -gradient):
        assert gradients(minigrad.multiply, x, y) == [[5.0], [-2.0]]


def test_a_misled_vjp_gets_another_value_and_the_forward_does_not():
    x = np.array([-1.0])
    f = lambda x: minigrad.leaky_relu(x, 0.5)
    for value in (0.25, lambda slope: slope / 2):
        with misled(minigrad.leaky_relu, negative_slope=value):
            assert gradients(f, x) == [[0.25]]
            assert f(x) == -0.5


# The matrix


def test_totals_leave_out_what_a_check_cannot_be_shown():
    said = [KILLED, SURVIVES, UNSURE, NOT_THERE]
    rows = [Row(mutant, {"check": s}) for mutant, s in zip(MUTANTS, said, strict=False)]
    assert totals(rows, "check") == (2, 3)
    lines = markdown(rows).splitlines()
    assert len(lines) == 2 + len(rows) + 1
    assert "2 of 3" in lines[-1]
    assert all(row.mutant.name in line for row, line in zip(rows, lines[2:], strict=False))


def test_the_command_prints_the_matrix_and_writes_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(__main__, "MUTANTS", MUTANTS[:2])
    said = {MUTANTS[0].name: KILLED, MUTANTS[1].name: SURVIVES}
    monkeypatch.setattr(__main__, "columns", lambda quick: {"check": lambda m: said[m.name]})
    __main__.main(["--out", str(tmp_path / "new")])
    assert capsys.readouterr().out == (tmp_path / "new" / "zoo.md").read_text()
    found = json.loads((tmp_path / "new" / "zoo.json").read_text())
    assert found["killed"] == {"check": [1, 2]}
    assert [m["said"] for m in found["mutants"]] == [{"check": KILLED}, {"check": SURVIVES}]
