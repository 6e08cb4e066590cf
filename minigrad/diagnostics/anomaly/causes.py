"""Why an op made a NaN or an Inf: the usual causes, recognised by the op and by its operands.

Each function of a cause looks at arrays that are known to have given a result that is not finite.
It says nothing where it does not recognise the case: a wrong hint is worse than none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Values = Mapping[str, np.ndarray[Any, Any]]
Cause = Callable[[Values, np.ndarray[Any, Any]], str | None]


def cause_of(op: str, values: Values, result: np.ndarray[Any, Any]) -> str | None:
    """The usual cause for a forward, or None if none is recognised.

    Args:
        op: the name of the op.
        values: what it was called with, by the names of its parameters.
        result: what it gave.
    """
    known = _FORWARD.get(op, _nothing)(values, result)
    return known or _too_large(values, result)


def cause_of_gradient(
    op: str, values: Values, gradient: np.ndarray[Any, Any], result: np.ndarray[Any, Any]
) -> str | None:
    """The usual cause for a rule, or None if none is recognised.

    Args:
        op: the name of the op.
        values: what its rule saved, by the names of its parameters; its result as "out".
        gradient: what arrived.
        result: what the rule gave.
    """
    if op in _PRODUCTS:
        return _too_large({**values, "the gradient that arrived": gradient}, result)
    steep = _STEEP.get(op, _nothing)(values, result)
    if steep is not None and _some(np.isnan(result)):
        steep += (
            "; a gradient of 0 times it is NaN, so a `where` after the op does not help: choose a "
            "harmless input by a `where` before the op as well"
        )
    return steep


def _nothing(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    return None


def _some(condition: Any) -> bool:
    return bool(np.any(condition))


def _too_large(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    """Finite numbers gave an Inf: what they should have given does not fit the dtype."""
    if not _are_finite(values) or not _some(np.isinf(result)):
        return None
    return overflow(result.dtype)


def overflow(dtype: np.dtype[Any], what: str = "") -> str:
    """What to say of numbers that are too large for `dtype`, in `what` if that is given."""
    text = f"overflow{what}: the largest {dtype} is {float(np.finfo(dtype).max):.4g}; "
    if dtype == np.float16:
        return text + "compute in float32, or scale the values down"
    return text + "scale the values down, or use a smaller learning rate"


def _are_finite(values: Values) -> bool:
    return all(np.isfinite(x).all() for x in values.values() if x.dtype.kind == "f")


def _log(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    x = values["x"]
    if _some(x < 0):
        return "the logarithm of a negative number is NaN"
    if _some(x == 0):
        return (
            "the logarithm of 0 is -Inf; add a small number, or take log_softmax or a loss "
            "`..._with_logits`, which never form the 0"
        )
    return None


def _log1p(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    if _some(values["x"] < -1):
        return "log1p(x) is the logarithm of 1 + x, which is negative for x < -1"
    return "log1p(-1) is the logarithm of 0, -Inf" if _some(values["x"] == -1) else None


def _divide(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    x, y = np.broadcast_arrays(values["x"], values["y"])
    if _some((x == 0) & (y == 0)):
        return "0 / 0 is NaN; add a small number to the divisor, or choose by `where` beforehand"
    if _some((x != 0) & (y == 0)):
        return "division by 0; add a small number to the divisor"
    return "Inf / Inf is NaN" if _some(np.isinf(x) & np.isinf(y)) else None


def _reciprocal(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    return "division by 0; add a small number to x" if _some(values["x"] == 0) else None


def _sqrt(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    return "the root of a negative number is NaN" if _some(values["x"] < 0) else None


def _rsqrt(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    return _sqrt(values, result) or _reciprocal(values, result)


def _exp(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    x = values["x"]
    limit = math.log(float(np.finfo(result.dtype).max))
    if _some((x > limit) & np.isfinite(x)):
        return (
            f"e^x overflows {result.dtype} for x > {limit:.4g}; subtract the maximum first, as "
            f"softmax and logsumexp do"
        )
    return None


def _power(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    x, y = np.broadcast_arrays(values["x"], values["y"])
    if _some((x < 0) & (y != np.floor(y))):
        return "a negative number to a power that is no integer is NaN"
    return "0 to a negative power is Inf: division by 0" if _some((x == 0) & (y < 0)) else None


def _multiply(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    x, y = np.broadcast_arrays(values["x"], values["y"])
    if _some((x == 0) & np.isinf(y)) or _some((y == 0) & np.isinf(x)):
        return "0 * Inf is NaN: choose by `where`, not by a product with 0"
    return None


def _difference(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    infinite = _some(np.isinf(values["x"])) and _some(np.isinf(values["y"]))
    return "Inf - Inf is NaN" if infinite and _some(np.isnan(result)) else None


def _softmax(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    x = values["x"]
    if _some(x == math.inf):
        return "Inf - Inf is NaN: softmax subtracts the maximum, which is Inf"
    if _some(np.isneginf(x)):
        return (
            "a row of nothing but -Inf has no softmax: everything in it is masked; mask with the "
            "least finite number, or leave such rows out"
        )
    return None


def _product(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    if _some(np.isnan(result)) and any(_some(np.isinf(x)) for x in values.values()):
        return "a sum of products with Inf among them: 0 * Inf and Inf - Inf are NaN"
    if _some(np.isnan(result)) and _are_finite(values):  # then nothing else makes a NaN
        return overflow(result.dtype, " on the way, and then 0 * Inf or Inf - Inf")
    return None


def _norm(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    x, eps = values["x"], values.get("eps")
    if not np.isfinite(x).all():
        return None
    if _some(np.square(x, dtype=np.float64) > float(np.finfo(result.dtype).max)):
        return overflow(result.dtype, " of the squares of x")
    if eps is not None and eps == 0:
        return "0 / 0 is NaN: a row whose elements are all equal, or all 0, with eps=0"
    return None


def _attention(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    query, key = values["query"], values["key"]
    if not (np.isfinite(query).all() and np.isfinite(key).all() and query.size and key.size):
        return None
    most = float(np.abs(query).max()) * float(np.abs(key).max()) * query.shape[-1]
    if most > float(np.finfo(result.dtype).max):
        return overflow(result.dtype, " of the products of query and key")
    return None


def _unit(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    return "it is defined from -1 to 1 only" if _some(np.abs(values["x"]) > 1) else None


_FORWARD: dict[str, Cause] = {
    "log": _log,
    "log2": _log,
    "log10": _log,
    "log1p": _log1p,
    "divide": _divide,
    "reciprocal": _reciprocal,
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
    "exp": _exp,
    "expm1": _exp,
    "power": _power,
    "multiply": _multiply,
    "add": _difference,
    "subtract": _difference,
    "softmax": _softmax,
    "log_softmax": _softmax,
    "matmul": _product,
    "linear": _product,
    "lora_linear": _product,
    "nf4_linear": _product,
    "layer_norm": _norm,
    "rms_norm": _norm,
    "fused_attention": _attention,
    "arcsin": _unit,
    "arccos": _unit,
    "arctanh": _unit,
}


def _at_zero(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    out = values.get("out")
    if out is not None and _some(out == 0):
        return "the slope of the square root is infinite at 0; sqrt(x + 1e-12) has one"
    return None


def _power_at_zero(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    x, y = values.get("x"), values.get("y")
    if x is not None and y is not None and _some((x == 0) & (y < 1)):
        return "the slope of x^y is infinite at x = 0 for y < 1; (x + 1e-12)^y has one"
    return None


def _log_at_zero(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    x = values.get("x")
    return None if x is None or not _some(x == 0) else "the slope of the logarithm is infinite at 0"


def _divisor_zero(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    y = values.get("y")
    return None if y is None or not _some(y == 0) else "the derivative divides by y, which has a 0"


def _at_one(values: Values, result: np.ndarray[Any, Any]) -> str | None:
    x = values.get("x")
    return None if x is None or not _some(np.abs(x) == 1) else "the slope is infinite at -1 and 1"


_STEEP: dict[str, Cause] = {
    "sqrt": _at_zero,
    "power": _power_at_zero,
    "log": _log_at_zero,
    "log2": _log_at_zero,
    "log10": _log_at_zero,
    "divide": _divisor_zero,
    "arcsin": _at_one,
    "arccos": _at_one,
}

# Their rules are products, which become Inf by overflow alone.
_PRODUCTS = ("multiply", "matmul", "linear", "lora_linear", "nf4_linear")
