"""The macro-kernel: loops that decide which block is in which cache when the register tile runs.

A machine has several levels of memory; a level nearer to the core is smaller and faster. A product
of n x n matrices uses each number in n multiply-adds. So the product is fast if a number in a
cache is used as often as possible before other numbers replace it. Five loops achieve this
(K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). BLIS calls
the two inner loops the macro-kernel:

    for jc in 0, NC, ..., n:                  columns of C and B
      for pc in 0, KC, ..., k:                steps of the sum
        pack B[pc:pc+KC, jc:jc+NC]                -> panels for the level-3 cache
        for ic in 0, MC, ..., m:              rows of C and A
          pack A[ic:ic+MC, pc:pc+KC]              -> panels for the level-2 cache
          for j in 0, NR, ..., NC:            one panel of B stays in the level-1 cache
            for i in 0, MR, ..., MC:          one tile of C stays in registers
              C-tile = or += A-panel times B-panel            (minigrad.kernels.gemm.microkernel)

Packing pays if the panels are read several times. If C has few columns, the rows of A are read in
place; if C has few rows, the columns of B are read in place. If C has too few columns to fill a
tile, the loops compute C^T = B^T A^T, because a tile with few rows wastes nothing.

Threads share the packing of B, and then the work on C: each thread gets a strip of rows, which is
also cut into spans of columns if there are few rows. If all rows of A fit in the level-2 cache,
only columns are cut. Then each thread packs the panels of B that it reads, a few at a time, which
stay in its cache until all rows are done; meanwhile it prefetches the numbers of the next panels.
Otherwise it prefetches the next packed panel, which may have left the caches since it was packed.
Each number of C is summed in the same order, whatever the cuts: by blocks of equal depth from the
first to the last, and in a block by increasing k. So neither the cuts nor the number of threads can
change a bit.

A matrix B that is multiplied with often may be packed already (`minigrad.kernels.gemm.prepacked`).
A bias, and a second product with a small k, A2 B2, can be added while a strip of C is in a cache;
in LoRA this is the low-rank update. Otherwise each of the two would cost a pass over C.

On a matrix unit, both operands are packed by `split_panels`, and `multiply_split` takes the place
of the macro-kernel. They are called at the addresses in a plan, because only a large product needs
them: the first one compiles them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minigrad.kernels.gemm.matrix_unit import panel_size
from minigrad.kernels.gemm.microkernel import (
    CACHE_LINE,
    NO_BLOCK,
    UNROLLED,
    NextBlock,
    first_line,
    lines_from,
    tile_of_size,
    tile_packed,
)
from minigrad.kernels.gemm.packing import BlockSizes, Matrix, pack, pack_panels, part_of, transposed
from minigrad.kernels.jit import call_at, external, jit
from minigrad.kernels.launch import share
from minigrad.kernels.vector import MASKS_ARE_CHEAP, add_vector, keep_alive, load, store

STEPS = 64  # steps of k whose cache lines fit in a level-1 cache at a distance of 512 bytes
NARROW = 256  # bytes in a row of B up to which packing takes longer than the collisions of steps
WIDE = 512  # the most bytes in a row of a small B that is read without packing it
OFTEN = 2048  # bytes in a row of B from which A is read so often that packing it pays
SHALLOW = 128  # steps of k up to which writing C takes longer than the arithmetic
CLOSE = 65536  # the most bytes of a C that needs no prefetch: it is in the level-1 cache or near
OFTEN_READ = 4  # tiles that read a panel of B, from which prefetching the next panel pays


class Panels(NamedTuple):
    """The panels of a block of A or B, packed or read in place; steps are in bytes."""

    at: int
    across: int  # to the next row (of A) or column (of B) within a panel
    along: int  # to the next k
    next: int  # to the next panel
    packed: bool


class Term(NamedTuple):
    """A product to add to a piece of C: rows of A times panels of B, over `depth` steps of k."""

    depth: int
    a: Matrix
    B: Panels
    pack: bool  # whether A is packed
    source: Matrix  # the block of B, if each piece packs the panels it reads; else at address 0


class Extra(NamedTuple):
    """The terms added to a product: a bias, and a second product a b if `depth` is not 0.

    There is a second product only if the panels of B are packed already, or on the matrix unit.
    """

    bias: Matrix  # of the shape of C, with all rows at the same address; or NO_BIAS
    depth: int
    a: Matrix
    b: Matrix
    room: int  # the address of memory for the panels of b (`work_size`)


NO_BIAS = Matrix(0, 0, 0)


class PackingChoice(NamedTuple):
    """Which operands are packed."""

    pack_a: bool
    pack_b: bool


@jit(inline="always")
def block_depth(t: BlockSizes, k: int) -> int:
    """Return the steps of k in a block: at most KC, a multiple of RUN, equal for all blocks."""
    blocks = (k + t.KC - 1) // t.KC
    runs = (k + t.RUN - 1) // t.RUN
    return (runs + blocks - 1) // blocks * t.RUN


@jit(inline="always")
def group_size(t: BlockSizes) -> int:
    """Return how many panels of B are packed together; a row of them is several cache lines."""
    return 2 if t.split else 4


@jit(inline="always")
def bytes_of_panel(t: BlockSizes, width: int, depth: int) -> int:
    """Return the bytes of a packed panel of `depth` steps of k."""
    return panel_size(depth) if t.split else width * depth * t.item


@external()
def pack_columns(
    piece: int, pieces: int, t: BlockSizes, b: Matrix, cols: int, depth: int, target: int
) -> None:
    """Pack a group of panels of a block of B; with one piece, all of them."""
    group = group_size(t) if pieces > 1 else cols
    j = piece * group * t.NR
    at = target + piece * group * bytes_of_panel(t, t.NR, depth)
    wide, block = min(group * t.NR, cols - j), part_of(b, 0, j)
    if t.split:
        call_at(t.split, (t, transposed(block), wide, depth, True, at))
    else:
        pack_panels(t, block, wide, depth, at)


@jit(inline="always")
def choose_packing(
    t: BlockSizes, m: int, n: int, k: int, a: Matrix, b: Matrix, prepacked: int
) -> PackingChoice:
    """Choose which operands are packed for a product of this shape and layout.

    A matrix that is read only a few times is not packed, and a small matrix is not packed either.
    """
    if t.split:
        return PackingChoice(True, True)
    size = k * n * t.item
    wide, often, tall = n * t.item > WIDE, n * t.item >= OFTEN, m > 2 * t.MR
    # Numbers at a distance of a power of two lie in few sets of a cache, and evict each other. A
    # tile reads only MR rows of A, which fit unless all lie in one set.
    rows_collide = n > t.NR and a.row % 4096 == 0 and min(k, t.KC) * t.item >= 1024
    steps_collide = tall and n * t.item > NARROW and a.col % 512 == 0 and k > STEPS
    rows_of_b_collide = tall and n > t.NR and b.row % 512 == 0 and k > STEPS
    in_place = not (wide or steps_collide or rows_of_b_collide) and size <= t.near
    pack_b = prepacked != 0 or b.col != t.item or (m > t.MR and not in_place)
    if not MASKS_ARE_CHEAP and n % t.NR:  # a tile would read past the end of a row
        pack_b = True
    # Distant steps of A lie on more pages than a core can address fast.
    steps_are_distant = a.col != t.item and a.col * min(k, t.KC) > t.near
    hard_to_read = rows_collide or steps_collide or steps_are_distant
    pack_a = (often or hard_to_read) and tall and pack_b
    return PackingChoice(pack_a, pack_b)


@jit(inline="always")
def copy_corner(
    t: BlockSizes, scratch_tile: int, high: int, wide: int, C: Matrix, add: bool
) -> None:
    """Write a tile in `scratch_tile` to C, or add it: only the rows and columns that C has."""
    for i in range(high):
        for j in range(wide):
            here = C.at + i * C.row + j * C.col
            value = load(scratch_tile + (i * t.NR + j) * t.item, t.zero)
            if add:
                value += load(here, t.zero)
            store(here, value)


@jit(inline="always")
def next_block(t: BlockSizes, b: Matrix, depth: int, cols: int) -> NextBlock:
    """Return the block b[:depth, :cols]; it has no rows if b has no contiguous rows or columns."""
    step, rows, length = b.row, depth, cols
    if b.col != t.item:
        step, rows, length = b.col, cols if b.row == t.item else 0, depth
    lines = (length * t.item + CACHE_LINE - 1) // CACHE_LINE
    return NextBlock(b.at, step, rows, lines, rows * lines)


@jit(inline="always")
def next_panels(at: int, size: int, count: int) -> NextBlock:
    """Return `count` panels but the first; each is prefetched while the one before is used."""
    lines = size // CACHE_LINE
    return NextBlock(at + size, 0, 1, (count - 1) * lines, lines)


@external()
def macro_kernel(
    t: BlockSizes, rows: int, cols: int, depth: int, A: Panels, B: Panels, C: Matrix, add: bool,
    distant: bool, scratch_tile: int, coming: NextBlock,
) -> None:  # fmt: skip
    """Compute C[:rows, :cols] = A B, or += : the two loops around the micro-kernel.

    A tile whose rows are not contiguous in C is computed in `scratch_tile` and copied. So is a tile
    at an edge of C, if its operands are packed: panels have MR rows and NR columns everywhere, and
    computing too many is faster than a smaller tile, which prefetches nothing. A long sum is more
    exact if it is cut into runs, each summed by itself; so a tile is added to C after every RUN
    steps. If C is `distant`, outside of the level-1 cache, or if the tile is packed, the lines of C
    are prefetched. Packed tiles also prefetch what is read next from memory (`coming`).

    These are `while` loops because a `range` with a step that the compiler does not know needs a
    division, which takes a tenth of the time of a small tile.
    """
    straight = C.col == t.item
    step = t.MR
    if not A.packed and t.MR < rows <= 2 * t.MR and rows & (rows - 1) == 0:
        step = rows // 2  # two equal tiles; otherwise the second tile would have few rows
    next_tile = A.next if A.packed else step * A.across
    line = stop = 0  # the next line of `coming` to prefetch, and where this panel of B stops
    j, b = 0, B.at
    while j < cols:
        wide = min(t.NR, cols - j)
        stop = min(stop + coming.share, coming.rows * coming.lines)
        line = max(line, stop - coming.share)
        i, panel = 0, A.at
        while i < rows:
            high, a, c = min(step, rows - i), panel, C.at + i * C.row + j * C.col
            if A.packed and B.packed and 2 * high > t.MR:
                direct = straight and high == t.MR and wide == t.NR
                target, row = (c, C.row) if direct else (scratch_tile, t.NR * t.item)
                k = 0
                while k < depth:
                    steps = min(t.RUN, depth - k)
                    a_now, b_now = a + k * A.along, b + k * B.along
                    later = lines_from(coming, line, stop)
                    adds = (add and direct) or k > 0
                    tile_packed(a_now, b_now, steps, target, row, adds, later, t.zero)
                    line = min(stop, line + steps // UNROLLED)
                    k += t.RUN
                if not direct:
                    copy_corner(t, scratch_tile, high, wide, Matrix(c, C.row, C.col), add)
                high = 0
            while high > 0:
                target, row = (c, C.row) if straight else (scratch_tile, t.NR * t.item)
                done = k = 0
                while k < depth:
                    done = tile_of_size(
                        high, wide, a + k * A.along, A.across, A.along, b + k * B.along, B.along,
                        min(t.RUN, depth - k), target, row, (add and straight) or k > 0, distant,
                        t.zero,
                    )  # fmt: skip
                    k += t.RUN
                if not straight:
                    copy_corner(t, scratch_tile, done, wide, Matrix(c, C.row, C.col), add)
                high -= done
                a += done * A.across
                c += done * C.row
            i += step
            panel += next_tile
        j += t.NR
        b += B.next


@jit(inline="always")
def multiply_panels(
    t: BlockSizes, rows: int, cols: int, depth: int, a: Matrix, b: Matrix, C: Matrix, add: bool
) -> None:
    """Compute C = A B, or +=, from packed panels of B: their steps are to the next k and panel."""
    A, B = Panels(a.at, a.row, a.col, 0, False), Panels(b.at, t.item, b.row, b.col, True)
    distant = rows * cols * t.item > CLOSE
    macro_kernel(t, rows, cols, depth, A, B, C, add, distant, 0, NO_BLOCK)


@jit(inline="always")
def work_size(t: BlockSizes, n: int, depth: int) -> int:
    """Return the bytes that `multiply` needs for panels with `depth` steps of k."""
    panels = (min(n, t.NC) + t.NR - 1) // t.NR
    return CACHE_LINE + panels * bytes_of_panel(t, t.NR, depth)


@jit(inline="always")
def strip_height(t: BlockSizes, rows: int, cols: int, depth: int) -> int:
    """Return how many rows of A are packed at a time: MC x KC numbers at most, in equal strips.

    If k has few steps, writing C takes most of the time. Writing is fastest along the rows of C, so
    a strip is one row of tiles; the block of B then comes from the level-2 cache.
    """
    if depth <= SHALLOW and depth * cols * t.item <= 4 * t.near:
        return t.MR
    tiles = (rows + t.MR - 1) // t.MR
    most = max(1, t.MC * t.KC // (t.MR * depth))
    strips = (tiles + most - 1) // most
    return (tiles + strips - 1) // strips * t.MR


@jit(inline="always")
def rows_are_near(t: BlockSizes, m: int, depth: int) -> bool:
    """Return whether a block of A with all m rows takes less than half the level-2 cache."""
    return (t.split != 0 or depth > SHALLOW) and m * depth * t.item < 4 * t.near


@jit(inline="always")
def cut_rows(t: BlockSizes, m: int, n: int, depth: int, pieces: int, packs: bool) -> int:
    """Return the number of strips of rows, a divisor of `pieces`; the other factor cuts columns.

    Strips of rows are better for C: two threads write to one cache line at most, but to one in each
    row of C if they have different columns. If B must be packed (`packs`), columns can be better
    for A and B: each thread packs the columns of B that it needs, and the rows of A, which are then
    packed several times. This extra work is small if each thread has many columns and A is in the
    level-2 cache; otherwise a strip has MC rows or more.
    """
    if packs and rows_are_near(t, m, depth) and n >= 2 * group_size(t) * t.NR * pieces:
        return 1
    least = t.MC if packs else min(4 * t.MR, 2 * t.NR)
    strips = min(pieces, max(1, m // least))
    while pieces % strips:
        strips -= 1
    return strips


@jit(inline="always")
def offset_of_block(t: BlockSizes, jc: int, pc: int, k: int, steps: int, panels: int) -> int:
    """Return the bytes to the panels of B from column jc and step pc on, if all are packed.

    Before them are complete columns of blocks, and in this one blocks with `steps` steps of k.
    """
    complete, last = k // steps, k % steps
    column = complete * bytes_of_panel(t, t.NR, steps)
    if last:
        column += bytes_of_panel(t, t.NR, last)
    before = pc // steps * bytes_of_panel(t, t.NR, steps)
    return jc // t.NR * column + panels * before


@external()
def multiply_block(
    piece: int, pieces: int, t: BlockSizes, m: int, n: int, k: int, a: Matrix, b: Matrix, C: Matrix,
    add: bool, pack_b: bool, bias: Matrix,
) -> None:  # fmt: skip
    """Compute a piece of C = A B, or +=, and add a bias, if all of A and B is one block.

    The loops of `multiply` take as long as the arithmetic of a small product. The pieces are rows.
    Each piece packs all of B for itself, which is faster than waiting for other threads and reading
    what they packed.
    """
    first = piece * m // pieces
    rows = (piece + 1) * m // pieces - first
    a, C = part_of(a, first, 0), part_of(C, first, 0)
    A = Panels(a.at, a.row, a.col, t.MR * a.row, False)
    distant = m * n * t.item > CLOSE
    if pack_b:
        work = np.empty(work_size(t, n, k), np.uint8)
        room = first_line(work)
        pack_panels(t, b, n, k, room)
        packed = Panels(room, t.item, t.NR * t.item, t.NR * k * t.item, True)
        macro_kernel(t, rows, n, k, A, packed, C, add, distant, 0, NO_BLOCK)
        keep_alive(work)
    else:
        B = Panels(b.at, b.col, b.row, t.NR * b.col, False)
        macro_kernel(t, rows, n, k, A, B, C, add, distant, 0, NO_BLOCK)
    if bias.at:
        add_bias(t, rows, n, bias, C)


@external()
def multiply(
    launcher: int, pieces: int, t: BlockSizes, m: int, n: int, k: int, a: Matrix, b: Matrix,
    C: Matrix, add: bool, choice: PackingChoice, room: int, prepacked: int, more: Extra,
) -> None:  # fmt: skip
    """Compute C = A B, or +=, and add `more`: the loops around the macro-kernel.

    `prepacked` is the address of all panels of B if they are packed already, or else 0; then `room`
    is the address of memory for them (`work_size`).
    """
    steps = block_depth(t, k)
    most = min(k, steps)
    packs = choice.pack_b and not prepacked
    strips = cut_rows(t, m, n, most, pieces, packs)
    is_small = most * n * t.item <= 2 * t.near
    packed_at_use = packs and (strips == 1 or is_small) and rows_are_near(t, m, most)
    for jc in range(0, n, t.NC):
        cols = min(t.NC, n - jc)
        panels = (cols + t.NR - 1) // t.NR
        if more.depth:
            pack_columns(0, 1, t, part_of(more.b, 0, jc), cols, more.depth, more.room)
        for pc in range(0, k, steps):
            depth = min(steps, k - pc)
            source = part_of(b, pc, jc)
            size = bytes_of_panel(t, t.NR, depth)
            B = Panels(room, t.item, t.NR * t.item, size, True)
            if prepacked:
                at = prepacked + offset_of_block(t, jc, pc, k, steps, panels)
                B = Panels(at, t.item, t.NR * t.item, size, True)
            elif not choice.pack_b:  # read in place
                B = Panels(source.at, b.col, b.row, t.NR * b.col, False)
            elif not packed_at_use:
                groups = (panels + group_size(t) - 1) // group_size(t)
                share(launcher, groups, pack_columns, (t, source, cols, depth, room))
            last = pc + depth == k
            source = Matrix(source.at if packed_at_use else 0, b.row, b.col)
            main = Term(depth, part_of(a, 0, pc), B, choice.pack_a, source)
            size = bytes_of_panel(t, t.NR, more.depth)
            B2 = Panels(more.room, t.item, t.NR * t.item, size, True)
            second = Term(more.depth if last else 0, more.a, B2, False, Matrix(0, 0, 0))
            bias = part_of(more.bias, 0, jc) if more.bias.at and last else NO_BIAS
            spans = min(panels, pieces // strips)
            corner, adds = part_of(C, 0, jc), add or pc > 0
            arguments = t, m, cols, strips, corner, adds, main, second, bias
            share(launcher, strips * spans, multiply_piece, arguments)


@external()
def multiply_piece(
    piece: int, pieces: int, t: BlockSizes, m: int, n: int, strips: int, C: Matrix, add: bool,
    main: Term, more: Term, bias: Matrix,
) -> None:  # fmt: skip
    """Compute a piece of C[:m, :n] = A B, or +=, and add a bias and a second term, strip by strip.

    The pieces are `strips` strips of rows, each cut into spans of columns.
    """
    spans = pieces // strips
    s, q = piece // spans, piece % spans
    tiles, panels = (m + t.MR - 1) // t.MR, (n + t.NR - 1) // t.NR
    start, end = s * tiles // strips * t.MR, min(m, (s + 1) * tiles // strips * t.MR)
    first, last = q * panels // spans, (q + 1) * panels // spans
    j = first * t.NR
    cols = min(n, last * t.NR) - j

    strip, group, group_bytes = strip_height(t, end - start, cols, main.depth), panels, 0
    if main.source.at:  # a group of panels is packed, and stays in a cache for all rows
        strip, group = end - start, group_size(t)
        group_bytes = group * main.B.next
    tile = t.MR * t.NR * t.item
    tall = (strip + t.MR - 1) // t.MR  # panels of A
    size = tall * bytes_of_panel(t, t.AR, main.depth) if main.pack else 0
    size_of_more = tall * bytes_of_panel(t, t.AR, more.depth) if t.split else 0
    work = np.empty(CACHE_LINE + tile + size + size_of_more + group_bytes, np.uint8)
    scratch_tile = first_line(work)
    packed_a = scratch_tile + tile
    packed_more = packed_a + size
    packed_b = packed_more + size_of_more
    for i in range(start, end, strip):
        high = min(strip, end - i)
        for number in range(1 if t.split else 2):
            term, adds = main, add
            if number == 1:
                term, adds = more, True
            if term.depth == 0:
                continue
            a = part_of(term.a, i, 0)
            A = Panels(a.at, a.row, a.col, t.MR * a.row, False)
            if term.pack:
                if t.split:
                    call_at(t.split, (t, a, high, term.depth, False, packed_a))
                    a2 = part_of(more.a, i, 0)
                    call_at(t.split, (t, a2, high, more.depth, False, packed_more))
                else:
                    pack(t, a, high, term.depth, t.MR, t.AR, packed_a)
                size = bytes_of_panel(t, t.AR, term.depth)
                A = Panels(packed_a, t.item, t.AR * t.item, size, True)
            for g in range(first, last, group):
                B, b, coming = term.B, term.source, NO_BLOCK
                wide = min(n, min(last, g + group) * t.NR) - g * t.NR
                at = B.at + g * B.next
                if b.at:
                    at = packed_b
                    pack_columns(0, 1, t, part_of(b, 0, g * t.NR), wide, term.depth, at)
                    after = (g + group) * t.NR
                    cols_after = min(min(n, last * t.NR) - after, group * t.NR)
                    if cols_after > 0:
                        coming = next_block(t, part_of(b, 0, after), term.depth, cols_after)
                elif B.packed and high >= OFTEN_READ * t.MR:  # the panels come from memory
                    coming = next_panels(at, B.next, last - first)
                B = Panels(at, B.across, B.along, B.next, B.packed)
                corner = part_of(C, i, g * t.NR)
                if t.split:
                    b2 = more.B.at + g * more.B.next
                    arguments = (
                        t, high, wide, term.depth, A.at, at, more.depth, packed_more, b2, corner,
                        adds, scratch_tile, coming,
                    )  # fmt: skip
                    call_at(t.unit, arguments)
                else:
                    macro_kernel(
                        t, high, wide, term.depth, A, B, corner, adds, True, scratch_tile, coming
                    )
                if bias.at and number == 0:
                    add_bias(t, high, wide, part_of(bias, i, g * t.NR), corner)
    keep_alive(work)


@jit(inline="always")
def add_bias(t: BlockSizes, rows: int, cols: int, bias: Matrix, C: Matrix) -> None:
    """Add a bias to C[:rows, :cols].

    The bias is added after the sums, so that the bits are those of a separate addition.
    """
    done = cols - cols % t.VL if bias.col == C.col == t.item else 0
    for i in range(rows):
        here, there = bias.at + i * bias.row, C.at + i * C.row
        for j in range(0, done, t.VL):
            add_vector(here + j * t.item, there + j * t.item, t.zero)
        for j in range(done, cols):
            at = there + j * C.col
            store(at, load(at, t.zero) + load(here + j * bias.col, t.zero))
