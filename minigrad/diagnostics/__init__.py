"""Instruments that show whether gradients are right, and where they go."""

from minigrad.diagnostics.anomaly import AnomalyError, detect_anomaly
from minigrad.diagnostics.gradcheck import GradcheckReport, GradientError, gradcheck

__all__ = ["AnomalyError", "GradcheckReport", "GradientError", "detect_anomaly", "gradcheck"]
