"""The loss per counted token, and its standard error."""

import math

import numpy as np
import pytest

import lora
import minigrad
from lora.text.data import Row, read_rows
from lora.text.evaluating import evaluate
from tests.lora.models import shake
from tests.lora.text.stand_in import StandIn, tokenizer, written


def read(tmp_path, count=12):
    return read_rows(written(tmp_path / "rows.jsonl", count), tokenizer())


def test_the_loss_is_that_of_all_tokens_that_count(tmp_path):
    model, rows = StandIn(), read(tmp_path)
    sums, counts = zip(
        *((model.loss(row.ids[None], row.counted[None])) for row in rows), strict=True
    )
    total = sum(mean.item() * count for mean, count in zip(sums, counts, strict=True))
    report = evaluate(model, rows)
    assert report.tokens == sum(counts) == sum(row.counted.sum() for row in rows)
    assert report.loss == pytest.approx(total / sum(counts), rel=1e-12)
    assert report.perplexity == pytest.approx(math.exp(report.loss), rel=1e-12)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert "per token, perplexity" in repr(report)


@pytest.mark.parametrize(("loss", "perplexity"), [(math.nan, math.nan), (1e3, math.inf)])
def test_the_perplexity_is_nan_or_inf_if_the_loss_is_nan_or_very_large(
    tmp_path, monkeypatch, loss, perplexity
):
    monkeypatch.setattr(StandIn, "loss", lambda *given: (minigrad.tensor(loss), 1))
    assert evaluate(StandIn(), read(tmp_path)).perplexity == pytest.approx(perplexity, nan_ok=True)


class Known(StandIn):
    """A model whose losses are normal, with a share that is common to a row."""

    def __init__(self, rng):
        super().__init__()
        self.rng = rng

    def loss(self, ids, counted):
        n = int(counted[:, 1:].sum())
        mean = self.rng.normal(3.0, 0.5) + self.rng.normal(0.0, 1.0, n).mean()
        return minigrad.tensor(mean), n


@pytest.mark.full
def test_the_standard_error_is_the_deviation_over_many_samples():
    rng = np.random.default_rng(0)
    found, errors = [], []
    for _ in range(400):
        lengths = rng.integers(2, 30, 60)
        rows = [Row(np.zeros(n, int), np.arange(n) > 0) for n in lengths]
        report = evaluate(Known(rng), rows)
        found.append(report.loss)
        errors.append(report.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.12)


def test_the_base_is_beside_the_adapters(tmp_path):
    model, rows = StandIn(), read(tmp_path)
    plain = evaluate(model, rows)
    lora.attach(model, lora.LoRAConfig(rank=2), rng=np.random.default_rng(0))
    shake(model, np.random.default_rng(1))
    report = evaluate(model, rows, base=True)
    assert report.base == plain
    assert report.loss != plain.loss
    assert repr(report).splitlines()[1].startswith("base: ")
    with pytest.raises(ValueError, match="no adapters"):
        evaluate(StandIn(), rows, base=True)


def test_rows_without_a_token_that_counts_are_no_observations(tmp_path):
    rows, model = read(tmp_path, 3), StandIn()
    masked = Row(np.arange(5), np.zeros(5, np.bool_))
    assert evaluate(model, [*rows, *[masked] * 10]) == evaluate(model, rows)
    assert math.isnan(evaluate(model, [rows[0], masked]).standard_error)


def test_one_row_has_no_standard_error_and_none_is_refused(tmp_path):
    rows = read(tmp_path, 1)
    report = evaluate(StandIn(), rows)
    assert math.isnan(report.standard_error)
    assert "nan" not in repr(report)
    assert "+-" not in repr(report)
    for nothing in ([], [Row(np.array([1, 2]), np.array([True, False]))]):
        with pytest.raises(ValueError, match="nothing to evaluate"):
            evaluate(StandIn(), nothing)
