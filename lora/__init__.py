"""lora: low-rank adapters on minigrad models.

`LoRALayer` is one adapted layer; `attach` puts them on a whole model. In reading order:

    layer, embedding            what is computed
    adapted, adapter, weight    what these share: a frozen layer, the update, the matrix W
    merged, scaling, variants   a weight with updates in it, the factor s, DoRA, PiSSA, NF4
    config, patterns            which layers of a model get an adapter
    attachment, attach          how it is put on
    surgery, full_copies        one object in the place of another; what is trained as a whole
    switch, quantize, optim     which adapters take part; the base in four bits; LoRA+
    merge, certificate          merging, and what it loses
    factors, algebra, extract   sums of adapters, and adapters of differences
    verify                      whether LoRA's identities hold
    update, spectrum, viz       the numbers of an update, and pictures of them
    peft, offline               PEFT's folders; and `python -m lora`, which needs no model
"""

import minigrad as minigrad  # isort: skip  # first, since it refuses an old Python in a sentence

from lora import viz
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
from lora.peft import load, save
from lora.quantize import QuantizeReport, quantize
from lora.scaling import LoRAScaling
from lora.switch import active, adapters, disabled, switch
from lora.variants.nf4 import NF4Linear
from lora.verify import VerifyReport, verify

__version__ = minigrad.__version__  # one distribution has both packages

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
    "load",
    "merge",
    "param_groups",
    "penalty",
    "quantize",
    "remove",
    "save",
    "switch",
    "unmerge",
    "verify",
    "viz",
]
