"""Products of float32 on a matrix unit that multiplies bfloat16: Intel's AMX.

Beside its vector units, a core may have a matrix unit. The one of AMX holds eight tiles of 1 KB. In
16 cycles it multiplies a tile of 16 x 32 bfloat16 numbers with one of 32 x 16 and adds the product
to a tile of 16 x 16 float32 numbers: 16 times as many multiply-adds as two vector units.

A bfloat16 has 8 significant bits, and a float32 has 24. So a float32 is exactly the sum of three
bfloat16: the nearest one, the one nearest to the rest, and the rest of that (Henry, Tang and
Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype for Higher-Precision
Computations", 2019):

    x = x0 + x1 + x2        x y = x0 y0 + (x0 y1 + x1 y0) + (x0 y2 + x1 y1 + x2 y0) + ...

The three products that are left out are at most 2^-24 of x y, like the rounding of a float32. The
six others take six instructions, so the unit is 16 / 6 = 2.7 times as fast as vectors. The sum is
as exact, because it is rounded less often: after 32 products.

The parts are made when a block is packed. A block of a packed panel has 32 rows of A (or columns of
B) and 32 steps of k, which are six tiles: two for each part. In a tile, the steps k and k + 16 of
one row of A or column of B are adjacent, because the unit multiplies pairs of numbers:

    a row of a tile of A: 16 pairs (a[i, k], a[i, k + 16]), one for each k
    a row of a tile of B: 16 pairs (b[k, j], b[k + 16, j]), one for each column j

The unit takes subnormal bfloat16 for 0. So if a panel has a number so small that its parts may be
subnormal, as gelu makes them, all its numbers are multiplied by a power of two, and the products
are divided by it. And 0 times infinity is NaN also where 0 is only a part of a number. So a panel
with infinity, NaN, a number that would be rounded to infinity, or both tiny and large ones contains
the numbers themselves, and is multiplied by vector instructions.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterable
from functools import cache, partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from minigrad.kernels.gemm.microkernel import (
    CACHE_LINE,
    NO_LINES,
    NextBlock,
    NextLines,
    emit_prefetch_of_line,
    first_line,
    lines_from,
)
from minigrad.kernels.gemm.packing import BlockSizes, Matrix, pack, part_of, transposed
from minigrad.kernels.jit import WORD, external, jit
from minigrad.kernels.vector import (
    FEATURES,
    I32,
    VECTOR,
    Emitter,
    address_of,
    copy_vector,
    instruction,
    keep_alive,
    load,
    store,
)

COMPILED = "amx-bf16" in FEATURES and VECTOR == 64
"""Whether kernels are compiled for a processor with such a unit, and vectors of 16 numbers."""

SIDE = 32  # rows of a packed panel of A, columns of one of B, and steps of k in a block: two tiles
PAIRS = SIDE // 2  # rows of a tile; pairs in a row
ROW = 64  # bytes of a row of a tile
TILE = PAIRS * ROW
PART = 2 * TILE  # bytes of one of the three parts of a block
BLOCK = 3 * PART
LINE = SIDE * 4  # bytes of SIDE numbers of float32

TERMS = ((0, 2), (0, 1), (1, 1), (1, 0), (2, 0), (0, 0))
"""The parts of A and of B in the products that are added up, the greatest product last.

Neighbours mostly have a part in common, which stays in its tiles: 14 loads instead of 24.
"""
SHORT_TERMS = [term for term in TERMS if term[1] == 0]
"""Those of the products whose B has numbers with one part."""

PARTS, NUMBERS, SHORT = 0, 1, 2
"""The marks of a panel: it contains parts, or numbers, or parts that are 0 except the first."""

MARK, INVERSE, EXPONENT = 0, 4, 8  # bytes from the last line of a panel to what stands there
LINES = 16  # cache lines that are prefetched in a block
UPPER = 0xFFFF0000  # the bits of a float32 that are those of a bfloat16
HALF = 0x8000  # half of the last of these bits
GREATEST = 0x7F7F8000  # the bits of the least number whose nearest bfloat16 is infinite
SMALLEST = (127 - 100) << 23  # the bits of 2^-100: the parts of a smaller number may be subnormal
HIGH = 127 + 50  # the exponent of the greatest number of a panel that is scaled: of 2^50
LEAST, MOST = 23, 100  # the exponents of scales; from 23 on, the parts of no number are subnormal
FINITE = 100  # the exponent of a product of scaled numbers up to which no sum becomes infinite
ONE: Any = np.float32(1)
TINY, LONG = 1 << 32, 1 << 33  # what `_split` finds: a number below SMALLEST; one with three parts


@cache
def is_available() -> bool:
    """Return whether this process may use the matrix unit; Linux has to be asked first."""
    if not COMPILED or platform.system() != "Linux":
        return False
    system_call, request_permission, tile_data = 158, 0x1023, 18  # arch_prctl and its arguments
    return not ctypes.CDLL(None, use_errno=True).syscall(system_call, request_permission, tile_data)


@jit(inline="always")
def _blocks_of(depth: int) -> int:
    """Return how many blocks have `depth` steps of k; the last may have fewer than SIDE."""
    return (depth + SIDE - 1) // SIDE


@jit(inline="always")
def panel_size(depth: int) -> int:
    """Return the bytes of a packed panel of `depth` steps of k: blocks, and a line for a mark."""
    return _blocks_of(depth) * BLOCK + CACHE_LINE


@instruction(types.intp)
def _split(e: Emitter, source: Any, row: Any, apart: Any, target: Any, scale: Any) -> Any:
    """Write the parts of 16 rows of 16 pairs, times a scale, to three tiles.

    The second numbers of the pairs of a row are `apart` bytes after the first ones. The result has
    the bits of the greatest number in its lower 32 bits, and above them TINY and LONG.
    """
    builder, bits_of = e.builder, ir.VectorType(I32, PAIRS)

    def constant(number: int) -> Any:
        return ir.Constant(bits_of, [number] * PAIRS)

    def chosen(condition: str, x: Any, y: Any) -> Any:
        return builder.select(builder.icmp_unsigned(condition, x, y), x, y)

    def split_row(_row: Any, now: list[Any]) -> list[Any]:
        first, to, greatest, least, used = now
        parts = []
        for address in (first, builder.add(first, apart)):
            rest = builder.fmul(e.load(address, e.vector), e.broadcast(scale))
            bits = builder.bitcast(rest, bits_of)
            used, size = builder.or_(used, bits), builder.and_(bits, constant(0x7FFFFFFF))
            greatest = chosen(">", size, greatest)
            least = chosen("<", builder.sub(size, constant(1)), least)  # 0 becomes the greatest
            each = []
            for _ in range(3):
                rounded = builder.add(builder.bitcast(rest, bits_of), constant(HALF))
                each.append(builder.and_(rounded, constant(UPPER)))
                rest = builder.fsub(rest, builder.bitcast(each[-1], e.vector))
            parts.append(each)
        for i, (x, y) in enumerate(zip(*parts, strict=True)):
            pair = builder.or_(builder.lshr(x, constant(16)), y)
            e.store(pair, builder.add(to, WORD(i * PART)))
        return [builder.add(first, row), builder.add(to, WORD(ROW)), greatest, least, used]

    start = [source, target, constant(0), constant(0xFFFFFFFF), constant(0)]
    *_, greatest, least, used = e.for_range(WORD(0), WORD(PAIRS), 1, start, split_row)
    word = builder.zext(e.call("llvm.vector.reduce.umax.v16i32", I32, greatest), WORD)
    lower = builder.and_(used, constant(~UPPER & 0xFFFFFFFF))
    found = [
        (TINY, builder.icmp_unsigned("<", least, constant(SMALLEST - 1))),
        (LONG, builder.icmp_unsigned("!=", lower, constant(0))),
    ]
    for flag, lanes in found:
        bits = builder.bitcast(lanes, ir.IntType(PAIRS))
        is_any = builder.icmp_unsigned("!=", bits, ir.IntType(PAIRS)(0))
        word = builder.or_(word, builder.select(is_any, WORD(flag), WORD(0)))
    return word


@instruction()
def _join(e: Emitter, source: Any, first: Any, second: Any, factor: Any) -> None:
    """Write 16 pairs of numbers: the sums of their parts in three tiles, times a factor."""
    builder, bits_of = e.builder, ir.VectorType(I32, PAIRS)
    sums = [ir.Constant(e.vector, None)] * 2
    for i in (2, 1, 0):
        pair = e.load(builder.add(source, WORD(i * PART)), bits_of)
        x = builder.shl(pair, ir.Constant(bits_of, [16] * PAIRS))
        y = builder.and_(pair, ir.Constant(bits_of, [UPPER] * PAIRS))
        parts = (builder.bitcast(bits, e.vector) for bits in (x, y))
        sums = [builder.fadd(*each) for each in zip(sums, parts, strict=True)]
    for total, address in zip(sums, (first, second), strict=True):
        e.store(builder.fmul(total, e.broadcast(factor)), address)


@jit(inline="always")
def _copy_lines(source: int, source_row: int, target: int, target_row: int) -> None:
    """Copy SIDE rows of SIDE numbers."""
    for line in range(SIDE):
        here, there = source + line * source_row, target + line * target_row
        copy_vector(here, there, ONE)
        copy_vector(here + ROW, there + ROW, ONE)


@external()
def split_panels(
    t: BlockSizes, source: Matrix, rows: int, depth: int, of_b: bool, target: int
) -> None:
    """Pack `rows` rows of `depth` numbers into panels of A, or of B, whose columns they are.

    At the end of a panel are its mark, the inverse of its scale, and the greatest exponent.
    """
    buffer = np.empty(CACHE_LINE + SIDE * LINE, np.uint8)
    copied = first_line(buffer)
    size = panel_size(depth)
    for i in range(0, rows, SIDE):
        panel, high = target + i // SIDE * size, min(SIDE, rows - i)
        mark, scale = PARTS, ONE
        for attempt in range(2):
            greatest = found = 0
            for k in range(0, depth, SIDE):
                block, count, length = part_of(source, i, k), high, min(SIDE, depth - k)
                if of_b:
                    block, count, length = transposed(block), length, count
                at, row = block.at, block.row
                is_complete = count == length == SIDE
                if block.col != t.item or not is_complete:
                    at, row = copied, LINE
                    pack(t, transposed(block), length, count, SIDE, SIDE, at)
                    for line in range(0 if is_complete else SIDE):
                        for j in range(length if line < count else 0, SIDE):
                            store(at + line * LINE + j * 4, t.zero)
                to = panel + k // SIDE * BLOCK
                if mark == NUMBERS:
                    _copy_lines(at, row, to, LINE)
                    continue
                half, apart = (ROW, PAIRS * row) if of_b else (PAIRS * row, ROW)
                for j in range(2):
                    word = _split(at + j * half, row, apart, to + j * TILE, scale)
                    greatest, found = max(greatest, word & 0xFFFFFFFF), found | word
            if attempt == 1 or not (greatest >= GREATEST or found & TINY):
                break
            exponent = min(HIGH - max(greatest >> 23, 1), MOST)
            if exponent >= LEAST:
                scale = np.float32(2.0**exponent)
            else:
                mark = NUMBERS
        if mark == PARTS and not found & LONG:
            mark = SHORT
        end = panel + size - CACHE_LINE
        store(end + MARK, np.float32(mark))
        store(end + INVERSE, ONE / scale)
        store(end + EXPONENT, np.float32((greatest >> 23) - 127))
    keep_alive(buffer)


@instruction()
def _begin(e: Emitter) -> None:
    """Prepare the eight tiles of the unit: all have 16 rows of 64 bytes."""
    columns, rows = [ROW, 0] * 8 + [0] * 16, [PAIRS] * 8 + [0] * 8
    kind = ir.ArrayType(ir.IntType(8), 64)
    palette = cgutils.alloca_once(e.builder, kind)
    e.builder.store(ir.Constant(kind, [1, *[0] * 15, *columns, *rows]), palette)
    pointer = e.builder.bitcast(palette, ir.IntType(8).as_pointer())
    e.call("llvm.x86.ldtilecfg", ir.VoidType(), pointer)


@instruction()
def _end(e: Emitter) -> None:
    """Release the tiles, so that the system need not save them when another process runs."""
    e.call("llvm.x86.tilerelease", ir.VoidType())


@instruction()
def _tile(
    e: Emitter, tall: Any, broad: Any, short: Any, a: Any, b: Any, blocks: Any, a2: Any, b2: Any,
    blocks2: Any, target: Any, row: Any, later: Any,
) -> None:  # fmt: skip
    """Write the products of panels, A B + A2 B2, to `target`, with `row` bytes in a row.

    Unless it is `tall`, the product has 16 rows at most, and unless it is `broad`, 16 columns. If
    it is `short`, the numbers of B are bfloat16, so their other parts are 0 and can be left out.
    The tiles 0 to 3 are the sums, 4 and 5 a part of A, 6 and 7 a part of B.
    """
    builder, nothing, number = e.builder, ir.VoidType(), ir.IntType(8)
    lines = NextLines(*(builder.extract_value(later, i) for i in range(4)))

    def move(name: str, tile: int, address: Any, row: Any) -> None:
        pointer = builder.inttoptr(address, number.as_pointer())
        e.call(f"llvm.x86.{name}64", nothing, number(tile), pointer, row)

    def emit(high: int, wide: int) -> None:
        sums = [(i, j) for i in range(high) for j in range(wide)]

        def add_products(
            terms: Iterable[tuple[int, int]], prefetches: bool, a: Any, b: Any, blocks: Any
        ) -> None:
            def step(_block: Any, now: list[Any]) -> list[Any]:
                last, (at_a, at_b, *line) = (-1, -1), now
                for _ in range(LINES if prefetches else 0):
                    line = emit_prefetch_of_line(e, lines, *line)
                for of_a, of_b in terms:
                    for i in range(high if of_a != last[0] else 0):
                        at = builder.add(at_a, WORD(of_a * PART + i * TILE))
                        move("tileloadd", 4 + i, at, WORD(ROW))
                    for j in range(wide if of_b != last[1] else 0):
                        at = builder.add(at_b, WORD(of_b * PART + j * TILE))
                        move("tileloadd", 6 + j, at, WORD(ROW))
                    for i, j in sums:
                        tiles = number(2 * i + j), number(4 + i), number(6 + j)
                        e.call("llvm.x86.tdpbf16ps", nothing, *tiles)
                    last = of_a, of_b
                return [builder.add(at_a, WORD(BLOCK)), builder.add(at_b, WORD(BLOCK)), *line]

            first = [a, b, lines.at, lines.left] if prefetches else [a, b]
            e.for_range(WORD(0), blocks, 1, first, step)

        for i in range(SIDE if high == wide == 2 else 0):  # lines of C arrive while the loop runs
            for j in range(2):
                e.prefetch(e.step(e.step(target, row, i), WORD(ROW), j), to_write=True)
        for i, j in sums:
            e.call("llvm.x86.tilezero", nothing, number(2 * i + j))
        is_short, more = (builder.icmp_signed("!=", x, WORD(0)) for x in (short, lines.lines))
        cases = [
            (builder.and_(is_short, more), partial(add_products, SHORT_TERMS, True, a, b, blocks)),
            (is_short, partial(add_products, SHORT_TERMS, False, a, b, blocks)),
            (more, partial(add_products, TERMS, True, a, b, blocks)),
        ]
        otherwise = partial(add_products, TERMS, False, a, b, blocks)
        e.choose(cases if high == wide == 2 else [], otherwise)
        add_products(TERMS, False, a2, b2, blocks2)
        for i, j in sums:
            at = builder.add(e.step(target, row, i * PAIRS), WORD(j * ROW))
            move("tilestored", 2 * i + j, at, row)

    is_tall, is_broad = (builder.icmp_signed("!=", x, WORD(0)) for x in (tall, broad))
    cases = [
        (builder.and_(is_tall, is_broad), lambda: emit(2, 2)),
        (is_tall, lambda: emit(2, 1)),
        (is_broad, lambda: emit(1, 2)),
    ]
    e.choose(cases, lambda: emit(1, 1))


@jit(inline="always")
def _noted(panel: int, depth: int, what: int) -> float:
    """Return what stands at the end of a panel: its `MARK`, `INVERSE` or `EXPONENT`."""
    found: float = load(panel + panel_size(depth) - CACHE_LINE + what, ONE)
    return found


@jit(inline="always")
def _is_plain(panel: int, depth: int) -> bool:
    """Return whether a panel is empty, or contains parts of numbers that are not scaled."""
    if depth == 0:
        return True
    return _noted(panel, depth, MARK) != NUMBERS and _noted(panel, depth, INVERSE) == 1


@external()
def _read_panel(panel: int, depth: int, of_b: bool, target: int, row: int, step: int) -> None:
    """Write the numbers of a panel: rows of a block are `row` bytes apart, blocks `step` bytes."""
    has_numbers = _noted(panel, depth, MARK) == NUMBERS
    inverse = _noted(panel, depth, INVERSE)
    half, apart = (ROW, PAIRS * row) if of_b else (PAIRS * row, ROW)
    for block in range(_blocks_of(depth)):
        source, to = panel + block * BLOCK, target + block * step
        if has_numbers:
            _copy_lines(source, LINE, to, row)
            continue
        for j in range(2):
            for p in range(PAIRS):
                first = to + j * half + p * row
                _join(source + j * TILE + p * ROW, first, first + apart, inverse)


@instruction()
def _multiply_row(e: Emitter, a: Any, b: Any, steps: Any, target: Any) -> None:
    """Compute a row of the product of `steps` numbers and as many rows of SIDE numbers."""
    builder = e.builder

    def step(_k: Any, now: list[Any]) -> list[Any]:
        at_a, at_b, *sums = now
        factor = e.broadcast(e.load(at_a, e.scalar))
        row = [e.load(e.step(at_b, WORD(ROW), j), e.vector) for j in range(2)]
        sums = [e.multiply_add(factor, *each) for each in zip(row, sums, strict=True)]
        return [builder.add(at_a, WORD(4)), builder.add(at_b, WORD(LINE)), *sums]

    zeros = [ir.Constant(e.vector, None)] * 2
    sums = e.for_range(WORD(0), steps, 1, [a, b, *zeros], step)[2:]
    for j, total in enumerate(sums):
        e.store(total, e.step(target, WORD(ROW), j))


@external()
def _multiply_numbers(t: BlockSizes, a: int, b: int, depth: int, target: int) -> None:
    """Do what `_tile` does, on vectors, for panels of which one contains numbers."""
    steps = _blocks_of(depth) * SIDE
    work = np.empty(2 * steps * LINE, np.uint8)
    rows = address_of(work)
    columns = rows + steps * LINE
    _read_panel(a, depth, False, rows, steps * 4, LINE)
    _read_panel(b, depth, True, columns, LINE, SIDE * LINE)
    for i in range(SIDE):
        _multiply_row(rows + i * steps * 4, columns, steps, target + i * LINE)
    keep_alive(work)


@instruction()
def _write_rows(
    e: Emitter, source: Any, rows: Any, cols: Any, target: Any, target_row: Any, add: Any,
    factor: Any, factor2: Any,
) -> None:  # fmt: skip
    """Write `rows` rows of `cols` numbers, times both factors, or add them to what is there."""
    builder, factors = e.builder, [e.broadcast(x) for x in (factor, factor2)]
    is_wide = builder.icmp_signed(">", cols, WORD(PAIRS))
    rest = builder.select(is_wide, builder.sub(cols, WORD(PAIRS)), WORD(0))
    masks = [e.first_lanes(cols), e.first_lanes(rest)]

    def write_row(_row: Any, now: list[Any]) -> list[Any]:
        numbers = [e.load(e.step(now[0], WORD(ROW), j), e.vector) for j in range(2)]
        for factor in factors:
            numbers = [builder.fmul(number, factor) for number in numbers]
        e.store_or_add(numbers, [e.step(now[1], WORD(ROW), j) for j in range(2)], add, masks)
        return [builder.add(now[0], WORD(LINE)), builder.add(now[1], target_row)]

    e.for_range(WORD(0), rows, 1, [source, target], write_row)


@external()
def _product(
    _t: BlockSizes, tall: bool, broad: bool, short: bool, a: int, b: int, blocks: int, a2: int,
    b2: int, blocks2: int, target: int, row: int, later: NextLines,
) -> None:  # fmt: skip
    """Do what `_tile` does; its callers share this machine code, which is long."""
    _tile(tall, broad, short, a, b, blocks, a2, b2, blocks2, target, row, later)


@external()
def _multiply_scaled(
    t: BlockSizes, high: int, wide: int, depth: int, a: int, b: int, C: Matrix, add: bool,
    scratch_tile: int,
) -> None:  # fmt: skip
    """Compute C[:high, :wide] = A B, or +=, from panels that may be scaled or contain numbers."""
    exponent = _noted(a, depth, EXPONENT) + _noted(b, depth, EXPONENT)
    marks = _noted(a, depth, MARK), _noted(b, depth, MARK)
    if NUMBERS in marks or exponent > FINITE:
        _multiply_numbers(t, a, b, depth, scratch_tile)
        factor, factor2 = ONE, ONE
    else:
        blocks = _blocks_of(depth)
        _product(t, True, True, False, a, b, blocks, a, b, 0, scratch_tile, LINE, NO_LINES)
        factor, factor2 = _noted(a, depth, INVERSE), _noted(b, depth, INVERSE)
    _write_rows(scratch_tile, high, wide, C.at, C.row, add, factor, factor2)


@external()
def multiply_split(
    t: BlockSizes, rows: int, cols: int, depth: int, a: int, b: int, depth2: int, a2: int, b2: int,
    C: Matrix, add: bool, scratch_tile: int, coming: NextBlock,
) -> None:  # fmt: skip
    """Compute C[:rows, :cols] = A B + A2 B2, or +=, from panels that `split_panels` packed.

    The operands are given by the addresses of their panels; A2 and B2 may have 0 steps of k. Rows
    of C are contiguous. Meanwhile, `coming` is prefetched.
    """
    size, blocks = panel_size(depth), _blocks_of(depth)
    size2, blocks2 = panel_size(depth2), _blocks_of(depth2)
    line = stop = 0  # the next line of `coming` to prefetch, and where this panel of B stops
    _begin()
    for j in range(0, cols, SIDE):
        B, B2, wide = b + j // SIDE * size, b2 + j // SIDE * size2, min(SIDE, cols - j)
        stop = min(stop + coming.share, coming.rows * coming.lines)
        line = max(line, stop - coming.share)
        for i in range(0, rows, SIDE):
            A, A2, high = a + i // SIDE * size, a2 + i // SIDE * size2, min(SIDE, rows - i)
            is_plain = _is_plain(A, depth) and _is_plain(B, depth)
            is_plain = is_plain and _is_plain(A2, depth2) and _is_plain(B2, depth2)
            corner = part_of(C, i, j)
            if not is_plain:
                _multiply_scaled(t, high, wide, depth, A, B, corner, add, scratch_tile)
                if depth2:
                    _multiply_scaled(t, high, wide, depth2, A2, B2, corner, True, scratch_tile)
                continue
            later = lines_from(coming, line, stop)
            line = min(stop, line + (blocks + blocks2) * LINES)
            is_direct = high == SIDE == wide and not add
            target, row = (corner.at, C.row) if is_direct else (scratch_tile, LINE)
            short = _noted(B, depth, MARK) == SHORT
            _product(
                t, high > PAIRS, wide > PAIRS, short, A, B, blocks, A2, B2, blocks2, target, row,
                later,
            )  # fmt: skip
            if not is_direct:
                _write_rows(scratch_tile, high, wide, corner.at, C.row, add, ONE, ONE)
    _end()
