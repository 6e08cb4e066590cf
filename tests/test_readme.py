"""The README's code does what it says."""

import doctest
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore:divide by zero")  # by numpy, of what the detector is about
@pytest.mark.parametrize(
    "block",
    BLOCKS,
    ids=[
        "tour",
        "functions",
        "whole models",
        "merging",
        "files",
        "writing an op",
        "seeing it",
        "gradcheck",
        "liveness",
        "receipt",
        "anomaly",
    ],
)
def test_the_code_prints_what_it_shows(block):
    example = doctest.DocTestParser().get_doctest(block, {}, "README", "README.md", 0)
    assert example.examples
    output: list[str] = []
    runner = doctest.DocTestRunner(
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False
    )
    result = runner.run(example, out=output.append)
    assert result.failed == 0, "".join(output)


def test_the_files_that_it_names_exist():
    links = re.findall(r"\]\(([\w./]+)\)", README.read_text())
    missing = [link for link in links if not (README.parent / link).exists()]
    assert len(links) > 15
    assert missing == []
