"""The loss of a model on a text, and the training that lowers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from examples.charlm.model import CharacterModel
from examples.charlm.texts import Codes
from minigrad import Tensor, capture, cross_entropy, no_grad, reshape
from minigrad.optim import AdamW, clip_grad_norm
from minigrad.progress import progress_bar

Measures = dict[str, float]  # the loss on each text, by name, in nats per character


@dataclass(frozen=True)
class Schedule:
    """How long a model trains, and with which learning rate.

    Attributes:
        steps: the number of steps of the optimiser.
        lr: the scale of the learning rate, which rises to nearly `lr` in the first eleventh of the
            steps, and then falls to 0.
        batch_size: the number of pieces of text in a step, each as long as the model's context.
        looks: how often the model is tested, at equal distances; it is also tested before training.
    """

    steps: int
    lr: float
    batch_size: int
    looks: int = 10

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, lr min(10 (step + 1) / steps, 1 - step / steps)."""
        rise, fall = 10 * (step + 1) / self.steps, 1 - step / self.steps
        return self.lr * min(rise, fall)


@dataclass
class Curve:
    """The losses that were measured during a training.

    Attributes:
        steps: the number of steps before each measurement.
        losses: for the name of each text, one loss for each of `steps`.
    """

    steps: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)

    def append(self, step: int, measures: Measures) -> None:
        """Add the losses that were measured after a step."""
        self.steps.append(step)
        for name, loss in measures.items():
            self.losses.setdefault(name, []).append(loss)


def loss_of(model: CharacterModel, before: Codes, after: Codes) -> Tensor:
    """Return the cross-entropy, the mean of -log p(next character); codes are `(batch, length)`."""
    scores = model(before)
    rows = reshape(scores, (-1, scores.shape[-1]))
    return cross_entropy(rows, reshape(after, (-1,)))


def losses_on(model: CharacterModel, texts: Mapping[str, Codes]) -> Measures:
    """Return the loss on each text, which is cut into rows as long as the model's context."""
    with no_grad():
        return {
            name: loss_of(model, *in_rows(codes, model.context)).item()
            for name, codes in texts.items()
        }


def in_rows(text: Codes, context: int) -> tuple[Codes, Codes]:
    """Cut a text into rows of `context` characters; return also the next characters."""
    size = (len(text) - 1) // context * context
    return text[:size].reshape(-1, context), text[1 : size + 1].reshape(-1, context)


def train(
    model: CharacterModel,
    text: Codes,
    schedule: Schedule,
    rng: np.random.Generator,
    measure: Callable[[], Measures] = dict,
    what: str = "reading",
    captured: bool = False,
) -> Curve:
    """Train all trainable parameters by AdamW, on pieces from random positions in the text.

    Args:
        model: the model, which is changed in place.
        text: the text to learn from.
        schedule: how long to train, and with which learning rate.
        rng: the generator that draws the pieces.
        measure: a function that returns the losses to record; by default it returns none.
        what: the word in front of the progress bar.
        captured: whether to train with captured steps, which give the same bits.
    """
    parameters = model.trainable_parameters()
    optimizer = AdamW(parameters, lr=schedule.lr)

    def train_on(before: Codes, after: Codes) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, before, after)
        loss.backward()
        clip_grad_norm(parameters, 1.0)
        optimizer.step()
        return loss

    make_step = capture(train_on) if captured else train_on
    curve = Curve()
    curve.append(0, measure())
    looks = {round(i * schedule.steps / schedule.looks) for i in range(1, schedule.looks + 1)}
    with progress_bar(range(schedule.steps), what=what, unit="step", shown=True) as bar:
        for step in bar:
            optimizer.lr = schedule.rate(step)
            starts = rng.integers(0, len(text) - model.context, schedule.batch_size)
            pieces = text[starts[:, None] + np.arange(model.context + 1)]
            loss = make_step(pieces[:, :-1], pieces[:, 1:])
            bar.set_postfix_str(f"{loss.item():.2f} nats", refresh=False)
            if step + 1 in looks:
                curve.append(step + 1, measure())
    return curve
