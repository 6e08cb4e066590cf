"""What the demo measures: costs, errors, differences and their noise, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from examples.lora_regression.data import Array, Pair, Split, Task
from lora import LoRAConfig
from minigrad.metrics import r2, rmse
from minigrad.training.trainer import Trainer

NONE, FULL, LORA = "not adapted", "full fine-tuning", "LoRA"

# By number of seeds: a mean of pure noise is so many standard errors from zero in 1 % of cases. Not
# in 5 %, for the random splits share rows, which makes them more alike than independent samples.
STUDENT_T = {3: 9.92, 5: 4.60}


@dataclass(frozen=True)
class Cost:
    """What adapting took; nothing by default."""

    trainable: int = 0
    step_ms: float = 0.0  # the median step
    state_bytes: int = 0  # of the optimiser
    rate: float = 0.0  # the learning rate that validation chose
    curve: tuple[float, ...] = ()  # RMSE on the validation rows of the new group after each epoch

    @classmethod
    def of(cls, trainer: Trainer, data: Split) -> Cost:
        """What the run of `trainer` took."""
        return cls(
            trainer.model.count_parameters(trainable_only=True),
            1e3 * float(np.median([step["seconds"] for step in trainer.history.steps])),
            trainer.optimizer.state_bytes(),
            trainer.optimizer.param_groups[0]["lr"],
            tuple(data.target.scale.item() * v for v in trainer.history["validation_rmse"]),
        )


@dataclass(frozen=True)
class Outcome:
    """How one way of adapting did with one seed, and at what cost; errors in the target's unit."""

    rmse: float  # on the test rows of the new group
    r2: float
    old_rmse: float  # on the test rows of the old group
    validation_rmse: float  # on the validation rows of the new group
    given: Array  # the test rows of the new group: features, target, and what was made of them
    truth: Array
    prediction: Array
    cost: Cost

    @classmethod
    def of(cls, trainer: Trainer, data: Split, cost: Cost) -> Outcome:
        """How the model of `trainer` does on rows that it was not trained on."""

        def prediction_and_truth(pair: Pair) -> tuple[Array, Array]:
            return data.target.inverse(trainer.predict(pair[0])), data.target.inverse(pair[1])

        prediction, truth = prediction_and_truth(data.new.test)
        mean = truth.mean(axis=0)  # of each pixel: R2 = 0 is the average image, not plain grey
        return cls(
            rmse(prediction, truth),
            r2(prediction - mean, truth - mean),
            rmse(*prediction_and_truth(data.old.test)),
            rmse(*prediction_and_truth(data.new.validation)),
            data.features.inverse(data.new.test[0]),
            truth,
            prediction,
            cost,
        )


Results = dict[str, list[Outcome]]  # for each way, an outcome for each seed


@dataclass(frozen=True)
class Difference:
    """How much lower or higher one way's test RMSE is than another's, seed by seed."""

    mean: float
    error: float  # the standard error of the mean
    is_clear: bool  # or inside the noise

    def __str__(self) -> str:
        verdict = "clear" if self.is_clear else "inside the noise"
        return f"test RMSE {self.mean:+.3f} (standard error {self.error:.2g}), {verdict}"


def compare(results: Results, way: str, other: str) -> Difference:
    """The test RMSE of `way` minus that of `other`, which had the same splits."""
    differences = np.subtract([o.rmse for o in results[way]], [o.rmse for o in results[other]])
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / len(differences) ** 0.5
    return Difference(mean, error, abs(mean) > STUDENT_T[len(differences)] * error)


def table(results: Results, task: Task, config: LoRAConfig) -> str:
    """One line for each way: what it costs, and how it does on both groups."""
    rows: list[tuple[str, ...]] = [
        ("", "trains", "ms/step", "optimiser bytes", "new: RMSE", "new: R2", "old: RMSE")
    ]
    for way, outcomes in results.items():
        cost = outcomes[0].cost
        spent = ("0", "-", "0")
        if cost.trainable:
            step_ms = np.median([outcome.cost.step_ms for outcome in outcomes])
            spent = (f"{cost.trainable:,}", f"{step_ms:.2f}", f"{cost.state_bytes:,}")
        name = f"LoRA, rank {config.rank}" if way == LORA else way
        measures = [(o.rmse, o.r2, o.old_rmse) for o in outcomes]
        rows.append(
            (name, *spent, *(mean_and_spread(values) for values in zip(*measures, strict=True)))
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
    rates = {way: [o.cost.rate for o in outcomes] for way, outcomes in results.items()}
    return "\n".join(
        [
            *lines,
            "",
            f"new group: {task.new_group}; old group: {task.old_group}; RMSE in {task.unit}.",
            f"Test rows only; mean ± standard deviation of {len(results[NONE])} random splits.",
            f"Learning rates that validation chose: {rates[FULL]} ({FULL}),",
            f"{rates[LORA]} (LoRA).",
        ]
    )


def mean_and_spread(values: Sequence[float]) -> str:
    """The mean and the standard deviation over the seeds."""
    return f"{number(float(np.mean(values)))} ± {number(float(np.std(values, ddof=1)))}"


def number(value: float) -> str:
    """A number with about three digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"
