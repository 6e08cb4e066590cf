"""Functions that are compositions of ops, and have no VJP of their own.

They take Tensors, and also plain arrays, as ops do.
"""

from minigrad.functional.composition import COMPOSITIONS
from minigrad.functional.indexing import *
from minigrad.functional.linalg import *
from minigrad.functional.losses import *
from minigrad.functional.neural import *
from minigrad.functional.shape import *
from minigrad.functional.statistics import *

__all__ = ["TopK", *sorted(COMPOSITIONS)]
