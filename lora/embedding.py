"""LoRAEmbedding: a frozen table of vectors, and an update of low rank beside it.

    y_i = W[i] + scale B A[:, i]          A: (rank, count), B: (d, rank)

An embedding is a linear map of the i-th unit vector, with the table as the transpose of its weight;
A and B have the same shapes as in a linear layer. But A begins at zero, and B at random (as in
PEFT): so the vector of a token that training never sees stays what it was.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from lora.adapted_layer import AdaptedLayer
from lora.adapter import Adapter
from lora.frozen import Array, FrozenMatrix
from lora.variants.inits import Factors
from lora.variants.narrow import BFloat16Embedding
from minigrad import functional, ops
from minigrad.core.grad_mode import observed
from minigrad.core.tensor import Tensor
from minigrad.nn import Embedding, Module
from minigrad.random import generator


class LoRAEmbedding(AdaptedLayer):
    """An embedding with adapters: `(...)` integers -> `(..., embedding_dim)`.

    Dropout drops the complete updates of tokens, since a unit vector has one element to drop.

    `LoRAEmbedding.around(embedding)` makes one.
    """

    padding_idx: int | None

    @classmethod
    def around(cls, layer: Embedding | BFloat16Embedding) -> Self:
        """Make a layer without an adapter, which shares the very table of `layer`."""
        made = super().around(layer)
        made.padding_idx = getattr(layer, "padding_idx", None)
        return made

    @property
    def num_embeddings(self) -> int:
        """The number of vectors, as an `Embedding` calls it."""
        return self.d_in

    @property
    def embedding_dim(self) -> int:
        """The size of a vector, as an `Embedding` calls it."""
        return self.d_out

    def begin(self, rank: int, rng: np.random.Generator | None) -> Factors:
        """Draw the first factors: A = 0, and B standard normal."""
        b = generator(rng).standard_normal((self.d_out, rank))
        return Factors(np.zeros((rank, self.d_in)), b)

    def plain(self) -> Module:
        """Make an `Embedding` with the merged table, which shares nothing."""
        return self._plain(Embedding, padding_idx=self.padding_idx)

    def weight_of(self, stored: Any) -> FrozenMatrix:
        """Return the transposed table."""
        return super().weight_of(stored.T)

    def stored(self, matrix: Array) -> Array:
        """Return a matrix as a table."""
        return np.ascontiguousarray(matrix.T)

    def base(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """Look up W[x]."""
        if not isinstance(weight, Tensor):
            return BFloat16Embedding(weight, self._dtype).forward(x)
        return functional.embedding(x, weight.detach(), self.padding_idx)

    def product(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Look up columns of a matrix; the one of the padding gets no gradient."""
        return functional.embedding(x, ops.transpose(matrix), self.padding_idx)

    def dropped(self, x: Tensor, adapter: Adapter) -> tuple[Tensor, Tensor | None]:
        """Return x itself, and a factor for each token, which is 0 if it is dropped."""
        ones = Tensor(observed(np.ones, (*x.shape, 1), self.weight.dtype))
        return x, functional.dropout(ones, adapter.dropout, rng=adapter.rng)

    def base_facts(self) -> list[str]:
        """Describe the storage, and the index of the padding."""
        padding = [] if self.padding_idx is None else [f"padding_idx={self.padding_idx}"]
        return [*super().base_facts(), *padding]
