"""Hints: the usual causes of a NaN or an Inf, for `detect_anomaly`.

A hint gets the arrays of a call whose result is not finite. If it does not recognise the cause, it
returns nothing: a wrong hint is worse than no hint. A hint for one op is in the definition of the
op. This file has hints for several families of ops, and for all ops.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from minigrad.core.node import Hint, OpLike
from minigrad.core.tensor import Array


class Undefined(str):
    """A hint for a gradient that is nan because, as documented, the function has no derivative.

    `gradcheck` does not call such a gradient wrong.
    """


def cause_of(op: OpLike, values: Mapping[str, Array], out: Array) -> str | None:
    """Return the usual cause of a result that is not finite, or None if the cause is unknown.

    `values` are the arguments of the call, by name.
    """
    hint = op.nonfinite_hint or (of_product if op.product else None)
    return _asked(hint, {**values, "out": out}) or too_large(out, values.values())


def cause_of_gradient(
    op: OpLike, values: Mapping[str, Array], g: Array, gradient: Array
) -> str | None:
    """Return the usual cause of a gradient that is not finite, or None if the cause is unknown.

    `g` is the arriving gradient, `gradient` is the result of the VJP, and `values` are the
    residuals of the VJP, by name.
    """
    hint = op.gradient_hint or (of_product_gradient if op.product else None)
    known = _asked(hint, {**values, "g": g, "gradient": gradient})
    complete = isinstance(known, Undefined) or hint is of_product_gradient
    if known is not None and not complete and np.isnan(gradient).any():
        known += (
            "; a gradient of 0 times it is NaN, so a `where` after the op does not help: choose a "
            "harmless input by a `where` before the op as well"
        )
    if known is None and is_overflow(gradient, [g, *values.values()]):
        steep = "the gradient that arrived is too large, or the function is too steep at this input"
        return largest(gradient.dtype) + steep
    return known


def _asked(hint: Hint | None, values: Mapping[str, Array]) -> str | None:
    """Return the text of a hint, if it has the values that it needs and recognises the cause."""
    if isinstance(hint, Mapping):
        return next((text for text, case in hint.items() if np.any(call_with(case, values))), None)
    if hint is None or isinstance(hint, str):
        return hint
    text = call_with(hint, values)
    if text is None or isinstance(text, str):
        return text
    return f"a hint of this op returned {text!r:.60}; it should return a text or None"


def call_with(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Call a function with the values that its parameters name; None if a value is missing."""
    wanted = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in wanted):
        return function(**values)
    if any(p.default is p.empty and p.name not in values for p in wanted):
        return None
    return function(**{p.name: values[p.name] for p in wanted if p.name in values})


def overflow(dtype: np.dtype[Any], what: str = "") -> str:
    """Return the hint for an overflow of `dtype`; `what` says where it happened."""
    text = largest(dtype, what)
    if dtype == np.float16:
        return text + "compute in float32, or scale the values down"
    return text + "scale the values down, or use a smaller learning rate"


def largest(dtype: np.dtype[Any], what: str = "") -> str:
    """Return the beginning of the hint for an overflow, which names the limit of the dtype."""
    return f"overflow{what}: the largest {dtype} is {float(np.finfo(dtype).max):.4g}; "


def too_large(out: Array, operands: Iterable[Array]) -> str | None:
    """Recognise an overflow, because the dtype is too small."""
    return overflow(out.dtype) if is_overflow(out, operands) else None


def is_overflow(out: Array, operands: Iterable[Array]) -> bool:
    """Return whether a result has an Inf although all operands are finite."""
    return are_finite(operands) and bool(np.isinf(out).any())


def are_finite(operands: Iterable[Array]) -> bool:
    """Return whether no operand has a NaN or an Inf."""
    return all(np.isfinite(x).all() for x in operands if x.dtype.kind == "f")


def of_product(out: Array, **operands: Array) -> str | None:
    """Recognise the causes of a NaN in a sum of products."""
    if not np.isnan(out).any():
        return None
    if any(np.isinf(x).any() for x in operands.values()):
        return "a sum of products with Inf among them: 0 * Inf and Inf - Inf are NaN"
    if are_finite(operands.values()):  # only an overflow gives a NaN then
        return overflow(out.dtype, " on the way, and then 0 * Inf or Inf - Inf")
    return None


def of_product_gradient(gradient: Array, **operands: Array) -> str | None:
    """Recognise an overflow, the only cause of an Inf in a gradient that is a product."""
    return too_large(gradient, operands.values())


def of_norm(out: Array, x: Array, eps: Array | None = None) -> str | None:
    """Recognise the causes of a NaN or an Inf in a normalisation."""
    if not np.isfinite(x).all():
        return None
    if (np.square(x, dtype=np.float64) > float(np.finfo(out.dtype).max)).any():
        return overflow(out.dtype, " of the squares of x")
    if eps is not None and eps == 0:
        return "0 / 0 is NaN: a row whose elements are all equal, or all 0, with eps=0"
    return None
