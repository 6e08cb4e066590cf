"""Merged folders loaded by transformers: equal logits and equal tokens."""

import gguf
import numpy as np
import pytest

from lora.offline import check_adapter, merge_files
from lora.text.architecture import CLASSES
from lora.text.loading import tokenizer
from tests.lora.text.models import TEXT, tiny_adapter, tiny_folder, tiny_gguf
from tests.lora.text.test_merging import merged_logits

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
transformers = pytest.importorskip("transformers")
load_file, save_file = safetensors_torch.load_file, safetensors_torch.save_file

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("architecture", CLASSES)
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_transformers_computes_what_we_do_with_the_adapter(kind, architecture, tmp_path):
    options = {}
    if architecture == "smollm3":  # whose token for padding is beyond this vocabulary
        options = {"no_rope_layer_interval": 4, "pad_token_id": None}
    tied = architecture in ("qwen2", "llama")
    base = tiny_folder(tmp_path / "m", architecture, tie_word_embeddings=tied, **options)
    if kind == "gguf":
        begin = {"tokenizer__ggml__add_bos_token": (True, gguf.GGUFValueType.BOOL)}
        base = tiny_gguf(tmp_path / "m.gguf", base, **begin)
    adapter = tiny_adapter(tmp_path / "adapter", base)
    merge_files(base, adapter, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        found = model(torch.arange(3, 20)[None]).logits.numpy()
    np.testing.assert_allclose(found, merged_logits(base, adapter), atol=1e-4)
    theirs, ours = (
        transformers.AutoTokenizer.from_pretrained(tmp_path / "out"),
        tokenizer(base),
    )
    assert theirs(TEXT, add_special_tokens=False)["input_ids"] == ours.encode(TEXT)
    assert theirs(TEXT)["input_ids"] == ours.encode(TEXT, add_special_tokens=True)
    messages = [{"role": "user", "content": "why is the sky blue?"}]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == ours.render(messages, True)
    assert (theirs.bos_token, theirs.eos_token) == (ours.bos_token, ours.eos_token)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_transformers_reads_the_head_that_a_merge_unties(architecture, tmp_path):
    base = tiny_folder(tmp_path / "m", architecture, tie_word_embeddings=True)
    adapter = tiny_adapter(tmp_path / "adapter", base, targets=["embed_tokens", "q_proj"])
    assert merge_files(base, adapter, tmp_path / "out").copied
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        found = model(torch.arange(3, 20)[None]).logits.numpy()
    np.testing.assert_allclose(found, merged_logits(base, adapter), atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers in PEFT
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_peft_merges_is_found_to_be_right(dtype, options, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = tiny_folder(tmp_path / "m", dtype=dtype, hidden_size=64, intermediate_size=96)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, **options
    )
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "out")
    found = check_adapter(tmp_path / "adapter", base, tmp_path / "out")
    assert found.is_right, found
    assert len(found.merged) == 14
    assert not check_adapter(tmp_path / "adapter", base, base).is_right


@pytest.mark.filterwarnings("ignore")  # of PEFT
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pissa_that_peft_merges_is_found_to_be_right(dtype, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, 64) for _ in range(3)]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(64, 300), torch.nn.Linear(300, 400))
    save_file(model.to(getattr(torch, dtype)).state_dict(), tmp_path / "base.safetensors")
    options = {"r": 4, "target_modules": [str(i) for i in range(5)], "init_lora_weights": "pissa"}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    right = adapted.merge_and_unload().state_dict()
    save_file(right, tmp_path / "right.safetensors")
    paths = tmp_path / "adapter", tmp_path / "base.safetensors"
    assert check_adapter(*paths, tmp_path / "right.safetensors").is_right
    assert not check_adapter(*paths, paths[1]).is_right


LAYERS = [
    ["head"],
    ["c_proj"],
    ["c_attn", "head"],
    ["first", "c_attn"],
    ["c_attn", "c_proj", "wte"],
]


@pytest.mark.filterwarnings("ignore")  # of PEFT, which corrects its fan_in_fan_out
@pytest.mark.parametrize("targets", LAYERS)
def test_square_layers_beside_a_trunk_of_conv1d_merge_as_by_peft(targets, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=16, **special
    )
    model = torch.nn.ModuleDict(
        {
            "first": torch.nn.Linear(32, 32, bias=False),
            "transformer": transformers.GPT2Model(config),
            "head": torch.nn.Linear(32, 32, bias=False),
        }
    )
    base, merged = tmp_path / "base.safetensors", tmp_path / "merged.safetensors"
    save_file(model.state_dict(), base)
    options = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    adapted = peft.get_peft_model(model, options)
    adapted.save_pretrained(tmp_path / "adapter")
    merge_files(base, tmp_path / "adapter", merged, progress=False)
    right, found = adapted.merge_and_unload().state_dict(), load_file(merged)
    assert found.keys() == right.keys()
    for name, weight in right.items():
        np.testing.assert_allclose(found[name].numpy(), weight.numpy(), atol=1e-5, err_msg=name)
    save_file(right, tmp_path / "right.safetensors")
    assert check_adapter(tmp_path / "adapter", base, tmp_path / "right.safetensors").is_right
