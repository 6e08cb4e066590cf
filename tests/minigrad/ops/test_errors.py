"""Bad input: each function names itself and what it was given, before it computes anything."""

import math
import pickle

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import minigrad
from minigrad import Tensor, nn

X = np.array([[0.5, -1.0, 2.0], [1.5, 0.0, -0.5]])
ROW = np.array([1.0, 2.0, 3.0])
NUMBER = np.array(1.0)
NONE = np.zeros((0, 3))
STACK = np.ones((2, 2, 2))
SQUARE = np.array([[2.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 4.0]])
SINGULAR = np.ones((3, 3))
NOT_FINITE = np.stack([SQUARE, np.where(SQUARE == 4, np.nan, SQUARE)])


def tensors(value):
    """Tensors for the arrays in it; those of floats require gradients."""
    if isinstance(value, list):
        return [tensors(part) for part in value]
    if isinstance(value, np.ndarray):
        return Tensor(value.copy(), requires_grad=value.dtype.kind == "f")
    return value


def problem(name, args, error, *words, function=None, **options):
    """What is wrong with the error of tensors or of arrays, if there is something.

    It is the same of both: it names the function and the values.
    """
    function = function or getattr(minigrad, name)
    for given in (args, map(tensors, args)):
        try:
            function(*given, **options)
        except (ValueError, TypeError, IndexError) as caught:
            message = str(caught)
            right = isinstance(caught, error) and message.startswith(f"{name}: ")
            if not right or any(word not in message for word in words):
                return f"{described(args, options)} raises {type(caught).__name__}: {message}"
        else:
            return f"{described(args, options)} is accepted"
    return None


def refused(*call, **options):
    found = problem(*call, **options)
    assert found is None, found


def described(args, options):
    """The arguments of a call, those of floats by their shapes alone."""
    text = ",".join(
        str(arg.tolist() if arg.dtype.kind != "f" else arg.shape)
        if isinstance(arg, np.ndarray)
        else str([np.shape(part) for part in arg] if isinstance(arg, list) else arg)
        for arg in args
    )
    return text + "".join(f",{key}={np.array(value).tolist()}" for key, value in options.items())


# Axes


OF_KEEPDIMS = ["sum", "mean", "var", "std", "prod", "max", "min", "logsumexp", "norm", "any", "all"]
OF_KEEPDIMS += ["argmax", "argmin", "max_with_indices", "min_with_indices"]


@pytest.mark.parametrize("name", OF_KEEPDIMS)
def test_an_axis_in_the_place_of_keepdims_is_refused(name):
    function, x = getattr(minigrad, name), X > 0 if name in ("any", "all") else X
    for keepdims in (0, 1, 1.0, None, "no"):
        message = f"keepdims must be True or False, not {keepdims!r}"
        refused(name, (x,), TypeError, message, axis=0, keepdims=keepdims)
    for keepdims in (True, False):
        right = function(Tensor(x), axis=0, keepdims=keepdims)
        found = function(Tensor(x), axis=0, keepdims=np.bool_(keepdims))
        if isinstance(right, tuple):
            found, right = found.values, right.values
        assert_array_equal(found.data, right.data)


def following(name, *before):
    """The function of this name on an array and an axis, which comes after other arguments."""
    return lambda x, axis: getattr(minigrad, name)(x, *before, axis)


# Each takes an array of shape (2, 3) and an axis; some have one axis more in the result.
OF_AXES = {
    **{
        name: following(name)
        for name in ("sum", "mean", "var", "std", "prod", "max", "min", "logsumexp")
    },
    **{name: following(name) for name in ("softmax", "log_softmax", "flip", "squeeze")},
    "any": lambda x, axis: minigrad.any(x > 0, axis),
    "all": lambda x, axis: minigrad.all(x > 0, axis),
    "norm": following("norm", None),
    "roll": following("roll", 1),
    "expand_dims": following("expand_dims"),
}
OF_ONE_AXIS = {
    **{name: following(name) for name in ("argmax", "argmin", "argsort", "sort")},
    **{name: following(name) for name in ("cumsum", "cumprod")},
    "repeat": following("repeat", 2),
    **{name: following(name) for name in ("max_with_indices", "min_with_indices")},
    **{name: following(name) for name in ("cummax", "cummin")},
    "diff": following("diff", 1),
    "gather": lambda x, axis: minigrad.gather(x, axis, np.array([[0, 1, 0]])),
    "scatter": lambda x, axis: minigrad.scatter(x, axis, np.array([[0, 1, 0]]), 1.0),
    "split": following("split", 1),
    "array_split": following("array_split", 1),
    "topk": following("topk", 1),
    "take_along_axis": following("take_along_axis", np.array([[0, 1, 0]])),
    "stack": lambda x, axis: minigrad.stack([x, x], axis),
    "concatenate": lambda x, axis: minigrad.concatenate([x, x], axis),
    "swapaxes": following("swapaxes", 0),
    "moveaxis": lambda x, axis: minigrad.moveaxis(x, axis, 0),
    "diagonal": following("diagonal", 0, 0),
    "trace": following("trace", 0, 0),
}
ONCE_OR_MORE = {"roll", "expand_dims"}  # an axis may be rolled twice, a new one comes from outside


@pytest.mark.parametrize("name", OF_AXES | OF_ONE_AXIS)
def test_an_axis_that_is_not_there_or_no_integer_is_refused(name):
    function = (OF_AXES | OF_ONE_AXIS)[name]
    for axis in (3, -4) if name == "concatenate" else (3, -4, 2**40, -(10**30)):
        refused(name, (X, axis), ValueError, str(axis), function=function)
    refused(name, (X, 1.5), TypeError, function=function)


@pytest.mark.parametrize("name", [name for name in OF_AXES if name not in ONCE_OR_MORE])
def test_an_axis_named_twice_is_refused(name):
    for axes in ((0, 0), (1, -1)):
        refused(name, (X, axes), ValueError, str(axes), function=OF_AXES[name])


# Nothing to reduce

REDUCTIONS = ["max", "min", "argmax", "argmin", "mean", "var", "std", "logsumexp"]


@pytest.mark.parametrize("name", REDUCTIONS)
def test_what_needs_an_element_is_refused_along_an_empty_axis(name):
    refused(name, (NONE,), ValueError, "shape (0, 3) has no elements along axis 0", axis=0)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_what_needs_an_element_is_refused_for_none_at_all(name):
    refused(name, (NONE,), ValueError, "shape (0, 3) has no elements along axis None")


def test_a_list_without_elements_has_no_largest():
    with pytest.raises(ValueError, match=r"^max: shape \(0,\) has no elements"):
        minigrad.max([])


@pytest.mark.parametrize("name", ["mse", "l1", "huber", "binary_cross_entropy_with_logits"])
def test_a_mean_loss_of_nothing_is_refused(name):
    refused(name, (NONE, NONE), ValueError, "(0, 3)")


@pytest.mark.parametrize("name", ["cross_entropy", "nll"])
def test_a_mean_loss_of_no_targets_is_refused(name):
    refused(name, (NONE, np.zeros(0, int)), ValueError)


# Everything else


def bad(name, args, error, *words, **options):
    """A call that is wrong, the error that it raises, and what the message has to say."""
    return (name, args, error, *words), options


def places(*values):
    return np.array(values, dtype=np.int64)


LABELS = places(0, 2)
QUERY, KEY, VALUE = np.ones((2, 4)), np.ones((3, 4)), np.ones((3, 5))
OF_CLASSES = ("cross_entropy", "nll")
OF_NUMBERS = ("mse", "l1", "huber", "binary_cross_entropy_with_logits")
BCE = "binary_cross_entropy_with_logits"
ATTENTION = "scaled_dot_product_attention"
IMAGES = np.ones((1, 2, 4, 5))

SHAPES = [
    bad("expand_dims", (X, (0, 0)), ValueError, "(0, 0)"),
    bad("squeeze", (X, 0), ValueError, "(2, 3)", "size 2"),
    bad("moveaxis", (X, (0, 0), (0, 1)), ValueError, "(0, 0)"),
    bad("moveaxis", (X, 0, 5), ValueError, "5"),
    bad("moveaxis", (X, (0, 1), 0), ValueError, "2", "1"),
    bad("transpose", (X, (0, 0)), ValueError, "(2, 3)", "(0, 0)"),
    bad("transpose", (X, (0,)), ValueError, "(2, 3)", "(0,)"),
    bad("transpose", (X, (0, 5)), ValueError, "5"),
    *[
        bad(name, (1,), TypeError, "takes a sequence of tensors, not 1")
        for name in ("concatenate", "stack", "vstack", "hstack", "column_stack")
    ],
    bad("pad", (X, (1, 1, 2, 2)), ValueError, "(1, 1, 2, 2)", "[(0, 1), (0, 1)]"),
    bad("reshape", (X, (4,)), ValueError, "(2, 3)", "(4,)"),
    bad("broadcast_to", (X, (2, 4)), ValueError, "(2, 3)", "(2, 4)"),
    bad("roll", (X, (1, 2, 3), (0, 1)), ValueError, "(1, 2, 3)", "(0, 1)"),
    bad("roll", (X, 1.5, 0), TypeError, "1.5"),
    bad("diagonal", (X, 0, 1, -1), ValueError, "(1, -1)"),
    bad("diagonal", (ROW,), ValueError, "1"),
    bad("trace", (X, 0, 1, -1), ValueError, "(1, -1)"),
    bad("diag", (STACK,), ValueError, "(2, 2, 2)"),
    bad("diag", (NUMBER,), ValueError, "()"),
    bad("tril", (ROW,), ValueError, "(3,)"),
    bad("triu", (ROW,), ValueError, "(3,)"),
    *[bad(name, (X, 1.5), TypeError, "k is an integer, not 1.5") for name in ("tril", "triu")],
    bad("leaky_relu", (X, "1"), TypeError, "negative_slope must be a number, not '1'"),
    bad("elu", (X, None), TypeError, "alpha must be a number, not None"),
    *[
        bad(name, ([],), ValueError, "at least one array")
        for name in ("concatenate", "vstack", "hstack", "column_stack")
    ],
    bad("concatenate", (None,), TypeError, "takes a sequence of tensors, not None"),
    *[
        bad(name, ([[1.0], [1.0, 2.0]],), ValueError, "inhomogeneous shape")
        for name in ("sin", "softmax")
    ],
    bad("vstack", ([X, np.ones(2)],), ValueError, "called with [(2, 3) float64, (2,) float64]"),
    bad("hstack", ([X, ROW],), ValueError, "(2, 3)", "(3,)"),
    bad("column_stack", ([X, ROW],), ValueError, "called with [(2, 3) float64, (3,) float64]"),
    bad("conv2d", (STACK, np.ones((4, 2, 3, 3))), ValueError, "called with (2, 2, 2) float64, (4"),
    bad("conv1d", (STACK, np.ones((6, 2, 3)), None, 2), ValueError, "(6, 2, 3) float64, None, 2"),
    bad("conv1d", (STACK, np.ones((6, 2, 3))), ValueError, "(6, 2, 3) float64, groups=2", groups=2),
    bad("meshgrid", (X,), ValueError, "(2, 3)"),
    bad("meshgrid", ([ROW, None],), TypeError, "not None for xi"),
    bad("meshgrid", (ROW,), ValueError, "'yx'", "'xy'", indexing="yx"),
    *[
        bad(name, (X, *args), ValueError, "too large")
        for name, args in [
            *[(name, (10**30,)) for name in ("tril", "triu", "diag", "sum")],
            ("diagonal", (10**30,)),
            ("norm", (10**400, 0)),
        ]
    ],
    bad("max_pool2d", (IMAGES, 1, 10**30), ValueError, "stride must be below 2**31"),
    bad("diff", (X, -1), ValueError, "-1"),
    bad("diff", (X, 1.5), ValueError, "1.5"),
    bad("diff", (X,), ValueError, "(2,)", prepend=np.ones(2)),
    bad("nonzero", (NUMBER,), ValueError, "not a number"),
    *[
        bad("nan_to_num", (x,), TypeError, f"{name} must be a number, not {v!r}", **{name: v})
        for name in ("nan", "posinf", "neginf")
        for x in (X, np.arange(3))
        for v in ("a", True)
    ],
    bad("concatenate", ([X, ROW],), ValueError, "(2, 3)", "(3,)"),
    bad("concatenate", ([X, SQUARE], 1), ValueError, "(2, 3)", "(3, 3)"),
    bad("concatenate", ([X, X], None), ValueError, "None"),
    bad("stack", ([],), ValueError, "none"),
    bad("stack", ([X, ROW],), ValueError, "(2, 3)", "(3,)"),
    bad("split", (X, 2, 1), ValueError, "3", "2"),
    *[bad("array_split", (X, parts), ValueError, str(parts)) for parts in (0, -1, 1.5)],
    bad("split", (X, 0), ValueError, "0"),
    bad("split", (X, -1), ValueError, "-1"),
    bad("split", (X, 1.5), TypeError),
    bad("tile", (X, -1), ValueError, "-1"),
    bad("tile", (X, 1.5), TypeError),
    bad("repeat", (X, -1, 0), ValueError, "-1"),
    bad("repeat", (X, (1, 2), 1), ValueError, "3", "(1, 2)"),
    bad("repeat", (X, 1.5), TypeError),
    bad("pad", (X, -1), ValueError, "-1"),
    bad("pad", (X, 1, "mirror"), ValueError, "'mirror'", "'reflect'"),
    bad("pad", (X, ((1, 1),) * 3), ValueError, "(2, 3)", "((1, 1), (1, 1), (1, 1))"),
    bad("pad", (X, 1.5), TypeError, "1.5"),
    bad("pad", (NONE, 1, "edge"), ValueError, "(0, 3)"),
    bad("pad", (NONE, 1, "reflect"), ValueError, "(0, 3)"),
    bad("astype", (X, "number"), TypeError, "'number'"),
]
PLACES = [
    bad("getitem", (X, 5), IndexError, "5", "size 2"),
    bad("getitem", (X, places(0, -3)), IndexError, "-3", "size 2"),
    bad("getitem", (X, (0, 0, 0)), IndexError, "2", "3"),
    bad("getitem", (X, 1.0), IndexError, "1.0"),
    bad("getitem", (X, ROW), IndexError, "float64"),
    bad("getitem", (X, np.array([True, False, True])), IndexError, "2", "3"),
    bad("getitem", (X, (places(0, 0), places(0, 0, 0))), IndexError, "(2,)", "(3,)"),
    bad("scatter_add", (ROW, places(0, 1, 9), (3,)), IndexError, "9", "size 3"),
    bad("scatter_add", (ROW, places(0, 1, -9), (3,)), IndexError, "-9", "size 3"),
    bad("scatter_add", (ROW, places(0, 1), (3,)), ValueError, "(3,)", "(2,)"),
    bad("scatter_add", (ROW, slice(2), (3,)), ValueError, "(3,)", "(2,)"),
    bad("scatter_add", (ROW, np.array([True, True]), (3,)), IndexError, "2", "3"),
    bad("scatter_add", (ROW, ROW, (3,)), IndexError, "float64"),
    bad("scatter_add", (ROW, places(0, 0, 0), (-3,)), ValueError, "(-3,)"),
    bad("take_along_axis", (X, places([0], [3]), 1), IndexError, "3"),
    bad("take_along_axis", (X, places([0], [-4]), 1), IndexError, "-4"),
    bad("take_along_axis", (X, places(0), 1), ValueError, "(2, 3)", "(1,)"),
    bad("take_along_axis", (X, places([0], [0], [0]), 1), ValueError, "(2, 3)", "(3, 1)"),
    bad("take_along_axis", (X, np.zeros((2, 1)), 1), TypeError, "float64"),
    bad("take_along_axis", (X, np.zeros((2, 1), bool), 1), TypeError, "bool"),
    bad("gather", (X, 1, places([3])), IndexError, "3"),
    bad("gather", (X, 1, places(0)), ValueError, "(2, 3)", "(1,)"),
    bad(
        "gather",
        (X, 1, places([0], [0], [0])),
        ValueError,
        "(2, 3)",
        "(3, 1)",
        "only along axis 1 may be larger",
    ),
    bad("gather", (X, 1, np.zeros((2, 1))), TypeError, "float64"),
    *[bad("scatter", (X, 1, places([i]), X), IndexError, str(i), "axis 1") for i in (3, -4)],
    bad("scatter", (X, 1, places([0], [0], [0]), X), ValueError, "(2, 3)", "(3, 1)"),
    bad(
        "scatter",
        (X, 1, places([0, 0]), X[:, :1]),
        ValueError,
        "src",
        "(2, 1)",
        "(1, 2)",
        "may not be larger",
    ),
    bad("scatter", (X, 1, places([0]), ROW), ValueError, "src", "(3,)"),
    bad("scatter", (X, 1, np.zeros((1, 1)), X), TypeError, "float64"),
    bad("scatter", (places(1, 2), 0, places(0), 0.5), TypeError, "int64", "astype"),
    bad("topk", (X, 4), ValueError, "4", "(2, 3)", "axis 1"),
    bad("topk", (X, -1), ValueError, "-1"),
    bad("topk", (X, 1.5), TypeError, "1.5"),
    bad("topk", (NUMBER, 1), ValueError, "-1"),
    bad("topk", (X, 1, -1, "no"), TypeError, "largest must be True or False, not 'no'"),
    *[
        bad(name, (X, -1, "stable"), TypeError, "descending must be True or False, not 'stable'")
        for name in ("sort", "argsort")
    ],
    bad("one_hot", (ROW,), TypeError, "float64"),
    bad("one_hot", (places(0, 3), 3), ValueError, "0 to 3", "3 classes"),
    bad("one_hot", (places(0, -1), 3), ValueError, "-1", "3 classes"),
    bad("one_hot", (places(0, -1),), ValueError, "labels must be at least 0, and one is -1"),
    bad("one_hot", (places(), -2), ValueError, "-2"),
    bad("one_hot", (places(0), 1.5), TypeError, "1.5"),
    bad("embedding", (places(0, 2), X), IndexError, "0 to 2", "2 rows"),
    bad("embedding", (places(0, -1), X), IndexError, "-1", "2 rows"),
    bad("embedding", (ROW, X), TypeError, "float64"),
    bad("embedding", (np.array([True]), X), TypeError, "bool"),
    bad("embedding", (places(0), ROW), ValueError, "(3,)"),
    bad("embedding", (places(0), X, 2), ValueError, "2"),
    bad("embedding", (places(0), X, -3), ValueError, "-3"),
    bad("embedding", (places(0), X, 0.5), TypeError, "padding_idx is an integer, not 0.5"),
]
NUMBERS = [
    bad("add", (X, np.ones(4)), ValueError, "(2, 3)", "(4,)"),
    bad("where", (X > 0, np.zeros((2, 3), np.int8), 300), ValueError, "300"),
    bad("where", (X > 0, X, np.ones(4)), ValueError, "(2, 3)", "(4,)"),
    *[
        bad(name, (X, np.ones(4)), ValueError, "(4,)")
        for name in ("arctan2", "logaddexp", "hypot", "copysign", "fmod", "xlogy", "isclose")
    ],
    bad("swiglu", (X, np.ones(4)), ValueError, "(4,)"),
    bad("clip", (X,), ValueError, "min", "max"),
    bad("clip", (X, np.ones(4)), ValueError, "(2, 3)", "(4,)"),
    bad("round", (X, 1.5), TypeError, "1.5"),
    bad("gelu", (X, "fast"), ValueError, "'fast'", "'tanh'"),
    bad("softplus", (X, 0.0), ValueError, "0.0"),
    bad("softplus", (X, "a"), TypeError, "beta must be a number, not 'a'"),
    bad("huber", (X, X), TypeError, "delta must be a number, not 'a'", delta="a"),
    *[
        bad(name, (NONE, NONE), ValueError, "no losses in shape (0, 3)")
        for name in ("mse", "l1", "huber")
    ],
    bad("var", (ROW,), ValueError, "3 elements", "ddof=3", ddof=3),
    bad("std", (ROW,), ValueError, "3 elements", "ddof=4", ddof=4),
    bad("var", (ROW,), ValueError, "ddof must be in (-inf, inf), not nan", ddof=math.nan),
    *[
        bad(name, (X, 0, float), TypeError, "ddof must be a number, not <class 'float'>")
        for name in ("var", "std")
    ],
    bad("dropout", (X, 1.5), ValueError, "1.5"),
    bad("dropout", (X, math.nan), ValueError, "nan"),
    bad("dropout", (X, 0.5, "no"), TypeError, "training must be True or False, not 'no'"),
    bad(ATTENTION, (X, X, X), TypeError, "scale must be a number, not 'a'", scale="a"),
    bad(ATTENTION, (X, X, X), TypeError, "is_causal must be True or False", is_causal="no"),
    bad(ATTENTION, (X, X, X), TypeError, "enable_gqa must be True or False", enable_gqa="no"),
    *[
        bad("norm", (ROW, ord), ValueError, repr(ord), "vectors")
        for ord in (math.nan, "fro", "nuc")
    ],
    *[
        bad("norm", (X, ord), ValueError, repr(ord), "matrices")
        for ord in (3, -3, 0, 0.5, math.nan, "trace")
    ],
    bad("norm", (STACK, 1), ValueError, "3 axes", "(2, 2, 2)"),
    bad("norm", (NONE, math.inf, 0), ValueError, "(0, 3)"),
    *[bad(name, (X, X), TypeError, "float64") for name in ("logical_and", "logical_or")],
    *[bad(name, (X,), TypeError, "float64") for name in ("logical_not", "any", "all")],
]
PRODUCTS = [
    bad("matmul", (X, X), ValueError, "(2, 3) and (2, 3)", "b.T"),
    bad("matmul", (X, NUMBER), ValueError),
    bad("matmul", (STACK, np.ones((3, 2, 2))), ValueError, "(2, 2, 2)", "(3, 2, 2)"),
    bad("linear", (X, X.T), ValueError, "(2, 3)", "(3, 2)"),
    bad("linear", (X, SQUARE, np.ones(2)), ValueError, "(2,)", "(3, 3)"),
    bad("linear", (X, SQUARE[None]), ValueError, "(1, 3, 3)"),
    bad("dot", (X, X), ValueError, "(2, 3) and (2, 3)"),
    bad("dot", (X, STACK), ValueError, "(2, 3)", "(2, 2, 2)"),
    bad("inner", (X, np.ones(2)), ValueError, "(2, 3)", "(2,)"),
    *[
        bad("tensordot", (X, X, axes), ValueError, *words)
        for axes, words in [
            (1, ["(2, 3)", "do not align"]),
            (3, ["(-3, -2, -1)"]),
            (-1, ["-1"]),
            ((0, 5), ["5"]),
            ((0, (0, 1)), ["(0,)", "(0, 1)"]),
            (((0, 0), (0, 1)), ["(0, 0)", "repeated"]),
            ((0,), ["(0,)"]),
        ]
    ],
    bad("tensordot", (X, X, 1.0), TypeError, "axes are an integer, or those of a", "1.0"),
    *[
        bad("einsum", (subscripts, *operands), ValueError, repr(subscripts), "operands of shapes")
        for subscripts, operands in [
            ("ij,jk", [X]),
            ("ij", []),
            ("i,i->,", [ROW, ROW]),
            ("ij...->i", [X, ROW]),
            ("", [X]),
            ("ijk->i", [X]),
            ("i->i", [X]),
            ("i2->i", [X]),
            ("i.j->i", [X]),
            ("i...j...->i", [X]),
            ("ij,jk-ik", [X, SQUARE]),
            ("ij->ik", [X]),
            ("ij->ii", [X]),
            ("ij->i->j", [X]),
            ("...->...i", [X]),
            ("ij,jk->ik", [X, X]),
            ("ii->i", [X]),
            ("...ij,...i", [STACK, np.ones((3, 2))]),
        ]
    ],
    bad("einsum", ("ii", np.ones((1, 3))), ValueError, "repeats", "(1, 3)"),
    bad("einsum", (X, "ij->i"), TypeError),
]
MATRICES = [
    *[
        bad(name, (a,), ValueError, str(a.shape))
        for name in ("inv", "det", "cholesky", "eigh", "eigvalsh", "slogdet")
        for a in (X, ROW, NONE)
    ],
    bad("solve", (X, ROW), ValueError, "(2, 3)"),
    bad("solve", (SQUARE, X), ValueError, "a of shape (3, 3)", "b of shape (2, 3)"),
    bad("solve", (ROW, ROW), ValueError, "(3,)"),
    bad("solve", (SQUARE, np.ones((4, 1))), ValueError, "(3, 3)", "(4, 1)"),
    bad("solve", (SQUARE, NUMBER), ValueError, "(3, 3)", "()"),
    bad("solve", (STACK + np.eye(2), np.ones((3, 2, 1))), ValueError, "(2, 2, 2)", "(3, 2, 1)"),
    bad("inv", (SINGULAR,), ValueError, "singular"),
    bad("inv", (np.stack([SQUARE, SINGULAR]),), ValueError, "(1,)", "singular"),
    bad("solve", (SINGULAR, ROW), ValueError, "singular"),
    bad("solve", (np.stack([SQUARE] * 2), X), ValueError, "b[..., None] is a stack of vectors"),
    bad("solve", (np.zeros((4, 2, 3, 3)), np.zeros((4, 3, 3))), ValueError, "does not fit"),
    bad("solve", (np.zeros((2, 3, 3, 3)), np.zeros((2, 3, 3))), ValueError, "b[..., None] is a"),
    bad("solve", (SQUARE, X.T), ValueError, "(..., k, n)", "(3, 2)", left=False),
    bad("matrix_power", (X, 2), ValueError, "(2, 3)"),
    bad("matrix_power", (SQUARE, 0.5), TypeError, "n is an integer, not 0.5"),
    bad("matrix_power", (SINGULAR, -1), ValueError, "singular"),
    *[
        bad(name, args, ValueError, *words)
        for name in ("svd", "svdvals", "pinv")
        for args, words in [((ROW,), ["(3,)"]), ((NOT_FINITE,), ["(1,)", "nan or an inf"])]
    ],
    *[
        bad(name, (NOT_FINITE,), ValueError, "(1,)", "nan or an inf")
        for name in ("eigh", "eigvalsh")
    ],
    bad("pinv", (X,), ValueError, "(2, 3)", hermitian=True),
    bad("pinv", (X, "a"), TypeError, "rcond is a number or None, not 'a'"),
    *[
        bad(name, (X, 1.5), TypeError, "offset is an integer, not 1.5")
        for name in ("diagonal", "trace")
    ],
    *[bad("diag", (x, 1.5), TypeError, "k is an integer, not 1.5") for x in (X, ROW)],
    bad("svd", (X,), TypeError, "minigrad.svdvals", compute_uv=False),
    bad("eigh", (SQUARE,), TypeError, "both triangles", UPLO="U"),
    bad("cholesky", (-np.eye(2),), ValueError, "positive definite", "-1"),
    bad("cholesky", (np.stack([SQUARE, -SQUARE]),), ValueError, "(1,)", "positive definite"),
    bad("cholesky", (np.zeros((4, 4)),), ValueError, "positive definite", "0"),
]
NETWORKS = [
    *[
        bad(name, args, ValueError, *words)
        for name in ("layer_norm", "rms_norm")
        for args, words in [
            ((X, 4), ["(2, 3)", "(4,)"]),
            ((X, (3, 2)), ["(2, 3)", "(3, 2)"]),
            ((ROW, (1, 3)), ["(3,)", "(1, 3)"]),
            ((X, ()), ["()"]),
            ((np.zeros((2, 0)), 0), ["(0,)"]),
            ((X, 3, np.ones(2)), ["(3,)", "(2,)"]),
            ((X, 3, np.ones(1)), ["(3,)", "(1,)"]),
        ]
    ],
    *[
        bad(name, (X, *args), error, "eps must be", repr(eps), eps=eps)
        for name, args in [
            ("layer_norm", (3,)),
            ("rms_norm", (3,)),
            ("group_norm", (3,)),
            ("batch_norm", (ROW, ROW)),
        ]
        for eps, error in [(-1, ValueError), (math.inf, ValueError), ("a", TypeError)]
    ],
    bad("layer_norm", (X, 3, None, np.ones(2)), ValueError, "(3,)", "has (2,)"),
    *[
        bad(f"{kind}_pool{d}d", args, ValueError, *words, **options)
        for kind in ("max", "avg")
        for d, args, words, options in [
            (2, (X, 1), ["(N, C, H, W) or (C, H, W)", "(2, 3)"], {}),
            (1, (ROW, 1), ["(N, C, L) or (C, L)", "(3,)"], {}),
            (2, (IMAGES[:, :0], 1), ["only N may be 0", "(1, 0, 4, 5)"], {}),
            (2, (IMAGES, 6), ["spans 6", "size 4"], {}),
            (2, (IMAGES, (4, 8)), ["spans 8", "size 5", "padding 1"], {"padding": (0, 1)}),
            (2, (IMAGES, 2, 0), ["stride", "0"], {}),
            (2, (IMAGES, 2.0), ["kernel_size", "2.0"], {}),
            (2, (IMAGES, (2, 2, 2)), ["kernel_size is one number, or 2 of them", "(2, 2, 2)"], {}),
            (1, (X, 2, 1), ["padding = 2", "more than half"], {"padding": 2}),
            (1, (X, 2, 1), ["padding", "-1"], {"padding": -1}),
        ]
    ],
    bad("max_pool1d", (X, 2), ValueError, "dilation", "0", dilation=0),
    bad("max_pool1d", (X, 2), ValueError, "spans 4", "size 3", dilation=3),
    bad("max_pool1d", (X[:, :1], 2, 1, 1, 2), ValueError, "no element", "size 1"),
    *[
        bad(
            "avg_pool2d",
            (IMAGES, 2),
            ValueError,
            "integer other than 0, or None, not",
            repr(value),
            divisor_override=value,
        )
        for value in (0, 0.5, 2.5, True, "a")
    ],
    *[
        bad(name, (IMAGES[0], 2), TypeError, "ceil_mode must be True or False, not 2", ceil_mode=2)
        for name in ("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d")
    ],
    *[
        bad(name, (IMAGES[0], 2), TypeError, "count_include_pad", "None", count_include_pad=None)
        for name in ("avg_pool1d", "avg_pool2d")
    ],
    bad("adaptive_avg_pool1d", (ROW, 1), ValueError, "(N, C, L) or (C, L)", "has (3,)"),
    bad("adaptive_avg_pool1d", (X, (1, 1)), ValueError, "output_size is one number, not (1, 1)"),
    bad("adaptive_avg_pool2d", (IMAGES, -1), ValueError, "output_size", "-1"),
    bad("adaptive_avg_pool2d", (IMAGES, (1,)), ValueError, "one number, or 2", "1"),
    bad("adaptive_avg_pool2d", (IMAGES[:, :, :0], 1), ValueError, "(1, 2, 0, 5)"),
    bad("batch_norm", (X, None, None), ValueError, "running_mean and running_var"),
    bad("batch_norm", (X[:1], None, None), ValueError, "shape (1, 3)", "has 1. Use", training=True),
    bad("batch_norm", (X[:0], None, None), ValueError, "shape (0, 3)", "has 0. Use", training=True),
    bad("batch_norm", (ROW, None, None), ValueError, "(N, C, ...)", training=True),
    bad("batch_norm", (X, None, None, np.ones(2)), ValueError, "weight", "(3,)", training=True),
    bad("batch_norm", (X, np.ones(2), np.ones(3)), ValueError, "running_mean", "(3,)", "has (2,)"),
    bad("batch_norm", (X, ROW, ROW), TypeError, "momentum must be a number", momentum=None),
    bad("batch_norm", (X, ROW, ROW), ValueError, "momentum must be in [0, 1]", "2", momentum=2),
    bad("batch_norm", (X, ROW, ROW), TypeError, "training must be True or False", training=1),
    bad("batch_norm", (X, [0.0] * 3, ROW), TypeError, "running_mean", training=True),
    bad("batch_norm", (X, None, places(1, 1, 1)), TypeError, "running_var", training=True),
    bad("batch_norm", (X, minigrad.zeros(3, requires_grad=True), ROW), TypeError, "no gradient"),
    bad("group_norm", (X, 2), ValueError, "num_groups = 2", "3 channels"),
    bad("group_norm", (X, 0), ValueError, "num_groups", "0"),
    bad("group_norm", (X, 3, None, np.ones(2)), ValueError, "bias", "(3,)", "has (2,)"),
    bad("rope", (ROW, ROW, ROW), ValueError, "(3,)"),
    bad("rope", (X, X, X), ValueError, "even", "(2, 3)"),
    bad("rope", (1.0, X, X), ValueError, "even", "()"),
    bad("rms_norm", (1.0, 3, ROW), ValueError, "()", "(3,)"),
    bad("convolution_input", (IMAGES, 1.0, (4, 5)), ValueError, "weight", "4 axes", "()"),
    bad("convolution_weight", (IMAGES, 1.0, (2, 2)), ValueError, "x", "4 axes", "()"),
    bad("rope", (QUERY, SQUARE, SQUARE), ValueError, "cos and sin", "(3, 3)", "(2, 4)", "(2, 2)"),
    bad("rope", (QUERY, QUERY[:, :2], ROW), ValueError, "cos and sin", "(3,)", "(2, 4)", "(2, 2)"),
    bad(ATTENTION, (ROW, KEY, VALUE), ValueError, "(3,)"),
    bad(ATTENTION, (QUERY, SQUARE, VALUE), ValueError, "(2, 4)", "(3, 3)"),
    bad(ATTENTION, (QUERY, KEY, QUERY), ValueError, "(3, 4)", "(2, 4)"),
    bad(ATTENTION, (QUERY, np.ones((0, 4)), np.ones((0, 5))), ValueError, "(0, 4)"),
    bad(ATTENTION, (QUERY[:, :0], KEY[:, :0], VALUE), ValueError, "(2, 0)"),
    bad(
        ATTENTION,
        (np.ones((2, 2, 4)), np.ones((3, 3, 4)), VALUE),
        ValueError,
        "(2, 2, 4)",
        "(3, 3, 4)",
    ),
    bad(ATTENTION, (QUERY[[[0]] * 4], KEY[[[0]] * 2], VALUE[:1]), ValueError, "enable_gqa=True"),
    *[
        bad(
            ATTENTION,
            [np.ones((n, 3, 4)) for n in (4, *heads)],
            ValueError,
            "of key and value divide those of the query",
            f"({heads[0]}, 3, 4)",
            enable_gqa=True,
        )
        for heads in [(3, 2), (2, 3), (8, 8), (0, 0)]
    ],
    *[
        bad(ATTENTION, (QUERY, KEY, VALUE), error, *words, **options)
        for options, error, words in [
            ({"attn_mask": np.ones((3, 2), bool)}, ValueError, ["(3, 2)", "(2, 3)"]),
            ({"attn_mask": np.ones((2, 2, 3), bool)}, ValueError, ["(2, 2, 3)", "(2, 3)"]),
            ({"attn_mask": np.ones((2, 3), int)}, TypeError, ["int64"]),
            ({"attn_mask": np.tri(2, 3), "is_causal": True}, ValueError, ["is_causal"]),
            ({"dropout_p": 1.5}, ValueError, ["dropout_p", "1.5"]),
            ({"causal_offset": 2}, ValueError, ["causal_offset = 2", "is_causal=True"]),
            ({"causal_offset": -1, "is_causal": True}, ValueError, ["causal_offset", "-1"]),
            ({"causal_offset": 0.5, "is_causal": True}, ValueError, ["causal_offset", "0.5"]),
            ({"enable_gqa": True}, ValueError, ["axis -3", "(2, 4)"]),
        ]
    ],
]
LOSSES = [
    *[
        bad(name, (X, target), error, *words, **options)
        for name in OF_CLASSES
        for target, options, error, words in [
            (places(0, 3), {}, ValueError, ["0 to 3", "3 classes"]),
            (places(0, -1), {}, ValueError, ["-1", "3 classes"]),
            (places(0, 1, 2), {}, ValueError, ["(2,)", "(3,)"]),
            (places([0], [1]), {}, ValueError, ["(2,)", "(2, 1)"]),
            (np.array([True, False]), {}, TypeError, ["bool"]),
            (np.zeros(2), {}, TypeError, ["float64"]),
            (LABELS, {"reduction": "average"}, ValueError, ["'average'", "'mean'"]),
            (LABELS, {"weight": np.ones(2)}, ValueError, ["3 classes", "(2,)"]),
            (LABELS, {"weight": np.array(1.0)}, ValueError, ["3 classes", "()"]),
            (places(-100, -100), {}, ValueError, ["ignore_index"]),
            (places(1, 1), {"weight": np.float64([1, 0, 1])}, ValueError, []),
        ]
    ],
    *[bad(name, (NUMBER, places()), ValueError, "axis of classes") for name in OF_CLASSES],
    *[
        bad("cross_entropy", (X, LABELS), ValueError, str(amount), label_smoothing=amount)
        for amount in (1.5, -0.1, math.nan)
    ],
    bad("cross_entropy", (X, X), ValueError, "3 classes", "(2,)", weight=np.ones(2)),
    bad("cross_entropy", (X, X), ValueError, "'average'", reduction="average"),
    bad("cross_entropy", (X, X), ValueError, "ignore_index", ignore_index=1),
    *[bad(name, (X, np.ones((2, 1))), ValueError, "(2, 3)", "(2, 1)") for name in OF_NUMBERS],
    *[bad(name, (X, np.ones((2, 3)), "average"), ValueError, "'average'") for name in OF_NUMBERS],
    *[bad("huber", (X, X), ValueError, str(delta), delta=delta) for delta in (0, -1.0, math.nan)],
    *[
        bad(BCE, (X, target + 0 * X), ValueError, str(target), reduction=reduction)
        for target, reduction in [(1.5, "mean"), (-0.5, "sum"), (math.nan, "none")]
    ],
    *[
        bad(BCE, (X, np.ones((2, 3))), ValueError, name, *words, **{name: value})
        for name in ("weight", "pos_weight")
        for value, words in [(np.ones(4), ["(4,)", "(2, 3)"]), (np.array([-1.5]), ["-1.5"])]
    ],
]


ALL = [*SHAPES, *PLACES, *NUMBERS, *PRODUCTS, *MATRICES, *NETWORKS, *LOSSES]


@pytest.mark.parametrize("name", dict.fromkeys(call[0] for call, _ in ALL))
def test_bad_input_is_refused(name):
    problems = [problem(*call, **options) for call, options in ALL if call[0] == name]
    assert [found for found in problems if found] == []


@pytest.mark.parametrize("name", OF_CLASSES)
def test_weights_of_classes_are_not_learned(name):
    weight = Tensor(np.ones(3), requires_grad=True)
    refused(name, (X, LABELS), TypeError, "weight.detach()", weight=weight)


def test_the_derivative_of_a_determinant_that_is_not_offered_is_refused():
    out = minigrad.det(Tensor(np.zeros((17, 17)), requires_grad=True))
    with pytest.raises(ValueError, match=r"det: .* up to 16 x 16, not for 17 x 17"):
        out.backward()


@pytest.mark.parametrize("name", ["std", "norm"])
def test_float16_that_was_unpickled_is_widened_too(name):
    x = np.array([300, -300] * 50, np.float16)
    function = getattr(minigrad, name)
    assert function(pickle.loads(pickle.dumps(x))) == function(x) >= 300


def test_a_list_beside_float64_is_float64_by_name_too():
    prediction = Tensor(np.array([0.1, 0.2]))
    assert minigrad.mse(prediction=prediction, target=[0.1, 0.2]).item() == 0


def test_numbers_beyond_all_sizes_are_as_good_as_infinite():
    assert minigrad.diff(Tensor(X), 10**30).shape == (2, 0)
    assert minigrad.norm(Tensor(ROW), -(2**70), 0).item() == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda dtype: minigrad.tensor([1.0], dtype=dtype),
        lambda dtype: minigrad.zeros(3, dtype=dtype),
        lambda dtype: minigrad.randn(3, dtype=dtype),
        lambda dtype: Tensor(X).astype(dtype),
        lambda dtype: minigrad.nn.Linear(2, 3, dtype=dtype),
        lambda dtype: minigrad.nn.Linear(2, 3).astype(dtype),
    ],
)
def test_what_is_no_dtype_is_refused_with_an_example_of_one(call):
    for wrong in ("flaot32", 32, object()):
        with pytest.raises(TypeError, match=r"dtype .*float32.*, not "):
            call(wrong)


def test_a_number_is_broadcast_as_an_array_is():
    assert minigrad.broadcast_to(Tensor(3.0), 2).shape == (2,)
    with pytest.raises(ValueError, match="must be non-negative"):
        minigrad.broadcast_to(Tensor(3.0), (-1,))


def test_a_message_has_the_name_of_its_function_once():
    with pytest.raises(TypeError, match=r"^linear_cross_entropy: the weight is a matrix, not 3$"):
        minigrad.linear_cross_entropy(minigrad.ones(2, 3), 3, [0, 1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: minigrad.outer(np.float64(2), x),
        lambda x: minigrad.kron(2.0, x),
        lambda x: minigrad.diff(x, prepend=np.float64(0)),
        lambda x: minigrad.tensordot(np.float64(2), x, 0),
    ],
)
def test_a_number_does_not_set_the_dtype_of_a_composition(function, dtype):
    assert function(Tensor(np.ones(3, dtype))).dtype == dtype


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize(
    "function",
    [
        minigrad.xlogy,
        minigrad.outer,
        minigrad.kron,
        lambda x, y: minigrad.l1(x.sum(), y),
        lambda x, y: minigrad.binary_cross_entropy_with_logits(x, x, weight=y),
        lambda x, y: minigrad.binary_cross_entropy_with_logits(x, x, pos_weight=y),
    ],
)
def test_a_number_keeps_its_digits_beside_float64(function, shape):
    x = Tensor(np.full(shape, 0.7))
    result = function(x, 0.1)
    np.testing.assert_allclose(result.data, function(x, np.array(0.1)).data, 1e-15)
    assert result.dtype == np.float64


def test_arrays_in_a_foreign_byte_order_become_tensors_in_the_native_one():
    assert minigrad.exp(np.ones(2, ">f4")).dtype == np.float32
    assert Tensor([1.0]).astype(">f4").dtype == np.float32
    for name in ("svdvals", "eigvalsh", "norm"):
        assert getattr(minigrad, name)(np.eye(2, dtype=">f2")).dtype == np.float16
    with pytest.raises(TypeError, match="not None"):
        Tensor([1.0]).astype(None)


def test_gradients_of_a_product_that_is_subnormal_are_exact():
    x = Tensor(np.array([3e-30, 1e-14], np.float32), requires_grad=True)
    x.prod().backward()
    np.testing.assert_allclose(x.grad.data, [1e-14, 3e-30], rtol=1e-6)


def test_a_mask_in_a_list_is_refused_as_a_masked_array_is():
    with pytest.raises(TypeError, match="a tensor has no mask"):
        minigrad.tensor([np.ma.array([1.0, 2.0], mask=[0, 1])])


IMAGE = np.ones((1, 1, 2, 2))


@pytest.mark.parametrize(
    ("name", "argument", "call"),
    [
        *[(loss, "prediction", lambda f: f(None, X)) for loss in ("mse", "l1", "huber")],
        ("mse", "target", lambda f: f(X, target=None)),
        (BCE, "logits", lambda f: f(None, X)),
        ("cross_entropy", "logits", lambda f: f(None, LABELS)),
        ("nll", "log_probabilities", lambda f: f(None, LABELS)),
        ("scaled_dot_product_attention", "key", lambda f: f(QUERY, None, VALUE)),
        ("conv2d", "x", lambda f: f(None, IMAGE)),
        ("dropout", "x", lambda f: f(None, 0.5, rng=0)),
        ("linear", "weight", lambda f: f(Tensor(X), None)),
        ("matmul", "b", lambda f: f(X, None)),
        ("concatenate", r"arrays\[3\]", lambda f: f([X, X, X, None])),
        ("stack", r"arrays\[1\]", lambda f: f([X, None])),
        *[(name, "x", lambda f: f(None)) for name in ("std", "norm", "softmax", "gelu", "sum")],
        *[(name, "x", lambda f: f(None)) for name in ("max", "mean", "exp", "relu", "cumsum")],
        *[(name, "x", lambda f: f(None)) for name in ("isnan", "argmax", "argsort", "any")],
        *[(name, "a", lambda f: f(None, X)) for name in ("less", "logical_or")],
        ("where", "condition", lambda f: f(None, X, X)),
    ],
)
def test_none_is_no_tensor_and_its_argument_is_named(name, argument, call):
    says = rf"^{name}: takes tensors, arrays and numbers, not None for {argument}; a function"
    with pytest.raises(TypeError, match=says):
        call(getattr(minigrad, name))


def test_a_comparison_with_none_by_an_operator_is_no_error():
    assert not (Tensor(X) == None).any()  # noqa: E711
    assert (Tensor(X) != None).all()  # noqa: E711


def test_layers_refuse_none_too():
    layers = [nn.BatchNorm2d(3), nn.GroupNorm(1, 3), nn.LSTM(3, 3), nn.GRUCell(3, 3)]
    for layer in [*layers, nn.LayerNorm(3), nn.Conv2d(1, 1, 1), nn.Linear(3, 3), nn.Dropout(0.5)]:
        with pytest.raises(TypeError, match=r"^\w+: takes tensors, .* not None for x; a function"):
            layer(None)
    with pytest.raises(TypeError, match=r"^MultiHeadAttention: .* not None for query; a function"):
        nn.MultiHeadAttention(4, 2)(None)


@pytest.mark.parametrize("name", ["norm", "svd", "svdvals", "eigh", "eigvalsh", "var", "sinc"])
def test_complex_numbers_do_not_lose_their_imaginary_part(name):
    hermitian = np.array([[0, -1j], [1j, 0]])
    says = rf"^{name}: a tensor contains booleans, integers or floats, not complex128"
    with pytest.raises(TypeError, match=says):
        getattr(minigrad, name)(hermitian)
    with pytest.raises(TypeError, match=r"^astype: .* not complex128"):
        minigrad.astype(hermitian, np.float32)
