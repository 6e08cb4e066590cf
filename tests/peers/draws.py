"""Rows with random shapes, axes and options, for every function of the table."""

import numpy as np

from minigrad.kernels.bfloat16 import BFloat16Matrix
from minigrad.kernels.nf4 import NF4Matrix
from minigrad.ops.recurrent import CELLS
from tests.cases import (
    Case,
    below,
    classes,
    distinct,
    fractions,
    joined,
    linalg,
    nonzero,
    normal,
    positive,
)
from tests.cases.convolution import result_size
from tests.cases.linalg import separated


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


def gathered(rng):
    x_shape = shape(rng, rng.integers(1, 4))
    axis = an_axis(rng, x_shape)
    sizes = [int(rng.integers(1, size + 1)) for size in x_shape]
    return normal(x_shape), {"axis": axis, "indices": rng.integers(x_shape[axis], size=sizes)}


def scattered(rng):
    """No place is written to twice: which one wins is not said there."""
    x_shape = shape(rng, rng.integers(1, 4))
    axis = an_axis(rng, x_shape)
    order = np.argsort(rng.random(x_shape), axis)
    corner = tuple(slice(int(rng.integers(1, size + 1))) for size in x_shape)
    return normal(x_shape, x_shape), {"axis": axis, "indices": order[corner]}


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


def inner(rng):
    k, *rest = shape(rng, 4)
    return normal((*rest[:2], k), (rest[2], k)), {}


def over_axes(rng):
    m, k, n, b = shape(rng, 4)
    return normal((m, k, b), (b, n, k)), {"axes": ((1, -1), (2, 0))}


def rows_and_more(rng):
    rows, columns = shape(rng, 2)
    return normal(*[(rows, columns)] * 3), {}


def layer(rng):
    d_in, d_out = shape(rng, 2)
    return normal((*shape(rng, rng.integers(0, 3)), d_in), (d_out, d_in), (d_out,)), {}


def adapted(rng):
    d_in, d_out, rank = shape(rng, 3)
    x = (*shape(rng, rng.integers(0, 3)), d_in)
    operands = normal(x, (d_out, d_in), (rank, d_in), (d_out, rank), (d_out,))
    return operands, {"scale": float(rng.uniform(0.5, 2))}


def in_few_bits(of):
    def draw(rng):
        d_in, d_out = shape(rng, 2)
        weight = of(rng.standard_normal((d_out, d_in)), rng)
        operands = normal((*shape(rng, rng.integers(0, 3)), d_in), (d_out,))
        return operands, {"weight": weight}, ("x", "bias")

    return draw


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


def apart(square=False, **options):
    """Matrices for which decompositions are well-conditioned."""

    def draw(rng):
        m, n = shape(rng, 2)
        return separated((*shape(rng, rng.integers(0, 2)), n if square else m, n)), options

    return draw


def normalised(*names):
    def draw(rng):
        x_shape = shape(rng, 3, smallest=2)
        sizes = x_shape[-int(rng.integers(1, 3)) :]
        return normal(x_shape, *[sizes] * (len(names) - 1)), {"normalized_shape": sizes}, names

    return draw


def channels(**options):
    """Operands of batch norm, and of group norm if there are groups."""

    def draw(rng):
        x_shape = shape(rng, int(rng.integers(2, 5)), smallest=2)
        groups = {} if options else {"num_groups": int(rng.integers(1, 4))}
        x_shape = (x_shape[0], x_shape[1] * groups.get("num_groups", 1), *x_shape[2:])
        names = ("x", "weight", "bias")
        return normal(x_shape, *[x_shape[1:2]] * 2), {**options, **groups}, names

    return draw


def convolved(dims, form="forward"):
    """Operands and options of a convolution, or of one of its gradients."""

    def draw(rng):
        groups, images, channels, filters = (int(n) for n in rng.integers(1, [3, 4, 4, 8]))
        kernel, stride, dilation, padding = (
            tuple(map(int, rng.integers(low, 4, dims))) for low in (1, 1, 1, 0)
        )
        sizes = zip(map(int, rng.integers(0, 12, dims)), kernel, dilation, strict=True)
        size = tuple(more + d * (k - 1) + 1 for more, k, d in sizes)
        x_shape, weight = (images, groups * channels, *size), (groups * filters, channels, *kernel)
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        if form != "forward":
            result = result_size(x_shape, weight, stride, padding, dilation)
            y = images, weight[0], *result
        options |= {"groups": groups}
        if form == "input":
            return normal(y, weight), {"size": size, **options}
        if form == "weight":
            return normal(y, x_shape), {"size": kernel, **options}
        if dims == 1:
            options |= {name: options[name][0] for name in ("stride", "padding", "dilation")}
        return normal(x_shape, weight, weight[:1]), options

    return draw


def recurring(rng):
    """Operands of a recurrence, of any cell."""
    steps, batch, size = (int(n) for n in rng.integers(1, 6, 3))
    cell = ["rnn_tanh", "rnn_relu", "gru", "lstm"][rng.integers(4)]
    height, width = (CELLS[cell].gates * size, CELLS[cell].states * size)
    shapes = (steps, batch, height), (batch, width), (height, size), (height,)
    return normal(*shapes), {"cell": cell}


def pooled(dims, make=normal, **ranges):
    """Operands and options of pooling."""

    def draw(rng):
        x_shape = shape(rng, int(rng.integers(1, 3)) + dims, smallest=8)
        kernel = [int(k) for k in rng.integers(2, 5, dims)]
        options = {"kernel_size": kernel, "stride": [int(s) for s in rng.integers(1, 4, dims)]}
        options |= {"padding": [k // 2 for k in kernel], "ceil_mode": bool(rng.integers(2))}
        options |= {name: int(rng.integers(*bounds)) for name, bounds in ranges.items()}
        return make(x_shape), options

    return draw


def adaptive(dims):
    def draw(rng):
        sizes = [int(n) if n else None for n in rng.integers(0, 25, dims)]
        return normal(shape(rng, int(rng.integers(1, 3)) + dims)), {"output_size": sizes}

    return draw


def partly_forbidden(shape):
    return lambda rng: (np.where(rng.random(shape) < 0.5, rng.standard_normal(shape), -np.inf),)


def attended(rng):
    queries, keys, d, d_v = shape(rng, 4)
    batch = shape(rng, rng.integers(0, 3))
    options, few = {}, batch
    if batch and rng.integers(2):
        options = {"enable_gqa": True}
        batch = (*batch[:-1], batch[-1] * int(rng.integers(1, 4)))
    operands = normal((*batch, queries, d), (*few, keys, d), (*few, keys, d_v))
    masks = [None, booleans, normal, partly_forbidden][rng.integers(4)]
    if masks is None:
        return operands, options | {"is_causal": True}
    return joined(operands, masks((queries, keys))), options


def rotated(rng):
    *leading, length, half = shape(rng, rng.integers(2, 6))
    cos, sin = rng.standard_normal((2, length, half))
    return normal((*leading, length, 2 * half)), {"cos": cos, "sin": sin}


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
        "weight": positive(x_shape)(rng)[0],
        "pos_weight": positive(x_shape[-1:])(rng)[0],
    }


def labelled(**options):
    def draw(rng):
        logits_shape = shape(rng, rng.integers(2, 4), smallest=2)
        weight = positive((logits_shape[1],))(rng)[0]
        return classes(logits_shape), {"weight": weight, "ignore_index": 0, **options}

    return draw


def headed(rng):
    """A head that is frozen, and vectors of any number of axes."""
    d, classes = shape(rng, 2, smallest=2)
    leading = shape(rng, rng.integers(0, 3))
    operands = joined(normal((*leading, d)), below(classes, leading))
    options = {"weight": normal((classes, d))(rng)[0], "reduction": "sum", "ignore_index": 0}
    return operands, options | {"label_smoothing": 0.2}, ("x", "target")


RANDOM = {
    **{
        name: unary()
        for name in (
            *("negative", "abs", "square", "reciprocal", "exp", "expm1", "erf", "sign", "clone"),
            *("floor", "ceil", "round", "sin", "cos", "tan", "arctan", "sinh", "cosh", "tanh"),
            *("normal_cdf", "sigmoid", "relu", "leaky_relu", "elu", "silu", "gelu"),
            *("trunc", "exp2", "arcsinh", "sinc", "nan_to_num", "ravel"),
        )
    },
    "softplus": unary(beta=1.5),
    **{name: unary(positive) for name in ("sqrt", "rsqrt", "log", "log1p", "log2", "log10")},
    **{name: unary(inside) for name in ("arcsin", "arccos", "arctanh")},
    "arccosh": unary(lambda *shapes: lambda rng: tuple(1 + x for x in positive(*shapes)(rng))),
    **{name: unary(steps) for name in ("isfinite", "isinf", "isnan")},
    "logical_not": unary(booleans),
    "astype": unary(normal, dtype=np.float32),
    **{name: binary() for name in ("add", "subtract", "multiply", "divide", "remainder")},
    **{
        name: binary()
        for name in ("arctan2", "fmod", "copysign", "hypot", "logaddexp", "kron", "swiglu")
    },
    "xlogy": binary(positive),
    "isclose": binary(steps),
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
    **{name: along_an_axis(distinct) for name in ("max_with_indices", "min_with_indices")},
    **{name: along_an_axis(distinct) for name in ("cummax", "cummin")},
    "nonzero": lambda rng: (steps(shape(rng, 2)), {}),
    "take_along_axis": placed,
    "gather": gathered,
    "scatter": scattered,
    "reshape": reshaped,
    **{name: permuted(name) for name in ("transpose", "swapaxes", "moveaxis")},
    "broadcast_to": widened,
    **dict.fromkeys(("squeeze", "expand_dims"), thin),
    "roll": rolled,
    "concatenate": pieces,
    "stack": alike,
    **dict.fromkeys(("split", "array_split"), cut),
    **dict.fromkeys(("vstack", "hstack", "column_stack"), rows_and_more),
    "meshgrid": lambda rng: (normal(*((n,) for n in shape(rng, 3))), {"indexing": "ij"}),
    "diff": lambda rng: (normal(shape(rng, 2)), {"n": int(rng.integers(3)), "axis": -1}),
    "tile": tiled,
    "repeat": repeated,
    "pad": padded,
    **{name: diagonals(name) for name in ("tril", "triu", "diag", "diagonal", "trace")},
    "getitem": taken,
    "scatter_add": added,
    "matmul": product,
    "outer": binary(),
    "dot": contracted,
    "inner": inner,
    "tensordot": over_axes,
    "linear": layer,
    "lora_linear": adapted,
    "nf4_linear": in_few_bits(lambda w, rng: NF4Matrix.of(w, int(rng.integers(1, 25)))),
    "bfloat16_linear": in_few_bits(lambda w, _rng: BFloat16Matrix.of(w)),
    "einsum": indexed,
    **{name: matrices(name) for name in ("inv", "solve", "det", "cholesky")},
    **{name: apart() for name in ("pinv", "svdvals")},
    "svd": apart(full_matrices=False),
    **{name: apart(square=True) for name in ("eigh", "eigvalsh", "slogdet")},
    "matrix_power": apart(square=True, n=3),
    "layer_norm": normalised("x", "weight", "bias"),
    "rms_norm": normalised("x", "weight"),
    "batch_norm": channels(running_mean=None, running_var=None, training=True),
    "group_norm": channels(),
    **{f"conv{n}d": convolved(n) for n in (1, 2)},
    "convolution": convolved(2),
    **{f"convolution_{form}": convolved(2, form) for form in ("input", "weight")},
    "recurrence": recurring,
    **{f"max_pool{n}d": pooled(n, distinct, dilation=(1, 3)) for n in (1, 2)},
    "avg_pool1d": pooled(1),
    "avg_pool2d": pooled(2, divisor_override=(1, 5)),
    **{f"adaptive_avg_pool{n}d": adaptive(n) for n in (1, 2)},
    "scaled_dot_product_attention": attended,
    "rope": rotated,
    "dropout": unary(training=False),
    "embedding": looked_up,
    "one_hot": labels,
    **dict.fromkeys(("mse", "l1", "huber"), errors),
    "binary_cross_entropy_with_logits": chances,
    "cross_entropy": labelled(label_smoothing=0.2),
    "nll": labelled(),
    "linear_cross_entropy": headed,
}
# How those are called that are not called on their operands one after the other.
CALLS = {
    "concatenate": lambda f, *xs, **options: f(xs, **options),
    "stack": lambda f, *xs, **options: f(xs, **options),
    "split": lambda f, x, **options: f(x, **options)[1],
    **{
        name: lambda f, x, **options: f(x, **options)[0]
        for name in (
            *("topk", "max_with_indices", "min_with_indices", "cummax", "cummin"),
            *("array_split", "nonzero"),
        )
    },
    **{name: lambda f, *xs: f(xs) for name in ("vstack", "hstack", "column_stack")},
    "meshgrid": lambda f, *xs, **options: sum(f(*xs, **options)),
    "gather": lambda f, x, axis, indices: f(x, axis, indices),
    "scatter": lambda f, x, src, axis, indices: f(x, axis, indices, src),
    "einsum": lambda f, *xs, subscripts: f(subscripts, *xs),
    "eigh": linalg.of_symmetric(linalg.composed),
    "eigvalsh": linalg.of_symmetric(lambda w: w),
    "svd": linalg.product,
    "slogdet": linalg.second,
}


def random_case(name, seed):
    make, options, *names = RANDOM[name](np.random.default_rng(seed))
    return Case(name, make, None, options, *names, function=CALLS.get(name), note=f"seed {seed}")
