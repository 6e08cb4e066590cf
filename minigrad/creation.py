"""Functions that create tensors. Floats are float32 unless a dtype is given."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minigrad.checks import as_dtype, check_count, python_number
from minigrad.core.grad_mode import observed
from minigrad.core.tensor import Tensor, as_array
from minigrad.random import Rng, generator
from minigrad.renamed import helpful_errors

__all__ = ["arange", "eye", "from_dlpack", "full", "linspace", "ones", "ones_like"]
__all__ += ["rand", "randint", "randn", "tensor", "zeros", "zeros_like"]

Shape = int | Sequence[int]


@helpful_errors
def tensor(data: Any, dtype: DTypeLike | None = None, requires_grad: bool = False) -> Tensor:
    """Make a tensor from a copy of `data`: a number, nested lists of numbers, an array or a Tensor.

    Python floats become float32, Python ints become int64, and bools stay bools. Arrays keep their
    dtype; in a list, those of floats determine the dtype of the Python floats beside them.

    Raises:
        TypeError: if `data` does not contain numbers, or if a gradient is required and the numbers
            are not floats.
        ValueError: if lists are ragged, or a number is out of range of an integer dtype.
    """
    return Tensor(observed(np.array, as_array(data, dtype)), requires_grad)


def from_dlpack(x: Any, *, copy: bool | None = None) -> Tensor:
    """Make a tensor that shares the memory of another library's array, by the DLPack protocol.

    numpy, PyTorch, JAX and others support DLPack. No gradient passes between the libraries. Each
    library sees what the other one writes to the memory; a graph that saved it does not notice.

    Args:
        x: an array of booleans, integers or floats in the memory of the CPU.
        copy: True always copies. None copies only read-only memory, such as JAX's, because the
            memory of a tensor is writable. False never copies: read-only memory is an error.

    Raises:
        TypeError: if `x` does not support DLPack, or contains complex numbers.
        BufferError: if the memory cannot be shared: the array is on a GPU, contains text, has the
            dtype bfloat16, or requires a gradient; or it is read-only, and `copy` is False.
    """
    if not hasattr(x, "__dlpack__"):
        raise TypeError(
            f"from_dlpack: a {type(x).__name__} has no __dlpack__(), as the arrays of numpy, "
            f"PyTorch and JAX have; minigrad.tensor(x) copies numbers and lists"
        )
    kind = f"{type(x).__module__.partition('.')[0]} {type(x).__name__}"
    try:
        # A graph notices writes to a tensor on the same array, and not through another library.
        array = x.numpy() if isinstance(x, Tensor) else np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise BufferError(
            f"from_dlpack: this {kind} cannot be shared ({error}); what can is a detached array of "
            f"a dtype that numpy has, in the memory of the CPU: convert or move it first, as by "
            f"x.float() and x.cpu() in PyTorch"
        ) from error
    if copy is False and not array.flags.writeable:
        raise BufferError(
            f"from_dlpack: this {kind} is read-only, and the memory of a tensor is writable; "
            f"leave out copy=False"
        )
    return tensor(array) if copy else Tensor(array)


@helpful_errors
def zeros(*shape: Shape, dtype: DTypeLike = np.float32, requires_grad: bool = False) -> Tensor:
    """Make a tensor of zeros; its shape is given as `(2, 3)` or `2, 3`.

    Raises:
        ValueError: if a size is negative.
        TypeError: if a size is not an integer, `dtype` is not one of booleans, integers or floats,
            or a gradient is required and it is not of floats.
    """
    new = _new_shape("zeros", shape), or_float32(dtype)
    return Tensor(observed(np.zeros, *new), requires_grad)


@helpful_errors
def ones(*shape: Shape, dtype: DTypeLike = np.float32, requires_grad: bool = False) -> Tensor:
    """Make a tensor of ones; its shape is given as `(2, 3)` or `2, 3`.

    Raises:
        ValueError, TypeError: as in `zeros`.
    """
    new = _new_shape("ones", shape), or_float32(dtype)
    return Tensor(observed(np.ones, *new), requires_grad)


@helpful_errors
def full(
    shape: Shape, fill_value: Any, dtype: DTypeLike | None = None, requires_grad: bool = False
) -> Tensor:
    """Make a tensor filled with one value; its dtype is that of `tensor(fill_value)` by default.

    Raises:
        ValueError: if a size is negative, or the value is out of range of an integer dtype.
        TypeError: as in `zeros`, or if the value is not a number, or requires a gradient.
    """
    if isinstance(fill_value, Tensor) and fill_value.node is not None:
        raise TypeError(
            "full: the value requires a gradient, which cannot follow it into a new tensor; "
            "value.broadcast_to(shape) keeps the gradient, and value.detach() is a constant"
        )
    value = as_array(fill_value) if isinstance(fill_value, Tensor) else fill_value
    return Tensor(observed(filled, _new_shape("full", (shape,)), value, dtype), requires_grad)


def filled(shape: tuple[int, ...], value: Any, dtype: DTypeLike | None) -> NDArray[Any]:
    """Return an array filled with one value."""
    filling = as_array(value, dtype)
    return np.full(shape, filling, filling.dtype)


@helpful_errors
def zeros_like(x: Tensor, dtype: DTypeLike | None = None, requires_grad: bool = False) -> Tensor:
    """Make a tensor of zeros with the shape and dtype of `x`, a Tensor or an array.

    Raises:
        TypeError: if `x` is neither, `dtype` is not one of booleans, integers or floats, or a
            gradient is required and it is not of floats.
    """
    return Tensor(observed(np.zeros, *_like(x, dtype)), requires_grad)


@helpful_errors
def ones_like(x: Tensor, dtype: DTypeLike | None = None, requires_grad: bool = False) -> Tensor:
    """Make a tensor of ones with the shape and dtype of `x`, a Tensor or an array.

    Raises:
        TypeError: as in `zeros_like`.
    """
    return Tensor(observed(np.ones, *_like(x, dtype)), requires_grad)


def _like(x: Any, dtype: DTypeLike | None) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape of x, and its dtype or the given one."""
    if not isinstance(x, (Tensor, np.ndarray, np.generic)):
        raise TypeError(f"takes a Tensor or an array, not {x!r:.60}")
    return x.shape, x.dtype if dtype is None else as_dtype(dtype)


@helpful_errors
def arange(
    start: float,
    stop: float | None = None,
    step: float = 1,
    dtype: DTypeLike | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return start, start + step, ... up to but not including `stop`; `arange(n)` starts at 0.

    By default, the dtype is int64 if all numbers are integers, and otherwise float32.

    Raises:
        ValueError: if `step` is 0, or a number is out of range of an integer dtype.
        TypeError: if an argument is not a number, or a gradient is required and the dtype is not
            of floats.
    """
    if start is None:  # numpy would take it as 0
        raise TypeError("start must be a number, not None")
    if step == 0:
        raise ValueError("step must not be 0")
    first, last = (0, start) if stop is None else (start, stop)
    # For uint64 and an int, numpy would return float64.
    values = observed(np.arange, *map(python_number, (first, last, step)))
    if dtype is None:
        dtype = np.float32 if values.dtype.kind == "f" else np.int64
    return Tensor(values, requires_grad, dtype)


@helpful_errors
def linspace(
    start: float,
    stop: float,
    num: int = 50,
    dtype: DTypeLike = np.float32,
    requires_grad: bool = False,
) -> Tensor:
    """Return `num` evenly spaced numbers from `start` to `stop`, both included.

    An integer dtype drops the digits after the point, as in PyTorch; numpy rounds down.

    Raises:
        ValueError: if `num` is negative, or a number is out of range of an integer dtype.
        TypeError: if `start` or `stop` is not a number, `num` is not an integer, or a gradient is
            required and the dtype is not of floats.
    """
    for bound in (start, stop):
        as_array(bound)  # for its error
    return Tensor(observed(np.linspace, start, stop, num), requires_grad, or_float32(dtype))


@helpful_errors
def eye(
    n: int, m: int | None = None, dtype: DTypeLike = np.float32, requires_grad: bool = False
) -> Tensor:
    """Return the identity matrix `(n, n)`, or a matrix `(n, m)` with ones on its diagonal.

    Raises:
        ValueError, TypeError: as in `zeros`.
    """
    shape = _new_shape("eye", (n, n if m is None else m))
    return Tensor(observed(np.eye, *shape, 0, or_float32(dtype)), requires_grad)


@helpful_errors
def randn(
    *shape: Shape, dtype: DTypeLike = np.float32, requires_grad: bool = False, rng: Rng = None
) -> Tensor:
    """Draw from the standard normal distribution; the shape is given as `(2, 3)` or `2, 3`.

    Raises:
        ValueError: if a size is negative.
        TypeError: if a size is not an integer, `dtype` is not a float dtype, or `rng` is not a
            generator.
    """
    drawn = observed(draw, rng, dtype, "standard_normal", _new_shape("randn", shape))
    return Tensor(drawn, requires_grad)


@helpful_errors
def rand(
    *shape: Shape, dtype: DTypeLike = np.float32, requires_grad: bool = False, rng: Rng = None
) -> Tensor:
    """Draw from the uniform distribution on [0, 1); the shape is given as `(2, 3)` or `2, 3`.

    Raises:
        ValueError, TypeError: as in `randn`.
    """
    return Tensor(observed(draw, rng, dtype, "random", _new_shape("rand", shape)), requires_grad)


@helpful_errors
def randint(low: int, high: int, shape: Shape, *, rng: Rng = None) -> Tensor:
    """Draw integers from `low` to `high` - 1, all equally likely: a tensor of `shape`, in int64.

    Raises:
        TypeError: if `low`, `high` or a size is not an integer, or `rng` is not a generator.
        ValueError: if `low` is not less than `high`, or a size is negative.
    """
    low, high = as_shape("randint", (low, high))
    if not low < high:
        raise ValueError(f"low must be less than high, but low={low} and high={high}")
    new = _new_shape("randint", (shape,))
    return Tensor(observed(draw, rng, np.int64, "integers", low, high, new))


def or_float32(dtype: DTypeLike | None) -> np.dtype[Any]:
    """Return a dtype; None stands for float32, as in PyTorch, and not for numpy's float64."""
    return as_dtype(np.float32 if dtype is None else dtype)


def draw(rng: Rng, dtype: DTypeLike, method: str, *arguments: Any) -> NDArray[Any]:
    """Draw an array by a method of the generator; "random" stays below 1 after rounding."""
    dtype = or_float32(dtype)
    if method != "integers" and dtype.kind != "f":
        raise TypeError(f"draws only floats, not {dtype}; use randint")
    drawn = np.asarray(getattr(generator(rng), method)(*arguments), dtype)
    return below(drawn, 1.0) if method == "random" else drawn


def below(drawn: NDArray[Any], bound: float) -> NDArray[Any]:
    """Replace numbers that were rounded up to `bound` by the largest number below it."""
    largest = np.nextafter(drawn.dtype.type(bound), -np.inf, dtype=drawn.dtype)
    return np.asarray(np.minimum(drawn, largest))


def as_shape(name: str, sizes: Any) -> tuple[int, ...]:
    """Return `(2, 3)` for both f(2, 3) and f((2, 3)); `name` is the name of f in errors."""
    if len(sizes) == 1 and isinstance(sizes[0], (Sequence, np.ndarray)):
        (sizes,) = sizes
    try:
        return tuple(map(operator.index, sizes))
    except TypeError:
        is_float = any(isinstance(size, float) for size in sizes)
        hint = "; n // 2 is an integer where n / 2 is a float" if is_float else ""
        raise TypeError(
            f"{name} takes integers, or one tuple of them, not {sizes!r:.100}{hint}"
        ) from None


def _new_shape(name: str, sizes: Any) -> tuple[int, ...]:
    """Return the shape of a new array; a ValueError if a size is negative."""
    shape = as_shape(name, sizes)
    for size in shape:
        check_count("each size of a shape", size)
    return shape
