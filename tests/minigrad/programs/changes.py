"""Change one thing in a captured training and in an equal eager one, and compare all bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
import pytest

import minigrad as mg
from minigrad.nn import Module, Parameter
from minigrad.optim import EMA, LRScheduler, Optimizer

BEFORE, AFTER = 3, 3  # a program is there after two steps, and runs once before the next change


@dataclass
class Training:
    """A step, the batches that it is called with in turn, and what it consists of, by name."""

    step: Callable[..., Any]
    batches: list[Any]
    parts: dict[str, Any]
    captured: Any = None  # the same step as a program with a `source`, unless capture makes one
    patch: Any = None  # a MonkeyPatch, for changes of what all trainings share

    def found(self) -> dict[str, Any]:
        """Everything whose attributes or elements can be changed, by its path."""
        found: dict[str, Any] = {}
        seen: set[int] = set()
        for name, part in self.parts.items():
            _find(part, name, found, seen)
        return found

    def state(self) -> dict[str, bytes]:
        """The bits of all that a training changes."""
        bits = {}
        for path, value in self.found().items():
            if isinstance(value, mg.Tensor):
                bits[path] = _bits(value)
            elif isinstance(value, (Optimizer, EMA, LRScheduler)):
                bits[path] = _bits(_state_of(value))
            elif isinstance(value, np.random.Generator):
                bits[path] = repr(value.bit_generator.state).encode()
        return bits


@dataclass
class Change:
    """Something to do to a training between two steps."""

    name: str
    do: Callable[[Training], None]


def outcomes(build: Callable[[], Training], change: Change | None, captured: bool) -> list[Any]:
    """What the steps of a training return or raise, and its bits at the end."""
    with pytest.MonkeyPatch.context() as patch:
        mg.manual_seed(7)
        training = build()
        training.patch = patch
        return _run(training, change, captured)


def _run(training: Training, change: Change | None, captured: bool) -> list[Any]:
    step = training.captured or mg.capture(training.step) if captured else training.step
    results: list[Any] = []
    for k in range(BEFORE + AFTER):
        if k == BEFORE:
            if captured:
                assert step.source  # or the change would be one of an eager training
            try:
                if change is not None:
                    change.do(training)
            except Exception as error:  # nobody can make this change
                return [(type(error), str(error))]
        try:
            results.append(_bits(step(*training.batches[k % len(training.batches)])))
        except Exception as error:
            if k < BEFORE:
                raise
            results.append((type(error), str(error)))
            break
    return [*results, training.state(), mg.random.generator().bit_generator.state]


def difference(build: Callable[[], Training], change: Change | None) -> str:
    """How a captured training differs from an eager one, if one thing is changed in both."""
    eager = outcomes(build, change, captured=False)
    if isinstance(eager[0], tuple):  # nobody can make this change
        return ""
    program = outcomes(build, change, captured=True)
    for k, (a, b) in enumerate(zip(eager, program, strict=False)):
        if isinstance(a, tuple) or isinstance(b, tuple):
            if isinstance(a, tuple) and isinstance(b, tuple) and a[0] is b[0]:
                return ""
            return f"call {k}: eager {a!r:.90}, captured {b!r:.400}"
        if isinstance(a, dict):
            wrong = [name for name in a if a[name] != b[name]]
            if wrong:
                return f"in the end: {', '.join(wrong)}"
        elif a != b:
            return f"call {k}: another result"
    return ""


def differences(build: Callable[[], Training], changes: Iterable[Change]) -> dict[str, str]:
    """How captured trainings differ from eager ones, by the name of what was changed."""
    assert difference(build, None) == ""
    found = {change.name: difference(build, change) for change in changes}
    assert found
    return {name: text for name, text in found.items() if text}


# --------------------------------------------------------------------------------------------------
# All changes of a training
# --------------------------------------------------------------------------------------------------


def changes_of(build: Callable[[], Training]) -> Iterator[Change]:
    """Every attribute and element of every part, with each value that it may be given."""
    for path, value in build().found().items():
        if isinstance(value, Module):
            yield _change(f"{path}.eval()", path, lambda module: module.eval())
            yield _change(f"{path}.freeze()", path, lambda module: module.freeze())
            yield _change(f"{path}.astype()", path, lambda module: module.astype(np.float64))
        if isinstance(value, mg.Tensor):
            for label, write in _WRITES.items():
                yield _change(f"{path} {label}", path, write)
        if isinstance(value, list):
            for label, edit in _EDITS.items():
                yield _change(f"{path}.{label}", path, edit)
        keys = [*value] if isinstance(value, dict) else [*_attributes(value)]
        for key in keys:
            now = value[key] if isinstance(value, dict) else getattr(value, key)
            for label, make in _others(str(key), now):
                yield _change(f"{path}.{key} = {label}", path, _setting(key, make))


def _change(name: str, path: str, do: Callable[[Any], Any]) -> Change:
    return Change(name, lambda training: do(training.found()[path]))


def _setting(key: Any, make: Callable[[Any], Any]) -> Callable[[Any], None]:
    def do(owner: Any) -> None:
        if isinstance(owner, dict):
            owner[key] = make(owner[key])
        else:
            setattr(owner, key, make(getattr(owner, key)))

    return do


def _attributes(value: Any) -> dict[str, Any]:
    attributes = dict(getattr(value, "__dict__", {}))
    if isinstance(value, Module):
        attributes.setdefault("training", value.training)
    return attributes


def _find(value: Any, path: str, found: dict[str, Any], seen: set[int]) -> None:
    plain = (bool, int, float, str, type, FunctionType, np.ndarray, type(None))
    if id(value) in seen or isinstance(value, plain) or not _is_ours(value):
        return
    seen.add(id(value))
    found[path] = value
    if isinstance(value, mg.Tensor):
        return
    if isinstance(value, dict):
        children: Any = value.items()
    elif isinstance(value, (list, tuple)):
        children = enumerate(value)
    else:
        children = [(k, v) for k, v in _attributes(value).items() if k not in _INNER]
    for key, child in list(children):
        if isinstance(key, (str, int)):
            _find(child, f"{path}.{key}", found, seen)


def _is_ours(value: Any) -> bool:
    if isinstance(value, (dict, list, tuple, mg.Tensor, np.random.Generator)):
        return True
    module = type(value).__module__
    return module.startswith(("minigrad.nn", "minigrad.optim", "lora.", "tests."))


_INNER = {
    "_states",
    "_last",
    "averages",
    "_frozen",
    "_prepacked",
    "_seen",
    "defaults",
}


def _raw(tensor: Any) -> None:
    tensor.data[...] = tensor.data * 1.5


def _data(tensor: Any) -> None:
    tensor.data = tensor.data * np.asarray(0.5, tensor.dtype)


_WRITES: dict[str, Callable[[Any], Any]] = {
    "data = other": _data,
    "copy_(other)": lambda tensor: tensor.copy_(tensor.data * 0.5),
    "data[...] = other": _raw,
    "switched": lambda tensor: tensor.requires_grad_(not tensor.requires_grad),
    "switched twice": lambda tensor: tensor.requires_grad_(not tensor.requires_grad).requires_grad_(
        not tensor.requires_grad
    ),
}

_EDITS: dict[str, Callable[[Any], Any]] = {
    "append": lambda values: values.append(copy.deepcopy(values[-1])),
    "pop": lambda values: values.pop(),
    "reverse": lambda values: values.reverse(),
    "[0] = [-1]": lambda values: values.__setitem__(0, values[-1]),
}

_TEXTS = {"reduction": "sum", "approximate": "tanh"}  # others are only printed
_NONES: dict[str, Any] = {
    "rng": lambda _: np.random.default_rng(5),
    "eps": lambda _: 1e-2,
    "padding_idx": lambda _: 1,
    "bias": lambda _: None,
}


def _others(name: str, value: Any) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Other values that something may have instead of a value of this kind."""
    if isinstance(value, bool):
        yield "not", lambda now: not now
    elif isinstance(value, int):
        yield "one more", lambda now: now + 1
    elif isinstance(value, float):
        yield "half", lambda now: now / 2
        yield "0", lambda now: 0.0
    elif isinstance(value, str) and name in _TEXTS:
        yield _TEXTS[name], lambda now: _TEXTS[name]
    elif isinstance(value, Parameter):
        yield "a new one", lambda now: Parameter(now.data * 0.5, now.requires_grad)
        yield "None", lambda now: None
    elif isinstance(value, np.random.Generator):
        yield "another", _NONES["rng"]
        yield "None", lambda now: None
    elif isinstance(value, Module):
        yield "a copy", _moved_copy
        yield "a function", lambda now: mg.sin
    elif isinstance(value, FunctionType) or type(value).__name__ == "Op":
        yield "tanh", lambda now: mg.tanh
        yield "a lambda", lambda now: lambda x: mg.sin(x) * 0.5
    elif isinstance(value, tuple) and value and all(isinstance(v, float) for v in value):
        yield "halves", lambda now: tuple(v / 2 for v in now)
    elif isinstance(value, np.ndarray):
        yield "another", lambda now: now * 2
    elif value is None and name in _NONES:
        yield "a value", _NONES[name]


def _state_of(value: Any) -> Any:
    try:
        return value.state_dict()
    except KeyError:  # a state of a parameter that is in no group any more
        return value.param_groups


def _moved_copy(module: Any) -> Any:
    made = copy.deepcopy(module)
    for parameter in made.parameters():
        parameter.data = parameter.data * np.asarray(0.5, parameter.dtype)
    return made


def _bits(value: Any) -> Any:
    """A value as bytes, or as a list of these for several."""
    if isinstance(value, mg.Tensor):
        return _bits(value.detach().data)
    if isinstance(value, np.ndarray):
        return repr((value.shape, str(value.dtype))).encode() + value.tobytes()
    if isinstance(value, dict):
        return [(key, _bits(v)) for key, v in value.items()]
    if isinstance(value, (list, tuple)):
        return [_bits(v) for v in value]
    return repr(value).encode()
