"""MiniLM: a fine-tuning step of a BERT encoder of 22.7 million parameters, LoRA on query and value.

The texts of a batch are eight pairs, to be distinguished by their vectors (see
`examples.minilm.search`). Weights and texts are made up, so that no package is needed; the time of
a step does not depend on them. All contenders begin with the same arrays, and must arrive at the
same loss after some steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.lora_step import BETAS, EPS, LEARNING_RATE
from tests.benchmarks.workload import OURS, SAME_LOSS, Contender, Goal, Point, Run, Workload
from tests.benchmarks.workloads.lora import PEFT

ALPHA_OVER_RANK = 2.0
TEMPERATURE = 0.05
TARGETS = ["query", "value"]


class Case(NamedTuple):
    """A batch of texts of `shortest` to `longest` tokens, in as many equal steps as there are."""

    batch: int
    shortest: int
    longest: int
    rank: int

    @property
    def label(self) -> str:
        several = self.shortest != self.longest
        tokens = f"{self.shortest} to {self.longest}" if several else f"{self.longest}"
        return f"{self.batch}, {tokens}, {self.rank}"


class Arrays(NamedTuple):
    """What every contender is given; weights and adapters by the names that they have in BERT."""

    weights: dict[str, NDArray[np.float32]]
    adapters: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    ids: NDArray[np.int64]
    mask: NDArray[np.bool_]


def arrays(case: Case) -> Arrays:
    """The same arrays for everybody. B is not zero, else A would get no gradient at first."""
    from examples.minilm.encoder import MiniLM, Sizes

    rng = np.random.default_rng(0)
    sizes = Sizes()
    weights: dict[str, Any] = {}
    for name, parameter in MiniLM(sizes).named_parameters():
        drawn = 0.05 * rng.standard_normal(parameter.shape, np.float32)
        weights[name] = drawn + 1 if name.endswith("LayerNorm.weight") else drawn
    adapters = {
        name.removesuffix(".weight"): (
            0.05 * rng.standard_normal((case.rank, sizes.hidden_size), np.float32),
            0.05 * rng.standard_normal((sizes.hidden_size, case.rank), np.float32),
        )
        for name in weights
        if name.endswith(tuple(f"{target}.weight" for target in TARGETS))
    }
    lengths = np.linspace(case.shortest, case.longest, case.batch).round().astype(int)
    mask = np.arange(case.longest) < rng.permutation(lengths)[:, None]
    ids = np.where(mask, rng.integers(1000, sizes.vocab_size, mask.shape), 0)
    return Arrays(weights, adapters, ids, mask)


def with_minigrad(case: Case) -> Run:
    import lora
    from examples.minilm.encoder import MiniLM
    from minigrad import cross_entropy, optim

    given = arrays(case)
    model = MiniLM()
    model.load_state_dict(given.weights)
    lora.attach(
        model,
        lora.LoRAConfig(rank=case.rank, alpha=ALPHA_OVER_RANK * case.rank, targets=TARGETS),
    )
    layers = dict(model.named_modules())
    for name, (a, b) in given.adapters.items():
        layers[name].lora_a, layers[name].lora_b = a, b
    optimizer = optim.Adam(model.trainable_parameters(), lr=LEARNING_RATE, betas=BETAS, eps=EPS)
    ids, mask, right = given.ids, given.mask, np.arange(case.batch // 2)
    del given, layers  # so that peaks of memory are the model's own

    def run() -> float:
        optimizer.zero_grad()
        vectors = model(ids, mask)
        loss = cross_entropy(vectors[::2] @ vectors[1::2].T * (1 / TEMPERATURE), right)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return run


def with_peft(case: Case) -> Run:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertModel

    from examples.minilm.encoder import Sizes

    given = arrays(case)
    config = BertConfig(**vars(Sizes()), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    bert = BertModel(config, add_pooling_layer=False)
    found = bert.load_state_dict({k: torch.from_numpy(x) for k, x in given.weights.items()}, False)
    if found.unexpected_keys or found.missing_keys:
        raise RuntimeError(f"transformers has other names for the weights: {found}")
    model: Any = get_peft_model(
        bert,
        LoraConfig(
            r=case.rank, lora_alpha=int(ALPHA_OVER_RANK * case.rank), target_modules=TARGETS
        ),
    )
    state = {
        f"base_model.model.{name}.lora_{kind}.default.weight": torch.from_numpy(array)
        for name, pair in given.adapters.items()
        for kind, array in zip("AB", pair, strict=True)
    }
    if model.load_state_dict(state, strict=False).unexpected_keys:
        raise RuntimeError("PEFT calls its adapters by other names than these: " + ", ".join(state))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=LEARNING_RATE, betas=BETAS, eps=EPS)
    ids, mask = torch.from_numpy(given.ids), torch.from_numpy(given.mask.astype(np.int64))
    there, right = mask[..., None].float(), torch.arange(case.batch // 2)
    del given, state

    def run() -> float:
        optimizer.zero_grad()
        tokens = model(input_ids=ids, attention_mask=mask).last_hidden_state
        mean = (tokens * there).sum(1) / there.sum(1)
        vectors = torch.nn.functional.normalize(mean)
        scores = vectors[::2] @ vectors[1::2].T * (1 / TEMPERATURE)
        loss = torch.nn.functional.cross_entropy(scores, right)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return run


CASES = [Case(16, 64, 64, 8), Case(16, 32, 64, 8)]
CONTENDERS = {
    OURS: Contender(with_minigrad),
    PEFT: Contender(with_peft, ("torch", "peft", "transformers")),
}

WORKLOADS = {
    "minilm": Workload(
        "a fine-tuning step with Adam of MiniLM, LoRA on query and value (texts, tokens, rank)",
        CONTENDERS,
        [Point(case.label, case) for case in CASES],
        [Goal(PEFT, 1.1)],
        steps=4,  # of more, a loss that is nearly 0 would be compared, and what rounding made of it
        tolerance=SAME_LOSS,
        seconds=1.0,
        rounds=9,
    ),
}
