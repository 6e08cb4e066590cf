"""The loops of a matrix product: which block is where when the register tile runs.

Memory comes in levels, each smaller and faster than the one behind it. A product of n x n
matrices does n multiply-adds for every number it holds, so it is fast if each number, once
fetched into a level, is used as often as possible before it has to go. Five loops do that
(K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008):

    for jc in 0, NC, ... n:                 columns of C and B
      for pc in 0, KC, ... k:               steps of the sum
        pack B[pc:+KC, jc:+NC]                  -> panels, stay in the level-2 or -3 cache
        for ic in 0, MC, ... m:             rows of C and A
          pack A[ic:+MC, pc:+KC]                -> panels, stay in the level-2 cache
          for j in 0, NR, ... NC:           one panel of B stays in the level-1 cache
            for i in 0, MR, ... MC:         one tile of C stays in registers
              C[ic+i:+MR, jc+j:+NR] += A-panel times B-panel      (micro.py)

Packing pays only when what was packed is read several times: with few columns the rows of A are
read in place, and with few rows the columns of B are.

The order of the sum over k is the same for every number of C: within KC steps one after another,
and blocks of KC added up from the first. How rows and columns are cut, packed or not, has no
influence on it, so neither has the number of threads: the bits are the same.

Everything here works on addresses that `minigrad.kernels.gemm` took from arrays it has checked.
A function that allocates memory hands the array itself, not its address, to a function that uses
it: numba frees an array after the last mention of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from minigrad.kernels.jit import jit
from minigrad.kernels.micro import load, store, tile_packed, tile_strided
from minigrad.kernels.pack import Blocks, Matrix, pack_columns, pack_rows

ALIGN = 64  # bytes of a cache line
SMALL = 2_000_000  # multiply-adds of a product that is not worth cutting
PIECES = 16  # pieces of work to share out: divides evenly among 2, 4, 8 or 16 threads


class Panels(NamedTuple):
    """Panels of A or B, packed or in place."""

    at: int
    across: int  # bytes to the next row (A) or column (B) within a panel
    along: int  # bytes to the next k
    next: int  # bytes to the next panel
    packed: bool


@jit(inline="always")
def first_aligned(work: Any) -> int:
    """The address of the first cache line that starts within `work`."""
    return (np.intp(work.ctypes.data) + ALIGN - 1) & ~(ALIGN - 1)


@jit(inline="always")
def copy_corner(t: Blocks, spare: int, high: int, wide: int, C: Matrix, add: bool) -> None:
    """Write (or add) the part that exists of a tile that was computed aside."""
    for i in range(high):
        for j in range(wide):
            here = C.at + i * C.row + j * t.item
            value = load(spare + (i * t.NR + j) * t.item, t.zero)
            if add:
                value += load(here, t.zero)
            store(here, value)


@jit(inline="always")
def multiply_panels(
    t: Blocks, rows: int, cols: int, depth: int, A: Panels, B: Panels, edge: int, C: Matrix,
    add: bool, spare: int,
) -> None:
    """C[rows, cols] = A B, or += : the two inner loops. `edge` is the narrow last panel of B."""
    for j in range(0, cols, t.NR):
        wide = min(t.NR, cols - j)
        full = wide == t.NR
        b, b_k = B.at + j // t.NR * B.next, B.along
        if not full:
            b, b_k = edge, t.NR * t.item
        for i in range(0, rows, t.MR):
            high = min(t.MR, rows - i)
            a = A.at + i // t.MR * A.next
            c = C.at + i * C.row + j * t.item
            if A.packed and B.packed and full and high == t.MR:
                tile_packed(a, b, depth, c, C.row, add, t.zero)
                continue
            while high > 0:
                target, row = (c, C.row) if full else (spare, t.NR * t.item)
                done = tile_strided(
                    high, a, A.across, A.along, b, b_k, depth, target, row, add and full, t.zero
                )
                if not full:
                    copy_corner(t, spare, done, wide, Matrix(c, C.row, t.item), add)
                high -= done
                a += done * A.across
                c += done * C.row


@jit(inline="always")
def multiply_rows(
    t: Blocks, rows: int, cols: int, depth: int, a: Matrix, B: Panels, edge: int, C: Matrix,
    add: bool, pack: bool, work: Any,
) -> None:
    """C[rows, cols] = A B, or += , packing MC rows of A at a time if `pack`."""
    spare = first_aligned(work)
    panels = spare + t.MR * t.NR * t.item
    for i in range(0, rows, t.MC):
        high = min(t.MC, rows - i)
        source = Matrix(a.at + i * a.row, a.row, a.col)
        A = Panels(source.at, a.row, a.col, t.MR * a.row, False)
        if pack:
            pack_rows(t, source, high, depth, panels)
            A = Panels(panels, t.item, t.AR * t.item, t.AR * depth * t.item, True)
        corner = Matrix(C.at + i * C.row, C.row, C.col)
        multiply_panels(t, high, cols, depth, A, B, edge, corner, add, spare)


@jit()
def multiply_piece(
    t: Blocks, rows: int, cols: int, depth: int, a: Matrix, B: Panels, edge: int, C: Matrix,
    add: bool, pack: bool,
) -> None:
    """`multiply_rows` with memory of its own, as each thread needs it."""
    panels = (min(rows, t.MC) + t.MR - 1) // t.MR if pack else 0
    work = np.empty(ALIGN + (t.MR * t.NR + panels * t.AR * depth) * t.item, np.uint8)
    multiply_rows(t, rows, cols, depth, a, B, edge, C, add, pack, work)


@jit(inline="always")
def multiply(
    t: Blocks, m: int, n: int, k: int, a: Matrix, b: Matrix, C: Matrix, work: Any
) -> None:
    """C = A B: the three outer loops. Pieces of C are cut by the shape alone."""
    pack_a = n > 4 * t.NR
    pack_b = m > t.MR or b.col != t.item
    room = first_aligned(work)
    tiles = (m + t.MR - 1) // t.MR
    pieces = PIECES if m * n * k >= SMALL else 1
    strips = min(tiles, pieces * ((m + pieces * t.MC - 1) // (pieces * t.MC)))
    for jc in range(0, n, t.NC):
        cols = min(t.NC, n - jc)
        panels = (cols + t.NR - 1) // t.NR
        spans = min(panels, max(1, pieces // strips))
        for pc in range(0, k, t.KC):
            depth = min(t.KC, k - pc)
            block = Matrix(b.at + pc * b.row + jc * b.col, b.row, b.col)
            size = t.NR * depth * t.item
            at, across, along, step, first = room, t.item, t.NR * t.item, size, 0
            if not pack_b:  # all but a narrow last panel are read in place
                at, across, along, step = block.at, b.col, b.row, t.NR * b.col
                first = cols // t.NR
            for p in prange(first, panels):
                pack_columns(t, block, cols, depth, p, room)
            for piece in prange(strips * spans):
                s, q = piece // spans, piece % spans
                i, i_end = s * tiles // strips * t.MR, min(m, (s + 1) * tiles // strips * t.MR)
                p, p_end = q * panels // spans, (q + 1) * panels // spans
                j = p * t.NR
                multiply_piece(
                    t, i_end - i, min(cols, p_end * t.NR) - j, depth,
                    Matrix(a.at + i * a.row + pc * a.col, a.row, a.col),
                    Panels(at + p * step, across, along, step, pack_b),
                    room + cols // t.NR * size,
                    Matrix(C.at + i * C.row + (jc + j) * t.item, C.row, C.col),
                    pc > 0, pack_a,
                )


@jit(inline="always")
def work_size(t: Blocks, n: int, k: int) -> int:
    """Bytes that `multiply` needs for the panels of a block of B."""
    panels = (min(n, t.NC) + t.NR - 1) // t.NR
    return ALIGN + panels * t.NR * min(k, t.KC) * t.item


@jit(inline="always")
def locate(batch: Any, index: int, operand: int) -> int:
    """Bytes from the first matrix of a batch to number `index` of the broadcast one.

    `batch` has a row for each axis: its length, and the step of operand 1 and of operand 2.
    """
    offset = 0
    for axis in range(batch.shape[0] - 1, -1, -1):
        offset += index % batch[axis, 0] * batch[axis, operand]
        index //= batch[axis, 0]
    return offset


@jit(inline="always")
def matrix_of(array: Any) -> Matrix:
    """Address and steps of a two-dimensional array."""
    return Matrix(np.intp(array.ctypes.data), array.strides[0], array.strides[1])


@jit(inline="always")
def blocks_of(sizes: Any, array: Any) -> Blocks:
    """The block sizes, handed in as an array of integers, with the dtype of `array`."""
    return Blocks(
        sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6],
        array.itemsize, array.dtype.type(0),
    )  # fmt: skip


@jit(inline="always")
def multiply_one(
    t: Blocks, m: int, n: int, k: int, a: Matrix, b: Matrix, C: Matrix, batch: Any, index: int,
    work: Any,
) -> None:
    """Product number `index` of a batch."""
    multiply(
        t, m, n, k,
        Matrix(a.at + locate(batch, index, 1), a.row, a.col),
        Matrix(b.at + locate(batch, index, 2), b.row, b.col),
        Matrix(C.at + index * m * n * t.item, C.row, C.col),
        work,
    )  # fmt: skip


def _gemm(x: Any, y: Any, out: Any, sizes: Any, batch: Any, count: int) -> None:
    """Write `count` products x @ y, one behind another, from the first element of `out` on.

    `x`, `y` and `out` are the first matrices of the batch (see `locate` for the others).
    """
    m, k, n = x.shape[0], x.shape[1], y.shape[1]
    t = blocks_of(sizes, x)
    a, b, C = matrix_of(x), matrix_of(y), matrix_of(out)
    work = np.empty(work_size(t, n, k), np.uint8)
    for index in range(count):
        multiply_one(t, m, n, k, a, b, C, batch, index, work)

gemm = _gemm
gemm_on_threads = _gemm

@jit()
def run_of_products(t: Blocks, m: int, n: int, k: int, a: Matrix, b: Matrix, C: Matrix, batch: Any, start: int, stop: int) -> None:
    work = np.empty(work_size(t, n, k), np.uint8)
    for index in range(start, stop):
        multiply_one(t, m, n, k, a, b, C, batch, index, work)

def gemm_batch_on_threads(x: Any, y: Any, out: Any, sizes: Any, batch: Any, count: int) -> None:
    m, k, n = x.shape[0], x.shape[1], y.shape[1]
    t = blocks_of(sizes, x)
    a, b, C = matrix_of(x), matrix_of(y), matrix_of(out)
    for piece in prange(PIECES):
        run_of_products(t, m, n, k, a, b, C, batch, piece * count // PIECES, (piece + 1) * count // PIECES)
