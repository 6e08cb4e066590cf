"""Tensor: an array with respect to which results can be differentiated.

A tensor holds its data and its node in the graph. Ops do every computation. The operators and
methods that call ops are declared here, for type checkers and readers; `minigrad.operators`
attaches them.
"""

from __future__ import annotations

import operator
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minigrad.checks import check_flag, native_dtype
from minigrad.core.grad_mode import mode, observed
from minigrad.core.node import Hook, Node
from minigrad.errors import named_errors
from minigrad.kernels.start import complete
from minigrad.locks import renewed_in_child
from minigrad.readonly import writable
from minigrad.renamed import add_hints
from minigrad.versions import mark_written

# A Tensor, an array or a number: ops and compositions accept each of these.
Array = Any

Axis = int | Sequence[int] | None

# The types of Python numbers, which adapt to the dtype of the array operand.
NUMBERS = {float, int, bool}


def as_array(data: Any, dtype: DTypeLike | None = None, how: str = "Tensor()") -> NDArray[Any]:
    """Return `data` as an array in native byte order; copy it only if it must be converted.

    Python floats become float32, Python ints become int64 (from 2^63 on uint64, or float32 if there
    are smaller ints beside them), and bools stay bools. Arrays, Tensors and numpy scalars keep
    their dtype; in a list, those of floats determine the dtype of the floats beside them. Observers
    are told that the value of a Tensor leaves the graph by `how`.

    Raises:
        TypeError: if `data` contains no real numbers (text, objects, None, complex numbers).
        ValueError: if lists are ragged, or a number is out of range of an integer dtype.
    """
    if isinstance(data, Tensor):
        if mode.state[1]:
            _announce(data, data._data, how)
        data = data._data
    if isinstance(data, np.ma.MaskedArray):
        raise TypeError("a tensor has no mask; fill the array in first, with .filled(value)")
    elif isinstance(data, (np.ndarray, np.generic)):
        array = np.asarray(data)
    else:
        try:
            array = np.asarray(data)
        except ValueError as error:
            raise ValueError(f"cannot make a tensor of {data!r:.80}: {error}") from None
        except RuntimeError as error:
            refuse_gradients(data)
            kind = type(data).__name__
            raise TypeError(
                f"numpy cannot make an array of a {kind}: {error}; pass plain values, which "
                ".detach() returns for a tensor of PyTorch"
            ) from error
        if dtype is None and array.dtype.kind in "fi":
            given = [*_dtypes_in([data])]
            target: Any = array.dtype if given else np.int64
            if array.dtype.kind == "f":
                floats = {each for each in given if each.kind == "f"}
                target = np.result_type(*floats) if floats else np.float32
            array = array.astype(target, copy=False)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"a tensor contains booleans, integers or floats, not {array.dtype}: {data!r:.80}"
        )
    if dtype is None and array.dtype.isnative:
        return array
    target = native_dtype(array.dtype if dtype is None else dtype)
    return array if array.dtype == target else observed(converted, array, target)


def refuse_gradients(data: Any) -> None:
    """Raise a TypeError if `data` is a list with tensors that require a gradient, also nested."""
    if not isinstance(data, (list, tuple)) or NUMBERS.issuperset(map(type, data)):
        return
    for value in data:
        if isinstance(value, Tensor) and value.node is not None:
            kind = type(data).__name__
            hint = "" if kind == "list" else "; or take one of them, as `out, state = lstm(x)` does"
            raise TypeError(
                f"a {kind} has tensors that require a gradient; minigrad.stack makes one tensor of "
                f"them, through which their gradients flow{hint}: {data!r:.80}"
            )
        refuse_gradients(value)


def _dtypes_in(data: Sequence[Any]) -> Iterator[np.dtype[Any]]:
    """List the dtypes of the arrays, Tensors and numpy scalars in nested lists."""
    if not NUMBERS.issuperset(map(type, data)):  # fast for long lists of numbers
        for value in data:
            if isinstance(value, (list, tuple)):
                yield from _dtypes_in(value)
            elif hasattr(value, "__array__"):
                yield as_array(np.asanyarray(value)).dtype  # an error if it has a mask


def converted(array: NDArray[Any], target: np.dtype[Any]) -> NDArray[Any]:
    """Convert an array to `target`; a ValueError if a number is out of range of its integers."""
    if target.kind in "iu" and array.size:
        least, most = np.iinfo(target).min, np.iinfo(target).max
        for value in (array.min().item(), array.max().item()):
            if not least - 1 < value < most + 1:  # astype drops the fraction of a float
                raise ValueError(
                    f"{value} does not fit into {target}, which goes from {least} to {most}"
                )
    return array.astype(target)


class _Size(int):
    """A number of elements. Calling it, as PyTorch's method `size()`, raises a helpful error.

    In every other respect it is an int; a copy, or a value loaded by pickle, is a plain int.
    """

    def __call__(self, axis: int | None = None) -> NoReturn:
        instead = ".shape" if axis is None else f".shape[{axis}]"
        raise TypeError(
            f"size is not a method here; use {instead}. Without a call, .size is the number of "
            f"elements, {self}"
        )

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


class Tensor:
    """An n-dimensional array with a node in the graph.

    `Tensor(array)` shares the memory of the array, but copies a read-only array.
    `minigrad.tensor(data)` always copies.

    Args:
        data: a number, nested lists of numbers, an array or a Tensor.
        requires_grad: whether backward passes compute a gradient for the tensor.
        dtype: the dtype to convert to.

    Raises:
        TypeError: if `data` does not contain numbers, or if a gradient is required and the numbers
            are not floats.
        ValueError: if lists are ragged, or a number is out of range of an integer dtype.
    """

    # While `requires_grad` of a leaf is False, `_leaf` keeps the node that the leaf had before.
    __slots__ = ("__weakref__", "_data", "_leaf", "node")

    _data: NDArray[Any]
    _leaf: Node | None
    node: Node | None

    def __init__(
        self, data: Any, requires_grad: bool = False, dtype: DTypeLike | None = None
    ) -> None:
        array = as_array(data, dtype)
        self._data = array if array.flags.writeable else observed(writable, array)
        self.node = self._leaf = None
        if requires_grad is not False:
            self.requires_grad_(requires_grad)

    @classmethod
    def at(cls, array: NDArray[Any], node: Node | None) -> Tensor:
        """Make a Tensor of `array` at a node of the graph. The engine calls this; users do not."""
        tensor = Tensor.__new__(Tensor)
        tensor._data = array
        tensor.node = node
        return tensor

    # ----------------------------------------------------------------------------------------------
    # The value
    # ----------------------------------------------------------------------------------------------

    @property
    def data(self) -> NDArray[Any]:
        """The value, as a writable array. A graph that saved it does not notice writes to it.

        An assignment replaces the value of a leaf. Afterwards a backward pass that needs the old
        value raises an error.

        Raises:
            ValueError: in an assignment, if the shape is not the same.
            TypeError: in an assignment, if the value does not contain numbers, or the tensor
                requires a gradient and the numbers are not floats.
            RuntimeError: in an assignment, if the tensor is the result of an op.
        """
        if mode.state[1]:
            _announce(self, self._data, ".data")
        if not self._data.flags.writeable:
            self._data = writable(self._data)
        return self._data

    @data.setter
    def data(self, value: Any) -> None:
        array = self.assignable(value)
        if self.node is not None and array.dtype != self.node.dtype:
            _check_differentiable(array.dtype)
        if mode.state[1]:
            _announce(self, None, ".data =")
        mark_written(self._data)
        self._data = writable(array)
        mark_written(self._data)
        if self.node is not None and array.dtype != self.node.dtype:
            self.node = self.node.converted(array)

    def assignable(self, value: Any) -> NDArray[Any]:
        """Return `value` as an array, after checking its shape and that this tensor is a leaf.

        A number or a list gets the dtype of a tensor of floats.
        """
        if self.node is not None and self.node.op is not None:
            raise RuntimeError(
                f"{self.describe()} is the result of an op, its value follows from its inputs; "
                f"write to a leaf, or to .detach()"
            )
        # The floats of Python may have more digits than float32.
        follows = self.dtype.kind == "f" and isinstance(value, (float, list, tuple))
        array = as_array(value, self.dtype if follows else None)
        if array.shape != self._data.shape:
            raise ValueError(
                f"cannot copy data of shape {array.shape} into a tensor of shape {self._data.shape}"
            )
        return array

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
        return _Size(self._data.size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the elements."""
        return self._data.dtype

    def numpy(self) -> NDArray[Any]:
        """Return the value as an array that shares memory with the tensor.

        Raises:
            RuntimeError: if the tensor requires a gradient, because an array carries no gradient.
        """
        if self.node is not None:
            raise RuntimeError(
                f"{self.describe()} requires a gradient, which cannot follow it into an array; use "
                f".detach().numpy()"
            )
        return self.data

    def item(self) -> Any:
        """Return the only element, as a Python number.

        Raises:
            ValueError: if there is not exactly one element.
        """
        return self._number("item()")

    def _number(self, how: str) -> Any:
        if self._data.size != 1:
            raise ValueError(
                f"{how} needs a tensor of one element, not {self.describe()}; reduce it, as "
                f".any() and .all() do for booleans, and .sum() and .mean() for numbers"
            )
        if mode.state[1]:
            _announce(self, None, how)
        return self._data.item()

    def tolist(self) -> Any:
        """Return the value as nested lists of Python numbers."""
        if mode.state[1]:
            _announce(self, None, "tolist()")
        return self._data.tolist()

    # ----------------------------------------------------------------------------------------------
    # The node in the graph
    # ----------------------------------------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        """Whether backward passes compute a gradient for this tensor."""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    @named_errors
    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set whether this leaf requires a gradient, and return the tensor. False drops `.grad`.

        If True is set again later, earlier graphs compute gradients for the tensor again.

        Raises:
            TypeError: if `requires_grad` is not True or False, or True is set for a tensor of
                integers or booleans.
            RuntimeError: if False is set for the result of an op.
        """
        check_flag("requires_grad", requires_grad)
        if requires_grad and self.node is None:
            _check_differentiable(self._data.dtype)
            known = getattr(self, "_leaf", None)
            if known is None:
                known = Node.of(None, (), self._data)
            elif known.dtype != self._data.dtype:
                known = known.converted(self._data)
            known.grad = None  # a backward pass may have set it while requires_grad was False
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
        """Whether this tensor is not the result of a recorded op."""
        return self.node is None or self.node.op is None

    @property
    def grad(self) -> Tensor | None:
        """The gradient, summed over backward passes; None before the first one.

        Only leaves have a gradient, and results of ops on which `retain_grad()` was called.

        Raises:
            RuntimeError: in an assignment, if the tensor requires no gradient.
            TypeError: in an assignment, if the value is neither a Tensor nor None.
            ValueError: in an assignment, if the shape or dtype is not that of the tensor.
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
        """Set the gradient to None."""
        self.grad = None

    def detach(self) -> Tensor:
        """Return a tensor that shares the memory but is outside of the graph: a constant."""
        constant = Tensor.at(self._data, None)
        if self.node is not None and mode.state[1]:
            _announce(self, constant, "detach()")
        return constant

    def retain_grad(self) -> None:
        """Let backward passes set `.grad` of this tensor, though it is the result of an op.

        Raises:
            RuntimeError: if the tensor requires no gradient.
        """
        node = node_of(self, "retain_grad()")
        if node.op is not None:
            node.retains_grad = node.watched = True

    def register_hook(self, function: Callable[[Tensor], Tensor | None]) -> Hook:
        """Call `function` with the complete gradient of this tensor in each backward pass.

        If `function` returns a tensor, this tensor replaces the gradient. Call `.remove()` on the
        returned `Hook` to remove the hook.

        Raises:
            TypeError: if `function` cannot be called.
            RuntimeError: if the tensor requires no gradient.
            ValueError: in the backward pass, if `function` returns something else than None or a
                Tensor with the shape of the gradient.
        """
        if not callable(function):
            raise TypeError(f"register_hook: a hook is a function, not {function!r:.60}")
        return Hook(node_of(self, "register_hook()"), function)

    def __getstate__(self) -> tuple[Any, ...]:
        """Return what copies and pickles save of a leaf, with the attributes of a subclass.

        They do not save the node, because its clock is of this process only.

        Raises:
            RuntimeError: if this is the result of an op.
        """
        if not self.is_leaf:
            raise RuntimeError(
                f"{self.describe()} is the result of an op; copies and pickles take leaves only: "
                f"copy or pickle .detach(), or use .clone() as a copy through which gradients flow"
            )
        if mode.state[1]:
            _announce(self, self._data, "a copy or a pickle")
        state: Any = object.__getstate__(self)
        attributes, slots = state
        added = {name: slots[name] for name in slots.keys() - set(Tensor.__slots__)}
        further = {**(attributes or {}), **added}
        return self._data, self.requires_grad, self.grad, *([further] if further else [])

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        data, requires_grad, grad, *further = state
        self._data = writable(data)
        self.node = self._leaf = None
        self.requires_grad_(requires_grad)
        self.grad = grad
        for name, value in further[0].items() if further else ():
            object.__setattr__(self, name, value)

    # ----------------------------------------------------------------------------------------------
    # Python's and numpy's protocols
    # ----------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """Describe the tensor in a few words for messages, without its values."""
        made_by = (
            "" if self.node is None or self.node.op is None else f" (made by {self.node.name})"
        )
        return f"a {type(self).__name__} of shape {self.shape} and dtype {self.dtype}{made_by}"

    def __repr__(self) -> str:
        for observer in mode.observers:
            observer.on_text(self)
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

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).any())

    def __bool__(self) -> bool:
        return bool(self._number("bool()"))

    def __float__(self) -> float:
        return float(self._number("float()"))

    def __int__(self) -> int:
        return int(self._number("int()"))

    def __index__(self) -> int:
        if self._data.dtype.kind not in "iu" or self._data.ndim:
            raise TypeError(f"an index must be an integer, not {self.describe()}")
        return operator.index(self._number("an index"))

    def __format__(self, spec: str) -> str:
        if not spec:
            return repr(self)
        if self._data.size != 1:
            raise ValueError(f"a format needs a tensor of one element, not {self.describe()}")
        for observer in mode.observers:
            observer.on_text(self)
        return format(self._data.item(), spec)

    __hash__ = object.__hash__

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    @property
    def _mask(self) -> NoReturn:
        """Raise an AttributeError, with which numpy.ma treats the tensor like an array.

        A tensor that requires a gradient raises a TypeError, because numpy.ma would ignore the
        graph in `masked_array * tensor`.
        """
        if self.node is not None:
            raise TypeError(
                "a tensor has no mask, so it does not fit a masked array; fill the array in "
                "first, with .filled(value), or pass tensor.detach().numpy()"
            )
        self.numpy()  # tells the observers that the value leaves the graph
        raise AttributeError("a tensor has no mask")

    def __dlpack__(self, **options: Any) -> Any:
        """Hand the memory to another library, as in `torch.from_dlpack(tensor)`.

        A graph does not notice what that library writes to the memory. The options are those of the
        array's own `__dlpack__`.

        Raises:
            BufferError: if the tensor requires a gradient, or is a view with a negative stride or
                with a stride that is not a multiple of the element size.
        """
        if self.node is not None:
            raise BufferError(
                f"{self.describe()} requires a gradient, which cannot follow it to another "
                f"library; use .detach()"
            )
        data = self.data
        if any(stride < 0 or stride % data.itemsize for stride in data.strides):
            raise BufferError(
                f"{self.describe()} has strides of {data.strides} bytes, which other libraries "
                f"cannot take; .clone() makes a copy that they can"
            )
        return data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._data.__dlpack_device__()

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, Tensor):
            view, given = self[index]._data, value._data
            if given.__array_interface__ == view.__array_interface__:  # the same memory
                return  # it is the end of `x[index] += y`, which has written to the view
        raise TypeError(
            "tensors are not written in place, because their gradients would be wrong; use "
            "minigrad.where(mask, value, x) for a new tensor, or x.data[index] = value for a leaf "
            "outside of any graph"
        )

    # ----------------------------------------------------------------------------------------------
    # The operators and methods that `minigrad.operators` attaches
    # ----------------------------------------------------------------------------------------------

    if TYPE_CHECKING:  # methods that have the same signature are declared together

        def _binary(self, other: Any) -> Tensor: ...

        __add__ = __radd__ = __iadd__ = __sub__ = __rsub__ = __isub__ = _binary
        __mul__ = __rmul__ = __imul__ = __truediv__ = __rtruediv__ = __itruediv__ = _binary
        __floordiv__ = __rfloordiv__ = __ifloordiv__ = __mod__ = __rmod__ = __imod__ = _binary
        __pow__ = __rpow__ = __ipow__ = __matmul__ = __rmatmul__ = __imatmul__ = _binary
        __and__ = __rand__ = __or__ = __ror__ = __lt__ = __le__ = __gt__ = __ge__ = dot = _binary
        # They compare elementwise, as in numpy, so their signature differs from that in `object`.
        __eq__ = __ne__ = _binary  # type: ignore[assignment]

        def _unary(self) -> Tensor: ...

        __neg__ = __pos__ = __abs__ = __invert__ = abs = clone = ravel = _unary
        square = exp = log = sqrt = rsqrt = sin = cos = tanh = sigmoid = relu = silu = _unary

        def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor: ...

        def _reduction(self, axis: Axis = None, keepdims: bool = False) -> Tensor: ...

        sum = mean = max = min = prod = any = all = logsumexp = _reduction

        def _index_of(self, axis: int | None = None, keepdims: bool = False) -> Tensor: ...

        argmax = argmin = _index_of

        def _spread(self, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor: ...

        std = var = _spread

        def _running(self, axis: int | None = None) -> Tensor: ...

        cumsum = cumprod = _running

        def _normalized(self, axis: Axis = -1) -> Tensor: ...

        softmax = log_softmax = _normalized

        def _diagonal(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor: ...

        diagonal = trace = _diagonal

        @property
        def T(self) -> Tensor: ...  # noqa: N802
        def __getitem__(self, index: Any) -> Tensor: ...
        def argsort(self, axis: int | None = -1, descending: bool = False) -> Tensor: ...
        def astype(self, dtype: DTypeLike) -> Tensor: ...
        def broadcast_to(self, shape: Sequence[int]) -> Tensor: ...
        def copy_(self, value: Any) -> Tensor: ...
        def clip(self, min: Any = None, max: Any = None) -> Tensor: ...
        def expand_dims(self, axis: int | Sequence[int]) -> Tensor: ...
        def gelu(self, approximate: str = "none") -> Tensor: ...
        def repeat(self, repeats: int | Sequence[int], axis: int | None = None) -> Tensor: ...
        def reshape(self, *shape: int | Sequence[int]) -> Tensor: ...
        def round(self, decimals: int = 0) -> Tensor: ...
        def squeeze(self, axis: Axis = None) -> Tensor: ...
        def swapaxes(self, axis1: int, axis2: int) -> Tensor: ...
        def transpose(self, *axes: int | Sequence[int] | None) -> Tensor: ...
        def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any: ...
        def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any: ...
        def backward(
            self,
            gradient: Tensor | NDArray[Any] | None = None,
            retain_graph: bool | None = None,
            create_graph: bool = False,
        ) -> None: ...


def overwrite(array: NDArray[Any], value: NDArray[Any]) -> None:
    """Write a value into the memory of an array, and record the write in `minigrad.versions`."""
    array[...] = value
    mark_written(array)


add_hints(Tensor, "Tensor")


def _announce(tensor: Tensor, value: Any, how: str) -> None:
    """Report to the observers that a value leaves the graph: it carries no gradient any more."""
    for observer in mode.observers:
        observer.on_leave(tensor, value, how)


def _check_differentiable(dtype: np.dtype[Any]) -> None:
    if dtype.kind != "f":
        raise TypeError(
            f"only floats can require a gradient, not {dtype}; convert first, e.g. with "
            f".astype('float32')"
        )


_assigning = renewed_in_child(sys.modules[__name__], "_assigning", threading.Lock)
_assigned_by: dict[int, int] = {}  # the thread that has replaced attributes of a tensor, by its id


@contextmanager
def assigned(values: Iterable[tuple[Tensor, Mapping[str, Any]]]) -> Iterator[None]:
    """In a `with` block, replace attributes of tensors (value or node); write to no memory.

    A tensor whose node is None is frozen. Its gradient stays; `requires_grad_(False)` would drop
    it.

    Raises:
        RuntimeError: if another thread has replaced attributes of one of the tensors.
    """
    given = [(tensor, name, value) for tensor, new in values for name, value in new.items()]
    thread = threading.get_ident()
    with _assigning:
        for tensor, *_ in given:
            if _assigned_by.get(id(tensor), thread) != thread:
                raise RuntimeError(
                    f"{tensor.describe()} has other values or nodes while another thread "
                    f"differentiates by its Module or examines it; give each thread a copy of the "
                    f"Module, or let one wait for the other with a lock"
                )
        added = {id(tensor) for tensor, *_ in given} - _assigned_by.keys()
        _assigned_by.update(dict.fromkeys(added, thread))
    before = [(tensor, name, getattr(tensor, name)) for tensor, name, _ in given]

    def restore() -> None:
        for each in before:
            setattr(*each)
        with _assigning:
            for key in added:
                del _assigned_by[key]

    try:
        for each in given:
            setattr(*each)
        yield
    finally:
        complete(restore)


def node_of(tensor: Any, role: str) -> Node:
    """Return the node of a tensor, or raise an error that says why there is none."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{role} must be a Tensor, not {type(tensor).__name__}")
    if tensor.node is None:
        raise RuntimeError(
            f"{role}: {tensor.describe()} needs no gradient and has no graph; was it made under "
            f"no_grad(), by detach(), by a captured step, or from tensors without "
            f"requires_grad=True?"
        )
    if tensor.node.forward_only:
        raise RuntimeError(
            f"{role}: {tensor.describe()} carries a tangent, and there is no graph behind it, "
            f"because its function is differentiated in forward mode; to differentiate inside of "
            f"such a function, use gradient, value_and_grad or vjp"
        )
    return tensor.node
