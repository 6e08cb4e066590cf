"""The command line of `python -m examples.digits`."""

from __future__ import annotations

from examples import digits
from examples.command_line import Parser, run

if __name__ == "__main__":
    run(digits.main, Parser("digits", digits.__doc__).with_capture())
