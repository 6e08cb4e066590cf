"""Llama-type language models: load a model, generate text, and train adapters.

    model, tokenizer = text.load_model("folder"), text.tokenizer("folder")
    print(text.generate(model, tokenizer, [{"role": "user", "content": "Why is the sky blue?"}]))

In reading order:

    model                          the computation
    architecture                   the sizes and options of a model, from `config.json`
    loading, gguf_file             read a Hugging Face folder, or a GGUF file
    tokenization, chat_template    text to tokens and back; a conversation to text
    generating                     generate text
    data                           examples in JSONL, their tokens, and micro-batches of these
    training, evaluating           train an adapter; measure its loss
    run_folder                     the folder of a training run: options, checkpoint, adapter
    estimating, samples            memory and time before a run; a picture and answers after it
    commands                       `python -m lora train`, `generate` and `eval`
"""

from lora.text.data import read_rows
from lora.text.evaluating import EvalReport, evaluate
from lora.text.generating import TextGenerator, generate
from lora.text.loading import load_model, tokenizer
from lora.text.model import LanguageModel
from lora.text.tokenization import Tokenizer
from lora.text.training import TrainResult, train

__all__ = ["EvalReport", "LanguageModel", "TextGenerator", "Tokenizer", "TrainResult"]
__all__ += ["evaluate", "generate", "load_model", "read_rows", "tokenizer", "train"]
