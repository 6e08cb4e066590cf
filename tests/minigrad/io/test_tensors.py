"""Files of tensors: lazy reading, streaming writing, shards, several files replaced together."""

import errno
import json
import os
import resource
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import hypothesis
import numpy as np
import pytest
import safetensors
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from lora.certificate import round_to
from minigrad import io
from minigrad.io import INDEX, TensorFile, TensorInfo, TensorSet, open_tensors, writing, writing_set
from minigrad.io.tensor_info import CODES, from_stored, to_stored


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.safetensors"


def raw(path, header, data=b""):
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(dtype="F32", shape=(2,), begin=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


# ----------------------------------------------------------------------------------------------
# Reading
# ----------------------------------------------------------------------------------------------


def test_the_header_tells_names_dtypes_shapes_and_facts_without_data(path):
    save_file({"b": np.ones((2, 3), np.float16), "a": np.arange(5)}, path, {"format": "pt"})
    with TensorFile(path) as file:
        assert file.tensors == {
            "a": TensorInfo("a", "int64", (5,)),
            "b": TensorInfo("b", "float16", (2, 3)),
        }
        assert file.metadata == {"format": "pt"}
        assert repr(file) == f"TensorFile({str(path)!r}, 2 tensors)"
        assert (len(file), list(file), "a" in file, "c" in file) == (2, ["a", "b"], True, False)
        assert file.info("b").nbytes == 12


def test_bfloat16_is_widened_as_torch_does(path):
    numbers = np.array([1.0, -2.5, 3.140625, 0.0, -0.0, np.inf, -np.inf, 1e-40], np.float32)
    upper = (numbers.view(np.uint32) >> 16).astype("<u2")
    raw(path, {"x": entry("BF16", (2, 4), 0, 16)}, upper.tobytes())
    with TensorFile(path) as file:
        x = file.read("x")
    assert x.dtype == np.float32
    want = (upper.astype(np.uint32) << 16).view(np.float32).reshape(2, 4)
    assert x.tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_reading_converts_when_asked(path, dtype):
    save_file({"x": np.array([0.5, 2.0], np.float16)}, path)
    with TensorFile(path) as file:
        x = file.read("x", dtype)
    assert (x.dtype, x.tolist()) == (np.dtype(dtype), [0.5, 2.0])


@pytest.mark.parametrize(
    "rows", [slice(0, 2), slice(1, 3), slice(2, None), slice(3, 3), slice(2, 1), slice(None)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
def test_rows_are_read_alone(path, rows, dtype):
    x = np.arange(24).reshape(4, 3, 2) % (2 if dtype == "bool" else 7)
    with writing(path, [TensorInfo("y", "int8", (3,)), TensorInfo("x", dtype, x.shape)]) as writer:
        writer.write("x", x)
        writer.write("y", np.ones(3))
    with TensorFile(path) as file:
        assert np.array_equal(file.read("x", rows=rows), file.read("x")[rows])


def test_rows_with_steps_are_refused(path):
    save_file({"x": np.ones((4, 2))}, path)
    with TensorFile(path) as file, pytest.raises(ValueError, match="without steps"):
        file.read("x", rows=slice(0, 4, 2))


def test_a_tensor_that_is_not_there_is_an_error_with_the_nearest(path):
    save_file({"weight": np.ones(1)}, path)
    with TensorFile(path) as file, pytest.raises(KeyError, match="did you mean 'weight'"):
        file.read("wieght")


def test_dtypes_that_numpy_has_not_are_listed_but_not_read(path):
    raw(path, {"x": entry("F8_E4M3", (8,))}, bytes(8))
    with TensorFile(path) as file:
        assert file.info("x").dtype == "F8_E4M3"
        with pytest.raises(ValueError, match="F8_E4M3, which cannot be read"):
            file.read("x")


OTHERS = {"F8_E4M3": (8,), "F8_E5M2": (2, 4), "F4": (4, 4), "F6_E2M3": (8,), "C64": (2,)}


@pytest.mark.parametrize("dtype", OTHERS)
def test_tensors_of_any_dtype_are_copied_as_they_are(dtype, path, tmp_path, monkeypatch):
    monkeypatch.setattr("minigrad.io.tensor_file.PART", 3)
    shape, data = OTHERS[dtype], bytes(range(8 * 16))
    size = {"F6_E2M3": 6, "C64": 16}.get(dtype, 8)
    header = {
        "x": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]},
        "y": {"dtype": "F32", "shape": [2], "data_offsets": [size, size + 8]},
        "none": {"dtype": dtype, "shape": [0], "data_offsets": [size + 8, size + 8]},
    }
    raw(path, header, data[: size + 8])
    out = tmp_path / "out.safetensors"
    with TensorFile(path) as file, writing(out, file.tensors.values()) as writer:
        assert file.info("x").nbytes == size
        for name in file:
            writer.copy(name, file.raw(name))
    with TensorFile(out) as again:
        assert again.info("x") == TensorInfo("x", dtype, shape)
        assert b"".join(again.raw("x")) == data[:size]
        assert again.read("y").tobytes() == data[size : size + 8]


def test_bytes_that_are_not_those_of_the_tensor_are_refused(path):
    info = TensorInfo("x", "F8_E4M3", (4,))
    for parts in ([b"12"], [b"123", b"45"], []):
        with pytest.raises(ValueError, match="with 4 bytes, not"), writing(path, [info]) as writer:
            writer.copy("x", parts)
    with writing(path, [info]) as writer:
        writer.copy("x", [b"1234"])
        with pytest.raises(ValueError, match="written already"):
            writer.copy("x", [b"1234"])
        with pytest.raises(KeyError, match="no tensor 'y'"):
            writer.copy("y", [b"1234"])


def test_bytes_that_are_too_many_do_not_reach_the_next_tensor(path):
    infos = [TensorInfo("a", "int8", (2,)), TensorInfo("b", "int8", (2,))]
    with writing(path, infos) as writer:
        writer.write("b", np.array([5, 6], np.int8))
        with pytest.raises(ValueError, match="with 2 bytes, not 4"):
            writer.copy("a", [b"\1", b"\2\3\4"])
        writer.copy("a", [b"\1\2"])
    with TensorFile(path) as file:
        assert file.read("a").tolist() == [1, 2]
        assert file.read("b").tolist() == [5, 6]


def test_rows_are_written_once(path):
    info = TensorInfo("x", "float32", (4, 2))
    with writing(path, [info]) as writer:
        writer.write("x", np.full((2, 2), 3.0), 2)
        for first, count in ((2, 2), (1, 2), (3, 1)):
            with pytest.raises(ValueError, match="written already"):
                writer.write("x", np.ones((count, 2)), first)
        with pytest.raises(ValueError, match="written already"):
            writer.copy("x", [bytes(32)])
        writer.write("x", np.ones((2, 2)))
    with TensorFile(path) as file:
        np.testing.assert_array_equal(file.read("x"), [[1, 1], [1, 1], [3, 3], [3, 3]])


@pytest.mark.parametrize("first", [np.int16(3900), np.uint16(3900)])
def test_the_first_row_may_be_an_integer_of_16_bits(path, first):
    rows = np.arange(12000).reshape(4000, 3)
    with writing(path, [TensorInfo("x", "int64", (4000, 3)), TensorInfo("y", "int64", ())]) as file:
        file.write("x", rows[3900:], first)
        file.write("x", rows[:3900])
        file.write("y", np.array(7))
        with pytest.raises(TypeError, match="integer"):
            file.write("x", rows[:1], 1.0)
    tensors, _ = io.load_state(path)
    np.testing.assert_equal(tensors, {"x": rows, "y": np.array(7)})


def test_a_byte_that_is_no_bool_is_true(path):
    raw(path, {"x": entry("BOOL", (3,), 0, 3)}, b"\x00\x01\x07")
    with TensorFile(path) as file:
        x = file.read("x")
    assert (x.dtype, x.view(np.uint8).tolist()) == (np.dtype(bool), [0, 1, 1])


@pytest.mark.parametrize("dtype", [*io.tensor_info.CODES])
def test_a_single_number_is_read_as_an_array(path, dtype):
    with writing(path, [TensorInfo("x", dtype, ())]) as writer:
        writer.write("x", np.array(1))
    x = io.load_state(path)[0]["x"]
    assert isinstance(x, np.ndarray)
    assert (x.shape, x.item(), x.flags.writeable) == ((), 1, True)


LIES = {
    "more than the file": (entry(end=12, shape=(3,)), 8),
    "less than the file": (entry(), 12),
    "shape and place": (entry(shape=(3,)), 8),
    "backwards": (entry(begin=8, end=0), 8),
    "a gap": (entry(begin=4, end=12), 12),
    "huge shape": (entry(shape=(2**62, 2**62)), 8),
    "negative shape": (entry(shape=(-2,)), 8),
    "negative place": (entry(begin=-8, end=0), 8),
    "unknown dtype": (entry(dtype="F31"), 8),
    "no shape": ({"dtype": "F32", "data_offsets": [0, 8]}, 8),
    "shape of words": (entry(shape=["2"]), 8),
    "no entry": (5, 8),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_an_error_that_names_the_file(path, lie):
    declared, size = LIES[lie]
    raw(path, {"x": declared}, bytes(size))
    with pytest.raises(ValueError, match=r"x\.safetensors' is not a complete safetensors file"):
        TensorFile(path)


def test_tensors_that_overlap_are_an_error(path):
    raw(path, {"x": entry(), "y": entry(begin=4, end=12)}, bytes(12))
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        TensorFile(path)


def test_a_name_that_is_there_twice_is_an_error(path):
    one = json.dumps(entry()).encode()
    raw(path, b'{"x":' + one + b',"x":' + one + b"}", bytes(8))
    with pytest.raises(ValueError, match="the same name twice"):
        TensorFile(path)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"nonsense", b'{"x":NaN}', b"[" * 5000, b'{"__metadata__":{"a":1}}', b"\xff{}"],
)
def test_a_header_that_is_none_is_an_error(path, text):
    raw(path, text, bytes(8))
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        TensorFile(path)


def test_a_pointer_of_git_lfs_is_named(path):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8\n")
    with pytest.raises(ValueError, match=r"x\.safetensors' is a pointer of Git LFS.* git lfs pull"):
        TensorFile(path)


@pytest.mark.parametrize("length", [2**63 - 1, 2**64 - 1, 2**40, 10**9])
def test_a_header_that_claims_to_be_huge_takes_no_memory(path, length):
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        TensorFile(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_file_that_shrinks_while_it_is_open_is_an_error(path):
    save_file({"x": np.ones(100_000)}, path)
    with TensorFile(path) as file:
        os.truncate(path, 1000)
        with pytest.raises(ValueError, match="ends inside of x"):
            file.read("x")


@pytest.mark.parametrize("has_preadv", [True, False])
def test_threads_may_read_from_one_file(has_preadv, path, monkeypatch):
    if not has_preadv:  # as on Windows
        monkeypatch.delattr(os, "preadv", raising=False)
    arrays = {f"x{i}": np.full((300, 300), i, np.float32) for i in range(30)}
    io.save_state(path, arrays)

    def is_right(name):
        as_bytes = arrays[name].tobytes()
        return b"".join(file.raw(name)) == file.read(name).tobytes() == as_bytes

    with TensorFile(path) as file, ThreadPoolExecutor(8) as threads:
        checks = [threads.submit(file.check) for _ in range(3)]
        assert all(threads.map(is_right, [*arrays] * 10))
        for each in checks:
            each.result()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX forks")
def test_forked_processes_may_read_from_one_file(path):
    arrays = {f"x{i}": np.full((300, 300), i, np.float32) for i in range(30)}
    io.save_state(path, arrays)
    script = f"""
    import os
    from minigrad.io import TensorFile
    with TensorFile({str(path)!r}) as file:
        child = os.fork()
        for i in [*range(30)] * 5:
            x = file.read(f"x{{i}}")
            assert (x == i).all()
            assert b"".join(file.raw(f"x{{i}}")) == x.tobytes()
    if child:
        assert os.waitpid(child, 0)[1] == 0
    """
    code = textwrap.dedent(script)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("has_room", [0, 1])
def test_too_many_open_files_are_an_error_that_says_so(has_room, path):
    io.save_state(path, {"x": np.ones(2)})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    TensorFile(path).close()  # imports what it needs
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        free = stack.enter_context(open(os.devnull, "rb"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (free.fileno() + 1, hard))
        if has_room:
            free.close()
        with pytest.raises(OSError, match="Too many open files") as found:
            TensorFile(path)
    assert found.value.errno == errno.EMFILE


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit what is mapped")
def test_a_file_that_cannot_be_mapped_is_an_error_that_names_the_limit(path):
    size = 1 << 36  # of a sparse file
    raw(path, {"x": entry("F32", (size >> 2,), 0, size)})
    os.truncate(path, path.stat().st_size + size)
    script = f"""
    import resource
    from minigrad.io import TensorFile
    resource.setrlimit(resource.RLIMIT_AS, ({size >> 1}, resource.RLIM_INFINITY))
    TensorFile({str(path)!r})
    """
    code = textwrap.dedent(script)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stderr.splitlines()[-1].startswith("MemoryError: ")
    assert f"{str(path)!r} cannot be mapped into memory" in ended.stderr
    assert "raise the limit of the address space (ulimit -v)" in ended.stderr


@pytest.mark.full
def test_reading_takes_the_memory_of_one_tensor(path):
    size = 1 << 22
    infos = [TensorInfo(f"x{i}", "float32", (size,)) for i in range(5)]
    with writing(path, infos) as writer:
        for info in infos:
            writer.write(info.name, np.zeros(size, np.float32))
    script = f"""
    import resource
    from minigrad.io import TensorFile
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with TensorFile({str(path)!r}) as file:
        for name in file:
            file.read(name)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    code = textwrap.dedent(script)
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 2.5 * size * 4 / 1024  # KiB: one that is read, and one before it


# ----------------------------------------------------------------------------------------------
# Fuzz
# ----------------------------------------------------------------------------------------------


def mutated(rng, content):
    """A file with some bytes changed, cut out or put in; more often where the header is."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        span = len(data) if rng.random() < 0.3 else min(len(data), 400)
        at = int(rng.integers(0, max(1, span)))
        kind = rng.integers(0, 5)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] = rng.integers(0, 256)
        elif kind == 1:
            del data[at : at + int(rng.integers(1, 20))]
        elif kind == 2:
            data[at:at] = bytes(rng.integers(0, 256, rng.integers(1, 20), dtype=np.uint8))
        elif kind == 3:
            del data[at:]
        elif data:
            digit = [i for i in range(span) if i < len(data) and 48 <= data[i] < 58]
            if digit:
                data[digit[rng.integers(len(digit))]] = rng.integers(48, 58)
    return bytes(data)


def fuzz(path, rounds, seed):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b.weight": np.ones(4, np.float16)}
    save_file(arrays, path, {"format": "pt", "facts": '{"a": 1}'})
    content, rng, refused = path.read_bytes(), np.random.default_rng(seed), 0
    for _ in range(rounds):
        path.write_bytes(mutated(rng, content))
        try:
            with TensorFile(path) as file:
                read = {name: file.read(name) for name in file if file.info(name).dtype in CODES}
        except ValueError:
            refused += 1
        else:
            assert sum(x.nbytes for x in read.values()) <= 2 * len(content)
    return refused


def test_mutated_files_are_read_or_refused(path):
    assert 700 < fuzz(path, 1000, 0) < 1000


@pytest.mark.full
def test_many_mutated_files_are_read_or_refused(path):
    assert 2_800 < fuzz(path, 4_000, 1) < 4_000


# ----------------------------------------------------------------------------------------------
# Writing
# ----------------------------------------------------------------------------------------------


def test_tensors_are_written_in_any_order_and_the_library_reads_them(path):
    x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(3, dtype=np.int8)
    infos = [TensorInfo("y", "int8", (3,)), TensorInfo("x", "float32", (2, 3))]
    with writing(path, infos, {"format": "pt"}) as writer:
        writer.write("x", x[1:], first_row=1)
        writer.write("y", y)
        writer.write("x", x[:1])
    loaded = load_file(path)
    assert np.array_equal(loaded["x"], x)
    assert np.array_equal(loaded["y"], y)
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata()["format"] == "pt"


def test_the_file_is_the_one_that_the_library_writes(path, tmp_path):
    arrays = {"b": np.ones(3), "a": np.ones((2, 2), np.float32), "c": np.array(True)}
    io.save_state(path, arrays, {"k": "v"})
    with safetensors.safe_open(path, framework="np") as file:  # the facts, and the checksum
        save_file(arrays, tmp_path / "other", file.metadata())
    with TensorFile(path) as ours, TensorFile(tmp_path / "other") as theirs:
        assert list(ours.tensors.items()) == list(theirs.tensors.items())
        assert path.stat().st_size == (tmp_path / "other").stat().st_size
        theirs.check()


def test_tensors_begin_where_their_numbers_are_aligned(path):
    io.save_state(path, {"a": np.ones(3, np.int8), "b": np.ones(1), "c": np.ones(5, np.float16)})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    assert length % 8 == 0
    assert [header[name]["data_offsets"][0] for name in "bca"] == [0, 8, 18]


HALVES = st.floats(width=64, allow_subnormal=True)


@hypothesis.given(st.lists(HALVES, min_size=1), st.sampled_from(["float32", "float64"]))
def test_rounding_to_bfloat16_is_that_of_the_certificate(numbers, dtype):
    with np.errstate(over="ignore"):
        x = np.array(numbers).astype(dtype)
    stored = from_stored(to_stored(x, "bfloat16"), "bfloat16")
    finite = np.isfinite(x)
    want = np.where(finite, round_to(np.where(finite, x, 0).astype(np.float64), "bfloat16"), x)
    assert np.array_equal(stored.astype(np.float64), want, equal_nan=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_to_bfloat16_is_to_nearest_and_of_two_to_even(dtype):
    x = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8], dtype)
    got = from_stored(to_stored(x, "bfloat16"), "bfloat16")
    assert got.tolist() == [1.0, 1 + 2**-6, 1 + 2**-7, -1.0]


def test_rounding_from_float64_to_bfloat16_rounds_once():
    # In float32 these would be ties, of which the first goes to 1 and the second to 1 + 2**-6.
    x = np.array([1 + 2**-8 + 2**-40, 1 + 3 * 2**-8 - 2**-40, -1 - 3 * 2**-8 + 2**-40])
    got = from_stored(to_stored(x, "bfloat16"), "bfloat16")
    assert got.tolist() == [1 + 2**-7, 1 + 2**-7, -1 - 2**-7]


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64"])
def test_rounding_from_integers_to_bfloat16_rounds_once(dtype):
    above, below = 2**30 + 2**22 + 1, 2**30 + 3 * 2**22 - 1  # ties in float32
    limits = np.iinfo(dtype)
    x = np.array([above, below, limits.max, limits.min], dtype)
    got = from_stored(to_stored(x, "bfloat16"), "bfloat16")
    assert got.tolist() == [2**30 + 2**23, 2**30 + 2**23, limits.max + 1, limits.min]


@pytest.mark.parametrize(
    ("dtype", "number"),
    [("uint8", 300.0), ("uint8", 1.9), ("int8", -129), ("bool", 2), ("int64", np.nan)],
)
def test_numbers_that_an_integer_cannot_store_are_refused(path, dtype, number):
    infos = [TensorInfo("x", dtype, (2,))]
    with pytest.raises(ValueError, match=f"x .* not {dtype}"), writing(path, infos) as writer:
        writer.write("x", np.array([1, number]))
    assert not path.exists()
    with writing(path, infos) as writer:
        writer.write("x", np.array([0.0, 1.0]))
    assert io.load_state(path)[0]["x"].tolist() == [0, 1]


def test_nan_stays_nan_in_bfloat16():
    x = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(from_stored(to_stored(x, "bfloat16"), "bfloat16")).all()


@pytest.mark.parametrize(
    ("names", "message"),
    [(["x", "x"], "repeated: x"), (["__metadata__"], "name of the metadata")],
)
def test_names_that_cannot_be_are_refused(path, names, message):
    infos = [TensorInfo(name, "int8", (1,)) for name in names]
    with pytest.raises(ValueError, match=message), writing(path, infos):
        pass
    assert not path.exists()


def test_what_was_not_announced_or_is_written_twice_is_refused(path):
    path.write_bytes(b"old")
    info = TensorInfo("x", "float32", (2, 2))
    for wrong, error, message in [
        (lambda w: w.write("y", np.ones(1)), KeyError, "no tensor 'y' was announced"),
        (lambda w: w.write("x", np.ones((2, 3))), ValueError, r"shape \(2, 2\)"),
        (lambda w: w.write("x", np.ones((2, 2)), first_row=1), ValueError, "from row 1"),
        (lambda w: [w.write("x", np.ones((2, 2))) for _ in "12"], ValueError, "already"),
        (lambda w: w.write("x", np.ones((1, 2))), ValueError, "not written: x"),
    ]:
        with pytest.raises(error, match=message), writing(path, [info]) as writer:
            wrong(writer)
    assert path.read_bytes() == b"old"
    with (
        pytest.raises(ValueError, match="complex64"),
        writing(path, [TensorInfo("x", "complex64", (1,))]),
    ):
        pass
    with pytest.raises(TypeError, match="metadata are strings"), writing(path, [info], {"a": 1}):
        pass


# ----------------------------------------------------------------------------------------------
# Shards
# ----------------------------------------------------------------------------------------------


def shards(folder, **changes):
    """Two files with an index."""
    save_file({"a": np.ones(2), "b": np.zeros(3)}, folder / "one.safetensors")
    save_file({"c": np.arange(4)}, folder / "two.safetensors")
    names = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors", **changes}
    content = {"metadata": {}, "weight_map": {k: v for k, v in names.items() if v}}
    (folder / INDEX).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("which", ["folder", "index"])
def test_shards_are_one_set_of_tensors(tmp_path, which):
    folder = shards(tmp_path)
    with open_tensors(folder if which == "folder" else folder / INDEX) as tensors:
        assert sorted(tensors) == ["a", "b", "c"]
        assert tensors.read("c").tolist() == [0, 1, 2, 3]
        assert tensors.info("b") == TensorInfo("b", "float64", (3,))
        assert list(tensors.files) == ["one.safetensors", "two.safetensors"]
        with pytest.raises(KeyError, match=rf"no tensor 'd' among the 3 of '{folder}'"):
            tensors.read("d")
        assert repr(tensors) == f"TensorSet('{folder}', 3 tensors)"
    (folder / INDEX).write_text('{"weight_map": {}}')
    assert not open_tensors(folder)


@pytest.mark.parametrize("which", ["file", "folder"])
def test_a_single_file_is_a_set_too(tmp_path, which):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones(2)}, path, {"format": "pt"})
    with open_tensors(path if which == "file" else tmp_path) as tensors:
        assert isinstance(tensors, TensorSet)
        assert (len(tensors), "a" in tensors, tensors.metadata) == (1, True, {"format": "pt"})


@pytest.mark.parametrize(
    "outside",
    [
        *("../two.safetensors", "/etc/passwd", "a/../two.safetensors", "sub/two.safetensors", ".."),
        *("..\\two.safetensors", "two.bin", "/two.safetensors"),
    ],
)
def test_an_index_that_leaves_its_folder_is_refused(tmp_path, outside):
    with pytest.raises(ValueError, match="does not name a safetensors file in its folder"):
        open_tensors(shards(tmp_path, c=outside))


def test_an_index_that_contradicts_its_files_is_refused_with_all_that_is_wrong(tmp_path):
    folder = shards(tmp_path, c="one.safetensors", b=None, d="two.safetensors")
    with pytest.raises(ValueError, match="contradict") as error:
        open_tensors(folder)
    for line in (
        "missing: c in one",
        "missing: d in two",
        "not in the index: b of one",
        "c of two",
    ):
        assert line in str(error.value)


def test_a_file_of_an_index_that_is_not_there_is_named(tmp_path):
    (shards(tmp_path) / "two.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"two\.safetensors"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "1", "[" * 100_000],
)
def test_an_index_that_is_none_is_refused(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(ValueError, match="index"):
        open_tensors(tmp_path)


def test_a_folder_with_no_model_or_two_is_refused(tmp_path):
    message = r"neither model\.safetensors nor .* such as pytorch_model\.bin, are not read"
    with pytest.raises(FileNotFoundError, match=message):
        open_tensors(tmp_path)
    (shards(tmp_path) / INDEX).rename(tmp_path / "elsewhere.json")
    with pytest.raises(FileNotFoundError, match=r"fetch the index, too, if .* are parts of one"):
        open_tensors(tmp_path)
    save_file({"a": np.ones(2)}, shards(tmp_path) / "model.safetensors")
    with pytest.raises(ValueError, match="name one of them"):
        open_tensors(tmp_path)


def test_shards_are_written_with_their_index(tmp_path):
    plan = {
        "a.safetensors": [TensorInfo("x", "bfloat16", (4, 2))],
        "b.safetensors": [TensorInfo("y", "float32", (3,)), TensorInfo("z", "int64", ())],
    }
    folder = tmp_path / "deep" / "out"
    with writing_set(folder, plan, {"format": "pt"}) as writers:
        writers["z"].write("z", np.array(7))
        for row in range(4):
            writers["x"].write("x", np.full((1, 2), row), row)
        writers["y"].write("y", np.ones(3))
    assert sorted(os.listdir(folder)) == ["a.safetensors", "b.safetensors", INDEX]
    with open_tensors(folder) as tensors:
        assert tensors.read("x").tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
        assert (tensors.read("z"), tensors.metadata) == (7, {"format": "pt"})
    assert json.loads((folder / INDEX).read_text())["metadata"] == {"total_size": 36}


def test_shards_that_are_not_complete_leave_nothing(tmp_path):
    plan = {"a.safetensors": [TensorInfo("x", "int8", (4,))]}
    with pytest.raises(ValueError, match="not written: x"), writing_set(tmp_path / "out", plan):
        pass
    assert os.listdir(tmp_path) == []
    with (
        pytest.raises(ValueError, match="in one file only"),
        writing_set(tmp_path / "out", {**plan, "b.safetensors": plan["a.safetensors"]}),
    ):
        pass
    with pytest.raises(ValueError, match="does not name"), writing_set(tmp_path, {"../a": []}):
        pass


@pytest.mark.parametrize(
    "name",
    [
        ".gitattributes", "../out.txt", "../../out.txt", "/out.txt", "a/../../b", "a//b", "a/",
        ".saved/x", "a/.b", "", ".", "a\\b", INDEX, "model.safetensors", "a.safetensors",
    ],
)  # fmt: skip
def test_other_files_stay_in_the_folder_and_take_no_name_of_weights(tmp_path, name):
    plan = {"a.safetensors": [TensorInfo("x", "int8", (1,))]}
    others = {"b/c": b"", name: b"1"}
    with (
        pytest.raises(ValueError, match=r"the name|cannot be a file"),
        writing_set(tmp_path / "out", plan, others=others),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_a_shard_is_no_hidden_file(tmp_path):
    plan = {".a.safetensors": [TensorInfo("x", "int8", (1,))]}
    with pytest.raises(ValueError, match="begins with a dot"), writing_set(tmp_path / "o", plan):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("turn", [1, -1])
def test_one_file_does_not_come_beside_an_index_nor_the_other_way_round(turn, tmp_path):
    first, second = ("model.safetensors", "a.safetensors")[::turn]

    def write(name):
        with writing_set(tmp_path, {name: [TensorInfo("x", "int8", (1,))]}) as writers:
            writers["x"].write("x", np.ones(1))

    write(first)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError, match=r"has model.safetensors.* in it, of other weights"):
        write(second)
    assert sorted(os.listdir(tmp_path)) == before
    write(first)


@pytest.mark.parametrize("value", [1 + 2j, "1.5", None])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_numbers_are_written(tmp_path, value, dtype):
    with (
        pytest.raises(TypeError, match=r"a has the dtype .*; only numbers can be written"),
        writing(tmp_path / "out.safetensors", [TensorInfo("a", dtype, (1,))]) as file,
    ):
        file.write("a", np.array([value]))
