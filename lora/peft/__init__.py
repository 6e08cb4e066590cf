"""Adapters in files: PEFT's folders, written and read.

A folder has two files, `adapter_config.json` and `adapter_model.safetensors`. What PEFT wrote loads
here, and the other way round. `save` and `load` are for models; `AdapterFolder` needs none.
"""

from lora.peft.config import CONFIG, PeftConfig, read_config
from lora.peft.facts import Facts, LayerFacts
from lora.peft.fingerprint import fingerprint
from lora.peft.folder import WEIGHTS, AdapterFolder, StoredLayer
from lora.peft.loading import load
from lora.peft.saving import save
from lora.peft.writing import write_folder

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "AdapterFolder",
    "Facts",
    "LayerFacts",
    "PeftConfig",
    "StoredLayer",
    "fingerprint",
    "load",
    "read_config",
    "save",
    "write_folder",
]
