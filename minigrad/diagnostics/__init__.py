"""Instruments that show whether gradients are right, and where they go."""

from minigrad.diagnostics.gradcheck import GradcheckReport, GradientError, gradcheck
from minigrad.diagnostics.liveness import liveness
from minigrad.diagnostics.liveness_report import LivenessReport

__all__ = ["GradcheckReport", "GradientError", "LivenessReport", "gradcheck", "liveness"]
