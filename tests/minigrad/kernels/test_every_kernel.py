"""Every kernel compiles, and runs on one thread and on two: see tests/every_kernel.py."""

import pytest

from minigrad.kernels.jit import JIT_ENABLED
from minigrad.kernels.threads import get_max_threads
from minigrad.kernels.warmup import kernels_of
from tests import every_kernel

pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled kernel to test")


@pytest.mark.full
@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_every_kernel_compiles(double):
    others = set() if not double else set(kernels_of(double=False))
    for kernel in kernels_of(double):
        if kernel not in others:
            kernel.compile()
            assert kernel.alone.func.overloads


@pytest.mark.full
@pytest.mark.skipif(get_max_threads() < 2, reason="this process may use one thread only")
def test_every_kernel_runs_and_threads_change_no_bit():
    kernels_of(double=True)  # imports every kernel
    with every_kernel.recorded() as called:
        alone, shared = every_kernel.results_with_and_without_threads()
    assert every_kernel.missing(called) == []
    assert every_kernel.differing(alone, shared) == []
