"""Pictures of what happens: of the graph, of the backward pass through it, and of training.

Of a graph, in reading order: graph_view (what there is to be drawn, with names and values), dot
(the graph as a drawing), passes (backward passes through it), page (the page on which a reader
steps through them, with its `template`), which shows source (VJPs as text), program_view (the
program of a captured step), nudges (how well gradients predict) and previews (arrays as numbers or
heat maps). Of a training run: plots.
plots and graph_picture (a page's graph as a picture) draw with matplotlib, imported when needed.
"""

from minigrad.diagnostics.recorder import Tape, record
from minigrad.viz.dot import Drawing, draw
from minigrad.viz.page import Page, explore
from minigrad.viz.plots import GradientRecorder, plot_gradients, plot_history

__all__ = ["Drawing", "Page", "Tape", "draw", "explore", "record"]
__all__ += ["GradientRecorder", "plot_gradients", "plot_history"]
