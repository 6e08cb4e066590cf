"""Functions that are compositions of ops, and have no VJP of their own.

They take Tensors, and also plain arrays, as ops do.
"""

from minigrad.functional import (
    attention,
    indexing,
    linalg,
    losses,
    neural,
    products,
    shape,
    statistics,
)
from minigrad.functional.attention import *
from minigrad.functional.indexing import *
from minigrad.functional.linalg import *
from minigrad.functional.losses import *
from minigrad.functional.neural import *
from minigrad.functional.products import *
from minigrad.functional.shape import *
from minigrad.functional.statistics import *

__all__: list[str] = []
__all__ += attention.__all__
__all__ += indexing.__all__
__all__ += linalg.__all__
__all__ += losses.__all__
__all__ += neural.__all__
__all__ += products.__all__
__all__ += shape.__all__
__all__ += statistics.__all__
