"""Packed weights: right products, never out of date, bounded, and shared."""

import copy
import gc
import os
import pickle
import threading
import time
from functools import partial

import numpy as np
import pytest

import lora
import minigrad
from minigrad import kernels, nn, optim, readonly
from minigrad.kernels.gemm import PRODUCTS, matmul, prepacked, products
from minigrad.kernels.gemm.prepacked import PrepackedMatrix, prepack
from minigrad.kernels.jit import JIT_ENABLED
from minigrad.readonly import hold, release, writable

pytestmark = pytest.mark.skipif(not JIT_ENABLED, reason="there are no panels without kernels")

FLOATS = [np.float32, np.float64]

full = partial(pytest.param, marks=pytest.mark.full)


@pytest.fixture(autouse=True, scope="module")
def short_collections():
    """Load kernels, and leave what lives longer than a test out of each garbage collection."""
    x = np.ones((100, 210), np.float32)
    outcome(layer(np.random.default_rng(0)), x)
    gc.collect()
    gc.freeze()


@pytest.fixture
def packed():
    """How many bytes are packed since the test began."""
    gc.collect()
    before = prepacked.bytes_in_use()
    return lambda: prepacked.bytes_in_use() - before


def layer(rng, d_out=160, d_in=210, dtype=np.float32, **options):
    weight = rng.standard_normal((d_out, d_in)).astype(dtype)
    made = lora.LoRALayer(weight, d_out, d_in, 5, 10.0, bias=np.ones(d_out, dtype), **options)
    made.lora_b = 0.1 * rng.standard_normal((d_out, 5))
    return made


def outcome(model, x):
    """The output and all gradients."""
    x = minigrad.tensor(x, requires_grad=True)
    y = model(x)
    inputs = [x, *model.trainable_params()]
    return [v.numpy().copy() for v in (y.detach(), *minigrad.grad((y * y).sum(), inputs))]


def expected(made, x):
    """The same from plain arrays, in float64."""
    w, a, b = (v._data.astype(np.float64) for v in (made.base_weight, made.lora_a, made.lora_b))
    x = x.astype(np.float64)
    y = x @ w.T + made.bias.numpy() + made.scale * (x @ a.T) @ b.T
    g = 2 * y
    d = made.scale * g @ b
    return [y, g @ w + d @ a, d.T @ x, made.scale * g.T @ (x @ a.T)]


def assert_right(made, x):
    for ours, right in zip(outcome(made, x), expected(made, x), strict=True):
        size = abs(right).max()
        tolerance = 1e-12 if ours.dtype == np.float64 else 2e-5  # sums of some hundred terms
        np.testing.assert_allclose(ours / size, right / size, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [1, prepacked.ROWS - 1, prepacked.ROWS, 100, 333])
@pytest.mark.parametrize("sizes", [(160, 210), *map(full, [(130, 1100), (1100, 130)])])
def test_with_and_without_panels_a_layer_computes_the_same(dtype, rows, sizes, rng, packed):
    made = layer(rng, *sizes, dtype)
    assert_right(made, rng.standard_normal((rows, sizes[1])).astype(dtype))
    large = rows * made.base_weight.size >= 1_000_000
    assert (packed() > 0) == (rows >= prepacked.ROWS and large)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [5, 40, 100, 300])  # few, in one function, and in several
@pytest.mark.parametrize("has_panels", [False, True])
@pytest.mark.parametrize("step", [1, full(2)])
def test_the_bias_of_a_layer_is_added_after_the_product(dtype, rows, has_panels, step, rng, packed):
    x, weight, a, b = (
        rng.standard_normal(shape).astype(dtype)
        for shape in ((rows, 210), (160, 210), (5, 210), (160, 5))
    )
    bias = rng.standard_normal(160 * step).astype(dtype)[::step]
    owner = prepack(weight) if has_panels else None
    y, h = kernels.lora.forward(x, weight, a, b, bias, 2.0)
    assert (packed() > 0) == (has_panels and rows * weight.size >= kernels.lora.SMALL)
    expected = matmul(x, weight.T)
    expected += bias
    matmul(h, b.T, out=expected, add=True)
    if PRODUCTS[np.dtype(dtype)].suits_unit(rows, 160, 210):  # it adds the update before the bias
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6 * abs(expected).max())
        y, _ = kernels.lora.forward(x, weight, a, 0 * b, bias, 2.0)
        expected = matmul(x, weight.T) + bias
    np.testing.assert_array_equal(y, expected)
    del owner


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [3, 20, 60, 260])
def test_panels_change_no_bit(dtype, rows, rng, packed):
    x, weight, a, b, bias, g = (
        rng.standard_normal(shape).astype(dtype)
        for shape in ((rows, 210), (160, 210), (5, 210), (160, 5), 160, (rows, 160))
    )

    def both_passes():
        y, h = kernels.lora.forward(x, weight, a, b, bias, 2.0)
        return y, *kernels.lora.backward(g, x, weight, a, b, h, 2.0, True, True, True)

    without = both_passes()
    owner = prepack(weight)
    for packed_one, other in zip(both_passes(), without, strict=True):
        np.testing.assert_array_equal(packed_one, other)
    assert (packed() > 0) == (rows >= 60)
    del owner


@pytest.mark.parametrize("dtype", FLOATS)
def test_any_number_of_threads_gives_the_same_bits(dtype, rng):
    made, x = layer(rng, 300, 500, dtype), rng.standard_normal((200, 500)).astype(dtype)
    before = minigrad.get_num_threads()
    try:
        results = []
        for threads in range(1, before + 1):
            minigrad.set_num_threads(threads)
            results.append(outcome(made, x))
    finally:
        minigrad.set_num_threads(before)
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(one, other)


def test_nothing_that_is_not_finite_is_lost_or_made(rng):
    made, x = layer(rng), rng.standard_normal((100, 210)).astype(np.float32)
    made.base_weight.data[3, 4] = np.inf
    x[50, 4] = np.nan
    y = made(x).detach().numpy()
    assert np.isnan(y[50]).all()
    assert np.isinf(y[np.arange(100) != 50][:, 3]).all()
    assert np.isfinite(y[np.arange(100) != 50][:, np.arange(160) != 3]).all()


def raw(made, new):
    made.base_weight.data[...] = new


def raw_through_numpy(made, new):
    made.base_weight.detach().numpy()[...] = new


def raw_through_a_view(made, new):
    made.base_weight.detach().T.data[...] = new.T


def copied_in_two_parts(made, new):
    made.base_weight.detach()[:80].copy_(new[:80])
    made.base_weight.detach()[80:].copy_(new[80:])


def copied(made, new):
    made.base_weight.copy_(new)


def assigned(made, new):
    made.base_weight.data = new


def loaded(made, new):
    made.load_state_dict({**made.state_dict(), "base_weight": new})


def stepped(made, new):
    made.base_weight.requires_grad_()
    made.base_weight.grad = minigrad.tensor(made.base_weight.detach().numpy() - new)
    optim.SGD([made.base_weight], lr=1.0).step()


@pytest.mark.parametrize(
    "write",
    [
        raw,
        raw_through_numpy,
        raw_through_a_view,
        copied,
        copied_in_two_parts,
        assigned,
        loaded,
        stepped,
    ],
)
def test_panels_are_never_out_of_date(write, rng):
    made, x = layer(rng), rng.standard_normal((100, 210)).astype(np.float32)
    for _ in range(2):
        assert_right(made, x)
        new = rng.standard_normal((160, 210)).astype(np.float32)
        write(made, new)
        np.testing.assert_allclose(made.base_weight._data, new, atol=1e-6)  # as `stepped` rounds
        assert_right(made, x)


def test_while_they_are_kept_the_weight_is_read_only_also_for_who_gave_it(rng):
    weight = rng.standard_normal((160, 210)).astype(np.float32)
    made = lora.LoRALayer(weight, 160, 210, 4, 8.0)
    made(rng.standard_normal((100, 210)).astype(np.float32))
    with pytest.raises(ValueError, match="read-only"):
        weight[0, 0] = 1
    assert made.base_weight.data.flags.writeable  # asked for, and so given, and the panels dropped
    weight[0, 0] = 1
    assert made.base_weight.data[0, 0] == 1


def test_the_op_finds_panels_by_the_array_and_makes_none_of_its_own(rng, packed):
    weight = rng.standard_normal((160, 210)).astype(np.float32)
    x, a, b = (rng.standard_normal(s).astype(np.float32) for s in ((100, 210), (4, 210), (160, 4)))
    alone = minigrad.lora_linear(x, weight, a, b)
    assert packed() == 0
    assert weight.flags.writeable
    owner = prepack(weight)
    assert prepacked.find(weight) is owner is prepack(weight)
    found = minigrad.lora_linear(x, weight, a, b)
    assert packed() > 0
    np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-4)
    del owner
    gc.collect()
    assert prepacked.find(weight) is None
    assert packed() == 0
    assert weight.flags.writeable


def test_a_write_between_forward_and_backward_is_the_same_error_as_ever(rng):
    made = layer(rng)
    y = made(rng.standard_normal((100, 210)).astype(np.float32)).sum()
    made.base_weight.copy_(np.zeros((160, 210)))
    with pytest.raises(RuntimeError, match="written since"):
        y.backward()


def test_layers_on_one_weight_share_panels_and_the_last_to_go_drops_them(rng, packed):
    linear = nn.Linear(210, 160)
    x = rng.standard_normal((100, 210)).astype(np.float32)
    one, two = (lora.LoRALayer.from_linear(linear, 4, 8.0) for _ in range(2))
    one.base_weight = two.base_weight = linear.weight
    one(x)
    size = packed()
    two(x)
    assert packed() == size > 0
    del one
    gc.collect()
    assert packed() == size
    del two
    gc.collect()
    assert packed() == 0
    assert linear.weight._data.flags.writeable


def test_other_layers_on_the_same_memory_learn_of_a_write(rng, packed):
    weight = rng.standard_normal((160, 210)).astype(np.float32)
    layers = [lora.LoRALayer(weight, 160, 210, 4, 8.0) for _ in range(2)]
    x = rng.standard_normal((100, 210)).astype(np.float32)
    before = [made(x).detach().numpy().copy() for made in layers]
    layers[0].base_weight.data[...] *= 2
    assert packed() == 0
    for made, old in zip(layers, before, strict=True):
        np.testing.assert_allclose(made(x).detach().numpy(), 2 * old, rtol=1e-5)


def test_a_copy_of_a_layer_has_panels_of_its_own(rng, packed):
    made, x = layer(rng), rng.standard_normal((100, 210)).astype(np.float32)
    y = made(x).detach().numpy()
    size = packed()
    duplicate = copy.deepcopy(made)
    assert packed() == size
    np.testing.assert_array_equal(duplicate(x).detach().numpy(), y)
    assert packed() == 2 * size
    assert pickle.loads(pickle.dumps(PrepackedMatrix(np.ones((3, 4), np.float32)))) is None


def test_a_weight_that_could_not_be_made_writable_again_is_not_held(rng, packed):
    # By this protocol, numpy puts an array on the memory of a bytes object, and marks it writable.
    made, x = pickle.loads(pickle.dumps(layer(rng), 4)), rng.standard_normal((100, 210))
    x = x.astype(np.float32)
    assert_right(made, x)
    assert packed() == 0
    made.base_weight.data[...] *= 2
    assert_right(made, x)


def test_panels_that_another_thread_writes_under_are_not_kept(rng, packed, monkeypatch):
    made, x = layer(rng), rng.standard_normal((100, 210)).astype(np.float32)
    pack, memory = products.pack_all[x.dtype], made.base_weight.data

    def write():
        made.base_weight.data[...] *= 2

    def interrupted(*arguments):
        writer.start()
        deadline = time.monotonic() + 20
        while not memory.flags.writeable and time.monotonic() < deadline:
            time.sleep(0.001)
        assert memory.flags.writeable  # the writer has released it, and waits for the end of this
        pack(*arguments)

    writer = threading.Thread(target=write)
    monkeypatch.setitem(products.pack_all, x.dtype, interrupted)
    made(x)
    writer.join()
    assert packed() == 0
    monkeypatch.undo()
    assert_right(made, x)


def test_writes_through_tensors_of_other_views_are_seen(rng):
    new, x = (rng.standard_normal(s).astype(np.float32) for s in ((160, 210), (100, 210)))
    flat = rng.standard_normal(2 * 160 * 210).astype(np.float32)
    for weight in (
        minigrad.tensor(new.T * 3).T,
        minigrad.Tensor(flat[: new.size].reshape(160, 210)),
        minigrad.Tensor(np.asfortranarray(new * 2)),
    ):
        view = minigrad.Tensor(weight._data[:])
        made = lora.LoRALayer(weight, 160, 210, 5, 10.0, bias=np.zeros(160, np.float32))
        made.lora_b = 0.1 * rng.standard_normal((160, 5))
        assert_right(made, x)
        view.copy_(new)
        np.testing.assert_array_equal(made.base_weight._data, new)
        assert_right(made, x)
        view.requires_grad_()
        view.grad = minigrad.tensor(np.ones_like(new))
        optim.SGD([view], lr=1.0).step()
        np.testing.assert_allclose(made.base_weight._data, new - 1, rtol=1e-6)
        assert_right(made, x)


def test_threads_that_pack_at_once_leave_nothing_behind(rng, packed):
    x = rng.standard_normal((100, 210)).astype(np.float32)
    for _ in range(5):
        made = layer(rng)
        threads = [threading.Thread(target=lambda made=made: made(x)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert_right(made, x)
    del made, threads, thread
    gc.collect()
    assert packed() == 0


def test_packing_that_fails_leaves_the_weight_writable_and_nothing_held(rng, monkeypatch):
    before = readonly.count_holds()
    made, x = layer(rng), rng.standard_normal((100, 210)).astype(np.float32)

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(products.pack_all, x.dtype, fail)
    with pytest.raises(KeyboardInterrupt):
        made(x)
    assert made.base_weight._data.flags.writeable
    assert readonly.count_holds() == before


def test_what_repeats_numbers_of_a_held_weight_is_a_copy_still(rng):
    made = layer(rng)
    made(rng.standard_normal((100, 210)).astype(np.float32))
    weight = made.base_weight._data.copy()
    stack = minigrad.broadcast_to(made.base_weight.detach(), (2, 160, 210))
    stack.copy_(np.zeros((2, 160, 210)))
    np.testing.assert_array_equal(made.base_weight._data, weight)


def test_a_read_only_view_stays_one_and_its_tensor_has_a_copy(rng):
    weight = rng.standard_normal((160, 210)).astype(np.float32)
    fixed = weight.view()
    fixed.flags.writeable = False
    made = lora.LoRALayer(weight, 160, 210, 5, 10.0)
    made(rng.standard_normal((100, 210)).astype(np.float32))
    tensor = minigrad.Tensor(fixed)
    assert not np.shares_memory(tensor._data, weight)
    assert not fixed.flags.writeable


def test_a_tensor_on_read_only_memory_takes_what_is_written_to_it():
    tensor = minigrad.tensor([1.0, 2.0])
    tensor._data.flags.writeable = False
    tensor.copy_([3.0, 4.0])
    assert tensor.tolist() == [3.0, 4.0]


@pytest.fixture
def limit():
    """What sets the limit, until the end of the test."""
    yield minigrad.set_pack_limit
    minigrad.set_pack_limit(None)


def test_no_more_than_the_limit_is_kept(rng, packed, limit):
    x = rng.standard_normal((100, 210)).astype(np.float32)
    first, second = layer(rng), layer(rng)
    first(x)
    size = packed()
    limit(prepacked.bytes_in_use() + size // 2)
    assert_right(second, x)
    assert packed() == size
    assert second.base_weight._data.flags.writeable


def test_a_lower_limit_drops_what_is_packed(rng, packed, limit):
    x = rng.standard_normal((100, 210)).astype(np.float32)
    made = layer(rng)
    expected = made(x).detach().numpy()
    assert packed() > 0
    limit(0)
    assert prepacked.bytes_in_use() == 0
    assert made.base_weight._data.flags.writeable
    np.testing.assert_allclose(made(x).detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    assert prepacked.bytes_in_use() == 0


@pytest.mark.parametrize("size", [-1, 1.5, "1", True])
def test_a_limit_is_a_number_of_bytes(size, limit):
    with pytest.raises(ValueError, match="set_pack_limit: the number of bytes must be an integer"):
        limit(size)


@pytest.mark.parametrize(
    ("pages", "expected"), [(1 << 30, 192_000_000), (1 << 16, 64 << 20), (-1, 192_000_000)]
)
def test_the_limit_is_a_quarter_of_the_memory_at_most(pages, expected, monkeypatch):
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__, raising=False)
    assert prepacked.limit() == expected
    monkeypatch.delattr(os, "sysconf")  # as on Windows
    assert prepacked.limit() == 192_000_000


def test_small_matrices_and_other_dtypes_have_none():
    assert prepack(np.ones((8, 8), np.float32)) is None
    assert prepack(np.ones((200, 200), np.float16)) is None


@pytest.mark.parametrize(
    "alias", [np.lib.stride_tricks.as_strided, lambda a: np.asarray(memoryview(a))]
)
@pytest.mark.parametrize("packs_alias", [False, True])
def test_writes_through_an_alias_whose_base_is_no_array_are_seen(alias, packs_alias, rng):
    own, x = (rng.standard_normal(s).astype(np.float32) for s in ((160, 210), (100, 210)))
    other = alias(own)
    made = layer(rng)
    made.base_weight.data, written = (other, own) if packs_alias else (own, other)
    tensor = minigrad.Tensor(written)
    for _ in range(2):
        assert_right(made, x)
        tensor += 5.0
        assert made.base_weight._data[0, 0] == written[0, 0]
    assert_right(made, x)


# Holding memory.


class Holder:
    def __init__(self):
        self.times = 0

    def on_release(self):
        self.times += 1


def test_a_hold_ends_once_for_all_who_share_the_memory():
    whole = np.zeros((4, 5))
    part, holders = whole[1:3], [Holder(), Holder()]
    for holder in holders:
        hold(part, holder)
    assert not part.flags.writeable
    assert not whole.flags.writeable
    assert writable(whole) is whole
    assert part.flags.writeable
    assert [holder.times for holder in holders] == [1, 1]
    assert not release(part)


def test_what_is_read_only_for_another_reason_is_copied():
    fixed = np.zeros(3)
    fixed.flags.writeable = False
    assert writable(fixed) is not fixed
    assert writable(fixed).flags.writeable
    assert not fixed.flags.writeable


def test_a_held_array_that_goes_leaves_nothing_behind():
    array, holder = np.zeros(3), Holder()
    before = readonly.count_holds()
    hold(array, holder)
    assert readonly.count_holds() == before + 1
    del array
    gc.collect()
    assert readonly.count_holds() == before
