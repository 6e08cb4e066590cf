"""Conversations in training data: check their messages, and find the answers in their text.

The chat template of the model writes a conversation as one text. It says nowhere which part of this
text is an answer. So the template also writes the beginnings of the conversation, and what an
answer adds to the text before it is this part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from lora.text.tokenization import check_text
from minigrad.io.tensor_file import parse_json

ROLES = "system", "developer", "user", "assistant", "tool"

Render = Callable[..., str]  # such as `Tokenizer.render`
Turn = dict[str, Any]  # a message

UNREAD = "with the key {!r:.60}, which is not read"
"""A note about a key of a row."""

_CALLS = "tool_calls"
_MARK = "\ue000"  # a character for private use, which no template writes
_READ_HERE = {"role", "content", "weight"}  # the keys that this module reads itself


def checked_messages(messages: Any) -> list[Turn]:
    """Check the messages of a row, and return them in the form that chat templates expect.

    A content in parts becomes one string, and the arguments of a tool call, which are often a
    string with JSON, become an object.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages are a list of turns, not {messages!r:.60}")
    made = []
    for number, turn in enumerate(messages, 1):
        keys = turn.keys() if isinstance(turn, dict) else ()
        calls = turn.get(_CALLS) if isinstance(turn, dict) else None
        if "role" not in keys or not ("content" in keys or calls):
            given = ", ".join(turn) if isinstance(turn, dict) else repr(turn)
            raise ValueError(f"message {number} has role and content, not {given:.100}")
        if turn["role"] not in ROLES:
            raise ValueError(
                f"message {number}: the role is one of {', '.join(ROLES)}, not {turn['role']!r:.60}"
            )
        if turn.get("weight", 1) not in (0, 1):
            raise ValueError(f"message {number}: weight is 0 or 1, not {turn['weight']!r:.60}")
        content = _text_of(turn.get("content"))
        content = "" if content is None and calls else content
        check_text(f"message {number}: content", content)
        made.append({**turn, "content": content})
        if calls:
            made[-1][_CALLS] = _tool_calls(calls, f"message {number}")
    return made


def without_unread(
    messages: list[Turn], tools: list[Any] | None, render: Render, notes: list[str]
) -> list[Turn]:
    """Return messages without the keys that have no effect on the text of the template.

    There is a note about each of them, and about tools that have no effect.
    """
    written = render(messages)
    if tools is not None and render(messages, tools=None) == written:
        notes.append(UNREAD.format("tools"))
    for key in sorted(set().union(*messages) - _READ_HERE):
        others = [{k: v for k, v in turn.items() if k != key} for turn in messages]
        try:
            is_read = render(others) != written
        except ValueError:  # the template refuses messages without this key
            is_read = True
        if not is_read:
            notes.append(UNREAD.format(f"messages.{key}"))
            messages = others
    return messages


def unwritten_roles(messages: list[Turn], text: str) -> list[str]:
    """Return the roles of messages whose content is not in a text, apart from white space."""
    text = "".join(text.split())

    def is_written(content: str) -> bool:
        # Some templates write the result of a tool as a string of JSON.
        forms = content, json.dumps(content, ensure_ascii=False)[1:-1]
        return any("".join(form.split()) in text for form in forms)

    return sorted({turn["role"] for turn in messages if not is_written(turn["content"])})


def parts(messages: list[Turn], render: Render, notes: list[str]) -> Iterator[tuple[str, bool]]:
    """Yield the text of a conversation in parts, each with True if it is an answer that counts.

    The template renders the conversation before a turn of the assistant, with the generation
    prompt, and the conversation up to this turn. The text that the second adds to the first is the
    answer. Some templates render earlier turns differently from the last one; then only the last
    answer counts. The first turn is not an answer, because nothing comes before it. Empty answers
    do not count either. If an answer does not count, there is a note, unless its weight is 0.
    """
    written = render(messages)
    answers = [n for n, turn in enumerate(messages) if turn["role"] == "assistant" and n > 0]

    def span(number: int) -> tuple[int, int] | None:
        before = render(messages[:number], add_generation_prompt=True)
        after = render(messages[: number + 1])
        fits = after.startswith(before) and written.startswith(after)
        return (len(before), len(after)) if fits else None

    def counts(number: int) -> bool:
        return not _is_empty(messages[number]) and messages[number].get("weight") != 0

    spans = [span(number) for number in answers]
    if None in spans:
        if len(spans) > 1:
            notes.append(
                "with the last answer only, since the chat template changes earlier ones; to train "
                "these, add rows that end with them"
            )
        spans, answers = spans[-1:], answers[-1:]
    if messages[0]["role"] == "assistant":
        notes.append("with an answer as the first message, which does not count")
    if any(_is_empty(messages[number]) for number in answers):
        notes.append("with an empty answer, which does not count")
    at = 0
    for number, found in zip(answers, spans, strict=True):
        if found is None:
            prompt, answer = _changed_answer(messages[: number + 1], render, notes)
            yield prompt, False
            yield answer, counts(number)
            return
        yield written[at : found[0]], False
        yield written[found[0] : found[1]], counts(number)
        at = found[1]
    yield written[at:], False


def _changed_answer(messages: list[Turn], render: Render, notes: list[str]) -> tuple[str, str]:
    """Return the text before the last message, and its own, if it does not follow the prompt.

    The generation prompt of some reasoning models, such as DeepSeek-R1, opens the reasoning with
    "<think>", but an answer in a conversation is written without its reasoning. So the content
    itself follows the prompt if it begins in the same way. Otherwise the text is as the template
    writes it, and there is a note.
    """
    *earlier, last = messages
    prompt, written = render(earlier, add_generation_prompt=True), render(messages)
    before, mark, after = render([*earlier, {**last, "content": _MARK}]).partition(_MARK)
    opening = prompt.removeprefix(before)
    content = last["content"].strip()
    kept = written.removeprefix(before).removesuffix(after)
    is_found = mark and written == before + kept + after and content.endswith(kept.strip())
    if not is_found or prompt != before + opening:
        raise ValueError(
            f"the chat template does not write message {len(messages)} after the text of the "
            f"earlier messages, so the answer cannot be found in the text; train_on_prompts needs "
            f"no answers"
        )
    marker = opening.rstrip()
    if marker and content.startswith(marker):
        return prompt, content.removeprefix(marker).removeprefix(opening[len(marker) :]) + after
    notes.append(f"with an answer without {marker!r}, with which the generation prompt ends")
    return before, kept + after


def _is_empty(turn: Turn) -> bool:
    return not turn["content"].strip() and not turn.get(_CALLS)


def _text_of(content: Any) -> Any:
    """Join the content of a message that is a list of text parts; return any other as it is."""
    if not isinstance(content, list) or not content:
        return content
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        raise TypeError(
            f"content is a string, or a list of {{'type': 'text', 'text': '...'}}, "
            f"not {content!r:.100}"
        )
    for part in content:
        check_text("the text of a part", part.get("text"))
    return "".join(part["text"] for part in content)


def _tool_calls(calls: Any, where: str) -> list[Any]:
    """Check the tool calls of an answer, and return them with arguments as an object of JSON."""
    made = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(
                f"{where}: tool_calls are a list of {{'function': {{'name': '...', 'arguments': "
                f"{{...}}}}}}, not {calls!r:.100}"
            )
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = parse_json(arguments, f"{where}: arguments")
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{where}: the arguments of {function['name']!r:.60} are not JSON: {error.msg}"
                ) from None
        made.append({**call, "function": {**function, "arguments": arguments}})
    return made
