"""Damaged adapters: each is loaded, inspected and checked, or refused, in a limited time.

A mutant is a folder of PEFT's, of which the configuration or the tensors are damaged: their bytes,
a field, a key, an element or the metadata. Its seed is the number of its test.
"""

import json
import os
import resource
import shutil
import signal
from contextlib import contextmanager

import numpy as np
import pytest

import lora
from lora.offline import check_adapter, summarise
from lora.peft import CONFIG, WEIGHTS
from minigrad.io import load_state, save_state
from tests.chaos import seeds
from tests.lora.folders import FOLDERS, KINDS, PREFIX, model_of

COUNT = 100
SECONDS = 20  # of one mutant, of which most take milliseconds
MEMORY = 4 << 30  # bytes, beyond those that the process has

NAMES = sorted(KINDS)

HOSTILE = [
    *(None, True, False, -1, 0, 1, 2, 30, -(2**64), 10**400, 0.5, 5e-324),
    *(1e308, float("nan"), float("inf"), "", "lora", [], [1], [[]], [None], {}, {"a": 1}, {"": {}}),
    *("(a+)+b", "(a|a)*b", "(.*)*", ".*" * 60 + "x", ".*" * 500, "(", "[", r"(a)\1", "(?!", ".*"),
    *("(" * 900 + ")" * 900, "\x1b[2J", "all-linear", ".", ["(a+)+b"], ["0"] * 100, [""], ["."]),
    *({"(a+)+b": 3}, {".*": 30}, {f"{i}": 2 for i in range(100)}, {"0": {"0": 1}}, "mica"),
]


def any_of(rng, values):
    return values[int(rng.integers(len(values)))]


def damage_fields(folder, rng):
    """Give one to three fields of the configuration other values, or add or drop fields."""
    content = json.loads((folder / CONFIG).read_text())
    for _ in range(int(rng.integers(1, 4))):
        name = any_of(rng, [*content, "unknown"])
        kind = rng.random()
        if kind < 0.8:
            content[name] = any_of(rng, HOSTILE)
        elif kind < 0.9:
            content.pop(name, None)
        else:
            content |= {f"{name}{i}": 1 for i in range(int(10 ** rng.uniform(0, 2)))}
    (folder / CONFIG).write_text(json.dumps(content))


def damage_bytes(folder, rng):
    """Flip, cut out, put in or repeat bytes of one of the two files."""
    path = folder / any_of(rng, [CONFIG, WEIGHTS])
    content = bytearray(path.read_bytes())
    span = min(len(content), 600) if rng.random() < 0.7 else len(content)  # mostly of the header
    start = int(rng.integers(span))
    kind = any_of(rng, ["flip", "cut", "end", "insert", "zeros", "repeat", "digit"])
    if kind == "flip":
        content[start] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del content[start : start + int(rng.integers(1, 40))]
    elif kind == "end":
        del content[start:]
    elif kind == "insert":
        content[start:start] = rng.bytes(int(rng.integers(1, 20)))
    elif kind == "zeros":
        content[start : start + 8] = bytes(8)
    elif kind == "repeat":
        content[start:start] = content[start : start + 30] * int(rng.integers(1, 50))
    else:
        digits = [i for i in range(span) if 48 <= content[i] < 58]
        for i in digits[:: int(rng.integers(1, 20))]:
            content[i] = int(rng.integers(48, 58))
    path.write_bytes(content)


def damage_tensors(folder, rng):
    """Change keys, shapes, dtypes and elements of tensors, and the metadata."""
    arrays, metadata = load_state(folder / WEIGHTS)
    for _ in range(int(rng.integers(1, 4))):
        key = any_of(rng, sorted(arrays)) if arrays else PREFIX
        array = arrays.get(key, np.ones((3, 4), np.float32))
        kind = any_of(rng, ["key", "drop", "shape", "dtype", "value", "many", "facts"])
        if kind == "key":
            parts = ["", ".", "lora_A.weight", ".lora_B.weight", "a" * 2000, "x.lora_embedding_A"]
            name = any_of(rng, ["", PREFIX, f"{PREFIX}0.", key]) + any_of(rng, parts)
            arrays[name] = arrays.pop(key, array)
        elif kind == "drop":
            arrays.pop(key, None)
        elif kind == "shape":
            wide = (10**6, 0) if array.ndim > 1 else (0,)
            shapes = [array.shape[::-1], array.reshape(-1).shape, (0, *array.shape), wide]
            shape = any_of(rng, shapes)
            arrays[key] = array.reshape(shape) if np.prod(shape) == array.size else np.ones(shape)
        elif kind == "dtype":
            with np.errstate(all="ignore"):
                arrays[key] = array.astype(any_of(rng, ["f2", "f8", "i1", "i8", "?", "u2"]))
        elif kind == "value":
            with np.errstate(all="ignore"):
                values = np.array([0, 1e300, -1e300, 3e38, 1e-45, 1e-310, np.nan, np.inf])
                where = rng.random(array.shape) < rng.random()
                arrays[key] = np.where(where, any_of(rng, values), array).astype(
                    any_of(rng, ["f4", "f8"])
                )
        elif kind == "many":
            count = int(10 ** rng.uniform(0, 4))
            ending = any_of(
                rng, ["lora_A.weight", "lora_B.weight", "weight", "lora_magnitude_vector"]
            )
            empty = np.zeros((0, 4), np.float32)
            arrays |= {f"{PREFIX}layers.{i}.{ending}": empty for i in range(count)}
        else:
            layer = {"scale": any_of(rng, HOSTILE), "base": any_of(rng, HOSTILE)}
            content = {"layers": {any_of(rng, ["0", "layers.0", ""]): layer}, "version": "1"}
            content |= {"seed": any_of(rng, HOSTILE)} if rng.random() < 0.5 else {}
            metadata = {**metadata, "minigrad-lora": json.dumps(content)}
    save_state(folder / WEIGHTS, arrays, metadata)


@contextmanager
def limited():
    """Raise an error in the block after some seconds, or if it takes some gigabytes."""

    def stop(*_):
        raise AssertionError(f"it has not ended after {SECONDS} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        present = int(file.read().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (present + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def refused(use):
    """Use a mutant; return the error if it is refused in one of the documented ways."""
    try:
        use()
    except (ValueError, FileNotFoundError) as error:
        return error
    return None


def check_message(error):
    """Check that an error is of a documented kind, and its message can be read."""
    assert not isinstance(error, np.linalg.LinAlgError)  # which is a ValueError too
    assert len(str(error)) < 250_000


@pytest.mark.full
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="limits of memory need Linux")
@pytest.mark.parametrize("seed", seeds(COUNT))
def test_a_mutant_is_used_or_refused_in_time(tmp_path, seed):
    rng = np.random.default_rng(seed)
    name = any_of(rng, NAMES)
    folder, base = tmp_path / "adapter", tmp_path / "base.safetensors"
    shutil.copytree(FOLDERS / name, folder)
    any_of(rng, [damage_fields, damage_bytes, damage_tensors])(folder, rng)
    model = model_of(KINDS[name])
    save_state(base, model.state_dict())
    before = {key: array.tobytes() for key, array in model.state_dict().items()}
    with limited():
        of_load = refused(lambda: lora.load(model, folder, progress=False))
        of_inspect = refused(lambda: repr(summarise(folder)))
        assert repr(check_adapter(folder, base, progress=False))
    for error in filter(None, (of_load, of_inspect)):
        check_message(error)
    if of_load is not None:
        assert {key: array.tobytes() for key, array in model.state_dict().items()} == before
