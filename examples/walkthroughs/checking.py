"""Exercises that check an answer, and say what is wrong with it without giving the solution.

An exercise knows the right answer, and **slips**: wrong answers that readers often give, each with
a sentence that explains it. The check compares an answer with the right one and, if they differ,
with the slips. If the answer is none of them, the message names the first wrong entry, or the
expected size. An answer may be a value (a number, a text, an array, or a tuple, list or dict of
them) or a function, which is then called with the arguments of the exercise's trials.
"""

from __future__ import annotations

import copy
import html
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

import numpy as np

import minigrad as mg

RIGHT, WRONG, OPEN = "right", "not yet", "not answered yet"
COLOURS = {RIGHT: "#009E73", WRONG: "#D55E00", OPEN: "#999999"}


class WrongAnswerError(Exception):
    """A sentence says what is wrong with an answer; `observe` of an exercise may raise it."""


class NoAnswerError(Exception):
    """There is nothing to check: the answer, a value in it, or what it returns is `...`."""


@dataclass(frozen=True)
class Exercise:
    """The right answer to a task, and the slips that a reader may make.

    Attributes:
        answer: the right answer, a value or a function.
        slips: wrong answers of the same kind, each under the sentence that explains it.
        trials: the tuples of arguments that a function is called with.
        observe: a function that computes from an answer what is compared instead, for answers
            such as a model or a graph. The check calls it with the right answer and the slips too.
            It raises `WrongAnswerError` if an answer is not of the right kind.
        tolerance: the largest difference between numbers, relative to the largest entry.
        choices: the words that may be the values of an answer that is a dict.
    """

    answer: Any
    slips: Mapping[str, Any]
    trials: Sequence[tuple[Any, ...]] = ()
    observe: Callable[[Any], Any] | None = None
    tolerance: float = 1e-6
    choices: Sequence[str] = ()

    def fault(self, answer: Any) -> str:
        """Return a sentence that says what is wrong with an answer, empty if it is right.

        Raises:
            NoAnswerError: if the answer is or contains `...`, or is a function that returns `...`.
        """
        try:
            observed = self._observed(answer)
            expected = self._observed(self.answer)
            found = next(self._differences(observed, expected, names_of(answer)), "")
        except WrongAnswerError as problem:
            return str(problem)
        return (found and self._slip(observed)) or found

    def _slip(self, observed: list[Any]) -> str:
        """Return the sentence of the slip with the same values as the answer, or an empty text."""
        for sentence, slip in self.slips.items():
            try:
                if next(self._differences(observed, self._observed(slip)), None) is None:
                    return sentence
            except WrongAnswerError:
                continue  # a slip that raises on purpose is recognised by its own message
        return ""

    def _observed(self, answer: Any) -> list[Any]:
        """Return the values to compare: one value, or one for each trial."""
        if is_open(answer):
            raise NoAnswerError
        if self.choices and isinstance(answer, Mapping):
            for name, word in answer.items():
                if str(word).strip().casefold() not in self.choices:
                    words = ", ".join(map(repr, self.choices))
                    raise WrongAnswerError(f"{name!r}: {word!r} is none of the words {words}.")
        if self.observe is not None:
            try:
                return [self.observe(answer)]
            except (WrongAnswerError, NoAnswerError):
                raise
            except Exception as error:
                problem = f"Trying your answer raises {type(error).__name__}: {error}"
                raise WrongAnswerError(problem) from error
        if not self.trials:
            return [answer]
        if not callable(answer):
            raise WrongAnswerError(f"A function is expected, and this is {described(answer)}.")
        return [called(answer, arguments) for arguments in self.trials]

    def _differences(
        self, observed: list[Any], expected: list[Any], names: Sequence[str] = ()
    ) -> Iterator[str]:
        """Yield sentences about what differs, trial by trial."""
        reveal = bool(self.trials)  # the right result of a trial does not give the solution away
        for i, (value, right) in enumerate(zip(observed, expected, strict=True)):
            for sentence in differences(value, right, self.tolerance, reveal):
                where = f"With {arguments_of(self.trials[i], names)}: " if reveal else ""
                yield where + sentence


def is_open(answer: Any) -> bool:
    """Return whether an answer is `...`, or a tuple, list or dict that contains it."""
    if isinstance(answer, list | tuple | Mapping):
        return any(map(is_open, answer.values() if isinstance(answer, Mapping) else answer))
    return answer is ...


def called(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Return what a reader's function returns for copies of these arguments.

    Raises:
        NoAnswerError: if it returns `...`, or a tuple, list or dict that contains it.
        WrongAnswerError: if it raises an error, or returns nothing.
    """
    try:
        result = function(*copy.deepcopy(arguments))
    except Exception as error:
        where = f"With {arguments_of(arguments, names_of(function))}"
        raise WrongAnswerError(
            f"{where}, your function raises {type(error).__name__}: {error}"
        ) from error
    if is_open(result):
        raise NoAnswerError
    if result is None:
        raise WrongAnswerError("Your function returns nothing. Does it end with `return`?")
    return result


def differences(value: Any, right: Any, tolerance: float, reveal: bool) -> Iterator[str]:
    """Yield sentences about the differences between a value and the right one.

    The right value is named only if `reveal` is true.
    """
    if isinstance(right, str):
        if not isinstance(value, str):
            yield f"A text is expected, and this is {described(value)}."
        elif " ".join(value.casefold().split()) != " ".join(right.casefold().split()):
            yield f"{value!r} is not the answer" + (f", it is {right!r}." if reveal else ".")
    elif isinstance(right, Mapping):
        if not isinstance(value, Mapping) or value.keys() != right.keys():
            names = ", ".join(map(repr, right))
            yield f"A dict with the keys {names} is expected, and this is {described(value)}."
            return
        for key in right:
            for sentence in differences(value[key], right[key], tolerance, reveal):
                yield f"{key!r}: {sentence}"
    elif isinstance(right, list | tuple):
        parts = value
        if isinstance(value, mg.Tensor | np.ndarray) and value.ndim:
            parts = list(value.data if isinstance(value, mg.Tensor) else value)
        if not isinstance(parts, list | tuple) or len(parts) != len(right):
            count = "1 value is" if len(right) == 1 else f"{len(right)} values are"
            yield f"{count} expected, and this is {described(value)}."
            return
        for i, (part, right_part) in enumerate(zip(parts, right, strict=True)):
            for sentence in differences(part, right_part, tolerance, reveal):
                yield f"Value {i + 1} of {len(right)}: {sentence}"
    else:
        yield from array_differences(value, numbers(right), tolerance, reveal)


def array_differences(value: Any, right: Any, tolerance: float, reveal: bool) -> Iterator[str]:
    """Yield a sentence about the kind, the size, or the first wrong entry of an array or number."""
    what = f"an array of shape {right.shape}" if right.ndim else "a number"
    try:
        found = numbers(value)
    except Exception:  # another library's object may refuse with any error to become an array
        yield f"{what.capitalize()} is expected, and this is {described(value)}."
        return
    if found.shape != right.shape:
        yield f"{what.capitalize()} is expected, and this is {described(value)}."
        return
    scale = np.max(np.abs(right), initial=0.0, where=np.isfinite(right)) or 1.0
    near = np.isclose(found, right, rtol=0, atol=tolerance * scale, equal_nan=True)
    if near.all():
        return
    index = tuple(map(int, np.argwhere(~near)[0])) if right.ndim else ()
    entry = f"Entry {list(index)}" if right.ndim else "The number"
    count = f" ({np.sum(~near)} of {right.size} entries are wrong)" if right.size > 1 else ""
    if reveal:
        yield f"{entry} is {found[index]:.6g} and should be {right[index]:.6g}{count}."
    else:
        yield f"{entry} is wrong{count}: {found[index]:.6g}."


def numbers(value: Any) -> Any:
    """Return a number, array, Tensor or nested list as an array of float64.

    Raises:
        TypeError, ValueError: if the value is something else.
        OverflowError: if an integer is beyond the largest float.
    """
    array = np.asarray(value.data if isinstance(value, mg.Tensor) else value)
    if array.dtype.kind in "cSUmM":  # complex numbers, texts and dates
        raise TypeError(f"{array.dtype} is not a kind of real number")
    if array.dtype.kind == "O":  # such as fractions; `astype` would turn None into NaN
        return np.vectorize(float, otypes=[np.float64])(array)
    return array.astype(np.float64)


def described(value: Any) -> str:
    """Return a few words that say what a value is."""
    if value is None:
        return "None"
    if isinstance(value, mg.Tensor | np.ndarray) and value.ndim:
        what = "" if value.dtype.kind in "biuf" else f" and dtype {value.dtype}"
        return f"an array of shape {value.shape}{what}"
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, Number | np.generic | mg.Tensor | np.ndarray):
        try:
            return f"the number {float(numbers(value)):.6g}"
        except OverflowError:
            return "a number beyond the largest float"
        except (TypeError, ValueError):
            return f"{value!r:.60}, which is not a real number"
    if isinstance(value, Mapping):
        return f"a dict with the keys {', '.join(map(repr, value))}" if value else "an empty dict"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)} value{'s' * (len(value) != 1)}"
    return "a function" if callable(value) else f"an object of the type {type(value).__name__}"


def names_of(function: Any) -> list[str]:
    """Return the names of a function's parameters, or no names if Python does not know them."""
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def arguments_of(arguments: tuple[Any, ...], names: Sequence[str] = ()) -> str:
    """Return a text that shows the arguments of a trial; a long array is shown by its shape.

    The text contains the names of the parameters if there is one for each argument.
    """
    texts = []
    for argument in arguments:
        if isinstance(argument, mg.Tensor | np.ndarray) and argument.size > 6:
            texts.append(f"an array of shape {argument.shape}")
        elif isinstance(argument, mg.Tensor | np.ndarray):
            data = np.asarray(argument.data if isinstance(argument, mg.Tensor) else argument)
            texts.append(" ".join(np.array2string(data, precision=4, separator=", ").split()))
        elif callable(argument) and hasattr(argument, "__name__"):
            texts.append(argument.__name__)
        else:
            text = repr(argument)
            is_short = len(text) <= 60 and " at 0x" not in text  # an address says nothing
            texts.append(text if is_short else described(argument))
    if len(names) == len(texts):
        texts = [f"{name} = {text}" for name, text in zip(names, texts, strict=True)]
    return ", ".join(texts) or "no arguments"


@dataclass(frozen=True)
class Verdict:
    """The result of a check. It counts as true only if the answer is right.

    Attributes:
        number: the exercise's number in its notebook.
        state: "right", "not yet" or "not answered yet".
        message: what is wrong with the answer; empty unless the state is "not yet".
    """

    number: int
    state: str
    message: str = ""

    def __bool__(self) -> bool:
        return self.state == RIGHT

    def __repr__(self) -> str:
        return f"Exercise {self.number}: {self.state}. {self.message}".rstrip()

    def _repr_html_(self) -> str:
        style = f"border-left:8px solid {COLOURS[self.state]};padding-left:6px"
        text = f" {html.escape(self.message)}" if self.message else ""
        return f'<div style="{style}"><b>Exercise {self.number}: {self.state}.</b>{text}</div>'


@dataclass(frozen=True)
class Checker:
    """The exercises of a notebook; call it with the number of an exercise and an answer.

    Raises:
        ValueError: if there is no exercise with this number.
    """

    exercises: Mapping[int, Exercise] = field(default_factory=dict)

    def __call__(self, number: int, answer: Any) -> Verdict:
        """Return the verdict on an answer to an exercise."""
        if number not in self.exercises:
            there = ", ".join(map(str, self.exercises))
            raise ValueError(f"there is no exercise {number!r} here; there are: {there}")
        try:
            message = self.exercises[number].fault(answer)
        except NoAnswerError:
            return Verdict(number, OPEN)
        return Verdict(number, WRONG if message else RIGHT, message)
