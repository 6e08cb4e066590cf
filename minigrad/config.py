"""The environment of this installation: versions, the processor, threads, memory, kernels."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TextIO

from minigrad.kernels.start import load_numba
from minigrad.tables import in_bytes


def show_config(file: TextIO | None = None) -> None:
    """Print the environment, as a bug report or a measurement should state it.

    Args:
        file: the stream, by default `sys.stdout`. `minigrad.config.config()` returns the facts.
    """
    facts = config()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}", file=file or sys.stdout)


def config() -> dict[str, str]:
    """Return the facts that `show_config` prints, by name."""
    # Imported here, because numba takes longer to import than everything else together.
    load_numba()
    from minigrad.kernels import cache, jit, threads, vector
    from minigrad.kernels.gemm import microkernel, prepacked

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
        "packed weights": f"{in_bytes(prepacked.bytes_in_use())} of {in_bytes(prepacked.limit())}",
        "kernels": cache.describe(),
    }


def set_pack_limit(size: int | None) -> None:
    """Set how many bytes the packed copies of frozen weights may take together; 0 for none.

    A frozen weight below an adapter is stored twice more, in the order in which x W^T and g W read
    it. None stands for the default, 192 MB or a quarter of the machine's memory if that is less.
    Without a copy a product of a hundred rows takes a tenth longer. If the copies take more
    already, they go.

    Raises:
        ValueError: if it is no integer of at least 0.
    """
    from minigrad.kernels.gemm import prepacked

    prepacked.set_limit(size)


def installed_version(distribution: str) -> str:
    """Return the version of an installed package, or a text that says that it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed as a package"
