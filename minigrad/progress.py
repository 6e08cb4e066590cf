"""The progress bar of work that may take longer than a second or two."""

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
    """Return a tqdm over `items`, which appears after a second and disappears at the end.

    It is shown in a terminal or a notebook, and not where the output goes to a file. Without items
    it is updated by hand. `what` describes the work, `unit` is the name of one item, and `options`
    are further ones of tqdm, such as `total`, which override these.
    """
    with warnings.catch_warnings():
        # A notebook without widgets gets a bar of text instead, which needs no warning.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.auto import tqdm  # takes a tenth of a second to import

    usual: dict[str, Any] = {"desc": what, "unit": unit, "leave": False, "delay": 1.0}
    if not shown:
        usual["disable"] = True
    elif not _in_a_notebook():
        usual["disable"] = None  # tqdm hides it in a file then, which a notebook is to tqdm as well
    return tqdm(items, **{**usual, **options})


def _in_a_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
