"""The costs of ops and of VJPs: what is found on sketches is what the ops in them really do."""

import gc
import math
from types import SimpleNamespace

import numpy as np
import pytest

import minigrad
from minigrad import OPS, Observer, Tensor, grad, observe, receipt
from minigrad.diagnostics.cost_receipt.costs import STEP_COSTS, SketchedCall
from minigrad.functional.losses import (
    label_cross_entropy,
    linear_label_cross_entropy,
    logistic_loss,
    squared_error,
)
from minigrad.functional.neural import fused_attention
from minigrad.functional.normalization import channel_norm
from minigrad.kernels.jit import JIT_ENABLED
from minigrad.optim import SGD, Adagrad, Adam, AdamW, RMSprop
from tests.cases import CASES

DIFFERENTIABLE = [case for case in CASES if case.order]

# What a VJP does depends on the numbers here: 0s in a product, nans, singular matrices.
ON_VALUES = ("zero", "nan", "singular")
# Sums over axes of 1, which are counted where they are ops.
OVER_ONE = {"matmul-vectors", "matmul-vector and matrix", "dot-vectors", "dot-vector and matrix"}
OVER_ONE |= {"dot-vector and stack", "outer-numbers", "solve-no columns"}
# Kernels whose formulas are not those of the composition: they compute something twice, or once.
KERNELS = (
    "layer_norm",
    "rms_norm",
    "batch_norm",
    "group_norm",
    "scaled_dot",
    "cross_entropy",
    "linear_cross_entropy",
    "gelu-approximate",
    "gelu-tails",
    "recurrence",
)
# VJPs that are replayed: the recorded pass runs the forward again, and then does the same.
REPLAYED = ("gelu", "lora_linear")


def floats(case):
    """The operands of a row as Tensors, and those of them that are differentiated."""
    tensors = [Tensor(x, requires_grad=x.dtype.kind == "f") for x in case.operands()]
    return tensors, [x for x in tensors if x.requires_grad]


def exact(case):
    name = str(case)
    # With an exponent that is not a Tensor, or a frozen one, y == 0 is numpy's.
    array = any(isinstance(v, np.ndarray) for v in case.options.values())
    others = array or name in {
        f"power-{n}" for n in ("number first", "integer tensor", "frozen tensor")
    }
    return not (
        others
        or any(word in name for word in ON_VALUES)
        or name in OVER_ONE
        or name.startswith(KERNELS)
    )


@pytest.mark.full
def test_every_op_that_any_row_of_the_cases_calls_is_counted():
    with receipt() as r, np.errstate(all="ignore"):
        for case in CASES:
            tensors, inputs = floats(case) if case.order else (map(Tensor, case.operands()), [])
            out = case(*tensors)
            if inputs and out.requires_grad:
                grad(out, inputs, np.ones(out.shape), allow_unused=True)
    assert r.uncounted == {}


def test_max_pooling_compares_each_element_of_each_window_once():
    with receipt() as r:
        minigrad.max_pool2d(np.ones((2, 3, 7, 8)), 3, 2, 1, dilation=2)
    assert r.forward_flops == 2 * 3 * (2 + 3 + 2) * (2 + 3 + 3), "steps of 2, without the padding"


@pytest.mark.full
def test_a_vjp_costs_what_the_ops_in_it_cost():
    """A recorded pass is made of calls, which are counted one by one, not by the VJPs' costs."""
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
        by_vjps, by_calls = counted
        again = by_vjps.forward_flops if case.name in REPLAYED else 0
        if by_vjps.backward_flops != by_calls.backward_flops - again:
            wrong[str(case)] = by_vjps.backward_flops, by_calls.backward_flops - again
        right.add(case.name)
    assert wrong == {}
    differentiable = {name for name, op in OPS.items() if op.vjps}
    # The tables of rope are arrays, and such rows are not exact; the gates of a recurrence are
    # counted in round numbers.
    assert differentiable - right == {"layer_norm", "rms_norm", "rope", "recurrence"}


class Fused(Observer):
    def __init__(self):
        self.calls = []

    def on_call(self, op, inputs, result):
        if op.composition is not None:
            self.calls.append((op, inputs))


ON_MASKS = ("broadcast value", "wholly", "-inf")  # rows that may attend to nothing, and the like
NUMBERS = ("swiglu-number first",)  # a run on sketches does not count silu of a number


def with_labels_as_tensors(x):
    """What numpy does with a plain array is in no receipt; masks of booleans are to stay plain."""
    return Tensor(x) if isinstance(x, np.ndarray) and x.dtype != np.bool_ else x


@pytest.mark.skipif(not JIT_ENABLED, reason="ops compute attention without kernels")
def test_a_fused_op_costs_what_its_composition_costs():
    wrong, right = {}, set()
    for case in CASES:
        if any(word in str(case) for word in (*ON_MASKS, *NUMBERS)):
            continue
        with observe(Fused()) as fused, np.errstate(all="ignore"):
            case(*map(Tensor, case.operands()))
        for op, inputs in fused.calls:
            with receipt() as kernel, np.errstate(all="ignore"):
                op(*inputs)
            with receipt() as parts, np.errstate(all="ignore"):
                op.composition(*map(with_labels_as_tensors, inputs))
            if kernel.forward_flops != parts.forward_flops:
                wrong[str(case)] = kernel.forward_flops, parts.forward_flops
            right.add(op.name)
    assert wrong == {}
    others = (
        fused_attention,
        label_cross_entropy,
        linear_label_cross_entropy,
        logistic_loss,
        squared_error,
        channel_norm,
    )
    assert right == {op.name for op in (*OPS.values(), *others) if op.composition is not None}


def test_a_fused_op_may_have_keyword_only_options():
    @minigrad.op(composition=lambda x, *, factor=1.0: x * x * factor, replayed=True)
    def fused(x, *, factor=1.0):
        return x * x * factor

    with receipt() as found:
        fused(Tensor(np.ones(3)), factor=2.0)
    assert found.forward_flops == 6
    assert found.uncounted == {}


def test_a_call_holds_no_array():
    x, y = Tensor(np.ones((2, 3))), np.ones(3)
    index = (np.array([0, 1]), slice(None))
    for op, inputs in ((minigrad.add, (x, y)), (minigrad.getitem, (x, index))):
        call = SketchedCall(op, inputs, op(*inputs))
        assert not any(held is array for held in leaves(call) for array in (x, y, index[0]))
        assert next(iter(call.values.values())).shape == (2, 3)


def leaves(value):
    """Everything that an object refers to, directly or through others."""
    found, new = [], [value]
    while new:
        found += new
        referents = (x for each in new for x in gc.get_referents(each))
        new = [x for x in referents if isinstance(x, (tuple, list, dict))]
    return [x for each in found for x in gc.get_referents(each)]


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_options_may_be_numbers_of_numpy(dtype):
    x = Tensor(np.ones((4, 8)), requires_grad=True)
    with receipt() as r:
        minigrad.layer_norm(x, dtype(8))
    assert r.forward_flops == 5 * 32 + 4 * 4


def counted(function, *shapes):
    """The receipt of a pass through a function."""
    leaves = [Tensor(np.ones(shape), requires_grad=True) for shape in shapes]
    with receipt() as r:
        function(*leaves).sum().backward()
    return r


def test_a_cost_is_found_once_for_each_signature():
    runs = []

    @minigrad.op
    def double(x):
        runs.append(x)
        return 2 * x

    double.vjp("x", lambda g: runs.append(g) or 2 * g)
    x, y = (Tensor(np.ones(shape), requires_grad=True) for shape in ((5,), (7, 2)))
    with receipt() as r:
        for leaf in (x, x, y, x):
            double(leaf).sum().backward()
    assert (r.forward_flops, r.uncounted) == (3 * 5 + 14 + 3 * 5 + 14, {})
    assert len(runs) == 4 + 2 + 4 + 2  # forward and backward, each on two sketches too


@pytest.mark.parametrize("name", ["tanh", "softmax", "gelu", "layer_norm", "where", "max"])
def test_sketches_take_no_memory_and_no_time_whatever_the_shape(name):
    huge = SimpleNamespace(shape=(1 << 40, 1 << 10), dtype=np.dtype(np.float32))
    inputs = {
        "layer_norm": [huge, 1 << 10, None, None, 1e-5],
        "where": [huge, huge, 0.0],
        "max": [huge, 1],
    }
    out = SimpleNamespace(shape=(1 << 40,), dtype=huge.dtype) if name == "max" else huge
    flops = SketchedCall(OPS[name], inputs.get(name, [huge]), out).flops()
    assert flops >= 1 << 50


def test_what_a_forward_calls_beside_numpy_is_not_counted_until_the_op_has_a_cost():
    def kernel(x):
        return np.array([math.exp(v) for v in x])

    hidden = minigrad.op(kernel)
    hidden.vjp("x", lambda g, out: kernel(np.log(g * out)))
    r = counted(hidden, 5)
    assert list(r.uncounted) == [
        "call of kernel, an op that does not compute only with functions of numpy whose FLOPs are "
        "known; @op(cost=...) makes it count",
        "VJP of kernel for x, which is not written in ops only; cost=... beside the VJP makes it "
        "count",
    ]
    assert "not counted: 1 x call of kernel" in repr(r)
    assert r.forward_flops == 5  # of the sum
    known = minigrad.op(cost=1)(kernel)
    known.vjp("x", lambda g, out: kernel(np.log(g * out)), cost=lambda x, out: x.size + out.size)
    r = counted(known, 5)
    assert (r.forward_flops, r.backward_flops, r.uncounted) == (10, 10, {})


def test_a_forward_in_functions_of_numpy_is_counted():
    @minigrad.op
    def mixed(a, b):
        return np.where(a > 0, a @ b, a.T) + np.add.accumulate(a, 1)

    @minigrad.op
    def centered(a):
        return (a - np.mean(a, axis=0)).clip(-1, 1) - np.clip(a.mean(1, keepdims=True), 0, None)

    with receipt() as r:
        mixed(np.ones((3, 3)), np.ones((3, 3)))
    assert (r.forward_flops, r.uncounted) == (9 + 2 * 27 + 9 + 9 + 9, {})
    with receipt() as r:
        centered(np.ones((3, 3)))
    assert (r.forward_flops, r.uncounted) == (2 * (9 + 3) + 9 + 9 + 3 + 9, {})


def test_a_vjp_that_makes_a_tensor_is_counted_once():
    doubled = minigrad.op(lambda x: x + x)
    doubled.vjp("x", lambda g, x: 2 * g * minigrad.ones_like(x))
    assert counted(doubled, 5).backward_flops == 2 * 5


def test_the_vjp_of_a_sequence_is_counted():
    @minigrad.op
    def joined(arrays, axis=0):
        return np.concatenate(arrays, axis)

    @joined.vjp("arrays")
    def _one(g, argnum, arrays_shape, axis):
        starts = arrays_shape.starts(axis)
        part = minigrad.getitem(g, (*[slice(None)] * axis, slice(*starts[argnum : argnum + 2])))
        return part * 1.0

    r = counted(lambda *xs: joined(xs), (2, 3), (4, 3))
    assert (r.forward_flops, r.backward_flops, r.uncounted) == (18, 18, {})


def test_a_joint_vjp_in_ops_is_counted_for_the_inputs_that_need_it():
    @minigrad.op
    def ratio(x, y):
        return x / y

    def both(g, needs_input_grad, x, y):
        shared = g / y
        return shared, -shared * x / y if needs_input_grad[1] else None

    ratio.joint_vjp(("x", "y"), both)
    for of_x, of_y, flops in ((True, False, 4), (True, True, 16), (False, True, 16)):
        x, y = (Tensor(np.ones(4), requires_grad=flag) for flag in (of_x, of_y))
        with receipt() as r:
            ratio(x, y).sum().backward()
        assert (r.backward_flops, r.uncounted) == (flops, {})


def test_a_cost_that_names_what_there_is_not_is_an_error():
    with pytest.raises(ValueError, match="`sample` asks for 'z'; it can have x, out"):

        @minigrad.op(cost=lambda z: 1)
        def sample(x):
            return x


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
        (lambda p: RMSprop(p), 9),
        (lambda p: RMSprop(p, centered=True, momentum=0.9, weight_decay=0.1), 19),
        (lambda p: Adagrad(p), 7),
        (lambda p: Adagrad(p, weight_decay=0.1), 9),
        (lambda p: SGD(p, maximize=True), 3),
    ],
)
def test_a_step_costs_its_formula_for_each_number_with_a_gradient(make, each):
    p, unused = (Tensor(np.ones(7), requires_grad=True) for _ in range(2))
    optimizer = make([p, unused])
    p.sum().backward()
    with receipt() as r:
        optimizer.step()
    assert r.optimizer_flops == r.flops == 7 * each
    assert set(STEP_COSTS) == {SGD, Adam, AdamW, RMSprop, Adagrad}


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
