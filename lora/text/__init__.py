"""Language models of Llama's kind: read one, run it, train adapters on it.

    model, tokenizer = text.load_model("folder"), text.tokenizer("folder")
    print(text.generate(model, tokenizer, [{"role": "user", "content": "Why is the sky blue?"}]))

In reading order:

    model                          the computation
    architecture                   its sizes and options, as `config.json` says them
    loading, gguf_file             reading a Hugging Face folder, or a GGUF file
    tokenization, chat_template    text to tokens and back; a conversation to text
    generating                     writing
    data, training, evaluating     examples in JSONL, training an adapter, measuring it
    estimating, samples            memory and time before a run; its picture and answers
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
