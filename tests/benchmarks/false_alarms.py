"""Count right functions that the gradient checker calls wrong; it must be none.

    python -m tests.benchmarks.false_alarms [--count 500] [--of torch jax numpy]

Functions of PyTorch and JAX need the `peers` extra.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import minigrad
from minigrad.diagnostics import GradcheckReport
from minigrad.progress import progress_bar
from tests.minigrad.diagnostics.right_functions import Case, jax_cases, pair_cases, torch_cases

CASES: dict[str, Callable[[int], Iterator[Case]]] = {
    "torch": torch_cases,
    "jax": jax_cases,
    "numpy": pair_cases,
}


def check(case: Case) -> GradcheckReport:
    """The report of a case, which has one function or a pair."""
    options: dict[str, Any] = {"progress": False}
    if len(case.functions) == 2:
        return minigrad.check_vjp(*case.functions, case.inputs, **options)
    return minigrad.gradcheck(*case.functions, case.inputs, **options)


def verdicts(cases: Iterator[Case], count: int, what: str = "") -> tuple[Counter[str], list[str]]:
    """How often each verdict was given, and the reports that say "disagree"."""
    found: Counter[str] = Counter()
    wrong = []
    with progress_bar(
        what=f"right functions, {what}", unit="check", shown=bool(what), total=count
    ) as bar:
        for case in cases:
            report = check(case)
            found[report.verdict] += 1
            if report.verdict == "disagree":
                wrong.append(f"{case.name} {case.inputs}\n{report!r}")
            bar.update()
    return found, wrong


def main() -> None:
    """Check all cases, print the counts, and exit with 1 if there is a false alarm."""
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.false_alarms", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--count", type=int, default=500, help="the number of functions of each library (500)")
    add("--of", nargs="*", choices=CASES, default=list(CASES), help="the libraries; by default all")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    alarms = 0
    for of in options.of:
        start = time.perf_counter()
        if of == "jax":  # half of the cases are of float64
            import jax

            jax.config.update("jax_enable_x64", True)
        found, wrong = verdicts(CASES[of](options.count), options.count, of)
        alarms += len(wrong)
        seconds = time.perf_counter() - start
        counts = ", ".join(f"{found[v]} {v}" for v in ("agree", "cannot tell", "disagree"))
        print(f"{of}: {options.count} right functions, {counts} ({seconds:.0f} s)", flush=True)
        print(*wrong, sep="\n", end="\n" * bool(wrong))
    sys.exit(alarms > 0)


if __name__ == "__main__":
    main()
