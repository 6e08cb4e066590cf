"""Sketches: arrays that have a shape and a dtype, but no elements; and the FLOPs of an op on them.

An op that is called on Tensors of sketches returns a Tensor of a sketch, and adds to a tally the
FLOPs that the call would take. So nobody writes down the cost of a VJP, of a
composition or of a forward in numpy: one run finds it, in microseconds whatever the shapes are. The
conventions:

- a multiply-add is 2 FLOPs, so a product `(m, k) @ (k, n)` is 2 m k n;
- a function of elements is 1 FLOP for each element of its result, for a sum as for a logarithm;
- a reduction is 1 FLOP for each element that goes in;
- an operation that only moves or converts elements (a view, a copy, an index) is 0.

The FLOPs of a kernel cannot be seen, so the block of its op gives them: `@op(cost=1)`. A VJP that
depends on the values of its operands is counted for ordinary values: `any` of a condition is false,
and `all` is true.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.lib.mixins import NDArrayOperatorsMixin

from minigrad.core.codegen import StandIn
from minigrad.core.node import Cost, OpLike
from minigrad.core.tensor import Tensor
from minigrad.ops.products import shape_of_product

Shape = tuple[int, ...]


class Tally:
    """The FLOPs that operations on the sketches of one run have taken so far."""

    __slots__ = ("flops",)

    def __init__(self) -> None:
        self.flops = 0


class Sketch(NDArrayOperatorsMixin, StandIn):
    """An array without elements, to which numpy's own functions can be applied.

    Attributes:
        shape: the shape.
        dtype: the dtype.
        tally: where the FLOPs of operations on it are added up.
        truth: the answer to `if sketch:`, for a condition that was reduced to one element.
    """

    __slots__ = ("dtype", "shape", "tally", "truth")

    base = None
    flags = np.empty(0).flags

    def __init__(
        self, shape: Sequence[int], dtype: np.dtype[Any], tally: Tally, truth: bool = False
    ) -> None:
        self.shape: Shape = tuple(map(int, shape))
        self.dtype = dtype
        self.tally = tally
        self.truth = truth

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements that the array would have."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<sketch of shape {self.shape} and dtype {self.dtype}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        raise TypeError("a sketch has no elements")

    def made(self, shape: Sequence[int], dtype: Any = None, flops: int = 0) -> Sketch:
        """Return the sketch of a result, and add up the FLOPs that it took."""
        self.tally.flops += flops
        return Sketch(shape, self.dtype if dtype is None else np.dtype(dtype), self.tally)

    # ----------------------------------------------------------------------------------------------
    # The methods of an array
    # ----------------------------------------------------------------------------------------------

    def _moved(self, function: Callable[..., Any], *args: Any, **options: Any) -> Sketch:
        """Apply a function that returns a view, to an array whose elements are all one."""
        return self.made(function(_spread(self), *args, **options).shape)

    def astype(self, dtype: Any, copy: bool = True) -> Sketch:
        """Convert to another dtype."""
        return self.made(self.shape, dtype)

    def copy(self) -> Sketch:
        """Copy."""
        return self.made(self.shape)

    view = copy

    def item(self) -> bool:
        """Return the truth of a condition: all that is known of an element."""
        return self.truth

    def reshape(self, *shape: Any) -> Sketch:
        """Arrange the elements in another shape."""
        return self._moved(np.ndarray.reshape, *shape)

    def transpose(self, *axes: Any) -> Sketch:
        """Reorder the axes."""
        return self._moved(np.ndarray.transpose, *axes)

    @property
    def T(self) -> Sketch:  # noqa: N802  # numpy's name
        """The axes in reverse order."""
        return self.transpose()

    def __getitem__(self, index: Any) -> Sketch:
        parts = index if isinstance(index, tuple) else (index,)
        plain = tuple(_spread(part) if isinstance(part, Sketch) else part for part in parts)
        return self._moved(np.ndarray.__getitem__, plain)

    def sum(self, axis: Any = None, keepdims: bool = False) -> Sketch:
        """Reduce over `axis`: any reduction takes 1 FLOP for each element that goes in."""
        axes = normalize_axis_tuple(range(self.ndim) if axis is None else axis, self.ndim)
        shape = [1 if i in axes else n for i, n in enumerate(self.shape)]
        if not keepdims:
            shape = [n for i, n in enumerate(shape) if i not in axes]
        return self.made(shape, flops=self.size)

    max = min = prod = argmax = argmin = sum

    def cumsum(self, axis: int | None = None) -> Sketch:
        """Run along `axis`, or along all elements in a row."""
        return self.made((self.size,) if axis is None else self.shape, flops=self.size)

    cumprod = cumsum

    # ----------------------------------------------------------------------------------------------
    # numpy's functions
    # ----------------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method == "reduce":
            out = self.sum(options.get("axis", 0), options.get("keepdims", False))
            out.truth = ufunc is np.logical_and
            return out
        if method == "accumulate":
            return self.cumsum(0)
        if method != "__call__" or ufunc.nout > 1:
            return NotImplemented
        known = [getattr(x, "dtype", None) or _dtype_of_number(x) for x in inputs]
        dtype = ufunc.resolve_dtypes((*known, None))[-1]
        if ufunc is np.matmul:
            shape = shape_of_product(*map(shape_of, inputs))
            return self.made(shape, dtype, 2 * math.prod(shape) * shape_of(inputs[0])[-1])
        return NotImplemented if ufunc.signature else self._elementwise(inputs, dtype)

    def __array_function__(
        self, function: Any, types: Any, args: Sequence[Any], options: Mapping[str, Any]
    ) -> Any:
        if function in _VIEWS:
            return args[0]._moved(function, *args[1:], **options)
        if function in _METHODS:
            return _METHODS[function](*args, **options)
        if function is np.where:
            return self._elementwise(args, next(x.dtype for x in args[1:] if hasattr(x, "dtype")))
        if function is np.concatenate:
            return self._joined(*args, **options)
        return NotImplemented

    def result_of(self, op: OpLike, given: Sequence[Any]) -> Any:
        """Return the result of an op whose cost is given, or is that of its composition."""
        if op.cost is None:
            assert op.composition is not None
            return op.composition(*given)
        values = [value._data if isinstance(value, Tensor) else value for value in given]
        named = dict(zip(op.parameters, values, strict=True))
        if op.shape is None:
            arrays = [value for value in values if hasattr(value, "shape")]
            shape: Shape = np.broadcast_shapes(*map(shape_of, arrays))
        else:
            shape = call_named(op.shape, named)
        dtypes = [value.dtype for value in values if isinstance(value, Sketch)]
        out: Any = self.made(shape, next((d for d in dtypes if d.kind == "f"), dtypes[0]))
        self.tally.flops += flops(op.cost, named | {"out": out})
        return Tensor.at(out, None) if any(isinstance(value, Tensor) for value in given) else out

    def _elementwise(self, inputs: Sequence[Any], dtype: np.dtype[Any]) -> Sketch:
        shape = np.broadcast_shapes(*map(shape_of, inputs))
        return self.made(shape, dtype, math.prod(shape))

    def _joined(self, arrays: Sequence[Any], axis: int = 0) -> Sketch:
        shape = list(shape_of(arrays[0]))
        shape[axis] = sum(shape_of(array)[axis] for array in arrays)
        return self.made(shape)


def _spread(sketch: Sketch) -> Any:
    """Return an array of that shape, which repeats one element and takes no memory."""
    return np.broadcast_to(np.zeros((), sketch.dtype), sketch.shape)


def _dtype_of_number(value: Any) -> Any:
    """Return what `ufunc.resolve_dtypes` takes for a number of Python's, or for a list."""
    return value.__class__ if value.__class__ in (int, float) else np.asarray(value).dtype


_VIEWS = {
    np.broadcast_to, np.expand_dims, np.flip, np.moveaxis, np.ravel, np.reshape, np.squeeze,
    np.swapaxes, np.transpose,
}  # fmt: skip

_METHODS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((np.sum, np.prod, np.max, np.min, np.argmax, np.argmin), Sketch.sum),
    **dict.fromkeys((np.cumsum, np.cumprod), Sketch.cumsum),
    **{f: lambda x, *_, **__: x.copy() for f in (np.copy, np.roll)},
    np.shape: lambda x: shape_of(x),
    **{f: lambda x, *_, **__: x._elementwise([x], x.dtype) for f in (np.round, np.around)},
}


def shape_of(value: Any) -> Shape:
    """Return the shape of a sketch, an array, a number or a list of numbers."""
    shape: Shape = value.shape if hasattr(value, "shape") else np.shape(value)
    return shape


def flops(cost: Cost, values: Mapping[str, Any]) -> int:
    """Evaluate a cost on sketches of the operands and of the result `out`, and options, by name."""
    if isinstance(cost, int):
        return cost * int(values["out"].size)
    return int(call_named(cost, values))


def call_named(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Call a function with those of `values` that its parameters name."""
    return function(*(values[name] for name in signature(function).parameters))
