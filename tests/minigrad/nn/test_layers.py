"""Layers: their values and gradients, how they begin, and what they refuse."""

import copy
import math
import re

import numpy as np
import pytest

import minigrad
from minigrad import nn
from minigrad.nn import (
    MLP,
    Dropout,
    Embedding,
    Flatten,
    GatedMLP,
    LayerNorm,
    Linear,
    RMSNorm,
    Sequential,
)


def scatter(module, rng):
    """Give every parameter random values, so that none hides behind a first value of 0 or 1."""
    for parameter in module.parameters():
        parameter.data = rng.standard_normal(parameter.shape)
    return module


# ----------------------------------------------------------------------------------------------
# Linear, Sequential, MLP
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (0, 5)])
def test_linear_is_x_w_transposed_plus_b(rng, shape, bias, dtype):
    layer = Linear(5, 3, bias, dtype=dtype, rng=rng)
    x = rng.standard_normal(shape).astype(dtype)
    expected = np.einsum("...i,oi->...o", x, layer.weight.data)
    if bias:
        expected = expected + layer.bias.data
    out = layer(minigrad.tensor(x))
    assert out.dtype == dtype
    assert (layer.in_features, layer.out_features) == (5, 3)
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    np.testing.assert_allclose(out.data, expected, rtol=tolerance, atol=tolerance)


def test_linear_takes_memory_that_is_not_contiguous(rng):
    layer = Linear(5, 3, dtype=np.float64, rng=rng)
    x = rng.standard_normal((10, 8)).T[::2, ::-1][:, :5]
    expected = x @ layer.weight.data.T + layer.bias.data
    np.testing.assert_allclose(layer(minigrad.Tensor(x)).data, expected, rtol=1e-13)


def test_linear_without_bias_has_one_parameter():
    assert [name for name, _ in Linear(2, 3, bias=False).named_parameters()] == ["weight"]


@pytest.mark.parametrize("shape", [(), (4,), (5, 4)])
def test_linear_of_a_wrong_size_is_an_error(shape):
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        Linear(5, 3)(minigrad.ones(shape))


@pytest.mark.parametrize("size", [0, -1, 2.5, "2", True])
def test_linear_sizes_are_positive_integers(size):
    with pytest.raises(ValueError, match=f"in_features must be a positive integer, not {size!r}"):
        Linear(size, 3)
    with pytest.raises(ValueError, match=f"out_features must be a positive integer, not {size!r}"):
        Linear(3, size)


def test_linear_begins_uniform_within_one_over_the_root_of_d_in(rng):
    layer = Linear(400, 300, rng=rng)
    bound = 1 / 20
    for p in (layer.weight, layer.bias):
        assert abs(p.data).max() <= bound
        assert p.data.max() > 0.94 * bound  # of 300 draws at least: missed once in 10,000 times
        assert p.data.min() < -0.94 * bound
    spread = bound / math.sqrt(3)
    assert layer.weight.data.std() == pytest.approx(spread, rel=0.01)  # of 120,000 draws
    assert abs(layer.weight.data.mean()) < 0.01 * spread  # whose mean has a deviation of 0.003


def test_equal_generators_give_equal_models_and_manual_seed_too():
    x, y, z = (MLP([3, 4, 1], rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    minigrad.manual_seed(5)
    u = MLP([3, 4, 1])
    minigrad.manual_seed(5)
    v = MLP([3, 4, 1])
    for one, two in ((x, y), (u, v)):
        pairs = zip(one.parameters(), two.parameters(), strict=True)
        assert all(np.array_equal(p.data, q.data) for p, q in pairs)
    pairs = zip(x.parameters(), z.parameters(), strict=True)
    assert not any(np.array_equal(p.data, q.data) for p, q in pairs)


def test_a_seed_is_no_generator():
    with pytest.raises(TypeError, match="default_rng"):
        Linear(2, 3, rng=0)


def test_sequential_runs_modules_and_functions_in_turn():
    layer = Linear(2, 3)
    net = Sequential(layer, minigrad.tanh, lambda x: x * 2)
    x = minigrad.ones((4, 2))
    np.testing.assert_allclose(net(x).data, 2 * np.tanh(layer(x).data), rtol=1e-6)
    assert len(net) == 3
    assert net[0] is layer
    assert list(net)[1] is minigrad.tanh
    assert Sequential()(x) is x


def test_a_slice_of_a_sequential_is_one_of_the_same_layers():
    net = Sequential(Linear(2, 3), minigrad.tanh, Linear(3, 1))
    body, x = net[:-1], minigrad.ones((4, 2))
    assert isinstance(body, Sequential)
    assert list(body) == list(net)[:-1]
    np.testing.assert_array_equal(net[-1](body(x)).data, net(x).data)


def test_a_layer_of_a_sequential_can_be_replaced():
    net = Sequential(Linear(2, 3), minigrad.tanh, Linear(3, 1))
    net[-1] = head = Linear(3, 5)
    net[0].freeze()
    assert net[2] is head
    assert net.trainable_parameters() == list(head.parameters())
    assert net(minigrad.ones(4, 2)).shape == (4, 5)
    with pytest.raises(IndexError, match="there is no layer 3; it has 3 layers"):
        net[3] = head
    with pytest.raises(TypeError, match="the index of a layer is an integer, not slice"):
        net[:2] = head
    with pytest.raises(TypeError, match="layer 0 must be a module"):
        net[0] = 3


@pytest.mark.parametrize(
    ("layers", "hint"),
    [([minigrad.tanh], "Sequential(*layers)"), ({"0": minigrad.tanh}, "(*layers.values())")],
)
def test_a_list_of_layers_is_unpacked(layers, hint):
    with pytest.raises(TypeError, match=re.escape(hint)):
        Sequential(layers)


def test_mlp_has_its_activation_between_layers_and_none_at_the_end(rng):
    net = MLP([3, 4, 5, 2], activation=minigrad.tanh, dtype=np.float64, rng=rng)
    x = rng.standard_normal((6, 3))
    out = x
    for i, layer in enumerate(net.layers):
        out = out @ layer.weight.data.T + layer.bias.data
        out = np.tanh(out) if i < 2 else out
    np.testing.assert_allclose(net(minigrad.tensor(x)).data, out, rtol=1e-12)
    assert [(m.in_features, m.out_features) for m in net.layers] == [(3, 4), (4, 5), (5, 2)]


def test_mlp_without_biases_is_a_product_of_its_weights(rng):
    net = MLP([3, 4, 2], lambda x: x, bias=False, dtype=np.float64, rng=rng)
    assert [name for name, _ in net.named_parameters()] == ["layers.0.weight", "layers.1.weight"]
    x = rng.standard_normal((5, 3))
    expected = x @ net.layers[0].weight.data.T @ net.layers[1].weight.data.T
    np.testing.assert_allclose(net(minigrad.tensor(x)).data, expected, rtol=1e-12)


def test_mlp_is_of_relus_by_default():
    net = MLP([1, 2, 1])
    net.load_state_dict(
        {
            "layers.0.weight": [[1.0], [-1.0]],
            "layers.0.bias": [0.0, 0.0],
            "layers.1.weight": [[1.0, 10.0]],
            "layers.1.bias": [0.5],
        }
    )
    assert net(minigrad.tensor([[2.0], [-3.0]])).tolist() == [[2.5], [30.5]]


def test_mlp_drops_hidden_values_in_training_only(rng):
    net = MLP([2, 50, 1], dropout=0.5, rng=rng)
    x = minigrad.ones((1, 2))
    assert len({net(x).item() for _ in range(10)}) == 10
    net.eval()
    assert len({net(x).item() for _ in range(10)}) == 1
    assert MLP([2, 1]).dropout is None


@pytest.mark.parametrize("bias", [False, True])
def test_a_gated_mlp_multiplies_one_map_with_the_activation_of_another(bias, rng):
    net = GatedMLP(3, 4, bias=bias, dtype=np.float64, rng=rng)
    x = rng.standard_normal((2, 5, 3))
    maps = {name: layer for name, layer in net.named_modules() if name}
    assert list(maps) == ["gate_proj", "up_proj", "down_proj"]
    gate, up, down = (
        lambda x, m=m: x @ m.weight.data.T + (m.bias.data if bias else 0) for m in maps.values()
    )
    np.testing.assert_allclose(
        net(minigrad.tensor(x)).data, down(gate(x) / (1 + np.exp(-gate(x))) * up(x)), rtol=1e-12
    )
    assert [m.weight.shape for m in maps.values()] == [(4, 3), (4, 3), (3, 4)]
    minigrad.assert_gradients(net, x, order=1)
    net.activation = minigrad.gelu
    assert "activation=gelu" in repr(net)
    expected = down(minigrad.gelu(gate(x)) * up(x))
    np.testing.assert_allclose(net(minigrad.tensor(x)).data, expected, rtol=1e-12)


def test_a_gated_mlp_with_silu_keeps_no_activation_for_the_backward_pass(rng):
    fused, composed = (GatedMLP(3, 400, rng=np.random.default_rng(0)) for _ in range(2))
    composed.activation = lambda gate: minigrad.silu(gate)
    x = minigrad.tensor(rng.standard_normal((5, 3), np.float32), requires_grad=True)
    saved = []
    for net in (fused, composed):
        with minigrad.receipt() as found:
            loss = net(x).sum()
            saved.append(found.saved_bytes)
            del loss
    assert saved[1] - saved[0] == 5 * 400 * 4
    results = [minigrad.grad(net(x).sum(), [x, *net.parameters()]) for net in (fused, composed)]
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one.data, other.data)


def test_a_gated_mlp_refuses_what_it_cannot_be_made_of():
    with pytest.raises(ValueError, match=r"^GatedMLP: out_features must be a positive integer"):
        GatedMLP(3, 0)
    with pytest.raises(TypeError, match="GatedMLP: the activation must be a module"):
        GatedMLP(3, 4, activation="silu")


@pytest.mark.parametrize(
    ("make", "arguments"),
    [(Linear, (3, 4)), (MLP, ([3, 4],)), (GatedMLP, (3, 4)), (nn.MultiHeadAttention, (4, 2))],
)
def test_a_bias_is_a_flag(make, arguments):
    with pytest.raises(TypeError, match=f"^{make.__name__}: bias must be True or False, not 'no'"):
        make(*arguments, bias="no")


@pytest.mark.parametrize("sizes", [[], [3]])
def test_mlp_needs_two_sizes(sizes):
    with pytest.raises(ValueError, match="at least those of input and output"):
        MLP(sizes)


# ----------------------------------------------------------------------------------------------
# Activations, Identity, Flatten
# ----------------------------------------------------------------------------------------------


def log_softmax(x, axis=-1):
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


ACTIVATIONS = {
    nn.ReLU(): lambda x: np.maximum(x, 0),
    nn.LeakyReLU(): lambda x: np.where(x > 0, x, x / 100),
    nn.LeakyReLU(0.3): lambda x: np.where(x > 0, x, 0.3 * x),
    nn.ELU(): lambda x: np.where(x > 0, x, np.exp(x) - 1),
    nn.ELU(alpha=2.0): lambda x: np.where(x > 0, x, 2 * np.exp(x) - 2),
    nn.GELU(): lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    nn.SiLU(): lambda x: x / (1 + np.exp(-x)),
    nn.Softplus(): lambda x: np.log(1 + np.exp(x)),
    nn.Softplus(beta=3.0): lambda x: np.log(1 + np.exp(3 * x)) / 3,
    nn.Tanh(): np.tanh,
    nn.Sigmoid(): lambda x: 1 / (1 + np.exp(-x)),
    nn.Softmax(): lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    nn.Softmax(axis=0): lambda x: np.exp(x) / np.exp(x).sum(0, keepdims=True),
    nn.LogSoftmax(): log_softmax,
    nn.LogSoftmax(axis=0): lambda x: log_softmax(x, 0),
    nn.Identity(): lambda x: x,
    nn.Flatten(): lambda x: x.reshape(4, 6),
    nn.Flatten(0): lambda x: x.reshape(24),
    nn.Flatten(0, 1): lambda x: x.reshape(12, 2),
    nn.Flatten(-2): lambda x: x.reshape(4, 6),
    nn.Flatten(1, 1): lambda x: x,
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("module", ACTIVATIONS, ids=repr)
def test_modules_without_parameters(rng, module):
    x = rng.standard_normal((4, 3, 2))
    out = module(minigrad.tensor(x))
    expected = ACTIVATIONS[module](x)
    assert out.shape == expected.shape
    np.testing.assert_allclose(out.data, expected, rtol=1e-12, atol=1e-14)
    minigrad.assert_gradients(module, x, order=1)
    assert repr(copy.deepcopy(module)) == repr(module)
    assert module.state_dict() == {}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 2), (3, 4)),
        (nn.GRU(4, 2), (3, 4)),
        (nn.LSTMCell(4, 2), (3, 4)),
        (nn.BatchNorm1d(4), (3, 4)),
        (nn.GroupNorm(2, 4), (3, 4)),
        (nn.Conv1d(3, 2, 2), (3, 4)),
        (nn.MultiHeadAttention(4, 2), (3, 4)),
        (nn.Flatten(), (3, 2, 2)),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_layer_takes_lists_of_numbers(layer, shape, dtype, rng):
    x = rng.standard_normal(shape).astype(dtype)
    layer = copy.deepcopy(layer).astype(dtype)
    found, right = layer(x.tolist()), layer(minigrad.Tensor(x))
    if isinstance(right, tuple):  # the other one is the last state
        found, right = found[0], right[0]
    digits = np.float32 if isinstance(layer, nn.Flatten) else dtype  # it has no dtype
    np.testing.assert_array_equal(minigrad.Tensor(found).data, right.data.astype(digits))


@pytest.mark.parametrize(
    "layer",
    [nn.GRU(4, 2), nn.LSTMCell(4, 2), nn.BatchNorm1d(4), nn.GroupNorm(2, 4)],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("x", ["text", 3, {"x": [1.0]}, nn.ReLU()], ids=str)
def test_what_is_no_array_is_refused_by_name(layer, x):
    name = type(layer).__name__
    with pytest.raises(TypeError, match=f"^{name}: x is a Tensor, an array or a list of numbers"):
        layer(x)


def test_each_input_of_an_attention_is_refused_by_its_name():
    x = minigrad.ones(3, 4)
    with pytest.raises(TypeError, match=r"^MultiHeadAttention: key is a Tensor.*, not 'text'$"):
        nn.MultiHeadAttention(4, 2)(x, "text")


def test_identity_gives_back_its_input():
    x = minigrad.ones((2,))
    assert nn.Identity()(x) is x


def test_a_tensor_flattens_the_axes_that_are_asked_for():
    x = minigrad.ones(2, 3, 4)
    assert x.flatten().shape == (24,)
    assert x.flatten(1).shape == (2, 12)
    assert x.flatten(0, 1).shape == (6, 4)
    assert x.flatten(start_dim=-1).shape == (2, 3, 4)
    assert minigrad.tensor(3.0).flatten().shape == (1,)


def test_flatten_of_no_rows_keeps_its_shape():
    assert Flatten()(minigrad.ones((0, 3, 2))).shape == (0, 6)


@pytest.mark.parametrize(("layer", "message"), [(Flatten(2, 1), "comes after"), (Flatten(3), "3")])
def test_flatten_of_axes_that_are_not_there_is_an_error(layer, message):
    with pytest.raises(ValueError, match=message):
        layer(minigrad.ones((2, 2, 2)))


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_a_softplus_bends_with_a_positive_beta(beta):
    with pytest.raises(ValueError, match="beta must be positive"):
        nn.Softplus(beta)


@pytest.mark.parametrize(
    ("make", "message"),
    [(nn.ELU, "ELU: alpha must"), (nn.LeakyReLU, "LeakyReLU: negative_slope must")],
)
def test_an_option_of_an_activation_is_a_number(make, message):
    with pytest.raises(TypeError, match=f"^{message} be a number, not 'a'"):
        make("a")
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=rf"^{message} be in \(-inf, inf\), not {value}"):
            make(value)


def test_an_option_is_set_when_a_module_is_made_and_not_when_it_is_called(rng):
    x, target = rng.standard_normal((2, 3)), np.array([0, 1])
    for module, operands, option in (
        (nn.Softmax(), [x], {"axis": 0}),
        (nn.GELU(), [x], {"approximate": "tanh"}),
        (nn.CrossEntropyLoss(), [x, target], {"ignore_index": 0}),
        (nn.MSELoss(), [x, x], {"reduction": "sum"}),
    ):
        (name,) = option
        with pytest.raises(TypeError, match=f"{type(module).__name__}: .* argument '{name}'"):
            module(*operands, **option)


# ----------------------------------------------------------------------------------------------
# Embedding
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,)])
def test_an_embedding_gives_the_rows_of_its_weight(rng, shape):
    layer = Embedding(5, 3, rng=rng)
    indices = rng.integers(0, 5, shape)
    for given in (indices, minigrad.Tensor(indices)):
        out = layer(given)
        assert out.shape == (*shape, 3)
        assert np.array_equal(out.data, layer.weight.data[indices])


def test_the_gradient_of_a_row_adds_up_over_its_places(rng):
    layer = Embedding(5, 3, dtype=np.float64, rng=rng)
    indices = np.array([[1, 4], [1, 1]])
    g = rng.standard_normal((2, 2, 3))
    layer(indices).backward(g)
    expected = np.zeros((5, 3))
    expected[1] = g[0, 0] + g[1, 0] + g[1, 1]
    expected[4] = g[0, 1]
    np.testing.assert_allclose(layer.weight.grad.data, expected, rtol=1e-15)
    minigrad.assert_gradients(layer, indices)


def test_the_index_of_padding_may_be_a_narrow_integer():
    layer = Embedding(400, 2, np.uint8(1))
    assert repr(layer.padding_idx) == "1"


@pytest.mark.parametrize("padding_idx", [2, -3])
def test_padding_begins_at_zero_and_gets_no_gradient(rng, padding_idx):
    layer = Embedding(5, 3, padding_idx, rng=rng)
    assert layer.padding_idx == 2
    assert np.array_equal(np.flatnonzero(~layer.weight.data.any(axis=1)), [2])
    layer(np.array([0, 2, 2, 4])).sum().backward()
    assert layer.weight.grad.data.sum(axis=1).tolist() == [3, 0, 0, 0, 3]


def test_an_embedding_begins_standard_normal(rng):
    layer = Embedding(300, 200, rng=rng)
    assert (layer.num_embeddings, layer.embedding_dim) == (300, 200)
    assert layer.weight.dtype == np.float32
    values = layer.weight.data.astype(np.float64)
    assert abs(values.mean()) < 4 / math.sqrt(values.size)  # a draw of a fixed seed
    assert values.var() == pytest.approx(1, rel=0.02)  # whose own deviation is 0.006
    assert (values**4).mean() == pytest.approx(3, rel=0.1)  # 1.8 for a uniform one


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 3), ValueError, "num_embeddings must be a positive integer, not 0"),
        ((5, 2.0), ValueError, "embedding_dim must be a positive integer, not 2.0"),
        ((5, 3, 1.5), TypeError, "Embedding: padding_idx is an integer, not 1.5"),
        ((5, 3, 5), ValueError, "padding_idx = 5, but there are 5 rows"),
        ((5, 3, -6), ValueError, "padding_idx = -6, but there are 5 rows"),
    ],
)
def test_embeddings_that_cannot_be_made(arguments, error, message):
    with pytest.raises(error, match=message):
        Embedding(*arguments)


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0, 5], IndexError, "there are 5 rows, 0 to 4"),
        ([-1, 0], IndexError, "from -1 to 0"),
        ([0.0, 1.0], TypeError, "integers"),
    ],
)
def test_indices_without_a_row_are_errors(indices, error, message):
    with pytest.raises(error, match=message):
        Embedding(5, 3)(np.array(indices))


# ----------------------------------------------------------------------------------------------
# LayerNorm, RMSNorm
# ----------------------------------------------------------------------------------------------


def standardised(x, axes, eps):
    deviation = x - x.mean(axes, keepdims=True)
    return deviation / np.sqrt((deviation**2).mean(axes, keepdims=True) + eps)


def divided_by_rms(x, axes, eps):
    eps = np.finfo(x.dtype).eps if eps is None else eps
    return x / np.sqrt((x**2).mean(axes, keepdims=True) + eps)


@pytest.mark.parametrize(
    ("sizes", "axes", "eps"), [(4, (-1,), 1e-5), ((3, 4), (-2, -1), 0.5), ([4], (-1,), 1e-5)]
)
@pytest.mark.parametrize(
    ("norm", "formula"), [(LayerNorm, standardised), (RMSNorm, divided_by_rms)]
)
def test_norms(rng, norm, formula, sizes, axes, eps):
    layer = scatter(norm(sizes, eps, dtype=np.float64), rng)
    x = rng.standard_normal((2, 3, 4))
    expected = formula(x, axes, eps) * layer.weight.data
    if norm is LayerNorm:
        expected = expected + layer.bias.data
    np.testing.assert_allclose(layer(minigrad.tensor(x)).data, expected, rtol=1e-12)
    if not isinstance(sizes, list):
        minigrad.assert_gradients(layer, x, order=1)


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_norms_begin_by_normalising_only(rng, norm):
    x = minigrad.tensor(rng.standard_normal((2, 3, 4)).astype(np.float32))
    first, bare = norm(4), norm(4, elementwise_affine=False)
    assert np.array_equal(first(x).data, bare(x).data)
    assert first(x).dtype == np.float32
    assert list(bare.named_parameters()) == []


def test_the_smallest_eps_of_rms_norm_is_that_of_the_dtype():
    x = minigrad.tensor(np.array([1e-8, 1e-8]))
    expected = 1e-8 / math.sqrt(1e-16 + 2**-52)
    assert RMSNorm(2, dtype=np.float64)(x).tolist() == pytest.approx([expected] * 2, rel=1e-12)
    out = RMSNorm(2)(minigrad.tensor([1e-8, 1e-8]))
    assert out.tolist() == pytest.approx([1e-8 / math.sqrt(1e-16 + 2**-23)] * 2, rel=1e-6)


def test_a_layer_norm_may_have_a_weight_alone():
    assert list(LayerNorm(3, bias=False).state_dict()) == ["weight"]


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "must be a positive integer, not 0"),
        (((3, 2.0),), "must be a positive integer, not 2.0"),
        (((),), "must name at least one axis"),
        ((3, -1e-5), r"eps must be in \[0, inf\), not -1e-05"),
        ((3, math.nan), "not nan"),
    ],
)
def test_norms_that_cannot_be_made(norm, arguments, message):
    with pytest.raises(ValueError, match=message):
        norm(*arguments)


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_a_norm_of_another_shape_is_an_error(norm):
    with pytest.raises(ValueError, match=r"\(2, 4\) does not end in \(3,\)"):
        norm(3)(minigrad.ones((2, 4)))


@pytest.mark.parametrize("norm", [minigrad.layer_norm, minigrad.rms_norm])
def test_a_norm_without_its_sizes_says_so(norm):
    with pytest.raises(TypeError, match=r"normalized_shape is the size of .* not array"):
        norm(minigrad.ones(2, 3), minigrad.ones(3))


# ----------------------------------------------------------------------------------------------
# What all layers with parameters do
# ----------------------------------------------------------------------------------------------

X = np.random.default_rng(7).standard_normal((2, 3, 4))
LAYERS = {
    "Linear(4, 2)  # 10 parameters": (lambda **options: Linear(4, 2, **options), X),
    "Embedding(5, 3)  # 15 parameters": (lambda **o: Embedding(5, 3, **o), np.array([1, 4])),
    "Embedding(5, 3, padding_idx=0)  # 15 parameters": (
        lambda **options: Embedding(5, 3, -5, **options),
        np.array([0, 4]),
    ),
    "LayerNorm(4, eps=1e-05)  # 8 parameters": (lambda rng, **o: LayerNorm(4, **o), X),
    "LayerNorm((3, 4), eps=0.1, bias=False)  # 12 parameters": (
        lambda rng, **options: LayerNorm((3, 4), 0.1, bias=False, **options),
        X,
    ),
    "RMSNorm(4, eps=None)  # 4 parameters": (lambda rng, **o: RMSNorm(4, **o), X),
}


@pytest.mark.parametrize("looks", LAYERS)
def test_layers_are_reproducible_printed_copied_saved_and_of_one_dtype(looks):
    make, x = LAYERS[looks]
    x = minigrad.Tensor(x)
    layer = make(rng=np.random.default_rng(1), dtype=np.float64)
    assert repr(layer) == looks
    expected = layer(x).data
    assert expected.dtype == np.float64
    assert np.array_equal(make(rng=np.random.default_rng(1), dtype=np.float64)(x).data, expected)
    twin, other = copy.deepcopy(layer), make(rng=None, dtype=np.float64)
    assert np.array_equal(twin(x).data, expected)
    scatter(layer, np.random.default_rng(2))
    assert np.array_equal(twin(x).data, expected)
    other.load_state_dict(layer.state_dict())
    assert np.array_equal(other(x).data, layer(x).data)
    assert not np.array_equal(other(x).data, expected)


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_repr_of_a_norm_without_parameters(norm):
    looks = f"{norm.__name__}(4, eps=0.5, elementwise_affine=False)"
    assert repr(norm(4, 0.5, elementwise_affine=False)) == looks


# ----------------------------------------------------------------------------------------------
# Dropout
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_the_share_p_and_scales_the_rest(rng, p):
    x = 1 + np.arange(100_000, dtype=np.float64)
    out = Dropout(p, rng=rng)(minigrad.tensor(x)).data
    kept = out != 0
    np.testing.assert_allclose(out[kept], x[kept] / (1 - p), rtol=1e-6)
    deviation = math.sqrt(p * (1 - p) / x.size)
    assert abs(kept.mean() - (1 - p)) < 4 * deviation  # a draw of a fixed seed
    neighbours = np.corrcoef(kept[:-1], kept[1:])[0, 1]
    assert abs(neighbours) < 4 / math.sqrt(x.size)  # independent, up to chance


def test_the_gradient_of_dropout_goes_where_the_values_went(rng):
    x = minigrad.ones((1000,), dtype=np.float64, requires_grad=True)
    out = Dropout(0.25, rng=rng)(x)
    out.sum().backward()
    np.testing.assert_allclose(x.grad.data, out.data, rtol=1e-15)
    assert 0 < (x.grad.data == 0).sum() < 1000


def test_dropout_in_evaluation_gives_back_its_input(rng):
    layer = Dropout(0.5, rng=rng).eval()
    x = minigrad.ones((5,))
    state = rng.bit_generator.state
    assert layer(x) is x
    assert rng.bit_generator.state == state


def test_dropout_of_nothing_and_of_everything():
    x = minigrad.ones((50,))
    assert Dropout(0.0)(x) is x
    assert (Dropout(1.0)(x).data == 0).all()
    assert Dropout(1)(x).dtype == np.float32


def test_equal_generators_drop_equally_and_calls_differ():
    x = minigrad.ones((100,))
    one, two = (Dropout(0.5, rng=np.random.default_rng(3)) for _ in range(2))
    first, second = one(x).data, one(x).data
    assert np.array_equal(first, two(x).data)
    assert not np.array_equal(first, second)


def test_dropout_follows_manual_seed():
    x = minigrad.ones((100,))
    minigrad.manual_seed(7)
    first = Dropout(0.5)(x).data
    minigrad.manual_seed(7)
    assert np.array_equal(Dropout(0.5)(x).data, first)


def test_dropout_with_a_numpy_probability_keeps_float32():
    assert Dropout(np.float64(0.5))(minigrad.ones((4,))).dtype == np.float32


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_a_dropout_that_is_no_probability_is_an_error(p):
    with pytest.raises(ValueError, match="p is a probability"):
        Dropout(p)


@pytest.mark.parametrize("dropout", [None, ""])
def test_the_dropout_of_an_mlp_is_a_probability(dropout):
    with pytest.raises(TypeError, match="MLP: dropout is a probability"):
        nn.MLP((2, 3, 1), dropout=dropout)


@pytest.mark.parametrize("beta", [True, np.ones(2), "1"])
def test_what_is_above_0_is_a_number(beta):
    with pytest.raises(TypeError, match="must be a number"):
        nn.Softplus(beta=beta)


def test_sizes_and_options_of_numpy_are_numbers_of_python():
    assert nn.LSTM(3, np.uint8(100)).weight_ih_l0.shape == (400, 3)
    assert nn.Embedding(np.uint16(50257), 2, padding_idx=3).weight.shape == (50257, 2)
    optimizer = minigrad.optim.AdamW([nn.Parameter(np.ones(1))], betas=(np.float16(0.9), 0.999))
    assert type(optimizer.param_groups[0]["betas"][0]) is float
    scheduler = minigrad.optim.StepLR(optimizer, np.uint8(100))
    assert scheduler.lr(300, 1.0) == pytest.approx(1e-3)
    assert "np." not in repr(nn.MaxPool2d(np.uint8(3)))
