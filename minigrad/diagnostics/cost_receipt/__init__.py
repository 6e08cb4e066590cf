"""receipt: what a step computes and saves, and which work freezing avoids.

In reading order: counting (the function to call, the observer, and the memory saved for the
backward pass), costs (the FLOPs of calls and VJPs), report (tables, and their comparison).
"""
