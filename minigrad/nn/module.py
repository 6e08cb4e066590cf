"""Module: an object with parameters, found by walking its attributes.

    class Affine(Module):
        def __init__(self, d):
            self.scale = Parameter(np.ones(d))
            self.shift = Parameter(np.zeros(d))

        def forward(self, x):
            return x * self.scale + self.shift

A module registers nothing, and needs no `super().__init__()`. `named_parameters` walks through the
attributes in the order in which they were assigned, also inside modules, lists, tuples and dicts.
It names each parameter by its path: `layers.0.weight`. A parameter with two paths is listed once,
by its first path. Buffers are found in the same way. Parameters and buffers are the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MemberDescriptorType
from typing import Any, ClassVar, TypeVar, dataclass_transform

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minigrad.checks import as_dtype, can_store, check_flag, check_problems, nearest, shown
from minigrad.containers import Owner
from minigrad.core.codegen import StandIn, common_float
from minigrad.core.grad_mode import mode, observed
from minigrad.core.tensor import Tensor, as_array
from minigrad.creation import or_float32
from minigrad.errors import named_errors, none_given, op_error
from minigrad.nn import init
from minigrad.readonly import owner_of
from minigrad.renamed import add_hints, hint_arguments, with_hints
from minigrad.tables import counted

__all__ = ["Buffer", "Module", "Parameter"]

M = TypeVar("M", bound="Module")


def as_input(module: Module, x: Any, name: str = "x") -> Any:
    """Return a list, or an array of another library, as an array, and Tensors as they are.

    The floats of a list have the dtype of the module. Anything else is a TypeError.
    """
    if isinstance(x, (Tensor, np.ndarray, StandIn)):
        return x
    if x is None:
        raise op_error(TypeError, type(module).__name__, none_given(name))
    if not isinstance(x, (list, tuple)) and not hasattr(x, "__array__"):
        text = f"{name} is a Tensor, an array or a list of numbers, not {shown(x)}"
        raise op_error(TypeError, type(module).__name__, text)
    array = as_array(x)
    target = common_float([tensor for _, tensor in module.named_state()])
    is_list = isinstance(x, (list, tuple)) and array.dtype.kind == "f"
    return as_array(x, target) if is_list and target is not None else array


class Parameter(Tensor):
    """A tensor that an optimiser may train, as an attribute of a module. It copies the data.

    Args:
        data: an array, a Tensor or nested lists of numbers.
        requires_grad: False makes a frozen parameter.
        dtype: the dtype to convert to.

    Raises:
        TypeError: if `data` does not contain numbers, or a gradient is required, as by default, and
            they are not floats.
        ValueError: if lists are ragged, or a number is out of range of an integer dtype.
    """

    __slots__ = ()

    def __init__(
        self, data: Any, requires_grad: bool = True, dtype: DTypeLike | None = None
    ) -> None:
        super().__init__(observed(np.array, as_array(data, dtype)), requires_grad)

    @classmethod
    def empty(cls, shape: int | Sequence[int], dtype: DTypeLike) -> Parameter:
        """Make a parameter with uninitialised memory, which a function of `nn.init` will fill."""
        parameter = cls.sharing(Tensor(init.uninitialized(shape, or_float32(dtype))))
        parameter.requires_grad = True
        return parameter

    @classmethod
    def sharing(cls, tensor: Tensor) -> Parameter:
        """Make a frozen parameter that shares the memory of `tensor`; do not change `tensor`."""
        parameter = cls.__new__(cls)
        parameter._data = tensor._data
        parameter.node = None
        return parameter


class Buffer(Tensor):
    """A tensor in the state of a module that no optimiser trains. It copies the data.

    Running means are an example: in training, the module itself writes to them.

    Args:
        data: an array, a Tensor or nested lists of numbers.
        dtype: the dtype to convert to.

    Raises:
        TypeError: if `data` does not contain numbers.
        ValueError: if lists are ragged, or a number is out of range of an integer dtype.
    """

    __slots__ = ()

    def __init__(self, data: Any, dtype: DTypeLike | None = None) -> None:
        super().__init__(observed(np.array, as_array(data, dtype)))


class Module(Owner):
    """Base class of layers and models: define `forward`, and assign parameters and modules.

    Attributes:
        training: whether the module is in training mode, as at first, or in evaluation mode.

    Raises:
        TypeError: if a plain array or Tensor is assigned to the name of a Parameter or Buffer: it
            would not be a part of the model.
    """

    training: bool = True
    _slots: ClassVar[tuple[str, ...]] = ()  # the names of the attributes in slots
    # What `extra_repr` prints: a format string with `self`, and attributes that have other values.
    _repr_format: ClassVar[str] = ""
    _repr_defaults: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        members = (each for base in cls.__mro__[::-1] for each in vars(base).items())
        cls._slots = tuple(name for name, m in members if isinstance(m, MemberDescriptorType))
        hint_arguments(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a TypeError if an array or a Tensor would replace a parameter."""
        if isinstance(value, (Tensor, np.ndarray)) and not isinstance(value, (Parameter, Buffer)):
            before = getattr(self, name, None) if name in self._slots else vars(self).get(name)
            if isinstance(before, (Parameter, Buffer)):
                kind = "Parameter" if isinstance(before, Parameter) else "Buffer"
                computed = isinstance(value, Tensor) and value.requires_grad
                hint = f"; to compute it from other parameters, `del` .{name} first"
                raise TypeError(
                    f"{name} is a {kind}, and a plain {type(value).__name__} would be no part of "
                    f"the model; write .{name}.copy_(value), or assign nn.{kind}(value)"
                    f"{hint if computed else ''}"
                )
        super().__setattr__(name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output of the module; subclasses define it.

        Raises:
            NotImplementedError: if the subclass does not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward`."""
        observers = mode.state[1]
        if not observers:
            return self.forward(*args, **kwargs)
        for observer in observers:
            observer.on_module(self, True)
        try:
            return self.forward(*args, **kwargs)
        finally:
            for observer in observers:
                observer.on_module(self, False)

    # ----------------------------------------------------------------------------------------------
    # Contents
    # ----------------------------------------------------------------------------------------------

    def _contents(self) -> Iterable[tuple[str, Any]]:
        """List names and values in which parameters and modules are found: the attributes.

        A module that stores parameters or modules elsewhere overrides this method. They cannot be
        replaced there, so `lora.attach` leaves the model as it is, with an error.
        """
        # `vars` is faster.
        return attributes_of(self).items() if self._slots else vars(self).items()

    def _generators(self) -> Iterable[np.random.Generator]:
        """List the random generators among the attributes, without those of modules inside.

        A module that stores generators elsewhere overrides this method.
        """
        return (v for v in attributes_of(self).values() if isinstance(v, np.random.Generator))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """List this module, named "", and all modules inside, each once, with its dotted path."""
        for name, value in walk(self, prefix, set()):
            if isinstance(value, Module):
                yield name, value

    def modules(self) -> Iterator[Module]:
        """List this module and all modules inside it."""
        return (module for _, module in self.named_modules())

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """List all parameters, trainable or frozen, each once, with its dotted path.

        Raises:
            ValueError: if two parameters have the same name, as for the keys 1 and "1" of a dict.
        """
        return self._named(Parameter, prefix)

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, Buffer]]:
        """List all buffers, each once, with its dotted path.

        Raises:
            ValueError: as in `named_parameters`.
        """
        return self._named(Buffer, prefix)

    def named_state(self, prefix: str = "") -> Iterator[tuple[str, Parameter | Buffer]]:
        """List the state, which is all parameters and buffers, each once, with its dotted path.

        Raises:
            ValueError: as in `named_parameters`.
        """
        return self._named((Parameter, Buffer), prefix)

    def _named(self, kind: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        names: set[str] = set()
        for name, value in walk(self, prefix, set()):
            if isinstance(value, kind):
                if name in names:
                    raise ValueError(
                        f"two tensors of the state have the name {name!r}; rename a key"
                    )
                names.add(name)
                yield name, value

    def buffers(self) -> Iterator[Buffer]:
        """List all buffers."""
        return (buffer for _, buffer in self.named_buffers())

    def parameters(self) -> Iterator[Parameter]:
        """List all parameters, trainable or frozen."""
        return (parameter for _, parameter in self.named_parameters())

    def trainable_parameters(self) -> list[Parameter]:
        """Return the parameters that require a gradient: give these to an optimiser."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def count_parameters(self, trainable_only: bool = False) -> int:
        """Return the number of elements of all parameters, or only of those that are trainable."""
        return sum(p.size for p in self.parameters() if p.requires_grad or not trainable_only)

    # ----------------------------------------------------------------------------------------------
    # Switches
    # ----------------------------------------------------------------------------------------------

    def train(self: M, mode: bool = True) -> M:
        """Set this module and all modules inside to training (dropout is active); return it.

        With `mode=False`, set them to evaluation. If the class of a module inside defines a
        `train` of its own, this is called instead, and decides about what is in that module too.

        Raises:
            TypeError: if `mode` is not True or False.
        """
        check_flag("train: mode", mode)
        seen: set[int] = set()
        for _, part in walk(self, "", seen):
            if not isinstance(part, Module):
                continue
            if part is self or type(part).train is Module.train:
                part.training = mode
            else:
                part.train(mode)
                seen.update(map(id, part.modules()))  # what is inside is left as it is
        return self

    def eval(self: M) -> M:
        """Set this module and all modules inside to evaluation by `train(False)`; return it."""
        return self.train(False)

    def freeze(self: M, frozen: bool = True) -> M:
        """Freeze all parameters (they require no gradient), or with False unfreeze all.

        It returns the module. A frozen parameter has no `.grad`.

        Raises:
            TypeError: if `frozen` is not True or False.
        """
        check_flag("freeze: frozen", frozen)
        for parameter in self.parameters():
            parameter.requires_grad_(not frozen)
        return self

    @with_hints
    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for parameter in self.parameters():
            parameter.zero_grad()

    @named_errors
    def astype(self: M, dtype: DTypeLike) -> M:
        """Convert all float parameters and buffers to a float dtype; return the module.

        A parameter whose dtype changes loses its gradient.

        Raises:
            TypeError: if `dtype` is not a float dtype.
        """
        target = None if dtype is None else as_dtype(dtype)  # numpy takes None for float64
        if target is None or target.kind != "f":
            raise TypeError(f"parameters are floats, and cannot become {target}")
        for _, tensor in self.named_state():
            if tensor.dtype.kind == "f":
                tensor.data = tensor.data.astype(target)
        return self

    # ----------------------------------------------------------------------------------------------
    # State
    # ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return a dict from the name of each parameter and buffer to a copy of its value."""
        return {name: observed(tensor._data.copy) for name, tensor in self.named_state()}

    @with_hints
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Write the values of `state` into the parameters and buffers of the same names.

        If a value does not fit, nothing is changed. A tensor that has several paths, such as tied
        weights, may be in the state under each of them, as in PyTorch, with the same value.

        Raises:
            ValueError: if a value is missing or unexpected, has another shape, or does not hold
                numbers, an integer tensor cannot store them, or one tensor has two values; the
                message lists all such values.
            TypeError: if the state is not a dict.
        """
        named, repeated = dict(self.named_state()), {}
        if isinstance(state, Mapping) and not state.keys() <= named.keys():
            first = {id(tensor): name for name, tensor in named.items()}
            others = [name for name in state if isinstance(name, str) and name not in named]
            found = {name: id(_at(self, name)) for name in others}
            repeated = {name: first[key] for name, key in found.items() if key in first}
        load_values(named, state, type(self).__name__, repeated)

    # ----------------------------------------------------------------------------------------------
    # Printing
    # ----------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """Return the options, such as sizes, that `repr` prints between the parentheses."""
        options = self._repr_format.format(self=self) + unusual(self, self._repr_defaults)
        return options.removeprefix(", ")

    def __repr__(self) -> str:
        total, trainable = self.count_parameters(), self.count_parameters(trainable_only=True)
        count = counted(total, "parameter")
        if trainable != total:
            count += f", {trainable:,} trainable"
        return "\n".join(_tree(self, f"  # {count}" if total else ""))


add_hints(Module, "Module")


@dataclass_transform(eq_default=False, field_specifiers=(field,))
@dataclass(repr=False, eq=False)
class FunctionModule(Module):
    """A function of tensors as a module; the fields of a subclass are options of the function.

    Each subclass becomes a dataclass, but is printed and compared like any module.
    """

    function: ClassVar[Callable[..., Any]]
    _options: ClassVar[tuple[str, ...]] = ()
    _checks: ClassVar[Mapping[str, Callable[[str, Any], Any]]] = {}  # of options, by name

    def __init_subclass__(cls, **options: Any) -> None:
        dataclass(repr=False, eq=False)(cls)
        super().__init_subclass__(**options)  # with the constructor of the dataclass
        cls._options = tuple(field.name for field in fields(cls))

    @named_errors
    def __post_init__(self) -> None:
        for name, check in self._checks.items():
            check(name, getattr(self, name))

    @named_errors
    def forward(self, *tensors: Any, **named: Any) -> Any:
        """Return the function of the tensors, with the options of this module.

        Raises:
            TypeError: if an option is given, which belongs in the call of the class.
        """
        options = {name: getattr(self, name) for name in self._options}
        return type(self).function(*tensors, **named, **options)

    def extra_repr(self) -> str:
        """Return the options without arrays; keyword-only ones only if not the default."""
        values = [(f, getattr(self, f.name)) for f in fields(self) if f.repr]
        shown = [(f.name, value) for f, value in values if not f.kw_only or value != f.default]
        return ", ".join(f"{name}={value!r}" for name, value in shown)


def load_values(
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    owner: str,
    repeated: Mapping[str, str] | None = None,
) -> None:
    """Write the values of a state into tensors of the same names, as `load_state_dict` does.

    `repeated` are further names of tensors in the state, with the names in `tensors`.
    """
    if not isinstance(state, Mapping):
        pair = "; load_state returns (state, metadata)" if isinstance(state, tuple) else ""
        kind = type(state).__name__
        raise TypeError(f"load_state_dict: the state is a dict of arrays, not a {kind}{pair}")
    problems = []
    values: dict[str, NDArray[Any]] = {}
    memory = {_memory(tensor._data) for tensor in tensors.values()}
    names = {name: name for name in tensors} | dict(repeated or {})
    for name, first in names.items():
        tensor = tensors[first]
        if name not in state:
            problems.append(f"missing: {name} {tensor.shape}")
            continue
        try:
            value = as_array(state[name])
            if isinstance(state[name], list) and tensor.dtype.kind == "f":
                value = as_array(state[name], tensor.dtype)  # may have more digits than float32
        except (TypeError, ValueError) as error:
            problems.append(f"unusable: {name}: {error}")
            continue
        if value.shape != tensor.shape:
            shapes = f"{value.shape} in the state, {tensor.shape} in the module"
            problems.append(f"mis-shaped: {name} is {shapes}")
        elif not can_store(tensor.dtype, value):
            problems.append(f"mis-typed: {name} has numbers that are not {tensor.dtype}")
        elif first in values and not np.array_equal(value, values[first], value.dtype.kind == "f"):
            problems.append(f"contradictory: {name} is not {first}, and both are one tensor here")
        if name == first:
            # Writing to another tensor could change a value that shares its memory.
            values[name] = value.copy() if _memory(value) in memory else value
    unknown = [name for name in state if name not in names]
    problems += [f"unexpected: {name}{nearest(str(name), tensors)}" for name in unknown]
    what = f"load_state_dict: the state does not fit this {owner}"
    check_problems(f"{what}; nothing was loaded", problems)
    for name, value in values.items():
        tensors[name].copy_(value)


def _memory(array: NDArray[Any]) -> int:
    """Return the id of the object that owns the memory of an array."""
    owner = owner_of(array)
    return id(owner if owner.base is None else owner.base)


def unusual(module: Module, usual: Mapping[str, Any]) -> str:
    """Return the options of a module that differ from their usual values, each after a comma."""
    text = ""
    for name, value in usual.items():
        own = getattr(module, name)
        if value is True:  # an attribute such as `bias` is a flag, or a parameter or None
            own = own is not None and own is not False
        if own != value:
            text += f", {name}={own!r}"
    return text


def attributes_of(module: Module) -> dict[str, Any]:
    """Return the attributes of a module by name, also those in slots."""
    in_slots = {name: getattr(module, name) for name in module._slots if hasattr(module, name)}
    return {**vars(module), **in_slots}


def set_attribute(module: Module, name: str, value: Any) -> None:
    """Set an attribute, which may be in a slot, without the checks of `__setattr__`."""
    if name in module._slots:
        object.__setattr__(module, name, value)
    else:
        vars(module)[name] = value


def restore_attributes(module: Module, attributes: Mapping[str, Any]) -> None:
    """Give a module the attributes that `attributes_of` returned, and no others."""
    vars(module).clear()
    for name in module._slots:
        if name not in attributes and hasattr(module, name):
            object.__delattr__(module, name)
    for name, value in attributes.items():
        set_attribute(module, name, value)


def walk(
    value: Any, name: str, seen: set[int], every_path: bool = False
) -> Iterator[tuple[str, Any]]:
    """List `value` and all modules, parameters and buffers inside it, each once, by dotted paths.

    With `every_path`, an object is listed once for each of its paths; the walk goes into a module
    only along its first path. `seen` are the ids of what was walked through.
    """
    if isinstance(value, Module) or not every_path:
        if id(value) in seen:
            if every_path:
                yield name, value
            return
        seen.add(id(value))
    yield name, value
    for key, child in () if isinstance(value, Tensor) else _inside(value):  # () is faster
        if isinstance(child, (Module, Parameter, Buffer, list, tuple, dict)):
            path = f"{name}.{key}" if name else str(key)
            yield from walk(child, path, seen, every_path)


def _inside(value: Any) -> Iterable[tuple[Any, Any]]:
    """List what is directly inside a module, list, tuple or dict, by attribute, index or key."""
    if isinstance(value, Module):
        return value._contents()
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else ()


def _at(value: Any, path: str) -> Any:
    """Return what is at a dotted path inside `value`, or None."""
    for key, child in _inside(value):
        if path == str(key):
            return child
        rest = path.removeprefix(f"{key}.")
        if rest != path and (found := _at(child, rest)) is not None:
            return found
    return None


def generators_in(module: Module) -> Iterator[np.random.Generator]:
    """List the generators of a module and of all modules inside it."""
    for _, part in walk(module, "", set()):
        is_module = isinstance(part, Module)
        held = part._generators() if is_module else (each for _, each in _inside(part))
        yield from (each for each in held if isinstance(each, np.random.Generator))


def _tree(module: Module, note: str, around: tuple[int, ...] = ()) -> list[str]:
    """Return the lines of a module's repr: itself, and its direct children indented.

    `around` are the ids of the modules around it, to which it may refer.
    """
    children: list[str] = []
    own = 0
    seen = {*around}
    inner = *around, id(module)
    for name, part in walk(module, "", seen):
        if isinstance(part, Parameter):
            own += part.size
        elif isinstance(part, Module) and part is not module:
            first, *rest = _tree(part, "", inner)
            children += [f"  ({name}): {first}", *(f"  {line}" for line in rest)]
            # What is inside the child is not a direct child, also if it has another path.
            seen.update(id(each) for _, each in walk(part, "", {*inner}))
    options = module.extra_repr()
    note = note or (f"  # {own:,}" if own else "")
    if not children:
        return [f"{type(module).__name__}({options}){note}"]
    comma = "," if options else ""
    return [f"{type(module).__name__}({options}{comma}{note}", *children, ")"]
