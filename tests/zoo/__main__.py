"""Print which check finds which planted fault.

python -m tests.zoo [--quick] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from tests.zoo import MUTANTS
from tests.zoo.matrix import Row, as_json, columns, markdown


def main(arguments: list[str] | None = None) -> None:
    """Plant each fault in the library, and print a table of the checks that find it."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=main.__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="leave out the test suite, which takes minutes")
    add("--out", type=Path, metavar="FOLDER", help="also write zoo.md and zoo.json there")
    options = parser.parse_args(arguments)
    checks = columns(options.quick)
    rows = [
        Row(mutant, {name: check(mutant) for name, check in checks.items()})
        for mutant in tqdm(MUTANTS, unit="mutant", leave=False, file=sys.stderr)
    ]
    table = markdown(rows)
    print(table)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "zoo.md").write_text(table + "\n")
        (options.out / "zoo.json").write_text(json.dumps(as_json(rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
