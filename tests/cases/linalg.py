"""Linear algebra of square matrices, and diagonals."""

import numpy as np

from tests.cases.case import Case, fixed, joined, narrow, normal


def regular(*shapes):
    """Matrices far from singular."""
    return lambda rng: tuple(rng.standard_normal(shape) + 3 * np.eye(shape[-1]) for shape in shapes)


def positive_definite(*shapes):
    def make(rng):
        factors = [rng.standard_normal(shape) for shape in shapes]
        return tuple(f @ np.swapaxes(f, -1, -2) + np.eye(f.shape[-1]) for f in factors)

    return make


def of_rank(rank, *shapes):
    """Matrices whose columns are sums of `rank` ones."""
    return lambda rng: tuple(
        rng.standard_normal((*shape[:-1], rank))
        @ rng.standard_normal((*shape[:-2], rank, shape[-1]))
        for shape in shapes
    )


def factor(a):
    """Of the symmetric part, row by row."""
    a = (a + np.swapaxes(a, -1, -2)) / 2
    out = np.zeros_like(a)
    for i in range(a.shape[-1]):
        for j in range(i + 1):
            rest = a[..., i, j] - np.sum(out[..., i, :j] * out[..., j, :j], axis=-1)
            out[..., i, j] = np.sqrt(rest) if i == j else rest / out[..., j, j]
    return out


def product_of_eigenvalues(a):
    return np.prod(np.linalg.eigvals(a), axis=-1).real


CASES = [
    *[
        Case("inv", regular(shape), np.linalg.inv, note=note)
        for note, shape in {
            "": (3, 3),
            "batch": (2, 3, 3),
            "1 x 1": (1, 1),
            "0 x 0": (0, 0),
            "no batch": (0, 2, 2),
        }.items()
    ],
    *[
        Case(
            name, fixed([[2, 1], [1, 3]]), narrow(reference), order=0, note="integers give float32"
        )
        for name, reference in [
            ("inv", np.linalg.inv),
            ("det", product_of_eigenvalues),
            ("cholesky", factor),
        ]
    ],
    *[
        Case("solve", joined(regular(a), normal(b)), np.linalg.solve, note=note)
        for note, a, b in [
            ("matrix", (3, 3), (3, 2)),
            ("vector", (3, 3), (3,)),
            ("batch", (2, 3, 3), (2, 3, 2)),
            ("batch and matrix", (2, 3, 3), (3, 2)),
            ("matrix and batch", (3, 3), (2, 3, 1)),
            ("batch and vector", (2, 3, 3), (3,)),
            ("broadcast batches", (2, 1, 2, 2), (3, 2, 1)),
            ("1 x 1", (1, 1), (1, 2)),
            ("no columns", (2, 2), (2, 0)),
        ]
    ],
    *[
        Case("det", make, reference, note=note)
        for note, make, reference in [
            ("", normal((3, 3)), product_of_eigenvalues),
            ("2 x 2", normal((2, 2)), lambda a: a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0]),
            ("1 x 1", normal((1, 1)), lambda a: a[0, 0]),
            ("0 x 0", normal((0, 0)), lambda a: np.float64(1)),
            ("batch", normal((2, 3, 3)), product_of_eigenvalues),
            ("batch of batches", normal((2, 1, 2, 2)), product_of_eigenvalues),
            ("no batch", normal((0, 2, 2)), np.linalg.det),
        ]
    ],
    # At a singular matrix the derivative is that of a polynomial all the same.
    *[
        Case("det", make, lambda a: np.zeros(a.shape[:-2]), note=f"singular: {note}")
        for note, make in {
            "zero column": fixed([[1.0, 0.0, 2.0], [3.0, 0.0, 4.0], [5.0, 0.0, 7.0]]),
            "equal rows": fixed([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [5.0, 6.0, 7.0]]),
            "rank n - 2": fixed([[1.0, 2.0, 4.0], [2.0, 4.0, 8.0], [-1.0, -2.0, -4.0]]),
            "rank n - 2 of 4": fixed(np.diag([1.0, 2.0, 0.0, 0.0])),
            "zero": fixed(np.zeros((3, 3))),
            "zero of 2": fixed(np.zeros((2, 2))),
            "zero of 1": fixed(np.zeros((1, 1))),
            "rank n - 1, by rounding": of_rank(2, (3, 3)),
        }.items()
    ],
    Case(
        "det",
        of_rank(2, (4, 4)),
        lambda a: 0.0,
        note="singular: rank n - 2, by rounding",
        derivative=lambda g, a: 0 * a,
    ),
    Case(
        "det",
        fixed([[[1.0, 2.0], [2.0, 4.0]], [[3.0, 1.0], [1.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]]]),
        lambda a: a[:, 0, 0] * a[:, 1, 1] - a[:, 0, 1] * a[:, 1, 0],
        note="singular and regular ones",
    ),
    Case(
        "det",
        fixed([[1.0, 2.0], [2.0, 4.0 + 1e-9]]),
        lambda a: a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0],
        note="nearly singular",
    ),
    *[
        Case("cholesky", positive_definite(shape), factor, note=note)
        for note, shape in {
            "": (3, 3),
            "batch": (2, 2, 2),
            "1 x 1": (1, 1),
            "0 x 0": (0, 0),
            "no batch": (0, 2, 2),
        }.items()
    ],
    Case("cholesky", fixed([[4.0, 1.0], [2.0, 5.0]]), factor, note="not symmetric"),
    # Diagonals
    *[
        Case("diag", normal(shape), np.diag, {"k": k}, note=f"{shape} {k}")
        for shape in [(3,), (3, 3), (2, 4), (0,)]
        for k in (0, 1, -2)
    ],
    Case("diag", normal((2, 2)), np.diag, {"k": 5}, note="off the matrix"),
    *[
        Case(name, normal(shape), getattr(np, name), options, note=f"{shape} {options}")
        for name in ("diagonal", "trace")
        for shape, options in [
            ((3, 3), {}),
            ((2, 4), {"offset": 1}),
            ((4, 2), {"offset": -1}),
            ((2, 3), {"offset": 7}),
            ((2, 3), {"offset": -7}),
            ((2, 3, 4), {}),
            ((2, 3, 4), {"axis1": -1, "axis2": -2}),
            ((2, 3, 4), {"axis1": 2, "axis2": 0, "offset": 1}),
            ((0, 3), {}),
        ]
    ],
]
