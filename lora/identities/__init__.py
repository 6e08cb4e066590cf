"""LoRA's exact identities, checked on a layer as it is.

The files in reading order: verifying (what is called, and its report), equations (what must hold),
trial (a copy of a layer to experiment on, and how far equal results may differ).
"""

from lora.identities.verifying import VerifyReport, verify

__all__ = ["VerifyReport", "verify"]
