"""The gallery: each picture of a demo, with its command and the text of the demo's docstring."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from examples.__main__ import FOLDER, found

_COMMAND = re.compile(r"python -m examples\.(\w+)(?: --(\w+))?")


@dataclass(frozen=True)
class Demo:
    """A command that draws a picture.

    Attributes:
        name: the name of the picture's file, without its ending.
        purpose: the first sentence that the demo's docstring says about the picture.
        text: the rest of this text, as Markdown.
        commands: the commands that draw the picture.
        alt: a description of the picture, for readers who do not see it.
    """

    name: str
    purpose: str
    text: str
    commands: str
    alt: str

    @property
    def picture(self) -> str:
        """The path of the picture in the repository."""
        return f"examples/pictures/{self.name}.png"


def demos() -> list[Demo]:
    """Return all demos that have a picture in the repository."""
    readme = (FOLDER.parent / "README.md").read_text("utf-8")
    alts = {path: alt for alt, path in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", readme)}
    made = []
    for example in found():
        path = FOLDER / example.name
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for name, paragraphs, commands in blocks(path):
            purpose, *rest = sentences(paragraphs)
            picture = f"examples/pictures/{name}.png"
            alt = alts.get(picture, f"The picture that the demo {name} draws")
            made.append(Demo(name, purpose, "\n\n".join(rest), commands, alt))
    return made


def blocks(path: Path) -> Iterator[tuple[str, list[str], str]]:
    """Yield a picture's name, the paragraphs about it and the commands, from a file's docstring."""
    paragraphs: list[str] = []
    for part in (ast.get_docstring(ast.parse(path.read_bytes())) or "").split("\n\n"):
        command = _COMMAND.search(part)
        if not part.startswith("    "):
            paragraphs.append(" ".join(part.split()))
        elif command is None:
            paragraphs.append(part)  # which Markdown shows as code
        else:
            name = "_".join(filter(None, command.groups()))
            if (FOLDER / "pictures" / f"{name}.png").is_file():
                yield name, paragraphs, "\n".join(line.strip() for line in part.splitlines())
            paragraphs = []


def sentences(paragraphs: list[str]) -> list[str]:
    """Return the first sentence of the first paragraph, and the other paragraphs."""
    first, *rest = paragraphs
    purpose, _, remainder = first.partition(". ")
    return [f"{purpose}.", remainder, *rest] if remainder else [first, *rest]
