"""Which versions the library runs on: what pyproject.toml says, and what users of others read."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import lora
import minigrad
from minigrad.kernels.jit import OLDEST_NUMBA

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OLD_PYTHON = "import sys; sys.version_info = (3, 10, 4); sys.version = '3.10.4 (main)'; "
OLD_NUMBA = (
    "import collections, numba; short = collections.namedtuple('V', 'short')((0, 60)); "
    "numba.version_info, numba.__version__ = short, '0.60.0'; "
)


def last_line(script):
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    return run.stderr.splitlines()[-1]


@pytest.mark.parametrize("package", ["minigrad", "lora", "minigrad.nn"])
def test_an_older_python_is_refused_in_a_sentence(package):
    assert last_line(f"{OLD_PYTHON}import {package}") == (
        "ImportError: minigrad and lora need Python 3.11 or later, and this is 3.10.4; make a "
        "virtual environment with a later one"
    )


@pytest.mark.full
def test_an_older_numba_is_refused_in_a_sentence():
    script = f"{OLD_NUMBA}import minigrad; minigrad.gelu(minigrad.ones(2))"
    assert last_line(script) == (
        "ImportError: minigrad needs numba 0.61 or later, and this is numba 0.60.0: "
        "python -m pip install --upgrade numba"
    )


def test_the_oldest_numba_is_the_one_that_is_installed_with():
    assert f"numba>={'.'.join(map(str, OLDEST_NUMBA))}" in PROJECT["dependencies"]


def test_both_packages_know_the_version_that_is_installed():
    assert minigrad.__version__ == lora.__version__ == version("minigrad-lora")


def test_the_versions_in_pyproject_and_in_the_readme_are_the_same():
    assert PROJECT["requires-python"] == ">=3.11,<3.15"
    classifiers = [line.split(" :: ")[-1] for line in PROJECT["classifiers"]]
    assert [v for v in classifiers if v.startswith("3.")] == ["3.11", "3.12", "3.13", "3.14"]
    assert "Python 3.11, 3.12, 3.13 or 3.14" in (ROOT / "README.md").read_text()
