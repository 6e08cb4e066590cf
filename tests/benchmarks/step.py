"""A process that does some LoRA training steps and ends: `python -m tests.benchmarks.step ...`.

Prints, as JSON, the loss of the last step and the most memory that the process has had.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module

from tests.benchmarks.contender import set_threads
from tests.benchmarks.machine import most_memory


def main(theme: str, contender: str, case: list[int], steps: int, threads: int) -> None:
    """Do the steps that a module of `workloads` has the contenders and the cases of."""
    module = import_module(f"tests.benchmarks.workloads.{theme}")
    who = module.CONTENDERS[contender]
    set_threads(contender, who, threads)
    run = who.prepare(module.Case(*case))
    for _ in range(steps):
        loss = run()
    print(json.dumps({"loss": loss, "bytes": most_memory()}))


if __name__ == "__main__":
    _, theme, contender, case, steps, threads = sys.argv
    main(theme, contender, json.loads(case), int(steps), int(threads))
