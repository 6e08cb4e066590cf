"""DoRA, PiSSA, the ways to begin, and every combination of storage, form, init and scaling."""

import itertools
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import lora
import minigrad
from lora import Adapter, LoRAConfig, LoRALayer, LoRAScaling
from lora.frozen import DenseMatrix
from lora.variants import dora
from lora.variants.inits import INITS as NAMED
from lora.variants.inits import draw
from minigrad.nn import Embedding, Linear, Sequential
from tests.lora.models import KINDS, one_layer, shake

D = np.float64
INITS = [name for name in NAMED if name != "mica"]  # which trains A only, and without DoRA


def adapted(rng, layer=None, targets="all-linear", dtype=D, **options):
    """A model of one layer with an adapter, and the layer."""
    layer = Linear(6, 4, dtype=dtype, rng=rng) if layer is None else layer
    model = Sequential(layer)
    options = {"rank": 2, "alpha": 3.0, **options}
    lora.attach(model, LoRAConfig(targets=targets, **options), rng=rng)
    return model, model[0]


def dense_update(adapter):
    """s (B A - B_0 A_0), formed."""
    product = adapter.lora_b.data @ adapter.lora_a.data
    if adapter.start is not None:
        product = product - adapter.start[1].data @ adapter.start[0].data
    return adapter.scale * product


# ----------------------------------------------------------------------------------------------
# How A and B begin
# ----------------------------------------------------------------------------------------------


def first(init, rank=8, w=np.zeros((300, 400)), scale=2.0):  # noqa: B008  # is only read
    return draw(init, DenseMatrix(w), rank, scale, np.random.default_rng(0))


def test_gaussian_has_deviation_one_over_rank():
    a, b, _ = first("gaussian")
    assert abs(a.std() * 8 - 1) < 0.05
    assert not b.any()


def test_kaiming_is_uniform_in_one_over_the_root_of_d_in():
    a, b, _ = first("kaiming")
    assert 0.99 / 20 < abs(a).max() <= 1 / 20
    assert abs(a.std() * 20 * np.sqrt(3) - 1) < 0.05
    assert not b.any()


def test_orthogonal_factors_are_not_zero_and_their_product_is():
    a, b, _ = first("orthogonal")
    assert np.linalg.matrix_rank(a) == np.linalg.matrix_rank(b) == 4
    assert abs(b @ a).max() < 1e-15
    np.testing.assert_allclose([a.std(), b.std()], np.sqrt(0.5) / 10, rtol=0.1)


def test_an_unknown_way_to_begin_is_refused_with_the_ones_there_are():
    matrix = DenseMatrix(np.ones((4, 6)))
    for init in ("foo", "pissa_niter_", None, ["mica"]):
        with pytest.raises(ValueError, match=r"init is one of gaussian, .*, mica and pissa_niter_"):
            Adapter(matrix, 2, 3.0, init=init)


@pytest.mark.parametrize("second", [Linear(4, 4), Embedding(4, 4)], ids=["linear", "embedding"])
def test_orthogonal_factors_need_an_even_rank(second):
    model, rng = Sequential(Linear(6, 4), second), np.random.default_rng(0)
    before, state = list(model.modules()), rng.bit_generator.state
    config = LoRAConfig(rank=2, targets=["0", "1"], init="orthogonal", rank_pattern={"1": 3})
    with pytest.raises(ValueError, match=r"1: init=\"orthogonal\" .* even, not 3"):
        lora.attach(model, config, rng=rng)
    assert list(model.modules()) == before
    assert rng.bit_generator.state == state


@pytest.mark.parametrize("scale", [0.25, 1.0, 2.0, 7.0])
def test_pissa_takes_the_principal_part_at_any_scale(rng, scale):
    w = rng.standard_normal((30, 40))
    a, b, from_start = first("pissa", 3, w, scale)
    assert from_start
    left = np.linalg.svd(w - scale * b @ a)[1]
    values = np.linalg.svd(w)[1]
    np.testing.assert_allclose(left[:-3], values[3:], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(left[-3:], 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=0), rtol=1e-10)


@pytest.mark.parametrize("size", [(30, 40), (40, 30), (5, 5)])
def test_a_few_rounds_of_iteration_give_the_principal_part_too(rng, size):
    u, s, v = np.linalg.svd(rng.standard_normal(size), full_matrices=False)
    w = (u * 0.7 ** np.arange(len(s))) @ v
    exact = first("pissa", 3, w)
    found = first("pissa_niter_4", 3, w)
    np.testing.assert_allclose(found.b @ found.a, exact.b @ exact.a, atol=1e-7)
    if min(size) > 5:  # else without any round there is all of the matrix, and rounding only
        rough = first("pissa_niter_0", 3, w)
        error, more = (abs(f.b @ f.a - exact.b @ exact.a).max() for f in (found, rough))
        assert more > 100 * error


@pytest.mark.parametrize("init", [*INITS, "pissa_niter_2"])
@pytest.mark.parametrize("use_dora", [False, True])
def test_the_first_output_is_that_of_the_base(rng, init, use_dora):
    linear = Linear(6, 4, dtype=D, rng=rng)
    x = minigrad.tensor(rng.standard_normal((5, 6)))
    base = linear(x).data
    model, _ = adapted(rng, linear, init=init, use_dora=use_dora)
    if init in ("gaussian", "kaiming"):
        assert np.array_equal(model(x).data, base)
    else:  # A and B are not 0, and what cancels is rounded
        np.testing.assert_allclose(model(x).data, base, rtol=1e-14, atol=1e-15)


def test_pissa_trains_what_it_began_with_and_the_base_stays(rng):
    linear = Linear(6, 4, dtype=D, rng=rng)
    bits = linear.weight.data.tobytes()
    model, layer = adapted(rng, linear, init="pissa", alpha=6.0)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"0.lora_a", "0.lora_b"}
    assert {"0.start_a", "0.start_b"} <= {n for n, _ in model.named_parameters()}
    x = minigrad.tensor(rng.standard_normal((5, 6)))
    model(x).sum().backward()
    assert all(abs(p.grad.data).max() > 1e-3 for p in layer.trainable_params())
    shake(layer, rng)
    expected = x.data @ (linear.weight.data + dense_update(layer.adapter)).T + linear.bias.data
    np.testing.assert_allclose(model(x).data, expected, rtol=1e-12)
    assert layer.base_weight.data.tobytes() == bits


# ----------------------------------------------------------------------------------------------
# DoRA
# ----------------------------------------------------------------------------------------------


def test_the_magnitude_begins_as_the_norms_of_the_rows_and_trains(rng):
    model, layer = adapted(rng, use_dora=True)
    w = layer.base_weight.data
    np.testing.assert_allclose(layer.lora_magnitude.data, np.linalg.norm(w, axis=1), rtol=1e-14)
    shake(layer, rng)
    x = minigrad.tensor(rng.standard_normal((5, 6)))
    moved = w + dense_update(layer.adapter)
    direction = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    expected = x.data @ (layer.lora_magnitude.data[:, None] * direction).T + layer.bias.data
    np.testing.assert_allclose(model(x).data, expected, rtol=1e-12, atol=1e-13)
    model(x).sum().backward()
    np.testing.assert_allclose(
        layer.lora_magnitude.grad.data, (x.data @ direction.T).sum(axis=0), rtol=1e-11
    )


@pytest.mark.sampled(3)
@pytest.mark.parametrize("init", INITS)
def test_the_norm_is_a_constant_in_the_backward_pass(rng, init):
    model, layer = adapted(rng, use_dora=True, init=init)
    shake(layer, rng)
    x, g = rng.standard_normal((5, 6)), rng.standard_normal((5, 4))
    n = layer.adapter.norms(layer.weight)
    (model(minigrad.tensor(x)) * g).sum().backward()
    found = [part.grad.data for part in layer.trainable_params()]

    def held(a, b, m):
        start = layer.adapter.start
        product = b @ a if start is None else b @ a - start[1].data @ start[0].data
        w = (product * layer.scale + layer.base_weight.data) * minigrad.reshape(m / n, (4, 1))
        return (minigrad.linear(x, w, layer.bias.data) * g).sum()

    parts = [minigrad.tensor(p.data, requires_grad=True) for p in layer.trainable_params()]
    expected = minigrad.grad(held(*parts), parts)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.data, rtol=1e-10, atol=1e-12)
    assert minigrad.gradcheck(held, parts).verdict == "agree"


def test_the_full_derivative_is_another_one(rng):
    gradients = []
    for full in (False, True):
        model, layer = adapted(np.random.default_rng(0), use_dora=True, dora_norm_gradient=full)
        shake(layer, np.random.default_rng(1))
        x = minigrad.tensor(np.random.default_rng(2).standard_normal((5, 6)))
        (model(x) ** 2).sum().backward()
        gradients.append(layer.lora_b.grad.data)
    assert abs(gradients[0] - gradients[1]).max() > 1e-2


def test_with_its_full_derivative_a_longer_direction_changes_nothing(rng):
    model, layer = adapted(
        rng, Linear(4, 6, dtype=D, rng=rng), rank=4, use_dora=True, dora_norm_gradient=True
    )
    shake(layer, rng)
    (model(rng.standard_normal((5, 4))) ** 3).sum().backward()
    v = layer.base_weight.data + dense_update(layer.adapter)
    # A is invertible, so dB = s dV A^T gives dV, which is at right angles to V in each row.
    dv = np.linalg.solve(layer.lora_a.data, layer.lora_b.grad.data.T).T / layer.scale
    assert abs(dv).max() > 0.1
    np.testing.assert_allclose((v * dv).sum(axis=1), 0, atol=1e-10 * abs(dv).max())


@pytest.mark.parametrize("dtype", [np.float32, D])
@hypothesis.given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(-8, 8), st.integers(0, 999)
)
def test_norms_are_those_of_the_matrix_that_is_not_formed(dtype, d_out, d_in, rank, power, seed):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((d_out, d_in)).astype(dtype)
    a = rng.standard_normal((rank, d_in)).astype(dtype)
    b = (10.0**power * rng.standard_normal((d_out, rank))).astype(dtype)
    exact = np.linalg.norm(w.astype(D) + 1.5 * b.astype(D) @ a.astype(D), axis=1)
    found = dora.norms(DenseMatrix(w), a, b, 1.5)
    assert found.dtype == dtype
    # B A may cancel too, which the formed matrix would not survive either.
    size = 1.5 * abs(b).astype(D) @ np.linalg.norm(a, axis=1)
    rtol = 1e-5 if dtype == np.float32 else 1e-11
    assert (abs(found - exact) <= rtol * exact + 8 * np.finfo(dtype).eps * size).all()


@pytest.mark.parametrize("dtype", [np.float32, D])
def test_norms_of_rows_that_cancel_are_right_too(rng, dtype):
    a = rng.standard_normal((2, 6)).astype(dtype)
    b = rng.standard_normal((4, 2)).astype(dtype)
    w = (-b.astype(D) @ a.astype(D) + 1e-3 * rng.standard_normal((4, 6))).astype(dtype)
    exact = np.linalg.norm(w.astype(D) + b.astype(D) @ a.astype(D), axis=1)
    assert exact.max() < 0.01
    found = dora.norms(DenseMatrix(w), a, b, 1.0)
    np.testing.assert_allclose(found, exact, rtol=1e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, D])
def test_a_row_of_zeros_has_no_nan(rng, dtype, full):
    linear = Linear(6, 4, rng=rng).astype(dtype)
    linear.weight.data[1] = 0
    x = np.ones((2, 6), dtype)
    base = linear(x).data
    model, layer = adapted(rng, linear, use_dora=True, dora_norm_gradient=full)
    y = model(x)
    assert np.array_equal(y.data, base)
    y.sum().backward()
    assert all(np.isfinite(part.grad.data).all() for part in layer.trainable_params())
    shake(layer, rng)
    assert np.isfinite(model(x).data).all()


@pytest.mark.parametrize("moved", [1e-6, 0.3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, D])
def test_a_row_that_was_zero_is_merged_as_it_is_computed(rng, dtype, moved):
    linear = Linear(6, 4, rng=rng).astype(dtype)
    linear.weight.data[1] = 0
    model, layer = adapted(rng, linear, use_dora=True)
    shake(layer, rng, size=moved)
    exact = layer.weight.dense() + layer.update_rows(slice(None), ["default"])
    x = np.eye(6, dtype=dtype)
    found = model(x).data.astype(D) - layer.bias.data.astype(D)
    # A few roundings of an output, the bias included, and of norms.
    np.testing.assert_allclose(found, exact.T, atol=16 * np.finfo(dtype).eps)


@pytest.mark.parametrize("power", [-25, -12, 12, 25])
def test_norms_do_not_depend_on_how_the_update_is_shared_out(rng, power):
    w, a, b = (rng.standard_normal(shape) for shape in ((4, 6), (2, 6), (4, 2)))
    exact = np.linalg.norm(w + b @ a, axis=1)
    a, b = a * 10.0**power, b / 10.0**power
    found = dora.norms(
        DenseMatrix(w.astype(np.float32)), *(x.astype(np.float32) for x in (a, b)), 1.0
    )
    np.testing.assert_allclose(found, exact, rtol=1e-5)  # of float32


def test_assigning_a_magnitude_copies_into_the_parameter(rng):
    _, layer = adapted(rng, use_dora=True)
    held = layer.lora_magnitude
    layer.lora_magnitude = [1.0, 2.0, 3.0, 4.0]
    assert layer.lora_magnitude is held
    assert held.data.tolist() == [1, 2, 3, 4]
    assert held.requires_grad
    _, plain = adapted(rng)
    with pytest.raises(
        AttributeError, match=r"does not use DoRA, so it has no lora_magnitude.*use_dora=True"
    ):
        plain.lora_magnitude = [1.0, 2.0, 3.0, 4.0]
    assert plain.lora_magnitude is None


def test_nothing_of_the_size_of_the_weight_is_formed(rng):
    n = 300
    model, layer = adapted(rng, Linear(n, n, dtype=D, rng=rng), use_dora=True, rank=4)
    shake(layer, rng)
    x = minigrad.tensor(rng.standard_normal((2, n)))
    (model(x) ** 2).sum().backward()  # the norms of W are known from here on
    tracemalloc.start()
    (model(x) ** 2).sum().backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.25 * layer.base_weight.data.nbytes


def test_the_norms_of_a_base_that_is_written_to_are_computed_anew(rng):
    model, layer = adapted(rng, use_dora=True)
    x = minigrad.tensor(rng.standard_normal((5, 6)))
    model(x)
    layer.base_weight.copy_(2 * layer.base_weight.data)
    n = layer.adapter.norms(layer.weight)
    np.testing.assert_allclose(n, np.linalg.norm(layer.base_weight.data, axis=1), rtol=1e-13)
    layer.base_weight.data[0] = 1.0
    assert abs(layer.adapter.norms(layer.weight)[0] - np.sqrt(6)) < 1e-12


@pytest.mark.parametrize("use_dora", [False, True])
def test_dropout_is_on_the_way_to_the_update_only(rng, use_dora):
    model, layer = adapted(rng, use_dora=use_dora, dropout=0.5)
    shake(layer, rng)
    x = rng.standard_normal((200, 6))
    base = x @ layer.base_weight.data.T + layer.bias.data
    update = model.eval()(x).data - base
    found = model.train()(x).data - base
    delta = np.linalg.lstsq(x, update, rcond=None)[0]
    masks = np.array(list(itertools.product([0.0, 2.0], repeat=6)))
    used = []
    for row, y in zip(x, found, strict=True):  # the update of x, some of it doubled, the rest 0
        differences = abs((masks * row) @ delta - y).sum(axis=1)
        assert differences.min() < 1e-10
        used.append(masks[differences.argmin()])
    assert abs(np.mean(used) - 1) < 0.1


@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"dropout": 0.5}, {"init": "pissa"}], ids=str
)
@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_no_gradient_gets_to_a_base_whose_flag_someone_has_set(rng, kind, options):
    layer = (Embedding if kind == "embedding" else Linear)(6, 4, dtype=D, rng=rng)
    model, layer = adapted(rng, layer, targets=["0"], **options)
    shake(layer, rng)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    x = np.arange(6) if kind == "embedding" else rng.standard_normal((5, 6))
    (model(x) ** 2).sum().backward()
    assert frozen
    assert all(p.grad is None for p in frozen)
    with lora.disabled(model):
        assert not model(x).requires_grad
    assert all(abs(p.grad.data).max() > 0 for p in layer.adapter.trained())


# ----------------------------------------------------------------------------------------------
# Every combination
# ----------------------------------------------------------------------------------------------


def build(kind, rng):
    model = Sequential(*one_layer(kind, rng), minigrad.tanh)
    if kind == "embedding":
        return model, ["0"], np.array([[1, 3, 0], [1, 4, 2]])
    return model, "all-linear", minigrad.tensor(rng.standard_normal((3, 6)), requires_grad=True)


@pytest.mark.parametrize("kind", KINDS)
def test_mica_begins_at_the_base_and_trains_a_only(kind):
    rng = np.random.default_rng(1)
    model, targets, x = build(kind, rng)
    base = model(x).data
    report = lora.attach(model, LoRAConfig(2, 3.0, targets, init="mica"), rng=rng)
    layer = model[0]
    assert np.array_equal(model(x).data, base)
    u = np.linalg.svd(layer.weight.dense(), full_matrices=False)[0]
    least = abs(u[:, -2:].T @ layer.lora_b.data)
    np.testing.assert_allclose(least, np.eye(2), atol=1e-5)
    assert [p is layer.lora_a for p in model.trainable_parameters()] == [True]
    assert report.trainable == report.matches[0].added == layer.lora_a.size
    model(x).sum().backward()
    assert abs(layer.lora_a.grad.data).max() > 0
    assert layer.lora_b.grad is None
    if kind == "dense":
        assert not lora.verify(model, lambda m, batch: (m(batch) ** 2).sum(), x.detach()).failed


FORMS = ["LoRA", "DoRA", "DoRA, full derivative"]
SCALINGS = [LoRAScaling.STANDARD, LoRAScaling.RSLORA]


def combinations():
    """Each pair of a kind and a form with three or four ways to begin, and to scale in turn.

    A Gaussian A differs from a uniform one in its numbers only, so few pairs have it.
    """
    for i, (kind, form) in enumerate(itertools.product(KINDS, FORMS)):
        for j, init in enumerate(INITS):
            if init != "gaussian" or i % 4 == 0:
                yield kind, form, init, SCALINGS[(i + j) % 2]


@pytest.mark.sampled(9)
@pytest.mark.parametrize(("kind", "form", "init", "scaling"), list(combinations()))
def test_every_combination_begins_at_the_base_trains_merges_and_comes_off(
    monkeypatch, kind, form, init, scaling
):
    rng = np.random.default_rng(1)
    model, targets, x = build(kind, rng)
    base = model(x).data
    config = LoRAConfig(
        rank=2,
        alpha=3.0,
        targets=targets,
        scaling=scaling,
        init=init,
        use_dora=form != "LoRA",
        dora_norm_gradient=form == "DoRA, full derivative",
    )
    lora.attach(model, config, rng=rng)
    np.testing.assert_allclose(model(x).data, base, rtol=1e-12, atol=1e-14)
    layer = next(m for m in model.modules() if isinstance(m, lora.AdaptedLayer))
    assert layer.scale == 3 / (2 if scaling is LoRAScaling.STANDARD else np.sqrt(2))
    shake(layer, rng)
    gradients = minigrad.grad((model(x) ** 2).sum(), layer.trainable_params())
    assert all(abs(gradient.data).max() > 1e-6 for gradient in gradients)
    if form == "DoRA":  # its gradient is that of a function with the norm held
        held = layer.adapter.norms(layer.weight)
        monkeypatch.setattr(layer.adapter, "norms", lambda weight: held)
    assert minigrad.gradcheck(model, x, samples=8).verdict == "agree"
    same = minigrad.grad((model(x) ** 2).sum(), layer.trainable_params())
    assert all(np.array_equal(g.data, h.data) for g, h in zip(gradients, same, strict=True))
    monkeypatch.undo()
    tuned = model(x).data
    assert abs(tuned - base).max() > 1e-3
    with lora.disabled(model):
        assert np.array_equal(model(x).data, base)
    lora.merge(model)
    with minigrad.no_grad():
        np.testing.assert_allclose(model(x).data, tuned, rtol=1e-11, atol=1e-12)
    lora.unmerge(model)
    assert np.array_equal(model(x).data, tuned)
    lora.detach(model)
    assert np.array_equal(model(x).data, base)


@pytest.mark.parametrize("dtype", [np.float32, D])
@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapter_has_the_dtype_of_its_layer(rng, dtype, use_dora):
    model, layer = adapted(rng, dtype=dtype, init="pissa", use_dora=use_dora)
    assert {p.dtype for p in model.parameters()} == {np.dtype(dtype)}
    y = model(rng.standard_normal((5, 6)).astype(dtype))
    assert y.dtype == dtype
    y.sum().backward()
    assert {p.grad.dtype for p in layer.trainable_params()} == {np.dtype(dtype)}


def test_an_adapter_can_be_put_on_a_layer_by_hand(rng):
    layer = LoRALayer.around(Linear(6, 4, dtype=D, rng=rng))
    layer.add("mine", Adapter(layer.weight, 2, 3.0, use_dora=True, rng=rng))
    x = minigrad.tensor(rng.standard_normal((5, 6)))
    base = layer(x).data
    layer.use(["mine"])
    assert np.array_equal(layer(x).data, base)
    with pytest.raises(ValueError, match="'mine' already"):
        layer.add("mine", Adapter(layer.weight, 2, 3.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda layer: layer.use(["a", "c"]), "no adapter 'c'; the adapters are 'a', 'b'"),
        (lambda layer: layer.use(["a", "a"]), "once or not at all, but the names are 'a', 'a'"),
        (lambda layer: layer.merge(["a", "a"]), "once or not at all, but the names are 'a', 'a'"),
        (lambda layer: layer.merge(["c"]), "no adapter 'c'"),
        (lambda layer: layer.merge(["b"]), "'b' is not an active adapter"),
        (lambda layer: layer.remove("c"), "no adapter 'c'"),
    ],
)
def test_names_that_a_layer_has_not_or_are_named_twice_change_nothing(rng, call, message):
    layer = LoRALayer.around(Linear(6, 4, dtype=D, rng=rng))
    for name in ("a", "b"):
        layer.add(name, Adapter(layer.weight, 2, 3.0, rng=rng))
    layer.use(["a"])
    with pytest.raises(ValueError, match=message):
        call(layer)
    assert (list(layer.adapters), layer.active, layer.merged) == (["a", "b"], ("a",), False)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "mica"])
def test_a_rank_that_the_weight_does_not_have_is_refused(init):
    weight = DenseMatrix(np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"rank 10 is larger than min\(d_out, d_in\) = 3"):
        Adapter(weight, 10, 4, init=init)


def test_a_generator_of_an_adapter_is_one():
    with pytest.raises(TypeError, match="rng"):
        Adapter(DenseMatrix(np.ones((3, 4))), 2, 4, init="gaussian", rng="x")
