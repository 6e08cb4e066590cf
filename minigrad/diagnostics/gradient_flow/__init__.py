"""liveness: which parameters does a step train, and where do the paths of the others end?

The files in reading order: verdicts (the function that is called), dry_run (a step that changes
nothing, and the traces of where values go in the forward pass, and where gradients become zero on
their paths back), report (what is shown).
"""
