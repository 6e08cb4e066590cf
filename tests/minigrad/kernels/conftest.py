"""The fixture of all tests of threads."""

import pytest
from numpy.testing import assert_array_equal

from minigrad import get_num_threads, set_num_threads


@pytest.fixture
def same_on_threads():
    """Check that a function returns arrays of the same bits on one thread and on all; return them.

    It is called with the number of threads set, and without arguments.
    """
    before = get_num_threads()

    def check(function):
        set_num_threads(1)
        alone = list(function())
        set_num_threads(before)
        for found, expected in zip(function(), alone, strict=True):
            assert_array_equal(found, expected)
        return alone

    yield check
    set_num_threads(before)
