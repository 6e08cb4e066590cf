"""Tiny language models in files, with random weights and a tokenizer of some hundred tokens."""

import json
from functools import cache
from pathlib import Path

import numpy as np

from lora.text.architecture import CLASSES, config_from_json, expected_shapes
from minigrad.io import TensorInfo, writing_set

TEXT = """The quick brown fox jumps over the lazy dog. It's 12345 times that we'll see the fox!
A model learns from text; then it answers a question, in one plain sentence.
user: why is the sky blue? assistant: because of the air, naïve façade, 日本語, 🙂."""

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

TEMPLATE = """{% for message in messages %}
{% if message['role'] not in ['system', 'user', 'assistant'] %}
{{ raise_exception('there is no role ' + message['role']) }}
{% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
}

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@cache
def tiny_tokenizer(size=400):
    """A byte-level BPE, trained on a few sentences, with the words of SmolLM2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    words = [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    made.pre_tokenizer = pre_tokenizers.Sequence(words)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([TEXT], trainer)
    return made


def config_of(architecture="llama", **overrides):
    """The content of a `config.json` of a model with grouped queries."""
    config = {
        "architectures": [CLASSES[architecture]],
        "model_type": architecture,
        **CONFIG,
        "vocab_size": tiny_tokenizer().get_vocab_size(),
        "dtype": "float32",
    }
    if architecture == "smollm3":
        config |= {"num_hidden_layers": 4, "no_rope_layer_interval": 2}
    return {**config, **overrides}


def weights_of(config, seed=0):
    """Random weights of a model, such that its output is neither constant nor huge."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_shapes(config).items():
        size = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
        weight = size * rng.standard_normal(shape) + ("norm" in name)
        weights[name] = weight.astype(np.float32)
    return weights


def tiny_folder(path, architecture="llama", seed=0, dtype="float32", shards=1, **overrides):
    """Write a folder as Hugging Face's, with random weights; `overrides` are keys of the config."""
    path = Path(path)
    config = config_of(architecture, dtype=dtype, **overrides)
    weights = weights_of(config_from_json(config), seed)
    infos = [TensorInfo(name, dtype, weight.shape) for name, weight in weights.items()]
    names = ["model.safetensors"]
    if shards > 1:
        names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    files = {name: infos[i::shards] for i, name in enumerate(names)}
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": {"content": "<|im_end|>", "__type": "AddedToken"},
        "chat_template": TEMPLATE,
    }
    others = {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": tiny_tokenizer().to_str().encode(),
        "tokenizer_config.json": json.dumps(tokenizer).encode(),
    }
    with writing_set(path, files, {"format": "pt"}, others) as writers:
        for name, weight in weights.items():
            writers[name].write(name, weight)
    return path


def tiny_gguf(path, folder, quantised=None, rope_factors=None, **metadata):
    """Write what llama.cpp's converter makes of a folder; `quantised` is a type of the matrices.

    `metadata` are other values of fields, whose names have `_` where GGUF's have `.`, or None.
    """
    import gguf

    from lora.text.architecture import read_config
    from lora.text.loading import weights
    from minigrad.io import open_tensors

    config = read_config(folder)
    architecture = {"mistral": "llama"}.get(config.architecture, config.architecture)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    for key, value in metadata.items():
        writer.add_key_value(key.replace("__", "."), *value)
    add_vocabulary(writer, tiny_tokenizer())
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(rope_factors, np.float32))
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, array in weights(open_tensors(folder), config):
        name, part = gguf_name(name)
        if part in heads and architecture in ("llama", "smollm3"):
            rows = array.reshape(heads[part], 2, config.head_dim // 2, *array.shape[1:])
            array = np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(array.shape)
        if array.dtype.name == "bfloat16":
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(name, array.view(np.uint8), raw_dtype=kind)
        elif quantised and array.ndim == 2:
            kind = gguf.GGMLQuantizationType[quantised]
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer, tokenizer, model="gpt2", rule="smollm"):
    """Put a byte-level BPE into the metadata of a GGUF file."""
    content = json.loads(tokenizer.to_str())
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)


def gguf_name(name):
    """llama.cpp's name of a parameter, and what it calls the part of a layer."""
    stem, end = name.rsplit(".", 1)
    found = gguf_names().get_name(stem)
    return f"{found}.{end}", found.rsplit(".", 1)[-1]


@cache
def gguf_names():
    import gguf

    return gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 4)  # which has the names of all


def tiny_adapter(path, base, seed=0, **options):
    """Write an adapter that changes every layer of a model."""
    import lora
    from lora.text.loading import load_model

    model, rng = load_model(base, "float32"), np.random.default_rng(seed)
    options = {"rank": 4, "alpha": 8, "targets": PROJECTIONS, **options}
    lora.attach(model, lora.LoRAConfig(**options), rng=rng)
    for parameter in model.trainable_parameters():
        step = 0.1 * rng.standard_normal(parameter.shape)
        parameter.data = parameter.data + step.astype(np.float32)
    lora.save(model, path, seed=seed)
    return path
