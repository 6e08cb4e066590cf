"""Functions that are composed of ops.

Most of them are compositions: they need no VJP, because the ops that they call have VJPs. A few,
such as attention and the loss of class labels, are ops themselves, and name the composition that
they replace. All accept Tensors and plain arrays, as ops do.
"""

from typing import TYPE_CHECKING

from minigrad import renamed
from minigrad.functional.compositions import COMPOSITIONS
from minigrad.functional.convolutions import *
from minigrad.functional.decompositions import *
from minigrad.functional.elementwise import *
from minigrad.functional.indexing import *
from minigrad.functional.linalg import *
from minigrad.functional.losses import *
from minigrad.functional.neural import *
from minigrad.functional.normalization import *
from minigrad.functional.pooling import *
from minigrad.functional.shape import *

if not TYPE_CHECKING:  # a type checker finds the functions in the modules above
    __all__ = ["SVD", "Eigh", "Slogdet", "ValuesAndIndices", *sorted(COMPOSITIONS)]
renamed.hint_names(__name__, lists_all=True)
