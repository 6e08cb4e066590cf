"""A frozen matrix in four bits per element: NF4, the NormalFloat of QLoRA (Dettmers et al., 2023).

The weights of a trained layer are approximately normal. So the 16 levels are quantiles of a normal
distribution (section 3), scaled to [-1, 1]; each level is equally often the nearest. A block of 64
elements is divided by its largest absolute value, and each element is stored as the index of its
nearest level:

    w ~ absmax * LEVELS[code]

absmax in float32 takes half a bit per element. Double quantisation reduces this to an eighth of a
bit: it stores the absmax of 256 blocks, minus their mean, as 8-bit integers with one scale. (The
paper uses 8-bit floats. The values in a group differ little, so even steps are as good.)

A product decodes only a strip of rows into floats at a time; a product of few rows decodes in
registers (see `minigrad.kernels.narrow`).

The 16 levels are a vector of float32, or two vectors of eight, and a code is an index into it. So a
machine that can permute the lanes of a vector looks up 16 codes in one instruction (AVX-512) or in
four (AVX2). Other machines select a level by the bits of its code, one bit after another. Both take
a quarter to a half of the time of a table in memory, and less time than reading a matrix of floats
from memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from llvmlite import ir
from numba import types

from minigrad.checks import check_positive
from minigrad.kernels import narrow
from minigrad.kernels.jit import SINGLE, WORD, Array, Read, Written, jit, nothing
from minigrad.kernels.launch import for_each_dtype, span
from minigrad.kernels.narrow import FEW, HEIGHT, LANES, WIDTH, NarrowMatrix, Vectors
from minigrad.kernels.vector import FEATURES, I32, Emitter, address_of, instruction, keep_alive

SECONDS = 1.5e-10  # approximate seconds of an element
SECONDS_OF_DOTS = 5e-11  # the same in a product of one row
# The most rows of x for which the matrix is decoded in registers. It is decoded again for every
# `HEIGHT` rows, which takes too long if the machine cannot permute lanes.
MOST = FEW if "avx2" in FEATURES else HEIGHT
GROUP = 256  # blocks whose absmax share an offset and a scale
AT_ONCE = 16  # codes that are decoded at once: 8 bytes

LEVELS = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""The values of the codes, ascending, as published (Dettmers et al., 2023, appendix E).

They are quantiles of a normal distribution, scaled to [-1, 1]: 7 below 0, 0 itself, and 8 above. On
each side, the probabilities have equal steps, from 1/2 (the quantile 0) to the mean of 1 - 1/30 and
1 - 1/32. With 15 or 16 equal steps from 0 to 1, these two would be half a step from the end.
"""
_MIDDLES = (LEVELS[1:].astype(np.float64) + LEVELS[:-1]) / 2  # between neighbours


@dataclass(frozen=True, eq=False, repr=False)
class NF4Matrix(NarrowMatrix):
    """A matrix of 4-bit codes, with rows cut into blocks; it cannot be changed. `of` makes one.

    Args:
        codes: `(rows, (cols + 1) // 2)` uint8, two codes in each: the first in the upper half.
        absmax: one for each block, row by row: float32, or int8 with double quantisation.
        offset: the offset of each group of `GROUP` absmax; None without double quantisation.
        scale: the scale of each group, for steps of 1 / 127; None without double quantisation.
        cols: how many elements a row has.
        block_size: how many elements share an absmax; the last block of a row may be shorter.
        is_transposed: whether this matrix is the transpose of the matrix in the arrays.

    Raises:
        TypeError: if an array has another dtype.
        ValueError: if sizes do not match, or are not positive.
    """

    format = "nf4"

    codes: Array
    absmax: Array
    offset: Array | None
    scale: Array | None
    cols: int
    block_size: int
    is_transposed: bool = False

    def __post_init__(self) -> None:
        check_positive("NF4Matrix: cols", self.cols)
        check_positive("NF4Matrix: block_size", self.block_size)
        if (self.offset is None) != (self.scale is None):
            raise ValueError(
                "NF4Matrix: offset and scale belong together; pass both, or None for both"
            )
        rows = len(self.codes) if isinstance(self.codes, np.ndarray) and self.codes.ndim else 0
        check_positive("NF4Matrix: the number of rows of codes", rows)
        count = rows * self._blocks
        groups = (-(-count // GROUP),)
        for name, dtype, shape in (
            ("codes", np.uint8, (rows, -(-self.cols // 2))),
            ("absmax", np.int8 if self.double_quant else np.float32, (count,)),
            *((name, np.float32, groups) for name in ("offset", "scale") if self.double_quant),
        ):
            view = narrow.read_only(f"NF4Matrix: {name}", getattr(self, name), dtype, shape)
            object.__setattr__(self, name, view)

    @classmethod
    def of(cls, array: Array, block_size: int = 64, double_quant: bool = True) -> NF4Matrix:
        """Return the matrix nearest to `array`: each element gets the nearest level of its block.

        With double quantisation, the levels are multiplied by the absmax as it is stored, while the
        paper uses the original absmax. So the error of an element is at most its absolute value,
        even if the stored absmax is inaccurate. A block of zeros stays zeros; a block whose absmax
        is 0 in float32 becomes zeros.

        Args:
            array: `(rows, cols)` of float16, float32 or float64.
            block_size: how many elements of a row share an absmax.
            double_quant: store absmax in 8 bits. The error of an absmax is up to 1/254 of the
                largest distance from the mean of its group, which is much for a block with a far
                smaller absmax. For rows of very different sizes, pass False.

        Raises:
            TypeError: if `array` is not an array of floats.
            ValueError: if `array` is not a matrix, is empty, or has NaN, Inf or a value beyond the
                range of float32; or if the block size is not a positive integer.
        """
        narrow.check_matrix("NF4Matrix.of", array, "float16", "float32", "float64")
        check_positive("NF4Matrix.of: block_size", block_size)
        rows, cols = array.shape
        starts = range(0, cols, block_size)
        codes = np.empty((rows, -(-cols // 2)), np.uint8)
        absmax = np.empty((rows, len(starts)), np.float32)
        parts = list(narrow.strips(rows, 4 * cols))  # smaller ones, as several are in float64
        for a, b in parts:
            largest = np.maximum.reduceat(np.abs(array[a:b].astype(np.float64)), starts, axis=1)
            most, limit = largest.max(), np.finfo(np.float32).max
            if not most <= limit:  # also if it is nan
                raise ValueError(
                    f"NF4Matrix.of: the array holds {most:.4g}, for which there is no code; it "
                    f"takes finite numbers up to {limit:.4g}, the largest float32, so find where "
                    "NaN or Inf come from, replace them with np.nan_to_num, or scale the array down"
                )
            absmax[a:b] = largest
        flat = absmax.ravel()
        stored, offset, scale = _quantised(flat) if double_quant else (flat, None, None)
        matrix = cls(codes, stored, offset, scale, cols, int(block_size))
        for a, b in parts:  # into the memory that the matrix has a view of
            read = matrix._absmax(a, b)
            unit = np.where(read > 0, read, np.inf).astype(np.float64)
            codes[a:b] = _packed(_nearest(array[a:b] / spread(unit, block_size, cols)))
        return matrix

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> NF4Matrix:
        """Return the matrix for which `arrays()` returns these arrays; it shares their memory.

        Raises:
            TypeError: if an array has another dtype.
            ValueError: if an array is missing, unknown, or has another shape.
        """
        names = "codes", "absmax", "cols", "block_size", "offset", "scale"
        if not set(names[:4]) <= set(arrays) <= set(names):
            raise ValueError(
                f"NF4Matrix.from_arrays: takes what arrays() gives, {', '.join(names)} (the last "
                f"two with double quantisation), not {', '.join(sorted(arrays)) or 'nothing'}"
            )
        sizes = [np.asarray(arrays[name]) for name in ("cols", "block_size")]
        if any(size.shape != (1,) or size.dtype.kind not in "iu" for size in sizes):
            raise ValueError(
                "NF4Matrix.from_arrays: cols and block_size are arrays of one integer, not "
                f"{sizes[0]!r:.60} and {sizes[1]!r:.60}"
            )
        cols, block_size = (int(size[0]) for size in sizes)
        offset, scale = arrays.get("offset"), arrays.get("scale")
        return cls(arrays["codes"], arrays["absmax"], offset, scale, cols, block_size)

    def arrays(self) -> dict[str, Array]:
        """Return the content of the matrix as plain read-only arrays, for example for a file.

        Raises:
            ValueError: if the matrix is a transpose, because the arrays do not show this.
        """
        if self.is_transposed:
            raise ValueError(
                "NF4Matrix.arrays: this is a transpose, which its arrays do not say; take those of "
                "the matrix, `.T.arrays()`, and transpose what is made of them"
            )
        sizes = {"cols": np.array([self.cols]), "block_size": np.array([self.block_size])}
        return {**self.parts(), **sizes}

    @property
    def stored_shape(self) -> tuple[int, int]:
        """The numbers of rows and columns of the matrix in the arrays."""
        return len(self.codes), self.cols

    def is_finite(self) -> bool:
        """Return whether all numbers are finite: whether absmax is, because the levels are."""
        parts = (self.absmax, self.offset, self.scale)
        return all(np.isfinite(part).all() for part in parts if part is not None)

    @property
    def double_quant(self) -> bool:
        """Whether absmax is quantised too."""
        return self.offset is not None

    def __repr__(self) -> str:
        parts = [*map(str, self.shape), f"block_size={self.block_size}"]
        parts += ["transposed"] if self.is_transposed else []
        return f"NF4Matrix({', '.join(parts)}: {self.nbytes / self.size:.4g} bytes per number)"

    @property
    def _blocks(self) -> int:
        """The number of blocks in a stored row."""
        return -(-self.cols // self.block_size)

    def _absmax(self, start: int, stop: int) -> Array:
        """Return the absmax of some stored rows: `(stop - start, blocks)` float32."""
        a, b = start * self._blocks, stop * self._blocks
        values = self.absmax[a:b]
        if self.offset is not None and self.scale is not None:
            values = absmax_of(values, a, self.offset, self.scale)
        return values.reshape(stop - start, self._blocks)

    def _read(self, start: int, out: Array) -> None:
        absmax = self._absmax(start, start + len(out))
        decode(self.codes[start:][: len(out)], absmax, self.block_size, out)

    def _dots(self, x: Array, out: Array) -> bool:
        rows, length = self.codes.shape
        size = self.block_size // 2  # the bytes of a block, if it has whole bytes
        power = size & (size - 1) == 0 == self.block_size % 2 and size >= LANES
        is_large = rows >= WIDTH and length >= LANES
        if not (_dots_loop and is_large and len(x) <= MOST and (power or self._blocks == 1)):
            return False
        pairs = np.zeros((len(x), 2, length), np.float32)  # factors of upper and of lower halves
        pairs[:, 0], pairs[:, 1, : self.cols // 2] = x[:, ::2], x[:, 1::2]
        none = nothing(SINGLE)
        absmax: Any = self.absmax, nothing(np.dtype(np.int8)), none, none
        if self.double_quant:
            absmax = none, self.absmax, self.offset, self.scale
        shift = size.bit_length() - 1 if power else 63  # with 63, all bytes are in block 0
        sizes = self._blocks, shift
        seconds = self.size * SECONDS_OF_DOTS
        _dots_loop[SINGLE](seconds, pairs.reshape(len(x), -1), self.codes, *absmax, *sizes, out)
        return True


def _nearest(numbers: Array) -> Array:
    """Return the code of the level that is nearest to each number."""
    codes = np.zeros(numbers.shape, np.uint8)
    beyond = np.empty(numbers.shape, np.bool_)
    for middle in _MIDDLES:  # 15 passes take a tenth of the time of one binary search
        np.greater(numbers, middle, out=beyond)
        codes += beyond.view(np.uint8)
    return codes


def _packed(codes: Array) -> Array:
    """Pack two codes in a byte, the first in the upper half; in an odd row the last half is 0."""
    out = codes[:, ::2] << 4
    out[:, : codes.shape[1] // 2] |= codes[:, 1::2]
    return out


def _quantised(absmax: Array) -> tuple[Array, Array, Array]:
    """Return absmax as 8-bit codes, and the offset and scale of each group."""
    starts = np.arange(0, len(absmax), GROUP)
    sizes = np.diff(starts, append=len(absmax))
    wide = absmax.astype(np.float64)
    offset = (np.add.reduceat(wide, starts) / sizes).astype(np.float32)
    rest = wide - np.repeat(offset, sizes)
    scale = np.maximum.reduceat(np.abs(rest), starts).astype(np.float32)
    unit = np.repeat(np.where(scale > 0, scale, 1).astype(np.float64), sizes)
    codes = np.clip(np.rint(127 * rest / unit), -127, 127).astype(np.int8)
    return codes, offset, scale


def decode(codes: Array, absmax: Array, block_size: int, out: Array) -> None:
    """Write the values of codes to `out`: `(rows, cols)` of floats, C-contiguous.

    The codes are stored as in `NF4Matrix`, and absmax is `(rows, blocks)` float32.
    """
    cols, loop = out.shape[1], _decode_loop.get(out.dtype)
    if loop is not None:
        loop(out.size * SECONDS, codes, absmax, LEVELS, min(block_size, cols), out)
        return
    pairs = np.stack([codes >> 4, codes & 15], axis=-1)
    levels = LEVELS[pairs.reshape(len(codes), -1)[:, :cols]]
    out[...] = levels.astype(np.result_type(out, levels)) * spread(absmax, block_size, cols)


def absmax_of(codes: Array, start: int, offset: Array, scale: Array) -> Array:
    """Return absmax after double quantisation: `offset + scale * code / 127`, at least 0.

    The codes belong to the blocks from number `start` on; `offset` and `scale`, to all groups.
    """
    groups = slice(start // GROUP, (start + len(codes) - 1) // GROUP + 1)
    first, factor = (
        np.repeat(x[groups], GROUP)[start % GROUP :][: len(codes)] for x in (offset, scale)
    )
    steps = codes.astype(np.float32) / np.float32(127)
    # If rounding makes it negative, it would reverse signs.
    return np.asarray(np.maximum(first + factor * steps, np.float32(0)))


def spread(values: Array, block_size: int, cols: int) -> Array:
    """Repeat the value of each block for its elements: `(rows, blocks)` -> `(rows, cols)`."""
    return np.repeat(values, min(block_size, cols), axis=1)[:, :cols]


@instruction()
def _decode_sixteen(machine: Emitter, source: Any, factor: Any, target: Any) -> None:
    """Write the levels of the codes in 8 bytes, times `factor`, in the dtype of `factor`."""
    builder, e = machine.builder, machine.of_lanes(AT_ONCE)
    packed = e.load(source, ir.VectorType(ir.IntType(8), AT_ONCE // 2))
    twice = e.shuffle(packed, packed, [lane // 2 for lane in range(AT_ONCE)])
    wide = ir.VectorType(I32, AT_ONCE)
    codes = builder.lshr(builder.zext(twice, wide), ir.Constant(wide, [4, 0] * (AT_ONCE // 2)))
    codes = builder.and_(codes, ir.Constant(wide, [15] * AT_ONCE))
    # The look-up is in float32, the dtype of the levels; the result is then converted.
    found = Emitter(builder, types.float32, AT_ONCE).look_up(LEVELS.tolist(), codes)
    found = found if e.item == 4 else builder.fpext(found, e.vector)
    e.store(builder.fmul(found, e.broadcast(factor)), target)


@jit(inline="always")
def _read_absmax(codes: Array, start: int, offset: Array, scale: Array, out: Array) -> None:
    """Write the absmax for these codes, which belong to the blocks from number `start` on."""
    i = 0
    while i < out.size:
        group = (start + i) // GROUP
        first, factor = offset[group], scale[group]
        end = min(out.size, (group + 1) * GROUP - start)
        for k in range(i, end):
            steps = np.float32(codes[k]) / np.float32(127)
            out[k] = max(first + factor * steps, np.float32(0))
        i = end


@for_each_dtype()
def _decode_loop(
    piece: int, pieces: int, codes: Annotated[Read.D2, types.uint8],
    absmax: Annotated[Read.D2, types.float32], levels: Annotated[Read.D1, types.float32],
    block_size: int, out: Written.D2,
) -> None:  # fmt: skip
    rows, cols = out.shape
    blocks = absmax.shape[1]
    count = rows * blocks
    for block in span(piece, pieces, count):
        i = block // blocks
        begin = (block - i * blocks) * block_size
        end = min(begin + block_size, cols)
        largest = out.dtype.type(absmax[i, block - i * blocks])
        if begin & 1:  # the first half of this byte belongs to the block before
            out[i, begin] = levels[np.intp(codes[i, begin >> 1]) & 15] * largest
            begin += 1
        source = address_of(codes) + i * codes.shape[1] + (begin >> 1)
        target = address_of(out) + (i * cols + begin) * out.itemsize
        steps = (end - begin) // AT_ONCE
        for _ in range(steps):
            _decode_sixteen(source, largest, target)
            source += AT_ONCE // 2
            target += AT_ONCE * out.itemsize
        for j in range(begin + AT_ONCE * steps, end):
            shift = 0 if j & 1 else 4
            out[i, j] = levels[(np.intp(codes[i, j >> 1]) >> shift) & 15] * largest


@instruction()
def _tile(
    e: Emitter, height: Any, x: Any, x_row: Any, codes: Any, row: Any, absmax: Any, absmax_row: Any,
    shift: Any, count: Any, target: Any, target_row: Any,
) -> None:  # fmt: skip
    """Compute the dot products of `height` rows x with `WIDTH` rows of codes, `count` bytes each.

    A row x has first the factors of the upper halves of the bytes, and then those of the lower
    halves. A block has 1 << shift bytes.
    """
    builder, four = e.builder, WORD(4)
    packed, wide = (ir.VectorType(ir.IntType(n), e.lanes) for n in (8, 32))
    levels, lower = LEVELS.tolist(), builder.mul(count, four)

    def read(high: int, at: Any, new: Any) -> tuple[Vectors, Vectors]:
        there = builder.add(x, builder.mul(at, four))
        rows = [e.step(there, x_row, i) for i in range(high)]
        xs = [[e.load(p, e.vector), e.load(builder.add(p, lower), e.vector)] for p in rows]
        here, ws = builder.add(codes, at), []
        block = builder.add(absmax, builder.mul(builder.lshr(new, shift), four))
        for j in range(WIDTH):
            e.prefetch(e.step(here, row, j + WIDTH), to_write=False)  # a short row is not predicted
            pairs = builder.zext(e.load(e.step(here, row, j), packed), wide)
            factor = e.load(e.step(block, absmax_row, j), e.scalar)
            halves = (
                builder.lshr(pairs, ir.Constant(wide, [4] * e.lanes)),
                builder.and_(pairs, ir.Constant(wide, [15] * e.lanes)),
            )
            ws.append([e.look_up(levels, half, factor) for half in halves])
        return xs, ws

    narrow.emit_tile(e, height, count, read, target, target_row, WORD(1))


@for_each_dtype(SINGLE, fastmath=())  # not fused, so that absmax is rounded as in `absmax_of`
def _dots_loop(
    piece: int, pieces: int, x: Read.D2, codes: Annotated[Read.D2, types.uint8], absmax: Read.D1,
    steps: Annotated[Read.D1, types.int8], offset: Read.D1, scale: Read.D1, blocks: int, shift: int,
    out: Written.D2,
) -> None:  # fmt: skip
    m, (rows, length) = x.shape[0], codes.shape
    height = HEIGHT if m >= HEIGHT else 1
    read = np.empty(WIDTH * blocks, np.float32)
    for group in span(piece, pieces, (rows + WIDTH - 1) // WIDTH):
        j = min(group * WIDTH, rows - WIDTH)  # the last tile may overlap the tile before
        largest = address_of(absmax) + j * blocks * 4
        if steps.size:
            codes_of_absmax = steps[j * blocks : (j + WIDTH) * blocks]
            _read_absmax(codes_of_absmax, j * blocks, offset, scale, read)
            largest = address_of(read)
        for k in range(0, m, height):
            i = min(k, m - height)
            _tile(
                height, address_of(x) + i * length * 8, length * 8,
                address_of(codes) + j * length, length, largest, blocks * 4, shift, length,
                address_of(out) + (i * rows + j) * 4, rows * 4,
            )  # fmt: skip
    keep_alive(read)
