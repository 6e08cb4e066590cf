"""Recurrent layers: all steps of a sequence in one loop, forward and backward.

The sequences of a batch are independent. So each thread computes some of them from the first step
to the last, and does not wait for other threads. The weight W is packed once, and stays in a cache.
A step is one product on the register tile (`gemm.macrokernel`), which is added to the step's input,
and then a few loops over the gates of each sequence, which are adjacent in memory:

    rnn    h = f(x + W h + b)
    gru    r, z = sigmoid(x + W h + b),   p = W h + b,   n = tanh(x + r p),   h = n + z (h - n)
    lstm   i, f, o = sigmoid(x + W h + b),   g = tanh(x + W h + b),   c = f c + i g,   h = o tanh(c)

A step saves its gates as residuals: i f g o, or r z p n. The backward pass goes from the last step
to the first (Werbos, 1990). It computes the gradient of W at the end, as one product over all
steps.

States, and gradients of states, that would be subnormal numbers are 0. A long sequence would keep
them subnormal for most of its steps, which then take several times as long (see `vector.flushed`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minigrad.kernels import vector_math
from minigrad.kernels.fused import rows_of
from minigrad.kernels.gemm import PRODUCTS, matmul
from minigrad.kernels.gemm.macrokernel import multiply_panels
from minigrad.kernels.gemm.microkernel import CACHE_LINE, first_line
from minigrad.kernels.gemm.packing import BlockSizes, Matrix, pack_panels, transposed
from minigrad.kernels.gemm.products import blocks_of, matrix_of
from minigrad.kernels.jit import Array, Integers, Read, Written, external, jit
from minigrad.kernels.launch import for_each_dtype, kernel_for
from minigrad.kernels.vector import address_of, elements, flushed, keep_alive

Part = Callable[..., None]  # a part of a step, for one sequence

SECONDS = 3e-11  # approximate seconds of a multiply-add, with its share of the work on gates


class Loops(NamedTuple):
    """The kernels of a kind of cell."""

    saved: int  # residuals of a step: how many vectors as long as h
    apart: bool  # whether the last gate uses W h + b before x is added
    forward: Any
    backward: Any


def forward(
    x: Array, state: Array, weight: Array, bias: Array | None, kind: str
) -> tuple[Array, Array] | None:
    """Compute the states after each step, and the gates; None if there is no kernel.

    x, the input of the gates, is `(L, N, gates H)`, the state before the first step is
    `(N, states H)`, W `(gates H, H)`, and b `(gates H,)` or None for 0. `kind` is a key of `LOOPS`.
    """
    loops, (L, N, width), size = LOOPS[kind], x.shape, weight.shape[1]
    kernel = kernel_for(loops.forward, x, state, weight, bias)
    if kernel is None:
        return None
    out = np.empty((L, N, state.shape[1]), x.dtype)
    gates = np.empty((L * N, loops.saved * size), x.dtype)
    kernel(
        SECONDS * x.size * size, rows_of(x, width), rows_of(state, state.shape[1]),
        rows_of(weight, size), np.zeros(width, x.dtype) if bias is None else bias.ravel(),
        PRODUCTS[x.dtype].plans[0], gates, out.reshape(L * N, -1),
    )  # fmt: skip
    return out, gates


def backward(
    g: Array, state: Array, weight: Array, out: Array, gates: Array, kind: str, wants_weight: bool
) -> tuple[Array, Array, Array | None, Array]:
    """Compute the gradients of `forward` by x, state, W (if it is wanted) and b.

    The gradient by b is not yet summed over the batch: `(N, gates H)`.
    """
    loops, (L, N, width), (height, size) = LOOPS[kind], out.shape, weight.shape
    # In half precision, the forward pass computed with wider numbers, but these arrays are narrow.
    g, state, weight, out = (a.astype(gates.dtype, copy=False) for a in (g, state, weight, out))
    before, states = rows_of(state, width), out.reshape(L * N, width)
    dx, dstate = np.empty((L * N, height), out.dtype), np.zeros((N, width), out.dtype)
    dproduct, dbias = np.empty_like(dx) if loops.apart else dx, np.zeros((N, height), out.dtype)
    loops.backward[out.dtype](
        SECONDS * dx.size * size, rows_of(g, width), before, rows_of(weight, size), states, gates,
        PRODUCTS[out.dtype].plans[0], dx, dproduct, dbias, dstate,
    )  # fmt: skip
    dweight = None
    if wants_weight:
        dweight = matmul(dproduct[:N].T, before[:, :size])
        matmul(dproduct[N:].T, states[:-N, :size], out=dweight, add=True)
    return dx.reshape(L, N, height), dstate, dweight, dbias


# --------------------------------------------------------------------------------------------------
# Functions of a number: vector code for float32, the C library for float64
# --------------------------------------------------------------------------------------------------


_ZERO, _ONE = np.float32(0), np.float32(1)
_tanh = vector_math.by_dtype(vector_math.tanh, lambda x: math.tanh(x))
_sigmoid = vector_math.by_dtype(vector_math.sigmoid, lambda x: 1 / (1 + math.exp(-x)))


@jit(inline="always")
def _relu(x: Any) -> Any:
    return _ZERO if x <= 0 else x


@external(fastmath={"contract"})
def _apply_tanh(row: Any) -> None:
    for j in range(row.size):
        row[j] = _tanh(row[j])


@external(fastmath={"contract"})
def _apply_sigmoid(row: Any) -> None:
    for j in range(row.size):
        row[j] = _sigmoid(row[j])


@external()
def _copy(source: Any, target: Any) -> None:
    for j in range(target.size):
        target[j] = source[j]


@external()
def _add(source: Any, target: Any) -> None:
    for j in range(target.size):
        target[j] = flushed(target[j] + source[j])


@external()
def _fill(x: Any, bias: Any, sums: Any, summed: int) -> None:
    """Write the bias to each row, and add x to the first `summed` numbers of the row."""
    for n in range(len(sums)):
        row, xs = sums[n], x[n]
        for j in range(bias.size):
            row[j] = bias[j]
        for j in range(summed):
            row[j] += xs[j]


@jit()
def _block(row: Any, block: int, size: int) -> Any:
    """Return one of the blocks of a row, as an array that the compiler knows to be contiguous."""
    return elements(address_of(row), block * size, size, row)


@jit()
def _four(row: Any, size: int) -> Any:
    """Return the blocks of a row with four blocks."""
    first, second = _block(row, 0, size), _block(row, 1, size)
    return first, second, _block(row, 2, size), _block(row, 3, size)


@jit()
def _row(x: Any, row: int) -> Any:
    """Return a row of an array, as an array that the compiler knows to be contiguous."""
    return elements(address_of(x) + row * x.strides[0], 0, x.shape[1], x)


# --------------------------------------------------------------------------------------------------
# One step of each cell, for one sequence. `activate` turns the sums in `gates` into gates, and
# writes the state `after` the step. `gradients` gets d, the gradient of that state. It writes the
# gradient of x to dx, and the gradient of W h + b to `dproduct` if it differs. To d it writes the
# part of the gradient of the state `before` that does not go through W h. There are many short
# loops, because the compiler checks whether arrays overlap, and makes vector code only from a loop
# with few arrays.
# --------------------------------------------------------------------------------------------------


def _rnn(f: Callable[[Any], Any], slope: Callable[[Any, Any], Any]) -> tuple[Part, Part]:
    """Return the parts of a step of an rnn; from d and h, `slope` gives the gradient by the sum."""
    slope = jit(inline="always")(slope)

    @jit(inline="always")
    def activate(size: int, _x: Any, gates: Any, _before: Any, after: Any) -> None:
        for j in range(size):
            after[j] = flushed(f(gates[j]))

    @jit(inline="always")
    def gradients(
        size: int, _gates: Any, _before: Any, after: Any, d: Any, dx: Any, _dproduct: Any
    ) -> None:
        for j in range(size):
            dx[j] = slope(d[j], after[j])

    return activate, gradients


@jit(inline="always")
def _activate_gru(size: int, x: Any, gates: Any, before: Any, after: Any) -> None:
    r, z, p, n = _four(gates, size)
    x_n = _block(x, 2, size)
    _apply_sigmoid(_block(gates, 0, 2 * size))
    for j in range(size):
        n[j] = x_n[j] + r[j] * p[j]
    _apply_tanh(n)
    for j in range(size):
        after[j] = flushed(n[j] + z[j] * (before[j] - n[j]))


@jit(inline="always")
def _gradients_gru(
    size: int, gates: Any, before: Any, _after: Any, d: Any, dx: Any, dproduct: Any,
) -> None:  # fmt: skip
    r, z, p, n = _four(gates, size)
    dr, dz, dn = _block(dx, 0, size), _block(dx, 1, size), _block(dx, 2, size)
    dp = _block(dproduct, 2, size)
    one = d.dtype.type(1)
    for j in range(size):
        dn[j] = d[j] * (one - z[j]) * (one - n[j] * n[j])
    for j in range(size):
        dz[j] = d[j] * (before[j] - n[j]) * z[j] * (one - z[j])
        d[j] *= z[j]
    for j in range(size):
        dp[j] = dn[j] * r[j]
        dr[j] = dn[j] * p[j] * r[j] * (one - r[j])
    _copy(_block(dx, 0, 2 * size), _block(dproduct, 0, 2 * size))


@jit(inline="always")
def _activate_lstm(size: int, _x: Any, gates: Any, before: Any, after: Any) -> None:
    i, f, g, o = _four(gates, size)
    h, c, c_before = _block(after, 0, size), _block(after, 1, size), _block(before, 1, size)
    _apply_sigmoid(_block(gates, 0, 2 * size))
    _apply_tanh(g)
    _apply_sigmoid(o)
    for j in range(size):
        c[j] = flushed(f[j] * c_before[j] + i[j] * g[j])
    _copy(c, h)
    _apply_tanh(h)
    for j in range(size):
        h[j] *= o[j]


@jit(inline="always")
def _gradients_lstm(
    size: int, gates: Any, before: Any, after: Any, d: Any, dx: Any, _dproduct: Any,
) -> None:  # fmt: skip
    i, f, g, o = _four(gates, size)
    di, df, dg, do = _four(dx, size)
    c, c_before = _block(after, 1, size), _block(before, 1, size)
    dh, dc = _block(d, 0, size), _block(d, 1, size)
    one = d.dtype.type(1)
    _copy(c, do)
    _apply_tanh(do)
    for j in range(size):
        t = do[j]
        do[j] = dh[j] * t * o[j] * (one - o[j])
        dc[j] += dh[j] * o[j] * (one - t * t)
    for j in range(size):
        di[j] = dc[j] * g[j] * i[j] * (one - i[j])
        dg[j] = dc[j] * i[j] * (one - g[j] * g[j])
    for j in range(size):
        df[j] = dc[j] * c_before[j] * f[j] * (one - f[j])
        dc[j] *= f[j]


@external()
def _packed(plan: Any, y: Any, transpose: bool) -> Any:
    """Return the panels of a matrix, or of its transpose, as an array of bytes."""
    t, b, (depth, count) = blocks_of(plan, y), matrix_of(y), y.shape
    if transpose:
        b, depth, count = transposed(b), count, depth
    panels = (count + t.NR - 1) // t.NR
    work = np.empty(panels * t.NR * depth * t.item + CACHE_LINE, np.uint8)
    pack_panels(t, b, count, depth, first_line(work))
    return work


@jit(inline="always")
def _panels_of(t: BlockSizes, packed: Any, depth: int) -> Matrix:
    """Return the panels that `_packed` has made, `depth` rows each: steps to a row and a panel."""
    line = t.NR * t.item
    return Matrix(first_line(packed), line, line * depth)


def _loops(saved: int, activate: Part, gradients: Part, apart: bool = False) -> Loops:
    """Make the kernels of a cell from the two parts of a step; for the others, see `Loops`."""

    @for_each_dtype()
    def forward_loop(
        piece: int, pieces: int, x: Read.D2, state: Read.D2, weight: Read.D2, bias: Read.D1,
        plan: Integers, gates: Written.D2, out: Written.D2,
    ) -> None:  # fmt: skip
        (height, size), N = weight.shape, len(state)
        first, count = piece * N // pieces, (piece + 1) * N // pieces - piece * N // pieces
        t, packed = blocks_of(plan, weight), _packed(plan, weight, True)
        W = _panels_of(t, packed, size)
        before = state[first : first + count]
        for step in range(first, len(x), N):
            xs, sums = x[step : step + count], gates[step : step + count]
            after = out[step : step + count]
            _fill(xs, bias, sums, height - size if apart else height)
            multiply_panels(t, count, height, size, matrix_of(before), W, matrix_of(sums), True)
            for n in range(count):
                activate(size, _row(xs, n), _row(sums, n), _row(before, n), _row(after, n))
            before = after
        keep_alive(packed)

    @for_each_dtype()
    def backward_loop(
        piece: int, pieces: int, g: Read.D2, state: Read.D2, weight: Read.D2, out: Read.D2,
        gates: Read.D2, plan: Integers, dx: Written.D2, dproduct: Written.D2, dbias: Written.D2,
        dstate: Written.D2,
    ) -> None:  # fmt: skip
        (height, size), N = weight.shape, len(state)
        first, count = piece * N // pieces, (piece + 1) * N // pieces - piece * N // pieces
        t, packed = blocks_of(plan, weight), _packed(plan, weight, False)
        W = _panels_of(t, packed, height)
        ds, totals = dstate[first : first + count], dbias[first : first + count]
        after = out[len(g) - N + first : len(g) - N + first + count]
        for step in range(len(g) - N + first, -1, -N):
            before = out[step - N : step - N + count] if step >= N else state[first : first + count]
            kept, dxs = gates[step : step + count], dx[step : step + count]
            products = dproduct[step : step + count]
            for n in range(count):
                d, product = _row(ds, n), _row(products, n)
                _add(_row(g, step + n), d)
                gradients(
                    size, _row(kept, n), _row(before, n), _row(after, n), d, _row(dxs, n), product
                )
                _add(product, _row(totals, n))
            multiply_panels(t, count, size, height, matrix_of(products), W, matrix_of(ds), apart)
            after = before
        keep_alive(packed)

    return Loops(saved, apart, forward_loop, backward_loop)


LOOPS = {
    "rnn_tanh": _loops(1, *_rnn(_tanh, lambda d, h: d * (_ONE - h * h))),
    "rnn_relu": _loops(1, *_rnn(_relu, lambda d, h: _ZERO if h <= 0 else d)),
    "gru": _loops(4, _activate_gru, _gradients_gru, apart=True),
    "lstm": _loops(4, _activate_lstm, _gradients_lstm),
}
"""The kernels of each kind of cell, by its name."""
