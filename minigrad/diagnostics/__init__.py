"""Instruments that show whether gradients are right, and where they go."""

from minigrad.diagnostics.gradcheck import GradcheckReport, GradientError, gradcheck

__all__ = ["GradcheckReport", "GradientError", "gradcheck"]
