"""LoRA's exact identities, checked on a layer as it is.

The files in reading order: verifying (what is called), equations (what must hold), trial (a copy of
a layer to experiment on), rounding (how far equal results may differ), report (the result).
"""

from lora.identities.report import VerifyReport
from lora.identities.verifying import verify

__all__ = ["VerifyReport", "verify"]
