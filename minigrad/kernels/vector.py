"""Instructions of our own: memory by address, vectors as wide as the machine's.

numba compiles loops over arrays and leaves vector code to the optimiser. Where the exact
instructions matter we emit them ourselves, as LLVM code for the vectors of the machine that the
kernel will run on: 16 floats with AVX-512, 8 with AVX2, 4 with SSE2 or NEON.

An intrinsic is two functions. The outer one sees the types of the arguments and returns the
signature; the inner one emits the code, given an IR builder and the argument values. Callers see
an ordinary function. Addresses are integers and steps are bytes; nothing is checked here. The
argument `zero` is any number of the dtype, and its value does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target

from minigrad.kernels.jit import intrinsic, jit

_numba: Any = numba  # whose own annotations cover a part of it
carray: Any = _numba.carray

I32, ADDRESS = ir.IntType(32), ir.IntType(64)


def has_feature(name: str) -> bool:
    """Return whether the machine that numba targets has a feature, by LLVM's name for it."""
    return f"+{name}" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")


def vector_registers() -> tuple[int, int]:
    """Return the bytes of a vector register, and their number, on the machine numba targets."""
    if has_feature("avx512f"):
        return 64, 32
    if has_feature("avx"):
        return 32, 16
    triple, *_ = cpu_target.target_context.codegen().magic_tuple()
    return 16, 32 if triple.startswith(("aarch64", "arm64")) else 16


def masks_are_cheap() -> bool:
    """Return whether the machine loads and stores a part of a vector in one instruction."""
    return vector_registers()[0] >= 32


class Emitter:
    """Emits code for the vectors of one dtype at the current position of an IR builder.

    Its vectors are as wide as the machine's, or have the given number of `lanes`.
    """

    def __init__(self, builder: Any, dtype: Any, lanes: int = 0) -> None:
        self.builder = builder
        self.item = dtype.bitwidth // 8
        self.lanes = lanes or vector_registers()[0] // self.item
        self.scalar = ir.FloatType() if self.item == 4 else ir.DoubleType()
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.vector_bytes = self.item * self.lanes

    def step(self, address: Any, stride: Any, times: int) -> Any:
        """Emit the address `times` strides further on."""
        return self.builder.add(address, self.builder.mul(stride, ADDRESS(times)))

    def load(self, address: Any, kind: Any) -> Any:
        """Emit the number or vector at an address."""
        # align=1: a view into a packed record may start anywhere, and it costs nothing to allow.
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=1)

    def store(self, value: Any, address: Any) -> None:
        """Emit a write of a number or vector at an address."""
        pointer = self.builder.inttoptr(address, value.type.as_pointer())
        self.builder.store(value, pointer, align=1)

    def first_lanes(self, count: Any) -> Any:
        """Emit a mask of the first `count` lanes: of all, if there are no more than that."""
        if vector_registers()[0] == 64 and self.lanes >= 8:
            # As bits, for which AVX-512 has registers. LLVM would move a comparison into the loop.
            most = self.builder.icmp_signed("<", count, ADDRESS(self.lanes))
            bits = self.builder.select(most, count, ADDRESS(self.lanes))
            bits = self.builder.sub(self.builder.shl(ADDRESS(1), bits), ADDRESS(1))
            mask = self.builder.trunc(bits, ir.IntType(self.lanes))
            return self.builder.bitcast(mask, ir.VectorType(ir.IntType(1), self.lanes))
        number = ir.VectorType(I32, self.lanes)
        limit = self._in_every_lane(self.builder.trunc(count, I32), number)
        return self.builder.icmp_signed(
            "<", ir.Constant(number, [I32(lane) for lane in range(self.lanes)]), limit
        )

    def load_some(self, address: Any, mask: Any) -> Any:
        """Emit the vector at an address; lanes outside of the mask are 0, and are not read."""
        pointer = self.vector.as_pointer()
        kinds = [pointer, I32, mask.type, self.vector]
        signature = ir.FunctionType(self.vector, kinds)
        name = f"llvm.masked.load.v{self.lanes}f{8 * self.item}.p0"
        function = self.builder.module.declare_intrinsic(name, (), signature)
        target = self.builder.inttoptr(address, pointer)
        return self.builder.call(function, [target, I32(1), mask, ir.Constant(self.vector, None)])

    def store_some(self, value: Any, address: Any, mask: Any) -> None:
        """Emit a write of the lanes of a vector in the mask; no other memory is touched."""
        pointer = self.vector.as_pointer()
        signature = ir.FunctionType(ir.VoidType(), [self.vector, pointer, I32, mask.type])
        name = f"llvm.masked.store.v{self.lanes}f{8 * self.item}.p0"
        function = self.builder.module.declare_intrinsic(name, (), signature)
        self.builder.call(function, [value, self.builder.inttoptr(address, pointer), I32(1), mask])

    def broadcast(self, number: Any) -> Any:
        """Emit a vector with `number` in every lane."""
        return self._in_every_lane(number, self.vector)

    def _in_every_lane(self, number: Any, kind: Any) -> Any:
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, number, I32(0))
        return self.shuffle(first, undefined, [0] * self.lanes)

    def shuffle(self, x: Any, y: Any, lanes: list[int]) -> Any:
        """Emit a vector of the numbered lanes of x and y laid end to end."""
        order = ir.Constant(ir.VectorType(I32, len(lanes)), lanes)
        return self.builder.shuffle_vector(x, y, order)

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        """Emit the vector x * y + z, in one instruction if the machine has it, or in two."""
        # llvm.fma would insist on a single rounding, and call the C library for it there.
        v = self.vector
        name = f"llvm.fmuladd.v{self.lanes}f{8 * self.item}"
        function = self.builder.module.declare_intrinsic(name, (), ir.FunctionType(v, [v, v, v]))
        return self.builder.call(function, [x, y, z])

    def look_up(self, table: list[float], indices: Any) -> Any:
        """Emit the vector of the numbers at 16 indices in a table of 16."""
        if vector_registers()[0] == 64:
            return self._taken("llvm.x86.avx512.permvar.sf.512", table, indices)
        if has_feature("avx2"):
            halves = []
            for lanes in (list(range(8)), list(range(8, 16))):
                half = self.shuffle(indices, indices, lanes)
                first, second = (
                    self._taken("llvm.x86.avx2.permps", part, half)  # by the last three bits
                    for part in (table[:8], table[8:])
                )
                is_late = self.builder.icmp_unsigned(">", half, ir.Constant(half.type, [7] * 8))
                halves.append(self.builder.select(is_late, second, first))
            return self.shuffle(halves[0], halves[1], list(range(16)))
        found = [ir.Constant(self.vector, [number] * 16) for number in table]
        for bit in range(4):
            bits = self.builder.and_(indices, ir.Constant(indices.type, [1 << bit] * 16))
            is_set = self.builder.icmp_unsigned("!=", bits, ir.Constant(indices.type, [0] * 16))
            pairs = zip(found[1::2], found[::2], strict=True)
            found = [self.builder.select(is_set, odd, even) for odd, even in pairs]
        return found[0]

    def _taken(self, instruction: str, table: list[float], indices: Any) -> Any:
        kind = ir.VectorType(self.scalar, len(table))
        signature = ir.FunctionType(kind, [kind, indices.type])
        function = self.builder.module.declare_intrinsic(instruction, (), signature)
        return self.builder.call(function, [ir.Constant(kind, table), indices])

    def loop(
        self, first: list[Any], body: Callable[[list[Any]], tuple[list[Any], Any]]
    ) -> list[Any]:
        """Emit a loop that runs at least once, and return the last values of its variables.

        Args:
            first: the first values of its variables.
            body: emits one round, given their values in it; returns their values in the next round,
                and whether there is one.
        """
        builder = self.builder
        before = builder.block
        loop, after = builder.append_basic_block("loop"), builder.append_basic_block("loop.end")
        builder.branch(loop)
        builder.position_at_end(loop)
        now = [builder.phi(value.type) for value in first]
        then, again = body(now)
        for variable, old, new in zip(now, first, then, strict=True):
            variable.add_incoming(old, before)
            variable.add_incoming(new, builder.block)
        builder.cbranch(again, loop, after)
        builder.position_at_end(after)
        return then

    def prefetch(self, address: Any, to_write: bool) -> None:
        """Emit a hint that the cache line at `address` will soon be read, or written.

        There may be no memory at that address: a hint never fails.
        """
        pointer = ir.IntType(8).as_pointer()
        signature = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
        function = self.builder.module.declare_intrinsic("llvm.prefetch.p0", (), signature)
        write, keep_close, data = I32(int(to_write)), I32(3), I32(1)
        self.builder.call(
            function, [self.builder.inttoptr(address, pointer), write, keep_close, data]
        )


@intrinsic
def prefetch(_typing: Any, address: Any) -> Any:
    """Hint that the cache line at `address` will soon be read; there may be no memory there."""

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        Emitter(builder, types.float32).prefetch(args[0], to_write=False)
        return context.get_dummy_value()

    return types.void(types.intp), emit


@intrinsic
def address_of(_typing: Any, array: Any) -> Any:
    """Return the address of the first number of an array; see `keep_alive`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        structure = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.ptrtoint(structure.data, ADDRESS)

    return types.intp(array), emit


@intrinsic
def _pointer(_typing: Any, address: Any, like: Any) -> Any:
    """Return an address as a pointer to numbers of the dtype of an array."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    pointer: Any = types.CPointer
    return pointer(like.dtype)(types.intp, like), emit


@jit(inline="always")
def elements(address: int, index: int, size: int, like: Any) -> Any:
    """Return `size` of the numbers at an address, from an index on, as an array.

    They have the dtype of `like`. The array owns nothing: whoever has the address keeps the memory.
    """
    return carray(_pointer(address + index * like.itemsize, like), (size,))


@intrinsic
def load(_typing: Any, address: Any, zero: Any) -> Any:
    """Return the number at `address`."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        e = Emitter(builder, zero)
        return e.load(args[0], e.scalar)

    return zero(types.intp, zero), emit


@intrinsic
def store(_typing: Any, address: Any, value: Any) -> Any:
    """Write one number at `address`."""

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        Emitter(builder, value).store(args[1], args[0])
        return context.get_dummy_value()

    return types.void(types.intp, value), emit


@intrinsic
def copy_vector(_typing: Any, source: Any, target: Any, zero: Any) -> Any:
    """Copy as many adjacent numbers as a vector has lanes."""

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        e = Emitter(builder, zero)
        e.store(e.load(args[0], e.vector), args[1])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, zero), emit


@intrinsic
def add_vector(_typing: Any, source: Any, target: Any, zero: Any) -> Any:
    """Add as many adjacent numbers as a vector has lanes to those at `target`."""

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        e = Emitter(builder, zero)
        total = builder.fadd(e.load(args[0], e.vector), e.load(args[1], e.vector))
        e.store(total, args[1])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, zero), emit


@intrinsic
def copy_some(_typing: Any, source: Any, target: Any, count: Any, zero: Any) -> Any:
    """Copy `count` adjacent numbers, fewer than a vector has lanes; the other lanes become 0."""

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        source, target, count, _ = args
        e = Emitter(builder, zero)
        e.store(e.load_some(source, e.first_lanes(count)), target)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3, zero), emit


@intrinsic
def transpose_block(
    _typing: Any, source: Any, source_row: Any, last: Any, target: Any, target_row: Any, zero: Any
) -> Any:
    """Transpose a square block, as many rows and columns as a vector has lanes.

    Rows of the source after number `last` need not exist: `last` is read instead of them.
    """

    def emit(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        source, source_row, last, target, target_row, _ = args
        e = Emitter(builder, zero)
        rows = []
        for i in range(e.lanes):
            exists = builder.icmp_signed("<", ADDRESS(i), last)
            row = builder.select(exists, ADDRESS(i), last)
            rows.append(e.load(builder.add(source, builder.mul(row, source_row)), e.vector))
        # In each square of 2d x 2d numbers swap the two d x d quarters off the diagonal.
        d = 1
        while d < e.lanes:
            lanes = range(e.lanes)
            upper = [e.lanes + lane - d if lane & d else lane for lane in lanes]
            lower = [e.lanes + lane if lane & d else lane + d for lane in lanes]
            for i in range(e.lanes):
                if not i & d:
                    x, y = rows[i], rows[i + d]
                    rows[i], rows[i + d] = e.shuffle(x, y, upper), e.shuffle(x, y, lower)
            d *= 2
        for i, row in enumerate(rows):
            e.store(row, e.step(target, target_row, i))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5, zero), emit


@intrinsic
def keep_alive(_typing: Any, array: Any) -> Any:
    """Mention an array whose address is in use: numba frees an array after its last mention."""

    def emit(context: Any, _builder: Any, _signature: Any, _args: Any) -> Any:
        return context.get_dummy_value()

    return types.void(array), emit
