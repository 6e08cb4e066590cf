"""How surprised a model is by a text, and how it learns to be less so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from examples.charlm.model import CharacterModel
from examples.charlm.texts import Codes
from minigrad import Tensor, cross_entropy, no_grad
from minigrad.optim import AdamW, clip_grad_norm
from minigrad.progress import progress_bar

Measures = dict[str, float]  # the surprise by each text, by name, in nats for each character


@dataclass(frozen=True)
class Schedule:
    """How long a model learns, and how fast.

    Attributes:
        steps: of the optimiser.
        lr: the highest rate; it rises to it during the first tenth of the steps, then falls to 0.
        batch_size: the pieces of text in a step, each as long as the model's context.
        looks: how often the model is measured, evenly spread; and once before the first step.
    """

    steps: int
    lr: float
    batch_size: int
    looks: int = 10

    def rate(self, step: int) -> float:
        """The rate of a step."""
        rise, fall = 10 * (step + 1) / self.steps, 1 - step / self.steps
        return self.lr * min(rise, fall)


@dataclass
class Curve:
    """What was measured while a model learned.

    Attributes:
        steps: how many steps had been made.
        losses: by the name of a text, one for each of `steps`.
    """

    steps: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)

    def append(self, step: int, measures: Measures) -> None:
        """Add what was measured after a step."""
        self.steps.append(step)
        for name, loss in measures.items():
            self.losses.setdefault(name, []).append(loss)


def surprise(model: CharacterModel, before: Codes, after: Codes) -> Tensor:
    """The mean of -log p(the character that follows): `(batch, length)` twice, to one number."""
    scores = model(before)
    return cross_entropy(scores.reshape(-1, scores.shape[-1]), after.reshape(-1))  # type: ignore[no-any-return]


def losses_on(model: CharacterModel, texts: Mapping[str, Codes]) -> Measures:
    """The surprise by texts that are read in rows of the model's context."""
    with no_grad():
        return {
            name: surprise(model, *in_rows(codes, model.context)).item()
            for name, codes in texts.items()
        }


def in_rows(text: Codes, context: int) -> tuple[Codes, Codes]:
    """The text cut into rows of `context` characters, and the character after each of them."""
    size = (len(text) - 1) // context * context
    return text[:size].reshape(-1, context), text[1 : size + 1].reshape(-1, context)


def train(
    model: CharacterModel,
    text: Codes,
    schedule: Schedule,
    rng: np.random.Generator,
    measure: Callable[[], Measures] = dict,
    what: str = "reading",
) -> Curve:
    """AdamW on pieces from anywhere in the text; all that is trainable in the model learns.

    Args:
        model: changed in place.
        text: what is learned from.
        schedule: how long, and how fast.
        rng: where the pieces are drawn from.
        measure: what to write down from time to time; nothing, if it is not given.
        what: a word beside the progress bar.
    """
    parameters = model.trainable_parameters()
    optimizer = AdamW(parameters, lr=schedule.lr)
    curve = Curve()
    curve.append(0, measure())
    looks = {round(i * schedule.steps / schedule.looks) for i in range(1, schedule.looks + 1)}
    with progress_bar(range(schedule.steps), what=what, unit="step", shown=True) as bar:
        for step in bar:
            optimizer.param_groups[0]["lr"] = schedule.rate(step)
            starts = rng.integers(0, len(text) - model.context, schedule.batch_size)
            pieces = text[starts[:, None] + np.arange(model.context + 1)]
            optimizer.zero_grad()
            loss = surprise(model, pieces[:, :-1], pieces[:, 1:])
            loss.backward()
            clip_grad_norm(parameters, 1.0)
            optimizer.step()
            bar.set_postfix_str(f"{loss.item():.2f} nats", refresh=False)
            if step + 1 in looks:
                curve.append(step + 1, measure())
    return curve
