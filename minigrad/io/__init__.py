"""Files of tensors, in the format of safetensors: read lazily, written completely or not at all."""

from minigrad.io.atomic import (
    find,
    replacing,
    replacing_together,
    write_atomically,
)
from minigrad.io.reader import TensorFile
from minigrad.io.sharded import INDEX, TensorSet, open_tensors, writing_set
from minigrad.io.state import load_state, save_state
from minigrad.io.tensor_info import TensorInfo
from minigrad.io.writer import TensorWriter, writing

__all__ = [
    "INDEX",
    "TensorFile",
    "TensorInfo",
    "TensorSet",
    "TensorWriter",
    "find",
    "load_state",
    "open_tensors",
    "replacing",
    "replacing_together",
    "save_state",
    "write_atomically",
    "writing",
    "writing_set",
]
