"""The recurrence of RNN, GRU and LSTM: one op for all steps of a sequence.

The input of the cells, W_ih x + b_ih, is one product for all steps, computed before (see
`minigrad.nn.recurrent`). This op computes the rest, where each step needs the result of the step
before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minigrad import kernels
from minigrad.checks import check_choice
from minigrad.core.grad_mode import mode, unobserved
from minigrad.core.op import op, replay
from minigrad.core.tensor import Array, Tensor
from minigrad.ops.activation import relu, sigmoid
from minigrad.ops.elementwise import tanh
from minigrad.ops.products import linear
from minigrad.ops.shape import check_shape, concatenate, getitem, reshape


class Cell(NamedTuple):
    """A kind of cell.

    Attributes:
        gates: the number of gates: its input x has this many vectors of the size of h.
        states: the number of vectors in a state: 1 for h, 2 for h and c.
        step: a function of x, W h + b and the state before a step; returns the state after it.
        gradient_flops: the FLOPs of differentiating a step, per element of h, without products.
    """

    gates: int
    states: int
    step: Callable[[Array, Array, Array], Array]
    gradient_flops: int


def _blocks(x: Array, count: int) -> list[Array]:
    """Split the last axis into `count` equal parts."""
    size = x.shape[1] // count
    return [getitem(x, (slice(None), slice(k * size, (k + 1) * size))) for k in range(count)]


def _gru(x: Array, product: Array, h: Array) -> Array:
    (x_r, x_z, x_n), (p_r, p_z, p_n) = _blocks(x, 3), _blocks(product, 3)
    r, z = sigmoid(x_r + p_r), sigmoid(x_z + p_z)
    n = tanh(x_n + r * p_n)
    return n + z * (h - n)


def _lstm(x: Array, product: Array, state: Array) -> Array:
    i, f, g, o = _blocks(x + product, 4)
    c = sigmoid(f) * _blocks(state, 2)[1] + sigmoid(i) * tanh(g)
    return concatenate([sigmoid(o) * tanh(c), c], 1)


CELLS = {
    "rnn_tanh": Cell(1, 1, lambda x, product, _: tanh(x + product), 4),
    "rnn_relu": Cell(1, 1, lambda x, product, _: relu(x + product), 2),
    "gru": Cell(3, 1, _gru, 17),
    "lstm": Cell(4, 2, _lstm, 25),
}


def _recurrence(
    x: Array, state: Array, weight: Array, bias: Array = None, cell: str = "lstm"
) -> Array:
    states = []
    for t in range(len(x)):
        h = getitem(state, (slice(None), slice(weight.shape[1])))
        state = CELLS[cell].step(getitem(x, t), linear(h, weight, bias), state)
        states.append(reshape(state, (1, *state.shape)))
    return concatenate(states)


@op(composition=_recurrence, floats=True, returns_residuals=True, product=True)
def recurrence(
    x: Array, state: Array, weight: Array, bias: Array = None, cell: str = "lstm"
) -> tuple[Array, Array | None]:
    """The states of a recurrent cell after each step of a sequence.

    With p = W h + b, f tanh or relu, and all vectors of size H (Elman, 1990; Cho et al., 2014;
    Hochreiter and Schmidhuber, 1997):

        rnn    h = f(x + p)
        gru    r, z = sigmoid(x + p),    n = tanh(x + r p),        h = (1 - z) n + z h
        lstm   i, f, o = sigmoid(x + p),    g = tanh(x + p),    c = f c + i g,    h = o tanh(c)

    Args:
        x: `(L, N, gates H)`, the inputs of the gates at each step, concatenated: one gate in "rnn",
            three in "gru" (in the order r z n), four in "lstm" (in the order i f g o).
        state: `(N, H)`, h before the first step; in "lstm" h and c concatenated, `(N, 2 H)`.
        weight: W, `(gates H, H)`.
        bias: b, `(gates H,)`, or None.
        cell: "rnn_tanh", "rnn_relu", "gru" or "lstm".

    Returns:
        `(L, *state.shape)`.

    Raises:
        ValueError: if the shapes do not match, the sequence is empty, or the cell is unknown.
    """
    x, state, weight = np.asarray(x), np.asarray(state), np.asarray(weight)
    _check(x, state, weight, bias, cell)
    found = kernels.recurrent.forward(x, state, weight, bias, cell)
    if found is not None:
        return found
    with unobserved(mode.grad_enabled):  # the ops inside are part of this op
        return _recurrence(x, state, weight, bias, cell), None


def _check(x: Array, state: Array, weight: Array, bias: Array, cell: str) -> None:
    """Raise an error if the arguments of `recurrence` do not match."""
    check_choice("cell", cell, CELLS)
    gates, states = CELLS[cell].gates, CELLS[cell].states
    if weight.ndim != 2 or weight.shape[0] != gates * weight.shape[1]:
        raise ValueError(f"{cell!r} takes a weight ({gates} H, H), not one of shape {weight.shape}")
    height, size = weight.shape
    if x.ndim != 3 or x.shape[2] != height or len(x) == 0:
        raise ValueError(
            f"x of shape {x.shape} does not fit a weight of shape {weight.shape}; for {cell!r} "
            f"it is (L, N, {height}), with at least one step"
        )
    check_shape("state", state, (x.shape[1], states * size))
    check_shape("bias", bias, (height,), ", one number for each gate unit")


def _inputs(
    g: Array, needs_input_grad: Sequence[bool], x: Array, state: Array, weight: Array, bias: Array,
    cell: str, out: Array, residuals: Array | None,
) -> Sequence[Array]:  # fmt: skip
    if residuals is not None:
        return kernels.recurrent.backward(
            g, state, weight, out, residuals, cell, needs_input_grad[2]
        )
    inputs = x, state, weight, bias
    wanted = [i for i, needed in enumerate(needs_input_grad) if needed]
    parents: Any = {i: Tensor(inputs[i], requires_grad=True).node for i in wanted}
    with unobserved(mode.grad_enabled):
        found = replay(recurrence.compose, (*inputs, cell), parents, wanted, g)
    gradients = dict(zip(wanted, found, strict=True))
    return [gradients.get(i) for i in range(len(inputs))]


recurrence.joint_vjp(
    ("x", "state", "weight", "bias"),
    _inputs,
    cost={
        "weight": lambda x, weight: 2 * x.size * weight.shape[1],
        "shared": lambda needs_input_grad, x, weight, cell: (
            2 * x.size * weight.shape[1] + CELLS[cell].gradient_flops * x.size // CELLS[cell].gates
            if needs_input_grad
            else 0
        ),
    },
)
