"""The command line: `python -m lora inspect`, `check`, `merge`, `extract` and `convert`.

These commands work on files: adapters that PEFT or `lora.save` wrote, and bases as safetensors or
GGUF, only a part of which is in memory at a time. The commands `train`, `generate` and `eval` are
in `lora.text`.

`--help` explains the exit status. Ctrl-C leaves either the old files or the complete new ones.
`verify` is another name of `check`; the function `lora.verify` is different, and tests the
identities of LoRA on a model.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

from lora.certificate import MergeError
from lora.offline import check_adapter, convert_adapter, extract_files, merge_files, summarise
from lora.offline.inspection import draw
from lora.peft.folder import FLOATS
from lora.text.commands import add_commands, add_options
from minigrad.checks import nearest
from minigrad.console import print_error, printing
from minigrad.distributed import world

WRONG, FAILED, STOPPED = 1, 2, 130

_BASE = "a safetensors file, an index of several, a folder with one of the two, or a GGUF file"
_ADAPTER = "a folder with adapter_config.json and adapter_model.safetensors"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default the process's own, and return the exit status."""
    parser = _parser()
    given, unknown = parser.parse_known_args(arguments)
    if given.command is None:
        parser.print_help(sys.stderr)
        return FAILED
    if unknown:
        is_option = unknown[0].startswith("-")
        likely = nearest(unknown[0], re.findall(r"--[a-z-]+", given.manual())) if is_option else ""
        hint = f"{likely}; {parser.prog} {given.command} --help lists the options"
        if given.command == "generate" and given.adapter and not is_option:
            hint = "; give several adapters by repeating --adapter"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    options = {name: value for name, value in vars(given).items() if value is not None}
    command, run, as_json, _ = (options.pop(key) for key in ("command", "run", "json", "manual"))
    plot = options.pop("plot", None)
    written = plot or options.get("out")
    found: Any = None
    try:
        ranks = world()
    except (RuntimeError, ValueError) as error:  # ranks that cannot communicate, or disagree
        print_error(_printable(f"lora {command}: {error}"))
        return FAILED
    try:
        if ranks.size > 1 and command != "train":
            raise ValueError(f"it would run {ranks.size} times; only train runs on several ranks")
        with printing():
            found = run(progress=not as_json, **options)
            if plot:
                draw(found, plot)
            drawn = f"\ndrawn: {plot}" if plot else ""
            text = json.dumps(_plain(found), indent=2) if as_json else _printable(f"{found}{drawn}")
            if found is not None:
                print(text)
    except KeyboardInterrupt as error:
        there = f"; {written} is as before, or complete" if written else ""
        if ranks.is_first:
            print_error(_printable(f"lora {command}: {str(error) or f'stopped{there}'}"))
        return STOPPED
    except (ValueError, OSError, KeyError, ImportError, MemoryError, ArithmeticError) as error:
        message = (
            error.args[0] if isinstance(error, KeyError) else vars(error).get("message", error)
        )
        ranks.check_left_together(error)
        if ranks.is_first:
            print_error(_printable(f"lora {command}: {message}"))
        return WRONG if isinstance(error, MergeError) else FAILED
    return 0 if getattr(found, "is_right", True) else WRONG


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m lora",
        description="Train and use LoRA adapters of language models; inspect, check, merge, "
        "extract and convert adapters in files. COMMAND --help describes a command.",
        epilog="The exit status is 0 for success; 1 if check finds a mistake, or a merge would "
        "lose more than its --limit; 2 for other errors; and 130 after Ctrl-C.",
    )
    commands = parser.add_subparsers(dest="command", metavar="command")

    def command(name: str, run: Any, help_text: str, *aliases: str) -> Callable[..., Any]:
        """Add a command, and return the function that adds an argument to it."""
        description = f"{help_text[0].upper()}{help_text[1:]}."
        made = commands.add_parser(name, help=help_text, description=description, aliases=aliases)
        made.set_defaults(run=run, manual=made.format_help)
        made.add_argument(
            "--json", action="store_true", help="print the result as JSON, for programs"
        )
        return made.add_argument

    # Arguments and options have the names of the parameters of the function that a command runs.
    add = command(
        "inspect",
        lambda folder, progress: summarise(folder),
        "show the ranks, scales, norms and effective ranks of an adapter, layer by layer",
    )
    add("folder", metavar="adapter", type=_path, help=_ADAPTER)
    help_text = "also draw the norms and singular values, to a picture such as FILE.png"
    add("--plot", metavar="FILE", type=_path, help=help_text)

    help_text = "add the update of an adapter to the weights of a base, and write the result"
    add = command("merge", merge_files, help_text)
    add("base", type=_path, help=_BASE)
    add("adapter", type=_path, help=_ADAPTER)
    add("out", type=_path, help="a file that ends in .safetensors, or a folder for the model")
    add("--dtype", choices=FLOATS, help="the dtype of all float tensors (default: as in the base)")
    help_text = "also merge into a base that the adapter was not made on"
    add("--any-base", dest="check_base", action="store_false", help=help_text)
    add_options(add, merge_files, ("limit", "radius", "workers"))

    help_text = "convert a PEFT adapter to llama.cpp's GGUF file, or such a file to a PEFT folder"
    add = command("convert", convert_adapter, help_text)
    add("adapter", type=_path, help=f"{_ADAPTER}, or a GGUF file")
    help_text = "a file that ends in .gguf; or if the adapter is a GGUF file, a folder"
    add("out", type=_path, help=help_text)
    help_text = "the adapter's model, a folder or a GGUF file; only its configuration is read"
    add("--base", type=_path, required=True, help=help_text)

    add_commands(command, _path)

    help_text = "find mistakes in an adapter; with a base, also check that they belong together"
    add = command("check", check_adapter, help_text, "verify")
    add("folder", metavar="adapter", type=_path, help=_ADAPTER)
    add("base", type=_path, nargs="?", help=f"{_BASE}; without it, only the adapter is checked")
    help_text = "a model to compare with the base after merging the adapter; it needs the base"
    add("--merged", metavar="MODEL", type=_path, help=help_text)
    add_options(add, check_adapter, ["workers"])

    help_text = "write the adapter that best approximates a fully fine-tuned model"
    add = command("extract", extract_files, help_text)
    add("base", type=_path, help=_BASE)
    add("finetuned", type=_path, help="the fine-tuned model: a file or a folder, as for the base")
    add("out", type=_path, help="a folder for the adapter")
    help_text = "the dtype of the adapter (default: float32, or float64 if the base has it)"
    add("--dtype", choices=FLOATS, help=help_text)
    help_text = "which layers are tables of vectors: patterns, with *, for the last part of a name "
    help_text += "(default: the usual names, such as embed_tokens and wte)"
    add("--embeddings", nargs="*", metavar="NAME", help=help_text)
    lists = "targets", "exclude", "modules_to_save"
    add_options(add, extract_files, ("rank", *lists, "bias", "fan_in_fan_out", "lossy", "workers"))
    return parser


def _path(text: str) -> str:
    """Return a path; refuse an empty one (an unset variable), which would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("a path is empty; name a file or a folder")
    return text


def _printable(text: str) -> str:
    """Escape characters that control the terminal, which a name in a file may contain."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _plain(value: Any) -> Any:
    """Convert a report, or a part of it, for JSON: paths and Inf become strings, and NaN null."""
    if is_dataclass(value):
        names = [*(each.name for each in fields(value)), "norm", "effective_rank", "is_right"]
        return {name: _plain(getattr(value, name)) for name in names if hasattr(value, name)}
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, PurePath) or (isinstance(value, float) and not math.isfinite(value)):
        return None if value != value else str(value)
    return value


if __name__ == "__main__":
    sys.exit(main())
