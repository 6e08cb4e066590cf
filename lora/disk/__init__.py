"""Adapters and bases in files, without a model: look into them, check, merge and extract.

No more than some rows of a base are in memory at a time. `summary` says what an adapter is made of,
`fitting` which tensors of a base it is about, `checking` what is wrong with it; `merging` and
`extracting` write new files.
"""
