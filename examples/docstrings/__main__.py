"""The command line of `python -m examples.docstrings`."""

from __future__ import annotations

from examples import docstrings
from examples.command_line import OptionError, Parser, run
from examples.docstrings.demo import main

if __name__ == "__main__":
    # A missing package raises an ImportError, which says how to install the package.
    run(main, Parser("docstrings", docstrings.__doc__), refusals=(OptionError, ImportError))
