"""The error that names the first NaN or Inf."""

from __future__ import annotations

from minigrad.diagnostics.anomaly.operand import Operand
from minigrad.diagnostics.source_line import Origin


class AnomalyError(FloatingPointError):
    """The first NaN or Inf, and who made it. Raised inside `detect_anomaly`.

    Attributes:
        op: the name of the op; of the loss, the op that made it, or "leaf"; "leaf" also for the
            whole gradient of one; the class of an optimiser.
        phase: "forward", "backward" or "step", that of an optimiser.
        origin: the user's line: of the call of the op, also where its rule failed; else of the call
            of `backward()` or `step()`. None if the op was called before `detect_anomaly` began, or
            in another thread.
        operands: what the op, or its rule, computed with, and last what it gave.
    """

    def __init__(
        self,
        message: str,
        op: str = "",
        phase: str = "",
        origin: Origin | None = None,
        operands: tuple[Operand, ...] = (),
    ) -> None:
        super().__init__(message)
        self.op = op
        self.phase = phase
        self.origin = origin
        self.operands = operands
