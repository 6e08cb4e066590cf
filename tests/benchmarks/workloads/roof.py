"""The roof under which all products lie; the picture draws it. See `tests.benchmarks.peak`."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.workload import OURS, Contender, Point, Run, Workload

ADDS = 200_000_000
READ = 1 << 28  # bytes in a call
SIZES = {"16 KiB": 1 << 14, "256 KiB": 1 << 18, "4 MiB": 1 << 22, "256 MiB": 1 << 28}


def _roof(case: tuple[str, Any]) -> Run:
    from tests.benchmarks import peak

    kind, value = case
    run = peak.multiply_adds(value, ADDS) if kind == "multiply-adds" else peak.reads(value, READ)

    def without_a_result() -> None:
        run()

    return without_a_result


WORKLOADS = {
    "roof": Workload(
        "multiply-adds on registers, and reading: what the machine can do",
        {OURS: Contender(_roof)},
        [
            *(
                Point(f"multiply-adds {dtype}", ("multiply-adds", dtype), flops=2.0 * ADDS)
                for dtype in ("float32", "float64")
            ),
            *(
                Point(f"reads {label} again and again", ("reads", size), bytes=float(READ))
                for label, size in SIZES.items()
            ),
        ],
        steps=0,
    ),
}
