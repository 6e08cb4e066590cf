"""First weights: their distributions, and what cannot be filled."""

import contextlib
import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest

import minigrad
from minigrad import heap, nn
from minigrad.nn import Linear, init

STATM = Path("/proc/self/statm")
D_OUT, D_IN = 200, 300


def drawn(fill, rng, **options):
    tensor = minigrad.zeros((D_OUT, D_IN), requires_grad=True)
    assert fill(tensor, rng=rng, **options) is tensor
    assert tensor.dtype == np.float32
    assert tensor.is_leaf
    return tensor.data.astype(np.float64)


@pytest.mark.parametrize(
    ("fill", "options", "variance"),
    [
        (init.kaiming_uniform_, {}, 2 / D_IN),
        (init.kaiming_uniform_, {"a": math.sqrt(5)}, 1 / 3 / D_IN),
        (init.kaiming_uniform_, {"nonlinearity": "linear"}, 1 / D_IN),
        (init.kaiming_uniform_, {"mode": "fan_out"}, 2 / D_OUT),
        (init.kaiming_uniform_, {"nonlinearity": "tanh"}, 25 / 9 / D_IN),
        (init.xavier_uniform_, {}, 2 / (D_IN + D_OUT)),
        (init.xavier_uniform_, {"gain": 3.0}, 18 / (D_IN + D_OUT)),
        (init.uniform_, {"a": -0.3, "b": 0.3}, 0.03),
    ],
)
def test_uniform_weights(rng, fill, options, variance):
    values = drawn(fill, rng, **options)
    bound = math.sqrt(3 * variance)
    assert abs(values).max() <= bound * (1 + 1e-6)
    assert values.min() < -0.999 * bound  # the extremes of 60,000 draws
    assert values.max() > 0.999 * bound  # the extremes of 60,000 draws
    assert abs(values.mean()) < 4 * math.sqrt(variance / values.size)  # a draw of a fixed seed
    assert values.var() == pytest.approx(variance, rel=0.02)  # whose own deviation is 0.004
    assert (values**4).mean() == pytest.approx(1.8 * variance**2, rel=0.03)  # 3 for a Gaussian


@pytest.mark.parametrize(
    ("fill", "options", "variance"),
    [
        (init.kaiming_normal_, {}, 2 / D_IN),
        (init.kaiming_normal_, {"mode": "fan_out"}, 2 / D_OUT),
        (init.kaiming_normal_, {"a": 1.0}, 1 / D_IN),
        (init.kaiming_normal_, {"nonlinearity": "sigmoid"}, 1 / D_IN),
        (init.xavier_normal_, {}, 2 / (D_IN + D_OUT)),
        (init.xavier_normal_, {"gain": 0.5}, 0.5 / (D_IN + D_OUT)),
        (init.normal_, {}, 1.0),
        (init.normal_, {"std": 0.1}, 0.01),
    ],
)
def test_normal_weights(rng, fill, options, variance):
    values = drawn(fill, rng, **options)
    assert abs(values.mean()) < 4 * math.sqrt(variance / values.size)  # a draw of a fixed seed
    assert values.var() == pytest.approx(variance, rel=0.03)  # whose own deviation is 0.006
    assert (values**4).mean() == pytest.approx(3 * variance**2, rel=0.1)  # 1.8 for a uniform one


def test_constant_weights():
    tensor = minigrad.ones((2, 3), requires_grad=True)
    assert init.zeros_(tensor) is tensor
    assert (tensor.data == 0).all()
    assert (init.ones_(tensor).data == 1).all()
    assert (init.constant_(tensor, 0.5).data == 0.5).all()


def test_weights_around_another_mean(rng):
    uniform = drawn(init.uniform_, rng, a=2.0, b=4.0)
    assert uniform.min() >= 2
    assert uniform.max() <= 4
    assert uniform.mean() == pytest.approx(3, rel=0.01)  # whose own deviation is 0.0008
    normal = drawn(init.normal_, rng, mean=-5.0, std=2.0)
    assert normal.mean() == pytest.approx(-5, rel=0.01)  # whose own deviation is 0.0016


def test_an_unknown_fan_is_an_error():
    for fill in (init.kaiming_uniform_, init.kaiming_normal_):
        with pytest.raises(ValueError, match="'fan_in' or 'fan_out', not 'fan_mean'"):
            fill(minigrad.zeros((2, 3)), mode="fan_mean")


def test_weights_are_written_into_the_memory_that_is_there(rng):
    layer = Linear(3, 4)
    data = layer.weight.data
    init.xavier_normal_(layer.weight, rng=rng)
    assert layer.weight.data is data


def test_gains():
    assert init.calculate_gain("relu") == math.sqrt(2)
    assert init.calculate_gain("tanh") == 5 / 3
    assert init.calculate_gain("linear") == init.calculate_gain("sigmoid") == 1
    assert init.calculate_gain("leaky_relu", 2.0) == math.sqrt(2 / 5)
    slope = nn.LeakyReLU().negative_slope
    assert init.calculate_gain("leaky_relu") == math.sqrt(2 / (1 + slope**2))
    assert init.calculate_gain("selu") == 3 / 4
    with pytest.raises(ValueError, match=r"'selu', not 'swish'"):
        init.calculate_gain("swish")


@pytest.mark.parametrize("shape", [(3,), (2, 0, 4), (0, 3)])
@pytest.mark.parametrize(
    "fill",
    [init.kaiming_uniform_, init.kaiming_normal_, init.xavier_uniform_, init.xavier_normal_],
)
def test_only_matrices_and_filters_have_a_fan(fill, shape):
    with pytest.raises(ValueError, match=r"\(d_out, d_in\)"):
        fill(minigrad.zeros(shape))


def test_truncated_normal_weights_have_the_moments_of_the_formula(rng):
    a, b = -1.0, 2.5  # in standard deviations
    values = (drawn(init.trunc_normal_, rng, mean=3.0, std=2.0, a=1.0, b=8.0) - 3) / 2
    assert a <= values.min() < a + 0.001  # the extremes of 60,000 draws
    assert b - 0.01 < values.max() <= b
    density = [math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in (a, b)]
    share = (math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2))) / 2
    mean = (density[0] - density[1]) / share
    variance = 1 + (a * density[0] - b * density[1]) / share - mean**2
    assert values.mean() == pytest.approx(mean, abs=0.01)  # whose own deviation is 0.003
    assert values.var() == pytest.approx(variance, rel=0.02)  # whose own deviation is 0.006


def test_truncated_normal_weights_are_within_two_by_default(rng):
    values = drawn(init.trunc_normal_, rng)
    assert -2 <= values.min() < -1.99
    assert 1.99 < values.max() <= 2
    assert values.std() == pytest.approx(0.8796, rel=0.01)  # of the distribution


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"a": 4.0, "b": 5.0}, r"the share 3e-05 is in \[4.0, 5.0\]; move the bounds"),
        ({"a": 1.0, "b": -1.0}, "the share -0.7"),
        ({"std": 0.0}, "std must be positive, not 0.0"),
        ({"mean": math.nan}, "mean must be in"),
    ],
)
def test_a_truncated_normal_with_next_to_nothing_between_its_bounds_is_an_error(options, message):
    tensor = minigrad.ones((2, 3))
    with pytest.raises(ValueError, match=message):
        init.trunc_normal_(tensor, **options)
    assert (tensor.data == 1).all()


@pytest.mark.parametrize("gain", [1.0, 1.5, -2.0])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (1, 3)])
def test_orthogonal_weights_are_orthogonal(rng, shape, gain):
    w = init.orthogonal_(minigrad.zeros(shape, dtype=np.float64), gain, rng=rng).data
    gram = w @ w.T if shape[0] <= shape[1] else w.T @ w
    np.testing.assert_allclose(gram, gain**2 * np.eye(min(shape)), atol=1e-13)


@pytest.mark.full
def test_orthogonal_weights_favour_no_direction():
    """Each element has mean 0 and variance 1 / n; without the signs of R they have not."""
    rng = np.random.default_rng(0)
    draws = [init.orthogonal_(minigrad.zeros((3, 3)), rng=rng).data for _ in range(3000)]
    mean, square = np.mean(draws, axis=0), np.mean(np.square(draws), axis=0)
    assert abs(mean).max() < 4 / math.sqrt(3 * 3000)
    assert abs(square - 1 / 3).max() < 0.03  # whose own deviation is 0.005


@pytest.mark.parametrize(("sparsity", "zeros"), [(0.0, 0), (0.1, 20), (0.333, 67), (1.0, 200)])
def test_sparse_weights_have_their_zeros_in_each_column(rng, sparsity, zeros):
    values = drawn(init.sparse_, rng, sparsity=sparsity, std=0.5)
    empty = values == 0
    assert (empty.sum(axis=0) == zeros).all()
    if 0 < sparsity < 1:  # they are elsewhere in each column, and anywhere
        assert len({column.tobytes() for column in empty.T}) == D_IN
        assert empty.any(axis=1).all()
    if sparsity < 1:
        assert values[~empty].std() == pytest.approx(0.5, rel=0.03)  # of 39,900 draws at least


def test_a_sparsity_is_a_share():
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\], not 1\.5"):
        init.sparse_(minigrad.zeros((2, 3)), 1.5)
    for std in (-1.0, math.nan):
        with pytest.raises(ValueError, match=rf"^sparse_: std must be in \[0, inf\), not {std}"):
            init.sparse_(minigrad.zeros((2, 3)), 0.5, std)


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (3, 2)])
def test_eye(shape):
    tensor = minigrad.ones(shape, requires_grad=True)
    assert init.eye_(tensor) is tensor
    assert np.array_equal(tensor.data, np.eye(*shape))


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
@pytest.mark.parametrize(
    "fill", [init.eye_, init.orthogonal_, lambda tensor: init.sparse_(tensor, 0.5)]
)
def test_what_fills_matrices_refuses_others(fill, shape):
    with pytest.raises(ValueError, match=r"fills matrices \(d_out, d_in\)"):
        fill(minigrad.zeros(shape))


def test_random_values_fill_floats_only():
    integers = minigrad.zeros(3, 4, dtype="int64")
    for fill in (init.normal_, init.uniform_, init.xavier_uniform_, init.orthogonal_):
        with pytest.raises(TypeError, match=r"^\w+_: draws floats, .* int64 is not of floats"):
            fill(integers)
    assert init.ones_(integers).sum() == 12


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (
            lambda tensor: init.normal_(tensor, std=-1),
            r"^normal_: std must be in \[0, inf\), not -1",
        ),
        (
            lambda x: init.uniform_(x, 2, 1),
            "^uniform_: a must be at most b, .* a=2 and b=1",
        ),
    ],
)
def test_impossible_distributions_are_refused(fill, message):
    with pytest.raises(ValueError, match=message):
        fill(minigrad.zeros(2))


@pytest.mark.parametrize(
    "fill",
    [
        init.ones_,
        init.normal_,
        init.kaiming_uniform_,
        init.kaiming_normal_,
        init.xavier_uniform_,
        init.xavier_normal_,
        init.orthogonal_,
    ],
)
def test_an_array_is_no_tensor_to_fill(fill):
    with pytest.raises(TypeError, match=rf"^{fill.__name__}: fills a Tensor, not array"):
        fill(np.zeros(2))


# Weights that will be loaded


def layers(**options):
    return (
        nn.Linear(4, 3, **options),
        nn.Embedding(5, 4, padding_idx=1, **options),
        nn.MLP([4, 5, 2], **options),
        nn.GatedMLP(4, 6, bias=True, **options),
        nn.TransformerBlock(4, 2, norm="layer", **options),
        nn.TransformerBlock(4, 2, norm="rms", **options),
    )


def test_skipped_layers_draw_nothing_and_have_the_parameters_of_others(rng):
    before = rng.bit_generator.state
    with init.skipped():
        made = layers(rng=rng)
    assert rng.bit_generator.state == before
    for one, other in zip(made, layers(rng=rng), strict=True):
        one.load_state_dict(other.state_dict())
        pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
        for (name, p), (its_name, q) in pairs:
            assert name == its_name
            assert type(p) is nn.Parameter
            assert p.requires_grad
            assert np.array_equal(p.data, q.data)


@pytest.mark.skipif(not STATM.exists(), reason="only Linux says how much memory is touched")
def test_the_memory_of_skipped_layers_is_not_touched():
    def touched():
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    heap.prepare_heap()  # puts it on huge pages, as the first kernel does
    before = touched()
    with init.skipped():
        made = nn.Linear(8000, 8000), nn.Embedding(8000, 8000, 3), nn.RMSNorm(60_000_000)
        small = [nn.Linear(600, 600) for _ in range(400)]  # which would be on the heap
    assert touched() - before < 50e6  # of 1,330e6 bytes; a huge page in each block is touched
    assert made
    assert small


def test_skipped_layers_share_no_memory(rng):
    with init.skipped():
        one, two, third = (nn.Linear(200, 200, bias=False) for _ in range(3))
    weights = [layer.weight.data for layer in (one, two, third)]
    for weight in weights:
        assert weight.ctypes.data % 64 == 0
        weight[...] = rng.standard_normal((200, 200))
    expected = [weight.copy() for weight in weights]
    y = two(one(minigrad.ones((1, 200))))
    third.weight.copy_(minigrad.zeros((200, 200)))
    y.sum().backward()  # which saved the weight of `two`, so a write to that would be an error
    for weight, before in zip(weights[:2], expected, strict=False):
        assert np.array_equal(weight, before)
    np.testing.assert_allclose(one.weight.grad.data[:, 0], expected[1].sum(0), rtol=1e-4)
    two.weight.copy_(minigrad.zeros((200, 200)))
    assert not weights[1].any()


def test_skipping_ends_with_the_block_and_concerns_one_thread_only():
    def draws(found):
        found.append(init.ones_(minigrad.zeros(2)).tolist() == [1, 1])

    found = []
    with contextlib.suppress(KeyError), init.skipped():
        with init.skipped():
            pass
        draws(found)
        thread = threading.Thread(target=draws, args=(found,))
        thread.start()
        thread.join()
        raise KeyError
    draws(found)
    assert found == [False, True, True]


def test_half_precision_is_uniform_below_its_bound():
    rng = np.random.default_rng(0)
    assert minigrad.rand(100_000, dtype=np.float16, rng=rng).data.max() < 1
    x = minigrad.zeros(100_000, dtype=np.float16)
    assert init.uniform_(x, -2.0, 3.0, rng=rng).data.max() < 3
    assert (init.uniform_(x, 0.1, 0.1, rng=rng).data == np.float16(0.1)).all()


@pytest.mark.parametrize("bounds", [(0.5, 3.9), (0, 2.5)])
def test_integers_are_drawn_between_integers(bounds):
    with pytest.raises(TypeError, match="randint takes integers"):
        minigrad.randint(*bounds, (3,))


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda x: init.uniform_(x, 0, math.inf), "uniform_: b must be in"),
        (lambda x: init.uniform_(x, math.nan, 1), "uniform_: a must be in"),
        (lambda x: init.normal_(x, math.nan), "normal_: mean must be in"),
    ],
)
def test_bounds_and_means_are_finite(fill, message):
    x = minigrad.zeros(3)
    with pytest.raises(ValueError, match=message):
        fill(x)
    assert not x.data.any()
