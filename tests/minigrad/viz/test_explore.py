"""The page that steps through a backward pass, as far as it can be tested without a browser."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import lora
import minigrad as mg
from minigrad.core.grad_mode import mode
from minigrad.viz import Tape, page
from minigrad.viz.graph_view import Names, in_words, view_graph
from minigrad.viz.passes import depth_first, right_order, second_pass, uncleared_pass
from minigrad.viz.previews import FEW, LETTERS, Previews, heat_map_of, range_of
from minigrad.viz.program_view import positions_of
from minigrad.viz.source import filled_in, source_of


def read(path):
    text = path.read_text("utf-8")
    (found,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    data = json.loads(found)
    data["pictures"] = [(*data["kinds"][kind][:2], *rest) for kind, *rest in data["pictures"]]
    for step in data["steps"]:
        step["sent"] = [
            dict(zip(SENT, sent[:4], strict=True)) | (sent[4] if len(sent) > 4 else {})
            for sent in step.get("sent", ())
        ]
    return data


SENT = ("link", "gradient", "after", "before")


def explored(tmp_path, loss, **options):
    """Return the data of the page; names are not looked for."""
    path = tmp_path / "page.html"
    mg.viz.explore(loss, path, **options)
    return read(path)


def pass_of(data, key):
    (found,) = [each for each in data["passes"] if each["key"] == key]
    return found


def ends_of(data, key):
    """What each leaf's `.grad` is at the end of a way, and should be."""
    return {
        data["nodes"][node]["name"]: tuple(numbers(data, i) for i in pictures)
        for node, *pictures in pass_of(data, key)["ends"]
    }


def numbers(data, index):
    shape, dtype, few, *_ = data["pictures"][index]
    return np.array(few, dtype).reshape(shape)


def frozen_of(data):
    return {frozen["name"]: frozen["why"] for frozen in data["frozen"]}


def diamond():
    x = mg.tensor(3.0, requires_grad=True)
    h = 2 * x
    return x, h, h + h


def many_numbers():
    """An expression of many numbers with reuse."""
    a = mg.tensor(-4.0, requires_grad=True, dtype=np.float64)
    b = mg.tensor(2.0, requires_grad=True, dtype=np.float64)
    c = a + b
    d = a * b + b**3
    c = c + c + 1
    c = c + 1 + c + (-a)
    d = d + d * 2 + mg.relu(b + a)
    d = d + 3 * d + mg.relu(b - a)
    e = c - d
    f = e**2
    return a, b, f / 2.0 + 10.0 / f


# --------------------------------------------------------------------------------------------------
# The right order
# --------------------------------------------------------------------------------------------------


def test_numbers_on_the_page_are_those_of_backward(tmp_path):
    a, b, loss = many_numbers()
    data = explored(tmp_path, loss)
    loss.backward()
    ends = ends_of(data, "backward")
    assert len(ends) == 2
    shown = sorted(float(got) for got, _ in ends.values())
    assert shown == sorted([a.grad.item(), b.grad.item()])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_of_small_arrays_are_exact(tmp_path, rng, dtype):
    x = mg.tensor(rng.standard_normal((2, 3)), requires_grad=True, dtype=dtype)
    w = mg.tensor(rng.standard_normal((3, 4)), requires_grad=True, dtype=dtype)
    loss = mg.tanh(x @ w).sum()
    mg.viz.explore(loss, tmp_path / "page.html")
    data = read(tmp_path / "page.html")
    loss.backward()
    for name, tensor in {"x": x, "w": w}.items():
        got, right = ends_of(data, "backward")[name]
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, tensor.grad.data)
        np.testing.assert_array_equal(right, tensor.grad.data)


def test_steps_of_the_diamond(tmp_path):
    x, h, y = diamond()
    mg.viz.explore(y, tmp_path / "page.html")
    data = read(tmp_path / "page.html")
    steps = [data["steps"][i] for i in pass_of(data, "backward")["steps"]]
    assert [step["kind"] for step in steps] == ["seed", "vjp", "vjp", "vjp", "leaf"]
    assert [data["nodes"][step["node"]]["name"] for step in steps] == ["y", "y", "y", "h", "x"]
    last = steps[3]["sent"][0]
    assert last["filled"] == "2 * 2 = 4"
    vjp = data["vjps"][data["links"][last["link"]]["vjp"]]
    assert (vjp["title"], vjp["text"]) == ('multiply.vjp("b")', "g * a")
    first, second = (step["sent"][0] for step in steps[1:3])
    assert first["before"] == -1
    assert numbers(data, second["before"]) == 1
    assert numbers(data, second["after"]) == 2
    assert (x, h) != (None, None)  # held until here, for their names


def test_formula_with_numbers_for_names():
    given = {"g": np.float32(1), "out": np.array(-0.76)}
    assert filled_in("g * (1 - out * out)", given) == "1 * (1 - (-0.76) * (-0.76))"
    assert (
        filled_in("where(x > y, g, 0.0)", {"g": 2.0, "x": 1, "y": 0.5}) == "where(1 > 0.5, 2, 0.0)"
    )
    assert filled_in("g * x", {"g": np.ones(2), "x": 1.0}) is None
    assert filled_in("reshape(g, x_shape)", {"g": 1.0, "x_shape": (1,)}) is None


def test_gradient_of_a_fused_op_of_several_inputs_is_one_step(tmp_path):
    layer = lora.LoRALayer(mg.randn(3, 4), 3, 4, rank=2, alpha=4, bias=mg.randn(3))
    layer.lora_b = mg.randn(3, 2).data
    loss = layer(mg.randn(2, 4)).sum()
    data = explored(tmp_path, loss, model=layer)
    steps = [data["steps"][i] for i in pass_of(data, "backward")["steps"]]
    (joint,) = [step for step in steps if len(step["sent"]) > 1]
    links = [data["links"][sent["link"]] for sent in joint["sent"]]
    assert [data["nodes"][link["source"]]["name"] for link in links] == ["lora_a", "lora_b"]
    assert data["vjps"][links[0]["vjp"]]["title"].startswith("lora_linear.joint_vjp(")
    words = {name: text for name, _, *rest in links[0]["given"] for text in rest}
    assert words["needs_input_grad"] == "x no, weight no, lora_a yes, lora_b yes, bias no"
    loss.backward()
    np.testing.assert_array_equal(ends_of(data, "backward")["lora_a"][0], layer.lora_a.grad.data)


def test_sum_over_what_was_broadcast_is_shown(tmp_path):
    b = mg.tensor([1.0, 2.0], requires_grad=True)
    data = explored(tmp_path, (mg.ones(3, 2) * b).sum())
    sent = [sent for step in data["steps"] for sent in step["sent"] if "result" in sent]
    assert sent
    assert numbers(data, sent[0]["result"]).shape == (3, 2)
    assert numbers(data, sent[0]["gradient"]).shape == (2,)


def test_a_graph_of_second_order_is_a_graph_like_others(tmp_path):
    x = mg.tensor([0.5, -1.0], requires_grad=True)
    slope = mg.grad(mg.softmax(mg.gelu(x * 2))[0], x, create_graph=True)
    loss = (slope * slope).sum()
    data = explored(tmp_path, loss)
    (got, _) = next(iter(ends_of(data, "backward").values()))
    loss.backward()
    np.testing.assert_array_equal(got, x.grad.data)


def test_it_makes_no_difference_where_it_is_called(tmp_path):
    x, _, y = diamond()
    with mg.no_grad(), mg.detect_anomaly(), mg.viz.record():
        data = explored(tmp_path, y)
    assert [got for got, _ in ends_of(data, "backward").values()] == [4]
    assert x.grad is None


def test_a_checkpoint_is_one_node_without_a_vjp(tmp_path):
    x = mg.tensor([0.5, -1.0], requires_grad=True)
    loss = mg.checkpoint(lambda v: mg.tanh(mg.tanh(v)), x).sum()
    data = explored(tmp_path, loss)
    assert any(vjp["title"] == "checkpoint has no VJP" for vjp in data["vjps"])
    (got, _) = next(iter(ends_of(data, "backward").values()))
    loss.backward()
    np.testing.assert_array_equal(got, x.grad.data)


# --------------------------------------------------------------------------------------------------
# Everything stays as it is
# --------------------------------------------------------------------------------------------------


def test_graph_and_gradients_are_left_alone(tmp_path):
    x, h, y = diamond()
    calls = []
    h.register_hook(calls.append)
    h.retain_grad()
    explored(tmp_path, y)
    assert x.grad is None
    assert h.grad is None
    assert calls == []
    assert mode.observers == ()
    y.backward()
    assert (x.grad.item(), h.grad.item(), len(calls)) == (4.0, 2.0, 1)


def test_a_hook_is_mentioned(tmp_path):
    _, h, y = diamond()
    h.register_hook(lambda g: g * 2)
    data = explored(tmp_path, y)
    assert [node.get("hooks") for node in data["nodes"]] == [None, 1, None]
    assert "No hook is called" in data["passes"][0]["about"]


def test_grad_that_is_there_already_is_added_to(tmp_path):
    x, _, y = diamond()
    x.grad = mg.tensor(0.5)
    data = explored(tmp_path, y)
    step = data["steps"][pass_of(data, "backward")["steps"][-1]]
    assert (numbers(data, step["before"]), numbers(data, step["after"])) == (0.5, 4.5)
    assert x.grad.item() == 0.5


# --------------------------------------------------------------------------------------------------
# The wrong orders
# --------------------------------------------------------------------------------------------------


def test_depth_first_says_6_for_4(tmp_path):
    x, h, y = diamond()
    mg.viz.explore(y, tmp_path / "page.html")
    data = read(tmp_path / "page.html")
    assert ends_of(data, "depth") == {"x": (6, 4)}
    shown = pass_of(data, "depth")
    step = data["steps"][shown["steps"][shown["fault"]]]
    (sent,) = step["sent"]
    assert data["nodes"][step["node"]]["name"] == "h"
    assert [numbers(data, sent[key]) for key in ("before", "gradient", "after", "due")] == [
        2,
        4,
        6,
        2,
    ]
    assert "4 VJPs; 3 are enough" in shown["about"]
    assert (x, h) != (None, None)


def test_leaves_that_are_used_twice_do_not_make_depth_first_wrong(tmp_path):
    x = mg.tensor(3.0, requires_grad=True)
    data = explored(tmp_path, x * x + x)
    shown = pass_of(data, "depth")
    assert shown["fault"] == -1
    assert "only one gradient arrives at each inner node" in shown["about"]


def test_second_pass_adds_up_and_one_that_is_not_cleared_is_wrong(tmp_path):
    x, h, y = diamond()
    mg.viz.explore(y, tmp_path / "page.html")
    data = read(tmp_path / "page.html")
    assert ends_of(data, "again") == {"x": (8, 8)}
    assert ends_of(data, "uncleared") == {"x": (12, 8)}
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 8
    shown = pass_of(data, "uncleared")
    step = data["steps"][shown["steps"][shown["fault"]]]
    assert (data["nodes"][step["node"]]["name"], numbers(data, step["g"])) == ("h", 4)
    assert h is not None


class Naive:
    """Scalars in the classic wrong engines, for comparison: gradients are kept at every node."""

    def __init__(self, inputs=(), slopes=()):
        self.inputs, self.slopes, self.grad = inputs, slopes, 0.0

    def __add__(self, other):
        return Naive((self, other), (1.0, 1.0))

    def scaled(self, by):
        return Naive((self,), (by,))

    def depth_first(self):
        for node, slope in zip(self.inputs, self.slopes, strict=True):
            node.grad += self.grad * slope
            node.depth_first()

    def pass_not_cleared(self, order):
        order[0].grad = 1.0
        for node in order:
            for source, slope in zip(node.inputs, node.slopes, strict=True):
                source.grad += node.grad * slope


def test_wrong_orders_are_those_of_the_classic_engines():
    x = mg.tensor(1.0, requires_grad=True)
    a = x * 3
    b = a + x
    c = b + a
    graph = view_graph("test", c, None, None, {})
    first = right_order(graph)

    def naive():
        nx = Naive()
        na = nx.scaled(3.0)
        nb = na + nx
        return nx, na, nb, nb + na

    nx, *_, nc = naive()
    nc.grad = 1.0
    nc.depth_first()
    assert depth_first(graph, first).arrived[x.node] == nx.grad
    nx, na, nb, nc = naive()
    for _ in range(2):
        nx.pass_not_cleared([nc, nb, na, nx])
    second = second_pass(graph, first)
    assert uncleared_pass(graph, first, second).steps[-1].after == nx.grad
    assert second.steps[-1].after == 2 * first.arrived[x.node]


def test_where_each_gradient_takes_one_way_nothing_goes_wrong(tmp_path):
    x = mg.tensor(0.5, requires_grad=True)
    data = explored(tmp_path, mg.tanh(mg.sin(x)))
    assert pass_of(data, "depth")["fault"] == -1
    assert pass_of(data, "uncleared")["fault"] > 0  # tanh's input keeps its gradient
    data = explored(tmp_path, mg.sin(x))
    assert pass_of(data, "uncleared")["fault"] == -1


def test_a_walk_of_exponentially_many_steps_is_cut_short(tmp_path):
    x = mg.tensor(1.0, requires_grad=True)
    y = x
    for _ in range(60):
        y = y + y
    data = explored(tmp_path, y)
    shown = pass_of(data, "depth")
    assert f"{2**61 - 2:,} VJPs; 120 are enough" in shown["about"]
    assert "too many to run to the end" in shown["about"]
    assert shown["ends"] == []
    assert shown["fault"] > 0
    assert len(shown["steps"]) < 1000


def test_of_a_long_walk_the_beginning_and_the_end_are_shown(tmp_path):
    x = mg.tensor(1.0, requires_grad=True)
    y = x
    for _ in range(10):
        y = y + y
    data = explored(tmp_path, y)
    shown = pass_of(data, "depth")
    assert (
        f"{2**11 - 2:,} VJPs; 20 are enough. The first 400 are shown, and the end."
        in shown["about"]
    )
    ((got, right),) = ends_of(data, "depth").values()
    assert right == 2**10
    assert got > right
    assert data["steps"][shown["steps"][-1]]["kind"] == "leaf"


def test_what_is_sent_twice_but_zero_does_no_harm(tmp_path):
    x = mg.tensor(0.0, requires_grad=True)
    h = x * 1.0
    data = explored(tmp_path, (h + h) * 0.0)
    assert "What is sent on again is 0 here" in pass_of(data, "depth")["about"]
    assert pass_of(data, "depth")["fault"] == -1


def test_a_fault_far_down_is_shown_too(tmp_path):
    x = mg.tensor(0.5, requires_grad=True)
    h = 2 * x
    y = h + h
    for _ in range(600):
        y = y * 1.0
    mg.viz.explore(y, tmp_path / "page.html")
    data = read(tmp_path / "page.html")
    shown = pass_of(data, "depth")
    step = data["steps"][shown["steps"][shown["fault"]]]
    assert (data["nodes"][step["node"]]["name"], step["fault"]) == ("h", 1)
    assert ends_of(data, "depth") == {"x": (6, 4)}


# --------------------------------------------------------------------------------------------------
# What no gradient goes to
# --------------------------------------------------------------------------------------------------


class Half(mg.nn.Module):
    def __init__(self):
        self.scale = mg.nn.Parameter([2.0, 3.0])
        self.shift = mg.nn.Parameter([1.0, 1.0], requires_grad=False)

    def forward(self, x):
        return x * self.scale + self.shift


def test_a_tape_tells_why_no_gradient_goes_to_an_input(tmp_path):
    model = Half()
    x = mg.tensor([1.0, 2.0])
    with mg.viz.record() as tape:
        y = model(x)
        with mg.no_grad():
            ahead = y * 3
        loss = (y * y.detach() + ahead + np.array([5.0, 6.0], np.float32) + mg.exp(x)).sum() * 0.5
    mg.viz.explore(loss, tmp_path / "page.html", tape=tape)
    data = read(tmp_path / "page.html")
    why = frozen_of(data)
    assert why["shift"] == "A frozen parameter: requires_grad=False."
    assert why["x"] == "A tensor that needs no gradient: requires_grad=False."
    assert why["ahead"] == "`multiply` made it under no_grad(): nothing was recorded."
    assert why["0.5"] == "A number: there is nothing to differentiate by."
    reasons = [frozen["why"] for frozen in data["frozen"]]
    assert "The value of y as detach() gives it: no gradient follows." in reasons
    assert "A plain array: it has no node in a graph." in reasons
    assert "`exp` made it of inputs of which none needs a gradient." in reasons


def test_without_a_tape_only_what_was_saved_is_known(tmp_path):
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    data = explored(tmp_path, (x * mg.tensor([3.0, 4.0]) + mg.tensor([5.0, 6.0])).sum())
    saved, lost = data["frozen"]
    assert (saved["name"], lost["name"]) == ("input b", "input b")
    np.testing.assert_array_equal(numbers(data, saved["value"]), [3, 4])
    assert "value" not in lost
    assert all("record()" in frozen["why"] for frozen in (saved, lost))


def test_an_array_without_a_name_is_not_called_like_another(tmp_path):
    x = mg.tensor(1.5, requires_grad=True)
    slope = mg.grad(mg.tanh(x), x, create_graph=True)  # 1 - out * out: of subtract, the 1 is x
    names = [frozen["name"] for frozen in explored(tmp_path, slope * slope)["frozen"]]
    assert "x" not in names
    x, w = mg.tensor([1.0, 2.0]), mg.tensor([3.0, 4.0], requires_grad=True)
    with mg.viz.record() as tape:
        loss = (mg.exp(x) * w).sum()
    (frozen,) = explored(tmp_path, loss, tape=tape)["frozen"]
    assert frozen["name"] == "exp"


def test_values_that_nobody_keeps_are_said_to_be_gone(tmp_path):
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    loss = (x + 1).sum()
    data = explored(tmp_path, loss)
    nodes = {node["name"]: node for node in data["nodes"]}
    assert "value" not in nodes["add"]
    assert "value" in nodes["leaf"]
    assert "value" in nodes["loss"]  # its Tensor is alive
    with mg.viz.record() as tape:
        loss = (x + 1).sum()
    data = explored(tmp_path, loss, tape=tape)
    assert all("value" in node for node in data["nodes"])


def test_the_frozen_base_of_lora_is_named(tmp_path):
    model = mg.nn.MLP([4, 5, 3])
    lora.attach(model, lora.LoRAConfig(rank=2, alpha=4, targets=["layers.0"]))
    loss = model(mg.randn(2, 4)).sum()
    mg.viz.explore(loss, tmp_path / "page.html")
    why = frozen_of(read(tmp_path / "page.html"))
    assert why["model.layers.0.base_weight"] == "A frozen parameter: requires_grad=False."
    why = frozen_of(explored(tmp_path, loss, model=model))
    assert "layers.0.base_weight" in why


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    ("format", "bits"), [("nf4", "four bits a number (NF4)"), ("bfloat16", "bfloat16")]
)
def test_a_base_in_few_bits_is_drawn_as_one_that_no_gradient_reaches(
    tmp_path, format, bits, recorded
):
    model = mg.nn.MLP([4, 8, 8, 2])
    lora.quantize(model, ["layers.1"], format=format)
    lora.attach(model, lora.LoRAConfig(rank=1, targets=["layers.0", "layers.1"]))
    base = model.layers[1].base_weight
    with mg.viz.record() as tape:
        loss = model(mg.randn(3, 4)).sum()
    data = explored(tmp_path, loss, tape=tape if recorded else None)
    (frozen,) = [f for f in data["frozen"] if "frozen matrix" in f["why"]]
    assert frozen["name"] == "input weight"
    assert frozen["why"] == f"A frozen matrix in {bits}: `{format}_linear` has no VJP for it."
    shape, _, *_ = data["pictures"][frozen["value"]]
    assert tuple(shape) == base.shape
    assert "input weight\\n8 x 8" in mg.viz.draw(loss, tape=tape).dot


def test_a_list_of_numbers_on_a_tape_is_shown(tmp_path):
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    with mg.viz.record() as tape:
        loss = mg.add(x, [3, 4]).sum()
    data = explored(tmp_path, loss, tape=tape)
    (frozen,) = data["frozen"]
    assert (frozen["name"], frozen["why"]) == (
        "input b",
        "A list of numbers: there is nothing to differentiate by.",
    )
    assert data["pictures"][frozen["value"]][2] == [3, 4]
    assert "input b\\n2" in mg.viz.draw(loss, tape=tape).dot


@pytest.mark.parametrize(
    "value",
    [["a", "b"], [1, [2, 3]], [np.ones(2), np.ones(3)], [{"a": 1}], np.array(["a"]), "text"],
    ids=repr,
)
def test_what_is_not_made_of_numbers_is_an_option(tmp_path, value):
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    with mg.viz.record() as tape:
        loss = mg.checkpoint(lambda x, _: x * 2, x, value).sum()
    data = explored(tmp_path, loss, tape=tape)
    assert data["frozen"] == []
    assert any(
        in_words(value) == text for node in data["nodes"] for _, text in node.get("options", ())
    )
    assert mg.viz.draw(loss, tape=tape).dot


def test_the_same_frozen_array_is_drawn_once(tmp_path):
    x = mg.tensor([1.0, 2.0])
    w = mg.tensor([3.0, 4.0], requires_grad=True)
    with mg.viz.record() as tape:
        loss = (w * x + mg.exp(w) * x).sum()
    data = explored(tmp_path, loss, tape=tape)
    assert len(data["frozen"]) == 1


# --------------------------------------------------------------------------------------------------
# The tape
# --------------------------------------------------------------------------------------------------


def test_modules_are_groups_with_their_names(tmp_path):
    model = mg.nn.Sequential(mg.nn.Linear(3, 4), mg.nn.MLP([4, 5, 2]))
    with mg.viz.record() as tape:
        loss = model(mg.randn(2, 3)).sum()
    mg.viz.explore(loss, tmp_path / "page.html", tape=tape)
    data = read(tmp_path / "page.html")
    groups = [(group["name"], group["type"], group["parent"]) for group in data["groups"]]
    assert groups[:3] == [("model", "Sequential", -1), ("0", "Linear", 0), ("1", "MLP", 0)]
    assert ("layers.0", "Linear", 2) in groups
    inside = {node["name"]: node["group"] for node in data["nodes"]}
    assert inside["0.weight"] == 1
    assert inside["loss"] == -1
    assert Path(__file__).name in data["nodes"][-1]["line"]


def test_models_without_names_are_numbered():
    layers = [mg.nn.Linear(2, 2), mg.nn.Linear(2, 2, bias=False)]
    named = mg.nn.Linear(2, 2)
    with mg.viz.record() as tape:
        loss = mg.nn.MLP([2, 1])(named(layers[1](layers[0](mg.randn(3, 2))))).sum()
    data = mg.viz.explore(loss, tape=tape).data
    leaves = {node["name"] for node in data["nodes"] if "op" not in node}
    first, second = {"Linear #1.weight", "Linear #1.bias"}, {"Linear #2.weight"}
    others = {"named.weight", "named.bias", "MLP.layers.0.weight", "MLP.layers.0.bias"}
    assert leaves == first | second | others
    groups = [group["name"] for group in data["groups"] if group["parent"] == -1]
    assert groups == ["Linear #1", "Linear #2", "named", "MLP"]
    drawing = mg.viz.draw(loss, tape=tape).dot
    assert all(f"{name}.weight" in drawing for name in groups[:3])
    assert 'label="MLP"' in drawing
    names = Names({"model": mg.nn.Sequential(*layers)}, None, tape.roots)
    assert names.of_node[layers[1].weight.node] == "model.1.weight"


class Broken(mg.nn.Module):
    def forward(self, x):
        raise KeyError("no")


def test_a_module_that_fails_has_ended_too():
    with mg.viz.record() as tape:
        with pytest.raises(KeyError):
            Broken()(1)
        x = mg.tensor(1.0, requires_grad=True) * 2
    assert tape.calls[x.node].module is None


def test_a_backward_pass_leaves_nothing_on_the_tape_unless_it_is_recorded(monkeypatch):
    kept = []
    monkeypatch.setattr(Tape, "keep", lambda tape, name, *values: kept.append(name))
    w = mg.tensor([[1.0, 2.0]], requires_grad=True)
    with mg.viz.record():
        y = mg.linear(mg.ones(1, 2), w).sum()
        y.backward(retain_graph=True)
        assert kept == ["linear", "sum"]
        mg.grad(mg.tanh(w).sum(), w, create_graph=True)
    assert len(kept) > len(["linear", "sum", "tanh", "sum"])


def test_values_in_a_graph_of_second_order_are_on_the_tape(tmp_path):
    x = mg.tensor([0.5, -1.0], requires_grad=True)
    with mg.viz.record() as tape:
        loss = mg.grad(mg.tanh(x).sum(), x, create_graph=True).sum()
    data = explored(tmp_path, loss, tape=tape)
    assert all("value" in node for node in data["nodes"])


def test_variables_that_begin_with_an_underscore_give_no_names():
    _hidden = mg.tensor(1.0, requires_grad=True)
    assert Names({"_hidden": _hidden}, None).of_node == {}
    assert Names({"shown": _hidden}, None).of_node == {_hidden.node: "shown"}


def test_a_tape_costs_nothing_when_it_is_over():
    with mg.viz.record():
        pass
    assert mode.observers == ()


# --------------------------------------------------------------------------------------------------
# Source
# --------------------------------------------------------------------------------------------------


def test_every_vjp_of_the_library_has_its_source():
    for op in mg.OPS.values():
        assert source_of(op.forward) is not None, op.name
        for _, vjp in op.vjps:
            assert source_of(vjp.derivative) is not None, op.name


def test_formula_that_is_written_in_several_lines():
    source = source_of(
        lambda g, x: (
            g  # what arrives
            * x
        )
    )
    assert source.formula == "g * x"
    assert source.text.startswith("g  # what arrives\n")
    assert "3 * 2" in filled_in("y := g * 2", {"g": 3.0})


def test_formula_of_a_vjp_with_a_kernel():
    (_, vjp), *_ = mg.tanh.vjps
    source = source_of(vjp.derivative)
    assert source.formula == "g * (1 - out * out)"
    assert source.kernel
    assert "isinstance(g, Tensor)" in source.text


def test_of_two_lambdas_on_a_line_the_right_one_is_found():
    two = (lambda g, x: g * x, lambda g, x: g + x)
    assert [source_of(f).text for f in two] == ["g * x", "g + x"]


def test_a_function_without_source_has_none():
    made = eval("lambda g: g")
    assert source_of(made) is None
    assert source_of(np.negative) is None


@mg.op
def doubled(x):
    """2 x."""
    return 2 * x


doubled.vjp("x", eval("lambda g: 2 * g"))


def test_a_vjp_whose_source_is_not_there_says_so(tmp_path):
    x = mg.tensor(1.0, requires_grad=True)
    data = explored(tmp_path, doubled(x))
    (vjp,) = data["vjps"]
    assert vjp["note"] == "The source of this VJP cannot be found."
    assert data["ops"][0]["forward"] == "return 2 * x"


# --------------------------------------------------------------------------------------------------
# Pictures of arrays
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_few_numbers_are_kept_to_the_last_bit(rng, dtype):
    x = (rng.standard_normal((4, 4)) * 10.0 ** rng.integers(-4, 4, (4, 4))).astype(dtype)
    previews = Previews()
    previews.add(x)
    ((_, few, _),) = json.loads(json.dumps(previews.pictures))
    np.testing.assert_array_equal(np.array(few, dtype).reshape(x.shape), x)
    assert previews.kinds == [[[4, 4], np.dtype(dtype).name, 4, 4]]


def test_what_is_no_number_is_written_out():
    previews = Previews()
    previews.add(np.array([np.nan, np.inf, -np.inf, 1.0]))
    previews.add(np.array([True, False]))
    assert previews.pictures == [
        [0, ["nan", "inf", "-inf", 1.0], "!!!+"],
        [1, [True, False], "+f"],
    ]


def test_a_heat_map_has_a_letter_for_each_cell(rng):
    x = rng.standard_normal((3, 50, 7))
    shape, cells = heat_map_of(x, 24)
    assert shape == (24, 7)
    assert len(cells) == 24 * 7
    assert set(cells) <= set(LETTERS)
    low, high, rms, broken = range_of(x)
    assert (low, high, broken) == (x.min(), x.max(), 0)
    assert rms == pytest.approx(np.sqrt(np.mean(x**2)), rel=1e-12)


def test_letters_go_from_the_most_negative_to_the_most_positive():
    _, cells = heat_map_of(np.linspace(-2, 2, FEW + 1, dtype=np.float32))
    assert cells[0] == LETTERS[0]
    assert cells[-1] == LETTERS[-1]
    assert cells[FEW // 2] == LETTERS[len(LETTERS) // 2]
    assert heat_map_of(np.zeros(20)) == ((1, 20), LETTERS[len(LETTERS) // 2] * 20)


def test_cells_are_means_of_blocks():
    x = np.zeros((8, 8))
    x[:4, :4] = 2
    x[4:, 4:] = -1
    middle = len(LETTERS) // 2
    half = LETTERS[middle - round(middle / 2)]
    assert heat_map_of(x, 2)[1] == LETTERS[-1] + 2 * LETTERS[middle] + half


@pytest.mark.parametrize("largest", [1.5e308, np.finfo(np.float64).max, 5e-324])
def test_numbers_at_the_ends_of_float64_have_a_heat_map(largest):
    assert heat_map_of(np.full(100, largest)) == ((1, 48), 48 * LETTERS[-1])
    _, cells = heat_map_of(np.array([[-largest, largest]] * 50))
    assert cells == 24 * (LETTERS[0] + LETTERS[-1])
    x = mg.tensor(np.full(30, largest), requires_grad=True)
    previews = mg.viz.explore((x * 1e-200).sum()).data["pictures"]
    assert not any("inf" in map(str, preview) for preview in previews)


def test_numbers_of_a_second_pass_may_overflow_without_a_warning(tmp_path):
    x = mg.tensor(np.float64(1.0), requires_grad=True)
    data = explored(tmp_path, x * 1e308)
    (_, after, _) = pass_of(data, "again")["ends"][0]
    assert data["pictures"][after] == ([], "float64", ["inf"])


def test_cells_with_what_is_not_finite_are_marked():
    x = np.ones((6, 6), np.float32)
    x[0, 0] = np.nan
    x[5, 5] = np.inf
    _, cells = heat_map_of(x)
    assert range_of(x) == (1.0, 1.0, 1.0, 2)
    assert (cells[0], cells[-1], cells[1]) == ("!", "!", LETTERS[-1])
    nothing = Previews()
    nothing.add(np.full(20, np.nan))
    assert nothing.pictures == [[0, 20 * "!", "nan", "nan", "nan", 20]]


def test_the_page_reads_the_letters_that_are_written():
    script = (page.TEMPLATE / "heatmap.js").read_text("utf-8")
    assert f'const LETTERS = "{LETTERS}";' in script


def test_each_array_is_previewed_once(rng):
    previews = Previews()
    x = rng.standard_normal(5)
    assert [previews.add(x), previews.add(x.copy()), previews.add(1.0), previews.add(x)] == [
        0,
        0,
        1,
        0,
    ]


# --------------------------------------------------------------------------------------------------
# The program of a captured step
# --------------------------------------------------------------------------------------------------


def mlp():
    return mg.nn.MLP([4, 5, 3], activation=mg.tanh), ((6, 4), (6, 3))


def mlp_with_an_adapter():
    model, shapes = mlp()
    lora.attach(model, lora.LoRAConfig(rank=1, alpha=2, targets=["layers.0"]))
    return model, shapes


def transformer():
    return mg.nn.TransformerBlock(8, 2), ((2, 5, 8), (2, 5, 8))


def captured_step(model, shapes, parameters=None):
    """A captured step of a model, which has a program, and a loss with a graph."""
    optimizer = mg.optim.Adam(parameters or model.trainable_parameters(), lr=0.01)
    data = [mg.randn(*shape) for shape in shapes]

    @mg.capture
    def step(x, y):
        model.zero_grad()
        loss = mg.square(model(x) - y).mean()
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(2):
        step(*data)
    return step, mg.square(model(data[0]) - data[1]).mean()


def test_a_step_that_is_being_captured_can_be_explored():
    x = mg.tensor(2.0, requires_grad=True)
    pages = []

    @mg.capture
    def step(factor):
        loss = x * x * factor
        pages.append(mg.viz.explore(loss))
        (gradient,) = mg.grad(loss, [x])
        return gradient

    assert [step(mg.tensor(3.0)).item() for _ in range(3)] == [12.0] * 3
    assert all(page.data["nudges"]["elements"] for page in pages)


def test_a_page_has_no_program_unless_one_is_given(tmp_path):
    assert explored(tmp_path, diamond()[-1])["program"] is None


def test_the_program_is_shown_in_its_sections(tmp_path):
    step, loss = captured_step(*mlp())
    shown = explored(tmp_path, loss, program=step)["program"]
    assert [text for _, text, _ in shown["lines"]] == step.source.splitlines()
    sections = [section for section, *_ in shown["lines"]]
    assert list(dict.fromkeys(sections)) == ["", "forward", "backward", "update"]
    assert sections[0] == sections[-1] == ""
    for section, text, _ in shown["lines"]:
        if "_vjp" in text:
            assert section == "backward"
        if "step_group" in text:
            assert section == "update"
    assert {"model_layers_0_weight", "model_layers_1_bias"} <= set(shown["arrays"])


def test_gradients_of_parameters_are_named(tmp_path):
    step, loss = captured_step(*mlp_with_an_adapter())
    shown = explored(tmp_path, loss, program=step)["program"]
    named = [(text.split(" = ")[1], remark) for _, text, remark in shown["lines"] if remark]
    ((text, remark),) = named
    assert text.startswith("lora_linear_vjp(")
    assert remark == "gradient of model_layers_0_lora_a, model_layers_0_lora_b"
    step, loss = captured_step(*mlp())
    remarks = [remark for *_, remark in explored(tmp_path, loss, program=step)["program"]["lines"]]
    parameters = ["layers_0_weight", "layers_0_bias", "layers_1_weight", "layers_1_bias"]
    assert sorted(filter(None, remarks)) == sorted(f"gradient of model_{p}" for p in parameters)


@pytest.mark.parametrize("make", [mlp, mlp_with_an_adapter, transformer])
def test_the_line_of_a_vjp_calls_it(tmp_path, make):
    step, loss = captured_step(*make())
    data = explored(tmp_path, loss, program=step)
    shown = data["program"]
    marked = [(link, line) for link, line in enumerate(shown["lineOf"]) if line >= 0]
    for link, line in marked:
        op = data["ops"][data["nodes"][data["links"][link]["target"]]["op"]]["name"]
        assert f" = {op}_vjp" in shown["lines"][line][1]
    calls = {i for i, (_, text, _) in enumerate(shown["lines"]) if "_vjp" in text}
    assert {line for _, line in marked} == calls
    order = [
        shown["lineOf"][data["steps"][i]["sent"][0]["link"]]
        for i in pass_of(data, "backward")["steps"]
        if data["steps"][i]["sent"]
    ]
    lines = [line for line in order if line >= 0]
    assert lines == sorted(set(lines))


def test_no_line_is_marked_if_it_may_be_another(tmp_path):
    model = mg.nn.MLP([4, 4, 4, 4], activation=mg.tanh)
    (*_, last) = model.layers
    step, loss = captured_step(model, ((6, 4), (6, 4)), [last.weight])
    assert step.source.count("linear_vjp") == 1
    shown = explored(tmp_path, loss, program=step)["program"]
    assert set(shown["lineOf"]) == {-1}


def test_positions_in_order():
    assert positions_of("ac", "abcac") == [0, 2]
    assert positions_of("", "abc") == []
    assert positions_of("ca", "abc") is None


# --------------------------------------------------------------------------------------------------
# The file
# --------------------------------------------------------------------------------------------------


def test_the_page_is_self_contained(tmp_path):
    _, _, y = diamond()
    path = tmp_path / "page.html"
    mg.viz.explore(y, path)
    text = path.read_text("utf-8")
    addresses = set(re.findall(r"https?://[^\s\"']+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, which nobody fetches
    assert "default-src 'none'" in text
    assert not re.search(r"\son[a-z]+=", text)
    assert "{{" not in text.replace("`${", "")


@pytest.mark.parametrize("title", ["</script><script>alert(1)</script>", "a & b < c", "{{data}}"])
def test_names_cannot_break_out_of_the_page(tmp_path, title):
    x = mg.tensor(1.0, requires_grad=True)
    path = tmp_path / "page.html"
    mg.viz.explore(x * 2, path, title=title)
    text = path.read_text("utf-8")
    assert text.count("<script") == 2
    assert "alert(1)</script>" not in text
    assert read(path)["title"] == title


@pytest.mark.full
def test_a_page_of_500_nodes_is_under_a_megabyte(tmp_path, rng):
    x = mg.tensor(rng.standard_normal((16, 16)), requires_grad=True, dtype=np.float32)
    y = x
    for _ in range(125):
        y = mg.tanh(y @ x) * x + y
    path = tmp_path / "page.html"
    mg.viz.explore(y.sum(), path)
    assert len(read(path)["nodes"]) > 500
    assert path.stat().st_size < 1_000_000


@pytest.mark.full
def test_a_large_graph_has_heat_maps_of_few_numbers_too(tmp_path):
    x = mg.tensor(np.linspace(0.1, 2.7, FEW), requires_grad=True, dtype=np.float64)
    y = x
    for _ in range(500):
        y = mg.sin(y * 1.25)
    path = tmp_path / "page.html"
    mg.viz.explore(y.sum(), path)
    data = read(path)
    assert path.stat().st_size < 1_000_000
    assert all(isinstance(content, str) for shape, _, content, *_ in data["pictures"] if shape)


def test_a_graph_that_is_too_large_is_refused(tmp_path, monkeypatch):
    _, _, y = diamond()
    monkeypatch.setattr(page, "LIMIT", 1000)
    with pytest.raises(
        ValueError, match="a graph of 3 nodes is too large for a page of 1,000 bytes"
    ):
        mg.viz.explore(y, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_a_graph_that_can_never_fit_is_refused_before_it_is_walked(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "passes_through", None)
    y = mg.tensor(1.0, requires_grad=True)
    for _ in range(5000):
        y = y * 1.0
    with pytest.raises(ValueError, match="5,001 nodes is too large"):
        mg.viz.explore(y, tmp_path / "page.html")


def test_a_page_that_cannot_be_saved_is_refused_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "_page", None)
    y = mg.tensor(2.0, requires_grad=True) * 3
    for name, error, message in (
        ("page.png", ValueError, r"explore: a page is saved as \.html, not as '.*page\.png'"),
        ("no/page.html", FileNotFoundError, "explore: there is no folder '.*no'; make it first"),
    ):
        with pytest.raises(error, match=message):
            mg.viz.explore(y, tmp_path / name)
    with pytest.raises(TypeError, match="int"):
        mg.viz.explore(y, 3)
    assert list(tmp_path.iterdir()) == []


def _with(**options):
    return lambda path: mg.viz.explore(diamond()[-1], path, **options)


def _elsewhere(path):
    with mg.viz.record() as other:
        mg.tensor(1.0, requires_grad=True) * 2
    mg.viz.explore(diamond()[-1], path, tape=other)


@pytest.mark.parametrize(
    ("explore", "error", "message"),
    [
        (_with(tape=[]), TypeError, r"tape must be what viz.record\(\) gives, not \[\]"),
        (_with(model=3), TypeError, "model must be a Module, not 3"),
        (_with(title=3), TypeError, "title must be a string, not 3"),
        (_with(program=3), TypeError, r"program must be what minigrad.capture\(\) gives, not 3"),
        (
            _with(program=mg.capture(lambda x: x)),
            mg.CaptureError,
            "has no program yet: it takes two calls",
        ),
        (_elsewhere, ValueError, "the tape has seen nothing of this graph"),
    ],
)
def test_what_does_not_fit_the_graph_is_refused(tmp_path, explore, error, message):
    with pytest.raises(error, match=message):
        explore(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def _freed():
    _, _, y = diamond()
    y.backward()
    return y


def _overwritten():
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    y = (x * x).sum()
    x.copy_(np.array([3.0, 4.0]))
    return y


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_freed, RuntimeError, "was freed by an earlier backward pass"),
        (_overwritten, RuntimeError, "that memory was overwritten since"),
        (lambda: mg.tensor(1.0), RuntimeError, "explore: a Tensor of shape .* has no graph"),
        (lambda: 1.0, TypeError, "explore: loss must be a Tensor, not float"),
        (
            lambda: mg.ones(3) * mg.tensor(1.0, requires_grad=True),
            ValueError,
            "has 3 elements, and a backward pass starts from one",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused_and_nothing_is_written(tmp_path, make, error, message):
    path = tmp_path / "page.html"
    path.write_text("as it was")
    loss = make()
    with pytest.raises(error, match=message):
        mg.viz.explore(loss, path)
    assert path.read_text() == "as it was"
    assert len(list(tmp_path.iterdir())) == 1
