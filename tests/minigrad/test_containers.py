"""Containers: leaves and their paths, rebuilding, and the transforms and `grad` of containers."""

import threading
import time
from collections import OrderedDict, defaultdict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import Tensor, grad, gradient, hessian, hvp, jacobian, jvp, nn, value_and_grad, vjp
from minigrad.containers import flatten, flatten_as, is_container, rebuild
from tests.minigrad.refusals import not_refused

X = np.array([0.5, -1.2, 0.8])
Y = np.array([1.1, 0.7])
V = np.array([0.3, -2.0, 1.5])

Pair = namedtuple("Pair", "weight bias")


@dataclass(frozen=True, slots=True)
class Affine:
    weight: Any
    bias: Any
    name: str = field(default="affine", metadata={"static": True})


def parts(value):
    """The values of the leaves, their paths, and the structure."""
    leaves = []
    structure = flatten(value, "value", leaves)
    return [leaf.value for leaf in leaves], [leaf.path for leaf in leaves], structure


# ------------------------------------------------------------------------------------------------
# Taking apart and putting together
# ------------------------------------------------------------------------------------------------


def test_leaves_are_found_in_order_with_their_paths():
    value = {"layers": [1, (2, None), Pair(3, {7: 4})], "affine": Affine(5, [6])}
    leaves, paths, structure = parts(value)
    assert leaves == [1, 2, 3, 4, 5, 6]
    assert paths == [
        'value["layers"][0]',
        'value["layers"][1][0]',
        'value["layers"][2].weight',
        'value["layers"][2].bias[7]',
        'value["affine"].weight',
        'value["affine"].bias[0]',
    ]
    rebuilt = rebuild(structure, [10, 20, 30, 40, 50, 60])
    assert rebuilt == {
        "layers": [10, (20, None), Pair(30, {7: 40})],
        "affine": Affine(50, [60]),
    }
    assert type(rebuilt["layers"][2]) is Pair
    assert rebuild(structure, leaves) == value


@pytest.mark.parametrize("leaf", [3.0, X, Tensor(X), "text", {1}, range(3), Affine, Pair])
def test_all_else_is_a_leaf(leaf):
    (found,), paths, structure = parts(leaf)
    assert found is leaf
    assert paths == ["value"]
    assert not is_container(leaf)
    assert rebuild(structure, [7]) == 7


def test_a_dict_keeps_its_order_and_its_kind():
    ordered, default = OrderedDict(b=1, a=2), defaultdict(list, b=1, a=2)
    for value in (ordered, default, {"b": 1, "a": 2}):
        leaves, _, structure = parts(value)
        assert leaves == [1, 2]
        value["c"] = 3  # which the structure does not see
        rebuilt = rebuild(structure, [10, 20])
        assert type(rebuilt) is type(value)
        assert list(rebuilt.items()) == [("b", 10), ("a", 20)]
    assert rebuild(parts(default)[2], [1, 2, 3])["new"] == []


def test_a_dict_with_attributes_cannot_be_rebuilt():
    class Attributes(dict):
        def __init__(self, **items):
            super().__init__(**items)
            self.__dict__ = self

    assert rebuild(parts({"a": Attributes()})[2], []) == {"a": {}}
    leaves, paths, structure = parts({"a": Attributes(w=1)})
    assert (leaves, paths) == ([1], ['value["a"]["w"]'])
    with pytest.raises(
        TypeError, match=r'value\["a"\] is of type Attributes, a dict with attributes \(w\)'
    ):
        rebuild(structure, [2])


def test_a_named_tuple_made_in_c_is_a_container():
    value = time.struct_time(range(9))
    leaves, paths, structure = parts(value)
    assert leaves == list(range(9))
    assert paths[:2] == ["value[0]", "value[1]"]
    assert rebuild(structure, leaves) == value
    assert type(rebuild(structure, leaves)) is time.struct_time


def test_a_dataclass_is_rebuilt_by_its_fields_alone():
    @dataclass
    class Checked:
        w: Any
        scale: int = field(default=2, metadata={"static": True})
        derived: Any = field(init=False, default=1.0)

        def __post_init__(self):
            if not isinstance(self.w, float):
                raise TypeError("w is a float")
            self.square = self.w**2

    leaves, paths, structure = parts(Checked(3.0, scale=5))
    assert leaves == [3.0, 1.0]
    assert paths == ["value.w", "value.derived"]
    rebuilt = rebuild(structure, ["anything", 4])
    assert (rebuilt.w, rebuilt.scale, rebuilt.derived) == ("anything", 5, 4)
    assert not hasattr(rebuilt, "square")  # it would be that of the other w


def test_a_module_is_a_container_of_what_is_trained():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    dict(model.named_parameters())["0.bias"].requires_grad_(False)
    leaves, paths, structure = parts({"model": model})
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [id(leaf) for leaf in leaves] == [id(p) for p in named.values()]
    assert paths == [f'value["model"].{name}' for name in named]
    assert rebuild(structure, [1, 2, 3]) == {"model": dict(zip(named, [1, 2, 3], strict=True))}
    assert rebuild(structure, leaves, owners=True)["model"] is model


def test_the_same_object_in_two_places_is_two_leaves():
    shared = [X]
    leaves, paths, _ = parts([shared, {"again": shared}])
    assert leaves[0] is leaves[1] is X
    assert paths == ["value[0][0]", 'value[1]["again"][0]']


def test_a_container_that_contains_itself_is_refused():
    outer = {"x": X, "inner": []}
    outer["inner"].append(outer)
    message = r'\["inner"\]\[0\] is a container that contains itself, so it has no end'
    calls = [
        lambda: parts(outer),
        lambda: value_and_grad(lambda d: d["x"].sum())(outer),
        lambda: jvp(lambda d: d["x"], outer, outer),
        lambda: vjp(lambda x: outer, X),
        lambda: grad(minigrad.tensor(X, requires_grad=True).sum(), outer),
        lambda: minigrad.gradcheck(lambda d: d["x"], outer),
        lambda: minigrad.gradcheck(lambda x: outer, X),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()
    nested = [1.0]
    nested.append(nested)
    with pytest.raises(ValueError, match=r"argument 0\[1\] is a container that contains itself"):
        gradient(lambda values: values[0])(nested)
    with pytest.raises(ValueError, match=r"values\[1\] is a container that contains itself"):
        minigrad.gradcheck(lambda values: values[0], [nested])


STRUCTURE = parts({"a": [1, None], "b": Pair(2, 3)})[2]


def test_leaves_of_the_same_structure_come_in_its_order():
    leaves = flatten_as(STRUCTURE, {"b": Pair(20, "text"), "a": [10, None]}, "v")
    assert [leaf[:2] for leaf in leaves] == [
        (10, 'v["a"][0]'),
        (20, 'v["b"].weight'),
        ("text", 'v["b"].bias'),
    ]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1, 2], TypeError, "^v must be of type dict, not list"),
        ({"a": [1, None]}, ValueError, r"^v must have \['a', 'b'\] inside, not \['a'\]"),
        (
            {"a": [1], "b": Pair(2, 3)},
            ValueError,
            r'^v\["a"\] must have \[0, 1\] inside, not \[0\]',
        ),
        ({"a": [1, 2], "b": Pair(2, 3)}, TypeError, r'v\["a"\]\[1\] must be of type NoneType'),
        ({"a": (1, None), "b": Pair(2, 3)}, TypeError, r'v\["a"\] must be of type list, not tuple'),
        ({"a": [1, None], "b": (2, 3)}, TypeError, r'v\["b"\] must be of type Pair, not tuple'),
        ({"a": None, "b": Pair(2, 3)}, TypeError, r'v\["a"\] must be of type list, not NoneType'),
    ],
)
def test_another_structure_is_refused(value, error, message):
    with pytest.raises(error, match=message):
        flatten_as(STRUCTURE, value, "v")


numbers = st.floats(-2, 2, width=32)
keys = st.one_of(st.text(max_size=3), st.integers(0, 9))
containers = st.recursive(
    st.one_of(numbers, st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
        st.builds(Pair, inner, inner),
        st.builds(Affine, inner, inner, st.text(max_size=2)),
    ),
    max_leaves=12,
)


@hypothesis.given(containers)
@hypothesis.settings(max_examples=60)
def test_any_container_is_taken_apart_and_put_together(value):
    leaves, paths, structure = parts(value)
    assert rebuild(structure, leaves) == value
    assert len(set(paths)) == len(leaves)
    assert [leaf.value for leaf in flatten_as(structure, value, "value")] == leaves
    if not leaves:
        return

    def weighted(tensors):
        return sum(((i + 1.5) * t.sin() * tensors[0] for i, t in enumerate(tensors)), Tensor(0.0))

    flat = value_and_grad(lambda *xs: weighted(xs), range(len(leaves)))(*leaves)
    found = value_and_grad(lambda tree: weighted(parts(tree)[0]))(value)
    assert_array_equal(found.value.data, flat.value.data)
    gradients, same_paths, _ = parts(found.gradient)
    assert same_paths == paths
    for one, other in zip(gradients, flat.gradient, strict=True):
        assert_array_equal(one.data, other.data)


# ------------------------------------------------------------------------------------------------
# Transforms, against closed forms
# ------------------------------------------------------------------------------------------------

TREE = {"x": X, "rest": [Pair(Y, None), (np.float64(2.0),)], "none": None}


def energy(tree):
    """Sum x^3 + k sum y^2."""
    (y, nothing), (k,) = tree["rest"]
    assert nothing is tree["none"] is None
    return (tree["x"] ** 3).sum() + k * (y**2).sum()


def check_gradient(g):
    assert list(g) == ["x", "rest", "none"]
    assert g["none"] is g["rest"][0].bias is None
    assert type(g["rest"]) is list
    assert_allclose(g["x"].data, 3 * X**2, rtol=1e-14)
    assert_allclose(g["rest"][0].weight.data, 4 * Y, rtol=1e-14)
    assert_allclose(g["rest"][1][0].data, (Y**2).sum(), rtol=1e-14)


def test_gradients_have_the_structure_of_the_argument():
    value, g = value_and_grad(energy)(TREE)
    assert_allclose(value.data, (X**3).sum() + 2 * (Y**2).sum(), rtol=1e-14)
    check_gradient(g)
    check_gradient(gradient(energy)(TREE))
    check_gradient(vjp(energy, TREE)[1](1.0)[0])
    check_gradient(jacobian(energy)(TREE))
    by_second, by_first = value_and_grad(lambda a, b: energy(b) * a, (1, 0))(3.0, TREE)[1]
    assert_allclose(by_second["x"].data, 9 * X**2, rtol=1e-14)
    assert_allclose(by_first.data, value.data, rtol=1e-6)


TANGENT = {"none": None, "rest": [Pair(Y + 1, None), (3.0,)], "x": V}


def test_tangents_have_the_structure_of_the_primals():
    value, tangent = jvp(energy, TREE, TANGENT)
    right = (3 * X**2 * V).sum() + (4 * Y * (Y + 1)).sum() + 3 * (Y**2).sum()
    assert_allclose(tangent.data, right, rtol=1e-14)
    product = hvp(energy, TREE, TANGENT)
    assert_allclose(product["x"].data, 6 * X * V, rtol=1e-14)
    assert_allclose(product["rest"][0].weight.data, 4 * (Y + 1) + 6 * Y, rtol=1e-14)
    assert_allclose(product["rest"][1][0].data, (2 * Y * (Y + 1)).sum(), rtol=1e-14)
    # a tuple is the arguments, as ever; a named tuple is one argument
    both = jvp(lambda a, b: energy(a) * b, (TREE, 2.0), (TANGENT, 5.0))[1]
    assert_allclose(both.data, 2 * right + 5 * value.data, rtol=1e-6)
    (of_tree, of_b) = hvp(lambda a, b: energy(a) * b, (TREE, 2.0), (TANGENT, 0.0))
    assert_allclose(of_tree["x"].data, 12 * X * V, rtol=1e-6)
    assert_allclose(of_b.data, right, rtol=1e-6)
    assert_allclose(jvp(lambda p: (p.weight * p.bias).sum(), Pair(X, V), Pair(V, X))[1].data,
                    (V * V + X * X).sum(), rtol=1e-14)  # fmt: skip
    assert type(hvp(lambda p: (p.weight * p.bias).sum(), Pair(X, V), Pair(V, X))) is Pair


def outputs(tree):
    x, (y, _) = tree["x"], tree["rest"][0]
    return {"square": x * x, "two": (y.sum() * x, [y, None])}


@pytest.mark.parametrize("rows_per_column", [0, np.inf], ids=["columns", "rows"])
def test_jacobians_of_containers_are_nested(rows_per_column, monkeypatch):
    monkeypatch.setattr("minigrad.transforms.derivatives.ROWS_PER_COLUMN", rows_per_column)
    J = jacobian(outputs)(TREE)
    assert list(J) == ["square", "two"]
    assert J["two"][1][1] is None
    assert_allclose(J["square"]["x"].data, np.diag(2 * X), rtol=1e-14)
    assert_array_equal(J["square"]["rest"][0].weight.data, np.zeros((3, 2)))
    assert_array_equal(J["square"]["rest"][1][0].data, np.zeros(3))
    assert_allclose(J["two"][0]["x"].data, np.eye(3) * Y.sum(), rtol=1e-14)
    assert_allclose(J["two"][0]["rest"][0].weight.data, np.tile(X[:, None], 2), rtol=1e-14)
    assert_array_equal(J["two"][1][0]["rest"][0].weight.data, np.eye(2))
    by_x, by_y = jacobian(lambda x, y: {"p": x[:, None] * y}, (0, 1))(X, Y)["p"]
    assert by_x.shape == (3, 2, 3)
    assert_array_equal(by_y.data, np.einsum("i,jk->ijk", X, np.eye(2)))


def test_vjp_and_jvp_of_functions_that_return_containers():
    value, pullback = vjp(outputs, TREE)
    assert_allclose(value["two"][0].data, Y.sum() * X, rtol=1e-14)
    (g,) = pullback({"two": (X, [Y, None]), "square": V})  # in any order
    assert_allclose(g["x"].data, 2 * X * V + Y.sum() * X, rtol=1e-14)
    assert_allclose(g["rest"][0].weight.data, (X * X).sum() + Y, rtol=1e-14)
    value, tangent = jvp(outputs, TREE, TANGENT)
    assert value["square"].node is tangent["square"].node is None
    assert_allclose(tangent["square"].data, 2 * X * V, rtol=1e-14)
    assert_allclose(tangent["two"][0].data, (Y + 1).sum() * X + Y.sum() * V, rtol=1e-14)
    assert_allclose(tangent["two"][1][0].data, Y + 1, rtol=1e-14)


def test_hessians_of_containers_are_nested_twice():
    H = hessian(energy)(TREE)
    assert_allclose(H["x"]["x"].data, np.diag(6 * X), rtol=1e-14)
    assert_array_equal(H["x"]["rest"][0].weight.data, np.zeros((3, 2)))
    assert_allclose(H["rest"][0].weight["rest"][1][0].data, 2 * Y, rtol=1e-14)
    assert_allclose(H["rest"][1][0]["rest"][0].weight.data, 2 * Y, rtol=1e-14)
    assert H["none"] is H["x"]["none"] is None
    of_both = hessian(lambda a, b: energy(b) * a, (0, 1))(np.float64(1.0), TREE)
    assert_allclose(of_both[0][1]["x"].data, 3 * X**2, rtol=1e-14)
    assert_allclose(of_both[1]["x"][0].data, 3 * X**2, rtol=1e-14)


def test_transforms_of_containers_nest():
    f = lambda tree: (tree["a"] ** 3 * tree["b"][0]).sum()
    tree = {"a": X, "b": [V]}
    penalty = lambda tree: (gradient(f)(tree)["a"] ** 2).sum()  # 9 a^4 b^2
    g = gradient(penalty)(tree)
    assert_allclose(g["a"].data, 36 * X**3 * V**2, rtol=1e-13)
    assert_allclose(g["b"][0].data, 18 * X**4 * V, rtol=1e-13)
    both = jacobian(value_and_grad(f))(tree)
    assert_allclose(both.value["a"].data, 3 * X**2 * V, rtol=1e-13)
    assert_allclose(both.gradient["b"][0]["a"].data, np.diag(3 * X**2), rtol=1e-13)
    assert_allclose(hvp(penalty, tree, {"a": V, "b": [0 * X]})["a"].data, 108 * X**2 * V**3)


def test_a_dataclass_that_is_frozen_comes_back_as_one():
    f = lambda p: ((p.weight * X).sum() + p.bias) * (2.0 if p.name == "double" else 1.0)
    g = gradient(f)(Affine(V, 1.0, "double"))
    assert type(g) is Affine
    assert g.name == "double"
    assert_allclose(g.weight.data, 2 * X, rtol=1e-14)
    assert_array_equal(g.bias.data, 2.0)


def test_the_same_tensor_in_two_places_has_two_derivatives():
    x = Tensor(X, requires_grad=True)
    g = gradient(lambda t: (t["a"] * t["b"] ** 2).sum())({"a": x, "b": x})
    assert_allclose(g["a"].data, X**2, rtol=1e-14)
    assert_allclose(g["b"].data, 2 * X**2, rtol=1e-14)
    (g["a"] + g["b"]).sum().backward()  # an outer derivative passes through both places
    assert_allclose(x.grad.data, 2 * X + 4 * X, rtol=1e-14)


def test_training_a_dict_of_weights():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (64, 2)).astype(np.float32)
    target = (x[:, :1] * x[:, 1:]).copy()
    weights = {
        "layers": [
            Pair(Tensor(rng.normal(0, 1, (a, b)).astype(np.float32)), minigrad.zeros(b))
            for a, b in [(2, 16), (16, 1)]
        ]
    }

    def loss(weights, x, target):
        (w1, b1), (w2, b2) = weights["layers"]
        return ((minigrad.tanh(x @ w1 + b1) @ w2 + b2 - target) ** 2).mean()

    step, losses = value_and_grad(loss), []
    for _ in range(300):
        value, g = step(weights, x, target)
        losses.append(value.item())
        weights["layers"] = [
            Pair(layer.weight - 0.2 * slope.weight, layer.bias - 0.2 * slope.bias)
            for layer, slope in zip(weights["layers"], g["layers"], strict=True)
        ]
    assert losses[-1] < 0.1 * losses[0]
    assert all(leaf.node is None for leaf in parts(weights)[0])


# ------------------------------------------------------------------------------------------------
# Modules
# ------------------------------------------------------------------------------------------------


def model_and_data():
    rng = np.random.default_rng(0)
    model = nn.MLP([3, 4, 1], activation=minigrad.tanh, dtype=np.float64)
    return model, rng.standard_normal((5, 3)), rng.standard_normal((5, 1))


def loss_of(model, x, y):
    return ((model(x) - y) ** 2).mean()


def test_a_module_is_differentiated_by_its_parameters():
    model, x, y = model_and_data()
    nodes = [p.node for p in model.parameters()]
    value, g = value_and_grad(loss_of)(model, x, y)
    assert all(p.node is node for p, node in zip(model.parameters(), nodes, strict=True))
    assert all(p.grad is None for p in model.parameters())
    loss = loss_of(model, x, y)
    loss.backward()
    assert_array_equal(value.data, loss.data)
    assert g.keys() == dict(model.named_parameters()).keys()
    for name, p in model.named_parameters():
        assert_allclose(g[name].data, p.grad.data, rtol=1e-12)
    with minigrad.no_grad():
        plain = gradient(loss_of)(model, x, y)
    for name, p in model.named_parameters():
        assert plain[name].node is None
        assert_array_equal(plain[name].data, p.grad.data)


def test_other_transforms_of_a_module():
    model, x, y = model_and_data()
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def of_weights(w):
        first, bias, second, last = w.values()
        hidden = minigrad.linear(Tensor(x), first, bias).tanh()
        return ((minigrad.linear(hidden, second, last) - y) ** 2).mean()

    f = lambda model: loss_of(model, x, y)
    rng = np.random.default_rng(1)
    v = {name: rng.standard_normal(p.shape) for name, p in weights.items()}
    assert_allclose(jvp(f, model, v)[1].data, jvp(of_weights, weights, v)[1].data, rtol=1e-12)
    products, right = hvp(f, model, v), hvp(of_weights, weights, v)
    H, of_dict = hessian(f)(model), hessian(of_weights)(weights)
    for a in weights:
        assert_allclose(products[a].data, right[a].data, rtol=1e-10, atol=1e-13)
        for b in weights:
            assert_allclose(H[a][b].data, of_dict[a][b].data, rtol=1e-10, atol=1e-13)


def test_a_module_that_two_threads_differentiate_by_at_once_is_refused():
    model, x, y = model_and_data()
    inside, finish = threading.Event(), threading.Event()

    def waiting(model, x, y):
        inside.set()
        finish.wait(10)
        return loss_of(model, x, y)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(gradient(waiting), model, x, y)
        inside.wait(10)
        try:
            with pytest.raises(RuntimeError, match="another thread"):
                gradient(loss_of)(model, x, y)
        finally:
            finish.set()
        found = other.result()
    assert all(p.is_leaf for p in model.parameters())
    for name, g in gradient(loss_of)(model, x, y).items():
        assert_array_equal(g.data, found[name].data)


def test_an_outer_derivative_passes_into_a_module():
    model, x, y = model_and_data()
    g = gradient(loss_of)(model, x, y)
    sum((t**2).sum() for t in g.values()).backward()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    v = {name: 2 * t.detach() for name, t in g.items()}
    right = hvp(lambda m: loss_of(m, x, y), model, v)
    for name, p in model.named_parameters():
        assert_allclose(p.grad.data, right[name].data, rtol=1e-10, atol=1e-14)
        assert weights[name].data is p.data


def test_modules_within_containers_and_an_error_in_f():
    model, x, y = model_and_data()
    g = gradient(lambda t: loss_of(t["model"], x * t["scale"], y))({"model": model, "scale": X})
    assert g["scale"].shape == (3,)
    assert g["model"].keys() == dict(model.named_parameters()).keys()
    nodes = [p.node for p in model.parameters()]

    def fail(model):
        assert all(p.node not in nodes for p in model.parameters())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        value_and_grad(fail)(model)
    assert [p.node for p in model.parameters()] == nodes


# ------------------------------------------------------------------------------------------------
# grad
# ------------------------------------------------------------------------------------------------


def test_grad_takes_and_returns_containers():
    w, b = Tensor(X, requires_grad=True), Tensor(V, requires_grad=True)
    loss = lambda: (w**2 * b).sum()
    g = grad(loss(), {"w": w, "rest": Pair(b, None)})
    assert_allclose(g["w"].data, 2 * X * V, rtol=1e-14)
    assert_allclose(g["rest"].weight.data, X**2, rtol=1e-14)
    assert g["rest"].bias is None
    by_list = grad(loss(), [{"w": w}, b])
    assert type(by_list) is tuple
    assert_allclose(by_list[0]["w"].data, 2 * X * V, rtol=1e-14)
    (alone,) = grad(loss(), (t for t in [w]))
    assert_allclose(alone.data, 2 * X * V, rtol=1e-14)
    results = {"square": w * w, "sums": [b.sum()]}
    g = grad(results, w, {"sums": [2.0], "square": V}, allow_unused=True)
    assert_allclose(g.data, 2 * X * V, rtol=1e-14)
    twice = grad(loss(), {"one": w, "two": [w]})
    assert_array_equal(twice["one"].data, twice["two"][0].data)
    assert not np.shares_memory(twice["one"].data, twice["two"][0].data)


def test_grad_by_a_module_is_a_dict_by_name():
    model, x, y = model_and_data()
    g = grad(loss_of(model, x, y), model)
    right = gradient(loss_of)(model, x, y)
    assert g.keys() == right.keys()
    for name in g:
        assert_allclose(g[name].data, right[name].data, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: grad(w.sum(), {"w": [w, 1.0]}), TypeError, r'grad: input 0\["w"\]\[1\] must be'),
        (lambda w: grad({"y": [3.0]}, w), TypeError, r'output 0\["y"\]\[0\] is a float, not a Ten'),
        (
            lambda w: grad({"y": w.sum()}, w, {"z": 1.0}),
            ValueError,
            r"the cotangent of output 0 must have \['y'\] inside",
        ),
        (
            lambda w: grad(w.sum(), {"w": w, "u": [Tensor(Y, requires_grad=True)]}),
            RuntimeError,
            r'do not depend on input 0\["u"\]\[0\], a Tensor of shape \(2,\)',
        ),
    ],
)
def test_grad_names_the_place_of_what_it_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(Tensor(X, requires_grad=True))


# ------------------------------------------------------------------------------------------------
# Bad input
# ------------------------------------------------------------------------------------------------


def never(*args):
    raise AssertionError("f was run")


TRANSFORMS = {
    "value_and_grad": lambda x: value_and_grad(never)(x),
    "gradient": lambda x: gradient(never)(x),
    "vjp": lambda x: vjp(never, x),
    "jvp": lambda x: jvp(never, x, x),
    "hvp": lambda x: hvp(never, x, x),
    "jacobian": lambda x: jacobian(never)(x),
    "hessian": lambda x: hessian(never)(x),
}
FROZEN = nn.Linear(2, 2).freeze()
TIED = nn.Linear(2, 2)


BAD = {
    "text": (
        {"layers": [X, "text"]},
        TypeError,
        r'0\["layers"\]\[1\] must be a Tensor, .* not a str',
    ),
    "int": ({"n": Pair(X, 3)}, TypeError, r'0\["n"\].bias has dtype int64, .* write 3.0'),
    "function": (
        {"a": Affine(X, lambda: 1)},
        TypeError,
        r'0\["a"\].bias must be .* not a function',
    ),
    "empty": ({}, TypeError, "0 must be a Tensor, .* not a dict without any"),
    "empty inside": ({"a": Pair(None, ())}, TypeError, "0 must be .* not a dict without any"),
    "frozen": (
        FROZEN,
        TypeError,
        "0 must be .* not a Linear without any; a Module's are its param",
    ),
    "tied": (
        {"a": TIED, "b": TIED},
        ValueError,
        r'0\["a"\].weight and argument 0\["b"\].weight are the same .* by one Module',
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_cannot_be_differentiated_by_is_named_before_f_runs(name):
    calls = (
        (kind, partial(TRANSFORMS[name], bad), error, f"{name}: argument {message}")
        for kind, (bad, error, message) in BAD.items()
    )
    assert not_refused(calls) == {}


def test_modules_that_share_a_parameter_as_two_arguments_are_refused():
    with pytest.raises(ValueError, match=r"argument 0.weight and argument 1.weight are the same"):
        value_and_grad(never, (0, 1))(TIED, TIED)
    gradient(lambda a, b: (a.weight * b.weight).sum())(TIED, TIED)  # by the first only


@pytest.mark.parametrize("transform", [jvp, hvp], ids=["jvp", "hvp"])
@pytest.mark.parametrize(
    ("tangent", "error", "message"),
    [
        ({"x": X}, ValueError, r"tangent 0 must have \['x', 'rest', 'none'\] inside, not \['x'\]"),
        (X, TypeError, "tangent 0 must be of type dict, not ndarray"),
        (TREE | {"x": Y}, ValueError, r'tangent 0\["x"\] must have shape \(3,\), not \(2,\)'),
        (TREE | {"x": {"w": X}}, TypeError, r'tangent 0\["x"\] must be .* not a dict'),
        (TREE | {"none": X}, TypeError, r'tangent 0\["none"\] must be of type NoneType'),
    ],
)
def test_tangents_of_another_structure_are_refused(transform, tangent, error, message):
    with pytest.raises(error, match=f"{transform.__name__}: {message}"):
        transform(never, TREE, tangent)


def test_cotangents_of_another_structure_are_refused():
    _, pullback = vjp(outputs, TREE)
    with pytest.raises(ValueError, match=r"the pullback's v must have \['square', 'two'\] inside"):
        pullback({"square": X})
    with pytest.raises(
        ValueError, match=r"the pullback's v\[\"two\"\]\[0\] must have shape \(3,\)"
    ):
        pullback({"square": X, "two": (Y, [Y, None])})


@pytest.mark.parametrize("name", ["vjp", "jvp", "jacobian"])
def test_results_that_have_no_derivative_are_named(name):
    f = lambda x: {"loss": x.sum(), "note": ["text"]}
    with pytest.raises(TypeError, match=rf'{name}: .* floats at \["note"\]\[0\], not a str'):
        {"vjp": lambda: vjp(f, X), "jvp": lambda: jvp(f, X, V), "jacobian": lambda: jacobian(f)(X)}[
            name
        ]()


def test_tensors_in_any_container_beside_the_value_are_detached():
    def f(x):
        return (x * x).sum(), (Pair(x * 2, {"n": 3}), Affine(x * 3, "text"))

    pair, affine = gradient(f, has_aux=True)(X)[1]
    assert (pair[0].node, pair[1], affine.bias) == (None, {"n": 3}, "text")
    assert affine.weight.node is None


@pytest.mark.parametrize("transform", [value_and_grad, gradient, hessian])
def test_a_scalar_function_that_returns_a_container_is_shown_the_way_out(transform):
    with pytest.raises(TypeError, match=r"not a dict; .* add several values up, or .* has_aux"):
        transform(lambda x: {"loss": x.sum()})(X)
