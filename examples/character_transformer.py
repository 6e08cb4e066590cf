"""A transformer of a million numbers learns to write like Python's manual, character by character.

The text is the language reference that comes with every Python: what `help("while")` shows. The
model reads pieces of 64 characters, and learns to say after each of them which comes next.

You will see how surprised it is by a part of the text that it has never read, in nats for each
character, beside tables of how often each character, and each pair of them, occurs; and a passage
that the model makes up. It takes some two minutes.

    python -m examples.character_transformer
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pydoc_data.topics import topics

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from minigrad import Tensor, cross_entropy, no_grad
from minigrad.nn import Embedding, LayerNorm, Linear, Module, Sequential, TransformerBlock, init
from minigrad.optim import AdamW, clip_grad_norm

Text = NDArray[np.int64]  # each character is its place in the alphabet


@dataclass(frozen=True)
class Plan:
    """How large the model is, and how long it learns."""

    d_model: int = 128
    num_heads: int = 4
    depth: int = 5
    steps: int = 1800
    lr: float = 2e-3
    context: int = 64
    batch_size: int = 8


QUICK = Plan(d_model=96, num_heads=2, depth=1, steps=500, lr=6e-3)


@dataclass(frozen=True)
class Result:
    """What came of it; losses are in nats for each character of the part held out."""

    parameters: int
    unigram: float
    bigram: float
    transformer: float
    sample: str


class LanguageModel(Module):
    """Scores of what comes next: `(batch, length)` characters to `(batch, length, alphabet)`."""

    def __init__(self, alphabet: int, plan: Plan, rng: np.random.Generator) -> None:
        self.characters = Embedding(alphabet, plan.d_model, rng=rng)
        self.positions = Embedding(plan.context, plan.d_model, rng=rng)
        for embedding in (self.characters, self.positions):
            init.normal_(embedding.weight, std=0.2, rng=rng)  # so that blocks soon add as much
        self.blocks = Sequential(
            *(
                TransformerBlock(plan.d_model, plan.num_heads, causal=True, rng=rng)
                for _ in range(plan.depth)
            )
        )
        self.norm = LayerNorm(plan.d_model)
        self.head = Linear(plan.d_model, alphabet, rng=rng)

    def forward(self, text: Text) -> Tensor:
        """The scores after each character."""
        x = self.characters(text) + self.positions(np.arange(text.shape[1]))
        return self.head(self.norm(self.blocks(x)))  # type: ignore[no-any-return]


def main(quick: bool = False) -> Result:
    """Train, compare with the tables on the last tenth of the text, and write a passage."""
    plan = QUICK if quick else Plan()
    rng = np.random.default_rng(0)
    letters, places = np.unique(list(manual()), return_inverse=True)
    known, held_out = np.split(places, [len(places) * 9 // 10])
    model = LanguageModel(len(letters), plan, rng)
    train(model, known, plan, rng)

    before, after = in_rows(held_out, plan.context)
    with no_grad():
        loss = surprise(model, before, after).item()
    written = write(model, known[:1], 80 if quick else 500, plan.context, rng)
    result = Result(
        model.count_parameters(),
        *by_counting(known, before, after, len(letters)),
        loss,
        "".join(letters[written]),
    )
    read = plan.steps * plan.batch_size * plan.context
    print(
        f"A transformer of {result.parameters:,} numbers has read {read:,} characters.\n"
        f"How surprised it is by {after.size:,} others, in nats for each:\n\n"
        f"  table of characters  {result.unigram:.2f}\n"
        f"  table of pairs       {result.bigram:.2f}\n"
        f"  transformer          {result.transformer:.2f}\n\n"
        f"A passage that it makes up:\n\n{textwrap.indent(result.sample, '  | ', bool)}"
    )
    assert result.bigram < result.unigram
    assert result.transformer < result.bigram - (0.3 if quick else 0.8)
    return result


def manual() -> str:
    """The language reference. A paragraph that topics share is there once, so none is known."""
    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs))


def surprise(model: Module, text: Text, following: Text) -> Tensor:
    """The mean of -log p(the character that follows)."""
    scores = model(text)
    return cross_entropy(scores.reshape(-1, scores.shape[-1]), following.reshape(-1))


def train(model: Module, text: Text, plan: Plan, rng: np.random.Generator) -> None:
    """AdamW on pieces from anywhere in the text, at a rate that rises at first, then falls to 0."""
    optimizer = AdamW(model.parameters(), lr=plan.lr)
    with tqdm(range(plan.steps), desc="reading", unit="step", leave=False) as bar:
        for step in bar:
            rise, fall = 10 * (step + 1) / plan.steps, 1 - step / plan.steps
            optimizer.param_groups[0]["lr"] = plan.lr * min(rise, fall)
            starts = rng.integers(0, len(text) - plan.context, plan.batch_size)
            pieces = text[starts[:, None] + np.arange(plan.context + 1)]
            optimizer.zero_grad()
            loss = surprise(model, pieces[:, :-1], pieces[:, 1:])
            loss.backward()
            clip_grad_norm(model.parameters(), 1.0)
            optimizer.step()
            bar.set_postfix_str(f"{loss.item():.2f} nats", refresh=False)


def in_rows(text: Text, context: int) -> tuple[Text, Text]:
    """The text cut into rows of `context` characters, and the character after each of them."""
    size = (len(text) - 1) // context * context
    return text[:size].reshape(-1, context), text[1 : size + 1].reshape(-1, context)


def by_counting(known: Text, before: Text, after: Text, alphabet: int) -> tuple[float, float]:
    """The mean of -log p(after), with p from counting single characters, and from counting pairs.

    Something is added to each count, so that nothing is impossible. How much is chosen by the
    characters to be judged, in favour of the tables.
    """
    pairs = np.zeros((alphabet, alphabet))
    np.add.at(pairs, (known[:-1], known[1:]), 1)

    def best(counts: NDArray[np.float64]) -> float:
        tables = [counts + extra for extra in (0.01, 0.03, 0.1, 0.3, 1.0)]
        chances = [(table / table.sum(axis=1, keepdims=True))[before, after] for table in tables]
        return min(float(-np.log(chance).mean()) for chance in chances)

    return best(np.broadcast_to(pairs.sum(axis=0), pairs.shape)), best(pairs)


def write(model: Module, text: Text, count: int, context: int, rng: np.random.Generator) -> Text:
    """`text` and `count` more characters, each drawn from what the model expects.

    Its scores are divided by 0.7 first, which favours what is likely. The largest of scores with
    Gumbel noise is a draw from their softmax.
    """
    for _ in range(count):
        with no_grad():
            scores = model(text[None, -context:]).numpy()[0, -1]
        text = np.append(text, np.argmax(scores / 0.7 + rng.gumbel(size=scores.shape)))
    return text


if __name__ == "__main__":
    main()
