"""The command line: `python -m minigrad check`, `warmup` and `config`.

`check` runs gradcheck on a function in a file. `warmup` compiles the kernels ahead, and `config`
shows the folder where they are. A kernel that is not compiled ahead is compiled at its first use,
once on a machine, so `warmup` is never necessary. It helps when building a container, or before a
class.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import minigrad
from minigrad.diagnostics.gradient_check import command


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; `arguments` are those of the process unless given."""
    parser = command.Parser("python -m minigrad", description="Check gradients; what it runs on.")
    commands = parser.add_subparsers(dest="command", metavar="command")
    checked = commands.add_parser("check", help="compare the gradients of a function in a file")
    command.add_arguments(checked)
    warm = commands.add_parser("warmup", help="compile the kernels ahead, for the next processes")
    warm.add_argument("--all", action="store_true", help="those of float64 too")
    commands.add_parser("config", help="show versions, processor, threads and compiled kernels")
    chosen = parser.parse_args(arguments)
    if chosen.command == "check":
        sys.exit(command.check(chosen))
    if chosen.command == "warmup":
        from minigrad.kernels.warmup import WarmupError, warmup

        try:
            print(warmup(double=chosen.all))
        except WarmupError as error:
            sys.exit(f"minigrad warmup: {error}")
    elif chosen.command == "config":
        minigrad.show_config()
    else:
        parser.print_help()


if __name__ == "__main__":
    main()
