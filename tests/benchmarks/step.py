"""A process that does some LoRA training steps and ends: `python -m tests.benchmarks.step ...`.

Prints, as JSON, the loss of the last step and the most memory that the process has had.
"""

from __future__ import annotations

import json
import resource
import sys

from tests.benchmarks.contender import set_threads
from tests.benchmarks.workloads.lora import CONTENDERS, Case


def main(contender: str, case: Case, steps: int, threads: int) -> None:
    who = CONTENDERS[contender]
    set_threads(contender, who, threads)
    run = who.prepare(case)
    for _ in range(steps):
        loss = run()
    print(json.dumps({"loss": loss, "bytes": most_memory()}))


def most_memory() -> int:
    """The most memory this process has had, in bytes.

    The kernel's high-water mark of this very program is asked first: `ru_maxrss` goes on counting
    from what the parent had when it forked.
    """
    try:
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    _, name, case_text, steps_text, threads_text = sys.argv
    main(name, Case(*json.loads(case_text)), int(steps_text), int(threads_text))
