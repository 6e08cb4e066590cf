"""detect_anomaly: who made the first NaN or Inf?

The files in reading order: anomaly (what is called, and watches), operand (what is said of an
array), causes (the usual ones, by op).
"""

from minigrad.diagnostics.anomaly.anomaly import AnomalyError, detect_anomaly

__all__ = ["AnomalyError", "detect_anomaly"]
