"""Live comparison with PyTorch, and of second derivatives with HIPS autograd.

A row of the table is compared with PyTorch's function of the same name, in value and in gradient;
so is a row with random shapes. Where PyTorch has another name or other arguments, PYTORCH says how
to call it. Where we differ on purpose, DIFFERENT says why, and a test that it is still so.

    python -m tests.test_peers

prints the largest relative difference for each op.
"""

import contextlib
import itertools
import warnings
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose

import minigrad
from minigrad import Tensor, grad
from tests.cases import (
    CASES,
    GIVE_FLOAT32,
    Case,
    below,
    classes,
    distinct,
    fixed,
    fractions,
    joined,
    nonzero,
    normal,
    positive,
)

pytestmark = pytest.mark.peers

# --------------------------------------------------------------------------------------------------
# What PyTorch has. `t` is the module, imported when the tests run, for most runs do without
# --------------------------------------------------------------------------------------------------

RENAMED = {
    **{"axis": "dim", "axis1": "dim1", "axis2": "dim2", "keepdims": "keepdim"},
    **{"y": "other", "k": "diagonal", "shape": "size"},
}


def pytorch(t, name):
    """PyTorch's function for ours of this name."""
    if name in PYTORCH:
        return partial(PYTORCH[name], t)
    places = (t, t.nn.functional, t.linalg, t.special)
    function = next(getattr(place, name) for place in places if hasattr(place, name))

    def call(*xs, **options):
        return function(*xs, **{RENAMED.get(key, key): value for key, value in options.items()})

    return call


def another(name, *path):
    """The same function under another name, `t.<path>.<name>`."""

    def call(t, *xs, **options):
        for part in (*path, name):
            t = getattr(t, part)
        return t(*xs, **{RENAMED.get(key, key): value for key, value in options.items()})

    return call


def dims(x, axis):
    """All of them for None, which some of PyTorch's functions do not take."""
    return tuple(range(x.ndim)) if axis is None else axis


def over_one(name):
    """A function of one dim, on each of several in turn, or all in a row for None."""

    def call(t, x, axis=None, keepdims=False):
        axes = sorted(np.atleast_1d(dims(x, axis)) % max(x.ndim, 1), reverse=True)
        for i in axes:
            x = getattr(t, name)(x, int(i), keepdims)
        return x

    return call


def in_a_row(name):
    """A function of one dim, where None stands for all elements in a row."""

    def call(t, x, axis=None, **options):
        if axis is None:
            x, axis = x.reshape(-1), 0
        return getattr(t, name)(x, dim=axis, **options)

    return call


def spread_moments(name):
    return lambda t, x, axis=None, ddof=0, keepdims=False: getattr(t, name)(
        x, axis, correction=ddof, keepdim=keepdims
    )


def expand_dims(t, x, axis):
    count = x.ndim + np.size(axis)
    for i in sorted(a % count for a in np.atleast_1d(axis)):
        x = x.unsqueeze(int(i))
    return x


def scatter_add(t, values, index, shape):
    """By the places in a row, which PyTorch's own functions want."""
    places = t.arange(np.prod(shape)).reshape(shape)[index]
    values = values.broadcast_to(places.shape)
    zeros = t.zeros(np.prod(shape), dtype=values.dtype)
    return zeros.index_add(0, places.reshape(-1), values.reshape(-1)).reshape(shape)


def clip(t, x, min=None, max=None):
    """PyTorch takes two numbers or two tensors."""
    if isinstance(min, t.Tensor) or isinstance(max, t.Tensor):
        min, max = (None if b is None else t.as_tensor(b, dtype=x.dtype) for b in (min, max))
    return t.clip(x, min, max)


def tile(t, x, reps):
    return t.tile(x, (reps,) if isinstance(reps, int) else tuple(map(int, reps)))


def repeat(t, x, repeats, axis=None):
    if not isinstance(repeats, int):
        repeats = t.as_tensor(repeats)
    return t.repeat_interleave(x, repeats, axis)


def roll(t, x, shift, axis=None):
    if isinstance(shift, tuple) != isinstance(axis, tuple):
        count = len(shift) if isinstance(shift, tuple) else np.size(axis)
        shift, axis = (v if isinstance(v, tuple) else (v,) * count for v in (shift, axis))
    return t.roll(x, shift, axis)


def pad(t, x, pad_width, mode="constant", constant_values=0.0):
    """PyTorch begins with the last axis, and repeats elements of stacks of images only."""
    widths = np.broadcast_to(np.array(pad_width), (x.ndim, 2))[::-1].ravel().tolist()
    if mode == "constant":
        return t.nn.functional.pad(x, widths, mode, constant_values)
    names = {"edge": "replicate", "wrap": "circular"}
    return t.nn.functional.pad(x[None, None], widths, names.get(mode, mode))[0, 0]


def norm(t, x, ord=None, axis=None, keepdims=False):
    return t.linalg.norm(x, ord, axis, keepdims)


def outer(t, x, y):
    return t.outer(x.reshape(-1), y.reshape(-1))


def dot(t, x, y):
    """numpy's, which contracts the last axis of x with the last but one of y."""
    if x.ndim == 0 or y.ndim == 0:
        return t.mul(x, y)
    return t.tensordot(x, y, ([x.ndim - 1], [max(y.ndim - 2, 0)]))


def layer_norm(t, x, normalized_shape, **parameters):
    sizes = np.atleast_1d(normalized_shape).tolist()
    return t.nn.functional.layer_norm(x, sizes, **parameters)


def rms_norm(t, x, normalized_shape, **parameters):
    return t.nn.functional.rms_norm(x, np.atleast_1d(normalized_shape).tolist(), **parameters)


def without_generator(name):
    return lambda t, *xs, rng=None, **options: getattr(t.nn.functional, name)(*xs, **options)


def one_hot(t, labels, num_classes=-1):
    return t.nn.functional.one_hot(labels.long(), num_classes)


def binary_cross_entropy(t, logits, target, reduction="mean", pos_weight=None):
    if pos_weight is not None:
        pos_weight = t.as_tensor(pos_weight, dtype=logits.dtype)
    return t.nn.functional.binary_cross_entropy_with_logits(
        logits, target, reduction=reduction, pos_weight=pos_weight
    )


def of_classes(name):
    def call(t, scores, target, weight=None, **options):
        weight = None if weight is None else weight.to(scores.dtype)
        return getattr(t.nn.functional, name)(scores, target, weight, **options)

    return call


PYTORCH = {
    "equal": another("eq"),
    "power": lambda t, x, y: t.pow(x, y),
    "maximum": lambda t, x, y: t.maximum(x, t.as_tensor(y, dtype=x.dtype)),
    "minimum": lambda t, x, y: t.minimum(x, t.as_tensor(y, dtype=x.dtype)),
    "arctan2": lambda t, y, x: t.arctan2(y, t.as_tensor(x, dtype=y.dtype)),
    "where": lambda t, condition, x, y: t.where(t.as_tensor(condition), x, y),
    "clip": clip,
    "max": lambda t, x, axis=None, keepdims=False: t.amax(x, dims(x, axis), keepdims),
    "min": lambda t, x, axis=None, keepdims=False: t.amin(x, dims(x, axis), keepdims),
    "logsumexp": lambda t, x, axis=None, keepdims=False: t.logsumexp(x, dims(x, axis), keepdims),
    "var": spread_moments("var"),
    "std": spread_moments("std"),
    "prod": over_one("prod"),
    "cumsum": in_a_row("cumsum"),
    "cumprod": in_a_row("cumprod"),
    "argsort": lambda t, x, axis=-1, **options: in_a_row("argsort")(
        t, x, axis, stable=True, **options
    ),
    "sort": lambda t, x, axis=-1, **options: in_a_row("sort")(t, x, axis, **options)[0],
    "topk": lambda t, x, k, axis=-1, largest=True: t.topk(x, k, axis, largest),
    "softmax": lambda t, x, axis=-1: t.softmax(x, axis),
    "log_softmax": lambda t, x, axis=-1: t.log_softmax(x, axis),
    "norm": norm,
    "reshape": lambda t, x, shape: t.reshape(x, shape if isinstance(shape, tuple) else (shape,)),
    "transpose": lambda t, x, axes=None: x.permute(axes or tuple(reversed(range(x.ndim)))),
    "swapaxes": lambda t, x, axis1, axis2: t.swapaxes(x, axis1, axis2),
    "expand_dims": expand_dims,
    "squeeze": lambda t, x, axis=None: t.squeeze(x) if axis is None else t.squeeze(x, axis),
    "flip": lambda t, x, axis=None: t.flip(x, np.atleast_1d(dims(x, axis)).tolist()),
    "split": lambda t, x, indices_or_sections, axis=0: t.tensor_split(x, indices_or_sections, axis),
    "tile": tile,
    "repeat": repeat,
    "roll": roll,
    "pad": pad,
    "astype": lambda t, x, dtype: x.to(dtype),
    "getitem": lambda t, x, index: x[index],
    "scatter_add": scatter_add,
    "take_along_axis": another("take_along_dim"),
    "trace": lambda t, x, offset=0, axis1=0, axis2=1: t.diagonal(x, offset, axis1, axis2).sum(-1),
    "outer": outer,
    "dot": dot,
    "solve": another("solve", "linalg"),
    "cholesky": another("cholesky", "linalg"),
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "dropout": without_generator("dropout"),
    "scaled_dot_product_attention": without_generator("scaled_dot_product_attention"),
    "one_hot": one_hot,
    "embedding": another("embedding", "nn", "functional"),
    "normal_cdf": another("ndtr", "special"),
    "mse": another("mse_loss", "nn", "functional"),
    "l1": another("l1_loss", "nn", "functional"),
    "huber": another("huber_loss", "nn", "functional"),
    "cross_entropy": of_classes("cross_entropy"),
    "nll": of_classes("nll_loss"),
    "binary_cross_entropy_with_logits": binary_cross_entropy,
}

# --------------------------------------------------------------------------------------------------
# What is otherwise on purpose
# --------------------------------------------------------------------------------------------------

# Rows that the table cannot hold, for we refuse them, or PyTorch has a second function.
OUTSIDE = [
    Case(
        "max",
        fixed([[1.0, 1.0]]),
        None,
        function=lambda f, x: getattr(x.max(1), "values", x.max(1)),
        note="the method of one axis",
    ),
    Case("cross_entropy", fixed([[1.0, 2.0]], [-100]), None, note="mean of ignored targets"),
    Case("mean", fixed(np.zeros((0, 2))), None, note="of none"),
    Case("var", fixed([1.0]), None, {"ddof": 1}, note="of one"),
    Case("mse", fixed([[1.0, 2.0]], [3.0, 4.0]), None, note="broadcast target"),
    Case("logical_and", fixed([1.0], [2.0]), None, note="of floats"),
    Case("binary_cross_entropy_with_logits", fixed([1.0], [2.0]), None, note="target of 2"),
]
DIFFERS, WE_REFUSE, PYTORCH_REFUSES = "differs", "we refuse", "PyTorch refuses"
DIFFERENT = {
    # Derivatives
    **{
        f"{name}-nan: theirs": (DIFFERS, "to the nan that was taken; PyTorch divides 0 by 0")
        for name in ("max", "min")
    },
    "clip-nan: x's": (DIFFERS, "nan is not outside of the bounds: 1, where PyTorch gives 0"),
    **{
        f"det-singular{row}": (DIFFERS, "the matrix of cofactors, where PyTorch gives 0")
        for row in (": zero column", ": equal rows", " and regular ones")
    },
    "cholesky-not symmetric": (DIFFERS, "of the symmetric part; PyTorch reads the lower triangle"),
    "max-the method of one axis": (DIFFERS, "ties share, as in PyTorch's amax"),
    "topk-ties: the first": (DIFFERS, "PyTorch does not say which of equals it takes"),
    "topk-places, True": (DIFFERS, "PyTorch does not say which of equals it takes"),
    "topk-places, False": (DIFFERS, "PyTorch does not say which of equals it takes"),
    "nll-an impossible class of weight 0": (DIFFERS, "0 inf is 0 here, and nan in PyTorch"),
    **dict.fromkeys(
        (
            "dropout-p=0.4",
            "scaled_dot_product_attention-dropout",
            "scaled_dot_product_attention-dropout and mask",
        ),
        (DIFFERS, "other numbers are drawn"),
    ),
    # What we refuse
    "cross_entropy-mean of ignored targets": (WE_REFUSE, "PyTorch gives nan"),
    "mean-of none": (WE_REFUSE, "PyTorch gives nan"),
    "var-of one": (WE_REFUSE, "PyTorch gives nan and a warning"),
    "mse-broadcast target": (WE_REFUSE, "PyTorch broadcasts, and warns that it may be a mistake"),
    "logical_and-of floats": (WE_REFUSE, "PyTorch takes all but 0 for true"),
    "binary_cross_entropy_with_logits-target of 2": (WE_REFUSE, "PyTorch does not look"),
    # What PyTorch does not have
    **{
        f"floor_divide-{row}": (PYTORCH_REFUSES, "it has no derivative there; here it is 0")
        for row in (
            *("both signs", "each sign", "broadcast", "by 3", "by -3", "by 1.5"),
            *("by zero", "on a step: 0"),
        )
    },
    **{
        f"{name}-axis={axis}": (PYTORCH_REFUSES, "one axis only")
        for name in ("softmax", "log_softmax")
        for axis in ("(0, -1)", "None")
    },
    **{
        f"{name}-axis=()": (PYTORCH_REFUSES, "() is all axes there, none here as in numpy")
        for name in ("sum", "mean", "max", "min", "logsumexp")
    },
    **{
        f"pad-pad_width={row}": (PYTORCH_REFUSES, "no such mode, or not so wide")
        for row in (
            "5,mode=reflect",
            "2,mode=symmetric",
            "7,mode=symmetric",
            "((1, 0), (2, 1)),mode=symmetric",
            "7,mode=wrap",
        )
    },
    "getitem-negative step": (PYTORCH_REFUSES, "no negative steps"),
    "getitem-small integers": (PYTORCH_REFUSES, "bytes are masks there, integers in numpy"),
    "take_along_axis-bytes": (PYTORCH_REFUSES, "int64 only"),
    "embedding-bytes": (PYTORCH_REFUSES, "int32 and int64 only"),
    "einsum-with integers": (PYTORCH_REFUSES, "one dtype only"),
    **{
        str(case): (PYTORCH_REFUSES, "floats only")
        for case in CASES
        if case.note in GIVE_FLOAT32
        if case.name
        in (
            *("leaky_relu", "elu", "silu", "gelu", "softplus", "softmax", "log_softmax"),
            *("mean", "var", "std", "norm", "layer_norm", "rms_norm", "inv", "det", "cholesky"),
        )
    },
    "binary_cross_entropy_with_logits-pos_weight is learned": (PYTORCH_REFUSES, "a constant there"),
}

# --------------------------------------------------------------------------------------------------
# The comparison
# --------------------------------------------------------------------------------------------------


class RefusedError(Exception):
    """One of both raises an error."""


@contextlib.contextmanager
def refusing(who):
    try:
        yield
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        raise RefusedError(who) from error


@dataclass(frozen=True)
class Difference:
    """The largest relative differences of a row's value and gradients from PyTorch's."""

    value: float
    gradient: float

    @property
    def largest(self):
        return max(self.value, self.gradient)


def relative(ours, theirs):
    """The largest |x - y| / max(|x|, |y|) of two arrays; nan is nan, and inf is inf.

    Elements that are far smaller than 1 and than the largest one are what cancellation left of it,
    and count relative to a millionth of it.
    """
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return np.inf
    x, y = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    size = np.maximum(np.abs(x), np.abs(y))
    largest = np.max(size, initial=1.0, where=np.isfinite(size))
    with np.errstate(invalid="ignore"):
        differences = np.abs(x - y) / np.maximum(size, 1e-6 * largest)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    return float(np.max(np.nan_to_num(differences, nan=np.inf), initial=0.0, where=~same))


def in_pytorch(t, value):
    """Arrays, tensors and dtypes of numpy's, also inside of tuples, as PyTorch's."""
    if isinstance(value, tuple):
        return tuple(in_pytorch(t, part) for part in value)
    if isinstance(value, dict):
        return {key: in_pytorch(t, part) for key, part in value.items()}
    if isinstance(value, type) and issubclass(value, np.generic):
        return t.from_numpy(np.empty(0, value)).dtype
    if isinstance(value, Tensor):
        value = value.data
    return t.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


def compare(case, seed=1):
    """How much our function and PyTorch's differ on the operands of a row.

    Where only one of both has a gradient, it differs infinitely.
    """
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    arrays = case.operands(seed=seed)
    xs = [Tensor(x.copy(), requires_grad=x.dtype.kind == "f") for x in arrays]
    ts = [torch.tensor(x.copy(), requires_grad=x.dtype.kind == "f") for x in arrays]
    options = in_pytorch(torch, case.options)
    with np.errstate(all="ignore"):  # rows that divide by zero and the like
        with refusing(WE_REFUSE):
            out = case(*xs)
        with refusing(PYTORCH_REFUSES):
            right = replace(case, options=options).apply(pytorch(torch, case.name), *ts)
        value = relative(out.data, right.detach().numpy())
        if not (out.requires_grad and right.requires_grad):
            return Difference(value, 0.0 if out.requires_grad == right.requires_grad else np.inf)
        v = np.random.default_rng(1).standard_normal(out.shape).astype(out.dtype)
        found = grad(out, [x for x in xs if x.requires_grad], v)
        with refusing(PYTORCH_REFUSES):
            exact = torch.autograd.grad(
                right, [x for x in ts if x.requires_grad], torch.from_numpy(v)
            )
    pairs = zip(found, exact, strict=True)
    return Difference(value, max(relative(x.data, y.numpy()) for x, y in pairs))


# --------------------------------------------------------------------------------------------------
# Random shapes
# --------------------------------------------------------------------------------------------------


def shape(rng, ndim=None, smallest=1):
    ndim = rng.integers(0, 4) if ndim is None else ndim
    return tuple(int(size) for size in rng.integers(smallest, 20, ndim))


def broadcastable(rng, shape):
    """A shape that goes with `shape`: some axes of size 1, some leading ones left out."""
    sizes = [1 if rng.random() < 0.3 else size for size in shape]
    return tuple(sizes[rng.integers(0, len(sizes) + 1) :])


def an_axis(rng, x_shape):
    return int(rng.integers(-len(x_shape), len(x_shape)))


def unary(make=nonzero, **options):
    return lambda rng: (make(shape(rng)), options)


def binary(make=nonzero):
    def draw(rng):
        x_shape = shape(rng)
        shapes = [x_shape, broadcastable(rng, x_shape)]
        rng.shuffle(shapes)
        return make(*map(tuple, shapes)), {}

    return draw


def chosen(rng):
    """Operands of `where`."""
    x_shape = shape(rng)
    mask, x, y = (broadcastable(rng, x_shape) for _ in range(3))
    return joined(booleans(mask), normal(x, y)), {}


def bounded(rng):
    """Operands of `clip`."""
    x_shape = shape(rng)
    return distinct(x_shape, broadcastable(rng, x_shape), broadcastable(rng, x_shape)), {}


def booleans(*shapes):
    return lambda rng: tuple(rng.random(shape) < 0.7 for shape in shapes)


def steps(*shapes):
    """Multiples of a half, so that some are equal."""
    return lambda rng: tuple(rng.integers(-4, 4, shape) / 2 for shape in shapes)


def inside(*shapes):
    return lambda rng: tuple(2 * x - 1 for x in fractions(*shapes)(rng))


def reduction(make=normal, **options):
    def draw(rng):
        x_shape = shape(rng, rng.integers(1, 4), smallest=2)
        count = rng.integers(1, len(x_shape) + 1)
        axis = tuple(int(i) for i in rng.permutation(len(x_shape))[:count] - len(x_shape))
        return make(x_shape), {"axis": axis, "keepdims": bool(rng.integers(2)), **options}

    return draw


def vectors(rng):
    """For `norm`."""
    x_shape = shape(rng, rng.integers(1, 4))
    ord = [1, 2, 3, 2.5, np.inf, -np.inf, None][rng.integers(7)]
    return distinct(x_shape), {"ord": ord, "axis": an_axis(rng, x_shape)}


def along_an_axis(make=normal, **options):
    def draw(rng):
        x_shape = shape(rng, rng.integers(1, 4))
        return make(x_shape), {"axis": an_axis(rng, x_shape), **options}

    return draw


def largest(rng):
    x_shape = shape(rng, rng.integers(1, 4))
    axis = an_axis(rng, x_shape)
    k = int(rng.integers(x_shape[axis] + 1))
    return distinct(x_shape), {"k": k, "axis": axis, "largest": bool(rng.integers(2))}


def placed(rng):
    """For `take_along_axis`."""
    x_shape = shape(rng, rng.integers(1, 4))
    axis = an_axis(rng, x_shape)
    sizes = list(x_shape)
    sizes[axis] = int(rng.integers(1, 10))
    return joined(normal(x_shape), below(x_shape[axis], tuple(sizes))), {"axis": axis}


def reshaped(rng):
    a, b, c = shape(rng, 3)
    return normal((a, b, c)), {"shape": [(a * b, c), (-1,), (c, 1, b, a), (b, -1)][rng.integers(4)]}


def permuted(name):
    def draw(rng):
        order = rng.permutation(4).tolist()
        options = {
            "transpose": {"axes": tuple(order)},
            "swapaxes": {"axis1": order[0], "axis2": order[1] - 4},
            "moveaxis": {"source": tuple(order[:2]), "destination": tuple(order[2:])},
        }
        return normal(shape(rng, 4)), options[name]

    return draw


def widened(rng):
    """For `broadcast_to`."""
    target = shape(rng, 3)
    return normal(broadcastable(rng, target)), {"shape": target}


def thin(rng):
    """For `squeeze` and `expand_dims`."""
    a, b = shape(rng, 2)
    return normal((1, a, 1, b)), {"axis": (0, 2)}


def rolled(rng):
    shift = tuple(int(n) for n in rng.integers(-30, 30, 2))
    return normal(shape(rng, 3)), {"shift": shift, "axis": (0, 2)}


def pieces(rng):
    sizes, axis = list(shape(rng, 3)), int(rng.integers(3))
    parts = [[*sizes[:axis], size, *sizes[axis + 1 :]] for size in shape(rng, 3)]
    return normal(*map(tuple, parts)), {"axis": axis}


def alike(rng):
    """For `stack`."""
    x_shape = shape(rng)
    return normal(x_shape, x_shape, x_shape), {"axis": int(rng.integers(len(x_shape) + 1))}


def cut(rng):
    """For `split`."""
    x_shape = shape(rng, 2, smallest=4)
    axis = int(rng.integers(2))
    bounds = sorted(int(i) for i in rng.integers(0, x_shape[axis] + 1, 2))
    return normal(x_shape), {"indices_or_sections": bounds, "axis": axis}


def tiled(rng):
    return normal(shape(rng, 2)), {"reps": tuple(rng.integers(1, 4, rng.integers(1, 4)).tolist())}


def repeated(rng):
    x_shape = shape(rng, 2)
    axis = int(rng.integers(2))
    return normal(x_shape), {"repeats": rng.integers(0, 4, x_shape[axis]), "axis": axis}


def padded(rng):
    mode = ["constant", "edge", "reflect", "wrap"][rng.integers(4)]
    widths = tuple(map(tuple, rng.integers(0, 4, (2, 2)).tolist()))
    return normal(shape(rng, 2, smallest=4)), {"pad_width": widths, "mode": mode}


def diagonals(name):
    def draw(rng):
        offset = int(rng.integers(-5, 6))
        if name in ("tril", "triu", "diag"):
            return normal(shape(rng, 2 if name == "diag" else 3)), {"k": offset}
        axis1, axis2 = rng.permutation(3)[:2].tolist()
        return normal(shape(rng, 3)), {"offset": offset, "axis1": axis1, "axis2": axis2 - 3}

    return draw


def taken(rng):
    x_shape = shape(rng, 2)
    rows, columns = (rng.integers(-size, size, (5, 3)) for size in x_shape)
    return normal(x_shape), {"index": (rows, columns)}


def added(rng):
    x_shape = shape(rng, 2)
    index = tuple(rng.integers(-size, size, (5, 3)) for size in x_shape)
    return normal((5, 3)), {"index": index, "shape": x_shape}


def product(rng):
    m, k, n = shape(rng, 3)
    batch = shape(rng, rng.integers(0, 3))
    return normal((*batch, m, k), (*broadcastable(rng, batch), k, n)), {}


def contracted(rng):
    """For `dot`."""
    m, k, n, b = shape(rng, 4)
    return normal(
        *[[(m, k), (k, n)], [(b, m, k), (b, k, n)], [(k,), (b, k, n)]][rng.integers(3)]
    ), {}


def layer(rng):
    d_in, d_out = shape(rng, 2)
    return normal((*shape(rng, rng.integers(0, 3)), d_in), (d_out, d_in), (d_out,)), {}


def indexed(rng):
    """For `einsum`: three operands with random letters, and a random output."""
    sizes = dict(zip("abcd", shape(rng, 4, smallest=2), strict=True))
    parts = ["".join(rng.permutation(list("abcd"))[: rng.integers(1, 4)]) for _ in range(3)]
    letters = sorted(set("".join(parts)))
    output = "".join(rng.permutation(letters)[: rng.integers(0, len(letters) + 1)])
    return normal(*(tuple(sizes[letter] for letter in part) for part in parts)), {
        "subscripts": f"{','.join(parts)}->{output}"
    }


def matrices(name):
    def draw(rng):
        n, k = shape(rng, 2)
        batch = shape(rng, rng.integers(0, 2))

        def make(rng):
            a = rng.standard_normal((*batch, n, n)) + 3 * n * np.eye(n)
            if name == "det":
                a = a / n
            if name == "cholesky":
                a = a + np.swapaxes(a, -1, -2)
            return (a, rng.standard_normal((*batch, n, k))) if name == "solve" else (a,)

        return make, {}

    return draw


def normalised(*names):
    def draw(rng):
        x_shape = shape(rng, 3, smallest=2)
        sizes = x_shape[-int(rng.integers(1, 3)) :]
        return normal(x_shape, *[sizes] * (len(names) - 1)), {"normalized_shape": sizes}, names

    return draw


def partly_forbidden(shape):
    return lambda rng: (np.where(rng.random(shape) < 0.5, rng.standard_normal(shape), -np.inf),)


def attended(rng):
    queries, keys, d, d_v = shape(rng, 4)
    batch = shape(rng, rng.integers(0, 3))
    operands = normal((*batch, queries, d), (*batch, keys, d), (*batch, keys, d_v))
    masks = [None, booleans, normal, partly_forbidden][rng.integers(4)]
    if masks is None:
        return operands, {"is_causal": True}
    return joined(operands, masks((queries, keys))), {}


def looked_up(rng):
    count, d = shape(rng, 2)
    return joined(below(count, shape(rng, 2)), normal((count, d))), {
        "padding_idx": int(rng.integers(count))
    }


def labels(rng):
    """For `one_hot`."""
    return below(7, shape(rng, 2)), {"num_classes": 7}


def errors(rng):
    x_shape = shape(rng)
    return distinct(x_shape, x_shape), {"reduction": ["mean", "sum", "none"][rng.integers(3)]}


def chances(rng):
    x_shape = shape(rng, 2)
    return joined(normal(x_shape), fractions(x_shape)), {
        "pos_weight": positive(x_shape[-1:])(rng)[0]
    }


def labelled(**options):
    def draw(rng):
        logits_shape = shape(rng, rng.integers(2, 4), smallest=2)
        weight = positive((logits_shape[1],))(rng)[0]
        return classes(logits_shape), {"weight": weight, "ignore_index": 0, **options}

    return draw


RANDOM = {
    **{
        name: unary()
        for name in (
            *("negative", "abs", "square", "reciprocal", "exp", "expm1", "erf", "sign", "clone"),
            *("floor", "ceil", "round", "sin", "cos", "tan", "arctan", "sinh", "cosh", "tanh"),
            *("normal_cdf", "sigmoid", "relu", "leaky_relu", "elu", "silu", "gelu"),
        )
    },
    "softplus": unary(beta=1.5),
    **{name: unary(positive) for name in ("sqrt", "rsqrt", "log", "log1p", "log2", "log10")},
    **{name: unary(inside) for name in ("arcsin", "arccos")},
    **{name: unary(steps) for name in ("isfinite", "isinf", "isnan")},
    "logical_not": unary(booleans),
    "astype": unary(normal, dtype=np.float32),
    **{name: binary() for name in ("add", "subtract", "multiply", "divide", "remainder")},
    "arctan2": binary(),
    "floor_divide": binary(lambda *shapes: lambda rng: [x + 9 for x in below(9, *shapes)(rng)]),
    "power": binary(positive),
    **{name: binary(distinct) for name in ("maximum", "minimum")},
    **{
        name: binary(steps)
        for name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
    },
    **{name: binary(booleans) for name in ("logical_and", "logical_or")},
    "where": chosen,
    "clip": bounded,
    **{name: reduction() for name in ("sum", "mean", "logsumexp")},
    **{name: reduction(ddof=1) for name in ("var", "std")},
    "prod": reduction(nonzero),
    **{name: reduction(distinct) for name in ("max", "min")},
    **{name: reduction(booleans) for name in ("any", "all")},
    "norm": vectors,
    **{name: along_an_axis() for name in ("softmax", "log_softmax", "cumsum", "flip")},
    "cumprod": along_an_axis(nonzero),
    **{name: along_an_axis(distinct) for name in ("argmax", "argmin", "sort")},
    "argsort": along_an_axis(steps, descending=True),
    "topk": largest,
    "take_along_axis": placed,
    "reshape": reshaped,
    **{name: permuted(name) for name in ("transpose", "swapaxes", "moveaxis")},
    "broadcast_to": widened,
    **dict.fromkeys(("squeeze", "expand_dims"), thin),
    "roll": rolled,
    "concatenate": pieces,
    "stack": alike,
    "split": cut,
    "tile": tiled,
    "repeat": repeated,
    "pad": padded,
    **{name: diagonals(name) for name in ("tril", "triu", "diag", "diagonal", "trace")},
    "getitem": taken,
    "scatter_add": added,
    "matmul": product,
    "outer": binary(),
    "dot": contracted,
    "linear": layer,
    "einsum": indexed,
    **{name: matrices(name) for name in ("inv", "solve", "det", "cholesky")},
    "layer_norm": normalised("x", "weight", "bias"),
    "rms_norm": normalised("x", "weight"),
    "scaled_dot_product_attention": attended,
    "dropout": unary(training=False),
    "embedding": looked_up,
    "one_hot": labels,
    **dict.fromkeys(("mse", "l1", "huber"), errors),
    "binary_cross_entropy_with_logits": chances,
    "cross_entropy": labelled(label_smoothing=0.2),
    "nll": labelled(),
}
# How those are called that are not called on their operands one after the other.
CALLS = {
    "concatenate": lambda f, *xs, **options: f(xs, **options),
    "stack": lambda f, *xs, **options: f(xs, **options),
    "split": lambda f, x, **options: f(x, **options)[1],
    "topk": lambda f, x, **options: f(x, **options)[0],
    "einsum": lambda f, *xs, subscripts: f(subscripts, *xs),
}


def random_case(name, seed):
    make, options, *names = RANDOM[name](np.random.default_rng(seed))
    return Case(name, make, None, options, *names, function=CALLS.get(name), note=f"seed {seed}")


# --------------------------------------------------------------------------------------------------
# The tests
# --------------------------------------------------------------------------------------------------

ROWS = [case for case in CASES if str(case) not in DIFFERENT]
SEEDS = range(5)


def test_everything_is_compared_on_rows_and_on_random_shapes():
    names = {case.name for case in CASES}
    assert {case.name for case in ROWS} == names
    assert set(RANDOM) == names
    assert set(PYTORCH) <= names
    assert set(DIFFERENT) <= {str(case) for case in (*CASES, *OUTSIDE)}


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")  # PyTorch's, about a sum of none
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_rows_of_the_table_agree_with_pytorch(case):
    assert compare(case).largest <= 1e-6


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", RANDOM)
def test_random_shapes_agree_with_pytorch(name, seed):
    assert compare(random_case(name, seed), seed).largest <= 1e-6


@pytest.mark.filterwarnings("ignore")  # of PyTorch's, about what it does there
@pytest.mark.parametrize(
    "case", [case for case in (*CASES, *OUTSIDE) if str(case) in DIFFERENT], ids=str
)
def test_what_is_said_to_differ_from_pytorch_does(case):
    kind, _ = DIFFERENT[str(case)]
    if kind == DIFFERS:
        assert compare(case).largest > 1e-6
    else:
        with pytest.raises(RefusedError, match=kind):
            compare(case)


@pytest.mark.parametrize(
    "f",
    [
        lambda m, x: m.tanh(x) * x,
        lambda m, x: m.exp(-x * x) / (1 + x * x),
        lambda m, x: m.log(1 + m.exp(x)) ** 3,
        lambda m, x: m.sqrt(x * x + 1) - m.maximum(x, -x),
        lambda m, x: 2.0**x * x**2,
    ],
    ids=["tanh", "bell", "softplus", "root", "powers"],
)
def test_second_derivatives_agree_with_hips_autograd(f):
    autograd = pytest.importorskip("autograd")
    x = np.linspace(-2, 2, 20)
    ours = Tensor(x, requires_grad=True)
    first = grad(f(minigrad, ours).sum(), ours, create_graph=True)
    second = grad(first.sum(), ours)
    theirs = autograd.elementwise_grad(lambda x: f(autograd.numpy, x))
    assert_allclose(first.data, theirs(x), rtol=1e-6)
    assert_allclose(second.data, autograd.elementwise_grad(theirs)(x), rtol=1e-6)


def main():
    """Print the largest relative differences from PyTorch of each op, the largest first."""
    warnings.simplefilter("ignore")  # PyTorch's, about sums of none
    found = {}
    for case in (case for case in ROWS if case.note not in GIVE_FLOAT32):  # others are float64
        found.setdefault(case.name, []).append(compare(case))
    for name, seed in itertools.product(RANDOM, SEEDS):
        found[name].append(compare(random_case(name, seed), seed))
    rows = [
        (name, len(all), max(d.value for d in all), max(d.gradient for d in all))
        for name, all in found.items()
    ]
    rows.sort(key=lambda row: -max(row[2:]))
    print(f"{'op':32} {'rows':>5} {'value':>9} {'gradient':>9}")
    for name, count, value, gradient in rows:
        print(f"{name:32} {count:5} {value:9.1e} {gradient:9.1e}")
    print(f"{len(rows)} ops, {sum(row[1] for row in rows)} rows, largest {max(rows[0][2:]):.1e}")


if __name__ == "__main__":
    main()
