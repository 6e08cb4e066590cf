"""Products of a few rows with a large matrix, which is read once, in the order in which it lies.

* `stream` is for some rows, as in the gradients d^T x and g^T h of LoRA. The register tile walks
  along a strip of rows of the matrix, and hints at the strip to come, which no processor guesses.
* `sweep` is for one row. Eight rows of the matrix at a time are added into the row of the result.
  (1, 4096) @ (4096, 4096) takes a third of the time of a register tile, which would walk down
  columns, from page to page.
"""

from __future__ import annotations

from typing import Any

from numba import prange, types

from minigrad.kernels.gemm.macrokernel import Panels, macro_kernel
from minigrad.kernels.gemm.microkernel import CACHE_LINE
from minigrad.kernels.gemm.packing import BlockSizes, Matrix
from minigrad.kernels.gemm.products import all_blocks_of, matrix_of
from minigrad.kernels.jit import intrinsic, jit
from minigrad.kernels.vector import ADDRESS, Emitter, address_of, prefetch

STRIP = 64  # rows of a matrix that is streamed through
SWEPT = 8  # rows that are added up at once
SPAN = 4096  # numbers of the result that stay in the level-1 cache meanwhile


@jit()
def stream_span(
    t: BlockSizes, m: int, cols: int, k: int, a: Matrix, b: Matrix, C: Matrix, add: bool
) -> None:
    """Compute C = or += A B for a span of columns, one strip of rows of B after the other."""
    for pc in range(0, k, STRIP):
        depth, then = min(STRIP, k - pc), min(STRIP, max(0, k - pc - STRIP))
        A = Panels(a.at + pc * a.col, a.row, a.col, 0, False)
        hinted = 0
        for j in range(0, cols, t.NR):
            wide = min(t.NR, cols - j)
            here = b.at + pc * b.row + j * t.item
            while hinted * cols < then * (j + wide):  # rows in the order in which they lie
                ahead = b.at + (pc + STRIP + hinted) * b.row
                for byte in range(0, cols * t.item, CACHE_LINE):
                    prefetch(ahead + byte)
                hinted += 1
            B = Panels(here, t.item, b.row, 0, False)
            target = Matrix(C.at + j * t.item, C.row, C.col)
            macro_kernel(t, m, wide, depth, A, B, B, target, add or pc > 0, 0)


def stream(pieces: int, x: Any, y: Any, out: Any, plan: Any, add: bool) -> None:
    """Compute out = or += x y, where x has some rows, and the rows of y and out are contiguous."""
    m, k, n = x.shape[0], x.shape[1], y.shape[1]
    t = all_blocks_of(plan, x, 1)
    a, b, C = matrix_of(x), matrix_of(y), matrix_of(out)
    for piece in prange(pieces):
        panels = (n + t.NR - 1) // t.NR
        j, end = piece * panels // pieces * t.NR, min(n, (piece + 1) * panels // pieces * t.NR)
        stream_span(
            t, m, end - j, k, Matrix(a.at, a.row, a.col),
            Matrix(b.at + j * t.item, b.row, b.col), Matrix(C.at + j * t.item, C.row, C.col), add,
        )  # fmt: skip


@intrinsic
def swept_rows(
    _typing: Any, a: Any, a_k: Any, b: Any, b_row: Any, cols: Any, c: Any, add: Any, zero: Any
) -> Any:
    """Compute c[:cols] = or += the sum of a[k] * b[k, :cols] over SWEPT rows."""

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        _emit_sweep(Emitter(builder, zero), SWEPT, args[:-1])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7, zero), emit


@intrinsic
def swept_row(
    _typing: Any, a: Any, a_k: Any, b: Any, b_row: Any, cols: Any, c: Any, add: Any, zero: Any
) -> Any:
    """Compute `swept_rows` for a single row."""

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        _emit_sweep(Emitter(builder, zero), 1, args[:-1])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7, zero), emit


def _emit_sweep(e: Emitter, count: int, args: Any) -> None:
    a, a_k, b, b_row, cols, c, add = args
    builder = e.builder
    factors = [e.broadcast(e.load(e.step(a, a_k, i), e.scalar)) for i in range(count)]
    rows = [e.step(b, b_row, i) for i in range(count)]
    adds = builder.icmp_signed("!=", add, ADDRESS(0))
    rest = builder.urem(cols, ADDRESS(e.lanes))
    length = builder.mul(builder.sub(cols, rest), ADDRESS(e.item))

    def total(done: Any, load: Any) -> Any:
        sum_ = builder.fmul(factors[0], load(builder.add(rows[0], done)))
        for factor, row in zip(factors[1:], rows[1:], strict=True):
            sum_ = e.multiply_add(factor, load(builder.add(row, done)), sum_)
        return sum_

    def vector_of_columns(now: list[Any]) -> tuple[list[Any], Any]:
        (done,) = now
        value, address = total(done, lambda p: e.load(p, e.vector)), builder.add(c, done)
        with builder.if_else(adds) as (to_old, as_new):
            with to_old:
                e.store(builder.fadd(e.load(address, e.vector), value), address)
            with as_new:
                e.store(value, address)
        then = builder.add(done, ADDRESS(e.vector_bytes))
        return [then], builder.icmp_signed("<", then, length)

    with builder.if_then(builder.icmp_signed(">", length, ADDRESS(0))):
        e.loop([ADDRESS(0)], vector_of_columns)
    with builder.if_then(builder.icmp_signed(">", rest, ADDRESS(0))):
        mask = e.first_lanes(rest)
        value = total(length, lambda p: e.load_some(p, mask))
        address = builder.add(c, length)
        with builder.if_else(adds) as (to_old, as_new):
            with to_old:
                e.store_some(builder.fadd(e.load_some(address, mask), value), address, mask)
            with as_new:
                e.store_some(value, address, mask)


@jit()
def sweep_span(a: Matrix, b: Matrix, c: int, cols: int, k: int, add: bool, zero: Any) -> None:
    """Compute c = or += a B, for a span of columns."""
    done = k - k % SWEPT
    for p in range(0, done, SWEPT):
        swept_rows(a.at + p * a.col, a.col, b.at + p * b.row, b.row, cols, c, add or p > 0, zero)
    for p in range(done, k):
        swept_row(a.at + p * a.col, a.col, b.at + p * b.row, b.row, cols, c, add or p > 0, zero)


def sweep(pieces: int, x: Any, y: Any, out: Any, add: bool) -> None:
    """Compute out = or += x y, where x and out have one row and the rows of y are contiguous."""
    k, n, item, zero = y.shape[0], y.shape[1], x.itemsize, x.dtype.type(0)
    a_at, a_k, b_at, b_row, c_at = (
        address_of(x), x.strides[1], address_of(y), y.strides[0], address_of(out),
    )  # fmt: skip
    spans = (n + SPAN - 1) // SPAN
    spans = max(pieces, spans)
    for piece in prange(spans):
        j, end = piece * n // spans, (piece + 1) * n // spans
        sweep_span(
            Matrix(a_at, 0, a_k), Matrix(b_at + j * item, b_row, item), c_at + j * item,
            end - j, k, add, zero,
        )  # fmt: skip
