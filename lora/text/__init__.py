"""Language models: read one, run it, and train adapters on it.

`architecture` describes a model; `folder` reads a Hugging Face folder, and `gguf_file` a GGUF file;
`tokenizer` turns text into tokens and back, and `chat_template` a conversation into text. `data`
reads texts to train on; `training` trains an adapter on them, with `estimating` before it, and
`evaluating` finds the loss.
"""
