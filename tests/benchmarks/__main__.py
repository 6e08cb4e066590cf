"""Compare minigrad and lora with their peers; print tables, and write JSON, Markdown, a picture."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tests.benchmarks import driver, report
from tests.benchmarks.driver import Measured
from tests.benchmarks.machine import conditions, cores
from tests.benchmarks.workload import Workload
from tests.benchmarks.workloads import WORKLOADS
from tests.hosts import HOSTS, PEERS

ROUNDS = 15
QUICK_ROUNDS, QUICK_SECONDS = 3, 0.02

Results = dict[int, dict[str, list[Measured]]]


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; returns 1 if a workload failed, else 0."""
    options = _options(arguments)
    names = options.names or list(WORKLOADS)
    facts = conditions()
    if options.target:
        facts["instructions of all contenders"] = options.target.upper()
        os.environ.update(HOSTS[options.target.upper()] | PEERS[options.target.upper()])
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for line in _left_out(names):
        print(line)
    results: Results = {}
    failures = 0
    for threads in options.threads:
        results[threads] = {}
        print(f"\n# {threads} thread{'s'[: threads > 1]}")
        for name in names:
            workload = WORKLOADS[name]
            try:
                measured = _measure(name, workload, threads, options)
            except driver.BenchmarkError as failure:
                failures += 1
                print(f"\nerror: {name}: {failure}", file=sys.stderr)
                continue
            results[threads][name] = measured
            print(f"\n## {name}: {workload.title}\n")
            print(report.table(workload, measured, threads), flush=True)
    if any(results.values()):
        summary = report.summary(WORKLOADS, results)
        print(f"\n# The peer's figure over ours\n\n{summary}")
        _write(options, facts, results, summary)
    return int(failures > 0)


def _options(arguments: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    add = parser.add_argument
    known = ", ".join(map(repr, WORKLOADS))
    add("names", nargs="*", help=f"the workloads: {known}; by default all")
    help_text = "the threads of each library; several numbers are measured in turn (default: 1)"
    add("--threads", default=[1], type=_counts, metavar="N[,N]", help=help_text)
    help_text = f"how often each library is measured at each size (default: {ROUNDS})"
    add("--rounds", type=_count, help=help_text)
    add("--quick", action="store_true", help=f"{QUICK_ROUNDS} short rounds, for rough figures")
    targets = [name.lower() for name in PEERS]
    add("--target", choices=targets, help="the newest instructions that the libraries may use")
    folder = Path("build/benchmarks")
    add("--out", type=Path, default=folder, help=f"the folder for the results (default: {folder})")
    for kind in ("json", "md", "png"):
        help_text = f"the file of the results as {kind.upper()}, instead of one in the folder"
        add(f"--{kind}", type=Path, metavar="FILE", help=help_text)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in WORKLOADS]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    if max(options.threads) > cores():
        parser.error(f"--threads {max(options.threads)}, but there are {cores()} cores to run on")
    return options


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1, not {text}")
    return count


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _left_out(names: list[str]) -> list[str]:
    """A line for each contender that is not installed."""
    missing = {
        who: contender.missing()
        for name in names
        for who, contender in WORKLOADS[name].contenders.items()
        if contender.missing()
    }
    return [f"without {who}: there is no {', '.join(lack)}" for who, lack in missing.items()]


def _measure(name: str, workload: Workload, threads: int, options: Any) -> list[Measured]:
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    rounds = min(rounds, workload.rounds or rounds)
    seconds = QUICK_SECONDS if options.quick else workload.seconds
    there = [who for who in workload.contenders.values() if not who.missing()]
    total = rounds * len(there) * len(workload.points)
    with tqdm(total=total, desc=name, unit="round", leave=False, file=sys.stderr) as bar:
        return driver.measure(name, workload, threads, rounds, seconds, tick=bar.update)


def _write(options: Any, facts: dict[str, str], results: Results, summary: str) -> None:
    """The three files: all figures, the summary, the picture."""
    paths = {
        kind: getattr(options, kind) or options.out / f"benchmarks.{kind}"
        for kind in ("json", "md", "png")
    }
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    paths["json"].write_text(json.dumps(_plain(facts, results), indent=1) + "\n")
    head = ", ".join(f"{name} {value}" for name, value in facts.items())
    paths["md"].write_text(f"{head}\n\n{summary}\n")
    try:
        from tests.benchmarks import picture
    except ImportError as error:
        print(f"no picture: {error}")
        del paths["png"]
    else:
        if not picture.draw(paths["png"], facts, WORKLOADS, results):
            print("no picture: there was no peer to compare with")
            del paths["png"]
    print(f"\nwritten: {', '.join(map(str, paths.values()))}")


def _plain(facts: dict[str, str], results: Results) -> dict[str, Any]:
    """The figures as JSON has them."""
    return {
        "conditions": facts,
        "results": [
            {
                "threads": threads,
                "workload": name,
                "title": WORKLOADS[name].title,
                "unit": WORKLOADS[name].unit,
                "points": [
                    m._asdict() | {"figures": {k: f._asdict() for k, f in m.figures.items()}}
                    for m in measured
                ],
            }
            for threads, by_name in results.items()
            for name, measured in by_name.items()
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
