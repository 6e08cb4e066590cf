"""Parameters that an adapter trains whole, such as biases or a new head.

It trains a copy, which takes the place of the original while the adapter is active: the model
without the adapter, or with another one, is what it was. What has no place, the copy or the
original, is kept on the model as `_lora_whole.<adapter>.<name>` or `_lora_whole.(base).<name>`. So
the state of a model has both, and fits only where the same adapters are active.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lora.surgery import replace
from minigrad.core.tensor import Tensor
from minigrad.nn import Module, Parameter

_ASIDE = "_lora_whole"
_BASE = "(base)"  # which no adapter can be called


class Whole(Parameter):
    """A copy that trains. In a frozen layer, too, gradients flow into it."""

    __slots__ = ()

    def settle(self) -> None:
        """Be an ordinary parameter of the model from now on."""
        self.__class__ = Parameter  # type: ignore[assignment]  # which differs in nothing else


@dataclass(frozen=True)
class Copy:
    """A parameter and what takes its place.

    Attributes:
        name: the first name of the original in the model.
        reason: the field of the configuration that asked for it.
        original: what the model had.
        own: what the adapter trains.
    """

    name: str
    reason: str
    original: Parameter = field(repr=False)
    own: Whole = field(repr=False)


def in_force(bias: Parameter | None) -> Tensor | None:
    """The bias of a frozen layer: if it is no copy that trains, no gradient gets to it.

    Not even if someone has set its flag.
    """
    return bias if bias is None or isinstance(bias, Whole) else bias.detach()


def put_in(model: Module, copies: Mapping[str, Sequence[Copy]], names: Sequence[str]) -> None:
    """Let the copies of some adapters, and no others, be in the place of their originals.

    Args:
        model: changed in place.
        copies: of all adapters, by the names of these.
        names: of those whose copies are to be in place.
    """
    aside = vars(model).get(_ASIDE, {})
    before = [copy for name, each in copies.items() if name not in aside for copy in each]
    _exchange(model, [(copy.own, copy.original) for copy in before])
    within = [copy for name in names for copy in copies[name]]
    _exchange(model, [(copy.original, copy.own) for copy in within])
    aside = {
        _BASE: {copy.name: copy.original for copy in within},
        **{n: {c.name: c.own for c in each} for n, each in copies.items() if n not in names},
    }
    forget(model)
    if any(aside.values()):
        vars(model)[_ASIDE] = {name: kept for name, kept in aside.items() if kept}


def _exchange(model: Module, pairs: Sequence[tuple[Parameter, Parameter]]) -> None:
    for old, new in pairs:
        if new.dtype != old.dtype:  # a part was converted meanwhile, and this was not in it
            new.data = new.data.astype(old.dtype)
    replace(model, {id(old): new for old, new in pairs})


def forget(model: Module) -> None:
    """Keep nothing on the model any more."""
    vars(model).pop(_ASIDE, None)


def in_place(model: Module) -> Iterator[tuple[str, Parameter]]:
    """The parameters of a model with their names, without what is kept aside."""
    for name, parameter in model.named_parameters():
        if not name.startswith(f"{_ASIDE}."):
            yield name, parameter
