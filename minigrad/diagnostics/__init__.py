"""Instruments that show whether gradients are right, and where they go."""

from minigrad.diagnostics.gradcheck import GradientError, assert_gradients, gradcheck
from minigrad.diagnostics.report import GradcheckReport

__all__ = ["GradcheckReport", "GradientError", "assert_gradients", "gradcheck"]
