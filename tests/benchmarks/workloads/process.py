"""Whole processes: how long they take to start, and how much memory they need.

The contender of such a workload starts a process each time and waits for its end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.workload import OURS, SAME_LOSS, Contender, Goal, Point, Run, Workload
from tests.benchmarks.workloads import capture, convolution, language, lora, minilm
from tests.benchmarks.workloads.lora import PEFT

ROOT = Path(__file__).parents[3]
SECOND = 1.0


class Steps(NamedTuple):
    """What the process does: so many training steps of a LoRA model.

    Attributes:
        theme: the module of `workloads` that has the model.
        case: which of its cases.
        steps: how many.
    """

    theme: str
    case: lora.Case | minilm.Case | language.Case | convolution.Case
    steps: int


SMALL = Steps("lora", lora.CASES[2], 1)
LARGE = Steps("lora", lora.CASES[-1], 5)
CAPTURED = Steps("capture", lora.CASES[-1], 5)  # the first two of them are recorded
CNN = Steps("convolution", convolution.CASES[-1], 5)
MINILM = Steps("minilm", minilm.CASES[0], 5)
LANGUAGE = [
    Steps("language", case, 2)
    for case in (*language.CASES, language.Case(language.ALL, 1, "bfloat16"))
]


def output(command: list[str], cwd: Path | None = None, **variables: str) -> str:
    """What a process prints; if it fails, its errors are in the exception.

    Raises:
        RuntimeError: if it fails.
    """
    process = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env=os.environ | variables,
        cwd=cwd,
    )
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{process.stderr}")
    return process.stdout


def _import(name: str) -> Callable[[None], Run]:
    def prepare(_: None) -> Run:
        def run() -> None:
            output(["-c", f"import {name}"])

        return run

    return prepare


def _steps(contender: str, work: Steps, cwd: Path | None = None, **variables: str) -> Any:
    """Do the steps in a process; returns what it says of them."""
    threads = os.environ["NUMBA_NUM_THREADS"]  # which the driver has set
    arguments = [work.theme, contender, json.dumps(work.case), str(work.steps), threads]
    return json.loads(output(["-m", "tests.benchmarks.step", *arguments], cwd, **variables))


def _start(contender: str) -> Callable[[Steps], Run]:
    return lambda work: lambda: _steps(contender, work)["loss"]


def _memory(contender: str) -> Callable[[Steps], Run]:
    return lambda work: lambda: _steps(contender, work)["bytes"]


def _first(work: Steps) -> Run:
    """On a copy of the sources: beside ours, and in the user's folders, kernels are kept."""

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            copy, home = Path(folder, "copy"), Path(folder, "home")
            home.mkdir()
            for part in ("minigrad", "lora", "tests/__init__.py", "tests/benchmarks"):
                _copy(ROOT / part, copy / part)
            places = ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "NUMBA_CACHE_DIR")
            result = _steps(OURS, work, cwd=copy, **dict.fromkeys(places, str(home)))
            check_compiled(home)
            return float(result["loss"])

    return run


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def check_compiled(folder: Path) -> None:
    """Refuse the time of a first start that has found its kernels elsewhere.

    Raises:
        RuntimeError: if no compiled kernel has been put into the folder.
    """
    if not any(folder.rglob("*.nbc")):
        raise RuntimeError(
            f"a first start kept no kernel in {folder}: it found them compiled, or keeps them "
            "elsewhere, so its time is not that of a first start"
        )


def _both(prepare: Callable[[str], Callable[[Steps], Run]]) -> dict[str, Contender]:
    return {OURS: Contender(prepare(OURS)), PEFT: Contender(prepare(PEFT), ("torch", "peft"))}


WORKLOADS = {
    "import": Workload(
        "a new process that imports the library",
        {
            OURS: Contender(_import("minigrad")),
            "torch": Contender(_import("torch"), ("torch",)),
        },
        seconds=SECOND,
        rounds=9,
    ),
    "start": Workload(
        f"from the start of a process to the end of its first LoRA step ({SMALL.case.label})",
        _both(_start),
        [Point("", SMALL)],
        [Goal(PEFT, 3.0)],
        tolerance=SAME_LOSS,
        seconds=SECOND,
        rounds=7,
    ),
    "first": Workload(
        f"the same with nothing compiled, as on a machine's first start ({SMALL.case.label})",
        {OURS: Contender(_first)},
        [Point("", SMALL)],
        rounds=3,
        limit=20.0,
    ),
    "first_cnn": Workload(
        f"a convolutional network's first step with nothing compiled ({CNN.case.label})",
        {OURS: Contender(_first)},
        [Point("", CNN._replace(steps=1))],
        rounds=3,
        limit=20.0,
    ),
    "memory_cnn": Workload(
        f"the most memory of a process in {CNN.steps} steps of a convolutional network "
        f"({CNN.case.label})",
        {who: Contender(_memory(who), peer.needs) for who, peer in convolution.CONTENDERS.items()},
        [Point("", CNN)],
        [Goal("torch", 1.0)],
        steps=0,
        rounds=3,
        unit="B",
    ),
    "memory_lora": Workload(
        f"the most memory of a process in {LARGE.steps} LoRA steps ({LARGE.case.label})",
        _both(_memory),
        [Point("", LARGE)],
        [Goal(PEFT, 2.0)],
        steps=0,
        rounds=3,
        unit="B",
    ),
    "memory_capture": Workload(
        f"the most memory of a process in {CAPTURED.steps} captured LoRA steps, and in eager ones "
        f"({CAPTURED.case.label})",
        {who: Contender(_memory(who)) for who in (OURS, capture.EAGER)},
        [Point("", CAPTURED)],
        [Goal(capture.EAGER, 0.99)],  # equal: one process differs from the next by 0.8 %
        steps=0,
        rounds=9,
        unit="B",
    ),
    "memory_minilm": Workload(
        f"the most memory of a process in {MINILM.steps} steps of MiniLM ({MINILM.case.label})",
        {
            OURS: Contender(_memory(OURS)),
            PEFT: Contender(_memory(PEFT), minilm.CONTENDERS[PEFT].needs),
        },
        [Point("", MINILM)],
        [Goal(PEFT, 1.0)],
        steps=0,
        rounds=3,
        unit="B",
    ),
    "memory_language": Workload(
        "the most memory of a process in 2 steps of a language model of 135 million parameters",
        {
            OURS: Contender(_memory(OURS)),
            PEFT: Contender(_memory(PEFT), language.CONTENDERS[PEFT].needs),
        },
        [Point(work.case.label, work) for work in LANGUAGE],
        [Goal(PEFT, dict(zip([w.case.label for w in LANGUAGE], [1.5] * 4 + [2.2], strict=True)))],
        steps=0,
        rounds=1,
        unit="B",
    ),
}
