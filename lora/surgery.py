"""Putting modules and parameters in the place of others, wherever a model holds them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from minigrad.nn import Module, Parameter


def replace(model: Module, new: Mapping[int, Module | Parameter]) -> None:
    """Put modules or parameters in the place of others, which are given by id.

    Attributes, lists and dicts are changed in place; a tuple of such gives its place to another.
    """
    for module in list(model.modules()) if new else ():
        for name, value in vars(module).items():
            vars(module)[name] = _replaced(value, new)


def _replaced(value: Any, new: Mapping[int, Module | Parameter]) -> Any:
    if isinstance(value, (Module, Parameter)):
        return new.get(id(value), value)
    if isinstance(value, list):
        value[:] = [_replaced(item, new) for item in value]
    elif isinstance(value, dict):
        value.update({key: _replaced(item, new) for key, item in value.items()})
    elif isinstance(value, tuple):
        items = [_replaced(item, new) for item in value]
        if all(map(operator.is_, items, value)):
            return value
        return value._make(items) if hasattr(value, "_make") else tuple(items)
    return value


def places(model: Module) -> dict[int, list[str]]:
    """Where each parameter is held, by its id: in every module, under the first name of each."""
    found: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        for name, value in module._contents():
            _note(value, f"{prefix}.{name}" if prefix else name, found)
    return found


def _note(value: Any, name: str, found: dict[int, list[str]]) -> None:
    if isinstance(value, Parameter):
        found.setdefault(id(value), []).append(name)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _note(item, f"{name}.{i}", found)
    elif isinstance(value, dict):
        for key, item in value.items():
            _note(item, f"{name}.{key}", found)
