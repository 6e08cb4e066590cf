"""The merge certificate: the rounding error of merging, for each layer and each storage dtype.

The files in reading order: measuring (the entry point and its result), layers (a layer whose weight
is merged), rounding (how weights are rounded, and bounds on rounding errors of sums).
"""

from lora.certificate.layers import LayerMerge, merging_into, merging_of
from lora.certificate.measuring import CertificateRow, MergeCertificate, MergeError, certify
from lora.certificate.rounding import DTYPES, check_dtypes, round_to

__all__ = ["DTYPES", "CertificateRow", "LayerMerge", "MergeCertificate", "MergeError", "certify"]
__all__ += ["check_dtypes", "merging_into", "merging_of", "round_to"]
