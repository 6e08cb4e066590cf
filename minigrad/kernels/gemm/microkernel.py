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
    """The operands of a tile, as values of the code being emitted."""

    a: Any
    a_row: Any
    a_k: Any
    b: Any
    b_k: Any
    depth: Any  # steps of k, at least 1


class _Shape(NamedTuple):
    """The shape of a tile being emitted; `e` writes vectors of the width that it has."""

    e: Emitter
    height: int
    vectors: int  # in a row


def _emit_sums(shape: _Shape, x: _Operands, mask: Any) -> list[Any]:
    """Emit the loop over k, and return the vectors of sums, row by row."""
    e, height, vectors = shape
    builder = e.builder
    # One moving address serves three rows: the processor adds a step, or twice a step, by itself.
    bases = [e.step(x.a, x.a_row, i) for i in range(0, height, 3)]

    def step_of_k(now: list[Any]) -> tuple[list[Any], Any]:
        left, b_now, a_now, sums = now[0], now[1], now[2 : 2 + len(bases)], now[2 + len(bases) :]
        addresses = [e.step(b_now, ADDRESS(e.vector_bytes), j) for j in range(vectors)]
        row = [e.load(address, e.vector) for address in addresses[:-1]]
        last = addresses[-1]
        row += [e.load(last, e.vector) if mask is None else e.load_some(last, mask)]
        new_sums = []
        for i in range(height):
            number = e.load(e.step(a_now[i // 3], x.a_row, i % 3), e.scalar)
            column = e.broadcast(number)
            for j in range(vectors):
                new_sums.append(e.multiply_add(column, row[j], sums[i * vectors + j]))
        left = builder.sub(left, ADDRESS(1))
        moved = [builder.add(b_now, x.b_k), *(builder.add(p, x.a_k) for p in a_now)]
        return [left, *moved, *new_sums], builder.icmp_signed(">", left, ADDRESS(0))

    zeros = [ir.Constant(e.vector, None)] * (height * vectors)
    return e.loop([x.depth, x.b, *bases, *zeros], step_of_k)[2 + len(bases) :]


def _emit_stores(
    e: Emitter, sums: list[Any], addresses: list[Any], masks: list[Any], add: Any
) -> None:
    """Emit C = sums, or C += sums if `add`; only where there is a mask is a part written."""
    builder = e.builder

    def store_all(values: list[Any]) -> None:
        for value, address, mask in zip(values, addresses, masks, strict=True):
            if mask is None:
                e.store(value, address)
            else:
                e.store_some(value, address, mask)

    with builder.if_else(builder.icmp_signed("!=", add, ADDRESS(0))) as (to_old, as_new):
        with to_old:
            # All loads come first: one that follows a store to an address with the same last 12
            # bits waits for it, and the rows of C may well lie a power of two apart.
            old = [
                e.load(address, e.vector) if mask is None else e.load_some(address, mask)
                for address, mask in zip(addresses, masks, strict=True)
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
    addresses = [e.step(row, ADDRESS(e.vector_bytes), j) for row in rows for j in range(vectors)]
    unmasked: list[Any] = [None] * len(addresses)
    if mask is None:
        _emit_stores(e, sums, addresses, unmasked, add)
        return
    masks = ([None] * (vectors - 1) + [mask]) * height
    full = builder.icmp_signed("==", cols, ADDRESS(vectors * e.lanes))
    with builder.if_else(full) as (all_columns, some_columns):
        with all_columns:
            _emit_stores(e, sums, addresses, unmasked, add)
        with some_columns:
            _emit_stores(e, sums, addresses, masks, add)


@intrinsic
def tile_packed(
    _typing: Any, a: Any, b: Any, depth: Any, c: Any, c_row: Any, add: Any, zero: Any
) -> Any:
    """Compute C[0:MR, 0:NR] = A-panel times B-panel, or += if `add`; both panels are packed.

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
    """Emit tiles of all heights and the choice among them; return the height, as a value."""
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
    """Compute a tile of the greatest height that `rows` rows fill, and return that height.

    The operands may be unpacked, with any steps, but a row of B is NR adjacent numbers.
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
    """Compute `tile_strided` for `cols` columns of C, at most NR.

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
