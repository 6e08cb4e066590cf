"""The examples run, hold what they claim, draw a picture, and refuse bad input in one line."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the examples need the `examples` extra")
pytest.importorskip("sklearn", reason="the examples need the `examples` extra")

from matplotlib.image import imread

from examples import (
    character_transformer,
    lora_regression,
    lora_regression_data,
    toy_regression,
    why_lora_is_not_faster,
)
from examples.lora_regression_report import FULL, LORA, NONE, compare


def is_picture(path, width, height):
    """Whether a file is a PNG of at least so many pixels, and not blank."""
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = imread(path)
    return pixels.shape[0] >= height and pixels.shape[1] >= width and pixels.std() > 0.05


def write_csv(path, rows=160, **columns):
    """Two features, a group, and a target whose dependence on them differs between the groups."""
    rng = np.random.default_rng(0)
    a, b, group = rng.normal(size=rows), rng.normal(size=rows), np.arange(rows) % 2
    values = {"a": a, "b": b, "group": group, "y": 100 * np.where(group, b - 2 * a, 2 * a + b)}
    values |= columns
    lines = [
        ",".join(values),
        *(",".join(map(str, row)) for row in zip(*values.values(), strict=True)),
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


# ------------------------------------------------------------------------------------------------
# The main demo
# ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The quick form, run once: its results, and the picture."""
    out = tmp_path_factory.mktemp("demo") / "demo.png"
    return lora_regression.main(quick=True, out=out), out


def test_lora_trains_a_twentieth_of_the_numbers_and_needs_as_little_state(demo):
    results, _ = demo
    full, low_rank = results[FULL][0].cost, results[LORA][0].cost
    assert low_rank.trainable == 2 * 8 * (256 + 256)
    assert full.trainable == 148_256
    assert (full.state_bytes, low_rank.state_bytes) == (8 * 148_256, 8 * low_rank.trainable)
    assert results[NONE][0].cost.trainable == 0


def test_both_ways_of_adapting_beat_none_beyond_the_noise(demo):
    results, _ = demo
    for way in (FULL, LORA):
        difference = compare(results, way, NONE)
        assert difference.is_clear
        assert difference.mean < -2  # of 6 grey levels


def test_adapting_costs_accuracy_on_the_old_group(demo):
    results, _ = demo
    for before, after in zip(results[NONE], results[LORA], strict=True):
        assert after.old_rmse > before.old_rmse + 1


def test_r2_is_measured_against_the_average_image(demo):
    results, _ = demo
    outcome = results[LORA][0]
    spread = ((outcome.truth - outcome.truth.mean(axis=0)) ** 2).sum()
    error = ((outcome.truth - outcome.prediction) ** 2).sum()
    assert outcome.r2 == pytest.approx(1 - error / spread, rel=1e-5)
    assert outcome.rmse == pytest.approx(np.sqrt(error / outcome.truth.size), rel=1e-5)
    assert outcome.truth.min() >= -1e-4  # back in grey levels
    assert outcome.truth.max() <= 16 + 1e-4


def test_the_picture_is_there(demo):
    _, out = demo
    assert is_picture(out, width=1600, height=850)


def test_the_same_seed_gives_the_same_numbers(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(lora_regression, "draw", lambda *args: None)
    again = lora_regression.main(quick=True, out=tmp_path / "again.png")
    assert [o.rmse for o in again[LORA]] == [o.rmse for o in demo[0][LORA]]


def test_no_seven_is_in_the_old_group():
    task = lora_regression_data.digits()
    data = lora_regression_data.split(task, np.random.default_rng(0))
    rows = [
        len(y)
        for group in (data.old, data.new)
        for _, y in (group.train, group.validation, group.test)
    ]
    assert sum(rows[:3]) == (~task.is_new).sum() == 1618
    assert sum(rows[3:]) == task.is_new.sum() == 179
    assert rows[3] == 40
    sevens = {row.tobytes() for row in task.x[task.is_new]}
    for x, _ in (data.old.train, data.old.validation, data.old.test):
        back = np.round(data.features.inverse(x)).astype(np.float32)
        assert not sevens & {row.tobytes() for row in back}


@pytest.mark.full
def test_the_whole_main_demo(tmp_path):
    out = tmp_path / "whole.png"
    results = lora_regression.main(out=out)
    assert is_picture(out, width=1600, height=850)
    for outcome in results[LORA]:
        assert (
            outcome.r2 > 0.15
        )  # better than the average seven, which is far from what it began with
    assert abs(compare(results, LORA, FULL).mean) < 0.3


@pytest.mark.full
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("scaling", ["standard", "rslora"])
def test_the_main_demo_with_other_options(tmp_path, optimizer, scaling):
    out = tmp_path / "options.png"
    results = lora_regression.main(
        rank=4, alpha=4, scaling=scaling, optimizer=optimizer, epochs=20, seed=3, out=out
    )
    assert compare(results, LORA, NONE).is_clear
    assert compare(results, LORA, NONE).mean < 0


# ------------------------------------------------------------------------------------------------
# A CSV file
# ------------------------------------------------------------------------------------------------


def test_a_csv_file_of_ones_own(tmp_path, capsys):
    out = tmp_path / "csv.png"
    csv = write_csv(tmp_path / "own.csv")
    lora_regression.command_line(
        ["--quick", "--csv", str(csv), "--target", "y", "--shift-by", "group", "--out", str(out)]
    )
    printed = capsys.readouterr().out
    assert "group above 0" in printed
    assert "LoRA, rank 8" in printed
    assert is_picture(out, width=1600, height=850)


def test_a_column_that_pretraining_sees_constant_is_no_feature(tmp_path):
    csv = write_csv(tmp_path / "own.csv")
    assert lora_regression_data.from_csv(csv, "y", "group").x.shape == (160, 2)
    assert lora_regression_data.from_csv(csv, "y", "a").x.shape == (160, 3)


def test_the_shift_is_by_the_most_correlated_column_unless_one_is_named(tmp_path):
    a = np.linspace(-1, 1, 160)
    csv = write_csv(tmp_path / "own.csv", a=a, y=a**3)
    assert lora_regression_data.from_csv(csv, "y").new_group == "a above 0"


def test_a_column_of_ones_and_few_zeros_can_be_shifted_by(tmp_path):
    csv = write_csv(tmp_path / "own.csv", group=np.arange(160) % 4 != 0)
    csv.write_text(csv.read_text().replace("True", "1").replace("False", "0"))
    task = lora_regression_data.from_csv(csv, "y", "group")
    assert task.is_new.sum() == 120
    assert (task.old_group, task.new_group) == ("group up to 0", "group above 0")


# ------------------------------------------------------------------------------------------------
# Bad input
# ------------------------------------------------------------------------------------------------


def refusal(capsys, *arguments):
    """The one line on standard error with which a command line is refused."""
    with pytest.raises(SystemExit) as caught:
        lora_regression.command_line(list(arguments))
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("nan", "line 2, column 'b': 'nan' is not finite"),
        ("", "line 2, column 'b': the value is missing; fill it in"),
        ("red", "line 2, column 'b': 'red' is not a number; encode text columns as numbers"),
    ],
)
def test_a_bad_cell_is_refused_by_line_and_column(tmp_path, capsys, cell, says):
    csv = tmp_path / "bad.csv"
    csv.write_text(f"a,b,y\n1,{cell},3\n")
    assert says in refusal(capsys, "--csv", str(csv), "--target", "y")


def test_bad_tables_are_refused_with_what_to_do(tmp_path, capsys):
    csv = str(write_csv(tmp_path / "own.csv"))
    short = str(write_csv(tmp_path / "short.csv", rows=30))
    constant = str(write_csv(tmp_path / "constant.csv", y=np.zeros(160), b=np.ones(160)))
    missing = str(tmp_path / "missing.csv")
    for arguments, says in (
        (("--csv", missing, "--target", "y"), "there is no file"),
        (("--csv", str(tmp_path), "--target", "y"), "there is no file"),
        (
            ("--csv", csv, "--target", "z"),
            "no column 'z'; the columns are ['a', 'b', 'group', 'y']",
        ),
        (("--csv", csv), "--csv needs --target COLUMN"),
        (("--target", "y"), "give --csv FILE too"),
        (
            ("--csv", csv, "--target", "y", "--shift-by", "c"),
            "none of the features ['a', 'b', 'group']",
        ),
        (("--csv", short, "--target", "y"), "15 rows have"),
        (("--csv", constant, "--target", "y"), "'y' is constant"),
        (("--csv", constant, "--target", "a", "--shift-by", "b"), "'b' is constant; name another"),
    ):
        assert says in refusal(capsys, *arguments)


def test_bad_options_are_refused_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lora_regression, "run", None)  # no work can be done
    for arguments, says in (
        (("--rank", "0"), "rank must be at least 1"),
        (("--rank", "128"), "--rank must be below 128"),
        (("--rank", "x"), "invalid int value"),
        (("--alpha", "-1"), "alpha must be a positive number"),
        (("--alpha", "nan"), "alpha must be a positive number"),
        (("--scaling", "other"), "invalid choice: 'other'"),
        (("--optimizer", "other"), "invalid choice: 'other'"),
        (("--epochs", "0"), "--epochs must be at least 1"),
        (("--seed", "-1"), "--seed must not be negative"),
        (("--out", str(tmp_path / "picture.txt")), "--out must be the name of a .png file"),
        (("--out", str(tmp_path / "none" / "picture.png")), "there is no folder"),
        (("--other",), "unrecognized arguments: --other"),
    ):
        assert says in refusal(capsys, *arguments)


def test_as_a_script_it_leaves_with_status_2_and_no_traceback(tmp_path):
    command = [
        sys.executable,
        "-m",
        "examples.lora_regression",
        "--csv",
        "none.csv",
        "--target",
        "y",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "lora_regression: there is no file 'none.csv'; --csv takes a table with a header line "
        "(see --help)\n"
    )


# ------------------------------------------------------------------------------------------------
# The smallest demo
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.full)])
def test_the_smallest_demo(tmp_path, capsys, quick):
    out = tmp_path / "toy.png"
    error = toy_regression.main(quick, out)
    assert error < 0.1
    assert f"{error:.3f}" in capsys.readouterr().out
    assert is_picture(out, width=1000, height=550)


# ------------------------------------------------------------------------------------------------
# The receipt
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.full)])
def test_why_lora_is_not_faster(tmp_path, capsys, quick):
    out = tmp_path / "saved.png"
    compared = why_lora_is_not_faster.main(quick, out)
    # Of three products of each weight two remain, and those of the adapters come on top.
    assert 0.6 < compared.ratio("LoRA", "flops") < 0.75
    assert compared.value("LoRA", "trained") == (3 if quick else 6) * 4 * 8 * (64 if quick else 256)
    printed = capsys.readouterr().out
    assert "LoRA does 0." in printed
    assert printed.count("ms a step") == 3
    assert is_picture(out, width=1000, height=550)


# ------------------------------------------------------------------------------------------------
# The language model
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.full)])
def test_the_language_model(capsys, quick):
    result = character_transformer.main(quick)
    assert result.transformer < result.bigram - (0.3 if quick else 0.8)
    assert 2 < result.bigram < result.unigram < 4
    assert (0.9e6 < result.parameters < 1.1e6) != quick
    assert len(result.sample) == (81 if quick else 501)
    assert f"{result.transformer:.2f}" in capsys.readouterr().out


def test_the_tables_are_judged_by_the_characters_that_follow():
    known = np.array([0, 1] * 500 + [2])
    before, after = character_transformer.in_rows(np.array([0, 1, 0, 1, 0, 1, 2]), 2)
    assert before.tolist() == [[0, 1], [0, 1], [0, 1]]
    assert after.tolist() == [[1, 0], [1, 0], [1, 2]]
    unigram, bigram = character_transformer.by_counting(known, before, after, 3)
    assert unigram == pytest.approx((5 * np.log(2) + np.log(1004 / 2)) / 6, rel=0.01)
    assert bigram == pytest.approx(np.log(503 / 2) / 6, rel=0.02)  # the last pair is one of 500


def test_the_text_has_no_paragraph_twice():
    paragraphs = character_transformer.manual().split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs) > 1000
