"""verify: LoRA's exact identities, held against a layer as it is.

The files in reading order: verify (what is called), identities (what must hold), subject (a layer
and its numbers), rounding (by how much numbers may be off), checks (what is shown).
"""

from lora.verify.checks import VerifyReport
from lora.verify.verify import verify

__all__ = ["VerifyReport", "verify"]
