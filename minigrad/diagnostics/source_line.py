"""Where in the user's own source something happens: the instruments name lines, not only ops."""

from __future__ import annotations

import linecache
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

from minigrad.core.codegen import FILENAME_PREFIX

_PACKAGE = Path(__file__).parents[1]
# The library's own files: frames of these are not what the user wrote.
_OURS = tuple(str(_PACKAGE.with_name(name)) + os.sep for name in (_PACKAGE.name, "lora"))


@dataclass(frozen=True)
class Origin:
    """A line of source.

    Attributes:
        file: the path of the file, or what stands for one in a notebook or a console.
        line: the number of the line, from 1 on.
        function: the name of the function that it is in.
        text: the line itself, without what surrounds it; empty where the source is not there.
    """

    file: str
    line: int
    function: str
    text: str

    def __str__(self) -> str:
        place = f"{os.path.basename(self.file)}:{self.line}"
        place += f" in {self.function}" if self.function != "<module>" else ""
        return f"{place}: {self.text}" if self.text else place


def is_of_the_library(code: CodeType) -> bool:
    """Whether it is code of the library itself, which a user does not look for."""
    return code.co_filename.startswith((*_OURS, FILENAME_PREFIX))


def origin() -> Origin | None:
    """The line nearest to here that is not of the library itself; None if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not is_of_the_library(code):
            text = linecache.getline(code.co_filename, frame.f_lineno, frame.f_globals)
            return Origin(code.co_filename, frame.f_lineno, code.co_name, text.strip())
        frame = frame.f_back  # type: ignore[assignment]
    return None
