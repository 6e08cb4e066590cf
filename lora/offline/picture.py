"""A picture of an adapter in files: how large its updates are, in how many directions."""

from __future__ import annotations

import os

from lora.offline.summary import Summary
from lora.viz import draw_spectra


def draw(summary: Summary, path: str | os.PathLike[str]) -> None:
    """Draw the norm of the update in each layer, and its singular values, to a PNG, SVG or PDF.

    Raises:
        ImportError: without matplotlib, which is in the extra "examples".
        ValueError: if there are no layers, or the file's ending is that of no picture.
        FileNotFoundError: if the folder of the file does not exist.
    """
    from minigrad.viz.figure import BLUE, Picture, name_rows, open_frame

    layers = summary.layers
    if not layers:
        raise ValueError(f"{summary.path} has no layers with an update, so nothing to draw")
    figure = Picture(11, 1.6 + 0.28 * min(max(len(layers), 8), 60), path)
    norms, spectra = figure.subplots(1, 2, width_ratios=(3, 2))
    norms.barh(range(len(layers)), [layer.norm for layer in layers], color=BLUE)
    name_rows(norms.yaxis, [f"{x.name}  {x.effective_rank:.1f} / {x.rank}" for x in layers])
    norms.set_ylim(len(layers) - 0.4, -0.6)
    norms.set_xlabel("|s B A|, Frobenius norm")
    norms.set_title("How much each layer changes (effective rank / rank)", loc="left")
    draw_spectra(spectra, layers)
    open_frame(norms, spectra)
    figure.saved()
