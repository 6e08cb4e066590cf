"""LoRA's exact identities, checked on the layers of a model.

The files in reading order: verifying (the entry point and its report), equations (the identities),
trial (a copy of a layer to experiment on, and bounds on its rounding errors).
"""

from lora.identities.verifying import VerifyReport, verify

__all__ = ["VerifyReport", "verify"]
