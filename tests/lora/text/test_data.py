"""Rows of JSONL files as tokens: which of them count, what is cut, left out or refused."""

import json
import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from lora.text import load_model, loading
from lora.text.conversation import UNREAD
from lora.text.data import Row, data_files, micro_batches, read_rows
from lora.text.tokenization import Tokenizer
from tests.lora.text.models import TEMPLATE, tiny_tokenizer

THINKING = """{% for message in messages %}
{% set is_last = loop.last %}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' and is_last %}{{ '(thinks) ' }}{% endif %}
{{- message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""


REASONING = """{{ '<|endoftext|>' }}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '[user]' + message.content }}{% endif %}
{%- if message.role == 'assistant' -%}
{{ '[assistant]' + message.content.split('</think>')[-1] + '<|im_end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[assistant]<think>\n' }}{% endif %}
"""
TEMPLATES = Path(__file__).parents[2] / "fixtures/text/templates"


def tokenizer(template=TEMPLATE, **special):
    named = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", **special}
    return Tokenizer(tiny_tokenizer(), named, template)


def written(path, *rows):
    file = path / "rows.jsonl"
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    file.write_bytes(b"\n".join(lines) + b"\n")
    return file


def turns(*contents, roles=("user", "assistant")):
    pairs = zip([roles[i % 2] for i in range(len(contents))], contents, strict=True)
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def parts(row, tok):
    """The text of a row, and that of what counts."""
    return tok.decode(row.ids), tok.decode(row.ids[row.counted])


# ----------------------------------------------------------------------------------------------
# What counts
# ----------------------------------------------------------------------------------------------


def test_a_text_counts_from_its_second_token_to_the_end_of_text(tmp_path):
    tok = tokenizer()
    (row,) = read_rows(written(tmp_path, {"text": "the quick fox"}), tok)
    assert row.ids.tolist() == [*tok.encode("the quick fox"), tok.eos_token_id]
    assert row.counted.tolist() == [False] + [True] * (len(row.ids) - 1)
    assert row.ids.dtype == np.int64
    assert row.counted.dtype == np.bool_


def test_prompt_and_completion_are_encoded_apart_and_the_completion_counts(tmp_path):
    tok = tokenizer()
    file = written(tmp_path, {"prompt": "the qu", "completion": "ick fox"})
    (row,) = read_rows(file, tok)
    prompt, completion = tok.encode("the qu"), [*tok.encode("ick fox"), tok.eos_token_id]
    assert prompt + completion[:-1] != tok.encode("the quick fox")
    assert row.ids.tolist() == prompt + completion
    assert row.counted.tolist() == [False] * len(prompt) + [True] * len(completion)
    (row,) = read_rows(file, tok, train_on_prompts=True)
    assert row.counted.tolist() == [False] + [True] * (len(row.ids) - 1)


def test_special_tokens_in_raw_text_are_characters_and_those_of_a_template_are_tokens(tmp_path):
    tok = tokenizer()
    (row,) = read_rows(written(tmp_path, {"prompt": "a<|im_end|>", "completion": "b"}), tok)
    assert row.ids.tolist().count(tok.eos_token_id) == 1
    (row,) = read_rows(written(tmp_path, turns("a", "b")), tok)
    assert row.ids.tolist().count(tok.eos_token_id) == 2


def test_a_beginning_of_text_comes_where_the_tokenizer_has_one_and_an_end_once(tmp_path):
    from tokenizers import Tokenizer as Tokens
    from tokenizers.processors import TemplateProcessing

    tokens = Tokens.from_str(tiny_tokenizer().to_str())
    around = [("<|endoftext|>", 0), ("<|im_end|>", 2)]
    tokens.post_processor = TemplateProcessing("<|endoftext|> $A <|im_end|>", special_tokens=around)
    tok = Tokenizer(tokens, {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}, TEMPLATE)
    rows = [{"text": "the fox"}, {"prompt": "the", "completion": " fox"}, turns("a", "b")]
    text, pair, chat = read_rows(written(tmp_path, *rows), tok)
    assert text.ids.tolist() == [0, *tok.encode("the fox"), 2]
    assert pair.ids.tolist() == [0, *tok.encode("the"), *tok.encode(" fox"), 2]
    assert chat.ids[0] == tok.encode("<|im_start|>", parse_special=True)[0]


def test_all_answers_of_a_conversation_count(tmp_path):
    tok = tokenizer()
    conversation = turns("hi", "the fox", "and?", "the dog")
    conversation["messages"].insert(0, {"role": "system", "content": "one"})
    rows = read_rows(written(tmp_path, conversation), tok)
    whole, counted = parts(rows[0], tok)
    assert whole == tok.render(conversation["messages"])
    assert counted == "the fox<|im_end|>\nthe dog<|im_end|>\n"
    assert rows.notes == {}


def test_the_prompt_has_the_tokens_that_generation_begins_from(tmp_path):
    tok = tokenizer()
    (row,) = read_rows(written(tmp_path, turns("why?", "\n\n  because")), tok)
    prompt = tok.render([{"role": "user", "content": "why?"}], add_generation_prompt=True)
    begin = tok.encode(prompt, parse_special=True)
    assert row.ids[: len(begin)].tolist() == begin
    assert row.counted.tolist() == [False] * len(begin) + [True] * (len(row.ids) - len(begin))


def test_only_the_last_answer_counts_where_the_template_changes_earlier_ones(tmp_path):
    tok = tokenizer(THINKING)
    rows = read_rows(written(tmp_path, turns("hi", "a", "and?", "b"), turns("hi", "c")), tok)
    assert parts(rows[0], tok)[1] == "(thinks) b<|im_end|>\n"
    assert parts(rows[1], tok)[1] == "(thinks) c<|im_end|>\n"
    assert list(rows.notes.values()) == [[1]]
    assert "last answer only, since the chat template changes earlier ones; to train " in repr(rows)


def test_reasoning_that_the_template_drops_follows_the_generation_prompt(tmp_path):
    tok, answer = tokenizer(REASONING), "<think>\nwhy not\n</think>\n\nthe fox"
    rows = [turns("hi", answer), turns("hi", answer, "and?", f"\n{answer}")]
    one, two = read_rows(written(tmp_path, *rows), tok)
    then = "\n\nthe fox<|im_end|>[user]and?"
    for found, row, earlier in (one, rows[0], ""), (two, rows[1], then):
        messages = row["messages"][:-1]
        prompt = tok.render(messages, add_generation_prompt=True)
        assert parts(found, tok) == (
            f"{prompt}why not\n</think>\n\nthe fox<|im_end|>",
            "why not\n</think>\n\nthe fox<|im_end|>",
        )
        assert earlier in prompt
        begin = tok.encode(prompt, parse_special=True)
        assert found.ids[: len(begin)].tolist() == begin


def test_an_answer_without_the_reasoning_that_the_prompt_opens_is_noted(tmp_path):
    tok = tokenizer(REASONING)
    rows = read_rows(written(tmp_path, turns("hi", "the fox")), tok)
    whole = "<|endoftext|>[user]hi[assistant]the fox<|im_end|>"
    assert parts(rows[0], tok) == (whole, "the fox<|im_end|>")
    note = "with an answer without '<think>', with which the generation prompt ends"
    assert rows.notes == {note: [1]}


def test_a_message_that_the_template_does_not_write_is_noted(tmp_path):
    note = "with a message of the role {!r} that the chat template does not write in full"
    chat = turns("hi", "the fox")
    chat["messages"].insert(0, {"role": "developer", "content": "be brief"})
    rows = read_rows(written(tmp_path, turns("hi", "a"), chat), tokenizer(REASONING))
    assert rows.notes[note.format("developer")] == [2]
    every_role = tokenizer((TEMPLATES / "smollm2.jinja").read_text())
    assert read_rows(written(tmp_path, chat), every_role).notes == {}
    chat = turns("hi", "<think>\nwhy not\n</think>\n\nthe fox")
    rows = read_rows(written(tmp_path, chat), tokenizer(REASONING), train_on_prompts=True)
    assert rows.notes == {note.format("assistant"): [1]}


CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "abcdefghi",
            "type": "function",
            "function": {"name": "sky", "arguments": '{"at": "noon"}'},
        }
    ],
}
TOOLS = [{"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}]
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": '{"colour": "blue"}'}
QUESTION, ANSWER = turns("the sky?", "the sky is blue")["messages"]


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (
            "qwen2.5",
            '<tool_call>\n{"name": "sky", "arguments": {"at": "noon"}}\n</tool_call><|im_end|>\n'
            "the sky is blue<|im_end|>\n",
        ),
        (
            "llama3",
            '{"name": "sky", "parameters": {"at": "noon"}}<|eot_id|>the sky is blue<|eot_id|>',
        ),
        (
            "mistral",
            '[TOOL_CALLS][{"name": "sky", "arguments": {"at": "noon"}, "id": "abcdefghi"}]'
            "<|im_end|>the sky is blue<|im_end|>",
        ),
        ("qwen3", "<think>\n\n</think>\n\nthe sky is blue<|im_end|>\n"),
    ],
)
@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
def test_calls_of_tools_are_answers_and_the_template_gets_the_tools(
    tmp_path, template, answers, tools
):
    tok = tokenizer((TEMPLATES / f"{template}.jinja").read_text())
    row = {"messages": [QUESTION, CALL, RESULT, ANSWER], "tools": tools}
    rows = read_rows(written(tmp_path, row), tok)
    call = {**CALL["tool_calls"][0], "function": {"name": "sky", "arguments": {"at": "noon"}}}
    asked = [QUESTION, {**CALL, "content": "", "tool_calls": [call]}, RESULT, ANSWER]
    assert parts(rows[0], tok) == (tok.render(asked, tools=TOOLS), answers)
    unread = {note for note in rows.notes if "which is not read" in note}
    ids_are_read = template == "mistral"
    assert unread == set() if ids_are_read else {UNREAD.format("messages.tool_call_id")}


def test_a_call_that_the_template_does_not_write_is_an_empty_answer(tmp_path):
    tok = tokenizer((TEMPLATES / "smollm2.jinja").read_text())
    rows = read_rows(written(tmp_path, {"messages": [QUESTION, CALL, RESULT, ANSWER]}), tok)
    assert parts(rows[0], tok)[1] == "the sky is blue<|im_end|>\n"
    unread = "messages.tool_call_id", "messages.tool_calls"
    empty = "with an empty answer, which does not count"
    assert rows.notes == {note: [1] for note in [*map(UNREAD.format, unread), empty]}


def test_the_template_gets_all_keys_of_a_message(tmp_path):
    tok = tokenizer((TEMPLATES / "qwen3.jinja").read_text())
    row = {"messages": [QUESTION, {**ANSWER, "reasoning_content": "it is noon"}]}
    rows = read_rows(written(tmp_path, row), tok)
    answer = "<think>\nit is noon\n</think>\n\nthe sky is blue<|im_end|>\n"
    assert parts(rows[0], tok)[1] == answer
    assert rows.notes == {}


def test_answers_that_do_not_count_beside_others_are_noted(tmp_path):
    tok = tokenizer()
    first = turns("hello there", "hi", "the fox", roles=("assistant", "user"))
    rows = read_rows(written(tmp_path, first, turns("hi", " ", "and?", "the dog")), tok)
    assert [parts(row, tok)[1] for row in rows] == ["the fox<|im_end|>\n", "the dog<|im_end|>\n"]
    assert rows.notes == {
        "with an answer as the first message, which does not count": [1],
        "with an empty answer, which does not count": [2],
    }


def test_an_answer_with_weight_0_does_not_count(tmp_path):
    tok = tokenizer()
    chat = turns("hi", "the fox", "and?", "the dog")
    whole = tok.render(chat["messages"])
    for turn, weight in zip(chat["messages"][1::2], (0, 1), strict=True):
        turn["weight"] = weight
    rows = read_rows(written(tmp_path, chat), tok)
    assert parts(rows[0], tok) == (whole, "the dog<|im_end|>\n")
    assert rows.notes == {}


def test_prompt_and_completion_can_be_messages(tmp_path):
    tok = tokenizer()
    said = turns("hi", "the fox", "and?", "the dog")["messages"]
    rows = read_rows(written(tmp_path, {"prompt": said[:3], "completion": said[3:]}), tok)
    assert parts(rows[0], tok) == (tok.render(said), "the dog<|im_end|>\n")
    assert rows.notes == {}
    row = {"prompt": said[:3], "completion": "the dog"}
    with pytest.raises(ValueError, match=r"line 1: prompt is a string, not \["):
        read_rows(written(tmp_path, row), tok)
    row = {"prompt": ["hi"], "completion": said[3:]}
    with pytest.raises(ValueError, match="line 1: message 1 has role and content, not 'hi'"):
        read_rows(written(tmp_path, row), tok)


def test_content_can_be_a_list_of_texts(tmp_path):
    tok, chat = tokenizer(), turns("hi there", "the fox")
    split = [{"type": "text", "text": "hi "}, {"type": "text", "text": "there"}]
    listed = {"messages": [{"role": "user", "content": split}, chat["messages"][1]]}
    rows = read_rows(written(tmp_path, chat, listed), tok)
    assert rows[0].ids.tolist() == rows[1].ids.tolist()
    assert rows.notes == {}


def test_a_template_that_hides_where_the_answer_is_is_refused(tmp_path):
    tok = tokenizer("{{ messages | length }}{{ messages[-1]['content'] }}")
    file = written(tmp_path, turns("hi", "a"))
    with pytest.raises(ValueError, match="line 1: the chat template does not write message 2"):
        read_rows(file, tok)
    (row,) = read_rows(file, tok, train_on_prompts=True)
    assert parts(row, tok)[0] == "2a"


def test_a_pair_can_be_a_conversation(tmp_path):
    tok = tokenizer()
    pair, chat = {"prompt": "hi", "completion": "fox"}, turns("hi", "fox")
    as_chat, messages = read_rows(written(tmp_path, pair, chat), tok, as_chat=True)
    assert as_chat.ids.tolist() == messages.ids.tolist()
    assert as_chat.counted.tolist() == messages.counted.tolist()


# ----------------------------------------------------------------------------------------------
# What is cut, left out and refused
# ----------------------------------------------------------------------------------------------


def test_long_rows_are_cut_and_left_out_where_no_answer_is_left(tmp_path):
    tok = tokenizer()
    rows = [
        {"prompt": "a", "completion": "the quick brown fox jumps over the lazy dog"},
        {"prompt": "the quick brown fox jumps over the lazy dog", "completion": "a"},
        {"prompt": "a", "completion": "b"},
    ]
    file = written(tmp_path, *rows)
    found = read_rows(file, tok, max_length=6)
    assert [len(row.ids) for row in found] == [6, 3]
    assert found.notes == {
        "cut to 6 tokens": [1],
        "left out, with no answer up to token 6": [2],
    }
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: the row has \d+ tokens"):
        read_rows(file, tok, max_length=6, long_rows="refuse")
    assert len(read_rows(file, tok)) == 3


def test_one_row_and_one_token_are_no_plural(tmp_path):
    found = read_rows(written(tmp_path, {"text": "the the the"}), tokenizer(), max_length=2)
    assert "1 row, 2 tokens, of which 1 counts\n  1 cut to 2 tokens (line 1)" in repr(found)
    with pytest.raises(
        ValueError, match=r"0 tokens, of which 0 count\n.* up to token 1 \(line 1\)"
    ):
        read_rows(written(tmp_path, {"text": "the the the"}), tokenizer(), max_length=1)
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"x")
    with pytest.raises(ValueError, match="at character 1 of 1"):
        read_rows(file, tokenizer())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_not_called_missing(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    message = "pipe' is neither a file nor a folder, but perhaps a pipe; save "
    for call in (data_files, load_model, loading.tokenizer):
        with pytest.raises(FileNotFoundError, match=message):
            call(tmp_path / "pipe")


@pytest.mark.parametrize(
    "row",
    [
        {"text": ""},
        {"prompt": "a", "completion": " \n"},
        turns("hi"),
        turns("hi", " "),
        turns("hi", "you", roles=("assistant", "user")),
    ],
)
def test_rows_without_an_answer_are_left_out_and_counted(tmp_path, row):
    found = read_rows(written(tmp_path, row, {"text": "the fox"}, row), tokenizer())
    assert len(found) == 1
    assert found.notes == {"left out, without an answer": [1, 3]}
    assert "2 left out, without an answer (lines 1, 3)" in repr(found)
    with pytest.raises(ValueError, match="nothing is left, and a row with an answer is needed"):
        read_rows(written(tmp_path, row), tokenizer())


@pytest.mark.parametrize("first", [b'{"text": "the fox"}', b"", b" \r"])
def test_empty_lines_and_a_byte_order_mark_are_no_rows(tmp_path, first):
    file = written(tmp_path, b"\xef\xbb\xbf" + first, b"", b"  ", b'{"text": "the fox"}', b"")
    assert len(read_rows(file, tokenizer())) == 1 + bool(first.strip())


def test_a_blank_completion_counts_where_everything_does(tmp_path):
    tok, row = tokenizer(), {"prompt": "the fox", "completion": " \n"}
    (found,) = read_rows(written(tmp_path, row), tok, train_on_prompts=True)
    assert parts(found, tok)[0] == "the fox \n<|im_end|>"


def test_other_keys_are_not_read_and_that_is_said(tmp_path):
    file = written(tmp_path, {"text": "the fox"}, {"id": 3, "text": "the fox", "source": "web"})
    first, second = read_rows(file, tokenizer())
    assert first.ids.tolist() == second.ids.tolist()
    notes = read_rows(file, tokenizer()).notes
    assert notes == {UNREAD.format(key): [2] for key in ("id", "source")}
    chat = turns("hi", "the fox")
    more = [{**turn, "name": "x", "refusal": None} for turn in chat["messages"]]
    rows = read_rows(written(tmp_path, chat, {"messages": more, "tools": []}), tokenizer())
    assert rows[0].ids.tolist() == rows[1].ids.tolist()
    others = "messages.name", "messages.refusal", "tools"
    assert rows.notes == {UNREAD.format(key): [2] for key in others}


def test_a_key_in_a_note_does_not_control_the_terminal(tmp_path):
    found = read_rows(written(tmp_path, {"text": "the fox", "x\x1b[31m\n": 1}), tokenizer())
    assert list(found.notes) == [r"with the key 'x\x1b[31m\n', which is not read"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b'{"text": "the', "not JSON.* at character 10 of 13; each row is one line"),
        (b'{"text": ', "not JSON.* at its end"),
        (b"[1, 2]", "an object of JSON in one line"),
        (b'{"text": "\xff"}', "byte 11 of the line is not UTF-8; write the file again"),
        (b'{"text": "\\ud800"}', "character 1 of 1 of text is half of one"),
        (b'{"text": "a", "text": "b"}', "the row has the same name twice"),
        (b"[" * 100_000, "recursion|JSON"),
        ({"text": 3}, "text is a string, not 3"),
        ({"prompt": "a"}, "this one has 'prompt'"),
        (
            {"text": "a", "messages": []},
            "one of text, messages, or prompt with completion; this one has 'text', 'messages'",
        ),
        ({"txt": "a"}, r"has 'txt' \(did you mean 'text'\?\)"),
        ({}, "no keys"),
        ({"prompt": "a", "completion": None}, "completion is a string, not None"),
        ({"messages": "hi"}, "a list of turns, not 'hi'"),
        ({"messages": []}, "a list of turns"),
        ({"messages": ["hi"]}, "message 1 has role and content, not 'hi'"),
        ({"messages": [{"role": "user", "text": "a"}]}, "message 1 has role and content"),
        ({"messages": [{"role": "human", "content": "a"}]}, "message 1: the role is one of"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "message 1: content is a string"),
        ({"messages": [{"role": "user", "content": []}]}, "message 1: content is a string"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "content is a string, or a list"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "content is a string, or a list of .*, not .*image",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "the text of a part is a string, not 1",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]},
            "message 1: weight is 0 or 1, not 0.5",
        ),
        (
            {"messages": [QUESTION, {"role": "assistant", "tool_calls": ["sky"]}]},
            r"message 2: tool_calls are a list of .*function.*, not \['sky'\]",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "sky", "arguments": "at noon"}}],
                    }
                ]
            },
            "message 1: the arguments of 'sky' are not JSON",
        ),
        ({"messages": [QUESTION, ANSWER], "tools": "sky"}, "tools are not JSON"),
        ({"messages": [QUESTION, ANSWER], "tools": {"name": 1}}, "tools are a list of"),
        (
            {"conversations": [{"from": "human", "value": "hi"}]},
            "rename conversations to messages, and in each of them from to role",
        ),
    ],
)
def test_what_is_no_row_is_refused_with_its_line(tmp_path, row, message):
    file = written(tmp_path, {"text": "the fox"}, b"", row, {"text": "a"})
    with pytest.raises(ValueError, match=f"line 3: .*({message})"):
        read_rows(file, tokenizer())


def test_a_token_outside_of_the_vocabulary_is_refused(tmp_path):
    tok = tokenizer()
    file = written(tmp_path, {"text": "the fox"})
    largest = max(read_rows(file, tok)[0].ids)
    assert len(read_rows(file, tok, vocab_size=largest + 1)) == 1
    with pytest.raises(
        ValueError, match=f"line 1: the token {largest} is outside .* of {largest};"
    ):
        read_rows(file, tok, vocab_size=int(largest))


def test_a_conversation_without_a_template_is_refused(tmp_path):
    with pytest.raises(ValueError, match="line 1: this model has no chat template"):
        read_rows(written(tmp_path, turns("a", "b")), tokenizer(None))


def test_impossible_options_are_refused(tmp_path):
    file = written(tmp_path, {"text": "the fox"})
    with pytest.raises(ValueError, match="max_length must be a positive integer"):
        read_rows(file, tokenizer(), max_length=0)
    with pytest.raises(ValueError, match="'cut' or 'refuse', not 'drop'"):
        read_rows(file, tokenizer(), long_rows="drop")


# ----------------------------------------------------------------------------------------------
# Files and micro-batches
# ----------------------------------------------------------------------------------------------


def test_data_are_a_file_or_a_folder(tmp_path):
    file = written(tmp_path, {"text": "a"})
    assert data_files(file) == {"train": file}
    with pytest.raises(FileNotFoundError, match=r"none of train\.jsonl.*there is rows\.jsonl"):
        data_files(tmp_path)
    for name in ("valid", "train"):
        (tmp_path / f"{name}.jsonl").touch()
    assert list(data_files(tmp_path)) == ["train", "valid"]
    with pytest.raises(FileNotFoundError, match="missing"):
        data_files(tmp_path / "missing")


def test_a_bar_shows_how_much_of_a_file_is_read(tmp_path, monkeypatch):
    class Bar:
        def __init__(self, **options):
            self.options, self.done = options, 0
            made.append(self)

        def update(self, count):
            self.done += count

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    made = []
    monkeypatch.setattr("lora.text.data.progress_bar", Bar)
    file = written(tmp_path, *[{"text": "the fox"}] * 9)
    for shown in (True, False):
        read_rows(file, tokenizer(), progress=shown)
        assert made[-1].options["shown"] is shown
        assert made[-1].options["total"] == made[-1].done == file.stat().st_size


def test_the_digest_is_that_of_the_bytes(tmp_path):
    first = read_rows(written(tmp_path, {"text": "the fox"}), tokenizer()).digest
    assert read_rows(written(tmp_path, {"text": "the fox"}), tokenizer()).digest == first
    assert read_rows(written(tmp_path, {"text": "the dog"}), tokenizer()).digest != first


def lengths(seed=0, count=41):
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        size = int(rng.integers(2, 30))
        rows.append(Row(np.full(size, number), np.arange(size) >= size // 2))
    return rows


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_micro_batches_have_every_row_once_and_no_padding(batch_size):
    rows = lengths()
    made = micro_batches(rows, batch_size, np.random.default_rng(0))
    assert len(made) == -(-len(rows) // batch_size)
    seen = []
    for ids, counted, divided in made:
        assert ids.shape == counted.shape
        assert len(ids) == (len(divided) if len(set(divided)) == 1 else 1)
        parts = (np.split(x.ravel(), np.cumsum(divided)[:-1]) for x in (ids, counted))
        for row, marks in zip(*parts, strict=True):
            seen.append(row[0])
            np.testing.assert_array_equal(row, rows[row[0]].ids)
            np.testing.assert_array_equal(marks, rows[row[0]].counted)
    assert sorted(seen) == list(range(len(rows)))
    sizes = [sorted(divided) for *_, divided in made]
    assert all(a[-1] <= b[0] or b[-1] <= a[0] for a, b in combinations(sizes, 2))


def test_the_order_of_micro_batches_follows_the_seed():
    def made(seed):
        batches = micro_batches(lengths(), 4, np.random.default_rng(seed))
        return [ids.tolist() for ids, *_ in batches]

    assert made(0) == made(0) != made(1)
    assert [len(ids[0]) for ids in made(0)] != sorted(len(ids[0]) for ids in made(0))


def rows_that_count(*marks):
    """Rows with other tokens each."""
    starts = np.cumsum([1, *map(len, marks)])
    return [
        Row(np.arange(start, start + len(each)), np.array(each, bool))
        for start, each in zip(starts, marks, strict=False)
    ]


def test_a_micro_batch_ends_each_row_after_its_last_token_that_counts():
    rows = rows_that_count([0, 0, 1, 0, 0], [0, 1, 0, 1, 0])
    ((short, marks, divided),) = micro_batches(rows, 2, np.random.default_rng(1))
    order = short[0, 0] == 1
    assert sorted(short[0].tolist()) == [1, 2, 3, 6, 7, 8, 9]
    assert short[0].tolist() == ([1, 2, 3, 6, 7, 8, 9] if order else [6, 7, 8, 9, 1, 2, 3])
    assert short[marks].tolist() == ([3, 7, 9] if order else [7, 9, 3])
    assert divided == ([3, 4] if order else [4, 3])


def test_rows_of_one_length_stay_an_array_of_rows():
    rows = rows_that_count([0, 0, 0, 1, 0], [0, 0, 1, 1, 0])
    ((short, marks, divided),) = micro_batches(rows, 2, np.random.default_rng(0))
    assert short[np.argsort(short[:, 0])].tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]
    assert sorted(short[marks].tolist()) == [4, 8, 9]
    assert divided == [4, 4]
