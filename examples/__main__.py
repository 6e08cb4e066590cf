"""`python -m examples` lists the examples, `python -m examples NAME [--quick] ...` runs one."""

from __future__ import annotations

import ast
import os
import re
import runpy
import sys
import textwrap
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
USAGE = "python -m examples NAME [--quick] [--out FILE.png] runs one; NAME --help explains it."


class Example(NamedTuple):
    """An example, as its docstring describes it. We read the file, but do not run it.

    Attributes:
        name: the name of the module or package.
        purpose: the first line of the docstring.
        takes: the sentence that says how long the example takes and what it draws.
    """

    name: str
    purpose: str
    takes: str


def found() -> list[Example]:
    """Return all examples, sorted: each says in its docstring how long it takes and what it draws.

    Other packages that can be run, such as the one that makes the site, are not examples.
    """
    return [example for example in runnable() if example.takes]


def runnable() -> list[Example]:
    """Return all programs, sorted: files with a function `main`, packages with `__main__.py`."""
    modules = []
    for path in sorted(FOLDER.iterdir()):
        if (path / "__main__.py").is_file():
            modules.append(described(path.name, path / "__init__.py"))
        elif path.suffix == ".py" and path != Path(__file__) and has_main(path):
            modules.append(described(path.stem, path))
    return modules


def has_main(path: Path) -> bool:
    """Return whether a file defines a function `main`."""
    body = ast.parse(path.read_bytes()).body
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in body)


def described(name: str, path: Path) -> Example:
    """Return the example that the docstring of a file describes."""
    docstring = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    takes = re.search(r"\bIt takes .*?\.(?= |$)", " ".join(docstring.split()))
    return Example(name, docstring.partition("\n")[0], takes.group() if takes else "")


def listing(examples: Sequence[Example]) -> str:
    """Return a table of what each example shows, how long it takes, and what it draws."""
    width = 2 + max(len(example.name) for example in examples)
    lines = [USAGE]
    for name, purpose, takes in examples:
        text = textwrap.wrap(purpose, 98 - width) + textwrap.wrap(takes, 98 - width)
        lines += ["", f"{name:{width}}{text[0]}", *(" " * width + line for line in text[1:])]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """List the examples, or run the named one with the arguments that follow its name."""
    examples = found()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing(examples))
        return
    name, *options = arguments
    names = [example.name for example in examples]
    if name not in names:
        names.sort(key=lambda other: -SequenceMatcher(None, name.lower(), other).ratio())
        sys.exit(f"there is no example {name!r}; there are: {', '.join(names)}")
    sys.argv = [f"python -m examples.{name}", *options]
    runpy.run_module(f"examples.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # a reader such as `head` may close the pipe before the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
