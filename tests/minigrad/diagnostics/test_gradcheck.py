"""The checker is checked: it must find every wrong VJP that is planted here."""

import functools
import random
import re
import threading
from typing import Any, NamedTuple

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, assert_gradients, gradcheck, nn, op
from minigrad.checks import shown
from minigrad.core import backward as engine
from minigrad.diagnostics import GradcheckReport, GradientError

X = np.array([[0.3, -1.2, 0.8], [1.5, 0.4, -0.6]])
Y = np.array([[1.1, 0.7, -0.9], [0.2, -1.4, 0.5]])


def square_with_vjp(derivative):
    @op
    def square(x):
        return x * x

    square.vjp("x", derivative)
    return square


def product_with_vjps(x_vjp, y_vjp):
    @op
    def product(x, y):
        return x * y

    product.vjp("x", x_vjp)
    product.vjp("y", y_vjp)
    return product


def frozen(x):
    """The value of x at no place in the graph: how a careless VJP reads it."""
    return x.data if isinstance(x, Tensor) else x


WRONG = {
    "0.1 % too large": lambda g, x: 2.002 * g * x,
    "0.1 % too small": lambda g, x: 1.998 * g * x,
    "missing factor": lambda g, x: g * x,
    "wrong sign": lambda g, x: -2 * g * x,
    "missing g": lambda g, x: 2 * x,
    "zero": lambda g, x: 0 * g * x,
    "nan": lambda g, x: g * x * np.nan,
    "infinite": lambda g, x: g * x * np.inf,
    "transposed": lambda g, x: minigrad.transpose(minigrad.transpose(2 * g * x)[::-1]),
    "wrong in the last element": lambda g, x: 2 * g * x + np.eye(2, 3, 2),
    "a mean that keeps the sum right": lambda g, x: 2 * g * x + np.array([[1, -1, 0], [0, 0, 0.0]]),
}


def test_a_right_vjp_passes_at_both_orders():
    square = square_with_vjp(lambda g, x: 2 * g * x)
    for order in (1, 2):
        report = gradcheck(square, X, order=order)
        assert report
        assert report.verdict == "agree"
        assert report.wrong == []
        assert report.undecided == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_vjp_is_found(fault):
    report = gradcheck(square_with_vjp(WRONG[fault]), X)
    assert not report
    assert report.verdict == "disagree"


def test_a_transposed_gradient_is_found():
    @op
    def product(x, y):
        return x @ y

    product.vjp("x", lambda g, y: minigrad.transpose(minigrad.matmul(g, minigrad.transpose(y))))
    product.vjp("y", lambda g, x: minigrad.matmul(minigrad.transpose(x), g))
    report = gradcheck(product, [X[:2, :2], Y[:2, :2]])
    # the diagonal of a transpose is right
    assert {(entry.operand, entry.index) for entry in report.wrong} == {
        ("x", (0, 1)),
        ("x", (1, 0)),
    }


@pytest.mark.parametrize("position", [0, 1])
def test_the_operand_whose_vjp_is_wrong_is_named(position):
    vjps = [lambda g, y: g * y, lambda g, x: g * x]
    vjps[position] = [lambda g, y: 1.001 * g * y, lambda g, x: 1.001 * g * x][position]
    report = gradcheck(product_with_vjps(*vjps), [X, Y])
    assert {entry.operand for entry in report.wrong} == {"xy"[position]}
    assert len(report.wrong) == X.size


def test_operands_are_called_as_the_function_calls_them():
    def names(f, *inputs):
        return {comparison.operand for comparison in gradcheck(f, inputs, order=1).comparisons}

    class Scaled(nn.Module):
        def __init__(self):
            self.x, self.scale = nn.Parameter(Y[0]), nn.Parameter(Y[1])

        def forward(self, x, y):
            return x * y * self.x * self.scale

    assert names(minigrad.where, np.array([True, False, True]), X, Y) == {"x", "y"}
    assert names(lambda first, *others: first * others[0], X, Y) == {"first", "input 1"}
    assert names(functools.partial(minigrad.add, X), Y) == {"b"}
    assert names(Scaled(), X, Y) == {"input 0", "y", "x", "scale"}  # where x is a parameter
    silent = functools.partial(minigrad.exp)
    silent.__signature__ = "none"  # as of a function that is not written in Python
    assert names(silent, X) == {"input 0"}


def test_operands_of_functions_of_arrays_have_names_too():
    report = minigrad.check_vjp(lambda x, w: x * w, lambda g, x, w: (g * w, g * x), [X, Y])
    assert {comparison.operand for comparison in report.comparisons} == {"x", "w"}


def test_an_operand_may_have_the_name_that_pytorch_has_for_its_context():
    report = gradcheck(lambda ctx, x: (ctx * x).sum(), (X, Y), 1)
    assert [comparison.operand for comparison in report.comparisons] == ["ctx", "x"]
    report = minigrad.check_vjp(lambda ctx, x: ctx * x, lambda g, c, x: (g * x, g * c), [X, Y])
    assert [comparison.operand for comparison in report.comparisons] == ["ctx", "x"]


@pytest.mark.peers
def test_operands_of_functions_of_other_frameworks_have_names_too():
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return x * weight

        @staticmethod
        def backward(ctx, g):
            x, weight = ctx.saved_tensors
            return g * weight, g * x

    def names(f, *inputs):
        return {comparison.operand for comparison in gradcheck(f, inputs).comparisons}

    x, y = torch.tensor(X), torch.tensor(Y)
    assert names(Product.apply, x, y) == {"x", "weight"}
    assert names(lambda a, b: a * b, x, y) == {"a", "b"}
    assert names(torch.nn.Linear(3, 2).double(), x) == {"input", "weight", "bias"}
    assert names(jax.jit(lambda a, b: a * b), jax.numpy.array(X), jax.numpy.array(Y)) == {"a", "b"}


def test_the_element_that_is_wrong_is_named():
    fault = np.zeros(X.shape)
    fault[1, 2] = 1e-4
    report = gradcheck(square_with_vjp(lambda g, x: 2 * g * x + fault), X)
    (entry,) = report.wrong
    assert (entry.order, entry.operand, entry.index) == (1, "x", (1, 2))
    assert abs(entry.analytic - entry.numeric - 1e-4) < 1e-8
    assert entry.relative_difference > 1e-6


@pytest.mark.parametrize(
    "derivative",
    [
        lambda g, x: 2 * g * frozen(x),
        lambda g, x: 2 * Tensor(frozen(g)) * x if isinstance(x, Tensor) else 2 * g * x,
        lambda g, x: 2 * g * x.detach() if isinstance(x, Tensor) else 2 * g * x,
    ],
    ids=["input read as data", "g read as data", "input detached"],
)
def test_a_vjp_that_is_wrong_at_second_order_only_is_found_there(derivative):
    square = square_with_vjp(derivative)
    assert gradcheck(square, X, order=1)
    report = gradcheck(square, X, order=2)
    assert report.verdict == "disagree"
    assert {entry.order for entry in report.wrong} == {2}


def test_all_elements_of_all_operands_are_compared():
    product = product_with_vjps(lambda g, y: g * y, lambda g, x: g * x)
    assert gradcheck(product, [X, Y], order=1).compared == 12
    # and at order 2 the gradient of the gradient by both operands and the cotangent
    assert gradcheck(product, [X, Y]).compared == 12 + 18


def test_an_operand_that_is_not_used_has_gradient_zero():
    report = gradcheck(lambda x, y: x * x, [X, Y], order=2)
    assert report
    assert report.compared == 12 + 18


def test_an_operand_that_is_wrongly_cut_off_is_found():
    report = gradcheck(lambda x, y: x * y.detach(), [X, Y])
    assert {entry.operand for entry in report.wrong} == {"y"}


def test_a_wrong_gradient_that_an_all_ones_cotangent_would_miss_is_found():
    # With g = 1 everywhere, g - mean(g) is 0, and so is this fault.
    square = square_with_vjp(lambda g, x: 2 * g * x + (g - g.sum() / 6))
    assert gradcheck(square, X).verdict == "disagree"


def test_a_fault_beside_a_huge_value_is_not_called_right():
    x = np.array([1e6, 1.0])
    fault = np.array([0.0, 0.1])
    assert gradcheck(square_with_vjp(lambda g, x: 2 * g * x), x)
    assert not gradcheck(square_with_vjp(lambda g, x: 2 * g * x + fault), x)


def test_float32_inputs_are_checked_in_float64():
    assert gradcheck(minigrad.tanh, X.astype(np.float32), order=2)
    fault = square_with_vjp(lambda g, x: 2.00001 * g * x)
    assert not gradcheck(fault, X.astype(np.float32))


def test_integers_and_booleans_are_handed_on():
    mask = np.array([True, False, True])
    report = gradcheck(minigrad.where, [mask, X, Y], order=1)
    assert report
    assert report.compared == 12
    labels = np.array([2, 0])
    assert gradcheck(minigrad.cross_entropy, [X, labels], order=2)


def test_inputs_are_not_changed():
    x = minigrad.tensor(X, requires_grad=True)
    gradcheck(minigrad.exp, x, order=2)
    assert np.array_equal(x.data, X)
    assert x.grad is None


def test_a_scalar_and_an_empty_operand_can_be_checked():
    for scalar in (0.7, np.float32(0.7), np.array(0.7), minigrad.tensor(0.7)):
        assert gradcheck(minigrad.exp, scalar, order=1).compared == 1
    report = gradcheck(minigrad.exp, np.zeros((0, 2)))
    assert report
    assert report.compared == 0


def test_a_looser_tolerance_lets_a_small_fault_pass():
    square = square_with_vjp(lambda g, x: 2.002 * g * x)
    assert not gradcheck(square, X, tolerance=9e-4)
    assert gradcheck(square, X, tolerance=1.1e-3)


def test_where_the_function_is_not_finite_it_cannot_tell():
    report = gradcheck(minigrad.log, np.array([1.0, 0.0]), order=1)
    assert report.verdict == "cannot tell"
    assert not report
    assert [entry.index for entry in report.undecided] == [(1,)]
    assert "undecided: order 1, x[1]" in repr(report)
    assert "f is not finite" in repr(report)


def test_where_it_is_finite_on_one_side_it_cannot_tell_unless_that_side_says_no():
    report = gradcheck(minigrad.sqrt, np.array([0.0]), order=1)
    assert report.verdict == "cannot tell"
    assert "finite on the right only" in report.undecided[0].reason

    @op
    def to_three_halves(x):
        return np.sqrt(x) ** 3

    to_three_halves.vjp("x", lambda g, x: g * (1.5 * minigrad.sqrt(x) + 2 * (x == 0)))
    assert gradcheck(to_three_halves, np.array([0.0]), order=1).verdict == "disagree"


def test_a_slope_that_grows_slowly_on_one_side_is_no_limit():
    x, y = np.array([0.0]), np.array([1.0])  # the gradient by y is x^y log(x)
    assert gradcheck(minigrad.power, [x, y]).verdict == "cannot tell"


def test_works_under_no_grad():
    with minigrad.no_grad():
        assert gradcheck(minigrad.tanh, X, order=2)
        assert not gradcheck(square_with_vjp(WRONG["wrong sign"]), X)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_function_may_differentiate_by_its_inputs_itself(dtype):
    def gradients(x, y):
        return minigrad.grad((x**3 * y.sin()).sum(), [x, y], create_graph=True)

    inputs = [X.astype(dtype), (X + 1).astype(dtype)]
    assert gradcheck(gradients, inputs)
    report = gradcheck(lambda x: minigrad.grad((x**3).sum(), x), inputs[:1], order=1)
    assert report.verdict == "disagree"  # without create_graph the result is a constant


def test_an_error_of_f_is_raised_as_it_is_though_f_is_called_once_more():
    def failing(x):
        raise RuntimeError("no device is there")

    with pytest.raises(RuntimeError, match="no device is there") as caught:
        gradcheck(failing, X)
    assert caught.value.__context__ is None
    assert len(caught.value.__notes__) == 1


def test_cotangents_come_from_rng_and_are_the_same_each_time_without():
    square = square_with_vjp(lambda g, x: 2.002 * g * x)
    wrong = gradcheck(square, X).wrong
    assert gradcheck(square, X).wrong == wrong
    other = gradcheck(square, X, rng=np.random.default_rng(3))
    assert {e.analytic for e in other.wrong}.isdisjoint(e.analytic for e in wrong)


# The report


def test_report_says_what_is_wrong_where():
    def halved(x):
        return square_with_vjp(lambda g, x: g * x)(x)

    report = gradcheck(halved, np.array([2.0, 3.0]), order=1)
    assert isinstance(report, GradcheckReport)
    entry = report.wrong[0]
    lines = repr(report).splitlines()
    assert lines[0] == (
        "gradcheck of halved: disagree (2 entries compared, 2 wrong, 0 undecided, tolerance 1e-06)"
    )
    assert lines[1] == (
        f"  wrong: order 1, x[{entry.index[0]}]: analytic {entry.analytic:.9g}, "
        f"numeric {entry.numeric:.9g} +- {entry.error:.1g}, relative difference 0.5"
    )


def test_report_of_a_right_gradient_is_one_line():
    assert repr(gradcheck(minigrad.exp, X)) == (
        "gradcheck of exp: agree (18 entries compared, 0 wrong, 0 undecided, tolerance 1e-06)"
    )


def test_report_lists_the_worst_first_and_not_all():
    fault = np.arange(1.0, 8.0)
    report = gradcheck(square_with_vjp(lambda g, x: 2 * g * x + fault), np.full(7, 0.5), order=1)
    differences = [entry.relative_difference for entry in report.wrong]
    assert len(differences) == 7
    assert differences == sorted(differences, reverse=True)
    lines = repr(report).splitlines()
    assert len(lines) == 1 + 5 + 1
    assert lines[-1].endswith("... and 2 more wrong")


def test_assert_gradients_raises_with_the_report_as_message():
    square = square_with_vjp(WRONG["missing factor"])
    with pytest.raises(GradientError, match=r"gradcheck of square: disagree \(18 entr") as caught:
        assert_gradients(square, X)
    assert str(caught.value) == repr(gradcheck(square, X))
    assert isinstance(caught.value, AssertionError)
    with pytest.raises(GradientError, match=r"^gradcheck of square: disagree"):
        gradcheck(square, X, raise_on_failure=True)
    assert gradcheck(minigrad.multiply, (X, Y), raise_on_failure=True).verdict == "agree"
    assert_gradients(minigrad.multiply, X, Y)
    assert_gradients(square, X, tolerance=0.51, order=1)


def test_assert_gradients_raises_too_where_nothing_can_be_decided():
    with pytest.raises(GradientError, match="cannot tell"):
        assert_gradients(minigrad.relu, np.array([0.0]))


def accused_near_a_singularity(seed):
    """Reports of right VJPs that do not agree."""
    rng = np.random.default_rng(seed)
    reports = [gradcheck(lambda x, y: x / y, [rng.standard_normal((3, 4)) for _ in range(2)])]
    for function in (minigrad.log, minigrad.sqrt, lambda x: 1 / x):
        reports.append(gradcheck(function, np.concatenate([rng.random(6), [0.003]])))
    return [(seed, report) for report in reports if not report]


def test_right_vjps_are_not_accused_near_a_singularity():
    assert not accused_near_a_singularity(0)


@pytest.mark.full
def test_right_vjps_are_not_accused_near_other_singularities():
    assert not [each for seed in range(1, 20) for each in accused_near_a_singularity(seed)]


@pytest.mark.parametrize(("f", "x"), [(minigrad.log, 1e-300), (lambda x: x**-3, 1e-80)])
def test_right_vjps_are_not_accused_if_a_derivative_overflows(f, x):
    with np.errstate(all="ignore"):
        report = gradcheck(f, np.array([x, 1.0]))
    assert report.verdict == "cannot tell"
    assert "too large for float64" in report.undecided[0].reason


def test_an_infinite_gradient_where_the_slope_is_not_is_a_fault():
    @op
    def shifted(x):
        return np.log(x + 1e-3)

    shifted.vjp("x", lambda g, x: g / (x - x))
    report = gradcheck(shifted, np.array([1e-300]), order=1)
    assert report.verdict == "disagree"
    assert "the analytic gradient is not finite" in report.wrong[0].reason


def test_a_fault_is_found_near_a_singularity():
    @op
    def reciprocal(x):
        return 1 / x

    reciprocal.vjp("x", lambda g, out: -1.001 * g * out * out)
    assert gradcheck(reciprocal, np.array([0.003])).verdict == "disagree"


# Kinks


@pytest.mark.parametrize("name", ["relu", "abs"])
def test_at_a_kink_it_cannot_tell(name):
    report = gradcheck(getattr(minigrad, name), np.array([0.0, 1.0]), order=1)
    assert report.verdict == "cannot tell"
    (entry,) = report.undecided
    assert "a kink: slope" in entry.reason
    assert gradcheck(getattr(minigrad, name), np.array([1e-5, -1e-5]), order=1)


def test_the_slope_at_a_kink_must_be_between_those_on_its_sides():
    def absolute(slope_at_zero):
        @op
        def absolute(x):
            return np.abs(x)

        absolute.vjp("x", lambda g, x: g * minigrad.where(x == 0, slope_at_zero, minigrad.sign(x)))
        return absolute

    for slope in (-1.0, -0.3, 0.0, 1.0):
        assert gradcheck(absolute(slope), np.array([0.0]), order=1).verdict == "cannot tell"
    for slope in (-1.001, 1.001, 5.0, np.nan, np.inf):
        assert gradcheck(absolute(slope), np.array([0.0]), order=1).verdict == "disagree"


def largest_with_vjp(shares):
    @op
    def largest(x):
        return np.max(x)

    largest.vjp("x", lambda g, x, out: g * shares(x, out))
    return largest


def test_the_shares_of_a_tie_must_add_up():
    first = np.array([1.0, 0, 0, 0])
    both = np.array([1.0, 0, 1, 0])
    x = np.array([2.0, 1.0, 2.0, 0.5])
    for shares in (lambda *_: first, lambda *_: both / 2):
        assert gradcheck(largest_with_vjp(shares), x, order=1).verdict == "cannot tell"
    for shares in (lambda *_: both, lambda *_: 0 * both, lambda *_: 0.9 * first):
        report = gradcheck(largest_with_vjp(shares), x, order=1)
        assert report.verdict == "disagree"
        assert "all elements alike" in repr(report)


def test_shares_between_operands_must_add_up_too():
    @op
    def larger(x, y):
        return np.maximum(x, y)

    larger.vjp("x", lambda g, x, y: g * (x >= y))
    larger.vjp("y", lambda g, x, y: g * (y >= x))
    x = np.array([1.0, 2.0])
    assert gradcheck(larger, [x, x + 1]).verdict == "agree"
    report = gradcheck(larger, [x, x], order=1)
    assert report.verdict == "disagree"
    assert "all operands alike" in repr(report)
    assert gradcheck(minigrad.maximum, [x, x], order=1).verdict == "cannot tell"


@pytest.mark.parametrize("descending", [False, True])
def test_a_sort_of_three_ties_is_not_accused(descending):
    x = np.array([1.0, 2.0, 1.0, 1.0])
    report = gradcheck(lambda x: minigrad.sort(x, descending=descending), x, order=1)
    assert report.verdict == "cannot tell"


def test_a_jump_and_a_root_are_not_smooth():
    @op
    def heaviside(x):
        return np.heaviside(x, 0.5)

    heaviside.vjp("x", lambda g: 0 * g)
    for f in (heaviside, lambda x: minigrad.sqrt(minigrad.abs(x))):
        report = gradcheck(f, np.array([0.0]), order=1)
        assert report.verdict == "cannot tell"
        assert "grows without bound" in report.undecided[0].reason


def test_a_kink_beside_the_point_is_stepped_over():
    x = np.array([1e-3, 3e-4, -2e-5, 1e-6])
    assert gradcheck(minigrad.abs, x)
    wrong = square_with_vjp(lambda g, x: 2.002 * g * x)
    assert gradcheck(lambda x: wrong(minigrad.abs(x)), x + 1).verdict == "disagree"


def test_steps_go_down_with_an_operand_beside_a_singularity():
    assert gradcheck(minigrad.log, np.array([1e-9, 1e-5, 3.0]))
    assert gradcheck(minigrad.reciprocal, np.array([1e-7, -1e-4]))


# float32


def in_float32_only(fault):
    """A square whose VJP is wrong for float32 only."""

    def derivative(g, x):
        right = 2 * g * x
        return right * fault if x.dtype == np.float32 else right

    return square_with_vjp(derivative)


@pytest.mark.parametrize("fault", [1.01, 0.99, 0.0, -1.0, 1.003])
def test_a_vjp_that_is_wrong_in_float32_only_is_found(fault):
    square = in_float32_only(np.float32(fault))
    assert gradcheck(square, X)
    report = gradcheck(square, X.astype(np.float32))
    assert report.verdict == "disagree"
    assert {entry.dtype for entry in report.wrong} == {"float32"}
    assert "in float32" in repr(report)


def test_a_vjp_that_is_wrong_in_both_is_found_in_both():
    report = gradcheck(square_with_vjp(lambda g, x: 2.02 * g * x), X.astype(np.float32))
    assert {c.dtype for c in report.comparisons if (c.doubt == 2).any()} == {"float32", "float64"}
    assert {entry.dtype for entry in report.wrong} == {"float64"}  # each entry is listed once
    assert len(report.wrong) == X.size


@pytest.mark.full
def test_what_rounding_leaves_in_float32_is_no_fault():
    x = np.linspace(-30, 30, 24, dtype=np.float32).reshape(4, 6)
    for f in (minigrad.softmax, minigrad.log_softmax, minigrad.logsumexp, minigrad.tanh):
        assert gradcheck(f, x).verdict == "agree"
    big = np.array([1e4, 3e4, -2e4], np.float32)
    assert gradcheck(lambda x: (x + 1e6) - 1e6, big).verdict != "disagree"
    assert gradcheck(lambda x: minigrad.tanh((x + 1e6) - 1e6), big / 1e4).verdict != "disagree"


def test_a_function_that_computes_in_float32_is_judged_by_float32():
    @op
    def rounded(x):
        return np.tanh(x.astype(np.float32)).astype(np.float32)

    rounded.vjp("x", lambda g, out: (g * (1 - out * out)).astype(np.float32))
    for x in (X, X.astype(np.float32)):
        assert gradcheck(rounded, x, order=1).verdict == "agree"

    @op
    def halved(x):
        return np.tanh(x.astype(np.float32)).astype(np.float32)

    halved.vjp("x", lambda g, out: (0.99 * g * (1 - out * out)).astype(np.float32))
    for x in (X, X.astype(np.float32)):
        assert gradcheck(halved, x, order=1).verdict == "disagree"


def test_what_float32_cannot_resolve_is_not_called_right():
    small = np.array([1.0, 1e-9])  # relative to the first gradient, the second is nothing

    def derivative(g, x):
        right = 2 * g * x
        return right * np.array([1.0, 3.0], np.float32) if x.dtype == np.float32 else right

    report = gradcheck(square_with_vjp(derivative), small.astype(np.float32), order=1)
    assert report.verdict != "disagree"


def test_float32_overflow_is_no_fault():
    x = np.array([1e-25, 2.0], np.float32)  # whose slope is -1e50
    assert gradcheck(minigrad.reciprocal, x, order=1).verdict == "agree"


# What is handed in


@pytest.mark.full
def test_layouts_are_kept():
    seen = []

    def f(x):
        seen.append(x.data.strides)
        return x * x

    def layout(strides):
        """The order of the axes in memory, and their direction."""
        return np.argsort(np.abs(strides)).tolist(), np.sign(strides).tolist()

    base = np.zeros((6, 8))
    for x in (base[::-2, ::2], base.T, base[:, ::-1], base[1], base[:, ::2]):
        seen.clear()
        assert gradcheck(f, x)
        assert all(layout(strides) == layout(x.strides) for strides in seen)
        gaps = np.abs(x.strides).min() > x.itemsize
        assert all((np.abs(strides).min() > x.itemsize) == gaps for strides in seen)
        assert gradcheck(f, x.astype(np.float32))
    wide = np.broadcast_to(np.array([1.0, 2.0]), (3, 2))
    assert gradcheck(f, wide).compared == 6 + 12


def test_a_vjp_that_is_wrong_for_reversed_memory_is_found():
    def derivative(g, x):
        array = x.data if isinstance(x, Tensor) else x
        return g * 2 * x * (0.5 if any(s < 0 for s in array.strides) else 1.0)

    square = square_with_vjp(derivative)
    assert gradcheck(square, X)
    assert gradcheck(square, X[::-1]).verdict == "disagree"


def test_several_results():
    def f(x, y):
        return {"product": x * y, "rest": [minigrad.tanh(x), (y > 0, y * y)]}

    assert gradcheck(f, [X, Y]).compared == 12 + 12 + 18  # and cotangents of the three of floats
    wrong = square_with_vjp(lambda g, x: 2.1 * g * x)
    assert gradcheck(lambda x, y: (x * y, wrong(y)), [X, Y]).verdict == "disagree"


def test_a_result_that_is_cut_off_beside_one_that_is_not():
    assert gradcheck(lambda x: (x * x, x.detach() * 2), X).verdict == "disagree"
    assert gradcheck(lambda x: (x * x, minigrad.ones(3)), X)


def test_a_module_is_checked_by_its_parameters_too(rng):
    model = nn.Sequential(nn.Linear(3, 4, rng=rng), nn.GELU(), nn.Linear(4, 2, rng=rng))
    before = model.state_dict()
    report = gradcheck(model, X, order=1)
    assert report
    assert report.compared == 6 + 12 + 4 + 8 + 2
    assert {c.operand for c in report.comparisons} >= {"x", "0.weight", "2.bias"}
    assert all(np.array_equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    for p in list(model.parameters())[:2]:
        p.requires_grad_(False)
    assert gradcheck(model, X, order=1).compared == 6 + 8 + 2


def test_a_wrong_parameter_of_a_module_is_named(rng):
    wrong = square_with_vjp(lambda g, x: 2.02 * g * x)

    class Scaled(nn.Module):
        def __init__(self):
            self.scale = nn.Parameter(np.array([1.0, 2.0, 3.0]))
            self.shift = nn.Parameter(np.array([0.5, 0.1, 0.2]))

        def forward(self, x):
            return x * wrong(self.scale) + self.shift

    report = gradcheck(Scaled(), X)
    assert {entry.operand for entry in report.wrong} >= {"scale"}
    assert not {entry.operand for entry in report.wrong if entry.order == 1} - {"scale"}


def test_a_shared_parameter_is_one_operand(rng):
    layer = nn.Linear(3, 3, rng=rng)
    assert gradcheck(nn.Sequential(layer, nn.Tanh(), layer), X, order=1).compared == 6 + 9 + 3


# What is not a function


def test_randomness_is_named(rng):
    report = gradcheck(lambda x: minigrad.dropout(x, 0.5, rng=rng), X)
    assert report.verdict == "cannot tell"
    assert report.compared == 0
    assert "not deterministic: two calls with the same inputs differ by up to" in repr(report)
    assert gradcheck(lambda x: minigrad.dropout(x, 0.5, rng=np.random.default_rng(3)), X)
    sizes = iter([2, 3])
    report = gradcheck(lambda x: x.reshape(6)[: next(sizes)], X)
    assert "two calls gave 2 and 3 numbers" in report.reason


def test_writing_to_an_input_is_named():
    def f(x, y):
        y.data[0] = 0
        return x * y

    with pytest.raises(ValueError, match="f writes to y"):
        gradcheck(f, [X, Y])
    assert Y[0, 0] == 1.1


def test_an_exception_says_when_it_was_raised():
    def f(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        gradcheck(f, X)
    assert caught.value.__notes__ == [
        "raised while gradcheck called f with the inputs it was given, as minigrad Tensors; "
        "a function of PyTorch or JAX is given arrays of theirs"
    ]

    def bounded(bound):
        def g(x):
            if x.data[0, 1] > bound:
                raise ValueError("out of range")
            return x * x

        return g

    assert gradcheck(bounded(-1.1999), X)  # for smaller steps stay below it
    report = gradcheck(bounded(-1.2), X)
    assert report.verdict == "cannot tell"
    assert "it raises ValueError('out of range')" in report.undecided[0].reason


def test_a_vjp_that_cannot_be_differentiated_is_named_as_such():
    square = square_with_vjp(lambda g, x: np.multiply(2 * np.asarray(x), g))
    assert gradcheck(square, X, order=1)
    with pytest.raises(RuntimeError, match="cannot follow") as caught:
        gradcheck(square, X)
    assert any("order=1 checks the first derivative only" in n for n in caught.value.__notes__)


@pytest.mark.parametrize("samples", [0, -1, 2.5, "all"])
def test_samples_are_a_number(samples):
    with pytest.raises(ValueError, match="gradcheck: samples must be a positive integer"):
        gradcheck(minigrad.exp, X, samples=samples)


def test_f_is_a_function():
    with pytest.raises(TypeError, match="f must be a function or a Module, not 3"):
        gradcheck(3, X)


# Every way to a gradient


def test_a_gradient_that_differs_when_it_is_recorded_is_found():
    square = square_with_vjp(lambda g, x: (2.2 if isinstance(x, Tensor) else 2) * g * x)
    report = gradcheck(square, X)
    assert report.verdict == "disagree"
    assert all("by a recorded pass" in e.reason for e in report.wrong if e.order == 1)


def test_a_gradient_that_differs_the_second_time_is_found():
    @op
    def exp(x):
        return np.exp(x)

    @exp.vjp("x")
    def _exp_x(g, out):
        right = g * out
        out *= 1.5  # which the next pass will read
        return right

    report = gradcheck(exp, X, order=1)
    assert report.verdict == "disagree"
    assert any("by a second pass" in entry.reason for entry in report.wrong)


def test_gradients_that_share_memory_are_found(monkeypatch):
    monkeypatch.setattr(engine, "take", lambda arrived, node: Tensor(arrived.pop(node)))
    report = gradcheck(lambda x, y: x + y, [X, Y], order=1)
    assert report.verdict == "disagree"
    assert "x: its gradient shares memory with the gradient of y" in repr(report)
    assert "y: its gradient shares memory with cotangent 0" in repr(report)


def test_a_gradient_of_another_dtype_is_found(monkeypatch):
    fit = engine.fit_to_input
    monkeypatch.setattr(engine, "fit_to_input", lambda *call: fit(*call).astype(float))
    report = gradcheck(lambda x: x.astype(np.float64) ** 2, X.astype(np.float32), order=1)
    assert "x: its gradient is float64, the operand float32" in repr(report)
    assert report.verdict == "disagree"


# Sampling


def test_a_large_operand_is_sampled():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 40))
    report = gradcheck(minigrad.tanh, x, samples=30, order=1)
    assert report
    assert (report.compared, report.total) == (30, 2000)
    assert report.missed(0.01) == pytest.approx(0.99**30)
    assert report.missed(0.5) < 1e-8
    assert "30 of 2,000 entries compared" in repr(report)
    assert "with probability 0.74" in repr(report)
    assert gradcheck(minigrad.tanh, X, samples=30).missed(0.01) == 0.0


def test_what_is_wrong_in_one_element_of_many_shows_in_the_directions():
    fault = np.zeros((50, 40))
    fault[17, 3] = 0.5
    square = square_with_vjp(lambda g, x: 2 * g * x + fault)
    x = np.random.default_rng(0).standard_normal((50, 40))
    report = gradcheck(square, x, samples=10, order=1)
    assert report.verdict == "disagree"
    assert any("in a random direction" in entry.operand for entry in report.wrong)


def test_samples_are_drawn_from_rng():
    x = np.random.default_rng(0).standard_normal(100)
    square = square_with_vjp(lambda g, x: 2.2 * g * x)
    places = [
        {entry.index for entry in gradcheck(square, x, samples=5, rng=r, order=1).wrong}
        for r in (None, None, np.random.default_rng(1))
    ]
    assert places[0] == places[1] != places[2]


# Pictures


def page_of(f, *inputs, **options):
    return gradcheck(f, inputs, **options)._repr_html_()


def cells_of(page):
    """The style, the title and the text of each cell with a number."""
    return re.findall(r'<span style="([^"]*)" title="([^"]*)">([^<]*)</span>', page)


def framed(page):
    """The indices of cells with a frame of each kind, in all heat maps."""
    cells = [(style, title.rpartition(" ")[0]) for style, title, _ in cells_of(page)]
    return {kind: [i for style, i in cells if f"2px {kind}" in style] for kind in FRAME_KINDS}


FRAME_KINDS = ("solid", "dotted")


def test_the_report_is_a_picture_too():
    square = square_with_vjp(lambda g, x: 2 * g * x + np.eye(2, 3))
    page = page_of(square, X)
    assert page.count('role="img"') == 3 * 3  # analytic, numeric, difference; 3 operands
    assert "gradcheck of square: disagree" in page
    assert 'aria-label="x: analytic"' in page
    assert "<b>x</b><br><small>order 1, float64<br>shape (2, 3)<br>full colour: " in page
    named = page_of(lambda x: x * x, X)
    assert "&lt;lambda&gt;" in named
    assert "<lambda>" not in named


def test_the_picture_has_each_number_of_a_small_array_and_frames_the_wrong_ones():
    report = gradcheck(square_with_vjp(lambda g, x: 2 * g * x + np.eye(2, 3)), X, order=1)
    page = report._repr_html_()
    texts = [text for _, _, text in cells_of(page)]
    (shown,) = report.comparisons
    assert texts[:6] == [f"{value:.4g}" for value in shown.analytic.ravel()]
    assert texts[6:12] == [f"{value:.4g}" for value in shown.numeric.ravel()]
    difference = shown.analytic - shown.numeric
    assert texts[12:18] == [f"{value:.4g}" for value in difference.ravel()]
    assert framed(page) == {"solid": 3 * ["[0, 0]", "[1, 1]"], "dotted": []}
    kinked = page_of(minigrad.relu, np.array([[1.0, 0.0]]), order=1)
    assert framed(kinked) == {"solid": [], "dotted": 3 * ["[0, 1]"]}


def test_the_picture_has_indices_and_the_largest_number():
    page = page_of(lambda x: x * np.arange(6.0).reshape(2, 3), X, order=1)
    (largest,) = re.findall(r"full colour: ([\d.]+)", page)
    numbers = [abs(float(title.rpartition(" ")[2])) for _, title, _ in cells_of(page)]
    assert float(largest) == pytest.approx(max(numbers), rel=0.01)
    assert page.count("<span>2</span>") == 3  # the last of 3 columns
    assert page.count("<span>1&nbsp;</span>") == 3  # the last of 2 rows
    assert "full colour: 1<" in page_of(lambda x: 0.0 * x, X, order=1)
    large = page_of(minigrad.tanh, np.full((20, 40), 0.5), order=1)
    assert large.count("<span>15&nbsp;</span>") == 3
    assert large.count("<span>30</span>") == 3


def test_colours_show_sign_and_size():
    page = page_of(lambda x: x * np.array([-2.0, 0.0, 1.0]), np.ones(3), order=1)
    sizes = []
    for style, title, _ in cells_of(page)[:6]:  # of the analytic and the numeric gradient
        value = float(title.rpartition(" ")[2])
        colour, share = re.search(r"(#\w+) (\d+)%", style).groups()
        sizes.append(int(share))
        assert colour == ("#E69F00" if value > 0 else "#56B4E9")
    assert (max(sizes), sizes[1]) == (100, 0)


def test_pictures_of_large_and_odd_arrays_are_small():
    x = np.random.default_rng(0).standard_normal((100, 70))
    page = page_of(minigrad.tanh, x, samples=5, order=1)
    assert len(cells_of(page)) == 3 * 32 * 32
    assert "a cell: the number furthest from 0 of up to 4 x 3" in page
    assert "grey: not compared" in page
    assert page.count("#8883") == 2 * (32 * 32 - 5)
    for x in (np.array(0.5), np.zeros((0, 3)), np.ones((2, 3, 4))):
        assert "agree" in page_of(minigrad.tanh, x)
    assert "axes [0, 1] down, [2] across" in page_of(minigrad.tanh, np.ones((2, 3, 4)), order=1)


def test_a_long_vector_fills_rows_and_its_wrong_element_is_found_in_them():
    fault = np.zeros(100)
    fault[77] = 1.0
    page = page_of(square_with_vjp(lambda g, x: 2 * g * x + fault), np.ones(100), order=1)
    assert len(cells_of(page)) == 3 * 100
    assert framed(page)["solid"] == 3 * ["[77]"]
    assert page.count("<span>64&nbsp;</span>") == 3


@pytest.mark.full
def test_the_wrong_element_is_framed_in_its_block_whatever_is_beside_it():
    fault = np.zeros((64, 64))
    fault[41, 7] = 1.0
    x = np.ones((64, 64))
    page = page_of(square_with_vjp(lambda g, x: 2 * g * x + fault), x, order=1)
    assert framed(page)["solid"] == 3 * ["[40, 6]"]


def test_a_report_is_saved_as_a_page(tmp_path):
    report = gradcheck(minigrad.tanh, X, order=1)
    report.save(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert report._repr_html_() in text
    assert 'content="light dark"' in text
    report.save(tmp_path / "LOUD.HTML")  # as for the pages and drawings of viz
    assert (tmp_path / "LOUD.HTML").read_text(encoding="utf-8") == text
    with pytest.raises(ValueError, match=r"saved as \.html, not as 'report.png'"):
        report.save("report.png")


# What it refuses


@pytest.mark.parametrize("order", [0, 3, -1, 1.5, True, 1.0, "2", np.array([1, 2])])
def test_other_orders_are_refused(order):
    with pytest.raises(ValueError, match=rf"order is 1 or 2, not {re.escape(shown(order))}"):
        gradcheck(minigrad.exp, X, order=order)


def test_several_inputs_that_are_no_tuple_are_explained():
    message = r"not a ndarray of shape \(2,\); several inputs are one tuple, \(x, y\)"
    with pytest.raises(ValueError, match=message):
        gradcheck(minigrad.multiply, np.ones(2), np.ones(2))


@pytest.mark.parametrize("inputs", [np.arange(3), [np.arange(3), np.array([True])], []])
def test_inputs_without_floats_are_refused(inputs):
    with pytest.raises(TypeError, match="with respect to which to differentiate"):
        gradcheck(lambda *xs: xs[0], inputs)


@pytest.mark.parametrize(
    ("f", "what"),
    [
        (lambda x: x.data, "ndarray"),
        (lambda x: (x, 3.0), "Tensor float64, float"),
        (lambda x: None, "NoneType"),
        (lambda x: x > 0, "Tensor bool"),
        (lambda x: {"a": x > 0}, "Tensor bool"),
        (lambda x: (), "tuple"),
    ],
)
def test_functions_that_return_no_tensors_of_floats_are_refused(f, what):
    with pytest.raises(TypeError, match=rf"must return a Tensor of floats.*not .*{what}"):
        gradcheck(f, X)


def test_a_seed_is_not_a_generator():
    with pytest.raises(TypeError, match=r"numpy.random.default_rng\(seed\)"):
        gradcheck(minigrad.exp, X, rng=3)


def test_what_hides_beside_a_large_gradient_is_not_called_right():
    @op
    def cube(x):
        return x**3

    cube.vjp("x", lambda g, x: g * 3 * x * x * minigrad.where(abs(x) < 10, 10.0, 1.0))
    assert gradcheck(cube, np.array([1e6, 1.0])).verdict != "agree"


def test_rounding_where_the_derivative_is_zero_is_no_error():
    assert gradcheck(minigrad.std, [np.array([0.3, 1.7])], order=2)  # |a - b| / 2 is linear
    assert gradcheck(minigrad.cumprod, [np.array([0.3])], order=2)


@pytest.mark.parametrize("slope", [1e-9, -3.0])
def test_a_derivative_of_what_does_not_move_is_an_error(slope):
    @op
    def step(x):
        return np.floor(x)

    step.vjp("x", lambda g: g * slope)
    assert gradcheck(step, np.array([0.5, 7.5])).verdict == "disagree"


def test_terms_that_cancel_leave_rounding_which_is_no_error():
    x, y = np.array([0.3, -1.7]), np.array([2.1, 0.4])
    assert gradcheck(lambda x, y: (x + y) + (x - (x + y)), [x, y], order=2)


def test_rounding_on_both_sides_is_not_called_a_disagreement(rng):
    a = rng.standard_normal((4, 2)) @ rng.standard_normal((2, 4))  # of rank 2: all cofactors are 0
    assert gradcheck(minigrad.det, a).verdict != "disagree"


# Domains' edges, steep functions, small numbers


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (minigrad.arccos, 1 - 1e-8),
        (lambda p: minigrad.log(1 - p), 1 - 1e-9),
        (minigrad.log, 1e-100),
        (lambda x: minigrad.sin(1e6 * x), 0.3),
        (minigrad.sin, 1e10),
        (lambda x: minigrad.softmax(x).sum(), [1.0, 2.0, 3.0]),  # whose gradient is 0 by invariance
    ],
)
def test_edges_steep_functions_and_zeros_can_be_decided(f, x):
    assert gradcheck(f, np.array(x))


def test_beside_an_edge_that_rounding_hides_it_cannot_tell():
    report = gradcheck(lambda x: minigrad.sqrt(1 - x * x), np.array([1 - 1e-9]))
    assert report.verdict == "cannot tell"
    assert "below what float64 can resolve here" in report.undecided[0].reason


def test_a_jump_in_a_domain_is_no_reason_to_accuse():
    report = gradcheck(minigrad.log, np.array([0.0]), order=1)
    assert report.verdict == "cannot tell"


@pytest.mark.parametrize("scale", [1e-8, 1e-12])
def test_a_fault_in_a_tiny_function_is_found(scale):
    @op
    def tiny(x):
        return scale * x * x

    tiny.vjp("x", lambda g, x: scale * 2.02 * g * x)
    assert gradcheck(tiny, np.array([1.0, 2.0]), order=1).verdict == "disagree"
    assert gradcheck(lambda x: scale * x * x, np.array([1.0, 2.0]))


def test_a_fault_in_a_small_result_beside_a_large_one_is_found():
    @op
    def scaled(x):
        return np.array([1e6, 1e-3]) * x * x

    scaled.vjp("x", lambda g, x: g * np.array([2e6, 2.02e-3]) * x)
    report = gradcheck(scaled, np.array([1.0, 2.0]), order=1)
    assert [entry.index for entry in report.wrong] == [(1,)]


def test_a_slope_below_half_a_unit_of_the_value_is_not_accused():
    x = np.array([40.0, 3.0])  # of which the second moves the result by 1e-16
    assert gradcheck(minigrad.logsumexp, x)


def test_coarse_steps_do_not_overrule_a_finer_one():
    f = lambda x: 1e8 * minigrad.exp(0 * x) + 2e-6 * minigrad.sin(300 * x)  # a ripple
    assert gradcheck(f, np.array([0.0]), order=1).verdict == "cannot tell"


def test_a_fault_in_a_small_element_in_float32_is_not_called_right():
    def derivative(g, x):
        right = 2 * g * x
        return right * np.array([1.0, 1.1], x.dtype) if x.dtype == np.float32 else right

    for small in (1e-4, 1e-6):
        x = np.array([1.0, small], np.float32)
        report = gradcheck(square_with_vjp(derivative), x, order=1)
        assert report.verdict == "cannot tell"
        assert "below what float32 can resolve" in report.undecided[0].reason


def test_what_overflows_in_float32_only_is_undecided():
    f = lambda x: minigrad.log(minigrad.exp(x))
    assert gradcheck(f, np.array([100.0]))
    report = gradcheck(f, np.array([100.0], np.float32))
    assert report.verdict == "cannot tell"
    assert "not finite in float32, though it is in float64" in report.undecided[0].reason
    assert gradcheck(minigrad.square, np.array([1.0, 1e-40], np.float32))  # which is not normal


# Every way to a gradient: for one operand alone, and cotangents of other layouts


def test_a_joint_vjp_that_is_wrong_for_one_operand_alone_is_found():
    @op
    def product(x, y):
        return x * y

    product.joint_vjp(
        ("x", "y"),
        lambda g, needs_input_grad, x, y: (g * y * (1 if all(needs_input_grad) else 1.1), g * x),
    )
    report = gradcheck(product, [X, Y], order=1)
    assert {entry.operand for entry in report.wrong} == {"x"}
    assert all("by a pass for it alone" in entry.reason for entry in report.wrong)


def test_a_joint_vjp_that_is_wrong_without_one_of_three_operands_is_found():
    @op
    def product(x, y, z):
        return x * y * z

    def derivative(g, needs_input_grad, x, y, z):
        frozen_y = needs_input_grad == (True, False, True)  # as if it had written to g for x
        return g * y * z, g * x * z, g * x * y * (1.1 if frozen_y else 1)

    product.joint_vjp(("x", "y", "z"), derivative)
    report = gradcheck(product, [X, Y, Y], order=1)
    assert {entry.operand for entry in report.wrong} == {"z"}
    assert all("by a pass without one of the others" in entry.reason for entry in report.wrong)


@pytest.mark.parametrize("most", [5.0, 100.0, 1e6])
def test_a_vjp_that_clips_its_gradient_is_found(most):
    derivative = lambda g, x: 2 * x * minigrad.clip(g, -most, most)
    report = gradcheck(square_with_vjp(derivative), X, order=1)
    assert report.verdict == "disagree"
    assert all("for cotangents times " in entry.reason for entry in report.wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        minigrad.abs,
        minigrad.relu,
        lambda g: -minigrad.relu(-g),
        lambda g: minigrad.minimum(g, 1e6),
        lambda g: minigrad.where(minigrad.abs(g) < 1e-6, 0.0, g),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_a_vjp_of_a_number_that_is_not_linear_in_its_cotangent_is_found(wrong, seed):
    @op
    def squares(x):
        return np.sum(x * x)

    squares.vjp("x", lambda g, x: 2 * x * wrong(g))
    report = gradcheck(squares, X, order=1, rng=np.random.default_rng(seed))
    assert report.verdict == "disagree"


def doubled_without_grad(x):
    with minigrad.no_grad():
        y = 2 * x
    return y + x


@pytest.mark.parametrize(
    ("f", "cut"),
    [
        (lambda x: x.detach() * x, "detach()"),
        (lambda x: x * x.sum().item(), "item()"),
        (lambda x: x * x.data, ".data"),
        (doubled_without_grad, "no_grad"),
        (lambda x: x.detach() * doubled_without_grad(x), "detach() and no_grad"),
    ],
)
def test_a_report_names_what_takes_values_out_of_the_graph(f, cut):
    report = gradcheck(f, X, order=1)
    assert report.wrong
    reason = f"f uses {cut}, through which no gradient flows"
    assert all(entry.reason == reason for entry in report.wrong)


def test_vjps_that_are_swapped_are_found_where_the_operands_are_equal():
    @op
    def product(x, y):
        return x * y

    product.vjp("x", lambda g, x: g * x)
    product.vjp("y", lambda g, y: g * y)
    assert gradcheck(product, [np.ones(3), np.ones(3)], order=1).verdict == "disagree"


def test_a_gradient_that_leaves_out_a_fast_wave_is_found():
    def features(x):
        waves = 2.0 ** np.arange(14) * np.pi * minigrad.reshape(x, (-1, 1))
        return minigrad.concatenate([waves[:, :13].sin(), waves[:, 13:].detach().sin()], 1)

    point = np.array([0.3, 0.7, 0.1])
    assert gradcheck(features, point, order=1).verdict == "disagree"
    assert gradcheck(lambda x: minigrad.sin(2.0**13 * np.pi * x), point, order=1)


def test_a_gradient_that_overflows_for_larger_cotangents_only_is_right():
    assert gradcheck(lambda x: 1e306 * x, np.array([1.0, -0.5]), order=1)


def reads_memory(stride):
    """Whether an array's elements are not simply one behind the other."""

    def derivative(g, x):
        layout = g.strides if isinstance(g, np.ndarray) else ()
        return 2 * g * x * (1.1 if any(stride(s) for s in layout) else 1.0)

    return square_with_vjp(derivative)


def test_a_vjp_that_is_wrong_for_some_layout_of_its_cotangent_is_found():
    in_order_of_memory = square_with_vjp(lambda g, x: 2 * g.ravel("K").reshape(x.shape) * x)
    for f in (reads_memory(lambda s: s < 0), in_order_of_memory):
        report = gradcheck(f, X, order=1)
        reasons = {entry.reason for entry in report.wrong}
        assert reasons == {"by cotangents in reversed and transposed memory"}
    report = gradcheck(reads_memory(lambda s: s == 0), X, order=1)
    assert [entry.reason for entry in report.wrong] == [
        "its gradient is another one for a cotangent that is broadcast, as behind a sum"
    ]


# What else it depends on


def test_what_is_not_an_operand_is_left_alone_and_reported():
    w = minigrad.tensor([1.0, 2.0], requires_grad=True)
    before = w.grad = minigrad.tensor([5.0, 6.0])
    report = gradcheck(lambda x: x * w, np.array([1.0, 2.0]))
    assert report
    assert w.grad is before
    assert "not checked: 1 more tensor that f depends on" in repr(report)
    assert "not checked" in report._repr_html_()
    assert "not checked" not in repr(gradcheck(minigrad.multiply, [X, Y]))


def test_randomness_that_only_gradients_show_is_named():
    a, b = np.ones((2, 3)), np.zeros((3, 2))  # as in a fresh adapter
    f = lambda x, a, b: minigrad.dropout(x, 0.5) @ a.T @ b.T
    report = gradcheck(f, [X, a, b])
    assert report.verdict == "cannot tell"
    assert "not deterministic: two passes for its gradient" in repr(report)


def test_a_function_that_changes_as_it_is_called_is_named():
    calls = []

    def f(x):
        calls.append(1)
        return x * (2.0 if len(calls) > 20 else 1.0)

    report = gradcheck(f, np.array([1.0]))
    assert "not deterministic" in report.reason


def test_random_generators_are_put_back():
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    gradcheck(lambda x: minigrad.dropout(x, 0.5, rng=rng), X)
    assert rng.bit_generator.state == state


def test_a_vjp_that_writes_to_an_operand_is_named():
    def derivative(g, x):
        if isinstance(x, np.ndarray):
            x *= 1.0 + 1e-9
        return 2 * g * x

    with pytest.raises(ValueError, match="writes to x where a gradient is required"):
        gradcheck(square_with_vjp(derivative), X, order=1)


def test_arrays_that_ops_hand_out_are_as_before():
    table = np.array([1.0, 2.0, 3.0])

    @op
    def constant(x):
        return table

    constant.vjp("x", lambda g: 0 * g)
    gradcheck(lambda x: constant(x) * x, np.ones(3))
    assert table.tolist() == [1.0, 2.0, 3.0]


def test_results_that_change_in_number_are_named():
    def f(x):
        return x[x.data > 0.3]

    shapes = r"gives results of shapes \[\(2,\)\], and \[\(1,\)\]"
    with pytest.raises(ValueError, match=shapes) as e:
        gradcheck(f, np.array([0.3, 0.7]), order=1)
    assert "raised while gradcheck called f with" in e.value.__notes__[0]


def test_an_exception_where_gradients_are_required_is_reported_as_such():
    def f(x):
        if x.requires_grad:
            raise KeyError("only here")
        return x * 2

    with pytest.raises(KeyError, match="only here") as caught:
        gradcheck(f, X)
    assert "called f with inputs that require a gradient" in caught.value.__notes__[0]


def test_a_module_that_cannot_be_copied_is_named():
    class Locked(nn.Module):
        def __init__(self):
            self.lock = threading.Lock()
            self.w = nn.Parameter(np.ones(2))

        def forward(self, x):
            return self.w * x

    with pytest.raises(TypeError, match="Locked cannot be copied"):
        gradcheck(Locked(), np.ones(2))


@pytest.mark.parametrize("tolerance", [0, -1.0, 1, np.nan, np.inf, "small", None])
def test_a_tolerance_is_between_0_and_1(tolerance):
    with pytest.raises(ValueError, match="tolerance is a number between 0 and 1, not"):
        gradcheck(minigrad.exp, X, tolerance=tolerance)


def test_options_may_be_numbers_of_numpy():
    options = {"tolerance": np.float32(1e-3), "nondet_tol": np.float32(0)}
    assert gradcheck(minigrad.exp, X, np.int64(1), **options).tolerance == np.float32(1e-3)


def test_the_tolerance_that_was_used_is_reported():
    f = lambda x: minigrad.tanh(x.astype(np.float32))
    assert gradcheck(f, X, order=1).tolerance == pytest.approx(3 * 2**-11.5)
    assert gradcheck(minigrad.tanh, X.astype(np.float32), order=1).tolerance == 1e-6


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "no input contains floats"),
        ({1.0}, "a must be made of numbers; .* not object: {1.0}"),
        ([X, {"y": "text"}], r'b\["y"\] must be made of numbers'),
        ([X, None], "multiply"),
        ([X, X.astype(complex)], "b must be .* not complex128"),
    ],
)
def test_inputs_that_are_none_are_refused(inputs, message):
    with pytest.raises(TypeError, match=message):
        gradcheck(minigrad.multiply, inputs)


class Layer(NamedTuple):
    weight: Any
    bias: Any = None


def test_containers_are_operands_by_their_leaves():
    def network(x, layers, options):
        for layer in layers:
            x = minigrad.tanh(x @ layer["norm"].weight + layer["bias"])
        return x * options["scale"]

    rng = np.random.default_rng(0)
    layers = [{"norm": Layer(rng.standard_normal((3, 3))), "bias": np.ones(3)} for _ in range(2)]
    inputs = rng.standard_normal((2, 3)), layers, {"scale": 2}
    report = gradcheck(network, inputs)
    assert report.verdict == "agree"
    first = [one for one in report.comparisons if one.order == 1]
    names = [f"layers[{i}]{part}" for i in range(2) for part in ('["norm"].weight', '["bias"]')]
    assert [one.operand for one in first] == ["x", *names]
    assert gradcheck(lambda d: d["a"] * d["b"], {"a": X, "b": 2.0}).verdict == "agree"


def test_a_wrong_gradient_by_a_leaf_is_named():
    @minigrad.op
    def product(a, b):
        return a * b

    product.vjp("a", lambda g, b: g * b)
    product.vjp("b", lambda g, a: g * a * 1.1)
    report = gradcheck(lambda params: product(params["w"], params["v"]), [{"w": X, "v": X + 1}])
    assert report.verdict == "disagree"
    assert {wrong.operand for wrong in report.wrong if wrong.order == 1} == {'params["v"]'}
    assert 'params["v"]' in str(report)


def test_a_list_of_arrays_is_a_container():
    x, y = minigrad.randn(3, dtype=np.float64), minigrad.randn(2, dtype=np.float64)
    report = gradcheck(lambda xs: minigrad.concatenate(xs), [[x, y]])
    assert report.verdict == "agree"
    assert {one.operand for one in report.comparisons if one.order == 1} == {"xs[0]", "xs[1]"}
    assert gradcheck(lambda xs, n: xs[0] * xs[1] + n, [(x, x.numpy()), 2]).verdict == "agree"
    assert gradcheck(lambda x: x * x, [[[1.0, np.float64(2.0)], [3.0, 4.0]]]).verdict == "agree"
    assert gradcheck(lambda x, bias: x * x, [x, None]).verdict == "agree"


def test_a_module_may_take_containers():
    lstm = nn.LSTM(3, 4, dtype=np.float64)
    state = minigrad.randn(1, 2, 4), minigrad.randn(1, 2, 4)
    report = gradcheck(lstm, [minigrad.randn(5, 2, 3), state], order=1, samples=3)
    assert report.verdict == "agree"
    names = {one.operand for one in report.comparisons}
    assert {"x", "hx[0]", "hx[1]", "weight_ih_l0"} <= names


def test_a_module_is_no_input():
    model = nn.Linear(3, 2, dtype=np.float64)
    for f, inputs in (
        (lambda m, x: m(x), [model, X]),
        (lambda d: d["model"](d["x"]), [{"x": X, "model": model}]),
    ):
        with pytest.raises(TypeError, match=r"a Module cannot be an input \(.*\.weight, .*; pass"):
            gradcheck(f, inputs)


def test_a_class_is_no_function():
    with pytest.raises(TypeError, match="f is the class Linear; pass an instance of it"):
        gradcheck(nn.Linear, X)


def test_a_share_is_between_0_and_1():
    report = gradcheck(minigrad.tanh, np.ones(9), samples=2, order=1)
    with pytest.raises(ValueError, match="is a probability, not 2"):
        report.missed(2)


def test_an_undecided_entry_is_listed_once():
    report = gradcheck(minigrad.relu, np.array([0.0], np.float32), order=1)
    assert len(report.undecided) == 1


# Where rounding inside an op is larger than what it gives


@pytest.mark.sampled(3)
@pytest.mark.parametrize("logit", [11.0, 13.0, 16.0, 30.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_confident_classifier_is_not_accused(logit, dtype):
    x = np.array([[logit, 0.5, -0.2]], dtype)
    loss = lambda x: minigrad.cross_entropy(x, np.array([0]))
    assert gradcheck(loss, x, order=1).verdict != "disagree"
    entropy = lambda x: -(minigrad.softmax(x) * minigrad.log_softmax(x)).sum()
    assert gradcheck(entropy, 3 * x, order=1).verdict != "disagree"


@pytest.mark.full
def test_a_gradient_that_is_nothing_but_rounding_is_not_accused():
    for seed in range(60):
        x = np.random.default_rng(seed).standard_normal((3, 4)).astype(np.float32)
        report = gradcheck(lambda x: minigrad.layer_norm(x, (4,)).sum(), x, order=1)
        assert report.verdict != "disagree", report


def test_a_fault_that_the_last_digit_hides_is_not_called_right():
    @op
    def exp(x):
        return np.exp(x)

    exp.vjp("x", lambda g, x, out: g * out * minigrad.where(x < 0, -1.0, 1.0))
    report = gradcheck(exp, np.array([-3.0, 30.0]), order=1)
    assert report.verdict == "cannot tell"
    assert "below what float64 can resolve here" in report.undecided[0].reason

    @op
    def wrong(x):
        return 1.0 * x

    wrong.vjp("x", lambda g: -3.0 * g)
    for offset, scale in ((100, 1e-9), (1, 1e-12), (1e4, 1e-8)):
        report = gradcheck(lambda x: offset + scale * wrong(x).sum(), np.ones(2), order=1)  # noqa: B023
        assert report.verdict != "agree"


def test_a_function_that_depends_on_the_dtype_is_not_accused():
    near_zero = np.array([1e-8, 2e-8], np.float32)
    f = lambda x: minigrad.log(minigrad.clip(x, np.finfo(x.dtype).eps, 1))
    assert gradcheck(f, near_zero, order=1).verdict != "disagree"
    report = gradcheck(lambda x: x * x.dtype.itemsize, np.ones(2, np.float32), order=1)
    assert report.verdict == "cannot tell"
    assert "in float32 f is another function than in float64" in report.undecided[0].reason


@pytest.mark.parametrize("share", [0, 1e-7])
def test_a_small_result_counts_although_its_gradient_is_cut_to_almost_0(share):
    def f(x):
        cut = x.detach()
        return x * x, 1e-7 * minigrad.sin(cut + share * (x - cut))

    for at in (0.5, 0.0):
        assert gradcheck(f, [np.array([at, at + 0.25])]).verdict == "disagree"
    right = lambda x: (x * x, 1e-7 * minigrad.sin(x))
    assert gradcheck(right, [np.array([0.0, 0.5])]).verdict == "agree"


def test_a_small_result_beside_a_large_one_is_checked_as_well():
    wrong = square_with_vjp(lambda g, x: 2.02 * g * x)
    for scale in (1e5, 1e9):
        f = lambda x, scale=scale: (scale * minigrad.sin(x).sum(), wrong(x).sum())
        assert gradcheck(f, X).verdict == "disagree"
        right = lambda x, scale=scale: (scale * minigrad.sin(x).sum(), (x * x).sum())
        assert gradcheck(right, X)


# Kinks that meet


def test_kinks_that_cancel_or_coincide_are_not_accused():
    relu6 = lambda x: minigrad.clip(x, 0, 6)
    one = np.ones(1)
    for f, inputs in (
        (lambda x: minigrad.clip(x, -1, 1).sum(), np.array([-1.0, 1.0])),
        (lambda x: relu6(x).sum(), np.array([0.0, 6.0])),
        (lambda a, b: minigrad.clip(minigrad.maximum(a, b), 0, 1), [one, one]),
        (lambda a, b, c: minigrad.minimum(minigrad.maximum(a, b), c), [one, one, one]),
    ):
        assert gradcheck(f, inputs, order=1).verdict == "cannot tell"


# VJPs that remember


def test_a_vjp_that_knows_one_call_only_is_found():
    def remembering(first_only):
        seen = []

        @op
        def square(x):
            if not (first_only and seen):
                seen[:] = [np.array(x)]
            return x * x

        square.vjp("x", lambda g: 2 * g * seen[0])
        return square

    report = gradcheck(remembering(first_only=True), X, order=1)
    assert report.verdict == "disagree"
    assert any(entry.operand.startswith("another point") for entry in report.wrong)
    report = gradcheck(remembering(first_only=False), X, order=1)
    assert any("by a pass behind another call of f" in entry.reason for entry in report.wrong)


def test_a_vjp_that_writes_to_the_arriving_gradient_is_named():
    def derivative(g, x):
        g *= 2 * x
        return g

    report = gradcheck(square_with_vjp(derivative), X, order=1)
    assert report.verdict == "disagree"
    assert "a backward function writes to the gradient that it is given" in repr(report)


def test_generators_of_python_and_numpy_are_put_back():
    states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    gradcheck(lambda x: x * random.random() * np.random.rand(), X)  # noqa: NPY002
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # noqa: NPY002


def test_a_point_where_f_fails_is_stepped_over():
    a = np.array([[1.0, 0.9999], [0.9999, 1.0]])
    assert gradcheck(minigrad.cholesky, a, order=1).verdict != "disagree"

    def log(x):
        if (x.data <= 0).any():
            raise ValueError("not positive")
        return minigrad.log(x)

    assert gradcheck(log, np.array([1e-4, 2.0]))


@pytest.mark.full
def test_an_ill_conditioned_inverse_is_not_accused():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        u, v = (np.linalg.qr(rng.standard_normal((4, 4)))[0] for _ in range(2))
        a = u @ np.diag(np.geomspace(1, 1e-12, 4)) @ v
        report = gradcheck(minigrad.solve, [a, rng.standard_normal((4, 2))], order=1)
        assert report.verdict == "cannot tell", report


def test_a_tangent_that_is_no_transpose_of_the_gradient_is_found():
    @op(linear=("x",))
    def affine(x):  # which is not linear: forward mode calls it on a tangent
        return 3.0 * x + 1.0

    affine.vjp("x", lambda g: 3.0 * g)
    assert gradcheck(affine, X, order=1)
    report = gradcheck(affine, X)
    assert report.verdict == "disagree"
    assert report.wrong[0].operand == "forward mode, in a random direction"


def product_with_tangent(rule):
    """Return an op x y with right VJPs, and this rule for its tangent."""

    @op
    def product(x, y):
        return x * y

    product.vjp("x", lambda g, y: g * y)
    product.vjp("y", lambda g, x: g * x)
    product.jvp(rule)
    return product


def test_a_tangent_rule_that_is_wrong_where_an_input_has_no_tangent_is_found():
    both = lambda tangents, x, y: tangents[0] * y + tangents[1] * x
    product = product_with_tangent(
        lambda tangents, x, y: both([y if v is None else v for v in tangents], x, y)
    )
    report = gradcheck(product, [X, Y])
    alone = "forward mode, in a random direction of {} alone"
    assert {entry.operand for entry in report.wrong} == {alone.format("x"), alone.format("y")}


def test_a_tangent_rule_that_fails_where_an_input_has_no_tangent_is_found():
    product = product_with_tangent(lambda tangents, x, y: tangents[0] * y + tangents[1] * x)
    with pytest.raises(TypeError, match="NoneType") as caught:
        gradcheck(product, [X, Y])
    assert "in forward mode, in a random direction of x alone" in caught.value.__notes__[-1]


def test_a_tangent_rule_that_is_wrong_inside_a_vjp_is_found():
    @op
    def times_exp(u, x):
        return u * np.exp(x)

    times_exp.vjp("u", lambda g, x: g * minigrad.exp(x))
    times_exp.vjp("x", lambda g, out: g * out)
    times_exp.jvp(
        lambda tangents, u, x: 0.9 * np.exp(x) * sum(v for v in tangents if v is not None)
    )

    @op
    def exp(x):
        return np.exp(x)

    exp.vjp("x", lambda g, x: times_exp(g, x))
    assert gradcheck(exp, X, order=1)
    (entry,) = gradcheck(
        exp, X
    ).wrong  # `hvp` and `hessian` use this rule, and reverse mode does not
    assert (entry.order, entry.operand) == (2, "forward mode, in a random direction")
