"""A real pretrained model, MiniLM, learns to search Python's own library better.

    python -m examples.minilm

In reading order: `encoder` is the model, `pretrained` gets its weights, `library` makes pairs of a
sentence and a function, `search` fine-tunes and measures, `picture` draws.
"""
