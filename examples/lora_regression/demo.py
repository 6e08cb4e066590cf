"""The demo from start to end: split, pretrain, adapt in three ways, compare, merge, draw."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import lora
import minigrad
from examples.command_line import check_out
from examples.lora_regression.data import Array, Parts, Task, chosen_task, split
from examples.lora_regression.picture import draw
from examples.lora_regression.report import (
    FULL,
    LORA,
    NONE,
    Cost,
    Outcome,
    Results,
    compare,
    table,
)
from minigrad.metrics import rmse
from minigrad.nn import MLP, Module
from minigrad.optim import SGD, Adam, AdamW, Optimizer
from minigrad.progress import progress_bar
from minigrad.training.trainer import Trainer

HIDDEN = (256, 256, 256)
ADAPTED_LAYERS = ("layers.1", "layers.2")  # the two of 256 x 256, which hold most of the weights

# Both ways of training choose from the same rates, by their validation rows.
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": partial(SGD, momentum=0.9),
    "adam": Adam,
    "adamw": AdamW,
}
RATES = {"sgd": (0.03, 0.1, 0.3), "adam": (0.001, 0.003, 0.01), "adamw": (0.001, 0.003, 0.01)}

MERGE_TOLERANCE = 1e-4  # of the largest prediction: float32 rounds in the seventh digit


@dataclass(frozen=True)
class Plan:
    """What is the same for all seeds."""

    config: lora.LoRAConfig
    optimizer: str
    epochs: int
    pretraining_steps: int


def main(
    quick: bool = False,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    scaling: str = "standard",
    optimizer: str = "adam",
    epochs: int = 40,
    seed: int = 0,
    out: str | Path = "lora_regression.png",
    csv: str | Path | None = None,
    target: str | None = None,
    shift_by: str | None = None,
) -> Results:
    """Run the demo, print the table, save the picture, and return the results.

    Raises:
        ValueError: if an option or the CSV file cannot be used.
    """
    config = lora.LoRAConfig(
        rank=rank, alpha=alpha, targets=ADAPTED_LAYERS, scaling=lora.LoRAScaling(scaling)
    )
    plan = Plan(config, optimizer, min(epochs, 12) if quick else epochs, 700 if quick else 4000)
    check_options(plan, seed, Path(out))
    task = chosen_task(csv, target, shift_by)
    seeds = range(seed, seed + (3 if quick else 5))
    runs = [
        run(task, plan, np.random.default_rng(s))
        for s in progress_bar(seeds, what="pretraining and adapting", unit="split", shown=True)
    ]
    results = {way: [outcomes[way] for outcomes, _ in runs] for way in (NONE, FULL, LORA)}
    change = max(change for _, change in runs)

    gain, price = compare(results, LORA, NONE), compare(results, LORA, FULL)
    print(table(results, task, config))
    print(
        f"\nLoRA against no adaptation:    {gain}"
        f"\nLoRA against full fine-tuning: {price}"
        f"\n\nMerging changes predictions by at most {change:.1e} of the largest (allowed: "
        f"{MERGE_TOLERANCE:.0e});\nunmerging gives the base back to the bit."
    )
    draw(results, task, out)
    print(f"The picture is in {out}")

    assert results[LORA][0].cost.trainable < results[FULL][0].cost.trainable
    assert results[LORA][0].cost.state_bytes < results[FULL][0].cost.state_bytes
    if csv is None and config == lora.LoRAConfig(targets=ADAPTED_LAYERS):
        # With other data or adapters no more is claimed than the lines above say.
        assert gain.is_clear
        assert gain.mean < 0
    return results


def run(task: Task, plan: Plan, rng: np.random.Generator) -> tuple[dict[str, Outcome], float]:
    """Split, pretrain, adapt in three ways, and merge: the outcomes, and what merging changed."""
    data = split(task, rng)
    base = pretrain(data.old, plan.pretraining_steps, rng)
    full = adapt(lambda: copy.deepcopy(base.model), data.new, plan, rng)
    low_rank = adapt(lambda: with_adapters(base.model, plan.config, rng), data.new, plan, rng)
    outcomes = {
        NONE: Outcome.of(base, data, Cost()),
        FULL: Outcome.of(full, data, Cost.of(full, data)),
        LORA: Outcome.of(low_rank, data, Cost.of(low_rank, data)),
    }
    return outcomes, merge_and_take_back(low_rank, base, data.new.test[0])


def pretrain(old: Parts, steps: int, rng: np.random.Generator) -> Trainer:
    """A network for the old group: trained until its validation loss stops falling."""
    sizes = (old.train[0].shape[1], *HIDDEN, old.train[1].shape[1])
    model = MLP(sizes, rng=rng)
    trainer = Trainer(
        model,
        Adam(model.parameters(), lr=1e-3),
        minigrad.mse,
        patience=10,
        progress=False,
        metrics=[rmse],
        rng=rng,
    )
    steps_per_epoch = -(-len(old.train[0]) // trainer.batch_size)
    trainer.fit(old.train, max(1, min(100, steps // steps_per_epoch)), old.validation)
    trainer.restore_best()
    return trainer


def with_adapters(base: Module, config: lora.LoRAConfig, rng: np.random.Generator) -> Module:
    """A copy of the network with a LoRA adapter on some layers, and all else frozen."""
    model = copy.deepcopy(base)
    lora.attach(model, config, rng=rng)
    return model


def adapt(start: Callable[[], Module], new: Parts, plan: Plan, rng: np.random.Generator) -> Trainer:
    """Train what is trainable in `start()` with each learning rate; the best by validation."""
    trainers = []
    for rate in RATES[plan.optimizer]:
        model = start()
        trainer = Trainer(
            model,
            OPTIMIZERS[plan.optimizer](model.trainable_parameters(), lr=rate),
            minigrad.mse,
            batch_size=8,
            clip_norm=1.0,
            patience=plan.epochs,  # so no run ends early, but the best weights are kept
            progress=False,
            metrics=[rmse],
            rng=rng,
        )
        try:
            trainer.fit(new.train, plan.epochs, new.validation)
        except FloatingPointError:
            continue  # this rate is too large, and another will do
        trainer.restore_best()
        trainers.append(trainer)
    if not trainers:
        raise ValueError("training diverged with every learning rate; try a smaller --alpha")
    return min(trainers, key=lambda trainer: min(trainer.history["validation_loss"]))


def merge_and_take_back(low_rank: Trainer, base: Trainer, x: Array) -> float:
    """Merge, and undo it: how much predictions changed, as a share of the largest.

    The asserts say what is promised of a merge, and of its undoing: there, to the bit.
    """
    model = low_rank.model
    separate = low_rank.predict(x)
    lora.merge(model)
    difference = float(np.abs(low_rank.predict(x) - separate).max() / np.abs(separate).max())
    assert difference < MERGE_TOLERANCE
    lora.unmerge(model)
    assert np.array_equal(low_rank.predict(x), separate)
    rows = minigrad.Tensor(x)
    with lora.disabled(model), minigrad.no_grad():
        assert np.array_equal(model(rows).numpy(), base.model(rows).numpy())
    weights = lora.detach(model).state_dict()
    for name, value in base.model.state_dict().items():
        assert weights[name].tobytes() == value.tobytes(), f"{name} has changed"
    return difference


def check_options(plan: Plan, seed: int, out: Path) -> None:
    """Refuse what would otherwise fail only after the work is done."""
    if plan.config.rank >= min(HIDDEN) // 2:
        raise ValueError(
            f"--rank must be below {min(HIDDEN) // 2}, where the update of a layer has as many "
            f"numbers as the layer"
        )
    if plan.epochs < 1:
        raise ValueError(f"--epochs must be at least 1, not {plan.epochs}")
    if seed < 0:
        raise ValueError(f"--seed must not be negative, but is {seed}")
    check_out(out)
