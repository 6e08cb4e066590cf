"""MINIGRAD_CPU: limit the instructions of the processor, so that all machines give the same bits.

    MINIGRAD_CPU=x86-64-v3 mpiexec -n 4 python train.py

The last digits of a sum depend on the width of vectors, so machines with AVX-512 and with AVX2 give
different digits. With this variable, minigrad's kernels, numpy and its BLAS use only the
instructions of the named level; all machines of a group must have them. The variable is read before
numpy is imported.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import MutableMapping

VARIABLE = "MINIGRAD_CPU"

LEVELS = {
    "x86-64-v3": {  # with AVX2 and FMA: Intel since 2013, AMD since 2015
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2",
        "NPY_ENABLE_CPU_FEATURES": "X86_V3 AVX2 FMA3",  # names in new and in old versions of numpy
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "armv8-a": {  # with NEON, which all 64-bit Arm processors have
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "+neon,+fp-armv8",
        "NPY_ENABLE_CPU_FEATURES": "ASIMD",
        "OPENBLAS_CORETYPE": "ARMV8",
    },
}
"""For each level, the environment variables for numba, numpy and OpenBLAS."""


def levels_here() -> list[str]:
    """List the levels for the architecture of this machine: x86-64 or Arm."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return [name for name in LEVELS if name.startswith("x86") == is_x86]


def limit_instructions(environment: MutableMapping[str, str] = os.environ) -> None:
    """If `MINIGRAD_CPU` is set, set the environment variables of this level.

    Raises:
        ValueError: if this machine's architecture has no level of this name.
        RuntimeError: if numpy or numba was imported before, with other values of the variables.
    """
    level = environment.get(VARIABLE)
    if not level:
        return
    if level not in (levels := levels_here()):
        raise ValueError(
            f"{VARIABLE} is {level!r:.60}; here it must be {' or '.join(levels)}, or not set"
        )
    wanted = LEVELS[level]
    early = [name for name in ("numpy", "numba") if name in sys.modules]
    if early and any(environment.get(name) != value for name, value in wanted.items()):
        further = " ".join(f"{name}='{value}'" for name, value in wanted.items())
        raise RuntimeError(
            f"{VARIABLE}={level}: {' and '.join(early)} was imported before minigrad, and has "
            f"chosen its instructions; import minigrad first, or start with {further} too"
        )
    environment.update(wanted)
