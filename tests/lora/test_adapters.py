"""Several adapters on one base: added, switched, summed, merged in part; what trains in full."""

import copy
import re
import signal

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import lora
import minigrad
from lora import AdaptedLayer, LoRAConfig, LoRAEmbedding
from lora.attachment.state import attachment_of
from minigrad.nn import (
    BatchNorm1d,
    Buffer,
    Embedding,
    Linear,
    Module,
    MultiHeadAttention,
    Parameter,
    Sequential,
)
from minigrad.optim import Adam
from tests.lora.models import (
    TOKENS,
    TiedNet,
    TokenNet,
    batch_normed,
    layers_of,
    put_on,
    shake,
    snapshot,
    with_own_statistics,
)

D = np.float64


LAYERS = ["table", "q", "v", "head"]


def out(net):
    with minigrad.no_grad():
        return net(TOKENS).data.copy()


def put(net, name, rng, targets=("table", "q"), **options):
    return put_on(net, name, rng, targets=targets, **options)


def two(rng, **options):
    """A net with adapters a and b, b active; and its outputs with neither, with a, and with b."""
    net = TokenNet(rng)
    base = out(net)
    put(net, "a", rng, ["table", "q"], **options)
    with_a = out(net)
    put(net, "b", rng, ["q", "v"], **options)
    return net, base, with_a, out(net)


# ----------------------------------------------------------------------------------------------
# Adding, switching, removing
# ----------------------------------------------------------------------------------------------


def test_the_newest_adapter_is_the_active_one_and_begins_at_the_base(rng):
    net = TokenNet(rng)
    base = out(net)
    put(net, "a", rng)
    assert lora.active(net) == ("a",)
    lora.attach(net, LoRAConfig(rank=1, targets=["q", "v"]), adapter="b")
    assert lora.active(net) == ("b",)
    assert np.array_equal(out(net), base)
    assert {name: list(layer.adapters) for name, layer in layers_of(net).items()} == {
        "table": ["a"],
        "q": ["a", "b"],
        "v": ["b"],
    }


def test_adapters_weights_and_copies_print_what_they_are(rng):
    net = TokenNet(rng)
    report = put(net, "a", rng, use_dora=True, dropout=0.5, modules_to_save=["norm"])
    assert repr(net.q.adapters["a"]) == (
        "Adapter(rank=2, alpha=16, scale=8, dropout=0.5, DoRA, d_in=5, d_out=4)"
    )
    assert repr(net.q.weight) == "DenseMatrix((4, 5), float64)"
    assert repr(report.copies[0]) == "FullCopy(names=('norm.weight',), reason='modules_to_save')"


def test_all_adapters_are_listed_with_what_they_were_made_by(rng):
    net, *_ = two(rng)
    lora.combine(net, ["a", "b"], [1, -1], "c")
    made_by = lora.adapters(net)
    assert list(made_by) == ["a", "b", "c"]
    assert made_by["a"] == LoRAConfig(rank=2, targets=["table", "q"])
    assert made_by["c"] is None
    made_by.clear()
    lora.remove(net, "a")
    assert list(lora.adapters(net)) == ["b", "c"]
    lora.detach(net)
    with pytest.raises(ValueError, match="has put no adapters on"):
        lora.adapters(net)


@pytest.mark.parametrize(
    "call", [lora.detach, lora.active, lora.switch, lambda part: lora.save(part, "unwritten")]
)
def test_the_error_about_a_part_of_a_model_with_adapters_says_that_the_complete_model_is_needed(
    rng, call
):
    model = Sequential(Sequential(Linear(3, 4, rng=rng)), Linear(4, 2, rng=rng))
    lora.attach(model, LoRAConfig(rank=2))
    advice = "has adapters on 0.*; call this with the model that lora.attach was called with"
    with pytest.raises(ValueError, match=advice):
        call(model[0])
    advice = "fold or detach them first, in the model that lora.attach was called with"
    with pytest.raises(ValueError, match=advice):
        lora.attach(model[0], LoRAConfig(rank=2))


def test_switching_gives_the_output_of_each_to_the_bit(rng):
    net, base, with_a, with_b = two(rng)
    assert not np.array_equal(with_a, with_b)
    for names, expected in [(["a"], with_a), (["b"], with_b), ([], base), (["a"], with_a)]:
        assert lora.switch(net, *names) is net
        assert lora.active(net) == tuple(names)
        assert np.array_equal(out(net), expected)


def test_the_updates_of_several_active_adapters_add_up(rng):
    net, *_ = two(rng)
    lora.switch(net, "a", "b")
    both = copy.deepcopy(net)
    for name, layer in layers_of(both).items():
        plain = layer.weight.dense()
        for adapter in layer.adapters.values():
            plain += adapter.scale * adapter.lora_b.data @ adapter.lora_a.data
        layer.use([])
        layer.base_weight.copy_(plain.T if name == "table" else plain)
    np.testing.assert_allclose(out(net), out(both), rtol=1e-12, atol=1e-13)


def test_only_the_active_adapter_trains(rng):
    net, *_ = two(rng)
    for active in (["a"], ["b"], ["a", "b"], []):
        lora.switch(net, *active)
        trains = {name for name, p in net.named_parameters() if p.requires_grad}
        assert trains == {
            f"{layer}.{name}.lora_{letter}"
            for name, places in {"a": ["table", "q"], "b": ["q", "v"]}.items()
            for layer in places
            for letter in "ab"
            if name in active
        }


def test_what_was_frozen_in_an_adapter_is_so_again_when_it_is_back(rng):
    net, *_ = two(rng)
    lora.switch(net, "a")
    net.q.adapters["a"].lora_a.requires_grad_(False)
    lora.switch(net, "b")
    lora.switch(net, "a")
    assert not net.q.adapters["a"].lora_a.requires_grad
    assert net.q.adapters["a"].lora_b.requires_grad
    assert not net.q.adapters["b"].lora_a.requires_grad


def test_training_one_adapter_leaves_the_others_and_the_base(rng):
    net, base, with_a, _ = two(rng)
    optimizer = Adam(net.trainable_parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (net(TOKENS) ** 2).mean().backward()
        optimizer.step()
    lora.switch(net, "a")
    assert np.array_equal(out(net), with_a)
    with lora.disabled(net):
        assert np.array_equal(out(net), base)


def test_there_is_one_base_array_for_all_adapters(rng):
    net = TokenNet(rng)
    arrays = {name: getattr(net, name).weight.data for name in LAYERS}
    for name in "abc":
        put(
            net, name, rng, LAYERS, use_dora=name == "b", init="pissa" if name == "c" else "kaiming"
        )
    held = {name: layer.base_weight for name, layer in layers_of(net).items()}
    assert {name: w.data is arrays[name] for name, w in held.items()} == dict.fromkeys(LAYERS, True)
    large = [
        p.data
        for _, p in net.named_parameters()
        if p.data.size >= 12 and not any(p.data is a for a in arrays.values())
    ]
    assert not any(array.shape == a.shape for array in large for a in arrays.values())


def test_parameters_of_other_adapters_than_the_default_have_its_name_before_theirs(rng):
    net = TokenNet(rng)
    put(net, "default", rng, ["q"])
    put(net, "fr", rng, ["q"])
    names = [name for name, _ in net.q.named_parameters()]
    assert names == ["base_weight", "bias", "lora_a", "lora_b", "fr.lora_a", "fr.lora_b"]
    assert repr(net.q) == (
        "LoRALayer(5, 4, default (off): rank=2 alpha=16 scale=8, fr: rank=2 alpha=16 scale=8)"
        "  # 60 parameters, 18 trainable"
    )


def test_which_of_several_is_meant_must_be_said(rng):
    net, *_ = two(rng)
    assert net.q.lora_a is net.q.adapters["b"].lora_a
    lora.switch(net, "a", "b")
    with pytest.raises(AttributeError, match=r"has the adapters a, b.*layer\.adapters\[name\]"):
        net.q.lora_a  # noqa: B018


def test_removing_an_adapter_leaves_the_others_and_unwraps_what_is_bare(rng):
    net, base, with_a, _ = two(rng)
    table = net.table
    assert lora.remove(net, "b") is net
    assert type(net.v) is Linear
    assert net.table is table
    assert np.array_equal(out(net), base)  # none is active now
    lora.switch(net, "a")
    assert np.array_equal(out(net), with_a)
    assert not any("b." in name for name, _ in net.named_parameters())


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_removing_the_last_adapter_gives_back_the_very_model(rng, order):
    net = TokenNet(rng)
    net.norm.freeze()
    before = snapshot(net)
    put(net, "a", rng, bias="all")
    put(net, "b", rng, LAYERS, use_dora=True)
    for name in order:
        lora.remove(net, name)
    assert snapshot(net) == before
    assert set(vars(net)) == set(vars(TokenNet(rng)))


def test_detach_takes_all_adapters_off(rng):
    net = TokenNet(rng)
    before = snapshot(net)
    put(net, "a", rng, bias="all", modules_to_save=["head"])
    put(net, "b", rng, ["v", "q"], init="pissa")
    put(net, "c", rng, ["v"], use_dora=True, modules_to_save=["norm"])
    lora.switch(net, "b", "c")
    assert snapshot(net) != before
    lora.detach(net)
    assert snapshot(net) == before


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda net: lora.switch(net, "A"), "no adapter 'A'; the adapters are 'a', 'b'"),
        (lambda net: lora.switch(net, "a", "a"), "once or not at all"),
        (lambda net: lora.remove(net, "c"), "no adapter 'c'"),
        (lambda net: put(net, "a", np.random.default_rng(0)), "an adapter 'a' already"),
        (lambda net: put(net, "a.b", np.random.default_rng(0)), "letters, digits"),
        (lambda net: put(net, "", np.random.default_rng(0)), "letters, digits"),
        (lambda net: lora.merge(net, "c"), "no adapter 'c'"),
        (lambda net: lora.merge(net, "a"), "'a' is not active"),
        (lambda net: lora.fold(net), "adapter 'a' is not active, and would be lost"),
        (lambda net: put(net, "c", np.random.default_rng(0), ["x"]), "match no layer: 'x'"),
        (lambda net: put(net, "c", np.random.default_rng(0), rank=5), "q: rank 5|table: rank 5"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(rng, use, message):
    net, *_ = two(rng)
    before, output = snapshot(net), out(net)
    with pytest.raises(ValueError, match=message):
        use(net)
    assert snapshot(net) == before
    assert lora.active(net) == ("b",)
    assert np.array_equal(out(net), output)


def test_names_must_be_strings(rng):
    net, *_ = two(rng)
    with pytest.raises(TypeError, match=r"switch\(model, 'a', 'b'\)"):
        lora.switch(net, ["a", "b"])
    with pytest.raises(TypeError, match="name of an adapter is a string"):
        lora.attach(net, LoRAConfig(rank=1), adapter=3)
    with pytest.raises(TypeError, match="name of an adapter is a string"):
        lora.remove(net, 3)


def test_adapters_cannot_be_changed_inside_of_disabled(rng):
    net, *_ = two(rng)
    before = snapshot(net)
    for use in (
        lambda: lora.switch(net, "a"),
        lambda: lora.remove(net, "a"),
        lambda: lora.detach(net),
        lambda: lora.fold(net),
        lambda: put(net, "c", rng),
    ):
        with pytest.raises(RuntimeError, match="leave the block first"), lora.disabled(net):
            use()
        assert snapshot(net) == before


def test_blocks_of_several_threads_may_overlap(rng):
    net = TokenNet(rng)
    base = out(net)
    put(net, "a", rng, modules_to_save=["head"])
    net.head.weight.copy_(net.head.weight.data * 2)
    tuned = out(net)
    first, second = lora.disabled(net), lora.disabled(net)
    for block in (first, second):
        block.__enter__()
    first.__exit__(None, None, None)  # the one that was entered last is left last
    assert np.array_equal(out(net), base)
    second.__exit__(None, None, None)
    assert np.array_equal(out(net), tuned)


def test_a_part_of_a_model_is_disabled_only_where_nothing_is_trained_whole_in_it(rng):
    net = TokenNet(rng)
    model = Module()
    model.net = net
    base = out(net)
    put(model, "a", rng, ["q"])
    with lora.disabled(net):
        assert np.array_equal(out(net), base)
    put(model, "b", rng, ["q"], modules_to_save=["head"])
    with pytest.raises(ValueError, match=r"head\.weight .* trained in full .* complete model"):
        lora.disabled(net).__enter__()
    assert net.q.enabled


def test_a_block_may_hold_the_list_of_all_blocks(rng):
    class Block(Module):
        def __init__(self, blocks):
            self.siblings, self.last = blocks, Linear(2, 2, rng=rng)

    class Stack(Module):
        def __init__(self):
            self.blocks = [Linear(2, 2, rng=rng)]
            self.blocks.append(Block(self.blocks))

    lora.attach(stack := Stack(), lora.LoRAConfig(1))
    assert isinstance(stack.blocks[0], lora.LoRALayer)
    assert isinstance(stack.blocks[1].last, lora.LoRALayer)


def test_a_model_with_layers_placed_by_hand_is_not_attached_to(rng):
    net = TokenNet(rng)
    net.q = lora.LoRALayer.from_linear(net.q, 1, 1.0)
    with pytest.raises(ValueError, match=r"lora\.attach did not attach"):
        put(net, "a", rng, ["v"])


# ----------------------------------------------------------------------------------------------
# Merging some
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("merged", [["a"], ["b"], ["a", "b"], None])
def test_merging_some_leaves_the_others_in_force(rng, merged, use_dora):
    net, *_ = two(rng, use_dora=use_dora)
    lora.switch(net, "a", "b")
    before = out(net)
    lora.merge(net, merged)
    assert [layer.merged_adapters for layer in layers_of(net).values()] == [
        tuple(n for n in layer.adapters if merged is None or n in merged)
        for layer in layers_of(net).values()
    ]
    np.testing.assert_allclose(out(net), before, rtol=1e-12, atol=1e-13)
    shake(net, rng, "a" if merged == ["b"] else "b")
    if merged is None or len(merged) == 2:
        with pytest.raises(RuntimeError, match="changed since merge"):
            out(net)
        return
    changed = out(net)  # what is not merged may change
    lora.unmerge(net)
    np.testing.assert_allclose(changed, out(net), rtol=1e-12, atol=1e-13)
    assert abs(changed - before).max() > 1e-3


def test_a_layer_of_which_nothing_is_merged_has_no_second_weight(rng):
    net, *_ = two(rng)
    lora.switch(net, "a", "b")
    lora.merge(net)
    lora.merge(net, "a")
    assert {name: layer.merged for name, layer in layers_of(net).items()} == {
        "table": True,
        "q": True,
        "v": False,
    }
    with pytest.raises(ValueError, match=r"adapters are empty; None means all"):
        lora.merge(net, [])
    assert net.q.merged


def test_what_is_not_merged_trains_on(rng):
    net, *_ = two(rng)
    lora.switch(net, "a", "b")
    lora.merge(net, "a")
    for layer in layers_of(net).values():
        for name, adapter in layer.adapters.items():
            for part in adapter.trained():
                part.requires_grad_(name == "b")
    (net(TOKENS) ** 2).sum().backward()
    assert all(p.grad is not None for p in net.trainable_parameters())
    net.q.adapters["a"].lora_a.requires_grad_()
    with pytest.raises(
        RuntimeError, match="adapter 'a' is merged, so no gradient would reach its A"
    ):
        net(TOKENS)


def test_a_merged_adapter_is_neither_switched_off_nor_removed(rng):
    net, *_ = two(rng)
    lora.merge(net)
    before = snapshot(net)
    for use in (
        lambda: lora.switch(net, "a"),
        lambda: lora.switch(net),
        lambda: lora.remove(net, "b"),
        lambda: put(net, "c", rng),
    ):
        with pytest.raises(ValueError, match="'b' is merged"):
            use()
        assert snapshot(net) == before
    lora.switch(net, "a", "b")  # merged still, and another beside it
    lora.remove(net, "a")
    assert lora.active(net) == ("b",)


def test_an_adapter_in_use_elsewhere_does_not_show_in_a_layer_without_it(rng):
    net, *_ = two(rng)
    lora.switch(net, "a")
    assert net.v.active == ()
    h = minigrad.tensor(rng.standard_normal((2, 4)))
    assert np.array_equal(net.v(h).data, h.data @ net.v.base_weight.data.T)


# ----------------------------------------------------------------------------------------------
# Trained in full
# ----------------------------------------------------------------------------------------------


def names_of(report):
    return [(c.name, c.reason) for c in report.copies]


def test_biases_of_the_adapted_layers_train_with_lora_only(rng):
    net = TokenNet(rng)
    report = put(net, "a", rng, ["q", "v"], bias="lora_only")
    assert names_of(report) == [("q.bias", "bias")]
    trains = {name for name, p in net.named_parameters() if p.requires_grad}
    assert "q.bias" in trains
    assert "head.bias" not in trains
    (net(TOKENS) ** 2).sum().backward()
    assert abs(net.q.bias.grad.data).max() > 0


def test_all_biases_of_the_model_train_with_all(rng):
    net = TokenNet(rng)
    report = put(net, "a", rng, ["v"], bias="all")
    assert names_of(report) == [(f"{n}.bias", "bias") for n in ("q", "norm", "head")]
    (net(TOKENS) ** 2).sum().backward()
    assert all(abs(p.grad.data).max() > 0 for p in net.trainable_parameters())


@pytest.mark.parametrize("options", [{"bias": "all"}, {"modules_to_save": ["head", "norm"]}])
def test_disabled_and_switched_off_the_originals_are_in_force_to_the_bit(rng, options):
    net = TokenNet(rng)
    base, head, bias = out(net), net.head.weight, net.head.bias
    put(net, "a", rng, ["q"], **options)
    for p in net.trainable_parameters():
        p.copy_(p.data + 0.1)
    tuned = out(net)
    with lora.disabled(net):
        assert np.array_equal(out(net), base)
        with lora.disabled(net):
            assert np.array_equal(out(net), base)
        assert np.array_equal(out(net), base)
    assert np.array_equal(out(net), tuned)
    put(net, "b", rng, ["v"])
    assert net.head.weight is head
    assert net.head.bias is bias
    assert not bias.requires_grad
    lora.switch(net)
    assert np.array_equal(out(net), base)
    lora.switch(net, "a")
    assert np.array_equal(out(net), tuned)


def test_the_bias_of_a_layer_that_another_adapter_trains_is_the_originals_copy(rng):
    net = TokenNet(rng)
    base = out(net)
    put(net, "a", rng, ["q"], bias="all")
    net.head.bias.copy_(net.head.bias.data + 1)
    tuned = out(net)
    put(net, "b", rng, ["head"], bias="lora_only")
    net.head.bias.copy_(net.head.bias.data - 5)
    with_b = out(net)
    assert abs(with_b - base).max() > 1
    lora.switch(net, "a")
    assert np.array_equal(out(net), tuned)
    (net(TOKENS) ** 2).sum().backward()
    assert abs(net.head.bias.grad.data).max() > 0
    with pytest.raises(ValueError, match=r"'a' and 'b' both train head\.bias in full"):
        lora.switch(net, "a", "b")
    assert lora.active(net) == ("a",)
    lora.detach(net)
    assert np.array_equal(out(net), base)


def test_fold_keeps_what_was_trained_whole(rng):
    net = TokenNet(rng)
    put(net, "a", rng, ["q"], modules_to_save=["head"], bias="all")
    net.head.weight.copy_(net.head.weight.data * 2)
    tuned = out(net)
    lora.fold(net)
    np.testing.assert_allclose(out(net), tuned, rtol=1e-12, atol=1e-13)
    assert all(p.requires_grad for p in net.parameters())


def test_the_running_statistics_of_a_module_in_full_belong_to_the_adapter(rng):
    x, base = rng.standard_normal((6, 4)), batch_normed().eval()
    model = with_own_statistics(rng, "a")
    tuned = model(x).data
    assert model[1].num_batches_tracked == 3
    with lora.disabled(model):
        assert np.array_equal(model(x).data, base(x).data)
        assert model[1].num_batches_tracked == 0
    assert np.array_equal(model(x).data, tuned)
    put(model, "b", rng, ["0"])
    assert model[1].num_batches_tracked == 0
    lora.switch(model, "a")
    assert np.array_equal(model(x).data, tuned)
    folded = lora.fold(lora.remove(copy.deepcopy(model), "b"))
    np.testing.assert_allclose(folded(x).data, tuned, rtol=1e-12, atol=1e-13)
    assert {name: type(b) for name, b in folded.named_buffers()} == dict.fromkeys(
        ["1.running_mean", "1.running_var", "1.num_batches_tracked"], Buffer
    )
    assert np.array_equal(lora.detach(model)(x).data, base(x).data)


def test_the_state_of_a_model_has_the_statistics_of_base_and_adapter(rng):
    x, other = rng.standard_normal((6, 4)), with_own_statistics(rng, passes=1)
    model = with_own_statistics(rng)
    other.load_state_dict(model.state_dict())
    assert np.array_equal(other(x).data, model(x).data)
    assert np.array_equal(lora.detach(other)(x).data, lora.detach(model)(x).data)


def test_a_report_tells_buffers_from_what_trains(rng):
    text = str(put(batch_normed(), "a", rng, ["0"], modules_to_save=["1"]))
    assert re.search(r"1\.bias +modules_to_save +\(3,\) +3 +in full", text)
    assert re.search(r"1\.running_mean +modules_to_save +\(3,\) +a buffer of its own", text)


def test_a_module_that_has_buffers_only_can_be_in_full(rng):
    model = Sequential(Linear(4, 3, rng=rng), BatchNorm1d(3, affine=False))
    put(model, "a", rng, ["0"], modules_to_save=["1"])
    model(rng.standard_normal((8, 4)))
    assert lora.detach(model)[1].num_batches_tracked == 0


def test_a_part_with_statistics_of_an_adapter_cannot_be_disabled_by_itself(rng):
    inner = Sequential(Linear(4, 3, rng=rng), BatchNorm1d(3, affine=False))
    model = Sequential(inner)
    put(model, "a", rng, ["0.0"], modules_to_save=["0.1"])
    with pytest.raises(ValueError, match=r"1\.running_mean.*complete model"), lora.disabled(inner):
        pass


def test_a_layer_that_came_later_is_frozen_by_the_next_attach_and_gets_its_flags_back(rng):
    net = TokenNet(rng)
    put(net, "a", rng, ["q"])
    net.head, net.late = Linear(5, 3, rng=rng), Linear(5, 3, rng=rng)
    net.late.bias.requires_grad_(False)
    report = put(net, "b", rng, ["q"], modules_to_save=["head"])
    assert report.trainable == 2 * (5 + 4) + 5 * 3 + 3
    assert not any(p.requires_grad for p in net.late.parameters())
    lora.fold(lora.remove(net, "a"))
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    assert [name for name, flag in flags.items() if not flag] == ["late.bias"]


def test_a_conversion_reaches_what_is_switched_off(rng):
    net = TokenNet(rng)
    base = out(net)
    put(net, "a", rng, ["q"], modules_to_save=["head"], bias="all")
    net.astype(np.float32)
    lora.detach(net)
    assert {p.dtype for p in net.parameters()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(out(net), base, rtol=1e-5, atol=1e-5)


def test_a_conversion_of_a_part_reaches_the_originals_in_it(rng):
    net = TokenNet(rng)
    put(net, "a", rng, ["q"], modules_to_save=["head"])
    put(net, "b", rng, ["q"])
    net.head.astype(np.float32)
    lora.switch(net, "a")
    assert {p.dtype for p in net.head.parameters()} == {np.dtype(np.float32)}
    net.head.astype(D)
    lora.detach(net)
    assert {p.dtype for p in net.head.parameters()} == {np.dtype(D)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules_to_save": ["heads"]}, r"'heads' \(did you mean 'head'\?\)"),
        ({"modules_to_save": ["q"]}, "q is to be trained in full, but q has an adapter"),
        ({"bias": "lora_only", "targets": ["v"]}, "no bias among the layers"),
    ],
)
def test_what_cannot_be_trained_whole_is_refused(rng, options, message):
    net = TokenNet(rng)
    before = snapshot(net)
    with pytest.raises(ValueError, match=message):
        put(net, "a", rng, **{"targets": ["q"], **options})
    assert snapshot(net) == before


def test_a_copy_stays_in_a_layer_that_another_adapter_leaves(rng):
    net = TokenNet(rng)
    put(net, "a", rng, ["q"])
    put(net, "b", rng, ["v"], bias="all")
    net.q.bias.copy_(net.q.bias.data + 1)
    tuned = out(net)
    lora.remove(net, "a")
    assert type(net.q) is Linear
    assert np.array_equal(out(net), tuned)
    lora.switch(net)
    lora.switch(net, "b")
    assert np.array_equal(out(net), tuned)


def with_heads(rng):
    """A net with adapters a and b that train its head in full, and c that does not."""
    net = TokenNet(np.random.default_rng(7))
    put(net, "a", rng, ["q"], modules_to_save=["head"])
    put(net, "b", rng, ["q"], bias="all")
    put(net, "c", rng, ["q"])
    return net


@pytest.mark.parametrize("active", [["a"], ["b"], ["b", "c"], ["c"], []])
def test_a_state_has_all_that_adapters_train_whole_and_the_originals(rng, active):
    net = with_heads(rng)
    outputs = {}
    for names in (["a"], ["b"], ["c"], [], active):
        lora.switch(net, *names)
        outputs[tuple(names)] = out(net)
    other = with_heads(np.random.default_rng(1))
    lora.switch(other, *active)
    other.load_state_dict(net.state_dict())
    for names, expected in outputs.items():
        lora.switch(other, *names)
        assert np.array_equal(out(other), expected)
    lora.detach(other)
    assert np.array_equal(out(other), outputs[()])
    assert set(vars(other)) == set(vars(TokenNet(rng)))


def test_a_state_does_not_fit_where_other_adapters_are_in_force(rng):
    net = with_heads(rng)
    state = net.state_dict()
    lora.switch(net, "a")
    before = snapshot(net)
    with pytest.raises(ValueError, match=r"missing: _lora_whole\.\(base\)\.head\.weight"):
        net.load_state_dict(state)
    assert snapshot(net) == before


def test_what_a_sum_trains_whole_is_in_the_state(rng):
    net = with_heads(rng)
    lora.combine(net, ["a", "b"], [0.5, 0.5], "sum")
    names = set(net.state_dict())
    assert {"_lora_whole.a.head.weight", "_lora_whole.sum.head.weight", "head.weight"} <= names
    lora.remove(net, "a")
    assert not any("_lora_whole.a." in name for name in net.state_dict())


def test_after_fold_what_was_trained_whole_is_an_ordinary_parameter(rng):
    net = TokenNet(rng)
    put(net, "a", rng, ["q"], modules_to_save=["head"])
    head = net.head.weight
    lora.fold(net)
    assert net.head.weight is head
    assert type(head) is Parameter


@pytest.mark.parametrize("targets", [["q"], ["twin"]])
def test_a_bias_that_a_layer_without_an_adapter_holds_too_is_refused(rng, targets):
    net = TokenNet(rng)
    net.twin = Linear(4, 6, dtype=D, rng=rng)
    net.twin.bias = net.q.bias
    before = snapshot(net)
    with pytest.raises(ValueError, match=r"(q|twin)\.bias is tied to (twin|q)\.bias"):
        put(net, "a", rng, [*targets, "head"], bias="lora_only")
    assert snapshot(net) == before
    report = put(net, "a", rng, ["q", "twin"], bias="lora_only")
    assert names_of(report) == [("q.bias", "bias")]
    assert net.q.bias is net.twin.bias
    lora.detach(net)
    assert snapshot(net) == before


def test_a_bias_that_is_first_found_under_another_name_is_not_passed_by(rng):
    net = TokenNet(rng)
    first = Module()
    first.offset, first.net = net.head.bias, net
    with pytest.raises(ValueError, match=r"net\.head\.bias is tied to offset"):
        put(first, "a", rng, ["q"], bias="all")


def test_an_integer_parameter_cannot_be_trained_whole(rng):
    net = TokenNet(rng)
    net.head.positions = Parameter(np.arange(3), requires_grad=False)
    before, state = snapshot(net), rng.bit_generator.state
    with pytest.raises(TypeError, match=r"modules_to_save: head\.positions has dtype int64"):
        put(net, "a", rng, ["q"], modules_to_save=["head"])
    assert snapshot(net) == before
    assert rng.bit_generator.state == state


class Sharing(Module):
    """One layer that is a part of both halves."""

    def __init__(self, rng):
        shared = Linear(4, 4, dtype=D, rng=rng)
        self.left, self.right = Sequential(shared), Sequential(shared, Linear(4, 4, dtype=D))
        self.last = Linear(4, 4, dtype=D, rng=rng)

    def forward(self, x):
        return self.last(self.left(x) + self.right(x))


@pytest.mark.parametrize("half", ["left", "right"])
def test_a_shared_module_is_trained_whole_by_either_of_its_names(rng, half):
    net = Sharing(rng)
    before = snapshot(net)
    report = put(net, "a", rng, ["last"], modules_to_save=[half])
    assert names_of(report)[0] == ("left.0.weight", "modules_to_save")
    assert net.left[0] is net.right[0]
    net(rng.standard_normal((2, 4))).sum().backward()
    assert all(p.grad is not None for p in [net.left[0].weight, net.left[0].bias])
    lora.detach(net)
    assert snapshot(net) == before


@pytest.mark.parametrize("half", ["left", "right"])
def test_a_shared_module_with_an_adapter_is_not_trained_whole(rng, half):
    net = Sharing(rng)
    before = snapshot(net)
    with pytest.raises(ValueError, match=rf"{half} is to be trained in full, but left\.0 has an"):
        put(net, "a", rng, ["left.0"], modules_to_save=[half])
    assert snapshot(net) == before


@pytest.mark.parametrize("first", [True, False])
def test_a_layer_is_not_adapted_by_one_and_trained_whole_by_another(rng, first):
    net = TokenNet(rng)
    options = [{"targets": ["head"]}, {"targets": ["q"], "modules_to_save": ["head"]}]
    put(net, "a", rng, **options[first])
    before = snapshot(net)
    with pytest.raises(ValueError, match="head"):
        put(net, "b", rng, **options[not first])
    assert snapshot(net) == before


# ----------------------------------------------------------------------------------------------
# Tied weights
# ----------------------------------------------------------------------------------------------


def test_the_error_about_reading_the_weight_of_an_adapted_layer_says_what_to_read(rng):
    class Reading(TokenNet):
        def forward(self, x):
            return self.table(x) @ self.table.weight.T

    net = Reading(rng)
    put(net, "a", rng, ["table"])
    with pytest.raises(AttributeError, match=r"no T; .*\.base_weight .*\.merged_weight\(\)"):
        net(TOKENS)
    assert not hasattr(net.table.weight, "data")
    copy.deepcopy(net)


@pytest.mark.parametrize(
    "read",
    [
        np.asarray,
        np.linalg.norm,
        minigrad.tensor,
        lambda weight: weight @ np.ones(7),
        lambda weight: np.ones((4, 7)) * weight,
    ],
)
def test_a_weight_is_no_array_by_accident(rng, read):
    net = TokenNet(rng)
    put(net, "a", rng, ["table"])
    with pytest.raises((TypeError, AttributeError), match=r"\.base_weight .*\.merged_weight\(\)"):
        read(net.table.weight)


@pytest.mark.parametrize("target", ["table", "head"])
def test_an_adapter_on_a_tied_weight_changes_its_layer_only(rng, target):
    net = TiedNet(rng)
    before = snapshot(net)
    report = put(net, "a", rng, [target])
    other = "head.weight" if target == "table" else "table.weight"
    assert f"tied to {other}" in report.matches[0].note
    assert f"tied to {other}" in repr(report)
    both = [net.table, net.head]
    held = [m.base_weight if isinstance(m, AdaptedLayer) else m.weight for m in both]
    assert held[0] is held[1]
    lora.merge(net)
    assert held[0].data.tobytes() == before[1][0][-1]
    lora.detach(net)
    assert snapshot(net) == before


def test_a_tied_weight_is_trained_whole_in_all_its_places_or_not_at_all(rng):
    net = TiedNet(rng)
    net.mid = Linear(5, 5, dtype=D, rng=rng)
    before = snapshot(net)
    with pytest.raises(ValueError, match=r"head\.weight is tied to table\.weight"):
        put(net, "a", rng, ["mid"], modules_to_save=["head"])
    assert snapshot(net) == before
    report = put(net, "a", rng, ["mid"], modules_to_save=["head", "table"])
    assert len(report.copies) == 1
    assert net.head.weight is net.table.weight
    assert net.head.weight.requires_grad


# ----------------------------------------------------------------------------------------------
# Embeddings and attention
# ----------------------------------------------------------------------------------------------


def test_the_vectors_of_tokens_that_training_never_sees_stay(rng):
    net = TokenNet(rng)
    lora.attach(net, LoRAConfig(rank=2, targets=["table"]), rng=rng)
    before = net.table(np.arange(7)).data.copy()
    optimizer = Adam(net.trainable_parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        (net(TOKENS) ** 2).sum().backward()
        optimizer.step()
    changed = (net.table(np.arange(7)).data != before).any(axis=1)
    assert [i for i in range(7) if changed[i]] == sorted({*TOKENS.flat})


def test_padding_gets_no_gradient(rng):
    embedding = Embedding(5, 3, padding_idx=2, dtype=D, rng=rng)
    layer = LoRAEmbedding.around(embedding)
    layer.add("a", lora.Adapter(layer.weight, 2, 4.0, begin=layer.begin(2, rng)))
    layer.use(["a"])
    layer(np.array([1, 2, 2, 4])).sum().backward()
    gradient = abs(layer.lora_a.grad.data).sum(axis=0)
    assert (gradient > 0).tolist() == [False, True, False, False, True]


def test_dropout_of_an_embedding_drops_the_updates_of_whole_tokens(rng):
    net = TokenNet(rng)
    lora.attach(net, LoRAConfig(rank=2, targets=["table"], dropout=0.5), rng=rng)
    shake(net, rng, "default")
    tokens = np.full((40,), 3)
    base = net.table.base_weight.data[3]
    full = net.eval().table(tokens[:1]).data[0] - base
    found = net.train().table(tokens).data - base
    dropped = (abs(found) < 1e-12).all(axis=1)
    assert 5 < dropped.sum() < 35
    np.testing.assert_allclose(found[~dropped], np.tile(2 * full, ((~dropped).sum(), 1)))


class Attending(Module):
    def __init__(self, rng):
        self.attention = MultiHeadAttention(4, 2, dtype=D, rng=rng)
        self.out = Linear(4, 2, dtype=D, rng=rng)

    def forward(self, x):
        return self.out(self.attention(x))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["attention"], ["q_proj", "k_proj", "v_proj", "out_proj"]),
        (["q_proj", "v_proj"], ["q_proj", "v_proj"]),
        (r"attention\.[qk]_proj", ["q_proj", "k_proj"]),
    ],
)
def test_an_attention_is_named_for_its_projections(rng, targets, names):
    net = Attending(rng)
    x = minigrad.tensor(rng.standard_normal((1, 2, 4)))
    base = net(x).data
    report = lora.attach(net, LoRAConfig(rank=1, targets=targets), rng=rng)
    assert report.names == [f"attention.{name}" for name in names]
    assert np.array_equal(net(x).data, base)
    shake(net, rng, "default")
    assert minigrad.gradcheck(net, x).verdict == "agree"


# ----------------------------------------------------------------------------------------------
# Any program
# ----------------------------------------------------------------------------------------------


class Programs(RuleBasedStateMachine):
    """Merging, editing, switching, attaching, removing in any order: outputs are those of a model
    of dense arrays, and what was there first stays what it was to the bit."""

    @initialize(seed=st.integers(0, 2**32 - 1))
    def begin(self, seed):
        self.rng = np.random.default_rng(seed)
        self.net = TokenNet(self.rng)
        self.first = snapshot(self.net)
        self.base = out(self.net)
        self.twin = copy.deepcopy(self.net)
        self.first_state = self.net.state_dict()
        self.merged = ()
        self.stale = False

    @property
    def names(self):
        return list(self.record.adapters)

    @property
    def record(self):
        return attachment_of(self.net)

    @property
    def active(self):
        return lora.active(self.net) if self.names else ()

    def copied(self):
        """What is trained in full by the adapters that are active, wherever it is held."""
        return {c.name: c.own.data for n in self.active for c in self.record.adapters[n].copies}

    @precondition(lambda self: len(self.names) < 3 and not self.merged)
    @rule(
        name=st.sampled_from("abc"),
        where=st.lists(st.sampled_from(LAYERS), min_size=1, unique=True),
        form=st.sampled_from(
            [
                {},
                {"use_dora": True},
                {"init": "pissa"},
                {"bias": "all"},
                {"modules_to_save": ["norm"]},
            ]
        ),
    )
    def attach(self, name, where, form):
        if name in self.names:
            with pytest.raises(ValueError, match="already"):
                put(self.net, name, self.rng, where, **form)
        else:
            put(self.net, name, self.rng, where, **form)

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def switch(self, data):
        names = data.draw(st.lists(st.sampled_from(self.names), unique=True))
        whole = [n for n in names if self.record.adapters[n].copies]
        if not set(self.merged) <= set(names) or len(whole) > 1:
            with pytest.raises(ValueError, match=r"merged|in full"):
                lora.switch(self.net, *names)
        else:
            lora.switch(self.net, *names)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def merge(self, data):
        names = data.draw(
            st.lists(st.sampled_from(self.active), min_size=1, unique=True) | st.none()
        )
        lora.merge(self.net, names)
        self.merged = self.active if names is None else tuple(names)
        self.stale = False

    @precondition(lambda self: self.merged)
    @rule()
    def unmerge(self):
        lora.unmerge(self.net)
        self.merged, self.stale = (), False

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def edit(self, data):
        name = data.draw(st.sampled_from(self.names))
        shake(self.net, self.rng, name)
        self.stale = self.stale or name in self.merged

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def remove(self, data):
        name = data.draw(st.sampled_from(self.names))
        if name in self.merged:
            with pytest.raises(ValueError, match="merged"):
                lora.remove(self.net, name)
        else:
            lora.remove(self.net, name)

    @precondition(lambda self: self.names)
    @rule()
    def disable(self):
        with lora.disabled(self.net):
            assert np.array_equal(out(self.net), self.base)

    @precondition(lambda self: self.names and not self.stale)
    @rule()
    def fold_a_copy(self):
        folded = copy.deepcopy(self.net)
        if set(self.active) < set(self.names):
            with pytest.raises(ValueError, match="would be lost"):
                lora.fold(folded)
        else:
            lora.fold(folded)
            assert {type(m) for m in folded.modules()} == {type(m) for m in self.twin.modules()}
            assert {type(p) for p in folded.parameters()} == {Parameter}
            assert all(p.requires_grad for p in folded.parameters())
        np.testing.assert_allclose(out(folded), out(self.net), rtol=1e-9, atol=1e-9)

    @precondition(lambda self: self.names)
    @rule()
    def detach(self):
        lora.detach(self.net)
        self.merged, self.stale = (), False
        assert snapshot(self.net) == self.first

    @invariant()
    def the_base_is_what_it_was(self):
        held = {name: layer.base_weight for name, layer in layers_of(self.net).items()}
        first = {name: bits for name, *_, bits in self.first[1]}
        for name, weight in held.items():
            assert weight.data.tobytes() == first[f"{name}.weight"]

    @invariant()
    def outputs_are_those_of_dense_arrays(self):
        if self.stale:
            with pytest.raises(RuntimeError, match="changed since merge"):
                out(self.net)
            return
        self.twin.load_state_dict(self.first_state | self.copied() | dense_weights(self.net))
        np.testing.assert_allclose(out(self.net), out(self.twin), rtol=1e-9, atol=1e-9)


def dense_weights(net):
    """The weights of the adapted layers in a plain model that computes the same."""
    state = {}
    for name, module in layers_of(net).items():
        table = isinstance(module, LoRAEmbedding)
        base = module.base_weight.data.T if table else module.base_weight.data
        total = base.copy()
        for active in module.active:
            adapter = module.adapters[active]
            product = adapter.lora_b.data @ adapter.lora_a.data
            if adapter.start is not None:
                product = product - adapter.start[1].data @ adapter.start[0].data
            moved = base + adapter.scale * product
            if adapter.lora_magnitude is not None:
                norm = np.linalg.norm(moved, axis=1, keepdims=True)
                moved = adapter.lora_magnitude.data[:, None] * moved / norm
            total += moved - base
        state[f"{name}.weight"] = total.T if table else total
    return state


TestPrograms = Programs.TestCase
TestPrograms.settings = settings(max_examples=10, stateful_step_count=15)


@pytest.mark.full
class TestLongPrograms(Programs.TestCase):
    settings = settings(max_examples=50, stateful_step_count=50)


def test_a_parameter_that_is_trained_whole_is_a_parameter(rng):
    net = TokenNet(rng)
    put(net, "a", rng, ["q"], modules_to_save=["head"])
    assert isinstance(net.head.weight, Parameter)
    assert set(net.state_dict()) >= {"head.weight", "q.a.lora_a"}


def test_an_interrupt_at_the_end_of_disabled_leaves_the_adapters_on(rng, monkeypatch):
    """It comes in the very call that holds interrupts back."""
    model = Sequential(Linear(4, 4, rng=rng), Linear(4, 2, rng=rng))
    lora.attach(model, LoRAConfig(rank=1, targets=["0"], bias="all"), rng=rng)
    model[0].lora_b.copy_(np.ones((4, 1)))
    x = np.ones((1, 4), np.float32)
    expected, known = model(x).data.copy(), signal.signal

    def interrupted(*arguments):
        monkeypatch.setattr(signal, "signal", known)
        signal.raise_signal(signal.SIGINT)
        return known(*arguments)

    with pytest.raises(KeyboardInterrupt), lora.disabled(model):
        monkeypatch.setattr(signal, "signal", interrupted)
    assert np.array_equal(model(x).data, expected)
    lora.switch(model)
