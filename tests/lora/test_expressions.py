"""Regular expressions match as in Python's `re`, and in a time that has a limit."""

import json
import random
import re
import time
from pathlib import Path

import pytest

import lora
from lora.expressions import LONGEST_EXPRESSION, MOST_REPEATS, Expression
from minigrad.nn import MLP

REAL = json.loads((Path(__file__).parents[1] / "fixtures" / "expressions.json").read_text())

NAMES = [
    *(f"model.layers.{i}.self_attn.{part}_proj" for i in (0, 3, 17, 31) for part in "qkvo"),
    *(f"model.layers.{i}.mlp.{part}_proj" for i in (0, 3, 17, 31) for part in ("gate", "down")),
    *(f"model.visual.blocks.{i}.attn.qkv" for i in (0, 31)),
    *(f"model.language_model.layers.{i}.mlp.experts.{i}.w1" for i in (0, 11)),
    *("vision_tower.encoder.layers.2.self_attn.q_proj", "visual.merger.mlp.0", "lm_head"),
    *("transformer.h.11.attn.c_attn", "unet.down_blocks.1.attentions.0.to_k", "embed_tokens"),
    *("base.text_model.encoder.layers.1.mlp.fc1", "classifier", "a\n", ""),
]


@pytest.mark.parametrize("text", [each["expression"] for each in REAL])
def test_expressions_of_real_configurations_match_as_in_python(text):
    found, wanted = Expression(text), re.compile(text)
    assert [n for n in NAMES if found.matches(n)] == [n for n in NAMES if wanted.fullmatch(n)]


PARTS = [r"\.", *".ab0_", r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", "ab0"]
PARTS += ["[ab]", "[^a]", "[a-c_]", r"[^\d.]"]
REPEATS = ["*", "+", "?", "*?", "+?", "??", "{2}", "{1,3}", "{0,2}?", "{2,}"]


def drawn(rng, depth=0):
    """A regular expression at random."""
    kind = rng.randrange(14)
    if depth > 3 or kind < 4:
        return rng.choice(PARTS)
    inner = drawn(rng, depth + 1)
    if kind < 6:
        return inner + drawn(rng, depth + 1)
    if kind < 8:
        return f"(?:{inner}|{drawn(rng, depth + 1)})"
    if kind < 10:
        return f"({inner})" + rng.choice(REPEATS)
    if kind == 10:
        return f"(?{rng.choice('=!')}{inner})"
    if kind == 11:
        behind = rng.choice(["a", "[ab]", "ab", "a|b", "\\."])
        return f"(?<{rng.choice('=!')}{behind})"
    if kind == 12:
        return rng.choice(["^", "$", "\\b", "\\A", "\\Z", "\\B", "(?!)"])
    return f"(?{rng.choice(['i', 's', 'is', 'm', 'a'])}:{inner})"


def compare(seed):
    """Compare one expression with Python's, on several names; return whether it was accepted."""
    rng = random.Random(seed)
    text = rng.choice(["", "", "(?i)", "(?s)", "(?is)", "(?m)", "(?a)"]) + drawn(rng) + drawn(rng)
    try:
        found = Expression(text)
    except ValueError as error:
        if "repeat in a repeat" not in str(error):
            raise
        return False
    for _ in range(8):
        name = "".join(rng.choice("ab.0_A\n") for _ in range(rng.randrange(1, 9)))
        wanted = re.fullmatch(text, name) is not None
        assert found.matches(name) == wanted, (seed, text, name)
    return True


@pytest.mark.parametrize(
    "text", ["(?i)s", "(?i)[^k]", "(?i)[a-z]", "(?i)µ", "(?i)İ", r"\w", "s|(?!)"]
)
def test_every_character_matches_as_in_python(text):
    found, wanted = Expression(text), re.compile(text)
    characters = map(chr, range(0x2200))  # among them "ß", in capitals two letters
    assert not [c for c in characters if found.matches(c) != bool(wanted.fullmatch(c))]


def test_expressions_at_random_match_as_in_python():
    assert sum(map(compare, range(1500))) > 1000


@pytest.mark.full
def test_many_expressions_at_random_match_as_in_python():
    assert sum(map(compare, range(1500, 7_000))) > 3500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(", "not a regular expression"),
        ("(a+)+b", "a repeat in a repeat"),
        (r"(\w*\.)*b", "a repeat in a repeat"),
        ("((a{2}){3})*", "a repeat in a repeat"),
        (r"(a)\1", r"not supported \(groupref\)"),
        ("(a)?(?(1)b|c)", r"not supported \(groupref exists\)"),
        ("(?>a)b", r"not supported \(atomic group\)"),
        ("a*+b", r"not supported \(possessive repeat\)"),
        ("(?<=a+)b", "fixed-width"),
        ("(" * 5000 + "a" + ")" * 5000, "recursion"),
        ("a" * (LONGEST_EXPRESSION + 1), "characters"),
        ("a*" * (MOST_REPEATS + 1), "more than 100 repeats"),
    ],
)
def test_what_cannot_be_matched_in_time_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Expression(text)


@pytest.mark.parametrize(
    "text",
    [
        *("(a|a)*b", "(ab|a|b)*c", "(?:a|ab|b)" * 500 + "c", "(a?b?)*c", "(ab){1,100000}c"),
        *(each * MOST_REPEATS + "x" for each in (".*", ".*a", "(?=.*a)", "a?")),
    ],
)
def test_what_takes_python_forever_is_matched_at_once(text):
    found, start = Expression(text), time.perf_counter()
    for name in ("ab" * 500, "a" * 1000):
        assert not found.matches(name)
    assert time.perf_counter() - start < 5


def test_lookaheads_choose_layers_of_a_model():
    report = lora.attach(MLP([4, 4, 4, 4]), lora.LoRAConfig(2, targets=r"^(?!.*\b1\b)layers\.\d+$"))
    assert report.names == ["layers.0", "layers.2"]
    with pytest.raises(ValueError, match="a repeat in a repeat"):
        lora.LoRAConfig(targets="(a+)+b")
