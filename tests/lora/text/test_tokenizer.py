"""Tokenizers of folders and of GGUF files, against the tokens of the models' own tokenizers."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from lora.text.gguf_file import GGUFFile
from lora.text.tokenization import Tokenizer
from tests.fixtures.make_vocabularies import NAMES, cases
from tests.lora.text.models import TEXT, tiny_folder, tiny_gguf, tiny_tokenizer

FIXTURE = Path(__file__).parents[2] / "fixtures" / "text" / "vocabularies.json"

VOCABULARIES = "MINIGRAD_VOCABULARIES"
"""The environment variable with llama.cpp's folder `models`, for the complete vocabularies."""

TEXTS = [TEXT, "", " ", "\n\n \t x", "don't DON'T", "1234567", "日本語 🙂🙂", "<|im_end|>"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same tokenizer, of a folder and of a GGUF file."""
    path = tmp_path_factory.mktemp("files")
    folder = tiny_folder(path / "m")
    return folder, GGUFFile(tiny_gguf(path / "m.gguf", folder))


@pytest.fixture
def tokenizers(files):
    folder, file = files
    return Tokenizer.from_folder(folder), Tokenizer.from_gguf(file.metadata)


@pytest.fixture(params=["folder", "GGUF"])
def tokenizer(request, tokenizers):
    return tokenizers[request.param == "GGUF"]


def test_both_make_the_same_of_every_text(tokenizers):
    ours, theirs = tokenizers
    for text in TEXTS:
        for options in ({}, {"parse_special": True}):
            assert ours.encode(text, **options) == theirs.encode(text, **options)
    for name in ("eos_token", "eos_token_id", "bos_token", "vocab_size", "chat_template"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.eos_token, ours.eos_token_id, ours.bos_token_id) == ("<|im_end|>", 2, 0)


def test_decode_gives_back_the_text(tokenizer):
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(ValueError, match="there is no token 99999"):
        tokenizer.decode([99999])
    with pytest.raises(ValueError, match="there is no token -1"):
        tokenizer.decode([-1])


def test_special_tokens_in_a_text_are_text_unless_they_are_asked_for(tokenizer):
    assert tokenizer.encode("<|im_end|>", parse_special=True) == [2]
    assert 2 not in tokenizer.encode("a<|im_end|>b")
    assert tokenizer.encode("a<|im_end|>b", parse_special=True)[1] == 2
    rendered = tokenizer.render([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode(rendered, parse_special=True).count(1) == 2


def test_a_stream_gives_whole_characters(tokenizer):
    text = "naïve 日本語 🙂🏽 x" + TEXT
    ids = tokenizer.encode(text)
    parts = list(tokenizer.stream(ids))
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(parts)
    assert "".join(parts) == text
    assert len(parts) < len(ids)  # of the bytes of a character all but the last give nothing


def test_a_stream_goes_on_after_bytes_that_are_no_character(tokenizer):
    broken = tokenizer.encode("🙂")[:-1]
    ids = broken + tokenizer.encode("abc") + broken * 2 + tokenizer.encode(" 日 end")
    assert "".join(tokenizer.stream(ids)) == tokenizer.decode(ids)


def vocabulary(layout):
    """Return a tokenizer whose vocabulary is not one of bytes."""
    from tokenizers import Tokenizer as Tokens
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    every = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "▁", "▁a"]
    words = {word: i for i, word in enumerate(every)}
    made = Tokens(models.BPE(words, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(parts)
    if layout == "Llama 2":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    elif layout == "Gemma":
        made.normalizer = spaces
    elif layout == "Mistral":
        made.pre_tokenizer = pre_tokenizers.Metaspace()
    elif layout == "words":
        made = Tokens(models.WordLevel(words, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
    else:
        made = Tokens.from_str(tiny_tokenizer().to_str())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return made


@pytest.mark.parametrize("layout", ["Llama 2", "Mistral", "prefix"])
def test_a_folder_whose_tokenizer_puts_a_space_before_each_text_is_refused(tmp_path, layout):
    vocabulary(layout).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="puts a space before each text"):
        Tokenizer.from_folder(tmp_path)


def test_a_tokenizer_without_a_token_for_a_letter_is_refused(tmp_path):
    from tokenizers import Tokenizer as Tokens
    from tokenizers import models

    Tokens(models.BPE({"b": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="has no token for the letter a"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(ValueError, match="has no token for the letter a"):
        Tokenizer.from_gguf({"tokenizer.ggml.model": "gpt2"})


@pytest.mark.parametrize("layout", ["Gemma", "words"])
def test_a_stream_has_the_text_of_its_tokens_at_once(tmp_path, layout):
    vocabulary(layout).save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    rng = np.random.default_rng(0)
    texts = ["a é🙂 b", "b a\n a", "".join(rng.choice(list("ab é🙂ß"), 50)) + "a"]
    for text in texts:
        ids = tokenizer.encode(text)
        assert "".join(tokenizer.stream(ids)) == tokenizer.decode(ids)
        assert layout == "words" or tokenizer.decode(ids) == text


def test_tokens_around_a_text_are_added_if_the_model_has_them(files):
    metadata = dict(files[1].metadata)
    assert Tokenizer.from_gguf(metadata).encode("Hi", add_special_tokens=True)[0] != 0
    metadata |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    tokenizer = Tokenizer.from_gguf(metadata)
    inner = tokenizer.encode("Hi")
    assert tokenizer.encode("Hi", add_special_tokens=True) == [0, *inner, 2]
    assert tokenizer.encode_beginning("Hi") == [0, *inner]  # goes on, so it has no end
    assert tokenizer.encode_beginning("") == [0]
    del metadata["tokenizer.ggml.add_bos_token"], metadata["tokenizer.ggml.add_eos_token"]
    metadata["tokenizer.ggml.pre"] = "llama-bpe"  # which has a first token by default
    assert Tokenizer.from_gguf(metadata).encode("Hi", add_special_tokens=True)[0] == 0


@pytest.mark.parametrize("name", ["smaug-bpe", "dbrx"])
def test_llama_3s_rule_for_models_whose_texts_have_no_first_token(files, name):
    """SmolLM3 has the rule "smaug-bpe", and its texts do not begin with a token of their own."""
    metadata = {**files[1].metadata, "tokenizer.ggml.pre": name}
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.encode_beginning("Hi") == tokenizer.encode("Hi")
    metadata["tokenizer.ggml.add_bos_token"] = True
    assert Tokenizer.from_gguf(metadata).encode_beginning("Hi")[0] == 0


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_the_models_own_tokenizers(name):
    """With the part of each vocabulary that matters for the texts."""
    fixture = json.loads(FIXTURE.read_text(encoding="utf-8"))
    part = fixture[name]
    tokenizer = Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": name,
            "tokenizer.ggml.tokens": part["tokens"],
            "tokenizer.ggml.merges": part["merges"],
        }
    )
    numbers = {token: i for i, token in enumerate(part["tokens"])}
    for text, expected in zip(fixture["texts"], part["expected"], strict=True):
        assert tokenizer.encode(text) == [numbers[token] for token in expected.split()], text
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.full
@pytest.mark.skipif(VOCABULARIES not in os.environ, reason=f"{VOCABULARIES} names no folder")
@pytest.mark.parametrize("name", [*NAMES, "starcoder", "command-r", "mpt"])
def test_complete_vocabularies(name):
    folder = Path(os.environ[VOCABULARIES])
    tokenizer = Tokenizer.from_gguf(GGUFFile(folder / f"ggml-vocab-{name}.gguf").metadata)
    texts, expected = cases(folder, name)
    for text, ids in zip(texts, expected, strict=False):  # the last text has no tokens
        assert tokenizer.encode(text) == ids


@pytest.mark.parametrize("rule", ["tekken", "default", None])
def test_rules_without_an_oracle_divide_words_as_llama_cpp_says(files, rule):
    metadata = {**files[1].metadata, "tokenizer.ggml.pre": rule}
    metadata["tokenizer.ggml.merges"] = ["a b", "A b", "1 2", "12 3", "123 4", "+ +", "a +"]
    metadata["tokenizer.ggml.tokens"] = [
        *metadata["tokenizer.ggml.tokens"][:260],
        *("ab", "Ab", "12", "123", "1234", "++", "a+"),
    ]
    tokenizer = Tokenizer.from_gguf(metadata)
    words = [tokenizer.decode([i]) for i in tokenizer.encode("ab Ab 1234 a++")]
    digits = ["1", "2", "3", "4"] if rule == "tekken" else ["123", "4"]
    assert words == ["ab", " ", "Ab", " ", *digits, " ", "a", "++"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "llama"}, "SentencePiece"),
        ({"model": "bert"}, "'bert'"),
        ({"pre": "gemma4"}, "'gemma4'"),
        ({"merges": ["a"]}, "vocabulary is wrong"),
        ({"merges": ["q zebra"]}, "vocabulary is wrong"),
        ({"tokens": None}, "vocabulary is wrong"),
    ],
)
def test_vocabularies_that_are_not_supported_are_named(files, change, message):
    metadata = {**files[1].metadata}
    metadata |= {f"tokenizer.ggml.{name}": value for name, value in change.items()}
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_gguf(metadata)


def test_a_folder_without_a_tokenizer_or_with_a_broken_one(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json.* is not a tokenizer"):
        Tokenizer.from_folder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.json"):
        Tokenizer.from_folder(folder)


def test_merges_that_crash_the_package_tokenizers_are_a_broken_file(tmp_path, monkeypatch, capfd):
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    with pytest.raises(ValueError, match=r"tokenizer\.json' is not a tokenizer"):
        Tokenizer.from_folder(tmp_path)
    metadata = {"tokens": ["a", "b"], "merges": ["a b"], "model": "gpt2"}
    metadata = {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}
    with pytest.raises(ValueError, match="the file's vocabulary is wrong"):
        Tokenizer.from_gguf(metadata)
    capfd.readouterr()  # Rust prints where it failed

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenizers.models.BPE", stop)
    with pytest.raises(KeyboardInterrupt):
        Tokenizer.from_gguf(metadata)


def test_a_missing_package_is_no_broken_file(files, monkeypatch):
    folder, file = files
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match="tokenizers is not installed; python -m pip install"):
        Tokenizer.from_folder(folder)
    with pytest.raises(ImportError, match="tokenizers is not installed; python -m pip install"):
        Tokenizer.from_gguf(file.metadata)


def test_a_gguf_file_can_have_several_chat_templates_by_name(tmp_path):
    folder, file = tiny_folder(tmp_path / "folder"), tmp_path / "m.gguf"
    metadata = {**GGUFFile(tiny_gguf(file, folder)).metadata, "tokenizer.chat_template": "D"}
    turns = [{"role": "user", "content": "Hi"}]
    alone = Tokenizer.from_gguf(metadata)
    assert alone.render(turns, tools=[{}]) == "D"
    assert json.loads(alone.files()["tokenizer_config.json"])["chat_template"] == "D"
    metadata |= {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "T"}
    several = Tokenizer.from_gguf(metadata)
    for name, content in several.files().items():
        (folder / name).write_bytes(content)
    for tokenizer in (several, Tokenizer.from_folder(folder)):  # as of a merged model
        assert tokenizer.render(turns) == tokenizer.chat_template == "D"
        assert tokenizer.render(turns, tools=[{}]) == "T"
    del metadata["tokenizer.chat_template"]
    with pytest.raises(ValueError, match=r"'tool_use'.* none is called default"):
        Tokenizer.from_gguf(metadata).render(turns)


def test_where_the_chat_template_is(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())

    def template(found):
        path.write_text(json.dumps({**config, "chat_template": found}))
        return Tokenizer.from_folder(folder).chat_template

    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert template(named) == "D"
    turns = [{"role": "user", "content": "x"}]
    for found, message in ((named[:1], "'tool_use'.* none is called"), ("{% for %}", "jinja2")):
        path.write_text(json.dumps({**config, "chat_template": found}))
        tokenizer = Tokenizer.from_folder(folder)  # texts that are not conversations need none
        assert tokenizer.encode("fox")
        with pytest.raises(ValueError, match=message):
            tokenizer.render(turns)
    assert template(None) is None
    with pytest.raises(ValueError, match="no chat template"):
        Tokenizer.from_folder(folder).render([{"role": "user", "content": "x"}])
    (folder / "chat_template.jinja").write_text("J", encoding="utf-8")
    assert template("T") == "J"
    (folder / "chat_template.jinja").write_bytes(b"J\xff")
    with pytest.raises(ValueError, match=r"chat_template\.jinja' is not UTF-8, at byte 2"):
        template("T")


def test_templates_by_name_may_be_files(tmp_path):
    folder = tiny_folder(tmp_path / "m")  # tokenizer_config.json has a template too
    turns, tools = [{"role": "user", "content": "x"}], [{"name": "t"}]
    (folder / "additional_chat_templates").mkdir()
    for name in ("chat_template", "additional_chat_templates/tool_use"):
        (folder / f"{name}.jinja").write_text(f"{name}!", encoding="utf-8")
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.render(turns) == tokenizer.chat_template == "chat_template!"
    assert tokenizer.render(turns, tools=tools) == "additional_chat_templates/tool_use!"
    (folder / "additional_chat_templates" / "tool_use.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"tool_use\.jinja' is not UTF-8, at byte 1"):
        Tokenizer.from_folder(folder)


def test_tools_have_a_template_of_their_own_if_there_is_one_for_them():
    turns = [{"role": "user", "content": "x"}]
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    for templates, written in ((named, "DTD"), (named[1:], "DDD"), ("S", "SSS")):
        tokenizer = Tokenizer(tiny_tokenizer(), {}, templates)
        assert "".join(tokenizer.render(turns, tools=t) for t in (None, [], None)) == written


@pytest.mark.parametrize("key", ["extra_special_tokens", "model_specific_special_tokens"])
def test_a_template_has_extra_tokens_by_their_names(tmp_path, key):
    folder = tiny_folder(tmp_path / "m")
    named = {"my_token": "<|im_start|>", "image": {"content": "<|im_end|>"}}
    template = "{{ my_token + image }}{{ other_token }}{{ eos_token }}"
    config = {"eos_token": "<|im_end|>", "other_token": "<|im_end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, key: named}))
    rendered = Tokenizer.from_folder(folder).render([{"role": "user", "content": "x"}])
    assert rendered == "<|im_start|>" + 3 * "<|im_end|>"


@pytest.mark.parametrize(
    ("generation", "model", "expected"),
    [
        ({"eos_token_id": [3, 2]}, {"eos_token_id": 2}, 3),
        ({}, {"eos_token_id": 2}, 2),
        (None, {"eos_token_id": [2]}, 2),
        (None, {"eos_token_id": None}, None),
        (None, {"eos_token_id": 10**6}, None),
        (None, {"eos_token_id": -1}, None),
        (None, {"eos_token_id": []}, None),
    ],
)
def test_the_end_of_a_text_is_the_models_if_the_tokenizers_files_name_none(
    generation, model, expected, tmp_path
):
    folder = tiny_folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | model))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    with_files = Tokenizer.from_folder(folder)
    (folder / "tokenizer_config.json").unlink()
    without = Tokenizer.from_folder(folder)
    assert with_files.eos_token == "<|im_end|>"
    assert without.eos_token_id == expected
    assert (without.eos_token is None) == (expected is None)


def test_special_tokens_may_be_in_a_file_of_their_own(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (2, None)
    config = {"eos_token": "<|im_start|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.from_folder(folder).eos_token_id == 2
    config["added_tokens_decoder"] = {"1": {"content": "<|im_start|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.from_folder(folder).eos_token_id == 1  # as in transformers


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"400": {"content": "<think>"}}}),
        ("tokenizer_config.json", {"extra_special_tokens": {"image_token": "<think>"}}),
        ("tokenizer_config.json", {"extra_special_tokens": ["<think>"]}),
        ("tokenizer_config.json", {"additional_special_tokens": [{"content": "<think>"}]}),
        ("special_tokens_map.json", {"additional_special_tokens": ["<think>", "<|im_end|>"]}),
        ("tokenizer_config.json", {"model_specific_special_tokens": {"image": "<think>"}}),
        ("tokenizer_config.json", {"eos_token": "<think>"}),
        ("special_tokens_map.json", {"bos_token": {"content": "<think>"}}),
        ("added_tokens.json", {"<think>": 400, "<|im_end|>": 2}),
    ],
)
def test_a_token_that_the_vocabulary_lacks_is_named(tmp_path, file, content):
    folder = tiny_folder(tmp_path / "m")
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer\.json' lacks '<think>', .*save_pretrained"):
        Tokenizer.from_folder(folder)
    text = json.dumps(content).replace("<think>", "<|im_start|>")
    (folder / file).write_text(text)
    assert Tokenizer.from_folder(folder).encode("<|im_start|>", parse_special=True) == [1]


def test_a_text_with_half_a_character_is_refused(tokenizer):
    with pytest.raises(ValueError, match="character 3 of 3 of the text is half of one, or a byte"):
        tokenizer.encode("fo\udcff")
    with pytest.raises(TypeError, match="the text is a string, not 3"):
        tokenizer.encode(3)


def test_configurations_of_any_kind_are_read_or_refused(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    for key in [*config, "pad_token", "added_tokens_decoder"]:
        for junk in (None, 1, "x", [], ["x"], [[]], [{}], {}, {"content": 1}, True):
            path.write_text(json.dumps({**config, key: junk}))
            with suppress(ValueError):
                Tokenizer.from_folder(folder).encode("x", add_special_tokens=True)
