"""Adapters from PEFT's folders to GGUF files, and back."""

import gguf
import numpy as np
import pytest

import lora
from lora.__main__ import main
from lora.offline import convert_adapter
from lora.peft.folder import AdapterFolder
from lora.text.architecture import CLASSES, config_from_json, expected_shapes
from lora.text.architecture import read_config as read_folder
from lora.text.gguf_file import GGUFFile
from lora.text.loading import load_model
from minigrad.io import load_state
from tests.lora.folders import configure, edit
from tests.lora.text.models import (
    PROJECTIONS,
    config_of,
    gguf_name,
    tiny_adapter,
    tiny_folder,
    tiny_gguf,
)
from tests.minigrad.io.full_disk import full_disk

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def base(tmp_path):
    return tiny_folder(tmp_path / "m")


def round_trip(adapter, base, tmp_path):
    to = convert_adapter(adapter, tmp_path / "a.gguf", base)
    convert_adapter(tmp_path / "a.gguf", tmp_path / "back", base)
    return to, load_state(tmp_path / "back" / WEIGHTS)[0]


def updates(path):
    """s B A of each layer in float64."""
    with AdapterFolder(path) as files:
        return {
            name: layer.scale
            * (
                files.read(layer.keys["lora_b"], np.float64)
                @ files.read(layer.keys["lora_a"], np.float64)
            )
            for name, layer in files.layers.items()
        }


def assert_same_updates(found, wanted, tolerance):
    found, wanted = updates(found), updates(wanted)
    assert found.keys() == wanted.keys()
    for name, update in wanted.items():
        np.testing.assert_allclose(found[name], update, atol=tolerance * abs(update).max())


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [*((name, "float32") for name in CLASSES), ("llama", "float16"), ("llama", "bfloat16")],
)
def test_a_round_trip_is_equal_to_the_bit(architecture, dtype, tmp_path):
    base = tiny_folder(tmp_path / "m", architecture)
    model = load_model(base)
    lora.load(model, tiny_adapter(tmp_path / "a", base))
    lora.save(model, tmp_path / "adapter", dtype=dtype)
    made, back = round_trip(tmp_path / "adapter", base, tmp_path)
    assert (made.alpha, len(made.layers), made.multiplied) == (8, 7 * len(model.model.layers), {})
    wanted = load_state(tmp_path / "adapter" / WEIGHTS)[0]
    assert back.keys() == wanted.keys()
    for key, array in wanted.items():
        assert back[key].tobytes() == array.tobytes()
    with AdapterFolder(tmp_path / "back") as files:
        assert {info.dtype for info in files.tensors.values()} == {dtype}
        assert files.config.task_type == "CAUSAL_LM"
    lora.load(load_model(base), tmp_path / "back")
    assert_same_updates(tmp_path / "back", tmp_path / "adapter", 0)


@pytest.mark.parametrize("architecture", CLASSES)
def test_merged_by_llama_cpps_rule_it_is_the_merged_model(architecture, tmp_path):
    options = {"no_rope_layer_interval": 4} if architecture == "smollm3" else {}
    made = tiny_folder(tmp_path / "m", architecture, **options)
    base = tiny_gguf(tmp_path / "m.gguf", made)
    adapter = tiny_adapter(tmp_path / "adapter", base)
    convert_adapter(adapter, tmp_path / "a.gguf", base)
    # The weights as llama.cpp has them, plus alpha / rank B A, in a file that we read.
    stored, update = GGUFFile(base), GGUFFile(tmp_path / "a.gguf")
    alpha = update.metadata["adapter.lora.alpha"]
    content = bytearray(base.read_bytes())
    for key in update.tensors:
        if key.endswith(".lora_a"):
            a, b = update.read(key), update.read(key.replace("lora_a", "lora_b"))
            name = key.removesuffix(".lora_a")
            merged = stored.read(name) + np.float32(alpha / b.shape[1]) * (b @ a)
            tensor = stored.tensors[name]
            content[tensor.offset : tensor.offset + tensor.nbytes] = merged.tobytes()
    (tmp_path / "merged.gguf").write_bytes(content)
    ids = np.arange(3, 20)[None]
    model = load_model(base)
    lora.load(model, adapter)
    found = load_model(tmp_path / "merged.gguf")(ids).numpy()
    np.testing.assert_allclose(found, model(ids).detach().numpy(), atol=1e-4)


def test_names_and_metadata_are_those_of_llama_cpps_converter(base, tmp_path):
    convert_adapter(tiny_adapter(tmp_path / "adapter", base), tmp_path / "a.gguf", base)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    facts = {name: field.contents() for name, field in reader.fields.items() if "GGUF" not in name}
    assert facts == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    names = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    assert names["blk.0.attn_k.weight.lora_a"] == [32, 4]  # the size of a row comes first
    assert names["blk.0.attn_k.weight.lora_b"] == [4, 16]
    stems = {gguf_name(f"{n}.weight")[0] for n in updates(tmp_path / "adapter")}
    assert names.keys() == {f"{stem}.{part}" for stem in stems for part in ("lora_a", "lora_b")}


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"scaling": "rslora"}, 0),
        ({"scaling": "rslora", "rank_pattern": {"q_proj": 2, "v_proj": 3}}, 4),
        ({"alpha_pattern": {"down_proj": 3.0}}, 2),
        ({"rank_pattern": {"down_proj": 2}}, 0),
    ],
)
def test_the_scale_is_the_one_that_was_in_force(options, count, base, tmp_path):
    adapter = tiny_adapter(tmp_path / "adapter", base, **options)
    made, _ = round_trip(adapter, base, tmp_path)
    assert len(made.multiplied) == count
    assert_same_updates(tmp_path / "back", adapter, 3e-7)


def test_an_assigned_scale_is_kept(base, tmp_path):
    model = load_model(base)
    lora.load(model, tiny_adapter(tmp_path / "a", base))
    layer = dict(model.named_modules())["model.layers.1.mlp.up_proj"]
    layer.scale = 0.37
    lora.save(model, tmp_path / "adapter")
    made, _ = round_trip(tmp_path / "adapter", base, tmp_path)
    assert list(made.multiplied) == ["model.layers.1.mlp.up_proj"]
    assert_same_updates(tmp_path / "back", tmp_path / "adapter", 3e-7)


def test_an_embedding_and_the_head_are_converted(base, tmp_path):
    adapter = tiny_adapter(tmp_path / "adapter", base, targets=["embed_tokens", "lm_head"])
    _, back = round_trip(adapter, base, tmp_path)
    file = GGUFFile(tmp_path / "a.gguf")
    assert file.tensors["token_embd.weight.lora_a"].shape == (config_of()["vocab_size"], 4)
    assert file.tensors["output.weight.lora_b"].shape == (config_of()["vocab_size"], 4)
    for key, array in load_state(adapter / WEIGHTS)[0].items():
        np.testing.assert_array_equal(back[key], array)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"use_dora": True}, "DoRA: model.layers.0.mlp.down_proj"),
        ({"bias": "all"}, r"bias: model.layers.0.self_attn.q_proj.bias"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save: lm_head.weight"),
    ],
)
def test_what_a_gguf_adapter_cannot_have_is_named(options, name, tmp_path):
    base = tiny_folder(tmp_path / "m", attention_bias=True)
    adapter = tiny_adapter(tmp_path / "adapter", base, **options)
    with pytest.raises(ValueError, match=name):
        convert_adapter(adapter, tmp_path / "a.gguf", base)
    assert not (tmp_path / "a.gguf").exists()


def test_what_began_as_pissa_and_changes_the_base_is_refused(base, tmp_path):
    adapter = tiny_adapter(tmp_path / "adapter", base)
    configure(adapter, init_lora_weights="pissa")
    with pytest.raises(ValueError, match="PiSSA"):
        convert_adapter(adapter, tmp_path / "a.gguf", base)


def test_another_base_or_a_wrong_path_is_named(base, tmp_path, capsys):
    adapter = tiny_adapter(tmp_path / "adapter", base)
    other = tiny_folder(tmp_path / "o", intermediate_size=64, num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"mis-shaped: A(.|\n)*no matrix model.layers.1.mlp"):
        convert_adapter(adapter, tmp_path / "a.gguf", other)
    head = tiny_adapter(tmp_path / "head", base, targets=["lm_head"])
    tied = tiny_folder(tmp_path / "t", tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"no matrix lm_head.weight"):
        convert_adapter(head, tmp_path / "a.gguf", tied)
    with pytest.raises(ValueError, match=r"must be a file that ends in .gguf"):
        convert_adapter(adapter, tmp_path / "a", base)
    with pytest.raises(FileNotFoundError):
        convert_adapter(adapter, tmp_path / "a.gguf", tmp_path / "none")
    for name, out in (("none.gguf", "back"), ("none", "a.gguf"), ("none", "back")):
        with pytest.raises(FileNotFoundError, match=rf"there is no adapter .*{name}'"):
            convert_adapter(tmp_path / name, tmp_path / out, base)
    with pytest.raises(FileNotFoundError, match=r"adapter' has no config.json, so it is not a"):
        convert_adapter(adapter, tmp_path / "a.gguf", adapter)
    arguments = [adapter, tmp_path / "a.gguf", "--base", base]
    assert main(["convert", *map(str, arguments)]) == 0
    assert "14 layers, alpha 8" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"b.gguf' must be a folder; name one"):
        convert_adapter(tmp_path / "a.gguf", tmp_path / "b.gguf", base)
    qwen = tiny_folder(tmp_path / "q", "qwen2")
    with pytest.raises(ValueError, match=r"general.architecture is 'llama', not 'qwen2'"):
        convert_adapter(tmp_path / "a.gguf", tmp_path / "back", qwen)
    with pytest.raises(ValueError, match=r"general.type is None, not 'adapter'"):
        convert_adapter(tiny_gguf(tmp_path / "m.gguf", base), tmp_path / "back", base)
    with pytest.raises(ValueError, match="must be a folder"):
        convert_adapter(tmp_path / "a.gguf", adapter / WEIGHTS, base)


def test_the_base_is_not_written_over(base, tmp_path):
    adapter = tiny_adapter(tmp_path / "adapter", base)
    model = tiny_gguf(tmp_path / "m.gguf", base)
    convert_adapter(adapter, tmp_path / "a.gguf", base)
    before = model.read_bytes()
    with pytest.raises(ValueError, match="is the base"):
        convert_adapter(adapter, model, model)
    with pytest.raises(ValueError, match="is the base"):
        convert_adapter(tmp_path / "a.gguf", base, base)
    assert model.read_bytes() == before
    assert not (base / "adapter_config.json").exists()


def test_a_model_in_gguf_is_not_written_over_and_an_adapter_is(base, tmp_path):
    adapter, model = tiny_adapter(tmp_path / "adapter", base), tiny_gguf(tmp_path / "m.gguf", base)
    before = model.read_bytes()
    for content in (before, before[:100]):  # complete, and cut off in a download
        model.write_bytes(content)
        with pytest.raises(ValueError, match=r"m.gguf' is a GGUF file of a model"):
            convert_adapter(adapter, model, base)
        assert model.read_bytes() == content
    for content in (b"", b"a note"):
        (tmp_path / "a.gguf").write_bytes(content)
        convert_adapter(adapter, tmp_path / "a.gguf", base)
    convert_adapter(adapter, tmp_path / "a.gguf", base)  # again


@pytest.mark.parametrize("there", [True, False], ids=["old", "new"])
@pytest.mark.parametrize("limit", [0, 100, 1000, 4000, 12000, 16927])
def test_a_full_disk_leaves_the_old_gguf_adapter_or_none(limit, there, base, tmp_path):
    adapter, out = tiny_adapter(tmp_path / "adapter", base), tmp_path / "a.gguf"
    convert_adapter(adapter, out, base)
    before = out.read_bytes()
    assert limit < len(before) < 17000
    if not there:
        out.unlink()
    message = r"(No space left.*|File too large): '.*a.gguf'"
    with full_disk(limit), pytest.raises(OSError, match=message):
        convert_adapter(adapter, out, base)
    assert not out.exists() if not there else out.read_bytes() == before


def test_a_wrong_adapter_is_not_converted(base, tmp_path):
    adapter = tiny_adapter(tmp_path / "adapter", base)
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    edit(adapter / WEIGHTS, lambda arrays: arrays[key].__setitem__((0, 0), np.nan))
    with pytest.raises(ValueError, match="NaN"):
        convert_adapter(adapter, tmp_path / "a.gguf", base)


@pytest.mark.parametrize("alpha", [1e45, 1e-50])
def test_an_alpha_beyond_float32_is_refused(alpha, base, tmp_path):
    adapter = tiny_adapter(tmp_path / "adapter", base, alpha=alpha)
    with pytest.raises(ValueError, match=f"alpha {alpha:g}, and in GGUF it is".replace("+", ".")):
        convert_adapter(adapter, tmp_path / "a.gguf", base)
    assert not (tmp_path / "a.gguf").exists()


def written_by_hand(path, config, alpha=None, change=lambda tensors: None, **metadata):
    """A GGUF adapter of rank 2, and 3 in one layer."""
    rng = np.random.default_rng(0)
    tensors = {}
    for i, (part, d_in, d_out) in enumerate((("attn_q", 32, 32), ("ffn_up", 32, 48))):
        a, b = (2 + i, d_in), (d_out, 2 + i)
        for end, shape in (("lora_a", a), ("lora_b", b)):
            tensors[f"blk.0.{part}.weight.{end}"] = rng.standard_normal(shape).astype(np.float32)
    change(tensors)
    writer = gguf.GGUFWriter(path, config)
    for key, value in {"general__type": "adapter", "adapter__type": "lora", **metadata}.items():
        writer.add_string(key.replace("__", "."), value)
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("alpha", [None, 0.0, 5.0])
def test_without_alpha_the_scale_is_one(alpha, base, tmp_path):
    file = written_by_hand(tmp_path / "a.gguf", "llama", alpha)
    convert_adapter(file, tmp_path / "back", base)
    with AdapterFolder(tmp_path / "back") as files:
        found = [layer.scale for layer in files.layers.values()]
    assert sorted(found) == ([5 / 3, 5 / 2] if alpha else [1, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("blk.0.attn_q.weight.lora_a"), "q_proj has no lora_a"),
        (lambda x: x.update({"output_norm.weight": np.ones(32, np.float32)}), "output_norm.weight"),
        (lambda x: x.update({"blk.0.attn_q.weight.lora_a": np.ones((2, 31), "f")}), "mis-shaped"),
        (lambda x: x.update({"blk.0.attn_q.weight.lora_a": np.ones(32, "f")}), "mis-shaped"),
        (lambda x: x.update({"blk.0.ffn_up.weight.lora_a": np.full((3, 32), np.nan, "f")}), "NaN"),
        (lambda x: x.clear(), "no tensors"),
    ],
)
def test_a_wrong_gguf_adapter_is_refused(change, message, base, tmp_path):
    file = written_by_hand(tmp_path / "a.gguf", "llama", 4.0, change)
    with pytest.raises(ValueError, match=message):
        convert_adapter(file, tmp_path / "back", base)
    assert not (tmp_path / "back" / WEIGHTS).exists()


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), float("inf")])
def test_a_wrong_alpha_is_refused(alpha, base, tmp_path):
    file = written_by_hand(tmp_path / "a.gguf", "llama", alpha)
    with pytest.raises(ValueError, match=r"adapter.lora.alpha"):
        convert_adapter(file, tmp_path / "back", base)


def test_bits_of_few_become_float32(base, tmp_path):
    config = config_from_json(config_of())
    assert read_folder(base).head_dim == config.head_dim
    a = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0)
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("blk.0.ffn_up.weight.lora_a", gguf.quantize(a, kind), raw_dtype=kind)
    writer.add_tensor("blk.0.ffn_up.weight.lora_b", np.ones((48, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    convert_adapter(path, tmp_path / "back", base)
    found = load_state(tmp_path / "back" / WEIGHTS)[0]
    (name,) = (key for key in found if "lora_A" in key)
    assert found[name].dtype == np.float32
    np.testing.assert_allclose(found[name], a, atol=0.03)


def test_projections_are_all_that_a_layer_has():
    config = config_from_json(config_of())
    names = {name.split(".")[-2] for name in expected_shapes(config) if "_proj" in name}
    assert names == set(PROJECTIONS)
