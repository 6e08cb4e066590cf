"""receipt: what a step computed and saved, and which work freezing avoided.

The files in reading order: counting (the function to call, the observer, and the memory saved for
the backward pass), costs (the FLOPs of calls and VJPs, by sketches: arrays that have only a shape),
report (receipts as tables, and their comparison).
"""
