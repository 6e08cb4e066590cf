"""The progress bar of what may take longer than a second or two."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
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
        options: others of tqdm's, such as `total`, or in place of these.
    """
    with warnings.catch_warnings():
        # Where a notebook has no widgets, there is a bar of text instead, which needs no warning.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.auto import tqdm  # takes a tenth of a second to import

    usual: dict[str, Any] = {"desc": what, "unit": unit, "leave": False, "delay": 1.0}
    if not shown:
        usual["disable"] = True
    elif not _in_a_notebook():
        usual["disable"] = None  # where it would go to a file; to tqdm, so does a notebook's
    return tqdm(items, **{**usual, **options})


def _in_a_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
