"""What all tests share."""

import gc

import numpy as np
import pytest

import minigrad


def pytest_pycollect_makeitem(collector, name, obj):
    """Leave out what is in another tier, before its thousands of parameters make tests of it."""
    if not name.startswith("test") or any("::" in each for each in collector.config.args):
        return None  # a test that is asked for by name is reported as deselected
    if collector.config.option.markexpr != "not full and not peers":
        return None
    marks = {mark.name for mark in [*collector.iter_markers(), *getattr(obj, "pytestmark", ())]}
    return [] if marks & {"full", "peers"} else None


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
