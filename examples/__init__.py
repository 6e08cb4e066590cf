"""Demonstrations: each trains something small, draws it, and asserts what it claims.

`python -m examples` lists them, and `python -m examples NAME` runs one.

An example is a file with a function `main`, or a package with `__main__.py`, if there is more to
read than fits one file. `main(quick=False, out="NAME.png")` prints, saves the picture, and returns
what came of it; `quick=True` does the same in some seconds. The first line of the docstring says
what an example shows, and one of its sentences begins with "It takes": how long, and what is drawn.
`command_line` is what all have in common, and `pictures` is what they draw.
"""
