"""The output of programs that run from a command line, and their errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any


def print_any_text() -> None:
    """Let `print` escape letters that the encoding of stdout lacks, as it does on stderr."""
    out = sys.stdout  # a notebook has another class, which can print all letters
    if isinstance(out, TextIOWrapper) and out.errors in ("strict", "surrogateescape"):
        out.reconfigure(errors="backslashreplace")


def print_error(text: str) -> None:
    """Print an error to stderr; if it cannot be written, only the exit status tells of it."""
    try:
        if sys.stderr is not None:  # print(file=None) would write to stdout
            print(text, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: Any) -> None:
    """Discard what a stream could not write, else Python tries again at its end, and fails."""
    with suppress(AttributeError, OSError):  # a notebook's stream has no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def printing() -> Iterator[None]:
    """End a `with` block quietly if nobody reads stdout any more.

    This happens when `head` has printed its last line, for example. The rest of the block is not
    done then. `print_any_text` is called before the block.
    """
    print_any_text()
    try:
        yield
        if sys.stdout is not None:  # as it is if the process was started without one
            sys.stdout.flush()
    except OSError as error:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:
            _discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise
