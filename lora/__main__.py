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
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

WRONG, FAILED, STOPPED = 1, 2, 130

_BASE = "a safetensors file, an index of several, or a folder with one of the two"
_ADAPTER = "a folder with adapter_config.json and adapter_model.safetensors"
_DTYPES = ("float64", "float32", "float16", "bfloat16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default that of the process, and return the exit status."""
    chosen = _parser().parse_args(arguments)
    try:
        status, text, content = chosen.run(chosen)
        _say(json.dumps(_plain(content), indent=2) if chosen.json else _printable(text))
    except KeyboardInterrupt:
        print(f"lora {chosen.command}: stopped; nothing was changed", file=sys.stderr)
        return STOPPED
    except (ValueError, OSError, KeyError, ImportError) as error:
        from lora.certificate import MergeError

        message = error.args[0] if isinstance(error, KeyError) else error
        print(_printable(f"lora {chosen.command}: {message}"), file=sys.stderr)
        return WRONG if isinstance(error, MergeError) else FAILED
    return int(status)


Result = tuple[int, str, Any]
"""The exit status, the text to print, and the same content for machines."""


def _inspect(chosen: argparse.Namespace) -> Result:
    from lora.offline.inspection import draw, summarise

    found = summarise(chosen.adapter)
    text = repr(found)
    if chosen.plot:
        draw(found, chosen.plot)
        text += f"\ndrawn: {chosen.plot}"
    layers = [
        {**asdict(layer), "norm": layer.norm, "effective_rank": layer.effective_rank}
        for layer in found.layers
    ]
    return 0, text, {**asdict(found), "layers": layers}


def _merge(chosen: argparse.Namespace) -> Result:
    from lora.offline.merging import merge_files

    found = merge_files(
        chosen.base,
        chosen.adapter,
        chosen.out,
        dtype=chosen.dtype,
        limit=chosen.limit,
        radius=chosen.radius,
        check_base=not chosen.any_base,
        progress=not chosen.json,
    )
    return 0, repr(found), {**asdict(found), "path": str(found.path)}


def _check(chosen: argparse.Namespace) -> Result:
    from lora.offline.checking import check_adapter

    found = check_adapter(chosen.adapter, chosen.base, progress=not chosen.json)
    return (
        0 if found.is_right else WRONG,
        repr(found),
        {**asdict(found), "is_right": found.is_right},
    )


def _extract(chosen: argparse.Namespace) -> Result:
    from lora.offline.extracting import extract_files
    from lora.offline.resolve_base import EMBEDDINGS

    found = extract_files(
        chosen.base,
        chosen.finetuned,
        chosen.out,
        chosen.rank,
        targets=chosen.targets or ("*",),
        exclude=chosen.exclude,
        embeddings=EMBEDDINGS if chosen.embeddings is None else chosen.embeddings,
        bias=chosen.bias,
        modules_to_save=chosen.modules_to_save,
        fan_in_fan_out=chosen.fan_in_fan_out,
        lossy=chosen.lossy,
        dtype=chosen.dtype,
        progress=not chosen.json,
    )
    return 0, repr(found), asdict(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m lora", description="Adapters in files: look into them, merge, check, extract."
    )
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    def command(name: str, run: Any, help_text: str, *aliases: str) -> argparse.ArgumentParser:
        description = f"{help_text[0].upper()}{help_text[1:]}."
        made: argparse.ArgumentParser = commands.add_parser(
            name, help=help_text, description=description, aliases=aliases
        )
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="print JSON, for machines")
        return made

    inspect = command("inspect", _inspect, "show what an adapter is made of, layer by layer")
    inspect.add_argument("adapter", type=_path, help=_ADAPTER)
    inspect.add_argument("--plot", metavar="FILE", help="draw norms and singular values to a file")

    merge = command("merge", _merge, "write a base with the update of an adapter in it")
    merge.add_argument("base", type=_path, help=_BASE)
    merge.add_argument("adapter", type=_path, help=_ADAPTER)
    merge.add_argument("out", type=_path, help="a file that ends in .safetensors, or a folder")
    merge.add_argument("--dtype", choices=_DTYPES, help="of all floats (that of each tensor)")
    merge.add_argument(
        "--limit", type=float, metavar="SHARE",
        help="refuse if in one layer a larger share of the update is lost to rounding",
    )  # fmt: skip
    merge.add_argument(
        "--radius", type=float, default=1.0,
        help="the norm of the inputs that the certificate's bound holds for (1)",
    )  # fmt: skip
    merge.add_argument(
        "--any-base", action="store_true",
        help="also merge into a base that the adapter was not made on",
    )  # fmt: skip

    help_text = "look for what is wrong with an adapter, and a base for it"
    check = command("check", _check, help_text, "verify")
    check.add_argument("adapter", type=_path, help=_ADAPTER)
    check.add_argument("base", type=_path, nargs="?", help=_BASE)

    extract = command(
        "extract", _extract, "write the adapter that comes nearest to a model trained as a whole"
    )
    extract.add_argument("base", type=_path, help=_BASE)
    extract.add_argument("finetuned", type=_path, help="the same of the trained model")
    extract.add_argument("out", type=_path, help="a folder for the adapter")
    extract.add_argument("--rank", type=int, required=True, help="of each update")
    names: dict[str, Any] = {"nargs": "+", "metavar": "NAME", "default": ()}
    extract.add_argument("--targets", help="ends of names of layers, or patterns with *", **names)
    extract.add_argument("--exclude", help="of these, those to leave out", **names)
    extract.add_argument("--modules-to-save", help="modules to take over whole", **names)
    extract.add_argument(
        "--embeddings", nargs="*", metavar="NAME", help="which layers are tables of vectors"
    )
    extract.add_argument(
        "--bias", choices=("none", "all", "lora_only"), default="none",
        help="which biases to take over (none)",
    )  # fmt: skip
    extract.add_argument("--dtype", choices=_DTYPES, help="of the adapter (that of the base)")
    extract.add_argument(
        "--fan-in-fan-out",
        action="store_true",
        help="the files have weights as (d_in, d_out), where biases do not tell",
    )
    extract.add_argument(
        "--lossy", action="store_true", help="leave out what the adapter would not have"
    )
    return parser


def _say(text: str) -> None:
    """Print a text; a reader such as `head` may close the pipe before its end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
