"""Random programs with transforms inside transforms, beside JAX and PyTorch in float64.

All values are vectors of 3 numbers. A program is a list of steps, each of which adds one to the
vectors that later steps can use. A step calls a function of the table below, or a transform of a
program that sees all vectors so far, and so closes over the arguments of the functions around it.
"""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose

import minigrad
from minigrad import Observer, Tensor, no_grad, observe

pytestmark = pytest.mark.peers

EYE = np.eye(3)

# Each is a function of a library and of vectors; those of PyTorch and JAX that have another name or
# form than ours are in `torch_library` and `jax_library`.
FUNCTIONS = {
    "add": lambda m, a, b: a + b,
    "subtract": lambda m, a, b: a - 0.5 * b,
    "multiply": lambda m, a, b: m.tanh(a) * b,
    "divide": lambda m, a, b: a / (b * b + 1.3),
    "power": lambda m, a, b: (a * a + 0.6) ** m.tanh(b),
    "cube": lambda m, a: m.sin(a) ** 3,
    "exp": lambda m, a: m.exp(0.3 * m.tanh(a)),
    "log": lambda m, a: m.log(a * a + 0.7),
    "sqrt": lambda m, a: m.sqrt(a * a + 0.5),
    "tanh": lambda m, a: m.tanh(a),
    "cos": lambda m, a: m.cos(a),
    "arctan2": lambda m, a, b: m.arctan2(a, b * b + 0.5),
    "sigmoid": lambda m, a: m.sigmoid(a),
    "gelu": lambda m, a: m.gelu(a),
    "silu": lambda m, a: m.silu(a),
    "softplus": lambda m, a: m.softplus(a),
    "where": lambda m, a, b: m.where(a > 0.2, a, b),
    "maximum": lambda m, a, b: m.maximum(a, b + 0.1),
    "clip": lambda m, a: m.clip(a, -0.8, 0.9),
    "floor": lambda m, a: m.floor(a) * a,
    "sum": lambda m, a, b: a * m.tanh(b.sum()),
    "mean": lambda m, a, b: a - b.mean(),
    "max": lambda m, a, b: a * m.tanh(m.largest(b)),
    "prod": lambda m, a, b: a * m.prod(m.tanh(b)),
    "logsumexp": lambda m, a, b: a - 0.5 * m.logsumexp(b),
    "cumsum": lambda m, a: m.tanh(m.cumsum(a, 0)),
    "cumprod": lambda m, a: m.tanh(m.cumprod(a, 0)),
    "softmax": lambda m, a: m.softmax(a, 0),
    "log_softmax": lambda m, a: m.log_softmax(a, 0),
    "sort": lambda m, a: m.sorted(a),
    "getitem": lambda m, a: a[np.array([2, 0, 0])],
    "concatenate": lambda m, a, b: m.concatenate([a, b])[1:4],
    "stack": lambda m, a, b: m.stack([a, b])[1],
    "matmul": lambda m, a, b, c: m.outer(a, m.tanh(b)) @ m.tanh(c),
    "einsum": lambda m, a, b: m.einsum("ij,j->i", m.outer(m.sin(a), b), m.sin(b)),
    "linear": lambda m, a, b, c: m.linear(m.tanh(a), m.outer(m.cos(b), c), b),
    "lora": lambda m, a, b, c: m.lora(m.tanh(a), m.outer(m.cos(b), m.sin(c)), b),
    "layer_norm": lambda m, a, b, c: m.layer_norm(a, b, c),
    "attention": lambda m, a, b: m.attention(m.outer(a, m.sin(b)))[1],
    "cross_entropy": lambda m, a, b: a * m.cross_entropy(m.outer(m.sin(a), b)),
    "solve": lambda m, a, b, c: m.solve(0.2 * m.outer(m.sin(a), m.sin(b)) + m.eye, c),
    "det": lambda m, a, b: a * m.det(0.3 * m.outer(m.sin(a), m.sin(b)) + m.eye),
}

TRANSFORMS = ["jvp", "gradient", "vjp", "hvp", "jacfwd", "jacobian", "hessian", "detach"]


def random_program(rng, depth=0, count=5):
    """Draw steps `(name, arguments, program)`: positions among the vectors, from the newest."""
    steps, budget = [], 2 if depth == 0 else 1
    for _ in range(rng.integers(2, count + 1)):
        if depth < 4 and budget and rng.random() < 0.5:
            budget -= 1
            name, inner = TRANSFORMS[rng.integers(len(TRANSFORMS))], None
            if name != "detach":
                inner = random_program(rng, depth + 1, count=3)
            steps.append((name, [1 + int(rng.geometric(0.5)) for _ in range(4)], inner))
        else:
            name = list(FUNCTIONS)[rng.integers(len(FUNCTIONS))]
            arity = FUNCTIONS[name].__code__.co_argcount - 1
            steps.append((name, [int(rng.geometric(0.4)) for _ in range(arity)], None))
    return steps


def run(m, steps, known):
    """Return the last vector of a program; `known` are the vectors that it sees."""
    known = list(known)
    for name, positions, inner in steps:
        x, *others = (known[-min(p, len(known))] for p in positions)
        if inner is None and name != "detach":
            known.append(FUNCTIONS[name](m, x, *others))
        else:
            outside = tuple(known)
            f = lambda *xs, inner=inner, outside=outside: run(m, inner, (*outside, *xs))
            known.append(m.tanh(0.3 * transformed(m, name, f, x, *others)))
    return known[-1]


def transformed(m, name, f, x, y, v, w):
    """A vector made by a transform of f at x and y, in the directions v and w where it has some."""
    if name == "detach":
        return x * m.detach(x)
    if name == "jvp":
        value, tangent = m.jvp(f, (x, y), (v, w))
        return value + tangent
    if name == "vjp":
        value, pullback = m.vjp(f, x, y)
        one, other = pullback(m.cos(value) * v)
        return one - other
    scalar = lambda *xs: (lambda out: (out * (0.3 * out + 1.0)).sum())(f(*xs))
    if name == "gradient":
        one, other = m.gradient(scalar, (0, 1))(x, y)
        return one - 0.5 * other
    if name == "hvp":
        one, other = m.hvp(scalar, (x, y), (v, w))
        return one - 0.5 * other
    matrix = m.hessian(lambda x: scalar(x, y))(x) if name == "hessian" else None
    if name in ("jacfwd", "jacobian"):
        matrix = getattr(m, name)(lambda x: f(x, y))(x)
    return matrix @ v


def our_library():
    m = SimpleNamespace(**vars(minigrad))
    m.eye, m.largest, m.sorted = EYE, minigrad.max, minigrad.sort
    m.layer_norm = lambda a, b, c: minigrad.layer_norm(a, 3, b, c, eps=0.1)
    m.cross_entropy = lambda x: minigrad.cross_entropy(x, np.array([2, 0, 1]))
    m.lora = lambda x, w, b: minigrad.lora_linear(x, w, w[:1], w[:, :1], b, 0.7)
    m.attention = lambda x: minigrad.scaled_dot_product_attention(x[None], x[None], x[None])[0]
    m.detach, m.as_vector = Tensor.detach, Tensor
    return m


def of_compositions(m):
    """The functions that our kernels fuse, by the parts that every library has."""

    def layer_norm(a, b, c):
        centered = a - a.mean()
        return centered / m.sqrt((centered * centered).mean() + 0.1) * b + c

    def cross_entropy(x):
        log_probabilities = m.log_softmax(x, -1)
        return -(log_probabilities[0, 2] + log_probabilities[1, 0] + log_probabilities[2, 1]) / 3

    m.layer_norm, m.cross_entropy = layer_norm, cross_entropy
    m.attention = lambda x: m.softmax(x @ x.T / 3**0.5, -1) @ x
    m.linear = lambda x, w, b: w @ x + b
    m.lora = lambda x, w, b: w @ x + b + 0.7 * (w[:, :1] @ (w[:1] @ x))
    m.silu = lambda x: x * m.sigmoid(x)
    return m


@contextmanager
def torch_library():
    torch = pytest.importorskip("torch")
    names = "tanh sin cos exp log sqrt arctan2 sigmoid where maximum clip floor prod cumsum cumprod"
    names += " softmax log_softmax stack outer einsum"
    func, same = torch.func, {name: getattr(torch, name) for name in names.split()}
    m = of_compositions(SimpleNamespace(**same))
    m.eye, m.solve, m.det = torch.tensor(EYE), torch.linalg.solve, torch.linalg.det
    m.gelu = lambda x: x * torch.special.ndtr(x)
    m.softplus = lambda x: torch.logaddexp(x, torch.zeros_like(x))
    m.largest, m.sorted, m.concatenate = torch.amax, lambda x: torch.sort(x)[0], torch.cat
    m.logsumexp = lambda x: torch.logsumexp(x, 0)
    m.detach, m.as_vector = torch.Tensor.detach, torch.tensor
    m.jvp, m.vjp, m.gradient = func.jvp, func.vjp, func.grad
    # Those of PyTorch run f under `vmap`, which has no rule for some functions.
    m.jacfwd = lambda f: lambda x: torch.stack([func.jvp(f, (x,), (e,))[1] for e in m.eye], 1)
    m.jacobian = lambda f: lambda x: torch.stack([func.vjp(f, x)[1](e)[0] for e in m.eye])
    m.hessian = lambda f: m.jacfwd(func.grad(f))
    m.hvp = lambda f, xs, vs: func.jvp(func.grad(f, (0, 1)), xs, vs)[1]
    yield m


@contextmanager
def jax_library():
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    names = "tanh sin cos exp log sqrt arctan2 where maximum clip floor prod cumsum cumprod stack"
    names += " outer einsum concatenate"
    m = of_compositions(SimpleNamespace(**{name: getattr(jnp, name) for name in names.split()}))
    m.eye, m.solve, m.det = EYE, jnp.linalg.solve, jnp.linalg.det
    m.softmax, m.log_softmax = jax.nn.softmax, jax.nn.log_softmax
    m.sigmoid, m.softplus = jax.nn.sigmoid, jax.nn.softplus
    m.gelu = lambda x: jax.nn.gelu(x, approximate=False)
    m.largest, m.sorted, m.logsumexp = jnp.max, jnp.sort, jax.nn.logsumexp
    m.detach, m.as_vector = jax.lax.stop_gradient, jnp.asarray
    m.jvp, m.vjp, m.gradient = jax.jvp, jax.vjp, jax.grad
    m.jacfwd, m.jacobian, m.hessian = jax.jacfwd, jax.jacrev, jax.hessian
    m.hvp = lambda f, xs, vs: jax.jvp(jax.grad(f, (0, 1)), xs, vs)[1]
    with jax.enable_x64(True):
        yield m


AROUND = [nullcontext, no_grad, lambda: observe(Observer())]


@pytest.mark.parametrize(("library", "programs"), [(torch_library, 8), (jax_library, 3)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_random_programs_have_the_derivatives_of_other_libraries(library, programs):
    # JAX compiles each op, and PyTorch takes up to a second for a program: both get few of them.
    def derivative(m, name, program, constants, inputs):
        f = lambda *xs: run(m, program, (*constants, *xs))
        return transformed(m, name, f, *inputs)

    ours = our_library()
    with library() as peer:
        for seed in range(programs):
            rng = np.random.default_rng(seed)
            name = TRANSFORMS[seed % 7]
            program = random_program(rng, count=5 if programs > 5 else 2)
            constants, inputs = rng.standard_normal((2, 3)), rng.standard_normal((4, 3))
            given = [list(map(peer.as_vector, vectors)) for vectors in (constants, inputs)]
            right = np.asarray(derivative(peer, name, program, *given))
            for around in AROUND:
                for closed_over in (False, True):
                    outside = [Tensor(x, requires_grad=closed_over) for x in constants]
                    with around():
                        found = derivative(ours, name, program, outside, list(map(Tensor, inputs)))
                    assert_allclose(
                        found.detach().data,
                        right,
                        rtol=1e-8,
                        atol=1e-8 * (1 + np.abs(right).max()),
                        err_msg=f"{name} of program {seed}: {program}",
                    )
