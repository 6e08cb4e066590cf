"""Read and write adapters in PEFT's format.

A folder has two files, `adapter_config.json` and `adapter_model.safetensors`. `lora` loads what
PEFT wrote, and PEFT loads what `lora` wrote. `save` and `load` work on models; `AdapterFolder` and
`write_folder` need no model. In reading order: config, facts, keys, folder, loading, saving.
"""

from lora.peft.config import CONFIG, PeftConfig, read_config
from lora.peft.facts import Facts, LayerFacts, fingerprint
from lora.peft.folder import WEIGHTS, AdapterFolder, StoredLayer, write_folder
from lora.peft.loading import load
from lora.peft.saving import save

__all__ = ["CONFIG", "WEIGHTS", "AdapterFolder", "Facts", "LayerFacts", "PeftConfig", "StoredLayer"]
__all__ += ["fingerprint", "load", "read_config", "save", "write_folder"]
