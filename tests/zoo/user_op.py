"""An op as a user writes one, made of a port: its forward, and one VJP for all its inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import minigrad
from minigrad.core.op import Op
from tests.zoo.mutant import Mutant, Port, wrong_together


def op_of(name: str, port: Port) -> Op[Any]:
    """The op of a port, with the right VJP."""
    _, *parameters = inspect.signature(port.forward).parameters.values()

    def forward(*xs: Any) -> Any:
        return port.forward(minigrad, *xs)

    forward.__name__ = "".join(c if c.isalnum() else "_" for c in name)
    vars(forward)["__signature__"] = inspect.Signature(parameters)
    made: Op[Any] = minigrad.op(forward)
    made.joint_vjp(made.parameters, _joint(port.right, made.parameters))
    return made


def _joint(gradients: Callable[..., Any], parameters: Sequence[str]) -> Any:
    """The gradients of a port as a joint VJP."""

    def vjp(g: Any, needs_input_grad: Sequence[bool], *xs: Any) -> Any:
        found = gradients(minigrad, g, *xs)
        return found if isinstance(found, tuple) else (found,)

    names = ("g", "needs_input_grad", *parameters)
    vars(vjp)["__signature__"] = inspect.Signature(
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in names]
    )
    return vjp


def own(name: str, fault: str, *inputs: Any, order: int = 1, **functions: Any) -> Mutant:
    """A mutant of an op of a user's; `functions` are those of its port."""
    port = Port(**functions)
    op = op_of(name, port)
    plant = partial(wrong_together, op, _joint(port.wrong, op.parameters))
    f = partial(port.around, minigrad, op)
    return Mutant(name, fault, "vjp", plant, f, inputs, order, op, port, suite=())
