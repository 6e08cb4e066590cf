"""The command line: `python -m minigrad check`, `warmup` and `config`.

`check` runs gradcheck on a function in a file. `warmup` compiles the kernels ahead, `config` shows
where they are. What is not compiled ahead is compiled when it is first used, once on a machine; so
nobody needs to do this. It is for the building of a container, say, or before a class.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module

import minigrad
from minigrad.diagnostics.gradcheck import command

Job = tuple[str, Callable[[], object]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; `arguments` are those of the process unless given."""
    parser = command.Parser("python -m minigrad", description="Check gradients; what it runs on.")
    commands = parser.add_subparsers(dest="command", metavar="command")
    checked = commands.add_parser("check", help="compare the gradients of a function in a file")
    command.add_arguments(checked)
    warm = commands.add_parser("warmup", help="compile the kernels ahead, for the next processes")
    warm.add_argument("--all", action="store_true", help="those of float64 too")
    commands.add_parser("config", help="show versions, processor, threads and compiled kernels")
    chosen = parser.parse_args(arguments)
    if chosen.command == "check":
        sys.exit(command.check(chosen))
    if chosen.command == "warmup":
        warmup(double=chosen.all)
    elif chosen.command == "config":
        minigrad.show_config()
    else:
        parser.print_help()


def warmup(double: bool = False) -> None:
    """Compile the kernels of float32, and those of float64 if `double`, unless they are on disk.

    A progress bar on stderr says which is being compiled, a line on stdout how many were. Where
    this process may use threads, the forms for several threads are compiled too.

    Raises:
        SystemExit: if nothing is to be compiled, under NUMBA_DISABLE_JIT=1, or cannot be kept.
    """
    from minigrad.kernels import cache, jit
    from minigrad.progress import progress_bar

    if not jit.JIT_ENABLED:
        sys.exit("minigrad warmup: NUMBA_DISABLE_JIT is set, so that nothing is ever compiled")
    if cache.writable_folder() is None:
        sys.exit(f"minigrad warmup: compiled kernels are {cache.describe()}")
    cache.announce(False)
    start, compiled, jobs = time.perf_counter(), 0, list(_jobs(double))
    with progress_bar(
        jobs, what="compiling", unit="kernel", shown=True, delay=0.0, dynamic_ncols=True
    ) as bar:
        for name, job in bar:
            bar.set_postfix_str(name)
            before = len(cache.COMPILED)
            job()
            compiled += len(cache.COMPILED) > before
    seconds = time.perf_counter() - start
    print(
        f"{compiled} kernels compiled, {len(jobs) - compiled} were there, in {seconds:.1f} s: "
        f"{cache.describe()}"
    )


def _jobs(double: bool) -> Iterator[Job]:
    """What there is to compile, each with a name."""
    from minigrad import kernels
    from minigrad.kernels.kernel import KERNELS

    for module in kernels.__all__:
        import_module(f"minigrad.kernels.{module}")
    forms = (False, True) if minigrad.get_num_threads() > 1 else (False,)
    for kernel in KERNELS:
        numbers = str(kernel.signature)  # those of float32 may have a scale in float64
        if double or "float32" in numbers or "float64" not in numbers:
            for parallel in forms if kernel.threads else forms[:1]:
                name = kernel.function.__name__.strip("_")
                yield name + " on threads" * parallel, partial(kernel.compile, parallel)


if __name__ == "__main__":
    main()
