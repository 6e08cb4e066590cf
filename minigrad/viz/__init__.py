"""Pictures of what happens: of the graph, of the backward pass through it, and of training.

Of a graph, in reading order: tape (what a forward pass leaves besides its graph), names and values
(what is known of a tensor in it), graph_view (what there is to be drawn), dot (the graph as a
drawing), replay and wrong_orders (backward passes through it), source (VJPs as text), previews
(arrays as numbers or heat maps), page_data and page (the page on which a reader steps through it,
with its `template`).

Of a training run: gradients and plots, which draw on a figure of matplotlib. That one is imported
when a picture is drawn, and not before.
"""

from minigrad.viz.dot import Drawing, draw
from minigrad.viz.gradients import GradientRecorder
from minigrad.viz.page import explore
from minigrad.viz.plots import plot_gradients, plot_history
from minigrad.viz.tape import Tape, record

__all__ = [
    "Drawing",
    "GradientRecorder",
    "Tape",
    "draw",
    "explore",
    "plot_gradients",
    "plot_history",
    "record",
]
