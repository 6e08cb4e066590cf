"""Packing: copying a block of a matrix into panels, in the order in which the tile reads them.

For each k, the register tile reads MR numbers of a column of A and NR numbers of a row of B. In the
matrices, the numbers of the next k are on other cache lines and other pages. So a block is copied
once into panels, and then the tile reads the panels many times:

    a block of A, with MR = 2              its panels
      a00 a01 a02 a03 a04                    a00 a10 | a01 a11 | a02 a12 | a03 a13 | a04 a14
      a10 a11 a12 a13 a14
      a20 a21 a22 a23 a24                    a20 a30 | a21 a31 | a22 a32 | a23 a33 | a24 a34
      a30 a31 a32 a33 a34

Panels of B are the same with rows and columns exchanged. Packed panels have one layout, whatever
the layout of the matrix: a transposed, reversed or broadcast operand only has other steps, and no
complete copy of the operand is made. In the common layouts, rows or columns are contiguous, and
whole vectors are copied; all other layouts are copied number by number.

A narrow last panel is filled up with arbitrary numbers. A tile may compute with them, but they
affect only rows and columns that are not written to C.
"""

from __future__ import annotations

from typing import NamedTuple

from minigrad.kernels.jit import external, jit
from minigrad.kernels.vector import copy_some, copy_vector, load, store, transpose_block

STEPS_NEAR = 32  # steps of k at a time: their columns stay in the level-1 cache for all panels


class BlockSizes(NamedTuple):
    """The sizes of the blocks of a product, counted in numbers, and its dtype."""

    MR: int  # rows of a register tile
    NR: int  # columns of a register tile
    VL: int  # numbers in a vector
    AR: int  # MR rounded up to complete vectors: the width of a packed panel of A
    MC: int  # rows of A packed at a time
    KC: int  # steps of k in a panel
    NC: int  # columns of B packed at a time
    RUN: int  # steps of k that a tile adds up before it writes
    near: int  # bytes: a B of at most this size is read in place unless it has many columns
    split: int  # 0, or the address of `split_panels`, which packs blocks for the matrix unit
    unit: int  # the address of `multiply_split` if there is one of `split_panels`
    item: int  # bytes of a number
    zero: float  # 0 in the dtype


class Matrix(NamedTuple):
    """A matrix of any layout: the address of its first number, and two steps in bytes."""

    at: int
    row: int  # from a row to the next
    col: int  # from a column to the next


@jit(inline="always")
def transposed(matrix: Matrix) -> Matrix:
    """Return the transpose: the two steps are exchanged, and no element moves."""
    return Matrix(matrix.at, matrix.col, matrix.row)


@jit(inline="always")
def part_of(matrix: Matrix, row: int, col: int) -> Matrix:
    """Return the part of a matrix from a row and a column on."""
    return Matrix(matrix.at + row * matrix.row + col * matrix.col, matrix.row, matrix.col)


@jit(inline="always")
def pack_panels(t: BlockSizes, b: Matrix, cols: int, depth: int, target: int) -> None:
    """Copy `cols` columns of `depth` numbers into panels of B."""
    pack(t, transposed(b), cols, depth, t.NR, t.NR, target)


@external()
def pack(
    t: BlockSizes, source: Matrix, rows: int, depth: int, step: int, width: int, target: int
) -> None:
    """Copy `rows` rows of `depth` numbers into panels of `step` rows, `width` >= `step` wide."""
    if source.row == t.item:
        _copy_columns(t, source, rows, depth, step, width, target)
    else:
        for i in range(0, rows, step):
            panel = target + i // step * width * depth * t.item
            _transpose_rows(t, part_of(source, i, 0), min(step, rows - i), depth, width, panel)


@jit(inline="always")
def _copy_columns(
    t: BlockSizes, source: Matrix, rows: int, depth: int, step: int, width: int, target: int
) -> None:
    """Pack a matrix with contiguous columns: for each k, copy a piece of the column to each panel.

    The extra lanes of a panel get the first rows of the next panel: complete vectors are copied.
    """
    line, vector = width * t.item, t.VL * t.item
    for first in range(0, depth, STEPS_NEAR):
        steps = min(STEPS_NEAR, depth - first)
        here, there = source.at + first * source.col, target + first * line
        left = rows
        while left > 0:
            v, numbers = 0, left
            while v < line:
                from_, to = here + v, there + v
                if numbers >= t.VL:
                    for _ in range(steps):
                        copy_vector(from_, to, t.zero)
                        from_ += source.col
                        to += line
                else:
                    for _ in range(steps):
                        copy_some(from_, to, max(numbers, 0), t.zero)
                        from_ += source.col
                        to += line
                v += vector
                numbers -= t.VL
            left -= step
            here += step * t.item
            there += line * depth


@jit(inline="always")
def _transpose_rows(
    t: BlockSizes, source: Matrix, rows: int, depth: int, width: int, panel: int
) -> None:
    """Pack the rows of one panel. Of contiguous rows, square blocks of vectors are transposed."""
    line, done = width * t.item, 0
    if source.col == t.item:
        done = depth - depth % t.VL
        for r in range(0, rows, t.VL):
            exist = min(t.VL, rows - r)
            here, there = source.at + r * source.row, panel + r * t.item
            for _ in range(0, done, t.VL):
                transpose_block(here, source.row, exist, there, line, t.zero)
                here += t.VL * t.item
                there += t.VL * line
    for k in range(done, depth):
        for r in range(width):
            value = t.zero
            if r < rows:
                value = load(source.at + r * source.row + k * source.col, t.zero)
            store(panel + k * line + r * t.item, value)
