"""Modules: what is found inside, states, modes, copies and looks."""

import copy
import functools
import pickle
import time
from dataclasses import dataclass

import numpy as np
import pytest

import minigrad
from minigrad import nn, optim
from minigrad.diagnostics.gradient_flow.dry_run import unchanged
from minigrad.nn import MLP, Buffer, Dropout, Linear, Module, Parameter, Sequential
from minigrad.nn.module import generators_in


class Scale(Module):
    def __init__(self, n):
        self.factor = Parameter(np.ones(n))

    def forward(self, x):
        return x * self.factor


class Net(Module):
    """Parameters and modules wherever they can be held, and things that are neither."""

    def __init__(self):
        self.own = Parameter([1.0, 2.0])
        self.buffer = minigrad.ones((3,))  # a Tensor that is not a Parameter
        self.number = 3
        self.nothing = None
        self.layers = [Linear(2, 3), minigrad.relu, (Scale(3), Parameter(5.0))]
        self.heads = {"mean": Scale(2), "deep": [Scale(1), {"last": Parameter([7.0])}]}
        self.drop = Dropout(0.5)


NAMES = [
    "own",
    "layers.0.weight",
    "layers.0.bias",
    "layers.2.0.factor",
    "layers.2.1",
    "heads.mean.factor",
    "heads.deep.0.factor",
    "heads.deep.1.last",
]


class Tied(Module):
    def __init__(self):
        self.encoder = Linear(3, 3)
        self.decoder = Linear(3, 3)
        self.decoder.weight = self.encoder.weight
        self.again = self.encoder


@dataclass(slots=True)
class InSlots(Module):
    layer: Module
    scale: Parameter
    rng: np.random.Generator

    def forward(self, x):
        return self.layer(x) * self.scale


class InMoreSlots(InSlots):
    __slots__ = ("__hidden", "unset")

    def __init__(self):
        super().__init__(Linear(2, 2), Parameter([1.0]), np.random.default_rng(0))
        self.__hidden = Parameter([2.0])
        self.other = [Parameter([3.0])]


# ----------------------------------------------------------------------------------------------
# What is inside
# ----------------------------------------------------------------------------------------------


def test_parameters_are_found_in_order_wherever_they_are_held():
    assert [name for name, _ in Net().named_parameters()] == NAMES


def test_each_name_leads_to_its_parameter():
    net = Net()
    found = dict(net.named_parameters())
    assert found["own"] is net.own
    assert found["layers.0.weight"] is net.layers[0].weight
    assert found["layers.2.1"] is net.layers[2][1]
    assert found["heads.deep.1.last"] is net.heads["deep"][1]["last"]
    assert [id(p) for p in net.parameters()] == [id(p) for p in found.values()]


def test_modules_are_found_in_order_the_module_itself_first():
    net = Net()
    names = ["", "layers.0", "layers.2.0", "heads.mean", "heads.deep.0", "drop"]
    assert [name for name, _ in net.named_modules()] == names
    assert next(net.modules()) is net
    assert dict(net.named_modules())["heads.deep.0"] is net.heads["deep"][0]


def test_names_can_have_a_prefix():
    assert [name for name, _ in Scale(1).named_parameters("a.b")] == ["a.b.factor"]
    assert [name for name, _ in Sequential(Scale(1)).named_modules("m")] == ["m", "m.0"]


def test_what_is_shared_is_found_once_under_its_first_name():
    names = ["encoder.weight", "encoder.bias", "decoder.bias"]
    assert [name for name, _ in Tied().named_parameters()] == names
    assert [name for name, _ in Tied().named_modules()] == ["", "encoder", "decoder"]
    assert Tied().count_parameters() == 9 + 3 + 3


def test_attributes_assigned_later_are_found():
    net = Scale(2)
    net.extra = [Scale(1)]
    assert [name for name, _ in net.named_parameters()] == ["factor", "extra.0.factor"]
    del net.extra
    assert [name for name, _ in net.named_parameters()] == ["factor"]


def test_a_module_that_knows_its_parent_is_walked_once():
    net = Sequential(Scale(2))
    net[0].parent = net
    assert [name for name, _ in net.named_parameters()] == ["0.factor"]
    assert [name for name, _ in net.named_modules()] == ["", "0"]


def test_slots_are_attributes_like_others():
    net = Sequential(InMoreSlots())
    names = ["other.0", "layer.weight", "layer.bias", "scale", "_InMoreSlots__hidden"]
    assert [name for name, _ in net.named_parameters()] == [f"0.{name}" for name in names]
    assert [*generators_in(net)] == [net[0].rng]
    with pytest.raises(TypeError, match=r"scale is a Parameter.*\.scale\.copy_\(value\)"):
        net[0].scale = np.ones(1)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert list(twin.state_dict()) == list(net.state_dict())
        assert twin[0].scale is not net[0].scale
    before = net[0].scale
    with unchanged(net):
        net[0].scale = Parameter([5.0])
        net[0].unset = 1
        net[0].rng.random()
        before.copy_([7.0])
    assert not hasattr(net[0], "unset")
    assert net[0].scale is before
    assert before.item() == 1
    assert net[0].rng.random() == np.random.default_rng(0).random()


def test_equal_names_are_an_error():
    net = Scale(1)
    net.table = {1: Parameter([1.0]), "1": Buffer([2.0])}
    with pytest.raises(ValueError, match=r"two tensors of the state have the name 'table\.1'"):
        net.state_dict()


def test_parameters_are_counted():
    net = Net()
    assert net.count_parameters() == 2 + 6 + 3 + 3 + 1 + 2 + 1 + 1
    net.layers[0].freeze()
    assert net.count_parameters() == 19
    assert net.count_parameters(trainable_only=True) == 10
    assert [id(p) for p in net.trainable_parameters()] == [
        id(p) for p in net.parameters() if p.requires_grad
    ]


def test_misspelt_attributes_are_attribute_errors():
    net = Linear(2, 2)
    for name in ("wieght", "foward", "layer"):
        with pytest.raises(AttributeError, match=name):
            getattr(net, name)


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Net defines no forward"):
        Net()(1)


def test_calling_a_module_hands_everything_to_forward():
    class Echo(Module):
        def forward(self, *args, **options):
            return args, options

    assert Echo()(1, 2, a=3) == ((1, 2), {"a": 3})


# ----------------------------------------------------------------------------------------------
# Parameters
# ----------------------------------------------------------------------------------------------


def test_a_parameter_copies_what_it_is_made_of():
    array = np.ones(2)
    p = Parameter(array)
    q = Parameter(p)
    p.data[...] = 5
    assert array.tolist() == [1, 1]
    assert q.tolist() == [1, 1]


def test_a_parameter_is_a_trainable_leaf_unless_asked_otherwise():
    assert Parameter([1.0]).requires_grad
    assert Parameter([1.0]).is_leaf
    assert not Parameter([1.0], requires_grad=False).requires_grad
    assert Parameter([1.0]).dtype == np.float32
    assert Parameter([1.0], dtype=np.float64).dtype == np.float64
    assert repr(Parameter([1.0])).startswith("Parameter(")


def test_a_parameter_of_integers_must_be_frozen():
    with pytest.raises(TypeError, match="only floats can require a gradient, not int64"):
        Parameter([1, 2])
    assert Parameter([1, 2], requires_grad=False).dtype == np.int64


# ----------------------------------------------------------------------------------------------
# Switches
# ----------------------------------------------------------------------------------------------


def test_train_and_eval_reach_every_module():
    net = Net()
    assert all(m.training for m in net.modules())
    assert net.eval() is net
    assert not any(m.training for m in net.modules())
    assert net.train() is net
    assert all(m.training for m in net.modules())
    net.train(False)
    assert not any(m.training for m in net.modules())


class Frozen(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(False)


class Untouched(Sequential):
    def train(self, mode=True):
        return self


def test_a_module_inside_may_decide_for_itself_and_what_is_in_it():
    net = Sequential(Linear(2, 2), Frozen(2), Sequential(Untouched(Frozen(2), Dropout(0.5))))
    net[2][0][1].training = False
    assert net.train() is net
    assert [m.training for m in net.modules()] == [True, True, False, True, True, True, False]
    before = net[1].running_mean.numpy().copy()
    net(minigrad.rand(4, 2))
    assert np.array_equal(net[1].running_mean.data, before)
    net.eval()
    assert [m.training for m in net.modules()] == [*[False] * 4, True, True, False]


class Backbone(Sequential):
    def train(self, mode=True):
        super().train(mode)
        self[0].train(False)
        return self


def test_a_module_inside_may_set_what_is_also_elsewhere():
    block = Sequential(Dropout(0.5))
    net = Sequential(block, Backbone(block, Dropout(0.5)))
    net.train()
    assert [m.training for m in net.modules()] == [True, False, False, True, True]


def test_freeze_reaches_every_parameter_and_can_be_taken_back():
    net = Net()
    assert net.freeze() is net
    assert not any(p.requires_grad for p in net.parameters())
    net.freeze(False)
    assert all(p.requires_grad for p in net.parameters())


def test_frozen_parameters_get_no_gradient(rng):
    net = Sequential(Linear(3, 3, rng=rng), Linear(3, 1, rng=rng))
    net[0].freeze()
    net(minigrad.ones((2, 3))).sum().backward()
    assert net[0].weight.grad is None
    assert net[1].weight.grad.shape == (1, 3)


def test_zero_grad_forgets_every_gradient(rng):
    net = MLP([2, 3, 1], rng=rng)
    net(minigrad.ones((4, 2))).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_astype_converts_every_parameter_in_its_place():
    net = Tied()
    net.decoder.bias.requires_grad_(False)
    before = net.state_dict()
    parameters = list(net.parameters())
    net.encoder.weight.grad = minigrad.zeros((3, 3))
    assert net.astype(np.float64) is net
    assert all(x is y for x, y in zip(net.parameters(), parameters, strict=True))
    assert all(p.dtype == np.float64 for p in net.parameters())
    assert all(np.array_equal(before[name], p.data) for name, p in net.named_parameters())
    assert [p.requires_grad for p in net.parameters()] == [True, True, False]
    assert net.encoder.weight.grad is None
    assert net.encoder(minigrad.ones((3,), dtype=np.float64)).dtype == np.float64


def test_astype_lets_a_model_train_on_in_the_new_dtype(rng):
    net = MLP([2, 3, 1], rng=rng).astype(np.float64)
    net(minigrad.ones((4, 2), dtype=np.float64)).sum().backward()
    assert all(p.grad.dtype == np.float64 for p in net.parameters())


@pytest.mark.parametrize("dtype", [int, bool, complex, None])
def test_astype_to_anything_but_floats_is_an_error(dtype):
    net = Net()
    before = [p.dtype for p in net.parameters()]
    with pytest.raises(TypeError, match="parameters are floats"):
        net.astype(dtype)
    assert [p.dtype for p in net.parameters()] == before


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(nn.BatchNorm1d, 2), functools.partial(nn.Conv1d, 1, 2, 3),
        functools.partial(nn.Embedding, 2, 2), functools.partial(nn.GatedMLP, 2, 4),
        functools.partial(nn.GRUCell, 2, 2), functools.partial(nn.GroupNorm, 1, 2),
        functools.partial(nn.LayerNorm, 2), functools.partial(nn.Linear, 2, 2),
        functools.partial(nn.LSTM, 2, 2), functools.partial(nn.MLP, [2, 2]),
        functools.partial(nn.MultiHeadAttention, 2, 1), functools.partial(nn.RMSNorm, 2),
        functools.partial(nn.TransformerBlock, 2, 1),
    ],
)  # fmt: skip
def test_the_dtype_none_is_that_of_no_dtype(make):
    for (name, value), (_, other) in zip(
        make(dtype=None).named_state(), make().named_state(), strict=True
    ):
        assert value.dtype == other.dtype, name


def test_a_state_with_keys_that_are_no_texts_is_refused():
    layer = Linear(2, 2)
    with pytest.raises(ValueError, match=r"(?s)missing: weight.*unexpected: 0"):
        layer.load_state_dict({0: np.ones(2), 1: np.ones(2)})


def test_a_gradient_for_a_module_that_was_converted_since_is_refused():
    layer = Linear(2, 2)
    y = layer(minigrad.ones(1, 2)).sum()
    layer.astype(np.float64)
    with pytest.raises(RuntimeError, match="converted since"):
        y.backward()
    assert layer.weight.grad is None


# ----------------------------------------------------------------------------------------------
# States
# ----------------------------------------------------------------------------------------------


def test_a_state_has_every_parameter_by_name():
    net = Net()
    net.own.requires_grad_(False)
    state = net.state_dict()
    assert list(state) == NAMES
    assert all(type(value) is np.ndarray for value in state.values())
    assert all(np.array_equal(state[name], p.data) for name, p in net.named_parameters())


def test_a_state_is_a_copy():
    net = Scale(2)
    state = net.state_dict()
    net.factor.data[...] = 5
    assert state["factor"].tolist() == [1, 1]
    state["factor"][...] = 7
    assert net.factor.tolist() == [5, 5]


def test_a_state_goes_from_one_module_to_another():
    source, target = Net(), Net()
    target.load_state_dict(source.state_dict())
    for x, y in zip(source.parameters(), target.parameters(), strict=True):
        assert np.array_equal(x.data, y.data)
        assert not np.shares_memory(x.data, y.data)


def test_a_state_may_be_of_tensors_lists_and_other_floats():
    net = Sequential(Scale(2), Scale(2), Scale(2))
    dtypes = [p.dtype for p in net.parameters()]
    values = [minigrad.tensor([1.0, 2.0]), [3, 4], np.array([5, 6], np.float16)]
    net.load_state_dict({f"{i}.factor": value for i, value in enumerate(values)})
    assert [p.tolist() for p in net.parameters()] == [[1, 2], [3, 4], [5, 6]]
    assert [p.dtype for p in net.parameters()] == dtypes


def test_lists_keep_their_digits_in_a_state_of_float64():
    net = Linear(2, 1).astype("float64")
    net.load_state_dict({"weight": [[0.1, 0.2]], "bias": [0.3]})
    assert [p.tolist() for p in net.parameters()] == [[[0.1, 0.2]], [0.3]]
    net.weight.copy_([[0.3, 0.4]])
    assert net.weight.tolist() == [[0.3, 0.4]]


def test_loading_writes_into_the_memory_that_is_there():
    net = Scale(2)
    data, parameter = net.factor.data, net.factor
    net.factor.requires_grad_(False)
    net.load_state_dict({"factor": np.array([3.0, 4.0])})
    assert net.factor is parameter
    assert net.factor.data is data
    assert data.tolist() == [3, 4]
    assert not net.factor.requires_grad


def test_loading_is_seen_by_a_graph_that_saved_a_parameter():
    net = Scale(2)
    square = (net.factor * net.factor).sum()
    net.load_state_dict({"factor": np.zeros(2)})
    with pytest.raises(RuntimeError, match=r"written|changed"):
        square.backward()


def test_a_state_that_does_not_fit_is_one_complete_error_and_changes_nothing():
    net = Net()
    before = {name: value.copy() for name, value in net.state_dict().items()}
    state = {name: value + 1 for name, value in net.state_dict().items()}
    del state["own"], state["heads.mean.factor"]
    state["layers.0.weight"] = state["layers.0.weight"].T
    state["layers.0.bais"] = state["layers.0.bias"]
    state["layers.0.bias"] = np.array(["text"] * 3)
    state["quite another thing"] = np.zeros(1)
    with pytest.raises(ValueError, match="nothing was loaded") as caught:
        net.load_state_dict(state)
    message = str(caught.value)
    for line in (
        "does not fit this Net",
        "missing: own (2,)",
        "missing: heads.mean.factor (2,)",
        "mis-shaped: layers.0.weight is (2, 3) in the state, (3, 2) in the module",
        "unusable: layers.0.bias",
        "unexpected: layers.0.bais (did you mean 'layers.0.bias'?)",
        "unexpected: quite another thing",
    ):
        assert line in message
    assert message.count("\n") == 6
    assert all(np.array_equal(before[name], value) for name, value in net.state_dict().items())


def state_of_tied(**others):
    """The state of a `Tied`, with a value for each path, as PyTorch lists them."""
    own = {name: value + 1 for name, value in Tied().state_dict().items()}
    again = {f"again.{name}": own[f"encoder.{name}"].copy() for name in ("weight", "bias")}
    return own | again | {"decoder.weight": own["encoder.weight"].copy()} | others


def test_a_state_may_have_each_path_of_a_tensor_as_in_pytorch():
    net, state = Tied(), state_of_tied()
    net.load_state_dict(state)
    assert all(np.array_equal(state[name], value) for name, value in net.state_dict().items())
    assert net.decoder.weight is net.encoder.weight


def test_two_values_of_one_tensor_are_refused():
    net = Tied()
    before = net.state_dict()
    others = {"decoder.weight": np.zeros((3, 3)), "again.weigth": np.zeros(3)}
    with pytest.raises(ValueError, match="nothing was loaded") as caught:
        net.load_state_dict(state_of_tied(**others))
    assert str(caught.value).splitlines()[1:] == [
        "  contradictory: decoder.weight is not encoder.weight, and both are one tensor here",
        "  unexpected: again.weigth",
    ]
    assert all(np.array_equal(before[name], value) for name, value in net.state_dict().items())


def test_an_empty_state_is_an_error_unless_there_is_nothing_to_load():
    with pytest.raises(ValueError, match=r"missing: factor \(1,\)"):
        Scale(1).load_state_dict({})
    nn.ReLU().load_state_dict({})


# ----------------------------------------------------------------------------------------------
# Copies
# ----------------------------------------------------------------------------------------------


def test_a_deep_copy_is_equal_and_independent(rng):
    net = MLP([2, 3, 1], rng=rng)
    net.layers[0].freeze()
    net.eval()
    net(minigrad.ones((4, 2))).sum().backward()
    twin = copy.deepcopy(net)
    x = minigrad.ones((4, 2))
    assert np.array_equal(twin(x).data, net(x).data)
    assert [p.requires_grad for p in twin.parameters()] == [False, False, True, True]
    assert not twin.training
    assert np.array_equal(twin.layers[1].weight.grad.data, net.layers[1].weight.grad.data)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert not np.shares_memory(p.data, q.data)
    twin.layers[1].weight.grad.data[...] = 9
    assert (net.layers[1].weight.grad.data != 9).all()


def test_a_deep_copy_keeps_ties():
    net = Tied()
    twin = copy.deepcopy(net)
    assert twin.decoder.weight is twin.encoder.weight
    assert twin.again is twin.encoder
    assert twin.encoder.weight is not net.encoder.weight


def test_an_op_in_a_module_is_the_same_op_in_its_copy():
    net = Sequential(MLP([2, 3, 1]), minigrad.tanh)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert twin[0].activation is minigrad.relu
        assert twin[1] is minigrad.tanh
        x = minigrad.ones((4, 2))
        assert np.array_equal(twin(x).data, net(x).data)


def test_a_pickled_module_keeps_ties_flags_and_mode():
    net = Tied().eval()
    net.decoder.bias.requires_grad_(False)
    twin = pickle.loads(pickle.dumps(net))
    assert twin.decoder.weight is twin.encoder.weight
    assert [p.requires_grad for p in twin.parameters()] == [True, True, False]
    assert not twin.training
    assert all(np.array_equal(net.state_dict()[n], v) for n, v in twin.state_dict().items())


def test_a_write_to_a_deep_copy_does_not_concern_graphs_of_the_original():
    net = Scale(2)
    square = (net.factor * net.factor).sum()
    twin = copy.deepcopy(net)
    twin.load_state_dict({"factor": np.zeros(2)})
    square.backward()
    assert net.factor.grad.tolist() == [2, 2]


# ----------------------------------------------------------------------------------------------
# Looks
# ----------------------------------------------------------------------------------------------


def test_repr_is_a_tree_with_counts():
    net = Sequential(Linear(40, 50), nn.ReLU(), Sequential(Linear(50, 2, bias=False), Dropout(0.1)))
    assert repr(net).splitlines() == [
        "Sequential(  # 2,150 parameters",
        "  (0): Linear(40, 50)  # 2,050",
        "  (1): ReLU()",
        "  (2): Sequential(",
        "    (0): Linear(50, 2, bias=False)  # 100",
        "    (1): Dropout(p=0.1)",
        "  )",
        ")",
    ]


def test_repr_of_a_child_with_children_has_a_comma_before_them():
    net = Sequential(MLP([2, 3, 1]))
    assert repr(net).splitlines()[1] == "  (0): MLP(activation=relu,"
    net = nn.Sequential(nn.Linear(2, 3), minigrad.relu, nn.ReLU())
    assert repr(net).splitlines()[0] == "Sequential(1=relu,  # 9 parameters"


def test_repr_of_children_whose_names_begin_alike():
    net = Sequential()
    net.parts = {"a.b": Linear(2, 2), "a": Linear(3, 3)}
    lines = ["  (parts.a.b): Linear(2, 2)  # 6", "  (parts.a): Linear(3, 3)  # 12"]
    assert repr(net).splitlines()[1:-1] == lines

    net.parts = {"a": Linear(3, 3), "a.b": Linear(2, 2)}
    assert repr(net).splitlines()[1:-1] == lines[::-1]


def test_repr_of_a_child_that_knows_its_parent_ends():
    net = Sequential(Sequential(Scale(2)), Scale(3))
    net[0].parent = net[0][0].parent = net
    net[0][0].brother = net[1]
    assert repr(net).splitlines() == [
        "Sequential(  # 5 parameters",
        "  (0): Sequential(",
        "    (0): Scale(  # 2",
        "      (brother): Scale()  # 3",
        "    )",
        "  )",
        ")",
    ]


def test_a_module_is_printed_in_each_module_that_contains_it():
    first = Linear(2, 2)
    net = Module()
    net.first, net.chain = first, Sequential(first, nn.ReLU())
    assert repr(net).splitlines() == [
        "Module(  # 6 parameters",
        "  (first): Linear(2, 2)  # 6",
        "  (chain): Sequential(",
        "    (0): Linear(2, 2)  # 6",
        "    (1): ReLU()",
        "  )",
        ")",
    ]


def test_repr_of_thousands_of_layers_takes_no_time():
    net = Sequential(*(Sequential(nn.ReLU(), nn.ReLU()) for _ in range(4000)))
    start = time.process_time()
    assert len(repr(net).splitlines()) == 4 * 4000 + 2
    assert time.process_time() - start < 5  # seconds; comparing each with all others took longer


def test_repr_says_how_many_parameters_train():
    net = MLP([2, 3, 1])
    net.layers[0].freeze()
    first = repr(net).splitlines()[0]
    assert first == "MLP(activation=relu,  # 13 parameters, 4 trainable"


def test_repr_of_one_layer_is_one_line():
    assert repr(Linear(1, 1, bias=False)) == "Linear(1, 1, bias=False)  # 1 parameter"
    assert repr(nn.ReLU()) == "ReLU()"
    assert repr(nn.Softmax(axis=1)) == "Softmax(axis=1)"
    assert repr(nn.MSELoss("sum")) == "MSELoss(reduction='sum')"


class Special(nn.Parameter):
    """A parameter of a class of its own."""


@pytest.mark.parametrize("kind", [nn.Parameter, nn.Buffer, Special])
@pytest.mark.parametrize("make", [minigrad.zeros, np.zeros])
def test_a_plain_value_does_not_replace_a_parameter_or_a_buffer(kind, make):
    class Model(nn.Module):
        def __init__(self):
            self.part = kind(np.ones(2))
            self.other = None

    model = Model()
    usual = "Buffer" if kind is nn.Buffer else "Parameter"
    with pytest.raises(TypeError, match=rf"part is a {usual}.*\.part\.copy_\(value\)"):
        model.part = make(2)
    with pytest.raises(TypeError, match=r"to compute it from other parameters, `del` \.part first"):
        model.part = minigrad.exp(nn.Parameter(np.ones(2)))
    assert list(model.state_dict()) == ["part"]
    model.part = kind(make(2))
    assert model.state_dict()["part"].tolist() == [0, 0]
    model.part = None
    model.other = make(2)
    assert list(model.state_dict()) == []


@pytest.mark.parametrize("of", [lambda p: p, lambda p: p.data, lambda p: p.data[:]])
def test_weights_of_a_module_itself_can_change_places(of):
    model = Sequential(*(Linear(1, 1, bias=False) for _ in range(3)))
    for i, layer in enumerate(model):
        layer.weight.copy_([[float(i)]])
    model.load_state_dict({f"{i}.weight": of(model[(i - 1) % 3].weight) for i in range(3)})
    assert [layer.weight.item() for layer in model] == [2, 0, 1]


@pytest.mark.parametrize("number", [np.nan, 2.7, 1e30])
def test_what_is_no_integer_is_not_loaded_into_integers(number):
    norm = nn.BatchNorm1d(2)
    state = {**norm.state_dict(), "num_batches_tracked": np.array(number)}
    with pytest.raises(ValueError, match=r"mis-typed: num_batches_tracked has .* not int64"):
        norm.load_state_dict(state)
    norm.load_state_dict({**state, "num_batches_tracked": np.array(3.0)})
    assert norm.num_batches_tracked.item() == 3


def test_switches_of_a_module_are_true_or_false():
    model = MLP([2, 1])
    for switch in (model.train, model.freeze):
        with pytest.raises(TypeError, match="must be True or False, not 'no'"):
            switch("no")
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


class Registered:
    """A base class with a keyword for the definition of a subclass."""

    def __init_subclass__(cls, alias=None, **options):
        super().__init_subclass__(**options)
        cls.alias = alias


@pytest.mark.parametrize(
    "base",
    [Module, minigrad.nn.module.FunctionModule, optim.SGD, optim.StepLR, minigrad.Observer],
)
def test_a_class_may_have_keywords_of_another_base(base):
    class Named(base, Registered, alias="name"):
        pass

    assert Named.alias == "name"
    with pytest.raises(TypeError, match="takes no keyword arguments"):
        type("Named", (base,), {}, alias="name")
