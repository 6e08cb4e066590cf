"""A forked child does not wait for a lock that a thread of its parent held at the fork."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, threading
import numpy as np
import lora, minigrad as mg
from minigrad.core import backward, tensor
from minigrad.kernels.gemm import prepacked
from minigrad.progress import progress_bar

w = mg.tensor(np.ones((2, 2)), requires_grad=True)
model = mg.nn.Linear(2, 2)
adapted = mg.nn.Sequential(mg.nn.Linear(2, 2))
lora.attach(adapted, lora.LoRAConfig(1))

@mg.capture
def step(x):
    return (w * x).sum()

def shown_bar(*rows):
    return progress_bar(*rows, what="w", unit="u", shown=True, in_files=True)

bar = shown_bar().__enter__()

def disabled():
    with lora.disabled(adapted):
        pass

def check(name, lock, work):
    held, leave = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if not child:
        signal.alarm(50)
        exec(work, globals())
        os._exit(0)
    leave.set()
    thread.join()
    if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit(f"{name}: the child ended with status {status}")

"""

LOCKS = {
    "step._lock": "step(mg.ones(2, 2))",
    "backward._accumulating": "(w * 2).sum().backward()",
    "tensor._assigning": "mg.gradient(lambda m: m(mg.ones(2)).sum())(model)",
    "prepacked._packing": "mg.set_pack_limit(None)",
    "lora.attaching._lock": "disabled()",
    "bar.get_lock()": "assert sum(shown_bar(range(3))) == 3",
}
"""Each lock, and work that takes it."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_lock_that_a_thread_held_is_free_in_a_forked_child():
    source = SCRIPT + "\n".join(
        f"check({lock!r}, {lock}, {work!r})" for lock, work in LOCKS.items()
    )
    python = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", source]
    ran = subprocess.run(python, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
