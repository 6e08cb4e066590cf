"""Live comparison with PyTorch, and of second derivatives with HIPS autograd."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import minigrad
from minigrad import Tensor, grad
from tests.cases import CASES, classes, distinct, nonzero, normal, positive

pytestmark = pytest.mark.peers


def axes(x, axis):
    """All of them for None, which some of PyTorch's functions do not take."""
    return tuple(range(x.ndim)) if axis is None else axis


def as_index(t, index):
    if isinstance(index, tuple):
        return tuple(as_index(t, part) for part in index)
    if isinstance(index, Tensor):
        index = index.data
    return t.from_numpy(index) if isinstance(index, np.ndarray) else index


def scatter_add(t, values, index, shape):
    indices = as_index(t, index if isinstance(index, tuple) else (index,))
    return t.zeros(shape, dtype=values.dtype).index_put(indices, values, accumulate=True)


def expand_dims(t, x, axis):
    count = x.ndim + np.size(axis)
    for i in sorted(a % count for a in np.atleast_1d(axis)):
        x = x.unsqueeze(i)
    return x


def of_the_same_name(name):
    return lambda t, *xs, **options: getattr(t, name)(*xs, **options)


# What PyTorch has for each of our functions. `t` is the module, which is imported by the tests only
# when they run, for most runs do without.
ELEMENTWISE = ("negative", "abs", "exp", "log", "sqrt", "tanh", "sigmoid", "relu", "erf", "sign")
COMPARISONS = ("less", "less_equal", "greater", "greater_equal", "not_equal")
BOOLEAN = ("logical_and", "logical_or", "logical_not")
OTHERS = ("subtract", "multiply", "divide", "matmul", "where", "reshape", "clone")
PYTORCH = {
    **{name: of_the_same_name(name) for name in (*ELEMENTWISE, *COMPARISONS, *BOOLEAN, *OTHERS)},
    "add": lambda t, x, y: t.add(x, y),
    "equal": lambda t, x, y: t.eq(x, y),
    "power": lambda t, x, y: t.pow(x, t.from_numpy(y) if isinstance(y, np.ndarray) else y),
    "maximum": lambda t, x, y: t.maximum(x, t.as_tensor(y, dtype=x.dtype)),
    "gelu": lambda t, x, approximate="none": t.nn.functional.gelu(x, approximate=approximate),
    "linear": lambda t, *xs: t.nn.functional.linear(*xs),
    "sum": lambda t, x, axis=None, keepdims=False: t.sum(x, axis, keepdims),
    "mean": lambda t, x, axis=None, keepdims=False: t.mean(x, axis, keepdims),
    "max": lambda t, x, axis=None, keepdims=False: t.amax(x, axes(x, axis), keepdims),
    "logsumexp": lambda t, x, axis=None, keepdims=False: t.logsumexp(x, axes(x, axis), keepdims),
    "var": lambda t, x, axis=None, ddof=0, keepdims=False: t.var(
        x, axis, correction=ddof, keepdim=keepdims
    ),
    "softmax": lambda t, x, axis=-1: t.softmax(x, axis),
    "log_softmax": lambda t, x, axis=-1: t.log_softmax(x, axis),
    "transpose": lambda t, x, axes=None: x.permute(axes or tuple(reversed(range(x.ndim)))),
    "broadcast_to": lambda t, x, shape: t.broadcast_to(x, shape),
    "swapaxes": lambda t, x, axis1, axis2: t.swapaxes(x, axis1, axis2),
    "expand_dims": expand_dims,
    "squeeze": lambda t, x, axis=None: t.squeeze(x) if axis is None else t.squeeze(x, axis),
    "concatenate": lambda t, *xs, axis: t.cat(xs, axis),
    "astype": lambda t, x, dtype: x.to(t.from_numpy(np.empty(0, dtype)).dtype),
    "getitem": lambda t, x, index: x[as_index(t, index)],
    "scatter_add": scatter_add,
    "mse": lambda t, *xs, **options: t.nn.functional.mse_loss(*xs, **options),
    "l1": lambda t, *xs, **options: t.nn.functional.l1_loss(*xs, **options),
    "cross_entropy": lambda t, *xs, **options: t.nn.functional.cross_entropy(*xs, **options),
}
NOT_THERE = {
    "sum-axis=()": "PyTorch sums over all axes",
    "reshape-shape=-1": "PyTorch wants a tuple",
    "getitem-negative step": "PyTorch has none",
    "scatter_add-slice": "PyTorch has none",
}
ROWS = [
    case
    for case in CASES
    if (case.name in PYTORCH and case.function is None) or case.name == "concatenate"
    if str(case) not in NOT_THERE
]


def compare(ours, name, arrays, options):
    """Value and gradients of two functions, to a relative 1e-6."""
    torch = pytest.importorskip("torch")
    xs = [Tensor(x, requires_grad=x.dtype.kind == "f") for x in arrays]
    ts = [torch.tensor(x.copy(), requires_grad=x.dtype.kind == "f") for x in arrays]
    out, right = ours(*xs), PYTORCH[name](torch, *ts, **options)
    assert out.shape == tuple(right.shape)
    assert_allclose(out.data, right.detach().numpy(), rtol=1e-6, atol=1e-12)
    if not right.requires_grad:
        assert not out.requires_grad
        return
    v = np.random.default_rng(1).standard_normal(out.shape).astype(out.dtype)
    found = grad(out, [x for x in xs if x.requires_grad], v)
    exact = torch.autograd.grad(right, [t for t in ts if t.requires_grad], torch.from_numpy(v))
    for one, other in zip(found, exact, strict=True):
        assert_allclose(one.data, other.numpy(), rtol=1e-6, atol=1e-12)


def test_every_op_that_pytorch_has_is_compared():
    lacking = {"dropout"}  # its draws differ
    assert {case.name for case in CASES} - lacking == set(PYTORCH)
    assert set(NOT_THERE) <= {str(case) for case in CASES}


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_rows_of_the_table_agree_with_pytorch(case):
    with np.errstate(all="ignore"):  # rows that divide by zero and the like
        compare(case, case.name, case.operands(seed=1), case.options)


def shape(rng, ndim=None):
    ndim = rng.integers(0, 4) if ndim is None else ndim
    return tuple(int(size) for size in rng.integers(1, 20, ndim))


def broadcastable(rng, shape):
    """A shape that goes with `shape`: some axes of size 1, some leading ones left out."""
    sizes = [1 if rng.random() < 0.3 else size for size in shape]
    return tuple(sizes[rng.integers(0, len(sizes) + 1) :])


def unary(name, make=nonzero):
    return name, lambda rng: (make(shape(rng))(rng), {})


def binary(name, make=nonzero):
    def draw(rng):
        x_shape = shape(rng)
        shapes = [x_shape, broadcastable(rng, x_shape)]
        rng.shuffle(shapes)
        return make(*map(tuple, shapes))(rng), {}

    return name, draw


def reduction(name, make=normal):
    def draw(rng):
        x_shape = shape(rng, rng.integers(1, 4))
        count = rng.integers(1, len(x_shape) + 1)
        axis = tuple(int(i) for i in rng.permutation(len(x_shape))[:count] - len(x_shape))
        return make(x_shape)(rng), {"axis": axis, "keepdims": bool(rng.integers(2))}

    return name, draw


def along_an_axis(name):
    def draw(rng):
        x_shape = shape(rng, rng.integers(1, 4))
        return normal(x_shape)(rng), {"axis": int(rng.integers(-len(x_shape), len(x_shape)))}

    return name, draw


def product(rng):
    m, k, n = shape(rng, 3)
    batch = shape(rng, rng.integers(0, 3))
    return normal((*batch, m, k), (*broadcastable(rng, batch), k, n))(rng), {}


def layer(rng):
    d_in, d_out = shape(rng, 2)
    return normal((*shape(rng, rng.integers(0, 3)), d_in), (d_out, d_in), (d_out,))(rng), {}


def labelled(rng):
    return classes(shape(rng, rng.integers(2, 4)))(rng), {}


def pieces(rng):
    sizes = list(shape(rng, 3))
    axis = int(rng.integers(3))
    parts = [[*sizes[:axis], size, *sizes[axis + 1 :]] for size in shape(rng, 3)]
    return normal(*map(tuple, parts))(rng), {"axis": axis}


def taken(rng):
    x_shape = shape(rng, 2)
    rows, columns = (rng.integers(-size, size, (5, 3)) for size in x_shape)
    return normal(x_shape)(rng), {"index": (rows, columns)}


def reordered(rng):
    x_shape = shape(rng, 3)
    return normal(x_shape)(rng), {"axes": tuple(int(i) for i in rng.permutation(3))}


RANDOM = dict(
    [
        *(
            unary(name)
            for name in [
                "negative",
                "abs",
                "exp",
                "tanh",
                "sigmoid",
                "relu",
                "erf",
                "gelu",
                "clone",
            ]
        ),
        *(unary(name, positive) for name in ("log", "sqrt")),
        unary("gelu"),
        *(binary(name) for name in ("add", "subtract", "multiply", "divide")),
        binary("maximum", distinct),
        binary("power", positive),
        *(reduction(name) for name in ("sum", "mean", "logsumexp", "var")),
        reduction("max", distinct),
        along_an_axis("softmax"),
        along_an_axis("log_softmax"),
        ("matmul", product),
        ("linear", layer),
        ("cross_entropy", labelled),
        ("concatenate", pieces),
        ("getitem", taken),
        ("transpose", reordered),
    ]
)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", RANDOM)
def test_random_shapes_agree_with_pytorch(name, seed):
    arrays, options = RANDOM[name](np.random.default_rng(seed))
    function = getattr(minigrad, name)
    if name == "concatenate":
        function = lambda *xs, axis: minigrad.concatenate(xs, axis)
    compare(lambda *xs: function(*xs, **options), name, arrays, options)


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
