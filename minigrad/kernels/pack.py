"""Packing: copying a block of a matrix into panels that the register tile reads in a straight line.

The tile wants, for each k, MR numbers of a column of A and NR numbers of a row of B. In the
matrices themselves these lie a row apart, on other pages and other cache lines. So a block is
copied once into panels, in the order in which the tile will ask for it, and read many times:

    A, 4 rows of 6 (MR = 2)                panels of A
      a00 a01 a02 a03 a04 a05               a00 a10 | a01 a11 | a02 a12 | ...
      a10 a11 a12 a13 a14 a15        ->
      a20 a21 a22 a23 a24 a25               a20 a30 | a21 a31 | a22 a32 | ...
      a30 a31 a32 a33 a34 a35

Panels of B are the same thing with rows and columns exchanged. This is also where any layout
becomes one: a transposed, reversed or broadcast operand is a pair of steps, and no copy of the
whole of it is ever made. The two common steps (neighbours along k, neighbours across) go by
vectors; all others go number by number.
"""

from __future__ import annotations

from typing import NamedTuple

from minigrad.kernels.jit import jit
from minigrad.kernels.micro import copy_vector, load, store, transpose_block


class Blocks(NamedTuple):
    """The sizes in which a product is cut, and the dtype it is done in."""

    MR: int  # rows of a register tile
    NR: int  # columns of a register tile
    VL: int  # numbers in a vector
    AR: int  # MR in whole vectors: the width of a panel of A
    MC: int  # rows of A packed at a time
    KC: int  # steps of k in a panel
    NC: int  # columns of B packed at a time
    item: int  # bytes of a number
    zero: float  # 0 in the dtype


class Matrix(NamedTuple):
    """A matrix anywhere in memory: the address of its first number and two steps in bytes."""

    at: int
    row: int  # from a row to the next
    col: int  # from a column to the next


@jit()
def pack_panel(
    t: Blocks, source: Matrix, wide: int, depth: int, width: int, target: int
) -> None:
    """Copy `wide` rows of `depth` numbers into a panel of `width` >= `wide` columns.

    Columns beyond `wide` get something harmless: the tile computes with them, and its result for
    them is dropped.
    """
    step = width * t.item
    vector = t.VL * t.item
    done = 0
    if source.col == t.item:
        done = depth - depth % t.VL
        for w in range(0, wide, t.VL):
            last = min(t.VL, wide - w) - 1
            here, there = source.at + w * source.row, target + w * t.item
            for _ in range(0, done, t.VL):
                transpose_block(here, source.row, last, there, step, t.zero)
                here += vector
                there += t.VL * step
    elif source.row == t.item and wide == width:
        done = depth
        here, there = source.at, target
        for _ in range(depth):
            for v in range(width // t.VL):
                copy_vector(here + v * vector, there + v * vector, t.zero)
            here += source.col
            there += step
    for k in range(done, depth):
        for w in range(width):
            value = t.zero
            if w < wide:
                value = load(source.at + w * source.row + k * source.col, t.zero)
            store(target + k * step + w * t.item, value)


@jit(inline="always")
def pack_rows(t: Blocks, a: Matrix, rows: int, depth: int, target: int) -> None:
    """Pack `rows` rows of A, MR to a panel."""
    for i in range(0, rows, t.MR):
        wide = min(t.MR, rows - i)
        if a.row == t.item and rows - i >= t.AR:
            wide = t.AR  # whole vectors: the surplus rows are there to be read
        source = Matrix(a.at + i * a.row, a.row, a.col)
        pack_panel(t, source, wide, depth, t.AR, target)
        target += t.AR * depth * t.item


@jit(inline="always")
def pack_columns(t: Blocks, b: Matrix, cols: int, depth: int, panel: int, target: int) -> None:
    """Pack panel number `panel` of a block of B with `cols` columns, NR to a panel."""
    j = panel * t.NR
    source = Matrix(b.at + j * b.col, b.col, b.row)  # transposed: a panel holds columns of B
    place = target + panel * t.NR * depth * t.item
    pack_panel(t, source, min(t.NR, cols - j), depth, t.NR, place)
