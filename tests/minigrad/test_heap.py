"""The heap is on huge pages and keeps freed memory, unless the user has settings of their own."""

import os
from pathlib import Path

import pytest

from minigrad import heap
from tests.minigrad.kernels.processes import run_python

STEPS = """
    import resource, sys
    import numpy as np
    from minigrad import heap

    keeps = heap.prepare_heap()

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


def without_settings():
    """The variables of the user's settings, each without a value."""
    return {name: None for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))}


def run(**variables):
    keeps, faults = map(int, run_python(STEPS, **{**without_settings(), **variables}).split())
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


def can_have_huge_pages():
    """Whether huge pages have the usual size here, and unused addresses do not count."""
    resource = pytest.importorskip("resource")
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    try:
        size, counted = (int(Path(name).read_text()) for name in (heap.HUGE_SIZE, heap.OVERCOMMIT))
    except OSError:
        return False
    return size == heap.HUGE and counted != 2 and set(limits) == {resource.RLIM_INFINITY}


huge = pytest.mark.skipif(
    not can_have_huge_pages(), reason="here the heap gets no addresses for huge pages"
)

ARRAYS = """
    import re
    from pathlib import Path
    import numpy as np
    from minigrad import heap

    def asked():
        # Linux marks the addresses for which it was asked for huge pages by the flag "hg".
        text = Path("/proc/self/smaps").read_text()
        found = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) |^VmFlags:(.*)", text, re.MULTILINE)
        ranges = [(int(a, 16), int(b, 16)) for a, b, _ in found[::2]]
        flags = [flags.split() for *_, flags in found[1::2]]
        return [range(*r) for r, each in zip(ranges, flags, strict=True) if "hg" in each]

    def share_of_new_arrays():
        arrays = [np.ones(1 << 20, np.uint8) for _ in range(64)]
        mappings = asked()
        return sum(any(x.ctypes.data in m for m in mappings) for x in arrays) / len(arrays)

    heap.prepare_heap()
    first = share_of_new_arrays()
    heap.give_back_memory()
    print(first, share_of_new_arrays())
"""


@glibc
@huge
def test_huge_pages_are_asked_for_arrays_also_after_memory_was_given_back():
    # Not whether they are on such pages, which Linux may not have. The first of them may lie before
    # the first address that a huge page can have.
    shares = run_python(ARRAYS, **without_settings()).split()
    assert all(float(share) > 0.9 for share in shares)


ADDRESSES = """
    import os, resource
    from pathlib import Path
    from minigrad import heap

    kind, limit = os.environ["KIND"], 64 << 30
    if kind:
        kind = getattr(resource, kind)
        resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
    if "COUNTED" in os.environ:
        heap.OVERCOMMIT = os.environ["COUNTED"]

    def bytes_of_process():
        pages = Path("/proc/self/statm").read_text().split()[:2]
        return [int(count) * resource.getpagesize() for count in pages]

    before = bytes_of_process()
    heap.prepare_heap()
    print(*(now - then for now, then in zip(bytes_of_process(), before)))
"""


def bytes_taken(**variables):
    """The bytes of addresses and of memory that `prepare_heap` takes."""
    return map(
        int, run_python(ADDRESSES, **{**without_settings(), "KIND": "", **variables}).split()
    )


@glibc
@huge
def test_the_heap_gets_addresses_but_no_memory():
    addresses, memory = bytes_taken()
    assert addresses > min(heap.RESERVED, heap.physical_memory() // 4) - 4 * heap.MIB
    assert memory < 4 * heap.MIB


@glibc
@huge
@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_no_addresses_are_reserved_if_the_user_has_limited_them(kind):
    addresses, _ = bytes_taken(KIND=kind)
    assert addresses < 4 * heap.MIB


@glibc
@huge
def test_no_addresses_are_reserved_if_the_system_counts_them_as_memory(tmp_path):
    (tmp_path / "overcommit_memory").write_text("2\n")
    addresses, _ = bytes_taken(COUNTED=str(tmp_path / "overcommit_memory"))
    assert addresses < 4 * heap.MIB


FREED = """
    import numpy as np
    from pathlib import Path
    from minigrad import heap

    def resident():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

    heap.RESERVED, heap.KEPT = 64 * heap.MIB, 32 * heap.MIB
    before = resident()
    heap.prepare_heap()
    arrays = [np.ones(8 * heap.MIB, np.uint8) for _ in range(50)]
    used = resident() - before
    arrays.clear()
    print(used, resident() - before)
"""


@glibc
@huge
def test_free_memory_beyond_the_limit_goes_back_to_the_system():
    assert heap.RESERVED + heap.KEPT < 2**31  # as the C library wants it
    used, kept = map(int, run_python(FREED, **without_settings()).split())
    assert used >= 400
    assert kept < 64 + 32 + 8


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
    assert heap_untouched.prepare_heap.__wrapped__() is False


def test_a_c_library_without_such_settings_is_left_alone(heap_untouched, monkeypatch):
    monkeypatch.setattr(os, "confstr_names", {}, raising=False)
    assert heap_untouched.prepare_heap.__wrapped__() is False


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
