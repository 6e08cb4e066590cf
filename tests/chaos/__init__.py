"""Attacks on saving, merging and extracting, after which nothing may be lost.

Each attack prints its seeds. To run one seed alone, set `CHAOS_SEED`:

    CHAOS_SEED=17 python -m pytest -m full -s tests/chaos
"""

import os


def seeds(count):
    """The seeds of an attack, printed: that of `CHAOS_SEED`, or the first ones."""
    asked = os.environ.get("CHAOS_SEED")
    found = [int(asked)] if asked else list(range(count))
    print(f"seeds {found[0]} to {found[-1]}")
    return found
