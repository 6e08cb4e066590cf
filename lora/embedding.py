"""LoRAEmbedding: a frozen embedding plus a trainable low-rank update.

An embedding is a linear map of the i-th unit vector, and its table is the transpose of the map's
weight. So A and B have the same shapes as in a linear layer. But here A begins at zero, so the
vector of a token that is not in the training data does not change.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Self

import numpy as np

from lora.adapted_layer import AdaptedLayer
from lora.adapter import Adapter
from lora.frozen import Array, LayerMatrix
from lora.variants.inits import Factors
from lora.variants.narrow import BFloat16Embedding
from minigrad import functional, ops
from minigrad.core.grad_mode import observed
from minigrad.core.tensor import Tensor
from minigrad.nn import Embedding, Module
from minigrad.random import generator


class LoRAEmbedding(AdaptedLayer):
    """An embedding with adapters: `(...)` integers -> `(..., embedding_dim)`.

        y_i = W[i] + scale B A[:, i]          A: (rank, num_embeddings), B: (embedding_dim, rank)

    A begins at zero, and B at random, as in PEFT, with init="gaussian" or "kaiming". Dropout drops
    the complete update of a token, because a unit vector has only one element that is not zero.

    `lora.attach` makes one; `LoRAEmbedding.around(embedding)` makes one without an adapter. Errors
    of a call are those of `minigrad.embedding`.
    """

    padding_idx: int | None

    # The names that `Embedding` uses:
    num_embeddings = property(attrgetter("d_in"), doc="The number of vectors.")
    embedding_dim = property(attrgetter("d_out"), doc="The size of a vector.")

    @classmethod
    def around(cls, layer: Embedding | BFloat16Embedding) -> Self:
        """Make a layer without an adapter, which shares the table of `layer`."""
        made = super().around(layer)
        made.padding_idx = getattr(layer, "padding_idx", None)
        return made

    def begin(self, rank: int, rng: np.random.Generator | None) -> Factors:
        """Draw the first factors: A = 0, and B standard normal."""
        b = generator(rng).standard_normal((self.d_out, rank))
        return Factors(np.zeros((rank, self.d_in)), b)

    def plain(self) -> Module:
        """Make an `Embedding` with the merged table; it shares no memory with this layer."""
        return self._plain(Embedding, padding_idx=self.padding_idx)

    def weight_of(self, stored: Any) -> LayerMatrix:
        """Return the transposed table."""
        return super().weight_of(stored.T)

    def stored(self, matrix: Array) -> Array:
        """Return the transpose of a matrix, as the table is stored."""
        return np.ascontiguousarray(matrix.T)

    def base(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """Look up W[x]."""
        if not isinstance(weight, Tensor):
            return BFloat16Embedding(weight, self._dtype).forward(x)
        return functional.embedding(x, weight.detach(), self.padding_idx)

    def product(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Look up columns of a matrix; the column of the padding index gets no gradient."""
        return functional.embedding(x, ops.transpose(matrix), self.padding_idx)

    def dropped(self, x: Tensor, adapter: Adapter) -> tuple[Tensor, Tensor | None]:
        """Return x itself, and a factor for each token, which is 0 if its update is dropped."""
        ones = Tensor(observed(np.ones, (*x.shape, 1), self.weight.dtype))
        return x, functional.dropout(ones, adapter.dropout, rng=adapter.rng)

    def base_facts(self) -> list[str]:
        """Describe the storage, and the padding index."""
        padding = [] if self.padding_idx is None else [f"padding_idx={self.padding_idx}"]
        return [*super().base_facts(), *padding]
