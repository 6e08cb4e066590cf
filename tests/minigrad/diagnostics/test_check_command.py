"""`python -m minigrad check`."""

import io
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from minigrad.__main__ import main

SOURCE = """
import numpy as np
import minigrad as mg
from beside import factor

def product(x, y):
    return mg.tanh(x @ y) * factor

def root(x):
    return mg.sqrt(x)

def kink(x):
    return mg.relu(x)

@mg.op
def wrong(x):
    return x * x

wrong.vjp("x", lambda g, x: 2.02 * g * x)
model = mg.nn.Linear(4, 2)
Model = mg.nn.Linear
number = 3

def broken(x):
    raise KeyError("mine")

def forward(x, y):
    return x * np.sin(y)

def backward(g, x, y):
    return g * np.sin(y), g * x * np.cos(y)

def unfinished(g, x, y):
    return g * np.sin(y), None

def refuses(g, x, y):
    raise TypeError(f"inputs of {x.dtype}")
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(textwrap.dedent(SOURCE))
    (tmp_path / "beside.py").write_text("factor = 2.0")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield str(tmp_path / "mine.py")
    for name in ("mine", "beside"):
        sys.modules.pop(name, None)


def status(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(["check", *arguments])
    return caught.value.code


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("name", "options", "code", "said"),
    [
        ("product", ["--shapes", "3x4,4x5"], 0, "gradcheck of product: agree (79 entries"),
        ("product", ["--shapes", "3x4,4x5", "--dtype", "float32", "--order", "1"], 0, "agree (32"),
        ("wrong", ["--shapes", "3"], 1, "gradcheck of wrong: disagree"),
        ("wrong", ["--shapes", "3", "--tolerance", "0.02", "--order", "1"], 0, "tolerance 0.02"),
        ("kink", ["--shapes", "2", "--range", "0,0"], 2, "gradcheck of kink: cannot tell"),
        ("model", ["--shapes", "3x4"], 0, "gradcheck of Linear: agree"),
        ("kink", ["--shapes", "0x3"], 2, "cannot tell (0 entries compared"),
        ("root", ["--shapes", "()", "--range", "0.5,2"], 0, "agree (3 entries"),
        ("root", ["--shapes", "100", "--range", "1,2", "--samples", "5"], 0, "of 300 entries"),
    ],
)
def test_the_report_is_printed_and_the_status_is_the_verdict(
    name, options, code, said, file, capsys
):
    assert status(f"{file}:{name}", *options) == code
    assert said in capsys.readouterr().out


def test_the_status_does_not_depend_on_what_can_be_written(tmp_path, monkeypatch):
    source = "import minigrad as mg\ndef 正弦(x):\n    return mg.sin(x)\n"
    (tmp_path / "sine.py").write_text(source, encoding="utf-8")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    assert status(f"{tmp_path}/sine.py:正弦", "--shapes", "3") == 0
    sys.modules.pop("sine")
    sys.stdout.flush()
    assert rb"gradcheck of \u6b63\u5f26: agree" in written.getvalue()

    def refuse(_):
        raise OSError("the device is full")

    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=refuse))
    assert status(f"{tmp_path}/none.py:f", "--shapes", "3") == 3


@pytest.mark.parametrize(
    ("target", "options", "said"),
    [
        ("{file}:prodct", [], "did you mean 'product'?"),
        ("{file}:Model", [], "it is a class; name an instance of it"),
        ("{file}:number", [], "cannot be checked: it is 3"),
        ("{file}:broken", [], "raised while gradcheck called broken"),
        ("{file}", [], "is not of the form file.py:function"),
        ("{folder}/other.py:f", [], "the files there are beside.py, mine.py"),
        ("{folder}/none/f.py:f", [], "no file there ends in .py"),
        ("no.such.module:f", [], "ModuleNotFoundError"),
        ("{file}:product", ["--shapes", "3y4"], "'3y4' is not a shape; 3x4 is one"),
        ("{file}:product", ["--shapes", "3x-4"], "is not a shape"),
        ("{file}:root", ["--range", "5"], "is not two numbers"),
        ("{file}:root", ["--seed", "-1"], "argument --seed: '-1' is not a seed"),
        ("{file}:root", ["--seed", "one"], "an integer of at least 0"),
        ("{file}:product", ["--order", "3"], "argument --order: invalid choice"),
        ("{file}:product", ["--shapes", "3x4,5x4"], "matmul"),
        ("{file}:root", ["--shapes", ""], "no input contains floats"),
    ],
)
def test_what_cannot_be_checked_has_a_status_of_its_own(target, options, said, file, capsys):
    target = target.format(file=file, folder=file.removesuffix("/mine.py"))
    options = options if "--shapes" in options else ["--shapes", "3", *options]
    assert status(target, *options) == 3
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backward", "options", "code", "said"),
    [
        ("backward", [], 0, "check_vjp of forward: agree (24 entries compared"),
        ("backward", ["--samples", "5", "--dtype", "float32"], 0, "agree (10 of 24 entries"),
        ("backward", ["--dtype", "bfloat16"], 0, "agree (24 entries compared"),
        ("refuses", ["--dtype", "bfloat16"], 3, "inputs of bfloat16"),
        ("unfinished", [], 1, "unfinished returned None for an input of floats"),
        ("backward", ["--order", "2"], 3, "leave out --framework and --order"),
        ("backward", ["--framework", "torch"], 3, "leave out --framework and --order"),
        ("backwards", [], 3, "did you mean 'backward'?"),
    ],
)
def test_a_pair_of_functions_is_checked(backward, options, code, said, file, capsys):
    pair = f"{file}:forward", "--vjp", f"{file}:{backward}"
    assert status(*pair, "--shapes", "3x4,3x4", *options) == code
    assert said in "".join(capsys.readouterr())


@pytest.mark.peers
def test_a_module_of_pytorch_gets_inputs_of_its_dtype(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    (tmp_path / "of_torch.py").write_text(
        "import torch\nmodel = torch.nn.Linear(3, 2)\n"
        "class Mine(torch.autograd.Function):\n    pass\n"
        "def f(x):\n    return torch.sin(x)\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = f"{tmp_path}/of_torch.py"
    assert status(f"{file}:model", "--shapes", "4x3") == 0
    assert "gradcheck of Linear: agree" in capsys.readouterr().out
    assert status(f"{file}:Mine", "--shapes", "3") == 3
    assert "name its .apply" in capsys.readouterr().err
    for dtype in ("float64", "float32", "bfloat16"):
        assert status(f"{file}:f", "--shapes", "3", "--framework", "torch", "--dtype", dtype) == 0
    assert status(f"{file}:f", "--shapes", "3") == 3
    error = capsys.readouterr().err
    assert "a function of PyTorch or JAX is given arrays of theirs" in error
    assert "add --framework torch" in error


def test_shapes_must_be_given(file, capsys):
    assert status(f"{file}:root") == 3
    assert "--shapes" in capsys.readouterr().err


def test_it_is_a_command(tmp_path):
    run = [sys.executable, "-m", "minigrad", "check", "minigrad:tanh", "--shapes", "2x2"]
    result = subprocess.run(run, capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout == (
        "gradcheck of tanh: agree (12 entries compared, 0 wrong, 0 undecided, tolerance 1e-06)\n"
    )


@pytest.mark.parametrize(
    "arguments",  # what is not buffered fails in `print`, the other at the flush of the end
    [
        ["-m", "minigrad", "config"],
        ["-u", "-m", "minigrad", "config"],
    ],
)
def test_a_reader_may_close_the_pipe_before_it_prints(arguments):
    run = [sys.executable, *arguments]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)


@pytest.mark.parametrize(
    ("options", "package", "install"),
    [
        (["--framework", "torch"], "torch", "torch"),
        (["--framework", "jax"], "jax", "jax"),
        (["--dtype", "bfloat16"], "ml_dtypes", '"minigrad-lora[text]"'),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_way_to_install_it(
    file, monkeypatch, capsys, options, package, install
):
    beside = Path(file).with_name(f"{package}.py")
    beside.write_text(f"raise ModuleNotFoundError('none', name={package!r})")
    monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["check", f"{file}:root", "--shapes", "3", *options])
    assert caught.value.code == 3
    said = f"{package} is not installed; python -m pip install {install}\n"
    assert capsys.readouterr().err.endswith(said)
