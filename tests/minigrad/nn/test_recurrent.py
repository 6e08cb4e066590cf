"""RNN, GRU and LSTM: states, shapes, layers, directions, dropout, errors, capture, derivatives."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad as mg
from minigrad import grad, gradcheck, nn, receipt
from minigrad.io import load_state, save_state
from minigrad.kernels.jit import JIT_ENABLED
from tests.cases.recurrent import GATES, recurrence
from tests.minigrad.nn.test_layers import scatter

KINDS = ["RNN", "GRU", "LSTM"]
L, N, D_IN, H = 4, 3, 5, 7


def layer_of(kind, *arguments, **options):
    """A layer or cell in float64 with random parameters."""
    options = {"dtype": np.float64} | options
    return scatter(getattr(nn, kind)(D_IN, H, *arguments, **options), np.random.default_rng(1))


def as_states(kind, make):
    """What `make` gives as a state of this kind: h, or (h, c)."""
    return (make(), make()) if kind.startswith("LSTM") else make()


def flat(*results):
    """The tensors in outputs and states."""
    return [x for r in results for x in (flat(*r) if isinstance(r, (tuple, list)) else [r])]


def same(found, expected, **tolerance):
    for one, other in zip(flat(found), flat(expected), strict=True):
        assert one.shape == other.shape
        assert_allclose(one.data, other.data, **(tolerance or {"rtol": 1e-12, "atol": 1e-14}))


def by_hand(layer, x, first):
    """All layers in numpy; `first` has h, or h and c side by side, of each layer and direction."""
    last, directions = [], ["", "_reverse"] if layer.bidirectional else [""]
    for number in range(layer.num_layers):
        outputs = []
        for direction in directions:
            w_ih, w_hh, b_ih, b_hh = (
                getattr(layer, f"{name}_l{number}{direction}").data
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            steps = (x[::-1] if direction else x) @ w_ih.T + b_ih
            states = recurrence(steps, first[len(last)], w_hh, b_hh, layer.cell)
            last.append(states[-1])
            outputs.append(states[::-1, :, :H] if direction else states[:, :, :H])
        x = np.concatenate(outputs, -1)
    return x, np.stack(last)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_layers_are_what_the_cells_say_step_by_step(rng, num_layers, bidirectional, kind):
    layer = layer_of(kind, num_layers, bidirectional=bidirectional)
    D = num_layers * (1 + bidirectional)
    x = rng.standard_normal((L, N, D_IN))
    state = as_states(kind, lambda: mg.tensor(rng.standard_normal((D, N, H))))
    joined = np.concatenate([s.data for s in flat(state)], -1)
    for given, first in ((None, 0 * joined), (state, joined)):
        out, last = layer(mg.tensor(x), given)
        expected, expected_last = by_hand(layer, x, first)
        assert_allclose(out.data, expected, rtol=1e-12, atol=1e-14)
        found = np.concatenate([s.data for s in flat(last)], -1)
        assert_allclose(found, expected_last, rtol=1e-12, atol=1e-14)


def test_an_rnn_may_have_relu():
    layer = layer_of("RNN", nonlinearity="relu")
    x = np.ones((L, N, D_IN))
    out, _ = layer(mg.tensor(x))
    expected, _ = by_hand(layer, x, np.zeros((1, N, H)))
    assert_allclose(out.data, expected, rtol=1e-12)
    assert (out.data == 0).any()
    cell = layer_of("RNNCell", nonlinearity="relu")
    assert cell(mg.tensor(x[0])).data.min() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_may_come_first_or_be_missing(rng, kind):
    x = mg.tensor(rng.standard_normal((L, N, D_IN)))
    state = as_states(kind, lambda: mg.tensor(rng.standard_normal((4, N, H))))
    options = {"num_layers": 2, "bidirectional": True}
    layer, first = layer_of(kind, **options), layer_of(kind, batch_first=True, **options)
    out, last = layer(x, state)
    out_first, last_first = first(x.swapaxes(0, 1), state)
    same((out_first.swapaxes(0, 1), last_first), (out, last))
    for n in range(N):
        one = tuple(s[:, n] for s in flat(state))
        for each in (layer, first):
            out_one, last_one = each(x[:, n], one if kind == "LSTM" else one[0])
            same(flat(out_one, last_one), [out[:, n], *(s[:, n] for s in flat(last))])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_cell_does_one_step_of_a_layer(rng, bias, kind):
    layer, cell = layer_of(kind, bias=bias), layer_of(f"{kind}Cell", bias)
    layer.load_state_dict({f"{name}_l0": v for name, v in cell.state_dict().items()})
    assert len(layer.state_dict()) == (4 if bias else 2)
    x = mg.tensor(rng.standard_normal((L, N, D_IN)))
    out, last = layer(x)
    state = one = None
    for t in range(L):
        state, one = cell(x[t], state), cell(x[t, 0], one)
        same(flat(state)[0], out[t])
    same(flat(state), [s[0] for s in flat(last)])
    same(flat(one), [s[0, 0] for s in flat(last)])


@pytest.mark.parametrize("kind", [*KINDS, "LSTMCell"])
def test_an_array_of_another_library_is_one_of_numbers(rng, kind):
    x = rng.standard_normal((L, N, D_IN) if kind in KINDS else (N, D_IN))

    class OfAnotherLibrary:  # such as a tensor of PyTorch, which has a dtype of its own
        dtype, ndim, shape = "torch.float64", x.ndim, x.shape

        def __array__(self, dtype=None, copy=None):
            return x

    layer = layer_of(kind)
    same(layer(OfAnotherLibrary()), layer(x))


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_have_the_names_and_the_range_of_pytorch(kind):
    layer = getattr(nn, kind)(D_IN, H, 2, bidirectional=True, rng=np.random.default_rng(0))
    height = GATES.get(kind.lower(), 1) * H
    expected = {}
    for number, direction in itertools.product(range(2), ("", "_reverse")):
        end = f"_l{number}{direction}"
        expected |= {
            f"weight_ih{end}": (height, 2 * H if number else D_IN),
            f"weight_hh{end}": (height, H),
            f"bias_ih{end}": (height,),
            f"bias_hh{end}": (height,),
        }
    assert {n: p.shape for n, p in layer.named_parameters()} == expected
    assert list(layer.state_dict()) == list(expected)
    values = np.concatenate([p.data.ravel() for p in layer.parameters()])
    assert values.dtype == np.float32
    assert 0.95 < np.abs(values).max() * H**0.5 <= 1
    assert abs(values.mean()) * H**0.5 < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_goes_through_a_file(rng, kind, tmp_path):
    layer = layer_of(kind, 2, bidirectional=True)
    save_state(tmp_path / "layer.safetensors", layer.state_dict())
    again = getattr(nn, kind)(D_IN, H, 2, bidirectional=True, dtype=np.float64)
    again.load_state_dict(load_state(tmp_path / "layer.safetensors")[0])
    x = mg.tensor(rng.standard_normal((L, N, D_IN)))
    for one, other in zip(flat(layer(x)), flat(again(x)), strict=True):
        assert_array_equal(one.data, other.data)


# ----------------------------------------------------------------------------------------------
# Derivatives
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_by_the_input_and_the_first_state(rng, kind):
    layer = scatter(getattr(nn, kind)(2, 2, 2, bidirectional=True, dtype=np.float64), rng)

    def f(x, h, *c):
        out, last = layer(x, (h, *c) if c else h)
        return mg.concatenate([y.reshape(-1) for y in flat(out, last)])

    states = flat(as_states(kind, lambda: mg.tensor(rng.standard_normal((4, 1, 2)))))
    assert gradcheck(f, [rng.standard_normal((2, 1, 2)), *states], order=1)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode_and_reverse_mode_agree(rng, kind):
    layer = layer_of(kind, 2, bidirectional=True)
    x, v = rng.standard_normal((2, L, N, D_IN))
    u = rng.standard_normal((L, N, 2 * H))
    f = lambda x: layer(x)[0]
    _, along = mg.jvp(f, x, v)
    leaf = mg.tensor(x, requires_grad=True)
    (back,) = grad(f(leaf), [leaf], u)
    assert_allclose((along.data * u).sum(), (back.data * v).sum(), rtol=1e-10)


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize(("steps", "batch", "size"), [(3, 40, 33), (2, 17, 40), (4, 1, 64)])
def test_a_kernel_does_what_the_composition_does(rng, steps, batch, size, cell):
    """Sizes around those of the register tile, on one thread and on two."""
    gates, states = GATES[cell], 1 + (cell == "lstm")
    shapes = (steps, batch, gates * size), (batch, states * size), (gates * size, size)
    arrays = [rng.standard_normal(shape) for shape in (*shapes, (gates * size,))]
    arrays[2] /= size**0.5
    g = rng.standard_normal((steps, batch, states * size))

    def run(dtype, function=mg.recurrence):
        leaves = [mg.tensor(a.astype(dtype), requires_grad=True) for a in arrays]
        out = function(*leaves, cell)
        return [y.data for y in (out, *grad(out, leaves, g.astype(dtype)))]

    expected = run(np.float64, mg.recurrence.compose)
    for dtype, rounding in ((np.float64, 1e-14), (np.float32, 2e-6)):
        found = run(dtype)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == dtype
            assert_allclose(one, other, rtol=0, atol=rounding * (1 + abs(other).max()))
    threads = mg.get_num_threads()
    mg.set_num_threads(1)
    try:
        alone = run(np.float32)
    finally:
        mg.set_num_threads(threads)
    for one, other in zip(found, alone, strict=True):
        assert_array_equal(one, other)


@pytest.mark.skipif(not JIT_ENABLED, reason="numpy keeps subnormal numbers")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell", GATES)
def test_what_a_sequence_forgets_becomes_0(cell, dtype):
    """A state and a gradient that shrink in each step would end as subnormal numbers."""
    gates, states, steps, size = GATES[cell], 1 + (cell == "lstm"), 400, 20
    tiny = np.finfo(dtype).tiny
    inputs = np.zeros((steps, 3, gates, size), dtype)
    if states == 2:
        inputs[:, :, 1] = 3  # the forget gate is almost open
    elif gates == 3:
        inputs[:, :, 1] = 3  # n has a small share
    first = np.full((3, states * size), 100 * tiny, dtype)
    weight = np.zeros((gates, size, size), dtype)
    if gates == 1:
        weight[0] = 0.9 * np.eye(size)
    leaves = [
        mg.tensor(a, requires_grad=True)
        for a in (inputs.reshape(steps, 3, -1), first, weight.reshape(-1, size))
    ]
    out = mg.recurrence(*leaves, cell=cell)
    g = np.zeros(out.shape, dtype)
    g[-1] = 100 * tiny
    by_x, by_state, _ = grad(out, leaves, g)
    for values in (out.data[-1], by_x.data[0], by_state.data):
        assert np.all(values == 0)


@pytest.mark.parametrize("frozen", ["x", "state", "weight", "bias"])
def test_what_needs_no_gradient_gets_none(rng, frozen):
    inputs = {"x": (L, N, 3 * H), "state": (N, H), "weight": (3 * H, H), "bias": (3 * H,)}
    arrays = {name: rng.standard_normal(shape) for name, shape in inputs.items()}

    def gradients(names):
        leaves = {n: mg.tensor(a, requires_grad=n in names) for n, a in arrays.items()}
        out = mg.recurrence(**leaves, cell="gru")
        return dict(zip(names, grad(out.sum(), [leaves[n] for n in names]), strict=True))

    all_of_them = gradients(list(inputs))
    some = gradients([name for name in inputs if name != frozen])
    assert frozen not in some
    for name, found in some.items():
        assert_array_equal(found.data, all_of_them[name].data)


@pytest.mark.parametrize("cell", GATES)
def test_a_receipt_counts_what_the_composition_takes(cell):
    gates, states = GATES[cell], 1 + (cell == "lstm")
    shapes = (4, 8, gates * 32), (8, states * 32), (gates * 32, 32), (gates * 32,)
    flops = []
    for function in (mg.recurrence, mg.recurrence.compose):
        leaves = [mg.tensor(np.ones(shape), requires_grad=True) for shape in shapes]
        with receipt() as r:
            function(*leaves, cell).sum().backward()
        flops.append((r.forward_flops, r.backward_flops))
    assert flops[0][0] == flops[1][0]
    assert flops[0][1] == pytest.approx(flops[1][1], rel=0.1)


def test_mixed_dtypes_are_computed_without_a_kernel(rng):
    layer = layer_of("LSTM")
    x = rng.standard_normal((L, N, D_IN)).astype(np.float32)
    single = layer_of("LSTM", dtype=np.float32)
    state = mg.tensor(np.zeros((1, N, H)), requires_grad=True)
    out, _ = single(mg.tensor(x), (state, state))
    expected, _ = layer(mg.tensor(x.astype(np.float64)))
    assert_allclose(out.data, expected.data, rtol=1e-4, atol=1e-5)
    (found,) = grad(out.sum(), [state])
    assert found.dtype == np.float64


# ----------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_between_layers_and_in_training_only(rng, kind):
    x = mg.tensor(rng.standard_normal((L, N, D_IN)))
    plain, dropping = layer_of(kind, 2), layer_of(kind, 2, dropout=0.5)
    same(dropping.eval()(x), plain(x))
    out, last = dropping.train()(x)
    assert not np.allclose(out.data, plain(x)[0].data)
    same(flat(last)[0][0], flat(plain(x)[1])[0][0])  # of the first layer
    with pytest.warns(UserWarning, match=rf"^{kind}: dropout=0.5 drops nothing.* num_layers=1;"):
        one = layer_of(kind, 1, dropout=0.5)
    same(one(x), layer_of(kind)(x))
    nothing, _ = layer_of(kind, 2, dropout=1.0)(x)
    zeros = mg.tensor(np.zeros((L, N, H)))
    second = scatter(getattr(nn, kind)(H, H, dtype=np.float64), rng)
    second.load_state_dict(
        {n.replace("l1", "l0"): v for n, v in plain.state_dict().items() if "l1" in n}
    )
    same(nothing, second(zeros)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_step_is_the_step(kind):
    def make():
        rng = np.random.default_rng(0)
        layer, head = getattr(nn, kind)(D_IN, H, 2, rng=rng), nn.Linear(H, 1, rng=rng)
        optimizer = mg.optim.Adam([*layer.parameters(), *head.parameters()])

        def step(x, y):
            optimizer.zero_grad()
            loss = mg.mse(head(layer(x)[0][-1]), y)
            loss.backward()
            optimizer.step()
            return loss

        return step

    rng = np.random.default_rng(1)
    step, captured = make(), mg.capture(make())
    for _ in range(4):
        x, y = (rng.standard_normal(s).astype(np.float32) for s in ((L, N, D_IN), (N, 1)))
        expected, found = step(mg.tensor(x), mg.tensor(y)), captured(mg.tensor(x), mg.tensor(y))
        assert found.item() == expected.item()


# ----------------------------------------------------------------------------------------------
# Bad input
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_has_an_empty_output(kind):
    out, last = layer_of(kind, 2)(mg.tensor(np.zeros((L, 0, D_IN))))
    assert out.shape == (L, 0, H)
    assert [s.shape for s in flat(last)] == [(2, 0, H)] * len(flat(last))
    cell = layer_of(f"{kind}Cell")(mg.tensor(np.zeros((0, D_IN))))
    assert flat(cell)[0].shape == (0, H)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ((L, N, D_IN + 1), f"size {D_IN}"),
        ((D_IN,), "3 axes"),
        ((1, L, N, D_IN), "3 axes"),
        ((0, N, D_IN), "at least one step"),
        ((0, D_IN), "at least one step"),
    ],
)
def test_an_input_of_another_shape_is_refused(shape, part, kind):
    with pytest.raises(ValueError, match=f"{kind}: .*{part}"):
        layer_of(kind)(mg.tensor(np.zeros(shape)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, N, H + 1), (2, N, H), (1, N + 1, H), (N, H), (1, 1, N, H)])
def test_a_state_of_another_shape_is_refused(shape, kind):
    state = as_states(kind, lambda: mg.tensor(np.zeros(shape)))
    with pytest.raises(ValueError, match=rf"{kind}: .*must have shape \(1, {N}, {H}\), but"):
        layer_of(kind)(mg.tensor(np.zeros((L, N, D_IN))), state)
    with pytest.raises(ValueError, match=rf"{kind}Cell: .*must have shape \({N}, {H}\), but"):
        layer_of(f"{kind}Cell")(mg.tensor(np.zeros((N, D_IN))), as_states(kind, lambda: np.ones(H)))


def test_the_state_of_an_lstm_is_a_pair():
    x, h = mg.tensor(np.zeros((2, N, D_IN))), mg.tensor(np.zeros((1, N, H)))
    for state, said in ((h, "Tensor"), ((h,), "tuple of 1"), ([h, h, h], "list of 3")):
        with pytest.raises(TypeError, match=rf"LSTM: .*pair \(h, c\), not {said}$"):
            layer_of("LSTM")(x, state)
    with pytest.raises(ValueError, match="LSTM"):
        layer_of("LSTM")(x, (h, h[0]))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"input_size": 0}, "input_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_layers": 0}, "num_layers"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_of_impossible_sizes_is_refused(options, part, kind):
    with pytest.raises(ValueError, match=f"{kind}: {part}"):
        getattr(nn, kind)(**{"input_size": 2, "hidden_size": 3} | options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bias", "batch_first", "bidirectional"])
def test_a_flag_of_a_layer_is_true_or_false(name, kind):
    with pytest.raises(TypeError, match=f"{kind}: {name} must be True or False, not 0.5"):
        getattr(nn, kind)(D_IN, H, **{name: 0.5})
    with pytest.raises(TypeError, match=f"{kind}Cell: bias must be True or False, not 0.5"):
        getattr(nn, f"{kind}Cell")(D_IN, H, 0.5)


def test_a_nonlinearity_is_tanh_or_relu():
    for kind in ("RNN", "RNNCell"):
        with pytest.raises(ValueError, match="'tanh' or 'relu', not 'gelu'"):
            getattr(nn, kind)(2, 3, nonlinearity="gelu")


@pytest.mark.parametrize(
    ("shapes", "cell", "part"),
    [
        ([(2, 1, 8), (1, 4), (8, 2)], "elman", "'elman'"),
        ([(2, 1, 8), (1, 4), (6, 2)], "lstm", r"\(4 H, H\)"),
        ([(2, 1, 6), (1, 4), (8, 2)], "lstm", r"\(L, N, 8\)"),
        ([(1, 8), (1, 4), (8, 2)], "lstm", r"\(L, N, 8\)"),
        ([(0, 1, 8), (1, 4), (8, 2)], "lstm", "at least one step"),
        ([(2, 1, 8), (1, 2), (8, 2)], "lstm", r"state must have shape \(1, 4\), but has \(1, 2\)"),
        ([(2, 1, 6), (2, 2), (6, 2)], "gru", r"state must have shape \(1, 2\), but has \(2, 2\)"),
        (
            [(2, 1, 8), (1, 4), (8, 2), (2,)],
            "lstm",
            r"bias must have shape \(8,\), one number for each gate unit, but has \(2,\)",
        ),
    ],
)
def test_a_recurrence_of_shapes_that_do_not_match_is_refused(shapes, cell, part):
    with pytest.raises(ValueError, match=f"recurrence: .*{part}"):
        mg.recurrence(*map(np.ones, shapes), cell=cell)


def test_a_layer_says_what_it_is():
    layer = nn.LSTM(5, 7, 2, batch_first=True, dropout=0.1, bidirectional=True)
    assert repr(layer).startswith(
        "LSTM(5, 7, num_layers=2, batch_first=True, dropout=0.1, bidirectional=True)"
    )
    assert repr(nn.GRUCell(5, 7, bias=False)).startswith("GRUCell(5, 7, bias=False)")
    for kind in (nn.RNN, nn.RNNCell):
        assert "nonlinearity" not in repr(kind(5, 7))
        relu = kind(5, 7, nonlinearity="relu")
        assert relu.nonlinearity == "relu"
        assert "(5, 7, nonlinearity='relu')" in repr(relu)
