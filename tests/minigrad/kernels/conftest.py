"""The fixture of all tests of threads."""

import pytest
from numpy.testing import assert_array_equal

from minigrad import get_num_threads, set_num_threads


@pytest.fixture
def same_on_threads():
    """Check that a function returns the same bits on any number of threads; return its arrays."""
    before = get_num_threads()

    def check(function):
        set_num_threads(1)
        alone = list(function())
        for threads in range(2, before + 1):
            set_num_threads(threads)
            for found, expected in zip(function(), alone, strict=True):
                assert_array_equal(found, expected)
        return alone

    yield check
    set_num_threads(before)
