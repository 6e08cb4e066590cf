"""Training on two processes of one thread each, beside one process, and beside PyTorch's DDP.

    python -m tests.benchmarks.ranks [--rounds N]

measures the contenders in turn: our `Trainer` alone and under `mpiexec -n 2`, and the same model in
PyTorch with DistributedDataParallel on gloo, also on one process and on two. A step has eight
micro-batches. The models are that of `examples.charlm`, all of whose weights are trained, and that
of `examples.minilm` with LoRA on query and value. The first is also trained with `capture=True`;
the second reads values in its forward pass, which a program cannot do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np

MICRO_BATCHES = 8
WARM = 2
CHARACTERS, MINILM = "charlm, all weights", "MiniLM, LoRA"
STEPS = {CHARACTERS: 30, MINILM: 6}  # some seconds each
OURS, CAPTURED, DDP = "minigrad", "minigrad, captured", "torch DDP"
LETTERS, ROWS, CONTEXT, WIDTH, HEADS, DEPTH = 85, 8, 64, 128, 4, 2  # of charlm
TEXTS, TOKENS, RANK = 16, 64, 8  # of MiniLM


def micro_batches(name: str) -> list[Any]:
    """Make up the data of one step."""
    rng = np.random.default_rng(0)
    if name == CHARACTERS:
        texts = rng.integers(0, LETTERS, (MICRO_BATCHES, ROWS, CONTEXT + 1))
        return [(text[:, :-1], text[:, 1:]) for text in texts]
    ids = rng.integers(1000, 30_000, (MICRO_BATCHES, TEXTS, TOKENS))
    return [(each, np.ones(each.shape, np.bool_), np.arange(TEXTS // 2)) for each in ids]


def train_ours(name: str, capture: bool) -> dict[str, Any]:
    """Train by our Trainer, on the ranks of this world; return the seconds of steps."""
    import lora
    from examples.charlm.model import CharacterModel, Sizes
    from examples.minilm.encoder import MiniLM
    from minigrad import Trainer, cross_entropy, optim, set_num_threads
    from minigrad.distributed import world

    set_num_threads(1)
    rng = np.random.default_rng(0)
    if name == CHARACTERS:
        model: Any = CharacterModel(LETTERS, Sizes(WIDTH, HEADS, DEPTH, CONTEXT), rng)

        def loss(scores: Any, after: Any) -> Any:
            return cross_entropy(scores.reshape(-1, LETTERS), after.reshape(-1))
    else:
        model = MiniLM()
        for parameter in model.parameters():
            parameter.copy_(0.05 * rng.standard_normal(parameter.shape))
        targets = ["query", "value"]
        lora.attach(model, lora.LoRAConfig(rank=RANK, targets=targets), rng=rng, progress=False)

        def loss(vectors: Any, right: Any) -> Any:
            return cross_entropy(vectors[::2] @ vectors[1::2].T * 20, right)

    trained = model.trainable_parameters()
    trainer = Trainer(
        model, optim.AdamW(trained), loss, accumulation_steps=MICRO_BATCHES, capture=capture,
        progress=False, rng=rng,
    )  # fmt: skip
    data = micro_batches(name)
    trainer.fit(data, steps=WARM)
    before = world().sent
    trainer.fit(data, steps=STEPS[name])
    seconds = [step["seconds"] for step in trainer.history.steps[WARM:]]
    found = {"seconds": seconds, "bytes": (world().sent - before) / STEPS[name]}
    return found if world().is_first else {}


def train_ddp(name: str) -> dict[str, Any]:
    """Train by PyTorch, on the processes that RANK and WORLD_SIZE name."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model, loss = (torch_characters if name == CHARACTERS else torch_minilm)()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    model = DistributedDataParallel(model)
    data = [tuple(map(torch.from_numpy, each)) for each in micro_batches(name)]
    own = data[rank * MICRO_BATCHES // size : (rank + 1) * MICRO_BATCHES // size]
    seconds = []
    for _ in range(WARM + STEPS[name]):
        torch.distributed.barrier()
        started = time.perf_counter()
        optimizer.zero_grad()
        with model.no_sync():
            for *inputs, target in own[:-1]:
                (loss(model(*inputs), target) / len(own)).backward()
        *inputs, target = own[-1]
        (loss(model(*inputs), target) / len(own)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1e9)  # our Trainer computes the norm, too
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    torch.distributed.destroy_process_group()
    return {"seconds": seconds[WARM:]} if rank == 0 else {}


def torch_characters() -> tuple[Any, Callable[..., Any]]:
    """Make the model of charlm in PyTorch, and its loss."""
    import torch
    from torch import nn

    class Characters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.letters, self.places = nn.Embedding(LETTERS, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            options: Any = {"dropout": 0.0, "batch_first": True, "norm_first": True}
            options["activation"] = "gelu"
            self.blocks = nn.ModuleList(
                nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, **options) for _ in range(DEPTH)
            )
            self.end = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, LETTERS))
            self.mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)

        def forward(self, text: Any) -> Any:
            x = self.letters(text) + self.places(torch.arange(CONTEXT))
            for block in self.blocks:
                x = block(x, src_mask=self.mask, is_causal=True)
            return self.end(x)

    def loss(scores: Any, after: Any) -> Any:
        return nn.functional.cross_entropy(scores.reshape(-1, LETTERS), after.reshape(-1))

    return Characters(), loss


def torch_minilm() -> tuple[Any, Callable[..., Any]]:
    """Make the model of MiniLM with PEFT's adapters, and its loss."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertModel

    from examples.minilm.encoder import Sizes

    config = BertConfig(**vars(Sizes()), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    bert = BertModel(config, add_pooling_layer=False)
    adapted: Any = get_peft_model(bert, LoraConfig(r=RANK, target_modules=["query", "value"]))

    class Vectors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = adapted

        def forward(self, ids: Any, mask: Any) -> Any:
            tokens = self.bert(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            there = mask[..., None].float()
            return torch.nn.functional.normalize((tokens * there).sum(1) / there.sum(1))

    def loss(vectors: Any, right: Any) -> Any:
        return torch.nn.functional.cross_entropy(vectors[::2] @ vectors[1::2].T * 20, right)

    return Vectors(), loss


def measured(contender: str, name: str, size: int) -> dict[str, Any]:
    """Run a contender in processes of its own, and return what its first one prints."""
    command = [sys.executable, "-m", "tests.benchmarks.ranks", "--one", contender, name]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    here = {**os.environ, **threads}
    if contender != DDP:
        start = ["mpiexec", "-n", str(size)] if size > 1 else []
        commands = [([*start, *command], here)]
    else:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "WORLD_SIZE": str(size)}
        commands = [(command, here | address | {"RANK": str(rank)}) for rank in range(size)]
    running = [
        subprocess.Popen(each, env=env, stdout=subprocess.PIPE, text=True) for each, env in commands
    ]
    outputs = [process.communicate(timeout=600)[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"{contender} on {size} processes failed")
    (line,) = (line for output in outputs for line in output.splitlines() if line[:1] == "{")
    return json.loads(line)  # type: ignore[no-any-return]


def main() -> None:
    """Measure all contenders in turn, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("CONTENDER", "MODEL"))
    options = parser.parse_args()
    if options.one:
        contender, name = options.one
        found = train_ddp(name) if contender == DDP else train_ours(name, contender == CAPTURED)
        if found:
            print(json.dumps(found), flush=True)
        return
    theirs = [DDP] * (find_spec("torch") is not None)
    for name in (CHARACTERS, MINILM):
        if name == MINILM and find_spec("peft") is None:
            theirs = []
        seconds: dict[tuple[str, int], list[float]] = {}
        sent = 0.0
        for _ in range(options.rounds):
            for contender in [OURS, *[CAPTURED] * (name == CHARACTERS), *theirs]:
                for size in (1, 2):
                    found = measured(contender, name, size)
                    seconds.setdefault((contender, size), []).append(median(found["seconds"]))
                    sent = max(sent, found.get("bytes", 0.0))
        print(f"\n{name}: a rank sends {sent / 1e6:.3f} MB in a step")
        for (contender, size), times in seconds.items():
            alone = seconds[contender, 1]
            faster = median(one / two for one, two in zip(alone, times, strict=True))
            ours = seconds[OURS, size]
            against = median(theirs / own for theirs, own in zip(times, ours, strict=True))
            print(
                f"  {contender:18} {size} of 1 thread: {median(times) * 1e3:8.1f} ms a step, "
                f"{faster:.2f} times its one process, {against:.2f} of ours"
            )


if __name__ == "__main__":
    main()
