"""Adapters in PEFT's format, read and written.

A folder has two files, `adapter_config.json` and `adapter_model.safetensors`. What PEFT wrote
loads here, and the other way round. `save` and `load` are for models, `AdapterFolder` and
`write_folder` need none. In reading order: config, facts, folder, loading, saving.
"""

from lora.peft.config import CONFIG, PeftConfig, read_config
from lora.peft.facts import Facts, LayerFacts, fingerprint
from lora.peft.folder import WEIGHTS, AdapterFolder, StoredLayer, write_folder
from lora.peft.loading import load
from lora.peft.saving import save

__all__ = ["CONFIG", "WEIGHTS", "AdapterFolder", "Facts", "LayerFacts", "PeftConfig", "StoredLayer"]
__all__ += ["fingerprint", "load", "read_config", "save", "write_folder"]
