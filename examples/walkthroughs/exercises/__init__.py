"""The exercises of each walkthrough, in a module named after the notebook.

Each module defines `check`, which the cells of the notebook call with the number of an exercise and
an answer.
"""
