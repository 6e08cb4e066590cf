"""Import optional packages at their first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

OF_TEXT = ("gguf", "jinja2", "ml_dtypes", "tokenizers")
"""The packages of the extra "text"."""


def package(name: str) -> Any:
    """Import a package or a part of one; a ModuleNotFoundError says how to install it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        whole = name.partition(".")[0]
        if error.name != whole:
            raise
        wanted = '"minigrad-lora[text]"' if whole in OF_TEXT else whole
        text = f"{whole} is not installed; python -m pip install {wanted}"
        raise ModuleNotFoundError(text, name=whole) from None
