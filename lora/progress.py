"""The progress bar of what may take longer than a second or two."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(
    items: Iterable[Any] | None = None, *, what: str, unit: str, shown: bool, **options: Any
) -> tqdm[Any]:
    """A tqdm over `items`, that shows after a second, in a terminal or notebook, and then goes.

    Args:
        items: to go through; None for a bar that is updated by hand.
        what: is done.
        unit: what one item is.
        shown: whether there is to be a bar.
        options: others of tqdm's, such as `total`.
    """
    # It takes a tenth of a second to import, and the bar for notebooks warns where there is none.
    kind = import_module("tqdm.auto" if shown else "tqdm").tqdm
    bar: tqdm[Any] = kind(
        items, desc=what, unit=unit, leave=False, delay=1.0, disable=None if shown else True,
        **options,
    )  # fmt: skip
    return bar
