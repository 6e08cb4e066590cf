"""A transformer that reads characters, and predicts the next one after each of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from examples.charlm.texts import Codes
from minigrad import Tensor
from minigrad.nn import Embedding, LayerNorm, Linear, Module, Sequential, TransformerBlock, init


@dataclass(frozen=True)
class Sizes:
    """The sizes of the model.

    Attributes:
        d_model: the length of the vector of each character.
        num_heads: the number of heads of each attention layer.
        depth: the number of blocks.
        context: the largest number of characters that the model sees at once.
    """

    d_model: int = 128
    num_heads: int = 4
    depth: int = 2
    context: int = 64


class CharacterModel(Module):
    """A transformer that turns `(batch, length)` codes into scores `(batch, length, alphabet)`.

    Args:
        alphabet: the number of different characters.
        sizes: the other sizes.
        rng: the generator that draws the weights.
    """

    def __init__(self, alphabet: int, sizes: Sizes, rng: np.random.Generator) -> None:
        self.context = sizes.context
        self.characters = Embedding(alphabet, sizes.d_model, rng=rng)
        self.positions = Embedding(sizes.context, sizes.d_model, rng=rng)
        for embedding in (self.characters, self.positions):
            init.normal_(embedding.weight, std=0.2, rng=rng)  # so that blocks soon matter as much
        self.blocks = Sequential(
            *(
                TransformerBlock(sizes.d_model, sizes.num_heads, causal=True, rng=rng)
                for _ in range(sizes.depth)
            )
        )
        self.norm = LayerNorm(sizes.d_model)
        self.head = Linear(sizes.d_model, alphabet, rng=rng)

    def forward(self, codes: Codes) -> Tensor:
        """Return the scores of the next character, after each character."""
        x = self.characters(codes) + self.positions(np.arange(codes.shape[1]))
        return self.head(self.norm(self.blocks(x)))  # type: ignore[no-any-return]
