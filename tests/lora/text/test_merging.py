"""Merging an adapter into a language model in a GGUF file or a folder, from files to files."""

import json

import numpy as np
import pytest

import lora
from lora.__main__ import main
from lora.offline import check_adapter, extract_files, merge_files
from lora.text.architecture import CLASSES
from lora.text.loading import load_model, tokenizer
from minigrad.io import TensorInfo, load_state, open_tensors, save_state, writing
from tests.lora.text.models import TEXT, tiny_adapter, tiny_folder, tiny_gguf


def logits(model):
    return model(np.arange(3, 20)[None]).numpy()


def merged_logits(base, adapter, dtype=None):
    model = load_model(base, dtype)
    lora.load(model, adapter)
    return logits(lora.fold(model))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("architecture", CLASSES)
def test_a_gguf_file_becomes_a_folder_with_the_adapter_merged(architecture, tmp_path):
    options = {"no_rope_layer_interval": 4} if architecture == "smollm3" else {}
    tied = architecture == "qwen2"
    made = tiny_folder(tmp_path / "m", architecture, tie_word_embeddings=tied, **options)
    base = tiny_gguf(tmp_path / "m.gguf", made)
    adapter = tiny_adapter(tmp_path / "adapter", base)
    merge_files(base, adapter, tmp_path / "out")
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    ]
    wanted = merged_logits(base, adapter)
    assert abs(wanted - logits(load_model(base))).max() > 0.1
    np.testing.assert_allclose(logits(load_model(tmp_path / "out")), wanted, atol=1e-5)
    before, after = tokenizer(base), tokenizer(tmp_path / "out")
    messages = [{"role": "user", "content": "why is the sky blue?"}]
    assert after.encode(TEXT) == before.encode(TEXT)
    assert after.render(messages, True) == before.render(messages, True)
    assert after.eos_token_id == before.eos_token_id


@pytest.mark.parametrize("kind", ["folder", "shards", "gguf"])
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_a_tied_head_stays_as_it_is_where_the_embedding_changes(dtype, kind, tmp_path):
    base = tiny_folder(
        tmp_path / "m", tie_word_embeddings=True, shards=2 if kind == "shards" else 1
    )
    if kind == "gguf":
        base = tiny_gguf(tmp_path / "m.gguf", base)
    adapter = tiny_adapter(tmp_path / "adapter", base, targets=["embed_tokens", "q_proj"])
    found = check_adapter(adapter, base)
    assert found.is_right
    assert "tie_word_embeddings" not in repr(found)
    merged = merge_files(base, adapter, tmp_path / "out", dtype=dtype)
    assert merged.copied == ["model.embed_tokens.weight"]
    assert "so the merged model has a copy of the old weight as its head" in repr(merged)
    wanted = merged_logits(base, adapter)
    assert abs(wanted - logits(load_model(base))).max() > 0.1
    atol = 0.02 if dtype else 1e-5  # the weights are rounded to float16
    np.testing.assert_allclose(logits(load_model(tmp_path / "out", "float32")), wanted, atol=atol)
    assert check_adapter(adapter, base, tmp_path / "out").findings == ()
    with open_tensors(tmp_path / "out") as tensors:
        arrays = {name: tensors.read(name) for name in tensors if name != "lm_head.weight"}
    save_state(tmp_path / "head_of_the_changed_table.safetensors", arrays)
    found = check_adapter(adapter, base, tmp_path / "head_of_the_changed_table.safetensors")
    assert "may be the weight of the head too" in repr(found)


def adapter_in(form, base, path, targets=("q_proj", "down_proj")):
    """Write an adapter that was made on a base in few bits."""
    model = load_model(base, form)
    lora.attach(model, lora.LoRAConfig(rank=2, targets=list(targets)))
    for parameter in model.trainable_parameters():
        parameter.data = parameter.data + np.float32(0.1)
    lora.save(model, path)
    return path


@pytest.mark.parametrize("targets", [("q_proj", "down_proj"), ("lm_head", "embed_tokens")])
def test_the_base_of_an_adapter_that_was_made_in_bfloat16_is_known(targets, tmp_path):
    base, other = (tiny_folder(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    adapter = adapter_in("bfloat16", base, tmp_path / "adapter", targets)
    assert check_adapter(adapter, base).findings == ()
    merge_files(base, adapter, tmp_path / "out")
    (wrong,) = check_adapter(adapter, other).findings
    assert wrong.level == "wrong"
    assert wrong.what.startswith("another base: the weight of ")
    with pytest.raises(ValueError, match="another base: the weight of "):
        merge_files(other, adapter, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    merge_files(other, adapter, tmp_path / "other", check_base=False)
    same = tiny_folder(tmp_path / "c", seed=0, dtype="bfloat16")  # has the same rounded values
    assert check_adapter(adapter, same).findings == ()


@pytest.mark.parametrize("base_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("copy_dtype", ["float32", "float16", "bfloat16"])
def test_the_copy_of_an_embedding_may_have_another_dtype_than_the_base(
    copy_dtype, base_dtype, tmp_path
):
    # PEFT writes an adapted embedding beside the update, in the dtype in which it was loaded.
    base = tiny_folder(tmp_path / "m", dtype=base_dtype)
    adapter = tiny_adapter(tmp_path / "adapter", base, targets=["embed_tokens", "q_proj"])
    with open_tensors(base) as tensors:
        table = tensors.read("model.embed_tokens.weight", np.float64)
    key = "base_model.model.model.embed_tokens.base_layer.weight"

    def with_copy(change):
        file = adapter / "adapter_model.safetensors"
        arrays = {**load_state(file)[0], key: change(table)}
        infos = [
            TensorInfo(n, copy_dtype if n == key else "float32", x.shape) for n, x in arrays.items()
        ]
        with writing(file, infos, {"format": "pt"}) as writer:
            for name, x in arrays.items():
                writer.write(name, x)

    with_copy(lambda table: table)
    assert check_adapter(adapter, base).is_right
    merge_files(base, adapter, tmp_path / "out")
    # What was rounded twice, to float16 and to bfloat16, cannot be compared.
    is_known = (copy_dtype, base_dtype) != ("float16", "float32")
    for dtype in ("float32", "bfloat16", "nf4"):
        lora.load(load_model(base, dtype), adapter, check_base=is_known or dtype == "float32")
    with_copy(lambda table: 1.5 * table)
    assert "another base" in repr(check_adapter(adapter, base))
    with pytest.raises(ValueError, match=r"another base: .*embed_tokens.* resized vocabulary"):
        lora.load(load_model(base, "float32"), adapter)
    lora.load(load_model(base, "float32"), adapter, check_base=False)


def test_of_an_adapter_that_was_made_in_nf4_the_check_says_that_its_base_is_not_known(tmp_path):
    base = tiny_folder(tmp_path / "a")
    found = check_adapter(adapter_in("nf4", base, tmp_path / "adapter"), base)
    assert found.is_right
    (odd,) = found.findings
    assert (odd.level, odd.where) == ("odd", "base")
    assert "4 layers were trained on nf4" in odd.what
    assert "load the model in nf4" in odd.what


def test_a_merge_says_which_layers_were_trained_on_other_values_of_the_base(tmp_path):
    base = tiny_folder(tmp_path / "a")
    merged = merge_files(base, adapter_in("nf4", base, tmp_path / "nf4"), tmp_path / "out")
    layers = [f"model.layers.{i}." for i in range(2)]
    parts = "self_attn.q_proj", "mlp.down_proj"
    assert sorted(merged.on_nf4) == sorted(layer + part for layer in layers for part in parts)
    assert "4 layers were trained on nf4, and are merged with the values of this" in repr(merged)
    plain = merge_files(base, adapter_in("float32", base, tmp_path / "plain"), tmp_path / "other")
    assert plain.on_nf4 == []
    assert "nf4" not in repr(plain)


def test_a_merged_file_of_few_bits_is_the_converted_one(tmp_path, monkeypatch):
    made = tiny_folder(tmp_path / "m", intermediate_size=64)
    base = tiny_gguf(tmp_path / "m.gguf", made, quantised="Q8_0")
    adapter = tiny_adapter(tmp_path / "adapter", base)
    merge_files(base, adapter, tmp_path / "whole")
    monkeypatch.setattr("lora.frozen.STRIP", 100)
    merge_files(base, adapter, tmp_path / "out")
    np.testing.assert_allclose(
        logits(load_model(tmp_path / "out")), merged_logits(base, adapter), atol=1e-5
    )
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_dtype_is_that_of_the_file_or_the_one_asked_for(dtype, tmp_path):
    base = tiny_gguf(tmp_path / "m.gguf", tiny_folder(tmp_path / "m", dtype=dtype))
    adapter = tiny_adapter(tmp_path / "adapter", base)
    for asked, stored in ((None, dtype), ("float32", "float32")):
        out = tmp_path / stored
        merge_files(base, adapter, out, dtype=asked)
        with open_tensors(out) as tensors:
            found = {info.dtype for info in tensors.tensors.values()}
        assert stored in found
        assert json.loads((out / "config.json").read_text())["dtype"] == stored


def test_tokens_that_begin_a_text_are_those_of_the_file(tmp_path):
    import gguf

    made = tiny_folder(tmp_path / "m")
    flag = gguf.GGUFValueType.BOOL
    more = {
        "tokenizer__ggml__add_bos_token": (True, flag),
        "tokenizer__ggml__add_eos_token": (True, flag),
    }
    base = tiny_gguf(tmp_path / "m.gguf", made, **more)
    merge_files(base, tiny_adapter(tmp_path / "adapter", base), tmp_path / "out")
    for path in (base, tmp_path / "out"):
        ids = tokenizer(path).encode("the fox", add_special_tokens=True)
        assert ids == [0, *tokenizer(path).encode("the fox"), 2]


def test_a_folder_gives_its_configuration_and_tokenizer_too(tmp_path):
    base = tiny_folder(tmp_path / "m", shards=2)
    adapter = tiny_adapter(tmp_path / "adapter", base)
    merge_files(base, adapter, tmp_path / "out")
    np.testing.assert_allclose(
        logits(load_model(tmp_path / "out")), merged_logits(base, adapter), atol=1e-5
    )
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()


def test_a_gguf_file_that_is_not_the_base_is_refused(tmp_path, capsys):
    base = tiny_gguf(tmp_path / "m.gguf", tiny_folder(tmp_path / "m"))
    other = tiny_gguf(tmp_path / "o.gguf", tiny_folder(tmp_path / "o", seed=1))
    adapter = tiny_adapter(tmp_path / "adapter", base)
    assert check_adapter(adapter, base).is_right
    assert not check_adapter(adapter, other).is_right
    assert main(["merge", str(other), str(adapter), str(tmp_path / "out")]) == 2
    assert "another base" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["merge", str(base), str(adapter), str(tmp_path / "one.safetensors")]) == 0
    content = base.read_bytes()
    base.write_bytes(content[: len(content) - 64])
    for command in (["merge", base, adapter, tmp_path / "out"], ["check", adapter, base]):
        assert main(list(map(str, command))) == 2
        assert f"{str(base)!r} cannot be read: it ends inside of" in capsys.readouterr().err


def test_without_its_tokenizer_a_gguf_file_can_be_merged_into_one_file(tmp_path):
    base = tiny_gguf(tmp_path / "m.gguf", tiny_folder(tmp_path / "m"))
    adapter = tiny_adapter(tmp_path / "adapter", base)
    base.write_bytes(base.read_bytes().replace(b"gpt2", b"none"))
    with pytest.raises(ValueError, match=r"SentencePiece.*; name an output .* needs no tokenizer"):
        merge_files(base, adapter, tmp_path / "out")
    merge_files(base, adapter, tmp_path / "out.safetensors")
    with open_tensors(tmp_path / "out.safetensors") as tensors:
        assert "model.embed_tokens.weight" in tensors


def test_a_check_does_not_claim_that_bytes_without_a_checksum_are_right(tmp_path):
    base = tiny_gguf(tmp_path / "m.gguf", tiny_folder(tmp_path / "m"))
    adapter = tiny_adapter(tmp_path / "adapter", base, targets=["q_proj"])
    assert check_adapter(adapter).has_checksum
    base.write_bytes(base.read_bytes()[:-3] + b"\x01\x02\x03")  # of another tensor
    found = check_adapter(adapter, base)
    assert (found.is_right, found.has_checksum) == (True, False)
    assert repr(found).endswith(
        "nothing is wrong; not all tensors of the adapter and the base have a checksum"
    )


def test_an_adapter_is_extracted_from_a_merged_gguf_file(tmp_path):
    base = tiny_gguf(tmp_path / "m.gguf", tiny_folder(tmp_path / "m"))
    adapter = tiny_adapter(tmp_path / "adapter", base)
    merge_files(base, adapter, tmp_path / "out")
    found = extract_files(base, tmp_path / "out", tmp_path / "again", 4)
    assert len(found.layers) == 14
    np.testing.assert_allclose(
        merged_logits(base, tmp_path / "again"), merged_logits(base, adapter), atol=1e-4
    )
