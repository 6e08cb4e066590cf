"""One contender in its own process: does what the driver asks for on stdin, see `driver`.

Asked for a point it prepares the work, and answers with the first call's time and the result after
some calls; asked for a round it answers with the median of the calls in it.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from importlib import import_module
from typing import Any

from tests.benchmarks.workload import OURS, Contender, Run, Workload, checksum

REST = 0.15  # seconds in which spinning threads of others go to sleep: OpenBLAS needs 0.1
SETTLE = 0.1  # seconds until each thread has a core: Linux may wake two threads on one core


def main(module: str, name: str, contender: str, threads: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not pass for an answer
    workload: Workload = import_module(module).WORKLOADS[name]
    who = workload.contenders[contender]
    set_threads(contender, who, threads)
    run: Run | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any
        if "point" in request:
            run = None  # so that its memory is free
            run = who.prepare(workload.points[request["point"]].case)
            answer = first_calls(run, workload)
        elif run is not None:
            answer = round_of(run, request["round"], workload.unit, threads)
        print(json.dumps(answer), file=answers, flush=True)


def set_threads(contender: str, who: Contender, threads: int) -> None:
    """Tell the libraries; the variables that the driver sets tell the rest."""
    if contender == OURS:
        import minigrad

        minigrad.set_num_threads(threads)
    if "torch" in who.needs:
        import torch

        torch.set_num_threads(threads)


def first_calls(run: Run, workload: Workload) -> dict[str, float | None]:
    """The figure of the first call, which may compile, and the result of the last to compare."""
    started = time.perf_counter()
    result = run()
    first = time.perf_counter() - started
    for _ in range(workload.steps - 1):
        result = run()
    return {
        "first": first if workload.unit == "s" else float(result),
        "result": checksum(result) if workload.steps else None,
    }


def round_of(run: Run, seconds: float, unit: str, threads: int) -> float:
    """The median of the calls that there is time for, at least one.

    Short work is done before: once on one thread, because the caches have since held what is
    another process's, and for some time on several.
    """
    figures: list[float] = []
    if threads > 1:
        time.sleep(REST)
    settle = SETTLE if threads > 1 else seconds / 4
    started = time.perf_counter()
    if unit == "s":
        result = run()
        figures.append(time.perf_counter() - started)
        if figures[0] < settle:
            figures.clear()
            while threads > 1 and time.perf_counter() < started + settle:
                run()
            started = time.perf_counter()
    end = started + seconds
    while not figures or time.perf_counter() < end:
        started = time.perf_counter()
        result = run()
        figures.append(time.perf_counter() - started if unit == "s" else float(result))
    return statistics.median(figures)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
