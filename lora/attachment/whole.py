"""Parameters that an adapter trains whole, such as biases or a new head.

It trains a copy, which takes the place of the original while the adapter is active: the model
without the adapter, or with another one, is what it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lora.attachment.replacing import replace
from minigrad.nn import Module, Parameter
from minigrad.tensor import Tensor


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
    original: Parameter
    own: Whole


def in_force(bias: Parameter | None) -> Tensor | None:
    """The bias of a frozen layer: if it is no copy that trains, no gradient gets to it.

    Not even if someone has set its flag.
    """
    return bias if bias is None or isinstance(bias, Whole) else bias.detach()


def put_in(model: Module, copies: Iterable[Copy]) -> None:
    """Let copies take the place of their originals."""
    _exchange(model, {id(copy.original): (copy.original, copy.own) for copy in copies})


def put_back(model: Module, copies: Iterable[Copy]) -> None:
    """Let originals take the place of their copies again."""
    _exchange(model, {id(copy.own): (copy.own, copy.original) for copy in copies})


def _exchange(model: Module, pairs: Mapping[int, tuple[Parameter, Parameter]]) -> None:
    if not pairs:
        return
    for old, new in pairs.values():
        if new.dtype != old.dtype:  # the model was converted meanwhile, and this was not in it
            new.data = new.data.astype(old.dtype)
    replace(model, {key: new for key, (_, new) in pairs.items()})
