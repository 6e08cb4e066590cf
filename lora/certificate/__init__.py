"""The merge certificate: what merging adapters loses, for each layer and each dtype to store in."""

from lora.certificate.certificate import MergeCertificate, MergeError, Row
from lora.certificate.certify import certify
from lora.certificate.merging import Merging
from lora.certificate.storage import DTYPES, round_to

__all__ = ["DTYPES", "MergeCertificate", "MergeError", "Merging", "Row", "certify", "round_to"]
