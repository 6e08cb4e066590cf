"""A dry run: a training step without the update, run as often as asked, that changes nothing.

A forward pass writes things down (running means, a count of calls), and a loss function may do what
belongs to a training step: switch modes, drop gradients, let an optimiser step. So the model is
saved before, and put back after each run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.core.backward import propagate
from minigrad.core.grad_mode import grad_mode
from minigrad.core.node import Node
from minigrad.core.observers import Observer, observe
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.gradient_flow.traces import (
    BackwardTrace,
    ForwardTrace,
    Stop,
    ZeroValue,
    union,
)
from minigrad.diagnostics.loss_call import Loss, loss_of
from minigrad.diagnostics.restored import Draws
from minigrad.nn.module import Module, Parameter
from minigrad.readonly import release
from minigrad.versions import mark_written

MOVE = 0.01  # the standard deviation of what stands for a parameter of zeros that has moved


@dataclass(frozen=True)
class StepRun:
    """The findings of one forward and one backward pass."""

    loss: Tensor  # the result
    forward: ForwardTrace  # the paths of values
    backward: BackwardTrace  # the paths of gradients
    # How many of `forward.cuts` belong to the forward pass; the others belong to what a checkpoint
    # runs again.
    forward_cuts: int
    norms: list[float | None]  # of each parameter's gradient; None where none arrived
    alive: int  # the parameters, as bits, whose gradient is not zero in every element
    frozen: int  # the parameters, as bits, that required no gradient at the end

    def is_zero(self, index: int) -> bool:
        """Whether a gradient arrived at a parameter, and it is zero in every element."""
        return self.norms[index] is not None and not self.alive >> index & 1

    def zero_factors(self, stop: Stop) -> list[ZeroValue]:
        """List the values of zeros by which a gradient was multiplied where it became zero."""
        zeros = self.forward.zero_inputs(stop.node)
        return [zero for i, zero in zeros.items() if i in stop.factors]


class StepRunner:
    """Runs the step of a model on a batch: the forward pass and the backward pass.

    After each run the model is what it was (see `Snapshot`), and so is each random generator that
    the library has drawn from: every run draws the same.
    """

    def __init__(
        self, model: Module, loss_fn: Loss, batch: Any, parameters: Sequence[Parameter]
    ) -> None:
        self.parameters = parameters
        self._step = model, loss_fn, batch
        self._snapshot = Snapshot(model)
        self._draws = Draws()
        for (
            generator
        ) in self._snapshot.generators:  # a module may draw from one without the library
            self._draws.on_random(generator)

    def run(self, moved: Mapping[int, NDArray[Any]] | None = None) -> StepRun:
        """Run the step once, with other values for the parameters whose indices are in `moved`."""
        forward, backward = ForwardTrace(self.parameters), BackwardTrace()
        arrived: dict[Node, Any] = {}
        self._snapshot.hide_gradients()
        try:
            for i, value in (moved or {}).items():
                self.parameters[i]._data = value
            with grad_mode(True), self._draws.put_back(), observe(forward):
                with observe(_NoBackward(self.parameters)):
                    loss = loss_of(*self._step)
                forward_cuts = len(forward.cuts)
                at_end = sum(1 << i for i, p in enumerate(self.parameters) if p.node is None)
                if loss.node is not None:
                    with observe(backward):
                        arrived = propagate(
                            {loss.node: np.ones(loss.shape, loss.dtype)},
                            wanted={p.node for p in self.parameters if p.node is not None},
                            retain_graph=True,  # a part of it may be the user's
                        )
        finally:
            self._snapshot.restore()
        gradients = [None if p.node is None else arrived.get(p.node) for p in self.parameters]
        alive = sum(1 << i for i, g in enumerate(gradients) if g is not None and g.any())
        norms = [_norm(g) for g in gradients]
        return StepRun(loss, forward, backward, forward_cuts, norms, alive, at_end)

    def zero_by_construction(self, first: StepRun) -> dict[int, int]:
        """Find the parameters whose gradient is zero in `first` by construction.

        Returns:
            By their indices, the parameters (as bits) that were all zeros and made them so.
        """
        asleep = [i for i in range(len(self.parameters)) if first.is_zero(i)]
        suspects = dict.fromkeys(asleep, 0)
        moved: dict[int, NDArray[Any]] = {}
        found: dict[int, int] = {}
        rng = np.random.default_rng(0)
        run = first
        while asleep:
            for i in asleep:
                node = self.parameters[i].node
                assert node is not None
                stops = run.backward.stops(node)
                factors = (zero.parameters for stop in stops for zero in run.zero_factors(stop))
                suspects[i] |= union(factors) & run.alive & ~(1 << i)
            new = [
                k
                for k in range(len(self.parameters))
                if k not in moved and any(suspects[i] >> k & 1 for i in asleep)
            ]
            if not new:
                break
            for k in new:
                q = self.parameters[k]
                moved[k] = (MOVE * rng.standard_normal(q.shape)).astype(q.dtype)
            run = self.run(moved)
            # Behind a layer that has moved there may be another one of zeros, so look once more.
            found |= {i: suspects[i] for i in asleep if suspects[i] and run.alive >> i & 1}
            asleep = [i for i in asleep if i not in found]
        return found


class _NoBackward(Observer):
    """Raises an error if the loss function runs `backward()`, before a gradient has changed."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._nodes = {p.node for p in parameters}

    def on_accumulate(self, node: Node, gradient: Tensor) -> None:
        """Raise an error if the gradient is that of a parameter."""
        if node in self._nodes:
            raise RuntimeError(
                "liveness: loss_fn calls backward(), which liveness does itself; let it return "
                "the loss, and leave backward() and the optimiser's step() out"
            )


def _norm(gradient: NDArray[Any] | None) -> float | None:
    """Compute the Euclidean norm, also where squares are too large or too small for a float."""
    if gradient is None:
        return None
    values = gradient.astype(np.float64)
    largest = float(np.abs(values).max(initial=0))
    if largest == 0 or not math.isfinite(largest):
        return largest
    scale = 2.0 ** (math.frexp(largest)[1] - 1)  # a power of two rounds nothing
    return scale * float(np.linalg.norm(values / scale))


class Snapshot:
    """The attributes of all modules of a model, with the values of arrays and tensors.

    Lists, dicts and other objects in a module are searched for parameters, as by the module itself;
    whatever else they contain is not saved.
    """

    def __init__(self, model: Module) -> None:
        self._attributes = [(module, dict(vars(module))) for module in model.modules()]
        values = [value for _, own in self._attributes for value in own.values()]
        tensors = [*model.parameters(), *(v for v in values if isinstance(v, Tensor))]
        self._tensors = [
            (t, t._data, t._data.copy(), t.node, t.grad)
            for t in {id(t): t for t in tensors}.values()
        ]
        arrays = [v for v in values if isinstance(v, np.ndarray) and v.dtype.kind in "biufc"]
        self._arrays = [(array, array.copy()) for array in arrays]
        self.generators = [v for v in values if isinstance(v, np.random.Generator)]

    def hide_gradients(self) -> None:
        """Take all gradients away until `restore`: an optimiser steps what has one."""
        for tensor, *_ in self._tensors:
            tensor.zero_grad()

    def restore(self) -> None:
        """Make everything what it was; what has not changed is not written to."""
        for module, attributes in self._attributes:
            vars(module).clear()
            vars(module).update(attributes)
        for tensor, array, values, node, grad in self._tensors:
            tensor._data, tensor.node, tensor.grad = array, node, grad
            _write_back(array, values)
        for array, values in self._arrays:
            _write_back(array, values)


def _write_back(array: NDArray[Any], values: NDArray[Any]) -> None:
    if np.array_equal(array, values, equal_nan=True):
        return
    if not array.flags.writeable:
        release(array)
    array[...] = values
    mark_written(array)
