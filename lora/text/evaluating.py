"""evaluate: the loss of a language model per counted token, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora.attaching import disabled
from lora.text.data import Row
from minigrad.core.grad_mode import no_grad
from minigrad.progress import progress_bar


@dataclass(frozen=True, repr=False)
class EvalReport:
    """The loss of a model on some rows.

    Attributes:
        loss: the mean of -log p over all tokens that count.
        perplexity: e^loss.
        tokens: the number of tokens that count.
        standard_error: that of the loss; NaN for a single row.
        base: the same of the model without its adapters, if it was asked for.
        gain: the loss of the base minus that with the adapters, 0 without `base`.
        gain_error: the standard error of the gain, which is smaller than those of the two losses,
            because they are of the same rows.
    """

    loss: float
    perplexity: float
    tokens: int
    standard_error: float
    base: EvalReport | None = None
    gain: float = 0.0
    gain_error: float = 0.0

    def __repr__(self) -> str:
        error = self.perplexity * self.standard_error  # of e^loss, to first order
        text = (
            f"loss {self.loss:.4f} +- {self.standard_error:.4f} per token, perplexity "
            f"{self.perplexity:.4g} +- {error:.2g}, {self.tokens:,} tokens"
        )
        if self.base is None:
            return text
        gain = f"gain {self.gain:.4f} +- {self.gain_error:.4f} per token"
        return f"with adapters: {text}\nbase:          {self.base!r}\n{gain}"


def evaluate(
    model: Any, rows: Sequence[Row], *, base: bool = False, progress: bool = True
) -> EvalReport:
    """Compute the loss per counted token over rows, and its standard error.

    Rows of n_i tokens that count have sums s_i of -log p. The loss is the ratio of the two totals,

        R = sum(s_i) / sum(n_i),    variance n / (n - 1) sum((s_i - R n_i)^2) / sum(n_i)^2,

    because the tokens of a row depend on each other, and rows do not (Cochran, 1977, section 2.11).
    Every row goes through the model alone, without padding.

    Args:
        model: a language model with `loss(ids, counted) -> (mean, count)`.
        rows: the rows, such as those of `read_rows`.
        base: whether to evaluate the model without its adapters too.
        progress: show a progress bar if it takes long.

    Raises:
        ValueError: if there are no rows, or none has a token that counts; or there are no adapters
            for `base` to leave out.
    """
    if not any(row.counted[1:].any() for row in rows):
        raise ValueError("there is nothing to evaluate: no row has a token that counts")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        sums, counts = _sums(model, rows, progress)
        if not base:
            return _report(sums, counts)
        with disabled(model):
            before, _ = _sums(model, rows, progress)
    finally:
        for module, training in modes:
            module.training = training
    gain, error = _ratio(before - sums, counts)
    return _report(sums, counts, _report(before, counts), gain, error)


def _sums(model: Any, rows: Sequence[Row], progress: bool) -> tuple[Any, Any]:
    """Return for each row the sum of -log p over the tokens that count, and their number."""
    sums, counts = np.zeros((2, len(rows)))
    with no_grad():
        bar = progress_bar(rows, what="evaluation", unit="row", shown=progress, total=len(rows))
        for number, row in enumerate(bar):
            if row.counted[1:].any():
                mean, counts[number] = model.loss(row.ids[None], row.counted[None])
                sums[number] = mean.item() * counts[number]
    return sums, counts


def _report(sums: Any, counts: Any, base: EvalReport | None = None, *gain: float) -> EvalReport:
    loss, error = _ratio(sums, counts)
    perplexity = math.exp(loss) if loss < 700 else math.inf  # e^710 is beyond float64
    return EvalReport(loss, perplexity, int(counts.sum()), error, base, *gain)


def _ratio(sums: Any, counts: Any) -> tuple[float, float]:
    """Return sum(s_i) / sum(n_i) and its standard error, see `evaluate`."""
    n, total = len(sums), float(counts.sum())
    ratio = float(sums.sum()) / total
    spread = float(np.square(sums - ratio * counts).sum())
    return ratio, math.sqrt(n / (n - 1) * spread) / total if n > 1 else math.nan
