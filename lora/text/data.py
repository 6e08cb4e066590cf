"""Training data: rows of JSONL files as tokens, marks which of them count, and micro-batches.

A row has one of three forms; other keys are ignored, and reported:

    {"text": "..."}                                       a text, all of which counts
    {"prompt": "...", "completion": "..."}                the completion counts
    {"messages": [{"role": "user", "content": "..."}]}    the answers of the assistant count

A text or a completion is followed by the end-of-text token, which counts too. A prompt and its
completion are encoded separately, so the tokens of the prompt are the same as in generation. The
turns of a conversation are encoded separately too, in the format of the model's chat template. As
in fine-tuning files of OpenAI, the content of a message can also be a list of parts
`{"type": "text", "text": "..."}`, an answer with `"weight": 0` does not count, the row can have
`tools` beside the messages, and an answer `tool_calls` instead of content. The template gets these
and all other keys of a message, such as `reasoning_content`; what it does not read is reported.

Strings such as `<|im_end|>` are special tokens in a conversation only. In a text they are ordinary
characters, and also in a prompt and a completion, unless `as_chat` makes a conversation of them.
Prompt and completion can also be two lists of messages, of which the answers in the second count.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lora.text import conversation
from lora.text.conversation import Render
from lora.text.tokenization import Tokenizer, check_text, check_tokenizer, check_tokens
from minigrad.checks import check_choice, check_flag, check_positive, nearest, shown
from minigrad.errors import named_errors
from minigrad.io.tensor_file import parse_json
from minigrad.progress import progress_bar
from minigrad.random import Rng, generator
from minigrad.tables import counted

SPLITS = "train", "valid", "test"

_UNWRITTEN = "with a message of the role {!r} that the chat template does not write in full"

_FORMS = {"text"}, {"prompt", "completion"}, {"messages"}

Ids = NDArray[np.integer[Any]]
Lengths = Sequence[int] | None  # of texts that follow each other in one row

Batch = tuple[NDArray[np.int64], NDArray[np.bool_], list[int]]
"""A micro-batch: ids, marks which of them count, and the lengths of the rows."""


@dataclass(frozen=True, eq=False)
class Row:
    """The tokens of a text, and which of them count in the loss, predicted from those before."""

    ids: NDArray[np.int64]  # (length,)
    counted: NDArray[np.bool_]  # (length,)


@dataclass(eq=False, repr=False)
class Dataset(Sequence[Row]):
    """The rows of a file, with notes about rows that were changed or left out."""

    file: str  # the name of the file
    digest: str = ""  # the SHA-256 of the bytes of the file
    rows: list[Row] = field(default_factory=list)  # the rows with tokens that count
    # For each remark, the numbers of its lines in the file.
    notes: dict[str, list[int]] = field(default_factory=dict)

    @property
    def tokens_digest(self) -> str:
        """The SHA-256 of the tokens of all rows, and of the marks which of them count."""
        found = hashlib.sha256()
        for row in self.rows:
            for part in (np.int64(len(row.ids)), row.ids, row.counted):
                found.update(part.tobytes())
        return found.hexdigest()

    def summary(self) -> dict[str, Any]:
        """Return the name of the file, the number of rows and the notes, which JSON can store."""
        return {"file": self.file, "rows": len(self), "notes": self.notes}

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        tokens = sum(len(row.ids) for row in self.rows)
        some = sum(int(row.counted.sum()) for row in self.rows)
        sizes = f"{counted(len(self), 'row')}, {counted(tokens, 'token')}"
        lines = [f"{self.file}: {sizes}, of which {some:,} {'counts' if some == 1 else 'count'}"]
        for what, numbers in self.notes.items():
            named = ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)
            lines.append(f"  {len(numbers):,} {what} (line{'s' * (len(numbers) > 1)} {named})")
        return "\n".join(lines)


def data_files(data: str | os.PathLike[str]) -> dict[str, Path]:
    """Return the files of `data` by "train", "valid" and "test"; a single file is "train".

    A FileNotFoundError is raised if the path does not exist, or is a folder without any of them,
    and a TypeError if `data` is not a path.
    """
    if not isinstance(data, (str, os.PathLike)):
        raise TypeError(
            f"data are the path of a .jsonl file or of a folder, not a {type(data).__name__}; "
            f"write the rows to a file"
        )
    path = Path(data)
    if path.is_file():
        return {"train": path}
    if not path.is_dir():
        raise FileNotFoundError(
            f"{os.fspath(path)!r} is neither a file nor a folder, but perhaps a pipe; save the "
            f"rows in a file"
            if path.exists()
            else f"there is no file or folder {os.fspath(path)!r}"
        )
    found = {split: file for split in SPLITS if (file := path / f"{split}.jsonl").is_file()}
    if not found:
        there = ", ".join(sorted(each.name for each in path.iterdir())[:20])
        raise FileNotFoundError(
            f"{os.fspath(path)!r} has none of train.jsonl, valid.jsonl and test.jsonl; in it "
            f"there is {there or 'nothing'}"
        )
    return found


def unread_files(data: str | os.PathLike[str]) -> list[str]:
    """Return the names of the JSONL files in a folder that `data_files` leaves out."""
    known = {f"{split}.jsonl" for split in SPLITS}
    return sorted({file.name for file in Path(data).glob("*.jsonl")} - known)


@named_errors
def read_rows(
    file: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    vocab_size: int | None = None,
    max_length: int | None = None,
    long_rows: Literal["cut", "refuse"] = "cut",
    train_on_prompts: bool = False,
    as_chat: bool = False,
    now: datetime | None = None,
    progress: bool = True,
) -> Dataset:
    """Read the rows of a JSONL file as tokens to train on; the result is a sequence of rows.

    For the form of a row, see `lora.text.data`. Rows without an answer, or whose answer is cut off,
    are left out, and the result has a note.

    Args:
        file: the file; empty lines are skipped.
        tokenizer: the tokenizer of the model.
        vocab_size: the number of tokens that the model knows; None for those of the tokenizer.
        max_length: the largest number of tokens of a row; None for no limit.
        long_rows: whether a longer row is cut at the end, or is an error.
        train_on_prompts: whether all tokens count in the loss.
        as_chat: whether prompt and completion become a turn of the user and one of the assistant.
        now: the time whose date a chat template may write; by default the current time.
        progress: show a progress bar if it takes long.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if a line is not a valid row, or a token is outside of the vocabulary; the
            message has the number of the line. Also if no row is left, `max_length` is not
            positive, or `long_rows` is unknown.
        TypeError: if a flag is not True or False, or `tokenizer` is not a tokenizer.
        ImportError: if a row has messages, and the package jinja2 is not installed.
    """
    check_tokenizer(tokenizer)
    if max_length is not None:
        check_positive("max_length", max_length)
    check_flag("train_on_prompts", train_on_prompts)
    check_flag("as_chat", as_chat)
    check_choice("long_rows", long_rows, ("cut", "refuse"))
    largest = tokenizer.vocab_size if vocab_size is None else vocab_size
    name, digest = os.fspath(file), hashlib.sha256()
    render = partial(tokenizer.render, strftime_now=(now or datetime.now()).strftime)
    rows = Dataset(name)
    options: Any = {"unit": "B", "unit_scale": True, "shown": progress}
    with (
        open(file, "rb") as lines,
        progress_bar(what="reading", total=os.fstat(lines.fileno()).st_size, **options) as bar,
    ):
        for number, line in enumerate(lines, 1):
            bar.update(len(line))
            digest.update(line)
            line = line.removeprefix(codecs.BOM_UTF8).strip()
            if not line:
                continue
            notes: list[str] = []
            try:
                content = _parsed(line, as_chat, notes)
                parts = list(_parts(content, tokenizer, render, train_on_prompts, notes))
                ids = np.array([token for tokens, _ in parts for token in tokens], np.int64)
                counts = np.array([c for tokens, c in parts for _ in tokens], np.bool_)
                counts[:1] = False  # the first token cannot be predicted
                check_tokens(ids.tolist(), largest)
                row = _fitting(Row(ids, counts), max_length, long_rows, notes)
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{name}, line {number}: {error!s:.1000}") from None
            for note in notes:
                rows.notes.setdefault(note, []).append(number)
            if row is not None:
                rows.rows.append(row)
    rows.digest = digest.hexdigest()
    if not rows.rows:
        raise ValueError(f"{rows!r}; nothing is left, and a row with an answer is needed")
    return rows


def micro_batches(rows: Sequence[Row], batch_size: int, rng: Rng = None) -> list[Batch]:
    """Group rows of similar length into micro-batches, without padding.

    Rows of one length become an array `(batch_size, length)`; other rows stand behind each other in
    one row. Tokens behind the last one that counts in a row, such as the end of a chat template,
    are left out, because no loss depends on them. `rng` shuffles the order of the micro-batches,
    and of rows with equal length.
    """
    drawn = generator(rng)
    order = sorted(drawn.permutation(len(rows)).tolist(), key=lambda i: len(rows[i].ids))
    made: list[Batch] = []
    for start in range(0, len(order), batch_size):
        chosen = [rows[i] for i in order[start : start + batch_size]]
        lengths = [int(np.flatnonzero(row.counted)[-1]) + 1 for row in chosen]
        pairs = list(zip(chosen, lengths, strict=True))
        ids = np.concatenate([row.ids[:length] for row, length in pairs])
        counts = np.concatenate([row.counted[:length] for row, length in pairs])
        shape = (len(chosen) if len(set(lengths)) == 1 else 1, -1)
        made.append((ids.reshape(shape), counts.reshape(shape), lengths))
    return [made[i] for i in drawn.permutation(len(made))]


def predicted(ids: Ids, counts: NDArray[np.bool_], lengths: Lengths) -> tuple[Ids, Ids, Ids, float]:
    """Return the inputs and targets of a model if only the predictions of some tokens count.

    Returns:
        The inputs, which are the tokens without the last of each text, or all tokens if no text has
        two; the rows of the outputs that count; their targets; and the number by which to divide
        the sum of their losses.

    A text is a row, or with `lengths` a part of the only row. A ValueError is raised if the
    arguments are no arrays of rows with the same shape, or the lengths do not divide the row.
    """
    shapes = [getattr(x, "shape", ()) for x in (ids, counts)]  # a list has none
    if len(shapes[0]) != 2 or shapes[0] != shapes[1]:
        raise ValueError(
            f"ids and counted are arrays (batch, length), not {shown(ids)} and {shown(counts)}"
        )
    inputs, targets, marks = ids[:, :-1], ids[:, 1:], counts[:, 1:]
    if lengths is not None:
        if np.shape(ids) != (1, sum(lengths)) or min(lengths, default=0) < 1:
            raise ValueError(f"ids are one row with texts of lengths {lengths}, not {shown(ids)}")
        ends = np.cumsum(lengths)
        inputs = np.delete(ids, ends - 1, 1)
        targets, marks = np.delete(ids, ends - lengths, 1), np.delete(counts, ends - lengths, 1)
    rows = np.flatnonzero(marks)
    targets = targets.reshape(-1)[rows]
    return inputs if inputs.size else ids, rows, targets, float(max(len(rows), 1))


def _parsed(line: bytes, as_chat: bool, notes: list[str]) -> Mapping[str, Any]:
    """Check the row of a line, and return it; note the keys that are ignored.

    With `as_chat` prompt and completion become messages.
    """
    try:
        row = parse_json(line.decode(), "the row")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start + 1:,} of the line is not UTF-8; write the file again in UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        length = len(error.doc)
        at = "its end" if error.pos == length else f"character {error.pos + 1} of {length:,}"
        raise ValueError(
            f"the line is not JSON: {error.msg}, at {at}; each row is one line"
        ) from None
    if not isinstance(row, dict):
        raise ValueError(f"a row is an object of JSON in one line, not {row!r:.60}")
    forms = [form for form in _FORMS if form <= row.keys()]
    if len(forms) != 1:
        known = set().union(*_FORMS)
        found = [f"{key!r:.60}{'' if key in known else nearest(key, known)}" for key in row]
        hint = (
            "; rename conversations to messages, and in each of them from to role and value to "
            "content, with the roles user and assistant instead of human and gpt"
        )
        raise ValueError(
            f"a row has one of text, messages, or prompt with completion; this one has "
            f"{', '.join(found) or 'no keys'}{hint if 'conversations' in row else ''}"
        )
    others, tools = row.keys() - forms[0], row.get("tools")
    row = {key: row[key] for key in forms[0]}
    if all(isinstance(row.get(key), list) for key in ("prompt", "completion")):
        before = conversation.checked_messages(row["prompt"])
        row = {"messages": [turn | {"weight": 0} for turn in before] + row["completion"]}
    for key in row.keys() - {"messages"}:
        check_text(key, row[key])
    if as_chat and "prompt" in row:
        turns = ("user", row["prompt"]), ("assistant", row["completion"])
        row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    if "messages" in row:
        row["messages"] = conversation.checked_messages(row["messages"])
        if tools is not None:
            others, row["tools"] = others - {"tools"}, _tools(tools)
    notes += [conversation.UNREAD.format(key) for key in sorted(others)]
    return row


def _tools(tools: Any) -> list[Any]:
    """Check the descriptions of tools, which can also be a string with JSON, and return them."""
    try:
        tools = parse_json(tools, "tools") if isinstance(tools, str) else tools
    except json.JSONDecodeError as error:
        raise ValueError(f"tools are not JSON: {error.msg}") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"tools are a list of descriptions of functions, not {tools!r:.100}")
    return tools


def _fitting(
    row: Row, max_length: int | None, long_rows: Literal["cut", "refuse"], notes: list[str]
) -> Row | None:
    """Return a row with at most `max_length` tokens, or None if none of these counts.

    There is a note about a row that is cut. About a row that is left out, it is the only one.
    """
    if not row.counted.any():
        notes[:] = ["left out, without an answer"]
        return None
    length = len(row.ids)
    if max_length is None or length <= max_length:
        return row
    if long_rows == "refuse":
        raise ValueError(
            f"the row has {length:,} tokens, and max_length is {max_length:,}; raise it, or let "
            f"long rows be cut"
        )
    row = Row(row.ids[:max_length], row.counted[:max_length])
    if not row.counted.any():
        notes[:] = [f"left out, with no answer up to token {max_length:,}"]
        return None
    notes.append(f"cut to {max_length:,} tokens")
    return row


def _parts(
    row: Mapping[str, Any],
    tokenizer: Tokenizer,
    render: Render,
    train_on_prompts: bool,
    notes: list[str],
) -> Iterator[tuple[list[int], bool]]:
    """Yield the tokens of a row in parts, each with True if its tokens count in the loss."""
    if "messages" in row:
        render = partial(render, tools=row.get("tools"))
        messages = conversation.without_unread(row["messages"], row.get("tools"), render, notes)
        texts = (
            [(render(messages), True)]
            if train_on_prompts
            else list(conversation.parts(messages, render, notes))
        )
        written = "".join(text for text, _ in texts)
        notes += map(_UNWRITTEN.format, conversation.unwritten_roles(messages, written))
        for text, is_answer in texts:
            yield tokenizer.encode(text, parse_special=True), is_answer
    else:
        begin, answer = row.get("prompt", row.get("text")), row.get("completion")
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        tokens = tokenizer.encode_beginning(begin)
        if answer is None:
            yield tokens + end * bool(begin), True
        else:
            yield tokens, train_on_prompts
            counts = train_on_prompts or bool(answer.strip())
            yield (tokenizer.encode(answer) + end if counts else []), True
