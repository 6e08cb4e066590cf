"""Demonstrations: each trains a small model, draws a picture, and asserts what it claims.

`python -m examples` lists them, and `python -m examples NAME` runs one.

An example is a file with a function `main`. If it is too long for one file, it is a package with
`__main__.py`. `main(quick=False, out="NAME.png")` prints its results, saves the picture, and
returns the results; `quick=True` does the same in a few seconds. The first line of the docstring
says what an example shows, and a sentence that begins with "It takes" says how long it runs and
which picture it draws. `command_line` contains what all examples share, and the folder `pictures`
contains the pictures that they draw.
"""

from __future__ import annotations  # so that an older Python reaches the error of `minigrad`

import sys
from types import TracebackType

EXTRA = ("matplotlib", "sklearn", "tokenizers")  # what the extra `examples` installs, as imported


def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print the error that ended an example, in one line if a package of the extra is missing."""
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRA:
        install = 'python -m pip install -e ".[examples]"'
        print(f"the package {error.name!r} is missing; run {install}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


if sys.argv[:1] == ["-m"]:  # Python is looking for the example that it will run
    sys.excepthook = show
