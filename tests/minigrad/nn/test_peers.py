"""Layers and losses beside PyTorch's: the same state gives the same outputs and gradients."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import minigrad
from minigrad import nn
from minigrad.nn import init

pytestmark = pytest.mark.peers


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def scattered(torch, module):
    """A PyTorch module in float64 with random parameters."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def as_state(tensors):
    """A state dict of arrays."""
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def gradients(torch, theirs):
    return {name: p.grad.numpy() for name, p in theirs.named_parameters()}


def compare(torch, ours, theirs, arrays, translate=dict, run_ours=None, run_theirs=None):
    """Load the state of a PyTorch module, run both, and compare outputs and all gradients.

    `translate` turns a dict by PyTorch's names into one by ours.
    """
    ours.load_state_dict(translate(as_state(theirs.state_dict())))
    xs = [minigrad.Tensor(x, requires_grad=x.dtype.kind == "f") for x in arrays]
    ts = [torch.tensor(x, requires_grad=x.dtype.kind == "f") for x in arrays]
    out, right = (run_ours or ours)(*xs), (run_theirs or theirs)(*ts)
    assert out.shape == tuple(right.shape)
    assert_allclose(out.data, right.detach().numpy(), rtol=1e-9, atol=1e-12)
    g = np.random.default_rng(1).standard_normal(out.shape)
    out.backward(g)
    right.backward(torch.tensor(g))
    for x, t in zip(xs, ts, strict=True):
        if x.requires_grad:
            assert_allclose(x.grad.data, t.grad.numpy(), rtol=1e-9, atol=1e-12)
    exact = translate(gradients(torch, theirs))
    assert set(exact) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert_allclose(parameter.grad.data, exact[name], rtol=1e-9, atol=1e-12, err_msg=name)


X = np.random.default_rng(0).standard_normal((2, 3, 4))


@pytest.mark.parametrize(
    ("name", "arguments", "options", "x"),
    [
        ("Linear", (4, 5), {}, X),
        ("Linear", (4, 5), {"bias": False}, X[0, 0]),
        ("Embedding", (6, 4), {}, np.array([[0, 5, 2], [5, 5, 1]])),
        ("Embedding", (6, 4), {"padding_idx": -1}, np.array([0, 5, 2])),
        ("LayerNorm", (4,), {}, X),
        ("LayerNorm", ((3, 4),), {"eps": 0.1}, X),
        ("LayerNorm", (4,), {"bias": False}, X),
        ("LayerNorm", (4,), {"elementwise_affine": False}, X),
        ("RMSNorm", (4,), {}, X),
        ("RMSNorm", ((3, 4),), {"eps": 0.1}, X),
        ("RMSNorm", (4,), {"elementwise_affine": False}, X),
        ("Flatten", (), {}, X),
        ("Flatten", (0,), {"end_dim": -2}, X),
    ],
)
def test_layers(torch, name, arguments, options, x):
    theirs = scattered(torch, getattr(torch.nn, name)(*arguments, **options))
    of_floats = {} if name == "Flatten" else {"dtype": np.float64}
    ours = getattr(nn, name)(*arguments, **options, **of_floats)
    compare(torch, ours, theirs, [x])
    for attribute in ("padding_idx", "normalized_shape", "eps", "in_features", "num_embeddings"):
        if hasattr(ours, attribute):
            assert getattr(ours, attribute) == getattr(theirs, attribute)


# ----------------------------------------------------------------------------------------------
# Attention
# ----------------------------------------------------------------------------------------------


def unpacked(state):
    """The state of PyTorch's MultiheadAttention by the names of our MultiHeadAttention.

    It keeps the maps of query, key and value in one matrix, or, if their sizes differ, in three;
    and their biases always in one vector.
    """
    state = dict(state)
    if "in_proj_weight" in state:
        weights = np.split(state.pop("in_proj_weight"), 3)
    else:
        weights = [state.pop(f"{name}_proj_weight") for name in "qkv"]
    new = {f"{name}_proj.weight": w for name, w in zip("qkv", weights, strict=True)}
    if "in_proj_bias" in state:
        biases = np.split(state.pop("in_proj_bias"), 3)
        new |= {f"{name}_proj.bias": b for name, b in zip("qkv", biases, strict=True)}
    return new | state


ALLOWED = np.array([[1, 1, 0, 0, 1], [0, 1, 1, 0, 0], [1, 0, 0, 1, 1]], bool)
PADDING = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], bool)
BIAS = np.random.default_rng(2).standard_normal((3, 5))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(None, None), (6, None), (6, 7)])
@pytest.mark.parametrize("mask", [None, "allowed", "padding", "bias"])
def test_attention(torch, mask, sizes, bias):
    options = {"bias": bias, "kdim": sizes[0], "vdim": sizes[1]}
    theirs = torch.nn.MultiheadAttention(4, 2, batch_first=True, **options)
    theirs = scattered(torch, theirs)
    ours = nn.MultiHeadAttention(4, 2, **options, dtype=np.float64)
    rng = np.random.default_rng(3)
    arrays = [X, *(rng.standard_normal((2, 5, size or 4)) for size in sizes)]
    # Their booleans say where attention may not go; so do not ours.
    here, there = {
        None: (None, {}),
        "allowed": (ALLOWED, {"attn_mask": torch.tensor(~ALLOWED)}),
        "padding": (PADDING[:, None, None], {"key_padding_mask": torch.tensor(~PADDING)}),
        "bias": (BIAS, {"attn_mask": torch.tensor(BIAS)}),
    }[mask]
    compare(
        torch,
        ours,
        theirs,
        arrays,
        unpacked,
        lambda *xs: ours(*xs, attn_mask=here),
        lambda *ts: theirs(*ts, **there)[0],
    )


def test_causal_attention_of_one_sequence(torch):
    theirs = scattered(torch, torch.nn.MultiheadAttention(4, 2))
    ours = nn.MultiHeadAttention(4, 2, dtype=np.float64)
    future = torch.triu(torch.ones(3, 3, dtype=torch.bool), 1)
    compare(
        torch,
        ours,
        theirs,
        [X[0]],
        unpacked,
        lambda x: ours(x, is_causal=True),
        lambda x: theirs(x, x, x, attn_mask=future)[0],
    )


@pytest.mark.parametrize("options", [{}, {"kdim": 256}, {"kdim": 128, "vdim": 64}])
def test_attention_begins_as_pytorchs_does(torch, options):
    theirs = torch.nn.MultiheadAttention(256, 4, **options)
    ours = nn.MultiHeadAttention(256, 4, **options)
    right = unpacked(as_state(theirs.state_dict()))
    assert set(right) == set(ours.state_dict())
    for name, value in ours.state_dict().items():
        assert value.shape == right[name].shape
        assert abs(value).max() == pytest.approx(abs(right[name]).max(), rel=0.01)  # 1e-4 apart
        assert value.std() == pytest.approx(right[name].std(), rel=0.02)


def renamed(state):
    """The state of PyTorch's TransformerEncoderLayer by the names of our TransformerBlock."""
    attention = {
        name.removeprefix("self_attn."): value
        for name, value in state.items()
        if name.startswith("self_attn.")
    }
    new = {f"attn.{name}": value for name, value in unpacked(attention).items()}
    for name, value in state.items():
        if not name.startswith("self_attn."):
            name = name.replace("linear1", "mlp.layers.0").replace("linear2", "mlp.layers.1")
            new[name] = value
    return new


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_block(torch, activation, bias, causal):
    theirs = torch.nn.TransformerEncoderLayer(
        4, 2, 6, 0.0, activation, batch_first=True, norm_first=True, bias=bias
    )
    theirs = scattered(torch, theirs)
    ours = nn.TransformerBlock(
        4, 2, 6, 0.0, getattr(minigrad, activation), causal, bias=bias, dtype=np.float64
    )
    mask = torch.nn.Transformer.generate_square_subsequent_mask(3, dtype=torch.float64)
    compare(
        torch,
        ours,
        theirs,
        [X],
        renamed,
        run_theirs=lambda x: theirs(x, src_mask=mask if causal else None),
    )


# ----------------------------------------------------------------------------------------------
# Losses and first weights
# ----------------------------------------------------------------------------------------------

LOGITS = 3 * X[0]
CLASSES = np.array([2, 0, 3])
SHARES = np.exp(X[1]) / np.exp(X[1]).sum(1, keepdims=True)
WEIGHTS = np.array([0.5, 2.0, 1.0, 0.25])


@pytest.mark.parametrize(
    ("name", "options", "target"),
    [
        ("MSELoss", {}, X[1]),
        ("L1Loss", {}, X[1]),
        ("HuberLoss", {}, X[1]),
        ("HuberLoss", {"delta": 2.5}, X[1]),
        ("BCEWithLogitsLoss", {}, SHARES),
        ("BCEWithLogitsLoss", {"pos_weight": WEIGHTS}, SHARES),
        ("BCEWithLogitsLoss", {"weight": WEIGHTS, "pos_weight": WEIGHTS[::-1].copy()}, SHARES),
        ("NLLLoss", {}, CLASSES),
        ("NLLLoss", {"weight": WEIGHTS, "ignore_index": 0}, CLASSES),
        ("CrossEntropyLoss", {}, CLASSES),
        ("CrossEntropyLoss", {"weight": WEIGHTS, "label_smoothing": 0.2}, CLASSES),
        ("CrossEntropyLoss", {"ignore_index": 0, "label_smoothing": 0.2}, CLASSES),
        ("CrossEntropyLoss", {"weight": WEIGHTS, "ignore_index": 0}, CLASSES),
        ("CrossEntropyLoss", {"weight": WEIGHTS, "label_smoothing": 0.2}, SHARES),
    ],
)
def test_losses(torch, name, options, target):
    """Means, which divide by the weights; other tests compare the other reductions."""
    there = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    theirs = getattr(torch.nn, name)(**there)
    ours = getattr(nn, name)(**options)
    compare(
        torch,
        ours,
        theirs,
        [LOGITS],
        lambda state: {},
        lambda x: ours(x, target),
        lambda x: theirs(x, torch.tensor(target)),
    )


def test_gains(torch):
    for name in ("linear", "sigmoid", "tanh", "relu", "selu"):
        assert init.calculate_gain(name) == torch.nn.init.calculate_gain(name)
    assert init.calculate_gain("leaky_relu", 0.3) == torch.nn.init.calculate_gain("leaky_relu", 0.3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("trunc_normal_", {"mean": 1.0, "std": 2.0, "a": 0.0, "b": 3.5}),
        ("orthogonal_", {"gain": 3.0}),
        ("sparse_", {"sparsity": 0.3, "std": 0.5}),
        ("eye_", {}),
    ],
)
def test_first_weights_have_the_moments_of_pytorchs(torch, name, options):
    torch.manual_seed(0)
    ours = minigrad.zeros((200, 300))
    theirs = torch.zeros(200, 300)
    getattr(init, name)(ours, **options)
    getattr(torch.nn.init, name)(theirs, **options)
    for statistic in (np.mean, np.std, lambda x: (x == 0).mean(), lambda x: (x**4).mean()):
        one, other = statistic(ours.data), statistic(theirs.numpy())
        assert one == pytest.approx(other, rel=0.03, abs=0.01)


CONVOLUTIONS = {
    "plain": (nn.Conv2d, "Conv2d", (2, 4, 3), {}, (3, 2, 6, 5)),
    "options": (
        nn.Conv2d,
        "Conv2d",
        (4, 6, (3, 2)),
        {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2, "bias": False},
        (2, 4, 8, 7),
    ),
    "same": (nn.Conv2d, "Conv2d", (2, 3, 3), {"padding": "same"}, (1, 2, 4, 5)),
    "one image": (nn.Conv2d, "Conv2d", (2, 3, 2), {}, (2, 4, 5)),
    "sequences": (nn.Conv1d, "Conv1d", (3, 4, 3), {"stride": 2, "padding": 1}, (2, 3, 9)),
    "one sequence": (nn.Conv1d, "Conv1d", (2, 4, 2), {"groups": 2, "dilation": 2}, (2, 7)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(torch, name):
    ours, theirs, sizes, options, shape = CONVOLUTIONS[name]
    layer = ours(*sizes, **options, dtype=np.float64)
    other = scattered(torch, getattr(torch.nn, theirs)(*sizes, **options))
    compare(torch, layer, other, [np.random.default_rng(0).standard_normal(shape)])


def test_convolutions_begin_as_pytorch_does(torch):
    ours = nn.Conv2d(8, 64, 5, groups=2, rng=np.random.default_rng(0))
    theirs = torch.nn.Conv2d(8, 64, 5, groups=2)
    for name, parameter in ours.named_parameters():
        x, y = parameter.data, dict(theirs.named_parameters())[name].detach().numpy()
        bound = 1 / np.sqrt(4 * 25)
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        assert 0.9 * bound < np.abs(x).max() <= bound
        assert 0.9 * bound < np.abs(y).max() <= bound
