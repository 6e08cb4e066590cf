"""Pictures of adapters show what numpy's own svd finds in the updates; bad input is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="pictures need the `examples` extra")

from matplotlib.figure import Figure

import lora
from lora import viz
from lora.__main__ import main
from lora.offline import summarise
from lora.spectra import Spectral
from lora.viz import LayerUpdate, updates
from minigrad import nn


def adapted(rng, trained=True, adapter="default", model=None, **options):
    """Two blocks and a head, of which the updates are drawn at random."""
    if model is None:
        model = nn.Sequential(*(nn.TransformerBlock(8, 2, rng=rng) for _ in range(2)))
    options = {"rank": 3, "alpha": 6, "targets": ["q_proj", "mlp.layers.1"]} | options
    report = lora.attach(model, lora.LoRAConfig(**options), adapter=adapter, rng=rng)
    if trained:
        modules = dict(model.named_modules())
        for name in report.names:
            part = modules[name].adapters[adapter]
            part.lora_b = rng.standard_normal(part.lora_b.shape)
            if part.lora_magnitude is not None:
                part.lora_magnitude = 2 * part.lora_magnitude.data
    return model


def layer(model, name):
    return dict(model.named_modules())[name]


def formed(model, name):
    """dW in float64, from the weights with and without it."""
    where = layer(model, name)
    where = where.astype(np.float64)
    return where.merged_weight().data - where.base_weight.data


def lines(axes):
    return {line.get_label(): np.array(line.get_xydata()).T for line in axes.lines}


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


NAMES = ["0.attn.q_proj", "0.mlp.layers.1", "1.attn.q_proj", "1.mlp.layers.1"]


# --------------------------------------------------------------------------------------------------
# What is drawn
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "rank"),
    [({}, 3), ({"init": "pissa"}, 6), ({"use_dora": True}, 8), ({"scaling": "rslora"}, 3)],
)
def test_updates_are_those_that_numpy_finds(rng, options, rank):
    model = adapted(rng, **options).astype(np.float64)
    found = updates(model)
    assert [update.name for update in found] == NAMES
    for update in found:
        dense = formed(model, update.name)
        values = np.linalg.svd(dense, compute_uv=False)
        assert update.rank == rank == len(update.singular_values)
        np.testing.assert_allclose(update.singular_values, values[:rank], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(values[rank:], 0, atol=1e-12)
        assert update.norm == pytest.approx(np.linalg.norm(dense), rel=1e-9)
        base = np.linalg.norm(layer(model, update.name).base_weight.data)
        assert update.share == pytest.approx(np.linalg.norm(dense) / base, rel=1e-9)


def test_active_adapters_are_taken_together_or_one_by_name(rng):
    model = adapted(rng, adapter="one")
    model = adapted(rng, adapter="two", model=model, rank=2, targets=["q_proj"])
    lora.switch(model, "one", "two")
    together, one, two = updates(model), updates(model, "one"), updates(model, "two")
    assert [update.rank for update in together] == [5, 3, 5, 3]
    assert [update.name for update in two] == [NAMES[0], NAMES[2]]
    values = np.linalg.svd(formed(model, NAMES[0]), compute_uv=False)
    np.testing.assert_allclose(together[0].singular_values, values[:5], rtol=1e-5)
    lora.switch(model, "one")
    assert updates(model) == one
    assert updates(model, "two") == two


def test_the_rank_of_a_sum_is_no_larger_than_the_weight(rng):
    model = nn.MLP([8, 3], rng=rng)
    for name in ("one", "two"):
        adapted(rng, adapter=name, model=model, rank=2, targets=["layers.0"])
    lora.switch(model, "one", "two")
    (update,) = updates(model)
    assert update.rank == len(update.singular_values) == 3


def test_a_model_that_was_trained_whole_is_drawn_by_way_of_extract(rng):
    base, tuned = (nn.MLP([6, 5, 4], rng=np.random.default_rng(0)) for _ in range(2))
    base, tuned = base.astype(np.float64), tuned.astype(np.float64)
    differences = [rng.standard_normal(linear.weight.shape) for linear in base.layers]
    for linear, difference in zip(tuned.layers, differences, strict=True):
        linear.weight.data = linear.weight.data + difference
    lora.extract(base, tuned, rank=6, progress=False)
    for update, difference in zip(updates(base), differences, strict=True):
        values = np.linalg.svd(difference, compute_uv=False)
        np.testing.assert_allclose(update.singular_values, values)
    assert len(viz.plot_singular_values(base).axes[0].lines) == 3


def test_an_embedding_and_a_weight_in_four_bits(rng):
    model = nn.Sequential(nn.Embedding(20, 8, rng=rng), nn.Linear(8, 16, rng=rng))
    lora.quantize(model, ["1"])
    model = adapted(rng, model=model, targets=["0", "1"])
    embedding, linear = updates(model)
    table = layer(model, "0")
    assert embedding.base_norm == pytest.approx(np.linalg.norm(table.base_weight.data), rel=1e-6)
    dense = table.lora_b.data.astype(float) @ table.lora_a.data * table.scale
    assert embedding.norm == pytest.approx(np.linalg.norm(dense), rel=1e-6)
    assert linear.base_norm == pytest.approx(np.linalg.norm(layer(model, "1").weight.dense()))


def test_effective_rank_counts_directions_of_like_size():
    def of(*values):
        return LayerUpdate("layer", len(values), values, 1.0).effective_rank

    assert of(2.0, 2.0, 2.0) == pytest.approx(3)
    assert of(2.0, 0.0, 0.0) == 1
    assert of(0.0, 0.0) == 0
    assert 1 < of(2.0, 0.1) < 1.5


def test_the_share_of_a_weight_of_zeros_is_not_a_number():
    assert np.isnan(LayerUpdate("layer", 1, (2.0,), 0.0).share)


# --------------------------------------------------------------------------------------------------
# Singular values
# --------------------------------------------------------------------------------------------------


def test_singular_values_have_a_line_for_each_layer_and_end_at_the_rank(rng):
    model = adapted(rng)
    found = updates(model)
    spectra, bars = viz.plot_singular_values(model).axes
    drawn = lines(spectra)
    for update in found:
        assert drawn[update.name].tolist() == [[1, 2, 3], list(update.singular_values)]
    assert spectra.get_yscale() == "log"
    (bound,) = [line for line in spectra.lines if line.get_linestyle() == "--"]
    assert bound.get_xdata()[0] == 3.5
    assert [text.get_text() for text in spectra.texts] == [" rank"]
    ranks, effective = bars.containers
    assert [bar.get_width() for bar in ranks] == [3] * 4
    assert [bar.get_width() for bar in effective] == [update.effective_rank for update in found]
    assert labels(bars.yaxis) == NAMES
    assert [text.get_text() for text in bars.texts] == [f"{u.effective_rank:.1f}" for u in found]


def test_ranks_that_differ_between_layers_are_drawn_each(rng):
    model = adapted(rng, rank_pattern={"1.attn.q_proj": 1})
    spectra, bars = viz.plot_singular_values(model).axes
    assert len(lines(spectra)["1.attn.q_proj"][0]) == 1
    assert [bar.get_width() for bar in bars.containers[0]] == [3, 3, 1, 3]


def test_of_many_layers_the_legend_names_the_shades_of_the_first_and_the_last(rng):
    model = nn.MLP([4] * 12, rng=rng)
    names = [f"layers.{place}" for place in range(11)]
    spectra = viz.plot_singular_values(adapted(rng, model=model, targets=names)).axes[0]
    assert len(spectra.lines) == 11 + 1
    legend = spectra.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["layers.0", "layers.10"]
    shades = [line.get_color() for line in legend.get_lines()]
    assert np.array_equal(shades, [spectra.lines[at].get_color() for at in (0, 10)])


@pytest.mark.full
def test_dollar_signs_in_the_name_of_a_layer_are_no_formula(rng):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            setattr(self, "$_$", nn.Linear(4, 4, rng=rng))

    model = adapted(rng, model=Net(), targets="all-linear")
    plots = viz.plot_change, viz.plot_singular_values, lambda model: viz.plot_factors(model, "$_$")
    for plot in plots:
        assert plot(model).rendered("png").startswith(b"\x89PNG")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("broken_is_first", [True, False])
def test_an_update_that_is_not_finite_is_named_and_leaves_the_others(broken_is_first, value):
    found = [Spectral("fine", 2, (3.0, 1.0)), Spectral("broken", 2, (value, 1.0))]
    axes = Figure().subplots()
    viz.draw_spectra(axes, found[::-1] if broken_is_first else found)
    drawn = lines(axes)
    assert drawn["fine"].tolist() == [[1, 2], [3, 1]]
    assert drawn["broken"].size == 0
    names = {text.get_text() for text in axes.get_legend().get_texts()}
    assert names == {"fine", "broken: not finite"}
    assert axes.get_yscale() == "log"


def test_what_is_rounding_is_not_drawn(rng):
    model = adapted(rng).astype(np.float64)
    for name in NAMES:
        layer(model, name).lora_b.data[:, 1:] = layer(model, name).lora_b.data[:, :1]
    spectra = viz.plot_singular_values(model).axes[0]
    assert [len(lines(spectra)[name][0]) for name in NAMES] == [1] * 4


# --------------------------------------------------------------------------------------------------
# A and B
# --------------------------------------------------------------------------------------------------


def test_the_factors_and_their_product_are_drawn(rng):
    model = adapted(rng)
    where = layer(model, NAMES[1])
    figure = viz.plot_factors(model, NAMES[1])
    corner, top, left, middle = figure.axes
    a, b = where.lora_a.data.astype(float), where.lora_b.data.astype(float)
    for axes, matrix in ((top, a), (left, b), (middle, where.scale * (b @ a))):
        (image,) = axes.images
        np.testing.assert_array_equal(image.get_array(), matrix)
        assert (image.norm.vmin, image.norm.vmax) == (-np.abs(matrix).max(), np.abs(matrix).max())
        assert f"{np.abs(matrix).max():.2g}" in axes.get_title()
    assert "A, 3 x 32" in top.get_title()
    assert "B, 8 x 3" in left.get_title()
    assert "rank 3, s = 2" in corner.texts[0].get_text()
    norm = np.linalg.norm(where.scale * (b @ a))
    assert figure.get_suptitle() == f"{NAMES[1]}: |dW| = {norm:.3g}"


def test_of_a_large_matrix_no_extreme_is_lost(rng):
    model = nn.Sequential(nn.Linear(1000, 900, rng=rng))
    a = layer(adapted(rng, model=model, targets=["0"]), "0").lora_a
    a.data[:, 333] = -100
    (image,) = viz.plot_factors(model, "0").axes[1].images
    shown = image.get_array()
    assert shown.shape == (3, 400)
    assert list(image.get_extent()) == [-0.5, 999.5, 2.5, -0.5]
    assert (shown == -100).sum() == 3
    assert shown[:, 0].tolist() == [max(row, key=abs) for row in a.data[:, :2].tolist()]


def test_a_b_of_zeros_is_said_to_be(rng):
    figure = viz.plot_factors(adapted(rng, trained=False), NAMES[0])
    assert [axes.get_title().split(": ")[-1] for axes in figure.axes[2:]] == ["all 0"] * 2
    assert figure.get_suptitle() == f"{NAMES[0]}: |dW| = 0"


# --------------------------------------------------------------------------------------------------
# Where the change is
# --------------------------------------------------------------------------------------------------


def test_the_change_is_placed_by_depth_and_kind(rng):
    model = adapted(rng, targets=["q_proj", "0.mlp.layers.1"])
    found = {update.name: update for update in updates(model)}
    figure = viz.plot_change(model)
    axes, bar = figure.axes
    assert labels(axes.yaxis) == ["0", "1"]
    assert labels(axes.xaxis) == ["attn.q_proj", "mlp.layers.1"]
    shown = axes.images[0].get_array()
    expected = [100 * found[name].share for name in NAMES[:3]]
    np.testing.assert_allclose([shown[0, 0], shown[0, 1], shown[1, 0]], expected)
    assert shown.mask[1, 1]
    written = [f"{share:,.0f}" if share >= 1000 else f"{share:.3g}" for share in expected]
    assert [text.get_text() for text in axes.texts] == written
    most = max(range(3), key=expected.__getitem__)
    assert figure.get_suptitle() == f"{NAMES[most]} changes most, by {written[most]} %"
    assert "%" in bar.get_ylabel()


def test_a_change_larger_than_the_weight_is_written_out(rng):
    model = adapted(rng, targets=["0.attn.q_proj"])
    layer(model, NAMES[0]).lora_b = 1e3 * layer(model, NAMES[0]).lora_b.data
    (update,) = updates(model)
    assert update.share > 10
    figure = viz.plot_change(model)
    written = f"{100 * update.share:,.0f}"
    assert [text.get_text() for text in figure.axes[0].texts] == [written]
    assert figure.get_suptitle().endswith(f"by {written} %")


def test_layers_without_a_number_or_a_kind_have_a_place_too(rng):
    class Net(nn.Module):
        def __init__(self):
            self.layers = [nn.Linear(4, 4, rng=rng) for _ in range(2)]
            self.head = nn.Linear(4, 4, rng=rng)

    model = adapted(rng, model=Net(), targets=["layers.0", "layers.1", "head"])
    axes = viz.plot_change(model).axes[0]
    assert labels(axes.yaxis) == ["-", "0", "1"]
    assert labels(axes.xaxis) == ["layers", "head"]
    assert labels(viz.plot_change(layer(model, "head")).axes[0].xaxis) == ["LoRALayer"]


def test_before_training_nothing_has_changed(rng):
    figure = viz.plot_change(adapted(rng, trained=False))
    assert figure.get_suptitle() == "Nothing has changed yet"
    assert np.max(figure.axes[0].images[0].get_array()) == 0


@pytest.mark.parametrize("targets", [["0.attn.q_proj"], ["q_proj"]])
def test_the_change_of_a_base_weight_of_zeros_has_no_share(rng, targets):
    model = adapted(rng, trained=False, targets=targets)
    changed = layer(model, NAMES[0])
    changed.base_weight.data[:] = 0
    changed.lora_b = np.ones(changed.lora_b.shape)
    assert viz.plot_change(model).get_suptitle() == "Only weights that were 0 have changed"


# --------------------------------------------------------------------------------------------------
# Files and bad input
# --------------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("plot", "names", "ending", "start"),
    [
        (viz.plot_singular_values, [], "png", b"\x89PNG"),
        (viz.plot_factors, NAMES[:1], "svg", b"<?xm"),
        (viz.plot_change, [], "pdf", b"%PDF"),
    ],
)
def test_a_picture_is_saved(rng, tmp_path, plot, names, ending, start):
    path = tmp_path / f"picture.{ending}"
    plot(adapted(rng), *names, path=path)
    assert path.read_bytes()[:4] == start


def test_bad_input_is_refused_and_nothing_is_written(rng, tmp_path):
    model = adapted(rng)
    adapted(rng, adapter="other", model=model)
    out = tmp_path / "none.png"
    fresh = adapted(rng, trained=False)
    broken = adapted(rng)
    layer(broken, NAMES[2]).lora_a.data[0, 0] = np.nan
    dora = adapted(rng, use_dora=True)
    layer(dora, NAMES[2]).lora_magnitude.data[0] = np.inf
    plain = nn.Linear(2, 2)
    for call, error, says in (
        (lambda: viz.plot_change(plain, path=out), ValueError, "no adapters; lora.attach"),
        (lambda: viz.plot_change([], path=out), TypeError, "only a Module has adapters, not"),
        (
            lambda: viz.plot_change(model, "third", out),
            ValueError,
            "no adapter 'third'; the model has 'default', 'other'",
        ),
        (lambda: viz.plot_singular_values(fresh, path=out), ValueError, "every update is 0"),
        (
            lambda: viz.plot_singular_values(broken, path=out),
            ValueError,
            "the update of 1.attn.q_proj has NaN or Inf",
        ),
        (
            lambda: viz.plot_factors(broken, NAMES[2], path=out),
            ValueError,
            "the update of 1.attn.q_proj has NaN or Inf",
        ),
        (
            lambda: viz.plot_change(dora, path=out),
            ValueError,
            "the update of 1.attn.q_proj has NaN or Inf",
        ),
        (
            lambda: viz.plot_factors(model, "head", "other", out),
            ValueError,
            f"no adapter changes a layer 'head'; those that are changed: {', '.join(NAMES)}",
        ),
        (lambda: viz.plot_change(model, path=tmp_path / "x.txt"), ValueError, "not a picture"),
        (
            lambda: viz.plot_factors(model, NAMES[0], path=tmp_path / "x"),
            ValueError,
            "not a picture",
        ),
        (
            lambda: viz.plot_singular_values(model, path=tmp_path / "no" / "x.png"),
            FileNotFoundError,
            "there is no folder",
        ),
    ):
        with pytest.raises(error, match=says):
            call()
    lora.switch(model, "default", "other")
    with pytest.raises(ValueError, match="say which one to draw: adapter='default'"):
        viz.plot_factors(model, NAMES[0], path=out)
    lora.switch(model)
    with pytest.raises(ValueError, match="no adapter is active; the model has 'default', 'other'"):
        viz.plot_change(model, path=out)
    assert list(tmp_path.iterdir()) == []


def test_files_say_of_an_adapter_what_the_model_says(rng, tmp_path, capsys):
    model = adapted(rng)
    lora.save(model, tmp_path / "adapter")
    picture = tmp_path / "picture.png"
    assert main(["inspect", str(tmp_path / "adapter"), "--plot", str(picture), "--json"]) == 0
    layers = {each["name"]: each for each in json.loads(capsys.readouterr().out)["layers"]}
    for update in updates(model):
        values = layers[update.name]["singular_values"]
        np.testing.assert_allclose(values, update.singular_values, rtol=1e-9)
        assert layers[update.name]["effective_rank"] == pytest.approx(update.effective_rank)
    assert Path(picture).read_bytes().startswith(b"\x89PNG")


def test_a_file_lists_its_layers_in_the_order_of_the_model(rng, tmp_path):
    model = nn.MLP([4] * 13, rng=rng)
    lora.save(adapted(rng, model=model, targets="all-linear"), tmp_path / "adapter")
    found = summarise(tmp_path / "adapter").layers
    assert [layer.name for layer in found] == [update.name for update in updates(model)]


class EncoderDecoder(nn.Module):
    def __init__(self):
        self.encoder, self.decoder = [nn.MLP((3, 3))], [nn.MLP((3, 3))]

    def forward(self, x):
        return self.decoder[0](self.encoder[0](x))


def test_layers_of_an_encoder_and_a_decoder_have_cells_of_their_own():
    model = EncoderDecoder()
    lora.attach(model, lora.LoRAConfig(rank=1), rng=np.random.default_rng(0))
    model.decoder[0].layers[0].lora_b = np.ones((3, 1), np.float32)
    figure = viz.plot_change(model)
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown == ["encoder.*.layers.0", "decoder.*.layers.0"]
