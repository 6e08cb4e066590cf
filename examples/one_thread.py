"""One thread for kernels, so that measured times do not depend on the number of cores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import minigrad


@contextmanager
def one_thread() -> Iterator[None]:
    """Let kernels use one thread only."""
    before = minigrad.get_num_threads()
    minigrad.set_num_threads(1)
    try:
        yield
    finally:
        minigrad.set_num_threads(before)
