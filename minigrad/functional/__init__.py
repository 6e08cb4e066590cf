"""Functions that are composed of ops.

Most have no VJP of their own, because the ops that they call have one. A few are ops themselves
(attention, the loss of class labels): each names the composition that it replaces.

They take Tensors, and also plain arrays, as ops do.
"""

from minigrad.functional.composition import COMPOSITIONS
from minigrad.functional.convolution import *
from minigrad.functional.decompositions import *
from minigrad.functional.elementwise import *
from minigrad.functional.indexing import *
from minigrad.functional.linalg import *
from minigrad.functional.losses import *
from minigrad.functional.neural import *
from minigrad.functional.normalization import *
from minigrad.functional.pooling import *
from minigrad.functional.shape import *
from minigrad.functional.statistics import *

__all__ = ["SVD", "Eigh", "Slogdet", "ValuesAndIndices", *sorted(COMPOSITIONS)]
