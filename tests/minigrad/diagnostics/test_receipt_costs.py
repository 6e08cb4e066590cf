"""The table of costs: it has every op, and says what the rules and compositions really do."""

import numpy as np
import pytest

import minigrad
from minigrad import OPS, Observer, Tensor, grad, observe, receipt
from minigrad.diagnostics.receipt.costs import COSTS, STEP_COSTS, Call, Cost, per_element
from minigrad.optim import SGD, Adam, AdamW
from tests.cases import CASES

DIFFERENTIABLE = [case for case in CASES if case.order]

# What a rule does depends on the numbers here: 0s in a product, nans, singular matrices.
ON_VALUES = ("zero", "nan", "singular")
# The table counts what is broadcast as if it had been spread out before.
BROADCAST = {"power-broadcast", "clip-tensor bounds", "arctan2-broadcast", "arctan2-number"}
# Sums over axes of 1, which are counted where they are ops.
OVER_ONE = {"matmul-vectors", "matmul-vector and matrix", "dot-vectors", "dot-vector and matrix"}
OVER_ONE |= {"dot-vector and stack", "outer-numbers", "solve-no columns"}
# Kernels whose formulas are not those of the composition: they compute something twice, or once.
KERNELS = (
    "layer_norm",
    "rms_norm",
    "scaled_dot",
    "cross_entropy",
    "gelu-approximate",
    "gelu-tails",
)
# Rules that are replayed: the recorded pass runs the forward again, and then does the same.
REPLAYED = ("gelu", "lora_linear")


def floats(case):
    """The operands of a row as Tensors, and those of them that are differentiated."""
    tensors = [Tensor(x, requires_grad=x.dtype.kind == "f") for x in case.operands()]
    return tensors, [x for x in tensors if x.requires_grad]


def exact(case):
    name = str(case)
    # With an exponent that is no Tensor, or a frozen one, y == 0 is numpy's.
    array = any(isinstance(v, np.ndarray) for v in case.options.values())
    others = array or name in {
        f"power-{n}" for n in ("number first", "integer tensor", "frozen tensor")
    }
    return not (
        others
        or any(word in name for word in ON_VALUES)
        or name in BROADCAST | OVER_ONE
        or name.startswith(KERNELS)
    )


def test_every_op_has_a_row_and_every_rule_a_cost():
    assert set(OPS.values()) <= set(COSTS)
    for op in OPS.values():
        assert set(COSTS[op].rules) == {op.parameters[position] for position, _ in op.rules}


def test_every_op_that_any_row_of_the_cases_calls_is_counted():
    with receipt() as r, np.errstate(all="ignore"):
        for case in CASES:
            tensors, inputs = floats(case) if case.order else (map(Tensor, case.operands()), [])
            out = case(*tensors)
            if inputs and out.requires_grad:
                grad(out, inputs, np.ones(out.shape), allow_unused=True)
    assert r.uncounted == {}


@pytest.mark.full
def test_a_rule_costs_what_the_ops_in_it_cost():
    """A recorded pass is made of calls, which are counted one by one, not by the rules' costs."""
    wrong, right = {}, set()
    for case in filter(exact, DIFFERENTIABLE):
        tensors, inputs = floats(case)
        counted = []
        for create_graph in (False, True):
            with receipt() as r, np.errstate(all="ignore"):
                out = case(*tensors)
                if out.requires_grad:
                    v = Tensor(np.ones(out.shape))
                    grad(out, inputs, v, create_graph=create_graph, allow_unused=True)
            counted.append(r)
        by_rules, by_calls = counted
        again = by_rules.forward_flops if case.name in REPLAYED else 0
        if by_rules.backward_flops != by_calls.backward_flops - again:
            wrong[str(case)] = by_rules.backward_flops, by_calls.backward_flops - again
        right.add(case.name)
    assert wrong == {}
    differentiable = {name for name, op in OPS.items() if op.rules}
    assert differentiable - right == {"layer_norm", "rms_norm"}


class Fused(Observer):
    def __init__(self):
        self.calls = []

    def on_call(self, op, inputs, result):
        if op.composition is not None:
            self.calls.append((op, inputs))


ON_MASKS = ("broadcast value", "wholly", "-inf")  # rows that may attend to nothing, and the like


def test_a_fused_op_costs_what_its_composition_costs():
    wrong, right = {}, set()
    for case in CASES:
        if any(word in str(case) for word in ON_MASKS):
            continue
        with observe(Fused()) as fused, np.errstate(all="ignore"):
            case(*map(Tensor, case.operands()))
        for op, inputs in fused.calls:
            with receipt() as kernel, np.errstate(all="ignore"):
                op(*inputs)
            with receipt() as parts, np.errstate(all="ignore"):
                op.composition(*inputs)
            if kernel.forward_flops != parts.forward_flops:
                wrong[str(case)] = kernel.forward_flops, parts.forward_flops
            right.add(op.name)
    assert wrong == {}
    assert right == {op.name for op in COSTS if op.composition is not None}


def test_a_call_holds_no_array():
    x, y = Tensor(np.ones((2, 3))), np.ones(3)
    call = Call(minigrad.add, (x, y), x + y)
    assert (call.shape("x"), call.shape("y"), call.out) == ((2, 3), (3,), 6)
    for slot in Call.__slots__:
        value = getattr(call, slot)
        parts = value.values() if isinstance(value, dict) else [value]
        assert not any(isinstance(part, (Tensor, np.ndarray)) for part in parts)


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_options_may_be_numbers_of_numpy(dtype):
    x = Tensor(np.ones((4, 8)), requires_grad=True)
    with receipt() as r:
        minigrad.layer_norm(x, dtype(8))
    assert r.forward_flops == 5 * 32 + 4 * 4


def test_an_op_of_ones_own_is_listed_as_not_counted_until_it_has_a_cost():
    @minigrad.op
    def double(x):
        return 2 * x

    double.rule("x", lambda g: 2 * g)

    def step():
        x = Tensor(np.ones(5), requires_grad=True)
        with receipt() as r:
            double(x).sum().backward()
        return r

    r = step()
    assert r.uncounted == {
        "call of double, an op that COSTS does not have": 1,
        "rule of double, an op that COSTS does not have": 1,
    }
    assert "not counted: 1 x call of double" in repr(r)
    assert r.forward_flops == 5  # of the sum
    try:
        COSTS[double] = Cost(lambda call: call.out)
        assert step().uncounted == {"rule of double for x, which COSTS does not have": 1}
        COSTS[double] = per_element(x=1)
        r = step()
    finally:
        del COSTS[double]
    assert (r.forward_flops, r.backward_flops, r.uncounted) == (10, 5, {})


@pytest.mark.parametrize(
    ("make", "each"),
    [
        (lambda p: SGD(p), 2),
        (lambda p: SGD(p, momentum=0.9), 4),
        (lambda p: SGD(p, momentum=0.9, dampening=0.1, weight_decay=0.1), 7),
        (lambda p: SGD(p, momentum=0.9, nesterov=True), 6),
        (lambda p: Adam(p), 14),
        (lambda p: Adam(p, weight_decay=0.1, amsgrad=True), 17),
        (lambda p: AdamW(p), 16),
        (lambda p: AdamW(p, weight_decay=0.0), 14),
    ],
)
def test_a_step_costs_its_formula_for_each_number_with_a_gradient(make, each):
    p, unused = (Tensor(np.ones(7), requires_grad=True) for _ in range(2))
    optimizer = make([p, unused])
    p.sum().backward()
    with receipt() as r:
        optimizer.step()
    assert r.optimizer_flops == r.flops == 7 * each
    assert set(STEP_COSTS) == {SGD, Adam, AdamW}


def test_an_optimiser_of_ones_own_is_listed_and_its_state_is_counted():
    class Own(SGD):
        pass

    p = Tensor(np.ones(7), requires_grad=True)
    optimizer = Own([p], momentum=0.9)
    p.sum().backward()
    with receipt() as r:
        optimizer.step()
    assert r.uncounted == {"step of Own, which STEP_COSTS does not have": 1}
    assert (r.optimizer_flops, r.optimizer_bytes, r.steps) == (0, 7 * 8, 1)
