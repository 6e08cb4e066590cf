"""Checks that all ranks do the same work, and that their machines compute the same bits."""

from __future__ import annotations

import hashlib
import os
import platform
import site
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import cpu
from minigrad.checks import check_problems
from minigrad.config import installed_version
from minigrad.distributed.worlds import World

_LIBRARY = Path(__file__).parents[1]
_SAME = f"{cpu.VARIABLE}={cpu.levels_here()[0]}, set for all ranks, makes them equal"


def check_agreement(
    world: World, facts: Mapping[str, str], problem: str = "the ranks would not compute the same"
) -> None:
    """If facts differ between ranks, raise a ValueError on all ranks, with the differing ranks."""
    first, *others = world.gather(dict(facts), "the comparison of ranks")
    problems = [
        f"rank {rank} differs from rank 0 in {name}: "
        f"{_difference(first.get(name, 'none'), other.get(name, 'none'))}"
        for rank, other in enumerate(others, 1)
        for name in {**first, **other}
        if other.get(name) != first.get(name)
    ]
    check_problems(problem, problems)


def _difference(value: str, other: str) -> str:
    """Describe the difference of two texts, or of two comma-separated lists."""
    words, others = set(value.split(",")), set(other.split(","))
    if words == others or len(words) == len(others) == 1:
        return f"{other}, and {value} there"
    more, less = sorted(others - words), sorted(words - others)
    parts = [f"it has {','.join(more)}"] * bool(more) + [f"it lacks {','.join(less)}"] * bool(less)
    return "; ".join(parts)


def facts_of_process() -> dict[str, str]:
    """Return the facts about this process that the bits of a computation depend on."""
    from numba import config

    from minigrad.kernels import jit
    from minigrad.kernels.gemm import matrix_unit

    _, processor, instructions = jit.target()
    numpy: Any = np  # it has no public name for its choice of instructions
    chosen = numpy._core._multiarray_umath
    used = [name for name in chosen.__cpu_dispatch__ if chosen.__cpu_features__[name]]
    packages = ("minigrad-lora", "numpy", "numba", "llvmlite")
    script = getattr(sys.modules["__main__"], "__file__", None) or ""
    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        **{name: installed_version(name) for name in packages},
        # With the same instructions, LLVM may choose other vectors for another processor.
        f"instructions of kernels ({_SAME})": ",".join([processor, *instructions]),
        "whether kernels use a matrix unit": str(matrix_unit.is_available()),
        f"instructions of numpy ({_SAME})": ",".join(used),
        "how numba compiles": f"NUMBA_DISABLE_JIT={config.DISABLE_JIT},NUMBA_OPT={int(config.OPT)}",
        "the script": _digest_of_files([script]),
        **{
            f"the module {name} beside the script": _digest_of_files([file])
            for name, file in _modules_beside(script).items()
        },
        # The package may be a clone of another commit.
        "the code of the library": _digest_of_files(sorted(_LIBRARY.rglob("*.py"))),
    }


def _modules_beside(script: str) -> dict[str, str]:
    """Return the files of modules that were imported from the script's folder and those inside.

    For `python -m a.b`, this is the folder of `a`. Installed packages and minigrad are left out.
    """
    if not script:  # of `python -c`
        return {}
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    folder = Path(script).resolve().parents[spec.name.count(".") if spec else 0]
    inside = os.path.join(folder, "")  # with a separator at the end
    installed = [sys.prefix, sys.base_prefix, site.getusersitepackages(), str(_LIBRARY)]
    starts = tuple(f"{f}{os.sep}" for each in installed for f in (each, os.path.realpath(each)))
    files = {name: getattr(each, "__file__", None) for name, each in [*sys.modules.items()]}
    return {
        name: file
        for name, file in files.items()
        if file
        and name != "__main__"
        and not file.startswith(starts)
        and os.path.realpath(file).startswith(inside)
    }


def _digest_of_files(paths: Iterable[str | Path]) -> str:
    try:
        return digest(Path(path).read_bytes() for path in paths)
    except OSError:
        return "no file"


def digest(values: Iterable[Any]) -> str:
    """Return a digest of arrays, Tensors and plain values, and of sequences and dicts of them.

    For functions and classes, only the name counts, and for other objects only that of the class.
    """
    known = hashlib.blake2b(digest_size=8)

    def add(value: Any) -> None:
        value = getattr(value, "_data", value)  # a Tensor's
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            known.update(f"{len(value)} values".encode())
            for i in range(len(value)):  # not `for x in value`: an iterator may be endless
                add(value[i])
        elif isinstance(value, Mapping):
            add([list(map(str, value)), *value.values()])
        elif isinstance(value, np.ndarray) and value.dtype.kind != "O":
            known.update(f"{value.dtype} {value.shape}".encode())
            known.update(np.ascontiguousarray(value).view(np.uint8))
        elif value is None or isinstance(value, (bool, int, float, str, bytes, np.generic)):
            known.update(repr(value).encode())
        else:
            known.update(getattr(value, "__qualname__", type(value).__qualname__).encode())

    for value in values:
        add(value)
    return known.hexdigest()
