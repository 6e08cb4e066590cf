"""Diagnostics: tools that show whether gradients are right, and which parameters they reach.

Each tool has a folder or a file: gradient_check (gradcheck), gradient_flow (liveness), cost_receipt
(receipt) and anomaly_detection (detect_anomaly). They share recorder (the calls of ops, with module
and line) and loss_call (the loss of a model on a batch).
"""

from minigrad import renamed
from minigrad.diagnostics.anomaly_detection import AnomalyError, detect_anomaly
from minigrad.diagnostics.cost_receipt.counting import receipt
from minigrad.diagnostics.cost_receipt.report import Receipt, ReceiptComparison, compare
from minigrad.diagnostics.gradient_check.check import (
    GradientError,
    assert_gradients,
    assert_vjp,
    check_vjp,
    gradcheck,
)
from minigrad.diagnostics.gradient_check.report import GradcheckReport
from minigrad.diagnostics.gradient_flow.report import LivenessReport
from minigrad.diagnostics.gradient_flow.verdicts import liveness

__all__ = ["AnomalyError", "detect_anomaly"]
__all__ += ["GradcheckReport", "GradientError", "assert_gradients", "assert_vjp", "check_vjp"]
__all__ += ["gradcheck"]
__all__ += ["LivenessReport", "Receipt", "ReceiptComparison", "compare", "liveness", "receipt"]

renamed.hint_names(__name__, lists_all=True)
