"""The command line of `python -m examples.minilm`."""

from __future__ import annotations

from examples import minilm
from examples.command_line import OptionError, Parser, run
from examples.minilm.search import main
from examples.weights import MissingWeightsError

if __name__ == "__main__":
    parser = Parser("minilm", minilm.__doc__)
    parser.add_argument(
        "--adapter", metavar="FOLDER", help="where to save the adapter, in PEFT's format"
    )
    run(main, parser, refusals=(OptionError, MissingWeightsError))
