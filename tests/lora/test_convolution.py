"""Adapters on convolutions: what they compute, with everything that is done to adapters."""

import copy

import numpy as np
import pytest

import lora
import minigrad as mg
from lora import LoRAConfig, LoRAConv
from lora.__main__ import main
from lora.offline import check_adapter, merge_files, summarise
from lora.peft import Facts, PeftConfig, write_folder
from minigrad.io import load_state, save_state
from minigrad.nn import Conv1d, Conv2d, Sequential
from tests.lora.folders import PREFIX, base_of, edit
from tests.lora.models import ConvNet, layers_of, one_convolution, put_on, snapshot

KINDS = {
    "plain": (Conv2d, (3, 5, 3), {}, (2, 3, 6, 7)),
    "stride, padding": (Conv2d, (3, 5, (3, 2)), {"stride": (2, 1), "padding": 1}, (2, 3, 6, 7)),
    "dilation": (Conv2d, (3, 5, (2, 3)), {"dilation": 2, "padding": (1, 2)}, (2, 3, 6, 7)),
    "same": (Conv2d, (3, 5, (2, 3)), {"padding": "same", "bias": False}, (2, 3, 4, 5)),
    "one pixel": (Conv2d, (3, 5, 1), {"stride": 2}, (2, 3, 4, 5)),
    "one image": (Conv2d, (3, 5, 3), {}, (3, 4, 5)),
    "sequence": (Conv1d, (3, 5, 3), {"stride": 2, "padding": 1}, (2, 3, 7)),
    "one sequence": (Conv1d, (3, 5, 3), {"padding": "same", "bias": False}, (3, 7)),
}


@pytest.fixture(params=KINDS)
def conv(request, rng):
    """A model of one convolution in float64, and an input."""
    return one_convolution(*KINDS[request.param], rng)


CONVOLUTIONS = ["first", "point", "line"]


def images(rng, dtype=np.float32):
    return rng.standard_normal((2, 3, 7, 6)).astype(dtype)


def out(model, x):
    with mg.no_grad():
        return model(mg.tensor(x)).data.copy()


def with_filters(layer, filters):
    """The same convolution with other filters."""
    made = copy.deepcopy(layer)
    made.weight.data = filters
    return made


def new_filters(layer, adapter, scale):
    """W + s B A, as filters."""
    product = (adapter.lora_b.data @ adapter.lora_a.data).reshape(layer.weight.shape)
    return layer.weight.data + scale * product


# ----------------------------------------------------------------------------------------------
# What is computed
# ----------------------------------------------------------------------------------------------


def test_the_first_output_is_that_of_the_base_to_the_bit(conv, rng):
    model, x = conv
    before = out(model, x)
    lora.attach(model, LoRAConfig(rank=2, targets=["0"]), rng=rng)
    assert isinstance(model[0], LoRAConv)
    assert np.array_equal(out(model, x), before)


@pytest.mark.parametrize(("scaling", "scale"), [("standard", 3.0), ("rslora", 6 / 2**0.5)])
def test_it_is_the_convolution_with_new_filters(conv, rng, scaling, scale):
    model, x = conv
    layer = model[0]
    put_on(model, "default", rng, targets=["0"], alpha=6, scaling=scaling)
    (adapter,) = model[0].adapters.values()
    right = with_filters(layer, new_filters(layer, adapter, scale))
    assert np.allclose(out(model, x), out(right, x), rtol=1e-12, atol=1e-12)
    assert not np.allclose(out(model, x), out(layer, x), rtol=1e-2)


def test_gradients_are_those_of_the_new_filters_and_none_reach_the_base(conv, rng):
    model, x = conv
    layer = model[0]
    put_on(model, "default", rng, targets=["0"], alpha=6)
    adapted, there, here = model[0], mg.tensor(x, requires_grad=True), mg.tensor(x)
    here.requires_grad_()
    right = with_filters(layer, new_filters(layer, adapted.adapter, 3.0))
    right.weight.requires_grad_()
    cotangent = mg.tensor(rng.standard_normal(out(model, x).shape))
    adapted.base_weight.requires_grad_()  # whatever flag it has
    (model(here) * cotangent).sum().backward()
    (right(there) * cotangent).sum().backward()
    dw = right.weight.grad.data.reshape(5, -1)
    a, b = adapted.lora_a, adapted.lora_b
    for found, wanted in (
        (a.grad, 3.0 * b.data.T @ dw),
        (b.grad, 3.0 * dw @ a.data.T),
        (here.grad, there.grad.data),
    ):
        assert np.allclose(found.data, wanted, rtol=1e-10, atol=1e-12)
    assert adapted.base_weight.grad is None
    assert adapted.bias is None or adapted.bias.grad is None


def test_dora_scales_each_filter_to_its_magnitude(conv, rng):
    model, x = conv
    layer = model[0]
    put_on(model, "default", rng, targets=["0"], alpha=6, use_dora=True)
    adapter = model[0].adapter
    filters = new_filters(layer, adapter, 3.0)
    norms = np.sqrt((filters.reshape(5, -1) ** 2).sum(axis=1))
    ratio = (adapter.lora_magnitude.data / norms).reshape(5, *[1] * (filters.ndim - 1))
    right = with_filters(layer, ratio * filters)
    assert np.allclose(out(model, x), out(right, x), rtol=1e-10, atol=1e-10)


def test_several_adapters_add_up(conv, rng):
    model, x = conv
    base = out(model, x)
    put_on(model, "a", rng, targets=["0"], use_dora=True)
    with_a = out(model, x)
    put_on(model, "b", rng, targets=["0"])
    with_b = out(model, x)
    lora.switch(model, "a", "b")
    assert np.allclose(out(model, x) - base, with_a + with_b - 2 * base, rtol=1e-9, atol=1e-9)


def test_filters_that_are_scattered_in_memory_are_never_out_of_date(conv, rng):
    model, x = conv
    layer = model[0]
    layer.weight.data = np.asfortranarray(layer.weight.data)
    put_on(model, "default", rng, targets=["0"], alpha=6, use_dora=True)
    out(model, x)
    layer.weight.copy_(rng.standard_normal(layer.weight.shape))
    assert np.allclose(out(model, x), out(lora.fold(copy.deepcopy(model)), x), rtol=1e-9)
    layer.weight.data = np.ascontiguousarray(layer.weight.data)
    right = out(model, x)
    layer.weight.data = np.asfortranarray(layer.weight.data)
    assert np.allclose(out(model, x), right, rtol=1e-9)


@pytest.mark.parametrize("use_dora", [False, True])
def test_dropout_drops_elements_of_the_input_of_the_update(conv, rng, use_dora):
    model, x = conv
    base = out(model, x)
    put_on(model, "default", rng, targets=["0"], dropout=0.4, use_dora=use_dora)
    layer = model[0]
    layer.rng = np.random.default_rng(3)
    found = out(model, x)
    left = mg.dropout(mg.tensor(x), 0.4, rng=np.random.default_rng(3)).data
    layer.eval()
    change = out(model, left)
    with lora.disabled(model):
        change -= out(model, left)
    wanted = base + change
    assert np.allclose(found, wanted, rtol=1e-10, atol=1e-10)
    assert not np.allclose(found, out(model, x), rtol=1e-2)


# ----------------------------------------------------------------------------------------------
# What is done to a model
# ----------------------------------------------------------------------------------------------


def test_merge_unmerge_fold_disabled_and_detach(conv, rng):
    model, x = conv
    before, base, layer = snapshot(model), out(model, x), model[0]
    put_on(model, "default", rng, targets=["0"])
    adapted = out(model, x)
    with lora.disabled(model):
        assert np.array_equal(out(model, x), base)
    lora.merge(model)
    merged = out(model, x)
    assert np.allclose(merged, adapted, rtol=1e-11, atol=1e-11)
    folded = lora.fold(copy.deepcopy(model))
    assert np.array_equal(out(folded, x), merged)
    assert type(folded[0]) is type(layer)
    assert folded[0].extra_repr() == layer.extra_repr()
    assert folded[0].weight.shape == layer.weight.shape
    lora.unmerge(model)
    assert np.array_equal(out(model, x), adapted)
    lora.detach(model)
    assert snapshot(model) == before


def test_the_report_says_what_the_layers_are(rng):
    net = ConvNet(rng)
    report = lora.attach(net, LoRAConfig(rank=2, targets=[*CONVOLUTIONS, "head"]), rng=rng)
    assert report.names == [*CONVOLUTIONS, "head"]
    assert [(m.d_in, m.d_out, m.added) for m in report.matches[:3]] == [
        (18, 6, 48),
        (6, 4, 20),
        (12, 5, 34),
    ]
    assert [m.note for m in report.matches] == [
        "kernel_size=(3, 2), stride=(2, 2), padding=(1, 1)",
        "kernel_size=(1, 1)",
        "kernel_size=(3,), padding=same",
        "",
    ]
    assert "LoRAConv(6, 4, kernel_size=(1, 1), rank=2, alpha=16, scale=8)" in repr(net)


def test_all_linear_leaves_convolutions_out(rng):
    net = ConvNet(rng)
    report = lora.attach(net, LoRAConfig(rank=1), rng=rng)
    assert report.names == ["head"]


def test_the_error_about_a_name_that_matches_nothing_lists_those_that_exist(rng):
    with pytest.raises(ValueError, match=r"'frist'.*first"):
        lora.attach(ConvNet(rng), LoRAConfig(rank=1, targets=["frist"]))


def test_a_rank_above_those_of_the_matrix_of_filters_is_refused(rng):
    conv = Conv2d(2, 16, 3, rng=rng)
    lora.attach(Sequential(conv), LoRAConfig(rank=16, targets=["0"]))
    with pytest.raises(ValueError, match=r"0: rank 17 is larger than min\(d_out, d_in\) = 16"):
        lora.attach(Sequential(conv), LoRAConfig(rank=17, targets=["0"]))


def test_a_model_that_is_a_convolution_itself_is_refused(rng):
    with pytest.raises(ValueError, match="a single Conv1d, which has no parent"):
        lora.attach(Conv1d(2, 3, 2, rng=rng), LoRAConfig(rank=1, targets=["0"]))


def test_the_certificate_bounds_what_merging_changes(rng):
    model = Sequential(Conv2d(3, 5, 3, padding=1, rng=rng))
    put_on(model, "default", rng, targets=["0"])
    x = rng.standard_normal((1, 3, 6, 6)).astype(np.float32)
    before = out(model, x).astype(np.float64)
    patch = np.sqrt((x.astype(np.float64) ** 2).sum())  # no patch is larger than the image
    certificate = lora.merge(model, dtypes="float32", radius=float(patch))
    change = np.sqrt(((out(model, x) - before) ** 2).sum(axis=1)).max()
    assert 0 < change <= certificate.of("0", "float32").bound


def test_verify_says_which_layers_it_cannot_tell_of_and_liveness_that_they_train(rng):
    net = ConvNet(rng)
    put_on(net, "default", rng, targets=CONVOLUTIONS)
    batch = mg.tensor(images(rng)), mg.tensor(np.zeros((2, 2), np.float32))
    report = lora.verify(net, mg.mse, batch)
    assert [(check.layer, check.verdict) for check in report.checks] == [
        (name, "cannot tell") for name in CONVOLUTIONS
    ]
    assert "convolutions" in report.checks[0].note
    found = mg.liveness(net, mg.mse, batch)
    assert [(row.name, row.verdict) for row in found.adapters] == [
        (name, "trains") for name in CONVOLUTIONS
    ]


def test_a_sum_of_adapters_is_an_adapter(rng):
    net, x = ConvNet(rng, np.float64), images(rng, np.float64)
    for name in ("a", "b"):
        put_on(net, name, rng, targets=["line"])
    lora.combine(net, ["a", "b"], [1.0, 1.0], "sum")
    lora.switch(net, "a", "b")
    both = out(net, x)
    lora.switch(net, "sum")
    assert np.allclose(out(net, x), both, rtol=1e-12)


def test_the_difference_of_two_models_becomes_an_adapter(rng):
    base, x = ConvNet(rng, np.float64), images(rng, np.float64)
    tuned = copy.deepcopy(base)
    for layer in (tuned.first, tuned.line):
        layer.weight.data = layer.weight.data + rng.standard_normal(layer.weight.shape)
    report = lora.extract(base, tuned, 6, targets=CONVOLUTIONS, progress=False)
    assert {row.name: row.rank for row in report.layers} == {"first": 6, "point": 0, "line": 5}
    assert lora.adapters(base)["default"].rank_pattern == {"^line": 5}
    assert np.allclose(out(base, x), out(tuned, x), rtol=1e-10)


# ----------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------

OPTIONS = {
    "LoRA": {},
    "rsLoRA, a pattern": {"scaling": "rslora", "rank_pattern": {"first": 3}},
    "DoRA, biases": {"use_dora": True, "bias": "lora_only"},
    "PiSSA": {"init": "pissa"},
}


@pytest.fixture(params=OPTIONS)
def saved(request, rng, tmp_path):
    """A net, the same with an adapter, and the folder of the adapter."""
    net = ConvNet(rng)
    adapted = copy.deepcopy(net)
    options = {"targets": [*CONVOLUTIONS, "head"], **OPTIONS[request.param]}
    put_on(adapted, "default", rng, 0.1, **options)
    lora.save(adapted, tmp_path / "adapter", progress=False)
    return net, adapted, tmp_path / "adapter"


without_options = pytest.mark.parametrize("saved", ["LoRA"], indirect=True)


def tensors_of(folder):
    return load_state(folder / "adapter_model.safetensors")[0]


def test_what_was_saved_is_loaded_with_equal_outputs(saved, rng):
    net, adapted, folder = saved
    x = images(rng)
    lora.load(net, folder, progress=False)
    wanted = out(adapted, x)
    assert np.abs(out(net, x) - wanted).max() <= 1e-6 * np.abs(wanted).max()


def test_files_have_filters_as_peft_has_them(rng, tmp_path):
    net = ConvNet(rng)
    put_on(net, "default", rng, targets=["first", "line"], use_dora=True)
    lora.save(net, tmp_path)
    assert {key.removeprefix(PREFIX): each.shape for key, each in tensors_of(tmp_path).items()} == {
        "first.lora_A.weight": (2, 3, 3, 2),
        "first.lora_B.weight": (6, 2, 1, 1),
        "first.lora_magnitude_vector": (1, 6, 1, 1),
        "line.lora_A.weight": (2, 4, 3),
        "line.lora_B.weight": (5, 2, 1),
        "line.lora_magnitude_vector": (1, 5, 1),
    }


@without_options
def test_filters_of_another_shape_are_refused(saved, rng):
    net, _, folder = saved
    net.first = Conv2d(3, 6, (2, 3), stride=2, padding=1, rng=rng)  # of as many elements
    before = snapshot(net)
    with pytest.raises(ValueError, match=r"mis-shaped: .*first.lora_A.weight is \(\d, 3, 3, 2\)"):
        lora.load(net, folder)
    assert snapshot(net) == before


def test_a_file_of_peft_for_a_dilated_convolution_is_refused(rng, tmp_path):
    model = Sequential(Conv2d(3, 4, 3, padding="same", dilation=2, rng=rng))
    base = copy.deepcopy(model)
    put_on(model, "default", rng, targets=["0"])
    lora.save(model, tmp_path)
    x = images(rng)
    lora.load(other := copy.deepcopy(base), tmp_path)
    assert np.array_equal(out(other, x), out(model, x))
    path = tmp_path / "adapter_model.safetensors"
    save_state(path, load_state(path)[0], {"format": "pt"})  # without what we note in it
    with pytest.raises(ValueError, match=r"dilated: 0 is a convolution with dilation=\(2, 2\)"):
        lora.load(base, tmp_path)


def test_filters_of_three_dimensions_are_merged_in_files(rng, tmp_path):
    w, a = rng.standard_normal((6, 2, 1, 2, 3)), rng.standard_normal((4, 2, 1, 2, 3))
    b = rng.standard_normal((6, 4, 1, 1, 1))
    base, key = tmp_path / "base.safetensors", "base_model.model.conv.lora_{}.weight"
    save_state(base, {"conv.weight": w, "conv.bias": w[:, 0, 0, 0, 0].copy()}, {})
    config = PeftConfig(("conv",), r=4, lora_alpha=2)
    tensors = {key.format("A"): a, key.format("B"): b}
    write_folder(tmp_path / "adapter", config, tensors, Facts())
    merge_files(base, tmp_path / "adapter", tmp_path / "out.safetensors", progress=False)
    found = load_state(tmp_path / "out.safetensors")[0]["conv.weight"]
    wanted = w + 0.5 * np.einsum("or,rcdhw->ocdhw", b[:, :, 0, 0, 0], a)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert check_adapter(tmp_path / "adapter", base, tmp_path / "out.safetensors").is_right


def test_a_merged_file_is_the_folded_model_to_the_bit(saved, tmp_path):
    net, _, folder = saved
    base = base_of(net, tmp_path / "base")
    merged = merge_files(base, folder, tmp_path / "out", progress=False)
    lora.load(net, folder, progress=False)
    right = lora.fold(net).state_dict()
    found = load_state(tmp_path / "out" / "model.safetensors")[0]
    assert {key: (x.shape, x.tobytes()) for key, x in found.items()} == {
        key: (x.shape, x.tobytes()) for key, x in right.items()
    }
    assert set(merged.certificate.layers) == {*CONVOLUTIONS, "head"}
    findings = check_adapter(folder, base, tmp_path / "out", progress=False)
    assert findings.is_right
    assert len(findings.merged) == 4


@without_options
def test_a_merge_from_the_command_line(saved, tmp_path, capsys):
    net, _, folder = saved
    base = base_of(net, tmp_path / "base")
    assert not main(["merge", str(base), str(folder), str(tmp_path / "out")])
    assert "first" in capsys.readouterr().out
    lora.load(net, folder, progress=False)
    found = load_state(tmp_path / "out" / "model.safetensors")[0]
    assert np.array_equal(found["line.weight"], lora.fold(net).line.weight.data)


@without_options
def test_a_base_with_filters_of_another_shape_is_refused(saved, rng, tmp_path):
    net, _, folder = saved
    net.first = Conv2d(3, 6, (2, 3), rng=rng)
    base = base_of(net, tmp_path / "base")
    with pytest.raises(ValueError, match=r"mis-shaped: A \(\d, 3, 3, 2\).*first.weight"):
        merge_files(base, folder, tmp_path / "out", progress=False)


@without_options
def test_a_matrix_is_no_update_of_filters(saved, tmp_path):
    net, _, folder = saved
    base = base_of(net, tmp_path / "base")

    def flatten(arrays):
        for key in list(arrays):
            if ".point." in key:
                arrays[key] = arrays[key].reshape([n for n in arrays[key].shape if n > 1])

    edit(folder / "adapter_model.safetensors", flatten)
    with pytest.raises(ValueError, match=r"mis-shaped: A \(\d, 6\) .* point.weight \(4, 6, 1, 1\)"):
        merge_files(base, folder, tmp_path / "out", progress=False)


def test_a_summary_tells_convolutions_from_linear_layers(saved):
    _, adapted, folder = saved
    rows = {row.name: row for row in summarise(folder).layers}
    assert {name: row.kind.partition(",")[0] for name, row in rows.items()} == {
        **dict.fromkeys(CONVOLUTIONS, "convolution"),
        "head": "linear",
    }
    for name, layer in layers_of(adapted).items():
        assert (rows[name].d_in, rows[name].d_out) == (layer.d_in, layer.d_out)
        a, b = layer.adapter.exact_factors()
        norm = abs(layer.scale) * np.linalg.norm(b @ a)
        assert rows[name].norm == pytest.approx(norm, rel=1e-5)
