"""Compares contenders fairly: each in a process of its own, in rounds that alternate.

Two thread pools that spin in one process slow each other down many times over, so each contender
runs in a process of its own, with equal threads, on as many cores. One process serves all points
of a workload, one after the other. At each point every contender prepares, and does the first
calls; their results must agree, for to be faster at something else is worth nothing. Then rounds go
around between the contenders, so that a machine that slows down slows all of them. A figure is the
median of the rounds, and a round's is the median of its calls.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.benchmarks.workload import OURS, Workload

MODULE = "tests.benchmarks.workloads"  # has the WORKLOADS that a contender's process looks in

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


class BenchmarkError(RuntimeError):
    """A workload whose figures would mean nothing: a process died, or results do not agree."""


class Figure(NamedTuple):
    """What one contender has shown at one point, in seconds or bytes."""

    median: float
    low: float  # quartiles of the rounds
    high: float
    first: float


class Measured(NamedTuple):
    """The figures of all contenders at one point."""

    label: str
    flops: float
    bytes: float
    figures: dict[str, Figure]

    def ratio(self, peer: str) -> float:
        """The peer's figure over ours."""
        return self.figures[peer].median / self.figures[OURS].median


def measure(
    name: str,
    workload: Workload,
    threads: int,
    rounds: int,
    seconds: float,
    *,
    tick: Callable[[], Any] = lambda: None,
    module: str = MODULE,
) -> list[Measured]:
    """The figures of a workload at each of its points.

    Args:
        name: the workload's, under which the processes look it up.
        workload: what is measured.
        threads: for each contender.
        rounds: for each contender at each point.
        seconds: the length of a round.
        tick: called after each round of each contender.
        module: where the processes look.

    Raises:
        BenchmarkError: if a process dies, or results do not agree.
    """
    processes: dict[str, subprocess.Popen[str]] = {}
    try:
        for contender, who in workload.contenders.items():
            if not who.missing():
                processes[contender] = _start(module, name, contender, threads)
        return [
            _point(workload, index, processes, rounds, seconds, tick)
            for index in range(len(workload.points))
        ]
    finally:
        for process in processes.values():
            process.terminate()
            process.communicate()


def _point(
    workload: Workload,
    index: int,
    processes: Mapping[str, subprocess.Popen[str]],
    rounds: int,
    seconds: float,
    tick: Callable[[], Any],
) -> Measured:
    label, _, flops, size = workload.points[index]
    firsts = {who: _ask(process, who, point=index) for who, process in processes.items()}
    check_agreement(
        label, {who: first["result"] for who, first in firsts.items()}, workload.tolerance
    )
    rounds_of: dict[str, list[float]] = {who: [] for who in processes}
    for _ in range(rounds):
        for who, process in processes.items():
            rounds_of[who].append(_ask(process, who, round=seconds))
            tick()
    figures = {who: _figure(values, firsts[who]["first"]) for who, values in rounds_of.items()}
    return Measured(label, flops, size, figures)


def check_agreement(label: str, results: Mapping[str, float | None], tolerance: float) -> None:
    """Refuse results that are not finite, or differ from ours by more than `tolerance` of them.

    Raises:
        BenchmarkError: with all results. Those that are None are not compared.
    """
    compared = {who: result for who, result in results.items() if result is not None}
    reference = compared.get(OURS, 0.0)
    for result in compared.values():
        if not math.isfinite(result) or abs(result - reference) > tolerance * abs(reference):
            listed = ", ".join(f"{who} {value:.9g}" for who, value in compared.items())
            raise BenchmarkError(
                f"{label or 'the contenders'}: results differ by more than {tolerance:g}: {listed}"
            )


def _figure(values: list[float], first: float) -> Figure:
    low, high = values[0], values[0]
    if len(values) > 1:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Figure(statistics.median(values), low, high, first)


def _start(module: str, name: str, contender: str, threads: int) -> subprocess.Popen[str]:
    arguments = [module, name, contender, str(threads)]
    with on_cores(threads):
        return subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.contender", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(threads),
        )


def environment(threads: int) -> dict[str, str]:
    """The variables of a contender's process: they give every library the same threads."""
    variables = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(threads))
    variables["JAX_PLATFORMS"] = "cpu"
    variables["CI"] = "true"  # or a second process of ours would compile beside what is measured
    if threads == 1:
        # More threads it takes from the cores that it may run on.
        alone = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        variables["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {alone}".strip()
    return variables


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """A process that is started here runs on the last `count` of our cores, from its birth."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[-count:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _ask(process: subprocess.Popen[str], who: str, **request: float) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        raise BenchmarkError(f"the process of {who} has stopped; its error is above")
    return json.loads(answer)
