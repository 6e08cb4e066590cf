"""The table of derivatives: all ops, by family. For adding an op, see .github/CONTRIBUTING.md."""

from typing import TYPE_CHECKING

from minigrad.core.op import OPS
from minigrad.ops.activation import *
from minigrad.ops.arithmetic import *
from minigrad.ops.comparison import *
from minigrad.ops.convolutions import *
from minigrad.ops.elementwise import *
from minigrad.ops.linalg import *
from minigrad.ops.normalization import *
from minigrad.ops.position import *
from minigrad.ops.products import *
from minigrad.ops.recurrent import *
from minigrad.ops.reduction import *
from minigrad.ops.shape import *

if not TYPE_CHECKING:  # a type checker finds the ops in the modules above
    __all__ = sorted(OPS)


def __dir__() -> list[str]:
    return sorted(OPS)  # without the names that the modules above import
