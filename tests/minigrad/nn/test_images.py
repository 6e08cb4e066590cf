"""Layers for images and sequences: pooling, norms of channels, and the buffers of these."""

import copy

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import Trainer, nn, optim
from minigrad.nn import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AvgPool1d,
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    Buffer,
    GroupNorm,
    MaxPool1d,
    MaxPool2d,
)
from minigrad.training.ranks import check_unchanged, digests_of_attributes
from tests.cases import images

BUFFERS = ["running_mean", "running_var", "num_batches_tracked"]
STATE = ["weight", "bias", *BUFFERS]


# ----------------------------------------------------------------------------------------------
# Pooling
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "reference", "options", "looks"),
    [
        (
            MaxPool2d(3, 2, 1, ceil_mode=True),
            images.max_pool(2),
            {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
            "MaxPool2d(kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=True)",
        ),
        (
            MaxPool1d(2, dilation=2),
            images.max_pool(1),
            {"kernel_size": 2, "dilation": 2},
            "MaxPool1d(kernel_size=2, stride=None, padding=0, dilation=2)",
        ),
        (
            AvgPool2d((2, 3), 1, (1, 0), False, False, 5),
            images.avg_pool(2),
            {"kernel_size": (2, 3), "stride": 1, "padding": (1, 0), "divisor_override": 5},
            "AvgPool2d(kernel_size=(2, 3), stride=1, padding=(1, 0), ceil_mode=False, "
            "count_include_pad=False, divisor_override=5)",
        ),
        (
            AvgPool1d(2, padding=1, count_include_pad=False),
            images.avg_pool(1),
            {"kernel_size": 2, "padding": 1, "count_include_pad": False},
            "AvgPool1d(kernel_size=2, stride=None, padding=1, ceil_mode=False, "
            "count_include_pad=False)",
        ),
        (
            AdaptiveAvgPool2d((2, None)),
            images.adaptive_avg_pool(2),
            {"output_size": (2, None)},
            "AdaptiveAvgPool2d(output_size=(2, None))",
        ),
        (
            AdaptiveAvgPool1d(3),
            images.adaptive_avg_pool(1),
            {"output_size": 3},
            "AdaptiveAvgPool1d(output_size=3)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pooling_layers_take_their_options(layer, reference, options, looks, rng):
    x = rng.standard_normal((2, 3, 7, 8) if "2d" in looks else (2, 3, 7))
    assert_allclose(layer(minigrad.Tensor(x)).data, reference(x, **options), rtol=1e-13)
    assert repr(layer) == looks


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MaxPool2d(0), ValueError, "kernel_size must be a positive integer, not 0"),
        (lambda: MaxPool2d(2, 2**63), ValueError, r"stride must be below 2\*\*31, not 9223372"),
        (lambda: MaxPool1d((2, 2)), ValueError, "kernel_size is one number, not"),
        (lambda: AvgPool2d(2, (1, 0)), ValueError, "stride must be a positive integer, not 0"),
        (lambda: AvgPool1d(2, padding=2), ValueError, "padding = 2 is more than half a window"),
        (lambda: MaxPool2d(2, padding=3), ValueError, "padding = 3 is more than half a window"),
        (lambda: MaxPool2d(2, dilation=-1), ValueError, "dilation must be a positive integer"),
        (lambda: MaxPool1d(2, ceil_mode=1), TypeError, "ceil_mode must be True or False, not 1"),
        (
            lambda: AvgPool2d(2, 1, 0, False, 1),
            TypeError,
            "count_include_pad must be True or False",
        ),
        (
            lambda: AvgPool2d(2, divisor_override=0),
            ValueError,
            "divisor_override must be an integer",
        ),
        (lambda: AdaptiveAvgPool2d(-1), ValueError, "output_size must be an integer of at least 0"),
        (lambda: AdaptiveAvgPool1d((2, None)), ValueError, "output_size is one number, not"),
    ],
)
def test_options_of_pooling_are_checked_when_a_layer_is_made(make, error, message):
    with pytest.raises(error, match=rf"^\w+Pool[12]d: {message}"):
        make()


# ----------------------------------------------------------------------------------------------
# Batch norm
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [(BatchNorm1d, (6, 3)), (BatchNorm1d, (2, 3, 5)), (BatchNorm2d, (2, 3, 4, 5))],
)
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_batch_norm_follows_its_batches(layer, shape, momentum, dtype, rng):
    norm, axes = layer(3, momentum=momentum, dtype=dtype), (0, *range(2, len(shape)))
    norm.weight.data[...] = rng.standard_normal(3)
    norm.bias.data[...] = rng.standard_normal(3)
    mean, var = np.zeros(3), np.ones(3)
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    for step in range(1, 5):
        x = rng.normal(step, 2, shape).astype(dtype)
        expected = images.batch_norm(x, None, None, norm.weight.data, norm.bias.data, True)
        out = norm(minigrad.Tensor(x))
        assert out.dtype == dtype
        assert_allclose(out.data, expected, rtol=tolerance, atol=tolerance)
        share = 1 / step if momentum is None else momentum
        mean = (1 - share) * mean + share * x.mean(axes, np.float64)
        var = (1 - share) * var + share * x.var(axes, np.float64, ddof=1)
    assert_allclose(norm.running_mean.data, mean, rtol=tolerance)
    assert_allclose(norm.running_var.data, var, rtol=tolerance)
    assert norm.num_batches_tracked.item() == 4
    before = norm.state_dict()
    expected = images.batch_norm(x, mean, var, norm.weight.data, norm.bias.data)
    assert_allclose(norm.eval()(minigrad.Tensor(x)).data, expected, rtol=tolerance, atol=tolerance)
    for name, value in norm.state_dict().items():
        assert_array_equal(value, before[name])


def test_without_running_moments_evaluation_is_as_training(rng):
    norm = BatchNorm2d(2, affine=False, track_running_stats=False, dtype=np.float64)
    assert norm.state_dict() == {}
    x = rng.standard_normal((3, 2, 2, 2))
    expected = images.batch_norm(x, None, None, training=True)
    for layer in (norm, norm.eval()):
        assert_allclose(layer(minigrad.Tensor(x)).data, expected, rtol=1e-12)
    looks = "BatchNorm2d(2, eps=1e-05, momentum=0.1, affine=False, track_running_stats=False)"
    assert repr(norm) == looks


def test_one_batch_of_evaluation_keeps_its_gradient_while_training_goes_on(rng):
    norm, x = BatchNorm1d(2, dtype=np.float64), minigrad.Tensor(rng.standard_normal((4, 2)))
    x.requires_grad_()
    out = norm.eval()(x)
    norm.train()(x)
    out.sum().backward()
    assert_allclose(x.grad.data, 1 / np.sqrt(1 + 1e-5), rtol=1e-12)


@pytest.mark.parametrize("affine", [True, False])
def test_gradients_of_norms_in_training_and_evaluation(affine, rng):
    x = rng.standard_normal((3, 4, 2))
    norm = BatchNorm1d(4, affine=affine, dtype=np.float64)
    group = GroupNorm(2, 4, affine=affine, dtype=np.float64)
    before = copy.deepcopy(norm.state_dict())
    for layer in (norm, copy.deepcopy(norm).eval(), group):
        minigrad.assert_gradients(layer, x, order=1)
    for name, value in norm.state_dict().items():  # the check works with copies
        assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BatchNorm1d(0), "num_features must be a positive integer, not 0"),
        (lambda: BatchNorm2d(3, -1.0), r"BatchNorm2d: eps must be in \[0, inf\)"),
        (lambda: BatchNorm2d(3, momentum=2), "momentum must be in"),
        (lambda: GroupNorm(0, 3), "num_groups must be a positive integer"),
        (lambda: GroupNorm(2, 3), "2 groups do not divide 3 channels"),
        (lambda: BatchNorm1d(3)(minigrad.ones((1, 3))), "at least 2 elements in each channel"),
        (
            lambda: BatchNorm1d(3, track_running_stats=False).eval()(minigrad.ones((1, 3))),
            "a larger batch, or eval.* of a layer with running moments",
        ),
        (
            lambda: BatchNorm2d(3)(minigrad.ones((0, 3, 2, 2))),
            "at least 2 elements in each channel",
        ),
        (
            lambda: BatchNorm1d(3)(minigrad.ones((2, 4))),
            r"BatchNorm1d takes \(N, C\) or \(N, C, L\) with C = 3, not shape \(2, 4\)",
        ),
        (
            lambda: BatchNorm1d(3, affine=False, track_running_stats=False)(minigrad.ones((2, 4))),
            r"with C = 3, not shape \(2, 4\)",
        ),
        (lambda: BatchNorm1d(3)(minigrad.ones((2, 3, 2, 2))), r"not shape \(2, 3, 2, 2\)"),
        (
            lambda: BatchNorm2d(3)(minigrad.ones((2, 3, 2))),
            r"BatchNorm2d takes \(N, C, H, W\) with C = 3, not shape \(2, 3, 2\)",
        ),
        (
            lambda: GroupNorm(1, 3)(minigrad.ones((2, 4))),
            r"GroupNorm takes \(N, C, ...\) with C = 3, not shape \(2, 4\)",
        ),
    ],
)
def test_norms_of_channels_that_cannot_be_made_or_called(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: BatchNorm1d(3, affine="no"), "BatchNorm1d: affine"),
        (lambda: BatchNorm2d(3, track_running_stats=1), "BatchNorm2d: track_running_stats"),
        (lambda: GroupNorm(1, 3, affine=None), "GroupNorm: affine"),
        (lambda: nn.LayerNorm(3, 1e-5, "no"), "LayerNorm: elementwise_affine"),
        (lambda: nn.LayerNorm(3, bias=np.float32), "LayerNorm: bias"),
        (lambda: nn.RMSNorm(3, None, 0), "RMSNorm: elementwise_affine"),
    ],
)
def test_flags_of_norms_are_true_or_false(make, name):
    with pytest.raises(TypeError, match=f"{name} must be True or False"):
        make()


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_read_only_moments_are_refused_before_either_is_changed(name):
    moments = {"running_mean": np.zeros(2), "running_var": np.ones(2)}
    moments[name].flags.writeable = False
    with pytest.raises(ValueError, match=f"batch_norm: {name} is read-only"):
        minigrad.batch_norm(np.array([[1.0, 2.0], [3.0, 4.0]]), **moments, training=True)
    assert_array_equal([*moments.values()], [[0, 0], [1, 1]])


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_batch_that_is_refused_changes_no_buffer(momentum):
    norm = BatchNorm1d(3, momentum=momentum)
    with pytest.raises(ValueError, match="at least 2 elements"):
        norm(minigrad.ones((1, 3)))
    assert norm.running_mean.tolist() == [0, 0, 0]
    assert norm.num_batches_tracked.item() == 0


# ----------------------------------------------------------------------------------------------
# Buffers
# ----------------------------------------------------------------------------------------------


def network():
    return nn.Sequential(nn.Linear(4, 6), BatchNorm1d(6), minigrad.relu, nn.Linear(6, 1))


def test_buffers_belong_to_the_state_and_are_no_parameters():
    model = network()
    assert list(model[1].state_dict()) == STATE
    assert [name for name, _ in model.named_buffers()] == [f"1.{name}" for name in BUFFERS]
    assert [name for name, _ in model[1].named_parameters()] == ["weight", "bias"]
    assert len(list(model.buffers())) == 3
    model.freeze(False)
    assert not any(buffer.requires_grad for buffer in model.buffers())
    model.astype(np.float64)
    assert [str(buffer.dtype) for buffer in model.buffers()] == ["float64", "float64", "int64"]


def test_the_state_of_buffers_is_copied_saved_and_loaded(rng):
    model = network()
    model(minigrad.Tensor(rng.standard_normal((5, 4)).astype(np.float32)))
    twin, other = copy.deepcopy(model), network()
    other.load_state_dict(model.state_dict())
    for found in (twin, other):
        assert all(isinstance(buffer, Buffer) for buffer in found.buffers())
        for name, value in model.state_dict().items():
            assert_array_equal(found.state_dict()[name], value)
    state = model.state_dict()
    del state["1.running_mean"]
    with pytest.raises(ValueError, match=r"missing: 1\.running_mean"):
        model.load_state_dict(state)


def batches(rng, count):
    return [
        tuple(minigrad.Tensor(rng.standard_normal((8, n)).astype(np.float32)) for n in (4, 1))
        for _ in range(count)
    ]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_captured_step_moves_the_running_moments_as_the_step_does(momentum, rng):
    data = batches(rng, 12)

    def train(wrap):
        minigrad.manual_seed(0)
        model = network()
        model[1].momentum = momentum
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        @wrap
        def step(x, y):
            optimizer.zero_grad()
            loss = minigrad.mse(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        losses = [step(x, y).item() for x, y in data]
        return losses, model.state_dict()

    (losses, state), (captured, captured_state) = train(lambda f: f), train(minigrad.capture)
    assert captured == losses
    assert state["1.num_batches_tracked"] == 12
    for name, value in state.items():
        assert_array_equal(captured_state[name], value)


@pytest.mark.parametrize("save_frozen", [True, False])
def test_a_checkpoint_has_the_running_moments(save_frozen, tmp_path, rng):
    x, y = (rng.standard_normal((16, n)).astype(np.float32) for n in (4, 1))

    def trainer():
        model = network()
        model[0].freeze()
        optimizer = optim.SGD(model.trainable_parameters(), lr=0.1)
        options = {"save_frozen": save_frozen, "progress": False, "batch_size": 8}
        return Trainer(model, optimizer, minigrad.mse, **options)

    first, second = trainer(), trainer()
    first.fit((x, y), epochs=2)
    first.save(tmp_path / "run.safetensors")
    second.load(tmp_path / "run.safetensors")
    for name, buffer in first.model.named_buffers():
        assert_array_equal(dict(second.model.named_buffers())[name].data, buffer.data)
    assert second.model[1].num_batches_tracked.item() == 4


def test_ranks_notice_that_running_moments_would_differ(rng):
    model = network()
    before = digests_of_attributes(model)
    model(batches(rng, 1)[0][0])
    with pytest.raises(ValueError, match=r"changes 1\.running_mean, 1\.running_var"):
        check_unchanged(model, before)
