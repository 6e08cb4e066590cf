"""The encoder of MiniLM: six layers of BERT (Devlin et al., 2019), with vectors of length 384.

Each module and parameter has the same name as in transformers' BertModel. So the names match the
file of weights, and also adapters that were made for that model.

The texts of one batch differ in length, but the encoder does not compute on the padding. All layers
except attention work on one matrix with a row for each real token, `(tokens, 384)`. For attention,
`Layout` brings these rows into the shape `(batch, length, 384)`, and back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import minigrad as mg
from minigrad import Tensor
from minigrad.nn import Embedding, LayerNorm, Linear, Module

Ids = NDArray[np.int64]  # ids of tokens, `(batch, length)`
Mask = NDArray[np.bool_]  # True for a token, False for padding, `(batch, length)`


@dataclass(frozen=True)
class Sizes:
    """The sizes in config.json. The defaults are the sizes of MiniLM-L6."""

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_size: int = 384
    intermediate_size: int = 1536
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    layer_norm_eps: float = 1e-12


class Layout:
    """The positions of the tokens of a batch, among all positions `(batch, length)`.

    Args:
        mask: True for each token, False for padding; each text needs at least one token.

    Attributes:
        shape: (batch, length).
        rows: the index of each token among all positions of the batch, row by row.
        keys: `(batch, 1, 1, length)`, the positions that attention may use; None for all.

    Raises:
        ValueError: if the mask is not `(batch, length)`, or a text has no token.
    """

    def __init__(self, mask: Mask) -> None:
        if mask.ndim != 2 or not mask.any(axis=1).all():
            raise ValueError(
                f"the mask is (batch, length), with a token in each text at least, not of shape "
                f"{mask.shape} with {mask.sum(axis=-1).tolist()} tokens"
            )
        self.shape = mask.shape
        self.rows = np.flatnonzero(mask)
        self.keys = None if mask.all() else mask[:, None, None, :]
        self._tokens = np.where(mask, np.cumsum(mask).reshape(mask.shape) - 1, 0)

    def spread(self, x: Tensor) -> Tensor:
        """Turn `(tokens, d)` into `(batch, length, d)`; padding gets the first token's vector."""
        return x.reshape(*self.shape, -1) if self.keys is None else x[self._tokens]

    def gather(self, x: Tensor) -> Tensor:
        """Turn `(batch, length, d)` into `(tokens, d)`."""
        rows = x.reshape(-1, x.shape[-1])
        return rows if self.keys is None else rows[self.rows]


class Embeddings(Module):
    """The sum of the vectors of a token, of its position and of its type, normalised."""

    def __init__(self, sizes: Sizes) -> None:
        width = sizes.hidden_size
        self.word_embeddings = Embedding(sizes.vocab_size, width)
        self.position_embeddings = Embedding(sizes.max_position_embeddings, width)
        self.token_type_embeddings = Embedding(sizes.type_vocab_size, width)
        self.LayerNorm = LayerNorm(width, sizes.layer_norm_eps)

    def forward(self, ids: Ids, layout: Layout) -> Tensor:
        """Turn `(batch, length)` into `(tokens, hidden_size)`; all tokens have the first type."""
        words, positions = ids.reshape(-1)[layout.rows], layout.rows % layout.shape[1]
        x = self.word_embeddings(words) + self.token_type_embeddings(np.zeros_like(words))
        return self.LayerNorm(x + self.position_embeddings(positions))  # type: ignore[no-any-return]


class SelfAttention(Module):
    """Attention between the tokens of a text: MultiHeadAttention with BERT's names."""

    def __init__(self, sizes: Sizes) -> None:
        width = sizes.hidden_size
        self.num_heads = sizes.num_attention_heads
        self.query, self.key, self.value = (Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Apply attention inside each text; the shape stays `(tokens, hidden_size)`."""
        q, k, v = (
            layout.spread(project(x)).reshape(*layout.shape, self.num_heads, -1).swapaxes(1, 2)
            for project in (self.query, self.key, self.value)
        )  # (batch, heads, length, d)
        out = mg.scaled_dot_product_attention(q, k, v, attn_mask=layout.keys)
        return layout.gather(out.swapaxes(1, 2).reshape(*layout.shape, -1))


class AddAndNormalize(Module):
    """LayerNorm(x W^T + b + residual), the end of each half of a layer ("post-norm")."""

    def __init__(self, d_in: int, sizes: Sizes) -> None:
        self.dense = Linear(d_in, sizes.hidden_size)
        self.LayerNorm = LayerNorm(sizes.hidden_size, sizes.layer_norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Turn `(..., d_in)` and `(..., hidden_size)` into `(..., hidden_size)`."""
        return self.LayerNorm(self.dense(x) + residual)  # type: ignore[no-any-return]


class Attention(Module):
    """The first half of a layer."""

    def __init__(self, sizes: Sizes) -> None:
        self.self = SelfAttention(sizes)
        self.output = AddAndNormalize(sizes.hidden_size, sizes)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Apply attention, the residual and LayerNorm; the shape stays `(tokens, hidden_size)`."""
        return self.output(self.self(x, layout), x)  # type: ignore[no-any-return]


class Intermediate(Module):
    """The layer gelu(x W^T + b), with the exact gelu."""

    def __init__(self, sizes: Sizes) -> None:
        self.dense = Linear(sizes.hidden_size, sizes.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        """Turn `(..., hidden_size)` into `(..., intermediate_size)`."""
        return mg.gelu(self.dense(x))


class Layer(Module):
    """Attention, then an MLP on each token."""

    def __init__(self, sizes: Sizes) -> None:
        self.attention = Attention(sizes)
        self.intermediate = Intermediate(sizes)
        self.output = AddAndNormalize(sizes.intermediate_size, sizes)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Apply both halves of the layer; the shape stays `(tokens, hidden_size)`."""
        x = self.attention(x, layout)
        return self.output(self.intermediate(x), x)  # type: ignore[no-any-return]


class Encoder(Module):
    """All layers, one after the other."""

    def __init__(self, sizes: Sizes) -> None:
        self.layer = [Layer(sizes) for _ in range(sizes.num_hidden_layers)]

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Apply all layers; the shape stays `(tokens, hidden_size)`."""
        for layer in self.layer:
            x = layer(x, layout)
        return x


class MiniLM(Module):
    """Turns texts into vectors of length 1, which are close if the texts have similar meanings."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        sizes = Sizes() if sizes is None else sizes
        self.embeddings = Embeddings(sizes)
        self.encoder = Encoder(sizes)
        self.width = sizes.hidden_size

    def tokens(self, ids: Ids, mask: Mask) -> Tensor:
        """Return a vector for each token without the padding, text by text: `(tokens, 384)`.

        Raises:
            ValueError: if ids and mask differ in shape, or a text has no token.
        """
        if ids.shape != mask.shape:
            raise ValueError(f"ids {ids.shape} and mask {mask.shape} have one shape each")
        layout = Layout(mask)
        return self.encoder(self.embeddings(ids, layout), layout)  # type: ignore[no-any-return]

    def forward(self, ids: Ids, mask: Mask) -> Tensor:
        """Return the mean vector of each text's tokens, scaled to length 1: `(batch, 384)`."""
        tokens = self.tokens(ids, mask)
        text, counts = np.nonzero(mask)[0], mask.sum(axis=1, keepdims=True)
        shares = (text == np.arange(len(mask))[:, None]) / counts  # (batch, tokens)
        mean = shares.astype(tokens.dtype) @ tokens
        return mean * mg.rsqrt((mean * mean).sum(-1, keepdims=True))  # type: ignore[no-any-return]
