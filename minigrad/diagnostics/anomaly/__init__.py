"""detect_anomaly: which op made the first NaN or Inf?

The files in reading order: anomaly (the function that is called), detector (what is looked at),
error (what is said of it). The usual causes stand in the blocks of the ops.
"""

from minigrad.diagnostics.anomaly.anomaly import detect_anomaly
from minigrad.diagnostics.anomaly.error import AnomalyError

__all__ = ["AnomalyError", "detect_anomaly"]
