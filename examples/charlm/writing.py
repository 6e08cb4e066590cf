"""A model writes a text: it draws each character from the probabilities that it predicts."""

from __future__ import annotations

import numpy as np

from examples.charlm.model import CharacterModel
from examples.charlm.texts import Alphabet
from minigrad import no_grad
from minigrad.progress import progress_bar


def write(
    model: CharacterModel,
    alphabet: Alphabet,
    beginning: str,
    count: int,
    rng: np.random.Generator,
    temperature: float = 0.6,
) -> str:
    """Return `beginning` and `count` more characters.

    The scores are divided by the temperature; below 1, likely characters become more likely. The
    largest score after adding Gumbel noise is a draw from the softmax of the scores.
    """
    text = alphabet.encode(beginning)
    with no_grad():
        for _ in progress_bar(range(count), what="writing", unit="character", shown=True):
            scores = model(text[None, -model.context :]).numpy()[0, -1]
            noise = rng.gumbel(size=scores.shape)
            text = np.append(text, np.argmax(scores / temperature + noise))
    return alphabet.decode(text)


def longest_copied(text: str, source: str) -> str:
    """Return the longest part of `text` that is also in `source`."""
    longest = ""
    for start in range(len(text)):
        while text[start : start + len(longest) + 1] in source and start + len(longest) < len(text):
            longest = text[start : start + len(longest) + 1]
    return longest
