"""Adapters in files: PEFT's folders, written and read.

A folder has two files, `adapter_config.json` and `adapter_model.safetensors`. What PEFT wrote loads
here, and the other way round. `save` and `load` are for models; `AdapterFolder` needs none.
"""

from lora.files.config import CONFIG, PeftConfig, read_config
from lora.files.facts import Facts, LayerFacts
from lora.files.fingerprint import fingerprint
from lora.files.folder import WEIGHTS, AdapterFolder, StoredLayer
from lora.files.loading import load
from lora.files.saving import save
from lora.files.writing import write_folder

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
