"""Files of tensors in the safetensors format: read lazily, and written completely or not at all."""

from minigrad import renamed
from minigrad.io.atomic import replacing, write_atomically
from minigrad.io.sharded import INDEX, TensorSet, open_tensors, writing_set
from minigrad.io.tensor_file import TensorFile, TensorWriter, load_state, save_state, writing
from minigrad.io.tensor_info import TensorInfo
from minigrad.io.together import find, replacing_together, unfinished

__all__ = ["find", "replacing", "replacing_together", "unfinished", "write_atomically"]
__all__ += ["INDEX", "TensorSet", "open_tensors", "writing_set"]
__all__ += ["TensorFile", "TensorInfo", "TensorWriter", "load_state", "save_state", "writing"]

renamed.hint_names(__name__)
