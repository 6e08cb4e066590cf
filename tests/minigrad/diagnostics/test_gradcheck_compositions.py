"""No false alarm: gradcheck on random compositions of ops, which are right, in both dtypes.

A composition is a list of steps on a stack of matrices. Each step takes the matrices on top and
puts one in their place; at the end all that is left are results.
"""

import collections

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import minigrad as mg
from minigrad import gradcheck

UNARY = {
    "abs": mg.abs,
    "arctan": mg.arctan,
    "cos": mg.cos,
    "cosh": mg.cosh,
    "cumsum": lambda x: mg.cumsum(x, 0),
    "elu": mg.elu,
    "erf": mg.erf,
    "exp": mg.exp,
    "expm1": mg.expm1,
    "flip": lambda x: mg.flip(x, 1),
    "floor": mg.floor,
    "gelu": mg.gelu,
    "gelu of tanh": lambda x: mg.gelu(x, "tanh"),
    "leaky relu": mg.leaky_relu,
    "log softmax": mg.log_softmax,
    "negative": mg.negative,
    "relu": mg.relu,
    "sigmoid": mg.sigmoid,
    "silu": mg.silu,
    "sin": mg.sin,
    "sinh": mg.sinh,
    "softmax": mg.softmax,
    "softplus": mg.softplus,
    "sort": mg.sort,
    "square": mg.square,
    "tanh": mg.tanh,
    "transpose": mg.transpose,
    "sqrt": lambda x: mg.sqrt(mg.abs(x) + 0.25),
    "log": lambda x: mg.log(mg.square(x) + 0.5),
    "log1p": lambda x: mg.log1p(mg.square(x)),
    "reciprocal": lambda x: mg.reciprocal(mg.square(x) + 0.5),
    "rsqrt": lambda x: mg.rsqrt(mg.square(x) + 0.5),
    "power": lambda x: (mg.square(x) + 0.3) ** 1.5,
    "clip": lambda x: mg.clip(x, -0.7, 0.9),
    "sum": lambda x: mg.sum(x, axis=0, keepdims=True),
    "mean": lambda x: mg.mean(x, axis=-1, keepdims=True),
    "max": lambda x: mg.max(x, axis=0, keepdims=True),
    "min": lambda x: mg.min(x, axis=-1, keepdims=True),
    "var": lambda x: mg.var(x, axis=0, keepdims=True),
    "prod": lambda x: mg.prod(x, axis=-1, keepdims=True),
    "logsumexp": lambda x: mg.logsumexp(x, -1, keepdims=True),
    "norm": lambda x: mg.sqrt(mg.sum(mg.square(x), keepdims=True) + 0.1),
    "softmax of columns": lambda x: mg.softmax(x, 0),
    "layer norm": lambda x: mg.layer_norm(x, x.shape[-1:], eps=0.1),
    "rms norm": lambda x: mg.rms_norm(x, x.shape[-1:], eps=0.1),
    "reversed": lambda x: x[::-1, ::-1],
    "repeated rows": lambda x: x[np.array([0, -1, 0])],
    "every other": lambda x: x[:, ::2],
    "flat": lambda x: x.reshape(1, -1),
    "roll": lambda x: mg.roll(x, 1, axis=0),
    "pad": lambda x: mg.pad(x, 1),
    "tril": mg.tril,
    "gram": lambda x: mg.matmul(x, mg.transpose(x)),
    "twice": lambda x: x * mg.tanh(x) + x,
    "scaled": lambda x: 0.3 * x - 0.1,
    "causal attention": lambda x: mg.scaled_dot_product_attention(x, x, x, is_causal=True),
    "checkpoint": lambda x: mg.checkpoint(lambda y: mg.tanh(y) * y, x),
}
BINARY = {
    "add": mg.add,
    "subtract": mg.subtract,
    "multiply": mg.multiply,
    "divide": lambda x, y: x / (mg.square(y) + 0.5),
    "maximum": mg.maximum,
    "minimum": mg.minimum,
    "where": lambda x, y: mg.where(x > y, x, 0.5 * y),
    "arctan2": lambda x, y: mg.arctan2(x, mg.square(y) + 0.5),
    "mse": lambda x, y: mg.mse(x, mg.broadcast_to(y, x.shape), reduction="none"),
}
JOINED = {
    "matmul": lambda x, y: mg.matmul(x.reshape(-1, 1), y.reshape(1, -1)[:, :4]),
    "concatenate": lambda x, y: mg.concatenate([x.reshape(-1), y.reshape(-1)]).reshape(1, -1),
    "linear": lambda x, y: mg.linear(x, mg.tanh(y).reshape(-1, 1)[:3] * mg.ones(1, x.shape[1])),
}
LIMIT = 24  # elements of a matrix, beyond which it is cut


@st.composite
def compositions(draw):
    """Matrices, and steps to take with them."""
    side = st.integers(1, 4)
    shapes = draw(st.lists(st.tuples(side, side), min_size=1, max_size=3))
    seed = draw(st.integers(0, 2**32 - 1))
    names = st.sampled_from([*UNARY, *UNARY, *BINARY, *BINARY, *JOINED])
    return shapes, seed, draw(st.lists(names, min_size=1, max_size=7))


def run(steps, *operands):
    """The results of the steps on some tensors, scaled so that nothing overflows."""
    stack = list(operands)
    for name in steps:
        x = stack.pop()
        if name in UNARY:
            out = UNARY[name](x)
        else:
            y = stack.pop() if stack else operands[0]
            joined = name in JOINED or x.shape != y.shape
            if joined and name in BINARY:  # any two matrices broadcast, one as a row
                y = y.reshape(-1)[: x.shape[1]]
                y = y if y.shape[0] == x.shape[1] else y[:1]
            out = (BINARY | JOINED)[name](x, y)
        if out.size > LIMIT:
            out = out[: max(1, LIMIT // out.shape[1]), :LIMIT]
        stack.append(8 * mg.tanh(out / 8))
    return tuple(stack)


def check(count, **settings):
    counts = collections.Counter()

    @hypothesis.given(compositions())
    @hypothesis.settings(max_examples=count, **settings)
    def check_one(composition):
        shapes, seed, steps = composition
        rng = np.random.default_rng(seed)
        arrays = [rng.standard_normal(shape) for shape in shapes]
        for dtype in (np.float64, np.float32):
            report = gradcheck(lambda *xs: run(steps, *xs), [x.astype(dtype) for x in arrays])
            counts[report.verdict] += 1
            assert report.verdict != "disagree", f"{steps}\n{report!r}"

    check_one()
    # Right gradients are to be called right, not just not wrong.
    assert counts["agree"] > 0.8 * counts.total(), counts
    return counts


@pytest.mark.full
def test_many_compositions_are_not_accused():
    assert check(15).total() >= 30
