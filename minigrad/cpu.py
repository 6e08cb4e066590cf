"""MINIGRAD_CPU: the processor to compute as, so that different machines give the same bits.

    MINIGRAD_CPU=x86-64-v3 mpiexec -n 4 python train.py

The last digits of a sum depend on how wide vectors are: a machine with AVX-512 gives others than
one with AVX2. With this variable our kernels, numpy and its BLAS use no instructions beyond those
of the named level, which all machines of a group must have. It is read before numpy is imported.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import MutableMapping

VARIABLE = "MINIGRAD_CPU"

LEVELS = {
    "x86-64-v3": {  # with AVX2 and FMA, as Intel's since 2013 and AMD's since 2015
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2",
        "NPY_ENABLE_CPU_FEATURES": "X86_V3 AVX2 FMA3",  # the names of new and of old versions
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "armv8-a": {  # with NEON, as all 64-bit Arm processors
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "+neon,+fp-armv8",
        "NPY_ENABLE_CPU_FEATURES": "ASIMD",
        "OPENBLAS_CORETYPE": "ARMV8",
    },
}
"""The variables that numba, numpy and OpenBLAS read, by level."""


def levels_here() -> list[str]:
    """List the levels of processors of this kind: x86-64, or else Arm."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return [name for name in LEVELS if name.startswith("x86") == is_x86]


def limit_instructions(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables of the level that `MINIGRAD_CPU` names, if it names one.

    Raises:
        ValueError: if there is no such level for this machine.
        RuntimeError: if numpy or numba has been imported before, and has read other variables.
    """
    level = environment.get(VARIABLE)
    if not level:
        return
    if level not in (levels := levels_here()):
        raise ValueError(
            f"{VARIABLE} is {' or '.join(levels)} on this machine, or not set; not {level!r:.60}"
        )
    wanted = LEVELS[level]
    early = [name for name in ("numpy", "numba") if name in sys.modules]
    if early and any(environment.get(name) != value for name, value in wanted.items()):
        raise RuntimeError(
            f"{VARIABLE}={level}: {' and '.join(early)} was imported before minigrad, and has "
            f"chosen its instructions; import minigrad first"
        )
    environment.update(wanted)
