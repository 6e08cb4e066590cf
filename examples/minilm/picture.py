"""The picture of `search`: where sentences and heads lie, before and after; how many are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Dark and light, so that a grey copy says the same; found and missed differ in line and marker too.
FOUND, MISSED = "#0B4F8A", "#E69F00"
LINES = [("0.55", ":"), ("#E69F00", "--"), ("#0B4F8A", "-")]
SHOWN, NAMED = 40, 6
DEPTH = 50  # of the ranks

Vectors = NDArray[np.float32]


def draw(
    vectors: Mapping[str, tuple[Vectors, Vectors]],
    ranks: Mapping[str, NDArray[np.int64]],
    heads: Sequence[str],
    out: str | Path,
) -> None:
    """Save the picture.

    Args:
        vectors: of sentences and of heads, by way of searching; a map is drawn of each.
        ranks: of the right heads, by way of searching; a curve is drawn of each.
        heads: in words.
        out: the file.
    """
    figure = Figure(figsize=(15, 5.4), layout="constrained")
    *maps, curves = figure.subplots(1, len(vectors) + 1)
    chosen = np.random.default_rng(1).choice(len(heads), min(SHOWN, len(heads)), replace=False)
    for axes, (way, (sentences, others)) in zip(maps, vectors.items(), strict=True):
        draw_map(axes, sentences[chosen], others[chosen], ranks[way][chosen] == 1)
        axes.set_title(f"{way}: {(ranks[way][chosen] == 1).sum()} of these {len(chosen)} found")
    draw_curves(curves, ranks, len(heads))
    figure.savefig(out, dpi=120)


def draw_map(axes: Axes, sentences: Vectors, heads: Vectors, found: NDArray[np.bool_]) -> None:
    """Both kinds of vectors in the plane of their largest differences, each pair joined."""
    points = plane(np.concatenate([sentences, heads]))
    pairs = np.stack(np.split(points, 2), axis=1)  # (n, 2, 2)
    for (a, b), hit in zip(pairs, found, strict=True):
        style, color = ("-", FOUND) if hit else (":", MISSED)
        axes.plot(*zip(a, b, strict=True), style, color=color, linewidth=1.6, zorder=1)
    axes.plot(*pairs[:, 0].T, "o", color="black", markersize=6, label="a docstring's sentence")
    axes.plot(
        *pairs[:, 1].T, "s", color="white", markeredgecolor="black", markersize=6,
        label="the function's head",
    )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(loc="lower left", frameon=False)


def plane(vectors: Vectors) -> NDArray[np.floating]:
    """The first two principal components: `(n, d)` to `(n, 2)`."""
    centred = vectors - vectors.mean(axis=0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T


def draw_curves(axes: Axes, ranks: Mapping[str, NDArray[np.int64]], count: int) -> None:
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
