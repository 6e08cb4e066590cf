"""Every kernel compiles, and runs, in every form: see tests/every_kernel.py."""

import pytest

from minigrad.kernels.jit import JIT_ENABLED
from minigrad.kernels.threads import get_max_threads
from minigrad.kernels.warmup import forms
from tests import every_kernel

pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="there is no compiled kernel to test")


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_every_form_compiles(double):
    others = set() if not double else set(forms(double=False, threads=True))
    for kernel, parallel in forms(double, threads=True):
        if (kernel, parallel) not in others:
            assert callable(kernel.compile(parallel))


@pytest.mark.skipif(get_max_threads() < 2, reason="this process may use one thread only")
def test_every_form_runs_and_threads_change_no_bit():
    forms(double=True, threads=True)  # imports every kernel
    with every_kernel.recorded() as called:
        alone, shared = every_kernel.results_with_and_without_threads()
    assert every_kernel.missing(called) == []
    assert every_kernel.differing(alone, shared) == []
