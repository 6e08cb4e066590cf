"""Packing: copying a block of a matrix into panels that the register tile reads straight through.

The tile wants, for each k, MR numbers of a column of A and NR numbers of a row of B. In the
matrices themselves these lie a row apart, on other cache lines and other pages. So a block is
copied once into panels, in the order in which the tile will ask for it, and then read many times:

    a block of A, with MR = 2              its panels
      a00 a01 a02 a03 a04                    a00 a10 | a01 a11 | a02 a12 | a03 a13 | a04 a14
      a10 a11 a12 a13 a14
      a20 a21 a22 a23 a24                    a20 a30 | a21 a31 | a22 a32 | a23 a33 | a24 a34
      a30 a31 a32 a33 a34

Panels of B are the same with rows and columns exchanged. This is also where every layout becomes
one: a transposed, reversed or broadcast operand is a pair of steps here, and no copy of the whole
of it is ever made. The common layouts, where a step along k or across is one number, are copied
by vectors, all others number by number.
"""

from __future__ import annotations

from typing import NamedTuple

from minigrad.kernels.jit import jit
from minigrad.kernels.vector import copy_vector, load, store, transpose_block


class Blocks(NamedTuple):
    """The sizes in which a product is cut, counted in numbers, and the dtype it is done in."""

    MR: int  # rows of a register tile
    NR: int  # columns of a register tile
    VL: int  # numbers in a vector
    AR: int  # MR in whole vectors: the width of a packed panel of A
    MC: int  # rows of A packed at a time
    KC: int  # steps of k in a panel
    NC: int  # columns of B packed at a time
    cut: int  # multiply-adds from which on C is cut in pieces for threads to share
    item: int  # bytes of a number
    zero: float  # 0 in the dtype


class Matrix(NamedTuple):
    """A matrix anywhere in memory: the address of its first number, and two steps in bytes."""

    at: int
    row: int  # from a row to the next
    col: int  # from a column to the next


@jit()
def pack_panel(t: Blocks, source: Matrix, rows: int, depth: int, width: int, target: int) -> None:
    """Copy `rows` rows of `depth` numbers, side by side, into the columns of a panel.

    The panel is `width` >= `rows` columns wide. The surplus ones get some number or other: a tile
    computes with them, but what comes of it is never written to C.
    """
    line, vector = width * t.item, t.VL * t.item
    done = 0
    if source.col == t.item:  # a row is contiguous: transpose blocks of vectors
        done = depth - depth % t.VL
        for i in range(0, rows, t.VL):
            last = min(t.VL, rows - i) - 1
            here, there = source.at + i * source.row, target + i * t.item
            for _ in range(0, done, t.VL):
                transpose_block(here, source.row, last, there, line, t.zero)
                here += vector
                there += t.VL * line
    elif source.row == t.item and rows == width:  # a column is: copy it
        done = depth
        here, there = source.at, target
        for _ in range(depth):
            for v in range(width // t.VL):
                copy_vector(here + v * vector, there + v * vector, t.zero)
            here += source.col
            there += line
    for k in range(done, depth):
        for i in range(width):
            value = t.zero
            if i < rows:
                value = load(source.at + i * source.row + k * source.col, t.zero)
            store(target + k * line + i * t.item, value)


@jit(inline="always")
def pack_rows(t: Blocks, a: Matrix, rows: int, depth: int, target: int) -> None:
    """Pack a block of A, MR rows to a panel."""
    for i in range(0, rows, t.MR):
        high = min(t.MR, rows - i)
        if a.row == t.item and rows - i >= t.AR:
            high = t.AR  # whole vectors: the surplus rows exist, those of the next panel
        source = Matrix(a.at + i * a.row, a.row, a.col)
        pack_panel(t, source, high, depth, t.AR, target + i // t.MR * t.AR * depth * t.item)


@jit(inline="always")
def pack_columns(t: Blocks, b: Matrix, cols: int, depth: int, panel: int, target: int) -> None:
    """Pack panel number `panel` of a block of B, NR columns to a panel."""
    j = panel * t.NR
    transposed = Matrix(b.at + j * b.col, b.col, b.row)
    place = target + j * depth * t.item
    pack_panel(t, transposed, min(t.NR, cols - j), depth, t.NR, place)
