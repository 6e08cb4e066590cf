"""The commands `train`, `generate` and `eval` of `python -m lora`.

Beside their own spelling, options have those of mlx-lm, which many scripts use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lora
from lora.attachment.state import attachment_of
from lora.text import evaluating, generating, loading, samples, training
from lora.text.data import data_files, read_rows
from lora.text.model import LanguageModel
from lora.text.tokenization import Tokenizer

Add = Callable[..., Any]
Command = Callable[..., Add]

_BASE = "a Hugging Face folder of a language model, or a GGUF file"
_DATA = "a .jsonl file, or a folder with train, valid and test.jsonl"

PICTURE = "training.png"

BASE = "base"
"""The name by which a conversation calls the model without adapters."""

HELP = "/use NAME: answer with another adapter, /reset: begin anew, /exit: end"


def add_commands(command: Command, path: Callable[[str], str]) -> None:
    """Add the commands and their options to a parser.

    Args:
        command: makes a command of a name, the function that it runs and a help text, and returns
            the function that adds an argument to it. Arguments are called as the parameters of the
            function that is run.
        path: the type of an argument that is a path.
    """
    add = command("train", train, "fine-tune a language model with an adapter on examples in JSONL")
    add("base", type=path, help=_BASE)
    add("data", type=path, help=f"{_DATA}; rows have text, prompt and completion, or messages")
    add("out", type=path, help="a folder for the adapter, in PEFT's format")
    add("--config", type=path, metavar="FILE", help="options.json of an earlier run, to repeat it")
    _add_model_options(add)
    add("--rank", type=int, help="the rank of each update (8)")
    add("--alpha", type=float, help="the strength of the updates, divided by the rank (16)")
    help_text = "ends of names of layers, such as q_proj v_proj (all linear ones but the head)"
    add("--targets", nargs="+", metavar="NAME", help=help_text)
    add("--steps", "--iters", type=int, help="steps of the optimiser; overrides --epochs")
    add("--epochs", type=int, help="how often to go through the data (1)")
    add("--batch-size", type=int, help="rows that go through the model at once (4)")
    add("--accumulation-steps", type=int, help="such batches for one step (1)")
    add("--max-length", "--max-seq-length", type=int, help="tokens of a row; longer ones are cut")
    add("--lr", "--learning-rate", type=float, help="the learning rate after the warm-up (2e-4)")
    add("--seed", type=int, help="of the order of the rows and of the adapter (0)")
    help_text = "count the tokens of prompts in the loss too"
    add("--train-on-prompts", action="store_true", default=None, help=help_text)
    add("--mask-prompt", dest="train_on_prompts", action="store_false", help="the default")
    help_text = "make two turns of a chat of prompt and completion"
    add("--as-chat", action="store_true", default=None, help=help_text)
    help_text = "save only the input of each layer for the backward pass: less memory, more time"
    add("--checkpointing", "--grad-checkpoint", action="store_true", default=None, help=help_text)
    add("--warmup", type=float, help="the share of the steps in which the rate rises (0.05)")
    add("--clip-norm", type=float, help="the largest gradient norm to step with (1)")
    help_text = "validate with valid.jsonl every so many steps (five times in a run)"
    add("--validate-every", type=int, metavar="STEPS", help=help_text)
    help_text = "write a checkpoint every so many steps (after each epoch)"
    add("--save-every", type=int, metavar="STEPS", help=help_text)
    help_text = "go on from the last checkpoint in OUT, with the same data and options"
    add("--resume", action="store_true", help=help_text)

    add = command("generate", generate, "write with a language model, or talk to it")
    add("base", type=path, help=_BASE)
    _add_model_options(add)
    _add_adapters(add)
    add("--prompt", help="a text to go on from")
    add("--message", help="a message to answer, through the model's chat template")
    add("--chat", action="store_true", help=f"talk: one line is one message ({HELP})")
    add("--system", help="a system message, for --message and --chat")
    help_text = "the largest number of tokens to write (256)"
    add("--max-tokens", type=int, default=256, help=help_text)
    help_text = "0 takes the likeliest token (0)"
    add("--temperature", "--temp", type=float, default=0.0, help=help_text)
    add("--top-k", type=int, help="draw from this many tokens, the likeliest, only")
    help_text = "draw from the likeliest tokens that have this probability together"
    add("--top-p", type=float, help=help_text)
    add("--seed", type=int, default=0, help="of the draws (0)")

    help_text = "measure the loss and perplexity per token of answers, of the base and an adapter"
    add = command("eval", evaluate, help_text)
    add("base", type=path, help=_BASE)
    add("data", type=path, help=f"{_DATA}, of which test.jsonl counts")
    _add_model_options(add)
    _add_adapters(add)
    add("--max-length", "--max-seq-length", type=int, help="tokens of a row; longer ones are cut")
    add("--train-on-prompts", action="store_true", help="count the tokens of prompts too")
    help_text = "make two turns of a chat of prompt and completion"
    add("--as-chat", action="store_true", help=help_text)


def _add_model_options(add: Add) -> None:
    help_text = "how the base is in memory (as stored: bfloat16 or float32)"
    add("--dtype", choices=loading.DTYPES, help=help_text)


def _add_adapters(add: Add) -> None:
    help_text = "a folder with an adapter; it may be given several times"
    add(
        "--adapter", "--adapter-path", action="append", default=[], metavar="FOLDER", help=help_text
    )


# --------------------------------------------------------------------------------------------------
# train
# --------------------------------------------------------------------------------------------------


def train(
    base: str, data: str, out: str, config: str | None, dtype: str | None, progress: bool,
    **options: Any,
) -> str | dict[str, Any]:  # fmt: skip
    """Train an adapter, with the options that were given, and the usual ones for the others."""
    given = {name: value for name, value in options.items() if value is not None}
    if config is not None:
        given = {**training.read_options(config), **given}
    model, tokenizer = load(base, dtype, [], progress)
    result = training.train(
        model, tokenizer, data, out, base_model=base, progress=progress, **given
    )
    some = result.data.get("valid", result.data["train"])
    answers = samples.write_samples(model, tokenizer, some, progress=progress)
    picture = Path(out) / PICTURE
    try:
        samples.draw(result.history.steps, answers, picture)
        drawn = f"drawn: {picture}"
    except ImportError as error:
        drawn = f"not drawn: {error}"
    if not progress:
        return {**result.summary(), "samples": answers}
    return "\n".join([repr(result), *map(str, answers), drawn])


# --------------------------------------------------------------------------------------------------
# generate
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Completion:
    """The result of `generate --json`."""

    text: str
    tokens: int
    prompt_tokens: int
    seconds: float
    tokens_per_second: float
    finish_reason: str


def generate(
    base: str, dtype: str | None, adapter: Sequence[str], prompt: str | None, message: str | None,
    chat: bool, system: str | None, progress: bool, **options: Any,
) -> Completion | None:  # fmt: skip
    """Write after a prompt, answer a message, or converse until the input ends."""
    if (prompt is not None) + (message is not None) + chat != 1:
        raise ValueError("give one of --prompt, --message and --chat")
    if system is not None and prompt is not None:
        raise ValueError("--system goes with --message or --chat; a raw prompt has no turns")
    if chat and not progress:
        raise ValueError("--json goes with --prompt or --message; a conversation is for people")
    model, tokenizer = load(base, dtype, adapter, progress)
    writer = generating.TextGenerator(model, tokenizer, **options)
    first = [] if system is None else [{"role": "system", "content": system}]
    if chat:
        converse(writer, first)
        return None
    asked = prompt if message is None else [*first, {"role": "user", "content": message}]
    text = write(writer, asked or "", progress)
    if progress:
        return None
    count, seconds = len(writer.tokens), writer.seconds
    speed = count / seconds if seconds else 0.0
    return Completion(text, count, len(writer.prompt_tokens), seconds, speed, writer.finish_reason)


def write(writer: generating.TextGenerator, prompt: str | generating.Messages, shown: bool) -> str:
    """Return what is written after a prompt, and show it piece by piece."""
    text = ""
    for piece in writer.stream(prompt):
        text += piece
        if shown:
            show(piece)
    if shown:
        show("\n")
    return text


def converse(writer: generating.TextGenerator, messages: list[dict[str, str]]) -> None:
    """Answer each line of the standard input, until it ends."""
    attachment = attachment_of(writer.model)
    names = [BASE, *(() if attachment is None else attachment.adapters)]
    show(f"{HELP}; adapters: {', '.join(names)}\n")
    first = list(messages)
    while True:
        show("> ")
        line = sys.stdin.readline()
        if not line or line.strip() == "/exit":
            return
        word, _, name = line.strip().partition(" ")
        if word == "/reset":
            messages = list(first)
        elif word == "/use" and name.strip() in names:
            lora.switch(writer.model, *([] if name.strip() == BASE else [name.strip()]))
            writer.forget()
        elif word.startswith("/"):
            show(f"{HELP}; adapters: {', '.join(names)}\n")
        elif word:
            messages.append({"role": "user", "content": line.strip()})
            messages.append({"role": "assistant", "content": write(writer, messages, True)})


def show(text: str) -> None:
    """Write a part of a line at once, without characters that control the terminal."""
    print("".join(c for c in text if c.isprintable() or c in "\n\t"), end="", flush=True)


# --------------------------------------------------------------------------------------------------
# eval
# --------------------------------------------------------------------------------------------------


def evaluate(
    base: str, data: str, dtype: str | None, adapter: Sequence[str], progress: bool, **options: Any
) -> evaluating.EvalReport | dict[str, Any]:
    """Measure the loss of the base, and beside it that of the last adapter."""
    files = data_files(data)
    file = files.get("test") or files.get("valid") or files["train"]
    model, tokenizer = load(base, dtype, adapter, progress)
    vocab_size, most = model.config.vocab_size, model.config.max_length
    options["max_length"] = options["max_length"] or min(training.LONGEST, most)
    rows = read_rows(file, tokenizer, vocab_size=vocab_size, **options)
    if progress:
        print(rows, file=sys.stderr)
    report = evaluating.evaluate(model, rows, base=bool(adapter), progress=progress)
    if progress:
        return report
    base_loss = None if report.base is None else report.base.loss
    return {**vars(report), "base": base_loss, "base_report": report.base}


# --------------------------------------------------------------------------------------------------
# Loading
# --------------------------------------------------------------------------------------------------


def load(
    base: str, dtype: str | None, adapters: Sequence[str], progress: bool
) -> tuple[LanguageModel, Tokenizer]:
    """Load a model, its tokenizer, and adapters by the names of their folders; the last is active.

    Raises:
        ValueError: if two adapters have one name.
    """
    names = [Path(folder).resolve().name for folder in adapters]
    if len({*names, BASE}) <= len(names):
        raise ValueError(f"each adapter needs a folder name of its own, other than {BASE}: {names}")
    model = loading.load_model(base, dtype, progress=progress)
    tokenizer = loading.tokenizer(base)
    for folder, name in zip(adapters, names, strict=True):
        lora.load(model, folder, name, progress=progress)
    return model, tokenizer
