"""Count the FLOPs of calls and of VJPs, once for each signature, by running them on sketches.

A sketch is an array that has a shape and a dtype, but no elements. An op that is called on Tensors
of sketches returns a Tensor of a sketch, and adds up the FLOPs that the call would take. So nobody
has to write down the cost of a VJP, of a composition or of a forward in numpy: one run finds the
cost, in microseconds. A signature is everything that a cost can depend on: shapes, dtypes, options.
The conventions are:

- a multiply-add is 2 FLOPs, so a product `(m, k) @ (k, n)` is 2 m k n;
- an elementwise function is 1 FLOP for each element of its result: a logarithm as much as a sum;
- a reduction is 1 FLOP for each element of its operand;
- an operation that only moves or converts elements (a view, a copy, an index) is 0.

A run on sketches cannot see the FLOPs inside a kernel, so the block of the op states them:
`@op(cost=1)`. A VJP that depends on the values of its operands is counted for ordinary values:
`any` of a condition is false, and `all` is true. A fused op costs as much as its composition, but
causal attention is counted without its mask.

The engine itself sums a gradient over axes that were broadcast, as for a bias, and sums gradients
that meet in one tensor. The receipt counts these sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from functools import partialmethod
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from minigrad.core.codegen import Shapes, StandIn
from minigrad.core.grad_mode import unobserved
from minigrad.core.node import Cost, OpLike
from minigrad.core.op import VJP, Op
from minigrad.core.tensor import Tensor
from minigrad.ops.hints import call_with
from minigrad.ops.products import shape_of_product
from minigrad.ops.shape import reduced
from minigrad.optim import SGD, Adagrad, Adam, AdamW, RMSprop


class _Sketch(NDArrayOperatorsMixin, StandIn):
    """An array without elements, to which numpy's functions can be applied."""

    __slots__ = ("call", "dtype", "shape", "truth")

    base = None
    flags = np.empty(0).flags

    def __init__(self, shape: Sequence[int], dtype: np.dtype[Any], call: SketchedCall) -> None:
        self.shape = tuple(map(int, shape))
        self.dtype = dtype
        self.call = call  # where the FLOPs of operations on it are added up
        self.truth = False  # the value of `if sketch:`, for a condition of one element

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        raise TypeError("a sketch has no elements")

    def made(self, shape: Sequence[int], dtype: Any = None, flops: int = 0) -> _Sketch:
        """Return the sketch of a result, and add its FLOPs to those of the call."""
        self.call.counted += flops
        return _Sketch(shape, self.dtype if dtype is None else np.dtype(dtype), self.call)

    def _moved(self, function: Callable[..., Any], *args: Any, **options: Any) -> _Sketch:
        """Apply a function that returns a view to an array of this shape without memory."""
        return self.made(function(_spread(self), *args, **options).shape)

    def astype(self, dtype: Any, copy: bool = True) -> _Sketch:
        return self.made(self.shape, dtype)

    def copy(self, *_: Any, **__: Any) -> _Sketch:
        return self.made(self.shape)

    view = roll = copy

    def item(self) -> bool:
        """Return the truth of a condition, because nothing else is known of an element."""
        return self.truth

    reshape = partialmethod(_moved, np.ndarray.reshape)
    transpose = partialmethod(_moved, np.ndarray.transpose)

    @property
    def T(self) -> _Sketch:  # noqa: N802  # numpy's name
        return self._moved(np.ndarray.transpose)

    def __getitem__(self, index: Any) -> _Sketch:
        parts = index if isinstance(index, tuple) else (index,)
        plain = tuple(_spread(part) if isinstance(part, _Sketch) else part for part in parts)
        return self._moved(np.ndarray.__getitem__, plain)

    def sum(self, axis: Any = None, keepdims: bool = False) -> _Sketch:
        """Reduce over `axis`; every reduction is 1 FLOP for each element of its operand."""
        return self.made(reduced(self.shape, axis, keepdims), flops=self.size)

    max = min = prod = argmax = argmin = sum

    def mean(self, axis: Any = None, keepdims: bool = False) -> _Sketch:
        """Reduce over `axis`, and divide by the number of elements."""
        total = self.sum(axis, keepdims)
        return total._elementwise([total], self.dtype)

    def clip(self, *_: Any, **__: Any) -> _Sketch:
        """Return the result of an elementwise function of this array and further arguments."""
        return self._elementwise([self], self.dtype)

    round = around = clip

    def cumsum(self, axis: int | None = None) -> _Sketch:
        """Compute the cumulative sum along `axis`, or of all elements in a row."""
        return self.made((self.size,) if axis is None else self.shape, flops=self.size)

    cumprod = cumsum

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method == "reduce":
            out = self.sum(options.get("axis", 0), options.get("keepdims", False))
            out.truth = ufunc is np.logical_and
            return out
        if method == "accumulate":
            return self.cumsum(0)
        if method != "__call__" or ufunc.nout > 1:
            return NotImplemented
        # numpy finds the result dtype from the type of a Python number, and from dtypes of others.
        kinds = [type(x) if type(x) in (int, float) else getattr(x, "dtype", None) for x in inputs]
        known = [kind or np.asarray(x).dtype for kind, x in zip(kinds, inputs, strict=True)]
        dtype = ufunc.resolve_dtypes((*known, None))[-1]
        if ufunc is np.matmul:
            shape = shape_of_product(*map(np.shape, inputs))
            return self.made(shape, dtype, 2 * math.prod(shape) * np.shape(inputs[0])[-1])
        return NotImplemented if ufunc.signature else self._elementwise(inputs, dtype)

    def __array_function__(
        self, function: Any, types: Any, args: Sequence[Any], options: Mapping[str, Any]
    ) -> Any:
        if function in _VIEWS:
            return args[0]._moved(function, *args[1:], **options)
        if function is np.shape:
            return args[0].shape
        if callable(method := getattr(_Sketch, function.__name__, None)):
            return method(*args, **options)
        if function is np.where:
            return self._elementwise(args, next(x.dtype for x in args[1:] if hasattr(x, "dtype")))
        if function is np.concatenate:
            arrays, axis = args[0], options.get("axis", args[1] if len(args) > 1 else 0)
            shape = list(np.shape(arrays[0]))
            shape[axis] = sum(np.shape(array)[axis] for array in arrays)
            return self.made(shape)
        return NotImplemented

    def result_of(self, op: OpLike, given: Sequence[Any]) -> Any:
        """Return the result of an op whose block states its cost, or that has a composition."""
        if op.cost is None:
            return op.compose(*given)
        values = [value._data if isinstance(value, Tensor) else value for value in given]
        named = dict(zip(op.parameters, values, strict=True))
        shapes = [value.shape for value in values if hasattr(value, "shape")]
        shape = call_with(op.shape, named) if op.shape else np.broadcast_shapes(*shapes)
        dtypes = [value.dtype for value in values if isinstance(value, _Sketch)]
        out: Any = self.made(shape, next((d for d in dtypes if d.kind == "f"), dtypes[0]))
        self.call.counted += evaluate(op.cost, named | {"out": out})
        return Tensor.at(out, None) if any(isinstance(value, Tensor) for value in given) else out

    def _elementwise(self, inputs: Sequence[Any], dtype: np.dtype[Any]) -> _Sketch:
        shape = np.broadcast_shapes(*map(np.shape, inputs))
        return self.made(shape, dtype, math.prod(shape))


def _spread(sketch: _Sketch) -> Any:
    """Return an array of the shape of a sketch that repeats one element and takes no memory."""
    return np.broadcast_to(np.zeros((), sketch.dtype), sketch.shape)


_VIEWS = (
    np.broadcast_to, np.expand_dims, np.flip, np.moveaxis, np.ravel, np.squeeze, np.swapaxes
)  # fmt: skip


def evaluate(cost: Cost, values: Mapping[str, Any]) -> int:
    """Compute a cost from the operands, the options and the result `out`, by name, as sketches."""
    if isinstance(cost, int):
        return cost * int(values["out"].size)
    return int(call_with(cost, values))


class SketchedCall:
    """One call of an op with sketches instead of its arrays, so no array is kept alive."""

    __slots__ = ("counted", "op", "out", "values")

    def __init__(self, op: Op[Any], inputs: Sequence[Any], result: Any) -> None:
        self.op = op
        self.counted = 0  # the FLOPs that operations on these sketches have taken so far
        self.out = self.sketch(np.asarray(result) if np.isscalar(result) else result)
        given = [inputs] if op.takes_sequence else list(inputs)  # observers get only the elements
        for argnum, _ in () if op.takes_sequence else op.vjps:
            if isinstance(given[argnum], (list, tuple)):  # a list of numbers
                given[argnum] = np.asarray(given[argnum])
        sketches = (
            value.item() if isinstance(value, np.ndarray) and not value.ndim else self.sketch(value)
            for value in given
        )
        # The arguments and the result by name; checkpoints have more arguments.
        self.values = dict(zip(op.parameters, sketches, strict=False)) | {"out": self.out}

    def sketch(self, value: Any) -> Any:
        """Return an argument in which each array is replaced by a Tensor of a sketch."""
        if isinstance(value, np.generic):
            return value.item()  # an op would use the number
        if isinstance(value, (tuple, list)):
            kind = next(kind for kind in (Shapes, tuple, list) if isinstance(value, kind))
            return kind(map(self.sketch, value))
        if isinstance(getattr(value, "shape", None), tuple):  # also an NF4 matrix
            dtype = getattr(value, "dtype", np.dtype(np.float32))
            sketch: Any = _Sketch(value.shape, dtype, self)
            return Tensor.at(sketch, None)
        return value

    def flops(self) -> int | None:
        """Return the FLOPs of the call, or None if they cannot be found."""
        op = self.op
        if op.cost is not None:
            return evaluate(op.cost, self.values)

        def run(*arguments: Any) -> None:
            named = dict(zip(self.values, arguments, strict=False))
            if op.call(**named).shape != self.out.shape:
                raise TypeError("options of the call are not known")

        *arguments, _ = self.values.values()
        return self._flops_of(op, run, *arguments)

    def vjp_flops(self, argnum: int, vjp: VJP, saved: Sequence[Any] | None = None) -> int | None:
        """Return the FLOPs of the VJP for one input, or None if they cannot be found.

        For a joint VJP, it is the part that only this input needs. `saved` is None for a call that
        was not recorded.
        """
        cost = vjp.cost
        if cost is not None:
            own = cost.get(self.op.parameters[argnum], 0) if isinstance(cost, Mapping) else cost
            return evaluate(own, self.values)
        if saved is None:  # find what the op would have saved, if the input needed a gradient
            known = list(self.values.values())
            values = [known[slot].shape if only else known[slot] for slot, only in vjp.slots]
        else:
            values = [self.sketch(value) for value in saved]
        return self._flops_of(vjp, vjp.derivative, self.out, *values)

    def joint_vjp_flops(
        self, vjp: VJP, needs_input_grad: Collection[str], saved: Sequence[Any]
    ) -> int | None:
        """Return the FLOPs of a joint VJP for the inputs that need a gradient.

        If its inputs have costs of their own, it is the part that several inputs share. `saved` has
        the residuals.
        """
        if not needs_input_grad:
            return 0
        if isinstance(vjp.cost, Mapping):
            needs = {"needs_input_grad": set(needs_input_grad)}
            return evaluate(vjp.cost.get("shared", 0), self.values | needs)
        flags = tuple(self.op.parameters[i] in needs_input_grad for i, _ in self.op.vjps)
        return self._flops_of(vjp, vjp.derivative, self.out, flags, *map(self.sketch, saved))

    def _flops_of(self, what: Op[Any] | VJP, run: Callable[..., Any], *values: Any) -> int | None:
        """Return the FLOPs of `run(*values)`, which runs `what`, once for each signature."""
        known, key = self.op.flops_cache, (what, *map(_key, values))
        if key in known:
            return known[key]
        before = self.counted
        if len(known) >= _MOST:
            known.clear()
        known[key] = None
        with suppress(Exception), unobserved(grad_enabled=False):
            run(*values)  # may fail: a user's function may need elements
            known[key] = self.counted - before
        return known[key]


_MOST = 1000  # the most signatures of one op that are stored


def _key(value: Any) -> Hashable:
    """Return what the FLOPs can depend on: an array's shape and dtype, or another value itself."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, (tuple, list)):
        return (type(value), *map(_key, value))
    if isinstance(value, slice):
        return slice, value.start, value.stop, value.step
    if value is None or isinstance(value, (int, float, str, type, np.dtype, EllipsisType)):
        return type(value), value  # because 1 == True
    return object()  # never found again, because no object of the user's may be kept alive


def _sgd(group: Mapping[str, Any]) -> int:
    velocity = 2 + bool(group["dampening"]) + 2 * bool(group["nesterov"])
    return 2 + bool(group["momentum"]) * velocity + 2 * bool(group["weight_decay"])


def _adam(group: Mapping[str, Any]) -> int:
    return 14 + bool(group["amsgrad"]) + 2 * bool(group["weight_decay"])


def _rmsprop(group: Mapping[str, Any]) -> int:
    more = bool(group["momentum"]) + bool(group["weight_decay"]) + 3 * bool(group["centered"])
    return 9 + 2 * more


STEP_COSTS: dict[type, Callable[[Mapping[str, Any]], int]] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adam,
    RMSprop: _rmsprop,
    Adagrad: lambda group: 7 + 2 * bool(group["weight_decay"]),
}
"""The FLOPs of an optimiser's step per element of a parameter, given the options of its group."""
