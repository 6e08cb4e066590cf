"""Every kernel compiled and called, by one thread and by two: on any Python and processor.

    python -m tests.every_kernel                    compile and call them all, and say what ran
    python -m tests.every_kernel --save FILE        also keep digests of all results
    python -m tests.every_kernel --compare FILE     also compare with digests of another Python
    python -m tests.every_kernel --float32          leave out float64

The digests tell whether two interpreters on one machine compute the same bits.
"""

import argparse
import hashlib
import json
import math
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numba
import numpy as np
import pytest

import minigrad as mg
from lora import LoRALayer
from minigrad.kernels import launch, threads, warmup
from minigrad.kernels.bfloat16 import BFloat16Matrix
from minigrad.kernels.elementwise import add_rows, where
from minigrad.kernels.gemm import dispatch, matmul, prepacked
from minigrad.kernels.gemm.products import write_addresses
from minigrad.kernels.launch import KERNELS
from minigrad.kernels.nf4 import NF4Matrix
from minigrad.optim import EMA, SGD, Adagrad, Adam, RMSprop
from minigrad.optim.clip import clip_grad_norm
from tests.cases import CASES

Call = Callable[[], list[np.ndarray]]
CALLS = ("alone", "shared")  # by one thread, and by several
OF_LAPACK = ("eigh", "eigvalsh", "norm", "pinv", "svd", "svdvals")
"""Functions of which the bits are LAPACK's, which differ from one numpy to the next."""


def calls(dtype) -> Iterator[tuple[str, Call]]:
    """Calls that between them reach every kernel of a dtype, each with a name."""
    for case in CASES:
        if case.name not in OF_LAPACK:
            yield f"{case}", lambda case=case: derivatives(case, dtype)
    yield from (products(dtype) | updates(dtype) | choices(dtype)).items()


def derivatives(case, dtype):
    """The value of a row of the table of ops, and its gradients."""
    operands = map(in_new_memory, case.operands(dtype))
    operands = [mg.Tensor(x, requires_grad=x.dtype.kind == "f") for x in operands]
    out = case(*operands)
    leaves = [x for x in operands if x.requires_grad]
    gradients = mg.grad(out, leaves, np.ones(out.shape, out.dtype)) if case.order else ()
    return [out.data, *(g.data for g in gradients)]


def draws(dtype, *shapes):
    rng = np.random.default_rng(0)
    return [in_new_memory(rng.standard_normal(shape).astype(dtype)) for shape in shapes]


def in_new_memory(x):
    """A copy in memory of `np.empty`, of which tests can choose the place."""
    out = np.empty(x.shape, x.dtype)
    out[...] = x
    return out


def products(dtype):
    """Matrix products, one for each of the loops that a shape may take."""
    shapes = {
        "blocks": ((70, 90), (90, 75)),
        "batch": ((30, 9, 8), (30, 8, 7)),
        "few columns": ((96, 256), (256, 3)),
        "few rows": ((3, 600), (600, 700)),
        "one row": ((1, 190), (190, 175)),
        "long": ((5, 30_000), (30_000, 4)),
        "inner": ((1, 20_000), (20_000, 1)),
    }

    def product(x, y):
        return [matmul(x, y), matmul(x[..., ::-1, :], y)]

    def with_prepacked():
        x, weight = draws(dtype, (70, 200), (100, 200))
        layer = LoRALayer(weight, 100, 200, 4, 8.0, bias=weight[:, 0], rng=np.random.default_rng(1))
        layer.lora_b.data[...] = weight[:, :4]
        data = mg.Tensor(x, requires_grad=True)
        out = layer(data)
        assert prepacked.find(layer.base_weight.data) is not None
        return [out.data, *(g.data for g in mg.grad(out.sum(), [data, layer.lora_a]))]

    def narrow(kind):
        weight, *xs = draws(dtype, (70, 200), (1, 200), (9, 200), (40, 200))
        matrix = kind(weight)
        return [matrix.T.matmul(x) for x in xs] + [matrix.matmul(weight.T[:3, :70])]

    def on_matrix_unit():
        x, y = draws(dtype, (256, 256), (256, 256))
        plan = dispatch.PRODUCTS[x.dtype].plans_of(True)[False].copy()
        write_addresses[x.dtype].alone(x[0], plan)
        return [matmul(x, y)]

    found = {name: lambda s=s: product(*draws(dtype, *s)) for name, s in shapes.items()}
    x, y = draws(dtype, (70, 90), (90, 75))
    found["bias"] = lambda: [matmul(x, y, bias=y[0])]
    found["kept panels"] = with_prepacked
    if np.dtype(dtype) in write_addresses:
        found["matrix unit"] = on_matrix_unit
    images, filters = draws(dtype, (2, 8, 5, 6), (20, 8, 3, 3))
    found["convolution with many filters"] = lambda: [mg.conv2d(images, filters, padding=1)]
    for name, kind in (("NF4", NF4Matrix.of), ("bfloat16", BFloat16Matrix.of)):
        found[name] = lambda kind=kind: narrow(kind)
    return {f"product: {name}": call for name, call in found.items()}


def updates(dtype):
    """Two steps of each optimiser, an average, and a clipped gradient."""
    optimisers = {
        "sgd": lambda p: SGD(p, lr=0.1, weight_decay=0.01),
        "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9),
        "nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        "adam": lambda p: Adam(p, lr=0.1),
        "amsgrad": lambda p: Adam(p, lr=0.1, amsgrad=True),
        "adagrad": lambda p: Adagrad(p, lr=0.1),
        **{
            f"rmsprop, {m}, {c}": lambda p, m=m, c=c: RMSprop(p, lr=0.1, momentum=m, centered=c)
            for m in (0.0, 0.9)
            for c in (False, True)
        },
    }

    def train(make):
        weights, gradients = draws(dtype, (40, 25), (40, 25))
        weight = mg.Tensor(weights, requires_grad=True)
        optimiser, average = make([weight]), EMA([weight], decay=0.9)
        for sign in (1, -1):
            weight.grad = mg.Tensor(sign * gradients)
            clip_grad_norm([weight], 1.0)
            optimiser.step()
            average.update()
        learned = weight.data.copy()
        average.copy_to()
        return [learned, weight.data]

    return {f"optimiser: {name}": lambda m=make: train(m) for name, make in optimisers.items()}


def choices(dtype):
    """Elements of one array or another, of an array or a number; rows added up or to a table."""
    x, y, large = draws(dtype, (40, 25), (40, 25), (5, 3000))

    def rows_added():
        table = x.copy()
        add_rows(table, np.arange(40) % 7, y)
        return [table]

    return {
        "rows": rows_added,
        "sums of rows": lambda: [mg.sum(large, 1), mg.sum(large)],
        "where: arrays": lambda: [where(x > 0, x, y)],
        "where: else a number": lambda: [where(x > 0, x, 2.0)],
        "where: a number": lambda: [where(x > 0, 2.0, y)],
    }


@contextmanager
def threads_for_all_work_over(seconds):
    """Let two threads share all work that takes one longer than this, however small the arrays."""
    before = mg.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "MIN_SECONDS_FOR_THREADS", seconds)
        patch.setattr(threads, "MIN_SECONDS_FOR_WAKING", seconds)
        patch.setattr(threads, "MIN_SECONDS_FOR_WORKQUEUE", seconds)
        patch.setattr(dispatch, "THREADS_FROM", 0)
        mg.set_num_threads(2)
        try:
            yield
        finally:
            mg.set_num_threads(before)


@contextmanager
def recorded() -> Iterator[set[tuple[int, str]]]:
    """The calls meanwhile: the number of a kernel in KERNELS, and by which of its methods."""
    called = set()

    def recording(number, form, function):
        def call(*arguments):
            called.add((number, form))
            function(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for number, each in enumerate(KERNELS):
            for form in CALLS:
                patch.setattr(each, form, recording(number, form, getattr(each, form)))
        yield called


def compile_all(double=True):
    """Compile every kernel, unless it is on disk; returns how many there are."""
    kernels = warmup.kernels_of(double)
    for each in kernels:
        each.compile()
    return len(kernels)


def results(double=True):
    """What all calls give, by name."""
    with np.errstate(all="ignore"):  # some rows of the table are at infinities and NaN
        return {
            f"{np.dtype(dtype)} {name}": [np.array(x) for x in call()]
            for dtype in (np.float32, np.float64)[: 1 + double]
            for name, call in calls(dtype)
        }


def results_with_and_without_threads(double=True):
    """All results twice: on the calling thread, and shared by two."""
    with threads_for_all_work_over(math.inf):
        alone = results(double)
    with threads_for_all_work_over(0):
        return alone, results(double)


def differing(some, others):
    """The names under which two sets of results are not the same bits."""
    return [name for name in some if bits(some[name]) != bits(others[name])]


def bits(arrays):
    """A digest of arrays; all NaN count as one, since a sign of NaN means nothing."""
    digest = hashlib.sha256()
    for x in arrays:
        x = np.where(np.isnan(x), np.array(np.nan, x.dtype), x) if x.dtype.kind == "f" else x
        digest.update(f"{x.dtype} {x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()


def missing(called):
    """The kernels that one thread has not called, or that several have not shared."""
    return [
        f"{each!r} for {'one thread' if form == 'alone' else 'threads'}"
        for number, each in enumerate(KERNELS)
        for form in CALLS
        if (form == "alone" or each.threads) and (number, form) not in called
    ]


def main():
    parser = argparse.ArgumentParser(
        "python -m tests.every_kernel", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--save", type=Path, metavar="FILE", help="write digests of all results")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="compare with such a file")
    parser.add_argument("--float32", action="store_true", help="leave out the kernels of float64")
    arguments = parser.parse_args()
    double = not arguments.float32
    count = compile_all(double)
    with recorded() as called:
        alone, shared = results_with_and_without_threads(double)
    if double and (absent := missing(called)):
        sys.exit("not called:\n" + "\n".join(absent))
    if wrong := differing(alone, shared):
        sys.exit("other bits on several threads:\n" + "\n".join(wrong))
    versions = {
        "python": platform.python_version(), "numba": numba.__version__, "numpy": np.__version__,
    }  # fmt: skip
    digests = {name: bits(arrays) for name, arrays in alone.items()}
    if arguments.save:
        arguments.save.write_text(json.dumps({"versions": versions, "digests": digests}))
    said = ""
    if arguments.compare:
        other = json.loads(arguments.compare.read_text())
        if wrong := [name for name in digests if digests[name] != other["digests"].get(name)]:
            sys.exit(f"other bits than {other['versions']}:\n" + "\n".join(wrong))
        said = f", the same bits as Python {other['versions']['python']}"
    print(f"{versions}: {count} kernels, {len(digests)} calls{said}")


if __name__ == "__main__":
    main()
