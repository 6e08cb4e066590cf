"""`python -m examples.minilm [--quick] [--out FILE]`."""

from __future__ import annotations

import argparse

from examples.minilm.search import main

parser = argparse.ArgumentParser(prog="python -m examples.minilm", description=main.__doc__)
parser.add_argument("--quick", action="store_true", help="fewer steps, and a smaller test")
parser.add_argument("--out", default="minilm.png", help="the picture; minilm.png")
options = parser.parse_args()
main(options.quick, options.out)
