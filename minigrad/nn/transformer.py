"""The block of which a transformer is a stack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike

from minigrad import ops
from minigrad.checks import check_positive
from minigrad.core.tensor import Array, Tensor
from minigrad.nn.attention import MultiHeadAttention
from minigrad.nn.containers import MLP
from minigrad.nn.layers import Dropout
from minigrad.nn.module import Module
from minigrad.nn.normalization import LayerNorm, RMSNorm


class TransformerBlock(Module):
    """Attention between the vectors of a sequence, then an MLP on each: `(..., L, d_model)`.

        x <- x + attn(norm1(x))
        x <- x + mlp(norm2(x))

    Each half normalises its input and adds to x itself ("pre-norm"), so that gradients reach the
    first of many blocks without passing a norm (Xiong et al., 2020). It computes what PyTorch's
    TransformerEncoderLayer does with `norm_first=True` and `batch_first=True`.

    Args:
        d_model: the size of a vector.
        num_heads: the number of heads of the attention; it divides d_model.
        d_ff: the size of the hidden layer of the MLP; None for 4 d_model.
        dropout: the probability of dropout, in training: of attention weights, of the output of the
            MLP's activation, and of the sum that each half adds.
        activation: the activation of the MLP.
        causal: whether each vector attends only to itself and those before it.
        norm: "layer" for `LayerNorm`, "rms" for `RMSNorm`.
        bias: whether linear maps and layer norms have one.
        dtype: the dtype of the parameters.
        rng: the generator of the weights and of the dropout.

    Attributes:
        norm1, attn, norm2, mlp: the parts.

    Raises:
        ValueError: if a size is not a positive integer, `num_heads` does not divide `d_model`,
            dropout is not a probability, or there is no such norm.
        TypeError: if the activation cannot be called.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int | None = None,
        dropout: float = 0.0,
        activation: Callable[[Tensor], Tensor] = ops.gelu,
        causal: bool = False,
        norm: Literal["layer", "rms"] = "layer",
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        check_positive("TransformerBlock: d_model", d_model)
        d_ff = 4 * d_model if d_ff is None else d_ff
        self.causal = causal
        self.norm1 = _norm(norm, d_model, bias, dtype)
        self.attn = MultiHeadAttention(d_model, num_heads, bias, dropout, dtype=dtype, rng=rng)
        self.norm2 = _norm(norm, d_model, bias, dtype)
        self.mlp = MLP((d_model, d_ff, d_model), activation, dropout, bias, dtype=dtype, rng=rng)
        self.dropout = Dropout(dropout, rng=rng)

    def forward(self, x: Tensor, attn_mask: Array = None) -> Tensor:
        """Return the output of the block; for `attn_mask` see `MultiHeadAttention`."""
        attended = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=self.causal)
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Whether it is causal."""
        return "causal=True" if self.causal else ""


def _norm(kind: str, size: int, bias: bool, dtype: DTypeLike) -> LayerNorm | RMSNorm:
    if kind == "layer":
        return LayerNorm(size, bias=bias, dtype=dtype)
    if kind == "rms":
        return RMSNorm(size, dtype=dtype)
    raise ValueError(f"TransformerBlock: norm is 'layer' or 'rms', not {kind!r}")
