"""The choices that LoRA leaves open.

How an update begins (inits), what form it has (dora), and how the base is stored (narrow).
"""
