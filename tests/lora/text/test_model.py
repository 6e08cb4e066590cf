"""The model by itself: caches, padding, checkpointing, the loss, and positions that it lacks."""

import numpy as np
import pytest

import lora
import minigrad as mg
from lora.text.architecture import rotary_frequencies
from lora.text.loading import load_model
from tests.lora.text.models import tiny_folder

ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "smollm3"]


@pytest.fixture
def model(tmp_path):
    return load_model(tiny_folder(tmp_path / "base"))


def ids_of(model, rng, *shape):
    return rng.integers(0, model.config.vocab_size, shape)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_text_read_in_parts_has_the_logits_of_one_read_at_once(architecture, tmp_path, rng):
    model = load_model(tiny_folder(tmp_path / "base", architecture))
    ids = ids_of(model, rng, 2, 23)
    with mg.no_grad():
        expected = model(ids).numpy()
        caches, found = model.new_caches(2, 23), []
        for start, stop in ((0, 9), (9, 10), (10, 11), (11, 23)):
            found.append(model(ids[:, start:stop], caches).numpy())
    np.testing.assert_allclose(np.concatenate(found, 1), expected, atol=1e-5)
    np.testing.assert_allclose(
        model.next_logits(ids, model.new_caches(2, 23)), expected[:, -1], atol=1e-5
    )


def test_rows_of_a_batch_do_not_see_each_other_nor_padding_behind_them(model, rng):
    ids = ids_of(model, rng, 3, 12)
    padded = np.concatenate([ids, np.zeros((3, 5), int)], 1)
    with mg.no_grad():
        alone = [model(row[None]).numpy()[0] for row in ids]
        together = model(padded).numpy()[:, :12]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_loss_counts_the_tokens_that_are_marked(model, rng):
    ids, counted = ids_of(model, rng, 3, 10), rng.random((3, 10)) < 0.5
    loss, count = model.loss(ids, counted)
    logits = mg.log_softmax(model(ids)).numpy()
    chosen = [-logits[i, j - 1, ids[i, j]] for i in range(3) for j in range(1, 10) if counted[i, j]]
    assert count == len(chosen)
    assert loss.item() == pytest.approx(np.mean(chosen), rel=1e-5)
    none, count = model.loss(ids, np.zeros((3, 10), bool))
    assert (none.item(), count) == (0, 0)


@pytest.mark.parametrize("lengths", [None, [1, 1, 1]])
def test_texts_of_one_token_have_no_token_that_counts(model, rng, lengths):
    ids = ids_of(model, rng, 3, 1) if lengths is None else ids_of(model, rng, 1, 3)
    loss, count = model.loss(ids, np.ones(ids.shape, bool), lengths)
    assert (loss.item(), count) == (0, 0)


@pytest.mark.parametrize(
    "pair", [([[1, 2]], [[True, True]]), (np.array([1, 2]), np.ones(2, bool)), ([1], np.ones(1))]
)
def test_the_tokens_of_a_loss_are_an_array_of_rows(model, pair):
    with pytest.raises(ValueError, match=r"^ids and counted are arrays \(batch, length\), not "):
        model.loss(*pair)


@pytest.mark.parametrize("shape", [(2, 4), (2, 6), (1, 5), (10,)])
def test_marks_of_another_shape_than_the_tokens_are_refused(model, rng, shape):
    with pytest.raises(ValueError, match=r"arrays \(batch, length\), not .*\(2, 5\) and .*ndarray"):
        model.loss(ids_of(model, rng, 2, 5), np.ones(shape, bool))


@pytest.mark.parametrize(
    "ids",
    [[[1, 2]], np.array([1, 2]), np.zeros((1, 0), int), np.zeros((0, 3), int), np.array(1)],
)
def test_tokens_are_an_array_of_rows(model, ids):
    with pytest.raises(ValueError, match=r"ids are an array \(batch, length\).*, not "):
        model(ids)


@pytest.mark.parametrize("tied", [True, False])
def test_checkpointing_changes_no_gradient(tied, tmp_path, rng):
    model = load_model(tiny_folder(tmp_path / "base", tie_word_embeddings=tied))
    lora.attach(model, lora.LoRAConfig(rank=2, alpha=4), rng=rng)
    for parameter in model.trainable_parameters():
        parameter.data[...] += 0.1 * rng.standard_normal(parameter.shape)
    ids, counted = ids_of(model, rng, 2, 9), np.ones((2, 9), bool)
    gradients = []
    for model.checkpointing in (False, True):
        model.zero_grad()
        model.loss(ids, counted)[0].backward()
        gradients.append([p.grad.numpy() for p in model.trainable_parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert abs(plain).max() > 0
        np.testing.assert_array_equal(plain, again)


def test_a_checkpointed_model_reads_its_caches(model, rng):
    lora.attach(model, lora.LoRAConfig(rank=2, alpha=4, targets=["embed_tokens"]), rng=rng)
    ids, caches = ids_of(model, rng, 1, 6), model.new_caches(1, 6)
    with mg.no_grad():
        expected = model(ids).numpy()[:, 3:]
        model(ids[:, :3], caches)
    model.checkpointing = True
    logits = model(ids[:, 3:], caches).data
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)  # float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_on_the_embeddings_leaves_a_tied_head_as_it_is(dtype, tmp_path, rng):
    base = tiny_folder(tmp_path / "base", tie_word_embeddings=True)
    plain, model = load_model(base, dtype), load_model(base, dtype)
    lora.attach(model, lora.LoRAConfig(rank=2, alpha=4, targets=["embed_tokens"]), rng=rng)
    ids, counted = ids_of(model, rng, 2, 9), np.ones((2, 9), bool)
    np.testing.assert_array_equal(model(ids).data, plain(ids).data)  # A begins at 0
    adapter = model.model.embed_tokens.adapters["default"]
    adapter.lora_a = rng.standard_normal(adapter.lora_a.shape)
    with lora.disabled(model):
        np.testing.assert_array_equal(model(ids).data, plain(ids).data)
    with mg.no_grad():
        expected = plain.lm_head(model.model(ids)).numpy()
    np.testing.assert_allclose(model(ids).data, expected, atol=1e-6)
    loss, count = model.loss(ids, counted)
    log_p = mg.log_softmax(mg.tensor(expected[:, :-1]))
    right = -np.take_along_axis(log_p.numpy(), ids[:, 1:, None], 2).mean()
    assert count == 16
    assert loss.item() == pytest.approx(right, rel=1e-5)
    loss.backward()
    assert abs(adapter.lora_a.grad.numpy()).max() > 0


def test_a_table_that_is_the_head_too_is_not_trained_in_full(tmp_path):
    model = load_model(tiny_folder(tmp_path / "base", tie_word_embeddings=True))
    with pytest.raises(
        ValueError, match=r"'lm_head' \(of class TiedHead, which can have no adapter\)"
    ):
        lora.attach(model, lora.LoRAConfig(rank=2, targets=["lm_head"]))
    config = lora.LoRAConfig(rank=2, targets=["q_proj"], modules_to_save=["embed_tokens"])
    with pytest.raises(ValueError, match=r"embed_tokens.weight is tied to lm_head.weight"):
        lora.attach(model, config)


def test_gradients_are_those_of_central_differences(tmp_path, rng):
    folder = tiny_folder(tmp_path / "base", num_hidden_layers=1, hidden_size=16)
    model = load_model(folder).astype(np.float64)
    lora.attach(model, lora.LoRAConfig(rank=1, alpha=1, targets=["q_proj", "k_proj"]), rng=rng)
    parameters = model.trainable_parameters()
    for parameter in parameters:
        parameter.data[...] = 0.3 * rng.standard_normal(parameter.shape)
    ids = ids_of(model, rng, 2, 6)
    counted = np.ones((2, 6), bool)
    model.loss(ids, counted)[0].backward()
    for parameter in parameters:
        direction = rng.standard_normal(parameter.shape)
        values, eps = [], 1e-5
        for sign in (1, -1):
            parameter.data[...] += sign * eps * direction
            values.append(model.loss(ids, counted)[0].item())
            parameter.data[...] -= sign * eps * direction
        slope = (values[0] - values[1]) / (2 * eps)
        assert (parameter.grad.numpy() * direction).sum() == pytest.approx(
            slope, rel=1e-6, abs=1e-9
        )


def test_more_positions_than_the_model_knows_are_refused(tmp_path, rng):
    model = load_model(tiny_folder(tmp_path / "a", max_position_embeddings=16))
    with pytest.raises(ValueError, match="17 tokens is too long: this model was made for 16"):
        model(ids_of(model, rng, 1, 17))
    model = load_model(tiny_folder(tmp_path / "b", "mistral", sliding_window=8))
    model(ids_of(model, rng, 1, 8))
    with pytest.raises(ValueError, match="9 tokens is too long: this model was made for 8"):
        model(ids_of(model, rng, 1, 9))


def test_frequencies_of_scaled_positions():
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    plain, linear, llama3 = (
        rotary_frequencies(16, 1e4, scaling)
        for scaling in (None, {"rope_type": "linear", "factor": 4.0}, llama3)
    )
    np.testing.assert_allclose(plain, 1e4 ** (-np.arange(8) / 8))
    np.testing.assert_allclose(linear, plain / 4)
    turns = 64 * plain / (2 * np.pi)
    assert np.array_equal(llama3[turns >= 4], plain[turns >= 4])  # short waves stay
    np.testing.assert_allclose(llama3[turns <= 1], plain[turns <= 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert (llama3[between] < plain[between]).all()
    assert (llama3[between] > plain[between] / 8).all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_texts_behind_each_other_in_one_row_are_those_of_a_padded_batch(
    tmp_path, rng, checkpointing
):
    model = load_model(tiny_folder(tmp_path / "base", "smollm3"))  # some layers have no positions
    lora.attach(model, lora.LoRAConfig(rank=2, alpha=4), rng=rng)
    for parameter in model.trainable_parameters():
        parameter.data[...] += 0.1 * rng.standard_normal(parameter.shape)
    lengths = [5, 1, 9, 2]
    ids, counted = ids_of(model, rng, 4, 9), rng.random((4, 9)) < 0.7
    real = np.arange(9) < np.array(lengths)[:, None]
    counted &= real
    found = []
    for arguments in ((ids, counted), (ids[real][None], counted[real][None], lengths)):
        model.zero_grad()
        model.checkpointing = checkpointing
        loss, count = model.loss(*arguments)
        loss.backward()
        found.append([count, loss.item(), *(p.grad.numpy() for p in model.trainable_parameters())])
    assert found[0][0] == found[1][0] == counted[:, 1:].sum()
    for padded, packed in zip(*found, strict=True):
        np.testing.assert_allclose(packed, padded, rtol=1e-4, atol=1e-6)


def test_lengths_may_be_an_array(model, rng):
    ids, counted = ids_of(model, rng, 1, 7), np.ones((1, 7), bool)
    (loss, count), (expected, _) = (
        model.loss(ids, counted, lengths) for lengths in (np.array([3, 4]), [3, 4])
    )
    assert (loss.item(), count) == (expected.item(), 5)


def test_a_row_without_texts_is_refused(model):
    with pytest.raises(ValueError, match=r"one row with texts of lengths \[\], not .*\(1, 0\)"):
        model.loss(np.zeros((1, 0), np.int64), np.zeros((1, 0), bool), [])


@pytest.mark.parametrize("lengths", [[3], [4, 4], [7, 0], [8, -1]])
def test_lengths_that_do_not_divide_the_row_are_refused(model, rng, lengths):
    ids = ids_of(model, rng, 1, 7)
    with pytest.raises(ValueError, match=r"one row with texts of lengths \["):
        model.loss(ids, np.ones((1, 7), bool), lengths)
    with pytest.raises(ValueError, match=r"one row with texts of lengths \[7\], not .*\(2, 7\)"):
        model.loss(ids_of(model, rng, 2, 7), np.ones((2, 7), bool), [7])
