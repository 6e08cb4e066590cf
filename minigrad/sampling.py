"""Sampling: draw the next token of a text, from the logits of all tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.checks import check_positive, check_probability, check_range
from minigrad.core.tensor import Array, as_array
from minigrad.errors import named_errors
from minigrad.random import Rng, generator


@named_errors
def sample(
    logits: Array,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: Rng = None,
) -> Any:
    """Draw a token with the probabilities softmax(logits / temperature), computed in float64.

    First `top_k`, then `top_p` keeps only the most likely tokens. If a token is exactly as likely
    as the last one that is kept, it is kept too.

    Args:
        logits: `(tokens,)` or `(batch, tokens)`. A token with logit -inf is never drawn.
        temperature: values below 1 make likely tokens more likely. At 0, nothing is drawn: the
            result is the most likely token (the first, if there are several).
        top_k: the number of tokens to keep.
        top_p: keep the smallest number of tokens whose total probability is at least this (nucleus
            sampling, Holtzman et al., 2020, section 3.1).
        rng: the random generator. It draws one number for each row; equal seeds give equal tokens.

    Returns:
        An int, or an int64 array `(batch,)`.

    Raises:
        ValueError: if the logits have a wrong shape or no tokens, a row contains NaN or +inf or
            only -inf, or an option has an impossible value.
        TypeError: if the logits are not numbers, `temperature` or `top_p` is not a number, or `rng`
            is not a generator.
    """
    check_range("temperature", temperature, 0.0, np.inf)
    if top_k is not None:
        top_k = check_positive("top_k", top_k)
    if top_p is not None:
        check_probability("top_p", top_p)
    given = as_array(logits, how="sample()").astype(np.float64)
    if given.ndim not in (1, 2) or given.shape[-1] == 0:
        raise ValueError(f"logits are (tokens,) or (batch, tokens), not {given.shape}")
    rows = np.atleast_2d(given)
    highest = rows.max(axis=1, keepdims=True)  # nan if the row contains nan
    for row in np.flatnonzero(~np.isfinite(highest)):
        found = {np.inf: "+inf", -np.inf: "nothing but -inf"}.get(highest[row, 0], "NaN")
        raise ValueError(f"row {row} of the logits has {found}, so no token can be drawn")
    if temperature == 0:
        tokens = rows.argmax(axis=1)
    else:
        with np.errstate(over="ignore"):  # the overflow gives -inf, whose exponential is 0
            p = np.exp((rows - highest) / temperature)
        if top_k is not None and top_k < p.shape[1]:
            p[p < np.partition(p, -top_k)[:, -top_k, None]] = 0
        if top_p is not None and top_p < 1:
            ordered = np.sort(p)[:, ::-1]
            sums = ordered.cumsum(axis=1)
            last = (sums[:, :-1] < top_p * sums[:, -1:]).sum(axis=1, keepdims=True)
            p[p < np.take_along_axis(ordered, last, axis=1)] = 0
        sums = p.cumsum(axis=1)
        drawn = generator(rng).random((len(p), 1)) * sums[:, -1:]  # below the total, also rounded
        tokens = (sums <= drawn).sum(axis=1)
    return tokens if given.ndim == 2 else int(tokens[0])
