"""The micro-kernel: the innermost loop of a matrix product, written as vector instructions.

A core multiplies fastest if the numbers it needs are in registers already. So the product is
cut into tiles of C that fit in the vector registers, MR rows by NR columns, and stay there while
the loop over k runs. Each step of it loads one row of B (NR numbers, in NV = 2 vectors) and, for
each of MR rows, one number of A, copied to every lane of a vector:

         b[k, 0:NR]   ->      b0              b1           one row of B
    a[0, k]           ->  c00 += a0 * b0  c01 += a0 * b1
    a[1, k]           ->  c10 += a1 * b0  c11 += a1 * b1
     ...                      ...             ...
    a[MR-1, k]        ->      ...             ...          MR x NV sums, each in a register

That is MR + NV loads for MR * NV multiply-adds, and the sums do not wait for one another: a core
that starts two multiply-adds in each cycle and needs four cycles to finish one is kept busy.
MR is as large as the registers allow: 14 with the 32 registers of AVX-512 or NEON, 6 with 16.

At the edges of C a tile is lower, or narrower: two vectors, one or a half, of which the last is
masked, so that no number is computed for nothing that a narrower vector would leave out.

A compiler does not find this tile by itself, so it is emitted as LLVM code (see
`minigrad.kernels.vector` for the terms: addresses, steps in bytes, `zero` for the dtype).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types

from minigrad.kernels.jit import jit
from minigrad.kernels.vector import (
    ADDRESS,
    Emitter,
    instruction,
    masks_are_cheap,
    masks_are_free,
    vector_registers,
)

NV = 2  # vectors in a row of the tile
AHEAD = 16  # steps of k that packed panels are read ahead, from a far cache into the nearest one
UNROLLED = 4  # steps of k in a round of the loop over packed panels
CACHE_LINE = 64  # bytes


class Tile(NamedTuple):
    """The shape of the register tile for one dtype, counted in numbers."""

    MR: int  # rows
    NR: int  # columns: NV vectors
    VL: int  # numbers in a vector
    AR: int  # MR rounded up to complete vectors: the width of a packed panel of A


def tile_shape(itemsize: int) -> Tile:
    """Return the tile for numbers of `itemsize` bytes: (14, 32, 16, 16) for 4 with AVX-512."""
    width, registers = vector_registers()
    VL = width // itemsize
    MR = (registers - 2 * NV) // NV  # NV registers hold the row of B, as many the next loads
    return Tile(MR, NV * VL, VL, -(-MR // VL) * VL)


def tile_heights(MR: int) -> list[int]:
    """Return the heights of the tile: MR, and powers of two for the rows that are left."""
    return [MR] + [height for height in (8, 4, 2, 1) if height < MR]


class _Operands(NamedTuple):
    """The operands of a tile, as values of the code being emitted, and C, to which it is added."""

    a: Any
    a_row: Any
    a_k: Any
    b: Any
    b_k: Any
    depth: Any  # steps of k, at least 1
    c: Any
    c_row: Any
    add: Any  # whether the sums are added to C
    table: Any = None  # the address of the bytes from b to the row of each k, in place of b_k


def _emit_tile(
    e: Emitter, vectors: int, x: _Operands, cols: Any, height: int,
    ahead: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """Emit a tile of `vectors` in a row: C = sums, or C += sums.

    It has `cols` columns; None stands for as many as the vectors have lanes. For packed panels,
    `ahead` has the bytes of a step of k in those of B and A: no processor looks far enough ahead in
    both.
    """
    builder = e.builder
    mask = None
    if cols is not None:
        mask = e.first_lanes(builder.sub(cols, ADDRESS((vectors - 1) * e.lanes)))
    rows = [e.step(x.c, x.c_row, i) for i in range(height)]
    for row in rows:
        for byte in range(0, vectors * e.vector_bytes, CACHE_LINE):
            e.prefetch(builder.add(row, ADDRESS(byte)), to_write=True)  # while the loop runs

    def load_row(b_now: Any) -> list[Any]:
        *full, last = (e.step(b_now, ADDRESS(e.vector_bytes), j) for j in range(vectors))
        loaded = [e.load(address, e.vector) for address in full]
        # Where masks are dear, B is always packed, and there is no end to be read over. Nor is
        # there one behind the lines of a convolution, unless masks are free.
        cheap = masks_are_cheap() if x.table is None else masks_are_free()
        return [*loaded, e.load(last, e.vector, mask if cheap else None)]

    sums = _emit_sums(e, height, vectors, x, load_row, ahead)
    addresses = [e.step(row, ADDRESS(e.vector_bytes), j) for row in rows for j in range(vectors)]
    if mask is None:
        e.store_or_add(sums, addresses, x.add)
        return
    full = builder.icmp_signed("==", cols, ADDRESS(vectors * e.lanes))
    with builder.if_else(full) as (all_columns, some_columns):
        with all_columns:
            e.store_or_add(sums, addresses, x.add)
        with some_columns:
            masks = ([None] * (vectors - 1) + [mask]) * height
            e.store_or_add(sums, addresses, x.add, masks)


def _emit_sums(
    e: Emitter, height: int, vectors: int, x: _Operands, load_row: Callable[[Any], list[Any]],
    ahead: tuple[int, int] | None = None,
) -> list[Any]:  # fmt: skip
    """Emit the loop over k and return the sums: `height` times `vectors`.

    Over packed panels, which `ahead` is given for, a round makes UNROLLED steps: a core that shares
    its instruction decoder with another process has no time for more than the arithmetic.

    `load_row` loads the vectors of a row of B at an address; for `ahead` see `_emit_tile`.
    """
    builder = e.builder
    # One moving address serves three rows: the processor adds a step, or twice a step, by itself.
    # They are hidden from the compiler, which would compute all addresses from the first one.
    bases = [e.hidden(e.step(x.a, x.a_row, i)) for i in range(0, height, 3)]

    def steps_of_k(count: int, now: list[Any]) -> tuple[list[Any], Any]:
        left, b_now, a_now, sums = now[0], now[1], now[2 : 2 + len(bases)], now[2 + len(bases) :]
        if ahead is not None:
            for panel, size in zip((b_now, a_now[0]), ahead, strict=True):
                for byte in range(0, count * size, CACHE_LINE):
                    soon = ADDRESS(AHEAD * size + byte)
                    e.prefetch(builder.add(panel, soon), to_write=False)
        for k in range(count):
            b = e.step(b_now, x.b_k, k)
            row = load_row(b if x.table is None else builder.add(x.b, e.load(b, ADDRESS)))
            for i in range(height):
                at = e.step(e.step(a_now[i // 3], x.a_k, k), x.a_row, i % 3)
                column = e.broadcast(e.load(at, e.scalar))
                for j in range(i * vectors, (i + 1) * vectors):
                    sums[j] = e.multiply_add(column, row[j - i * vectors], sums[j])
        left = builder.sub(left, ADDRESS(count))
        moved = [e.step(b_now, x.b_k, count), *(e.step(p, x.a_k, count) for p in a_now)]
        return [left, *moved, *sums], builder.icmp_signed(">=", left, ADDRESS(count))

    zeros = [ir.Constant(e.vector, None)] * (height * vectors)
    now = [x.depth, x.b if x.table is None else x.table, *bases, *zeros]
    if ahead is None:
        return e.loop(now, partial(steps_of_k, 1))[2 + len(bases) :]
    for count in (UNROLLED, 1):
        is_enough = builder.icmp_signed(">=", now[0], ADDRESS(count))
        rounds = partial(e.loop, now, partial(steps_of_k, count))
        now = e.choose([(is_enough, rounds)], partial(list, now))
    return now[2 + len(bases) :]


def _emit_heights(e: Emitter, rows: Any, emit_tile: Callable[[int], None]) -> list[Any]:
    """Emit tiles of all heights and the choice among them; return the height, as one value."""

    def emit(height: int) -> list[Any]:
        emit_tile(height)
        return [ADDRESS(height)]

    return e.choose(
        [
            (e.builder.icmp_signed(">=", rows, ADDRESS(height)), partial(emit, height))
            for height in tile_heights(tile_shape(e.item).MR)
        ],
        lambda: [ADDRESS(0)],
    )


def _emit_widths(
    e: Emitter, rows: Any, cols: Any, tiles: Sequence[tuple[int, Callable[[int], None]]]
) -> list[Any]:
    """Emit tiles of several widths, the narrow ones first, and the choice; return the height.

    Each comes with the columns that it has at most, and emits the height it is given.
    """
    cases = [
        (e.builder.icmp_signed("<=", cols, ADDRESS(most)), partial(_emit_heights, e, rows, tile))
        for most, tile in tiles
    ]
    return e.choose(cases[:-1], cases[-1][1])


@instruction()
def tile_packed(
    e: Emitter, a: Any, b: Any, depth: Any, c: Any, c_row: Any, add: Any, _zero: Any
) -> None:
    """Compute C[0:MR, 0:NR] = A-panel times B-panel, or += if `add`; both panels are packed.

    Packed panels lie in memory as the loop reads them: for each k AR numbers of A, NR of B.
    """
    tile = tile_shape(e.item)
    a_k, b_k = tile.AR * e.item, tile.NR * e.item
    x = _Operands(a, ADDRESS(e.item), ADDRESS(a_k), b, ADDRESS(b_k), depth, c, c_row, add)
    _emit_tile(e, NV, x, None, tile.MR, ahead=(b_k, a_k))


@instruction(types.intp)
def tile_strided(
    e: Emitter, rows: Any, a: Any, a_row: Any, a_k: Any, b: Any, b_k: Any, depth: Any,
    c: Any, c_row: Any, add: Any, _zero: Any,
) -> Any:  # fmt: skip
    """Compute a tile of the greatest height that `rows` rows fill, and return that height.

    The operands may be unpacked, with any steps, but a row of B is NR adjacent numbers.
    """
    x = _Operands(a, a_row, a_k, b, b_k, depth, c, c_row, add)
    return _emit_heights(e, rows, partial(_emit_tile, e, NV, x, None))[0]


@instruction(types.intp)
def tile_of_size(
    e: Emitter, rows: Any, cols: Any, a: Any, a_row: Any, a_k: Any, b: Any, b_k: Any,
    depth: Any, c: Any, c_row: Any, add: Any, _zero: Any,
) -> Any:  # fmt: skip
    """Compute `tile_strided` for `cols` columns of C, at most NR.

    Where masks are cheap a row of B may be no longer than that.
    """
    x = _Operands(a, a_row, a_k, b, b_k, depth, c, c_row, add)
    widths = [(e, vectors) for vectors in range(1, NV + 1)]
    if e.lanes >= 8:  # half a vector takes some machines half the time
        widths.insert(0, (e.of_lanes(e.lanes // 2), 1))
    tiles = [(n * wide.lanes, partial(_emit_tile, wide, n, x, cols)) for wide, n in widths]
    is_full = e.builder.icmp_signed("==", cols, ADDRESS(NV * e.lanes))
    full = partial(_emit_heights, e, rows, partial(_emit_tile, e, NV, x, None))
    return e.choose([(is_full, full)], partial(_emit_widths, e, rows, cols, tiles))[0]


@instruction(types.intp)
def tile_over_taps(
    e: Emitter, rows: Any, lines: Any, cols: Any, a: Any, a_row: Any, b: Any, b_line: Any,
    table: Any, depth: Any, c: Any, c_row: Any, c_line: Any, add: Any, _zero: Any,
) -> Any:  # fmt: skip
    """Compute a tile in which row k of B lies as many bytes after b as number k of a table.

    This is a convolution: a row of B is a line of an image, shifted. Rows of A are contiguous.
    Where `cols` columns fill one vector or a half at most, the tile takes two or four lines of the
    image at once (`lines_in_tile`), of which `lines` exist: C has one `c_line` bytes after another.
    The height is returned.
    """
    x = _Operands(a, a_row, ADDRESS(e.item), b, ADDRESS(8), depth, c, c_row, add, table)
    tiles = [
        (e.lanes // parts, partial(_emit_lines, e, parts, x, lines, cols, b_line, c_line))
        for parts in ((2, 1) if e.lanes >= 8 else (1,))
    ]
    tiles.append((NV * e.lanes, partial(_emit_tile, e, NV, x, cols)))
    return _emit_widths(e, rows, cols, tiles)[0]


@jit(inline="always")
def lines_in_tile(lanes: int, cols: int) -> int:
    """Return how many lines of `cols` columns `tile_over_taps` takes at once."""
    if cols > lanes:
        return 1
    return 2 * NV if lanes >= 8 and 2 * cols <= lanes else NV


def _emit_lines(
    e: Emitter, parts: int, x: _Operands, lines: Any, cols: Any, b_line: Any, c_line: Any,
    height: int,
) -> None:  # fmt: skip
    """Emit a tile over taps of NV vectors, each with a line of `cols` columns in each of its parts.

    A line that does not exist is the last one once more: the same sums are written there twice.
    """
    builder, part = e.builder, e.of_lanes(e.lanes // parts)
    mask, last = part.first_lanes(cols), builder.sub(lines, ADDRESS(1))
    indices = [e.at_most(i, last) for i in range(NV * parts)]
    steps = [builder.mul(b_line, index) for index in indices]

    def load_row(b_now: Any) -> list[Any]:
        at = [builder.add(b_now, step) for step in steps]
        of_loads = mask if masks_are_free() else None
        loaded = [part.load(address, part.vector, of_loads) for address in at]
        if parts == 1:
            return loaded
        pairs = zip(loaded[::2], loaded[1::2], strict=True)
        return [e.shuffle(x, y, list(range(e.lanes))) for x, y in pairs]

    sums = _emit_sums(e, height, NV, x, load_row)
    if parts == 2:
        halves = [list(range(part.lanes)), list(range(part.lanes, e.lanes))]
        sums = [e.shuffle(total, total, half) for total in sums for half in halves]
    offsets = [builder.mul(c_line, index) for index in indices]
    rows = [e.step(x.c, x.c_row, i) for i in range(height)]
    addresses = [builder.add(row, offset) for row in rows for offset in offsets]
    part.store_or_add(sums, addresses, x.add, [mask] * len(sums))
