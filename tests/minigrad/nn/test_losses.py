"""Losses as modules."""

import tracemalloc

import numpy as np
import pytest

import minigrad
from minigrad import nn
from minigrad.kernels.jit import JIT_ENABLED


def cross_entropies(logits, target):
    """-log softmax(logits)[target] by row, with classes last."""
    shifted = logits - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.take_along_axis(logs, target[..., None], -1)[..., 0]


X = np.random.default_rng(3).standard_normal((2, 2, 3))
REDUCTIONS = {"mean": np.mean, "sum": np.sum, "none": lambda x: x}


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_losses_of_numbers(rng, reduction):
    p, y = rng.standard_normal((2, 4, 3))
    reduce = REDUCTIONS[reduction]
    for loss, each in ((nn.MSELoss, (p - y) ** 2), (nn.L1Loss, abs(p - y))):
        out = loss(reduction)(minigrad.tensor(p), minigrad.tensor(y))
        np.testing.assert_allclose(out.data, reduce(each), rtol=1e-13)
        assert np.array_equal(loss(reduction)(minigrad.tensor(p), y).data, out.data)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["mse", "l1", "huber", "binary_cross_entropy_with_logits"])
def test_a_number_or_an_array_without_axes_may_be_beside_a_tensor(name, reduction):
    loss = getattr(minigrad, name)
    numbers = (1.0, np.float32(1), np.array(1, np.float32), 1, np.array(1))
    for i, number in enumerate(numbers):
        for order in (1, -1) if i < 3 else (1,):  # integer predictions give float64

            def of(x, other, order=order):
                return loss(*(x, other)[::order], reduction)

            x = minigrad.tensor(0.25, requires_grad=True)
            expected, found = of(x, minigrad.tensor(1.0)), of(x, number)
            assert (found.item(), found.dtype) == (expected.item(), np.float32)
            slopes = [minigrad.grad(out, x).item() for out in (expected, found)]
            assert slopes[0] == slopes[1]
            moved = minigrad.jvp(lambda v, y=number, of=of: of(v, y), 0.25, 1.0)
            assert moved.tangent.item() == slopes[0]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_losses_of_classes(rng, reduction):
    logits = 10 * rng.standard_normal((6, 4))
    target = rng.integers(0, 4, 6)
    expected = REDUCTIONS[reduction](cross_entropies(logits, target))
    out = nn.CrossEntropyLoss(reduction)(minigrad.tensor(logits), target)
    np.testing.assert_allclose(out.data, expected, rtol=1e-12)


def test_cross_entropy_has_its_classes_on_axis_one(rng):
    logits = rng.standard_normal((2, 4, 3, 5))
    target = rng.integers(0, 4, (2, 3, 5))
    expected = cross_entropies(np.moveaxis(logits, 1, -1), target).mean()
    out = nn.CrossEntropyLoss()(minigrad.tensor(logits), target)
    assert out.item() == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_is_finite_for_logits_that_overflow_an_exponential():
    out = nn.CrossEntropyLoss("none")(minigrad.tensor([[1e4, 0.0], [1e4, 0.0]]), [0, 1])
    assert out.tolist() == [0.0, 1e4]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_of_classes_may_lie_in_any_order_in_memory(rng, dtype):
    logits, target = rng.standard_normal((6, 4)).astype(dtype), rng.integers(0, 4, 6)
    weight = np.arange(1, 9, dtype=dtype)[::-2]
    expected = minigrad.cross_entropy(logits, target, weight=weight.copy())
    assert minigrad.cross_entropy(logits, target, weight=weight) == expected


@pytest.mark.parametrize("loss", [nn.MSELoss, nn.L1Loss, nn.CrossEntropyLoss])
def test_an_unknown_reduction_is_an_error(loss):
    with pytest.raises(ValueError, match="'mean', 'sum' or 'none', not 'average'"):
        loss("average")


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss()])
def test_a_column_is_not_compared_with_a_row(loss):
    with pytest.raises(ValueError, match=r"\(4, 1\).*\(4,\)"):
        loss(minigrad.ones((4, 1)), np.ones(4))


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss()])
def test_a_float64_target_does_not_widen_a_float32_model(loss):
    prediction = minigrad.zeros((2,), requires_grad=True)
    out = loss(prediction, np.ones(2))
    assert out.dtype == np.float32
    out.backward()
    assert prediction.grad.dtype == np.float32


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ([0.0, 1.0], TypeError, "integer classes"),
        ([0, 3], ValueError, r"there are 3 classes"),
        ([-1, 0], ValueError, r"from -1 to 0"),
        ([[0], [1]], ValueError, r"have shape \(2,\), not \(2, 1\)"),
    ],
)
def test_targets_that_are_no_classes_are_errors(target, error, message):
    with pytest.raises(error, match=message):
        nn.CrossEntropyLoss()(minigrad.zeros((2, 3)), target)


@pytest.mark.parametrize("weight", [None, np.ones(3)])
@pytest.mark.parametrize("loss", [minigrad.cross_entropy, minigrad.nll])
def test_a_mean_of_no_losses_is_an_error_that_says_so(loss, weight):
    with pytest.raises(ValueError, match=r"no losses in shape \(0, 2\), so there is no mean"):
        loss(np.zeros((0, 3, 2)), np.zeros((0, 2), int), weight=weight)
    assert loss(np.zeros((0, 3, 2)), np.zeros((0, 2), int), "sum", weight=weight).item() == 0


@pytest.mark.parametrize("loss", [minigrad.cross_entropy, minigrad.nll])
def test_without_classes_there_is_no_target(loss):
    with pytest.raises(ValueError, match="but there are 0 classes"):
        loss(np.zeros((2, 0)), np.full(2, -100), "sum")
    assert loss(np.zeros((0, 0)), np.zeros(0, int), "sum").item() == 0


def test_huber_is_square_near_zero_and_linear_beyond(rng):
    p, y = 3 * rng.standard_normal((2, 4, 5))
    d = abs(p - y)
    for delta in (1.0, 2.5):
        assert (d < delta).any()
        assert (d > delta).any()
        each = np.where(d <= delta, d**2 / 2, delta * (d - delta / 2))
        for reduction, reduce in REDUCTIONS.items():
            out = nn.HuberLoss(reduction, delta)(minigrad.tensor(p), y)
            np.testing.assert_allclose(out.data, reduce(each), rtol=1e-13)
    assert nn.HuberLoss()(minigrad.tensor([3.0]), [0.0]).item() == 2.5


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("pos_weight", [None, 3.0, [1.0, 2.0, 0.5]])
def test_binary_cross_entropy_of_logits(rng, reduction, pos_weight):
    logits = 3 * rng.standard_normal((4, 3))
    target = rng.uniform(size=(4, 3))
    s = 1 / (1 + np.exp(-logits))
    weight = 1.0 if pos_weight is None else np.array(pos_weight)
    each = -weight * target * np.log(s) - (1 - target) * np.log(1 - s)
    loss = nn.BCEWithLogitsLoss(
        reduction, pos_weight=None if pos_weight is None else minigrad.tensor(pos_weight)
    )
    out = loss(minigrad.tensor(logits), target)
    np.testing.assert_allclose(out.data, REDUCTIONS[reduction](each), rtol=1e-12)


CLASS_WEIGHTS = np.array([1.0, 0.5, 2.0, 0.25])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [None, CLASS_WEIGHTS])
def test_classes_with_weights_some_ignored(rng, reduction, weight):
    logits = rng.standard_normal((6, 4))
    target = np.array([0, 3, 7, 2, 7, 1])  # 7 is not a class, and ignored
    counted = target != 7
    factors = (np.ones(4) if weight is None else weight)[target * counted] * counted
    each = factors * cross_entropies(logits, target * counted)
    expected = {"mean": each.sum() / factors.sum(), "sum": each.sum(), "none": each}[reduction]
    x = minigrad.tensor(logits)
    out = nn.CrossEntropyLoss(reduction, weight=weight, ignore_index=7)(x, target)
    np.testing.assert_allclose(out.data, expected, rtol=1e-12)
    out = nn.NLLLoss(reduction, weight=weight, ignore_index=7)(minigrad.log_softmax(x), target)
    np.testing.assert_allclose(out.data, expected, rtol=1e-12)


def test_targets_of_minus_hundred_are_ignored_by_default(rng):
    x = minigrad.tensor(rng.standard_normal((3, 4)))
    for loss in (nn.CrossEntropyLoss, nn.NLLLoss):
        expected = loss()(x[1:], [2, 0]).item()
        assert loss()(x, [-100, 2, 0]).item() == pytest.approx(expected, rel=1e-12)


def test_smoothed_labels_are_probabilities_of_classes(rng):
    logits, target = rng.standard_normal((5, 4)), np.array([0, 3, 1, 1, 2])
    probabilities = np.full((5, 4), 0.1 / 4)
    probabilities[np.arange(5), target] += 0.9
    each = -(probabilities * np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))).sum(1)
    x = minigrad.tensor(logits)
    smoothed = nn.CrossEntropyLoss("none", label_smoothing=0.1)(x, target)
    np.testing.assert_allclose(smoothed.data, each, rtol=1e-12)
    given = nn.CrossEntropyLoss("none")(x, probabilities)
    np.testing.assert_allclose(given.data, each, rtol=1e-12)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (nn.MSELoss(), X[0] + 1),
        (nn.L1Loss(), X[0] + 1),
        (nn.HuberLoss(delta=0.5), X[0] + 1),
        (nn.BCEWithLogitsLoss(pos_weight=np.array([0.5, 2.0, 1.0])), abs(np.sin(X[0]))),
        (nn.CrossEntropyLoss(weight=CLASS_WEIGHTS[:3], label_smoothing=0.2), [0, 2]),
        (nn.CrossEntropyLoss(ignore_index=2), [0, 2]),
        (nn.NLLLoss(weight=CLASS_WEIGHTS[:3]), [0, 2]),
    ],
    ids=repr,
)
def test_losses_have_the_gradient_of_their_values(loss, target):
    minigrad.assert_gradients(lambda x: loss(x, np.array(target)), X[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.HuberLoss(delta=0.0), "HuberLoss: delta must be positive, not 0.0"),
        (lambda: nn.HuberLoss(delta=float("nan")), "delta must be positive"),
        (lambda: nn.CrossEntropyLoss(label_smoothing=1.1), "label_smoothing is a probability"),
        *(
            (lambda loss=loss: loss("average"), "'mean', 'sum' or 'none', not 'average'")
            for loss in (nn.HuberLoss, nn.BCEWithLogitsLoss, nn.NLLLoss)
        ),
    ],
)
def test_losses_that_cannot_be_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_repr_of_losses():
    assert repr(nn.HuberLoss("sum", 2.0)) == "HuberLoss(reduction='sum', delta=2.0)"
    assert repr(nn.BCEWithLogitsLoss()) == "BCEWithLogitsLoss(reduction='mean')"
    assert repr(nn.NLLLoss(ignore_index=0)) == "NLLLoss(reduction='mean', ignore_index=0)"
    assert repr(nn.CrossEntropyLoss(ignore_index=0, label_smoothing=0.1)) == (
        "CrossEntropyLoss(reduction='mean', ignore_index=0, label_smoothing=0.1)"
    )
    assert repr(nn.CrossEntropyLoss("none")) == "CrossEntropyLoss(reduction='none')"


# Logits that are a product


def head(rng, *leading, classes=11, d=7, dtype=np.float64):
    x = rng.standard_normal((*leading, d)).astype(dtype)
    return x, rng.standard_normal((classes, d)).astype(dtype), rng.integers(0, classes, leading)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_frozen_head_gives_what_the_composition_gives(reduction, dtype, rng):
    x, weight, target = head(rng, 3, 50, dtype=dtype)
    target[:, ::3] = -100
    options = {"label_smoothing": 0.1}
    v = rng.standard_normal(target.shape if reduction == "none" else ()).astype(dtype)

    def both(f):
        inputs = minigrad.tensor(x, requires_grad=True)
        out = f(inputs)
        (gradient,) = minigrad.grad(out, [inputs], v)
        return out.data, gradient.data

    expected = both(
        lambda x: minigrad.cross_entropy(
            minigrad.linear(x, weight).reshape(-1, 11), target.reshape(-1), reduction, **options
        ).reshape(*target.shape if reduction == "none" else ())
    )
    for chunk in (1, 16, 1000):
        found = both(
            lambda x, chunk=chunk: minigrad.linear_cross_entropy(
                x, weight, target, reduction, chunk=chunk, **options
            )
        )
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == dtype
            eps = np.finfo(dtype).eps
            np.testing.assert_allclose(one, other, rtol=20 * eps, atol=20 * eps)


def test_a_head_that_trains_gets_its_gradient_and_a_frozen_one_none(rng):
    x, weight, target = head(rng, 4)
    trained, frozen = minigrad.tensor(weight, requires_grad=True), minigrad.tensor(weight)
    x = minigrad.tensor(x, requires_grad=True)
    minigrad.assert_gradients(lambda x, w: minigrad.linear_cross_entropy(x, w, target), x, trained)
    minigrad.linear_cross_entropy(x, frozen, target).backward()
    assert frozen.grad is None
    minigrad.linear_cross_entropy(x.detach(), trained, target).backward()
    assert trained.grad is not None


def test_the_weight_of_a_head_is_a_matrix(rng):
    x, _, target = head(rng, 4)
    with pytest.raises(TypeError, match="linear_cross_entropy: the weight is a matrix, not None"):
        minigrad.linear_cross_entropy(x, None, target)


class Memory(minigrad.Observer):
    """The calls of ops, and which options they had."""

    def __init__(self):
        self.calls = []

    def on_call(self, op, inputs, result):
        self.calls.append((op.name, inputs))


def test_the_gradient_is_computed_only_where_there_will_be_one(rng):
    x, weight, target = head(rng, 4)
    x, trained = minigrad.tensor(x), minigrad.tensor(weight, requires_grad=True)
    with minigrad.observe(Memory()) as seen:
        minigrad.linear_cross_entropy(x, weight, target)
        x.requires_grad = True
        minigrad.linear_cross_entropy(x, weight, target)
        with minigrad.no_grad():
            minigrad.linear_cross_entropy(x, trained, target)
    fused = [inputs[-1] for name, inputs in seen.calls if name == "linear_label_cross_entropy"]
    assert fused == [False, True, False]


@pytest.mark.skipif(not JIT_ENABLED, reason="numpy has intermediate arrays of its own")
def test_no_more_than_a_chunk_of_logits_is_in_memory(rng):
    x, weight, target = head(rng, 512, classes=2000, d=8, dtype=np.float32)
    x = minigrad.tensor(x, requires_grad=True)
    minigrad.linear_cross_entropy(x[:4], weight, target[:4])  # compiles
    tracemalloc.start()
    try:
        minigrad.linear_cross_entropy(x, weight, target, chunk=32).backward()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    logits = 512 * 2000 * 4
    assert peak < logits / 8  # of 32 rows, a sixteenth, and of a strip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": np.zeros(3, int)}, r"targets for x of shape \(4, 7\) have shape \(4,\), not"),
        ({"target": np.full(4, 11)}, "11"),
        ({"target": np.full(4, -100)}, "no target counts"),
        ({"target": np.zeros(4)}, "targets must be integers, not float64"),
        ({"weight": np.zeros((11, 6))}, r"does not fit a weight of shape \(11, 6\)"),
        ({"chunk": 0}, "chunk must be a positive integer, not 0"),
        ({"label_smoothing": 2.0}, "label_smoothing"),
        ({"reduction": "average"}, "reduction"),
    ],
)
def test_a_head_refuses_what_does_not_fit(change, message, rng):
    x, weight, target = head(rng, 4)
    with pytest.raises((TypeError, ValueError), match=message) as error:
        minigrad.linear_cross_entropy(**({"x": x, "weight": weight, "target": target} | change))
    assert str(error.value).startswith("linear_cross_entropy: ")


@pytest.mark.parametrize("index", [None, 0.5, "1", [1], True])
def test_an_impossible_target_to_ignore_is_refused(index):
    z, labels = minigrad.tensor([[1.0, 2.0], [1.0, 2.0]]), [0, 1]
    calls = [
        lambda: minigrad.cross_entropy(z, labels, ignore_index=index),
        lambda: minigrad.cross_entropy(z, minigrad.softmax(z), ignore_index=index),
        lambda: minigrad.nll(minigrad.log_softmax(z), labels, ignore_index=index),
        lambda: minigrad.linear_cross_entropy(z, np.eye(2, dtype="f"), labels, ignore_index=index),
        lambda: nn.CrossEntropyLoss(ignore_index=index),
        lambda: nn.NLLLoss(ignore_index=index),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"ignore_index .* is an integer, not"):
            call()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_single_label_has_the_loss_of_a_batch_of_one(dtype):
    scores, weight = np.array([1, 2, 0.5], dtype), np.array([1, 2, 0.25], dtype)
    one = minigrad.cross_entropy(minigrad.tensor(scores), 2, weight=weight, reduction="sum")
    batch = minigrad.cross_entropy(scores[None], [2], weight=weight, reduction="sum")
    assert one.item() == pytest.approx(batch.item(), rel=1e-6)
