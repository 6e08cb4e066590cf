"""The figures as a picture: the ratios of every work, and products under the machine's roof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # once the backend is chosen
from matplotlib.lines import Line2D

from tests.benchmarks.driver import Measured
from tests.benchmarks.report import Verdict, goals_of, peers_in
from tests.benchmarks.workload import BEST, OURS, Goal, Workload

ByName = Mapping[str, list[Measured]]

COLOURS = {
    OURS: "#c0392b",
    "numpy": "#2980b9",
    "torch": "#e67e22",
    "autograd": "#7f8c8d",
    "JAX": "#8e44ad",
    "torch + PEFT": "#16a085",
    "torch, fused": "#a04000",
    "torch, foreach": "#f1b24a",
    BEST: "#2c3e50",
    "measured peak": "#7fb800",
}
BESIDE: Any = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "frameon": False}
ASIDE = {OURS: 1.0, "numpy": 0.94, "torch": 1.06}  # so that equal marks do not cover each other
FEW = 12  # points that get a row each; more of them share one
PRODUCTS = {"matmul": "o", "thin": "v", "batched": "s"}


class Row(NamedTuple):
    """A line of the chart: a label, and for each peer the verdict on it at these points."""

    label: str
    points: list[str]
    verdicts: list[Verdict]


def draw(
    path: Path,
    facts: Mapping[str, str],
    workloads: Mapping[str, Workload],
    results: Mapping[int, ByName],
) -> bool:
    """Draw the ratios and, if the roof was measured, the roofline, a column for each threads.

    Returns whether there was something to draw: there is not without peers.
    """
    rows_of = {t: chart_rows(workloads, by_name, t) for t, by_name in results.items()}
    measured = {t: by_name for t, by_name in results.items() if rows_of[t]}
    if not measured:
        return False
    tall = 1.2 + 0.24 * max(map(len, rows_of.values()))
    with_roof = any("roof" in by_name for by_name in measured.values())
    figure = plt.figure(
        figsize=(9.5 * len(measured), tall + (5.5 if with_roof else 0) + 0.6),
        layout="constrained",
    )
    grid = figure.add_gridspec(
        1 + with_roof, len(measured), height_ratios=[tall, 5.5] if with_roof else [tall]
    )
    for column, (threads, by_name) in enumerate(measured.items()):
        title = f"{threads} thread{'s'[: threads > 1]}"
        _ratios(figure.add_subplot(grid[0, column]), rows_of[threads], title)
        if "roof" in by_name:
            _roofline(figure.add_subplot(grid[1, column]), by_name, title)
    figure.suptitle(", ".join(f"{name} {value}" for name, value in facts.items()), fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def chart_rows(workloads: Mapping[str, Workload], by_name: ByName, threads: int) -> list[Row]:
    """The rows of the chart, from top to bottom; works without a peer have none."""
    rows = []
    for name, measured in by_name.items():
        peers = peers_in(measured)
        goals = goals_of(workloads[name], threads)
        wanted = {goal.peer for goal in goals}
        goals += [Goal(peer) for peer in peers if peer not in wanted]
        if not peers:
            continue
        groups = [[m] for m in measured] if len(measured) <= FEW else [measured]
        for group in groups:
            verdicts = [Verdict(goal, group) for goal in goals]
            label = f"{name} {group[0].label}" if len(groups) > 1 else name
            rows.append(Row(label, [m.label for m in group], [v for v in verdicts if v.ratios]))
    return rows


def _ratios(axes: Any, rows: Sequence[Row], title: str) -> None:
    """Dots for geometric means, thin lines from the least to the most, ticks for what is wanted."""
    seen: dict[str, Any] = {}
    for y, row in enumerate(rows):
        axes.axhspan(y - 0.5, y + 0.5, color="#f4f4f4" if y % 2 else "white", zorder=0)
        for verdict in row.verdicts:
            peer = verdict.goal.peer
            colour = COLOURS.get(peer, "#555555")
            if len(row.points) > 1:
                span = [verdict.least, max(verdict.ratios.values())]
                axes.plot(span, [y, y], color=colour, linewidth=1.5, alpha=0.5, zorder=2)
            face = colour if verdict.met else "white"
            axes.plot(
                verdict.mean, y, "o", color=colour, markersize=6, markerfacecolor=face, zorder=5
            )
            seen[peer] = Line2D([], [], marker="o", linestyle="", color=colour)
            wanted = _wanted(verdict, row)
            if wanted is not None:
                axes.plot(wanted, y, "|", color=colour, markersize=13, markeredgewidth=2, zorder=4)
    axes.axvline(1, color="black", linewidth=1, zorder=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0.5)
    axes.set_xlabel("the peer's time (memory) over ours: further right is better for us")
    axes.set_title(f"{title}: dots are geometric means, lines go from least to most", fontsize=10)
    seen["wanted"] = Line2D([], [], marker="|", linestyle="", color="black", markersize=11)
    seen["misses it"] = Line2D([], [], marker="o", linestyle="", color="black", mfc="white")
    axes.legend(seen.values(), seen.keys(), fontsize=8, **BESIDE)


def _wanted(verdict: Verdict, row: Row) -> float | None:
    """What the dot of a row is measured by."""
    if len(row.points) > 1:
        return verdict.goal.mean
    return verdict.goal.at(row.points[0])


def _roofline(axes: Any, by_name: ByName, title: str) -> None:
    """Rates over arithmetic intensity; a product cannot be above the roof of where its data is."""
    roof = {m.label: m for m in by_name["roof"]}
    rates = {label: (m.flops or m.bytes) / m.figures[OURS].median for label, m in roof.items()}
    peak = rates["multiply-adds float32"] / 1e9
    low, high = 0.2, 1000.0
    axes.axhline(peak, color="black", linewidth=1.5)
    axes.text(high, peak * 1.04, f"multiply-adds: {peak:.0f} GF/s", ha="right", fontsize=8)
    reads = [(label, rate / 1e9) for label, rate in rates.items() if label.startswith("reads")]
    for (label, rate), style in zip(reads, ("-", "--", "-.", ":"), strict=False):
        size = label.split(" again")[0]
        axes.plot(
            [low, peak / rate], [low * rate, peak], style, color="#555555", linewidth=1,
            label=f"{size}: {rate:.0f} GB/s",
        )  # fmt: skip
    for name, marker in PRODUCTS.items():
        for who in ASIDE:
            found = [m for m in by_name.get(name, ()) if who in m.figures]
            if found:
                axes.plot(
                    [ASIDE[who] * m.flops / m.bytes for m in found],
                    [m.flops / m.figures[who].median / 1e9 for m in found],
                    marker, color=COLOURS[who], alpha=0.75, markersize=5, label=f"{name}, {who}",
                    markerfacecolor=COLOURS[who] if who == OURS else "none",
                    zorder=4 if who == OURS else 3,
                )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(3, peak * 1.5)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_xlabel("flop for each byte of the three matrices")
    axes.set_ylabel("GF/s")
    axes.set_title(f"float32 products under the roof, {title}", fontsize=10)
    axes.legend(fontsize=8, **BESIDE)
