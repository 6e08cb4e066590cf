"""The compiled products: functions of arrays, and of a plan with all sizes.

A plan is one array of integers, because each further argument makes a call slower:

    MR NR VL AR MC KC NC RUN near split unit     the sizes that `gemm.blocking` finds, and addresses
    add                                          whether to add to what is there
    count                                        how many products, one after another in `out`
    length, step of x, step of y                 for each leading axis of a batch

`gemm.dispatch` has checked the arrays. The functions here turn them into addresses and steps, with
which `gemm.macrokernel` computes.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numba import types

from minigrad.kernels.gemm.macrokernel import (
    NO_BIAS,
    SHALLOW,
    Extra,
    block_depth,
    choose_packing,
    group_size,
    multiply,
    multiply_block,
    offset_of_block,
    pack_columns,
    work_size,
)
from minigrad.kernels.gemm.matrix_unit import COMPILED, multiply_split, split_panels
from minigrad.kernels.gemm.microkernel import CACHE_LINE, NO_BLOCK, first_line
from minigrad.kernels.gemm.packing import BlockSizes, Matrix, part_of, transposed
from minigrad.kernels.jit import SINGLE, Integers, Strided, Written, address_for, external, jit
from minigrad.kernels.launch import for_each_dtype, share, span
from minigrad.kernels.vector import VECTOR, address_of, keep_alive

ROWS_OF_A_PIECE = 48  # the least rows for which a thread packs all of B for itself
ALIGNED_FROM = 32  # panels of B for which it pays to begin with a few columns
SIZES = 11  # numbers at the head of a plan
SPLIT, UNIT = SIZES - 2, SIZES - 1  # where the addresses of the matrix unit's functions are
ADD, COUNT, HEADER = SIZES, SIZES + 1, SIZES + 2  # where the other parts of a plan are
Bytes = Annotated[Written.D1, types.uint8]


@jit(inline="always")
def blocks_of(plan: Any, array: Any) -> BlockSizes:
    """Return the sizes at the head of a plan, and the dtype of `array`."""
    return BlockSizes(
        plan[0], plan[1], plan[2], plan[3], plan[4], plan[5], plan[6], plan[7], plan[8],
        plan[9], plan[10], array.itemsize, array.dtype.type(0),
    )  # fmt: skip


@jit(inline="always")
def locate(plan: Any, index: int, operand: int) -> int:
    """Return the bytes from an operand's first matrix to its matrix in product number `index`.

    After its head, a plan has three integers for each leading axis: the length of the axis, and the
    steps of operand 1 and of operand 2.
    """
    offset = 0
    for axis in range(plan.size - 3, HEADER - 1, -3):
        offset += index % plan[axis] * plan[axis + operand]
        index //= plan[axis]
    return offset


@jit(inline="always")
def matrix_of(array: Any) -> Matrix:
    """Return the address and the steps of a two-dimensional array."""
    return Matrix(address_of(array), array.strides[0], array.strides[1])


@jit(inline="always")
def bias_of(row: Any) -> Matrix:
    """Return a matrix whose rows are all `row`; `NO_BIAS` if `row` is empty."""
    return Matrix(address_of(row) if row.size else 0, 0, row.strides[0])


@jit(inline="always")
def columns_before_line(t: BlockSizes, C: Matrix) -> int:
    """Return the columns of C before the first one that begins a cache line, in all rows.

    It is 0 if the rows differ in this. Arrays of numpy begin anywhere in a line.
    """
    if C.row % CACHE_LINE or C.col != t.item:
        return 0
    return -C.at % CACHE_LINE // t.item


@external()
def multiply_run(
    launcher: int, pieces: int, x: Any, y: Any, bias: Matrix, out: Any, plan: Any, start: int,
    stop: int,
) -> None:  # fmt: skip
    """Compute the products from number `start` to before `stop` in a batch, and add the bias.

    Each product is shared as `pieces` pieces.
    """
    m, k, n = x.shape[0], x.shape[1], y.shape[1]
    t = blocks_of(plan, x)
    a, b, C = matrix_of(x), matrix_of(y), matrix_of(out)
    if n == 1:  # a column is contiguous, whatever the step to the next one would be
        b = Matrix(b.at, b.row, t.item)
    operand_a, operand_b = 1, 2  # which operands of the plan `a` and `b` are
    if 2 * n <= t.NR and n < m and a.row == t.item and not t.split:
        # Few columns, and columns of A are contiguous: in C^T = B^T A^T, rows of A^T fill tiles.
        m, n, operand_a, operand_b = n, m, 2, 1
        a, b, C, bias = transposed(b), transposed(a), transposed(C), transposed(bias)
    choice = choose_packing(t, m, n, k, a, b, 0)
    # Matrices that fit in a level-2 cache together need no loops over blocks.
    one_block = max(m * k, k * n, m * n) * t.item <= 2 * t.near
    one_block = one_block and not t.split and k <= t.KC and n <= t.NC and C.col == t.item
    # For few steps of k, reading A in place takes no longer than packing it, even if steps collide.
    one_block = one_block and (k <= SHALLOW or not choice.pack_a)
    one_block = one_block and (pieces == 1 or m >= pieces * ROWS_OF_A_PIECE)
    # With few steps of k, writing C takes most of the time. If a vector is as long as a cache line,
    # and does not begin one, it is in two of them, and takes twice as long to write. So the columns
    # before a line are computed by themselves. (Not on a matrix unit: there, infinity in a column
    # changes how the others of its panel are added, so the panels must not depend on addresses.)
    aligns = VECTOR == CACHE_LINE and k <= SHALLOW and n >= ALIGNED_FROM * t.NR and not t.split
    add, size = plan[ADD] != 0, m * n * t.item
    has_room = choice.pack_b and not one_block
    work = np.empty(work_size(t, n, min(k, block_depth(t, k))) if has_room else 0, np.uint8)
    room = first_line(work)
    for index in range(start, stop):
        A = Matrix(a.at + locate(plan, index, operand_a), a.row, a.col)
        matrix = Matrix(b.at + locate(plan, index, operand_b), b.row, b.col)
        target = Matrix(C.at + index * size, C.row, C.col)
        first, j = columns_before_line(t, target) if aligns else 0, 0
        while j < n:
            cols = first if j < first else n - j
            B, part = part_of(matrix, 0, j), part_of(target, 0, j)
            row = part_of(bias, 0, j) if bias.at else NO_BIAS
            if one_block:
                arguments = t, m, cols, k, A, B, part, add, choice.pack_b, row
                share(launcher, pieces, multiply_block, arguments)
            else:
                more = Extra(row, 0, a, b, 0)
                multiply(launcher, pieces, t, m, cols, k, A, B, part, add, choice, room, 0, more)
            j += cols
    keep_alive(work)


@for_each_dtype(shares=True)
def gemm(
    launcher: int, pieces: int, x: Strided.D2, y: Strided.D2, bias: Strided.D1, out: Written.D2,
    plan: Integers,
) -> None:  # fmt: skip
    """Write or add products x @ y, one after another, from the first number of `out` on.

    `x`, `y` and `out` are the matrices of the first product; `locate` finds the others. A bias is
    added to each row; one of length 0 means no bias. Threads share the work of each product.
    """
    multiply_run(launcher, pieces, x, y, bias_of(bias), out, plan, 0, plan[COUNT])


@for_each_dtype()
def gemm_batch(
    piece: int, pieces: int, x: Strided.D2, y: Strided.D2, out: Written.D2, plan: Integers
) -> None:
    """Compute the products of `gemm`, where each thread computes complete products."""
    numbers = span(piece, pieces, plan[COUNT])
    multiply_run(0, 1, x, y, NO_BIAS, out, plan, numbers.start, numbers.stop)


def _write_addresses(_piece: int, _pieces: int, like: Strided.D1, plan: Integers) -> None:
    """Complete a plan for the matrix unit by the addresses of its functions."""
    t, C = blocks_of(plan, like), Matrix(0, 0, 0)
    plan[SPLIT] = address_for(split_panels, (t, C, 0, 0, False, 0))
    plan[UNIT] = address_for(multiply_split, (t, 0, 0, 0, 0, 0, 0, 0, 0, C, False, 0, NO_BLOCK))


write_addresses = for_each_dtype(SINGLE, threads=False)(_write_addresses) if COMPILED else {}
"""The kernel that completes plans for the matrix unit, if the processor has one."""


@for_each_dtype(shares=True)
def pack_all(launcher: int, _pieces: int, y: Strided.D2, panels: Bytes, plan: Integers) -> None:
    """Pack all of y into an array of bytes, in the order in which `multiply` reads it."""
    t = blocks_of(plan, y)
    b, (k, n) = matrix_of(y), y.shape
    first, size = first_line(panels), block_depth(t, k)
    for jc in range(0, n, t.NC):
        cols = min(t.NC, n - jc)
        count = (cols + t.NR - 1) // t.NR
        for pc in range(0, k, size):
            depth = min(size, k - pc)
            at = first + offset_of_block(t, jc, pc, k, size, count)
            groups = (count + group_size(t) - 1) // group_size(t)
            share(launcher, groups, pack_columns, (t, part_of(b, pc, jc), cols, depth, at))


@for_each_dtype(shares=True)
def gemm_packed(
    launcher: int, pieces: int, x: Strided.D2, y: Strided.D2, panels: Bytes, x2: Strided.D2,
    y2: Strided.D2, bias: Strided.D1, out: Written.D2, plan: Integers,
) -> None:  # fmt: skip
    """Compute out = x y + x2 y2 + bias, where `panels` are those that `pack_all` made from y.

    On the matrix unit, `panels` may have length 0; then y is packed here. A bias of length 0 means
    no bias.
    """
    m, k, n, steps = x.shape[0], x.shape[1], y.shape[1], x2.shape[1]
    t = blocks_of(plan, x)
    a, b, C = matrix_of(x), matrix_of(y), matrix_of(out)
    prepacked = first_line(panels) if panels.size else 0
    choice = choose_packing(t, m, n, k, a, b, prepacked)
    size = work_size(t, n, steps)
    work = np.empty(size + (0 if prepacked else work_size(t, n, block_depth(t, k))), np.uint8)
    more = Extra(bias_of(bias), steps, matrix_of(x2), matrix_of(y2), first_line(work))
    room = first_line(work) + size - CACHE_LINE
    multiply(launcher, pieces, t, m, n, k, a, b, C, False, choice, room, prepacked, more)
    keep_alive(work)
