"""The first run on a machine: what the user sees while kernels are compiled, and a second process.

A process logs one line before its first compilation. In a terminal or a notebook, a progress bar
follows. It is shown only during a compilation, so that it does not disturb the output of the
program. Its total is the number of kernels that are not compiled yet, because it is not known which
of them the program will use. It counts those that any process has compiled since.

numba compiles one function at a time. If a core is idle, a second process compiles kernels that a
training step usually needs, at the same time (`compile_for_training`).
"""

from __future__ import annotations

import atexit
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from minigrad.kernels import cache, start, threads
from minigrad.kernels.warmup import kernels_of
from minigrad.progress import progress_bar

TRAINING = (
    "adam_loop", "gelu_gradient_loop", "gelu_loop", "_squared_error_loop",
    "scaled_difference_loop", "dots", "_gradients_loop", "_norm_loop", "backward_loop",
    "forward_loop", "_cross_entropy_loop", "_cross_entropy_gradient_loop", "_label_weights_loop",
    "relu_gradient_loop", "relu_loop", "_backward_loop", "_forward_loop", "gemm",
    "_write_addresses",
)  # fmt: skip
"""The kernels of usual training steps. It begins with those that the first process needs last."""

BEFORE = {
    "minigrad.kernels.convolution": (
        "gemm", "sums_of_taps", "_row_sums_loop", "_input_gradient_loop", "_spread_loop",
        "adam_loop", "relu_gradient_loop", "_cross_entropy_gradient_loop", "_label_weights_loop",
        "_cross_entropy_loop", "_largest_loop", "relu_loop", "_scaled_loop", "_moments_loop",
    ),
    "minigrad.kernels.gemm.skinny": ("stream",),
}  # fmt: skip
"""The kernels that are compiled before, by the module of the first one that a program has called.

A convolutional network needs `gemm` first, but it takes longest. A network with LoRA adapters
begins with a thin product.
"""

NOBODY_WAITS = (
    "CI", "TF_BUILD", "JENKINS_URL", "BUILD_ID", "TEAMCITY_VERSION", "PYTEST_VERSION",
)  # fmt: skip
"""Environment variables of runs in which no user waits."""

PROGRAM = """
import os, sys, threading

if os.fork():
    os._exit(0)  # so that what goes on is no child of the first process
print(os.getpid(), flush=True)

def end_with_the_first():
    os.read(0, 1)  # returns when the first process has closed its end of the pipe
    os._exit(0)

threading.Thread(target=end_with_the_first, daemon=True).start()
sys.path[:0] = [{root!r}]
from minigrad.kernels import first_run
first_run.compile_for_training({folders!r}, {module!r})
"""  # the thread starts before the import, which takes a second

BAR = "{desc}: {n_fmt} of at most {total_fmt} kernels |{bar:20}| {elapsed}{postfix}"


class Announcement:
    """The log line and the progress bar that announce the compilations of this process."""

    def __init__(self, double: bool) -> None:
        self._start = time.time()
        self._kernels = kernels_of(double)
        self._missing = self._count_missing()
        self._bar: Any = None
        folder = cache.writable_folder()
        if folder is None:
            how = f"anew in each process, for they cannot be kept: {cache.why_nowhere()}"
        else:
            how = (
                "for this machine, once: as many as this program uses of the "
                f"{self._missing} that are not compiled yet (python -m minigrad warmup"
                f"{' --all' if double else ''} compiles all of them ahead); they are kept in "
                f"{folder}"
            )
        cache.say_once(f"compiling kernels {how}")

    def _count_missing(self) -> int:
        return sum(not kernel.is_compiled() for kernel in self._kernels)

    def show(self, name: str, *_: str) -> None:
        """Show the name of the function that is about to be compiled."""
        if self._bar is None:
            self._bar = progress_bar(
                what="compiling", unit="kernel", shown=True, bar_format=BAR, delay=1e-9,
                total=max(self._missing, 1),
            )  # fmt: skip
            # Because of the delay, the bar is not drawn before it has a name.
            self._bar.start_t = self._start
        self._bar.n = self._missing - self._count_missing()
        self._bar.set_postfix_str(name.strip("_"))

    def hide(self) -> None:
        """Remove the bar until the next function is compiled."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def announce(name: str, module: str, signature: str) -> None:
    """Announce the first compilation of this process, and let later ones be shown like it.

    The caller must hold numba's compiler lock.
    """
    if may_start_a_process():
        with suppress(OSError, ValueError):  # there may be too many processes
            start_second_process(module)
    announcement = Announcement("float64" in signature and "float32" not in signature)
    start.before_compiling, start.after_compiling = announcement.show, announcement.hide
    announcement.show(name)


def may_start_a_process() -> bool:
    """Return whether a second process would help and would not disturb others.

    It needs a folder to share, and an idle core that this process may use. Tests and servers for
    continuous integration do not start one. Processes that were forked, or that `multiprocessing`
    has started, do not either, because each of them would start one.
    """
    if any(name in os.environ for name in NOBODY_WAITS):
        return False
    if threads.forked or cache.writable_folder() is None:
        return False
    multiprocessing = sys.modules.get("multiprocessing.process")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        return False
    if not Path(sys.executable or "").name.startswith("python"):  # Python is part of an application
        return False
    try:
        return os.getloadavg()[0] <= threads.get_num_threads() - 1
    except (AttributeError, OSError):  # on Windows, and in some containers
        return False


def start_second_process(module: str = "") -> int:
    """Start the process that compiles kernels of a training step; return its process ID.

    It ends when this process ends or becomes another program, which closes the pipe to it. It is no
    child of this process, which may wait for all of its children. It has its own session, so that
    Ctrl-C in a terminal does not reach it. `module` is the module of the first kernel that this
    process compiles.
    """
    first, folders = os.getpid(), [*map(str, cache.FOLDERS)]
    program = PROGRAM.format(root=str(Path(__file__).parents[2]), folders=folders, module=module)
    child: Any = subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    life, output = child.stdin, child.stdout
    number = int(output.readline())
    child.wait()

    def end() -> None:
        if os.getpid() != first:  # this is a child that the first process has forked
            return
        with suppress(OSError, ValueError):  # all files may be closed, or too many be open
            life.close()
            select.select([output], [], [], 1.0)  # until the output ends, with the process

    atexit.register(end)
    os.register_at_fork(after_in_child=life.close)  # a child may live longer than this process
    return number


def compile_for_training(folders: list[str], module: str) -> None:
    """Compile the kernels of `TRAINING`, unless another process does so for these folders.

    `module` is the module of the first kernel of the first process (see `BEFORE`).
    """
    os.nice(10)  # other processes come first
    start.before_compiling = None
    cache.FOLDERS[:] = map(Path, folders)
    folder = cache.writable_folder()
    if folder is None or not _is_the_only_one(folder):
        return
    kernels = {kernel.function.__name__: kernel for kernel in reversed(kernels_of(double=False))}
    first = (names for prefix, names in BEFORE.items() if module.startswith(prefix))
    for name in (*next(first, ()), *TRAINING):
        if name in kernels:  # without a matrix unit, there is no "_write_addresses"
            kernels[name].compile()


def _is_the_only_one(folder: Path) -> bool:
    """Return whether no other process compiles for this folder, and keep others from starting."""
    import fcntl  # does not exist on Windows, where `may_start_a_process` returns False

    try:
        lock = os.open(folder / "training.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
