"""Writing with a language model: one token after the other, each drawn from the model's scores."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lora.text.model import LanguageModel
from lora.text.tokenization import Tokenizer, check_tokens
from minigrad import random
from minigrad.checks import check_count, check_positive
from minigrad.nn import KVCache
from minigrad.sampling import sample

Messages = Sequence[Mapping[str, str]]

PREFILL = 512  # tokens of a prompt that are read at once, which bounds the memory
CAPACITY = 4096  # tokens for which caches have memory at first; it is not touched before they come


class TextGenerator:
    """Writes after a prompt, or answers in a conversation.

    The keys and values of what was read stay, so that of a conversation only what is new is read.

    Args:
        model: the language model, with adapters or without.
        tokenizer: its tokenizer.
        max_tokens: the largest number of tokens to write.
        temperature: divides the scores: 0 always takes the likeliest token. By default it is 1 with
            `top_k` or `top_p`, and 0 without.
        top_k: draw from this many tokens, the likeliest ones, only.
        top_p: draw from as few of the likeliest tokens as have this probability together.
        seed: the seed of the draws; None for the default generator.

    Attributes:
        prompt_tokens: the ids of the last prompt.
        tokens: the ids that were written after it.
        seconds: the time from the start of reading to the last token.
        finish_reason: "stop" after a token that ends a text, "length" after `max_tokens` tokens, or
            as many as the model was made for.

    Raises:
        ValueError: if `max_tokens` is not positive, or `seed` is negative.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        max_tokens: int = 256,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> None:
        check_positive("max_tokens", max_tokens)
        check_count("seed", 0 if seed is None else seed)
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens
        usual = 0.0 if top_k is None and top_p is None else 1.0
        self.temperature = usual if temperature is None else temperature
        self.top_k, self.top_p = top_k, top_p
        self.rng = random.generator(None if seed is None else np.random.default_rng(seed))
        self.prompt_tokens: list[int] = []
        self.tokens: list[int] = []
        self.seconds, self.finish_reason = 0.0, ""
        self._read: list[int] = []  # the tokens whose keys and values are in the caches
        self._caches: list[KVCache] = []
        self._capacity = 0
        ends = {*model.config.eos_token_ids, tokenizer.eos_token_id}
        self._ends = ends - {None}
        lacking = tokenizer.lacking(model.config.vocab_size)
        self._padding = [i for i in lacking if i not in self._ends]  # of the table, never drawn

    def forget(self) -> None:
        """Read everything again in the next call, as after a switch of adapters."""
        self._read = []

    def stream(self, prompt: str | Messages) -> Iterator[str]:
        """Yield the text that follows, piece by piece; a piece has complete characters.

        Args:
            prompt: a text, which goes on; or messages such as `{"role": "user", "content": "..."}`,
                which the chat template of the model makes a text of, and which are answered.

        Raises:
            ValueError: if there is nothing to read, the template refuses the messages, or the
                prompt is longer than the model was made for.
        """
        if isinstance(prompt, str):
            ids = self.tokenizer.encode_beginning(prompt)
        else:
            text = self.tokenizer.render(prompt, add_generation_prompt=True)
            ids = self.tokenizer.encode(text, parse_special=True)
        yield from self.tokenizer.stream(self.tokens_after(ids))

    def tokens_after(self, prompt: list[int]) -> Iterator[int]:
        """Yield the ids of the tokens that follow those of a prompt.

        Raises:
            ValueError: if there are none in it, unknown ones, or more than the model was made for.
        """
        if not prompt:
            raise ValueError("the prompt is empty; there is nothing to go on from")
        check_tokens(prompt, self.model.config.vocab_size)
        started = time.perf_counter()
        self.prompt_tokens, self.tokens, self.finish_reason = prompt, [], "length"
        room = self.model.config.max_length - len(prompt)
        if room < 1:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, and this model was made for texts of at "
                f"most {self.model.config.max_length}; shorten it"
            )
        written = min(self.max_tokens, room)
        logits = self._read_prompt(prompt, len(prompt) + written)
        while True:
            logits[self._padding] = -np.inf
            token = int(sample(logits, self.temperature, self.top_k, self.top_p, self.rng))
            self.seconds = time.perf_counter() - started
            if token in self._ends:
                self.finish_reason = "stop"
                return
            self.tokens.append(token)
            yield token
            if len(self.tokens) == written:
                return
            logits = self._read_on([token])

    def _read_prompt(self, ids: list[int], needed: int) -> Any:
        """Return the scores of the token after `ids`, of which those in the caches are not read.

        `needed` is the number of tokens that will be in the caches in the end.
        """
        if needed > self._capacity:
            self._capacity = min(max(2 * needed, CAPACITY), self.model.config.max_length)
            self._caches, self._read = self.model.new_caches(1, self._capacity), []
        known = 0
        most = min(len(self._read), len(ids) - 1)  # the last is read again, for its scores
        while known < most and self._read[known] == ids[known]:
            known += 1
        for cache in self._caches:
            cache.truncate(known)
        self._read = self._read[:known]
        return self._read_on(ids[known:])

    def _read_on(self, ids: list[int]) -> Any:
        """Read tokens after those in the caches, and return the scores of the token after them."""
        logits = None
        for start in range(0, len(ids), PREFILL):
            part = ids[start : start + PREFILL]
            logits = self.model.next_logits(np.array([part]), self._caches)[0]
            self._read += part
        return logits


def generate(
    model: LanguageModel, tokenizer: Tokenizer, prompt: str | Messages, **options: Any
) -> str:
    """Return what the model writes after a prompt, or answers to messages.

    The options are those of `TextGenerator`, and the prompt is that of its `stream`.
    """
    return "".join(TextGenerator(model, tokenizer, **options).stream(prompt))
