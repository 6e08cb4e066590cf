"""PyTorch's side: how to call it for each of our functions, and where we differ on purpose.

`t` is the module, imported when the tests run, for most runs do without.
"""

from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np

from tests.cases import CASES, GIVE_FLOAT32, Case, fixed

RENAMED = {
    **{"axis": "dim", "axis1": "dim1", "axis2": "dim2", "keepdims": "keepdim"},
    **{"b": "other", "k": "diagonal", "shape": "size"},
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


def linear_cross_entropy(t, x, weight, target, reduction="mean", chunk=None, **options):
    f = t.nn.functional
    logits = f.linear(x, t.as_tensor(weight, dtype=x.dtype))
    flat = logits.reshape(-1, len(weight)), target.reshape(-1)
    losses = f.cross_entropy(*flat, reduction=reduction, **options)
    return losses.reshape(target.shape) if reduction == "none" else losses


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


def scatter(t, x, axis, indices, src):
    """Their gradient needs a source of the shape of the indices."""
    corner = tuple(slice(n) for n in indices.shape)
    src = src[corner] if src.ndim else src.expand(indices.shape)
    return t.scatter(x, axis, t.as_tensor(indices), src)


def of_two_tensors(name):
    return lambda t, a, b: getattr(t, name)(a, t.as_tensor(b, dtype=a.dtype))


def meshgrid(t, *xs, indexing="xy"):
    return t.meshgrid(*xs, indexing=indexing)


def diff(t, x, n=1, axis=-1, prepend=None, append=None):
    """With arrays for numbers at the ends."""
    ends = (
        t.full((1,), v, dtype=x.dtype) if isinstance(v, float) else v for v in (prepend, append)
    )
    return t.diff(x, n, axis, *ends)


def in_lists(axes):
    return axes if isinstance(axes, int) else [np.atleast_1d(part).tolist() for part in axes]


def clip(t, x, min=None, max=None):
    """PyTorch takes two numbers or two tensors."""
    if isinstance(min, t.Tensor) or isinstance(max, t.Tensor):
        min, max = (None if b is None else t.as_tensor(b, dtype=x.dtype) for b in (min, max))
    return t.clip(x, min, max)


def lora_linear(t, x, weight, lora_a, lora_b, bias=None, scale=1.0):
    linear = t.nn.functional.linear
    return linear(x, weight, bias) + scale * linear(linear(x, lora_a), lora_b)


def recurrence(t, x, state, weight, bias=None, cell="lstm"):
    """Step by step, by PyTorch's cells; the map of what they get from outside does nothing."""
    more = t.eye(len(weight), dtype=x.dtype), weight, None if bias is None else 0 * bias, bias
    states = []
    for now in x:
        if cell == "lstm":
            state = t.cat(t.lstm_cell(now, state.chunk(2, 1), *more), 1)
        else:
            state = getattr(t, f"{cell}_cell")(now, state, *more)
        states.append(state)
    return t.stack(states)


def narrow_linear(t, x, weight, bias=None):
    return t.nn.functional.linear(x, t.from_numpy(weight.dense(np.float64)).to(x.dtype), bias)


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


def attention(t, *operands, causal_offset=0, rng=None, **options):
    """Theirs, with a mask for an offset: PyTorch has none."""
    if causal_offset:
        queries, keys = operands[0].shape[-2], operands[1].shape[-2]
        past = t.ones(queries, keys, dtype=t.bool).tril(causal_offset)
        options |= {"is_causal": False, "attn_mask": past}
    return t.nn.functional.scaled_dot_product_attention(*operands, **options)


def of_images(name):
    """A function of `torch.nn.functional`, whose first argument is called otherwise."""
    return lambda t, x, **options: getattr(t.nn.functional, name)(x, **options)


def rope(t, x, cos, sin):
    """With the function of transformers that exchanges the halves."""
    from transformers.models.llama.modeling_llama import rotate_half

    half = x.shape[-1] // 2
    tables = (np.broadcast_to(y, (*y.shape[:-1], half)) for y in (cos, sin))
    cos, sin = (t.as_tensor(np.concatenate([y, y], -1)).to(x.dtype) for y in tables)
    return x * cos + rotate_half(x) * sin


def one_hot(t, labels, num_classes=-1):
    return t.nn.functional.one_hot(labels.long(), num_classes)


def binary_cross_entropy(t, logits, target, reduction="mean", **weights):
    weights = {name: t.as_tensor(w, dtype=logits.dtype) for name, w in weights.items()}
    return t.nn.functional.binary_cross_entropy_with_logits(
        logits, target, reduction=reduction, **weights
    )


def of_classes(name):
    def call(t, scores, target, weight=None, **options):
        weight = None if weight is None else weight.to(scores.dtype)
        return getattr(t.nn.functional, name)(scores, target, weight, **options)

    return call


PYTORCH = {
    "convolution": another("conv2d", "nn", "functional"),
    "convolution_input": lambda t, y, weight, size, **options: t.nn.grad.conv2d_input(
        (len(y), weight.shape[1] * options.get("groups", 1), *size), weight, y, **options
    ),
    "convolution_weight": lambda t, y, x, size, **options: t.nn.grad.conv2d_weight(
        x, (y.shape[1], x.shape[1] // options.get("groups", 1), *size), y, **options
    ),
    "equal": another("eq"),
    "power": lambda t, a, b: t.pow(a, b),
    "maximum": lambda t, a, b: t.maximum(a, t.as_tensor(b, dtype=a.dtype)),
    "minimum": lambda t, a, b: t.minimum(a, t.as_tensor(b, dtype=a.dtype)),
    "arctan2": lambda t, y, x: t.arctan2(y, t.as_tensor(x, dtype=y.dtype)),
    **{name: of_two_tensors(name) for name in ("logaddexp", "hypot", "copysign")},
    "swiglu": lambda t, gate, x: t.nn.functional.silu(t.as_tensor(gate)) * x,
    "isclose": another("isclose"),
    "xlogy": lambda t, x, y: t.xlogy(x, y),
    "nan_to_num": lambda t, x, nan=0.0, posinf=None, neginf=None: t.nan_to_num(
        x, nan, posinf, neginf
    ),
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
    "max_with_indices": lambda t, x, axis=-1, keepdims=False: t.max(x, axis, keepdims),
    "min_with_indices": lambda t, x, axis=-1, keepdims=False: t.min(x, axis, keepdims),
    "cummax": lambda t, x, axis=-1: t.cummax(x, axis),
    "cummin": lambda t, x, axis=-1: t.cummin(x, axis),
    "nonzero": lambda t, x: t.nonzero(x, as_tuple=True),
    "gather": lambda t, x, axis, indices: t.gather(x, axis, t.as_tensor(indices)),
    "scatter": scatter,
    "softmax": lambda t, x, axis=-1: t.softmax(x, axis),
    "log_softmax": lambda t, x, axis=-1: t.log_softmax(x, axis),
    "norm": norm,
    "lora_linear": lora_linear,
    "recurrence": recurrence,
    "nf4_linear": narrow_linear,
    "bfloat16_linear": narrow_linear,
    "reshape": lambda t, x, shape: t.reshape(x, shape if isinstance(shape, tuple) else (shape,)),
    "transpose": lambda t, x, axes=None: x.permute(axes or tuple(reversed(range(x.ndim)))),
    "swapaxes": lambda t, x, axis1, axis2: t.swapaxes(x, axis1, axis2),
    "expand_dims": expand_dims,
    "squeeze": lambda t, x, axis=None: t.squeeze(x) if axis is None else t.squeeze(x, axis),
    "flip": lambda t, x, axis=None: t.flip(x, np.atleast_1d(dims(x, axis)).tolist()),
    "split": lambda t, x, indices_or_sections, axis=0: t.tensor_split(x, indices_or_sections, axis),
    "array_split": lambda t, x, indices_or_sections, axis=0: t.tensor_split(
        x, indices_or_sections, axis
    ),
    "meshgrid": meshgrid,
    "diff": diff,
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
    "tensordot": lambda t, a, b, axes=2: t.tensordot(a, b, in_lists(axes)),
    "dot": dot,
    **{name: another(name, "linalg") for name in ("solve", "cholesky", "svd", "pinv")},
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    **{
        name: of_images(name)
        for name in (
            *("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"),
            *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "batch_norm", "group_norm"),
        )
    },
    "dropout": without_generator("dropout"),
    "rope": rope,
    "scaled_dot_product_attention": attention,
    "one_hot": one_hot,
    "embedding": another("embedding", "nn", "functional"),
    "normal_cdf": another("ndtr", "special"),
    "mse": another("mse_loss", "nn", "functional"),
    "l1": another("l1_loss", "nn", "functional"),
    "huber": another("huber_loss", "nn", "functional"),
    "cross_entropy": of_classes("cross_entropy"),
    "nll": of_classes("nll_loss"),
    "linear_cross_entropy": linear_cross_entropy,
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
AFTER_2_13 = find_spec("torch") is not None and [
    int(part) for part in version("torch").split("+")[0].split(".")[:2]
] > [2, 13]

DIFFERS, WE_REFUSE, PYTORCH_REFUSES = "differs", "we refuse", "PyTorch refuses"
DIFFERENT = {
    # Derivatives
    **{
        f"{name}-nan: theirs": (DIFFERS, "to the nan that was taken; PyTorch divides 0 by 0")
        for name in ("max", "min")
    },
    "clip-nan: x's": (DIFFERS, "nan is not outside of the bounds: 1, where PyTorch gives 0"),
    **dict.fromkeys(
        ("clip-on a bound: x's", "clip-on a tensor bound: x's") if AFTER_2_13 else (),
        (DIFFERS, "the gradient is x's, as in PyTorch 2.13; later ones give 0, or halves"),
    ),
    **{
        f"det-singular{row}": (DIFFERS, "the matrix of cofactors, where PyTorch gives 0")
        for row in (": zero column", ": equal rows", " and regular ones")
    },
    "fmod-by zero": (DIFFERS, "nan, as the value; PyTorch gives inf"),
    "sinc-near 0": (DIFFERS, "a series; in PyTorch's formula the digits cancel"),
    "logaddexp-infinite": (DIFFERS, "a half each of two equal infinities; PyTorch gives nan"),
    "hypot-at the origin: 0": (DIFFERS, "PyTorch divides 0 by 0"),
    "xlogy-x is 0, and no logarithm: 0": (DIFFERS, "PyTorch divides 0 by 0"),
    "scatter-repeated": (DIFFERS, "to what was written last; PyTorch says that theirs is wrong"),
    **dict.fromkeys(
        ("cholesky-not symmetric", "eigvalsh-not symmetric", "pinv-not symmetric"),
        (DIFFERS, "of the symmetric part; PyTorch reads the lower triangle"),
    ),
    **dict.fromkeys(
        ("eigvalsh-equal ones share", "svdvals-equal ones share"),
        (DIFFERS, "PyTorch gives each to a vector that LAPACK happens to choose"),
    ),
    **dict.fromkeys(
        (
            *("svdvals-of 0: none", "svdvals-of low rank"),
            *(f"norm-matrix norm {ord} at 0: 0" for ord in ("nuc", 2, -2)),
        ),
        (DIFFERS, "a singular value of 0 has no gradient; PyTorch takes any of its subgradients"),
    ),
    **{
        f"svd-the rest of {part}": (DIFFERS, "PyTorch leaves the other vectors out of account")
        for part in ("U", "Vh")
    },
    "slogdet-signs": (DIFFERS, "a sign is a constant"),
    "slogdet-singular": (DIFFERS, "the derivative is nan, where PyTorch has infinities"),
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
            "scaled_dot_product_attention-dropout and groups",
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
        f"pad-pad_width={row}": (PYTORCH_REFUSES, "no such mode, not so wide, or no empty axis")
        for row in (
            "((0, 0), (2, 1)),mode=edge",
            "5,mode=reflect",
            "2,mode=symmetric",
            "7,mode=symmetric",
            "((1, 0), (2, 1)),mode=symmetric",
            "7,mode=wrap",
        )
    },
    **{
        f"norm-{row}": (PYTORCH_REFUSES, "it loses the derivative of a count, which is 0")
        for row in ("ord=0,axis=1", "ord 0 at 0: 0")
    },
    **{
        f"solve-x a = b, {row}": (PYTORCH_REFUSES, "takes vectors from the left only")
        for row in ("vector", "batch and vector")
    },
    "getitem-negative step": (PYTORCH_REFUSES, "no negative steps"),
    "getitem-small integers": (PYTORCH_REFUSES, "bytes are masks there, integers in numpy"),
    "gather-negative": (PYTORCH_REFUSES, "no negative places"),
    "scatter-negative": (PYTORCH_REFUSES, "no negative places"),
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
            *("logaddexp", "hypot", "swiglu"),
            *("mean", "var", "std", "norm", "layer_norm", "rms_norm", "inv", "det", "cholesky"),
            *("batch_norm", "group_norm", "pinv", "eigvalsh", "svdvals"),
        )
    },
    "avg_pool1d-integers give float32": (DIFFERS, "integers stay integers there"),
    "max_pool1d-ints": (PYTORCH_REFUSES, "floats only"),
    "adaptive_avg_pool2d-to none": (PYTORCH_REFUSES, "it has no derivative there"),
    **{
        f"binary_cross_entropy_with_logits-{name} is learned": (PYTORCH_REFUSES, "a constant there")
        for name in ("weight", "pos_weight")
    },
}
