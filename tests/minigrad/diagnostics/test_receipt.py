"""The receipt of a step: FLOPs against closed forms, bytes against tracemalloc."""

import gc
import threading
import tracemalloc
import weakref
from contextlib import ExitStack
from itertools import pairwise

import numpy as np
import pytest

import lora
import minigrad
from minigrad import Tensor, checkpoint, grad, nn, no_grad, receipt
from minigrad.core.grad_mode import mode
from minigrad.diagnostics import Receipt, compare
from minigrad.kernels.jit import JIT_ENABLED
from minigrad.optim import SGD, Adam

needs_jit = pytest.mark.skipif(not JIT_ENABLED, reason="ops compute attention without kernels")


def drawn(*shape, requires_grad=False, dtype=np.float32, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return Tensor(values, requires_grad=requires_grad)


def mlp(*sizes, bias=True, activation=minigrad.gelu):
    return nn.MLP(sizes, activation, bias=bias, rng=np.random.default_rng(0))


def adapted(model, rank=4):
    lora.attach(model, lora.LoRAConfig(rank=rank, alpha=8), rng=np.random.default_rng(1))
    return model


def step(model, x, optimizer=None):
    with receipt() as r:
        model(x).sum().backward()
        if optimizer is not None:
            optimizer.step()
    return r


def flops(r, phase, op, *inputs):
    """The FLOPs of an op in a phase; of one input, if it is named."""
    wanted = inputs or {row.input for row in r.rows}
    return sum(
        row.flops for row in r.rows if row.phase == phase and row.op == op and row.input in wanted
    )


def of_inputs(r, phase, op):
    return {row.input: row.flops for row in r.rows if row.phase == phase and row.op == op}


# ------------------------------------------------------------------------------------------------
# FLOPs
# ------------------------------------------------------------------------------------------------

N, WIDTHS = 16, (12, 20, 8, 6)
PAIRS = list(pairwise(WIDTHS))
PRODUCTS = sum(2 * N * a * b for a, b in PAIRS)
FIRST = 2 * N * WIDTHS[0] * WIDTHS[1]


@pytest.mark.parametrize("bias", [True, False])
def test_an_mlp_trained_in_full(bias):
    r = step(mlp(*WIDTHS, bias=bias), drawn(N, WIDTHS[0]))
    outs = N * sum(WIDTHS[1:])
    hidden = N * sum(WIDTHS[1:-1])
    assert flops(r, "forward", "linear") == PRODUCTS + bias * outs
    assert flops(r, "forward", "gelu") == 2 * hidden  # x Phi(x)
    assert r.forward_flops == PRODUCTS + bias * outs + 2 * hidden + N * WIDTHS[-1]
    assert of_inputs(r, "backward", "linear") == {
        "weight": PRODUCTS,
        "x": PRODUCTS - FIRST,
        **({"bias": outs} if bias else {}),
    }
    assert r.backward_flops == 2 * PRODUCTS - FIRST + bias * outs + 8 * hidden
    assert r.skipped_flops == FIRST  # nobody asks for the gradient of the batch
    assert r.flops == r.forward_flops + r.backward_flops
    assert (r.steps, r.passes, r.recomputed_flops, r.optimizer_flops) == (0, 1, 0, 0)


@pytest.mark.parametrize("bias", [True, False])
def test_the_same_mlp_with_adapters(bias):
    rank = 4
    r = step(adapted(mlp(*WIDTHS, bias=bias), rank), drawn(N, WIDTHS[0]))
    downs, ups = (sum(2 * N * rank * pair[i] for pair in PAIRS) for i in (0, 1))
    outs, hs = N * sum(WIDTHS[1:]), 3 * N * rank
    assert flops(r, "forward", "lora_linear") == PRODUCTS + downs + ups + hs + (1 + bias) * outs
    assert of_inputs(r, "backward", "lora_linear") == {
        "x": PRODUCTS - FIRST + downs - 2 * N * rank * WIDTHS[0] + N * sum(WIDTHS[1:-1]),
        "lora_a": downs,
        "lora_b": ups,
        "shared": ups + hs,  # scale g B, which dA needs in the first layer too
    }
    assert of_inputs(r, "not done", "lora_linear") == {
        "weight": PRODUCTS,
        "x": FIRST + 2 * N * rank * WIDTHS[0] + N * WIDTHS[0],
    }


def test_a_frozen_weight_spares_one_product_of_the_layer():
    layer = nn.Linear(12, 20)
    layer.weight.requires_grad_(False)
    r = step(layer, drawn(N, 12, requires_grad=True))
    assert of_inputs(r, "not done", "linear") == {"weight": 2 * N * 12 * 20}
    assert of_inputs(r, "backward", "linear") == {"x": 2 * N * 12 * 20, "bias": N * 20}


def test_layers_below_all_that_trains_have_no_backward_at_all():
    model = nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 8))
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    r = step(model, drawn(N, 12))
    first, second = 2 * N * 12 * 20, 2 * N * 20 * 8
    assert of_inputs(r, "not done", "linear") == {"weight": first, "x": first + second}
    assert of_inputs(r, "backward", "linear") == {"weight": second, "bias": N * 8}


def test_a_product_of_what_is_all_frozen_is_spared_once_and_by_a_backward_pass_only():
    x, y, trained = drawn(N, 12), drawn(12, 20), drawn(5, requires_grad=True)
    with receipt() as r:
        x @ y
        assert r.skipped_flops == 0
        with no_grad():
            x @ y
        trained.exp().sum().backward()
        trained.exp().sum().backward()
    assert of_inputs(r, "not done", "matmul") == {"a": 2 * N * 12 * 20, "b": 2 * N * 12 * 20}


def test_matrix_products_of_stacks():
    x, y = drawn(5, 1, 2, 3, requires_grad=True), drawn(7, 3, 4, requires_grad=True)
    with receipt() as r:
        (x @ y).sum().backward()
    product = 2 * 5 * 7 * 2 * 3 * 4
    assert flops(r, "forward", "matmul") == product
    # The gradients have both leading axes, and are summed to the shape of x and of y.
    assert of_inputs(r, "backward", "matmul") == {
        "a": product + 5 * 7 * 2 * 3,
        "b": product + 5 * 7 * 3 * 4,
    }


def test_einsum_is_one_matrix_product():
    x, y = drawn(5, 2, 3, requires_grad=True), drawn(3, 5, 4)
    with receipt() as r:
        minigrad.einsum("bij,jbk->bik", x, y).sum().backward()
    product = 2 * 5 * 2 * 3 * 4
    assert flops(r, "forward", "matmul") == product
    assert flops(r, "backward", "matmul") == product
    assert flops(r, "not done", "matmul") == product


@needs_jit
@pytest.mark.parametrize("added", [False, True])
def test_attention(added):
    batch, heads, length, keys, d = 2, 3, 5, 7, 4
    q = drawn(batch, heads, length, d, requires_grad=True)
    k, v = (drawn(batch, heads, keys, d, requires_grad=True, seed=i) for i in (1, 2))
    mask = drawn(length, keys, requires_grad=True) if added else None
    with receipt() as r:
        minigrad.scaled_dot_product_attention(q, k, v, mask).sum().backward()
    scores = batch * heads * length * keys
    product = 2 * scores * d
    # A mask of floats is compared with -inf and added; masked scores are replaced twice.
    forward = 2 * product + (6 + 3 * added) * scores + added * length * keys
    assert flops(r, "forward", "fused_attention") == forward
    of = of_inputs(r, "backward", "fused_attention")
    # The scores once more, with exp; the gradient of the weights, and of the scores from it.
    again, slopes = product + 3 * scores, product + 2 * scores + 2 * batch * heads * length * d
    assert of.pop("added", 0) == added * scores  # summed over batch and heads
    assert of == {"query": product, "key": product, "value": product, "shared": again + slopes}


@needs_jit
def test_attention_of_which_only_the_values_train():
    q, k = drawn(5, 4), drawn(7, 4, seed=1)
    v = drawn(7, 4, requires_grad=True, seed=2)
    with receipt() as r:
        minigrad.scaled_dot_product_attention(q, k, v).sum().backward()
    product = 2 * 5 * 7 * 4
    assert of_inputs(r, "backward", "fused_attention") == {
        "value": product,
        "shared": product + 3 * 5 * 7,
    }
    assert of_inputs(r, "not done", "fused_attention") == {"query": product, "key": product}


def test_a_chain_of_elementwise_ops():
    h = x = drawn(100, requires_grad=True)
    with receipt() as r:
        for _ in range(10):
            h = h.tanh().exp() * 2
        h.sum().backward()
    assert r.forward_flops == 10 * 3 * 100 + 100
    assert r.backward_flops == 10 * (3 + 1 + 1) * 100
    assert x.grad is not None


def test_gradients_that_meet_in_one_tensor_are_added():
    x = drawn(100, requires_grad=True)
    with receipt() as r:
        (x * x + x).sum().backward()
    assert flops(r, "backward", "sum of gradients") == 2 * 100
    assert of_inputs(r, "backward", "multiply") == {"a": 100, "b": 100}


def test_a_recorded_backward_and_the_one_through_it():
    x = drawn(50, requires_grad=True)
    with receipt() as r:
        y = (x * x * x).sum()
        first = grad(y, x, create_graph=True)
    # 2 VJPs of each product, and 2 times a sum of gradients
    assert r.backward_flops == 4 * 50 + 2 * 50
    with receipt() as both:
        y = (x * x * x).sum()
        first = grad(y, x, create_graph=True)
        first.sum().backward()
    assert both.forward_flops == r.forward_flops + 50
    assert both.backward_flops > 2 * r.backward_flops
    assert both.passes == 2
    assert both.uncounted == {}


def test_checkpoints_run_their_forward_again():
    def f(x):
        return x.exp().tanh().sin()

    x = drawn(100, requires_grad=True)
    with receipt() as plain:
        f(x).sum().backward()
    x.zero_grad()
    with receipt() as r:
        checkpoint(f, x).sum().backward()
    assert r.forward_flops == plain.forward_flops == 400
    assert r.recomputed_flops == 300
    assert r.backward_flops == plain.backward_flops
    assert r.passes == 1
    assert [row.op for row in r.rows if row.phase == "recomputed"].count("exp") == 1


def test_all_that_a_checkpoint_runs_again_is_recomputed():
    w = drawn(8, 8, requires_grad=True)

    def scaled(h):
        with no_grad():
            scale = minigrad.exp(h)
        return (h @ w) * scale

    def inner(h):
        return checkpoint(scaled, h)

    product, each = 2 * 4 * 8 * 8, 4 * 8
    for f, times in ((scaled, 1), (inner, 2)):
        for create_graph in (False, True):
            with receipt() as r:
                checkpoint(f, drawn(4, 8)).sum().backward(create_graph=create_graph)
            assert of_inputs(r, "forward", "exp") == {"": each}
            assert of_inputs(r, "recomputed", "exp") == {"": times * each}
            assert of_inputs(r, "recomputed", "matmul") == {"": times * product}
            assert flops(r, "backward", "exp") == 0


def test_a_hook_that_records_is_no_checkpoint():
    x = drawn(4, 8, requires_grad=True)
    y = minigrad.tanh(x)
    y.register_hook(lambda g: minigrad.enable_grad()(minigrad.exp)(g))
    with receipt() as r:
        y.sum().backward()
    assert of_inputs(r, "backward", "exp") == {"": 32}
    assert r.recomputed_flops == 0


def test_what_is_added_to_an_earlier_gradient_is_counted():
    x = drawn(4, 8, requires_grad=True)
    with receipt() as r:
        for _ in range(3):
            (2 * x).sum().backward()
        grad((2 * x).sum(), x)  # which adds to nothing
    assert of_inputs(r, "backward", "sum of gradients") == {"": 2 * 32}
    assert r.gradient_bytes == 4 * 32


def test_a_receipt_may_begin_in_a_hook():
    x = drawn(3, requires_grad=True)
    y = minigrad.exp(x)
    with ExitStack() as stack:
        y.register_hook(lambda g: stack.enter_context(receipt()) and None)
        minigrad.sin(y).sum().backward()  # ends inside of the receipt
        assert np.allclose(x.grad.data, np.cos(y.data) * y.data)


def test_a_hook_counts_as_a_part_of_the_backward_pass():
    x = drawn(100, requires_grad=True)
    with receipt() as r:
        y = x.exp()
        y.register_hook(lambda g: g.clip(-1.0, 1.0))
        y.sum().backward()
    assert flops(r, "backward", "clip") == 200


def test_a_retained_graph_costs_the_same_again():
    model, x = mlp(4, 8, 2), drawn(3, 4)
    once = step(model, x)
    model.zero_grad()
    with receipt() as r:
        loss = model(x).sum()
        loss.backward(retain_graph=True)
        model.zero_grad()
        loss.backward()
    assert r.backward_flops == 2 * once.backward_flops
    assert r.skipped_flops == 2 * once.skipped_flops


def test_a_graph_recorded_before_the_receipt_is_listed_as_not_counted():
    x = drawn(5, requires_grad=True)
    y = x.exp().sum()
    with receipt() as r:
        y.backward()
    assert r.uncounted == {
        "VJP of exp, an op that was recorded outside of the receipt": 1,
        "VJP of sum, an op that was recorded outside of the receipt": 1,
    }
    assert "not counted: 1 x VJP of exp" in repr(r)
    assert (r.saved_bytes, r.timeline) == (0, [])


# ------------------------------------------------------------------------------------------------
# Bytes
# ------------------------------------------------------------------------------------------------

# Of a few megabytes, so that Python's own objects, a few kilobytes for a graph, are within 1 %.
ROWS, D = 2048, 256
BLOCK = ROWS * D * 4


@pytest.fixture
def traced():
    """A function that says how many bytes numpy and Python hold more than at its last call."""
    gc.collect()
    tracemalloc.start()
    last = tracemalloc.get_traced_memory()[0]

    def since():
        nonlocal last
        gc.collect()
        now = tracemalloc.get_traced_memory()[0]
        last, change = now, now - last
        return change

    yield since
    tracemalloc.stop()


def near(count):
    return pytest.approx(count, rel=0.01, abs=20_000)


@pytest.mark.full
@pytest.mark.parametrize("adapt", [False, True])
def test_bytes_are_those_that_the_process_holds(traced, adapt):
    model = mlp(D, D, D, D)
    if adapt:
        adapted(model)
    x = drawn(ROWS, D)
    step(model, x, Adam(model.trainable_parameters()))  # for what kernels prepare and keep
    optimizer = Adam(model.trainable_parameters())
    optimizer.zero_grad()
    traced()
    with receipt() as r:
        loss = model(x).sum()
        saved, held = r.saved_bytes, traced()
        assert held == near(saved)
        loss.backward()
        assert r.freed_bytes == saved
        assert traced() == near(r.gradient_bytes - saved)
        optimizer.step()
        assert traced() == near(r.optimizer_bytes)
    numbers = sum(p.size for p in model.trainable_parameters())
    assert (r.trained, r.gradient_bytes, r.optimizer_bytes) == (numbers, 4 * numbers, 8 * numbers)
    # gelu saves what goes in, and the layer after it what comes out; the adapters save x A^T.
    h = 3 * ROWS * 4 * 4 if adapt else 0
    assert saved == r.peak_saved_bytes == 4 * BLOCK + h
    # The batch; and all parameters, for a recorded pass, or the weights that gradients cross.
    held = model.parameters() if adapt else [model.layers[i].weight for i in (1, 2)]
    assert r.input_bytes == BLOCK + sum(p.data.nbytes for p in held)


def test_dropout_keeps_the_numbers_that_it_drew(traced):
    x = drawn(ROWS, D, requires_grad=True)
    minigrad.dropout(x, 0.5).sum()  # as above
    traced()
    with receipt() as r:
        y = minigrad.dropout(x, 0.5).sum()
        assert r.saved_bytes == ROWS * D * 2
        assert traced() == near(r.saved_bytes)
    del y


def test_a_frozen_weight_keeps_no_activation():
    def saved(freeze):
        model = mlp(D, D, D, bias=False, activation=minigrad.exp)
        model.layers[1].weight.requires_grad_(not freeze)
        return step(model, drawn(64, D)).saved_bytes

    # exp keeps its result in any case, so here it is there for free.
    assert saved(freeze=True) == saved(freeze=False) == 64 * D * 4

    def saved_by_a_sum(freeze):
        layer = nn.Linear(D, D, bias=False)
        layer.weight.requires_grad_(not freeze)
        x = drawn(64, D, requires_grad=True)
        with receipt() as r:
            layer(x + 1.0).sum().backward()  # a sum keeps nothing of its own
        return r.saved_bytes

    assert saved_by_a_sum(freeze=False) == 64 * D * 4
    assert saved_by_a_sum(freeze=True) == 0


def test_views_of_one_array_are_one_block():
    x = drawn(10, 20, requires_grad=True)
    with receipt() as r:
        y = x.exp()
        z = (y.reshape(200) * y.sum()).sum() + (y.T * y.T).sum()
        assert r.saved_bytes == 10 * 20 * 4 + 4  # y, and a number
        z.backward()
    assert r.kept_bytes == 0


def test_what_a_constant_was_converted_to_is_kept():
    x = drawn(1000, requires_grad=True, dtype=np.float64)
    y = np.arange(1000)
    with receipt() as r:
        (x * y).sum()
    assert r.saved_bytes == 8000


def test_the_timeline_rises_forward_and_falls_backward():
    x = drawn(1000, requires_grad=True)
    with receipt() as r:
        x.exp().tanh().sum().backward()
    found = [(moment.phase, moment.op, moment.saved_bytes) for moment in r.timeline]
    assert found == [
        ("forward", "exp", 4000),
        ("forward", "tanh", 8000),
        ("backward", "tanh", 4000),
        ("backward", "exp", 0),
    ]
    assert r.peak == r.timeline[1]
    assert r.chart() == "▄█▄ "
    assert r.chart(1) == "█"
    for wrong in (0, -1, 2.5):
        with pytest.raises(ValueError, match="width must be a positive integer"):
            r.chart(wrong)
    assert (r.saved_bytes, r.freed_bytes, r.kept_bytes) == (8000, 8000, 0)


def test_a_retained_graph_frees_nothing():
    x = drawn(1000, requires_grad=True)
    with receipt() as r:
        y = x.exp().sum()
        y.backward(retain_graph=True)
    assert (r.freed_bytes, r.kept_bytes) == (0, 4000)
    assert "3.906 KiB at the end" in repr(r)


def test_a_graph_that_is_dropped_is_noted():
    x = drawn(1000, requires_grad=True)
    with receipt() as r:
        x.exp()
        x.tanh().sum().backward()
    assert [moment.phase for moment in r.timeline] == ["forward", "dropped", "forward", "backward"]
    assert r.peak_saved_bytes == 4000
    assert r.saved_bytes == r.freed_bytes == 8000


def test_checkpoints_lower_the_peak():
    def piece(h):
        for _ in range(5):
            h = h.tanh()
        return h

    def peak(wrap):
        h = drawn(1000, requires_grad=True)
        with receipt() as r:
            for _ in range(5):
                h = wrap(piece, h)
            h.sum().backward()
        assert r.kept_bytes == 0
        return r.peak_saved_bytes // 4000

    assert peak(lambda f, h: f(h)) == 25
    # Four results between five pieces, and the five inside one; the inner results of the last one
    # include what is its own result.
    assert peak(checkpoint) == 9


def test_a_checkpoint_holds_the_constants_that_it_was_handed():
    w = drawn(64, 64, requires_grad=True)
    x = drawn(64, 64)
    with receipt() as r:
        loss = checkpoint(lambda h, scale: (h @ w) * scale, x, minigrad.exp(x)).sum()
        assert r.saved_bytes == x.data.nbytes  # exp(x)
        assert r.input_bytes == 2 * x.data.nbytes
        loss.backward()
    assert r.kept_bytes == 0


def test_under_no_grad_nothing_is_saved():
    with receipt() as r, no_grad():
        mlp(4, 8, 2)(drawn(3, 4))
    assert r.forward_flops > 0
    assert (r.saved_bytes, r.peak, r.backward_flops) == (0, None, 0)
    assert "saved for backward: nothing" in repr(r)


def test_gradients_are_counted_once_however_many_passes_arrive():
    x = drawn(1000, requires_grad=True)
    with receipt() as r:
        for _ in range(3):
            x.exp().sum().backward()
            x.zero_grad()
    assert (r.passes, r.gradient_bytes, r.trained) == (3, 4000, 1000)


def test_states_of_several_optimisers_are_added():
    x, y = drawn(10, requires_grad=True), drawn(20, requires_grad=True)
    first, second = Adam([x]), SGD([y], momentum=0.9)
    with receipt() as r:
        for _ in range(2):
            (x.sum() * y.sum()).backward()
            first.step()
            second.step()
    assert (r.steps, r.optimizer_bytes) == (2, 8 * 10 + 4 * 20)
    assert r.optimizer_flops == 2 * (14 * 10 + 4 * 20)


# ------------------------------------------------------------------------------------------------
# The block
# ------------------------------------------------------------------------------------------------


def test_nothing_ran():
    with receipt() as r:
        pass
    assert repr(r) == "receipt: nothing ran inside the block"
    assert "nothing ran" in r._repr_html_()
    assert (r.flops, r.rows, r.chart()) == (0, (), "")


def test_a_step_without_gradients_has_no_table():
    optimizer = Adam(mlp(4, 2).parameters())
    with receipt() as r:
        optimizer.step()
    head, *facts = repr(r).splitlines()
    assert head == "receipt of 1 step"
    assert facts[0] == "saved for backward: nothing"


def test_receipts_nest_and_end():
    x = drawn(10)
    with receipt() as outer:
        with receipt() as inner:
            x.exp()
        x.exp()
    x.exp()
    assert (outer.flops, inner.flops) == (20, 10)
    assert mode.observers == ()


def test_a_receipt_may_end_before_one_that_began_later():
    def pieces():
        with receipt() as r:
            yield r
            minigrad.exp(drawn(4))
        yield r

    running = pieces()
    first = next(running)
    with receipt() as second:
        minigrad.exp(drawn(4))
        next(running)
        minigrad.exp(drawn(4))
    minigrad.exp(drawn(4))
    assert (first.flops, second.flops) == (2 * 4, 3 * 4)
    assert mode.state == (True, ())


def test_an_exception_goes_through_and_is_noted():
    x = drawn(10)
    with pytest.raises(ValueError, match="reshape"), receipt() as r:
        x.exp().reshape(3)
    assert (r.flops, r.interrupted_by) == (10, "ValueError")
    assert "the block ended with ValueError" in repr(r)
    assert mode.observers == ()


def test_after_a_backward_pass_that_failed_calls_are_forward_again():
    x = drawn(10, requires_grad=True)
    with receipt() as r:
        y = x.exp()
        y.register_hook(lambda g: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            y.sum().backward()
        x.exp()
    assert flops(r, "forward", "exp") == 20


def test_another_thread_is_not_counted():
    x = drawn(10)
    with receipt() as r:
        thread = threading.Thread(target=x.exp)
        thread.start()
        thread.join()
    assert r.flops == 0


def test_a_receipt_keeps_nothing_alive():
    with receipt() as r:
        x = drawn(1000, requires_grad=True)
        y = x.exp()
        optimizer = Adam([x])
        y.sum().backward(retain_graph=True)
        optimizer.step()
    kept = [weakref.ref(thing) for thing in (x, x.node, y.node, y.data, optimizer)]
    gc.disable()
    try:
        del x, y, optimizer
        assert [reference() for reference in kept] == [None] * 5
    finally:
        gc.enable()
    assert r.kept_bytes == 4000


def test_it_changes_no_number():
    def trained():
        model = adapted(mlp(4, 8, 5))
        optimizer = Adam(model.trainable_parameters(), lr=0.1)
        step(model, drawn(3, 4), optimizer)
        return [p.data for p in model.parameters()]

    watched = trained()
    model = adapted(mlp(4, 8, 5))
    optimizer = Adam(model.trainable_parameters(), lr=0.1)
    model(drawn(3, 4)).sum().backward()
    optimizer.step()
    for one, other in zip(watched, model.parameters(), strict=True):
        np.testing.assert_array_equal(one, other.data)


# ------------------------------------------------------------------------------------------------
# Tables
# ------------------------------------------------------------------------------------------------


def test_the_table_of_a_receipt():
    layer = nn.Linear(100, 50)
    r = step(layer, drawn(20, 100), SGD(layer.parameters(), lr=0.1))
    assert repr(r).splitlines() == [
        "receipt of 1 step, 1 backward pass",
        "phase      op      input   calls       FLOPs",
        "forward    linear              1   201 kFLOP",
        "forward    sum                 1     1 kFLOP",
        "forward    in all                  202 kFLOP",
        "backward   linear  weight      1   200 kFLOP",
        "backward   linear  bias        1     1 kFLOP",
        "backward   in all                  201 kFLOP",
        "optimizer  SGD                 1  10.1 kFLOP",
        "not done   linear  x           1   200 kFLOP",
        "saved for backward: nothing",
        "parameters and inputs saved as well: 7.812 KiB",
        "gradients: 19.73 KiB, of 5,050 parameters",
        "optimiser state: 0 B",
    ]
    page = r._repr_html_()
    assert page.count("<tr>") == 9
    assert "gradients: 19.73 KiB" in page


def two(steps=1):
    receipts = {}
    for name, adapt in (("full", False), ("LoRA", True)):
        model = adapted(mlp(*WIDTHS)) if adapt else mlp(*WIDTHS)
        optimizer = Adam(model.trainable_parameters())
        with receipt() as r:
            for _ in range(steps if adapt else 1):
                optimizer.zero_grad()
                model(drawn(N, WIDTHS[0])).sum().backward()
                optimizer.step()
        receipts[name] = r
    return receipts


def test_receipts_beside_each_other():
    receipts = two()
    full, low_rank = receipts.values()
    compared = compare(receipts)
    assert compared.ratio("LoRA", "flops") == low_rank.flops / full.flops
    assert compared.ratio("LoRA", "trained") == low_rank.trained / full.trained
    text = repr(compared)
    head, *lines = text.splitlines()
    assert head.split() == ["full", "LoRA", "LoRA", "/", "full"]
    assert [line[:37].rstrip() for line in lines[:-1]] == [
        "FLOPs forward",
        "FLOPs backward",
        "FLOPs of the optimiser",
        "FLOPs in all",
        "products not done, no gradient needed",
        "saved for backward, at the peak",
        "gradients",
        "optimiser state",
        "parameters trained",
    ]
    ratio = compared.ratio("LoRA", "flops")
    assert lines[-1].startswith(f"LoRA does {ratio:.2f} of the FLOPs of full (forward 1.")
    assert compared._repr_html_().count("<tr>") == 10


def test_flops_are_compared_by_the_step():
    once, thrice = (compare(two(steps)) for steps in (1, 3))
    for attribute in ("flops", "forward_flops", "skipped_flops", "optimizer_bytes", "trained"):
        assert thrice.ratio("LoRA", attribute) == once.ratio("LoRA", attribute)


def test_a_comparison_says_nothing_of_what_the_first_did_not_do():
    model, x = mlp(4, 2), drawn(3, 4)
    with receipt() as r, no_grad():
        model(x)
    sentence = compare({"prediction": r, "training": step(model, x)}).sentence("training")
    assert sentence == "training does 2.11 of the FLOPs of prediction (forward 1.11)."


def test_what_cannot_be_compared_is_refused():
    r = two()["full"]
    with pytest.raises(ValueError, match="takes two receipts or more, not 1"):
        compare({"full": r})
    with pytest.raises(TypeError, match="takes a dict of receipts by name, not"):
        compare([r, r])
    with pytest.raises(TypeError, match="'LoRA' must be a Receipt, not 3"):
        compare({"full": r, "LoRA": 3})
    with pytest.raises(TypeError, match="the name of a receipt is a string, not 1"):
        compare({1: r, 2: r})
    with pytest.raises(ValueError, match="nothing was counted in 'LoRA'; run a step in its block"):
        compare({"full": r, "LoRA": Receipt()})
