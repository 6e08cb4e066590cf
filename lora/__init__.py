"""lora: low-rank adapters on minigrad models.

`LoRALayer` is one adapted layer; `attach` puts them on a whole model.
"""

from lora.attach import AttachReport, attach, detach, disabled, fold
from lora.config import LoRAConfig
from lora.layer import LoRALayer, LoRAScaling
from lora.merge import merge, unmerge
from lora.verify import VerifyReport, verify

__all__ = [
    "AttachReport",
    "LoRAConfig",
    "LoRALayer",
    "LoRAScaling",
    "VerifyReport",
    "attach",
    "detach",
    "disabled",
    "fold",
    "merge",
    "unmerge",
    "verify",
]
