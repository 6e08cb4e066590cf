"""Training with adapters beside PEFT on PyTorch: the same numbers give the same curves.

    python -m tests.lora.test_peers

prints the largest relative differences of each case. We differ from PEFT on purpose in these:

    dropout     of an embedding's adapter PEFT does nothing; we drop the updates of whole tokens
    biases      that were trained PEFT leaves in place while adapters are disabled; we do not
    PiSSA       PEFT writes the rest, W - s B A, over W, which is what is left when disabled; with
                us W stays, for other adapters too. In float64 PEFT refuses to begin so.
    several     PEFT's DoRA also scales what the adapters before it have added, so their order
                matters; we add the change of W by each
    merging     PEFT adds to W in place, and subtracts to undo it; we keep W
    groups      PEFT's DoRA of a grouped convolution takes the norms of another matrix than the
                one that it scales; we refuse DoRA of such a layer
"""

import numpy as np
import pytest

import lora
import minigrad
from minigrad.kernels.nf4 import NF4Matrix
from tests.benchmarks.workloads import lora as workloads
from tests.peers import lora_cases as ours
from tests.peers.lora_cases import CASES, SAME, TOLERANCE, Case, of_losses, one, relative

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers with bias"),
    pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups"),
]

DTYPES = ["float32", "float64"]
DISABLED_DIFFERS = {  # and why is said above
    "bias of the layers",
    "all biases",
    "attention, all biases",
    "convolutions, biases",
    "groups, rsLoRA, biases",
    "PiSSA",
    "DoRA of PiSSA",
}


@pytest.fixture
def theirs():
    for package in ("torch", "peft"):
        pytest.importorskip(package)
    from tests.peers import peft

    return peft


def begin(case):
    return ours.data(case.model), ours.base(case.model), ours.start(case)


def curves(case, dtype, theirs):
    """What both sides compute."""
    return ours.train(case, *begin(case), dtype), theirs.train(case, *begin(case), dtype)


def output_of_the_base(case):
    """What the model of a case computes without adapters, in float64."""
    given, state, _ = begin(case)
    model = ours.MODELS[case.model](np.float64)
    model.load_state_dict(ours.in_dtype(state, "float64"))
    return model(minigrad.tensor(given["x"].astype(np.float64))).data


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_curves_outputs_and_counts_are_those_of_peft(theirs, name, dtype):
    here, there = curves(CASES[name], dtype, theirs)
    assert of_losses(here.losses, there.losses) <= TOLERANCE[dtype]
    assert relative(here.output, there.output) <= SAME[dtype]
    if CASES[name].is_mergeable:
        assert relative(here.merged, there.merged) <= SAME[dtype]
    assert here.count == there.count
    if name not in DISABLED_DIFFERS:
        assert relative(here.disabled, there.disabled) <= SAME[dtype]
    elif dtype == "float64":  # only ours is the base then
        alone = output_of_the_base(CASES[name])
        assert here.disabled.tobytes() == alone.tobytes()
        assert relative(there.disabled, alone) > 1e-3


# ----------------------------------------------------------------------------------------------
# How factors begin
# ----------------------------------------------------------------------------------------------


def first_factors(theirs, init):
    """A and B of wide layers, as they begin here and there."""
    import torch

    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(500, 300))
    config = lora.LoRAConfig(rank=8, targets=["0"], init=init)
    model = theirs.get_peft_model(
        layer, theirs.translated(config, {"kaiming": True}.get(init, init))
    )
    there = model.base_model.model[0]
    here = minigrad.nn.Sequential(minigrad.nn.Linear(500, 300))
    lora.attach(here, config)
    (adapted,) = (m for m in here.modules() if isinstance(m, lora.LoRALayer))
    kinds = ("lora_a", "lora_b")
    return (
        [getattr(adapted, kind).data for kind in kinds],
        [theirs.parameter(there, kind).detach().numpy() for kind in kinds],
    )


@pytest.mark.parametrize("init", ["gaussian", "kaiming"])
def test_factors_begin_as_random_as_those_of_peft(theirs, init):
    (here, zero), (there, _) = first_factors(theirs, init)
    assert not zero.any()
    assert here.shape == there.shape
    assert here.std() == pytest.approx(there.std(), rel=0.05)  # of thousands of numbers
    # Whether they are normal or uniform is seen in the fourth moment.
    assert (here**4).mean() == pytest.approx((there**4).mean(), rel=0.2)


def test_orthogonal_factors_begin_as_those_of_peft(theirs):
    here, there = first_factors(theirs, "orthogonal")
    for factor, right in zip(here, there, strict=True):
        assert factor.shape == right.shape
        assert factor.std() == pytest.approx(right.std(), rel=0.05)  # of thousands of numbers
    for a, b in (here, there):
        assert np.abs(b @ a).max() < 1e-6


def test_factors_of_an_embedding_begin_as_those_of_peft(theirs):
    import torch

    config = lora.LoRAConfig(rank=8, targets=["0"])
    table = torch.nn.Sequential(torch.nn.Embedding(50, 400))
    there = theirs.get_peft_model(table, theirs.translated(config, True)).base_model.model[0]
    here = minigrad.nn.Sequential(minigrad.nn.Embedding(50, 400))
    lora.attach(here, config)
    (adapted,) = (m for m in here.modules() if isinstance(m, lora.LoRAEmbedding))
    assert not adapted.lora_a.data.any()
    assert not theirs.parameter(there, "lora_a").any()
    b = theirs.parameter(there, "lora_b").detach().numpy()
    assert adapted.lora_b.shape == b.shape
    assert adapted.lora_b.data.std() == pytest.approx(b.std(), rel=0.1)


# ----------------------------------------------------------------------------------------------
# Dropout
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_dora", [False, True])
def test_what_dropout_leaves_takes_the_same_way(theirs, use_dora, monkeypatch):
    import torch

    case = one("mlp", ours.LAYERS[:1], use_dora=use_dora, dropout=0.5)
    given, state, values = begin(case)
    x = given["x"].astype(np.float64)
    mask = np.random.default_rng(3).integers(0, 2, x.shape) * 2.0

    class TheirKept(torch.nn.Module):
        def forward(self, x):
            return x * torch.tensor(mask)

    here = ours.attached(case, state, "float64")
    here.load_state_dict(here.state_dict() | ours.in_dtype(values, "float64"))
    monkeypatch.setattr(minigrad.functional, "dropout", lambda x, p, rng: x * mask)
    there = theirs.attached(case, state, "float64")
    theirs.give(there, ours.in_dtype(values, "float64"))
    layer = there.base_model.model.layers[0]
    layer.lora_dropout["default"] = TheirKept()
    dropped, right = here(minigrad.tensor(x)), there(torch.tensor(x))
    assert relative(dropped.data, right.detach().numpy()) <= SAME["float64"]
    dropped.sum().backward()
    right.sum().backward()
    for kind in ("lora_a", "lora_b", *(["lora_magnitude"] if use_dora else [])):
        gradient = theirs.parameter(layer, kind).grad.numpy()
        assert relative(getattr(here.layers[0], kind).grad.data, gradient) <= SAME["float64"]
    assert relative(here.eval()(minigrad.tensor(x)).data, dropped.data) > 1e-3


# ----------------------------------------------------------------------------------------------
# A base in four bits, beside bitsandbytes
# ----------------------------------------------------------------------------------------------


@pytest.fixture
def bitsandbytes():
    for package in ("torch", "peft"):
        pytest.importorskip(package)
    return pytest.importorskip("bitsandbytes")


def read_back(bitsandbytes, weight, block_size, double_quant):
    import torch

    codes, state = bitsandbytes.functional.quantize_4bit(
        torch.tensor(weight),
        blocksize=block_size,
        quant_type="nf4",
        compress_statistics=double_quant,
    )
    return bitsandbytes.functional.dequantize_4bit(codes, state).numpy()


@pytest.mark.parametrize("block_size", [64, 128])
def test_a_weight_in_four_bits_is_the_one_of_bitsandbytes(bitsandbytes, block_size):
    weight = np.random.default_rng(0).standard_normal((96, 256)).astype(np.float32)
    here = NF4Matrix.of(weight, block_size, double_quant=False).dense()
    there = read_back(bitsandbytes, weight, block_size, double_quant=False)
    assert here.tobytes() == there.tobytes()
    # Of absmax they keep 8-bit floats where we keep integers: one is as good as the other.
    here = NF4Matrix.of(weight, block_size).dense()
    there = read_back(bitsandbytes, weight, block_size, double_quant=True)
    lost, most = (np.mean((read - weight) ** 2) for read in (here, there))
    assert lost <= most * 1.002  # a sample of 24,576 numbers


def test_a_curve_on_a_base_in_four_bits_is_that_of_peft(bitsandbytes):
    case = workloads.Case(64, 3, 16, 4, base="NF4")
    curves = []
    for contender in (workloads.with_minigrad, workloads.with_peft):
        step = contender(case)
        curves.append(np.array([step() for _ in range(50)]))
    assert curves[0][-1] < 0.9 * curves[0][0]
    assert of_losses(*curves) <= TOLERANCE["float32"]


# ----------------------------------------------------------------------------------------------
# Where we differ on purpose, it is still so
# ----------------------------------------------------------------------------------------------


def test_only_ours_adds_adapters_up_when_the_second_is_dora(theirs):
    first = CASES["DoRA and LoRA"]
    configs = list(first.adapters.values())
    case = Case(first.model, {"default": configs[1], "other": configs[0]})
    here, there = curves(case, "float64", theirs)
    assert relative(here.output, there.output) > 1e-3
    same = ours.train(first, *begin(case)[:2], exchanged(ours.start(case)), "float64")
    assert relative(here.output, same.output) <= SAME["float64"]


def exchanged(values):
    """The numbers of the adapters "default" and "other", each for the other."""
    found = {}
    for name, value in values.items():
        layer, _, kind = name.rpartition(".")
        other = layer.removesuffix(".other")
        found[f"{other}.{kind}" if other != layer else f"{layer}.other.{kind}"] = value
    return found


def test_dora_of_groups_is_another_product_in_peft(theirs):
    import torch

    case = one("groups", ["conv"], rank=2, use_dora=True)
    given = torch.tensor(ours.data("groups")["x"]).double()
    there = theirs.attached(case, ours.base("groups"), "float64").base_model.model.conv
    with torch.no_grad():
        there.lora_B["default"].weight.normal_(generator=torch.manual_seed(0))
        change = there(given) - there.base_layer(given)
        w, bias = there.base_layer.weight, there.base_layer.bias.view(-1, 1, 1)
        m = there.lora_magnitude_vector["default"].weight.flatten()
        a, b = (getattr(there, f"lora_{x}")["default"].weight for x in "AB")
        update = 3.0 * b.flatten(1).flatten()[:, None] * a.flatten(1).repeat_interleave(3, 0)
        filters = update.reshape(6, 4, 3, 2).clone()  # of all channels
        filters[:3, :2] += w[:3]
        filters[3:, 2:] += w[3:]
        plain = torch.nn.functional.conv2d(given, filters, None, 2, 1)
        ratio = m / filters.flatten(1).norm(dim=1)
        right = ratio.view(-1, 1, 1) * plain + bias - there.base_layer(given)
        assert relative(change.numpy(), right.numpy()) > 1e-2
        reshaped = 3.0 * (b.reshape(-1, 2) @ a.reshape(2, -1)).reshape(w.shape)
        ratio = m / (w + reshaped).flatten(1).norm(dim=1)
        found = ratio.view(-1, 1, 1) * plain + bias - there.base_layer(given)
        assert relative(change.numpy(), found.numpy()) <= SAME["float64"]
    with pytest.raises(ValueError, match=r"conv: use_dora .*PEFT"):
        ours.attached(case, ours.base("groups"), "float64")


def test_neither_merges_an_update_of_groups(theirs):
    case = CASES["groups"]
    with pytest.raises(NotImplementedError, match=r"not supported .* groups > 1"):
        theirs.attached(case, ours.base(case.model), "float32").merge_and_unload()
    with pytest.raises(ValueError, match="conv, depthwise, sequence cannot be merged"):
        lora.fold(ours.attached(case, ours.base(case.model), "float32"))


def test_only_ours_drops_updates_of_an_embedding(theirs):
    case = one("classifier", ["embedding"], dropout=0.9)
    given, state, values = begin(case)
    here = ours.attached(case, state, "float32")
    here.load_state_dict(here.state_dict() | values)
    there = theirs.attached(case, state, "float32")
    theirs.give(there, values)
    x = minigrad.tensor(given["x"])
    trained, right = here(x).data, there.train()(theirs.torch.tensor(given["x"]))
    assert relative(here.eval()(x).data, right.detach().numpy()) <= SAME["float32"]
    assert relative(trained, right.detach().numpy()) > 1e-3


def main():
    """Print the largest relative differences from PEFT of each case."""
    from tests.peers import peft

    print(f"{'':26} {'':8} {'curve':>8} {'output':>8} {'merged':>8} {'trained':>8}")
    for name, case in CASES.items():
        for dtype in DTYPES:
            here, there = curves(case, dtype, peft)
            differences = (
                of_losses(here.losses, there.losses),
                relative(here.output, there.output),
                relative(here.merged, there.merged) if case.is_mergeable else np.nan,
            )
            figures = " ".join(f"{difference:8.1e}" for difference in differences)
            print(f"{name:26} {dtype:8} {figures} {here.count:8}")


if __name__ == "__main__":
    main()
