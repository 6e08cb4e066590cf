"""Files there and back with PEFT itself: it computes with ours what we do, and we with its."""

import copy
import json
import re

import numpy as np
import pytest

import lora
import minigrad as mg
from lora import LoRAConfig
from lora.peft import CONFIG, PeftConfig
from tests.lora.folders import TOLERANCE, moved, relative
from tests.lora.models import TiedNet, batch_normed
from tests.peers import lora_cases as ours
from tests.peers.lora_cases import CASES, one

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),  # PEFT's and PyTorch's own
]

SINGLE = {name: case for name, case in CASES.items() if len(case.adapters) == 1} | {
    "all linear": one("transformer", "all-linear", use_dora=True, dora_norm_gradient=True),
    "expression": one("transformer", r"block\.attn\.[qk]_proj|head"),
    "attention by name": one("transformer", ["attn"], scaling="rslora"),
    "expression for a list": one("mlp", r"layers.*"),
    "a module inside of another": one("transformer", ["head"], modules_to_save=["block", "norm2"]),
    "excluded": one("transformer", "all-linear", exclude=["head", "attn"]),
    "indices": one("mlp", "all-linear", layers_to_transform=[0, 2]),
    "PiSSA, some rounds": one("mlp", ["0", "1"], init="pissa_niter_2", scaling="rslora"),
    "PiSSA, patterns": one("mlp", ["0", "1"], init="pissa", rank_pattern={"1": 2}),
    "norms": one("transformer", ["q_proj"], bias="all", modules_to_save=["norm2", "head"]),
    "biases and a module": one("mlp", ["0"], bias="all", modules_to_save=["layers.2"]),
}


@pytest.fixture
def theirs():
    for package in ("torch", "peft"):
        pytest.importorskip(package)
    from tests.peers import peft

    return peft


def our_base(kind, dtype):
    model = ours.MODELS[kind](dtype)
    model.load_state_dict(ours.in_dtype(ours.base(kind), dtype))
    return model


def their_base(theirs, kind, dtype):
    import torch

    model = theirs.MODELS[kind]().to(getattr(torch, dtype))
    state = ours.in_dtype(ours.base(kind), dtype)
    model.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    return model


def inputs(kind, dtype):
    return ours.in_dtype(ours.data(kind), dtype)["x"]


def our_output(model, kind, dtype):
    return model(mg.tensor(inputs(kind, dtype))).data


def their_output(folder, theirs, kind, dtype):
    """What PEFT computes with a folder over the base."""
    import torch
    from peft import PeftModel

    base = their_base(theirs, kind, dtype)
    model = PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=False)
    return model(torch.tensor(inputs(kind, dtype))).detach().numpy()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SINGLE)
def test_peft_computes_with_our_files_what_we_do(theirs, name, dtype, tmp_path):
    case = SINGLE[name]
    model = our_base(case.model, dtype)
    lora.attach(model, case.adapters["default"], rng=np.random.default_rng(2))
    moved(model, np.random.default_rng(1))
    lora.save(model, tmp_path)
    wanted = our_output(model, case.model, dtype)
    assert relative(wanted, our_output(our_base(case.model, dtype), case.model, dtype)) > 1e-3
    found = their_output(tmp_path, theirs, case.model, dtype)
    assert relative(found, wanted) <= TOLERANCE[dtype]


def is_pissa(case):
    return case.adapters["default"].init == "pissa"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name, case in CASES.items()
        for dtype in TOLERANCE
        if len(case.adapters) == 1 and not (is_pissa(case) and dtype == "float64")  # PEFT refuses
    ],
)
def test_we_compute_with_files_of_peft_what_it_does(theirs, name, dtype, tmp_path):
    import torch

    case = CASES[name]
    there = theirs.attached(case, ours.base(case.model), dtype)
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for parameter in there.parameters():
            if parameter.requires_grad:
                step = torch.tensor(0.1 * rng.standard_normal(parameter.shape))
                parameter += step.to(parameter.dtype)
    there.save_pretrained(tmp_path)
    wanted = there(torch.tensor(inputs(case.model, dtype))).detach().numpy()
    model = our_base(case.model, dtype)
    lora.load(model, tmp_path)
    limit = 3e-6 if is_pissa(case) else TOLERANCE[dtype]  # PEFT takes float32 products off its base
    assert relative(our_output(model, case.model, dtype), wanted) <= limit


def their_batch_norm():
    import torch

    torch.manual_seed(0)
    linear, norm = torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)
    return torch.nn.Sequential(linear, norm).double()


def our_batch_norm():
    model = batch_normed()
    model.load_state_dict({n: t.numpy() for n, t in their_batch_norm().state_dict().items()})
    return model


def test_running_statistics_travel_both_ways_with_their_module(theirs, rng, tmp_path):
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    x, batch = rng.standard_normal((5, 4)), 5 * rng.standard_normal((8, 4)) + 3
    ours_there = our_batch_norm()
    lora.attach(ours_there, LoRAConfig(rank=2, targets=["0"], modules_to_save=["1"]))
    ours_there(batch)
    lora.save(ours_there, tmp_path / "ours")
    there = PeftModel.from_pretrained(their_batch_norm(), tmp_path / "ours")
    found = there.eval()(torch.tensor(x)).detach().numpy()
    assert relative(found, ours_there.eval()(x).data) <= TOLERANCE["float64"]
    there = get_peft_model(
        their_batch_norm(), LoraConfig(r=2, target_modules=["0"], modules_to_save=["1"])
    )
    there(torch.tensor(batch))
    there.save_pretrained(tmp_path / "theirs")
    here = our_batch_norm().eval()
    lora.load(here, tmp_path / "theirs")
    assert here[1].num_batches_tracked == 1
    wanted = there.eval()(torch.tensor(x)).detach().numpy()
    assert relative(here(x).data, wanted) <= TOLERANCE["float64"]


def test_pissa_of_a_layer_smaller_than_the_rank_is_read(theirs, tmp_path):
    import torch
    from peft import LoraConfig as TheirConfig
    from peft import get_peft_model

    base = their_base(theirs, "mlp", "float32")
    options = {"r": 8, "target_modules": ["layers.0", "layers.2"], "init_lora_weights": "pissa"}
    there = get_peft_model(base, TheirConfig(**options))
    with torch.no_grad():
        for parameter in there.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    there.save_pretrained(tmp_path)
    model = our_base("mlp", "float32")
    lora.load(model, tmp_path)
    wanted = there(torch.tensor(inputs("mlp", "float32"))).detach().numpy()
    assert relative(our_output(model, "mlp", "float32"), wanted) <= 3e-6


def test_pissa_changes_the_other_layer_of_a_tied_weight_in_peft(theirs, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    net = TiedNet(np.random.default_rng(0), np.float32)
    there = torch.nn.ModuleDict(
        {"table": torch.nn.Embedding(7, 5), "head": torch.nn.Linear(5, 7, False)}
    )
    there["table"].weight = there["head"].weight
    before = there["table"].weight.detach().numpy().copy()
    net.table.weight.data = before
    options = {"r": 2, "target_modules": ["head"], "init_lora_weights": "pissa"}
    model = get_peft_model(there, LoraConfig(**options))
    model.save_pretrained(tmp_path)
    moved = model.base_model.model["table"].weight.detach().numpy()
    assert relative(moved, before) > 0.1
    with pytest.raises(ValueError, match="tied: PiSSA in PEFT"):
        lora.load(net, tmp_path)


def saved_from(model, folder, theirs, adapter="default", dtype="float32"):
    """The relative difference of what PEFT and we compute with a folder."""
    lora.save(model, folder, adapter)
    return relative(their_output(folder, theirs, "mlp", dtype), our_output(model, "mlp", dtype))


def test_scales_that_were_assigned_are_those_of_peft(theirs, tmp_path):
    model = our_base("mlp", "float32")
    lora.attach(model, LoRAConfig(rank=3, targets="all-linear", rank_pattern={"1": 2}))
    moved(model, np.random.default_rng(1))
    for layer, scale in zip(model.layers, (0.3, -1 / 7, 12.5), strict=True):
        layer.scale = scale
    assert saved_from(model, tmp_path, theirs) <= 1e-6


def test_sums_and_extracts_are_those_of_peft(theirs, tmp_path):
    model = our_base("mlp", "float32")
    lora.attach(model, LoRAConfig(rank=3, targets=["0", "1"], scaling="rslora", bias="lora_only"))
    moved(model, np.random.default_rng(1))
    lora.attach(model, LoRAConfig(rank=2, targets=["1", "2"], init="pissa"), adapter="b")
    moved(model, np.random.default_rng(2))
    lora.combine(model, ["default", "b"], [0.7, -1.3], "sum")
    lora.switch(model, "sum")
    assert saved_from(model, tmp_path / "sum", theirs, "sum") <= 1e-6
    lora.switch(model, "b")
    assert saved_from(model, tmp_path / "b", theirs, "b") <= 1e-6


def test_a_magnitude_that_was_put_in_changes_nothing_in_peft(theirs, tmp_path):
    model = our_base("mlp", "float32")
    lora.attach(model, LoRAConfig(rank=3, targets=["0"], use_dora=True))
    moved(model, np.random.default_rng(1))
    lora.attach(model, LoRAConfig(rank=2, targets=["1"]), adapter="b")
    moved(model, np.random.default_rng(2))
    lora.combine(model, ["default", "b"], [1, 1], "both")
    lora.switch(model, "both")
    assert saved_from(model, tmp_path, theirs, "both") <= 1e-6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_peft_reads_narrow_files_as_we_do(theirs, tmp_path, dtype):
    model = moved_dora()
    lora.save(model, tmp_path, dtype=dtype)
    again = our_base("mlp", "float32")
    lora.load(again, tmp_path)
    found = their_output(tmp_path, theirs, "mlp", "float32")
    assert relative(found, our_output(again, "mlp", "float32")) <= 1e-6


def test_velora_which_saves_memory_in_training_computes_as_lora(theirs, tmp_path):
    import torch
    from peft import LoraConfig, VeloraConfig, get_peft_model

    options = {"target_modules": ["layers.0", "layers.1"], "init_lora_weights": False}
    config = LoraConfig(**options, velora_config=VeloraConfig(num_groups=2))
    there = get_peft_model(their_base(theirs, "mlp", "float32"), config)
    x = torch.tensor(inputs("mlp", "float32"))
    there(x).sum().backward()  # updates the projections, which are in the file
    there.save_pretrained(tmp_path)
    model = our_base("mlp", "float32")
    lora.load(model, tmp_path)
    wanted = there(x).detach().numpy()
    assert relative(our_output(model, "mlp", "float32"), wanted) <= TOLERANCE["float32"]


def moved_dora():
    model = our_base("mlp", "float32")
    lora.attach(model, LoRAConfig(rank=3, targets="all-linear", use_dora=True))
    return moved(model, np.random.default_rng(1))


def test_an_adapter_on_four_bits_is_that_of_peft_on_what_they_stand_for(theirs, tmp_path):
    import torch
    from peft import PeftModel

    model = our_base("mlp", "float32")
    lora.quantize(model, ["0"], progress=False)
    codes = model.layers[0].weight.dense(np.float32)
    lora.attach(model, LoRAConfig(rank=3, targets=["0", "1"], use_dora=True))
    moved(model, np.random.default_rng(1))
    lora.save(model, tmp_path)
    base = their_base(theirs, "mlp", "float32")
    base.layers[0].weight.data = torch.tensor(codes)
    there = PeftModel.from_pretrained(base, tmp_path)
    found = there(torch.tensor(inputs("mlp", "float32"))).detach().numpy()
    assert relative(found, our_output(model, "mlp", "float32")) <= 1e-6


def test_names_that_are_ends_of_others_find_the_same_layers(theirs, tmp_path):
    import torch
    from peft import PeftModel

    model = mg.nn.Sequential(mg.nn.Linear(4, 4), mg.nn.Sequential(mg.nn.Linear(4, 4)))
    there = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.Linear(4, 4)))
    there.load_state_dict({k: torch.tensor(v) for k, v in model.state_dict().items()})
    lora.attach(model, LoRAConfig(rank=2, targets="all-linear", exclude=["1.0"]))
    moved(model, np.random.default_rng(1))
    model[0].scale = 0.3
    lora.save(model, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["target_modules"] == "(0)"
    x = np.ones((3, 4), np.float32)
    found = PeftModel.from_pretrained(there, tmp_path)(torch.tensor(x)).detach().numpy()
    assert relative(found, model(mg.tensor(x)).data) <= 1e-6


NAMES = [
    *("model.layers.0.q", "model.layers.1.q", "model.layers.1.k", "model.layers.10.q", "q"),
    *("enc.h.1.moe.3.q", "head", "prehead", "x.head", "head.0", "layers.1.q", "1.q", "a.1.b.2.q"),
]


def test_targets_are_those_of_peft(theirs):
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
    from peft.utils.other import get_pattern_key

    rng = np.random.default_rng(0)
    parts = ["q", "k", "head", "layers.1.q", "model.layers.0.q", "0", "1.q", "moe", "layers"]
    pick = lambda most: [str(p) for p in rng.choice(parts, rng.integers(1, most), replace=False)]
    some = 0
    for _ in range(500):
        kept = {"target_modules": pick(4)}
        if rng.random() < 0.3:
            kept = {"target_modules": str(rng.choice([r".*q", r".*\.1\..*", "q|head", r".*[qk]"]))}
        elif rng.random() < 0.5:
            kept["layers_to_transform"] = [int(i) for i in rng.integers(0, 4, 2)]
            if rng.random() < 0.5:
                kept["layers_pattern"] = pick(3)
        if rng.random() < 0.3:
            kept["exclude_modules"] = pick(3)
        if rng.random() < 0.3:
            kept["modules_to_save"] = pick(3)
        kept["rank_pattern"] = {re.escape(p): int(rng.integers(1, 5)) for p in pick(4)}
        there, here = LoraConfig(**copy.deepcopy(kept)), PeftConfig.of(kept)
        wanted = []
        for name in NAMES:
            hit = check_target_module_exists(there, name)
            if hit and not isinstance(hit, _ExcludedModule):
                wanted.append(name)
                key = get_pattern_key(there.rank_pattern.keys(), name)
                assert here.rank_of(name) == there.rank_pattern.get(key, 8)
        assert list(here.targets_among(NAMES, ())) == wanted, kept
        whole = kept.get("modules_to_save", [])
        ended = [name for name in NAMES if any(name.endswith(p) for p in whole)]
        assert here.saved_modules(NAMES) == ended
        some += bool(wanted)
    assert some > 200
