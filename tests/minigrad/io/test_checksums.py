"""The checksums of the tensors and of the header in a file: checked on load, absent elsewhere."""

import hashlib
import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from minigrad import nn
from minigrad.io import TensorFile, TensorInfo, load_state, save_state, writing

KEY = "minigrad.sha256"
OF_HEADER = "minigrad.header.sha256"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.safetensors"


def parts(path):
    """The header and the bytes of the tensors."""
    content = path.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:data]), content[data:]


def test_the_checksum_is_that_of_the_bytes_of_all_tensors(path):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 5)), rng.integers(0, 9, 7)
    infos = [TensorInfo("x", "bfloat16", x.shape), TensorInfo("y", "int64", y.shape)]
    with writing(path, infos, {"format": "pt", KEY: "that of another file"}) as writer:
        for first in (4, 0, 2):  # in any order
            writer.write("x", x[first : first + 2], first)
        writer.write("y", y)
    header, data = parts(path)
    del header["__metadata__"][OF_HEADER]
    assert header["__metadata__"] == {KEY: hashlib.sha256(data).hexdigest(), "format": "pt"}
    with TensorFile(path) as file:
        assert file.has_checksum
        assert file.metadata == {"format": "pt"}
        file.check()


def test_a_file_without_tensors_has_one_too(path):
    save_state(path, {})
    assert parts(path)[0]["__metadata__"][KEY] == hashlib.sha256().hexdigest()
    assert load_state(path) == ({}, {})


def test_every_flipped_bit_is_found(path):
    save_state(path, {"x": np.arange(8.0), "y": np.ones(3, np.uint8)}, {"a": "b"})
    content = path.read_bytes()
    data = len(content) - len(parts(path)[1])
    for position in range(data, len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(ValueError, match=r"x\.safetensors.* is damaged, or .*sha256"):
                load_state(path)
    path.write_bytes(content)
    assert load_state(path)[0]["x"].tolist() == list(range(8))


def rewrite(path, change):
    """Write a file again with a changed header, as another program does."""
    header, data = parts(path)
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_every_changed_byte_of_a_fact_in_the_header_is_found(path):
    save_state(path, {"weight": np.ones((2, 3), np.float32)}, {"lr": '{"seed": 123, "lr": 0.001}'})
    content = path.read_bytes()
    last = content.rindex(b"}", 0, len(content) - len(parts(path)[1]))
    for position in range(content.index(OF_HEADER.encode()) + len(OF_HEADER), last + 1):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"x\.safetensors"):
            load_state(path)


def test_a_change_of_the_header_is_named_with_what_to_do(path):
    save_state(path, {"x": np.ones(3)}, {"scale": "2.0"})
    rewrite(path, lambda header: header["__metadata__"].update(scale="3.0"))
    with pytest.raises(ValueError, match=r"metadata.*take 'minigrad\.header\.sha256' out"):
        load_state(path)
    rewrite(path, lambda header: header["__metadata__"].pop(OF_HEADER))
    assert load_state(path)[1] == {"scale": "3.0"}


def test_files_of_older_versions_have_a_checksum_of_the_tensors_only(path):
    save_state(path, {"x": np.ones(3)}, {"a": "b"})
    rewrite(path, lambda header: header["__metadata__"].pop(OF_HEADER))
    with TensorFile(path) as file:
        assert file.has_checksum
        file.check()
    assert load_state(path)[1] == {"a": "b"}


def test_another_order_of_the_header_is_no_change(path):
    save_state(path, {"x": np.ones(3), "y": np.ones(2, np.float32)}, {"a": "ü 𝄞", "b": ""})
    arrays, metadata = load_state(path)
    with safe_open(path, framework="np") as file:
        save_file(arrays, path, dict(reversed(file.metadata().items())))
    assert OF_HEADER in parts(path)[0]["__metadata__"]
    assert load_state(path)[1] == metadata


def test_files_of_others_have_none_and_are_read(path):
    save_file({"x": np.ones(3)}, path, {"format": "pt"})
    with TensorFile(path) as file:
        assert not file.has_checksum
        file.check()
    assert load_state(path)[0]["x"].tolist() == [1, 1, 1]


def test_what_is_no_dict_of_arrays_is_refused(path):
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"such as model\.state_dict\(\), not Linear"):
        save_state(path, model)
    save_state(path, model.state_dict())
    with pytest.raises(TypeError, match=r"not a tuple; load_state returns \(state, metadata\)"):
        model.load_state_dict(load_state(path))


def test_others_read_files_with_one(path):
    save_state(path, {"x": np.arange(3)})
    assert load_file(path)["x"].tolist() == [0, 1, 2]


def test_a_checksum_of_the_header_counts_without_that_of_the_tensors(path):
    save_state(path, {"x": np.ones(3)}, {"a": "b"})
    path.write_bytes(path.read_bytes().replace(KEY.encode(), b"minigrad.shb256"))
    with pytest.raises(ValueError, match="is damaged, or another program has changed it"):
        load_state(path)
