"""The configuration of this installation: versions, processor, threads, memory, kernels."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TextIO

from minigrad.kernels.start import load_numba
from minigrad.tables import in_bytes


def show_config(file: TextIO | None = None) -> None:
    """Print versions, processor, threads, memory and kernels, for a bug report or a measurement.

    Args:
        file: the stream, by default `sys.stdout`. `minigrad.config.config()` returns a dict.

    Raises:
        RuntimeError: if `NUMBA_NUM_THREADS` is not a whole number of at least 1.
    """
    facts = config()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}", file=file or sys.stdout)


def config() -> dict[str, str]:
    """Return the facts that `show_config` prints, by name."""
    # Imported here, because importing numba takes longer than importing everything else.
    load_numba()
    from minigrad.kernels import cache, jit, threads, vector
    from minigrad.kernels.gemm import matrix_unit, microkernel, prepacked

    tiles = {f"float{8 * size}": microkernel.tile_shape(size) for size in (4, 8)}
    try:
        layer = threads.threading_layer()
    except ValueError as error:  # the user asked for a threading layer that is missing here
        layer = f"none: {error}"
    return {
        "minigrad": installed_version("minigrad-lora"),
        "Python": f"{platform.python_version()} on {platform.platform()}",
        **{name: installed_version(name) for name in ("numpy", "numba", "llvmlite")},
        "processor": jit.target()[1],
        "vectors": f"{vector.VECTOR} bytes, {vector.REGISTERS} registers",
        "matrix unit": "AMX" if matrix_unit.is_available() else "none",
        "tile": ", ".join(f"{tile.MR} x {tile.NR} {name}" for name, tile in tiles.items()),
        "compiled": "yes" if jit.JIT_ENABLED else "no: NUMBA_DISABLE_JIT is set, numpy computes",
        "threads": f"{threads.get_num_threads()} of {threads.get_max_threads()}",
        "threading layer": layer,
        "packed weights": f"{in_bytes(prepacked.bytes_in_use())} of {in_bytes(prepacked.limit())}",
        "kernels": cache.describe(),
    }


def set_pack_limit(size: int | None) -> None:
    """Set the largest total size, in bytes, of packed copies of frozen weights; 0 for no copies.

    A frozen weight of an adapted layer has two packed copies, in the orders in which the products
    x W^T and g W read it. Each has the size of the weight, or 1.5 times that for a matrix unit.
    None means the default: 192 MB, or a quarter of the machine's memory if this is less. Without
    packed copies, a product with a hundred rows takes a tenth longer. If the copies are larger than
    the new limit, they are deleted.

    Raises:
        ValueError: if `size` is not an integer of at least 0.
    """
    from minigrad.kernels.gemm import prepacked

    prepacked.set_limit(size)


def installed_version(distribution: str) -> str:
    """Return the version of a package, or a text that says that it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed as a package"
