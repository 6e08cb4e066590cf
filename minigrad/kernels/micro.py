"""The register tile: the innermost loop of a matrix product, written as vector instructions.

A core multiplies fastest when the numbers it needs are in registers already. So the product is
cut into tiles of C that fit in the vector registers, MR rows by NR columns, and stay there while
the loop over k runs. Each step of it loads one row of B (NR numbers, in `NV` vectors) and, for
each of MR rows, one number of A, copied to every lane of a vector:

        b[k, 0:NR]   ->  b0        b1            one row of B, held in NV = 2 vectors
    a[0, k]          ->  c00 += a0 * b0     c01 += a0 * b1
    a[1, k]          ->  c10 += a1 * b0     c11 += a1 * b1
     ...                  ...                ...
    a[MR-1, k]       ->  MR * NV sums, each a vector, all in registers

That is MR + NV loads for MR * NV multiply-adds, and the sums do not wait for one another: a core
that starts two multiply-adds in each cycle and needs four cycles to finish one is kept busy.
MR is as large as the registers allow: 14 with the 32 registers of AVX-512 or NEON, 6 with 16.

No compiler finds this tile by itself, so it is emitted as LLVM code, with the vector width and
the registers of the machine it runs on. The functions here take machine addresses (integers) and
steps in bytes, check nothing, and are called by loops that know the bounds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target

from minigrad.kernels.jit import intrinsic

NV = 2  # vectors in one row of the tile

_I32, _INTP = ir.IntType(32), ir.IntType(64)


class Tile(NamedTuple):
    """The shape of the register tile for one dtype, in numbers (not bytes)."""

    MR: int  # rows of C held in registers
    NR: int  # columns: NV vectors
    VL: int  # numbers in a vector
    AR: int  # MR rounded up to whole vectors: the width of a packed panel of A


def _vector_unit() -> tuple[int, int]:
    """Bytes in a vector register and how many registers there are, on the target numba has."""
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    enabled = set(features.split(","))
    if "+avx512f" in enabled:
        return 64, 32
    if "+avx" in enabled:
        return 32, 16
    return 16, 32 if triple.startswith(("aarch64", "arm64")) else 16


def tile_shape(itemsize: int) -> Tile:
    """The tile for numbers of `itemsize` bytes on this machine.

    >>> tile_shape(4)  # with AVX-512; Tile(MR=6, NR=16, VL=8, AR=8) with AVX2  # doctest: +SKIP
    Tile(MR=14, NR=32, VL=16, AR=16)
    """
    width, registers = _vector_unit()
    VL = width // itemsize
    MR = (registers - 2 * NV) // NV  # NV registers for the row of B, as many for what is loaded
    return Tile(MR, NV * VL, VL, -(-MR // VL) * VL)


def tile_heights(MR: int) -> list[int]:
    """The heights a tile is emitted in: MR, then powers of two, so that no row is wasted."""
    return [MR] + [h for h in (8, 4, 2, 1) if h < MR]


class _Emitter:
    """Writes vector code for one dtype at the end of an IR builder's current block."""

    def __init__(self, builder: Any, dtype: Any) -> None:
        self.builder = builder
        self.item = dtype.bitwidth // 8
        self.tile = tile_shape(self.item)
        self.scalar = ir.FloatType() if self.item == 4 else ir.DoubleType()
        self.vector = ir.VectorType(self.scalar, self.tile.VL)
        self.bytes = self.item * self.tile.VL  # in one vector

    def at(self, address: Any, offset: int = 0) -> Any:
        return self.builder.add(address, _INTP(offset)) if offset else address

    def load(self, address: Any, type_: Any) -> Any:
        pointer = self.builder.inttoptr(address, type_.as_pointer())
        return self.builder.load(pointer, align=self.item)

    def store(self, value: Any, address: Any) -> None:
        pointer = self.builder.inttoptr(address, value.type.as_pointer())
        self.builder.store(value, pointer, align=self.item)

    def broadcast(self, scalar: Any) -> Any:
        undefined = ir.Constant(self.vector, ir.Undefined)
        lane = self.builder.insert_element(undefined, scalar, _I32(0))
        return self.shuffle(lane, undefined, [0] * self.tile.VL)

    def shuffle(self, x: Any, y: Any, lanes: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(_I32, len(lanes)), lanes)
        return self.builder.shuffle_vector(x, y, mask)

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        # Not llvm.fma, which becomes a call of the C library where the machine has no FMA.
        v = self.vector
        name = f"llvm.fmuladd.v{self.tile.VL}f{8 * self.item}"
        signature = ir.FunctionType(v, [v, v, v])
        function = cgutils.get_or_insert_function(self.builder.module, signature, name)
        return self.builder.call(function, [x, y, z])

    def product(
        self, rows: int, a: Any, a_row: Any, a_k: Any, b: Any, b_k: Any, depth: Any
    ) -> list[Any]:
        """Emit the k-loop (depth >= 1); returns the rows * NV sums, row by row."""
        builder = self.builder
        before = builder.block
        loop = builder.append_basic_block("k")
        after = builder.append_basic_block("k.end")
        # Three rows share one moving address: x86 reaches row + 1 and row + 2 by addressing.
        bases = [builder.add(a, builder.mul(a_row, _INTP(i))) for i in range(0, rows, 3)]
        twice = builder.shl(a_row, _INTP(1))
        builder.branch(loop)

        builder.position_at_end(loop)
        left = builder.phi(_INTP)
        a_now = [builder.phi(_INTP) for _ in bases]
        b_now = builder.phi(_INTP)
        sums = [builder.phi(self.vector) for _ in range(rows * NV)]
        b_row = [self.load(self.at(b_now, j * self.bytes), self.vector) for j in range(NV)]
        new = []
        for i in range(rows):
            base = a_now[i // 3]
            address = [base, builder.add(base, a_row), builder.add(base, twice)][i % 3]
            number = self.broadcast(self.load(address, self.scalar))
            for j in range(NV):
                new.append(self.multiply_add(number, b_row[j], sums[i * NV + j]))
        one_less = builder.sub(left, _INTP(1))
        steps = [(left, depth, one_less), (b_now, b, builder.add(b_now, b_k))]
        steps += [(p, p0, builder.add(p, a_k)) for p, p0 in zip(a_now, bases, strict=True)]
        steps += [(s, ir.Constant(self.vector, None), t) for s, t in zip(sums, new, strict=True)]
        for phi, first, then in steps:
            phi.add_incoming(first, before)
            phi.add_incoming(then, loop)
        builder.cbranch(builder.icmp_signed(">", one_less, _INTP(0)), loop, after)

        builder.position_at_end(after)
        return new

    def prefetch(self, rows: int, c: Any, c_row: Any) -> None:
        """Emit a hint to fetch the tile of C, needed when the k-loop is over."""
        flag = ir.IntType(32)
        pointer = ir.IntType(8).as_pointer()
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag]),
            "llvm.prefetch.p0",
        )
        for i in range(rows):
            row = self.builder.add(c, self.builder.mul(c_row, _INTP(i)))
            for byte in range(0, NV * self.bytes, 64):
                address = self.builder.inttoptr(self.at(row, byte), pointer)
                self.builder.call(function, [address, flag(1), flag(3), flag(1)])

    def write(self, sums: list[Any], c: Any, c_row: Any, accumulate: Any) -> None:
        """Emit C = sums, or C += sums where `accumulate` is not zero."""
        builder = self.builder

        def each(add: bool) -> None:
            for i in range(len(sums) // NV):
                row = builder.add(c, builder.mul(c_row, _INTP(i)))
                for j in range(NV):
                    address, value = self.at(row, j * self.bytes), sums[i * NV + j]
                    if add:
                        value = builder.fadd(self.load(address, self.vector), value)
                    self.store(value, address)

        with builder.if_else(builder.icmp_signed("!=", accumulate, _INTP(0))) as (yes, no):
            with yes:
                each(add=True)
            with no:
                each(add=False)


@intrinsic
def tile_packed(_ctx: Any, a: Any, b: Any, depth: Any, c: Any, c_row: Any, add: Any, zero: Any) -> Any:
    """One full tile from packed panels: C[0:MR, 0:NR] (+)= A-panel times B-panel.

    The panels lie in memory as the loop reads them, k after k: AR numbers of A, NR numbers of B.
    `zero` is a number of the dtype wanted.
    """

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        a, b, depth, c, c_row, add, _ = args
        e = _Emitter(builder, zero)
        a_k, b_k = _INTP(e.tile.AR * e.item), _INTP(e.tile.NR * e.item)
        e.prefetch(e.tile.MR, c, c_row)
        sums = e.product(e.tile.MR, a, _INTP(e.item), a_k, b, b_k, depth)
        e.write(sums, c, c_row, add)
        return _context.get_dummy_value()

    return types.void(*[types.intp] * 6, zero), emit


@intrinsic
def tile_strided(
    _ctx: Any, rows: Any, a: Any, a_row: Any, a_k: Any, b: Any, b_k: Any, depth: Any,
    c: Any, c_row: Any, add: Any, zero: Any,
) -> Any:
    """A tile of at most `rows` rows from operands in any layout; returns how many it did.

    The rows of B must still be NR adjacent numbers.
    """

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        rows, a, a_row, a_k, b, b_k, depth, c, c_row, add, _ = args
        e = _Emitter(builder, zero)
        end = builder.append_basic_block("tile.end")
        done = []
        for height in tile_heights(e.tile.MR):
            fits = builder.append_basic_block(f"tile.{height}")
            smaller = builder.append_basic_block("tile.smaller")
            builder.cbranch(builder.icmp_signed(">=", rows, _INTP(height)), fits, smaller)
            builder.position_at_end(fits)
            e.write(e.product(height, a, a_row, a_k, b, b_k, depth), c, c_row, add)
            done.append((_INTP(height), builder.block))
            builder.branch(end)
            builder.position_at_end(smaller)
        done.append((_INTP(0), builder.block))
        builder.branch(end)
        builder.position_at_end(end)
        height = builder.phi(_INTP)
        for value, block in done:
            height.add_incoming(value, block)
        return height

    return types.intp(*[types.intp] * 10, zero), emit


@intrinsic
def transpose_block(
    _ctx: Any, source: Any, source_row: Any, last: Any, target: Any, target_row: Any, zero: Any
) -> Any:
    """Transpose VL x VL numbers. Rows of the source after `last` repeat it: they are not read."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        source, source_row, last, target, target_row, _ = args
        e = _Emitter(builder, zero)
        VL = e.tile.VL
        rows = []
        for i in range(VL):
            inside = builder.icmp_signed("<", _INTP(i), last)
            row = builder.select(inside, _INTP(i), last)
            rows.append(e.load(builder.add(source, builder.mul(row, source_row)), e.vector))
        # Swap the off-diagonal quarters of each 2d x 2d square, for d = 1, 2, 4, ...
        d = 1
        while d < VL:
            upper = [lane if not lane & d else VL + lane - d for lane in range(VL)]
            lower = [lane + d if not lane & d else VL + lane for lane in range(VL)]
            for i in range(VL):
                if not i & d:
                    x, y = rows[i], rows[i + d]
                    rows[i], rows[i + d] = e.shuffle(x, y, upper), e.shuffle(x, y, lower)
            d *= 2
        for i in range(VL):
            e.store(rows[i], builder.add(target, builder.mul(target_row, _INTP(i))))
        return _context.get_dummy_value()

    return types.void(*[types.intp] * 5, zero), emit


@intrinsic
def copy_vector(_ctx: Any, source: Any, target: Any, zero: Any) -> Any:
    """Copy VL adjacent numbers."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        source, target, _ = args
        e = _Emitter(builder, zero)
        e.store(e.load(source, e.vector), target)
        return _context.get_dummy_value()

    return types.void(types.intp, types.intp, zero), emit


@intrinsic
def load(_ctx: Any, address: Any, zero: Any) -> Any:
    """The number at `address`."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        e = _Emitter(builder, zero)
        return e.load(args[0], e.scalar)

    return zero(types.intp, zero), emit


@intrinsic
def store(_ctx: Any, address: Any, value: Any) -> Any:
    """Write one number at `address`."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        _Emitter(builder, value).store(args[1], args[0])
        return _context.get_dummy_value()

    return types.void(types.intp, value), emit
