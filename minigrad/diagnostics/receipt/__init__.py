"""receipt: what a step computed and kept, and what freezing spared it.

The files in reading order: receipt (what is called, and watches), costs (the FLOPs of every op and
rule), saved (memory held for the backward pass), report and comparison (what is shown).
"""

from minigrad.diagnostics.receipt.comparison import Comparison, compare
from minigrad.diagnostics.receipt.receipt import receipt
from minigrad.diagnostics.receipt.report import Receipt

__all__ = ["Comparison", "Receipt", "compare", "receipt"]
