"""Nothing that an op gets in a training step comes from nowhere.

A recorder writes a step down as a program: calls of ops, and of the functions that the library
announces. What the library computed in another way would be a constant in that program, silently.
So each array that reaches an op must be known, and steps with other values must be equal to the
last number, but for results of announced functions.
"""

from functools import partial
from itertools import product

import numpy as np
import pytest

import lora
import minigrad
import minigrad.nn as nn
from lora.text.architecture import ModelConfig
from lora.text.model import LanguageModel
from minigrad import Observer, Tensor, observe, optim
from minigrad.functional.losses import label_cross_entropy
from minigrad.readonly import owner_of
from tests.lora.models import one_layer


class Program(Observer):
    """Writes down a step, and checks that each array is one that the program has.

    Attributes:
        lines: the calls, each with its operands: "known" for an array or number of the program.
    """

    def __init__(self, arrays=(), parameters=()):
        self.lines = []
        self._known = {}  # by id, and so kept alive
        self._frozen = {id(owner_of(p._data)) for p in parameters}
        self._depth = 0  # of announced functions, which may call ops and one another
        self._passes = 0  # of backward passes, in which VJPs call ops
        self._know([*arrays, *parameters])

    def _know(self, value):
        if isinstance(value, (list, tuple)):
            for each in value:
                self._know(each)
        elif isinstance(value, Tensor):
            self._know(value._data)
        elif isinstance(value, (np.ndarray, np.generic, float)):
            self._known[id(value)] = value

    def _operand(self, line, value):
        if isinstance(value, (list, tuple)):
            return [self._operand(line, each) for each in value]
        value = value._data if isinstance(value, Tensor) else value
        if id(value) in self._known:
            return "known"
        if isinstance(value, np.ndarray):
            assert id(owner_of(value)) in self._frozen, f"{line} gets an array from nowhere"
            return "known"
        plain = isinstance(value, (int, float, str, slice, np.dtype, type, type(None), np.generic))
        return repr(value) if plain else type(value).__name__

    def _write(self, name, operands, result):
        self.lines.append((name, self._operand(name, list(operands))))
        self._know(result)

    def on_call(self, op, inputs, result):
        if self._depth or self._passes:
            return
        try:
            self._write(op.name, inputs, result)
        except AssertionError:
            # A forward calls ops on arrays that it makes. Their results stay unknown, so it is an
            # error all the same if another call gets one.
            if isinstance(result, Tensor):
                raise

    def on_function(self, function, arguments, begins, result):
        self._depth += 1 if begins else -1
        if not self._depth:
            assert function.__name__.isidentifier()
            assert isinstance(result, _RESULTS)
            assert not isinstance(result, bool)
            self._write(function.__name__, arguments, result)

    def on_random(self, generator):
        assert self._depth, "random numbers are drawn outside of an announced function"

    def on_pass(self, begins):
        self._passes += 1 if begins else -1

    def on_backward(self, output, gradient):
        self._know(gradient)

    def on_gradient(self, node, parent, gradient):
        self._know(gradient)

    def on_arrival(self, node, gradient, before):
        self._know([gradient, before])


_RESULTS = (np.ndarray, np.generic, float, tuple, list, type(None))


def program_of(step, arrays, parameters=()):
    """Write down a step; arrays are its arguments."""
    program = Program(arrays, parameters)
    with observe(program):
        step(*arrays)
    return program.lines


def check(make):
    """Check that a step is the same program for two sets of values.

    `make(variant)` returns the step, its arguments and, if there are some, the parameters.
    """
    programs = [program_of(*make(variant)) for variant in (0, 1)]
    assert programs[0] == programs[1]
    assert programs[0]


def logits_of(variant, *shape, dtype=np.float32):
    return Tensor(
        np.random.default_rng(variant).standard_normal(shape).astype(dtype), requires_grad=True
    )


# --------------------------------------------------------------------------------------------------
# Losses
# --------------------------------------------------------------------------------------------------

REDUCTIONS = ["mean", "sum", "none"]

SHAPES = {"rows": (6, 5), "vector": (5,), "image": (2, 5, 3)}


def labels_of(variant, shape, dtype):
    """Labels, of which some are ignored in the second variant only."""
    sizes = shape[:1] + shape[2:] if len(shape) > 1 else ()
    labels = np.random.default_rng(variant).integers(0, 5, sizes).astype(dtype)
    if variant and labels.ndim:
        labels.flat[0] = -100
    return labels


LABEL_LOSSES = {
    "cross_entropy": minigrad.cross_entropy,
    "cross_entropy, smoothed": partial(minigrad.cross_entropy, label_smoothing=0.1),
    "nll": minigrad.nll,
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_losses_of_labels(reduction, shape):
    def makes(loss, weighted, dtype, as_tensor):
        def make(variant):
            logits, labels = logits_of(variant, *shape), labels_of(variant, shape, dtype)
            weight = 0.5 + np.random.default_rng(variant).random(5)  # float64, to be cast
            labels = Tensor(labels) if as_tensor else labels

            def step(logits, labels, weight):
                LABEL_LOSSES[loss](logits, labels, reduction, weight=weight if weighted else None)

            return step, (logits, labels, weight)

        return make

    problems = {}
    for row in product(LABEL_LOSSES, (False, True), (np.int64, np.int32), (False, True)):
        try:
            check(makes(*row))
        except AssertionError as error:
            problems[row] = str(error)
    assert problems == {}


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy_of_probabilities(reduction, weighted, smoothing, as_tensor):
    def make(variant):
        target = np.random.default_rng(variant).random((6, 5))  # float64, to be cast
        weight = np.random.default_rng(variant).random(5)

        def step(logits, target, weight):
            minigrad.cross_entropy(
                logits,
                target,
                reduction,
                weight=weight if weighted else None,
                label_smoothing=smoothing,
            )

        return step, (logits_of(variant, 6, 5), Tensor(target) if as_tensor else target, weight)

    check(make)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_linear_cross_entropy(reduction, trained):
    def make(variant):
        x, labels = logits_of(variant, 2, 3, 4), labels_of(variant, (2, 5, 3), np.int64)
        weight = Tensor(np.ones((5, 4), np.float32), requires_grad=trained)
        return lambda *given: minigrad.linear_cross_entropy(*given, reduction), (x, weight, labels)

    check(make)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_what_a_derivative_of_higher_order_runs(smoothing):
    def make(variant):
        labels = labels_of(0, SHAPES["rows"], np.int64)
        weights = np.where(np.arange(6) == variant, 0, 1).astype(np.float32)

        def step(logits, labels, weights):
            label_cross_entropy.composition(logits, labels, weights, smoothing, 2.0)

        return step, (logits_of(variant, 6, 5), labels, weights)

    check(make)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_losses_of_floats(reduction):
    losses = minigrad.mse, minigrad.l1, minigrad.huber, minigrad.binary_cross_entropy_with_logits
    for loss in losses:

        def make(variant, loss=loss):
            rng = np.random.default_rng(variant)
            given = logits_of(variant, 4, 3), rng.random((4, 3))  # a target in float64, to be cast
            if loss is not minigrad.binary_cross_entropy_with_logits:
                return lambda x, t: loss(x, t, reduction), given
            return lambda x, t, w: loss(x, t, reduction, pos_weight=w), (*given, rng.random(3))

        check(make)


# --------------------------------------------------------------------------------------------------
# Attention, and other functions of neural networks
# --------------------------------------------------------------------------------------------------


def mask_of(kind, variant):
    """A mask which, in the second variant only, allows nothing to a query, or has no -inf."""
    mask = np.random.default_rng(variant).random((5, 5)) < 0.5
    mask[:, 0] = True
    if kind == "booleans":
        mask[2] = mask[2] & (variant == 0)
        return mask
    return np.where(mask, 0.5, -np.inf if variant else -1.0)


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", ["none", "causal", "booleans", "floats", "trained"])
def test_attention(kind, dtype, dropout_p):
    def make(variant):
        q, k, v = (logits_of(variant + i, 2, 5, 4, dtype=dtype) for i in (0, 10, 20))
        mask = mask_of(kind, variant) if kind in ("booleans", "floats", "trained") else None
        mask = Tensor(mask, requires_grad=True) if kind == "trained" else mask

        def step(q, k, v, *mask):
            minigrad.scaled_dot_product_attention(
                q, k, v, *mask, dropout_p=dropout_p, is_causal=kind == "causal"
            )

        return step, (q, k, v) if mask is None else (q, k, v, mask)

    check(make)


@pytest.mark.parametrize("kind", ["booleans", "floats"])
def test_attention_with_a_mask_that_is_causal_too(kind):
    layer = nn.MultiHeadAttention(4, 2, dropout=0.1)

    def make(variant):
        given = [logits_of(variant, 2, 5, 4)] * 3 + [mask_of(kind, 0)]
        return partial(layer, is_causal=True), given, layer.parameters()

    check(make)


@pytest.mark.parametrize("padding_idx", [None, 2, -1])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_embedding(padding_idx, as_tensor):
    layer = nn.Embedding(7, 3, padding_idx)

    def make(variant):
        ids = np.random.default_rng(variant).integers(0, 7, (2, 4))
        return layer, (Tensor(ids) if as_tensor else ids,), list(layer.parameters())

    check(make)


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_dropout(p):
    check(lambda variant: (lambda x: minigrad.dropout(x, p), (logits_of(variant, 4, 3),)))


INDEXED = {
    "take_along_axis": lambda x, order: minigrad.take_along_axis(x, order),
    "take_along_no_axis": lambda x, order: minigrad.take_along_axis(
        x, minigrad.reshape(order, -1), None
    ),
    "sort": lambda x, _: minigrad.sort(x),
    "sort_downwards": lambda x, _: minigrad.sort(x, 0, descending=True),
    "topk": lambda x, _: minigrad.topk(x, 2),
    "one_hot": lambda x, order: minigrad.one_hot(order) * x[..., None],
    "repeat": lambda x, _: minigrad.repeat(x, [1, 2, 0], 1),
    "pad": lambda x, _: minigrad.pad(x, 1, constant_values=2.0),
    "reflect": lambda x, _: minigrad.pad(x, 1, "reflect"),
    "tril": lambda x, _: minigrad.tril(x) + minigrad.triu(x),
    "diagonal": lambda x, _: minigrad.diagonal(x, 1),
    "trace": lambda x, _: minigrad.trace(x),
    "diag": lambda x, _: minigrad.diag(x[0], -1),
    "norm": lambda x, _: minigrad.norm(x, 3, 0),
    "std": lambda x, _: minigrad.std(x, 0),
    "einsum": lambda x, _: minigrad.einsum("ii,ij,jk->k", x[:3], x[:3], x[:3]),
    "stack": lambda x, _: minigrad.stack([x, x]),
    "tile": lambda x, _: minigrad.tile(x, 2),
}


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("call", INDEXED.values(), ids=INDEXED)
def test_indices_shapes_and_statistics(call, as_tensor):
    def make(variant):
        order = np.argsort(np.random.default_rng(variant).random((4, 3)))

        def step(x, order):
            out = call(x, order)
            minigrad.exp(out.values if isinstance(out, minigrad.ValuesAndIndices) else out)

        return step, (logits_of(variant, 4, 3), Tensor(order) if as_tensor else order)

    check(make)


def test_a_composition_of_arrays_is_one_function():
    """Its operators are numpy's, which no observer sees."""

    def make(variant):
        x = np.random.default_rng(variant).random((4, 3))

        def step(x, label):
            return minigrad.mse(minigrad.var(x, 0), minigrad.one_hot(label, num_classes=3))

        return step, (x, np.array(variant))

    program = program_of(*make(0))
    assert [name for name, _ in program] == ["call_on_arrays"] * 3
    check(make)


@pytest.mark.parametrize(
    ("check", "step"),
    [
        ("check_below", nn.Embedding(7, 3)),
        ("check_not_negative", lambda x: minigrad.cross_entropy(Tensor(x), Tensor(x) ** 2)),
        ("check_from_0_to_1", lambda x: minigrad.binary_cross_entropy_with_logits(Tensor(x), x)),
    ],
)
def test_checks_of_values_are_announced(check, step):
    x = np.array([0, 1], np.int64 if check == "check_below" else np.float32)
    parameters = step.parameters() if isinstance(step, nn.Module) else ()
    assert check in [name for name, _ in program_of(step, [x], parameters)]


def test_new_tensors():
    def make(variant):
        rng = np.random.default_rng(variant)
        x = logits_of(variant, 3, 3)
        whole = rng.integers(0, 9, (3, 3)).astype(np.int32)
        read_only = rng.random((3, 3)).astype(np.float32)
        read_only.flags.writeable = False

        def step(x, whole, read_only):
            made = [
                minigrad.zeros(3, 3), minigrad.ones(3), minigrad.full((3,), 2.0),
                minigrad.zeros_like(x), minigrad.ones_like(x), minigrad.arange(3),
                minigrad.arange(0.0, 3.0), minigrad.linspace(0, 1, 3), minigrad.eye(3),
                minigrad.rand(3, rng=rng), minigrad.randn(3, rng=rng),
                minigrad.randint(0, 3, (3,), rng=rng), minigrad.tensor(x), minigrad.tensor(whole),
                Tensor(whole, dtype=np.float32), Tensor(read_only), nn.Parameter(read_only),
            ]  # fmt: skip
            for each in made:
                x = x + each
            written = minigrad.zeros(3, 3)
            written.copy_(x.detach())
            with minigrad.no_grad():
                written += x.detach()
            return x * written

        return step, (x, whole, read_only)

    check(make)


# --------------------------------------------------------------------------------------------------
# The rest of a training step
# --------------------------------------------------------------------------------------------------


def with_gradients(variant, scale):
    """A model after a backward pass, and the arrays of its gradients."""
    model = nn.Linear(3, 2, rng=np.random.default_rng(0))
    x = np.random.default_rng(variant).standard_normal((4, 3)).astype(np.float32) * scale
    (model(Tensor(x)) ** 2).sum().backward()
    return model, [p.grad.data for p in model.parameters()]


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_clipping(scale):
    """Both for gradients that are clipped and for those that are not."""
    for clip in (optim.clip_grad_norm, optim.clip_grad_value):

        def make(variant, clip=clip):
            model, gradients = with_gradients(variant, scale if variant else 1.0)

            def step(*_):
                norm = optim.grad_norm(model.parameters())
                assert clip(model.parameters(), 1.0) in (None, norm)
                for p in model.parameters():
                    p.grad * p.grad  # not from nowhere either

            return step, gradients

        check(make)


def test_unclipped_gradients_stay_the_same_arrays():
    model, gradients = with_gradients(0, 1e-3)
    before = [p.grad for p in model.parameters()]
    seen = []

    class Results(Observer):
        def on_function(self, function, arguments, begins, result):
            seen.append(result)

    with observe(Results()):
        norm = optim.clip_grad_norm(model.parameters(), 1e6)
    assert all(p.grad is g for p, g in zip(model.parameters(), before, strict=True))
    assert seen[-1][0] is norm
    assert all(out is g for out, g in zip(seen[-1][1], gradients, strict=True))


@pytest.mark.parametrize("clip_norm", [1e-3, 1e3])
def test_a_whole_step(clip_norm):
    """With gradients that are accumulated, and a scheduler and an average, which write."""

    def make(variant):
        model = nn.TransformerBlock(4, 2, dropout=0.1, causal=True, rng=np.random.default_rng(0))
        optimizer = optim.AdamW(model.parameters())
        scheduler, ema = optim.WarmupCosineLR(optimizer, 1, 10), optim.EMA(model)
        target = np.random.default_rng(variant).standard_normal((2, 3, 4))

        def step(x, target):
            for _ in range(2):
                minigrad.mse(model(x), target).backward()
            optim.clip_grad_norm(model.parameters(), clip_norm if variant else 1.0)
            optimizer.step()
            scheduler.step()
            ema.update()
            assert (scheduler.last_epoch, ema.updates) == (1, 1)

        return step, (logits_of(variant, 2, 3, 4), target), model.parameters()

    first, second = (program_of(*make(variant)) for variant in (0, 1))
    names = [[name for name, _ in program] for program in (first, second)]
    assert names[0] == names[1]
    assert names[0][-3:] == ["clipped_by_norm", "_advance", "_advance"]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("options", [{}, {"init": "pissa"}, {"dora_norm_gradient": True}])
@pytest.mark.parametrize("kind", ["dense", "embedding", "nf4", "bfloat16"])
def test_dora(kind, options, dropout):
    def make(variant):
        rng = np.random.default_rng(0)
        model = one_layer(kind, rng, np.float32, width=(8, 8))
        config = lora.LoRAConfig(2, 4, "0", use_dora=True, dropout=dropout, **options)
        lora.attach(model, config, rng=rng, progress=False)
        layer = model[0]
        layer.lora_b = np.random.default_rng(variant).standard_normal((8, 2))
        ids = np.random.default_rng(variant).integers(0, 8, (2, 3))
        x = ids if kind == "embedding" else logits_of(variant, 3, 8)
        return lambda x: minigrad.exp(model(x)), (x,), list(model.parameters())

    if kind == "embedding" and "init" in options:
        pytest.skip("embeddings begin in their own way")
    check(make)


def test_the_penalty_of_adapters():
    def make(variant):
        model = one_layer("dense", np.random.default_rng(0), np.float32)
        lora.attach(model, lora.LoRAConfig(2, 4), rng=np.random.default_rng(0))
        return lambda: lora.penalty(model), (), list(model.parameters())

    check(make)


def test_a_language_model():
    config = ModelConfig(
        "llama", 16, 8, 12, 1, 2, 1, 4, 1e-5, 64, True, False, False, False, False, 1e4, None,
        (True,), None, (2,), 0, "float32",
    )  # fmt: skip
    model = LanguageModel(config)

    def make(variant):
        rng = np.random.default_rng(variant)
        ids, counted = rng.integers(0, 16, (2, 5)), rng.random((2, 5)) < 0.5
        return model.loss, (ids, counted), list(model.parameters())

    check(make)


def test_a_program_notices_what_comes_from_nowhere():
    x = logits_of(0, 3)
    with pytest.raises(AssertionError, match="multiply gets an array from nowhere"):
        program_of(lambda x: x * np.ones(3, np.float32), [x])
    with pytest.raises(AssertionError, match="outside of an announced function"):
        program_of(lambda x: minigrad.random.generator(), [x])
    with pytest.raises(AssertionError):  # a number that follows from values is not a constant
        check(lambda variant: (lambda x: x * x.sum().item(), (logits_of(variant, 3),)))
