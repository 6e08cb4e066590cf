"""Hooks on gradients, and observers of calls and backward passes."""

import functools
import os
import sys
import threading
import weakref

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import minigrad
from minigrad import (
    OPS,
    Observer,
    Tensor,
    enable_grad,
    grad,
    no_grad,
    observe,
    op,
)
from minigrad.core.grad_mode import mode
from tests.minigrad.core.leaves import Log, drawn, leaf

# ------------------------------------------------------------------------------------------------
# Hooks
# ------------------------------------------------------------------------------------------------


def test_hook_sees_the_whole_gradient_once():
    seen = []
    x = leaf(1.0, 2.0)
    h = x * 2
    h.register_hook(lambda g: seen.append(g.data.tolist()))
    (h * 3 + h).sum().backward()
    assert seen == [[4.0, 4.0]]
    assert_array_equal(x.grad.data, [8.0, 8.0])


def test_hooks_run_in_the_order_of_registration_and_see_what_earlier_ones_made():
    x = leaf(1.0, 2.0)
    seen = []

    def times(factor):
        def hook(g):
            seen.append((factor, g.data.tolist()))
            return g * factor

        return hook

    x.register_hook(times(10))
    x.register_hook(times(3))
    x.sum().backward()
    assert seen == [(10, [1.0, 1.0]), (3, [10.0, 10.0])]
    assert_array_equal(x.grad.data, [30.0, 30.0])


def test_a_hook_records_under_create_graph_only():
    seen = []
    x = leaf(2.0)
    x.register_hook(lambda g: seen.append(minigrad.is_grad_enabled()))
    (x * x).backward()
    grad(x * x, x, create_graph=True)
    assert seen == [False, True]


def test_what_a_hook_returns_goes_on():
    x = leaf(1.0, 2.0)
    h = x * 2
    h.register_hook(lambda g: g * 0.5)
    h.retain_grad()
    h.sum().backward()
    assert_array_equal(h.grad.data, [0.5, 0.5])
    assert_array_equal(x.grad.data, [1.0, 1.0])


def test_hook_on_a_leaf_changes_each_pass_not_the_sum():
    x = leaf(1.0)
    x.register_hook(lambda g: g * 2)
    (x * 1).backward()
    (x * 1).backward()
    assert x.grad.item() == 4.0


def test_removed_hook_is_not_called():
    x = leaf(1.0)
    kept, removed = [], []
    x.register_hook(kept.append)
    hook = x.register_hook(removed.append)
    hook.remove()
    hook.remove()
    (x * 1).backward()
    assert len(kept) == 1
    assert removed == []


def test_hook_runs_in_grad_too_and_changes_its_result():
    x = leaf(1.0)
    h = x * 2
    h.register_hook(lambda g: g * 10)
    assert [g.item() for g in grad(h * 3, [h, x])] == [30.0, 60.0]


def test_in_grad_no_hook_sees_a_part_of_a_gradient():
    x, u = leaf(1.0, 2.0), leaf(3.0, 4.0)
    h = x * 2
    seen = []
    h.register_hook(lambda g: seen.append(g.data.tolist()))
    h.retain_grad()
    product = h * u
    g = grad([h, product], u, [np.ones(2)] * 2, retain_graph=True)  # not by h: it is only a start
    assert_array_equal(g.data, h.data)
    assert seen == []
    assert h.grad is None
    grad([h, product], [u, x], [np.ones(2)] * 2)
    assert seen == [[4.0, 5.0]]
    assert_array_equal(h.grad.data, [4.0, 5.0])


def test_hook_under_create_graph_is_part_of_the_graph():
    x = leaf(2.0)
    h = x * x
    h.register_hook(lambda g: g * x)
    g = grad(h, x, create_graph=True)  # x * 2x
    assert g.item() == 8.0
    assert grad(g, x).item() == 8.0


def test_hook_that_writes_to_what_it_is_given_touches_no_other_gradient():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)

    def vandal(g):
        g.data[...] = 0

    x.register_hook(vandal)
    (x + y).sum().backward()
    assert_array_equal(y.grad.data, [1.0, 1.0])


@pytest.mark.parametrize("differentiate", [lambda y, x: grad(y, x), lambda y, x: y.backward()])
def test_a_hook_whose_own_pass_frees_what_the_outer_one_needs_is_an_error(differentiate):
    x = leaf(1.0, 2.0)
    h = x * x
    other, z = h.sum(), h * 1.0
    z.register_hook(lambda g: (grad(other, x), None)[1])
    with pytest.raises(RuntimeError, match="result of `multiply` was freed by an earlier"):
        differentiate(z.sum() + x.sum(), x)


@pytest.mark.parametrize("bad", [5, np.ones(2), Tensor(np.ones(3)), (Tensor(np.ones(2)),)])
def test_hook_that_returns_no_fitting_tensor_is_an_error(bad):
    x = leaf(1.0, 2.0)
    x.register_hook(lambda g: bad)
    with pytest.raises(ValueError, match=r"a hook must return None or a Tensor of shape \(2,\)"):
        x.sum().backward()
    assert x.grad is None


def test_gradient_from_a_hook_keeps_the_dtype():
    x = leaf(1.0, 2.0, dtype=np.float32)
    x.register_hook(lambda g: Tensor(np.array([3.0, 4.0])))
    x.sum().backward()
    assert x.grad.dtype == np.float32


@pytest.mark.parametrize("frozen", [False, True])
def test_a_hook_stays_on_a_leaf_whose_dtype_changes(frozen):
    seen = []
    x = leaf(1.0, 2.0)
    hook = x.register_hook(lambda g: seen.append(g.dtype))
    x.requires_grad_(not frozen)
    x.data = x.data.astype(np.float32)
    x.requires_grad_()
    x.sum().backward()
    assert seen == [np.float32]
    hook.remove()
    x.sum().backward()
    assert len(seen) == 1


def test_only_a_function_can_be_a_hook():
    x = minigrad.ones(2, requires_grad=True)
    with pytest.raises(TypeError, match="register_hook: a hook is a function, not 3"):
        x.register_hook(3)
    x.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_hook_needs_a_graph():
    with pytest.raises(RuntimeError, match=r"register_hook\(\).*needs no gradient"):
        minigrad.ones(2).register_hook(print)


# ------------------------------------------------------------------------------------------------
# no_grad and enable_grad
# ------------------------------------------------------------------------------------------------


def test_no_grad_records_nothing():
    x = leaf(1.0)
    with no_grad():
        assert not minigrad.is_grad_enabled()
        y = x * 2
        with enable_grad():
            z = x * 2
        assert not minigrad.is_grad_enabled()
    assert minigrad.is_grad_enabled()
    assert not y.requires_grad
    assert z.requires_grad


def test_no_grad_and_enable_grad_are_decorators():
    x = leaf(1.0)

    for off, on in ((no_grad, enable_grad), (no_grad(), enable_grad())):

        @on
        def trained(x):
            return x * 2

        @off
        def frozen(x, trained=trained):
            return x * 2, trained(x)

        for _ in range(2):
            outer, inner = frozen(x)
            assert not outer.requires_grad
            assert inner.requires_grad
        assert frozen.__name__ == "frozen"


def test_one_no_grad_can_be_entered_many_times():
    frozen = no_grad()
    for _ in range(2):
        with frozen:
            with frozen:
                assert not minigrad.is_grad_enabled()
            assert not minigrad.is_grad_enabled()
        assert minigrad.is_grad_enabled()


def test_generators_cannot_be_decorated():
    with pytest.raises(TypeError, match="does not run from start to end in one go"):

        @no_grad
        def batches():
            yield 1


async def later():
    yield 1


def repeated(x):
    yield x


@pytest.mark.parametrize("function", [later, functools.partial(repeated, 1)])
def test_other_generators_cannot_be_decorated(function):
    with pytest.raises(TypeError, match=r"(later|repeated).* does not run from start to end"):
        no_grad(function)


@pytest.mark.parametrize("change", [no_grad, enable_grad])
def test_what_is_no_function_cannot_be_decorated(change):
    with pytest.raises(TypeError, match=rf"^{change.__name__} decorates a function, not 3"):
        change(3)
    with pytest.raises(TypeError, match="decorates a function, not <class"):
        change(minigrad.nn.Linear)  # the result would be no class


@pytest.mark.parametrize("change", [no_grad, enable_grad])
def test_mode_is_restored_after_an_exception(change):
    class StopError(Exception):
        pass

    @change()
    def fail():
        raise StopError

    with no_grad():
        with pytest.raises(StopError):
            fail()
        assert not minigrad.is_grad_enabled()
        with pytest.raises(StopError), change():
            raise StopError
        assert not minigrad.is_grad_enabled()
    assert minigrad.is_grad_enabled()


def test_mode_is_restored_after_an_error_in_a_backward_pass():
    @op
    def broken(x):
        return x * 1.0

    @broken.vjp("x")
    def _broken_x(g):
        raise ZeroDivisionError

    x = leaf(1.0)
    with pytest.raises(ZeroDivisionError):
        broken(x).backward()
    assert minigrad.is_grad_enabled()
    with no_grad(), pytest.raises(ZeroDivisionError):
        grad(enable_grad()(broken)(x), x, create_graph=True)
    assert minigrad.is_grad_enabled()


@pytest.mark.skipif(not hasattr(sys, "monitoring"), reason="Python 3.11 has no sys.monitoring")
def test_mode_is_restored_after_an_interrupt_anywhere_in_a_backward_pass():
    """At jumps back and at the start of functions, Python raises a KeyboardInterrupt."""
    monitoring, x, left = sys.monitoring, leaf(1.0), 0

    def interrupt(code, offset, destination=0):
        nonlocal left
        is_back = destination <= offset  # at other jumps there are no interrupts
        if is_back and code.co_filename.startswith(os.path.dirname(minigrad.__file__)):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

    def was_interrupted(number):
        nonlocal left
        y, left = (x * x).sum(), number
        try:
            monitoring.set_events(monitoring.DEBUGGER_ID, events.JUMP | events.PY_START)
            y.backward()
        except KeyboardInterrupt:
            return True
        finally:
            monitoring.set_events(monitoring.DEBUGGER_ID, 0)
        return False

    events = monitoring.events
    monitoring.use_tool_id(monitoring.DEBUGGER_ID, "interrupts")
    for event in (events.JUMP, events.PY_START):
        monitoring.register_callback(monitoring.DEBUGGER_ID, event, interrupt)
    try:
        number = 1
        while was_interrupted(number):
            assert minigrad.is_grad_enabled(), f"after an interrupt at event {number}"
            number += 1
    finally:
        monitoring.free_tool_id(monitoring.DEBUGGER_ID)
    assert number > 20


def test_mode_belongs_to_the_thread():
    x = leaf(1.0)
    seen = {}

    def work():
        seen["at start"] = minigrad.is_grad_enabled()
        with no_grad():
            entered.set()
            left.wait(5)
            seen["in no_grad"] = (x * 2).requires_grad

    entered, left = threading.Event(), threading.Event()
    with no_grad():
        thread = threading.Thread(target=work)
        thread.start()
        assert entered.wait(5)
    here = (x * 2).requires_grad
    left.set()
    thread.join()
    assert seen == {"at start": True, "in no_grad": False}
    assert here


def test_a_block_that_ends_in_another_thread_is_an_error_that_says_so():
    def waiting():
        with no_grad():
            yield

    generator, errors = waiting(), []

    def close():
        try:
            generator.close()
        except RuntimeError as error:
            errors.append(str(error))
        errors.append(minigrad.is_grad_enabled())

    next(generator)
    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    mode.state = (True, mode.state[1])  # this thread is left as it was in the block
    mode.no_grad_blocks -= 1
    assert "another thread than it began in" in errors[0]
    assert errors[1]


def test_backward_works_under_no_grad():
    x = leaf(3.0)
    y = x * x
    with no_grad():
        y.backward()
    assert x.grad.item() == 6.0
    assert not x.grad.requires_grad


def test_graphs_in_several_threads_do_not_mix():
    results = {}

    def work(k):
        x = leaf(float(k))
        for _ in range(100):
            x.zero_grad()
            (x * x * x).backward()
        results[k] = x.grad.item()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {k: 3.0 * k * k for k in range(4)}


# ------------------------------------------------------------------------------------------------
# Observers
# ------------------------------------------------------------------------------------------------


def test_observer_sees_calls_vjps_and_freeing():
    x = leaf(1.0, 2.0)
    with observe(Log()) as log:
        (x.exp() * 2).sum().backward()
    assert log.calls[:3] == ["exp", "multiply", "sum"]
    assert log.vjps == [("sum", 0), ("multiply", 0), ("exp", 0)]
    assert log.freed == ["sum", "multiply", "exp"]


def test_observer_sees_where_a_backward_pass_starts_and_from_what():
    class Starts(Observer):
        def __init__(self):
            self.seen = []

        def on_backward(self, output, gradient):
            self.seen.append((output, gradient))

    x = leaf(1.0, 2.0)
    y, z = x * 2, x.sum()
    with observe(Starts()) as starts:
        y.backward(np.float32([3.0, 4.0]), retain_graph=True)
        grad([y, z], x, [np.float32([5.0, 6.0]), None])
    assert [output for output, _ in starts.seen] == [y, y, z]
    assert [gradient.tolist() for _, gradient in starts.seen] == [[3, 4], [5, 6], 1]


def test_observer_sees_inputs_result_and_gradients():
    class Watch(Observer):
        def on_call(self, op, inputs, result):
            self.call = op, inputs, result

        def on_vjp(self, node, parent, gradient, result):
            self.vjp = node, parent, gradient, result

    x = leaf(1.0, 2.0)
    with observe(Watch()) as watch:
        y = minigrad.sum(x, 0, keepdims=True)
        assert watch.call[0] is OPS["sum"]
        assert watch.call[1][0] is x
        assert watch.call[1][1:] == (0, True)
        assert watch.call[2] is y
        y.backward()
    node, parent, gradient, result = watch.vjp
    assert node is y.node
    assert parent is x.node
    assert_array_equal(gradient, [1.0])
    assert_array_equal(result, [1.0, 1.0])


def test_observer_sees_what_goes_on_and_what_arrives_before_it_is_added():
    class Watch(Observer):
        def __init__(self):
            self.went, self.came = [], []

        def on_gradient(self, node, parent, gradient):
            self.went.append((node, parent, gradient.shape, gradient.dtype))

        def on_arrival(self, node, gradient, before):
            self.came.append((node, gradient.tolist(), before, None if x.grad is None else 1))

    x = leaf(1.0)
    twice = np.float64([1, 1])
    with observe(Watch()) as watch:
        y = x + twice
        y.backward(twice)
        assert watch.went == [(y.node, x.node, x.shape, x.dtype)]
        assert watch.came == [(x.node, 2.0, None, None)]
        assert x.grad.data.flags.owndata
        earlier = x.grad
        (x * 3.0).backward()
        assert watch.came[-1] == (x.node, 3.0, earlier, 1)
        minigrad.grad(x * 4, x)
        assert watch.came[-1] == (x.node, 4.0, None, 1)
    assert_array_equal(x.grad.data, 5.0)


def test_retained_graph_is_not_announced_as_freed():
    x = leaf(1.0)
    with observe(Log()) as log:
        (x * 2).backward(retain_graph=True)
    assert log.freed == []


def test_observer_sees_plain_calls_and_no_grad_calls_too():
    with observe(Log()) as log, no_grad():
        minigrad.exp(np.ones(2))
        minigrad.exp(leaf(1.0))
        minigrad.concatenate([np.ones(2)])
        minigrad.concatenate([leaf(1.0, 2.0)])
    assert log.calls == ["exp", "exp", "concatenate", "concatenate"]


class Passes(Observer):
    def __init__(self):
        self.seen = []

    def on_pass(self, begins):
        self.seen.append((begins, minigrad.is_grad_enabled()) if begins else begins)


def test_observer_sees_backward_passes_begin_and_end():
    x = leaf(1.0)
    with observe(Passes()) as passes:
        y = x.exp()
        y.backward(retain_graph=True)
        assert passes.seen == [(True, False), False]
        grad(y, x, create_graph=True)
    assert passes.seen == [(True, False), False, (True, True), False]


def test_grad_mode_is_on_after_an_observer_has_refused_a_backward_pass():
    class Refusing(Passes):
        def on_pass(self, begins):
            super().on_pass(begins)
            if begins:
                raise RuntimeError("refused")

    with observe(Refusing()) as passes, pytest.raises(RuntimeError, match="refused"):
        leaf(1.0).exp().backward()
    assert passes.seen == [(True, False), False]
    assert minigrad.is_grad_enabled()


def test_observer_sees_a_pass_inside_another_and_the_end_of_one_that_fails():
    x = leaf(1.0)
    with observe(Passes()) as passes:
        minigrad.checkpoint(minigrad.exp, x).backward()
    assert passes.seen == [(True, False), (True, False), False, False]

    y = x.exp()
    y.register_hook(lambda gradient: 1 / 0)
    with observe(Passes()) as passes, pytest.raises(ZeroDivisionError):
        y.backward()
    assert passes.seen == [(True, False), False]
    assert minigrad.is_grad_enabled()


def test_several_observers_see_the_same_and_each_stops_at_its_end():
    x = leaf(1.0)
    with observe(Log()) as outer:
        with observe(Log()) as inner:
            x.exp()
        x.tanh()
    x.log()
    assert outer.calls == ["exp", "tanh"]
    assert inner.calls == ["exp"]
    assert mode.observers == ()


def test_observers_are_taken_off_after_an_exception():
    class StopError(Exception):
        pass

    with pytest.raises(StopError), observe(Log()), no_grad():
        raise StopError
    assert mode.observers == ()
    assert minigrad.is_grad_enabled()


def test_observers_belong_to_the_thread():
    with observe(Log()) as log:
        thread = threading.Thread(target=lambda: leaf(1.0).exp())
        thread.start()
        thread.join()
    assert log.calls == []


def test_observer_changes_no_result():
    x = drawn(3, 3)
    right = grad((x @ x).softmax().max(), x)
    with observe(Observer()):
        found = grad((x @ x).softmax().max(), x)
    assert_array_equal(found.data, right.data)


def test_an_observer_is_not_kept_by_what_it_saw():
    x = leaf(1.0)
    log = Log()
    with observe(log):
        y = x * x
    gone = weakref.ref(log)
    del log
    assert gone() is None
    y.backward()
