"""Matrix products of arrays: `matmul` checks its arguments and calls the compiled loops.

The loops compute with addresses and do not check them. So `matmul` takes shapes and strides from
numpy, and makes or checks the output. Each loop is compiled once for each dtype, for the most
general type of array: any strides, possibly read-only, possibly misaligned.

The shapes and the strides of the operands decide which loop runs (`Products.multiply`):

    one row and one column, contiguous                            skinny.inner
    one row, and a matrix with contiguous rows                    skinny.sweep
    few columns, and a large matrix whose rows run along k        skinny.dots
    few rows, and a large matrix with contiguous rows             skinny.stream
    k much larger than m and n: pieces of k are a batch, summed   products.gemm_batch
    every other product                                           products.gemm

Each loop in `skinny` also computes the transposed product. If the processor has a matrix unit,
large products of float32 run on it (`gemm.matrix_unit`); the choice depends on the sizes alone, so
that the number of threads cannot change a bit. For a matrix that is multiplied with often, see
`minigrad.kernels.gemm.prepacked`.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy import empty, ndarray

from minigrad.errors import op_error
from minigrad.kernels.gemm import products, skinny
from minigrad.kernels.gemm.blocking import block_sizes, unit_block_sizes
from minigrad.kernels.gemm.macrokernel import SHALLOW
from minigrad.kernels.gemm.matrix_unit import is_available
from minigrad.kernels.gemm.microkernel import tile_shape
from minigrad.kernels.jit import SINGLE, Array, nothing
from minigrad.kernels.threads import get_num_threads
from minigrad.kernels.vector import MASKS_ARE_CHEAP

SECONDS = 2e-11  # seconds of a multiply-add on one thread, at best: float32 with AVX-512
SECONDS_OF_A_BYTE = 5e-11  # seconds to read a byte from memory, which limits skinny products
THREADS_FROM = 900_000  # multiply-adds; a smaller product runs on the calling thread
LONG = 32  # the least steps of k for which the loops of `skinny` are faster
TALL = 64  # the least rows of x for which a copy of the few columns pays
STREAMED = 32  # the most rows of x for which `skinny` reads y without packing it
LARGE = 16384  # numbers of y; a loop of `skinny` pays only for a larger one, as its call is slower
COPIED = 65536  # the same if the result of `stream` must be copied to columns
PIECES = 24  # pieces of a batch: 2, 3, 4, 6, 8 or 12 threads get equal numbers of them
COLLIDING = 512  # bytes: rows at a distance that is a multiple of this share few cache lines
DEEP = 512  # the least steps of k for which `dots` may be faster if columns fill a vector
SPLIT = 1024  # the least steps of k in a piece of a long sum
UNIT_FROM = 1 << 23  # multiply-adds from which packing three parts pays, on two threads as well
PLANS = 256  # plans of batches that are kept, because making one takes as long as a small product

Axes = tuple[tuple[int, int, int], ...]  # length and two steps for each axis, as `products` says


def matmul(
    x: Array, y: Array, *, out: Array | None = None, add: bool = False, bias: Array | None = None
) -> Array:
    """Compute the matrix product x @ y, `(..., m, k) @ (..., k, n) -> (..., m, n)`.

    Leading axes broadcast as in numpy. The kernels multiply two float32 or two float64 arrays of
    any strides. `np.matmul` computes every other product that it accepts: of integers, mixed
    dtypes, vectors and subclasses of ndarray.

    Args:
        x: the left operand.
        y: the right operand.
        out: a C-contiguous array to write the product to, with its shape and dtype, which shares no
            memory with x and y. The default is a new array.
        add: add the product to `out` instead of replacing the content of `out`.
        bias: `(n,)`, to be added to each row of a new array, as if by a separate addition.

    Returns:
        The product: `out` if it is given.

    Raises:
        ValueError: if shapes do not align or broadcast, if the product cannot be written to `out`,
            if `add` is given without `out`, or if a bias has another shape or is given with `out`.
    """
    dtype = x.dtype
    compiled = PRODUCTS.get(dtype)
    if type(x) is not ndarray or type(y) is not ndarray or y.dtype != dtype:
        compiled = None
    if bias is not None and (
        out is not None
        or add
        or compiled is None
        or not x.ndim == y.ndim == 2
        or type(bias) is not ndarray
        or bias.dtype != dtype
        or bias.shape != y.shape[1:]
    ):
        return _add_after_product(x, y, out, add, bias)
    if compiled is None:
        return _numpy_matmul(x, y, out, add)
    try:
        (m, k), (k_y, n) = x.shape, y.shape
    except ValueError:  # not two axes each
        return _matmul_stacks(compiled, x, y, out, add)
    if k != k_y:
        _product_shape(x, y)  # raises an error
    if out is None and not add:
        out = empty((m, n), dtype)
    else:
        out = _checked(out, (m, n), dtype, x, y)
    work, (fewer, more) = m * n * k, (m, n) if m < n else (n, m)
    if 0 < work < THREADS_FROM and (
        k < LONG or fewer > STREAMED or (k * more <= LARGE and (more > 1 or k < DEEP))
    ):
        # `multiply` would choose the same. A direct call is faster, which counts here because a
        # program computes many small products.
        row = compiled.no_bias if bias is None else bias
        compiled.gemm.alone(x, y, row, out, compiled.plans[add])
    else:
        compiled.multiply(x, y, out, add, work, bias)
    return out


def _error(message: str) -> ValueError:
    return op_error(ValueError, "matmul", message)


def _product_shape(x: Array, y: Array) -> tuple[int, ...]:
    """Return the shape of the product of stacks of matrices, or raise an error."""
    k, k_y = x.shape[-1], y.shape[-2]
    if k != k_y:
        message = f"shapes {x.shape} and {y.shape} do not align: {k} != {k_y}"
        if k == y.shape[-1]:
            message += "; did you mean the transpose of the second, np.swapaxes(y, -1, -2)?"
        raise _error(message)
    leading = x.shape[:-2]
    try:
        if y.shape[:-2] != leading:  # broadcast_shapes takes as long as a small product
            leading = np.broadcast_shapes(leading, y.shape[:-2])
    except ValueError:
        raise _error(
            f"the leading axes of shapes {x.shape} and {y.shape} do not broadcast: "
            f"{x.shape[:-2]} and {y.shape[:-2]} must agree, or be 1 or missing"
        ) from None
    return (*leading, x.shape[-2], y.shape[-1])


def _add_after_product(x: Array, y: Array, out: Array | None, add: bool, bias: Array) -> Array:
    """Compute `matmul` and then add the bias, where no kernel does both."""
    if out is not None or add:
        raise _error("a bias is added to a new array, not to out; add it to the result")
    row = y.shape[-1:] if y.ndim > 1 else ()
    if np.shape(bias) != row:
        raise _error(
            f"a bias of shape {np.shape(bias)}, but to a product of shapes {x.shape} and {y.shape} "
            f"one of shape {row} is added"
        )
    return np.asarray(matmul(x, y) + bias)


def _checked(
    out: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any], x: Array, y: Array
) -> Array:
    """Return `out` if a product of this shape can be written to it, or raise an error."""
    if out is None:
        raise _error("add=True adds to `out`, and there is none: pass out=")
    if type(out) is not ndarray or out.shape != shape or out.dtype != dtype:
        kind = f"{out.dtype} array" if type(out) is ndarray else type(out).__name__
        raise _error(
            f"out is a {kind} of shape {np.shape(out)}, the product is "
            f"a {dtype} array of shape {shape}"
        )
    flags = out.flags  # each reading makes an object
    if not flags.carray:  # contiguous, aligned and writable
        raise _error(
            "out must be C-contiguous, aligned and writable; write to such an array and "
            "copy it with out[...] = "
        )
    for operand, name in ((x, "first operand"), (y, "second operand")):
        if operand is not out and operand.flags.owndata and flags.owndata:
            continue  # the usual case takes the least time
        if np.may_share_memory(out, operand) and np.shares_memory(out, operand):
            raise _error(
                f"out shares memory with the {name}, which would change while it is read; pass a "
                "copy of one of them"
            )
    return out


def _numpy_matmul(x: Array, y: Array, out: Array | None, add: bool) -> Array:
    """Compute the product by numpy: for other dtypes, and as the reference without JIT."""
    if x.ndim >= 2 and y.ndim >= 2:
        _product_shape(x, y)  # its error messages say more than numpy's
    product: Array = np.matmul(x, y, order="C")
    if out is None and not add:
        return product
    product = np.asarray(product)
    out = _checked(out, product.shape, product.dtype, x, y)
    out[...] = out + product if add else product
    return out


def _matmul_stacks(compiled: Products, x: Array, y: Array, out: Array | None, add: bool) -> Array:
    """Compute `matmul` where an operand has leading axes."""
    if x.ndim < 2 or y.ndim < 2:
        return _numpy_matmul(x, y, out, add)
    shape = _product_shape(x, y)
    leading, k, n = len(shape) - 2, x.shape[-1], shape[-1]
    if out is None and not add:
        out = empty(shape, x.dtype)
    else:
        out = _checked(out, shape, x.dtype, x, y)
    work = out.size * k
    if work == 0:
        if not add:
            out.fill(0)
    elif leading == x.ndim - 2 and y.size == k * n and _rows_are_evenly_spaced(x):
        # All matrices in x have the same y, as in a linear layer: their rows are one tall matrix.
        tall = x.reshape(out.size // n, k)  # a view, because the rows are evenly spaced
        compiled.multiply(tall, y.reshape(k, n), out.reshape(-1, n), add, work)
    else:
        axes = zip(shape[:-2], _steps(x, leading), _steps(y, leading), strict=True)
        a, b = x[(0,) * (x.ndim - 2)], y[(0,) * (y.ndim - 2)]
        count, c = out.size // (shape[-2] * n), out[(0,) * leading]
        compiled.multiply_batch(a, b, c, add, work, count, (*axes,))
    return out


def _rows_are_evenly_spaced(x: Array) -> bool:
    """Return whether the distance between rows is the same everywhere, across matrices too."""
    step = x.strides[-2] * x.shape[-2]
    for length, stride in zip(x.shape[-3::-1], x.strides[-3::-1], strict=True):
        if length != 1 and stride != step:
            return False
        step *= length
    return True


def _steps(x: Array, axes: int) -> list[int]:
    """Return the strides of x for `axes` leading axes of the product; 0 where x is broadcast."""
    steps = [
        0 if length == 1 else stride
        for length, stride in zip(x.shape[:-2], x.strides[:-2], strict=True)
    ]
    return [0] * (axes - len(steps)) + steps


class Products:
    """The compiled products of one dtype.

    Attributes:
        tile: the shape of the register tile.
        plans: two plans for a single product: to write it to `out`, and to add it to `out`.
        has_unit: whether a matrix unit can compute products of this dtype.
        no_bias: the bias of a product without one.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.tile = tile_shape(dtype.itemsize)
        self._itemsize = dtype.itemsize
        self._plan = lru_cache(PLANS)(self._new_plan)
        self.plans = [self._plan(add, 1, ()) for add in (False, True)]
        self.has_unit = dtype == SINGLE and is_available()
        self.no_bias = nothing(dtype)
        self.gemm, self.gemm_batch = products.gemm[dtype], products.gemm_batch[dtype]
        self.dots, self.stream = skinny.dots[dtype], skinny.stream[dtype]
        self.sweep, self.inner = skinny.sweep[dtype], skinny.inner[dtype]

    def _new_plan(self, add: bool, count: int, axes: Axes, unit: bool = False) -> Array:
        """Return a plan (see `products`): block sizes, and the positions of matrices in a batch."""
        sizes = unit_block_sizes() if unit else block_sizes(self._itemsize)
        head = [*sizes, int(add), count]
        plan = np.array([*head, *(number for axis in axes for number in axis)], np.int64)
        if unit:
            products.write_addresses[SINGLE].alone(self.no_bias, plan)
        return plan

    def multiply(
        self, x: Array, y: Array, out: Array, add: bool, work: int, bias: Array | None = None
    ) -> None:
        """Write x y to `out`, or add it, and add a bias; `work` is the number of multiply-adds."""
        m, n = out.shape
        k = x.shape[1]
        if not work:
            if not add:
                out.fill(0)  # an empty sum is 0
        elif loop := self.skinny_loop(x, y, out):
            self._multiply_skinny(loop, x, y, out, add, work)
        elif self._is_long(m, n, k):
            self._multiply_in_pieces(x, y, out, add, work)
        else:
            row = self.no_bias if bias is None else bias
            plan = self.plans_of(self.suits_unit(m, n, k))[add]
            self.gemm(work * SECONDS, x, y, row, out, plan)
            return
        if bias is not None:
            out += bias

    def plans_of(self, on_unit: bool) -> list[Array]:
        """Return the two plans of a product, on the matrix unit or not."""
        return self._unit_plans if on_unit else self.plans

    @cached_property
    def _unit_plans(self) -> list[Array]:
        return [self._plan(add, 1, (), True) for add in (False, True)]

    def suits_unit(self, m: int, n: int, k: int) -> bool:
        """Return whether a product is faster on the matrix unit; on two threads, it may not be."""
        is_large = m * n * k >= UNIT_FROM and m >= 32 and n >= 2 * 32
        return self.has_unit and is_large and k > SHALLOW  # else writing C takes most of the time

    def _is_long(self, m: int, n: int, k: int) -> bool:
        """Return whether the sum is so long that threads share its pieces, and not parts of C."""
        return k >= PIECES * SPLIT and m * n <= PIECES * self.tile.MR * self.tile.NR

    def skinny_loop(self, x: Array, y: Array, out: Array | None = None) -> str:
        """Return which loop of `skinny` computes x y or its transpose; "" if none is suitable.

        Without `out`, the result is a new array.
        """
        (m, k), n, item = x.shape, y.shape[1], x.itemsize
        (x_row, x_col), (y_row, y_col) = x.strides, y.strides
        out_row, out_col = (n * item, item) if out is None else out.strides
        if m > n:  # the sizes and strides of y^T x^T, in which the first operand has few rows
            m, n, x_col, y_row, y_col, out_col = n, m, y_row, x_col, x_row, out_row
        if k < LONG or m > STREAMED or (k * n <= LARGE and (n > 1 or k < DEEP)):
            return ""
        adjacent, is_few = x_col == item == y_row, m < self.tile.VL  # adjacent along k
        if m == 1 == n and adjacent:
            return "inner"
        if m == 1 < n and y_col == item:
            return "sweep"
        if adjacent or (y_row == item and n >= TALL):
            collide = m == self.tile.VL and k >= DEEP and y_col % COLLIDING == 0
            return "dots" if is_few or collide else ""
        readable = n > 1 and y_col == item and (MASKS_ARE_CHEAP or n % self.tile.NR == 0)
        if out_col != item:  # the result of `stream` is copied
            readable = readable and k * n > COPIED and (is_few or k >= DEEP)
        return "stream" if readable and not self._is_long(m, n, k) else ""

    def multiply_batch(
        self, x: Array, y: Array, out: Array, add: bool, work: int, count: int, axes: Axes
    ) -> None:
        """Compute `count` products, one after another in `out`, with `work` multiply-adds in all.

        `x`, `y` and `out` are the first matrices; `axes` gives the positions of the others
        (`products.locate`).
        """
        m, n = out.shape
        plan = self._plan(add, count, axes, self.suits_unit(m, n, x.shape[1]))
        if count < PIECES or work < THREADS_FROM or get_num_threads() == 1:
            self.gemm(work * SECONDS, x, y, self.no_bias, out, plan)
        else:
            self.gemm_batch(work * SECONDS, x, y, out, plan)

    def _multiply_skinny(
        self, loop: str, x: Array, y: Array, out: Array, add: bool, work: int
    ) -> None:
        """Compute the product by a loop of `skinny`, given its name."""
        seconds = max(work * SECONDS, (x.size + y.size) * x.itemsize * SECONDS_OF_A_BYTE)
        turned = out.shape[0] > out.shape[1]
        if loop == "dots":
            self.dots(seconds, *((x, y.T, out) if turned else (y.T, x, out.T)), add)
            return
        if turned:
            x, y, out = y.T, x.T, out.T
        if loop != "stream":
            kernel = self.sweep if loop == "sweep" else self.inner
            kernel(seconds, x, y, out, add)
        elif out.strides[1] == x.itemsize:
            self.stream(seconds, x, y, out, self.plans[0], add)
        else:
            rows = empty(out.shape, out.dtype)
            self.stream(seconds, x, y, rows, self.plans[0], False)
            if add:
                out += rows
            else:
                out[...] = rows

    def _multiply_in_pieces(self, x: Array, y: Array, out: Array, add: bool, work: int) -> None:
        """Cut a long sum into pieces for threads to share, and add up their results in order."""
        depth = x.shape[1] // PIECES
        rest = depth * PIECES
        parts = empty((PIECES, *out.shape), out.dtype)
        axes = ((PIECES, depth * x.strides[1], depth * y.strides[0]),)
        self.multiply_batch(x[:, :depth], y[:depth], parts[0], False, work, PIECES, axes)
        if add:
            out += parts.sum(axis=0)
        else:
            parts.sum(axis=0, out=out)
        if rest < x.shape[1]:
            self.gemm.alone(x[:, rest:], y[rest:], self.no_bias, out, self.plans[True])


PRODUCTS = {dtype: Products(dtype) for dtype in products.gemm}
"""The compiled products by dtype; empty if nothing is compiled."""
