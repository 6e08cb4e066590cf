"""The command line of `python -m examples.charlm`."""

from __future__ import annotations

from examples import charlm
from examples.command_line import Parser, run

if __name__ == "__main__":
    run(charlm.main, Parser("charlm", charlm.__doc__).with_capture())
