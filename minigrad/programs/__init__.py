"""Captured training steps: everything that a step computes, as a program that can be read and run.

In reading order:

    captured      `capture`, which records a step and runs its program instead
    recorder      an observer that records a step as lines of a program
    names         the names of the values in a program
    program       a program: its lines, its source code and its function
    surroundings  what a step reads besides its arguments, and whether this has changed
"""

from minigrad.programs.captured import Captured as Captured
from minigrad.programs.captured import capture as capture
from minigrad.programs.names import CaptureError as CaptureError
