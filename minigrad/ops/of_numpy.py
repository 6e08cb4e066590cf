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

P = ParamSpec("P")


class OfNumpy(Generic[P]):
    """Makes ops of the functions of numpy with their names, of which it writes the forward.

    Args:
        example: a function with the operands that the ops have.
        floats: whether they are functions of floats, as for `op`.
    """

    def __init__(self, example: Callable[P, Any], floats: bool = False) -> None:
        self.operands = tuple(inspect.signature(example).parameters)
        self.floats = floats

    def __call__(self, name: str, text: str, **properties: Any) -> Op[P]:
        """Make the op `name`, with the docstring `text` and further properties as for `op`."""
        operands = ", ".join(self.operands)
        source = f"def {name}({operands}):\n    return np.{name}({operands})\n"
        filename = f"<the forward of {name}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        namespace: dict[str, Any] = {"np": np, "__name__": "minigrad.ops"}
        exec(compile(source, filename, "exec"), namespace)
        forward = namespace[name]
        forward.__doc__ = text
        forward.__annotations__ = dict.fromkeys((*self.operands, "return"), "Array")
        made: Op[P] = op(floats=self.floats, **properties)(forward)
        return made


unary = OfNumpy(lambda x: x)
curve = OfNumpy(lambda x: x, floats=True)
binary = OfNumpy(lambda a, b: (a, b))
