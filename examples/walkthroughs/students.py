"""The edition of the course for classes whose answers nbgrader collects and grades.

The notebooks of the repository show the solutions, folded away. Here each solution moves from the
text into the cell where the answer belongs, between the marks of a solution region of nbgrader, and
the check of an answer becomes a separate cell, which gives a point. `nbgrader
generate_assignment` removes the solutions, and `nbgrader autograde` runs the checks on the answers
that students hand in.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from examples.walkthroughs.notebooks import (
    Cell,
    Notebook,
    answer_of,
    checked,
    exercises,
    read,
    solutions,
    walkthroughs,
    without_solution,
)
from minigrad.progress import progress_bar

SETTINGS = '''"""The settings of nbgrader for this course; start its commands in this folder."""

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "minigrad"
# A cell to answer in keeps its first lines, so nothing has to stand where the solution was.
c.ClearSolutions.code_stub = {"python": "# Write your code above this line."}
c.ExecutePreprocessor.timeout = 600
'''


def write_edition(out: Path) -> list[Path]:
    """Write the students' edition, in the layout of an nbgrader course, and return its notebooks.

    Each notebook is an assignment, `out/source/NAME/NAME.ipynb`.

    Args:
        out: a folder that is missing or empty.

    Raises:
        FileExistsError: if `out` is a file, or a folder that is not empty.
        NotADirectoryError: if `out` would be in a file.
    """
    above = next((path for path in out.parents if path.is_file()), None)
    if above is not None:
        raise NotADirectoryError(f"{str(above)!r} is a file, and not a folder; name another one")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(f"{out} is not an empty folder; name one that is empty or missing")
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as work:
        draft = Path(work, "edition")
        for path in progress_bar(walkthroughs(), what="writing", unit="notebook", shown=True):
            written = draft / "source" / path.stem / path.name
            written.parent.mkdir(parents=True)
            text = json.dumps(for_students(read(path)), indent=1, ensure_ascii=False)
            written.write_text(text + "\n", encoding="utf-8")
        (draft / "nbgrader_config.py").write_text(SETTINGS, encoding="utf-8")
        out.mkdir(exist_ok=True)
        for part in [*draft.iterdir()]:  # a folder that is there stays: a shell may be in it
            part.rename(out / part.name)
    return [out / "source" / path.stem / path.name for path in walkthroughs()]


def for_students(notebook: Notebook) -> Notebook:
    """Return a notebook without outputs, with cells to answer in and cells that grade them."""
    tasks = {
        id(answer_of(notebook, task)): (number, "\n\n".join(solutions(task)))
        for number, task in enumerate(exercises(notebook), 1)
    }
    cells: list[Cell] = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cells.append({**cell, "source": with_links(without_solution(cell["source"]))})
        elif id(cell) in tasks:
            cells += answer_and_check(cell, *tasks[id(cell)])
        else:
            cells.append({**cell, "execution_count": None, "outputs": []})
    return {**notebook, "cells": cells}


def answer_and_check(answer: Cell, number: int, solution: str) -> list[Cell]:
    """Return the cell that a student fills in, with the solution, and the cell that grades it."""
    begun = answer["source"].rpartition("\n")[0].rstrip()
    source = f"{begun}\n\n\n### BEGIN SOLUTION\n{solution.rstrip()}\n### END SOLUTION"
    return [
        graded_cell(source, f"exercise-{number}", solution=True),
        graded_cell(f"{checked(answer)}verdict", f"exercise-{number}-check", grade=True, points=1),
    ]


def graded_cell(source: str, name: str, **roles: Any) -> Cell:
    """Return a code cell with the metadata that nbgrader needs."""
    roles = {"grade": False, "solution": False, "task": False, **roles}
    facts = {"grade_id": name, "locked": roles["grade"], "schema_version": 3, **roles}
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": name,
        "metadata": {"nbgrader": facts},
        "outputs": [],
        "source": source,
    }


def with_links(text: str) -> str:
    """Point links to other notebooks at their assignments, and remove links to other files.

    Of a picture, the description stays.
    """

    def replaced(link: re.Match[str]) -> str:
        words, target = link.groups()
        name, dot, kind = target.rpartition(".")
        return f"[{words}](../{name}/{target})" if dot and kind == "ipynb" else words

    return re.sub(r"!?\[([^\]]+)\]\((?!https?:|#)([^)]+)\)", replaced, text)
