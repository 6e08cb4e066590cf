"""The encoder of MiniLM: six layers of BERT (Devlin et al., 2019), 384 numbers a token.

Each module and parameter has the name that it has in transformers' BertModel, so that the file of
weights fits by name, and so does an adapter that was made for that model.

Texts of one batch differ in length, and what fills them up is not computed: all but attention works
on the tokens that there are, one below another, `(tokens, 384)`. For attention they are laid out
text by text, `(batch, length, 384)`, and taken back (`Layout`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import minigrad as mg
from minigrad import Tensor
from minigrad.nn import Embedding, LayerNorm, Linear, Module

Ids = NDArray[np.int64]  # of tokens, `(batch, length)`
Mask = NDArray[np.bool_]  # where there is a token, False for padding, `(batch, length)`


@dataclass(frozen=True)
class Sizes:
    """What config.json says of the shapes; these are those of MiniLM-L6."""

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_size: int = 384
    intermediate_size: int = 1536
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    layer_norm_eps: float = 1e-12


class Layout:
    """Where the tokens of a batch are, among all places `(batch, length)`.

    Args:
        mask: where there is a token; a text without any is refused.

    Attributes:
        shape: (batch, length).
        rows: the number of each token's place, when all places are counted.
        keys: `(batch, 1, 1, length)`, which places may be attended to; None for all.

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
        """`(tokens, d)` to `(batch, length, d)`; the padding has the first token's vector."""
        return x.reshape(*self.shape, -1) if self.keys is None else x[self._tokens]

    def gather(self, x: Tensor) -> Tensor:
        """`(batch, length, d)` to `(tokens, d)`."""
        rows = x.reshape(-1, x.shape[-1])
        return rows if self.keys is None else rows[self.rows]


class Embeddings(Module):
    """A token's vector plus its place's plus that of its kind, brought to one scale."""

    def __init__(self, sizes: Sizes) -> None:
        width = sizes.hidden_size
        self.word_embeddings = Embedding(sizes.vocab_size, width)
        self.position_embeddings = Embedding(sizes.max_position_embeddings, width)
        self.token_type_embeddings = Embedding(sizes.type_vocab_size, width)
        self.LayerNorm = LayerNorm(width, sizes.layer_norm_eps)

    def forward(self, ids: Ids, layout: Layout) -> Tensor:
        """`(batch, length)` to `(tokens, hidden_size)`; all tokens are of the first kind."""
        words, places = ids.reshape(-1)[layout.rows], layout.rows % layout.shape[1]
        x = self.word_embeddings(words) + self.token_type_embeddings(np.zeros_like(words))
        return self.LayerNorm(x + self.position_embeddings(places))  # type: ignore[no-any-return]


class SelfAttention(Module):
    """Attention between the tokens of a text: minigrad.nn.MultiHeadAttention under BERT's names."""

    def __init__(self, sizes: Sizes) -> None:
        width = sizes.hidden_size
        self.num_heads = sizes.num_attention_heads
        self.query, self.key, self.value = (Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """What each token gets from those of its text: `(tokens, hidden_size)`, as it was."""
        heads = [
            layout.spread(project(x)).reshape(*layout.shape, self.num_heads, -1).swapaxes(1, 2)
            for project in (self.query, self.key, self.value)
        ]  # (batch, heads, length, d)
        out = mg.scaled_dot_product_attention(*heads, attn_mask=layout.keys)
        return layout.gather(out.swapaxes(1, 2).reshape(*layout.shape, -1))


class AddAndNormalize(Module):
    """LayerNorm(x W^T + b + residual): how each half of a layer ends ("post-norm")."""

    def __init__(self, d_in: int, sizes: Sizes) -> None:
        self.dense = Linear(d_in, sizes.hidden_size)
        self.LayerNorm = LayerNorm(sizes.hidden_size, sizes.layer_norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """`(..., d_in)` and `(..., hidden_size)` to `(..., hidden_size)`."""
        return self.LayerNorm(self.dense(x) + residual)  # type: ignore[no-any-return]


class Attention(Module):
    """The first half of a layer."""

    def __init__(self, sizes: Sizes) -> None:
        self.self = SelfAttention(sizes)
        self.output = AddAndNormalize(sizes.hidden_size, sizes)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """`(tokens, hidden_size)`, as it was."""
        return self.output(self.self(x, layout), x)  # type: ignore[no-any-return]


class Intermediate(Module):
    """gelu(x W^T + b), with the exact gelu."""

    def __init__(self, sizes: Sizes) -> None:
        self.dense = Linear(sizes.hidden_size, sizes.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., hidden_size)` to `(..., intermediate_size)`."""
        return mg.gelu(self.dense(x))  # type: ignore[no-any-return]


class Layer(Module):
    """Attention, then an MLP on each token."""

    def __init__(self, sizes: Sizes) -> None:
        self.attention = Attention(sizes)
        self.intermediate = Intermediate(sizes)
        self.output = AddAndNormalize(sizes.intermediate_size, sizes)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """`(tokens, hidden_size)`, as it was."""
        x = self.attention(x, layout)
        return self.output(self.intermediate(x), x)  # type: ignore[no-any-return]


class Encoder(Module):
    """The layers, one after another."""

    def __init__(self, sizes: Sizes) -> None:
        self.layer = [Layer(sizes) for _ in range(sizes.num_hidden_layers)]

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """`(tokens, hidden_size)`, as it was."""
        for layer in self.layer:
            x = layer(x, layout)
        return x


class MiniLM(Module):
    """Texts to vectors of length 1: the nearer two are, the more alike is what the texts mean."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        sizes = Sizes() if sizes is None else sizes
        self.embeddings = Embeddings(sizes)
        self.encoder = Encoder(sizes)
        self.width = sizes.hidden_size

    def tokens(self, ids: Ids, mask: Mask) -> Tensor:
        """A vector for each token that is none of padding, text by text: `(tokens, 384)`.

        Raises:
            ValueError: if the mask does not go with the ids, or a text has no token.
        """
        if ids.shape != mask.shape:
            raise ValueError(f"ids {ids.shape} and mask {mask.shape} have one shape each")
        layout = Layout(mask)
        return self.encoder(self.embeddings(ids, layout), layout)  # type: ignore[no-any-return]

    def forward(self, ids: Ids, mask: Mask) -> Tensor:
        """The mean over a text's tokens, divided by its length: `(batch, 384)`."""
        tokens = self.tokens(ids, mask)
        text, counts = np.nonzero(mask)[0], mask.sum(axis=1, keepdims=True)
        shares = (text == np.arange(len(mask))[:, None]) / counts  # (batch, tokens)
        mean = shares.astype(tokens.dtype) @ tokens
        return mean * mg.rsqrt((mean * mean).sum(-1, keepdims=True))  # type: ignore[no-any-return]
