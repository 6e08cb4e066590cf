"""MultiHeadAttention and TransformerBlock: values, gradients, masks, causality, dropout."""

import copy
import math
from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose

import lora
import minigrad
from minigrad import grad, nn
from minigrad.nn import MultiHeadAttention, Sequential, TransformerBlock
from tests.minigrad.nn.test_layers import scatter, standardised

full = partial(pytest.param, marks=pytest.mark.full)


def attention(embed_dim=4, num_heads=2, *arguments, **options):
    """An attention in float64 with random weights and biases."""
    layer = MultiHeadAttention(embed_dim, num_heads, *arguments, dtype=np.float64, **options)
    return scatter(layer, np.random.default_rng(1))


def affine(linear, x):
    y = x @ linear.weight.data.T
    return y if linear.bias is None else y + linear.bias.data


def by_hand(layer, query, key, value, added=0.0):
    """One sequence, head by head; `added` goes to the scores, for each head or for all."""
    q, k, v = affine(layer.q_proj, query), affine(layer.k_proj, key), affine(layer.v_proj, value)
    added = np.broadcast_to(added, (layer.num_heads, len(query), len(key)))
    d = layer.embed_dim // layer.num_heads
    heads = []
    for h in range(layer.num_heads):
        own = slice(h * d, (h + 1) * d)
        e = np.exp(q[:, own] @ k[:, own].T / math.sqrt(d) + added[h])
        heads.append(e / e.sum(1, keepdims=True) @ v[:, own])
    return affine(layer.out_proj, np.concatenate(heads, axis=1))


def forbidden(allowed):
    return np.where(allowed, 0.0, -np.inf)


# ----------------------------------------------------------------------------------------------
# Attention
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("leading", [(), (2,), (2, 3), (0,)])
def test_self_attention_is_what_the_heads_say_by_hand(rng, leading, heads, bias):
    layer = attention(4, heads, bias)
    x = rng.standard_normal((*leading, 5, 4))
    out = layer(minigrad.tensor(x))
    assert out.shape == x.shape
    for i in np.ndindex(leading):
        assert_allclose(out.data[i], by_hand(layer, x[i], x[i], x[i]), rtol=1e-10)


@pytest.mark.parametrize("sizes", [(None, None), (3, None), (None, 5), (3, 5)])
def test_cross_attention_takes_keys_and_values_of_another_length_and_size(rng, sizes):
    layer = attention(4, 2, True, 0.0, *sizes)
    query = rng.standard_normal((2, 3, 4))
    key, value = (rng.standard_normal((2, 6, size or 4)) for size in sizes)
    out = layer(*map(minigrad.tensor, (query, key, value)))
    for i in range(2):
        assert_allclose(out.data[i], by_hand(layer, query[i], key[i], value[i]), rtol=1e-10)


def test_a_missing_value_is_the_key_and_a_missing_key_the_query(rng):
    layer = attention()
    query, key = (minigrad.tensor(rng.standard_normal((2, n, 4))) for n in (3, 5))
    assert np.array_equal(layer(query, key).data, layer(query, key, key).data)
    assert np.array_equal(layer(query).data, layer(query, query, query).data)


def test_one_set_of_keys_serves_a_batch_of_queries(rng):
    layer = attention()
    query, key = rng.standard_normal((2, 3, 4)), rng.standard_normal((5, 4))
    out = layer(minigrad.tensor(query), minigrad.tensor(key))
    for i in range(2):
        assert_allclose(out.data[i], by_hand(layer, query[i], key, key), rtol=1e-10)


def test_a_mask_has_as_many_axes_as_the_scores_whoever_brings_them(rng):
    layer = attention()
    query, key = rng.standard_normal((3, 4)), rng.standard_normal((2, 5, 4))
    mask = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], bool)[:, None, None]
    out = layer(minigrad.tensor(query), minigrad.tensor(key), attn_mask=mask)
    for i, length in enumerate((4, 2)):
        keys = key[i, :length]
        assert_allclose(out.data[i], by_hand(layer, query, keys, keys), rtol=1e-10)
    with pytest.raises(ValueError, match="all 4 axes"):
        layer(minigrad.tensor(query), minigrad.tensor(key), attn_mask=mask[:, 0])


MASKS = {  # of a batch of 2, 2 heads, 3 queries and 4 keys
    "for all": np.array([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 1]], bool),
    "for each of the batch": np.random.default_rng(1).random((2, 1, 3, 4)) < 0.6,
    "of padding": np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)[:, None, None],
    "for each head": np.random.default_rng(3).random((1, 2, 3, 4)) < 0.6,
    "of its own for everything": np.random.default_rng(4).random((2, 2, 3, 4)) < 0.6,
}


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("which", MASKS)
def test_masks_say_where_attention_may_go(rng, which, is_causal):
    layer = attention()
    query, key = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 4, 4))
    allowed = MASKS[which] | np.eye(3, 4, dtype=bool)  # so that nobody has nothing
    bias = rng.standard_normal(allowed.shape)
    q, k = minigrad.tensor(query), minigrad.tensor(key)
    past = np.tri(3, 4, dtype=bool) if is_causal else np.True_
    for mask in (allowed, minigrad.Tensor(allowed), bias, np.where(allowed, bias, -np.inf)):
        out = layer(q, k, attn_mask=mask, is_causal=is_causal)
        values = mask.data if isinstance(mask, minigrad.Tensor) else mask
        added = forbidden(values) if values.dtype == bool else values
        added = np.broadcast_to(added + forbidden(past), (2, 2, 3, 4))
        for i in range(2):
            assert_allclose(out.data[i], by_hand(layer, query[i], key[i], key[i], added[i]))


@pytest.mark.parametrize("mask", [None, np.ones((5, 5), bool)])
def test_is_causal_is_true_or_false(rng, mask):
    x = minigrad.tensor(rng.standard_normal((5, 4)))
    with pytest.raises(TypeError, match="is_causal must be True or False, not 'no'"):
        attention()(x, attn_mask=mask, is_causal="no")


def test_a_causal_attention_looks_back_only(rng):
    layer = attention()
    x = rng.standard_normal((5, 4))
    out = layer(minigrad.tensor(x), is_causal=True)
    for t in range(5):
        seen = x[: t + 1]
        assert_allclose(out.data[t], by_hand(layer, seen, seen, seen)[-1], rtol=1e-10)


def test_padding_does_not_matter(rng):
    layer = attention()
    x = rng.standard_normal((1, 5, 4))
    mask = np.array([1, 1, 1, 0, 0], bool)[None, None, None]
    out = layer(minigrad.tensor(x), attn_mask=mask)
    assert_allclose(out.data[0, :3], by_hand(layer, x[0, :3], x[0, :3], x[0, :3]), rtol=1e-10)
    x[0, 3:] = 1e6
    assert np.array_equal(layer(minigrad.tensor(x), attn_mask=mask).data[0, :3], out.data[0, :3])


@pytest.mark.parametrize("is_causal", [False, True])
def test_who_may_attend_to_nothing_gets_the_bias(rng, is_causal):
    layer = attention()
    x = minigrad.Tensor(rng.standard_normal((3, 4)), requires_grad=True)
    mask = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 1]], bool)
    out = layer(x, attn_mask=mask, is_causal=is_causal)
    assert_allclose(out.data[1], layer.out_proj.bias.data, rtol=1e-14)
    out.sum().backward()
    assert np.isfinite(x.grad.data).all()
    assert all(np.isfinite(p.grad.data).all() for p in layer.parameters())


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_bias_of_the_scores_can_be_learnt(rng, is_causal):
    layer = attention()
    x = minigrad.tensor(rng.standard_normal((3, 4)))
    report = minigrad.gradcheck(
        lambda mask: layer(x, attn_mask=mask, is_causal=is_causal), rng.standard_normal((2, 3, 3))
    )
    assert report


class Called(nn.Module):
    """A layer that is always called with the same options."""

    def __init__(self, layer, options):
        self.layer = layer
        self.options = options

    def forward(self, x):
        return self.layer(x, **self.options)


def test_a_bias_of_keys_changes_nothing(rng):
    layer = attention()
    x = minigrad.tensor(rng.standard_normal((3, 4)))
    out = layer(x)
    out.backward(rng.standard_normal((3, 4)))
    assert abs(layer.k_proj.bias.grad.data).max() < 1e-14
    layer.k_proj.bias.data = rng.standard_normal(4)
    assert_allclose(layer(x).data, out.data, rtol=1e-12)


CALLS = {
    "self": (attention, (3, 4), {}),
    "causal": (attention, (2, 3, 4), {"is_causal": True}),
    "mask": (attention, (3, 4), {"attn_mask": MASKS["for all"][:, :3]}),
    "bias": (lambda: attention(4, 1, False), (3, 4), {"attn_mask": np.eye(3)}),
}


# The ops are checked to second order in the table, so a quick look at a module is of the first.
@pytest.mark.parametrize(
    ("call", "order"), [("self", 1), ("causal", 1), full("mask", 2), full("bias", 2)]
)
def test_gradients_of_self_attention(rng, call, order):
    make, shape, options = CALLS[call]
    layer = Called(make(), options)
    count = layer.count_parameters(trainable_only=True) + math.prod(shape)
    report = minigrad.gradcheck(layer, rng.standard_normal(shape), order)
    assert report, report
    assert report.others == 0
    assert report.compared == order * count + (order - 1) * math.prod(shape)  # and the cotangent


def test_gradients_of_cross_attention(rng):
    layer = attention(4, 2, True, 0.0, 3, 5)
    xs = [rng.standard_normal(shape) for shape in ((2, 4), (3, 3), (3, 5))]
    report = minigrad.gradcheck(layer, xs, order=1)
    assert report
    assert report.compared > layer.count_parameters(trainable_only=True)


# ----------------------------------------------------------------------------------------------
# What attention refuses
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "embed_dim must be a positive integer, not 0"),
        ((4, 2.0), "num_heads must be a positive integer, not 2.0"),
        ((4, 3), "num_heads = 3 does not divide embed_dim = 4"),
        ((4, 2, True, 1.5), r"dropout is a probability, not 1\.5"),
        ((4, 2, True, 0.0, -1), "kdim must be a positive integer, not -1"),
        ((4, 2, True, 0.0, None, 0), "vdim must be a positive integer, not 0"),
    ],
)
def test_attentions_that_cannot_be_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(*arguments)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(4,)], r"query has shape \(\.\.\., length, 4\), not \(4,\)"),
        ([(3, 5)], r"query has shape .* not \(3, 5\)"),
        ([(3, 4), (3, 4)], r"key has shape \(\.\.\., length, 6\), not \(3, 4\)"),
        ([(3, 4), (3, 6), (3, 4)], r"value has shape \(\.\.\., length, 5\), not \(3, 4\)"),
        ([(3, 4), (3, 6), (2, 5)], "query, key and value have shapes"),
        ([(2, 3, 4), (3, 3, 6), (3, 3, 5)], "do not broadcast"),
        ([(3, 4), (0, 6), (0, 5)], "to attend to"),
    ],
)
def test_sequences_that_do_not_fit_are_errors(shapes, message):
    layer = MultiHeadAttention(4, 2, kdim=6, vdim=5)
    with pytest.raises(ValueError, match=message):
        layer(*map(minigrad.ones, shapes))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (
            np.ones((2, 3, 3), bool),
            ValueError,
            r"all 4 axes .* not \(2, 3, 3\); mask\[\.\.\., None",
        ),
        (np.ones(3, bool), ValueError, r"a mask is \(L, S\), or has all 4 axes"),
        (np.ones((3, 4), bool), ValueError, r"\(3, 4\)"),
        (np.ones((3, 1, 3, 3), bool), ValueError, r"\(3, 1, 3, 3\)"),
        (np.ones((3, 3), int), TypeError, "a mask contains booleans or floats, not int64"),
    ],
)
def test_masks_that_do_not_fit_are_errors(mask, error, message, is_causal):
    # With as many heads as sequences, (batch, L, S) would broadcast, and mean something else.
    with pytest.raises(error, match=message):
        MultiHeadAttention(4, 2)(minigrad.ones((2, 3, 4)), attn_mask=mask, is_causal=is_causal)


def test_a_mask_that_does_not_fit_is_refused_before_anything_is_computed():
    layer = MultiHeadAttention(4, 2)
    del layer.q_proj.weight  # a call of it would fail by itself
    with pytest.raises(ValueError, match=r"\(3, 4\) does not fit scores of shape \(2, 2, 3, 3\)"):
        layer(minigrad.ones((2, 3, 4)), attn_mask=np.ones((3, 4), bool))


def test_splitting_and_joining_heads_copies_nothing(rng):
    layer = MultiHeadAttention(8, 2, rng=rng)
    x = minigrad.tensor(rng.standard_normal((2, 5, 8)).astype(np.float32))
    seen = []
    project = layer.out_proj.forward
    layer.out_proj.forward = lambda joined: seen.append(joined.data) or project(joined)
    layer(x)
    assert seen[0].base is not None
    assert seen[0].flags.c_contiguous


# ----------------------------------------------------------------------------------------------
# First weights, dropout, state
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fans"),
    [
        ({}, (300, 900)),
        ({"kdim": 150}, (300, 300)),
        ({"vdim": 7}, (300, 300)),
        ({"kdim": 150, "vdim": 150}, (300, 300)),
    ],
)
def test_attention_begins_xavier_uniform_with_zero_biases(rng, options, fans):
    layer = MultiHeadAttention(300, 3, **options, rng=rng)
    bound = math.sqrt(6 / sum(fans))
    assert 0.999 * bound < abs(layer.q_proj.weight.data).max() <= bound * (1 + 1e-6)
    for projection in (layer.k_proj, layer.v_proj):
        size = projection.in_features
        bound = math.sqrt(6 / (sum(fans) - 300 + size))
        assert 0.99 * bound < abs(projection.weight.data).max() <= bound * (1 + 1e-6)
    bound = 1 / math.sqrt(300)
    assert 0.999 * bound < abs(layer.out_proj.weight.data).max() <= bound * (1 + 1e-6)
    assert not any(p.data.any() for name, p in layer.named_parameters() if name.endswith("bias"))


def test_attention_without_biases_has_four_parameters():
    names = ["q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight"]
    assert list(MultiHeadAttention(4, 2, bias=False).state_dict()) == names


def test_attention_drops_weights_in_training_only(rng):
    x = minigrad.tensor(rng.standard_normal((3, 4)))
    plain = attention()
    layer = attention(dropout=0.5, rng=np.random.default_rng(5))
    twin = attention(dropout=0.5, rng=np.random.default_rng(5))
    first = layer(x).data
    assert not np.array_equal(first, plain(x).data)
    assert not np.array_equal(first, layer(x).data)
    twin.rng = np.random.default_rng(6)
    layer.rng = np.random.default_rng(6)
    assert np.array_equal(twin(x).data, layer(x).data)
    assert np.array_equal(layer.eval()(x).data, plain(x).data)


def test_the_mean_over_dropped_weights_is_attention_itself(rng):
    layer = attention(dropout=0.25, rng=rng)
    x = minigrad.Tensor(np.broadcast_to(rng.standard_normal((3, 4)), (20_000, 3, 4)))
    draws = layer(x).data
    exact = layer.eval()(x[:1]).data[0]
    assert (abs(draws.mean(axis=0) - exact) < 4 * draws.std(axis=0) / math.sqrt(20_000)).all()


def test_dropping_every_weight_leaves_the_bias():
    layer = attention(dropout=1.0)
    out = layer(minigrad.ones((3, 4), dtype=np.float64))
    assert_allclose(out.data, np.broadcast_to(layer.out_proj.bias.data, (3, 4)), rtol=1e-14)


def test_adapters_find_the_maps_of_an_attention(rng):
    layer = MultiHeadAttention(8, 2, rng=rng)
    model = Sequential(layer)
    x = minigrad.tensor(rng.standard_normal((3, 8)).astype(np.float32))
    before = model(x).data
    report = lora.attach(model, lora.LoRAConfig(rank=2, alpha=4, targets=["q_proj", "v_proj"]))
    assert report.names == ["0.q_proj", "0.v_proj"]
    assert np.array_equal(model(x).data, before)
    model(x).sum().backward()
    assert layer.q_proj.lora_b.grad is not None
    assert layer.k_proj.weight.grad is None


MODULES = {
    "MultiHeadAttention(4, num_heads=2": lambda **o: MultiHeadAttention(4, 2, **o),
    "MultiHeadAttention(4, num_heads=1, kdim=3, vdim=5, dropout=0.1": lambda **o: (
        MultiHeadAttention(4, 1, dropout=0.1, kdim=3, vdim=5, **o)
    ),
    "TransformerBlock(": lambda **o: TransformerBlock(4, 2, norm="rms", bias=False, **o),
    "TransformerBlock(causal=True": lambda **o: TransformerBlock(4, 2, causal=True, **o),
}


@pytest.mark.parametrize("looks", MODULES)
def test_modules_are_reproducible_printed_copied_saved_and_of_one_dtype(rng, looks):
    make = MODULES[looks]
    first = make(rng=np.random.default_rng(1), dtype=np.float64).eval()
    assert repr(first).startswith(looks + ",  #" if looks[-1] != "(" else looks + "  #")
    lengths = (first.kdim, first.vdim) if "kdim" in looks else ()
    xs = [minigrad.tensor(rng.standard_normal((3, size))) for size in (4, *lengths)]
    expected = first(*xs).data
    assert expected.dtype == np.float64
    again = make(rng=np.random.default_rng(1), dtype=np.float64).eval()
    assert np.array_equal(again(*xs).data, expected)
    twin = copy.deepcopy(first)
    scatter(first, rng)
    assert np.array_equal(twin(*xs).data, expected)
    twin.load_state_dict(first.state_dict())
    assert np.array_equal(twin(*xs).data, first(*xs).data)
    assert not np.array_equal(twin(*xs).data, expected)
    single = make(rng=rng)
    assert single(*(x.astype(np.float32) for x in xs)).dtype == np.float32


# ----------------------------------------------------------------------------------------------
# The block
# ----------------------------------------------------------------------------------------------


def block(*arguments, **options):
    made = TransformerBlock(*arguments, dtype=np.float64, **options)
    return scatter(made, np.random.default_rng(1))


def normalised(norm, x):
    if isinstance(norm, nn.RMSNorm):
        return norm.weight.data * x / np.sqrt((x**2).mean(-1, keepdims=True) + 2.0**-52)
    out = standardised(x, -1, 1e-5) * norm.weight.data
    return out if norm.bias is None else out + norm.bias.data


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_block_adds_attention_and_then_an_mlp(rng, norm, bias, causal):
    layer = block(4, 2, 6, causal=causal, norm=norm, bias=bias, activation=minigrad.tanh)
    x = rng.standard_normal((2, 5, 4))
    out = layer(minigrad.tensor(x))
    added = forbidden(np.tri(5, dtype=bool)) if causal else 0.0
    for i in range(2):
        n = normalised(layer.norm1, x[i])
        y = x[i] + by_hand(layer.attn, n, n, n, added)
        up, down = layer.mlp.layers
        expected = y + affine(down, np.tanh(affine(up, normalised(layer.norm2, y))))
        assert_allclose(out.data[i], expected, rtol=1e-10)
    names = list(layer.state_dict())
    assert any("bias" in name for name in names) == bias
    kinds = nn.LayerNorm if norm == "layer" else nn.RMSNorm
    assert isinstance(layer.norm1, kinds)
    assert isinstance(layer.norm2, kinds)


def test_the_mlp_of_a_block_is_four_times_as_wide_and_of_gelus_by_default():
    layer = TransformerBlock(4, 2)
    assert [m.out_features for m in layer.mlp.layers] == [16, 4]
    assert layer.mlp.activation is minigrad.gelu
    assert TransformerBlock(4, 2, 5).mlp.layers[0].out_features == 5
    assert [name for name, _ in layer.named_modules()][1:] == [
        "norm1",
        "attn",
        *(f"attn.{name}_proj" for name in ("q", "k", "v", "out")),
        "norm2",
        "mlp",
        "mlp.layers.0",
        "mlp.layers.1",
        "dropout",
    ]


@pytest.mark.parametrize(
    ("options", "order"), [({"causal": True}, 1), full({"norm": "rms", "bias": False}, 2)]
)
def test_gradients_of_a_block(rng, options, order):
    layer = block(4, 2, 3, **options)
    minigrad.assert_gradients(layer, rng.standard_normal((2, 4)), order=order)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_comes_from_the_future(rng, dtype):
    stack = Sequential(
        *(TransformerBlock(8, 2, causal=True, dtype=dtype, rng=rng) for _ in range(3))
    )
    x = rng.standard_normal((2, 6, 8)).astype(dtype)
    before = stack(minigrad.tensor(x)).data
    for t in range(6):
        other = x.copy()
        other[:, t + 1 :] = 100 * rng.standard_normal(other[:, t + 1 :].shape)
        after = stack(minigrad.tensor(other)).data
        assert np.array_equal(after[:, : t + 1], before[:, : t + 1])
        assert t == 5 or (after[:, t + 1 :] != before[:, t + 1 :]).any()
        inputs = minigrad.Tensor(x, requires_grad=True)
        g = grad(stack(inputs)[:, t].sum(), inputs).data
        assert (g[:, t + 1 :] == 0).all()
        assert (g[:, : t + 1] != 0).all()


def test_a_causal_block_obeys_a_mask_as_well(rng):
    layer = block(4, 2, causal=True)
    x = rng.standard_normal((2, 5, 4))
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 1]], bool)[:, None, None]
    out = layer(minigrad.tensor(x), mask)
    both = np.tri(5, dtype=bool) & mask
    layer.causal = False
    assert_allclose(out.data, layer(minigrad.tensor(x), both).data, rtol=1e-14)
    unmasked = block(4, 2, causal=True)(minigrad.tensor(x))
    assert_allclose(out.data[0], unmasked.data[0], rtol=1e-12)
    assert abs(out.data[1] - unmasked.data[1]).max() > 0.01


def test_a_block_drops_in_training_only_in_four_places(rng):
    layer = block(4, 2, dropout=0.5, rng=np.random.default_rng(5))
    plain = block(4, 2)
    x = minigrad.tensor(rng.standard_normal((3, 4)))
    assert not np.array_equal(layer(x).data, layer(x).data)
    rngs = [layer.attn.rng, layer.mlp.dropout.rng, layer.dropout.rng]
    assert all(generator is rngs[0] for generator in rngs)
    assert [layer.attn.dropout, layer.mlp.dropout.p, layer.dropout.p] == [0.5] * 3
    assert np.array_equal(layer.eval()(x).data, plain(x).data)
    layer.train().dropout.p = 1.0  # nothing is added
    assert np.array_equal(layer(x).data, x.data)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0, 1), {}, ValueError, "d_model must be a positive integer, not 0"),
        ((4, 3), {}, ValueError, "does not divide embed_dim = 4"),
        ((4, 2, 0), {}, ValueError, "must be a positive integer, not 0"),
        ((4, 2), {"dropout": -0.1}, ValueError, r"dropout is a probability, not -0\.1"),
        ((4, 2), {"norm": "batch"}, ValueError, "norm is 'layer' or 'rms', not 'batch'"),
        ((4, 2), {"activation": nn.GELU}, TypeError, r"make one, as in GELU\(\)"),
        ((4, 2), {"causal": "no"}, TypeError, "^TransformerBlock: causal must be True or False"),
        ((4, 2), {"bias": "no"}, TypeError, "^TransformerBlock: bias must be True or False"),
    ],
)
def test_blocks_that_cannot_be_made(arguments, options, error, message):
    with pytest.raises(error, match=message):
        TransformerBlock(*arguments, **options)


# A cache of keys and values


def test_attention_to_a_cache_is_attention_to_all_tokens(rng):
    q, k, v = rng.standard_normal((3, 2, 3, 7, 4)).astype(np.float32)
    expected = minigrad.scaled_dot_product_attention(q, k, v, is_causal=True)
    cache, found = nn.KVCache(2, 3, 7, 4), []
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        keys, values = cache.append(minigrad.tensor(k[:, :, start:stop]), v[:, :, start:stop])
        assert cache.length == stop
        assert np.array_equal(keys.data, k[:, :, :stop])
        assert np.array_equal(values.data, v[:, :, :stop])
        past = np.tri(stop - start, stop, start, dtype=bool)
        found.append(minigrad.scaled_dot_product_attention(q[:, :, start:stop], keys, values, past))
    np.testing.assert_allclose(minigrad.concatenate(found, 2).data, expected, atol=1e-6)
    assert np.shares_memory(keys.data, cache.append(k[:, :, :0], v[:, :, :0])[0].data)


def test_a_truncated_cache_goes_on_from_there(rng):
    k, v = rng.standard_normal((2, 1, 2, 5, 3))
    cache = nn.KVCache(1, 2, 5, 3, np.float64)
    query = minigrad.tensor(k, requires_grad=True)
    saved = minigrad.scaled_dot_product_attention(query, *cache.append(k, v)).sum()
    cache.truncate(2)
    keys, values = cache.append(-k[:, :, :1], -v[:, :, :1])
    assert np.array_equal(keys.data, np.concatenate([k[:, :, :2], -k[:, :, :1]], 2))
    assert np.array_equal(values.data, np.concatenate([v[:, :, :2], -v[:, :, :1]], 2))
    with pytest.raises(RuntimeError, match="memory was overwritten since"):
        saved.backward()
    for length in (-1, 4):
        with pytest.raises(ValueError, match=rf"cannot truncate 3 tokens to {length}"):
            cache.truncate(length)
    cache.truncate(0)
    assert cache.length == 0


def test_a_cache_refuses_what_does_not_fit_and_stays_as_it_is(rng):
    k = rng.standard_normal((1, 2, 3, 4)).astype(np.float32)
    cache = nn.KVCache(1, 2, 5, 4)
    cache.append(k, k)
    before = cache.append(k[:, :, :0], k[:, :, :0])[0].numpy().copy()
    trained = minigrad.tensor(k[:, :, :1], requires_grad=True)
    for error, message, keys, values in (
        (ValueError, "3 tokens and 3 more are 6, but there is memory for 5", k, k),
        (ValueError, r"are \(1, 2, L, 4\) of float32, not \(2, 3, 4\)", k[0], k[0]),
        (ValueError, r"and \(1, 2, 2, 4\)", k[:, :, :1], k[:, :, :2]),
        (ValueError, "of float32, not .* of float64", k[:, :, :1].astype(float), k[:, :, :1]),
        (RuntimeError, r"no gradient flows through a cache.*no_grad", trained, k[:, :, :1]),
        (RuntimeError, r"no gradient flows through a cache.*no_grad", k[:, :, :1], trained),
    ):
        with pytest.raises(error, match=message):
            cache.append(keys, values)
        assert cache.length == 3
    assert np.array_equal(cache.append(k[:, :, :0], k[:, :, :0])[0].data, before)
    with minigrad.no_grad():
        keys, _ = cache.append(trained, trained)
    assert not keys.requires_grad
    with pytest.raises(ValueError, match="KVCache: capacity must be a positive integer, not 0"):
        nn.KVCache(1, 2, 0, 4)


def test_a_mask_that_is_a_number_is_added_to_all_scores(rng):
    query, key, value = (minigrad.randn(2, 3, 4, rng=rng) for _ in range(3))
    attend = partial(minigrad.scaled_dot_product_attention, query, key, value)
    assert_allclose(attend(attn_mask=3.5).data, attend().data, rtol=1e-5)
