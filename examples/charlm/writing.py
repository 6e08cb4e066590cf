"""A model writes: character by character, each drawn from what it expects."""

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
    """`beginning` and `count` more characters.

    The scores are divided by the temperature; one below 1 favours what is likely. The largest of
    scores with Gumbel noise is a draw from their softmax.
    """
    text = alphabet.encode(beginning)
    with no_grad():
        for _ in progress_bar(range(count), what="writing", unit="character", shown=True):
            scores = model(text[None, -model.context :]).numpy()[0, -1]
            noise = rng.gumbel(size=scores.shape)
            text = np.append(text, np.argmax(scores / temperature + noise))
    return alphabet.decode(text)


def longest_copied(text: str, source: str) -> str:
    """The longest piece of `text` that is in `source` too."""
    longest = ""
    for start in range(len(text)):
        while text[start : start + len(longest) + 1] in source and start + len(longest) < len(text):
            longest = text[start : start + len(longest) + 1]
    return longest
