"""Work on adapters and models in files, which are never loaded: inspect, check, merge and extract.

No more than some rows of a base are in memory at a time. `inspection` summarises and checks an
adapter; `model_folder` finds the tensors of a base that it is about, and `stored_weight` reads
them; `merging` and `extracting` write new files. `python -m lora` is these functions on the command
line.
"""

from lora.offline.extracting import ExtractedFiles, extract_files
from lora.offline.inspection import Findings, Summary, check_adapter, summarise
from lora.offline.merging import MergedFiles, merge_files

__all__ = ["ExtractedFiles", "Findings", "MergedFiles", "Summary", "check_adapter", "extract_files"]
__all__ += ["merge_files", "summarise"]
