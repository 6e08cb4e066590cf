"""The table of derivatives, by family. A new op is one block here, and one row in tests/cases/."""

from minigrad.ops import (
    activation,
    arithmetic,
    comparison,
    elementwise,
    indexing,
    linalg,
    normalization,
    ordering,
    products,
    quantized,
    reduction,
    shape,
    trigonometric,
)
from minigrad.ops.activation import *
from minigrad.ops.arithmetic import *
from minigrad.ops.comparison import *
from minigrad.ops.elementwise import *
from minigrad.ops.indexing import *
from minigrad.ops.linalg import *
from minigrad.ops.normalization import *
from minigrad.ops.ordering import *
from minigrad.ops.products import *
from minigrad.ops.quantized import *
from minigrad.ops.reduction import *
from minigrad.ops.shape import *
from minigrad.ops.trigonometric import *

__all__: list[str] = []
__all__ += activation.__all__
__all__ += arithmetic.__all__
__all__ += comparison.__all__
__all__ += elementwise.__all__
__all__ += indexing.__all__
__all__ += linalg.__all__
__all__ += normalization.__all__
__all__ += ordering.__all__
__all__ += products.__all__
__all__ += quantized.__all__
__all__ += reduction.__all__
__all__ += shape.__all__
__all__ += trigonometric.__all__
