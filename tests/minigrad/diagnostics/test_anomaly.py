"""detect_anomaly: the first NaN or Inf is named where it is made, and nothing else is."""

import pickle
import re
import threading
import weakref
from functools import partial

import numpy as np
import pytest

import lora
import minigrad
from minigrad import Observer, Tensor, checkpoint, detect_anomaly, nn, observe, op, optim
from minigrad.core.grad_mode import mode
from minigrad.diagnostics import AnomalyError
from minigrad.kernels.jit import JIT_ENABLED
from tests.cases import CASES, first_of_each


@pytest.fixture(autouse=True)
def quiet():
    """Numpy warns about the same numbers, and here every warning is an error."""
    with np.errstate(all="ignore"):
        yield


HUGE = 3e38  # in float32, twice that is Inf


def leaf(values, dtype=np.float32):
    return Tensor(np.array(values, dtype), requires_grad=True)


def caught(function, **options):
    """The error that `function` ends in under detection."""
    with pytest.raises(AnomalyError) as info, detect_anomaly(**options):
        function()
    return info.value


def line_of(error):
    return error.origin.text


def hint_of(error):
    """The text behind the operands; the line of the test itself may hold any word."""
    return str(error).partition(f"\n  {error.operands[-1]}")[2]


# Forward


def test_the_op_that_makes_the_first_is_named_with_its_line_and_its_operands():
    x = leaf([[0.5, 1.0], [0.25, 0.0]])

    def loss():
        p = x * 1.0
        y = minigrad.log(p)
        return (y * y).sum()

    error = caught(loss)
    assert (error.op, error.phase) == ("log", "forward")
    assert line_of(error) == "y = minigrad.log(p)"
    assert error.origin.file == __file__
    assert error.origin.function == "loss"
    operand, result = error.operands
    assert (operand.name, operand.shape, operand.dtype) == ("input x", (2, 2), "float32")
    assert (operand.low, operand.high, operand.nan, operand.inf) == (0.0, 1.0, 0, 0)
    assert (result.nan, result.inf, result.first) == (0, 1, (1, 1))
    assert "`log` made the first Inf" in str(error)
    assert "y = minigrad.log(p)" in str(error)
    assert "input x: (2, 2) float32, 0 .. 1" in str(error)
    assert "logarithm of 0" in str(error)


def test_an_op_on_plain_arrays_is_watched_too():
    error = caught(lambda: minigrad.sqrt(np.array([1.0, -1.0])))
    assert error.op == "sqrt"
    assert "root of a negative number" in str(error)


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        (
            lambda: minigrad.lora_linear(
                np.ones((1, 2), np.float32),
                np.eye(2, dtype=np.float32),
                leaf([[HUGE, HUGE]]),
                np.zeros((2, 1), np.float32),
            ),
            "overflow on the way",
        ),
        (lambda: nn.LayerNorm(2, eps=0.0)(leaf([1.0, 1.0])), "all equal, or all 0, with eps=0"),
        pytest.param(
            lambda: nn.LayerNorm(2)(leaf([HUGE, -HUGE])),
            "overflow of the squares",
            marks=pytest.mark.skipif(not JIT_ENABLED, reason="numpy's sums are of float64 here"),
        ),
        (lambda: nn.RMSNorm(2, eps=0.0)(leaf([0.0, 0.0])), "all equal, or all 0, with eps=0"),
        (lambda: (leaf([HUGE]) @ np.float32([1e-3])).backward(np.float32(1e5)), None),
        (
            lambda: (leaf([1.0]) @ np.float32([HUGE])).backward(np.float32(10)),
            "overflow: the largest",
        ),
    ],
)
def test_overflow_inside_an_op_is_recognised(function, cause):
    if cause is None:
        with detect_anomaly():
            function()
    else:
        assert cause in hint_of(caught(function))


CAUSES = [
    (lambda x: minigrad.log(x), [-1.0], "negative number"),
    (lambda x: minigrad.log1p(x), [-1.0], "log1p"),
    (lambda x: minigrad.log1p(x), [-2.0], "negative for x < -1"),
    (lambda x: 1 / x, [0.0], "division by 0"),
    (lambda x: x / x, [0.0], "0 / 0"),
    (lambda x: minigrad.reciprocal(x), [0.0], "division by 0"),
    (lambda x: minigrad.rsqrt(x), [0.0], "division by 0"),
    (lambda x: minigrad.rsqrt(x), [-1.0], "root of a negative"),
    (lambda x: minigrad.exp(x), [89.0], "x > 88.72"),
    (lambda x: minigrad.expm1(x), [89.0], "x > 88.72"),
    (lambda x: x**0.5, [-1.0], "negative number to a power"),
    (lambda x: x**-1.0, [0.0], "negative power"),
    (lambda x: x * np.array([np.inf], np.float32), [0.0], "0 * Inf"),
    (lambda x: x + np.inf + np.array([-np.inf], np.float32), [0.0], "Inf - Inf"),
    (lambda x: minigrad.softmax(x + np.array([-np.inf], np.float32)), [0.0], "nothing but -Inf"),
    (lambda x: minigrad.softmax(x + np.array([np.inf], np.float32)), [0.0], "maximum, which is"),
    (lambda x: x @ np.array([np.inf], np.float32), [0.0], "sum of products"),
    (lambda x: minigrad.arcsin(x), [2.0], "from -1 to 1"),
    (lambda x: x * x, [1e30], "the largest float32 is 3.403e+38"),
]


@pytest.mark.parametrize(("function", "value", "cause"), CAUSES)
def test_the_usual_causes_are_recognised(function, value, cause):
    assert cause in hint_of(caught(lambda: function(leaf(value))))


def test_half_precision_overflows_early_and_the_error_says_so():
    error = caught(lambda: leaf([300.0], np.float16) * leaf([300.0], np.float16))
    assert "the largest float16 is 6.55e+04; compute in float32" in str(error)
    assert caught(lambda: minigrad.exp(leaf([12.0], np.float16))).op == "exp"
    with detect_anomaly():
        (leaf([200.0], np.float16) * leaf([300.0], np.float16)).sum().backward()


def test_a_cause_that_is_not_recognised_is_not_made_up():
    @op
    def strange(x):
        return np.full_like(x, np.nan)

    error = caught(lambda: strange(leaf([1.0]).detach()))
    assert str(error).splitlines()[-1] == "  result: (1,) float32, 1 NaN of 1"


# What was there already


def test_nan_in_the_data_is_reported_at_the_first_op_that_passes_it_on():
    x = np.zeros((16, 8), np.float32)
    x[2, 5] = x[7, 0] = np.nan
    model = nn.Linear(8, 3)
    error = caught(lambda: model(Tensor(x)))
    assert error.op == "linear"
    assert (
        "input x of `linear` (data or a frozen parameter) contains NaN already: 2 NaN of 128, "
        "first at [2, 5]"
    ) in str(error)


def test_a_parameter_that_was_ruined_before_is_reported_with_its_gradient():
    model = nn.Linear(2, 1)
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    model.weight.grad = Tensor(np.array([[np.nan, 1.0]], np.float32))
    optimizer.step()
    error = caught(lambda: model(Tensor(np.ones((3, 2), np.float32))))
    assert "input weight of `linear` (a leaf that requires a gradient) contains NaN" in str(error)
    assert "optimiser" in str(error)
    assert "its .grad: (1, 2) float32, 1 NaN of 2" in str(error)


def test_inf_in_a_parameter_is_an_error_and_in_a_constant_it_is_not():
    w = leaf([[1.0, np.inf]])
    assert "contains Inf already" in str(caught(lambda: w * 2.0))
    with detect_anomaly():
        w.detach() * 2.0


def test_nan_that_the_user_replaces_is_no_error():
    x = Tensor(np.array([1.0, np.nan], np.float32))
    w = leaf([1.0, 1.0])
    with detect_anomaly():
        (w * minigrad.where(minigrad.isnan(x), 0.0, x)).sum().backward()


def test_nan_to_num_removes_nan_from_data():
    x = np.array([np.nan, np.inf, -np.inf, 1.0])
    with detect_anomaly():
        out = minigrad.nan_to_num(Tensor(x), nan=np.inf, posinf=2.0)
    np.testing.assert_array_equal(out.numpy(), np.nan_to_num(x, nan=np.inf, posinf=2.0))


def test_an_option_that_is_not_finite_is_not_laid_at_the_door_of_the_op():
    error = caught(lambda: minigrad.leaky_relu(leaf([-1.0]), float("nan")))
    assert "input negative_slope of `leaky_relu` (a number) contains NaN already" in str(error)
    layer = lora.LoRALayer(np.ones((2, 2), np.float32), 2, 2, 1, 1.0)
    layer.scale = 1e39
    layer.lora_b = np.ones((2, 1))
    error = caught(lambda: layer(np.ones((1, 2), np.float32)))
    assert "input scale: () float64, 1e+39" in str(error)


def test_the_layer_of_the_model_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    model[1][0].weight.data[0, 1] = np.nan
    x = np.ones((1, 2), np.float32)
    assert "  in 1.0 (Linear) of the Sequential" in str(caught(lambda: model(x))).splitlines()
    assert "  in the Linear" in str(caught(lambda: model[1][0](x))).splitlines()
    assert "\n  in " not in str(caught(lambda: minigrad.log(leaf([0.0]))))


# Infinity on purpose


def test_masks_of_minus_infinity_are_no_error():
    mask = np.triu(np.full((3, 3), -np.inf, np.float32), 1)
    x = minigrad.randn(2, 3, 3).requires_grad_()
    with detect_anomaly():
        p = minigrad.softmax(x + mask)
        q = minigrad.softmax(minigrad.where(mask == 0, x, -np.inf))
        r = minigrad.scaled_dot_product_attention(x, x, x, mask)
        s = minigrad.scaled_dot_product_attention(x, x, x, is_causal=True)
        t = minigrad.scaled_dot_product_attention(x, x, x, mask, dropout_p=0.5)
        total = (p * q + r + s + t).sum() + minigrad.logsumexp(x + mask, -1).sum()
        total.backward()
        minigrad.log_softmax(x + mask)[:, 2].sum().backward()


def test_lists_of_numbers_are_data_too():
    for join in (minigrad.add, lambda x, listed: minigrad.concatenate([x, listed])):
        error = caught(lambda join=join: join(leaf([1.0]), [np.nan]))
        assert "(data or a frozen parameter) contains NaN already" in str(error)
    with detect_anomaly():
        masked = minigrad.add(leaf([1.0, 2.0]), [0.0, -np.inf])
        minigrad.softmax(minigrad.concatenate([masked, [-np.inf]])).sum().backward()


def test_where_an_infinity_came_in_is_reported_when_it_becomes_a_nan():
    mask = np.array([0.0, -np.inf], np.float32)
    x = leaf([1.0, 1.0])

    def loss():
        logp = minigrad.log_softmax(x + mask)
        return (minigrad.exp(logp) * logp).sum()

    error = caught(loss)
    assert error.op == "multiply"
    assert "an Inf came in first with input b of `add`" in str(error)
    assert "logp = minigrad.log_softmax(x + mask)" in str(error)


def test_an_infinity_that_came_in_elsewhere_is_not_reported():
    mask = np.array([0.0, -np.inf], np.float32)
    x = leaf([1.0, 1.0])

    def loss(last):
        minigrad.softmax(x + mask)
        last()

    for last in (
        lambda: minigrad.log(x - 2.0),
        lambda: minigrad.sqrt(x - 1.0).sum().backward(),
        lambda: (minigrad.zeros(2) + np.inf) * 0.0,
    ):
        assert "softmax(x + mask)" not in str(caught(lambda f=last: loss(f)))
    error = caught(lambda: loss(lambda: (minigrad.ones(2) * np.inf).sum() * 0.0))
    assert "an Inf came in first with input b of `multiply`" in str(error)


def test_without_inf_only_nan_is_an_error():
    x = leaf([0.0, 1.0])
    with detect_anomaly(inf=False):
        minigrad.exp(minigrad.log(x)).sum()
        minigrad.log(x).sum().backward()
    assert caught(lambda: minigrad.log(x) * x, inf=False).op == "multiply"


# Backward


def test_the_vjp_that_makes_the_first_is_named_with_the_line_of_the_forward_call():
    x = leaf([4.0, 0.0])

    def loss():
        root = minigrad.sqrt(x)
        (root * 3.0).sum().backward()

    error = caught(loss)
    assert (error.op, error.phase) == ("sqrt", "backward")
    assert line_of(error) == "root = minigrad.sqrt(x)"
    assert "the VJP of `sqrt` for x made the first Inf" in str(error)
    assert "slope of the square root is infinite at 0" in str(error)
    arrived, saved, given = error.operands
    assert (arrived.low, arrived.high) == (3.0, 3.0)
    assert (saved.name, saved.low, saved.high) == ("its result", 0.0, 2.0)
    assert (given.name, given.inf) == ("the gradient for x", 1)
    assert x.grad is None


def test_a_where_behind_an_infinite_slope_is_explained():
    x = leaf([4.0, 0.0])
    error = caught(lambda: minigrad.where(x > 0, minigrad.sqrt(x), 0.0).sum().backward())
    assert "made the first NaN" in str(error)
    assert "a `where` before the op as well" in str(error)


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (lambda x: x**0.5, 0.0),
        (lambda x: minigrad.arcsin(x), 1.0),
        (lambda x: minigrad.arccos(x), -1.0),
    ],
)
def test_infinite_slopes_are_recognised(function, value):
    assert "infinite at" in hint_of(caught(lambda: function(leaf([value])).sum().backward()))


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (lambda x: 1 / x, 1e-30),
        (lambda x: x**-2, 1e-15),
        (minigrad.reciprocal, 1e-30),
        (minigrad.rsqrt, 1e-30),
        (minigrad.log, 1e-40),
    ],
)
def test_a_slope_beyond_the_largest_number_is_an_overflow(function, value):
    error = caught(lambda: function(leaf([value])).sum().backward())
    assert hint_of(error) == (
        "\n  overflow: the largest float32 is 3.403e+38; the gradient that arrived is too large, "
        "or the function is too steep at this input"
    )


def test_the_op_inside_the_vjp_is_named_and_what_a_vjp_drops_is_no_error():
    def make(drop):
        @op
        def doubled(x):
            return 2 * x

        @doubled.vjp("x")
        def _x(g, x):
            odd = minigrad.log(x - x)
            return minigrad.where(np.full(x.shape, drop), 2 * g, minigrad.exp(-odd))

        return doubled

    for create_graph in (False, True):
        with detect_anomaly():
            make(True)(leaf([1.0])).sum().backward(create_graph=create_graph)
        error = caught(
            lambda c=create_graph: make(False)(leaf([1.0])).sum().backward(None, None, c)
        )
        assert "the VJP of `doubled` for x made the first Inf, in `log` inside it" in str(error)


def test_what_one_vjp_drops_is_not_laid_at_the_door_of_the_next():
    @op
    def careful(x):
        return 2 * x

    @careful.vjp("x")
    def _x(g, x):
        return minigrad.where(minigrad.log(x - x) < 0, 2 * g, g)

    error = caught(lambda: careful(minigrad.sqrt(leaf([0.0]))).sum().backward())
    assert error.op == "sqrt"
    assert "inside it" not in str(error)


def test_ops_called_before_differ_from_those_with_a_line():
    y = minigrad.sqrt(leaf([0.0]))
    error = caught(lambda: y.sum().backward())
    assert error.op == "sqrt"
    assert error.origin is None
    assert "it was called before detect_anomaly() began" in str(error)


def test_one_tensor_as_both_inputs_is_named_for_both():
    x = leaf([1e-30])
    error = caught(lambda: (x / x * 1e38).sum().backward())
    assert "the VJP of `divide` for a and b" in str(error)


def test_gradients_that_no_vjp_made_are_reported():
    x = leaf([1.0, 2.0])

    def hooked():
        y = x * 2.0
        y.register_hook(lambda g: Tensor(np.array([np.nan, 1.0], np.float32)))
        y.sum().backward()

    error = caught(hooked)
    assert error.op == "multiply"
    assert line_of(error) == "y = x * 2.0"
    assert "no VJP has made it" in str(error)
    assert "hook" in str(error)
    seed = np.array([np.inf, 1.0], np.float32)
    assert "was handed a gradient that contains Inf" in str(caught(lambda: (x * x).backward(seed)))


def test_an_op_that_a_hook_calls_is_an_op_of_the_users():
    x = leaf([1.0])

    def hooked():
        y = x * 2.0
        y.register_hook(lambda g: minigrad.log(g - g))
        y.sum().backward()

    error = caught(hooked)
    assert (error.op, error.phase) == ("log", "forward")


def test_what_a_vjp_met_that_was_written_to_since_is_reported():
    x, data = leaf([1.0, 2.0]), np.array([3.0, 4.0], np.float32)

    def loss():
        y = x * data
        data[1] = np.nan
        y.sum().backward()

    error = caught(loss)
    assert "the VJP of `multiply` for a met NaN in its input b" in str(error)
    assert "written to since" in str(error)


def _given(value, g):
    return value


def test_what_is_no_gradient_is_the_error_that_it_is_without():
    for wrong, message in ((None, "returned None"), ([[1.0], [1.0, 2.0]], "returned [[")):

        @op
        def odd(x):
            return 2 * x

        odd.vjp("x", partial(_given, wrong))
        with pytest.raises(TypeError, match=re.escape(message)), detect_anomaly():
            odd(leaf([1.0])).sum().backward()


# Gradients on arrival


def test_a_sum_over_broadcast_axes_that_overflows_is_reported():
    b = leaf([1.0])

    def loss(create_graph):
        y = b + np.zeros(4, np.float32)
        y.backward(np.full(4, HUGE, np.float32), create_graph=create_graph)

    for create_graph in (False, True):
        error = caught(lambda c=create_graph: loss(c))
        assert (error.op, error.phase) == ("add", "backward")
        assert line_of(error) == "y = b + np.zeros(4, np.float32)"
        assert "for a gave finite numbers; summed over the axes" in str(error)
        assert "overflow" in str(error)
        assert b.grad is None


def test_a_gradient_that_does_not_fit_the_dtype_is_reported():
    x = leaf([1.0], np.float16)
    error = caught(lambda: (x * np.array([1e6], np.float32)).sum().backward())
    assert error.op == "multiply" or error.op == "astype"
    assert "float16" in str(error)
    assert x.grad is None


@pytest.mark.parametrize("start", ["backward", "grad"])
def test_gradients_whose_sum_overflows_at_a_leaf_are_reported(start):
    x, other = leaf([1e-30]), leaf([1.0])

    def loss():
        y = minigrad.stack([(x * HUGE).sum(), (x * HUGE).sum()])
        total = (y + other).sum()
        total.backward() if start == "backward" else minigrad.grad(total, x)

    error = caught(loss)
    assert (error.op, error.phase) == ("leaf", "backward")
    assert "the gradient of a leaf of shape (1,) and dtype float32" in str(error)
    assert "2 VJPs" in str(error)
    assert "y = minigrad.stack" in str(error)
    assert x.grad is None
    assert other.grad is None


def test_gradients_of_several_passes_whose_sum_overflows_are_reported():
    x = leaf([1e-30])
    with detect_anomaly():
        (x * HUGE).sum().backward()
    error = caught(lambda: (x * HUGE).sum().backward())
    assert "added to the .grad" in str(error)
    assert "zero_grad" in str(error)
    assert x.grad.data[0] == np.float32(HUGE)
    with detect_anomaly():
        minigrad.grad((x * HUGE).sum(), x)
    x.grad = Tensor(np.array([np.nan], np.float32))
    error = caught(lambda: (x * 2.0).sum().backward())
    assert "the .grad" in str(error)
    assert "contains NaN already" in str(error)


def test_many_operands_and_many_vjps_are_not_all_listed():
    arrays = [leaf([1.0]) for _ in range(40)]
    arrays[30].data[0] = np.nan
    error = caught(lambda: minigrad.concatenate(arrays))
    assert len(error.operands) == 41
    shown = [line.split(":")[0].strip() for line in str(error).splitlines()[2:-1]]
    known = [f"input arrays[{i}]" for i in range(6)]
    assert shown == [*known, "... 33 more", "input arrays[30]", "result"]
    x = leaf([1e-30])
    error = caught(lambda: sum((x * HUGE).sum() * 1e-30 for _ in range(6)).backward(1e30))
    assert str(error).count("test_anomaly.py") == 2
    assert "6 VJPs gave gradients for it, 6 of `multiply` at test_anomaly.py" in str(error)


def test_what_a_hook_of_a_leaf_returns_is_reported():
    x = leaf([1.0])
    x.register_hook(lambda g: Tensor(np.array([np.nan], np.float32)))
    error = caught(lambda: (x * 2.0).sum().backward())
    assert error.op == "leaf"
    assert "a hook returned it" in str(error)
    assert x.grad is None


# The step of an optimiser


def test_a_step_that_ruins_a_parameter_is_reported_at_the_step():
    model = nn.Linear(2, 1)
    optimizer = optim.SGD(model.parameters(), lr=1e39)

    def step():
        model(np.ones((3, 2), np.float32)).sum().backward()
        optimizer.step()

    error = caught(step)
    assert (error.op, error.phase) == ("SGD", "step")
    assert line_of(error) == "optimizer.step()"
    assert "the step of `SGD` made the first Inf, in parameter 0" in str(error)
    assert [operand.name for operand in error.operands] == ["its .grad", "the parameter"]
    assert "smaller learning rate" in str(error)


def test_a_step_on_a_gradient_that_is_nan_already_says_so():
    model = nn.Linear(2, 1)
    optimizer = optim.Adam(model.parameters(), lr=1.0)
    model.bias.grad = Tensor(np.array([np.nan], np.float32))
    error = caught(optimizer.step)
    assert "the .grad of parameter 1 contained NaN already" in str(error)
    model = nn.Linear(2, 1)
    model.weight.data[0, 0] = np.nan  # and no gradient: no step of its own
    model.bias.grad = Tensor(np.array([1.0], np.float32))
    with detect_anomaly():
        optim.SGD(model.parameters(), lr=1.0).step()


def test_a_state_of_an_optimiser_that_overflows_is_named():
    """Adam divides by its root, so the parameter would stay finite, and learn no longer."""
    layer = nn.Linear(2, 1)
    optimizer = optim.Adam(layer.parameters(), lr=1.0)
    layer.bias.grad = Tensor(np.array([1e25], np.float32))
    error = caught(optimizer.step)
    assert "made the first Inf, in the state 'exp_avg_sq' of parameter 1" in str(error)
    assert np.isfinite(layer.bias.data).all()


# The loss


@pytest.mark.parametrize("start", ["backward", "grad"])
def test_a_nan_loss_is_an_error_wherever_it_was_computed(start):
    x = leaf([-1.0])
    loss = minigrad.log(x).sum()
    error = caught(lambda: loss.backward() if start == "backward" else minigrad.grad(loss, x))
    assert (error.op, error.phase) == ("sum", "backward")
    assert "backward() starts from the loss, which is NaN already" in str(error)
    assert x.grad is None


def test_an_infinite_loss_is_an_error_by_default():
    x = leaf([2.0, 1.0])
    loss = (x * np.array([np.inf, 1.0], np.float32)).sum()
    assert "which is Inf" in str(caught(loss.backward))
    with detect_anomaly(inf=False):
        loss.backward()
    x.grad = None
    masked = minigrad.log_softmax(x + np.array([0.0, -np.inf], np.float32))
    with detect_anomaly():
        masked.backward(np.array([1.0, 0.0], np.float32))


# With the rest of the library


def test_a_trainer_stops_at_the_op():
    class Net(nn.Module):
        def __init__(self):
            self.inner = nn.Linear(3, 1)

        def forward(self, x):
            return minigrad.log(self.inner(x) * 0.0 - 1.0)

    data = np.ones((8, 3), np.float32), np.ones((8, 1), np.float32)
    net = Net()
    trainer = minigrad.Trainer(
        net, optim.SGD(net.parameters(), lr=0.1), nn.MSELoss(), progress=False
    )
    error = caught(lambda: trainer.fit(data, epochs=1))
    assert error.op == "log"
    assert line_of(error) == "return minigrad.log(self.inner(x) * 0.0 - 1.0)"


def test_a_trainer_that_diverges_stops_at_the_op_that_overflows():
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 1))
    trainer = minigrad.Trainer(
        model, optim.SGD(model.parameters(), lr=1e4), nn.MSELoss(), progress=False
    )
    data = np.ones((8, 3), np.float32), np.ones((8, 1), np.float32)
    error = caught(lambda: trainer.fit(data, epochs=50))
    assert error.op == "squared_error"
    assert "smaller learning rate" in str(error)


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_sound_model_gives_no_alarm(create_graph):
    model = nn.Sequential(
        nn.TransformerBlock(8, 2, dropout=0.2, causal=True),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(8, 3),
    )
    lora.attach(model, lora.LoRAConfig(rank=2, dropout=0.1))
    labels = np.array([0, 2, 1, 1])
    with detect_anomaly():
        out = checkpoint(model, minigrad.randn(2, 4, 8).requires_grad_())
        logits = model(minigrad.randn(2, 4, 8))[0]
        loss = minigrad.cross_entropy(logits, labels) + minigrad.mse(out, minigrad.zeros(2, 4, 3))
        loss.backward(create_graph=create_graph)
    assert all(p.grad is not None for p in model.trainable_parameters())


def test_derivatives_of_higher_order_and_empty_arrays_give_no_alarm():
    x = leaf([[0.3, -0.2]], np.float64)

    def f(x):
        return (minigrad.log_softmax(minigrad.gelu(x) * 3.0) ** 2).sum()

    with detect_anomaly():
        minigrad.hessian(f)(x)
        minigrad.jvp(f, (x,), (x.detach(),))
        (leaf(np.zeros((0, 3))) * 2.0).sum().backward()
        minigrad.sum(np.arange(4)) // 1


def test_an_anomaly_in_forward_mode_names_the_op_whose_derivative_it_is():
    with (
        detect_anomaly(),
        pytest.raises(AnomalyError, match="`divide` made the first Inf") as caught,
    ):
        minigrad.jvp(minigrad.sqrt, np.zeros(2), np.ones(2))
    notes = ["raised while forward mode computed the derivative of `sqrt`"]
    assert caught.value.__notes__ == notes


def test_a_checkpoint_is_watched_in_both_of_its_runs():
    x = leaf([0.0])

    def inner(x):
        y = minigrad.log(x)
        return minigrad.exp(y)

    error = caught(lambda: checkpoint(inner, x))
    assert line_of(error) == "y = minigrad.log(x)"
    out = checkpoint(inner, x)
    error = caught(lambda: out.sum().backward())
    assert (error.op, error.phase) == ("log", "forward")
    assert line_of(error) == "y = minigrad.log(x)"


def later_rows(cases):
    """The rows of each function but the first, by the name of the function."""
    rows = {}
    for case in cases:
        rows.setdefault(case.name, []).append(case)
    return {name: found[1:] for name, found in rows.items() if len(found) > 1}


LATER_ROWS = later_rows(CASES)


@pytest.mark.full
@pytest.mark.parametrize("function", LATER_ROWS)
def test_the_other_rows_of_each_function_raise_if_and_only_if_something_is_not_finite(function):
    """Every function that has several rows in the table; the first of each is a quick test."""
    problems = []
    for case in LATER_ROWS[function]:
        try:
            check_anomalies(case)
        except (Exception, pytest.fail.Exception) as error:
            problems.append((str(case), repr(error)))
    assert not problems


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", first_of_each(CASES), ids=str)
def test_the_first_row_of_each_function_raises_if_and_only_if_something_is_not_finite(case):
    check_anomalies(case)


def check_anomalies(case):
    arrays = case.operands()

    def run():
        operands = [Tensor(x.copy(), requires_grad=x.dtype.kind == "f") for x in arrays]
        results = [case(*operands)]
        sources = [x for x in operands if x.requires_grad]
        if case.order:
            seed = np.ones(results[0].shape, results[0].dtype)
            first = minigrad.grad(results[0], sources, seed, create_graph=True)
            results += [*first, *minigrad.grad(case(*operands), sources, seed)]
            total = sum((g * g).sum() for g in first)
            if case.order > 1 and case.derivative is None and total.requires_grad:
                results += minigrad.grad(total, sources, allow_unused=True)
        return results

    def finite(values):
        return all(np.isfinite(x.data).all() for x in values if x.dtype.kind == "f")

    if not finite(run()):
        caught(run)
    elif finite(map(Tensor, arrays)):
        with detect_anomaly():
            run()


# The context


def test_all_is_as_before_afterwards_also_after_an_error():
    other = Observer()
    x = leaf([0.0])
    with observe(other), minigrad.no_grad():
        state = mode.state
        with detect_anomaly():
            assert mode.state != state
        assert mode.state == state
        caught(lambda: minigrad.log(x))
        assert mode.state == state
    assert mode.state == (True, ())
    assert np.isneginf(minigrad.log(x).data).all()


def test_one_inside_another_takes_its_place_and_shares_its_lines():
    x = leaf([0.0])
    with detect_anomaly():
        y = minigrad.sqrt(x)
        with detect_anomaly(inf=False):
            minigrad.log(x)
        with pytest.raises(AnomalyError), detect_anomaly():
            minigrad.log(x)
        with pytest.raises(AnomalyError) as info, detect_anomaly():
            y.sum().backward()
        assert line_of(info.value) == "y = minigrad.sqrt(x)"
        with pytest.raises(AnomalyError):
            minigrad.log(x)


def test_two_that_end_in_another_order_than_the_reverse_leave_nothing_behind():
    def steps(**options):
        with detect_anomaly(**options):
            yield
            yield

    first, second = steps(), steps(inf=False)
    next(first)
    next(second)
    assert list(first) == [None]
    minigrad.log(leaf([0.0]))  # the second is on still, and lets an Inf pass
    with pytest.raises(AnomalyError):
        minigrad.log(leaf([-1.0]))
    assert list(second) == [None]
    assert mode.state == (True, ())


def test_it_is_a_decorator_with_or_without_brackets():
    def f(x):
        return minigrad.log(x)

    for decorated in (detect_anomaly(f), detect_anomaly()(f)):
        assert decorated.__name__ == "f"
        with pytest.raises(AnomalyError):
            decorated(leaf([0.0]))
    assert np.isneginf(detect_anomaly(inf=False)(f)(leaf([0.0])).data)

    def generator():
        yield 1

    with pytest.raises(TypeError, match=r"generator is .* which does not run from start to end"):
        detect_anomaly(generator)
    with pytest.raises(TypeError, match="takes a function to decorate, not False"):
        detect_anomaly(False)


def test_watching_keeps_no_graph_alive():
    with detect_anomaly():
        y = leaf([1.0]) * 2.0
        gone = weakref.ref(y.node)
        del y
        assert gone() is None


def test_another_thread_is_not_watched():
    results = []

    @np.errstate(all="ignore")
    def unwatched():
        results.append(minigrad.log(leaf([0.0])))

    with detect_anomaly():
        thread = threading.Thread(target=unwatched)
        thread.start()
        thread.join()
    assert np.isinf(results[0].data).all()


def test_a_block_that_ends_in_another_thread_is_an_error_that_says_so():
    def waiting():
        with detect_anomaly():
            yield

    generator, errors = waiting(), []

    def close():
        with pytest.raises(RuntimeError) as caught_error:
            generator.close()
        errors.append(str(caught_error.value))

    before = mode.state
    next(generator)
    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    mode.state = before  # this thread is left as it was in the block
    assert "detect_anomaly ends in another thread than it began in" in errors[0]


def test_the_error_can_be_pickled():
    error = caught(lambda: minigrad.log(leaf([0.0])))
    copied = pickle.loads(pickle.dumps(error))
    assert str(copied) == str(error)
    assert (copied.op, copied.phase, copied.origin) == (error.op, error.phase, error.origin)
    assert str(copied.operands) == str(error.operands)
    assert isinstance(error, FloatingPointError)


def test_a_debugger_stands_in_the_call_of_the_op():
    with pytest.raises(AnomalyError) as info, detect_anomaly():
        minigrad.log(leaf([0.0]))
    call = next(entry for entry in info.traceback if entry.name == "log")
    assert call.frame.f_locals["x"].shape == (1,)


@pytest.mark.parametrize("inf", ["no", 0, None])
def test_what_to_look_for_is_true_or_false(inf):
    with pytest.raises(TypeError, match="detect_anomaly: inf must be True or False, not"):
        detect_anomaly(inf=inf)


def test_the_sum_of_gradients_that_a_result_retains_is_looked_at():
    x = minigrad.tensor([1.0, 2.0], requires_grad=True)
    large = minigrad.tensor(3e38)
    with detect_anomaly():
        h = x * 1.0
        h.retain_grad()
        h.sum().backward(gradient=large, retain_graph=True)
        x.grad = None
        with pytest.raises(AnomalyError, match=r"added to the \.grad it has, gives Inf"):
            h.sum().backward(gradient=large)


@pytest.mark.parametrize("second", ["hvp", "hessian", "jvp of gradient"])
def test_a_second_derivative_that_is_not_finite_names_the_vjp(second):
    f = lambda x: (x**1.5).sum()  # of which the gradient is finite at 0, and its slope is not
    x, v = Tensor(np.array([0.0, 1.0])), Tensor(np.ones(2))
    calls = {
        "hvp": lambda: minigrad.hvp(f, x, v),
        "hessian": lambda: minigrad.hessian(f)(x),
        "jvp of gradient": lambda: minigrad.jvp(minigrad.gradient(f), x, v),
    }
    error = caught(calls[second])
    assert (error.op, error.phase) == ("power", "backward")
    assert "the derivative of the VJP of `power` for a in a direction made the first" in str(error)
    assert "x**1.5" in str(error.origin)
    with detect_anomaly():
        minigrad.hessian(f)(Tensor(np.array([1.0, 2.0])))
