"""Why is LoRA not faster, and what does it save? One step of one transformer, in full and by LoRA.

To train a weight, a step computes three matrix products of the same size: one in the forward pass,
one for the gradient of the layer's input, and one for the gradient of the weight. LoRA freezes the
weight, so only the last product is not needed, and LoRA avoids at most a third of the work. But it
avoids nearly all of the memory that each trained parameter needs: for its gradient, and for the two
values that Adam stores.

You will see the counts of full training, of LoRA, and of LoRA with `checkpoint` side by side, the
seconds that they take, and a picture of the memory that is saved for the backward pass. If a value
is needed only for the gradients of frozen weights, it is not saved. Checkpointing, which runs each
block again in the backward pass, lowers the peak much more. It takes half a minute, and draws
why_lora_is_not_faster.png.

    python -m examples.why_lora_is_not_faster
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import lora
from examples.command_line import Parser, check_out, run
from minigrad import Tensor, checkpoint, mse, receipt
from minigrad.diagnostics import Receipt, ReceiptComparison, compare
from minigrad.nn import Sequential, TransformerBlock
from minigrad.optim import Adam
from minigrad.progress import progress_bar

FULL, LORA, AGAIN = "full", "LoRA", "LoRA + checkpoint"
STYLES = {FULL: ("#D55E00", "--"), LORA: ("#0B4F8A", "-"), AGAIN: ("#009E73", ":")}
ADAPTED = ("q_proj", "v_proj")  # in each attention layer, as in the LoRA paper
Step = Callable[[], None]


def main(quick: bool = False, out: str | Path = "why_lora_is_not_faster.png") -> ReceiptComparison:
    """Count and time a step of each kind, print the table, and draw the picture.

    Raises:
        OptionError: if the picture cannot be saved at `out`.
    """
    check_out(out)
    d_model, depth, length, repeats = (64, 3, 32, 3) if quick else (256, 6, 128, 9)
    steps = {name: prepared(name, d_model, depth, length) for name in (FULL, LORA, AGAIN)}
    receipts: dict[str, Receipt] = {}
    for name, step in progress_bar(steps.items(), what="counting", unit="step", shown=True):
        step()  # the first step creates what the later steps use
        with receipt() as receipts[name]:
            step()
    # Take turns, so that other work of the machine affects all steps, and use the best times.
    bar = progress_bar(range(repeats), what="timing", unit="round", shown=True)
    rounds = [{name: timed(step) for name, step in steps.items()} for _ in bar]
    seconds = {name: min(times[name] for times in rounds) for name in steps}

    compared = compare(receipts)
    print(compared, "\n")
    for name in receipts:
        share = seconds[name] / seconds[FULL]
        print(f"{name} takes {1000 * seconds[name]:.0f} ms per step, {share:.2f} of full training.")
    assert compared.ratio(LORA, "forward_flops") > 1, "the adapters are additional work"
    assert 1 / 3 < compared.ratio(LORA, "backward_flops") < 2 / 3, "dx is still computed, dW is not"
    assert compared.ratio(LORA, "flops") > 0.6, "so it cannot be much faster"
    assert compared.ratio(LORA, "gradient_bytes") < 0.1
    assert compared.ratio(LORA, "optimizer_bytes") < 0.1
    assert compared.ratio(AGAIN, "peak_saved_bytes") < compared.ratio(LORA, "peak_saved_bytes") < 1
    draw(receipts, out)
    print(f"\nThe picture is in {out}")
    return compared


def prepared(name: str, d_model: int, depth: int, length: int) -> Step:
    """Return a function that does one training step, with its own model, optimiser and batch."""
    rng = np.random.default_rng(0)
    model = Sequential(*(TransformerBlock(d_model, 4, rng=rng) for _ in range(depth)))
    if name != FULL:
        lora.attach(model, lora.LoRAConfig(rank=8, targets=ADAPTED), rng=rng)
    optimizer = Adam(model.trainable_parameters(), lr=1e-3)
    shape = (8, length, d_model)
    x, y = (Tensor(rng.standard_normal(shape, dtype=np.float32)) for _ in range(2))

    def step() -> None:
        optimizer.zero_grad()
        h = x
        for block in model:
            h = checkpoint(block, h) if name == AGAIN else block(h)
        mse(h, y).backward()
        optimizer.step()

    return step


def timed(step: Step) -> float:
    """Return the seconds that one step takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def draw(receipts: dict[str, Receipt], out: str | Path) -> None:
    """Save the picture: the forward pass from 0 to 1, the backward pass from 1 to 2."""
    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, r in receipts.items():
        forward = [0, *(m.saved_bytes for m in r.timeline if m.phase == "forward")]
        backward = [m.saved_bytes for m in r.timeline if m.phase != "forward"]
        times = [*np.linspace(0, 1, len(forward)), *np.linspace(1, 2, len(backward) + 1)[1:]]
        color, line = STYLES[name]
        label = f"{name}: {r.peak_saved_bytes / 2**20:.3g} MiB at the peak"
        mebibytes = np.array([*forward, *backward]) / 2**20
        axes.plot(times, mebibytes, line, color=color, linewidth=2.5, label=label)
    axes.axvspan(1, 2, color="0.95", zorder=0)
    axes.set(
        title="Memory that is kept for the backward pass, during one training step",
        xlim=(0, 2),
        ylim=(0, 1.2 * max(r.peak_saved_bytes for r in receipts.values()) / 2**20),
        ylabel="MiB",
    )
    axes.set_xticks([0.5, 1.5], ["forward pass", "backward pass"], size="large")
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    run(main, Parser("why_lora_is_not_faster", __doc__))
