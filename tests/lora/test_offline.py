"""Adapters and bases in files, without a model: inspect, check, merge and extract."""

import copy
import errno
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tracemalloc
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import lora
from lora import LoRAConfig
from lora.__main__ import FAILED, STOPPED, WRONG, main
from lora.offline import check_adapter, extract_files, merge_files, summarise
from lora.offline.extracting import ExtractedFiles
from lora.offline.inspection import Summary, draw
from lora.offline.merging import MergedFiles
from lora.offline.stored_weight import StoredWeight
from lora.peft import CONFIG, WEIGHTS
from minigrad.io import (
    INDEX,
    TensorFile,
    TensorInfo,
    load_state,
    open_tensors,
    save_state,
    writing,
    writing_set,
)
from minigrad.io.tensor_file import CHECKSUM
from minigrad.nn import Embedding, Linear, Module
from tests.lora.folders import (
    FOLDERS,
    PREFIX,
    Net,
    adapted_copy,
    base_of,
    config_of,
    configure,
    edit,
    model_of,
    replaced,
    snapshot,
    without,
)
from tests.lora.models import batch_normed, with_own_statistics
from tests.minigrad.io.test_tensors import mutated
from tests.peers import lora_cases

ROOT = Path(__file__).parents[2]

FOLDERS_OF_PEFT = sorted(each.name for each in FOLDERS.iterdir() if each.is_dir())


@pytest.fixture
def net(rng):
    return Net(rng)


@pytest.fixture
def files(net, rng, tmp_path):
    """A base and an adapter for it."""
    lora.save(adapted_copy(net, rng, bias="lora_only"), tmp_path / "adapter")
    return base_of(net, tmp_path / "base"), tmp_path / "adapter"


def state(path):
    with open_tensors(path) as tensors:
        return {name: tensors.read(name) for name in tensors}


# ----------------------------------------------------------------------------------------------
# merge
# ----------------------------------------------------------------------------------------------

OPTIONS = {
    "LoRA": {"targets": "all-linear"},
    "rsLoRA, a pattern": {"scaling": "rslora", "rank_pattern": {"up": 3}},
    "embedding": {"targets": ["embed", "square"]},
    "DoRA": {"targets": ["embed", "up", "square"], "use_dora": True},
    "biases": {"targets": ["up"], "bias": "all"},
    "biases of layers": {"targets": ["up", "head"], "bias": "lora_only"},
    "modules to save": {"targets": ["up"], "modules_to_save": ["head", "norm"]},
    "PiSSA": {"targets": ["up", "square"], "init": "pissa"},
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_merged_file_is_the_folded_model_to_the_bit(name, dtype, rng, tmp_path):
    net = Net(rng, dtype)
    model = adapted_copy(net, rng, **OPTIONS[name])
    lora.save(model, tmp_path / "adapter")
    base = base_of(net, tmp_path / "base")
    before = snapshot(base)
    merged = merge_files(base, tmp_path / "adapter", tmp_path / "out")
    loaded = copy.deepcopy(net)
    lora.load(loaded, tmp_path / "adapter")
    right = lora.fold(loaded).state_dict()
    found = state(tmp_path / "out")
    assert found.keys() == right.keys()
    assert {key: (x.dtype, x.tobytes()) for key, x in found.items()} == {
        key: (x.dtype, x.tobytes()) for key, x in right.items()
    }
    assert set(merged.certificate.layers) == set(loaded_layers(tmp_path / "adapter"))
    assert snapshot(base) == before
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_running_statistics_are_merged_extracted_and_checked_with_their_module(rng, tmp_path):
    model = with_own_statistics(rng)
    lora.save(model, tmp_path / "adapter")
    base = base_of(batch_normed(), tmp_path / "base")
    merge_files(base, tmp_path / "adapter", tmp_path / "tuned")
    merge_files(base, tmp_path / "adapter", tmp_path / "narrow", dtype="float32")
    found, right = state(tmp_path / "tuned"), lora.fold(model).state_dict()
    assert all(np.array_equal(found[name], value) for name, value in right.items())
    assert state(tmp_path / "narrow")["1.num_batches_tracked"].dtype == np.int64
    report = check_adapter(tmp_path / "adapter", base, merged=tmp_path / "tuned")
    assert report.is_right
    made = extract_files(base, tmp_path / "tuned", tmp_path / "again", 2, modules_to_save=["1"])
    assert re.search(r"^1\.weight +in full", repr(made), re.M)
    other = lora.load(again := batch_normed(), tmp_path / "again")
    assert again[1].num_batches_tracked == 3
    assert "1.running_var" in [copy.name for copy in other.copies]


def loaded_layers(folder):
    return [layer.name for layer in summarise(folder).layers]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("folder", FOLDERS_OF_PEFT)
def test_what_peft_wrote_merges_as_it_loads(folder, tmp_path):
    kind = json.loads((FOLDERS / folder / "adapter_config.json").read_text())
    model = next(
        made for name in lora_cases.MODELS if fits(made := model_of(name), FOLDERS / folder)
    )
    base = base_of(model, tmp_path / "base")
    lora.load(model, FOLDERS / folder)
    right = lora.fold(model).state_dict()
    merge_files(base, FOLDERS / folder, tmp_path / "out.safetensors")
    found = state(tmp_path / "out.safetensors")
    assert {key: x.tobytes() for key, x in found.items()} == {
        key: x.tobytes() for key, x in right.items()
    }, kind


def fits(model, folder):
    try:
        lora.load(copy.deepcopy(model), folder)
    except ValueError:
        return False
    return True


def sharded(net, folder):
    """The net in two files with an index."""
    arrays = net.state_dict()
    infos = [TensorInfo(name, x.dtype.name, x.shape) for name, x in arrays.items()]
    shards = {
        "model-00001-of-00002.safetensors": infos[:3],
        "model-00002-of-00002.safetensors": infos[3:],
    }
    with writing_set(folder, shards, {"format": "pt"}) as writers:
        for name, x in arrays.items():
            writers[name].write(name, x)
    return folder


def test_shards_stay_shards_or_become_one_file(net, rng, files, tmp_path):
    whole, adapter = files
    base = sharded(net, tmp_path / "shards")
    merge_files(whole, adapter, tmp_path / "one")
    merge_files(base, adapter, tmp_path / "two")
    merge_files(base / INDEX, adapter, tmp_path / "three.safetensors")
    assert sorted(each.name for each in (tmp_path / "two").iterdir()) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        INDEX,
    ]
    right = {name: x.tobytes() for name, x in state(tmp_path / "one").items()}
    for path in ("two", "three.safetensors"):
        assert {name: x.tobytes() for name, x in state(tmp_path / path).items()} == right


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_merge_is_rounded_once_to_the_dtype(dtype, net, files, tmp_path):
    base, adapter = files
    merged = merge_files(base, adapter, tmp_path / "out", dtype=dtype)
    wide = tmp_path / "wide"
    merge_files(base, adapter, wide, dtype="float64")
    right = {
        name: lora.certificate.round_to(np.atleast_1d(x), dtype).reshape(x.shape)
        for name, x in state(wide).items()
    }
    with open_tensors(tmp_path / "out") as tensors:
        assert {info.dtype for info in tensors.tensors.values()} == {dtype}
    for name, x in state(tmp_path / "out").items():
        np.testing.assert_array_equal(x.astype(np.float64), right[name])
    assert merged.certificate.dtypes == [dtype]


def test_the_names_of_a_model_in_another_one_have_a_prefix(net, files, tmp_path):
    base, adapter = files
    merge_files(base, adapter, tmp_path / "plain.safetensors")
    right = state(tmp_path / "plain.safetensors")
    inside = tmp_path / "inside.safetensors"
    save_state(inside, {f"model.net.{name}": x for name, x in net.state_dict().items()})
    merged = merge_files(inside, adapter, tmp_path / "out.safetensors", check_base=False)
    assert merged.prefix == "model.net."
    assert "'model.net.'" in repr(merged)
    found = state(tmp_path / "out.safetensors")
    assert {k.removeprefix("model.net."): x.tobytes() for k, x in found.items()} == {
        k: x.tobytes() for k, x in right.items()
    }
    renamed = tmp_path / "outer"
    lora.save(wrapped(net, adapter), renamed)
    merged = merge_files(base, renamed, tmp_path / "out2.safetensors", check_base=False)
    assert merged.prefix == "-inner."
    found = state(tmp_path / "out2.safetensors")
    assert {k: x.tobytes() for k, x in found.items()} == {k: x.tobytes() for k, x in right.items()}


def wrapped(net, adapter):
    """A model with the net inside, adapted as the net is."""

    class Outer(Module):
        def __init__(self, inner):
            self.inner = inner

    model = Outer(copy.deepcopy(net))
    source = copy.deepcopy(net)
    lora.load(source, adapter)
    lora.attach(model, lora.LoRAConfig(rank=2, bias="lora_only"))
    own = dict(source.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = own[name.removeprefix("inner.")].data
    return model


@pytest.mark.parametrize("use_dora", [False, True])
def test_weights_may_be_stored_transposed(use_dora, net, rng, tmp_path):
    lora.save(
        adapted_copy(net, rng, targets=["up", "square"], use_dora=use_dora), tmp_path / "adapter"
    )
    base = base_of(net, tmp_path / "base")
    merge_files(base, tmp_path / "adapter", tmp_path / "plain")
    turned = ("up.weight", "square.weight")
    edit(
        base / "model.safetensors",
        lambda arrays: arrays | {name: arrays[name].T.copy() for name in turned},
    )
    configure(tmp_path / "adapter", fan_in_fan_out=True)
    merge_files(base, tmp_path / "adapter", tmp_path / "out", check_base=False)
    right, found = state(tmp_path / "plain"), state(tmp_path / "out")
    for name in turned:
        np.testing.assert_array_equal(found[name], right[name].T)


@pytest.mark.parametrize("says", [False, True])
@pytest.mark.parametrize("stored_turned", [False, True])
def test_a_square_weight_is_stored_as_those_around_it(stored_turned, says, net, rng, tmp_path):
    # PEFT's fan_in_fan_out is that of the layer it adapted last, be it a head of another kind.
    lora.save(adapted_copy(net, rng, targets=["square"]), tmp_path / "adapter")
    arrays = {f"block.0.{name}": x for name, x in net.state_dict().items()}
    save_state(tmp_path / "straight.safetensors", arrays)
    turned = {
        name: x.T.copy() if x.ndim == 2 and "embed" not in name else x for name, x in arrays.items()
    }
    save_state(tmp_path / "turned.safetensors", turned)
    merge = {"check_base": False, "progress": False}
    adapter, right = tmp_path / "adapter", tmp_path / "right.safetensors"
    merge_files(tmp_path / "straight.safetensors", adapter, right, **merge)
    configure(adapter, fan_in_fan_out=says)
    base = tmp_path / f"{'turned' if stored_turned else 'straight'}.safetensors"
    merge_files(base, adapter, tmp_path / "out.safetensors", **merge)
    name = "block.0.square.weight"
    found, right = state(tmp_path / "out.safetensors")[name], state(right)[name]
    np.testing.assert_array_equal(found.T if stored_turned else found, right)


@pytest.fixture
def trunk(rng, tmp_path):
    """Square layers without biases, beside and in a trunk whose others are stored transposed."""
    arrays = {
        "proj.weight": rng.standard_normal((8, 8)).astype(np.float32),
        "trunk.h.0.c_attn.weight": rng.standard_normal((8, 24)).astype(np.float32),
        "trunk.h.0.c_attn.bias": np.zeros(24, np.float32),
        "trunk.h.0.c_proj.weight": rng.standard_normal((8, 8)).astype(np.float32),
        "trunk.h.0.c_proj.bias": np.zeros(8, np.float32),
        "trunk.h.0.gate.weight": rng.standard_normal((8, 8)).astype(np.float32),
    }
    save_state(tmp_path / "trunk.safetensors", arrays)
    return tmp_path / "trunk.safetensors", arrays


# By PEFT's rule the field is that of the layer which was adapted last, in the order of the model.
@pytest.mark.parametrize(
    ("layers", "says", "transposed"),
    [
        (["proj"], False, []),
        (["trunk.h.0.c_proj"], True, ["trunk.h.0.c_proj"]),
        (["trunk.h.0.c_proj", "proj"], False, ["trunk.h.0.c_proj"]),
        (["trunk.h.0.c_attn", "proj"], False, ["trunk.h.0.c_attn"]),
        (["proj", "trunk.h.0.c_attn"], True, ["trunk.h.0.c_attn"]),
        (["trunk.h.0.gate", "trunk.h.0.c_proj"], True, ["trunk.h.0.c_proj"]),
    ],
)
def test_a_square_weight_beside_a_transposed_trunk(layers, says, transposed, trunk, rng, tmp_path):
    base, arrays = trunk
    adapter, right = made(tmp_path / "adapter"), dict(arrays)
    tensors = {}
    for name in layers:
        weight = arrays[f"{name}.weight"]
        d_out, d_in = weight.shape[::-1] if name in transposed else weight.shape
        a, b = rng.standard_normal((2, d_in)), rng.standard_normal((d_out, 2))
        a, b = a.astype(np.float32), b.astype(np.float32)
        tensors |= {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}
        update = (b @ a).T if name in transposed else b @ a
        right[f"{name}.weight"] = weight + update
    save_state(adapter / WEIGHTS, tensors)
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": layers}
    (adapter / CONFIG).write_text(json.dumps({**fields, "fan_in_fan_out": says}))
    merge_files(base, adapter, tmp_path / "out.safetensors", progress=False)
    found = state(tmp_path / "out.safetensors")
    for name in right:
        np.testing.assert_allclose(found[name], right[name], rtol=1e-4, atol=1e-5)
    extract_files(base, tmp_path / "out.safetensors", tmp_path / "extracted", 2, progress=False)
    merge_files(base, tmp_path / "extracted", tmp_path / "again.safetensors", progress=False)
    extracted = load_state(tmp_path / "extracted" / WEIGHTS)[0]
    again = state(tmp_path / "again.safetensors")
    for name in layers:
        np.testing.assert_allclose(again[f"{name}.weight"], right[f"{name}.weight"], atol=1e-4)
        a, b = (extracted[f"{PREFIX}{name}.lora_{part}.weight"] for part in "AB")
        wanted = right[f"{name}.weight"] - arrays[f"{name}.weight"]
        np.testing.assert_allclose(
            (b @ a).T if name in transposed else b @ a, wanted, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("says", [False, True])
def test_of_one_layer_the_configuration_of_peft_says_how_it_is_stored(says, rng, tmp_path):
    # The square weight is of another kind than the one beside it.
    arrays = {
        "block.up.weight": np.zeros((8, 4) if says else (4, 8), np.float32),
        "block.up.bias": np.zeros(8, np.float32),
        "block.square.weight": np.zeros((8, 8), np.float32),
    }
    save_state(tmp_path / "base.safetensors", arrays)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 8), (8, 2)))
    parts = {"lora_A.weight": a, "lora_B.weight": b}
    adapter, out = made(tmp_path / "adapter"), tmp_path / "out.safetensors"
    save_state(adapter / WEIGHTS, {f"{PREFIX}block.square.{k}": x for k, x in parts.items()})
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["square"]}
    (adapter / CONFIG).write_text(json.dumps({**fields, "fan_in_fan_out": says}))
    merge_files(tmp_path / "base.safetensors", adapter, out, progress=False)
    found = state(out)["block.square.weight"]
    np.testing.assert_allclose(found.T if says else found, b @ a, rtol=1e-5, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize(("is_turned", "most"), [(False, 1.2), (True, 2)])
def test_no_more_than_some_rows_are_in_memory(is_turned, most, tmp_path, rng, monkeypatch):
    rows, cols = 6000, 1000
    arrays = {name: np.ones((rows, cols), np.float32) for name in ("a.weight", "b.weight")}
    save_state(tmp_path / "base.safetensors", arrays)
    largest = arrays["a.weight"].nbytes
    del arrays
    if is_turned:
        rows, cols = cols, rows
    rank = 4
    arrays = {
        "base_model.model.a.lora_A.weight": rng.standard_normal((rank, cols)).astype("f4"),
        "base_model.model.a.lora_B.weight": rng.standard_normal((rows, rank)).astype("f4"),
    }
    (tmp_path / "adapter").mkdir()
    save_state(tmp_path / "adapter" / WEIGHTS, arrays)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 4,
        "target_modules": ["a"],
        "fan_in_fan_out": is_turned,
    }
    (tmp_path / "adapter" / CONFIG).write_text(json.dumps(config))
    merge = tmp_path / "base.safetensors", tmp_path / "adapter", tmp_path / "out.safetensors"
    merge_files(*merge)  # what is made once and for all
    tracemalloc.start()
    merge_files(*merge)
    assert tracemalloc.get_traced_memory()[1] < most * largest
    tracemalloc.stop()
    taken, read = [], TensorFile.read

    def reading(*arguments):
        found = read(*arguments)
        taken.append(found.nbytes)
        return found

    monkeypatch.setattr(TensorFile, "read", reading)
    merge_files(*merge)
    assert sum(taken) < 10 * largest


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_transposed_weight_has_all_its_rows_in_any_order(dtype, rng, tmp_path, monkeypatch):
    monkeypatch.setattr("lora.frozen.STRIP", 40)
    table = rng.standard_normal((10, 17)).astype(dtype)
    save_state(tmp_path / "x.safetensors", {"x": table})
    with open_tensors(tmp_path / "x.safetensors") as tensors:
        weight = StoredWeight(tensors, "x", is_transposed=True)
        slices = [slice(i, min(17, i + n)) for n in (1, 3, 5, 17) for i in range(0, 17, n)]
        for rows in [*slices, *rng.permutation(np.array(slices, object)), slice(None)]:
            np.testing.assert_array_equal(weight.rows(rows), table.T[rows].astype(np.float64))


def test_an_embedding_beside_pissa_is_a_plain_update(net, rng, tmp_path):
    lora.save(adapted_copy(net, rng, targets=["embed"]), tmp_path / "adapter")
    base = base_of(net, tmp_path / "base")
    merge_files(base, tmp_path / "adapter", tmp_path / "right")
    configure(tmp_path / "adapter", init_lora_weights="pissa")
    merge_files(base, tmp_path / "adapter", tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "right")


@pytest.mark.full
@pytest.mark.parametrize("what", ["kill", "full disk"])
@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_what_is_broken_off_leaves_what_was_there(what, name, files, tmp_path, monkeypatch):
    base, adapter = files
    work = tmp_path / "work"
    work.mkdir()
    merge_files(base, adapter, work / name)
    before = snapshot(work)
    edit(adapter / WEIGHTS, lambda arrays: {k: 2 * x for k, x in arrays.items()})
    if what == "kill":
        script = (
            "import os, signal\n"
            "from minigrad.io import TensorWriter\n"
            "from lora.offline.merging import merge_files\n"
            "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
            "TensorWriter.finish = die\n"
            f"merge_files({str(base)!r}, {str(adapter)!r}, {str(work / name)!r}, check_base=False)"
        )
        result = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert result.returncode == -signal.SIGKILL
    else:

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("minigrad.io.tensor_file.TensorWriter.write", full)
        with pytest.raises(OSError, match="No space left"):
            merge_files(base, adapter, work / name, check_base=False)
        assert snapshot(work) == before
    whole = {key: value for key, value in snapshot(work).items() if not Path(key).parts[-1:][0]
             .startswith(".") and ".saving-" not in key}  # fmt: skip
    assert whole == before


REFUSED = {
    "an input": (lambda base, adapter, out: (base, adapter, base), "is what is merged"),
    "the adapter": (lambda base, adapter, out: (base, adapter, adapter), "is what is merged"),
    "no base": (lambda base, adapter, out: (out, adapter, out), "there is no file"),
    "no adapter": (lambda base, adapter, out: (base, out, out), "there is no folder"),
    "the file of the adapter": (
        lambda base, adapter, out: (base, adapter, adapter / WEIGHTS),
        "is what is merged",
    ),
    "a folder that is a file": (
        lambda base, adapter, out: (base, adapter, base / "config.json"),
        "config.json' is not a folder; name one, or a file that ends in .safetensors",
    ),
    "a GGUF file": (
        lambda base, adapter, out: (base, adapter, out.with_suffix(".gguf")),
        "out.gguf' is not a folder; name one, or a file that ends in .safetensors",
    ),
    "a link to nothing": (lambda base, adapter, out: (base, adapter, link(out)), "is not a folder"),
    "a file that is a folder": (
        lambda base, adapter, out: (base, adapter, made(out.with_suffix(".safetensors"))),
        "out.safetensors' is a folder, and would be a file",
    ),
    "a file in no folder": (
        lambda base, adapter, out: (base, adapter, out / "in" / "m.safetensors"),
        "there is no folder .*out/in' for .*m.safetensors'; make it",
    ),
    "a folder of an adapter": (
        lambda base, adapter, out: (base, adapter, holding(out, CONFIG)),
        f"has other weights or an adapter in it, {CONFIG}; name a folder without",
    ),
    "an old index": (
        lambda base, adapter, out: (base, adapter, holding(out, INDEX)),
        f"has other weights or an adapter in it, {INDEX}; name a folder without",
    ),
    "a file beside an index": (
        lambda base, adapter, out: (*(base, adapter, holding(out, INDEX) / "model.safetensors"),),
        f"the folder of .*out/model.safetensors' has other weights or an adapter in it, {INDEX}; n",
    ),
}


def made(folder):
    folder.mkdir()
    return folder


def link(path):
    path.symlink_to(path.parent / "nowhere")
    return path


def holding(folder, name):
    (made(folder) / name).write_text("{}")
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_places_that_cannot_be(name, files, tmp_path):
    make, message = REFUSED[name]
    arguments = make(*files, tmp_path / "out")
    before = snapshot(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        merge_files(*arguments)
    assert snapshot(tmp_path) == before


def put(path, text="{}"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_belongs_to_a_model_is_copied_and_nothing_else(files, tmp_path):
    base, adapter = files
    shutil.copy(adapter / CONFIG, base)
    kept = [
        *("tokenizer.json", "modeling_net.py", "LICENSE", "1_Pooling/config.json", "a/b/c.jinja"),
        *("2_Dense/config.json", "2_Dense/pytorch_model.bin"),
    ]
    left_out = [
        *("pytorch_model.bin", "onnx/model.onnx", "onnx/config.json", "openvino/model.bin"),
        *("fp16/model.safetensors", ".git/config.json", "blob", "a/.cache/d.json", "a/.e.txt"),
    ]
    for name in kept + left_out:
        put(base / name)
    put(base / "modules.json", json.dumps([{"path": ""}, {"path": "2_Dense"}, {"path": 3}, 4]))
    (base / "link.json").symlink_to(tmp_path / "nowhere.json")
    (base / "inside.json").symlink_to(base / "config.json")
    (base / "elsewhere").symlink_to(tmp_path)
    (base / "deep").mkdir()
    (base / "deep" / "link.txt").symlink_to(tmp_path / "nowhere.txt")
    merged = merge_files(base, adapter, tmp_path / "out")
    assert sorted(snapshot(tmp_path / "out")) == sorted(
        [*kept, "config.json", "inside.json", "model.safetensors", "modules.json"]
    )
    assert not (tmp_path / "out" / "inside.json").is_symlink()
    assert merged.left_out == (
        *("adapter_config.json", "blob", "deep/", "elsewhere/", "fp16/", "link.json", "onnx/"),
        *("openvino/", "pytorch_model.bin"),
    )
    assert "not copied, because weights without the update may be in them: adapter_config" in repr(
        merged
    )
    single = merge_files(base, adapter, tmp_path / "out.safetensors")
    assert single.left_out == ()


def test_links_of_the_cache_of_the_hub_are_followed(files, tmp_path):
    base, adapter = files
    snapshots, blobs = (tmp_path / "models--x" / name for name in ("snapshots", "blobs"))
    for name in ("config.json", "model.safetensors", "1_Pooling/config.json"):
        put(blobs / "text", '{"pooling": "mean"}')
        place = snapshots / "0123" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(base / name, blobs / name) if (base / name).exists() else None
        place.symlink_to(blobs / (name if (base / name).exists() else "text"))
    merge_files(snapshots / "0123", adapter, tmp_path / "out")
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == '{"pooling": "mean"}'
    assert (tmp_path / "out" / "config.json").is_file()


def header_and_data(path):
    """The header of a file of tensors, and the bytes of these."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_with(path, header, data):
    """Write a file of tensors with a header."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def drop_checksum(path):
    """Write a file without its checksum, with which every change of its tensors is found."""
    header, data = header_and_data(path)
    del header["__metadata__"][CHECKSUM]
    write_with(path, header, data)


def narrow(path, names, dtype):
    """Turn tensors of a file into ones of a dtype with a byte a number."""
    (header, data), out, end = header_and_data(path), bytearray(), 0
    header.pop("__metadata__", None)  # with the checksum
    for name in sorted(header, key=lambda name: (name in names, header[name]["data_offsets"])):
        begin, stop = header[name]["data_offsets"]
        part = data[begin:stop]
        if name in names:
            header[name]["dtype"], part = dtype, part[: len(part) // 4]
        out += part
        header[name]["data_offsets"], end = [end, end + len(part)], end + len(part)
    write_with(path, header, bytes(out))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("stored", ["F8_E4M3", "BOOL"])  # of the latter, bytes other than 0 and 1
def test_what_no_adapter_changes_is_copied_whatever_its_dtype(stored, dtype, files, tmp_path):
    base, adapter = files
    path = base / "model.safetensors"
    narrow(path, ["norm.weight", "embed.weight"], stored)
    merge_files(base, adapter, tmp_path / "out", dtype=dtype)
    with open_tensors(base) as before, open_tensors(tmp_path / "out") as after:
        for name in ("norm.weight", "embed.weight"):
            assert after.info(name) == before.info(name)
            assert b"".join(after.raw(name)) == b"".join(before.raw(name))
        assert after.info("norm.bias").dtype == (dtype or "float32")
    assert check_adapter(adapter, base).is_right
    lora_of = extract_files(base, tmp_path / "out", tmp_path / "again", 2, bias="all", lossy=True)
    assert lora_of.lost == ()
    narrow(path, ["up.weight"], "F8_E5M2")
    with pytest.raises(ValueError, match=r"up.weight has shape \(8, 6\) and dtype F8_E5M2"):
        merge_files(base, adapter, tmp_path / "no", check_base=False)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_configuration_says_the_dtype_that_was_asked_for(key, files, tmp_path):
    base, adapter = files
    for content in ({key: "bfloat16", "d": 1}, {"d": 1}, []):
        text = json.dumps(content)
        (base / "config.json").write_text(text)
        out = merge_files(base, adapter, tmp_path / "out", dtype="float64").path / "config.json"
        right = {key: "float64", "d": 1} if key in content else content
        assert json.loads(out.read_text()) == right
        merge_files(base, adapter, tmp_path / "out")
        assert out.read_text() == text


BROKEN_BASES = {
    "a missing layer": (without("up.weight"), r"1 of 3 weights .* such as 'up.weight'"),
    "another shape": (replaced("up.weight", np.ones((9, 6), "f4")), r"do not fit up.weight"),
    "another bias": (replaced("up.bias", np.ones(9, "f4")), r"mis-shaped: .*up.*bias is \(8,\)"),
    "other numbers": (
        replaced("up.weight", np.ones((8, 6), "f4")),
        "base: the weight of up has",
    ),
    "integers": (
        replaced("up.weight", np.ones((8, 6), int)),
        r"only a matrix or filters of float64",
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("config", "has_head", "is_reported"),
    [
        ({"vocab_size": 11, "tie_word_embeddings": True}, False, True),
        ({"vocab_size": 11}, False, True),
        ({"vocab_size": 11, "tie_word_embeddings": False}, False, False),
        ({"vocab_size": 11, "tie_word_embeddings": True}, True, False),
        ({"vocab_size": 12}, False, False),
        ({"vocab_size": 11, "architectures": ["BertModel"]}, False, False),
        ({"vocab_size": 11, "architectures": ["BertForSequenceClassification"]}, False, False),
        ({"vocab_size": 11, "architectures": ["BertForMaskedLM"]}, False, True),
        ({"text_config": {"vocab_size": 11}}, False, True),
        ({"text_config": 3}, False, False),
        ({"vocab_size": 11, "architectures": [5]}, False, False),
        ({"vocab_size": 11, "architectures": 5}, False, False),
        ([], False, False),
    ],
)
@pytest.mark.parametrize("is_whole", [False, True])
def test_a_change_of_a_tied_embedding_is_reported(
    is_whole, config, has_head, is_reported, net, rng, tmp_path
):
    options = {"targets": ["up"], "modules_to_save": ["embed"]} if is_whole else {}
    lora.save(adapted_copy(net, rng, **{"targets": ["embed"], **options}), tmp_path / "adapter")
    base = base_of(net, tmp_path / "base")
    (base / "config.json").write_text(json.dumps(config))
    if has_head:
        edit(base / "model.safetensors", replaced("out.weight", np.ones((11, 6), "f4")))
    merged = merge_files(base, tmp_path / "adapter", tmp_path / "out")
    found = check_adapter(tmp_path / "adapter", base)
    assert found.is_right
    for text in (repr(merged), repr(found)):
        assert (
            "embed.weight may be the weight of the head" in text.replace(": may", " may")
        ) is is_reported


@pytest.mark.parametrize("config", [{"vocab_size": 11, "tie_word_embeddings": True}, {}])
def test_a_head_that_is_new_is_tied_to_nothing(config, net, rng, tmp_path):
    net.out = Linear(6, 11, bias=False, rng=rng)
    lora.save(adapted_copy(net, rng, targets=["up"], modules_to_save=["out"]), tmp_path / "adapter")
    base = base_of(net, tmp_path / "base")
    edit(base / "model.safetensors", without("out.weight"))
    (base / "config.json").write_text(json.dumps(config))
    merged = merge_files(base, tmp_path / "adapter", tmp_path / "out")
    found = check_adapter(tmp_path / "adapter", base)
    assert found.is_right
    for text in (repr(merged), repr(found)):
        assert ("is the weight of the head, which in the base is" in text) is bool(config)
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content == ({**config, "tie_word_embeddings": False} if config else {})


@pytest.mark.parametrize(
    ("options", "is_untied"),
    [
        ({"targets": ["up"]}, False),
        ({"targets": ["embed_tokens"]}, True),
        ({"targets": ["lm_head"]}, True),
        ({"targets": ["up"], "modules_to_save": ["embed_tokens"]}, True),
        ({"targets": ["up"], "modules_to_save": ["lm_head"]}, True),
    ],
)
def test_a_head_and_an_embedding_that_are_both_stored_are_untied_if_one_changes(
    options, is_untied, rng, tmp_path
):
    net = Module()
    net.embed_tokens, net.lm_head = Embedding(11, 6, rng=rng), Linear(6, 11, bias=False, rng=rng)
    net.up = Linear(6, 6, rng=rng)
    base = base_of(net, tmp_path / "base")
    config = {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True, "a": 1}}
    (base / "config.json").write_text(json.dumps(config))
    lora.save(adapted_copy(net, rng, **options), tmp_path / "adapter")
    merge_files(base, tmp_path / "adapter", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    untied = {"tie_word_embeddings": False}
    assert content == (untied | {"text_config": {"a": 1} | untied} if is_untied else config)


def test_names_of_a_wrapped_model_are_reported(files, tmp_path):
    base, adapter = files
    arrays = load_state(adapter / WEIGHTS)[0]
    wrapped = {key.replace(PREFIX, f"{PREFIX}_orig_mod."): x for key, x in arrays.items()}
    save_state(adapter / WEIGHTS, wrapped)  # without our metadata, as PEFT does
    found = check_adapter(adapter, base)
    assert found.is_right
    assert "begin with '_orig_mod.', the mark of a wrapped model" in repr(found)
    merged = merge_files(base, adapter, tmp_path / "out")
    assert "names of the adapter have '_orig_mod.' before those of the base" in repr(merged)


def test_weights_that_peft_wrote_beside_the_updates_may_need_another_base(net, rng, tmp_path):
    lora.save(adapted_copy(net, rng, targets=["up"]), tmp_path / "adapter")
    base, weights = base_of(net, tmp_path / "base"), tmp_path / "adapter" / WEIGHTS
    (base / "config.json").write_text(json.dumps({"vocab_size": 11}))
    refused = partial(pytest.raises, ValueError)
    edit(weights, replaced(f"{PREFIX}out.weight", net.embed.weight.data))
    with refused(match=r"unexpected: .*out.weight .*tied to 'embed.weight': .*copy of its own .*"):
        merge_files(base, tmp_path / "adapter", tmp_path / "out")
    edit(weights, without(f"{PREFIX}out.weight"))
    edit(weights, replaced(f"{PREFIX}embed.weight", np.ones((13, 6), "f4")))
    message = (
        r"is \(13, 6\) in the file, and \(11, 6\) in the base; .*resize_token_embeddings\(13\)"
    )
    with refused(match=message):
        merge_files(base, tmp_path / "adapter", tmp_path / "out")
    assert re.search(message, repr(check_adapter(tmp_path / "adapter", base)))


def test_a_tied_head_that_peft_wrote_beside_its_table_stays_tied(net, rng, tmp_path):
    lora.save(adapted_copy(net, rng, targets=["up"]), tmp_path / "adapter")
    base, table = base_of(net, tmp_path / "base"), net.embed.weight.data + 1
    (base / "config.json").write_text(json.dumps({"vocab_size": 11}))
    both = {f"{PREFIX}embed.weight": table, f"{PREFIX}out.weight": table}
    edit(tmp_path / "adapter" / WEIGHTS, lambda arrays: arrays | both)
    assert check_adapter(tmp_path / "adapter", base).is_right
    merged = merge_files(base, tmp_path / "adapter", tmp_path / "out")
    assert (merged.replaced, merged.added) == (["embed.weight"], [])
    assert check_adapter(tmp_path / "adapter", base, tmp_path / "out").is_right
    np.testing.assert_array_equal(state(tmp_path / "out")["embed.weight"], table)
    edit(tmp_path / "adapter" / WEIGHTS, replaced(f"{PREFIX}out.weight", table + 1))
    with pytest.raises(ValueError, match=r"unexpected: .*out.weight .*tied to 'embed.weight'"):
        merge_files(base, tmp_path / "adapter", tmp_path / "out")


def test_a_new_head_of_an_embedding_that_encoder_and_decoder_share_needs_copies(net, rng, tmp_path):
    lora.save(adapted_copy(net, rng, targets=["up"]), tmp_path / "adapter")
    base, table = base_of(net, tmp_path / "base"), net.embed.weight.data
    weights, config = base / "model.safetensors", {"vocab_size": 11}
    edit(tmp_path / "adapter" / WEIGHTS, replaced(f"{PREFIX}lm_head.weight", table + 1))
    configure(tmp_path / "adapter", modules_to_save=["lm_head"])
    edit(weights, lambda arrays: without("embed.weight")({**arrays, "model.shared.weight": table}))
    (base / "config.json").write_text(json.dumps(config))
    both = [f"model.{part}.embed_tokens.weight" for part in ("encoder", "decoder")]
    message = f"tied: {' and '.join(both)} would have no weight .*share model.shared.weight"
    with pytest.raises(ValueError, match=message):
        merge_files(base, tmp_path / "adapter", tmp_path / "out")
    assert re.search(message, repr(check_adapter(tmp_path / "adapter", base)))
    edit(weights, lambda arrays: without("model.shared.weight")({**arrays, "shared.weight": table}))
    (base / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))
    message = r"tied: a model of the T5 family scales .*use the adapter without merging it"
    with pytest.raises(ValueError, match=message):
        merge_files(base, tmp_path / "adapter", tmp_path / "out")
    assert re.search(message, repr(check_adapter(tmp_path / "adapter", base)))
    edit(weights, lambda arrays: without("shared.weight")({**arrays, "model.shared.weight": table}))
    edit(weights, lambda arrays: arrays | dict.fromkeys(both, table))
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    out = merge_files(base, tmp_path / "adapter", tmp_path / "out").path / "model.safetensors"
    assert {*both, "lm_head.weight", "model.shared.weight"} <= load_state(out)[0].keys()


@pytest.mark.parametrize("other", [("blocks.0.q", "blocks.0.query"), ("blocks.0.", "part_a.")])
def test_tensors_in_full_that_a_block_of_the_base_does_not_have_have_other_names(
    other, rng, tmp_path
):
    blocks = [{"q": Linear(6, 6, rng=rng), "up": Linear(6, 6, rng=rng)} for _ in range(2)]
    net = Module()
    net.blocks, net.head = blocks, {"1": Linear(6, 3, rng=rng)}
    base = base_of(net, tmp_path / "base")
    options = {"targets": "blocks.1.up", "modules_to_save": ["q", "head.1"]}
    lora.attach(net, LoRAConfig(rank=2, **options), rng=rng)
    lora.save(net, tmp_path / "adapter")
    weights = base / "model.safetensors"
    edit(weights, lambda arrays: {n: x for n, x in arrays.items() if not n.startswith("head")})
    assert len(merge_files(base, tmp_path / "adapter", tmp_path / "out").added) == 2
    edit(weights, lambda arrays: {n.replace(*other): x for n, x in arrays.items()})
    message = r"another base: .*full, 2 .* such as 'blocks\.0\.q\.bias'; .*save_original_format"
    with pytest.raises(ValueError, match=message):
        merge_files(base, tmp_path / "adapter", tmp_path / "no")
    assert re.search(message, repr(check_adapter(tmp_path / "adapter", base)))


BROKEN_WHOLES = {
    "NaN": (
        f"{PREFIX}head.base_layer.bias",
        np.full(3, np.nan, "f4"),
        r"head.base_layer.bias.* has NaN or Inf",
    ),
    "no prefix": ("up.lora_A.weight", np.ones((2, 6), "f4"), r"unexpected: up.lora_A.weight is no"),
    "the name of an adapter": (
        f"{PREFIX}up.lora_A.other.weight",
        np.ones((2, 6), "f4"),
        r"unexpected: .*up.lora_A.other.weight is not a part of an update, as base_model",
    ),
}


@pytest.mark.parametrize("name", BROKEN_WHOLES)
def test_what_is_no_update_and_cannot_be_taken_over_is_refused(name, files, tmp_path):
    base, adapter = files
    key, value, message = BROKEN_WHOLES[name]
    edit(adapter / WEIGHTS, replaced(key, value))
    with pytest.raises(ValueError, match=message):
        merge_files(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert re.search(message, repr(check_adapter(adapter, base)))
    assert not check_adapter(adapter).is_right


def test_what_is_taken_over_must_fit_the_dtype_of_the_base(net, rng, tmp_path):
    model = adapted_copy(net, rng, targets=["up"], modules_to_save=["head"])
    model.head.bias.data[0] = 1e6
    lora.save(model, tmp_path / "adapter")
    base = base_of(net, tmp_path / "base")
    edit(base / "model.safetensors", lambda a: {k: x.astype("f2") for k, x in a.items()})
    with pytest.raises(ValueError, match=r"head.bias has numbers that float16 has not"):
        merge_files(base, tmp_path / "adapter", tmp_path / "out", check_base=False)
    assert not (tmp_path / "out").exists()
    edit(base / "model.safetensors", lambda a: {**a, "head.bias": a["head.bias"].astype(int)})
    with pytest.raises(ValueError, match=r"unusable: .*head.bias has dtype float32, not int64"):
        merge_files(base, tmp_path / "adapter", tmp_path / "out", check_base=False)


@pytest.mark.parametrize("name", BROKEN_BASES)
def test_a_base_that_the_adapter_does_not_go_with_is_refused(name, files, tmp_path):
    base, adapter = files
    change, message = BROKEN_BASES[name]
    edit(base / "model.safetensors", change)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=message):
        merge_files(base, adapter, tmp_path / "out")
    assert snapshot(tmp_path) == before
    found = check_adapter(adapter, base)
    assert not found.is_right
    assert re.search(message, repr(found))


def test_a_head_that_is_tied_is_named_as_such(net, rng, tmp_path):
    net.out = Linear(6, 11, rng=rng)
    lora.save(adapted_copy(net, rng, targets=["up", "out"]), tmp_path / "adapter")
    base = base_of(net, tmp_path / "base")
    edit(base / "model.safetensors", without("out.weight"))
    message = r"such as 'out.weight'.*, it is tied to 'embed.weight': save the base with a copy"
    with pytest.raises(ValueError, match=message):
        merge_files(base, tmp_path / "adapter", tmp_path / "out")
    assert re.search(message, repr(check_adapter(tmp_path / "adapter", base)))


def test_an_embedding_that_is_tied_is_named_as_such(net, rng, tmp_path):
    net.out = Linear(6, 11, rng=rng)
    lora.save(adapted_copy(net, rng, targets=["up", "embed"]), tmp_path / "adapter")
    base = base_of(net, tmp_path / "base")
    message = r"such as 'embed.weight'.*, it is tied to '{}': save the base with a copy"
    # A matrix of the shape of W, (d, count), is not a table.
    more = {"wide.weight": np.ones((6, 11), "f4")}
    edit(base / "model.safetensors", lambda arrays: without("embed.weight")({**arrays, **more}))
    with pytest.raises(ValueError, match=message.format("out.weight")):
        merge_files(base, tmp_path / "adapter", tmp_path / "out")


def test_a_base_that_has_hardly_a_layer_of_the_adapter_is_reported_once(files, tmp_path):
    base, adapter = files
    rename = lambda arrays: {n if "square" in n else f"{n}_": x for n, x in arrays.items()}
    edit(base / "model.safetensors", rename)
    message = r"2 of 3 weights that .*, such as 'head.weight'; .*save_original_format"
    with pytest.raises(ValueError, match=message) as refused:
        merge_files(base, adapter, tmp_path / "out")
    assert str(refused.value).count("another base: 2 of") == 1
    assert re.search(message, repr(check_adapter(adapter, base)))


def test_all_that_does_not_go_together_is_listed_at_once(files, tmp_path):
    base, adapter = files
    edit(
        base / "model.safetensors",
        lambda a: without("up.weight")(replaced("head.weight", np.ones((3, 9), "f4"))(a)),
    )
    with pytest.raises(ValueError, match=r"(?s)up.weight.*head.weight|head.weight.*up.weight"):
        merge_files(base, adapter, tmp_path / "out")


def test_another_base_may_be_wanted(files, net, tmp_path):
    base, adapter = files
    edit(base / "model.safetensors", replaced("up.weight", np.ones((8, 6), "f4")))
    merge_files(base, adapter, tmp_path / "out", check_base=False)
    update = state(tmp_path / "out")["up.weight"] - 1
    assert np.linalg.matrix_rank(update, tol=1e-4) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value, files, tmp_path):
    base, adapter = files

    def broken(arrays):
        arrays["up.weight"][1, 1] = value
        return arrays

    edit(base / "model.safetensors", broken)
    with pytest.raises(ValueError, match=r"not be finite in up: W has NaN or Inf"):
        merge_files(base, adapter, tmp_path / "out", check_base=False)
    assert not (tmp_path / "out").exists()
    assert "wrong: up.weight: has NaN or Inf in it, in the base" in repr(
        check_adapter(adapter, base)
    )


def test_numbers_beyond_the_dtype_are_refused(files, tmp_path):
    base, adapter = files
    edit(base / "model.safetensors", replaced("norm.weight", np.full(8, 1e6, "f4")))
    with pytest.raises(ValueError, match=r"norm.weight has numbers that float16 has not"):
        merge_files(base, adapter, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()
    merge_files(base, adapter, tmp_path / "out", dtype="bfloat16")


def test_a_merge_that_loses_more_than_the_limit_is_refused(files, tmp_path):
    base, adapter = files
    lost = merge_files(base, adapter, tmp_path / "out", dtype="bfloat16").certificate
    worst = lost.worst("bfloat16").lost
    with pytest.raises(lora.MergeError, match="bfloat16"):
        merge_files(base, adapter, tmp_path / "no", dtype="bfloat16", limit=0.9 * worst)
    assert not (tmp_path / "no").exists()
    merge_files(base, adapter, tmp_path / "yes", dtype="bfloat16", limit=1.1 * worst)


def test_a_module_that_the_base_has_not_is_added(net, rng, tmp_path):
    lora.save(
        adapted_copy(net, rng, targets=["up"], modules_to_save=["head"]), tmp_path / "adapter"
    )
    base = base_of(net, tmp_path / "base")
    edit(base / "model.safetensors", without("head.weight", "head.bias"))
    merged = merge_files(base, tmp_path / "adapter", tmp_path / "out")
    assert sorted(merged.added) == ["head.bias", "head.weight"]
    assert "2 of them new to it" in repr(merged)
    assert {"head.bias", "head.weight"} <= state(tmp_path / "out").keys()
    found = check_adapter(tmp_path / "adapter", base)
    assert found.is_right
    assert "odd: head.bias: is trained in full, and not in the base" in repr(found)


def test_what_was_trained_in_full_and_is_missing_is_refused(net, rng, tmp_path):
    options = {"targets": ["up"], "bias": "all", "modules_to_save": ["head"]}
    lora.save(adapted_copy(net, rng, **options), tmp_path / "adapter")
    base = base_of(net, tmp_path / "base")
    # The model of an adapter may have no such heads, and newer versions of it no such buffers.
    buffers = {
        "head.rotary_emb.inv_freq": np.ones(3, "f4"),
        "head.attn.masked_bias": np.ones((), "f4"),
    }
    buffers |= {"head.attn.bias": np.ones((1, 1, 4, 4), "f4"), "head.position_ids": np.ones(4, int)}
    others = {"cls.bias": np.ones(3, "f4"), "decoder.head.weight": np.ones((3, 4), "f4"), **buffers}
    edit(base / "model.safetensors", lambda arrays: {**arrays, **others})
    inside = tmp_path / "inside.safetensors"
    save_state(inside, {f"net.{name}": x for name, x in state(base).items()})
    for each in (base, inside):
        assert check_adapter(tmp_path / "adapter", each).is_right
    merge_files(base, tmp_path / "adapter", tmp_path / "out")
    edit(tmp_path / "out" / "model.safetensors", without(*buffers))
    assert check_adapter(tmp_path / "adapter", base, tmp_path / "out").findings == ()
    gone = {"up.bias": f"{PREFIX}up.base_layer.bias"}
    gone |= {name: PREFIX + name for name in ("head.weight", "head.bias")}
    for name, key in gone.items():
        edit(tmp_path / "adapter" / WEIGHTS, without(key))
        for each, prefix in ((base, ""), (inside, "net.")):
            found = check_adapter(tmp_path / "adapter", each)
            assert f"wrong: base: missing: {prefix}{name} was trained in full" in repr(found)
        with pytest.raises(ValueError, match=f"missing: {name} was trained"):
            merge_files(base, tmp_path / "adapter", tmp_path / "no")
    assert not (tmp_path / "no").exists()
    configure(tmp_path / "adapter", bias="none", modules_to_save=None)
    merge_files(base, tmp_path / "adapter", tmp_path / "yes")


# ----------------------------------------------------------------------------------------------
# inspect and check
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_a_summary_has_the_figures_of_every_layer(name, net, rng, tmp_path):
    model = adapted_copy(net, rng, **OPTIONS[name])
    lora.save(model, tmp_path / "adapter")
    found = summarise(tmp_path / "adapter")
    layers = {n: m for n, m in model.named_modules() if isinstance(m, lora.AdaptedLayer)}
    assert [layer.name for layer in found.layers] == sorted(layers)
    for layer in found.layers:
        adapter = layers[layer.name].adapter
        a, b = (part.data.astype(np.float64) for part in adapter.factors())
        values = np.linalg.svd(adapter.scale * b @ a, compute_uv=False)
        assert (layer.d_in, layer.d_out, layer.rank) == (a.shape[1], len(b), len(a))
        assert layer.scale == pytest.approx(adapter.scale, rel=1e-12)
        np.testing.assert_allclose(
            layer.singular_values[: len(values)], values[: len(a)], atol=1e-9
        )
        assert layer.norm == pytest.approx(np.linalg.norm(values), rel=1e-9)
        shares = values[values > 1e-12] / values.sum()
        effective = np.exp(-(shares * np.log(shares)).sum())
        assert layer.effective_rank == pytest.approx(effective, rel=1e-6)
        assert layer.name in repr(found)
    for name_in_full in found.whole:
        assert f"in full: {name_in_full} (" in repr(found)
    total = sum(p.size for p in model.trainable_parameters())
    if name != "PiSSA":  # which is saved with twice the rank
        assert found.parameters == total


def test_an_update_of_nothing_has_no_effective_rank(net, rng, tmp_path):
    model = copy.deepcopy(net)
    lora.attach(model, lora.LoRAConfig(rank=2), rng=rng)
    lora.save(model, tmp_path / "adapter")
    assert {layer.effective_rank for layer in summarise(tmp_path / "adapter").layers} == {0.0}
    found = check_adapter(tmp_path / "adapter")
    assert found.is_right
    assert repr(found).count("B is 0, so B A changes nothing") == 3


UP_A, UP_B = f"{PREFIX}up.lora_A.weight", f"{PREFIX}up.lora_B.weight"


def scaled(arrays):
    arrays[UP_A][0, 0] = np.nan
    return arrays


WRONGS = {
    "not finite": (scaled, {}, "wrong: up: lora_a has 1 numbers that are NaN or Inf"),
    "B is gone": (without(UP_B), {}, "wrong: up: lora_b is missing"),
    "shapes": (replaced(UP_B, np.ones((8, 3), "f4")), {}, r"wrong: up: A is \(2, 6\) and B"),
    "a lost pattern": (lambda a: a, {"r": 3}, "wrong: up: the rank is 2 .* 3 by the config"),
    "a lost scale": (lambda a: a, {"lora_alpha": 77}, "wrong: up: the scale is 38.5 .* was"),
    "a lost rsLoRA": (lambda a: a, {"use_rslora": True}, "wrong: up: the scale is"),
    "no targets": (lambda a: a, {"target_modules": ["head"]}, "wrong: up: target_modules do not"),
    "a stray key": (
        replaced(f"{PREFIX}norm.weight", np.ones(8, "f4")),
        {},
        "odd: norm.weight: is not a part of an update",
    ),
    "another format": (
        replaced("up.lora_A.weight", np.ones((2, 6), "f4")),
        {},
        "wrong: up.lora_A.weight: is not a key of PEFT's",
    ),
    "a magnitude too many": (
        replaced(f"{PREFIX}up.lora_magnitude_vector", np.ones(8, "f4")),
        {},
        "wrong: up: has a magnitude, and use_dora is not set",
    ),
    "an alpha that no float has": (lambda a: a, {"lora_alpha": 10**400}, "(?s)wrong: .*lora_alpha"),
    "two updates of a layer": (
        replaced(f"{PREFIX}up.lora_embedding_A", np.ones((2, 6), "f4")),
        {},
        "(?s)wrong: files: .*up.lora_A.weight' and .*up.lora_embedding_A' are both lora_a of up",
    ),
    "two biases of a layer": (
        replaced(f"{PREFIX}head.bias", np.ones(3, "f4")),
        {},
        "(?s)wrong: files: .*head.base_layer.bias' and .*head.bias' are both head.bias",
    ),
    "no DoRA": (lambda a: a, {"use_dora": True}, "wrong: up: lora_magnitude is missing"),
    "no update": (
        lambda arrays: {key: x for key, x in arrays.items() if key.endswith("bias")},
        {},
        "wrong: files: there is no layer with an update",
    ),
    "an update that is gone": (
        without(UP_A, UP_B),
        {},
        "wrong: up: is in the metadata, and has no",
    ),
    "a bias of integers": (
        replaced(f"{PREFIX}head.base_layer.bias", np.zeros(3, int)),
        {},
        "wrong: base_model.model.head.base_layer.bias: has dtype int64, and not of float64",
    ),
    "another magnitude": (
        replaced(f"{PREFIX}up.lora_magnitude_vector", np.ones(7, "f4")),
        {"use_dora": True},
        r"wrong: up: the magnitude is \(7,\); it must be \(8,\)",
    ),
    "an attention layer of PyTorch": (
        lambda a: (
            a | {key.replace("up.", "up.base_layer.out_proj."): a[key] for key in (UP_A, UP_B)}
        ),
        {},
        "wrong: up.base_layer.out_proj: belongs to PyTorch's nn.MultiheadAttention",
    ),
    "zero": (replaced(UP_A, np.zeros((2, 6), "f4")), {}, "odd: up: A is 0, so B A changes nothing"),
    "integers": (replaced(UP_A, np.zeros((2, 6), int)), {}, "wrong: up: lora_a has dtype int64"),
    "a broken file": (None, {}, "wrong: files: .* is not a complete safetensors file"),
    "a field": (lambda a: a, {"lora_bias": True}, "(?s)wrong: files: .*lora_bias=True"),
    "an expression": (
        lambda a: a,
        {"modules_to_save": ["(x"]},
        "(?s)wrong: files: .*modules_to_save=.*not a regular expression",
    ),
    "an expression in another": (
        lambda a: a,
        {"rank_pattern": {"(?i)UP": 2}},
        "(?s)wrong: files: .*rank_pattern=.*not a regular expression.*flags",
    ),
    "another expression": (
        lambda a: a,
        {"layers_to_transform": [0], "layers_pattern": ["(l"]},
        "(?s)wrong: files: .*layers_pattern=.*not a regular expression",
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", WRONGS)
def test_what_is_wrong_with_an_adapter_is_found_and_not_merged(name, files, tmp_path, capsys):
    change, fields, message = WRONGS[name]
    base, adapter = files
    assert check_adapter(adapter, base).is_right
    if change is None:
        (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-1])
    else:
        edit(adapter / WEIGHTS, change)
    configure(adapter, **fields)
    found = check_adapter(adapter)
    assert re.search(message, repr(found))
    assert found.is_right is message.startswith("odd")
    assert main(["check", str(adapter)]) == (0 if found.is_right else WRONG)
    assert re.search(message, capsys.readouterr().out)
    arguments = ["merge", str(base), str(adapter), str(tmp_path / "out"), "--any-base"]
    assert main(arguments) == (0 if found.is_right else FAILED)
    if not found.is_right:
        pattern = message.split("wrong: ")[1].removeprefix("files: ")
        assert re.search(pattern, capsys.readouterr().err)


def test_targets_without_tensors_are_named(files, tmp_path):
    base, adapter = files
    edit(adapter / WEIGHTS, without(UP_A, UP_B))
    arrays = load_state(adapter / WEIGHTS)[0]
    save_state(adapter / WEIGHTS, arrays)  # without the metadata that lora.save adds
    targets = [*config_of(adapter)["target_modules"], "lost"]
    configure(adapter, target_modules=targets)
    alone = check_adapter(adapter)
    odd = "odd: target_modules: 2 names, 'up', 'lost', have no tensors in the file; if they are in "
    assert odd in repr(alone)
    assert alone.is_right
    with_base = check_adapter(adapter, base)
    assert "odd: target_modules: 1 layer of the base, 'up', has no tensors" in repr(with_base)
    assert with_base.is_right
    configure(adapter, target_modules=targets, exclude_modules=["up"])
    assert "no tensors" not in repr(check_adapter(adapter, base))
    configure(adapter, target_modules="up|square|head", exclude_modules=None)
    assert "1 layer of the base, 'up', has" in repr(check_adapter(adapter, base))


def test_a_layer_outside_of_the_adapted_part_of_a_base_is_no_target(files):
    base, adapter = files
    edit(
        base / "model.safetensors",
        lambda arrays: (
            {f"model.{name}": x for name, x in arrays.items()}
            | {"classifier.weight": np.ones((2, 8), "f4")}
        ),
    )
    configure(adapter, target_modules=r"(?!table).*")
    found = repr(check_adapter(adapter, base))
    assert "1 layer of the base, 'embed', has no tensors" in found
    assert "classifier" not in found


def test_an_attention_layer_of_pytorch_is_no_sign_of_another_base(files, tmp_path):
    base, adapter = files
    arrays = {}
    for layer, size in (("mha", 24), ("mha.base_layer.out_proj", 8)):
        arrays[f"{PREFIX}{layer}.lora_A.weight"] = np.ones((2, 8), "f4")
        arrays[f"{PREFIX}{layer}.lora_B.weight"] = np.ones((size, 2), "f4")
    save_state(adapter / WEIGHTS, arrays)
    configure(adapter, target_modules=["mha"], bias="none")
    edit(base / "model.safetensors", replaced("mha.in_proj_weight", np.ones((24, 8), "f4")))
    wrong = [each.where for each in check_adapter(adapter, base).findings if each.level == "wrong"]
    assert sorted(wrong) == ["mha", "mha.base_layer.out_proj"]


def test_what_cannot_be_summarised_or_checked_is_an_error(files, tmp_path):
    base, adapter = files
    edit(adapter / WEIGHTS, replaced(UP_B, np.ones((8, 3), "f4")))
    with pytest.raises(ValueError, match=r"up: A is \(2, 6\) and B \(8, 3\); they must be"):
        summarise(adapter)
    edit(adapter / WEIGHTS, without(UP_B))
    with pytest.raises(ValueError, match="up has no lora_b"):
        summarise(adapter)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        check_adapter(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"merged in float64, .* not in 'int8'"):
        merge_files(base, adapter, tmp_path / "out", dtype="int8")


def test_an_adapter_may_repeat_the_weight_of_an_embedding(net, rng, tmp_path):
    lora.save(adapted_copy(net, rng, targets=["embed"]), tmp_path / "adapter")
    base = base_of(net, tmp_path / "base")
    merge_files(base, tmp_path / "adapter", tmp_path / "out")
    key = f"{PREFIX}embed.base_layer.weight"
    edit(tmp_path / "adapter" / WEIGHTS, replaced(key, net.embed.weight.data))
    assert check_adapter(tmp_path / "adapter", base).findings == ()
    merge_files(base, tmp_path / "adapter", tmp_path / "again")
    assert snapshot(tmp_path / "again") == snapshot(tmp_path / "out")
    edit(tmp_path / "adapter" / WEIGHTS, replaced(key, 2 * net.embed.weight.data))
    with pytest.raises(ValueError, match=r"another base: .*embed.base_layer.weight"):
        merge_files(base, tmp_path / "adapter", tmp_path / "no")


# ----------------------------------------------------------------------------------------------
# extract
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_what_was_merged_is_extracted_again(name, net, rng, tmp_path):
    options = OPTIONS[name]
    lora.save(adapted_copy(net, rng, **options), tmp_path / "adapter")
    base = base_of(net, tmp_path / "base")
    merge_files(base, tmp_path / "adapter", tmp_path / "tuned")
    rank = 8 if options.get("use_dora") else 4
    found = extract_files(
        base,
        tmp_path / "tuned",
        tmp_path / "again",
        rank,
        bias=options.get("bias", "none"),
        modules_to_save=options.get("modules_to_save", ()),
        exclude=options.get("modules_to_save", ["head"])[:1]
        if "modules_to_save" in options
        else (),
    )
    assert {row.name for row in found.layers} == set(loaded_layers(tmp_path / "adapter"))
    assert all(row.relative_error < 1e-5 for row in found.layers)  # what the merge rounded
    assert check_adapter(tmp_path / "again", base).is_right
    merge_files(base, tmp_path / "again", tmp_path / "twice")
    right, twice = state(tmp_path / "tuned"), state(tmp_path / "twice")
    for key, value in right.items():
        np.testing.assert_allclose(twice[key], value, rtol=1e-5, atol=1e-6)  # rounded factors
    model = copy.deepcopy(net)
    lora.load(model, tmp_path / "again")


def test_an_extracted_adapter_is_the_best_of_its_rank(net, rng, tmp_path):
    base = base_of(net, tmp_path / "base")
    tuned = copy.deepcopy(net)
    change = rng.standard_normal((8, 8)).astype("f4")
    tuned.square.weight.data = net.square.weight.data + change
    base_of(tuned, tmp_path / "tuned")
    (row,) = extract_files(base, tmp_path / "tuned", tmp_path / "out", 3).layers
    exact = tuned.square.weight.data.astype(float) - net.square.weight.data.astype(float)
    values = np.linalg.svd(exact, compute_uv=False)
    assert row.error == pytest.approx(np.linalg.norm(values[3:]), rel=1e-9)
    assert row.energy == pytest.approx((values[:3] ** 2).sum() / (values**2).sum(), rel=1e-9)
    (layer,) = summarise(tmp_path / "out").layers
    np.testing.assert_allclose(layer.singular_values, values[:3], rtol=1e-5)  # float32's factors


NOTHING_LOST = {
    "a bias": (lambda a: replaced("norm.bias", np.ones(8, "f4"))(a), {}, "norm.bias; copy"),
    "an excluded layer": (lambda a: a, {"exclude": ["square"]}, "square.weight; copy"),
    "a pattern": (lambda a: a, {"targets": ["nope"]}, "targets: 'nope' matches none of"),
    "a module": (
        lambda a: a,
        {"modules_to_save": ["no"]},
        "modules_to_save: 'no' matches none of embed, head",
    ),
    "a name": (without("head.bias"), {}, "missing: head.bias"),
    "one too many": (replaced("more", np.ones(3, "f4")), {}, "unexpected: 'more'; modules_to_save"),
    "a head": (
        replaced("out.weight", np.ones(3, "f4")),
        {},
        r"'out.weight' \(.* 'up.weight'\?\); ",
    ),
    "a shape": (replaced("head.bias", np.ones(4, "f4")), {}, r"mis-shaped: head.bias is \(4,\)"),
    "NaN": (replaced("up.weight", np.full((8, 6), np.nan, "f4")), {}, "up.weight has NaN"),
    "rank": (lambda a: a, {"rank": 0}, "rank"),
}


@pytest.mark.parametrize("name", NOTHING_LOST)
def test_nothing_of_a_difference_is_lost_without_a_word(name, net, rng, tmp_path):
    change, options, message = NOTHING_LOST[name]
    base = base_of(net, tmp_path / "base")
    tuned = copy.deepcopy(net)
    for layer in (tuned.up, tuned.square):
        layer.weight.data = layer.weight.data + np.float32(0.1)
    base_of(tuned, tmp_path / "tuned")
    edit(tmp_path / "tuned" / "model.safetensors", change)
    options = {"rank": 2, **options}
    with pytest.raises(ValueError, match=message):
        extract_files(base, tmp_path / "tuned", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    if "take" in message:
        found = extract_files(base, tmp_path / "tuned", tmp_path / "out", **options, lossy=True)
        assert list(found.lost) == [message.removesuffix("; take")]
        assert "LOST" in repr(found)


@pytest.mark.parametrize("says", [False, True])
def test_weights_that_are_stored_transposed_are_extracted_as_others(says, net, rng, tmp_path):
    tuned = copy.deepcopy(net)
    for layer in (tuned.up, tuned.square):
        layer.weight.data = net.square.weight.data[:, : layer.weight.shape[1]] + layer.weight.data
    models = {"base": net, "tuned": tuned}
    for name, model in models.items():
        base_of(model, tmp_path / name)
    extract_files(tmp_path / "base", tmp_path / "tuned", tmp_path / "right", 2)
    for name in models:
        edit(
            tmp_path / name / "model.safetensors",
            lambda arrays: {
                k: x.T.copy() if k in ("up.weight", "square.weight", "head.weight") else x
                for k, x in arrays.items()
            },
        )
    paths = tmp_path / "base", tmp_path / "tuned", tmp_path / "found"
    extract_files(*paths, 2, fan_in_fan_out=says)
    right, found = (load_state(tmp_path / name / WEIGHTS)[0] for name in ("right", "found"))
    for part in ("up", "square"):
        products = [
            arrays[f"{PREFIX}{part}.lora_B.weight"] @ arrays[f"{PREFIX}{part}.lora_A.weight"]
            for arrays in (right, found)
        ]
        np.testing.assert_allclose(*products, rtol=1e-5, atol=1e-6)  # another order of sums
    assert json.loads((tmp_path / "found" / CONFIG).read_text())["fan_in_fan_out"]


def test_all_biases_are_all_though_some_are_as_they_were(net, tmp_path):
    tuned = copy.deepcopy(net)
    tuned.up.weight.data = tuned.up.weight.data + np.float32(0.1)
    tuned.head.bias.data = tuned.head.bias.data + np.float32(0.1)
    base_of(net, tmp_path / "base")
    base_of(tuned, tmp_path / "tuned")
    found = extract_files(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", 1, bias="all")
    assert set(found.whole) == {f"{name}.bias" for name in ("up", "norm", "square", "head")}
    lora.load(net, tmp_path / "out")
    np.testing.assert_array_equal(net.head.bias.data, tuned.head.bias.data)


@pytest.mark.parametrize(
    ("name", "is_table"),
    [
        *[("embed_out", False), ("embeddings_project", False), ("position_embedding", True)],
        *[("word_embeddings", True), ("embed_tokens", True), ("wte", True), ("embed_in", True)],
    ],
)
def test_a_table_differs_from_a_linear_layer_by_its_name(name, is_table, net, tmp_path):
    weight = net.square.weight.data
    for folder, change in (("base", 0), ("tuned", 0.1)):
        arrays = {f"a.{name}.weight": weight + np.float32(change), "a.embeddings.bias": weight[0]}
        (tmp_path / folder).mkdir()
        save_state(tmp_path / folder / "model.safetensors", arrays)
    paths = tmp_path / "base", tmp_path / "tuned", tmp_path / "out"
    assert bool(extract_files(*paths, 1).embeddings) is is_table
    for path in paths[:2]:
        edit(path / "model.safetensors", replaced(f"a.{name}.bias", weight[0]))
    assert not extract_files(*paths, 1).embeddings


def test_an_extracted_update_of_a_tied_embedding_is_reported(net, tmp_path):
    tuned = copy.deepcopy(net)
    tuned.embed.weight.data = tuned.embed.weight.data + np.float32(0.1)
    base = base_of(net, tmp_path / "base")
    (base / "config.json").write_text(json.dumps({"vocab_size": 11}))
    found = extract_files(base, base_of(tuned, tmp_path / "tuned"), tmp_path / "out", 1)
    assert found.tied == ("embed.weight",)
    assert "embed.weight may be the weight of the head too" in repr(found)


def test_an_unknown_kind_of_bias_is_refused_before_a_file_is_read(tmp_path):
    with pytest.raises(ValueError, match="bias is one of none, all, lora_only, not 'some'"):
        extract_files(tmp_path / "none", tmp_path / "none", tmp_path / "out", 1, bias="some")


@pytest.mark.parametrize("which", ["base", "tuned", "base/model.safetensors"])
def test_no_adapter_is_put_into_the_folder_of_a_model(which, net, rng, tmp_path):
    base, tuned = base_of(net, tmp_path / "base"), base_of(Net(rng), tmp_path / "tuned")
    before = snapshot(tmp_path)
    named, out = tmp_path / which, tmp_path / which.split("/")[0]
    pair = (named, tuned) if which != "tuned" else (base, named)
    with pytest.raises(ValueError, match="is the folder of a model; name another one"):
        extract_files(*pair, out, 1, bias="all")
    assert snapshot(tmp_path) == before


def test_no_adapter_is_put_into_the_folder_of_another_model(net, rng, tmp_path):
    base, tuned = base_of(net, tmp_path / "base"), base_of(Net(rng), tmp_path / "tuned")
    other = base_of(net, tmp_path / "other")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="other' is the folder of a model; name another one"):
        extract_files(base, tuned, other, 1, bias="all")
    assert snapshot(tmp_path) == before


def test_an_adapter_is_extracted_only_if_it_can_be_written(net, rng, tmp_path, monkeypatch):
    base, tuned = base_of(net, tmp_path / "base"), base_of(Net(rng), tmp_path / "tuned")
    monkeypatch.setattr("lora.offline.extracting.WorkerPool", None)  # no work begins
    before = snapshot(tmp_path)
    with pytest.raises(
        NotADirectoryError, match=r"config.json' is not a folder, and a folder is needed there"
    ):
        extract_files(base, tuned, base / "config.json" / "out", 1, bias="all")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(PermissionError, match="nothing can be written into the folder"):
        extract_files(base, tuned, tmp_path / "new" / "out", 1, bias="all")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_not_finite_in_both_models_is_the_same(dtype, net, rng, tmp_path):
    lora.save(adapted_copy(net, rng, targets=["up"]), tmp_path / "adapter")
    arrays = net.state_dict() | {"mask": np.array([np.nan, -np.inf, 0.0], np.float32)}
    infos = [
        TensorInfo(name, dtype if name == "mask" else "float32", x.shape)
        for name, x in arrays.items()
    ]
    base, merged = tmp_path / "base.safetensors", tmp_path / "merged.safetensors"
    with writing(base, infos) as writer:
        for name, x in arrays.items():
            writer.write(name, x)
    merge_files(base, tmp_path / "adapter", merged)
    assert check_adapter(tmp_path / "adapter", base, merged).is_right
    found = extract_files(base, merged, tmp_path / "extracted", 2)
    assert [layer.name for layer in found.layers] == ["up"]
    edit(merged, replaced("mask", np.array([0.0, -np.inf, np.nan], np.float32)))
    assert not check_adapter(tmp_path / "adapter", base, merged).is_right
    with pytest.raises(ValueError, match="would not have: mask"):
        extract_files(base, merged, tmp_path / "extracted", 2)


def test_models_that_are_the_same_have_nothing_to_extract(net, tmp_path):
    base = base_of(net, tmp_path / "base")
    with pytest.raises(ValueError, match="none of the targets differs"):
        extract_files(base, base, tmp_path / "out", 2)


@pytest.mark.parametrize("role", ["targets", "exclude", "embeddings", "modules_to_save"])
def test_one_string_is_no_list_of_names(role, net, tmp_path):
    base = base_of(net, tmp_path / "base")
    with pytest.raises(TypeError, match=f"{role} are names, as in .'wte'., not one string"):
        extract_files(base, base, tmp_path / "out", 2, **{role: "wte"})


# ----------------------------------------------------------------------------------------------
# The command line
# ----------------------------------------------------------------------------------------------


def run(*arguments, capsys):
    status = main([str(each) for each in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_flipped_bit_in_a_base_is_found(files, tmp_path):
    base, adapter = files
    content = bytearray((base / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (base / "model.safetensors").write_bytes(content)
    finding = check_adapter(adapter, base).findings[0]
    assert (finding.level, finding.where) == ("wrong", "base")
    assert "is damaged" in finding.what
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="is damaged, or another program has changed it"):
        merge_files(base, adapter, tmp_path / "out", check_base=False)
    assert snapshot(tmp_path) == before


def test_commands_print_what_the_functions_say(files, tmp_path, capsys):
    base, adapter = files
    status, text, _ = run("inspect", adapter, capsys=capsys)
    assert (status, text.strip()) == (0, repr(summarise(adapter)))
    status, text, _ = run("merge", base, adapter, tmp_path / "out", capsys=capsys)
    assert status == 0
    assert text.startswith("Merging 3 layers loses at most")
    assert f"written: {tmp_path / 'out'}" in text
    status, text, _ = run("check", adapter, base, capsys=capsys)
    assert (status, text.strip()) == (0, "3 layers and the base checked: nothing is wrong")
    arguments = base, tmp_path / "out", tmp_path / "again", "--rank", 2, "--bias", "lora_only"
    status, text, _ = run("extract", *arguments, capsys=capsys)
    assert status == 0
    assert "energy" in text


def test_a_command_can_be_stopped(files, tmp_path, capsys, monkeypatch):
    base, adapter = files

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("minigrad.io.tensor_file.TensorWriter.write", stop)
    before = snapshot(tmp_path)
    status, _, message = run("merge", base, adapter, tmp_path / "out", capsys=capsys)
    assert status == STOPPED
    assert message == f"lora merge: stopped; {tmp_path / 'out'} is as before, or complete\n"
    assert snapshot(tmp_path) == before


@pytest.mark.sampled(5)
@pytest.mark.parametrize("moment", ["before", "after", "at the end"])
@pytest.mark.parametrize("command", ["merge", "merge to a file", "extract", "inspect"])
def test_a_command_that_is_stopped_leaves_all_or_nothing(
    command, moment, files, tmp_path, capsys, monkeypatch
):
    base, adapter = files
    out = tmp_path / ("out.safetensors" if "file" in command else "out")
    merged = tmp_path / "merged"
    merge_files(base, adapter, merged)
    arguments = {
        "merge": ("merge", base, adapter, out),
        "merge to a file": ("merge", base, adapter, out),
        "extract": ("extract", base, merged, out, "--rank", 2, "--bias", "lora_only"),
        "inspect": ("inspect", adapter, "--plot", tmp_path / "out.png"),
    }[command]
    if command == "inspect":
        out = tmp_path / "out.png"
    replace = os.replace

    moments = [moment]

    def stop(*names):
        is_inside = ".saving-" in os.fspath(names[1])  # a file that nobody sees yet
        if is_inside or moments != ["before"]:
            replace(*names)
        if moments and not is_inside:
            moments.clear()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "at the end":
            result = {"merge": MergedFiles, "extract": ExtractedFiles, "inspect": Summary}
            patch.setattr(result[command.split()[0]], "__repr__", stop_now)
        else:
            patch.setattr(os, "replace", stop)
        status, _, message = run(*arguments, capsys=capsys)
    assert status == STOPPED
    assert message.endswith(f"stopped; {out} is as before, or complete\n")
    if moment == "before":
        assert not out.exists()
    else:
        assert not any(each.name.startswith(".") for each in tmp_path.rglob("*"))
        if command.startswith("merge"):
            with open_tensors(out) as tensors:
                assert len(tensors) == len(state(merged))
        elif command == "extract":
            assert summarise(out).layers


def stop_now(*_):
    raise KeyboardInterrupt


def test_no_name_in_a_file_gives_orders_to_the_terminal(files, tmp_path, capsys):
    base, adapter = files
    configure(adapter, base_model_name_or_path="\x1b[2J\n0 wrong\ud800")
    status, text, _ = run("inspect", adapter, capsys=capsys)
    assert (status, text.count("\x1b"), text.count("\ud800")) == (0, 0, 0)
    assert r"base: '\x1b[2J\n0 wrong\ud800'" in text
    edit(base / "model.safetensors", replaced("a.weight\x1b[2J", np.ones((1, 1), "f4")))
    edit(base / "model.safetensors", without("up.weight"))
    status, _, message = run("merge", base, adapter, tmp_path / "out", capsys=capsys)
    assert (status, message.count("\x1b")) == (FAILED, 0)
    assert r"a.weight\x1b[2J" in message


def test_letters_that_the_output_lacks_are_printed_as_escapes(files, tmp_path, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    assert main(["merge", *map(str, files), str(tmp_path / "模型é")]) == 0
    assert rb"\u6a21\u578b" + "é".encode("latin-1") in written.getvalue()


def test_json_is_for_machines(files, tmp_path, capsys):
    base, adapter = files
    _, text, _ = run("inspect", adapter, "--json", capsys=capsys)
    content = json.loads(text)
    assert [layer["name"] for layer in content["layers"]] == ["head", "square", "up"]
    assert content["layers"][0]["norm"] == summarise(adapter).layers[0].norm
    _, text, _ = run("merge", base, adapter, tmp_path / "out", "--json", capsys=capsys)
    assert {row["layer"] for row in json.loads(text)["certificate"]["rows"]} == {
        "head",
        "square",
        "up",
    }
    edit(adapter / WEIGHTS, without(UP_B))
    status, text, _ = run("check", adapter, "--json", capsys=capsys)
    assert status == WRONG
    assert json.loads(text)["findings"][0]["where"] == "up"


def test_the_status_says_what_happened(files, tmp_path, capsys):
    base, adapter = files
    arguments = "merge", base, adapter, tmp_path / "out", "--dtype", "bfloat16", "--limit", "1e-6"
    status, text, message = run(*arguments, capsys=capsys)
    assert (status, text) == (WRONG, "")
    assert message.startswith("lora merge: stored in bfloat16")
    status, text, message = run("inspect", tmp_path / "nowhere", capsys=capsys)
    assert (status, text) == (FAILED, "")
    assert message == f"lora inspect: there is no folder {str(tmp_path / 'nowhere')!r}\n"
    with pytest.raises(SystemExit) as ended:
        main(["explode"])
    assert ended.value.code == FAILED
    assert "inspect" in capsys.readouterr().err
    assert main([]) == FAILED
    assert "add the update of an adapter to the weights of a base" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a full device")
def test_the_status_is_the_same_if_no_message_can_be_written(tmp_path, monkeypatch):
    nowhere = str(tmp_path / "nowhere")
    with suppress(OSError), open("/dev/full", "w", buffering=1) as full:  # its end writes once more
        monkeypatch.setattr(sys, "stderr", full)
        statuses = [main(["check", nowhere])]
        monkeypatch.setattr("lora.__main__.summarise", stop_now)
        statuses.append(main(["inspect", nowhere]))
    assert statuses == [FAILED, STOPPED]
    command = f"{sys.executable} -m lora check {shlex.quote(nowhere)} 2>/dev/full"
    assert subprocess.run(command, shell=True, cwd=ROOT).returncode == FAILED


@pytest.mark.parametrize("ending", ["", ".safetensors", ".png"])
def test_a_path_that_is_too_long_is_reported_in_one_sentence(ending, files, tmp_path, capsys):
    out = tmp_path / ("x" * 300 + ending)
    command = ["inspect", files[1], "--plot"] if ending == ".png" else ["merge", *files]
    status, printed, message = run(*command, out, capsys=capsys)
    assert (status, printed) == (FAILED, "")
    assert re.fullmatch(rf"lora {command[0]}: .*File name too long: .*\n", message)


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="root may enter any folder")
@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_a_folder_that_may_not_be_entered_is_reported_in_one_sentence(
    name, files, tmp_path, capsys
):
    closed = made(tmp_path / "closed")
    closed.chmod(0)
    try:
        status, printed, message = run("merge", *files, closed / name, capsys=capsys)
    finally:
        closed.chmod(0o700)
    assert (status, printed) == (FAILED, "")
    assert re.fullmatch(r"lora merge: .*Permission denied: .*\n", message)


def test_a_path_that_is_empty_is_none(files, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["merge", *map(str, files), ""])
    assert ended.value.code == FAILED
    assert "a path is empty" in capsys.readouterr().err


@pytest.mark.full
def test_a_reader_may_have_had_enough(files):
    command = [sys.executable, "-m", "lora", "inspect", str(files[1])]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)


def test_it_runs_as_a_module(files):
    result = subprocess.run(
        [sys.executable, "-m", "lora", "check", str(files[1])],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (0, "3 layers checked: nothing is wrong\n")


def test_verify_is_another_name_of_check(files, capsys):
    status, text, _ = run("verify", files[1], capsys=capsys)
    assert (status, text) == (0, "3 layers checked: nothing is wrong\n")


@pytest.mark.parametrize("name", ["p.png", "p.svg"])
def test_the_picture_has_every_layer(name, files, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    status, text, _ = run("inspect", files[1], "--plot", tmp_path / name, capsys=capsys)
    assert status == 0
    assert text.endswith(f"drawn: {tmp_path / name}\n")
    assert (tmp_path / name).stat().st_size > 1000
    status, _, message = run("inspect", files[1], "--plot", tmp_path / "p.doc", capsys=capsys)
    assert status == FAILED
    assert "not a picture" in message
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(files[1]), "--plot", ""])
    assert ended.value.code == FAILED
    assert "a path is empty" in capsys.readouterr().err


def test_a_picture_on_a_slow_machine_gives_no_warning(files, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    clock = SimpleNamespace(perf_counter=itertools.count(step=2).__next__)
    monkeypatch.setattr("matplotlib.legend.time", clock)
    draw(summarise(files[1]), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").is_file()


@pytest.mark.parametrize("which", ["lora_A", "lora_B"])
def test_a_layer_that_is_not_finite_is_drawn_as_such(which, hostile):
    pytest.importorskip("matplotlib")

    def change(arrays):
        broken = next(key for key in arrays if which in key)
        arrays[broken] = np.full_like(arrays[broken], np.nan)

    summary = summarise(hostile(change)[0])
    norms, spectra = draw(summary).axes
    (broken,) = [y for y, layer in enumerate(summary.layers) if np.isnan(layer.norm)]
    (remark,) = norms.texts
    assert (remark.get_text().strip(), remark.get_position()[1]) == ("not finite", broken)
    assert len(norms.patches) == len(summary.layers) - 1
    assert all(np.isfinite(bar.get_width()) for bar in norms.patches)
    names = [text.get_text() for text in spectra.get_legend().get_texts()]
    assert names[broken] == f"{summary.layers[broken].name}: not finite"


@pytest.mark.full
def test_files_with_mistakes_are_read_right_or_refused(net, rng, tmp_path, capsys):
    options = {"targets": ["embed", "up"], "use_dora": True, "bias": "lora_only"}
    model = adapted_copy(net, rng, modules_to_save=["head"], **options)
    lora.save(model, tmp_path / "adapter")
    base = base_of(net, tmp_path / "base")
    merge_files(base, tmp_path / "adapter", tmp_path / "tuned")
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    paths = adapter / CONFIG, adapter / WEIGHTS, base / "model.safetensors"
    for path in paths[1:]:
        drop_checksum(path)
    contents = [path.read_bytes() for path in paths]
    commands = {
        "inspect": (adapter, "--json"),
        "check": (adapter, base),
        "merge": (base, adapter, out),
        "extract": (base, tmp_path / "tuned", out, "--rank", 2, "--lossy"),
    }
    ended = set()
    for _ in range(120):
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        which = rng.integers(len(paths))
        paths[which].write_bytes(mutated(rng, contents[which]))
        for command, arguments in commands.items():
            if paths[which].parent not in arguments:
                continue
            status, _, message = run(command, *arguments, capsys=capsys)
            ended.add((command, status))
            assert bool(message.strip()) == (status == FAILED)
            if command in ("merge", "extract"):
                assert out.exists() == (status == 0)
            shutil.rmtree(out, ignore_errors=True)
    assert {(c, s) for c in ("inspect", "merge", "extract") for s in (0, FAILED)} < ended
    assert {("check", status) for status in (0, WRONG, FAILED)} < ended


# ----------------------------------------------------------------------------------------------
# Names and numbers that no training has made
# ----------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path):
    """A base, and a function that returns an adapter for it with other tensors."""
    folder = Path(shutil.copytree(FOLDERS / "linear", tmp_path / "adapter"))
    base = tmp_path / "base.safetensors"
    save_state(base, model_of("mlp").state_dict())

    def made(change):
        edit(folder / WEIGHTS, change)
        return folder, base

    return made


def test_long_names_make_no_long_reports(hostile):
    def change(arrays):
        arrays |= {f"{PREFIX}{'x' * 10**6}.lora_{part}.weight": each for part, each in odd}
        arrays[f"{PREFIX}{'y' * 10**6}.weight"] = np.ones(1, np.float32)

    odd = (("A", np.ones((2, 4), np.float32)), ("B", np.ones((3, 2), np.float32)))
    folder, base = hostile(change)
    configure(folder, base_model_name_or_path="z" * 10**6, target_modules=["v" * 10**6])
    for report in (summarise(folder), check_adapter(folder), check_adapter(folder, base)):
        assert max(map(len, repr(report).splitlines())) < 2000


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [1e300, 3e38, 1e-45, 1e-300, 65504.0, np.inf, np.nan])
@pytest.mark.parametrize("parts", ["A", "AB"])
def test_numbers_of_any_size_are_read_without_a_warning(hostile, dtype, value, parts):
    def change(arrays):
        for key, array in arrays.items():
            filled = key.split(".lora_")[1][0] in parts
            with np.errstate(over="ignore"):
                arrays[key] = np.full(array.shape, value, dtype) if filled else array

    folder, base = hostile(change)
    assert len(repr(summarise(folder))) > 100
    assert len(repr(check_adapter(folder, base))) > 20
    with suppress(ValueError):
        lora.load(model_of("mlp"), folder)
    with suppress(ValueError):
        merge_files(base, folder, folder / "out.safetensors")
