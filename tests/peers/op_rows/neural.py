"""Functions of neural networks."""

import numpy as np

from tests.peers.op_rows.products import vector_norm
from tests.peers.op_rows.row import Row, SkippedError, first, same, vector, with_dtype
from tests.peers.op_rows.shapes import broadcast_tensors


def softplus(m, x, beta=1, threshold=20):
    """PyTorch takes x itself where beta x is above a threshold."""
    return m.where(beta * x > threshold, x, m.softplus(x, beta))


def normalize(m, x, p=2.0, dim=1, eps=1e-12):
    return x / m.clip(vector_norm(m, x, p, dim, True), eps)


def cosine_similarity(m, x, y, dim=1, eps=1e-8):
    x, y = broadcast_tensors(m, x, y)
    length = [m.clip(m.norm(vector(m, v), None, dim if v.ndim else 0, True), eps) for v in (x, y)]
    return m.sum(vector(m, x) / length[0] * (vector(m, y) / length[1]), dim)


def glu(m, x, dim=-1):
    a, b = m.split(x, 2, dim)
    return a * m.sigmoid(b)


def prelu(m, x, weight):
    if x.ndim > 1 and weight.ndim:
        weight = m.reshape(weight, (1, -1, *[1] * (x.ndim - 2)))
    elif weight.ndim:
        weight = m.reshape(weight, () if not x.ndim else (1,))
    return m.where(x > 0, x, weight * x)


def rrelu(m, x, lower=1 / 8, upper=1 / 3, training=False):
    if training:
        raise SkippedError("random numbers")
    return m.leaky_relu(x, (lower + upper) / 2)


def dropout(m, x, p=0.5, training=True):
    if training and 0 < p < 1:
        raise SkippedError("random numbers")
    return m.dropout(x, p, training)


def attention(m, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
    if dropout_p:
        raise SkippedError("random numbers")
    return m.scaled_dot_product_attention(q, k, v, attn_mask, 0.0, is_causal, **options)


def batch_norm(m, x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    return m.batch_norm(x, mean, var, weight, bias, training, momentum, eps)


def instance_norm(m, x, running_mean=None, running_var=None, weight=None, bias=None,
                  use_input_stats=True, momentum=0.1, eps=1e-5):  # fmt: skip
    """A group norm with a group for each channel."""
    if not use_input_stats:
        return batch_norm(m, x, running_mean, running_var, weight, bias, False, momentum, eps)
    return m.group_norm(x, x.shape[1], weight, bias, eps)


def pool(name):
    """Pooling, of which the values are compared: ours returns no indices.

    Sizes of one element stand for a number in PyTorch, and those of none for the default.
    """

    def plain(value):
        if isinstance(value, tuple) and len(value) < 2:
            return value[0] if value else None
        return value

    def call(m, x, *args, return_indices=False, **options):
        options = {key: plain(value) for key, value in options.items()}
        return getattr(m, name)(x, *map(plain, args), **options)

    return Row(call, first)


def native_group_norm(m, x, weight, bias, n, channels, size, groups, eps):
    return m.group_norm(x, groups, weight, bias, eps)


def native_batch_norm(m, x, weight, bias, *statistics_and_options):
    *statistics, training, momentum, eps = statistics_and_options
    mean, var = statistics or (None, None)
    return batch_norm(m, x, mean, var, weight, bias, training, momentum, eps)


def softmax_gradient(m, g, out, dim, dtype):
    return out * (g - m.sum(g * out, dim, True)) if out.ndim else g * 0.0


def patches(m, x, kernel_size, dilation=1, padding=0, stride=1):
    """nn.functional.unfold: each patch of an image as a column."""
    size, dilation, padding, stride = (
        (v, v) if isinstance(v, int) else v for v in (kernel_size, dilation, padding, stride)
    )
    images = m.reshape(x, (-1, *x.shape[-3:]))
    images = m.pad(images, ((0, 0), (0, 0), *((p, p) for p in padding)))
    rows, columns = (
        np.arange(0, n - d * (k - 1), s)[None, :] + d * np.arange(k)[:, None]
        for n, k, d, s in zip(images.shape[2:], size, dilation, stride, strict=True)
    )
    taken = images[:, :, rows[:, None, :, None], columns[None, :, None, :]]
    lead = x.shape[:1] if x.ndim == 4 else ()
    return m.reshape(
        taken, (*lead, x.shape[-3] * size[0] * size[1], rows.shape[1] * columns.shape[1])
    )


NEURAL = {
    "softmax": with_dtype(same("softmax")),
    "softmax/with_dtype": with_dtype(same("softmax")),
    "log_softmax": with_dtype(same("log_softmax")),
    "log_softmax/with_dtype": with_dtype(same("log_softmax")),
    **dict.fromkeys(("nn.functional.softmin", "nn.functional.softmin/with_dtype"),
                    with_dtype(lambda m, x, dim: m.softmax(-x, dim))),
    **{f"nn.functional.{name}": name for name in ("relu", "leaky_relu", "elu", "silu", "gelu")},
    "nn.functional.relu6": lambda m, x: m.clip(x, 0.0, 6.0),
    "nn.functional.hardtanh": lambda m, x, min_val=-1.0, max_val=1.0: m.clip(x, min_val, max_val),
    "nn.functional.hardsigmoid": lambda m, x: m.clip(x / 6 + 0.5, 0.0, 1.0),
    "nn.functional.hardswish": lambda m, x: x * m.clip(x / 6 + 0.5, 0.0, 1.0),
    "nn.functional.logsigmoid": lambda m, x: -m.softplus(-x),
    "nn.functional.mish": lambda m, x: x * m.tanh(m.softplus(x)),
    "nn.functional.softsign": lambda m, x: x / (1 + m.abs(x)),
    "nn.functional.tanhshrink": lambda m, x: x - m.tanh(x),
    "nn.functional.softshrink": lambda m, x, lambd=0.5: x - m.clip(x, -lambd, lambd),
    "nn.functional.hardshrink": lambda m, x, lambd=0.5: m.where(
        m.logical_and(x >= -lambd, x <= lambd), 0.0, x),
    "nn.functional.threshold": lambda m, x, threshold, value: m.where(x > threshold, x, value),
    "nn.functional.selu": lambda m, x: 1.0507009873554805 * m.elu(x, 1.6732632423543772),
    "nn.functional.celu": lambda m, x, alpha=1.0: m.elu(x / alpha) * alpha,
    "nn.functional.softplus": softplus,
    "nn.functional.glu": glu,
    "nn.functional.prelu": prelu,
    "nn.functional.rrelu": rrelu,
    "nn.functional.normalize": normalize,
    "nn.functional.cosine_similarity": cosine_similarity,
    "nn.functional.layer_norm": "layer_norm",
    "nn.functional.rms_norm": "rms_norm",
    "nn.functional.group_norm": "group_norm",
    "nn.functional.batch_norm": batch_norm,
    "nn.functional.instance_norm": instance_norm,
    **{f"nn.functional.{name}": dropout for name in ("dropout", "dropout2d", "dropout3d")},
    "nn.functional.scaled_dot_product_attention": attention,
    **{f"nn.functional.{name}": name for name in ("conv1d", "conv2d")},
    **{f"nn.functional.{kind}_pool{n}d": pool(f"{kind}_pool{n}d")
       for kind in ("max", "avg", "adaptive_avg") for n in (1, 2)},
    "native_layer_norm": Row(same("layer_norm"), first),
    "native_group_norm": Row(native_group_norm, first),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit"),
                    Row(native_batch_norm, first)),
    "_batch_norm_with_update": Row(lambda m, x, weight, bias, mean, var, momentum, eps: batch_norm(
        m, x, mean, var, weight, bias, True, momentum, eps), first),
    "_softmax_backward_data": softmax_gradient,
    "nn.functional.unfold": patches,
}  # fmt: skip
