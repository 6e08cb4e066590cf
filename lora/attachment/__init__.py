"""The parts of attaching adapters to a model, in reading order.

targets (the layers that a configuration means), plan (all of it, checked before anything is
changed), state (what is stored on the model, and exchanging its modules and parameters).
"""
