"""The costs of what is done to each element, and of what only moves elements."""

from __future__ import annotations

from minigrad.diagnostics.receipt.costs.cost import Call, Cost, nothing, per_element, times_out

# --------------------------------------------------------------------------------------------------
# Elements
# --------------------------------------------------------------------------------------------------


def _power_x(call: Call) -> int:
    exponent = call.option("y")
    return (8 if exponent is None else 3 if exponent else 1) * call.out


def _bounds(call: Call) -> int:
    """How much it takes to see which of the bounds of `clip` is the smaller, if both are arrays."""
    both = call.has("min") and call.has("max")
    numbers = call.option("min") is not None and call.option("max") is not None
    return max(call.size("min"), call.size("max")) if both and not numbers else 0


_CLIP = per_element(
    lambda c: (c.has("min") + c.has("max")) * c.out,
    x=lambda c: (2 * c.has("min") + c.has("max") * (2 + c.has("min"))) * c.out + _bounds(c),
    min=lambda c: (2 + c.has("max")) * c.out + _bounds(c),
    max=lambda c: (2 + c.has("min")) * c.out + _bounds(c),
)

ELEMENTS = {
    **{
        name: per_element()
        for name in (
            "equal", "greater", "greater_equal", "isfinite", "isinf", "isnan", "less",
            "less_equal", "logical_and", "logical_not", "logical_or", "not_equal",
        )
    },
    **{name: per_element(x=1) for name in ("ceil", "floor", "round", "sign")},
    "add": per_element(x=0, y=0),
    "subtract": per_element(x=0, y=1),
    "multiply": per_element(x=1, y=1),
    "divide": per_element(x=1, y=3),
    "floor_divide": per_element(x=1, y=1),
    "remainder": per_element(x=0, y=3),
    "negative": per_element(x=1),
    "power": per_element(x=_power_x, y=6),
    "where": per_element(x=1, y=1),
    "maximum": per_element(x=5, y=5),
    "minimum": per_element(x=5, y=5),
    "clip": _CLIP,
    "abs": per_element(x=2),
    "square": per_element(x=2),
    "sqrt": per_element(x=2),
    "rsqrt": per_element(x=3),
    "reciprocal": per_element(x=3),
    "exp": per_element(x=1),
    "expm1": per_element(x=2),
    "log": per_element(x=1),
    "log1p": per_element(x=2),
    "log2": per_element(x=2),
    "log10": per_element(x=2),
    "erf": per_element(x=5),
    "normal_cdf": per_element(x=5),
    "sin": per_element(x=2),
    "cos": per_element(x=3),
    "tan": per_element(x=3),
    "arcsin": per_element(x=5),
    "arccos": per_element(x=6),
    "arctan": per_element(x=3),
    "arctan2": per_element(y=14, x=15),
    "sinh": per_element(x=2),
    "cosh": per_element(x=2),
    "tanh": per_element(x=3),
    "sigmoid": per_element(x=3),
    "relu": per_element(x=2),
    "leaky_relu": per_element(x=3),
    "elu": per_element(x=7),
    "silu": per_element(x=6),
    "softplus": per_element(x=3),
    "gelu": per_element(
        lambda c: (9 if c.option("approximate") == "tanh" else 2) * c.out,
        x=lambda c: (18 if c.option("approximate") == "tanh" else 8) * c.out,
    ),
    "dropped": Cost(times_out(2), {"x": times_out(2)}, own=("words",)),
}  # fmt: skip

# --------------------------------------------------------------------------------------------------
# Moves: nothing is computed, except where elements are added to one another
# --------------------------------------------------------------------------------------------------

MOVES = {
    **{
        name: Cost(nothing, {"x": nothing})
        for name in (
            "astype", "broadcast_to", "clone", "flip", "identity", "reshape", "roll", "transpose",
        )
    },
    "checkpoint": Cost(nothing),  # its work is that of the ops inside, when they run again
    "concatenate": Cost(nothing, {"arrays": nothing}),
    "getitem": Cost(nothing, {"x": times_out(1)}),
    "scatter_add": Cost(lambda c: c.size("values"), {"values": nothing}),
}  # fmt: skip
