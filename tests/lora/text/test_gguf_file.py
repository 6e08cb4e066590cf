"""Reading a GGUF file gives what the folder has from which it was made."""

import json
from contextlib import suppress

import gguf
import numpy as np
import pytest

from lora.text.architecture import CLASSES, config_from_json
from lora.text.architecture import read_config as read_folder
from lora.text.gguf_file import GGUFFile, GGUFTensors, config_json, read_config
from lora.text.loading import weights
from lora.text.tokenization import Tokenizer
from minigrad.io import open_tensors
from tests.lora.text.models import tiny_folder, tiny_gguf


def written(tmp_path, architecture="llama", *, options=None, **how):
    """A folder, and a file made of it."""
    made = tiny_folder(tmp_path / "m", architecture, **(options or {}))
    return made, GGUFFile(tiny_gguf(tmp_path / "m.gguf", made, **how))


@pytest.mark.parametrize("architecture", CLASSES)
def test_a_file_has_the_weights_of_its_folder(tmp_path, architecture):
    options = {"tie_word_embeddings": architecture != "qwen3"}
    if architecture == "llama":
        options |= {"attention_bias": True, "mlp_bias": True}
    if architecture == "smollm3":
        options |= {"no_rope_layer_interval": 4}  # as llama.cpp has it
    made, file = written(tmp_path, architecture, options=options)
    config = read_config(file)
    wanted = dict(weights(open_tensors(made), read_folder(made)))
    found = dict(weights(GGUFTensors(file), config))
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        assert np.array_equal(array, wanted[name]), name
    if architecture != "mistral":  # which is llama there
        assert config == read_folder(made)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_floats_are_read_as_they_are(tmp_path, dtype):
    made, file = written(tmp_path, options={"dtype": dtype})
    config = read_config(file)
    assert config.stored_dtype == dtype
    wanted = dict(weights(open_tensors(made), config))
    for name, array in weights(GGUFTensors(file), config):
        assert array.dtype == dtype
        assert np.array_equal(array, wanted[name])


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q5_0"])
def test_weights_of_few_bits_become_float32(tmp_path, kind):
    options = {"intermediate_size": 64}  # whole blocks
    made, file = written(tmp_path, options=options, quantised=kind)
    config = read_config(file)
    assert config.stored_dtype == "float32"
    bits = int(kind[1])
    wanted = dict(weights(open_tensors(made), config))
    for name, array in weights(GGUFTensors(file), config):
        assert array.dtype == np.float32
        size = np.abs(wanted[name]).max()
        assert np.abs(array - wanted[name]).max() < 2.2 * size / 2**bits


def test_rows_are_converted_some_at_a_time(tmp_path, monkeypatch):
    _, file = written(tmp_path, options={"intermediate_size": 64}, quantised="Q8_0")
    whole = dict(weights(GGUFTensors(file), read_config(file)))
    monkeypatch.setattr("lora.frozen.STRIP", 100)
    for name, array in weights(GGUFTensors(file), read_config(file)):
        assert np.array_equal(array, whole[name])


@pytest.mark.parametrize("rows", [slice(5, 9), slice(3, 3), slice(3, 1), slice(-2, None)])
def test_rows_are_read_alone(tmp_path, rows):
    _, file = written(tmp_path)
    tensors = GGUFTensors(file)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.norm.weight"):
        assert np.array_equal(tensors.read(name, rows=rows), tensors.read(name)[rows])
        with pytest.raises(ValueError, match="rows are read without steps, not as slice"):
            tensors.read(name, rows=slice(0, 6, 2))
    with pytest.raises(ValueError, match="rows are read without steps, not as slice"):
        file.read("output_norm.weight", slice(None, None, -1))


def test_the_configuration_can_be_written_as_json(tmp_path):
    _, file = written(tmp_path, "qwen2")
    found = json.loads(json.dumps(config_json(file)))
    assert found["architectures"] == ["Qwen2ForCausalLM"]
    assert config_from_json(found) == read_config(file)


def test_llama3_scaling_is_found_in_its_factors(tmp_path):
    theta, d, factor = 500000.0, 8, 8.0
    frequencies = theta ** (-np.arange(0, d, 2) / d)
    waves, factors = 2 * np.pi / frequencies, []
    for wave in waves:  # as transformers' code says it, one at a time
        if wave < 8192 / 4:
            factors.append(1.0)
        elif wave > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wave - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    _, file = written(tmp_path, options={"rope_theta": theta}, rope_factors=factors)
    scaling = read_config(file).rope_scaling
    assert scaling["rope_type"] == "llama3"
    assert scaling["factor"] == factor
    assert scaling["original_max_position_embeddings"] == 8192
    file.metadata["llama.rope.scaling.factor"] = 2.0
    with pytest.raises(ValueError, match=r"rope_freqs.weight beside linear scaling"):
        read_config(file)
    _, file = written(tmp_path / "other", options={"rope_theta": theta}, rope_factors=[1, 2, 3, 8])
    with pytest.raises(ValueError, match=r"rope_freqs.weight"):
        read_config(file)


def test_linear_scaling_and_a_window(tmp_path):
    more = {
        "llama__rope__scaling__type": ("linear", gguf.GGUFValueType.STRING),
        "llama__rope__scaling__factor": (4.0, gguf.GGUFValueType.FLOAT32),
        "llama__attention__sliding_window": (64, gguf.GGUFValueType.UINT32),
    }
    _, file = written(tmp_path, **more)
    config = read_config(file)
    assert config.rope_scaling == {"rope_type": "linear", "factor": 4.0}
    assert (config.architecture, config.sliding_window) == ("mistral", 64)


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        ({"rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scale_linear": 4.0}, 4.0),
        ({"rope.scaling.factor": 2.0, "rope.scale_linear": 4.0}, 2.0),
        ({"rope.scaling.factor": 4.0, "rope.scaling.type": "none"}, None),
        ({"rope.scaling.factor": 0.0}, None),
        ({"rope.scaling.type": "linear"}, None),
    ],
)
def test_scaling_without_a_type_is_linear_as_in_llama_cpp(tmp_path, keys, factor):
    _, file = written(tmp_path)
    file.metadata |= {f"llama.{key}": value for key, value in keys.items()}
    scaling = read_config(file).rope_scaling
    assert scaling == (factor and {"rope_type": "linear", "factor": factor})


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("attention__causal", False, "BOOL"),
        ("use_parallel_residual", True, "BOOL"),
        ("rope__scaling__type", "yarn", "STRING"),
        ("expert_count", 8, "UINT32"),
        ("rope__scaling__attn_factor", 1.5, "FLOAT32"),
        ("logit_scale", 0.5, "FLOAT32"),
        ("rope__dimension_count", 4, "UINT32"),
    ],
)
def test_metadata_that_are_not_supported_are_named(tmp_path, key, value, kind):
    _, file = written(tmp_path, **{f"llama__{key}": (value, gguf.GGUFValueType[kind])})
    with pytest.raises(ValueError, match=key.replace("__", ".")):
        read_config(file)


def test_another_architecture_is_named(tmp_path):
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "gemma2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"'gemma2' .* is not supported"):
        read_config(GGUFFile(path))


def test_a_type_that_cannot_be_converted_is_named(tmp_path):
    made = tiny_folder(tmp_path / "m")
    path = tiny_gguf(tmp_path / "m.gguf", made)
    content = bytearray(path.read_bytes())
    # The type is the number after the sizes of a tensor, which follow its name.
    at = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    assert content[at] == 0
    content[at] = 24  # eight-bit integers
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"output_norm.weight has type I8"):
        GGUFFile(path)
    content[at] = 250
    path.write_bytes(content)
    accepted = "take a file of F32, F16, Q4_0, "
    with pytest.raises(ValueError, match=rf"output_norm.weight has type 250, which .*; {accepted}"):
        GGUFFile(path)


@pytest.mark.parametrize("kind", [13, 9, 2**31])  # 9 is an array, here of arrays
def test_metadata_of_an_unknown_type_are_named(kind, tmp_path):
    path = tiny_gguf(tmp_path / "m.gguf", tiny_folder(tmp_path / "m"))
    content = bytearray(path.read_bytes())
    for key, skipped in ((b"llama.block_count", 0), (b"tokenizer.ggml.tokens", 4)):
        broken, at = bytearray(content), content.index(key) + len(key) + skipped
        broken[at : at + 4] = kind.to_bytes(4, "little")
        path.write_bytes(broken)
        if kind != 9 or skipped:
            with pytest.raises(ValueError, match=rf"{key.decode()} has a value of type {kind}, "):
                GGUFFile(path)


@pytest.mark.parametrize("change", [-32, 32, 8, 2**40])
def test_a_tensor_in_a_wrong_place_is_named(change, tmp_path):
    path = tiny_gguf(tmp_path / "m.gguf", tiny_folder(tmp_path / "m"))
    content = bytearray(path.read_bytes())
    # The offset is the last number of a tensor, after its name, its two sizes and its type.
    name = b"blk.1.attn_q.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8 + 4
    offset = int.from_bytes(content[at : at + 8], "little") + change
    content[at : at + 8] = offset.to_bytes(8, "little")
    path.write_bytes(content)
    message = r"blk\.1\.attn_\w+\.weight begins at a wrong offset"
    if change == 2**40:
        message = r"it ends inside of blk\.1\.attn_q"
    with pytest.raises(ValueError, match=message):
        GGUFFile(path)


def test_a_file_that_is_cut_short_or_no_gguf_file_is_refused(tmp_path):
    made = tiny_folder(tmp_path / "m")
    path = tiny_gguf(tmp_path / "m.gguf", made)
    content = path.read_bytes()
    for length in (len(content) - 100, 3000, 100, 20, 10, 3, 0):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"fetch it again|not GGUF"):
            GGUFFile(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8\n")
    with pytest.raises(ValueError, match=r"m\.gguf' is a pointer of Git LFS"):
        GGUFFile(path)
    path.write_bytes(b"GGML" + content[4:])
    with pytest.raises(
        ValueError, match="not GGUF 2 or 3; a base is a GGUF file, or a Hugging Face"
    ):
        GGUFFile(path)
    with pytest.raises(FileNotFoundError):
        GGUFFile(tmp_path / "none.gguf")


def test_broken_headers_end_with_an_error_soon(tmp_path):
    made = tiny_folder(tmp_path / "m")
    path = tiny_gguf(tmp_path / "m.gguf", made)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(content)
        at = int(rng.integers(4, 9000))
        broken[at : at + 4] = rng.integers(0, 256, 4, np.uint8).tobytes()
        path.write_bytes(broken)
        try:
            file = GGUFFile(path)
            dict(weights(GGUFTensors(file), read_config(file)))
        except ValueError:
            pass


def test_tensors_that_contradict_the_metadata_are_named(tmp_path):
    _, file = written(tmp_path)
    config = read_config(file)
    file.tensors["blk.7.attn_q.weight"] = file.tensors.pop("blk.1.attn_q.weight")
    with pytest.raises(ValueError, match=r"missing: model.layers.1.self_attn.q_proj.weight"):
        next(weights(GGUFTensors(file), config))


@pytest.mark.parametrize(
    "junk", [None, -1, 0, 2**70, "x", [], ["x"], [1, 2], 0.5, float("nan"), True]
)
def test_metadata_of_any_kind_are_read_or_refused(tmp_path, junk):
    _, file = written(tmp_path)
    metadata = dict(file.metadata)
    for key in [*metadata, "llama.rope.scaling.type", "llama.attention.sliding_window"]:
        file.metadata = {**metadata, key: junk}
        for read in (lambda: read_config(file), lambda: Tokenizer.from_gguf(file.metadata)):
            with suppress(ValueError):
                read()


def test_a_part_of_a_model_is_refused(tmp_path):
    _, file = written(tmp_path)
    file.metadata["split.count"] = 3
    with pytest.raises(ValueError, match="llama-gguf-split"):
        read_config(file)


def test_llama3_factors_of_another_number_of_frequencies_are_refused(tmp_path):
    _, file = written(tmp_path, rope_factors=[1.0, 8.0])
    with pytest.raises(ValueError, match=r"rope_freqs.weight"):
        read_config(file)
