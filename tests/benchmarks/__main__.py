"""`python -m tests.benchmarks [names] [--threads N] [--rounds N] [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from tests.benchmarks import driver, memory
from tests.benchmarks.workloads import WORKLOADS

MEMORY = "memory"
NAMES = (*WORKLOADS, MEMORY)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", metavar="FILE", help="write the results there as well")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(NAMES)}")
    print(_conditions(options.threads))
    results = {}
    for name in options.names or NAMES:
        if name == MEMORY:
            print(f"\n{name}: of the graph of a chain of additions of 4x4\n{memory.report()}")
            continue
        workload = WORKLOADS[name]
        results[name] = driver.compare(name, workload, options.threads, options.rounds)
        print(f"\n{name}: {workload.title}")
        print(driver.table(results[name], workload))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(
                {"conditions": _conditions(options.threads), "results": results}, file, indent=1
            )


def _conditions(threads: int) -> str:
    """On what this was measured: the processor, the versions, the threads."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            cpu = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    versions = []
    for package in ("numpy", "numba", "torch", "autograd"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"no {package}")
    python = f"Python {sys.version.split()[0]}"
    return f"{cpu}; {python}, {', '.join(versions)}; {threads} thread{'s' if threads > 1 else ''}"


if __name__ == "__main__":
    main()
