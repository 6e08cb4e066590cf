"""On what a benchmark is run: the processor, the versions, the date, the memory of a process."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version

PACKAGES = "numpy", "numba", "torch", "peft", "transformers", "bitsandbytes", "jax", "autograd"


def conditions() -> dict[str, str]:
    """What a reader needs to know of the machine, by name."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "Python": sys.version.split()[0],
        **{package: _version(package) for package in PACKAGES},
    }


def cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


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
