"""Exchanging modules and parameters of a model for others, wherever the model refers to them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from minigrad.nn import Module, Parameter


def replace(model: Module, new: Mapping[int, Module | Parameter]) -> None:
    """Replace modules or parameters, given by id.

    Attributes, lists and dicts are changed in place; a tuple of such is replaced by another.
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


def parameter_names(model: Module) -> dict[int, list[str]]:
    """List all names of each parameter, by its id: one in every module that refers to it."""
    found: dict[int, list[str]] = {}

    def note(value: Any, name: str) -> None:
        if isinstance(value, Parameter):
            found.setdefault(id(value), []).append(name)
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                note(item, f"{name}.{i}")
        elif isinstance(value, dict):
            for key, item in value.items():
                note(item, f"{name}.{key}")

    for prefix, module in model.named_modules():
        for name, value in module._contents():
            note(value, f"{prefix}.{name}" if prefix else name)
    return found
