"""Kernels for other processors than this one, which numba can compile for.

    python -m tests.hosts AVX2 python -m pytest tests/minigrad/kernels/test_gemm.py

runs a command that compiles for such a machine.
"""

import argparse
import os

import numba.core.registry
import pytest

from minigrad.cpu import LEVELS

_TRIPLE, *_ = numba.core.registry.cpu_target.target_context.codegen().magic_tuple()

on_x86 = pytest.mark.skipif(_TRIPLE[:6] != "x86_64", reason="names processors of x86-64")

HOSTS = {
    "AVX2": {name: LEVELS["x86-64-v3"][name] for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")},
    "SSE2": {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse,+sse2"},
}
"""Environment variables for a process that compiles for a machine with no more than these."""

PEERS = {
    "AVX2": {
        "OPENBLAS_CORETYPE": "Haswell",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    },
}
"""Environment variables that limit OpenBLAS, MKL, oneDNN, PyTorch and JAX in the same manner."""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        "python -m tests.hosts", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("host", choices=HOSTS)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    options = parser.parse_args()
    if not options.command:
        parser.error("there is no command to run")
    os.execvpe(options.command[0], options.command, {**os.environ, **HOSTS[options.host]})
