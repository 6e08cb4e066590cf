"""The one table of op cases: a row, or several, for every op and every public composition.

A new op is one block in `minigrad/ops/`, one row here, in the file of its family, and one entry in
tests/peers/draws.py; if PyTorch's name or arguments differ, tests/peers/pytorch.py says how. The
sweep in tests/minigrad/ops/test_ops.py then checks the value against `reference`, the derivatives
of first and second order against differences, layouts of memory, float32, plain arrays, and that
nothing is missing from the table; test_peers.py beside it compares the row with PyTorch's function.

    Case("tanh", normal((2, 3)), np.tanh)

says: the function `minigrad.tanh`, called on one array of shape (2, 3), has the values of `np.tanh`
and is twice differentiable. Differences do not show the derivative where there is a kink or a tie,
or where the function has no values nearby. Such a row has the derivative that the documentation
promises:

    Case("relu", fixed([-1.0, 0.0]), relu, note="kink: 0 at 0", derivative=lambda g, x: 0 * g)
"""

from tests.cases import (
    activation,
    arithmetic,
    convolution,
    elementwise,
    images,
    indexing,
    linalg,
    losses,
    neural,
    products,
    recurrent,
    reduction,
    shape,
)
from tests.cases.case import (
    GIVE_FLOAT32,
    MASK,
    Case,
    below,
    classes,
    distinct,
    first_of_each,
    fixed,
    fractions,
    joined,
    nonzero,
    normal,
    positive,
    some_of_each,
)

__all__ = [
    "CASES",
    "GIVE_FLOAT32",
    "MASK",
    "Case",
    "below",
    "classes",
    "distinct",
    "first_of_each",
    "fixed",
    "fractions",
    "joined",
    "nonzero",
    "normal",
    "positive",
    "some_of_each",
]

CASES: list[Case] = [
    *arithmetic.CASES,
    *elementwise.CASES,
    *activation.CASES,
    *reduction.CASES,
    *shape.CASES,
    *indexing.CASES,
    *products.CASES,
    *linalg.CASES,
    *convolution.CASES,
    *neural.CASES,
    *images.CASES,
    *recurrent.CASES,
    *losses.CASES,
]
