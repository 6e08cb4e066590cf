"""A picture of an adapter: how large its updates are, and how many directions they have."""

from __future__ import annotations

import os
from pathlib import Path

from lora.disk.summary import Summary

_ROW = 0.28  # inches for a layer
_LAYERS = 60  # with names; of more every so many has its name
_INK, _BAR = "#222222", "#4c72b0"


def draw(summary: Summary, path: str | os.PathLike[str]) -> None:
    """Draw the norm of the update in each layer, and its singular values, to a PNG, SVG or PDF.

    Raises:
        ImportError: without matplotlib, which is in the extra "examples".
        ValueError: if there are no layers, or the file's ending is that of no picture.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "pictures are drawn with matplotlib; pip install 'minigrad-lora[examples]'"
        ) from error
    from matplotlib.figure import Figure

    layers = summary.layers
    if not layers:
        raise ValueError(f"{summary.path} has no layers with an update, so nothing to draw")
    endings = Figure().canvas.get_supported_filetypes()
    if Path(path).suffix[1:] not in endings:
        raise ValueError(f"{os.fspath(path)!r} is no picture; it may end in {', '.join(endings)}")
    with matplotlib.rc_context({"font.size": 9}):
        height = 1.6 + _ROW * min(max(len(layers), 8), _LAYERS)
        figure = Figure(figsize=(11, height), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        places = range(len(layers))
        left.barh(places, [layer.norm for layer in layers], color=_BAR)
        step = -(-len(layers) // _LAYERS)
        left.set_yticks(
            places[::step], [f"{x.name}  {x.effective_rank:.1f} / {x.rank}" for x in layers[::step]]
        )
        left.invert_yaxis()
        left.set_xlabel("|s B A|, Frobenius norm")
        left.set_title("How much each layer changes (effective rank / rank)", loc="left")
        most = max(layer.norm for layer in layers)
        for layer in layers:
            values = [value for value in layer.singular_values if value > 0]
            shade = 0.25 + 0.75 * (layer.norm / most if most else 0)
            right.plot(range(1, len(values) + 1), values, "o-", color=_INK, alpha=shade, ms=3, lw=1)
        right.set_yscale("log")
        right.set_xticks(range(1, max(layer.rank for layer in layers) + 1))
        right.set_xlabel("number of the singular value")
        right.set_title("Singular values, a line for each layer", loc="left")
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=150)
