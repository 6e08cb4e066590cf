"""detect_anomaly: who made the first NaN or Inf?

The files in reading order: anomaly (what is called), detector (what is looked at), operand (what is
said of an array), error. The usual causes stand in the blocks of the ops.
"""

from minigrad.diagnostics.anomaly.anomaly import detect_anomaly
from minigrad.diagnostics.anomaly.error import AnomalyError

__all__ = ["AnomalyError", "detect_anomaly"]
