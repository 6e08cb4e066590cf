"""Multi-head attention, the cache of its keys and values, and the transformer block."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import DTypeLike

from minigrad import functional, ops
from minigrad.checks import check_choice, check_flag, check_positive, check_probability
from minigrad.core.grad_mode import observed
from minigrad.core.observers import is_differentiated
from minigrad.core.tensor import Array, Tensor, as_array
from minigrad.creation import or_float32
from minigrad.nn import init
from minigrad.nn.layers import MLP, Dropout, Linear
from minigrad.nn.module import Module, as_input, unusual
from minigrad.nn.normalization import LayerNorm, RMSNorm
from minigrad.ops.shape import fits
from minigrad.random import Rng
from minigrad.renamed import with_hints
from minigrad.versions import mark_written

__all__ = ["KVCache", "MultiHeadAttention", "TransformerBlock"]


class MultiHeadAttention(Module):
    """Multi-head attention (Vaswani et al., 2017, section 3.2.2).

        head_i = softmax(Q_i K_i^T / sqrt(d) + mask) V_i,    out = [head_1 ... head_h] W^T + b

    Each position of the sequence gets a weighted mean of value vectors. Q, K and V are linear maps
    of query, key and value to vectors of size `embed_dim`. Each head works on its own part of them,
    of size d = embed_dim / num_heads.

    The parameters have the same initial distribution as in PyTorch's MultiheadAttention, which
    differs in three ways. It stacks the weights of query, key and value, in this order, in one
    matrix `in_proj_weight`. True in its boolean mask forbids attention; here True allows it, as in
    PyTorch's scaled_dot_product_attention. And by default its first axis is not the batch.

    Args:
        embed_dim: the size of the vectors of the query and of the output.
        num_heads: the number of heads; it must divide `embed_dim`.
        bias: whether the four linear maps have a bias.
        dropout: the probability of dropping an attention weight, in training.
        kdim: the size of the vectors of the key; None for embed_dim.
        vdim: the size of the vectors of the value; None for embed_dim.

    Attributes:
        q_proj, k_proj, v_proj, out_proj: the four linear maps, each a `Linear`.

    Raises:
        ValueError: if a size is not a positive integer, `num_heads` does not divide `embed_dim`, or
            dropout is not in [0, 1].
        TypeError: if `bias` is not True or False, or dropout is not a number.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        dropout: float = 0.0,
        kdim: int | None = None,
        vdim: int | None = None,
        *,
        dtype: DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        kdim = embed_dim if kdim is None else kdim
        vdim = embed_dim if vdim is None else vdim
        sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "kdim": kdim, "vdim": vdim}
        for name, size in sizes.items():
            check_positive(name, size)
        if embed_dim % num_heads:
            raise ValueError(f"num_heads = {num_heads} does not divide embed_dim = {embed_dim}")
        check_probability("dropout", dropout)
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.kdim, self.vdim = kdim, vdim
        self.dropout, self.rng = dropout, rng
        self.q_proj = Linear(embed_dim, embed_dim, bias, dtype=dtype, rng=rng)
        self.k_proj = Linear(kdim, embed_dim, bias, dtype=dtype, rng=rng)
        self.v_proj = Linear(vdim, embed_dim, bias, dtype=dtype, rng=rng)
        self.out_proj = Linear(embed_dim, embed_dim, bias, dtype=dtype, rng=rng)
        # PyTorch initialises three maps of equal size as one matrix, whose fan_out is three times
        # as large.
        gain = math.sqrt(1 / 2) if kdim == vdim == embed_dim else 1.0
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            init.xavier_uniform_(projection.weight, gain, rng=rng)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            if layer.bias is not None:
                init.zeros_(layer.bias)

    @with_hints
    def forward(
        self,
        query: Array,
        key: Array = None,
        value: Array = None,
        attn_mask: Array = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Return the attention of L queries to S keys: `(..., L, embed_dim)`.

        Args:
            query: `(..., L, embed_dim)`, with any leading axes or none.
            key: `(..., S, kdim)`; None uses the query: self-attention.
            value: `(..., S, vdim)`; None uses the key.
            attn_mask: booleans, True where a query may attend to a key, or floats that are added to
                the scores. Its shape is `(L, S)`, or has all leading axes and an axis for the
                heads, such as `(batch, 1, L, S)`; an axis of size 1 is broadcast. To mask padding
                among the keys, use `(batch, 1, 1, S)`. If a query may attend to no key, its output
                is the bias of `out_proj`.
            is_causal: whether query i attends only to keys 0 to i; a mask can forbid more.

        Raises:
            ValueError: if shapes do not match, or a mask has another number of axes: the first axis
                of `(batch, L, S)`, for example, would be mistaken for the axis of heads.
            TypeError: if the mask contains neither booleans nor floats, or `is_causal` is not True
                or False.
        """
        check_flag("MultiHeadAttention: is_causal", is_causal)
        query = as_input(self, query, "query")
        key = query if key is None else as_input(self, key, "key")
        value = key if value is None else as_input(self, value, "value")
        sizes = {"query": self.embed_dim, "key": self.kdim, "value": self.vdim}
        for x, (name, size) in zip((query, key, value), sizes.items(), strict=True):
            if x.ndim < 2 or x.shape[-1] != size:
                wanted = f"shape (..., length, {size})"
                raise ValueError(f"MultiHeadAttention: the {name} has {wanted}, not {x.shape}")
        if attn_mask is not None:
            _check_mask(attn_mask, self.num_heads, query.shape, key.shape, value.shape)
            if is_causal:  # combine both into one mask, which also forbids keys after position i
                past = observed(np.tri, query.shape[-2], key.shape[-2], 0, np.bool_)
                forbidden = False if as_array(attn_mask).dtype == np.bool_ else -math.inf
                attn_mask = ops.where(past, attn_mask, forbidden)
                is_causal = False
        q = self._heads(self.q_proj(query))
        k = self._heads(self.k_proj(key))
        v = self._heads(self.v_proj(value))
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask, self.dropout if self.training else 0.0, is_causal, rng=self.rng
        )
        out = functional.swapaxes(out, -2, -3)
        joined = ops.reshape(out, (*out.shape[:-2], self.embed_dim))
        return self.out_proj(joined)  # type: ignore[no-any-return]  # a module returns Any

    def _heads(self, y: Tensor) -> Tensor:
        """Return a view with an axis of heads: `(..., L, embed_dim) -> (..., heads, L, d)`."""
        heads = ops.reshape(y, (*y.shape[:-1], self.num_heads, self.embed_dim // self.num_heads))
        return functional.swapaxes(heads, -2, -3)

    def extra_repr(self) -> str:
        """Return the sizes and the probability of dropout."""
        usual = {"kdim": self.embed_dim, "vdim": self.embed_dim, "dropout": 0}
        return f"{self.embed_dim}, num_heads={self.num_heads}{unusual(self, usual)}"


def _check_mask(mask: Array, heads: int, *shapes: tuple[int, ...]) -> None:
    """Raise an error unless the mask fits the scores; `shapes` are those of query, key, value."""
    values = as_array(mask)
    if values.dtype.kind not in "bf":
        raise TypeError(
            f"MultiHeadAttention: a mask contains booleans or floats, not {values.dtype}"
        )
    ndim = max(map(len, shapes)) + 1
    if values.ndim not in (2, ndim):
        raise ValueError(
            f"MultiHeadAttention: a mask is (L, S), or has all {ndim} axes of the scores, "
            f"(..., heads, L, S), not {values.shape}; mask[..., None, :, :] adds one for the heads"
        )
    try:
        leading = np.broadcast_shapes(*(shape[:-2] for shape in shapes))
    except ValueError:
        return  # a later check raises an error that names the shapes that do not match
    scores = (*leading, heads, shapes[0][-2], shapes[1][-2])
    if not fits(values.shape, scores):
        raise ValueError(
            f"MultiHeadAttention: a mask of shape {values.shape} does not fit scores of shape "
            f"{scores}"
        )


class KVCache:
    """A cache of keys and values for generation: each new token computes only its own.

    No gradient flows through a cache.

    Args:
        batch: the number of texts.
        heads: the number of heads of keys and values.
        capacity: the largest number of tokens. Memory is used page by page, when tokens come.
        head_dim: the size of a key and of a value.
        dtype: the dtype of keys and values.

    Attributes:
        length: the number of tokens in the cache.

    Raises:
        ValueError: if a size is not a positive integer.
    """

    def __init__(
        self, batch: int, heads: int, capacity: int, head_dim: int, dtype: DTypeLike = np.float32
    ) -> None:
        sizes = {"batch": batch, "heads": heads, "capacity": capacity, "head_dim": head_dim}
        for name, size in sizes.items():
            check_positive(f"KVCache: {name}", size)
        self.length = 0
        self._both = np.empty((2, *sizes.values()), or_float32(dtype))

    def append(self, k: Array, v: Array) -> tuple[Tensor, Tensor]:
        """Store new keys and values `(batch, heads, L, head_dim)`; return views of all stored ones.

        Raises:
            ValueError: if a shape or dtype does not fit, or the tokens would exceed `capacity`.
            RuntimeError: if `k` or `v` requires a gradient, and gradients are enabled.
        """
        both, (_, batch, heads, capacity, head_dim) = self._both, self._both.shape
        shape = (batch, heads, *k.shape[2:3], head_dim)
        if not (k.shape == v.shape == shape and k.dtype == v.dtype == both.dtype):
            raise ValueError(
                f"KVCache: keys and values are ({batch}, {heads}, L, {head_dim}) of {both.dtype}, "
                f"not {k.shape} of {k.dtype} and {v.shape} of {v.dtype}"
            )
        if is_differentiated(k) or is_differentiated(v):
            raise RuntimeError(
                "KVCache: no gradient flows through a cache, and keys or values require one; call "
                "the model under minigrad.no_grad()"
            )
        start, end = self.length, self.length + shape[2]
        if end > capacity:
            raise ValueError(
                f"KVCache: {start} tokens and {shape[2]} more are {end}, but there is memory for "
                f"{capacity}; make the cache with a larger capacity"
            )
        both[0, :, :, start:end], both[1, :, :, start:end] = as_array(k), as_array(v)
        self.length = end
        return Tensor.at(both[0, :, :, :end], None), Tensor.at(both[1, :, :, :end], None)

    def truncate(self, length: int) -> None:
        """Keep only the first `length` tokens; the next ones are written after them.

        Raises:
            ValueError: if `length` is negative, or there are fewer tokens.
            TypeError: if `length` is not an integer.
        """
        if not 0 <= (length := operator.index(length)) <= self.length:
            raise ValueError(f"KVCache: cannot truncate {self.length} tokens to {length}")
        self.length = length
        mark_written(self._both)  # later tokens overwrite values that a graph may still need


# --------------------------------------------------------------------------------------------------
# The block of which a transformer is a stack
# --------------------------------------------------------------------------------------------------


class TransformerBlock(Module):
    """Attention between the vectors of a sequence, then an MLP on each: `(..., L, d_model)`.

        x <- x + attn(norm1(x))
        x <- x + mlp(norm2(x))

    Each half normalises its input, and its output is added to x ("pre-norm"). So gradients reach
    the first of many blocks without passing through a norm (Xiong et al., 2020). The block computes
    the same as PyTorch's TransformerEncoderLayer with `norm_first=True` and `batch_first=True`.

    Args:
        d_model: the size of a vector.
        num_heads: the number of heads of the attention; it must divide `d_model`.
        d_ff: the size of the hidden layer of the MLP; None for 4 d_model.
        dropout: the probability of dropout, in training: of attention weights, of the output of the
            MLP's activation, and of what each half adds to x.
        activation: the activation of the MLP.
        causal: whether each vector attends only to itself and to earlier vectors.
        norm: "layer" for `LayerNorm`, "rms" for `RMSNorm`.
        bias: whether linear maps and layer norms have a bias.

    Attributes:
        norm1, attn, norm2, mlp, dropout: the modules of the block.

    Raises:
        ValueError: if a size is not a positive integer, `num_heads` does not divide `d_model`,
            dropout is not in [0, 1], or there is no such norm.
        TypeError: if the activation cannot be called, dropout is not a number, or a flag is not
            True or False.
    """

    _repr_defaults: ClassVar = {"causal": False}

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
        rng: Rng = None,
    ) -> None:
        check_positive("d_model", d_model)
        check_flag("causal", causal)
        check_choice("norm", norm, ("layer", "rms"))
        make_norm = partial(LayerNorm, bias=bias) if norm == "layer" else RMSNorm
        d_ff = 4 * d_model if d_ff is None else d_ff
        self.causal = causal
        self.norm1 = make_norm(d_model, dtype=dtype)
        self.attn = MultiHeadAttention(d_model, num_heads, bias, dropout, dtype=dtype, rng=rng)
        self.norm2 = make_norm(d_model, dtype=dtype)
        self.mlp = MLP((d_model, d_ff, d_model), activation, dropout, bias, dtype=dtype, rng=rng)
        self.dropout = Dropout(dropout, rng=rng)

    @with_hints
    def forward(self, x: Tensor, attn_mask: Array = None) -> Tensor:
        """Return the output of the block, of the shape of x, `(..., L, d_model)`.

        Args:
            x: the sequence.
            attn_mask: as in `MultiHeadAttention.forward`; with `causal`, both are applied.

        Raises:
            ValueError, TypeError: as in `MultiHeadAttention.forward`.
        """
        attended = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=self.causal)
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]
