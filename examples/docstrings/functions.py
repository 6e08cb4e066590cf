"""The data: functions of Python's own library whose docstring begins with one plain sentence.

Each function becomes a row with a question and its answer, in the form of `lora.text.train`:

    {"prompt": "Write a docstring for copymode(src, dst) of the module shutil.",
     "completion": "Copy mode bits from src to dst."}
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.minilm.library import Pair, pairs

CODE = re.compile(r"[`=(){}\[\]<>_#|\\]")
NEXT_SENTENCE = re.compile(r"[.!?:]\s|\n|\.\.")


@dataclass(frozen=True)
class Answer:
    """The docstrings that the model writes for a function, without and with the adapter."""

    function: Pair
    before: str
    after: str

    def by_author(self) -> dict[str, str]:
        """Return both docstrings and the authors' sentence, each under its name."""
        return {"before": self.before, "after": self.after, "authors": self.function.sentence}


def is_plain_sentence(text: str) -> bool:
    """Return whether a text is one sentence that a reader can read aloud.

    It starts with a capital letter, ends with a full stop, has no second sentence or line, and
    contains none of the characters that are typical of code.
    """
    starts_and_ends = text[:1].isupper() and text.endswith(".")
    return starts_and_ends and not NEXT_SENTENCE.search(text) and not CODE.search(text)


def split_functions() -> tuple[list[Pair], list[Pair]]:
    """Return the functions to train on, and those of held-out packages."""
    plain = [pair for pair in pairs() if is_plain_sentence(pair.sentence)]
    known = [pair for pair in plain if not pair.held_out]
    return known, [pair for pair in plain if pair.held_out]


def evenly(functions: Sequence[Pair], count: int) -> list[Pair]:
    """Return every n-th function, where n is chosen to get `count` of them."""
    return list(functions[:: len(functions) // count][:count])


def question(function: Pair) -> str:
    """Return the question for the model."""
    return f"Write a docstring for {function.head} of the module {function.package}."


def write_rows(functions: Sequence[Pair], file: Path) -> None:
    """Write a JSONL file with a question and an answer in each line."""
    rows = [{"prompt": question(each), "completion": each.sentence} for each in functions]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
