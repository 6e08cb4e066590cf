"""One contender in its own process: answers each line on stdin with a time. See `driver`."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks.workloads import WORKLOADS

ROUND_SECONDS = 0.2


def main(name: str, contender: str, threads: int) -> None:
    workload = WORKLOADS[name]
    set_threads(contender, threads)
    run = workload.contenders[contender]()
    sys.stdin.readline()
    started = time.perf_counter()
    run()
    _answer(time.perf_counter() - started)
    for _ in range(workload.warm_up):
        run()
    for _ in sys.stdin:
        _answer(round_of(run))


def round_of(run: Callable[[], Any]) -> float:
    """The median time of a call, over as many calls as a round has time for, but at least one."""
    times: list[float] = []
    end = time.perf_counter() + ROUND_SECONDS
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def set_threads(contender: str, threads: int) -> None:
    if contender.startswith("minigrad"):
        import minigrad

        minigrad.set_num_threads(threads)
    elif contender == "torch":
        import torch

        torch.set_num_threads(threads)


def _answer(seconds: float) -> None:
    print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
