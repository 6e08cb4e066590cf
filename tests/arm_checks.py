"""The library on this machine, which is to be an Arm: kernels against plain formulae in float64.

    python -m tests.arm_checks PART       one of PARTS, on one thread and then on two

`tests/arm.sh` runs it under emulation, where there is time for few kernels only. Nothing is
compared with numpy's own product, which an emulated processor may get wrong: einsum has its own
loop.
"""

import math
import platform
import sys
import time
from functools import partial

import numpy as np

import lora
import minigrad as mg
from minigrad.config import config
from minigrad.kernels import gemm, launch, threads, warmup
from minigrad.kernels.gemm import dispatch

FACTS = {
    "vectors": "16 bytes, 32 registers",
    "tile": "14 x 8 float32, 14 x 4 float64",
    "threads": "2 of 2",
    "threading layer": "omp",
}

failed = []
ran = set()  # the kernels of a stage, and on how many threads


def check(name, good, seen=""):
    print(f"  {'ok    ' if good else 'FAILED'} {name}  {seen}", flush=True)
    if not good:
        failed.append(name)


def check_close(name, got, expected, bound, dtype):
    """Whether an array has the right dtype and shape, and each error is within its bound."""
    if got.dtype != dtype or got.shape != expected.shape:
        check(name, False, f"{got.dtype} of shape {got.shape}, not {dtype} of {expected.shape}")
        return
    worst = float(np.max(abs(got - expected) / bound))
    check(name, worst <= 1, f"error {worst:.2g} of what is allowed")


def note_calls(kernel):
    """Note all calls of a kernel from now on, and how many threads it has for them."""
    name, share, compiled = kernel.function.__name__, kernel.shared, []

    def alone(*arguments):
        ran.add((name, 1))
        if not compiled:
            kernel.compile()
            compiled.append(kernel.alone)
            kernel.alone = alone
        compiled[0](*arguments)

    def shared(threads, *arguments):
        ran.add((name, threads))
        share(threads, *arguments)

    kernel.alone, kernel.shared = alone, shared


def wide(*arrays):
    return [x.astype(np.float64) for x in arrays]


# Each of these yields a name, a result, what it should be, and the error that is allowed.


def products(draw, eps):
    """In every layout: an edge on both sides, several strips or blocks of k, few rows."""
    for m, k, n in (37, 53, 29), (130, 1000, 33), (15, 2100, 23), (9, 70, 512), (3, 7, 2):
        for layout in "NN", "NT", "TN", "TT":
            x = draw(m, k) if layout[0] == "N" else draw(k, m).T
            y = draw(k, n) if layout[1] == "N" else draw(n, k).T
            size = np.einsum("mk,kn->mn", *wide(abs(x), abs(y)))
            product = np.einsum("mk,kn->mn", *wide(x, y))
            out = gemm.matmul(x, y)
            yield f"{m} x {k} x {n} {layout}", out.copy(), product, 4 * eps * size
    start = out.astype(np.float64)
    gemm.matmul(x, y, out=out, add=True)
    yield "added to another", out, start + product, 8 * eps * size


def gelu(draw, eps):
    x = draw(33, 70)
    x[0, :6] = 0, -0.0, 5, -5, 30, -30
    g, t = draw(*x.shape), mg.Tensor(x, requires_grad=True)
    out = mg.gelu(t)
    x, wide_g = wide(x, g)
    cdf = np.vectorize(lambda v: math.erfc(-v / math.sqrt(2)) / 2)(x)
    slope = cdf + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    yield "gelu", out.data, x * cdf, 8 * eps * abs(x * cdf) + 1e-30
    yield "its gradient", mg.grad(out, t, g).data, wide_g * slope, 8 * eps * abs(wide_g)


def softmax(draw, eps):
    x = draw(33, 70) * 5 + 100
    g, t = draw(*x.shape), mg.Tensor(x, requires_grad=True)
    out = mg.softmax(t)
    x, wide_g = wide(x, g)
    e = np.exp(x - x.max(1, keepdims=True))
    e /= e.sum(1, keepdims=True)
    slope = e * (wide_g - (e * wide_g).sum(1, keepdims=True))
    yield "softmax", out.data, e, 16 * eps * e
    yield "its gradient", mg.grad(out, t, g).data, slope, 32 * eps * e


def training(rows, d_in, d_out, draw, eps):
    """Five steps of Adam on an adapter, beside the same in numpy."""
    weight, bias, x, y = draw(d_out, d_in), draw(d_out), draw(rows, d_in), draw(rows, d_out)
    before = weight.tobytes()
    rng = np.random.default_rng(1)
    layer = lora.LoRALayer(weight, d_out, d_in, rank=4, alpha=8, bias=bias, rng=rng)
    a, b = wide(layer.lora_a.data, layer.lora_b.data)
    optimizer = mg.optim.Adam(layer.trainable_params(), lr=0.02)
    losses, expected = [], []
    moments = [[0.0, 0.0], [0.0, 0.0]]
    base = np.einsum("ni,oi->no", *wide(x, weight)) + bias
    for step in range(1, 6):
        optimizer.zero_grad()
        loss = mg.mse(layer(mg.tensor(x)), mg.tensor(y))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        h = 2 * np.einsum("ni,ri->nr", x, a)  # alpha / rank = 2
        error = base + np.einsum("nr,or->no", h, b) - y
        expected.append((error * error).mean())
        error *= 2 / error.size
        d_h = 2 * np.einsum("no,or->nr", error, b)
        gradients = np.einsum("nr,ni->ri", d_h, x), np.einsum("no,nr->or", error, h)
        for tensor, g, moment in zip((a, b), gradients, moments, strict=True):
            moment[0] = 0.9 * moment[0] + 0.1 * g
            moment[1] = 0.999 * moment[1] + 0.001 * g * g
            root = np.sqrt(moment[1] / (1 - 0.999**step))
            tensor -= 0.02 * moment[0] / (1 - 0.9**step) / (root + 1e-8)
    check("the loss falls in each step", np.all(np.diff(losses) < 0), f"{losses}")
    same = layer.base_weight.data.tobytes() == before == weight.tobytes()
    check("the bits of the base weight are as before", same)
    yield "losses", np.array(losses, x.dtype), np.array(expected), 4 * eps * losses[0]
    yield "A", layer.lora_a.data, a, 100 * eps
    yield "B", layer.lora_b.data, b, 100 * eps


LAYER = {"adam_loop", "scaled_difference_loop"}
PACKED = {*LAYER, "_squared_error_loop", "gemm", "pack_all", "gemm_packed"}
ALONE = {"_fill_table"}  # it has no form for threads, and neither have those of a small layer
SMALL = {*ALONE, "_forward_loop", "_backward_loop"}
PARTS = {  # each stage: what it does, and the kernels that run then, on all threads and on one
    "float32": {
        "products": (products, {"gemm", "stream"}, set()),
        "LoRA, its frozen weight packed": (partial(training, 70, 130, 140), PACKED, ALONE),
    },
    "float64": {
        "products": (products, {"gemm", "stream"}, set()),
        "LoRA, small": (partial(training, 40, 30, 24), LAYER, SMALL),
    },
    "activations": {
        "gelu": (gelu, {"gelu_loop", "gelu_gradient_loop"}, set()),
        "softmax": (softmax, {"softmax_loop", "softmax_gradient_loop"}, set()),
    },
}


def run(stage, count, dtype):
    """The checks of a stage; returns its results as bytes, by name."""
    start = time.perf_counter()
    results, rng = {}, np.random.default_rng(0)
    work, shared, alone = stage
    ran.clear()
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype)
    for name, got, expected, bound in work(draw, np.finfo(dtype).eps):
        check_close(name, got, expected, bound, dtype)
        results[name] = got.tobytes()
    wanted = {(name, count) for name in shared} | {(name, 1) for name in alone}
    seen = ", ".join(f"{name} on {number}" for name, number in sorted(ran))
    if ran != wanted:
        seen += f"; missing {sorted(wanted - ran)}, not wanted {sorted(ran - wanted)}"
    check("kernels and their threads", ran == wanted, seen)
    print(f"  {time.perf_counter() - start:.0f} s", flush=True)
    return results


def main(part):
    facts, machine = config(), platform.machine()
    mg.show_config()
    check("machine", machine == "aarch64", machine)
    for name, expected in FACTS.items():
        check(name, facts[name] == expected, facts[name])
    # The smallest work is to be shared by threads, which it is not if it is not worth it.
    launch.MIN_SECONDS_FOR_THREADS = threads.MIN_SECONDS_FOR_WAKING = dispatch.THREADS_FROM = 0
    for kernel in warmup.kernels_of(double=True):
        note_calls(kernel)
    dtype = np.dtype("float64" if part == "float64" else "float32")
    serial = {}
    for count in 1, 2:
        mg.set_num_threads(count)
        for name, stage in PARTS[part].items():
            print(f"{name}, {dtype}, threads: {count}", flush=True)
            results = run(stage, count, dtype)
            if count == 1:
                serial[name] = results
                continue
            assert results, "nothing to compare"
            others = [key for key in results if results[key] != serial[name][key]]
            check("same bits as on one thread", not others, f"{len(results)} arrays {others}")
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1])
