"""liveness: which parameters does a step train, and where do the gradient paths of others end?

In reading order: verdicts (the function to call), dry_run (a step that changes nothing, and the
traces that watch it), report (the result that is shown).
"""
