"""liveness: which parameters does a step train, and where do the paths of the others end?

In reading order: verdicts (the function that is called), dry_run (a step that changes nothing, and
the traces that watch it), report (what is shown).
"""
