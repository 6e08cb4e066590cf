"""Progress bars, for work that may take longer than a second or two."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar, Self
from weakref import WeakSet

from minigrad.locks import renewed_in_child


class NoBar:
    """A replacement for a tqdm bar that shows nothing."""

    def __init__(self, items: Iterable[Any] | None) -> None:
        self._items = () if items is None else items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __enter__(self) -> Self:
        return self

    def update(self, *_: object, **options: object) -> None:
        """Do nothing."""

    set_postfix_str = close = __exit__ = update


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    what: str,
    unit: str,
    shown: bool,
    in_files: bool = False,
    **options: Any,
) -> Any:
    """Return a bar of tqdm over `items`, which appears after a second and disappears at the end.

    It is shown in a terminal or a notebook; if the output goes to a file, only with `in_files`. If
    it is not shown, a `NoBar` is returned. Without items, call its `update`. `what` describes the
    work, and `unit` is the name of one item. `options` are more options of tqdm, such as `total`;
    they override the settings that are made here. If TQDM_DISABLE is set, no bar is shown; tqdm
    itself ignores this variable in a notebook with widgets. Where nothing can be written to
    `sys.stderr`, the work goes on without a bar.
    """
    is_terminal = getattr(sys.stderr, "isatty", lambda: False)
    is_lost = getattr(sys.stderr, "closed", sys.stderr is None)
    shown = shown and not is_lost and not os.environ.get("TQDM_DISABLE")
    if not shown or not (in_files or in_a_notebook() or is_terminal()):
        return NoBar(items)
    usual = {"desc": what, "unit": unit, "leave": False, "delay": 1.0}
    return bar_class()(items, **{**usual, **options})


@cache
def bar_class() -> Any:
    """Return the class of bars, made at the first call: importing tqdm takes 0.1 seconds."""
    if in_a_notebook() and find_spec("ipywidgets") is not None:
        from tqdm.auto import tqdm
    else:
        # In a notebook without widgets, tqdm.auto would warn that it can only show text. Hiding the
        # warning would hide it in all threads, so plain tqdm is imported instead.
        from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
        """A tqdm bar with its own lock and its own list of bars.

        tqdm's usual lock is shared with forked processes. If one of them is killed while it holds
        the lock, all others wait forever.
        """

        _instances: ClassVar[WeakSet[Any]] = WeakSet()

        def __init__(self, items: Iterable[Any] | None, **options: Any) -> None:
            super().__init__(items, position=len(tqdm._instances), **options)  # below the user's
            # tqdm draws a bar when an item is done, and the first one may take minutes.
            self._timer = threading.Timer(self.delay, self._appear)
            self._timer.daemon = True
            if not hasattr(self, "container"):  # no widget, which only the cell's thread may show
                self._timer.start()

        def _appear(self) -> None:
            with self.get_lock():
                if not self.disable and self.last_print_n == self.initial:
                    self.refresh(nolock=True)
                    self.last_print_t = self._time()  # so that `close` clears what was drawn

        def display(self, *args: Any, **options: Any) -> Any:
            try:
                return super().display(*args, **options)
            except OSError:  # the disk is full, or the reader of a pipe has ended
                self.disable = True

        def close(self) -> None:
            self._timer.cancel()
            with suppress(OSError):
                super().close()

    Bar.set_lock(renewed_in_child(Bar, "_lock", threading.RLock))  # the attribute that it sets
    return Bar


def in_a_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
