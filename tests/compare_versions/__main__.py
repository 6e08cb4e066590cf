"""Compare an old version of the library with a new one: what they compute, and what they print.

    python -m tests.compare_versions OLD [NEW] [--only bits,signatures]

OLD and NEW are revisions of git; without NEW, the new version is the working tree. The script runs
`probe.py` on a copy of each version, in separate processes, and compares the results, row by row:

    bits        outputs and gradients of all cases and of large arrays, of training and of merging
    verdicts    the verdicts of gradcheck, liveness and verify; the FLOPs and bytes in receipts
    signatures  the signatures of all public names, and the help texts of commands
    files       files that the old version has written, read by both; and what killed saves leave
    speed       the times of some works and of the start, side by side; only with `--only speed`

The exit status is 0 if all rows are equal, and 1 if there is a difference that is not allowed.
These differences are allowed:

* in bits, verdicts and files, the rows that `explained.txt` beside this file names, in lines such
  as `row: reason`; a name that ends in `*` means all rows that begin with it;
* in bits and verdicts, rows that only the new version has, as for a new case;
* in signatures, the names that `.github/CHANGELOG.md` has in its table of old and new names, in
  lines such as "| `lora.files.x` | `lora.peft.x` |"; annotations; new names; and new optional
  arguments, if each old call means the same;
* in speed, a geometric mean of old over new seconds of at least 0.98, with no work below 0.95.

The compiled kernels of each version are stored in NUMBA_CACHE_DIR, or under `build`.
"""

from __future__ import annotations

import argparse
import difflib
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROBE = HERE / "probe.py"
EXPLAINED = HERE / "explained.txt"
CHANGELOG = Path(".github", "CHANGELOG.md")

MOST_ROWS = 20  # of faults, but for receipts; what is allowed is printed, too
MOST_FINDINGS = 3  # of one row
MOST_LETTERS = 200  # of one value
LEAST_MEAN, LEAST_RATIO = 0.98, 0.95  # of old over new seconds

Found = dict[str, dict[str, Any]]


class ProbeError(RuntimeError):
    """A probe that did not run to its end; what it has printed is above."""


# --------------------------------------------------------------------------------------------------
# The two versions
# --------------------------------------------------------------------------------------------------


def check_out(revision: str | None, folder: Path) -> Path:
    """Copy a revision, or the files of the working tree as they are now, to a new folder."""
    folder.mkdir()
    if revision is not None:
        with tarfile.open(fileobj=io.BytesIO(git("archive", revision))) as archive:
            archive.extractall(folder, filter="data")
        return folder
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").decode()
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():  # and not deleted since the last commit
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)
    if done.returncode:
        sys.exit(f"git {' '.join(arguments)}: {done.stderr.decode().strip()}")
    return done.stdout


def environment(tree: Path) -> dict[str, str]:
    """Return the variables of a process that is to find a version before any that is installed."""
    kernels = os.environ.get("NUMBA_CACHE_DIR") or str(ROOT / "build" / "compare_versions")
    return os.environ | {
        "PYTHONPATH": str(tree),
        "NUMBA_CACHE_DIR": kernels,
        "NUMBA_NUM_THREADS": str(max(2, os.cpu_count() or 1)),
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "COLUMNS": "100",  # for the help texts
    }


def probe(tree: Path, section: str, *arguments: str, core: int | None = None) -> Found:
    """Run a section of the probe on a version.

    Raises:
        ProbeError: if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "found.json")
        done = run([str(PROBE), section, str(out), *arguments], tree, core)
        if done or not out.exists():
            raise ProbeError(f"the {tree.name} version ended with the status {done}")
        found: Found = json.loads(out.read_text())
        return found


def run(arguments: list[str], tree: Path, core: int | None = None) -> int:
    """Run Python with a version, on one core if it is given; return the exit status."""
    stay = None if core is None else partial(os.sched_setaffinity, 0, {core})
    command = [sys.executable, "-P", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=environment(tree), preexec_fn=stay)
    return done.returncode


def probe_both(trees: tuple[Path, Path], section: str, *arguments: list[str]) -> list[Found]:
    """Run a section on both versions at once; `arguments` are those for each of the two."""
    given = arguments or ([], [])
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda tree, more: probe(tree, section, *more), trees, given))


# --------------------------------------------------------------------------------------------------
# Comparing
# --------------------------------------------------------------------------------------------------


@dataclass
class Difference:
    """A row that is not the same in both versions.

    Attributes:
        row: its name.
        kind: "differs", "only old" or "only new".
        what: for each finding that differs what the old and what the new version says.
        allowed: why it is not a fault; empty if it is one.
        alike: how many rows more are the same by inheritance.
    """

    row: str
    kind: str
    what: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    allowed: str = ""
    alike: int = 0

    def __str__(self) -> str:
        lines = [f"{name}: {_change(*pair)}" for name, pair in self.what.items()]
        more = len(lines) - MOST_FINDINGS
        lines = lines[:MOST_FINDINGS] + [f"and {more} more"] * (more > 0)
        text = f"{self.kind}: {self.row}"
        text += f", and {self.alike} more of this name" * (self.alike > 0)
        text += f" ({self.allowed})" * (self.allowed != "")
        return "\n      ".join([f"  {text}", *lines])


def _change(old: Any, new: Any) -> str:
    """Return one line that tells two values; of long texts the lines that differ."""
    if isinstance(old, str) and isinstance(new, str) and "\n" in old + new:
        lines = difflib.ndiff(old.splitlines(), new.splitlines())
        changed = [line for line in lines if line[0] in "+-"]
        return "\n        ".join(["", *changed[:10], *["..."] * (len(changed) > 10)])
    return " -> ".join(
        text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}..."
        for text in map(str, (old, new))
    )


def compare(old: Found, new: Found) -> list[Difference]:
    """Return the rows that differ, in the order of the old version."""
    found = []
    for row in dict.fromkeys([*old, *new]):
        if row not in new or row not in old:
            found.append(Difference(row, "only new" if row in new else "only old"))
            continue
        names = [*(name for name in new[row] if name not in old[row]), *old[row]]
        pairs = {name: (old[row].get(name), new[row].get(name)) for name in names}
        if what := {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}:
            found.append(Difference(row, "differs", what))
    return found


def verdict(section: str, old: Found, new: Found, differences: list[Difference]) -> bool:
    """Print what came of a section; return whether all of it is allowed."""
    faults = [d for d in differences if not d.allowed]
    common = old.keys() & new.keys()
    findings = sum(len(old[row].keys() | new[row].keys()) for row in common)
    text = f"{section}: {len(common):,} rows with {findings:,} findings compared, "
    text += f"{len(differences)} differ"
    if differences:
        text += f", {len(differences) - len(faults)} of them as allowed"
    print(f"{text}: {'FAILS' if faults else 'passes'}")
    for row in old:
        if row in common and any(name.startswith("raises") for name in old[row]):
            print(f"  of little worth, as the old version raises an error: {row}")
    shown = [d for i, d in enumerate(faults) if i < MOST_ROWS or d.row.startswith("receipt ")]
    for difference in [d for d in differences if d.allowed] + shown:
        print(difference)
    if len(shown) < len(faults):
        print(f"  and {len(faults) - len(shown)} more")
    return not faults


# --------------------------------------------------------------------------------------------------
# What is allowed
# --------------------------------------------------------------------------------------------------


def explain(differences: Iterable[Difference]) -> None:
    """Allow what the lines of `explained.txt` explain, if there is such a file."""
    text = EXPLAINED.read_text() if EXPLAINED.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]
    for difference in differences:
        for line in lines:
            if line.startswith(f"{difference.row}: "):
                difference.allowed = line.removeprefix(f"{difference.row}: ")
            start, star, reason = line.partition("*: ")
            if star and difference.row.startswith(start):
                difference.allowed = reason


def renamed(text: str) -> tuple[set[str], set[str]]:
    """Return the old and the new names in the tables of a change log."""
    old: set[str] = set()
    new: set[str] = set()
    for line in text.splitlines():
        cells = line.strip().strip("|").split("|")
        if line.lstrip().startswith("|") and len(cells) >= 2:
            for cell, names in zip(cells, (old, new), strict=False):
                names |= {name.partition("(")[0] for name in re.findall(r"`([^`]+)`", cell)}
    return old, new


def allow_renamed(differences: Iterable[Difference], text: str) -> None:
    """Allow what a change log tells: an old name that is gone, a new one, one that is both."""
    names = dict(zip(("only old", "only new"), renamed(text), strict=True))
    names["differs"] = names["only old"] | names["only new"]
    for difference in differences:
        if any(is_meant(difference.row, name) for name in names[difference.kind]):
            difference.allowed = "in CHANGELOG's table"
        elif difference.kind == "only new":
            difference.allowed = "new"
        elif set(difference.what) == {"annotations"}:
            difference.allowed = "in annotations only"
        elif difference.what.keys() - {"annotations"} == {"is called"} and is_extended(
            *difference.what["is called"]
        ):
            difference.allowed = "further optional arguments"


def is_extended(old: str, new: str) -> bool:
    """Return whether a signature differs from the old one by further optional arguments only."""
    (first, named), (new_first, new_named) = map(_parameters, (old, new))
    added = [*new_first[len(first) :], *(new_named - named - {"*"})]
    same = len(first) <= len(new_first) and all(
        now == before or now.startswith(f"{before}=")
        for before, now in zip(first, new_first, strict=False)
    )
    return same and named - {"*"} <= new_named and all("=" in each for each in added)


def _parameters(signature: str) -> tuple[list[str], set[str]]:
    """Return the parameters before the first star, in their order, and the others."""
    each = re.split(r", (?![^([]*[)\]])", signature[1:-1])
    star = next((i for i, text in enumerate(each) if text.startswith("*")), len(each))
    return each[:star], {*each[star:]}


def joined(differences: Iterable[Difference]) -> list[Difference]:
    """Make one difference of those that a method has in all classes that inherit it."""
    found: dict[tuple[str, ...], Difference] = {}
    for each in differences:
        key = each.kind, each.row.rpartition(".")[2], str(each.what), each.allowed
        first = found.setdefault(key, each)
        first.alike += first is not each
    return list(found.values())


def is_meant(row: str, name: str) -> bool:
    """Return whether a name in the table is that of a row, the end of it, or what it is in."""
    return row == name or row.endswith(f".{name}") or ("." in name and row.startswith(f"{name}."))


# --------------------------------------------------------------------------------------------------
# Sections
# --------------------------------------------------------------------------------------------------


def compare_rows(section: str, trees: tuple[Path, Path]) -> bool:
    """Compare the bits, or the verdicts."""
    old, new = probe_both(trees, section)
    differences = compare(old, new)
    for difference in differences:
        if difference.kind == "only new":
            difference.allowed = "there is no old one to compare with"
    explain(differences)
    return verdict(section, old, new, differences)


def compare_signatures(trees: tuple[Path, Path]) -> bool:
    old, new = probe_both(trees, "signatures")
    differences = compare(old, new)
    table = trees[1] / CHANGELOG
    allow_renamed(differences, table.read_text() if table.exists() else "")
    return verdict("signatures", old, new, joined(differences))


def compare_files(trees: tuple[Path, Path]) -> bool:
    """Let the old version write, and both read. What it says it has written is to be read, too."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "written")
        written.mkdir()
        said = probe(trees[0], "write files", str(written))
        copies = [shutil.copytree(written, Path(folder, tree.name)) for tree in trees]
        old, new = probe_both(trees, "read files", *([str(copy)] for copy in copies))
    for row in old.keys() & said.keys():
        old[row] |= said[row]
    differences = compare(old, new)
    explain(differences)
    return verdict("files", old, new, differences)


def compare_speed(trees: tuple[Path, Path], rounds: int) -> bool:
    """Let the versions take turns, in new processes on one core; a first round does not count."""
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    seconds: dict[str, tuple[list[float], list[float]]] = {}
    for turn in range(rounds + 1):
        for which in (0, 1) if turn % 2 else (1, 0):
            started = time.perf_counter()
            run(["-c", "import minigrad, lora"], trees[which], core)
            found = {"start": {"seconds": time.perf_counter() - started}}
            found |= probe(trees[which], "speed", core=core)
            for work, each in found.items() if turn else ():
                seconds.setdefault(work, ([], []))[which].append(each["seconds"])
    ratios = {}
    print(f"{'speed':22}{'old':>12}{'new':>12}{'old / new':>12}   quartiles of {rounds} rounds")
    for work, (old, new) in seconds.items():
        low, ratios[work], high = statistics.quantiles(
            [a / b for a, b in zip(old, new, strict=True)], n=4, method="inclusive"
        )
        times = "".join(f"{statistics.median(each) * 1e6:9,.0f} us" for each in (old, new))
        print(f"{work:22}{times}{ratios[work]:12.3f}   {low:.3f} to {high:.3f}")
    mean = statistics.geometric_mean(ratios.values())
    slow = [work for work, ratio in ratios.items() if ratio < LEAST_RATIO]
    passes = mean >= LEAST_MEAN and not slow
    print(
        f"speed: {len(ratios)} works compared, geometric mean {mean:.3f}, "
        f"{len(slow)} below {LEAST_RATIO}: {'passes' if passes else 'FAILS'}"
    )
    return passes


SECTIONS: dict[str, Callable[[tuple[Path, Path]], bool]] = {
    "bits": partial(compare_rows, "bits"),
    "verdicts": partial(compare_rows, "verdicts"),
    "signatures": compare_signatures,
    "files": compare_files,
}


def main(arguments: list[str] | None = None) -> int:
    """Compare, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.compare_versions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("old", metavar="OLD", help="a revision of git")
    add("new", metavar="NEW", nargs="?", help="another one (the working tree)")
    add("--only", metavar="SECTIONS", help="some of them, with commas (all but speed)")
    add("--rounds", type=int, default=15, help="of speed, at least 2 (15)")
    options = parser.parse_args(arguments)
    sections = options.only.split(",") if options.only else list(SECTIONS)
    if unknown := [name for name in sections if name not in (*SECTIONS, "speed")]:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join((*SECTIONS, 'speed'))}")
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    passes = True
    with tempfile.TemporaryDirectory() as folder:
        trees = (
            check_out(options.old, Path(folder, "old")),
            check_out(options.new, Path(folder, "new")),
        )
        for section in sections:
            started = time.perf_counter()
            try:
                if section == "speed":
                    passes &= compare_speed(trees, options.rounds)
                else:
                    passes &= SECTIONS[section](trees)
            except ProbeError as error:
                print(f"{section}: could not be compared, {error}: FAILS")
                passes = False
            print(f"  {time.perf_counter() - started:.0f} s", flush=True)
    return 0 if passes else 1


if __name__ == "__main__":
    sys.exit(main())
