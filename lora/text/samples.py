"""The picture of a training run: its losses, and some answers without and with the adapter."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lora.attaching import disabled
from lora.text.data import Row
from lora.text.generating import TextGenerator
from lora.text.model import LanguageModel
from lora.text.tokenization import Tokenizer
from minigrad.progress import progress_bar

SAMPLES, MOST_TOKENS = 2, 40  # the number of answers, and the largest number of tokens in one
BEGINNING = 12  # the number of tokens that are the prompt of a text without a prompt
LETTERS = 105  # the largest number of characters of a text in the picture


@dataclass(frozen=True)
class Sample:
    """A prompt, the answer in the data, and the answers without the adapter and with it."""

    prompt: str
    expected: str
    before: str
    after: str

    def __str__(self) -> str:
        return (
            f"prompt:  {self.prompt!r}\n  data:    {self.expected!r}\n"
            f"  before:  {self.before!r}\n  after:   {self.after!r}"
        )


def write_samples(
    model: LanguageModel, tokenizer: Tokenizer, rows: Sequence[Row], progress: bool = True
) -> list[Sample]:
    """Answer the prompts of some rows, always with the likeliest tokens.

    The rows are evenly spread; one whose prompt has been answered is skipped. For a text without a
    prompt, or with a prompt of one token, the first words are the prompt.
    """
    writer = TextGenerator(model, tokenizer, max_tokens=MOST_TOKENS)
    chosen: dict[tuple[int, ...], Row] = {}  # by the prompt
    for i in range(SAMPLES):
        for row in rows[len(rows) * i // SAMPLES :]:
            prompt = (*row.ids[: _end_of_prompt(row)].tolist(),)
            if prompt not in chosen:
                chosen[prompt] = row
                break
    found = []
    for row in progress_bar([*chosen.values()], what="answering", unit="prompt", shown=progress):
        ids, begin = row.ids.tolist(), _end_of_prompt(row)
        answer = ids[begin : begin + int(np.argmin(np.append(row.counted[begin:], False)))]
        if tokenizer.eos_token_id in answer:  # a template may write more after it
            answer = answer[: answer.index(tokenizer.eos_token_id)]
        with disabled(model):
            before = tokenizer.decode(list(writer.tokens_after(ids[:begin])))
        after = tokenizer.decode(list(writer.tokens_after(ids[:begin])))
        found.append(Sample(tokenizer.decode(ids[:begin]), tokenizer.decode(answer), before, after))
    return found


def _end_of_prompt(row: Row) -> int:
    """Return the number of tokens in the prompt of a row."""
    begin = int(np.argmax(row.counted))
    return begin if begin > 1 else min(BEGINNING, max(1, len(row.ids) // 2))


def draw(
    steps: Sequence[dict[str, float]], samples: Sequence[Sample], path: str | os.PathLike[str]
) -> None:
    """Save a picture of the training losses, the validation losses and the samples.

    An ImportError is raised without matplotlib, and a ValueError if the suffix of the path is not
    that of a picture.
    """
    from minigrad.viz.figure import BLUE, INK, VERMILLION, Picture, open_frame, ticks_at_integers

    figure = Picture(9, 4 + 1.1 * len(samples), path)
    axes, *panels = figure.subplots(
        1 + len(samples), 1, height_ratios=[4, *[1.1] * len(samples)], squeeze=False
    )[:, 0]
    numbers, losses = [s["step"] for s in steps], [s["loss"] for s in steps]
    axes.plot(numbers, losses, color="0.75", linewidth=0.9, label="each step")
    width = max(1, len(steps) // 20)
    if width > 1:
        means = np.convolve(losses, np.ones(width) / width, "valid")
        axes.plot(numbers[width - 1 :], means, color=INK, label=f"mean of {width} steps")
    if judged := [(s["step"], s["validation_loss"]) for s in steps if "validation_loss" in s]:
        axes.plot(*zip(*judged, strict=True), "o-", color=VERMILLION, label="validation")
    axes.set(xlabel="step", ylabel="loss per token that counts", title="Training of the adapter")
    axes.set_ylim(bottom=min([0.0, *losses]))
    ticks_at_integers(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)  # explicit, so no warning that it is slow
    open_frame(axes)
    for panel, sample in zip(panels, samples, strict=True):
        panel.set_axis_off()
        panel.text(0, 1, _cut(sample.prompt), va="top", weight="bold", transform=panel.transAxes)
        for y, color, what, text in (
            (0.74, VERMILLION, "before", sample.before),
            (0.5, BLUE, "after", sample.after),
            (0.26, INK, "data", sample.expected),
        ):
            panel.text(0, y, what, va="top", color=color, transform=panel.transAxes)
            panel.text(0.08, y, _cut(text), va="top", transform=panel.transAxes)
    figure.saved()


def _cut(text: str) -> str:
    """Return a text as one line, cut to fit; a square replaces characters that the font lacks."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    line = " ".join(text.split())
    line = "".join(c if ord(c) in known else "\N{WHITE SQUARE}" for c in line)
    return line if len(line) <= LETTERS else f"{line[: LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"
