"""What ops cost: one table of FLOPs, for the forward of each op and for each of its rules.

The conventions:

- a multiply-add is 2 FLOPs, so a product `(m, k) @ (k, n)` is 2 m k n;
- an op on elements is 1 for each element of its result, be it a sum, a comparison or a logarithm;
- a reduction is 1 for each element that goes in;
- what only moves or converts elements (a view, a copy, an index) is 0;
- a rule costs what the ops in it cost, as it is written in the table of derivatives;
- a fused op costs what its composition costs. Its rule, a kernel, costs what its formula says.

So causal attention counts as the whole one. A gradient that is summed over axes that were
broadcast, as that of a bias, and the sum of gradients that meet in one tensor, are the engine's
work, and are counted by the receipt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from minigrad.core.checkpoint import CHECKPOINT
from minigrad.core.op import OPS, identity
from minigrad.diagnostics.receipt.costs.cost import Call, Cost, per_element
from minigrad.diagnostics.receipt.costs.elements import ELEMENTS, MOVES
from minigrad.diagnostics.receipt.costs.products import LINEAR_ALGEBRA, PRODUCTS
from minigrad.diagnostics.receipt.costs.reductions import LOSSES, NORMALIZATION, REDUCTIONS
from minigrad.functional.attention import fused_attention
from minigrad.functional.fused_losses import label_loss, squared_error
from minigrad.functional.neural import dropped
from minigrad.optim import SGD, Adam, AdamW

if TYPE_CHECKING:
    from minigrad.core.op import Op

__all__ = ["COSTS", "STEP_COSTS", "Call", "Cost", "per_element"]

_ROWS: dict[str, Cost] = {
    **PRODUCTS,
    **LINEAR_ALGEBRA,
    **REDUCTIONS,
    **NORMALIZATION,
    **MOVES,
    **ELEMENTS,
    **LOSSES,
}
_PRIVATE = (CHECKPOINT, dropped, fused_attention, identity, label_loss, squared_error)

COSTS: dict[Op[Any], Cost] = {op: _ROWS[op.name] for op in (*OPS.values(), *_PRIVATE)}
"""The cost of every op. Add one for an op of your own, and receipts count it."""


def _sgd(group: Mapping[str, Any]) -> int:
    velocity = 2 + bool(group["dampening"]) + 2 * bool(group["nesterov"])
    return 2 + bool(group["momentum"]) * velocity + 2 * bool(group["weight_decay"])


def _adam(group: Mapping[str, Any]) -> int:
    return 14 + bool(group["amsgrad"]) + 2 * bool(group["weight_decay"])


STEP_COSTS: dict[type, Callable[[Mapping[str, Any]], int]] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adam,
}
"""The FLOPs of an optimiser's step for each number, under the options of a group: its formula's."""
