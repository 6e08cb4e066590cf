"""The command line: `python -m minigrad check`, `warmup` and `config`.

    python -m minigrad check file.py:function --shapes 3x4,4x5
    python -m minigrad check file.py:forward --vjp file.py:backward --shapes 3x4

runs gradcheck on a function in a file, of minigrad, PyTorch or JAX, or of numpy arrays, which needs
a second function for its gradient. The help of a command, in `make_parser`, describes the rest.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import minigrad
from minigrad.checks import nearest
from minigrad.console import print_error, printing
from minigrad.diagnostics import check_vjp, gradcheck
from minigrad.diagnostics.gradient_check.functions import framework_of
from minigrad.kernels.start import load_numba
from minigrad.packages import package

STATUS = {"agree": 0, "disagree": 1, "cannot tell": 2}
FAILED = 3


class Parser(argparse.ArgumentParser):
    """An argument parser that exits with status 3 after an error."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the arguments, and exit."""
        self.print_usage(sys.stderr)
        self.exit(FAILED, f"{self.prog}: {message}\n")


def shapes(text: str) -> list[tuple[int, ...]]:
    """Parse the shapes in a text such as "3x4,4x5"."""
    found = []
    for part in text.replace(" ", "").split(",") if text.strip() else []:
        sizes = [] if part == "()" else part.split("x")
        if not all(size.isdecimal() for size in sizes):
            raise argparse.ArgumentTypeError(
                f"{part!r} is not a shape; 3x4 is one, 5 is a vector and () a number"
            )
        found.append(tuple(map(int, sizes)))
    return found


def interval(text: str) -> tuple[float, float]:
    """Parse the two numbers in a text such as "0.5,2"."""
    try:
        low, high = (float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers, as in 0.5,2") from None
    return low, high


def seed(text: str) -> int:
    """Parse a seed of random numbers."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed; it is an integer of at least 0")
    return int(text)


def check(options: argparse.Namespace) -> int:
    """Run gradcheck, print its report and return the exit status."""
    try:
        f = load(options.target)
        rng = np.random.default_rng(options.seed)
        low, high = options.range or (0.0, 1.0)
        draw = rng.standard_normal if options.range is None else rng.random
        inputs = [low + (high - low) * draw(shape) for shape in options.shapes]
        if options.dtype == "bfloat16":
            package("ml_dtypes")  # it gives numpy this dtype
        arrays = [np.asarray(x).astype(options.dtype) for x in inputs]
        settings = {name: getattr(options, name) for name in ("tolerance", "samples", "nondet_tol")}
        if options.vjp is None:
            given = arrays_of(f, arrays, options.framework, options.dtype)
            report = gradcheck(f, given, options.order, **settings)
        elif options.order == 2 or options.framework:
            raise ValueError(
                "--vjp is for a function of numpy arrays and its first derivative; leave out "
                "--framework and --order"
            )
        else:
            report = check_vjp(f, load(options.vjp), arrays, **settings)
    except (Exception, SystemExit) as error:  # an error in the script says nothing about gradients
        text = "".join(traceback.format_exception_only(error)).rstrip()
        for name, library in ("torch", "PyTorch"), ("jax", "JAX"):
            if options.framework is None and options.vjp is None and name in sys.modules:
                text += f"\n  for a function of {library}, add --framework {name}"
        print_error(f"minigrad check: {text}")
        return FAILED
    if report and not report.compared:
        report.reason = "nothing was compared: the inputs have no elements; choose other --shapes"
    try:
        with printing():
            print(report)
    except OSError as error:  # a full disk says nothing about gradients
        print_error(f"minigrad check: the report cannot be written: {error}")
        return FAILED
    return STATUS[report.verdict]


def arrays_of(f: Any, arrays: list[Any], framework: str | None, dtype: str) -> list[Any]:
    """Convert arrays to those of a framework: the named one, or else f's, if it can be found."""
    found = framework_of(f, []) if framework is None else None
    framework = found.framework if found else framework
    if framework == "torch":
        torch = package("torch")
        parameters = f.parameters() if isinstance(f, torch.nn.Module) else ()
        own = next((p.dtype for p in parameters), getattr(torch, dtype))  # a Module's dtype
        wide = (x.astype(np.float64) for x in arrays)  # PyTorch accepts float64 from numpy
        return [torch.from_numpy(x).to(own).requires_grad_() for x in wide]
    if framework == "jax":
        jax = package("jax").numpy
        return [jax.asarray(x, dtype=jax.result_type(x)) for x in arrays]
    return arrays


def load(target: str) -> Any:
    """Import the function that `file.py:function` or `package.module:function` names.

    Raises:
        ValueError: if `target` does not have this form, or its name is not a function.
        FileNotFoundError: if the file does not exist.
    """
    source, colon, name = target.rpartition(":")
    if not (colon and source and name):
        raise ValueError(f"{target!r} is not of the form file.py:function")
    if source.endswith(".py"):
        path = Path(source).resolve()
        if not path.is_file():
            near = ", ".join(sorted(other.name for other in path.parent.glob("*.py")))
            there = f"the files there are {near}" if near else "no file there ends in .py"
            raise FileNotFoundError(f"there is no {source}; {there}")
        sys.path.insert(0, str(path.parent))  # so that it can import files of its folder
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(source)
    found: Any = module
    for part in name.split("."):
        known = [n for n in dir(found) if not n.startswith("_") and callable(getattr(found, n))]
        if not hasattr(found, part):
            hint = nearest(part, known)
            others = f", only {', '.join(known)}"
            raise ValueError(f"{source} has no {name!r}{hint or others}")
        found = getattr(found, part)
    if isinstance(found, type):
        instead = "its .apply" if hasattr(found, "apply") else "an instance of it"
        raise ValueError(f"{target} cannot be checked: it is a class; name {instead}")
    if not callable(found):
        raise ValueError(f"{target} cannot be checked: it is {found!r:.60}")
    return found


def make_parser() -> Parser:
    """Return the parser of the command line, with the three commands and their options."""
    parser = Parser(
        "python -m minigrad",
        description="Check gradients, compile kernels, and show the configuration. "
        "COMMAND --help describes a command.",
    )
    commands = parser.add_subparsers(dest="command", metavar="command")

    def command(name: str, help_text: str, more: str = ".", epilog: str = "") -> Callable[..., Any]:
        """Add a command, and return the function that adds an argument to it."""
        description = f"{help_text.capitalize()}{more}"
        made = commands.add_parser(name, help=help_text, description=description, epilog=epilog)
        return made.add_argument

    add = command(
        "check",
        "compare the gradients of a function with finite differences",
        " (gradcheck).",
        "The exit status is 0 if the gradients agree, 1 if they disagree, 2 if the check cannot "
        "tell, as for inputs without elements, and 3 if the function is missing or raises an "
        "error.",
    )
    add("target", help="file.py:function or package.module:function; it may also be a Module")
    help_text = "the shapes of the inputs, as in 3x4,4x5; () is a number, and an empty text means "
    help_text += "no inputs"
    add("--shapes", required=True, type=shapes, help=help_text)
    help_text = "check backward(g, *inputs), of numpy arrays, as the gradient of the target"
    add("--vjp", metavar="TARGET", help=help_text)
    help_text = "the library of a plain function (default: minigrad); that of a Module or an "
    help_text += "autograd.Function is recognised"
    add("--framework", choices=("minigrad", "torch", "jax"), help=help_text)
    help_text = "the highest order of derivatives (default: 2; 1 for other libraries and with "
    help_text += "--vjp)"
    add("--order", type=int, choices=(1, 2), help=help_text)
    dtypes = "float64", "float32", "float16", "bfloat16"
    help_text = "the dtype of the inputs (default: float64); a Module of PyTorch gets its own; "
    help_text += "bfloat16 needs the package ml_dtypes"
    add("--dtype", choices=dtypes, default="float64", help=help_text)
    help_text = "draw the inputs uniformly from this interval (default: from a standard normal "
    help_text += "distribution); write --range=-5,5 if LOW is negative"
    add("--range", type=interval, metavar="LOW,HIGH", help=help_text)
    help_text = "compare this number of elements of an operand (default: all)"
    add("--samples", type=int, help=help_text)
    help_text = "the allowed relative difference in float64 (default: 1e-6)"
    add("--tolerance", type=float, default=1e-6, help=help_text)
    help_text = "the allowed relative difference between two calls with equal inputs (default: 0)"
    add("--nondet-tol", type=float, default=0.0, help=help_text)
    add("--seed", type=seed, default=0, help="the seed of the random inputs (default: 0)")

    add = command(
        "warmup",
        "compile the kernels in advance, and save them for later programs",
        ". If root has compiled them, other users can use them after chmod -R go+rX of the folder "
        "that is printed and of the one above it. Without a warm-up, a second process compiles "
        "what training usually needs while a program waits for its first kernels, unless the "
        "variable CI is set.",
    )
    help_text = "also the kernels of float64, besides those of float32"
    add("--all", action="store_true", help=help_text)

    command("config", "show versions, processor, threads and the folder of compiled kernels")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; `arguments` are by default those of the process."""
    parser = make_parser()
    chosen = parser.parse_args(arguments)
    if chosen.command == "check":
        sys.exit(check(chosen))
    if chosen.command is None:
        parser.print_help()
        return
    try:
        load_numba()
    except RuntimeError as error:
        sys.exit(f"minigrad {chosen.command}: {error}")
    if chosen.command == "config":
        report: Callable[[], object] = minigrad.show_config
    else:
        from minigrad.kernels.warmup import WarmupError, warmup

        try:
            report = partial(print, warmup(double=chosen.all))
        except WarmupError as error:
            sys.exit(f"minigrad warmup: {error}")
    try:
        with printing():
            report()
    except OSError as error:  # the disk is full, for example
        sys.exit(f"minigrad {chosen.command}: the report cannot be written: {error}")


if __name__ == "__main__":
    main()
