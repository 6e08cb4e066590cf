"""A small language model of the interface that training and evaluation use, and its data."""

import json
from types import SimpleNamespace

import numpy as np

import minigrad
from lora.text.tokenization import Tokenizer
from minigrad.nn import Embedding, Linear, Module
from tests.lora.text.models import TEMPLATE, tiny_tokenizer

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]


class StandIn(Module):
    """Each token is predicted from the one before it."""

    def __init__(self, width=8, seed=0):
        rng, vocabulary = np.random.default_rng(seed), tiny_tokenizer().get_vocab_size()
        self.embed_tokens = Embedding(vocabulary, width, rng=rng)
        self.q_proj = Linear(width, width, bias=False, rng=rng)
        self.down_proj = Linear(width, width, bias=False, rng=rng)
        self.lm_head = Linear(width, vocabulary, bias=False, rng=rng)
        self.checkpointing = False
        self.used_checkpointing = set()
        self.config = SimpleNamespace(
            vocab_size=vocabulary,
            max_position_embeddings=64,
            max_length=64,
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=width // 2,
            tie_word_embeddings=False,
        )

    def forward(self, ids, cache=None):
        x = self.embed_tokens(ids)
        return self.lm_head(x + self.down_proj(minigrad.tanh(self.q_proj(x))))

    def loss(self, ids, counted, lengths=None):  # no token sees more than the one before it
        self.used_checkpointing.add(self.checkpointing)
        rows = np.flatnonzero(counted[:, 1:])
        logits = self(ids[:, :-1]).reshape(-1, self.config.vocab_size)[rows]
        return minigrad.cross_entropy(logits, ids[:, 1:].reshape(-1)[rows]), len(rows)


def tokenizer():
    named = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    return Tokenizer(tiny_tokenizer(), named, TEMPLATE)


def rows(count, seed=0):
    """Pairs of words, of which the second follows from the first."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        number = int(rng.integers(len(WORDS) - 1))
        made.append(
            {"prompt": WORDS[number], "completion": " " + " ".join(WORDS[number + 1 :][:3])}
        )
    return made


def written(file, count, seed=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(count, seed)))
    return file
