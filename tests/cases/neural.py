"""Normalisation, attention and dropout."""

import math

import numpy as np

from tests.cases.case import INF, MASK, Case, fixed, narrow, normal, softmax


def layer_norm(x, normalized_shape, weight=1.0, bias=0.0, eps=1e-5):
    axes = tuple(range(x.ndim - np.size(normalized_shape), x.ndim))
    centred = x - np.mean(x, axis=axes, keepdims=True)
    return centred / np.sqrt(np.var(x, axis=axes, keepdims=True) + eps) * weight + bias


def rms_norm(x, normalized_shape, weight=1.0, eps=None):
    axes = tuple(range(x.ndim - np.size(normalized_shape), x.ndim))
    eps = np.finfo(np.float64).eps if eps is None else eps
    return x / np.sqrt(np.mean(np.square(x), axis=axes, keepdims=True) + eps) * weight


def rope(x, cos, sin):
    """One pair of numbers after the other, as a complex number that is turned."""
    half = x.shape[-1] // 2
    pairs = [(x[..., i] + 1j * x[..., i + half]) for i in range(half)]
    cos, sin = (np.broadcast_to(y, (*x.shape[:-1], half)) for y in (cos, sin))
    turned = [pair * (cos[..., i] + 1j * sin[..., i]) for i, pair in enumerate(pairs)]
    return np.stack([*(z.real for z in turned), *(z.imag for z in turned)], -1)


def dropout(x, p, training=True, *, rng=None):
    if not training or p == 0:
        return x
    bits = rng.integers(0, 2**64 - 1, (x.size + 3) // 4, np.uint64, endpoint=True)
    words = [int(b) >> shift & 0xFFFF for b in bits for shift in (0, 16, 32, 48)][: x.size]
    threshold = math.floor(65536 * p + rng.random())
    keep = np.reshape([word >= threshold for word in words], x.shape)
    return np.where(keep, x / max(1 - p, 1e-9), 0)


def seeded(f, *operands, **options):
    """Each with a generator of its own, which draw the same numbers."""
    return f(*operands, rng=np.random.default_rng(7), **options)


def attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
    enable_gqa=False, *, causal_offset=0, rng=None,
):  # fmt: skip
    """One query after the other, among the keys that it may attend to."""
    if enable_gqa:
        heads = range(query.shape[-3])
        key, value = (
            np.stack([x[..., h * x.shape[-3] // len(heads), :, :] for h in heads], -3)
            for x in (key, value)
        )
    leading = np.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    queries, keys = query.shape[-2], key.shape[-2]
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    weights = np.zeros((*leading, queries, keys))
    mask = np.zeros(weights.shape) if attn_mask is None else np.asarray(attn_mask)
    if mask.dtype == bool:
        mask = np.where(mask, 0.0, -INF)
    mask = np.broadcast_to(mask, weights.shape)
    query, key, value = (np.broadcast_to(x, leading + x.shape[-2:]) for x in (query, key, value))
    for where in np.ndindex(leading):
        for i in range(queries):
            seen = [
                j
                for j in range(keys)
                if mask[where][i, j] > -INF and (j <= i + causal_offset or not is_causal)
            ]
            if seen:
                scores = [scale * query[where][i] @ key[where][j] + mask[where][i, j] for j in seen]
                weights[where][i, seen] = softmax(np.array(scores))
    return np.matmul(dropout(weights, dropout_p, rng=rng), value)


L, S = 2, 3
QKV = [(L, 2), (S, 2), (S, 1)]
HALF_MASKED = [[0.5, -INF, -1.0], [-INF, 0.0, 0.3]]
GROUPED = {"enable_gqa": True}
WHOLLY_MASKED = np.array([[True, False, True], [False, False, False]])

CASES = [
    *[
        Case(name, make, reference, {"normalized_shape": sizes, **options}, names, note=note)
        for name, reference in [("layer_norm", layer_norm), ("rms_norm", rms_norm)]
        for note, make, sizes, names, options in [
            ("", normal((2, 3)), (3,), ("x",), {}),
            ("int", normal((2, 3)), 3, ("x",), {}),
            ("list", normal((2, 3)), [3], ("x",), {}),
            ("vector", normal((4,)), 4, ("x",), {}),
            ("two axes", normal((2, 2, 3)), (2, 3), ("x",), {}),
            ("weight", normal((2, 3), (3,)), 3, ("x", "weight"), {}),
            ("weight, two axes", normal((2, 2, 3), (2, 3)), (2, 3), ("x", "weight"), {}),
            ("eps", normal((2, 3), (3,)), 3, ("x", "weight"), {"eps": 0.5}),
            ("rows of one", normal((2, 1), (1,)), 1, ("x", "weight"), {"eps": 0.1}),
            ("no rows", normal((0, 3), (3,)), 3, ("x", "weight"), {}),
        ]
    ],
    *[
        Case(
            "layer_norm",
            normal(x, *parameters),
            layer_norm,
            {"normalized_shape": sizes},
            names,
            note=note,
        )
        for note, x, sizes, parameters, names in [
            ("bias", (2, 3), 3, [(3,)], ("x", "bias")),
            ("weight and bias", (2, 3), 3, [(3,), (3,)], ("x", "weight", "bias")),
            ("all, two axes", (2, 2, 2), (2, 2), [(2, 2)] * 2, ("x", "weight", "bias")),
            ("all, three leading axes", (1, 2, 1, 3), 3, [(3,)] * 2, ("x", "weight", "bias")),
        ]
    ],
    Case(
        "layer_norm",
        fixed([[2.0, 2.0, 2.0], [1.0, 2.0, 4.0]]),
        layer_norm,
        {"normalized_shape": 3, "eps": 0.1},
        note="a constant row",
    ),
    Case(
        "rms_norm",
        fixed([[0.0, 0.0, 0.0], [1.0, 2.0, 4.0]]),
        rms_norm,
        {"normalized_shape": 3, "eps": 0.1},
        note="a row of zeros",
    ),
    *[
        Case(
            name,
            fixed([[1, 2, 4]]),
            narrow(reference),
            {"normalized_shape": 3, "eps": 0.1},
            note="integers give float32",
            order=0,
        )
        for name, reference in [("layer_norm", layer_norm), ("rms_norm", rms_norm)]
    ],
    *[
        Case("rope", normal(shape), rope, {"cos": np.cos(angles), "sin": np.sin(angles)}, note=note)
        for note, shape, angles in [
            ("", (2, 3, 4), np.arange(6.0).reshape(3, 2)),
            ("one head", (3, 4), np.arange(6.0).reshape(3, 2)),
            ("one position", (1, 2, 1, 4), np.array([[0.5, 2.0]])),
            ("angles of each sequence", (2, 1, 3, 2), np.arange(6.0).reshape(2, 1, 3, 1)),
            ("one angle", (3, 4), np.array([0.3])),
            ("three leading axes", (2, 1, 2, 3, 2), np.arange(6.0).reshape(1, 2, 3, 1)),
            ("nothing", (0, 4), np.zeros((0, 2))),
        ]
    ],
    *[
        Case("scaled_dot_product_attention", normal(*shapes), attention, options, note=note)
        for note, shapes, options in [
            ("", QKV, {}),
            ("batch", [(2, L, 2), (2, S, 2), (2, S, 2)], {}),
            ("batch and heads", [(2, 1, L, 2), (2, 1, S, 2), (2, 1, S, 1)], {}),
            ("broadcast", [(2, 1, L, 2), (2, S, 2), (1, S, 1)], {}),
            ("broadcast value", [(L, 2), (S, 2), (2, S, 1)], {}),
            ("scale", QKV, {"scale": 0.3}),
            ("causal", [(3, 2), (3, 2), (3, 2)], {"is_causal": True}),
            ("causal, more keys", QKV, {"is_causal": True}),
            ("causal, more queries", [(3, 2), (2, 2), (2, 2)], {"is_causal": True}),
            ("boolean mask", QKV, {"attn_mask": MASK}),
            ("mask of keys", [(2, L, 2), (2, S, 2), (2, S, 1)], {"attn_mask": MASK[:, None]}),
            ("boolean row", QKV, {"attn_mask": MASK[0]}),
            ("wholly masked", QKV, {"attn_mask": WHOLLY_MASKED}),
            ("plain mask", QKV, {"attn_mask": np.float32([[0.5, -1, 2], [0, 1, -2]])}),
            ("plain mask, -inf", QKV, {"attn_mask": np.array(HALF_MASKED)}),
            ("plain mask, wholly -inf", QKV, {"attn_mask": np.where(WHOLLY_MASKED, 0.5, -INF)}),
            ("no queries", [(0, 2), (S, 2), (S, 1)], {}),
            ("one key", [(L, 2), (1, 2), (1, 2)], {}),
            ("causal offset", [(2, 2), (4, 2), (4, 1)], {"is_causal": True, "causal_offset": 1}),
            ("beyond all keys", QKV, {"is_causal": True, "causal_offset": 9}),
            ("three leading axes", [(2, 1, 2, L, 2), (2, 1, 1, S, 2), (1, 2, S, 1)], {}),
            ("groups", [(4, L, 2), (2, S, 2), (2, S, 1)], GROUPED),
            ("other groups of values", [(4, L, 2), (2, S, 2), (1, S, 1)], GROUPED),
            ("groups, mask", [(4, L, 2), (2, S, 2), (2, S, 1)], GROUPED | {"attn_mask": MASK}),
            ("groups, one query", [(2, 4, 1, 2), (2, 2, S, 2), (1, 2, S, 1)], GROUPED),
            (
                "groups, causal, three leading axes",
                [(2, 1, 4, L, 2), (2, 1, 2, S, 2), (2, S, 1)],
                GROUPED | {"is_causal": True, "causal_offset": 1},
            ),
        ]
    ],
    Case(
        "scaled_dot_product_attention",
        normal(*QKV, (L, S)),
        attention,
        note="mask of floats",
    ),
    Case(
        "scaled_dot_product_attention",
        normal((2, L, 2), (2, S, 2), (2, S, 1), (2, 1, S)),
        attention,
        note="broadcast mask of floats",
    ),
    Case(
        "scaled_dot_product_attention",
        normal(*QKV),
        attention,
        {"dropout_p": 0.4},
        function=seeded,
        note="dropout",
    ),
    Case(
        "scaled_dot_product_attention",
        normal(*QKV),
        attention,
        {"dropout_p": 0.4, "attn_mask": MASK},
        function=seeded,
        note="dropout and mask",
    ),
    Case(
        "scaled_dot_product_attention",
        normal((4, L, 2), (2, S, 2), (2, S, 1)),
        attention,
        {"dropout_p": 0.4, "enable_gqa": True},
        function=seeded,
        note="dropout and groups",
    ),
    Case("dropout", normal((4, 3)), dropout, {"p": 0.4}, function=seeded),
    Case("dropout", normal((4, 3)), dropout, {"p": 0.0}, function=seeded),
    Case("dropout", normal((4, 3)), dropout, {"p": 1.0}, function=seeded),
    Case("dropout", normal((3,)), dropout, {"p": 0.4, "training": False}, function=seeded),
]
