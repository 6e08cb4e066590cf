"""Containers of tensors: flatten a container to its leaves, and rebuild it with other leaves.

A container is a dict, a list, a tuple, a named tuple, a dataclass instance or an `Owner`, such as a
Module with its trainable parameters. Every other value is a leaf, except None, which has no leaves
and stays in its place.

    leaves = []
    structure = flatten({"layers": [a, b]}, "argument 0", leaves)   # paths: ["layers"][0], ...
    rebuild(structure, [1, 2])                                      # {"layers": [1, 2]}

- A dict keeps its order and its type (`defaultdict`, ...). One whose instance has attributes can be
  flattened, but not rebuilt: they would keep their old values beside the new items.
- A dataclass is rebuilt by setting only its fields. `__init__` and `__post_init__` do not run,
  because they may compute with the leaves or reject them. Other attributes are missing in the
  result, because an old value could be wrong. A field with `metadata={"static": True}` is not a
  leaf: it keeps its value.
- An Owner is not rebuilt: the result has a dict by parameter names in its place.
- If an object occurs twice, it makes two leaves, like two arguments of a function.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple


class Owner:
    """Base class of objects with parameters. The parameters that require a gradient are leaves."""

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """List all parameters with their names."""
        raise NotImplementedError


class Leaf(NamedTuple):
    """A leaf, its path, and whether it is a parameter of an Owner, which stays in its place."""

    value: Any
    path: str
    stays: bool = False


class Container(NamedTuple):
    """The structure of a container: its type, its contents, and how to make a new one."""

    kind: type
    contents: dict[Any, Any]  # the structures inside, by index, key or name
    make: Callable[[dict[Any, Any]], Any]
    owner: Owner | None


# The index of a leaf, None, or a container of structures.
Structure = int | None | Container


def flatten(value: Any, path: str, leaves: list[Leaf], around: tuple[Any, ...] = ()) -> Structure:
    """Append the leaves in `value` to `leaves`, and return the structure of `value`.

    `path` is the path of `value`, and `around` are the containers that it is in.

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
    kind, items, make, owner = opened
    if isinstance(value, dict) and getattr(value, "__dict__", None):
        make = partial(_refuse, f"{path} is of type {type(value).__name__}", ", ".join(vars(value)))
    contents = {
        key: flatten(item, _at(path, key, kind, owner), leaves, (*around, value))
        for key, item in items.items()
    }
    return Container(kind, contents, make, owner)


def rebuild(structure: Structure, leaves: Sequence[Any], owners: bool = False) -> Any:
    """Return containers with this structure and these leaves; with `owners`, keep Owners.

    Raises:
        TypeError: for a dict with attributes.
    """
    if not isinstance(structure, Container):
        return None if structure is None else leaves[structure]
    if owners and structure.owner is not None:
        return structure.owner
    contents = structure.contents
    return structure.make({key: rebuild(contents[key], leaves, owners) for key in contents})


def flatten_as(structure: Structure, value: Any, role: str) -> list[Leaf]:
    """Return the leaves of a value that must have a given structure; the order of dicts may differ.

    Raises:
        TypeError: if a container has another type.
        ValueError: if keys or lengths differ.
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
    """Return whether a value is a container."""
    return _open(value) is not None


def _open(value: Any) -> Container | None:
    """Return a container with its direct contents; None for a leaf."""
    kind: Any = type(value)
    made_in_c = isinstance(value, tuple) and hasattr(kind, "n_sequence_fields")  # a named tuple
    if kind is list or kind is tuple or made_in_c:
        return Container(kind, dict(enumerate(value)), lambda new: kind(new.values()), None)
    if isinstance(value, dict):
        empty = copy.copy(value) if kind is not dict else {}  # keeps a defaultdict's factory
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
        kept = static if field.metadata.get("static") else fields
        kept[field.name] = getattr(value, field.name)
    return Container(kind, fields, lambda new: _instance(kind, static | new), None)


def _refuse(what: str, attributes: str, items: dict[Any, Any]) -> Any:
    """Raise a TypeError, because a dict with attributes cannot be rebuilt."""
    raise TypeError(
        f"{what}, a dict with attributes ({attributes:.80}), which would keep their old values "
        f"beside new items; use a plain dict or a dataclass"
    )


def _filled(mapping: Any, items: dict[Any, Any]) -> Any:
    mapping.update(items)
    return mapping


def _instance(cls: type, attributes: dict[str, Any]) -> Any:
    """Make a dataclass instance, also a frozen one, by setting its attributes only."""
    instance: Any = object.__new__(cls)
    for name, value in attributes.items():
        object.__setattr__(instance, name, value)
    return instance


def _at(path: str, key: Any, kind: type, owner: Owner | None) -> str:
    """Return the path of an element: `path` plus `.weight`, `["weight"]` or `[0]`."""
    if owner is not None or (kind is not dict and isinstance(key, str)):
        return f"{path}.{key}"
    return f'{path}["{key}"]' if isinstance(key, str) else f"{path}[{key!r}]"
