"""The demo from start to end: pretrain, write, adapt, write, switch off, check the results."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import lora
from examples.charlm import texts
from examples.charlm.counting import loss_of_pairs
from examples.charlm.model import CharacterModel, Sizes
from examples.charlm.picture import draw
from examples.charlm.training import Curve, Measures, Schedule, losses_on, train
from examples.charlm.writing import longest_copied, write
from examples.command_line import check_out

MANUAL, SONNETS = "manual", "sonnets"
PAIRS, BASE, ON, OFF = "table of its pairs", "base", "base + adapter", "adapter off"

CONFIG = lora.LoRAConfig(rank=8, alpha=16, targets="all-linear", exclude=["head"])


@dataclass(frozen=True)
class Plan:
    """The size of the model, how long it trains, and how much it writes.

    Attributes:
        sizes: the sizes of the model.
        pretraining: the training on the manual.
        adapting: the training on the sonnets.
        tested: the largest number of test characters of each text.
        written: the number of characters that each model writes.
        beginning: the first word that it gets; both texts have sentences that begin with it.
    """

    sizes: Sizes
    pretraining: Schedule
    adapting: Schedule
    tested: int
    written: int
    beginning: str = "When "


FULL = Plan(
    Sizes(),
    Schedule(steps=1600, lr=3e-3, batch_size=8),
    Schedule(steps=200, lr=5e-3, batch_size=16),
    tested=8000,
    written=520,
)
QUICK = Plan(
    Sizes(d_model=64, num_heads=2, depth=1, context=32),
    Schedule(steps=280, lr=1e-2, batch_size=8, looks=4),
    Schedule(steps=80, lr=1.5e-2, batch_size=8, looks=4),
    tested=1000,
    written=60,
)


@dataclass(frozen=True)
class Result:
    """The results.

    Attributes:
        parameters: the number of parameters of the base.
        trained: the number of parameters of the adapter.
        losses: by model, then by text, in nats per character of the held-out part.
        samples: the text that each model writes, by model.
        pretraining: the losses during the training on the manual.
        adapting: the losses during the training on the sonnets.
    """

    parameters: int
    trained: int
    losses: dict[str, Measures]
    samples: dict[str, str]
    pretraining: Curve
    adapting: Curve


def main(quick: bool = False, out: str | Path = "charlm.png", capture: bool = False) -> Result:
    """Run the demo, print the losses and the written texts, and save the picture.

    Args:
        quick: run a smaller form.
        out: the file of the picture.
        capture: train with captured steps, which give the same bits.

    Raises:
        OptionError: if the picture cannot be saved at `out`.
    """
    check_out(out)
    plan = QUICK if quick else FULL
    rng = np.random.default_rng(0)
    both = {MANUAL: texts.manual(), SONNETS: texts.sonnets()}
    alphabet = texts.Alphabet(*both[MANUAL], *both[SONNETS])
    known = {name: alphabet.encode(text.known) for name, text in both.items()}
    held_out = {name: alphabet.encode(text.held_out[: plan.tested]) for name, text in both.items()}
    model = CharacterModel(len(alphabet), plan.sizes, rng)

    def learn(name: str, schedule: Schedule, what: str) -> Curve:
        return train(model, known[name], schedule, rng, measures, what, capture)

    def measures() -> Measures:
        return losses_on(model, held_out)

    def written() -> str:
        same_draws = np.random.default_rng(1)
        return write(model, alphabet, plan.beginning, plan.written, same_draws)

    losses: dict[str, Measures] = {}
    samples: dict[str, str] = {}
    losses[PAIRS] = {
        name: loss_of_pairs(known[name], held_out[name], len(alphabet)) for name in both
    }
    parameters = model.count_parameters()
    pretraining = learn(MANUAL, plan.pretraining, "pretraining")
    losses[BASE], samples[BASE] = measures(), written()
    report = lora.attach(model, CONFIG, adapter=SONNETS, rng=rng)
    adapting = learn(SONNETS, plan.adapting, "adapting")
    losses[ON], samples[ON] = measures(), written()
    lora.switch(model)  # to no adapter
    losses[OFF], samples[OFF] = measures(), written()

    result = Result(parameters, report.trainable, losses, samples, pretraining, adapting)
    print(summary(result, both[SONNETS].known))
    draw(pretraining, adapting, losses[OFF], (samples[BASE], samples[ON]), out)
    print(f"\nThe picture is in {out}")
    check(result, quick)
    return result


def check(result: Result, quick: bool) -> None:
    """Assert what the demo claims."""
    losses = result.losses
    assert losses[BASE][MANUAL] < losses[PAIRS][MANUAL] - (0.05 if quick else 0.75)
    assert losses[ON][SONNETS] < losses[BASE][SONNETS] - (0.2 if quick else 0.5)
    assert quick or losses[ON][SONNETS] < losses[PAIRS][SONNETS] - 0.4
    assert losses[ON][MANUAL] > losses[BASE][MANUAL] + 0.1, "with the adapter on, it forgets"
    assert losses[OFF] == losses[BASE], "with the adapter off, it has forgotten nothing"
    assert result.samples[OFF] == result.samples[BASE]
    assert result.samples[ON] != result.samples[BASE]


def summary(result: Result, sonnets: str) -> str:
    """Return the text to print: the losses, and the written texts."""
    lines = [
        f"The base has {result.parameters:,} parameters, the adapter {result.trained:,}.",
        "The loss of each on the held-out parts of both texts, in nats per character:",
        "",
        f"{'':20}{MANUAL:>9}{SONNETS:>9}",
        *(f"{who:20}{m[MANUAL]:9.2f}{m[SONNETS]:9.2f}" for who, m in result.losses.items()),
    ]
    for who in (BASE, ON):
        lines += ["", f"{who} writes:", "", textwrap.indent(result.samples[who], "  | ", bool)]
    copied = longest_copied(result.samples[ON], sonnets)
    same = "the same" if result.samples[OFF] == result.samples[BASE] else "something else"
    return "\n".join(
        [
            *lines,
            "",
            f"The longest part copied from the sonnets has {len(copied)} characters: {copied!r}.",
            f"With the adapter off, the base writes {same} as before, character by character.",
        ]
    )
