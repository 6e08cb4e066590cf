"""ModelConfig from a config.json: defaults, both spellings, and what is refused by name."""

import json
from contextlib import suppress
from dataclasses import replace

import pytest

from lora.text.architecture import CLASSES, check_shapes, config_from_json, expected_shapes
from minigrad.io import TensorInfo
from tests.lora.text.models import config_of

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(architecture="llama", **overrides):
    return config_from_json(config_of(architecture, **overrides))


def without(architecture, *names, **overrides):
    config = config_of(architecture, **overrides)
    return config_from_json({key: v for key, v in config.items() if key not in names})


def test_keys_that_are_missing_have_the_defaults_of_transformers():
    groups = ("num_key_value_heads", "head_dim")
    found = without("mistral", *groups, "eos_token_id", num_attention_heads=16)
    assert (found.num_key_value_heads, found.head_dim) == (8, 2)
    assert (found.sliding_window, found.eos_token_ids) == (4096, (2,))
    assert without("llama", "bos_token_id", *groups).bos_token_id == 1
    assert without("llama", *groups).num_key_value_heads == 4
    assert without("llama", "eos_token_id", vocab_size=2).eos_token_ids == ()
    assert without("qwen3", "head_dim").head_dim == 128
    for architecture, longest in {"llama": 2048, "mistral": 131072, "qwen2": 32768}.items():
        found = without(architecture, "max_position_embeddings")
        assert found.max_position_embeddings == longest
    smollm3 = without(
        *("smollm3", "tie_word_embeddings", "rope_theta", "no_rope_layer_interval"),
        num_hidden_layers=36,
    )
    assert smollm3.tie_word_embeddings
    assert smollm3.rope_layers == (True, True, True, False) * 9
    assert smollm3.rope_theta == 2e6


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "num_hidden_layers"])
def test_sizes_have_no_defaults(name):
    with pytest.raises(ValueError, match=f"{name} cannot be None"):
        without("llama", name)


def test_null_is_not_the_same_as_missing():
    found = read("mistral", num_key_value_heads=None, sliding_window=None, head_dim=None)
    assert (found.num_key_value_heads, found.sliding_window, found.head_dim) == (4, None, 8)
    assert read(eos_token_id=None).eos_token_ids == ()


@pytest.mark.parametrize(
    ("architecture", "options", "biases"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}, (True, True, True, False)),
        ("mistral", {}, (False, False, False, False)),
        ("qwen2", {}, (True, False, False, False)),
        ("qwen3", {"attention_bias": True}, (True, True, False, True)),
        ("smollm3", {"mlp_bias": True}, (False, False, True, False)),
    ],
)
def test_biases_and_norms_of_each_architecture(architecture, options, biases):
    found = read(architecture, **options)
    assert found.architecture == architecture
    assert biases == (found.attention_bias, found.output_bias, found.mlp_bias, found.qk_norm)
    names = expected_shapes(found)
    assert ("model.layers.0.self_attn.q_proj.bias" in names) is found.attention_bias
    assert ("model.layers.1.self_attn.k_norm.weight" in names) is found.qk_norm


def test_both_spellings_of_rope_and_dtype():
    new = read(rope_parameters={**LLAMA3, "rope_theta": 5e5}, dtype="bfloat16")
    old = config_of(rope_scaling=LLAMA3, rope_theta=5e5, torch_dtype="bfloat16")
    del old["dtype"]
    assert config_from_json(old) == new
    assert (new.rope_theta, new.rope_scaling, new.stored_dtype) == (5e5, LLAMA3, "bfloat16")
    linear = read(rope_scaling={"type": "linear", "factor": 2.0}).rope_scaling
    assert linear == {"rope_type": "linear", "factor": 2.0}
    assert read(rope_parameters={"rope_type": "default"}).rope_scaling is None


def test_the_context_before_scaling_has_the_defaults_of_transformers():
    short = {k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}
    name = "original_max_position_embeddings"
    assert read(rope_scaling=short).rope_scaling[name] == 256
    assert read(rope_scaling=LLAMA3, **{name: 64}).rope_scaling[name] == 64


def test_a_window_counts_where_a_layer_has_one():
    window = {"sliding_window": 16}
    assert read("llama", **window).sliding_window is None
    assert read("mistral", **window).sliding_window == 16
    assert read("qwen2", **window).sliding_window is None
    on = {**window, "use_sliding_window": True}
    assert read("qwen2", **on, max_window_layers=2).sliding_window is None
    assert read("qwen2", **on, max_window_layers=1).sliding_window == 16
    full = ["full_attention"] * 2
    assert read("qwen3", **on, max_window_layers=0, layer_types=full).sliding_window is None
    mixed = ["full_attention", "sliding_attention"]
    assert read("qwen3", **on, layer_types=mixed).sliding_window == 16
    assert read("smollm3", **on).sliding_window == 16
    assert read("smollm3", **on, no_rope_layers=[1] * 4).sliding_window is None
    assert read("smollm3", **window).sliding_window is None
    assert read("smollm3", **window, layer_types=full).sliding_window is None
    assert read("smollm3", **window, layer_types=mixed).sliding_window == 16
    assert read("qwen3", **window, layer_types=mixed).sliding_window is None


def test_end_tokens_of_the_generation_config_go_first():
    config = config_of(eos_token_id=2)
    assert config_from_json(config, {"eos_token_id": [1, 2]}).eos_token_ids == (1, 2)
    assert config_from_json(config, {"temperature": 1.0}).eos_token_ids == (2,)


@pytest.mark.parametrize(
    "options",
    [
        {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": ["LlamaForCausalLM"], "model_type": "mistral"},
        {"hidden_act": "gelu"},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}},
        {"rope_scaling": {"type": "linear"}},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
        {"attention_sinks": 4},
        {"quantization_config": {"quant_method": "fp8"}},
        {"num_local_experts": 8},
        {"attention_dropout": 0.1},
        {"attn_logit_softcapping": 30.0},
    ],
)
def test_what_is_not_supported_is_refused_by_name(options):
    with pytest.raises(ValueError, match=r"not supported|table for all layers") as error:
        read(**options)
    value = list(json.loads(json.dumps(options)).values())[-1]
    names = [*options, *(value if isinstance(value, dict) else ()), *CLASSES.values()]
    assert any(str(name) in str(error.value) for name in names)


def test_layer_types_of_another_model_are_refused():
    with pytest.raises(ValueError, match="linear_attention"):
        read("qwen3", layer_types=["linear_attention", "full_attention"])


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": 0},
        {"hidden_size": "32"},
        {"hidden_size": True},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": -1},
        {"vocab_size": 2**40},
        {"num_key_value_heads": 3},
        {"head_dim": 7},
        {"head_dim": None, "hidden_size": 33},
        {"rms_norm_eps": -1e-5},
        {"rope_theta": float("nan")},
        {"rope_theta": float("inf")},
        {"rope_theta": 10**400},
        {"tie_word_embeddings": "no"},
        {"eos_token_id": 10**6},
        {"bos_token_id": "<s>"},
        {"sliding_window": 0},
    ],
)
def test_sizes_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options)).split("_")[0] + "|token|head"):
        read("mistral", **options)


def test_layers_without_rope_need_an_entry_each():
    assert read("smollm3", no_rope_layers=[1, 0, 1, 0, 1]).rope_layers == (True, False) * 2
    with pytest.raises(ValueError, match="no_rope_layers"):
        read("smollm3", no_rope_layers=[1, 0])
    with pytest.raises(ValueError, match="no_rope_layer_interval"):
        read("smollm3", no_rope_layer_interval=0)


def test_shapes_and_what_differs_from_them():
    def stored(shapes):
        return {name: TensorInfo(name, "float32", shape) for name, shape in shapes.items()}

    config = read(tie_word_embeddings=True)
    shapes = expected_shapes(config)
    assert "lm_head.weight" not in shapes
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (16, 32)
    assert "lm_head.weight" in expected_shapes(replace(config, tie_word_embeddings=False))
    check_shapes("x", stored(shapes), config)
    wrong = {**shapes, "model.norm.weight": (31,), "extra": (2,)}
    del wrong["model.embed_tokens.weight"]
    with pytest.raises(ValueError, match=r"missing: model.embed_tokens") as error:
        check_shapes("x", stored(wrong), config)
    assert "unexpected: extra (2,)" in str(error.value)
    assert "mis-shaped: model.norm.weight is (31,), and by the configuration (32,)" in str(
        error.value
    )


@pytest.mark.parametrize("architecture", CLASSES)
def test_values_of_any_kind_are_read_or_refused(architecture):
    junk = [None, -1, 0, 2**70, "x", [], ["x"], [[1]], {}, {"x": {}}, 0.5, float("nan"), True]
    keys = "rope_scaling rope_parameters layer_types no_rope_layers dtype quantization_config"
    config = config_of(architecture, use_sliding_window=True, sliding_window=8)
    for key in [*config, *keys.split()]:
        for value in junk:
            with suppress(ValueError):
                config_from_json({**config, key: value})
    for key in ("factor", "rope_type", "type", "rope_theta", "low_freq_factor"):
        for value in junk:
            with suppress(ValueError):
                config_from_json({**config, "rope_scaling": {**LLAMA3, key: value}})
    for value in junk:
        with suppress(ValueError):
            config_from_json(config, {"eos_token_id": value})
