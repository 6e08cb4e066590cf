"""Captured training steps: what the computer does in a step, as a program that can be read and run.

captured      `capture`, which records a step and runs its program instead
recorder      an observer that writes a step down, line by line
names         the names of the values that it has seen
program       the lines of a program, their text, and the function that they are
surroundings  what a step reads besides its arguments, and whether that has changed
"""

from minigrad.programs.captured import Captured as Captured
from minigrad.programs.captured import capture as capture
from minigrad.programs.names import CaptureError as CaptureError
