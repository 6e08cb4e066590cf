"""Initialisation of weights: each function fills a tensor in place, and returns it.

For a weight `(d_out, d_in)`, `fan_in` is d_in and `fan_out` is d_out. For filters
`(d_out, d_in, h, w)` both are multiplied by the size of the kernel, h w. A layer keeps the variance
of its input if its weights have the variance gain^2 / fan_in (Kaiming; He et al., 2015). The
variance 2 gain^2 / (fan_in + fan_out) is a compromise that also considers the variance of the
gradient (Xavier; Glorot and Bengio, 2010).

The tensor is a leaf, such as a parameter. For the result of an op, a RuntimeError is raised.
"""

from __future__ import annotations

import ctypes
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from minigrad.checks import check_above_0, check_choice, check_number, check_range
from minigrad.core.tensor import Tensor
from minigrad.creation import below
from minigrad.errors import named_errors
from minigrad.heap import MIB
from minigrad.random import Rng, generator

__all__ = ["calculate_gain", "constant_", "eye_", "kaiming_normal_", "kaiming_uniform_", "normal_"]
__all__ += ["ones_", "orthogonal_", "skipped", "sparse_", "trunc_normal_", "uniform_"]
__all__ += ["xavier_normal_", "xavier_uniform_", "zeros_"]

Mode = Literal["fan_in", "fan_out"]
Nonlinearity = Literal["linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"]
P = ParamSpec("P")
T = TypeVar("T", bound=Tensor)


class _Unwritten:
    """Memory for arrays that are written later, or never; it is taken only when it is written.

    The C library writes the size of a block of memory in front of it. If matrices on huge pages
    (see `minigrad.heap`) were blocks, this alone would take the memory of most of them. So they are
    parts of larger blocks, which numpy puts on huge pages.
    """

    BLOCK = 64 * MIB  # bytes
    SMALL = 64 * 1024  # bytes: smaller arrays are usual ones
    LINE = 64  # bytes: arrays begin at a line of the cache

    def __init__(self) -> None:
        self._block: Any = b""
        self._used = 0

    def array(self, shape: int | Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return a new array. It owns its memory in the sense of `minigrad.readonly.owner_of`."""
        size = math.prod([shape] if isinstance(shape, int) else shape)
        nbytes = size * dtype.itemsize
        if nbytes < self.SMALL:
            return np.empty(shape, dtype)
        if self._used + nbytes > len(self._block):
            block = np.empty(max(nbytes + self.LINE, self.BLOCK), np.uint8)
            self._block = (ctypes.c_char * len(block)).from_buffer(block)  # is no array
            self._used = -ctypes.addressof(self._block) % self.LINE
        found = np.frombuffer(self._block, dtype, size, self._used).reshape(shape)
        self._used += -(-nbytes // self.LINE) * self.LINE
        return found


# Where weights get their memory if the functions of this module do nothing; None if they do all.
_skipping: ContextVar[_Unwritten | None] = ContextVar("_skipping", default=None)


def uninitialized(shape: int | Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a new array for weights, which a function of this module will fill."""
    unwritten = _skipping.get()
    return np.empty(shape, dtype) if unwritten is None else unwritten.array(shape, dtype)


@contextmanager
def skipped() -> Iterator[None]:
    """Skip initialisation in a `with` block, for layers whose weights will be loaded.

        with nn.init.skipped():
            model = Model()
        model.load_state_dict(weights)

    In this thread, the functions of this module do nothing. The operating system provides memory
    only when it is written, so uninitialised weights cost nothing.
    """
    token = _skipping.set(_Unwritten())
    try:
        yield
    finally:
        _skipping.reset(token)


def _filling(fill: Callable[Concatenate[Any, P], Tensor]) -> Callable[Concatenate[T, P], T]:
    """Decorate a function that fills a tensor: check the tensor, and do nothing under `skipped`."""
    draws = "rng" in inspect.signature(fill).parameters

    @named_errors
    @wraps(fill)
    def filled(tensor: T, *args: P.args, **options: P.kwargs) -> T:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"fills a Tensor, not {tensor!r:.60}")
        if draws and tensor.dtype.kind != "f":
            raise TypeError(f"draws floats, and {tensor.describe()} is not of floats")
        if _skipping.get() is None:
            fill(tensor, *args, **options)
        return tensor

    return filled  # type: ignore[return-value]  # which also takes `tensor` by name


@named_errors
def calculate_gain(nonlinearity: Nonlinearity, a: float = 0.01) -> float:
    """Return the gain: the factor that compensates for the variance lost in an activation.

    Args:
        nonlinearity: "linear", "sigmoid" (1), "tanh" (5/3), "relu" (sqrt 2), "leaky_relu" or "selu"
            (3/4).
        a: the negative slope of leaky_relu, whose gain is sqrt(2 / (1 + a^2)).

    Raises:
        ValueError: for any other name.
        TypeError: if `a` is not a number.
    """
    a = check_number("a", a)
    gains = {
        "linear": 1.0,
        "sigmoid": 1.0,
        "tanh": 5.0 / 3.0,
        "relu": math.sqrt(2.0),
        "leaky_relu": math.sqrt(2.0 / (1 + a * a)),
        "selu": 0.75,
    }
    check_choice("nonlinearity", nonlinearity, gains)
    return gains[nonlinearity]


@_filling
def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    mode: Mode = "fan_in",
    nonlinearity: Nonlinearity = "leaky_relu",
    *,
    rng: Rng = None,
) -> Tensor:
    """Fill with uniform values in +-gain sqrt(3 / fan) (He et al., 2015).

    Args:
        tensor: a weight `(d_out, d_in)`, or filters `(d_out, d_in, ...)`.
        a: the negative slope, if the nonlinearity is "leaky_relu".
        mode: which fan: "fan_in" or "fan_out".
        nonlinearity: the activation whose gain is used (see `calculate_gain`).
        rng: the random generator; None for the default one.

    Raises:
        ValueError: if the tensor has fewer than two axes or no elements, or `mode` or
            `nonlinearity` is unknown.
        TypeError: if the tensor is not of floats, or `rng` is not a generator.
    """
    bound = calculate_gain(nonlinearity, a) * math.sqrt(3.0 / _fan(tensor, mode))
    return uniform_(tensor, -bound, bound, rng=rng)


@_filling
def kaiming_normal_(
    tensor: Tensor,
    a: float = 0.0,
    mode: Mode = "fan_in",
    nonlinearity: Nonlinearity = "leaky_relu",
    *,
    rng: Rng = None,
) -> Tensor:
    """Fill with normal values of standard deviation gain / sqrt(fan) (He et al., 2015).

    Arguments are as in `kaiming_uniform_`.

    Raises:
        ValueError, TypeError: as in `kaiming_uniform_`.
    """
    std = calculate_gain(nonlinearity, a) / math.sqrt(_fan(tensor, mode))
    return normal_(tensor, 0.0, std, rng=rng)


@_filling
def xavier_uniform_(tensor: Tensor, gain: float = 1.0, *, rng: Rng = None) -> Tensor:
    """Fill with uniform values in +-gain sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010).

    Raises:
        ValueError: if the tensor has fewer than two axes or no elements, or `gain` is negative.
        TypeError: if the tensor is not of floats, or `rng` is not a generator.
    """
    check_range("gain", gain, 0, math.inf)
    bound = gain * math.sqrt(6.0 / sum(_fans(tensor)))
    return uniform_(tensor, -bound, bound, rng=rng)


@_filling
def xavier_normal_(tensor: Tensor, gain: float = 1.0, *, rng: Rng = None) -> Tensor:
    """Fill with normal values of standard deviation gain sqrt(2 / (fan_in + fan_out)).

    From Glorot and Bengio, 2010.

    Raises:
        ValueError, TypeError: as in `xavier_uniform_`.
    """
    check_range("gain", gain, 0, math.inf)
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(_fans(tensor))), rng=rng)


@_filling
def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, *, rng: Rng = None) -> Tensor:
    """Fill with uniform values in [a, b), or with a if a = b.

    Raises:
        ValueError: if a > b, or one of them is infinite or nan.
        TypeError: if a or b is not a number; and in all functions here that draw, if the tensor is
            not a Tensor of floats, or `rng` is not a generator.
    """
    for name, bound in (("a", a), ("b", b)):
        check_range(name, bound, -math.inf, math.inf)
    if not a <= b:
        raise ValueError(f"a must be at most b, but a={a} and b={b}")
    drawn = generator(rng).uniform(a, b, tensor.shape).astype(tensor.dtype)
    return tensor.copy_(below(drawn, b) if a < b else drawn)


@_filling
def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, *, rng: Rng = None) -> Tensor:
    """Fill with normal values of the given mean and standard deviation.

    Raises:
        ValueError: if std is negative, or one of them is infinite or nan.
        TypeError: if one of them is not a number.
    """
    check_range("mean", mean, -math.inf, math.inf)
    check_range("std", std, 0, math.inf)
    return tensor.copy_(generator(rng).normal(mean, std, tensor.shape))


@_filling
def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    *,
    rng: Rng = None,
) -> Tensor:
    """Fill with normal values of the given mean and standard deviation, truncated to [a, b].

    Values outside [a, b] are drawn again, so the distribution is exact.

    Raises:
        ValueError: if the mean is infinite or nan, `std` is not positive, or less than a thousandth
            of the draws would be in [a, b].
        TypeError: if one of the four is not a number.
    """
    check_range("mean", mean, -math.inf, math.inf)
    check_above_0("std", std)
    a, b = check_number("a", a), check_number("b", b)
    root = std * math.sqrt(2)
    share = (math.erf((b - mean) / root) - math.erf((a - mean) / root)) / 2
    if not share >= 1e-3:
        raise ValueError(
            f"of a normal distribution with mean {mean} and standard deviation "
            f"{std}, the share {share:.1g} is in [{a}, {b}]; move the bounds, or use uniform_"
        )
    rng = generator(rng)
    values = rng.normal(mean, std, tensor.shape)
    while (outside := (values < a) | (values > b)).any():
        values[outside] = rng.normal(mean, std, np.count_nonzero(outside))
    return tensor.copy_(values)


@_filling
def orthogonal_(tensor: Tensor, gain: float = 1.0, *, rng: Rng = None) -> Tensor:
    """Fill a matrix so that its rows (or columns, if fewer) are orthogonal, of length `gain`.

    The matrix is drawn uniformly from all such matrices: it is Q from the QR decomposition of a
    Gaussian matrix, with the diagonal of R made positive (Saxe et al., 2014; Mezzadri, 2007).

    Raises:
        ValueError: if the tensor is not a matrix.
        TypeError: if `gain` is not a number.
    """
    rows, columns = _matrix(tensor)
    gain = check_number("gain", gain)
    gaussian = generator(rng).standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(gaussian)
    q *= gain * np.copysign(1.0, np.diagonal(r))
    return tensor.copy_(q if rows >= columns else q.T)


@_filling
def sparse_(tensor: Tensor, sparsity: float, std: float = 0.01, *, rng: Rng = None) -> Tensor:
    """Fill with normal values of standard deviation `std`, and set some in each column to zero.

    `sparsity` is the share of zeros in a column; their number is rounded up (Martens, 2010).

    Raises:
        ValueError: if the tensor is not a matrix, `sparsity` is not in [0, 1], or std is negative
            or infinite.
        TypeError: if `sparsity` or std is not a number.
    """
    rows, columns = _matrix(tensor)
    check_range("sparsity", sparsity, 0, 1)
    check_range("std", std, 0, math.inf)
    rng = generator(rng)
    values = rng.normal(0.0, std, (rows, columns))
    # Sorting random numbers gives a random order of the rows, another one for each column.
    order = rng.random((rows, columns)).argsort(axis=0)
    values[order < math.ceil(sparsity * rows)] = 0
    return tensor.copy_(values)


@_filling
def eye_(tensor: Tensor) -> Tensor:
    """Fill a matrix with 1 on its diagonal and 0 elsewhere: the identity, if it is square.

    Raises:
        ValueError: if the tensor is not a matrix.
    """
    return tensor.copy_(np.eye(*_matrix(tensor)))


@_filling
def constant_(tensor: Tensor, value: float) -> Tensor:
    """Fill with one value.

    Raises:
        TypeError: if the tensor is not a Tensor, or the value is not a number.
    """
    return tensor.copy_(np.full(tensor.shape, value))


@_filling
def zeros_(tensor: Tensor) -> Tensor:
    """Fill with zeros.

    Raises:
        TypeError: if the tensor is not a Tensor.
    """
    return tensor.copy_(np.zeros(tensor.shape))


@_filling
def ones_(tensor: Tensor) -> Tensor:
    """Fill with ones.

    Raises:
        TypeError: if the tensor is not a Tensor.
    """
    return tensor.copy_(np.ones(tensor.shape))


def _matrix(tensor: Tensor) -> tuple[int, int]:
    if tensor.ndim != 2:
        raise ValueError(f"fills matrices (d_out, d_in), not {tensor.describe()}")
    return tensor.shape[0], tensor.shape[1]


def _fan(tensor: Tensor, mode: Mode) -> int:
    check_choice("mode", mode, ("fan_in", "fan_out"))
    fan_in, fan_out = _fans(tensor)
    return fan_in if mode == "fan_in" else fan_out


def _fans(tensor: Tensor) -> tuple[int, int]:
    if tensor.ndim < 2 or 0 in tensor.shape:
        raise ValueError(
            f"fan in and fan out are those of a weight (d_out, d_in), or of filters "
            f"(d_out, d_in, ...), not of {tensor.describe()}"
        )
    size = math.prod(tensor.shape[2:])
    return tensor.shape[1] * size, tensor.shape[0] * size
