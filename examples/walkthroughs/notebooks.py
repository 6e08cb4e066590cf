"""The notebooks of the course as files, and the parts of an exercise.

An exercise is a Markdown cell that begins with `**Exercise`. Its hints and its solution are folded
away in the same cell, the solution as code between `<details><summary>Solution</summary>` and
`</details>`. The code cell after it is where the reader writes; its last line is `check(n, name)`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

WALKTHROUGHS = Path(__file__).parent

Notebook = dict[str, Any]
Cell = dict[str, Any]

_FOLDED = re.compile(r"<details><summary>Solution</summary>\n\n(.*?)\n</details>", re.DOTALL)
_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def read(path: Path) -> Notebook:
    """Read a notebook, and join each text that is stored as a list of lines."""
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
        for output in cell.get("outputs", []):
            if "text" in output:
                output["text"] = "".join(output["text"])
            data = output.get("data", {})
            data.update({kind: "".join(v) for kind, v in data.items() if isinstance(v, list)})
    return notebook


def code_cells(notebook: Notebook) -> list[Cell]:
    """Return the cells that run."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def exercises(notebook: Notebook) -> list[Cell]:
    """Return the cells that set the reader a task."""
    return [
        cell
        for cell in notebook["cells"]
        if cell["cell_type"] == "markdown" and cell["source"].startswith("**Exercise")
    ]


def solutions(cell: Cell) -> list[str]:
    """Return the code that is folded away in a Markdown cell."""
    if cell["cell_type"] != "markdown":
        return []
    return [code for text in _FOLDED.findall(cell["source"]) for code in _PYTHON.findall(text)]


def without_solution(text: str) -> str:
    """Return a Markdown text without the solutions that are folded away in it."""
    return _FOLDED.sub("", text).rstrip()


def answer_of(notebook: Notebook, exercise: Cell) -> Cell:
    """Return the code cell where the reader answers an exercise: the cell after it."""
    cells = notebook["cells"]
    cell: Cell = cells[cells.index(exercise) + 1]
    return cell


def checked(answer: Cell) -> str:
    """Return statements that check an answer, and raise an error if it is not right.

    Raises:
        ValueError: if the last line of the cell is not a check.
    """
    line = str(answer["source"]).rpartition("\n")[2]
    if not re.fullmatch(r"check\(\d+, .+\)", line):
        raise ValueError(f"the last line of an answer is `check(n, name)`, and not {line!r}")
    return f"verdict = {line}\nassert verdict, verdict\n"


class Head(NamedTuple):
    """The parts of the first cell of a walkthrough, in Markdown."""

    title: str
    introduction: str
    able_to: str
    needs: str
    minutes: int
    exercise_minutes: int
    difficulty: int


_HEAD = re.compile(
    r"# (.*?)\n+(.*?)\n+- \*\*You will be able to:\*\* (.*?)\n- \*\*You need:\*\* (.*?)"
    r"\n- \*\*Time:\*\* (\d+) minutes, and (\d+) for the exercises"
    r"\n- \*\*Difficulty:\*\* ([1-5]) of 5(?:\n|$)",
    re.DOTALL,
)


def head_of(notebook: Notebook) -> Head:
    """Return the parts of the first cell: what the walkthrough teaches and needs, and its time.

    Raises:
        ValueError: if the cell does not have the form of such a head.
    """
    source = notebook["cells"][0]["source"]
    found = _HEAD.match(source)
    if found is None:
        raise ValueError(
            "a walkthrough begins with a title, an introduction, and four list items: You will be "
            f"able to, You need, Time, Difficulty; and not with {source[:80]!r}"
        )
    title, introduction, able_to, needs, *figures = found.groups()
    minutes, exercise_minutes, difficulty = map(int, figures)
    return Head(title, introduction, able_to, needs, minutes, exercise_minutes, difficulty)


def walkthroughs() -> list[Path]:
    """Return the walkthroughs, in the order of their numbers."""
    return sorted(WALKTHROUGHS.glob("*.ipynb"), key=lambda path: int(path.name.partition("_")[0]))


def chosen(name: str) -> Path:
    """Return the path of a notebook from its path, its name, or the beginning of its name.

    Raises:
        ValueError: if no notebook fits, or more than one.
    """
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name)
    beginning = Path(name).name
    beginning += "_" * beginning.isdigit()  # so that 1 does not also mean 10
    there = walkthroughs()
    meant = [path for path in there if path.name.startswith(beginning)] if name else []
    if len(meant) != 1:
        names = ", ".join(path.stem for path in there)
        raise ValueError(f"{name!r} is not a notebook's path or name; there are: {names}")
    return meant[0]
