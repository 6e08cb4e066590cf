"""A language model of the sizes of SmolLM2-135M: reading, writing, and a step of fine-tuning.

Weights and tokens are made up, so that no package is needed; times do not depend on them. All
contenders begin with the same arrays, and must arrive at the same logits and losses.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.lora_step import BETAS, EPS, LEARNING_RATE
from tests.benchmarks.workload import OURS, SAME_LOSS, Contender, Goal, Point, Run, Workload
from tests.benchmarks.workloads.lora import PEFT

TRANSFORMERS, FLOAT32 = "transformers", "minigrad, float32"
RANK, ALPHA = 8, 16
SOME, ALL = ["q_proj", "v_proj"], "all-linear"
CONTEXT, WRITTEN = 128, 8  # tokens that were read before, and that are written in a call
SAME_LOGITS = 1e-4  # of 30 layers

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Case(NamedTuple):
    """A step of fine-tuning: which layers get adapters, and a batch of so many rows.

    Our base has the dtype that is given; PEFT's is in float32.
    """

    targets: Any
    rows: int
    dtype: str = "float32"
    length: int = 256

    @property
    def label(self) -> str:
        size = f"{'all' if self.targets == ALL else 'q, v'}, {self.rows} x {self.length}"
        return size if self.dtype == "float32" else f"{size}, {self.dtype}"


def tokens(rows: int, length: int) -> NDArray[np.int64]:
    """Tokens at random, the same ones for everybody."""
    return np.random.default_rng(1).integers(0, CONFIG["vocab_size"], (rows, length))


def weights(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Weights that neither vanish nor explode in 30 layers, the same for everybody.

    They come one by one, so that nobody has them in memory twice. Each contender knows the shapes
    itself: if PyTorch's process imported minigrad, its heap would be on huge pages, too.
    """
    for name, shape in shapes.items():
        drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
        drawn *= np.float32(0.04)
        if "norm" in name:
            drawn += 1
        yield name, drawn


def adapters(layers: list[tuple[str, tuple[int, int]]]) -> dict[str, Any]:
    """A and B by the name of a layer. B is not zero, else A would get no gradient at first."""
    rng = np.random.default_rng(2)
    return {
        name: (
            0.02 * rng.standard_normal((RANK, d_in), np.float32),
            0.02 * rng.standard_normal((d_out, RANK), np.float32),
        )
        for name, (d_out, d_in) in layers
    }


def ours(dtype: str = "float32") -> Any:
    from lora.text import loading
    from lora.text.architecture import config_from_json, expected_shapes
    from lora.text.model import LanguageModel
    from minigrad.nn import init

    config = config_from_json(CONFIG)
    with init.skipped():
        model = LanguageModel(config)
    loading.fill(model, weights(expected_shapes(config)), dtype)
    return model


def theirs() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    options = {k: v for k, v in CONFIG.items() if k not in ("model_type", "rope_theta")}
    rope = {"rope_type": "default", "rope_theta": CONFIG["rope_theta"]}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**options, rope_parameters=rope))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    shapes.pop("lm_head.weight", None)  # is the table of the embeddings
    state = {name: torch.from_numpy(x) for name, x in weights(shapes)}
    found = model.load_state_dict(state, strict=False, assign=True)
    if found.unexpected_keys or found.missing_keys not in ([], ["lm_head.weight"]):
        raise RuntimeError(f"transformers has other names for the weights: {found}")
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval()


# ------------------------------------------------------------------------------------------------
# Reading and writing
# ------------------------------------------------------------------------------------------------


def read_ours(_: Any) -> Run:
    model, ids = ours(), tokens(1, CONTEXT)
    return lambda: model.next_logits(ids, model.new_caches(1, CONTEXT))


def read_theirs(_: Any) -> Run:
    import torch

    model, ids = theirs(), torch.from_numpy(tokens(1, CONTEXT))

    def run() -> Any:
        with torch.inference_mode():
            return model(ids, use_cache=True, logits_to_keep=1).logits[:, -1].numpy()

    return run


def write_ours(dtype: str = "float32") -> Run:
    """Write tokens that are given, so that all contenders write the same ones."""
    model, ids = ours(dtype), tokens(1, CONTEXT + WRITTEN)
    caches = model.new_caches(1, CONTEXT + WRITTEN)
    model.next_logits(ids[:, :CONTEXT], caches)

    def run() -> Any:
        for cache_of_layer in caches:
            cache_of_layer.truncate(CONTEXT)
        for i in range(CONTEXT, CONTEXT + WRITTEN):
            logits = model.next_logits(ids[:, i : i + 1], caches)
        return logits if dtype == "float32" else None

    return run


def write_theirs(_: Any) -> Run:
    import torch

    model, ids = theirs(), torch.from_numpy(tokens(1, CONTEXT + WRITTEN))
    with torch.inference_mode():
        known = model(ids[:, :CONTEXT], use_cache=True).past_key_values

    def run() -> Any:
        known.crop(-WRITTEN if known.get_seq_length() > CONTEXT else 0)
        with torch.inference_mode():
            for i in range(CONTEXT, CONTEXT + WRITTEN):
                found = model(ids[:, i : i + 1], past_key_values=known, use_cache=True)
        return found.logits[:, -1].numpy()

    return run


# ------------------------------------------------------------------------------------------------
# Fine-tuning
# ------------------------------------------------------------------------------------------------


def step_ours(case: Case) -> Run:
    import lora
    from minigrad import optim

    model, ids = ours(case.dtype), tokens(case.rows, case.length)
    counted = np.ones(ids.shape, bool)
    lora.attach(model, lora.LoRAConfig(rank=RANK, alpha=ALPHA, targets=case.targets))
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, lora.LoRALayer)]
    given = adapters([(name, layer.base_weight.shape) for name, layer in found])
    for name, layer in found:
        layer.lora_a, layer.lora_b = given[name]
    optimizer = optim.Adam(model.trainable_parameters(), lr=LEARNING_RATE, betas=BETAS, eps=EPS)

    def run() -> float:
        optimizer.zero_grad()
        loss, _ = model.loss(ids, counted)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return run


def step_theirs(case: Case) -> Run:
    import torch
    from peft import LoraConfig, get_peft_model

    ids = torch.from_numpy(tokens(case.rows, case.length))
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=case.targets)
    model: Any = get_peft_model(theirs(), config)
    found = [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]
    sizes = [
        (n.removeprefix("base_model.model."), (m.out_features, m.in_features)) for n, m in found
    ]
    given = adapters(sizes)
    with torch.no_grad():
        for name, module in found:
            a, b = given[name.removeprefix("base_model.model.")]
            module.lora_A["default"].weight.copy_(torch.from_numpy(a))
            module.lora_B["default"].weight.copy_(torch.from_numpy(b))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=LEARNING_RATE, betas=BETAS, eps=EPS)

    def run() -> float:
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return run


NEEDS = ("torch", "transformers")
CONTENDERS = {OURS: Contender(step_ours), PEFT: Contender(step_theirs, (*NEEDS, "peft"))}
CASES = [Case(SOME, 1), Case(ALL, 1), Case(SOME, 4), Case(ALL, 4)]

WORKLOADS = {
    "prefill": Workload(
        f"reading {CONTEXT} tokens with a language model of 135 million parameters",
        {OURS: Contender(read_ours), TRANSFORMERS: Contender(read_theirs, NEEDS)},
        goals=[Goal(TRANSFORMERS, 1.2, threads=1), Goal(TRANSFORMERS, 1.5, threads=2)],
        tolerance=SAME_LOGITS,
        seconds=0.5,
        rounds=9,
    ),
    "decode": Workload(
        f"writing {WRITTEN} tokens after {CONTEXT} with it",
        {OURS: Contender(write_ours), TRANSFORMERS: Contender(write_theirs, NEEDS)},
        [Point("float32", "float32")],
        [Goal(TRANSFORMERS, 1.3, threads=1), Goal(TRANSFORMERS, 2.0, threads=2)],
        tolerance=SAME_LOGITS,
        seconds=0.5,
        rounds=9,
    ),
    "decode_few_bits": Workload(
        f"writing {WRITTEN} tokens after {CONTEXT}, with weights in few bits and in float32",
        {
            OURS: Contender(write_ours),
            FLOAT32: Contender(lambda _: write_ours()),
        },
        [Point("bfloat16", "bfloat16"), Point("NF4", "nf4")],
        [Goal(FLOAT32, {"bfloat16": 1.7, "NF4": 1.5})],
        steps=0,
        seconds=0.5,
        rounds=9,
    ),
    "language_step": Workload(
        "a fine-tuning step with Adam of it, rank 8 (layers with adapters, rows x tokens)",
        CONTENDERS,
        [Point(case.label, case) for case in CASES],
        [Goal(PEFT, 1.3)],
        steps=3,
        tolerance=SAME_LOSS,
        seconds=2.0,
        rounds=5,
    ),
}
