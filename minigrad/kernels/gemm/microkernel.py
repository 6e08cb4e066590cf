"""The micro-kernel: the innermost loop of a matrix product, written as vector instructions.

A core multiplies fastest if the numbers that it needs are already in registers. So the product is
cut into tiles of C, MR rows by NR columns. A tile fits in the vector registers, and stays there
during the loop over k. Each step of the loop loads one row of B (NR numbers, in NV = 2 vectors)
and, for each of MR rows, one number of A, which is copied to every lane of a vector:

         b[k, 0:NR]   ->      b0              b1           one row of B
    a[0, k]           ->  c00 += a0 * b0  c01 += a0 * b1
    a[1, k]           ->  c10 += a1 * b0  c11 += a1 * b1
     ...                      ...             ...
    a[MR-1, k]        ->      ...             ...          MR x NV sums, each in a register

A step has MR + NV loads for MR * NV multiply-adds. The sums do not depend on each other, so the
tile keeps a core busy that starts two multiply-adds in each cycle and needs four cycles for each.
MR is as large as the registers allow: 14 with the 32 registers of AVX-512 or NEON, 6 with 16.

At the edges of C, a tile has fewer rows, or it is narrower: two vectors, one, or half a vector. The
last vector is masked.

Compilers do not find this tile, so the functions here emit it as LLVM code. For the terms, see
`minigrad.kernels.vector`: addresses, steps in bytes, and `zero`, which gives the dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types

from minigrad.kernels.jit import WORD, jit
from minigrad.kernels.vector import (
    MASKS_ARE_CHEAP,
    MASKS_ARE_FREE,
    REGISTERS,
    VECTOR,
    Emitter,
    address_of,
    instruction,
)

NV = 2  # vectors in a row of the tile
AHEAD = 16  # steps of k: how far ahead packed panels are prefetched into the level-1 cache
UNROLLED = 4  # steps of k in one iteration of the loop over packed panels
CACHE_LINE = 64  # bytes


class Tile(NamedTuple):
    """The shape of the register tile for one dtype, counted in numbers."""

    MR: int  # rows
    NR: int  # columns: NV vectors
    VL: int  # numbers in a vector
    AR: int  # MR rounded up to complete vectors: the width of a packed panel of A


def tile_shape(itemsize: int) -> Tile:
    """Return the tile for numbers of `itemsize` bytes: (14, 32, 16, 16) for 4 with AVX-512."""
    VL = VECTOR // itemsize
    MR = (REGISTERS - 2 * NV) // NV  # NV registers hold the row of B, and NV the next loads
    return Tile(MR, NV * VL, VL, -(-MR // VL) * VL)


@jit(inline="always")
def first_line(work: Any) -> int:
    """Return the address of the first complete cache line in an array of bytes."""
    address: int = address_of(work)
    return (address + CACHE_LINE - 1) & ~(CACHE_LINE - 1)


class NextLines(NamedTuple):
    """The cache lines that a tile prefetches for a later time: rows of adjacent lines.

    A tile prefetches one line in UNROLLED steps of k, because a burst of them would fill the
    buffers through which a core also reads its level-2 cache. Adjacent lines are prefetched one
    after another, so that the processor sees the pattern and reads ahead itself.
    """

    at: int
    left: int  # lines from `at` to the end of the row
    lines: int  # lines in a row; 0 means that nothing is prefetched
    jump: int  # bytes from the last line of a row to the first line of the next row


NO_LINES = NextLines(0, 0, 0, 0)


class NextBlock(NamedTuple):
    """The memory that is read next, and prefetched meanwhile: rows of adjacent cache lines."""

    at: int
    step: int  # bytes from a row to the next
    rows: int  # 0 if nothing is prefetched
    lines: int  # cache lines in a row
    share: int  # the most lines that are prefetched while a panel of B is multiplied


NO_BLOCK = NextBlock(0, 0, 0, 0, 0)


@jit(inline="always")
def lines_from(block: NextBlock, number: int, stop: int) -> NextLines:
    """Return the lines of a block from line `number` on, if it is before `stop`."""
    if number >= stop:
        return NO_LINES
    row = number // block.lines
    done = number - row * block.lines
    return NextLines(
        block.at + row * block.step + done * CACHE_LINE,
        block.lines - done,
        block.lines,
        block.step - (block.lines - 1) * CACHE_LINE,
    )


class _Operands(NamedTuple):
    """The operands A and B of a tile and its target C, as values in the emitted code."""

    a: Any
    a_row: Any
    a_k: Any
    b: Any
    b_k: Any
    depth: Any  # steps of k, at least 1
    c: Any
    c_row: Any
    add: Any  # whether the sums are added to C
    distant: Any = WORD(1)  # whether C may be outside of the level-1 cache, and is prefetched
    table: Any = None  # instead of b_k: the address of a table of the bytes from b to each row k
    later: NextLines | None = None  # what is prefetched for later, also as values in the code


def _emit_tile(
    e: Emitter, vectors: int, x: _Operands, cols: Any, height: int,
    ahead: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """Emit a tile of `vectors` in a row: C = sums, or C += sums.

    The tile has `cols` columns; None means as many as the vectors have lanes. For packed panels,
    `ahead` has the bytes of a step of k in B and in A, to prefetch them, because no processor
    prefetches far enough in both.
    """
    builder = e.builder
    mask = None
    if cols is not None:
        mask = e.first_lanes(builder.sub(cols, WORD((vectors - 1) * e.lanes)))
    rows = [e.step(x.c, x.c_row, i) for i in range(height)]
    with builder.if_then(builder.icmp_signed("!=", x.distant, WORD(0))):
        for row in rows:
            for byte in range(0, vectors * e.vector_bytes, CACHE_LINE):
                e.prefetch(builder.add(row, WORD(byte)), to_write=True)  # while the loop runs

    def load_row(b_now: Any) -> list[Any]:
        *full, last = (e.step(b_now, WORD(e.vector_bytes), j) for j in range(vectors))
        loaded = [e.load(address, e.vector) for address in full]
        # If masks are expensive, B is always packed, so a load past its last column is safe. So is
        # a load past a line of a convolution, unless masks are free.
        cheap = MASKS_ARE_CHEAP if x.table is None else MASKS_ARE_FREE
        return [*loaded, e.load(last, e.vector, mask if cheap else None)]

    sums = _emit_sums(e, height, vectors, x, load_row, ahead)
    addresses = [e.step(row, WORD(e.vector_bytes), j) for row in rows for j in range(vectors)]
    store = partial(e.store_or_add, sums, addresses, x.add)
    if mask is None:
        store()
    else:
        is_full = builder.icmp_signed("==", cols, WORD(vectors * e.lanes))
        masks = ([None] * (vectors - 1) + [mask]) * height
        e.choose([(is_full, store)], partial(store, masks))


def _emit_sums(
    e: Emitter, height: int, vectors: int, x: _Operands, load_row: Callable[[Any], list[Any]],
    ahead: tuple[int, int] | None = None,
) -> list[Any]:  # fmt: skip
    """Emit the loop over k and return the sums: `height` times `vectors`.

    For packed panels, where `ahead` is given, one iteration does UNROLLED steps. This leaves fewer
    instructions beside the arithmetic, which helps a core that shares its decoder with another
    process.

    `load_row` loads the vectors of a row of B at an address; for `ahead` see `_emit_tile`.
    """
    builder, in_tile = e.builder, height * vectors
    # One address register is enough for three rows, because an instruction can add one or two steps
    # to it. The addresses are hidden from the compiler, which would derive all from the first.
    bases = [e.hidden(e.step(x.a, x.a_row, i)) for i in range(0, height, 3)]

    def steps_of_k(later: NextLines | None, count: int, now: list[Any]) -> list[Any]:
        b_now, a_now, rest = now[0], now[1 : 1 + len(bases)], now[1 + len(bases) :]
        sums, line = rest[:in_tile], rest[in_tile:]
        if later is not None and count == UNROLLED:
            line = emit_prefetch_of_line(e, later, *line)
        if ahead is not None:
            for panel, size in zip((b_now, a_now[0]), ahead, strict=True):
                for byte in range(0, count * size, CACHE_LINE):
                    soon = WORD(AHEAD * size + byte)
                    e.prefetch(builder.add(panel, soon), to_write=False)
        for k in range(count):
            b = e.step(b_now, x.b_k, k)
            row = load_row(b if x.table is None else builder.add(x.b, e.load(b, WORD)))
            for i in range(height):
                at = e.step(e.step(a_now[i // 3], x.a_k, k), x.a_row, i % 3)
                column = e.broadcast(e.load(at, e.scalar))
                for j in range(i * vectors, (i + 1) * vectors):
                    sums[j] = e.multiply_add(column, row[j - i * vectors], sums[j])
        a_next = [e.step(at, x.a_k, count) for at in a_now]
        return [e.step(b_now, x.b_k, count), *a_next, *sums, *line]

    def loop(later: NextLines | None) -> list[Any]:
        zeros = [ir.Constant(e.vector, None)] * in_tile
        line = [] if later is None else [later.at, later.left]
        first = [x.b if x.table is None else x.table, *bases, *zeros, *line]
        times = 1 if ahead is None else UNROLLED
        end = e.unrolled(x.depth, first, partial(steps_of_k, later), times)
        return end[1 + len(bases) :][:in_tile]

    if x.later is None:
        return loop(None)
    nothing = builder.icmp_signed("==", x.later.lines, WORD(0))
    return e.choose([(nothing, partial(loop, None))], partial(loop, x.later))


def emit_prefetch_of_line(e: Emitter, later: NextLines, at: Any, left: Any) -> list[Any]:
    """Emit a prefetch of a line, with `left` left in its row; return both for the next line."""
    e.prefetch(at, to_write=False, level=2)
    left = e.builder.sub(left, WORD(1))
    is_last = e.builder.icmp_signed("==", left, WORD(0))
    step = e.builder.select(is_last, later.jump, WORD(CACHE_LINE))
    return [e.builder.add(at, step), e.builder.select(is_last, later.lines, left)]


def _emit_heights(e: Emitter, rows: Any, emit_tile: Callable[[int], None]) -> list[Any]:
    """Emit tiles of all heights and the code that chooses one; return the chosen height."""
    MR = tile_shape(e.item).MR
    heights = [MR] + [height for height in (8, 4, 2, 1) if height < MR]  # few for the last rows

    def emit(height: int) -> list[Any]:
        emit_tile(height)
        return [WORD(height)]

    cases = [(e.builder.icmp_signed(">=", rows, WORD(h)), partial(emit, h)) for h in heights]
    return e.choose(cases, lambda: [WORD(0)])


def _emit_widths(
    e: Emitter, rows: Any, cols: Any, tiles: Sequence[tuple[int, Callable[[int], None]]]
) -> list[Any]:
    """Emit tiles of several widths, from narrow to wide, and the choice; return the height.

    Each case is the most columns of a tile, and a function that emits the tile for a height.
    """
    cases = [
        (e.builder.icmp_signed("<=", cols, WORD(most)), partial(_emit_heights, e, rows, tile))
        for most, tile in tiles
    ]
    return e.choose(cases[:-1], cases[-1][1])


@instruction()
def tile_packed(
    e: Emitter, a: Any, b: Any, depth: Any, c: Any, c_row: Any, add: Any, later: Any, _zero: Any
) -> None:
    """Compute C[0:MR, 0:NR] = A-panel times B-panel, or += if `add`; both panels are packed.

    Packed panels have the order in which the loop reads them: for each k, AR numbers of A and NR of
    B. Meanwhile the tile prefetches `later`, which are `NextLines`.
    """
    tile = tile_shape(e.item)
    a_k, b_k = tile.AR * e.item, tile.NR * e.item
    lines = NextLines(*(e.builder.extract_value(later, i) for i in range(4)))
    x = _Operands(a, WORD(e.item), WORD(a_k), b, WORD(b_k), depth, c, c_row, add, later=lines)
    _emit_tile(e, NV, x, None, tile.MR, ahead=(b_k, a_k))


@instruction(types.intp)
def tile_of_size(
    e: Emitter, rows: Any, cols: Any, a: Any, a_row: Any, a_k: Any, b: Any, b_k: Any,
    depth: Any, c: Any, c_row: Any, add: Any, distant: Any, _zero: Any,
) -> Any:  # fmt: skip
    """Compute the tallest tile that has at most `rows` rows, and return its height.

    The operands may be unpacked, with any steps. The tile has `cols` columns, at most NR. A row of
    B must be NR adjacent numbers, or only `cols` if masks are cheap. If C is `distant`, outside of
    the level-1 cache, it is prefetched.
    """
    x = _Operands(a, a_row, a_k, b, b_k, depth, c, c_row, add, distant)
    widths = [(e, vectors) for vectors in range(1, NV + 1)]
    if e.lanes >= 8:  # on some machines, half a vector takes half the time
        widths.insert(0, (e.of_lanes(e.lanes // 2), 1))
    tiles = [(n * wide.lanes, partial(_emit_tile, wide, n, x, cols)) for wide, n in widths]
    is_full = e.builder.icmp_signed("==", cols, WORD(NV * e.lanes))
    full = partial(_emit_heights, e, rows, partial(_emit_tile, e, NV, x, None))
    return e.choose([(is_full, full)], partial(_emit_widths, e, rows, cols, tiles))[0]


@instruction(types.intp)
def tile_over_taps(
    e: Emitter, rows: Any, lines: Any, cols: Any, a: Any, a_row: Any, b: Any, b_line: Any,
    table: Any, depth: Any, c: Any, c_row: Any, c_line: Any, add: Any, _zero: Any,
) -> Any:  # fmt: skip
    """Compute a tile of a convolution, where table[k] is the bytes from b to row k of B.

    A row of B is a shifted line of an image. Rows of A are contiguous. If `cols` columns fill at
    most one vector or half a vector, the tile computes two or four lines at once (`lines_in_tile`).
    Of these, `lines` exist, and they are `c_line` bytes apart in C. The height is returned.
    """
    x = _Operands(a, a_row, WORD(e.item), b, WORD(8), depth, c, c_row, add, table=table)
    tiles = [
        (e.lanes // parts, partial(_emit_lines, e, parts, x, lines, cols, b_line, c_line))
        for parts in ((2, 1) if e.lanes >= 8 else (1,))
    ]
    tiles.append((NV * e.lanes, partial(_emit_tile, e, NV, x, cols)))
    return _emit_widths(e, rows, cols, tiles)[0]


@jit(inline="always")
def lines_in_tile(lanes: int, cols: int) -> int:
    """Return how many lines of `cols` columns `tile_over_taps` computes at once."""
    if cols > lanes:
        return 1
    return 2 * NV if lanes >= 8 and 2 * cols <= lanes else NV


def _emit_lines(
    e: Emitter, parts: int, x: _Operands, lines: Any, cols: Any, b_line: Any, c_line: Any,
    height: int,
) -> None:  # fmt: skip
    """Emit a tile over taps with several lines of `cols` columns in its NV vectors.

    Instead of a line that does not exist, the last line is computed again; its sums are written
    twice.
    """
    builder, part = e.builder, e.of_lanes(e.lanes // parts)
    mask, count = part.first_lanes(cols), NV * parts
    steps = e.addresses(WORD(0), b_line, count, lines)

    def load_row(b_now: Any) -> list[Any]:
        at = [builder.add(b_now, step) for step in steps]
        of_loads = mask if MASKS_ARE_FREE else None
        loaded = [part.load(address, part.vector, of_loads) for address in at]
        if parts == 1:
            return loaded
        pairs = zip(loaded[::2], loaded[1::2], strict=True)
        return [e.shuffle(x, y, list(range(e.lanes))) for x, y in pairs]

    sums = _emit_sums(e, height, NV, x, load_row)
    if parts == 2:
        halves = [list(range(part.lanes)), list(range(part.lanes, e.lanes))]
        sums = [e.shuffle(total, total, half) for total in sums for half in halves]
    rows = [e.step(x.c, x.c_row, i) for i in range(height)]
    addresses = [at for row in rows for at in e.addresses(row, c_line, count, lines)]
    part.store_or_add(sums, addresses, x.add, [mask] * len(sums))
