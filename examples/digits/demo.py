"""The demo from start to end: pretrain, fine-tune, adapt and switch, and check the results."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import lora
from examples.command_line import check_out
from examples.digits.data import INVERTED, KINDS, ROTATED, UPRIGHT, Digits, Rows, split
from examples.digits.equal_time import (
    SHIFTED,
    Readers,
    comparison,
    compile_kernels,
    gains,
    mean_gain,
    train_in_turns,
)
from examples.digits.equal_time_picture import draw_readers
from examples.digits.picture import draw
from examples.digits.report import (
    BASE,
    OFF,
    Result,
    adapted,
    adapter_bytes,
    judged,
    shares,
    state_bytes,
    table,
    tuned,
)
from minigrad import Trainer, cross_entropy, gelu, no_grad, tensor
from minigrad.nn import MLP
from minigrad.optim import Adam, CosineAnnealingLR
from minigrad.progress import progress_bar

SIZES = (64, 256, 256, 10)
CONFIG = lora.LoRAConfig(rank=8, alpha=16, targets=["layers.0", "layers.1", "layers.2"])
NEW = (INVERTED, ROTATED)
BATCH_SIZE = 32
SPLITS, SPLITS_IN_TURNS = 5, 12  # of the full form; the quick form has one
FULL_RATE, LORA_RATE = 1e-3, 1e-2  # chosen with other splits than those of `main`


def main(
    quick: bool = False,
    out: str | Path | None = None,
    capture: bool = False,
    cnn: bool = False,
) -> list[Result] | list[Readers]:
    """Run the demo with several random splits, print the table, and save the picture.

    Args:
        quick: run a smaller form.
        out: the file of the picture; None for digits.png, or with `cnn` for digits_cnn.png.
        capture: train with captured steps, which give the same bits.
        cnn: train a CNN and an MLP in equal time instead.

    Raises:
        OptionError: if the picture cannot be saved at `out`.
    """
    if out is None:
        out = "digits_cnn.png" if cnn else "digits.png"
    check_out(out)
    return compare(quick, out, capture) if cnn else adapt(quick, out, capture)


def compare(quick: bool, out: str | Path, capture: bool) -> list[Readers]:
    """Train a CNN and an MLP in equal time, and check that the CNN reads more shifted digits.

    Of upright digits both read almost all. The table says whether their difference is clear, which
    depends on the speed of the machine and on the number of splits. The check is only that the CNN
    does not read clearly less of them.
    """
    seeds, seconds = (range(1), 0.4) if quick else (range(SPLITS_IN_TURNS), 1.0)
    first = compile_kernels(capture)
    words = ", ".join(f"{name} {took:.1f} s" for name, took in first.items())
    print(f"The first steps, in which kernels are compiled or loaded, are not counted: {words}\n")
    results = [
        train_in_turns(np.random.default_rng(seed), seconds, capture)
        for seed in progress_bar(seeds, what="training in turns", unit="split", shown=True)
    ]
    print(comparison(results, seconds))
    draw_readers(results, out)
    print(f"\nThe picture is in {out}")

    assert gains(results, SHIFTED).min() > 0.05, "the CNN reads more of the shifted digits"
    if not quick:
        gain, margin = mean_gain(results, UPRIGHT)
        assert gain > -margin, "and no less of the upright ones"
    return results


def adapt(quick: bool, out: str | Path, capture: bool) -> list[Result]:
    """Teach one network new digits by fine-tuning and by adapters, and check what each forgets."""
    seeds, epochs = (range(1), 6) if quick else (range(SPLITS), 30)
    results = [
        one_split(np.random.default_rng(seed), epochs, capture)
        for seed in progress_bar(seeds, what="pretraining and adapting", unit="split", shown=True)
    ]
    print(table(results))
    draw(results, split(np.random.default_rng(0)).test, out)
    print(f"\nThe picture is in {out}")

    for kind in NEW:
        known, full, low_rank = BASE, tuned(kind), adapted(kind)
        assert shares(results, known, kind).mean() < 0.3, "the base cannot read this kind"
        assert shares(results, low_rank, kind).mean() > 0.9
        gap = shares(results, full, kind).mean() - shares(results, low_rank, kind).mean()
        assert gap < 0.02, "the adapter is as good as full fine-tuning"
        lost = shares(results, known, UPRIGHT).mean() - shares(results, full, UPRIGHT).mean()
        assert lost > 0.2, "full fine-tuning forgets"
        first = results[0]
        assert first[low_rank].trained < first[full].trained / 9
        assert first[low_rank].size < first[full].size / 8
    return results


def one_split(rng: np.random.Generator, epochs: int, capture: bool = False) -> Result:
    """Pretrain on upright digits, then teach the other kinds by both methods.

    The asserts check two promises, bit for bit: with each adapter, the network computes the same as
    after the training of this adapter; without adapters, the base computes the same as before.
    """
    digits = split(rng)
    base = MLP(SIZES, activation=gelu, rng=rng)
    train(base, digits.train[UPRIGHT], FULL_RATE, epochs, rng, capture)
    before = scores(base, digits)
    size, count = state_bytes(base), base.count_parameters()
    result = {BASE: judged(before, digits, count, size)}
    for kind in NEW:
        full = copy.deepcopy(base)
        train(full, digits.train[kind], FULL_RATE, epochs, rng, capture)
        result[tuned(kind)] = judged(scores(full, digits), digits, count, size)

    after = {}
    for kind in NEW:  # each pass adds one adapter to the base
        report = lora.attach(base, CONFIG, adapter=kind, rng=rng)
        train(base, digits.train[kind], LORA_RATE, epochs, rng, capture)
        after[kind] = scores(base, digits)
        size = adapter_bytes(base, kind)
        result[adapted(kind)] = judged(after[kind], digits, report.trainable, size)
    for kind in NEW:
        lora.switch(base, kind)
        assert same(scores(base, digits), after[kind])
    lora.switch(base)
    assert same(scores(base, digits), before)
    result[OFF] = judged(before, digits)
    return result


def train(
    model: MLP, rows: Rows, lr: float, epochs: int, rng: np.random.Generator, capture: bool
) -> None:
    """Train all trainable parameters by Adam, with a rate that falls to 0 along half a cosine."""
    optimizer = Adam(model.trainable_parameters(), lr=lr)
    steps = epochs * -(-len(rows.x) // BATCH_SIZE)
    trainer = Trainer(
        model,
        optimizer,
        cross_entropy,
        batch_size=BATCH_SIZE,
        scheduler=CosineAnnealingLR(optimizer, steps),
        progress=False,
        rng=rng,
        capture=capture,
    )
    trainer.fit(rows, epochs)


def scores(model: MLP, digits: Digits) -> dict[str, NDArray[np.float32]]:
    """Return the outputs of a network for the test digits: for each kind `(n, 10)`."""
    with no_grad():
        return {kind: model(tensor(digits.test[kind].x)).numpy() for kind in KINDS}


def same(some: dict[str, NDArray[np.float32]], others: dict[str, NDArray[np.float32]]) -> bool:
    """Return whether scores are equal, bit for bit."""
    return all(some[kind].tobytes() == others[kind].tobytes() for kind in KINDS)
