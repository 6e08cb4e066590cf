"""The two texts: Python's manual to pretrain on, and sonnets to adapt to.

The manual is the language reference that every Python contains: `help("while")` shows a part. The
sonnets are 35 by Shakespeare (1609), in modern spelling: numbers 1, 2, 12, 15, 18, 19, 23, 27,
29, 30, 33, 35, 53, 54, 55, 57, 60, 64, 65, 66, 71, 73, 76, 87, 94, 97, 98, 104, 106, 107, 109, 116,
129, 130 and 138.
"""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]  # each character is its index in the alphabet

HELD_OUT_SONNETS = 5  # the last ones in the file


class Text(NamedTuple):
    """A text in two parts.

    Attributes:
        known: the part for training.
        held_out: the part that is only used for tests.
    """

    known: str
    held_out: str


def manual() -> Text:
    """Return the language reference, with the last tenth held out.

    A paragraph that several topics share is included once, so no complete paragraph is in both
    parts.
    """
    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    text = "\n\n".join(dict.fromkeys(paragraphs))
    border = len(text) * 9 // 10
    return Text(text[:border], text[border:])


def sonnets() -> Text:
    """Return the sonnets, with an empty line between two of them."""
    text = (Path(__file__).parent / "sonnets.txt").read_text(encoding="ascii")
    poems = text.strip().split("\n\n")
    known, held_out = poems[:-HELD_OUT_SONNETS], poems[-HELD_OUT_SONNETS:]
    return Text("\n\n".join(known), "\n\n".join(held_out))


class Alphabet:
    """The characters of some texts, and their codes 0, 1, 2, ...

    Args:
        texts: the texts whose characters it contains.
    """

    def __init__(self, *texts: str) -> None:
        self.letters = sorted(set("".join(texts)))
        self._codes = {letter: code for code, letter in enumerate(self.letters)}

    def __len__(self) -> int:
        return len(self.letters)

    def encode(self, text: str) -> Codes:
        """Return the code of each character.

        Raises:
            ValueError: if the alphabet does not have a character; the message names it.
        """
        foreign = sorted(set(text) - set(self.letters))
        if foreign:
            raise ValueError(f"the alphabet has no {', '.join(map(repr, foreign))}")
        return np.array([self._codes[letter] for letter in text], dtype=np.int64)

    def decode(self, codes: Codes) -> str:
        """Return the text of some codes."""
        return "".join(self.letters[code] for code in codes)
