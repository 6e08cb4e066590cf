"""The command line of all examples: `[--quick] [--out FILE.png]`, and errors in one line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from minigrad.console import printing


class Parser(argparse.ArgumentParser):
    """A parser with the options `--quick` and `--out`, to which an example can add more.

    `main` has defaults for the options that the user does not pass. Each error is one line.

    Args:
        name: the name of the example.
        description: the text at the beginning of `--help`: the example's docstring.
    """

    def __init__(self, name: str, description: str | None) -> None:
        super().__init__(
            prog=f"python -m examples.{name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
        )
        self.name = name
        self.add_argument("--quick", action="store_true", help="a smaller form, in a few seconds")
        self.add_argument("--out", metavar="FILE.png", help=f"the file of the picture ({name}.png)")

    def with_capture(self) -> Parser:
        """Add the option `--capture`, for examples that can train with captured steps."""
        words = "train with captured steps (minigrad.capture), which give the same bits"
        self.add_argument("--capture", action="store_true", help=words)
        return self

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        self.exit(2, f"{self.name}: {' '.join(message.split())} (see --help)\n")


class OptionError(ValueError):
    """An option has a value that cannot be used."""


def check_out(out: str | Path) -> None:
    """Check that the picture can be saved when the work is done.

    Raises:
        OptionError: if the name does not end in .png or is that of a folder, if its folder does not
            exist, or if the file or the folder may not be written.
    """
    out = Path(out)
    if out.suffix.lower() != ".png":
        raise OptionError(f"--out must be the name of a .png file, not {str(out)!r}")
    if not out.absolute().parent.is_dir():
        raise OptionError(f"--out: there is no folder {str(out.parent)!r}; make it first")
    if out.is_dir():
        raise OptionError(f"--out: {str(out)!r} is a folder; name a file in it, such as out.png")
    written = out if out.exists() else out.absolute().parent
    if not os.access(written, os.W_OK):
        raise OptionError(f"--out may not be written: {written}; name a file in another folder")


def run(
    main: Callable[..., object],
    parser: Parser,
    arguments: Sequence[str] | None = None,
    refusals: tuple[type[Exception], ...] = (OptionError,),
) -> None:
    """Call `main` with the options of a command line. Ctrl-C ends it with status 130.

    A reader of its output that stops early, such as `head`, ends it with status 0.

    Args:
        main: the function `main` of an example.
        parser: the parser with the options of the example.
        arguments: the arguments to parse; None for the arguments of the process.
        refusals: the errors of `main` that tell the user what to change; each becomes one line.
    """
    try:
        with printing():
            options: dict[str, Any] = vars(parser.parse_args(arguments))
            main(**options)
    except refusals as error:
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            text = f"cannot open {str(error.filename)!r}: {error.strerror}"
        parser.error(text)
    except KeyboardInterrupt:
        parser.exit(130, f"\n{parser.name}: stopped\n")  # below ^C or a progress bar
