"""Freed memory stays with the process, unless the user has settings of their own."""

import os
from pathlib import Path

import pytest

from minigrad import heap
from tests.minigrad.kernels.processes import run_python

STEPS = """
    import resource, sys
    import numpy as np
    from minigrad import heap

    keeps = heap.keep_freed_memory()

    def step():
        arrays = [np.ones(100_000) for _ in range(10)]  # 8 MB, of which the last is freed first
        return sum(array[0] for array in arrays)

    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(int(keeps), faults)
"""

glibc = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}),
    reason="other C libraries are left alone",
)


def run(**variables):
    theirs = ("MALLOC_", "GLIBC_")
    unset = {name: None for name in os.environ if name.startswith(theirs)}
    keeps, faults = map(int, run_python(STEPS, **{**unset, **variables}).split())
    return bool(keeps), faults


@glibc
def test_steps_that_allocate_the_same_arrays_get_the_same_pages():
    keeps, faults = run()
    assert keeps
    assert faults < 200  # of 40,000 pages


@pytest.mark.full
@glibc
def test_a_setting_of_the_user_stays():
    keeps, faults = run(MALLOC_TRIM_THRESHOLD_="65536")
    assert not keeps
    assert faults > 10_000


@pytest.fixture
def heap_untouched(monkeypatch):
    """The module in an environment without settings, where asking the C library is an error."""
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: pytest.fail("it was asked for"))
    return heap


@glibc
@pytest.mark.parametrize(
    "name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"]
)
def test_with_any_setting_of_the_user_the_c_library_is_not_asked(name, heap_untouched, monkeypatch):
    monkeypatch.setenv(name, "65536")
    assert heap_untouched.keep_freed_memory.__wrapped__() is False


def test_a_c_library_without_such_settings_is_left_alone(heap_untouched, monkeypatch):
    monkeypatch.setattr(os, "confstr_names", {}, raising=False)
    assert heap_untouched.keep_freed_memory.__wrapped__() is False


QUANTIZE = """
    import os
    from pathlib import Path
    import lora
    from minigrad import nn

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def linears(count):
        return nn.Sequential(*[nn.Linear(1024, 1024, bias=False) for _ in range(count)])

    lora.quantize(linears(1), progress=False)  # which imports numba, and loads kernels
    model = linears(40)
    weights = sum(p.data.nbytes for p in model.parameters())
    before = resident()
    lora.quantize(model, progress=False)
    print((before - resident()) / weights)
"""


@pytest.mark.full
@glibc
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says what is in use")
def test_quantize_gives_the_memory_of_the_weights_back():
    assert float(run_python(QUANTIZE)) > 0.5  # of which an eighth is taken by the codes


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_the_memory_of_a_container_is_its_limit(name, tmp_path, monkeypatch):
    machine = heap.physical_memory()
    for content, expected in (("1000000\n", 1_000_000), ("max\n", machine), (f"{2**63}", machine)):
        file = tmp_path / content.strip() / name
        file.parent.mkdir(parents=True)
        file.write_text(content)
        monkeypatch.setattr(heap, "CGROUP", str(tmp_path / content.strip()))
        assert heap.physical_memory() == expected
