"""RNN, GRU and LSTM beside PyTorch's, with the same state: outputs, states and all gradients."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import minigrad
from minigrad import nn
from tests.minigrad.nn.test_peers import as_state
from tests.minigrad.nn.test_recurrent import KINDS, as_states, flat

pytestmark = pytest.mark.peers

ROUNDING = {np.float64: 1e-12, np.float32: 1e-5}
OPTIONS = {
    "one layer": {},
    "two layers": {"num_layers": 2},
    "both directions": {"num_layers": 2, "bidirectional": True},
    "batch first": {"num_layers": 2, "batch_first": True},
    "no bias": {"bias": False, "bidirectional": True},
}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def compare(torch, theirs, rng, kind, dtype, shape, state_shape):
    """Run both on the same input and state, and compare what comes out, and what comes back."""
    theirs = theirs.to(getattr(torch, np.dtype(dtype).name))
    options = {
        name: getattr(theirs, name) for name in ("bias", "nonlinearity") if name in vars(theirs)
    }
    if not kind.endswith("Cell"):
        names = ("num_layers", "batch_first", "bidirectional")
        options |= {name: getattr(theirs, name) for name in names}
    ours = getattr(nn, kind)(theirs.input_size, theirs.hidden_size, dtype=dtype, **options)
    parameters = dict(theirs.named_parameters())
    ours.load_state_dict(as_state(parameters))
    assert list(dict(ours.named_parameters())) == list(parameters)
    x, states = (
        rng.standard_normal(shape),
        as_states(kind, lambda: rng.standard_normal(state_shape)),
    )
    arrays = [a.astype(dtype) for a in flat(x, states)]
    for with_state in (True, False):
        results = []
        for module, tensor in (
            (theirs, lambda a: torch.from_numpy(a.copy()).requires_grad_()),
            (ours, lambda a: minigrad.tensor(a, requires_grad=True)),
        ):
            leaf, *given = map(tensor, arrays[: None if with_state else 1])
            state = (tuple(given) if len(given) > 1 else given[0]) if given else None
            found = flat(module(leaf, state))
            for parameter in module.parameters():
                parameter.grad = None
            weights = np.random.default_rng(2)
            total = 0
            for y in found:
                total = (
                    total
                    + (y * tensor(weights.standard_normal(tuple(y.shape)).astype(dtype))).sum()
                )
            total.backward()
            leaves = [leaf, *given, *module.parameters()]
            results.append([np.asarray(y.detach()) for y in (*found, *(v.grad for v in leaves))])
        for one, other in zip(*results, strict=True):
            assert one.shape == other.shape
            assert one.dtype == other.dtype == dtype
            scale = 1 + abs(one).max(initial=0)
            assert_allclose(other, one, rtol=0, atol=ROUNDING[dtype] * scale)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 5), (1, 1, 5), (3, 0, 5)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_layers(torch, rng, kind, options, shape, dtype):
    theirs = getattr(torch.nn, kind)(5, 7, **options)
    D = theirs.num_layers * (1 + theirs.bidirectional)
    if options.get("batch_first") and len(shape) == 3:
        shape = (shape[1], shape[0], shape[2])
        batch = shape[:1]
    else:
        batch = shape[1:-1]
    compare(torch, theirs, rng, kind, dtype, shape, (D, *batch, 7))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_an_rnn_with_relu(torch, rng, dtype):
    theirs = torch.nn.RNN(5, 7, 2, "relu", bidirectional=True)
    compare(torch, theirs, rng, "RNN", dtype, (4, 3, 5), (4, 3, 7))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("batch", [(3,), (), (0,)])
@pytest.mark.parametrize("kind", KINDS)
def test_cells(torch, rng, kind, batch, dtype):
    theirs = getattr(torch.nn, f"{kind}Cell")(5, 7)
    compare(torch, theirs, rng, f"{kind}Cell", dtype, (*batch, 5), (*batch, 7))
