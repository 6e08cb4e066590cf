"""How many machines does it pay to train on? A prediction from this one, in full and by LoRA.

`Trainer` divides a step among n hosts: each gets at most ceil(M / n) of its M micro-batches. Each
host also adds up 1 / n of the numbers of the gradients, which have B bytes. It gets this share from
the n - 1 other hosts in a message each, and then sends them the sums. No host computes meanwhile:

    seconds of a step = ceil(M / n) s + u + f + 2 (n - 1) (B / (n b) + o) + (2 + ceil(log2(n))) l

    s  seconds of one micro-batch, forward and backward      b  bytes per second of a message
    u  seconds of the update and of the gradient norm        o  seconds of work for each message
    f  seconds of a sum of a single number                   l  the latency of the network

A host sends its messages at the same time, so it waits for the latency once in each of the two
exchanges, and log2(n) times in the synchronisation before.

The demo measures s and u here, on one thread, and on two ranks also b and f. On a network, a step
takes longer than here: the wire transmits the bytes, and adds a latency of 50 microseconds, which
is usual for TCP. Each message takes MPI and Python 5 microseconds.
The efficiency is the time that one host alone would need, divided by the total time of all hosts.
Hosts with more cores have a smaller s, and so wait more. The formula ignores that all hosts wait
for the slowest one, and that switches may be crowded.

You will see why LoRA suits slow networks: it sends only the gradients of its adapters. The demo
also compares the formula with the Trainer here, for a step of a few micro-batches. On one rank
there are no messages to measure, and the prediction counts only the time on the wire. It takes a
minute, and draws scaling.png.

    python -m examples.scaling
    mpiexec -n 2 python -m examples.scaling
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import lora
import minigrad
from examples.command_line import Parser, check_out, run
from examples.one_thread import one_thread
from minigrad import Trainer
from minigrad.distributed import World, world
from minigrad.nn import Module, Sequential, TransformerBlock
from minigrad.optim import Adam, grad_norm
from minigrad.progress import progress_bar
from minigrad.tables import aligned

FULL, LORA = "full", "LoRA"
LINES = {FULL: "--", LORA: "-"}
COLORS = {1: "#D55E00", 10: "#0072B2", 100: "#009E73"}  # the colour of each network, by its Gbit/s
HOSTS = [2**level for level in range(11)]
SHOWN = (2, 8, 32, 128, 512, 1024)  # the numbers of hosts in the printed table
MICRO_BATCHES = HOSTS[-1]  # of a predicted step, so that each host has one
ROW = 40  # bytes that the Trainer adds up for each micro-batch besides gradients: loss, count, ...


@dataclass(frozen=True)
class Plan:
    """The sizes of the model and of a micro-batch, and what is measured.

    Attributes:
        d_model: the width of the transformer.
        depth: the number of its blocks.
        length: the number of tokens of a sequence.
        rows: the number of sequences in a micro-batch.
        checked: the number of micro-batches in a step that is predicted and measured.
        rounds: how often each step is measured, each time twice in a row.
    """

    d_model: int = 256
    depth: int = 4
    length: int = 64
    rows: int = 8
    checked: int = 8
    rounds: int = 5


QUICK = Plan(d_model=32, depth=1, length=16, rows=2, checked=5, rounds=2)


@dataclass(frozen=True)
class Link:
    """What sums over hosts cost: b, f, o and l of the formula."""

    bandwidth: float = math.inf
    of_sum: float = 0.0
    of_message: float = 0.0
    latency: float = 0.0

    def then(self, other: Link) -> Link:
        """Return the link of bytes that pass through this link and then the other."""
        return Link(
            1 / (1 / self.bandwidth + 1 / other.bandwidth),
            self.of_sum + other.of_sum,
            self.of_message + other.of_message,
            self.latency + other.latency,
        )


NETWORKS = {
    gigabits: Link(gigabits * 1e9 / 8, of_message=5e-6, latency=50e-6) for gigabits in COLORS
}


@dataclass(frozen=True)
class Work:
    """The parts of a step: seconds of a micro-batch and of an update, bytes of gradients."""

    micro_batch: float
    update: float
    gradients: int

    def summed(self, micro_batches: int) -> int:
        """Return the bytes of the numbers that the hosts add up in a step."""
        return self.gradients + ROW * micro_batches

    def sent(self, hosts: int, micro_batches: int) -> float:
        """Return the bytes that a host sends in a step."""
        return 2 * (hosts - 1) / hosts * self.summed(micro_batches)

    def seconds(self, hosts: int, micro_batches: int, link: Link) -> float:
        """Predict the seconds of a step."""
        compute = math.ceil(micro_batches / hosts) * self.micro_batch + self.update
        if hosts == 1:
            return compute
        messages = 2 * (hosts - 1) * link.of_message
        messages += self.sent(hosts, micro_batches) / link.bandwidth
        return compute + link.of_sum + messages + (2 + math.ceil(math.log2(hosts))) * link.latency

    def efficiency(self, hosts: int, micro_batches: int, link: Link) -> float:
        """Predict the time of one host alone, divided by the total time of all hosts."""
        alone = self.seconds(1, micro_batches, link)
        return alone / (hosts * self.seconds(hosts, micro_batches, link))


@dataclass(frozen=True)
class Check:
    """The seconds of a step here, predicted and measured, and the bytes that rank 0 sent in it."""

    kind: str
    ranks: int
    predicted: float
    measured: float
    sent: int

    def __str__(self) -> str:
        error = self.predicted / self.measured - 1
        seconds = f"{self.predicted:.3g} s predicted, {self.measured:.3g} s measured"
        return f"{self.kind}, n = {self.ranks}: {seconds} ({error:+.0%})"


@dataclass(frozen=True)
class Result:
    """The results: the parts of a step of each kind, the cost of sums here, and the checks."""

    work: dict[str, Work]
    here: Link
    checks: list[Check]


def main(quick: bool = False, out: str | Path = "scaling.png") -> Result:
    """Measure, predict, compare the predictions with steps of the Trainer, and draw the picture.

    Raises:
        OptionError: if the picture cannot be saved at `out`.
    """
    check_out(out)
    plan, ranks = QUICK if quick else Plan(), world()
    here = Link() if ranks.size == 1 else measured_link(ranks, prepared(FULL, plan))
    work, checks = {}, []
    for kind in (FULL, LORA):
        gradients = 4 * prepared(kind, plan).count_parameters(trainable_only=True)
        # The ranks measure at the same time, because they share the memory of a machine.
        (three, all_alone), update, sent = alone(ranks, steps, kind, plan, (3, plan.checked))
        work[kind] = Work((three - update) / 3, update, gradients)
        predicted = work[kind].seconds(1, plan.checked, here)
        checks.append(Check(kind, 1, predicted, all_alone, sent))
        if ranks.size > 1:
            (together,), _, sent = steps(kind, plan, [plan.checked])
            predicted = work[kind].seconds(ranks.size, plan.checked, here)
            checks.append(Check(kind, ranks.size, predicted, together, sent))
    result = Result(work, here, checks)
    if ranks.is_first:
        print(summary(result, plan))
        draw(result, plan, out)
        print(f"\nThe picture is in {out}")
    for check in checks if ranks.is_first else ():  # another rank may have several sums to send
        expected = work[check.kind].sent(check.ranks, plan.checked)
        # Arrays are padded, and a rank sends a few facts to each other one when an epoch begins.
        assert expected <= check.sent <= 1.1 * expected + 4096 * (check.ranks - 1), check.sent
    if not quick:
        full, low_rank = (
            work[kind].efficiency(HOSTS[-1], MICRO_BATCHES, here.then(NETWORKS[1]))
            for kind in (FULL, LORA)
        )
        assert low_rank > 2 * full, "what LoRA sends is less than a tenth"
    return result


# --------------------------------------------------------------------------------------------------
# What is measured
# --------------------------------------------------------------------------------------------------


def prepared(kind: str, plan: Plan) -> Module:
    """Return a transformer in which all weights train, or only the adapters on them."""
    rng = np.random.default_rng(0)
    model = Sequential(*(TransformerBlock(plan.d_model, 4, rng=rng) for _ in range(plan.depth)))
    if kind == LORA:
        lora.attach(model, lora.LoRAConfig(rank=8), rng=rng)
    return model


@one_thread()
def steps(kind: str, plan: Plan, counts: Sequence[int]) -> tuple[list[float], float, int]:
    """Measure the steps of a Trainer in the current world.

    The numbers of micro-batches take turns, so that other work of the machine affects all of them.

    Returns:
        The seconds of a step for each number of micro-batches; the seconds of the update in it;
        and the bytes that this rank sent in the last step.
    """
    model, rng = prepared(kind, plan), np.random.default_rng(0)
    parameters = model.trainable_parameters()
    optimizer = Adam(parameters, lr=1e-4)
    sent: list[int] = []
    times: list[list[float]] = [[] for _ in counts]
    updates = []
    trainers = [
        Trainer(
            model,
            optimizer,
            minigrad.mse,
            batch_size=plan.rows,
            accumulation_steps=count,
            on_step=lambda _: sent.append(world().sent),
            progress=False,
            rng=rng,
        )
        for count in counts
    ]
    shape = (max(counts) * plan.rows, plan.length, plan.d_model)
    x, y = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
    rounds = range(1 + plan.rounds)
    for _ in progress_bar(rounds, what=f"measuring {kind}", unit="round", shown=True):
        for count, trainer, own in zip(counts, trainers, times, strict=True):
            rows = count * plan.rows
            history = trainer.fit((x[:rows], y[:rows]), epochs=2)  # of one step each
            own[:] = [step["seconds"] for step in history.steps[2:]]
        start = time.perf_counter()
        grad_norm(parameters)  # as the Trainer does in each step
        optimizer.step()
        updates.append(time.perf_counter() - start)
    # The first steps compile kernels, and create what the later ones use.
    return [slowest(own) for own in times], slowest(updates[1:]), sent[-1] - sent[-2]


def slowest(seconds: Sequence[float]) -> float:
    """Return the largest median over the ranks of the times that each rank measured."""
    largest: float = max(world().gather(median(seconds)))
    return largest


def alone(ranks: World, function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function in a world of one; each of several ranks starts a separate process for it."""
    if ranks.size == 1:
        return function(*arguments)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measured_link(ranks: World, model: Module) -> Link:
    """Measure sums over the ranks: the time to pack, send, receive and add numbers."""
    part = ranks.rank, ranks.rank + 1
    short, long = [np.zeros(1, np.float32)], [p.detach().numpy() for p in model.parameters()]
    times: list[list[float]] = [[], []]
    for _ in range(20):
        for arrays, own in zip((short, long), times, strict=True):
            ranks.barrier()
            start = time.perf_counter()
            ranks.sum_parts(ranks.size, {part: arrays}, arrays)
            own.append(time.perf_counter() - start)
    of_sum, seconds = map(slowest, times)
    sent = Work(0, 0, sum(array.nbytes for array in long)).sent(ranks.size, 0)
    return Link(sent / max(seconds - of_sum, 1e-9), of_sum)


# --------------------------------------------------------------------------------------------------
# What is shown
# --------------------------------------------------------------------------------------------------


def summary(result: Result, plan: Plan) -> str:
    """Return the text to print: what was measured, the checks, and the predictions."""
    lines = [
        f"{kind}: {1000 * w.micro_batch:.1f} ms for a micro-batch, {1000 * w.update:.1f} ms for an "
        f"update, {w.gradients / 1e6:.3g} MB of gradients"
        for kind, w in result.work.items()
    ]
    lines += [sums_here(result.here), "", f"A step of {plan.checked} micro-batches here:"]
    lines += map(str, result.checks)
    lines += [
        "",
        f"Predicted seconds of a step of {MICRO_BATCHES:,} micro-batches, and efficiency:",
    ]
    rows = []
    for kind, gigabits, work, link in curves(result):
        row = [f"{kind}, {gigabits} Gbit/s"]
        for hosts in SHOWN:
            seconds = work.seconds(hosts, MICRO_BATCHES, link)
            row.append(f"{seconds:.3g} ({work.efficiency(hosts, MICRO_BATCHES, link):.0%})")
        rows.append(row)
    head = ["hosts", *(f"{hosts:,}" for hosts in SHOWN)]
    return "\n".join([*lines, *aligned(head, rows, left=1)])


def sums_here(here: Link) -> str:
    """Describe the cost of sums over the ranks."""
    if here == Link():
        return "b of the wire alone, f = 0; start two ranks to measure sums (mpiexec -n 2 ...)"
    return (
        f"b of the wire, and of sums here: {here.bandwidth / 1e9:.2g} GB/s with packing and "
        f"adding; f = {1e6 * here.of_sum:.0f} us"
    )


def curves(result: Result) -> Iterator[tuple[str, int, Work, Link]]:
    """Yield for each curve the kind of training, the network, the work and the link."""
    for kind, work in result.work.items():
        for gigabits, network in NETWORKS.items():
            yield kind, gigabits, work, result.here.then(network)


def draw(result: Result, plan: Plan, out: str | Path) -> None:
    """Save the picture: seconds and efficiency by the number of hosts, the formula, the checks."""
    figure = Figure(figsize=(12, 6.2), layout="constrained")
    (seconds, efficiency), (left, right) = figure.subplots(
        2, 2, width_ratios=(1.1, 1), height_ratios=(3.6, 1)
    )
    seconds.set_yscale("log")
    seconds.yaxis.set_major_formatter("{x:g} s")
    seconds.set_title(f"Seconds of a step of {MICRO_BATCHES:,} micro-batches, T(n)", loc="left")
    draw_curves(seconds, result, Work.seconds, "{:.2f} s")
    efficiency.set_yticks(np.linspace(0, 1, 6), [f"{part}%" for part in range(0, 101, 20)])
    efficiency.set_ylim(0, 1.02)
    efficiency.set_title("Efficiency: T(1) / (n T(n)), 100% without waiting", loc="left")
    draw_curves(efficiency, result, Work.efficiency, "{:.0%}")
    write(left, formula(result))
    head = f"The formula against the Trainer here, on n processes, with M = {plan.checked}:"
    write(right, [head, *map(str, result.checks)])
    figure.savefig(out, dpi=100)


def draw_curves(axes: Axes, result: Result, of: Callable[..., float], form: str) -> None:
    """Draw a number that `of` predicts, by the number of hosts, with a label at each end."""
    ends = []
    for kind, gigabits, work, link in curves(result):
        values = [of(work, hosts, MICRO_BATCHES, link) for hosts in HOSTS]
        axes.plot(HOSTS, values, LINES[kind], color=COLORS[gigabits], linewidth=2)
        ends.append((values[-1], f"{kind}, {gigabits} Gbit/s: {form.format(values[-1])}", gigabits))
    axes.set_xscale("log", base=2)
    axes.set_xticks(HOSTS[::2], [f"{hosts:,}" for hosts in HOSTS[::2]])
    axes.minorticks_off()
    axes.set(xlim=(1, HOSTS[-1]), xlabel="hosts")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    ends.sort()
    to_height = axes.transData + axes.transAxes.inverted()  # from 0 at the bottom to 1 at the top
    heights = to_height.transform([(HOSTS[-1], value) for value, *_ in ends])[:, 1]
    for _ in range(100):  # labels that would overlap push each other apart
        overlaps = np.maximum(0.05 - np.diff(heights), 0) / 2
        heights[:-1] -= overlaps
        heights[1:] += overlaps
        heights[0] = max(heights[0], 0.03)  # above the numbers of the axis
    for height, (_, text, gigabits) in zip(heights, ends, strict=True):
        where = axes.transAxes
        axes.text(1.02, height, text, color=COLORS[gigabits], va="center", transform=where)


def write(axes: Axes, lines: Sequence[str]) -> None:
    """Write lines of text in a panel without axes."""
    axes.axis("off")
    axes.text(0, 1, "\n".join(lines), va="top", linespacing=1.5).set_in_layout(False)


def formula(result: Result) -> list[str]:
    """Return the formula of the curves, and its numbers."""
    numbers = [
        f"{kind}: s = {1e3 * work.micro_batch:.3g} ms, u = {1e3 * work.update:.2g} ms, "
        f"B = {work.summed(MICRO_BATCHES) / 1e6:.2g} MB"
        for kind, work in result.work.items()
    ]
    return [
        r"$T(n) = \lceil M/n \rceil \, s + u + f"
        r" + 2 (n-1) (B/nb + o) + (2 + \lceil \log_2 n \rceil) \, l$",
        "M micro-batches, an update, messages; each of n hosts adds up 1/n of the gradients",
        f"{numbers[0]} (dashed)",
        f"{numbers[1]} (solid)",
        sums_here(result.here),
    ]


if __name__ == "__main__":
    run(main, Parser("scaling", __doc__))
