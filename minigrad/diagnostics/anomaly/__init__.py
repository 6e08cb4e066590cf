"""detect_anomaly: who made the first NaN or Inf?

The files in reading order: anomaly (what is called), detector (what is looked at), operand (what is
said of an array), stack (where in the program), causes (the usual ones, by op), error.
"""

from minigrad.diagnostics.anomaly.anomaly import detect_anomaly
from minigrad.diagnostics.anomaly.error import AnomalyError

__all__ = ["AnomalyError", "detect_anomaly"]
