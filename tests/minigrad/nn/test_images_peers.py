"""Pooling and norms of channels beside PyTorch's layers, over several steps and to second order."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import minigrad
from minigrad import nn

pytestmark = pytest.mark.peers

NEAR = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def derivatives(library, out, leaves, directions):
    """Gradients, and those of their sums along directions."""
    first = library.grad(out, leaves, directions[-1], create_graph=True)
    total = sum((g * v).sum() for g, v in zip(first, directions[:-1], strict=True))
    if not total.requires_grad:  # of a linear function
        return [*first, *(0 * leaf.detach() for leaf in leaves)]
    return [*first, *library.grad(total, leaves, allow_unused=True)]


def compare(torch, ours, theirs, x, rng):
    """The outputs, gradients and second derivatives of two modules with equal parameters."""
    here, there = minigrad.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    out, right = ours(here), theirs(there)
    assert_allclose(out.data, right.detach().numpy(), **NEAR)
    directions = [rng.standard_normal(p.shape) for p in (here, *ours.parameters(), out)]
    found = derivatives(minigrad, out, [here, *ours.parameters()], directions)
    exact = derivatives(
        torch.autograd, right, [there, *theirs.parameters()], [*map(torch.tensor, directions)]
    )
    for one, other in zip(found, exact, strict=True):
        other = np.zeros(one.shape) if other is None else other.detach().numpy()
        assert_allclose(one.data, other, **NEAR)


@pytest.mark.parametrize(
    ("name", "arguments", "options", "shape"),
    [
        ("MaxPool1d", (3, 2, 1), {}, (2, 3, 9)),
        ("MaxPool2d", (3, 2, 1), {}, (2, 3, 9, 8)),
        ("MaxPool2d", ((2, 3), (1, 2), 1, (2, 1)), {"ceil_mode": True}, (3, 9, 8)),
        ("AvgPool1d", (3, 2, 1), {"ceil_mode": True}, (2, 3, 9)),
        ("AvgPool2d", (3, 2, 1, True, False), {}, (2, 3, 9, 8)),
        ("AvgPool2d", (2,), {"divisor_override": 3}, (3, 9, 8)),
        ("AdaptiveAvgPool1d", (4,), {}, (2, 3, 9)),
        ("AdaptiveAvgPool2d", ((4, None),), {}, (2, 3, 9, 8)),
        ("AdaptiveAvgPool2d", (1,), {}, (3, 9, 8)),
        ("GroupNorm", (2, 4), {}, (2, 4, 3, 5)),
        ("GroupNorm", (4, 4), {"eps": 0.1, "affine": False}, (2, 4, 20)),
    ],
)
def test_layers(torch, name, arguments, options, shape, rng):
    theirs = getattr(torch.nn, name)(*arguments, **options).double()
    ours = getattr(nn, name)(*arguments, **options)
    if name == "GroupNorm":
        ours.astype(np.float64)
    for parameter, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        parameter.data = rng.standard_normal(parameter.shape)
        right.data = torch.tensor(parameter.data)
    compare(torch, ours, theirs, rng.standard_normal(shape), rng)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("BatchNorm1d", (5, 3)),
        ("BatchNorm1d", (2, 3, 20)),
        ("BatchNorm2d", (2, 3, 4, 5)),
        ("BatchNorm2d", (3, 1, 1, 1)),
    ],
)
def test_batch_norm_over_several_steps(torch, name, shape, affine, momentum, rng):
    options = {"momentum": momentum, "affine": affine}
    theirs = getattr(torch.nn, name)(shape[1], **options).double()
    ours = getattr(nn, name)(shape[1], **options, dtype=np.float64)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    ours.load_state_dict({name: t.numpy() for name, t in theirs.state_dict().items()})
    for _ in range(3):
        compare(torch, ours, theirs, rng.normal(1, 2, shape), rng)
    compare(torch, ours.eval(), theirs.eval(), rng.standard_normal(shape), rng)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    for key, value in ours.state_dict().items():
        assert_allclose(value, state[key].numpy(), rtol=1e-12)
        assert value.dtype == state[key].numpy().dtype
