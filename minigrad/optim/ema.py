"""EMA: an exponential moving average of the weights, often better than the last weights.

    ema = EMA(model, decay=0.999)
    for x, y in batches:
        ...
        optimizer.step()
        ema.update()
    with ema.applied():
        ...  # the model computes with the averages

The averages do not influence the training, which uses the weights themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad import kernels
from minigrad.checks import check_count, check_flag, check_range, check_state
from minigrad.core.grad_mode import observed
from minigrad.core.tensor import Tensor
from minigrad.kernels.start import complete
from minigrad.nn.module import Module, load_values
from minigrad.optim.optimizer import check_ordered, dtype_of_state
from minigrad.tables import counted
from minigrad.versions import last_write, last_written


class EMA:
    """An exponential moving average of each weight, after Polyak and Juditsky (1992).

        average <- decay average + (1 - decay) weight

    The averages start as the present weights, and every update averages. (The first update of
    PyTorch's AveragedModel copies the weights instead.) Parameters that are frozen at the start
    have no average, and must stay frozen. Averages of float16 are float32, because float16 would
    round small changes away. Buffers, such as running means, are not averaged: in `applied()` they
    keep their values.

    Args:
        model_or_parameters: a module, or tensors.
        decay: the weight of the old average in an update.
        warmup: whether the decay is smaller at first, min(decay, (1 + n) / (10 + n)) after n
            updates, so that the first weights are soon forgotten.

    Attributes:
        parameters: a dict of the averaged parameters by name (by number, if tensors were given).
        averages: a dict of the averages by name, as arrays.
        updates: the number of updates so far.
        is_applied: whether the parameters have the values of the averages, within `applied()`.

    Raises:
        TypeError: if the parameters are one tensor or a set instead of a list, one of them is not a
            tensor, `decay` is not a number, or `warmup` is not True or False.
        ValueError: if a parameter is not a leaf, no parameter requires a gradient, or `decay` is
            not in [0, 1].
    """

    def __init__(
        self,
        model_or_parameters: Module | Iterable[Tensor],
        decay: float = 0.999,
        warmup: bool = False,
    ) -> None:
        _check_options(decay, warmup)
        self.decay, self.warmup, self.updates = decay, warmup, 0
        named = _named(model_or_parameters)
        self.parameters = {name: p for name, p in named.items() if p.requires_grad}
        self._frozen = {name: p for name, p in named.items() if not p.requires_grad}
        if not self.parameters:
            raise ValueError("EMA: none of the parameters requires a gradient, so none will change")
        own = self.parameters.items()
        self.averages = {name: np.array(p._data, dtype_of_state(p), order="C") for name, p in own}
        self.is_applied = False

    def update(self) -> None:
        """Update the averages with the present weights; call it after `optimizer.step()`.

        Raises:
            RuntimeError: inside `applied()`, or if a frozen parameter was unfrozen. Nothing is
                changed then.
        """
        observed(self._advance)

    def _advance(self) -> None:
        self.check_outside("update()")
        for name, parameter in self._frozen.items():
            if parameter.requires_grad:
                raise RuntimeError(
                    f"EMA: {name} was frozen when the averages were started, so it has none, and "
                    f"now it requires a gradient; make a new EMA, next time before freezing"
                )
        early = (1 + self.updates) / (10 + self.updates)
        decay = float(min(self.decay, early) if self.warmup else self.decay)
        for name, parameter in self.parameters.items():
            dtype = dtype_of_state(parameter)
            if self.averages[name].dtype != dtype:  # the model was converted
                self.averages[name] = self.averages[name].astype(dtype)
        xs = [parameter._data for parameter in self.parameters.values()]
        averages = [self.averages[name] for name in self.parameters]
        kernels.optim.ema([xs, averages], (1 - decay,))
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the weights by the averages in a `with` block, and restore them at its end.

        Use it to validate, to predict or to save, but not to train: what the block writes to the
        parameters is lost at its end. A graph that was recorded before the block cannot be used for
        a backward pass after it, because the weights were written.

        Raises:
            RuntimeError: if blocks are nested, or, at the end of the block, if it has written to a
                parameter. In both cases the weights are restored.
        """
        self.check_outside("applied()")
        weights = {name: parameter._data.copy() for name, parameter in self.parameters.items()}

        def restore() -> None:
            self.is_applied = False
            self._write(weights)

        try:
            self.is_applied = True
            self._write(self.averages)
            now = last_write[0]
            yield
            written = [n for n in weights if last_written(self.parameters[n]._data) > now]
        finally:
            complete(restore)
        if written:
            raise RuntimeError(
                f"EMA: {', '.join(written):.200} changed inside applied(), and the change is lost, "
                f"because the weights from before are back; train and load outside"
            )

    def copy_to(self) -> None:
        """Copy the averages to the parameters, for good.

        Raises:
            RuntimeError: inside `applied()`.
        """
        observed(self._copy_to)

    def _copy_to(self) -> None:
        self.check_outside("copy_to()")
        self._write(self.averages)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the averages by name, the number of updates and the options."""
        return {
            "averages": {name: average.copy() for name, average in self.averages.items()},
            "updates": self.updates,
            "decay": self.decay,
            "warmup": self.warmup,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state that `state_dict` returned, with its options.

        If there is an error, nothing is changed.

        Raises:
            ValueError: if the state belongs to other parameters, or has an impossible value.
            TypeError: if an option has a value of another type.
            RuntimeError: inside `applied()`.
        """
        self.check_outside("load_state_dict()")
        check_state("an EMA", state_dict, ("averages", "updates", "decay", "warmup"))
        check_count("load_state_dict: updates", state_dict["updates"])
        _check_options(state_dict["decay"], state_dict["warmup"])
        own = self.parameters.items()
        averages = {name: Tensor(np.empty(p.shape, dtype_of_state(p))) for name, p in own}
        load_values(averages, state_dict["averages"], "EMA")
        self.averages = {name: average._data for name, average in averages.items()}
        self.updates = state_dict["updates"]
        self.decay, self.warmup = state_dict["decay"], state_dict["warmup"]

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes to copy; a copy made inside `applied()` is in no block."""
        return vars(self) | {"is_applied": False}

    def _write(self, values: Mapping[str, NDArray[Any]]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def check_outside(self, what: str) -> None:
        """Raise a RuntimeError about `what` inside `applied()`."""
        if self.is_applied:
            raise RuntimeError(
                f"EMA: {what} inside applied(), where the averages replace the weights; leave the "
                f"`with` block first"
            )

    def __repr__(self) -> str:
        tensors = counted(len(self.parameters), "tensor")
        parameters = counted(sum(p.size for p in self.parameters.values()), "parameter")
        options = f"decay={self.decay}, warmup={self.warmup}, updates={self.updates}"
        return f"EMA({tensors}, {parameters}, {options})"


def _named(model_or_parameters: Module | Iterable[Tensor]) -> dict[str, Tensor]:
    if isinstance(model_or_parameters, Module):
        return dict(model_or_parameters.named_parameters())
    check_ordered("EMA: parameters without a Module", model_or_parameters, (Tensor,))
    named = {str(k): tensor for k, tensor in enumerate(model_or_parameters)}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"EMA: element {name} must be a Tensor, not {type(tensor).__name__}")
        if not tensor.is_leaf:
            raise ValueError(f"EMA: parameter {name} is {tensor.describe()}, and no leaf")
    return named


def _check_options(decay: Any, warmup: Any) -> None:
    check_range("EMA: decay", decay, 0, 1)
    check_flag("EMA: warmup", warmup)
