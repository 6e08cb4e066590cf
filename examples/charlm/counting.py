"""What counting achieves: a table of how often each character follows each other."""

from __future__ import annotations

import numpy as np

from examples.charlm.texts import Codes


def loss_of_pairs(known: Codes, held_out: Codes, alphabet: int) -> float:
    """The mean of -log p(character | the one before) in `held_out`, with p counted in `known`.

    Something is added to each count, so that nothing is impossible. How much is chosen by the text
    to be judged, in favour of the table.
    """
    counts = np.zeros((alphabet, alphabet))
    np.add.at(counts, (known[:-1], known[1:]), 1)

    def loss(extra: float) -> float:
        table = counts + extra
        chances = table / table.sum(axis=1, keepdims=True)
        return float(-np.log(chances[held_out[:-1], held_out[1:]]).mean())

    return min(map(loss, (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)))
