"""liveness(model, loss_fn, batch): which parameters a step trains, and why not the others."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import lora
import minigrad
from lora import LoRAConfig, LoRALayer
from lora.liveness import ranks
from minigrad import Observer, Tensor, checkpoint, liveness, nn, no_grad, observe
from minigrad.core.grad_mode import mode
from minigrad.diagnostics import LivenessReport
from minigrad.diagnostics.gradient_flow.report import PartRow


def line_of(mark):
    """The number of the line of this file that ends in a comment `# <mark>`."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines, 1) if line.endswith(f"  # <{mark}>")]
    return number


class Two(nn.Module):
    """A first layer, something of the test's own, and a second layer."""

    def __init__(self, between, rng=None):
        self.first = nn.Linear(3, 4, rng=rng)
        self.second = nn.Linear(4, 2, rng=rng)
        self.between = between

    def forward(self, x):
        return self.second(self.between(self.first(x)))


@pytest.fixture
def batch(rng):
    return (
        Tensor(rng.standard_normal((5, 3)).astype(np.float32)),
        Tensor(rng.standard_normal((5, 2)).astype(np.float32)),
    )


def states(report):
    return {row.name: row.state for row in report.rows}


def assert_cut(report, name, op, mark):
    row = report[name]
    assert (row.state, row.norm, row.op) == ("cut", None, op)
    assert row.origin.file == __file__
    assert row.origin.line == line_of(mark)
    assert not report


# What is live


def test_each_live_parameter_has_the_norm_of_its_gradient(batch, rng):
    model = Two(minigrad.tanh, rng)
    report = liveness(model, minigrad.mse, batch)
    assert set(states(report).values()) == {"live"}
    assert report.trains
    assert report
    loss = minigrad.mse(model(batch[0]), batch[1])
    loss.backward()
    assert report.loss == loss.item()
    for name, parameter in model.named_parameters():
        expected = np.linalg.norm(parameter.grad.data.astype(np.float64))
        assert report[name].norm == pytest.approx(expected, rel=1e-12)
        assert report[name].shape == parameter.shape
    assert report.verdict == "This model trains: 4 parameters get a gradient."


def test_the_loss_may_take_the_model_or_the_predictions_alone(batch):
    model = Two(minigrad.tanh)
    assert liveness(model, lambda model, batch: model(batch[0]).sum(), batch)
    assert liveness(model, lambda prediction: prediction.sum(), batch[0])


def test_frozen_parameters_are_no_fault(batch):
    model = Two(minigrad.tanh)
    model.first.freeze()
    report = liveness(model, minigrad.mse, batch)
    assert report["first.weight"].state == "frozen"
    assert report["first.weight"].norm is None
    assert report


def test_a_model_that_is_frozen_as_a_whole_does_not_train(batch):
    report = liveness(Two(minigrad.tanh).freeze(), minigrad.mse, batch)
    assert not report
    assert set(states(report).values()) == {"frozen"}
    assert "no parameter requires a gradient" in report.verdict


def test_a_tensor_that_is_no_parameter_is_reported(batch):
    class Forgotten(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(3, 2)
            self.layer.scale = Tensor(np.ones(2), requires_grad=True)
            self.shift = Tensor(np.ones(2))

        def forward(self, x):
            self.last = self.layer(x) * self.layer.scale + self.shift
            return self.last

    model = Forgotten()
    report = liveness(model, minigrad.mse, batch)
    assert report.strays == ("layer.scale",)
    note = (
        "layer.scale requires a gradient, but is not a Parameter, so parameters() does not list it "
        "and no optimiser gets it from there: make it an nn.Parameter"
    )
    assert repr(report).endswith(f"{report.verdict}\n{note}.")
    assert note in report._repr_html_()
    assert liveness(model.layer, minigrad.mse, batch).strays == ("scale",)
    assert liveness(Two(minigrad.tanh), minigrad.mse, batch).strays == ()


def test_a_shared_parameter_is_one_row(batch):
    class Tied(nn.Module):
        def __init__(self):
            self.one = nn.Linear(3, 3)
            self.two = self.one

        def forward(self, x):
            return self.two(self.one(x).detach())

    report = liveness(Tied(), lambda y: y.sum(), batch[0])
    assert states(report) == {"one.weight": "live", "one.bias": "live"}


def test_a_parameter_that_is_detached_on_one_way_and_not_on_another_is_live(batch):
    report = liveness(Two(lambda h: h + h.detach()), minigrad.mse, batch)
    assert report


def test_a_transformer_block_is_live(rng):
    model = nn.TransformerBlock(8, 2, rng=rng)
    x = Tensor(rng.standard_normal((2, 5, 8)).astype(np.float32))
    report = liveness(model, lambda y: (y * y).mean(), x)
    assert {row.state for row in report.rows} == {"live"}


# What is unused


def test_a_parameter_that_no_op_is_called_on_is_unused(batch):
    class Idle(Two):
        def __init__(self):
            super().__init__(minigrad.tanh)
            self.idle = nn.Linear(3, 3)

    report = liveness(Idle(), minigrad.mse, batch)
    assert report["idle.weight"].state == "unused"
    assert report["idle.weight"].op is None
    assert report["first.weight"].state == "live"
    assert not report
    assert "idle.weight is unused" in report.verdict
    assert "2 of 6" in report.verdict


def test_what_is_computed_and_not_part_of_the_loss_is_cut_at_its_last_use(batch):
    def between(h):
        h.exp().sum()
        return Tensor(np.ones((5, 4), np.float32)) if one else h

    one = True
    model = Two(between)
    report = liveness(model, minigrad.mse, batch)
    row = report["first.weight"]
    assert (row.state, row.op) == ("cut", "sum")
    assert row.origin.text == "h.exp().sum()"
    one = False
    assert liveness(model, minigrad.mse, batch)


def test_the_last_use_is_the_last_in_time(batch):
    class Aside(nn.Module):
        def __init__(self):
            self.p = nn.Parameter(np.ones(3, np.float32))
            self.q = nn.Parameter(np.ones(3, np.float32))

        def forward(self, x):
            self.p.exp()
            self.p * self.q
            self.p.tanh()  # <last>
            return x * self.q

    report = liveness(Aside(), lambda y: y.sum(), batch[0])
    assert_cut(report, "p", "tanh", "last")
    assert report["q"].state == "live"


# What is cut, and where


def test_detach(batch):
    def between(h):
        h = h.tanh()
        h = h.detach()  # <detach>
        return h * 2

    report = liveness(Two(between), minigrad.mse, batch)
    assert_cut(report, "first.weight", "detach()", "detach")
    assert_cut(report, "first.bias", "detach()", "detach")
    assert report["second.weight"].state == "live"
    assert "detach() takes the value out of the graph" in report.verdict


def test_detach_in_one_line_is_not_taken_for_a_look_at_the_value_in_another(batch):
    def between(h):
        assert h.data.size
        h.detach()
        left = h.detach()  # <left>
        h.detach()
        assert h.data.size
        return left

    assert_cut(liveness(Two(between), minigrad.mse, batch), "first.weight", "detach()", "left")


def test_a_parameter_that_is_frozen_on_the_way(batch):
    class Freezes(Two):
        def forward(self, x):
            self.first.weight.requires_grad_(False)
            return super().forward(x)

    report = liveness(Freezes(minigrad.tanh), minigrad.mse, batch)
    row = report["first.weight"]
    assert (row.state, row.norm, row.op) == ("cut", None, None)
    assert row.reason == "it is frozen during the step: leave out that requires_grad_(False)"
    assert states(report)["first.bias"] == "live"


def test_no_grad(batch):
    def between(h):
        with no_grad():
            h = h.exp()  # <no_grad>
            h = h * 2
        return h + 1

    report = liveness(Two(between), minigrad.mse, batch)
    assert_cut(report, "first.weight", "exp", "no_grad")
    assert report["first.weight"].reason == "`exp` ran under no_grad()"


def test_a_whole_layer_under_no_grad(batch):
    class Features(Two):
        def forward(self, x):
            with no_grad():
                h = self.first(x)  # <features>
            return self.second(h)

    assert_cut(liveness(Features(None), minigrad.mse, batch), "first.bias", "linear", "features")


@pytest.mark.parametrize("op", ["argmax", "greater", "astype", "round"])
def test_ops_without_a_gradient(op, batch):
    def between(h):
        if op == "argmax":
            return minigrad.ones(5, 4) * h.argmax(axis=1, keepdims=True)  # <argmax>
        if op == "greater":
            return (h > 0) * minigrad.ones(5, 4)  # <greater>
        if op == "astype":
            return h.astype("int32") * minigrad.ones(5, 4)  # <astype>
        return h.round()

    report = liveness(Two(between), minigrad.mse, batch)
    if op == "round":  # a derivative of zero, which the graph carries
        row = report["first.weight"]
        assert (row.state, row.norm, row.op) == ("zero", 0.0, "round")
        assert row.origin.text == "return h.round()"
    else:
        assert_cut(report, "first.weight", op, op)
        assert "integers or booleans" in report["first.weight"].reason


def test_integers_under_no_grad_are_cut_by_the_integers(batch):
    def between(h):
        with no_grad():
            return h.argmax(axis=1, keepdims=True) * minigrad.ones(5, 4)

    row = liveness(Two(between), minigrad.mse, batch)["first.weight"]
    assert "integers" in row.reason


@pytest.mark.parametrize("how", [".data", "item()", "tolist()", "Tensor()", "bool()"])
def test_reading_the_value(how, batch):
    def between(h):
        if how == ".data":
            return Tensor(np.tanh(h.data))  # <.data>
        if how == "item()":
            return minigrad.ones(5, 4) * h.sum().item()  # <item()>
        if how == "tolist()":
            return minigrad.tensor(h.tolist())  # <tolist()>
        if how == "Tensor()":
            return minigrad.tensor(h)  # <Tensor()>
        return minigrad.ones(5, 4) * bool((h.sum() * 1).exp())  # <bool()>

    assert_cut(liveness(Two(between), minigrad.mse, batch), "first.weight", how, how)


def test_an_array_that_is_used_in_place(batch):
    def between(h):
        assert np.tanh(h.data).size  # which goes where nobody sees it
        array = h.data  # <array>
        return minigrad.multiply(array, 2) + minigrad.zeros(5, 4)

    assert_cut(liveness(Two(between), minigrad.mse, batch), "first.weight", ".data", "array")


def test_a_number_for_the_log_is_not_taken_for_the_end(batch):
    def between(h):
        assert h.sum().item()
        return Tensor(np.tanh(h.data))  # <not the log>

    assert_cut(liveness(Two(between), minigrad.mse, batch), "first.weight", ".data", "not the log")


def test_numpy_of_a_detached_tensor(batch):
    def between(h):
        return Tensor(np.tanh(h.detach().numpy()))  # <numpy>

    assert_cut(liveness(Two(between), minigrad.mse, batch), "first.weight", "detach()", "numpy")


def test_features_that_were_computed_under_no_grad_and_copied(batch):
    def between(h):
        with no_grad():
            h = h.exp()  # <copied>
        return Tensor(h.numpy().copy())

    assert_cut(liveness(Two(between), minigrad.mse, batch), "first.weight", "exp", "copied")


def test_a_value_that_is_taken_past_the_graph_without_a_word(batch):
    def between(h):
        with ThreadPoolExecutor(1) as elsewhere:  # where nobody watches
            bare = Tensor(elsewhere.submit(lambda: h.data).result())
        return bare * 2  # <read>

    report = liveness(Two(between), minigrad.mse, batch)
    assert_cut(report, "first.weight", "multiply", "read")
    assert "without its node in the graph" in report["first.weight"].reason


def test_of_two_cuts_the_one_that_leads_to_the_loss_is_named(batch):
    def between(h):
        h.argmax()
        left = h.detach()  # <to the loss>
        h.detach().exp()
        return left

    report = liveness(Two(between), minigrad.mse, batch)
    assert_cut(report, "first.weight", "detach()", "to the loss")


def test_a_parameter_whose_bare_value_is_used(batch):
    class Bare(Two):
        def forward(self, x):
            return self.second(x @ Tensor(self.first.weight.data.T) + self.first.bias)  # <bare>

    report = liveness(Bare(None), minigrad.mse, batch)
    assert_cut(report, "first.weight", ".data", "bare")
    assert report["first.bias"].state == "live"


def test_a_loss_that_has_no_graph_at_all(batch):
    def loss(model, batch):
        return minigrad.mse(model(batch[0]), batch[1]).detach()  # <no graph>

    model = Two(minigrad.tanh)
    model.idle = nn.Linear(2, 2)
    report = liveness(model, loss, batch)
    assert_cut(report, "second.bias", "detach()", "no graph")
    assert report["idle.weight"].state == "unused"


def test_a_derivative_that_was_taken_without_create_graph(batch):
    def loss(model, batch):
        x = Tensor(batch[0].data, requires_grad=True)
        (slope,) = minigrad.grad(model(x).sum(), [x])
        return (slope * slope).sum()

    report = liveness(Two(minigrad.tanh), loss, batch)
    assert {row.state for row in report.rows} == {"cut"}


def test_a_derivative_with_create_graph_trains(batch):
    def loss(model, batch):
        x = Tensor(batch[0].data, requires_grad=True)
        (slope,) = minigrad.grad(model(x).sum(), [x], create_graph=True)
        return (slope * slope).sum()

    report = liveness(Two(minigrad.tanh), loss, batch)
    assert report["first.weight"].state == "live"
    assert report["second.bias"].state != "live"  # a constant of the first derivative


# What is zero, and why


def test_a_relu_that_is_dead_everywhere(batch):
    def between(h):
        return (h - 100).relu()  # <relu>

    report = liveness(Two(between), minigrad.mse, batch)
    row = report["first.weight"]
    assert (row.state, row.norm, row.op) == ("zero", 0.0, "relu")
    assert row.origin.line == line_of("relu")
    assert report["second.weight"].state == "zero"  # what it is multiplied by is zero
    assert report["second.weight"].op == "relu"
    assert report["second.bias"].state == "live"
    assert not report


@pytest.mark.parametrize(
    ("name", "between"),
    [
        ("dropped", lambda h: minigrad.dropout(h, 1.0)),
        ("multiply", lambda h: h * 0.0 + 1.0),
        ("clip", lambda h: minigrad.clip(h, 100.0, 200.0)),
    ],
)
def test_the_op_that_passes_no_gradient_is_named(name, between, batch):
    row = liveness(Two(between), minigrad.mse, batch)["first.weight"]
    assert (row.state, row.op) == ("zero", name)
    assert row.origin.file == __file__


def test_data_of_zeros(batch):
    report = liveness(Two(minigrad.tanh), minigrad.mse, (minigrad.zeros(5, 3), batch[1]))
    assert report["first.weight"].state == "zero"
    assert report["first.weight"].reason == ("an input of `linear` is all zeros, and multiplies it")
    assert report["first.bias"].state == "live"


def test_gradients_that_cancel(batch):
    class Same(Two):
        def forward(self, x):
            return self.second(x @ (self.first.weight.T - self.first.weight.T))

    row = liveness(Same(None), minigrad.mse, batch)["first.weight"]
    assert (row.state, row.reason) == ("zero", "the gradients of its uses cancel")


def test_a_parameter_without_elements(batch):
    class Empty(Two):
        def forward(self, x):
            return super().forward(x) + self.nothing.sum()

    model = Empty(minigrad.tanh)
    model.nothing = nn.Parameter(np.ones((0, 3)))
    row = liveness(model, minigrad.mse, batch)["nothing"]
    assert (row.state, row.reason) == ("zero", "it has no elements")


def test_a_hook_that_makes_it_zero(batch):
    model = Two(minigrad.tanh)
    hook = model.first.bias.register_hook(lambda g: g * 0)
    row = liveness(model, minigrad.mse, batch)["first.bias"]
    assert (row.state, row.reason) == ("zero", "a hook on it makes its gradient zero")
    hook.remove()
    assert liveness(model, minigrad.mse, batch)


def test_gradients_that_cancel_further_on(batch):
    def between(h):
        h = minigrad.tanh(h)  # <cancels>
        return 1 + h - h

    row = liveness(Two(between), minigrad.mse, batch)["first.weight"]
    assert (row.state, row.reason) == ("zero", "the gradients of the uses of `tanh` cancel")
    assert (row.op, row.origin.line) == ("tanh", line_of("cancels"))


def test_a_hook_further_on_that_makes_it_zero(batch):
    def between(h):
        h = minigrad.tanh(h)  # <hooked>
        h.register_hook(lambda g: g * 0)
        return h

    row = liveness(Two(between), minigrad.mse, batch)["first.weight"]
    assert row.reason == "a hook on the result of `tanh` makes its gradient zero"
    assert (row.state, row.op, row.origin.line) == ("zero", "tanh", line_of("hooked"))


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_norm_of_a_gradient_whose_squares_are_out_of_range(scale, batch):
    model = nn.Linear(3, 2, dtype=np.float64)
    report = liveness(model, lambda y: scale * y.sum(), batch[0])
    assert states(report) == {"weight": "live", "bias": "live"}
    assert report["bias"].norm / scale == pytest.approx(np.sqrt(2 * 5**2))


def test_a_gradient_that_is_not_finite(batch):
    with np.errstate(all="ignore"):
        report = liveness(Two(lambda h: (h * 0).sqrt() + h), minigrad.mse, batch)
    assert report["first.weight"].state == "not finite"
    assert not math.isfinite(report["first.weight"].norm)
    assert report["second.bias"].state == "live"
    assert "The gradient of first.weight is not finite" in report.verdict
    assert "under minigrad.detect_anomaly(), which names the op" in report.verdict
    assert not report


# What is zero by construction


class Residual(nn.Module):
    """x + V tanh(U x), where V is zero at first."""

    def __init__(self, rng):
        self.u = nn.Linear(3, 3, rng=rng)
        self.v = nn.Linear(3, 3, rng=rng)
        self.v.weight.data[...] = 0
        self.v.bias.data[...] = 0

    def forward(self, x):
        return x + self.v(self.u(x).tanh())


def test_a_residual_branch_that_ends_in_zeros(batch, rng):
    model = Residual(rng)
    before = model.v.weight.data
    report = liveness(model, lambda y: (y * y).mean(), batch[0])
    row = report["u.weight"]
    assert (row.state, row.norm, row.op) == ("zero by construction", 0.0, "linear")
    assert row.reason == "v.weight is all zeros, and multiplies it"  # the bias does not
    assert report["v.weight"].state == "live"
    assert report
    assert model.v.weight.data is before
    assert not before.any()


def test_a_branch_that_ends_in_zeros_that_are_frozen_never_trains(batch, rng):
    model = Residual(rng)
    model.v.weight.requires_grad_(False)
    report = liveness(model, lambda y: (y * y).mean(), batch[0])
    assert report["u.weight"].state == "zero"
    assert "v.weight is all zeros, gets no gradient" in report["u.weight"].reason
    assert not report


def test_two_zeros_in_a_row_that_both_come_to_life(batch, rng):
    class Deep(nn.Module):
        """The inner branch is zero behind the outer gate, which is zero too."""

        def __init__(self):
            self.inner = Residual(rng)
            self.gate = nn.Parameter(np.zeros(3, np.float32))

        def forward(self, x):
            return x + self.gate * self.inner(x)

    report = liveness(Deep(), lambda y: (y * y).mean(), batch[0])
    assert states(report) == {
        "inner.u.weight": "zero by construction",
        "inner.u.bias": "zero by construction",
        "inner.v.weight": "zero by construction",
        "inner.v.bias": "zero by construction",
        "gate": "live",
    }
    assert report["inner.v.weight"].reason == "gate is all zeros, and multiplies it"
    assert "inner.v.weight" in report["inner.u.weight"].reason
    assert report


def test_zeros_among_the_inputs_of_an_op_of_many(batch):
    @minigrad.op
    def product(factors):
        return np.prod(np.broadcast_arrays(*factors), axis=0)

    product.vjp(
        "factors",
        lambda g, factors, argnum: math.prod([g, *factors[:argnum], *factors[argnum + 1 :]]),
    )

    class Product(nn.Module):
        def __init__(self):
            self.p = nn.Parameter(np.ones(3, np.float32))
            self.q = nn.Parameter(np.zeros(3, np.float32))

        def forward(self, x):
            return product([x, x, x, self.p, self.q])

    report = liveness(Product(), lambda y: y.sum(), batch[0])
    assert report["p"].state == "zero by construction"
    assert report["p"].reason == "q is all zeros, and multiplies it"


def test_zeros_that_a_vjp_does_not_compute_with_are_not_blamed(batch):
    @minigrad.op
    def floor_like(x, like):
        return np.floor(x) + like

    floor_like.vjp("x", lambda g, like_shape: g * 0)
    floor_like.vjp("like", lambda g, x_shape: g)

    class Floor(nn.Module):
        def __init__(self):
            self.p = nn.Parameter(np.ones(3, np.float32))
            self.q = nn.Parameter(np.zeros(3, np.float32))

        def forward(self, x):
            return floor_like(x * self.p, self.q)

    report = liveness(Floor(), lambda y: y.sum(), batch[0])
    assert report["p"].reason == "`floor_like` passes none of the gradient on"
    assert report["q"].state == "live"


def test_two_factors_of_zero_never_train(batch):
    class Product(nn.Module):
        def __init__(self):
            self.a = nn.Parameter(np.zeros(3, np.float32))
            self.b = nn.Parameter(np.zeros(3, np.float32))

        def forward(self, x):
            return x * self.a * self.b

    report = liveness(Product(), lambda y: (y + 1).square().mean(), batch[0])
    assert states(report) == {"a": "zero", "b": "zero"}
    assert "b is all zeros, gets no gradient" in report["a"].reason


def test_several_factors_of_zero_are_named_together(batch):
    model = Two(minigrad.tanh)
    for parameter in model.parameters():
        parameter.copy_(np.zeros(parameter.shape))
    reason = liveness(model, minigrad.mse, batch)["second.weight"].reason
    assert reason == "first.weight and first.bias are all zeros, get no gradient, and multiply it"


# Adapters


@pytest.fixture
def adapted(rng):
    model = nn.MLP([3, 8, 2], activation=nn.GELU(), rng=rng)
    lora.attach(model, LoRAConfig(rank=2, alpha=4), rng=rng)
    return model


A, B = "layers.0.lora_a", "layers.0.lora_b"


def one_step(model, batch):
    optimizer = minigrad.optim.SGD(model.trainable_parameters(), lr=0.1)
    minigrad.mse(model(batch[0]), batch[1]).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_at_first_a_is_zero_by_construction_and_a_step_later_it_is_live(dropout, batch, rng):
    model = nn.MLP([3, 8, 2], activation=nn.GELU(), rng=rng)
    lora.attach(model, LoRAConfig(rank=2, alpha=4, dropout=dropout), rng=rng)
    report = liveness(model, minigrad.mse, batch)
    assert report[A].state == "zero by construction"
    assert report[A].reason == f"{B} is all zeros, and multiplies it"
    assert report[B].state == "live"
    assert report["layers.0.base_weight"].state == "frozen"
    first = report.adapters[0]
    assert (first.name, first.rank_a, first.rank_b, first.rank_ba) == ("layers.0", 2, 0, 0)
    assert first.trains
    assert first.verdict == "trains B only, and A once B has moved"
    assert report
    one_step(model, batch)
    report = liveness(model, minigrad.mse, batch)
    assert (report[A].state, report[B].state) == ("live", "live")
    first = report.adapters[0]
    assert (first.rank_a, first.rank_b, first.rank_ba) == (2, 2, 2)
    assert first.verdict == "trains"


def test_a_and_b_of_zeros_are_dead_for_ever(adapted, batch):
    adapted.layers[0].lora_a = np.zeros((2, 3), np.float32)
    report = liveness(adapted, minigrad.mse, batch)
    assert (report[A].state, report[B].state) == ("zero", "zero")
    assert f"{B} is all zeros, gets no gradient" in report[A].reason
    assert not report.adapters[0].trains
    assert report.adapters[1].trains
    assert not report


def test_b_alone_may_train(adapted, batch):
    adapted.layers[0].lora_a.requires_grad_(False)
    report = liveness(adapted, minigrad.mse, batch)
    assert report.adapters[0].verdict == "trains B only: A is frozen"
    assert report


def test_a_frozen_adapter(adapted, batch):
    adapted.layers[0].freeze()
    report = liveness(adapted, minigrad.mse, batch)
    assert (report.adapters[0].trains, report.adapters[0].verdict) == (False, "frozen")
    assert report  # the other one trains


def test_the_advice_for_a_frozen_adapter_is_to_train_its_factors_and_not_its_base(adapted, batch):
    adapted.freeze()
    verdict = liveness(adapted, minigrad.mse, batch).verdict
    assert "call requires_grad_() on lora_a and lora_b of each adapter" in verdict
    assert "freeze(False)" not in verdict


def test_the_advice_for_an_adapter_that_is_not_active_is_to_switch_to_it(adapted, batch):
    lora.switch(adapted)
    report = liveness(adapted, minigrad.mse, batch)
    assert [row.verdict for row in report.adapters] == ["not active", "not active"]
    assert "lora.switch(model, name) if it is not active" in report.verdict
    adapted.layers[0].lora_a.requires_grad_()
    report = liveness(adapted, minigrad.mse, batch)
    assert "the adapter is not active: call lora.switch(model, name)" in report[A].reason
    assert not report
    lora.switch(adapted, "default")
    assert liveness(adapted, minigrad.mse, batch)


def test_a_merged_adapter_is_cut_and_the_others_are_looked_at(adapted, batch):
    one_step(adapted, batch)
    layer = adapted.layers[0]
    layer.lora_b.grad = kept = Tensor(np.ones((8, 2), np.float32))
    layer.merge()
    with pytest.raises(RuntimeError, match="merged"):
        adapted(batch[0])
    report = liveness(adapted, minigrad.mse, batch)
    assert (report[A].state, report[B].state) == ("cut", "cut")
    assert report[B].reason == "the adapter is merged: call unmerge() to train it"
    assert report["layers.1.lora_b"].state == "live"
    assert not report.adapters[0].trains
    assert report.adapters[1].trains
    assert not report
    assert "call unmerge()" in report.verdict
    assert layer.merged
    assert layer.lora_b.requires_grad
    assert layer.lora_b.grad is kept


def test_a_layer_into_which_no_adapter_is_merged_trains(adapted, batch):
    adapted.layers[0].merge([])
    assert adapted.layers[0].merged
    report = liveness(adapted, minigrad.mse, batch)
    assert (report[A].state, report[B].state) == ("zero by construction", "live")
    assert report
    adapted.layers[0].use([])
    adapted.layers[0].merge()
    row = liveness(adapted, minigrad.mse, batch)[B]
    assert row.state == "unused"
    assert "the adapter is not active" in row.reason
    assert "use([name]) of a layer that was made by hand" in row.reason


def test_a_merged_adapter_beside_one_that_is_zero_by_construction(adapted, batch):
    adapted.layers[0].merge()
    report = liveness(adapted, minigrad.mse, batch)  # which takes a second run
    assert (report[A].state, report[B].state) == ("cut", "cut")
    assert report["layers.1.lora_a"].state == "zero by construction"
    assert adapted.layers[0].lora_a.requires_grad


@pytest.mark.parametrize("use_dora", [True, False])
def test_each_of_several_adapters_of_a_layer_has_a_line(rng, batch, use_dora):
    model = nn.MLP([3, 8, 2], activation=nn.GELU(), rng=rng)
    for name in "ab":
        config = LoRAConfig(rank=2, targets=["layers.0"], use_dora=use_dora)
        lora.attach(model, config, adapter=name, rng=rng)
    lora.switch(model, "a", "b")
    lines = [(row.name, row.trains) for row in liveness(model, minigrad.mse, batch).adapters]
    assert lines == [("layers.0.a", True), ("layers.0.b", True)]
    with lora.disabled(model):
        report = liveness(model, minigrad.mse, batch)
    assert not any(row.trains for row in report.adapters)
    assert all("lora.disabled()" in row.reason for row in report.rows if row.reason)
    lora.merge(model, "a")
    report = liveness(model, minigrad.mse, batch)
    assert [row.trains for row in report.adapters] == [False, True]
    assert report["layers.0.a.lora_b"].state == "cut"
    assert report["layers.0.b.lora_b"].state == "live"


def test_a_merged_magnitude_is_cut_too(rng, batch):
    model = nn.MLP([3, 8, 2], activation=nn.GELU(), rng=rng)
    lora.attach(model, LoRAConfig(rank=2, use_dora=True), rng=rng)
    model.layers[0].merge()
    assert liveness(model, minigrad.mse, batch)["layers.0.lora_magnitude"].state == "cut"


def test_a_merged_adapter_that_is_frozen_is_frozen(adapted, batch):
    adapted.layers[0].freeze()
    adapted.layers[0].merge()
    report = liveness(adapted, minigrad.mse, batch)
    assert report[A].state == "frozen"
    assert report


def test_what_a_stale_merge_says_is_not_hidden(adapted, batch):
    adapted.layers[0].merge()
    adapted.layers[0].lora_b.data[...] = 1
    with pytest.raises(RuntimeError, match="changed since merge"):
        liveness(adapted, minigrad.mse, batch)
    assert adapted.layers[0].lora_a.requires_grad


def test_a_disabled_adapter_is_unused(adapted, batch):
    with lora.disabled(adapted):
        report = liveness(adapted, minigrad.mse, batch)
    assert (report[A].state, report[B].state) == ("unused", "unused")
    assert "lora.disabled()" in report[A].reason
    assert not report
    assert liveness(adapted, minigrad.mse, batch)


def test_an_adapter_that_the_model_does_not_call(adapted, batch):
    adapted.extra = LoRALayer(np.ones((2, 3), np.float32), 2, 3, 1, 1)
    report = liveness(adapted, minigrad.mse, batch)
    assert report["extra.lora_b"].state == "unused"
    assert report.adapters[-1].verdict == "does not train: no op was called on it"
    assert not report


def test_a_scale_of_zero(adapted, batch):
    adapted.layers[0].scale = 0.0
    report = liveness(adapted, minigrad.mse, batch)
    assert (report[A].state, report[B].state) == ("zero", "zero")
    assert "scale of the adapter is 0" in report[B].reason
    assert "scale of the adapter is 0" in report.adapters[0].verdict


def test_a_dropout_of_one(batch, rng):
    model = nn.MLP([3, 8, 2], rng=rng)
    lora.attach(model, LoRAConfig(rank=2, alpha=4, dropout=1.0), rng=rng)
    report = liveness(model, minigrad.mse, batch)
    assert (report[A].state, report[B].state) == ("zero", "zero")
    assert report[B].op == "dropped"
    assert "dropout of the adapter is 1" in report[B].reason
    model.eval()
    assert liveness(model, minigrad.mse, batch)
    model.layers[0].lora_a = np.zeros((2, 3), np.float32)
    assert "dropout" not in liveness(model, minigrad.mse, batch)[A].reason


def test_the_base_of_an_adapter_gets_no_gradient_whatever_its_flag(adapted, batch):
    adapted.layers[0].base_weight.requires_grad_()
    row = liveness(adapted, minigrad.mse, batch)["layers.0.base_weight"]
    assert (row.state, row.op) == ("cut", "detach()")
    assert "the base of an adapter is a constant" in row.reason


def test_an_adapter_behind_a_detach(adapted, batch):
    def loss(model, batch):
        h = model.layers[0](batch[0]).detach()  # <adapter>
        return minigrad.mse(model.layers[1](h), batch[1])

    report = liveness(adapted, loss, batch)
    assert_cut(report, B, "detach()", "adapter")
    assert report.adapters[0].verdict.startswith("does not train: detach()")
    assert report.adapters[1].trains


def test_a_model_that_is_one_adapter(batch, rng):
    layer = LoRALayer(np.ones((2, 3), np.float32), 2, 3, 1, 1, rng=rng)
    report = liveness(layer, minigrad.mse, batch)
    assert report.verdict == (
        "This adapter trains: 1 parameter gets a gradient, and 1 more will after a step."
    )
    assert "(the model)" in repr(report)


def test_adapters_in_a_transformer_block(rng):
    model = nn.TransformerBlock(8, 2, rng=rng)
    lora.attach(model, LoRAConfig(rank=2, alpha=4), rng=rng)
    x = Tensor(rng.standard_normal((2, 5, 8)).astype(np.float32))
    report = liveness(model, lambda y: (y * y).mean(), x)
    assert report
    assert len(report.adapters) > 2
    for row in report.adapters:
        assert row.verdict == "trains B only, and A once B has moved"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ranks_are_those_that_numpy_counts(dtype, rng):
    layer = LoRALayer(np.zeros((7, 9), dtype), 7, 9, 4, 1, rng=rng)
    b = rng.standard_normal((7, 4))
    b[:, 3] = b[:, 0] + b[:, 1]
    a = rng.standard_normal((4, 9))
    a[1] = 2 * a[0]
    layer.lora_a, layer.lora_b = a.astype(dtype), b.astype(dtype)
    rank = np.linalg.matrix_rank
    expected = [rank(layer.lora_a.data), rank(layer.lora_b.data)]
    assert expected == [3, 3]
    product = layer.lora_b.data @ layer.lora_a.data
    assert ranks(layer.lora_a, layer.lora_b, 1) == (3, 3, rank(product))
    layer.lora_a.data[0, 0] = np.nan
    assert ranks(layer.lora_a, layer.lora_b, 1) == (None, None, None)


# Parts that explain themselves


class Gated(nn.Module):
    """A module of the user's with a part of its own kind."""

    class Gate:
        name = "gate"
        constants = ()

        def __init__(self, gate):
            self.gate = gate

        def remarks(self):
            yield self.gate, "the gate is closed"

        def row(self, name, row_of):
            row = row_of(self.gate)
            return PartRow(name, row.trains, row.why or "open")

    def __init__(self, opening):
        self.gate = nn.Parameter(np.ones(4, np.float32))
        self.opening = opening

    def forward(self, x):
        return x * (self.gate * self.opening)

    def liveness_parts(self):
        return [Gated.Gate(self.gate)]


@pytest.mark.parametrize("opening", [0.0, 1.0])
def test_a_part_of_any_module_has_a_row_and_explains_its_parameters(opening, batch):
    report = liveness(Two(Gated(opening)), minigrad.mse, batch)
    (part,) = report.adapters
    assert (part.name, part.trains) == ("between.gate", bool(opening))
    assert part.verdict == ("open" if opening else report["between.gate"].why)
    assert report["between.gate"].reason == ("" if opening else "the gate is closed")
    assert "\npart          verdict\nbetween.gate  " in repr(report)
    assert report.verdict.startswith("This part trains:" if opening else "This part does not train")
    frozen = liveness(Two(Gated(1.0)).freeze(), minigrad.mse, batch)
    assert "on those that are to train, or model.freeze(False)" in frozen.verdict


def test_parts_of_several_kinds_have_a_table_each(batch, rng):
    model = Two(Gated(1.0), rng)
    lora.attach(model, LoRAConfig(rank=1, targets=["first"]), rng=rng)
    report = liveness(model, minigrad.mse, batch)
    text = repr(report)
    assert "adapter  rank A  rank B  rank BA  verdict\nfirst    1       0       0" in text
    assert "\n\npart          verdict\nbetween.gate" in text
    assert report.verdict.startswith("This model, with 2 parts, trains")
    assert report._repr_html_().count("<table>") == 3


# Checkpoints


def test_a_checkpoint_with_a_frozen_input_loses_nothing(batch, rng):
    model = Two(minigrad.tanh, rng)

    def loss(model, batch):
        return minigrad.mse(checkpoint(model, batch[0]), batch[1])

    report = liveness(model, loss, batch)
    assert report
    plain = liveness(model, minigrad.mse, batch)
    assert [row.norm for row in report.rows] == [row.norm for row in plain.rows]


def test_adapters_in_a_checkpoint_with_a_frozen_input_train(adapted, batch):
    def loss(model, batch):
        return minigrad.mse(checkpoint(model, batch[0]), batch[1])

    report = liveness(adapted, loss, batch)
    assert report[B].state == "live"
    assert report[A].state == "zero by construction"
    assert report[A].reason == f"{B} is all zeros, and multiplies it"
    assert report


def test_a_layer_of_zeros_in_a_checkpoint_keeps_the_gradients_before_it_at_zero_for_one_step(batch):
    model = Two(minigrad.tanh)
    model.second.weight.data[...] = 0

    def loss(model, batch):
        h = minigrad.tanh(model.first(batch[0]))
        return minigrad.mse(checkpoint(model.second, h), batch[1])

    report = liveness(model, loss, batch)
    assert report["first.weight"].state == "zero by construction"
    assert report["first.weight"].reason == "second.weight is all zeros, and multiplies it"
    assert report


def test_a_loss_that_is_nan_is_named_where_all_gradients_are_finite(batch):
    def loss(model, batch):
        return minigrad.log(-minigrad.square(model(batch[0]))).sum()

    with np.errstate(invalid="ignore"):
        report = liveness(Two(minigrad.tanh), loss, batch)
    assert report
    assert "The loss is nan: run the step under minigrad.detect_anomaly()" in repr(report)


def test_what_is_cut_inside_a_checkpoint(batch):
    def between(h):
        return h.detach() * 2  # <inside>

    model = Two(between)

    def loss(model, batch):
        return minigrad.mse(checkpoint(model, batch[0]), batch[1])

    assert_cut(liveness(model, loss, batch), "first.weight", "detach()", "inside")


@pytest.mark.parametrize("how", ["detach()", "exp"])
def test_what_is_cut_between_a_checkpoint_and_the_one_around_it(how, batch):
    class Nested(Two):
        def forward(self, x):
            h = checkpoint(self.first, x)
            if how == "detach()":
                return self.second(h.detach())  # <between detach()>
            with no_grad():
                h = h.exp()  # <between exp>
            return self.second(h)

    def loss(model, batch):
        return minigrad.mse(checkpoint(model, batch[0]), batch[1])

    report = liveness(Nested(None), loss, batch)
    assert_cut(report, "first.weight", how, f"between {how}")
    assert report["second.weight"].state == "live"


def test_what_is_cut_behind_a_checkpoint(batch):
    class Behind(Two):
        def forward(self, x):
            h = checkpoint(self.first, x)
            return self.second(h.detach())  # <behind>

    assert_cut(liveness(Behind(None), minigrad.mse, batch), "first.weight", "detach()", "behind")


def test_a_checkpoint_under_no_grad(batch):
    class Inside(Two):
        def forward(self, x):
            with no_grad():
                h = checkpoint(self.first, x)  # <checkpoint>
            return self.second(h)

    report = liveness(Inside(None), minigrad.mse, batch)
    assert_cut(report, "first.weight", "checkpoint", "checkpoint")


def test_what_is_zero_inside_a_checkpoint(batch):
    def between(h):
        return (h - 100).relu()  # <dead inside>

    def loss(model, batch):
        return minigrad.mse(checkpoint(model, batch[0]), batch[1])

    row = liveness(Two(between), loss, batch)["first.weight"]
    assert (row.state, row.op, row.origin.line) == ("zero", "relu", line_of("dead inside"))


def test_a_checkpoint_whose_result_the_loss_does_not_use(batch):
    class Auxiliary(Two):
        def forward(self, x):
            checkpoint(self.first, x)
            return self.second(minigrad.ones(5, 4))

    row = liveness(Auxiliary(None), minigrad.mse, batch)["first.weight"]
    assert row.state == "cut"
    assert "no_grad" not in row.reason


# Nothing is changed


def test_gradients_flags_modes_and_values_stay(batch, rng):
    model = Residual(rng)
    model.u.eval()
    model.u.bias.requires_grad_(False)
    model.u.weight.grad = gradient = Tensor(np.ones((3, 3), np.float32))
    before = {name: p.data.tobytes() for name, p in model.named_parameters()}
    liveness(model, lambda y: (y * y).mean(), batch[0])
    assert model.u.weight.grad is gradient
    assert_array_equal(gradient.data, 1)
    assert model.v.weight.grad is None
    assert not model.u.bias.requires_grad
    assert (model.training, model.u.training) == (True, False)
    assert before == {name: p.data.tobytes() for name, p in model.named_parameters()}


class Running(nn.Module):
    """A layer that keeps count of what it has seen, in all the ways there are."""

    def __init__(self):
        self.layer = nn.Linear(3, 2)
        self.mean = nn.Parameter(np.zeros(2, np.float32), requires_grad=False)
        self.variance = minigrad.ones(2)
        self.total = np.zeros(2)
        self.calls = 0
        self.rng = np.random.default_rng(0)
        self.tokens = np.array([np.ones(2), np.ones(3), "a"], dtype=object)  # is left alone

    def forward(self, x):
        h = self.layer(x)
        self.mean.data = 0.9 * self.mean.data + 0.1 * h.detach().data.mean(axis=0)
        self.variance.data[...] *= 2
        self.total += 1
        self.calls += 1
        x = x + self.rng.standard_normal(x.shape)  # which the library does not see
        self.last = h
        return h - self.mean


def test_what_the_forward_pass_writes_down_is_put_back(batch):
    model = Running()
    mean = model.mean.data
    assert liveness(model, minigrad.mse, batch)
    assert model.mean.data is mean
    assert_array_equal(mean, 0)
    assert_array_equal(model.variance.data, 1)
    assert_array_equal(model.total, 0)
    assert model.calls == 0
    assert not hasattr(model, "last")
    assert model.rng.random() == np.random.default_rng(0).random()


def test_what_the_loss_function_does_to_the_model_is_put_back(batch):
    model = Two(minigrad.tanh)
    minigrad.mse(model(batch[0]), batch[1]).backward()
    before = {n: (p.data.tobytes(), p.node, p.grad) for n, p in model.named_parameters()}

    def loss(model, batch):
        model.zero_grad()
        model.eval()
        model.second.freeze()
        model.first.weight.data[...] *= 2
        model.second.bias.data = np.ones(2)
        return minigrad.mse(model(batch[0]), batch[1])

    liveness(model, loss, batch)
    assert before == {n: (p.data.tobytes(), p.node, p.grad) for n, p in model.named_parameters()}
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("retain_graph", [False, True])
def test_a_loss_function_that_calls_backward_is_refused(retain_graph, batch):
    model = Two(minigrad.tanh)
    optimizer = minigrad.optim.Adam(model.parameters())
    before = {n: p.data.tobytes() for n, p in model.named_parameters()}

    def loss(model, batch):
        result = minigrad.mse(model(batch[0]), batch[1])
        optimizer.zero_grad()
        result.backward(retain_graph=retain_graph)
        optimizer.step()
        return result

    with pytest.raises(RuntimeError, match=r"loss_fn calls backward\(\).*let it return the loss"):
        liveness(model, loss, batch)
    assert before == {n: p.data.tobytes() for n, p in model.named_parameters()}
    assert all(p.grad is None for p in model.parameters())
    assert optimizer.state_bytes() == 0


def test_an_optimiser_that_the_loss_function_steps_does_nothing(batch):
    model = Two(minigrad.tanh)
    optimizer = minigrad.optim.SGD(model.parameters(), lr=1, momentum=0.9)
    minigrad.mse(model(batch[0]), batch[1]).backward()
    before = {n: (p.data.tobytes(), p.grad) for n, p in model.named_parameters()}

    def loss(model, batch):
        optimizer.step()
        return minigrad.mse(model(batch[0]), batch[1])

    assert liveness(model, loss, batch)
    assert before == {n: (p.data.tobytes(), p.grad) for n, p in model.named_parameters()}
    assert optimizer.state_bytes() == 0


def test_a_loss_function_may_take_derivatives(batch):
    model = Two(minigrad.tanh)
    inner = minigrad.ones(3, requires_grad=True)

    def loss(model, batch):
        (inner * inner).sum().backward()  # its own affair
        x = Tensor(batch[0].data, requires_grad=True)
        slope = minigrad.grad(model(x).sum(), x, create_graph=True)
        return slope.square().sum() + model(x).sum()

    assert liveness(model, loss, batch)
    assert_array_equal(inner.grad.data, 2)


def test_random_numbers_after_it_are_those_without_it(batch, rng):
    own = np.random.default_rng(3)
    default = minigrad.manual_seed(1)

    def between(h):
        for _ in range(2):
            h = minigrad.dropout(minigrad.dropout(h, 0.1), 0.1, rng=own)
        return h

    model = Two(between)
    states = [g.bit_generator.state for g in (own, default)]
    assert liveness(model, minigrad.mse, batch)
    assert [g.bit_generator.state for g in (own, default)] == states
    model = Residual(rng)  # which runs twice
    drawn = []

    def loss(y):
        drawn.append(minigrad.rand(3).data)
        return (y * y).mean()

    liveness(model, loss, batch[0])
    assert len(drawn) == 2
    assert_array_equal(drawn[0], drawn[1])


def test_an_exception_leaves_everything_as_it_was(adapted, batch):
    adapted.layers[0].merge()
    generator = minigrad.manual_seed(1)
    before = generator.bit_generator.state

    def loss(model, batch):
        minigrad.rand(3)
        model(batch[0])
        raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"), no_grad():
        liveness(adapted, loss, batch)
    assert generator.bit_generator.state == before
    assert adapted.layers[0].lora_a.requires_grad
    assert mode.state == (True, ())


def test_an_exception_in_the_second_run(batch, rng):
    model = Residual(rng)
    calls = []

    def loss(y):
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("later")
        return (y * y).mean()

    with pytest.raises(KeyError, match="later"):
        liveness(model, loss, batch[0])
    assert not model.v.weight.data.any()


def test_it_works_under_no_grad_for_a_step_runs_without(batch):
    with no_grad():
        assert liveness(Two(minigrad.tanh), minigrad.mse, batch)
        assert mode.state == (False, ())


def test_a_graph_of_the_users_is_not_freed(batch):
    scale = minigrad.ones(4, requires_grad=True)
    outside = scale.exp()
    assert liveness(Two(lambda h: h * outside), minigrad.mse, batch)
    outside.sum().backward()
    assert scale.grad is not None
    model = Two(minigrad.tanh)
    penalty = model.first.weight.square().sum()
    assert liveness(model, lambda y: y.sum() + penalty, batch[0])
    penalty.backward()
    assert_array_equal(model.first.weight.grad.data, 2 * model.first.weight.data)


def test_other_threads_are_not_watched(batch):
    seen = []

    def elsewhere():
        seen.append(mode.state)

    def between(h):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return h

    liveness(Two(between), minigrad.mse, batch)
    assert seen == [(True, ())]


# What is refused


def test_a_model_must_be_a_module(batch):
    with pytest.raises(TypeError, match="must be a Module"):
        liveness(lambda x: x, minigrad.mse, batch)


def test_a_model_without_parameters_is_refused(batch):
    with pytest.raises(ValueError, match="this ReLU has no parameters"):
        liveness(nn.ReLU(), lambda y: y.sum(), batch[0])


def test_a_loss_must_be_one_number(batch):
    with pytest.raises(TypeError, match="one element"):
        liveness(Two(minigrad.tanh), lambda y: y, batch[0])


# How it looks


def test_the_table(batch):
    report = liveness(Two(lambda h: h.detach()), minigrad.mse, batch)
    lines = repr(report).splitlines()
    assert lines[0] == f"liveness: loss {report.loss:.6g}"
    assert lines[1] == "parameter      shape   state  |gradient|  why"
    assert lines[2] == (
        "first.weight   (4, 3)  cut                detach() takes the value out of the graph"
    )
    assert lines[3].strip().startswith("test_liveness.py:")
    assert lines[4].startswith("first.bias ")
    assert lines[5].startswith("second.weight  (2, 4)  live ")
    assert lines[-1] == report.verdict


def test_many_rows_are_cut_short(rng, batch):
    model = nn.MLP([3] * 31, activation=nn.Tanh(), rng=rng)
    for layer in model.layers[:10]:
        layer.freeze()
    text = repr(liveness(model, lambda y: y.sum(), batch[0]))
    assert "... 20 frozen, 120 numbers" in text
    assert "... 28 more live, 168 numbers" in text
    assert "layers.0.weight" not in text
    assert "layers.15.weight" in text
    assert "layers.16.weight" not in text


def test_many_adapters_are_cut_short(rng, batch):
    model = nn.MLP([3] * 16, activation=nn.Tanh(), rng=rng)
    lora.attach(model, LoRAConfig(rank=1, alpha=1), rng=rng)
    model.layers[14].scale = 0.0
    text = repr(liveness(model, lambda y: y.sum(), batch[0]))
    assert "... 2 more: trains B only, and A once B has moved" in text
    assert "layers.14  1       0       0        does not train: the scale" in text


def test_the_notebook_table_is_escaped(batch):
    def between(h):
        return h.detach() if h.size < 100 else h

    text = liveness(Two(between), minigrad.mse, batch)._repr_html_()
    assert "<td>first.weight</td>" in text
    assert "h.size &lt; 100" in text
    assert "h.size < 100" not in text


def test_a_row_that_is_not_there_names_those_that_are(batch):
    report = liveness(Two(minigrad.tanh), minigrad.mse, batch)
    assert isinstance(report, LivenessReport)
    with pytest.raises(KeyError, match=r"first\.weight"):
        report["weight"]


# What an observer hears


class Leaves(Observer):
    def __init__(self):
        self.seen = []

    def on_leave(self, tensor, value, how):
        self.seen.append((how, tensor, value))


def test_values_that_leave_the_graph_are_announced():
    x = Tensor(np.ones(1), requires_grad=True)
    with observe(Leaves()) as leaves:
        constant = x.detach()
        array = x.data
        x.item()
        x.tolist()
        bool(x)
        float(x)
        Tensor(x)
    hows = ["detach()", ".data", "item()", "tolist()", "bool()", "float()", "Tensor()"]
    assert [how for how, *_ in leaves.seen] == hows
    assert all(tensor is x for _, tensor, _ in leaves.seen)
    assert [value for *_, value in leaves.seen[:2]] == [constant, array]
    x.detach()
    assert len(leaves.seen) == 7


def test_the_library_itself_reads_values_without_a_word(batch, rng):
    model = nn.MLP([3, 8, 2], rng=rng)
    lora.attach(model, LoRAConfig(rank=2, alpha=4), rng=rng)
    table = nn.Embedding(4, 3, padding_idx=0, rng=rng)
    with observe(Leaves()) as leaves:
        h = table(np.array([0, 1, 2, 3, 0])) + batch[0]
        logits = checkpoint(model, h)
        loss = minigrad.binary_cross_entropy_with_logits(logits, model(h).sigmoid())
        f"{loss:.3f} {loss!r} {model.layers[0].rank}"
        loss.backward()
        model.layers[0].merge()
    assert [how for how, tensor, _ in leaves.seen if tensor.node is not None] == []


@pytest.mark.parametrize("through", [lambda f, x: f(x), checkpoint])
def test_a_new_adapter_beside_a_trained_one_is_zero_by_construction(batch, rng, through):
    """B of the new one is a part of what the op multiplies by, and not all of it."""
    net = nn.Sequential(nn.Linear(3, 2, rng=rng))
    lora.attach(net, LoRAConfig(rank=2), adapter="a", rng=rng)
    net[0].lora_b.copy_(rng.standard_normal((2, 2)))  # as if it had been trained
    lora.attach(net, LoRAConfig(rank=2), adapter="b", rng=rng)
    lora.switch(net, "a", "b")
    report = liveness(net, lambda m, b: minigrad.mse(through(m, b[0]), b[1]), batch)
    assert report
    assert report["0.b.lora_a"].state == "zero by construction"
    assert "0.b.lora_b is all zeros" in report["0.b.lora_a"].reason
    assert report["0.b.lora_b"].state == "live"
    assert report.adapters[1].verdict == "trains B only, and A once B has moved"


def test_zeros_in_a_part_of_a_factor_are_found():
    class Joined(nn.Module):
        def __init__(self):
            self.v, self.w = nn.Parameter([1.0, 2.0]), nn.Parameter([3.0, 4.0])
            self.a, self.b = nn.Parameter([5.0, 6.0]), nn.Parameter([0.0, 0.0])

        def forward(self):
            x, y = [self.v, self.w], [self.a, self.b]
            return minigrad.concatenate(x) * minigrad.concatenate(y)

    report = liveness(Joined(), lambda m, _: m().sum(), None)
    assert states(report) == {"v": "live", "w": "zero by construction", "a": "live", "b": "live"}
    assert report["w"].reason == "b is all zeros, and multiplies it"


def test_the_magnitude_of_dora_is_a_part_of_the_verdict():
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(4, 3, rng=rng))
    lora.attach(model, LoRAConfig(rank=2, use_dora=True), rng=rng)
    layer = model[0]
    batch = rng.standard_normal((5, 4), np.float32), rng.standard_normal((5, 3), np.float32)

    def verdict():
        (row,) = liveness(model, minigrad.mse, batch).adapters
        return row.trains, row.verdict

    assert verdict() == (True, "trains B and the magnitude only, and A once B has moved")
    layer.lora_a.requires_grad_(False)
    assert verdict() == (True, "trains B and the magnitude only: A is frozen")
    layer.lora_b.requires_grad_(False)
    assert verdict() == (True, "trains the magnitude only: B and A are frozen")
    layer.lora_magnitude.requires_grad_(False)
    assert verdict() == (False, "frozen")


def test_parameters_that_are_not_found_in_the_model_are_counted():
    hidden = nn.Linear(4, 4)

    class Partly(nn.Module):
        def __init__(self, inner):
            self.last, self.inner = nn.Linear(4, 3), inner

        def forward(self, x):
            (inner,) = self.inner
            return self.last(minigrad.tanh(inner(x)))

    batch = np.ones((5, 4), np.float32), np.zeros((5, 3), np.float32)
    report = liveness(Partly({hidden}), minigrad.mse, batch)  # modules in a set are not found
    assert (report.trains, report.outside) == (True, 2)
    assert "The loss also depends on 2 tensors outside of the model that require" in repr(report)
    assert hidden.weight.grad is None
    assert liveness(Partly([hidden]), minigrad.mse, batch).outside == 0
