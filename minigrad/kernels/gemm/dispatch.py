"""Matrix products of arrays: `matmul`, the checked entry to the compiled loops.

Machine code that works on addresses relies on correct ones. They come from numpy: the shapes and
strides of the arrays, and an output that is made or checked here. Arrays of any layout are served
by the same machine code, compiled once for each dtype: it takes the most general kind of array (any
strides, possibly read-only, possibly misaligned), as which numba lets every other kind pass.

The shape and the strides of a product decide which loops it takes (`Products.multiply`):

    one row and one column, contiguous                            skinny.inner
    one row, or one column, and a matrix whose rows run across    skinny.sweep
    few columns, and a large matrix whose rows run along k        skinny.dots
    few rows, and a large matrix whose rows run across            skinny.stream
    k much larger than m and n: pieces of k are a batch, summed   products.gemm_batch
    all else                                                      products.gemm, gemm_bias

For a matrix that is multiplied with often see `minigrad.kernels.gemm.prepacked`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.errors import op_error
from minigrad.kernels.gemm import products, skinny
from minigrad.kernels.gemm.blocking import block_sizes
from minigrad.kernels.gemm.microkernel import tile_shape
from minigrad.kernels.jit import Array
from minigrad.kernels.threads import get_num_threads

SECONDS = 2e-11  # a multiply-add takes one thread, at best: float32 with AVX-512
SECONDS_OF_A_BYTE = 5e-11  # that a byte takes to come from memory, which thin products wait for
THREADS_FROM = 1_500_000  # multiply-adds below which threads are not even asked for
LONG = 32  # steps of k from which on the loops for few rows or columns are faster
TALL = 64  # rows from which on the few columns are worth a copy
STREAMED = 64  # rows of the other operand, at most, for which a matrix is not packed
PIECES = 24  # of a batch to share out: evenly by 2, 3, 4, 6, 8 or 12 threads
COLLIDING = 512  # bytes: rows a multiple of it apart share few lines of a cache
DEEP = 512  # steps of k from which on they are faster for as many columns as a tile has
SPLIT = 1024  # steps of k in a piece of a split sum, at least


def matmul(
    x: Array, y: Array, *, out: Array | None = None, add: bool = False, bias: Array | None = None
) -> Array:
    """Compute the matrix product x @ y, `(..., m, k) @ (..., k, n) -> (..., m, n)`.

    Leading axes broadcast as numpy's do. Two float32 or two float64 arrays, of any strides, are
    multiplied here; all else that `np.matmul` takes (integers, mixed dtypes, vectors, subclasses
    of ndarray) is passed to it.

    Args:
        x: the left operand.
        y: the right operand.
        out: a C-contiguous array to write the product to, of its shape and dtype, which shares no
            memory with x and y; a new one if not given.
        add: add the product to what is in `out` instead of replacing it.
        bias: `(n,)`, to be added to each row, as if by a separate addition after the product. Like
            x and y it shares no memory with `out`.

    Returns:
        The product: `out` if it is given.

    Raises:
        ValueError: if shapes do not align or broadcast, if `out` cannot take the product, if
            there is `add` and no `out`, or if the bias has another shape.
    """
    dtype = x.dtype
    compiled = PRODUCTS.get(dtype)
    if y.dtype != dtype or not type(x) is type(y) is np.ndarray:
        compiled = None
    x_shape, y_shape = x.shape, y.shape
    matrices = len(x_shape) == 2 == len(y_shape)
    if bias is not None and (
        compiled is None
        or not matrices
        or type(bias) is not np.ndarray
        or bias.dtype != dtype
        or bias.shape != y_shape[1:]
    ):
        return _add_after_product(x, y, out, add, bias)
    if compiled is None:
        return _numpy_matmul(x, y, out, add)
    if not matrices:
        return _matmul_stacks(compiled, x, y, out, add)
    m, k = x_shape
    k_y, n = y_shape
    if k != k_y:
        _product_shape(x, y)  # raises an error
    if out is None and not add:
        out = np.empty((m, n), dtype)
    else:
        out = _checked(out, (m, n), dtype, x, y, bias)
    work, lanes = m * n * k, compiled.lanes
    if 0 < work < THREADS_FROM and k < DEEP and m >= lanes and n >= lanes:
        # `multiply` would choose this too; but small products are many, and calls are slow.
        if bias is None:
            compiled.gemm.alone(x, y, out, compiled.plans[add])
        else:
            compiled.gemm_bias.alone(x, y, bias, out, compiled.plans[add])
    else:
        compiled.multiply(x, y, out, add, work, bias)
    return out


def _error(message: str) -> ValueError:
    return op_error(ValueError, "matmul", message)


def _sharing(operand: str) -> ValueError:
    return _error(
        f"out shares memory with the {operand}, which would change while it is read; pass a copy "
        "of one of them"
    )


def _product_shape(x: Array, y: Array) -> tuple[int, ...]:
    """Return the shape of the product of stacks of matrices, or raise an error."""
    k, k_y = x.shape[-1], y.shape[-2]
    if k != k_y:
        message = f"shapes {x.shape} and {y.shape} do not align: {k} != {k_y}"
        if k == y.shape[-1]:
            message += "; did you mean the transpose of the second, np.swapaxes(y, -1, -2)?"
        raise _error(message)
    try:
        leading = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    except ValueError:
        raise _error(
            f"the leading axes of shapes {x.shape} and {y.shape} do not broadcast: "
            f"{x.shape[:-2]} and {y.shape[:-2]} must agree, or be 1 or missing"
        ) from None
    return (*leading, x.shape[-2], y.shape[-1])


def _add_after_product(x: Array, y: Array, out: Array | None, add: bool, bias: Array) -> Array:
    """Compute `matmul` with a bias where no kernel serves the product, or the bias."""
    row = y.shape[-1:] if y.ndim > 1 else ()
    if np.shape(bias) != row:
        raise _error(
            f"a bias of shape {np.shape(bias)}, but to a product of shapes {x.shape} and {y.shape} "
            f"one of shape {row} is added"
        )
    if out is not None and np.shares_memory(out, bias):
        raise _sharing("bias")
    product = matmul(x, y, out=out, add=add)
    product += bias
    return product


def _checked(
    out: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any], x: Array, y: Array,
    bias: Array | None = None,
) -> Array:  # fmt: skip
    """Return `out` if it can take a product of this shape, else raise an error."""
    if out is None:
        raise _error("add=True adds to `out`, and there is none: pass out=")
    if type(out) is not np.ndarray or out.shape != shape or out.dtype != dtype:
        kind = f"{out.dtype} array" if type(out) is np.ndarray else type(out).__name__
        raise _error(
            f"out is a {kind} of shape {np.shape(out)}, the product is "
            f"a {dtype} array of shape {shape}"
        )
    if not (out.flags.c_contiguous and out.flags.aligned and out.flags.writeable):
        raise _error(
            "out must be C-contiguous, aligned and writable; write to such an array and "
            "copy it with out[...] = "
        )
    operands = ((x, "first operand"), (y, "second operand"))
    for operand, name in operands if bias is None else (*operands, (bias, "bias")):
        if np.may_share_memory(out, operand) and np.shares_memory(out, operand):
            raise _sharing(name)
    return out


def _numpy_matmul(x: Array, y: Array, out: Array | None, add: bool) -> Array:
    """Compute the product by numpy: for other dtypes, and as the reference without JIT."""
    if x.ndim >= 2 and y.ndim >= 2:
        _product_shape(x, y)  # whose errors say more than numpy's
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
        out = np.empty(shape, x.dtype)
    else:
        out = _checked(out, shape, x.dtype, x, y)
    work = out.size * k
    if work == 0:
        if not add:
            out.fill(0)
    elif leading == x.ndim - 2 and y.size == k * n and _rows_are_evenly_spaced(x):
        # One matrix y for all of x, as in a linear layer: all rows of x are one tall matrix.
        tall = x.reshape(out.size // n, k)  # a view, since the rows are evenly spaced
        compiled.multiply(tall, y.reshape(k, n), out.reshape(-1, n), add, work)
    else:
        axes = zip(shape[:-2], _steps(x, leading), _steps(y, leading), strict=True)
        a, b = x[(0,) * (x.ndim - 2)], y[(0,) * (y.ndim - 2)]
        count, c = out.size // (shape[-2] * n), out[(0,) * leading]
        compiled.multiply_batch(a, b, c, add, work, count, [*axes])
    return out


def _rows_are_evenly_spaced(x: Array) -> bool:
    """Return whether all rows of a stack of matrices lie one step apart, across matrices too."""
    step = x.strides[-2] * x.shape[-2]
    for length, stride in zip(x.shape[-3::-1], x.strides[-3::-1], strict=True):
        if length != 1 and stride != step:
            return False
        step *= length
    return True


def _steps(x: Array, axes: int) -> list[int]:
    """Return the strides of the last `axes` leading axes of x; 0 where it is broadcast."""
    steps = [
        0 if length == 1 else stride
        for length, stride in zip(x.shape[:-2], x.strides[:-2], strict=True)
    ]
    return [0] * (axes - len(steps)) + steps


class Products:
    """The compiled products of one dtype.

    Attributes:
        tile: the shape of the register tile.
        lanes: the numbers in a vector, which fewer rows or columns do not fill.
        plans: the plan to write one product, and the plan to add one.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.tile = tile_shape(dtype.itemsize)
        self.lanes = self.tile.VL
        self._sizes = block_sizes(dtype.itemsize)
        self._near, self._masks = self._sizes[-3], self._sizes[-1]
        self.plans = [self._plan(add, 1, []) for add in (False, True)]
        self.gemm, self.gemm_bias = products.gemm[dtype], products.gemm_bias[dtype]
        self.gemm_batch = products.gemm_batch[dtype]
        self.dots, self.stream = skinny.dots[dtype], skinny.stream[dtype]
        self.sweep, self.inner = skinny.sweep[dtype], skinny.inner[dtype]

    def _plan(self, add: bool, count: int, axes: list[Any]) -> Array:
        """Return a plan (see `products`): sizes, and where the matrices of a batch are."""
        head = [*self._sizes, int(add), count]
        return np.array([*head, *(number for axis in axes for number in axis)], np.int64)

    def multiply(
        self, x: Array, y: Array, out: Array, add: bool, work: int, bias: Array | None = None
    ) -> None:
        """Write x y to `out`, or add it: `work` multiply-adds; and add a bias to each row."""
        m, n = out.shape
        k = x.shape[1]
        if not work:
            if not add:
                out.fill(0)  # an empty sum is 0
        elif self.is_skinny(m, n, k) and self._multiply_skinny(x, y, out, add, work):
            pass
        elif k >= PIECES * SPLIT and m * n <= PIECES * self.tile.MR * self.tile.NR:
            self._multiply_in_pieces(x, y, out, add, work)
        elif bias is None:
            self.gemm(work * SECONDS, x, y, out, self.plans[add])
        else:
            self.gemm_bias(work * SECONDS, x, y, bias, out, self.plans[add])
            return
        if bias is not None:
            out += bias

    def is_skinny(self, m: int, n: int, k: int) -> bool:
        """Return whether a product of this shape may take the loops for few rows or columns."""
        if k < LONG:
            return False
        lanes = self.lanes
        return m < lanes or n < lanes or (k >= DEEP and min(m, n) <= self.tile.NR)

    def multiply_batch(
        self, x: Array, y: Array, out: Array, add: bool, work: int, count: int, axes: list[Any]
    ) -> None:
        """Do `count` products, one behind another in `out`, with `work` multiply-adds in all.

        `x`, `y` and `out` are the first matrices; `axes` say where the others are
        (`products.locate`).
        """
        plan = self._plan(add, count, axes)
        if count < PIECES or work < THREADS_FROM or get_num_threads() == 1:
            self.gemm(work * SECONDS, x, y, out, plan)
        else:
            self.gemm_batch(work * SECONDS, x, y, out, plan)

    def _multiply_skinny(self, x: Array, y: Array, out: Array, add: bool, work: int) -> bool:
        """Do the product, or its transpose, if a loop of `skinny` serves it; return whether."""
        seconds = max(work * SECONDS, (x.size + y.size) * x.itemsize * SECONDS_OF_A_BYTE)
        return self._multiply_one_side(x, y, out, add, seconds) or self._multiply_one_side(
            y.T, x.T, out.T, add, seconds
        )

    def _multiply_one_side(self, x: Array, y: Array, out: Array, add: bool, seconds: float) -> bool:
        """Do the product if a loop of `skinny` serves it as it stands; return whether."""
        (m, k), n, item = x.shape, y.shape[1], x.itemsize
        (x_row, x_col), (y_row, y_col) = x.strides, y.strides
        adjacent = x_col == item == y_row  # along k, in both operands
        if m == 1 == n and adjacent:
            self.inner(seconds, x, y, out, add)
            return True
        if m == 1 and n > 1 and y_col == item:
            self.sweep(seconds, x, y, out, add)
            return True
        long = k >= PIECES * SPLIT
        large = n > 1 and y_col == item and y.size * item > self._near
        if large and m <= STREAMED and (self._masks or n % self.tile.NR == 0):
            if long:
                return False
            straight = out.strides[1] == item
            rows = out if straight else np.empty(out.shape, out.dtype)
            self.stream(seconds, x, y, rows, self.plans[0], add and straight)
            if not straight and add:
                out += rows
            elif not straight:
                out[...] = rows
            return True
        if n > m or x_col != item or not (m >= TALL or y_row == item):
            return False
        if n >= self.lanes and x_row % COLLIDING:
            return False  # the register tile does as well
        if m < TALL and long and not adjacent:
            return False  # too few rows for threads, and for a copy of y
        self.dots(seconds, x, y.T, out, add)
        return True

    def _multiply_in_pieces(self, x: Array, y: Array, out: Array, add: bool, work: int) -> None:
        """Cut a long sum into pieces, which threads can do, and add up their results in order."""
        depth = x.shape[1] // PIECES
        rest = depth * PIECES
        parts = np.empty((PIECES, *out.shape), out.dtype)
        axes = [(PIECES, depth * x.strides[1], depth * y.strides[0])]
        self.multiply_batch(x[:, :depth], y[:depth], parts[0], False, work, PIECES, axes)
        if add:
            out += parts.sum(axis=0)
        else:
            parts.sum(axis=0, out=out)
        if rest < x.shape[1]:
            self.gemm.alone(x[:, rest:], y[rest:], out, self.plans[True])


PRODUCTS = {dtype: Products(dtype) for dtype in products.gemm}
"""The compiled products of each dtype that has some; none if nothing is compiled."""
