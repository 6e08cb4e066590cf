"""Instruments that show whether gradients are right, and where they go."""

from minigrad.diagnostics.anomaly import AnomalyError, detect_anomaly
from minigrad.diagnostics.gradcheck import GradientError, assert_gradients, gradcheck
from minigrad.diagnostics.liveness import liveness
from minigrad.diagnostics.liveness_report import LivenessReport
from minigrad.diagnostics.receipt import receipt
from minigrad.diagnostics.receipt_comparison import Comparison, compare
from minigrad.diagnostics.receipt_report import Receipt
from minigrad.diagnostics.report import GradcheckReport

__all__ = [
    "AnomalyError",
    "Comparison",
    "GradcheckReport",
    "GradientError",
    "LivenessReport",
    "Receipt",
    "assert_gradients",
    "compare",
    "detect_anomaly",
    "gradcheck",
    "liveness",
    "receipt",
]
