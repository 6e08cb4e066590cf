"""Compares contenders fairly: each in a process of its own, in rounds that alternate.

Two thread pools that spin in one process slow each other down many times over, so each contender
runs in a process of its own, with equal threads, and on one core for one thread. It waits
for a line, runs one round, and answers with the median time of a call in that round. The rounds go
around between the contenders, so that a machine that slows down slows all of them; the result is
the median of the rounds. The first call, which may compile, is timed on its own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from typing import Any

from tests.benchmarks.workloads import Workload

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)

Result = dict[str, Any]


def compare(name: str, workload: Workload, threads: int, rounds: int) -> dict[str, Result]:
    """The times of each contender of a workload: median, quartiles and first call, in seconds."""
    processes = {
        contender: _start(name, contender, threads)
        for contender in workload.contenders
        if workload.available(contender)
    }
    try:
        firsts = {contender: _ask(process) for contender, process in processes.items()}
        times: dict[str, list[float]] = {contender: [] for contender in processes}
        for _ in range(rounds):
            for contender, process in processes.items():
                times[contender].append(_ask(process))
    finally:
        for process in processes.values():
            process.terminate()
            process.wait()
    return {
        contender: {
            "median": statistics.median(values),
            "quartiles": statistics.quantiles(values, n=4)[::2],
            "first_call": firsts[contender],
        }
        for contender, values in times.items()
    }


def table(results: dict[str, Result], workload: Workload) -> str:
    """The results as text: the time of each, and the peers' time over ours."""
    ours = results[workload.ours]["median"]
    rows = [("", "median", "quartiles", "first call", "over ours", "wanted")]
    for contender, result in results.items():
        low, high = result["quartiles"]
        rows.append(
            (
                contender,
                _seconds(result["median"]),
                f"{_seconds(low)} - {_seconds(high)}",
                _seconds(result["first_call"]),
                "" if contender == workload.ours else f"{result['median'] / ours:.2f}",
                f">= {workload.wanted[contender]}" if contender in workload.wanted else "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _start(name: str, contender: str, threads: int) -> subprocess.Popen[str]:
    environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(threads))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.contender", name, contender, str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    if threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
    return process


def _ask(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("run\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError("a contender has stopped; its error is above")
    return float(json.loads(answer))


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"
