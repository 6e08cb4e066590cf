"""liveness: which parameters does a step train, and where does the way of the others end?

The files in reading order: liveness (what is called), paths (where values go in the forward pass),
steps (where gradients become zero on the way back), rehearsal (a run that changes nothing),
snapshot (the model as it was), adapters (ranks, and what holds an adapter up), report (what is
shown).
"""

from minigrad.diagnostics.liveness.verdicts import liveness
from minigrad.diagnostics.liveness.report import LivenessReport

__all__ = ["LivenessReport", "liveness"]
