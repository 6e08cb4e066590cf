"""Instruments that show whether gradients are right, and where they go."""

from minigrad.diagnostics.gradcheck import GradcheckReport, GradientError, gradcheck
from minigrad.diagnostics.receipt import receipt
from minigrad.diagnostics.receipt_comparison import Comparison, compare
from minigrad.diagnostics.receipt_report import Receipt

__all__ = [
    "Comparison",
    "GradcheckReport",
    "GradientError",
    "Receipt",
    "compare",
    "gradcheck",
    "receipt",
]
