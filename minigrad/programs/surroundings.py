"""What a function reads besides its arguments, and whether any of it has changed.

In the program of a captured step the attributes of modules, the options of layers and the memory of
parameters are constants. So before each run they are compared with what they were when the step was
recorded, by identity: the variables around the function, the attributes of the objects in them, the
elements of lists and dicts, and so on. A thousand of them take about 20 microseconds.

A program reads some things anew, which are not compared: the elements of arrays; the options and
states of optimisers; the states of schedulers, averages and random generators.
"""

from __future__ import annotations

import dis
import random as stdlib_random
import sys
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import partial
from itertools import chain, repeat
from operator import attrgetter, call, is_
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np

from minigrad import random
from minigrad.core.tensor import Tensor
from minigrad.nn import Module
from minigrad.optim import EMA, LRScheduler, Optimizer

_FOREIGN = {*sys.stdlib_module_names, "numpy", "numba", "llvmlite"}  # whose objects do not count
_LIBRARY = {"minigrad", "lora"}
_NOT_COMPARED = "minigrad.kernels", "minigrad.core", "minigrad.programs"

_memory, _node, _grad = map(attrgetter, ("_data", "node", "grad"))


class Surroundings:
    """What a function reads besides its arguments.

    Attributes:
        functions: the function, those of the user that it calls, and the forwards of his modules.
        tensors: the tensors that were found, by the names of parameters in modules, or by paths.
        numbers: all numbers that were found, also in the code of the functions.
        groups: the groups of all optimisers.
        generators: of random numbers.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.functions: list[FunctionType] = []
        self.tensors: dict[str, Tensor] = {}
        self.numbers: set[float] = set()
        self.groups: list[dict[str, Any]] = []
        self.generators = [random.generator()]
        self._seen: dict[int, Any] = {}  # by id; it keeps the objects alive, so ids stay theirs
        self._names: dict[int, str] = {}  # of parameters in modules, by id
        self._names_random = False
        self._paths: list[str] = []
        self._reads: list[Callable[[], Iterable[Any]]] = []  # the values at each path
        self._optimizers: dict[str, Optimizer] = {}
        self._walk(function, "")
        for path, optimizer in self._optimizers.items():  # after modules, which have better names
            self._walk_groups(optimizer.param_groups, path)
        self._values = [list(read()) for read in self._reads]
        self._all_values = [*chain.from_iterable(self._values)]
        found = list(self.tensors.values())
        self._found, self._arrays, self._nodes = found, [*map(_memory, found)], [*map(_node, found)]
        self._leaves = [node for node in self._nodes if node is not None]

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Compare further tensors."""
        for name, tensor in tensors.items():
            self.tensors[name] = tensor
            self._found.append(tensor)
            self._arrays.append(tensor._data)
            self._nodes.append(tensor.node)
            self._leaves += [] if tensor.node is None else [tensor.node]

    def hold(self) -> bool:
        """Return whether everything is what it was."""
        now = [*chain.from_iterable(map(call, self._reads))]
        return (
            len(now) == len(self._all_values)
            and all(map(is_, now, self._all_values))
            and self.memory_holds()
            and all(map(is_, map(_node, self._found), self._nodes))
        )

    def memory_holds(self) -> bool:
        """Return whether the tensors have the memory that they had."""
        return all(map(is_, map(_memory, self._found), self._arrays))

    def changes(self) -> list[str]:
        """Return the paths of what is not what it was."""
        changed = []
        for path, read, before in zip(self._paths, self._reads, self._values, strict=True):
            now = list(read())
            if len(now) != len(before) or not all(map(is_, now, before)):
                changed.append(path)
        states = zip(self.tensors.items(), self._arrays, self._nodes, strict=True)
        changed += [path for (path, t), x, n in states if t._data is not x or t.node is not n]
        return changed

    def state(self) -> tuple[Any, Any]:
        """Return the options of optimisers and the states of generators, to be compared.

        A program reads them anew, and only what its lines call may change them.
        """
        options = [{k: v for k, v in group.items() if k != "params"} for group in self.groups]
        states = [repr(generator.bit_generator.state) for generator in self.generators]
        if self._names_random:
            _, key, *rest = np.random.get_state()  # noqa: NPY002  # some steps draw from it
            states += [repr(key), repr(rest), repr(hash(stdlib_random.getstate()))]
        return options, states

    def has_gradients(self) -> bool:
        """Return whether a tensor has a gradient."""
        return not all(map(is_, map(_grad, self._leaves), repeat(None)))

    def zero_grad(self) -> None:
        """Set the gradients of all tensors to None."""
        for node in self._leaves:
            node.grad = None

    # ----------------------------------------------------------------------------------------------
    # The walk
    # ----------------------------------------------------------------------------------------------

    def _compare(self, path: str, read: Callable[[], Iterable[Any]]) -> None:
        self._paths.append(path)
        self._reads.append(read)

    def _walk(self, value: Any, path: str, names: set[str] | None = None) -> None:
        """Find out what is in a value; `names` are the attributes that are read, None for all."""
        if isinstance(value, (bool, int, float)):
            self.numbers.add(value)
            return
        if id(value) in self._seen or isinstance(value, (type, Enum, np.ndarray)):
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            name = self._names.get(id(value), path)
            self.tensors[f"{name}_{len(self.tensors)}" if name in self.tensors else name] = value
        elif isinstance(value, np.random.Generator):
            self.generators.append(value)
        elif isinstance(value, FunctionType):
            self._walk_function(value, path)
        elif isinstance(value, MethodType):
            read = {name for code in codes(value.__func__) for name in code.co_names}
            self._walk(value.__func__, path)
            self._walk(value.__self__, path, read)
        elif isinstance(value, partial):
            self._walk_all({"func": value.func, "args": value.args, **value.keywords}, path)
        elif isinstance(value, (list, tuple, set, frozenset)):
            if not isinstance(value, (tuple, frozenset)):  # which cannot change
                self._compare(path, value.__iter__)
            self._walk_all({f"{i}": child for i, child in enumerate(value)}, path)
        elif isinstance(value, dict):
            self._compare(path, lambda: chain(value.keys(), value.values()))
            self._walk_all(value, path)
        elif isinstance(value, Optimizer):
            self._optimizers[path] = value
        elif hasattr(value, "__dict__") and not isinstance(value, (EMA, LRScheduler)):
            self._walk_object(value, path, names)

    def _walk_groups(self, groups: list[dict[str, Any]], path: str) -> None:
        self.groups += groups
        self._compare(path, lambda: chain(groups, *(group["params"] for group in groups)))
        for group in groups:
            self._walk_all({f"{i}": p for i, p in enumerate(group["params"])}, path)

    def _walk_all(self, children: dict[Any, Any], path: str) -> None:
        for name, child in list(children.items()):
            self._walk(child, f"{path}.{name}" if path else f"{name}")

    def _walk_object(self, value: Any, path: str, names: set[str] | None) -> None:
        """Walk through the attributes of an object, and through the methods that read them."""
        module = type(value).__module__
        if module.startswith(_NOT_COMPARED) or _package(module) in _FOREIGN:
            return
        called = list(names or ())
        is_library = _package(module) in _LIBRARY
        called += [] if is_library else ["forward", "__call__"]
        for name in called:  # which grows meanwhile
            method = None if is_library else getattr(type(value), name, None)
            if isinstance(method, FunctionType) and id(method) not in self._seen:
                self._walk(method, path)
                called += [name for code in codes(method) for name in code.co_names]
        if isinstance(value, Module):
            for name, parameter in value.named_parameters(path):
                self._names.setdefault(id(parameter), name)
        attributes = vars(value)
        if names is None:
            self._compare(path, attributes.values)
            self._walk_all(attributes, path)
        else:
            read = sorted(attributes.keys() & called)
            self._compare(path, lambda: [attributes.get(name) for name in read])
            self._walk_all({name: attributes[name] for name in read}, path)

    def _walk_function(self, function: FunctionType, path: str) -> None:
        """Walk through the variables around a function, its defaults, and the numbers in it."""
        if _package(function.__module__) in _FOREIGN | _LIBRARY:
            return
        self.functions.append(function)
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        for name, cell in cells.items():
            self._compare(name, partial(_contents, cell))
            self._walk_all(dict(zip([name], _contents(cell), strict=False)), "")
        scope = function.__globals__
        for code in codes(function):
            self._names_random |= "random" in code.co_names
            self.numbers |= {c for c in code.co_consts if isinstance(c, (bool, int, float))}
            for instruction in dis.get_instructions(code):
                name = instruction.argval
                if instruction.opname == "LOAD_GLOBAL" and name in scope:
                    self._compare(name, partial(_of_scope, scope, name))
                    self._walk(scope[name], name)
        defaults = function.__defaults__ or (), *(function.__kwdefaults__ or {}).values()
        self._walk_all({"defaults": defaults}, path)


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]


def codes(function: Any) -> Iterator[CodeType]:
    """List the code of a function and of the functions inside it."""
    codes = [function.__code__]
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return iter(codes)


def _contents(cell: Any) -> tuple[Any, ...]:
    """Return the value of a variable of an outer function, or nothing if it has none yet."""
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def _of_scope(scope: dict[str, Any], name: str) -> tuple[Any, ...]:
    return (scope.get(name),)
