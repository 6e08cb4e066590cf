"""What a mutant is, and the ways to plant one: a fault is put in, and taken out whatever happens.

A gradient checker that has never been shown a wrong gradient proves nothing. So here are gradients
that are wrong on purpose, each by one small fault of a kind that real projects have had.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

import minigrad
from minigrad.core.grad_mode import mode
from minigrad.core.op import VJP, Op

FAULTS = (
    "double count on reuse",
    "missing reduction over a broadcast axis",
    "stale inner gradient",
    "lost transpose",
    "dropped scale",
    "mean for sum",
    "aliasing",
    "cut graph",
    "wrong tie",
    "off by 0.1%",
    "wrong only at second order",
    "wrong only for one dtype",
    "negative strides",
    "repeated indices",
    "at zero",
    "wrong option",
    "wrong place",
    "wrong formula",
)

Planting = AbstractContextManager[None]


TESTS_OF_OPS = "tests/minigrad/ops/test_ops.py"
TESTS_OF_THE_ENGINE = "tests/minigrad/core"


@dataclass(frozen=True)
class Port:
    """A function and two gradients of it, in words that `m` knows: minigrad, torch, JAX, HIPS.

    Attributes:
        forward: `forward(m, *xs)`.
        right: `right(m, g, *xs)`: the gradient for the only input, or a tuple with one for each.
        wrong: the same with the fault.
        around: `around(m, f, *xs)`: how it is used, where the fault shows in company only.
        torch: whether PyTorch can have it, whose arrays never lie backwards in memory.
        jax: whether JAX can have it, whose arrays have no strides and are never written to.
    """

    forward: Callable[..., Any]
    right: Callable[..., Any]
    wrong: Callable[..., Any]
    around: Callable[..., Any] = lambda m, f, *xs: f(*xs)
    torch: bool = True
    jax: bool = True


@dataclass(frozen=True)
class Mutant:
    """A fault, and a function whose gradient it makes wrong.

    Attributes:
        name: what is wrong, in a line.
        fault: what kind of fault that is, one of `FAULTS`.
        kind: whether it is in a VJP of an op or in the engine.
        plant: a context in which the fault is there.
        f: a function of tensors, right without the fault.
        inputs: arrays to check it at.
        order: the first order of derivative that is wrong. A check of this order alone need not
            see it: the second derivatives show some small faults of float32 better.
        op: the op whose VJP is wrong.
        port: the same fault for other libraries, where they can have it.
        suite: the test files that must notice; none for a fault in an op that the library lacks.
        rows: a part of the names of the tests to run first: what the rows of the table are called
            that are about it, or a file.
    """

    name: str
    fault: str
    kind: Literal["vjp", "engine"]
    plant: Callable[[], Planting]
    f: Callable[..., Any]
    inputs: Sequence[Any]
    order: int = 1
    op: Op[Any] | None = None
    port: Port | None = None
    suite: tuple[str, ...] = (TESTS_OF_OPS, TESTS_OF_THE_ENGINE)
    rows: str = ""

    def __str__(self) -> str:
        return self.name


def vjp(
    name: str,
    fault: str,
    op: Op[Any],
    plant: Callable[[Op[Any]], Planting],
    *inputs: Any,
    f: Callable[..., Any] | None = None,
    **facts: Any,
) -> Mutant:
    """A mutant of the VJPs of `op`, which is also `f` where nothing is said.

    Its name begins with the function that the table has it under.
    """
    rows = name.partition(":")[0]
    return Mutant(
        name, fault, "vjp", partial(plant, op), f or op, inputs, op=op, rows=rows, **facts
    )


def fault(
    name: str,
    fault: str,
    plant: Callable[[], Planting],
    f: Callable[..., Any],
    *inputs: Any,
    suite: tuple[str, ...] = (TESTS_OF_THE_ENGINE, TESTS_OF_OPS),
    **facts: Any,
) -> Mutant:
    """A mutant of the engine."""
    return Mutant(name, fault, "engine", plant, f, inputs, suite=suite, **facts)


def verdict(mutant: Mutant, planted: bool = True, dtype: Any = None, **options: Any) -> str:
    """What gradcheck says, at its default settings but for `options`.

    Floats are given as `dtype`, or as they are.
    """
    inputs = [copied(x, dtype) for x in mutant.inputs]
    with np.errstate(all="ignore"):  # some faults are a nan
        if not planted:
            return minigrad.gradcheck(mutant.f, inputs, **options).verdict
        with mutant.plant():
            return minigrad.gradcheck(mutant.f, inputs, **options).verdict


def copied(x: Any, dtype: Any = None) -> Any:
    """x in memory of its own, and where it lies backwards there, again so."""
    forwards = tuple(slice(None, None, -1 if stride < 0 else 1) for stride in x.strides)
    return x[forwards].astype(dtype or x.dtype)[forwards]


# --------------------------------------------------------------------------------------------------
# In the VJPs of an op
# --------------------------------------------------------------------------------------------------


@contextmanager
def wrong(op: Op[Any], name: str, derivative: Callable[..., Any]) -> Iterator[None]:
    """Another derivative by the input `name`."""
    argnum = op.parameters.index(name)
    vjp = VJP(op, derivative, ("g",))
    with _vjps(op, [(p, vjp if p == argnum else before) for p, before in op.vjps]):
        yield


@contextmanager
def wrong_together(op: Op[Any], derivative: Callable[..., Any]) -> Iterator[None]:
    """Another joint VJP."""
    vjp = VJP(op, derivative, ("g", "needs_input_grad"))
    with _vjps(op, [(argnum, vjp) for argnum, _ in op.vjps]):
        yield


@contextmanager
def misled(op: Op[Any], **changes: Any) -> Iterator[None]:
    """Give VJPs other options than the forward: values, or functions of the right ones."""

    def changed(name: str, value: Any) -> Any:
        if name not in changes:
            return value
        return changes[name](value) if callable(changes[name]) else changes[name]

    def misled_vjp(vjp: VJP) -> VJP:
        derivative = vjp.derivative
        names = list(inspect.signature(derivative).parameters)
        return _like(vjp, lambda *given: derivative(*map(changed, names, given)))

    with _vjps(op, [(argnum, misled_vjp(vjp)) for argnum, vjp in op.vjps]):
        yield


@contextmanager
def spoiled(op: Op[Any], name: str, change: Callable[[Any], Any]) -> Iterator[None]:
    """The derivative by the input `name` goes through `change`."""
    argnum = op.parameters.index(name)
    place = [p for p, _ in op.vjps].index(argnum)

    def spoiled_vjp(vjp: VJP) -> VJP:
        def derivative(*given: Any) -> Any:
            gradient = vjp.derivative(*given)
            if op.plain:
                return change(gradient)
            gradients = list(gradient)
            if gradients[place] is not None:
                gradients[place] = change(gradients[place])
            return gradients

        return _like(vjp, derivative)

    vjps = [(p, spoiled_vjp(r) if p == argnum or not op.plain else r) for p, r in op.vjps]
    with _vjps(op, vjps):
        yield


def derivative_of(op: Op[Any], name: str) -> Any:
    """The right derivative by the input `name`."""
    return dict(op.vjps)[op.parameters.index(name)].derivative


def _like(vjp: VJP, derivative: Callable[..., Any]) -> VJP:
    """A VJP that needs the same."""
    other = VJP.__new__(VJP)
    other.names, other.slots, other.derivative = vjp.names, vjp.slots, derivative
    return other


@contextmanager
def _vjps(op: Op[Any], vjps: list[tuple[int, VJP]]) -> Iterator[None]:
    before = op.vjps
    op.set_vjps(vjps)
    try:
        yield
    finally:
        op.set_vjps(before)


# --------------------------------------------------------------------------------------------------
# Anywhere
# --------------------------------------------------------------------------------------------------


@contextmanager
def replaced(owners: Sequence[Any], name: str, value: Any) -> Iterator[None]:
    """Another value for the attribute `name` of each of `owners`, which have the same one."""
    before = getattr(owners[0], name)
    try:
        for owner in owners:
            setattr(owner, name, value)
        yield
    finally:
        for owner in owners:
            setattr(owner, name, before)


@contextmanager
def edited(function: Any, *edits: tuple[str, str]) -> Iterator[None]:
    """A function with parts of its source replaced, for all who hold it.

    Raises:
        AssertionError: if a part is not there exactly once: the function has been rewritten, and
            the mutant must be too.
    """
    source = textwrap.dedent(inspect.getsource(function))
    source = source[source.index("def ") :]  # without decorators
    for old, new in edits:
        assert source.count(old) == 1, f"{function.__qualname__} has no single {old!r}"
        source = source.replace(old, new)
    namespace: dict[str, Any] = dict(function.__globals__)
    exec(compile("from __future__ import annotations\n" + source, "<a mutant>", "exec"), namespace)
    before, state = function.__code__, mode.state
    function.__code__ = namespace[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = before
        mode.state = state
