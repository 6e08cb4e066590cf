"""PyTorch's own database of ops, with its sample inputs, run through ours.

    python -m tests.peers.op_database [--verbose] [name ...]

prints how many samples agree in value, first and second derivatives, what we refuse and why, and
which entries have no counterpart. `tests.peers.op_rows` is the table of counterparts.

A sample is called in both libraries, in float64. The first derivatives are those of the sum of all
outputs times fixed random numbers; the second ones those of the sum of all first ones times others.
"""

import argparse
import re
import traceback
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path

import numpy as np

import minigrad
from minigrad import Tensor, grad
from minigrad.errors import op_of
from tests.peers.differences import relative
from tests.peers.op_rows import ON_PURPOSE, OUT_OF_SCOPE, ROWS, SkippedError

# Half of the 16 digits of float64 may go where a sum cancels or a matrix is badly conditioned. Few
# samples have operands or results in float32.
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
FLOOR = 1e-3  # elements below this much of the largest one are what cancellation left

VALUE = "the value"
PLACES = {1: "a first derivative", 2: "a second derivative"}
AGREES, DIFFERS, REFUSED, RAW, ABSENT, SKIPPED = (
    *("agrees", "differs", "refused", "raw error", "absent", "skipped"),
)


class AbsentError(Exception):
    """A function that a row calls does not exist here."""


class Ours:
    """`minigrad`, where a name that does not exist says so."""

    def __getattr__(self, name):
        if not hasattr(minigrad, name):
            raise AbsentError(name)
        return getattr(minigrad, name)


@dataclass
class Sample:
    """What came of one sample: a kind from above, and the reason or the place of a difference."""

    kind: str
    reason: str = ""
    order: int = 0  # up to which order of derivatives both were compared
    difference: float = 0.0  # relative to what is allowed
    text: str = ""
    purpose: str = ""  # why it differs or is refused, if that is on purpose


@dataclass
class Entry:
    """What came of all samples of one entry."""

    name: str
    samples: list[Sample] = field(default_factory=list)

    def of_kind(self, kind):
        return [sample for sample in self.samples if sample.kind == kind]


@cache
def database():
    """PyTorch's entries by name, with the variant after a slash."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return {"/".join(filter(None, (op.name, op.variant_test_name))): op for op in op_db}


# --------------------------------------------------------------------------------------------------
# One sample in both libraries
# --------------------------------------------------------------------------------------------------


def mapped(function, value):
    """A sample's arguments with a function applied to all that is not a container."""
    if isinstance(value, (tuple, list)):
        kind = list if isinstance(value, list) else tuple  # a torch.Size is a tuple
        return kind(mapped(function, part) for part in value)
    if isinstance(value, dict):
        return {key: mapped(function, part) for key, part in value.items()}
    return function(value)


def leaf(value):
    """A tensor of PyTorch's as one that nothing else has a hold on."""
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def in_ours(value, pairs):
    """PyTorch's tensor or dtype as ours; `pairs` collects the tensors to differentiate by."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.is_complex():
            raise SkippedError("complex numbers")
        ours = Tensor(np.array(value.detach().numpy()), requires_grad=value.requires_grad)
        if value.requires_grad:
            pairs.append((ours, value))
        return ours
    if isinstance(value, torch.dtype) and value != torch.bfloat16:
        return str(value).removeprefix("torch.")
    return value


def flat(out):
    """All outputs of a call in a row: tensors, arrays and numbers."""
    if isinstance(out, (tuple, list)):
        return [part for each in out for part in flat(each)]
    return [out]


def array(torch, x):
    if isinstance(x, torch.Tensor):
        return x.numpy(force=True)
    return np.asarray(x.data if isinstance(x, Tensor) else x)


def compare(name, opinfo, sample):
    """Call both with one sample, and compare values and derivatives."""
    import torch

    text = describe(torch, sample)
    given = mapped(leaf, (sample.input, *sample.args)), mapped(leaf, dict(sample.kwargs))
    pairs = []
    row = ROWS[name]
    orders = 1 + opinfo.supports_gradgrad
    try:
        arguments, options = mapped(partial(in_ours, pairs=pairs), given)
        with np.errstate(all="ignore"):
            x, *others = arguments
            ours = row.outputs(row.call(Ours(), row.operand(x), *others, **options))
        (x, *others), options = given
        theirs = row.outputs(opinfo.op(row.operand(x), *others, **options))
        kind, order, worst = differences(torch, flat(ours), flat(theirs), pairs, orders)
    except AbsentError as error:
        return Sample(ABSENT, str(error), text=text)
    except SkippedError as error:
        return Sample(SKIPPED, str(error), text=text)
    except Exception as error:
        kind = REFUSED if is_clear(error) else RAW
        return Sample(kind, f"{type(error).__name__}: {error}", text=text)
    return Sample(DIFFERS if kind else AGREES, kind, order, worst, text)


def describe(torch, sample):
    """The arguments of a sample in a line, with shapes for tensors."""

    def short(v):
        if isinstance(v, torch.Tensor):
            return f"{str(v.dtype).removeprefix('torch.')}{list(v.shape)}"
        if isinstance(v, (list, tuple)):
            return f"({', '.join(map(short, v))})"
        return repr(v)[:60]

    parts = [short(v) for v in (sample.input, *sample.args)]
    return ", ".join([*parts, *(f"{key}={short(v)}" for key, v in sample.kwargs.items())])


def differences(torch, ours, theirs, pairs, orders):
    """Return what differs, "" if nothing does, the order compared, and the largest difference.

    The largest is relative to what is allowed. `orders` is how often PyTorch can differentiate.
    """
    if len(ours) != len(theirs):
        return f"{len(ours)} outputs, not {len(theirs)}", 0, np.inf
    tensors = [t for t in (*theirs, *(y for _, y in pairs)) if isinstance(t, torch.Tensor)]
    narrow = any(t.dtype in (torch.float16, torch.float32) for t in tensors)
    allowed = TOLERANCE["float32" if narrow else "float64"]
    worst = max(
        (apart(torch, x, y, allowed) for x, y in zip(ours, theirs, strict=True)), default=0.0
    )
    if worst > 1:
        return VALUE, 0, worst
    recorded = [isinstance(y, torch.Tensor) and y.requires_grad for y in theirs]
    if not any(recorded):
        return "", 0, worst
    xs, ys = zip(*pairs, strict=True)
    ours = [x for x, there in zip(ours, recorded, strict=True) if there]
    theirs = [y for y, there in zip(theirs, recorded, strict=True) if there]
    rng, kept = np.random.default_rng(0), []
    for order in range(1, orders + 1):
        kept.append((ours, theirs))  # a gradient of what depends on them frees no graph
        factors = [rng.standard_normal(y.shape) for y in theirs]
        try:
            exact = their_gradients(torch, theirs, factors, ys)
        except RuntimeError:  # there is no derivative of this order
            return "", order - 1, worst
        with np.errstate(all="ignore"):
            found = our_gradients(ours, factors, xs)
        worst = max(
            worst, *(apart(torch, x, y, allowed) for x, y in zip(found, exact, strict=True))
        )
        if worst > 1:
            return PLACES[order], order, worst
        ours, theirs = found, exact
    return "", orders, worst


def their_gradients(torch, outputs, factors, inputs):
    """The gradients of the sum of outputs times factors; zeros where they do not depend."""
    total = sum(
        (y * torch.as_tensor(v, dtype=y.dtype)).sum()
        for y, v in zip(outputs, factors, strict=True)
        if y.requires_grad
    )
    found = [None] * len(inputs)
    if isinstance(total, torch.Tensor):
        found = torch.autograd.grad(total, inputs, create_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def our_gradients(outputs, factors, inputs):
    """The same in ours."""
    recorded = [
        (y, v.astype(y.dtype))
        for y, v in zip(outputs, factors, strict=True)
        if isinstance(y, Tensor) and y.requires_grad
    ]
    if not recorded:
        return [minigrad.zeros_like(x) for x in inputs]
    ys, vs = zip(*recorded, strict=True)
    return grad(list(ys), list(inputs), list(vs), create_graph=True, allow_unused=True)


def apart(torch, x, y, allowed):
    """How far two outputs are apart, relative to what is allowed."""
    x, y = array(torch, x), array(torch, y)
    if "f" not in (x.dtype.kind, y.dtype.kind):  # integers may be of another width
        x, y = x.astype(np.float64), y.astype(np.float64)
    return relative(x, y, FLOOR) / allowed


def is_clear(error):
    """Whether an error says what is wrong with the call.

    It names the function, is a `raise` of ours, or is Python's own about a keyword.
    """
    if op_of(error) is not None or "unexpected keyword argument" in str(error):
        return True
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return "minigrad" in Path(frame.filename).parts and (frame.line or "").startswith("raise")


# --------------------------------------------------------------------------------------------------
# All samples of an entry
# --------------------------------------------------------------------------------------------------


def run(name, most=None):
    """Compare the samples of one entry; of more than `most`, as many that are drawn at random."""
    import torch

    opinfo = database()[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dtype = torch.float64 if torch.float64 in opinfo.dtypes else torch.int64
        differentiable = opinfo.supports_autograd and dtype == torch.float64
        samples = list(opinfo.sample_inputs("cpu", dtype, requires_grad=differentiable))
        if most is not None and len(samples) > most:
            drawn = np.random.default_rng(0).choice(len(samples), most, replace=False)
            samples = [samples[i] for i in np.sort(drawn)]
        found = [compare(name, opinfo, sample) for sample in samples]
    for sample in found:
        sample.purpose = purpose(name, sample)
    return Entry(name, found)


def purpose(name, sample):
    """Why a sample differs or is refused; empty if that is not on purpose."""
    reasons = (why for names, part, why in ON_PURPOSE if name in names and part in sample.reason)
    return next(reasons, "") if sample.kind in (DIFFERS, REFUSED) else ""


def main():
    """Print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "names", nargs="*", help="entries, as nn.functional.relu or div/no_rounding_mode"
    )
    parser.add_argument("--verbose", action="store_true", help="a line for each entry")
    options = parser.parse_args()
    known = database()
    entries = []
    for name in options.names or ROWS:
        entry = run(name)
        entries.append(entry)
        if options.verbose:
            counts = Counter(sample.kind for sample in entry.samples)
            orders = Counter(s.order for s in entry.of_kind(AGREES))
            print(name.ljust(52), dict(counts), {k: orders[k] for k in sorted(orders)}, flush=True)
    report(entries)
    absent(known)


def report(entries):
    """Print how many samples agree, and what came of the others."""
    samples = [sample for entry in entries for sample in entry.samples]
    here = [e for e in entries if not e.samples or len(e.of_kind(ABSENT)) < len(e.samples)]
    print(f"\n{len(here)} entries, {sum(len(e.samples) for e in here)} samples")
    agreeing = [s for s in samples if s.kind == AGREES]
    orders = Counter(s.order for s in agreeing)
    print(
        f"{len(agreeing)} agree: {orders[2]} to second order; {orders[1]} to first order, and "
        f"{orders[0]} in value, which is all that PyTorch has there"
    )
    for kind in (DIFFERS, RAW, REFUSED, SKIPPED, ABSENT):
        print(f"{sum(s.kind == kind for s in samples)} {kind}")
        groups = defaultdict(list)
        for entry in entries:
            for s in entry.of_kind(kind):
                groups[s.purpose or without_numbers(s.reason)].append((entry.name, s))
        for reason, group in sorted(groups.items(), key=lambda item: -len(item[1])):
            names = list(dict.fromkeys(name for name, _ in group))
            on_purpose = "on purpose: " if group[0][1].purpose else ""
            print(f"{len(group):6} {on_purpose}{reason[:140]}")
            print(f"       {', '.join(names)[:120]}, as ({group[0][1].text[:100]})")


def without_numbers(reason):
    """An error without what differs from sample to sample."""
    return re.sub(r"-?\d+\.?\d*", "N", reason.partition("; it was called with")[0])


def absent(known):
    """Print the entries that have no row, and why."""
    others = [name for name in known if name not in ROWS]
    print(f"\n{len(known)} entries in the database, of which {len(known) - len(others)} have a row")
    for reason, patterns in OUT_OF_SCOPE.items():
        names = [name for name in others if any(fnmatchcase(name, p) for p in patterns.split())]
        others = [name for name in others if name not in names]
        print(f"{len(names):4} out of scope: {reason}")
    print(f"{len(others):4} absent: {', '.join(others)}")


if __name__ == "__main__":
    main()
