"""The README and the guides beside the source: their code, their commands and their links."""

import argparse
import doctest
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

import lora
import minigrad as mg
from lora.text.loading import load_model
from tests.benchmarks.workloads import WORKLOADS
from tests.lora.text.models import tiny_folder, tiny_gguf

# runpy warns of a module that another test has imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FOLDERS = "lora", "minigrad/diagnostics", "minigrad/distributed", "tests/benchmarks"
GUIDES = [ROOT / folder / "README.md" for folder in FOLDERS]
GUIDES += [ROOT / "examples/walkthroughs" / name for name in ("README.md", "TEACHING.md")]
PAGES = [README, *GUIDES]
CONTRIBUTING = ROOT / ".github/CONTRIBUTING.md"

HEADING_OR_BLOCK = re.compile(r"^#+ ([^\n]*)$|^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
OURS = re.compile(r"python -m ((?:minigrad|lora|examples|tests)(?:\.\w+)*)")
QUICK = "lora", "minigrad"  # their commands are run, those of other modules only parsed
WRITTEN = ".png", ".safetensors", "extracted"  # what is there after a command that names it


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page):
    """The blocks of code, each with its language and the heading above it."""
    found, above = [], ""
    for heading, language, code in HEADING_OR_BLOCK.findall(page.read_text()):
        above = heading or above
        if not heading:
            found.append((language, above, code))
    return found


def anchors(page):
    """The names by which GitHub links to the headings."""
    headings = [heading for heading, *_ in HEADING_OR_BLOCK.findall(page.read_text()) if heading]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def with_ids(found):
    """Parameters of a test, named after page and heading, and numbered where that is not enough."""
    seen, parameters = Counter(), []
    for page, heading, value in found:
        name = f"{name_of(page)}: {heading}"
        seen[name] += 1
        number = f" ({seen[name]})" if seen[name] > 1 else ""
        parameters.append(pytest.param(value, id=name + number))
    return parameters


PYTHON = [
    (page, heading, code)
    for page in PAGES
    for language, heading, code in blocks(page)
    if language == "python"
]
COMMANDS = [
    line
    for page in GUIDES
    for language, _, code in blocks(page)
    if language == "sh"
    for line in code.splitlines()
]


@pytest.mark.filterwarnings("ignore:divide by zero")  # by numpy, of what the detector is about
@pytest.mark.parametrize("block", with_ids(PYTHON))
def test_the_code_prints_what_it_shows(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = doctest.DocTestParser().get_doctest(block, {}, "README", "README.md", 0)
    assert example.examples
    output: list[str] = []
    runner = doctest.DocTestRunner(
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False
    )
    result = runner.run(example, out=output.append)
    assert result.failed == 0, "".join(output)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_language_that_is_tested_or_is_plain_text(page):
    languages = {language for language, *_ in blocks(page)}
    assert languages
    assert languages <= {"python", "sh", "text"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_files_and_headings_that_it_links_to_exist(page):
    links = [link for link in LINK.findall(page.read_text()) if not link.startswith("https://")]
    assert links
    missing = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_modules_that_it_says_to_run_exist(page):
    modules = set(OURS.findall(page.read_text()))
    assert modules
    assert [module for module in modules if find_spec(module) is None] == []


# The command of the peers takes no options, and needs the peers.
MODULES = {module for page in [*PAGES, CONTRIBUTING] for module in OURS.findall(page.read_text())}


# Asks each module for help, as `python -m` does, and prints what came of it.
ASK = """
import io, json, os, runpy, sys, traceback, warnings
from contextlib import redirect_stderr, redirect_stdout

# An earlier module may have imported a later one.
warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
came = {}
for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    out, err, status, there = io.StringIO(), io.StringIO(), 0, set(os.listdir())
    with redirect_stdout(out), redirect_stderr(err):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stopped:
            status = stopped.code or 0
        except BaseException:
            status = traceback.format_exc()
    text, left = out.getvalue(), sorted(set(os.listdir()) - there)
    is_help = "python -m" in text or text.startswith("usage: ")
    came[module] = [status, err.getvalue(), left, is_help]
print(json.dumps(came))
"""


@pytest.mark.full
def test_a_command_that_is_asked_for_help_gives_it_and_writes_nothing(tmp_path):
    modules = sorted(MODULES - {"tests.lora.test_peers"})
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *modules],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    came = json.loads(done.stdout)
    assert list(came) == modules
    assert {module: each for module, each in came.items() if each != [0, "", [], True]} == {}
    assert list(tmp_path.iterdir()) == []


def test_the_readme_is_short_and_begins_with_the_commands_for_newcomers():
    assert len(README.read_text().splitlines()) <= 200
    commands = [code for language, _, code in blocks(README) if language == "sh"]
    assert commands[:2] == [
        'python -m pip install -e ".[examples]" && python -m examples.lora_regression\n',
        'python -m pip install -e ".[test]" && python -m pytest -q -n 2\n',
    ]


# ------------------------------------------------------------------------------------------------
# The commands of the guides. Those of the README are run by .ci/run.
# ------------------------------------------------------------------------------------------------


class ParsedError(Exception):
    """A command line was understood; the options are the argument."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the files that the commands name."""
    monkeypatch.chdir(tmp_path)
    rng = mg.manual_seed(0)
    model = mg.nn.MLP([8, 8, 8], rng=rng)
    mg.io.save_state("base.safetensors", model.state_dict())
    lora.attach(model, lora.LoRAConfig(rank=4), rng=rng)
    for layer in model.layers:
        layer.lora_b = mg.randn(8, 4).data
    lora.save(model, "adapter")
    mg.io.save_state("finetuned.safetensors", lora.fold(model).state_dict())
    functions = "def function(a, b):\n    return a @ b\n\ndef forward(x):\n    return x * x\n\n"
    functions += "def backward(g, x):\n    return 2 * g * x\n"
    (tmp_path / "file.py").write_text(functions)
    row = '{"prompt": "The quick", "completion": " brown fox."}\n'
    (tmp_path / "examples.jsonl").write_text(8 * row)
    tiny_gguf("model.gguf", tiny_folder("tiny"))
    return tmp_path


def teach():
    """Put an adapter for the language model into the folder `taught`."""
    model = load_model("model.gguf")
    lora.attach(model, lora.LoRAConfig(rank=2))
    lora.save(model, "taught")


def parse_only(monkeypatch):
    """Stop where a command line has been parsed."""
    parse = argparse.ArgumentParser.parse_args

    def parse_args(self, arguments=None, namespace=None):
        raise ParsedError(parse(self, arguments, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)


def run(module):
    """Run a module as `python -m` does, and return its exit status."""
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as stopped:
        return stopped.code or 0
    return 0


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_work(line, folder, monkeypatch, capsys):
    python, option, module, *arguments = shlex.split(line)
    assert (python, option) == ("python", "-m")
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    if module in QUICK:
        if "taught" in arguments and arguments[0] != "train":
            teach()
        if "--merged" in arguments:
            lora.offline.merge_files("model.gguf", "taught", "merged")
        monkeypatch.setattr("sys.stdin", io.StringIO("why?\n"))
        before = set(folder.iterdir())
        status, printed = run(module), capsys.readouterr()
        assert status == 0, printed.err
        assert printed.out
        made = set(folder.iterdir()) - before - {folder / "__pycache__"}
        assert made <= {folder / argument for argument in arguments}
        assert all(Path(name).exists() for name in arguments if name.endswith(WRITTEN))
        return
    if module == "examples.minilm":
        pytest.importorskip("tokenizers", reason="the examples need the `examples` extra")
    parse_only(monkeypatch)
    with pytest.raises(ParsedError) as parsed:
        run(module)
    if module == "tests.benchmarks":
        assert set(parsed.value.args[0].names) <= set(WORKLOADS)


def test_a_command_line_that_is_wrong_is_seen(monkeypatch, capsys):
    parse_only(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["tests.benchmarks", "--quickly"])
    assert run("tests.benchmarks") == 2
    assert "unrecognized arguments: --quickly" in capsys.readouterr().err
