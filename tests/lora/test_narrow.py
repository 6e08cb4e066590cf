"""A frozen base in bfloat16: what it computes, and that adapters treat it as any other base."""

import copy
import gc
import weakref

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file, save_file

import lora
import minigrad
from lora import (
    BFloat16Embedding,
    BFloat16Linear,
    LoRAConfig,
    LoRAEmbedding,
    LoRALayer,
    NF4Linear,
)
from lora.offline import merge_files
from minigrad.kernels.bfloat16 import BFloat16Matrix
from minigrad.kernels.nf4 import NF4Matrix
from minigrad.nn import Embedding, Linear, Module, Sequential
from minigrad.optim import Adam
from tests.lora.models import TokenNet, shake

IDS = np.array([[0, 3, 6], [2, 2, 5]])


def rounded(array):
    return array.astype(ml_dtypes.bfloat16).astype(array.dtype)


def converted(model, **options):
    lora.quantize(model, format="bfloat16", progress=False, **options)
    return model


def widened(model):
    """A model of the same values with layers of floats."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, BFloat16Linear):
            setattr(model, name, module.to_linear())
    return model


def trained(model, steps=3):
    """The losses of some steps of LoRA, and the updates that come out."""
    rng = np.random.default_rng(1)
    lora.attach(model, LoRAConfig(rank=2, targets=["q", "v", "head"]), rng=rng)
    optimizer, losses = Adam(model.trainable_parameters(), lr=1e-2), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(IDS) ** 2).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [p.data for p in model.trainable_parameters()]


@pytest.fixture
def net(rng):
    return TokenNet(rng, np.float32)


# ----------------------------------------------------------------------------------------------
# The linear layer
# ----------------------------------------------------------------------------------------------


def test_the_layer_is_frozen_and_says_what_it_is(rng):
    linear = Linear(33, 20, rng=rng).eval()
    linear.bias.copy_(rng.standard_normal(20))
    layer = BFloat16Linear.from_linear(linear)
    assert (layer.in_features, layer.out_features, layer.training) == (33, 20, False)
    assert_array_equal(layer.weight.dense(), rounded(linear.weight.data))
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert "BFloat16Linear(33, 20)" in repr(layer)
    assert "BFloat16Linear(33, 20, bias=False)" in repr(BFloat16Linear(layer.weight))
    assert linear.bias.requires_grad
    x = minigrad.tensor(rng.standard_normal((5, 33)).astype(np.float32), requires_grad=True)
    plain = layer.to_linear()
    assert_allclose(layer(x).data, plain(x).data, rtol=0, atol=1e-5)  # sums of 33 terms
    layer(x).sum().backward()
    assert_allclose(x.grad.data[0], plain.weight.data.sum(0), rtol=0, atol=1e-5)
    assert layer.bias.grad is None
    other = copy.deepcopy(layer)
    assert other.weight is layer.weight
    assert not np.shares_memory(other.bias.data, layer.bias.data)


def test_a_layer_shares_the_memory_that_a_file_was_read_into(rng):
    stored = rng.standard_normal((6, 4)).astype(ml_dtypes.bfloat16)
    assert np.shares_memory(BFloat16Linear(BFloat16Matrix.of(stored)).weight.bits, stored)


def test_wrong_parts_of_a_layer_are_refused(rng):
    matrix = BFloat16Matrix.of(np.ones((2, 3)))
    with pytest.raises(TypeError, match="the weight is a BFloat16Matrix, not NF4Matrix"):
        BFloat16Linear(NF4Matrix.of(np.ones((2, 3))))
    with pytest.raises(TypeError, match="the weight is an NF4Matrix, not BFloat16Matrix"):
        NF4Linear(matrix)
    with pytest.raises(ValueError, match=r"bias has shape \(3,\)"):
        BFloat16Linear(matrix, np.ones(3))
    with pytest.raises(TypeError, match="takes a Linear, not Embedding"):
        BFloat16Linear.from_linear(Embedding(2, 3))
    linear = Linear(3, 2, rng=rng)
    for number in (np.nan, np.finfo(np.float32).max):
        linear.weight.data[1, 2] = number
        with pytest.raises(ValueError, match="NaN or Inf, or numbers beyond 3"):
            BFloat16Linear.from_linear(linear)


# ----------------------------------------------------------------------------------------------
# A model, and adapters on it
# ----------------------------------------------------------------------------------------------


def test_steps_of_training_are_those_of_the_same_base_in_floats(net):
    model = converted(net)
    (losses, found), (right, expected) = trained(widened(model)), trained(model)
    assert_allclose(losses, right, rtol=1e-5)  # sums of a few terms in float32
    for a, b in zip(found, expected, strict=True):
        assert_allclose(a, b, rtol=1e-3, atol=1e-5)  # three steps of Adam, which divides by few
    assert losses[-1] < losses[0]


def test_gradients_of_adapters_are_right_to_order_two(rng):
    model = converted(Sequential(Linear(5, 4, dtype=np.float64, rng=rng)))
    lora.attach(model, LoRAConfig(rank=2), rng=rng)
    layer = model[0]
    layer.lora_b = rng.standard_normal((4, 2))

    x = rng.standard_normal((3, 5))
    for order in (1, 2):
        minigrad.assert_gradients(
            lambda x: (minigrad.tanh(layer(x)) ** 2).sum(), x, order=order, samples=20
        )


def test_adapters_go_on_and_off_as_on_a_base_of_floats(net, tmp_path):
    model = converted(net)
    before, bare = model(IDS).data, copy.deepcopy(model)
    kept = model.q.weight
    trained(model)
    assert isinstance(model.q, LoRALayer)
    assert "bfloat16" in repr(model.q)
    with minigrad.no_grad():
        adapted = model(IDS).data
        certificate = lora.merge(model, progress=False)
        assert_allclose(model(IDS).data, adapted, rtol=1e-4, atol=1e-5)
        assert certificate.worst("float32").lost < 1e-3
        lora.unmerge(model)
        assert_array_equal(model(IDS).data, adapted)
        lora.save(model, tmp_path)
        lora.load(bare, tmp_path)
        assert_array_equal(bare(IDS).data, adapted)
        folded = lora.fold(copy.deepcopy(model))
        assert type(folded.q) is Linear
        assert_allclose(folded(IDS).data, adapted, rtol=1e-4, atol=1e-5)
    lora.detach(model)
    assert model.q.weight is kept
    assert_array_equal(model(IDS).data, before)


def test_an_adapter_knows_the_base_that_it_was_trained_on(net, tmp_path):
    plain = copy.deepcopy(net)
    model = converted(net, targets=["q"])
    lora.attach(model, LoRAConfig(rank=2, targets=["q"]))
    lora.save(model, tmp_path)
    with pytest.raises(ValueError, match=r"another base: the weight of q .* in bfloat16"):
        lora.load(plain, tmp_path)
    unrounded = copy.deepcopy(plain)
    plain.q.weight.copy_(rounded(plain.q.weight.data))  # the same numbers are the same base
    lora.load(plain, tmp_path)
    lora.attach(unrounded, LoRAConfig(rank=2, targets=["q"]))
    lora.save(unrounded, tmp_path)
    with pytest.raises(ValueError, match=r"made on \w+\.\.\. in float32 \(--dtype float32 of"):
        lora.load(converted(lora.detach(unrounded), targets=["q"]), tmp_path)


def test_a_file_in_bfloat16_is_compared_with_the_adapter_and_one_in_floats_is_not(net, tmp_path):
    lora_folder, state = tmp_path / "adapter", net.state_dict()
    model = converted(net, targets=["q"])
    lora.attach(model, LoRAConfig(rank=2, targets=["q"]))
    lora.save(model, lora_folder)
    save_file(state, tmp_path / "base.safetensors")
    merge_files(tmp_path / "base.safetensors", lora_folder, tmp_path / "out", progress=False)
    other = {**state, "q.weight": -state["q.weight"]}
    for name, content in (("narrow", state), ("other", other)):
        narrow = {key: array.astype(ml_dtypes.bfloat16) for key, array in content.items()}
        save_file(narrow, tmp_path / f"{name}.safetensors")
    merge_files(tmp_path / "narrow.safetensors", lora_folder, tmp_path / "out2", progress=False)
    with pytest.raises(ValueError, match="another base: the weight of q"):
        merge_files(tmp_path / "other.safetensors", lora_folder, tmp_path / "out3", progress=False)


def test_the_difference_of_models_is_found_on_a_base_in_bfloat16(net):
    base = converted(net, targets=["q", "v"])
    base.table = BFloat16Embedding(BFloat16Matrix.of(base.table.weight.data))
    tuned = copy.deepcopy(widened(base))
    tuned.q.weight.data[...] += 0.1
    state = tuned.state_dict() | {"table.weight": base.table.weight.dense()}
    lora.extract(base, state, rank=1, targets=["q"], progress=False)
    assert_allclose(base(IDS).data, tuned(IDS).data, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------------
# quantize
# ----------------------------------------------------------------------------------------------


def test_the_report_counts_bytes_and_errors(net):
    weight = net.q.weight.data.astype(np.float64)
    report = lora.quantize(net, ["q"], format="bfloat16", progress=False)
    (line,) = report.layers
    assert (line.name, line.bytes_before, line.bytes_after) == ("q", 80, 40)
    lost = np.linalg.norm(net.q.weight.dense(np.float64) - weight) / np.linalg.norm(weight)
    assert line.error == pytest.approx(lost, rel=1e-12)
    assert 0 < line.error < 2**-8
    assert lora.quantize(net, format="bfloat16", progress=False).names == ["v", "head"]


def test_bfloat16_is_quantised_further_to_four_bits(net):
    four = NF4Linear.from_linear(converted(copy.deepcopy(net)).q.to_linear())
    model = converted(net)
    bias = model.q.bias
    report = lora.quantize(model, ["q", "v"], progress=False)
    assert report.names == ["q", "v"]
    assert report.layers[0].bytes_before == 40
    assert isinstance(model.q, NF4Linear)
    assert model.q.bias is bias
    assert_array_equal(model.q.weight.dense(), four.weight.dense())
    assert lora.quantize(model, progress=False).names == ["head"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "int8"}, "format is 'nf4' or 'bfloat16', not 'int8'"),
        ({"format": "bfloat16", "block_size": 32}, "block_size and double_quant belong to"),
        ({"format": "bfloat16", "double_quant": False}, "block_size and double_quant belong to"),
        ({"format": "bfloat16", "targets": ["v"]}, "v are in few bits already"),
        ({"format": "bfloat16", "targets": ["table"]}, "table are embeddings"),
        ({"format": "bfloat16"}, "head: .*NaN or Inf.*nothing was changed"),
    ],
)
def test_what_cannot_be_converted_is_left_as_it_is(net, options, message):
    converted(net, targets=["v"])
    net.head.weight.data[0, 0] = np.inf
    before = [(name, type(module)) for name, module in net.named_modules()]
    with pytest.raises(ValueError, match=message):
        lora.quantize(net, progress=False, **options)
    assert before == [(name, type(module)) for name, module in net.named_modules()]


# ----------------------------------------------------------------------------------------------
# The embedding, and a head that is tied to it
# ----------------------------------------------------------------------------------------------


class Tied(Module):
    def __init__(self, matrix):
        self.table = BFloat16Embedding(matrix)
        self.up = Linear(matrix.shape[1], matrix.shape[1], rng=np.random.default_rng(0))
        self.head = BFloat16Linear(self.table.weight)

    def forward(self, ids):
        return self.head(self.up(self.table(ids)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_table_gives_the_rows_of_the_one_in_floats(dtype, rng):
    plain = Embedding(7, 5, dtype=dtype, rng=rng)
    table = BFloat16Embedding(BFloat16Matrix.of(plain.weight.data), dtype)
    assert "BFloat16Embedding(7, 5)" in repr(table)
    for indices in (IDS, IDS[0], 3, np.empty((0, 2), int)):
        found = table(indices)
        assert found.dtype == dtype
        assert_array_equal(found.data, rounded(plain.weight.data)[indices])
    assert list(table.parameters()) == []
    for wrong, error in (([7], IndexError), ([-1], IndexError), ([0.5], TypeError)):
        with pytest.raises(error):
            table(np.array(wrong))


def test_wrong_tables_are_refused(rng):
    with pytest.raises(TypeError, match="the weight is a BFloat16Matrix, not ndarray"):
        BFloat16Embedding(np.ones((2, 3)))
    with pytest.raises(ValueError, match="is a transpose"):
        BFloat16Embedding(BFloat16Matrix.of(np.ones((2, 3))).T)


def two_tables(rng, dtype=np.float32, **options):
    """Nets with the same numbers, the table of one in bfloat16; with the same A and B."""
    plain = TokenNet(rng, dtype)
    plain.table.weight.copy_(rounded(plain.table.weight.data))
    narrow = copy.deepcopy(plain)
    narrow.table = BFloat16Embedding(BFloat16Matrix.of(plain.table.weight.data), dtype)
    for net in (plain, narrow):
        config = LoRAConfig(**{"rank": 2, "targets": ["table", "q"], **options})
        lora.attach(net, config, rng=np.random.default_rng(4), progress=False)
        shake(net, np.random.default_rng(5))
    return plain, narrow


@pytest.mark.parametrize(
    "options",
    [{}, {"use_dora": True}, {"init": "pissa"}, {"dropout": 0.5}, {"scaling": "rslora"}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_adapter_on_a_table_in_bfloat16_is_that_on_the_same_table_in_floats(dtype, options, rng):
    plain, narrow = two_tables(rng, dtype, **options)
    assert isinstance(narrow.table, LoRAEmbedding)
    found = narrow(IDS)
    assert_array_equal(found.data, plain(IDS).data)
    assert found.dtype == dtype
    for net in (plain, narrow):
        (net(IDS) ** 2).sum().backward()
    ours, theirs = (dict(net.table.named_parameters()) for net in (narrow, plain))
    assert theirs.keys() - ours.keys() == {"base_weight"}
    for name, parameter in ours.items():
        assert parameter.dtype == dtype
        assert_array_equal(parameter.data, theirs[name].data)
        if parameter.requires_grad:
            assert_array_equal(parameter.grad.data, theirs[name].grad.data)
            assert parameter.grad.data.any()


@pytest.mark.parametrize("others_in", ["bfloat16", "nf4"])
def test_base_weights_that_peft_wrote_must_be_those_in_few_bits(rng, tmp_path, others_in):
    def net():
        made = two_tables(np.random.default_rng(0))[1]
        lora.detach(made)
        lora.quantize(made, exclude=["q"], format=others_in, progress=False)
        return made

    made = net()
    lora.attach(made, LoRAConfig(rank=2, targets=["table"]), rng=rng)
    shake(made, rng)
    lora.save(made, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    arrays = load_file(path)
    beside = {"table.base_layer.weight": made.table.base_weight, "head.weight": made.head.weight}
    beside = {f"base_model.model.{name}": weight.dense() for name, weight in beside.items()}
    save_file(arrays | beside, path)
    again = net()
    lora.load(again, tmp_path)
    assert_array_equal(again(IDS).data, made(IDS).data)
    for key, weight in beside.items():
        if others_in == "nf4" and "head" in key:
            continue  # its digits are lost, so that any may be those that it was made of
        save_file(arrays | beside | {key: weight + 1}, path)
        with pytest.raises(ValueError, match=f"another base: {key}"):
            lora.load(net(), tmp_path)


@pytest.mark.parametrize("use_dora", [False, True])
def test_what_can_be_done_with_an_adapter_can_be_on_a_table_in_bfloat16(rng, tmp_path, use_dora):
    plain, narrow = two_tables(rng, use_dora=use_dora)
    report = repr(lora.attach(narrow, LoRAConfig(2, targets=["table"]), adapter="b", rng=rng))
    assert "Embedding, bfloat16" in report
    lora.remove(narrow, "b")
    lora.switch(narrow, "default")
    assert "LoRAEmbedding(7, 5, bfloat16, " in repr(narrow.table)
    weight, before = narrow.table.base_weight, narrow(IDS).data
    with minigrad.no_grad():
        ours, theirs = (lora.merge(net, progress=False) for net in (narrow, plain))
        assert repr(ours) == repr(theirs)
        assert_array_equal(narrow(IDS).data, plain(IDS).data)
        for net in (narrow, plain):
            lora.unmerge(net)
        assert_array_equal(narrow(IDS).data, before)
    for name, net in (("narrow", narrow), ("plain", plain)):
        lora.save(net, tmp_path / name)  # which has the hash of the base in it
        other = copy.deepcopy(narrow if name == "plain" else plain)
        lora.detach(other)
        lora.load(other, tmp_path / name)
        assert_array_equal(other(IDS).data, before)
    folded = lora.fold(copy.deepcopy(narrow))
    assert type(folded.table) is Embedding
    assert_array_equal(folded.table.weight.data, lora.fold(plain).table.weight.data)
    lora.detach(narrow)
    assert narrow.table.weight is weight
    assert isinstance(narrow.table, BFloat16Embedding)


def test_the_difference_of_tables_is_extracted_on_one_in_bfloat16(rng):
    base, tuned = TokenNet(rng), TokenNet(rng)
    tuned.load_state_dict(base.state_dict())
    tuned.table.weight.data[...] += 0.1
    base.table = BFloat16Embedding(BFloat16Matrix.of(base.table.weight.data), np.float64)
    lora.extract(base, tuned, rank=5, targets=["table"], progress=False)
    assert_allclose(base(IDS).data, tuned(IDS).data, rtol=1e-12, atol=1e-12)


def test_a_table_that_is_the_whole_model_is_refused(rng):
    table = BFloat16Embedding(BFloat16Matrix.of(np.ones((7, 5))))
    with pytest.raises(ValueError, match="the model is a single BFloat16Embedding"):
        lora.attach(table, LoRAConfig(rank=2))


def test_what_is_no_model_and_no_flag_is_refused():
    with pytest.raises(TypeError, match="quantize: only a Module has adapters, not None"):
        lora.quantize(None)
    with pytest.raises(TypeError, match="double_quant must be True or False, not 'no'"):
        lora.quantize(Sequential(Linear(4, 4)), double_quant="no")


@pytest.mark.parametrize("layer", [NF4Linear.from_linear, lambda x: LoRALayer.from_linear(x, 2, 4)])
def test_a_layer_that_is_the_whole_model_is_named_by_its_kind(layer):
    model = layer(Linear(4, 4))
    with pytest.raises(ValueError, match=f"quantize: the model is a single {type(model).__name__}"):
        lora.quantize(model)
    if isinstance(model, LoRALayer):
        with pytest.raises(ValueError, match="adapters already on the model itself"):
            lora.attach(model, LoRAConfig(rank=2))
        with pytest.raises(ValueError, match="finetuned model has adapters, in itself"):
            lora.extract(Linear(4, 4), model, 1)


def test_a_head_in_bfloat16_is_quantised_apart_from_the_table_that_it_is_tied_to(rng):
    model = Tied(BFloat16Matrix.of(rng.standard_normal((11, 6)).astype(np.float32)))
    assert lora.quantize(model, ["head"], progress=False).names == ["head"]
    assert isinstance(model.head, NF4Linear)
    assert isinstance(model.table, BFloat16Embedding)


def test_a_tied_head_and_an_adapter_between(rng):
    matrix = BFloat16Matrix.of(rng.standard_normal((11, 6)).astype(np.float32))
    model = Tied(matrix)
    lora.attach(model, LoRAConfig(rank=2, targets=["up"]), rng=rng)
    report = lora.attach(model, LoRAConfig(rank=2, targets=["head"]), adapter="b", rng=rng)
    assert report.matches[0].note == "bfloat16, tied to table.weight"
    # the table counts once, beside `up` and two adapters
    assert report.total == 66 + 42 + 2 * 12 + 2 * 17
    model(np.array([1, 5])).sum().backward()
    assert all(p.grad is not None for p in model.trainable_parameters())
    for name in ("table", "head"):
        with pytest.raises(ValueError, match=f"modules_to_save: {name} is in bfloat16.*in float32"):
            lora.attach(
                Tied(matrix), LoRAConfig(rank=2, targets=["up"], modules_to_save=[name]), rng=rng
            )


def test_quantizing_beside_an_adapter_leaves_no_float_weight(rng):
    model = TokenNet(rng)
    lora.attach(model, lora.LoRAConfig(rank=2, targets=["v"]), rng=rng)
    weight = weakref.ref(model.q.weight)
    lora.quantize(model, ["q"], format="bfloat16", progress=False)
    gc.collect()
    assert weight() is None
    lora.detach(model)
    assert not model.q.bias.requires_grad


def test_a_model_folds_if_a_quantised_layer_shares_the_bias_of_an_adapted_one(rng):
    model = Sequential(Linear(8, 8, rng=rng), Linear(8, 8, rng=rng))
    model[1].bias = model[0].bias
    lora.attach(model, LoRAConfig(rank=2, targets=["0"]), rng=rng)
    lora.quantize(model, ["1"], progress=False)
    lora.fold(model)
    assert type(model[0]) is Linear
    assert not model[0].bias.requires_grad
