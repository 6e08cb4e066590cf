"""What all tests share."""

import gc
import os

import numpy as np
import pytest

import minigrad

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of one process that wait for work would keep the cores from the other processes. This
    # is read when the first kernel runs on threads, and by processes that tests start.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_collection_finish():
    """Leave the objects of the ten thousand tests out of each garbage collection in them."""
    gc.freeze()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def seeded():
    """Each test starts the default generator alike, whichever tests ran before."""
    minigrad.manual_seed(0)
