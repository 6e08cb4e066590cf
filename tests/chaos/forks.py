"""Children that begin at once: a process imports a module, and forks for each run of its `main`.

    with forks("tests.chaos.saving") as start:
        child = start("merge", folder, out)  # which has printed "begun" by now
        child.kill()
        status, rest = child.end()

A child must have ended before the next one starts. All have the random order of sets of the process
that forks them, so what must not depend on it needs two such processes.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple

STATUS = "status "


class Child(NamedTuple):
    """A child, and the process that has forked it."""

    parent: subprocess.Popen
    pid: int

    def kill(self):
        """Kill it, or do nothing if it has ended by itself."""
        os.kill(self.pid, signal.SIGKILL)  # no other process has its number before `end`

    def end(self):
        """Wait for its end; return its status, and what it has printed after "begun"."""
        self.parent.stdin.write("\n")
        self.parent.stdin.flush()
        printed = ""
        while not (line := self.parent.stdout.readline()).startswith(STATUS):
            assert line, f"the process that forks has ended, after {printed!r}"
            printed += line
        return int(line.removeprefix(STATUS)), printed


@contextmanager
def forks(module) -> Iterator:
    """Give a function that starts `main` of a module in a child, with these arguments as texts."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", __name__, module]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

    def start(*arguments):
        print(json.dumps([*map(str, arguments)]), file=parent.stdin, flush=True)
        child = Child(parent, int(parent.stdout.readline()))
        assert parent.stdout.readline() == "begun\n"
        return child

    with subprocess.Popen(command, **pipes) as parent:
        yield start


def serve(module):
    """Fork a child for each line of arguments; a further line asks for its status."""
    main = import_module(module).main
    while line := sys.stdin.readline():
        pid = os.fork()
        if not pid:
            print(os.getpid(), flush=True)
            main(*json.loads(line))
            return
        if not sys.stdin.readline():  # the test has ended
            os.kill(pid, signal.SIGKILL)
        print(f"{STATUS}{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}", flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
