"""Import the packages that only language models need, at their first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def package(name: str) -> Any:
    """Import a package of the extra "text"; an ImportError says how to install it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f'language models need the package {name}; pip install "minigrad-lora[text]"'
        ) from error
