"""estimate: predict the memory and the time of a training run before it begins."""

from __future__ import annotations

import math
import timeit
from collections.abc import Sequence
from typing import Any

import numpy as np

from lora.attachment.targets import candidates, targets_in
from lora.config import LoRAConfig
from lora.text.data import Batch
from minigrad.core.tensor import Tensor
from minigrad.heap import physical_memory
from minigrad.kernels.gemm import matmul, prepacked
from minigrad.tables import counted

_PROGRAM = 250_000_000  # bytes for Python, its packages and the compiled kernels
_SHARE = 0.6  # the speed of a step as a share of the speed of a large matrix product


def estimate(
    model: Any,
    config: LoRAConfig,
    batches: Sequence[Batch],
    steps: int = 1,
    accumulation_steps: int = 1,
    checkpointing: bool = False,
    validated: int = 0,
) -> str:
    """Describe the memory and time of training, from the shapes of the model and the data.

    For each token, a layer saves the inputs of its norms and linear layers, queries, keys and
    values, and the activations of the gated MLP. These are 4 h + 3 q + 2 k + 4 f numbers for hidden
    size h, q and k numbers in queries and keys, and intermediate size f. With gradient
    checkpointing, all layers except one save only their input. If the head has an adapter, all
    logits and their gradient are in memory too. A token needs 4 multiplications and additions for
    each weight, or 6 with checkpointing, and 2 in a validation. `validated` is the number of tokens
    in all validations together. A timed matrix product gives the speed.

    If more than 90 % of the machine's memory would be used, the text says what to change.
    """
    modules, sizes = dict(model.named_modules()), model.config
    # `parameters()` has no matrices in few bits, so their bytes are added.
    stored = [getattr(m, "base_weight", getattr(m, "weight", None)) for m in modules.values()]
    others = {id(w): w.nbytes for w in stored if w is not None and not isinstance(w, Tensor)}
    weights = sum(p._data.nbytes for p in model.parameters()) + sum(others.values())
    targets = targets_in(model, config)
    trained = sum(t.rank * sum(modules[t.name].weight.shape) for t in targets)
    q, k = (n * sizes.head_dim for n in (sizes.num_attention_heads, sizes.num_key_value_heads))
    h, f, layers = sizes.hidden_size, sizes.intermediate_size, sizes.num_hidden_layers
    of_layer = 4 * h + 3 * q + 2 * k + 4 * f
    saved = layers * h + of_layer if checkpointing else layers * of_layer
    logits = 2 * sizes.vocab_size * any(t.name == "lm_head" for t in targets)
    read = [ids.size for ids, *_ in batches]
    *_, lengths = batches[int(np.argmax(read))]
    rows, length = len(lengths), max(lengths)
    parts = {
        "weights": weights + min(weights, prepacked.limit()),
        "adapters and optimiser": 4 * 4 * trained,  # values, gradients and two moments in float32
        # includes the backward pass
        "activations": 4 * (saved + 2 * h + 3 * f + logits) * max(read),
        "program": _PROGRAM,
    }
    total, memory = sum(parts.values()), physical_memory()
    each = ", ".join(f"{what} {size / 1e9:.2f}" for what, size in parts.items())
    tokens = sum(read) / len(batches) * accumulation_steps * steps
    linear = [modules[name] for name, is_linear in candidates(modules).items() if is_linear]
    products = sum(math.prod(module.weight.shape) for module in linear)
    products += h * sizes.vocab_size * sizes.tie_word_embeddings  # such a head is no linear layer
    each_token = 6 if checkpointing else 4
    seconds = products * (each_token * tokens + 2 * validated) / (_SHARE * measured_speed())
    shown = counted(round(seconds), "second") if seconds < 120 else f"{seconds / 60:.1f} minutes"
    text = f"memory: about {total / 1e9:.2f} GB ({each})\ntime: about {shown}"
    if memory is None or total <= 0.9 * memory:
        return text
    advice = [] if checkpointing else ["checkpointing, which saves activations"]
    advice += [f"a batch size of {rows // 2} with more accumulation steps"] * (rows > 1)
    advice += [f"a max_length of {length // 2}", "a base in fewer bits, such as nf4"]
    return f"{text}\nthis machine has {memory / 1e9:.1f} GB; what helps: {'; '.join(advice)}"


def measured_speed() -> float:
    """Time a matrix product: return its multiplications and additions per second."""
    a = np.ones((768, 768), np.float32)
    times = timeit.repeat(lambda: matmul(a, a), repeat=3, number=1)
    return 2 * float(len(a)) ** 3 / min(times)
