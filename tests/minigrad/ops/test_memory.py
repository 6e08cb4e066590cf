"""Every op between pages that may not be touched, forward and backward, in loops of our own.

The operands are at the edge of memory, and so is what the library and its kernels make room for.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minigrad.kernels.jit import JIT_ENABLED
from tests import every_kernel
from tests.guarded import new_arrays_side_by_side

SCRIPT = """
import faulthandler
from functools import partial
import numpy as np
import minigrad
from minigrad import Tensor, kernels
from tests.cases import CASES
from tests.guarded import guard_scratch, guarded_copy, new_arrays_guarded

faulthandler.enable()
rng = np.random.default_rng(1)
made, in_kernels = 0, guard_scratch(np.random.default_rng(1))


class Always:
    "Draws the same edge each time: the one after an array, or the one before it."
    def __init__(self, edge):
        self.edge = edge

    def integers(self, most):
        return self.edge


def check(name, f, arrays, dtype, draws=(rng,)):
    "Values and gradients at the edges of memory that are drawn are those elsewhere."
    print(name, np.dtype(dtype), flush=True)
    plain = run(f, arrays, lambda x: x.copy())
    for draw in draws:
        compare(f, arrays, dtype, plain, draw)


def run(f, arrays, placed):
    operands = [Tensor(x, requires_grad=x.dtype.kind == "f") for x in map(placed, arrays)]
    out = f(*operands)
    leaves = [x for x in operands if x.requires_grad]
    if not (leaves and out.requires_grad):
        return [out.data.copy()]
    g = np.random.default_rng(3).standard_normal(out.shape).astype(out.dtype)
    gradients = minigrad.grad(out, leaves, placed(g))
    return [out.data.copy(), *(x.data.copy() for x in gradients)]


def compare(f, arrays, dtype, plain, draw):
    global made
    with new_arrays_guarded(draw) as count:
        edge = run(f, arrays, lambda x: guarded_copy(x, draw.integers(2)))
    made += count[0]
    for one, other in zip(edge, plain, strict=True):
        scale = max(1.0, float(np.nanmax(abs(np.where(np.isfinite(other), other, 0)), initial=0)))
        bound = 64 * np.finfo(dtype).eps * scale  # edges decide in what order sums run
        np.testing.assert_allclose(one, other, rtol=0, atol=bound)


with np.errstate(all="ignore"):  # rows with infinite slopes
    for case in CASES:
        for dtype in (np.float32, np.float64):
            check(str(case), case, case.operands(dtype), dtype, (Always(0), Always(1)))


def sizes(*most):
    return [int(rng.integers(1, n + 1)) for n in most]


usual = kernels.convolution.DEEP, kernels.convolution.SECONDS


def attention(q, k, v):
    return minigrad.scaled_dot_product_attention(q, k, v, is_causal=bool(len(q.shape) % 2))


for _ in range(60):
    rows, columns, classes = sizes(40, 150, 40)
    queries, keys, d, d_v = sizes(70, 150, 40, 40)
    lead = tuple(sizes(3, 3)[: rng.integers(3)])
    for dtype in (np.float32, np.float64):
        x = rng.standard_normal((rows, columns)).astype(dtype)
        w, b = (rng.standard_normal(columns).astype(dtype) for _ in range(2))
        for name in ("softmax", "log_softmax", "logsumexp"):
            axis = int(rng.integers(2))
            check(name, lambda x: getattr(minigrad, name)(x, axis), [x], dtype)
        shape = (columns,)
        check("layer_norm", lambda x, *wb: minigrad.layer_norm(x, shape, *wb), [x, w, b], dtype)
        check("rms_norm", lambda x, w: minigrad.rms_norm(x, shape, w), [x, w], dtype)
        for name in ("gelu", "silu", "tanh", "sigmoid", "relu", "erf", "exp", "softplus", "elu"):
            check(name, getattr(minigrad, name), [x], dtype)
        labels = rng.integers(0, columns, rows)
        check("cross_entropy", lambda x: minigrad.cross_entropy(x, labels), [x], dtype)
        arrays = [rng.standard_normal((*lead, *size)).astype(dtype)
                  for size in ((queries, d), (keys, d), (keys, d_v))]
        check("attention", attention, arrays, dtype)
        groups, channels, filters, *kernel = sizes(3, 4, rng.choice([9, 40]), 3, 3)
        stride, dilation, more = sizes(3, 3), sizes(2, 2), sizes(20, rng.choice([5, 40]))
        padding = [n - 1 for n in sizes(3, 3)]
        spans = [d * (k - 1) + n for d, k, n in zip(dilation, kernel, more)]
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        shapes = (2, groups * channels, *spans), (groups * filters, channels, *kernel)
        arrays = [rng.standard_normal(s).astype(dtype) for s in (*shapes, (groups * filters,))]
        # Any sum is one of many taps, and any work is long enough for threads, or neither is.
        kernels.convolution.DEEP, kernels.convolution.SECONDS = rng.choice([(1, 1.0), usual])
        check("conv2d", partial(minigrad.conv2d, **options), arrays, dtype)
        pointwise = rng.standard_normal((filters, groups * channels, 1, 1)).astype(dtype)
        check("conv2d in place", minigrad.conv2d, [arrays[0], pointwise], dtype)
        window = {"kernel_size": sizes(3, 3), "stride": sizes(3, 3), "ceil_mode": True}
        image = rng.standard_normal((2, *sizes(3), *(n + 2 for n in sizes(20, 40)))).astype(dtype)
        for name in ("max_pool2d", "avg_pool2d"):
            check(name, partial(getattr(minigrad, name), **window), [image], dtype)
        of_channels = [rng.standard_normal(image.shape[1]).astype(dtype) for _ in range(2)]
        batch_norm = lambda x, w, b: minigrad.batch_norm(x, None, None, w, b, training=True)
        check("batch_norm", batch_norm, [image, *of_channels], dtype)
        steps, batch, size = sizes(5, 20, 40)
        for cell, gates, states in (("rnn_tanh", 1, 1), ("gru", 3, 1), ("lstm", 4, 2)):
            shapes = (steps, batch, gates * size), (batch, states * size), (gates * size, size)
            arrays = [rng.standard_normal(s).astype(dtype) for s in (*shapes, (gates * size,))]
            check(cell, partial(minigrad.recurrence, cell=cell), arrays, dtype)
        W = rng.standard_normal((classes, columns)).astype(dtype)
        A, B = (rng.standard_normal(s).astype(dtype) for s in ((3, columns), (classes, 3)))
        bias = rng.standard_normal(classes).astype(dtype)
        check("linear", minigrad.linear, [x, W, bias], dtype)
        lora = partial(minigrad.lora_linear, scale=0.5)
        check("lora_linear", lora, [x, W, A, B, bias], dtype)
print("done", made, *in_kernels)
"""


pytestmark = [
    pytest.mark.skipif(not JIT_ENABLED, reason="numpy checks its own bounds"),
    pytest.mark.skipif(sys.platform != "linux", reason="guards memory with mprotect"),
]


@pytest.mark.full
def test_no_op_touches_memory_around_arrays_of_many_sizes():
    """Each row of the table is run as well, at either edge."""
    root = Path(__file__).parents[3]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    *before, last = result.stdout.splitlines() or [""]
    assert result.returncode == 0, f"in {last}\n{result.stderr}"
    done, made, in_kernels = last.split()
    assert done == "done"
    assert int(made) > len(before)  # each line is a check, which makes arrays of its own
    assert int(in_kernels) > 1000


@pytest.mark.full
def test_no_bit_depends_on_how_near_to_one_another_arrays_lie():
    """LLVM chooses between two forms of a loop by this distance."""
    usual = every_kernel.results()
    for gap in (0, 16, 32, 128, 1 << 16):
        with new_arrays_side_by_side(gap) as count:
            near = every_kernel.results()
        assert every_kernel.differing(usual, near) == [], gap
        assert count[0] > 10_000
