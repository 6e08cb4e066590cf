"""The two texts: Python's manual to pretrain on, and sonnets to adapt to.

The manual is the language reference that comes with every Python: what `help("while")` shows. The
sonnets are 35 of Shakespeare's (1609), in modern spelling: numbers 1, 2, 12, 15, 18, 19, 23, 27,
29, 30, 33, 35, 53, 54, 55, 57, 60, 64, 65, 66, 71, 73, 76, 87, 94, 97, 98, 104, 106, 107, 109, 116,
129, 130 and 138.
"""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]  # each character is its place in the alphabet

HELD_OUT_SONNETS = 5  # the last ones


class Text(NamedTuple):
    """A text in two parts.

    Attributes:
        known: what is trained on.
        held_out: what is only tested on.
    """

    known: str
    held_out: str


def manual() -> Text:
    """The language reference; the last tenth is held out.

    A paragraph that topics share is there once, so that none of those held out is known.
    """
    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    text = "\n\n".join(dict.fromkeys(paragraphs))
    border = len(text) * 9 // 10
    return Text(text[:border], text[border:])


def sonnets() -> Text:
    """The sonnets, with an empty line between two of them."""
    text = (Path(__file__).parent / "sonnets.txt").read_text(encoding="ascii")
    poems = text.strip().split("\n\n")
    known, held_out = poems[:-HELD_OUT_SONNETS], poems[-HELD_OUT_SONNETS:]
    return Text("\n\n".join(known), "\n\n".join(held_out))


class Alphabet:
    """The characters of some texts, and their codes 0, 1, 2, ...

    Args:
        texts: what is to be written with it.
    """

    def __init__(self, *texts: str) -> None:
        self.letters = sorted(set("".join(texts)))
        self._codes = {letter: code for code, letter in enumerate(self.letters)}

    def __len__(self) -> int:
        return len(self.letters)

    def encode(self, text: str) -> Codes:
        """A code for each character.

        Raises:
            ValueError: if the alphabet lacks one, which is named.
        """
        foreign = sorted(set(text) - set(self.letters))
        if foreign:
            raise ValueError(f"the alphabet has no {', '.join(map(repr, foreign))}")
        return np.array([self._codes[letter] for letter in text], dtype=np.int64)

    def decode(self, codes: Codes) -> str:
        """The text again."""
        return "".join(self.letters[code] for code in codes)
