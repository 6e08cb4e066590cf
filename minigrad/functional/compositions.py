"""What functions that are written with ops share: a decorator, wider dtypes, and a root."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from minigrad.core.codegen import common_float
from minigrad.core.grad_mode import mode, observed
from minigrad.core.tensor import Array, Tensor, as_array
from minigrad.errors import called_with, none_given, op_error, without_name
from minigrad.ops import astype, sqrt, where
from minigrad.renamed import instead_of_argument

P = ParamSpec("P")
R = TypeVar("R")

COMPOSITIONS: dict[str, Callable[..., Any]] = {}
"""Every composition of the library by name."""


def composition(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that is written with ops, so that it accepts arrays, lists and numbers.

    Parameters annotated as `Array` may be any of these, or Tensors. Numbers of numpy for the other
    parameters become those of Python: `-offset` of an unsigned integer would be positive. The
    message of an error begins with the name of the called function, even if an op inside it raised
    the error.
    """
    name = function.__name__
    parameters = list(inspect.signature(function).parameters.values())
    arrays = {p.name: p for p in parameters if p.annotation == "Array"}
    positions = {i for i, p in enumerate(parameters) if p.name in arrays}
    many = next((i for i, p in enumerate(parameters) if p.kind is p.VAR_POSITIONAL), sys.maxsize)

    @wraps(function)
    def named(*args: P.args, **options: P.kwargs) -> R:
        try:
            given: Any = args
            value: Any
            if many == 0 and len(args) == 1 and args[0].__class__ in (list, tuple):
                value = args[0]  # vectors in a list, as PyTorch has them
                given = tuple(value) if any(map(np.ndim, value)) else args
            for i, value in enumerate(given):
                if value.__class__ not in _USUAL and (i in positions or i >= many):
                    parameter = parameters[min(i, many)]
                    value = _array(parameter, value, (*given, *options.values()))
                    given = (*given[:i], value, *given[i + 1 :])
                elif value.__class__ in _NUMPY:
                    given = (*given[:i], value.item(), *given[i + 1 :])
            for key, value in options.items():
                if value.__class__ not in _USUAL and key in arrays:
                    options[key] = _array(arrays[key], value, (*given, *options.values()))
                elif value.__class__ in _NUMPY:
                    options[key] = value.item()
            if mode.state[1] and not _has_tensor((*given, *options.values())):
                # On plain arrays, operators such as + are numpy's; observers would miss them.
                values: Any = tuple(options.values())
                result: R = observed(call_on_arrays, function, given, tuple(options), values)
                return result
            return function(*given, **options)
        except (IndexError, OverflowError, TypeError, ValueError) as error:
            kinds: Any = ValueError, IndexError, TypeError  # AxisError is both of the first two
            kind = next((kind for kind in kinds if isinstance(error, kind)), ValueError)
            call = vars(error).get("call", "")
            message = vars(error).get("message", str(error))  # without the name of an inner op
            message = message.removesuffix(call)
            if isinstance(error, TypeError):
                message = instead_of_argument(error) or without_name(message)
                if message.startswith("got an unexpected keyword argument"):
                    message += f"; it takes {', '.join(p.name for p in parameters)}"
            raise op_error(kind, name, message, call and called_with(args, options)) from error

    if function.__module__.startswith("minigrad.functional."):
        COMPOSITIONS[name] = named
    return named


def call_on_arrays(
    function: Callable[..., Any], arguments: Any, names: Sequence[str], values: Sequence[Any]
) -> Any:
    """Call a composition on plain arrays; `names` are the names of the options in `values`."""
    return function(*arguments, **dict(zip(names, values, strict=True)))


def _has_tensor(values: Sequence[Any]) -> bool:
    return any(
        _has_tensor(value) if isinstance(value, (list, tuple)) else isinstance(value, Tensor)
        for value in values
    )


_USUAL = {Tensor, np.ndarray}
_NUMPY = {np.dtype(code).type for code in np.typecodes["AllInteger"] + np.typecodes["Float"]}


def _array(parameter: inspect.Parameter, value: Any, others: Sequence[Any]) -> Any:
    """Return a list or number as an array, and None as it is if that is the default.

    A number has the dtype of the other arrays of floats, and a list float64 if one of them has it.
    """
    if value is None:
        if parameter.default is None:
            return None
        raise TypeError(none_given(parameter.name))
    if isinstance(value, Tensor):  # a Parameter
        return value
    array = as_array(value)
    if isinstance(value, np.ndarray):  # an instance of a subclass
        return array
    if isinstance(value, (int, float, np.number)) and array.dtype.kind == "f":
        target = common_float([x for x in others if isinstance(x, (Tensor, np.ndarray))])
        return array if target is None else as_array(value, target)
    if array.dtype == np.float32 and any(
        isinstance(other, (Tensor, np.ndarray)) and other.dtype == np.float64 for other in others
    ):
        return as_array(value, np.float64)
    return array


def root(x: Array, p: float = 2.0) -> Tensor:
    """x^(1/p) for x >= 0, with gradient 0 instead of infinity at 0, the minimum of a distance."""
    zero = x == 0
    positive = where(zero, 1.0, x)
    return where(zero, 0.0, sqrt(positive) if p == 2 else positive ** (1 / p))


def widened(x: Array) -> Array:
    """Convert float16 to float32 and integers to float64, to avoid overflow in sums of squares."""
    if x.dtype.kind == "f":
        return astype(x, np.float32) if x.dtype.itemsize == 2 else x  # float16 in any byte order
    return astype(x, np.float64)


def narrowed(result: Tensor, x: Array) -> Tensor:
    """Convert a result to the dtype of x; if x contains integers, convert a Tensor to float32."""
    if x.dtype.kind == "f":
        return astype(result, x.dtype) if result.dtype != x.dtype else result
    return astype(result, np.float32) if isinstance(result, Tensor) else result
