"""A plugin of pytest that plants a mutant: `-p tests.zoo.plugin --mutant NAME`."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.zoo import MUTANTS


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option --mutant."""
    parser.addoption("--mutant", help="the name of the mutant to plant while the tests run")


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """After all tests are collected, so that what fails is a test."""
    name = session.config.getoption("--mutant")
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == name)
    with mutant.plant():
        return (yield)
