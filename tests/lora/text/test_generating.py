"""Writing with a tiny model: greedy, drawn, in a conversation, and up to its limits."""

import gc
import weakref
from contextlib import nullcontext

import numpy as np
import pytest

import lora
import minigrad as mg
from lora.attachment.state import adapted_layers
from lora.text.generating import TextGenerator, generate
from lora.text.loading import load_model, tokenizer
from tests.lora.models import put_on, shake
from tests.lora.text.models import tiny_folder

ASK = [{"role": "user", "content": "why is the sky blue?"}]


@pytest.fixture
def parts(tmp_path):
    folder = tiny_folder(tmp_path / "base")
    return load_model(folder), tokenizer(folder)


def greedy(model, ids, count):
    """The likeliest tokens, each found by reading everything again."""
    ids = list(ids)
    with mg.no_grad():
        for _ in range(count):
            ids.append(int(model(np.array([ids])).numpy()[0, -1].argmax()))
    return ids


def test_the_likeliest_tokens_are_those_of_reading_everything_again(parts):
    model, tok = parts
    writer = TextGenerator(model, tok, max_tokens=12)
    text = "".join(writer.stream("The quick brown"))
    expected = greedy(model, tok.encode("The quick brown"), 12)[len(writer.prompt_tokens) :]
    if writer.finish_reason == "stop":
        expected = expected[: len(writer.tokens)]
    assert writer.tokens == expected
    assert text == tok.decode(writer.tokens).rstrip("\N{REPLACEMENT CHARACTER}")
    assert writer.seconds > 0


def test_a_token_that_ends_a_text_ends_it(parts, monkeypatch):
    model, tok = parts
    everything = TextGenerator(model, tok, max_tokens=8)
    list(everything.stream("The fox"))
    third = everything.tokens[2]
    count = everything.tokens.index(third)
    monkeypatch.setattr(tok, "eos_token_id", third)
    writer = TextGenerator(model, tok, max_tokens=8)
    list(writer.stream("The fox"))
    assert (writer.tokens, writer.finish_reason) == (everything.tokens[:count], "stop")


def test_equal_seeds_write_equal_texts(parts):
    options = {"max_tokens": 10, "temperature": 1.5, "top_k": 50, "top_p": 0.95}
    texts = {seed: generate(*parts, "fox", seed=seed, **options) for seed in (1, 2, 3)}
    assert len(set(texts.values())) > 1
    assert texts[1] == generate(*parts, "fox", seed=1, **options)


def test_tokens_are_drawn_unless_the_likeliest_are_asked_for(parts):
    options = {"max_tokens": 8, "seed": 0}
    plain = generate(*parts, "fox", **options)
    assert generate(*parts, "fox", top_k=50, **options) != plain
    assert generate(*parts, "fox", top_p=0.99, **options) != plain
    assert generate(*parts, "fox", top_k=50, temperature=0, **options) == plain
    assert TextGenerator(*parts).temperature == 0.0


def test_rows_of_a_padded_table_are_never_drawn(tmp_path):
    folder = tiny_folder(tmp_path / "base", vocab_size=4000, eos_token_id=None)
    model, tok = load_model(folder), tokenizer(folder)
    for options in ({}, {"temperature": 100.0, "seed": 0}, {"top_k": 3000, "seed": 0}):
        writer = TextGenerator(model, tok, max_tokens=20, **options)
        list(writer.stream("fox"))
        assert max(writer.tokens) < tok.vocab_size


def test_a_prompt_has_no_end_where_the_tokenizer_ends_each_text(parts):
    from tokenizers.processors import TemplateProcessing

    from lora.text.tokenization import Tokenizer
    from tests.lora.text.models import tiny_tokenizer

    tokens = type(tiny_tokenizer()).from_str(tiny_tokenizer().to_str())
    around = [("<|endoftext|>", 0), ("<|im_end|>", 2)]
    tokens.post_processor = TemplateProcessing("<|endoftext|> $A <|im_end|>", special_tokens=around)
    tok = Tokenizer(tokens, {"eos_token": "<|im_end|>"}, None)
    writer = TextGenerator(parts[0], tok, max_tokens=1)
    list(writer.stream("fox"))
    assert writer.prompt_tokens == [0, *tok.encode("fox")]


def count_tokens(model, monkeypatch):
    """Let the model append the number of tokens of each of its calls to the list returned."""
    read, original = [], model.next_logits
    monkeypatch.setattr(
        model, "next_logits", lambda ids, caches: read.append(ids.size) or original(ids, caches)
    )
    return read


def test_a_conversation_is_read_once(parts, monkeypatch):
    model, tok = parts
    writer = TextGenerator(model, tok, max_tokens=4)
    answer = "".join(writer.stream(ASK))
    more = [*ASK, {"role": "assistant", "content": answer}, {"role": "user", "content": "Why?"}]
    read = count_tokens(model, monkeypatch)
    again = "".join(writer.stream(more))
    assert sum(read) < len(writer.prompt_tokens)  # the beginning was in the caches
    assert again == generate(model, tok, more, max_tokens=4)


def halve_the_scale(model):
    for _, layer in adapted_layers(model):
        layer.adapters["two"].scale /= 2


@pytest.mark.parametrize(
    "change",
    [
        lambda model: lora.switch(model),
        lambda model: lora.switch(model, "one"),
        lambda model: lora.switch(model, "one", "two"),
        lambda model: lora.remove(model, "two"),
        lora.detach,
        halve_the_scale,
    ],
)
def test_after_a_change_of_adapters_everything_is_read_again(parts, rng, change):
    model, tok = parts
    for name in ("one", "two"):
        put_on(model, name, rng, size=1)
    writer = TextGenerator(model, tok, max_tokens=6)
    adapted = "".join(writer.stream("The fox"))
    change(model)
    changed = "".join(writer.stream("The fox"))
    assert changed == generate(model, tok, "The fox", max_tokens=6)
    assert changed != adapted


def test_what_was_read_without_adapters_is_read_again_with_them(parts, rng):
    model, tok = parts
    put_on(model, "one", rng, size=1)
    writer = TextGenerator(model, tok, max_tokens=6)
    texts = []
    for block in (nullcontext, lora.disabled, nullcontext):
        with block(model):
            texts.append("".join(writer.stream("The fox")))
            assert texts[-1] == generate(model, tok, "The fox", max_tokens=6)
    assert texts[0] == texts[2] != texts[1]


def test_after_a_step_of_training_everything_is_read_again(parts, rng):
    model, tok = parts
    lora.attach(model, lora.LoRAConfig(rank=4, alpha=64), rng=rng)
    writer, ids = TextGenerator(model, tok, max_tokens=6), np.array([tok.encode("The lazy dog")])
    optimizer = mg.optim.AdamW(model.trainable_parameters(), lr=1.0)
    texts = []
    for _ in range(3):
        texts.append("".join(writer.stream("The fox")))
        assert texts[-1] == generate(model, tok, "The fox", max_tokens=6)
        loss, _ = model.loss(ids, np.ones(ids.shape, bool))
        loss.backward()
        optimizer.step()
    assert len(set(texts)) > 1


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_a_model_that_was_converted_writes(parts, dtype):
    model, tok = parts
    writer = TextGenerator(model, tok, max_tokens=4, temperature=0)
    first = "".join(writer.stream("The fox"))
    model.astype(dtype)
    assert "".join(writer.stream("The fox")) == first
    assert generate(model, tok, "The fox", max_tokens=np.uint8(4), temperature=0) == first


def replace_a_layer(model):
    attention = model.model.layers[0].self_attn
    attention.k_proj = mg.nn.Linear(*attention.k_proj.weight.shape[::-1], bias=False)


def replace_an_array(model):
    weight = model.model.layers[0].self_attn.k_proj.weight
    weight.data = -3 * weight.numpy()


@pytest.mark.parametrize("change", [lora.quantize, replace_a_layer, replace_an_array])
def test_after_a_change_of_the_model_everything_is_read_again(parts, monkeypatch, change):
    model, tok = parts
    writer = TextGenerator(model, tok, max_tokens=1)
    first = list(writer.stream("The fox sees the lazy dog"))
    old = weakref.ref(model.model.layers[0].self_attn.k_proj.weight.data)
    read = count_tokens(model, monkeypatch)
    assert list(writer.stream("The fox sees the lazy dog")) == first
    change(model)
    gc.collect()
    assert old() is None, "the generator keeps memory that the model does not use any more"
    list(writer.stream("The fox sees the lazy dog"))
    assert read == [1, len(writer.prompt_tokens)]  # one, because its logits are needed


def test_what_cannot_be_written_is_refused(parts):
    model, tok = parts
    with pytest.raises(ValueError, match="the prompt is empty"):
        generate(model, tok, "")
    with pytest.raises(ValueError, match="max_tokens"):
        generate(model, tok, "fox", max_tokens=0)
    with pytest.raises(ValueError, match="there is no role teacher"):
        generate(model, tok, [{"role": "teacher", "content": "fox"}])
    with pytest.raises(ValueError, match="made for texts of at most 256"):
        generate(model, tok, "fox " * 300)
    with pytest.raises(ValueError, match="the token 400 is outside of the model's vocabulary of"):
        next(TextGenerator(model, tok).tokens_after([5, 400]))


def test_a_prompt_that_is_refused_changes_nothing(parts):
    writer = TextGenerator(*parts, max_tokens=4)
    list(writer.stream("fox"))
    before = writer.prompt_tokens, writer.tokens, writer.finish_reason, writer.seconds
    with pytest.raises(ValueError, match="made for texts of at most 256"):
        list(writer.stream("fox " * 300))
    assert (writer.prompt_tokens, writer.tokens, writer.finish_reason, writer.seconds) == before


def test_the_tokens_of_a_row_are_a_prompt(parts):
    writer = TextGenerator(*parts, max_tokens=4)
    written = list(writer.tokens_after([5, 6]))
    assert list(writer.tokens_after(np.array([5, 6]))) == written
    assert writer.prompt_tokens == [5, 6]
    with pytest.raises(TypeError, match="float"):
        next(writer.tokens_after([5.5]))


def test_writing_ends_where_the_model_knows_no_more_positions(tmp_path):
    folder = tiny_folder(tmp_path / "base", max_position_embeddings=20, eos_token_id=None)
    model, tok = load_model(folder), tokenizer(folder)
    writer = TextGenerator(model, tok, max_tokens=100)
    list(writer.stream("The quick brown fox"))
    assert len(writer.prompt_tokens) + len(writer.tokens) == 20
    assert writer.finish_reason == "length"


def test_a_model_in_training_mode_writes_the_same_text(parts):
    model, tok = parts
    lora.attach(model, lora.LoRAConfig(rank=2, dropout=0.9), rng=np.random.default_rng(0))
    shake(model, np.random.default_rng(1))
    texts = []
    for mode in (False, True, True):
        model.train(mode)
        texts.append(generate(model, tok, "fox", temperature=0, max_tokens=8))
        assert model.training == mode
    assert len(set(texts)) == 1


def test_two_streams_of_one_generator_are_refused(parts):
    writer = TextGenerator(*parts, temperature=0, max_tokens=4)
    first, second = writer.tokens_after([5, 6]), writer.tokens_after([7])
    next(first)
    next(second)
    with pytest.raises(RuntimeError, match="has begun another text in the meantime"):
        next(first)
