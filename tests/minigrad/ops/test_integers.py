"""Integers, booleans and half precision as operands.

Functions of floats compute in float64 for integers, and give a Tensor of float32; all others keep
integers as they are.
"""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import OPS, Tensor

NARROW = [np.bool_, np.int8, np.uint8, np.int16, np.int64]
OF_FLOATS = sorted(name for name, op in OPS.items() if op.floats)
MATRICES = {
    "inv": 1,
    "det": 1,
    "cholesky": 1,
    "pinv": 1,
    "solve": 2,
}  # by how many operands they have
PLAIN = ["negative", "square", "abs", "relu", "maximum", "max", "sum", "cumsum", "flip", "where"]


def operands(name, dtype):
    """Small numbers of each dtype for which the function is defined."""
    if name in MATRICES:
        return [np.array([[1, 0], [0, 1]], dtype)] * MATRICES[name]
    if name.startswith("convolution"):
        return [np.ones((2, 2, 3, 3), dtype)] * 2
    if name == "recurrence":
        return [np.ones(shape, dtype) for shape in ((1, 2, 4), (2, 2), (4, 1))]
    x = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    if name == "rope":
        x = x[:, :2]
    if name in ("log", "log2", "log10", "rsqrt", "reciprocal", "arccosh"):
        x = np.ones((2, 3), dtype)
    if name == "arctanh":
        x = np.zeros((2, 3), dtype)
    return [x, x] if name in ("arctan2", "logaddexp", "hypot", "copysign", "swiglu") else [x]


def options(name):
    if name == "rope":
        return {"cos": [0.5], "sin": [2.0]}
    if name.startswith("convolution_"):
        return {"size": (3, 3), "padding": 1}
    return {"normalized_shape": 3} if name.endswith("_norm") else {}


@pytest.mark.parametrize("name", OF_FLOATS)
def test_a_function_of_floats_computes_with_all_digits_of_integers(name):
    function = getattr(minigrad, name)
    for dtype in NARROW:
        xs, of = operands(name, dtype), f"of {dtype.__name__}"
        right = function(*(x.astype(np.float64) for x in xs), **options(name))
        plain = function(*xs, **options(name))
        assert plain.dtype == np.float64, of
        assert_array_equal(plain, right, err_msg=of)
        found = function(*map(Tensor, xs), **options(name))
        assert found.dtype == np.float32, of
        assert_array_equal(found.data, np.asarray(right).astype(np.float32), err_msg=of)


def test_large_integers_are_not_rounded_on_the_way():
    large = 2**24 + 1  # which float32 cannot tell from 2**24
    assert minigrad.sin(minigrad.tensor(large)).item() == pytest.approx(np.sin(large))
    assert minigrad.det(minigrad.tensor([[3, large], [1, 2**24 // 3]])).item() == -2
    assert minigrad.softmax(minigrad.tensor([large, large - 1])).data[0] > 0.7


@pytest.mark.parametrize("name", OF_FLOATS)
def test_half_precision_is_computed_with_in_single(name):
    function = getattr(minigrad, name)
    xs = operands(name, np.float16)
    right = function(*(x.astype(np.float32) for x in xs), **options(name))
    tensors = [Tensor(x, requires_grad=True) for x in xs]
    found = function(*tensors, **options(name))
    assert found.dtype == np.float16
    assert_array_equal(found.data, right.astype(np.float16))
    if np.isfinite(found.data).all():
        with np.errstate(all="ignore"):  # sqrt at 0
            gradients = minigrad.grad(found, tensors, np.ones_like(found.data))
        assert all(g.dtype == np.float16 for g in gradients)


def test_half_precision_neither_overflows_nor_vanishes_in_means_and_norms():
    x = Tensor(np.float16([300, -300, 600, 1]))
    expected = minigrad.layer_norm(x.astype(np.float32), 4)
    assert_allclose(minigrad.layer_norm(x, 4).data, expected.data, atol=1e-3)  # rounds to 5e-4
    ones = Tensor(np.ones(100_000, np.float16))
    assert minigrad.mean(ones).item() == 1
    assert minigrad.std(Tensor(np.float16([60_000, -60_000]))).item() == 60_000
    logits = Tensor(np.zeros((70_000, 2), np.float16))
    loss = minigrad.cross_entropy(logits, np.zeros(70_000, int))
    assert loss.item() == pytest.approx(np.log(2), abs=1e-3)


def test_large_bytes_neither_wrap_round_nor_overflow():
    x = Tensor(np.uint8([[0, 200, 255]]))
    wide = x.astype(np.float32)
    for function in (minigrad.softmax, minigrad.log_softmax, minigrad.sigmoid, minigrad.exp):
        with np.errstate(over="ignore"):  # e^200 is too large for float32
            assert_allclose(function(x).data, function(wide).data, rtol=2.4e-7)  # 2 ULP of float32


def test_a_number_too_large_for_its_integers_is_refused():
    x = Tensor(np.int8([1, 2]))
    with pytest.raises(ValueError, match=r"where: .*300 out of bounds"):
        minigrad.where(x > 1, x, 300)
    with pytest.raises(ValueError, match=r"add: .*300 out of bounds"):
        x + 300


def test_triangles_keep_integers_and_booleans():
    x = np.array([[1, 2], [3, 2**24 + 1]])
    assert_array_equal(minigrad.tril(Tensor(x)).data, np.tril(x))
    assert_array_equal(minigrad.triu(Tensor(x)).data, np.triu(x))
    assert minigrad.tril(Tensor(x)).dtype == x.dtype
    assert minigrad.triu(Tensor(x > 1)).dtype == bool


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int64, np.float16])
def test_padding_keeps_the_dtype(dtype):
    x = np.array([[1, 0], [1, 1]], dtype)
    for value in (0, 1, True, 0.5, np.float64(0.5)):
        found = minigrad.pad(Tensor(x), 1, constant_values=value)
        expected = np.pad(x, 1, constant_values=value)
        assert found.dtype == expected.dtype == dtype
        assert_array_equal(found.data, expected, err_msg=f"{value=}")


@pytest.mark.parametrize("value", [300, -1, 1e30, np.nan])
def test_padding_that_an_integer_cannot_store_is_refused(value):
    with pytest.raises(ValueError, match=r"pad: constant_values .* uint8 can store, from 0 to 255"):
        minigrad.pad(Tensor(np.array([1], np.uint8)), 1, constant_values=value)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
@pytest.mark.parametrize("name", PLAIN)
def test_other_functions_keep_integers(name, dtype):
    x = np.array([[3, 1, 2]], dtype)
    arguments = {"maximum": [x, x[:, ::-1]], "where": [x > 1, x, x[:, ::-1]]}.get(name, [x])
    numpy_name = {"relu": "abs"}.get(name, name)
    found = getattr(minigrad, name)(*map(Tensor, arguments))
    expected = getattr(np, numpy_name)(*arguments)
    assert found.dtype == np.asarray(expected).dtype
    assert_array_equal(found.data, expected)


@pytest.mark.parametrize(
    ("dtype", "x", "order", "right"),
    [
        (np.uint8, [0, 1, 5, 200, 3, 255], None, 105060**0.5),
        (np.int8, [-128, 100], 1, 228),
        (np.int8, [-128, 100], np.inf, 128),
        (np.int32, [100_000], 3, 100_000),
        (np.float16, [300, 400], None, 500),
        (np.float16, [3e-4, 4e-4], 2, 5e-4),
    ],
)
def test_norms_of_integers_and_of_half_precision_have_all_digits(dtype, x, order, right):
    array = np.array(x, dtype)
    found = minigrad.norm(Tensor(array), order)
    assert found.dtype == (np.float16 if dtype is np.float16 else np.float32)
    assert_allclose(found.data, right, rtol=1e-3 if dtype is np.float16 else 1e-7)
    assert_allclose(minigrad.norm(array, order), right, rtol=1e-3 if dtype is np.float16 else 1e-15)


def test_half_precision_has_a_gradient_of_its_norm():
    x = Tensor(np.float16([300, 400]), requires_grad=True)
    minigrad.norm(x).backward()
    assert_allclose(x.grad.data, [0.6, 0.8], atol=5e-4)  # half a unit in the last digit


def test_variance_of_large_integers_has_all_digits():
    x = np.array([2**30, 2**30 + 2])
    assert minigrad.var(Tensor(x)).item() == minigrad.std(Tensor(x)).item() == 1
    assert minigrad.var(x) == 1


@pytest.mark.parametrize(
    ("loss", "right"),
    [
        (minigrad.mse, np.square),
        (minigrad.l1, np.abs),
        (minigrad.huber, lambda d: np.where(abs(d) > 1, abs(d) - 0.5, 0.5 * d**2)),
    ],
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_of_integers_do_not_wrap_round(loss, right, reduction):
    reduced = {"mean": np.mean, "sum": np.sum, "none": np.copy}[reduction]
    for x, y in ((np.uint8([1, 200]), np.uint8([2, 3])), (np.int32([10**5, 1]), np.int32([0, 1]))):
        expected = reduced(right(x.astype(float) - y))
        found = loss(Tensor(x), Tensor(y), reduction)
        assert found.dtype == np.float32
        assert_allclose(found.data, expected, rtol=1e-7)
        assert_array_equal(loss(x, y, reduction), expected)


def test_binary_cross_entropy_of_integers_does_not_wrap_round():
    loss = minigrad.binary_cross_entropy_with_logits(Tensor(np.uint8([1])), [1.0])
    assert loss.dtype == np.float32
    assert loss.item() == pytest.approx(np.log1p(np.exp(-1)))


def test_weights_of_classes_keep_their_fractions_beside_integer_scores():
    scores, target, weight = np.array([[1, 2, 3], [0, 5, 1]]), [0, 1], np.array([0.9, 1.9, 0.5])
    probabilities = np.array([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]])
    for loss, classes in (
        (minigrad.cross_entropy, target),
        (minigrad.cross_entropy, probabilities),
        (minigrad.nll, target),
    ):
        right = loss(scores.astype(float), classes, weight=weight)
        assert_allclose(loss(scores, classes, weight=weight), right, rtol=1e-15)
        found = loss(Tensor(scores), classes, weight=weight)
        assert found.dtype == np.float32
        assert_allclose(found.data, right, rtol=1e-7)


def test_the_matrix_of_a_head_may_be_a_list_beside_integers():
    weight = [[0.5, 0.75], [0.25, 1.5]]
    right = minigrad.linear_cross_entropy([[1.0, 2.0]], weight, [0])
    for x in ([[1, 2]], np.uint8([[1, 2]]), Tensor([[1, 2]])):
        assert minigrad.linear_cross_entropy(x, weight, [0]).item() == pytest.approx(right.item())


@pytest.mark.parametrize(
    ("function", "shape", "options"),
    [
        (minigrad.roll, (5,), {"shift": 2}),
        (minigrad.roll, (3, 4), {"shift": (1, 2), "axis": (0, 1)}),
        (minigrad.diag, (3, 4), {"k": 1}),
        (minigrad.diag, (3,), {"k": 1}),
        (minigrad.trace, (3, 4), {"offset": 1}),
        (minigrad.triu, (3, 4), {"k": 0}),
        (minigrad.var, (30, 40), {"ddof": 1}),
        (minigrad.group_norm, (1, 4, 200), {"num_groups": 2}),
        (minigrad.layer_norm, (2, 30, 40), {"normalized_shape": (30, 40)}),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_options_may_be_narrow_or_unsigned_integers(function, shape, options, dtype, rng):
    def narrow(value):
        return tuple(map(dtype, value)) if isinstance(value, tuple) else dtype(value)

    x = Tensor(rng.standard_normal(shape), requires_grad=True)
    right = function(x, **options)
    g = rng.standard_normal(right.shape)
    found = function(x, **{name: narrow(value) for name, value in options.items()})
    assert_array_equal(found.data, right.data)
    expected = minigrad.grad(right, x, g).data
    assert_array_equal(minigrad.grad(found, x, g).data, expected)


def test_options_of_several_operands_may_be_unsigned_integers(rng):
    one, two, x = np.uint8(1), np.uint8(2), rng.standard_normal((300, 3))
    y = rng.standard_normal((2, 3))
    assert_array_equal(minigrad.huber(x, 0 * x, delta=one), minigrad.huber(x, 0 * x))
    assert_array_equal(minigrad.tensordot(x, y.T, one), minigrad.tensordot(x, y.T, 1))
    assert_array_equal(minigrad.embedding([1, 299], x, one), x[[1, 299]])
    assert_array_equal(minigrad.diag(x, one), x[[0, 1], [1, 2]])
    target = np.zeros(300, int)
    right = minigrad.linear_cross_entropy(x, y, target)
    assert_allclose(minigrad.linear_cross_entropy(x, y, target, chunk=two), right, rtol=1e-15)


def test_attention_of_integers_computes_with_floats(rng):
    q, k, v = rng.integers(-2, 3, (3, 4, 5))
    mask = rng.random((4, 4)) < 0.7
    right = minigrad.scaled_dot_product_attention(*(x * 1.0 for x in (q, k, v)), mask, scale=2)
    found = minigrad.scaled_dot_product_attention(q, k, v, mask, scale=2)
    assert_allclose(found, right, rtol=1e-12, atol=1e-12)
    found = minigrad.scaled_dot_product_attention(Tensor(q), Tensor(k), Tensor(v), mask, scale=2)
    assert found.dtype == np.float32
    assert_allclose(found.data, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [minigrad.concatenate, minigrad.stack])
def test_an_axis_may_be_an_array_of_one_integer(function, rng):
    x = Tensor(rng.standard_normal((2, 3)), requires_grad=True)
    function([x, 2 * x], np.array(1)).sum().backward()
    assert_array_equal(x.grad.data, np.full((2, 3), 3))


@pytest.mark.parametrize("exponent", [2.0, 3.0, 8.0, 9.0, 2.5])
def test_integers_to_the_power_of_a_float_are_floats(exponent):
    out = Tensor([1, 2]) ** exponent
    assert out.dtype == np.float32
    assert_allclose(out.data, np.array([1.0, 2.0]) ** exponent, rtol=1e-6)


def test_bools_to_the_power_of_an_integer_are_integers():
    squared, cubed = (Tensor([True, False]) ** n for n in (2, 3))
    assert squared.dtype == np.int8
    assert cubed.dtype.kind == "i"
    assert_array_equal(cubed.data, [1, 0])


def test_differences_of_booleans_say_where_neighbours_differ():
    x = np.array([[True, False, False], [True, True, False]])
    for axis in (0, 1):
        np.testing.assert_array_equal(minigrad.diff(x, axis=axis).data, np.diff(x, axis=axis))


def test_a_difference_of_booleans_is_refused_with_what_there_is_instead():
    x = minigrad.tensor([True, False])
    with pytest.raises(TypeError, match=r"^subtract: .*boolean.*not supported; use not_equal") as e:
        x - x
    assert "xor" not in str(e.value)
