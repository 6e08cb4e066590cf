"""Pictures of the graph, of the backward pass through the graph, and of training.

The modules for graphs, in reading order: graph_view (the content of a drawing, with names and
values), dot (the graph as a drawing), passes (backward passes through the graph), and page (the
page on which a reader steps through the passes, with its `template`). The page also shows source
(VJPs as text), program_view (the program of a captured step), nudges (how well gradients predict)
and previews (arrays as numbers or heat maps). graph_picture draws the graph of a page as a picture.

plots draws a training run. plots and graph_picture use matplotlib, which is imported when needed.
"""

from minigrad import renamed
from minigrad.diagnostics.recorder import Tape, record
from minigrad.viz.dot import Drawing, draw
from minigrad.viz.page import Page, explore
from minigrad.viz.plots import GradientRecorder, plot_gradients, plot_history

__all__ = ["Drawing", "Page", "Tape", "draw", "explore", "record"]
__all__ += ["GradientRecorder", "plot_gradients", "plot_history"]

renamed.hint_names(__name__)
