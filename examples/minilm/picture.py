"""The picture of `search`: where sentences and heads lie, before and after; how many are found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Dark and light, so that a grey copy says the same; found and missed differ in line and marker too.
FOUND, MISSED = "#0B4F8A", "#E69F00"
LINES = [("0.55", ":"), ("#E69F00", "--"), ("#0B4F8A", "-")]
SHOWN = 30
DEPTH = 50  # of the ranks

Vectors = NDArray[np.float32]
Ranks = NDArray[np.int64]


def draw(
    vectors: Mapping[str, tuple[Vectors, Vectors]], ranks: Mapping[str, Ranks], out: str | Path
) -> None:
    """Save the picture.

    Args:
        vectors: of sentences and of heads, by way of searching; a map is drawn of each.
        ranks: of the right heads, by way of searching; a curve is drawn of each.
        out: the file.
    """
    figure = Figure(figsize=(15, 5.6), layout="constrained")
    *maps, curves = figure.subplots(1, len(vectors) + 1)
    count = len(next(iter(ranks.values())))
    chosen = np.random.default_rng(0).choice(count, min(SHOWN, count), replace=False)
    shown = {way: np.stack([x[chosen] for x in both]) for way, both in vectors.items()}
    places = plane(np.stack(list(shown.values())))  # (ways, 2, n, 2)
    for axes, way, points in zip(maps, vectors, places, strict=True):
        draw_map(axes, points, ranks[way][chosen] == 1)
        axes.set_title(f"{way}: {(ranks[way][chosen] == 1).sum()} of these {len(chosen)} found")
    figure.legend(*maps[0].get_legend_handles_labels(), loc="outside lower left", ncols=4)
    draw_curves(curves, ranks, count)
    figure.savefig(out, dpi=120)


def draw_map(axes: Axes, points: NDArray[np.floating], found: NDArray[np.bool_]) -> None:
    """Sentences `points[0]` and heads `points[1]`, and a line between what belongs together."""
    for style, color, some, label in (
        ("-", FOUND, found, "a pair whose head comes first"),
        (":", MISSED, ~found, "a pair whose head does not"),
    ):
        axes.plot(*points[:, some].T.swapaxes(1, 2), style, color=color, linewidth=1.8)
        axes.plot([], [], style, color=color, linewidth=1.8, label=label)
    for place, marker, color, label in (
        (points[0], "o", "black", "a docstring's sentence"),
        (points[1], "s", "white", "a function's head"),
    ):
        axes.plot(*place.T, marker, color=color, markeredgecolor="black", markersize=7, label=label)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")


def plane(vectors: Vectors) -> NDArray[np.floating]:
    """The first two principal components of all together: `(..., d)` to `(..., 2)`."""
    rows = vectors.reshape(-1, vectors.shape[-1])
    centred = vectors - rows.mean(axis=0)
    directions = np.linalg.svd(centred.reshape(rows.shape), full_matrices=False)[2]
    return np.asarray(centred @ directions[:2].T)


def draw_curves(axes: Axes, ranks: Mapping[str, Ranks], count: int) -> None:
    """The share of sentences whose function is among the first k, for each k."""
    places = np.arange(1, DEPTH + 1)
    for (way, values), (color, line) in zip(ranks.items(), LINES, strict=True):
        shares = [(values <= place).mean() for place in places]
        axes.plot(places, shares, line, color=color, linewidth=2.5, label=f"{way}: {shares[0]:.0%}")
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
