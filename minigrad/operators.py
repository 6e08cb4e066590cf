"""The operators and methods of a Tensor: each calls the op or the composition of its name.

`minigrad.core` does not import the ops, so `Tensor` only declares these methods. This module makes
the methods and attaches them. `help(Tensor.sum)` shows the docstring of the op `sum`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import numpy as np

from minigrad import functional, ops
from minigrad.core.backward import backward
from minigrad.core.codegen import array_of
from minigrad.core.grad_mode import observed
from minigrad.core.observers import is_differentiated
from minigrad.core.op import Op
from minigrad.core.tensor import Tensor, converted, overwrite
from minigrad.creation import as_shape
from minigrad.errors import named_errors
from minigrad.ops.shape import normalize_axis
from minigrad.readonly import writable
from minigrad.renamed import instead

# For each operator of two operands: its name in Python, its symbol if it can write in place
# (`x += y`), numpy's function, and the op that computes it.
_BINARY: tuple[tuple[str, str, np.ufunc, Op[Any]], ...] = (
    ("add", "+", np.add, ops.add),
    ("sub", "-", np.subtract, ops.subtract),
    ("mul", "*", np.multiply, ops.multiply),
    ("truediv", "/", np.divide, ops.divide),
    ("floordiv", "//", np.floor_divide, ops.floor_divide),
    ("mod", "%", np.remainder, ops.remainder),
    ("pow", "**", np.power, ops.power),
    ("matmul", "@", np.matmul, ops.matmul),
    ("and", "", np.bitwise_and, ops.logical_and),
    ("or", "", np.bitwise_or, ops.logical_or),
)
_COMPARISONS: tuple[tuple[str, str, np.ufunc, Op[Any]], ...] = (
    ("eq", "", np.equal, ops.equal),
    ("ne", "", np.not_equal, ops.not_equal),
    ("lt", "", np.less, ops.less),
    ("le", "", np.less_equal, ops.less_equal),
    ("gt", "", np.greater, ops.greater),
    ("ge", "", np.greater_equal, ops.greater_equal),
)
_ARRAY_OPERATORS = {ufunc: op for *_, ufunc, op in (*_BINARY, *_COMPARISONS)}

# The ops and the compositions that are methods under their own name.
_OPS: tuple[Op[Any], ...] = (
    *(ops.clone, ops.astype, ops.abs, ops.square, ops.exp, ops.log, ops.sqrt, ops.rsqrt),
    *(ops.sin, ops.cos, ops.tanh, ops.sigmoid, ops.relu, ops.gelu, ops.silu),
    *(ops.clip, ops.round, ops.sum, ops.mean, ops.max, ops.min, ops.prod, ops.any, ops.all),
    *(ops.argmax, ops.argmin, ops.argsort, ops.cumsum, ops.cumprod),
    *(ops.softmax, ops.log_softmax, ops.logsumexp, ops.broadcast_to),
)
_COMPOSITIONS: tuple[Callable[..., Tensor], ...] = (
    *(functional.std, functional.var, functional.repeat, functional.ravel, functional.diagonal),
    *(functional.trace, functional.swapaxes, functional.expand_dims, functional.squeeze),
)


def _operator(op: Op[Any]) -> Callable[..., Tensor]:
    return lambda self, other: op.call(self, other)


def _reflected(op: Op[Any]) -> Callable[..., Tensor]:
    return lambda self, other: op.call(other, self)


def _in_place(op: Op[Any], symbol: str) -> Callable[..., Tensor]:
    """Make `x += y`, which writes to a leaf under `no_grad`; it is an error in all other cases."""

    def method(self: Tensor, other: Any) -> Tensor:
        if is_differentiated(self) or is_differentiated(other) or not self.is_leaf:
            raise RuntimeError(
                f"x {symbol}= y would overwrite {self.describe()}, on which gradients depend; "
                f"write x = x {symbol} y, or do it under no_grad() on a leaf"
            )
        result = op.call(self, other)
        if result.dtype != self.dtype:
            raise TypeError(f"x {symbol}= y would change the dtype {self.dtype} to {result.dtype}")
        return self.copy_(result)

    return method


def _method(op: Op[Any]) -> Callable[..., Tensor]:
    """Make a method with the signature and the documentation of an op."""
    method: Callable[..., Tensor]
    if len(op.parameters) == 1:  # a call without *args and **options is faster

        def method(self: Tensor) -> Tensor:
            return op.call(self)
    else:

        def method(self: Tensor, *args: Any, **options: Any) -> Tensor:
            try:
                return op.call(self, *args, **options)
            except TypeError as error:
                op.check_keywords(error)
                raise

    _, *options = op.signature.parameters.values()
    vars(method)["__signature__"] = op.signature.replace(
        parameters=[inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *options],
        return_annotation=Tensor,
    )
    # The names in the op's annotations are looked up in the op's module.
    method.__doc__, method.__module__ = op.__doc__, op.__module__
    return method


class Operators(Tensor):
    """The methods that do more than call an op.

    They are written in a subclass so that type checkers compare them with `Tensor`'s declarations.
    """

    __slots__ = ()

    def __pos__(self) -> Tensor:
        return self

    def __getitem__(self, index: Any) -> Tensor:
        return ops.getitem.call(self, index)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """Return a Tensor for `array * tensor`; raise an error for `np.exp(tensor)`."""
        compute = _ARRAY_OPERATORS.get(ufunc)
        if compute is not None and method == "__call__" and not options:
            return compute.call(*inputs)
        _check_out(ufunc.__name__, *options.get("out", ()))
        if compute is not None and method == "__call__" and set(options) == {"out"}:
            # `w.data -= lr * w.grad`: arithmetic in place, on an array, with a constant tensor.
            return ufunc(*_unwrapped(inputs), **_unwrapped(options))
        raise TypeError(_use_instead(ufunc.__name__))

    def __array_function__(
        self, function: Callable[..., Any], types: Any, args: Any, options: Any
    ) -> Any:
        """Raise an error for numpy functions that minigrad has; call the others with arrays."""
        if function in (np.shape, np.ndim, np.size):
            named = {name: array_of(x) for name, x in options.items()}
            return function(*map(array_of, args), **named)
        name, module = function.__name__, function.__module__
        _check_out(name, options.get("out"))
        if module in ("numpy", "numpy.linalg") and _ours(name):
            raise TypeError(_use_instead(name, module))
        try:
            arrays, others = _unwrapped(list(args)), _unwrapped(dict(options))
        except RuntimeError as error:  # a tensor requires a gradient, or the step is captured
            if type(error) is RuntimeError and "minigrad." in instead("minigrad", name):
                raise TypeError(_use_instead(name, module)) from None
            raise
        return function(*arrays, **others)

    @property
    def T(self) -> Tensor:  # noqa: N802  # the name in numpy and in every formula
        """The tensor with all axes in reverse order."""
        return ops.transpose.call(self)

    @named_errors
    def copy_(self, value: Any) -> Tensor:
        """Write `value` into the memory of this tensor; all views see it. Return the tensor.

        The numbers are converted to the dtype of the tensor, as by an assignment in numpy: a tensor
        of integers drops decimals.

        The derivative of a copy by `value` is lost. That is usual for the weights of another model,
        which are leaves; from a result of an op, it would be a mistake.

        Raises:
            ValueError: if the shape is not the same, or a number is out of range of an integer
                dtype.
            TypeError: if `value` does not contain numbers.
            RuntimeError: if this is the result of an op, or if `value` is one, and its derivative
                may be needed.
        """
        if is_differentiated(value) and not value.is_leaf:
            raise RuntimeError(
                f"copy_: {value.describe()} would lose its gradient; compute with it itself, or "
                f"copy .detach(), or do it under no_grad()"
            )
        array = self.assignable(value)
        if self.dtype.kind in "iu":
            converted(array, self.dtype)  # for its error
        self._data = writable(self._data)
        observed(overwrite, self._data, array)
        return self

    def dot(self, other: Any) -> Tensor:
        """Sum products over the last axis of this tensor and the second-to-last of the other.

        Raises:
            ValueError: if the sizes do not match.
        """
        return functional.dot(self, other)

    def reshape(self, *shape: int | Sequence[int]) -> Tensor:
        """Return the elements in another shape, `(2, 3)` or `2, 3`; one size may be -1.

        Raises:
            ValueError: if the other shape has another number of elements.
            TypeError: if a size is not an integer.
        """
        return ops.reshape.call(self, as_shape("reshape", shape))

    @named_errors
    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """Join the axes from `start_dim` to `end_dim`, by default all: `(n, a, b) -> (n * a * b,)`.

        Raises:
            ValueError: if the tensor does not have these axes, or they are in the wrong order.
            TypeError: if one of them is not an integer.
        """
        shape = self.shape or (1,)
        start, end = (normalize_axis(axis, len(shape)) for axis in (start_dim, end_dim))
        if start > end:
            raise ValueError(
                f"flatten: start_dim = {start_dim} comes after end_dim = {end_dim} in shape {shape}"
            )
        joined = math.prod(shape[start : end + 1])
        return ops.reshape.call(self, (*shape[:start], joined, *shape[end + 1 :]))

    def transpose(self, *axes: int | Sequence[int] | None) -> Tensor:
        """Permute the axes to the given order, `(1, 0)` or `1, 0`; by default reverse them.

        This is numpy's `transpose`; `swapaxes(1, 2)` exchanges two axes, as PyTorch's does.

        Raises:
            ValueError: if the order does not name each axis once.
            TypeError: if an axis is not an integer.
        """
        if axes in ((), (None,)):
            return ops.transpose.call(self)
        order = as_shape("transpose", axes)
        if len(order) == 2 != self.ndim:
            raise ValueError(
                f"transpose: {order} does not order {self.ndim} axes; .swapaxes{order} swaps two"
            )
        return ops.transpose.call(self, order)


def _check_out(name: str, *out: Any) -> None:
    """Raise a TypeError if a function of numpy is to write into a Tensor."""
    if any(isinstance(each, Tensor) for each in out):
        raise TypeError(
            f"numpy.{name} cannot write into a Tensor, out=tensor: a graph that has saved the "
            f"tensor would not notice; use tensor.copy_(result)"
        )


def _unwrapped(value: Any) -> Any:
    """Return `value` with each Tensor inside it replaced by a read-only view of its array."""
    if isinstance(value, Tensor):
        view = value.numpy().view()
        view.flags.writeable = False
        return view
    if isinstance(value, (list, tuple)):
        kind = list if isinstance(value, list) else tuple  # also for a named tuple
        return kind(map(_unwrapped, value))
    if isinstance(value, dict):
        return {key: _unwrapped(v) for key, v in value.items()}
    return value


def _ours(numpy_name: str) -> str | None:
    """Return the name in minigrad of a numpy function, or None if there is no such function."""
    name = {"absolute": "abs", "amax": "max", "amin": "min"}.get(numpy_name, numpy_name)
    found = getattr(ops, name, None) or getattr(functional, name, None)
    return name if callable(found) else None


def _use_instead(numpy_name: str, module: str = "numpy") -> str:
    ours = _ours(numpy_name)
    ours = f"; use minigrad.{ours}" if ours else instead("minigrad", numpy_name)
    return (
        f"{module}.{numpy_name} does not take Tensors{f'{ours}, or' if ours else '; use'} "
        f"{module}.{numpy_name} of tensor.detach().numpy(), which has no gradient"
    )


ATTACHED: dict[str, Any] = {
    **{f"__{name}__": _operator(op) for name, *_, op in (*_BINARY, *_COMPARISONS)},
    **{f"__r{name}__": _reflected(op) for name, *_, op in _BINARY},
    **{f"__i{name}__": _in_place(op, symbol) for name, symbol, _, op in _BINARY if symbol},
    "backward": backward,
    "__neg__": _method(ops.negative),
    "__abs__": _method(ops.abs),
    "__invert__": _method(ops.logical_not),
    **{op.name: _method(op) for op in _OPS},
    **{composition.__name__: composition for composition in _COMPOSITIONS},
    **{
        name: method
        for name, method in vars(Operators).items()
        if isinstance(method, (FunctionType, property))
    },
}
"""Every operator and method that is attached to Tensor, by name."""

for _name, _attached in ATTACHED.items():
    if isinstance(_attached, FunctionType) and _attached not in _COMPOSITIONS:
        _attached.__name__, _attached.__qualname__ = _name, f"Tensor.{_name}"
    setattr(Tensor, _name, _attached)
