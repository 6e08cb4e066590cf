"""A step of training without the step: run as often as asked, and nothing is changed by it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad.core.backward import propagate
from minigrad.core.grad_mode import grad_mode
from minigrad.core.node import Node
from minigrad.core.observers import Observer, observe
from minigrad.core.tensor import Tensor
from minigrad.diagnostics.rng_state import Draws
from minigrad.diagnostics.liveness.forward_trace import Paths
from minigrad.diagnostics.liveness.snapshot import Snapshot
from minigrad.diagnostics.liveness.backward_trace import Steps
from minigrad.diagnostics.loss_call import Loss, loss_of
from minigrad.nn.module import Module, Parameter

MOVE = 0.01  # the standard deviation of what stands for a parameter of zeros that has moved


@dataclass(frozen=True)
class Run:
    """What one forward and one backward pass have shown.

    Attributes:
        loss: the result.
        paths: the ways forward.
        steps: the ways back.
        forward_ends: how many of `paths.ends` are of the forward pass; the others are of what a
            checkpoint runs again.
        norms: of each parameter's gradient; None where none arrived.
        alive: the parameters, as bits, whose gradient is not zero in every element.
        frozen: the parameters, as bits, that required no gradient at the end.
    """

    loss: Tensor
    paths: Paths
    steps: Steps
    forward_ends: int
    norms: list[float | None]
    alive: int
    frozen: int

    def is_zero(self, position: int) -> bool:
        """Whether a gradient arrived at a parameter, and it is zero in every element."""
        return self.norms[position] is not None and not self.alive >> position & 1


class Rehearsal:
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

    def run(self, moved: Mapping[int, NDArray[Any]] | None = None) -> Run:
        """One run, with other values for the parameters at the positions in `moved`."""
        paths, steps = Paths(self.parameters), Steps()
        values = [(self.parameters[i], value) for i, value in (moved or {}).items()]
        arrived: dict[Node, Any] = {}
        self._snapshot.hide_gradients()
        try:
            with grad_mode(True), _replaced(values), self._draws.put_back(), observe(paths):
                with observe(_Guard(self.parameters)):
                    loss = loss_of(*self._step)
                forward_ends = len(paths.ends)
                at_end = sum(1 << i for i, p in enumerate(self.parameters) if p.node is None)
                if loss.node is not None:
                    with observe(steps):
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
        return Run(loss, paths, steps, forward_ends, norms, alive, at_end)

    def zero_by_construction(self, first: Run) -> dict[int, int]:
        """Of the parameters whose gradient is zero in `first`, those that are so by construction.

        Returns:
            By their positions, the parameters (as bits) that were all zeros and made them so.
        """
        asleep = [i for i in range(len(self.parameters)) if first.is_zero(i)]
        suspects = dict.fromkeys(asleep, 0)
        moved: dict[int, NDArray[Any]] = {}
        found: dict[int, int] = {}
        rng = np.random.default_rng(0)
        run = first
        while asleep:
            for i in asleep:
                suspects[i] |= self._zero_factors(i, run) & run.alive & ~(1 << i)
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

    def _zero_factors(self, position: int, run: Run) -> int:
        """The parameters of zeros by which the gradient of another was multiplied, as bits."""
        node = self.parameters[position].node
        assert node is not None
        factors = 0
        for stop in run.steps.stops(node):
            for i, zero in run.paths.call(stop.node).zeros.items():
                factors |= zero.parameters if i in stop.factors else 0
        return factors


class _Guard(Observer):
    """Refuses a backward pass of the loss function's own, before it has changed a gradient."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._places = {p.node for p in parameters}

    def on_accumulate(self, place: Node, gradient: Tensor) -> None:
        """Raise if the gradient is that of a parameter."""
        if place in self._places:
            raise RuntimeError(
                "liveness: loss_fn calls backward(), which liveness does itself; let it return "
                "the loss, and leave backward() and the optimiser's step() out"
            )


@contextmanager
def _replaced(values: Sequence[tuple[Parameter, NDArray[Any]]]) -> Iterator[None]:
    """Other values for some parameters; their own memory is not written to."""
    before = [parameter._data for parameter, _ in values]
    try:
        for parameter, value in values:
            parameter._data = value
        yield
    finally:
        for (parameter, _), value in zip(values, before, strict=True):
            parameter._data = value


@contextmanager
def frozen(parameters: Sequence[Parameter]) -> Iterator[None]:
    """Without a place in the graph for a while; `requires_grad_(False)` would drop gradients."""
    before = [parameter.node for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.node = None
        yield
    finally:
        for parameter, node in zip(parameters, before, strict=True):
            parameter.node = node


def _norm(gradient: NDArray[Any] | None) -> float | None:
    """The Euclidean norm, also where squares are too large or too small for a float."""
    if gradient is None:
        return None
    values = gradient.astype(np.float64)
    largest = float(np.abs(values).max(initial=0))
    if largest == 0 or not math.isfinite(largest):
        return largest
    scale = 2.0 ** (math.frexp(largest)[1] - 1)  # a power of two rounds nothing
    return scale * float(np.linalg.norm(values / scale))
