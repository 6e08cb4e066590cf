"""Vector instructions for kernels: memory by address, and vectors as wide as the machine's.

numba compiles loops over arrays and leaves vector code to the optimiser. Where the exact
instructions matter, the functions here emit them as LLVM code, for the vectors of the machine that
runs the kernel: 16 floats with AVX-512, 8 with AVX, 4 with SSE2 or NEON.

An `instruction` is made from a function that emits the code, given an `Emitter` and the values of
the arguments. Callers see an ordinary function. Addresses are integers and steps are bytes; nothing
is checked here. The argument `zero` gives the dtype: it is any number of that dtype.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, cast

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import overload

from minigrad.kernels.jit import WORD, intrinsic, jit, target

P = ParamSpec("P")

I32, F32 = ir.IntType(32), ir.FloatType()


_SYSTEM, _, FEATURES = target()
"""The instruction sets of the machine that numba targets, by LLVM's names."""

VECTOR, REGISTERS = 16, 32 if _SYSTEM.startswith(("aarch64", "arm64")) else 16
if "avx" in FEATURES:
    VECTOR, REGISTERS = (64, 32) if "avx512f" in FEATURES else (32, 16)
"""The bytes of a vector register, and the number of registers."""

MASKS_ARE_CHEAP = VECTOR >= 32
"""Whether the machine can load or store a part of a vector in one instruction."""

MASKS_ARE_FREE = VECTOR == 64
"""Whether masks have their own registers, and so use none of the vector registers."""


class Emitter:
    """Emits code for the vectors of one dtype at the current position of an IR builder.

    Its vectors are as wide as the machine's, or have the given number of `lanes`.
    """

    def __init__(self, builder: Any, dtype: Any, lanes: int = 0) -> None:
        self.builder = builder
        self.dtype = dtype
        self.item = dtype.bitwidth // 8
        self.lanes = lanes or VECTOR // self.item
        self.scalar = F32 if self.item == 4 else ir.DoubleType()
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.vector_bytes = self.item * self.lanes

    def of_lanes(self, lanes: int) -> Emitter:
        """Return an emitter for vectors of the same dtype with another number of lanes."""
        return Emitter(self.builder, self.dtype, lanes)

    def step(self, address: Any, stride: Any, times: int) -> Any:
        """Emit the address `times` strides after `address`."""
        return self.builder.add(address, self.builder.mul(stride, WORD(times)))

    def addresses(self, first: Any, step: Any, number: int, exist: Any) -> list[Any]:
        """Emit addresses, `step` bytes apart; those after the first `exist` repeat the last one."""
        builder, found = self.builder, []
        last = builder.sub(exist, WORD(1))
        for i in range(number):
            index = builder.select(builder.icmp_signed("<", WORD(i), last), WORD(i), last)
            found.append(builder.add(first, builder.mul(step, index)))
        return found

    def load(self, address: Any, kind: Any, mask: Any = None) -> Any:
        """Emit a load of a number or vector; lanes outside of a mask are 0, and are not read."""
        pointer = self.builder.inttoptr(address, kind.as_pointer())
        if mask is None:
            # align=1, because a view into a packed record may be misaligned; this costs no time.
            return self.builder.load(pointer, align=1)
        name = f"llvm.masked.load.v{self.lanes}f{8 * self.item}.p0"
        return self.call(name, kind, pointer, I32(1), mask, ir.Constant(kind, None))

    def store(self, value: Any, address: Any, mask: Any = None) -> None:
        """Emit a store of a number or vector; with a mask, only of the lanes in it."""
        pointer = self.builder.inttoptr(address, value.type.as_pointer())
        if mask is None:
            self.builder.store(value, pointer, align=1)
        else:
            name = f"llvm.masked.store.v{self.lanes}f{8 * self.item}.p0"
            self.call(name, ir.VoidType(), value, pointer, I32(1), mask)

    def first_lanes(self, count: Any) -> Any:
        """Emit a mask of the first `count` lanes, or of all lanes if `count` is larger."""
        if MASKS_ARE_FREE and self.lanes >= 8:
            # As bits: AVX-512 has registers for them. LLVM would move a comparison into the loop.
            most = self.builder.icmp_signed("<", count, WORD(self.lanes))
            bits = self.builder.select(most, count, WORD(self.lanes))
            bits = self.builder.sub(self.builder.shl(WORD(1), bits), WORD(1))
            mask = self.builder.trunc(bits, ir.IntType(self.lanes))
            return self.builder.bitcast(mask, ir.VectorType(ir.IntType(1), self.lanes))
        number = ir.VectorType(I32, self.lanes)
        limit = self.broadcast(self.builder.trunc(count, I32))
        return self.builder.icmp_signed(
            "<", ir.Constant(number, [I32(lane) for lane in range(self.lanes)]), limit
        )

    def hidden(self, value: Any) -> Any:
        """Emit an integer unchanged, so that the compiler cannot know how it was computed."""
        kind = ir.FunctionType(value.type, [value.type])
        return self.builder.asm(kind, "", "=r,0", [value], False)

    def store_or_add(
        self, values: list[Any], addresses: list[Any], add: Any, masks: Sequence[Any] = ()
    ) -> None:
        """Emit a store of numbers or vectors at addresses; if `add`, add them to the old values.

        Where a mask is given and not None, only its lanes are written.
        """
        each = list(zip(addresses, masks or [None] * len(addresses), strict=True))

        def store_all(values: list[Any]) -> None:
            for value, (address, mask) in zip(values, each, strict=True):
                self.store(value, address, mask)

        adds = self.builder.icmp_signed("!=", add, WORD(0))
        with self.builder.if_else(adds) as (to_old, as_new):
            with to_old:
                # All loads come first. A load waits for an earlier store if the last 12 bits of
                # their addresses are equal, as in rows at a distance of a power of two.
                pairs = zip(values, each, strict=True)
                old = [self.load(at, value.type, mask) for value, (at, mask) in pairs]
                store_all([self.builder.fadd(x, y) for x, y in zip(old, values, strict=True)])
            with as_new:
                store_all(values)

    def broadcast(self, number: Any) -> Any:
        """Emit a vector with `number` in every lane."""
        undefined = ir.Constant(ir.VectorType(number.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, number, I32(0))
        return self.shuffle(first, undefined, [0] * self.lanes)

    def shuffle(self, x: Any, y: Any, lanes: list[int]) -> Any:
        """Emit a vector of the lanes with these numbers, which count through x and then y."""
        order = ir.Constant(ir.VectorType(I32, len(lanes)), lanes)
        return self.builder.shuffle_vector(x, y, order)

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        """Emit the vector x * y + z, in one instruction if the machine has it, or in two."""
        # Without such an instruction, llvm.fma would call a slow function of the C library.
        return self.call(f"llvm.fmuladd.v{self.lanes}f{8 * self.item}", self.vector, x, y, z)

    def look_up(self, table: list[float], indices: Any, factor: Any = None) -> Any:
        """Emit the vector of the numbers at some indices in a table of 16, times a factor if given.

        If the machine can permute lanes, the table is multiplied by the factor instead of the
        result, because LLVM can move this out of a loop.
        """
        builder, lanes = self.builder, 16 if VECTOR == 64 else 8
        if lanes == 16 or "avx2" in FEATURES:
            e, found = self.of_lanes(lanes), []
            name = "llvm.x86.avx512.permvar.sf.512" if lanes == 16 else "llvm.x86.avx2.permps"
            parts = [ir.Constant(e.vector, table[i : i + lanes]) for i in range(0, 16, lanes)]
            if factor is not None:
                parts = [builder.fmul(part, e.broadcast(factor)) for part in parts]
            for i in range(0, self.lanes, lanes):
                some = self.shuffle(indices, indices, list(range(i, i + lanes)))
                taken = [self.call(name, e.vector, part, some) for part in parts]  # by lower bits
                is_late = builder.icmp_unsigned(">", some, ir.Constant(some.type, [7] * lanes))
                found.append(taken[0] if lanes == 16 else builder.select(is_late, *taken[::-1]))
            return self.shuffle(found[0], found[-1], list(range(self.lanes)))
        numbers = [ir.Constant(self.vector, [number] * self.lanes) for number in table]
        for bit in range(4):
            bits = builder.and_(indices, ir.Constant(indices.type, [1 << bit] * self.lanes))
            is_set = builder.icmp_unsigned("!=", bits, ir.Constant(indices.type, None))
            pairs = zip(numbers[1::2], numbers[::2], strict=True)
            numbers = [builder.select(is_set, odd, even) for odd, even in pairs]
        return numbers[0] if factor is None else builder.fmul(numbers[0], self.broadcast(factor))

    def call(self, name: str, returns: Any, *arguments: Any) -> Any:
        """Emit a call of one of LLVM's intrinsic functions, given its name and result type."""
        signature = ir.FunctionType(returns, [x.type for x in arguments])
        function = self.builder.module.declare_intrinsic(name, (), signature)
        return self.builder.call(function, arguments)

    def loop(
        self, first: list[Any], body: Callable[[list[Any]], tuple[list[Any], Any]]
    ) -> list[Any]:
        """Emit a loop that runs at least once, and return the last values of its variables.

        `body` emits one iteration, given the values of the variables. It returns their values for
        the next iteration, and whether there is one.
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

    def for_range(
        self, first: Any, end: Any, step: int, values: list[Any],
        body: Callable[[Any, list[Any]], list[Any] | None],
    ) -> list[Any]:  # fmt: skip
        """Emit a loop over the numbers from `first` to before `end`; return the last values.

        `body` emits one iteration, given a number and the values, and returns the next values.
        """

        def emit(now: list[Any]) -> tuple[list[Any], Any]:
            at, *values = now
            then = self.builder.add(at, WORD(step))
            return [then, *(body(at, values) or [])], self.builder.icmp_signed("<", then, end)

        def rounds() -> list[Any]:
            return self.loop([first, *values], emit)[1:]

        return self.choose([(self.builder.icmp_signed("<", first, end), rounds)], lambda: values)

    def unrolled(
        self, count: Any, values: list[Any], body: Callable[[int, list[Any]], list[Any]],
        times: int,
    ) -> list[Any]:  # fmt: skip
        """Emit a loop of `count` >= 1 steps, `times` in one iteration while so many are left.

        `body` emits a number of steps, given the values, and returns the next values.
        """

        def emit(steps: int, now: list[Any]) -> tuple[list[Any], Any]:
            then = body(steps, now[1:])
            left = self.builder.sub(now[0], WORD(steps))
            return [left, *then], self.builder.icmp_signed(">=", left, WORD(steps))

        now = [count, *values]
        if times == 1:
            return self.loop(now, functools.partial(emit, 1))[1:]
        for steps in (times, 1):
            is_enough = self.builder.icmp_signed(">=", now[0], WORD(steps))
            rounds = functools.partial(self.loop, now, functools.partial(emit, steps))
            now = self.choose([(is_enough, rounds)], functools.partial(list, now))
        return now[1:]

    def prefetch(self, address: Any, to_write: bool, level: int = 1) -> None:
        """Emit a prefetch of the cache line at `address`, which will soon be read, or written.

        The line is brought into the cache of level 1, 2 or 3. The address may be invalid: a
        prefetch never fails.
        """
        pointer = self.builder.inttoptr(address, ir.IntType(8).as_pointer())
        write, keep_close, data = I32(int(to_write)), I32(4 - level), I32(1)
        self.call("llvm.prefetch.p0", ir.VoidType(), pointer, write, keep_close, data)

    def choose(
        self,
        cases: Sequence[tuple[Any, Callable[[], list[Any] | None]]],
        otherwise: Callable[[], list[Any] | None],
    ) -> list[Any]:
        """Emit a choice: the first case whose condition is true runs, or else `otherwise`.

        The code of each is emitted by a function, which may return values. The result is the values
        of the code that runs.
        """
        builder, ends = self.builder, []
        after = builder.append_basic_block("choice.end")
        for condition, emit in cases:
            here, other = (builder.append_basic_block(name) for name in ("choice", "else"))
            builder.cbranch(condition, here, other)
            builder.position_at_end(here)
            ends.append((emit() or [], builder.block))
            builder.branch(after)
            builder.position_at_end(other)
        ends.append((otherwise() or [], builder.block))
        builder.branch(after)
        builder.position_at_end(after)
        chosen = [builder.phi(value.type) for value in ends[0][0]]
        for values, block in ends:
            for variable, value in zip(chosen, values, strict=True):
                variable.add_incoming(value, block)
        return chosen


DTYPE = object()
"""A result type of an instruction: the dtype of the numbers among its arguments."""


def instruction(
    returns: Any = types.void,
) -> Callable[[Callable[Concatenate[Emitter, P], Any]], Callable[P, Any]]:
    """Make an instruction from a function that emits its code, and returns its value if any.

    The function gets an `Emitter` for the dtype of the floats among the arguments (float32 if there
    are none), and the values of the arguments. `returns` is numba's type of the result.
    """

    def decorate(emit: Callable[Concatenate[Emitter, P], Any]) -> Callable[P, Any]:
        function: Callable[..., Any] = emit

        @functools.wraps(function)
        def typed(_typing: Any, *given: Any) -> Any:
            # Literals and booleans are passed as 64-bit integers, like addresses and counts.
            wide = (types.Boolean, types.IntegerLiteral)
            arguments = [types.intp if isinstance(kind, wide) else kind for kind in given]
            dtype = next((x for x in arguments if isinstance(x, types.Float)), types.float32)

            def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
                value = function(Emitter(builder, dtype), *args)
                return context.get_dummy_value() if value is None else value

            return (dtype if returns is DTYPE else returns)(*arguments), build

        return cast(Callable[P, Any], intrinsic(typed))

    return decorate


@intrinsic
def address_of(_typing: Any, array: Any) -> Any:
    """Return the address of the first number of an array; see `keep_alive`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        structure = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.ptrtoint(structure.data, WORD)

    return types.intp(array), emit


@intrinsic
def _pointer(_typing: Any, address: Any, like: Any) -> Any:
    """Return an address as a pointer to numbers of the dtype of an array."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.intp, like), emit


@jit(inline="always")
def elements(address: int, index: int, size: int, like: Any) -> Any:
    """Return `size` numbers after an address, from an index on, as an array.

    They have the dtype of `like`. The array does not own the memory: the caller keeps it alive.
    """
    return carray(_pointer(address + index * like.itemsize, like), (size,))


@intrinsic
def load(_typing: Any, address: Any, like: Any) -> Any:
    """Return the number at an address: a float or an integer of the type of `like`."""

    def emit(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        pointer = builder.inttoptr(values[0], context.get_value_type(like).as_pointer())
        return builder.load(pointer, align=1)

    return like(types.intp, like), emit


@instruction()
def store(e: Emitter, address: Any, value: Any) -> None:
    """Write one number at `address`."""
    e.store(value, address)


@instruction()
def copy_vector(e: Emitter, source: Any, target: Any, _zero: Any) -> None:
    """Copy as many adjacent numbers as a vector has lanes."""
    e.store(e.load(source, e.vector), target)


@instruction()
def add_vector(e: Emitter, source: Any, target: Any, _zero: Any) -> None:
    """Add as many adjacent numbers as a vector has lanes to those at `target`."""
    e.store(e.builder.fadd(e.load(source, e.vector), e.load(target, e.vector)), target)


@instruction()
def copy_some(e: Emitter, source: Any, target: Any, count: Any, _zero: Any) -> None:
    """Copy `count` adjacent numbers, fewer than a vector has lanes; the other lanes become 0."""
    e.store(e.load(source, e.vector, e.first_lanes(count)), target)


@instruction(DTYPE)
def _flushed_number(e: Emitter, x: Any) -> Any:
    """Return a number, or 0 if its exponent has no bits."""
    kind = ir.IntType(8 * e.item)
    exponent = kind(0x7F800000 if e.item == 4 else 0x7FF0000000000000)
    bits = e.builder.and_(e.builder.bitcast(x, kind), exponent)
    return e.builder.select(e.builder.icmp_unsigned("==", bits, kind(0)), e.scalar(0), x)


def flushed(x: Any) -> Any:
    """Return x, with 0 for subnormal numbers ("flush to zero").

    A number that is multiplied by the same factor again and again would shrink to a subnormal
    number and stay there, because of rounding. Arithmetic with such numbers is ten times as slow.
    """
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, x.dtype.type(0), x)


overload(flushed, strict=False)(lambda x: lambda x: _flushed_number(x))


@instruction(DTYPE)
def _greatest(e: Emitter, at: Any, count: Any, _zero: Any) -> Any:
    """Return the greatest of `count` adjacent numbers from an address on.

    A loop in Python would not become vector code, because the optimiser must keep the order of
    comparisons: it matters if a number is nan.
    """
    # 32 bytes at most, as in LLVM's own vector code: with wider vectors, loops around are slow.
    e = e.of_lanes(min(e.lanes, 32 // e.item))
    builder = e.builder
    least = ir.Constant(e.vector, [-math.inf] * e.lanes)
    end = builder.add(at, builder.mul(count, WORD(e.item)))
    last = builder.sub(end, WORD(e.vector_bytes))

    def greater(x: Any, y: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", x, y), x, y)

    def of_a_part() -> list[Any]:
        mask = e.first_lanes(count)
        return [builder.select(mask, e.load(at, e.vector, mask), least)]

    def four_vectors(now: list[Any]) -> tuple[list[Any], Any]:
        here, *most = now
        new = []
        for found in most:  # the last vector may overlap with others
            before = builder.select(builder.icmp_signed("<", here, last), here, last)
            new.append(greater(e.load(before, e.vector), found))
            here = builder.add(here, WORD(e.vector_bytes))
        return [here, *new], builder.icmp_signed("<", here, end)

    def of_vectors() -> list[Any]:
        return [functools.reduce(greater, e.loop([at, *[least] * 4], four_vectors)[1:])]

    is_short = builder.icmp_signed("<", count, WORD(e.lanes))
    (result,) = e.choose([(is_short, of_a_part)], of_vectors)
    half = e.lanes // 2
    while half:
        turned = [(lane + half) % e.lanes for lane in range(e.lanes)]
        result = greater(result, e.shuffle(result, result, turned))
        half //= 2
    return builder.extract_element(result, I32(0))


@jit()
def greatest_of(row: Any) -> Any:
    """Return the greatest number of a row, without regard to nan; -inf for an empty row."""
    return _greatest(address_of(row), row.size, row.dtype.type(0))


@instruction()
def cut_row(e: Emitter, row: Any, count: Any, size: Any, _zero: Any) -> None:
    """Write -inf over the numbers after the first `count` in a row of `size`: complete vectors."""
    builder, least = e.builder, ir.Constant(e.vector, [-math.inf] * e.lanes)

    def cut_vector(n: Any, _: list[Any]) -> None:
        at, left = builder.add(row, builder.mul(n, WORD(e.item))), builder.sub(count, n)
        some = builder.select(builder.icmp_signed(">", left, WORD(0)), left, WORD(0))
        e.store(builder.select(e.first_lanes(some), e.load(at, e.vector), least), at)

    e.for_range(builder.and_(count, WORD(-e.lanes)), size, e.lanes, [], cut_vector)


@instruction()
def transpose_block(
    e: Emitter, source: Any, source_row: Any, exist: Any, target: Any, target_row: Any, _zero: Any
) -> None:
    """Transpose a square block with as many rows and columns as a vector has lanes.

    If only the first `exist` rows of the source exist, the last of these is read for the others.
    """
    rows = [e.load(at, e.vector) for at in e.addresses(source, source_row, e.lanes, exist)]
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


@instruction()
def keep_alive(_e: Emitter, _arrays: Any) -> None:
    """Use an array, or a tuple of arrays, whose addresses are in use.

    It stands at the end of a function, because numba frees arrays after their last use. Arguments
    of a function live as long as the call, and do not need this.
    """


@instruction()
def prefer_full_vectors(e: Emitter) -> None:
    """Let LLVM use full vectors in the loops of the function that calls this.

    For most processors with AVX-512 it uses half vectors otherwise, because full vectors lower the
    clock of the oldest of them. A loop that computes much for each element gains more.
    """
    attribute = f'"prefer-vector-width"="{8 * VECTOR}"'
    set.add(e.builder.function.attributes, attribute)  # its own `add` refuses a value
