"""The register tile: the innermost loop of a matrix product, written as vector instructions.

A core multiplies fastest when the numbers it needs are in registers already. So the product is
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

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types

from minigrad.kernels.jit import intrinsic
from minigrad.kernels.vector import ADDRESS, Emitter, masks_are_cheap, vector_registers

NV = 2  # vectors in a row of the tile
CACHE_LINE = 64  # bytes


class Tile(NamedTuple):
    """The shape of the register tile for one dtype, counted in numbers."""

    MR: int  # rows
    NR: int  # columns: NV vectors
    VL: int  # numbers in a vector
    AR: int  # MR rounded up to whole vectors: the width of a packed panel of A


def tile_shape(itemsize: int) -> Tile:
    """The tile for numbers of `itemsize` bytes: Tile(14, 32, 16, 16) for float32 on AVX-512."""
    width, registers = vector_registers()
    VL = width // itemsize
    MR = (registers - 2 * NV) // NV  # NV registers hold the row of B, as many what is loaded next
    return Tile(MR, NV * VL, VL, -(-MR // VL) * VL)


def tile_heights(MR: int) -> list[int]:
    """The heights in which the tile exists: MR, and powers of two for the rows that are left."""
    return [MR] + [height for height in (8, 4, 2, 1) if height < MR]


class _Operands(NamedTuple):
    """What a tile multiplies, as values of the code being emitted."""

    a: Any
    a_row: Any
    a_k: Any
    b: Any
    b_k: Any
    depth: Any  # steps of k, at least 1


class _Shape(NamedTuple):
    """The shape of a tile being emitted; `e` writes vectors of the width that it is made of."""

    e: Emitter
    height: int
    vectors: int  # in a row


def _emit_sums(shape: _Shape, x: _Operands, mask: Any) -> list[Any]:
    """Emit the loop over k; returns the vectors of sums, row by row."""
    e, height, vectors = shape
    builder = e.builder
    before = builder.block
    loop, after = builder.append_basic_block("k"), builder.append_basic_block("k.end")
    # One moving address serves three rows: the processor adds a step, or twice a step, by itself.
    bases = [e.step(x.a, x.a_row, i) for i in range(0, height, 3)]
    builder.branch(loop)

    builder.position_at_end(loop)
    left = builder.phi(ADDRESS)
    a_now = [builder.phi(ADDRESS) for _ in bases]
    b_now = builder.phi(ADDRESS)
    sums = [builder.phi(e.vector) for _ in range(height * vectors)]
    places = [e.step(b_now, ADDRESS(e.vector_bytes), j) for j in range(vectors)]
    row = [e.load(place, e.vector) for place in places[:-1]]
    row += [e.load(places[-1], e.vector) if mask is None else e.load_some(places[-1], mask)]
    new_sums = []
    for i in range(height):
        number = e.load(e.step(a_now[i // 3], x.a_row, i % 3), e.scalar)
        column = e.broadcast(number)
        new_sums += [e.multiply_add(column, row[j], sums[i * vectors + j]) for j in range(vectors)]
    one_less = builder.sub(left, ADDRESS(1))
    zero = ir.Constant(e.vector, None)
    from_to = [(left, x.depth, one_less), (b_now, x.b, builder.add(b_now, x.b_k))]
    from_to += [(p, first, builder.add(p, x.a_k)) for p, first in zip(a_now, bases, strict=True)]
    from_to += [(s, zero, new) for s, new in zip(sums, new_sums, strict=True)]
    for phi, first, then in from_to:
        phi.add_incoming(first, before)
        phi.add_incoming(then, loop)
    builder.cbranch(builder.icmp_signed(">", one_less, ADDRESS(0)), loop, after)

    builder.position_at_end(after)
    return new_sums


def _emit_stores(
    e: Emitter, sums: list[Any], places: list[Any], masks: list[Any], add: Any
) -> None:
    """Emit C = sums, or C += sums if `add`; only where there is a mask is a part written."""
    builder = e.builder

    def store_all(values: list[Any]) -> None:
        for value, place, mask in zip(values, places, masks, strict=True):
            if mask is None:
                e.store(value, place)
            else:
                e.store_some(value, place, mask)

    with builder.if_else(builder.icmp_signed("!=", add, ADDRESS(0))) as (to_old, as_new):
        with to_old:
            # All loads come first: one that follows a store to an address with the same last 12
            # bits waits for it, and the rows of C may well lie a power of two apart.
            old = [
                e.load(place, e.vector) if mask is None else e.load_some(place, mask)
                for place, mask in zip(places, masks, strict=True)
            ]
            store_all([builder.fadd(x, y) for x, y in zip(old, sums, strict=True)])
        with as_new:
            store_all(sums)


def _emit_tile(shape: _Shape, x: _Operands, c: Any, c_row: Any, add: Any, cols: Any = None) -> None:
    """Emit a tile: C = sums, or C += sums if `add`; of `cols` columns, if not as many as it has."""
    e, height, vectors = shape
    builder = e.builder
    mask = None
    if cols is not None:
        mask = e.first_lanes(builder.sub(cols, ADDRESS((vectors - 1) * e.lanes)))
    rows = [e.step(c, c_row, i) for i in range(height)]
    for row in rows:
        for byte in range(0, vectors * e.vector_bytes, CACHE_LINE):
            e.prefetch(builder.add(row, ADDRESS(byte)), to_write=True)  # while the loop runs
    # Where masks are dear, B is always packed, and there is no end to be read over.
    sums = _emit_sums(shape, x, mask if masks_are_cheap() else None)
    places = [e.step(row, ADDRESS(e.vector_bytes), j) for row in rows for j in range(vectors)]
    whole: list[Any] = [None] * len(places)
    if mask is None:
        _emit_stores(e, sums, places, whole, add)
        return
    masks = ([None] * (vectors - 1) + [mask]) * height
    full = builder.icmp_signed("==", cols, ADDRESS(vectors * e.lanes))
    with builder.if_else(full) as (all_columns, some_columns):
        with all_columns:
            _emit_stores(e, sums, places, whole, add)
        with some_columns:
            _emit_stores(e, sums, places, masks, add)


@intrinsic
def tile_packed(
    _typing: Any, a: Any, b: Any, depth: Any, c: Any, c_row: Any, add: Any, zero: Any
) -> Any:
    """C[0:MR, 0:NR] = A-panel times B-panel, or += if `add`; both panels packed.

    Packed panels lie in memory as the loop reads them: for each k AR numbers of A, NR of B.
    """

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        a, b, depth, c, c_row, add, _ = args
        e = Emitter(builder, zero)
        tile = tile_shape(e.item)
        a_k, b_k = ADDRESS(tile.AR * e.item), ADDRESS(tile.NR * e.item)
        operands = _Operands(a, ADDRESS(e.item), a_k, b, b_k, depth)
        _emit_tile(_Shape(e, tile.MR, NV), operands, c, c_row, add)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6, zero), emit


def _emit_heights(
    e: Emitter, vectors: int, rows: Any, x: _Operands, c: Any, c_row: Any, add: Any,
    cols: Any = None,
) -> Any:  # fmt: skip
    """Emit tiles of all heights and the choice among them; returns the height, as a value."""
    builder = e.builder
    end = builder.append_basic_block("tile.end")
    results = []
    for height in tile_heights(tile_shape(e.item).MR):
        fits = builder.append_basic_block(f"tile.{height}x{vectors}")
        lower = builder.append_basic_block(f"tile.below.{height}x{vectors}")
        builder.cbranch(builder.icmp_signed(">=", rows, ADDRESS(height)), fits, lower)
        builder.position_at_end(fits)
        _emit_tile(_Shape(e, height, vectors), x, c, c_row, add, cols)
        results.append((ADDRESS(height), builder.block))
        builder.branch(end)
        builder.position_at_end(lower)
    results.append((ADDRESS(0), builder.block))
    builder.branch(end)
    builder.position_at_end(end)
    done = builder.phi(ADDRESS)
    for value, block in results:
        done.add_incoming(value, block)
    return done


@intrinsic
def tile_strided(
    _typing: Any, rows: Any, a: Any, a_row: Any, a_k: Any, b: Any, b_k: Any, depth: Any,
    c: Any, c_row: Any, add: Any, zero: Any,
) -> Any:  # fmt: skip
    """A tile of the greatest height that `rows` rows fill; returns that height.

    The operands may lie in place, with any steps, but a row of B is NR adjacent numbers.
    """

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        rows, *operands, c, c_row, add, _ = args
        e = Emitter(builder, zero)
        return _emit_heights(e, NV, rows, _Operands(*operands), c, c_row, add)

    return types.intp(*[types.intp] * 10, zero), emit


@intrinsic
def tile_at_edge(
    _typing: Any, rows: Any, cols: Any, a: Any, a_row: Any, a_k: Any, b: Any, b_k: Any,
    depth: Any, c: Any, c_row: Any, add: Any, zero: Any,
) -> Any:  # fmt: skip
    """`tile_strided` for `cols` columns of C, at most NR.

    Where masks are cheap a row of B may be no longer than that.
    """

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        rows, cols, *operands, c, c_row, add, _ = args
        e = Emitter(builder, zero)
        widths = [(e, vectors) for vectors in range(1, NV + 1)]
        if e.lanes >= 8:  # half a vector takes some machines half the time
            widths.insert(0, (Emitter(builder, zero, e.lanes // 2), 1))
        end = builder.append_basic_block("edge.end")
        results = []
        for width, vectors in widths:
            last = (width, vectors) == widths[-1]
            wider = None
            if not last:
                narrow, wider = (builder.append_basic_block(n) for n in ("narrow", "wider"))
                fits = builder.icmp_signed("<=", cols, ADDRESS(vectors * width.lanes))
                builder.cbranch(fits, narrow, wider)
                builder.position_at_end(narrow)
            done = _emit_heights(width, vectors, rows, _Operands(*operands), c, c_row, add, cols)
            results.append((done, builder.block))
            builder.branch(end)
            if wider is not None:
                builder.position_at_end(wider)
        builder.position_at_end(end)
        height = builder.phi(ADDRESS)
        for value, block in results:
            height.add_incoming(value, block)
        return height

    return types.intp(*[types.intp] * 11, zero), emit
