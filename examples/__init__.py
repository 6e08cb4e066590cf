"""Demonstrations: scripts that train something small, draw it, and assert what they claim.

`python -m examples.toy_regression` is the smallest one, `python -m examples.lora_regression` the
main one.
"""
