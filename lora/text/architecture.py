"""ModelConfig: the sizes and options of a language model, read from `config.json`.

All supported architectures are Llama-type decoders (Touvron et al., 2023): RMS norms, rotary
position embeddings, grouped-query attention and a gated MLP. They differ in biases, in norms of
queries and keys, in layers without rotary embeddings, and in sliding windows of attention. A
missing key of `config.json` has the default of transformers' configuration class. If an option
would change the result and is not implemented, the error names it.
"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.peft.config import read_json
from minigrad.checks import check_problems
from minigrad.io import TensorInfo, find, open_tensors

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
"""The class of each architecture, by transformers' `model_type`; `config.json` has both names."""

FLOAT8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
"""The 8-bit dtypes in files, with ml_dtypes' names. Such weights are converted to bfloat16."""

Rotation = tuple[NDArray[Any], NDArray[Any]]
"""cos and sin of the angles by which queries and keys are rotated."""

_FLAGS = ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window")

_EVERYWHERE: dict[str, Any] = {
    **dict.fromkeys(_FLAGS, False),
    "max_window_layers": 28,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 32768,
}

_DEFAULTS: dict[str, dict[str, Any]] = {
    "num_key_value_heads": {"mistral": 8, "qwen2": 32, "qwen3": 32, "smollm3": 4},
    "sliding_window": {"mistral": 4096, "qwen2": 4096, "qwen3": 4096},
    "max_position_embeddings": {"llama": 2048, "mistral": 131072},
    "bos_token_id": {"llama": 1, "mistral": 1, "smollm3": 128000},
    "eos_token_id": {"llama": 2, "mistral": 2, "smollm3": 128001},
    "head_dim": {"qwen3": 128},
    "rope_theta": {"smollm3": 2000000.0},
    "no_rope_layer_interval": {"smollm3": 4},
    "tie_word_embeddings": {"smollm3": True},
}
"""The defaults of transformers' configuration classes for missing keys, by architecture.

Files always have the sizes of the weights, so sizes have no defaults here.
"""

_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (1,),
    **dict.fromkeys(("rope_interleaved", "is_encoder_decoder", "add_cross_attention"), (False,)),
    **dict.fromkeys(("attention_dropout", "num_experts", "num_local_experts"), (0,)),
    **dict.fromkeys(("n_routed_experts", "attention_sinks"), (0,)),
    **dict.fromkeys(("residual_multiplier", "embedding_multiplier", "logits_scaling"), (1,)),
    **dict.fromkeys(("quantization_config", "per_layer_config", "attention_multiplier"), ()),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "logit_scale"), ()),
}
"""The implemented values of options; an option may also be missing or null."""

_TYPES = ("full_attention", "sliding_attention")

_CONTEXT = "original_max_position_embeddings"

_ROPE: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _CONTEXT),
}
"""The kinds of scaling of the rotary frequencies, each with the names of its parameters."""

_LARGEST = {
    **{"vocab_size": 1 << 24, "hidden_size": 1 << 18, "intermediate_size": 1 << 20},
    **{"num_hidden_layers": 1024, "num_attention_heads": 4096, "num_key_value_heads": 4096},
    **{"head_dim": 4096, "max_position_embeddings": 1 << 26},
}
"""The largest sizes that are accepted, far above those of real models."""


@dataclass(frozen=True)
class ModelConfig:
    """The sizes and options of a language model, checked by `config_from_json`."""

    architecture: str  # "llama", "mistral", "qwen2", "qwen3" or "smollm3"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int  # a divisor of num_attention_heads
    head_dim: int  # an even number
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool  # of the projections of queries, keys and values
    output_bias: bool  # of the output projection of attention
    mlp_bias: bool
    qk_norm: bool  # whether each head's queries and keys are normalised
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None  # a `rope_type`, "linear" or "llama3", with its numbers
    rope_layers: tuple[bool, ...]  # for each layer, whether it rotates queries and keys
    sliding_window: int | None  # shorter texts fit into the window of every layer
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    stored_dtype: str  # the dtype of most weights in the files

    @property
    def max_length(self) -> int:
        """The largest number of tokens for which the result equals that of the original model."""
        longest = self.max_position_embeddings
        return min(longest, self.sliding_window or longest)

    def rotation(self, start: int, lengths: Sequence[int]) -> Rotation:
        """Return cos and sin of the angles of positions, `(number, head_dim / 2)`.

        The positions are those of the tokens of texts, one after the other. Each text begins at
        position `start`. A ValueError is raised if a text has more positions than the model.
        """
        if (stop := start + max(lengths)) > self.max_length:
            raise ValueError(
                f"a text of {stop} tokens is too long: this model was made for {self.max_length}, "
                f"as its max_position_embeddings or its sliding_window says; shorten the text"
            )
        turns = rotary_frequencies(self.head_dim, self.rope_theta, self.rope_scaling)
        angles = np.outer(np.concatenate([start + np.arange(n) for n in lengths]), turns)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _is_integer(value: Any, least: int, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 < value <= sys.float_info.max


def config_from_json(
    config: Mapping[str, Any],
    generation: Mapping[str, Any] | None = None,
    sizes: Sequence[tuple[str, int]] = (),
) -> ModelConfig:
    """Check the content of a `config.json`, and return it as a `ModelConfig`.

    If `generation_config.json` has end tokens, they replace those of `config`. `sizes` are the
    dtype and bytes of each weight, from which `stored_dtype` follows; without them it follows from
    `config`. A ValueError is raised if the architecture or an option is not supported, or a value
    is wrong.
    """
    listed, kind = config.get("architectures") or [], config.get("model_type")
    for architecture, name in CLASSES.items():
        if kind in (architecture, None) and (listed == [name] or (kind and not listed)):
            break
    else:
        raise ValueError(
            f"the architecture {listed!r:.200} of model_type {kind!r:.60} is not supported; there "
            f"are {', '.join(CLASSES.values())}"
        )
    own = {key: of[architecture] for key, of in _DEFAULTS.items() if architecture in of}
    given = {**_EVERYWHERE, **own, **config}
    heads: Any = given.get("num_attention_heads")
    width: Any = given.get("hidden_size")
    if given.get("num_key_value_heads") is None:
        given["num_key_value_heads"] = heads
    if given.get("head_dim") is None and _is_integer(heads, 1) and _is_integer(width, 1):
        given["head_dim"] = width // heads if width % heads == 0 else f"{width} / {heads}"
    what = f"this model of {CLASSES[architecture]} is not supported"
    check_problems(what, _unsupported(given) + _wrong(given))
    for name in ("bos_token_id", "eos_token_id"):  # a default may be outside of the vocabulary
        if name not in config and (given.get(name) or 0) >= given["vocab_size"]:
            given[name] = None
    ends = (generation or {}).get("eos_token_id")
    ends = given.get("eos_token_id") if ends is None else ends
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    problems = [
        f"the token {i!r:.60} is outside of the vocabulary of {given['vocab_size']}"
        for i in [*ends, given.get("bos_token_id")]
        if i is not None and not _is_integer(i, 0, given["vocab_size"] - 1)
    ]
    theta, scaling = _rope(given, problems)
    rope_layers, window = _layers(architecture, given, problems)
    check_problems(what, problems)
    has_bias = given["attention_bias"] and architecture not in ("mistral", "qwen2")
    dtypes: Counter[str] = Counter()
    named = str(given.get("dtype") or given.get("torch_dtype", "float32"))
    for dtype, size in sizes or [(named, 1)]:
        dtypes[dtype] += size
    return ModelConfig(
        architecture=architecture,
        **{name: given[name] for name in (*_LARGEST, "rms_norm_eps", "tie_word_embeddings")},
        attention_bias=has_bias or architecture == "qwen2",
        output_bias=has_bias,
        mlp_bias=given["mlp_bias"] and architecture in ("llama", "smollm3"),
        qk_norm=architecture == "qwen3",
        rope_theta=theta,
        rope_scaling=scaling,
        rope_layers=rope_layers,
        sliding_window=window,
        eos_token_ids=tuple(ends),
        bos_token_id=given.get("bos_token_id"),
        stored_dtype=dtypes.most_common(1)[0][0],
    )


def json_table(folder: str | os.PathLike[str], name: str) -> dict[str, Any] | None:
    """Return the JSON object in a file of a folder, or None if there is no such file.

    A ValueError is raised if the file is not JSON, or has no object at the top.
    """
    path = find(folder, name)
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{os.fspath(path)!r} must be a table, not {found!r:.60}")
    return found


def model_json(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the `config.json` of the model in a folder; a FileNotFoundError if it has none."""
    found = json_table(folder, "config.json")
    if found is None:
        raise FileNotFoundError(
            f"{os.fspath(folder)!r} has no config.json, so it is not a model's folder"
        )
    return found


def read_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """Return the configuration of the model in a folder.

    A FileNotFoundError is raised if the folder has no `config.json` or no weights. A ValueError is
    raised if the model is not supported, or a file is invalid.
    """
    config = model_json(folder)
    with open_tensors(folder) as tensors:
        infos = tensors.tensors.values()
        sizes = [("bfloat16" if i.dtype in FLOAT8 else i.dtype, i.nbytes) for i in infos]
    return config_from_json(config, json_table(folder, "generation_config.json"), sizes)


def _wrong(given: Mapping[str, Any]) -> list[str]:
    """Return error messages about values that are impossible, or contradict each other."""
    wrong = [n for n, most in _LARGEST.items() if not _is_integer(given.get(n), 1, most)]
    wrong += [n for n in _FLAGS if not isinstance(given[n], bool)]
    window = given.get("sliding_window")
    others = {
        "rms_norm_eps": _is_positive(given["rms_norm_eps"]),
        "max_window_layers": _is_integer(given["max_window_layers"], 0),
        "no_rope_layer_interval": _is_integer(given.get("no_rope_layer_interval", 1), 1),
        "sliding_window": window is None or _is_integer(window, 1),
    }
    wrong += [name for name, is_good in others.items() if not is_good]
    problems = [f"{name} cannot be {given.get(name)!r:.60}" for name in wrong]
    if not problems and given["num_attention_heads"] % given["num_key_value_heads"]:
        problems.append("num_attention_heads is not a multiple of num_key_value_heads")
    if not problems and given["head_dim"] % 2:
        problems.append(f"head_dim {given['head_dim']} is odd, and rotations turn pairs")
    return problems


def _unsupported(options: Mapping[str, Any]) -> list[str]:
    """Return error messages about options with a value that is not implemented."""
    return [
        f"{name} {options[name]!r:.60} is not supported, "
        + (f"only {' or '.join(map(repr, accepted))}" if accepted else "and must be left out")
        for name, accepted in _ONLY.items()
        if options.get(name) is not None and options[name] not in accepted
    ]


def _rope(given: Mapping[str, Any], problems: list[str]) -> tuple[Any, dict[str, Any] | None]:
    """Return theta and the scaling of the rotary frequencies; append errors to `problems`."""
    parameters = given.get("rope_scaling") or given.get("rope_parameters") or {}
    if not isinstance(parameters, dict) or any(isinstance(v, dict) for v in parameters.values()):
        problems.append("rope_parameters must be one table for all layers")
        parameters = {}
    problems += _unsupported({"partial_rotary_factor": parameters.get("partial_rotary_factor")})
    kind = str(parameters.get("rope_type", parameters.get("type", "default")))
    if kind not in _ROPE:
        problems.append(f"rope_type {kind!r:.60} is not supported; there are {', '.join(_ROPE)}")
    defaults = {"rope_theta": given["rope_theta"], _CONTEXT: given["max_position_embeddings"]}
    outer = {_CONTEXT: given[_CONTEXT]} if _CONTEXT in given else {}  # has precedence
    numbers = {**defaults, **parameters, **outer}
    found = {name: numbers.get(name) for name in ("rope_theta", *_ROPE.get(kind, ()))}
    bad = [name for name, value in found.items() if not _is_positive(value)]
    if not bad and kind == "llama3" and numbers["low_freq_factor"] >= numbers["high_freq_factor"]:
        bad = ["low_freq_factor"]
    problems += [f"{name} of rope_type {kind} cannot be {found[name]!r:.60}" for name in bad]
    theta = found.pop("rope_theta")
    return theta, {"rope_type": kind, **found} if found else None


def _layers(
    architecture: str, given: Mapping[str, Any], problems: list[str]
) -> tuple[tuple[bool, ...], int | None]:
    """Return which layers rotate queries and keys, and the sliding window, if a layer has one."""
    count, listed = given["num_hidden_layers"], given.get("no_rope_layers")
    rotated = (True,) * count
    if architecture == "smollm3" and listed is None:
        rotated = tuple((i + 1) % given["no_rope_layer_interval"] != 0 for i in range(count))
    elif architecture == "smollm3":
        rotated = tuple(bool(i) for i in listed[:count]) if isinstance(listed, list) else ()
        if len(rotated) < count:
            problems.append(f"no_rope_layers is not a list of 0 or 1 for each of {count} layers")
    window, types = given.get("sliding_window"), given.get("layer_types")
    if architecture in ("llama", "mistral"):  # none of the layers, or all of them
        return rotated, window if architecture == "mistral" else None
    # The mask of SmolLM3 in transformers depends on the types alone, if they are listed.
    is_used = given["use_sliding_window"] or (architecture == "smollm3" and types is not None)
    if types is not None:
        if not isinstance(types, list) or any(t not in _TYPES for t in types):
            problems.append(f"layer_types {types!r:.100} are not all of {', '.join(_TYPES)}")
            types = []
        slides = "sliding_attention" in types
    elif architecture == "smollm3":
        slides = not all(rotated)
    else:
        slides = given["max_window_layers"] < count
    return rotated, window if is_used and slides else None


def rotary_frequencies(
    head_dim: int, theta: float, scaling: Mapping[str, Any] | None
) -> NDArray[np.float64]:
    """Return the rotary frequencies: the angle by which each pair of a head turns per position.

        theta_i = theta^(-2 i / d),    i = 0 ... d/2 - 1            (RoFormer, Su et al., 2021)

    Linear scaling divides all of them by a factor (Chen et al., 2023). "llama3" divides only those
    whose wavelength is long compared with the texts of the pretraining, with a smooth transition
    (Llama 3.1).
    """
    angles: NDArray[np.float64] = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    scaling = scaling or {}
    if scaling.get("rope_type") == "linear":
        angles = angles / scaling["factor"]
    elif scaling.get("rope_type") == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        waves = scaling[_CONTEXT] * angles / (2 * math.pi)
        share = np.clip((waves - low) / (high - low), 0.0, 1.0)  # of the angle that is not scaled
        angles = share * angles + (1 - share) * angles / scaling["factor"]
    return angles


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's parameters, by their names in transformers.

    A head that is tied to the embedding has no parameter of its own.
    """
    width, inner, d = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * d, config.num_key_value_heads * d
    linear = {
        "self_attn.q_proj": (queries, width, config.attention_bias),
        "self_attn.k_proj": (keys, width, config.attention_bias),
        "self_attn.v_proj": (keys, width, config.attention_bias),
        "self_attn.o_proj": (width, queries, config.output_bias),
        "mlp.gate_proj": (inner, width, config.mlp_bias),
        "mlp.up_proj": (inner, width, config.mlp_bias),
        "mlp.down_proj": (width, inner, config.mlp_bias),
    }
    norms = {"input_layernorm": width, "post_attention_layernorm": width}
    if config.qk_norm:
        norms |= {"self_attn.q_norm": d, "self_attn.k_norm": d}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, width)}
    for layer in (f"model.layers.{i}" for i in range(config.num_hidden_layers)):
        for name, (d_out, d_in, has_bias) in linear.items():
            shapes[f"{layer}.{name}.weight"] = d_out, d_in
            if has_bias:
                shapes[f"{layer}.{name}.bias"] = (d_out,)
        shapes |= {f"{layer}.{name}.weight": (size,) for name, size in norms.items()}
    shapes["model.norm.weight"] = (width,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = config.vocab_size, width
    return shapes


def check_shapes(source: str, tensors: Mapping[str, TensorInfo], config: ModelConfig) -> None:
    """Raise a ValueError that names the missing, unexpected and mis-shaped tensors of a model."""
    found, wanted = {name: x.shape for name, x in tensors.items()}, expected_shapes(config)
    problems = [f"missing: {name} {wanted[name]}" for name in wanted if name not in found]
    problems += [f"unexpected: {name} {found[name]}" for name in found if name not in wanted]
    problems += [
        f"mis-shaped: {name} is {found[name]}, and by the configuration {shape}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    check_problems(f"{source} does not have the tensors that its configuration describes", problems)
