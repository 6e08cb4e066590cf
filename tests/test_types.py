"""What a type checker knows of a user's code: no call of the library's functions gives Any."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="types are checked with the `dev` extra")

from mypy import api

USE = """
from typing import assert_type

import lora
import minigrad as mg
from minigrad import Tensor, nn, optim
from minigrad.diagnostics import GradcheckReport

x, w = mg.tensor([[1.0, 2.0]], requires_grad=True), nn.Parameter([[1.0], [2.0]])
assert_type(mg.exp(x), Tensor)
assert_type(mg.softmax(x, axis=-1), Tensor)
assert_type(mg.mse(x @ w, mg.ones(1, 1)), Tensor)
assert_type((x @ w + 1).sum(axis=0)[None], Tensor)
assert_type(mg.max_with_indices(x, 1).values, Tensor)
assert_type(mg.grad(mg.sum(x @ w), x), Tensor)
assert_type(mg.grad(mg.sum(x @ w), [x, w]), tuple[Tensor, ...])
assert_type(mg.grad(mg.sum(w), [w]), tuple[Tensor, ...])
assert_type(x.grad, Tensor | None)
net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
assert_type(net[:2], nn.Sequential)
optimizer = optim.Adam(net.parameters(), lr=1e-3)
assert_type(optimizer.lr, float)
assert_type(mg.Trainer(net, optimizer, mg.mse).history, mg.History)
assert_type(mg.gradcheck(mg.tanh, [x]), GradcheckReport)
assert_type(lora.attach(net, lora.LoRAConfig(rank=1)), lora.AttachReport)


@mg.capture
def step(x: Tensor) -> Tensor:
    return mg.sum(x)


assert_type(step(x), Tensor)
mg.never_was
"""


# Of a package that is installed, only what it declares is read; our own bodies are checked by the
# `mypy` of this project.
CONFIG = """
[mypy]
[mypy-minigrad.*]
ignore_errors = True
[mypy-lora.*]
ignore_errors = True
"""


@pytest.mark.full
def test_a_type_checker_knows_what_the_functions_return(tmp_path, monkeypatch):
    path = tmp_path / "use.py"
    path.write_text(USE)
    (tmp_path / "mypy.ini").write_text(CONFIG)
    monkeypatch.setenv("MYPYPATH", str(Path(__file__).parents[1]))
    monkeypatch.chdir(tmp_path)  # the options are those of users, and not of this project
    command = ["--strict", "--no-error-summary", "--python-executable", sys.executable, str(path)]
    lines = [line for line in api.run(command)[0].splitlines() if line.startswith("use.py")]
    last = len(USE.splitlines())
    assert lines == [f'use.py:{last}: error: Module has no attribute "never_was"  [attr-defined]']
