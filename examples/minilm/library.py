"""The text to learn from: what the functions of Python's own library are called, and what they do.

The sources that come with every Python are parsed; nothing in them is run. A public function with a
docstring makes a pair, of the docstring's first sentence and the function's head:

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

WORDS = 4  # of a sentence, at least: fewer say too little to be searched for
PARTS, HELD_OUT = 5, 1  # packages are cut in so many parts, of which this one is held out
LEFT_OUT = {"site-packages", "dist-packages", "idlelib", "lib2to3", "pydoc_data"}


class Pair(NamedTuple):
    """A question and its answer.

    Attributes:
        sentence: the first one of the docstring.
        head: the function's name and parameters.
        package: the package or module that it is in.
    """

    sentence: str
    head: str
    package: str

    @property
    def held_out(self) -> bool:
        """Whether its package is one to be tested on; a hash of the name decides."""
        return hashlib.sha256(self.package.encode()).digest()[0] % PARTS == HELD_OUT


def pairs() -> list[Pair]:
    """All pairs, by place. What has the sentence or the head of an earlier one is left out."""
    root = Path(sysconfig.get_path("stdlib"))
    unique: list[Pair] = []
    seen: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if LEFT_OUT.isdisjoint(parts) and not any(p.startswith(("_", "test")) for p in parts):
            for sentence, head in functions(path.read_bytes()):
                if seen.isdisjoint((sentence.lower(), head.lower())):
                    unique.append(Pair(sentence, head, parts[0]))
                seen |= {sentence.lower(), head.lower()}
    return unique


def functions(source: bytes) -> Iterator[tuple[str, str]]:
    """Sentence and head of each public function and method in a source file."""
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
    """The name, and those of the parameters but for the object itself."""
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
    return f"{node.name}({', '.join(n for n in names if n not in ('self', 'cls'))})"


def first_sentence(docstring: str) -> str:
    """What comes before the first full stop or empty line."""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph)[0]
