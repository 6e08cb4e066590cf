"""What a Tensor can do: its operators and methods, each one op or composition, documented there.

`minigrad.core` knows no op, so `Tensor` only declares these methods there; this module writes them
out and attaches them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minigrad import functional, ops
from minigrad.core.backward import backward
from minigrad.core.op import Op
from minigrad.core.tensor import Axis, Tensor

# The operators of numpy's arrays, and the ops that take their part beside a Tensor.
_ARRAY_OPERATORS: dict[np.ufunc, Op[Any]] = {
    np.add: ops.add,
    np.subtract: ops.subtract,
    np.multiply: ops.multiply,
    np.divide: ops.divide,
    np.floor_divide: ops.floor_divide,
    np.remainder: ops.remainder,
    np.power: ops.power,
    np.matmul: ops.matmul,
    np.bitwise_and: ops.logical_and,
    np.bitwise_or: ops.logical_or,
    np.equal: ops.equal,
    np.not_equal: ops.not_equal,
    np.less: ops.less,
    np.less_equal: ops.less_equal,
    np.greater: ops.greater,
    np.greater_equal: ops.greater_equal,
}


class Operators(Tensor):
    """The methods that `Tensor` gets: in a subclass, so that type checkers compare signatures."""

    __slots__ = ()

    def __add__(self, other: Any) -> Tensor:
        return ops.add.call(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return ops.add.call(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return ops.subtract.call(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return ops.subtract.call(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return ops.multiply.call(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return ops.multiply.call(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return ops.divide.call(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return ops.divide.call(other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return ops.floor_divide.call(self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return ops.floor_divide.call(other, self)

    def __mod__(self, other: Any) -> Tensor:
        return ops.remainder.call(self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return ops.remainder.call(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return ops.power.call(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return ops.power.call(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return ops.matmul.call(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return ops.matmul.call(other, self)

    def __neg__(self) -> Tensor:
        return ops.negative.call(self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return ops.abs.call(self)

    def __eq__(self, other: Any) -> Tensor:  # type: ignore[override]  # elementwise, as in numpy
        return ops.equal.call(self, other)

    def __ne__(self, other: Any) -> Tensor:  # type: ignore[override]  # elementwise, as in numpy
        return ops.not_equal.call(self, other)

    def __lt__(self, other: Any) -> Tensor:
        return ops.less.call(self, other)

    def __le__(self, other: Any) -> Tensor:
        return ops.less_equal.call(self, other)

    def __gt__(self, other: Any) -> Tensor:
        return ops.greater.call(self, other)

    def __ge__(self, other: Any) -> Tensor:
        return ops.greater_equal.call(self, other)

    def __and__(self, other: Any) -> Tensor:
        return ops.logical_and.call(self, other)

    def __rand__(self, other: Any) -> Tensor:
        return ops.logical_and.call(other, self)

    def __or__(self, other: Any) -> Tensor:
        return ops.logical_or.call(self, other)

    def __ror__(self, other: Any) -> Tensor:
        return ops.logical_or.call(other, self)

    def __invert__(self) -> Tensor:
        return ops.logical_not.call(self)

    def __getitem__(self, index: Any) -> Tensor:
        return ops.getitem.call(self, index)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """`array * tensor` is a Tensor; `np.exp(tensor)` is an error that says what to call."""
        compute = _ARRAY_OPERATORS.get(ufunc)
        if compute is not None and method == "__call__" and not options:
            return compute.call(*inputs)
        if compute is not None and method == "__call__" and set(options) == {"out"}:
            # `w.data -= lr * w.grad`: arithmetic on an array, with a tensor that needs no gradient.
            return ufunc(*_unwrapped(inputs), **_unwrapped(options))
        raise TypeError(_use_instead(ufunc.__name__))

    def __array_function__(
        self, function: Callable[..., Any], types: Any, args: Any, options: Any
    ) -> Any:
        """numpy functions that we have are an error that says so; others see plain arrays."""
        if function in (np.shape, np.ndim, np.size):
            return function(*(x._data if isinstance(x, Tensor) else x for x in args), **options)
        if function.__module__ in ("numpy", "numpy.linalg") and _ours(function.__name__):
            raise TypeError(_use_instead(function.__name__, function.__module__))
        return function(*_unwrapped(list(args)), **_unwrapped(dict(options)))

    def backward(
        self,
        gradient: Tensor | NDArray[Any] | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
    ) -> None:
        """Add dL/dx to `x.grad` for every leaf x that this tensor, L, was computed from.

        Args:
            gradient: the vector v of v^T dL/dx; may be left out if L has one element.
            retain_graph: keep the graph for another backward pass; by default as `create_graph`.
            create_graph: make the gradients differentiable themselves.

        Raises:
            ValueError: if a gradient is missing or has another shape.
            RuntimeError: if nothing here requires a gradient, the graph was freed by an earlier
                pass, or an array that it saved was written since.
        """
        backward(self, gradient, retain_graph, create_graph)

    def clone(self) -> Tensor:
        """A copy that gradients flow through."""
        return ops.clone.call(self)

    @property
    def T(self) -> Tensor:  # noqa: N802  # the name in numpy and in every formula
        """All axes in reverse order."""
        return ops.transpose.call(self)

    def astype(self, dtype: DTypeLike) -> Tensor:
        """The same values as `dtype`; the gradient comes back in this tensor's own."""
        return ops.astype.call(self, dtype)

    def abs(self) -> Tensor:
        """|x|."""
        return ops.abs.call(self)

    def square(self) -> Tensor:
        """x^2."""
        return ops.square.call(self)

    def exp(self) -> Tensor:
        """e^x."""
        return ops.exp.call(self)

    def log(self) -> Tensor:
        """The natural logarithm."""
        return ops.log.call(self)

    def sqrt(self) -> Tensor:
        """The square root."""
        return ops.sqrt.call(self)

    def rsqrt(self) -> Tensor:
        """1 / sqrt(x)."""
        return ops.rsqrt.call(self)

    def sin(self) -> Tensor:
        """The sine."""
        return ops.sin.call(self)

    def cos(self) -> Tensor:
        """The cosine."""
        return ops.cos.call(self)

    def tanh(self) -> Tensor:
        """The hyperbolic tangent."""
        return ops.tanh.call(self)

    def sigmoid(self) -> Tensor:
        """1 / (1 + e^-x)."""
        return ops.sigmoid.call(self)

    def relu(self) -> Tensor:
        """max(x, 0)."""
        return ops.relu.call(self)

    def gelu(self, approximate: str = "none") -> Tensor:
        """x Phi(x), or its approximation by "tanh"."""
        return ops.gelu.call(self, approximate)

    def silu(self) -> Tensor:
        """x sigmoid(x)."""
        return ops.silu.call(self)

    def clip(self, min: Any = None, max: Any = None) -> Tensor:
        """No less than `min` and no more than `max`; None is no bound."""
        return ops.clip.call(self, min, max)

    def round(self, decimals: int = 0) -> Tensor:
        """The nearest number with so many decimals."""
        return ops.round.call(self, decimals)

    def sum(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The sum over `axis`: an int, a tuple of them, or None for all."""
        return ops.sum.call(self, axis, keepdims)

    def mean(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The mean over `axis`: an int, a tuple of them, or None for all."""
        return functional.mean(self, axis, keepdims)

    def max(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The largest element over `axis`: an int, a tuple of them, or None for all."""
        return ops.max.call(self, axis, keepdims)

    def min(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The smallest element over `axis`: an int, a tuple of them, or None for all."""
        return ops.min.call(self, axis, keepdims)

    def prod(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The product over `axis`: an int, a tuple of them, or None for all."""
        return ops.prod.call(self, axis, keepdims)

    def any(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Whether one element over `axis` is true, for booleans."""
        return ops.any.call(self, axis, keepdims)

    def all(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Whether every element over `axis` is true, for booleans."""
        return ops.all.call(self, axis, keepdims)

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """The place of the largest element along `axis`, or among all in a row."""
        return ops.argmax.call(self, axis, keepdims)

    def argmin(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """The place of the smallest element along `axis`, or among all in a row."""
        return ops.argmin.call(self, axis, keepdims)

    def argsort(self, axis: int | None = -1, descending: bool = False) -> Tensor:
        """The places of the elements along `axis` in order of their size."""
        return ops.argsort.call(self, axis, descending)

    def cumsum(self, axis: int | None = None) -> Tensor:
        """The running sums along `axis`, or of all elements in a row."""
        return ops.cumsum.call(self, axis)

    def cumprod(self, axis: int | None = None) -> Tensor:
        """The running products along `axis`, or of all elements in a row."""
        return ops.cumprod.call(self, axis)

    def dot(self, other: Any) -> Tensor:
        """The sum over the last axis of this and the last but one of the other."""
        return functional.dot(self, other)

    def std(self, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
        """The standard deviation over `axis`: an int, a tuple of them, or None for all."""
        return functional.std(self, axis, ddof, keepdims)

    def var(self, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
        """The variance over `axis`: an int, a tuple of them, or None for all."""
        return functional.var(self, axis, ddof, keepdims)

    def softmax(self, axis: Axis = -1) -> Tensor:
        """e^x over its sum along `axis`."""
        return ops.softmax.call(self, axis)

    def log_softmax(self, axis: Axis = -1) -> Tensor:
        """The logarithm of the softmax along `axis`."""
        return ops.log_softmax.call(self, axis)

    def logsumexp(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """log(sum(e^x)) over `axis`."""
        return ops.logsumexp.call(self, axis, keepdims)

    def reshape(self, *shape: int | Sequence[int]) -> Tensor:
        """The same elements in another shape, given as `(2, 3)` or `2, 3`; one size may be -1."""
        return ops.reshape.call(self, _sizes(shape))

    def flatten(self) -> Tensor:
        """All elements in a row."""
        return ops.reshape.call(self, -1)

    def repeat(self, repeats: int | Sequence[int], axis: int | None = None) -> Tensor:
        """Each element along `axis` so many times."""
        return functional.repeat(self, repeats, axis)

    def diagonal(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
        """The diagonal of the matrices along two axes, as a last axis."""
        return functional.diagonal(self, offset, axis1, axis2)

    def trace(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
        """The sum of the diagonal of the matrices along two axes."""
        return functional.trace(self, offset, axis1, axis2)

    def transpose(self, *axes: int | Sequence[int] | None) -> Tensor:
        """The axes in another order, given as `(1, 0)` or `1, 0`; reversed without any."""
        return ops.transpose.call(self, None if axes in ((), (None,)) else _sizes(axes))

    def swapaxes(self, axis1: int, axis2: int) -> Tensor:
        """Two axes exchanged."""
        return functional.swapaxes(self, axis1, axis2)

    def broadcast_to(self, shape: Sequence[int]) -> Tensor:
        """Repeated along new axes and along axes of size 1."""
        return ops.broadcast_to.call(self, shape)

    def expand_dims(self, axis: int | Sequence[int]) -> Tensor:
        """With new axes of size 1."""
        return functional.expand_dims(self, axis)

    def squeeze(self, axis: Axis = None) -> Tensor:
        """Without axes of size 1: all of them, or those given."""
        return functional.squeeze(self, axis)


def _sizes(values: Any) -> tuple[int, ...]:
    """`(2, 3)` for both f(2, 3) and f((2, 3))."""
    if len(values) == 1 and isinstance(values[0], (tuple, list, np.ndarray)):
        values = values[0]
    return tuple(operator.index(value) for value in values)


def _unwrapped(value: Any) -> Any:
    """`value` with arrays for the Tensors in it."""
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, (list, tuple)):
        return type(value)(_unwrapped(v) for v in value)
    if isinstance(value, dict):
        return {key: _unwrapped(v) for key, v in value.items()}
    return value


def _ours(numpy_name: str) -> str | None:
    """What the numpy function of this name is called here, if it is here."""
    name = {"absolute": "abs", "amax": "max", "amin": "min"}.get(numpy_name, numpy_name)
    found = getattr(ops, name, None) or getattr(functional, name, None)
    return name if callable(found) else None


def _use_instead(numpy_name: str, module: str = "numpy") -> str:
    ours = _ours(numpy_name)
    instead = f"minigrad.{ours}, or " if ours else ""
    return (
        f"{module}.{numpy_name} does not take Tensors; use {instead}{module}.{numpy_name} of "
        f"tensor.detach().numpy(), which has no gradient"
    )


ATTACHED = {
    name: method
    for name, method in vars(Operators).items()
    if isinstance(method, (FunctionType, property))
}
"""The methods of `Operators` by name."""

for _name, _method in ATTACHED.items():
    setattr(Tensor, _name, _method)
