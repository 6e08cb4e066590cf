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

A compiler does not find this tile by itself, so it is emitted as LLVM code (see
`minigrad.kernels.vector` for the terms: addresses, steps in bytes, `zero` for the dtype).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types

from minigrad.kernels.jit import intrinsic
from minigrad.kernels.vector import ADDRESS, Emitter, vector_registers

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


def _emit_sums(e: Emitter, height: int, x: _Operands) -> list[Any]:
    """Emit the loop over k; returns the vectors of sums, NV for each row."""
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
    sums = [builder.phi(e.vector) for _ in range(height * NV)]
    row = [e.load(e.step(b_now, ADDRESS(e.vector_bytes), j), e.vector) for j in range(NV)]
    new_sums = []
    for i in range(height):
        number = e.load(e.step(a_now[i // 3], x.a_row, i % 3), e.scalar)
        column = e.broadcast(number)
        new_sums += [e.multiply_add(column, row[j], sums[i * NV + j]) for j in range(NV)]
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


def _emit_tile(e: Emitter, height: int, x: _Operands, c: Any, c_row: Any, add: Any) -> None:
    """Emit a whole tile: C = sums, or C += sums if `add`."""
    builder = e.builder
    rows = [e.step(c, c_row, i) for i in range(height)]
    for row in rows:
        for byte in range(0, NV * e.vector_bytes, CACHE_LINE):
            e.prefetch(e.step(row, ADDRESS(byte), 1))  # on its way while the loop runs
    sums = _emit_sums(e, height, x)
    places = [e.step(row, ADDRESS(e.vector_bytes), j) for row in rows for j in range(NV)]
    with builder.if_else(builder.icmp_signed("!=", add, ADDRESS(0))) as (to_old, as_new):
        with to_old:
            for value, place in zip(sums, places, strict=True):
                e.store(builder.fadd(e.load(place, e.vector), value), place)
        with as_new:
            for value, place in zip(sums, places, strict=True):
                e.store(value, place)


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
        _emit_tile(e, tile.MR, operands, c, c_row, add)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6, zero), emit


@intrinsic
def tile_strided(
    _typing: Any, rows: Any, a: Any, a_row: Any, a_k: Any, b: Any, b_k: Any, depth: Any,
    c: Any, c_row: Any, add: Any, zero: Any,
) -> Any:  # fmt: skip
    """A tile of the greatest height that `rows` rows fill; returns that height.

    The operands may lie in place, with any steps, but a row of B is NR adjacent numbers.
    """

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        rows, *operands, c, c_row, add, _ = args
        e = Emitter(builder, zero)
        end = builder.append_basic_block("tile.end")
        results = []
        for height in tile_heights(tile_shape(e.item).MR):
            fits = builder.append_basic_block(f"tile.{height}")
            lower = builder.append_basic_block(f"tile.below.{height}")
            builder.cbranch(builder.icmp_signed(">=", rows, ADDRESS(height)), fits, lower)
            builder.position_at_end(fits)
            _emit_tile(e, height, _Operands(*operands), c, c_row, add)
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

    return types.intp(*[types.intp] * 10, zero), emit
