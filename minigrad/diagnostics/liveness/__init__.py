"""liveness: which parameters does a step train, and where do the paths of the others end?

The files in reading order: verdicts (the function that is called), forward_trace (where values go
in the forward pass), backward_trace (where gradients become zero on their paths back), dry_run (a
step that changes nothing), report (what is shown).
"""

from minigrad.diagnostics.liveness.report import LivenessReport
from minigrad.diagnostics.liveness.verdicts import liveness

__all__ = ["LivenessReport", "liveness"]
