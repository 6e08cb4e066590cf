"""Fine-tune MiniLM, by LoRA on query and value, to find the function that a sentence describes.

For each batch of pairs, the model has to find the head of each sentence, and vice versa:

    scores = E(sentences) E(heads)^T / t,     loss = (CE(scores, 0 1 2 ...) + CE(scores^T, ...)) / 2

(van den Oord et al., 2018, with negatives from the batch; t is a temperature.) We test the search
on held-out packages of the library: for each sentence, the model ranks all heads of these packages.
We chose the hyperparameters in `Plan` with other packages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

import lora
from examples.command_line import OptionError, check_out
from examples.minilm.encoder import MiniLM
from examples.minilm.library import Pair, pairs
from examples.minilm.picture import draw
from examples.minilm.pretrained import Texts, load
from lora.peft.folder import check_can_be_folder
from minigrad import Tensor, cross_entropy
from minigrad.optim import Adam
from minigrad.progress import progress_bar

LETTERS, BEFORE, AFTER = "letters in common", "MiniLM", "MiniLM + LoRA"
ADAPTED = ("query", "value")  # in each attention layer, as in the LoRA paper
TEMPERATURE = 0.05

Vectors = NDArray[np.float32]
Ranks = NDArray[np.int64]  # the rank of the right head for each sentence, from 1


@dataclass(frozen=True)
class Plan:
    """The hyperparameters of the fine-tuning, and how many pairs are tested."""

    rank: int = 8
    steps: int = 80
    batch_size: int = 32
    lr: float = 1e-3
    test_every: int = 1  # test every n-th held-out pair


QUICK = Plan(steps=25, batch_size=16, test_every=3)


@dataclass(frozen=True)
class Result:
    """The results.

    Attributes:
        held_out: the test pairs.
        ranks: the ranks of the right heads, by search method.
        vectors: the vectors of the sentences and of the heads, before and after fine-tuning.
        model: the model with its adapter.
    """

    held_out: list[Pair]
    ranks: dict[str, Ranks]
    vectors: dict[str, tuple[Vectors, Vectors]]
    model: MiniLM

    def first(self, method: str) -> float:
        """Return the share of sentences whose function has rank 1."""
        return float((self.ranks[method] == 1).mean())

    def mrr(self, method: str) -> float:
        """Return the mean of 1 / rank."""
        return float((1 / self.ranks[method]).mean())


def main(
    quick: bool = False, out: str | Path = "minilm.png", adapter: str | Path | None = None
) -> Result:
    """Test, fine-tune and test again; print the table, draw the picture, save the adapter.

    Raises:
        OptionError: if the picture cannot be saved at `out`, or the adapter in its folder.
        MissingWeightsError: if the package with the weights is not installed.
    """
    check_out(out)
    if adapter is not None:
        try:
            check_can_be_folder(adapter)
        except (OSError, ValueError) as error:
            raise OptionError(f"--adapter: {error}") from None
    plan = QUICK if quick else Plan()
    rng = np.random.default_rng(0)
    texts, model = Texts(longest=64), load()
    every = pairs()
    known = [pair for pair in every if not pair.held_out]
    held_out = [pair for pair in every if pair.held_out][:: plan.test_every]

    vectors = {BEFORE: embedded(model, texts, held_out)}
    lora.attach(model, lora.LoRAConfig(rank=plan.rank, targets=ADAPTED), rng=rng)
    train(model, texts, known, plan, rng)
    vectors[AFTER] = embedded(model, texts, held_out)

    ranks = {LETTERS: ranks_of(by_letters(known, held_out))}
    ranks |= {method: ranks_of(a @ b.T) for method, (a, b) in vectors.items()}
    result = Result(held_out, ranks, vectors, model)
    report(result, known, plan)
    draw(result.ranks, out)
    print(f"\nThe picture is in {out}")
    if adapter is not None:  # PEFT can load it into the same model too
        lora.save(model, adapter, base_model="sentence-transformers/all-MiniLM-L6-v2")
    assert result.mrr(AFTER) > result.mrr(BEFORE) + (0.01 if quick else 0.03)
    assert quick or result.first(AFTER) > result.first(BEFORE) + 0.03
    return result


def embedded(model: MiniLM, texts: Texts, some: Sequence[Pair]) -> tuple[Vectors, Vectors]:
    """Return the vectors of sentences and of heads."""
    sentences = texts.embed(model, [pair.sentence for pair in some])
    return sentences, texts.embed(model, [pair.head for pair in some])


def contrast(sentences: Tensor, heads: Tensor) -> Tensor:
    """Return the contrastive loss, in nats; row i of `heads` belongs to row i of `sentences`."""
    scores = sentences @ heads.T * (1 / TEMPERATURE)
    right = np.arange(len(scores))
    return (cross_entropy(scores, right) + cross_entropy(scores.T, right)) * 0.5


def train(
    model: MiniLM, texts: Texts, known: Sequence[Pair], plan: Plan, rng: np.random.Generator
) -> None:
    """Train by Adam, with a learning rate that rises at first and then falls to 0."""
    optimizer = Adam(model.trainable_parameters(), lr=plan.lr)
    with progress_bar(range(plan.steps), what="fine-tuning", unit="step", shown=True) as bar:
        for step in bar:
            rise, fall = 10 * (step + 1) / plan.steps, 1 - step / plan.steps
            optimizer.lr = plan.lr * min(rise, fall)
            batch = [known[i] for i in rng.choice(len(known), plan.batch_size, replace=False)]
            optimizer.zero_grad()
            sentences = model(*texts.encode([pair.sentence for pair in batch]))
            heads = model(*texts.encode([pair.head for pair in batch]))
            loss = contrast(sentences, heads)
            loss.backward()
            optimizer.step()
            bar.set_postfix_str(f"{loss.item():.2f} nats", refresh=False)


def by_letters(known: Sequence[Pair], some: Sequence[Pair]) -> NDArray[np.float64]:
    """Return scores from parts of words that a sentence and a head share, weighted by TF-IDF."""
    table = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    table.fit([text for pair in known for text in pair[:2]])
    sentences, heads = (table.transform([pair[i] for pair in some]) for i in (0, 1))
    return (sentences @ heads.T).toarray()  # type: ignore[no-any-return]


def ranks_of(scores: NDArray[np.floating]) -> Ranks:
    """Return the rank of each row's diagonal element, from 1; equal scores rank before it."""
    return np.asarray((scores >= np.diag(scores)[:, None]).sum(axis=1))


def report(result: Result, known: Sequence[Pair], plan: Plan) -> None:
    """Print the size of the training, and the table of results."""
    packages = {pair.package for pair in result.held_out}
    trained = result.model.count_parameters(trainable_only=True)
    print(
        f"{trained:,} of {result.model.count_parameters():,} parameters were trained, with "
        f"{plan.steps * plan.batch_size:,} draws of {len(known):,} functions.\n"
        f"Tested on {len(result.held_out)} functions of {len(packages)} held-out packages. "
        f"The right function is:\n\n{'':20}{'first':>8}{'in the first 5':>16}{'mean 1 / rank':>15}"
    )
    for method, ranks in result.ranks.items():
        five = (ranks <= 5).mean()
        print(f"{method:20}{result.first(method):8.1%}{five:16.1%}{result.mrr(method):15.3f}")
    before, after = result.ranks[BEFORE] == 1, result.ranks[AFTER] == 1
    print(
        f"\nFine-tuning moved {(after & ~before).sum()} functions to the first rank, "
        f"and {(before & ~after).sum()} away from it."
    )
