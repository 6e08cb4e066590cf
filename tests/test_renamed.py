"""Names that are not here, of modules, attributes and arguments: an error says what to use."""

import importlib
import math
import os
import pydoc
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import lora
import minigrad
from minigrad import nn, optim
from minigrad.renamed import elsewhere

CHANGELOG = (Path(__file__).parents[1] / ".github" / "CHANGELOG.md").read_text()
MODULES = {"minigrad": minigrad, "minigrad.nn": nn, "minigrad.optim": optim, "lora": lora}
MODULES |= {
    f"minigrad.{name}": getattr(minigrad, name)
    for name in ("data", "distributed", "io", "metrics", "viz")
}
OBJECTS = {"Tensor": minigrad.tensor([1.0, 2.0]), "Module": nn.Linear(2, 2), "Op": minigrad.tanh}
OBJECTS["Optimizer"] = optim.SGD(OBJECTS["Module"].parameters())
looks_up_slowly = sys.version_info < (3, 12)


def error_of(ask):
    """The kind and the message of the error that a call raises; None if it raises none."""
    try:
        ask()
    except Exception as error:
        return type(error), str(error)
    return None


def test_an_old_name_of_a_module_gives_the_new_one():
    problems = []
    for old, new in (names := elsewhere()["minigrad 0.1"]).items():
        says = f"there is no module `{old}` since minigrad 0.2; its contents are in {new}"
        found = error_of(lambda old=old: importlib.import_module(old))
        if found != (ModuleNotFoundError, says):
            problems.append((old, found))
        for module in new.split(" and "):
            if failed := error_of(lambda module=module: importlib.import_module(module)):
                problems.append((module, failed))
    assert names
    assert not problems


def test_the_changelog_has_a_row_for_each_old_name():
    assert [old for old in elsewhere()["minigrad 0.1"] if f"\n| `{old}`" not in CHANGELOG] == []


def test_an_old_name_that_is_read_as_an_attribute_gives_the_new_one():
    old = {
        (minigrad, "trainer"): "its contents are in minigrad.training.trainer since minigrad 0.2",
        (minigrad, "engine"): "its contents are in minigrad.core.backward since minigrad 0.2",
        (lora, "files"): "its contents are in lora.peft since minigrad 0.2",
        (minigrad.data, "Table"): "use minigrad.data.CSVTable",
    }
    for (owner, name), hint in old.items():
        with pytest.raises(AttributeError, match=rf"has no attribute '{name}'; {re.escape(hint)}$"):
            getattr(owner, name)


@pytest.mark.parametrize("name", ["offline", "text"])
def test_a_module_that_was_not_imported_yet_is_said_to_be_one(name, monkeypatch):
    monkeypatch.delattr(lora, name, raising=False)  # as before its import
    hint = f"; it is a module, which `import lora.{name}` loads"
    with pytest.raises(AttributeError, match=f"'lora' has no attribute '{name}'{hint}$"):
        getattr(lora, name)


def test_a_keyword_that_an_op_does_not_have_gives_those_that_it_has():
    with pytest.raises(TypeError, match=r"^multiply\(\) .* argument 'x'; it takes a, b$"):
        minigrad.multiply(x=ONE, y=ONE)
    with pytest.raises(TypeError, match=r"^concatenate\(\) .* 'x'; it takes arrays, axis$"):
        minigrad.concatenate([ONE], x=0)


@pytest.mark.full
def test_from_a_zip_archive_names_are_known_and_pages_made_as_from_files(tmp_path):
    root = Path(minigrad.__file__).parents[1]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in (path for name in ("minigrad", "lora") for path in (root / name).rglob("*.*")):
            if path.suffix in (".py", ".csv", ".js", ".css", ".html"):
                archive.write(path, path.relative_to(root))
    script = """
import lora, minigrad
page = minigrad.viz.explore(minigrad.tensor(3.0, requires_grad=True) ** 2, "page.html")
print(getattr(minigrad, "where_not", "none"))
minigrad.cat
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "all.zip")}
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.stdout == "none\n"
    assert "; use minigrad.concatenate" in ran.stderr.splitlines()[-1]


def test_a_name_of_another_module_gives_its_complete_name():
    for module in minigrad.metrics, minigrad.viz, minigrad.diagnostics, minigrad.distributed:
        with pytest.raises(AttributeError, match=r"'SGD'; use minigrad\.optim\.SGD$"):
            module.SGD  # noqa: B018


def test_a_module_that_never_was_is_not_found_as_ever():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'minigrad\.tensors'"):
        importlib.import_module("minigrad.tensors")


@pytest.mark.parametrize("path", ["minigrad.functional.softmax", "minigrad.op", "lora.merge"])
def test_a_function_is_not_taken_for_a_missing_module(path):
    assert callable(pydoc.locate(path))


def test_a_part_of_an_old_package_gives_the_new_name_of_the_package():
    with pytest.raises(ModuleNotFoundError, match=r"lora\.files.*lora\.peft"):
        importlib.import_module("lora.files.folder")


@pytest.mark.parametrize("name", ["minigrad.nn.functional", "minigrad.utils.data"])
def test_a_module_of_another_library_gives_what_is_here(name):
    with pytest.raises(ModuleNotFoundError, match=r"^there is no `minigrad.*`; use minigrad"):
        importlib.import_module(name)


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        ("minigrad", "cat", "`minigrad.cat`; use minigrad.concatenate"),
        ("minigrad", "Linear", "`minigrad.Linear`; use minigrad.nn.Linear"),
        ("minigrad", "eigvals", "use minigrad.eigh, if the matrix is symmetric"),
        ("minigrad.nn", "ModuleList", "`minigrad.nn.ModuleList`; use a list"),
        ("minigrad.optim", "lr_scheduler", "`minigrad.optim.lr_scheduler`; leave it out"),
        ("minigrad.optim", "ReduceLROnPlateau", "set optimizer.lr"),
        ("lora", "get_peft_model", "`lora.get_peft_model`; use lora.attach"),
        ("minigrad", "never_was", "cannot import name 'never_was' from 'minigrad'"),
    ],
)
def test_a_name_of_another_library_that_is_imported_gives_the_one_that_is_here(
    module, name, message
):
    with pytest.raises(ImportError, match=re.escape(message)):
        exec(f"from {module} import {name}")


@pytest.mark.parametrize("owner", [*MODULES, *OBJECTS])
def test_a_name_of_another_library_gives_the_one_that_is_here(owner):
    asked = MODULES.get(owner) or OBJECTS.get(owner)
    problems = []
    for name, hint in (hints := elsewhere()[owner]).items():
        kind, message = error_of(lambda name=name: getattr(asked, name)) or (None, "")
        is_said = message.endswith(f"has no attribute '{name}'; {hint}")
        if hasattr(asked, name) or kind is not AttributeError or not is_said:
            problems.append((name, message))
    assert hints
    assert not problems


X = np.arange(-24.0, 0.0).reshape(2, 3, 4)
HOLES = np.where(X == -1.0, np.nan, X)  # without the largest element


@pytest.mark.parametrize(
    ("owner", "name", "expected"),
    [
        ("Tensor", "take", lambda x: x.take([0, 7, 3])),
        ("minigrad", "take", lambda x: x.take([0, 7, 3])),
        ("minigrad", "dist", lambda x: np.linalg.norm(x - 1)),
        ("minigrad", "pairwise_distance", lambda x: np.sqrt(((x - 1) ** 2).sum(axis=-1))),
        ("minigrad", "normalize", lambda x: x / np.sqrt((x**2).sum(axis=1, keepdims=True))),
        ("minigrad", "var_mean", lambda x: x.var(ddof=1)),
        ("minigrad", "erfc", lambda x: np.vectorize(math.erfc)(x)),
        ("minigrad", "frac", lambda x: np.modf(x)[0]),
        ("minigrad", "deg2rad", np.deg2rad),
        ("minigrad", "rad2deg", np.rad2deg),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_an_expression_that_is_recommended_computes_what_the_name_does_elsewhere(
    owner, name, expected, sign
):
    np.testing.assert_allclose(recommended(owner, name, sign * X), expected(sign * X), rtol=1e-12)


@pytest.mark.parametrize("name", ["nansum", "nanmax", "nanmin"])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_expression_that_is_recommended_ignores_nan_as_numpy_does(name, sign):
    assert recommended("minigrad", name, sign * HOLES) == getattr(np, name)(sign * HOLES)


def recommended(owner, name, x):
    """What the expression in a hint computes."""
    hint = elsewhere()[owner][name].removeprefix("use ")
    expression = re.split(r", which|,? or ", hint)[0]
    names = {"minigrad": minigrad, "numpy": np, "y": 1.0, "index": [0, 7, 3]}
    return eval(expression, {**names, "x": minigrad.tensor(x)}).data


def missing_names(owner, hint):
    """The names that a hint recommends and that are not there."""
    for path in re.findall(r"\b(?:minigrad|lora)(?:\.\w+)+", hint):
        found = importlib.import_module(path.partition(".")[0])
        for name in path.split(".")[1:]:
            found = getattr(found, name, None)
        if found is None:
            yield path
    for name in re.findall(r"(?<![\w)])\.(\w+)", hint):
        if not hasattr(OBJECTS.get(owner), name):
            yield name
    for name in re.findall(r"\bnumpy\.(\w+)", hint):
        if not hasattr(np, name):
            yield name


@pytest.mark.parametrize("owner", [*MODULES, *OBJECTS])
def test_what_is_recommended_exists(owner):
    hints = set(elsewhere()[owner].values())
    missing = {hint: [*missing_names(owner, hint)] for hint in sorted(hints)}
    assert {hint: names for hint, names in missing.items() if names} == {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.sum(dim=0), "sum: unexpected keyword argument 'dim'; here it is axis"),
        (lambda x: minigrad.max(x, dim=0), "max: .*'dim'; here it is axis"),
        (lambda x: x.mean(0, keepdim=True), "mean: .*'keepdim'; here it is keepdims"),
        (lambda x: minigrad.var(x, unbiased=False), "var: .*'unbiased'; here it is ddof"),
        (lambda x: x.softmax(dim=-1), "softmax: .*'dim'; here it is axis"),
        (lambda x: x.softmax(along=-1), r"softmax\(\) got an unexpected keyword argument 'along'"),
    ],
)
def test_an_argument_of_another_library_gives_the_one_that_is_here(call, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        call(minigrad.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.Softmax(dim=1), "Softmax: .*'dim'; here it is axis, as in numpy"),
        (lambda: nn.ReLU(inplace=True), "ReLU: .*'inplace'; leave it out"),
        (lambda: nn.ReLU(True), r"ReLU: .* but 2 were given; it has no options"),
        (lambda: nn.Linear(2, 3, device="cpu"), "Linear: .*'device'; leave it out"),
        (lambda: nn.TransformerBlock(8, nhead=2), "TransformerBlock: .*'nhead'; .* num_heads"),
        (
            lambda: nn.MultiHeadAttention(8, 2)(minigrad.ones(1, 3, 8), key_padding_mask=ONE),
            r"MultiHeadAttention.forward: .*; use attn_mask=mask\[:, None, None, :\]",
        ),
        (
            lambda: nn.MultiHeadAttention(8, 2)(minigrad.ones(1, 3, 8), mask=ONE),
            "MultiHeadAttention.forward: .*'mask'; in attention it is attn_mask, which is True",
        ),
        (
            lambda: minigrad.scaled_dot_product_attention(ONE, ONE, ONE, causal=True),
            "scaled_dot_product_attention: .*'causal'; in attention it is is_causal",
        ),
        (lambda: optim.Adam([ONE], fused=True), "Adam: .*'fused'; leave it out"),
        (
            lambda: optim.StepLR(optim.SGD([ONE]), 3, last_epoch=2),
            "StepLR: .*'last_epoch'; leave it out",
        ),
        (lambda: optim.SGD([ONE]).step(lambda: ONE), r"Optimizer.step.*; it takes no closure"),
        (lambda: optim.StepLR(optim.SGD([ONE]), 3).step(metrics=1.0), "LRSch.*; leave it out, bec"),
        (lambda: optim.clip_grad_norm([ONE], 1.0, norm_type=2), "clip_grad_norm: .*; leave it out"),
        (
            lambda: nn.Linear(2, 3).load_state_dict({}, strict=False),
            r"Module.load_state_dict: .*load \{\*\*model.state_dict\(\)",
        ),
        (lambda: nn.Linear(2, 3).zero_grad(set_to_none=True), "Module.zero_grad: .*; leave it out"),
        (lambda: minigrad.zeros(2, device="cpu"), "zeros: .*'device'; leave it out"),
        (lambda: minigrad.randint(0, 9, size=(3,)), "randint: .*'size'; here it is shape"),
        (lambda: minigrad.linspace(0, 1, steps=5), "linspace: .*'steps'; here it is num"),
        (lambda: minigrad.triu(minigrad.ones(3, 3), diagonal=1), "triu: .*; here it is k"),
        (lambda: minigrad.norm(ONE, p=2), "norm: .*'p'; here it is ord, .*; without an axis"),
        (lambda: minigrad.grad(ONE.sum(), ONE, only_inputs=True), "grad: .*; leave it out"),
        (lambda: minigrad.transpose(minigrad.ones(2, 3), 0, 1), "transpose.*; use minigrad.swapax"),
        (lambda: ONE.repeat(2, 1, 1), "repeat: .* were given; use minigrad.tile"),
        (lambda: minigrad.scatter_add(ONE, 0, [0], ONE), "scatter_add.*; it adds values at"),
        (lambda: nn.MaxPool2d(2, return_indices=True), "MaxPool2d: .*; leave it out"),
        (lambda: minigrad.nonzero(ONE, as_tuple=True), "nonzero: .*; leave it out"),
        (lambda: nn.LSTM(5, 7, proj_size=3), "LSTM: .*'proj_size'; leave it out"),
        (lambda: minigrad.scatter(ONE, 0, 0, ONE, reduce="add"), "scatter: .*; .*scatter_add"),
        (lambda: minigrad.svd(minigrad.ones(2, 2), some=True), "svd: .*; here it is full_matrices"),
        (lambda: minigrad.where(ONE > 0), "where.*; use minigrad.nonzero"),
        (lambda: optim.Adam([ONE], learning_rate=0.1), "Adam: .*'learning_rate'; here it is lr"),
        (lambda: trainer(lr=0.1), "Trainer: .*'lr'; it is an option of the optimiser"),
        (lambda: trainer(epochs=3), "Trainer: .*'epochs'; it is an argument of Trainer.fit"),
        (lambda: trainer().fit(ROWS, ROWS, epochs=3), r"Trainer.fit: .*; .* pair, .*\(\(x, y\), "),
        (lambda: trainer().fit((ROWS, ROWS), 3, batch_size=8), "Trainer.fit: .*; it is an option"),
        (lambda: trainer().fit((ROWS, ROWS), 3, verbose=0), "Trainer.fit: .*; .* progress=False"),
        (lambda: minigrad.receipt(ONE), "receipt.*; it counts .* `with minigrad.receipt"),
        (lambda: minigrad.liveness(ONE), "liveness.*; .* minigrad.liveness.model, loss, .x, y"),
        (
            lambda: minigrad.gradcheck(minigrad.exp, ONE, eps=1e-3),
            "gradcheck: .*'eps'; leave it out",
        ),
        (lambda: minigrad.gradcheck(minigrad.exp, ONE, atol=1e-3), "gradcheck: .*; .* tolerance"),
        (
            lambda: minigrad.gradcheck(minigrad.exp, ONE, raise_exception=True),
            "gradcheck: .*'raise_exception'; here it is raise_on_failure",
        ),
    ],
)
def test_an_argument_that_another_library_takes_gives_what_to_do_here(call, message):
    with pytest.raises(TypeError, match=f"^{message}") as error:
        call()
    assert str(error.value).count("; ") == 1 + ("without an axis" in message)


def trainer(**options):
    """A trainer of a small model."""
    model = nn.Linear(2, 2)
    return minigrad.Trainer(model, optim.SGD(model.parameters()), minigrad.mse, **options)


def test_two_axes_for_more_are_swapped_by_another_method():
    x = minigrad.ones(2, 3, 4)
    for axes in ((1, 2), (-1, -2)):
        with pytest.raises(ValueError, match=re.escape(f".swapaxes{axes} swaps two")):
            x.transpose(*axes)
    assert x.swapaxes(1, 2).shape == (2, 4, 3)


def test_an_error_of_an_inherited_constructor_names_the_class_that_was_called():
    class Own(nn.Linear):
        pass

    for kind in (nn.Conv1d, nn.BatchNorm2d, Own):
        with pytest.raises(TypeError, match=rf"^{kind.__name__}: got an unexpected .* 'sizes'"):
            kind(1, 1, 1, sizes=1)
        with pytest.raises(TypeError, match=rf"^{kind.__name__}: unexpected .* leave it"):
            kind(1, 1, 1, device="cpu")


def test_an_argument_of_a_user_s_own_class_has_no_hint():
    class Layer(nn.Module):
        def __init__(self, axis):
            self.axis = axis

    with pytest.raises(TypeError, match=r"got an unexpected keyword argument 'dim'\.?[^;]*$"):
        Layer(dim=1)


@pytest.mark.skipif(looks_up_slowly, reason="Python 3.11 would look up all attributes slower")
def test_what_minigrad_lacks_is_looked_up_for_tensors_and_functions():
    with pytest.raises(AttributeError, match=r"no attribute 'acos'; use minigrad\.arccos$"):
        minigrad.tensor([1.0]).acos  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'mse_loss'; use minigrad\.mse$"):
        minigrad.functional.mse_loss  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'relu'; use minigrad\.relu$"):
        minigrad.functional.relu  # noqa: B018
    with pytest.raises(AttributeError, match=r"'DataLoader'; use minigrad\.data\.batches$"):
        minigrad.data.DataLoader  # noqa: B018


@pytest.mark.skipif(looks_up_slowly, reason="Python 3.11 would look up all attributes slower")
def test_a_function_of_another_place_is_named():
    with pytest.raises(AttributeError, match=r"no attribute 'tril'; use minigrad\.tril$"):
        minigrad.tensor([1.0]).tril  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'Linear'; use minigrad\.nn\.Linear$"):
        minigrad.Linear  # noqa: B018
    with pytest.raises(AttributeError, match=r"'accuracy'; use minigrad\.metrics\.accuracy$"):
        minigrad.accuracy  # noqa: B018
    with pytest.raises(AttributeError, match=r"'sample'; use minigrad\.sampling\.sample$"):
        minigrad.sample  # noqa: B018
    with pytest.raises(AttributeError, match=r"'save'; use minigrad\.io\.save_state"):
        minigrad.io.save  # noqa: B018


def test_names_that_are_not_there_are_not_listed():
    for owner in ("Tensor", "Module"):
        assert not {*dir(OBJECTS[owner])} & {*elsewhere()[owner]}


@pytest.mark.parametrize(
    "module", [minigrad, lora, nn, optim, minigrad.io, minigrad.viz, minigrad.distributed]
)
def test_tab_completes_the_public_names_of_a_module(module):
    listed = dir(module)
    assert {*module.__all__, "__doc__", "__name__"} <= {*listed}
    assert [n for n in listed if n not in module.__all__ and not n.startswith("__")] == []
    assert all(hasattr(module, name) for name in listed)


def test_an_attribute_of_a_user_s_own_may_have_any_name():
    class Layer(nn.Module):
        def to(self):
            return 3

    layer = Layer()
    layer.summary = 4
    assert (layer.to(), layer.summary) == (3, 4)
    assert {"to", "summary"} <= {*dir(layer)}


def test_a_property_that_fails_says_why():
    class Layer(nn.Module):
        @property
        def scale(self):
            return self.weigth

    with pytest.raises(AttributeError, match="weigth"):
        Layer().scale  # noqa: B018


# Other things that are typed by habit

ONE = minigrad.tensor([1.0, 2.0], requires_grad=True)
ROWS = np.ones((4, 2), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: minigrad.mean([ONE, ONE]), r"^mean: .*minigrad\.stack makes one tensor"),
        (lambda: minigrad.sum([ONE, ONE]), r"^sum: .*minigrad\.stack makes one tensor"),
        (lambda: minigrad.max(([ONE], [ONE])), r"^max: .*minigrad\.stack makes one tensor"),
        (lambda: minigrad.add([ONE], 1.0), r"^add: .*minigrad\.stack makes one tensor"),
        (lambda: minigrad.tensor([ONE, ONE]), r"minigrad\.stack makes one tensor"),
        (lambda: minigrad.tensor([[1.0, ONE[0]]]), r"minigrad\.stack makes one tensor"),
        (lambda: ONE + [ONE] * 2, r"minigrad\.stack makes one tensor"),
        (
            lambda: np.vdot(ONE, ONE),
            r"numpy\.vdot does .*; use .*minigrad\.einsum, or",
        ),
        (lambda: minigrad.grad(lambda x: x, ONE), r"not a function; minigrad\.gradient\(f\)"),
        (lambda: minigrad.grad(lambda x: x), r"not a function; .*minigrad\.value_and_grad\(f\)"),
        (lambda: minigrad.grad(ONE.sum()), r"^grad: inputs are missing"),
        (
            lambda: minigrad.vjp(lambda x: float(x[0]), ONE),
            r"not a float; .*without float\(\), \.item\(\)",
        ),
        (lambda: minigrad.vjp(lambda x: x.detach().numpy(), ONE), "not a ndarray; compute it"),
    ],
)
def test_a_call_that_would_lose_the_gradient_says_what_does_not(call, message):
    with pytest.raises(TypeError, match=message):
        call()
