"""The script of the step-through page, as a linter sees it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from minigrad.viz.page import script

pytestmark = pytest.mark.full

RULES = Path(__file__).parents[2].joinpath("oxlint.json")


def lint(text, tmp_path):
    """What the linter says of a script."""
    oxlint = shutil.which("oxlint")
    if oxlint is None:
        pytest.skip("oxlint is not installed; pip install 'minigrad-lora[full]'")
    path = tmp_path / "page.js"
    path.write_text(text, "utf-8")
    command = [oxlint, "--config", str(RULES), "--format", "unix", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_the_linter_has_nothing_to_say(tmp_path):
    status, said = lint(script(), tmp_path)
    assert status == 0, said


@pytest.mark.parametrize(
    "wrong", ["undefined_name();", "let x = 1; draw(x);", "if (pass == 1) draw();"]
)
def test_the_linter_would_find_a_mistake(tmp_path, wrong):
    status, said = lint(script().replace("\ndraw", f"\n{wrong}\ndraw", 1), tmp_path)
    assert status == 1
    assert "page.js" in said
