"""Containers of tensors: taken apart into leaves, and put together again around others.

A container is a dict, a list, a tuple, a named tuple, a dataclass instance or an `Owner`, such as a
Module with its trainable parameters; all else is a leaf. None has no leaves, and stays where it is.

    leaves = []
    structure = flatten({"layers": [a, b]}, "argument 0", leaves)   # paths: ["layers"][0], ...
    rebuild(structure, [1, 2])                                      # {"layers": [1, 2]}

- A dict keeps the order and the kind that it has (`defaultdict`, ...).
- A dataclass is rebuilt by setting its fields alone. Neither `__init__` nor `__post_init__` runs,
  because they may compute with the leaves or refuse them, and an attribute that is no field is
  missing from the result, where a stale value would be worse. A field with
  `metadata={"static": True}` is no leaf: it keeps its value.
- An Owner keeps its parameters, so what is rebuilt instead of it is a dict by their names.
- The same object twice makes two leaves, as two arguments of a function would be.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple


class Owner:
    """Base class of what has parameters of its own: those that require a gradient are leaves."""

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """List all parameters with their names."""
        raise NotImplementedError


class Leaf(NamedTuple):
    """A leaf, where it was found, and whether it stays there, as the parameter of an Owner does."""

    value: Any
    path: str
    stays: bool = False


class Container(NamedTuple):
    """The structure of a container: what it is, what is inside, and how to make another one."""

    kind: type
    contents: dict[Any, Any]  # structures, by index, key or name
    make: Callable[[dict[Any, Any]], Any]
    owner: Owner | None


# The index of a leaf, None, or a container of structures.
Structure = int | None | Container


def flatten(value: Any, path: str, leaves: list[Leaf], around: tuple[Any, ...] = ()) -> Structure:
    """Append the leaves in `value`, which is at `path`, to `leaves`, and return the structure.

    `around` are the containers that it is in.

    Raises:
        ValueError: if a container contains itself.
    """
    if value is None:
        return None
    opened = _open(value)
    if opened is None:
        leaves.append(Leaf(value, path, bool(around) and isinstance(around[-1], Owner)))
        return len(leaves) - 1
    if any(value is outer for outer in around):
        raise ValueError(f"{path} is a container that contains itself, so it has no end")
    kind, items, _, owner = opened
    contents = {
        key: flatten(item, _at(path, key, kind, owner), leaves, (*around, value))
        for key, item in items.items()
    }
    return opened._replace(contents=contents)


def rebuild(structure: Structure, leaves: Sequence[Any], owners: bool = False) -> Any:
    """Return the containers around `leaves`; with `owners`, the Owners themselves, as they are."""
    if not isinstance(structure, Container):
        return None if structure is None else leaves[structure]
    if owners and structure.owner is not None:
        return structure.owner
    contents = structure.contents
    return structure.make({key: rebuild(contents[key], leaves, owners) for key in contents})


def flatten_as(structure: Structure, value: Any, role: str) -> list[Leaf]:
    """Return the leaves of a value that has a given structure; a dict may have another order.

    Raises:
        TypeError: if there is another container.
        ValueError: if there are other keys, or another length.
    """
    if isinstance(structure, int):
        return [Leaf(value, role)]
    kind, items, *_ = _open(value) or Container(type(value), {}, dict, None)
    wanted = type(None) if structure is None else structure.kind
    if kind is not wanted:
        raise TypeError(f"{role} must be of type {wanted.__name__}, not {kind.__name__}")
    if structure is None:
        return []
    if items.keys() != structure.contents.keys():
        raise ValueError(f"{role} must have {list(structure.contents)} inside, not {list(items)}")
    found = []
    for key, child in structure.contents.items():
        found += flatten_as(child, items[key], _at(role, key, kind, structure.owner))
    return found


def is_container(value: Any) -> bool:
    """Return whether something is a container, and so no leaf."""
    return _open(value) is not None


def _open(value: Any) -> Container | None:
    """Return what is directly inside a container; None for a leaf."""
    kind: Any = type(value)
    if kind is list or kind is tuple:
        return Container(kind, dict(enumerate(value)), lambda new: kind(new.values()), None)
    if isinstance(value, dict):
        empty = copy.copy(value) if kind is not dict else {}  # with a defaultdict's factory, ...
        empty.clear()
        return Container(dict, value, lambda new: _filled(copy.copy(empty), new), None)
    if isinstance(value, Owner):
        parameters = {name: p for name, p in value.named_parameters() if p.requires_grad}
        return Container(dict, parameters, dict, value)
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        named = dict(zip(kind._fields, value, strict=True))
        return Container(kind, named, lambda new: kind._make(new.values()), None)
    if not hasattr(kind, "__dataclass_fields__"):
        return None
    fields: dict[str, Any] = {}
    static: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        (static if field.metadata.get("static") else fields)[field.name] = getattr(
            value, field.name
        )
    return Container(kind, fields, lambda new: _instance(kind, static | new), None)


def _filled(mapping: Any, items: dict[Any, Any]) -> Any:
    mapping.update(items)
    return mapping


def _instance(cls: type, attributes: dict[str, Any]) -> Any:
    """Make a dataclass instance by its attributes alone, frozen or not."""
    instance: Any = object.__new__(cls)
    for name, value in attributes.items():
        object.__setattr__(instance, name, value)
    return instance


def _at(path: str, key: Any, kind: type, owner: Owner | None) -> str:
    """Return the path of what is inside: `.weight`, `["weight"]` or `[0]`."""
    if owner is not None or kind not in (dict, list, tuple):
        return f"{path}.{key}"
    return f'{path}["{key}"]' if isinstance(key, str) else f"{path}[{key!r}]"
