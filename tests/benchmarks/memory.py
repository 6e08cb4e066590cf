"""How the memory of a graph grows with its length, and whether anything is left for gc."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np

LENGTHS = (1_000, 10_000, 100_000)


def report() -> str:
    """A table: for chains of several lengths the bytes for each op, and what gc finds after."""
    rows = ["     ops   bytes an op   left for gc"]
    for length in LENGTHS:
        size, left = chain(length)
        rows.append(f"{length:8,}   {size / length:11.0f}   {left:11}")
    return "\n".join(rows)


def chain(length: int) -> tuple[int, int]:
    """Forward and backward through `length` additions: the bytes that it took, and gc's find."""
    import minigrad

    x = minigrad.tensor(np.ones((4, 4), np.float32), requires_grad=True)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        y = x
        for _ in range(length):
            y = y + x
        loss = y.sum()
        size, _ = tracemalloc.get_traced_memory()
        loss.backward()
        del y, loss
        x.grad = None
        return size, gc.collect()
    finally:
        tracemalloc.stop()
        gc.enable()
