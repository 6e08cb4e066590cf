"""The figures as text: Markdown tables that can be read in a terminal, with what is wanted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tests.benchmarks.driver import Figure, Measured
from tests.benchmarks.workload import BEST, OURS, Goal, Workload


class Verdict:
    """How a workload stands with one of its goals, at its points and on the whole.

    Attributes:
        goal: what is wanted.
        ratios: by point, the peer's figure over ours.
        mean: their geometric mean.
        least: the smallest of them.
        met: whether everything wanted is reached.
    """

    def __init__(self, goal: Goal, measured: Sequence[Measured]) -> None:
        self.goal = goal
        ratios = {m.label: ratio_to(m, goal.peer) for m in measured}
        self.ratios = {label: ratio for label, ratio in ratios.items() if ratio is not None}
        self.mean = geometric_mean(self.ratios.values())
        self.least = min(self.ratios.values(), default=math.nan)
        self.met = all(self.met_at(label) for label in self.ratios) and (
            goal.mean is None or round(self.mean, 2) >= goal.mean
        )

    def met_at(self, label: str) -> bool:
        """Whether the ratio at a point is what is wanted there, to the two digits shown."""
        wanted = self.goal.at(label)
        return wanted is None or round(self.ratios[label], 2) >= wanted


def goals_of(workload: Workload, threads: int) -> list[Goal]:
    """The goals that hold for a number of threads."""
    return [goal for goal in workload.goals if goal.threads in (None, threads)]


def peers_in(measured: Sequence[Measured]) -> list[str]:
    """The peers that were there."""
    return [who for who in measured[0].figures if who != OURS]


def ratio_to(measured: Measured, peer: str) -> float | None:
    """The figure of a peer, or of the best of them, over ours; None if none was there."""
    peers = peers_in([measured]) if peer == BEST else [peer]
    return min((measured.ratio(who) for who in peers if who in measured.figures), default=None)


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean of ratios; nan of none."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def table(workload: Workload, measured: Sequence[Measured], threads: int) -> str:
    """A row for each point: our figure, each peer's, its ratio to ours, and what is wanted."""
    peers = peers_in(measured)
    verdicts = [Verdict(goal, measured) for goal in goals_of(workload, threads)]
    verdicts = [verdict for verdict in verdicts if verdict.ratios]  # whose peer was there
    rates = any(m.flops or m.bytes for m in measured)
    best = len(peers) > 1 and any(goal.peer == BEST for goal in workload.goals)
    rows = [["", OURS, *(["rate"] if rates else []), *peers, *(["best"] if best else []), "wanted"]]
    for m in measured:
        cells = [m.label, _figure(m.figures[OURS], workload.unit)]
        cells += [_rate(m)] if rates else []
        cells += [f"{_figure(m.figures[p], workload.unit)} ({m.ratio(p):.2f})" for p in peers]
        cells += [f"{ratio_to(m, BEST):.2f}"] if best else []
        wanted = [_wanted(v, v.goal.at(m.label), v.met_at(m.label)) for v in verdicts]
        if workload.limit is not None:
            wanted.append(f"<= {quantity(workload.limit, workload.unit)}")
        rows.append([*cells, ", ".join(filter(None, wanted))])
    if len(measured) > 1 and peers:
        rows += _foot(peers, best, rates, measured, verdicts)
    lines = markdown(rows)
    firsts = ", ".join(
        f"{who} {quantity(figure.first, workload.unit)}"
        for who, figure in measured[0].figures.items()
    )
    return f"{lines}\nfirst call{' of all' if len(measured) > 1 else ''}: {firsts}"


def _foot(
    peers: Sequence[str],
    best: bool,
    rates: bool,
    measured: Sequence[Measured],
    verdicts: Sequence[Verdict],
) -> list[list[str]]:
    """The rows of the geometric means and of the least ratios."""
    columns = [Verdict(Goal(who), measured) for who in (*peers, *([BEST] if best else []))]
    blank = ["", *([""] if rates else [])]
    wanted = [
        _wanted(v, v.goal.mean, v.goal.mean is None or round(v.mean, 2) >= v.goal.mean)
        for v in verdicts
    ]
    return [
        [
            "geometric mean",
            *blank,
            *(f"{c.mean:.2f}" for c in columns),
            ", ".join(filter(None, wanted)),
        ],
        ["least", *blank, *(f"{c.least:.2f}" for c in columns), ""],
    ]


def _wanted(verdict: Verdict, wanted: float | None, met: bool) -> str:
    if wanted is None:
        return ""
    return f"{verdict.goal.peer} >= {wanted:g}{'' if met else ' MISSED'}"


def summary(workloads: dict[str, Workload], results: dict[int, dict[str, list[Measured]]]) -> str:
    """One row for each goal, with a column for each number of threads."""
    rows = [["work", "against", *(f"{t} thread{'s'[: t > 1]}: ratio (wanted)" for t in results)]]
    for name, workload in workloads.items():
        for peer in dict.fromkeys([goal.peer for goal in workload.goals] or workload.peers):
            cells = [_standing(workload, results[t].get(name), peer, t) for t in results]
            if any(cells):
                rows.append([f"{name}: {workload.title}", peer, *cells])
        if workload.limit is not None:
            cells = [_standing_alone(workload, results[t].get(name)) for t in results]
            if any(cells):
                rows.append([f"{name}: {workload.title}", "", *cells])
    return markdown(rows)


def _standing(workload: Workload, measured: list[Measured] | None, peer: str, threads: int) -> str:
    if not measured:
        return ""
    goals = [goal for goal in goals_of(workload, threads) if goal.peer == peer] or [Goal(peer)]
    parts = []
    for verdict in (Verdict(goal, measured) for goal in goals):
        if not verdict.ratios:
            continue
        goal, each = verdict.goal, verdict.goal.each
        if isinstance(each, dict):
            parts += [f"{verdict.ratios[p]:.2f} ({w:g})" for p, w in each.items()]
        elif len(measured) == 1:
            parts.append(f"{verdict.mean:.2f}" + (f" ({each:g})" if each is not None else ""))
        else:
            mean = f" ({goal.mean:g})" if goal.mean is not None else ""
            least = f" ({each:g})" if each is not None else ""
            parts.append(f"mean {verdict.mean:.2f}{mean}, least {verdict.least:.2f}{least}")
    return ", ".join(parts)


def _standing_alone(workload: Workload, measured: list[Measured] | None) -> str:
    if not measured or workload.limit is None:
        return ""
    most = max(m.figures[OURS].median for m in measured)
    limit = quantity(workload.limit, workload.unit)
    return f"{quantity(most, workload.unit)} (at most {limit})"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head, in columns of one width each."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    vjp = "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths))
    return "\n".join([lines[0], f"|{vjp}|", *lines[1:]])


def _figure(figure: Figure, unit: str) -> str:
    """The median, and half the distance between the quartiles in percent of it."""
    spread = 50 * (figure.high - figure.low) / figure.median if figure.median else 0.0
    return f"{quantity(figure.median, unit)} +-{spread:.0f} %"


def _rate(measured: Measured) -> str:
    seconds = measured.figures[OURS].median
    if measured.flops:
        return f"{measured.flops / seconds / 1e9:.1f} GF/s"
    return f"{measured.bytes / seconds / 1e9:.1f} GB/s"


def quantity(value: float, unit: str) -> str:
    """A figure with three digits and its unit: 1.04 ms, 652 MB."""
    scales = {
        "s": (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)),
        "B": (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)),
    }[unit]
    name, size = next((s for s in scales if value >= s[1]), scales[-1])
    return f"{value / size:.3g} {name}"
