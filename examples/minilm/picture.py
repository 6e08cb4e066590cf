"""The picture of `search`: maps of sentences and heads, and how many functions are found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

# A dark and a light colour, so that a grey copy is clear; the line styles differ too.
FOUND, MISSED = "#0B4F8A", "#E69F00"
LINES = [("0.55", ":"), ("#E69F00", "--"), ("#0B4F8A", "-")]
SHOWN = 30
DEPTH = 50  # the largest rank shown

Vectors = NDArray[np.float32]
Ranks = NDArray[np.int64]


def draw(
    vectors: Mapping[str, tuple[Vectors, Vectors]], ranks: Mapping[str, Ranks], out: str | Path
) -> None:
    """Save the picture.

    Args:
        vectors: the vectors of sentences and of heads, by search method; each gets a map.
        ranks: the ranks of the right heads, by search method; each gets a curve.
        out: the file of the picture.
    """
    figure = Figure(figsize=(15, 5.6), layout="constrained")
    *maps, curves = figure.subplots(1, len(vectors) + 1)
    count = len(next(iter(ranks.values())))
    chosen = np.random.default_rng(0).choice(count, min(SHOWN, count), replace=False)
    shown = {method: np.stack([x[chosen] for x in both]) for method, both in vectors.items()}
    projected = plane(np.stack(list(shown.values())))  # (methods, 2, n, 2)
    for axes, method, points in zip(maps, vectors, projected, strict=True):
        found = ranks[method][chosen] == 1
        draw_map(axes, points, found)
        axes.set_title(f"{method}: {found.sum()} of these {len(chosen)} found")
    figure.legend(*maps[0].get_legend_handles_labels(), loc="outside lower left", ncols=4)
    draw_curves(curves, ranks, count)
    figure.savefig(out, dpi=120)


def draw_map(axes: Axes, points: NDArray[np.floating], found: NDArray[np.bool_]) -> None:
    """Draw sentences `points[0]` and heads `points[1]`, with a line between those of a pair."""
    for style, color, some, label in (
        ("-", FOUND, found, "a pair whose head comes first"),
        (":", MISSED, ~found, "a pair whose head does not"),
    ):
        axes.plot(*points[:, some].T.swapaxes(1, 2), style, color=color, linewidth=1.8)
        axes.plot([], [], style, color=color, linewidth=1.8, label=label)
    for some, marker, color, label in (
        (points[0], "o", "black", "a docstring's sentence"),
        (points[1], "s", "white", "a function's head"),
    ):
        axes.plot(*some.T, marker, color=color, markeredgecolor="black", markersize=7, label=label)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")


def plane(vectors: Vectors) -> NDArray[np.floating]:
    """Project all vectors on their first two principal components: `(..., d)` to `(..., 2)`."""
    rows = vectors.reshape(-1, vectors.shape[-1])
    centred = vectors - rows.mean(axis=0)
    directions = np.linalg.svd(centred.reshape(rows.shape), full_matrices=False)[2]
    return np.asarray(centred @ directions[:2].T)


def draw_curves(axes: Axes, ranks: Mapping[str, Ranks], count: int) -> None:
    """Draw the share of sentences whose function is among the first k, for each k."""
    ks = np.arange(1, DEPTH + 1)
    for (method, values), (color, line) in zip(ranks.items(), LINES, strict=True):
        shares = [(values <= k).mean() for k in ks]
        label = f"{method}: {shares[0]:.0%}"
        axes.plot(ks, shares, line, color=color, linewidth=2.5, label=label)
    axes.set(
        title=f"Found among the first k of {count}, unseen packages",
        xlabel="k",
        ylim=(0, 1),
        xscale="log",
    )
    axes.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False, title="and the share at k = 1")
