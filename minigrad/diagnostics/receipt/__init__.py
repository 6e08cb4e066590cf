"""receipt: what a step computed and saved, and which work freezing avoided.

The files in reading order: receipt (the function to call, and the observer), costs (the FLOPs of
calls and VJPs), sketch (arrays that have only a shape), saved (memory saved for the backward
pass), report and comparison (tables).
"""

from minigrad.diagnostics.receipt.comparison import ReceiptComparison, compare
from minigrad.diagnostics.receipt.receipt import receipt
from minigrad.diagnostics.receipt.report import Receipt

__all__ = ["Receipt", "ReceiptComparison", "compare", "receipt"]
