"""Predictions and losses in evaluation mode, which the ranks share.

The batches are the same for any number of ranks, because a product of 3 rows may have other last
digits than one of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigrad import random
from minigrad.core.grad_mode import no_grad
from minigrad.core.tensor import Tensor
from minigrad.data import batches
from minigrad.distributed import World, world
from minigrad.distributed.agreement import check_agreement, digest
from minigrad.distributed.tree import block
from minigrad.kernels.start import complete
from minigrad.nn.module import Module
from minigrad.training.step import count_or_rows, loss_and_count
from minigrad.training.training_data import MicroBatches

Generators = Callable[[], Sequence[np.random.Generator]]  # lists those that a model may use now


@contextmanager
def evaluation_mode(model: Module) -> Iterator[None]:
    """In a `with` block, set a model to evaluation mode and record no graph; then restore both."""
    modes = [(module, module.training) for module in model.modules()]

    def restore() -> None:
        for module, training in modes:
            module.training = training

    try:
        model.eval()
        with no_grad():
            yield
    finally:
        complete(restore)


def prediction(
    model: Module, x: NDArray[Any], batch_size: int, generators: Generators
) -> NDArray[Any]:
    """Return a model's prediction for the rows of `x`, on all ranks, in C order."""
    given = list(batches([x], batch_size, shuffle=False))
    ranks = world()
    own = []
    with _without_draws(ranks, generators), evaluation_mode(model):
        for number in block(len(given), ranks.rank, ranks.size):
            output = model(Tensor(given[number][0]))
            if not isinstance(output, Tensor):
                raise TypeError(
                    f"predict, metrics and evaluate(x, y) need a model that returns a Tensor, and "
                    f"this one returned a {type(output).__name__}; give micro-batches, a list of "
                    f"tuples (*inputs, target), of which only the loss is computed"
                )
            own.append(output.numpy())
    every = ranks.gather(np.concatenate(own) if own else None, "predict or evaluate")
    joined = np.concatenate([each for each in every if each is not None])
    return np.ascontiguousarray(joined)  # numpy adds in the order of memory


def mean_loss(
    model: Module, loss: Callable[[Any, Any], Any], data: MicroBatches, generators: Generators
) -> float:
    """Return the mean of the losses of micro-batches, weighted by their counts, on all ranks."""
    ranks = world()
    own = []  # the mean loss and the count of each micro-batch
    digests = []
    mine = block(len(data), ranks.rank, ranks.size)
    with evaluation_mode(model):
        for item in range(len(data)):  # every rank takes every item, in case items are random
            taken = data.micro_batches(np.array([item]))
            if ranks.size > 1:
                digests.append(digest(taken))
            if item in mine:
                ((*inputs, target),) = taken
                with _without_draws(ranks, generators):
                    mean, count = loss_and_count(loss(model(*inputs), target))
                count = count_or_rows(count, target)
                own.append((mean.item() if count else 0.0, count))
    check_agreement(ranks, {"the data": digest(digests)})
    losses: list[tuple[float, float]] = [*chain.from_iterable(ranks.gather(own, "evaluate"))]
    counted = sum(count for _, count in losses)
    if not counted:
        raise ValueError(f"{data.name}: the loss counted nothing")
    return sum(mean * count for mean, count in losses) / counted


@contextmanager
def _without_draws(ranks: World, generators: Generators) -> Iterator[None]:
    """Raise a ValueError if there are several ranks and the `with` block draws at random."""
    if ranks.size == 1:
        yield
        return
    before = [[g.bit_generator.state for g in generators()], random.states_of_global_generators()]
    yield
    after = [[g.bit_generator.state for g in generators()], random.states_of_global_generators()]
    if digest(before) != digest(after):
        raise ValueError(
            "the model draws random numbers in an evaluation, and each rank would draw others; "
            "evaluate such a model in one process"
        )
