"""How minigrad's functions are called for each entry of PyTorch's database of ops.

A row is the name of a function of minigrad that takes the same arguments, after `dim` is renamed to
`axis` and `keepdim` to `keepdims`. Or it is a function of `m`, which is minigrad, and of PyTorch's
arguments. It calls minigrad as a user would: a function of another name, a method, or several
functions. It uses numpy for indices only.

If a function of PyTorch has variants, the name of its row ends with a slash and the variant.
"""

from tests.peers.op_rows.elementwise import ELEMENTWISE
from tests.peers.op_rows.exceptions import ON_PURPOSE, OUT_OF_SCOPE
from tests.peers.op_rows.indices import INDICES
from tests.peers.op_rows.losses import LOSSES
from tests.peers.op_rows.masked import MASKED
from tests.peers.op_rows.neural import NEURAL
from tests.peers.op_rows.products import PRODUCTS
from tests.peers.op_rows.reductions import REDUCTIONS
from tests.peers.op_rows.row import Row, SkippedError, as_row
from tests.peers.op_rows.shapes import SHAPES

__all__ = ["ON_PURPOSE", "OUT_OF_SCOPE", "ROWS", "Row", "SkippedError"]

TABLES = (ELEMENTWISE, REDUCTIONS, PRODUCTS, SHAPES, INDICES, NEURAL, LOSSES, MASKED)
ROWS = {name: as_row(row) for table in TABLES for name, row in table.items()}
