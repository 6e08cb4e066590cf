"""A process that does some LoRA training steps and ends: `python -m tests.benchmarks.step ...`.

Prints, as JSON, the loss of the last step and the most memory that the process has had.
"""

from __future__ import annotations

import json
import sys

from tests.benchmarks.contender import set_threads
from tests.benchmarks.machine import most_memory
from tests.benchmarks.workloads.lora import CONTENDERS, Case


def main(contender: str, case: Case, steps: int, threads: int) -> None:
    who = CONTENDERS[contender]
    set_threads(contender, who, threads)
    run = who.prepare(case)
    for _ in range(steps):
        loss = run()
    print(json.dumps({"loss": loss, "bytes": most_memory()}))


if __name__ == "__main__":
    _, name, case_text, steps_text, threads_text = sys.argv
    main(name, Case(*json.loads(case_text)), int(steps_text), int(threads_text))
