"""Makers of ops that call one numpy function: each op is one row of the table of derivatives.

    sin = curve("sin", "The sine, with derivative cos(x).")

makes an op of floats, with the forward function `def sin(x): return np.sin(x)`. Its VJPs are
defined below it, as for any op.
"""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable
from typing import Any, ParamSpec

import numpy as np

from minigrad.core.op import Op, op
from minigrad.core.tensor import Array, Axis
from minigrad.ops.shape import as_tuple, flag

P = ParamSpec("P")


def of_numpy(example: Callable[P, Any], result: str, **shared: Any) -> Callable[..., Op[P]]:
    """Return a function that makes ops from numpy functions, and generates their forward functions.

    The returned function accepts the name of the op, its docstring, and properties as for `op`; use
    `of` if numpy's function has another name. If the forward function only calls numpy's function,
    its attribute `same` is numpy's function, and a call of the op saves one Python call.

    Args:
        example: a function with the parameters of the ops.
        result: the expression that the forward function returns; `{name}` is numpy's function.
        shared: properties of all these ops, as for `op`.
    """
    parameters = inspect.signature(example).parameters.values()
    listed = ", ".join(str(p.replace(annotation=p.empty)) for p in parameters)

    def make(name: str, text: str, of: str = "", **properties: Any) -> Op[P]:
        source = f"def {name}({listed}):\n    return {result.format(name=of or name)}\n"
        filename = f"<the forward of {name}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        namespace = {"np": np, "as_tuple": as_tuple, "booleans": booleans, "flag": flag}
        namespace["__name__"] = "minigrad.ops"
        exec(compile(source, filename, "exec"), namespace)
        forward: Any = namespace[name]
        forward.__doc__ = text
        forward.__annotations__ = example.__annotations__
        if result in ("np.{name}(x)", "np.{name}(a, b)"):
            forward.same = getattr(np, of or name)
        made: Op[P] = op(**shared, **properties)(forward)
        return made

    return make


def booleans(x: Array) -> Array:
    """Return x; raise a TypeError if it does not contain booleans."""
    dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    if dtype != np.bool_:
        raise TypeError(f"takes booleans, as comparisons give, not {dtype}")
    return x


def _unary(x: Array) -> Array: ...
def _binary(a: Array, b: Array) -> Array: ...
def _equality(a: Any, b: Any) -> Array: ...
def _reduction(x: Array, axis: Axis = None, keepdims: bool = False) -> Array: ...
def _index(x: Array, axis: int | None = None, keepdims: bool = False) -> Array: ...


unary = of_numpy(_unary, "np.{name}(x)", elementwise=True)
curve = of_numpy(_unary, "np.{name}(x)", elementwise=True, floats=True)
binary = of_numpy(_binary, "np.{name}(a, b)", elementwise=True)
equality = of_numpy(_equality, "np.{name}(a, b)", elementwise=True)  # `x == None` is False
of_two = of_numpy(_binary, "np.{name}(a, b)", elementwise=True, floats=True)
logical = of_numpy(_binary, "np.{name}(booleans(a), booleans(b))")
# np.max and similar functions wrap these; for a small array the wrapper takes most of the time.
reducer = of_numpy(_reduction, "np.{name}.reduce(x, axis=as_tuple(axis), keepdims=flag(keepdims))")
logical_reducer = of_numpy(
    _reduction, "np.{name}.reduce(booleans(x), axis=as_tuple(axis), keepdims=flag(keepdims))"
)
index = of_numpy(_index, "np.{name}(x, axis, keepdims=flag(keepdims))")
