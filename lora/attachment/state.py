"""The record of the adapters of a model, stored on the model itself, so that `detach` can undo all.

Some adapters train parameters in full, such as biases or a new head. They train copies, which
replace the originals while the adapter is active. So the model without the adapter, or with another
one, is unchanged. The buffers of a module that is trained in full, such as running means, are
copied too. Either the copy or the original is in use. The other one is stored on the model as
`_lora_whole.<adapter>.<name>` or `_lora_whole.(base).<name>`. So the `state_dict` of a model has
both, and can only be loaded if the same adapters are active.
"""

from __future__ import annotations

import operator
import re
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lora.adapted_layer import AdaptedLayer
from lora.config import LoRAConfig
from lora.frozen import OwnBuffer, TrainedCopy
from lora.variants.narrow import is_narrow
from minigrad.checks import LONGEST_LINE, shortened
from minigrad.core.tensor import Tensor
from minigrad.kernels.start import interrupts_held_back
from minigrad.nn import Buffer, Module, Parameter
from minigrad.nn.module import attributes_of, set_attribute, walk

_ATTACHMENT = "_lora_attachment"
_ASIDE = "_lora_whole"
_BASE = "(base)"  # no adapter can have this name
_NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class FullCopy:
    """A parameter or buffer of the model, and the copy of it that belongs to an adapter."""

    names: tuple[str, ...]  # all names of the original in the model
    reason: str  # the field of the configuration that requires the copy
    original: Parameter | Buffer = field(repr=False)  # the tensor of the model
    own: TrainedCopy | OwnBuffer = field(repr=False)  # the adapter's copy

    @property
    def name(self) -> str:
        """The first name of the original in the model."""
        return self.names[0]


@dataclass
class Attached:
    """One adapter of a model."""

    # the configuration of the adapter; None if it was computed from other adapters
    config: LoRAConfig | None
    layers: list[str]  # the names of its layers
    copies: list[FullCopy] = field(default_factory=list)  # the parameters and buffers in full
    # the `requires_grad` flags of its parameters, while it is not active
    flags: list[tuple[Tensor, bool]] = field(default_factory=list)
    seed: int | None = None  # the seed that A was drawn from, if it is known

    @cached_property
    def originals(self) -> dict[str, Tensor]:
        """The originals of its copies, by name."""
        return {copy.name: copy.original for copy in self.copies}

    @cached_property
    def own(self) -> dict[str, Tensor]:
        """Its copies, by name."""
        return {copy.name: copy.own for copy in self.copies}


@dataclass
class Flags:
    """`requires_grad` of the parameters of a model before `attach` froze them.

    A parameter is found by itself; or by a name, if it stands where another one was before. So the
    weight that `fold` of a part of the model makes gets the flag of the one that it replaces.
    """

    # the parameters, each with its flag and all of its names
    known: list[tuple[Parameter, bool, tuple[str, ...]]] = field(default_factory=list)

    def freeze(self, parameters: Iterable[Parameter], names: Mapping[int, Sequence[str]]) -> None:
        """Store the flags of further parameters, and freeze all; `names` are given by id."""
        before = self._finder()
        for parameter in parameters:
            # The weight of a layer that has adapters gets the name that it has without them.
            own = tuple(re.sub(r"\bbase_weight$", "weight", name) for name in names[id(parameter)])
            self.known.append((parameter, before(parameter, own), own))
        restore_flags((parameter, False) for parameter, _, _ in self.known)

    def restore(self, model: Module) -> None:
        """Set the flags of a model that has its original layers again, or folded ones.

        Parts that got adapters later stay frozen, and get these flags when they are detached.
        """
        before, names = self._finder(), state_names(model)
        frozen: set[int | str] = set()  # the parameters of these parts, by id and by name
        parts: tuple[str, ...] = ()
        for path, module in model.named_modules():
            later = attachment_of(module)
            if not later.adapters or path.startswith(parts):  # inside of another part
                continue
            parts += (f"{path}.",)
            for number, (p, flag, inner) in enumerate(later.flags.known):
                outer = [f"{path}.{name}" for name in inner]
                later.flags.known[number] = p, before(p, outer, flag), inner
                frozen.update(outer, [id(p)])
        now = {id(p): p for p in model.parameters() if not isinstance(p, TrainedCopy)}
        for key, parameter in ({id(p): p for p, _, _ in self.known} | now).items():
            own = names.get(key, [])
            if frozen.isdisjoint([key, *own]):
                restore_flags([(parameter, before(parameter, own))])

    def forget(self, parameters: Iterable[Parameter]) -> None:
        """Drop the flags of some parameters, which then stay as they are."""
        dropped = {id(parameter) for parameter in parameters}
        self.known = [each for each in self.known if id(each[0]) not in dropped]

    def _finder(self) -> Callable[..., bool]:
        """Return a function that finds the flag of a parameter, by default its present one."""
        by_id = {id(parameter): flag for parameter, flag, _ in self.known}
        by_name = {name: flag for _, flag, names in self.known for name in names}

        def before(parameter: Parameter, names: Iterable[str], flag: bool | None = None) -> bool:
            if id(parameter) in by_id:
                return by_id[id(parameter)]
            flag = parameter.requires_grad if flag is None else flag
            return flag or any(by_name.get(name, False) for name in names)

        return before


@dataclass
class Attachment:
    """The adapters of a model, and how to undo them. No Module, so walks over modules skip it."""

    # by name, each original layer, and the layer with adapters that replaced it
    replaced: dict[str, tuple[Module, AdaptedLayer]] = field(default_factory=dict)
    flags: Flags = field(default_factory=Flags)  # of every parameter before `attach`
    adapters: dict[str, Attached] = field(default_factory=dict)  # by name
    active: tuple[str, ...] = ()  # the names of the active adapters
    disabled: int = 0  # the number of `lora.disabled` blocks that are open

    @property
    def layers(self) -> dict[str, AdaptedLayer]:
        """The layers with adapters that replaced others, by name."""
        return {name: layer for name, (_, layer) in self.replaced.items()}

    def check_enabled(self, what: str) -> None:
        """Raise a RuntimeError inside of `lora.disabled`, whose end would undo a change."""
        if self.disabled:
            raise RuntimeError(f"{what} inside of lora.disabled(model); leave the block first")

    @interrupts_held_back()
    def swap_in(self, model: Module, names: Sequence[str]) -> None:
        """Put the copies of these adapters into the model, and the originals of all others."""
        # The same dicts come back with the same adapters, so a captured step finds no change.
        aside = vars(model).setdefault(_ASIDE, {})
        inside = [attached for name, attached in self.adapters.items() if name not in aside]
        before = [copy for attached in inside for copy in attached.copies]
        within = [copy for name in names for copy in self.adapters[name].copies]
        aside.clear()  # it is not a part of the model in which copies are replaced
        for pairs in (
            [(copy.own, copy.original) for copy in before],
            [(copy.original, copy.own) for copy in within],
        ):
            for old, new in pairs:
                if new.dtype != old.dtype:  # `astype` converted the model without it
                    new.data = new.data.astype(old.dtype)
            replace(model, {id(old): new for old, new in pairs})
        trained = [originals for name in names if (originals := self.adapters[name].originals)]
        if trained:
            aside[_BASE] = trained[0] if len(trained) == 1 else dict(ChainMap(*trained))
        aside |= {n: a.own for n, a in self.adapters.items() if n not in names and a.copies}
        if not aside:
            del vars(model)[_ASIDE]


def check_name(attachment: Attachment, adapter: str) -> None:
    """Raise an error if the name of a new adapter is not a string, malformed, or taken."""
    if not isinstance(adapter, str):
        raise TypeError(f"the name of an adapter is a string, not {adapter!r}")
    if not _NAME.fullmatch(adapter):
        raise ValueError(f"an adapter's name has letters, digits, - and _ only, not {adapter!r}")
    if adapter in attachment.adapters:
        raise ValueError(
            f"the model has an adapter {adapter!r} already; give another name, or take that one "
            f"off first: lora.remove(model, {adapter!r})"
        )
    if taken := [name for name, layer in attachment.layers.items() if adapter in layer.adapters]:
        raise ValueError(
            f"{', '.join(taken)}: an adapter {adapter!r} was added by hand already; give another "
            f"name, or take that one off with layer.remove({adapter!r})"
        )


def check_own(model: Module, names: Collection[str] | None = None) -> None:
    """Raise a ValueError if a layer has adapters that were not attached to this whole model.

    With names, only the layers of these names are checked.
    """
    own = attachment_of(model).layers.values()
    adapted = [name for name, layer in layers_in(model).items() if layer not in own]
    if strange := [name for name in adapted if names is None or name in names]:
        what = "exclude these layers, or first fold or detach their adapters"
        raise ValueError(
            f"there are adapters already on {', '.join(strange) or 'the model itself'}, which "
            f"lora.attach did not attach to this whole model; "
            f"{'fold or detach them first' if names is None else what}, in the model that "
            f"lora.attach was called with"
        )


def check_copies_are_known(model: Module) -> None:
    """Raise a ValueError if the model has copies in full of an adapter that it does not know.

    Their originals are known to the model with which `attach` was called: a larger one, or another
    one that shares a module.
    """
    every = [each for _, found in attachments_in(model) for each in found.adapters.values()]
    known = {id(copy.own) for each in every for copy in each.copies}
    for name, tensor in model.named_state():
        if isinstance(tensor, (TrainedCopy, OwnBuffer)) and id(tensor) not in known:
            raise ValueError(
                f"{name} is trained in full by an adapter of the complete model, or of another one "
                f"that shares it, and only that model knows the original; call this with that "
                f"model, or first switch its adapters off: lora.switch(that_model)"
            )


def check_replaceable(model: Module, modules: Mapping[str, Module]) -> None:
    """Raise a ValueError if `replace` would not find some modules of a model, given by name."""
    parts = list(model.modules())
    seen, found = {id(part) for part in parts}, set[int]()  # a part that was seen is not entered
    for part in parts:
        found.update(id(x) for _, x in walk(attributes_of(part), "", seen, every_path=True))
    if hidden := [name for name, module in modules.items() if id(module) not in found]:
        raise ValueError(
            f"{shortened(', '.join(hidden), LONGEST_LINE)} cannot be replaced, because the module "
            f"around it keeps it elsewhere than in an attribute, or in a list, tuple or dict there"
        )


def has_state(module: Module) -> bool:
    """Return whether a module has parameters, buffers or weights in few bits."""
    return any(module.named_state()) or any(map(is_narrow, module.modules()))


def attachment_of(model: Module) -> Attachment:
    """Return the attachment of a model; a new one without adapters if it has none."""
    if not isinstance(model, Module):
        raise TypeError(f"only a Module has adapters, not {model!r:.60}")
    found: Attachment = vars(model).get(_ATTACHMENT) or Attachment()
    return found


def attachments_in(model: Module) -> list[tuple[Module, Attachment]]:
    """List the model and its modules with which `attach` was called, each with its attachment."""
    return [(m, each) for m in model.modules() if (each := attachment_of(m)).adapters]


def required_attachment(model: Module) -> Attachment:
    """Return the attachment of a model; a ValueError if `attach` was not called with it."""
    attachment = attachment_of(model)
    if not attachment.adapters:
        if layers := layers_in(model):
            raise ValueError(
                f"this model has adapters on {shortened(', '.join(layers), LONGEST_LINE) or 'it'}; "
                f"call this with the model that lora.attach was called with, or the methods of "
                f"layers that were made by hand"
            )
        raise ValueError(
            "lora.attach has put no adapters on this model; lora.attach(model, config) does so"
        )
    return attachment


def store(model: Module, attachment: Attachment | None) -> None:
    """Store the attachment on a model; None removes it."""
    if attachment is None:
        del vars(model)[_ATTACHMENT]
        vars(model).pop(_ASIDE, None)
    else:
        setattr(model, _ATTACHMENT, attachment)


def layers_in(model: Module) -> dict[str, AdaptedLayer]:
    """Return the layers with adapters of a model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, AdaptedLayer)}


def adapted_layers(model: Module) -> list[tuple[str, AdaptedLayer]]:
    """List the names and layers with adapters of a model; a ValueError if it has none."""
    attachment_of(model)  # raises an error if the model is not a Module
    found = list(layers_in(model).items())
    if not found:
        raise ValueError(
            "the model has no adapters; lora.attach(model, LoRAConfig(...)) puts some on"
        )
    return found


def attached_layers(model: Module, attachment: Attachment) -> dict[str, AdaptedLayer]:
    """Return its layers with adapters by name; a ValueError if one is no longer in its place.

    Layers that got adapters by another `attach`, with a part of the model, are not among them.
    """
    own = attachment.layers
    layers = {name: m for name, m in model.named_modules() if own.get(name) is m}
    if gone := [name for name in own if name not in layers]:
        raise ValueError(
            f"the adapters of {', '.join(gone)} are no longer in the model, or not where they were "
            f"put; put the layers that lora.attach had placed there back first"
        )
    return layers


def parameters_in_use(model: Module) -> Iterator[tuple[str, Parameter]]:
    """Yield the names and parameters of a model, without the stored originals and copies."""
    for name, parameter in model.named_parameters():
        if not name.startswith(f"{_ASIDE}."):
            yield name, parameter


def restore_flags(flags: Iterable[tuple[Tensor, bool]]) -> None:
    """Set `requires_grad` of each parameter to its stored value."""
    for parameter, flag in flags:
        if parameter.requires_grad != flag:
            parameter.requires_grad_(flag)


def replace(model: Module, new: Mapping[int, Module | Tensor]) -> None:
    """Replace modules, parameters or buffers, given by id.

    Attributes, lists and dicts are changed in place; a tuple that contains one is replaced.
    """
    for module in list(model.modules()) if new else ():
        for name, value in attributes_of(module).items():
            if (now := _replaced(value, new)) is not value:
                set_attribute(module, name, now)


def _replaced(value: Any, new: Mapping[int, Module | Tensor]) -> Any:
    if isinstance(value, (Module, Parameter, Buffer)):
        return new.get(id(value), value)
    if isinstance(value, (list, dict)):
        for key, item in enumerate(value) if isinstance(value, list) else list(value.items()):
            if (now := _replaced(item, new)) is not item:
                value[key] = now
    elif isinstance(value, tuple):
        items = [_replaced(item, new) for item in value]
        if all(map(operator.is_, items, value)):
            return value
        return tuple.__new__(type(value), items)  # also of a class, such as a named tuple
    return value


def named_tensors(model: Module) -> dict[str, Any]:
    """Return parameters, buffers and weights in few bits, by each of the names of a shared one."""
    parts = walk(model, "", set(), every_path=True)
    found: dict[str, Any] = {n: each for n, each in parts if isinstance(each, (Parameter, Buffer))}
    return found | {f"{n}.weight": m.weight for n, m in model.named_modules() if is_narrow(m)}


def state_names(model: Module) -> dict[int, list[str]]:
    """List the names of each of the `named_tensors` by its id; a shared one has several."""
    found: dict[int, list[str]] = {}
    for name, tensor in named_tensors(model).items():
        found.setdefault(id(tensor), []).append(name)
    return found
