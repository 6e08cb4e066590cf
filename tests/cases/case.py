"""What a row of the table is, and the makers of its operands."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

import minigrad

INF, NAN = math.inf, math.nan


@dataclass(frozen=True)
class Case:
    """One way to call one function.

    Attributes:
        name: what it is called in `minigrad`.
        make: makes the operands, float64 where they are floats, from a random generator.
        reference: the same function of numpy's, or one written without the library.
        options: keyword arguments.
        names: what the operands are called, where they are not simply the first arguments.
        function: how to call it, if not `f(*operands, **options)`: `function(f, *operands,
            **options)`, where f is ours, the reference, or PyTorch's.
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
    names: tuple[str, ...] = ()
    function: Callable[..., Any] | None = None
    note: str = ""
    order: int = 2
    derivative: Callable[..., Any] | None = None
    quiet: str = ""

    def __call__(self, *operands):
        return self.apply(getattr(minigrad, self.name), *operands)

    def expected(self, *arrays):
        return self.apply(self.reference, *arrays)

    def apply(self, f, *operands):
        """What f, ours or another one, gives for these operands and the options of this row."""
        call = f if self.function is None else partial(self.function, f)
        if self.names:
            return call(**dict(zip(self.names, operands, strict=True)), **self.options)
        return call(*operands, **self.options)

    def operands(self, dtype=np.float64, seed=0):
        arrays = self.make(np.random.default_rng(seed))
        return [x.astype(dtype) if x.dtype.kind == "f" else x for x in arrays]

    def __str__(self):
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return "-".join(part for part in (self.name, self.note or options) if part)


def first_of_each(cases):
    """The first row of each function: enough for a quick look."""
    return list({case.name: case for case in reversed(cases)}.values())[::-1]


def some_of_each(cases, count):
    """Up to `count` rows of each function, evenly spread from its first row to its last."""
    rows = {}
    for case in cases:
        rows.setdefault(case.name, []).append(case)
    places = np.linspace(0, 1, count)
    return [
        each[i]
        for each in rows.values()
        for i in sorted({round(place * (len(each) - 1)) for place in places})
    ]


# Differences move an element by about 2e-3 of its size, or of 1.


def normal(*shapes):
    return lambda rng: tuple(rng.standard_normal(shape) for shape in shapes)


def positive(*shapes):
    return lambda rng: tuple(rng.uniform(0.5, 2, shape) for shape in shapes)


def fractions(*shapes):
    """Between 0 and 1, at a distance from both."""
    return lambda rng: tuple(rng.uniform(0.1, 0.9, shape) for shape in shapes)


def nonzero(*shapes):
    """Both signs equally often, at a distance from 0."""

    def make(rng):
        signs = (rng.permutation(np.resize([-1, 1], math.prod(shape))) for shape in shapes)
        return tuple(
            rng.uniform(0.3, 2, shape) * sign.reshape(shape)
            for shape, sign in zip(shapes, signs, strict=True)
        )

    return make


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


def joined(*makers):
    """The operands of several makers, one after the other."""
    return lambda rng: tuple(operand for make in makers for operand in make(rng))


def below(bound, *shapes):
    """Integers from 0 to `bound` - 1."""
    return lambda rng: tuple(rng.integers(bound, size=shape) for shape in shapes)


def classes(logits_shape, axis=1):
    """Logits, and the class of each."""
    target_shape = logits_shape[:axis] + logits_shape[axis + 1 :]
    return joined(normal(logits_shape), below(logits_shape[axis], target_shape))


# References that several families use.


def narrow(function):
    """Of integers: those that turn to floats turn to float32 in a Tensor, to float64 in numpy."""
    return lambda *xs, **options: np.float32(function(*(x.astype(float) for x in xs), **options))


GIVE_FLOAT32 = {"integers give float32": np.int64, "bytes give float32": np.uint8}


def rows_of_two(name, reference, make=normal):
    """The rows that each function of two operands has, which `make` draws."""
    shapes = {
        "": [(2, 3), (2, 3)],
        "broadcast": [(2, 1), (3,)],
        "0-d": [(), ()],
        "empty": [(0, 2), (2,)],
    }
    return [
        *[Case(name, make(*both), reference, note=note) for note, both in shapes.items()],
        *[
            Case(name, fixed(dtype([1, 3]), dtype([2, 0])), narrow(reference), note=note, order=0)
            for note, dtype in GIVE_FLOAT32.items()
        ],
        Case(name, nonzero((3,)), reference, function=lambda f, x: f(x, -2.0), note="number"),
    ]


MASK = np.array([[True, False, True], [False, False, True]])
TIED = [[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]
HUGE = [[1000.0, 1001.0, 999.0], [-1000.0, -1003.0, -1001.0]]


def each(function):
    """A function of one number, as one of an array."""
    return lambda x, **options: np.reshape(
        [function(float(v), **options) for v in np.ravel(x)], np.shape(x)
    )


logistic = each(lambda v: 0.5 * (1 + math.tanh(v / 2)))


def softmax(x, axis=-1):
    return np.exp(log_softmax(x, axis))


def log_softmax(x, axis=-1):
    return x - logsumexp(x, axis, keepdims=True)


def logsumexp(x, axis=None, keepdims=False):
    axes = tuple(range(x.ndim)) if axis is None else tuple(np.atleast_1d(axis))
    for i in axes:  # which np.logaddexp takes one at a time
        x = np.logaddexp.reduce(x, axis=i, keepdims=True)
    return x if keepdims else np.squeeze(x, axes)
