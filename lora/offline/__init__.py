"""Work on adapters and models in files: inspect, check, merge, extract and convert.

No model is loaded, and only some rows of a base are in memory at a time. `inspection` summarises
and checks an adapter; `merged_model` checks a merged model. `adapted_base` finds the tensors of a
base that belong to an adapter, `stored_weight` reads them, and `model_folder` guesses what the
files of a model mean. `merging`, `extracting` and `converting` write new files. `workers` shares
the work among processes. `python -m lora` runs these functions from the command line.
"""

from lora.offline.converting import ConvertedAdapter, convert_adapter
from lora.offline.extracting import ExtractedFiles, extract_files
from lora.offline.inspection import Findings, Summary, check_adapter, summarise
from lora.offline.merging import MergedFiles, merge_files

__all__ = ["ConvertedAdapter", "ExtractedFiles", "Findings", "MergedFiles", "Summary"]
__all__ += ["check_adapter", "convert_adapter", "extract_files", "merge_files", "summarise"]
