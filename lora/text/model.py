"""The language model: it maps tokens to logits, a score for each possible next token.

Modules and parameters have the names of transformers' LlamaForCausalLM, so an adapter for one also
fits the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lora
import minigrad as mg
from lora.text.architecture import ModelConfig, Rotation
from lora.text.data import Ids, Lengths, predicted
from minigrad import Tensor
from minigrad.checks import shown
from minigrad.core.grad_mode import observed
from minigrad.nn import Embedding, GatedMLP, KVCache, Linear, Module, RMSNorm
from minigrad.ops.products import stored_linear

Caches = Sequence[KVCache] | None


class LanguageModel(Module):
    """A causal language model: ids `(batch, length)` -> logits `(batch, length, vocab_size)`.

        x <- the vector of each token
        x <- x + attention(norm(x)),  x <- x + mlp(norm(x))       in each layer
        logits = norm(x) W^T                                       W is the head

    This is Llama (Touvron et al., 2023), with the options of `ModelConfig` in which Mistral, Qwen2,
    Qwen3 and SmolLM3 differ. `load_model` makes one with trained parameters.

    Args:
        config: the sizes and options. The parameters are initialised randomly.

    Attributes:
        config: the sizes and options.
        model: the embeddings, the layers, and the last norm.
        lm_head: the head, a `Linear`, or a `TiedHead` if its weight is the table of the embeddings.
        task_type: PEFT's name for this kind of model.
        checkpointing: whether each layer saves only its input, and computes its activations again
            in the backward pass. This needs a third more time, and a fraction of the memory.
    """

    task_type = "CAUSAL_LM"
    _repr_format = "{self.config.architecture}"

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.checkpointing = False
        self.model = Decoder(config)
        self.lm_head: Linear | TiedHead
        if config.tie_word_embeddings:
            self.lm_head = TiedHead(self.model.embed_tokens.weight)
        else:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids: Ids, caches: Caches = None) -> Tensor:
        """Return the logits of the token after each of `ids`: `(batch, length, vocab_size)`.

        Args:
            ids: integers from 0 to vocab_size - 1. A token attends to itself and earlier tokens,
                so padding must be at the end of a row.
            caches: the keys and values of earlier tokens, one object for each layer, made by
                `new_caches`. Those of `ids` are appended.

        Raises:
            ValueError: if there are more tokens than the model has positions for, or the caches
                have room for; or none, or `ids` are no array of rows.
            TypeError: if the ids are not integers.
            IndexError: if an id is negative, or not below vocab_size.
        """
        return self.lm_head(self.model(ids, caches, self.checkpointing))  # type: ignore[no-any-return]

    def next_logits(self, ids: Ids, caches: Sequence[KVCache]) -> NDArray[Any]:
        """Return the logits of the token after the last one: an array `(batch, vocab_size)`.

        No graph is recorded. Arguments and errors are those of `forward`.
        """
        with mg.no_grad():
            return self.lm_head(self.model(ids, caches)[:, -1]).numpy()  # type: ignore[no-any-return]

    def loss(
        self, ids: Ids, counted: NDArray[np.bool_], lengths: Lengths = None
    ) -> tuple[Tensor, int]:
        """Return the mean of -log p over the counted tokens, and their number.

        Each token is predicted from the tokens before it in its row, so the first token of a row
        never counts. Only a part of the logits is in memory at a time (see
        `minigrad.linear_cross_entropy`), unless the head has an adapter.

        Args:
            ids: `(batch, length)`.
            counted: `(batch, length)`, True for a token whose prediction counts. If none counts,
                the mean is 0.
            lengths: the lengths of several texts that follow each other in one row of `ids`, which
                then needs no padding. A token attends to tokens of its own text only.

        Errors are those of `forward`; a ValueError is also raised if the shapes differ, or `ids`
        is not one row with texts of these lengths.
        """
        lengths = None if lengths is None else [*map(int, lengths)]  # also of an array
        inputs, rows, target, count = observed(predicted, ids, counted, lengths)
        read = [n - 1 for n in lengths or () if n > 1] or None
        x = self.model(inputs, checkpointing=self.checkpointing, lengths=read)
        x = x.reshape(-1, self.config.hidden_size)[rows]
        if isinstance(self.lm_head, lora.LoRALayer):
            total = mg.cross_entropy(self.lm_head(x), target, "sum")
        else:
            total = mg.linear_cross_entropy(x, self.lm_head.weight, target, "sum")
        return total / count, len(rows)

    def new_caches(self, batch: int, capacity: int) -> list[KVCache]:
        """Make empty caches for the keys and values of `capacity` tokens, one for each layer."""
        c = self.config
        sizes = batch, c.num_key_value_heads, capacity, c.head_dim
        with mg.no_grad():  # the dtype of keys and values, also after `astype`
            dtype = self.model.norm(self.model.embed_tokens(np.zeros((1, 1), np.int64))).dtype
        return [KVCache(*sizes, dtype) for _ in range(c.num_hidden_layers)]


class TiedHead(Module):
    """A head that shares its weight: it computes x W^T, where W is the table of the embeddings.

    An adapter on the embeddings does not change the head, as in PEFT.
    """

    def __init__(self, weight: Any) -> None:
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, `(..., vocab_size)`."""
        return stored_linear(x, self.weight)  # type: ignore[no-any-return]


class Decoder(Module):
    """The model without its head: ids `(batch, length)` -> vectors `(..., hidden_size)`."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, ids: Ids, caches: Caches = None, checkpointing: bool = False, lengths: Lengths = None
    ) -> Tensor:
        """Return the vectors after the last norm; see `LanguageModel` for the arguments."""
        shape: tuple[int, ...] = getattr(ids, "shape", ())  # a list has none
        if len(shape) != 2 or 0 in shape:
            raise ValueError(
                f"ids are an array (batch, length) with at least one token, not {shown(ids)}"
            )
        start = caches[0].length if caches else 0
        rotation = observed(self.config.rotation, start, lengths or [ids.shape[1]])
        x = self.embed_tokens(ids)
        for i, layer in enumerate(self.layers):
            run = partial(mg.checkpoint, layer) if checkpointing and x.requires_grad else layer
            turn = rotation if self.config.rope_layers[i] else None
            x = run(x, turn, caches[i] if caches else None, lengths)
        return self.norm(x)  # type: ignore[no-any-return]


class DecoderLayer(Module):
    """Attention between the tokens of a sequence, then an MLP on each token, both added to x."""

    def __init__(self, config: ModelConfig) -> None:
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)

    def forward(
        self, x: Tensor, rotation: Rotation | None, cache: KVCache | None, lengths: Lengths
    ) -> Tensor:
        """Return the output of the layer, `(batch, length, hidden_size)`."""
        x = x + self.self_attn(self.input_layernorm(x), rotation, cache, lengths)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Attention(Module):
    """Causal attention in which some heads share keys and values (GQA, Ainslie et al., 2023).

    Queries and keys are rotated by their position (RoPE), after a norm of each head in Qwen3.
    """

    def __init__(self, config: ModelConfig) -> None:
        c, d = config, config.head_dim
        self.head_dim = d
        self.q_proj = Linear(c.hidden_size, c.num_attention_heads * d, c.attention_bias)
        self.k_proj = Linear(c.hidden_size, c.num_key_value_heads * d, c.attention_bias)
        self.v_proj = Linear(c.hidden_size, c.num_key_value_heads * d, c.attention_bias)
        self.o_proj = Linear(c.num_attention_heads * d, c.hidden_size, c.output_bias)
        self.q_norm = RMSNorm(d, c.rms_norm_eps) if c.qk_norm else None
        self.k_norm = RMSNorm(d, c.rms_norm_eps) if c.qk_norm else None

    def forward(
        self, x: Tensor, rotation: Rotation | None, cache: KVCache | None, lengths: Lengths
    ) -> Tensor:
        """Compute the attention of each token to itself and earlier tokens of its text."""
        batch, length, _ = x.shape
        # One token needs no transpose to (batch, heads, length, head_dim).
        axes = (batch, -1, 1) if length == 1 else (batch, length, -1)
        q, k, v = (
            project(x).reshape(*axes, self.head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if length > 1:
            q, k, v = (y.transpose(0, 2, 1, 3) for y in (q, k, v))
        if rotation is not None:
            q, k = mg.rope(q, *rotation), mg.rope(k, *rotation)
        before = 0 if cache is None else cache.length
        if cache is not None:
            k, v = cache.append(k, v)
        attend = partial(
            mg.scaled_dot_product_attention, is_causal=True, enable_gqa=True, causal_offset=before
        )
        if lengths is None:
            out = attend(q, k, v)
        else:
            texts = [np.s_[:, :, a:b] for a, b in pairwise(accumulate(lengths, initial=0))]
            out = mg.concatenate([attend(q[text], k[text], v[text]) for text in texts], 2)
        if length > 1:
            out = out.transpose(0, 2, 1, 3)
        return self.o_proj(out.reshape(batch, length, -1))  # type: ignore[no-any-return]
