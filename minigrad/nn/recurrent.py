"""Recurrent layers: RNN, GRU and LSTM, for sequences and for one step.

Parameters, gates, shapes and states are as in PyTorch, so PyTorch's state dicts can be loaded. All
sequences of a batch have the same length; PyTorch's PackedSequence is not supported.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import DTypeLike

from minigrad import functional, ops
from minigrad.checks import check_choice, check_flag, check_positive, check_probability
from minigrad.core.grad_mode import observed
from minigrad.core.tensor import Array, Tensor
from minigrad.nn import init
from minigrad.nn.module import Module, Parameter, as_input
from minigrad.ops.recurrent import CELLS
from minigrad.random import Rng

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

Nonlinearity = Literal["tanh", "relu"]
State = Any  # the pair (h, c) in an LSTM; h in the other cells
PARAMETERS = "weight_ih", "weight_hh", "bias_ih", "bias_hh"


class _Recurrent(Module):
    """Base class of recurrent layers and cells: sizes, parameters and states."""

    _repr_format = "{self.input_size}, {self.hidden_size}"
    _repr_defaults: ClassVar = {"bias": True}
    cell: str  # a key of `ops.recurrent.CELLS`

    def __init__(self, input_size: int, hidden_size: int, bias: bool) -> None:
        check_positive("input_size", input_size)
        check_positive("hidden_size", hidden_size)
        check_flag("bias", bias)
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias

    def _add_parameters(self, suffix: str, input_size: int, dtype: DTypeLike, rng: Rng) -> None:
        """Make the parameters of one cell, initialised uniformly in +-1 / sqrt(hidden_size)."""
        size, bound = self.hidden_size, 1 / math.sqrt(self.hidden_size)
        height = CELLS[self.cell].gates * size
        shapes = (height, input_size), (height, size), (height,), (height,)
        for name, shape in zip(PARAMETERS, shapes, strict=True):
            parameter = None
            if self.bias or name.startswith("weight"):
                parameter = init.uniform_(Parameter.empty(shape, dtype), -bound, bound, rng=rng)
            setattr(self, name + suffix, parameter)

    def _run(self, x: Tensor, state: Array, suffix: str) -> Tensor:
        """Return the states after each step of x, `(L, N, ...)`."""
        w_ih, w_hh, b_ih, b_hh = (getattr(self, name + suffix) for name in PARAMETERS)
        if self.bias and self.cell != "gru":  # a GRU multiplies b_hh by r; other cells add both
            b_ih, b_hh = None, b_ih + b_hh
        return ops.recurrence(ops.linear(x, w_ih, b_ih), state, w_hh, b_hh, self.cell)

    def _check_input(self, x: Tensor, axes: int) -> bool:
        """Return whether x is a batch, with `axes` axes; one sequence has one axis less."""
        if x.ndim not in (axes - 1, axes) or x.shape[-1] != self.input_size:
            size = self.input_size
            wanted = f"{axes} axes, or {axes - 1} without a batch, the last of size {size}"
            raise ValueError(f"{type(self).__name__}: x has {wanted}, not shape {x.shape}")
        return x.ndim == axes

    def _joined(
        self, state: State, shape: tuple[int, ...], batched: bool, dtype: np.dtype[Any]
    ) -> Any:
        """Return h, or h and c concatenated, with a batch axis; zeros if the state is None.

        `shape` is the expected shape of h and c; its second-to-last axis is the batch.
        """
        name, count = type(self).__name__, CELLS[self.cell].states
        if state is None:
            return observed(np.zeros, (*shape[:-1], count * shape[-1]), dtype)
        length = len(state) if isinstance(state, (tuple, list)) else None
        if count == 2 and length != 2:
            given = type(state).__name__ + ("" if length is None else f" of {length}")
            raise TypeError(f"{name}: the state is a pair (h, c), not {given}")
        shape = shape if batched else (*shape[:-2], shape[-1])
        parts = [as_input(self, x, "a state") for x in (state if count == 2 else [state])]
        for part in parts:
            if np.shape(part) != shape:
                raise ValueError(
                    f"{name}: a state must have shape {shape}, but has {np.shape(part)}"
                )
        joined = ops.concatenate(parts, -1) if count == 2 else parts[0]
        return joined if batched else functional.expand_dims(joined, -2)

    def _apart(self, state: Tensor, batched: bool) -> State:
        """Return h, or the pair (h, c), and remove the batch axis if x had none."""
        size, batch = self.hidden_size, slice(None) if batched else 0
        h, *c = (
            ops.getitem(state, (..., batch, slice(k * size, (k + 1) * size)))
            for k in range(CELLS[self.cell].states)
        )
        return (h, *c) if c else h


# --------------------------------------------------------------------------------------------------
# Sequences
# --------------------------------------------------------------------------------------------------


class _Layers(_Recurrent):
    """Base class of layers, which run cells over a sequence in one direction or both."""

    _repr_defaults: ClassVar = {
        "num_layers": 1,
        "bias": True,
        "batch_first": False,
        "dropout": 0,
        "bidirectional": False,
    }

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias)
        check_positive("num_layers", num_layers)
        check_probability("dropout", dropout)
        check_flag("batch_first", batch_first)
        check_flag("bidirectional", bidirectional)
        if dropout and num_layers == 1:
            warnings.warn(
                f"{type(self).__name__}: dropout={dropout} drops nothing, because it is between "
                f"layers, and num_layers=1; use minigrad.dropout after the layer",
                stacklevel=5,  # the caller of the constructor, which has three decorators
            )
        self.num_layers, self.batch_first, self.dropout = num_layers, batch_first, dropout
        self.bidirectional, self.rng = bidirectional, rng
        self._directions = ("", "_reverse") if bidirectional else ("",)
        for layer in range(num_layers):
            size = hidden_size * len(self._directions) if layer else input_size
            for direction in self._directions:
                self._add_parameters(f"_l{layer}{direction}", size, dtype, rng)

    def forward(self, x: Tensor, hx: State = None) -> tuple[Tensor, State]:
        """Return the last layer's h after each step, and the final states of all layers.

        Args:
            x: `(L, N, input_size)`, or `(N, L, input_size)` with `batch_first`; or one sequence,
                `(L, input_size)`.
            hx: the states before the first step: h, or (h, c) in an LSTM; None for zeros. Each has
                the shape `(D, N, hidden_size)`, or `(D, hidden_size)` for one sequence. D is
                num_layers, or 2 num_layers if bidirectional; the two directions of a layer follow
                each other.

        Returns:
            The output, which has the shape of x except for its last axis: this has the size
            `hidden_size`, or 2 hidden_size if bidirectional, with the backward h last. And the
            final states, in the form of `hx`.

        Raises:
            ValueError: if a shape does not match, or the sequence has no step.
            TypeError: if the state of an LSTM is not a pair.
        """
        x = as_input(self, x)
        batched = self._check_input(x, 3)
        swapped = batched and self.batch_first
        if swapped:
            x = functional.swapaxes(x, 0, 1)
        elif not batched:
            x = functional.expand_dims(x, 1)
        if len(x) == 0:
            raise ValueError(f"{type(self).__name__}: a sequence has at least one step")
        D = self.num_layers * len(self._directions)
        first = self._joined(hx, (D, x.shape[1], self.hidden_size), batched, x.dtype)
        last: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer:
                x = functional.dropout(x, self.dropout, self.training, rng=self.rng)
            outputs = []
            for direction in self._directions:
                steps = ops.flip(x, 0) if direction else x
                states = self._run(steps, ops.getitem(first, len(last)), f"_l{layer}{direction}")
                last.append(ops.getitem(states, slice(-1, None)))
                h = ops.getitem(states, (..., slice(self.hidden_size)))
                outputs.append(ops.flip(h, 0) if direction else h)
            x = ops.concatenate(outputs, -1) if self.bidirectional else outputs[0]
        if swapped:
            x = functional.swapaxes(x, 0, 1)
        elif not batched:
            x = ops.getitem(x, (slice(None), 0))
        final = ops.concatenate(last) if len(last) > 1 else last[0]
        return x, self._apart(final, batched)


class RNN(_Layers):
    """Recurrent layers (Elman, 1990): h = f(W_ih x + b_ih + W_hh h + b_hh), f is tanh or relu.

    All parameters are initialised uniformly in +-1 / sqrt(hidden_size). Their names end with the
    number of the layer, `_l0`, and with `_reverse` if they belong to the backward direction.

    Args:
        input_size: the size of a vector of the sequence.
        hidden_size: H, the size of h.
        num_layers: the number of layers; the input of a layer is the output of the layer before.
        nonlinearity: f, "tanh" or "relu".
        bias: whether the layers have b_ih and b_hh.
        batch_first: whether the batch is the first axis of input and output, not the second.
        dropout: the probability of dropout between layers, in training; with one layer there is
            none, and a warning says so.
        bidirectional: whether each layer also runs backward through the sequence.

    Attributes:
        weight_ih_l0: `(H, input_size)`; in later layers `(H, H)`, or `(H, 2 H)` if bidirectional.
        weight_hh_l0: `(H, H)`.
        bias_ih_l0, bias_hh_l0: `(H,)`, or None.

    Raises:
        ValueError: if a size is not a positive integer, `nonlinearity` is unknown, or dropout is
            not a probability.
        TypeError: if a flag is not True or False, or dropout is not a number.
    """

    _repr_defaults: ClassVar = {**_Layers._repr_defaults, "nonlinearity": "tanh"}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Nonlinearity = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        check_choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        self.nonlinearity, self.cell = nonlinearity, f"rnn_{nonlinearity}"
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            dtype=dtype, rng=rng,
        )  # fmt: skip


class GRU(_Layers):
    """Gated recurrent units (Cho et al., 2014), in the form of PyTorch.

        r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh)
        n = tanh(W_ih x + b_ih + r (W_hh h + b_hh)),    h = (1 - z) n + z h

    Each gate has its own rows of the parameters. The arguments are those of `RNN`, without
    `nonlinearity`.

    Attributes:
        weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0: as in `RNN`, but with `3 H` rows: first
            those of r, then z, then n.

    Raises:
        ValueError, TypeError: as in `RNN`.
    """

    cell = "gru"


class LSTM(_Layers):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997), in the form of PyTorch.

        i, f, o = sigmoid(W_ih x + b_ih + W_hh h + b_hh),    g = tanh(W_ih x + b_ih + W_hh h + b_hh)
        c = f c + i g,    h = o tanh(c)

    Each gate has its own rows of the parameters. The arguments are those of `RNN`, without
    `nonlinearity`. PyTorch's `proj_size` is not supported.

    Attributes:
        weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0: as in `RNN`, but with `4 H` rows: those
            of i, f, g and o, in this order.

    Raises:
        ValueError, TypeError: as in `RNN`.
    """

    cell = "lstm"


# --------------------------------------------------------------------------------------------------
# One step
# --------------------------------------------------------------------------------------------------


class _Cell(_Recurrent):
    """A cell that does one step in each call."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias)
        self._add_parameters("", input_size, dtype, rng)

    def forward(self, x: Tensor, hx: State = None) -> State:
        """Return the state after a step: h, or (h, c) in an LSTMCell.

        Args:
            x: `(N, input_size)`, or `(input_size,)`.
            hx: the state before the step: h, or (h, c) in an LSTMCell; None for zeros. Each has the
                shape `(N, hidden_size)` or `(hidden_size,)`.

        Raises:
            ValueError: if a shape does not match.
            TypeError: if the state of an LSTMCell is not a pair.
        """
        x = as_input(self, x)
        batched = self._check_input(x, 2)
        x = x if batched else functional.expand_dims(x, 0)
        before = self._joined(hx, (len(x), self.hidden_size), batched, x.dtype)
        states = self._run(functional.expand_dims(x, 0), before, "")
        return self._apart(ops.getitem(states, 0), batched)


class RNNCell(_Cell):
    """One step of an `RNN` with one layer; the parameters have no ending: `weight_ih`.

    Args:
        input_size: the size of an input vector.
        hidden_size: the size of h.
        bias: whether the cell has `bias_ih` and `bias_hh`.
        nonlinearity: "tanh" or "relu".

    Raises:
        ValueError: if a size is not a positive integer, or `nonlinearity` is unknown.
        TypeError: if `bias` is not True or False.
    """

    _repr_defaults: ClassVar = {**_Cell._repr_defaults, "nonlinearity": "tanh"}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Nonlinearity = "tanh",
        *,
        dtype: DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        check_choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        self.nonlinearity, self.cell = nonlinearity, f"rnn_{nonlinearity}"
        super().__init__(input_size, hidden_size, bias, dtype=dtype, rng=rng)


class GRUCell(_Cell):
    """One step of a `GRU` with one layer; the parameters have no ending: `weight_ih`.

    The arguments are those of `RNNCell`, without `nonlinearity`.

    Raises:
        ValueError, TypeError: as in `RNNCell`.
    """

    cell = "gru"


class LSTMCell(_Cell):
    """One step of an `LSTM` with one layer; the parameters have no ending: `weight_ih`.

    The arguments are those of `RNNCell`, without `nonlinearity`.

    Raises:
        ValueError, TypeError: as in `RNNCell`.
    """

    cell = "lstm"
