"""capture: record a training step as a program, which can be read, and runs with less overhead.

    @minigrad.capture
    def step(x, y):
        optimizer.zero_grad()
        loss = minigrad.mse(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    for x, y in batches:
        loss = step(x, y)
    print(step.source)

The first two calls run the step itself, and a `StepRecorder` records it. If both recordings are
equal, later calls run the recorded program: the same functions on the same numbers, so the results
have the same bits. The program treats many values as constants. `Surroundings` compares them before
each run; if one has changed, the step is recorded again. The 10th, 100th, 1000th call and so on run
the step itself again, and raise an error if the program differs.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import warnings
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, MappingProxyType
from typing import Any, Generic, ParamSpec, TypeVar, cast

from numpy import asarray, generic, ndarray
from numpy.typing import NDArray

from minigrad.checks import are_same
from minigrad.core.grad_mode import check_runs_at_once, mode
from minigrad.core.observers import observe
from minigrad.core.tensor import Tensor, as_array
from minigrad.locks import renewed_in_child
from minigrad.programs.names import (
    CaptureError,
    StepMadeError,
    StepNumber,
    ValueNames,
    is_named_tuple,
)
from minigrad.programs.program import Program
from minigrad.programs.recorder import StepRecorder, check_code
from minigrad.programs.surroundings import Surroundings
from minigrad.tables import counted

P = ParamSpec("P")
R = TypeVar("R")

MOST_PROGRAMS = 8  # for arguments of equal shapes; for example one in training, one in evaluation
MOST_SHAPES = 64  # the number of argument shapes that are recorded; others run the step itself
MOST_NUMBERS = 8  # of kinds of arguments with arrays of equal shapes, before a warning
MOST_CHANGES = 3  # by the step itself of what it reads, without a new program, before an error


class Captured(Generic[P, R]):
    """A captured training step: calls run the program of `step`. `capture` makes it."""

    def __init__(self, step: Callable[P, R]) -> None:
        try:
            if isinstance(step, (type, BuiltinFunctionType)):
                raise TypeError
            parameters = inspect.signature(step).parameters.values()
        except (TypeError, ValueError):
            raise TypeError(f"capture: a step is a function of Python, not {step!r:.60}") from None
        check_runs_at_once(step, "capture the function that makes one step", "capture: ")
        functools.update_wrapper(self, step)
        self.step: Callable[P, R] = step
        kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
        self._positional = [p.name for p in parameters if p.kind in kinds]
        self._attribute = getattr(step, "__name__", "")  # its name as a method of a class
        self._lock = renewed_in_child(self, "_lock", threading.RLock)
        self.reset()

    def reset(self) -> None:
        """Delete all programs; the next two calls record again."""
        self._programs: dict[Any, list[Program]] = {}
        self._first: dict[Any, list[Program]] = {}  # recordings that no second one has confirmed
        self._last: Program | None = None
        self._changes = Counter[Any]()  # since the last program, by the key of the arguments
        self._numbers = defaultdict[Any, set[Any]](set)  # the keys, by the shapes of the arrays

    @property
    def programs(self) -> list[Program]:
        """All programs that may be run again."""
        return [program for programs in self._programs.values() for program in programs]

    @property
    def source(self) -> str:
        """The source code of the program that was run or made last.

        Raises:
            CaptureError: if there is no program yet.
        """
        return self._program().source

    @property
    def namespace(self) -> dict[str, Any]:
        """The functions and constants that the source code uses.

        `exec(source, namespace)` defines the function `program`, from arrays to arrays.

        Raises:
            CaptureError: if there is no program yet.
        """
        return self._program().namespace

    def _program(self) -> Program:
        if self._last is None:
            raise CaptureError(
                f"{self!r} has no program yet: it takes two calls with arguments of equal shapes"
            )
        return self._last

    def __repr__(self) -> str:
        name = getattr(self.step, "__qualname__", type(self.step).__qualname__)
        return f"<captured {name}: {counted(len(self.programs), 'program')}>"

    def __reduce__(self) -> Any:
        """Return what to copy or pickle: only the step, because a copy records its own programs."""
        owner = getattr(self.step, "__self__", None)
        if owner is not None and getattr(owner, self._attribute, None) is self:
            return getattr, (owner, self._attribute)
        scope = sys.modules.get(getattr(self.step, "__module__", None) or "")
        name: str = getattr(self.step, "__qualname__", "")
        return name if getattr(scope, name, None) is self else (Captured, (self.step,))

    def __set_name__(self, owner: type, name: str) -> None:
        self._attribute = name

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        """Make a step in a class a method; each object has its own programs."""
        if owner is None:
            return self
        if not hasattr(owner, "__dict__"):
            raise TypeError(
                f"capture: an object of {type(owner).__name__} has no __dict__ to keep programs "
                f"in; leave out its __slots__, or capture a function"
            )
        # Another class may have a method of this name, and a copy of the object has its attributes.
        kept = f"_captured {getattr(self.step, '__qualname__', '')} {self._attribute}"
        bound: Captured[Any, Any] | None = vars(owner).get(kept)
        if bound is None or getattr(bound.step, "__self__", owner) is not owner:
            bound = vars(owner)[kept] = Captured(cast(Any, self.step).__get__(owner, kind))
            bound._attribute = self._attribute
        return bound

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the program, whose result has no graph; under an observer or no_grad, the step."""
        if mode.state != (True, ()) or mode.captured_steps:  # observed, no graph, or in a step
            return self._eager(args, kwargs)
        arrays: list[tuple[str, NDArray[Any]]] = []
        keys = [_key(v, name, arrays) for v, name in zip(args, self._positional, strict=False)]
        if kwargs or len(args) > len(keys):
            others = range(len(keys), len(args))
            keys += [_key(args[i], f"argument{i}", arrays) for i in others]
            keys += [(name, _key(value, name, arrays)) for name, value in kwargs.items()]
        key = tuple(keys)
        with self._lock:  # one thread at a time
            for program in self._programs.get(key, ()):
                if program.surroundings.is_unchanged():
                    break
            else:
                return self._record(key, arrays, args, kwargs)
            program.calls += 1
            if program.calls >= program.next_check:
                return self._record(key, arrays, args, kwargs, program)
            if not program.zero_grad():
                return self._eager(args, kwargs)  # there are gradients that the step does not zero
            self._last = program
            return cast(R, _with_tensors(program.function(*[asarray(a) for _, a in arrays])))

    def _eager(self, args: Any, kwargs: Any, views: Mapping[int, Any] = MappingProxyType({})) -> R:
        """Run the step itself; `views` replace array arguments, by their ids."""
        kwargs = {name: _with_tensors(value, views) for name, value in kwargs.items()}
        args = [_with_tensors(value, views) for value in args]
        before = [*_contents([args, kwargs])]
        mode.captured_steps += 1
        try:
            result = self.step(*args, **kwargs)
        finally:
            mode.captured_steps -= 1
        if not are_same([*_contents([args, kwargs])], before):
            raise StepMadeError(
                "capture: the step writes to a list or dict among its arguments, which a program "
                "would not do again; return what is new; the step has been made"
            )
        return result

    def _record(
        self, key: Any, arrays: list[tuple[str, NDArray[Any]]], args: Any, kwargs: Any,
        known: Program | None = None,
    ) -> R:  # fmt: skip
        """Run and record the step; after the second recording, make its program."""
        if not self._may_record(key, arrays):
            return cast(R, _with_tensors(self._eager(args, kwargs)))
        surroundings = Surroundings(self.step, {type(each) for each in _contents([args, kwargs])})
        check_code(self.step, surroundings)
        others = self._first.pop(key, [])
        first = next((each for each in others if each.surroundings.is_unchanged()), None)
        if first is not None:
            others.remove(first)
        elif others and known is None:
            self._count_change(key, others[0])
        before = {leaf: weakref.ref(leaf.grad) for leaf in surroundings.with_gradients()}
        names = ValueNames(arrays, surroundings)
        recorder = StepRecorder(names)
        with recorder.errors_tell():
            with observe(recorder):
                result = self._eager(args, kwargs, names.views)
            names.views.clear()  # a program keeps no array of its recording
            recorder.check_state()
            recorder.check_written()
            returned = names.result(result)
            surroundings.add(names.others)
            program = Program(names, recorder.lines, returned)
            if known is not None:
                self._programs[key].remove(known)
                program.check_same(known)
                self._programs[key].insert(0, known)
                known.next_check *= 10
                if known.zeroed.issuperset(before):  # the program leaves no gradients either
                    for leaf in surroundings.with_gradients():
                        leaf.grad = None
            elif any(p.is_same_with_other_elements(program) for p in self._programs.get(key, ())):
                pass  # the earlier program stays, and compares the new elements from now on
            elif (changes := not surroundings.is_unchanged()) or first is None:
                program.changes_what_it_reads = changes
                others.insert(0, program)
            else:
                program.check_same(first)
                zeroed = {g for g, old in before.items() if g.grad is None or g.grad is not old()}
                program.compile(zeroed)
                usable = [
                    p for p in self._programs.get(key, ()) if p.surroundings.has_same_memory()
                ]
                self._programs[key] = [program, *usable][:MOST_PROGRAMS]
                self._last = program
                self._changes.clear()  # nothing changes from call to call
        if others:
            self._first[key] = others[:MOST_PROGRAMS]
        return cast(R, _with_tensors(result))

    def _may_record(self, key: Any, arrays: list[tuple[str, NDArray[Any]]]) -> bool:
        """Return whether there is room for the program of a call; warn if there are many kinds."""
        kinds = self._programs | self._first
        if key in kinds:
            return True
        if len(kinds) >= MOST_SHAPES:
            warnings.warn(
                f"{self!r} has been called with {MOST_SHAPES} kinds of arguments, and runs eagerly "
                f"for others; pad them to a few shapes, and pass a number that changes as a Tensor",
                stacklevel=4,
            )
            return False
        shapes = tuple((array.shape, array.dtype, array.strides) for _, array in arrays)
        before = len(self._numbers[shapes])
        self._numbers[shapes].add(key)
        if before < len(self._numbers[shapes]) == MOST_NUMBERS:
            warnings.warn(
                f"{self!r} is recorded for the {MOST_NUMBERS}th time with other numbers or "
                f"texts, and arrays of the same shapes; pass a number that changes as a Tensor",
                stacklevel=4,
            )
        return True

    def _count_change(self, key: Any, before: Program) -> None:
        """Count one more recording in other surroundings; raise an error after too many.

        Settings that are made by turns outside of the step have programs of their own.
        """
        self._changes[key] += 1
        if self._changes[key] > (MOST_CHANGES if before.changes_what_it_reads else MOST_PROGRAMS):
            changes = ", ".join([*dict.fromkeys(before.surroundings.changes())][:5])
            raise CaptureError(
                f"capture: the step reads {changes}, and that changes from call to call; make it "
                f"an argument, as a Tensor if it is a number, or return what the step adds to it; "
                f"if the step does not use it, keep it in an object that the step does not use"
            )


def capture(step: Callable[P, R]) -> Captured[P, R]:
    """Capture a training step: return a function that does the same, but runs a recorded program.

    Args:
        step: a function that computes a loss and its gradients, and steps optimisers. Arguments are
            Tensors, numbers and texts, or lists, tuples, named tuples and dicts of them. The result
            is None, Tensors, or such containers of them. The step may draw random numbers, for
            example by `dropout`, clip gradients, return their norm, and step schedulers and
            averages.

    Returns:
        A function with the same arguments and results. Array arguments are passed to the step as
        Tensors. For arguments of other shapes, dtypes or layouts, and for other numbers and texts,
        another program is made. Gradients are local variables of a program: after a call, `.grad`
        is None, except after the first two calls, which run the step itself.

    A program only repeats the work of the library. Other work of the step runs only while it is
    recorded: writing to a file or a log, for example, or a choice by an error that the step
    catches, or by `float(norm)` or `math.isfinite(norm)`. A `jvp` becomes ops (other last digits).

    Some values are constants of the program: those that the step reads through C code or in objects
    of the standard library, such as a context variable, a bytearray, a queue or an
    `operator.attrgetter`; through `globals()`, `os.environ`, `sys.modules`, `eval`, or `getattr`,
    `vars` and `group[...]` with a name that it computes; those that functions of installed packages
    read, except for the packages of the step and of its modules; and results of numpy, outside of
    the library, from parameters, buffers, and arrays of more than 64 KB. The class of an object is
    a constant too, and so is the content of a metaclass or a weak dictionary, what a function such
    as `get_num_threads` returns, and a function or a class of minigrad, also if it is replaced.

    Raises:
        TypeError: if `step` is not a function, or is a generator or a coroutine; in a call, if an
            argument has another type.
        CaptureError: in a call, if the step does what cannot be captured. It reads values (by
            `item()`, `if` or a metric), or prints. It uses hooks, `retain_grad`, `create_graph`,
            `hvp`, `checkpoint`, or an observer, such as `detect_anomaly`. It reads an iterator. It
            writes to a numpy array, or to a list or dict in its arguments, or gives a tensor other
            memory. It makes an array whose size depends on values. It sets an option of an
            optimiser, or loads a state of an optimiser, a scheduler or averages. It draws random
            numbers without minigrad. Or a call differs from the first in its lines or its reads.
    """
    return Captured(step)


def _key(value: Any, name: str, arrays: list[tuple[str, NDArray[Any]]]) -> Any:
    """Return the key of an argument, which selects the program; add its arrays to `arrays`."""
    if isinstance(value, Tensor):
        if value.node is not None:
            raise CaptureError(
                f"capture: the argument {name} requires a gradient; parameters are variables "
                f"outside of the step, and other values can be passed as {name}.detach()"
            )
        value = value._data
    if isinstance(value, ndarray):
        if value.__class__ is not ndarray:
            as_array(value)  # raises a TypeError if it has a mask
        for i, (_, array) in enumerate(arrays):
            if array is value:
                return i  # if an array is passed twice, it needs another program
        arrays.append((name, value))
        # Gradients are copied if their layout, which follows that of arguments, is not that of
        # rows, and ops copy what they cannot write.
        return value.shape, value.dtype, value.strides, value.flags.writeable
    if value is None or isinstance(value, (bool, int, float, str, generic)):
        return type(value), repr(value)  # by repr, because 0.0 == -0.0 and NaN != NaN
    kind = type(value)
    if kind is list or kind is tuple or is_named_tuple(value):
        return kind, *[_key(v, f"{name}[{i}]", arrays) for i, v in enumerate(value)]
    if kind is dict:
        return dict, *[
            # 1 == True, and 0.0 == -0.0
            (k, type(k), text := repr(k), _key(v, f"{name}[{text}]", arrays))
            for k, v in value.items()
        ]
    raise TypeError(
        f"capture: arguments are Tensors, arrays, numbers, texts, or lists, tuples and dicts of "
        f"them (of no other class, named tuples apart), and {name} is a {kind.__name__}, "
        f"{value!r:.60}; other objects are variables outside of the step"
    )


def _with_tensors(value: Any, views: Mapping[int, Any] | None = None) -> Any:
    """Replace arrays in arguments or results by Tensors, so that observers see their ops.

    Among arguments, an array whose id is in `views` is replaced by its view, also in a Tensor.
    Among results, for which `views` is None, each Tensor is replaced by one without a gradient.

    Lists, tuples and dicts without arrays stay the objects that they are, and so do those of other
    classes, which may have attributes.
    """
    if isinstance(value, Tensor) and (views is None or id(value._data) in views):
        value = value._data
    if isinstance(value, ndarray):
        return Tensor.at(as_array(views.get(id(value), value) if views else value), None)
    if isinstance(value, StepNumber):
        return float(value)
    kind: Any = type(value)
    if kind is dict:
        parts = [_with_tensors(each, views) for each in value.values()]
        return value if are_same(parts, [*value.values()]) else dict(zip(value, parts, strict=True))
    if kind is list or kind is tuple or is_named_tuple(value):
        parts = [_with_tensors(each, views) for each in value]
        return value if are_same(parts, value) else getattr(kind, "_make", kind)(parts)
    return value


def _contents(value: Any) -> Iterator[Any]:
    """List everything in nested lists and dicts, at any depth."""
    for each in (*value, *value.values()) if isinstance(value, dict) else value:
        yield each
        if isinstance(each, (list, tuple, dict)):
            yield from _contents(each)
