"""Trainings of many kinds, and digests of what comes out: the same for any number of ranks.

    mpiexec -n 3 python -m tests.minigrad.distributed.trainings [--steps N] [kinds]

prints a line of JSON for each rank: the digest of each training. With --checkpoint FOLDER each goes
on from its file there, and writes it again at the end.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np

import lora
import minigrad
from minigrad import Trainer, nn, optim

STEPS = 20
WIDTH, ROWS, LENGTH = 16, 90, 5
LORA = lora.LoRAConfig(rank=4, targets="all-linear")
DROPPING = lora.LoRAConfig(rank=4, targets="all-linear", dropout=0.2)


def mlp(rng):
    layers = (
        nn.Linear(WIDTH, 32, rng=rng),
        nn.GELU(),
        nn.Dropout(0.2),
        nn.Linear(32, WIDTH, rng=rng),
    )
    return nn.Sequential(*layers)


def transformer(rng):
    blocks = [
        nn.TransformerBlock(WIDTH, 2, dropout=0.1, rng=each) for each in (rng, rng.spawn(1)[0])
    ]
    return nn.Sequential(*blocks)


def adapted(rng, config=LORA, quantised=False):
    model = transformer(rng)
    if quantised:
        lora.quantize(model, progress=False)
    lora.attach(model, config, rng=rng, progress=False)
    return model


def counted(prediction, target):
    """A loss that counts targets above 0, as one with an `ignore_index` does."""
    which = target > 0
    missed = (prediction - target) ** 2 * which
    return missed.sum() / which.sum(), float(which.sum())


KINDS = {
    "MLP with dropout, clipping, EMA, scheduler": (mlp, {}),
    "all weights of a transformer": (transformer, {}),
    "LoRA": (adapted, {}),
    "DoRA": (
        lambda rng: adapted(rng, lora.LoRAConfig(rank=4, targets="all-linear", use_dora=True)),
        {},
    ),
    "LoRA with dropout": (lambda rng: adapted(rng, DROPPING), {}),
    "NF4": (lambda rng: adapted(rng, quantised=True), {}),
    "a loss that counts": (adapted, {"loss": counted}),
    "captured": (adapted, {"capture": True}),
    "several optimiser steps in a group": (mlp, {"accumulation_steps": 7, "batch_size": 2}),
}


def trained(kind, steps=STEPS, checkpoint=None):
    """Train, and return a digest of all that comes out."""
    make, options = KINDS[kind]
    minigrad.manual_seed(3)
    rng = np.random.default_rng(0)
    model = make(rng)
    shape = (ROWS, WIDTH) if make is mlp else (ROWS, LENGTH, WIDTH)
    x = rng.standard_normal(shape, np.float32)
    optimizer = optim.AdamW(model.trainable_parameters(), lr=1e-2)
    options = {
        "loss": minigrad.mse, "batch_size": 4, "accumulation_steps": 5, "clip_norm": 0.5,
        "ema": optim.EMA(model), "scheduler": optim.WarmupCosineLR(optimizer, 3, 40),
        "patience": 100, "checkpoint": checkpoint, **options,
    }  # fmt: skip
    trainer = Trainer(model, optimizer, progress=False, rng=np.random.default_rng(5), **options)
    if checkpoint is not None and minigrad.distributed.world().on_first(checkpoint.exists, "there"):
        trainer.load(checkpoint)
    trainer.fit((x, x[::-1].copy()), steps=steps, validation=(x[:30], x[1:31]))
    records = [[r["loss"], r["grad_norm"]] for r in trainer.history.steps]
    records += [[r["validation_loss"]] for r in trainer.history.epochs]
    known = hashlib.sha256(json.dumps(records).encode())
    for parameter in model.parameters():
        known.update(parameter.data.tobytes())
    known.update(trainer.predict(x[:30]).tobytes())
    return known.hexdigest()[:16]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    found = {}
    for number, kind in enumerate(options.kinds or KINDS):
        folder = options.checkpoint
        file = None if folder is None else folder / f"{number}.safetensors"
        found[kind] = trained(kind, options.steps, file)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
