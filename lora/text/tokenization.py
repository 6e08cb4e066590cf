"""Tokenizer: convert text to tokens and back, and conversations to text.

A Hugging Face folder has a `tokenizer.json`, which the tokenizers package reads. A GGUF file has
the vocabulary and the merges of byte-level byte-pair encoding (Sennrich et al., 2016). Its key
`tokenizer.ggml.pre` names the rule that first divides a text into words. Prompts and answers are
encoded separately, so a tokenizer that adds a space before each text is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from lora.text.architecture import json_table
from lora.text.chat_template import render
from minigrad.io import find
from minigrad.packages import package

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_START = r"[^\r\n\p{L}\p{N}]?"

_RULES: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (rf"{_CASELESS}|\p{{N}}{{1,3}}|{_SIGNS}",),
    "qwen2": (rf"{_CASELESS}|\p{{N}}|{_SIGNS}",),
    "tekken": (
        rf"{_START}[{_UPPER}]*[{_LOWER}]+|{_START}[{_UPPER}]+[{_LOWER}]*|\p{{N}}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
"""The rules by name: regular expressions that divide a text into words, applied in order."""

_SAME = {
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "minerva-7b"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral", "smaug-bpe", "dbrx"), "llama-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez"), "qwen2"),
    **dict.fromkeys(("phi-2", "mpt", "olmo", "jais", "a.x-4.0", "mellum"), "gpt-2"),
}
"""Other names of these rules."""

_WHOLE = ("llama-bpe", "tekken")
"""The rules with which a word is one token, without merges, if it is in the vocabulary.

With them, llama.cpp also begins each text with a token, if the file does not say whether to.
"""

_UNBEGUN = ("smaug-bpe", "dbrx")
"""Names of Llama 3's rule with which a text has no first token, as in SmolLM3."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # the text of bytes that are not a complete character

_CONTROL, _USER_DEFINED = 3, 4  # the types of tokens that are never split

_DEFAULT, _FOR_TOOLS = "default", "tool_use"  # the names of templates, as in transformers

_TEMPLATE = "tokenizer.chat_template"  # the key of the default in GGUF; others add their names


class Tokenizer:
    """The tokenizer of a language model; `lora.text.tokenizer` and the methods `from_...` make one.

    Attributes:
        bos_token, bos_token_id: the token that begins a text, and its id, or None.
        eos_token, eos_token_id: the token that ends a text, and its id, or None. If the files of
            a tokenizer name none, it is the first one that the model's configuration names.
        chat_template: the chat template, or None; of several by name, the one called "default".

    A ValueError is raised if the vocabulary has no token for a letter, and so is not for text.
    """

    def __init__(self, tokens: Any, special: Mapping[str, str], chat_template: Any) -> None:
        if not tokens.encode("a", add_special_tokens=False).ids:
            raise ValueError("the tokenizer has no token for the letter a, so it is not for text")
        self._tokens = tokens
        self._special = dict(special)
        self.bos_token, self.eos_token = special.get("bos_token"), special.get("eos_token")
        self.bos_token_id, self.eos_token_id = (
            None if token is None else tokens.token_to_id(token)
            for token in (self.bos_token, self.eos_token)
        )
        named: Any = {_DEFAULT: chat_template}
        if isinstance(chat_template, list):  # several, as in `tokenizer_config.json`
            tables = [each for each in chat_template if isinstance(each, dict)]
            named = {str(each.get("name")): each.get("template") for each in tables}
        elif isinstance(chat_template, dict):  # several, by name
            named = chat_template
        self._templates = {name: text for name, text in named.items() if isinstance(text, str)}
        self.chat_template = self._templates.get(_DEFAULT)

    @property
    def vocab_size(self) -> int:
        """The number of tokens in the vocabulary."""
        return int(self._tokens.get_vocab_size())

    def encode(
        self, text: str, add_special_tokens: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Return the tokens of a text.

        Args:
            text: the text.
            add_special_tokens: whether to add the tokens that begin or end a text, if the
                tokenizer has them.
            parse_special: whether strings such as `<|im_end|>` in the text become special tokens,
                as is right for the result of `render`. Otherwise they are ordinary characters.

        Raises:
            TypeError: if `text` is not a string.
            ValueError: if the text has half a character (a surrogate).
        """
        check_text("the text", text)
        self._tokens.encode_special_tokens = not parse_special
        return list(self._tokens.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_beginning(self, text: str) -> list[int]:
        """Return the tokens of a text that the model will continue.

        They include the tokens that begin a text, if the tokenizer adds any, but not those that end
        a text, which some tokenizers add too. Errors are those of `encode`.
        """
        around = self._tokens.encode("a")
        return list(around.ids[: around.special_tokens_mask.index(0)]) + self.encode(text)

    def unused_ids(self, size: int) -> list[int]:
        """Return the ids below `size` without a token, such as the padding of a model's table."""
        return sorted({*range(size)} - {*self._tokens.get_vocab().values()})

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some tokens; bytes that are not a complete character become U+FFFD.

        Raises:
            ValueError: if there is no such token.
        """
        numbers = [int(i) for i in ids]
        for i in numbers:
            if i < 0 or self._tokens.id_to_token(i) is None:
                raise ValueError(f"there is no token {i} in the vocabulary of {self.vocab_size}")
        return str(self._tokens.decode(numbers, skip_special_tokens=False))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of tokens that arrive one at a time, in pieces of complete characters."""
        left: list[int] = []
        sent = 0  # the number of characters of the text of `left` that were yielded
        for token in ids:
            left.append(token)
            text = self.decode(left)
            complete = text.rstrip(_REPLACEMENT)  # may be one for each byte
            new, sent = complete[sent:], max(sent, len(complete))
            alone = self.decode([token])
            if new and complete == text and _REPLACEMENT not in alone:
                # Keep the last token, because a decoder may drop the space of a first token.
                left, sent = [token], len(alone)
            if new:
                yield new

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """Convert a conversation to text by the chat template of the model.

        Of several templates, in `tokenizer_config.json`, as files or in a GGUF file, it is the one
        that is called "tool_use" if `tools` are given, and otherwise "default".

        Args:
            messages: the turns, such as `{"role": "user", "content": "..."}`.
            add_generation_prompt: whether to append the beginning of an answer.
            variables: other variables of the template, such as `tools` and `enable_thinking`.

        Raises:
            ValueError: if there is no template, a message is not a mapping with a role, or the
                template is invalid, refuses the conversation, fails, or does something that the
                sandbox does not allow.
            ImportError: if the package jinja2 is not installed.
        """
        has_tools = variables.get("tools") is not None and _FOR_TOOLS in self._templates
        template = self._templates.get(_FOR_TOOLS if has_tools else _DEFAULT)
        if template is None and self._templates:
            raise ValueError(
                f"of the chat templates {sorted(self._templates)} none is called {_DEFAULT}"
            )
        if template is None:
            raise ValueError(
                "this model has no chat template, so it was not trained on conversations; give it "
                "text to continue, or add a chat_template.jinja to its folder"
            )
        variables = {**self._special, "add_generation_prompt": add_generation_prompt, **variables}
        return render(template, messages, variables)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """Read `tokenizer.json`, and the special tokens and the chat template beside it.

        Raises:
            FileNotFoundError: if the folder has none.
            ValueError: if the tokenizer adds a space before each text, other files have tokens that
                the vocabulary lacks, or a file is invalid.
            ImportError: if the package tokenizers is not installed.
        """
        path = find(folder, "tokenizer.json")
        if not path.is_file():
            raise FileNotFoundError(
                f"{os.fspath(folder)!r} has no tokenizer.json; transformers' AutoTokenizer writes "
                f"one with save_pretrained"
            )
        p = package("tokenizers")
        with _refused(f"{os.fspath(path)!r} is not a tokenizer"):
            tokens = p.Tokenizer.from_file(os.fspath(path))
        tokens.no_truncation()
        tokens.no_padding()
        begin = "".join(tokens.encode("a", add_special_tokens=False).tokens)
        if begin.startswith(("Ġ", "▁")):  # these represent a space in vocabularies
            raise ValueError(
                f"{os.fspath(path)!r} puts a space before each text, as SentencePiece does for "
                f"Llama 2 and Mistral 7B, so no answer can be encoded apart from its prompt; this "
                f"is not supported; take a model with byte-level BPE, such as a Llama 3"
            )
        config = json_table(folder, "tokenizer_config.json") or {}
        listed = config.get("added_tokens_decoder")
        added = list(listed.values()) if isinstance(listed, dict) else []
        if "added_tokens_decoder" not in config:  # otherwise transformers reads no other file
            config |= json_table(folder, "special_tokens_map.json") or {}
            added += json_table(folder, "added_tokens.json") or {}
        added += [config.get("bos_token"), config.get("eos_token")]
        named = {name: token for name, token in config.items() if name.endswith("_token")}
        keys = "additional_special_tokens", "model_specific_special_tokens", "extra_special_tokens"
        for more in map(config.get, keys):
            if isinstance(more, dict):  # tokens with names, which a template uses
                named |= more
                more = list(more.values())
            added += more if isinstance(more, list) else []
        texts = {name: _content(token) for name, token in named.items()}
        special = {name: text for name, text in texts.items() if isinstance(text, str)}
        for token in map(_content, added):
            if isinstance(token, str) and token and tokens.token_to_id(token) is None:
                raise ValueError(
                    f"{os.fspath(path)!r} lacks {token!r:.60}, which a file beside it names; "
                    f"write the folder again with the save_pretrained of transformers' "
                    f"AutoTokenizer"
                )
        templates, file = config.get("chat_template"), find(folder, "chat_template.jinja")
        if file.is_file():  # then transformers reads no other place
            others = sorted(find(folder, "additional_chat_templates").glob("*.jinja"))
            files = {_DEFAULT: file, **{other.stem: other for other in others}}
            templates = {name: _text_of(each) for name, each in files.items()}
        made = cls(tokens, special, templates)
        for name in ("generation_config.json", "config.json"):
            if made.eos_token_id is None:  # the configuration of the model may name one
                end = (json_table(folder, name) or {}).get("eos_token_id")
                end = end[0] if isinstance(end, list) and end else end
                if type(end) is int and end >= 0 and (text := tokens.id_to_token(end)) is not None:
                    made.eos_token, made.eos_token_id = text, end
        return made

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Self:
        """Make the tokenizer that the metadata of a GGUF file describe.

        Raises:
            ValueError: if it is not byte-level, its rule is unknown, or parts are invalid.
            ImportError: if the package tokenizers is not installed.
        """
        p = package("tokenizers")
        words, merges, types = (
            found if isinstance(found := metadata.get(f"tokenizer.ggml.{name}"), list) else []
            for name in ("tokens", "merges", "token_type")
        )
        model = metadata.get("tokenizer.ggml.model")
        name_of_rule = str(metadata.get("tokenizer.ggml.pre") or "default")
        rule = _SAME.get(name_of_rule, name_of_rule)
        if model != "gpt2" or rule not in _RULES:
            raise ValueError(
                f"a tokenizer of the model {model!r:.60} with the rule {rule!r:.60} is not "
                f"supported; there is 'gpt2', byte-level BPE, with {', '.join([*_RULES, *_SAME])}; "
                f"with another rule read the model's Hugging Face folder instead; 'llama', "
                f"SentencePiece, is supported in neither"
            )
        pairs = [tuple(str(merge).split(" ")) for merge in merges]
        is_whole = rule in _WHOLE
        with _refused("the file's vocabulary is wrong"):
            vocabulary = {word: i for i, word in enumerate(words)}
            tokens = p.Tokenizer(p.models.BPE(vocabulary, pairs, ignore_merges=is_whole))
        splits = [p.pre_tokenizers.Split(p.Regex(e), "isolated") for e in _RULES[rule]]
        in_bytes = p.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokens.pre_tokenizer = p.pre_tokenizers.Sequence([*splits, in_bytes])
        tokens.decoder = p.decoders.ByteLevel()
        added = [
            p.AddedToken(word, normalized=False, special=kind == _CONTROL)
            for word, kind in zip(words, types, strict=False)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
        tokens.add_tokens(added)
        special, ends = {}, {}
        is_begun = is_whole and name_of_rule not in _UNBEGUN
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            i = metadata.get(f"tokenizer.ggml.{key}_token_id")
            if isinstance(i, int) and 0 <= i < len(words):
                special[f"{name}_token"] = words[i]
                if metadata.get(f"tokenizer.ggml.add_{name}_token", is_begun and name == "bos"):
                    ends[name] = {"id": name, "ids": [i], "tokens": [words[i]]}
        if ends:
            pieces = [piece for piece in ("bos", "$A", "eos") if piece in {"$A", *ends}]
            tokens.post_processor = p.processors.TemplateProcessing(
                single=pieces, special_tokens=list(ends.values())
            )
        keys = [key for key in metadata if key.startswith(f"{_TEMPLATE}.")]
        others = {key.removeprefix(f"{_TEMPLATE}."): metadata[key] for key in keys}
        return cls(tokens, special, {_DEFAULT: metadata.get(_TEMPLATE), **others})

    def files(self) -> dict[str, bytes]:
        """Return the content of `tokenizer.json` and `tokenizer_config.json`, by file name."""
        named = [{"name": name, "template": text} for name, text in self._templates.items()]
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **self._special,
            "chat_template": self.chat_template if self._templates.keys() <= {_DEFAULT} else named,
        }
        return {
            "tokenizer.json": self._tokens.to_str(pretty=True).encode(),
            "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
        }


def check_tokenizer(tokenizer: Any) -> None:
    """Raise a TypeError unless it is a tokenizer of this library, for example if it is a path."""
    if not hasattr(tokenizer, "encode_beginning"):  # another class with these methods serves too
        kind = type(tokenizer).__name__
        raise TypeError(f"tokenizer is what lora.text.tokenizer(path) returns, not a {kind}")


def check_tokens(ids: Sequence[int], vocab_size: int) -> None:
    """Raise a ValueError if an id is outside of a model's vocabulary."""
    if (largest := max(ids, default=0)) >= vocab_size:
        raise ValueError(
            f"the token {largest} is outside of the model's vocabulary of {vocab_size:,}; the "
            f"tokenizer is that of another model"
        )


def check_text(name: str, text: str) -> None:
    """Raise a ValueError if a text has half a character (a surrogate), which has no encoding.

    A TypeError is raised if it is not text.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} is a string, not {text!r:.60}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start + 1:,} of {len(text):,} of {name} is half of one, or a byte "
            f"that is not UTF-8; a text consists of whole characters"
        ) from None


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Raise a ValueError that begins with `what` for each error of the package tokenizers.

    A panic of Rust, as for merges without a token, is one too, although it is not an `Exception`.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ValueError(f"{what}: {error!s:.200}") from None


def _content(token: Any) -> Any:
    """Return the text of a token, which a file gives as a string or as an object."""
    return token.get("content") if isinstance(token, dict) else token


def _text_of(template: Path) -> str:
    """Return the content of a file with a template; a ValueError is raised if it is not UTF-8."""
    try:
        return template.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{os.fspath(template)!r} is not UTF-8, at byte {error.start + 1:,}; write it again in "
            f"UTF-8"
        ) from None
