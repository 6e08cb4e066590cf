"""Losses."""

import math

import numpy as np


def reduced(m, losses, reduction):
    return {"none": lambda x: x, "mean": m.mean, "sum": m.sum}[reduction](losses)


def loss(name, **names):
    """A loss of two operands here, which do not broadcast."""

    def call(m, x, y, reduction="mean", **options):
        options = {names.get(key, key): value for key, value in options.items()}
        return getattr(m, name)(x, y, reduction, **options)

    return call


def smooth_l1(m, x, y, reduction="mean", beta=1.0):
    return m.huber(x, y, reduction, beta) / beta if beta else m.l1(x, y, reduction)


def kl_div(m, x, y, reduction="mean", log_target=False):
    terms = m.exp(y) * (y - x) if log_target else m.xlogy(y, y) - y * x
    return m.sum(terms) / x.shape[0] if reduction == "batchmean" else reduced(m, terms, reduction)


def binary_cross_entropy(m, p, t, weight=None, reduction="mean"):
    """PyTorch cuts the logarithms at -100."""
    terms = -(t * m.clip(m.log(p), -100.0) + (1 - t) * m.clip(m.log1p(-p), -100.0))
    return reduced(m, terms if weight is None else terms * weight, reduction)


def poisson_nll(m, x, y, log_input=True, full=False, eps=1e-8, reduction="mean"):
    terms = m.exp(x) - y * x if log_input else x - y * m.log(x + eps)
    if full:
        stirling = (
            y * m.log(m.where(y > 1, y, 1.0))
            - y
            + 0.5 * m.log(2 * math.pi * m.where(y > 1, y, 1.0))
        )
        terms = terms + m.where(y <= 1, 0.0, stirling)
    return reduced(m, terms, reduction)


def gaussian_nll(m, x, y, var, full=False, eps=1e-6, reduction="mean"):
    if hasattr(var, "shape") and var.shape != x.shape and var.shape == x.shape[:-1]:
        var = m.expand_dims(var, -1)
    var = m.clip(var.detach(), eps) + (var - var.detach())  # the bound does not cut the gradient
    terms = 0.5 * (m.log(var) + (x - y) ** 2 / var) + (0.5 * math.log(2 * math.pi) if full else 0)
    return reduced(m, terms, reduction)


def hinge_embedding(m, x, y, margin=1.0, reduction="mean"):
    far = m.where(y != 1, m.clip(margin - x, 0.0), 0.0)
    return reduced(m, far + m.where(y != -1, x, 0.0), reduction)


def cosine_embedding(m, x, y, target, margin=0.0, reduction="mean"):
    eps, axis = 1e-12, x.ndim - 1
    product = m.sum(x * y, axis)
    cos = product / m.sqrt((m.sum(x * x, axis) + eps) * (m.sum(y * y, axis) + eps))
    terms = m.where(target == 1, 1 - cos, 0.0) + m.where(
        target == -1, m.clip(cos - margin, 0.0), 0.0
    )
    return reduced(m, terms, reduction)


def margin_ranking(m, x, y, target, margin=0.0, reduction="mean"):
    return reduced(m, m.clip(-target * (x - y) + margin, 0.0), reduction)


def soft_margin(m, x, y, reduction="mean"):
    return reduced(m, m.softplus(-y * x), reduction)


def multilabel_soft_margin(m, x, y, weight=None, reduction="mean"):
    terms = y * m.softplus(-x) + (1 - y) * m.softplus(x)
    return reduced(m, m.mean(terms if weight is None else terms * weight, -1), reduction)


def multi_margin(m, x, y, p=1, margin=1.0, weight=None, reduction="mean"):
    rows = m.reshape(x, (-1, x.shape[-1] if x.ndim else 1))
    labels = np.atleast_1d(y.data)
    chosen = rows[np.arange(len(labels)), labels]
    terms = m.clip(margin - m.expand_dims(chosen, 1) + rows, 0.0) ** p
    if weight is not None:
        terms = terms * m.expand_dims(weight[labels], 1)
    others = np.arange(rows.shape[1]) != labels[:, None]
    losses = m.sum(m.where(others, terms, 0.0), 1) / rows.shape[1]
    return reduced(m, losses if y.ndim else m.reshape(losses, ()), reduction)


def triplet(m, anchor, positive, negative, *, margin=1.0, p=2, eps=1e-6, swap=False,
            reduction="mean", distance_function=None):  # fmt: skip
    near, far = (m.norm(anchor - x + eps, p, -1) for x in (positive, negative))
    if swap:
        far = m.minimum(far, m.norm(positive - negative + eps, p, -1))
    return reduced(m, m.clip(margin + near - far, 0.0), reduction)


def linear_cross_entropy(m, x, linear_weight, target, linear_bias=None, options=None, **given):
    """Classes on the first axis of the weight; the further ones are rows of their own."""
    weight = linear_weight
    usual = weight.ndim == 2 and linear_bias is None and target.dtype.kind != "f"
    if usual and given.get("weight") is None:
        given.pop("weight", None)
        return m.linear_cross_entropy(x, weight, target, **given)
    logits = x @ m.swapaxes(m.reshape(weight, (-1, weight.shape[-1])), 0, 1)
    logits = m.reshape(logits, (*x.shape[:-1], *weight.shape[:-1]))
    logits = logits if linear_bias is None else logits + linear_bias
    return m.cross_entropy(logits, target, **given)


def bce_with_logits(m, x, y, weight=None, reduction="mean", pos_weight=None):
    options = {} if weight is None else {"weight": weight}
    return m.binary_cross_entropy_with_logits(x, y, reduction, pos_weight=pos_weight, **options)


LOSSES = {
    "nn.functional.mse_loss": loss("mse"),
    "nn.functional.l1_loss": loss("l1"),
    "nn.functional.huber_loss": loss("huber"),
    "nn.functional.smooth_l1_loss": smooth_l1,
    "nn.functional.cross_entropy": loss("cross_entropy"),
    "nn.functional.nll_loss": loss("nll"),
    "nn.functional.binary_cross_entropy": binary_cross_entropy,
    "nn.functional.binary_cross_entropy_with_logits": bce_with_logits,
    "nn.functional.kl_div": kl_div,
    "nn.functional.poisson_nll_loss": poisson_nll,
    "nn.functional.gaussian_nll_loss": gaussian_nll,
    "nn.functional.hinge_embedding_loss": hinge_embedding,
    "nn.functional.cosine_embedding_loss": cosine_embedding,
    "nn.functional.margin_ranking_loss": margin_ranking,
    "nn.functional.soft_margin_loss": soft_margin,
    "nn.functional.multilabel_soft_margin_loss": multilabel_soft_margin,
    "nn.functional.multi_margin_loss": multi_margin,
    "nn.functional.triplet_margin_loss": triplet,
    "nn.functional.triplet_margin_with_distance_loss": triplet,
    **{f"nn.functional.linear_cross_entropy{variant}": linear_cross_entropy
       for variant in ("", "/chunked", "/chunked_none")},
}  # fmt: skip
