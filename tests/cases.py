"""The one table of op cases: a row, or several, for every op and every public composition.

A new op is one block in `minigrad/ops/` and one row here. The sweep in test_ops.py then checks the
value against `reference`, the derivatives of first and second order against differences, layouts of
memory, float32, plain arrays, and that nothing is missing from the table.

    Case("tanh", normal((2, 3)), np.tanh)

says: the function `minigrad.tanh`, called on one array of shape (2, 3), has the values of `np.tanh`
and is twice differentiable. Differences cannot tell what a derivative is where there is a kink, a
tie, or no neighbourhood; such a row brings the derivative that the documentation promises:

    Case("relu", fixed([-1.0, 0.0]), relu, note="kink: 0 at 0", derivative=lambda g, x: 0 * g)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import minigrad


@dataclass(frozen=True)
class Case:
    """One way to call one function.

    Attributes:
        name: what it is called in `minigrad`.
        make: makes the operands, float64 where they are floats, from a random generator.
        reference: the same function of numpy's, or one written without the library.
        options: keyword arguments.
        function: how to call it on the operands, if not `minigrad.<name>(*operands, **options)`.
        note: what this row is about.
        order: up to which order it can be differentiated; 0 for comparisons.
        derivative: `derivative(g, *operands)` by hand: an array, or a tuple of them for several
            operands of floats. With it, differences are not asked.
        quiet: why numpy may warn about this row (of a division by zero and the like).
    """

    name: str
    make: Callable[[np.random.Generator], tuple[np.ndarray, ...]]
    reference: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    function: Callable[..., Any] | None = None
    note: str = ""
    order: int = 2
    derivative: Callable[..., Any] | None = None
    quiet: str = ""

    def __call__(self, *operands):
        if self.function is not None:
            return self.function(*operands, **self.options)
        return getattr(minigrad, self.name)(*operands, **self.options)

    def expected(self, *arrays):
        return self.reference(*arrays, **self.options)

    def operands(self, dtype=np.float64, seed=0):
        arrays = self.make(np.random.default_rng(seed))
        return [x.astype(dtype) if x.dtype.kind == "f" else x for x in arrays]

    def __str__(self):
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return "-".join(part for part in (self.name, self.note or options) if part)


# Makers of operands. Differences move an element by about 2e-3 of its size, or of 1.


def normal(*shapes):
    return lambda rng: tuple(rng.standard_normal(shape) for shape in shapes)


def positive(*shapes):
    return lambda rng: tuple(rng.uniform(0.5, 2, shape) for shape in shapes)


def nonzero(*shapes):
    """Both signs, at a distance from 0."""
    return lambda rng: tuple(
        rng.uniform(0.3, 2, shape) * rng.choice([-1, 1], shape) for shape in shapes
    )


def distinct(*shapes):
    """All elements of all operands at a distance from each other."""

    def make(rng):
        sizes = [math.prod(shape) for shape in shapes]
        values = rng.permutation(np.linspace(-2, 2, sum(sizes)))
        parts = np.split(values, np.cumsum(sizes)[:-1])
        return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))

    return make


def fixed(*values):
    return lambda rng: tuple(np.array(value) for value in values)


def classes(logits_shape, axis=1):
    """Logits, and the class of each."""
    target_shape = logits_shape[:axis] + logits_shape[axis + 1 :]
    return lambda rng: (
        rng.standard_normal(logits_shape),
        rng.integers(logits_shape[axis], size=target_shape),
    )


# References for what numpy has no function for, written for clearness.


def power(x, y):
    return np.power(x, y)  # which itself takes no keywords


def erf(x):
    return np.reshape([math.erf(v) for v in np.ravel(x)], np.shape(x))


def gelu(x):
    return x * np.reshape([math.erfc(-v / math.sqrt(2)) / 2 for v in np.ravel(x)], np.shape(x))


def gelu_derivative(g, x):
    cdf = np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in x])
    return g * (cdf + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi))


def logistic(x):
    return np.reshape([0.5 * (1 + math.tanh(v / 2)) for v in np.ravel(x)], np.shape(x))


def softmax(x, axis=-1):
    return np.exp(log_softmax(x, axis))


def softmax_derivative(g, x, axis=-1):
    s = softmax(x, axis)
    return s * (g - np.sum(g * s, axis=axis, keepdims=True))


def log_softmax(x, axis=-1):
    return x - logsumexp(x, axis, keepdims=True)


def logsumexp(x, axis=None, keepdims=False):
    return np.logaddexp.reduce(x, axis=axis, keepdims=keepdims)


def logsumexp_all(x, axis=None, keepdims=False):
    """For what `np.logaddexp.reduce` cannot: several axes at once."""
    return np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims))


def take(x, index):
    return x[index]


def scatter(values, index, shape):
    out = np.zeros(shape, values.dtype)
    np.add.at(out, index, values)
    return out


def linear(x, weight, bias=0.0):
    return np.einsum("...i,oi->...o", x, weight) + bias


def dropped(x, p, training=True):
    """Numbers that each function of this file draws for itself: the same ones for the same seed."""
    if not training or p == 0:
        return x
    keep = np.random.default_rng(7).random(x.shape, np.float32) >= p
    return np.where(keep, x / max(1 - p, 1e-9), 0)


def dropout(x, p, training=True):
    return minigrad.dropout(x, p, training, rng=np.random.default_rng(7))


def cross_entropy(logits, target, reduction="mean"):
    axis = 1 if logits.ndim > 1 else 0
    scores = np.moveaxis(logits, axis, -1)
    losses = np.empty(target.shape)
    for where in np.ndindex(target.shape):
        losses[where] = np.log(np.sum(np.exp(scores[where] - scores[where][target[where]])))
    return reduced(losses, reduction)


def reduced(losses, reduction="mean"):
    return {"mean": np.mean, "sum": np.sum, "none": np.asarray}[reduction](losses)


def squared_error(x, y, reduction="mean"):
    return reduced(np.square(x - y), reduction)


def absolute_error(x, y, reduction="mean"):
    return reduced(np.abs(x - y), reduction)


def shared(g, x, axis=None):
    """The derivative of max: those that are the largest share."""
    largest = x == np.max(x, axis=axis, keepdims=True)
    if axis is not None:
        g = np.expand_dims(g, axis)
    return largest * g / largest.sum(axis=axis, keepdims=True)


MASK = np.array([[True, False, True], [False, False, True]])
TIED = [[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]
HUGE = [[1000.0, 1001.0, 999.0], [-1000.0, -1003.0, -1001.0]]
INF, NAN = math.inf, math.nan

CASES = [
    # Arithmetic
    Case("add", normal((2, 3), (2, 3)), np.add),
    Case("add", normal((2, 3)), lambda x, y: x + y, {"y": 2.5}, note="number"),
    Case("add", normal((0, 3), (3,)), np.add, note="empty"),
    Case("add", normal((), ()), np.add, note="0-d"),
    Case("subtract", normal((2, 3), (2, 3)), np.subtract),
    Case("subtract", normal((3,)), lambda y: 1 - y, function=lambda y: 1 - y, note="number first"),
    Case("multiply", normal((2, 3), (2, 3)), np.multiply),
    Case("multiply", normal((2, 3)), np.square, function=lambda x: x * x, note="with itself"),
    Case("divide", nonzero((2, 3), (2, 3)), np.divide),
    Case("divide", nonzero((3,)), lambda y: 1 / y, function=lambda y: 1 / y, note="number first"),
    Case(
        "divide",
        fixed([1.0, -2.0], [0.0, 4.0]),
        np.divide,
        note="by zero",
        derivative=lambda g, x, y: (g / y, -g * x / y**2),
        quiet="1 / 0 is inf",
    ),
    Case("negative", normal((2, 3)), np.negative),
    # Powers: x^0 = 1 also at x = 0, with derivative 0 in x; at x = 0 the derivative in y is 0.
    Case("power", positive((2, 3), (2, 3)), np.power),
    Case("power", nonzero((2, 3)), power, {"y": 2}),
    Case("power", nonzero((2, 3)), power, {"y": 3.0}),
    Case("power", nonzero((2, 3)), power, {"y": -1}),
    Case("power", nonzero((2, 3)), power, {"y": 1}),
    Case("power", nonzero((2, 3)), power, {"y": 0}),
    Case("power", positive((2, 3)), power, {"y": 0.5}),
    Case("power", nonzero((2, 3)), power, {"y": np.float32([2, 3, 0])}, note="array"),
    Case("power", nonzero((2, 3)), power, {"y": np.array([2, 3, 0])}, note="integer array"),
    Case(
        "power",
        nonzero((3,)),
        np.square,
        function=lambda x: minigrad.power(x, minigrad.tensor(2.0)),
        note="frozen tensor",
    ),
    Case("power", normal((3,)), lambda y: 2.0**y, function=lambda y: 2.0**y, note="number first"),
    Case("power", fixed([0.0, 0.0]), power, {"y": 2}, note="zero squared"),
    Case("power", fixed([0.0, 0.0]), power, {"y": np.float32([1, 2])}, note="zero to array"),
    Case("power", fixed([0.0, 2.0]), power, {"y": 0}, note="zero to number 0"),
    Case("power", fixed([0.0, 2.0]), power, {"y": np.float32([0, 0])}, note="zero to array 0"),
    Case(
        "power",
        fixed([0.0, 0.0, 0.0, 3.0], [0.0, 1.0, 2.0, 0.0]),
        np.power,
        note="zero to tensor",
        derivative=lambda g, x, y: (g * [0, 1, 0, 0], g * [0, 0, 0, math.log(3)]),
    ),
    Case(
        "power",
        fixed([-2.0, -3.0], [3.0, 2.0]),
        np.power,
        note="negative to tensor",
        derivative=lambda g, x, y: (g * y * x ** (y - 1), np.full(2, np.nan)),
        quiet="the derivative in y does not exist: nan",
    ),
    # Comparisons
    *[
        Case(name, fixed([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]), getattr(np, name), order=0)
        for name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
    ],
    *[
        Case(name, lambda rng: (MASK, MASK[:, ::-1]), getattr(np, name), order=0)
        for name in ("logical_and", "logical_or")
    ],
    Case("logical_not", lambda rng: (MASK,), np.logical_not, order=0),
    # Elementwise
    Case("where", lambda rng: (MASK, *normal((2, 3), (2, 3))(rng)), np.where),
    Case("where", lambda rng: (MASK[0], *normal((2, 3), (1,))(rng)), np.where, note="broadcast"),
    Case(
        "where",
        normal((2, 3)),
        lambda x: np.where(MASK, x, 0.5),
        function=lambda x: minigrad.where(MASK, x, 0.5),
        note="plain mask and number",
    ),
    Case("maximum", distinct((2, 3), (2, 3)), np.maximum),
    Case("maximum", distinct((2, 3)), lambda x, y: np.maximum(x, y), {"y": 0.1}, note="number"),
    Case(
        "maximum",
        fixed([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]),
        np.maximum,
        note="tie: each gets half",
        derivative=lambda g, x, y: (g * [0.5, 0, 1], g * [0.5, 1, 0]),
    ),
    Case(
        "maximum",
        fixed([NAN, 1.0], [2.0, NAN]),
        np.maximum,
        note="nan: goes to both",
        derivative=lambda g, x, y: (g, g),
    ),
    Case("sign", nonzero((2, 3)), np.sign),
    Case("sign", fixed([0.0]), np.sign, note="kink", derivative=lambda g, x: 0 * g),
    Case("abs", nonzero((2, 3)), np.abs),
    Case(
        "abs",
        fixed([-2.0, 0.0, 3.0]),
        np.abs,
        note="kink: 0 at 0",
        derivative=lambda g, x: g * [-1, 0, 1],
    ),
    Case("exp", normal((2, 3)), np.exp),
    Case("log", positive((2, 3)), np.log),
    Case("sqrt", positive((2, 3)), np.sqrt),
    Case(
        "sqrt",
        fixed([0.0, 4.0]),
        np.sqrt,
        note="infinite slope at 0",
        derivative=lambda g, x: g * [np.inf, 0.25],
        quiet="1 / 0 is inf",
    ),
    Case("tanh", normal((2, 3)), np.tanh),
    Case(
        "tanh",
        fixed([-1000.0, 1000.0]),
        np.tanh,
        note="far out",
        derivative=lambda g, x: 0 * g,
    ),
    Case("sigmoid", normal((2, 3)), logistic),
    Case(
        "sigmoid",
        fixed([-1000.0, -40.0, 40.0, 1000.0]),
        lambda x: np.array([0, math.exp(-40), 1, 1]),
        note="far out",
        derivative=lambda g, x: g * [0, math.exp(-40), 0, 0],
    ),
    Case("relu", nonzero((2, 3)), lambda x: np.maximum(x, 0)),
    Case(
        "relu",
        fixed([-1.0, 0.0, 2.0]),
        lambda x: np.maximum(x, 0),
        note="kink: 0 at 0",
        derivative=lambda g, x: g * [0, 0, 1],
    ),
    Case(
        "relu",
        fixed([NAN, 1.0]),
        lambda x: np.maximum(x, 0),
        note="nan",
        derivative=lambda g, x: g,
    ),
    Case("erf", normal((2, 3)), erf),
    Case("gelu", normal((2, 3)), gelu),
    Case(
        "gelu",
        normal((2, 3)),
        lambda x, approximate: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        {"approximate": "tanh"},
    ),
    Case("gelu", normal(()), gelu, note="0-d"),
    Case("gelu", normal((0, 2)), gelu, note="empty"),
    Case(
        "gelu",
        fixed([-1000.0, -30.0, -8.0, 8.0, 1000.0]),
        gelu,
        note="tails",
        derivative=gelu_derivative,
    ),
    # Reductions
    Case("sum", normal((2, 3)), np.sum),
    Case("sum", normal((2, 3)), np.sum, {"axis": 0}),
    Case("sum", normal((2, 3)), np.sum, {"axis": -1, "keepdims": True}),
    Case("sum", normal((2, 3, 2)), np.sum, {"axis": (0, -1)}),
    Case("sum", normal((2, 3)), np.sum, {"axis": None, "keepdims": True}),
    Case("sum", normal((2, 3)), np.sum, {"axis": ()}),
    Case("sum", normal((0, 3)), np.sum, {"axis": 0}, note="empty"),
    Case("sum", normal(()), np.sum, note="0-d"),
    Case("mean", normal((2, 3)), np.mean),
    Case("mean", normal((2, 3)), np.mean, {"axis": 1}),
    Case("mean", normal((2, 3, 2)), np.mean, {"axis": (0, -1), "keepdims": True}),
    Case("mean", normal(()), np.mean, note="0-d"),
    Case("mean", normal((0, 3)), np.mean, {"axis": 1}, note="of none along a full axis"),
    Case("var", normal((2, 3)), np.var),
    Case("var", normal((2, 3)), np.var, {"axis": 1, "ddof": 1}),
    Case("var", normal((2, 3, 2)), np.var, {"axis": (0, -1), "keepdims": True}),
    Case("max", distinct((2, 3)), np.max),
    Case("max", distinct((2, 3)), np.max, {"axis": 0}),
    Case("max", distinct((2, 3)), np.max, {"axis": -1, "keepdims": True}),
    Case("max", distinct((2, 3, 2)), np.max, {"axis": (0, -1)}),
    Case("max", distinct(()), np.max, note="0-d"),
    Case("max", fixed(TIED), np.max, note="tie", derivative=shared),
    Case(
        "max",
        fixed(TIED),
        np.max,
        {"axis": 1},
        note="tie along an axis",
        derivative=lambda g, x: shared(g, x, axis=1),
    ),
    Case("logsumexp", normal((2, 3)), logsumexp_all),
    Case("logsumexp", normal((2, 3)), logsumexp, {"axis": 0}),
    Case("logsumexp", normal((2, 3)), logsumexp, {"axis": -1, "keepdims": True}),
    Case("logsumexp", normal((2, 3, 2)), logsumexp_all, {"axis": (0, -1)}),
    Case(
        "logsumexp",
        fixed(HUGE),
        logsumexp,
        {"axis": 1},
        note="far out",
        derivative=lambda g, x: g[:, None] * softmax(x),
    ),
    Case(
        "logsumexp",
        fixed([[-INF, 1.0], [2.0, -INF]]),
        logsumexp,
        {"axis": 1},
        note="with -inf",
        derivative=lambda g, x: g[:, None] * np.isfinite(x),
    ),
    # Shapes
    Case("reshape", normal((2, 3)), np.reshape, {"shape": (3, 2)}),
    Case("reshape", normal((2, 3)), np.reshape, {"shape": -1}),
    Case("reshape", normal((2, 3)), np.reshape, {"shape": (1, -1, 2)}),
    Case("reshape", normal((1, 1)), np.reshape, {"shape": ()}),
    Case("reshape", normal(()), np.reshape, {"shape": (1, 1)}, note="0-d"),
    Case("reshape", normal((0, 3)), np.reshape, {"shape": (3, 0)}, note="empty"),
    Case("transpose", normal((2, 3)), np.transpose),
    Case("transpose", normal((2, 3, 4)), np.transpose, {"axes": (1, 2, 0)}),
    Case("transpose", normal((2, 3, 4)), np.transpose, {"axes": (-1, 0, -2)}),
    Case("transpose", normal(()), np.transpose, note="0-d"),
    Case("swapaxes", normal((2, 3, 4)), np.swapaxes, {"axis1": -1, "axis2": -2}),
    Case("swapaxes", normal((2, 3)), np.swapaxes, {"axis1": 0, "axis2": 0}),
    Case("broadcast_to", normal((3,)), np.broadcast_to, {"shape": (2, 3)}),
    Case("broadcast_to", normal((2, 1)), np.broadcast_to, {"shape": (2, 2, 3)}),
    Case("broadcast_to", normal(()), np.broadcast_to, {"shape": (2, 2)}, note="0-d"),
    Case("broadcast_to", normal((1, 3)), np.broadcast_to, {"shape": (0, 3)}, note="to empty"),
    Case("expand_dims", normal((2, 3)), np.expand_dims, {"axis": 1}),
    Case("expand_dims", normal((2, 3)), np.expand_dims, {"axis": (0, -1)}),
    Case("squeeze", normal((1, 3, 1)), np.squeeze),
    Case("squeeze", normal((1, 3, 1)), np.squeeze, {"axis": -1}),
    Case("squeeze", normal((1, 3, 1)), np.squeeze, {"axis": (0, 2)}),
    *[
        Case(
            "concatenate",
            normal(*shapes),
            lambda *arrays, axis: np.concatenate(arrays, axis),
            {"axis": axis},
            function=lambda *arrays, axis: minigrad.concatenate(arrays, axis),
            note=f"{len(shapes)} along {axis}{note}",
        )
        for axis, note, shapes in [
            (0, "", [(2, 3), (1, 3)]),
            (1, "", [(2, 1), (2, 3)]),
            (-1, "", [(2, 2, 1), (2, 2, 2), (2, 2, 3)]),
            (0, " with an empty one", [(2,), (0,), (1,)]),
            (0, "", [(2, 3)]),
        ]
    ],
    Case("clone", normal((2, 3)), np.copy),
    Case("astype", normal((2, 3)), lambda x, dtype: x.astype(dtype), {"dtype": np.float64}),
    Case(
        "astype",
        normal((2, 3)),
        lambda x, dtype: x.astype(dtype),
        {"dtype": np.float32},
        note="float32",
        derivative=lambda g, x: g,
    ),
    Case(
        "astype",
        normal((2, 3)),
        lambda x, dtype: x.astype(dtype),
        {"dtype": np.int64},
        note="integers",
        order=0,
    ),
    # Indexing
    *[
        Case("getitem", normal((3, 4)), take, {"index": index}, note=note)
        for note, index in {
            "int": 1,
            "negative int": -1,
            "numpy int": np.int64(2),
            "two ints": (1, 2),
            "slice": slice(1, None),
            "step": (slice(None), slice(None, None, 2)),
            "negative step": (slice(None, None, -1), slice(3, None, -2)),
            "empty slice": slice(2, 2),
            "None": (None, slice(None), None, 1),
            "Ellipsis": (..., 1),
            "only Ellipsis": ...,
            "boolean": np.array([[True, False, True, False]] * 3),
            "boolean rows": np.array([True, False, True]),
            "no row": np.zeros(3, bool),
            "integers": np.array([2, 0]),
            "list": [2, 0],
            "repeated": np.array([1, 1, 2, 1]),
            "repeated negative": np.array([1, -2, 1]),
            "2-d integers": np.array([[0, 1], [1, 1]]),
            "pairs": (np.array([0, 0, 2]), np.array([1, 1, 3])),
            "slice and integers": (slice(1, None), np.array([3, 3, 0])),
            "integers around a slice": (np.array([0, 0]), None, slice(None, 2)),
            "no integers": np.array([], np.int64),
            "index is a tensor": minigrad.tensor([1, 1, 0]),
        }.items()
    ],
    Case("getitem", normal((2, 3)), take, {"index": MASK}, note="mask of the whole shape"),
    Case("getitem", normal(()), take, {"index": ()}, note="0-d"),
    *[
        Case(
            "scatter_add",
            normal(values_shape),
            scatter,
            {"index": index, "shape": (3, 4)},
            note=note,
        )
        for note, values_shape, index in [
            ("slice", (2, 4), slice(1, None)),
            ("repeated", (4, 4), np.array([1, 1, 2, 1])),
            ("pairs", (3,), (np.array([0, 0, 2]), np.array([1, 1, 3]))),
            ("boolean", (2, 4), np.array([True, False, True])),
        ]
    ],
    # Matrix products
    Case("matmul", normal((2, 3), (3, 4)), np.matmul),
    Case("matmul", normal((2, 3)), lambda x: x @ x.T, function=lambda x: x @ x.T, note="own T"),
    Case("matmul", normal((3,), (3,)), np.matmul, note="vectors"),
    Case("matmul", normal((3,), (3, 2)), np.matmul, note="vector and matrix"),
    Case("matmul", normal((2, 3), (3,)), np.matmul, note="matrix and vector"),
    Case("matmul", normal((3,), (2, 3, 2)), np.matmul, note="vector and batch"),
    Case("matmul", normal((2, 2, 3), (3,)), np.matmul, note="batch and vector"),
    Case("matmul", normal((2, 2, 3), (2, 3, 2)), np.matmul, note="batch"),
    Case("matmul", normal((2, 2, 3), (3, 2)), np.matmul, note="batch and matrix"),
    Case("matmul", normal((3, 2), (2, 2, 3)), np.matmul, note="matrix and batch"),
    Case("matmul", normal((2, 1, 2, 3), (2, 3, 2)), np.matmul, note="broadcast batches"),
    Case("matmul", normal((2, 0), (0, 3)), np.matmul, note="sum of nothing"),
    Case("matmul", normal((0, 2), (2, 3)), np.matmul, note="no rows"),
    Case("matmul", normal((0, 2, 2), (2, 3)), np.matmul, note="no batch"),
    Case("linear", normal((3,), (2, 3), (2,)), linear, note="x of 1 dim"),
    Case("linear", normal((4, 3), (2, 3), (2,)), linear, note="x of 2 dims"),
    Case("linear", normal((2, 2, 3), (2, 3), (2,)), linear, note="x of 3 dims"),
    Case("linear", normal((3,), (2, 3)), linear, note="x of 1 dim, no bias"),
    Case("linear", normal((4, 3), (2, 3)), linear, note="x of 2 dims, no bias"),
    Case("linear", normal((2, 2, 3), (2, 3)), linear, note="x of 3 dims, no bias"),
    Case("linear", normal((0, 3), (2, 3), (2,)), linear, note="empty"),
    # Neural
    Case("softmax", normal((2, 3)), softmax),
    Case("softmax", normal((2, 3)), softmax, {"axis": 0}),
    Case("softmax", normal((2, 3, 2)), softmax, {"axis": 1}),
    Case("softmax", fixed(HUGE), softmax, note="far out", derivative=softmax_derivative),
    Case(
        "softmax",
        fixed([[0.5, -INF, 1.0]]),
        softmax,
        note="with -inf",
        derivative=softmax_derivative,
    ),
    Case("log_softmax", normal((2, 3)), log_softmax),
    Case("log_softmax", normal((2, 3)), log_softmax, {"axis": 0}),
    Case("log_softmax", normal((2, 3, 2)), log_softmax, {"axis": 1}),
    Case(
        "log_softmax",
        fixed(HUGE),
        log_softmax,
        note="far out",
        derivative=lambda g, x: g - softmax(x) * g.sum(-1, keepdims=True),
    ),
    Case(
        "log_softmax",
        fixed([[0.0, 800.0]]),
        log_softmax,
        note="beyond softmax",
        derivative=lambda g, x: g - [0, 1] * g.sum(-1, keepdims=True),
    ),
    Case("dropout", normal((4, 3)), dropped, {"p": 0.4}, function=dropout),
    Case("dropout", normal((4, 3)), dropped, {"p": 0.0}, function=dropout),
    Case("dropout", normal((4, 3)), dropped, {"p": 1.0}, function=dropout),
    Case("dropout", normal((3,)), dropped, {"p": 0.4, "training": False}, function=dropout),
    # Losses
    *[
        Case(name, distinct((2, 3), (2, 3)), reference, {"reduction": reduction})
        for name, reference in [("mse", squared_error), ("l1", absolute_error)]
        for reduction in ("mean", "sum", "none")
    ],
    Case(
        "l1",
        fixed([1.0, 2.0, 3.0], [1.0, 3.0, 1.0]),
        absolute_error,
        {"reduction": "sum"},
        note="no error: 0",
        derivative=lambda g, x, y: (g * np.sign(x - y), g * np.sign(y - x)),
    ),
    *[
        Case(
            "cross_entropy",
            classes(shape, axis),
            cross_entropy,
            {"reduction": reduction},
            note=f"{shape} {reduction}",
        )
        for shape, axis in [((3,), 0), ((4, 3), 1), ((2, 3, 2), 1)]
        for reduction in ("mean", "sum", "none")
    ],
    Case(
        "cross_entropy",
        fixed(HUGE, [0, 1]),
        cross_entropy,
        note="far out",
        derivative=lambda g, x, target: g * (softmax(x) - np.eye(3)[target]) / 2,
    ),
]
