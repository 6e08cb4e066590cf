"""evaluate: the loss of a language model per counted token, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora.attaching import disabled
from lora.text.data import Row
from lora.text.loading import check_model
from minigrad.checks import shown
from minigrad.errors import named_errors
from minigrad.progress import progress_bar
from minigrad.training.evaluation import evaluation_mode


@dataclass(frozen=True, repr=False)
class EvalReport:
    """The loss and perplexity of a model on some rows.

    Attributes:
        loss: the mean of -log p over all tokens that count.
        perplexity: e^loss.
        tokens: the number of tokens that count.
        standard_error: the standard error of the loss; NaN for a single row that counts.
        base: the report of the model without its adapters, if it was requested.
    """

    loss: float
    perplexity: float
    tokens: int
    standard_error: float
    base: EvalReport | None = None

    def __repr__(self) -> str:
        loss, perplexity = f"loss {self.loss:.4f}", f"perplexity {self.perplexity:.4g}"
        if not math.isnan(self.standard_error):
            loss += f" +- {self.standard_error:.4f}"
            perplexity += f" +- {self.perplexity * self.standard_error:.2g}"  # to first order
        text = f"{loss} per token, {perplexity}, {self.tokens:,} tokens"
        return text if self.base is None else f"with adapters: {text}\nbase: {self.base!r}"


@named_errors
def evaluate(
    model: Any, rows: Sequence[Row], *, base: bool = False, progress: bool = True
) -> EvalReport:
    """Compute the loss per counted token over rows, and its standard error.

    Row i has n_i tokens that count, and s_i is the sum of their -log p. The loss is the ratio

        R = sum(s_i) / sum(n_i),    variance n / (n - 1) sum((s_i - R n_i)^2) / sum(n_i)^2,

    for n rows with tokens that count. The variance treats rows as independent, but not the tokens
    in a row (Cochran, 1977, section 2.11). The model evaluates each row separately, without
    padding.

    Args:
        model: a language model with `loss(ids, counted) -> (mean, count)`.
        rows: the rows, such as those of `read_rows`.
        base: whether to evaluate the model without its adapters too; the report has it as `base`.
        progress: show a progress bar if it takes long.

    Raises:
        ValueError: if there are no rows, no token counts, or `base` is set and there are no
            adapters.
        TypeError: if `model` is not a model, or `rows` are no rows, such as a path.
    """
    check_model(model)
    if not isinstance(rows, Sequence) or not all(isinstance(row, Row) for row in rows):
        raise TypeError(
            f"rows are those of lora.text.read_rows(file, tokenizer), not {shown(rows)}"
        )
    if not any(row.counted[1:].any() for row in rows):
        raise ValueError("there is nothing to evaluate: no row has a token that counts")
    without = None
    if base:
        with disabled(model):
            without = evaluate(model, rows, progress=progress)
    sums, counts = np.zeros((2, len(rows)))
    with evaluation_mode(model):
        bar = progress_bar(rows, what="evaluation", unit="row", shown=progress)
        for number, row in enumerate(bar):
            if row.counted[1:].any():
                mean, counts[number] = model.loss(row.ids[None], row.counted[None])
                sums[number] = mean.item() * counts[number]
    n, tokens = int(np.count_nonzero(counts)), float(counts.sum())
    loss = float(sums.sum()) / tokens
    spread = float(np.square(sums - loss * counts).sum())
    error = math.sqrt(n / (n - 1) * spread) / tokens if n > 1 else math.nan
    perplexity = math.inf if loss >= 700 else math.exp(loss)  # e^710 is beyond float64
    return EvalReport(loss, perplexity, int(tokens), error, without)
