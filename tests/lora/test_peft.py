"""Adapters in files: what PEFT wrote, there and back, and everything that may be wrong with them.

The folders in `fixtures/peft` were written by PEFT, by `tests.fixtures.make_peft`.
"""

import copy
import errno
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lora
import minigrad as mg
from lora import LoRAConfig
from lora.attachment.state import attachment_of
from lora.offline import check_adapter, merge_files, summarise
from lora.patterns import exact
from lora.peft import (
    CONFIG,
    WEIGHTS,
    AdapterFolder,
    Facts,
    PeftConfig,
    fingerprint,
    read_config,
    write_folder,
)
from lora.peft.facts import KEY
from minigrad import nn
from minigrad.io import TensorFile, load_state
from minigrad.kernels.bfloat16 import BFloat16Matrix
from tests.lora.folders import (
    FOLDERS,
    KINDS,
    PREFIX,
    RESULTS,
    TOLERANCE,
    adapted,
    base_of,
    config_of,
    configure,
    edit,
    inputs,
    model_of,
    moved,
    output,
    relative,
    two_adapters,
)
from tests.lora.models import TiedNet, batch_normed, with_own_statistics
from tests.minigrad.io.full_disk import full_disk
from tests.minigrad.io.test_tensors import mutated


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def state(model):
    """Everything about a model that a load might change."""
    values = {name: p.data.tobytes() for name, p in model.named_parameters()}
    flags = [p.requires_grad for p in model.parameters()]
    return values, flags, [id(module) for module in model.modules()], repr(model)


@pytest.fixture
def theirs(tmp_path):
    """A copy of a folder of PEFT's."""

    def copied(name):
        return Path(shutil.copytree(FOLDERS / name, tmp_path / name))

    return copied


@pytest.fixture
def saved(tmp_path):
    """A folder of ours."""
    folder = tmp_path / "saved"
    lora.save(adapted(rng=np.random.default_rng(0)), folder)
    return folder


# ----------------------------------------------------------------------------------------------
# What PEFT wrote
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_what_peft_wrote_computes_here_what_it_did_there(name):
    wanted = RESULTS[f"{name}; output"]
    dtype = wanted.dtype.name
    model = model_of(KINDS[name], dtype)
    bare = output(model, KINDS[name], dtype)
    lora.load(model, FOLDERS / name)
    got = output(model, KINDS[name], dtype)
    # PEFT takes its singular vectors off the base in float32, with the rounding of that.
    limit = 3e-6 if name == "pissa" else TOLERANCE[dtype]
    assert relative(got, wanted) <= limit
    assert relative(bare, wanted) > 1e-3
    with lora.disabled(model):
        assert np.array_equal(output(model, KINDS[name], dtype), bare)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", KINDS)
def test_what_peft_wrote_is_saved_again_with_equal_outputs(name, tmp_path):
    dtype = RESULTS[f"{name}; output"].dtype.name
    model = model_of(KINDS[name], dtype)
    lora.load(model, FOLDERS / name)
    lora.save(model, tmp_path / "again")
    other = model_of(KINDS[name], dtype)
    lora.load(other, tmp_path / "again")
    found, wanted = (output(m, KINDS[name], dtype) for m in (other, model))
    assert relative(found, wanted) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("pissa")])
def test_the_keys_and_the_fields_are_those_of_peft(name, tmp_path):
    model = model_of(KINDS[name], RESULTS[f"{name}; output"].dtype.name)
    lora.load(model, FOLDERS / name)
    lora.save(model, tmp_path)
    with TensorFile(tmp_path / WEIGHTS) as ours, TensorFile(FOLDERS / name / WEIGHTS) as peft:
        repeated = {k for k in peft if ".modules_to_save." in k or ".original_module." in k}
        assert set(ours) == set(peft) - repeated
        assert all(ours.info(key).shape == peft.info(key).shape for key in ours)
    mine, its = config_of(tmp_path), config_of(FOLDERS / name)
    assert set(mine) <= set(its)
    for key in ("peft_type", "r", "lora_alpha", "bias", "use_rslora", "use_dora", "rank_pattern"):
        assert mine[key] == its[key], key


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_layers_without_a_bias_have_none_to_load(bias, tmp_path, rng):
    make = lambda: nn.Sequential(nn.Linear(4, 4, bias=False, rng=rng), nn.Linear(4, 4, rng=rng))
    model = make()
    lora.attach(model, LoRAConfig(rank=2, targets=["0"], bias="all" if bias == "all" else "none"))
    moved(model, rng, 0.2)
    lora.save(model, tmp_path)
    configure(tmp_path, bias=bias)  # as PEFT writes it, whether there are some or not
    again = make()
    again.load_state_dict(lora.detach(copy.deepcopy(model)).state_dict())
    lora.load(again, tmp_path)
    x = mg.tensor(rng.standard_normal((3, 4)).astype(np.float32))
    np.testing.assert_array_equal(again(x).data, model(x).data)


def test_a_rank_that_a_layer_cannot_have_is_taken_and_reported(theirs):
    folder = theirs("linear")
    model = model_of("mlp")

    def widen(arrays):
        for key, array in arrays.items():
            arrays[key] = np.concatenate([array] * 3, axis=0 if "lora_A" in key else 1)

    edit(folder / WEIGHTS, widen)
    configure(folder, r=9, lora_alpha=6)
    report = lora.load(model, folder)
    notes = {match.name: match.note for match in report.matches}
    assert notes["layers.2"] == "rank above min(d_out, d_in) = 3"
    assert relative(output(model), RESULTS["linear; output"]) < 1e-6


def test_base_weights_that_peft_wrote_beside_an_embedding_must_be_those_of_the_model(theirs):
    folder = theirs("embedding")
    key = "base_model.model.embedding.base_layer.weight"
    edit(folder / WEIGHTS, lambda a: a.update({key: RESULTS["classifier; embedding.weight"]}))
    model = model_of("classifier")
    lora.load(model, folder)
    assert relative(output(model, "classifier"), RESULTS["embedding; output"]) < 1e-6
    edit(folder / WEIGHTS, lambda a: a.update({key: a[key] + 1}))
    with pytest.raises(ValueError, match=f"another base: {key}"):
        lora.load(model_of("classifier"), folder)


def test_a_head_that_peft_wrote_beside_updates_of_others_must_be_that_of_the_model(theirs):
    # With save_embedding_layers, which it sets itself if a vocabulary has grown.
    folder, model = theirs("names_in_vain"), model_of("transformer")
    key, weight = "base_model.model.head.weight", model.head.weight.data
    edit(folder / WEIGHTS, lambda arrays: arrays.update({key: weight}))
    lora.load(model, folder)
    assert relative(output(model, "transformer"), RESULTS["names_in_vain; output"]) < 1e-6
    beside = model_of("transformer")
    lora.attach(
        beside, LoRAConfig(rank=1, targets=["q_proj"], modules_to_save=["head"]), adapter="a"
    )
    beside.head.weight.copy_(2 * weight)
    lora.load(beside, folder)  # the weight of the base, and not the one that the other trains
    assert relative(output(beside, "transformer"), RESULTS["names_in_vain; output"]) < 1e-6
    for other in (weight + 1, weight[:1], weight.astype(int)):
        edit(folder / WEIGHTS, lambda arrays, other=other: arrays.update({key: other}))
        with pytest.raises(ValueError, match=f"another base: {key}"):
            lora.load(model_of("transformer"), folder)


class Headed(nn.Module):
    def __init__(self, rng):
        self.body = nn.Linear(4, 4, rng=rng)
        self.head = nn.Sequential(nn.Linear(4, 4, rng=rng), nn.ReLU(), nn.Linear(4, 3, rng=rng))

    def forward(self, x):
        return self.head(self.body(x))


def test_biases_that_peft_repeats_in_a_container_trained_in_full_are_passed_by(tmp_path, rng):
    model = Headed(rng)
    fresh = copy.deepcopy(model)
    config = LoRAConfig(rank=2, targets=["body"], bias="all", modules_to_save=["head"])
    lora.attach(model, config)
    moved(model, rng, 0.2)
    lora.save(model, tmp_path)

    def repeat(arrays):
        for i in (0, 2):
            own = arrays[f"{PREFIX}head.{i}.bias"]
            arrays[f"{PREFIX}head.modules_to_save.default.{i}.bias"] = own
            arrays[f"{PREFIX}head.original_module.{i}.bias"] = own + 1

    edit(tmp_path / WEIGHTS, repeat)
    with AdapterFolder(tmp_path) as files:
        assert len(files.repeated) == 4
        assert set(files.whole) == {f"head.{i}.{n}" for i in (0, 2) for n in ("weight", "bias")} | {
            "body.bias"
        }
    lora.load(fresh, tmp_path)
    x = mg.tensor(rng.standard_normal((3, 4)).astype(np.float32))
    np.testing.assert_array_equal(fresh(x).data, model(x).data)


def test_tables_in_full_that_peft_repeats_are_passed_by(tmp_path, rng):
    net = TiedNet(rng, np.float32)
    net.head = nn.Linear(5, 7, bias=False, rng=rng)
    fresh = copy.deepcopy(net)
    base = base_of(net, tmp_path / "base")
    lora.attach(net, LoRAConfig(rank=2, targets=["head"], modules_to_save=["table"]))
    moved(net, rng, 0.2)
    lora.save(net, tmp_path / "adapter")
    wanted = merge_files(base, tmp_path / "adapter", tmp_path / "a").path

    def repeat(arrays):  # as with save_embedding_layers=True
        own = arrays[f"{PREFIX}table.weight"]
        arrays[f"{PREFIX}table.modules_to_save.weight"] = own
        arrays[f"{PREFIX}table.original_module.weight"] = fresh.table.weight.data

    edit(tmp_path / "adapter" / WEIGHTS, repeat)
    lora.load(fresh, tmp_path / "adapter")
    tokens = np.arange(7)
    np.testing.assert_array_equal(fresh(tokens).data, net(tokens).data)
    found = merge_files(base, tmp_path / "adapter", tmp_path / "b").path
    files = [load_file(path / "model.safetensors") for path in (wanted, found)]
    assert files[0].keys() == files[1].keys() == {"table.weight", "head.weight"}
    assert all(np.array_equal(files[0][name], files[1][name]) for name in files[0])
    assert not check_adapter(tmp_path / "adapter", base, found).findings


@pytest.mark.parametrize("name", ["all_biases_and_a_module", "bias_of_layers"])
def test_biases_may_have_the_keys_that_they_had_before_peft_0_6(name, theirs, tmp_path):
    folder, model = theirs(name), model_of(KINDS[name])
    older = lambda arrays: {key.replace(".base_layer.", "."): x for key, x in arrays.items()}
    edit(folder / WEIGHTS, older)
    lora.load(model, folder)
    assert relative(output(model, KINDS[name]), RESULTS[f"{name}; output"]) <= 1e-6
    lora.save(model, tmp_path / "again")
    assert any(".base_layer.bias" in key for key in load_file(tmp_path / "again" / WEIGHTS))


# ----------------------------------------------------------------------------------------------
# There and back
# ----------------------------------------------------------------------------------------------

OPTIONS = {
    "plain": {},
    "rslora": {"scaling": "rslora", "init": "kaiming"},
    "dora": {"use_dora": True, "dora_norm_gradient": True},
    "pissa": {"init": "pissa"},
    "dora of pissa": {"init": "pissa_niter_3", "use_dora": True},
    "orthogonal": {"init": "orthogonal", "rank": 4},
    "expression": {"targets": r"layers\.[02]"},
    "ends": {"targets": ["1", "2"]},
    "all linear": {"targets": "all-linear"},
    "excluded": {"targets": "all-linear", "exclude": ["layers.2"]},
    "index": {"targets": "all-linear", "layers_to_transform": [0, 2]},
    "patterns": {"rank_pattern": {"0": 1}, "alpha_pattern": {r"layers\.1": 0.7}},
    "biases": {"bias": "lora_only"},
    "all biases": {"bias": "all", "modules_to_save": ["2"]},
    "dropout": {"dropout": 0.25},
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_is_saved_loads_with_the_same_outputs(options, dtype, tmp_path):
    model = adapted(dtype=dtype, **options)
    model.eval()
    lora.save(model, tmp_path)
    other = model_of("mlp", dtype).eval()
    report = lora.load(other, tmp_path)
    assert lora.active(other) == (report.adapter,) == ("default",)
    assert relative(output(other, dtype=dtype), output(model, dtype=dtype)) <= TOLERANCE[dtype]
    twice = tmp_path / "twice"
    lora.save(other, twice)
    assert load_file(twice / WEIGHTS).keys() == load_file(tmp_path / WEIGHTS).keys()
    for key, array in load_file(tmp_path / WEIGHTS).items():
        assert load_file(twice / WEIGHTS)[key].tobytes() == array.tobytes()
    assert config_of(twice) == config_of(tmp_path)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_running_statistics_are_saved_with_the_module_that_is_trained_in_full(dtype, rng, tmp_path):
    model, other = with_own_statistics(rng), batch_normed().eval()
    lora.save(model, tmp_path, dtype=dtype)
    count = load_state(tmp_path / WEIGHTS)[0]["base_model.model.1.num_batches_tracked"]
    assert (count.dtype, count.shape, int(count)) == (np.int64, (), 3)
    assert check_adapter(tmp_path).is_right
    lora.load(other, tmp_path)
    assert other[1].num_batches_tracked == 3
    x = rng.standard_normal((6, 4))
    assert relative(other(x).data, model(x).data) <= (1e-12 if dtype is None else 0.02)
    assert np.array_equal(lora.detach(other)(x).data, lora.detach(model)(x).data)


def test_running_statistics_that_are_missing_or_of_another_dtype_are_refused(rng, tmp_path):
    lora.save(with_own_statistics(rng), tmp_path)
    mean, count = (f"base_model.model.1.{n}" for n in ("running_mean", "num_batches_tracked"))

    def spoil(arrays):
        arrays[count] = np.ones(())
        del arrays[mean]

    edit(tmp_path / WEIGHTS, spoil)
    with pytest.raises(ValueError, match="nothing was changed") as error:
        lora.load(batch_normed(), tmp_path)
    assert f"missing: {mean} (3,)" in str(error.value)
    assert f"unusable: {count} has dtype float64, not int64" in str(error.value)


def test_everything_about_an_adapter_comes_back(tmp_path):
    options = {"use_dora": True, "dora_norm_gradient": True, "dropout": 0.25, "scaling": "rslora"}
    model = adapted(rng=np.random.default_rng(77), **options)
    lora.save(model, tmp_path)
    other = model_of("mlp")
    lora.load(other, tmp_path)
    for a, b in zip(model.layers[:2], other.layers[:2], strict=True):
        ours, its = a.adapter, b.adapter
        for part in ("lora_a", "lora_b", "lora_magnitude"):
            assert getattr(ours, part).data.tobytes() == getattr(its, part).data.tobytes()
            assert getattr(its, part).requires_grad
        for fact in ("scale", "scaling", "dropout", "alpha", "rank", "dora_norm_gradient"):
            assert getattr(ours, fact) == getattr(its, fact), fact
    assert [p.requires_grad for p in model.parameters()] == [
        p.requires_grad for p in other.parameters()
    ]


def test_a_loaded_adapter_trains_on_as_the_one_that_was_saved(tmp_path):
    def step(model):
        optimizer = mg.optim.Adam(model.trainable_parameters(), lr=0.01)
        loss = mg.mse(model(mg.tensor(inputs("mlp"))), np.ones((len(inputs("mlp")), 3), np.float32))
        loss.backward()
        optimizer.step()
        return output(model)

    model, other = adapted(bias="lora_only"), model_of("mlp")
    lora.save(model, tmp_path)
    lora.load(other, tmp_path)
    assert np.array_equal(step(model), step(other))


def test_the_patterns_that_were_asked_for_are_kept_where_peft_reads_them_so(tmp_path):
    options = {"targets": ["0", "1"], "rank_pattern": {"layers.1": 2}, "alpha_pattern": {"0": 3.0}}
    lora.save(adapted(**options), tmp_path)
    found = config_of(tmp_path)
    assert found["target_modules"] == ["0", "1"]
    assert (found["r"], found["rank_pattern"]) == (3, {"layers.1": 2})
    assert (found["lora_alpha"], found["alpha_pattern"]) == (6, {"0": 3})


def test_names_that_would_find_more_are_saved_as_an_expression(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    fresh = copy.deepcopy(model)
    lora.attach(model, LoRAConfig(rank=2, targets=["0"], exclude=["1.0"]))
    moved(model, np.random.default_rng(0), 0.2)
    x = mg.randn(3, 4)
    lora.save(model, tmp_path)
    assert config_of(tmp_path)["target_modules"] == ["0"]  # exclude says it
    lora.detach(model)
    lora.attach(model, LoRAConfig(rank=2, targets=r"0"))
    lora.save(model, tmp_path)
    assert config_of(tmp_path)["target_modules"] == "0"
    lora.detach(model)
    lora.attach(model, LoRAConfig(rank=2, targets="all-linear", layers_to_transform=0))
    moved(model, np.random.default_rng(0), 0.2)
    lora.save(model, tmp_path)
    assert lora.load(fresh, tmp_path).names == ["0"]
    assert np.array_equal(fresh(x).data, model(x).data)
    assert config_of(tmp_path)["target_modules"] == "(0)"


def test_an_expression_that_finds_a_list_of_modules_is_not_kept(tmp_path):
    # In PyTorch, such a list is a module, and PEFT has no adapter for it.
    layers = [f"layers.{i}" for i in range(3)]
    lora.save(adapted(targets=r"layers.*"), tmp_path)
    found = read_config(tmp_path / CONFIG).targets_among(["layers", *layers], ())
    assert list(found) == layers
    lora.save(adapted(targets=r"layers\..*"), tmp_path)
    assert config_of(tmp_path)["target_modules"] == r"layers\..*"


def test_attention_is_saved_by_its_projections(tmp_path):
    model = adapted("transformer", targets=["attn"])
    lora.save(model, tmp_path)
    assert config_of(tmp_path)["target_modules"] == [
        f"block.attn.{part}_proj" for part in ("q", "k", "v", "out")
    ]
    other = model_of("transformer")
    lora.load(other, tmp_path)
    assert np.array_equal(output(other, "transformer"), output(model, "transformer"))


@pytest.mark.parametrize("scale", [0.125, 1 / 3, 1e-30, 12345.678, -0.5])
def test_a_scale_that_was_assigned_comes_back(tmp_path, scale):
    model = adapted(rank_pattern={"layers.0": 5})
    model.layers[1].scale = scale
    lora.save(model, tmp_path)
    other = model_of("mlp")
    lora.load(other, tmp_path)
    assert [other.layers[i].scale for i in (0, 1)] == [model.layers[0].scale, abs(scale)]
    assert np.array_equal(output(other), output(model))
    config = read_config(tmp_path / CONFIG)
    assert np.isclose(config.scale_of("layers.1"), abs(scale), rtol=1e-15, atol=0)


def test_a_scale_that_alpha_gives_but_for_rounding_comes_back_to_the_bit(tmp_path, rng):
    scale = next(s for s in rng.random(1000) if s * 3 / 3 != s)
    model = adapted()
    model.layers[0].scale = float(scale)
    lora.save(model, tmp_path)
    other = model_of("mlp")
    lora.load(other, tmp_path)
    assert other.layers[0].scale == scale != read_config(tmp_path / CONFIG).scale_of("layers.0")


def test_patterns_that_peft_would_sort_into_another_meaning_are_written_out(tmp_path):
    # Of patterns that match, the first counts; PEFT sorts them when it saves a folder again.
    lora.save(adapted(targets=["0", "1", "2"], rank_pattern={"layers.1": 2, "[12]": 1}), tmp_path)
    config = read_config(tmp_path / CONFIG)
    assert list(config.rank_pattern) == sorted(config.rank_pattern)
    assert [config.rank_of(f"layers.{i}") for i in range(3)] == [3, 2, 1]


def test_the_configuration_of_a_loaded_adapter_means_its_layers_here(theirs):
    folder = theirs("linear")
    # PEFT finds a full name whatever its index is; `attach` does not.
    configure(folder, layers_to_transform=[1])
    model = model_of("mlp")
    assert len(lora.load(model, folder).names) == 3
    config = attachment_of(model).adapters["default"].config
    assert (set(config.targets), config.layers_to_transform) == (
        {"layers.0", "layers.1", "layers.2"},
        None,
    )


def test_ranks_and_scales_of_a_name_are_not_those_of_names_that_end_so(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    fresh = copy.deepcopy(model)
    lora.attach(model, LoRAConfig(rank=2, alpha=4, targets="all-linear"))
    moved(model, np.random.default_rng(0), 0.2)
    model[0].scale = 0.3
    lora.save(model, tmp_path)
    lora.load(fresh, tmp_path)
    assert [layer.scale for layer in (fresh[0], fresh[1][0], fresh[1][1])] == [0.3, 2.0, 2.0]


def test_a_scale_that_no_alpha_gives_is_refused(tmp_path):
    model = adapted()
    model.layers[1].adapter.scale = 0.0
    with pytest.raises(ValueError, match=r"layers\.1: the scale is"):
        lora.save(model, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_sums_of_adapters_are_saved(tmp_path):
    model = adapted(scaling="rslora", bias="lora_only")
    lora.attach(model, LoRAConfig(rank=2, targets=["1", "2"], modules_to_save=()), adapter="b")
    moved(model, np.random.default_rng(3), 0.2)
    lora.combine(model, ["default", "b"], [0.5, -2.0], "sum")
    lora.switch(model, "sum")
    lora.save(model, tmp_path, "sum")
    other = model_of("mlp")
    lora.load(other, tmp_path, "again")
    assert relative(output(other), output(model)) < 1e-6
    assert lora.active(other) == ("again",)


def test_layers_without_a_magnitude_get_one_beside_others_that_have_one(tmp_path):
    model = adapted(targets=["layers.0"], use_dora=True)
    lora.attach(model, LoRAConfig(rank=2, targets=["layers.1"]), adapter="b")
    moved(model, np.random.default_rng(3), 0.2)
    lora.combine(model, ["default", "b"], [1, 1], "both")
    lora.switch(model, "both")
    lora.save(model, tmp_path, "both")
    other = model_of("mlp")
    lora.load(other, tmp_path)
    assert relative(output(other), output(model)) < 1e-6
    assert other.layers[1].lora_magnitude is not None


def test_an_adapter_on_four_bits_is_saved_with_their_hash(tmp_path):
    quantized = model_of("mlp")
    lora.quantize(quantized, ["layers.0"], progress=False)
    fresh = copy.deepcopy(quantized)
    lora.attach(quantized, LoRAConfig(rank=3, targets=["0", "1"]))
    moved(quantized, np.random.default_rng(1), 0.2)
    lora.save(quantized, tmp_path)
    lora.load(fresh, tmp_path)
    assert np.array_equal(output(fresh), output(quantized))
    dense = model_of("mlp")
    with pytest.raises(ValueError, match=r"another base: the weight of layers\.0 .* in nf4 \("):
        lora.load(dense, tmp_path)
    lora.load(dense, tmp_path, check_base=False)
    assert 0 < relative(output(dense), output(quantized)) < 0.5


class Tied(nn.Module):
    def __init__(self, rng):
        self.table = nn.Embedding(7, 5, rng=rng)
        self.up = nn.Linear(5, 5, rng=rng)
        self.head = nn.Linear(5, 7, bias=False, rng=rng)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.up(self.table(x)))


def test_tied_weights_have_an_update_each(tmp_path, rng):
    model = Tied(rng)
    fresh = copy.deepcopy(model)
    lora.attach(model, LoRAConfig(rank=2, targets=["table", "head"]))
    moved(model, rng, 0.2)
    lora.save(model, tmp_path)
    lora.load(fresh, tmp_path)
    x = np.arange(7)
    assert np.array_equal(fresh(mg.tensor(x)).data, model(mg.tensor(x)).data)


def test_a_tied_weight_that_is_trained_in_full_has_all_of_its_names_in_the_file(tmp_path, rng):
    model = Tied(rng)
    fresh = copy.deepcopy(model)
    config = LoRAConfig(rank=2, targets=["up"], modules_to_save=["table", "head"])
    lora.attach(model, config)
    moved(model, rng, 0.2)
    lora.save(model, tmp_path / "active")
    lora.switch(model)
    lora.save(model, tmp_path / "off")
    lora.switch(model, "default")
    keys = [f"base_model.model.{name}.weight" for name in ("table", "head")]
    for name in ("active", "off"):
        stored = load_file(tmp_path / name / WEIGHTS)
        assert all(np.array_equal(stored[key], model.head.weight.data) for key in keys)
        loaded = copy.deepcopy(fresh)
        lora.load(loaded, tmp_path / name)
        assert loaded.head.weight is loaded.table.weight
        x = np.arange(7)
        assert np.array_equal(loaded(mg.tensor(x)).data, model(mg.tensor(x)).data)
    edit(tmp_path / "off" / WEIGHTS, lambda arrays: arrays.update({keys[1]: arrays[keys[1]] + 1}))
    with pytest.raises(ValueError, match=rf"apart: {keys[0]} and {keys[1]} differ"):
        lora.load(fresh, tmp_path / "off", check_base=False)


def test_one_adapter_of_several_is_saved_and_loaded_beside_others(tmp_path):
    model = adapted()
    lora.attach(model, LoRAConfig(rank=2, targets=["2"]), adapter="b")
    moved(model, np.random.default_rng(3), 0.2)
    lora.save(model, tmp_path / "a")
    lora.save(model, tmp_path / "b", "b")
    other = model_of("mlp")
    lora.load(other, tmp_path / "b", "second")
    lora.load(other, tmp_path / "a", "first")
    assert lora.active(other) == ("first",)
    lora.switch(other, "first", "second")
    lora.switch(model, "default", "b")
    assert relative(output(other), output(model)) < 1e-6
    with pytest.raises(ValueError, match="has an adapter 'first' already"):
        lora.load(other, tmp_path / "a", "first")


def test_what_is_merged_or_off_is_saved_as_it_is(tmp_path):
    model = adapted(bias="all")
    wanted = output(model)
    lora.save(model, tmp_path / "plain")
    lora.merge(model)
    lora.save(model, tmp_path / "merged")
    lora.unmerge(model)
    lora.switch(model)
    lora.save(model, tmp_path / "off")
    for name in ("merged", "off"):
        files = [(tmp_path / folder / WEIGHTS).read_bytes() for folder in ("plain", name)]
        assert files[0] == files[1]
    other = model_of("mlp")
    lora.load(other, tmp_path / "off")
    assert np.array_equal(output(other), wanted)


def test_dropouts_that_differ_from_layer_to_layer_come_back(tmp_path):
    model = adapted(dropout=0.5)
    model.layers[1].dropout = 0.125
    lora.save(model, tmp_path)
    other = model_of("mlp")
    lora.load(other, tmp_path)
    assert [other.layers[i].dropout for i in (0, 1)] == [0.5, 0.125]
    assert config_of(tmp_path)["lora_dropout"] == 0.0  # PEFT has one for all
    model.layers[1].dropout = 0.5
    lora.save(model, tmp_path)
    configure(tmp_path, lora_dropout=0.25)  # who changes the configuration means it
    other = model_of("mlp")
    lora.load(other, tmp_path)
    assert [other.layers[i].dropout for i in (0, 1)] == [0.25, 0.25]


# ----------------------------------------------------------------------------------------------
# Dtypes and facts
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors_are_rounded_to_the_dtype_that_is_asked_for(tmp_path, dtype):
    model = adapted()
    lora.save(model, tmp_path, dtype=dtype)
    with AdapterFolder(tmp_path) as files:
        assert {info.dtype for info in files.tensors.values()} == {dtype}
    other = model_of("mlp")
    lora.load(other, tmp_path)
    digits = {"float16": 11, "bfloat16": 8}.get(dtype, 24)
    for name in ("lora_a", "lora_b"):
        found, wanted = (getattr(m.layers[0], name).data for m in (other, model))
        assert np.abs(found - wanted).max() <= 2.0**-digits * np.abs(wanted).max()
        assert np.array_equal(found, wanted) == (dtype not in ("float16", "bfloat16"))


def test_a_dtype_that_is_none_or_too_small_is_refused(tmp_path):
    model = adapted()
    with pytest.raises(ValueError, match="float64, float32, float16, bfloat16, not in 'int8'"):
        lora.save(model, tmp_path / "out", dtype="int8")
    model.layers[0].lora_a = np.full((3, 6), 1e6, np.float32)
    with pytest.raises(ValueError, match=r"lora_A\.weight in float16 would be Inf"):
        lora.save(model, tmp_path / "out", dtype="float16")
    model = adapted()
    lora.save(model, tmp_path / "saved")
    with AdapterFolder(tmp_path / "saved") as saved, pytest.raises(ValueError, match="'int8'"):
        write_folder(tmp_path / "out", saved.config, {}, saved.facts, "int8")
    assert os.listdir(tmp_path) == ["saved"]


def test_the_metadata_say_scale_base_seed_and_version(tmp_path):
    model = adapted(rng=np.random.default_rng(42))
    lora.save(model, tmp_path)
    with AdapterFolder(tmp_path) as files:
        facts = files.facts
        layers = files.layers
    assert load_state(tmp_path / WEIGHTS)[1]["format"] == "pt"
    assert (facts.seed, list(facts.layers)) == (42, ["layers.0", "layers.1"])
    assert facts.version
    assert facts.layers["layers.0"].scale == 2.0 == layers["layers.0"].scale
    assert facts.layers["layers.0"].base == fingerprint(model.layers[0].base_weight.data)
    lora.save(model, tmp_path, seed=7)
    with AdapterFolder(tmp_path) as files:
        assert files.facts.seed == 7


@pytest.mark.parametrize("seed", ["7", -1, True, 1.0, np.float32(2)])
def test_a_seed_that_could_not_be_read_back_is_refused(seed, tmp_path):
    with pytest.raises(ValueError, match="seed must be an integer of at least 0"):
        lora.save(adapted(), tmp_path / "out", seed=seed)
    assert not (tmp_path / "out").exists()
    lora.save(adapted(), tmp_path / "out", seed=np.int64(7))
    with AdapterFolder(tmp_path / "out") as files:
        assert files.facts.seed == 7


def test_an_empty_path_is_not_taken_for_the_present_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="the path is empty; name one"):
        lora.save(adapted(), "")
    assert not any(tmp_path.iterdir())
    lora.save(adapted(), ".")
    assert (tmp_path / CONFIG).is_file()


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
def test_what_is_not_a_folder_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    os.mkfifo(tmp_path / "pipe")
    for path in sorted(tmp_path.iterdir()):
        for folder in (path, path / "in" / "side"):
            message = f"'{path}' is not a folder, and a folder is needed there; name another path"
            with pytest.raises(NotADirectoryError, match=re.escape(message)):
                lora.save(adapted(), folder)


def test_the_seed_of_the_default_generator_is_known_if_it_was_set(tmp_path):
    mg.manual_seed(123)
    model = adapted()
    lora.save(model, tmp_path)
    other = model_of("mlp")
    lora.load(other, tmp_path, rng=np.random.default_rng(5))
    lora.save(other, tmp_path)  # and is that of A, which was drawn long before
    with AdapterFolder(tmp_path) as files:
        assert files.facts.seed == 123


def test_a_fingerprint_is_of_the_numbers_whatever_their_dtype(rng):
    x = rng.standard_normal((300, 7000)).astype(np.float32)
    assert fingerprint(x) == fingerprint(x.astype(np.float64)) == fingerprint(np.asfortranarray(x))
    assert fingerprint(x) != fingerprint(x.T) != fingerprint(x.reshape(7000, 300))
    y = x.astype(np.float64)
    y[299, 6999] += 1e-12
    assert fingerprint(y) != fingerprint(x)
    half = x.astype(np.float16)
    assert fingerprint(half) == fingerprint(half.astype(np.float32))
    import hashlib

    small = np.array([[1.0, 2.0]], np.float32)
    assert fingerprint(small) == hashlib.sha256(b"(1, 2)" + small.tobytes()).hexdigest()


def test_a_base_in_another_dtype_is_the_same_base(saved):
    model = model_of("mlp").astype("float64")
    lora.load(model, saved)
    assert model.layers[0].lora_a.dtype == np.float64


def test_another_base_is_refused_with_every_layer_by_default(saved):
    model = model_of("mlp")
    for layer in model.layers:
        layer.weight.data = layer.weight.data * 1.0001
    before = state(model)
    with pytest.raises(ValueError, match="check_base=False") as error:
        lora.load(model, saved)
    assert str(error.value).count("another base") == 1
    assert "(likewise 1 other layer: layers.1)" in str(error.value)
    assert state(model) == before
    lora.load(model, saved, check_base=False)


def test_a_scale_that_was_lost_is_noticed(saved):
    configure(saved, use_rslora=True)
    with pytest.raises(ValueError, match=r"of layers\.0, the scale is 3.4641 by the configuration"):
        lora.load(model_of("mlp"), saved)


# ----------------------------------------------------------------------------------------------
# Folders that do not fit the model
# ----------------------------------------------------------------------------------------------


def test_all_that_is_missing_unexpected_or_wrong_is_in_one_error(saved):
    keys = sorted(load_file(saved / WEIGHTS))

    def spoil(arrays):
        del arrays[keys[0]]
        arrays[keys[1]] = arrays[keys[1]][:-1]
        arrays[keys[2]] = arrays[keys[2]].astype(np.int32)
        arrays[keys[3]] = np.full_like(arrays[keys[3]], np.nan)
        arrays["base_model.model.layers.7.lora_A.weight"] = np.ones((3, 6), np.float32)
        arrays["something"] = np.ones(1, np.float32)

    edit(saved / WEIGHTS, spoil)
    model = model_of("mlp")
    model.layers[1].weight.data = model.layers[1].weight.data + 1
    before = state(model)
    with pytest.raises(ValueError, match="nothing was changed") as error:
        lora.load(model, saved)
    for line in (
        f"missing: {keys[0]} (3, 6)",
        f"mis-shaped: {keys[1]} is (11, 3) in the file, and (12, 3) by",
        f"unusable: {keys[2]} has dtype int32",
        f"not finite: {keys[3]}",
        "unexpected: base_model.model.layers.7.lora_A.weight (3, 6)",
        "unexpected: something (1,)",
        "another base: the weight of layers.1",
    ):
        assert line in str(error.value)
    assert state(model) == before


def as_of_peft(folder):
    """Take out of a folder what `save` adds to PEFT's format."""
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "net._orig_mod."])
def test_a_prefix_of_all_names_in_the_file_is_named_first(prefix, saved):
    prefixed = lambda key: key.replace(PREFIX, PREFIX + prefix)
    edit(saved / WEIGHTS, lambda arrays: {prefixed(key): x for key, x in arrays.items()})
    as_of_peft(saved)
    rank = config_of(saved)["r"]
    for r in (rank, 1000):  # which no update here can have
        configure(saved, r=r)
        with pytest.raises(ValueError, match=f"was changed:\n  prefix: .* {prefix!r} before"):
            lora.load(model_of("mlp"), saved)
    configure(saved, r=rank)
    without = lambda arrays: {key.replace(prefix, ""): x for key, x in arrays.items()}
    edit(saved / WEIGHTS, lambda arrays: {**arrays, **without(arrays)})
    with pytest.raises(ValueError, match=r"was changed:\n  unexpected: "):  # it has both names
        lora.load(model_of("mlp"), saved)
    edit(saved / WEIGHTS, without)
    lora.load(model_of("mlp"), saved)


class Shared(nn.Module):
    def __init__(self, rng):
        self.a = nn.Linear(4, 4, rng=rng)
        self.block = nn.Sequential(nn.Linear(4, 4, rng=rng), nn.LayerNorm(4))
        self.again, self.same = self.a, self.block

    def forward(self, x):
        return self.same(self.again(self.block(self.a(x))))


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"targets": ["a"]}, "again"),
        ({"targets": ["0"], "modules_to_save": ["a"]}, "again"),
        ({"targets": ["a", "0"], "bias": "lora_only"}, "again"),
        ({"targets": ["0"]}, None),  # PEFT changes the container, which both names mean
        ({"targets": ["0"], "modules_to_save": ["1"]}, None),
        ({"targets": ["a"], "modules_to_save": ["block"]}, "same"),
    ],
)
def test_a_layer_with_two_names_is_refused_where_peft_changes_one_of_them(
    options, path, tmp_path, rng
):
    model = Shared(rng)
    fresh = copy.deepcopy(model)
    lora.attach(model, LoRAConfig(rank=2, **options))
    moved(model, rng, 0.2)
    lora.save(model, tmp_path)
    lora.load(copy.deepcopy(fresh), tmp_path)
    as_of_peft(tmp_path)
    if path is None:
        lora.load(fresh, tmp_path)
        return
    with pytest.raises(ValueError, match=f"shared: .* and '{path}' are one layer"):
        lora.load(fresh, tmp_path)


def test_a_failed_load_leaves_other_adapters_active(saved):
    edit(saved / WEIGHTS, lambda arrays: arrays.update(x=np.ones(1)))
    model = adapted(bias="all")
    before = output(model), state(model)
    with pytest.raises(ValueError, match="unexpected: x"):
        lora.load(model, saved, "other")
    assert np.array_equal(output(model), before[0])
    assert state(model) == before[1]


def test_an_adapter_of_another_architecture_is_an_error_that_lists_the_layers(saved):
    with pytest.raises(ValueError, match="belongs to another model") as error:
        lora.load(model_of("mlp"), FOLDERS / "expression")
    assert "are none of the layers layers.0, layers.1, layers.2;" in str(error.value)
    assert "it has updates of block.attn.k_proj, block.attn.q_proj, head" in str(error.value)
    with pytest.raises(ValueError, match=r"none of the layers embedding, head"):
        lora.load(model_of("classifier"), saved)


def test_what_is_no_folder_of_an_adapter_is_an_error(tmp_path, saved):
    model = model_of("mlp")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        lora.load(model, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json and no adapter_m"):
        lora.load(model, tmp_path / "empty")
    (tmp_path / "empty" / "adapter_model.bin").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(FileNotFoundError, match="is a pickle, which can run any code"):
        lora.load(model, tmp_path / "empty")
    shutil.copytree(saved, tmp_path / "several" / "other")
    with pytest.raises(FileNotFoundError, match=r"name a folder in it .*, such as '.*other'"):
        lora.load(model, tmp_path / "several")
    with pytest.raises(TypeError, match="load takes a Module"):
        lora.load(saved, model)
    with pytest.raises(ValueError, match="letters, digits"):
        lora.load(model, saved, "a.b")


def test_files_that_no_save_moves_are_looked_for_once(saved, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    (saved / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no adapter_model\.safetensors in it"):
        lora.load(model_of("mlp"), saved)


def test_saving_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no adapters on this model"):
        lora.save(model_of("mlp"), tmp_path / "x")
    with pytest.raises(ValueError, match=r"no adapter 'defualt' \(did you mean 'default'"):
        lora.save(adapted(), tmp_path / "x", "defualt")
    model = adapted()
    model.layers[0].lora_b.data[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"layers\.0\.lora_B\.weight would have NaN"):
        lora.save(model, tmp_path / "x")
    assert os.listdir(tmp_path) == []


class Two(nn.Module):
    def __init__(self, rng):
        self.body = nn.Linear(4, 4, rng=rng)
        self.prehead = nn.Linear(4, 4, rng=rng)
        self.head = nn.Linear(4, 4, rng=rng)


def test_modules_whose_names_only_end_so_are_trained_whole_as_by_peft(tmp_path, rng):
    model = Two(rng)
    fresh = copy.deepcopy(model)
    options = {"rank": 2, "targets": ["body"], "modules_to_save": ["head", "prehead"]}
    lora.attach(model, LoRAConfig(**options))
    moved(model, rng, 0.2)
    lora.save(model, tmp_path)
    configure(tmp_path, modules_to_save=["head"])
    lora.load(fresh, tmp_path)
    for name in ("head", "prehead"):
        found, wanted = (getattr(m, name).weight.data for m in (fresh, model))
        assert np.array_equal(found, wanted)


def test_modules_that_peft_could_not_tell_apart_are_refused(tmp_path, rng):
    model = Two(rng)
    lora.attach(model, LoRAConfig(rank=2, targets=["body"], modules_to_save=["head"]))
    with pytest.raises(ValueError, match="so head would mean prehead, head"):
        lora.save(model, tmp_path / "x")


class Scaled(nn.Module):
    def __init__(self, rng):
        self.lin = nn.Linear(4, 4, rng=rng)
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(self.lin(x))


class Nested(nn.Module):
    def __init__(self, rng, is_scaled=False):
        self.body = nn.Linear(4, 4, rng=rng)
        self.blocks = [Scaled(rng), Scaled(rng)]
        self.norm = nn.LayerNorm(4)
        if is_scaled:
            self.blocks[1].factor = nn.Parameter(np.ones(4, np.float32))

    def forward(self, x):
        return self.norm(self.blocks[1](self.blocks[0](self.body(x))))


@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize(
    "asked", [["blocks.1", "blocks.1.norm"], ["blocks.1", "blocks.0.norm"], ["blocks.1", "norm"]]
)
def test_no_module_in_full_is_saved_inside_of_another_one(asked, is_scaled, tmp_path, rng):
    model = Nested(rng, is_scaled)
    fresh, names = copy.deepcopy(model), [name for name, _ in model.named_modules()]
    lora.attach(model, LoRAConfig(rank=2, targets=["body"], modules_to_save=asked))
    moved(model, rng, 0.2)
    if is_scaled and "norm" in asked:
        with pytest.raises(ValueError, match="neither a list of modules nor a module inside"):
            lora.save(model, tmp_path / "x")
        return
    lora.save(model, tmp_path)
    whole = read_config(tmp_path / CONFIG).saved_modules(names)
    assert not any(one.startswith(f"{other}.") for one in whole for other in whole)
    lora.load(fresh, tmp_path)
    x = mg.tensor(rng.standard_normal((3, 4)).astype(np.float32))
    np.testing.assert_array_equal(fresh(x).data, model(x).data)


# ----------------------------------------------------------------------------------------------
# Configurations
# ----------------------------------------------------------------------------------------------

OFF = {
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {"top_k": 3},
    "ensure_weight_tying": True,
    "kasa_config": {"beta": 0.1},
    "layer_replication": [[0, 4]],
    "lora_bias": True,
    "megatron_config": {"a": 1},
    "monteclora_config": {"num_samples": 8},
    "target_parameters": ["experts"],
    "trainable_token_indices": [1],
    "use_bdlora": {"a": 1},
    "use_qalora": True,
}

NEVER_MERGED = {"alora_invocation_tokens", "arrow_config", "layer_replication", "use_qalora"}

NO_MATTER = {
    "revision": "main",
    "task_type": "CAUSAL_LM",
    "inference_mode": False,
    "auto_mapping": {"a": "b"},
    "peft_version": "0.99",
    "megatron_core": "x",
    "eva_config": {"rho": 2.0},
    "corda_config": {"a": 1},
    "lora_ga_config": {"a": 1},
    "loftq_config": {"a": 1},
    "qalora_group_size": 32,
    "fan_in_fan_out": True,
    "velora_config": {"a": 1},
    "runtime_config": {"a": 1},
    "base_model_name_or_path": "org/model",
}


def test_every_field_that_peft_writes_is_known():
    written = set(config_of(FOLDERS / "linear"))
    assert written == {
        *(each.name for each in fields(PeftConfig)),
        *OFF,
        *(NO_MATTER.keys() - {"runtime_config"}),
        "peft_type",
    }


@pytest.mark.parametrize("name", OFF)
def test_what_is_not_implemented_is_refused_where_it_is_set(theirs, name):
    folder = theirs("linear")
    for off in (None, False, [], {}):
        configure(folder, **{name: off})
        lora.load(model_of("mlp"), folder)
    configure(folder, **{name: OFF[name]})
    advice = "use the adapter with PEFT" if name in NEVER_MERGED else "merge the adapter with PEFT"
    with pytest.raises(ValueError, match=f"{name}=.* is not implemented .*{advice}"):
        lora.load(model_of("mlp"), folder)


@pytest.mark.parametrize("name", NO_MATTER)
def test_what_changes_no_output_is_passed_by(theirs, name):
    folder = theirs("linear")
    configure(folder, **{name: NO_MATTER[name]})
    model = model_of("mlp")
    lora.load(model, folder)
    assert relative(output(model), RESULTS["linear; output"]) <= 1e-6


def test_the_bias_of_a_layer_of_another_adapter_may_be_there_too(theirs):
    folder = theirs("bias_of_layers")
    other = next(n for n in ("0", "1", "2") if n not in str(config_of(folder)["target_modules"]))
    model, key = model_of("mlp"), f"{PREFIX}layers.{other}.base_layer.bias"
    bias = model.layers[int(other)].bias.data
    edit(folder / WEIGHTS, lambda arrays: {**arrays, key: bias})
    lora.load(model, folder)
    assert relative(output(model), RESULTS["bias_of_layers; output"]) <= 1e-6
    edit(folder / WEIGHTS, lambda arrays: {**arrays, key: bias + 1})
    with pytest.raises(ValueError, match=rf"another base: {re.escape(key)} is not the weight"):
        lora.load(model_of("mlp"), folder)


@pytest.mark.parametrize("name", ["linear", "embedding", "dora"])
def test_keys_may_have_the_name_of_the_adapter_in_them(theirs, name):
    # As in a state dict of PEFT's model, which some programs save.
    folder = theirs(name)

    def renamed(key):
        return re.sub(r"(\.lora_[A-Za-z_]+?)(\.weight)?$", r"\1.default\2", key)

    edit(folder / WEIGHTS, lambda arrays: {renamed(key): x for key, x in arrays.items()})
    model = model_of(KINDS[name])
    lora.load(model, folder)
    assert relative(output(model, KINDS[name]), RESULTS[f"{name}; output"]) <= 1e-6
    assert check_adapter(folder).is_right


def test_of_another_method_only_the_method_is_named(theirs):
    folder = theirs("linear")
    configure(folder, peft_type="LOHA", module_dropout=0.1, alpha=8, use_effective_conv2d=True)
    message = "peft_type='LOHA'; only LORA is implemented; .*save_as_lora"
    with pytest.raises(ValueError, match=message) as error:
        lora.load(model_of("mlp"), folder)
    assert "is not known" not in str(error.value)


def test_the_projections_of_velora_change_no_output_and_are_passed_by(theirs):
    folder = theirs("linear")
    configure(folder, velora_config={"num_groups": 2, "scale": 1.0, "init_type": "random"})
    key, projection = f"{PREFIX}layers.0.lora_velora_embed", np.ones(3, np.float32)
    edit(folder / WEIGHTS, lambda arrays: {**arrays, key: projection})
    model = model_of("mlp")
    lora.load(model, folder)
    assert relative(output(model), RESULTS["linear; output"]) <= 1e-6
    assert not check_adapter(folder).findings
    assert summarise(folder).parameters == summarise(FOLDERS / "linear").parameters


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "mica", "orthogonal"])
def test_how_an_adapter_began_does_not_matter(theirs, init):
    folder = theirs("linear")
    configure(folder, init_lora_weights=init)
    model = model_of("mlp")
    lora.load(model, folder)
    assert relative(output(model), RESULTS["linear; output"]) <= 1e-6


def test_an_adapter_of_mica_trains_a_only_and_is_saved_as_one(theirs, tmp_path):
    folder = theirs("linear")
    configure(folder, init_lora_weights="mica")
    model = model_of("mlp")
    report = lora.load(model, folder)
    layers = [layer for layer in model.modules() if isinstance(layer, lora.LoRALayer)]
    assert all(layer.lora_a.requires_grad for layer in layers)
    assert not any(layer.lora_b.requires_grad for layer in layers)
    assert report.trainable == sum(layer.lora_a.size for layer in layers)
    assert report.trainable == sum(match.added for match in report.matches)
    lora.switch(model)
    lora.switch(model, "default")
    assert not any(layer.lora_b.requires_grad for layer in layers)
    lora.save(model, tmp_path / "again")
    assert config_of(tmp_path / "again")["init_lora_weights"] == "mica"


def test_pissa_leaves_embeddings_to_begin_as_always(theirs):
    folder = theirs("head_saved")
    configure(folder, init_lora_weights="pissa")
    model = model_of("classifier")
    lora.load(model, folder)
    assert relative(output(model, "classifier"), RESULTS["head_saved; output"]) <= 1e-6


def test_what_pissa_leaves_of_the_weight_of_a_head_may_be_in_the_file(theirs, tmp_path):
    """PEFT writes it if a target is called lm_head or embed_tokens."""
    folder, base = theirs("pissa"), base_of(model_of("mlp"), tmp_path / "base")
    merge_files(base, folder, tmp_path / "right.safetensors")
    model = model_of("mlp")
    lora.load(model, folder)
    layer = model.layers[1]
    a, b = (factor.data for factor in layer.adapter.start)
    left = layer.base_weight.data - layer.scale * b @ a
    key = f"{PREFIX}layers.1.base_layer.weight"
    edit(folder / WEIGHTS, lambda arrays: arrays.update({key: left}))
    fresh = model_of("mlp")
    lora.load(fresh, folder)
    assert np.array_equal(output(fresh), output(model))
    assert check_adapter(folder, base).is_right
    merge_files(base, folder, tmp_path / "out.safetensors")
    written = (tmp_path / "out.safetensors").read_bytes()
    assert written == (tmp_path / "right.safetensors").read_bytes()
    edit(folder / WEIGHTS, lambda arrays: arrays.update({key: left[1:]}))
    with pytest.raises(ValueError, match=f"another base: {key}"):
        lora.load(model_of("mlp"), folder)
    assert f"another base: {key}" in str(check_adapter(folder, base))


@pytest.mark.parametrize("scaling", ["standard", "rslora"])
def test_pissa_of_a_layer_smaller_than_the_rank_has_the_rank_of_the_layer(scaling, tmp_path):
    model = adapted(rank=3, targets=["layers.2"], init="pissa", scaling=scaling)
    layer = model.layers[2]
    factors = {"lora_A": layer.lora_a.data, "lora_B": layer.lora_b.data}
    tensors = {f"{PREFIX}layers.2.{name}.weight": value for name, value in factors.items()}
    use_rslora = scaling == "rslora"
    alpha = layer.scale * (8**0.5 if use_rslora else 8)
    options = {"use_rslora": use_rslora, "init_lora_weights": "pissa"}
    config = PeftConfig(("layers.2",), r=8, lora_alpha=alpha, **options)
    write_folder(tmp_path, config, tensors, Facts())
    as_of_peft(tmp_path)
    assert not check_adapter(tmp_path).findings
    fresh = model_of("mlp")
    lora.load(fresh, tmp_path)
    assert fresh.layers[2].rank == 3
    assert fresh.layers[2].alpha == pytest.approx(layer.alpha)
    assert relative(output(fresh), output(model)) <= TOLERANCE["float32"]
    configure(tmp_path, init_lora_weights=True)
    assert "the rank is 3 by its tensors and 8" in str(check_adapter(tmp_path))
    with pytest.raises(ValueError, match=r"mis-shaped: .*layers.2.lora_A"):
        lora.load(model_of("mlp"), tmp_path)


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (["head"], "no update of head alone computes that"),
        (["head", "table"], "the update of table was trained on what was left of the weight"),
    ],
)
@pytest.mark.parametrize("bits", [None, "bfloat16"])
def test_pissa_of_a_weight_that_is_tied_is_refused(bits, targets, reason, rng, tmp_path):
    model = TiedNet(rng, np.float32)
    if bits is not None:
        table = BFloat16Matrix.of(model.table.weight.data)
        model.table, model.head = lora.BFloat16Embedding(table), lora.BFloat16Linear(table)
    fresh = copy.deepcopy(model)
    lora.attach(model, LoRAConfig(rank=2, targets=targets))
    lora.save(model, tmp_path)
    as_of_peft(tmp_path)
    lora.load(copy.deepcopy(fresh), tmp_path)
    configure(tmp_path, init_lora_weights="pissa")
    with pytest.raises(
        ValueError, match=rf"tied: .* off the weight of head, and so off table.weight.*{reason}"
    ):
        lora.load(fresh, tmp_path)
    assert not any(isinstance(module, lora.LoRALayer) for module in fresh.modules())
    fresh.head = nn.Linear(5, 7, bias=False)
    lora.load(fresh, tmp_path)


@pytest.mark.parametrize("init", ["pissa_niter_16", "olora", "corda", "lora_ga", "OLoRA"])
def test_where_it_has_changed_the_base_it_is_refused(theirs, init):
    folder = theirs("linear")
    configure(folder, init_lora_weights=init)
    message = "path_initial_model_for_weight_conversion.*would leave that out, so merge the adapter"
    with pytest.raises(ValueError, match=message):
        lora.load(model_of("mlp"), folder)
    configure(folder, init_lora_weights="loftq")  # PEFT converts no adapters of this kind
    with pytest.raises(ValueError, match="PEFT has changed the base, so merge the adapter"):
        lora.load(model_of("mlp"), folder)


WRONG = {
    "use_dorra": (True, "did you mean 'use_dora'"),
    "frobnicate": (1, "is not known, and might change the result"),
    "r": (0, "a rank or an alpha is positive"),
    "lora_alpha": (-1, "a rank or an alpha is positive"),
    "lora_dropout": (2, "it is a probability"),
    "use_rslora": ("yes", "it is true or false"),
    "use_dora": (1, "it is true or false"),
    "bias": ("some", "it is 'none' or 'all' or 'lora_only'"),
    "target_modules": ("(", "not a regular expression"),
    "exclude_modules": ([1], "it is a text or a list of texts"),
    "modules_to_save": ("head", "it is a list of texts"),
    "rank_pattern": ({"a": 1.5}, "it is a table of patterns and integers"),
    "alpha_pattern": ({"(": 1}, "not a regular expression"),
    "layers_to_transform": ([-1], "indices of layers are integers"),
    "layers_pattern": ("layers", "of which layers_to_transform"),
    "init_lora_weights": ("magic", "it is one of gaussian"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_field_that_is_wrong_is_named(theirs, name):
    folder = theirs("linear")
    value, message = WRONG[name]
    configure(folder, **{name: value})
    model = model_of("mlp")
    before = state(model)
    with pytest.raises(ValueError, match=message) as error:
        lora.load(model, folder)
    assert name in str(error.value)
    assert CONFIG in str(error.value)
    assert state(model) == before


@pytest.mark.parametrize("name", ["r", "lora_alpha", "bias", "use_rslora", "rank_pattern"])
def test_an_empty_text_is_no_value(theirs, name):
    folder = theirs("linear")
    configure(folder, **{name: ""})
    with pytest.raises(ValueError, match=f"{name}='' is wrong: it is "):
        read_config(folder / CONFIG)


@pytest.mark.parametrize("name", ["target_modules", "exclude_modules", "modules_to_save"])
def test_an_empty_name_is_refused(theirs, name):
    folder = theirs("linear")
    configure(folder, **{name: ["0", ""]})
    with pytest.raises(ValueError, match=f"{name}=.* is wrong: no name may be empty"):
        read_config(folder / CONFIG)


def test_all_fields_that_are_wrong_are_in_one_error(theirs):
    folder = theirs("linear")
    configure(folder, **{name: value for name, (value, _) in WRONG.items()})
    with pytest.raises(ValueError, match="cannot be used") as error:
        read_config(folder / CONFIG)
    assert all(f"  {name}" in str(error.value) for name in WRONG if name != "layers_pattern")


def test_an_expression_goes_with_no_indices(theirs):
    folder = theirs("linear")
    configure(folder, target_modules=".*0", layers_to_transform=[0])
    with pytest.raises(ValueError, match="not with an expression"):
        lora.load(model_of("mlp"), folder)
    configure(folder, target_modules=None, layers_to_transform=None)
    with pytest.raises(ValueError, match="target_modules are missing"):
        lora.load(model_of("mlp"), folder)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "{", '{"r": NaN}', "[" * 100_000, '{"r": 1, "r": 2}', '"text"', "\xff"],
)
def test_a_configuration_that_is_none_is_an_error_that_names_the_file(saved, content):
    (saved / CONFIG).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        lora.load(model_of("mlp"), saved)


@pytest.mark.parametrize("text", ["", '{"r": 8, '])
def test_a_configuration_that_was_cut_short_is_to_be_copied_again(tmp_path, text):
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(ValueError, match=r"is not JSON, or only a part of it: .*; copy it again"):
        read_config(tmp_path / CONFIG)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"layers": {"a": 1}}', '{"layers": {"a": {"scale": -1.0}}, "version": ""}'],
)
def test_metadata_that_are_not_ours_are_an_error(saved, text):
    arrays = load_file(saved / WEIGHTS)
    save_file(arrays, saved / WEIGHTS, {KEY: text})
    with pytest.raises(ValueError, match="is not as it was written"):
        lora.load(model_of("mlp"), saved)


def test_configurations_are_written_and_read_back(tmp_path):
    config = PeftConfig(
        ("a", "b"),
        r=4,
        lora_alpha=2.5,
        rank_pattern={"a": 2},
        alpha_pattern={"b": 1.5},
        exclude_modules=("c",),
        layers_to_transform=(1, 2),
        layers_pattern=("h",),
        bias="all",
        modules_to_save=("d",),
        use_rslora=True,
        use_dora=True,
        lora_dropout=0.5,
        init_lora_weights="gaussian",
        base_model_name_or_path="base",
    )
    (tmp_path / CONFIG).write_text(config.as_json())
    assert read_config(tmp_path / CONFIG) == config
    assert (config.rank_of("x.a"), config.scale_of("b")) == (2, 0.75)


NAMES = [
    *("model.layers.0.q", "model.layers.1.q", "model.layers.1.k", "model.layers.10.q", "q"),
    *("enc.h.1.moe.3.q", "head", "prehead", "x.head", "head.0"),
]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"target_modules": ("q",)}, [0, 1, 3, 4, 5]),
        ({"target_modules": "all-linear"}, [0, 1]),
        ({"target_modules": "ALL-LINEAR"}, [0, 1]),
        ({"target_modules": r".*\.1\..*"}, [1, 2, 5]),
        ({"target_modules": ("q",), "layers_to_transform": (1,)}, [1, 4, 5]),
        ({"target_modules": ("k", "model.layers.0.q"), "layers_to_transform": (1,)}, [0, 2]),
        (
            {"target_modules": ("q",), "layers_to_transform": (3,), "layers_pattern": ("moe",)},
            [4, 5],
        ),
        ({"target_modules": ("q",), "exclude_modules": ("layers.1.q",)}, [0, 3, 4, 5]),
        ({"target_modules": ("q",), "exclude_modules": r"model.*"}, [4, 5]),
        ({"target_modules": ("q", "head"), "modules_to_save": ("head",)}, [0, 1, 3, 4, 5]),
        ({"target_modules": ("q", "k"), "modules_to_save": ("layers",)}, [4, 5]),
    ],
)
def test_targets_are_found_by_the_rules_of_peft(options, wanted):
    found = PeftConfig(**options).targets_among(NAMES, NAMES[:2])
    assert list(found) == [NAMES[i] for i in wanted]


def test_the_first_pattern_is_named_also_if_a_later_one_is_the_full_name():
    names = ["model.layers.0.q", "model.layers.1.q"]
    found = PeftConfig(("q", "model.layers.0.q"), layers_to_transform=(1,)).targets_among(names, ())
    assert found == dict.fromkeys(names, "q")


def test_modules_to_save_are_found_by_the_ends_of_their_names():
    config = PeftConfig((), modules_to_save=("head",))
    assert config.saved_modules(NAMES) == ["head", "prehead", "x.head"]
    assert PeftConfig(()).saved_modules(NAMES) == []


@pytest.mark.parametrize("names", [NAMES[:2], ["q"], ["head", "q"], NAMES])
def test_exact_patterns_find_what_they_are_given(names):
    found = PeftConfig(exact(names, NAMES)).targets_among(NAMES, ())
    assert sorted(found) == sorted(names)


# ----------------------------------------------------------------------------------------------
# Whole or not at all
# ----------------------------------------------------------------------------------------------


def full_for_the_configuration(monkeypatch):
    def fail(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)


@pytest.mark.parametrize("limit", [0, 100, 1000, None])
@pytest.mark.parametrize("there", [True, False], ids=["old", "new"])
def test_a_full_disk_leaves_the_old_adapter_or_none(tmp_path, monkeypatch, limit, there):
    folder, old = tmp_path / "out", adapted()
    if there:
        lora.save(old, folder)
    new = adapted(rank=2, alpha=5.0)
    with monkeypatch.context() as patch:
        if limit is None:
            full_for_the_configuration(patch)
        with (
            nullcontext() if limit is None else full_disk(limit),
            pytest.raises(OSError, match=rf"(No space left.*|File too large): '{folder}'"),
        ):
            lora.save(new, folder)
    if not there:
        assert not folder.exists()
        return
    assert sorted(os.listdir(folder)) == [CONFIG, WEIGHTS]
    model = model_of("mlp")
    lora.load(model, folder)
    assert np.array_equal(output(model), output(old))


def test_a_flipped_bit_in_the_tensors_is_not_loaded(saved):
    content = bytearray((saved / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (saved / WEIGHTS).write_bytes(content)
    model = model_of("mlp")
    before = state(model)
    with pytest.raises(ValueError, match="is damaged, or another program has changed it"):
        lora.load(model, saved)
    assert state(model) == before
    [finding] = check_adapter(saved).findings
    assert (finding.level, finding.where) == ("wrong", "files")
    assert "is damaged" in finding.what


def test_what_is_without_a_checksum_says_so(saved, theirs):
    assert "no checksum" not in f"{summarise(saved)} {check_adapter(saved)}"
    peft = theirs("patterns")
    assert repr(check_adapter(peft)).endswith("nothing is wrong; not all tensors have a checksum")
    assert "no checksum" in repr(summarise(peft))
    assert (summarise(saved).has_checksum, summarise(peft).has_checksum) == (True, False)


def test_saving_over_an_adapter_leaves_other_files(saved):
    (saved / "README.md").write_text("card")
    model = adapted(rank=1)
    lora.save(model, saved)
    assert sorted(os.listdir(saved)) == ["README.md", CONFIG, WEIGHTS]
    other = model_of("mlp")
    lora.load(other, saved)
    assert np.array_equal(output(other), output(model))


def test_what_a_killed_save_of_version_0_1_had_completed_is_what_is_loaded(saved, tmp_path):
    new = adapted(rank=1, alpha=9.0)
    lora.save(new, tmp_path / "new")
    shutil.copytree(tmp_path / "new", saved / ".saved")
    (saved / CONFIG).unlink()
    model = model_of("mlp")
    with pytest.warns(UserWarning, match="version 0.1"):
        lora.load(model, saved)
    assert np.array_equal(output(model), output(new))
    lora.save(new, saved)
    assert sorted(os.listdir(saved)) == [CONFIG, WEIGHTS]


def test_a_folder_in_an_adapter_does_not_override_it(saved, tmp_path):
    old = model_of("mlp")
    lora.load(old, saved)
    lora.save(adapted(rank=1, alpha=9.0), tmp_path / "new")
    (saved / ".saved").symlink_to(tmp_path / "new")
    before = sorted(os.listdir(tmp_path / "new"))
    for is_link in (True, False):
        if not is_link:
            (saved / ".saved").unlink()
            shutil.copytree(tmp_path / "new", saved / ".saved")
        model = model_of("mlp")
        lora.load(model, saved)
        assert np.array_equal(output(model), output(old))
        assert summarise(saved).unfinished == ()
    assert sorted(os.listdir(tmp_path / "new")) == before


KILLED = """
import os, signal, sys
from tests.lora.folders import two_adapters
import lora
replace = os.replace
def once(*args):
    replace(*args)
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = once
lora.save(two_adapters()[1], sys.argv[1])
"""


def test_a_save_that_was_killed_between_two_files_is_seen_through_and_shown(tmp_path):
    old, new = two_adapters()
    lora.save(old, tmp_path)
    config = (tmp_path / CONFIG).read_bytes()
    subprocess.run([sys.executable, "-c", KILLED, tmp_path])
    assert (tmp_path / CONFIG).read_bytes() == config
    model = model_of("mlp")
    lora.load(model, tmp_path)
    assert np.array_equal(output(model), output(new))
    assert summarise(tmp_path).unfinished == (CONFIG,)
    assert f"{CONFIG} is read from .saved, where an inter" in repr(summarise(tmp_path))
    [finding] = check_adapter(tmp_path).findings
    assert (finding.level, finding.where) == ("odd", CONFIG)
    (tmp_path / CONFIG).write_bytes(config)  # another program writes it again
    assert summarise(tmp_path).unfinished == ()


SAVING = """
import sys
from tests.lora.folders import two_adapters
import lora
models = two_adapters()
print("begun", flush=True)
while True:
    for model in models:
        lora.save(model, sys.argv[1])
"""


@pytest.mark.full
def test_a_folder_that_is_being_saved_is_read_as_one_save_or_the_other(tmp_path):
    wanted = [output(model) for model in two_adapters()]
    lora.save(two_adapters()[0], tmp_path)
    saving = subprocess.Popen(
        [sys.executable, "-c", SAVING, tmp_path], stdout=subprocess.PIPE, text=True
    )
    seen = [0, 0]
    try:
        assert saving.stdout.readline() == "begun\n"
        for _ in range(500):
            model = model_of("mlp")
            lora.load(model, tmp_path)
            which = [np.array_equal(output(model), each) for each in wanted]
            assert sum(which) == 1
            seen[which.index(True)] += 1
    finally:
        saving.kill()
        saving.communicate()
    assert min(seen) > 10


# ----------------------------------------------------------------------------------------------
# Fuzz
# ----------------------------------------------------------------------------------------------


def fuzz(folder, rounds, seed):
    """Load mutated files; a model that refuses is as it was."""
    rng = np.random.default_rng(seed)
    contents = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    model = model_of("mlp")
    before, refused = state(model), 0
    for i in range(rounds):
        name = (CONFIG, WEIGHTS)[i % 2]
        for each, content in contents.items():
            (folder / each).write_bytes(mutated(rng, content) if each == name else content)
        try:
            lora.load(model, folder, check_base=False, progress=False)
        except ValueError:
            refused += 1
            assert state(model) == before
        else:
            assert np.isfinite(output(model)).all()
            lora.detach(model)
    return refused


@pytest.mark.full
def test_mutated_folders_are_loaded_or_refused(saved):
    assert 300 < fuzz(saved, 500, 0) < 500


@pytest.mark.full
@pytest.mark.parametrize("name", ["all_biases_and_a_module", "patterns"])
def test_many_mutated_folders_are_loaded_or_refused(theirs, name):
    assert 200 < fuzz(theirs(name), 800, 1) < 800


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "(a+)+b"},
        {"rank_pattern": {"(a+)+b": 3}},
        {"modules_to_save": ["(a+)+b"]},
        {"alpha_pattern": {f"{i}": 1 for i in range(100_000)}},
        {"modules_to_save": [f"{i}" for i in range(100_000)]},
        {f"field{i}": 1 for i in range(100_000)},
    ],
    ids=["repeats", "repeats in a table", "repeats in names", "patterns", "names", "fields"],
)
def test_a_configuration_that_would_take_long_is_refused_at_once(saved, options):
    configure(saved, **options)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"adapter_config\.json") as error:
        lora.load(model_of("mlp"), saved)
    assert time.perf_counter() - start < 5
    assert len(str(error.value)) < 1000


def test_all_tensors_of_an_empty_file_are_missing(saved):
    edit(saved / WEIGHTS, lambda arrays: {})
    with pytest.raises(ValueError, match=r"missing: base_model\.model\..*lora_A"):
        lora.load(model_of("mlp"), saved)


@pytest.mark.parametrize("options", [{"r": 10**12}, {"rank_pattern": {"0": 10**12}}])
def test_a_rank_that_would_not_fit_into_memory_is_refused(saved, options):
    configure(saved, **options)
    model = model_of("mlp")
    before = state(model)
    with pytest.raises(ValueError, match=r"mis-shaped: .* has rank 1,000,000,000,000 by"):
        lora.load(model, saved)
    assert state(model) == before


def test_a_configuration_that_could_not_be_read_is_not_written():
    names = "|".join(f"layer{i}" for i in range(10_000))
    with pytest.raises(ValueError, match=r"target_modules.*, and 65,536 at most"):
        PeftConfig(f"({names})").as_json()


def test_facts_come_back():
    facts = Facts({}, "1", 5, True)
    assert Facts.of(facts.metadata()) == facts
    assert Facts.of({"format": "pt"}) == Facts()
    assert Facts.of(Facts(seed=5).metadata()) == Facts(version=mg.__version__, seed=5)


class PrefixedNet(nn.Module):
    """A model in which the name of one layer matches that of another one as an expression."""

    def __init__(self):
        self.q_fc, self.q = nn.Linear(3, 3), {"fc": nn.Linear(3, 3)}


def test_a_file_in_which_peft_would_drop_an_update_is_refused(tmp_path):
    model = PrefixedNet()
    lora.attach(model, LoRAConfig(rank=1, targets=["q_fc"], modules_to_save=["q.fc"]))
    with pytest.raises(ValueError, match=r"modules_to_save=\['q\.fc'\] as regular .* as q_fc;"):
        lora.save(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_sum_keeps_the_derivative_of_its_norms(tmp_path):
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    options = {"rank": 2, "use_dora": True, "dora_norm_gradient": True}
    for name, target in (("a", "0"), ("b", "1")):
        lora.attach(model, LoRAConfig(targets=[target], **options), adapter=name)
    lora.combine(model, ["a", "b"], [1, 1], "c")
    lora.save(model, tmp_path, "c")
    lora.load(model, tmp_path, "d")
    assert model[0].adapters["d"].dora_norm_gradient


def test_a_module_to_save_without_parameters_is_accepted_as_in_peft(tmp_path):
    def net():
        return nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1))

    model = net()
    lora.attach(model, LoRAConfig(rank=1, targets=["0"]))
    lora.save(model, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"modules_to_save": null', '"modules_to_save": ["1"]'))
    loaded = net()
    lora.load(loaded, tmp_path, check_base=False)
    assert np.array_equal(loaded[0].lora_a.data, model[0].lora_a.data)
