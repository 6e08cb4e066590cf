"""What all tests share."""

import gc
import math
import os
import signal
from collections import Counter

import hypothesis
import numpy as np
import pytest

import minigrad

hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")  # an example may wait for another process, or compile

os.fsync = lambda handle: None
"""Tests kill processes and not machines, and each call takes milliseconds."""

# A shell starts a command in the background with Ctrl-C ignored, and so would be the processes of
# the tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_pycollect_makeitem(collector, name, obj):
    """Leave out what is in another tier, before its thousands of parameters make tests of it."""
    if not name.startswith("test") or any("::" in each for each in collector.config.args):
        return None  # a test that is asked for by name is reported as deselected
    marks = [*collector.iter_markers(), *getattr(obj, "pytestmark", ())]
    names = {mark.name for mark in marks}
    wanted = collector.config.option.markexpr
    if wanted == "not full and not peers":
        return [] if names & {"full", "peers"} else None
    if wanted in ("full", "peers"):
        rows = [row for mark in marks if mark.name == "parametrize" for row in mark.args[1]]
        names |= {mark.name for row in rows for mark in getattr(row, "marks", ())}
        if "sampled" in names:
            names.add("full")
        return None if wanted in names else []
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Leave one in n rows of a test that is marked `sampled(n)` to the quick tier.

    Of several tables, the top one varies fastest. If n and its number of rows had a divisor in
    common, the quick tier would never see some of them.
    """
    rows = Counter()
    for item in items:
        if mark := item.get_closest_marker("sampled"):
            test, (n,) = item.nodeid.split("[")[0], mark.args
            tables = [list(each.args[1]) for each in item.iter_markers("parametrize")]
            if len(tables) > 1 and math.gcd(n, len(tables[-1])) > 1:
                raise pytest.UsageError(
                    f"{test}: sampled({n}) always leaves out some of the {len(tables[-1])} rows of "
                    f"its top table; choose another number"
                )
            if rows[test] % n > 0:
                item.add_marker("full")
            rows[test] += 1


_begun = set()
"""The files whose tests have begun."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Begin each test alike, whichever tests ran before.

    Fixtures for all tests would do the same at a quarter of the cost of an empty test.
    """
    if item.path not in _begun:
        _begun.add(item.path)
        gc.freeze()  # leaves what earlier files have made, such as kernels, out of each collection
    minigrad.manual_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
