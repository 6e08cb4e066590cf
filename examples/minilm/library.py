"""The training data: the functions of Python's own library, and sentences that describe them.

We parse the sources of Python's library, but do not run them. Each public function with a docstring
becomes a pair of the docstring's first sentence and the function's head:

    "Return True if FILENAME matches PATTERN, including case."     fnmatchcase(name, pat)
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from minigrad.progress import progress_bar

WORDS = 4  # the smallest number of words of a sentence; shorter sentences say too little
PARTS, HELD_OUT = 5, 1  # packages are split into 5 parts, and the part with this number is held out
LEFT_OUT = {"site-packages", "dist-packages", "idlelib", "lib2to3", "pydoc_data"}


class Pair(NamedTuple):
    """A question and its answer.

    Attributes:
        sentence: the first sentence of the docstring.
        head: the function's name and positional parameters.
        package: the package or module that contains it.
    """

    sentence: str
    head: str
    package: str

    @property
    def held_out(self) -> bool:
        """Whether the package is held out for tests; a hash of the package's name decides."""
        return hashlib.sha256(self.package.encode()).digest()[0] % PARTS == HELD_OUT


def pairs() -> list[Pair]:
    """Return all pairs, sorted by path, without pairs that repeat a sentence or a head."""
    root = Path(sysconfig.get_path("stdlib"))
    unique: list[Pair] = []
    seen: set[str] = set()
    files = sorted(root.rglob("*.py"))
    for path in progress_bar(files, what="reading the library", unit="file", shown=True):
        parts = path.relative_to(root).with_suffix("").parts
        if LEFT_OUT.isdisjoint(parts) and not any(p.startswith(("_", "test")) for p in parts):
            for sentence, head in functions(path.read_bytes()):
                if seen.isdisjoint((sentence.lower(), head.lower())):
                    unique.append(Pair(sentence, head, parts[0]))
                seen |= {sentence.lower(), head.lower()}
    return unique


def functions(source: bytes) -> Iterator[tuple[str, str]]:
    """Yield the sentence and the head of each public function and method in a source file."""
    module = ast.parse(source)
    scopes: list[ast.Module | ast.ClassDef] = [module]
    scopes += [node for node in module.body if isinstance(node, ast.ClassDef)]
    for scope in scopes:
        for node in scope.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                sentence = first_sentence(ast.get_docstring(node) or "")
                if not node.name.startswith("_") and len(sentence.split()) >= WORDS:
                    yield sentence, head(node)


def head(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return a function's name and its positional parameters, without `self` and `cls`."""
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
    return f"{node.name}({', '.join(n for n in names if n not in ('self', 'cls'))})"


def first_sentence(docstring: str) -> str:
    """Return the text up to the first full stop, question or exclamation mark, or empty line."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph)[0]
