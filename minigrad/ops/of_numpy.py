"""Ops that are functions of numpy, each a row of the table of derivatives.

    sin = curve("sin", "The sine, with derivative cos(x).")

is an op of floats whose forward is `def sin(x): return np.sin(x)`. Its VJPs stand below it, as for
any op.
"""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable
from typing import Any, Generic, ParamSpec

import numpy as np

from minigrad.core.op import Op, op
from minigrad.core.tensor import Array, Axis
from minigrad.ops.shape import as_tuple

P = ParamSpec("P")


class OfNumpy(Generic[P]):
    """Makes ops of functions of numpy, of which it writes the forward.

    Args:
        example: a function with the parameters that the ops have.
        result: what a forward returns, with `{name}` where the name of numpy's function stands.
        floats: whether they are functions of floats, as for `op`.
    """

    def __init__(self, example: Callable[P, Any], result: str, floats: bool = False) -> None:
        self.example = example
        self.result = result
        self.floats = floats

    def __call__(self, name: str, text: str, of: str = "", **properties: Any) -> Op[P]:
        """Make the op `name`, with the docstring `text` and further properties as for `op`.

        `of` is the name of numpy's function if it is another one.
        """
        parameters = inspect.signature(self.example).parameters.values()
        listed = ", ".join(str(p.replace(annotation=p.empty)) for p in parameters)
        source = f"def {name}({listed}):\n    return {self.result.format(name=of or name)}\n"
        filename = f"<the forward of {name}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        namespace = {"np": np, "as_tuple": as_tuple, "booleans": booleans}
        namespace["__name__"] = "minigrad.ops"
        exec(compile(source, filename, "exec"), namespace)
        forward: Any = namespace[name]
        forward.__doc__ = text
        forward.__annotations__ = self.example.__annotations__
        made: Op[P] = op(floats=self.floats, **properties)(forward)
        return made


def booleans(x: Array) -> Array:
    """Return x, or raise a TypeError if it is not of booleans."""
    dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    if dtype != np.bool_:
        raise TypeError(f"takes booleans, as comparisons give, not {dtype}")
    return x


def _unary(x: Array) -> Array: ...
def _binary(a: Array, b: Array) -> Array: ...
def _reduction(x: Array, axis: Axis = None, keepdims: bool = False) -> Array: ...
def _index(x: Array, axis: int | None = None, keepdims: bool = False) -> Array: ...


_OVER = "axis=as_tuple(axis), keepdims=keepdims)"  # of a function whose wrapper would take time

unary = OfNumpy(_unary, "np.{name}(x)")
curve = OfNumpy(_unary, "np.{name}(x)", floats=True)
binary = OfNumpy(_binary, "np.{name}(a, b)")
logical = OfNumpy(_binary, "np.{name}(booleans(a), booleans(b))")
reduction = OfNumpy(_reduction, "np.{name}.reduce(x, " + _OVER)
logical_reduction = OfNumpy(_reduction, "np.{name}.reduce(booleans(x), " + _OVER)
index = OfNumpy(_index, "x.{name}(axis, keepdims=keepdims)")
