"""Attacks: kills, interrupts and damaged files, after which nothing may hang or be lost.

Each attack has a seed, which a failure names. Set `CHAOS_SEED` to run one seed alone, or
`CHAOS_COUNT` to run more of them:

    CHAOS_SEED=17 python -m pytest -m full -s tests/chaos
    CHAOS_COUNT=100 python -m pytest -m full -s tests/chaos/test_ranks.py
"""

import os


def seeds(count):
    """The seeds of an attack: that of `CHAOS_SEED`, or the first ones."""
    asked = os.environ.get("CHAOS_SEED")
    return [int(asked)] if asked else list(range(int(os.environ.get("CHAOS_COUNT", count))))
