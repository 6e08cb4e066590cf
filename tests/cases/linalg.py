"""Linear algebra, and diagonals."""

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


def separated(*shapes):
    """Matrices whose eigenvalues, or singular values, are far apart."""
    return lambda rng: tuple(
        0.2 * rng.standard_normal(shape) + 2 * np.eye(*shape[-2:]) * np.arange(1, shape[-1] + 1)
        for shape in shapes
    )


def of_eigenvalues(*values):
    """One symmetric matrix."""

    def make(rng):
        q, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
        return ((q * values) @ q.T,)

    return make


# What does not depend on the signs of vectors. PyTorch and numpy read one triangle alone.


def of_symmetric(part):
    """Of the decomposition of A + A^T."""
    return lambda f, a: part(f(a + a.swapaxes(-1, -2)))


def squares(i):
    """Of the vectors that are the part i of a decomposition."""
    return lambda parts: parts[i] ** 2


def composed(parts):
    """V cos(w) V^T."""
    w, v = parts
    return (v * (w**2 + 1)[..., None, :] ** -1) @ v.swapaxes(-1, -2)


def product(f, a, **options):
    """U / (S^2 + 1) Vh."""
    u, s, vh = f(a, **options)
    k = s.shape[-1]
    return (u[..., :k] * (s**2 + 1)[..., None, :] ** -1) @ vh[..., :k, :]


def part_of(part):
    return lambda f, a, **options: part(f(a, **options))


def rest(i):
    """The projection on the vectors without a singular value, for (5, 3) and its transpose."""

    def part(parts):
        vectors = parts[0][..., 3:] if i == 0 else parts[2][..., 3:, :].swapaxes(-1, -2)
        return vectors @ vectors.swapaxes(-1, -2)

    return part_of(part)


def second(f, a):
    return f(a)[1]


def product_of_eigenvalues(a):
    return np.prod(np.linalg.eigvals(a), axis=-1).real


SQUARE = {
    "": (3, 3),
    "batch": (2, 2, 2),
    "1 x 1": (1, 1),
    "0 x 0": (0, 0),
    "no batch": (0, 2, 2),
}

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
            ("pinv", np.linalg.inv),
            ("eigvalsh", np.linalg.eigvalsh),
            ("svdvals", lambda a: np.linalg.svd(a)[1]),
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
        Case(
            "solve",
            joined(regular(a), normal(b)),
            lambda a, b, left: b @ np.linalg.inv(a),
            {"left": False},
            note=f"x a = b, {note}",
        )
        for note, a, b in [
            ("matrix", (3, 3), (2, 3)),
            ("vector", (3, 3), (3,)),
            ("batch", (2, 3, 3), (2, 2, 3)),
            ("broadcast batches", (2, 1, 2, 2), (3, 1, 2)),
            ("batch and vector", (2, 3, 3), (3,)),
            ("no rows", (2, 2), (0, 2)),
        ]
    ],
    *[
        Case("matrix_power", regular(shape), np.linalg.matrix_power, {"n": n}, note=f"{shape} {n}")
        for shape in [(3, 3), (2, 2, 2)]
        for n in (5, -2, 1, 0, 6)
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
        for note, shape in SQUARE.items()
    ],
    Case("cholesky", fixed([[4.0, 1.0], [2.0, 5.0]]), factor, note="not symmetric"),
    # Pseudoinverses
    *[
        Case("pinv", separated(shape), np.linalg.pinv, options, note=f"{shape} {options or ''}")
        for shape, options in [
            ((4, 3), {}),
            ((3, 4), {}),
            ((3, 3), {}),
            ((2, 3, 2), {}),
            ((1, 3), {}),
            ((0, 3), {}),
            ((0, 2, 3), {}),
            ((3, 2), {"rcond": 1e-6}),
        ]
    ],
    Case(
        "pinv",
        separated((2, 3, 3)),
        np.linalg.pinv,
        {"hermitian": True},
        function=lambda f, a, **options: f(a + a.swapaxes(-1, -2), **options),
    ),
    Case(
        "pinv",
        separated((3, 3)),
        lambda a, hermitian: np.linalg.pinv((a + a.T) / 2),
        {"hermitian": True},
        note="not symmetric",
    ),
    Case(
        "pinv",
        normal((4, 2), (2, 3)),
        np.linalg.pinv,
        {"rcond": 1e-2},
        function=lambda f, a, b, **options: f(a @ b, **options),
        note="of low rank",
    ),
    Case(
        "pinv",
        fixed([[2.0, 0.0], [0.0, 0.0]]),
        np.linalg.pinv,
        note="where the rank may change: as where it stays",
        derivative=lambda g, a: np.array([[-g[0, 0], g[1, 0]], [g[0, 1], 0.0]]) / 4,
    ),
    # Eigenvalues of symmetric matrices
    *[
        Case("eigh", separated(shape), np.linalg.eigh, function=of_symmetric(part), note=note)
        for note, shape, part in [
            ("", (3, 3), composed),
            ("values", (3, 3), lambda parts: parts[0]),
            ("vectors", (3, 3), squares(1)),
            ("batch", (2, 3, 3), composed),
            ("vectors of a batch", (2, 1, 2, 2), squares(1)),
            ("1 x 1", (1, 1), composed),
            ("0 x 0", (0, 0), composed),
            ("no batch", (0, 2, 2), composed),
        ]
    ],
    Case(
        "eigh",
        of_eigenvalues(1, 1, 2, 3),
        np.linalg.eigh,
        function=of_symmetric(lambda parts: parts[1][:, 2:] ** 2),
        note="vectors of others than two equal ones",
        order=1,
    ),
    *[
        Case(
            "eigvalsh",
            separated(shape),
            np.linalg.eigvalsh,
            function=of_symmetric(lambda w: w),
            note=note,
        )
        for note, shape in {
            "": (3, 3),
            "batch": (2, 2, 2),
            "1 x 1": (1, 1),
            "0 x 0": (0, 0),
        }.items()
    ],
    Case(
        "eigvalsh",
        fixed([[1.0, 4.0], [2.0, 5.0]]),
        lambda a: np.linalg.eigvalsh((a + a.T) / 2),
        note="not symmetric",
    ),
    Case(
        "eigvalsh",
        fixed(np.diag([2.0, 1.0, 2.0])),
        np.linalg.eigvalsh,
        note="equal ones share",
        order=1,
        derivative=lambda g, a: np.diag([g[1:].mean(), g[0], g[1:].mean()]),
    ),
    # Singular values
    *[
        Case("svd", separated(shape), np.linalg.svd, options, function=f, note=f"{shape} {note}")
        for shape in [(3, 3), (5, 3), (3, 5), (2, 3, 2)]
        for note, f, options in [
            ("product", product, {}),
            ("product, thin", product, {"full_matrices": False}),
            ("U", part_of(lambda parts: parts[0][..., : parts[1].shape[-1]] ** 2), {}),
            ("thin U", part_of(squares(0)), {"full_matrices": False}),
            ("thin Vh", part_of(squares(2)), {"full_matrices": False}),
        ]
    ],
    Case("svd", separated((5, 3)), np.linalg.svd, function=rest(0), note="the rest of U"),
    Case("svd", separated((3, 5)), np.linalg.svd, function=rest(2), note="the rest of Vh"),
    *[
        Case("svd", normal(shape), np.linalg.svd, function=product, note=f"{shape}")
        for shape in [(1, 1), (1, 3), (0, 3), (3, 0), (0, 2, 3)]
    ],
    Case(
        "svd",
        of_rank(2, (4, 3)),
        np.linalg.svd,
        function=part_of(lambda parts: (parts[0][:, :2] * parts[1][:2]) @ parts[2][:2]),
        note="the largest of low rank",
        order=1,
    ),
    *[
        Case("svdvals", separated(shape), lambda a: np.linalg.svd(a)[1], note=f"{shape}")
        for shape in [(3, 3), (4, 3), (3, 4), (2, 2, 2), (1, 1), (0, 3)]
    ],
    *[
        Case(
            "svdvals",
            fixed(a),
            lambda a: np.linalg.svd(a)[1],
            note=note,
            order=1,
            derivative=derivative,
        )
        for note, a, derivative in [
            ("equal ones share", 2.0 * np.eye(2, 3), lambda g, a: g.mean() * np.eye(2, 3)),
            ("of 0: none", np.zeros((2, 2)), lambda g, a: 0 * a),
            ("of low rank", np.ones((2, 2)), lambda g, a: g[0] / 2 * a),
        ]
    ],
    # Logarithms of determinants
    *[
        Case("slogdet", normal(shape), np.linalg.slogdet, function=second, note=note)
        for note, shape in SQUARE.items()
    ],
    Case(
        "slogdet",
        normal((5, 2, 2)),
        np.linalg.slogdet,
        function=lambda f, a: f(a)[0],
        order=0,
        note="signs",
    ),
    Case(
        "slogdet",
        fixed([[1.0, 2.0], [2.0, 4.0]]),
        np.linalg.slogdet,
        function=second,
        order=0,
        note="singular",
    ),
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
