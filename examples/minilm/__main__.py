"""`python -m examples.minilm [--quick] [--out FILE] [--adapter FOLDER]`."""

from __future__ import annotations

import argparse

from examples.minilm.search import main

parser = argparse.ArgumentParser(prog="python -m examples.minilm", description=main.__doc__)
parser.add_argument("--quick", action="store_true", help="fewer steps, and a smaller test")
parser.add_argument("--out", default="minilm.png", help="the picture; minilm.png")
parser.add_argument("--adapter", help="a folder to save the adapter to, as PEFT has it")
options = parser.parse_args()
main(options.quick, options.out, options.adapter)
