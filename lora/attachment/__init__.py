"""What attaching consists of, in reading order.

targets (which layers a configuration means), replacing (one object in the place of another), whole
(what an adapter trains whole), plan (all of it, checked before anything is changed), record (what
is kept on the model), report (what is printed).
"""
