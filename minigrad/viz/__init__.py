"""Pictures of what happens: of the graph, of the way back through it, and of training.

The files in reading order: tape (what a forward pass leaves besides its graph), scene (what there
is to be drawn, with the names and values that are known), walk and wrong_ways (ways back through a
graph), dot (the graph as a drawing), page (the page on which a reader steps through it). Then
gradients and plots, of a training run; only these need matplotlib, which the first one imports.
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
