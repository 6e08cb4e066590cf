"""A transformer that reads characters, and says after each of them which may come next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from examples.charlm.texts import Codes
from minigrad import Tensor
from minigrad.nn import Embedding, LayerNorm, Linear, Module, Sequential, TransformerBlock, init


@dataclass(frozen=True)
class Sizes:
    """How large the model is.

    Attributes:
        d_model: the numbers that stand for each character.
        num_heads: of each attention.
        depth: how many blocks.
        context: the characters that it sees at once, at most.
    """

    d_model: int = 128
    num_heads: int = 4
    depth: int = 2
    context: int = 64


class CharacterModel(Module):
    """Scores of what comes next: `(batch, length)` codes to `(batch, length, alphabet)`.

    Args:
        alphabet: how many characters there are.
        sizes: of the rest.
        rng: where the weights are drawn from.
    """

    def __init__(self, alphabet: int, sizes: Sizes, rng: np.random.Generator) -> None:
        self.context = sizes.context
        self.characters = Embedding(alphabet, sizes.d_model, rng=rng)
        self.positions = Embedding(sizes.context, sizes.d_model, rng=rng)
        for embedding in (self.characters, self.positions):
            init.normal_(embedding.weight, std=0.2, rng=rng)  # so that blocks soon add as much
        self.blocks = Sequential(
            *(
                TransformerBlock(sizes.d_model, sizes.num_heads, causal=True, rng=rng)
                for _ in range(sizes.depth)
            )
        )
        self.norm = LayerNorm(sizes.d_model)
        self.head = Linear(sizes.d_model, alphabet, rng=rng)

    def forward(self, codes: Codes) -> Tensor:
        """The scores after each character."""
        x = self.characters(codes) + self.positions(np.arange(codes.shape[1]))
        return self.head(self.norm(self.blocks(x)))  # type: ignore[no-any-return]
