"""What all tests share."""

import numpy as np
import pytest

import minigrad


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def seeded():
    """Each test starts the default generator alike, whichever tests ran before."""
    minigrad.manual_seed(0)
