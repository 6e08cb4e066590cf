"""The command line of `python -m examples.lora_regression`."""

from __future__ import annotations

from collections.abc import Sequence

from examples import lora_regression
from examples.command_line import Parser, run
from examples.lora_regression.demo import OPTIMIZERS, main


def command_line(arguments: Sequence[str] | None = None) -> None:
    """`main` with the options of a command line, those of the process if None."""
    parser = Parser("lora_regression", lora_regression.__doc__)
    add = parser.add_argument
    add("--rank", type=int, help="of each update (8)")
    add("--alpha", type=float, help="the strength of an update, before it is divided (16)")
    add("--scaling", choices=["standard", "rslora"], help="divide alpha by the rank or by its root")
    add("--optimizer", choices=list(OPTIMIZERS), help="what adapts the networks (adam)")
    add("--epochs", type=int, help="of adaptation (40)")
    add("--seed", type=int, help="the first of five (0)")
    add("--csv", metavar="FILE", help="a table of your own: a header line, then numbers")
    add("--target", metavar="COLUMN", help="what to predict in it")
    add("--shift-by", metavar="COLUMN", help="the rows above its median are the new group")
    run(main, parser, arguments, refusals=(ValueError, OSError))


if __name__ == "__main__":
    command_line()
