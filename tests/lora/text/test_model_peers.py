"""Models of random sizes beside transformers' and PEFT's: logits, and gradients of adapters."""

import re

import numpy as np
import pytest

import lora
from lora.text.loading import load_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),  # transformers' and PEFT's own
]

ARCHITECTURES = {
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "smollm3": "SmolLM3Config",
}


def random_config(architecture, rng):
    """A configuration of random small sizes."""
    groups = int(rng.integers(1, 3))
    heads, head_dim = groups * int(rng.integers(1, 4)), 2 * int(rng.integers(2, 9))
    options = {
        "vocab_size": int(rng.integers(20, 90)),
        "hidden_size": heads * head_dim,
        "intermediate_size": int(rng.integers(8, 50)),
        "num_hidden_layers": int(rng.integers(1, 5)),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": bool(rng.integers(2)),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(rng.choice([1e4, 5e5]))},
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    if architecture in ("llama", "qwen3"):
        options["head_dim"] = 2 * int(rng.integers(2, 9))
    if architecture == "llama":
        kinds = [
            {"rope_type": "default"},
            {"rope_type": "linear", "factor": 2.0},
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ]
        options["rope_parameters"] |= kinds[rng.integers(3)]
        options["attention_bias"] = options["mlp_bias"] = bool(rng.integers(2))
    if architecture == "mistral":
        options["sliding_window"] = None
    if architecture == "smollm3":
        options["no_rope_layer_interval"] = 2
    return getattr(transformers, ARCHITECTURES[architecture])(**options)


@pytest.mark.parametrize(
    ("architecture", "seed"),
    # Of llama, biases and three kinds of angles are drawn too.
    [(name, seed) for name in ARCHITECTURES for seed in range(12 if name == "llama" else 4)],
)
def test_logits_and_gradients_of_adapters_are_those_of_transformers_and_peft(
    architecture, seed, tmp_path
):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    config = random_config(architecture, rng)
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():  # biases and norms begin as constants
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.eval().save_pretrained(tmp_path / "base")
    ours = load_model(tmp_path / "base")
    theirs.double()  # so that only our rounding counts

    ids = rng.integers(0, config.vocab_size, (3, 17))
    counted = rng.random(ids.shape) < 0.6
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    scale = abs(expected).max()
    np.testing.assert_allclose(ours(ids).numpy(), expected, atol=1e-5 * scale)

    adapted = peft.get_peft_model(
        theirs,
        peft.LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    lora.load(ours, tmp_path / "adapter")
    labels = torch.tensor(np.where(counted, ids, -100))
    their_loss = adapted(torch.tensor(ids), labels=labels).loss
    their_loss.backward()
    loss, count = ours.loss(ids, counted)
    loss.backward()
    assert count == counted[:, 1:].sum()
    np.testing.assert_allclose(loss.item(), their_loss.item(), rtol=1e-5)
    gradients = {
        re.sub(r"^base_model\.model\.|\.default\.weight$", "", name).lower(): p.grad.numpy()
        for name, p in adapted.named_parameters()
        if p.requires_grad
    }
    found = {
        name.replace("adapters.default.", ""): p.grad.numpy()
        for name, p in ours.named_parameters()
        if p.requires_grad
    }
    assert set(found) == set(gradients)
    largest = max(abs(g).max() for g in gradients.values())
    for name, g in gradients.items():
        np.testing.assert_allclose(found[name], g, atol=1e-5 * largest, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("parts", [["embed_tokens"], ["embed_tokens", "q_proj"], ["lm_head"]])
def test_adapters_on_embeddings_and_head_are_those_of_peft(parts, tied, dtype, tmp_path):
    """PEFT writes their base weights into the adapter's file, too."""
    if tied and parts == ["lm_head"]:
        pytest.skip("a tied head has no weight of its own")
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    config = random_config("llama", rng)
    config.tie_word_embeddings = tied
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    theirs.to(getattr(torch, dtype)).eval().save_pretrained(tmp_path / "base")
    options = peft.LoraConfig(r=3, lora_alpha=7, target_modules=parts, init_lora_weights=False)
    adapted = peft.get_peft_model(theirs, options)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    ours = load_model(tmp_path / "base")
    lora.load(ours, tmp_path / "adapter")
    ids = rng.integers(0, config.vocab_size, (2, 9))
    with torch.no_grad():
        expected = adapted.float()(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(ours(ids).data, expected, atol=1e-5 * abs(expected).max())
