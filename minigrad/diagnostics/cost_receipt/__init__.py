"""receipt: what a step computed and saved, and which work freezing avoided.

The files in reading order: recorder (the function to call, and the observer), costs (the FLOPs of
calls and VJPs, by sketches: arrays that have only a shape), saved (memory saved for the backward
pass), report (receipts as tables, and their comparison).
"""
