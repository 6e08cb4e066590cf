"""Notebooks as files: read, run from top to bottom, stored with their outputs, compared.

    python -m tests.notebooks [NAME ...]

runs the walkthroughs, or those that are named, by `7`, `7_lora` or a path, and stores what they
show.

A cell with the tag `varies` shows what differs between machines or runs, such as seconds. How an
exercise is written says `examples.walkthroughs.notebooks`.
"""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from examples.walkthroughs.notebooks import (
    Cell,
    Notebook,
    answer_of,
    checked,
    chosen,
    code_cells,
    read,
    solutions,
    walkthroughs,
)
from minigrad.io.atomic import write_atomically
from minigrad.progress import progress_bar

ROOT = Path(__file__).parents[1]
VARIES = "varies"
SECONDS = 600  # that a cell may take
QUICK = 0.2  # the seconds of a cell that is worth running twice
LEFT = "adapter/adapter_config.json"  # a file of an earlier run, which walkthrough 14 writes

# --------------------------------------------------------------------------------------------------
# Running
# --------------------------------------------------------------------------------------------------


def run(notebook: Notebook, with_solutions: bool = False, twice: bool = False) -> Notebook:
    """Run a notebook in a fresh kernel and return it with what it shows now.

    It runs in a folder with nothing but a file of an earlier run: a reader runs it more than once.

    Args:
        notebook: what to run; it is not changed.
        with_solutions: run the solution of each exercise too, and check it: where it stands, and
            again after the last cell, for readers who do the exercises in the end.
        twice: run each cell that is quick a second time, as readers do, and return what it shows
            then: it should be the same.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell or a solution raises, or if the check of
            an exercise does not call its solution right.
    """
    import nbformat
    from nbclient import NotebookClient

    class Client(NotebookClient):
        async def async_execute_cell(self, cell: Any, *args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            executed = await super().async_execute_cell(cell, *args, **options)
            is_quick = time.perf_counter() - start < QUICK
            if not (twice and is_quick) or "solution-" in cell["id"]:
                return executed
            try:
                return await super().async_execute_cell(cell, *args, **options)
            except Exception as error:
                error.add_note("The cell has run once, and cannot be run a second time.")
                raise

    cells: list[Cell] = []
    at_the_end: list[Cell] = []
    for cell in notebook["cells"]:
        cells.append(json.loads(json.dumps(cell)))
        if with_solutions and (code := solutions(cell)):
            source = "".join([*code, checked(answer_of(notebook, cell))])
            for place, name in ((cells, "solution"), (at_the_end, "late-solution")):
                place.append(nbformat.v4.new_code_cell(source, id=f"{name}-{len(cells)}"))
    cells += at_the_end
    fresh = nbformat.from_dict({**notebook, "cells": cells})
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, LEFT).parent.mkdir()
        Path(folder, LEFT).write_text("{}")
        client = Client(
            fresh,
            timeout=SECONDS,
            kernel_name="python3",
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": folder}},
        )
        environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment |= {
            "PYTHONPATH": os.pathsep.join(paths),
            "IPYTHONDIR": folder,
            "TQDM_DISABLE": "1",
        }
        client.execute(env=environment)
    fresh["cells"] = [cell for cell in fresh["cells"] if "solution-" not in cell["id"]]
    for cell in code_cells(fresh):
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = _small(data["image/png"])
    tidied: Notebook = json.loads(json.dumps(fresh))
    tidy(tidied)
    return tidied


def _small(png: str) -> str:
    """A picture, in base64, of so few colours that it takes a third of the bytes."""
    from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def tidy(notebook: Notebook) -> None:
    """Leave in a notebook what a reader sees, and nothing that differs from run to run."""
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook["nbformat"], notebook["nbformat_minor"] = 4, 5
    seen: dict[str, int] = {}
    for cell in notebook["cells"]:
        name = hashlib.sha256(cell["source"].encode()).hexdigest()[:8]
        seen[name] = seen.get(name, 0) + 1
        cell["id"] = name if seen[name] == 1 else f"{name}-{seen[name]}"
        tags = cell["metadata"].get("tags")
        cell["metadata"] = {"tags": tags} if tags else {}
    for count, cell in enumerate(code_cells(notebook), 1):
        cell["execution_count"] = count
        cell["outputs"] = _joined(cell["outputs"])
        for output in cell["outputs"]:
            for kind, content in output.get("data", {}).items():
                if kind == "text/plain":
                    output["data"][kind] = re.sub(r" at 0x[0-9a-f]+", "", content)
            if "metadata" in output:
                output["metadata"] = {}
            if "execution_count" in output:
                output["execution_count"] = count


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs, where texts printed one after the other, in pieces that vary, are one.

    What the library says of itself, that it compiles on a first run, is left out.
    """
    joined: list[dict[str, Any]] = []
    for output in outputs:
        if output.get("name") == "stderr" and output["text"].startswith("minigrad: compiling"):
            continue
        earlier = joined[-1] if joined else {}
        if output["output_type"] == "stream" and earlier.get("name") == output["name"]:
            earlier["text"] += output["text"]
        else:
            joined.append(output)
    return joined


def store(path: Path) -> None:
    """Run the notebook at `path`, without the solutions, and store it with what it shows."""
    text = json.dumps(run(read(path)), indent=1, ensure_ascii=False, sort_keys=True)
    write_atomically(path, (text + "\n").encode())


# --------------------------------------------------------------------------------------------------
# Comparing
# --------------------------------------------------------------------------------------------------


def differences(stored: Notebook, fresh: Notebook) -> list[str]:
    """Where two runs of a notebook show different things; a text for each cell that does.

    Texts must be equal. Pictures must have one size, to 2 %, and if it is the same to the pixel,
    then of 200 pixels at most one may have a lightness which there is nothing like within two
    pixels in the other: other versions of the library draw letters a little differently. In a cell
    that varies, only the kinds of what is shown must be the same; an SVG may be missing, as it is
    without graphviz.
    """
    found = []
    for number, (old, new) in enumerate(
        zip(code_cells(stored), code_cells(fresh), strict=True), start=1
    ):
        varies = VARIES in old["metadata"].get("tags", [])
        was, now = _shown(old), _shown(new)
        if varies:
            same = _kinds(was) == _kinds(now)
        else:
            same = len(was) == len(now) and all(map(_alike, was, now))
        if not same:
            found.append(
                f"code cell {number}:\n{old['source']}\n"
                f"--- stored:\n{_described(was)}\n--- fresh:\n{_described(now)}\n"
            )
    return found


def _shown(cell: Cell) -> list[tuple[str, str]]:
    """What a cell shows: a kind and its content, for each form of each output."""
    shown: list[tuple[str, str]] = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            shown.append((output["name"], output["text"]))
        elif output["output_type"] == "error":
            shown.append(("error", f"{output['ename']}: {output['evalue']}"))
        else:
            shown += sorted((kind, str(content)) for kind, content in output["data"].items())
    return shown


def _kinds(shown: list[tuple[str, str]]) -> list[str]:
    return [kind for kind, _ in shown if kind != "image/svg+xml"]


def _alike(stored: tuple[str, str], fresh: tuple[str, str]) -> bool:
    if stored == fresh or not stored[0] == fresh[0] == "image/png":
        return stored == fresh
    was, now = lightness(stored[1]), lightness(fresh[1])
    if was.shape != now.shape:
        pairs = zip(was.shape, now.shape, strict=True)
        return all(abs(a - b) <= 0.02 * max(a, b) for a, b in pairs)
    return all(_unlike(a, b) <= 0.005 for a, b in ((was, now), (now, was)))


def _unlike(picture: Any, other: Any) -> float:
    """The share of pixels that are clearly darker or lighter than all of `other` near them."""
    darkest = lightest = np.pad(other, 2, mode="edge")
    for axis in (0, 1):  # of five columns first, and then of five rows of these
        darkest, lightest = (
            functools.reduce(least_or_most, np.moveaxis(sliding_window_view(x, 5, axis), -1, 0))
            for least_or_most, x in ((np.minimum, darkest), (np.maximum, lightest))
        )
    return float(((picture < darkest - 0.25) | (picture > lightest + 0.25)).mean())


def lightness(png: str) -> Any:
    """The pixels of a picture in base64, from 0 to 1."""
    from matplotlib.image import imread

    return imread(io.BytesIO(base64.b64decode(png)), format="png")[..., :3].mean(axis=2)


def _described(shown: list[tuple[str, str]]) -> str:
    parts = []
    for kind, content in shown:
        if kind == "image/png":
            height, width = lightness(content).shape
            content = f"a picture of {width} x {height} pixels"
        parts.append(f"[{kind}] {content.rstrip()}")
    return "\n".join(parts) or "nothing"


def main(names: Sequence[str]) -> None:
    """Run and store the notebooks that are named, or all walkthroughs."""
    try:
        paths = [chosen(name) for name in names] or walkthroughs()
    except ValueError as error:
        sys.exit(str(error))
    for path in progress_bar(paths, what="running", unit="notebook", shown=True):
        store(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tests.notebooks", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 7, 7_lora, or a path")
    main(parser.parse_args().names)
