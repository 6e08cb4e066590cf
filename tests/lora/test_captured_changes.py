"""Nothing of an adapter is a silent constant of a captured step.

As in tests/minigrad/programs/test_changes.py, one thing is changed in a captured training and in an
equal eager one.
"""

import numpy as np
import pytest

import lora
import minigrad as mg
from lora import LoRAConfig
from minigrad import optim
from tests.lora.models import TOKENS, TokenNet, shake
from tests.minigrad.programs.changes import Change, Training, changes_of, difference, differences
from tests.minigrad.programs.test_capture import training_step

ALL = ["table", "q", "v", "head"]


def training_of(base=None, second=False, targets=("q", "v"), dtype=np.float32, **options):
    """A training of adapters, and of a penalty, with the rates of LoRA+."""

    def build():
        rng = np.random.default_rng(1)
        model = TokenNet(rng, dtype)
        if base is not None:
            blocks = {"block_size": 4} if base == "nf4" else {}
            lora.quantize(model, format=base, progress=False, **blocks)
        lora.attach(model, LoRAConfig(rank=2, targets=[*targets], **options), rng=rng)
        shake(model, rng)
        if second:
            add_adapter(model, rng)
        decay = 0.0 if "init" in options else 0.1
        groups = lora.param_groups(model, 1e-2, ratio=4, weight_decay=decay)
        optimizer = optim.AdamW(groups)

        def step(tokens, y):
            model.zero_grad()
            optimizer.zero_grad()
            loss = mg.mse(model(tokens), y) + 0.01 * lora.penalty(model)
            loss.backward()
            optim.clip_grad_norm(model.trainable_parameters(), 0.5)
            optimizer.step()
            return loss

        y = rng.standard_normal((2, 2, 3, 3)).astype(dtype)
        batches = [[mg.tensor(t), mg.tensor(y[k])] for k, t in enumerate((TOKENS, TOKENS[::-1]))]
        return Training(step, batches, {"model": model, "optimizer": optimizer})

    return build


def add_adapter(model, rng):
    lora.attach(model, LoRAConfig(rank=1, targets=["q", "v"]), adapter="second", rng=rng)
    shake(model, rng, "second")
    lora.switch(model, "default", "second")


TRAININGS = {
    "rslora, dropout": training_of(targets=ALL, scaling="rslora", dropout=0.3),
    "DoRA": training_of(targets=ALL, use_dora=True),
    "DoRA, gradient of the norm": training_of(use_dora=True, dora_norm_gradient=True, dropout=0.1),
    "PiSSA": training_of(init="pissa"),
    "two adapters on NF4": training_of("nf4", second=True),
    "DoRA on bfloat16": training_of("bfloat16", targets=ALL, use_dora=True),
    "two adapters, dropout": training_of(second=True, dropout=0.2),
    "biases and a head": training_of(bias="lora_only", modules_to_save=("head",)),
    "orthogonal, float64": training_of(init="orthogonal", dtype=np.float64),
}


FIRST, *_ = TRAININGS

# The others differ from the first training in their adapters. Of the adapted layers q, v and head,
# q is enough; table is an adapted embedding in some. Where table and head have no adapter, they are
# as in tests/minigrad/programs/test_changes.py, so one training with them is enough, beside a head
# in four bits and one that is a copy. An adapted embedding with DoRA, and a dense layer with one
# adapter or two, are in one training each.
CHANGED = {
    "DoRA": ("q.", "table."),
    "DoRA, gradient of the norm": ("q.adapters.",),
    "PiSSA": ("q.", "table.", "head."),
    "two adapters on NF4": ("q.", "head."),
    "DoRA on bfloat16": ("q.",),
    "two adapters, dropout": ("q.adapters.",),
    "biases and a head": ("q.", "head."),
    # Only what is computed in the dtype, or with the first factors.
    "orthogonal, float64": (
        "q.astype",
        "q.base_weight",
        "q.bias",
        "q.adapters.default.scale ",
        "q.adapters.default.lora_",
    ),
}

# In the first training, q has all attributes of these but a bias that is None.
REPEATED = (
    "model.v.",
    "model.head.",
    "model._lora_attachment.replaced.v.",
    "model._lora_attachment.replaced.head.",
    "optimizer.param_groups.0.",
)


def is_of_interest(change, name):
    """Whether a change of an attribute in a training is none of those in another."""
    if name == FIRST:
        return change == "model.v.bias = a value" or not change.startswith(REPEATED)
    return change.removeprefix("model.").startswith(CHANGED[name])


def of_model(do):
    return lambda training: do(training.parts["model"])


def merge_frozen(model):
    for part in model.q.trainable_params():
        part.requires_grad_(False)
    model.q.merge()


def merge_twice(model):
    lora.merge(model)
    lora.unmerge(model)


def write_base(model):
    weight = model.v.base_weight
    if isinstance(weight, mg.Tensor):
        weight.data[0] = 3.0


def another_adapter(model):
    add_adapter(model, np.random.default_rng(3))


EVENTS = {
    "merge": lora.merge,
    "merge and unmerge": merge_twice,
    "merge of frozen factors": merge_frozen,
    "disabled": lambda model: lora.disabled(model).__enter__(),
    "pause": lambda model: model.q.pause(),
    "another adapter": another_adapter,
    "switched": lambda model: lora.switch(model, "default"),
    "switched off": lambda model: lora.switch(model),
    "removed": lambda model: lora.remove(model, "default"),
    "detach": lora.detach,
    "fold": lora.fold,
    "all frozen": lambda model: model.freeze(),
    "nothing frozen": lambda model: model.freeze(False),
    "lora_a": lambda model: setattr(model.q, "lora_a", np.ones(model.q.lora_a.shape)),
    "scale": lambda model: setattr(model.q, "scale", 0.3),
    "dropout": lambda model: setattr(model.q, "dropout", 0.4),
    "raw write to the base": write_base,
    "load_state_dict": lambda model: model.load_state_dict(
        {name: value * 0.5 for name, value in model.state_dict().items()}
    ),
    "pack limit": lambda model: mg.set_pack_limit(0),
}


@pytest.fixture(autouse=True)
def pack_limit():
    yield
    mg.set_pack_limit(None)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("third", range(3))
def test_events(third):
    changes = [Change(event, of_model(do)) for event, do in [*EVENTS.items()][third::3]]
    assert differences(TRAININGS["DoRA"], changes) == {}


@pytest.mark.full
@pytest.mark.parametrize("name", TRAININGS)
def test_all_changes(name):
    build = TRAININGS[name]
    events = {} if name == "DoRA" else EVENTS  # which has them in `test_events`
    changes = [Change(event, of_model(do)) for event, do in events.items()]
    changes += [change for change in changes_of(build) if is_of_interest(change.name, name)]
    assert differences(build, changes) == {}


def test_gradients_that_nobody_wants_take_little_room_in_the_source():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((4, 4)).astype(np.float32)
    layer = lora.LoRALayer(base, 4, 4, 2, 4.0, rng=rng)
    layer.lora_a.requires_grad_(False)
    optimizer = optim.SGD([layer.lora_b], lr=0.1)

    @mg.capture
    def step(x):
        optimizer.zero_grad()
        loss = mg.sum(layer(x))
        loss.backward()
        optimizer.step()
        return loss

    x = mg.ones((3, 4))
    for _ in range(3):
        step(x)
    assert "(*_, g2, _) = lora_linear_vjp(g1, (False, False, False, True, False), x" in step.source


def train(model):
    shake(model, np.random.default_rng(3))


def merged(model, x):
    lora.merge(model, progress=False)
    outputs = model(x)
    lora.unmerge(model)
    return outputs


@pytest.mark.parametrize(
    "compute", [merged, lambda model, x: mg.sum(model.q.merged_weight() * 2) * x]
)
@pytest.mark.parametrize("options", [{}, {"base": "bfloat16"}, {"targets": ["table", "q"]}])
def test_weights_that_a_step_merges(compute, options):
    """The adapters may be trained between two calls, outside of the step."""

    def build():
        training = training_of(**options)()
        model = training.parts["model"]

        @mg.no_grad()
        def step(tokens, y):
            return compute(model, tokens)

        return Training(step, training.batches, training.parts)

    assert difference(build, Change("train", of_model(train))) == ""


def test_a_program_is_used_again_after_a_look_at_the_model_without_adapters():
    training = TRAININGS["biases and a head"]()
    model = training.parts["model"]
    step = mg.capture(training.step)
    for i in range(12):
        step(*training.batches[0])
        if i % 2:
            with lora.disabled(model):
                model(training.batches[0][0])
    assert len(step.programs) <= 2


@pytest.mark.parametrize("options", [{}, {"bias": "all"}, {"use_dora": True}])
def test_programs_of_several_adapters_are_used_again_after_each_switch(options):
    def build(capture):
        rng = np.random.default_rng(0)
        net = mg.nn.Sequential(mg.nn.Linear(8, 8, rng=rng), mg.nn.Linear(8, 8, rng=rng))
        steps = {}
        for name in ("first", "second"):
            lora.attach(net, lora.LoRAConfig(rank=2, **options), adapter=name, rng=rng)
            steps[name] = capture(training_step(net, mg.optim.Adam(net.trainable_parameters())))
        return net, steps

    x, y = np.random.default_rng(1).standard_normal((2, 4, 8))
    losses = []
    for capture in (mg.capture, lambda step: step):
        net, steps = build(capture)
        losses.append([])
        for i in range(30):
            name = ("first", "second")[i // 2 % 2]
            lora.switch(net, name)
            losses[-1].append(steps[name](x, y).item())
        if capture is mg.capture:
            assert [len(step.programs) for step in steps.values()] == [1, 1]
    assert losses[0] == losses[1]


def test_reading_a_base_weight_is_no_change():
    """DoRA saves the norms of its rows until it is read by `data`, which makes it writable."""
    rng = np.random.default_rng(0)
    net = mg.nn.Sequential(mg.nn.Linear(8, 8, rng=rng))
    lora.attach(net, lora.LoRAConfig(rank=2, use_dora=True), rng=rng)
    step = mg.capture(training_step(net, mg.optim.Adam(net.trainable_parameters())))
    x, y = rng.standard_normal((2, 4, 8))
    for _ in range(9):
        step(x, y)
        assert np.isfinite(net[0].base_weight.data).all()
    assert len(step.programs) == 1
