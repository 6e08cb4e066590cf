"""All thresholds of gradcheck, each with its reason, and the tolerances that follow from them.

Two mistakes are possible: a right gradient may be called wrong, and a wrong one may pass. Every
threshold is a balance between them. So between "agree" and "disagree" there is a gap, in which the
verdict is "cannot tell". The tests check both sides: no right composition of ops is called wrong in
float64 or float32, and no fault of the bug zoo (`tests/zoo`) is called right.

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

# Results that must be equal, although they may be computed in another order:

# Two calls of f with the same inputs, relative to the largest value. A sum of some thousand terms
# in another order changes by less; randomness changes far more.
SAME_VALUES = 1e-12
# Two paths to one gradient, relative to it. If they are closer, only the first path is judged.
SAME_PATH = 1e-9
# The gradients for a cotangent of ones and for a broadcast 1, in eps of the largest element, also
# of the gradient for random cotangents. They may differ, because kernels for other strides add in
# another order.
SAME_BROADCAST_EPS = 1e3

# A VJP is linear in its cotangent. So for cotangents times one of these numbers, the gradient is
# multiplied by it: exactly, because they are powers of two. A VJP that clips large gradients, drops
# small ones or ignores their sign gives others. In float16, a larger or smaller factor would
# overflow or lose digits for ordinary gradients.
SCALES = {
    FLOAT64: (-(2.0**40), 2.0**40, 2.0**-40),
    FLOAT32: (-(2.0**20), 2.0**20, 2.0**-20),
}
COARSE_SCALES = -1024, 1024

# Steps and points of differences:

# The first step, relative to x or to 1. With it, both errors of Richardson's extrapolation, h^4
# from curvature and eps / h from rounding, are far below the tolerance. In float64 they are 1e-12
# and 2e-13, and the tolerance is 1e-6; in float32 they are 2e-5 and 2e-6, and it is 1e-3.
FIRST_STEP = {FLOAT64: 2.0**-10, FLOAT32: 2.0**-4}
COARSEST_STEP = 2.0**-2  # the first step for dtypes with fewer digits than these
# A step is divided by this to make the next one: h^4 shrinks 4,096 times, eps / h grows 8 times.
STEP_DIVISION = 8
# The number of divisions: at least 4, to 2^-22, because a steep function may look straight at
# first; at most 13, to 2^-49, as long as curvature hides the answer.
FEWEST_DIVISIONS, MOST_DIVISIONS = 4, 13
# If rounding hides the answer, the first step is multiplied by these: 2^-7 and 2^-4.
STEP_MULTIPLES = 8, 64
# Near a singularity at 0, as for log at 1e-100, steps are relative to x, and divided by these.
SINGULARITY_DIVISIONS = 4, 32
# The directions in which all elements of a sampled operand move; a fault may be orthogonal to one.
RANDOM_DIRECTIONS = 8
# Another point, for a VJP that uses values of an old call: each element moves by 1.6 %, so that an
# old value is wrong by far more than the tolerance, and every element stays on its side of 0.
ANOTHER_POINT = 2.0**-6
# The distance of points near a kink, and the step there, relative to x or to 1. The step is much
# smaller than the distance, so that it rarely crosses the kink, and large enough for the dtype.
NEARBY = {FLOAT64: (2.0**-17, 2.0**-26), FLOAT32: (2.0**-7, 2.0**-11)}
COARSEST_NEARBY = 2.0**-2, 2.0**-4  # for dtypes with fewer digits than these
# The number of these points: with a probability of 93 %, they have all 6 orders of three ties.
NEIGHBOURS = 24

# Conclusions from slopes: kinks, divergences and limits.

# A quotient counts as that of a smooth function if the slopes on both sides differ by at most this
# share of the slope, or this multiple of the rounding error. A quotient across a kink is the mean
# of two slopes, and may be right by chance.
STRAIGHT, STRAIGHT_NOISE = 1e-3, 10
# There is a kink if the difference of the slopes on both sides is larger than this share of the
# difference before, and than this multiple of the rounding error. For a smooth function the
# difference shrinks at least with the square of the step, to 1/64.
BEND_REMAINS, BEND_NOISE = 0.5, 10
# To judge by the two slopes at a kink, their errors may be at most this share of their difference.
KINK_ERROR = 0.1
# If slopes at nearby points differ by at most this share, there is no kink, but a curve. At a kink,
# the gradient must be between them, with a margin for the curve.
ALIKE, NEIGHBOUR_MARGIN = 0.05, 1e-4
# After this number of wrong entries that are not at a kink, kinks are not the reason for errors,
# and no more nearby points are searched: each search takes 120 values of f.
ENOUGH_WRONG = 8
# A slope has no limit if it grows by more than this factor when the step becomes an eighth. The
# slope of sqrt(x) at 0 grows by 2.8, and the slope of x^0.8 by 1.5.
GROWTH = 1.5
# If f is finite on one side only, the slope there has a limit if its last change is at most this
# share of the change before. It contradicts a gradient whose distance is this multiple of the last
# change. At 0, the slope of x log(x) changes by the same amount each time.
SETTLED, ONE_SIDED_ERRORS = 0.5, 10
# Quotients approach a gradient if each distance is at most this share of the distance before, for
# more than this number of quotients. An error of order h shrinks to 1/8, one of sqrt(h) to 0.35.
APPROACH, APPROACH_QUOTIENTS = 0.5, 3

# Effects of rounding:

# The error of a value of f, in units in the last place. With it, a quotient with the first step is
# exact to 1e-11 in float64, and to 1e-4 in float32.
ROUNDING_UNITS = 50
# The same for dtypes with fewer digits than float32; with more units, no quotient of float16 could
# be judged at all. Kernels for these dtypes add in float32 and round once.
COARSE_UNITS = 2
# The tolerance for functions that do not compute in float64, in roots of eps: 0.1 % in float32.
TOLERANCE_ROOTS = 3
# The error bar of a number is this multiple of the largest change in a few runs with other
# roundings, because in these runs the changes may cancel by chance.
SPREADS = 8
# An error bar is at most this share of the largest intermediate number, or some eps of 1: if a tie
# is decided differently, a gradient jumps, which is not a rounding error. For dtypes other than
# float64, the share is in roots of eps: 1e-4 in float32.
SHARE, SHARE_ROOTS, LEAST_EPS = 1e-8, 0.3, 64
# The rounding error inside an op, which cannot be measured, in eps of the largest intermediate
# number. For example, the gradient 1 - softmax of a confident classifier is a small difference.
UNSEEN_EPS = 16
SAMPLED = 16  # elements of a result that decide whether it was computed or only selected

# Whether f computes in a dtype with fewer digits: its results are the same for a number of that
# dtype and for one that is this number of eps larger, which is rounded to it. They are others at a
# distance of 16 eps. This must change them by some hundred eps of their own dtype, so that the
# smaller step would change them by some eps too.
SAME_DIGITS, OTHER_DIGITS, SEEN_EPS = 0.2, 16, 300

# Gradients in float32 are compared with differences in float64. They are right within the tolerance
# of float32, or this number of spreads, or if all is rounding, this share of the largest element.
NARROW_RIGHT_SPREADS, NARROW_RIGHT_SHARE = 4, 1e-9
# They are wrong if the error is beyond this number of eps of the largest element, 3e-5 of it, and
# beyond this number of spreads, because a small element may be the difference of large ones.
NARROW_WRONG_EPS, NARROW_WRONG_SPREADS = 256, 16
NARROW_DIFFERENCES = 0.1  # and only if the differences are exact to this share of the derivative


def is_float(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is a float dtype of numpy or of ml_dtypes, such as bfloat16."""
    return dtype.kind == "f" or (dtype.type.__module__ == "ml_dtypes" and "float" in dtype.name)


def finfo(dtype: np.dtype[Any]) -> Any:
    """Return the limits of a float dtype, as `np.finfo` does."""
    module = sys.modules[dtype.type.__module__]  # numpy, or ml_dtypes
    return module.finfo(dtype)


def least_exact(dtypes: Iterable[np.dtype[Any]]) -> np.dtype[Any]:
    """Return the float dtype with the largest eps."""
    return max(dtypes, key=lambda dtype: float(finfo(dtype).eps))


def relative_tolerance(dtype: np.dtype[Any], tolerance: float) -> float:
    """Return the relative tolerance in a dtype, given the tolerance in float64."""
    if dtype == FLOAT64:
        return tolerance
    return max(tolerance, TOLERANCE_ROOTS * math.sqrt(float(finfo(dtype).eps)))


@dataclass(frozen=True)
class Tolerance:
    """How much a right derivative may differ from finite differences."""

    relative: float  # the tolerance relative to the derivative
    # The size of the gradients, but at most 1: the noise of differences may be `relative` of it.
    scale: float = 1.0
    rounding: float = 0.0  # the measured error bar of the derivative
    # A bound of rounding errors that could not be measured. A derivative with a smaller error is
    # not called wrong.
    unseen: float = 0.0

    def noise(self, size: float) -> float:
        """Return the largest noise with which a derivative of this size can be called right."""
        return self.relative * max(self.scale, size)
