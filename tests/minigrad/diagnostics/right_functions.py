"""Right functions of PyTorch, of JAX, and pairs of numpy, which no checker may accuse.

A case is a random composition of steps, each a function of a matrix, followed by 8 tanh(x/8), so
that nothing overflows. The first cases are of one step each, so that all steps are among them.

    python -m tests.benchmarks.false_alarms

checks 500 cases of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

Step = Callable[[Any], Any]
LIMIT = 24  # elements of a matrix, beyond which it is cut


class Case(NamedTuple):
    """A function, or a pair of them, and its inputs."""

    name: str
    functions: tuple[Callable[..., Any], ...]
    inputs: list[Any]


def common_steps(m: Any) -> dict[str, Step]:
    """Functions with the same names in PyTorch and in JAX's numpy."""
    return {
        "abs": m.abs,
        "arctan": m.arctan,
        "arcsinh": m.arcsinh,
        "arctan2": lambda x: m.arctan2(x, x * x + 0.5),
        "clip": lambda x: m.clip(x, -0.7, 0.9),
        "concatenate": lambda x: m.concatenate((x, 2 * x), 0),
        "cos": m.cos,
        "cosh": m.cosh,
        "cumsum": lambda x: m.cumsum(x, 0),
        "cumprod": lambda x: m.cumprod(x, 1),
        "divide": lambda x: x / (m.square(x) + 0.5),
        "einsum": lambda x: m.einsum("ij,kj->ik", x, x),
        "exp": m.exp,
        "exp2": m.exp2,
        "expm1": m.expm1,
        "flip": lambda x: m.flip(x, (0,)),
        "floor": m.floor,
        "gram": lambda x: x @ x.T,
        "hypot": lambda x: m.hypot(x, x * x + 1),
        "inverse": lambda x: m.linalg.inv(x @ x.T + m.eye(x.shape[0], dtype=x.dtype)),
        "log": lambda x: m.log(m.square(x) + 0.5),
        "log1p": lambda x: m.log1p(m.square(x)),
        "logaddexp": lambda x: m.logaddexp(x, 0.5 - x),
        "maximum": lambda x: m.maximum(x, 0.3 * x),
        "mean": lambda x: m.mean(x, 1)[None],
        "minimum": lambda x: m.minimum(x, x * x),
        "negative": lambda x: -x,
        "norm": lambda x: m.linalg.norm(x + 3).reshape(1, 1),
        "ones": lambda x: m.ones_like(x),
        "outer": lambda x: m.outer(x[0], x[:, 0]),
        "power": lambda x: (m.square(x) + 0.3) ** 1.5,
        "prod": lambda x: m.prod(x, 0)[None],
        "reciprocal": lambda x: m.reciprocal(m.square(x) + 0.5),
        "repeated rows": lambda x: x[np.array([0, -1, 0])],
        "reshape": lambda x: x.reshape(1, -1),
        "roll": lambda x: m.roll(x, 1, 0),
        "sigmoid": lambda x: 1 / (1 + m.exp(-x)),
        "sign": m.sign,
        "sin": m.sin,
        "sinc": m.sinc,
        "sinh": m.sinh,
        "slogdet": lambda x: m.linalg.slogdet(x @ x.T + m.eye(x.shape[0], dtype=x.dtype))[1] * x,
        "sqrt": lambda x: m.sqrt(m.abs(x) + 0.25),
        "square": m.square,
        "stack": lambda x: m.stack((x, m.sin(x)), 1)[0],
        "sum": lambda x: m.sum(x, 0)[None],
        "tan": lambda x: m.tan(x / 8),
        "tanh": m.tanh,
        "trace": lambda x: m.trace(x) * x,
        "transpose": lambda x: x.T,
        "tril": m.tril,
        "twice": lambda x: x * m.tanh(x) + x,
        "var": lambda x: m.var(x + x[:1] * 2, 1)[None] if x.shape[1] > 1 else x,
        "where": lambda x: m.where(x > 0, x, 0.5 * x),
    }


def torch_steps() -> dict[str, Step]:
    """Functions of PyTorch, some of which are Modules and autograd Functions."""
    import torch
    from torch.nn import functional as F  # noqa: N812

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return 3 * g * ctx.saved_tensors[0] ** 2

    return common_steps(torch) | {
        "Function": Cube.apply,
        "amax": lambda x: torch.amax(x, 0, keepdim=True),
        "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None])[0],
        "avg_pool": lambda x: F.avg_pool1d(x[None], 3, 1, 1)[0],
        "celu": F.celu,
        "checkpoint": lambda x: torch.utils.checkpoint.checkpoint(
            lambda y: torch.tanh(y) * y, x, use_reentrant=False
        ),
        "cholesky": lambda x: torch.linalg.cholesky(x @ x.T + torch.eye(len(x), dtype=x.dtype)),
        "conv": lambda x: F.conv1d(
            x[None, None, 0], torch.ones(2, 1, 3, dtype=x.dtype), None, 1, 2
        )[0],
        "cosine": lambda x: F.cosine_similarity(x, x.flip(0) + 2, 0)[None],
        "cross_entropy": lambda x: F.cross_entropy(x, torch.zeros(len(x), dtype=int)) * x,
        "elu": F.elu,
        "erf": torch.erf,
        "gelu": F.gelu,
        "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
        "glu": lambda x: F.glu(torch.cat((x, 2 * x), 1), 1),
        "gru": lambda x: F.tanh(x) * F.sigmoid(x) + (1 - F.sigmoid(x)) * x,
        "hardswish": F.hardswish,
        "hardtanh": F.hardtanh,
        "huber": lambda x: F.huber_loss(x, 0.2 * x, reduction="none"),
        "kl_div": lambda x: F.kl_div(F.log_softmax(x, 1), F.softmax(0.5 * x, 1), reduction="none"),
        "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:], eps=0.1),
        "leaky_relu": F.leaky_relu,
        "lerp": lambda x: torch.lerp(x, torch.sin(x), 0.3),
        "log_softmax": lambda x: F.log_softmax(x, 1),
        "logsigmoid": F.logsigmoid,
        "logsumexp": lambda x: torch.logsumexp(x, 1)[None],
        "median": lambda x: torch.median(x, 1)[0][None],
        "mish": F.mish,
        "mse": lambda x: F.mse_loss(x, x.flip(0), reduction="none"),
        "normalize": lambda x: F.normalize(x + 2),
        "pad": lambda x: F.pad(x, (1, 1)),
        "rms_norm": lambda x: F.rms_norm(x, x.shape[-1:], eps=0.1),
        "rsqrt": lambda x: torch.rsqrt(x * x + 0.5),
        "selu": F.selu,
        "silu": F.silu,
        "smooth_l1": lambda x: F.smooth_l1_loss(x, 0.3 * x * x, reduction="none"),
        "softmax": lambda x: F.softmax(x, 0),
        "softplus": F.softplus,
        "softshrink": F.softshrink,
        "sort": lambda x: torch.sort(x, 1)[0],
        "topk": lambda x: torch.topk(x, 1, 1)[0],
        "unfold": lambda x: x.unfold(1, 1, 1)[..., 0],
    }


def jax_steps() -> dict[str, Step]:
    """Functions of JAX, some of which are transformed, or have a VJP of their own."""
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def cube(x: Any) -> Any:
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * g * x * x,))
    nn, lax = jax.nn, jax.lax
    return common_steps(jnp) | {
        "amax": lambda x: jnp.max(x, 0, keepdims=True),
        "celu": nn.celu,
        "checkpoint": jax.checkpoint(lambda x: jnp.tanh(x) * x),
        "cholesky": lambda x: jnp.linalg.cholesky(x @ x.T + jnp.eye(len(x), dtype=x.dtype)),
        "cond": lambda x: lax.cond(True, jnp.sin, jnp.cos, x),
        "conv": lambda x: jnp.convolve(x[0], jnp.arange(1.0, 4.0, dtype=x.dtype))[None],
        "cumlogsumexp": lambda x: lax.cumlogsumexp(x, 0),
        "custom_vjp": cube,
        "elu": nn.elu,
        "erf": lax.erf,
        "fori_loop": lambda x: lax.fori_loop(0, 3, lambda i, y: jnp.sin(y) + 0.1 * y, x),
        "gelu": nn.gelu,
        "glu": lambda x: nn.glu(jnp.concatenate((x, 2 * x), 1), 1),
        "grad": jax.grad(lambda x: jnp.sum(jnp.sin(x) ** 2)),
        "jit": jax.jit(lambda x: jnp.tanh(x) * x),
        "leaky_relu": nn.leaky_relu,
        "lgamma": lambda x: lax.lgamma(x * x + 1),
        "log_sigmoid": nn.log_sigmoid,
        "log_softmax": nn.log_softmax,
        "logsumexp": lambda x: nn.logsumexp(x, 1)[None],
        "median": lambda x: jnp.median(x, 1)[None],
        "mish": nn.mish,
        "pad": lambda x: jnp.pad(x, 1),
        "relu": nn.relu,
        "relu6": nn.relu6,
        "rsqrt": lambda x: lax.rsqrt(x * x + 0.5),
        "scan": lambda x: lax.scan(lambda c, y: (jnp.tanh(c + y), c * y), jnp.ones_like(x[0]), x)[
            1
        ],
        "selu": nn.selu,
        "silu": nn.silu,
        "softmax": nn.softmax,
        "softplus": nn.softplus,
        "sort": lambda x: jnp.sort(x, 1),
        "standardize": lambda x: nn.standardize(x, epsilon=0.1),
        "top_k": lambda x: lax.top_k(x, 1)[0],
        "vmap": jax.vmap(lambda row: jnp.sum(row**2) * row),
    }


def _pair(
    forward: Step, derivative: Callable[[Any, Any], Any]
) -> tuple[Step, Callable[[Any, Any], Any]]:
    """An elementwise function and its VJP, by its derivative at x, where it is y."""
    return forward, lambda g, x: g * derivative(x, forward(x)).astype(x.dtype)


def _softmax(x: Any) -> Any:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _sort_vjp(g: Any, x: Any) -> Any:
    out = np.empty_like(g)
    np.put_along_axis(out, np.argsort(x, 1), g, 1)
    return out


PAIRS: dict[str, tuple[Step, Callable[[Any, Any], Any]]] = {
    "abs": _pair(np.abs, lambda x, y: np.sign(x)),
    "arcsinh": _pair(np.arcsinh, lambda x, y: 1 / np.hypot(x, 1)),
    "arctan": _pair(np.arctan, lambda x, y: 1 / (1 + x * x)),
    "cbrt": _pair(lambda x: np.cbrt(x * x + 1), lambda x, y: 2 * x / (3 * y * y)),
    "clip": _pair(lambda x: np.clip(x, -0.7, 0.9), lambda x, y: (x > -0.7) & (x < 0.9)),
    "cos": _pair(np.cos, lambda x, y: -np.sin(x)),
    "cosh": _pair(np.cosh, lambda x, y: np.sinh(x)),
    "elu": _pair(lambda x: np.where(x > 0, x, np.expm1(x)), lambda x, y: np.where(x > 0, 1, y + 1)),
    "exp": _pair(np.exp, lambda x, y: y),
    "exp2": _pair(np.exp2, lambda x, y: y * np.log(2.0)),
    "expm1": _pair(np.expm1, lambda x, y: y + 1),
    "floor": _pair(np.floor, lambda x, y: 0 * x),
    "gaussian": _pair(lambda x: np.exp(-x * x), lambda x, y: -2 * x * y),
    "heaviside": _pair(lambda x: np.heaviside(x, 0.5).astype(x.dtype), lambda x, y: 0 * x),
    "leaky_relu": _pair(lambda x: np.where(x > 0, x, x / 10), lambda x, y: np.where(x > 0, 1, 0.1)),
    "log": _pair(lambda x: np.log(x * x + 0.5), lambda x, y: 2 * x / (x * x + 0.5)),
    "log1p": _pair(lambda x: np.log1p(x * x), lambda x, y: 2 * x / (1 + x * x)),
    "logaddexp": _pair(lambda x: np.logaddexp(x, 0), lambda x, y: np.exp(x - y)),
    "negative": _pair(np.negative, lambda x, y: -np.ones_like(x)),
    "polynomial": _pair(lambda x: x**3 - 2 * x + 1, lambda x, y: 3 * x * x - 2),
    "reciprocal": _pair(lambda x: 1 / (x * x + 0.5), lambda x, y: -2 * x * y * y),
    "relu": _pair(lambda x: np.maximum(x, 0), lambda x, y: x > 0),
    "rsqrt": _pair(lambda x: 1 / np.sqrt(x * x + 0.5), lambda x, y: -x * y**3),
    "sigmoid": _pair(lambda x: 1 / (1 + np.exp(-x)), lambda x, y: y * (1 - y)),
    "sign": _pair(np.sign, lambda x, y: 0 * x),
    "silu": _pair(
        lambda x: x / (1 + np.exp(-x)),
        lambda x, y: (1 + np.exp(-x) + x * np.exp(-x)) / (1 + np.exp(-x)) ** 2,
    ),
    "sin": _pair(np.sin, lambda x, y: np.cos(x)),
    "sinh": _pair(np.sinh, lambda x, y: np.cosh(x)),
    "sqrt": _pair(lambda x: np.sqrt(np.abs(x) + 0.25), lambda x, y: np.sign(x) / (2 * y)),
    "square": _pair(np.square, lambda x, y: 2 * x),
    "tan": _pair(lambda x: np.tan(x / 8), lambda x, y: (1 + y * y) / 8),
    "tanh": _pair(np.tanh, lambda x, y: 1 - y * y),
    "x sin 1/x": _pair(
        lambda x: x * np.sin(1 / (x * x + 1)),
        lambda x, y: (
            np.sin(1 / (x * x + 1)) - 2 * x * x * np.cos(1 / (x * x + 1)) / (x * x + 1) ** 2
        ),
    ),
    "concatenate": (
        lambda x: np.concatenate((x, 2 * x)),
        lambda g, x: g[: len(x)] + 2 * g[len(x) :],
    ),
    "cumsum": (lambda x: np.cumsum(x, 0), lambda g, x: np.flip(np.cumsum(np.flip(g, 0), 0), 0)),
    "difference": (
        lambda x: np.diff(x, axis=0, prepend=0).astype(x.dtype),
        lambda g, x: -np.diff(g, axis=0, append=0).astype(x.dtype),
    ),
    "flip": (lambda x: x[::-1], lambda g, x: g[::-1]),
    "gram": (lambda x: x @ x.T, lambda g, x: (g + g.T) @ x),
    "identity": (lambda x: x, lambda g, x: g),
    "inverse": (
        lambda x: np.linalg.inv(x @ x.T + np.eye(len(x), dtype=x.dtype)),
        lambda g, x: (
            -((i := np.linalg.inv(x @ x.T + np.eye(len(x), dtype=x.dtype))) @ (g + g.T) @ i @ x)
        ),
    ),
    "kron": (
        lambda x: np.kron(x, [[1, 2]]).astype(x.dtype),
        lambda g, x: g[:, ::2] + 2 * g[:, 1::2],
    ),
    "logsumexp": (
        lambda x: np.log(np.exp(x).sum(1, keepdims=True)),
        lambda g, x: g * _softmax(x),
    ),
    "max": (
        lambda x: x.max(0, keepdims=True),
        lambda g, x: g * (x == x.max(0, keepdims=True)) / (x == x.max(0)).sum(0).astype(x.dtype),
    ),
    "mean": (
        lambda x: x.mean(1, keepdims=True),
        lambda g, x: np.repeat(g, x.shape[1], 1) / x.shape[1],
    ),
    "norm": (
        lambda x: np.sqrt(np.sum(x * x, keepdims=True) + 1),
        lambda g, x: g * x / np.sqrt(np.sum(x * x) + 1),
    ),
    "outer": (
        lambda x: np.outer(x[0], x[0]),
        lambda g, x: np.concatenate(([g @ x[0] + g.T @ x[0]], 0 * x[1:])),
    ),
    "pad": (lambda x: np.pad(x, 1), lambda g, x: g[1:-1, 1:-1]),
    "prod": (
        lambda x: (x * x + 0.5).prod(0, keepdims=True),
        lambda g, x: g * (x * x + 0.5).prod(0) * 2 * x / (x * x + 0.5),
    ),
    "repeat": (lambda x: np.repeat(x, 2, 0), lambda g, x: g[::2] + g[1::2]),
    "reshape": (lambda x: x.reshape(1, -1), lambda g, x: g.reshape(x.shape)),
    "roll": (lambda x: np.roll(x, 1, 0), lambda g, x: np.roll(g, -1, 0)),
    "scaled": (lambda x: x * x.dtype.type(0.3) - 1, lambda g, x: g * x.dtype.type(0.3)),
    "softmax": (
        _softmax,
        lambda g, x: _softmax(x) * (g - (g * _softmax(x)).sum(1, keepdims=True)),
    ),
    "sort": (lambda x: np.sort(x, 1), _sort_vjp),
    "sum": (lambda x: x.sum(0, keepdims=True), lambda g, x: np.repeat(g, len(x), 0)),
    "swapped": (lambda x: x[:, ::-1] * x, lambda g, x: g * x[:, ::-1] + (g * x)[:, ::-1]),
    "trace": (
        lambda x: np.trace(x).reshape(1, 1),
        lambda g, x: g * np.eye(*x.shape, dtype=x.dtype),
    ),
    "transpose": (lambda x: x.T, lambda g, x: g.T),
    "tril": (np.tril, lambda g, x: np.tril(g)),
    "var": (
        lambda x: x.var(1, keepdims=True),
        lambda g, x: g * 2 * (x - x.mean(1, keepdims=True)) / x.shape[1],
    ),
    "weighted": (
        lambda x: x * np.arange(1, x.size + 1, dtype=x.dtype).reshape(x.shape),
        lambda g, x: g * np.arange(1, x.size + 1, dtype=x.dtype).reshape(x.shape),
    ),
}


def _draws(names: list[str], count: int) -> Iterator[tuple[list[str], Any, type]]:
    """Names of steps, a matrix of float64, and a dtype: first each step alone, and then several."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        alone = seed < len(names)
        several = list(rng.choice(names, rng.integers(2, 6)))
        shape = (2, 3) if alone else tuple(rng.integers(1, 5, 2))
        dtype = (np.float64, np.float32)[seed // 2 % 2 if alone else seed % 2]
        yield [names[seed]] if alone else several, rng.standard_normal(shape), dtype


def _composed(steps: list[Step], tanh: Step) -> Step:
    def f(x: Any) -> Any:
        for step in steps:
            x = step(x)
            if x.shape[0] * x.shape[1] > LIMIT:
                x = x[: max(1, LIMIT // x.shape[1]), :LIMIT]
            x = 8 * tanh(x / 8)
        return x

    return f


def torch_cases(count: int) -> Iterator[Case]:
    """Functions of PyTorch, in both dtypes."""
    import torch

    steps = torch_steps()
    for names, x, dtype in _draws(list(steps), count):
        f = _composed([steps[name] for name in names], torch.tanh)
        yield Case(" ".join(names), (f,), [torch.from_numpy(x.astype(dtype))])


def jax_cases(count: int) -> Iterator[Case]:
    """Functions of JAX, compiled, in float64 where it is enabled, and in float32."""
    import jax
    import jax.numpy as jnp

    steps = jax_steps()
    for names, x, dtype in _draws(list(steps), count):
        f = jax.jit(_composed([steps[name] for name in names], jnp.tanh))
        yield Case(
            " ".join(names), (f,), [jnp.asarray(x.astype(dtype), dtype=jnp.result_type(dtype))]
        )


def _chained(names: list[str]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A composition of pairs and tanh, and its gradient by the chain rule."""
    bounded = [*zip(names, ["bounded"] * len(names), strict=True)]
    pairs = [
        (PAIRS | {"bounded": _pair(lambda x: 8 * np.tanh(x / 8), lambda x, y: 1 - y * y / 64)})[
            name
        ]
        for both in bounded
        for name in both
    ]

    def forward(x: Any) -> Any:
        for step, _ in pairs:
            x = step(x)
        return x

    def backward(g: Any, x: Any) -> Any:
        points = [x]
        for step, _ in pairs:
            points.append(step(points[-1]))
        for (_, vjp), point in zip(reversed(pairs), reversed(points[:-1]), strict=True):
            g = vjp(g, point)
        return g

    return forward, backward


def pair_cases(count: int) -> Iterator[Case]:
    """Pairs of functions of numpy, in both dtypes; half of those in float32 take no float64."""
    for k, (names, x, dtype) in enumerate(_draws(list(PAIRS), count)):
        forward, backward = _chained(names[:3])

        def narrow(x: Any, forward: Step = forward) -> Any:
            if x.dtype != np.float32:
                raise TypeError("float32 only")
            return forward(x)

        only = dtype == np.float32 and k % 4 == 3
        name = " ".join(names[:3]) + " in float32 only" * only
        yield Case(name, (narrow if only else forward, backward), [x.astype(dtype)])
