"""Functions of neural networks that would be slow or overflow as compositions."""

from __future__ import annotations

import numpy as np

from minigrad.op import op
from minigrad.ops.elementwise import exp, log
from minigrad.ops.reduction import axes_of, max, sum
from minigrad.tensor import Array, Axis


def _softmax(x: Array, axis: Axis = -1) -> Array:
    e = exp(x - max(x, axis, keepdims=True))
    return e / sum(e, axis, keepdims=True)


@op(composition=_softmax)
def softmax(x: Array, axis: Axis = -1) -> Array:
    """e^x / sum(e^x) along `axis`, without overflow."""
    axes = axes_of(axis)
    e = np.exp(x - np.max(x, axis=axes, keepdims=True))
    e /= np.sum(e, axis=axes, keepdims=True)
    return e


softmax.rule("x", lambda g, axis, out: out * (g - sum(g * out, axis, keepdims=True)))


def _log_softmax(x: Array, axis: Axis = -1) -> Array:
    return log(_softmax(x, axis))


@op(composition=_log_softmax)
def log_softmax(x: Array, axis: Axis = -1) -> Array:
    """x - log(sum(e^x)) along `axis`, exact also where softmax would round to 0."""
    axes = axes_of(axis)
    shifted = x - np.max(x, axis=axes, keepdims=True)
    shifted -= np.log(np.sum(np.exp(shifted), axis=axes, keepdims=True))
    return shifted


log_softmax.rule("x", lambda g, axis, out: g - exp(out) * sum(g, axis, keepdims=True))
