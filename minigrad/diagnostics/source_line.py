"""SourceLine: where in the user's own source something happens.

The instruments name the line from which an op was called, and not only the op.
"""

from __future__ import annotations

import linecache
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from minigrad.core.codegen import FILENAME_PREFIX

_PACKAGE = Path(__file__).parents[1]
# Files of the library itself, whose frames are not what the user wrote.
_LIBRARY = (
    *(str(_PACKAGE.with_name(name)) + os.sep for name in (_PACKAGE.name, "lora")),
    FILENAME_PREFIX,
)


@dataclass(frozen=True)
class SourceLine:
    """A line of source.

    Attributes:
        file: the path of the file, or what stands for one in a notebook or a console.
        line: the number of the line, from 1 on.
        function: the name of the function that it is in.
        text: the line itself, without surrounding space; empty if the source cannot be read.
    """

    file: str
    line: int
    function: str
    text: str

    def __str__(self) -> str:
        where = f"{os.path.basename(self.file)}:{self.line}"
        where += f" in {self.function}" if self.function != "<module>" else ""
        return f"{where}: {self.text}" if self.text else where


def user_line() -> SourceLine | None:
    """Return the innermost line on the stack that is not the library's; None if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(_LIBRARY):
            text = linecache.getline(code.co_filename, frame.f_lineno, frame.f_globals)
            return SourceLine(code.co_filename, frame.f_lineno, code.co_name, text.strip())
        frame = frame.f_back  # type: ignore[assignment]
    return None
