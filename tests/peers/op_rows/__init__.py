"""How ours is called for each entry of PyTorch's database of ops.

A row is the name of a function of ours that takes the same arguments, after `dim` is renamed to
`axis` and `keepdim` to `keepdims`; or a function of `m`, our module, and the arguments, which calls
ours as a user would: another name, a method, a few functions composed. Numpy makes indices only.

Names in PyTorch have a slash before the variant, if there is one.
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
