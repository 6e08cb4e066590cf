"""A progress bar for what takes longer than a moment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def with_bar(items: Iterable[Any], what: str, shown: bool) -> Any:
    """The items, with a progress bar if they take longer than a moment."""
    from tqdm.auto import tqdm

    return tqdm(list(items), desc=what, leave=False, delay=1.0, disable=None if shown else True)
