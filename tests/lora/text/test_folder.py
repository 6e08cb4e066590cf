"""Reading a Hugging Face folder: dtypes, shards, and files that are wrong."""

import json

import ml_dtypes
import numpy as np
import pytest

from lora.text.architecture import CLASSES, config_from_json, json_table, read_config
from lora.text.loading import weights
from minigrad.io import load_state, open_tensors, save_state
from tests.lora.text.models import config_of, tiny_folder, weights_of

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def configure(folder, **options):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))


def edit(folder, change):
    """Change the dict of a folder's tensors."""
    arrays, metadata = load_state(folder / "model.safetensors")
    change(arrays)
    save_state(folder / "model.safetensors", arrays, metadata)


def read(folder):
    return dict(weights(open_tensors(folder), read_config(folder)))


@pytest.mark.parametrize("architecture", CLASSES)
def test_all_weights_are_read(tmp_path, architecture):
    folder = tiny_folder(tmp_path / "m", architecture)
    wanted = weights_of(config_from_json(config_of(architecture)))
    found = read(folder)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", [1, 3])
def test_weights_have_the_dtype_of_the_file(tmp_path, monkeypatch, dtype, shards):
    monkeypatch.setattr("minigrad.io.tensor_file.PART", 100)  # bytes that are read at a time
    folder = tiny_folder(tmp_path / "m", dtype=dtype, shards=shards)
    configure(folder, dtype="float64")  # the files know better
    assert read_config(folder).stored_dtype == dtype
    wanted = weights_of(config_from_json(config_of()))
    for name, array in read(folder).items():
        assert array.dtype == DTYPES[dtype]
        assert np.array_equal(array, wanted[name].astype(DTYPES[dtype]))


def test_float8_becomes_bfloat16(tmp_path):
    from safetensors.numpy import save_file

    folder = tiny_folder(tmp_path / "m")
    arrays = {k: x.astype(ml_dtypes.float8_e4m3fn) for k, x in read(folder).items()}
    arrays["model.norm.weight"][:] = 448  # the largest value
    save_file(arrays, folder / "model.safetensors")
    assert read_config(folder).stored_dtype == "bfloat16"
    for name, array in read(folder).items():
        assert array.dtype == ml_dtypes.bfloat16
        assert np.array_equal(array.astype(np.float32), arrays[name].astype(np.float32))


def test_a_tied_head_may_be_in_the_file_if_it_is_the_embedding(tmp_path):
    folder = tiny_folder(tmp_path / "m", tie_word_embeddings=True)
    edit(folder, lambda x: x.update({"lm_head.weight": x["model.embed_tokens.weight"].copy()}))
    assert "lm_head.weight" not in read(folder)
    edit(folder, lambda x: x.update({"lm_head.weight": x["lm_head.weight"] + 1}))
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        read(folder)


def test_frequencies_in_old_files_are_skipped(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(folder, lambda x: x.update({name: np.ones(4, np.float32)}))
    assert name not in read(folder)


def test_a_configuration_that_lies_about_shapes_is_refused_before_the_first_weight(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    configure(folder, intermediate_size=47)
    with pytest.raises(ValueError, match=r"mis-shaped: model.layers.0.mlp.gate_proj.weight is"):
        next(weights(open_tensors(folder), read_config(folder)))
    configure(folder, intermediate_size=48, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"missing: model.layers.2.self_attn.q_proj.weight"):
        next(weights(open_tensors(folder), read_config(folder)))
    configure(folder, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"unexpected: model.layers.1.self_attn.q_proj.weight"):
        next(weights(open_tensors(folder), read_config(folder)))


def test_weights_that_are_no_floats_are_refused(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    edit(folder, lambda x: x.update({"model.norm.weight": np.ones(32, np.int8)}))
    with pytest.raises(ValueError, match=r"model.norm.weight of .* has dtype int8"):
        read(folder)


def test_truncated_and_missing_shards_are_refused(tmp_path):
    folder = tiny_folder(tmp_path / "m", shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        read_config(folder)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="model-00002"):
        read_config(folder)


def test_an_index_cannot_name_a_file_outside_of_the_folder(tmp_path):
    folder = tiny_folder(tmp_path / "m", shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))
    with pytest.raises(ValueError, match="does not name a safetensors file in its folder"):
        read_config(folder)


def test_files_that_are_not_there_or_no_json(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config.json"):
        read_config(tmp_path)
    folder = tiny_folder(tmp_path / "m")
    assert json_table(folder, "generation_config.json") is None
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert read_config(folder).eos_token_ids == (1, 2)
    for content in ("{", "[1]", "[" * 100_000, '{"a": 1, "a": 2}'):
        (folder / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config.json"):
            read_config(folder)
