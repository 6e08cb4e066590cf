"""The course for a class: `python -m examples.walkthroughs student OUT`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.walkthroughs.students import write_edition
from minigrad.console import print_any_text


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the edition that a class works with."""
    print_any_text()
    parser = argparse.ArgumentParser("python -m examples.walkthroughs", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    student = commands.add_parser(
        "student",
        help="write the notebooks for nbgrader",
        description="Write each notebook as an assignment of an nbgrader course, with solutions "
        "that `nbgrader generate_assignment` removes and checks that `nbgrader autograde` runs.",
    )
    student.add_argument("out", type=Path, metavar="OUT", help="a folder, missing or empty")
    out = parser.parse_args(arguments).out
    try:
        written = write_edition(out)
    except OSError as error:
        sys.exit(f"{parser.prog}: {error}")
    print(f"wrote {len(written)} assignments to {out / 'source'}; for example:")
    print(f"  cd {shlex.quote(str(out))} && nbgrader generate_assignment {written[0].stem}")


if __name__ == "__main__":
    main()
