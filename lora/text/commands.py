"""The commands `train`, `generate` and `eval` of `python -m lora`.

Options have the names of function parameters, and their help texts come from the docstrings of
these functions. Some options also have the spelling of mlx-lm, which many scripts use.
"""

from __future__ import annotations

import inspect
import io
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from unicodedata import category

import lora
from lora.attachment.state import attachment_of
from lora.patterns import ALL_LINEAR
from lora.peft.folder import check_no_model
from lora.text import evaluating, generating, loading, run_folder, samples, training
from lora.text.data import data_files, read_rows
from lora.text.model import LanguageModel
from lora.text.tokenization import Tokenizer, check_text
from minigrad.distributed import world
from minigrad.tables import counted

Add = Callable[..., Any]

_TRAIN_HELP = (
    'a .jsonl file, or a folder with train.jsonl and perhaps valid.jsonl; a row has "text", or '
    '"prompt" and "completion", or "messages", beside which there may be "tools"'
)
_EVAL_HELP = (
    "a .jsonl file, or a folder, of which test.jsonl is read, or without it valid.jsonl, or "
    "train.jsonl; rows are as for train"
)

_MLX_LM = {
    "steps": "--iters",
    "max_length": "--max-seq-length",
    "lr": "--learning-rate",
    "checkpointing": "--grad-checkpoint",
    "temperature": "--temp",
}
"""The names of some options in mlx-lm."""

PICTURE = "training.png"

BASE = "base"
"""The name of the model without adapters, in a conversation."""

_SHOWN = "\n\t\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
"""The control characters that are printed; others are left out."""

HELP = "/use NAME: answer with another adapter, /reset: begin anew, /exit: end"


def add_commands(command: Callable[..., Add], path: Callable[[str], str]) -> None:
    """Add the commands and their options to a parser.

    `command` makes a command from a name, the function that it runs and a help text, and returns a
    function that adds an argument. `path` converts an argument that is a path.
    """

    def add_base(add: Add) -> None:
        add("base", type=path, help="a Hugging Face folder of a language model, or a GGUF file")
        help_text = "the dtype of the base in memory (default: bfloat16 if the files have it, "
        help_text += "else float32)"
        add("--dtype", choices=loading.DTYPES, help=help_text)

    def add_adapters(add: Add, help_text: str) -> None:
        options = {"action": "append", "default": [], "metavar": "FOLDER", "type": path}
        add("--adapter", "--adapter-path", help=help_text, **options)
        help_text = "also load an adapter that was made on another base, or on other values of the "
        help_text += "same base, such as those of nf4"
        add("--any-base", dest="check_base", action="store_false", help=help_text)

    add = command("train", train, "fine-tune a language model with an adapter on examples in JSONL")
    add_base(add)
    add("data", type=path, help=_TRAIN_HELP)
    help_text = "a folder for the adapter in PEFT's format, the options, a checkpoint and a picture"
    add("out", type=path, help=help_text)
    help_text = "options.json of an earlier run, whose options count unless they are given here"
    add("--config", type=path, metavar="FILE", help=help_text)
    add_options(add, training.train, training.OPTION_TYPES)
    add_mask_prompt(add)
    help_text = "continue the run in OUT from its last checkpoint, with its options and the same "
    help_text += "base and data"
    add("--resume", action="store_true", help=help_text)

    help_text = "continue a text with a language model, answer a message, or hold a conversation"
    add = command("generate", generate, help_text)
    add_base(add)
    help_text = "a folder with an adapter; with --chat, give several by repeating the option, and "
    help_text += "the last one answers first"
    add_adapters(add, help_text)
    help_text = "a text to continue, in which strings such as <|im_end|> are ordinary characters; "
    help_text += "give one of --prompt, --message and --chat"
    add("--prompt", help=help_text)
    add("--message", help="a message to answer, in the format of the model's chat template")
    add("--chat", action="store_true", help=f"a conversation: each line is a message ({HELP})")
    add("--system", help="a system message, with --message or --chat")
    add_options(add, generating.TextGenerator, ("max_tokens", "temperature", "top_k", "top_p"))
    add("--seed", type=int, default=0, help="the seed of the random draws (default: 0)")

    help_text = "measure the loss per token of answers and the perplexity, of a base and an adapter"
    add = command("eval", evaluate, help_text)
    add_base(add)
    add("data", type=path, help=_EVAL_HELP)
    add_adapters(add, "a folder with an adapter, which is compared with the base")
    add_options(add, training.train, ("max_length", "long_rows", "train_on_prompts", "as_chat"))
    add_mask_prompt(add)


def add_mask_prompt(add: Add) -> None:
    """Add mlx-lm's option for what is the default here."""
    help_text = "leave prompts out of the loss, as is the default; mlx-lm has this option"
    add("--mask-prompt", action="store_true", help=help_text)


def check_mask_prompt(mask_prompt: bool, options: dict[str, Any]) -> None:
    """Raise a ValueError if an option contradicts --mask-prompt."""
    if mask_prompt and options.setdefault("train_on_prompts", False):
        raise ValueError("--mask-prompt contradicts --train-on-prompts; give one of them")


def add_options(add: Add, function: Callable[..., Any], names: Iterable[str]) -> None:
    """Add options for parameters of a function, with their annotations and docstring texts.

    In a text, `other_parameter` becomes --other-parameter. The value of an option that is not given
    is None.
    """
    of_args = r"^    (\w+): (.*(?:\n {8}.*)*)"
    texts = dict(re.findall(of_args, inspect.getdoc(function) or "", re.MULTILINE))
    parameters = inspect.signature(function, eval_str=True).parameters
    for name in names:
        text = " ".join(texts.get(name, "").split()).removesuffix(".")
        for other in parameters:
            text = text.replace(f"`{other}`", _spelling(other))
        usual, kind = parameters[name].default, parameters[name].annotation
        shown, options = "", dict[str, Any](nargs="+", metavar="NAME")
        if get_origin(kind) is Literal:
            shown, options = f" (default: {usual})", {"choices": get_args(kind)}
        elif kind is bool:
            text, options = text.removeprefix("whether "), {"action": "store_true"}
        elif number := {int, float} & {kind, *get_args(kind)}:
            options = {"type": number.pop(), "required": usual is inspect.Parameter.empty}
            shown = f" (default: {usual:g})" if isinstance(usual, (int, float)) else ""
        spellings = _spelling(name), _MLX_LM.get(name)
        add(*filter(None, spellings), default=None, help=text.replace("`", "") + shown, **options)


def _spelling(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def train(
    base: str, data: str, out: str, *, config: str | None = None, dtype: str | None = None,
    mask_prompt: bool, resume: bool, progress: bool, **options: Any,
) -> str | dict[str, Any] | None:  # fmt: skip
    """Train an adapter; options that are not given are those of an earlier run, or defaults."""
    ranks, saved = world(), Path(out) / run_folder.OPTIONS
    check_mask_prompt(mask_prompt, options)
    ranks.on_first(lambda: check_no_model(out, base), "train")

    def options_of_earlier_run() -> dict[str, Any]:
        file = str(saved) if resume and config is None and saved.exists() else config
        return {} if file is None else run_folder.options_of(file, training.OPTION_TYPES)

    earlier = ranks.on_first(options_of_earlier_run, "train")
    form = earlier.pop(run_folder.DTYPE, None)
    if "epochs" in options:
        earlier.pop("steps", None)  # with these, the epochs would not count
    model, tokenizer = load(base, dtype or form, [], progress and ranks.is_first)
    given = {**earlier, **options, "base_model": base, "progress": progress}
    if given.get("targets") == [ALL_LINEAR]:  # the option is a list; LoRAConfig has a word
        given["targets"] = ALL_LINEAR
    result = training.train(model, tokenizer, data, out, resume=resume, **given)
    if not ranks.is_first:  # only the first rank reports
        return None
    some = result.data.get("valid", result.data["train"])
    answers: list[samples.Sample] = []
    picture, notes = Path(out) / PICTURE, [f"drawn: {Path(out) / PICTURE}"]
    try:
        answers = samples.write_samples(model, tokenizer, some, progress)
    except ValueError as error:
        notes.insert(0, f"not answered: {error}")
    try:
        samples.draw(result.history.steps, answers, picture)
    except (ImportError, OSError) as error:
        notes[-1] = f"not drawn: {error}"
    if not progress:
        return {**result.summary(), "samples": answers}
    return "\n".join([repr(result), *map(str, answers), *notes])


def generate(
    base: str, *, adapter: Sequence[str], prompt: str | None = None, message: str | None = None,
    chat: bool, system: str | None = None, dtype: str | None = None, check_base: bool,
    progress: bool, **options: Any,
) -> dict[str, Any] | None:  # fmt: skip
    """Continue a prompt, answer a message, or converse until the input ends."""
    if (prompt is not None) + (message is not None) + chat != 1:
        raise ValueError("give one of --prompt, --message and --chat")
    if system is not None and prompt is not None:
        raise ValueError("--system goes with --message or --chat; a raw prompt has no turns")
    if len(adapter) > 1 and not chat:
        raise ValueError("--prompt and --message take one --adapter; --chat can switch to others")
    if chat and not progress:
        raise ValueError("--json goes with --prompt or --message; a conversation is for people")
    if chat and sys.stdin is None:  # the process began without one, as after `<&-` of a shell
        raise ValueError(
            "--chat reads messages from the standard input, which is closed; open it, or ask one "
            "--message"
        )
    model, tokenizer = load(base, dtype, adapter, progress, check_base)
    writer = generating.TextGenerator(model, tokenizer, **options)
    first = [] if system is None else [{"role": "system", "content": system}]
    if chat:  # begin only if the template accepts the system message, and a first question
        tokenizer.render([*first, {"role": "user", "content": "?"}], add_generation_prompt=True)
        converse(writer, first)
        return None
    asked = prompt if message is None else [*first, {"role": "user", "content": message}]
    text = write(writer, asked or "", progress)
    if progress:
        return None
    count, seconds = len(writer.tokens), writer.seconds
    return {
        "text": text,
        "tokens": count,
        "prompt_tokens": len(writer.prompt_tokens),
        "seconds": seconds,
        "tokens_per_second": count / seconds if seconds else 0.0,
        "finish_reason": writer.finish_reason,
    }


def write(writer: generating.TextGenerator, prompt: str | generating.Messages, shown: bool) -> str:
    """Return the generated text; with `shown`, also print it, and say if it was cut."""
    text = ""
    for piece in writer.stream(prompt):
        text += piece
        if shown:
            show(piece)
    if shown:
        show("\n")
        longest = writer.model.config.max_length
        if len(writer.prompt_tokens) + len(writer.tokens) == longest:
            many = counted(longest, "token")
            print(f"cut at {many}, the longest text of this model", file=sys.stderr)
        elif writer.finish_reason == "length":
            many = counted(writer.max_tokens, "token")
            print(f"cut after {many}; --max-tokens allows more", file=sys.stderr)
    return text


def converse(writer: generating.TextGenerator, messages: list[dict[str, str]]) -> None:
    """Answer each line of the standard input, until it ends."""
    names = [BASE, *attachment_of(writer.model).adapters]
    show(f"{HELP}; adapters: {', '.join(names)}\n")
    first = list(messages)
    if isinstance(sys.stdin, io.TextIOWrapper):  # refuse only a line that is not UTF-8
        sys.stdin.reconfigure(errors="surrogateescape")
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
            show(f"answering with {name.strip()}\n")
        elif word.startswith("/"):
            unknown = f"there is no adapter {name.strip()!r}; " if word == "/use" else ""
            show(unknown + f"{HELP}; adapters: {', '.join(names)}\n")
        elif word:
            question = {"role": "user", "content": line.strip()}
            try:
                check_text("the line", line.strip())
                answer = write(writer, [*messages, question], True)
            except ValueError as error:  # for example, the text is too long for the model
                show(f"{error}; /reset begins anew\n")
                continue
            messages += [question, {"role": "assistant", "content": answer}]


def show(text: str) -> None:
    """Print a part of a line and flush it, without characters that control the terminal."""
    print("".join(c for c in text if c in _SHOWN or category(c)[0] != "C"), end="", flush=True)


def evaluate(
    base: str, data: str, *, adapter: Sequence[str], dtype: str | None = None, check_base: bool,
    mask_prompt: bool, progress: bool, **options: Any,
) -> evaluating.EvalReport | dict[str, Any]:  # fmt: skip
    """Compute the loss of the base, and of an adapter if one is given."""
    check_mask_prompt(mask_prompt, options)
    if len(adapter) > 1:
        raise ValueError(f"eval compares the base with one adapter, not with {len(adapter)}")
    files = data_files(data)
    file = files.get("test") or files.get("valid") or files["train"]
    model, tokenizer = load(base, dtype, adapter, progress, check_base)
    config = model.config
    options["max_length"] = training.longest_row(options.get("max_length"), config.max_length)
    options |= {"vocab_size": config.vocab_size, "progress": progress}
    rows = read_rows(file, tokenizer, **options)
    if progress:
        print(rows, file=sys.stderr)
    report = evaluating.evaluate(model, rows, base=bool(adapter), progress=progress)
    for which, each in (("the base", report.base), ("this model", report)):
        if each is not None and not math.isfinite(each.loss):
            print(f"the logits of {which} are not finite numbers, on some row", file=sys.stderr)
    if progress:
        return report
    base_loss = None if report.base is None else report.base.loss
    return {**vars(report), "base": base_loss, "base_report": report.base, "data": rows.summary()}


def load(
    base: str, dtype: str | None, adapters: Sequence[str], progress: bool, check_base: bool = True
) -> tuple[LanguageModel, Tokenizer]:
    """Load a model, its tokenizer, and adapters; the last one is active.

    An adapter has the name of its folder, with _ in place of all but letters, digits, - and _. A
    ValueError is raised if two have the same name, or one is called "base".
    """
    names = [re.sub(r"[^\w-]", "_", Path(folder).resolve().name) for folder in adapters]
    if len({*names, BASE}) <= len(names):
        raise ValueError(f"each adapter needs a folder name of its own, other than {BASE}: {names}")
    tokenizer = loading.tokenizer(base)  # first, because loading the model takes long
    model = loading.load_model(base, dtype, progress=progress)
    for folder, name in zip(adapters, names, strict=True):
        lora.load(model, folder, name, check_base=check_base, progress=progress)
    return model, tokenizer
