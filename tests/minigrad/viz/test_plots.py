"""Pictures of training show the numbers they are given, and refuse what they cannot show."""

import copy
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="pictures need the `examples` extra")

from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.testing import assert_array_equal

import minigrad
from minigrad import History, Trainer, nn, viz
from minigrad.optim import SGD, Adam
from minigrad.viz.plots import FAR


def trained(epochs=4, validation=True, recorder=None, **options):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3)).astype(np.float32)
    y = (x[:, :1] > 0).astype(np.float32)
    model = nn.MLP([3, 8, 1], minigrad.tanh, rng=rng)
    loss = minigrad.binary_cross_entropy_with_logits
    trainer = Trainer(model, Adam(model.parameters(), lr=0.01), loss, progress=False, **options)
    return trainer.fit((x, y), epochs, validation=(x, y) if validation else None)


def right(prediction, target):
    return float(np.mean((prediction > 0) == target))


def lines(axes):
    return {line.get_label(): np.array(line.get_xydata()).T for line in axes.lines}


# --------------------------------------------------------------------------------------------------
# plot_history
# --------------------------------------------------------------------------------------------------


def test_a_history_shows_losses_metrics_and_norms():
    history = trained(metrics=[right])
    losses, accuracy, norms = viz.plot_history(history).axes
    drawn = lines(losses)
    assert drawn["training loss"].tolist() == [history["epoch"], history["loss"]]
    assert drawn["validation loss"].tolist() == [history["epoch"], history["validation_loss"]]
    best = int(np.argmin(history["validation_loss"]))
    assert drawn["best validation"].ravel().tolist() == [best + 1, min(history["validation_loss"])]
    assert accuracy.get_ylabel() == "right"
    assert lines(accuracy)["training right"][1].tolist() == history["right"]
    assert lines(accuracy)["validation right"][1].tolist() == history["validation_right"]
    assert norms.lines[0].get_ydata().tolist() == history["grad_norm"]
    assert (norms.get_xlabel(), norms.get_ylabel()) == ("epoch", "gradient norm")
    assert f"{min(history['validation_loss']):.4g}" in losses.get_title()


def test_a_learning_rate_that_changes_is_drawn():
    records = [{"epoch": n, "loss": 1.0, "grad_norm": 1.0, "lr": 0.1 / n} for n in (1, 2)]
    figure = viz.plot_history(History(epochs=records))
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "gradient norm", "lr"]
    assert figure.axes[2].lines[0].get_ydata().tolist() == [0.1, 0.05]
    assert figure.axes[2].get_xlabel() == "epoch"


def test_the_steps_of_an_epoch_lie_before_its_end():
    history = trained(epochs=2, batch_size=10)
    epochs, values = lines(viz.plot_history(history).axes[0])["each step"]
    assert epochs.tolist() == [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    assert values.tolist() == [step["loss"] for step in history.steps]


def test_losses_below_zero_are_on_a_plain_scale():
    records = [{"epoch": n, "loss": 1.0 - n, "grad_norm": 1.0} for n in (1, 2)]
    assert viz.plot_history(History(epochs=records)).axes[0].get_yscale() == "linear"
    positive = [{**record, "loss": 0.1} for record in records]
    assert viz.plot_history(History(epochs=positive)).axes[0].get_yscale() == "log"


def marked(line):
    """The indices of the points of a line that have a marker."""
    every = line.get_markevery()
    return [] if line.get_marker() in ("None", None) else list(every)


def test_the_only_epoch_and_those_between_gaps_are_marked_since_they_are_no_line():
    for axes in viz.plot_history(trained(epochs=1, metrics=[right])).axes:
        for line in axes.lines:
            if line.get_label() not in ("each step", "best validation"):
                assert marked(line) == [0]
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
    records = [
        {"epoch": n, "loss": loss, "grad_norm": 1.0}
        for n, loss in enumerate([2.0, np.nan, 1.0, np.inf, 1.0, 0.5], 1)
    ]
    losses, norms = viz.plot_history(History(epochs=records)).axes
    assert marked(losses.lines[0]) == [0, 2]
    assert marked(norms.lines[0]) == []


def test_losses_that_are_not_finite_are_marked_and_said():
    history = trained()
    history.epochs[0]["validation_loss"] = float("nan")
    history.epochs[2]["loss"] = float("inf")
    losses = viz.plot_history(history).axes[0]
    best = int(np.argmin(history["validation_loss"][1:])) + 2
    assert losses.get_title() == (
        f"Loss not finite first in epoch 1; best validation loss "
        f"{history['validation_loss'][best - 1]:.4g} at epoch {best}"
    )
    assert losses.get_yscale() == "log"  # all that are numbers are positive
    assert lines(losses)["not finite"][0].tolist() == [1, 3]
    for record in history.epochs:
        record["loss"] = record["validation_loss"] = float("nan")
    for step in history.steps:
        step["loss"] = float("nan")
    assert viz.plot_history(history).axes[0].get_title() == "Loss not finite first in epoch 1"


def test_what_is_not_finite_is_marked_in_every_panel():
    records = [{"epoch": n, "loss": 1.0, "grad_norm": 1.0, "gain": 0.5} for n in (1, 2, 3)]
    records[1]["grad_norm"] = float("inf")
    records[0]["validation_gain"] = float("nan")
    losses, gain, norms = viz.plot_history(History(epochs=records)).axes
    assert lines(norms)["not finite"][0].tolist() == [2]
    assert lines(gain)["not finite"][0].tolist() == [1]
    assert "not finite" not in lines(losses)
    assert gain.get_ylim()[1] < 0.9  # marks change no scale
    assert [text.get_text() for text in norms.get_legend().get_texts()] == ["not finite"]


def test_a_history_without_gradient_norms_has_no_panel_for_them():
    (losses,) = viz.plot_history(History(epochs=[{"epoch": 1, "loss": 1.0}])).axes
    assert (losses.get_xlabel(), losses.get_ylabel()) == ("epoch", "loss")


def test_a_long_name_does_not_lie_on_other_panels():
    name = "a_rather_long_name_of_a_metric_for_a_small_panel"
    records = [{"epoch": n, "loss": 1.0, "grad_norm": 1.0, name: 0.5} for n in (1, 2)]
    panel = viz.plot_history(History(epochs=records)).axes[1]
    assert panel.get_ylabel() == "a_rather_…ll_panel"
    assert f"training {name}" in lines(panel)


def test_what_is_no_history_is_refused():
    with pytest.raises(TypeError, match=r"plot_history draws a History.* not MLP"):
        viz.plot_history(nn.MLP([2, 1]))
    with pytest.raises(ValueError, match="no epochs to plot yet"):
        viz.plot_history(History())


@pytest.mark.full
def test_the_method_of_a_history_draws_the_same(tmp_path):
    history = trained()
    viz.plot_history(history, tmp_path / "function.png")
    history.plot(tmp_path / "method.png")
    assert (tmp_path / "function.png").read_bytes() == (tmp_path / "method.png").read_bytes()


# --------------------------------------------------------------------------------------------------
# GradientRecorder
# --------------------------------------------------------------------------------------------------


def test_a_recorder_takes_down_the_gradients_of_each_step():
    model = nn.MLP([3, 4, 2], rng=np.random.default_rng(0))
    optimizer = SGD(model.parameters(), lr=0.1)
    by_layer, by_parameter = viz.GradientRecorder(model), viz.GradientRecorder(model, "parameter")
    expected = []
    with minigrad.observe(by_layer), minigrad.observe(by_parameter):
        for _ in range(3):
            optimizer.zero_grad()
            model(minigrad.randn(5, 3)).sum().backward()
            expected.append([np.linalg.norm(p.grad.data) for p in model.parameters()])
            optimizer.step()
    expected = np.array(expected).T
    assert list(by_parameter.norms) == [name for name, _ in model.named_parameters()]
    np.testing.assert_allclose(list(by_parameter.norms.values()), expected, rtol=1e-6)
    assert list(by_layer.norms) == ["layers.0", "layers.1"]
    together = np.hypot(expected[::2], expected[1::2])
    np.testing.assert_allclose(list(by_layer.norms.values()), together, rtol=1e-6)
    assert len(by_layer) == 3
    assert repr(by_parameter) == "GradientRecorder(4 parameters, 3 steps)"


def test_a_trainer_is_watched_from_outside_and_learns_the_same():
    def run(watched):
        rng = np.random.default_rng(0)
        model = nn.MLP([2, 4, 1], rng=rng)
        trainer = Trainer(model, SGD(model.parameters(), lr=0.1), minigrad.mse, progress=False)
        data = rng.standard_normal((64, 2)), rng.standard_normal((64, 1))
        recorder = viz.GradientRecorder(model)
        if watched:
            with minigrad.observe(recorder):
                history = trainer.fit(data, epochs=2)
        else:
            history = trainer.fit(data, epochs=2)
        return history, recorder

    minigrad.manual_seed(0)
    history, recorder = run(watched=True)
    minigrad.manual_seed(0)
    assert [s["loss"] for s in run(watched=False)[0].steps] == [s["loss"] for s in history.steps]
    total = np.hypot(*recorder.norms.values())
    np.testing.assert_allclose(total, [s["grad_norm"] for s in history.steps], rtol=1e-6)


def test_what_is_recorded_is_what_the_optimiser_uses():
    """Added up over the batches of a step, and clipped."""
    rng = np.random.default_rng(0)
    model = nn.Linear(2, 1, rng=rng)
    options = {"batch_size": 4, "accumulation_steps": 2, "clip_norm": 0.01, "progress": False}
    trainer = Trainer(model, SGD(model.parameters(), lr=0.1), minigrad.mse, **options)
    recorder = viz.GradientRecorder(model)
    with minigrad.observe(recorder):
        trainer.fit((rng.standard_normal((16, 2)), rng.standard_normal((16, 1))), epochs=1)
    assert recorder.norms["Linear"] == pytest.approx([0.01, 0.01], rel=1e-3)


def test_steps_of_other_models_are_not_recorded():
    mine, other = nn.Linear(2, 1), nn.Linear(2, 1)
    recorder = viz.GradientRecorder(mine)
    with minigrad.observe(recorder):
        other(minigrad.randn(3, 2)).sum().backward()
        SGD(other.parameters(), lr=0.1).step()
    assert len(recorder) == 0


def test_what_is_frozen_has_no_row_and_what_got_no_gradient_is_nan():
    model = nn.MLP([2, 3, 3, 1])
    model.layers[0].freeze()
    recorder = viz.GradientRecorder(model)
    assert list(recorder.norms) == ["layers.1", "layers.2"]
    model.layers[2](minigrad.randn(4, 3)).sum().backward()
    recorder.record()
    assert np.isnan(recorder.norms["layers.1"]).all()
    model.layers[1].weight.grad = minigrad.tensor(np.full((3, 3), np.nan, np.float32))
    recorder.record()
    assert recorder.norms["layers.1"][1] == np.inf


def test_the_parameters_of_the_model_itself_are_named_after_it():
    assert list(viz.GradientRecorder(nn.Linear(2, 1)).norms) == ["Linear"]


def test_a_recorder_refuses_what_it_cannot_watch():
    with pytest.raises(TypeError, match="watches a Module"):
        viz.GradientRecorder([1.0])
    with pytest.raises(ValueError, match="'layer' or 'parameter', not 'module'"):
        viz.GradientRecorder(nn.Linear(2, 1), by="module")
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        viz.GradientRecorder(nn.Linear(2, 1).freeze())


# --------------------------------------------------------------------------------------------------
# plot_gradients
# --------------------------------------------------------------------------------------------------


def remarks(figure):
    """The texts beside the layers, by layer."""
    profile = figure.axes[1]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    return {names[round(text.get_position()[1])]: text.get_text() for text in profile.texts}


def test_the_heat_map_has_every_layer_and_step():
    norms = {"first": [1.0, 2.0, 3.0], "second": [4.0, 5.0, 60.0]}
    figure = viz.plot_gradients(norms)
    heat, profile, bar = figure.axes
    (image,) = heat.images
    np.testing.assert_array_equal(image.get_array(), list(norms.values()))
    assert [label.get_text() for label in heat.get_yticklabels()] == ["first", "second"]
    assert heat.get_xlabel() == "step"
    assert bar.get_ylabel() == "norm"
    assert lines(profile)["median"].tolist() == [[2, 5], [0, 1]]
    assert remarks(figure) == {}
    assert "neither vanishes nor explodes" in figure.get_suptitle()


def test_a_recorder_is_drawn_with_its_names():
    model = nn.MLP([2, 3, 1])
    recorder = viz.GradientRecorder(model)
    model.layers[1].weight.grad = minigrad.tensor([[3.0, 4.0, 0.0]])
    recorder.record()
    figure = viz.plot_gradients(recorder)
    assert figure.axes[0].images[0].get_array().tolist() == [[None], [5.0]]
    assert remarks(figure) == {"layers.0": "none"}
    assert figure.get_suptitle() == "The gradient is missing in 1 of 2 layers"


def test_what_vanishes_and_what_explodes_is_pointed_at():
    steps = np.full(20, 1.0)
    spike, broken = steps.copy(), steps.copy()
    spike[6], broken[8] = 10 * FAR, np.inf
    figure = viz.plot_gradients(
        {
            "small": steps / (2 * FAR),
            "large": steps * (2 * FAR),
            "spike": spike,
            "broken": broken,
            "zero": 0 * steps,
            "fine": steps / (0.9 * FAR),
            "last": steps,
        }
    )
    assert remarks(figure) == {
        "small": "\N{BLACK DOWN-POINTING TRIANGLE} 5e-04 of the last",
        "large": "\N{BLACK UP-POINTING TRIANGLE} 2e+03 of the last",
        "spike": "\N{BLACK UP-POINTING TRIANGLE} 1e+04 x, step 7",
        "broken": "\N{BLACK UP-POINTING TRIANGLE} not finite, step 9",
        "zero": "\N{BLACK DOWN-POINTING TRIANGLE} always 0",
    }
    assert figure.get_suptitle() == "The gradient vanishes in 2, explodes in 3 of 7 rows"
    signs = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert signs == ["0", "not finite"]


def test_of_long_names_that_part_is_shown_which_tells_them_apart():
    name = "model.encoder.layers.{}.attention.self.output_projection_of_heads.lora_b"
    heat = viz.plot_gradients({name.format(i): [1.0, 2.0] for i in range(3)}).axes[0]
    shown = [label.get_text() for label in heat.get_yticklabels()]
    assert shown == [f"…{i}.attention.self.…n_of_heads.lora_b" for i in range(3)]
    heat = viz.plot_gradients({name: [1.0, 2.0]}).axes[0]
    assert [label.get_text() for label in heat.get_yticklabels()] == ["…lora_b"]


def test_the_ticks_of_a_single_step_are_at_the_step():
    heat, profile, *_ = viz.plot_gradients({"a": [1.5], "b": [2.0]}).axes
    assert all(float(tick).is_integer() for tick in heat.get_xticks())
    texts = [label.get_text() for label in profile.get_xticklabels(minor=True)]
    assert not any(texts)  # numbers between the powers of ten would lie on one another


def test_no_step_of_a_long_run_is_lost():
    norms = np.ones((2, 1001))
    norms[1, 500] = 7 * FAR
    norms[0, :3] = np.nan
    figure = viz.plot_gradients({"a": norms[0], "b": norms[1]})
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (2, 334)
    assert shown.max() == 7 * FAR
    assert shown.mask.sum() == 1
    assert figure.axes[0].get_xlabel() == "step (a column is the largest of 3)"


def test_nothing_but_zeros_can_be_drawn(tmp_path):
    figure = viz.plot_gradients({"a": [0.0, 0.0]}, tmp_path / "zeros.png")
    assert figure.get_suptitle() == "The gradient vanishes in 1 of 1 row"


@pytest.mark.full
def test_remarks_on_many_layers_do_not_lie_on_one_another():
    norms = {f"layers.{i}": [1e-9] for i in range(200)}
    norms["layers.57"], norms["layers.199"] = [np.inf], [1.0]
    figure = viz.plot_gradients(norms)
    figure.draw_without_rendering()
    texts = figure.axes[1].texts
    boxes = [text.get_window_extent() for text in texts]
    assert 20 < len(boxes) < 70
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    (broken,) = [text for text in texts if "not finite" in text.get_text()]
    assert broken.get_position()[1] == 57
    assert lines(figure.axes[1])["faults"][1].tolist() == [*range(199)]


@pytest.mark.full
@pytest.mark.parametrize(
    "norms",
    [
        {"a": [1e-320], "b": [1e308]},
        {"a": [1.7e308, np.inf]},
        {"a": [5e-324]},
        {"a": [np.inf, 1], "b" * 80: [1e-300, 1e300]},
    ],
)
def test_norms_at_the_ends_of_float64_are_drawn(norms):
    assert viz.plot_gradients(norms).rendered("png").startswith(b"\x89PNG")


def test_bad_gradients_are_refused(tmp_path):
    empty = viz.GradientRecorder(nn.Linear(2, 1))
    for gradients, error, says in (
        ([1.0], TypeError, "a GradientRecorder, or a dict of norms by name, not list"),
        (empty, ValueError, "no steps to plot yet; train inside of"),
        ({}, ValueError, "no steps to plot yet"),
        ({"a": [1.0], "b": [1.0, 2.0]}, ValueError, "different numbers of steps: {'a': 1, 'b': 2}"),
        ({"a": [-1.0]}, ValueError, "cannot be negative"),
        ({1: [1.0]}, TypeError, r"a list of norms for each name, not \[1.0\] for 1"),
        ({"a": 1.0}, TypeError, "a list of norms for each name, not 1.0 for 'a'"),
        ({"a": [[1.0]]}, TypeError, "a list of norms for each name, not"),
    ):
        with pytest.raises(error, match=says):
            viz.plot_gradients(gradients, tmp_path / "none.png")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------
# Files, notebooks, and where there is no matplotlib
# --------------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG\r\n"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_a_picture_is_saved_as_its_ending_says(tmp_path, ending, start):
    viz.plot_gradients({"a": [1.0]}, tmp_path / f"picture.{ending}")
    assert (tmp_path / f"picture.{ending}").read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.full
def test_dollar_signs_in_names_are_no_formulas_and_powers_of_ten_are():
    name = "$x$ $_per_$"
    records = [{"epoch": n, "loss": 10.0**n, "grad_norm": 1.0, name: 0.5} for n in (1, 2)]
    pictures = viz.plot_history(History(epochs=records)), viz.plot_gradients({name: [1.0, 100.0]})
    with rc_context({"svg.fonttype": "none"}):
        for picture in pictures:
            text = picture.rendered("svg").decode()
            assert name in text
            assert "mathdefault" not in re.sub("<!--.*?-->", "", text)


def test_a_bad_path_is_refused_and_the_old_file_stays(tmp_path):
    (tmp_path / "picture.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"picture.txt' is not a picture; it may end in .*png"):
        viz.plot_gradients({"a": [1.0]}, tmp_path / "picture.txt")
    assert (tmp_path / "picture.txt").read_text() == "mine"
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        trained().plot(tmp_path / "nowhere" / "picture.png")


def test_a_notebook_shows_the_figure():
    assert viz.plot_gradients({"a": [1.0]})._repr_png_().startswith(b"\x89PNG")


def test_matplotlib_draws_tensors_as_it_draws_arrays():
    x = np.arange(4.0)
    axes = Figure().subplots()
    points = axes.scatter(minigrad.tensor(x), minigrad.tensor(x**2), c=minigrad.tensor(x))
    assert_array_equal(points.get_offsets(), np.stack([x, x**2], axis=1))
    for draw in (axes.contour, axes.contourf):
        heights = draw(minigrad.tensor(np.outer(x, x)))
        assert_array_equal(heights.levels, draw(np.outer(x, x)).levels)
    with pytest.raises((TypeError, RuntimeError), match=r"no mask|requires a gradient"):
        axes.scatter(minigrad.Tensor(x, requires_grad=True), x)


def test_only_a_picture_needs_matplotlib():
    program = """
import sys
sys.modules["matplotlib"] = None  # as if it were not installed
import minigrad.viz
try:
    minigrad.viz.plot_gradients({"a": [1.0]})
except ImportError as error:
    assert "pip install 'minigrad-lora[examples]'" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_copy_of_a_recorder_and_its_model_records_too(rng):
    net = nn.Linear(4, 2, rng=rng)
    parts = net, SGD(net.parameters(), lr=0.1), viz.GradientRecorder(net)
    model, optimizer, recorder = copy.deepcopy(parts)
    with minigrad.observe(recorder):
        model(minigrad.ones((3, 4))).sum().backward()
        optimizer.step()
    assert len(recorder) == 1
    assert len(parts[2]) == 0


def test_of_several_optimisers_each_step_has_the_gradients_that_it_uses(rng):
    net = nn.Sequential(nn.Linear(4, 4, rng=rng), nn.Linear(4, 2, rng=rng))
    optimizers = [SGD(layer.parameters(), lr=0.1) for layer in net]
    recorder = viz.GradientRecorder(net)
    with minigrad.observe(recorder):
        net(minigrad.ones((3, 4))).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    first, second = recorder.norms["0"], recorder.norms["1"]
    assert first[0] > 0
    assert second[1] > 0
    assert np.isnan([first[1], second[0]]).all()
