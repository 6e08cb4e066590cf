"""lora: low-rank adapters on minigrad models.

`LoRALayer` is one adapted layer; `attach` puts adapters on a model. In reading order:

    linear, embedding, convolution the three kinds of adapted layers
    adapted_layer, adapter, frozen their common parts: the layer, its updates, the frozen matrix W
    scaling, variants              the factor s; DoRA, PiSSA, NF4 and bfloat16
    config, patterns, expressions  which layers of a model get an adapter
    attachment, attaching          attach adapters to a model, switch and remove them
    quantization, optim            the base in few bits; LoRA+
    merging, certificate           merging, and the error that it causes
    algebra, extraction            sums of adapters; adapters from the difference of two models
    identities, liveness           check that LoRA's identities hold, and that adapters train
    spectra, viz                   singular values, and pictures of the updates
    peft, offline                  PEFT's folders; `python -m lora` on files, without a model
    text                           language models for `train`, `generate` and `eval`
"""

import minigrad as minigrad  # isort: skip  # first: it refuses an old Python with a clear message

from lora import viz
from lora.adapted_layer import AdaptedLayer
from lora.adapter import Adapter
from lora.algebra import CombineReport, combine
from lora.attaching import AttachReport, active, adapters, attach, detach, disabled, remove, switch
from lora.certificate import MergeCertificate, MergeError
from lora.config import LoRAConfig
from lora.convolution import LoRAConv
from lora.embedding import LoRAEmbedding
from lora.extraction import ExtractReport, extract
from lora.identities import VerifyReport, verify
from lora.linear import LoRALayer
from lora.merging import fold, merge, unmerge
from lora.optim import param_groups, penalty
from lora.peft import load, save
from lora.quantization import QuantizeReport, quantize
from lora.scaling import LoRAScaling
from lora.variants.narrow import BFloat16Embedding, BFloat16Linear, NF4Linear
from minigrad import renamed

__version__ = minigrad.__version__  # one distribution has both packages

__all__ = ["AdaptedLayer", "Adapter", "AttachReport", "BFloat16Embedding", "BFloat16Linear"]
__all__ += ["CombineReport", "ExtractReport", "LoRAConfig", "LoRAConv", "LoRAEmbedding"]
__all__ += ["LoRALayer", "LoRAScaling", "MergeCertificate"]
__all__ += ["MergeError", "NF4Linear", "QuantizeReport", "VerifyReport", "active", "adapters"]
__all__ += ["attach", "combine", "detach", "disabled", "extract", "fold", "load", "merge"]
__all__ += ["param_groups", "penalty", "quantize", "remove", "save", "switch", "unmerge", "verify"]
__all__ += ["viz"]

renamed.hint_names(__name__)
