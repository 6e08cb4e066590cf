"""Functions of some elements only, by a mask."""

import math

import numpy as np

from tests.peers.op_rows.products import vector_norm
from tests.peers.op_rows.reductions import all_dims, along
from tests.peers.op_rows.row import same


def kept(m, x, mask, other):
    return x if mask is None else m.where(mask, x, other)


def masked(row, other):
    """A function of the elements that a mask keeps, for which the others are `other`."""

    def call(m, x, *args, mask=None, dtype=None, **options):
        x = x if mask is None else m.broadcast_to(x, np.broadcast_shapes(x.shape, mask.shape))
        return row(m, kept(m, x, mask, other), *args, **options)

    return call


def masked_mean(m, x, dim=None, *, mask=None, keepdim=False, dtype=None):
    count = m.astype(kept(m, m.full(x.shape, True), mask, False), x.dtype)
    total = all_dims("sum")
    return total(m, kept(m, x, mask, 0.0), dim, keepdim) / total(m, count, dim, keepdim)


def masked_norm(m, x, ord=2.0, dim=None, *, mask=None, keepdim=False, dtype=None):
    other = math.inf if ord == -math.inf else 0.0
    return vector_norm(m, kept(m, x, mask, other), ord, None if dim == () else dim, keepdim)


def masked_var(
    m, x, dim=None, unbiased=True, *, mask=None, correction=None, keepdim=False, dtype=None
):
    ddof = int(unbiased) if correction is None else correction
    dim = None if dim == () else dim
    counted = m.astype(kept(m, m.full(x.shape, True), mask, False), x.dtype)
    mean = masked_mean(m, x, dim, mask=mask, keepdim=True)
    count = m.sum(counted, dim, keepdim) - ddof
    return m.sum(counted * (x - mean) ** 2, dim, keepdim) / m.clip(count, 0.0)


def masked_std(m, x, *args, **options):
    return m.sqrt(masked_var(m, x, *args, **options))


MASKED = {
    "masked.var": masked_var,
    "masked.std": masked_std,
    "masked.sum": masked(all_dims("sum"), 0.0),
    "masked.prod": masked(all_dims("prod"), 1.0),
    "masked.amax": masked(all_dims("max"), -math.inf),
    "masked.amin": masked(all_dims("min"), math.inf),
    "masked.logsumexp": masked(all_dims("logsumexp"), -math.inf),
    "masked.mean": masked_mean,
    "masked.norm": masked_norm,
    "masked.argmax": masked(lambda m, x, *args, **options: m.astype(
        same("argmax")(m, x, *args, **options), x.dtype), -math.inf),  # floats in PyTorch
    "masked.argmin": masked(lambda m, x, *args, **options: m.astype(
        same("argmin")(m, x, *args, **options), x.dtype), math.inf),
    "masked.normalize": lambda m, x, ord, dim, mask=None, eps=1e-12: x / m.clip(
        masked_norm(m, x, ord, dim, mask=mask, keepdim=True), eps),
    "masked.logaddexp": lambda m, x, y, input_mask=None, other_mask=None: m.logaddexp(
        kept(m, x, input_mask, -math.inf), kept(m, y, other_mask, -math.inf)),
    "masked.cumsum": masked(along("cumsum"), 0.0),
    "masked.cumprod": masked(along("cumprod"), 1.0),
    "masked.softmax": masked(same("softmax"), -math.inf),
    "masked.log_softmax": masked(same("log_softmax"), -math.inf),
    "masked.softmin": masked(lambda m, x, dim: m.softmax(-x, dim), math.inf),
}  # fmt: skip
