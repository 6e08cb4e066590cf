"""The environment of this installation: versions, the processor, threads, compiled kernels."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TextIO


def show_config(file: TextIO | None = None) -> None:
    """Print the environment, as a bug report or a measurement should state it.

    Args:
        file: the stream to print to, by default `sys.stdout`. `config` returns the facts instead.
    """
    facts = config()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}", file=file or sys.stdout)


def config() -> dict[str, str]:
    """Return the facts that `show_config` prints, by name."""
    # Imported here, because numba takes longer to import than everything else together.
    from minigrad.kernels import cache, jit, threads, vector
    from minigrad.kernels.gemm import microkernel

    width, registers = vector.vector_registers()
    tiles = {f"float{8 * size}": microkernel.tile_shape(size) for size in (4, 8)}
    try:
        layer = threads.threading_layer()
    except ValueError as error:  # a layer was asked for that this machine does not have
        layer = f"none: {error}"
    return {
        "minigrad": installed_version("minigrad-lora"),
        "Python": f"{platform.python_version()} on {platform.platform()}",
        **{name: installed_version(name) for name in ("numpy", "numba", "llvmlite")},
        "processor": jit.processor(),
        "vectors": f"{width} bytes, {registers} registers",
        "tile": ", ".join(f"{tile.MR} x {tile.NR} {name}" for name, tile in tiles.items()),
        "compiled": "yes" if jit.JIT_ENABLED else "no: NUMBA_DISABLE_JIT is set, numpy computes",
        "threads": f"{threads.get_num_threads()} of {threads.get_max_threads()}",
        "threading layer": layer,
        "kernels": cache.describe(),
    }


def installed_version(distribution: str) -> str:
    """Return the version of an installed package, or a text that says that it is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed as a package"
