"""Values and derivatives where numbers are very large, very small, or where there are very many."""

import threading
import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import (
    Observer,
    Tensor,
    assert_gradients,
    hessian,
    is_grad_enabled,
    no_grad,
    observe,
)


def gradient(function, *arrays):
    xs = [Tensor(np.array(x), requires_grad=True) for x in arrays]
    gradients = minigrad.grad(function(*xs).sum(), xs)
    return [g.data for g in gradients]


def single(*values):
    return np.array(values, np.float32)


# The ends of the range


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (single(1e-30, 1e-30, 1e30), [1, 1, 0]),
        (single(1e30, 1e30, 1e-30), [1, 1, np.inf]),
        (single(np.inf, 2, 3), [6, np.inf, np.inf]),
    ],
)
def test_the_product_of_the_others_where_the_whole_product_is_out_of_range(x, expected):
    with np.errstate(over="ignore", under="ignore"):
        assert_allclose(gradient(minigrad.prod, x)[0], expected, rtol=1e-6)


def test_the_gradient_of_logsumexp_sums_to_1_far_out():
    x = single(*np.linspace(1e4, 1e4 + 5, 20))
    found = gradient(minigrad.logsumexp, x)[0]
    assert_allclose(found, minigrad.softmax(x), rtol=1e-6)
    assert_allclose(found.sum(), 1, rtol=1e-6)


def test_the_hessian_of_an_angle_is_nan_at_the_origin_only():
    def angle(p):
        return minigrad.arctan2(p[0], p[1])

    with np.errstate(divide="ignore", invalid="ignore"):
        assert np.isnan(hessian(angle)(np.zeros(2)).data).all()
    for y, x in [(3.0, 4.0), (-0.0, 2.0), (1e-150, 0.0), (1e-150, 1e-150), (1e150, -1e150)]:
        found = hessian(angle)(np.array([y, x])).data
        r2 = y * y + x * x
        exact = np.array([[-2 * x * y, y * y - x * x], [y * y - x * x, 2 * x * y]]) / r2 / r2
        assert_allclose(found, exact, rtol=1e-12)


def test_the_derivatives_of_an_angle_are_0_at_infinity():
    y, x = np.array([np.inf, 1.0, -np.inf, 2.0, np.nan]), np.array([1.0, -np.inf, np.inf, 0.0, 1.0])
    found = gradient(minigrad.arctan2, y, x)
    assert_array_equal(found, [[0, 0, 0, 0, np.nan], [0, 0, 0, -0.5, np.nan]])
    p = np.array([np.inf, 1.0])
    assert_array_equal(hessian(lambda p: minigrad.arctan2(p[0], p[1]))(p).data, np.zeros((2, 2)))


def test_running_products_out_of_range():
    x = single(1e-30, 1e-30, 1e30)
    with np.errstate(under="ignore"):
        found = gradient(minigrad.cumprod, x)[0]
    assert_allclose(found, [2, 1, 0], rtol=1e-6)  # a + ab + abc


def test_the_tail_of_gelu_keeps_its_digits_in_single_precision():
    x = np.linspace(-6, -4, 20, dtype=np.float32)
    exact = gradient(minigrad.gelu, x.astype(np.float64))[0]
    assert_allclose(gradient(minigrad.gelu, x)[0], exact, rtol=1e-5)  # float32 rounds to 6e-8


@pytest.mark.parametrize(("y", "x"), [(1e-25, 1e-25), (1e20, 1e20), (1e-30, 1e20), (-1e20, 1.0)])
def test_the_angle_of_points_very_near_and_very_far(y, x):
    exact = [1 / (y / x * y + x), -1 / (x / y * x + y)]
    with np.errstate(under="ignore"):
        assert_allclose(
            np.ravel(gradient(minigrad.arctan2, single(y), single(x))), exact, rtol=1e-5, atol=1e-40
        )


def test_huber_of_errors_beyond_all_bounds():
    d = single(np.inf, -np.inf, 1e30, 0.25, -1.0)
    found = gradient(lambda d: minigrad.huber(d, np.zeros_like(d.data), "sum"), d)[0]
    assert_array_equal(found, [1, -1, 1, 0.25, -1])


@pytest.mark.parametrize("name", ["max", "min"])
def test_a_nan_is_chosen_and_gets_the_gradient(name):
    x = np.array([[1.0, np.nan, 3.0], [2.0, 1.0, 1.0]])
    found = gradient(lambda x: getattr(minigrad, name)(x, axis=1), x)[0]
    chosen = {"max": [1, 0, 0], "min": [0, 0.5, 0.5]}[name]
    assert_array_equal(found, [[0, 1, 0], chosen])


@pytest.mark.parametrize("p", [-2, -1, -0.5, 0])
@pytest.mark.parametrize(
    "x", [[np.nan, 0.0], [np.nan, 1.0], [np.inf], [np.inf, np.inf], [np.inf, 2.0], [2.0, 0.0], []]
)
def test_norms_of_order_0_and_below_of_what_is_not_finite(x, p):
    with np.errstate(divide="ignore"):
        expected = np.linalg.norm(x, p)
    found = minigrad.norm(Tensor(np.array(x), requires_grad=True), p)
    assert_allclose(found.data, expected)
    found.backward()


def test_the_hessian_of_a_power_is_symmetric_where_the_exponent_is_zero():
    found = hessian(lambda v: v[0] ** v[1])(np.array([2.0, 0.0]))
    assert_allclose(found.data, [[0, 0.5], [0.5, np.log(2) ** 2]], atol=1e-15)


def test_determinants_of_a_stack_in_which_some_matrices_are_singular(rng):
    a = rng.standard_normal((5, 3, 3))
    a[1] = 1.0
    a[3] = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    a[4] = 0.0
    assert_gradients(minigrad.det, a)


def test_the_cofactors_of_a_determinant_that_is_out_of_range():
    numbers = [[1e200, 1e200], [1e-200, 1e-200], [2.0, 3.0]]
    a = Tensor(np.array([np.diag(row) for row in numbers]), requires_grad=True)
    with np.errstate(all="ignore"):
        dets = minigrad.det(a)
    assert_array_equal(dets.data[:2], [np.inf, 0])
    expected = np.array([np.diag(row[::-1]) for row in numbers])
    for create_graph in (False, True):
        found = minigrad.grad(dets, a, np.ones(3), create_graph=create_graph, retain_graph=True)
        assert_allclose(found.data, expected, rtol=1e-12)


# Many inputs, large stacks


def peak(compute):
    tracemalloc.start()
    try:
        compute()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.full
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("join", [minigrad.concatenate, minigrad.stack])
def test_joining_many_tensors_takes_memory_for_each_once(join, create_graph):
    def there_and_back():
        xs = [Tensor(np.ones(1), requires_grad=True) for _ in range(2000)]
        minigrad.grad(join(xs).sum(), xs, create_graph=create_graph)

    assert peak(there_and_back) < 2000 * 6000  # bytes; 2000^2 shapes would be 300 MB


@pytest.mark.parametrize("swap", [False, True])
def test_the_gradient_of_one_matrix_beside_a_stack_is_one_product(swap, rng):
    stack, one = rng.standard_normal((200, 4, 64)), rng.standard_normal((64, 64))
    if swap:
        stack = stack.swapaxes(1, 2).copy()

    def there_and_back():
        x, w = Tensor(stack), Tensor(one, requires_grad=True)
        out = w @ x if swap else x @ w
        return minigrad.grad(out.sum(), w)

    expected = np.ones((200, 4, 64)) if not swap else np.ones((200, 64, 4))
    exact = (
        np.einsum("bij,bkj->ik", expected, stack)
        if swap
        else np.einsum("bki,bkj->ij", stack, expected)
    )
    assert_allclose(there_and_back().data, exact, rtol=1e-12)
    assert peak(there_and_back) < 6 * stack.nbytes  # a gradient for each would be 16 of them


# Threads


def test_threads_that_share_one_no_grad_each_come_back_to_their_own_mode():
    shared, inside, leave = no_grad(), threading.Barrier(2), threading.Event()
    seen = {}

    def outer():
        with no_grad():
            with shared:
                inside.wait()
                leave.wait()
            seen["outer"] = is_grad_enabled()

    def plain():
        with shared:
            inside.wait()
        leave.set()
        seen["plain"] = is_grad_enabled()

    threads = [threading.Thread(target=outer), threading.Thread(target=plain)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"outer": False, "plain": True}


# Lists and numbers


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lambda: minigrad.mean([1.0, 2.0]), 1.5),
        (lambda: minigrad.mean(2.0), 2.0),
        (lambda: minigrad.std([1, 3]), 1.0),
        (lambda: minigrad.stack([minigrad.tensor(1.0), 2.0]), [1.0, 2.0]),
        (lambda: minigrad.stack(np.eye(2)), np.eye(2)),
        (lambda: minigrad.sort([3, 1, 2]), [1, 2, 3]),
        (lambda: minigrad.argsort([3, 1, 2], descending=True), [0, 2, 1]),
        (lambda: minigrad.argsort(2.0, None, descending=True), [0]),
        (lambda: minigrad.argmax([1, 3, 2]), 1),
        (lambda: minigrad.argmin([[1, 3], [2, 0]], 1, keepdims=True), [[0], [1]]),
        (lambda: minigrad.argmax(2.0), 0),
        (lambda: minigrad.clone([1.0, 2.0]), [1.0, 2.0]),
        (lambda: minigrad.clone(2.0), 2.0),
        (lambda: minigrad.dot(minigrad.tensor([1.0, 2.0]), [3.0, 4.0]), 11.0),
        (lambda: minigrad.tril([[1, 2], [3, 4]]), [[1, 0], [3, 4]]),
        (lambda: minigrad.cross_entropy([[0.0, 0.0]], [1]), np.log(2)),
        (lambda: minigrad.mse(minigrad.tensor([1.0]), [3.0]), 4.0),
        (lambda: minigrad.erf(0.0), 0.0),
        (lambda: minigrad.gelu(0.0), 0.0),
        (lambda: minigrad.sigmoid([0.0]), [0.5]),
        (lambda: minigrad.rms_norm([3.0, 3.0], 2), [1.0, 1.0]),
        (lambda: minigrad.einsum("i,i", [1, 2], [3, 4]), 11),
    ],
)
def test_lists_and_numbers_are_taken_for_arrays(found, expected):
    assert_allclose(np.asarray(found()), expected, rtol=1e-6)


def test_lists_beside_float64_keep_their_digits_and_beside_float32_do_not_widen():
    wide, narrow = Tensor(np.ones(2)), Tensor(np.ones(2, np.float32))
    assert_array_equal((wide * [0.1, 0.2]).data, [0.1, 0.2])
    assert_array_equal(minigrad.l1(wide, [0.9, 0.8], "none").data, 1 - np.array([0.9, 0.8]))
    assert minigrad.outer(narrow, [0.1, 0.2]).dtype == np.float32
    zeros = Tensor(np.zeros((1, 2)))
    loss = minigrad.cross_entropy(zeros, [1], "sum", weight=[0.1, 0.7])
    assert loss.item() == pytest.approx(0.7 * np.log(2), rel=1e-15)


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: np.float64(3) * x.sum(),
        lambda x: np.float64(3) / x.sum(),
        lambda x: x.sum() ** np.float64(2),
        lambda x: x.sum() * np.array(3.0),
        lambda x: np.array(3.0) * x,
        lambda x: np.float64(3) * minigrad.tensor([1, 2]),
        lambda x: minigrad.leaky_relu(x, np.float64(0.1)),
        lambda x: minigrad.elu(x, np.float64(1)),
        lambda x: minigrad.softplus(x, np.float64(2)),
        lambda x: minigrad.rms_norm(x, 2, eps=np.float64(1e-5)),
        lambda x: minigrad.layer_norm(x, 2, eps=np.float64(1e-5)),
        lambda x: minigrad.cross_entropy(x, np.array(0), label_smoothing=np.float64(0.1)),
        lambda x: minigrad.dropout(x, np.float64(0.5)),
        lambda x: minigrad.dropout(minigrad.tensor([1, 2]), 0.5),
        lambda x: minigrad.where(minigrad.tensor([1.0, 0.0]), 1.0, 2.0),
        lambda x: minigrad.huber(x, [0.0, 1.0], delta=np.float64(0.5)),
    ],
)
def test_nothing_but_a_float64_tensor_makes_float64_of_float32(compute):
    x = Tensor(single(1, 2), requires_grad=True)
    out = compute(x)
    assert out.dtype == np.float32
    if out.requires_grad:
        assert minigrad.grad(out.sum(), x).dtype == np.float32


def test_softplus_is_x_also_where_beta_x_is_no_number_of_its_dtype():
    x = single(1e38, -1e38, 0)
    assert_allclose(minigrad.softplus(x, 100.0).data, [1e38, 0, np.log(2) / 100], rtol=1e-6)
    wide = Tensor(np.array([1e307, -1e307]), requires_grad=True)
    out = minigrad.softplus(wide, 100.0)
    assert_array_equal(out.data, [1e307, 0])
    assert_array_equal(minigrad.grad(out.sum(), wide, create_graph=True).data, [1, 0])
    assert_array_equal(minigrad.grad(minigrad.softplus(wide, 100.0).sum(), wide).data, [1, 0])


# Bad input is refused before anything is computed


X, T = np.ones((2, 3)), np.array([0, 1])


@pytest.mark.parametrize(
    "call",
    [
        lambda x: minigrad.mse(x, X, "avg"),
        lambda x: minigrad.huber(x, X, "avg"),
        lambda x: minigrad.cross_entropy(x, T, "avg"),
        lambda x: minigrad.cross_entropy(x, X, weight=np.ones(4)),
        lambda x: minigrad.cross_entropy(x, X, ignore_index=0),
        lambda x: minigrad.cross_entropy(x, np.array([-100, -100])),
        lambda x: minigrad.binary_cross_entropy_with_logits(x, X, pos_weight=np.ones(4)),
        lambda x: minigrad.binary_cross_entropy_with_logits(x, X, weight=-X),
        lambda x: minigrad.embedding(T, x, padding_idx=2),
        lambda x: minigrad.pad(x, 1, constant_values=(5, 6)),
        lambda x: minigrad.pad(x, 1, "edge", constant_values=3.0),
        lambda x: minigrad.scaled_dot_product_attention(x, x, x, dropout_p=2.0),
        lambda x: minigrad.astype(x, complex),
        lambda x: minigrad.astype(x, str),
        lambda x: minigrad.layer_norm(x, 3, eps=-1.0),
        lambda x: minigrad.topk(x, 1, (1, 0)),
        lambda x: minigrad.topk(x, 1, None),
        lambda x: minigrad.split(x, 2, None),
        lambda x: minigrad.swapaxes(x, (0, 1), 1),
        lambda x: minigrad.stack([x, x], None),
        lambda x: minigrad.array_split(x, 0),
        lambda x: minigrad.meshgrid(x),
        lambda x: minigrad.diff(x, -1),
        lambda x: minigrad.tensordot(x, x, (0, 1)),
        lambda x: minigrad.scatter(x, 0, np.array([[0], [0], [0]]), x),
        lambda x: minigrad.gather(x, 0, T),
    ],
)
def test_bad_input_is_refused_before_any_op_has_run(call):
    class Calls(Observer):
        def __init__(self):
            self.names = []

        def on_call(self, op, inputs, result):
            self.names.append(op.name)

    with observe(Calls()) as calls, pytest.raises((TypeError, ValueError)):
        call(Tensor(X, requires_grad=True))
    assert calls.names == []


@pytest.mark.parametrize("n", [-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 7, 8, 9, 3.0, -2.0])
def test_whole_powers_of_both_signs_are_those_of_numpy(n, rng):
    x = rng.standard_normal(200)
    t = Tensor(x, requires_grad=True)
    assert_allclose((t**n).data, np.power(x, float(n)), rtol=1e-14)
    slope = minigrad.grad((t**n).sum(), t).data
    assert_allclose(slope, n * np.power(x, n - 1.0), rtol=1e-13)
    ends = np.array([0.0, -0.0, np.inf, -np.inf, np.nan])
    with np.errstate(divide="ignore"):
        assert_array_equal((Tensor(ends) ** n).data, np.power(ends, float(n)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: minigrad.cross_entropy(x, -X), "softmax been forgotten"),
        (lambda x: minigrad.cross_entropy(x, T, weight=-np.ones(3)), "must be at least 0, not -1"),
        (lambda x: minigrad.cross_entropy(x, T, np.ones(3)), "passed by name, as in weight="),
        (lambda x: minigrad.nn.CrossEntropyLoss(np.ones(3)), "passed by name, as in weight="),
        (
            lambda x: minigrad.binary_cross_entropy_with_logits(x, X, pos_weight=-1.0),
            "pos_weight must be at least 0",
        ),
    ],
)
def test_losses_that_would_be_wrong_without_a_word_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Tensor(X, requires_grad=True))


@pytest.mark.parametrize(
    ("function", "curvature"),
    [
        (minigrad.arcsin, lambda x: x / (1 - x * x) ** 1.5),
        (minigrad.arccos, lambda x: -x / (1 - x * x) ** 1.5),
        (minigrad.arctanh, lambda x: 2 * x / (1 - x * x) ** 2),
    ],
)
def test_second_derivatives_have_all_digits_near_0_and_near_1(function, curvature):
    values = np.array([1e-20, -1e-8, 1e-6, -1e-4, 0.1, 0.49, 0.51, -0.9, 1 - 2**-12], np.float32)
    slope = minigrad.gradient(lambda x: function(x).sum())
    found = minigrad.gradient(lambda x: slope(x).sum())(minigrad.tensor(values))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.data, curvature(values.astype(np.float64)), rtol=1e-6)


def test_sinc_of_numbers_whose_squares_overflow():
    x = single(0.0, 1e20)
    with minigrad.detect_anomaly():  # numpy's warning of an overflow would be an error here too
        assert_allclose(minigrad.sinc(Tensor(x)).data, [1.0, 0.0], atol=1e-19)
        assert_allclose(gradient(minigrad.sinc, x)[0], [0.0, 0.0], atol=1e-19)
