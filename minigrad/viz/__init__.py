"""Pictures of what happens: of the graph, and of the way back through it.

The files in reading order: tape (what a forward pass leaves besides its graph), scene (what there
is to be drawn, with the names and values that are known), walk and wrong_ways (ways back through a
graph), dot (the graph as a drawing), page (the page on which a reader steps through it).
"""

from minigrad.viz.dot import Drawing, draw
from minigrad.viz.page import explore
from minigrad.viz.tape import Tape, record

__all__ = ["Drawing", "Tape", "draw", "explore", "record"]
