"""What a function reads besides its arguments, and whether any of these values has changed.

In the program of a captured step, the attributes of modules, the options of layers and the memory
of parameters are constants. So before each run, they are compared with their values at the time of
the recording, by identity, and numbers and texts by value: the variables around the function, the
attributes of the objects in them, the elements of lists and dicts, and so on. A thousand
comparisons take about 20 microseconds. For classes, Python modules and the owner of a method, only
attributes that the code names are compared.

A program reads some values again in each run, so they are not compared: the elements of arrays, the
options and states of optimisers, and the states of schedulers, averages and random generators. Only
small plain arrays are compared by their elements, because the step may have computed with them in
numpy; those of the program are not, after they have changed several times with no effect on it.
"""

from __future__ import annotations

import dis
import io
import pickle
import random as stdlib_random
import re
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from enum import Enum
from functools import cached_property, partial, partialmethod
from importlib.util import resolve_name
from inspect import iscode
from itertools import chain, count
from operator import attrgetter, call, is_
from types import (
    BuiltinMethodType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, cast
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from minigrad.checks import are_same
from minigrad.core.node import Node
from minigrad.core.tensor import Tensor
from minigrad.nn import Module
from minigrad.optim import EMA, LRScheduler, Optimizer
from minigrad.random import states_of_global_generators
from minigrad.readonly import owner_of

Settable = Optimizer | LRScheduler | EMA
GENERATORS = np.random.Generator, np.random.RandomState, stdlib_random.Random

FOREIGN = {*sys.stdlib_module_names, "numpy", "numba", "llvmlite"}  # whose objects are not compared
LIBRARY = {"minigrad", "lora"}
# Methods of optimisers and schedulers that lines of a program call again, and attributes that these
# lines change. Of the attributes, a program may use the arrays.
_IN_LINES = {"check_options", "check_states", "check_value", "lr", "state_names"}
_IN_LINES |= {"update", "update_all"}
_READ_AGAIN = {"param_groups", "averages", "_states", "_last"}
# FOREIGN, but their objects are walked in full
_CONTAINERS = {"argparse", "collections", "configparser", "types"}
_IMPLICIT = "forward", "function", "__getattr__"  # called without being named
_CONSTRUCTORS = {"__init__", "__new__", "__post_init__"}  # of classes that the code can reach
_ARGUMENTS = {"defaults", "kwdefaults", "args", "keywords"}  # of functions and partials
_NOT_IN_STEPS = {"__repr__", "__del__", "__reduce__", "__reduce_ex__", "__getstate__"}
_NOT_IN_STEPS |= {"__annotate_func__", "__annotate__"}  # of classes with annotations in Python 3.14
_INSTALLED = re.compile("(site|dist)-packages")  # folders of packages that are mostly not read
# Between lists that may grow or shrink, so that no element of one can pass for one of the next.
_END = object()
_LARGEST = 1 << 16  # bytes of a plain array whose elements are compared before each run
_LARGEST_SUMMED = 1 << 26  # bytes; in larger arrays, writes by the step are not noticed
# Caches, the engine, counters, and records that only change together with layers.
_NOT_COMPARED: tuple[str, ...] = ("minigrad.kernels", "minigrad.core", "minigrad.programs")
_NOT_COMPARED += ("minigrad.distributed", "minigrad.training.streams")
_NOT_COMPARED += ("lora.attachment", "lora.frozen")


class Surroundings:
    """Everything that a function reads besides its arguments.

    Args:
        function: the function.
        classes: the classes of its arguments, whose methods it may call.
    """

    def __init__(self, function: Callable[..., Any], classes: Iterable[type] = ()) -> None:
        # The function, the user's functions that it calls, and the forwards of the user's modules.
        self.functions: list[FunctionType] = []
        self.tensors: dict[str, Tensor] = {}  # by the names of parameters in modules, or by paths
        self.numbers: set[float] = set()  # numbers in values, and in the code of the functions
        self.settable: dict[str, Settable] = {}  # by paths
        self._seen: dict[int, Any] = {}  # by id; it keeps the objects alive, so ids stay theirs
        self._names: dict[int, str] = {}  # names of parameters in modules, by id
        self._reads: list[Callable[[], Iterable[Any]]] = []  # functions that read compared values
        self._paths: list[tuple[str, Sequence[Any]]] = []  # for each: its path, and names of values
        self._owners: list[tuple[str, Any]] = []  # objects, the names of whose attributes count
        self._plain: dict[str, NDArray[Any]] = {}  # arrays that are not in a Tensor, by path
        self._words = {*_IMPLICIT}  # all names and texts in the code of the functions
        self._callable: set[type] = set()  # classes that the functions may make objects of
        self._scopes: list[tuple[str, Any]] = []  # objects of which only named attributes count
        self._sources: list[Any] = []  # sources of random numbers
        self._iterators: list[str] = []  # the paths of iterators
        # The packages of the function, also in a partial, and of modules: these are always read.
        whole = getattr(function, "func", function)
        self._packages = {package_of(getattr(whole, "__module__", None))}
        self._walk(function, "")
        self._walk_all("", [(each.__name__, each) for each in classes])
        self._walk_scopes()
        own = [(path, each) for path, each in self._owners if not isinstance(each, type)]
        names = [_joined(path, "__dict__") for path, _ in own]
        dicts = partial(map, attrgetter("__dict__"), [each for _, each in own])
        self._compare("", names, dicts, False)
        self._values = [list(read()) for read in self._reads]
        self._all_values = [*chain.from_iterable(self._values)]
        self._dicts = [vars(owner) for _, owner in self._owners]
        self._attributes = [*map(list, self._dicts)]
        self.add({})
        self.leave_out(self._arrays)
        self._sums = {path: (x, crc32(x.tobytes())) for path, x in self._plain.items()}
        self._small = {path: x for path, x in self._plain.items() if x.nbytes <= _LARGEST}
        self._compare_elements(self._small)

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Compare further tensors."""
        self.tensors |= tensors
        self._found = list(self.tensors.values())
        self._arrays = [tensor._data for tensor in self._found]
        self._nodes = [tensor.node for tensor in self._found]
        self._leaves = [node for node in self._nodes if node is not None]
        self._hooks = [leaf.hooks for leaf in self._leaves]

    def leave_out(self, arrays: Iterable[Any]) -> None:
        """Do not compare the elements of these arrays, because a program reads them again."""
        owners = {id(owner_of(array)) for array in arrays if isinstance(array, np.ndarray)}
        plain = self._plain.items()
        self._plain = {path: array for path, array in plain if id(owner_of(array)) not in owners}

    def _compare_elements(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Compare the elements of these arrays with those of now."""
        self._plain = arrays
        self._bytes = {path: x.tobytes() for path, x in arrays.items()}

    def compare_all(self) -> None:
        """Compare the elements of all small plain arrays from now on."""
        self._compare_elements(self._small)

    def accept_elements(self, arrays: Iterable[Any]) -> bool:
        """If only elements of these arrays have changed, accept the new ones, and return True."""
        compared = self._plain
        self.leave_out(arrays)
        is_unchanged, self._plain = self.is_unchanged(), compared
        if is_unchanged:
            self._compare_elements(compared)
        return is_unchanged

    def is_unchanged(self) -> bool:
        """Return whether nothing has changed."""
        return (
            [*map(list, self._dicts)] == self._attributes
            and self.has_same_memory()
            and are_same([tensor.node for tensor in self._found], self._nodes)
            and are_same([leaf.hooks for leaf in self._leaves], self._hooks)
            and all(x.tobytes() == self._bytes[path] for path, x in self._plain.items())
            and self._has_same_values()
        )

    def _has_same_values(self) -> bool:
        """Return whether all compared values are the same objects, or equal numbers and texts."""
        if all(map(is_, chain.from_iterable(map(call, self._reads)), self._all_values)):
            return True
        values = [*chain.from_iterable(map(call, self._reads))]
        pairs = zip(values, self._all_values, strict=False)
        if not all(_is_equal(a, b) for a, b in pairs if a is not b):
            return False
        self._all_values = values  # so that the next comparison is a fast one
        return True

    def has_same_memory(self) -> bool:
        """Return whether the tensors still have the same memory."""
        return are_same([tensor._data for tensor in self._found], self._arrays)

    def changes(self) -> Iterator[str]:
        """List the paths of the values that have changed."""
        for (path, names), read, before in zip(self._paths, self._reads, self._values, strict=True):
            now = list(read())
            if len(now) == len(before) == len(names):
                values = zip(names, now, before, strict=True)
                yield from (_joined(path, name) for name, a, b in values if not _is_equal(a, b))
            elif not are_same(now, before):
                yield path
        for (path, _), now, before in zip(self._owners, self._dicts, self._attributes, strict=True):
            if [*now] != before:
                yield from (_joined(path, name) for name in {*now} ^ {*before} or {*now})
        states = zip(self.tensors.items(), self._arrays, self._nodes, strict=True)
        yield from (path for (path, t), x, n in states if t._data is not x or t.node is not n)
        yield from (path for path, x in self._plain.items() if x.tobytes() != self._bytes[path])

    def state(self) -> tuple[dict[str, Any], Any]:
        """Return the settings of optimisers, schedulers and averages, and states of generators.

        A program reads them again in each run, and only functions that its lines call may change
        them.
        """
        settings = {path: _settings_of(each) for path, each in self.settable.items()}
        states: list[Any] = [pickle.dumps(source.__getstate__()) for source in self._sources]
        if "random" in self._words:
            states += states_of_global_generators()
        return settings, states

    def iterators(self) -> Iterator[str]:
        """List the paths of the iterators that the functions use."""
        for path in self._iterators:
            names = re.sub(r"(\.\d+)+$", "", path).split(".")
            if names[-1] in self._words or _ARGUMENTS.intersection(names[-2:]):
                yield path

    def written(self) -> list[str]:
        """Return the paths of plain arrays that were written to since the recording began."""
        return [path for path, (x, before) in self._sums.items() if crc32(x.tobytes()) != before]

    def with_gradients(self) -> list[Node]:
        """Return the leaves that have a gradient."""
        return [leaf for leaf in self._leaves if leaf.grad is not None]

    # ----------------------------------------------------------------------------------------------
    # The walk
    # ----------------------------------------------------------------------------------------------

    def _compare(
        self, path: str, names: Sequence[Any], read: Callable[[], Iterable[Any]], varies: bool
    ) -> None:
        """Compare from now on the values that `read` returns; `names` are their names at `path`.

        `varies` says whether there may be more of them, or fewer, at another time.
        """
        self._paths.append((path, names))
        self._reads.append(read)
        if varies:
            self._paths.append(("", ()))
            self._reads.append(partial(iter, [_END]))

    def _enter(
        self,
        path: str,
        names: Sequence[Any],
        read: Callable[[], Iterable[Any]],
        varies: bool = False,
    ) -> None:
        """Compare the values that `read` returns, and walk through each of them."""
        self._compare(path, names, read, varies)
        self._walk_all(path, zip(names, list(read()), strict=True))

    def _walk_all(self, path: str, children: Iterable[tuple[Any, Any]]) -> None:
        for name, child in children:
            self._walk(child, _joined(path, name))

    def _walk(self, value: Any, path: str, is_all: bool = True) -> None:
        """Walk through a value; if not `is_all`, only attributes that the functions name."""
        if isinstance(value, (int, float)):
            self.numbers.add(value)
        elif isinstance(value, type):
            self._callable.update(value.__mro__)
            self._walk_class(value, path)
            return
        if type(value) in (bool, int, float, str) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        is_scalar = isinstance(value, (int, float, str, Enum))
        if is_scalar or isinstance(value, (Tensor, list, tuple, dict)):
            self._walk_class(type(value), path)
            if hasattr(value, "__dict__") and not (is_scalar and is_known(type(value).__module__)):
                self._scopes.append((path, value))  # it may have attributes besides its elements
        if is_scalar:
            return
        if isinstance(value, Tensor):
            name = self._names.get(id(value), path)
            self.tensors[_unused(name, self.tensors)] = value
        elif isinstance(value, np.ndarray):
            if value.dtype == object:
                self._enter(path, range(value.size), lambda: value.ravel().tolist())
            elif value.nbytes <= _LARGEST_SUMMED:
                self._plain[_unused(path, self._plain)] = value
        elif isinstance(value, FunctionType):
            self._walk_function(value, path)
        elif isinstance(value, MethodType):
            if isinstance(value.__func__, FunctionType):  # not an op or a partial
                self._words.update(*(code.co_names for code in codes(value.__func__)))
            self._walk(value.__func__, path)
            self._walk(value.__self__, path, isinstance(value.__self__, Module))
        elif isinstance(value, BuiltinMethodType):
            self._walk(value.__self__, path)
        elif isinstance(value, weakref.ref):
            self._walk(value(), path)
        elif isinstance(value, GENERATORS):
            if not isinstance(value, stdlib_random.SystemRandom):  # which has no state
                self._sources.append(getattr(value, "bit_generator", value))
        elif isinstance(value, Iterator) and not isinstance(value, io.IOBase):
            self._iterators.append(path)
        elif isinstance(
            value, (property, staticmethod, classmethod, cached_property, partial, partialmethod)
        ):
            for name in ("fget", "__func__", "func"):
                self._walk(getattr(value, name, None), path)
            for name in ("args", "keywords"):
                self._walk(getattr(value, name, None), _joined(path, name))
        elif isinstance(value, (tuple, frozenset)):  # they cannot change
            self._walk_all(path, enumerate(value))
        elif isinstance(value, (list, set, deque, MappingView)):
            self._enter(path, range(len(value)), partial(iter, cast(Any, value)), True)
        elif isinstance(value, (dict, MappingProxyType)):
            self._enter(path, [*value, *value], lambda: chain(value.keys(), value.values()), True)
        elif isinstance(value, Settable):
            self._walk_class(type(value), path)
            self._scopes.append((path, value))
            self.settable[_unused(path, self.settable)] = value
            if isinstance(value, Optimizer):
                self._compare(path, (), partial(_groups_and_members, value), True)
        elif isinstance(value, ModuleType):
            if value in (stdlib_random, np.random):
                self._words.add("random")  # the code may know the module by another name
            if not is_known(value.__name__):
                self._scopes.append((path, value))
        else:
            self._walk_object(value, path, is_all)

    def _walk_class(self, cls: type, path: str) -> None:
        """Walk through the attributes of a class and of its bases."""
        if id(cls) not in self._seen:
            self._seen[id(cls)] = cls
            if not is_known(cls.__module__):
                self._scopes.append((path, cls))
                for base in cls.__bases__:
                    self._walk_class(base, path)

    def _walk_object(self, value: Any, path: str, is_all: bool) -> None:
        """Walk through the attributes of an object, and through its class."""
        attributes = getattr(value, "__dict__", None)
        self._walk((attributes or {}).get("__wrapped__"), path)
        module = type(value).__module__
        if module.startswith(_NOT_COMPARED):
            return
        self._walk_class(type(value), path)
        if isinstance(value, Module):
            self._packages.add(package_of(module))
            for name, parameter in value.named_parameters(path):
                self._names.setdefault(id(parameter), name)
        is_foreign = package_of(module) in FOREIGN and module not in _CONTAINERS
        members = [member for cls in type(value).__mro__ for member in vars(cls).items()]
        slots = [name for name, kind in members if isinstance(kind, MemberDescriptorType)]
        slots = sorted({*slots} - {"__dict__"})  # whose values are compared below
        if slots and not is_foreign:
            self._enter(path, slots, lambda: [getattr(value, name, None) for name in slots])
        if attributes is not None and (not is_all or is_foreign):
            self._scopes.append((path, value))
        elif attributes is not None:
            self._owners.append((path, value))
            self._enter(path, [*attributes], attributes.values)

    def _walk_scopes(self) -> None:
        """Walk through optimisers, and through attributes of classes and modules in the code."""
        known = -1
        while known != len(self._seen) + len(self._words) + len(self._callable):
            known = len(self._seen) + len(self._words) + len(self._callable)
            for path, scope in self._scopes:  # the loop may append to them
                self._walk_all(path, [(name, vars(scope)[name]) for name in self._read(scope)])
            for path, each in [*self.settable.items()]:  # after modules, which give better names
                groups = getattr(each, "param_groups", ())
                self._walk_all(path, enumerate(chain(*[group["params"] for group in groups])))
        for path, scope in self._scopes:
            if names := self._read(scope):
                self._compare(path, names, partial(map, vars(scope).get, names), False)
            self._owners.append((path, scope))  # the code may name a new attribute
        for path, each in self.settable.items():
            self._compare_settings(path, partial(_named_settings, each, self._words))

    def _compare_settings(self, path: str, read: Callable[[], Iterable[tuple[str, Any]]]) -> None:
        """Compare settings that a program reads again, but that the code names too."""
        if named := [name for name, _ in read()]:
            self._compare(path, named, lambda: [value for _, value in read()], True)

    def _read(self, scope: Any) -> list[str]:
        """List the attributes of an object that the code names, or calls as special methods."""
        names = vars(scope).keys() & self._words
        if isinstance(scope, type):
            left_out = _NOT_IN_STEPS | (set() if scope in self._callable else _CONSTRUCTORS)
            names |= special_methods(scope) - left_out
            if issubclass(scope, (Optimizer, LRScheduler)):
                names -= _IN_LINES
        elif isinstance(scope, Settable):
            names -= _READ_AGAIN
        return sorted(names)

    def _walk_function(self, function: FunctionType, path: str) -> None:
        """Walk through the variables around a function, its defaults, and the numbers in it."""
        is_installed = _INSTALLED.search(function.__code__.co_filename)
        is_own = package_of(function.__module__) in self._packages
        # `functools.wraps` gives a function the __module__ of another one.
        modules = function.__module__, function.__globals__.get("__name__")
        if all(map(is_known, modules)) or (is_installed and not is_own):
            return
        self.functions.append(function)
        self._scopes.append((path, function))
        parts = attrgetter("__code__", "__defaults__", "__kwdefaults__")
        self._enter(path, ("code", "defaults", "kwdefaults"), partial(parts, function))
        code, cells = function.__code__, function.__closure__ or ()
        self._enter("", code.co_freevars, partial(map, _value_in, cells))
        read = set()
        unread = "STORE_ATTR" if function.__name__ in _CONSTRUCTORS else ""  # of a new object
        for code in codes(function):
            self._words |= {*code.co_freevars, *texts(code.co_consts)}
            self.numbers |= {c for c in code.co_consts if isinstance(c, (bool, int, float))}
            before: list[Any] = [0, None]  # the arguments of the last two instructions
            for instruction in dis.get_instructions(code):
                if instruction.opcode in dis.hasname and instruction.opname != unread:
                    self._words.add(instruction.argval)
                if instruction.opname in ("LOAD_GLOBAL", "STORE_GLOBAL"):
                    read.add(instruction.argval)
                elif instruction.opname == "LOAD_SMALL_INT":  # no constant in Python 3.14
                    self.numbers.add(instruction.argval)
                elif instruction.opname == "IMPORT_NAME":
                    name = "." * before[0] + instruction.argval  # with the level of the import
                    with suppress(ImportError):  # which the step itself would raise
                        name = resolve_name(name, function.__globals__.get("__package__"))
                        self._walk(sys.modules.get(name), instruction.argval)
                if instruction.opname != "EXTENDED_ARG":
                    before = [before[1], instruction.argval]
        names = sorted(read)
        self._enter("", names, partial(map, function.__globals__.get, names))


def _settings_of(value: Settable) -> Any:
    """Return the settings that only `step()` and `update()` may change in a step."""
    if isinstance(value, LRScheduler):
        return vars(value) | value.state_dict()
    # Loading a state makes another dict. This dict is kept, so the new one has another id.
    if isinstance(value, EMA):
        options = value.decay, value.warmup, value.updates, value.is_applied
        return *options, id(value.averages), value.averages
    groups = [{k: v for k, v in group.items() if k != "params"} for group in value.param_groups]
    return groups, id(value.state), value.state


def _named_settings(value: Settable, words: set[str]) -> Iterator[tuple[str, Any]]:
    """List the settings that a program reads again, and that the code of the step names too."""
    if isinstance(value, Optimizer):
        for i, group in enumerate(value.param_groups):
            for name in sorted(group.keys() & words - {"params"}):
                yield f"param_groups.{i}.{name}", group[name]
        if "state" in words:
            yield "state", value.state
            states = chain.from_iterable(state.items() for state in value.state.values())
            yield from ((f"state.{name}", x) for name, x in states if isinstance(x, np.ndarray))
    elif isinstance(value, EMA):
        if "averages" in words:
            yield "averages", value.averages
            yield from ((f"averages.{name}", x) for name, x in value.averages.items())
    elif "get_last_lr" in words:
        yield from (("get_last_lr()", rate) for rate in value.get_last_lr())


def _is_equal(a: Any, b: Any) -> bool:
    """Return whether two values are one object, or equal numbers or texts, also in tuples."""
    if a is b or type(a) is not type(b):
        return a is b
    if type(a) is tuple:
        return len(a) == len(b) and all(map(_is_equal, a, b))
    # By repr, because 0.0 == -0.0 and NaN != NaN.
    kinds = int, float, complex, str, bytes
    return (type(a) in kinds or isinstance(a, np.generic)) and repr(a) == repr(b)


def _value_in(cell: Any) -> Any:
    """Return the value of a closure variable, or None if it has no value yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _groups_and_members(optimizer: Optimizer) -> Iterator[Any]:
    return chain.from_iterable((group, *group["params"]) for group in optimizer.param_groups)


def _joined(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else f"{name}"


def _unused(path: str, known: Mapping[str, Any]) -> str:
    names = chain([path], (f"{path}_{i}" for i in count(len(known))))
    return next(name for name in names if name not in known)


def codes(function: Any) -> Sequence[Any]:
    """List the code objects of a function and of the functions inside it."""
    found = [function.__code__]
    for code in found:  # the loop appends to it
        found += filter(iscode, code.co_consts)
    return found


def texts(constants: Iterable[Any]) -> Iterator[str]:
    """List the strings among the constants of a code object, also in tuples."""
    for each in constants:
        if isinstance(each, str):
            yield each
        elif isinstance(each, (tuple, frozenset)):
            yield from texts(each)


def special_methods(cls: type) -> set[str]:
    """Return the names of the special methods that a class itself defines.

    The `__eq__` that `dataclass` makes, which names all fields, is left out.
    """
    kinds = FunctionType, property, staticmethod, classmethod, partial
    methods = {name: value for name, value in vars(cls).items() if isinstance(value, kinds)}
    equal = getattr(methods.get("__eq__"), "__code__", None)
    if equal is not None and equal.co_filename == "<string>" and is_dataclass(cls):
        del methods["__eq__"]
    return {name for name in methods if name.startswith("__") and name.endswith("__")}


def package_of(module: str | None) -> str:
    """Return the name of the package that a module is in."""
    return (module or "").partition(".")[0]


def is_known(module: Any) -> bool:
    """Return whether no class, function or variable of this module is compared."""
    return not isinstance(module, str | None) or package_of(module) in FOREIGN | LIBRARY
