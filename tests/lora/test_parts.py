"""Adapters on a model and on a part of it, in every order: what trains, what is active, and where.

The promises are those of the docstrings. `attach` freezes all that it was called with, except what
its adapter trains; `detach` and `fold` give the flags back; an adapter is on until its own model or
part is switched; and a call that is refused changes nothing.
"""

import copy

import numpy as np
import pytest

import lora
from lora import LoRAConfig, LoRALayer
from lora.adapter import Adapter
from lora.attachment.state import attachment_of
from minigrad.nn import Linear, Module, Sequential
from tests.lora.models import layers_of

FROZEN = ("0.1.bias", "1.bias")  # before any adapter
PART = "0."  # the beginning of names in the part, model[0]


def make():
    rng = np.random.default_rng(0)
    part = Sequential(Linear(4, 4, rng=rng), Linear(4, 4, rng=rng))
    model = Sequential(part, Linear(4, 4, rng=rng), Linear(4, 2, rng=rng))
    part[1].bias.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    return model


def attaching(targets, adapter="default", **options):
    config = LoRAConfig(rank=1, targets=targets, **options)
    return lambda module: lora.attach(module, config, adapter=adapter)


CALLS = {
    "attach": lambda model: attaching("1")(model),
    "attach with a bias": lambda model: attaching("2", "two", bias="lora_only")(model),
    "attach to all": lambda model: attaching("all-linear", "all")(model),
    "attach to the part": lambda model: attaching("0", bias="lora_only")(model[0]),
    "attach to the part again": lambda model: attaching("1", "all")(model[0]),
    "merge": lambda model: lora.merge(model, progress=False),
    "fold": lora.fold,
    "fold the part": lambda model: lora.fold(model[0]),
    "detach": lora.detach,
    "detach the part": lambda model: lora.detach(model[0]),
    "switch off": lora.switch,
    "switch on": lambda model: lora.switch(model, "default"),
    "switch the part off": lambda model: lora.switch(model[0]),
    "switch the part on": lambda model: lora.switch(model[0], "default"),
    "remove": lambda model: lora.remove(model, "default"),
    "remove from the part": lambda model: lora.remove(model[0], "default"),
    "unmerge": lora.unmerge,
}


def state_of(model):
    """Return the flag of each base parameter, and whether each adapter is active and trains."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, (Linear, LoRALayer)):
            weight = module.weight if isinstance(module, Linear) else module.base_weight
            found[f"{name}.weight"] = weight.requires_grad
            found[f"{name}.bias"] = module.bias.requires_grad
        for adapter, update in getattr(module, "adapters", {}).items():
            is_on = adapter in module.active
            found[f"{name}, {adapter}"] = is_on, {part.requires_grad for part in update.trained()}
    return found


def promised(model):
    """Return what `state_of` must be, by the attachments of the model and of its part."""
    layers = [n for n, m in model.named_modules() if isinstance(m, (Linear, LoRALayer))]
    names = [f"{layer}.{last}" for layer in layers for last in ("weight", "bias")]
    found = {name: name not in FROZEN for name in names}
    for module, prefix in ((model, ""), (model[0], PART)):
        if not attachment_of(module).adapters:
            continue
        found |= {name: False for name in names if name.startswith(prefix)}
    for module, prefix in ((model, ""), (model[0], PART)):
        attachment = attachment_of(module)
        for adapter, attached in attachment.adapters.items():
            is_on = adapter in attachment.active
            found |= {f"{prefix}{layer}, {adapter}": (is_on, {is_on}) for layer in attached.layers}
            found |= {prefix + copied.name: True for copied in attached.copies if is_on}
    return found


def remembered(model):
    """Return what decides about later calls, beside `state_of`."""
    found = []
    for module in (model, model[0]):
        attachment = attachment_of(module)
        if attachment.adapters:
            flags = {(names, before) for _, before, names in attachment.flags.known}
            found += [sorted(attachment.adapters), attachment.active, sorted(flags)]
    return found + [layer.merged_adapters for layer in layers_of(model).values()]


def called(model, name, history):
    """Do one of the calls, if it is not refused, and compare the state with what is promised."""
    before = state_of(model)
    try:
        CALLS[name](model)
    except ValueError:
        assert state_of(model) == before, (*history, name)
        return False
    assert state_of(model) == promised(model), (*history, name)
    return True


@pytest.mark.full
def test_all_orders_of_calls_on_a_model_and_its_part_keep_their_promises():
    """Tries each call in each state that can be reached, and not only in short sequences."""
    states, left = set(), [((), make())]
    while left:
        history, model = left.pop()
        for name in CALLS:
            changed = copy.deepcopy(model)
            if called(changed, name, history):
                state = repr((state_of(changed), remembered(changed)))
                if state not in states:
                    states.add(state)
                    left.append(((*history, name), changed))
    assert len(states) > 100


def test_a_folded_weight_gets_its_flag_also_if_an_adapter_was_on_it_again():
    again = "attach to the part again"
    calls = ("attach", again, "fold the part", again, "attach with a bias", "detach the part")
    model = make()
    for number, name in enumerate([*calls, "detach"]):
        assert called(model, name, calls[:number])


@pytest.mark.parametrize("seed", range(3))
def test_long_random_sequences_of_calls_keep_their_promises(seed):
    drawn, model, history = np.random.default_rng(seed), make(), []
    for _ in range(300):
        name = drawn.choice(list(CALLS))
        if name in ("fold", "detach") and drawn.random() < 0.7:  # they end all, so seldom
            continue
        if called(model, name, history):
            history.append(name)
    assert len(history) > 60


def moved(model, rng):
    """Give all trained parameters values that matter."""
    for parameter in model.trainable_parameters():
        parameter.data = parameter.data + rng.standard_normal(parameter.shape).astype("float32")


def test_the_adapter_of_a_part_stays_on_when_the_model_gets_another_one(rng):
    model, x = make(), rng.standard_normal((3, 4))
    CALLS["attach"](model)
    CALLS["attach to the part"](model)
    moved(model[0], rng)
    expected = model(x).data
    CALLS["attach with a bias"](model)
    assert np.array_equal(model(x).data, lora.switch(model)(x).data)
    lora.switch(model, "default")
    assert np.array_equal(model(x).data, expected)
    lora.merge(model[0], progress=False)
    lora.switch(model, "two")  # which leaves the merged adapter of the part where it is
    assert model[0][0].merged


def test_a_layer_of_a_part_gets_no_adapter_of_the_model(rng):
    model = make()
    CALLS["attach"](model)
    CALLS["attach to the part"](model)
    before = state_of(model)
    with pytest.raises(
        ValueError, match=r"adapters already on 0\.0, which.*; exclude these layers"
    ):
        CALLS["attach to all"](model)
    assert state_of(model) == before
    attaching("all-linear", "all", exclude=["0.0"])(model)
    assert lora.active(model) == ("all",)
    assert lora.active(model[0]) == ("default",)


@pytest.mark.parametrize("calls", [["attach to the part"], ["attach", "attach to the part"]])
def test_disabled_turns_off_what_a_part_trains_in_full(rng, calls):
    model, x = make(), rng.standard_normal((3, 4))
    expected = model(x).data
    for call in calls:
        CALLS[call](model)
    moved(model[0], rng)
    trained = model(x).data
    with lora.disabled(model):
        assert np.array_equal(model(x).data, expected)
        with pytest.raises(RuntimeError, match=r"inside of lora\.disabled"):
            lora.detach(model[0])
    assert np.array_equal(model(x).data, trained)
    assert not np.array_equal(trained, expected)


def test_the_flags_of_parts_within_parts_come_back_in_any_order(rng):
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        for undo in (lora.detach, lora.fold):
            model = Sequential(make(), Linear(2, 2))
            before = {name: p.requires_grad for name, p in model.named_parameters()}
            modules = [model, model[0], model[0][0]]
            for module, targets in zip(modules, ("1", "1", "0"), strict=True):
                attaching([targets] if targets == "0" else targets)(module)
            for i in order:
                if attachment_of(modules[i]).adapters:  # fold of a model folds its parts too
                    undo(modules[i])
                    inside = [k for k in range(3) if attachment_of(modules[k]).adapters]
                    frozen = modules[inside[0]] if inside else Sequential()
                    bases = [m for m in frozen.modules() if isinstance(m, Linear)]
                    assert not any(p.requires_grad for m in bases for p in m.parameters())
            assert {name: p.requires_grad for name, p in model.named_parameters()} == before


# ----------------------------------------------------------------------------------------------
# Copies in full, whose originals only the complete model knows
# ----------------------------------------------------------------------------------------------


def test_a_part_with_copies_of_the_whole_is_refused_and_the_base_comes_back():
    x = np.ones((1, 4), np.float32)
    model = make()
    part, base = model[0], model(x).data.copy()
    attaching("2", "outer", bias="all")(model)
    part[0].bias.copy_(np.full(4, 9.0))
    trained = model(x).data.copy()
    inner = attaching(["0"], "inner")
    for refused in (inner, lora.quantize):
        with pytest.raises(ValueError, match=r"0\.bias is trained in full .* complete model"):
            refused(part)
    lora.switch(model)
    inner(part)
    lora.switch(model, "outer")
    for refused in (lora.detach, lora.fold, lambda part: lora.remove(part, "inner")):
        with pytest.raises(ValueError, match=r"0\.bias is trained in full .* complete model"):
            refused(part)
    assert np.array_equal(model(x).data, trained)
    lora.switch(model)
    lora.detach(part)
    lora.switch(model, "outer")
    assert np.array_equal(model(x).data, trained)
    lora.detach(model)
    assert np.array_equal(model(x).data, base)


def test_a_model_that_shares_a_module_with_copies_of_another_one_is_refused():
    encoder = Sequential(Linear(4, 4), Linear(4, 4))
    first, second = (Sequential(encoder, Linear(4, size)) for size in (2, 3))
    attaching("1", modules_to_save=["0.1"])(first)
    with pytest.raises(ValueError, match=r"0\.1\.weight is trained in full .* that shares it"):
        attaching("1", modules_to_save=["0.1"])(second)
    assert isinstance(second[1], Linear)


class Hidden(Module):
    """A module that keeps its layer where nothing can replace it."""

    def __init__(self):
        layer = Linear(4, 4)
        self.layer = lambda: layer

    def _contents(self):
        yield "layer", self.layer()


@pytest.mark.parametrize("change", [attaching("all-linear"), lora.quantize])
def test_a_layer_that_cannot_be_replaced_is_refused(change):
    model = Sequential(Hidden(), Linear(4, 4))
    with pytest.raises(ValueError, match=r"0\.layer cannot be replaced, because the module"):
        change(model)
    assert isinstance(model[1], Linear)
    assert all(p.requires_grad for p in model.parameters())


# ----------------------------------------------------------------------------------------------
# Adapters that were added to attached layers, or removed from them, by hand
# ----------------------------------------------------------------------------------------------


def test_a_name_that_was_added_by_hand_is_refused_before_anything_is_changed():
    model = Sequential(Linear(4, 5), Linear(5, 3))
    attaching(["0"], "a")(model)
    model[0].add("z", Adapter(model[0].weight, 1, 1.0))
    with pytest.raises(ValueError, match="0: an adapter 'z' was added by hand already"):
        attaching("all-linear", "z")(model)
    assert isinstance(model[1], Linear)
    assert list(lora.adapters(model)) == ["a"]


def test_an_adapter_of_a_part_does_not_take_its_name_from_the_whole():
    model = make()
    attaching("2", "first")(model)
    attaching(["0"], "same")(model[0])
    attaching("2", "same")(model)
    assert list(lora.adapters(model)) == ["first", "same"]
    assert list(lora.adapters(model[0])) == ["same"]


def test_an_adapter_that_was_removed_from_a_layer_by_hand_can_be_removed_and_switched_off():
    model = Sequential(Linear(4, 5), Linear(5, 3))
    for name in "abc":
        attaching("all-linear", name)(model)
    model[0].remove("a")
    lora.remove(model, "a")
    assert list(lora.adapters(model)) == ["b", "c"]
    assert list(model[1].adapters) == ["b", "c"]
    model[0].remove("c")
    lora.switch(model, "b")
    assert lora.active(model) == ("b",)


def test_what_was_unfrozen_since_the_first_adapter_is_frozen_by_the_second():
    model = Sequential(Linear(4, 4), Linear(4, 4), Linear(4, 4))
    attaching(["0"], "a")(model)
    model[1].weight.requires_grad_(True)
    attaching(["2"], "b")(model)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["2.b.lora_a", "2.b.lora_b"]
