"""GradientRecorder: how large the gradient of each layer was at each step.

    recorder = GradientRecorder(model)
    with minigrad.observe(recorder):          # a Trainer, or a loop of your own
        trainer.fit((x, y), epochs=20)
    plot_gradients(recorder)

In the block each step of an optimiser is recorded. Where there is no optimiser, call
`recorder.record()` after each `backward()` instead.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from minigrad.core.observers import Observer
from minigrad.nn import Module, Parameter
from minigrad.optim import grad_norm

if TYPE_CHECKING:
    from minigrad.optim import Optimizer


class GradientRecorder(Observer):
    """Watches the gradients of a model.

    Gradients are recorded as the optimiser has used them: summed over the batches of a step, and
    after clipping.

    Args:
        model: the model; parameters that are frozen now are left out.
        by: "layer" takes the parameters of a module, such as weight and bias, as one vector;
            "parameter" takes each by itself.

    Attributes:
        by: what a row stands for.
        norms: by name, in the order of the model, the Euclidean norm of the gradient at each step:
            nan where there was none, and inf where NaN or Inf was in it.

    Raises:
        TypeError: if the model is no Module.
        ValueError: if `by` is something else, or no parameter requires a gradient.
    """

    def __init__(self, model: Module, by: Literal["layer", "parameter"] = "layer") -> None:
        if not isinstance(model, Module):
            raise TypeError(f"GradientRecorder watches a Module, not {model!r:.60}")
        if by not in ("layer", "parameter"):
            raise ValueError(f"by is 'layer' or 'parameter', not {by!r}")
        self.by = by
        self._groups: dict[str, list[Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                layer = name.rpartition(".")[0] or type(model).__name__
                self._groups.setdefault(layer if by == "layer" else name, []).append(parameter)
        if not self._groups:
            raise ValueError("no parameter of the model requires a gradient; nothing to record")
        self._own = {id(p) for group in self._groups.values() for p in group}
        self.norms: dict[str, list[float]] = {name: [] for name in self._groups}

    def __len__(self) -> int:
        """Return how many steps were recorded."""
        return len(next(iter(self.norms.values())))

    def __repr__(self) -> str:
        return f"GradientRecorder({len(self.norms)} {self.by}s, {len(self)} steps)"

    def record(self) -> None:
        """Record the gradients that are there now as one step."""
        for name, parameters in self._groups.items():
            self.norms[name].append(_norm(parameters))

    def on_step(self, optimizer: Optimizer) -> None:
        """Record a step of an optimiser that trains some of the model's parameters."""
        stepped = (p for group in optimizer.param_groups for p in group["params"])
        if any(id(p) in self._own for p in stepped):
            self.record()


def _norm(parameters: list[Parameter]) -> float:
    if all(parameter.grad is None for parameter in parameters):
        return math.nan
    norm = grad_norm(parameters)
    return norm if math.isfinite(norm) else math.inf
