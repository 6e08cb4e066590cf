"""capture: a training step as a program, which can be read and which runs with less Python.

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

The first two calls run the step itself, and a `Recorder` writes down what it does. If both times it
does the same, later calls run that program: the same functions on the same numbers, so the bits are
those of the step. What the program takes for constant, `Surroundings` compare before each run; if
something has changed, the step is recorded again. The 10th, 100th, 1000th call and so on run the
step itself once more, and raise an error if it has become another program.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from minigrad.core.grad_mode import mode
from minigrad.core.observers import observe
from minigrad.core.tensor import Tensor
from minigrad.programs.recorder import CaptureError, Recorder
from minigrad.programs.surroundings import Surroundings

P = ParamSpec("P")
R = TypeVar("R")

MOST_PROGRAMS = 8  # for arguments of equal shapes; for example one in training, one in evaluation
MOST_SHAPES = 64  # of arguments, after which steps with other shapes are not recorded
MOST_CHANGES = 3  # of the surroundings between two recordings, before a step is given up

_NAME = re.compile(r"\b[^\W\d]\w*")
_ASSIGNED = re.compile(r"\b[vgr]\d+\b")
_NUMBERED = re.compile(r"\b[cvgr]\d+\b")


class Captured(Generic[P, R]):
    """A training step whose program is run instead of it. `capture` makes one.

    Attributes:
        step: the step itself.
        source: the text of the program that was run or made last.
        namespace: the functions and constants that the text names: `exec(source, namespace)`
            defines the function `program`, which takes and returns arrays.
    """

    def __init__(self, step: Callable[P, R]) -> None:
        if not callable(step):
            raise TypeError(f"capture: a step is a function, not {step!r:.60}")
        functools.update_wrapper(self, step)
        self.step: Callable[P, R] = step
        self._names = [*inspect.signature(step).parameters]
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget all programs; the next two calls record again."""
        self._programs: dict[Any, list[Program]] = {}
        self._first: dict[Any, Recording] = {}
        self._last: Program | None = None
        self._changes = 0

    @property
    def source(self) -> str:
        """The text of the program that was run or made last.

        Raises:
            CaptureError: if there is none yet.
        """
        return self._program().source

    @property
    def namespace(self) -> dict[str, Any]:
        """What the text of the program names."""
        return self._program().namespace

    def _program(self) -> Program:
        if self._last is None:
            raise CaptureError(
                f"{self!r} has no program yet: it takes two calls with arguments of equal shapes"
            )
        return self._last

    def __repr__(self) -> str:
        count = sum(map(len, self._programs.values()))
        name = getattr(self.step, "__qualname__", repr(self.step))
        return f"<captured {name}: {count} program{'' if count == 1 else 's'}>"

    def __reduce__(self) -> Any:
        return Captured, (self.step,)  # a copy records for itself

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        """Make a step in a class a method, with programs of its own for each object."""
        if owner is None:
            return self
        bound = Captured(cast(Any, self.step).__get__(owner, kind))
        vars(owner)[self.step.__name__] = bound
        return bound

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Do what the step does, and return what it returns; tensors are constants then."""
        if mode.state != (True, ()):  # somebody watches, or there is no graph
            return self.step(*args, **kwargs)
        arrays: dict[str, NDArray[Any]] = {}
        plain: list[str] = []  # names of those that are no Tensors
        names = [
            *self._names[: len(args)],
            *(f"argument{i}" for i in range(len(self._names), len(args))),
        ]
        named = {**dict(zip(names, args, strict=True)), **kwargs}
        key = tuple([_key(value, name, arrays, plain) for name, value in named.items()])
        for program in self._programs.get(key, ()):
            if program.surroundings.hold() and program.suits(arrays):
                break
        else:
            return self._record(key, arrays, plain, args, kwargs)
        program.calls += 1
        if program.calls == program.next_check:
            return self._record(key, arrays, plain, args, kwargs, program)
        if not program.zero_grad():
            return self.step(*args, **kwargs)  # which adds to gradients, or leaves them alone
        self._last = program
        return cast(R, _wrapped(program.function(*arrays.values())))

    def _record(
        self, key: Any, arrays: dict[str, NDArray[Any]], plain: list[str], args: Any, kwargs: Any,
        known: Program | None = None,
    ) -> R:  # fmt: skip
        """Run the step and record it; make its program if this is the second time."""
        if len(self._programs) >= MOST_SHAPES or not self._lock.acquire(blocking=False):
            return self.step(*args, **kwargs)
        try:
            surroundings = Surroundings(self.step)
            _check_code(surroundings)
            first = self._first.pop(key, None)
            if first is not None and not first.surroundings.hold():
                self._count_change(first.surroundings)
                first = None
            recording = Recording(surroundings, arrays, plain)
            with observe(recording.recorder):
                result = self.step(*args, **kwargs)
            recording.finish(result)
            if known is not None:
                self._programs[key].remove(known)
                recording.check_same(known.recording, f"call {known.calls}")
                self._programs[key].insert(0, known)
                known.next_check *= 10
            elif first is None or not surroundings.hold():
                self._first[key] = recording
            else:
                recording.check_same(first, "the second call")
                program = self._last = Program(recording)
                others = [p for p in self._programs.get(key, ()) if p.surroundings.memory_holds()]
                self._programs[key] = [program, *others][:MOST_PROGRAMS]
                self._changes = 0
            return result
        finally:
            self._lock.release()

    def _count_change(self, before: Surroundings) -> None:
        """Count that the surroundings changed between two recordings."""
        self._changes += 1
        if self._changes > MOST_CHANGES:
            changes = ", ".join(before.changes()[:5])
            raise CaptureError(
                f"capture: the step reads {changes}, and that changes from call to call; make it "
                f"an argument, as a Tensor if it is a number, or return what the step adds to it"
            )


def capture(step: Callable[P, R]) -> Captured[P, R]:
    """Make a function that does what a training step does, by a program that is written once.

    Args:
        step: a function of Tensors, arrays, numbers and texts, or lists, tuples and dicts of them,
            that returns None, a Tensor, or a tuple, list or dict of Tensors. It computes a loss and
            its gradients, and steps optimisers. It may draw random numbers by `dropout` and the
            like, clip gradients, and step schedulers and averages.

    Returns:
        A function with the same arguments and results. Arguments of other shapes or dtypes, or
        other numbers and texts, get a program of their own. Gradients are local variables of a
        program: `.grad` is None after a call.

    Raises:
        TypeError: if it is no function, or an argument is of another kind.
        CaptureError: in a call, if the step does what cannot be captured: it reads values, as by
            `item()` or `if`, prints, uses hooks, `retain_grad`, `create_graph` or a checkpoint,
            writes to variables around it or to options of an optimiser, or does something else in
            its second call than in the first.
    """
    return Captured(step)


class Recording:
    """One run of a step, written down."""

    def __init__(
        self, surroundings: Surroundings, arrays: Mapping[str, NDArray[Any]], plain: Iterable[str]
    ) -> None:
        self.surroundings = surroundings
        self.recorder = Recorder(arrays, surroundings.tensors, surroundings.optimizers)
        self.given = {name: arrays[name].tobytes() for name in plain}
        leaves = surroundings.with_gradients()
        self.gradients = {leaf: weakref.ref(leaf.grad) for leaf in leaves}
        self.result = "None"
        self.space: dict[str, Any] = {}

    def finish(self, result: Any) -> None:
        """Write what the step returns, and leave out lines whose results nobody uses."""
        recorder = self.recorder
        recorder.check_options()
        gradients = self.gradients.items()  # those that are now None or others
        self.zeroed = {leaf for leaf, g in gradients if leaf.grad is None or leaf.grad is not g()}
        self.result = _returned(result, recorder)
        needed = set(_ASSIGNED.findall(self.result))
        lines = []
        for line in reversed(recorder.lines):
            if line.has_effect or needed & set(_ASSIGNED.findall(line.outs)):
                lines.append(line)
                needed |= line.names()
        self.lines = lines[::-1]
        self._rename()
        self.texts = [*map(str, self.lines), self.result]
        used = {name for text in self.texts for name in _NAME.findall(text)}
        self.space = {name: v for name, v in self.space.items() if name in used}
        self.surroundings.leave_out(self.space.values())

    def _rename(self) -> None:
        """Number the values anew, in the order of the lines that are left."""
        new: dict[str, str] = {}
        counts: dict[str, int] = {}

        def renamed(match: re.Match[str]) -> str:
            name = match[0]
            if name not in new:
                counts[name[0]] = counts.get(name[0], 0) + 1
                new[name] = f"{name[0]}{counts[name[0]]}"
            return new[name]

        for line in self.lines:
            line.arguments = [_NUMBERED.sub(renamed, text) for text in line.arguments]
            line.outs = _NUMBERED.sub(renamed, line.outs)
        self.result = _NUMBERED.sub(renamed, self.result)
        self.space = {new.get(name, name): v for name, v in self.recorder.space.items()}

    def check_same(self, first: Recording, when: str) -> None:
        """Raise a CaptureError unless another recording is of the same program and constants."""
        if self.texts != first.texts:
            pairs = zip([*first.texts, "(no line)"], [*self.texts, "(no line)"], strict=False)
            before, now = next((a, b) for a, b in pairs if a != b)
            raise CaptureError(
                f"capture: {when} does something else than the call before: first {before!r:.150}, "
                f"now {now!r:.150}; a choice by values is made with minigrad.where, and what "
                f"changes from call to call is an argument"
            )
        if self.given != first.given:
            self.given = {}  # numpy would have made something else of other elements
        for name, value in self.space.items():
            known = first.space.get(name)
            if known is value or _is_same(known, value):
                continue
            what = value.shape if isinstance(value, np.ndarray) else f"{value!r:.60}"
            raise CaptureError(
                f"capture: the step makes {name}, {what}, anew in each call, outside of ops; make "
                f"it of Tensors by ops, or make it outside of the step and pass it as an argument"
            )


class Program:
    """The program of a step for arguments of certain shapes."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.surroundings = recording.surroundings
        self.surroundings.add(recording.recorder.others)
        self.calls, self.next_check = 2, 10
        self.source = _text(recording)
        self.namespace = dict(recording.space)
        filename = f"<captured step {id(self)}>"
        lines = self.source.splitlines(keepends=True)
        linecache.cache[filename] = (len(self.source), None, lines, filename)
        exec(compile(self.source, filename, "exec"), self.namespace)
        self.function: Callable[..., Any] = self.namespace["program"]
        for tensor in self.surroundings.tensors.values():
            if tensor.node is not None:
                tensor.node.in_program = True
        recording.recorder = None  # type: ignore[assignment]

    def suits(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Return whether plain arrays are those of the recordings, if both had the same."""
        given = self.recording.given
        return not given or all(arrays[name].tobytes() == x for name, x in given.items())

    def zero_grad(self) -> bool:
        """Set all gradients to None; return False if there is one that the step does not zero."""
        leaves = self.surroundings.with_gradients()
        if not self.recording.zeroed.issuperset(leaves):
            return False
        for leaf in leaves:
            leaf.grad = None
        return True


def _text(recording: Recording) -> str:
    """Return a recording as the text of a function."""
    body = _comments(recording)
    last: dict[str, int] = {}
    for i, line in enumerate(recording.lines):
        for name in [*_ASSIGNED.findall(line.outs), *line.names()]:
            last[name] = i
    kept = set(_ASSIGNED.findall(recording.result))
    section = ""
    for i, line in enumerate(recording.lines):
        if line.section != section:
            section = line.section
            body.append(f"# {section}")
        dead = [n for n, at in last.items() if at == i and n not in kept and _ASSIGNED.match(n)]
        body.append(f"{line}; del {', '.join(dead)}" if dead else str(line))
    body.append(f"return {recording.result}")
    head = f"def program({', '.join(recording.recorder.arguments)}):"
    return "\n    ".join([head, *body]) + "\n"


def _comments(recording: Recording) -> list[str]:
    """Return the lines that list what came from nowhere that is compared: numbers and arrays."""
    recorder = recording.recorder
    shapes = [a.shape for a in recorder.arguments.values()]
    shapes += [t.shape for t in recording.surroundings.tensors.values()]
    usual = {*recording.surroundings.numbers, *(n for shape in shapes for n in shape), 0, 1, -1}
    numbers = [repr(n) for n in recorder.literals if n not in usual]
    lines = [f"# Numbers that this step has computed in Python: {', '.join(numbers)}"]
    lines = lines if numbers else []
    for name, value in recording.space.items():
        if _NUMBERED.fullmatch(name):
            lines.append(f"# An array that no parameter and no argument has: {name}, {value.shape}")
    return lines


def _key(value: Any, name: str, arrays: dict[str, NDArray[Any]], plain: list[str]) -> Any:
    """Return what a program depends on of an argument, and add its arrays to `arrays`."""
    kind = type(value)
    if isinstance(value, Tensor):
        if value.node is not None:
            raise CaptureError(
                f"capture: the argument {name} requires a gradient; parameters are variables "
                f"outside of the step, and other values can be passed as {name}.detach()"
            )
        value = value._data
    if isinstance(value, np.ndarray):
        for other, array in arrays.items():
            if array is value:
                return other  # the same array twice is another program
        arrays[name] = value
        if kind is np.ndarray:
            plain.append(name)
        return kind, value.shape, value.dtype
    if value is None or isinstance(value, (bool, int, float, str)):
        return kind, repr(value)  # in which -0.0 is another number than 0.0
    if isinstance(value, (list, tuple)):
        return type(value), *[_key(v, f"{name}_{i}", arrays, plain) for i, v in enumerate(value)]
    if isinstance(value, dict):
        keys = [(k, _key(v, f"{name}_{k}", arrays, plain)) for k, v in value.items()]
        return dict, *keys
    raise TypeError(
        f"capture: arguments are Tensors, arrays, numbers, texts, or lists, tuples and dicts of "
        f"them, and {name} is {value!r:.60}; other objects are variables outside of the step"
    )


def _returned(result: Any, recorder: Recorder) -> str:
    """Return the expression for the result of a step, on arrays."""
    if result is None:
        return "None"
    if isinstance(result, Tensor) or id(result) in recorder._names:
        return recorder.name(result)
    if isinstance(result, dict):
        items = [f"{key!r}: {_returned(value, recorder)}" for key, value in result.items()]
        return f"{{{', '.join(items)}}}"
    if isinstance(result, (list, tuple)):
        inner = ", ".join(_returned(value, recorder) for value in result)
        return f"[{inner}]" if isinstance(result, list) else f"({inner}{',' * (len(result) == 1)})"
    raise CaptureError(
        f"capture: a step returns None, Tensors, or tuples, lists and dicts of them, not "
        f"{result!r:.60}; one step has been made"
    )


def _wrapped(result: Any) -> Any:
    """Return what a step returns, with Tensors for arrays."""
    if isinstance(result, np.ndarray):
        return Tensor.at(result, None)
    if isinstance(result, dict):
        return {key: _wrapped(value) for key, value in result.items()}
    if isinstance(result, (list, tuple)):
        return type(result)(map(_wrapped, result))
    return result


def _is_same(a: Any, b: Any) -> bool:
    """Return whether two constants are equal, to the bit."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return (a.shape, a.dtype) == (b.shape, b.dtype) and a.tobytes() == b.tobytes()
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and bool(a == b)


def _check_code(surroundings: Surroundings) -> None:
    """Raise a CaptureError if the code of a step prints, or reads values."""
    for function in surroundings.functions:
        for name, instead in _UNSEEN.items():
            if name in function.__code__.co_names:
                raise CaptureError(
                    f"capture: {function.__qualname__} calls {name}(), which a program cannot do "
                    f"again; {instead}"
                )


_UNSEEN = {
    "item": "return the tensor, and call item() outside of the step",
    "tolist": "return the tensor, and call tolist() outside of the step",
    "print": "return what is to be printed",
}
