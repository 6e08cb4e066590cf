"""The merge certificate: the loss of merging adapters, for each layer and each dtype to store in.

The files in reading order: measuring (what is called), layers (a layer whose weight is merged),
rounding (how weights are rounded, and by how much sums may be off), report (the result).
"""

from lora.certificate.layers import LayerMerge, merging_into, merging_of
from lora.certificate.measuring import certify
from lora.certificate.report import CertificateRow, MergeCertificate, MergeError
from lora.certificate.rounding import DTYPES, check_dtypes, round_to

__all__ = [
    "DTYPES",
    "CertificateRow",
    "LayerMerge",
    "MergeCertificate",
    "MergeError",
    "certify",
    "check_dtypes",
    "merging_into",
    "merging_of",
    "round_to",
]
