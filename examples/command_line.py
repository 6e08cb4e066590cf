"""The command line that all examples have: `[--quick] [--out FILE.png]`, and errors in one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """A parser with the two options; more can be added.

    What is not given is left to the defaults of `main`. What is wrong is said in one line.

    Args:
        name: of the example.
        description: what `--help` begins with: the example's docstring.
    """

    def __init__(self, name: str, description: str | None) -> None:
        super().__init__(
            prog=f"python -m examples.{name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
        )
        self.name = name
        self.add_argument("--quick", action="store_true", help="a smaller form, of some seconds")
        self.add_argument("--out", metavar="FILE.png", help=f"the picture ({name}.png)")

    def error(self, message: str) -> NoReturn:
        """Print the message and leave with status 2."""
        self.exit(2, f"{self.name}: {' '.join(message.split())} (see --help)\n")


class OptionError(ValueError):
    """An option that cannot be used."""


def check_out(out: str | Path) -> None:
    """Refuse a picture that could not be saved when the work is done.

    Raises:
        OptionError: if it is no PNG, or has no folder to go to.
    """
    out = Path(out)
    if out.suffix.lower() != ".png":
        raise OptionError(f"--out must be the name of a .png file, not {str(out)!r}")
    if not out.absolute().parent.is_dir():
        raise OptionError(f"--out: there is no folder {str(out.parent)!r}; make it first")


def run(
    main: Callable[..., object],
    parser: Parser,
    arguments: Sequence[str] | None = None,
    refusals: tuple[type[Exception], ...] = (OptionError,),
) -> None:
    """Call `main` with the options of a command line.

    Args:
        main: of an example.
        parser: what its options are.
        arguments: those of the process, if None.
        refusals: the errors of `main` that say what the user has to change, in one line.
    """
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    try:
        main(**options)
    except refusals as error:
        parser.error(str(error))
