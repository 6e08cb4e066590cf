"""Functions of each element by itself, and of two."""

import math

from tests.peers.op_rows.products import vector_norm
from tests.peers.op_rows.row import at, axis_of


def scaled_sum(m, x, y, alpha=1):
    return x + (y if alpha == 1 else alpha * y)


def divide(m, x, y, rounding_mode=None):
    if rounding_mode == "floor":
        return m.floor_divide(x, y)
    return m.trunc(x / y) if rounding_mode == "trunc" else x / y


def nan_aside(name):
    """The larger or smaller of two, of which nan is neither."""

    def call(m, x, y):
        return m.where(m.isnan(y), x, m.where(m.isnan(x), y, getattr(m, name)(x, y)))

    return call


def lerp(m, x, y, weight):
    near = m.abs(weight) < 0.5
    return m.where(near, x + weight * (y - x), y - (y - x) * (1 - weight))


def logit(m, x, eps=None):
    if eps is not None:  # which may be above a half, where m.clip gives the upper bound
        x = m.where(x < eps, eps, m.where(x > 1 - eps, 1 - eps, x))
    return m.log(x / (1 - x))


def logarithmic(m, x, y):
    """log2(2^x + 2^y)."""
    return m.logaddexp(x * math.log(2), y * math.log(2)) / math.log(2)


def to(m, x, *args, **options):
    """Of the arguments only the dtype matters here."""
    dtype = options.get("dtype") or next((a for a in args if a in DTYPES), None)
    other = next((a for a in args if hasattr(a, "dtype")), None)
    return m.astype(x, other.dtype if other is not None else dtype or x.dtype)


DTYPES = {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"}


def cast(dtype):
    return lambda m, x, memory_format=None: m.astype(x, dtype)


def renorm(m, x, p, dim, maxnorm):
    """Each slice along dim is made at most that long."""
    others = tuple(i for i in range(x.ndim) if i != dim % x.ndim)
    length = vector_norm(m, x, p, others, True)
    return x * m.where(length > maxnorm, maxnorm / (length + 1e-7), 1.0)


def trapezoid(m, y, x=None, *, dx=1, dim=-1):
    return m.sum(trapezoids(m, y, x, dx, dim), dim)


def cumulative_trapezoid(m, y, x=None, *, dx=1, dim=-1):
    return m.cumsum(trapezoids(m, y, x, dx, dim), dim)


def trapezoids(m, y, x, dx, dim):
    def steps(v, axis):
        return v[at(axis, slice(1, None))], v[at(axis, slice(None, -1))]

    upper, lower = steps(y, axis_of(y, dim))
    if x is not None:
        right, left = steps(x, 0 if x.ndim == 1 else axis_of(x, dim))
        dx = right - left
        if x.ndim == 1:
            dx = m.reshape(dx, (-1, *[1] * (y.ndim - axis_of(y, dim) - 1)))
    return (upper + lower) * dx / 2


ELEMENTWISE = {
    **{name: name for name in (
        "abs", "ceil", "cos", "cosh", "erf", "exp", "exp2", "expm1", "floor", "isfinite", "isinf",
        "isnan", "log", "log10", "log1p", "log2", "nan_to_num", "reciprocal", "round", "rsqrt",
        "sigmoid", "sign", "sin",
        "sinc", "sinh", "sqrt", "square", "tan", "tanh", "trunc", "copysign", "fmod", "hypot",
        "logaddexp", "maximum", "minimum", "remainder", "xlogy", "where", "isclose", "floor_divide",
    )},
    **{"acos": "arccos", "acosh": "arccosh", "asin": "arcsin", "asinh": "arcsinh"},
    **{"atan": "arctan", "atan2": "arctan2", "atanh": "arctanh", "neg": "negative"},
    **{"mul": "multiply", "true_divide": "divide", "pow": "power", "special.ndtr": "normal_cdf"},
    **{"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal"},
    **{"gt": "greater", "ge": "greater_equal", "max/binary": "maximum", "min/binary": "minimum"},
    **{f"round/decimals_{n}": "round" for n in ("0", "3", "neg_3")},
    **{"sgn": "sign", "clamp": "clip", "clone": "clone", "contiguous": "clone"},
    "where": lambda m, x, condition, y: m.where(condition, x, y),
    "add": scaled_sum,
    "sub": lambda m, x, y, alpha=1: x - (y if alpha == 1 else alpha * y),
    "rsub": lambda m, x, y, alpha=1: y - (x if alpha == 1 else alpha * x),
    **{f"div/{mode}": divide for mode in ("no_rounding_mode", "trunc_rounding", "floor_rounding")},
    "float_power": lambda m, x, y: m.power(m.astype(x, "float64"), m.astype(y, "float64")),
    "fmax": nan_aside("maximum"),
    "fmin": nan_aside("minimum"),
    "clamp_min": lambda m, x, bound: m.clip(x, bound),
    "clamp_max": lambda m, x, bound: m.clip(x, None, bound),
    "positive": lambda m, x: +x,
    "frac": lambda m, x: x - m.trunc(x),
    "deg2rad": lambda m, x: x * (math.pi / 180),
    "rad2deg": lambda m, x: x * (180 / math.pi),
    "erfc": lambda m, x: 2 * m.normal_cdf(-math.sqrt(2) * x),
    "logit": logit,
    "logaddexp2": logarithmic,
    "ldexp": lambda m, x, y: x * 2.0 ** m.astype(y, "float64"),
    "lerp": lerp,
    "heaviside": lambda m, x, y: m.where(x == 0, y, m.astype(x > 0, x.dtype)),
    "special.entr": lambda m, x: m.where(x < 0, -math.inf, -m.xlogy(x, x)),
    "special.xlog1py": lambda m, x, y: m.where(x == 0, 0.0, x * m.log1p(y)),
    "signbit": lambda m, x: m.copysign(1.0, x) < 0,
    "isposinf": lambda m, x: m.logical_and(m.isinf(x), x > 0),
    "isneginf": lambda m, x: m.logical_and(m.isinf(x), x < 0),
    "logical_not": lambda m, x: x == 0,
    "logical_and": lambda m, x, y: m.logical_and(x != 0, y != 0),
    "logical_or": lambda m, x, y: m.logical_or(x != 0, y != 0),
    "logical_xor": lambda m, x, y: (x != 0) != (y != 0),
    "allclose": lambda m, x, y, **options: m.all(m.isclose(x, y, **options)),
    "equal": lambda m, x, y: x.shape == y.shape and m.all(x == y),
    "isin": lambda m, x, among: m.any(m.expand_dims(x, -1) == m.reshape(among, -1), -1),
    "__radd__": lambda m, x, y: y + x,
    "__rmul__": lambda m, x, y: y * x,
    "__rsub__": lambda m, x, y: y - x,
    "__rdiv__": lambda m, x, y: y / x,
    "__rmod__": lambda m, x, y: y % x,
    "__rpow__": lambda m, x, y: y**x,
    "to": to,
    **{"float": cast("float32"), "double": cast("float64"), "half": cast("float16")},
    **{"int": cast("int32"), "long": cast("int64"), "short": cast("int16")},
    **{"bool": cast("bool"), "byte": cast("uint8"), "char": cast("int8")},
    "addcmul": lambda m, x, a, b, value=1: x + value * a * b,
    "addcdiv": lambda m, x, a, b, value=1: x + value * a / b,
    "trapezoid": trapezoid,
    "trapz": trapezoid,
    "cumulative_trapezoid": cumulative_trapezoid,
    "fill": lambda m, x, value: m.broadcast_to(m.astype(value, x.dtype), x.shape),
    "renorm": renorm,
    "item": lambda m, x: x.item(),
    "zeros_like": lambda m, x, dtype=None, device=None: m.zeros_like(x, dtype),
    "ones_like": lambda m, x, dtype=None, device=None: m.ones_like(x, dtype),
    "full_like": lambda m, x, value, dtype=None, device=None: m.full(
        x.shape, value, dtype or x.dtype
    ),
}  # fmt: skip
