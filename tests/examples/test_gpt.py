"""The GPT in one file: its length, its engine, its gradients on both engines, what it learns."""

import ast
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the examples need the `examples` extra")

from matplotlib.image import imread
from threadpoolctl import threadpool_limits  # comes with scikit-learn

import minigrad
from examples import gpt_in_one_file as gpt
from examples.charlm.counting import loss_of_pairs
from examples.charlm.texts import Alphabet, sonnets
from examples.walkthroughs.notebooks import WALKTHROUGHS, code_cells, read

SIZES = gpt.Sizes(width=8, heads=2, layers=2, context=6)
CHARACTERS = 7


@pytest.fixture
def weights(rng):
    return gpt.initial_weights(CHARACTERS, SIZES, rng)


@pytest.fixture
def rows(rng):
    return rng.integers(0, CHARACTERS, (2, 6))


def source():
    return Path(gpt.__file__).read_text(encoding="utf-8")


# The file, and its engine


def test_it_has_at_most_250_lines():
    assert len(source().splitlines()) <= 250


def definitions(code):
    """The functions, methods and rows of the table in some code, as text without annotations."""
    found = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in (*node.args.args, node.args.vararg):
                if argument is not None:
                    argument.annotation = None
            found.setdefault(node.name, ast.unparse(node))  # Scalar is the first class
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            names = node.targets if isinstance(node, ast.Assign) else [node.target]
            if [ast.unparse(name) for name in names] == ["TABLE"]:
                for key, value in zip(node.value.keys, node.value.values, strict=True):
                    found[f"TABLE[{ast.unparse(key)}]"] = ast.unparse(value)
    return found


def test_its_engine_is_that_of_the_first_walkthrough():
    cells = code_cells(read(WALKTHROUGHS / "1_a_derivative_is_a_program.ipynb"))
    parts = ("TABLE = {", "class Scalar:", "def in_order(")
    first = [next(c["source"] for c in cells if c["source"].startswith(part)) for part in parts]
    theirs, ours = definitions("\n\n".join(first)), definitions(source())
    assert {"in_order", "backward", "call", "__init__", "__add__", "TABLE['tanh']"} <= theirs.keys()
    del theirs["tanh"]  # a function there, and a method here
    for name, text in theirs.items():
        assert ours[name] == text, name


@pytest.mark.parametrize("name", gpt.TABLE)
def test_each_vjp_of_its_table_is_the_slope(name):
    forward, rules = gpt.TABLE[name]
    at = [0.7, 1.3][: len(rules)]
    out = forward(*at)
    for i, rule in enumerate(rules):
        up, down = (forward(*[x + h * (i == j) for j, x in enumerate(at)]) for h in (1e-6, -1e-6))
        assert rule(2.0, *at, out) == pytest.approx(2 * (up - down) / 2e-6, rel=1e-8)


# The gradients


def test_both_engines_give_the_same_gradients(weights, rows):
    loss, by_scalars = gpt.by_scalars(weights, SIZES, rows)
    other_loss, by_arrays = gpt.by_arrays(weights, SIZES, rows)
    assert loss == pytest.approx(other_loss, rel=1e-12)
    assert list(by_scalars) == list(by_arrays) == list(weights)
    for name, gradient in by_scalars.items():
        scale = np.abs(by_arrays[name]).max()
        assert scale > 1e-4
        np.testing.assert_allclose(gradient, by_arrays[name], rtol=0, atol=1e-12 * scale)


def test_the_gradients_are_those_of_finite_differences(weights, rows, rng):
    _, gradients = gpt.by_arrays(weights, SIZES, rows)
    for name, array in weights.items():
        direction = rng.standard_normal(array.shape)
        up, down = (
            gpt.loss_of(np, weights | {name: array + h * direction}, SIZES, rows)
            for h in (1e-5, -1e-5)
        )
        slope = (gradients[name] * direction).sum()
        assert slope == pytest.approx((up - down) / 2e-5, rel=1e-6, abs=1e-8), name


def test_the_loss_is_the_cross_entropy_of_the_scores(weights, rows):
    scores = gpt.scores_of_next(minigrad, weights, SIZES, rows[:, :-1])
    assert scores.shape == (2, 5, CHARACTERS)
    expected = minigrad.cross_entropy(scores.reshape(-1, CHARACTERS), rows[:, 1:].reshape(-1))
    assert gpt.loss_of(np, weights, SIZES, rows) == pytest.approx(expected.item(), rel=1e-12)


def test_attention_is_that_of_minigrad(weights, rng):
    x = rng.standard_normal((2, 5, SIZES.width))
    module = minigrad.nn.MultiHeadAttention(SIZES.width, SIZES.heads, bias=False, dtype="float64")
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "joined": "out_proj"}
    for name, projection in names.items():
        getattr(module, projection).weight.data[:] = weights[f"{name}1"].T
    expected = module(minigrad.tensor(x), is_causal=True).detach().numpy()
    found = gpt.attention(np, weights, SIZES, 1, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_the_norm_is_that_of_minigrad(rng):
    x = rng.standard_normal((3, 4))
    norm = minigrad.nn.RMSNorm(4, eps=1e-5, dtype="float64")
    expected = norm(minigrad.tensor(x)).detach().numpy()
    np.testing.assert_allclose(gpt.normalised(np, x), expected, rtol=1e-12)


def test_the_model_is_one_of_residual_layers(weights, rows):
    weights = {name: minigrad.tensor(w) for name, w in weights.items()}
    x = weights["characters"][rows] + weights["positions"][: rows.shape[1]]
    for i in range(SIZES.layers):
        x = x + gpt.attention(minigrad, weights, SIZES, i, gpt.normalised(minigrad, x))
        hidden = minigrad.silu(gpt.normalised(minigrad, x) @ weights[f"up{i}"])
        x = x + hidden @ weights[f"down{i}"]
    expected = gpt.normalised(minigrad, x) @ weights["scores"]
    found = gpt.scores_of_next(minigrad, weights, SIZES, rows)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-12)


def test_no_score_depends_on_a_later_character(weights, rows):
    changed = rows.copy()
    changed[:, 3] = (changed[:, 3] + 1) % CHARACTERS
    before, after = (gpt.scores_of_next(np, weights, SIZES, codes) for codes in (rows, changed))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any(axis=(0, 2)).all()


# Adam, and what is learned


def test_adam_takes_the_steps_of_minigrad(rng):
    start = rng.standard_normal((3, 2))
    ours = {"w": start.copy()}
    theirs = minigrad.nn.Parameter(start)
    adam = gpt.Adam(ours)
    other = minigrad.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.99))
    for _ in range(5):
        g = rng.standard_normal((3, 2))
        adam.step({"w": g}, 0.01)
        theirs.grad = minigrad.tensor(g)
        other.step()
    np.testing.assert_allclose(ours["w"], theirs.data, rtol=1e-12)


def of_pairs():
    alphabet = Alphabet(*sonnets())
    known, held_out = map(alphabet.encode, sonnets())
    return loss_of_pairs(known, held_out, len(alphabet)), len(alphabet)


@pytest.mark.full
def test_it_learns_more_than_pairs_of_characters(tmp_path, capsys):
    """In the quick form; walkthrough 12, which is run too, takes more steps."""
    out = tmp_path / "gpt.png"
    with threadpool_limits(1):  # the matrices are small: several threads of BLAS would only wait
        looks = gpt.main(quick=True, out=out)
    pairs, characters = of_pairs()
    steps, known, held_out = np.transpose(looks)
    assert steps[-1] == 400
    assert abs(known[0] - math.log(characters)) < 0.1
    assert held_out[-1] < pairs - 0.05
    assert known[-1] < held_out[-1]
    assert all(after < before for before, after in pairwise(known))
    words = set(re.findall(r"[a-z]+", sonnets().known.casefold()))
    written = capsys.readouterr().out.casefold()
    before, after = (re.findall(r"[a-z]{3,}", part) for part in written.split("after:"))
    shares = [np.mean([word in words for word in part]) for part in (before[1:], after)]
    assert shares[0] < 0.1
    assert shares[1] > 0.2
    pixels = imread(out)
    assert pixels.shape[1] == 1200
    assert out.stat().st_size < 250_000


def test_it_learns_a_short_text_by_heart(rng):
    codes = np.arange(30) % 5
    sizes = gpt.Sizes(width=8, heads=2, layers=1, context=4)
    rows = np.lib.stride_tricks.sliding_window_view(codes, 5)
    weights = gpt.initial_weights(5, sizes, rng)
    assert list(gpt.train(weights, sizes, rows, 200, rng)) == list(range(201))
    assert gpt.loss_of(np, weights, sizes, rows) < 0.3
    written = gpt.write(weights, sizes, codes[:1])
    assert len(written) == 501
    assert np.mean(written[1:] == (written[:-1] + 1) % 5) > 0.95
