"""An op that only this module knows: all instruments work on it, and no other file is touched."""

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn
from minigrad.diagnostics import AnomalyError

# --------------------------------------------------------------------------------------------------
# The block
# --------------------------------------------------------------------------------------------------


def _hint(x):
    return "the root of a negative number is NaN" if (x < 0).any() else None


def _gradient_hint(x):
    return "the slope is infinite at 0" if (x == 0).any() else None


@mg.op(floats=True, nonfinite_hint=_hint, gradient_hint=_gradient_hint)
def bent(x, power=1.5):
    """x^power + sqrt(x), a curve that a root bends at 0."""
    return x**power + np.sqrt(x)


bent.vjp("x", lambda g, x, power: g * (power * x ** (power - 1) + 0.5 / mg.sqrt(x)))

# --------------------------------------------------------------------------------------------------
# What comes with it
# --------------------------------------------------------------------------------------------------

X = np.array([[0.5, 1.0, 2.0], [3.0, 4.0, 0.1]])


def test_it_is_known_to_this_module_alone():
    assert "bent" not in mg.OPS
    assert not hasattr(mg, "bent")


def test_derivatives_of_first_and_second_order():
    x = mg.Tensor(X, requires_grad=True)
    first = mg.grad(bent(x).sum(), x, create_graph=True)
    np.testing.assert_allclose(first.data, 1.5 * X**0.5 + 0.5 * X**-0.5, rtol=1e-14)
    second = mg.grad(first.sum(), x)
    np.testing.assert_allclose(second.data, 0.75 * X**-0.5 - 0.25 * X**-1.5, rtol=1e-14)
    half = bent(mg.Tensor(X.astype(np.float16)))
    assert half.dtype == np.float16


def test_gradcheck():
    assert mg.gradcheck(bent, X, order=2).verdict == "agree"


def test_receipt():
    x = mg.Tensor(X, requires_grad=True)
    with mg.receipt() as r:
        bent(x).sum().backward()
    rows = {(row.phase, row.op): row.flops for row in r.rows}
    assert r.uncounted == {}
    assert rows["forward", "bent"] == 3 * 6  # a power, a root and a sum for each element
    assert rows["backward", "bent"] == 6 * 6  # a power, a root, a quotient, two products, a sum
    assert r.saved_bytes == 0
    assert r.input_bytes == X.nbytes  # its VJP saved x


def test_ops_that_a_forward_calls_are_counted_once():
    soft = mg.op(lambda x: mg.exp(x) / mg.exp(x).sum())
    soft.vjp("x", lambda g, out: out * (g - mg.sum(g * out)))
    add_up = mg.op(lambda xs: mg.square(mg.stack(list(xs))).sum(axis=0))
    add_up.vjp("xs", lambda g, xs, argnum: 2 * g * xs[argnum])
    with mg.receipt() as r:
        soft(mg.Tensor(X))
        add_up([mg.Tensor(X), X])
        mg.square(X)  # no op calls this one
    rows = [(row.phase, row.op, row.flops) for row in r.rows]
    of_soft, of_sequence = 6 + 6 + 6 + 6, 12 + 12
    assert sorted(rows, key=lambda row: row[2]) == [
        ("forward", "square", 6),
        ("forward", "<lambda>", of_soft + of_sequence),
    ]


def test_pictures(tmp_path):
    x = mg.Tensor(X, requires_grad=True)
    assert "bent" in str(mg.viz.draw(bent(x).sum()))
    page = tmp_path / "page.html"
    mg.viz.explore(bent(x).sum(), page)
    text = page.read_text()
    assert "a curve that a root bends at 0" in text
    assert "0.5 / mg.sqrt(x)" in text


def test_advice_for_what_is_not_finite():
    with np.errstate(all="ignore"), mg.detect_anomaly(), pytest.raises(AnomalyError) as error:
        bent(mg.Tensor(-X))
    assert error.value.op == "bent"
    assert "the root of a negative number is NaN" in str(error.value)
    zero = mg.Tensor(np.zeros(3), requires_grad=True)
    with np.errstate(all="ignore"), mg.detect_anomaly(), pytest.raises(AnomalyError) as error:
        bent(zero).sum().backward()
    assert error.value.phase == "backward"
    assert "the slope is infinite at 0" in str(error.value)


def test_a_text_is_advice_for_each_result_that_is_not_finite():
    of = mg.op(nonfinite_hint="there is no inverse", gradient_hint="nor a slope")
    inverse = of(lambda x: 1 / x)
    inverse.vjp("x", lambda g, out: -g * out * out)
    x = mg.Tensor(np.zeros(3), requires_grad=True)
    with np.errstate(all="ignore"), mg.detect_anomaly(), pytest.raises(AnomalyError) as error:
        inverse(x)
    assert "there is no inverse" in str(error.value)
    with np.errstate(all="ignore"), mg.detect_anomaly(), pytest.raises(AnomalyError) as error:
        inverse(x + 1e-160).sum().backward()
    assert "nor a slope" in str(error.value)


def test_advice_that_is_no_text_does_not_hide_what_is_not_finite():
    inverse = mg.op(nonfinite_hint=lambda x: 3)(lambda x: 1 / x)
    with np.errstate(all="ignore"), mg.detect_anomaly(), pytest.raises(AnomalyError) as error:
        inverse(mg.zeros(3))
    assert "a hint of this op returned 3; it should return a text or None" in str(error.value)


class Bent(nn.Module):
    def __init__(self):
        self.first = nn.Linear(3, 4, rng=np.random.default_rng(0))

    def forward(self, x):
        return bent(mg.abs(self.first(x)))


def test_liveness():
    batch = mg.Tensor(X.astype(np.float32)), mg.zeros(2, 4)
    report = mg.liveness(Bent(), mg.mse, batch)
    assert report.trains
    assert [row.state for row in report.rows] == ["live", "live"]
