"""lora: low-rank adapters on minigrad models.

`LoRALayer` is one adapted layer; `attach` puts them on a whole model.
"""

from lora.adapted import AdaptedLayer
from lora.adapter import Adapter
from lora.algebra import CombineReport, combine
from lora.attach import attach, detach, remove
from lora.attachment.report import AttachReport
from lora.certificate import MergeCertificate, MergeError
from lora.config import LoRAConfig
from lora.embedding import LoRAEmbedding
from lora.extract import ExtractReport, extract
from lora.layer import LoRALayer
from lora.merge import fold, merge, unmerge
from lora.optim import param_groups, penalty
from lora.quantize import QuantizeReport, quantize
from lora.scaling import LoRAScaling
from lora.switch import active, adapters, disabled, switch
from lora.variants.nf4 import NF4Linear
from lora.verify import VerifyReport, verify

__all__ = [
    "AdaptedLayer",
    "Adapter",
    "AttachReport",
    "CombineReport",
    "ExtractReport",
    "LoRAConfig",
    "LoRAEmbedding",
    "LoRALayer",
    "LoRAScaling",
    "MergeCertificate",
    "MergeError",
    "NF4Linear",
    "QuantizeReport",
    "VerifyReport",
    "active",
    "adapters",
    "attach",
    "combine",
    "detach",
    "disabled",
    "extract",
    "fold",
    "merge",
    "param_groups",
    "penalty",
    "quantize",
    "remove",
    "switch",
    "unmerge",
    "verify",
]
