"""Adapters and bases in files, without a model: look into them, check, merge and extract.

No more than some rows of a base are in memory at a time. `summary` says what an adapter is made of,
`fitting` which tensors of a base it is about, `turned` how these are stored, `checking` what is
wrong with it; `merging` and `extracting` write new files, `beside` copies what lies beside a base.
`python -m lora` is these functions on the command line.
"""

from lora.offline.checking import Findings, check_adapter
from lora.offline.extracting import ExtractedFiles, extract_files
from lora.offline.merging import MergedFiles, merge_files
from lora.offline.summary import Summary, summarise

__all__ = [
    "ExtractedFiles",
    "Findings",
    "MergedFiles",
    "Summary",
    "check_adapter",
    "extract_files",
    "merge_files",
    "summarise",
]
