"""All thresholds of gradcheck, each with its reason, and the tolerances that follow from them.

Two mistakes are possible, and every threshold is a balance between them: a right gradient may be
accused, and a wrong one may pass. Between "agree" and "disagree" there is therefore a gap, in which
the answer is "cannot tell". The tests check both sides: no right composition of ops is called wrong
in float64 or float32, and no fault of the bug zoo (`tests/zoo`) is called right.

eps is the distance from 1 to the next number of a dtype: 2.2e-16 in float64, 1.2e-7 in float32. A
"root" is its square root: 1.5e-8 and 3.5e-4.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

FLOAT64, FLOAT32 = np.dtype(np.float64), np.dtype(np.float32)

# What must be the same, although it may be computed in another order:

# Two calls of f with the same inputs, relative to the largest value. A sum of some thousand terms
# in another order changes by less; randomness changes far more.
SAME_VALUES = 1e-12
# Two paths to one gradient, relative to it. If they are closer, only the first one is judged.
SAME_PATH = 1e-9
# The gradients for a cotangent of ones with its own memory and for one that is broadcast, in eps of
# the largest element, or of that for other cotangents: kernels for other strides add in another
# order.
SAME_BROADCAST_EPS = 1e3

# Where differences are taken:

# The first step, relative to x or to 1. With it both errors of Richardson's extrapolation, h^4 from
# the curvature and eps / h from rounding, are far below the tolerance: 1e-12 and 2e-13 in float64,
# where it is 1e-6, and 2e-5 and 2e-6 in float32, where it is 1e-3.
FIRST_STEP = {FLOAT64: 2.0**-10, FLOAT32: 2.0**-4}
COARSEST_STEP = 2.0**-2  # the first step for dtypes with fewer digits than these
# A step is divided by this to make the next one: h^4 shrinks 4,096 times, eps / h grows 8 times.
STEP_DIVISION = 8
# How often: at least 4 times, to 2^-22, because a steep function may look straight at first; at
# most 13 times, to 2^-49, while curvature is what hides the answer.
FEWEST_DIVISIONS, MOST_DIVISIONS = 4, 13
# Where rounding is what hides the answer, these multiples of the first step: 2^-7 and 2^-4.
STEP_MULTIPLES = 8, 64
# Beside a singularity at 0, as of log at 1e-100, the first step is relative to any x, over these.
SINGULARITY_DIVISIONS = 4, 32
# The directions in which all elements of a sampled operand move; a fault may be orthogonal to one.
RANDOM_DIRECTIONS = 8
# Another point, which a VJP that remembers a call does not know: 1.6 % away relative to each
# element, so that a remembered value is wrong by far more than the tolerance, and every element
# stays on its side of 0.
ANOTHER_POINT = 2.0**-6
# How far points near a kink are, and the step there, relative to x or to 1: the step is much
# smaller than the distance, so that it rarely crosses the kink, and large enough for the dtype.
NEARBY = {FLOAT64: (2.0**-17, 2.0**-26), FLOAT32: (2.0**-7, 2.0**-11)}
COARSEST_NEARBY = 2.0**-2, 2.0**-4  # for dtypes with fewer digits than these
# So many points: with a probability of 93 %, all 6 orders of three ties are among them.
NEIGHBOURS = 24

# What slopes say: kinks, divergences and limits.

# The slopes on both sides of a point may differ by this share of the slope, or so many times the
# rounding, where a quotient counts as one of a smooth function. A quotient across a kink is the
# mean of two slopes, and may be right by chance.
STRAIGHT, STRAIGHT_NOISE = 1e-3, 10
# A difference of the slopes on both sides that is larger than this share of the one before belongs
# to a kink, unless rounding makes it. Of a smooth function it shrinks with the square of the step
# at least, to 1/64.
BEND_REMAINS, BEND_NOISE = 0.5, 10
# Both slopes at a kink must be clear to this share of their difference, to judge by them.
KINK_ERROR = 0.1
# Slopes at points near this one that differ by this share at most belong to no kink, but to a
# curve. At a kink the gradient must be between them, with a margin for the curve.
ALIKE, NEIGHBOUR_MARGIN = 0.05, 1e-4
# Entries that are wrong and were found to be at no kink. After so many, kinks are not the reason
# that entries are wrong, and no more points are searched: each search takes 120 values of f.
ENOUGH_WRONG = 8
# A slope has no limit if it grows by more than this factor when the step becomes an eighth. That of
# sqrt(x) at 0 grows by 2.8, and that of x^0.8 by 1.5.
GROWTH = 1.5
# Where f is finite on one side only: the slope there has a limit if its last change is at most this
# share of the one before, and it contradicts a gradient that is so many of the last change away.
# At 0 the slope of x log(x) changes by as much each time.
SETTLED, ONE_SIDED_ERRORS = 0.5, 10
# Quotients tend to a gradient if each distance is at most this share of the last one, over more
# than so many of them. That of an error of order h shrinks to 1/8, that of sqrt(h) to 0.35.
APPROACH, APPROACH_QUOTIENTS = 0.5, 3

# What rounding may do:

# Units in the last place that a value of f itself may be off by. With the first step a quotient is
# then good to 1e-11 in float64, and to 1e-4 in float32.
ROUNDING_UNITS = 50
# The same for dtypes with fewer digits than float32: with more units no quotient of float16 could
# be judged at all. Kernels for them add in float32, and round once.
COARSE_UNITS = 2
# The tolerance for functions that do not compute in float64, in roots of eps: 0.1 % in float32.
TOLERANCE_ROOTS = 3
# The error bar of a number: so many times the largest change that a few runs with other roundings
# show, because these may happen to cancel.
SPREADS = 8
# An error bar is at most this share of the largest number on the way, or some eps of 1: where a tie
# decides, a gradient jumps, and that is no rounding. For dtypes other than float64 the share is in
# roots of eps: 1e-4 in float32.
SHARE, SHARE_ROOTS, LEAST_EPS = 1e-8, 0.3, 64
# In eps of the largest number on the way: what may remain of it inside an op, where it cannot be
# seen. The gradient of a confident classifier, 1 - softmax, is such a remainder.
UNSEEN_EPS = 16
SAMPLED = 16  # elements of a result, which say whether it was computed or only picked out

# Gradients in float32 are compared with differences in float64. They are called right within the
# tolerance of float32, so many spreads, or this share of the largest element, if all is rounding.
NARROW_RIGHT_SPREADS, NARROW_RIGHT_SHARE = 4, 1e-9
# They are called wrong beyond so many eps of the largest element, 3e-5 of it, and so many spreads:
# small elements may be what remains of large ones.
NARROW_WRONG_EPS, NARROW_WRONG_SPREADS = 256, 16
NARROW_DIFFERENCES = 0.1  # and only if differences themselves are good to this share of it


def is_float(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is one of floats, of numpy or of ml_dtypes, such as bfloat16."""
    return dtype.kind == "f" or (dtype.type.__module__ == "ml_dtypes" and "float" in dtype.name)


def finfo(dtype: np.dtype[Any]) -> Any:
    """Return the limits of a dtype of floats."""
    return np.finfo(dtype) if dtype.kind == "f" else sys.modules["ml_dtypes"].finfo(dtype)


def least_exact(dtypes: Iterable[np.dtype[Any]]) -> np.dtype[Any]:
    """Return the float dtype with the largest eps."""
    return max(dtypes, key=lambda dtype: float(finfo(dtype).eps))


def relative_tolerance(dtype: np.dtype[Any], tolerance: float) -> float:
    """Return the relative tolerance in a dtype, if it is `tolerance` in float64."""
    if dtype == FLOAT64:
        return tolerance
    return max(tolerance, TOLERANCE_ROOTS * math.sqrt(float(finfo(dtype).eps)))


@dataclass(frozen=True)
class Tolerance:
    """The amount that a right derivative may differ from differences by."""

    relative: float  # to the derivative
    # Of the gradients, but 1 at most: noise of differences is compared with the tolerance of it.
    scale: float = 1.0
    rounding: float = 0.0  # the error bar of the derivative, as it was measured
    # What rounding might have left in the derivative where it could not be measured. One that is
    # off by less is not called wrong.
    unseen: float = 0.0

    def noise(self, size: float) -> float:
        """Return the noise up to which a derivative of this size can be called right."""
        return self.relative * max(self.scale, size)
