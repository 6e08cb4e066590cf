"""The command line of `python -m examples.digits`."""

from __future__ import annotations

from examples import digits
from examples.command_line import Parser, run

if __name__ == "__main__":
    parser = Parser("digits", digits.__doc__).with_capture()
    words = "train a CNN and an MLP in equal time instead, and draw digits_cnn.png"
    parser.add_argument("--cnn", action="store_true", help=words)
    run(digits.main, parser)
