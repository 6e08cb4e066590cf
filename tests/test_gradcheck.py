"""The checker is checked: it must find every wrong rule that is planted here."""

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, gradcheck, op
from minigrad.diagnostics import GradcheckReport, GradientError

X = np.array([[0.3, -1.2, 0.8], [1.5, 0.4, -0.6]])
Y = np.array([[1.1, 0.7, -0.9], [0.2, -1.4, 0.5]])


def square_with_rule(derivative):
    @op
    def square(x):
        return x * x

    square.rule("x", derivative)
    return square


def product_with_rules(x_rule, y_rule):
    @op
    def product(x, y):
        return x * y

    product.rule("x", x_rule)
    product.rule("y", y_rule)
    return product


def frozen(x):
    """The value of x at no place in the graph: how a careless rule reads it."""
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


def test_a_right_rule_passes_at_both_orders():
    square = square_with_rule(lambda g, x: 2 * g * x)
    for order in (1, 2):
        report = gradcheck(square, X, order=order)
        assert report
        assert report.verdict == "agree"
        assert report.wrong == []
        assert report.undecided == []


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_rule_is_found(fault):
    report = gradcheck(square_with_rule(WRONG[fault]), X)
    assert not report
    assert report.verdict == "disagree"


def test_a_transposed_gradient_is_found():
    @op
    def product(x, y):
        return x @ y

    product.rule("x", lambda g, y: minigrad.transpose(minigrad.matmul(g, minigrad.transpose(y))))
    product.rule("y", lambda g, x: minigrad.matmul(minigrad.transpose(x), g))
    report = gradcheck(product, [X[:2, :2], Y[:2, :2]])
    # the diagonal of a transpose is right
    assert {(entry.operand, entry.index) for entry in report.wrong} == {
        ("input 0", (0, 1)),
        ("input 0", (1, 0)),
    }


@pytest.mark.parametrize("position", [0, 1])
def test_the_operand_whose_rule_is_wrong_is_named(position):
    rules = [lambda g, y: g * y, lambda g, x: g * x]
    rules[position] = [lambda g, y: 1.001 * g * y, lambda g, x: 1.001 * g * x][position]
    report = gradcheck(product_with_rules(*rules), [X, Y])
    assert {entry.operand for entry in report.wrong} == {f"input {position}"}
    assert len(report.wrong) == X.size


def test_the_element_that_is_wrong_is_named():
    fault = np.zeros(X.shape)
    fault[1, 2] = 1e-4
    report = gradcheck(square_with_rule(lambda g, x: 2 * g * x + fault), X)
    (entry,) = report.wrong
    assert (entry.order, entry.operand, entry.index) == (1, "input 0", (1, 2))
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
def test_a_rule_that_is_wrong_at_second_order_only_is_found_there(derivative):
    square = square_with_rule(derivative)
    assert gradcheck(square, X, order=1)
    report = gradcheck(square, X, order=2)
    assert report.verdict == "disagree"
    assert {entry.order for entry in report.wrong} == {2}


def test_all_elements_of_all_operands_are_compared():
    product = product_with_rules(lambda g, y: g * y, lambda g, x: g * x)
    assert gradcheck(product, [X, Y]).compared == 12
    # and at order 2 the gradient of the gradient by both operands and the cotangent
    assert gradcheck(product, [X, Y], order=2).compared == 12 + 18


def test_an_operand_that_is_not_used_has_gradient_zero():
    report = gradcheck(lambda x, y: x * x, [X, Y], order=2)
    assert report
    assert report.compared == 12 + 18


def test_an_operand_that_is_wrongly_cut_off_is_found():
    report = gradcheck(lambda x, y: x * y.detach(), [X, Y])
    assert {entry.operand for entry in report.wrong} == {"input 1"}


def test_a_wrong_gradient_that_an_all_ones_cotangent_would_miss_is_found():
    # With g = 1 everywhere, g - mean(g) is 0, and so is this fault.
    square = square_with_rule(lambda g, x: 2 * g * x + (g - g.sum() / 6))
    assert gradcheck(square, X).verdict == "disagree"


def test_a_fault_beside_a_huge_value_is_not_called_right():
    x = np.array([1e6, 1.0])
    fault = np.array([0.0, 0.1])
    assert gradcheck(square_with_rule(lambda g, x: 2 * g * x), x)
    assert not gradcheck(square_with_rule(lambda g, x: 2 * g * x + fault), x)


def test_float32_inputs_are_checked_in_float64():
    assert gradcheck(minigrad.tanh, X.astype(np.float32), order=2)
    fault = square_with_rule(lambda g, x: 2.00001 * g * x)
    assert not gradcheck(fault, X.astype(np.float32))


def test_integers_and_booleans_are_handed_on():
    mask = np.array([True, False, True])
    report = gradcheck(minigrad.where, [mask, X, Y])
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
        assert gradcheck(minigrad.exp, scalar).compared == 1
    assert gradcheck(minigrad.exp, np.zeros((0, 2))).compared == 0


def test_a_looser_tolerance_lets_a_small_fault_pass():
    square = square_with_rule(lambda g, x: 2.002 * g * x)
    assert not gradcheck(square, X, tolerance=9e-4)
    assert gradcheck(square, X, tolerance=1.1e-3)


def test_where_the_function_is_not_finite_around_the_point_it_cannot_tell():
    report = gradcheck(minigrad.log, np.array([1.0, 1e-9]))
    assert report.verdict == "cannot tell"
    assert not report
    assert [entry.index for entry in report.undecided] == [(1,)]
    assert "undecided: order 1, input 0[1]" in repr(report)


def test_works_under_no_grad():
    with minigrad.no_grad():
        assert gradcheck(minigrad.tanh, X, order=2)
        assert not gradcheck(square_with_rule(WRONG["wrong sign"]), X)


def test_cotangents_come_from_rng_and_are_the_same_each_time_without():
    square = square_with_rule(lambda g, x: 2.002 * g * x)
    assert gradcheck(square, X).wrong == gradcheck(square, X).wrong
    other = gradcheck(square, X, rng=np.random.default_rng(3))
    assert {e.analytic for e in other.wrong}.isdisjoint(
        e.analytic for e in gradcheck(square, X).wrong
    )


# The report


def test_report_says_what_is_wrong_where():
    def halved(x):
        return square_with_rule(lambda g, x: g * x)(x)

    report = gradcheck(halved, np.array([2.0, 3.0]))
    assert isinstance(report, GradcheckReport)
    entry = report.wrong[0]
    lines = repr(report).splitlines()
    assert lines[0] == (
        "gradcheck of halved: disagree (2 entries compared, 2 wrong, 0 undecided, tolerance 1e-06)"
    )
    assert lines[1] == (
        f"  wrong: order 1, input 0[{entry.index[0]}]: analytic {entry.analytic:.9g}, "
        f"numeric {entry.numeric:.9g}, relative difference 0.5"
    )


def test_report_of_a_right_gradient_is_one_line():
    assert repr(gradcheck(minigrad.exp, X)) == (
        "gradcheck of exp: agree (6 entries compared, 0 wrong, 0 undecided, tolerance 1e-06)"
    )


def test_report_lists_the_worst_first_and_not_all():
    fault = np.arange(1.0, 8.0)
    report = gradcheck(square_with_rule(lambda g, x: 2 * g * x + fault), np.full(7, 0.5))
    differences = [entry.relative_difference for entry in report.wrong]
    assert len(differences) == 7
    assert differences == sorted(differences, reverse=True)
    lines = repr(report).splitlines()
    assert len(lines) == 1 + 5 + 1
    assert lines[-1].endswith("... and 2 more wrong")


def test_failure_raises_on_request_with_the_report_as_message():
    square = square_with_rule(WRONG["missing factor"])
    with pytest.raises(GradientError, match=r"gradcheck of square: disagree \(6 entries") as caught:
        gradcheck(square, X, raise_on_failure=True)
    assert str(caught.value) == repr(gradcheck(square, X))
    assert isinstance(caught.value, AssertionError)
    assert gradcheck(minigrad.exp, X, raise_on_failure=True)


def test_undecided_raises_on_request_too():
    with pytest.raises(GradientError, match="cannot tell"):
        gradcheck(minigrad.log, np.array([1e-9]), raise_on_failure=True)


@pytest.mark.parametrize("seed", range(20))
def test_right_rules_are_not_accused_near_a_singularity(seed):
    rng = np.random.default_rng(seed)
    assert gradcheck(lambda x, y: x / y, [rng.standard_normal((3, 4)) for _ in range(2)])
    for function in (minigrad.log, minigrad.sqrt, lambda x: 1 / x):
        assert gradcheck(function, np.concatenate([rng.random(6), [0.003]]))


def test_a_fault_is_found_near_a_singularity():
    @op
    def reciprocal(x):
        return 1 / x

    reciprocal.rule("x", lambda g, out: -1.001 * g * out * out)
    assert gradcheck(reciprocal, np.array([0.003])).verdict == "disagree"


def test_at_a_kink_it_cannot_tell():
    assert gradcheck(minigrad.relu, np.array([0.0])).verdict == "cannot tell"
    assert gradcheck(minigrad.relu, np.array([1e-5, -1e-5])).verdict == "agree"


# What it refuses


@pytest.mark.parametrize("order", [0, 3, -1, None])
def test_other_orders_are_refused(order):
    with pytest.raises(ValueError, match=rf"order is 1 or 2, not {order}"):
        gradcheck(minigrad.exp, X, order=order)


@pytest.mark.parametrize("inputs", [np.arange(3), [np.arange(3), np.array([True])], []])
def test_inputs_without_floats_are_refused(inputs):
    with pytest.raises(TypeError, match="nothing to differentiate by"):
        gradcheck(lambda *xs: xs[0], inputs)


@pytest.mark.parametrize(
    ("f", "what"),
    [
        (lambda x: x.data, "ndarray"),
        (lambda x: (x, x), "tuple"),
        (lambda x: None, "NoneType"),
        (lambda x: x > 0, "dtype bool"),
    ],
)
def test_functions_that_return_no_tensor_of_floats_are_refused(f, what):
    with pytest.raises(TypeError, match=f"must return a Tensor of floats, not .*{what}"):
        gradcheck(f, X)


def test_a_seed_is_not_a_generator():
    with pytest.raises(TypeError, match=r"numpy.random.default_rng\(seed\)"):
        gradcheck(minigrad.exp, X, rng=3)


def test_what_hides_beside_a_large_gradient_is_not_called_right():
    @op
    def cube(x):
        return x**3

    cube.rule("x", lambda g, x: g * 3 * x * x * minigrad.where(abs(x) < 10, 10.0, 1.0))
    assert gradcheck(cube, np.array([1e6, 1.0])).verdict != "agree"


def test_rounding_where_the_derivative_is_zero_is_no_error():
    assert gradcheck(minigrad.std, [np.array([0.3, 1.7])], order=2)  # |a - b| / 2 is linear
    assert gradcheck(minigrad.cumprod, [np.array([0.3])], order=2)


@pytest.mark.parametrize("slope", [1e-12, -3.0])
def test_a_derivative_of_what_does_not_move_is_an_error(slope):
    @op
    def step(x):
        return np.floor(x)

    step.rule("x", lambda g: g * slope)
    assert gradcheck(step, np.array([0.5, 7.5])).verdict == "disagree"


def test_terms_that_cancel_leave_rounding_which_is_no_error():
    x, y = np.array([0.3, -1.7]), np.array([2.1, 0.4])
    assert gradcheck(lambda x, y: (x + y) + (x - (x + y)), [x, y], order=2)


def test_rounding_on_both_sides_is_not_called_a_disagreement(rng):
    a = rng.standard_normal((4, 2)) @ rng.standard_normal((2, 4))  # of rank 2: all cofactors are 0
    assert gradcheck(minigrad.det, a).verdict != "disagree"
