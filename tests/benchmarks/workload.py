"""What a benchmark is made of: work, the points it is measured at, who does it, what is wanted."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

OURS = "minigrad"
BEST = "best"  # in a goal: whichever peer is the fastest at a point

# How far apart the results of contenders may be. What rounding does to a sum of magnitudes is up to
# 4e-8 here, and 4e-7 to a loss after some steps; gelu by tanh instead of erf makes 7e-7 and 2e-5.
SAME = 3e-7
SAME_LOSS = 5e-6

Run = Callable[[], Any]
"""The work once over. What it returns is compared between contenders (see `checksum`)."""


class Point(NamedTuple):
    """One size, layout or kind of a work.

    Attributes:
        label: what it is called; unique in its workload.
        case: the facts about it that the contenders get.
        flops: floating-point operations in it, 0 where they are not counted.
        bytes: memory it must touch at least once, 0 where that is not counted.
    """

    label: str
    case: Any = None
    flops: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Contender:
    """A library that does the work.

    Attributes:
        prepare: given the case of a point, imports what it needs and returns what is to be timed.
        needs: the modules without which it is left out.
        compiles: whether it compiles C++ for Python, and is left out where that cannot be.
    """

    prepare: Callable[[Any], Run]
    needs: tuple[str, ...] = ()
    compiles: bool = False

    def missing(self) -> list[str]:
        """What it needs and is not installed."""
        modules = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return modules + (missing_to_compile() if self.compiles else [])


def missing_to_compile() -> list[str]:
    """What `torch.compile` needs beside Python, and is not installed."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    header = Path(sysconfig.get_path("include"), "Python.h")
    missing = [] if shutil.which(compiler) else [f"C++ compiler ({compiler})"]
    return missing + ([] if header.exists() else ["Python.h"])


@dataclass(frozen=True)
class Goal:
    """How many times ours a peer's figure should be, at least.

    Attributes:
        peer: a contender, or `BEST`.
        each: the least ratio at each point, or at those that are named.
        mean: the least geometric mean of the ratios.
        threads: with how many threads this is wanted; None for any number.
    """

    peer: str
    each: float | Mapping[str, float] | None = None
    mean: float | None = None
    threads: int | None = None

    def at(self, label: str) -> float | None:
        """The least ratio at a point, if there is one."""
        return self.each.get(label) if isinstance(self.each, Mapping) else self.each


@dataclass(frozen=True)
class Workload:
    """Work that several libraries can do.

    Attributes:
        title: what the work is.
        contenders: who does it, by name; `OURS` among them.
        points: what it is measured at, in this order.
        goals: what is wanted.
        steps: the result of this many calls is compared between contenders; 0 compares nothing.
        tolerance: the greatest relative difference of these results.
        seconds: the length of a round.
        rounds: the most rounds that make sense, where a call takes seconds.
        unit: "s" for time, or "B" where a call returns bytes, which are then what is compared.
        limit: the most that ours may take at any point, in this unit.
    """

    title: str
    contenders: Mapping[str, Contender]
    points: Sequence[Point] = (Point(""),)
    goals: Sequence[Goal] = field(default=())
    steps: int = 1
    tolerance: float = SAME
    seconds: float = 0.2
    rounds: int | None = None
    unit: str = "s"
    limit: float | None = None

    @property
    def peers(self) -> list[str]:
        """The contenders that are not ours."""
        return [name for name in self.contenders if name != OURS]


def checksum(result: Any) -> float | None:
    """A result as one number: the sum of its magnitudes; None stands for what is not compared."""
    if result is None:
        return None
    return float(np.abs(np.asarray(result, np.float64)).sum())
