"""The command line: `python -m lora inspect`, `check`, `merge` and `extract`.

It works on files: adapters as PEFT and `lora.save` write them, and bases as safetensors, of which
no more than a part is in memory. The exit status is 0 if all is well; 1 if `check` found something
wrong, or a merge would lose more than the limit; 2 if it could not be done, as for bad input; and
130 if it was stopped with Ctrl-C, which leaves the files as they were. `verify` is the old name of
`check`; `lora.verify` is something else, and tests the identities of LoRA on a model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, get_args

from lora.certificate import MergeError
from lora.config import Bias
from lora.offline import check_adapter, extract_files, merge_files, summarise
from lora.offline.inspection import draw
from lora.offline.model_folder import EMBEDDINGS
from lora.peft.folder import FLOATS

WRONG, FAILED, STOPPED = 1, 2, 130

_BASE = "a safetensors file, an index of several, or a folder with one of the two"
_ADAPTER = "a folder with adapter_config.json and adapter_model.safetensors"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default that of the process, and return the exit status."""
    options = vars(_parser().parse_args(arguments))
    command, run, as_json = (options.pop(key) for key in ("command", "run", "json"))
    try:
        status, text, content = run(progress=not as_json, **options)
        text = json.dumps(_plain(content), indent=2) if as_json else _printable(text)
        try:
            print(text, flush=True)
        except BrokenPipeError:  # a reader such as `head` may close the pipe before the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(f"lora {command}: stopped; nothing was changed", file=sys.stderr)
        return STOPPED
    except (ValueError, OSError, KeyError, ImportError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        print(_printable(f"lora {command}: {message}"), file=sys.stderr)
        return WRONG if isinstance(error, MergeError) else FAILED
    return int(status)


# Each command returns the exit status, the text to print, and the same content for machines. Its
# options are called as the parameters of the function that it runs.
Result = tuple[int, str, Any]


def _inspect(adapter: str, plot: str | None, progress: bool) -> Result:
    found = summarise(adapter)
    text = repr(found)
    if plot:
        draw(found, plot)
        text += f"\ndrawn: {plot}"
    layers = [
        {**asdict(layer), "norm": layer.norm, "effective_rank": layer.effective_rank}
        for layer in found.layers
    ]
    return 0, text, {**asdict(found), "layers": layers}


def _merge(**options: Any) -> Result:
    found = merge_files(**options)
    return 0, repr(found), {**asdict(found), "path": str(found.path)}


def _check(adapter: str, base: str | None, progress: bool) -> Result:
    found = check_adapter(adapter, base, progress=progress)
    status = 0 if found.is_right else WRONG
    return status, repr(found), {**asdict(found), "is_right": found.is_right}


def _extract(**options: Any) -> Result:
    found = extract_files(**options)
    return 0, repr(found), asdict(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m lora", description="Adapters in files: look into them, merge, check, extract."
    )
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    def command(name: str, run: Any, help_text: str, *aliases: str) -> Callable[..., Any]:
        """Add a command, and return the function that adds an argument to it."""
        description = f"{help_text[0].upper()}{help_text[1:]}."
        made = commands.add_parser(name, help=help_text, description=description, aliases=aliases)
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="print JSON, for machines")
        return made.add_argument

    add = command("inspect", _inspect, "show what an adapter is made of, layer by layer")
    add("adapter", type=_path, help=_ADAPTER)
    add("--plot", metavar="FILE", help="draw norms and singular values to a file")

    add = command("merge", _merge, "write a base with the update of an adapter in it")
    add("base", type=_path, help=_BASE)
    add("adapter", type=_path, help=_ADAPTER)
    add("out", type=_path, help="a file that ends in .safetensors, or a folder")
    add("--dtype", choices=FLOATS, help="of all floats (that of each tensor)")
    help_text = "refuse if in one layer a larger share of the update is lost to rounding"
    add("--limit", type=float, metavar="SHARE", help=help_text)
    help_text = "the norm of the inputs that the certificate's bound holds for (1)"
    add("--radius", type=float, default=1.0, help=help_text)
    help_text = "also merge into a base that the adapter was not made on"
    add("--any-base", dest="check_base", action="store_false", help=help_text)

    help_text = "look for what is wrong with an adapter, and a base for it"
    add = command("check", _check, help_text, "verify")
    add("adapter", type=_path, help=_ADAPTER)
    add("base", type=_path, nargs="?", help=_BASE)

    help_text = "write the adapter that comes nearest to a model trained as a whole"
    add = command("extract", _extract, help_text)
    add("base", type=_path, help=_BASE)
    add("finetuned", type=_path, help="the same of the trained model")
    add("out", type=_path, help="a folder for the adapter")
    add("--rank", type=int, required=True, help="of each update")
    for option, help_text, several, usual in (
        ("--targets", "ends of names of layers, or patterns with *", "+", ("*",)),
        ("--exclude", "of these, those to leave out", "+", ()),
        ("--modules-to-save", "modules to take over whole", "+", ()),
        ("--embeddings", "which layers are tables of vectors", "*", EMBEDDINGS),
    ):
        add(option, nargs=several, metavar="NAME", default=usual, help=help_text)
    add("--bias", choices=get_args(Bias), default="none", help="which biases to take over (none)")
    add("--dtype", choices=FLOATS, help="of the adapter (that of the base)")
    help_text = "the files have weights as (d_in, d_out), where biases do not tell"
    add("--fan-in-fan-out", action="store_true", help=help_text)
    add("--lossy", action="store_true", help="leave out what the adapter would not have")
    return parser


def _path(text: str) -> str:
    """Return a path; an empty one, as of a variable that is not set, would be the folder."""
    if not text:
        raise argparse.ArgumentTypeError("a path is empty; name a file or a folder")
    return text


def _printable(text: str) -> str:
    """Return a text without characters that control the terminal, as a name in a file may have."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _plain(value: Any) -> Any:
    """Return a value in which NaN and Inf are texts, since JSON has neither."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


if __name__ == "__main__":
    sys.exit(main())
