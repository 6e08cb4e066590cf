"""Instruments that show whether gradients are right, and where they go.

Each is a folder: gradcheck, liveness, receipt, anomaly. They share: recorder (the calls of ops,
with module and line), source_line (the user's line), loss_call (the loss of a model on a batch),
rng_state (random generators that are put back).
"""

from minigrad.diagnostics.anomaly import AnomalyError, detect_anomaly
from minigrad.diagnostics.gradcheck import (
    GradcheckReport,
    GradientError,
    assert_gradients,
    gradcheck,
)
from minigrad.diagnostics.liveness import LivenessReport, liveness
from minigrad.diagnostics.receipt import Receipt, ReceiptComparison, compare, receipt

__all__ = [
    "AnomalyError",
    "GradcheckReport",
    "GradientError",
    "LivenessReport",
    "Receipt",
    "ReceiptComparison",
    "assert_gradients",
    "compare",
    "detect_anomaly",
    "gradcheck",
    "liveness",
    "receipt",
]
