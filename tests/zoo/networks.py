"""Wrong VJPs in the library's own table of derivatives: products, layers and losses."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import minigrad
from minigrad import kernels
from minigrad.functional.losses import label_cross_entropy, squared_error
from minigrad.functional.neural import dropped, fused_attention
from minigrad.ops.products import swap_last
from tests.zoo.mutant import (
    Mutant,
    Port,
    derivative_of,
    edited,
    misled,
    replaced,
    spoiled,
    vjp,
    wrong,
    wrong_together,
)

_rng = np.random.default_rng(3)
normal = _rng.standard_normal
cross_entropy_gradient = derivative_of(label_cross_entropy, "logits")


def first(x: Any) -> Any:
    """The first matrix of a stack."""
    return x[(0,) * (x.ndim - 2)]


def inverse(m: Any, x: Any) -> Any:
    """x^-1, which has another name in each of the libraries."""
    return m.inv(x) if m is minigrad else m.linalg.inv(x)


LORA = normal((2, 4)), normal((3, 4)), normal((2, 4)), normal((3, 2))  # x, W, A, B


def lora(x: Any, w: Any, a: Any, b: Any) -> Any:
    """The product with a scale other than 1."""
    return minigrad.lora_linear(x, w, a, b, scale=2.0)


def _lora_port(scale: float) -> Port:
    """x W^T + 2 (x A^T) B^T, where the way back to A and x has another scale."""

    def gradients(scale: float, m: Any, g: Any, x: Any, w: Any, a: Any, b: Any) -> Any:
        d = scale * m.matmul(g, b)
        return (
            m.matmul(g, w) + m.matmul(d, a),
            m.matmul(g.T, x),
            m.matmul(d.T, x),
            2 * m.matmul(g.T, m.matmul(x, a.T)),
        )

    def forward(m: Any, x: Any, w: Any, a: Any, b: Any) -> Any:
        return m.matmul(x, w.T) + 2 * m.matmul(m.matmul(x, a.T), b.T)

    return Port(forward, partial(gradients, 2.0), partial(gradients, scale))


MUTANTS: list[Mutant] = [
    # Products
    vjp(
        "matmul: b is not transposed for the gradient of a",
        "lost transpose",
        minigrad.matmul,
        lambda op: wrong(op, "a", lambda g, b: minigrad.matmul(g, b)),
        normal((3, 3)),
        normal((3, 3)),
        port=Port(
            lambda m, a, b: m.matmul(a, b),
            lambda m, g, a, b: (m.matmul(g, b.T), m.matmul(a.T, g)),
            lambda m, g, a, b: (m.matmul(g, b), m.matmul(a.T, g)),
        ),
    ),
    vjp(
        "matmul: a matrix that serves a whole stack gets the gradient of its first",
        "missing reduction over a broadcast axis",
        minigrad.matmul,
        lambda op: wrong(
            op,
            "b",
            lambda g, a: minigrad.matmul(swap_last(first(a)), first(g)),
        ),
        normal((2, 3, 3)),
        normal((3, 3)),
    ),
    vjp(
        "matmul: the outer product of a row's gradient is transposed",
        "lost transpose",
        minigrad.matmul,
        lambda op: wrong(op, "b", lambda g, a: minigrad.outer(g, a)),
        normal(3),
        normal((3, 3)),
        port=Port(
            lambda m, a, b: m.matmul(a, b),
            lambda m, g, a, b: (m.matmul(b, g), a[:, None] * g),
            lambda m, g, a, b: (m.matmul(b, g), g[:, None] * a),
        ),
    ),
    vjp(
        "linear: the bias is summed over the wrong axis",
        "missing reduction over a broadcast axis",
        minigrad.linear,
        lambda op: wrong(op, "bias", lambda g: minigrad.sum(g, -1)),
        normal((3, 3)),
        normal((3, 3)),
        normal(3),
    ),
    vjp(
        "linear: the gradient of the weight is transposed",
        "lost transpose",
        minigrad.linear,
        lambda op: spoiled(op, "weight", minigrad.transpose),
        normal((4, 3)),
        normal((3, 3)),
    ),
    vjp(
        "inv: not transposed",
        "lost transpose",
        minigrad.inv,
        lambda op: edited(
            derivative_of(op, "a"), ("transposed = swap_last(out)", "transposed = out")
        ),
        normal((3, 3)) + 3 * np.eye(3),
        port=Port(
            inverse,
            lambda m, g, x: -m.matmul(m.matmul(inverse(m, x).T, g), inverse(m, x).T),
            lambda m, g, x: -m.matmul(m.matmul(inverse(m, x), g), inverse(m, x)),
        ),
    ),
    vjp(
        "cholesky: the two triangles do not share the gradient",
        "wrong formula",
        minigrad.cholesky,
        lambda op: edited(derivative_of(op, "a"), ("return symmetric_part(full)", "return full")),
        np.eye(3) + 0.1 * np.ones((3, 3)),
    ),
    # LoRA
    vjp(
        "lora_linear: the scale is dropped on the way back to A and x",
        "dropped scale",
        minigrad.lora_linear,
        lambda op: misled(op, scale=1.0),
        *LORA,
        f=lora,
        port=_lora_port(1.0),
    ),
    vjp(
        "lora_linear: the columns of the gradient of B are swapped",
        "wrong place",
        minigrad.lora_linear,
        lambda op: spoiled(op, "lora_b", lambda gradient: gradient[:, ::-1]),
        *LORA,
        f=lora,
    ),
    vjp(
        "lora_linear: the composition that is replayed lacks the scale",
        "wrong only at second order",
        minigrad.lora_linear,
        lambda op: replaced(
            [op],
            "composition",
            lambda x, w, a, b, bias=None, scale=1.0: (
                minigrad.linear(x, w, bias) + minigrad.linear(minigrad.linear(x, a), b)
            ),
        ),
        *LORA,
        f=lora,
        order=2,
    ),
    # Layers
    vjp(
        "layer_norm: differentiated as rms_norm, without the mean",
        "wrong formula",
        minigrad.layer_norm,
        lambda op: wrong_together(
            op,
            lambda g, needs_input_grad, x, normalized_shape, weight, eps: (
                kernels.normalization.norm_gradients(
                    g,
                    x,
                    x.shape[x.ndim - np.size(normalized_shape) :],
                    weight,
                    eps,
                    False,
                    needs_input_grad,
                )
            ),
        ),
        normal((2, 4)),
        normal(4),
        f=lambda x, weight: minigrad.layer_norm(x, 4, weight),
    ),
    vjp(
        "layer_norm: another eps in the backward pass",
        "wrong option",
        minigrad.layer_norm,
        lambda op: misled(op, eps=1e-2),
        normal((2, 4)),
        f=lambda x: minigrad.layer_norm(x, 4),
    ),
    vjp(
        "rms_norm: the weight gets the mean over two rows, not the sum",
        "mean for sum",
        minigrad.rms_norm,
        lambda op: spoiled(op, "weight", lambda gradient: gradient / 2),
        normal((2, 4)),
        normal(4),
        f=lambda x, weight: minigrad.rms_norm(x, 4, weight),
    ),
    vjp(
        "dropout: other elements are dropped in the backward pass",
        "wrong place",
        dropped,
        lambda op: misled(op, words=lambda words: words[::-1].copy()),
        normal(8),
        f=lambda x: minigrad.dropout(x, 0.5, rng=np.random.default_rng(0)),
    ),
    vjp(
        "scaled_dot_product_attention: the backward pass has no scale",
        "dropped scale",
        fused_attention,
        lambda op: misled(op, scale=1.0),
        normal((3, 4)),
        normal((3, 4)),
        normal((3, 2)),
        f=minigrad.scaled_dot_product_attention,
    ),
    vjp(
        "scaled_dot_product_attention: the causal mask is lost in the backward pass",
        "wrong option",
        fused_attention,
        lambda op: misled(op, offset=None),
        normal((3, 4)),
        normal((3, 4)),
        normal((3, 2)),
        f=lambda q, k, v: minigrad.scaled_dot_product_attention(q, k, v, is_causal=True),
    ),
    # Losses
    vjp(
        "cross_entropy: 1/n is dropped",
        "dropped scale",
        label_cross_entropy,
        lambda op: misled(op, divisor=lambda divisor: divisor and 1.0),
        normal((3, 4)),
        f=lambda x: minigrad.cross_entropy(x, np.array([1, 0, 3])),
    ),
    vjp(
        "cross_entropy: ignored rows count in the mean",
        "wrong formula",
        label_cross_entropy,
        lambda op: wrong(
            op,
            "logits",
            lambda g, logits, labels, weights, smoothing, divisor, residuals: (
                cross_entropy_gradient(
                    g, logits, labels, weights, smoothing, divisor and len(labels), residuals
                )
            ),
        ),
        normal((3, 4)),
        f=lambda x: minigrad.cross_entropy(x, np.array([1, -100, 3])),
    ),
    vjp(
        "mse: the gradient is that of the sum",
        "mean for sum",
        squared_error,
        lambda op: misled(op, divisor=1.0),
        normal(3),
        normal(3),
        f=minigrad.mse,
    ),
    vjp(
        "mse: the target gets the gradient of the prediction",
        "wrong formula",
        squared_error,
        lambda op: spoiled(op, "target", lambda gradient: -gradient),
        normal(3),
        normal(3),
        f=minigrad.mse,
    ),
]
