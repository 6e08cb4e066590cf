"""The next token: the right ones are left, and drawn as often as they should be."""

import math

import numpy as np
import pytest

import minigrad
from minigrad.sampling import sample

LOGITS = np.log([0.1, 0.4, 0.05, 0.25, 0.2])
DRAWS = 20_000


def plainly(logits, temperature=1.0, top_k=None, top_p=None):
    """The probabilities as they are defined, one token after the other, the likeliest first."""
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    if top_k is not None:
        order = order[:top_k]
    total = sum(weights[i] for i in order)
    left, mass = [], 0.0
    for i in order:
        if top_p is None or mass < top_p or not left:
            left.append(i)
        mass += weights[i] / total
    total = sum(weights[i] for i in left)
    return np.array([weights[i] / total if i in left else 0.0 for i in range(len(weights))])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 99},
        {"top_p": 0.0},
        {"top_p": 0.39},
        {"top_p": 0.41},
        {"top_p": 0.7},
        {"top_p": 1.0},
        {"top_k": 3, "top_p": 0.5},
        {"temperature": 0.7, "top_k": 4, "top_p": 0.9},
    ],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_defined(options, rng):
    expected = plainly(LOGITS, **options)
    drawn = sample(np.tile(LOGITS, (DRAWS, 1)), **options, rng=rng)
    found = np.bincount(drawn, minlength=5) / DRAWS
    assert not found[expected == 0].any()
    spread = np.sqrt(expected * (1 - expected) / DRAWS)
    assert (abs(found - expected) <= 4.5 * spread).all()


def test_one_row_is_drawn_as_a_batch_of_one_and_equal_seeds_give_equal_tokens():
    logits = np.random.default_rng(0).standard_normal((50, 1000)).astype(np.float32)

    def tokens(seed):
        rng = np.random.default_rng(seed)
        return [sample(minigrad.tensor(row), top_k=40, top_p=0.9, rng=rng) for row in logits]

    found = tokens(1)
    assert all(type(token) is int for token in found)
    batch = sample(logits, top_k=40, top_p=0.9, rng=np.random.default_rng(1))
    assert batch.dtype == np.int64
    assert batch.tolist() == found == tokens(1) != tokens(2)
    minigrad.manual_seed(1)
    assert sample(logits, top_k=40, top_p=0.9).tolist() == found


def test_at_temperature_0_the_first_of_the_likeliest_is_taken_and_nothing_drawn(rng):
    before = rng.bit_generator.state
    assert sample([1.0, 3.0, 3.0, -math.inf], 0, rng=rng) == 1
    assert sample([[1.0, 2.0], [4.0, 2.0]], 0, top_k=1, rng=rng).tolist() == [1, 0]
    assert rng.bit_generator.state == before


def test_equally_likely_tokens_are_left_together(rng):
    logits = np.tile(np.log([0.3, 0.2, 0.3, 0.2]), (2000, 1))
    for options, left in (
        ({"top_k": 1}, {0, 2}),
        ({"top_k": 3}, {0, 1, 2, 3}),
        ({"top_p": 0.1}, {0, 2}),
        ({"top_p": 0.55}, {0, 2}),
        ({"top_p": 0.7}, {0, 1, 2, 3}),
    ):
        assert set(sample(logits, **options, rng=rng).tolist()) == left


def test_what_is_impossible_is_never_drawn_whatever_the_generator_gives(rng):
    class Extreme(np.random.Generator):
        def random(self, shape):
            return np.full(shape, self.value)

    logits = [-math.inf, 0.1, -math.inf, 0.2, -math.inf]
    extreme = Extreme(np.random.PCG64(0))
    for temperature in (1e-300, 0.3, 1.0, 1e300):
        for extreme.value in (0.0, 1 - 2**-53):
            assert sample(logits, temperature, rng=extreme) in (1, 3)
    assert sample(logits, 1e-300, rng=rng) == 3
    assert sample([-math.inf, 7.0], rng=rng) == 1
    assert set(sample(np.full((200, 2), 1e30), rng=rng).tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("logits", "options", "message"),
    [
        ([0.0, math.nan], {}, "row 0 of the logits has NaN"),
        ([[0.0, 1.0], [0.0, math.nan]], {"temperature": 0}, "row 1 of the logits has NaN"),
        ([0.0, math.inf], {}, r"row 0 of the logits has \+inf"),
        ([-math.inf, -math.inf], {}, "row 0 of the logits has nothing but -inf"),
        ([], {}, r"logits are \(tokens,\) or \(batch, tokens\), not \(0,\)"),
        (np.zeros((2, 3, 4)), {}, r"not \(2, 3, 4\)"),
        ([0.0], {"temperature": -1.0}, r"temperature must be in \[0"),
        ([0.0], {"temperature": math.nan}, "temperature"),
        ([0.0], {"top_k": 0}, "top_k must be a positive integer, not 0"),
        ([0.0], {"top_p": 1.5}, r"top_p is a probability, not 1\.5"),
    ],
)
def test_what_no_token_can_be_drawn_from_is_refused(logits, options, message):
    with pytest.raises(ValueError, match="sample: .*" + message):
        sample(logits, **options)


@pytest.mark.parametrize("seed", ["a", -1, 1.5, None])
def test_a_seed_is_a_count(seed):
    with pytest.raises(
        ValueError, match=f"the seed must be an integer of at least 0, not {seed!r}"
    ):
        minigrad.manual_seed(seed)
