"""A plugin of pytest that reads names of mutants and says of each whether a test fails with it."""

from __future__ import annotations

import os
import re
import sys

import pytest

from tests.zoo import MUTANTS
from tests.zoo.mutant import Mutant
from tests.zoo.suite import FAILED, PASSED

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


def pytest_runtestloop(session: pytest.Session) -> bool:
    """Plant each mutant in a fork of this process, in which all tests are collected."""
    if session.testsfailed:
        raise session.Failed("the tests could not be collected")
    for name in sys.stdin:
        mutant = BY_NAME[name.rstrip("\n")]
        child = os.fork()
        if child == 0:
            failed = _a_test_fails(session, mutant)
            print(f"\n{FAILED if failed else PASSED}", end="", flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            raise session.Failed(f"{mutant}: the process of its tests ended with status {status}")
    return True


def _a_test_fails(session: pytest.Session, mutant: Mutant) -> bool:
    """Whether one fails; those that are likely to, and those that are quick, run first."""
    items = sorted(session.items, key=lambda item: _place(item, mutant))
    with mutant.plant():
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                return True
    return False


def _place(item: pytest.Item, mutant: Mutant) -> tuple[bool, bool, int]:
    """Where a test stands: what is about the mutant is first, and what is quick, before the rest.

    Tests that are equal in this are in the order of the mutant's test files.
    """
    # A row is called by the name of its function, and maybe by more after a hyphen.
    about = mutant.rows and re.search(rf"[\[/]{re.escape(mutant.rows)}(?![^]:-])", item.nodeid)
    places = [i for i, file in enumerate(mutant.suite) if item.nodeid.startswith(file)]
    return not about, item.get_closest_marker("full") is not None, min(places, default=0)
