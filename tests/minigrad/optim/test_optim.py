"""Optimisers: PyTorch's numbers, one step worked by hand, states, and what they refuse."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import minigrad
from minigrad.nn import MLP, Linear, Parameter
from minigrad.optim import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Optimizer,
    RMSprop,
    clip_grad_norm,
    clip_grad_value,
    grad_norm,
)
from minigrad.training.trainer import Trainer

FIXTURE = Path(__file__).parents[2] / "fixtures" / "optim.safetensors"
with safe_open(FIXTURE, framework="numpy") as file:
    REFERENCE = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    CASES = json.loads(file.metadata()["cases"])
    SNAPSHOTS = json.loads(file.metadata()["snapshots"])
    CLIP_VALUES = json.loads(file.metadata()["clip values"])

OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.2, weight_decay=0.1),
    "nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, lr=0.1, weight_decay=0.1),
    "adamw": lambda p: AdamW(p, lr=0.1),
    "amsgrad": lambda p: AdamW(p, lr=0.1, amsgrad=True),
    "rmsprop": lambda p: RMSprop(p, lr=0.1, weight_decay=0.1),
    "centered": lambda p: RMSprop(p, lr=0.1, centered=True, momentum=0.5),
    "adagrad": lambda p: Adagrad(p, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.5),
    "uphill": lambda p: SGD(p, lr=0.1, momentum=0.9, maximize=True),
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=OPTIMIZERS, ids=str)
def make(request):
    return OPTIMIZERS[request.param]


def parameter(values, gradient=None, dtype=np.float64):
    p = Parameter(np.asarray(values, dtype))
    if gradient is not None:
        p.grad = minigrad.tensor(np.asarray(gradient, dtype))
    return p


def give_gradients(parameters, rng):
    for p in parameters:
        p.grad = minigrad.tensor(rng.standard_normal(p.shape).astype(p.dtype))


# ----------------------------------------------------------------------------------------------
# PyTorch's numbers
# ----------------------------------------------------------------------------------------------


def trajectory(optimizer_name, options, dtype):
    """What make_optim.run does, with our optimisers."""
    tensors = {key: minigrad.tensor(REFERENCE[key].astype(dtype)) for key in ("x", "y")}
    x, y = tensors.values()
    names = ("w", "b", "v", "scale", "late")
    parameters = [parameter(REFERENCE[name], dtype=dtype) for name in names]
    w, b, v, scale, late = parameters
    optimizer = getattr(minigrad.optim, optimizer_name)(parameters, **options)
    rows = []
    for step in range(1, SNAPSHOTS[-1] + 1):
        optimizer.zero_grad()
        hidden = minigrad.tanh(x @ w.T + b)
        out = scale * (hidden @ v.reshape(4, 1)).reshape(7)
        loss = ((out - y) ** 2).mean()
        if step % 3 == 0:
            loss = loss + ((late - 0.5) ** 4).sum()
        loss.backward()
        optimizer.step()
        if step in SNAPSHOTS:
            rows.append(np.concatenate([p.data.ravel() for p in parameters]))
    return np.stack(rows)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_a_hundred_steps_are_those_of_pytorch(case, dtype):
    rows = trajectory(*CASES[case], dtype)
    assert rows.dtype == dtype
    # PyTorch's own float32 weights are up to 1.2e-6 from its float64 ones, and so are ours.
    tolerance = 3e-6 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(rows, REFERENCE[f"{case}; {dtype}"], rtol=0, atol=tolerance)


def test_no_two_cases_of_the_fixture_are_alike():
    rows = [REFERENCE[f"{case}; float64"][-1] for case in CASES]
    for i, row in enumerate(rows):
        for other in rows[:i]:
            assert abs(row - other).max() > 1e-4


# ----------------------------------------------------------------------------------------------
# Steps worked by hand
# ----------------------------------------------------------------------------------------------


def two_steps(optimizer, p, gradient):
    values = []
    for _ in range(2):
        p.grad = minigrad.tensor(np.array(gradient))
        optimizer.step()
        values.append(p.data.copy())
    return values


def test_sgd_by_hand():
    p = parameter([1.0, -2.0])
    first, second = two_steps(SGD([p], lr=0.1), p, [0.5, -1.0])
    np.testing.assert_allclose(first, [0.95, -1.9], rtol=1e-15)
    np.testing.assert_allclose(second, [0.9, -1.8], rtol=1e-15)


def test_momentum_by_hand():
    p = parameter([1.0])
    first, second = two_steps(SGD([p], lr=0.1, momentum=0.9), p, [0.5])
    np.testing.assert_allclose(first, [1 - 0.1 * 0.5], rtol=1e-15)
    np.testing.assert_allclose(second, [0.95 - 0.1 * (0.9 * 0.5 + 0.5)], rtol=1e-15)


def test_dampening_spares_the_first_step():
    p = parameter([1.0])
    first, second = two_steps(SGD([p], lr=0.1, momentum=0.9, dampening=0.5), p, [0.5])
    np.testing.assert_allclose(first, [1 - 0.1 * 0.5], rtol=1e-15)
    np.testing.assert_allclose(second, [0.95 - 0.1 * (0.9 * 0.5 + 0.5 * 0.5)], rtol=1e-15)


def test_nesterov_by_hand():
    p = parameter([1.0])
    first, second = two_steps(SGD([p], lr=0.1, momentum=0.9, nesterov=True), p, [0.5])
    np.testing.assert_allclose(first, [1 - 0.1 * (0.5 + 0.9 * 0.5)], rtol=1e-15)
    np.testing.assert_allclose(second, first - 0.1 * (0.5 + 0.9 * 0.95), rtol=1e-15)


def test_l2_penalty_by_hand():
    p = parameter([2.0])
    first, _ = two_steps(SGD([p], lr=0.1, weight_decay=0.25), p, [0.5])
    np.testing.assert_allclose(first, [2 - 0.1 * (0.5 + 0.25 * 2)], rtol=1e-15)


def test_first_step_of_adam_is_lr_in_the_direction_of_the_sign():
    p = parameter([1.0, 1.0, 1.0])
    first, _ = two_steps(Adam([p], lr=0.1, eps=0.0), p, [1e-3, -5.0, 1e4])
    np.testing.assert_allclose(first, [0.9, 1.1, 0.9], rtol=1e-14)


def test_eps_of_adam_is_added_to_the_corrected_root():
    p = parameter([1.0])
    first, _ = two_steps(Adam([p], lr=0.1, eps=1.0), p, [3.0])
    np.testing.assert_allclose(first, [1 - 0.1 * 3 / (3 + 1)], rtol=1e-14)


def test_adamw_decays_the_weight_and_not_the_gradient():
    p = parameter([2.0])
    first, _ = two_steps(AdamW([p], lr=0.1, weight_decay=0.5, eps=0.0), p, [3.0])
    np.testing.assert_allclose(first, [2 * (1 - 0.1 * 0.5) - 0.1], rtol=1e-14)


def test_l2_penalty_of_adam_goes_through_the_moments():
    p = parameter([2.0])
    first, _ = two_steps(Adam([p], lr=0.1, weight_decay=0.5, eps=1.0), p, [3.0])
    np.testing.assert_allclose(first, [2 - 0.1 * 4 / (4 + 1)], rtol=1e-14)


def test_amsgrad_divides_by_the_highest_moment():
    p = parameter([0.0, 0.0])
    optimizer = Adam([p], lr=0.1, betas=(0.0, 0.5), eps=0.0, amsgrad=True)
    values = []
    for gradient in ([4.0, 1.0], [1.0, 4.0]):
        p.grad = minigrad.tensor(np.array(gradient))
        optimizer.step()
        values.append(p.data.copy())
    # v is [8, 0.5], then [4.5, 8.25]; the correction of step 2 is 1 - 0.5^2 for either maximum.
    np.testing.assert_allclose(values[0], [-0.1, -0.1], rtol=1e-14)
    second = -0.1 * np.array([1.0, 4.0]) / np.sqrt(np.array([8.0, 8.25]) / 0.75)
    np.testing.assert_allclose(values[1] - values[0], second, rtol=1e-14)
    highest = optimizer.state_dict()["state"][0]["max_exp_avg_sq"]
    np.testing.assert_allclose(highest, [8.0, 8.25], rtol=1e-14)


def test_rmsprop_by_hand():
    p = parameter([1.0])
    first, second = two_steps(RMSprop([p], lr=0.1, alpha=0.5, eps=1.0), p, [4.0])
    np.testing.assert_allclose(first, [1 - 0.1 * 4 / (math.sqrt(8) + 1)], rtol=1e-14)
    np.testing.assert_allclose(second - first, [-0.1 * 4 / (math.sqrt(12) + 1)], rtol=1e-14)


def test_momentum_of_rmsprop_adds_up_what_was_divided():
    p = parameter([1.0])
    first, second = two_steps(RMSprop([p], lr=0.1, alpha=0.0, eps=0.0, momentum=0.5), p, [4.0])
    np.testing.assert_allclose([*first, *second], [0.9, 0.9 - 0.15], rtol=1e-14)


def test_centered_rmsprop_divides_by_the_root_of_the_variance():
    p = parameter([1.0])
    first, _ = two_steps(RMSprop([p], lr=0.1, alpha=0.5, eps=0.0, centered=True), p, [4.0])
    np.testing.assert_allclose(first, [1 - 0.1 * 4 / math.sqrt(8 - 2**2)], rtol=1e-14)


def test_a_variance_that_is_rounded_below_0_makes_no_nan(rng):
    p = parameter(np.ones(1000), dtype=np.float32)
    optimizer = RMSprop([p], lr=1e-3, alpha=0.7, centered=True)
    p.grad = minigrad.tensor(rng.standard_normal(1000).astype(np.float32))
    for _ in range(100):
        optimizer.step()
    state = optimizer.state_dict()["state"][0]
    assert (state["square_avg"] < state["grad_avg"] ** 2).any()
    assert np.isfinite(p.data).all()


def test_adagrad_by_hand():
    p = parameter([1.0])
    optimizer = Adagrad([p], lr=0.1, lr_decay=0.5, initial_accumulator_value=9.0, eps=0.0)
    first, second = two_steps(optimizer, p, [4.0])
    np.testing.assert_allclose(first, [1 - 0.1 * 4 / 5], rtol=1e-14)
    np.testing.assert_allclose(second - first, [-0.1 / 1.5 * 4 / math.sqrt(41)], rtol=1e-14)


@pytest.mark.parametrize("cls", [SGD, Adam, AdamW, RMSprop, Adagrad])
def test_maximize_climbs_as_the_negative_gradient_would(rng, cls):
    p = parameter(rng.standard_normal(3))
    q = parameter(p.data.copy())
    up, down = cls([p], weight_decay=0.1, maximize=True), cls([q], weight_decay=0.1)
    for _ in range(3):
        give_gradients([p], rng)
        q.grad = -p.grad
        up.step()
        down.step()
    assert np.array_equal(p.data, q.data)


@pytest.mark.parametrize("gradients", [(math.nan, 1.0), (1.0, math.nan)])
def test_a_nan_stays_in_the_highest_moment(gradients):
    p = parameter([0.0])
    optimizer = Adam([p], betas=(0.0, 0.0), amsgrad=True)
    for gradient in gradients:
        p.grad = minigrad.tensor(np.array([gradient]))
        optimizer.step()
    assert math.isnan(optimizer.state_dict()["state"][0]["max_exp_avg_sq"][0])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy says so, and goes on
def test_eps_zero_divides_as_numpy_does():
    p = parameter([1.0, 1.0], [0.0, 1.0])
    Adam([p], lr=0.1, eps=0.0).step()
    np.testing.assert_array_equal(p.data, [np.nan, 0.9])


def test_defaults_are_those_of_pytorch():
    p = parameter([1.0])
    adam = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False}
    sgd = {"lr": 1e-3, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False}
    rmsprop = {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0, "momentum": 0}
    adagrad = {"lr": 1e-2, "lr_decay": 0, "weight_decay": 0, "eps": 1e-10}
    for optimizer, options in [
        (SGD, sgd),
        (Adam, adam | {"weight_decay": 0}),
        (AdamW, adam | {"weight_decay": 1e-2}),
        (RMSprop, rmsprop | {"centered": False}),
        (Adagrad, adagrad | {"initial_accumulator_value": 0}),
    ]:
        assert optimizer([p]).param_groups == [{"params": [p], **options, "maximize": False}]


# ----------------------------------------------------------------------------------------------
# Memory
# ----------------------------------------------------------------------------------------------


def test_memory_that_is_not_contiguous_is_stepped_in_place(rng, make):
    base = rng.standard_normal((6, 8))
    strided = minigrad.Tensor(base[::2, ::2], requires_grad=True)  # shares the memory
    plain = parameter(base[::2, ::2])
    turned = Parameter(np.asfortranarray(plain.data))
    untouched = base[1::2].copy()
    assert not strided.data.flags.c_contiguous
    assert not turned.data.flags.c_contiguous
    optimizer = make([strided, plain, turned])
    for _ in range(3):
        give_gradients([plain], rng)
        strided.grad = turned.grad = plain.grad
        optimizer.step()
    np.testing.assert_allclose(strided.data, plain.data, rtol=1e-13)
    np.testing.assert_allclose(turned.data, plain.data, rtol=1e-13)
    assert np.array_equal(base[::2, ::2], strided.data)
    assert np.array_equal(base[1::2], untouched)


def test_parameters_of_any_shape_can_be_stepped(rng, make):
    for shape in ((), (0,), (1,), (2, 3, 4)):
        p = parameter(rng.standard_normal(shape), rng.standard_normal(shape))
        before, data = p.data.copy(), p.data
        make([p]).step()
        assert p.data is data, shape
        assert p.shape == shape
        assert (p.data != before).all(), shape


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parameters_and_states_keep_their_dtype(rng, make, dtype):
    p = parameter(rng.standard_normal(3), rng.standard_normal(3), dtype)
    optimizer = make([p])
    optimizer.step()
    assert p.dtype == dtype
    arrays = [v for v in optimizer.state_dict()["state"][0].values() if isinstance(v, np.ndarray)]
    assert all(a.dtype == dtype for a in arrays)


def test_half_precision_has_a_state_in_single_in_which_small_squares_are_not_0(make):
    gradients = np.float32([1e-5, -1e-4, 1e-3])  # the squares of the first two are 0 in float16
    single, half = (parameter(np.ones(3), gradients, dtype) for dtype in (np.float32, np.float16))
    right, found = make([single]), make([half])
    for step in range(20):
        right.step()
        found.step()
        assert half.dtype == np.float16
        np.testing.assert_allclose(half.data, single.data, 0.01, 0.01, err_msg=f"{step=}")
    assert found.state_bytes() == right.state_bytes()

    state = found.state_dict()
    arrays = [v for v in state["state"].get(0, {}).values() if isinstance(v, np.ndarray)]
    assert all(a.dtype == np.float32 for a in arrays)
    for one in state["state"].values():  # as earlier versions saved it
        one.update((k, v.astype(np.float16)) for k, v in one.items() if isinstance(v, np.ndarray))
    found.load_state_dict(state)
    found.step()
    assert found.state_bytes() == right.state_bytes()


def test_a_model_that_is_converted_to_half_precision_has_a_state_in_single(make):
    p = parameter(np.ones(3), np.ones(3))
    optimizer = make([p])
    optimizer.step()
    p.data = p.data.astype(np.float16)
    p.grad = minigrad.tensor(np.ones(3, np.float16))
    optimizer.step()
    arrays = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, np.ndarray)]
    assert all(a.dtype == np.float32 for a in arrays)
    assert np.isfinite(p.data).all()


def test_the_gradient_is_not_changed_by_a_step(rng, make):
    p = parameter(rng.standard_normal(3), rng.standard_normal(3))
    before = p.grad.data.copy()
    make([p]).step()
    assert np.array_equal(p.grad.data, before)


def test_a_step_is_seen_by_a_graph_that_saved_the_parameter(make):
    p = parameter([1.0, 2.0], [1.0, 1.0])
    square = (p * p).sum()
    make([p]).step()
    with pytest.raises(RuntimeError, match=r"written|changed"):
        square.backward()


def test_a_skipped_parameter_is_not_marked_as_written(make):
    stepped, skipped = parameter([1.0], [1.0]), parameter([1.0, 2.0])
    square = (skipped * skipped).sum()
    make([stepped, skipped]).step()
    square.backward()
    assert skipped.grad.tolist() == [2.0, 4.0]


# ----------------------------------------------------------------------------------------------
# What is stepped
# ----------------------------------------------------------------------------------------------


def test_a_parameter_without_a_gradient_is_skipped_and_gets_no_state(make):
    idle, busy = parameter([1.0]), parameter([1.0], [1.0])
    optimizer = make([idle, busy])
    optimizer.step()
    assert idle.data == 1.0
    assert busy.data != 1.0
    assert 0 not in optimizer.state_dict()["state"]


def test_steps_without_a_gradient_do_not_count():
    p = parameter([1.0])
    optimizer = Adam([p])
    for gradient in (None, [1.0], None, [1.0]):
        p.grad = None if gradient is None else minigrad.tensor(np.array(gradient))
        optimizer.step()
    assert optimizer.state_dict()["state"][0]["step"] == 2


def test_a_parameter_frozen_later_is_skipped(make):
    p = parameter([1.0], [1.0])
    optimizer = make([p])
    p.requires_grad_(False)
    optimizer.step()
    assert p.data == 1.0


def test_a_gradient_of_zeros_is_a_gradient():
    p = parameter([1.0], [0.0])
    SGD([p], lr=0.1, weight_decay=0.5).step()
    assert p.data == 1 - 0.1 * 0.5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_means_of_gradients_that_stay_0_become_0(rng, make, dtype):
    tiny = np.finfo(dtype).tiny
    strided = minigrad.Tensor(np.ones((4, 8), dtype)[:, ::2], requires_grad=True)
    parameters = [parameter(np.ones(20), dtype=dtype), strided]
    optimizer = make(parameters)
    give_gradients(parameters, rng)
    optimizer.step()
    state = optimizer.state_dict()
    for values in state["state"].values():
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                values[name] = (3 * tiny * rng.uniform(0.5, 1, value.shape)).astype(dtype)
    optimizer.load_state_dict(state)
    for p in parameters:
        p.data[...] = 0  # else a weight decay would add to the means
        p.grad = minigrad.zeros(*p.shape, dtype=dtype)
    for _ in range(100):
        optimizer.step()
    for values in optimizer.state_dict()["state"].values():
        for value in values.values():
            sizes = np.abs(value)
            assert np.all((sizes == 0) | (sizes >= tiny))


@pytest.mark.parametrize(
    "make_without_eps",
    [
        lambda p: Adam(p, eps=0),
        lambda p: Adam(p, eps=0, amsgrad=True),
        lambda p: RMSprop(p, eps=0),
        lambda p: RMSprop(p, eps=0, momentum=0.5),
        lambda p: RMSprop(p, eps=0, centered=True),
        lambda p: RMSprop(p, eps=0, centered=True, momentum=0.5),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_without_eps_a_step_does_not_depend_on_the_scale_of_gradients(rng, make_without_eps, dtype):
    scale = 0.3 * np.finfo(dtype).tiny ** 0.5  # so the squares are subnormal
    gradients = rng.uniform(1, 2, (5, 20)).astype(dtype)
    results = []
    for factor in (1, np.array(scale, dtype)):
        p = parameter(np.ones(20), dtype=dtype)
        optimizer = make_without_eps([p])
        for g in gradients:
            p.grad = minigrad.tensor(factor * g)
            optimizer.step()
        results.append(p.data)
    np.testing.assert_allclose(*results, rtol=1e-4)


def test_zero_grad_forgets_all_gradients(make):
    p, q = parameter([1.0], [1.0]), parameter([2.0], [2.0])
    optimizer = make([{"params": [p]}, {"params": [q]}])
    optimizer.zero_grad()
    assert p.grad is None
    assert q.grad is None


def test_zero_grad_can_leave_zeros_in_new_memory(make):
    p, q, idle = parameter([[1.0, 2.0]], [[3.0, 4.0]], np.float32), parameter([1.0]), parameter(1.0)
    held = p.grad
    q.grad = minigrad.tensor(np.array([5.0]))
    make([p, q, idle]).zero_grad(set_to_none=False)
    assert (p.grad.tolist(), q.grad.tolist(), idle.grad) == ([[0.0, 0.0]], [0.0], None)
    assert p.grad.dtype == np.float32
    assert held.tolist() == [[3.0, 4.0]]


def test_any_iterable_of_tensors_will_do(make):
    model = MLP([2, 3, 1])
    count = len(make(model.parameters()).param_groups[0]["params"])
    assert count == 4
    assert len(make(iter([minigrad.ones((2,), requires_grad=True)])).param_groups) == 1


# ----------------------------------------------------------------------------------------------
# Groups
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [SGD, Adam, AdamW, RMSprop, Adagrad])
def test_groups_step_as_optimisers_of_their_own(rng, cls):
    p, q = parameter(rng.standard_normal(3)), parameter(rng.standard_normal(4))
    p2, q2 = copy.deepcopy((p, q))
    one = cls([{"params": [p], "lr": 0.5}, {"params": q, "weight_decay": 0.3}], lr=0.1)
    two = [cls([p2], lr=0.5), cls([q2], lr=0.1, weight_decay=0.3)]
    for _ in range(3):
        give_gradients([p, q], rng)
        p2.grad, q2.grad = p.grad, q.grad
        for optimizer in (one, *two):
            optimizer.step()
    assert np.array_equal(p.data, p2.data)
    assert np.array_equal(q.data, q2.data)


def test_a_group_that_is_added_is_stepped_as_if_it_had_been_there(rng, make):
    p, q = parameter(rng.standard_normal(3)), parameter(rng.standard_normal(4))
    p2, q2 = copy.deepcopy((p, q))
    grown, whole = make([p]), make([{"params": [p2]}, {"params": [q2], "lr": 0.3}])
    assert grown.add_param_group({"params": q, "lr": 0.3}) is None
    assert [{**g, "params": 0} for g in grown.param_groups] == [
        {**g, "params": 0} for g in whole.param_groups
    ]
    for _ in range(3):
        give_gradients([p, q], rng)
        p2.grad, q2.grad = p.grad, q.grad
        grown.step()
        whole.step()
    assert np.array_equal(p.data, p2.data)
    assert np.array_equal(q.data, q2.data)
    assert set(grown.state_dict()["state"]) == set(whole.state_dict()["state"])


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        (lambda p, q: [q], TypeError, "group 1 must be a dict with 'params'"),
        (lambda p, q: {"lr": 0.1}, TypeError, "group 1 must be a dict with 'params'"),
        (lambda p, q: {"params": [q], "rate": 1}, TypeError, r"group 1 has unknown.*rate.*lr"),
        (lambda p, q: {"params": [q, "w"]}, TypeError, "parameter 1 of group 1 must be a Tensor"),
        (lambda p, q: {"params": Linear(1, 1)}, TypeError, "group 1 are a list.* not Linear"),
        (lambda p, q: {"params": None}, TypeError, "group 1 are a list of tensors.* not None"),
        (lambda p, q: {"params": {q}}, TypeError, "in the same order in each run.* not {"),
        (lambda p, q: {"params": [q, p]}, ValueError, "parameter 1 of group 1 occurs twice"),
        (lambda p, q: {"params": [q, q]}, ValueError, "parameter 1 of group 1 occurs twice"),
        (lambda p, q: {"params": [q * 1]}, ValueError, "parameter 0 of group 1 .* only leaves"),
        (lambda p, q: {"params": [q.detach()]}, ValueError, "parameter 0 of group 1 is frozen"),
        (lambda p, q: {"params": [q], "lr": -1}, ValueError, "lr must be in"),
    ],
)
def test_a_group_that_cannot_be_added_is_an_error_and_changes_nothing(group, error, message):
    p, q = parameter([1.0]), parameter([2.0])
    optimizer = Adam([p])
    with pytest.raises(error, match=message):
        optimizer.add_param_group(group(p, q))
    assert [g["params"] for g in optimizer.param_groups] == [[p]]
    optimizer.add_param_group({"params": [q]})
    assert [g["params"] for g in optimizer.param_groups] == [[p], [q]]


def test_options_may_change_between_steps():
    p = parameter([1.0], [1.0])
    optimizer = SGD([p], lr=0.1)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    np.testing.assert_allclose(p.data, [1 - 0.1 - 0.5], rtol=1e-15)


def test_the_groups_that_were_handed_in_stay_as_they_are():
    p = parameter([1.0])
    group = {"params": [p], "lr": 0.5}
    SGD([group]).param_groups[0]["lr"] = 0.1
    assert group == {"params": [p], "lr": 0.5}


def test_repr_counts_by_group():
    optimizer = SGD([{"params": [parameter(np.ones((40, 30)))], "lr": 0.5}, {"params": []}])
    assert "group 0: 1 tensor, 1,200 parameters, lr=0.5" in repr(optimizer)
    assert "group 1: 0 tensors, 0 parameters, lr=0.001" in repr(optimizer)


@pytest.mark.parametrize(
    ("make", "per_number"),
    [
        (lambda p: SGD(p), 0),
        (lambda p: SGD(p, momentum=0.9), 4),
        (lambda p: Adam(p), 8),
        (lambda p: AdamW(p), 8),
        (lambda p: AdamW(p, amsgrad=True), 12),
    ],
)
def test_state_bytes_is_the_memory_of_the_moments(rng, make, per_number):
    p = parameter(np.ones((4, 5)), np.ones((4, 5)), np.float32)
    optimizer = make([p, parameter(np.ones(100), dtype=np.float32)])
    assert optimizer.state_bytes() == 0
    optimizer.step()
    assert optimizer.state_bytes() == per_number * 20


# ----------------------------------------------------------------------------------------------
# States
# ----------------------------------------------------------------------------------------------


def started(make, rng, steps=3):
    """Parameters, of which one is idle, and an optimiser after some steps."""
    parameters = [parameter(rng.standard_normal(s)) for s in [(3, 2), (), (2,), (4,)]]
    optimizer = make([{"params": parameters[:2], "lr": 0.3}, {"params": parameters[2:]}])
    for _ in range(steps):
        give_gradients(parameters[:3], rng)
        optimizer.step()
    return parameters, optimizer


def test_a_state_goes_on_bit_for_bit(rng, make):
    parameters, optimizer = started(make, rng)
    twins = copy.deepcopy(parameters)
    other = make([{"params": twins[:2], "lr": 0.9}, {"params": twins[2:]}])
    other.load_state_dict(optimizer.state_dict())
    for _ in range(3):
        give_gradients(parameters, rng)
        for p, twin in zip(parameters, twins, strict=True):
            twin.grad = p.grad
        optimizer.step()
        other.step()
    for p, twin in zip(parameters, twins, strict=True):
        assert np.array_equal(p.data, twin.data)
    assert other.param_groups[0]["lr"] == 0.3


def test_a_state_is_a_copy_on_both_ways(rng, make):
    parameters, optimizer = started(make, rng)
    state = optimizer.state_dict()
    before = copy.deepcopy(state)
    for _ in range(2):
        give_gradients(parameters, rng)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 7.0
        np.testing.assert_equal(state, before)
        optimizer.load_state_dict(state)


def test_a_state_holds_numbers_and_arrays_only(rng, make):
    _, optimizer = started(make, rng)
    state = optimizer.state_dict()
    assert [g["params"] for g in state["param_groups"]] == [[0, 1], [2, 3]]
    assert set(state["state"]) <= {0, 1, 2}
    for values in state["state"].values():
        assert all(isinstance(v, (np.ndarray, int, float)) for v in values.values())


def test_an_optimiser_and_its_model_can_be_deep_copied_together(rng, make):
    parameters, optimizer = started(make, rng)
    twins, other = copy.deepcopy((parameters, optimizer))
    before = parameters[0].data.copy()
    give_gradients(twins, rng)
    other.step()
    assert np.array_equal(parameters[0].data, before)
    for p, twin in zip(parameters, twins, strict=True):
        p.grad = twin.grad
    optimizer.step()
    assert np.array_equal(parameters[0].data, twins[0].data)


@pytest.mark.parametrize("numbers", [[1, 0], [7, 8], ["1", "0"]])
def test_the_groups_of_a_state_number_its_parameters(numbers):
    parameters = [minigrad.zeros(2, requires_grad=True), minigrad.zeros(2, requires_grad=True)]
    optimizer = SGD(parameters, lr=0.1, momentum=0.9)
    state = optimizer.state_dict()
    state["param_groups"][0]["params"] = numbers
    state["state"] = {n: {"momentum_buffer": np.full(2, float(n))} for n in numbers}
    optimizer.load_state_dict(state)
    for parameter, number in zip(parameters, numbers, strict=True):
        assert optimizer.state[parameter]["momentum_buffer"][0] == float(number)
    state["param_groups"][0]["params"] = [1, 1]
    with pytest.raises(ValueError, match=r"load_state_dict: .*list parameters twice: \[1, 1\]"):
        optimizer.load_state_dict(state)


def test_errors_of_a_step_name_it():
    parameter = minigrad.zeros(2, requires_grad=True)
    parameter.grad = minigrad.ones(2)
    optimizer = Adam([parameter], lr=0.1)
    optimizer.step()
    optimizer.param_groups[0]["betas"] = (2, 3)
    with pytest.raises(ValueError, match=r"^step: each of betas must be in"):
        optimizer.step()
    del optimizer.param_groups[0]["betas"]
    with pytest.raises(ValueError, match=r"^step: a group lacks the options \['betas'\]; "):
        optimizer.step()
    with pytest.raises(TypeError, match="it takes no closure, epoch or loss"):
        optimizer.step(lambda: 1.0)


def test_an_error_about_an_option_in_a_state_names_the_method():
    optimizer = SGD([minigrad.zeros(2, requires_grad=True)], lr=0.1)
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = -1
    with pytest.raises(ValueError, match=r"^load_state_dict: lr must be in"):
        optimizer.load_state_dict(state)


def other_group_sizes(state):
    state["param_groups"][0]["params"].append(9)


def another_shape(state):
    state["state"][0]["exp_avg"] = np.zeros(99)


def unknown_parameter(state):
    state["state"][7] = state["state"][0]


def lacks_a_moment(state):
    del state["state"][0]["exp_avg_sq"]


def lacks_an_option(state):
    del state["param_groups"][1]["lr"]


def unknown_option(state):
    state["param_groups"][1]["momentum"] = 0.9


def impossible_option(state):
    state["param_groups"][1]["lr"] = -1.0


def a_number_for_groups(state):
    state["param_groups"] = 3


FAULTS = [
    other_group_sizes,
    another_shape,
    unknown_parameter,
    lacks_a_moment,
    lacks_an_option,
    unknown_option,
    impossible_option,
    a_number_for_groups,
]


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda f: f.__name__)
def test_a_state_that_does_not_fit_is_an_error_and_changes_nothing(rng, spoil):
    _, optimizer = started(OPTIMIZERS["adam"], rng)
    before = optimizer.state_dict()
    _, longer = started(OPTIMIZERS["adam"], rng, steps=5)
    state = longer.state_dict()
    spoil(state)
    with pytest.raises(ValueError, match=r"load_state_dict|lr must be"):
        optimizer.load_state_dict(state)
    np.testing.assert_equal(optimizer.state_dict(), before)


@pytest.mark.parametrize(
    ("made", "change", "error"),
    [
        (Adam, {"amsgrad": True}, ValueError),
        (Adam, {"betas": 0.9}, TypeError),
        (RMSprop, {"centered": True}, ValueError),
        (SGD, {"momentum": -1.0}, ValueError),
        (Adagrad, {"lr": "1"}, TypeError),
        (SGD, {"lr": -1.0}, ValueError),
        (Adam, {"lr": math.nan}, ValueError),
    ],
)
def test_an_impossible_option_of_a_later_group_changes_no_group(made, change, error):
    p, q = Parameter(np.ones(2)), Parameter(np.ones(3))
    optimizer = made([{"params": [p]}, {"params": [q]}])
    for parameter in (p, q):
        parameter.grad = minigrad.tensor(np.full(parameter.shape, 0.5))
    for _ in range(2):
        optimizer.step()
    before, values = optimizer.state_dict(), [p.detach().numpy().copy(), q.detach().numpy().copy()]
    optimizer.param_groups[1].update(change)
    with pytest.raises(error):
        optimizer.step()
    np.testing.assert_equal(optimizer.state_dict()["state"], before["state"])
    np.testing.assert_equal([p.detach().numpy(), q.detach().numpy()], values)
    optimizer.param_groups[1].update({n: optimizer.param_groups[0][n] for n in change})
    optimizer.step()
    assert not np.array_equal(q.detach().numpy(), values[1])


def with_amsgrad(rng, first, second):
    """An Adam of two groups after a step."""
    p, q = parameter(rng.standard_normal(3)), parameter(rng.standard_normal(2))
    optimizer = Adam([{"params": p, "amsgrad": first}, {"params": q, "amsgrad": second}])
    give_gradients([p, q], rng)
    optimizer.step()
    return optimizer


def test_the_highest_moments_are_kept_where_amsgrad_is_on(rng):
    state = with_amsgrad(rng, True, False).state_dict()
    names = {"step", "exp_avg", "exp_avg_sq"}
    assert set(state["state"][0]) == names | {"max_exp_avg_sq"}
    assert set(state["state"][1]) == names
    other = with_amsgrad(rng, False, True)
    other.load_state_dict(state)
    np.testing.assert_equal(other.state_dict(), state)


@pytest.mark.parametrize("number", [0, 1])
def test_a_state_must_fit_amsgrad_of_its_group(rng, number):
    optimizer = with_amsgrad(rng, True, False)
    state = optimizer.state_dict()
    before = copy.deepcopy(state)
    state["param_groups"][number]["amsgrad"] = not state["param_groups"][number]["amsgrad"]
    with pytest.raises(ValueError, match=rf"state of parameter {number} .*exp_avg_sq"):
        optimizer.load_state_dict(state)
    np.testing.assert_equal(optimizer.state_dict(), before)


@pytest.mark.parametrize(("name", "on", "off"), [("momentum", 0.5, 0.0), ("centered", True, False)])
def test_a_state_keeps_what_rmsprop_does_not_use_any_more(rng, name, on, off):
    _, optimizer = started(lambda p: RMSprop(p, **{name: on}), rng)
    optimizer.param_groups[0][name] = off
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    np.testing.assert_equal(optimizer.state_dict(), state)


def test_centered_cannot_be_switched_off_and_on_again(rng):
    _, optimizer = started(lambda p: RMSprop(p, centered=True), rng)
    optimizer.param_groups[0]["centered"] = False
    optimizer.step()
    optimizer.param_groups[0]["centered"] = True
    with pytest.raises(ValueError, match="centered cannot be switched on"):
        optimizer.step()
    optimizer.param_groups[0]["centered"] = False
    optimizer.load_state_dict(optimizer.state_dict())


def test_rmsprop_cannot_be_centered_after_a_step(rng):
    _, optimizer = started(RMSprop, rng)
    optimizer.param_groups[0]["centered"] = True
    with pytest.raises(ValueError, match="centered cannot be switched on"):
        optimizer.step()


@pytest.mark.parametrize("first", [True, False])
def test_amsgrad_cannot_be_switched_after_a_step(rng, first):
    optimizer = with_amsgrad(rng, first, first)
    p = optimizer.param_groups[0]["params"][0]
    value, state = p.data.copy(), optimizer.state_dict()["state"]
    optimizer.param_groups[0]["amsgrad"] = not first
    with pytest.raises(ValueError, match="amsgrad cannot be switched"):
        optimizer.step()
    assert np.array_equal(p.data, value)
    np.testing.assert_equal(optimizer.state_dict()["state"], state)


def test_a_switch_that_a_state_does_not_know_is_off(rng):
    parameters, optimizer = started(OPTIMIZERS["adam"], rng)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["amsgrad"]
    optimizer.load_state_dict(state)
    assert [g["amsgrad"] for g in optimizer.param_groups] == [False, False]
    amsgrad = Adam([{"params": parameters[:2]}, {"params": parameters[2:]}], amsgrad=True)
    with pytest.raises(ValueError, match=r"lacks \['amsgrad'\]"):
        amsgrad.load_state_dict(state)


def test_a_state_of_another_optimiser_is_an_error(rng):
    _, sgd = started(OPTIMIZERS["momentum"], rng)
    _, adam = started(OPTIMIZERS["adam"], rng)
    with pytest.raises(ValueError, match=r"load_state_dict.*momentum"):
        adam.load_state_dict(sgd.state_dict())


# ----------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------

leaf = minigrad.ones((2,), dtype=np.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ([], ValueError, "no parameters"),
        ([{"params": []}], ValueError, "no parameters"),
        ([minigrad.ones((2,))], ValueError, "parameter 0 of group 0 is frozen"),
        ([leaf, minigrad.ones((2,), dtype=int)], ValueError, "parameter 1 of group 0 is frozen"),
        ([leaf, leaf], ValueError, "parameter 1 of group 0 occurs twice"),
        ([{"params": [leaf]}, {"params": leaf}], ValueError, "0 of group 1 occurs twice"),
        ([leaf * 2], ValueError, "only leaves.*"),
        ([np.ones(2)], TypeError, "must be a Tensor, not ndarray"),
        ([("name", leaf)], TypeError, "must be a Tensor, not tuple"),
        ([{"lr": 0.1}], TypeError, "group 0 must be a dict with 'params'"),
        ([{"params": [leaf]}, leaf], TypeError, "group 1 must be a dict with 'params'"),
        (
            [{"params": [leaf], "learning_rate": 1}],
            TypeError,
            r"unknown options.*learning_rate.*lr",
        ),
    ],
)
def test_parameters_that_cannot_be_trained_are_errors(parameters, error, message):
    with pytest.raises(error, match=message):
        Adam(parameters)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        *((cls, {"lr": lr}) for cls in (SGD, Adam) for lr in (-0.1, math.nan, math.inf)),
        *((cls, {"weight_decay": w}) for cls in (SGD, AdamW) for w in (-0.1, math.nan, math.inf)),
        *((SGD, {"momentum": m}) for m in (-0.1, math.nan, math.inf)),
        *((SGD, {"momentum": 0.9, "dampening": d}) for d in (math.nan, math.inf, -math.inf)),
        (SGD, {"nesterov": True}),
        (SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
        *((Adam, {"eps": eps}) for eps in (-1e-8, math.nan, math.inf)),
        *((Adam, {"betas": b}) for b in [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, math.nan)]),
        *((AdamW, {"betas": b}) for b in [(0.9,), (0.9, 0.9, 0.9)]),
        *((RMSprop, {"alpha": alpha}) for alpha in (-0.1, 1.1, math.nan)),
        *(
            (RMSprop, {name: value})
            for name in ("lr", "eps", "weight_decay", "momentum")
            for value in (-0.1, math.inf)
        ),
        *(
            (Adagrad, {name: value})
            for name in ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")
            for value in (-0.1, math.nan)
        ),
    ],
)
def test_impossible_options_are_errors(cls, options):
    with pytest.raises(ValueError, match="|".join(options)):
        cls([leaf], **options)
    with pytest.raises(ValueError, match="|".join(options)):
        cls([{"params": [leaf], **options}])


@pytest.mark.parametrize("cls", [SGD, Adam, AdamW, RMSprop, Adagrad])
def test_maximize_is_true_or_false(cls):
    with pytest.raises(TypeError, match="maximize must be True or False, not 1"):
        cls([leaf], maximize=1)


def test_dampening_is_a_number():
    with pytest.raises(TypeError, match=r"^SGD: dampening must be a number, not 'a'"):
        SGD([leaf], dampening="a")


@pytest.mark.parametrize("cls", [Adam, AdamW])
@pytest.mark.parametrize("betas", [0.9, None, {0.9: 0, 0.99: 0}])
def test_betas_that_are_no_pair_are_an_error_that_says_so(cls, betas):
    message = r"betas must be two numbers, as in \(0.9, 0.999\), not"
    with pytest.raises(TypeError, match=message):
        cls([{"params": [leaf], "betas": betas}])
    if not isinstance(betas, dict):
        with pytest.raises(TypeError, match=message):
            cls([leaf], betas=betas)


def test_betas_in_a_list_are_a_pair_too():
    assert Adam([leaf], betas=[0.8, 0.9]).param_groups[0]["betas"] == (0.8, 0.9)


@pytest.mark.parametrize(
    ("cls", "name"), [(Adam, "amsgrad"), (AdamW, "amsgrad"), (SGD, "nesterov")]
)
def test_a_switch_is_true_or_false(cls, name):
    for value in (1, None, "yes"):
        with pytest.raises(TypeError, match=f"{name} must be True or False"):
            cls([leaf], **{name: value})


def test_an_optimiser_of_ones_own_is_a_class_with_two_methods():
    class SignSGD(Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        def check_options(self, group):
            pass

        def update(self, x, g, state, group):
            x -= group["lr"] * np.sign(g)

    p = parameter([1.0, 1.0], [3.0, -4.0])
    SignSGD([p], 0.5).step()
    assert p.tolist() == [0.5, 1.5]


class Rows(Optimizer):
    """An optimiser whose state has a number, integers, and an array of another shape."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    def check_options(self, group):
        pass

    def state_names(self, group):
        return {"largest", "signs", "rows"}

    def update(self, x, g, state, group):
        state["largest"] = max(state.get("largest", 0.0), abs(g).max().item())
        state["signs"] = state.get("signs", np.zeros(x.shape, np.int64)) + np.sign(g).astype(int)
        state["rows"] = state.get("rows", np.zeros(len(x), x.dtype)) + (g * g).mean(1)
        x -= group["lr"] * g / np.sqrt(state["rows"])[:, None]


class LoadedRows(Rows):
    def check_value(self, role, name, value, parameter):
        shape = {"largest": (), "signs": parameter.shape, "rows": parameter.shape[:1]}[name]
        if np.shape(value) != shape:
            raise ValueError(f"{role} has shape {np.shape(value)}, and not {shape}")


def test_a_state_of_ones_own_may_hold_other_values(rng):
    parameters = [Parameter(rng.normal(size=shape)) for shape in ((2, 3), (4, 2))]
    optimizer = LoadedRows(parameters)
    for used in (2, 1, 2):
        optimizer.zero_grad()
        give_gradients(parameters[:used], rng)
        optimizer.step()
        for p in parameters:
            types = {name: getattr(v, "dtype", type(v)) for name, v in optimizer.state[p].items()}
            assert types == {"largest": float, "signs": np.int64, "rows": np.float64}
    state = optimizer.state_dict()
    other = LoadedRows(parameters)
    other.load_state_dict(state)
    np.testing.assert_equal(other.state_dict(), state)
    with pytest.raises(ValueError, match="largest of parameter 0 is an array, not"):
        Rows(parameters).load_state_dict(state)
    state["state"][1]["rows"] = np.ones(3)
    with pytest.raises(ValueError, match=r"rows of parameter 1 has shape \(3,\), and not \(4,\)"):
        other.load_state_dict(state)


def test_a_trainer_saves_a_state_of_ones_own(rng, tmp_path):
    x, y = rng.normal(size=(2, 8, 3)).astype(np.float32)
    made = []
    for _ in range(2):
        model = Linear(3, 3, bias=False)
        options = {"progress": False, "checkpoint": tmp_path / "run"}
        made.append(Trainer(model, LoadedRows(model.parameters()), minigrad.mse, **options))
    one, other = made
    one.fit((x, y), epochs=2)
    other.load(tmp_path / "run")
    np.testing.assert_equal(other.optimizer.state_dict(), one.optimizer.state_dict())


# ----------------------------------------------------------------------------------------------
# Options as attributes
# ----------------------------------------------------------------------------------------------


def test_the_learning_rate_of_all_groups_is_one_attribute():
    p, q = parameter([1.0], [1.0]), parameter([1.0], [1.0])
    optimizer = SGD([{"params": [p]}, {"params": [q], "momentum": 0.5}], lr=0.25)
    assert optimizer.lr == 0.25
    optimizer.lr = 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    optimizer.step()
    assert p.tolist() == q.tolist() == [0.5]
    optimizer.param_groups[1]["lr"] = 0.125
    with pytest.raises(ValueError, match=r"different learning rates, \[0\.5, 0\.125\]"):
        optimizer.lr  # noqa: B018  # a property
    with pytest.raises(ValueError, match="lr must be in"):
        optimizer.lr = -1.0
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.125]
    optimizer.lr = 0.75
    assert optimizer.lr == 0.75


@pytest.mark.parametrize("name", ["betas", "eps", "weight_decay", "amsgrad"])
def test_other_options_are_no_attributes(name):
    optimizer = Adam([parameter([1.0])])
    with pytest.raises(AttributeError, match=f"Adam: {name} is an option of each group"):
        setattr(optimizer, name, optimizer.param_groups[0][name])
    optimizer.note = "an attribute of one's own"
    assert optimizer.note == "an attribute of one's own"


def test_the_learning_rate_has_one_name():
    optimizer = Adam([parameter([1.0])])
    with pytest.raises(AttributeError, match="Adam: the learning rate is called lr"):
        optimizer.learning_rate = 0.5
    with pytest.raises(TypeError, match=r"learning_rate.*lr"):
        Adam([parameter([1.0])], learning_rate=0.5)


def test_an_optimiser_without_a_learning_rate_has_no_such_attribute():
    class Plain(Optimizer):
        def check_options(self, group):
            pass

    optimizer = Plain([parameter([1.0])], {})
    assert not hasattr(optimizer, "lr")
    with pytest.raises(AttributeError, match="Plain has no option lr"):
        optimizer.lr = 1.0


# ----------------------------------------------------------------------------------------------
# Clipping
# ----------------------------------------------------------------------------------------------


def with_gradients(rng, dtype=np.float64):
    shapes = [(3, 4), (), (0,), (5,)]
    ps = [parameter(np.zeros(s), rng.standard_normal(s), dtype) for s in shapes]
    return [*ps, parameter([1.0], dtype=dtype)]  # the last has none


def all_gradients(parameters):
    return np.concatenate([p.grad.data.ravel() for p in parameters if p.grad is not None])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipping_scales_all_gradients_to_the_norm(rng, dtype):
    parameters = with_gradients(rng, dtype)
    before = all_gradients(parameters)
    norm = np.linalg.norm(before.astype(np.float64))
    assert grad_norm(parameters) == pytest.approx(norm, rel=1e-6)
    assert clip_grad_norm(parameters, 0.5) == pytest.approx(norm, rel=1e-6)
    after = all_gradients(parameters)
    np.testing.assert_allclose(after, before * 0.5 / norm, rtol=1e-6)
    assert after.dtype == dtype
    assert parameters[-1].grad is None


def test_clipping_does_not_write_into_a_gradient_that_someone_holds():
    p, q = parameter([1.0], [3.0]), parameter([1.0])
    held = q.grad = p.grad
    clip_grad_norm([p, q], 1.0)
    assert held.tolist() == [3.0]
    np.testing.assert_allclose([p.grad.item(), q.grad.item()], 0.5**0.5, rtol=1e-6)


@pytest.mark.parametrize("max_norm", [1e6, math.inf])
def test_gradients_below_the_limit_are_not_touched(rng, max_norm):
    parameters = with_gradients(rng)
    before = all_gradients(parameters)
    clip_grad_norm(parameters, max_norm)
    assert np.array_equal(all_gradients(parameters), before)


def test_small_gradients_below_a_small_limit_are_not_touched():
    p = parameter([1.0, 1.0], [3e-7, 4e-7])
    clip_grad_norm([p], 1e-6)
    assert p.grad.tolist() == [3e-7, 4e-7]


def test_a_single_tensor_and_an_iterator_can_be_clipped():
    p = parameter([1.0, 1.0], [3.0, 4.0])
    assert clip_grad_norm(p, 10.0) == 5.0
    assert clip_grad_norm(iter([p]), 1.0) == 5.0
    np.testing.assert_allclose(p.grad.data, [0.6, 0.8], rtol=1e-6)


def test_norm_of_large_float32_gradients():
    p = parameter([1.0, 1.0], [3e20, 4e20], np.float32)  # whose squares are beyond float32
    assert clip_grad_norm([p], 1.0) == pytest.approx(5e20, rel=1e-6)
    np.testing.assert_allclose(p.grad.data, [0.6, 0.8], rtol=1e-6)


def test_norm_without_any_gradient_is_zero():
    assert clip_grad_norm([parameter([1.0])], 1.0) == 0.0
    assert clip_grad_norm([], 1.0) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_an_error_and_changes_nothing(value):
    parameters = [parameter([1.0], [3.0]), parameter([1.0], [value])]
    with pytest.raises(RuntimeError, match=r"norm of the gradients is (nan|inf)"):
        clip_grad_norm(parameters, 1.0)
    np.testing.assert_array_equal(all_gradients(parameters), [3.0, value])


def test_a_norm_that_is_not_finite_can_be_let_pass():
    parameters = [parameter([1.0], [3.0]), parameter([1.0], [math.nan])]
    assert math.isnan(clip_grad_norm(parameters, 1.0, error_if_nonfinite=False))
    assert np.isnan(all_gradients(parameters)).all()


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_the_limit_must_be_positive(max_norm):
    with pytest.raises(ValueError, match="max_norm must be positive"):
        clip_grad_norm([parameter([1.0], [1.0])], max_norm)


@pytest.mark.parametrize("bound", ["1", None, True, [1.0]])
def test_the_limit_must_be_a_number(bound):
    for clip in (clip_grad_norm, clip_grad_value):
        with pytest.raises(TypeError, match="must be a number, not "):
            clip([parameter([1.0], [1.0])], bound)


def test_the_gradients_of_a_module_can_be_clipped():
    model = MLP([2, 3, 1])
    for each in model.parameters():
        each.grad = minigrad.ones(each.shape)
    norm = grad_norm(model)
    assert clip_grad_norm(model, 0.5) == norm == math.sqrt(model.count_parameters())
    assert grad_norm(model) == pytest.approx(0.5, rel=1e-5)
    clip_grad_value(model, 0.01)
    assert grad_norm(model) == pytest.approx(0.01 * norm)
    with pytest.raises(TypeError, match="tensors or a Module, not 3"):
        clip_grad_norm(3, 1.0)


@pytest.mark.parametrize("given", [MLP([2, 1]), minigrad.nn.Sequential(), 3, None, {1}])
def test_an_optimiser_takes_a_list_of_tensors(given):
    with pytest.raises(TypeError, match=r"Adam: .* such as model\.trainable_parameters\(\), not "):
        Adam(given)


def test_a_parameter_that_left_its_group_is_not_in_the_state():
    p, q = parameter([1.0], [1.0]), parameter([2.0], [1.0])
    optimizer = Adam([p, q])
    optimizer.step()
    optimizer.param_groups[0]["params"].remove(p)
    state = optimizer.state_dict()
    assert (list(state["state"]), state["param_groups"][0]["params"]) == ([0], [0])
    optimizer.load_state_dict(state)


def test_a_state_with_keys_that_are_no_strings_is_refused():
    scheduler = minigrad.optim.StepLR(Adam([parameter([1.0])]), 1)
    with pytest.raises(ValueError, match=r"unknown \[1, 'a'\]"):
        scheduler.load_state_dict({**scheduler.state_dict(), "a": 0, 1: 0})


def test_a_limit_of_numpys_kind_keeps_the_dtype():
    p = parameter([1.0], [3.0], np.float32)
    clip_grad_norm([p], np.float64(2.0))
    clip_grad_value([p], np.float64(1.0))
    assert p.grad.dtype == np.float32
    assert p.grad.tolist() == [1.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("limit", CLIP_VALUES)
def test_elements_are_clipped_as_by_pytorch(dtype, limit):
    p = parameter(np.zeros(REFERENCE["gradient"].shape), REFERENCE["gradient"], dtype)
    idle = parameter([1.0])
    assert clip_grad_value(iter([p, idle]), limit) is None
    expected = REFERENCE[f"gradient, clipped to {limit}"].astype(dtype)
    np.testing.assert_array_equal(p.grad.data, expected)
    assert p.grad.dtype == dtype
    assert idle.grad is None
    clip_grad_value(p, 0.25)
    assert np.nanmax(abs(p.grad.data)) == 0.25


def test_clipping_by_value_does_not_write_into_a_gradient_that_someone_holds():
    p, q = parameter([1.0], [3.0]), parameter([1.0])
    held = q.grad = p.grad
    clip_grad_value([p, q], 1.0)
    assert held.tolist() == [3.0]
    assert p.grad.tolist() == q.grad.tolist() == [1.0]
    assert not np.shares_memory(p.grad.data, q.grad.data)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_the_value_to_clip_at_must_be_positive(value):
    p = parameter([1.0], [3.0])
    with pytest.raises(ValueError, match="clip_value must be positive"):
        clip_grad_value([p], value)
    assert p.grad.tolist() == [3.0]


@pytest.mark.parametrize("cls", [SGD, Adam, AdamW])
def test_every_optimiser_finds_the_minimum_of_a_parabola(cls):
    p = parameter([5.0, -3.0])
    optimizer = cls([p], lr=0.05, weight_decay=0.0)
    for _ in range(500):
        optimizer.zero_grad()
        ((p - minigrad.tensor(np.array([1.0, 2.0]))) ** 2).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(p.data, [1.0, 2.0], atol=1e-6)


def test_observers_see_a_step_while_its_gradients_are_there():
    class Steps(minigrad.Observer):
        def __init__(self):
            self.seen = []

        def on_step(self, optimizer):
            self.seen.append((optimizer, p.data.tolist(), p.grad.tolist()))

    p = parameter([1.0], [2.0])
    optimizer = SGD([p], lr=0.25)
    with minigrad.observe(Steps()) as steps:
        optimizer.step()
    optimizer.step()
    assert steps.seen == [(optimizer, [0.5], [2.0])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s["state"][0].update(exp_avg=0.1),
            "exp_avg of parameter 0 is an array",
        ),
        (lambda s: s["state"][0].update(step=2.5), "step of parameter 0 must be an integer"),
        (lambda s: s["state"][0].update(step=np.ones(2)), "step of parameter 0 must be an integer"),
        (lambda s: s["param_groups"][0].pop("params"), "list their 'params'"),
        (lambda s: s.update(state=[1]), "dict of dicts by the numbers of parameters"),
        (lambda s: s.update(state={"w": {}}), "dict of dicts by the numbers of parameters"),
        (lambda s: s["state"].update({0: 3}), "dict of dicts by the numbers of parameters"),
    ],
)
def test_a_state_of_another_form_is_refused_and_changes_nothing(change, message):
    p = minigrad.tensor([1.0, 1.0], requires_grad=True)
    p.grad = minigrad.tensor([1.0, 1.0])
    optimizer = Adam([p])
    optimizer.step()
    state = optimizer.state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    optimizer.step()
    assert optimizer.state_dict()["state"][0]["step"] == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda x: Adam(x, amsgrad=np.True_),
        lambda x: RMSprop(x, centered=np.True_, momentum=np.float32(0.9)),
    ],
)
def test_flags_and_numbers_of_numpy_are_those_of_python(make):
    parameter = Parameter(np.ones(3))
    parameter.grad = minigrad.tensor(np.ones(3))
    make([parameter]).step()
    assert (parameter.data < 1).all()


@pytest.mark.parametrize("how", ["group", "later", "lr", "betas"])
def test_numbers_of_numpy_are_those_of_python_in_a_group_too(how):
    """A checkpoint saves 0.99 of float32 as a number of Python, and 1 - beta must be the same."""
    rate, betas = np.float32(0.01), (np.float32(0.9), np.float32(0.99))
    options = {"lr": rate, "betas": betas}

    def make(options):
        first, second = (Parameter(np.ones(3, np.float32)) for _ in range(2))
        if how == "group":
            return Adam([{"params": [first, second], **options}])
        optimizer = Adam([first] if how == "later" else [first, second])
        if how == "later":
            optimizer.add_param_group({"params": [second], **options})
        elif how == "lr":
            optimizer.lr = options["lr"]
        else:
            optimizer.param_groups[0]["betas"] = options["betas"]
        return optimizer

    found = []
    for each in (options, {"lr": float(rate), "betas": tuple(map(float, betas))}):
        optimizer, parameters = make(each), []
        for group in optimizer.param_groups:
            parameters += group["params"]
        for step in range(3):
            for parameter in parameters:
                parameter.grad = minigrad.tensor(np.float32([1, 0.3, -2]) + step)
            optimizer.step()
        found.append([parameter.data.tobytes() for parameter in parameters])
        for group in optimizer.param_groups:
            assert type(group["lr"]) is type(group["betas"][0]) is float
    assert found[0] == found[1]


def test_a_loaded_state_shares_no_list_with_the_caller():
    optimizer = Adam([Parameter(np.ones(1))])
    state = optimizer.state_dict()
    state["param_groups"][0]["betas"] = [0.5, 0.6]
    optimizer.load_state_dict(state)
    state["param_groups"][0]["betas"][0] = 0.1
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.6)
