"""Tests of minigrad and lora."""

import os
import sys

# Otherwise each of the many processes that tests start, and each worker, would compile all sources.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of one process that wait for work would keep the cores from the other processes. Both
    # are read by processes that tests start, too: the first by numpy when it is imported, the
    # second when the first kernel runs on threads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
