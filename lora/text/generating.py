"""Generate text with a language model, one token after the other, drawn from the logits."""

from __future__ import annotations

import operator
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.adapted_layer import AdaptedLayer
from lora.adapter import Adapter
from lora.text.loading import check_model
from lora.text.model import LanguageModel
from lora.text.tokenization import Tokenizer, check_tokenizer, check_tokens
from minigrad import random
from minigrad.checks import check_count, check_positive
from minigrad.errors import named_errors
from minigrad.nn import KVCache
from minigrad.sampling import sample
from minigrad.training.evaluation import evaluation_mode
from minigrad.versions import last_write, last_written

Messages = Sequence[Mapping[str, str]]

PREFILL = 512  # tokens of a prompt that are computed at once, to limit the memory
CAPACITY = 4096  # initial capacity of the caches in tokens; the system gives memory only when used


class TextGenerator:
    """Continue a prompt, or answer in a conversation.

    A generator keeps the keys and values of earlier tokens (a KV cache). So in a conversation, only
    new tokens are computed. It notices when the model was changed in the meantime, unless numpy
    wrote to a weight (see `forget`).

    Of the model's `generation_config.json` only the end tokens count. Other entries, such as
    `temperature` and `repetition_penalty`, which transformers applies, are ignored.

    Args:
        model: the language model, with adapters or without.
        tokenizer: its tokenizer.
        max_tokens: the largest number of tokens to write.
        temperature: the divisor of the logits; 0 always chooses the likeliest token. By default it
            is 1 with `top_k` or `top_p`, and 0 without.
        top_k: draw only from this many of the likeliest tokens.
        top_p: draw only from the likeliest tokens that together have this probability.
        seed: the seed of the draws; None for the default generator.

    Attributes:
        prompt_tokens: the ids of the last prompt.
        tokens: the ids that were generated after the prompt.
        seconds: the time from the start until the last token.
        finish_reason: "stop" after an end-of-text token, "length" after `max_tokens` tokens or at
            the largest length of the model.

    Raises:
        ValueError: if an option has an impossible value, such as a temperature below 0.
        TypeError: if `temperature` or `top_p` is not a number, `model` is not a model, or
            `tokenizer` is not a tokenizer.
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
        check_model(model)
        check_tokenizer(tokenizer)
        check_positive("max_tokens", max_tokens)
        check_count("seed", 0 if seed is None else seed)
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, int(max_tokens)
        usual = 0.0 if top_k is None and top_p is None else 1.0
        self.temperature = usual if temperature is None else temperature
        self.top_k, self.top_p = top_k, top_p
        # `sample` checks the options; it gets another generator, because it draws from it.
        sample(np.zeros(1), self.temperature, top_k, top_p, np.random.default_rng(0))
        self.rng = random.generator(None if seed is None else np.random.default_rng(seed))
        self.prompt_tokens: list[int] = []
        self.tokens: list[int] = []
        self.seconds, self.finish_reason = 0.0, ""
        self._read: list[int] = []  # the tokens whose keys and values are in the caches
        self._caches: list[KVCache] = []
        self._capacity = 0
        self._written = 0  # up to this time, the writes to weights are known
        # With these parts and scales, the caches were computed.
        self._parts: list[weakref.ref[Any]] = []
        self._scales: list[float] = []
        self._ends = {*model.config.eos_token_ids, tokenizer.eos_token_id} - {None}
        unused_ids = tokenizer.unused_ids(model.config.vocab_size)
        self._padding = [i for i in unused_ids if i not in self._ends]  # ids without a token

    def forget(self) -> None:
        """Drop the cached keys and values.

        This is needed if a weight was written through numpy, as by `w.data[...] = 1`.
        """
        self._read, self._caches, self._capacity = [], [], 0

    def stream(self, prompt: str | Messages) -> Iterator[str]:
        """Yield the generated text piece by piece; each piece has complete characters.

        Args:
            prompt: a text to continue; or messages such as `{"role": "user", "content": "..."}` to
                answer, which the chat template of the model converts to a text.

        Raises:
            ValueError: if the prompt is empty, there is no template, the template refuses the
                messages, the prompt is too long for the model, or the logits have NaN.
            ImportError: if messages are given, and the package jinja2 is not installed.
        """
        if isinstance(prompt, str):
            ids = self.tokenizer.encode_beginning(prompt)
        else:
            text = self.tokenizer.render(prompt, add_generation_prompt=True)
            ids = self.tokenizer.encode(text, parse_special=True)
        yield from self.tokenizer.stream(self.tokens_after(ids))

    def tokens_after(self, prompt: Sequence[int] | NDArray[np.integer[Any]]) -> Iterator[int]:
        """Yield the ids of the generated tokens, given the ids of a prompt, a list or an array.

        Raises:
            ValueError: if the prompt has no tokens, unknown ones, or too many for the model; and as
                for `stream`.
            IndexError: if an id is negative.
            TypeError: if an id is not an integer.
            RuntimeError: if the generator has begun another text in the meantime.
        """
        prompt = list(map(operator.index, prompt))
        if not prompt:
            raise ValueError("the prompt is empty; there is nothing to continue")
        check_tokens(prompt, self.model.config.vocab_size)
        room = self.model.config.max_length - len(prompt)
        if room < 1:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, and this model was made for texts of at "
                f"most {self.model.config.max_length}; shorten it"
            )
        started = time.perf_counter()
        self.prompt_tokens, self.finish_reason = prompt, "length"
        tokens = self.tokens = list[int]()
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
            if self.tokens is not tokens:
                raise RuntimeError(
                    "this generator has begun another text in the meantime, and has one cache; "
                    "make a TextGenerator for each"
                )
            if len(tokens) == written:
                return
            logits = self._read_on([token])

    def _read_prompt(self, ids: list[int], needed: int) -> Any:
        """Return the logits of the token after `ids`; those already in the caches are reused.

        `needed` is the number of tokens that the caches must have room for.
        """
        arrays = [weight._data for weight in self.model.parameters()]
        adapters = _active_adapters(self.model)
        parts = [*self.model.modules(), *arrays, *adapters]
        scales = [adapter.scale for adapter in adapters]
        is_same = len(parts) == len(self._parts) and scales == self._scales
        is_same &= all(ref() is part for ref, part in zip(self._parts, parts, strict=False))
        if not is_same or any(last_written(array) > self._written for array in arrays):
            self.forget()
            self._parts, self._scales = [weakref.ref(part) for part in parts], scales
        if needed > self._capacity:
            self._capacity = min(max(2 * needed, CAPACITY), self.model.config.max_length)
            self._caches, self._read = self.model.new_caches(1, self._capacity), []
        most = min(len(self._read), len(ids) - 1)  # compute the last one again, for its logits
        known = next((i for i in range(most) if self._read[i] != ids[i]), most)
        for cache in self._caches:
            cache.truncate(known)
        self._read, self._written = self._read[:known], last_write[0]
        return self._read_on(ids[known:])

    def _read_on(self, ids: list[int]) -> Any:
        """Append tokens to the caches, and return the logits of the token after them."""
        logits = None
        for start in range(0, len(ids), PREFILL):
            part = ids[start : start + PREFILL]
            # Without dropout, also between two parts of a training run.
            mode = evaluation_mode(self.model) if self.model.training else nullcontext()
            with mode:
                logits = self.model.next_logits(np.array([part]), self._caches)[0]
            self._read += part
        return logits


def _active_adapters(model: LanguageModel) -> list[Adapter]:
    """List the adapters with which the layers of a model compute."""
    return [
        layer.adapters[name]
        for layer in model.modules()
        if isinstance(layer, AdaptedLayer) and layer.enabled
        for name in layer.active
    ]


@named_errors
def generate(
    model: LanguageModel, tokenizer: Tokenizer, prompt: str | Messages, **options: Any
) -> str:
    """Return the text with which the model continues a prompt, or answers messages.

    `prompt` is as in `TextGenerator.stream`; `options` are the other arguments of `TextGenerator`.
    Errors are those of both.
    """
    return "".join(TextGenerator(model, tokenizer, **options).stream(prompt))
