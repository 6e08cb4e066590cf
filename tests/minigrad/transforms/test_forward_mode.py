"""Forward mode: for every op, in any nesting with reverse mode, with memory that does not grow."""

import gc
import threading
import tracemalloc
from contextlib import contextmanager, nullcontext

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import lora
import minigrad
from minigrad import (
    OPS,
    Observer,
    Tensor,
    assert_gradients,
    checkpoint,
    enable_grad,
    grad,
    nn,
    no_grad,
    observe,
    op,
)
from minigrad.core.grad_mode import mode
from minigrad.transforms import hessian, hvp, jacfwd, jacobian, jvp, value_and_grad, vjp
from tests.cases import CASES, first_of_each

X = np.array([0.5, -1.2, 0.8])
V = np.array([0.3, -2.0, 1.5])
W = np.array([-0.7, 0.4, 1.1])

# Infinite slopes in two directions add up to an infinity or to nan, as the order of sums has it.
BOTH_INFINITE = "power-zero to a negative tensor"
DIFFERENTIABLE = [case for case in CASES if case.order and str(case) != BOTH_INFINITE]


def by_two_backward_passes(f, xs, vs):
    """J v as the derivative by u of u^T J v, which takes reverse mode alone (Townsend, 2017)."""
    value, pullback = vjp(f, *xs)

    def product(u):
        terms = [(g * v).sum() for g, v in zip(pullback(u), vs, strict=True)]
        return sum(terms, Tensor(np.zeros((), value.dtype)))

    return value_and_grad(product)(np.zeros(value.shape, value.dtype))[1]


def problem(case, dtype=np.float64, seed=0):
    """A row of the table as a function of its operands of floats, which all move."""
    operands = case.operands(dtype)
    floats = [i for i, x in enumerate(operands) if x.dtype.kind == "f"]

    def f(*xs):
        given = list(operands)
        for i, x in zip(floats, xs, strict=True):
            given[i] = x
        return case(*given)

    rng = np.random.default_rng(seed)
    xs = [operands[i] for i in floats]
    return f, xs, [rng.standard_normal(x.shape).astype(x.dtype) for x in xs]


def has_the_tangent_of_two_backward_passes(case):
    f, xs, vs = problem(case)
    right = by_two_backward_passes(f, xs, vs).data
    value, tangent = jvp(f, tuple(xs), tuple(vs))
    assert_array_equal(value.data, f(*map(Tensor, xs)).data)
    assert tangent.dtype == value.dtype
    assert_allclose(tangent.data, right, rtol=1e-12, atol=1e-12)
    one = jvp(lambda x: f(x, *xs[1:]), xs[0], vs[0])[1]  # the others are constants
    assert_allclose(
        one.data,
        by_two_backward_passes(lambda x: f(x, *xs[1:]), xs[:1], vs[:1]).data,
        rtol=1e-12,
        atol=1e-12,
    )


def has_the_same_tangent_if_it_is_to_be_differentiated(case):
    f, xs, vs = problem(case)
    right = jvp(f, tuple(xs), tuple(vs))[1].data
    with observe(Observer()):  # tangents are computed from Tensors then
        assert_allclose(jvp(f, tuple(xs), tuple(vs))[1].data, right, rtol=1e-12, atol=1e-12)
    leaves = [Tensor(x, requires_grad=True) for x in xs]
    tangent = jvp(f, tuple(leaves), tuple(vs))[1]
    assert_allclose(tangent.detach().data, right, rtol=1e-12, atol=1e-12)


def has_the_same_second_derivatives_in_any_nesting(case):
    if case.order != 2 or case.derivative:
        return
    f, xs, vs = problem(case)
    cotangent = np.random.default_rng(1).standard_normal(f(*map(Tensor, xs)).shape)
    loss = lambda *xs: (f(*xs) * cotangent).sum()
    argnums = tuple(range(len(xs)))
    gradients = lambda *xs: value_and_grad(loss, argnums)(*xs)[1]

    def slope(*xs):
        return jvp(loss, xs, tuple(vs))[1]

    reverse_twice = lambda *xs: sum(
        ((g * v).sum() for g, v in zip(gradients(*xs), vs, strict=True)), Tensor(np.zeros(()))
    )
    right = [g.data for g in value_and_grad(reverse_twice, argnums)(*xs)[1]]
    scale = max(np.abs(g).max(initial=0.0) for g in right) + 1.0
    forward_over_reverse = hvp(loss, tuple(xs), tuple(vs))
    reverse_over_forward = value_and_grad(slope, argnums)(*xs)[1]
    forward_twice = jvp(slope, tuple(xs), tuple(vs))[1].data
    for found in (forward_over_reverse, reverse_over_forward):
        for one, other in zip(found, right, strict=True):
            assert_allclose(one.data, other, rtol=1e-10, atol=1e-10 * scale)
    along = sum(np.sum(g * v) for g, v in zip(right, vs, strict=True))
    assert_allclose(forward_twice, along, rtol=1e-9, atol=1e-9 * scale)


def has_the_tangent_of_fewer_digits(case, dtype):
    f, xs, vs = problem(case, dtype)
    value = f(*map(Tensor, xs))
    tangent = jvp(f, tuple(xs), tuple(vs))[1]
    assert tangent.dtype == value.dtype
    assert tangent.shape == value.shape
    right = by_two_backward_passes(f, xs, vs).data.astype(np.float64)
    eps = float(np.finfo(value.dtype).eps)
    size = np.abs(right[np.isfinite(right)]).max(initial=1.0)
    assert_allclose(tangent.data, right, rtol=200 * eps, atol=200 * eps * size)


def has_right_tangents(case):
    has_the_tangent_of_two_backward_passes(case)
    has_the_same_tangent_if_it_is_to_be_differentiated(case)
    has_the_same_second_derivatives_in_any_nesting(case)
    has_the_tangent_of_fewer_digits(case, np.float32)


FIRST = first_of_each(DIFFERENTIABLE)


@pytest.mark.sampled(4)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("case", FIRST, ids=str)
def test_the_first_row_of_each_function_has_right_tangents(case):
    has_right_tangents(case)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_all_other_rows_have_right_tangents_and_all_rows_in_float16(case):
    if not any(case is first for first in FIRST):
        has_right_tangents(case)
    has_the_tangent_of_fewer_digits(case, np.float16)


def test_derivatives_of_float16_are_computed_in_float32():
    x = np.float16(300.0)  # whose square is out of the range of float16
    right = value_and_grad(minigrad.arctan)(x)[1].data
    assert right > 0
    assert_array_equal(jvp(minigrad.arctan, x, np.float16(1))[1].data, right)
    with observe(Observer()):
        assert_array_equal(jvp(minigrad.arctan, x, np.float16(1))[1].data, right)


def test_a_fused_op_of_several_dtypes_has_the_tangent_of_the_widest():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4)).astype(np.float16)
    parts = [rng.standard_normal(s).astype(np.float16) for s in ((3, 4), (1, 4), (3, 1), (3,))]
    bias = parts[-1].astype(np.float64)
    f = lambda x, bias: minigrad.lora_linear(x, *parts[:-1], bias)
    tangent = jvp(f, (x, bias), (x, bias))[1]
    wide = [x.astype(np.float64), *(p.astype(np.float64) for p in parts[:-1])]
    right = minigrad.lora_linear(*wide, bias)  # which is linear in x and the bias
    assert tangent.dtype == np.float64
    assert_allclose(tangent.data, right, rtol=1e-13)


# ------------------------------------------------------------------------------------------------
# Whose derivative it is
# ------------------------------------------------------------------------------------------------


def test_an_argument_and_the_same_tensor_outside_are_two_things():
    for x in (Tensor(X), Tensor(X, requires_grad=True)):
        tangent = jvp(lambda a, x=x: a * x, x, V)[1]
        assert_allclose(tangent.detach().data, X * V, rtol=1e-15)


@pytest.mark.parametrize("order", range(1, 6))
def test_forward_mode_nested_in_itself(order):
    f = lambda x: x.sin()
    for _ in range(order):
        f = (lambda g: lambda x: jvp(g, x, np.ones(3))[1])(f)
    right = [np.sin(X), np.cos(X), -np.sin(X), -np.cos(X)][order % 4]
    assert_allclose(f(Tensor(X)).data, right, rtol=1e-13)


@pytest.mark.parametrize("modes", ["ffr", "frf", "rff", "rrf", "rfr", "frr", "frfr", "rfrf"])
def test_any_nesting_of_both_modes(modes):
    def differentiated(mode, f):
        if mode == "f":
            return lambda x: jvp(f, x, np.ones(()))[1]
        return lambda x: value_and_grad(f)(x)[1]

    f = lambda x: minigrad.exp(2.0 * x) * x
    for each in modes:
        f = differentiated(each, f)
    n = len(modes)  # the n-th derivative of x e^2x
    assert_allclose(
        f(Tensor(0.3, dtype="float64")).item(),
        (2.0**n * 0.3 + n * 2.0 ** (n - 1)) * np.exp(0.6),
        rtol=1e-12,
    )
    with no_grad():
        assert_allclose(
            f(Tensor(0.3, dtype="float64")).item(),
            (2.0**n * 0.3 + n * 2.0 ** (n - 1)) * np.exp(0.6),
            rtol=1e-12,
        )


def test_an_argument_of_the_outer_function_inside_an_inner_gradient():
    def f(y):  # the gradient by x of sum(x e^y), where only y moves
        return value_and_grad(lambda x: (x * y.exp()).sum())(Tensor(X))[1]

    assert_allclose(jvp(f, W, V)[1].data, np.exp(W) * V, rtol=1e-15)
    by_vjp = lambda y: vjp(lambda x: x * y.exp(), X)[1](y)[0]
    assert_allclose(jvp(by_vjp, W, V)[1].data, np.exp(W) * (1 + W) * V, rtol=1e-14)


@pytest.mark.parametrize("around", [no_grad, enable_grad])
def test_a_pullback_passes_tangents_on_in_any_grad_mode(around):
    inside = lambda x: vjp(lambda x: x**3, x).pullback(np.ones(3))[0]
    pullback = vjp(lambda x: x**3, X).pullback  # from outside, linear in v

    def in_a_mode_of_its_own(v):
        with no_grad(), enable_grad():
            return pullback(v)[0]

    def a_constant(x):
        with no_grad():
            pullback = vjp(lambda x: x**3, x).pullback
        return x * pullback(np.ones(3))[0]

    with around():
        assert_allclose(jvp(inside, X, V)[1].data, 6 * X * V, rtol=1e-14)
        assert_allclose(jvp(lambda v: pullback(v)[0], W, V)[1].data, 3 * X**2 * V, rtol=1e-14)
        assert_allclose(jvp(in_a_mode_of_its_own, W, V)[1].data, 3 * X**2 * V, rtol=1e-14)
        assert_allclose(jvp(a_constant, X, V)[1].data, 3 * X**2 * V, rtol=1e-14)


@pytest.mark.parametrize("around", [no_grad, enable_grad])
def test_a_pullback_made_in_one_run_and_called_in_another(around):
    def called(pullback, v):
        with no_grad(), enable_grad():
            return pullback(v)[0]

    def made(x):
        pullback = vjp(lambda x: x**3, x).pullback
        return jvp(lambda v: called(pullback, v), W, V)[1]

    with around():
        assert_allclose(jvp(made, X, V)[1].data, 6 * X * V * V, rtol=1e-14)


def test_a_pullback_under_no_grad_records_nothing():
    v = Tensor(V, requires_grad=True)
    pullback = vjp(lambda x: x**3, X).pullback

    def f(x):
        return x * pullback(v * x)[0] + pullback(v)[0]

    with no_grad():
        value, tangent = jvp(f, W, V)
    assert not value.requires_grad
    assert not tangent.requires_grad
    assert_allclose(tangent.data, 3 * X**2 * V * 2 * W * V, rtol=1e-14)


def test_derivatives_by_the_direction():
    v = Tensor(V, requires_grad=True)
    tangent = jvp(lambda x: x**2, X, v)[1]
    assert_allclose(grad(tangent.sum(), v).data, 2 * X, rtol=1e-15)
    assert_gradients(lambda x, v: jvp(lambda x: x.exp() * x, x, v)[1], X, V)
    assert_gradients(lambda x, v: hvp(lambda x: (x.exp() * x).sum(), x, v), X, V)


def test_what_is_under_no_grad_inside_is_a_constant():
    def f(x):
        with no_grad():
            fixed = x * 2
            with enable_grad():
                free = x * 3
        return x * fixed + free

    for around in (no_grad, enable_grad):
        with around():
            assert_allclose(jvp(f, X, V)[1].data, 2 * X * V + 3 * V, rtol=1e-15)
    assert_allclose(jvp(lambda x: x.detach() * x, X, V)[1].data, X * V, rtol=1e-15)


def test_a_model_whose_parameters_require_gradients():
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, 2))
    x = X.astype(np.float32)
    tangent = jvp(model, x, V)[1]
    (g,) = grad(tangent.sum(), [model[0].weight])
    assert np.abs(g.data).max() > 0
    with no_grad():
        constant = jvp(model, x, V)[1]
    assert not constant.requires_grad
    assert_allclose(constant.data, tangent.detach().data, rtol=1e-5)


def test_checkpoints_are_run_plainly():
    w = Tensor(W, requires_grad=True)
    f = lambda x: checkpoint(lambda x: (x * w).tanh(), x) * x
    plain = lambda x: (x * w).tanh() * x
    assert_allclose(jvp(f, X, V)[1].detach().data, jvp(plain, X, V)[1].detach().data)
    assert_allclose(
        hvp(lambda x: f(x).sum(), X, V).detach().data,
        hvp(lambda x: plain(x).sum(), X, V).detach().data,
        rtol=1e-14,
    )


def test_what_tangents_cannot_follow_is_refused_also_under_no_grad():
    def added(x):
        total = minigrad.zeros(3, dtype="float64")
        total += x
        return total

    def cached(x):
        keys = x.reshape(1, 1, 1, 3)
        return nn.KVCache(1, 1, 4, 3, dtype="float64").append(keys, keys)[0]

    for f, message in ((added, "would overwrite"), (cached, "no gradient flows through a cache")):
        for around in (no_grad, enable_grad):
            with around(), pytest.raises(RuntimeError, match=message):
                jvp(f, X, V)

    def statistics(x):
        with no_grad():  # which makes it a constant
            total = added(x)
        return total * x

    assert_allclose(jvp(statistics, X, V)[1].data, X * V)


def test_a_merged_adapter_is_not_differentiated_under_no_grad():
    model = nn.Sequential(nn.Linear(3, 3))
    lora.attach(model, lora.LoRAConfig(rank=2), progress=False)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ones = {name: np.ones_like(p.data) for name, p in parameters.items()}
    f = lambda model: model(minigrad.ones((1, 3)))  # B is 0, so only its tangent counts
    with no_grad():
        assert np.abs(jvp(f, model, ones)[1].data).max() > 0
        lora.merge(model, progress=False)
        with pytest.raises(RuntimeError, match="no gradient would reach its A and B"):
            jvp(f, model, ones)


@pytest.mark.parametrize("around", [no_grad, enable_grad])
def test_a_loss_of_a_weight_that_moves(around):
    x, labels = np.random.default_rng(0).standard_normal((4, 3)), np.array([0, 2, 1, 1])
    w = np.random.default_rng(1).standard_normal((3, 3))
    loss = lambda w: minigrad.linear_cross_entropy(x, w, labels)
    plain = lambda w: minigrad.cross_entropy(minigrad.linear(x, w), labels)
    with around():
        assert_allclose(jvp(loss, w, w)[1].data, jvp(plain, w, w)[1].data, rtol=1e-13)


# ------------------------------------------------------------------------------------------------
# Ops of a user
# ------------------------------------------------------------------------------------------------


@op
def staircase(x):
    """Round, with the derivative 1: what is linear in its VJP is not linear itself."""
    return np.round(x)


staircase.vjp("x", lambda g: g)


@op
def rotated(x, y):
    return np.stack([x * y, x + y], -1)


rotated.joint_vjp(
    ["x", "y"],
    lambda g, needs_input_grad, x, y: (g[..., 0] * y + g[..., 1], g[..., 0] * x + g[..., 1]),
)


@op
def total(arrays):
    return sum(arrays)


total.vjp("arrays", lambda g, argnum: g * (argnum + 1.0))  # not the derivative, but the VJP


def test_the_vjp_of_an_op_of_a_user_is_transposed():
    assert_array_equal(jvp(staircase, X, V)[1].data, V)
    right = np.stack([V * W + X * X, V + X], -1)
    assert_allclose(jvp(rotated, (X, W), (V, X))[1].data, right, rtol=1e-15)
    assert_allclose(jvp(lambda x, y: total([x, y]), (X, W), (V, X))[1].data, V + 2 * X, rtol=1e-15)
    assert_allclose(
        jacfwd(lambda x: rotated(x, W))(X).data, jacobian(lambda x: rotated(x, W))(X).data
    )


def test_a_vjp_that_reads_its_gradient_as_data_is_an_error():
    @op
    def square(x):
        return x * x

    square.vjp("x", lambda g, x: 2.0 * np.asarray(getattr(g, "data", g)) * x)
    assert_allclose(value_and_grad(lambda x: square(x).sum())(X)[1].data, 2 * X)
    with pytest.raises(RuntimeError, match="the VJP of `square` does not pass on what"):
        jvp(square, X, V)


@op(elementwise=True)
def products(x, y):
    return x * y


products.joint_vjp(
    ["x", "y"],
    lambda g, needs_input_grad, x, y: [
        g * other if needed else None
        for needed, other in zip(needs_input_grad, (y, x), strict=True)
    ],
)


def test_an_elementwise_op_with_a_joint_vjp():
    assert_allclose(jvp(products, (X, W), (V, X))[1].data, V * W + X * X, rtol=1e-15)
    assert_allclose(jvp(lambda x: products(W, x), X, V)[1].data, V * W, rtol=1e-15)
    assert_allclose(hvp(lambda x: products(x, x).sum(), X, V).data, 2 * V, rtol=1e-15)


def test_a_vjp_may_skip_gradients_of_zero():
    @op
    def doubled(x):
        return x * 2

    doubled.vjp("x", lambda g: g * 2 if (g != 0).any() else np.zeros(g.shape))
    assert_array_equal(jvp(doubled, X, V)[1].data, 2 * V)


def with_own_jvp(factor):
    """x y, whose tangent of x is multiplied by a factor, and the number of calls of that rule."""

    @op
    def scaled(x, y):
        return x * y

    calls = []

    def tangent(tangents, x, y):
        calls.append([v is not None for v in tangents])
        along_x, along_y = (0.0 if v is None else v for v in tangents)
        return factor * along_x * y + along_y * x

    scaled.vjp("x", lambda g, y: g * y)
    scaled.vjp("y", lambda g, x: g * x)
    scaled.jvp(tangent)
    return scaled, calls


def test_an_op_may_say_how_its_tangents_go():
    scaled, calls = with_own_jvp(1.0)
    assert_allclose(jvp(scaled, (X, W), (V, X))[1].data, V * W + X * X, rtol=1e-15)
    assert_allclose(jvp(lambda x: scaled(x, W), X, V)[1].data, V * W, rtol=1e-15)
    assert_array_equal(jvp(lambda x: scaled(W, W) + x, X, V)[1].data, V)
    assert calls == [[True, True], [True, False]]
    # What is differentiated again goes through the VJPs.
    pushed = value_and_grad(lambda x: (jvp(lambda y: scaled(x, y), W, V)[1] * X).sum())
    assert_allclose(pushed(X)[1].data, V * X, rtol=1e-15)
    assert len(calls) == 2


def test_the_checker_finds_a_wrong_rule_for_tangents():
    for factor, verdict in ((1.0, "agree"), (1.01, "disagree")):
        scaled, calls = with_own_jvp(factor)
        report = minigrad.gradcheck(scaled, (X, W))
        assert report.verdict == verdict
        assert calls
    assert "forward mode" in str(report)


def test_a_rule_for_tangents_that_cannot_be_one_is_refused():
    scaled, _ = with_own_jvp(1.0)
    with pytest.raises(ValueError, match="`scaled` already has a JVP"):
        scaled.jvp(lambda tangents: tangents[0])

    @op
    def doubled(x):
        return 2 * x

    doubled.vjp("x", lambda g: 2 * g)
    with pytest.raises(ValueError, match="a JVP of `doubled` takes tangents first, not g"):
        doubled.jvp(lambda g: 2 * g)
    for name in ("residuals", "argnum", "y"):
        with pytest.raises(
            ValueError, match=f"a JVP of `doubled` asks for '{name}'; .* tangents, out"
        ):
            doubled.jvp(eval(f"lambda tangents, {name}: 0"))
    doubled.jvp(lambda tangents: tangents[0].sum())
    with pytest.raises(
        ValueError, match=r"`doubled` in a direction has shape \(\), and its result \(3,\)"
    ):
        jvp(doubled, X, V)


@pytest.mark.parametrize("norm", [minigrad.layer_norm, minigrad.rms_norm])
def test_tangents_of_a_norm_are_those_of_its_composition(norm):
    rng = np.random.default_rng(0)
    x, v, weight, along_weight = rng.standard_normal((4, 5, 6))
    weight, along_weight = weight[0], along_weight[0]
    found = jvp(lambda x, w: norm(x, 6, w), (x, weight), (v, along_weight))[1]
    with observe(Observer()):  # then the composition runs, for whoever looks at it
        right = jvp(lambda x, w: norm(x, 6, w), (x, weight), (v, along_weight))[1]
    assert_allclose(found.data, right.data, rtol=1e-12)


def test_a_vjp_that_does_not_go_with_its_mark_is_an_error():
    @op(elementwise=True)
    def sign(x):
        return np.sign(x)

    @op(linear=("x",))
    def first(x, count=None):
        return x[:1] if count is None else x[:count]

    sign.vjp("x", lambda g: 0.0)
    first.vjp("x", lambda g, x_shape: g + np.zeros(x_shape))
    first.vjp("count", lambda g: g)  # so it is left out

    @op(elementwise=True)
    def total(x):
        return x.sum()

    total.vjp("x", lambda g, x: g * x)
    with pytest.raises(
        ValueError, match=r"`total` in a direction has shape \(3,\).* marked as elem"
    ):
        jvp(total, X, V)
    with pytest.raises(ValueError, match=r"`sign` in a direction has shape \(\).* marked as elem"):
        jvp(sign, X, V)
    with pytest.raises(ValueError, match=r"has shape \(1,\), and its result \(2,\)"):
        jvp(lambda x: first(x, 2), X, V)


def test_options_by_keyword_only():
    @op(linear=("x",))
    def scaled(x, *, by):
        return x * by

    @op(linear=("arrays",))
    def combined(arrays, sign, *, by):
        return sum(arrays) * sign * by

    @op(composition=lambda x, *, by: minigrad.tanh(x * by), replayed=True)
    def fused(x, *, by):
        return np.tanh(x * by)

    scaled.vjp("x", lambda g, by: g * by)
    combined.vjp("arrays", lambda g, argnum, sign, by: g * (sign * by))
    fused.vjp("x", lambda g, out, by: g * by * (1 - out * out))
    assert_array_equal(jvp(lambda x: scaled(x, by=3.0), X, V)[1].data, 3 * V)
    f = lambda x, y: combined([x, y, x], -1.0, by=3.0)
    assert_allclose(jvp(f, (X, W), (V, X))[1].data, -3 * (2 * V + X), rtol=1e-15)
    f = lambda x: fused(x, by=2.0)
    assert_allclose(jvp(f, X, V)[1].data, 2 * V / np.cosh(2 * X) ** 2, rtol=1e-13)
    assert_gradients(f, X)


def test_an_input_without_a_vjp_is_an_error():
    @op
    def powers(x, y):
        return x**y

    powers.vjp("x", lambda g, x, y: g * y * x ** (y - 1))
    with pytest.raises(TypeError, match="`powers` has no VJP for y"):
        jvp(powers, (np.abs(X), X), (V, V))


def test_properties_of_an_op_name_inputs_that_it_has():
    with pytest.raises(ValueError, match="`f` has no input 'y', only x"):

        @op(linear=("y",))
        def f(x):
            return x


@contextmanager
def unobserved():
    before = mode.state
    mode.state = (before[0], ())
    yield
    mode.state = before


@pytest.mark.full
def test_ops_marked_elementwise_or_linear_are_so():
    seen = set()
    rng = np.random.default_rng(0)

    class Calls(Observer):
        def on_call(self, op, inputs, result):
            with unobserved():
                self.look(op, inputs, result)

        def look(self, op, inputs, result):
            if op.name not in OPS or op.takes_sequence or not isinstance(result, Tensor):
                return
            values = [x.detach() if isinstance(x, Tensor) else x for x in inputs]
            for i in op.vjp_of:
                x = values[i]
                if not isinstance(x, Tensor) or x.dtype != np.float64:
                    continue
                if op.parameters[i] in op.linear:
                    base = [
                        v if op.is_required(j) or j not in op.vjp_of else None
                        for j, v in enumerate(values)
                    ]
                    one, two = (Tensor(rng.standard_normal(x.shape)) for _ in range(2))
                    call = lambda v, i=i, base=base: op(*base[:i], v, *base[i + 1 :]).data
                    assert_allclose(
                        call(one * 2.0 + two),
                        2 * call(one) + call(two),
                        rtol=1e-9,
                        atol=1e-9,
                        err_msg=op.name,
                    )
                    seen.add((op.name, i))
                if op.elementwise and x.size > 1:
                    moved = x.data.copy()
                    moved.flat[0] *= 1 + 1e-3
                    with np.errstate(all="ignore"):
                        before, after = (
                            op(*values).data,
                            op(*values[:i], Tensor(moved), *values[i + 1 :]).data,
                        )
                    changed = (before != after) & ~(np.isnan(before) & np.isnan(after))
                    flags = np.zeros(x.shape, bool)
                    flags.flat[0] = True
                    assert not (changed & ~np.broadcast_to(flags, changed.shape)).any(), op.name
                    seen.add((op.name, i))

    for case in DIFFERENTIABLE:
        with np.errstate(all="ignore"), observe(Calls()):
            case(*map(Tensor, case.operands()))
    wanted = {
        (o.name, i)
        for o in OPS.values()
        for i in o.vjp_of
        if not o.takes_sequence and (o.elementwise or o.parameters[i] in o.linear)
    }
    assert wanted - seen == set()


# ------------------------------------------------------------------------------------------------
# What it costs, and what it refuses
# ------------------------------------------------------------------------------------------------


def peak_of(depth, width=20_000):
    """The most memory that a chain of ops takes, in arrays of its width."""
    x = np.linspace(0.1, 0.9, width)

    def chain(x):
        for _ in range(depth):
            x = minigrad.tanh(x) * 1.01 - minigrad.logsumexp(x)
        return x

    jvp(chain, x, x)
    gc.collect()
    tracemalloc.start()
    try:
        jvp(chain, x, x)
        return tracemalloc.get_traced_memory()[1] / x.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.full
@pytest.mark.parametrize("around", [nullcontext, no_grad, lambda: observe(Observer())])
def test_memory_does_not_grow_with_depth(around):
    with around():
        assert peak_of(100) < peak_of(10) + 2  # arrays


def test_a_pass_back_to_an_input_is_refused():
    message = "carries a tangent, and there is no graph behind it"
    for f in (
        lambda x: grad((x**3).sum(), x),
        lambda x: grad((x * Tensor(W, requires_grad=True)).sum(), x),
        lambda x: (x**3).sum().backward(),
    ):
        with pytest.raises(RuntimeError, match=message):
            jvp(f, X, V)


def test_gradients_by_other_tensors_inside_have_tangents():
    w = Tensor(W, requires_grad=True)

    def f(x):
        return grad(((x * w) ** 2).sum(), w, create_graph=True)  # 2 w x^2

    assert_allclose(jvp(f, X, V)[1].detach().data, 4 * W * X * V, rtol=1e-14)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=40)
def test_jacobians_by_columns_are_those_by_rows(data):
    shape = data.draw(st.sampled_from([(), (1,), (3,), (2, 3), (0,)]))
    f = data.draw(
        st.sampled_from(
            [
                lambda x: x.exp(),
                lambda x: (x * x).sum(),
                lambda x: x.reshape(-1)[:2].tanh(),
                lambda x: minigrad.softmax(x.reshape(-1)),
                lambda x: x.reshape(-1, 1) * x.reshape(1, -1),
                lambda x: minigrad.concatenate([x.reshape(-1), x.reshape(-1) ** 2]),
            ]
        )
    )
    x = np.random.default_rng(0).standard_normal(shape)
    rows, columns = vjp_rows(f, x), jacfwd(f)(x).data
    assert_allclose(columns, rows, rtol=1e-13, atol=1e-14)


def vjp_rows(f, x):
    """The Jacobian by one backward pass for each element of the result."""
    value, pullback = vjp(f, x)
    rows = [pullback(np.eye(value.size)[i].reshape(value.shape))[0].data for i in range(value.size)]
    return np.array(rows).reshape(value.shape + x.shape)


def test_a_jacobian_of_many_columns_takes_several_runs_of_one_function():
    x = np.linspace(-1, 1, 150)
    assert_allclose(jacfwd(minigrad.tanh)(x).data, np.diag(1 - np.tanh(x) ** 2), rtol=1e-14)
    assert_allclose(hessian(lambda x: (x**3).sum())(x).data, np.diag(6 * x), rtol=1e-14)
    rng = np.random.default_rng(0)
    with pytest.raises(RuntimeError, match="jacfwd: f gave another result when it ran again"):
        jacfwd(lambda x: x * rng.standard_normal(150))(x)


def doubled_in_another_thread(x):
    found = []
    worker = threading.Thread(target=lambda: found.append(x * 2.0))
    worker.start()
    worker.join()
    return found[0]


def test_an_op_in_another_thread_is_an_error():
    for f in (doubled_in_another_thread, lambda x: doubled_in_another_thread(x) + x):
        with pytest.raises(RuntimeError, match="has not seen the call of `multiply`"):
            jvp(f, X, V)
