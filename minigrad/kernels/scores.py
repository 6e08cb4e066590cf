"""A row of attention scores: what a query makes of a block of keys.

A row lies in a buffer, as long as the panels of keys that the register tile has multiplied; what is
beyond the last key is nobody's score, and gets the weight 0.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types

from minigrad.kernels import maths
from minigrad.kernels.jit import intrinsic, jit
from minigrad.kernels.micro import NV
from minigrad.kernels.places import elements
from minigrad.kernels.vector import ADDRESS, I32, Emitter, address_of


def _exp(x: Any) -> Any:
    """e^x, in vector code for float32; here only a name for the compiler."""
    return math.exp(x)


@numba.extending.overload(_exp, strict=False)
def _choose_exp(x: Any) -> Any:
    if x == types.float32:
        return lambda x: maths.exp(x)
    return lambda x: math.exp(x)


class Mask(NamedTuple):
    """What of a head's scores counts; arrays `(batch, heads, L, S)`, or of size 0 for none."""

    causal: bool
    allowed: Any  # booleans
    added: Any  # floats


@jit(inline="always")
def _stretch(x: Any, b: int, h: int, i: int, j: int, size: int) -> Any:
    """x[b, h, i, j : j + size], of which the compiler knows that they are adjacent."""
    at = address_of(x) + b * x.strides[0] + h * x.strides[1] + i * x.strides[2]
    return elements(at, j, size, x)


@jit()
def limited(row: Any, scale: Any, mask: Mask, b: int, h: int, i: int, j: int, keys: int) -> Any:
    """Apply scale and mask to the scores of query i with the keys from j on; -inf for none.

    Returns the scale that is left to be applied.
    """
    number = row.dtype.type
    if mask.added.size or not scale > 0:
        for n in range(row.size):
            row[n] *= scale
        scale = number(1)
    if mask.added.size:
        added = _stretch(mask.added, b, h, i, j, keys)
        for n in range(keys):
            row[n] += added[n]
    if mask.allowed.size:
        allowed = _stretch(mask.allowed, b, h, i, j, keys)
        for n in range(keys):
            row[n] = row[n] if allowed[n] else number(-np.inf)
    if mask.causal:
        keys = min(keys, i + 1 - j)
    for n in range(max(keys, 0), row.size):
        row[n] = -np.inf
    return scale


@intrinsic
def greatest_of(_typing: Any, at: Any, count: Any, zero: Any) -> Any:
    """The greatest of `count` numbers from address `at` on, as many as rows of the tile have.

    A nan is passed over: -inf is the greatest of nothing else. A loop in Python would not become
    vector code, for the optimiser keeps to the order of comparisons, in which a nan would matter.
    """

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        at, count, _ = args
        e = Emitter(builder, zero)
        least = ir.Constant(e.vector, [-math.inf] * e.lanes)

        def greater(x: Any, y: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", x, y), x, y)

        before = builder.block
        loop, after = builder.append_basic_block("most"), builder.append_basic_block("most.end")
        builder.branch(loop)
        builder.position_at_end(loop)
        left, here = builder.phi(ADDRESS), builder.phi(ADDRESS)
        most = [builder.phi(e.vector) for _ in range(NV)]
        new = [
            greater(e.load(e.step(here, ADDRESS(e.vector_bytes), n), e.vector), most[n])
            for n in range(NV)
        ]
        less = builder.sub(left, ADDRESS(NV * e.lanes))
        then = builder.add(here, ADDRESS(NV * e.vector_bytes))
        from_to = [(left, count, less), (here, at, then)]
        from_to += [(old, least, value) for old, value in zip(most, new, strict=True)]
        for phi, first, next_one in from_to:
            phi.add_incoming(first, before)
            phi.add_incoming(next_one, loop)
        builder.cbranch(builder.icmp_signed(">", less, ADDRESS(0)), loop, after)
        builder.position_at_end(after)
        result = functools.reduce(greater, new)
        half = e.lanes // 2
        while half:
            turned = [(lane + half) % e.lanes for lane in range(e.lanes)]
            result = greater(result, e.shuffle(result, result, turned))
            half //= 2
        return builder.extract_element(result, I32(0))

    return zero(types.intp, types.intp, zero), emit


@jit(fastmath={"reassoc", "contract"})
def exponentials(row: Any, scale: Any, most: Any) -> Any:
    """Turn scores into e^(scale score - most), and return their sum."""
    total = row.dtype.type(0)
    for n in range(row.size):
        e = _exp(row[n] * scale - most)
        row[n] = e
        total += e
    return total


@jit()
def nothing_allowed(mask: Mask, b: int, h: int, i: int, keys: int) -> bool:
    """Whether query i may attend to nothing."""
    for j in range(min(keys, i + 1) if mask.causal else keys):
        allowed = mask.allowed.size == 0 or mask.allowed[b, h, i, j]
        if allowed and not (mask.added.size and mask.added[b, h, i, j] == -np.inf):
            return False
    return True


@jit()
def weights_and_slopes(weights: Any, slopes: Any, scale: Any, lse: Any, mean: Any) -> None:
    """Turn scores into weights p = e^(scale score - lse), and slopes by p into p (slope - mean)."""
    for n in range(weights.size):
        p = _exp(weights[n] * scale - lse)
        weights[n] = p
        slopes[n] = p * (slopes[n] - mean)
