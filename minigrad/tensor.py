"""Tensor: an array that can be differentiated by.

A tensor holds its data, and where it stands in the graph. Everything that computes is an op of a
module of its own; `methods.py` has the operators and methods that call them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minigrad import methods
from minigrad.memory import mark_written, writable
from minigrad.methods import TensorMethods
from minigrad.mode import mode

if TYPE_CHECKING:
    from minigrad.graph import Hook, Node

# What ops and compositions accept where an array is meant: a Tensor, an array or a number.
Array = Any

Axis = int | Sequence[int] | None


def as_array(data: Any, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """`data` as an array in native byte order: itself where it is one, else made from it.

    Python's floats become float32, its ints int64 and bools bool; arrays and numpy's scalars keep
    their dtype.

    Raises:
        TypeError: if it is not made of numbers (text, objects, None, complex numbers).
        ValueError: if it is ragged.
    """
    if isinstance(data, Tensor):
        array = data._data
        if mode.state[1]:
            _announce(data, array, "Tensor()")
    elif isinstance(data, np.ma.MaskedArray):
        raise TypeError("a tensor has no mask; fill the array in first, with .filled(value)")
    elif isinstance(data, (np.ndarray, np.generic)):
        array = np.asarray(data)
    else:
        try:
            array = np.asarray(data)
        except ValueError as error:
            raise ValueError(f"cannot make a tensor of {data!r:.80}: {error}") from None
        if dtype is None and not _holds_numpy(data):
            usual = {"f": np.float32, "i": np.int64}.get(array.dtype.kind, array.dtype)
            array = array.astype(usual, copy=False)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"a tensor holds booleans, integers or floats, not {array.dtype}: {data!r:.80}"
        )
    if dtype is not None or not array.dtype.isnative:
        array = array.astype(dtype or array.dtype.newbyteorder("="), copy=False)
    return array


def _holds_numpy(data: Any) -> bool:
    while isinstance(data, (list, tuple)) and data:
        data = data[0]
    return isinstance(data, (np.ndarray, np.generic, Tensor))


class Tensor(TensorMethods):
    """An n-dimensional array with a place in the graph.

    `Tensor(array)` takes the array as it is, sharing its memory (a read-only one is copied);
    `minigrad.tensor(data)` copies always.

    Args:
        data: a number, nested lists of numbers, an array or a Tensor.
        requires_grad: whether backward passes are to compute a gradient for it.
        dtype: convert to this.

    Raises:
        TypeError: if `data` is not made of numbers, or is to require gradients and is not of
            floats.
    """

    # `_leaf` is set by `requires_grad_` only: the place to come back to.
    __slots__ = ("__weakref__", "_data", "_leaf", "node")

    _data: NDArray[Any]
    _leaf: Node
    node: Node | None

    def __init__(
        self, data: Any, requires_grad: bool = False, dtype: DTypeLike | None = None
    ) -> None:
        array = as_array(data, dtype)
        if not array.flags.writeable or type(array) is not np.ndarray:
            array = writable(array) if type(array) is np.ndarray else np.array(array)
        self._data = array
        self.node = None
        if requires_grad:
            self.requires_grad_()

    @classmethod
    def at(cls, array: NDArray[Any], node: Node | None) -> Tensor:
        """A Tensor of `array` at a given place of the graph: for the engine, not for users."""
        tensor = Tensor.__new__(Tensor)
        tensor._data = array
        tensor.node = node
        return tensor

    # ----------------------------------------------------------------------------------------------
    # The value
    # ----------------------------------------------------------------------------------------------

    @property
    def data(self) -> NDArray[Any]:
        """The value, a writable array. Writing into it is not seen by a graph that has saved it.

        Assigning replaces the value of a leaf, and graphs that saved the old one refuse to go on.
        """
        if mode.state[1]:
            _announce(self, self._data, ".data")
        if not self._data.flags.writeable:
            self._data = writable(self._data)
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        if self.node is not None and self.node.op is not None:
            raise RuntimeError(
                f"{self.describe()} is the result of an op, its value follows from its inputs; "
                f"assign to a leaf, or to .detach()"
            )
        array = as_array(value)
        if array.shape != self._data.shape:
            raise ValueError(
                f"cannot assign data of shape {array.shape} to a tensor of shape {self._data.shape}"
            )
        if self.node is not None and array.dtype != self.node.dtype:
            _check_differentiable(array.dtype)
        mark_written(self._data)
        self._become(array)

    def _become(self, array: NDArray[Any]) -> None:
        """Take new memory; a leaf gets a new place where its dtype has changed."""
        self._data = writable(array)
        mark_written(self._data)
        if self.node is not None and array.dtype != self.node.dtype:
            self.node.outdated = True
            self.node = graph.leaf(array.shape, array.dtype)

    def copy_(self, value: Any) -> Tensor:
        """Write `value` into this tensor's own memory, which all views of it see; return it.

        Raises:
            ValueError: if the shape is not the same.
            RuntimeError: if this is the result of an op.
        """
        if self.node is not None and self.node.op is not None:
            raise RuntimeError(f"{self.describe()} is the result of an op; copy_ writes to leaves")
        array = as_array(value)
        if array.shape != self._data.shape:
            raise ValueError(
                f"cannot copy data of shape {array.shape} into a tensor of shape {self._data.shape}"
            )
        self.data[...] = array
        mark_written(self._data)
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """The size along each axis."""
        return self._data.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._data.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the elements."""
        return self._data.dtype

    def numpy(self) -> NDArray[Any]:
        """The value as an array that shares memory with the tensor.

        Raises:
            RuntimeError: if the tensor requires a gradient, which would not follow the array.
        """
        if self.node is not None:
            raise RuntimeError(
                f"{self.describe()} requires a gradient, which cannot follow it into an array; use "
                f".detach().numpy()"
            )
        return self.data

    def item(self) -> Any:
        """The only element, as a Python number.

        Raises:
            ValueError: if there is not exactly one element.
        """
        if self._data.size != 1:
            raise ValueError(f"item() needs a tensor of one element, not {self.describe()}")
        if mode.state[1]:
            _announce(self, None, "item()")
        return self._data.item()

    def tolist(self) -> Any:
        """The value as nested lists of Python numbers."""
        if mode.state[1]:
            _announce(self, None, "tolist()")
        return self._data.tolist()

    # ----------------------------------------------------------------------------------------------
    # The place in the graph
    # ----------------------------------------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        """Whether backward passes compute a gradient for this tensor."""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Switch the need for a gradient on or off, for a leaf, and return it. Off drops `.grad`.

        Graphs that were recorded before know the tensor again when it is switched on again.

        Raises:
            TypeError: for a tensor of integers or booleans.
            RuntimeError: if it is to be switched off for the result of an op.
        """
        if requires_grad and self.node is None:
            _check_differentiable(self._data.dtype)
            known = getattr(self, "_leaf", None)
            if known is None or known.dtype != self._data.dtype:
                known = graph.leaf(self._data.shape, self._data.dtype)
            known.grad = None  # of what has arrived there while it was switched off
            self.node = known
        elif not requires_grad and self.node is not None:
            if self.node.op is not None:
                raise RuntimeError(
                    f"{self.describe()} is the result of an op and needs a gradient because its "
                    f"inputs do; use .detach() for a tensor that does not"
                )
            self._leaf, self.node = self.node, None
            self._leaf.grad = None
        return self

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded op has made this tensor."""
        return self.node is None or self.node.op is None

    @property
    def grad(self) -> Tensor | None:
        """The gradient, added up over backward passes; None before the first one.

        Only leaves have one, and results of ops after `retain_grad()`.
        """
        return None if self.node is None else self.node.grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is None:
            if self.node is not None:
                self.node.grad = None
            return
        if self.node is None:
            raise RuntimeError(f"{self.describe()} requires no gradient, so it can have no .grad")
        if not isinstance(value, Tensor):
            raise TypeError(f".grad must be a Tensor or None, not {type(value).__name__}")
        if value.shape != self.shape or value.dtype != self.dtype:
            raise ValueError(f".grad of {self.describe()} cannot be {value.describe()}")
        self.node.grad = value

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.grad = None

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
        engine.backward(self, gradient, retain_graph, create_graph)

    def detach(self) -> Tensor:
        """The same memory outside the graph: a constant."""
        constant = Tensor.at(self._data, None)
        if self.node is not None and mode.state[1]:
            _announce(self, constant, "detach()")
        return constant

    def clone(self) -> Tensor:
        """A copy that gradients flow through."""
        return ops.clone(self)

    def retain_grad(self) -> None:
        """Let backward passes keep `.grad` of this result of an op, as they do for leaves."""
        node = engine.node_of(self, "retain_grad()")
        if node.op is not None:
            node.retains_grad = node.watched = True

    def register_hook(self, function: Callable[[Tensor], Tensor | None]) -> Hook:
        """Call `function` with the whole gradient of this tensor, before it goes on.

        If it returns a tensor, that takes the gradient's place. `.remove()` of the result ends it.

        Raises:
            RuntimeError: if the tensor requires no gradient.
        """
        return graph.Hook(engine.node_of(self, "register_hook()"), function)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if not self.is_leaf:
            raise RuntimeError(
                f"{self.describe()} is the result of an op; copy.deepcopy copies leaves only, use "
                f".detach() or .clone()"
            )
        copied = type(self).__new__(type(self))
        copied._data = self._data.copy()
        copied.node = None
        if self.node is not None:
            copied.requires_grad_()
            if self.node.grad is not None:
                copied.grad = Tensor(self.node.grad._data.copy())
        memo[id(self)] = copied
        return copied

    # ----------------------------------------------------------------------------------------------
    # Python's and numpy's protocols
    # ----------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """A few words for messages: what it is, without its numbers."""
        made_by = "" if self.node is None or self.node.op is None else f", made by {self.node.name}"
        return (
            f"a {type(self).__name__} of shape {self._data.shape} and dtype {self.dtype}{made_by}"
        )

    def __repr__(self) -> str:
        name = type(self).__name__
        values = np.array2string(
            self._data, separator=", ", prefix=f"{name}(", threshold=200, edgeitems=3, precision=5
        )
        facts = [f"shape={self._data.shape}", f"dtype={self.dtype}"]
        if self.node is not None:
            facts.append("requires_grad=True" if self.node.op is None else f"op={self.node.name}")
        return f"{name}({values}, {', '.join(facts)})"

    def __len__(self) -> int:
        if self._data.ndim == 0:
            raise TypeError("a 0-d tensor has no len()")
        return len(self._data)

    def __iter__(self) -> Iterator[Tensor]:
        if self._data.ndim == 0:
            raise TypeError("a 0-d tensor cannot be iterated over")
        return (self[i] for i in range(len(self._data)))

    def __bool__(self) -> bool:
        if self._data.size != 1:
            raise ValueError(
                f"the truth of a tensor of {self._data.size} elements is not defined; reduce it to "
                f"one element, as .any() and .all() do for booleans"
            )
        if mode.state[1]:
            _announce(self, None, "bool()")
        return bool(self._data.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self._data.dtype.kind not in "iu" or self._data.ndim:
            raise TypeError(f"an index must be an integer, not {self.describe()}")
        return operator.index(self.item())

    def __format__(self, spec: str) -> str:
        if not spec:
            return repr(self)
        if self._data.size != 1:
            raise ValueError(f"a format needs a tensor of one element, not {self.describe()}")
        return format(self._data.item(), spec)

    __hash__ = object.__hash__

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    # The operators of numpy's arrays, and our names for them.
    _ARRAY_OPERATORS: ClassVar[dict[np.ufunc, str]] = {
        np.add: "add",
        np.subtract: "subtract",
        np.multiply: "multiply",
        np.divide: "divide",
        np.floor_divide: "floor_divide",
        np.remainder: "remainder",
        np.power: "power",
        np.matmul: "matmul",
        np.bitwise_and: "logical_and",
        np.bitwise_or: "logical_or",
        np.equal: "equal",
        np.not_equal: "not_equal",
        np.less: "less",
        np.less_equal: "less_equal",
        np.greater: "greater",
        np.greater_equal: "greater_equal",
    }

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """`array * tensor` is a Tensor; `np.exp(tensor)` is an error that says what to call."""
        compute = self._ARRAY_OPERATORS.get(ufunc)
        if compute is not None and method == "__call__" and not options:
            return getattr(ops, compute).call(*inputs)
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

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "tensors are not written in place, their gradients would be wrong; use "
            "minigrad.where(mask, value, x) for a new tensor, or x.data[index] = value for a leaf "
            "outside of any graph"
        )

    def _in_place(self, other: Any, compute: Callable[[Any, Any], Tensor], symbol: str) -> Tensor:
        """`x += y` writes to x where no graph can notice, and is refused elsewhere."""
        needed = self.node is not None or (isinstance(other, Tensor) and other.node is not None)
        if (needed and mode.grad_enabled) or not self.is_leaf:
            raise RuntimeError(
                f"x {symbol}= y would overwrite {self.describe()}, on which gradients depend; "
                f"write x = x {symbol} y, or do it under no_grad() on a leaf"
            )
        result = compute(self, other)
        if result.dtype != self.dtype:
            raise TypeError(f"x {symbol}= y would change the dtype {self.dtype} to {result.dtype}")
        return self.copy_(result)

    def __iadd__(self, other: Any) -> Tensor:
        return self._in_place(other, operator.add, "+")

    def __isub__(self, other: Any) -> Tensor:
        return self._in_place(other, operator.sub, "-")

    def __imul__(self, other: Any) -> Tensor:
        return self._in_place(other, operator.mul, "*")

    def __ipow__(self, other: Any) -> Tensor:
        return self._in_place(other, operator.pow, "**")

    def __imatmul__(self, other: Any) -> Tensor:
        return self._in_place(other, operator.matmul, "@")

    def __ifloordiv__(self, other: Any) -> Tensor:
        return self._in_place(other, operator.floordiv, "//")

    def __imod__(self, other: Any) -> Tensor:
        return self._in_place(other, operator.mod, "%")

    def __itruediv__(self, other: Any) -> Tensor:
        return self._in_place(other, operator.truediv, "/")


def _announce(tensor: Tensor, value: Any, how: str) -> None:
    """Tell who watches that a value goes where no gradient follows."""
    for observer in mode.observers:
        observer.on_leave(tensor, value, how)


def _check_differentiable(dtype: np.dtype[Any]) -> None:
    if dtype.kind != "f":
        raise TypeError(
            f"only floats can require a gradient, not {dtype}; convert first, e.g. with "
            f".astype('float32')"
        )


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


# Operators need the ops, and ops make Tensors: the one import cycle, closed here, where Tensor
# exists.
from minigrad import engine, functional, graph, ops  # noqa: E402

vars(methods).update(ops=ops, functional=functional)
