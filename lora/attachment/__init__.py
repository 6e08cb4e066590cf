"""What attaching consists of, in reading order.

targets (the layers that a configuration means), plan (all of it, checked before anything is
changed), record (what is kept on the model), report (what is printed).
"""
