"""Models from folders and GGUF files, in float32 and in few bits, and what does not fit."""

import numpy as np
import pytest

import lora
import minigrad as mg
from lora.offline import convert_adapter
from lora.offline.model_folder import open_base
from lora.text import loading
from lora.text.loading import load_model, tokenizer
from lora.text.model import TiedHead
from minigrad.nn import Embedding, Linear
from tests.lora.folders import edit
from tests.lora.text.models import tiny_adapter, tiny_folder, tiny_gguf

IDS = np.arange(30).reshape(2, 15)


def logits(model):
    with mg.no_grad():
        return model(IDS).numpy()


def kinds(model):
    layer = model.model.layers[0]
    found = model.model.embed_tokens, layer.self_attn.q_proj, layer.mlp.down_proj, model.lm_head
    return [type(each) for each in found]


def test_a_folder_and_a_gguf_file_are_the_same_model(tmp_path):
    folder = tiny_folder(tmp_path / "base")
    file = tiny_gguf(tmp_path / "base.gguf", folder)
    expected = load_model(folder)
    found = load_model(file)
    assert np.array_equal(logits(found), logits(expected))
    assert not any(parameter.requires_grad for parameter in found.parameters())
    text = "The quick brown fox"
    assert tokenizer(file).encode(text) == tokenizer(folder).encode(text)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_stored_in_bfloat16_stay_so(tmp_path, tied):
    folder = tiny_folder(tmp_path / "base", dtype="bfloat16", tie_word_embeddings=tied)
    narrow, wide = load_model(folder), load_model(folder, "float32")
    head = [TiedHead] if tied else [lora.BFloat16Linear]
    linear = [lora.BFloat16Linear] * 2
    assert kinds(narrow) == [lora.BFloat16Embedding, *linear, *head]
    assert kinds(wide) == [Embedding, Linear, Linear, TiedHead if tied else Linear]
    np.testing.assert_allclose(logits(narrow), logits(wide), atol=1e-5)  # sums in another order
    counted = np.ones(IDS.shape, bool)
    with mg.no_grad():
        losses = [model.loss(IDS, counted)[0].item() for model in (narrow, wide)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_four_bits_leave_the_ends_of_the_model_in_bfloat16(tmp_path):
    folder = tiny_folder(tmp_path / "base")
    model = load_model(folder, "nf4")
    assert kinds(model) == [lora.BFloat16Embedding, *[lora.NF4Linear] * 2, lora.BFloat16Linear]
    wide = load_model(folder)
    layers = dict(wide.named_modules())
    for name, module in model.named_modules():
        if hasattr(module, "weight") and hasattr(module.weight, "dense"):
            before = layers[name].weight.numpy()
            decoded = module.weight.dense()
            error = np.linalg.norm(decoded - before) / np.linalg.norm(before)
            assert error < (0.1 if isinstance(module, lora.NF4Linear) else 0.003)
            layers[name].weight.data[...] = decoded
    np.testing.assert_allclose(logits(model), logits(wide), atol=1e-5)  # sums in another order


@pytest.mark.parametrize("dtype", ["bfloat16", "nf4"])
def test_adapters_train_on_a_base_in_few_bits(tmp_path, dtype, rng):
    model = load_model(tiny_folder(tmp_path / "base"), dtype)
    lora.attach(model, lora.LoRAConfig(rank=2, alpha=4, targets="all-linear"), rng=rng)
    counted = np.ones(IDS.shape, bool)
    optimizer = mg.optim.Adam(model.trainable_parameters(), lr=0.02)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss, _ = model.loss(IDS, counted)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_what_cannot_be_loaded_is_said(tmp_path, monkeypatch):
    folder = tiny_folder(tmp_path / "base")
    with pytest.raises(ValueError, match="dtype is one of float32, bfloat16, nf4, or None"):
        load_model(folder, "int8")
    message = "there is no folder and no file .*; .* nothing is downloaded"
    with pytest.raises(FileNotFoundError, match=message):
        load_model(tmp_path / "nowhere")
    monkeypatch.setattr(loading, "physical_memory", lambda: 60_000)
    advice = r'dtype="nf4" \(--dtype nf4\) takes \d'
    with pytest.raises(MemoryError, match=rf"take .* in float32, and .* has 58.*; {advice}"):
        load_model(folder)
    load_model(folder, "nf4")
    monkeypatch.setattr(loading, "physical_memory", lambda: 10_000)
    with pytest.raises(MemoryError, match=r"has 9.766 KiB of memory; take a smaller model$"):
        load_model(folder)


def test_a_model_that_peft_has_wrapped_and_not_merged_is_refused(tmp_path):
    folder, name = tiny_folder(tmp_path / "base"), "model.layers.1.mlp.up_proj"
    wrapped = lambda x: {n.replace(name, f"{name}.base_layer"): a for n, a in x.items()}
    edit(folder / "model.safetensors", wrapped)
    with pytest.raises(ValueError, match=rf"{name}\.base_layer\.weight.* merge_and_unload\(\)"):
        load_model(folder)


@pytest.mark.parametrize("load", [load_model, tokenizer])
def test_in_a_folder_of_gguf_files_one_is_to_be_named(tmp_path, load):
    (tmp_path / "model.gguf").touch()
    with pytest.raises(FileNotFoundError, match=r"but GGUF files; name one: .*model\.gguf"):
        load(tmp_path)


@pytest.mark.parametrize("load", [load_model, tokenizer])
@pytest.mark.parametrize("inside", ["tiny", "snapshots/0a1b"])
def test_in_a_folder_around_a_model_that_is_to_be_named(tmp_path, load, inside):
    tiny_folder(tmp_path / "around" / inside)
    with pytest.raises(FileNotFoundError, match=rf"but a folder in it does; name it: .*{inside}$"):
        load(tmp_path / "around")


@pytest.mark.parametrize("load", [load_model, tokenizer])
def test_an_adapter_in_place_of_its_base_is_named(tmp_path, load):
    (tmp_path / "adapter_config.json").touch()
    (tmp_path / "tokenizer.json").touch()  # transformers' trainer writes one beside the adapter
    with pytest.raises(FileNotFoundError, match=r"is the folder of an adapter; give its base"):
        load(tmp_path)


@pytest.mark.parametrize("load", [load_model, tokenizer, open_base])
def test_a_gguf_adapter_in_place_of_its_base_is_named(tmp_path, load):
    base = tiny_folder(tmp_path / "m")
    convert_adapter(tiny_adapter(tmp_path / "a", base), tmp_path / "a.gguf", base)
    with pytest.raises(ValueError, match=r"a.gguf' is an adapter; give its base"):
        load(tmp_path / "a.gguf")
