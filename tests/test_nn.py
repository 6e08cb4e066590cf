"""Modules: what is found inside, states, modes; layers, losses and first weights."""

import copy
import math
import pickle

import numpy as np
import pytest

import minigrad
from minigrad import nn
from minigrad.nn import MLP, Dropout, Linear, Module, Parameter, Sequential, init


@pytest.fixture
def rng():
    return np.random.default_rng(0)


class Scale(Module):
    def __init__(self, n):
        self.factor = Parameter(np.ones(n))

    def forward(self, x):
        return x * self.factor


class Net(Module):
    """Parameters and modules wherever they can be held, and things that are neither."""

    def __init__(self):
        self.own = Parameter([1.0, 2.0])
        self.buffer = minigrad.ones((3,))  # a Tensor that is no Parameter
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


def test_equal_names_are_an_error():
    net = Scale(1)
    net.table = {1: Parameter([1.0]), "1": Parameter([2.0])}
    with pytest.raises(ValueError, match=r"table\.1"):
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


@pytest.mark.parametrize("dtype", [int, bool, complex])
def test_astype_to_anything_but_floats_is_an_error(dtype):
    net = Net()
    before = [p.dtype for p in net.parameters()]
    with pytest.raises(TypeError, match="parameters are floats"):
        net.astype(dtype)
    assert [p.dtype for p in net.parameters()] == before


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
        "unexpected: layers.0.bais (did you mean layers.0.bias?)",
        "unexpected: quite another thing",
    ):
        assert line in message
    assert message.count("\n") == 6
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


# ----------------------------------------------------------------------------------------------
# Layers
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (0, 5)])
def test_linear_is_x_w_transposed_plus_b(rng, shape, bias, dtype):
    layer = Linear(5, 3, bias, dtype=dtype, rng=rng)
    x = rng.standard_normal(shape).astype(dtype)
    expected = np.einsum("...i,oi->...o", x, layer.weight.data)
    if bias:
        expected = expected + layer.bias.data
    out = layer(minigrad.tensor(x))
    assert out.dtype == dtype
    assert (layer.in_features, layer.out_features) == (5, 3)
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    np.testing.assert_allclose(out.data, expected, rtol=tolerance, atol=tolerance)


def test_linear_takes_memory_that_is_not_contiguous(rng):
    layer = Linear(5, 3, dtype=np.float64, rng=rng)
    x = rng.standard_normal((10, 8)).T[::2, ::-1][:, :5]
    expected = x @ layer.weight.data.T + layer.bias.data
    np.testing.assert_allclose(layer(minigrad.Tensor(x)).data, expected, rtol=1e-13)


def test_linear_without_bias_has_one_parameter():
    assert [name for name, _ in Linear(2, 3, bias=False).named_parameters()] == ["weight"]


@pytest.mark.parametrize("shape", [(), (4,), (5, 4)])
def test_linear_of_a_wrong_size_is_an_error(shape):
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        Linear(5, 3)(minigrad.ones(shape))


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (-1, 3), (2.5, 3), ("2", 3)])
def test_linear_sizes_are_positive_integers(sizes):
    with pytest.raises((ValueError, TypeError), match=f"{sizes[0]!r}"):
        Linear(*sizes)


def test_linear_begins_uniform_within_one_over_the_root_of_d_in(rng):
    layer = Linear(400, 300, rng=rng)
    bound = 1 / 20
    for p in (layer.weight, layer.bias):
        assert abs(p.data).max() <= bound
        assert p.data.max() > 0.94 * bound  # of 300 draws at least: missed once in 10,000 times
        assert p.data.min() < -0.94 * bound
    spread = bound / math.sqrt(3)
    assert layer.weight.data.std() == pytest.approx(spread, rel=0.01)  # of 120,000 draws
    assert abs(layer.weight.data.mean()) < 0.01 * spread  # whose mean has a deviation of 0.003


def test_equal_generators_give_equal_models_and_manual_seed_too():
    x, y, z = (MLP([3, 4, 1], rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    minigrad.manual_seed(5)
    u = MLP([3, 4, 1])
    minigrad.manual_seed(5)
    v = MLP([3, 4, 1])
    for one, two in ((x, y), (u, v)):
        pairs = zip(one.parameters(), two.parameters(), strict=True)
        assert all(np.array_equal(p.data, q.data) for p, q in pairs)
    pairs = zip(x.parameters(), z.parameters(), strict=True)
    assert not any(np.array_equal(p.data, q.data) for p, q in pairs)


def test_a_seed_is_no_generator():
    with pytest.raises(TypeError, match="default_rng"):
        Linear(2, 3, rng=0)


def test_sequential_runs_modules_and_functions_in_turn():
    layer = Linear(2, 3)
    net = Sequential(layer, minigrad.tanh, lambda x: x * 2)
    x = minigrad.ones((4, 2))
    np.testing.assert_allclose(net(x).data, 2 * np.tanh(layer(x).data), rtol=1e-6)
    assert len(net) == 3
    assert net[0] is layer
    assert list(net)[1] is minigrad.tanh
    assert Sequential()(x) is x


def test_mlp_has_its_activation_between_layers_and_none_at_the_end(rng):
    net = MLP([3, 4, 5, 2], activation=minigrad.tanh, dtype=np.float64, rng=rng)
    x = rng.standard_normal((6, 3))
    out = x
    for i, layer in enumerate(net.layers):
        out = out @ layer.weight.data.T + layer.bias.data
        out = np.tanh(out) if i < 2 else out
    np.testing.assert_allclose(net(minigrad.tensor(x)).data, out, rtol=1e-12)
    assert [(m.in_features, m.out_features) for m in net.layers] == [(3, 4), (4, 5), (5, 2)]


def test_mlp_is_of_relus_unless_told_otherwise():
    net = MLP([1, 2, 1])
    net.load_state_dict(
        {
            "layers.0.weight": [[1.0], [-1.0]],
            "layers.0.bias": [0.0, 0.0],
            "layers.1.weight": [[1.0, 10.0]],
            "layers.1.bias": [0.5],
        }
    )
    assert net(minigrad.tensor([[2.0], [-3.0]])).tolist() == [[2.5], [30.5]]


def test_mlp_drops_hidden_values_in_training_only(rng):
    net = MLP([2, 50, 1], dropout=0.5, rng=rng)
    x = minigrad.ones((1, 2))
    assert len({net(x).item() for _ in range(10)}) == 10
    net.eval()
    assert len({net(x).item() for _ in range(10)}) == 1
    assert MLP([2, 1]).dropout is None


@pytest.mark.parametrize("sizes", [[], [3]])
def test_mlp_needs_two_sizes(sizes):
    with pytest.raises(ValueError, match="at least those of input and output"):
        MLP(sizes)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (nn.ReLU(), lambda x: np.maximum(x, 0)),
        (nn.Tanh(), np.tanh),
        (nn.Sigmoid(), lambda x: 1 / (1 + np.exp(-x))),
        (nn.GELU(), lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2),
        (nn.Softmax(), lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
        (nn.Softmax(axis=0), lambda x: np.exp(x) / np.exp(x).sum(0, keepdims=True)),
    ],
    ids=["relu", "tanh", "sigmoid", "gelu", "softmax", "softmax of columns"],
)
def test_activations_as_modules(rng, module, function):
    x = rng.standard_normal((4, 5))
    np.testing.assert_allclose(module(minigrad.tensor(x)).data, function(x), rtol=1e-12, atol=1e-14)


# ----------------------------------------------------------------------------------------------
# Dropout
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_the_share_p_and_scales_the_rest(rng, p):
    x = 1 + np.arange(100_000, dtype=np.float64)
    out = Dropout(p, rng=rng)(minigrad.tensor(x)).data
    kept = out != 0
    np.testing.assert_allclose(out[kept], x[kept] / (1 - p), rtol=1e-6)
    deviation = math.sqrt(p * (1 - p) / x.size)
    assert abs(kept.mean() - (1 - p)) < 4 * deviation  # a draw of a fixed seed
    neighbours = np.corrcoef(kept[:-1], kept[1:])[0, 1]
    assert abs(neighbours) < 4 / math.sqrt(x.size)  # independent, up to chance


def test_the_gradient_of_dropout_goes_where_the_values_went(rng):
    x = minigrad.ones((1000,), dtype=np.float64, requires_grad=True)
    out = Dropout(0.25, rng=rng)(x)
    out.sum().backward()
    np.testing.assert_allclose(x.grad.data, out.data, rtol=1e-15)
    assert 0 < (x.grad.data == 0).sum() < 1000


def test_dropout_in_evaluation_gives_back_its_input(rng):
    layer = Dropout(0.5, rng=rng).eval()
    x = minigrad.ones((5,))
    state = rng.bit_generator.state
    assert layer(x) is x
    assert rng.bit_generator.state == state


def test_dropout_of_nothing_and_of_everything():
    x = minigrad.ones((50,))
    assert Dropout(0.0)(x) is x
    assert (Dropout(1.0)(x).data == 0).all()
    assert Dropout(1)(x).dtype == np.float32


def test_equal_generators_drop_equally_and_calls_differ():
    x = minigrad.ones((100,))
    one, two = (Dropout(0.5, rng=np.random.default_rng(3)) for _ in range(2))
    first, second = one(x).data, one(x).data
    assert np.array_equal(first, two(x).data)
    assert not np.array_equal(first, second)


def test_dropout_follows_manual_seed():
    x = minigrad.ones((100,))
    minigrad.manual_seed(7)
    first = Dropout(0.5)(x).data
    minigrad.manual_seed(7)
    assert np.array_equal(Dropout(0.5)(x).data, first)


def test_dropout_with_a_numpy_probability_keeps_float32():
    assert Dropout(np.float64(0.5))(minigrad.ones((4,))).dtype == np.float32


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_a_dropout_that_is_no_probability_is_an_error(p):
    with pytest.raises(ValueError, match="p is a probability"):
        Dropout(p)


# ----------------------------------------------------------------------------------------------
# Losses
# ----------------------------------------------------------------------------------------------


def cross_entropies(logits, target):
    """-log softmax(logits)[target] by row, with classes last."""
    shifted = logits - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.take_along_axis(logs, target[..., None], -1)[..., 0]


REDUCTIONS = {"mean": np.mean, "sum": np.sum, "none": lambda x: x}


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_losses_of_numbers(rng, reduction):
    p, y = rng.standard_normal((2, 4, 3))
    reduce = REDUCTIONS[reduction]
    for loss, each in ((nn.MSELoss, (p - y) ** 2), (nn.L1Loss, abs(p - y))):
        out = loss(reduction)(minigrad.tensor(p), minigrad.tensor(y))
        np.testing.assert_allclose(out.data, reduce(each), rtol=1e-13)
        assert np.array_equal(loss(reduction)(minigrad.tensor(p), y).data, out.data)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_losses_of_classes(rng, reduction):
    logits = 10 * rng.standard_normal((6, 4))
    target = rng.integers(0, 4, 6)
    expected = REDUCTIONS[reduction](cross_entropies(logits, target))
    out = nn.CrossEntropyLoss(reduction)(minigrad.tensor(logits), target)
    np.testing.assert_allclose(out.data, expected, rtol=1e-12)


def test_cross_entropy_has_its_classes_on_axis_one(rng):
    logits = rng.standard_normal((2, 4, 3, 5))
    target = rng.integers(0, 4, (2, 3, 5))
    expected = cross_entropies(np.moveaxis(logits, 1, -1), target).mean()
    out = nn.CrossEntropyLoss()(minigrad.tensor(logits), target)
    assert out.item() == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_is_finite_for_logits_that_overflow_an_exponential():
    out = nn.CrossEntropyLoss("none")(minigrad.tensor([[1e4, 0.0], [1e4, 0.0]]), [0, 1])
    assert out.tolist() == [0.0, 1e4]


@pytest.mark.parametrize("loss", [nn.MSELoss, nn.L1Loss, nn.CrossEntropyLoss])
def test_an_unknown_reduction_is_an_error(loss):
    with pytest.raises(ValueError, match="'mean', 'sum' or 'none', not 'average'"):
        loss("average")


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss()])
def test_a_column_is_not_compared_with_a_row(loss):
    with pytest.raises(ValueError, match=r"\(4, 1\).*\(4,\)"):
        loss(minigrad.ones((4, 1)), np.ones(4))


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss()])
def test_a_float64_target_does_not_widen_a_float32_model(loss):
    prediction = minigrad.zeros((2,), requires_grad=True)
    out = loss(prediction, np.ones(2))
    assert out.dtype == np.float32
    out.backward()
    assert prediction.grad.dtype == np.float32


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ([0.0, 1.0], TypeError, "integer classes"),
        ([0, 3], ValueError, r"there are 3 classes"),
        ([-1, 0], ValueError, r"from -1 to 0"),
        ([[0], [1]], ValueError, r"have shape \(2,\), not \(2, 1\)"),
    ],
)
def test_targets_that_are_no_classes_are_errors(target, error, message):
    with pytest.raises(error, match=message):
        nn.CrossEntropyLoss()(minigrad.zeros((2, 3)), target)


# ----------------------------------------------------------------------------------------------
# First weights
# ----------------------------------------------------------------------------------------------

D_OUT, D_IN = 200, 300


def drawn(fill, rng, **options):
    tensor = minigrad.zeros((D_OUT, D_IN), requires_grad=True)
    assert fill(tensor, rng=rng, **options) is tensor
    assert tensor.dtype == np.float32
    assert tensor.is_leaf
    return tensor.data.astype(np.float64)


@pytest.mark.parametrize(
    ("fill", "options", "variance"),
    [
        (init.kaiming_uniform_, {}, 2 / D_IN),
        (init.kaiming_uniform_, {"a": math.sqrt(5)}, 1 / 3 / D_IN),
        (init.kaiming_uniform_, {"nonlinearity": "linear"}, 1 / D_IN),
        (init.kaiming_uniform_, {"mode": "fan_out"}, 2 / D_OUT),
        (init.kaiming_uniform_, {"nonlinearity": "tanh"}, 25 / 9 / D_IN),
        (init.xavier_uniform_, {}, 2 / (D_IN + D_OUT)),
        (init.xavier_uniform_, {"gain": 3.0}, 18 / (D_IN + D_OUT)),
        (init.uniform_, {"a": -0.3, "b": 0.3}, 0.03),
    ],
)
def test_uniform_weights(rng, fill, options, variance):
    values = drawn(fill, rng, **options)
    bound = math.sqrt(3 * variance)
    assert abs(values).max() <= bound * (1 + 1e-6)
    assert values.min() < -0.999 * bound  # the extremes of 60,000 draws
    assert values.max() > 0.999 * bound  # the extremes of 60,000 draws
    assert abs(values.mean()) < 4 * math.sqrt(variance / values.size)  # a draw of a fixed seed
    assert values.var() == pytest.approx(variance, rel=0.02)  # whose own deviation is 0.004
    assert (values**4).mean() == pytest.approx(1.8 * variance**2, rel=0.03)  # 3 for a Gaussian


@pytest.mark.parametrize(
    ("fill", "options", "variance"),
    [
        (init.kaiming_normal_, {}, 2 / D_IN),
        (init.kaiming_normal_, {"mode": "fan_out"}, 2 / D_OUT),
        (init.kaiming_normal_, {"a": 1.0}, 1 / D_IN),
        (init.kaiming_normal_, {"nonlinearity": "sigmoid"}, 1 / D_IN),
        (init.xavier_normal_, {}, 2 / (D_IN + D_OUT)),
        (init.xavier_normal_, {"gain": 0.5}, 0.5 / (D_IN + D_OUT)),
        (init.normal_, {}, 1.0),
        (init.normal_, {"std": 0.1}, 0.01),
    ],
)
def test_normal_weights(rng, fill, options, variance):
    values = drawn(fill, rng, **options)
    assert abs(values.mean()) < 4 * math.sqrt(variance / values.size)  # a draw of a fixed seed
    assert values.var() == pytest.approx(variance, rel=0.03)  # whose own deviation is 0.006
    assert (values**4).mean() == pytest.approx(3 * variance**2, rel=0.1)  # 1.8 for a uniform one


def test_constant_weights():
    tensor = minigrad.ones((2, 3), requires_grad=True)
    assert init.zeros_(tensor) is tensor
    assert (tensor.data == 0).all()
    assert (init.ones_(tensor).data == 1).all()
    assert (init.constant_(tensor, 0.5).data == 0.5).all()


def test_weights_around_another_mean(rng):
    uniform = drawn(init.uniform_, rng, a=2.0, b=4.0)
    assert uniform.min() >= 2
    assert uniform.max() <= 4
    assert uniform.mean() == pytest.approx(3, rel=0.01)  # whose own deviation is 0.0008
    normal = drawn(init.normal_, rng, mean=-5.0, std=2.0)
    assert normal.mean() == pytest.approx(-5, rel=0.01)  # whose own deviation is 0.0016


def test_an_unknown_fan_is_an_error():
    for fill in (init.kaiming_uniform_, init.kaiming_normal_):
        with pytest.raises(ValueError, match="'fan_in' or 'fan_out', not 'fan_mean'"):
            fill(minigrad.zeros((2, 3)), mode="fan_mean")


def test_weights_are_written_into_the_memory_that_is_there(rng):
    layer = Linear(3, 4)
    data = layer.weight.data
    init.xavier_normal_(layer.weight, rng=rng)
    assert layer.weight.data is data


def test_gains():
    assert init.gain("relu") == math.sqrt(2)
    assert init.gain("tanh") == 5 / 3
    assert init.gain("linear") == init.gain("sigmoid") == 1
    assert init.gain("leaky_relu", 2.0) == math.sqrt(2 / 5)
    with pytest.raises(ValueError, match=r"leaky_relu, not 'swish'"):
        init.gain("swish")


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 3)])
@pytest.mark.parametrize(
    "fill",
    [init.kaiming_uniform_, init.kaiming_normal_, init.xavier_uniform_, init.xavier_normal_],
)
def test_only_a_matrix_has_a_fan(fill, shape):
    with pytest.raises(ValueError, match=r"\(d_out, d_in\)"):
        fill(minigrad.zeros(shape))


def test_a_gradient_for_a_module_that_was_converted_since_is_refused():
    layer = Linear(2, 2)
    y = layer(minigrad.ones(1, 2)).sum()
    layer.astype(np.float64)
    with pytest.raises(RuntimeError, match="converted since"):
        y.backward()
    assert layer.weight.grad is None
