"""Steps in which a program could compute with other memory, other options or other attributes.

Each is run eagerly and captured, and gives the same numbers; or it is refused by name.
"""

import copy
import functools
import importlib
import itertools
import random
import sys
import types

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn, optim
from minigrad.training import Trainer

CALLS = 12


def eagerly(step):
    return step


def results(build, capture):
    """The arrays that a training gives in the end; `capture` changes its step."""
    mg.manual_seed(0)
    random.seed(0)
    return [np.asarray(x.data if isinstance(x, mg.Tensor) else x) for x in build(capture)]


def check_same(build):
    for found, expected in zip(results(build, mg.capture), results(build, eagerly), strict=True):
        np.testing.assert_array_equal(found, expected)


def two(start=1.0):
    """A parameter of two numbers, and an optimiser of it."""
    w = nn.Parameter(np.full(2, start, np.float32))
    return w, optim.SGD([w], lr=0.1)


# --------------------------------------------------------------------------------------------------
# Memory of gradients
# --------------------------------------------------------------------------------------------------


def a_result_is_written_to(capture):
    w = nn.Parameter(mg.tensor(0.0))
    optimizer = optim.SGD([w], lr=1.0)

    @capture
    def step(x):
        optimizer.zero_grad()
        (w + x).backward()
        optimizer.step()
        return w.grad

    for _ in range(CALLS):
        g = step(mg.tensor(0.0))
        g.copy_(g * 0.5)
    return [w]


def two_gradients_of_one_array(capture):
    a, b = (nn.Parameter(np.zeros(2, np.float32)) for _ in range(2))
    optimizer, x = optim.SGD([a, b], lr=0.1), mg.tensor([1.0, 2.0])

    @capture
    def step(x):
        optimizer.zero_grad()
        ((a + b - x) ** 2).sum().backward()
        for p in (a, b):
            p.grad.copy_(p.grad * 0.5)
        optimizer.step()

    for _ in range(CALLS):
        step(x)
    return [a, b]


def the_gradient_of_an_argument(capture):
    w, optimizer = two()
    g = mg.ones(2)

    @capture
    def step(g):
        optimizer.zero_grad()
        (w + 1).backward(g)
        w.grad.copy_(w.grad * 0.5)
        optimizer.step()

    for _ in range(CALLS):
        step(g)
    return [w, g]


def the_gradient_of_a_buffer(capture):
    w, optimizer = two()
    buffer = nn.Buffer(np.ones(2, np.float32))

    @capture
    def step(x):
        optimizer.zero_grad()
        (w + x).backward(buffer)
        buffer.copy_(buffer * 0.5)
        optimizer.step()

    for _ in range(CALLS):
        step(mg.ones(2))
    return [w, buffer]


def the_gradient_of_a_parameter(capture):
    w, v = (nn.Parameter(np.ones(2, np.float32)) for _ in range(2))
    optimizer = optim.SGD([w, v], lr=0.1)

    @capture
    def step(x):
        optimizer.zero_grad()
        (w + v * x).backward(w.detach())
        optimizer.step()

    for _ in range(CALLS):
        step(mg.ones(2))
    return [w, v]


def two_gradients_of_a_number(capture):
    b = nn.Parameter(mg.tensor(0.5))
    optimizer = optim.SGD([b], lr=0.1)

    @capture
    def step(x):
        optimizer.zero_grad()
        (((x - b) ** 2).mean() + b).backward()
        b.grad.copy_(b.grad * 0.5)
        optimizer.step()
        return b.grad

    found = [step(mg.ones(3)) for _ in range(CALLS)]
    assert all(isinstance(g, mg.Tensor) for g in found)
    return [b, *found]


def gradients_that_are_returned(capture):
    w, v = (nn.Parameter(np.ones(2, np.float32)) for _ in range(2))

    @capture
    def step(x):
        return mg.grad(((w + v) * x).sum(), [w, v])

    found = []
    for _ in range(CALLS):
        first, second = step(mg.ones(2))
        first.copy_(first * 3)
        found.append(second)
    return found


def a_result_that_is_kept(capture):
    w, optimizer = two()
    x = mg.ones(2)

    @capture
    def step(x):
        optimizer.zero_grad()
        (w + 1).backward(x)
        return w.grad

    found = []
    for i in range(CALLS):
        x.copy_(np.full(2, i))
        found.append(step(x))
    return found


def a_gradient_in_another_order_of_memory(capture):
    w = nn.Parameter(np.ones((2, 3), np.float32))
    optimizer = optim.SGD([w], lr=0.1)
    g = np.arange(6.0, dtype=np.float32).reshape(2, 3)

    @capture
    def step(g):
        optimizer.zero_grad()
        (w + 1).backward(g)
        optimizer.step()

    for i in range(CALLS):
        step(mg.Tensor(g if i < 6 else np.asfortranarray(g)))
    return [w]


# --------------------------------------------------------------------------------------------------
# Methods
# --------------------------------------------------------------------------------------------------


def classes(capture):
    class Base:
        def __init__(self):
            self.w, self.optimizer = two()

        @capture
        def step(self, x):
            self.optimizer.zero_grad()
            loss = (self.w * x).sum()
            loss.backward()
            self.optimizer.step()
            return loss

    class Plain(Base):
        def step(self, x):
            return 100 * super().step(x)

    class Captured(Base):
        @capture
        def step(self, x):
            return 10 * super().step(x) if capture is eagerly else (self.w * x).sum()

    return Base, Plain, Captured


def a_method_that_calls_that_of_its_base(capture):
    made = classes(capture)[1]()
    return [made.step(mg.ones(2)) for _ in range(CALLS)]


def a_copy_of_an_object(capture):
    first = classes(capture)[0]()
    for _ in range(3):
        first.step(mg.ones(2))
    second = copy.copy(first)
    second.w, second.optimizer = two()
    third = copy.deepcopy(second)
    for made in (second, third):
        for _ in range(CALLS):
            made.step(mg.ones(2))
    return [first.w, second.w, third.w]


def a_copy_of_a_trainer(capture):
    rng = np.random.default_rng(3)
    data = rng.standard_normal((8, 2)).astype(np.float32), np.ones((8, 1), np.float32)
    model = nn.Linear(2, 1, rng=rng)
    options = {"progress": False, "capture": capture is mg.capture}
    first = Trainer(model, optim.SGD(model.parameters(), lr=0.1), mg.mse, **options)
    first.fit(data, 2)
    second = copy.copy(first)
    second.model = copy.deepcopy(model)
    second.optimizer = optim.SGD(second.model.parameters(), lr=0.1)
    second.fit(data, 4)
    return [model.weight, second.model.weight]


# --------------------------------------------------------------------------------------------------
# What is changed between two calls
# --------------------------------------------------------------------------------------------------


def changed(make, read, change):
    """A training whose step multiplies by what it reads of an owner, which is changed once."""

    def build(capture):
        owner = make()
        w, optimizer = two()

        @capture
        def step(x):
            optimizer.zero_grad()
            loss = (w * x).sum() * read(owner)
            loss.backward()
            optimizer.step()
            return loss

        found = []
        for i in range(CALLS):
            if i == 4:
                change(owner)
            found.append(step(mg.ones(2)))
        return found

    return build


class WithDefault:
    scale = 1.0


class WithSlots:
    __slots__ = ("scale",)


class Derived(WithSlots):
    def __init__(self):
        self.scale = 1.0


def derived_class():
    return type("Derived", (WithDefault,), {"__module__": __name__})


def method_of(make, read, change):
    """The same in a method, of whose owner only attributes count that its code names."""

    def build(capture):
        class Owner(make):
            def __init__(self):
                super().__init__()
                self.w, self.optimizer = two()

            @capture
            def step(self, x):
                self.optimizer.zero_grad()
                loss = (self.w * x).sum() * read(self)
                loss.backward()
                self.optimizer.step()
                return loss

        owner, found = Owner(), []
        for i in range(CALLS):
            if i == 4:
                change(owner)
            found.append(owner.step(mg.ones(2)))
        return found

    return build


def product_by_name(owner):
    total = 1.0
    for name in ("scale", "other"):
        total *= getattr(owner, name, 2.0)
    return total


def set_scale(owner):
    owner.scale = 10.0


def views():
    values = {"k": 1.0}
    return values, values.get, types.MappingProxyType(values)


CHANGES = {
    "a default of the class": method_of(WithDefault, lambda o: o.scale, set_scale),
    "a slot of a base": method_of(Derived, lambda o: o.scale, set_scale),
    "a name in a tuple": method_of(WithDefault, product_by_name, set_scale),
    "a default of the base class": changed(derived_class, lambda c: c.scale, set_scale),
    "an attribute that was not there": changed(
        types.SimpleNamespace, lambda o: getattr(o, "scale", 1.0), set_scale
    ),
    "views of a dict": changed(
        views,
        lambda v: v[1]("k") + v[2]["k"],
        lambda v: v[0].update(k=3.0),
    ),
}


def gradients_of_what_a_loss_does_not_depend_on(capture):
    w, _ = two()
    v, _ = two()
    optimizer = optim.SGD([w, v], lr=0.1, weight_decay=0.1)

    @capture
    def step(x):
        optimizer.zero_grad()
        w.grad, v.grad = mg.grad((w * x).sum(), [w, v], allow_unused=True)
        count = mg.gradient(lambda a, b: (a * x).sum(), argnums=1)(w.detach(), v.detach())
        slope = mg.jvp(lambda a: x * 1, (w.detach(),), (x,))[1]
        optimizer.step()
        count.copy_(count + x)
        slope.copy_(slope + x)
        return count, slope

    found = [step(mg.ones(2) * i) for i in range(CALLS)]
    return [w, v, *itertools.chain(*found)]


def draws_without_an_axis(capture):
    w, optimizer = two()

    @capture
    def step(x):
        optimizer.zero_grad()
        loss = (w * x).sum() * mg.rand() + w[0] * mg.rand((), dtype=np.float64) * mg.randn(())
        loss.backward()
        optimizer.step()
        return loss

    losses = [step(mg.ones(2)) for _ in range(CALLS)]
    return [w, *losses]


def derivatives_without_a_graph(capture):
    """A program refuses a graph of gradients, and the message says to call them under no_grad."""
    w, optimizer = two()

    @capture
    def step(x):
        optimizer.zero_grad()
        loss = (w * x).sum()
        loss.backward()
        optimizer.step()
        with mg.no_grad():
            jacobian = mg.jacobian(lambda v: w * v * v)(x)
            slope = mg.gradient(lambda v: (w * v**3).sum())(x)
        return loss, jacobian, slope

    found = [step(mg.ones(2) * i) for i in range(CALLS)]
    return [w, *itertools.chain(*found)]


SAME = [
    *(a_result_is_written_to, two_gradients_of_one_array, the_gradient_of_an_argument),
    *(the_gradient_of_a_buffer, the_gradient_of_a_parameter, two_gradients_of_a_number),
    *(gradients_that_are_returned, a_result_that_is_kept, a_gradient_in_another_order_of_memory),
    *(a_method_that_calls_that_of_its_base, a_copy_of_an_object, a_copy_of_a_trainer),
    gradients_of_what_a_loss_does_not_depend_on,
    draws_without_an_axis,
    derivatives_without_a_graph,
]


@pytest.mark.parametrize("build", SAME, ids=lambda build: build.__name__)
def test_the_numbers_are_those_of_the_step(build):
    check_same(build)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed(name):
    check_same(CHANGES[name])


def test_one_change_counts_once_for_each_shape():
    dropout = nn.Dropout(0.5)
    step = mg.capture(lambda x: dropout(x).sum())
    for i in range(24):
        if i == 6:
            dropout.p = 0.0
        found = step(mg.ones(i % 6 + 1))
        assert i < 6 or found.item() == i % 6 + 1


def test_a_number_may_change_in_each_epoch_with_a_last_batch_of_another_shape():
    scale = 1.0

    @mg.capture
    def step(x):
        return x.sum() * scale

    for epoch in range(8):
        scale = 0.5**epoch
        for size in (4, 4, 4, 3):
            assert step(mg.ones(size)).item() == size * scale


@pytest.mark.filterwarnings("error")
def test_a_step_that_raises_does_not_count_as_one_with_other_numbers():
    step = mg.capture(lambda x: x @ mg.ones(3, 3))
    for _ in range(12):
        with pytest.raises(ValueError, match="do not align"):
            step(mg.ones(2))


def test_settings_by_turns_have_programs_of_their_own():
    owner = types.SimpleNamespace(scale=0.0)
    step = mg.capture(lambda x: x.sum() * owner.scale)
    for i in range(40):
        owner.scale = 0.5 + i % 8
        assert step(mg.ones(2)).item() == 2 * owner.scale
    assert len(step.programs) == 8


@pytest.mark.parametrize("kind", ["float", "int", "text", "bytes", "float32", "tuple"])
def test_an_equal_number_or_text_is_no_change(kind):
    kinds = {"float": float, "int": int, "text": str, "bytes": str.encode, "float32": np.float32}
    owner = types.SimpleNamespace(scale=None)

    @mg.capture
    def step(x):
        return x.sum() * float(owner.scale[0] if kind == "tuple" else owner.scale)

    for i in range(12):
        text = str(1000 + i // 6)
        owner.scale = (float(text), text) if kind == "tuple" else kinds[kind](text)
        assert step(mg.ones(2)).item() == 2 * float(text)
    assert len(step.programs) == 2


def test_two_captured_methods_of_one_name_have_programs_of_their_own():
    made = classes(mg.capture)[2]()
    assert [made.step(mg.ones(2)).item() for _ in range(4)] == [2.0] * 4
    base = super(type(made), made)
    assert [base.step(mg.ones(2)).item() for _ in range(3)] == pytest.approx([2.0, 1.8, 1.6])


# --------------------------------------------------------------------------------------------------
# What is refused
# --------------------------------------------------------------------------------------------------


def refused(body, *values):
    """Run a step for some calls, which computes its loss by `body(w, x, *values)`."""
    w, optimizer = two()

    @mg.capture
    def step(x):
        optimizer.zero_grad()
        loss = body(w, x, *values)
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(CALLS):
        step(mg.ones(2))


def other_memory(w, x, average):
    average.data = (0.5 * average + 0.5 * w).detach()
    return (w * x).sum()


def number_or_1(x):
    try:
        return float(x[0])
    except RuntimeError:
        return 1.0


REFUSED = {
    "data": (other_memory, lambda: [mg.zeros(2)], r"assignment to \.data .* copy_"),
    "nonzero": (
        lambda w, x: (w * x).sum() / len(mg.nonzero(x)[0]),
        list,
        "nonzero: the size of the result depends on values",
    ),
    "one_hot": (
        lambda w, x: (w * x).sum() / mg.one_hot(x.astype("int64")).shape[1],
        list,
        "size of the result depends on values.* num_classes",
    ),
    "Random": (
        lambda w, x, source: (w * x).sum() * source.uniform(0, 1),
        lambda: [random.Random(0)],
        "draws random numbers",
    ),
    "RandomState": (
        lambda w, x, source: (w * x).sum() * float(source.rand()),
        lambda: [np.random.RandomState(0)],
        "draws random numbers",
    ),
    "RandomState of another generator": (
        lambda w, x, source: (w * x).sum() * float(source.rand()),
        lambda: [np.random.RandomState(np.random.PCG64(0))],
        "draws random numbers",
    ),
    "SystemRandom": (
        lambda w, x, source: (w * x).sum() * source.random(),
        lambda: [random.SystemRandom()],
        "something else than the call before",
    ),
    "a refusal that the step catches": (
        lambda w, x: (w * x).sum() * number_or_1(x),
        list,
        r"float\(\) takes a value out of the step",
    ),
    "random": (lambda w, x: (w * x).sum() * random.random(), list, "draws random numbers"),
    "random by another name": (
        lambda w, x, source: (w * x).sum() * source.uniform(0, 1),
        lambda: [random],
        "draws random numbers",
    ),
    "numpy.random by another name": (
        lambda w, x, source: (w * x).sum() * source.rand(),
        lambda: [np.random],
        "draws random numbers",
    ),
    "iterator as default": (
        lambda w, x, function: (w * x).sum() * function(),
        lambda: [lambda numbers=iter([2.0]): next(numbers)],  # noqa: B008  # it is tested
        r"the step reads \S+defaults\.0, an iterator",
    ),
    "iterator in a partial": (
        lambda w, x, function: (w * x).sum() * function(),
        lambda: [functools.partial(lambda numbers: next(numbers), numbers=iter([2.0]))],
        r"the step reads \S+keywords\.numbers, an iterator",
    ),
    "iterator in a list": (
        lambda w, x, numbers: (w * x).sum() * next(numbers),
        lambda: [itertools.repeat(2)],
        r"the step reads values\.0, an iterator",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_program_cannot_do_again_is_refused(name):
    body, make, message = REFUSED[name]
    values = make()
    with pytest.raises(mg.CaptureError, match=message):
        refused(lambda w, x: body(w, x, *values))


@pytest.mark.parametrize(
    "read",
    [
        lambda o, s: o.lr,
        lambda o, s: o.param_groups[0]["lr"],
        lambda o, s: s.get_last_lr()[0],
        lambda o, s: s.last_epoch,
    ],
)
def test_an_option_that_the_step_reads_and_changes_is_refused(read):
    w, optimizer = two()
    scheduler = optim.StepLR(optimizer, 1, 0.5)

    @mg.capture
    def step(x):
        optimizer.zero_grad()
        loss = (w * x).sum() * (1 + read(optimizer, scheduler))
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss

    with pytest.raises(mg.CaptureError, match="that changes from call to call"):
        [step(mg.ones(2)) for _ in range(CALLS)]


@pytest.mark.parametrize("steps", [2, 3, 30], ids="{} steps apart".format)
def test_numbers_of_an_array_that_the_program_reads_too(steps):
    """The step divides by a sum that numpy computes, and the array enters an op, too."""

    def train(capture):
        w, optimizer = two()
        mask = np.array([1, 0], np.float32)

        @capture
        def step(x):
            optimizer.zero_grad()
            loss = (w * x * mask).sum() / mask.sum()
            loss.backward()
            optimizer.step()
            return loss

        losses = []
        for i in range(5 * steps):
            if i % steps == 0:
                mask[:] = [[1, 0], [0, 1], [1, 1], [3, 1], [0, 5]][i // steps]
            losses.append(step(mg.ones(2)))
        return [w, *losses]

    check_same(train)


def test_an_array_that_changes_between_steps_is_read_again():
    """After three changes that do not change the program, it is not compared any more."""
    w, optimizer = two()
    batch = np.ones(2, np.float32)

    @mg.capture
    def step():
        optimizer.zero_grad()
        loss = (w * batch).sum()
        loss.backward()
        optimizer.step()
        return loss

    for i in range(9):
        batch[:] = i
        expected = float((w.data * batch).sum())
        assert step().item() == expected
    (program,) = step.programs
    assert program.calls - 2 == 9 - 2 - 3


@pytest.mark.parametrize("statement", ["from .settings import SCALE", "from . import settings"])
def test_a_change_in_a_module_that_the_step_imports_is_noticed(statement, tmp_path, monkeypatch):
    name = "SCALE" if "SCALE" in statement else "settings.SCALE"
    package = tmp_path / "scaled_training"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "settings.py").write_text("SCALE = 1.0\n")
    (package / "step.py").write_text(f"def scaled(x):\n    {statement}\n    return x * {name}\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("scaled_training.step")
    settings = importlib.import_module("scaled_training.settings")
    try:
        step = mg.capture(lambda x: module.scaled(x).sum())
        assert [step(mg.ones(2)).item() for _ in range(4)] == [2.0] * 4
        settings.SCALE = 3.0
        assert step(mg.ones(2)).item() == 6.0
    finally:
        for each in [each for each in sys.modules if each.startswith("scaled_training")]:
            del sys.modules[each]


class Scaled:
    factor = 1.0

    def by(self, x, power):
        return x * self.factor**power

    twice = functools.partialmethod(by, power=2)


def test_a_change_that_a_partial_method_reads_is_noticed():
    scaled = Scaled()
    step = mg.capture(lambda x: scaled.twice(x).sum())
    assert [step(mg.ones(2)).item() for _ in range(4)] == [2.0] * 4
    scaled.factor = 3.0
    assert step(mg.ones(2)).item() == 18.0


MADE_ANEW = {
    "Tensor": lambda: mg.Tensor(np.zeros(2, np.float32)),
    "from_dlpack": lambda: mg.from_dlpack(np.zeros(2, np.float32)),
}


@pytest.mark.parametrize("name", MADE_ANEW)
def test_a_tensor_that_is_made_anew_outside_of_ops_is_not_written_to(name):
    make = MADE_ANEW[name]

    @mg.capture
    def step(x):
        total = make()
        total.copy_(total + x)
        return total.sum()

    assert step(mg.ones(2)).item() == 2
    with pytest.raises(mg.CaptureError, match=r"makes a constant, of shape \(2,\), anew"):
        step(mg.ones(2))


def test_an_iterator_is_refused_by_name():
    numbers = itertools.count(1)

    @mg.capture
    def step(x):
        return x * (10 if next(numbers) % 5 == 0 else 1)

    with pytest.raises(mg.CaptureError, match="the step reads numbers, an iterator"):
        step(mg.ones(2))


def test_containers_among_the_arguments_are_not_written_to():
    @mg.capture
    def step(x, state):
        state["h"] = state["h"] + x
        return mg.sum(state["h"])

    with pytest.raises(mg.CaptureError, match="writes to a list or dict among its arguments"):
        step(mg.ones(2), {"h": mg.zeros(2)})

    @mg.capture
    def logging(x, log):
        log.append(x)
        return mg.sum(x)

    with pytest.raises(mg.CaptureError, match="writes to a list or dict among its arguments"):
        logging(mg.ones(2), [])
