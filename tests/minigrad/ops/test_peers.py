"""Live comparison with PyTorch, and of second derivatives with HIPS autograd.

A row of the table is compared with PyTorch's function of the same name, in value and in gradient;
so is a row with random shapes. Where PyTorch has another name or other arguments, PYTORCH says how
to call it. Where we differ on purpose, DIFFERENT says why, and a test that it is still so.

    python -m tests.minigrad.ops.test_peers

prints the largest relative difference for each op.
"""

import contextlib
import itertools
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

import minigrad
from minigrad import Tensor, grad
from tests.cases import CASES, GIVE_FLOAT32
from tests.peers.differences import relative
from tests.peers.draws import RANDOM, random_case
from tests.peers.pytorch import (
    DIFFERENT,
    DIFFERS,
    OUTSIDE,
    PYTORCH,
    PYTORCH_REFUSES,
    WE_REFUSE,
    pytorch,
)

pytestmark = pytest.mark.peers


class RefusedError(Exception):
    """One of both raises an error."""


@contextlib.contextmanager
def refusing(who):
    try:
        yield
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        raise RefusedError(who) from error


@dataclass(frozen=True)
class Difference:
    """The largest relative differences of a row's value and gradients from PyTorch's."""

    value: float
    gradient: float

    @property
    def largest(self):
        return max(self.value, self.gradient)


def in_pytorch(t, value):
    """Arrays, tensors and dtypes of numpy's, also inside of tuples, as PyTorch's."""
    if isinstance(value, tuple):
        return tuple(in_pytorch(t, part) for part in value)
    if isinstance(value, dict):
        return {key: in_pytorch(t, part) for key, part in value.items()}
    if isinstance(value, type) and issubclass(value, np.generic):
        return t.from_numpy(np.empty(0, value)).dtype
    if isinstance(value, Tensor):
        value = value.data
    return t.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


def compare(case, seed=1):
    """How much our function and PyTorch's differ on the operands of a row.

    Where only one of both has a gradient, it differs infinitely.
    """
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    arrays = case.operands(seed=seed)
    xs = [Tensor(x.copy(), requires_grad=x.dtype.kind == "f") for x in arrays]
    ts = [torch.tensor(x.copy(), requires_grad=x.dtype.kind == "f") for x in arrays]
    options = in_pytorch(torch, case.options)
    with np.errstate(all="ignore"):  # rows that divide by zero and the like
        with refusing(WE_REFUSE):
            out = case(*xs)
        with refusing(PYTORCH_REFUSES):
            right = replace(case, options=options).apply(pytorch(torch, case.name), *ts)
        value = relative(out.data, right.detach().numpy())
        if not (out.requires_grad and right.requires_grad):
            return Difference(value, 0.0 if out.requires_grad == right.requires_grad else np.inf)
        v = np.random.default_rng(1).standard_normal(out.shape).astype(out.dtype)
        found = grad(out, [x for x in xs if x.requires_grad], v)
        with refusing(PYTORCH_REFUSES):
            exact = torch.autograd.grad(
                right, [x for x in ts if x.requires_grad], torch.from_numpy(v)
            )
    pairs = zip(found, exact, strict=True)
    return Difference(value, max(relative(x.data, y.detach().numpy()) for x, y in pairs))


# --------------------------------------------------------------------------------------------------
# The tests
# --------------------------------------------------------------------------------------------------

ROWS = [case for case in CASES if str(case) not in DIFFERENT]
SEEDS = range(5)


def test_everything_is_compared_on_rows_and_on_random_shapes():
    names = {case.name for case in CASES}
    assert {case.name for case in ROWS} == names
    assert set(RANDOM) == names
    assert set(PYTORCH) <= names
    assert set(DIFFERENT) <= {str(case) for case in (*CASES, *OUTSIDE)}


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")  # PyTorch's, about a sum of none
@pytest.mark.filterwarnings("ignore:.*even kernel lengths")  # PyTorch's, about its memory
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_rows_of_the_table_agree_with_pytorch(case):
    assert compare(case).largest <= 1e-6


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", RANDOM)
def test_random_shapes_agree_with_pytorch(name, seed):
    assert compare(random_case(name, seed), seed).largest <= 1e-6


@pytest.mark.filterwarnings("ignore")  # of PyTorch's, about what it does there
@pytest.mark.parametrize(
    "case", [case for case in (*CASES, *OUTSIDE) if str(case) in DIFFERENT], ids=str
)
def test_what_is_said_to_differ_from_pytorch_does(case):
    kind, _ = DIFFERENT[str(case)]
    if kind == DIFFERS:
        assert compare(case).largest > 1e-6
    else:
        with pytest.raises(RefusedError, match=kind):
            compare(case)


@pytest.mark.parametrize(
    "f",
    [
        lambda m, x: m.tanh(x) * x,
        lambda m, x: m.exp(-x * x) / (1 + x * x),
        lambda m, x: m.log(1 + m.exp(x)) ** 3,
        lambda m, x: m.sqrt(x * x + 1) - m.maximum(x, -x),
        lambda m, x: 2.0**x * x**2,
    ],
    ids=["tanh", "bell", "softplus", "root", "powers"],
)
def test_second_derivatives_agree_with_hips_autograd(f):
    autograd = pytest.importorskip("autograd")
    x = np.linspace(-2, 2, 20)
    ours = Tensor(x, requires_grad=True)
    first = grad(f(minigrad, ours).sum(), ours, create_graph=True)
    second = grad(first.sum(), ours)
    theirs = autograd.elementwise_grad(lambda x: f(autograd.numpy, x))
    assert_allclose(first.data, theirs(x), rtol=1e-6)
    assert_allclose(second.data, autograd.elementwise_grad(theirs)(x), rtol=1e-6)


def main():
    """Print the largest relative differences from PyTorch of each op, the largest first."""
    warnings.simplefilter("ignore")  # PyTorch's, about sums of none
    found = {}
    for case in (case for case in ROWS if case.note not in GIVE_FLOAT32):  # others are float64
        found.setdefault(case.name, []).append(compare(case))
    for name, seed in itertools.product(RANDOM, SEEDS):
        found[name].append(compare(random_case(name, seed), seed))
    rows = [
        (name, len(all), max(d.value for d in all), max(d.gradient for d in all))
        for name, all in found.items()
    ]
    rows.sort(key=lambda row: -max(row[2:]))
    print(f"{'op':32} {'rows':>5} {'value':>9} {'gradient':>9}")
    for name, count, value, gradient in rows:
        print(f"{name:32} {count:5} {value:9.1e} {gradient:9.1e}")
    print(f"{len(rows)} ops, {sum(row[1] for row in rows)} rows, largest {max(rows[0][2:]):.1e}")


if __name__ == "__main__":
    main()
