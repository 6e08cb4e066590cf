"""float16: sums, counts and products that leave its range in the middle of a computation."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import Tensor, grad

HALF = np.float16


def half(x, **options):
    return Tensor(np.asarray(x, HALF), **options)


def gradient(f, x):
    x = half(x, requires_grad=True)
    return grad(f(x), x).data


def test_losses_are_summed_in_more_digits():
    logits = np.random.default_rng(0).standard_normal((2, 50_257))
    wide = minigrad.cross_entropy(logits, [3, 4], label_smoothing=0.1).item()
    narrow = minigrad.cross_entropy(half(logits), [3, 4], label_smoothing=0.1)
    assert narrow.dtype == HALF
    assert narrow.item() == pytest.approx(wide, rel=1e-3)
    assert minigrad.mse(half([300, 0, 0, 0]), np.zeros(4, HALF)).item() == 22_496  # of 22,500
    found = gradient(lambda x: minigrad.mse(x, np.zeros(100_000, HALF)), np.ones(100_000))
    assert_allclose(found, 2e-5, rtol=0.01)


def test_weights_of_many_rows_are_no_infinity():
    labels = np.arange(70_000) % 10
    logits = half(np.zeros((70_000, 10)), requires_grad=True)
    loss = minigrad.cross_entropy(logits, labels, weight=np.ones(10))
    loss.backward()
    assert loss.item() == pytest.approx(np.log(10), rel=1e-3)
    assert np.abs(logits.grad.data).max() > 0


def test_the_mean_of_many_elements_has_a_gradient():
    assert_allclose(gradient(minigrad.mean, np.ones((256, 16, 16))), 2.0**-16)


def test_more_equal_elements_than_half_precision_can_count_share_a_gradient():
    for name in ("max", "min"):
        found = gradient(getattr(minigrad, name), np.ones(70_000))
        assert_allclose(found, 1 / 70_000, rtol=0.01, err_msg=name)  # it is a subnormal number


def test_running_sums_keep_their_digits():
    assert_array_equal(minigrad.cumsum(half(np.ones(5000))).data[-1:], 5000)
    for axis in (0, None):
        found = gradient(lambda x, axis=axis: minigrad.cumsum(x / 5000, axis).sum(), np.ones(5000))
        assert_allclose(found[0], 1, rtol=1e-3)
    single = minigrad.Tensor(np.full(10**6, 0.1, np.float32))
    assert_allclose(minigrad.cumsum(single).data[-1], 10**5, rtol=1e-6)


def test_gradients_of_an_index_add_up_beyond_the_integers_of_half_precision():
    index = np.zeros(5000, int)
    assert gradient(lambda w: minigrad.embedding(index, w).sum(), [[1.0], [1.0]]).ravel()[0] == 5000
    assert gradient(lambda x: x[index].sum(), [1.0, 1.0])[0] == 5000


def test_attention_scales_before_a_score_can_overflow():
    q = half(np.full((1, 2, 64), 32))
    out = minigrad.scaled_dot_product_attention(q, q, half(np.ones((1, 2, 3))))
    assert out.dtype == HALF
    assert_allclose(out.data, 1)


def test_negative_powers_of_large_numbers_are_no_zeros():
    x = np.array([300.0, 50.0])
    assert_allclose((half(x) ** -2).data, x**-2, rtol=0.01)
    assert_allclose(gradient(lambda x: (x**-1).sum(), x), -(x**-2), rtol=0.05)


def test_sinc_of_large_numbers():
    assert_allclose(minigrad.sinc(half([500.25])).data, np.sinc(500.25), rtol=0.01)
    assert np.isfinite(minigrad.sinc(half([60_000])).data).all()


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "Adagrad"])
def test_elements_without_a_gradient_stay_as_they_are(name):
    p = minigrad.nn.Parameter(np.ones(3, HALF))
    optimizer = getattr(minigrad.optim, name)([p], lr=0.01, weight_decay=0.0)
    p.grad = half([0.0, 1.0, 1e-4])
    optimizer.step()
    assert p.data[0] == 1
    assert np.isfinite(p.data).all()
    assert p.data[1] < 1


@pytest.mark.parametrize(("dtype", "tiny"), [(HALF, 1e-5), (np.float32, 1e-39)])
def test_the_power_0_of_a_subnormal_number_has_the_derivative_0(dtype, tiny):
    a = Tensor(np.array([tiny, 1e-3], dtype), requires_grad=True)
    assert not grad(minigrad.power(a, np.zeros(2, dtype)).sum(), a).data.any()


@pytest.mark.filterwarnings("ignore:overflow encountered")  # the result, without compilation
@pytest.mark.parametrize("create_graph", [False, True])
def test_gelu_by_tanh_of_huge_numbers_has_derivatives(create_graph):
    x = minigrad.tensor([1e20, -1e20], requires_grad=True)
    slope = grad(minigrad.gelu(x, "tanh").sum(), x, create_graph=create_graph)
    assert slope.detach().data.tolist() == [1, 0]
    if create_graph:
        assert grad(slope.sum(), x).data.tolist() == [0, 0]
