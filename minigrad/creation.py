"""Functions that create tensors. Floats are float32 unless a dtype is given."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minigrad.checks import check_count
from minigrad.core.grad_mode import observed
from minigrad.core.tensor import Tensor, as_array
from minigrad.random import Rng, generator

__all__ = ["arange", "eye", "from_dlpack", "full", "linspace", "ones", "ones_like"]
__all__ += ["rand", "randint", "randn", "tensor", "zeros", "zeros_like"]

Shape = int | Sequence[int]


def tensor(data: Any, dtype: DTypeLike | None = None, requires_grad: bool = False) -> Tensor:
    """Make a tensor with a copy of `data`: a number, nested lists of them, an array or a Tensor.

    Python's floats become float32, its ints int64 and bools bool; arrays keep their dtype.

    Raises:
        TypeError: if `data` is not made of numbers, or if a gradient is required and they are not
            floats.
        ValueError: if lists are ragged, or a number is out of range of an integer dtype.
    """
    return Tensor(observed(np.array, as_array(data, dtype)), requires_grad)


def from_dlpack(x: Any, *, copy: bool | None = None) -> Tensor:
    """Make a tensor of an array of another library, in the memory that it has: DLPack's protocol.

    numpy, PyTorch, JAX and others have it. No gradient passes from one library to the other, and
    what either writes to the memory the other reads, unnoticed by a graph that has saved it.

    Args:
        x: the array, of booleans, integers or floats in the memory of the CPU.
        copy: True copies always; None copies read-only memory, such as JAX's, because that of a
            tensor is writable; with False that is an error.

    Raises:
        TypeError: if `x` has no such protocol, or holds other things.
        BufferError: if the array cannot be shared: on a GPU, in bfloat16, or in need of a gradient.
    """
    if not hasattr(x, "__dlpack__"):
        raise TypeError(
            f"from_dlpack: a {type(x).__name__} has no __dlpack__(), as the arrays of numpy, "
            f"PyTorch and JAX have; minigrad.tensor(x) copies numbers and lists"
        )
    kind = f"{type(x).__module__.partition('.')[0]} {type(x).__name__}"
    try:
        array = np.from_dlpack(x)
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


def zeros(*shape: Shape, dtype: DTypeLike = np.float32, requires_grad: bool = False) -> Tensor:
    """Make a tensor of zeros, of a shape given as `(2, 3)` or `2, 3`."""
    return Tensor(observed(np.zeros, _new_shape("zeros", shape), dtype), requires_grad)


def ones(*shape: Shape, dtype: DTypeLike = np.float32, requires_grad: bool = False) -> Tensor:
    """Make a tensor of ones, of a shape given as `(2, 3)` or `2, 3`."""
    return Tensor(observed(np.ones, _new_shape("ones", shape), dtype), requires_grad)


def full(
    shape: Shape, fill_value: Any, dtype: DTypeLike | None = None, requires_grad: bool = False
) -> Tensor:
    """Make a tensor of one value, of the dtype of `tensor(fill_value)` unless one is given.

    Raises:
        ValueError: if the value is out of range of an integer dtype.
    """
    value = as_array(fill_value) if isinstance(fill_value, Tensor) else fill_value
    return Tensor(observed(filled, _new_shape("full", (shape,)), value, dtype), requires_grad)


def filled(shape: tuple[int, ...], value: Any, dtype: DTypeLike | None) -> NDArray[Any]:
    """Return an array of one value."""
    filling = as_array(value, dtype)
    return np.full(shape, filling, filling.dtype)


def zeros_like(x: Tensor, dtype: DTypeLike | None = None, requires_grad: bool = False) -> Tensor:
    """Make a tensor of zeros with the shape and dtype of `x`."""
    return Tensor(observed(np.zeros, x.shape, dtype or x.dtype), requires_grad)


def ones_like(x: Tensor, dtype: DTypeLike | None = None, requires_grad: bool = False) -> Tensor:
    """Make a tensor of ones with the shape and dtype of `x`."""
    return Tensor(observed(np.ones, x.shape, dtype or x.dtype), requires_grad)


def arange(
    start: float,
    stop: float | None = None,
    step: float = 1,
    dtype: DTypeLike | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Return start, start + step, ... below `stop`; from 0 if only one number is given.

    Raises:
        ValueError: if `step` is 0, or a number is out of range of an integer dtype.
    """
    if step == 0:
        raise ValueError("arange: step must not be 0")
    first, last = (0, start) if stop is None else (start, stop)
    values = observed(np.arange, first, last, step)
    if dtype is None:
        dtype = np.float32 if values.dtype.kind == "f" else np.int64
    return Tensor(values, requires_grad, dtype)


def linspace(
    start: float,
    stop: float,
    num: int = 50,
    dtype: DTypeLike = np.float32,
    requires_grad: bool = False,
) -> Tensor:
    """Return `num` numbers at equal distances, from `start` to `stop` inclusive.

    Raises:
        ValueError: if a number is out of range of an integer dtype.
    """
    return Tensor(observed(np.linspace, start, stop, num), requires_grad, dtype)


def eye(
    n: int, m: int | None = None, dtype: DTypeLike = np.float32, requires_grad: bool = False
) -> Tensor:
    """Return the identity matrix `(n, n)`, or `(n, m)` with ones on its diagonal."""
    return Tensor(
        observed(np.eye, *_new_shape("eye", (n, n if m is None else m)), 0, dtype), requires_grad
    )


def randn(
    *shape: Shape, dtype: DTypeLike = np.float32, requires_grad: bool = False, rng: Rng = None
) -> Tensor:
    """Draw from the standard normal distribution; a TypeError for other dtypes than floats."""
    return Tensor(
        observed(draw, rng, dtype, "standard_normal", _new_shape("randn", shape)), requires_grad
    )


def rand(
    *shape: Shape, dtype: DTypeLike = np.float32, requires_grad: bool = False, rng: Rng = None
) -> Tensor:
    """Draw from the uniform distribution on [0, 1); a TypeError for other dtypes than floats."""
    return Tensor(observed(draw, rng, dtype, "random", _new_shape("rand", shape)), requires_grad)


def randint(low: int, high: int, shape: Shape, *, rng: Rng = None) -> Tensor:
    """Draw an int64 array of `shape` from `low` to `high` - 1.

    Raises:
        TypeError: if `low` or `high` is not an integer.
        ValueError: if there are no numbers to draw.
    """
    low, high = as_shape("randint", (low, high))
    if not low < high:
        raise ValueError(f"randint: low must be less than high, unlike low={low} and high={high}")
    return Tensor(
        observed(draw, rng, np.int64, "integers", low, high, _new_shape("randint", (shape,)))
    )


def draw(rng: Rng, dtype: DTypeLike, method: str, *arguments: Any) -> NDArray[Any]:
    """Draw an array by a method of the generator; "random" gives numbers below 1 in each dtype."""
    if method != "integers" and np.dtype(dtype).kind != "f":
        raise TypeError(f"rand and randn draw only floats, not {np.dtype(dtype)}; use randint")
    drawn = np.asarray(getattr(generator(rng), method)(*arguments), dtype)
    return below(drawn, 1.0) if method == "random" else drawn


def below(drawn: NDArray[Any], bound: float) -> NDArray[Any]:
    """Return numbers with those that were rounded up to a bound replaced by the next one below."""
    kept: NDArray[Any] = np.minimum(
        drawn, np.nextafter(drawn.dtype.type(bound), -np.inf, dtype=drawn.dtype)
    )
    return kept


def as_shape(name: str, sizes: Any) -> tuple[int, ...]:
    """Return `(2, 3)` for both f(2, 3) and f((2, 3)), where f has this name."""
    if len(sizes) == 1 and isinstance(sizes[0], (Sequence, np.ndarray)):
        (sizes,) = sizes
    try:
        return tuple(operator.index(size) for size in sizes)
    except TypeError:
        raise TypeError(
            f"{name} takes integers, or one tuple of them, not {sizes!r:.100}; n // 2 is an "
            f"integer where n / 2 is a float"
        ) from None


def _new_shape(name: str, sizes: Any) -> tuple[int, ...]:
    """Return the shape of an array to make; a ValueError if a size is negative."""
    shape = as_shape(name, sizes)
    for size in shape:
        check_count(f"{name}: each size of a shape", size)
    return shape
