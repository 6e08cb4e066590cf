"""LoRALayer: who gets a gradient, what the exact identities say, and that merging loses nothing."""

import copy
import inspect
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import minigrad
from lora import LoRALayer, LoRAScaling
from minigrad.nn import Linear, Parameter
from minigrad.optim import SGD, Adam
from tests.lora.models import lora_layer

D_OUT, D_IN, RANK, ALPHA = 5, 7, 3, 6.0
SHAPES = [(D_IN,), (4, D_IN), (2, 4, D_IN)]


def bits(tensor):
    return tensor.dtype, tensor.shape, tensor.data.tobytes()


def draw(rng, shape, dtype=np.float64, **options):
    return minigrad.tensor(rng.standard_normal(shape).astype(dtype), **options)


# ----------------------------------------------------------------------------------------------
# The layer and its parts
# ----------------------------------------------------------------------------------------------


def test_the_parts_are_named_as_in_the_formula(rng):
    layer = lora_layer(rng)
    assert (layer.d_out, layer.d_in, layer.rank, layer.alpha) == (D_OUT, D_IN, RANK, ALPHA)
    assert layer.base_weight.shape == (D_OUT, D_IN)
    assert layer.lora_a.shape == (RANK, D_IN)
    assert layer.lora_b.shape == (D_OUT, RANK)
    assert layer.bias.shape == (D_OUT,)
    assert layer.merged is False
    first, second = layer.trainable_params()
    assert first is layer.lora_a
    assert second is layer.lora_b
    names = ["base_weight", "bias", "lora_a", "lora_b"]
    assert [name for name, _ in layer.named_parameters()] == names
    assert [p.requires_grad for p in layer.parameters()] == [False, False, True, True]


@pytest.mark.parametrize("name", ["merged", "rank", "alpha", "scaling", "d_in", "d_out"])
def test_what_follows_from_the_rest_cannot_be_assigned(rng, name):
    layer = lora_layer(rng)
    with pytest.raises(AttributeError, match=name):
        setattr(layer, name, getattr(layer, name))


@pytest.mark.parametrize("rank", [1, 2, 4, 5])
def test_the_scale_is_alpha_over_rank_or_over_its_root(rng, rank):
    w = np.ones((5, 6))
    assert LoRALayer(w, 5, 6, rank, 8).scale == 8 / rank
    assert LoRALayer(w, 5, 6, rank, 8, scaling=LoRAScaling.STANDARD).scale == 8 / rank
    assert LoRALayer(w, 5, 6, rank, 8, scaling=LoRAScaling.RSLORA).scale == 8 / math.sqrt(rank)


def test_rank_and_scale_are_plain_numbers():
    layer = LoRALayer(np.ones((3, 4)), 3, 4, np.int64(2), np.float32(3))
    assert (type(layer.rank), type(layer.alpha), type(layer.scale)) == (int, float, float)
    assert (layer.rank, layer.alpha, layer.scale) == (2, 3.0, 1.5)


def test_options_are_keywords_only():
    parameters = inspect.signature(LoRALayer).parameters
    assert list(parameters)[:5] == ["base_weight", "d_out", "d_in", "rank", "alpha"]
    rest = list(parameters.values())[5:]
    assert {p.name for p in rest} == {"scaling", "bias", "dropout", "rng"}
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in rest)


def test_the_class_can_be_inspected():
    assert {"lora_a", "lora_b", "merge"} <= {name for name, _ in inspect.getmembers(LoRALayer)}


def test_repr_has_sizes_scale_and_state(rng):
    layer = lora_layer(rng, dropout=0.1)
    layer.merge()
    text = repr(layer)
    for part in ("LoRALayer(7, 5, rank=3, alpha=6, scale=2, dropout=0.1, merged", "36 trainable"):
        assert part in text


# ----------------------------------------------------------------------------------------------
# The formula
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", LoRAScaling)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [*SHAPES, (0, D_IN), (2, 0, 3, D_IN)])
def test_the_output_is_base_plus_scaled_update(rng, shape, bias, scaling):
    layer = lora_layer(rng, scaling=scaling, **({} if bias else {"bias": None}))
    x = rng.standard_normal(shape)
    w, a, b = (p.data for p in (layer.base_weight, layer.lora_a, layer.lora_b))
    factor = ALPHA / (RANK if scaling is LoRAScaling.STANDARD else math.sqrt(RANK))
    expected = x @ (w + factor * (b @ a)).T + (layer.bias.data if bias else 0)
    np.testing.assert_allclose(layer(minigrad.tensor(x)).data, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_output_is_that_of_the_base_to_the_bit(rng, shape, bias, dtype):
    linear = Linear(D_IN, D_OUT, bias, dtype=dtype, rng=rng)
    layer = LoRALayer.from_linear(linear, RANK, ALPHA, rng=rng)
    x = draw(rng, shape, dtype)
    assert bits(layer(x)) == bits(linear(x))


def test_vectors_come_as_arrays_and_lists_too(rng):
    layer = lora_layer(rng, np.float32)
    x = rng.standard_normal((4, D_IN)).astype(np.float32)
    expected = layer(minigrad.tensor(x))
    assert bits(layer(x)) == bits(expected)
    assert bits(layer(x.tolist())) == bits(expected)
    strided = np.asfortranarray(np.repeat(x, 2, axis=0))[::2]
    np.testing.assert_allclose(layer(strided).data, expected.data, rtol=1e-6, atol=1e-6)
    layer.dropout = 0.5
    assert layer(x.tolist()).shape == (4, D_OUT)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("x", TypeError),
        (None, TypeError),
        (minigrad.tensor(2.0), TypeError),
        (np.nan, ValueError),
        (-np.inf, ValueError),
    ],
)
def test_a_scale_is_a_finite_number(rng, value, error):
    layer = lora_layer(rng)
    with pytest.raises(error, match="scale must be a"):
        layer.scale = value
    assert layer.scale == 2.0
    layer.scale = np.float32(-3)
    assert type(layer.scale) is float


@pytest.mark.parametrize("shape", [(), (D_OUT,), (D_IN, 4)])
def test_an_input_of_another_size_is_an_error(rng, shape):
    layer = lora_layer(rng)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"\(\.\.\., d_in\)"), minigrad.no_grad():
            layer(np.ones(shape))
        layer.merge()


# Small and large, thin and not, with panels kept and without: all ways that a product may take.
SIZES = [(16, 16), (33, 70), (64, 64), (96, 64), (300, 40), (256, 256), (512, 768)]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_first_output_is_that_of_the_base_to_the_bit_at_any_size(size, bias, dtype, rng):
    linear = Linear(size[1], size[0], bias, dtype=dtype, rng=rng)
    layer = LoRALayer.from_linear(linear, 4, 8.0, rng=rng)
    for rows in (1, 2, 7, 16, 32, 33, 300):
        x = minigrad.tensor(rng.standard_normal((rows, size[1])).astype(dtype))
        for _ in range(2):  # the second time with what was kept of the first
            np.testing.assert_array_equal(layer(x).data, linear(x).data)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [(256, 256), (70, 600), (600, 70), (900, 520)], ids=str)
def test_the_first_output_has_these_bits_if_columns_of_the_base_are_contiguous_too(
    size, dtype, rng
):
    weight = np.asfortranarray(rng.standard_normal(size).astype(dtype))
    a, b = rng.standard_normal((4, size[1])).astype(dtype), np.zeros((size[0], 4), dtype)
    for rows in (1, 2, 7, 16, 20, 32, 33, 300):
        x = minigrad.tensor(rng.standard_normal((rows, size[1])).astype(dtype))
        adapted = minigrad.lora_linear(x, weight, a, b, scale=2.0)
        np.testing.assert_array_equal(adapted.data, minigrad.linear(x, weight).data)


# ----------------------------------------------------------------------------------------------
# The base
# ----------------------------------------------------------------------------------------------

BASES = {
    "array": lambda w: w,
    "flat array": lambda w: w.reshape(-1),
    "tensor": minigrad.Tensor,
    "flat tensor": lambda w: minigrad.Tensor(w.reshape(-1)),
    "turned array": np.asfortranarray,
    "trainable tensor": lambda w: minigrad.Tensor(w, requires_grad=True),
    "flat trainable tensor": lambda w: minigrad.Tensor(w.reshape(-1), requires_grad=True),
}


@pytest.mark.parametrize("base", BASES)
def test_the_base_may_come_in_any_form_and_its_memory_is_shared(rng, base):
    w = rng.standard_normal((D_OUT, D_IN))
    given = BASES[base](w)
    layer = LoRALayer(given, D_OUT, D_IN, RANK, ALPHA)
    assert np.array_equal(layer.base_weight.data, w)
    memory = given.data if isinstance(given, minigrad.Tensor) else given
    assert np.shares_memory(layer.base_weight.data, memory)


def test_a_list_and_a_read_only_array_can_be_a_base(rng):
    w = rng.standard_normal((2, 3)).astype(np.float32)
    w.flags.writeable = False
    for given in (w, w.tolist(), w.ravel().tolist()):
        assert np.array_equal(LoRALayer(given, 2, 3, 1, 1).base_weight.data, w)


@pytest.mark.parametrize("flat", [True, False])
def test_a_trainable_base_gets_no_gradient_and_keeps_its_flag(rng, flat):
    w = rng.standard_normal((D_OUT, D_IN))
    base = minigrad.Tensor(w.reshape(-1) if flat else w, requires_grad=True)
    bias = minigrad.ones((D_OUT,), dtype=np.float64, requires_grad=True)
    before = base.data.copy()
    layer = LoRALayer(base, D_OUT, D_IN, RANK, ALPHA, bias=bias)
    layer(draw(rng, (4, D_IN), requires_grad=True)).sum().backward()
    for tensor in (base, bias):
        assert tensor.requires_grad
        assert tensor.grad is None
    assert layer.lora_b.grad is not None
    assert np.array_equal(base.data, before)


def test_a_base_whose_flag_is_set_later_gets_no_gradient(rng):
    layer = lora_layer(rng)
    layer.freeze(False)
    layer(draw(rng, (4, D_IN))).sum().backward()
    assert layer.base_weight.grad is None
    assert layer.bias.grad is None
    assert layer.lora_a.grad is not None


def test_a_base_that_is_the_result_of_an_op_is_a_constant(rng):
    w = draw(rng, (D_OUT, D_IN), requires_grad=True)
    layer = LoRALayer(w * 2, D_OUT, D_IN, RANK, ALPHA)
    layer(draw(rng, (4, D_IN))).sum().backward()
    assert w.grad is None


class Watch(minigrad.Observer):
    """The ops that were called, the VJPs that ran, and the shapes of what both gave."""

    def __init__(self):
        self.calls, self.vjps = [], []

    def on_call(self, op, inputs, result):
        self.calls.append((op.name, result.shape))

    def on_vjp(self, node, parent, gradient, result):
        self.vjps.append((node.op.name, np.shape(result)))


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("wants_x", [True, False])
def test_the_vjp_for_the_frozen_weight_never_runs(rng, wants_x, flat):
    w = rng.standard_normal((D_OUT, D_IN))
    base = minigrad.Tensor(w.reshape(-1) if flat else w, requires_grad=True)
    layer = LoRALayer(base, D_OUT, D_IN, RANK, ALPHA)
    x = draw(rng, (4, D_IN), requires_grad=wants_x)
    with minigrad.observe(Watch()) as seen:
        layer(x).sum().backward()
    assert {"linear", "matmul"}.isdisjoint(name for name, _ in seen.calls)
    gradients = [shape for name, shape in seen.vjps if name == "lora_linear"]
    assert (RANK, D_IN) in gradients
    assert (D_OUT, RANK) in gradients
    assert not {(D_OUT, D_IN), (D_IN, D_OUT), (D_OUT * D_IN,)} & set(gradients)
    assert "reshape" not in [name for name, _ in seen.vjps]  # which would lead to a flat base
    assert gradients.count((4, D_IN)) == (1 if wants_x else 0)


def test_a_trainable_weight_would_be_seen(rng):
    """So that the test above can fail."""
    w = draw(rng, (D_OUT, D_IN), requires_grad=True)
    a, b = draw(rng, (RANK, D_IN)), draw(rng, (D_OUT, RANK))
    with minigrad.observe(Watch()) as seen:
        minigrad.lora_linear(draw(rng, (4, D_IN)), w, a, b).sum().backward()
    assert ("lora_linear", (D_OUT, D_IN)) in seen.vjps


# ----------------------------------------------------------------------------------------------
# Dtypes
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scaling", LoRAScaling)
def test_everything_has_the_dtype_of_the_base(rng, dtype, scaling):
    layer = lora_layer(rng, dtype, trained=False, scaling=scaling, dropout=0.5)
    assert layer.lora_a.dtype == layer.lora_b.dtype == dtype
    x = draw(rng, (4, D_IN), dtype)
    out = layer(x)
    assert out.dtype == dtype
    out.sum().backward()
    assert layer.lora_a.grad.dtype == layer.lora_b.grad.dtype == dtype
    layer.merge()
    with minigrad.no_grad():
        assert layer(x).dtype == dtype
    assert layer.to_linear().weight.dtype == layer.merged_weight().dtype == dtype


def test_a_float64_bias_does_not_widen_a_float32_layer(rng):
    layer = lora_layer(rng, np.float32, bias=np.ones(D_OUT))
    assert layer(np.ones(D_IN, np.float32)).dtype == np.float32


def test_astype_leaves_the_arrays_that_were_handed_in(rng):
    w = rng.standard_normal((D_OUT, D_IN)).astype(np.float32)
    layer = LoRALayer(w, D_OUT, D_IN, RANK, ALPHA)
    layer.astype(np.float64)
    assert all(p.dtype == np.float64 for p in layer.parameters())
    assert layer(np.ones(D_IN)).dtype == np.float64
    assert w.dtype == np.float32


# ----------------------------------------------------------------------------------------------
# The first A and B
# ----------------------------------------------------------------------------------------------


def many(rng, rank, d_in=100):
    return np.concatenate(
        [LoRALayer(np.ones((rank, d_in)), rank, d_in, rank, 1, rng=rng).lora_a.data.ravel()
         for _ in range(60_000 // (rank * d_in))]
    )  # fmt: skip  # one draw of 60,000 numbers, over many layers


@pytest.mark.parametrize("rank", [1, 4, 30])
def test_a_is_gaussian_with_deviation_one_over_rank(rng, rank):
    z = many(rng, rank) * rank
    n = z.size
    assert n == 60_000
    # Each moment of n draws is within four of its own deviations of that of a Gaussian.
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs((z**2).mean() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)
    inside = math.erf(1 / math.sqrt(2))  # the share within one deviation
    assert abs((abs(z) < 1).mean() - inside) < 4 * math.sqrt(inside * (1 - inside) / n)
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 4 / math.sqrt(n)


@pytest.mark.parametrize("rank", [2, 8, 32])
def test_a_has_full_numerical_rank(rng, rank):
    a = LoRALayer(np.ones((64, 256)), 64, 256, rank, 1, rng=rng).lora_a.data
    values = np.linalg.svd(a, compute_uv=False)
    assert values[-1] > 0.3 * values[0]  # (1 - sqrt(32/256)) / (1 + sqrt(32/256)) = 0.48 at large


def test_b_is_zero(rng):
    assert (lora_layer(rng, trained=False).lora_b.data == 0).all()


def test_seeds_and_layers_differ_and_equal_seeds_do_not():
    def a(rng):
        return LoRALayer(np.ones((4, 5)), 4, 5, 2, 1, rng=rng).lora_a.data

    one = np.random.default_rng(1)
    first, second = a(one), a(one)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, a(np.random.default_rng(1)))
    assert not np.array_equal(first, a(np.random.default_rng(2)))
    minigrad.manual_seed(1)
    default = a(None)
    minigrad.manual_seed(1)
    assert np.array_equal(a(None), default)


# ----------------------------------------------------------------------------------------------
# Gradients
# ----------------------------------------------------------------------------------------------


@pytest.mark.sampled(5)
@pytest.mark.parametrize("scaling", LoRAScaling)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 3)])
def test_gradients_of_both_orders_agree_with_differences(rng, shape, scaling):
    layer = LoRALayer(
        rng.standard_normal((4, 3)), 4, 3, 2, 3.0, bias=np.ones(4), scaling=scaling, rng=rng
    )

    def output(a, b, x):
        vars(layer).update(lora_a=a, lora_b=b)  # the operands themselves, not copies
        return layer(x)

    operands = [rng.standard_normal(s) for s in ((2, 3), (4, 2), shape)]
    report = minigrad.gradcheck(output, operands)
    assert report
    n = sum(x.size for x in operands)
    assert report.compared == 2 * n + 4 * math.prod(shape[:-1])  # and the cotangent's


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_formula(rng, shape):
    layer = lora_layer(rng)
    x = draw(rng, shape, requires_grad=True)
    g = rng.standard_normal((*shape[:-1], D_OUT))
    layer(x).backward(minigrad.tensor(g))
    w, a, b = (p.data for p in (layer.base_weight, layer.lora_a, layer.lora_b))
    rows, g_rows = x.data.reshape(-1, D_IN), g.reshape(-1, D_OUT)
    close = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(layer.lora_b.grad.data, 2 * g_rows.T @ (rows @ a.T), **close)
    np.testing.assert_allclose(layer.lora_a.grad.data, 2 * (g_rows @ b).T @ rows, **close)
    np.testing.assert_allclose(x.grad.data, g @ (w + 2 * b @ a), **close)


def test_x_gets_a_gradient_only_where_it_asks(rng):
    layer, x = lora_layer(rng), draw(rng, (4, D_IN))
    layer(x).sum().backward()
    assert x.grad is None


def test_the_output_requires_a_gradient_though_the_base_and_x_do_not(rng):
    layer = lora_layer(rng, trained=False)
    assert layer(draw(rng, (4, D_IN))).requires_grad
    layer.freeze()
    assert not layer(draw(rng, (4, D_IN))).requires_grad


LOSSES = {
    "mse": lambda y: minigrad.mse(y, np.zeros(y.shape)),
    "l1": lambda y: minigrad.l1(y, np.ones(y.shape)),
    "exponential": lambda y: (minigrad.exp(y * 0.1)).sum(),
    "logsumexp": lambda y: minigrad.logsumexp(y),
    "cross entropy": lambda y: minigrad.cross_entropy(
        y.reshape(-1, D_OUT), np.arange(y.size // D_OUT) % D_OUT
    ),
    "a gate": lambda y: (minigrad.tanh(y) * minigrad.softmax(y)).sum(),
}


def gradients(layer, x, loss, seed=0):
    """dA and dB, with what is dropped drawn from a fixed seed."""
    layer.rng = np.random.default_rng(seed)
    layer.zero_grad()
    value = loss(layer(x))
    value.backward()
    return value.item(), layer.lora_a.grad.data, layer.lora_b.grad.data


def assert_close(x, y, scale=1.0):
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-12 * max(1.0, np.abs(x).max(), scale))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", ["mse", "cross entropy"])
def test_da_a_transposed_is_b_transposed_db(rng, loss, shape, dropout):
    layer = lora_layer(rng, dropout=dropout)
    _, da, db = gradients(layer, draw(rng, shape), LOSSES[loss])
    assert abs(da).max() > 1e-7  # far above the tolerance
    assert_close(da @ layer.lora_a.data.T, layer.lora_b.data.T @ db)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", ["mse", "cross entropy"])
def test_a_change_of_basis_leaves_the_output_and_turns_the_gradients(rng, loss, shape, dropout):
    layer = lora_layer(rng, dropout=dropout)
    x = draw(rng, shape)
    value, da, db = gradients(layer, x, LOSSES[loss])
    g = rng.standard_normal((RANK, RANK)) + 3 * np.eye(RANK)
    inverse = np.linalg.inv(g)
    layer.lora_a = g @ layer.lora_a.data
    layer.lora_b = layer.lora_b.data @ inverse
    turned, da_turned, db_turned = gradients(layer, x, LOSSES[loss])
    size = max(abs(da).max(), abs(db).max(), abs(value))
    assert_close(turned, value, size)
    assert_close(da_turned, inverse.T @ da, size)
    assert_close(db_turned, db @ g.T, size)
    assert abs(da_turned - da).max() > 1e-4


@pytest.mark.parametrize("loss", LOSSES)
def test_at_b_zero_only_b_has_a_gradient(rng, loss):
    _, da, db = gradients(lora_layer(rng, trained=False), draw(rng, (4, D_IN)), LOSSES[loss])
    assert (da == 0).all()
    assert (abs(db).max(axis=0) > 1e-6).all()


def test_plain_gradient_descent_keeps_a_at_first_and_then_trains_both(rng):
    layer = lora_layer(rng, trained=False)
    x, a = draw(rng, (20, D_IN)), layer.lora_a.data.copy()
    target = x.data @ rng.standard_normal((D_IN, D_OUT))
    optimizer = SGD(layer.trainable_params(), lr=0.01)
    losses = []
    for step in range(100):
        optimizer.zero_grad()
        loss = minigrad.mse(layer(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step == 0:
            assert np.array_equal(layer.lora_a.data, a)
            assert (layer.lora_b.data != 0).all()
    assert not np.array_equal(layer.lora_a.data, a)
    assert losses[-1] < 0.7 * losses[0]


# ----------------------------------------------------------------------------------------------
# Assigning A and B
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora_a", "lora_b"])
@pytest.mark.parametrize("wrap", [lambda x: x, minigrad.tensor, np.ndarray.tolist, Parameter])
def test_assigning_copies_into_the_parameter_that_is_there(rng, name, wrap):
    layer = lora_layer(rng)
    held = getattr(layer, name)
    memory = held.data
    value = rng.standard_normal(held.shape).astype(np.float32).astype(np.float64)
    given = wrap(value)
    setattr(layer, name, given)
    assert getattr(layer, name) is held
    assert held.data is memory
    assert np.array_equal(memory, value)
    value[...] = 0
    assert (memory != 0).all()
    assert held.requires_grad


def test_an_optimiser_keeps_hold_of_what_was_assigned_to(rng):
    layer = lora_layer(rng)
    optimizer = Adam(layer.trainable_params(), lr=0.1)
    layer.lora_a = np.ones((RANK, D_IN))
    layer.lora_b = np.ones((D_OUT, RANK))
    layer(draw(rng, (4, D_IN))).sum().backward()
    optimizer.step()
    for p in layer.trainable_params():
        np.testing.assert_allclose(abs(p.data - 1), 0.1, rtol=1e-6)


@pytest.mark.parametrize(("name", "shape"), [("lora_a", (D_IN, RANK)), ("lora_b", (D_OUT,))])
def test_assigning_another_shape_is_an_error_and_changes_nothing(rng, name, shape):
    layer = lora_layer(rng)
    before = bits(getattr(layer, name))
    with pytest.raises(ValueError, match=f"{shape[0]}"):
        setattr(layer, name, np.ones(shape))
    assert bits(getattr(layer, name)) == before


def test_a_and_b_cannot_be_deleted(rng):
    with pytest.raises(AttributeError):
        del lora_layer(rng).lora_a


# ----------------------------------------------------------------------------------------------
# Merging
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", LoRAScaling)
@pytest.mark.parametrize("shape", SHAPES)
def test_merged_and_unmerged_outputs_agree(rng, shape, scaling):
    layer, x = lora_layer(rng, scaling=scaling), draw(rng, shape)
    unmerged = layer(x).data
    layer.merge()
    assert layer.merged
    with minigrad.no_grad():
        np.testing.assert_allclose(layer(x).data, unmerged, rtol=1e-12, atol=1e-12)
    layer.unmerge()
    assert not layer.merged
    assert np.array_equal(layer(x).data, unmerged)


def test_merged_and_unmerged_outputs_agree_in_float32(rng):
    layer, x = lora_layer(rng, np.float32), draw(rng, (50, D_IN), np.float32)
    unmerged = layer(x).data
    layer.merge()
    with minigrad.no_grad():
        merged = layer(x).data
    assert abs(merged - unmerged).max() < 1e-6 * abs(unmerged).max()


def test_merging_and_unmerging_twice_is_doing_it_once(rng):
    layer, x = lora_layer(rng), draw(rng, (4, D_IN))
    base, plain = bits(layer.base_weight), bits(layer(x))
    layer.unmerge()
    layer.merge()
    with minigrad.no_grad():
        once = bits(layer(x))
        layer.merge()
        assert bits(layer(x)) == once
    layer.unmerge()
    layer.unmerge()
    assert bits(layer(x)) == plain
    assert bits(layer.base_weight) == base


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_thousand_trips_leave_the_base_as_it_was(rng, dtype):
    layer = lora_layer(rng, dtype)
    memory, before = layer.base_weight.data, bits(layer.base_weight)
    for _ in range(1000):
        layer.lora_b = rng.standard_normal((D_OUT, RANK))
        layer.merge()
        layer.unmerge()
    assert layer.base_weight.data is memory
    assert bits(layer.base_weight) == before


def test_the_merged_weight_is_w_plus_scaled_b_a(rng):
    layer = lora_layer(rng)
    expected = layer.base_weight.data + 2 * layer.lora_b.data @ layer.lora_a.data
    merged = layer.merged_weight()
    np.testing.assert_allclose(merged.data, expected, rtol=1e-13, atol=1e-13)
    assert not merged.requires_grad
    assert not np.shares_memory(merged.data, layer.base_weight.data)


def test_a_merged_layer_without_dropout_even_in_training(rng):
    layer, x = lora_layer(rng, dropout=0.5), draw(rng, (4, D_IN))
    expected = layer.eval()(x).data
    layer.train().merge()
    with minigrad.no_grad():
        np.testing.assert_allclose(layer(x).data, expected, rtol=1e-12, atol=1e-12)


def step(layer):
    layer.unmerge()
    layer(np.ones(D_IN)).sum().backward()
    layer.merge()
    SGD(layer.trainable_params(), lr=0.1).step()


def write_raw(layer):
    layer.lora_a.data[0, 0] += 1


def write_raw_b(layer):
    layer.lora_b.data[...] = 0


def write_in_place(layer):
    with minigrad.no_grad():
        p = layer.lora_b
        p *= 2


def load_base(layer):
    state = layer.state_dict()
    state["base_weight"] += 1
    layer.load_state_dict(state)


EDITS = {
    "an optimiser's step": (step, "lora_[ab]"),
    "assigning A": (lambda layer: setattr(layer, "lora_a", layer.lora_a.data * 2), "lora_a"),
    "assigning B": (lambda layer: setattr(layer, "lora_b", layer.lora_b.data + 1), "lora_b"),
    "a raw write to A": (write_raw, "lora_a"),
    "a raw write to B": (write_raw_b, "lora_b"),
    "an in-place operator": (write_in_place, "lora_b"),
    "data of A": (lambda layer: setattr(layer.lora_a, "data", np.ones((RANK, D_IN))), "lora_a"),
    "the scale": (lambda layer: setattr(layer, "scale", 7.0), "scale"),
    "loading a base": (load_base, "base_weight"),
    "data of the base": (
        lambda layer: setattr(layer.base_weight, "data", np.ones((D_OUT, D_IN))),
        "base_weight",
    ),
    "another base": (
        lambda layer: setattr(layer, "base_weight", Parameter(np.ones((D_OUT, D_IN)), False)),
        "base_weight",
    ),
    "another dtype": (lambda layer: layer.astype(np.float32), "lora_a"),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("edit", EDITS)
def test_a_change_while_merged_is_noticed_at_the_next_use(rng, edit, training):
    layer = lora_layer(rng).train(training)
    layer.merge()
    change, what = EDITS[edit]
    change(layer)
    for _ in range(2):
        with (
            minigrad.no_grad(),
            pytest.raises(RuntimeError, match=rf"^{what} changed.*call merge\(\).*unmerge\(\)"),
        ):
            layer(np.ones(D_IN))
    layer.unmerge()
    plain = layer(np.ones(D_IN, layer.base_weight.dtype)).data
    layer.merge()
    with minigrad.no_grad():
        merged = layer(np.ones(D_IN, layer.base_weight.dtype)).data
    tolerance = 1e-12 if merged.dtype == np.float64 else 1e-6
    np.testing.assert_allclose(merged, plain, rtol=tolerance, atol=10 * tolerance)


def test_a_base_that_is_changed_through_its_first_owner_is_noticed(rng):
    linear = Linear(D_IN, D_OUT, dtype=np.float64, rng=rng)
    layer = LoRALayer.from_linear(linear, RANK, ALPHA)
    layer.merge()
    linear(np.ones((1, D_IN))).sum().backward()
    with minigrad.no_grad():
        layer(np.ones(D_IN))
        SGD(linear.parameters(), lr=0.1).step()
        with pytest.raises(RuntimeError, match="base_weight changed"):
            layer(np.ones(D_IN))


def test_merging_again_takes_in_what_was_changed(rng):
    layer = lora_layer(rng)
    layer.merge()
    layer.lora_b = np.ones((D_OUT, RANK))
    layer.merge()
    expected = layer.base_weight.data + 2 * np.ones((D_OUT, RANK)) @ layer.lora_a.data
    with minigrad.no_grad():
        out = layer(np.eye(D_IN)).data - layer.bias.data
    np.testing.assert_allclose(out.T, expected, rtol=1e-12, atol=1e-12)


def test_writing_equal_values_is_no_change(rng):
    layer = lora_layer(rng)
    layer.merge()
    layer.lora_a = layer.lora_a.data.copy()
    layer.lora_b.data[...] *= 1
    with minigrad.no_grad():
        layer(np.ones(D_IN))


def test_a_nan_in_a_is_no_change_either(rng):
    layer = lora_layer(rng)
    layer.lora_a.data[0, 0] = np.nan
    layer.merge()
    with minigrad.no_grad():
        assert np.isnan(layer(np.ones(D_IN)).data).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", [[], ["lora_a"], ["lora_b"]])
def test_a_merged_layer_refuses_to_lose_a_gradient(rng, training, frozen):
    layer = lora_layer(rng).train(training)
    for name in frozen:
        getattr(layer, name).requires_grad_(False)
    layer.merge()
    with pytest.raises(RuntimeError, match=r"unmerge\(\).*no_grad\(\).*requires_grad_\(False\)"):
        layer(draw(rng, (4, D_IN)))
    with minigrad.no_grad():
        assert layer(draw(rng, (4, D_IN))).shape == (4, D_OUT)


def test_a_merged_layer_with_frozen_a_and_b_passes_gradients_on_to_x(rng):
    layer = lora_layer(rng)
    x, g = draw(rng, (4, D_IN), requires_grad=True), rng.standard_normal((4, D_OUT))
    layer(x).backward(minigrad.tensor(g))
    expected, x.grad = x.grad.data, None
    layer.freeze().merge()
    layer(x).backward(minigrad.tensor(g))
    np.testing.assert_allclose(x.grad.data, expected, rtol=1e-12, atol=1e-12)


def test_a_merged_layer_can_be_deep_copied(rng):
    layer = lora_layer(rng)
    layer.merge()
    twin = copy.deepcopy(layer)
    with minigrad.no_grad():
        assert bits(twin(np.ones(D_IN))) == bits(layer(np.ones(D_IN)))
        twin.lora_b = np.zeros((D_OUT, RANK))
        with pytest.raises(RuntimeError, match="lora_b changed"):
            twin(np.ones(D_IN))
        layer(np.ones(D_IN))


class MergePrograms(RuleBasedStateMachine):
    """Any program of merges, edits and calls: the base keeps its bits, no call is out of date."""

    @initialize(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from([np.float32, np.float64]))
    def start(self, seed, dtype):
        self.rng = np.random.default_rng(seed)
        self.layer = lora_layer(self.rng, dtype)
        self.memory = self.layer.base_weight.data
        self.base = self.memory.copy()
        self.optimizer = Adam(self.layer.trainable_params(), lr=0.1)
        self.merged_from = None

    def parts(self):
        layer = self.layer
        return layer.lora_a.data.copy(), layer.lora_b.data.copy(), layer.scale

    def is_stale(self):
        if self.merged_from is None:
            return False
        pairs = zip(self.parts(), self.merged_from, strict=True)
        return not all(np.array_equal(x, y) for x, y in pairs)

    @rule()
    def merge(self):
        self.layer.merge()
        self.merged_from = self.parts()

    @rule()
    def unmerge(self):
        self.layer.unmerge()
        self.merged_from = None

    @rule(name=st.sampled_from(["lora_a", "lora_b"]), raw=st.booleans(), same=st.booleans())
    def write(self, name, raw, same):
        held = getattr(self.layer, name)
        value = held.data.copy() if same else self.rng.standard_normal(held.shape)
        if raw:
            held.data[...] = value
        else:
            setattr(self.layer, name, value)

    @rule(scale=st.sampled_from([0.5, 2.0]))
    def rescale(self, scale):
        self.layer.scale = scale

    @rule()
    def step(self):
        for p in self.layer.trainable_params():
            p.grad = minigrad.tensor(self.rng.standard_normal(p.shape).astype(p.dtype))
        self.optimizer.step()

    @rule()
    def copy(self):
        state = self.layer.state_dict()
        self.layer = copy.deepcopy(self.layer)
        self.memory = self.layer.base_weight.data
        self.optimizer = Adam(self.layer.trainable_params(), lr=0.1)
        assert all(np.array_equal(state[n], v) for n, v in self.layer.state_dict().items())

    @precondition(lambda self: self.is_stale())
    @rule()
    def use_out_of_date(self):
        with minigrad.no_grad(), pytest.raises(RuntimeError, match=r"changed since merge\(\)"):
            self.layer(self.rng.standard_normal(D_IN))

    @precondition(lambda self: not self.is_stale())
    @rule(train=st.booleans())
    def use(self, train):
        x = self.rng.standard_normal((3, D_IN)).astype(self.base.dtype)
        self.layer.train(train)
        with minigrad.no_grad():
            out = self.layer(x).data
        a, b, scale = self.parts()
        wide = self.base.astype(np.float64) + scale * b.astype(np.float64) @ a.astype(np.float64)
        expected = x @ wide.T + self.layer.bias.data
        assert out.dtype == self.base.dtype
        size = np.abs(x) @ (np.abs(self.base) + abs(scale) * np.abs(b) @ np.abs(a)).T
        assert (abs(out - expected) <= 1e-6 * (size + 10)).all()

    @precondition(lambda self: self.merged_from is None)
    @rule()
    def train(self):
        self.layer.zero_grad()
        self.layer(self.rng.standard_normal(D_IN).astype(self.base.dtype)).sum().backward()
        assert all(p.grad is not None for p in self.layer.trainable_params())

    @precondition(lambda self: self.merged_from is not None)
    @rule()
    def train_while_merged(self):
        with pytest.raises(RuntimeError, match=r"unmerge\(\)"):
            self.layer(np.ones(D_IN))

    @invariant()
    def the_base_has_its_bits_and_its_memory(self):
        if hasattr(self, "layer"):
            assert self.layer.base_weight.data is self.memory
            assert self.memory.tobytes() == self.base.tobytes()
            assert self.layer.merged is (self.merged_from is not None)


MergePrograms.TestCase.settings = hypothesis.settings(max_examples=40, stateful_step_count=25)
TestMergePrograms = MergePrograms.TestCase


# ----------------------------------------------------------------------------------------------
# There and back from Linear
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [minigrad.nn.Conv2d(1, 1, 3), minigrad.nn.Embedding(4, 4), 3])
def test_from_linear_refuses_other_layers(layer):
    name = type(layer).__name__
    with pytest.raises(TypeError, match=f"LoRALayer.from_linear: takes a Linear, not {name}"):
        LoRALayer.from_linear(layer, 1, 1.0)


@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_shares_and_does_not_change(rng, bias):
    linear = Linear(D_IN, D_OUT, bias, rng=rng)
    options = {"scaling": LoRAScaling.RSLORA, "dropout": 0.25}
    layer = LoRALayer.from_linear(linear, RANK, ALPHA, **options, rng=rng)
    assert layer.scale == ALPHA / math.sqrt(RANK)
    assert layer.dropout == 0.25
    assert np.shares_memory(layer.base_weight.data, linear.weight.data)
    assert (layer.bias is not None) is bias
    if bias:
        assert np.shares_memory(layer.bias.data, linear.bias.data)
    assert all(p.requires_grad for p in linear.parameters())
    layer(np.ones((2, D_IN), np.float32)).sum().backward()
    assert all(p.grad is None for p in linear.parameters())


@pytest.mark.parametrize("bias", [True, False])
def test_to_linear_is_a_plain_layer_that_shares_nothing(rng, bias):
    layer = lora_layer(rng, **({} if bias else {"bias": None}))
    linear = layer.to_linear()
    assert type(linear) is Linear
    assert (linear.in_features, linear.out_features) == (D_IN, D_OUT)
    x = draw(rng, (4, D_IN))
    np.testing.assert_allclose(linear(x).data, layer(x).data, rtol=1e-12, atol=1e-12)
    assert all(p.requires_grad for p in linear.parameters())
    held = [p.data for p in layer.parameters()]
    assert not any(np.shares_memory(p.data, h) for p in linear.parameters() for h in held)
    layer.merge()
    assert np.array_equal(layer.to_linear().weight.data, linear.weight.data)


def test_to_linear_of_a_merged_layer_that_is_out_of_date_is_an_error(rng):
    layer = lora_layer(rng)
    layer.merge()
    layer.lora_b = np.ones((D_OUT, RANK))
    with pytest.raises(RuntimeError, match=r"lora_b changed since merge\(\)"):
        layer.to_linear()
    layer.unmerge()
    assert np.array_equal(layer.to_linear().weight.data, layer.merged_weight().data)


# ----------------------------------------------------------------------------------------------
# Dropout
# ----------------------------------------------------------------------------------------------


def test_dropout_is_on_the_way_to_a_only(rng):
    layer = lora_layer(rng, dropout=0.4)
    x = rng.standard_normal((200, D_IN))
    layer.rng = np.random.default_rng(1)
    out = layer(minigrad.tensor(x)).data
    dropped = minigrad.dropout(minigrad.tensor(x), 0.4, rng=np.random.default_rng(1)).data
    assert 0.3 < (dropped == 0).mean() < 0.5  # 0.4 of 1400 draws
    w, a, b = (p.data for p in (layer.base_weight, layer.lora_a, layer.lora_b))
    expected = x @ w.T + layer.bias.data + 2 * (dropped @ a.T) @ b.T
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)


def test_dropout_is_off_in_evaluation_and_differs_between_calls_in_training(rng):
    layer, x = lora_layer(rng, dropout=0.5), draw(rng, (4, D_IN))
    assert bits(layer(x)) != bits(layer(x))
    layer.eval()
    state = rng.bit_generator.state
    assert bits(layer(x)) == bits(layer(x))
    assert rng.bit_generator.state == state


def test_dropping_everything_leaves_the_base(rng):
    layer, x = lora_layer(rng, dropout=1.0), draw(rng, (4, D_IN))
    base = x.data @ layer.base_weight.data.T + layer.bias.data
    np.testing.assert_allclose(layer(x).data, base, rtol=1e-13, atol=1e-13)


# ----------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------

FINE = {"base_weight": np.ones((3, 4)), "d_out": 3, "d_in": 4, "rank": 2, "alpha": 1.0}


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank must be a positive integer, not 0"),
        ({"rank": -1}, ValueError, "rank must be a positive integer, not -1"),
        ({"rank": 4}, ValueError, r"rank 4 is larger than min\(d_out, d_in\) = 3"),
        ({"rank": 2.0}, TypeError, r"rank is an integer, not 2\.0"),
        ({"rank": "2"}, TypeError, "rank is an integer, not '2'"),
        ({"rank": None}, TypeError, "rank is an integer, not None"),
        ({"rank": True}, TypeError, "rank is an integer, not True"),
        ({"alpha": 0}, ValueError, "alpha must be a positive number, not 0"),
        ({"alpha": -1.0}, ValueError, "alpha must be a positive number, not -1.0"),
        ({"alpha": math.nan}, ValueError, "alpha must be a positive number, not nan"),
        ({"alpha": math.inf}, ValueError, "alpha must be a positive number, not inf"),
        ({"alpha": "16"}, TypeError, "alpha must be a number, not '16'"),
        ({"alpha": None}, TypeError, "alpha must be a number, not None"),
        ({"d_out": 0}, ValueError, "d_out must be a positive integer, not 0"),
        ({"d_in": 4.0}, TypeError, r"d_in is an integer, not 4\.0"),
        ({"base_weight": np.ones((4, 3))}, ValueError, r"\(4, 3\).*must be \(3, 4\), or flat"),
        ({"base_weight": np.ones(11)}, ValueError, r"\(11,\).*flat with 12 elements"),
        ({"base_weight": np.ones((1, 3, 4))}, ValueError, r"\(1, 3, 4\)"),
        ({"base_weight": np.ones((3, 4), int)}, TypeError, "must be of floats, not int64"),
        ({"base_weight": np.ones((3, 4), bool)}, TypeError, "must be of floats, not bool"),
        ({"base_weight": [["a"]]}, TypeError, "a tensor contains"),
        ({"base_weight": None}, TypeError, "a tensor contains"),
        ({"bias": np.ones(4)}, ValueError, r"bias has shape \(4,\); it must be \(3,\)"),
        ({"bias": np.ones((3, 1))}, ValueError, r"bias has shape \(3, 1\)"),
        ({"bias": 1.0}, ValueError, r"bias has shape \(\)"),
        ({"bias": True}, (TypeError, ValueError), "bias"),
        ({"dropout": 1.5}, ValueError, r"dropout is a probability, not 1\.5"),
        ({"dropout": -0.1}, ValueError, "dropout is a probability"),
        ({"dropout": math.nan}, ValueError, "dropout is a probability, not nan"),
        ({"scaling": "rs"}, ValueError, "'rs'"),
        ({"rng": 0}, TypeError, "default_rng"),
    ],
)
def test_what_cannot_be_a_layer_is_an_error(wrong, error, message):
    LoRALayer(**FINE)
    with pytest.raises(error, match=message):
        LoRALayer(**{**FINE, **wrong})


@pytest.mark.parametrize(("d_out", "d_in"), [(1, 1), (1, 9), (9, 1), (4, 4)])
def test_the_largest_rank_is_the_smaller_size(rng, d_out, d_in):
    rank = min(d_out, d_in)
    layer = LoRALayer(rng.standard_normal((d_out, d_in)), d_out, d_in, rank, 1.0, rng=rng)
    assert layer(np.ones(d_in)).shape == (d_out,)
    with pytest.raises(ValueError, match="larger than min"):
        LoRALayer(np.ones((d_out, d_in)), d_out, d_in, rank + 1, 1.0)
