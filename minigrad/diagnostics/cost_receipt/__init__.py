"""receipt: what a step computed and saved, and which work freezing avoided.

In reading order: counting (the function to call, the observer, and the memory saved for the
backward pass), costs (the FLOPs of calls and VJPs), report (tables, and their comparison).
"""
