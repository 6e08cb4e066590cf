"""The names of the values in a recording, and expressions for other values.

A value is identified by its array, and an array by its id, as long as it exists. An array that no
recorded line has made is a constant of the program; a weight, for example.

While a program is recorded, the names of its values begin with a mark that no other text contains.
So a name cannot be confused with an argument, a parameter or a similar word in a text. A constant
gets its final name from `final`, when it is known which lines the program needs.
"""

from __future__ import annotations

import itertools
import math
import re
import threading
import unicodedata
import weakref
from collections.abc import Callable, Iterable, Iterator
from keyword import iskeyword
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.core.node import arrays_in
from minigrad.core.tensor import Tensor
from minigrad.programs.surroundings import Surroundings
from minigrad.readonly import WeakIdMap, owner_of

MARK = "\0"  # repr escapes it, so no literal contains it
EARLIER = "e"  # the prefix of names of gradients from before the step
CONSTANT = re.compile(rf"{MARK}k\d+")


class CaptureError(RuntimeError):
    """The step does something that cannot be captured; the message says what to do instead."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        refused.text = str(self)


refused = threading.local()
"""Its `text` is that of the last CaptureError of a thread, because a step may have caught it."""


class StepMadeError(CaptureError):
    """A CaptureError at the end of a step, whose message says that the step has been made."""


class StepNumber(float):
    """A number that the library computes in a step, while that is recorded, such as a norm.

    The step can return the number, and pass it to ops. If it compares or rounds the number, or what
    it has computed from it, or asks numpy about it, a CaptureError is raised. If it passes what it
    has computed to ops, the lines of two recordings differ. A comparison of `float(number)` is not
    noticed: numpy calls float() too.
    """

    __class__: Any = property(lambda self: float)  # ops see a float

    def _read(self, *others: Any) -> Any:
        if any(isinstance(other, Tensor) for other in others):
            return NotImplemented  # the Tensor compares, by an op
        raise CaptureError(
            "the step reads a number that only this call has, such as the norm that clip_grad_norm "
            "returns, where a program cannot follow it; use it in ops with Tensors, or return it, "
            "and compute outside of the step"
        )

    __bool__ = __int__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _read
    __hash__ = float.__hash__

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Call a ufunc with plain floats: numpy would treat a subclass of float as a float64."""
        inputs = tuple(float(x) if isinstance(x, StepNumber) else x for x in inputs)
        result = getattr(ufunc, method)(*inputs, **options)
        is_answer = isinstance(result, np.bool_)  # to a question such as np.isfinite(norm)
        if is_answer and not any(isinstance(x, (np.ndarray, Tensor)) for x in inputs):
            self._read()
        return result


def _computing(name: str) -> Callable[..., Any]:
    """Return a method of StepNumber: a float that it computes becomes a StepNumber."""

    def method(self: StepNumber, *others: Any) -> Any:
        result = getattr(float, name)(self, *others)
        if type(result) is int:  # what rounding gives
            self._read()
        return StepNumber(result) if type(result) is float else result

    return method


_OF_TWO = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
_OF_ONE = ("neg", "abs", "round", "trunc", "floor", "ceil")
for _name in (*_OF_TWO, *(f"r{name}" for name in _OF_TWO), *_OF_ONE):
    setattr(StepNumber, f"__{_name}__", _computing(f"__{_name}__"))


class ValueNames:
    """The names in one recording.

    Args:
        given: the array arguments of the step, each with a name; the names may be equal.
        surroundings: what the step reads besides its arguments.
    """

    def __init__(
        self, given: Iterable[tuple[str, NDArray[Any]]], surroundings: Surroundings
    ) -> None:
        self.arguments: list[str] = []  # the names of the array arguments
        # What the step gets in place of each of them, by its id: a view, because the step may read
        # the same array in another way too, as a buffer.
        self.views: dict[int, NDArray[Any]] = {}
        self.space: dict[str, Any] = {}  # the named constants: functions, arrays, optimisers
        self._wanted: dict[str, str] = {}  # a word like which a constant is to be named
        self.others: dict[str, Tensor] = {}  # used tensors that the surroundings do not have
        self.surroundings = surroundings
        self._literals: dict[float, None] = {}
        # By id, the name of a value, and the value itself, or a weak reference to an array.
        self._names: dict[int, tuple[str, Any]] = {}
        self._owners = WeakIdMap[bool]()  # the memory of arguments and results
        self._sizes = {0, 1}  # the sizes of all arrays
        self._count = itertools.count(1)  # numbers the values
        self._taken = {"Ellipsis", "_", "program", "slice"}  # the names in use
        self._labels = {id(t._data): name for name, t in surroundings.tensors.items()}
        parameters = {id(t._data) for t in surroundings.tensors.values() if t.requires_grad}
        for tensor in surroundings.tensors.values():
            self._sizes |= {tensor.size, *tensor.shape}
        for name, array in given:
            if id(array) in parameters:
                raise CaptureError(
                    f"capture: the argument {name} is the memory of {self._labels[id(array)]}, "
                    f"which the step reads as well; leave the argument out, or pass a copy"
                )
            self.views[id(array)] = view = array.view(np.ndarray)
            self._note(view)
            self.arguments.append(self.register(view, self._unique(name)))

    def _note(self, array: NDArray[Any]) -> None:
        self._owners[owner_of(array)] = True
        self._sizes |= {array.size, *array.shape}

    def new(self, prefix: str) -> str:
        """Return a new name for a value."""
        return f"{MARK}{prefix}{next(self._count)}"

    def _unique(self, text: str) -> str:
        """Return an unused identifier that is similar to a text."""
        letters = unicodedata.normalize("NFKC", text)  # as Python reads identifiers: x² is x2
        letters = "".join(c if f"_{c}".isidentifier() else "_" for c in letters)
        base = re.sub(r"[\W_]+", "_", letters).strip("_")
        base = base if base.isidentifier() and not iskeyword(base) else f"_{base}"
        names = (base if i == 0 else f"{base}_{i}" for i in itertools.count())
        name = next(name for name in names if name not in self._taken)
        self._taken.add(name)
        return name

    def register(self, value: Any, name: str) -> str:
        """Give a value this name, as long as the value exists."""
        key, kept = id(value), value
        if isinstance(value, np.ndarray):
            kept = weakref.ref(value, lambda _: self._names.pop(key, None))
        self._names[key] = name, kept
        return name

    def made(self, value: Any, prefix: str = "v") -> str:
        """Give a new name to the value that a line has made, or to each of several values."""
        if isinstance(value, (tuple, list)):
            return as_tuple([self.made(each, prefix) for each in value])
        if value is None or isinstance(value, int):  # equal ints may be the same object
            return "_"
        if isinstance(value, np.ndarray):
            self._note(value)
        return self.register(value, self.new(prefix))

    def known(self, value: Any) -> str | None:
        """Return the name of a value, or None if it has no name."""
        name, _ = self._names.get(id(value), (None, None))
        return name

    def name(self, value: Any) -> str:
        """Return an expression for a value: its name, a literal, or the name of a new constant."""
        if isinstance(value, Tensor):
            name = self.name(value._data)
            if name in self.space and id(value._data) not in self._labels:
                self.others[name] = value
            return name
        if (known := self.known(value)) is not None:
            return known
        if value is None or type(value) in (bool, str) or value is Ellipsis:
            return repr(value)
        if type(value) is int or (value.__class__ is float and math.isfinite(value)):
            value = value if type(value) is int else float(value)  # of a StepNumber
            self._literals[value] = None
            return repr(value)
        if isinstance(value, slice):
            return f"slice({', '.join(map(self.name, (value.start, value.stop, value.step)))})"
        if type(value) is list:
            return f"[{', '.join(map(self.name, value))}]"
        if type(value) is tuple:
            return as_tuple(map(self.name, value))
        if any(map(self.known, arrays_in(value))):
            raise CaptureError(
                f"an op takes a {type(value).__name__} with values of this step in it, which a "
                f"program would not make again; pass a plain tuple or list"
            )
        return self.constant(value)

    def result(self, value: Any) -> str:
        """Return an expression for the result of the step, with arrays for Tensors."""
        if value is None:
            return "None"
        if isinstance(value, Tensor) or (type(value) is StepNumber and self.known(value)):
            return self.name(value)
        if type(value) is dict:
            items = [f"{self.name(key)}: {self.result(each)}" for key, each in value.items()]
            return f"{{{', '.join(items)}}}"
        if type(value) is list:
            return f"[{', '.join(map(self.result, value))}]"
        if type(value) is tuple:
            return as_tuple(map(self.result, value))
        if is_named_tuple(value):
            return f"{self.constant(type(value))}._make({as_tuple(map(self.result, value))})"
        raise StepMadeError(
            f"capture: a step returns None, Tensors, or tuples, lists and dicts of them, not a "
            f"{value.__class__.__name__}, {value!r:.60}; the step has been made"
        )

    def constant(self, value: Any, name: str | None = None) -> str:
        """Return the name of a value; give a new name to a value that no line has made."""
        if (known := self.known(value)) is not None:
            return known
        label = self._labels.get(id(value), name)
        if isinstance(value, np.ndarray) and label is None:
            if self._owners.get(owner_of(value)):
                raise CaptureError(
                    f"an array of shape {value.shape} is a part or another arrangement of an "
                    f"argument or a result, and was not made by an op; use Tensors and ops"
                )
            text = self.new("c")
        else:
            usual = type(value).__name__.lower()
            usual = getattr(value, "name" if isinstance(value, np.dtype) else "__name__", usual)
            text = self.new("k")
            self._wanted[text] = label or usual
        self.space[text] = value
        return self.register(value, text)

    def final(self, texts: Iterable[str]) -> dict[str, str]:
        """Return the final names of the constants in these lines, in the order of appearance."""
        found = dict.fromkeys(name for text in texts for name in CONSTANT.findall(text))
        return {name: self._unique(self._wanted[name]) for name in found}

    def call(
        self, function: Callable[..., Any], arguments: Iterable[str], name: str | None = None
    ) -> str:
        """Return an expression that calls a function; for a bound method, its object is named."""
        owner = getattr(function, "__self__", None)
        if owner is not None and not isinstance(owner, (type, ModuleType)):
            called = f"{self.name(owner)}.{function.__name__}"
        else:
            called = self.constant(function, name)
        return f"{called}({', '.join(arguments)})"

    def comments(self) -> Iterator[str]:
        """List comment lines: parameters, and arrays and numbers of unknown origin."""
        for name, value in self.space.items():
            if isinstance(value, list):
                labels = [self._labels.get(id(p._data), "(no name)") for p in value]
                yield f"# {name}: {repr(', '.join(labels))[1:-1]}"  # a name may have line ends
            elif name.startswith(f"{MARK}c"):
                yield f"# An array of no parameter and no argument: {name}, {value.shape}"
        usual = self.surroundings.numbers | self._sizes
        numbers = [repr(number) for number in self._literals if number not in usual]
        if numbers:
            yield f"# Numbers that this step has computed in Python: {', '.join(numbers)}"


def is_named_tuple(value: Any) -> bool:
    """Return whether a value is a named tuple, without attributes besides its fields."""
    return (
        isinstance(value, tuple)
        and hasattr(type(value), "_fields")
        and not getattr(value, "__dict__", None)
    )


def as_tuple(texts: Iterable[str]) -> str:
    """Return the expression for a tuple of expressions."""
    parts = list(texts)
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"
