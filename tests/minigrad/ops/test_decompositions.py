"""Decompositions beyond the table: what they return, equal values, and values of 0."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import minigrad
from minigrad import Tensor, gradcheck, jvp
from minigrad.diagnostics import AnomalyError
from tests.cases import CASES, linalg
from tests.peers.pytorch import DIFFERENT, pytorch

SHAPES = [(3, 3), (5, 3), (3, 5), (2, 4, 3), (0, 3)]


def gradient(f, a):
    x = Tensor(np.asarray(a, float), requires_grad=True)
    return minigrad.grad(f(x), x).data


def with_eigenvalues(*values):
    (a,) = linalg.of_eigenvalues(*values)(np.random.default_rng(3))
    return a


def with_singular_values(shape, *values):
    rng = np.random.default_rng(3)
    u, v = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in shape)
    k = len(values)
    return u[:, :k] * values @ v[:k]


# What they return


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("full_matrices", [True, False])
def test_svd_has_the_shapes_of_numpy_and_its_product_is_the_matrix(shape, full_matrices, rng):
    a = rng.standard_normal(shape)
    found = minigrad.svd(Tensor(a), full_matrices)
    right = np.linalg.svd(a, full_matrices)
    assert found._fields == ("U", "S", "Vh")
    assert [x.shape for x in found] == [x.shape for x in right]
    u, s, vh = (x.data for x in found)
    k = s.shape[-1]
    assert_allclose(u[..., :k] * s[..., None, :] @ vh[..., :k, :], a, atol=1e-14)


def test_eigh_and_slogdet_return_named_tuples(rng):
    a = rng.standard_normal((3, 3))
    w, v = found = minigrad.eigh(Tensor(a))
    assert found._fields == ("eigenvalues", "eigenvectors")
    assert_allclose((v.data * w.data) @ v.data.T, (a + a.T) / 2, atol=1e-14)
    sign, logabsdet = found = minigrad.slogdet(Tensor(a))
    assert found._fields == ("sign", "logabsdet")
    assert_allclose(sign.data * np.exp(logabsdet.data), np.linalg.det(a))
    assert not sign.requires_grad
    singular = minigrad.slogdet(Tensor(np.ones((2, 2))))
    assert (singular.sign.item(), singular.logabsdet.item()) == (0, -np.inf)


@pytest.mark.parametrize("name", ["svd", "eigh", "slogdet", "svdvals", "eigvalsh", "pinv"])
def test_half_precision_is_computed_with_in_single(name):
    a = np.array([[2.0, 1.0], [1.0, 3.0]])
    narrow, wide = (getattr(minigrad, name)(Tensor(a.astype(t))) for t in ("float16", "float32"))
    pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in (narrow, wide)), strict=True)
    for found, right in pairs:
        assert found.dtype == np.float16
        assert_allclose(found.data, right.data.astype(np.float16))


@pytest.mark.parametrize(
    "a",
    [np.bool_([[1, 1], [1, 0]]), np.uint8([[200, 10], [10, 150]]), np.int8([[100, 9], [9, 90]])],
)
def test_the_symmetric_part_of_integers_does_not_wrap_round(a):
    right = np.linalg.eigvalsh(a.astype(float))
    for f in (minigrad.eigvalsh, lambda x: minigrad.eigh(x).eigenvalues):
        assert_allclose(f(a), right, rtol=1e-14)
        assert f(Tensor(a)).dtype == np.float32
        assert_allclose(f(Tensor(a)).data, right, rtol=1e-6)


def test_values_that_half_precision_cannot_tell_apart_have_gradients_of_their_own():
    near = Tensor(np.float16([[1, 0], [0, 1.01]]), requires_grad=True)
    far = Tensor(np.float16([[9000, 0], [0, 3]]), requires_grad=True)
    for f, x, right in (
        (lambda x: minigrad.eigvalsh(x)[0], near, [1, 0]),
        (lambda x: minigrad.eigh(x).eigenvalues[0], near, [1, 0]),
        (lambda x: minigrad.svdvals(x)[1], far, [0, 1]),
        (lambda x: minigrad.svd(x).S[1], far, [0, 1]),
    ):
        (found,) = minigrad.grad(f(x), [x])
        assert found.dtype == np.float16
        assert_allclose(found.data, np.diag(right))
    vectors = minigrad.eigh(near).eigenvectors
    found = minigrad.grad(vectors[0, 1] * vectors[1, 1], near)
    assert_allclose(found.data, [[0, 50], [50, 0]], rtol=0.05)  # 1 / (2 * 0.01)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pinv_takes_singular_values_that_rounding_leaves_for_0(dtype):
    a = with_singular_values((4, 3), 2.0, 1.0).astype(dtype)
    assert_allclose(minigrad.pinv(a), np.linalg.pinv(a, 1e-5), atol=1e-5)


# Equal values, and values of 0


@pytest.mark.parametrize("shape", [(3, 3), (4, 3), (3, 4)])
def test_the_gradient_of_the_sum_of_equal_singular_values_is_u_vh(shape):
    a = with_singular_values(shape, 2.0, 2.0, 2.0)
    for f in (
        lambda x: minigrad.svdvals(x).sum(),
        lambda x: minigrad.svd(x).S.sum(),
        lambda x: minigrad.norm(x, "nuc"),
    ):
        assert_allclose(gradient(f, a), a / 2, atol=1e-14)  # all are 2
        assert gradcheck(f, a, order=1).verdict == "agree"


@pytest.mark.full
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_of_many_values_a_small_one_is_not_0_and_near_ones_are_not_equal(dtype, rng):
    q, p = (np.linalg.qr(rng.standard_normal((100, 100)))[0] for _ in range(2))
    s, w = np.ones(100), np.linspace(100.0, 200.0, 100)
    s[-1], w[:2] = 1e-4, (1.0, 1.02)
    a = Tensor(((q * s) @ p.T).astype(dtype), requires_grad=True)
    found = minigrad.grad(minigrad.svdvals(a)[-1], a)
    assert_allclose(found.data, np.outer(q[:, -1], p[:, -1]), atol=2e-3)
    b = Tensor(((q * w) @ q.T).astype(dtype), requires_grad=True)
    found = minigrad.grad(minigrad.eigvalsh(b)[0], b)
    assert_allclose(found.data, np.outer(q[:, 0], q[:, 0]), atol=2e-3)


@pytest.mark.parametrize("n", [10, 100, 300])
def test_values_that_differ_by_the_rounding_of_a_large_matrix_are_equal(n):
    a = n * np.eye(n) - 2 * np.ones((n, n))  # a reflection, times n
    right = np.eye(n) - np.ones((n, n)) / n
    assert_allclose(gradient(lambda x: minigrad.eigvalsh(x)[-1], a), right / (n - 1), atol=1e-13)
    assert_allclose(gradient(lambda x: minigrad.svdvals(x)[0], a), a / n**2, atol=1e-13)


@pytest.mark.parametrize(
    "f",
    [
        lambda a: minigrad.eigh(a).eigenvectors[:, 2:] ** 2,
        lambda a: minigrad.eigh(a).eigenvalues[2:],
        lambda a: minigrad.eigvalsh(a).sum(),
        lambda a: minigrad.eigvalsh(a)[:2].sum(),
        lambda a: minigrad.svd(a).U[:, :2] ** 2,
    ],
    ids=["other vectors", "other values", "sum", "sum of the equal ones", "other vectors of svd"],
)
def test_derivatives_beside_two_equal_values_are_right(f):
    a = with_eigenvalues(1.0, 1.0, 2.0, 3.0)
    assert gradcheck(f, a, order=1).verdict == "agree"


UNDEFINED = {
    "function of a matrix": (
        lambda a: linalg.composed(minigrad.eigh(a)),
        with_eigenvalues(1.0, 1.0, 2.0),
    ),
    "vectors": (lambda a: minigrad.eigh(a).eigenvectors, np.diag([1.0, 1.0, 2.0])),
    "of the identity": (lambda a: linalg.composed(minigrad.eigh(a)), np.eye(3)),
    "polar factor": (
        lambda a: minigrad.svd(a, False).U @ minigrad.svd(a, False).Vh,
        with_singular_values((3, 3), 2.0, 2.0, 1.0),
    ),
    "vector of a value of 0": (
        lambda a: (minigrad.svd(a, False).U * minigrad.svdvals(a)) @ minigrad.svd(a, False).Vh,
        with_singular_values((4, 2), 2.0, 0.0),
    ),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", UNDEFINED)
def test_what_needs_a_vector_of_equal_values_is_nan_and_the_checker_cannot_tell(name):
    f, a = UNDEFINED[name]
    assert np.isnan(gradient(lambda x: (f(x) * np.arange(len(a))[:, None]).sum(), a)).all()
    for order in (1, 2) if name == "polar factor" else (1,):
        report = gradcheck(f, a, order=order)
        assert report.verdict == "cannot tell"
        undecided = [line for line in repr(report).splitlines() if "analytic nan" in line]
        assert undecided
        assert all("undefined: it needs vectors that are not unique" in line for line in undecided)


def test_the_checker_still_calls_another_nan_wrong():
    a = with_eigenvalues(1.0, 2.0, 3.0)
    root = gradcheck(lambda x: minigrad.sqrt(minigrad.eigvalsh(x)[1] * 0.0), a, order=1)
    assert root.verdict == "disagree"


@pytest.mark.sampled(9)
@pytest.mark.parametrize(
    ("f", "a"),
    [
        (minigrad.eigvalsh, np.eye(3)),
        (minigrad.eigvalsh, with_eigenvalues(1.0, 1.0, 2.0)),
        (lambda a: minigrad.eigh(a).eigenvectors ** 2, with_eigenvalues(1.0, 1.0, 2.0)),
        (minigrad.svdvals, np.eye(3)),
        (minigrad.svdvals, np.zeros((2, 3))),
        (minigrad.svdvals, with_singular_values((4, 3), 2.0, 0.0, 0.0)),
        (lambda a: minigrad.norm(a, 2), np.eye(3)),
        (lambda a: minigrad.norm(a, "nuc"), with_singular_values((3, 3), 2.0, 1.0, 0.0)),
        (minigrad.pinv, with_singular_values((3, 4), 2.0, 1.0)),
        (minigrad.slogdet, np.ones((2, 2))),
    ],
)
def test_the_checker_cannot_tell_at_a_kink_or_a_singular_matrix(f, a):
    assert gradcheck(f, a, order=1).verdict == "cannot tell"


def test_the_gradient_of_slogdet_is_nan_for_the_singular_ones_of_a_stack():
    a = np.stack([np.ones((2, 2)), [[2.0, 1.0], [0.0, 4.0]]])
    found = gradient(lambda x: minigrad.slogdet(x).logabsdet[1] + minigrad.slogdet(x[0])[1], a)
    assert np.isnan(found[0]).all()
    assert_allclose(found[1], [[0.5, 0.0], [-0.125, 0.25]])


def test_an_undefined_derivative_is_explained_where_it_makes_the_first_nan():
    f, a = UNDEFINED["function of a matrix"]
    with (
        minigrad.detect_anomaly(),
        pytest.raises(AnomalyError, match="vectors that are not unique"),
    ):
        gradient(lambda x: f(x)[0, 1], a)


def test_forward_mode_has_the_tangents_of_vectors_of_other_values():
    f, a = (lambda x: minigrad.eigh(x).eigenvectors ** 2), with_eigenvalues(1.0, 1.0, 2.0, 3.0)
    direction = np.random.default_rng(0).standard_normal((4, 4))
    _, tangent = jvp(f, Tensor(a), Tensor(direction))
    near = [f(Tensor(a + h * direction)).data[:, 2:] for h in (1e-6, -1e-6)]
    assert_allclose(tangent.data[:, 2:], (near[0] - near[1]) / 2e-6, atol=1e-8)
    assert np.isnan(tangent.data[:, :2]).all()


# Second derivatives beside PyTorch's

OF_SECOND_ORDER = [
    case
    for case in CASES
    if case.name in ("svd", "svdvals", "eigh", "eigvalsh", "slogdet", "pinv", "solve", "norm")
    if case.order == 2 and case.derivative is None and str(case) not in DIFFERENT
]


@pytest.mark.peers
@pytest.mark.parametrize("case", OF_SECOND_ORDER, ids=str)
def test_second_derivatives_agree_with_pytorch(case):
    torch = pytest.importorskip("torch")
    arrays = case.operands()
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    ts = [torch.tensor(x, requires_grad=True) for x in arrays]
    rng = np.random.default_rng(1)
    out, right = case(*xs), case.apply(pytorch(torch, case.name), *ts)
    v = rng.standard_normal(out.shape)
    firsts = minigrad.grad(out, xs, v, create_graph=True)
    rights = torch.autograd.grad(right, ts, torch.tensor(v), create_graph=True)
    ws = [rng.standard_normal(x.shape) for x in arrays]
    total = sum((g * w).sum() for g, w in zip(firsts, ws, strict=True))
    their_total = sum((g * torch.tensor(w)).sum() for g, w in zip(rights, ws, strict=True))
    found = minigrad.grad(total, xs, allow_unused=True)
    exact = [None] * len(ts)
    if their_total.requires_grad:
        exact = torch.autograd.grad(their_total, ts, allow_unused=True)
    for x, y, array in zip(found, exact, arrays, strict=True):
        second = np.zeros_like(array) if y is None else y.numpy(force=True)
        assert_allclose(x.data, second, rtol=1e-9, atol=1e-11)
