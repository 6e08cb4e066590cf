"""The edition for students: what nbgrader makes of it, and what it grades."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

from examples.walkthroughs.__main__ import main
from examples.walkthroughs.notebooks import code_cells, exercises, read, walkthroughs
from examples.walkthroughs.students import for_students, with_links, write_edition
from tests.notebooks import ROOT

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
PATHS = walkthroughs()


def facts(cell):
    """What nbgrader knows of a cell; nothing if it is an ordinary one."""
    return cell["metadata"].get("nbgrader", {})


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class") / "course"
    write_edition(folder)
    return folder


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_each_exercise_is_a_cell_with_a_solution_and_one_that_grades(path, course):
    original = read(path)
    edition = read(course / "source" / path.stem / path.name)
    solved = [cell for cell in code_cells(edition) if facts(cell).get("solution")]
    grading = [cell for cell in code_cells(edition) if facts(cell).get("grade")]
    assert len(solved) == len(grading) == len(exercises(original)) > 0
    for number, (answer, check) in enumerate(zip(solved, grading, strict=True), 1):
        assert answer["source"].count(BEGIN) == answer["source"].count(END) == 1
        assert f"check({number}, " not in answer["source"]
        assert check["source"].startswith(f"verdict = check({number}, ")
        assert check["source"].endswith("\nverdict")  # what a right answer shows
        assert facts(check)["locked"]
        assert facts(check)["points"] == 1
    names = [facts(cell)["grade_id"] for cell in solved + grading]
    assert len(set(names)) == len(names)
    prose = "".join(cell["source"] for cell in exercises(edition))
    assert "<summary>Solution</summary>" not in prose
    assert "<summary>Hint 1</summary>" in prose
    assert not any(cell["outputs"] for cell in code_cells(edition))


def test_the_original_is_not_changed():
    notebook = read(PATHS[0])
    for_students(notebook)
    assert notebook == read(PATHS[0])


def test_links_lead_to_other_assignments_or_nowhere():
    text = (
        "[a](7_lora.ipynb) [b](../../minigrad/ops) [c](https://a.org) [d](#e) ![f](pictures/f.png)"
    )
    expected = "[a](../7_lora/7_lora.ipynb) b [c](https://a.org) [d](#e) f"
    assert with_links(text) == expected


def test_the_command_writes_it_and_says_what_comes_next(tmp_path, capsys):
    main(["student", str(tmp_path / "new/course")])
    said = capsys.readouterr().out
    assert f"wrote {len(PATHS)} assignments to {tmp_path / 'new/course/source'}" in said
    assert "nbgrader generate_assignment 1_a_derivative_is_a_program" in said
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["course"]


def test_the_current_folder_may_be_the_one_to_write_to(tmp_path, capsys, monkeypatch):
    here = tmp_path / "my course"
    here.mkdir()
    monkeypatch.chdir(here)
    main(["student", "."])
    assert sorted(path.name for path in here.iterdir()) == ["nbgrader_config.py", "source"]
    assert here.samefile(".")  # the same folder, in which a shell may be, and not a new one
    assert "cd . && nbgrader" in capsys.readouterr().out
    main(["student", "../another course"])
    assert "cd '../another course' && nbgrader" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another course", "my course"]


def test_what_is_in_a_folder_is_left_alone(tmp_path):
    (tmp_path / "grades.csv").write_text("work of a year")
    with pytest.raises(SystemExit, match=r"is not an empty folder; name one that is empty or"):
        main(["student", str(tmp_path)])
    with pytest.raises(SystemExit, match="is not an empty folder"):
        main(["student", str(tmp_path / "grades.csv")])
    with pytest.raises(SystemExit, match=r"grades\.csv' is a file, and not a folder; name another"):
        main(["student", str(tmp_path / "grades.csv" / "course")])
    assert [path.name for path in tmp_path.iterdir()] == ["grades.csv"]


def nbgrader(course, *arguments):
    """Run a command of nbgrader in the folder of a course."""
    command = [sys.executable, "-m", "nbgrader", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    done = subprocess.run(command, cwd=course, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
@pytest.mark.skipif(find_spec("nbgrader") is None, reason="needs nbgrader: the `full` extra")
def test_nbgrader_removes_the_solutions_and_grades_what_is_handed_in(tmp_path):
    course, name = tmp_path / "course", PATHS[0].stem
    write_edition(course)
    nbgrader(course, "generate_assignment", name)
    released = course / "release" / name / f"{name}.ipynb"
    assert BEGIN not in released.read_text()
    points = len(exercises(read(PATHS[0])))

    wrong = read(released)
    for cell in code_cells(wrong):
        if facts(cell).get("grade_id") == "exercise-1":
            cell["source"] = "def slopes(a, b):\n    return a"
    (tmp_path / "wrong.ipynb").write_text(json.dumps(wrong))

    solved = course / "source" / name / f"{name}.ipynb"
    files = {"all": solved, "wrong": tmp_path / "wrong.ipynb"}
    for student, file in files.items():
        (course / "submitted" / student / name).mkdir(parents=True)
        shutil.copy(file, course / "submitted" / student / name / f"{name}.ipynb")
    nbgrader(course, "autograde", name)
    nbgrader(course, "generate_feedback", name)
    for student, sentences in {
        "all": [f"(Score: {points}.0 / {points}.0)", "Exercise 1: right."],
        "wrong": [
            f"(Score: 0.0 / {points}.0)",
            "Exercise 1: not yet. With a = 0.5, b = 2.0: 2 values are expected, and",
            "Exercise 2: not answered yet.",
        ],
    }.items():
        feedback = (course / "feedback" / student / name / f"{name}.html").read_text()
        text = " ".join(re.sub("<[^>]*>", "", feedback).split())
        assert [said for said in sentences if said not in text] == [], student
