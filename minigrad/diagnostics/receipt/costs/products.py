"""The costs of products, and of the linear algebra of n x n matrices."""

from __future__ import annotations

import math
from collections.abc import Collection

from minigrad.diagnostics.receipt.costs.cost import Call, Cost, Count, nothing


def _matmul(call: Call) -> int:
    return 2 * call.out * call.shape("x")[-1]  # all three products of a node have the same m k n


def _linear(call: Call) -> int:
    return 2 * call.out * call.shape("weight")[1]


def _nf4_linear(call: Call) -> int:
    return _linear(call) + call.size("weight")  # each number of W is its level times an absmax


def _down(call: Call) -> int:
    """x A^T, or d^T x for the gradient of A, or d A for that of x."""
    return 2 * call.size("x") * call.shape("lora_a")[0]


def _up(call: Call) -> int:
    """h B^T, or g^T h for the gradient of B, or g B for d."""
    return 2 * call.out * call.shape("lora_b")[1]


def _hidden(call: Call) -> int:
    """The numbers of h = scale x A^T and of d = scale g B."""
    return call.out // call.shape("lora_b")[0] * call.shape("lora_b")[1]


def _scores(call: Call) -> int:
    return call.out // call.shape("value")[-1] * call.shape("key")[-2]


def _by_keys(call: Call) -> int:
    """q k^T, or one of the two products that carry the gradient of the scores to q and k."""
    return 2 * _scores(call) * call.shape("query")[-1]


def _by_values(call: Call) -> int:
    """p v, or p^T g for the gradient of v, or g v^T for that of p."""
    return 2 * _scores(call) * call.shape("value")[-1]


def _attention(call: Call) -> int:
    masked = call.has("added") + call.has("allowed") + bool(call.option("is_causal"))
    return _by_keys(call) + _by_values(call) + (6 + masked) * _scores(call)  # softmax is 5


def _attention_shared(call: Call, needed: Collection[str]) -> int:
    """The weights again; and from those of the result, the gradients of the scores."""
    slopes = _by_values(call) + 2 * call.out + 2 * _scores(call)
    weights = _by_keys(call) + 3 * _scores(call) if needed else 0
    return weights + (slopes if set(needed) - {"value"} else 0)


PRODUCTS = {
    "matmul": Cost(_matmul, {"x": _matmul, "y": _matmul}, product=True),
    "linear": Cost(
        lambda c: _linear(c) + c.has("bias") * c.out,
        {"x": _linear, "weight": _linear, "bias": nothing},
        product=True,
    ),
    "nf4_linear": Cost(
        lambda c: _nf4_linear(c) + c.has("bias") * c.out,
        {"x": _nf4_linear, "bias": nothing},
        product=True,
    ),
    "lora_linear": Cost(
        lambda c: _linear(c) + _down(c) + _hidden(c) + _up(c) + (1 + c.has("bias")) * c.out,
        {
            "x": lambda c: _linear(c) + _down(c) + c.size("x"),
            "weight": _linear,
            "lora_a": _down,
            "lora_b": _up,
            "bias": nothing,
        },
        shared=lambda c, needed: _up(c) + _hidden(c) if {"x", "lora_a"} & set(needed) else 0,
        product=True,
    ),
    "fused_attention": Cost(
        _attention,
        {"query": _by_keys, "key": _by_keys, "value": _by_values, "added": nothing},
        shared=_attention_shared,
        product=True,
    ),
}

# --------------------------------------------------------------------------------------------------
# Linear algebra, n x n matrices: the leading term of LAPACK's
# --------------------------------------------------------------------------------------------------


def _matrices(call: Call) -> tuple[int, int]:
    """How many there are, and n."""
    *leading, n, _ = call.shape("a")
    return math.prod(leading), n


def _cubes(numerator: int, denominator: int = 1, squares: int = 0) -> Count:
    """So many n^3, and so many n^2, for each matrix."""

    def count(call: Call) -> int:
        many, n = _matrices(call)
        return many * (numerator * n**3 // denominator + squares * n**2)

    return count


def _columns(call: Call) -> int:
    return 1 if len(call.shape("b")) == 1 else call.shape("b")[-1]


def _solve(call: Call) -> int:
    n = call.shape("a")[-1]
    matrices = call.out // max(1, n * _columns(call))
    return matrices * (2 * n**3 // 3) + 2 * call.out * n


def _solve_a(call: Call) -> int:
    n = call.shape("a")[-1]
    outer = 2 * call.out * n + call.out // max(1, _columns(call)) * n  # -(adjoint) out^T
    return _solve(call) + outer


def _cholesky_a(call: Call) -> int:
    many, n = _matrices(call)
    return many * (2 * n**3 + 2 * (2 * n**3 // 3 + 2 * n**3) + 4 * n**2)


LINEAR_ALGEBRA = {
    "inv": Cost(_cubes(2), {"a": _cubes(4, squares=1)}),
    "solve": Cost(_solve, {"b": _solve, "a": _solve_a}),
    "det": Cost(_cubes(2, 3), {"a": lambda c: _cubes(2, squares=1)(c) + _matrices(c)[0]}),
    "cholesky": Cost(_cubes(1, 3, squares=2), {"a": _cholesky_a}),
}
