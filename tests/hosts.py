"""Other machines than this one, as numba can be told to compile for them."""

import numba.core.registry
import pytest

_TRIPLE, *_ = numba.core.registry.cpu_target.target_context.codegen().magic_tuple()

on_x86 = pytest.mark.skipif(_TRIPLE[:6] != "x86_64", reason="names processors of x86-64")

HOSTS = {
    "AVX2": {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2",
    },
    "SSE2": {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse,+sse2"},
}
"""Environment variables for a process that compiles for a machine with no more than these."""
