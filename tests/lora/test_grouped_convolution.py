"""Adapters on grouped convolutions: A sees all channels, and B has groups, as in PEFT."""

import copy

import numpy as np
import pytest

import lora
import minigrad as mg
from lora import LoRAConfig, LoRAConv
from lora.__main__ import main
from lora.certificate import merging_of
from lora.offline import check_adapter, extract_files, merge_files, summarise
from minigrad.io import load_state
from minigrad.nn import Conv1d, Conv2d, Linear, Module, Sequential
from minigrad.optim import SGD
from minigrad.training import Trainer
from tests.lora.folders import PREFIX, base_of, configure, edit
from tests.lora.folders import snapshot as files_of
from tests.lora.models import ConvNet, adapters_of, one_convolution, put_on, snapshot

RANK = 6  # divisible by the groups of all rows

KINDS = {
    "two groups": (Conv2d, (4, 6, 2), {"groups": 2}, (2, 4, 3, 3)),
    "each channel by itself": (Conv2d, (3, 6, (2, 3)), {"groups": 3}, (2, 3, 4, 5)),
    "stride, padding": (
        Conv2d,
        (4, 6, (3, 2)),
        {"groups": 2, "stride": (2, 1), "padding": 1},
        (2, 4, 4, 3),
    ),
    "dilation": (Conv2d, (2, 6, 2), {"groups": 2, "dilation": 2, "bias": False}, (1, 2, 4, 5)),
    "one pixel": (Conv2d, (4, 8, 1), {"groups": 2}, (2, 4, 2, 3)),
    "one image": (Conv2d, (4, 6, 3), {"groups": 2, "padding": "same"}, (4, 3, 4)),
    "sequence": (Conv1d, (6, 6, 3), {"groups": 3, "stride": 2, "padding": 1}, (2, 6, 7)),
    "one sequence": (Conv1d, (4, 6, 3), {"groups": 2, "bias": False}, (4, 5)),
}


@pytest.fixture(params=KINDS)
def grouped(request, rng):
    """A model of one grouped convolution in float64, and an input."""
    return one_convolution(*KINDS[request.param], rng)


class GroupedNet(ConvNet):
    """A `ConvNet` whose convolutions are grouped, except for one."""

    def __init__(self, rng, dtype=np.float32):
        self.first = Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2, dtype=dtype, rng=rng)
        self.point = Conv2d(6, 4, 1, bias=False, dtype=dtype, rng=rng)
        self.line = Conv1d(4, 8, 3, padding="same", groups=4, dtype=dtype, rng=rng)
        self.head = Linear(8, 5, dtype=dtype, rng=rng)


GROUPED = ["first", "line"]
TARGETS = [*GROUPED, "point", "head"]


def images(rng, dtype=np.float32):
    return rng.standard_normal((2, 4, 7, 6)).astype(dtype)


def adapted_net(rng, dtype=np.float32, size=0.3, **options):
    """A net with an adapter that does something."""
    net = GroupedNet(rng, dtype)
    put_on(net, "default", rng, size, **{"rank": 4, "targets": TARGETS, **options})
    return net


def out(model, x):
    with mg.no_grad():
        return model(mg.tensor(x)).data.copy()


def of_groups(a, b, groups):
    """The update of all filters, B_g A_g below each other, which is what the groups compute."""
    pairs = zip(np.split(b, groups), np.split(a, groups), strict=True)
    return np.concatenate([part @ rows for part, rows in pairs])


def complete(layer, update=0.0):
    """The convolution without groups whose filters are those of a layer in their places."""
    o, per_group, *kernel = layer.weight.shape
    channels = per_group * layer.groups
    filters = np.zeros((o, channels, *kernel), layer.weight.dtype)
    each = zip(np.split(np.arange(o), layer.groups), range(0, channels, per_group), strict=True)
    for rows, first in each:
        filters[rows, first : first + per_group] = layer.weight.data[rows]
    bias = layer.bias is not None
    options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    made = type(layer)(channels, o, tuple(kernel), **options, bias=bias, dtype=layer.weight.dtype)
    made.weight.data = filters + np.reshape(update, (*np.shape(update)[:1], *filters.shape[1:]))
    if bias:
        made.bias.data = layer.bias.data
    return made


# ----------------------------------------------------------------------------------------------
# What is computed
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["gaussian", "kaiming"])
def test_the_first_output_is_that_of_the_base_to_the_bit(grouped, rng, init):
    model, x = grouped
    layer, before = model[0], out(model, x)
    lora.attach(model, LoRAConfig(rank=RANK, targets=["0"], init=init), rng=rng)
    assert isinstance(model[0], LoRAConv)
    channels, *kernel = layer.in_channels, *layer.kernel_size
    assert model[0].lora_a.shape == (RANK, np.prod([channels, *kernel]))
    assert model[0].lora_b.shape == (layer.out_channels, RANK // layer.groups)
    assert np.array_equal(out(model, x), before)


@pytest.mark.parametrize(("scaling", "scale"), [("standard", 2.0), ("rslora", 12 / 6**0.5)])
def test_it_is_a_convolution_without_groups(grouped, rng, scaling, scale):
    model, x = grouped
    layer = model[0]
    put_on(model, "default", rng, rank=RANK, targets=["0"], alpha=12, scaling=scaling)
    adapter = model[0].adapter
    update = scale * of_groups(adapter.lora_a.data, adapter.lora_b.data, layer.groups)
    right = complete(layer, update)
    assert np.allclose(out(model, x), out(right, x), rtol=1e-11, atol=1e-12)
    assert not np.allclose(out(model, x), out(layer, x), rtol=1e-2)


def test_gradients_are_those_of_its_filters_and_none_reach_the_base(grouped, rng):
    model, x = grouped
    layer = model[0]
    put_on(model, "default", rng, rank=RANK, targets=["0"], alpha=12)
    adapted, there, here = model[0], mg.tensor(x, requires_grad=True), mg.tensor(x)
    here.requires_grad_()
    a, b, groups = adapted.lora_a, adapted.lora_b, layer.groups
    right = complete(layer, 2.0 * of_groups(a.data, b.data, groups))
    right.weight.requires_grad_()
    cotangent = mg.tensor(rng.standard_normal(out(model, x).shape))
    adapted.base_weight.requires_grad_()  # whatever flag it has
    (model(here) * cotangent).sum().backward()
    (right(there) * cotangent).sum().backward()
    dw = right.weight.grad.data.reshape(len(b.data), -1)
    of_each = [np.split(each, groups) for each in (a.data, b.data, dw)]
    da = [2.0 * b_g.T @ dw_g for _, b_g, dw_g in zip(*of_each, strict=True)]
    db = [2.0 * dw_g @ a_g.T for a_g, _, dw_g in zip(*of_each, strict=True)]
    for found, wanted in (
        (a.grad, np.concatenate(da)),
        (b.grad, np.concatenate(db)),
        (here.grad, there.grad.data),
    ):
        assert np.allclose(found.data, wanted, rtol=1e-10, atol=1e-12)
    assert adapted.base_weight.grad is None
    assert adapted.bias is None or adapted.bias.grad is None


@pytest.mark.sampled(7)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_both_orders_agree_with_differences(kind, rng):
    cls, sizes, options, shape = KINDS[kind]
    layer = LoRAConv.around(cls(*sizes, **options, dtype=np.float64, rng=rng))
    layer.add("default", lora.Adapter(layer.weight, RANK, 12.0, rng=rng))
    layer.use(["default"])

    def output(a, b, x):
        vars(layer.adapter).update(lora_a=a, lora_b=b)  # the operands themselves, not copies
        return layer(x)

    parts = (layer.lora_a.shape, layer.lora_b.shape, shape)
    operands = [rng.standard_normal(part) for part in parts]
    report = mg.gradcheck(output, operands, order=2, samples=8, progress=False)
    assert report, report


def test_the_first_a_is_as_large_as_that_of_peft(rng):
    for init, size in (("kaiming", (8 * 9) ** -0.5 / 3**0.5), ("gaussian", 1 / 64)):
        net = Sequential(Conv2d(8, 64, 3, groups=4, rng=rng))
        lora.attach(net, LoRAConfig(rank=64, targets=["0"], init=init), rng=rng)
        assert net[0].lora_a.data.std() == pytest.approx(size, rel=0.05)  # of thousands of numbers
        assert not net[0].lora_b.data.any()


def test_several_adapters_of_other_ranks_add_up(grouped, rng):
    model, x = grouped
    base = out(model, x)
    put_on(model, "a", rng, rank=RANK, targets=["0"])
    with_a = out(model, x)
    put_on(model, "b", rng, rank=model[0].weight.groups, targets=["0"], alpha=3)
    with_b = out(model, x)
    lora.switch(model, "a", "b")
    assert np.allclose(out(model, x) - base, with_a + with_b - 2 * base, rtol=1e-9, atol=1e-9)


def test_dropout_drops_elements_of_the_input_of_the_update(grouped, rng):
    model, x = grouped
    base = out(model, x)
    put_on(model, "default", rng, rank=RANK, targets=["0"], dropout=0.4)
    layer = model[0]
    layer.rng = np.random.default_rng(3)
    found = out(model, x)
    left = mg.dropout(mg.tensor(x), 0.4, rng=np.random.default_rng(3)).data
    layer.eval()
    change = out(model, left)
    with lora.disabled(model):
        change -= out(model, left)
    assert np.allclose(found, base + change, rtol=1e-10, atol=1e-10)
    assert not np.allclose(found, out(model, x), rtol=1e-2)


def test_a_captured_step_trains_the_same_bits(rng):
    x, y = images(rng), rng.standard_normal((2, 5)).astype(np.float32)
    found = []
    for capture in (False, True):
        net = adapted_net(np.random.default_rng(0))
        optimizer = SGD(net.trainable_parameters(), lr=0.01)
        options = {"rng": np.random.default_rng(0), "progress": False}
        trainer = Trainer(net, optimizer, mg.mse, capture=capture, **options)
        trainer.fit((x, y), epochs=4)
        found.append([p.data.tobytes() for p in net.trainable_parameters()])
    assert found[0] == found[1]


# ----------------------------------------------------------------------------------------------
# What is done to a model
# ----------------------------------------------------------------------------------------------


def test_disabled_switch_remove_and_detach(grouped, rng):
    model, x = grouped
    before, base = snapshot(model), out(model, x)
    put_on(model, "a", rng, rank=RANK, targets=["0"])
    with_a = out(model, x)
    put_on(model, "b", rng, rank=RANK, targets=["0"])
    with lora.disabled(model):
        assert np.array_equal(out(model, x), base)
    lora.switch(model, "a")
    assert np.array_equal(out(model, x), with_a)
    assert np.array_equal(out(copy.deepcopy(model), x), with_a)
    lora.remove(model, "b")
    assert np.array_equal(out(model, x), with_a)
    lora.detach(model)
    assert snapshot(model) == before


def test_the_report_says_what_the_layers_are(rng):
    net = GroupedNet(rng)
    report = lora.attach(net, LoRAConfig(rank=4, targets=TARGETS), rng=rng)
    rows = {m.name: (m.d_in, m.d_out, m.added, m.note) for m in report.matches}
    assert rows["first"] == (
        *(24, 6, 4 * 24 + 6 * 2),
        "kernel_size=(3, 2), stride=(2, 2), padding=(1, 1), groups=2",
    )
    assert rows["line"][:3] == (12, 8, 4 * 12 + 8 * 1)
    shown = "LoRAConv(12, 8, kernel_size=(3,), padding=same, groups=4, rank=4, alpha=16, scale=4)"
    assert shown in repr(net)


def test_a_layer_without_an_adapter_becomes_plain_again(grouped):
    model, x = grouped
    plain = LoRAConv.around(model[0]).plain()
    assert plain.extra_repr() == model[0].extra_repr()
    assert np.array_equal(out(plain, x), out(model, x))


def test_liveness_counts_the_ranks_of_all_groups(rng):
    net = adapted_net(rng, np.float64)
    batch = mg.tensor(images(rng, np.float64)), mg.tensor(np.zeros((2, 5)))
    found = {row.name: row for row in mg.liveness(net, mg.mse, batch).adapters}
    assert {name: found[name].verdict for name in GROUPED} == dict.fromkeys(GROUPED, "trains")
    for name in GROUPED:
        assert (found[name].rank_a, found[name].rank_b, found[name].rank_ba) == (4, 4, 4)
    net.line.lora_b = np.eye(8, 1)  # only the first group changes anything
    row = {row.name: row for row in mg.liveness(net, mg.mse, batch).adapters}["line"]
    assert (row.rank_a, row.rank_b, row.rank_ba) == (4, 1, 1)


def test_the_penalty_is_the_norm_of_the_update(rng):
    net = adapted_net(rng, np.float64)
    wanted = 0.0
    for name, adapter in adapters_of(net, "default").items():
        groups = getattr(net, name).weight.groups
        update = of_groups(adapter.lora_a.data, adapter.lora_b.data, groups)
        wanted += adapter.scale**2 * np.square(update).sum()
    assert lora.penalty(net).item() == pytest.approx(wanted, rel=1e-12)


def test_gradients_of_the_penalty_are_right_in_both_orders(rng):
    net = adapted_net(rng, np.float64, targets=["line"])

    class Penalised(Module):
        def __init__(self):
            self.net = net

        def forward(self, x):
            return lora.penalty(self.net) * x

    report = mg.gradcheck(Penalised(), np.array(0.7), order=2, progress=False)
    assert report, report


def test_pictures_have_the_singular_values_of_the_update(rng):
    net = adapted_net(rng, np.float64)
    found = {each.name: each for each in lora.viz.updates(net)}
    for name in GROUPED:
        adapter, groups = getattr(net, name).adapter, getattr(net, name).weight.groups
        update = of_groups(adapter.lora_a.data, adapter.lora_b.data, groups)
        values = adapter.scale * np.linalg.svd(update, compute_uv=False)[:4]
        assert np.allclose(found[name].singular_values, values, rtol=1e-10)
        assert found[name].rank == 4


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("plot", "names"),
    [
        (lora.viz.plot_change, []),
        (lora.viz.plot_singular_values, []),
        (lora.viz.plot_factors, ["line"]),
    ],
)
def test_a_picture_can_be_drawn(rng, tmp_path, plot, names):
    plot(adapted_net(rng, np.float64), *names, path=tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size


@pytest.mark.parametrize("rank", [None, 6])
def test_a_sum_of_adapters_is_an_adapter(rng, rank):
    net, x = GroupedNet(rng, np.float64), images(rng, np.float64)
    put_on(net, "a", rng, rank=4, targets=GROUPED, alpha=2)
    put_on(net, "b", rng, rank=4, targets=GROUPED)
    lora.switch(net, "a", "b")
    both = out(net, x)
    report = lora.combine(net, ["a", "b"], [1.0, 1.0], "sum", rank=rank)
    lora.switch(net, "sum")
    if rank is None:
        assert np.allclose(out(net, x), both, rtol=1e-12)
        assert {row.name: (row.rank, row.error) for row in report.layers} == dict.fromkeys(
            GROUPED, (8, 0.0)
        )
        return
    # The rank is shared out equally, so `line` gets one row of A in each of its four groups.
    assert {row.name: row.rank for row in report.layers} == {"first": 6, "line": 4}
    for row in report.layers:
        layer = getattr(net, row.name)
        terms = [layer.adapters[name] for name in ("a", "b")]
        wanted = sum(
            t.scale * of_groups(t.lora_a.data, t.lora_b.data, layer.weight.groups) for t in terms
        )
        kept = row.rank // layer.weight.groups
        tails = [
            np.linalg.svd(part, compute_uv=False)[kept:]
            for part in np.split(wanted, layer.weight.groups)
        ]
        error = np.linalg.norm(np.concatenate(tails))
        assert row.error == pytest.approx(error, rel=1e-9, abs=1e-12)
        own = layer.adapters["sum"]
        found = own.scale * of_groups(own.lora_a.data, own.lora_b.data, layer.weight.groups)
        assert np.linalg.norm(found - wanted) == pytest.approx(error, rel=1e-9, abs=1e-12)
        assert row.relative_error == pytest.approx(error / np.linalg.norm(wanted), rel=1e-9)


def test_a_sum_of_nothing_can_still_train(rng):
    net = adapted_net(rng, np.float64, rank=8, targets=["line"])
    lora.combine(net, ["default"], [0.0], "none")
    lora.switch(net, "none")
    adapter = net.line.adapters["none"]
    first_of_each_group = net.line.adapters["default"].lora_a.data[::2]
    assert np.array_equal(adapter.lora_a.data, first_of_each_group)
    assert (adapter.lora_a.shape, adapter.lora_b.shape) == ((4, 12), (8, 1))
    (net(images(rng, np.float64)) ** 2).sum().backward()
    gradients = [part.grad.data for part in adapter.trained()]
    assert [bool(each.any()) for each in gradients] == [False, True]
    assert np.abs(gradients[1]).min() > 0  # in all groups


def test_a_sum_of_fewer_ranks_than_groups_is_refused(rng):
    net = adapted_net(rng, np.float64, targets=["line"])
    put_on(net, "b", rng, rank=4, targets=["line"])
    before = snapshot(net)
    says = r"line: rank 3 is .* of 4 groups.* at least 4"
    for weights in ([1, 1], [0, 0]):
        with pytest.raises(ValueError, match=says):
            lora.combine(net, ["default", "b"], weights, "sum", rank=3)
    assert snapshot(net) == before


# ----------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rank": 3},
            r"first: rank 3 is not divisible by groups=2.* ranks that work are 2, 4, 6; "
            r"change rank, or rank_pattern for this layer, or leave it out with exclude",
        ),
        (
            {"rank": 2, "targets": ["line"]},
            r"line: rank 2 is not divisible by groups=4.* ranks that work are 4, 8; change rank",
        ),
        (
            {"rank": 2, "targets": ["wide"]},
            r"wide: rank 2 is not divisible by groups=5.* work are 5, 10, 15, \.\.\., 100; change",
        ),
        (
            {"rank": 8},
            r"first: rank 8 is larger than min\(d_out, groups d_in\) = 6; B A has no more rank",
        ),
        ({"use_dora": True}, "first: use_dora .*PEFT.* change this option, or exclude the layer"),
        ({"init": "pissa"}, r"first: init='pissa' .*2 groups.* 'gaussian' or 'kaiming'"),
        ({"init": "pissa_niter_2"}, r"first: init='pissa_niter_2' .*2 groups"),
        ({"init": "mica"}, r"first: init='mica' .*2 groups"),
        ({"init": "orthogonal"}, r"first: init='orthogonal' .*2 groups"),
    ],
)
def test_options_that_do_not_go_with_groups_are_refused_by_the_name_of_the_layer(
    rng, options, message
):
    net = GroupedNet(rng)
    net.wide = Conv1d(5, 100, 8, groups=5, rng=rng)
    before = snapshot(net)
    with pytest.raises(ValueError, match=message):
        lora.attach(net, LoRAConfig(**{"rank": 4, "targets": TARGETS, **options}))
    assert snapshot(net) == before


def test_the_ranks_that_work_are_accepted(rng):
    for conv, ranks in (
        (Conv2d(2, 8, 1, groups=2, rng=rng), (2, 4)),  # in each group B A has at most rank 2
        (Conv1d(6, 6, 3, groups=6, rng=rng), (6,)),
    ):
        for rank in ranks:
            lora.attach(net := Sequential(conv), LoRAConfig(rank=rank, targets=["0"]))
            lora.detach(net)
        with pytest.raises(ValueError, match=r"larger than min\(d_out, groups d_in\) = "):
            lora.attach(net, LoRAConfig(rank=2 * ranks[-1], targets=["0"]))


@pytest.mark.parametrize("options", [{"rank": 3}, {"use_dora": True}, {"init": "pissa"}])
def test_an_adapter_made_by_hand_is_refused_for_the_same_reasons(rng, options):
    layer = LoRAConv.around(Conv2d(4, 6, 3, groups=2, rng=rng))
    with pytest.raises(ValueError, match=r"groups|grouped"):
        lora.Adapter(layer.weight, **{"rank": 4, "alpha": 4.0, **options})


REASON = "sees the channels of its own group, where A sees all"


@pytest.mark.parametrize("function", [lora.merge, lora.fold])
def test_a_model_is_not_merged_and_the_layers_are_named(rng, function):
    net, x = adapted_net(rng), images(rng)
    before, wanted = snapshot(net), out(net, x)
    with pytest.raises(ValueError, match=rf"first, line cannot be merged.*{REASON}.*lora\.save"):
        function(net)
    assert snapshot(net) == before
    assert not any(layer.merged for layer in (net.first, net.line, net.point, net.head))
    assert np.array_equal(out(net, x), wanted)


def test_an_adapter_of_other_layers_is_merged_beside_it(rng):
    net, x = adapted_net(rng, np.float64, targets=GROUPED), images(rng, np.float64)
    put_on(net, "head", rng, targets=["head", "point"])
    lora.switch(net, "default", "head")
    wanted = out(net, x)
    assert lora.merge(net, "head").layers == ["point", "head"]
    assert net.head.merged
    assert np.allclose(out(net, x), wanted, rtol=1e-12)
    with pytest.raises(ValueError, match="first, line cannot be merged"):
        lora.merge(net)
    assert np.allclose(out(net, x), wanted, rtol=1e-12)
    assert net.head.merged


def test_a_layer_is_not_merged(rng):
    net = adapted_net(rng)
    layer = net.first
    for call in (
        layer.merge,
        layer.plain,
        layer.merged_weight,
        lambda: merging_of("", layer, ["default"]),
    ):
        with pytest.raises(ValueError, match=REASON):
            call()
    assert not layer.merged


def test_no_adapter_is_extracted_for_it(rng):
    base = GroupedNet(rng)
    tuned = copy.deepcopy(base)
    tuned.first.weight.data = tuned.first.weight.data + 1
    tuned.line.weight.data = tuned.line.weight.data + 1
    tuned.point.weight.data = tuned.point.weight.data + 1
    before = snapshot(base)
    with pytest.raises(ValueError, match=r"grouped .* of first, line; .* modules_to_save"):
        lora.extract(base, tuned, 3, targets=TARGETS, progress=False)
    assert snapshot(base) == before
    lora.extract(
        base, tuned, 3, targets=["point"], modules_to_save=["first", "line"], progress=False
    )
    x = images(rng)
    assert np.allclose(out(base, x), out(tuned, x), rtol=1e-5)


# ----------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["standard", "rslora"])
def saved(request, rng, tmp_path):
    """A net, the same with an adapter, and the folder of the adapter."""
    net = GroupedNet(rng)
    adapted = copy.deepcopy(net)
    put_on(adapted, "default", rng, 0.1, rank=4, targets=TARGETS, scaling=request.param)
    lora.save(adapted, tmp_path / "adapter", progress=False)
    return net, adapted, tmp_path / "adapter"


only_standard = pytest.mark.parametrize("saved", ["standard"], indirect=True)


def test_what_was_saved_is_loaded_with_equal_bits(saved, rng):
    net, adapted, folder = saved
    x = images(rng)
    report = lora.load(net, folder, progress=False)
    assert report.names == ["first", "point", "line", "head"]
    assert np.array_equal(out(net, x), out(adapted, x))


@only_standard
def test_files_have_the_shapes_of_peft(saved):
    _, _, folder = saved
    tensors = load_state(folder / "adapter_model.safetensors")[0]
    shapes = {key.removeprefix(PREFIX): each.shape for key, each in tensors.items()}
    assert {key: shape for key, shape in shapes.items() if key.startswith(("first", "line"))} == {
        "first.lora_A.weight": (4, 4, 3, 2),
        "first.lora_B.weight": (6, 2, 1, 1),
        "line.lora_A.weight": (4, 4, 3),
        "line.lora_B.weight": (8, 1, 1),
    }


def without_groups(net, rng):
    net.line = Conv1d(4, 8, 3, padding="same", rng=rng)


def other_groups(net, rng):
    net.line = Conv1d(4, 8, 3, padding="same", groups=2, rng=rng)


@only_standard
@pytest.mark.parametrize(
    ("change", "shape"), [(without_groups, r"\(8, 4, 1\)"), (other_groups, r"\(8, 2, 1\)")]
)
def test_a_file_for_other_groups_is_refused(saved, rng, change, shape):
    net, _, folder = saved
    change(net, rng)
    before = snapshot(net)
    with pytest.raises(ValueError, match=rf"mis-shaped: .*line.lora_B.weight.* {shape} by its"):
        lora.load(net, folder, check_base=False, progress=False)
    assert snapshot(net) == before


@only_standard
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "first: use_dora .*PEFT"),
        ({"init_lora_weights": "pissa"}, "first: init='pissa'"),
        ({"r": 3}, r"first: rank 3 is not divisible by groups=2.* ranks that work are 2, 4, 6"),
    ],
)
def test_a_configuration_that_does_not_go_with_groups_is_refused(saved, fields, message):
    net, _, folder = saved
    configure(folder, **fields)
    before = snapshot(net)
    with pytest.raises(ValueError, match=message):
        lora.load(net, folder, progress=False)
    assert snapshot(net) == before


def test_magnitudes_of_other_layers_cannot_be_saved_with_it(rng, tmp_path):
    net = GroupedNet(rng)
    put_on(net, "dora", rng, targets=["head"], use_dora=True)
    put_on(net, "grouped", rng, rank=4, targets=["line"])
    lora.combine(net, ["dora", "grouped"], [1, 1], "both")
    with pytest.raises(ValueError, match=r"line: .*DoRA.*groups"):
        lora.save(net, tmp_path / "both", "both", progress=False)
    assert not (tmp_path / "both").exists()


def test_a_summary_says_how_many_groups(saved):
    _, adapted, folder = saved
    rows = {row.name: row for row in summarise(folder).layers}
    assert {name: row.kind for name, row in rows.items()} == {
        "first": "convolution, 2 groups",
        "line": "convolution, 4 groups",
        "point": "convolution",
        "head": "linear",
    }
    for name in GROUPED:
        layer, row = getattr(adapted, name), rows[name]
        assert (row.d_in, row.d_out, row.rank) == (layer.d_in, layer.d_out, 4)
        a, b = layer.adapter.exact_factors()
        update = layer.scale * of_groups(a, b, layer.weight.groups)
        values = np.linalg.svd(update, compute_uv=False)[:4]
        assert np.allclose(row.singular_values, values, rtol=1e-5)


def found_in(findings):
    return {(each.level, each.where): each.what for each in findings.findings}


@only_standard
def test_a_check_says_that_it_cannot_be_merged(saved, tmp_path, capsys):
    net, _, folder = saved
    base = base_of(net, tmp_path / "base")
    for findings in (
        check_adapter(folder, progress=False),
        check_adapter(folder, base, progress=False),
    ):
        assert findings.is_right
        found = found_in(findings)
        assert found.keys() == {("odd", "first"), ("odd", "line")}
        for what in found.values():
            assert REASON in what
            assert "lora.load" in what
    assert not main(["check", str(folder), str(base)])
    assert "line: is of a convolution with 4 groups" in capsys.readouterr().out


@only_standard
def test_a_check_of_a_merged_model_says_that_it_cannot_have_the_update(saved, tmp_path):
    net, _, folder = saved
    base = base_of(net, tmp_path / "base")
    findings = check_adapter(folder, base, base, progress=False)
    assert not findings.is_right
    found = found_in(findings)
    for name in GROUPED:
        assert "cannot have the update" in found["wrong", f"{name}.weight"]


@only_standard
def test_a_merge_of_files_is_refused_before_anything_is_written(saved, tmp_path, capsys):
    net, _, folder = saved
    base = base_of(net, tmp_path / "base")
    before = files_of(tmp_path)
    for target in ("out", "out.safetensors"):
        with pytest.raises(
            ValueError, match=rf"first, line.*cannot be merged.*{REASON}.*lora\.load"
        ):
            merge_files(base, folder, tmp_path / target, progress=False)
    assert main(["merge", str(base), str(folder), str(tmp_path / "out")]) == 2
    assert "first, line" in capsys.readouterr().err
    assert files_of(tmp_path) == before


@only_standard
def test_the_files_of_dora_with_groups_are_for_peft_only(saved, tmp_path):
    net, _, folder = saved

    def add_magnitudes(arrays):
        for name in TARGETS:
            shape = getattr(net, name).weight.shape
            key = f"{PREFIX}{name}.lora_magnitude_vector"
            ones = (1,) * (len(shape) - 2)
            arrays[key] = np.ones((1, shape[0], *ones) if ones else shape[:1], np.float32)

    edit(folder / "adapter_model.safetensors", add_magnitudes)
    configure(folder, use_dora=True)
    findings = check_adapter(folder, progress=False)
    assert findings.is_right
    assert "is loaded by PEFT only" in found_in(findings)["odd", "line"]
    assert summarise(folder).layers[0].kind == "convolution, 2 groups, DoRA"
    with pytest.raises(ValueError, match=r"first: use_dora .*cannot be loaded"):
        lora.load(net, folder, progress=False)
    with pytest.raises(ValueError, match=r"first, line .*cannot be merged"):
        merge_files(base_of(net, tmp_path / "base"), folder, tmp_path / "out", progress=False)


@only_standard
@pytest.mark.parametrize(
    "shape", [(8, 0, 1), (8, 3, 1), (8, 8, 1), (7, 1, 1), (8,), (8, 1), (8, 1, 1, 1)]
)
def test_a_b_of_any_other_shape_is_a_finding(saved, tmp_path, shape):
    net, _, folder = saved
    edit(
        folder / "adapter_model.safetensors",
        lambda arrays: {**arrays, f"{PREFIX}line.lora_B.weight": np.ones(shape, np.float32)},
    )
    base = base_of(net, tmp_path / "base")
    assert not check_adapter(folder, base, progress=False).is_right
    with pytest.raises(ValueError, match="line"):
        merge_files(base, folder, tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="line"):
        lora.load(net, folder, progress=False)


@only_standard
def test_a_base_with_other_groups_is_refused(saved, rng, tmp_path):
    net, _, folder = saved
    for number, change in enumerate((without_groups, other_groups)):
        other = copy.deepcopy(net)
        change(other, rng)
        base = base_of(other, tmp_path / f"base{number}")
        found = found_in(check_adapter(folder, base, progress=False))
        wrong = [what for (level, _), what in found.items() if level == "wrong"]
        assert any("mis-shaped: A (4, 4, 3) and B (8, 1, 1) of line" in what for what in wrong)


@only_standard
def test_ranks_that_differ_are_no_groups(saved):
    _, _, folder = saved

    def cut(arrays):
        key = f"{PREFIX}point.lora_B.weight"
        arrays[key] = arrays[key][:, :3]

    edit(folder / "adapter_model.safetensors", cut)
    found = found_in(check_adapter(folder, progress=False))
    assert "A is (4, 6) and B (4, 3)" in found["wrong", "point"]


@only_standard
def test_nothing_is_extracted_of_it_from_files(saved, rng, tmp_path):
    net, _, _ = saved
    base = base_of(net, tmp_path / "base")
    for layer in (net.line, net.head):
        layer.weight.data = layer.weight.data + np.float32(0.1)
    tuned = base_of(net, tmp_path / "tuned")
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match=r"would not have: line.weight; .*modules_to_save"):
        extract_files(base, tuned, tmp_path / "out", 2, progress=False)
    assert files_of(tmp_path) == before
