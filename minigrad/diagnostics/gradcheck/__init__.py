"""gradcheck: is a gradient right? Three answers, each with a reason.

The files in reading order: gradcheck (what is called), subject (a function or a module, and its
operands), problem (its gradients, by every way that leads to one), differences (the judge of one
number), narrow (gradients in float32), comparing (entry by entry), report and heatmap (what is
shown), command (`python -m minigrad check`).
"""

from minigrad.diagnostics.gradcheck.gradcheck import GradientError, assert_gradients, gradcheck
from minigrad.diagnostics.gradcheck.report import GradcheckReport

__all__ = ["GradcheckReport", "GradientError", "assert_gradients", "gradcheck"]
