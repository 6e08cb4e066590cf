"""Numbers and lists beside tensors: they neither change the dtype nor are rounded to float32."""

import numpy as np
import pytest

import minigrad as mg

DOUBLE = mg.tensor([1.0], dtype="float64")
SINGLE = mg.tensor([1.0])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_stack_does_not_round_the_floats_of_a_list(axis):
    assert mg.stack([DOUBLE, [0.1]], axis).numpy().ravel().tolist() == [1.0, 0.1]
    assert mg.stack([DOUBLE[0], 0.1]).numpy().tolist() == [1.0, 0.1]
    assert mg.stack([mg.tensor(1.0, dtype="float16"), 0.1]).dtype == np.float16
    assert mg.stack([mg.tensor(1.0), np.float64(0.1)]).dtype == np.float32


@pytest.mark.parametrize("join", [mg.hstack, mg.vstack, mg.column_stack])
def test_a_number_or_a_list_keeps_the_dtype_of_what_is_joined(join):
    for tensor in (SINGLE, DOUBLE, mg.tensor([1.0], dtype="float16")):
        for other in (0.1, [0.1]):
            joined = join([tensor, other])
            assert joined.dtype == tensor.dtype
            assert joined.numpy().ravel()[1] == tensor.numpy().dtype.type(0.1)
    assert join([[1], [2]]).dtype == np.int64
    assert join([SINGLE, DOUBLE]).dtype == np.float64


def test_what_is_joined_is_a_sequence_of_numbers():
    with pytest.raises(TypeError, match="stack: takes tensors, arrays and numbers, not None"):
        mg.stack([SINGLE, None])
    with pytest.raises(TypeError, match="vstack: "):
        mg.vstack([SINGLE, "a"])


def test_tangents_and_cotangents_that_are_numbers_have_all_digits():
    x, twice = mg.tensor(1.0, dtype="float64"), lambda x: x * 2
    assert mg.jvp(twice, x, 0.1).tangent.item() == 0.2
    assert mg.vjp(twice, x).pullback(0.1)[0].item() == 0.2
    assert mg.hvp(lambda x: x * x, x, 0.1).item() == 0.2
    assert mg.jvp(lambda p: p["w"] * 2, {"w": x}, {"w": 0.1}).tangent.item() == 0.2
    assert mg.jvp(twice, mg.tensor(1.0), 0.1).tangent.dtype == np.float32


@pytest.mark.parametrize("scalar", [mg.tensor(2.0, dtype="float64"), np.array(2.0), 2.0])
def test_a_number_or_an_array_without_axes_keeps_the_dtype_of_xlogy(scalar):
    for x, y in ((scalar, SINGLE), (SINGLE, scalar)):
        assert mg.xlogy(x, y).dtype == np.float32
    assert mg.xlogy(SINGLE, DOUBLE).dtype == mg.xlogy(DOUBLE, SINGLE).dtype == np.float64


def test_a_list_that_is_assigned_to_data_keeps_the_dtype():
    w = mg.tensor([1.0], dtype="float64", requires_grad=True)
    w.data = [0.1]
    assert w.dtype == np.float64
    assert w.item() == 0.1
    w.data = np.float32([0.5])
    assert w.dtype == np.float32


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("is_batched", [False, True])
def test_a_state_that_is_a_list_has_all_digits(kind, is_batched):
    layer = getattr(mg.nn, kind)(2, 1, dtype="float64")
    x = mg.ones(3, 1, 2, dtype="float64") if is_batched else mg.ones(3, 2, dtype="float64")
    state = [[[0.1]]] if is_batched else [[0.1]]
    given = (state, state) if kind == "LSTM" else state
    exact = mg.tensor(state, dtype="float64")
    tensors = (exact, exact) if kind == "LSTM" else exact
    with mg.no_grad():
        assert np.array_equal(layer(x, given)[0].numpy(), layer(x, tensors)[0].numpy())


def test_lora_linear_of_integers_is_its_composition():
    i = mg.tensor(np.ones((2, 2), int))
    assert mg.lora_linear(i, i, i, i, scale=0.5).tolist() == [[4.0, 4.0], [4.0, 4.0]]


def test_the_gradients_of_a_power_at_nan():
    """Those of PyTorch: a^0 is 1 for every a, and a nan in the exponent is not hidden at a = 0."""
    nan = float("nan")
    for a, b, expected in ((nan, 0.0, (0.0, nan)), (0.0, nan, (nan, nan)), (nan, nan, (nan, nan))):
        operands = [mg.tensor([v], requires_grad=True) for v in (a, b)]
        found = mg.grad((operands[0] ** operands[1]).sum(), operands)
        assert np.array_equal([g.item() for g in found], expected, equal_nan=True)


def test_what_numpy_accepts_at_the_edges():
    padded = mg.pad(mg.ones(1), 1, constant_values=-0.0).numpy()
    assert np.signbit(padded).tolist() == [True, False, True]
    assert mg.repeat(mg.zeros(0), []).shape == (0,)
    assert mg.roll(mg.tensor([1.0, 2.0]), [], []).tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="repeat: takes a number of repeats"):
        mg.repeat(mg.zeros(3), [])


def test_a_number_is_in_a_tensor_of_any_number_of_axes():
    for shape in ((2,), (1, 2), (2, 1, 1)):
        x = mg.tensor([1.0, 3.0]).reshape(shape)
        assert 3.0 in x
        assert 2.0 not in x
