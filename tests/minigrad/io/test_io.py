"""State files: what goes in comes out, and a file is there whole or not at all."""

import errno
import os
import stat
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

from minigrad import nn
from minigrad.io import TensorWriter, load_state, replacing_together, save_state, write_atomically
from minigrad.io.atomic import replacing
from tests.minigrad.io.full_disk import full_disk

DTYPES = [
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.safetensors"


def same(x, y):
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


# ----------------------------------------------------------------------------------------------
# There and back
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_keep_dtype_shape_and_bits(path, dtype):
    arrays = {"x": np.arange(24).reshape(2, 3, 4).astype(dtype), "b.0": np.ones(1, dtype)}
    save_state(path, arrays)
    loaded, metadata = load_state(path)
    assert set(loaded) == {"x", "b.0"}
    assert all(same(loaded[name], arrays[name]) for name in arrays)
    assert metadata == {}


@hypothesis.given(
    hnp.arrays(
        hnp.floating_dtypes(sizes=(32, 64)), hnp.array_shapes(min_dims=0, min_side=0, max_side=4)
    )
)
@hypothesis.settings(max_examples=40)
def test_any_floats_come_back_to_the_bit(tmp_path_factory, array):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_state(path, {"x": array})
    native = array.astype(array.dtype.newbyteorder("="))
    assert same(load_state(path)[0]["x"], native)


def test_zero_d_arrays_keep_their_shape(path):
    save_state(path, {"x": np.array(3.5), "scalar": np.float32(2)})
    loaded, _ = load_state(path)
    assert loaded["x"].shape == loaded["scalar"].shape == ()
    assert (loaded["x"], loaded["scalar"]) == (3.5, 2)


def test_empty_arrays_keep_their_shape(path):
    save_state(path, {"x": np.zeros((0, 3)), "y": np.zeros((2, 0), np.float32)})
    loaded, _ = load_state(path)
    assert (loaded["x"].shape, loaded["y"].shape) == ((0, 3), (2, 0))


def test_arrays_that_are_not_contiguous_keep_their_elements(path):
    x = np.arange(24.0).reshape(4, 6)
    views = {"turned": x.T, "strided": x[::2, 1::3], "reversed": x[:, ::-1], "row": x[None, 1]}
    save_state(path, views)
    loaded, _ = load_state(path)
    assert all(np.array_equal(loaded[name], view) for name, view in views.items())


def test_special_values_keep_their_bits(path):
    x = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 5e-324])
    save_state(path, {"x": x})
    assert same(load_state(path)[0]["x"], x)


def test_a_file_without_arrays_may_hold_facts(path):
    facts = {"name": "ünïcode ✓", "lines": "1\n2", "empty": ""}
    save_state(path, {}, facts)
    assert load_state(path) == ({}, facts)


def test_what_is_loaded_is_writable_and_does_not_lead_back_to_the_file(path):
    save_state(path, {"x": np.zeros(3)})
    loaded, _ = load_state(path)
    loaded["x"][...] = 1
    assert (load_state(path)[0]["x"] == 0).all()


def test_paths_may_be_strings(path):
    save_state(str(path), {"x": np.ones(2)})
    assert load_state(str(path))[0]["x"].tolist() == [1, 1]


def test_the_format_is_safetensors(path):
    save_state(path, {"x": np.arange(3)})
    assert load_file(path)["x"].tolist() == [0, 1, 2]


# ----------------------------------------------------------------------------------------------
# Files that are none
# ----------------------------------------------------------------------------------------------


def test_a_missing_file_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"state\.safetensors"):
        load_state(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        load_state(path.parent)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 60, 200, -1])
def test_a_file_that_is_cut_short_is_an_error_that_names_it(path, length):
    save_state(path, {"x": np.arange(100.0), "y": np.arange(3)}, {"a": "b"})
    content = path.read_bytes()
    path.write_bytes(content[:length])
    with pytest.raises(ValueError, match=r"state\.safetensors.* is not a complete safetensors"):
        load_state(path)


@pytest.mark.parametrize("content", [b"text\n" * 50, b"PK\x03\x04" + bytes(100), b"\x80\x04K\x01."])
def test_a_file_of_another_kind_is_an_error_that_names_it(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"state\.safetensors.* is not a complete safetensors"):
        load_state(path)


# ----------------------------------------------------------------------------------------------
# Whole or not at all
# ----------------------------------------------------------------------------------------------


def break_call(name):
    def fail(*args, **options):
        raise OSError("no space left")

    return lambda monkeypatch: monkeypatch.setattr(os, name, fail)


def break_write(monkeypatch):
    def fail(writer, name, array):
        raise OSError("no space left")

    monkeypatch.setattr(TensorWriter, "write", fail)


@pytest.mark.parametrize("there", [True, False], ids=["old file", "no file"])
@pytest.mark.parametrize(
    "spoil",
    [break_write, *(break_call(name) for name in ("fsync", "replace"))],
    ids=["write", "fsync", "replace"],
)
def test_a_save_that_fails_leaves_everything_as_it_was(path, monkeypatch, spoil, there):
    if there:
        save_state(path, {"x": np.ones(3)})
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    with monkeypatch.context() as patch:
        spoil(patch)
        with pytest.raises(OSError, match="no space left"):
            save_state(path, {"x": np.zeros(1000)})
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_is_an_error_that_names_the_file(path, monkeypatch, number):
    def fail(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=f"{os.strerror(number)}: '{path}'"):
        save_state(path, {"x": np.ones(3)})
    folder = path.parent / "folder"
    names_it = pytest.raises(OSError, match=rf"{os.strerror(number)}: '{folder}'")
    with names_it, replacing_together(folder, "entry") as stage:
        (stage / "entry").write_text("")
    with pytest.raises(OSError, match=r"Input/output error$"), replacing(path):  # of another file
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("size", [100, 100_000])  # in the buffer of the file, and beyond
def test_a_write_that_fails_names_the_file(path, size):
    with full_disk(50), pytest.raises(OSError, match=rf"File too large: '{path}'"):
        write_atomically(path, bytes(size))
    assert list(path.parent.iterdir()) == []


def test_an_interrupt_leaves_no_file_behind(path, monkeypatch):
    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"content")
    assert list(path.parent.iterdir()) == []


def test_the_bytes_are_on_disk_before_the_file_is_replaced(path, monkeypatch):
    calls = []
    sync, replace = os.fsync, os.replace

    def spy_sync(handle):
        if stat.S_ISREG(os.fstat(handle).st_mode):
            calls.append(("fsync", os.fstat(handle).st_size))
        sync(handle)

    def spy_replace(source, target):
        calls.append(("replace", Path(source).parent == Path(target).parent))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_sync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_atomically(path, b"12345")
    assert calls == [("fsync", 5), ("replace", True)]


@pytest.mark.parametrize("values", [["text"], [None], [1j]])
def test_arrays_that_are_not_of_numbers_are_an_error_that_names_them(path, values):
    save_state(path, {"x": np.ones(3)})
    with pytest.raises((TypeError, ValueError), match="wrong"):
        save_state(path, {"fine": np.ones(1), "wrong": np.array(values)})
    assert load_state(path)[0]["x"].tolist() == [1, 1, 1]


def test_a_folder_that_is_not_there_is_an_error(path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere'; make it first"):
        save_state(path.parent / "nowhere" / "x.safetensors", {"x": np.ones(1)})
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        save_state(path.parent, {"x": np.ones(1)})
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", [1, None, True, ("a", 1), b"x"])
def test_names_that_are_not_strings_are_refused(path, name):
    for arrays, metadata in [({name: np.ones(1), "1": np.ones(1)}, None), ({}, {name: "x"})]:
        with pytest.raises(TypeError, match=r"are strings, not "):
            save_state(path, arrays, metadata)
    assert not path.exists()


def test_metadata_that_are_no_dict_are_refused(path):
    with pytest.raises(TypeError, match="the metadata are a dict of texts, not 3"):
        save_state(path, {"x": np.ones(1)}, 3)
    assert not path.exists()


def test_names_that_utf8_cannot_encode_are_refused(path):
    for arrays, metadata in [({"\ud800": np.ones(1)}, None), ({}, {"a": "\udfff"})]:
        with pytest.raises(ValueError, match="surrogates not allowed"):
            save_state(path, arrays, metadata)
    save_state(path, {"ü€😀\n\0": np.ones(1)}, {"": "ü"})
    assert list(load_state(path)[0]) == ["ü€😀\n\0"]


@pytest.mark.full
def test_metadata_that_no_reader_would_accept_are_refused_and_the_older_file_stays(path):
    save_state(path, {"x": np.ones(2)})
    with pytest.raises(ValueError, match=r"take 100,000,\d+ bytes.* more than 100,000,000"):
        save_state(path, {"x": np.ones(3)}, {"records": "1" * 100_000_000})
    assert load_state(path)[0]["x"].shape == (2,)


def test_saving_replaces_an_older_file(path):
    save_state(path, {"x": np.ones(100)})
    save_state(path, {"y": np.zeros(1)})
    assert set(load_state(path)[0]) == {"y"}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="permissions are a matter of POSIX")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_follow_the_umask(path, mask, mode):
    before = os.umask(mask)
    try:
        save_state(path, {"x": np.ones(1)})
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(os.name != "posix", reason="permissions are a matter of POSIX")
def test_a_private_file_stays_private_from_the_first_byte_on(path):
    save_state(path, {"x": np.ones(1)})
    path.chmod(0o600)
    with replacing(path) as file:
        assert stat.S_IMODE(os.stat(file.name).st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_that_cannot_be_written_to_is_named(path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda folder, mode: folder != path.parent)
    with pytest.raises(PermissionError, match=f"into the folder {str(path.parent)!r}, which is"):
        save_state(path, {"x": np.ones(1)})


@pytest.mark.parametrize("name", ["a" * 238, "a" * 255, "é" * 127, "漢" * 85])
def test_the_longest_names_that_a_folder_can_have_are_written(path, name):
    for value in (1, 2):
        save_state(path.with_name(name), {"x": np.full(1, value)})
    assert load_state(path.with_name(name))[0]["x"] == 2
    assert os.listdir(path.parent) == [name]


@pytest.mark.skipif(os.name != "posix", reason="links are a matter of POSIX")
def test_a_pipe_is_not_replaced(path):
    os.mkfifo(path)
    with pytest.raises(FileExistsError, match="a pipe, a socket or a device"):
        save_state(path, {"x": np.ones(1)})
    assert stat.S_ISFIFO(os.lstat(path).st_mode)


def test_a_link_to_no_file_leads_to_the_new_one(path):
    path.symlink_to(path.with_name("other"))
    save_state(path, {"x": np.ones(1)})
    assert path.is_symlink()
    assert path.with_name("other").is_file()


def test_a_link_stays_a_link(path):
    real = path.with_name("real.safetensors")
    save_state(real, {"x": np.zeros(1)})
    path.symlink_to(real)
    save_state(path, {"x": np.ones(1)})
    assert path.is_symlink()
    assert load_state(real)[0]["x"] == 1


def test_parameters_are_saved_as_their_values(path):
    model = nn.Linear(2, 3)
    save_state(path, dict(model.named_parameters()))
    loaded, _ = load_state(path)
    assert all(np.array_equal(loaded[name], x) for name, x in model.state_dict().items())


def test_states_in_a_dict_of_dicts_are_saved_elsewhere(tmp_path):
    model = nn.Linear(2, 3)
    states = {"model": model.state_dict(), "optimizer": {"state": {}}, "epoch": 3}
    with pytest.raises(TypeError, match=r"model is a dict, .* a name of its own, .* Trainer"):
        save_state(tmp_path / "all", states)
    assert not (tmp_path / "all").exists()


def test_arrays_with_a_mask_and_lists_of_arrays_are_refused_by_name(path):
    with pytest.raises(TypeError, match=r"^save_state: a has a mask, which a file .*filled"):
        save_state(path, {"a": np.ma.array([1.0, 2.0], mask=[False, True])})
    with pytest.raises(TypeError, match="exp_avg is a list, and a file has one dict of arrays"):
        save_state(path, {"exp_avg": [np.zeros(2), np.zeros(3)]})
    assert not path.exists()
