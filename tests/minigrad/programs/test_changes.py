"""Nothing is a silent constant of a captured step.

One thing is changed in a captured training and in an equal eager one, whatever a program may have
taken for constant, and they go on with the same bits.
"""

import argparse
import collections
import enum
import functools
import sys
import types
import weakref
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pytest

import minigrad as mg
from minigrad import nn, optim
from minigrad.programs.surroundings import Surroundings
from tests.minigrad.programs import settings
from tests.minigrad.programs.changes import Change, Training, changes_of, difference, differences

# --------------------------------------------------------------------------------------------------
# Attributes of models, optimisers, schedulers and averages
# --------------------------------------------------------------------------------------------------


def mlp():
    """An MLP with dropout and a norm, and all that belongs to a training."""
    rng = np.random.default_rng(1)
    layers = nn.LayerNorm(6), mg.gelu, nn.Linear(6, 3, rng=rng), nn.Dropout(0.2, rng=rng)
    model = nn.Sequential(nn.MLP((5, 6, 6), dropout=0.25, rng=rng), *layers)
    optimizer = optim.AdamW(model.trainable_parameters(), lr=1e-2, amsgrad=True)
    scheduler = optim.WarmupCosineLR(optimizer, 2, 20)
    ema = optim.EMA(model, 0.9)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)

    def step(x, y):
        model.zero_grad()
        optimizer.zero_grad()  # those that are no longer in the model
        scores = model(x)
        loss = loss_of(scores, y)
        loss.backward()
        optim.clip_grad_norm(model.parameters(), 0.5)
        optimizer.step()
        scheduler.step()
        ema.update()
        return loss, mg.mean(mg.equal(mg.argmax(scores, axis=1), y))

    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "ema": ema}
    x, y = rng.standard_normal((2, 6, 5)).astype(np.float32), rng.integers(0, 3, (2, 6))
    return Training(step, batches(x, y), {**parts, "loss": loss_of})


class OneStep:
    """A step of a Trainer, as `fit` makes it."""

    def __init__(self, trainer):
        self.trainer = trainer

    def __call__(self, x, y):
        history = self.trainer.fit((x.data, y.data), steps=1)
        return mg.tensor(history.steps[-1]["loss"])

    @property
    def source(self):
        return self.trainer.captured_step.source


class Annealed(nn.Module):
    """A model with attributes of its own: numbers, a choice, containers, an array, a function."""

    def __init__(self, rng):
        self.up, self.down = nn.Linear(5, 6, rng=rng), nn.Linear(6, 3, rng=rng)
        self.rest = nn.Sequential(nn.Dropout(0.3), nn.LayerNorm(6))
        self.temperature, self.is_scaled, self.act = 0.5, True, mg.gelu
        self.scales, self.named = [0.5, 0.25], {"shift": 0.5}
        self.table = mg.tensor(rng.standard_normal(3), dtype="float32")

    def forward(self, x):
        h = self.rest(self.act(self.up(x)) * self.scales[0])
        y = self.down(h) * self.temperature + self.named["shift"] + self.table
        return y * self.scales[1] if self.is_scaled else y


def fitted():
    """A Trainer, which captures its steps by itself."""
    rng = np.random.default_rng(1)
    model, loss = Annealed(rng), nn.HuberLoss(delta=0.7)
    optimizer = optim.AdamW(model.trainable_parameters(), lr=1e-2)
    scheduler, ema = optim.WarmupCosineLR(optimizer, 2, 20), optim.EMA(model, 0.9)
    options = {"scheduler": scheduler, "ema": ema, "batch_size": 6, "progress": False}
    steps = [
        OneStep(mg.Trainer(model, optimizer, loss, clip_norm=1.0, capture=capture, **options))
        for capture in (False, True)
    ]
    x, y = rng.standard_normal((2, 6, 5)), rng.standard_normal((2, 6, 3))
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "ema": ema}
    data = batches(x.astype(np.float32), y.astype(np.float32))
    return Training(steps[0], data, {**parts, "loss": loss}, steps[1])


class Transformer(nn.Module):
    """An embedding, two kinds of blocks, and a gated MLP."""

    def __init__(self, rng):
        self.tokens = nn.Embedding(7, 4, padding_idx=0, rng=rng)
        self.places = nn.Parameter(rng.standard_normal((3, 4)).astype(np.float32))
        options = {"dropout": 0.1, "causal": True, "norm": "rms"}
        self.blocks = [
            nn.TransformerBlock(4, 2, 8, rng=rng, **options),
            nn.TransformerBlock(4, 1, 8, rng=rng),
        ]
        self.gated = nn.GatedMLP(12, 5, rng=rng)
        self.head = nn.Sequential(nn.Flatten(), self.gated, nn.Linear(12, 2, rng=rng))

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def transformer():
    """Two micro-batches, clipped values, and groups with several options."""
    rng = np.random.default_rng(1)
    model = Transformer(rng)
    parameters = model.trainable_parameters()
    fast = {"params": parameters[3:], "lr": 0.01, "nesterov": True, "momentum": 0.8}
    groups = [{"params": parameters[:3]}, fast]
    optimizer = optim.SGD(groups, lr=0.02, momentum=0.9, weight_decay=0.01)
    scheduler = optim.StepLR(optimizer, 2, 0.5)

    def step(tokens, y):
        model.zero_grad()
        optimizer.zero_grad()
        total = mg.zeros(())
        for k in range(2):
            loss = mg.mse(model(tokens[k]), y[k]) * 0.5
            loss.backward()
            total = total + loss.detach()
        optim.clip_grad_value(model.parameters(), 0.1)
        optimizer.step()
        scheduler.step()
        return {"loss": total}

    tokens = rng.integers(0, 7, (2, 2, 3, 3))
    y = rng.standard_normal((2, 2, 3, 2)).astype(np.float32)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    return Training(step, batches(tokens, y), parts)


class Options(nn.Module):
    """Every module whose forward has options of its own, and every loss."""

    def __init__(self, rng):
        self.layers = [
            nn.Linear(4, 4, bias=False, rng=rng),
            nn.RMSNorm(4, eps=1e-3),
            nn.LayerNorm(4, elementwise_affine=False),
            nn.ELU(),
            nn.GELU(),
            nn.LeakyReLU(),
            nn.SiLU(),
            nn.Softplus(),
            nn.Softmax(),
            nn.LogSoftmax(),
            nn.Identity(),
        ]
        self.attention = nn.MultiHeadAttention(4, 2, dropout=0.1, rng=rng)
        self.mask = np.tri(3, dtype=bool)
        self.added = rng.standard_normal((3, 3)).astype(np.float32)
        self.causal = True
        weight = np.array([1.0, 2.0, 0.5, 1.0], np.float32)
        self.by_class = [
            nn.CrossEntropyLoss(weight=weight, label_smoothing=0.2, ignore_index=1),
            nn.NLLLoss(weight=weight),
        ]
        self.by_value = [
            nn.MSELoss(),
            nn.L1Loss("sum"),
            nn.HuberLoss(delta=0.3),
            nn.BCEWithLogitsLoss(pos_weight=weight),
        ]

    def forward(self, x, y, classes):
        for layer in self.layers:
            x = x + layer(x)
        x = x + self.attention(x, attn_mask=self.mask, is_causal=self.causal)
        x = x + self.attention(x, attn_mask=self.added)
        total = mg.mean(x)
        for loss in self.by_value:
            total = total + loss(x, y)
        for loss in self.by_class:
            total = total + loss(mg.reshape(x, (-1, 4)), mg.reshape(classes, (-1,)))
        return total


def options():
    """All modules and losses, stepped by Adam."""
    rng = np.random.default_rng(1)
    model = Options(rng)
    optimizer = optim.Adam(model.trainable_parameters(), weight_decay=0.1)
    scheduler = optim.LinearLR(optimizer)

    def step(x, y, classes):
        model.zero_grad()
        optimizer.zero_grad()
        loss = model(x, y, classes)
        loss.backward()
        optimizer.step()
        scheduler.step()
        return [loss]

    x = rng.standard_normal((2, 2, 3, 4)).astype(np.float32)
    y, classes = rng.uniform(size=x.shape).astype(np.float32), rng.integers(0, 4, (2, 2, 3))
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    return Training(step, batches(x, y, classes), parts)


def batches(*arrays):
    return [[mg.tensor(part) for part in batch] for batch in zip(*arrays, strict=True)]


@pytest.mark.sampled(12)
@pytest.mark.parametrize("twelfth", range(12))
def test_changes_of_an_mlp(twelfth):
    assert differences(mlp, [*changes_of(mlp)][twelfth::12]) == {}


@pytest.mark.sampled(12)
@pytest.mark.parametrize("twelfth", range(12))
def test_changes_around_a_trainer(twelfth):
    assert differences(fitted, [*changes_of(fitted)][twelfth::12]) == {}


def by_kind(build):
    """The changes of a training by their kind, of each kind the last.

    Changes are of one kind if they set one attribute of one class to the same value, or do the same
    to it. A step is recorded as calls of ops on parameters, and what is read is compared whoever
    holds it; so a third `Linear` is recorded by the code that the first has run. All changes of
    lists and dicts are of a kind of their own.
    """
    found = build().found()

    def kind(change):
        subject, _, label = change.name.partition(" ")
        path, _, attribute = subject.rpartition(".")
        holder = found.get(path)
        value = found.get(subject, getattr(holder, attribute, None))
        where = (build, path) if isinstance(holder, (list, dict)) else type(holder)
        return where, attribute, type(value), label

    return {kind(change): change for change in changes_of(build)}


@pytest.mark.full
@pytest.mark.parametrize("third", range(3))
@pytest.mark.parametrize(("build", "others"), [(transformer, [mlp]), (options, [mlp, transformer])])
def test_changes_of(build, others, third):
    """Changes of a kind that a test of another training has made are left to that."""
    known = {kind for other in others for kind in by_kind(other)}
    changes = [change for kind, change in by_kind(build).items() if kind not in known]
    assert differences(build, changes[third::3]) == {}


def test_the_comparison_notices_constants(monkeypatch):
    """If nothing were compared, most changes would be noticed by this test."""
    monkeypatch.setattr(Surroundings, "is_unchanged", lambda self: True)
    changes = {"dropout": halve_dropout, "eval": lambda t: t.parts["model"].eval()}
    found = differences(mlp, [Change(*pair) for pair in changes.items()])
    assert found.keys() == changes.keys()


def halve_dropout(training):
    training.parts["model"][0].dropout.p /= 2


# --------------------------------------------------------------------------------------------------
# What else happens to a training
# --------------------------------------------------------------------------------------------------


def load_optimizer(training):
    """Load the state and the options of another time."""
    state = training.parts["optimizer"].state_dict()
    for values in state["state"].values():
        values.update(step=1, exp_avg=values["exp_avg"] * 0)
    state["param_groups"][0].update(lr=0.3, betas=[0.5, 0.9])
    training.parts["optimizer"].load_state_dict(state)


def load_model(training):
    model = training.parts["model"]
    model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()})


def load(part, **options):
    def do(training):
        owner = training.parts[part]
        owner.load_state_dict({**owner.state_dict(), **options})

    return do


def add_group(training):
    more = nn.Parameter(np.ones(3, np.float32))
    training.parts["more"] = more
    training.parts["optimizer"].add_param_group({"params": [more], "lr": 0.1})


def new_groups(training):
    optimizer = training.parts["optimizer"]
    optimizer.param_groups = [{**group, "lr": 0.5} for group in optimizer.param_groups]


def set_gradient(training):
    weight = training.parts["model"][3].weight
    weight.grad = mg.Tensor(np.ones(weight.shape, np.float32))


def remove_hook(training):
    training.parts["model"][3].weight.register_hook(lambda g: g * 2).remove()


EVENTS = {
    "load_state_dict of the model": load_model,
    "load_state_dict of the optimiser": load_optimizer,
    "load_state_dict of the scheduler": load("scheduler", last_epoch=7),
    "load_state_dict of the average": load("ema", decay=0.5, updates=3),
    "add_param_group": add_group,
    "param_groups": new_groups,
    "optimizer.lr": lambda training: setattr(training.parts["optimizer"], "lr", 0.5),
    "applied": lambda training: training.parts["ema"].applied().__enter__(),
    "manual_seed": lambda training: mg.manual_seed(3),
    "a gradient": set_gradient,
    "a hook that is removed": remove_hook,
    "pack limit": lambda training: mg.set_pack_limit(None),
    "forward": lambda t: setattr(t.parts["model"][3], "forward", lambda x: mg.sin(x[:, :3])),
}


def test_events():
    assert differences(mlp, [Change(*pair) for pair in EVENTS.items()]) == {}


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(threads):
    before = mg.get_num_threads()
    try:
        assert difference(mlp, Change("", lambda training: mg.set_num_threads(threads))) == ""
    finally:
        mg.set_num_threads(before)


def test_a_hook_is_refused():
    training = mlp()
    step = mg.capture(training.step)
    for _ in range(3):
        step(*training.batches[0])
    training.parts["model"][3].weight.register_hook(lambda g: g * 2)
    with pytest.raises(mg.CaptureError, match="a hook is not captured"):
        step(*training.batches[0])


@pytest.mark.parametrize("changed", range(3))
def test_arrays_of_one_name_and_one_with_a_similar_name_are_all_compared(changed):
    """The second `w` would be called w_2, which is another array."""

    def scaling(w):
        return lambda x: x * float(w[0])

    arrays = [np.ones(3, np.float32) for _ in range(3)]
    (w_2, *others), p = arrays, nn.Parameter(np.ones(3, np.float32))
    x_scaled, y_scaled = map(scaling, others)
    sgd = optim.SGD([p], lr=0.0)

    @mg.capture
    def step(x):
        sgd.zero_grad()
        y = y_scaled(x_scaled(p * x * float(w_2[0])))
        y.sum().backward()
        sgd.step()
        return y

    for _ in range(3):
        step(mg.ones(3))
    arrays[changed][:] = 2
    assert step(mg.ones(3)).tolist() == [2, 2, 2]


@pytest.mark.parametrize("size", [1, 100_000])
def test_an_array_that_the_step_writes_to_is_refused(size):
    counts, seen = np.zeros(size, np.float32), mg.zeros(size)

    def step(x):
        counts[0] += 1
        return mg.sum(x * counts)

    with pytest.raises(mg.CaptureError, match=r"the step writes to counts, a numpy array.*copy_"):
        mg.capture(step)(mg.ones(1))

    def counting(x):
        seen.copy_(seen + 1)
        return mg.mean(x * seen)

    captured = mg.capture(counting)
    assert [captured(mg.ones(1)).item() for _ in range(12)] == [*range(1, 13)]


def test_a_gradient_that_the_step_does_not_zero_stays():
    training = mlp()
    other = mg.tensor([1.0, 2.0], requires_grad=True)

    def step(x, y):
        training.step(x, y)
        return mg.sum(other.detach())

    captured = mg.capture(step)
    for _ in range(3):
        captured(*training.batches[0])
    other.grad = mg.tensor([3.0, 4.0])
    captured(*training.batches[0])
    assert other.grad.tolist() == [3.0, 4.0]


# --------------------------------------------------------------------------------------------------
# What a step reads around it
# --------------------------------------------------------------------------------------------------

SCALE = 0.5
HERE = sys.modules[__name__]


def scaled(h):
    return h * SCALE


def scale_of(owner):
    return owner.hidden


class Config:
    scale = 0.5

    def __init__(self):
        self.limit = 0.5
        self.hidden = 0.5

    @property
    def computed(self):
        return self.hidden * SCALE

    def method(self, h):
        return h * SCALE * scale_of(self)

    @staticmethod
    def static(h):
        return h * SCALE

    @classmethod
    def of_class(cls, h):
        return h * cls.scale

    def __call__(self, h):
        return self.method(h) * self.limit


class Derived(Config):
    def __init__(self):
        super().__init__()
        self.hidden = 0.25


@dataclass(slots=True)
class Slots:
    scale: float = 0.5

    def scaled(self, h):
        return h * self.scale


class OneSlot:
    __slots__ = "scale"  # a single name is not a list of letters

    def __init__(self):
        self.scale = 0.5


class PrivateSlot:
    __slots__ = ("__scale",)  # stored as _PrivateSlot__scale

    def __init__(self, scale=0.5):
        self.__scale = scale

    def scaled(self, h):
        return h * self.__scale


class Table(dict):
    """A dict with an attribute, and with a method that is not called by name."""

    def __init__(self):
        super().__init__(a=0.5)
        self.scale = 0.5

    def __getitem__(self, key):
        return super().__getitem__(key) * SCALE


class Special:
    """Special methods, which no code calls by name."""

    def __init__(self):
        self.scale = SCALE

    def __mul__(self, other):
        return other * SCALE

    def __float__(self):
        return SCALE

    def __len__(self):
        return int(SCALE * 10)

    def __neg__(self):
        return SCALE

    def __get__(self, owner, kind):
        return SCALE


class Described:
    described = Special()


class Pair(NamedTuple):
    a: float = 0.5

    @property
    def computed(self):
        return self.a * SCALE


class Kind(enum.Enum):
    A = 1

    def method(self, h):
        return h * SCALE


class Level(enum.IntEnum):
    A = 1

    def method(self, h):
        return h * SCALE


class Named(nn.Parameter):
    """A parameter with an attribute."""

    def __init__(self):
        super().__init__(np.ones(3, np.float32), requires_grad=False)
        self.scale = 0.5


@dataclass
class Fields:
    scales: list = field(default_factory=lambda: [0.5, 0.25])


class Net(nn.Module):
    factor = 0.5

    def __init__(self):
        self.linear = nn.Linear(5, 3, rng=np.random.default_rng(1))
        self.hidden = 0.5

    def forward(self, x):
        return self.linear(x) * self.factor

    def loss(self, x, y):
        return mg.mse(self(x), y) * SCALE * scale_of(self)


def of_config(make, body, do):
    """A case whose step computes `body(outputs, config)`, and whose config is changed."""
    return make, lambda net, x, y, config: mg.mse(body(net(x), config), y), do


def of_net(body, do):
    return (lambda: None), body, do


def with_scale(**options):
    """A function of the user's, with the attributes of a function."""

    def function(h, a=0.5, *, b=0.5):
        return h * a * b

    vars(function).update(options)
    return function


VALUES = {"a": 0.5}


def like_the_library():
    """A function of the user's that says it is one of the library."""
    scale = [0.5]

    @functools.wraps(mg.mse)
    def function(h):
        return h * scale[0]

    return function


def weakly():
    """A weak reference to an object that something else keeps."""
    KEPT.append(Config())
    return weakref.ref(KEPT[-1])


KEPT: list[Config] = []


@functools.lru_cache
def cached():
    return SCALE


def clear_cache(training):
    training.patch.setattr(HERE, "SCALE", 0.9)
    cached.cache_clear()


def patched(owner, name, value):
    return lambda training: training.patch.setattr(owner, name, value)


def assigned(name, value):
    return lambda training: setattr(training.parts["config"], name, value)


def stored(key, value):
    return lambda training: training.parts["config"].__setitem__(key, value)


def member(**attributes):
    vars(Kind.A).update(attributes)
    return Kind.A


def numbers():
    return np.array([0.5, 0.25, 1.0])


def tensor():
    return mg.tensor([0.5, 0.25, 1.0])


def in_turn(h, config):
    for each in config.scales:
        h = h * each
    for each in config.shifts:
        h = h + each
    return h


def move(training):
    """Move an element to another list, without another change of all elements in their order."""
    config = training.parts["config"]
    config.shifts.insert(0, config.scales.pop())


class Flags:
    is_scaled = is_shifted = False

    def __init__(self):
        self.is_scaled = True

    def __call__(self, h):
        h = h * 0.5 if self.is_scaled else h
        return h + 0.5 if self.is_shifted else h


def rename(training):
    """Give another attribute the same value."""
    config = training.parts["config"]
    del config.is_scaled
    config.is_shifted = True


def in_softmax(h, config):
    return mg.softmax(h, **vars(config))


def space():
    return types.SimpleNamespace(scale=0.5, inner=types.SimpleNamespace(scale=0.5))


more = patched(HERE, "SCALE", 0.9)
CASES = {
    "global": of_net(lambda net, x, y, _: mg.mse(scaled(net(x)), y), more),
    "global function": of_net(
        lambda net, x, y, _: mg.mse(scaled(net(x)), y), patched(HERE, "scaled", mg.sin)
    ),
    "global in a method": of_net(lambda net, x, y, _: net.loss(x, y), more),
    "attribute in a helper": of_net(
        lambda net, x, y, _: net.loss(x, y), lambda t: setattr(t.parts["net"], "hidden", 0.9)
    ),
    "attribute of a class": of_net(
        lambda net, x, y, _: net.loss(x, y), patched(Net, "factor", 0.9)
    ),
    "method of a class": of_net(
        lambda net, x, y, _: net.loss(x, y), patched(Net, "forward", lambda net, x: net.linear(x))
    ),
    "instance": of_config(Config, lambda h, c: h * c.limit, assigned("limit", 0.9)),
    "class": of_config(Config, lambda h, c: h * c.scale, patched(Config, "scale", 0.9)),
    "base class": of_config(Derived, lambda h, c: h * c.scale, patched(Config, "scale", 0.9)),
    "class itself": of_config(
        lambda: Config, lambda h, c: h * c.scale, patched(Config, "scale", 0.9)
    ),
    "property": of_config(Config, lambda h, c: h * c.computed, assigned("hidden", 0.9)),
    "global in a property": of_config(Config, lambda h, c: h * c.computed, more),
    "static method": of_config(Config, lambda h, c: c.static(h), more),
    "class method": of_config(Config, lambda h, c: c.of_class(h), patched(Config, "scale", 0.9)),
    "callable": of_config(Config, lambda h, c: c(h), assigned("limit", 0.9)),
    "global in a callable": of_config(Config, lambda h, c: c(h), more),
    "bound method": of_config(
        lambda: Config().method,
        lambda h, c: c(h),
        lambda t: setattr(t.parts["config"].__self__, "hidden", 0.9),
    ),
    "bound method that is not a function": of_config(
        lambda: types.MethodType(functools.partial(Config.method), Config()),
        lambda h, c: c(h),
        lambda t: setattr(t.parts["config"].__self__, "hidden", 0.9),
    ),
    "getattr": of_config(space, lambda h, c: h * getattr(c, "scale"), assigned("scale", 0.9)),  # noqa: B009
    "slots": of_config(Slots, lambda h, c: h * c.scale, assigned("scale", 0.9)),
    "one slot": of_config(OneSlot, lambda h, c: h * c.scale, assigned("scale", 0.9)),
    "private slot": of_config(
        PrivateSlot, lambda h, c: c.scaled(h), lambda t: t.parts["config"].__init__(0.9)
    ),
    "bound method of slots": of_config(
        lambda: Slots().scaled,
        lambda h, c: c(h),
        lambda t: setattr(t.parts["config"].__self__, "scale", 0.9),
    ),
    "fields": of_config(
        Fields, lambda h, c: h * c.scales[1], lambda t: t.parts["config"].scales.reverse()
    ),
    "namespace": of_config(space, lambda h, c: h * c.scale, assigned("scale", 0.9)),
    "numpy number": of_config(space, lambda h, c: h * c.scale, assigned("scale", np.float64(0.9))),
    "inner namespace": of_config(
        space,
        lambda h, c: h * c.inner.scale,
        lambda t: setattr(t.parts["config"].inner, "scale", 0.9),
    ),
    "arguments": of_config(
        lambda: argparse.Namespace(scale=0.5), lambda h, c: h * c.scale, assigned("scale", 0.9)
    ),
    "arguments as keywords": of_config(
        lambda: argparse.Namespace(axis=1), in_softmax, assigned("axis", 0)
    ),
    "namespace as keywords": of_config(
        lambda: types.SimpleNamespace(axis=1), in_softmax, assigned("axis", 0)
    ),
    "dict": of_config(lambda: {"a": 0.5}, lambda h, c: h * c["a"], stored("a", 0.9)),
    "values of a dict": of_config(
        lambda: VALUES.values(),
        lambda h, c: h * sum(c),
        lambda t: t.patch.setitem(VALUES, "a", 0.9),
    ),
    "array of objects": of_config(
        lambda: np.array([{"a": 0.5}]),
        lambda h, c: h * c[0]["a"],
        lambda t: t.parts["config"][0].update(a=0.9),
    ),
    "element of a dict of one's own": of_config(Table, lambda h, c: h * c["a"], more),
    "attribute of a dict": of_config(Table, lambda h, c: h * c.scale, assigned("scale", 0.9)),
    "attribute of a parameter": of_config(
        Named, lambda h, c: h * c * c.scale, assigned("scale", 0.9)
    ),
    "constructor": of_config(lambda: None, lambda h, c: h * Special().scale, more),
    "operator": of_config(Special, lambda h, c: c * h, more),
    "conversion": of_config(Special, lambda h, c: h * float(c), more),
    "length": of_config(Special, lambda h, c: h * len(c), more),
    "sign": of_config(Special, lambda h, c: h * -c, more),
    "descriptor": of_config(Described, lambda h, c: h * c.described, more),
    "property of a named tuple": of_config(Pair, lambda h, c: h * c.computed, more),
    "method of an enumeration": of_config(lambda: Kind.A, lambda h, c: c.method(h), more),
    "method of a number": of_config(lambda: Level.A, lambda h, c: c.method(h), more),
    "attribute of an enumeration": of_config(
        lambda: member(scale=0.5), lambda h, c: h * c.scale, assigned("scale", 0.9)
    ),
    "user dict": of_config(
        lambda: collections.UserDict(a=0.5), lambda h, c: h * c["a"], stored("a", 0.9)
    ),
    "user list": of_config(
        lambda: collections.UserList([0.5]), lambda h, c: h * c[0], stored(0, 0.9)
    ),
    "list": of_config(lambda: [0.5], lambda h, c: h * c[0], stored(0, 0.9)),
    "list in a tuple": of_config(
        lambda: ([0.5],), lambda h, c: h * c[0][0], lambda t: t.parts["config"][0].append(9.0)
    ),
    "list as a tensor": of_config(
        lambda: [0.5, 1.0, 2.0], lambda h, c: h * mg.Tensor(c), stored(0, 0.9)
    ),
    "list as an index": of_config(lambda: [0, 1, 2], lambda h, c: h[:, c], stored(0, 2)),
    "lists side by side": of_config(
        lambda: types.SimpleNamespace(scales=[0.5, 0.25], shifts=[0.125]), in_turn, move
    ),
    "name of an attribute": of_config(Flags, lambda h, c: c(h), rename),
    "deque": of_config(
        lambda: collections.deque([0.5]),
        lambda h, c: h * c[-1],
        lambda t: t.parts["config"].append(9.0),
    ),
    "module": of_net(
        lambda net, x, y, _: mg.mse(net(x) * settings.scale, y), patched(settings, "scale", 0.9)
    ),
    "new attribute of a module": of_net(
        lambda net, x, y, _: mg.mse(net(x) * getattr(settings, "extra", 1.0), y),
        lambda t: t.patch.setattr(settings, "extra", 0.9, raising=False),
    ),
    "global of a module": of_net(
        lambda net, x, y, _: settings.loss(net(x), y), patched(settings, "factor", 0.9)
    ),
    "function of a module": of_net(
        lambda net, x, y, _: settings.loss(net(x), y), patched(settings, "loss", mg.mse)
    ),
    "default": of_config(with_scale, lambda h, c: c(h), assigned("__defaults__", (0.9,))),
    "keyword default": of_config(
        with_scale, lambda h, c: c(h), lambda t: t.parts["config"].__kwdefaults__.update(b=0.9)
    ),
    "code": of_config(
        with_scale, lambda h, c: c(h), assigned("__code__", (lambda h, a, b: h * 2).__code__)
    ),
    "new attribute of a function": of_config(
        with_scale, lambda h, c: h * getattr(c, "scale", 0.5), assigned("scale", 0.9)
    ),
    "all attributes": of_config(
        Config, lambda h, c: h * c.limit, assigned("__dict__", {"limit": 0.9, "hidden": 0.5})
    ),
    "attribute of a function": of_config(
        lambda: with_scale(scale=0.5), lambda h, c: h * c.scale, assigned("scale", 0.9)
    ),
    "function that wraps one of the library": of_config(
        like_the_library,
        lambda h, c: c(h),
        lambda t: t.parts["config"].__closure__[0].cell_contents.insert(0, 0.9),
    ),
    "weak reference": of_config(
        weakly, lambda h, c: h * c().limit, lambda t: setattr(t.parts["config"](), "limit", 0.9)
    ),
    "partial": of_config(
        lambda: functools.partial(mg.softmax, axis=-1),
        lambda h, c: c(h),
        lambda t: t.parts["config"].keywords.update(axis=0),
    ),
    "cached function": of_net(lambda net, x, y, _: mg.mse(net(x), y) * cached(), clear_cache),
    "array in an op": of_config(numbers, lambda h, c: h * c, stored(0, 9.0)),
    "array as a Tensor": of_config(numbers, lambda h, c: h * mg.Tensor(c), stored(0, 9.0)),
    "array as a copy": of_config(numbers, lambda h, c: h * mg.tensor(c), stored(0, 9.0)),
    "array converted": of_config(
        numbers, lambda h, c: h * mg.Tensor(c, dtype=np.float32), stored(0, 9.0)
    ),
    "array in numpy": of_config(numbers, lambda h, c: h * (c * 2), stored(0, 9.0)),
    "view of an array": of_config(numbers, lambda h, c: h * c[::-1], stored(0, 9.0)),
    "element of an array": of_config(numbers, lambda h, c: h * c[0], stored(0, 9.0)),
    "number in an array": of_config(numbers, lambda h, c: h * float(c[0]), stored(0, 9.0)),
    "choice by an array": of_config(
        numbers, lambda h, c: h if c[0] > 1 else mg.sin(h), stored(0, 9.0)
    ),
    "array as an index": of_config(
        lambda: np.arange(3), lambda h, c: h[:, c], stored(0, 2)
    ),
    "raw write to a tensor": of_config(
        tensor, lambda h, c: h * c, lambda t: t.parts["config"].data.__setitem__(0, 9.0)
    ),
    "raw write to an element": of_config(
        tensor, lambda h, c: h * c[0], lambda t: t.parts["config"].data.__setitem__(0, 9.0)
    ),
    "data of a number": of_config(
        lambda: mg.tensor(0.5), lambda h, c: h * c, lambda t: t.parts["config"].copy_(0.9)
    ),
    "generator": of_config(
        lambda: np.random.default_rng(4),
        lambda h, c: h + mg.randn(3, rng=c),
        lambda t: t.parts["config"].random(),
    ),
}  # fmt: skip


def net_batches():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 6, 5)), rng.standard_normal((2, 6, 3))
    return batches(x.astype(np.float32), y.astype(np.float32))


def training_of(make, body):
    def build():
        cached.cache_clear()
        net, config = Net(), make()
        optimizer = optim.SGD(net.trainable_parameters(), lr=0.1, momentum=0.5)

        def step(x, y):
            optimizer.zero_grad()
            loss = body(net, x, y, config)
            loss.backward()
            optimizer.step()
            return loss

        parts = {"net": net, "optimizer": optimizer, "config": config}
        return Training(step, net_batches(), parts)

    return build


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CASES)
def test_what_a_step_reads(name):
    make, body, do = CASES[name]
    build = training_of(make, body)
    assert difference(build, Change(name, do)) == ""


INSTALLED = """
import minigrad as mg

factor = 0.5

class Net(mg.nn.Module):
    def __init__(self):
        self.linear = mg.nn.Linear(5, 3, rng=mg.manual_seed(1))

    def forward(self, x):
        return self.linear(x) * factor

def training_step(net, optimizer):
    def step(x, y):
        optimizer.zero_grad()
        loss = mg.mse(net(x), y) * factor
        loss.backward()
        optimizer.step()
        return loss
    return step
"""


def installed():
    """Make a Python module that seems to be in a folder of installed packages."""
    module = types.ModuleType("installed")
    exec(compile(INSTALLED, "/lib/site-packages/installed.py", "exec"), vars(module))
    return module


@pytest.mark.parametrize(
    "do",
    [
        lambda t: t.parts["net"].linear.freeze(),
        lambda t: setattr(t.parts["net"].linear.weight, "data", np.ones((3, 5), np.float32)),
        lambda t: t.patch.setattr(t.parts["package"], "factor", 0.9),
    ],
    ids=["freeze", "memory", "global"],
)
@pytest.mark.parametrize("part", ["step", "partial", "network"])
def test_what_a_step_or_a_network_of_an_installed_package_reads(part, do):
    """Only functions of packages that neither the step nor a network is from are not read."""

    def build():
        package = installed()
        net = package.Net() if part == "network" else Net()
        optimizer = optim.SGD(net.parameters(), lr=0.1)
        parts = {"net": net, "optimizer": optimizer, "package": package}
        if part == "step":
            return Training(package.training_step(net, optimizer), net_batches(), parts)
        if part == "partial":
            step = functools.partial(package.training_step(net, optimizer))
            return Training(step, net_batches(), parts)

        def step(x, y):
            optimizer.zero_grad()
            loss = mg.mse(net(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return Training(step, net_batches(), parts)

    assert difference(build, Change("", do)) == ""


class Loop:
    """A training loop whose step is a method, beside counters that are not the step's."""

    def __init__(self):
        self.training = training_of(Config, lambda net, x, y, config: None)()
        self.config, self.scale, self.count, self.other = Fields(), 0.5, 0, 0
        self.training.parts["net"].loop = self

    def step(self, x, y):
        net, optimizer = self.training.parts["net"], self.training.parts["optimizer"]
        optimizer.zero_grad()
        loss = self.compute(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    def compute(self, h, y):
        return outer(self, h, y)


def outer(loop, h, y):
    return mg.mse(h * loop.scale * loop.config.scales[0] * getattr(loop, "more", 1.0), y)


def exchange(training):
    """Leave the number of attributes as it is."""
    loop = training.parts["loop"]
    del loop.other
    loop.more = 0.5


@pytest.mark.parametrize(
    "do",
    [
        lambda t: setattr(t.parts["loop"], "scale", 0.9),
        lambda t: t.parts["loop"].config.scales.reverse(),
        exchange,
    ],
)
def test_attributes_of_the_owner_of_a_step(do):
    def build():
        loop = Loop()
        return Training(loop.step, loop.training.batches, {"loop": loop})

    assert difference(build, Change("", do)) == ""


class DerivedLoop(Loop):
    """A loop whose step reaches its class, and so a constructor that sets the counters."""

    def compute(self, h, y):
        return super().compute(h, y) * isinstance(self, DerivedLoop)


@dataclass
class DataLoop(Loop):
    """A loop whose `__eq__`, which `dataclass` makes, names the counter."""

    count: int = 0

    def __post_init__(self):
        super().__init__()


@pytest.mark.parametrize("kind", [Loop, DerivedLoop, DataLoop])
def test_other_attributes_of_the_owner_of_a_step_do_not_count(kind):
    loop = kind()
    step = mg.capture(loop.step)
    for _ in range(12):
        loop.count += 1  # which no line of the step reads
        step(*loop.training.batches[0])
    assert step.source


class Log:
    count = 0

    def __init__(self):
        self.losses, self.by_name, self.array = [], {}, np.zeros(3)
        self.deque, self.last = collections.deque(maxlen=2), None


def write_global(loss, log):
    global SCALE
    SCALE = loss


def write_class(loss, log):
    Log.count += 1


def write_attribute(loss, log):
    log.last = loss


def write_function(loss, log):
    write_function.last = loss


def write_module(loss, log):
    settings.last = loss


def write_array(loss, log):
    log.array[0] += 1


WRITES = [
    ("SCALE", write_global),
    (r"log\.count", write_class),
    (r"log\.last", write_attribute),
    (r"write\.last", write_function),
    (r"settings\.last", write_module),
    (r"log\.array", write_array),
    (r"log\.losses", lambda loss, log: log.losses.append(loss)),
    (r"log\.by_name\.loss", lambda loss, log: log.by_name.update(loss=loss)),
    (r"log\.deque\.0, log\.deque\.1", lambda loss, log: log.deque.append(loss)),
    (r"log\.last", lambda loss, log: setattr(log, "last", loss)),
]


@pytest.mark.parametrize(("name", "write"), WRITES)
def test_what_a_step_writes_is_refused_by_name(name, write, monkeypatch):
    """A program would leave it out without a word."""
    monkeypatch.setattr(HERE, "SCALE", 0.5)
    monkeypatch.setattr(Log, "count", 0)
    monkeypatch.setattr(settings, "last", None, raising=False)
    log = Log()

    @mg.capture
    def step(x):
        loss = mg.sum(x)
        write(loss, log)
        return loss

    with pytest.raises(mg.CaptureError, match=rf"the step (reads|writes to) {name}, (and that|a )"):
        [step(mg.tensor([1.0, 2.0])) for _ in range(7)]


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.count = nn.Linear(2, 2), 0

    def forward(self, x):
        self.count += 1
        return self.linear(x)


def test_an_attribute_of_a_module_that_changes_in_each_call_is_refused_by_name():
    net = Counting()
    step = mg.capture(lambda x: net(x) * 1)
    with pytest.raises(mg.CaptureError, match=r"the step reads net\.count, and that changes"):
        [step(mg.tensor([[1.0, 2.0]])) for _ in range(7)]


def applied(parts):
    with parts["ema"].applied():
        pass


def decay_groups(parts):
    for group in parts["optimizer"].param_groups:
        group["lr"] *= 0.9


SETS = {
    "groups": ("optimizer", decay_groups),
    "lr": ("optimizer", lambda parts: setattr(parts["optimizer"], "lr", 0.5)),
    "momentum": (
        "optimizer",
        lambda parts: parts["optimizer"].param_groups[0].update(momentum=0.1),
    ),
    "state of an optimiser": (
        "optimizer",
        lambda parts: parts["optimizer"].load_state_dict(parts["optimizer"].state_dict()),
    ),
    "state of a scheduler": (
        "scheduler",
        lambda parts: parts["scheduler"].load_state_dict(parts["saved"]),
    ),
    "steps of a scheduler": (
        "scheduler",
        lambda parts: setattr(parts["scheduler"], "last_epoch", 5),
    ),
    "option of a scheduler": (
        "scheduler",
        lambda parts: parts["scheduler"].options.update(gamma=0.3),
    ),
    "state of averages": (
        "ema",
        lambda parts: parts["ema"].load_state_dict(parts["ema"].state_dict()),
    ),
    "decay of averages": ("ema", lambda parts: setattr(parts["ema"], "decay", 0.3)),
    "rule of a scheduler": (
        "scheduler",
        lambda parts: setattr(parts["scheduler"], "lr_lambda", lambda step: 0.5),
    ),
    "applied averages": ("ema", applied),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("is_first", [True, False])
def test_what_a_step_sets_is_refused_by_name(name, is_first):
    weight = mg.tensor([1.0, 2.0], requires_grad=True)
    optimizer = optim.SGD([weight], lr=0.1)
    scheduler = optim.StepLR(optimizer, 1)
    ema = optim.EMA([weight], 0.9)
    saved = {**scheduler.state_dict(), "last_epoch": 7}
    parts = {"optimizer": optimizer, "scheduler": scheduler, "ema": ema, "saved": saved}
    part, do = SETS[name]

    @mg.capture
    def step(x):
        optimizer.zero_grad()
        if is_first:
            do(parts)
        mg.sum(weight * x).backward()
        optimizer.step()
        scheduler.step()
        ema.update()
        if not is_first:
            do(parts)

    message = rf"sets an option or the state of (parts\.)?{part}, .* do that outside of the step"
    with pytest.raises(mg.CaptureError, match=message):
        step(mg.tensor([1.0, 2.0]))


def learner():
    weight = mg.tensor([1.0, 2.0], requires_grad=True)
    optimizer = optim.SGD([weight], lr=0.1)

    def learn(x, factor):
        optimizer.zero_grad()
        mg.sum(weight * x).backward()
        optimizer.step()
        optimizer.lr = optimizer.lr * factor

    return learn


@pytest.mark.parametrize("factors", [(1, 2), (2, 1)])
def test_two_optimisers_of_one_name(factors):
    first, second = learner(), learner()

    @mg.capture
    def step(x):
        first(x, factors[0])
        second(x, factors[1])

    with pytest.raises(mg.CaptureError, match="sets an option or the state of optimizer"):
        step(mg.tensor([1.0, 2.0]))


def load_halves(training):
    ema = training.parts["ema"]
    state = ema.state_dict()
    state["averages"] = {name: value * 0.5 for name, value in state["averages"].items()}
    ema.load_state_dict(state)


def test_averages_that_a_step_copies_to_the_weights():
    """Other averages are other arrays, which the program must read anew."""

    def build():
        net = Net()
        ema = optim.EMA(net, 0.9)

        def step(x, y):
            ema.copy_to()
            return mg.mse(net(x), y).detach()

        return Training(step, net_batches(), {"net": net, "ema": ema})

    assert difference(build, Change("load_state_dict", load_halves)) == ""


def test_a_state_that_a_step_loads():
    """As that of a target network, which follows another one."""

    def build():
        net, target = Net(), Net()
        optimizer = optim.SGD(net.parameters(), lr=0.1)

        def step(x, y):
            optimizer.zero_grad()
            loss = mg.mse(net(x), target(y @ mg.ones((3, 5))).detach())
            target.load_state_dict(net.state_dict())
            loss.backward()
            optimizer.step()
            return loss

        parts = {"net": net, "target": target, "optimizer": optimizer}
        return Training(step, net_batches(), parts)

    assert difference(build, None) == ""


def test_a_zero_with_a_sign_is_another_argument():
    x = mg.tensor([1.0, 2.0])
    step = mg.capture(lambda x, factor: x * factor)
    for factor in [0.0] * 4 + [-0.0] * 4:
        assert step(x, factor).data.tobytes() == (x.data * np.float32(factor)).tobytes()


def test_numpy_on_equal_arguments():
    """Two recordings with equal arrays would not tell what numpy has made of them."""
    x = np.random.default_rng(0).standard_normal((3, 6, 5)).astype(np.float32)

    @mg.capture
    def step(x):
        return mg.sum(mg.Tensor(x) * float(x.max()))

    with pytest.raises(mg.CaptureError, match=r"float\(\) takes a value out of the step"):
        step(x[0])


class Weighted:
    """A part of a training with an attribute, and a method that reads it and another one."""

    weight = 0.5

    def weighted(self, loss):
        return loss * self.weight * self.factor


class WeightedSGD(Weighted, optim.SGD):
    pass


class WeightedLR(Weighted, optim.StepLR):
    pass


class WeightedEMA(Weighted, optim.EMA):
    pass


@pytest.mark.parametrize("part", ["optimizer", "scheduler", "ema"])
@pytest.mark.parametrize(
    "do",
    [
        lambda training, part: setattr(training.parts[part], "factor", 0.25),
        lambda training, part: training.patch.setattr(Weighted, "weight", 0.25),
    ],
    ids=["attribute", "class"],
)
def test_attributes_of_parts_of_ones_own(part, do):
    def build():
        net = Net()
        optimizer = WeightedSGD(net.parameters(), lr=0.1)
        scheduler, ema = WeightedLR(optimizer, 2, 0.5), WeightedEMA(net, 0.9)
        parts = {"net": net, "optimizer": optimizer, "scheduler": scheduler, "ema": ema}
        chosen = parts[part]
        chosen.factor = 0.5

        def step(x, y):
            optimizer.zero_grad()
            loss = chosen.weighted(mg.mse(net(x), y))
            loss.backward()
            optimizer.step()
            scheduler.step()
            ema.update()
            return loss

        return Training(step, net_batches(), parts)

    assert difference(build, Change("", lambda training: do(training, part))) == ""


class Counted(optim.Optimizer):
    """An optimiser that changes its own attribute, by a method that a program calls again."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.count = 0

    def check_options(self, group):
        pass

    def update(self, x, g, state, group):
        self.count += 1
        x -= group["lr"] / float(np.sqrt(self.count).item()) * g


def test_attributes_that_an_optimiser_changes_are_read_again():
    def build():
        net = Net()
        optimizer, ema = Counted(net.parameters()), optim.EMA(net, 0.9)

        def step(x, y):
            optimizer.zero_grad()
            loss = mg.mse(net(x), y)
            loss.backward()
            optimizer.step()
            ema.update()
            return loss

        return Training(step, net_batches(), {"net": net, "optimizer": optimizer, "ema": ema})

    halve = Change("count", lambda training: setattr(training.parts["optimizer"], "count", 3))
    assert difference(build, halve) == ""


def load_other_momentum(training):
    optimizer = training.parts["optimizer"]
    state = optimizer.state_dict()
    for values in state["state"].values():
        values["momentum_buffer"] *= 3
    optimizer.load_state_dict(state)


def test_a_state_that_a_step_reads():
    """Another state is other arrays."""

    def build():
        net = Net()
        optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        weight = net.linear.weight

        def step(x, y):
            optimizer.zero_grad()
            loss = mg.mse(net(x), y)
            loss.backward()
            optimizer.step()
            return loss + mg.sum(optimizer.state[weight]["momentum_buffer"] * mg.ones(1))

        return Training(step, net_batches(), {"net": net, "optimizer": optimizer})

    assert difference(build, Change("load_state_dict", load_other_momentum)) == ""


def two_groups():
    net = Net()
    weight, bias = net.linear.weight, net.linear.bias
    own = nn.Parameter(np.ones(3, np.float32))
    groups = [{"params": [weight, own]}, {"params": [bias], "lr": 0.01}]
    optimizer = optim.SGD(groups, lr=0.1)

    def step(x, y):
        optimizer.zero_grad()
        loss = mg.mse(net(x) * own, y)
        loss.backward()
        optimizer.step()
        return loss

    return Training(step, net_batches(), {"net": net, "own": own, "optimizer": optimizer})


def move_parameter(training):
    first, second = training.parts["optimizer"].param_groups
    second["params"].insert(0, first["params"].pop())


def test_a_parameter_that_moves_to_another_group():
    assert difference(two_groups, Change("", move_parameter)) == ""


def test_no_group_is_stepped_if_an_option_of_another_one_is_impossible():
    training = two_groups()
    step = mg.capture(training.step)
    for _ in range(3):
        step(*training.batches[0])
    before = training.state()
    training.parts["optimizer"].param_groups[1]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must be"):
        step(*training.batches[0])
    after = training.state()
    assert [name for name in before if before[name] != after[name]] == ["optimizer"]
