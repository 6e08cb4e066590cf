"""ModelConfig: the sizes and options of a language model, as `config.json` says them.

All architectures are decoders of one kind (Touvron et al., 2023): root-mean-square norms, rotary
position embeddings, grouped queries and a gated MLP. They differ in biases, in norms of queries and
keys, in layers without positions, and in windows of attention. A key that `config.json` leaves out
has the default of transformers' configuration class. An option that would change the result, and is
not implemented, is an error with its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from minigrad.checks import check_problems

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
"""The architectures by transformers' `model_type`, with the class that `config.json` names."""

_EVERYWHERE: dict[str, Any] = {
    **{"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 32768},
    **{"num_key_value_heads": 32, "tie_word_embeddings": False},
    **{"attention_bias": False, "mlp_bias": False, "max_window_layers": 28},
}

_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        **{"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048},
        **{"num_key_value_heads": None, "bos_token_id": 1, "eos_token_id": 2},
    },
    "mistral": {
        **{"vocab_size": 32000, "intermediate_size": 14336, "max_position_embeddings": 131072},
        **{"num_key_value_heads": 8, "bos_token_id": 1, "eos_token_id": 2, "sliding_window": 4096},
    },
    "qwen2": {"vocab_size": 151936, "intermediate_size": 22016, "sliding_window": 4096},
    "qwen3": {
        **{"vocab_size": 151936, "intermediate_size": 22016, "sliding_window": 4096},
        "head_dim": 128,
    },
    "smollm3": {
        **{"vocab_size": 128256, "intermediate_size": 11008, "hidden_size": 2048},
        **{"num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4},
        **{"bos_token_id": 128000, "eos_token_id": 128001, "tie_word_embeddings": True},
        **{"rope_theta": 2000000.0, "no_rope_layer_interval": 4},
    },
}
"""The values that transformers' configuration classes give to keys that are not in the file."""

_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (1,),
    "rope_interleaved": (False,),
    **dict.fromkeys(("attention_dropout", "num_experts", "num_local_experts"), (0,)),
    **dict.fromkeys(("n_routed_experts", "attention_sinks"), (0,)),
    **dict.fromkeys(("residual_multiplier", "embedding_multiplier", "logits_scaling"), (1,)),
    **dict.fromkeys(("quantization_config", "per_layer_config", "attention_multiplier"), ()),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "logit_scale"), ()),
    **{"is_encoder_decoder": (False,), "add_cross_attention": (False,)},
}
"""The values of options that are implemented, beside a missing one and null."""

_ROPE: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        *("factor", "low_freq_factor", "high_freq_factor"),
        "original_max_position_embeddings",
    ),
}
"""The kinds of scaling of the rotary frequencies, with their numbers."""

_LARGEST = {
    **{"vocab_size": 1 << 24, "hidden_size": 1 << 18, "intermediate_size": 1 << 20},
    **{"num_hidden_layers": 1024, "num_attention_heads": 4096, "num_key_value_heads": 4096},
    **{"head_dim": 4096, "max_position_embeddings": 1 << 26},
}
"""The largest sizes that are accepted, far above those of real models."""


@dataclass(frozen=True)
class ModelConfig:
    """The sizes and options of a language model.

    Attributes:
        architecture: "llama", "mistral", "qwen2", "qwen3" or "smollm3".
        vocab_size: the number of rows of the embedding.
        hidden_size: the width of the residual stream.
        intermediate_size: the width of the gated MLP.
        num_hidden_layers: the number of layers.
        num_attention_heads: the number of heads of queries.
        num_key_value_heads: the number of heads of keys and values, a divisor of those of queries.
        head_dim: the width of a head, which is even.
        rms_norm_eps: the constant under the root of a norm.
        max_position_embeddings: the longest sequence that the model was made for.
        tie_word_embeddings: whether the embedding is the weight of the head, too.
        attention_bias: whether the projections of queries, keys and values have biases.
        output_bias: whether the projection after attention has a bias.
        mlp_bias: whether the layers of the MLP have biases.
        qk_norm: whether each head's queries and keys are normalised (Qwen3).
        rope_theta: the base of the rotary frequencies.
        rope_scaling: None, or a dict with `rope_type` "linear" and its `factor`, or "llama3" and
            `factor`, `low_freq_factor`, `high_freq_factor` and `original_max_position_embeddings`.
        rope_layers: whether a layer rotates queries and keys, for each layer.
        sliding_window: the number of tokens that some layer attends to at most, or None; up to
            that length the result does not depend on it.
        eos_token_ids: the tokens that end a text.
        bos_token_id: the token that begins a text, or None.
        stored_dtype: the dtype of most of the weights that are read.

    Raises:
        ValueError: if a size is not positive, is far too large or contradicts another one.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    rope_layers: tuple[bool, ...]
    sliding_window: int | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    stored_dtype: str = "float32"

    def __post_init__(self) -> None:
        wanted = {name: _is_integer(getattr(self, name), 1, n) for name, n in _LARGEST.items()}
        wanted |= {
            name: _is_positive(getattr(self, name)) for name in ("rms_norm_eps", "rope_theta")
        }
        for each in fields(self):
            if each.type == "bool":
                wanted[each.name] = isinstance(getattr(self, each.name), bool)
        wanted["sliding_window"] = self.sliding_window is None or _is_integer(
            self.sliding_window, 1
        )
        self._check(
            f"{name} cannot be {getattr(self, name)!r:.60}"
            for name, is_good in wanted.items()
            if not is_good
        )
        heads, groups, layers = (
            getattr(self, f"num_{name}")
            for name in ("attention_heads", "key_value_heads", "hidden_layers")
        )
        problems = [
            f"the token {i!r:.60} is outside of the vocabulary of {self.vocab_size}"
            for i in (*self.eos_token_ids, self.bos_token_id)
            if i is not None and not _is_integer(i, 0, self.vocab_size - 1)
        ]
        if heads % groups:
            problems.append(f"{heads} heads of queries cannot share {groups} of keys and values")
        if self.head_dim % 2:
            problems.append(f"head_dim {self.head_dim} is odd, and rotations are of pairs")
        if len(self.rope_layers) != layers:
            problems.append(f"rope_layers has {len(self.rope_layers)} entries for {layers} layers")
        self._check(problems)

    def _check(self, problems: Iterable[str]) -> None:
        check_problems(f"this is no configuration of a {self.architecture} model", list(problems))


def _is_integer(value: Any, least: int, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 < value < math.inf


# ----------------------------------------------------------------------------------------------
# config.json
# ----------------------------------------------------------------------------------------------


def config_from_json(
    config: Mapping[str, Any],
    generation: Mapping[str, Any] | None = None,
    stored_dtype: str | None = None,
) -> ModelConfig:
    """Return what a `config.json` says.

    Args:
        config: the content of the file.
        generation: the content of `generation_config.json`, whose end tokens count, if it has some.
        stored_dtype: the dtype of the weights, if it is known better than `config` says it.

    Raises:
        ValueError: if the architecture or an option is not supported, or a value is wrong.
    """
    architecture = _architecture(config)
    given = {**_EVERYWHERE, **_DEFAULTS[architecture], **config}
    problems = _unsupported(config)
    kinds = config.get("layer_types") or []
    if architecture not in ("llama", "mistral") and not (
        isinstance(kinds, list) and all(k in ("full_attention", "sliding_attention") for k in kinds)
    ):
        problems.append(f"layer_types {kinds!r:.100} are not all full_attention, sliding_attention")
    theta, scaling = _rope(given, problems)
    check_problems(f"this model of {CLASSES[architecture]} is not supported", problems)
    for name in ("bos_token_id", "eos_token_id"):  # a default may be outside of the vocabulary
        if name not in config and not _is_integer(given["vocab_size"], (given.get(name) or 0) + 1):
            given[name] = None
    ends = (generation or {}).get("eos_token_id")
    ends = given.get("eos_token_id") if ends is None else ends
    heads, groups = given["num_attention_heads"], given["num_key_value_heads"]
    has_bias = given["attention_bias"] if architecture not in ("mistral", "qwen2") else False
    return ModelConfig(
        architecture=architecture,
        **{name: given[name] for name in _LARGEST.keys() - {"head_dim", "num_key_value_heads"}},
        num_key_value_heads=heads if groups is None else groups,
        head_dim=_head_dim(given["hidden_size"], heads, given.get("head_dim")),
        rms_norm_eps=given["rms_norm_eps"],
        tie_word_embeddings=given["tie_word_embeddings"],
        attention_bias=True if architecture == "qwen2" else has_bias,
        output_bias=has_bias,
        mlp_bias=given["mlp_bias"] if architecture in ("llama", "smollm3") else False,
        qk_norm=architecture == "qwen3",
        rope_theta=theta,
        rope_scaling=scaling,
        rope_layers=_rope_layers(architecture, given),
        sliding_window=_window(architecture, given),
        eos_token_ids=tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,),
        bos_token_id=given.get("bos_token_id"),
        stored_dtype=stored_dtype or str(given.get("dtype") or given.get("torch_dtype", "float32")),
    )


def _architecture(config: Mapping[str, Any]) -> str:
    """Return the key in `CLASSES` of the architecture that a configuration names."""
    listed, kind = config.get("architectures") or [], config.get("model_type")
    for architecture, name in CLASSES.items():
        if kind in (architecture, None) and (listed == [name] or (kind and not listed)):
            return architecture
    raise ValueError(
        f"the architecture {listed!r:.200} of model_type {kind!r:.60} is not supported; there are "
        f"{', '.join(CLASSES.values())}"
    )


def _unsupported(options: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with options that have one implemented value."""
    return [
        f"{name} {options[name]!r:.60} is not supported, "
        + (f"only {' or '.join(map(repr, accepted))}" if accepted else "and must be left out")
        for name, accepted in _ONLY.items()
        if options.get(name) is not None and options[name] not in accepted
    ]


def _head_dim(width: Any, heads: Any, given: Any) -> Any:
    """Return the width of a head; an equal part of the residual stream if none is given."""
    if given is not None:
        return given
    if not (_is_integer(heads, 1) and _is_integer(width, 1)) or width % heads:
        raise ValueError(
            f"hidden_size {width!r:.60} is no multiple of num_attention_heads {heads!r:.60}, and "
            f"there is no head_dim"
        )
    return width // heads


def _rope(given: Mapping[str, Any], problems: list[str]) -> tuple[Any, dict[str, Any] | None]:
    """Return the base and the scaling of the rotary frequencies; add to the problems."""
    parameters = given.get("rope_scaling") or given.get("rope_parameters") or {}
    if not isinstance(parameters, dict) or any(isinstance(v, dict) for v in parameters.values()):
        problems.append("rope_parameters must be one table for all layers")
        return None, None
    kind = str(parameters.get("rope_type", parameters.get("type", "default")))
    theta = parameters.get("rope_theta", given["rope_theta"])
    problems += _unsupported({"partial_rotary_factor": parameters.get("partial_rotary_factor")})
    if kind not in _ROPE:
        problems.append(f"rope_type {kind!r:.60} is not supported; there are {', '.join(_ROPE)}")
        return theta, None
    longest = {"original_max_position_embeddings": given["max_position_embeddings"]}
    outer = {name: given[name] for name in longest if name in given}  # goes before the inner value
    scaling = {name: {**longest, **parameters, **outer}.get(name) for name in _ROPE[kind]}
    problems += [
        f"rope_type {kind} has {name} {value!r:.60}"
        for name, value in scaling.items()
        if not _is_positive(value)
    ]
    low, high = (scaling.get(f"{name}_freq_factor") for name in ("low", "high"))
    if not problems and low and high and low >= high:
        problems.append(f"low_freq_factor {low} must be below high_freq_factor {high}")
    return theta, {"rope_type": kind, **scaling} if scaling else None


def _rope_layers(architecture: str, given: Mapping[str, Any]) -> tuple[bool, ...]:
    """Return which layers rotate queries and keys."""
    count = given["num_hidden_layers"]
    count = count if _is_integer(count, 1, _LARGEST["num_hidden_layers"]) else 0
    listed, interval = given.get("no_rope_layers"), given.get("no_rope_layer_interval")
    if architecture != "smollm3":
        return (True,) * count
    if listed is None:
        if not isinstance(interval, int) or interval < 1:
            raise ValueError(f"no_rope_layer_interval is a positive integer, not {interval!r:.60}")
        return tuple((i + 1) % interval != 0 for i in range(count))
    if not isinstance(listed, list) or len(listed) < count or any(i not in (0, 1) for i in listed):
        raise ValueError(f"no_rope_layers is a list of 0 or 1 for each of {count} layers")
    return tuple(map(bool, listed[:count]))


def _window(architecture: str, given: Mapping[str, Any]) -> Any:
    """Return the window of attention, if there is a layer to which it applies."""
    window, types = given.get("sliding_window"), given.get("layer_types")
    if architecture == "mistral":
        return window
    if architecture == "llama" or not given.get("use_sliding_window", False):
        return None
    if types is not None:
        return window if "sliding_attention" in types else None
    rotated = _rope_layers(architecture, given)
    if architecture == "smollm3":
        return None if all(rotated) else window
    return None if _is_integer(given["max_window_layers"], len(rotated)) else window


# ----------------------------------------------------------------------------------------------
# Parameters
# ----------------------------------------------------------------------------------------------


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


def check_shapes(
    source: str, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise a ValueError with the names of tensors that are missing, unexpected or mis-shaped."""
    problems = [f"missing: {name} {wanted[name]}" for name in wanted if name not in found]
    problems += [f"unexpected: {name} {found[name]}" for name in found if name not in wanted]
    problems += [
        f"mis-shaped: {name} is {found[name]}, and by the configuration {shape}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    check_problems(f"{source} has not the tensors that its configuration says", problems)
